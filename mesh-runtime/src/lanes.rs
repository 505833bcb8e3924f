//! The data plane's threads. Each lane is a thread with a runtime of its own; a connection, and all that it wakes, lives on one lane.
//!
//! A runtime that steals work hands a connection from core to core, and each hand-over is a wake-up of another thread: that costs more than the work itself
//! (one lane instead of two stealing workers halved the p99 of a 16 KiB round trip, and opened 1.4 times as many connections per second). So a pod has a home
//! lane, and its connections leave it only when its thread is short of CPU time while another one has plenty. Started by the agent's worker; placed by the
//! accept loops of its proxy.

use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::time::ClockId;
use parking_lot::Mutex;
use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

use crate::watchdog::Beat;

/// CPU time is looked at when a connection arrives, at most this often.
const SAMPLE: Duration = Duration::from_millis(20);
/// A lane that uses less than this share of its core (in thousandths) keeps what arrives.
const FULL: u32 = 700;
/// A connection moves only to a lane that uses so much less, or it would move forth and back.
const GAP: u32 = 300;
/// A lane that ran no task for so long hangs, in a system call or a loop. Lanes beat once a second.
const SILENT: Duration = Duration::from_secs(2);
/// Stands for what a lane uses that nothing should be given to.
const NOT_TO_BE_USED: u32 = u32::MAX;
/// How long lanes may take to let go of their tasks at the end.
const STOP: Duration = Duration::from_millis(200);

thread_local! {
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

/// The lane of this thread; 0 on every thread that is none.
pub fn current() -> usize {
    CURRENT.get()
}

/// The lanes of a process. Clones share them.
#[derive(Clone, Debug)]
pub struct Lanes {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    lanes: Vec<Lane>,
    next_home: AtomicUsize,
    load: Mutex<Load>,
}

#[derive(Debug)]
struct Lane {
    handle: Handle,
    /// CPU time of its thread.
    clock: ClockId,
    beat: Beat,
}

/// What the threads used in the last interval.
#[derive(Debug)]
struct Load {
    taken: Instant,
    used: Vec<Option<Duration>>,
    /// Thousandths of a core, per lane.
    share: Vec<u32>,
}

/// Keeps the threads running; to be ended with [`Running::stop`].
#[derive(Debug)]
pub struct Running {
    stop: CancellationToken,
    /// Disconnected when the last thread is gone.
    ended: mpsc::Receiver<()>,
}

impl Lanes {
    /// Starts `count` threads (at least one), named `<name>-<index>`.
    pub fn start(name: &str, count: usize) -> io::Result<(Lanes, Running)> {
        let stop = CancellationToken::new();
        let (alive, ended) = mpsc::channel();
        let lanes = (0..count.max(1)).map(|index| spawn(name, index, stop.clone(), alive.clone()));
        let lanes = Lanes::of(lanes.collect::<io::Result<Vec<_>>>()?);
        Ok((lanes, Running { stop, ended }))
    }

    /// One lane: the runtime and thread of the caller.
    pub fn here() -> Lanes {
        let handle = Handle::current();
        Lanes::of(vec![Lane { beat: Beat::of(&handle), handle, clock: own_clock() }])
    }

    fn of(lanes: Vec<Lane>) -> Lanes {
        let count = lanes.len();
        let load = Load { taken: Instant::now(), used: vec![Some(Duration::ZERO); count], share: vec![0; count] };
        Lanes { shared: Arc::new(Shared { lanes, next_home: AtomicUsize::new(0), load: Mutex::new(load) }) }
    }

    /// The lane where a new pod is at home: each in turn, but for those that hang.
    pub fn home(&self) -> &Handle {
        &self.shared.lanes[self.next_home()].handle
    }

    fn next_home(&self) -> usize {
        let lanes = &self.shared.lanes;
        let next = self.shared.next_home.fetch_add(1, Ordering::Relaxed);
        let mut in_turn = (0..lanes.len()).map(|n| next.wrapping_add(n) % lanes.len());
        in_turn.find(|lane| lanes[*lane].runs()).unwrap_or(next % lanes.len())
    }

    /// The runtimes, by lane.
    pub fn handles(&self) -> impl ExactSizeIterator<Item = &Handle> {
        self.shared.lanes.iter().map(|lane| &lane.handle)
    }

    /// Their signs of life, by lane.
    pub fn beats(&self) -> impl ExactSizeIterator<Item = &Beat> {
        self.shared.lanes.iter().map(|lane| &lane.beat)
    }

    /// Whether every one of them runs its tasks.
    pub fn are_alive(&self) -> bool {
        alive(self.shared.lanes.iter().map(|lane| lane.beat.age()))
    }

    /// Where a connection that arrived on this thread should live, if not here.
    pub fn elsewhere(&self) -> Option<&Handle> {
        let lanes = &self.shared.lanes;
        if lanes.len() == 1 {
            return None;
        }
        let mut load = self.shared.load.lock();
        let now = Instant::now();
        let passed = now.saturating_duration_since(load.taken);
        if passed >= SAMPLE {
            let used: Vec<Option<Duration>> = lanes.iter().map(Lane::used).collect();
            load.share = used.iter().zip(&load.used).map(|(now, before)| share(*now, *before, passed)).collect();
            (load.used, load.taken) = (used, now);
        }
        let home = current();
        let chosen = place(home, &load.share);
        (chosen != home).then(|| &lanes[chosen].handle)
    }
}

impl Lane {
    fn runs(&self) -> bool {
        alive([self.beat.age()])
    }

    /// Of a lane that hangs and of one whose clock cannot be read nobody knows. Neither must look idle.
    fn used(&self) -> Option<Duration> {
        self.clock.now().ok().filter(|_| self.runs()).map(Duration::from)
    }
}

impl Running {
    /// Ends the threads. A task that never yields does not keep the caller.
    pub fn stop(self) {
        self.stop.cancel();
        let _ = self.ended.recv_timeout(2 * STOP);
    }
}

fn spawn(name: &str, index: usize, stop: CancellationToken, alive: mpsc::Sender<()>) -> io::Result<Lane> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    let (tell, told) = mpsc::sync_channel(1);
    std::thread::Builder::new().name(format!("{name}-{index}")).spawn(move || {
        CURRENT.set(index);
        let _ = tell.send(own_clock());
        runtime.block_on(stop.cancelled());
        runtime.shutdown_timeout(STOP);
        drop(alive);
    })?;
    let clock = told.recv().map_err(io::Error::other)?;
    Ok(Lane { beat: Beat::of(&handle), handle, clock })
}

/// The clock of the calling thread that other threads can read too: the kernel's encoding of `pthread_getcpuclockid(3)`
/// (`MAKE_THREAD_CPUCLOCK` of linux/posix-timers.h: the inverted thread id, 4 for "of a thread", 2 for "as scheduled").
fn own_clock() -> ClockId {
    ClockId::from_raw((!nix::unistd::gettid().as_raw() << 3) | 0b110)
}

/// Whether lanes run, by the age of their last beats.
fn alive(ages: impl IntoIterator<Item = Duration>) -> bool {
    ages.into_iter().all(|age| age <= SILENT)
}

fn share(now: Option<Duration>, before: Option<Duration>, passed: Duration) -> u32 {
    let (Some(now), Some(before)) = (now, before) else { return NOT_TO_BE_USED };
    let used = now.saturating_sub(before).as_micros() * 1000 / passed.as_micros().max(1);
    u32::try_from(used).unwrap_or(u32::MAX)
}

/// The decision: home, unless home is full and another lane has clearly more to give.
fn place(home: usize, share: &[u32]) -> usize {
    let here = share.get(home).copied().unwrap_or(0);
    let least = share.iter().enumerate().min_by_key(|(_, share)| **share);
    match least {
        Some((lane, share)) if here >= FULL && share.checked_add(GAP).is_some_and(|then| then <= here) => lane,
        _ => home,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_leaves_home_only_for_a_lane_with_clearly_more_time() {
        // (home, thousandths of a core by lane, expected)
        let rows: &[(usize, &[u32], usize)] = &[
            (0, &[0], 0),
            (0, &[1000], 0),
            (0, &[699, 0], 0),
            (0, &[700, 0], 1),
            (0, &[1000, 701], 0),
            (0, &[1000, 700], 1),
            (1, &[100, 900, 50], 2),
            (1, &[900, 100, 50], 1),
            (2, &[900, 900, 900], 2),
            (0, &[900, NOT_TO_BE_USED, 600], 2),
            (0, &[1000, NOT_TO_BE_USED], 0),
            (1, &[NOT_TO_BE_USED, NOT_TO_BE_USED], 1),
            (1, &[650, NOT_TO_BE_USED], 0),
        ];
        for (home, share, expected) in rows {
            assert_eq!(place(*home, share), *expected, "{home} {share:?}");
        }
    }

    #[test]
    fn a_thread_is_charged_what_it_used() {
        let ms = Duration::from_millis;
        let used = |n| Some(ms(n));
        assert_eq!(share(used(30), used(20), ms(20)), 500);
        assert_eq!(share(used(30), used(20), Duration::ZERO), 10_000_000);
        // A lane that nothing is known of is not an idle one.
        assert_eq!(share(None, used(30), ms(20)), NOT_TO_BE_USED);
        assert_eq!(share(used(30), None, ms(20)), NOT_TO_BE_USED);
    }

    /// One lane is kept busy for as long as it takes that its arrivals go elsewhere; the idle one keeps its own.
    #[test]
    fn arrivals_of_a_busy_lane_go_to_an_idle_one_and_run_there() {
        let (lanes, running) = Lanes::start("test", 2).unwrap();
        let [busy, idle] = [0, 1].map(|lane| lanes.handles().nth(lane).unwrap().clone());
        let (tell, told) = mpsc::channel();
        let placing = lanes.clone();
        busy.spawn(async move {
            let deadline = Instant::now() + Duration::from_secs(20);
            while Instant::now() < deadline {
                if let Some(other) = placing.elsewhere() {
                    let here = current();
                    other.spawn(async move { tell.send((here, current())).unwrap() });
                    return;
                }
            }
        });
        assert_eq!(told.recv_timeout(Duration::from_secs(30)).unwrap(), (0, 1));
        let placing = lanes.clone();
        let (tell, told) = mpsc::channel();
        idle.spawn(async move { tell.send(placing.elsewhere().is_none()).unwrap() });
        assert!(told.recv_timeout(Duration::from_secs(30)).unwrap());
        running.stop();
    }

    #[test]
    fn lanes_are_alive_when_each_is() {
        let s = Duration::from_millis;
        // (ages of the last beats, expected)
        let rows: &[(&[Duration], bool)] = &[
            (&[s(0), s(900)], true),
            (&[s(2_000), s(0)], true),
            (&[s(2_001), s(0)], false),
            (&[s(0), s(2_001)], false),
        ];
        for (ages, expected) in rows {
            assert_eq!(alive(ages.iter().copied()), *expected, "{ages:?}");
        }
    }

    /// Whichever lane hangs, the process does not say that all is well, and nothing is given to that lane.
    #[test]
    fn a_lane_that_hangs_is_noticed_and_given_nothing() {
        let (lanes, running) = Lanes::start("test", 2).unwrap();
        let (free, hangs) = mpsc::channel::<()>();
        let eventually = |what: &str, holds: &dyn Fn() -> bool| {
            let deadline = Instant::now() + Duration::from_secs(60);
            while !holds() {
                assert!(Instant::now() < deadline, "never {what}");
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        let works = || lanes.shared.lanes[1].used().is_some();
        let homes = |homes: [usize; 4]| [(); 4].map(|()| lanes.next_home()) == homes;
        eventually("alive", &|| lanes.are_alive());
        lanes.handles().nth(1).unwrap().spawn(async move {
            let _ = hangs.recv();
        });
        eventually("noticed", &|| !works() && !lanes.are_alive());
        eventually("avoided", &|| homes([0; 4]));
        assert!(lanes.shared.lanes[1].clock.now().is_ok());
        drop(free);
        eventually("alive again", &|| works() && lanes.are_alive());
        eventually("used again", &|| homes([0, 1, 0, 1]));
        running.stop();
    }

    #[test]
    fn stopping_drops_the_tasks_and_does_not_wait_for_one_that_hangs() {
        struct Told(mpsc::Sender<()>);
        impl Drop for Told {
            fn drop(&mut self) {
                let _ = self.0.send(());
            }
        }
        let (lanes, running) = Lanes::start("test", 2).unwrap();
        let (tell, told) = mpsc::channel();
        let waits = Told(tell);
        let (free, hangs) = mpsc::channel::<()>();
        let mut handles = lanes.handles();
        handles.next().unwrap().spawn(async move {
            let _told = waits;
            std::future::pending::<()>().await;
        });
        handles.next().unwrap().spawn(async move {
            let _ = hangs.recv();
        });
        running.stop();
        told.recv_timeout(Duration::from_secs(10)).unwrap();
        drop(free);
    }
}
