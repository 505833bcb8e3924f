//! Time as tokens and certificates write it. Used by `access`, `ca` and `serve`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A clock that steps back by less is being corrected; tokens are accepted this early and earlier.
const STEP: Duration = Duration::from_secs(10);

/// Seconds since 1970; 0 for anything before.
#[must_use]
pub fn unix(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
}

/// Whether something made at `made` for `lifetime` is to be made again: half of its life is over, or the clock was set back to before it
/// began, when nobody accepts it yet.
#[must_use]
pub fn is_due(made: SystemTime, lifetime: Duration, now: SystemTime) -> bool {
    match now.duration_since(made) {
        Ok(age) => age >= lifetime / 2,
        Err(before) => before.duration() > STEP,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardening_F44_half_a_life_or_a_clock_that_was_set() {
        let (day, made) = (Duration::from_secs(24 * 3600), UNIX_EPOCH + Duration::from_secs(1_000_000_000));
        for (now, due) in [
            (made, false),
            (made + day / 2 - Duration::from_secs(1), false),
            (made + day / 2, true),
            (made + day * 3650, true),
            (made - Duration::from_secs(10), false),
            (made - Duration::from_secs(11), true),
            (made - day, true),
            (UNIX_EPOCH, true),
        ] {
            assert_eq!(is_due(made, day, now), due, "{now:?}");
        }
    }
}
