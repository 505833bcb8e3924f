//! Connections that the pod opens.
//!
//! ```text
//! accept -> is the peer the pod, what did it ask for -> register -> hold until synced
//!   -> resolve -> tunnel | plain | as asked -> copy
//!         ^------- failed before the first byte: the next endpoint, a bounded number of times
//! ```
//!
//! The app's connect has already succeeded when the agent accepts, so every failure reaches it as a reset, never as an orderly end.
//! Called by the accept loop of port 15001.

use std::net::SocketAddr;
use std::sync::Arc;

use mesh_core::{ArcStr, Refusal, Request, Route, resolve};
use mesh_runtime::failpoint;
use mesh_transport::socket::{self, Armed};
use tokio::time::Instant;

use super::attempt::{self, Connected, Failure};
use super::connections::{Direction, Endpoints};
use super::context::PodContext;
use super::local;
use super::reasons::Reason;
use super::relay::Carried;
use crate::telemetry::{ConnectionGuard, ConnectionLabels, Outcome, Reporter, Security};

/// One connection of the app.
pub struct Flow {
    /// The app's side.
    pub client: SocketAddr,
    /// What it asked for.
    pub destination: SocketAddr,
}

/// Serves one connection to its end.
pub async fn serve(context: Arc<PodContext>, app: Armed, peer: SocketAddr) {
    // Boxed: setting up needs several times the memory of copying, and a connection copies for most of its life.
    if let Some(carried) = Box::pin(set_up(context, app, peer)).await {
        carried.run().await;
    }
}

/// Connects the app to what it asked for. `None`: it was refused, and the telemetry knows.
async fn set_up(context: Arc<PodContext>, app: Armed, peer: SocketAddr) -> Option<Box<Carried>> {
    failpoint::pass("outbound");
    let counted = context.shared.telemetry.socket(Reporter::Source);
    let flow = flow(&context, &app, local::canonical(peer))?;
    let endpoints = Endpoints {
        direction: Direction::Outbound,
        source: flow.client,
        destination: flow.destination,
        identity: None,
        via: None,
    };
    let registration = match context.connections.register(endpoints) {
        Ok(registration) => registration,
        Err(full) => {
            context.refuse(Reason::ConnectionLimit, full);
            return None;
        }
    };
    let connected = tokio::select! {
        biased;
        () = registration.live().cut().cancelled() => Err(Failure::cut(&context, &flow)),
        connected = connect(&context, &flow) => connected,
    };
    match connected {
        Ok(Connected { peer, labels, lease, hairpin }) => {
            let guard = opened(&context, labels);
            let counted = (lease, Some(counted));
            Some(Box::new(Carried { app, peer, registration, hairpin, counted, guard }))
        }
        Err(failure) => {
            context.refuse(failure.reason, format_args!("{} to {}: {}", flow.client, flow.destination, failure.error));
            opened(&context, failure.labels).close(Outcome::failed(failure.flags, failure.error));
            None
        }
    }
}

/// The telemetry of a connection; of both its ends if it never leaves the pod, because no other agent will report the far one.
fn opened(context: &PodContext, labels: ConnectionLabels) -> ConnectionGuard {
    let telemetry = &context.shared.telemetry;
    if labels.security == Security::Kernel { telemetry.open_both_ends(labels) } else { telemetry.open(labels) }
}

/// Who asks for what. Only the pod itself may speak to its slots; nobody reaches this port but through one.
fn flow(context: &PodContext, app: &Armed, client: SocketAddr) -> Option<Flow> {
    if !local::is_own(&context.pod, client.ip()) {
        context.refuse(Reason::PeerNotPod, format_args!("captured connection from {client}"));
        return None;
    }
    let slot = local::canonical(app.local_addr().ok()?);
    let destination = context.shared.interception.original_destination(context.pod.netns_cookie, slot).or_else(|| {
        // Not through a slot, but by a rule in the pod. What is the pod's own, or of this machine, no rule sends here.
        let before = context.shared.config.redirected.then(|| socket::before_redirection(app)).flatten()?;
        let ip = before.ip().to_canonical();
        (!ip.is_loopback() && !ip.is_unspecified() && !local::is_own(&context.pod, ip)).then_some(before)
    });
    if destination.is_none() {
        context.refuse(Reason::NotCaptured, format_args!("connection from {client} to {slot} without a slot"));
    }
    destination.map(|destination| Flow { client, destination: local::canonical(destination) })
}

/// Tries endpoints until one is connected, the failure is final, or enough have been tried.
async fn connect(context: &Arc<PodContext>, flow: &Flow) -> Result<Connected, Failure> {
    let shared = &context.shared;
    if !shared.state.synced_within(shared.config.hold_unsynced).await {
        return Err(Failure::refused(context, flow, &Refusal::NotSynced));
    }
    let mut tried = Vec::new();
    let mut last: Option<Failure> = None;
    loop {
        let route = match route(context, flow, &tried).await {
            Ok(route) => route,
            // What went wrong with the endpoints says more than that none is left.
            Err(refusal) => return Err(last.unwrap_or_else(|| Failure::refused(context, flow, &refusal))),
        };
        match attempt::run(context, flow, route).await {
            Ok(connected) => return Ok(connected),
            Err(failure) => match &failure.next {
                Some(uid) if tried.len() + 1 < shared.config.tries => {
                    tried.push(uid.clone());
                    last = Some(failure);
                }
                _ => return Err(failure),
            },
        }
    }
}

/// The next route. An address that should be known is asked for and waited for: the configuration may be a moment behind the pod.
async fn route(context: &PodContext, flow: &Flow, tried: &[ArcStr]) -> Result<Route, Refusal> {
    let first = resolve_now(context, flow, tried);
    let Err(Refusal::UnknownMeshAddress(address)) = first else { return first };
    let Some(_place) = context.waiting_place() else { return first };
    let deadline = Instant::now() + context.shared.config.hold_unknown;
    let mut updates = context.shared.state.updates();
    context.shared.state.want(address);
    loop {
        let route = resolve_now(context, flow, tried);
        if !matches!(route, Err(Refusal::UnknownMeshAddress(_))) {
            return route;
        }
        let Ok(Some(_)) = tokio::time::timeout_at(deadline, updates.next()).await else { return route };
    }
}

fn resolve_now(context: &PodContext, flow: &Flow, tried: &[ArcStr]) -> Result<Route, Refusal> {
    let view = context.view();
    let request =
        Request { source: &view.client, destination: flow.destination, now_ms: context.shared.now_ms(), tried };
    resolve(&context.shared.state.snapshot(), &request, &mut rand::rng())
}
