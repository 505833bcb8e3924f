//! Follows the configuration: for each change, live connections that a policy now denies are cut, the kernel's plaintext refusal is brought in step, and
//! tunnels to addresses that changed owner are closed. One task for all pods, so that a change is walked once.
//!
//! The work is driven by level, not by edge: what a pod's state should be is computed from the snapshot, and the diff only says which policies to
//! consider changed. A subscriber that fell behind considers all of them changed.

use std::sync::{Arc, Weak};
use std::time::Duration;

use mesh_core::{Connection, Diff, Snapshot, Workload, authorize};

use super::connections::{CutReason, Direction, Live};
use super::context::PodContext;
use super::reasons::Reason;
use super::shared::ProxyShared;
use crate::state::{Update, Updates};

/// How soon an inbound mode that the kernel did not take is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Runs until the shared state is gone.
pub async fn run(shared: Weak<ProxyShared>, mut updates: Updates) {
    let mut behind = false;
    loop {
        let update = if behind {
            match tokio::time::timeout(RETRY, updates.next()).await {
                Ok(update) => update.map(Some),
                Err(_) => Some(None),
            }
        } else {
            updates.next().await.map(Some)
        };
        let (Some(update), Some(shared)) = (update, shared.upgrade()) else { return };
        behind = !apply(&shared, update.as_ref()).await;
    }
}

/// Applies one change to all pods; without a change it only retries what the kernel did not take. False: some mode is still not set.
async fn apply(shared: &Arc<ProxyShared>, update: Option<&Update>) -> bool {
    let snapshot = shared.state.snapshot_owned();
    let mut in_step = true;
    let concerns = |workload: &Workload| match update {
        Some(Update::Changed(diff)) => diff.concerns(workload),
        Some(Update::Resync) => true,
        None => false,
    };
    for context in shared.pods() {
        if update.is_some() && context.refresh(&snapshot, concerns) {
            cut_denied(&context, &snapshot);
        }
        in_step &= context.sync_inbound(&snapshot);
        tokio::task::yield_now().await;
    }
    if let Some(Update::Changed(diff)) = update {
        purge_tunnels(shared, &snapshot, diff);
    }
    in_step
}

/// Closes tunnels to workloads that are gone or whose address has another owner now: a tunnel must never outlive the pairing of address and pod.
fn purge_tunnels(shared: &ProxyShared, snapshot: &Snapshot, diff: &Diff) {
    if shared.pool.stats().tunnels == 0 {
        return;
    }
    for uid in &diff.workloads {
        let workload = snapshot.workload_by_uid(uid);
        if workload.is_some_and(|workload| workload.addresses.iter().all(|ip| !diff.addresses.contains(ip))) {
            continue;
        }
        let generation = workload.and_then(|workload| {
            let owned = workload
                .addresses
                .iter()
                .filter_map(|ip| snapshot.owner(&workload.network, ip))
                .filter(|owner| owner.workload.uid == *uid);
            owned.map(|owner| owner.generation).min()
        });
        let closed = shared.pool.purge_destination(uid, generation);
        if closed > 0 {
            tracing::info!(%uid, closed, "tunnels closed: the workload is gone or its address changed owner");
        }
    }
}

/// Authorizes every inbound connection of the pod again and cuts those that are denied now.
fn cut_denied(context: &Arc<PodContext>, snapshot: &Snapshot) {
    let workload = context.workload(snapshot);
    context.connections.for_each(|live| {
        if live.endpoints.direction == Direction::Outbound {
            return;
        }
        let Some(workload) = workload else {
            context.refuse(Reason::UnknownWorkload, format_args!("connection from {} cut", live.endpoints.source));
            live.end(CutReason::WorkloadGone);
            return;
        };
        let verdict = authorize(snapshot, workload, &as_connection(live));
        if !verdict.is_allowed() {
            context.refuse(
                Reason::DeniedLater,
                format_args!("connection from {} cut: {}", live.endpoints.source, verdict.decision),
            );
            live.end(CutReason::Denied);
        }
    });
}

/// A live connection as the authorization sees it.
pub fn as_connection(live: &Live) -> Connection<'_> {
    Connection {
        source_ip: live.endpoints.source.ip(),
        source: live.endpoints.identity.as_ref(),
        destination_ip: live.endpoints.destination.ip(),
        destination_port: live.endpoints.destination.port(),
    }
}
