//! The bodies that the streams of one HTTP/2 connection wait for: each has to come at some rate, as the one body of a connection of HTTP/1.1 has to. One timer of
//! the connection looks at all of them (`serve`), because a timer for each would cost more than what it guards; what is too slow ends its own stream only.

use std::task::Waker;
use std::time::Duration;

use super::io::LEAST;

/// The bodies that were waited for at least once and are not over.
#[derive(Debug, Default)]
pub struct Bodies {
    slots: Vec<Slot>,
    free: Vec<usize>,
}

/// One body. Times are in milliseconds of the connection's clock.
#[derive(Debug, Default)]
struct Slot {
    /// Since when it is waited for; `None`: it is not, or nobody wants it.
    since: Option<u64>,
    /// How long it was before, for the bytes below.
    waited: u64,
    /// What came meanwhile.
    bytes: u64,
    /// Who is woken if it is too slow.
    waker: Option<Waker>,
    is_slow: bool,
}

impl Slot {
    fn waited(&self, now: u64) -> u64 {
        self.waited.saturating_add(self.since.map_or(0, |since| now.saturating_sub(since)))
    }
}

impl Bodies {
    /// Nothing of a body is there. Gives back where it is noted; `None`: it is too slow.
    pub fn stall(&mut self, at: Option<usize>, waker: &Waker, now: u64) -> Option<usize> {
        let at = at.unwrap_or_else(|| match self.free.pop() {
            Some(at) => at,
            None => {
                self.slots.push(Slot::default());
                self.slots.len() - 1
            }
        });
        let slot = self.slots.get_mut(at)?;
        if slot.is_slow {
            return None;
        }
        slot.since.get_or_insert(now);
        match &mut slot.waker {
            Some(known) => known.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
        Some(at)
    }

    /// So much of it has come.
    pub fn hear(&mut self, at: usize, bytes: u64, now: u64) {
        let Some(slot) = self.slots.get_mut(at) else { return };
        slot.bytes = slot.bytes.saturating_add(bytes);
        (slot.waited, slot.since) = (slot.waited(now), None);
        if slot.bytes >= LEAST {
            (slot.waited, slot.bytes) = (0, 0);
        }
    }

    /// It is over.
    pub fn leave(&mut self, at: usize) {
        if let Some(slot) = self.slots.get_mut(at) {
            *slot = Slot::default();
            self.free.push(at);
        }
    }

    /// Ends those that were waited for longer than `limit`, and says how long none of the others is.
    pub fn look(&mut self, limit: Duration, now: u64) -> Duration {
        let mut least = limit;
        for slot in self.slots.iter_mut().filter(|slot| slot.since.is_some() && !slot.is_slow) {
            let waited = Duration::from_millis(slot.waited(now));
            match limit.checked_sub(waited).filter(|left| !left.is_zero()) {
                Some(left) => least = least.min(left),
                None => {
                    slot.is_slow = true;
                    slot.waker.take().into_iter().for_each(Waker::wake);
                }
            }
        }
        least
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(300);

    #[test]
    fn a_body_has_to_come_at_some_rate() {
        let waker = Waker::noop();
        // Each row: what happens every 100 seconds, and when it is too slow, if ever.
        for (bytes, expected) in [(0, Some(300)), (1, Some(300)), (LEAST / 4, Some(300)), (LEAST, None)] {
            let mut bodies = Bodies::default();
            let at = bodies.stall(None, waker, 0);
            let slow = (1..10).map(|round| round * 100).find(|seconds| {
                let now = seconds * 1000;
                bodies.look(LIMIT, now);
                if bytes > 0 && bodies.stall(at, waker, now).is_some() {
                    bodies.hear(at.unwrap(), bytes, now);
                }
                bodies.stall(at, waker, now).is_none()
            });
            assert_eq!(slow, expected, "{bytes}");
        }
    }

    #[test]
    fn only_the_slow_one_ends_and_its_place_is_another_s() {
        let waker = Waker::noop();
        let mut bodies = Bodies::default();
        let (slow, quick) = (bodies.stall(None, waker, 0), bodies.stall(None, waker, 100_000));
        assert_eq!(bodies.look(LIMIT, 200_000), Duration::from_secs(100));
        assert_eq!(bodies.look(LIMIT, 300_000), Duration::from_secs(100));
        assert_eq!((bodies.stall(slow, waker, 300_000), bodies.stall(quick, waker, 300_000)), (None, quick));
        bodies.leave(slow.unwrap());
        assert_eq!(bodies.stall(None, waker, 300_000), slow);
        // What nobody wants is not waited for.
        bodies.hear(quick.unwrap(), 1, 300_000);
        assert_eq!(bodies.look(LIMIT, 400_000), Duration::from_secs(200));
        bodies.leave(slow.unwrap());
        assert_eq!(bodies.look(LIMIT, 900_000), LIMIT);
    }
}
