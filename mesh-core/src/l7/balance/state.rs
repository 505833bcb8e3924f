//! What is known of a place beyond what the control plane says: requests under way, whose turn it is, which endpoints are left out. It outlives versions of the
//! place and of its endpoints, and all threads share it: plain counters, a lock only where something fails or endpoints change.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use arcstr::ArcStr;
use hashbrown::HashMap;

use super::limits::Usage;
use super::outlier::{Counts, Ejections};

/// What is known of one place.
#[derive(Debug, Default)]
pub struct PlaceState {
    /// What is used of its limits.
    pub usage: Arc<Usage>,
    /// Which endpoints are left out.
    pub ejections: Arc<Ejections>,
    turn: AtomicU64,
    endpoints: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    by_address: HashMap<(ArcStr, SocketAddr), Arc<EndpointState>>,
    /// Those that were there from the beginning are not new.
    began: bool,
}

/// What is known of one endpoint of a place.
#[derive(Debug, Default)]
pub struct EndpointState {
    active: AtomicU32,
    /// When it came; `None`: it was there from the beginning.
    pub(super) since_ms: Option<u64>,
    pub(super) counts: Counts,
}

impl EndpointState {
    /// Requests under way.
    #[must_use]
    pub fn active(&self) -> u32 {
        self.active.load(Relaxed)
    }

    /// Whether it is left out.
    #[must_use]
    pub fn is_ejected(&self, now_ms: u64) -> bool {
        self.counts.is_ejected(now_ms)
    }

    pub(super) fn begin(&self) {
        self.active.fetch_add(1, Relaxed);
    }

    pub(super) fn end(&self) {
        self.active.fetch_sub(1, Relaxed);
    }
}

impl PlaceState {
    /// What is known of these endpoints; of all others everything is forgotten.
    pub(super) fn of(&self, endpoints: &[(ArcStr, SocketAddr)], now_ms: u64) -> Vec<Arc<EndpointState>> {
        let mut known = self.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        let since_ms = known.began.then_some(now_ms);
        known.began |= !endpoints.is_empty();
        let mut next = HashMap::with_capacity(endpoints.len());
        let mut states = Vec::with_capacity(endpoints.len());
        for key in endpoints {
            let fresh = || Arc::new(EndpointState { since_ms, ..EndpointState::default() });
            let state = known.by_address.remove(key).unwrap_or_else(fresh);
            next.insert(key.clone(), Arc::clone(&state));
            states.push(state);
        }
        known.by_address = next;
        self.ejections.keep(&states);
        states
    }

    pub(super) fn turn(&self) -> u64 {
        self.turn.fetch_add(1, Relaxed)
    }
}
