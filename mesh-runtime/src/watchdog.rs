//! Ends a process whose runtimes no longer run tasks: a stuck agent holds its sockets and serves nobody, a dead one is restarted.
//!
//! Each watched runtime runs one task that beats once a second; a plain thread looks at the beats. A process that was stopped as a
//! whole (SIGSTOP, a paused machine) is not stuck: the thread sees that it slept too long itself and starts counting afresh.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

const BEAT: Duration = Duration::from_secs(1);
/// A runtime silent for this long is stuck.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// What the thread decides at one look.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Look {
    Fine,
    /// The process itself did not run: judge nobody.
    Resumed,
    /// This runtime, by index, is stuck.
    Stuck(usize),
}

/// The decision, with time as argument (milliseconds since some start).
#[derive(Debug)]
struct Judge {
    looked_at: u64,
    amnesty_until: u64,
}

impl Judge {
    fn look(&mut self, now: u64, beats: &[u64]) -> Look {
        let slept = now.saturating_sub(self.looked_at);
        self.looked_at = now;
        if slept > 3 * BEAT.as_millis() as u64 {
            self.amnesty_until = now + PATIENCE.as_millis() as u64;
            return Look::Resumed;
        }
        if now < self.amnesty_until {
            return Look::Fine;
        }
        let stuck = beats.iter().position(|beat| now.saturating_sub(*beat) > PATIENCE.as_millis() as u64);
        stuck.map_or(Look::Fine, Look::Stuck)
    }
}

/// Signs of life of a runtime: of one that runs tasks, the last is never much older than a second.
#[derive(Clone, Debug)]
pub struct Beat {
    start: Instant,
    /// Milliseconds since `start`.
    last: Arc<AtomicU64>,
}

impl Beat {
    /// Starts them. The start counts as the first.
    pub fn of(runtime: &Handle) -> Beat {
        let beat = Beat { start: Instant::now(), last: Arc::default() };
        let beating = beat.clone();
        runtime.spawn(async move {
            loop {
                beating.last.store(beating.start.elapsed().as_millis() as u64, Ordering::Relaxed);
                tokio::time::sleep(BEAT).await;
            }
        });
        beat
    }

    /// How old the last one is.
    pub fn age(&self) -> Duration {
        self.start.elapsed().saturating_sub(Duration::from_millis(self.last.load(Ordering::Relaxed)))
    }
}

/// Watches runtimes by their names until the process ends; a stuck one aborts the process.
pub fn watch(beats: Vec<(String, Beat)>) {
    let start = Instant::now();
    let elapsed = move || start.elapsed().as_millis() as u64;
    let look = move || {
        let mut judge = Judge { looked_at: elapsed(), amnesty_until: 0 };
        loop {
            std::thread::sleep(BEAT);
            let now = elapsed();
            let at = |beat: &Beat| now.saturating_sub(beat.age().as_millis() as u64);
            let seen: Vec<u64> = beats.iter().map(|(_, beat)| at(beat)).collect();
            match judge.look(now, &seen) {
                Look::Fine => {}
                Look::Resumed => {
                    tell(format_args!("the process did not run for more than {:?}: watching afresh", 3 * BEAT))
                }
                Look::Stuck(index) => {
                    tell(format_args!("runtime {} ran no task for {PATIENCE:?}: aborting", beats[index].0));
                    std::process::abort();
                }
            }
        }
    };
    if let Err(error) = std::thread::Builder::new().name("watchdog".into()).spawn(look) {
        tracing::warn!(%error, "no watchdog thread");
    }
}

/// The log may be what is stuck: to standard error directly. Nobody may read that any more, which must not end the watching.
fn tell(line: std::fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn judges_only_what_had_a_chance_to_run() {
        // (now, beats, expected)
        let rows: &[(u64, [u64; 2], Look)] = &[
            (1_000, [900, 950], Look::Fine),
            (2_000, [1_900, 950], Look::Fine),
            (40_000, [1_900, 950], Look::Resumed), // stopped for 38 s
            (41_000, [40_500, 950], Look::Fine),   // amnesty
            (43_000, [42_500, 950], Look::Fine),
            (46_000, [45_500, 950], Look::Fine),
            (49_000, [48_500, 950], Look::Fine),
            (51_000, [50_500, 950], Look::Stuck(1)),
        ];
        let mut judge = Judge { looked_at: 0, amnesty_until: 0 };
        for (now, beats, expected) in rows {
            assert_eq!(judge.look(*now, beats), *expected, "at {now}");
        }
    }
}
