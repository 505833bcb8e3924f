//! Plaintext that arrives for the pod: a peer without an identity. The policies decide; where they refuse, the client is reset and nothing is opened
//! towards the app. Bytes are opaque here: whatever they look like, they prove nothing. Where a waypoint stands before the pod itself, he is led through it, and what
//! comes back from there is decided about. Called by the accept loop of port 15006.

use std::net::SocketAddr;
use std::sync::Arc;

use mesh_core::{Workload, is_waypoint_of, ports};
use mesh_transport::copy::Peer as CopyPeer;
use mesh_transport::hbone::Claimed;
use mesh_transport::socket::{self, Armed};

use super::attempt::{Connected, Failure};
use super::connections::{Direction, Endpoints, Live, Registration};
use super::context::PodContext;
use super::deliver::{self, Refused};
use super::local;
use super::outbound::{self, Flow};
use super::reasons::Reason;
use super::relay::Carried;
use super::sidecar;
use crate::telemetry::{ConnectionLabels, Outcome, Peer, Reporter, ResponseFlags, Security, SocketGuard};

/// Serves one connection to its end.
pub async fn serve(context: Arc<PodContext>, client: Armed, peer: SocketAddr) {
    let client = match context.shared.config.sidecars {
        false => client,
        true => match Box::pin(sidecar::take(context.clone(), client, peer)).await {
            Some(client) => client,
            None => return,
        },
    };
    // Boxed, as for outbound connections: what is set up needs less memory than setting up.
    if let Some(carried) = Box::pin(set_up(context, client, peer)).await {
        carried.run().await;
    }
}

/// Connects the client to the app. `None`: it was refused, and the telemetry knows.
async fn set_up(context: Arc<PodContext>, client: Armed, peer: SocketAddr) -> Option<Box<Carried>> {
    mesh_runtime::failpoint::pass("plaintext");
    let counted = context.shared.telemetry.socket(Reporter::Destination);
    let peer = local::canonical(peer);
    let destination = destination(&context, &client)?;
    let registration = register(&context, Direction::InboundPlaintext, peer, destination)?;
    let live = registration.live();
    let opened = tokio::select! {
        biased;
        () = live.cut().cancelled() => Err(Refused::cut_early(live)),
        opened = open(&context, live) => opened,
    };
    let opened = match opened {
        Ok(Opened::Here(app, workload)) => Ok((app, workload)),
        Ok(Opened::Led) => {
            drop(registration);
            return Box::pin(lead(
                context,
                client,
                Flow { client: peer, destination, stranger: Some(Claimed::Nobody) },
                counted,
            ))
            .await;
        }
        Err(refused) => Err(refused),
    };
    match opened {
        Ok((app, workload)) => {
            let guard = context.shared.telemetry.open(labels(&context, live, Some(workload)));
            let peer = CopyPeer::Tcp(client);
            let counted = (None, Some(counted));
            Some(Box::new(Carried { app, peer, registration, hairpin: None, counted, guard }))
        }
        Err(refused) => {
            context.refuse(refused.reason, &refused.why);
            let flags = if refused.reason == Reason::Denied { ResponseFlags::Deny } else { ResponseFlags::Connect };
            context.shared.telemetry.open(labels(&context, live, None)).close(Outcome::failed(flags, refused.why));
            None
        }
    }
}

/// Leads the client through the pod's waypoint.
async fn lead(context: Arc<PodContext>, client: Armed, flow: Flow, counted: SocketGuard) -> Option<Box<Carried>> {
    let registration = register(&context, Direction::ToWaypoint, flow.client, flow.destination)?;
    let connected = tokio::select! {
        biased;
        () = registration.live().cut().cancelled() => Err(Failure::cut(&context, &flow)),
        connected = outbound::connect(&context, &flow, &client) => connected,
    };
    let telemetry = &context.shared.telemetry;
    match connected {
        Ok(Connected { peer, labels, lease, .. }) => {
            let (counted, guard) = ((lease, Some(counted)), telemetry.open(labels));
            Some(Box::new(Carried { app: client, peer, registration, hairpin: None, counted, guard }))
        }
        Err(failure) => {
            let Flow { client, destination, .. } = flow;
            context.refuse(failure.reason, format_args!("{client} to {destination}: {}", failure.error));
            telemetry.open(failure.labels).close(Outcome::failed(failure.flags, failure.error));
            None
        }
    }
}

fn register(
    context: &PodContext,
    direction: Direction,
    source: SocketAddr,
    destination: SocketAddr,
) -> Option<Registration> {
    let registered =
        context.connections.register(Endpoints { direction, source, destination, identity: None, via: None });
    registered.inspect_err(|full| context.refuse(Reason::ConnectionLimit, full)).ok()
}

/// Where the client was going. A connection straight to the agent's own port was not steered here and has no destination.
pub(super) fn destination(context: &PodContext, client: &Armed) -> Option<SocketAddr> {
    let local = local::canonical(client.local_addr().ok()?);
    let before = if context.shared.config.redirected { socket::before_redirection(client) } else { None };
    let destination = match before {
        Some(before) => local::canonical(before),
        None => context.shared.interception.plaintext_destination(context.pod.netns_cookie, local),
    };
    if !local::is_own(&context.pod, destination.ip()) || ports::is_mesh_port(destination.port()) {
        context.refuse(Reason::NotCaptured, format_args!("direct connection to {destination}"));
        return None;
    }
    Some(destination)
}

/// What becomes of a connection.
enum Opened {
    /// It is let in.
    Here(Armed, Arc<Workload>),
    /// It goes through the pod's waypoint.
    Led,
}

async fn open(context: &PodContext, live: &Live) -> Result<Opened, Refused> {
    let workload = deliver::known(context).await?;
    if workload.leads_strangers_through() {
        let (snapshot, from) = (context.shared.state.snapshot(), live.endpoints.source.ip());
        // It sends in plaintext what it has been asked for by this agent: that would go on for ever.
        if is_waypoint_of(&snapshot, &workload, &context.shared.config.network, &from) {
            return Err(Refused {
                reason: Reason::NoWaypoint,
                why: "the waypoint itself comes without an identity".into(),
            });
        }
        return Ok(Opened::Led);
    }
    let (permit, workload) = deliver::admit(context, live).await?;
    // It has just come to have a waypoint.
    if workload.leads_strangers_through() {
        return Ok(Opened::Led);
    }
    let app = deliver::connect(permit, context, live.endpoints.destination, live.endpoints.source).await?;
    Ok(Opened::Here(app, workload))
}

fn labels(context: &PodContext, live: &Live, workload: Option<Arc<Workload>>) -> ConnectionLabels {
    let snapshot = context.shared.state.snapshot();
    // Known by its address only: a label, never an identity.
    let source = snapshot.workload_by_address(&context.shared.config.network, &live.endpoints.source.ip());
    ConnectionLabels {
        source: Peer::from(source.cloned()),
        destination: Peer::Workload(workload.unwrap_or_else(|| context.view().workload.clone())),
        security: Security::Unknown,
        ..ConnectionLabels::unknown(Reporter::Destination, live.endpoints.source, live.endpoints.destination)
    }
}
