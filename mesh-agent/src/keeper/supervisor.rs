//! When the keeper starts, replaces and stops its worker, and when it gives the listening sockets up. A state machine without I/O: the
//! loop in [`super::lead`] feeds it events with the time and does what it says.
//!
//! ```text
//!            Spawned             Exited: crash              due
//!  (start) ───────────> Running ───────────────> Waiting ───────> Spawn ─> Running ...
//!                          │ Signal                 │ Signal
//!                          v                        v
//!                       Stopping ── Exited ──> Exit(status)
//!
//!  sockets:  worker dies ──> close them 2 s later, unless a worker has listed them before; 10 s later while one is starting, which ends
//!            the wait of the clients unless it dies, too
//! ```

use std::time::Duration;

/// How long clients may wait in the backlogs of a dead worker while there is no other.
pub const HOLD: Duration = Duration::from_secs(2);
/// How much longer while another one starts: on a machine that is short of CPU time it takes its time, and all would be refused a moment before it accepts.
const STARTING: Duration = Duration::from_secs(8);
/// A worker that lived this long did not die in a crash loop.
const HEALTHY: Duration = Duration::from_secs(10);
const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(10);
/// Statuses that say "starting me again changes nothing": usage, unavailable (another agent runs), missing kernel feature, permission, configuration.
const FINAL_STATUSES: [i32; 5] = [64, 69, 70, 77, 78];

/// What happened.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Event {
    /// The worker was started.
    Spawned,
    /// The worker could not be started.
    SpawnFailed,
    /// The worker asked for what is held: from now on it accepts.
    Listed,
    /// The worker ended with this status; a signal is 128 plus its number.
    Exited(i32),
    /// Somebody asked the keeper to stop.
    Signal(i32),
    /// Nothing but time passed.
    Tick,
}

/// What to do about it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Action {
    /// Start a worker.
    Spawn,
    /// Send the worker this signal.
    Forward(i32),
    /// The worker does not end: kill it.
    Kill,
    /// Close the listening sockets.
    Perish,
    /// End with this status; everything held closes with the process.
    Exit(i32),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Phase {
    /// No worker; start one at this time.
    Waiting { due: Duration },
    /// A start was asked for.
    Starting,
    /// A worker runs since this time.
    Running { since: Duration },
    /// The worker was asked to end; kill it at this time.
    Stopping { kill_at: Duration },
    /// Nothing left to do.
    Ended,
}

/// The machine. Times are since any fixed start.
#[derive(Debug)]
pub struct Supervisor {
    phase: Phase,
    /// Close the listening sockets at this time, if there is no worker then.
    perish_at: Option<Duration>,
    delay: Duration,
    grace: Duration,
    /// Some worker got as far as serving.
    proven: bool,
}

impl Supervisor {
    /// A keeper that has just started; a stopped worker gets `grace` before it is killed.
    pub fn new(now: Duration, grace: Duration) -> Self {
        Supervisor { phase: Phase::Waiting { due: now }, perish_at: None, delay: Duration::ZERO, grace, proven: false }
    }

    /// The same in place of a keeper before it: its clients may wait as long as `hold` for the first worker.
    pub fn inheriting(now: Duration, grace: Duration, hold: Option<Duration>) -> Self {
        Supervisor { perish_at: hold.map(|hold| now + hold), ..Supervisor::new(now, grace) }
    }

    /// Somebody else has taken the worker: start another one.
    pub fn renew(&mut self, now: Duration) {
        if self.phase != Phase::Ended {
            self.phase = Phase::Waiting { due: now };
        }
    }

    /// Takes one event at `now`.
    pub fn apply(&mut self, event: Event, now: Duration) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Spawned => self.phase = Phase::Running { since: now },
            Event::SpawnFailed => self.wait(Duration::ZERO, now),
            Event::Listed => {
                self.perish_at = None;
                self.proven = true;
            }
            Event::Exited(status) => self.exited(status, now, &mut actions),
            Event::Signal(signal) => self.signalled(signal, now, &mut actions),
            Event::Tick => {}
        }
        self.timers(now, &mut actions);
        actions
    }

    /// When the next `Tick` is due.
    pub fn next_due(&self) -> Option<Duration> {
        let phase = match self.phase {
            Phase::Waiting { due } => Some(due),
            Phase::Stopping { kill_at } => Some(kill_at),
            Phase::Starting | Phase::Running { .. } | Phase::Ended => None,
        };
        phase.into_iter().chain(self.deadline()).min()
    }

    /// When clients have waited for long enough.
    fn deadline(&self) -> Option<Duration> {
        let starts = matches!(self.phase, Phase::Starting | Phase::Running { .. });
        self.perish_at.map(|at| if starts { at + STARTING } else { at })
    }

    fn exited(&mut self, status: i32, now: Duration, actions: &mut Vec<Action>) {
        match self.phase {
            Phase::Running { .. } if self.is_final(status) => self.end(status, actions),
            Phase::Running { since } => {
                // A second death within the hold time must not extend it.
                self.perish_at.get_or_insert(now + HOLD);
                self.wait(now.saturating_sub(since), now);
            }
            Phase::Stopping { .. } => self.end(status, actions),
            Phase::Waiting { .. } | Phase::Starting | Phase::Ended => {}
        }
    }

    /// Whether starting another worker is pointless: an orderly end, a status that says so, or a first start that failed by itself. Whoever
    /// started the keeper then sees the reason instead of a loop.
    fn is_final(&self, status: i32) -> bool {
        status == 0 || FINAL_STATUSES.contains(&status) || (!self.proven && status < 128)
    }

    fn signalled(&mut self, signal: i32, now: Duration, actions: &mut Vec<Action>) {
        match self.phase {
            Phase::Running { .. } | Phase::Starting => {
                self.phase = Phase::Stopping { kill_at: now + self.grace };
                actions.push(Action::Forward(signal));
            }
            // The worker knows what a second signal means.
            Phase::Stopping { .. } => actions.push(Action::Forward(signal)),
            Phase::Waiting { .. } => self.end(0, actions),
            Phase::Ended => {}
        }
    }

    fn timers(&mut self, now: Duration, actions: &mut Vec<Action>) {
        if self.deadline().is_some_and(|at| now >= at) && self.phase != Phase::Ended {
            self.perish_at = None;
            actions.push(Action::Perish);
        }
        match self.phase {
            Phase::Waiting { due } if now >= due => {
                self.phase = Phase::Starting;
                actions.push(Action::Spawn);
            }
            Phase::Stopping { kill_at } if now >= kill_at => {
                self.phase = Phase::Stopping { kill_at: now + self.grace };
                actions.push(Action::Kill);
            }
            _ => {}
        }
    }

    /// The first replacement starts at once; workers that die young wait longer each time.
    fn wait(&mut self, lived: Duration, now: Duration) {
        let delay = if lived >= HEALTHY { Duration::ZERO } else { self.delay };
        self.delay = (delay * 2).clamp(FIRST_DELAY, LONGEST_DELAY);
        self.phase = Phase::Waiting { due: now + delay };
    }

    fn end(&mut self, status: i32, actions: &mut Vec<Action>) {
        self.phase = Phase::Ended;
        actions.push(Action::Exit(status));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// Runs rows of (time in ms, event, expected actions) through one machine.
    fn check(rows: &[(u64, Event, &[Action])]) {
        let mut machine = Supervisor::new(ms(0), ms(8_000));
        for (row, (at, event, expected)) in rows.iter().enumerate() {
            assert_eq!(machine.apply(*event, ms(*at)), *expected, "row {row}: {event:?} at {at} in {machine:?}");
        }
    }

    const START: [(u64, Event, &[Action]); 3] =
        [(0, Event::Tick, &[Action::Spawn]), (1, Event::Spawned, &[]), (5, Event::Listed, &[])];

    fn started(rows: &[(u64, Event, &'static [Action])]) {
        check(&[&START, rows].concat());
    }

    #[test]
    fn hardening_f1_a_dead_worker_is_replaced_at_once_and_sockets_are_held() {
        started(&[
            (20_000, Event::Exited(137), &[Action::Spawn]),
            (20_001, Event::Spawned, &[]),
            (20_400, Event::Listed, &[]),
            (22_001, Event::Tick, &[]),
            (90_000, Event::Tick, &[]),
        ]);
    }

    #[test]
    fn hardening_f1_sockets_nobody_adopted_close_two_seconds_after_the_death() {
        started(&[
            (20_000, Event::Exited(137), &[Action::Spawn]),
            (20_001, Event::Spawned, &[]),
            (20_200, Event::Exited(137), &[]),
            (20_300, Event::Tick, &[Action::Spawn]),
            (20_301, Event::SpawnFailed, &[]),
            (20_501, Event::Tick, &[Action::Spawn]),
            (20_502, Event::SpawnFailed, &[]),
            (20_902, Event::Tick, &[Action::Spawn]),
            (20_903, Event::SpawnFailed, &[]),
            (21_703, Event::Tick, &[Action::Spawn]),
            (21_704, Event::SpawnFailed, &[]),
            (21_999, Event::Tick, &[]),
            (22_000, Event::Tick, &[Action::Perish]),
        ]);
    }

    #[test]
    fn hardening_f1_a_worker_that_takes_its_time_to_start_finds_the_sockets_and_one_that_hangs_does_not() {
        let died: [(u64, Event, &[Action]); 2] =
            [(20_000, Event::Exited(137), &[Action::Spawn]), (20_001, Event::Spawned, &[])];
        started(
            &[&died[..], &[(25_000, Event::Tick, &[]), (29_999, Event::Listed, &[]), (90_000, Event::Tick, &[])]]
                .concat(),
        );
        started(
            &[
                &died[..],
                &[(29_999, Event::Tick, &[]), (30_000, Event::Tick, &[Action::Perish]), (31_000, Event::Listed, &[])],
            ]
            .concat(),
        );
        // With it ends the wait for it.
        started(&[&died[..], &[(25_000, Event::Exited(139), &[Action::Perish])]].concat());
        let mut machine = Supervisor::inheriting(ms(0), ms(8_000), Some(HOLD));
        machine.apply(Event::Tick, ms(0));
        machine.apply(Event::Spawned, ms(1));
        assert_eq!(machine.next_due(), Some(ms(10_000)));
    }

    #[test]
    fn a_keeper_that_follows_another_gives_its_first_worker_as_long() {
        let mut machine = Supervisor::inheriting(ms(0), ms(8_000), Some(HOLD));
        assert_eq!(machine.apply(Event::Tick, ms(0)), [Action::Spawn]);
        machine.apply(Event::Spawned, ms(1));
        assert_eq!(machine.apply(Event::Tick, ms(10_000)), [Action::Perish]);
        let mut machine = Supervisor::inheriting(ms(0), ms(8_000), Some(HOLD));
        machine.apply(Event::Tick, ms(0));
        machine.apply(Event::Spawned, ms(1));
        machine.apply(Event::Listed, ms(400));
        assert_eq!((machine.apply(Event::Tick, ms(9_000)), machine.next_due()), (vec![], None));
        machine.renew(ms(9_001));
        assert_eq!(machine.apply(Event::Tick, ms(9_001)), [Action::Spawn]);
    }

    #[test]
    fn hardening_f1_a_crash_loop_neither_extends_the_hold_nor_spins() {
        started(&[
            (20_000, Event::Exited(139), &[Action::Spawn]),
            (20_001, Event::Spawned, &[]),
            (20_100, Event::Exited(139), &[]),
            (20_199, Event::Tick, &[]),
            (20_200, Event::Tick, &[Action::Spawn]),
            (20_201, Event::Spawned, &[]),
            (20_300, Event::Exited(139), &[]),
            (20_500, Event::Tick, &[Action::Spawn]),
            (20_501, Event::Spawned, &[]),
            (22_000, Event::Tick, &[]),
            (22_100, Event::Exited(139), &[Action::Perish]),
            (22_499, Event::Tick, &[]),
            (22_500, Event::Tick, &[Action::Spawn]),
            (22_501, Event::SpawnFailed, &[]),
            (23_301, Event::Tick, &[Action::Spawn]),
        ]);
    }

    #[test]
    fn a_long_life_forgives_earlier_crashes() {
        started(&[
            (100, Event::Exited(1), &[Action::Spawn]),
            (101, Event::Spawned, &[]),
            (200, Event::Exited(1), &[]),
            (300, Event::Tick, &[Action::Spawn]),
            (301, Event::Spawned, &[]),
            (350, Event::Listed, &[]),
            (20_000, Event::Exited(1), &[Action::Spawn]),
        ]);
    }

    #[test]
    fn signals_are_forwarded_and_the_status_is_the_workers() {
        started(&[
            (30, Event::Signal(15), &[Action::Forward(15)]),
            (40, Event::Signal(2), &[Action::Forward(2)]),
            (50, Event::Exited(0), &[Action::Exit(0)]),
            (60, Event::Tick, &[]),
        ]);
        started(&[(30, Event::Signal(15), &[Action::Forward(15)]), (50, Event::Exited(143), &[Action::Exit(143)])]);
    }

    #[test]
    fn a_worker_that_does_not_stop_is_killed() {
        started(&[
            (30, Event::Signal(15), &[Action::Forward(15)]),
            (8_029, Event::Tick, &[]),
            (8_030, Event::Tick, &[Action::Kill]),
            (8_031, Event::Exited(137), &[Action::Exit(137)]),
        ]);
    }

    #[test]
    fn statuses_that_a_restart_cannot_cure_end_the_keeper() {
        for status in FINAL_STATUSES.into_iter().chain([0]) {
            let mut machine = Supervisor::new(ms(0), ms(1));
            machine.apply(Event::Tick, ms(0));
            machine.apply(Event::Spawned, ms(1));
            assert_eq!(machine.apply(Event::Exited(status), ms(2)), [Action::Exit(status)]);
        }
    }

    #[test]
    fn hardening_f24_a_first_start_that_fails_ends_the_keeper_but_a_killed_one_is_tried_again() {
        check(&[START[0], START[1], (3, Event::Exited(71), &[Action::Exit(71)])]);
        check(&[START[0], START[1], (3, Event::Exited(137), &[Action::Spawn])]);
        started(&[(30, Event::Exited(71), &[Action::Spawn])]);
    }

    #[test]
    fn a_signal_while_waiting_ends_the_keeper() {
        started(&[
            (100, Event::Exited(1), &[Action::Spawn]),
            (101, Event::Spawned, &[]),
            (150, Event::Exited(1), &[]),
            (160, Event::Signal(15), &[Action::Exit(0)]),
        ]);
    }

    #[test]
    fn the_next_tick_is_the_earliest_timer() {
        let mut machine = Supervisor::new(ms(0), ms(8_000));
        assert_eq!(machine.next_due(), Some(ms(0)));
        machine.apply(Event::Tick, ms(0));
        machine.apply(Event::Spawned, ms(0));
        assert_eq!(machine.next_due(), None);
        machine.apply(Event::Exited(137), ms(20_000));
        assert_eq!(machine.next_due(), Some(ms(30_000)), "another one starts at once");
        machine.apply(Event::SpawnFailed, ms(20_000));
        assert_eq!(machine.next_due(), Some(ms(20_100)), "and if it cannot, the next");
    }
}
