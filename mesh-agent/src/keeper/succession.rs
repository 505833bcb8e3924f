//! Who leads after this keeper, and when. Several keepers of one node stand in line: the leader, which has the worker, and its heirs, each with
//! copies of what the leader holds. A state machine without I/O: the loop in [`super::lead`] feeds it events with the time and does what it says.
//!
//! ```text
//!             somebody is to lead          Yielded            Taken
//!   Serving ─────────────────────> Yielding ─────> Offered ────────> Succeeded
//!      ^                              │ heir left     │ heir left, late
//!      └─────────── TakeBack ─────────┴───────────────┘
//! ```
//! Two reasons to give the lead away: a keeper of a pod that has never led joins (a rollout has made it), or this one is told to stop. When
//! a leader dies nobody is asked: heirs notice and take its lock, those of its own pod first.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How long a worker may take to let go of the kernel and its ports.
const YIELD: Duration = Duration::from_secs(5);
/// How long an heir may take to have a worker that accepts.
const TAKE: Duration = Duration::from_secs(15);
/// Who is told to stop with its whole pod waits this long for heirs of that pod to go too.
const SETTLE: Duration = Duration::from_millis(500);

/// Names a connected heir.
pub type HeirId = u64;

/// What happened.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Event {
    /// An heir of a pod joined and has all that is held.
    Joined(HeirId, String),
    /// An heir is gone.
    Left(HeirId),
    /// Somebody asked this keeper to stop.
    Stop,
    /// The worker has let go of what only one may have, and goes on serving.
    Yielded,
    /// The worker is gone, or there was none.
    WorkerGone,
    /// The heir's worker accepts.
    Taken(HeirId),
    /// Nothing but time passed.
    Tick,
}

/// What to do about it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Action {
    /// Ask the worker to let go, if there is one; else say that it is gone.
    Yield,
    /// The worker does not let go.
    KillWorker,
    /// Give the lead to this heir.
    Offer(HeirId),
    /// Take it back, and start another worker in place of the one that has let go.
    TakeBack(Option<HeirId>),
    /// The lead is given: let the worker's connections end.
    Succeed,
    /// Nobody is there to lead: stop as if alone.
    StopAlone,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Phase {
    Serving,
    Yielding { to: HeirId, until: Duration },
    Offered { to: HeirId, until: Duration },
    Over,
}

/// The machine. Times are since any fixed start.
#[derive(Debug)]
pub struct Succession {
    own: String,
    /// Pods that have led, or were to.
    past: BTreeSet<String>,
    heirs: BTreeMap<HeirId, String>,
    phase: Phase,
    stopping: Option<Duration>,
}

impl Succession {
    /// A leader of the pod `own`, after those of `past`.
    pub fn new(own: &str, mut past: BTreeSet<String>) -> Self {
        past.insert(own.to_owned());
        Succession { own: own.to_owned(), past, heirs: BTreeMap::new(), phase: Phase::Serving, stopping: None }
    }

    /// Pods that have led.
    pub fn past(&self) -> &BTreeSet<String> {
        &self.past
    }

    /// Whether the worker is on its way out: then its end is no crash.
    pub fn is_handing_over(&self) -> bool {
        matches!(self.phase, Phase::Yielding { .. } | Phase::Offered { .. })
    }

    /// Whether this keeper is to end.
    pub fn is_stopping(&self) -> bool {
        self.stopping.is_some()
    }

    /// When the next `Tick` is due.
    pub fn next_due(&self) -> Option<Duration> {
        match self.phase {
            Phase::Serving => self.stopping.map(|since| since + SETTLE),
            Phase::Yielding { until, .. } | Phase::Offered { until, .. } => Some(until),
            Phase::Over => None,
        }
    }

    /// Takes one event at `now`.
    pub fn apply(&mut self, event: Event, now: Duration) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Joined(id, pod) => drop(self.heirs.insert(id, pod)),
            Event::Left(id) => self.left(id, &mut actions),
            // Whoever asks twice wants an end, and not a successor.
            Event::Stop if self.stopping.is_some() => self.alone(&mut actions),
            Event::Stop => self.stopping = Some(now),
            Event::Yielded | Event::WorkerGone => {
                if let Phase::Yielding { to, .. } = self.phase {
                    self.phase = Phase::Offered { to, until: now + TAKE };
                    actions.push(Action::Offer(to));
                }
            }
            Event::Taken(id) => {
                if matches!(self.phase, Phase::Offered { to, .. } if to == id) {
                    self.phase = Phase::Over;
                    actions.push(Action::Succeed);
                }
            }
            Event::Tick => self.late(now, &mut actions),
        }
        if self.phase == Phase::Serving {
            self.choose(now, &mut actions);
        }
        actions
    }

    fn left(&mut self, id: HeirId, actions: &mut Vec<Action>) {
        let pod = self.heirs.remove(&id);
        match self.phase {
            Phase::Yielding { to, .. } | Phase::Offered { to, .. } if to == id => {
                // One that fails is not asked again at once.
                self.past.extend(pod);
                self.phase = Phase::Serving;
                actions.push(Action::TakeBack(None));
            }
            _ => {}
        }
    }

    fn late(&mut self, now: Duration, actions: &mut Vec<Action>) {
        match self.phase {
            Phase::Yielding { to, until } if now >= until => {
                self.phase = Phase::Yielding { to, until: now + YIELD };
                actions.push(Action::KillWorker);
            }
            Phase::Offered { to, until } if now >= until => {
                self.past.extend(self.heirs.remove(&to));
                self.phase = Phase::Serving;
                actions.push(Action::TakeBack(Some(to)));
            }
            _ => {}
        }
    }

    fn choose(&mut self, now: Duration, actions: &mut Vec<Action>) {
        let fresh = self.heirs.iter().find(|(_, pod)| !self.past.contains(*pod));
        let other = self.heirs.iter().find(|(_, pod)| **pod != self.own);
        let any = self.heirs.iter().next();
        let next = match self.stopping {
            None => fresh,
            Some(since) if now >= since + SETTLE => fresh.or(other).or(any),
            Some(_) => fresh.or(other),
        };
        match (next, self.stopping) {
            (Some((id, _)), _) => {
                self.phase = Phase::Yielding { to: *id, until: now + YIELD };
                actions.push(Action::Yield);
            }
            (None, Some(_)) if self.heirs.is_empty() => self.alone(actions),
            (None, _) => {}
        }
    }

    fn alone(&mut self, actions: &mut Vec<Action>) {
        if self.phase != Phase::Over {
            self.phase = Phase::Over;
            actions.push(Action::StopAlone);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn joined(id: HeirId, pod: &str) -> Event {
        Event::Joined(id, pod.to_owned())
    }

    /// Runs rows of (time in ms, event, expected actions) through a leader of the pod `old`, after one of `older`.
    fn check(name: &str, rows: &[(u64, Event, &[Action])]) {
        let mut machine = Succession::new("old", BTreeSet::from(["older".to_owned()]));
        for (row, (at, event, expected)) in rows.iter().enumerate() {
            let actions = machine.apply(event.clone(), ms(*at));
            assert_eq!(actions, *expected, "{name}, row {row}: {event:?} at {at} in {machine:?}");
        }
    }

    #[test]
    fn a_pod_that_never_led_gets_the_lead_when_it_joins() {
        check(
            "rollout",
            &[
                (0, joined(1, "old"), &[]),
                (1, joined(2, "older"), &[]),
                (5, joined(3, "new"), &[Action::Yield]),
                (6, joined(4, "new"), &[]),
                (50, Event::Yielded, &[Action::Offer(3)]),
                (60, Event::WorkerGone, &[]),
                (70, Event::Taken(1), &[]),
                (300, Event::Taken(3), &[Action::Succeed]),
                (310, Event::Left(3), &[]),
                (99_000, Event::Tick, &[]),
            ],
        );
    }

    #[test]
    fn one_that_fails_is_taken_back_from_and_not_asked_again() {
        check(
            "leaves while it is asked",
            &[
                (0, joined(1, "new"), &[Action::Yield]),
                (10, Event::Left(1), &[Action::TakeBack(None)]),
                (20, joined(2, "new"), &[]),
                (30, Event::Yielded, &[]),
            ],
        );
        check(
            "leaves before it has taken",
            &[
                (0, joined(1, "new"), &[Action::Yield]),
                (10, Event::Yielded, &[Action::Offer(1)]),
                (20, Event::Left(1), &[Action::TakeBack(None)]),
                (21, joined(2, "newer"), &[Action::Yield]),
            ],
        );
        check(
            "is late",
            &[
                (0, joined(1, "new"), &[Action::Yield]),
                (10, Event::WorkerGone, &[Action::Offer(1)]),
                (15_009, Event::Tick, &[]),
                (15_010, Event::Tick, &[Action::TakeBack(Some(1))]),
                (15_020, Event::Taken(1), &[]),
            ],
        );
    }

    #[test]
    fn a_worker_that_does_not_let_go_is_killed() {
        check(
            "hangs",
            &[
                (0, joined(1, "new"), &[Action::Yield]),
                (4_999, Event::Tick, &[]),
                (5_000, Event::Tick, &[Action::KillWorker]),
                (5_001, Event::WorkerGone, &[Action::Offer(1)]),
            ],
        );
    }

    #[test]
    fn who_stops_gives_the_lead_to_another_pod_or_else_to_its_own_unless_that_stops_too() {
        check("alone", &[(0, Event::Stop, &[Action::StopAlone]), (1, Event::Tick, &[])]);
        check(
            "another pod, even one that has led",
            &[(0, joined(1, "old"), &[]), (1, joined(2, "older"), &[]), (2, Event::Stop, &[Action::Yield])],
        );
        check(
            "the whole pod stops",
            &[(0, joined(1, "old"), &[]), (1, Event::Stop, &[]), (30, Event::Left(1), &[Action::StopAlone])],
        );
        check(
            "only this container stops",
            &[
                (0, joined(1, "old"), &[]),
                (1, Event::Stop, &[]),
                (500, Event::Tick, &[]),
                (501, Event::Tick, &[Action::Yield]),
                (510, Event::Yielded, &[Action::Offer(1)]),
                (520, Event::Left(1), &[Action::TakeBack(None), Action::StopAlone]),
            ],
        );
        check(
            "asked twice",
            &[
                (0, joined(1, "older"), &[]),
                (1, Event::Stop, &[Action::Yield]),
                (2, Event::Stop, &[Action::StopAlone]),
                (3, Event::Stop, &[]),
            ],
        );
        check(
            "while it gives the lead away",
            &[
                (0, joined(1, "new"), &[Action::Yield]),
                (1, Event::Stop, &[]),
                (2, Event::Yielded, &[Action::Offer(1)]),
                (3, Event::Taken(1), &[Action::Succeed]),
            ],
        );
    }

    #[test]
    fn the_end_of_a_worker_is_the_supervisors_affair_unless_the_lead_is_given_away() {
        let mut machine = Succession::new("old", BTreeSet::new());
        assert!(!machine.is_handing_over());
        machine.apply(joined(1, "new"), ms(0));
        assert!(machine.is_handing_over());
        let mut machine = Succession::new("old", BTreeSet::new());
        assert_eq!(machine.apply(Event::Stop, ms(0)), [Action::StopAlone]);
        assert!(!machine.is_handing_over(), "nobody would hear that the worker has ended");
    }

    #[test]
    fn the_next_tick_is_when_something_is_late() {
        let mut machine = Succession::new("old", BTreeSet::new());
        assert_eq!(machine.next_due(), None);
        machine.apply(joined(1, "old"), ms(0));
        machine.apply(Event::Stop, ms(10));
        assert_eq!(machine.next_due(), Some(ms(510)));
        machine.apply(Event::Tick, ms(510));
        assert_eq!(machine.next_due(), Some(ms(5_510)));
    }
}
