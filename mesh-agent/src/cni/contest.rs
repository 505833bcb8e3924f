//! Somebody takes away what we put there, time and again: how long it rests before it is put back, and when people are told. Pure, time is an argument;
//! used by [`super::install`].

use std::time::{Duration, Instant};

/// The first rest; each further one is twice as long.
const FIRST: Duration = Duration::from_millis(100);
/// What was taken away so often in a row is fought over: an update of another plugin does it once or twice.
const OPEN: u32 = 5;

/// A fight over one thing.
#[derive(Clone, Debug)]
pub struct Contest {
    most: Duration,
    lost: u32,
    put: Option<Instant>,
}

impl Contest {
    /// None yet; a rest is never longer than `most`, and what has been left there for twice that time is not fought over any more.
    pub fn new(most: Duration) -> Contest {
        Contest { most, lost: 0, put: None }
    }

    /// It was put there: for the first time, or because somebody had taken it away.
    pub fn put(&mut self, now: Instant) {
        self.lost = if self.is_recent(now) { self.lost.saturating_add(1) } else { 0 };
        self.put = Some(now);
    }

    /// How long it is not to be put back yet.
    pub fn rest(&self, now: Instant) -> Duration {
        let Some(doublings) = self.lost.checked_sub(1) else { return Duration::ZERO };
        let whole = FIRST.saturating_mul(2_u32.saturating_pow(doublings)).min(self.most);
        self.put.map_or(Duration::ZERO, |put| whole.saturating_sub(now.saturating_duration_since(put)))
    }

    /// Whether people should know.
    pub fn is_open(&self, now: Instant) -> bool {
        self.lost >= OPEN && self.is_recent(now)
    }

    fn is_recent(&self, now: Instant) -> bool {
        self.put.is_some_and(|put| now.saturating_duration_since(put) <= self.most * 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Duration = Duration::from_secs(300);

    #[test]
    fn hardening_f46_who_takes_it_away_at_once_meets_us_ever_more_seldom() {
        let began = Instant::now();
        let (mut contest, mut now, mut puts) = (Contest::new(MOST), began, Vec::new());
        while now - began < Duration::from_secs(24 * 3600) {
            contest.put(now);
            puts.push(now - began);
            now += contest.rest(now).max(Duration::from_millis(50));
        }
        assert!(puts[3] < Duration::from_secs(1), "{puts:?}");
        let in_first = |hours: u64| puts.iter().filter(|at| **at < Duration::from_secs(hours * 3600)).count();
        assert!(in_first(1) < 30 && in_first(24) - in_first(1) <= 23 * 12 + 1, "{puts:?}");
        assert!(contest.is_open(now));
    }

    #[test]
    fn hardening_f46_updates_of_others_are_no_fight_and_one_ends_when_it_is_left_alone() {
        let mut now = Instant::now();
        let mut contest = Contest::new(MOST);
        assert_eq!((contest.rest(now), contest.is_open(now)), (Duration::ZERO, false));
        contest.put(now);
        assert_eq!(contest.rest(now), Duration::ZERO, "the first time");
        for _ in 0..OPEN - 1 {
            contest.put(now);
        }
        assert!(!contest.is_open(now) && contest.rest(now) < Duration::from_secs(1));
        contest.put(now);
        assert!(contest.is_open(now));
        for _ in 0..1000 {
            contest.put(now);
        }
        assert_eq!(contest.rest(now), MOST);
        now += MOST * 2;
        assert!(contest.is_open(now) && contest.rest(now).is_zero());
        now += Duration::from_secs(1);
        assert!(!contest.is_open(now));
        contest.put(now);
        assert_eq!(contest.rest(now), Duration::ZERO);
    }
}
