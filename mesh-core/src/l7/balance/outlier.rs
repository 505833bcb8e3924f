//! Which endpoints are left out because of their answers (Istio's `outlierDetection`, Envoy's rules). Time is an argument. An endpoint comes back by itself
//! when its time is over; how long that is grows with each time, and falls with each interval that it was well.
//!
//! How many may be out at once: of several endpoints always one, else the part that is written; the last one only if all may be. Envoy's versions differ in that.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::state::EndpointState;
use crate::l7::cluster::Outliers;

/// Nobody is out for longer, unless one time is longer by itself.
const LONGEST: Duration = Duration::from_secs(300);

/// Where nothing is said: an endpoint that takes no connection is left out for a while, as for connections that are no HTTP.
pub fn unsaid() -> Outliers {
    Outliers { errors: 0, gateway_errors: 0, local_failures: Some(5), least_healthy_percent: 50, ..Outliers::default() }
}

/// How a request to an endpoint ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It answered with this status; of gRPC, with what its status is in HTTP.
    Status(u16),
    /// There was no connection, or it was lost before an answer.
    Failed,
    /// It took too long.
    Late,
}

/// Why an endpoint is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Errors in a row.
    Errors,
    /// 502, 503 and 504 in a row.
    GatewayErrors,
    /// What never came to it.
    LocalFailures,
}

impl Reason {
    /// For logs and metrics, in Envoy's words.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Errors => "consecutive_5xx",
            Self::GatewayErrors => "consecutive_gateway_failure",
            Self::LocalFailures => "consecutive_local_origin_failure",
        }
    }
}

/// What is counted of one endpoint. A lost race costs one request's worth of precision.
#[derive(Debug, Default)]
pub(super) struct Counts {
    errors: AtomicU32,
    gateway_errors: AtomicU32,
    local_failures: AtomicU32,
    /// How often it was out; falls when it is well.
    times: AtomicU32,
    until_ms: AtomicU64,
}

impl Counts {
    pub(super) fn is_ejected(&self, now_ms: u64) -> bool {
        now_ms < self.until_ms.load(Relaxed)
    }

    /// Counts an end; what has become too much by it.
    fn count(&self, policy: &Outliers, ended: Ended) -> Option<Reason> {
        let in_row = |count: &AtomicU32, is: bool, limit: u32, why: Reason| {
            if !is {
                if count.load(Relaxed) != 0 {
                    count.store(0, Relaxed);
                }
                return None;
            }
            (count.fetch_add(1, Relaxed).saturating_add(1) >= limit && limit > 0).then_some(why)
        };
        let status = match (ended, policy.local_failures) {
            (Ended::Status(status), _) => {
                in_row(&self.local_failures, false, 0, Reason::LocalFailures);
                status
            }
            (Ended::Failed | Ended::Late, Some(limit)) => {
                return in_row(&self.local_failures, true, limit, Reason::LocalFailures);
            }
            (Ended::Failed, None) => 503,
            (Ended::Late, None) => 504,
        };
        let is_error = match &*policy.statuses {
            [] => (500..600).contains(&status),
            statuses => statuses.contains(&status),
        };
        let errors = in_row(&self.errors, is_error, policy.errors, Reason::Errors);
        let is_gateway_error = (502..=504).contains(&status);
        let gateway = in_row(&self.gateway_errors, is_gateway_error, policy.gateway_errors, Reason::GatewayErrors);
        errors.or(gateway)
    }

    fn reset(&self) {
        [&self.errors, &self.gateway_errors, &self.local_failures]
            .into_iter()
            .for_each(|count| count.store(0, Relaxed));
    }
}

/// Who is left out of one place.
#[derive(Debug)]
pub struct Ejections {
    out: AtomicU32,
    next_ms: AtomicU64,
    /// Another one whenever somebody goes or comes back.
    version: AtomicU64,
    total: AtomicU64,
    /// Held for a few instructions, on failures and returns only.
    list: Mutex<Vec<Arc<EndpointState>>>,
}

impl Default for Ejections {
    fn default() -> Self {
        Self {
            out: AtomicU32::new(0),
            next_ms: AtomicU64::new(u64::MAX),
            version: AtomicU64::new(0),
            total: AtomicU64::new(0),
            list: Mutex::default(),
        }
    }
}

impl Ejections {
    /// How many were left out so far.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total.load(Relaxed)
    }

    /// How many are out, and which version of that it is.
    #[must_use]
    pub fn now(&self, now_ms: u64) -> (u32, u64) {
        if self.out.load(Relaxed) > 0 && now_ms >= self.next_ms.load(Relaxed) {
            self.retain(|state| state.is_ejected(now_ms));
        }
        (self.out.load(Relaxed), self.version.load(Relaxed))
    }

    /// Of others nothing is known any more.
    pub(super) fn keep(&self, states: &[Arc<EndpointState>]) {
        if self.out.load(Relaxed) > 0 {
            self.retain(|state| states.iter().any(|one| Arc::ptr_eq(one, state)));
        }
    }

    /// Takes note of how a request ended. Why the endpoint is left out from now on, if it is. `count` is how many endpoints there are.
    pub(super) fn report(
        &self,
        policy: &Outliers,
        state: &Arc<EndpointState>,
        ended: Ended,
        count: usize,
        now_ms: u64,
    ) -> Option<Reason> {
        let why = state.counts.count(policy, ended)?;
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.retain(|one| one.is_ejected(now_ms));
        if state.is_ejected(now_ms) || list.len() >= most(policy.most_percent, count) {
            self.publish(&list);
            return None;
        }
        let counts = &state.counts;
        let well = now_ms.saturating_sub(counts.until_ms.load(Relaxed)) / millis(policy.interval).max(1);
        let before = counts.times.load(Relaxed).saturating_sub(u32::try_from(well).unwrap_or(u32::MAX));
        let times = before.saturating_add(1);
        counts.times.store(times, Relaxed);
        let longest = LONGEST.max(policy.base);
        let time = policy.base.saturating_mul(times).min(longest);
        counts.until_ms.store(now_ms.saturating_add(millis(time)), Relaxed);
        counts.reset();
        list.push(Arc::clone(state));
        self.total.fetch_add(1, Relaxed);
        self.publish(&list);
        Some(why)
    }

    fn retain(&self, keep: impl Fn(&Arc<EndpointState>) -> bool) {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.retain(keep);
        self.publish(&list);
    }

    fn publish(&self, list: &[Arc<EndpointState>]) {
        let next = list.iter().map(|state| state.counts.until_ms.load(Relaxed)).min().unwrap_or(u64::MAX);
        self.out.store(u32::try_from(list.len()).unwrap_or(u32::MAX), Relaxed);
        self.next_ms.store(next, Relaxed);
        self.version.fetch_add(1, Relaxed);
    }
}

/// How many of so many may be out.
fn most(percent: u32, count: usize) -> usize {
    match percent {
        100.. => count,
        _ => (count * percent as usize / 100).max(usize::from(count > 1)),
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn states(count: usize) -> Vec<Arc<EndpointState>> {
        (0..count).map(|_| Arc::default()).collect()
    }

    #[test]
    fn features_DR_11_what_counts_in_a_row() {
        use Ended::{Failed, Late, Status};
        let base = Outliers { most_percent: 100, ..Outliers::default() };
        let gateway = Outliers { errors: 0, gateway_errors: 2, ..base.clone() };
        let split = Outliers { local_failures: Some(2), errors: 3, ..base.clone() };
        let codes = Outliers { statuses: vec![429], errors: 2, ..base.clone() };
        let never = Outliers { errors: 0, ..base.clone() };
        for (name, policy, ends, expected) in [
            ("five", &base, vec![Status(500); 5], Some((5, Reason::Errors))),
            ("four", &base, vec![Status(500); 4], None),
            ("not in a row", &base, [vec![Status(500); 4], vec![Status(200)], vec![Status(503); 4]].concat(), None),
            ("failures are 5xx", &base, vec![Failed, Late, Failed, Status(500), Failed], Some((5, Reason::Errors))),
            ("gateway", &gateway, vec![Status(500), Status(502), Status(504)], Some((3, Reason::GatewayErrors))),
            ("500 ends it", &gateway, vec![Status(502), Status(500), Status(502)], None),
            ("failures by themselves", &split, vec![Failed, Late], Some((2, Reason::LocalFailures))),
            ("an answer ends them", &split, vec![Failed, Status(500), Late, Status(500)], None),
            ("other statuses", &codes, vec![Status(500), Status(429), Status(429)], Some((3, Reason::Errors))),
            ("instead of 5xx", &codes, vec![Status(500); 9], None),
            ("never", &never, vec![Status(500); 99], None),
        ] {
            let (ejections, all) = (Ejections::default(), states(3));
            let reported = ends.iter().map(|end| ejections.report(policy, &all[0], *end, 3, 1));
            let found = reported.enumerate().find_map(|(index, why)| Some((index + 1, why?)));
            assert_eq!(found, expected, "{name}");
        }
    }

    #[test]
    fn features_B11_each_time_is_longer_and_falls_when_it_is_well() {
        let policy = Outliers { errors: 1, most_percent: 100, ..Outliers::default() };
        let (ejections, all) = (Ejections::default(), states(3));
        let fail = |at: u64| ejections.report(&policy, &all[0], Ended::Status(500), 3, at);
        assert!(fail(0).is_some());
        for (at, out) in [(0, true), (29_999, true), (30_000, false)] {
            assert_eq!(all[0].is_ejected(at), out, "{at}");
        }
        assert_eq!((ejections.now(29_999).0, ejections.now(30_000).0), (1, 0));
        assert!(fail(30_001).is_some());
        for (at, out) in [(90_000, true), (90_001, false)] {
            assert_eq!(all[0].is_ejected(at), out, "{at}: the second time is 60 s");
        }
        // Two intervals well: as if for the first time.
        assert!(fail(90_001 + 20_000).is_some());
        assert_eq!((all[0].is_ejected(140_000), all[0].is_ejected(140_001)), (true, false));
        // It does not grow for ever.
        for _ in 0..20 {
            let until = all[0].counts.until_ms.load(Relaxed);
            assert!(fail(until).is_some());
        }
        let until = all[0].counts.until_ms.load(Relaxed);
        assert_eq!((all[0].is_ejected(until - 1), all[0].is_ejected(until - 300_001)), (true, true));
        assert!(until < 20 * 300_000 + 200_000 && ejections.total() == 23);
    }

    #[test]
    fn features_DR_11_how_many_may_be_out() {
        for (percent, count, expected) in
            [(10, 1, 0), (10, 3, 1), (10, 20, 2), (50, 4, 2), (99, 1, 0), (100, 1, 1), (100, 3, 3), (0, 3, 1)]
        {
            let policy = Outliers { errors: 1, most_percent: percent, ..Outliers::default() };
            let (ejections, all) = (Ejections::default(), states(count));
            let out = all.iter().filter(|one| ejections.report(&policy, one, Ended::Status(500), count, 1).is_some());
            assert_eq!(out.count(), expected, "{percent} of {count}");
            assert_eq!(ejections.now(2).0 as usize, expected);
        }
    }

    #[test]
    fn who_is_gone_is_not_out() {
        let policy = Outliers { errors: 1, ..Outliers::default() };
        let (ejections, all) = (Ejections::default(), states(3));
        assert!(ejections.report(&policy, &all[0], Ended::Failed, 3, 1).is_some());
        assert!(ejections.report(&policy, &all[1], Ended::Failed, 3, 1).is_none(), "one of three");
        let before = ejections.now(1);
        ejections.keep(&all[1..]);
        assert_eq!((before.0, ejections.now(1).0), (1, 0));
        assert!(ejections.now(1).1 != before.1, "it is another version");
        assert!(ejections.report(&policy, &all[1], Ended::Failed, 2, 1).is_some());
    }
}
