//! Limits how often one kind of line is logged: a token bucket per message id, with the number left out said by the next line.
//!
//! Metrics stay exact; only lines are left out. Time is an argument. Used by whoever says something of single requests or connections, whose
//! number others decide about.

use std::time::Instant;

use parking_lot::Mutex;

/// A bucket of `burst` tokens, refilled at `rate` a second.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// Tokens a second.
    pub rate: f64,
    /// Tokens that can be saved up.
    pub burst: f64,
}

/// A token bucket. The caller says what time it is.
#[derive(Debug)]
pub struct Bucket {
    rate: Rate,
    tokens: f64,
    filled: Option<Instant>,
}

impl Bucket {
    /// A full bucket.
    #[must_use]
    pub fn new(rate: Rate) -> Self {
        Self { rate, tokens: rate.burst, filled: None }
    }

    /// Takes a token if there is one.
    pub fn take(&mut self, now: Instant) -> bool {
        if let Some(filled) = self.filled {
            let passed = now.saturating_duration_since(filled).as_secs_f64();
            self.tokens = (self.tokens + passed * self.rate.rate).min(self.rate.burst);
        }
        // A clock that another thread read a moment earlier must not move the mark back and refill twice.
        self.filled = Some(self.filled.map_or(now, |filled| filled.max(now)));
        let taken = self.tokens >= 1.0;
        if taken {
            self.tokens -= 1.0;
        }
        taken
    }
}

/// Whether a line may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Write it, and say that so many like it were left out before.
    Write {
        /// So many.
        suppressed: u64,
    },
    /// Leave it out.
    Suppress,
}

/// One bucket for each of `N` message ids, an id being an index.
#[derive(Debug)]
pub struct Limiter<const N: usize> {
    /// Held for a few arithmetic operations.
    buckets: [Mutex<(Bucket, u64)>; N],
}

impl<const N: usize> Limiter<N> {
    /// Full buckets.
    #[must_use]
    pub fn new(rate: Rate) -> Self {
        Self { buckets: std::array::from_fn(|_| Mutex::new((Bucket::new(rate), 0))) }
    }

    /// Whether a line of that kind may be written.
    pub fn check(&self, id: usize, now: Instant) -> Verdict {
        let mut state = self.buckets[id % N].lock();
        if state.0.take(now) {
            return Verdict::Write { suppressed: std::mem::take(&mut state.1) };
        }
        state.1 += 1;
        Verdict::Suppress
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn hardening_f50_a_flood_of_one_kind_is_limited_and_counted() {
        let limiter = Limiter::<2>::new(Rate { rate: 10.0, burst: 10.0 });
        let start = Instant::now();
        let written = (0..60_000_u32)
            .filter(|i| limiter.check(0, start + Duration::from_millis(u64::from(*i))) != Verdict::Suppress)
            .count();
        assert!((600..=611).contains(&written), "a minute at ten a second, got {written}");
        assert_eq!(limiter.check(1, start), Verdict::Write { suppressed: 0 }, "another kind is not touched");
        let Verdict::Write { suppressed } = limiter.check(0, start + Duration::from_secs(120)) else {
            panic!("refilled after a minute of silence");
        };
        assert!(suppressed >= 90, "the next line says how many were left out since the last, got {suppressed}");
    }

    #[test]
    fn a_clock_read_out_of_order_does_not_refill_twice() {
        let mut bucket = Bucket::new(Rate { rate: 1.0, burst: 1.0 });
        let start = Instant::now();
        let later = start + Duration::from_secs(1);
        assert!(bucket.take(start));
        assert!(bucket.take(later));
        assert!(!bucket.take(start));
        assert!(!bucket.take(later));
    }
}
