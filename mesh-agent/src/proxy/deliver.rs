//! The last step into a pod, the same for tunnels, plaintext and a pod that calls itself: is this connection allowed now, and if so, connect to the app
//! from inside the pod with the client's address as the app's peer.
//!
//! [`connect`] takes a [`Permit`], which only [`authorize`] hands out: nothing reaches an app unchecked.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;

use mesh_core::Workload;
use mesh_core::authorize::authorize as evaluate;
use mesh_transport::netns::Family;
use mesh_transport::socket::Armed;
use tokio::time::Instant;

use super::connections::{CutReason, Live};
use super::context::{PodContext, within};
use super::reasons::Reason;
use super::recheck::as_connection;

/// Proof that a connection was authorized. It is for one connect.
pub struct Permit(());

/// Why a connection may not be delivered.
pub struct Refused {
    /// In a word.
    pub reason: Reason,
    /// In a sentence, for the log.
    pub why: String,
}

impl Refused {
    /// A connection that was told to end between its registration and its answer: a policy arrived in between, or the pod is going.
    pub fn cut_early(live: &Live) -> Refused {
        match live.cut_reason() {
            Some(CutReason::Denied) => {
                Refused { reason: Reason::Denied, why: "denied by a policy that arrived meanwhile".into() }
            }
            reason => Refused { reason: Reason::Stopping, why: reason.map_or("cut", CutReason::as_str).into() },
        }
    }
}

/// Decides as soon as it can be decided: the configuration has arrived, and shows this pod. A peer may hear of a new pod a moment before the pod's own
/// agent does, so that is waited for too, a bounded time.
pub async fn admit(context: &PodContext, live: &Live) -> Result<(Permit, Arc<Workload>), Refused> {
    when_known(context, || authorize(context, live)).await
}

/// The pod's workload, as soon as the configuration shows it; likewise.
pub async fn known(context: &PodContext) -> Result<Arc<Workload>, Refused> {
    when_known(context, || context.workload(&context.shared.state.snapshot()).cloned().ok_or_else(unknown)).await
}

/// What is decided as soon as the configuration shows the pod, or when that has been waited for long enough. It is asked again with each change, since a pod may be
/// gone for a moment between two.
async fn when_known<T>(context: &PodContext, decide: impl Fn() -> Result<T, Refused>) -> Result<T, Refused> {
    let shared = &context.shared;
    if !shared.state.synced_within(shared.config.hold_unsynced).await {
        return Err(Refused { reason: Reason::NotSynced, why: "no configuration yet".into() });
    }
    match decide() {
        Err(Refused { reason: Reason::UnknownWorkload, .. }) => Box::pin(waited_for(context, decide)).await,
        decided => decided,
    }
}

async fn waited_for<T>(context: &PodContext, decide: impl Fn() -> Result<T, Refused>) -> Result<T, Refused> {
    let Some(_place) = context.waiting_place() else { return decide() };
    let deadline = Instant::now() + context.shared.config.hold_unknown;
    let mut updates = context.shared.state.updates();
    loop {
        let decided = decide();
        let Err(Refused { reason: Reason::UnknownWorkload, .. }) = decided else { return decided };
        let Ok(Some(_)) = tokio::time::timeout_at(deadline, updates.next()).await else { return decided };
    }
}

fn unknown() -> Refused {
    let why = "the configuration does not show this pod under its address".into();
    Refused { reason: Reason::UnknownWorkload, why }
}

/// Decides by the current snapshot, which is loaded here, after `live` was registered: a policy published later finds the connection in the registry.
pub fn authorize(context: &PodContext, live: &Live) -> Result<(Permit, Arc<Workload>), Refused> {
    let snapshot = context.shared.state.snapshot();
    let workload = context.workload(&snapshot).ok_or_else(unknown)?;
    let verdict = evaluate(&snapshot, workload, &as_connection(live));
    if !verdict.dry_run.is_empty() {
        let would: Vec<_> = verdict.dry_run.iter().map(ToString::to_string).collect();
        tracing::info!(source = %live.endpoints.source, destination = %live.endpoints.destination, policies = would.join(","), "dry-run policies would deny");
    }
    if verdict.is_allowed() {
        return Ok((Permit(()), workload.clone()));
    }
    Err(Refused { reason: Reason::Denied, why: verdict.decision.to_string() })
}

/// Connects to the app at `target` from inside the pod; the app's peer will be `client`.
pub async fn connect(
    _permit: Permit,
    context: &PodContext,
    target: SocketAddr,
    client: SocketAddr,
) -> Result<Armed, Refused> {
    let limit = context.shared.config.app_connect_timeout;
    let _turn = within(limit, context.app_connects.take(target))
        .await
        .map_err(|error| refused(Reason::AppUnreachable, target, &error))?;
    let socket = context
        .pod
        .sockets
        .tcp_socket(Family::of(&target.ip()))
        .await
        .map_err(|error| refused(Reason::AppUnreachable, target, &error))?;
    context
        .shared
        .interception
        .set_client(socket.as_fd(), client)
        .map_err(|error| refused(Reason::ClientAddress, target, &error))?;
    // Whatever ends the set-up from here on, the app sees a reset: it may have accepted what is given up a moment later.
    mesh_runtime::failpoint::pass("deliver");
    let stream = within(limit, Armed::connect(socket, target))
        .await
        .map_err(|error| refused(Reason::AppUnreachable, target, &error))?;
    // An app that has already reset the connection has lost its entry too; it sees nobody, so there is nothing to refuse.
    if !context.shared.interception.client_shown(stream.as_fd()) && stream.peer_addr().is_ok() {
        let error = io::Error::other("the kernel has no place for the client's address: the app would see its own");
        return Err(refused(Reason::ClientAddress, target, &error));
    }
    Ok(stream)
}

fn refused(reason: Reason, target: SocketAddr, error: &io::Error) -> Refused {
    Refused { reason, why: format!("app at {target}: {error}") }
}
