//! The agent's view of the mesh: one writer applies changes, every connection reads an immutable snapshot without a lock.
//!
//! ```text
//! control stream ──Vec<Change>──> StateWriter ──owns──> Store
//!                                     │ publish snapshot, then announce the diff
//!                                     v
//!                                StateHandle ──snapshot()──> connections, DNS, admin
//!                                     └──────updates()────> recheck of live connections, kernel modes, pool, telemetry
//! ```
//!
//! The order matters: the snapshot is published *before* its diff is announced, so whoever reacts to a diff sees a snapshot at least that new, and a
//! connection that registered itself before loading the snapshot is either rechecked or already saw the new one.
//!
//! Whoever needs an address that should be known and is not may ask for it ([`StateHandle::want`]); the answer, if there is one, is an update like any
//! other.
//!
//! Losing the control plane changes nothing here: the last good snapshot stays. Before the first complete answer nothing is decided at all
//! (`StateHandle::synced_within`), because an absent configuration must deny.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use mesh_core::{Change, Diff, Snapshot, Store};
use tokio::sync::{broadcast, mpsc, watch};

/// Diffs a slow subscriber may fall behind before it is told to resynchronise from the snapshot. A subscriber never blocks the writer.
const UPDATE_BACKLOG: usize = 256;

/// Addresses that may wait to be asked for. What does not fit is not asked for: the ordinary push is then soon enough, or never was.
const WANTED_BACKLOG: usize = 64;

/// The reading side, shared by everything that decides about traffic.
pub struct StateHandle {
    snapshot: ArcSwap<Snapshot>,
    synced: watch::Sender<bool>,
    updates: broadcast::Sender<Arc<Diff>>,
    wanted: mpsc::Sender<IpAddr>,
}

/// The only owner of the [`Store`]: whoever holds it may change the world.
pub struct StateWriter {
    store: Store,
    handle: Arc<StateHandle>,
}

/// What a subscriber has to do next.
#[derive(Debug, Clone)]
pub enum Update {
    /// These resources changed; the current snapshot contains the change.
    Changed(Arc<Diff>),
    /// The subscriber fell behind: anything may have changed, look at everything.
    Resync,
}

/// A subscription to changes. Dropping it ends it.
pub struct Updates {
    receiver: broadcast::Receiver<Arc<Diff>>,
}

impl StateHandle {
    /// An empty, unsynced state, the writer that may fill it, and the addresses that connections wait for.
    pub fn new() -> (Arc<StateHandle>, StateWriter, mpsc::Receiver<IpAddr>) {
        let store = Store::new();
        let (want, wanted) = mpsc::channel(WANTED_BACKLOG);
        let handle = Arc::new(StateHandle {
            snapshot: ArcSwap::new(store.snapshot()),
            synced: watch::Sender::new(false),
            updates: broadcast::Sender::new(UPDATE_BACKLOG),
            wanted: want,
        });
        let writer = StateWriter { store, handle: handle.clone() };
        (handle, writer, wanted)
    }

    /// The current snapshot, borrowed without touching its reference count. Do not hold it over an await.
    pub fn snapshot(&self) -> Guard<Arc<Snapshot>> {
        self.snapshot.load()
    }

    /// The current snapshot for keeping.
    pub fn snapshot_owned(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// Whether the first complete configuration has arrived.
    pub fn is_synced(&self) -> bool {
        *self.synced.borrow()
    }

    /// Waits until the first complete configuration has arrived, at most `limit`; false means it did not.
    pub async fn synced_within(&self, limit: Duration) -> bool {
        if self.is_synced() {
            return true;
        }
        let mut synced = self.synced.subscribe();
        matches!(tokio::time::timeout(limit, synced.wait_for(|synced| *synced)).await, Ok(Ok(_)))
    }

    /// Asks the control plane for what owns this address. Never waits; subscribe to [`StateHandle::updates`] first.
    pub fn want(&self, address: IpAddr) {
        let _ = self.wanted.try_send(address);
    }

    /// Subscribes to changes from now on.
    pub fn updates(&self) -> Updates {
        Updates { receiver: self.updates.subscribe() }
    }
}

impl StateWriter {
    /// Applies one batch as a whole: no reader ever sees half of it. Returns what changed.
    pub fn apply(&mut self, changes: Vec<Change>) -> Arc<Diff> {
        let applied = self.store.apply(changes);
        let diff = Arc::new(applied.diff);
        let synced = applied.snapshot.is_synced();
        self.handle.snapshot.store(applied.snapshot);
        // Never taken back: losing the control plane leaves what is known.
        self.handle.synced.send_if_modified(|known| synced && !std::mem::replace(known, true));
        // No subscriber is not an error: tests and the start of the process have none.
        let _ = self.handle.updates.send(diff.clone());
        diff
    }

    /// The reading side.
    pub fn handle(&self) -> &Arc<StateHandle> {
        &self.handle
    }
}

impl Updates {
    /// The next change; `None` once the writer and all handles are gone.
    pub async fn next(&mut self) -> Option<Update> {
        match self.receiver.recv().await {
            Ok(diff) => Some(Update::Changed(diff)),
            Err(broadcast::error::RecvError::Lagged(_)) => Some(Update::Resync),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

#[cfg(test)]
#[allow(non_snake_case, reason = "tests carry the ids of the rows that they prove")]
mod tests {
    use mesh_core::Workload;

    use super::*;

    fn workload(n: usize) -> Change {
        Change::Workload(Workload::new(format!("cluster//Pod/a/{n}"), "a", n.to_string()))
    }

    #[tokio::test]
    async fn hardening_F9_nothing_is_decided_before_the_first_full_configuration() {
        let (state, mut writer, _) = StateHandle::new();
        writer.apply(vec![workload(1)]);
        assert!(!state.synced_within(Duration::from_millis(20)).await);
        let waiting = tokio::spawn({
            let state = state.clone();
            async move { state.synced_within(Duration::from_secs(10)).await }
        });
        tokio::task::yield_now().await;
        writer.apply(vec![Change::Synced]);
        assert!(waiting.await.unwrap());
        // Losing the writer, and with it the control plane, changes nothing.
        drop(writer);
        assert!(state.is_synced());
        assert!(state.snapshot().workload_by_uid("cluster//Pod/a/1").is_some());
    }

    #[tokio::test]
    async fn a_diff_never_precedes_its_snapshot() {
        let (state, mut writer, _) = StateHandle::new();
        let mut updates = state.updates();
        writer.apply(vec![workload(1)]);
        let Some(Update::Changed(diff)) = updates.next().await else { panic!("no change") };
        assert!(diff.workloads.iter().all(|uid| state.snapshot().workload_by_uid(uid).is_some()));
    }

    #[tokio::test]
    async fn whoever_falls_behind_is_told_to_look_at_everything() {
        let (state, mut writer, _) = StateHandle::new();
        let mut updates = state.updates();
        for n in 0..2 * UPDATE_BACKLOG {
            writer.apply(vec![workload(n)]);
        }
        assert!(matches!(updates.next().await, Some(Update::Resync)));
        assert!(matches!(updates.next().await, Some(Update::Changed(_))));
        drop((state, writer));
        while updates.next().await.is_some() {}
    }
}
