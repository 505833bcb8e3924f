//! How fast a client may make the process work, and make it write. Streams and the authority ask.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

const WINDOW: Duration = Duration::from_secs(1);

/// So many of something in a second.
#[derive(Debug)]
pub struct Pace {
    most: u32,
    since: Option<Instant>,
    count: u32,
}

impl Pace {
    /// None of `most` a second yet.
    pub fn new(most: u32) -> Self {
        Self { most, since: None, count: 0 }
    }

    /// One more; how long to wait before it.
    pub fn delay(&mut self, now: Instant) -> Duration {
        let age = self.since.map_or(WINDOW, |since| now.saturating_duration_since(since));
        if age >= WINDOW {
            (self.since, self.count) = (Some(now), 0);
        }
        self.count = self.count.saturating_add(1);
        if self.count <= self.most { Duration::ZERO } else { WINDOW.saturating_sub(age) }
    }
}

/// Lines in the log about what clients do wrong: who is hostile may make no noise either. By the monotonic clock: the other one may stand still.
#[derive(Clone, Debug)]
pub struct Lines(Arc<Mutex<Pace>>);

impl Default for Lines {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Pace::new(10))))
    }
}

impl Lines {
    /// Whether one more may be written.
    pub fn admit(&self) -> bool {
        self.0.lock().delay(Instant::now()).is_zero()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_a_second() {
        let (start, ms) = (Instant::now(), Duration::from_millis);
        let mut pace = Pace::new(2);
        for (at, delay) in
            [(0, 0), (100, 0), (200, 800), (900, 100), (1000, 0), (1001, 0), (1999, 1), (5000, 0), (5000, 0)]
        {
            assert_eq!(pace.delay(start + ms(at)), ms(delay), "at {at}");
        }
    }
}
