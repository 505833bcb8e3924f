//! Orderly stop: say "no new work", wait for the work in flight up to a deadline, then cut it.
//!
//! ```text
//!  Drain::drain(deadline) ── started ──> every DrainToken sees `started`, finishes, drops
//!                         └─ deadline ─> every DrainToken still held sees `forced`
//! ```
//! Work in flight holds a [`DrainToken`]; the drain ends when the last one is dropped.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// How long after the cut the last holders have to let go.
const LET_GO: Duration = Duration::from_secs(1);

/// The side that decides to drain. Cheap to clone; clones drain the same work.
#[derive(Clone, Debug, Default)]
pub struct Drain {
    started: CancellationToken,
    forced: CancellationToken,
    tracker: TaskTracker,
}

/// Held by work in flight.
#[derive(Clone, Debug)]
pub struct DrainToken {
    started: CancellationToken,
    forced: CancellationToken,
    _in_flight: TaskTrackerToken,
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Drained {
    /// All work ended by itself.
    Clean,
    /// This many holders were cut at the deadline.
    Cut(usize),
}

impl Drain {
    /// A drain that has not started.
    pub fn new() -> Self {
        Drain::default()
    }

    /// A token for one piece of work.
    pub fn token(&self) -> DrainToken {
        DrainToken { started: self.started.clone(), forced: self.forced.clone(), _in_flight: self.tracker.token() }
    }

    /// Tells every holder that no new work is wanted, without waiting.
    pub fn start(&self) {
        self.started.cancel();
        self.tracker.close();
    }

    /// Tells every holder to let go now, without waiting.
    pub fn cut(&self) {
        self.start();
        self.forced.cancel();
    }

    /// Pieces of work still in flight.
    pub fn in_flight(&self) -> usize {
        self.tracker.len()
    }

    /// Starts the drain, waits for the work up to `deadline` (zero: cut at once), then cuts the rest.
    pub async fn drain(&self, deadline: Duration) -> Drained {
        self.start();
        if !deadline.is_zero() && tokio::time::timeout(deadline, self.tracker.wait()).await.is_ok() {
            return Drained::Clean;
        }
        let left = self.tracker.len();
        self.forced.cancel();
        let _ = tokio::time::timeout(LET_GO, self.tracker.wait()).await;
        if left == 0 { Drained::Clean } else { Drained::Cut(left) }
    }
}

impl DrainToken {
    /// Completes when the drain starts.
    pub async fn started(&self) {
        self.started.cancelled().await;
    }

    /// Completes when the work must be cut.
    pub async fn forced(&self) {
        self.forced.cancelled().await;
    }

    /// Whether the drain has started.
    pub fn is_started(&self) -> bool {
        self.started.is_cancelled()
    }

    /// Whether the work must be cut.
    pub fn is_forced(&self) -> bool {
        self.forced.is_cancelled()
    }

    /// Another token for the same work, with a start that may come earlier.
    #[must_use]
    pub fn earlier(&self) -> DrainToken {
        DrainToken { started: self.started.child_token(), ..self.clone() }
    }

    /// Starts the drain of what has this token, made by [`DrainToken::earlier`], its clones and what was made of it; without that, of everybody.
    pub fn start(&self) {
        self.started.cancel();
    }

    /// The start as a cancellation token, for APIs that take one.
    pub fn started_token(&self) -> CancellationToken {
        self.started.clone()
    }

    /// The cut as a cancellation token, for APIs that take one.
    pub fn forced_token(&self) -> CancellationToken {
        self.forced.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn ends_when_the_last_token_is_dropped() {
        let drain = Drain::new();
        let token = drain.token();
        let work = tokio::spawn(async move {
            token.started().await;
            tokio::time::sleep(Duration::from_secs(3)).await;
        });
        assert_eq!(drain.drain(Duration::from_secs(5)).await, Drained::Clean);
        work.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn cuts_what_does_not_end_in_time() {
        let drain = Drain::new();
        let (polite, stubborn) = (drain.token(), drain.token());
        let work = tokio::spawn(async move {
            stubborn.forced().await;
        });
        drop(polite);
        assert_eq!(drain.drain(Duration::from_secs(5)).await, Drained::Cut(1));
        work.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_zero_deadline_cuts_at_once() {
        let drain = Drain::new();
        let token = drain.token();
        let work = tokio::spawn(async move { token.forced().await });
        assert_eq!(drain.drain(Duration::ZERO).await, Drained::Cut(1));
        work.await.unwrap();
    }
}
