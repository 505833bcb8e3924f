//! Time as tokens and certificates write it. Used by `access` and `ca`.

use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since 1970; 0 for anything before.
#[must_use]
pub fn unix(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
}
