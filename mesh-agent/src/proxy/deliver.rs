//! The last step into a pod, the same for tunnels, plaintext and a pod that calls itself: is this connection allowed now, and if so, connect to the app
//! from inside the pod with the client's address as the app's peer.
//!
//! [`connect`] takes a [`Permit`], which only [`authorize`] hands out: nothing reaches an app unchecked.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;

use mesh_core::authorize::authorize as evaluate;
use mesh_core::{Snapshot, Workload};
use tokio::net::TcpStream;

use super::connections::Live;
use super::context::{PodContext, family_of, within};
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

/// Decides by `snapshot`, which must have been loaded after `live` was registered: a policy published later finds the connection in the registry.
pub fn authorize<'a>(
    context: &PodContext,
    snapshot: &'a Snapshot,
    live: &Live,
) -> Result<(Permit, &'a Arc<Workload>), Refused> {
    let Some(workload) = context.workload(snapshot) else {
        return Err(Refused {
            reason: Reason::UnknownWorkload,
            why: "the configuration does not show this pod under its address".into(),
        });
    };
    let verdict = evaluate(snapshot, workload, &as_connection(live));
    if !verdict.dry_run.is_empty() {
        let would: Vec<_> = verdict.dry_run.iter().map(ToString::to_string).collect();
        tracing::info!(source = %live.endpoints.source, destination = %live.endpoints.destination, policies = would.join(","), "dry-run policies would deny");
    }
    if verdict.is_allowed() {
        return Ok((Permit(()), workload));
    }
    Err(Refused { reason: Reason::Denied, why: verdict.decision.to_string() })
}

/// Connects to the app at `target` from inside the pod; the app's peer will be `client`.
pub async fn connect(
    _permit: Permit,
    context: &PodContext,
    target: SocketAddr,
    client: SocketAddr,
) -> Result<TcpStream, Refused> {
    let socket = context
        .pod
        .sockets
        .tcp_socket(family_of(target.ip()))
        .await
        .map_err(|error| refused(Reason::AppUnreachable, target, &error))?;
    context
        .shared
        .interception
        .set_client(socket.as_fd(), client)
        .map_err(|error| refused(Reason::ClientAddress, target, &error))?;
    within(context.shared.config.app_connect_timeout, socket.connect(target))
        .await
        .map_err(|error| refused(Reason::AppUnreachable, target, &error))
}

fn refused(reason: Reason, target: SocketAddr, error: &io::Error) -> Refused {
    Refused { reason, why: format!("app at {target}: {error}") }
}
