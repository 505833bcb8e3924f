//! Passive ejection: an endpoint that refuses five connections in a row is left out for a while. Never the last one, never more than a tenth
//! (but at least one of several), and not at all while so many are out that the fault is more likely this node's.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
};

use super::Endpoint;

/// When to eject and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutlierPolicy {
    /// Consecutive failures that eject.
    pub consecutive_failures: u32,
    /// The first ejection's length; the n-th lasts n times as long.
    pub base_ms: u64,
    /// The longest ejection.
    pub max_ms: u64,
    /// The largest part of the endpoints that may be out at once; one may always, if there are several.
    pub max_percent: u32,
    /// With fewer than this part left, ejections are ignored.
    pub panic_percent: u32,
}

impl Default for OutlierPolicy {
    /// Istio's outlier detection, applied to connects.
    fn default() -> Self {
        Self { consecutive_failures: 5, base_ms: 30_000, max_ms: 300_000, max_percent: 10, panic_percent: 50 }
    }
}

/// What is known of one endpoint. Plain counters: a lost race costs one connection's worth of precision.
#[derive(Debug, Default)]
pub(super) struct EndpointState {
    active: AtomicU32,
    failures: AtomicU32,
    ejections: AtomicU32,
    ejected_until: AtomicU64,
}

impl EndpointState {
    pub(super) fn begin(&self) {
        self.active.fetch_add(1, Relaxed);
    }

    pub(super) fn end(&self) {
        self.active.fetch_sub(1, Relaxed);
    }

    pub(super) fn active(&self) -> u32 {
        self.active.load(Relaxed)
    }

    pub(super) fn is_ejected(&self, now_ms: u64) -> bool {
        now_ms < self.ejected_until.load(Relaxed)
    }
}

/// The ejections of one service.
#[derive(Debug)]
pub(super) struct Outliers {
    policy: OutlierPolicy,
    usable: AtomicU32,
    ejected: AtomicU32,
    next_expiry: AtomicU64,
    /// Held for a few instructions on failures and expiries only, never on a normal pick.
    list: Mutex<Vec<Arc<EndpointState>>>,
}

impl Outliers {
    pub(super) fn new(policy: OutlierPolicy) -> Self {
        Self {
            policy,
            usable: AtomicU32::new(0),
            ejected: AtomicU32::new(0),
            next_expiry: AtomicU64::new(u64::MAX),
            list: Mutex::default(),
        }
    }

    pub(super) fn set_usable(&self, members: &[Endpoint], usable: u32) {
        self.usable.store(usable, Relaxed);
        if self.ejected.load(Relaxed) > 0 {
            self.retain(|state| members.iter().any(|e| Arc::ptr_eq(&e.state, state)));
        }
    }

    pub(super) fn success(&self, state: &EndpointState, now_ms: u64) {
        if state.failures.load(Relaxed) != 0 {
            state.failures.store(0, Relaxed);
        }
        let ejections = state.ejections.load(Relaxed);
        if ejections > 0 && now_ms > state.ejected_until.load(Relaxed) + self.duration(ejections) {
            state.ejections.store(ejections - 1, Relaxed);
        }
    }

    /// `enough`: how many in a row eject, if that is less than the policy says.
    pub(super) fn failure(&self, state: &Arc<EndpointState>, enough: u32, now_ms: u64) -> bool {
        let failures = state.failures.fetch_add(1, Relaxed) + 1;
        if failures < self.policy.consecutive_failures.min(enough) || state.is_ejected(now_ms) {
            return false;
        }
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.retain(|s| s.is_ejected(now_ms));
        let (usable, out) = (self.usable.load(Relaxed), list.len() as u32);
        let limit = (u64::from(usable) * u64::from(self.policy.max_percent) / 100).max(1);
        let room = u64::from(out) < limit && out + 1 < usable;
        if room {
            let ejections = state.ejections.fetch_add(1, Relaxed) + 1;
            state.ejected_until.store(now_ms.saturating_add(self.duration(ejections)), Relaxed);
            state.failures.store(0, Relaxed);
            list.push(Arc::clone(state));
        }
        self.publish(&list);
        room
    }

    pub(super) fn panicking(&self, now_ms: u64) -> bool {
        if self.ejected.load(Relaxed) == 0 {
            return false;
        }
        if now_ms >= self.next_expiry.load(Relaxed) {
            self.retain(|state| state.is_ejected(now_ms));
        }
        let (usable, out) = (u64::from(self.usable.load(Relaxed)), u64::from(self.ejected.load(Relaxed)));
        usable.saturating_sub(out) * 100 < usable * u64::from(self.policy.panic_percent)
    }

    fn duration(&self, ejections: u32) -> u64 {
        self.policy.base_ms.saturating_mul(u64::from(ejections)).min(self.policy.max_ms)
    }

    fn retain(&self, keep: impl Fn(&Arc<EndpointState>) -> bool) {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.retain(keep);
        self.publish(&list);
    }

    fn publish(&self, list: &[Arc<EndpointState>]) {
        let expiry = list.iter().map(|s| s.ejected_until.load(Relaxed)).min().unwrap_or(u64::MAX);
        self.ejected.store(list.len() as u32, Relaxed);
        self.next_expiry.store(expiry, Relaxed);
    }
}
