//! What of a place's limits is used: requests, requests that wait, second attempts, connections (Envoy's circuit breakers). All threads count together, so that
//! what is written holds for the process. What is taken is given back when its guard is dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::l7::Share;
use crate::l7::cluster::{Pool, RetryBudget};

/// What is used now.
#[derive(Debug, Default)]
pub struct Usage {
    requests: AtomicU32,
    pending: AtomicU32,
    retries: AtomicU32,
    connections: AtomicU32,
    overflow: AtomicU64,
}

/// What a limit is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Requests under way.
    Requests,
    /// Requests that wait for a connection.
    Pending,
    /// Second attempts under way.
    Retries,
    /// Connections.
    Connections,
}

/// One of something, until it is dropped.
#[derive(Debug)]
pub struct Taken {
    of: Arc<Usage>,
    what: Limit,
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.of.count(self.what).fetch_sub(1, Relaxed);
    }
}

impl Usage {
    fn count(&self, what: Limit) -> &AtomicU32 {
        match what {
            Limit::Requests => &self.requests,
            Limit::Pending => &self.pending,
            Limit::Retries => &self.retries,
            Limit::Connections => &self.connections,
        }
    }

    /// How many there are now.
    #[must_use]
    pub fn used(&self, what: Limit) -> u32 {
        self.count(what).load(Relaxed)
    }

    /// Requests that were refused because a limit was reached.
    #[must_use]
    pub fn overflow(&self) -> u64 {
        self.overflow.load(Relaxed)
    }

    /// A request is refused.
    pub fn refused(&self) {
        self.overflow.fetch_add(1, Relaxed);
    }

    /// One more, unless there are so many.
    #[must_use]
    pub fn take(self: &Arc<Self>, what: Limit, most: u32) -> Option<Taken> {
        let more = |used: u32| (used < most).then_some(used + 1);
        self.count(what).fetch_update(Relaxed, Relaxed, more).ok()?;
        Some(Taken { of: Arc::clone(self), what })
    }

    /// A second attempt, if there may be another one: by the budget if there is one, else by the pool.
    #[must_use]
    pub fn retry(self: &Arc<Self>, pool: &Pool, budget: Option<&RetryBudget>) -> Option<Taken> {
        let most = budget.map_or(pool.retries, |budget| self.allowed(budget));
        self.take(Limit::Retries, most)
    }

    fn allowed(&self, budget: &RetryBudget) -> u32 {
        let under_way = u64::from(self.used(Limit::Requests)) + u64::from(self.used(Limit::Pending));
        let share = under_way * u64::from(budget.share.parts()) / u64::from(Share::ALWAYS.parts());
        u32::try_from(share).unwrap_or(u32::MAX).max(budget.least)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn features_DR_10_what_is_taken_is_given_back() {
        let usage = Arc::new(Usage::default());
        let one = usage.take(Limit::Pending, 2).unwrap();
        let two = usage.take(Limit::Pending, 2);
        assert!(two.is_some() && usage.take(Limit::Pending, 2).is_none());
        assert!(usage.take(Limit::Requests, 1).is_some(), "each limit is of its own");
        drop(one);
        assert_eq!((usage.used(Limit::Pending), usage.take(Limit::Pending, 2).is_some()), (1, true));
        drop(two);
        assert_eq!(usage.used(Limit::Pending), 0);
    }

    #[test]
    fn features_DR_15_second_attempts_are_a_part_of_what_is_under_way() {
        let budget = |percent: u32, least| RetryBudget {
            share: Share::millionths(percent * 10_000).unwrap(),
            least,
            interval: Duration::ZERO,
        };
        for (requests, budget, expected) in [
            (0, Some(budget(20, 3)), 3),
            (10, Some(budget(20, 3)), 3),
            (50, Some(budget(20, 3)), 10),
            (50, Some(budget(0, 0)), 0),
            (50, None, 4),
        ] {
            let usage = Arc::new(Usage::default());
            let _under_way: Vec<_> = (0..requests).map(|_| usage.take(Limit::Requests, u32::MAX)).collect();
            let pool = Pool { retries: 4, ..Pool::default() };
            let taken: Vec<_> = std::iter::from_fn(|| usage.retry(&pool, budget.as_ref())).take(99).collect();
            assert_eq!(taken.len(), expected, "{requests} {budget:?}");
        }
    }

    #[test]
    fn many_threads_never_have_more_together() {
        let usage = Arc::new(Usage::default());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        let taken = usage.take(Limit::Connections, 2);
                        assert!(usage.used(Limit::Connections) <= 2);
                        drop(taken);
                    }
                });
            }
        });
        assert_eq!(usage.used(Limit::Connections), 0);
    }
}
