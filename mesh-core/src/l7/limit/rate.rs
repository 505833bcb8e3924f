//! How often something may be: a bucket of tokens that fills evenly. What is kept of it is one moment, that at which it will be full again, so that all threads
//! can share a bucket without a lock. The time is the caller's.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// So many requests in so much time, and at most so many at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rate {
    /// How many; at least one.
    pub requests: u32,
    /// In how long.
    pub per: Duration,
    /// How many may come at once: what the bucket holds; at least one.
    pub burst: u32,
}

/// What a bucket says of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may go on; so many more may at once.
    Within {
        /// Tokens that are left.
        left: u32,
    },
    /// It comes too early by so much.
    Over {
        /// Until there is a token.
        wait: Duration,
    },
}

/// One bucket, full at first.
#[derive(Debug, Default)]
pub struct Bucket {
    /// When it will be full, in nanoseconds.
    full_at: AtomicU64,
}

impl Rate {
    /// The time that one token takes, in nanoseconds.
    fn step(&self) -> u64 {
        let step = self.per.as_nanos() / u128::from(self.requests.max(1));
        u64::try_from(step).unwrap_or(u64::MAX).max(1)
    }

    /// Takes a token at `now`, in nanoseconds of a clock that never goes back, of a bucket that is full at `full_at`. Returns when it is full after that.
    #[must_use]
    pub fn take(&self, full_at: u64, now: u64) -> (u64, Verdict) {
        let step = self.step();
        let next = full_at.max(now).saturating_add(step);
        // A bucket that is empty now is full then.
        let latest = now.saturating_add(step.saturating_mul(self.burst.max(1).into()));
        if next > latest {
            return (full_at, Verdict::Over { wait: Duration::from_nanos(next - latest) });
        }
        let left = u32::try_from((latest - next) / step).unwrap_or(u32::MAX);
        (next, Verdict::Within { left })
    }
}

impl Bucket {
    /// Takes a token at `now`, in nanoseconds of a clock that never goes back.
    pub fn take(&self, rate: &Rate, now: u64) -> Verdict {
        let mut full_at = self.full_at.load(Relaxed);
        loop {
            let (next, verdict) = rate.take(full_at, now);
            if next == full_at {
                return verdict;
            }
            match self.full_at.compare_exchange_weak(full_at, next, Relaxed, Relaxed) {
                Ok(_) => return verdict,
                Err(other) => full_at = other,
            }
        }
    }

    /// Whether it is full, and so like a new one.
    #[must_use]
    pub fn is_full(&self, now: u64) -> bool {
        self.full_at.load(Relaxed) <= now
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU32;

    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn rate(requests: u32, seconds: u64, burst: u32) -> Rate {
        Rate { requests, per: Duration::from_secs(seconds), burst }
    }

    #[test]
    fn features_B33_tokens_come_evenly_and_are_kept_up_to_the_burst() {
        let within = |left| Verdict::Within { left };
        let over = |seconds| Verdict::Over { wait: Duration::from_secs(seconds) };
        for (what, rate, asked) in [
            (
                "one a minute",
                rate(1, 60, 1),
                vec![(0, within(0)), (0, over(60)), (59, over(1)), (60, within(0)), (61, over(59))],
            ),
            (
                "a burst, and then evenly",
                rate(2, 4, 3),
                vec![
                    (0, within(2)),
                    (0, within(1)),
                    (0, within(0)),
                    (0, over(2)),
                    (2, within(0)),
                    (3, over(1)),
                    (100, within(2)),
                ],
            ),
            ("nothing is nothing less than one", rate(0, 1, 0), vec![(0, within(0)), (0, over(1)), (1, within(0))]),
        ] {
            let bucket = Bucket::default();
            for (index, (seconds, expected)) in asked.into_iter().enumerate() {
                assert_eq!(bucket.take(&rate, seconds * SECOND), expected, "{what}: {index}");
            }
        }
        let bucket = Bucket::default();
        assert!(bucket.is_full(0));
        bucket.take(&rate(1, 2, 5), 0);
        assert!(!bucket.is_full(SECOND) && bucket.is_full(2 * SECOND));
    }

    #[test]
    fn threads_share_a_bucket() {
        let (bucket, taken) = (Arc::<Bucket>::default(), Arc::<AtomicU32>::default());
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let (bucket, taken) = (bucket.clone(), taken.clone());
                std::thread::spawn(move || {
                    for _ in 0..1000 {
                        if matches!(bucket.take(&rate(1, 3600, 777), 5), Verdict::Within { .. }) {
                            taken.fetch_add(1, Relaxed);
                        }
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(taken.load(Relaxed), 777);
    }

    proptest! {
        /// In no time come more than what the bucket holds and what has come into it; and whoever waits as long as he is told gets one.
        #[test]
        fn no_more_than_was_said(
            requests in 1u32..1000, millis in 1u64..100_000, burst in 1u32..100,
            gaps in prop::collection::vec(0u64..50_000_000, 1..200),
        ) {
            let rate = Rate { requests, per: Duration::from_millis(millis), burst };
            let (bucket, mut now, mut taken) = (Bucket::default(), 0u64, 0u64);
            for gap in gaps {
                now += gap;
                match bucket.take(&rate, now) {
                    Verdict::Within { .. } => taken += 1,
                    Verdict::Over { wait } => {
                        let wait = u64::try_from(wait.as_nanos()).unwrap();
                        prop_assert_eq!(bucket.take(&rate, now + wait - 1), Verdict::Over { wait: Duration::from_nanos(1) });
                        let within = matches!(rate.take(bucket.full_at.load(Relaxed), now + wait).1, Verdict::Within { .. });
                        prop_assert!(within);
                    }
                }
                prop_assert!(taken <= u64::from(burst) + now / rate.step());
            }
        }

        #[test]
        fn no_number_is_too_large(requests: u32, per: u64, burst: u32, full_at: u64, now: u64) {
            let rate = Rate { requests, per: Duration::from_nanos(per), burst };
            let (next, _) = rate.take(full_at, now);
            prop_assert!(next >= full_at);
        }
    }
}
