//! Tunnels that arrive for the pod, and the connections inside them.
//!
//! ```text
//! accept -> is it the pod's address -> TLS with the pod's certificate -> serve
//!   per CONNECT: register -> hold until synced -> authorize (401) -> connect to the app as the client (503) -> 200 -> copy
//! ```
//!
//! The client is who the certificate says. Its address is the tunnel's; what the request's headers claim is used for labels and for the port that the app
//! sees, never for a decision. Only a waypoint of what the pod serves, known by certificate and address together, says who the client is, and from where it asks:
//! then policies mean that one, and the app sees it. Called by the accept loop of port 15008.

use std::net::SocketAddr;
use std::sync::Arc;

use http::StatusCode;
use mesh_core::{Client, Identity, Service, Snapshot, Workload, ports, speaks_for};
use mesh_runtime::failpoint;
use mesh_transport::copy::Peer as CopyPeer;
use mesh_transport::hbone::{self, Authority, Claimed, InboundRequest, ServeEnd};
use mesh_transport::socket::Armed;

use super::connections::{Direction, Endpoints, Live};
use super::context::PodContext;
use super::deliver::{self, Refused};
use super::local;
use super::reasons::Reason;
use super::relay::Carried;
use crate::telemetry::{ConnectionLabels, End, Ends, Outcome, Peer, Reporter, ResponseFlags, Security};

/// Serves one tunnel to its end.
pub async fn serve(context: Arc<PodContext>, tcp: Armed, peer: SocketAddr) {
    let halt = context.halt.clone();
    tokio::select! {
        biased;
        () = halt.cancelled() => {}
        () = serve_tunnel(context, tcp, local::canonical(peer)) => {}
    }
}

async fn serve_tunnel(context: Arc<PodContext>, tcp: Armed, peer: SocketAddr) {
    failpoint::pass("handshake");
    let _open = context.shared.telemetry.socket(Reporter::Destination);
    match tcp.local_addr() {
        Ok(local) if local::is_own(&context.pod, local.ip()) => {}
        _ => return context.refuse(Reason::NotPodAddress, format_args!("tunnel from {peer} to a foreign address")),
    }
    let Some(_place) = context.tunnel_place() else {
        hbone::refuse_busy(tcp.disarmed());
        return context.refuse(Reason::ConnectionLimit, format_args!("tunnel from {peer}"));
    };
    let certificate = match context.certificate().await {
        Ok(certificate) => certificate,
        Err(error) => return context.refuse(Reason::NoCertificate, error),
    };
    let tunnel = match context.shared.acceptor.accept(tcp.disarmed(), &certificate).await {
        Ok(tunnel) => tunnel,
        Err(error) => {
            return context.refuse(
                if error.is_limit() { Reason::HalfOpenLimit } else { Reason::Handshake },
                format_args!("tunnel from {peer}: {error}"),
            );
        }
    };
    let requests = context.clone();
    let ended = tunnel
        .serve(context.drain.clone(), move |request| {
            mesh_runtime::task::spawn("inbound", answer(requests.clone(), request));
        })
        .await;
    if let ServeEnd::Protocol(rule) = ended {
        context.refuse(Reason::BadRequest, format_args!("tunnel from {peer}: {rule}"));
    }
}

/// Answers one CONNECT and carries its connection to the end.
async fn answer(context: Arc<PodContext>, request: InboundRequest) {
    // Boxed, as for outbound connections: what is set up needs less memory than setting up.
    if let Some(carried) = Box::pin(set_up(context, request)).await {
        carried.run().await;
    }
}

/// Connects the client to the app and answers. `None`: it was refused or has given up, and the telemetry knows.
async fn set_up(context: Arc<PodContext>, request: InboundRequest) -> Option<Box<Carried>> {
    failpoint::pass("inbound");
    let target = match target(&context, &request) {
        Ok(target) => target,
        Err(refused) => {
            context.refuse(refused.reason, &refused.why);
            request.refuse(StatusCode::SERVICE_UNAVAILABLE);
            return None;
        }
    };
    let endpoints = match endpoints(&context, &request, target).await {
        Ok(endpoints) => endpoints,
        Err(refused) => {
            context.refuse(refused.reason, &refused.why);
            request.refuse(StatusCode::SERVICE_UNAVAILABLE);
            return None;
        }
    };
    let registration = match context.connections.register(endpoints) {
        Ok(registration) => registration,
        Err(full) => {
            context.refuse(Reason::ConnectionLimit, full);
            request.refuse(StatusCode::SERVICE_UNAVAILABLE);
            return None;
        }
    };
    let live = registration.live();
    let opened = tokio::select! {
        biased;
        () = live.cut().cancelled() => Err(Refused::cut_early(live)),
        () = request.cancelled() => return None,
        opened = open(&context, live) => opened,
    };
    let labels = labels(&context, live, &request);
    match opened {
        Ok(app) => {
            let view = context.view();
            let from = request.peer_address();
            let accepted = request.accept(&view.baggage);
            drop(view);
            let guard = context.shared.telemetry.open(labels);
            match accepted {
                Ok(stream) => {
                    stream.measure(|| context.shared.telemetry.path(&tunnel_ends(&context, from, stream.peer())));
                    let peer = CopyPeer::Hbone(stream);
                    let counted = (None, None);
                    Some(Box::new(Carried { app, peer, registration, hairpin: None, counted, guard }))
                }
                Err(error) => {
                    guard.close(Outcome::interrupted(error.to_string()));
                    None
                }
            }
        }
        Err(refused) => {
            context.refuse(refused.reason, &refused.why);
            let denied = refused.reason == Reason::Denied;
            let (status, flags) = if denied {
                (StatusCode::UNAUTHORIZED, ResponseFlags::Deny)
            } else {
                (StatusCode::SERVICE_UNAVAILABLE, ResponseFlags::Connect)
            };
            request.refuse(status);
            context.shared.telemetry.open(labels).close(Outcome::failed(flags, refused.why));
            None
        }
    }
}

async fn open(context: &PodContext, live: &Live) -> Result<Armed, Refused> {
    let (permit, _) = deliver::admit(context, live).await?;
    deliver::connect(permit, context, live.endpoints.destination, live.endpoints.source).await
}

/// Where the request goes: always this pod; the authority contributes the port, or the service whose port it is.
fn target(context: &PodContext, request: &InboundRequest) -> Result<SocketAddr, Refused> {
    let local = request.local_address().ip().to_canonical();
    let port = match request.authority() {
        Authority::Address(address) => address.port(),
        Authority::Host(host, port) => {
            let snapshot = context.shared.state.snapshot();
            let workload = context.workload(&snapshot).ok_or_else(|| Refused {
                reason: Reason::UnknownWorkload,
                why: "host asked of an unknown pod".into(),
            })?;
            backed_port(&snapshot, workload, host, *port).ok_or_else(|| Refused {
                reason: Reason::UnknownHost,
                why: format!("{host}:{port} is not served by this pod"),
            })?
        }
    };
    if ports::is_mesh_port(port) {
        return Err(Refused { reason: Reason::MeshPort, why: format!("port {port} belongs to the mesh") });
    }
    Ok(SocketAddr::new(local, port))
}

/// The pod's port for `port` of a service with that host, if the pod is one of its endpoints.
fn backed_port(snapshot: &Snapshot, workload: &Workload, host: &str, port: u16) -> Option<u16> {
    snapshot.service_by_host(host).iter().find_map(|service| {
        let key = service.key();
        workload.services.get(&key)?;
        let default = || service.port(port).map(|port| port.target_port);
        workload.target_port(&key, port).or_else(default).filter(|port| *port != 0)
    })
}

/// Who asks, and from where. For somebody without an identity a waypoint of the pod may ask and nobody else: not in his own name either.
async fn endpoints(
    context: &PodContext,
    request: &InboundRequest,
    destination: SocketAddr,
) -> Result<Endpoints, Refused> {
    let of = |source, identity: Option<Identity>, via| Endpoints {
        direction: Direction::Inbound,
        source,
        destination,
        identity,
        via,
    };
    let said = request.forwarded().and_then(|forwarded| forwarded.client.zip(forwarded.identity.as_ref()));
    if let Some((address, claimed)) = said {
        // Before that nobody is known to be a waypoint; whoever is not, waits for the same a moment later.
        context.shared.state.synced_within(context.shared.config.hold_unsynced).await;
        if is_waypoint(context, request) {
            let identity = claimed.identity().cloned();
            return Ok(of(local::canonical(address), identity, Some(request.peer().clone())));
        }
        if *claimed == Claimed::Nobody {
            let why =
                format!("{} asks for somebody without an identity, and is no waypoint of the pod", request.peer());
            return Err(Refused { reason: Reason::NoWaypoint, why });
        }
    }
    Ok(of(client_address(request), Some(request.peer().clone()), None))
}

/// Whether the peer is a waypoint of what the pod serves.
fn is_waypoint(context: &PodContext, request: &InboundRequest) -> bool {
    let snapshot = context.shared.state.snapshot();
    let peer = Client {
        network: context.shared.config.network.clone(),
        ips: vec![local::canonical(request.peer_address()).ip()],
        identity: Some(request.peer().clone()),
        ..Client::default()
    };
    context.workload(&snapshot).is_some_and(|workload| speaks_for(&snapshot, workload, &peer))
}

/// The client's address: the tunnel's, with the port that the client's agent names if it speaks of the same address.
fn client_address(request: &InboundRequest) -> SocketAddr {
    let tunnel = local::canonical(request.peer_address());
    let claimed = request.forwarded().and_then(|forwarded| forwarded.client).map(local::canonical);
    claimed.filter(|claimed| claimed.ip() == tunnel.ip() && claimed.port() != 0).unwrap_or(tunnel)
}

/// Who is at the ends of a tunnel, whoever its streams are of: a waypoint's are its clients'.
fn tunnel_ends(context: &PodContext, from: SocketAddr, peer: &Identity) -> Ends {
    let snapshot = context.shared.state.snapshot();
    let source = snapshot.workload_by_address(&context.shared.config.network, &local::canonical(from).ip());
    // The address only helps to find a name for who has proved to be the peer.
    let source = source.filter(|workload| workload.identity() == *peer);
    Ends {
        reporter: Reporter::Destination,
        security: Security::MutualTls,
        source: End { peer: Peer::from(source.cloned()), identity: Some(peer.clone()) },
        destination: End {
            peer: Peer::Workload(context.view().workload.clone()),
            identity: Some(context.pod.identity.clone()),
        },
        service: None,
    }
}

fn labels(context: &PodContext, live: &Live, request: &InboundRequest) -> ConnectionLabels {
    let snapshot = context.shared.state.snapshot();
    let source = snapshot.workload_by_address(&context.shared.config.network, &live.endpoints.source.ip());
    // The address only helps to find a name for the authenticated client: a workload of another identity is not it.
    let source = source.filter(|workload| Some(workload.identity()) == live.endpoints.identity);
    let destination = context.view().workload.clone();
    let service = service_of(&snapshot, &destination, request);
    ConnectionLabels {
        reporter: Reporter::Destination,
        source: Peer::from(source.cloned()),
        source_identity: live.endpoints.identity.clone(),
        destination: Peer::Workload(destination),
        destination_identity: Some(context.pod.identity.clone()),
        service,
        security: Security::MutualTls,
        source_address: live.endpoints.source,
        destination_address: SocketAddr::new(live.endpoints.destination.ip(), ports::HBONE),
        hbone_target: Some(live.endpoints.destination),
    }
}

/// The service that the client says it asked for, if this pod is one of its endpoints.
fn service_of(snapshot: &Snapshot, workload: &Workload, request: &InboundRequest) -> Option<Arc<Service>> {
    let host = match request.authority() {
        Authority::Host(host, _) => host,
        Authority::Address(_) => request.forwarded()?.host.as_ref()?,
    };
    snapshot.service_by_host(host).iter().find(|service| workload.services.contains_key(&service.key())).cloned()
}
