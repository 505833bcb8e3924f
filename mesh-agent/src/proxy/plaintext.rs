//! Plaintext that arrives for the pod: a peer without an identity. The policies decide; where they refuse, the client is reset and nothing is opened
//! towards the app. Bytes are opaque here: whatever they look like, they prove nothing. Called by the accept loop of port 15006.

use std::net::SocketAddr;
use std::sync::Arc;

use mesh_core::{Workload, ports};
use mesh_transport::copy::Peer as CopyPeer;
use mesh_transport::socket::{self, Armed};

use super::connections::{Direction, Endpoints, Live};
use super::context::PodContext;
use super::deliver::{self, Refused};
use super::local;
use super::reasons::Reason;
use super::relay::Carried;
use crate::telemetry::{ConnectionLabels, Outcome, Peer, Reporter, ResponseFlags, Security};

/// Serves one connection to its end.
pub async fn serve(context: Arc<PodContext>, client: Armed, peer: SocketAddr) {
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
    let endpoints =
        Endpoints { direction: Direction::InboundPlaintext, source: peer, destination, identity: None, via: None };
    let registration = match context.connections.register(endpoints) {
        Ok(registration) => registration,
        Err(full) => {
            context.refuse(Reason::ConnectionLimit, full);
            return None;
        }
    };
    let live = registration.live();
    let opened = tokio::select! {
        biased;
        () = live.cut().cancelled() => Err(Refused::cut_early(live)),
        opened = open(&context, live) => opened,
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

/// Where the client was going. A connection straight to the agent's own port was not steered here and has no destination.
fn destination(context: &PodContext, client: &Armed) -> Option<SocketAddr> {
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

async fn open(context: &PodContext, live: &Live) -> Result<(Armed, Arc<Workload>), Refused> {
    let (permit, workload) = deliver::admit(context, live).await?;
    let app = deliver::connect(permit, context, live.endpoints.destination, live.endpoints.source).await?;
    Ok((app, workload))
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
