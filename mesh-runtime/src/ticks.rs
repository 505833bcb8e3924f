//! Monotonic time as of the kernel's last tick: some milliseconds late and a fifth of the price of `Instant::now`. For what is asked for many times per request and
//! measured in seconds: how old, how long idle. Durations that users see are measured with `Instant`.

use nix::time::{ClockId, clock_gettime};

/// Milliseconds since the machine started, without those it slept. Never falls.
#[must_use]
pub fn now_ms() -> u64 {
    // The kernel has had the clock since 2.6.32; without it there is no time, and nothing is ever too old.
    let Ok(now) = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE) else { return 0 };
    let part = |number: i64| u64::try_from(number).unwrap_or(0);
    part(now.tv_sec()) * 1000 + part(now.tv_nsec()) / 1_000_000
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn it_goes_as_fast_as_the_precise_clock() {
        let (began, first) = (Instant::now(), now_ms());
        assert!(first > 0);
        let mut last = first;
        while began.elapsed() < Duration::from_millis(60) {
            let now = now_ms();
            assert!(now >= last);
            last = now;
        }
        let least = began.elapsed().as_millis() as u64;
        let went = now_ms() - first;
        let most = began.elapsed().as_millis() as u64;
        // A tick may be as long as 10 ms.
        assert!(went + 15 >= least && went <= most + 15, "{went} of {least} to {most} ms");
    }
}
