//! Named tasks whose panics are counted and logged but do not end the process, unless they become a habit.
//!
//! A panic ends the task it happened in: one connection, one pod. More than [`PANICS_PER_MINUTE`] of them mean that the process itself
//! is broken, and then a clean restart is the safer state.

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

/// Panics tolerated within one minute.
pub const PANICS_PER_MINUTE: usize = 10;
/// Exit status of a process that panicked too often (EX_TEMPFAIL): a fresh one may do better.
pub const EXIT_TOO_MANY_PANICS: i32 = 75;

static PANICS: AtomicU64 = AtomicU64::new(0);
static RECENT: Mutex<Vec<Instant>> = Mutex::new(Vec::new());

/// Starts `future` on the current runtime. A panic inside is logged with the task's name, counted, and ends only this task; the handle
/// then yields a `JoinError` whose `is_panic` holds.
pub fn spawn<F>(name: &'static str, future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::spawn(counted(name, future))
}

/// The same on a given runtime.
pub fn spawn_on<F>(runtime: &Handle, name: &'static str, future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    runtime.spawn(counted(name, future))
}

/// Panics since the start of the process.
pub fn panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

/// Publishes the counter as `panics_total`.
pub fn register(registry: &mut Registry) {
    registry.register("panics", "Tasks that ended by a panic", Counter::<u64, PanicCount>::default());
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

async fn counted<F: Future>(name: &'static str, future: F) -> F::Output {
    let mut future = pin!(future);
    std::future::poll_fn(move |context| -> Poll<F::Output> {
        match std::panic::catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
            Ok(poll) => poll,
            Err(panic) => {
                note(name, panic.as_ref(), Instant::now());
                // The hook already ran for this panic; resuming only tells the join handle.
                std::panic::resume_unwind(panic)
            }
        }
    })
    .await
}

fn note(name: &str, panic: &(dyn Any + Send), now: Instant) {
    PANICS.fetch_add(1, Ordering::Relaxed);
    tracing::error!(task = name, "task panicked: {}", message(panic));
    if too_many(&mut RECENT.lock(), now) {
        tracing::error!("more than {PANICS_PER_MINUTE} panics within a minute: giving up");
        std::process::exit(EXIT_TOO_MANY_PANICS);
    }
}

fn too_many(recent: &mut Vec<Instant>, now: Instant) -> bool {
    recent.retain(|at| now.saturating_duration_since(*at) < Duration::from_secs(60));
    recent.push(now);
    recent.len() > PANICS_PER_MINUTE
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
        let before = panics();
        let broken = spawn("broken", async { panic!("broken on purpose") });
        let sound = spawn("sound", async {
            tokio::task::yield_now().await;
            7
        });
        assert!(broken.await.unwrap_err().is_panic());
        assert_eq!(sound.await.unwrap(), 7);
        assert_eq!(panics(), before + 1);
        let mut registry = Registry::default();
        register(&mut registry);
        let text = crate::metrics::encode(&registry);
        assert!(text.contains(&format!("panics_total {}", before + 1)), "{text}");
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
