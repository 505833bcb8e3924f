//! Retry delays: exponential with full jitter, so that many clients of one failed server do not come back together.
//!
//! Randomness is an argument: the caller brings the generator and a test brings a fixed one.

use std::time::Duration;

use rand::Rng;

/// Delays that grow from `base` to `max`, each drawn uniformly from zero to the current ceiling.
#[derive(Clone, Debug)]
pub struct Backoff {
    base: Duration,
    max: Duration,
    attempt: u32,
}

impl Backoff {
    /// A fresh series whose first ceiling is `base`.
    pub fn new(base: Duration, max: Duration) -> Self {
        Backoff { base, max, attempt: 0 }
    }

    /// The delay before the next attempt; the ceiling doubles with each call.
    pub fn next(&mut self, rng: &mut impl Rng) -> Duration {
        let ceiling = self.ceiling();
        self.attempt = self.attempt.saturating_add(1);
        ceiling.mul_f64(rng.random::<f64>())
    }

    /// The largest delay that the next call can return.
    pub fn ceiling(&self) -> Duration {
        self.base.saturating_mul(2u32.saturating_pow(self.attempt.min(31))).min(self.max)
    }

    /// Attempts since the last success.
    pub fn attempts(&self) -> u32 {
        self.attempt
    }

    /// Forgets the failures: call it when an attempt succeeded.
    pub fn reset(&mut self) {
        self.attempt = 0;
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    #[test]
    fn ceiling_doubles_up_to_the_maximum_and_resets() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        let mut rng = StdRng::seed_from_u64(7);
        let mut ceilings = Vec::new();
        for _ in 0..6 {
            let ceiling = backoff.ceiling();
            assert!(backoff.next(&mut rng) <= ceiling);
            ceilings.push(ceiling.as_millis());
        }
        assert_eq!(ceilings, [100, 200, 400, 800, 1000, 1000]);
        backoff.reset();
        assert_eq!(backoff.ceiling(), Duration::from_millis(100));
    }

    #[test]
    fn never_overflows_after_many_failures() {
        let mut backoff = Backoff { base: Duration::from_secs(3), max: Duration::from_secs(150), attempt: u32::MAX };
        assert!(backoff.next(&mut StdRng::seed_from_u64(1)) <= Duration::from_secs(150));
    }
}
