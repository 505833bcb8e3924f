//! Clients whose pods still have a sidecar of Istio's: mutual TLS straight to the application's port. The agent ends it with the pod's certificate, so who
//! they are is proved as in a tunnel, and policies mean it; what comes out goes to the app, or through the pod's waypoint. Called by `plaintext`.
//!
//! Only connections of pods that are known to have no tunnel are looked at, and only where that is asked for: some clients leave it to the server to begin, and
//! then the look takes as long as it may.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

use mesh_core::workload::TunnelProtocol;
use mesh_core::{Workload, ports};
use mesh_transport::copy::{ByteCounters, Peer as CopyPeer};
use mesh_transport::hbone::{AcceptorConfig, Claimed};
use mesh_transport::socket::Armed;
use mesh_transport::tls::{SidecarStream, accept_sidecar, is_sidecar};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional};

use super::attempt::{Connected, Failure};
use super::connections::{Direction, Endpoints, Live};
use super::context::PodContext;
use super::deliver::{self, Refused};
use super::looks::Look;
use super::outbound::{self, Flow};
use super::reasons::Reason;
use super::{local, plaintext};
use crate::telemetry::{ConnectionGuard, ConnectionLabels, Outcome, Peer, Reporter, ResponseFlags, Security};

/// Serves a client to its end that comes with a sidecar's TLS, or refuses it; another one is given back. What is no TLS is known by its first byte.
pub async fn take(context: Arc<PodContext>, client: Armed, peer: SocketAddr) -> Option<Armed> {
    let shared = &context.shared;
    let from = local::canonical(peer).ip();
    let is_candidate = {
        let snapshot = shared.state.snapshot();
        let from = snapshot.workload_by_address(&shared.config.network, &from);
        from.is_some_and(|workload| workload.is_pod() && workload.protocol == TunnelProtocol::None)
    };
    if !is_candidate {
        return Some(client);
    }
    let Some(look) = context.look(from) else {
        context.refuse(Reason::HalfOpenLimit, format_args!("{peer}: too many connections of which nothing is known"));
        return None;
    };
    match is_sidecar(&client, shared.config.hold_hello).await {
        Ok(true) => {
            serve(context, client, peer, look).await;
            None
        }
        _ => Some(client),
    }
}

/// Serves one to its end; `look` is held until the handshake is over.
async fn serve(context: Arc<PodContext>, client: Armed, peer: SocketAddr, look: Look) {
    let _open = context.shared.telemetry.socket(Reporter::Destination);
    let peer = local::canonical(peer);
    let Some(destination) = plaintext::destination(&context, &client) else { return };
    let shaken = shaken(&context, client).await;
    drop(look);
    let stream = match shaken {
        Ok(stream) => stream,
        Err(refused) => return context.refuse(refused.reason, format_args!("sidecar at {peer}: {}", refused.why)),
    };
    let workload = match deliver::known(&context).await {
        Ok(workload) => workload,
        Err(refused) => return context.refuse(refused.reason, &refused.why),
    };
    let is_led = workload.leads_strangers_through();
    let endpoints = Endpoints {
        direction: if is_led { Direction::ToWaypoint } else { Direction::Inbound },
        source: peer,
        destination,
        identity: Some(stream.peer().clone()),
        via: None,
    };
    let registration = match context.connections.register(endpoints) {
        Ok(registration) => registration,
        Err(full) => return context.refuse(Reason::ConnectionLimit, full),
    };
    let live = registration.live();
    match is_led {
        true => lead(&context, stream, live).await,
        false => deliver(&context, stream, live).await,
    }
}

async fn shaken(context: &PodContext, client: Armed) -> Result<SidecarStream, Refused> {
    let certificate = context.certificate().await;
    let certificate = certificate.map_err(|error| Refused { reason: Reason::NoCertificate, why: error.to_string() })?;
    let (revocations, limit) = (context.shared.config.revocations.as_ref(), AcceptorConfig::default().tls_timeout);
    let shaken = accept_sidecar(client, &certificate, revocations, limit).await;
    shaken.map_err(|error| Refused { reason: Reason::Handshake, why: error.to_string() })
}

/// To the app, if policies let the client in.
async fn deliver(context: &PodContext, stream: SidecarStream, live: &Live) {
    let open = async {
        let (permit, workload) = deliver::admit(context, live).await?;
        // It has just come to have a waypoint.
        if workload.leads_strangers_through() {
            return Err(Refused { reason: Reason::NoWaypoint, why: "the pod has come to have a waypoint".into() });
        }
        let Endpoints { destination, source, .. } = live.endpoints;
        deliver::connect(permit, context, destination, source).await
    };
    let opened = tokio::select! {
        biased;
        () = live.cut().cancelled() => Err(Refused::cut_early(live)),
        opened = open => opened,
    };
    let guard = context.shared.telemetry.open(labels(context, live));
    match opened {
        Ok(app) => {
            let counters = guard.counters();
            let near = Counted { stream, counters: counters.clone(), is_far: true };
            carry(near, app, live, guard, counters, Armed::disarm).await;
        }
        Err(refused) => {
            context.refuse(refused.reason, &refused.why);
            let flags = if refused.reason == Reason::Denied { ResponseFlags::Deny } else { ResponseFlags::Connect };
            guard.close(Outcome::failed(flags, refused.why));
        }
    }
}

/// Through the pod's waypoint, which is told who the client has proved to be.
async fn lead(context: &Arc<PodContext>, stream: SidecarStream, live: &Live) {
    let claimed = Some(Claimed::Identity(stream.peer().clone()));
    let flow = Flow { client: live.endpoints.source, destination: live.endpoints.destination, stranger: claimed };
    let connected = tokio::select! {
        biased;
        () = live.cut().cancelled() => Err(Failure::cut(context, &flow)),
        connected = outbound::connect(context, &flow, stream.socket()) => connected,
    };
    let telemetry = &context.shared.telemetry;
    match connected {
        Ok(Connected { peer, labels, lease, .. }) => {
            let guard = telemetry.open(labels);
            let counters = guard.counters();
            let near = Counted { stream, counters: counters.clone(), is_far: false };
            match peer {
                CopyPeer::Hbone(far) => carry(near, far, live, guard, counters, |_| ()).await,
                // Only a waypoint may have it, and that is reached by a tunnel.
                CopyPeer::Tcp(_) | CopyPeer::Measured(_) => {
                    guard.close(Outcome::failed(ResponseFlags::Connect, "no tunnel".to_owned()))
                }
            }
            drop(lease);
        }
        Err(failure) => {
            let Flow { client, destination, .. } = flow;
            context.refuse(failure.reason, format_args!("{client} to {destination}: {}", failure.error));
            telemetry.open(failure.labels).close(Outcome::failed(failure.flags, failure.error));
        }
    }
}

/// Copies until both directions have ended in order; whatever else ends it is a reset at both ends.
async fn carry<F: AsyncRead + AsyncWrite + Unpin>(
    mut near: Counted,
    mut far: F,
    live: &Live,
    guard: ConnectionGuard,
    counters: Arc<ByteCounters>,
    disarm: impl FnOnce(&F),
) {
    live.count_with(counters);
    let revoked = near.stream.revoked().clone();
    let ended = tokio::select! {
        biased;
        () = live.cut().cancelled() => Err("cut".to_owned()),
        () = revoked.cancelled() => Err("the client's certificate was revoked".to_owned()),
        copied = copy_bidirectional(&mut near, &mut far) => copied.map_err(|error| error.to_string()),
    };
    guard.close(match (ended, live.cut_reason()) {
        (Ok(_), _) => {
            near.stream.socket().disarm();
            disarm(&far);
            Outcome::Complete
        }
        (Err(_), Some(reason)) => Outcome::interrupted(reason.as_str()),
        (Err(why), None) => Outcome::interrupted(why),
    });
}

fn labels(context: &PodContext, live: &Live) -> ConnectionLabels {
    let snapshot = context.shared.state.snapshot();
    let source = snapshot.workload_by_address(&context.shared.config.network, &live.endpoints.source.ip());
    // The address only helps to find a name for the authenticated client.
    let source: Option<&Arc<Workload>> = source.filter(|one| Some(one.identity()) == live.endpoints.identity);
    debug_assert!(!ports::is_mesh_port(live.endpoints.destination.port()));
    ConnectionLabels {
        source: Peer::from(source.cloned()),
        source_identity: live.endpoints.identity.clone(),
        destination: Peer::Workload(context.view().workload.clone()),
        destination_identity: Some(context.pod.identity.clone()),
        security: Security::MutualTls,
        ..ConnectionLabels::unknown(Reporter::Destination, live.endpoints.source, live.endpoints.destination)
    }
}

/// The client's stream, whose bytes are counted as they pass.
struct Counted {
    stream: SidecarStream,
    counters: Arc<ByteCounters>,
    /// The client is what is counted as the peer, and not as the local end.
    is_far: bool,
}

impl Counted {
    fn of_client(&self) -> &AtomicU64 {
        if self.is_far { &self.counters.received } else { &self.counters.sent }
    }

    fn to_client(&self) -> &AtomicU64 {
        if self.is_far { &self.counters.sent } else { &self.counters.received }
    }
}

impl AsyncRead for Counted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.of_client().fetch_add((buffer.filled().len() - before) as u64, Relaxed);
        polled
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        self.to_client().fetch_add(written as u64, Relaxed);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
