//! One stream of a tunnel: what arrived for it and where it goes, its receive window, and the handle that its owner holds.
//!
//! While a copy has attached its socket, the driver writes received bytes straight to that socket; only what the socket does not take is queued.

mod handle;
mod window;

pub use handle::HboneStream;
pub(crate) use handle::{Received, Sent};

use std::io::{self, IoSlice};
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use http::StatusCode;
use mesh_core::identity::Identity;
use mesh_runtime::paths::PathCounters;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::buffer::Buffer;
use crate::counters::ByteCounters;
use crate::hbone::frame::{self, code};
use crate::hbone::queue::Queue;
use crate::hbone::tunnel::{Credit, PAYLOAD, PAYLOAD_AT, Role, STRIDE, Tunnel};
use crate::hbone::{Baggage, ConnectResponse, HboneError};
use crate::socket::{self, Armed};

/// Slices of one write to the application.
const SLICES: usize = 32;

/// What the peer does with its direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::hbone) enum Recv {
    Open,
    Ended,
    Reset(u32),
    Lost,
}

/// Why the driver does not take DATA for a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::hbone) enum Unwelcome {
    /// More than the peer may send.
    Window,
    /// DATA in front of the answer to our request.
    BeforeAnswer,
    /// The peer has ended its direction.
    Ended,
    /// The stream is over; this was under way.
    Over,
}

/// The answer to our request.
enum Answer {
    Waiting,
    Got(StatusCode, Baggage),
    Taken,
}

/// Where the driver delivers to.
struct Sink {
    tcp: Arc<Armed>,
    counters: Arc<ByteCounters>,
}

struct Inner {
    queue: Queue,
    recv: Recv,
    /// What the peer may still send.
    window: i64,
    /// What the window is filled up to.
    target: i64,
    /// What the window was at first, by the latest of our SETTINGS that counts for this stream.
    first: i64,
    /// What is counted in the window that all streams have grown.
    grown: i64,
    last_grant: Instant,
    sink: Option<Sink>,
    sink_error: Option<io::Error>,
    /// FIN was passed on.
    fin_passed: bool,
    send_over: bool,
    /// The peer's request is not answered yet: the stream counts until it is.
    unanswered: bool,
    removed: bool,
    answer: Answer,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// The state of a stream, shared by the tunnel's table, the driver and the owner.
pub(in crate::hbone) struct Stream {
    pub(in crate::hbone) id: u32,
    /// Credit to send; changed under the tunnel's lock only.
    pub(in crate::hbone) send_window: AtomicI64,
    /// In the tunnel's waiting list; changed under the tunnel's lock only.
    pub(in crate::hbone) waiting: AtomicBool,
    inner: Mutex<Inner>,
}

impl Stream {
    pub(in crate::hbone) fn new(id: u32, send_window: i64, first: i64, unanswered: bool) -> Self {
        let inner = Inner {
            queue: Queue::default(),
            recv: Recv::Open,
            window: first,
            target: first,
            first,
            grown: 0,
            last_grant: Instant::now(),
            sink: None,
            sink_error: None,
            fin_passed: false,
            send_over: false,
            unanswered,
            removed: false,
            answer: Answer::Waiting,
            reader: None,
            writer: None,
        };
        Self { id, send_window: AtomicI64::new(send_window), waiting: AtomicBool::new(false), inner: Mutex::new(inner) }
    }

    // ---- for the tunnel

    pub(in crate::hbone) fn wait_to_send(&self, waker: &Waker) {
        let mut inner = self.inner.lock();
        if !inner.writer.as_ref().is_some_and(|old| old.will_wake(waker)) {
            inner.writer = Some(waker.clone());
        }
    }

    pub(in crate::hbone) fn wake_writer(&self) {
        if let Some(waker) = self.inner.lock().writer.take() {
            waker.wake();
        }
    }

    pub(in crate::hbone) fn send_over(&self) -> bool {
        self.inner.lock().send_over
    }

    pub(in crate::hbone) fn send_ended(&self) {
        self.inner.lock().send_over = true;
    }

    /// We end both directions. True if the peer has to be told.
    pub(in crate::hbone) fn abort(&self) -> bool {
        let mut inner = self.inner.lock();
        let peer_knows = match inner.recv {
            Recv::Reset(_) | Recv::Lost => true,
            Recv::Ended => inner.send_over,
            Recv::Open => false,
        };
        let tell = !inner.removed && !peer_knows;
        inner.send_over = true;
        inner.unanswered = false;
        if inner.recv == Recv::Open {
            inner.receives_no_more(Recv::Reset(code::CANCEL));
        }
        inner.drop_received();
        tell
    }

    /// The owner answers. Some: the peer reset the request before.
    pub(in crate::hbone) fn answered(&self, refused: bool) -> Option<u32> {
        let mut inner = self.inner.lock();
        inner.unanswered = false;
        match inner.recv {
            Recv::Reset(code) => Some(code),
            Recv::Lost => Some(code::CANCEL),
            Recv::Open | Recv::Ended => {
                if refused {
                    inner.send_over = true;
                    inner.receives_no_more(Recv::Ended);
                    inner.drop_received();
                }
                None
            }
        }
    }

    /// True once: when both directions are over and the request is answered.
    pub(in crate::hbone) fn take_over(&self) -> bool {
        let mut inner = self.inner.lock();
        let over =
            !inner.removed && inner.send_over && !inner.unanswered && !matches!(inner.recv, Recv::Open | Recv::Lost);
        inner.removed |= over;
        over
    }

    /// The tunnel is gone.
    pub(in crate::hbone) fn lost(&self) {
        let mut inner = self.inner.lock();
        if !(inner.send_over && inner.recv == Recv::Ended) {
            inner.receives_no_more(Recv::Lost);
        }
        inner.send_over = true;
        inner.removed = true;
        inner.wake();
    }

    // ---- for the driver

    /// Bytes arrived: `ranges` of `base`. They go to the socket, else to the queue. Returns how much window to grant, or `None` if the peer sent more than
    /// it may.
    pub(in crate::hbone) fn deliver(&self, tunnel: &Tunnel, base: &[u8], ranges: &[Range<usize>]) -> u32 {
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        if inner.recv != Recv::Open {
            return 0;
        }
        let mut skip = 0;
        if inner.queue.is_empty()
            && let Some(sink) = inner.sink.as_ref().filter(|_| inner.sink_error.is_none())
        {
            let mut slices = [IoSlice::new(&[]); SLICES];
            for (slice, range) in slices.iter_mut().zip(ranges) {
                *slice = IoSlice::new(&base[range.clone()]);
            }
            match socket::write_vectored(&sink.tcp, &slices[..ranges.len().min(SLICES)]) {
                Ok(written) => {
                    skip = written;
                    sink.counters.received.fetch_add(written as u64, Relaxed);
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(error) => inner.sink_error = Some(error),
            }
        }
        if inner.sink_error.is_some() {
            inner.drop_received();
            inner.wake_reader();
            return 0;
        }
        for range in ranges {
            let rest = range.len().saturating_sub(skip);
            skip = skip.saturating_sub(range.len());
            if rest > 0 {
                inner.queue.push(&base[range.end - rest..range.end]);
            }
        }
        if !inner.queue.is_empty() {
            inner.wake_reader();
        }
        inner.grant(tunnel)
    }

    /// END_STREAM arrived.
    pub(in crate::hbone) fn end(&self) {
        let mut inner = self.inner.lock();
        if inner.recv != Recv::Open {
            return;
        }
        inner.receives_no_more(Recv::Ended);
        if inner.queue.is_empty()
            && let Some(sink) = &inner.sink
        {
            socket::finish(&sink.tcp);
            inner.fin_passed = true;
        }
        inner.wake_reader();
    }

    /// RST_STREAM arrived. Returns whether the request was still unanswered.
    pub(in crate::hbone) fn peer_reset(&self, error: u32) -> bool {
        let mut inner = self.inner.lock();
        match inner.recv {
            // The peer had ended its data; it only does not read any more, which is how real peers close.
            Recv::Ended if matches!(error, code::NO_ERROR | code::CANCEL) => {}
            Recv::Lost => {}
            _ => {
                inner.receives_no_more(Recv::Reset(error));
                inner.drop_received();
            }
        }
        inner.send_over = true;
        inner.wake();
        inner.unanswered
    }

    /// HEADERS arrived as an answer. False: there was one already.
    pub(in crate::hbone) fn set_answer(&self, status: StatusCode, baggage: Baggage) -> bool {
        let mut inner = self.inner.lock();
        if !matches!(inner.answer, Answer::Waiting) {
            return false;
        }
        inner.answer = Answer::Got(status, baggage);
        inner.wake_reader();
        true
    }

    // ---- for the owner

    fn poll_answer(&self, cx: &mut Context<'_>) -> Poll<Result<(StatusCode, Baggage), Recv>> {
        let mut inner = self.inner.lock();
        match std::mem::replace(&mut inner.answer, Answer::Taken) {
            Answer::Got(status, baggage) => return Poll::Ready(Ok((status, baggage))),
            other => inner.answer = other,
        }
        if inner.recv != Recv::Open {
            return Poll::Ready(Err(inner.recv));
        }
        inner.wait_to_read(cx.waker());
        Poll::Pending
    }

    /// Resolves when the peer gave up.
    pub(in crate::hbone) fn poll_given_up(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut inner = self.inner.lock();
        if matches!(inner.recv, Recv::Reset(_) | Recv::Lost) {
            return Poll::Ready(());
        }
        inner.wait_to_read(cx.waker());
        Poll::Pending
    }

    fn is_reset(&self) -> bool {
        matches!(self.inner.lock().recv, Recv::Reset(_) | Recv::Lost)
    }
}

impl Inner {
    fn wait_to_read(&mut self, waker: &Waker) {
        if !self.reader.as_ref().is_some_and(|old| old.will_wake(waker)) {
            self.reader = Some(waker.clone());
        }
    }

    fn wake_reader(&mut self) {
        if let Some(waker) = self.reader.take() {
            waker.wake();
        }
    }

    fn wake(&mut self) {
        self.wake_reader();
        if let Some(waker) = self.writer.take() {
            waker.wake();
        }
    }

    fn drop_received(&mut self) {
        self.queue.clear();
    }
}
