//! When to renew, as pure functions of what is known. The result is a duration on the monotonic clock: a wall clock that jumps renews nothing.

use std::time::{Duration, SystemTime};

use mesh_runtime::backoff::Backoff;
use rand::Rng;

/// However short-lived a certificate is, it is not renewed more often.
pub const SHORTEST: Duration = Duration::from_secs(1);
/// However long-lived it is, it is renewed after this, so that roots and revocations are seen.
pub const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);
/// A failed request is not repeated sooner.
pub const SHORTEST_RETRY: Duration = Duration::from_millis(250);

/// Half of the life that the certificate has left when it is received, a tenth more or less so that pods that started together part. An
/// authority that back-dates does not shorten it to nothing.
#[must_use]
pub fn renew_after(not_before: SystemTime, not_after: SystemTime, now: SystemTime, rng: &mut impl Rng) -> Duration {
    // With our clock behind the authority's the life has not begun: count from its start.
    let left = not_after.duration_since(now.max(not_before)).unwrap_or(Duration::ZERO);
    let half = left.min(LONGEST * 2).mul_f64(rng.random_range(0.45..0.55));
    half.clamp(SHORTEST, LONGEST)
}

/// The delay after a failure.
#[must_use]
pub fn retry_after(backoff: &mut Backoff, rng: &mut impl Rng) -> Duration {
    backoff.next(rng).max(SHORTEST_RETRY)
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    const HOUR: u64 = 3600;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn half_of_what_is_left_within_bounds() {
        let now = 1000 * HOUR;
        for (name, not_before, not_after, expected) in [
            ("istiod's two minutes", now - 120, now + 24 * HOUR, 12 * HOUR),
            ("back-dated by its lifetime", now - 24 * HOUR, now + 24 * HOUR, 12 * HOUR),
            ("one minute", now, now + 60, 30),
            ("our clock is an hour slow", now + HOUR, now + 25 * HOUR, 12 * HOUR),
        ] {
            for seed in 0..100 {
                let mut rng = StdRng::seed_from_u64(seed);
                let delay = renew_after(at(not_before), at(not_after), at(now), &mut rng).as_secs_f64();
                let expected = expected as f64;
                assert!(delay >= expected * 0.89 && delay <= expected * 1.11, "{name}: {delay}");
            }
        }
        let mut rng = StdRng::seed_from_u64(1);
        assert_eq!(renew_after(at(now - 60), at(now + 1), at(now), &mut rng), SHORTEST);
        assert_eq!(renew_after(at(now - 60), at(now - 1), at(now), &mut rng), SHORTEST);
        assert_eq!(renew_after(at(now), at(now - 1), at(now), &mut rng), SHORTEST);
        let century = renew_after(at(now), at(now + 100 * 365 * 24 * HOUR), at(now), &mut rng);
        assert!(century <= LONGEST && century >= LONGEST.mul_f64(0.89));
        assert_eq!(renew_after(at(0), at(1 << 35), at(now), &mut rng).max(LONGEST), LONGEST);
    }

    #[test]
    fn hardening_F44_no_clock_makes_renewal_a_loop() {
        let day = 24 * HOUR;
        let issued = 1000 * day;
        for now in [issued, issued + day, issued - day, issued + 3650 * day, 0] {
            let delay = renew_after(at(issued), at(issued + day), at(now), &mut StdRng::seed_from_u64(1));
            assert!(delay >= SHORTEST, "{now}");
        }
    }

    #[test]
    fn retries_grow_to_the_limit_and_never_spin() {
        let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(150));
        let mut rng = StdRng::seed_from_u64(3);
        let delays: Vec<Duration> = (0..40).map(|_| retry_after(&mut backoff, &mut rng)).collect();
        assert!(delays.iter().all(|d| (SHORTEST_RETRY..=Duration::from_secs(150)).contains(d)));
        assert!(delays[20..].iter().any(|d| *d > Duration::from_secs(60)));
    }
}
