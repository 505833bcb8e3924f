//! What was said of each object, and when it may be said again: the table behind `cluster::report`, which asks it what to write, writes, and says what came of
//! it. Pure: instants are arguments.
//!
//! What somebody else takes away is said again, the first time at once. If it is taken away again soon, the two of us do not agree whose it is: each time it
//! is said later, up to [`LONGEST`], until it has stood for twice as long as that. An object holds what was said last of it for as long as it is there, so
//! the table is never larger than the cluster.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::conditions::Saying;
use crate::resource::{Key, Kind};
use crate::verdict::{Mark, Standing, Verdict, Verdicts};

/// The longest until it is said again, as many times the shortest.
pub const LONGEST: u32 = 64;

/// What came of saying something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was written.
    Written,
    /// It was there.
    There,
    /// The object is gone, or is another one by now.
    Gone,
    /// It may not be written. It may be later.
    Refused,
}

/// What was said last of an object.
#[derive(Clone, Debug, PartialEq)]
struct Last {
    /// Of which object.
    uid: String,
    /// And which form of it.
    generation: i64,
    said: Saying,
    at: Instant,
    /// How long it is awaited where it was said.
    pause: Duration,
    /// When it is said again, unless it is seen before. It may have been refused, or undone by somebody else before it was seen; an event that was made
    /// never is.
    due: Option<Instant>,
    /// The object shows it.
    is_seen: bool,
    /// It was written, and not only tried.
    is_written: bool,
    /// It was written more than once.
    is_repeated: bool,
    /// That it is said again is held against nobody: it is the first time, or it had stood for a while.
    is_free: bool,
}

impl Last {
    fn is_of(&self, verdict: &Verdict, said: &Saying) -> bool {
        self.uid == verdict.mark.uid && self.generation == verdict.mark.generation && self.said == *said
    }

    /// Takes in whether the object shows it.
    fn look(&mut self, is_seen: bool, now: Instant) {
        match (std::mem::replace(&mut self.is_seen, is_seen), is_seen) {
            (_, true) => self.due = None,
            (false, false) => {}
            // It was taken away.
            (true, false) => {
                let has_stood = now.saturating_duration_since(self.at) >= self.pause * 2;
                self.is_free = has_stood || !self.is_repeated;
                self.due = Some(if self.is_free { now } else { self.at + self.pause });
            }
        }
    }
}

/// What was said of each object.
#[derive(Debug)]
pub struct Telling {
    /// Until what was said, and cannot be seen where it was said, is said again.
    again: Duration,
    last: HashMap<Key, Last>,
}

impl Telling {
    /// Nothing was said yet; `again` is the shortest time until something is said again.
    pub fn new(again: Duration) -> Self {
        Self { again, last: HashMap::new() }
    }

    /// Nothing is known any more: another one may say something else meanwhile.
    pub fn forget(&mut self) {
        self.last.clear();
    }

    /// Takes in what the objects show by now. Returns those of which there is something to say; of what is not `told` there is nothing.
    pub fn look(
        &mut self,
        verdicts: &Verdicts,
        with_istio: bool,
        told: impl Fn(&Key) -> bool,
        now: Instant,
    ) -> VecDeque<Key> {
        self.last.retain(|key, _| verdicts.contains_key(key));
        let new = verdicts.iter().filter(|(key, verdict)| told(key) && self.is_new(key, verdict, with_istio, now));
        new.map(|(key, _)| key.clone()).collect::<Vec<_>>().into()
    }

    /// Whether there is something to say that the object does not say already, as far as is known.
    fn is_new(&mut self, key: &Key, verdict: &Verdict, with_istio: bool, now: Instant) -> bool {
        let said = Saying::of(key.kind, verdict, with_istio);
        match (key.kind, self.last.get_mut(key)) {
            (kind, Some(last)) if last.is_of(verdict, &said) => {
                last.look(kind != Kind::ConfigMap && shows(&verdict.mark, &said), now);
                last.due.is_some_and(|due| due <= now)
            }
            // Settings have no status: only what is wrong with them is told.
            (Kind::ConfigMap, _) => matches!(verdict.standing, Standing::LastGood | Standing::NoEffect),
            // It may show what was true before that.
            (_, Some(_)) => true,
            (_, None) => !shows(&verdict.mark, &said),
        }
    }

    /// When the next of what is not due yet is to be said again.
    pub fn due(&self, now: Instant) -> Option<Instant> {
        self.last.values().filter_map(|last| last.due).filter(|due| *due > now).min()
    }

    /// Whether just this was written before: then it is no news.
    pub fn is_repeated(&self, key: &Key, verdict: &Verdict, said: &Saying) -> bool {
        self.last.get(key).is_some_and(|last| last.is_of(verdict, said) && last.is_written)
    }

    /// Something was said. Returns when it is to be said again if the object does not show it.
    pub fn said(
        &mut self,
        key: Key,
        verdict: &Verdict,
        said: Saying,
        outcome: Outcome,
        now: Instant,
    ) -> Option<Instant> {
        let before = self.last.get(&key).filter(|last| last.is_of(verdict, &said));
        let was_written = before.is_some_and(|last| last.is_written);
        let pause = match (outcome, before) {
            (Outcome::Refused, _) | (_, None) => self.again,
            (Outcome::Written, Some(last)) if last.is_free || !last.is_written => self.again,
            // It cannot be seen there, or is taken away each time: less is expected.
            (_, Some(last)) => (last.pause * 2).min(self.again * LONGEST),
        };
        let is_event = key.kind == Kind::ConfigMap && outcome == Outcome::Written;
        let due = (!is_event).then_some(now + pause);
        let last = Last {
            uid: verdict.mark.uid.clone(),
            generation: verdict.mark.generation,
            said,
            at: now,
            pause,
            due,
            is_seen: false,
            is_written: was_written || outcome == Outcome::Written,
            is_repeated: was_written && outcome == Outcome::Written || before.is_some_and(|last| last.is_repeated),
            is_free: outcome == Outcome::There,
        };
        self.last.insert(key, last);
        due
    }
}

fn shows(mark: &Mark, said: &Saying) -> bool {
    let is_told = said.told(&mark.conditions, mark.generation, Timestamp::UNIX_EPOCH).is_none();
    is_told && said.addresses(&mark.addresses).is_none()
}

#[cfg(test)]
mod tests {
    use serde_json::Value as Json;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn key(kind: Kind) -> Key {
        Key { kind, namespace: "shop".into(), name: "p".into() }
    }

    fn verdict(standing: Standing, conditions: &[Json]) -> Verdict {
        let mark = Mark { uid: "u".into(), generation: 3, conditions: conditions.to_vec(), ..Mark::default() };
        Verdict { standing, reasons: Vec::new(), route: None, at_waypoint: false, binding: None, given: None, mark }
    }

    /// The conditions of an object that shows a standing.
    fn shown(standing: Standing) -> Vec<Json> {
        let said = Saying::of(Kind::AuthorizationPolicy, &verdict(standing, &[]), false);
        said.told(&[], 3, Timestamp::UNIX_EPOCH).unwrap()
    }

    /// Whether there is something to say now.
    fn look(telling: &mut Telling, kind: Kind, verdict: &Verdict, now: Instant) -> bool {
        let all = Verdicts::from([(key(kind), verdict.clone())]);
        !telling.look(&all, false, |_| true, now).is_empty()
    }

    fn say(telling: &mut Telling, kind: Kind, verdict: &Verdict, outcome: Outcome, now: Instant) -> Option<Instant> {
        telling.said(key(kind), verdict, Saying::of(kind, verdict, false), outcome, now)
    }

    #[test]
    fn what_was_said_is_said_again_if_it_cannot_be_seen() {
        use Outcome::{Gone, Refused, There, Written};
        let (policy, settings) = (Kind::AuthorizationPolicy, Kind::ConfigMap);
        let start = Instant::now();
        let (good, bad) = (Standing::InForce, Standing::Closed);
        let (is_good, is_bad) = (shown(good), shown(bad));
        let before = |standing, outcome| Some((verdict(standing, &[]), outcome));
        let younger = |mut one: Verdict| {
            one.mark.generation += 1;
            one
        };
        for (what, kind, before, now, seconds, new) in [
            ("nothing was said", policy, None, verdict(good, &[]), 0, true),
            ("the one before said it", policy, None, verdict(good, &is_good), 0, false),
            ("a moment ago", policy, before(good, Written), verdict(good, &[]), 59, false),
            ("and it never came", policy, before(good, Written), verdict(good, &[]), 60, true),
            ("it came", policy, before(good, Written), verdict(good, &is_good), 60, false),
            ("it was there", policy, before(good, There), verdict(good, &[]), 59, false),
            ("it was another one", policy, before(good, Gone), verdict(good, &[]), 60, true),
            ("it was refused", policy, before(good, Refused), verdict(good, &[]), 60, true),
            ("of another form", policy, before(good, Written), younger(verdict(good, &[])), 1, true),
            ("something else", policy, before(bad, Written), verdict(good, &is_bad), 1, true),
            ("an old one is shown", policy, before(bad, Written), verdict(good, &is_good), 1, true),
            ("settings are good", settings, None, verdict(good, &[]), 0, false),
            ("settings are bad", settings, None, verdict(Standing::LastGood, &[]), 0, true),
            ("told once", settings, before(Standing::LastGood, Written), verdict(Standing::LastGood, &[]), 9999, false),
            ("refused", settings, before(Standing::LastGood, Refused), verdict(Standing::LastGood, &[]), 60, true),
        ] {
            let mut telling = Telling::new(MINUTE);
            if let Some((verdict, outcome)) = before {
                say(&mut telling, kind, &verdict, outcome, start);
            }
            assert_eq!(look(&mut telling, kind, &now, start + Duration::from_secs(seconds)), new, "{what}");
        }
    }

    #[test]
    fn addresses_are_written_until_the_status_shows_them() {
        use serde_json::json;
        let (kind, now) = (Kind::ServiceEntry, Instant::now());
        let of = |given: &[&str], shown: &[&str]| {
            let mut verdict = verdict(Standing::InForce, &[]);
            verdict.given = Some(given.iter().map(|ip| ("a.example.com".into(), ip.parse().unwrap())).collect());
            let said = Saying::of(kind, &verdict, false);
            verdict.mark.conditions = said.told(&[], 3, Timestamp::UNIX_EPOCH).unwrap();
            verdict.mark.addresses = shown.iter().map(|ip| json!({ "host": "a.example.com", "value": ip })).collect();
            verdict
        };
        let (v4, v6) = ("240.240.0.1", "2001:2::1");
        for (given, shown, is_new) in [
            (&[v4, v6][..], &[][..], true),
            (&[v4, v6], &[v4, v6], false),
            (&[v4, v6], &[v6, v4], false),
            (&[v4, v6], &[v4], true),
            (&[v4], &[v4, v6], true),
            (&[], &[v4], true),
            (&[], &[], false),
        ] {
            let found = look(&mut Telling::new(MINUTE), kind, &of(given, shown), now);
            assert_eq!(found, is_new, "{given:?} {shown:?}");
        }
    }

    /// Somebody takes away what was said, each time so many seconds after it was. Returns how many seconds passed from one saying to the next.
    fn fight(stands: u64, is_seen: bool, times: usize) -> Vec<u64> {
        let (kind, bare, full) = (Kind::AuthorizationPolicy, verdict(Standing::Closed, &[]), shown(Standing::Closed));
        let full = verdict(Standing::Closed, &full);
        let mut telling = Telling::new(MINUTE);
        let (mut now, second) = (Instant::now(), Duration::from_secs(1));
        let mut gaps = Vec::new();
        for _ in 0..times {
            assert!(look(&mut telling, kind, &bare, now));
            say(&mut telling, kind, &bare, Outcome::Written, now);
            let said = now;
            if is_seen {
                now += Duration::from_secs(stands);
                assert!(!look(&mut telling, kind, &full, now));
            }
            // Nothing is due before it is taken away.
            assert_eq!(telling.due(now).is_none(), is_seen);
            while !look(&mut telling, kind, &bare, now) {
                now += second;
            }
            gaps.push((now - said).as_secs());
        }
        gaps
    }

    #[test]
    fn two_that_do_not_agree_write_less_and_less() {
        let minutes = |all: &[u64]| all.iter().map(|minutes| minutes * 60).collect::<Vec<_>>();
        // The first time at once.
        assert_eq!(fight(1, true, 10), [&[1][..], &minutes(&[1, 2, 4, 8, 16, 32, 64, 64, 64])].concat());
        assert_eq!(fight(0, false, 9), minutes(&[1, 2, 4, 8, 16, 32, 64, 64, 64]));
        // Who comes by only now and then is answered at once, each time.
        assert_eq!(fight(600, true, 5), [600; 5]);
        // It has stood for longer than it would have to be waited for, and not for twice as long.
        assert_eq!(fight(90, true, 5), [90, 90, 120, 240, 480]);
    }

    #[test]
    fn what_is_there_without_being_heard_of_is_asked_for_less_and_less() {
        let (kind, bare) = (Kind::AuthorizationPolicy, verdict(Standing::Closed, &[]));
        let (mut telling, mut now) = (Telling::new(MINUTE), Instant::now());
        let mut say = |outcome| {
            let due = say(&mut telling, kind, &bare, outcome, now).unwrap();
            (std::mem::replace(&mut now, due), due)
        };
        let mut gap = |outcome| {
            let (from, to) = say(outcome);
            (to - from).as_secs() / 60
        };
        use Outcome::{There, Written};
        // It stood, and then it did not: that is no habit.
        let asked = [Written, There, There, There, Written, Written].map(&mut gap);
        assert_eq!(asked, [1, 2, 4, 8, 1, 2]);
    }

    #[test]
    fn only_what_was_written_is_no_news_and_what_is_gone_is_forgotten() {
        let (kind, bare) = (Kind::AuthorizationPolicy, verdict(Standing::Closed, &[]));
        let (mut telling, now) = (Telling::new(MINUTE), Instant::now());
        let said = |verdict: &Verdict| Saying::of(kind, verdict, false);
        for (outcome, is_repeated) in [(Outcome::Refused, false), (Outcome::Written, true), (Outcome::There, true)] {
            say(&mut telling, kind, &bare, outcome, now);
            assert_eq!(telling.is_repeated(&key(kind), &bare, &said(&bare)), is_repeated, "{outcome:?}");
        }
        let other = verdict(Standing::InForce, &[]);
        assert!(!telling.is_repeated(&key(kind), &other, &said(&other)));
        telling.look(&Verdicts::default(), false, |_| true, now);
        assert!(telling.last.is_empty());
    }
}
