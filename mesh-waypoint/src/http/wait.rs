//! Whether an endpoint had to wait for somebody else, and how long it was its turn: what has taken too long says something of it only then. Noted by `count` for
//! a request's body and by `upstream::pool` for a place among connections; judged where attempts end.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use mesh_runtime::ticks;

/// One thing that may be waited for. Written by one task at a time.
#[derive(Debug, Default)]
pub struct Wait(AtomicU64);

/// It is waited for now; other numbers are when that was over, 0 is never.
const NOW: u64 = u64::MAX;

impl Wait {
    /// It is waited for.
    pub fn begin(&self) {
        self.0.store(NOW, Relaxed);
    }

    /// It is here. The time is asked for only if it was waited for.
    pub fn end(&self) {
        if self.0.load(Relaxed) == NOW {
            self.0.store(ticks::now_ms(), Relaxed);
        }
    }

    /// Whether it is waited for.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.0.load(Relaxed) == NOW
    }

    /// How long it has been here at that moment.
    #[must_use]
    pub fn over_for(&self, now_ms: u64) -> u64 {
        match self.0.load(Relaxed) {
            NOW => 0,
            since => now_ms.saturating_sub(since),
        }
    }
}

/// Whether what has taken so long is late because of its endpoint: that was waited for most of the time, and not something else, each of which has been here for
/// so long. A client that ends its body just before the end would else have endpoints left out.
pub fn is_late(took_ms: u64, mut over_for: impl Iterator<Item = u64>) -> bool {
    over_for.all(|over_for| over_for >= took_ms / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_late_if_it_was_its_turn_for_most_of_the_time() {
        let now = ticks::now_ms();
        let (never, waits, was) = (Wait::default(), Wait::default(), Wait::default());
        waits.begin();
        was.end();
        assert_eq!(was.over_for(now), now, "nobody has waited");
        was.begin();
        was.end();
        let ended = was.0.load(Relaxed);
        assert_eq!((never.over_for(now), waits.over_for(now), was.over_for(ended + 600)), (now, 0, 600));
        for (took, over_for, expected) in [
            (1000, vec![], true),
            (1000, vec![now, now], true),
            (1000, vec![600], true),
            (1000, vec![0], false),
            (1000, vec![now, 400], false),
            (0, vec![now], true),
        ] {
            assert_eq!(is_late(took, over_for.iter().copied()), expected, "{took} {over_for:?}");
        }
    }
}
