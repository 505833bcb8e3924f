//! Live taps: whoever asks for one hears, line by line, of what a process has done, as long as he listens. Knows neither what a line says nor what a selector
//! means. Lines are offered by the threads that work ([`Taps::offer`]) and go out over a socket of the operator's ([`stream`]); [`client`] is its other end.
//!
//! ```text
//! lanes ── offer ── selector? ── rate? ── bounded buffer ── stream ── hyper ── client
//!                       no: nothing   └ no: counted   └ full: counted
//! ```
//! Nobody who works ever waits for who listens: what finds no room is dropped and counted, and the counts are told. Without taps `is_on` is all that is asked.

pub mod client;
mod stream;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::StatusCode;
use parking_lot::{Mutex, RwLock};
use serde_json::Value;
use tokio::sync::mpsc;

use crate::http::{Reply, lasting, text};

pub use stream::stream;

/// Taps at once in one process.
pub const MOST_TAPS: usize = 4;
/// Lines that wait for one client. They are of 8 KiB at most (`mesh_core::tap::LONGEST_LINE`), so that all taps together take 16 MiB.
pub const BUFFER: usize = 512;

/// What a client has after its last line to read the rest.
const REST: Duration = Duration::from_secs(5);

/// What a client wants at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Lines a second.
    pub rate: u32,
    /// How long it goes on.
    pub time: Duration,
}

/// All taps of a process.
pub struct Taps<S> {
    /// How many there are, for who works.
    open: AtomicUsize,
    /// Written when one begins or ends; read only while there is one.
    list: RwLock<Vec<Arc<Tap<S>>>>,
}

struct Tap<S> {
    selector: S,
    rate: u32,
    since: Instant,
    lines: mpsc::Sender<Bytes>,
    counts: Counts,
    window: Mutex<Window>,
}

#[derive(Default)]
struct Counts {
    matched: AtomicU64,
    limited: AtomicU64,
    lost: AtomicU64,
}

/// What has become of all that a tap has meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// It was meant.
    pub matched: u64,
    /// It was more than the rate.
    pub limited: u64,
    /// The client read too slowly.
    pub lost: u64,
}

/// Lines of one second.
#[derive(Debug, Default, PartialEq, Eq)]
struct Window {
    second: u64,
    count: u32,
}

impl Window {
    /// Whether one more fits into this second, counted from when the tap began.
    fn admit(&mut self, second: u64, rate: u32) -> bool {
        if second != self.second {
            *self = Self { second, count: 0 };
        }
        self.count += u32::from(self.count < rate.saturating_add(1));
        self.count <= rate
    }
}

/// A tap, while it goes on. It ends when this is dropped.
pub struct Open<S> {
    taps: Arc<Taps<S>>,
    tap: Arc<Tap<S>>,
    lines: mpsc::Receiver<Bytes>,
    limits: Limits,
}

/// What is answered to who asks for a tap with that selector, which may be none. `about` is who we are.
pub fn answer<S>(taps: &Arc<Taps<S>>, asked: Result<(S, Limits), impl std::fmt::Display>, about: Value) -> Reply
where
    S: Send + Sync + 'static,
{
    let (selector, limits) = match asked {
        Ok(asked) => asked,
        Err(error) => return text(StatusCode::BAD_REQUEST, format!("{error}\n")),
    };
    match taps.open(selector, limits) {
        Some(open) => lasting("application/x-ndjson", limits.time + REST, stream(open, about)),
        None => text(
            StatusCode::TOO_MANY_REQUESTS,
            format!("{MOST_TAPS} taps are open here, which is the most: end one, or wait until one ends by itself\n"),
        ),
    }
}

impl<S> Default for Taps<S> {
    fn default() -> Self {
        Self { open: AtomicUsize::new(0), list: RwLock::default() }
    }
}

impl<S> Taps<S> {
    /// Whether anybody listens. Cheap enough to be asked for each request.
    #[inline]
    pub fn is_on(&self) -> bool {
        self.open.load(Relaxed) != 0
    }

    /// Begins one; none if there are too many.
    pub fn open(self: &Arc<Self>, selector: S, limits: Limits) -> Option<Open<S>> {
        let (sender, lines) = mpsc::channel(BUFFER);
        let tap = Arc::new(Tap {
            selector,
            rate: limits.rate,
            since: Instant::now(),
            lines: sender,
            counts: Counts::default(),
            window: Mutex::default(),
        });
        let mut list = self.list.write();
        if list.len() >= MOST_TAPS {
            return None;
        }
        list.push(Arc::clone(&tap));
        self.open.store(list.len(), Relaxed);
        drop(list);
        Some(Open { taps: Arc::clone(self), tap, lines, limits })
    }

    /// Something is over `now` that began then. `selects` says whether a tap means it; `line` is asked once, if anybody hears it. Of what began before a tap not
    /// all that is shown was remembered: it is not for that tap.
    pub fn offer(&self, began: Instant, now: Instant, selects: impl Fn(&S) -> bool, line: impl Fn() -> String) {
        let mut written: Option<Bytes> = None;
        for tap in self.list.read().iter().filter(|tap| tap.since <= began && selects(&tap.selector)) {
            tap.counts.matched.fetch_add(1, Relaxed);
            let second = now.saturating_duration_since(tap.since).as_secs();
            if !tap.window.lock().admit(second, tap.rate) {
                tap.counts.limited.fetch_add(1, Relaxed);
                continue;
            }
            let line = written.get_or_insert_with(|| line().into()).clone();
            if tap.lines.try_send(line).is_err() {
                tap.counts.lost.fetch_add(1, Relaxed);
            }
        }
    }
}

impl<S> Open<S> {
    /// What has become of it until now.
    pub fn counted(&self) -> Counted {
        let counts = &self.tap.counts;
        Counted {
            matched: counts.matched.load(Relaxed),
            limited: counts.limited.load(Relaxed),
            lost: counts.lost.load(Relaxed),
        }
    }
}

impl<S> Drop for Open<S> {
    fn drop(&mut self) {
        let mut list = self.taps.list.write();
        list.retain(|tap| !Arc::ptr_eq(tap, &self.tap));
        self.taps.open.store(list.len(), Relaxed);
    }
}
