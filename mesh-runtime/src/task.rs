//! Named tasks. A panic in one is logged and counted, and ends that task: one connection, one pod. Tasks that the rest of the process cannot
//! do without are spawned as vital: their panic ends the process, which whoever supervises it starts afresh.
//!
//! More than [`PANICS_PER_MINUTE`] panics mean that the process itself is broken, and then a clean restart is the safer state too. Those over input that a
//! stranger wrote ([`contain`]) say nothing of the process, and a fresh one would meet the same input: they are counted, and so many a minute are told of.

use std::any::Any;
use std::cell::Cell;
use std::future::Future;
use std::io::Write;
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

/// Panics tolerated within one minute.
pub const PANICS_PER_MINUTE: usize = 10;
/// Exit status of a process that panicked too often, or where it must not (EX_TEMPFAIL): a fresh one may do better.
pub const EXIT_PANIC: i32 = 75;

static PANICS: AtomicU64 = AtomicU64::new(0);
static RECENT: Mutex<Vec<Instant>> = Mutex::new(Vec::new());
/// The same of those that were contained.
static TOLD: Mutex<Vec<Instant>> = Mutex::new(Vec::new());

thread_local! {
    /// What this thread does is contained; true once there was a panic that is not told of.
    static CONTAINED: Cell<Option<bool>> = const { Cell::new(None) };
}

/// Starts `future` on the current runtime. A panic inside is logged with the task's name and ends only this task; the handle then yields
/// a `JoinError` whose `is_panic` holds.
pub fn spawn<F>(name: &'static str, future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::spawn(named(name, false, future))
}

/// The same on a given runtime.
pub fn spawn_on<F>(runtime: &Handle, name: &'static str, future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    runtime.spawn(named(name, false, future))
}

/// Starts a task without which the process would only seem to work: nobody notices that it is gone, and what it did is not done any more.
/// A panic inside ends the process.
pub fn spawn_vital<F>(name: &'static str, future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::spawn(named(name, true, future))
}

/// Does a piece of a vital task's work that a stranger's input decides about: a panic inside is counted and, unless there are many, logged with
/// `name`, and there is no value.
pub fn contain<T>(name: &str, work: impl FnOnce() -> T) -> Option<T> {
    let outer = CONTAINED.replace(Some(false));
    let done = catch_unwind(AssertUnwindSafe(work));
    let is_silent = CONTAINED.replace(outer) == Some(true);
    match done {
        Err(panic) if !is_silent => {
            note(name, panic.as_ref());
            None
        }
        done => done.ok(),
    }
}

/// Panics since they are counted.
pub fn panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

/// Publishes the counter as `panics_total`, and counts from now on.
pub fn register(registry: &mut Registry) {
    count();
    registry.register("panics", "Panics of tasks and threads", Counter::<u64, PanicCount>::default());
}

/// Counts the panics of all threads, whoever catches them, and ends the process when they become a habit.
fn count() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let print = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            PANICS.fetch_add(1, Ordering::Relaxed);
            if CONTAINED.get().is_some() {
                let is_silent = too_many(&mut TOLD.lock(), Instant::now());
                CONTAINED.set(Some(is_silent));
                if !is_silent {
                    print(info);
                }
                return;
            }
            print(info);
            if too_many(&mut RECENT.lock(), Instant::now()) {
                // Not the log, which whoever panics may hold, and not a macro that panics itself.
                let _ = writeln!(std::io::stderr(), "more than {PANICS_PER_MINUTE} panics within a minute: giving up");
                std::process::exit(EXIT_PANIC);
            }
        }));
    });
}

/// A counter value that reads the process-wide count.
#[derive(Debug, Default)]
struct PanicCount;

impl prometheus_client::metrics::counter::Atomic<u64> for PanicCount {
    fn inc(&self) -> u64 {
        self.get()
    }

    fn inc_by(&self, _: u64) -> u64 {
        self.get()
    }

    fn get(&self) -> u64 {
        panics()
    }
}

/// No asynchronous function: it would hold the future twice, once as it was given and once as it runs, and some are large. A block that panics has dropped what it
/// held when the panic is told; a future written by hand is dropped then.
fn named<F: Future>(name: &'static str, vital: bool, future: F) -> impl Future<Output = F::Output> {
    AssertUnwindSafe(future).catch_unwind().map(move |end| {
        end.unwrap_or_else(|panic| {
            note(name, panic.as_ref());
            if vital {
                tracing::error!(task = name, "the process cannot do without it: giving up");
                std::process::exit(EXIT_PANIC);
            }
            // The hook already ran for this panic; resuming only tells the join handle.
            panic::resume_unwind(panic)
        })
    })
}

fn note(name: &str, panic: &(dyn Any + Send)) {
    tracing::error!(task = name, "task panicked: {}", message(panic));
}

fn too_many(recent: &mut Vec<Instant>, now: Instant) -> bool {
    recent.retain(|at| now.saturating_duration_since(*at) < Duration::from_secs(60));
    let full = recent.len() >= PANICS_PER_MINUTE;
    if !full {
        recent.push(now);
    }
    full
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&'static str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("(no message)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn hardening_f6_a_panic_ends_one_task_and_is_counted() {
        let mut registry = Registry::default();
        register(&mut registry);
        let before = panics();
        let broken = spawn("broken", async { panic!("broken on purpose") });
        let sound = spawn("sound", async {
            tokio::task::yield_now().await;
            7
        });
        assert!(broken.await.unwrap_err().is_panic());
        assert_eq!(sound.await.unwrap(), 7);
        assert_eq!(contain("contained", || panic!("broken on purpose")), None::<()>);
        let blocking = tokio::task::spawn_blocking(|| panic!("broken on purpose"));
        assert!(blocking.await.unwrap_err().is_panic());
        assert_eq!(contain("contained", || 7), Some(7));
        assert_eq!(panics(), before + 3);
        let text = crate::metrics::encode(&registry);
        assert!(text.contains(&format!("panics_total {}", before + 3)), "{text}");
    }

    #[test]
    fn a_named_task_is_as_large_as_its_future() {
        let large = async {
            let held = [0_u8; 4096];
            tokio::task::yield_now().await;
            held.len()
        };
        let alone = size_of_val(&large);
        let named = size_of_val(&named("large", false, large));
        assert!(named < alone + 64, "{named} bytes for {alone}");
    }

    /// Too many panics end the process, so it has one of its own.
    #[test]
    fn hardening_f6_contained_panics_are_no_habit_and_fill_no_log() {
        const ALONE: &str = "UNDERMESH_TEST_CONTAINED";
        let name = "task::tests::hardening_f6_contained_panics_are_no_habit_and_fill_no_log";
        if std::env::var_os(ALONE).is_none() {
            let mut alone = std::process::Command::new(std::env::current_exe().unwrap());
            let output = alone.args(["--exact", name, "--nocapture"]).env(ALONE, "1").output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{}: {said}", output.status);
            assert_eq!(said.matches("broken on purpose").count(), PANICS_PER_MINUTE, "{said}");
            return;
        }
        register(&mut Registry::default());
        for _ in 0..3 * PANICS_PER_MINUTE {
            assert_eq!(contain("outer", || contain("contained", || panic!("broken on purpose"))), Some(None::<()>));
        }
        assert_eq!(panics(), 3 * PANICS_PER_MINUTE as u64);
        // What is not contained is judged as ever, by its own count.
        assert_eq!((CONTAINED.get(), RECENT.lock().len()), (None, 0));
    }

    #[test]
    fn hardening_f6_a_habit_is_more_than_ten_within_a_minute() {
        let start = Instant::now();
        let mut recent = Vec::new();
        let spread: Vec<bool> = (0..30).map(|n| too_many(&mut recent, start + Duration::from_secs(7 * n))).collect();
        assert!(spread.iter().all(|habit| !habit));
        let mut recent = Vec::new();
        let burst: Vec<bool> = (0..11).map(|n| too_many(&mut recent, start + Duration::from_millis(n))).collect();
        assert_eq!(burst.iter().filter(|habit| **habit).count(), 1);
        assert!(burst[10]);
    }
}
