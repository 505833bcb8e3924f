//! Follows the configuration: for each change, live connections that a policy now denies are cut, the kernel's plaintext refusal is brought in step, and
//! tunnels to addresses that changed owner are closed. One task for all pods, so that a change is walked once.
//!
//! The work is driven by level, not by edge: what a pod's state should be is computed from the snapshot, and the diff only says which policies to
//! consider changed. A subscriber that fell behind considers all of them changed.

use std::sync::{Arc, Weak};
use std::time::Duration;

use mesh_core::{Connection, Snapshot, Workload, authorize, may_reach, workload::is_entry};
use mesh_transport::hbone::TunnelKey;

use super::connections::{CutReason, Direction, Live};
use super::context::{PodContext, ROOM_RETRY};
use super::reasons::Reason;
use super::shared::ProxyShared;
use crate::state::{Update, Updates};

/// How soon an inbound mode that the kernel did not take is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Runs until the shared state is gone.
pub async fn run(shared: Weak<ProxyShared>, mut updates: Updates) {
    let mut behind = false;
    loop {
        let round = if behind { RETRY } else { ROOM_RETRY };
        let update = match tokio::time::timeout(round, updates.next()).await {
            Ok(update) => update.map(Some),
            Err(_) => Some(None),
        };
        let (Some(update), Some(shared)) = (update, shared.upgrade()) else { return };
        behind = !apply(&shared, update.as_ref()).await;
    }
}

/// Applies one change to all pods; without a change it only tries again what the kernel did not take. False: some mode is still not set.
async fn apply(shared: &Arc<ProxyShared>, update: Option<&Update>) -> bool {
    mesh_runtime::failpoint::pass("recheck");
    let snapshot = shared.state.snapshot_owned();
    let mut in_step = true;
    let concerns = |workload: &Workload| match update {
        Some(Update::Changed(diff)) => diff.concerns(workload),
        Some(Update::Resync) => true,
        None => false,
    };
    let pods = shared.pods();
    // All of them first: what a pod may reach is said of its workload.
    let again: Vec<bool> = pods.iter().map(|pod| update.is_some() && pod.refresh(&snapshot, concerns)).collect();
    // What the registry knows comes before the pods that may reach nothing else, and goes after them.
    let is_needed = || shared.pods().iter().any(|context| context.is_registry_only(&snapshot) == Some(true));
    let follow = |update| {
        let network = &shared.config.network;
        shared.known.follow(&*shared.interception, &snapshot, network, update, is_needed)
    };
    let was_needed = is_needed();
    if was_needed {
        in_step &= follow(update);
    }
    let is_judged_anew = was_needed && update.is_some_and(changes_the_registry);
    for (context, again) in pods.into_iter().zip(again) {
        if again {
            cut_denied(&context, &snapshot);
        }
        if is_judged_anew || (was_needed && again) {
            cut_barred(&context, &snapshot);
        }
        in_step &= context.sync_inbound() & context.sync_outbound(&snapshot);
        tokio::task::yield_now().await;
    }
    if !was_needed {
        in_step &= follow(update);
    }
    if let Some(update) = update {
        purge_tunnels(shared, update);
    }
    in_step
}

/// Closes tunnels to workloads that are gone or whose address has another owner now: a tunnel must never outlive the pairing of address and pod.
fn purge_tunnels(shared: &ProxyShared, update: &Update) {
    let touched = |key: &TunnelKey| match update {
        Update::Changed(diff) => {
            diff.workloads.contains(&key.destination_uid) || diff.addresses.contains(&key.destination.ip())
        }
        Update::Resync => true,
    };
    // By the newest snapshot, which is at least as new as the one that any tunnel in the pool was made by.
    let closed = shared.pool.purge(|key| touched(key) && !is_current(&shared.state.snapshot(), key));
    if closed > 0 {
        tracing::info!(closed, "tunnels closed: their workloads are gone or their addresses changed owner");
    }
}

/// Whether the workload that the tunnel was made to still has its address, and has had it all the time.
fn is_current(snapshot: &Snapshot, key: &TunnelKey) -> bool {
    let Some(workload) = snapshot.workload_by_uid(&key.destination_uid) else { return false };
    let ip = key.destination.ip();
    match snapshot.owner(&workload.network, &ip).filter(|owner| owner.workload.uid == key.destination_uid) {
        Some(owner) => owner.generation == key.destination_generation,
        // Nobody owns an address of the host network.
        None => key.destination_generation == 0 && workload.addresses.contains(&ip),
    }
}

/// Authorizes every inbound connection of the pod again and cuts those that are denied now.
///
/// Changes go on meanwhile: a connection may have been opened under a configuration newer than `snapshot`. So what is denied is looked at once more by
/// the newest, which is at least as new as any that a connection in the registry was allowed by.
fn cut_denied(context: &Arc<PodContext>, snapshot: &Snapshot) {
    context.connections.for_each(|live| {
        if live.endpoints.direction == Direction::Outbound || denial(context, snapshot, live).is_none() {
            return;
        }
        let Some((cut, reason, why)) = denial(context, &context.shared.state.snapshot(), live) else { return };
        context.refuse(reason, format_args!("connection from {} cut: {why}", live.endpoints.source));
        live.end(cut);
    });
}

fn changes_the_registry(update: &Update) -> bool {
    match update {
        Update::Changed(diff) => {
            // On what ports an entry has an endpoint is said with this.
            let of_entries = || diff.workloads.iter().any(|uid| is_entry(uid));
            diff.outbound || diff.synced || !diff.services.is_empty() || !diff.addresses.is_empty() || of_entries()
        }
        Update::Resync => true,
    }
}

/// Cuts connections of the pod to what it may not reach any more: outside of the mesh, and nobody's that the registry knows.
fn cut_barred(context: &Arc<PodContext>, snapshot: &Snapshot) {
    let view = context.view();
    context.connections.for_each(|live| {
        let to = live.endpoints.destination;
        if matches!(live.endpoints.direction, Direction::Inbound | Direction::ToWaypoint)
            || may_reach(snapshot, &view.client, to).is_ok()
        {
            return;
        }
        // By the newest, as above.
        let Err(why) = may_reach(&context.shared.state.snapshot(), &view.client, to) else { return };
        context.refuse(Reason::NotInRegistry, format_args!("connection to {to} cut: {why}"));
        live.end(CutReason::Denied);
    });
}

/// Why the connection may not go on.
fn denial(context: &PodContext, snapshot: &Snapshot, live: &Live) -> Option<(CutReason, Reason, String)> {
    let Some(workload) = context.workload(snapshot) else {
        return Some((CutReason::WorkloadGone, Reason::UnknownWorkload, "the pod is not known any more".into()));
    };
    if live.endpoints.direction == Direction::ToWaypoint {
        let why = || "who has no identity is not led through the waypoint any more".into();
        return (!workload.leads_strangers_through()).then(|| (CutReason::Denied, Reason::DeniedLater, why()));
    }
    let verdict = authorize(snapshot, workload, &as_connection(live));
    (!verdict.is_allowed()).then(|| (CutReason::Denied, Reason::DeniedLater, verdict.decision.to_string()))
}

/// A live connection as the authorization sees it.
pub fn as_connection(live: &Live) -> Connection<'_> {
    Connection {
        source_ip: live.endpoints.source.ip(),
        source: live.endpoints.identity.as_ref(),
        via: live.endpoints.via.as_ref(),
        destination_ip: live.endpoints.destination.ip(),
        destination_port: live.endpoints.destination.port(),
    }
}

#[cfg(test)]
#[expect(non_snake_case, reason = "tests carry the ids of their rows")]
mod tests {
    use mesh_core::Diff;

    use super::*;

    #[test]
    fn features_SB_3_what_may_be_reached_is_asked_again_when_an_entry_has_other_ports() {
        let of = |uid: &str| Diff { workloads: [uid.into()].into(), ..Diff::default() };
        for (diff, expected) in [
            (Diff::default(), false),
            (of("c//Pod/shop/cart-1"), false),
            (of("c/discovery.k8s.io/EndpointSlice/shop/db/192.0.2.1"), false),
            (of("c/networking.istio.io/ServiceEntry/shop/db/192.0.2.1"), true),
            (of("c/networking.istio.io/WorkloadEntry/shop/vm"), true),
            (Diff { outbound: true, ..Diff::default() }, true),
        ] {
            assert_eq!(changes_the_registry(&Update::Changed(Arc::new(diff.clone()))), expected, "{diff:?}");
        }
        assert!(changes_the_registry(&Update::Resync));
    }
}
