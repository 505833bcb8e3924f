//! One stream of a tunnel: what arrived for it and where it goes, its receive window, and the handle that its owner holds.
//!
//! While a copy has attached its socket, the driver writes received bytes straight to that socket; only what the socket does not take is queued.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use http::StatusCode;
use mesh_core::identity::Identity;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::frame::{self, code};
use super::queue::Queue;
use super::tunnel::{Credit, GROWN, PAYLOAD, PAYLOAD_AT, STREAM_WINDOW, STRIDE, Tunnel};
use super::{Baggage, ConnectResponse, HboneError};
use crate::buffer::Buffer;
use crate::copy::ByteCounters;
use crate::socket;

/// Largest receive window of a stream.
const WINDOW_MAX: i64 = 4 * 1024 * 1024;
/// Receive window that all streams of the process may grow beyond their first, in all.
const GROWN_MAX: i64 = 256 * 1024 * 1024;
/// Growth assumes at least this round trip: on a fast network half a window per such time is a busy stream.
const ROUND_TRIP_MIN: Duration = Duration::from_micros(500);
/// Slices of one write to the application.
const SLICES: usize = 32;

/// What the peer does with its direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Recv {
    Open,
    Ended,
    Reset(u32),
    Lost,
}

/// The answer to our request.
enum Answer {
    Waiting,
    Got(StatusCode, Baggage),
    Taken,
}

/// Where the driver delivers to.
struct Sink {
    tcp: Arc<TcpStream>,
    counters: Arc<ByteCounters>,
}

struct Inner {
    queue: Queue,
    recv: Recv,
    /// What the peer may still send.
    window: i64,
    /// What the window is filled up to.
    target: i64,
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
pub(super) struct Stream {
    pub(super) id: u32,
    /// Credit to send; changed under the tunnel's lock only.
    pub(super) send_window: AtomicI64,
    /// In the tunnel's waiting list; changed under the tunnel's lock only.
    pub(super) waiting: AtomicBool,
    inner: Mutex<Inner>,
}

impl Stream {
    pub(super) fn new(id: u32, send_window: i64, unanswered: bool) -> Self {
        let inner = Inner {
            queue: Queue::default(),
            recv: Recv::Open,
            window: STREAM_WINDOW,
            target: STREAM_WINDOW,
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

    pub(super) fn wait_to_send(&self, waker: &Waker) {
        let mut inner = self.inner.lock();
        if !inner.writer.as_ref().is_some_and(|old| old.will_wake(waker)) {
            inner.writer = Some(waker.clone());
        }
    }

    pub(super) fn wake_writer(&self) {
        if let Some(waker) = self.inner.lock().writer.take() {
            waker.wake();
        }
    }

    pub(super) fn send_over(&self) -> bool {
        self.inner.lock().send_over
    }

    pub(super) fn send_ended(&self) {
        self.inner.lock().send_over = true;
    }

    /// We end both directions. True if the peer has to be told.
    pub(super) fn abort(&self) -> bool {
        let mut inner = self.inner.lock();
        let tell = !inner.removed
            && !matches!(inner.recv, Recv::Reset(_) | Recv::Lost)
            && !(inner.send_over && inner.recv == Recv::Ended);
        inner.send_over = true;
        inner.unanswered = false;
        if inner.recv == Recv::Open {
            inner.recv = Recv::Reset(code::CANCEL);
        }
        inner.drop_received();
        tell
    }

    /// The owner answers. Some: the peer reset the request before.
    pub(super) fn answered(&self, refused: bool) -> Option<u32> {
        let mut inner = self.inner.lock();
        inner.unanswered = false;
        match inner.recv {
            Recv::Reset(code) => Some(code),
            Recv::Lost => Some(code::CANCEL),
            Recv::Open | Recv::Ended => {
                if refused {
                    inner.send_over = true;
                    inner.recv = Recv::Ended;
                    inner.drop_received();
                }
                None
            }
        }
    }

    /// True once: when both directions are over and the request is answered.
    pub(super) fn take_over(&self) -> bool {
        let mut inner = self.inner.lock();
        let over =
            !inner.removed && inner.send_over && !inner.unanswered && !matches!(inner.recv, Recv::Open | Recv::Lost);
        inner.removed |= over;
        over
    }

    /// The tunnel is gone.
    pub(super) fn lost(&self) {
        let mut inner = self.inner.lock();
        if !(inner.send_over && inner.recv == Recv::Ended) {
            inner.recv = Recv::Lost;
        }
        inner.send_over = true;
        inner.removed = true;
        inner.wake();
    }

    // ---- for the driver

    /// Bytes arrived: `ranges` of `base`. They go to the socket, else to the queue. Returns how much window to grant, or `None` if the peer sent more than
    /// it may.
    pub(super) fn deliver(&self, tunnel: &Tunnel, base: &[u8], ranges: &[Range<usize>]) -> u32 {
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

    /// Counts received bytes against the window. False: the peer sent more than it may.
    pub(super) fn count_received(&self, length: i64) -> Result<(), Recv> {
        let mut inner = self.inner.lock();
        match inner.recv {
            Recv::Open => {}
            other => return Err(other),
        }
        inner.window -= length;
        if inner.window < 0 { Err(Recv::Open) } else { Ok(()) }
    }

    /// Padding is taken at once.
    pub(super) fn consume_padding(&self, tunnel: &Tunnel) -> u32 {
        self.inner.lock().grant(tunnel)
    }

    /// END_STREAM arrived.
    pub(super) fn end(&self) {
        let mut inner = self.inner.lock();
        if inner.recv != Recv::Open {
            return;
        }
        inner.recv = Recv::Ended;
        if inner.queue.is_empty()
            && let Some(sink) = &inner.sink
        {
            socket::finish(&sink.tcp);
            inner.fin_passed = true;
        }
        inner.wake_reader();
    }

    /// RST_STREAM arrived. Returns whether the request was still unanswered.
    pub(super) fn peer_reset(&self, error: u32) -> bool {
        let mut inner = self.inner.lock();
        match inner.recv {
            // The peer had ended its data; it only does not read any more, which is how real peers close.
            Recv::Ended if matches!(error, code::NO_ERROR | code::CANCEL) => {}
            Recv::Lost => {}
            _ => {
                inner.recv = Recv::Reset(error);
                inner.drop_received();
            }
        }
        inner.send_over = true;
        inner.wake();
        inner.unanswered
    }

    /// HEADERS arrived as an answer. False: there was one already.
    pub(super) fn set_answer(&self, status: StatusCode, baggage: Baggage) -> bool {
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
    pub(super) fn poll_given_up(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut inner = self.inner.lock();
        if matches!(inner.recv, Recv::Reset(_) | Recv::Lost) {
            return Poll::Ready(());
        }
        inner.wait_to_read(cx.waker());
        Poll::Pending
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

    /// Fills the window up when half of it is free. What the application has not taken counts as filled. A stream that empties half a window within a round
    /// trip is limited by its window, which then doubles; one whose application lags shrinks back.
    fn grant(&mut self, tunnel: &Tunnel) -> u32 {
        if self.recv != Recv::Open {
            return 0;
        }
        let queued = self.queue.len() as i64;
        if self.target - self.window - queued < self.target / 2 {
            return 0;
        }
        let now = Instant::now();
        let elapsed = now - self.last_grant;
        self.last_grant = now;
        let round_trip = Duration::from_nanos(tunnel.round_trip.load(Relaxed)).max(ROUND_TRIP_MIN);
        if queued * 4 > self.target {
            self.resize((self.target / 2).max(STREAM_WINDOW));
        } else if elapsed <= round_trip {
            self.resize((self.target * 2).min(WINDOW_MAX));
        }
        let due = (self.target - self.window - queued).max(0);
        self.window += due;
        due as u32
    }

    fn resize(&mut self, target: i64) {
        let change = target - self.target;
        if change == 0 {
            return;
        }
        if change > 0 && GROWN.fetch_add(change, Relaxed) + change > GROWN_MAX {
            GROWN.fetch_sub(change, Relaxed);
            return;
        }
        if change < 0 {
            GROWN.fetch_add(change, Relaxed);
        }
        self.target = target;
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        GROWN.fetch_sub(self.target - STREAM_WINDOW, Relaxed);
    }
}

/// How the peer's direction ended, for the copy.
#[derive(Debug)]
pub(crate) enum Received {
    /// In order; FIN was passed on.
    Ended,
    /// The peer aborted, or the tunnel is gone.
    Reset,
    /// The application's socket failed.
    Socket(io::Error),
}

/// How an attempt to send ended, for the copy.
pub(crate) enum Sent {
    /// Some bytes went out.
    Some(usize),
    /// The last bytes went out.
    Last(usize),
    /// The application ended its direction; so did we.
    Ended,
    /// Nothing to read.
    Empty,
    /// No credit; the task is woken when there is.
    Wait,
    /// The tunnel or the stream is over.
    Closed,
    /// The application's socket failed.
    Socket(io::Error),
}

/// A bidirectional byte stream through a tunnel. Dropping it before both directions ended aborts it, which the peer sees as a reset.
pub struct HboneStream {
    tunnel: Arc<Tunnel>,
    stream: Arc<Stream>,
}

impl std::fmt::Debug for HboneStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HboneStream").field("id", &self.stream.id).field("peer", &self.tunnel.peer).finish()
    }
}

impl HboneStream {
    pub(super) fn new(tunnel: Arc<Tunnel>, stream: Arc<Stream>) -> Self {
        Self { tunnel, stream }
    }

    /// The identity that the other end of the tunnel proved.
    pub fn peer(&self) -> &Identity {
        &self.tunnel.peer
    }

    /// Waits for the answer to our request.
    pub(super) async fn answer(&self) -> Result<ConnectResponse, HboneError> {
        match std::future::poll_fn(|cx| self.stream.poll_answer(cx)).await {
            Ok((StatusCode::OK, baggage)) => Ok(ConnectResponse { baggage }),
            Ok((status, _)) => Err(HboneError::Refused(status)),
            Err(Recv::Reset(code)) => Err(HboneError::Reset(code)),
            Err(_) => Err(self.tunnel.closed_error()),
        }
    }

    /// Gives up before an answer: nothing was exchanged, so the peer is told CANCEL.
    pub(super) fn cancel(&self) {
        self.tunnel.reset(&self.stream, code::CANCEL);
    }

    /// Aborts both directions: the far application sees a reset.
    pub(crate) fn abort(&self) {
        self.tunnel.reset(&self.stream, code::CONNECT_ERROR);
    }

    /// From now on received bytes go to `tcp` directly; [`HboneStream::poll_received`] must be polled.
    pub(crate) fn attach(&self, tcp: Arc<TcpStream>, counters: Arc<ByteCounters>) {
        self.stream.inner.lock().sink = Some(Sink { tcp, counters });
    }

    /// The socket is the caller's alone again.
    pub(crate) fn detach(&self) {
        self.stream.inner.lock().sink = None;
    }

    /// Passes on what the attached socket did not take at once, and tells how the peer's direction ended.
    pub(crate) fn poll_received(&self, cx: &mut Context<'_>) -> Poll<Received> {
        let mut guard = self.stream.inner.lock();
        let inner = &mut *guard;
        let mut grant = 0;
        let outcome = loop {
            if let Some(error) = inner.sink_error.take() {
                break Poll::Ready(Received::Socket(error));
            }
            if inner.queue.is_empty() {
                match inner.recv {
                    Recv::Open => {
                        inner.wait_to_read(cx.waker());
                        break Poll::Pending;
                    }
                    Recv::Ended => {
                        if !std::mem::replace(&mut inner.fin_passed, true)
                            && let Some(sink) = &inner.sink
                        {
                            socket::finish(&sink.tcp);
                        }
                        break Poll::Ready(Received::Ended);
                    }
                    Recv::Reset(_) | Recv::Lost => break Poll::Ready(Received::Reset),
                }
            }
            // A lost tunnel may still owe the application bytes, but not an orderly end; what is queued is worthless without it.
            if matches!(inner.recv, Recv::Reset(_) | Recv::Lost) {
                break Poll::Ready(Received::Reset);
            }
            let Some(sink) = &inner.sink else { break Poll::Pending };
            match sink.tcp.poll_write_ready(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => break Poll::Ready(Received::Socket(error)),
                Poll::Pending => {
                    inner.wait_to_read(cx.waker());
                    break Poll::Pending;
                }
            }
            let mut slices = [IoSlice::new(&[]); SLICES];
            let count = inner.queue.slices(&mut slices);
            match socket::write_vectored(&sink.tcp, &slices[..count]) {
                Ok(written) => {
                    sink.counters.received.fetch_add(written as u64, Relaxed);
                    inner.queue.consume(written);
                    grant += inner.grant(&self.tunnel);
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(error) => break Poll::Ready(Received::Socket(error)),
            }
        };
        drop(guard);
        self.send_grant(grant);
        outcome
    }

    fn send_grant(&self, grant: u32) {
        if grant > 0 {
            self.tunnel.control(|out| frame::window_update(out, self.stream.id, grant));
        }
    }

    /// Reads from the application once and sends what it had. `wide` remembers whether the last read filled a record: then a whole batch is read at once.
    pub(crate) fn try_send(&self, cx: &mut Context<'_>, tcp: &TcpStream, wide: &mut bool) -> Sent {
        let wanted = if *wide { usize::MAX } else { PAYLOAD };
        let granted = match self.tunnel.reserve(&self.stream, wanted, cx.waker()) {
            Credit::Granted(granted) => granted,
            Credit::Wait => return Sent::Wait,
            Credit::Closed => return Sent::Closed,
        };
        let mut buffer = Buffer::take();
        let read = if granted <= PAYLOAD {
            socket::read(tcp, &mut buffer[PAYLOAD_AT..PAYLOAD_AT + granted])
        } else {
            let mut room = granted;
            let mut slots: [io::IoSliceMut<'_>; super::tunnel::SLOTS] =
                std::array::from_fn(|_| io::IoSliceMut::new(&mut []));
            let mut count = 0;
            for (slot, space) in slots.iter_mut().zip(buffer.chunks_mut(STRIDE)) {
                let length = room.min(PAYLOAD);
                if length == 0 {
                    break;
                }
                *slot = io::IoSliceMut::new(&mut space[PAYLOAD_AT..PAYLOAD_AT + length]);
                room -= length;
                count += 1;
            }
            socket::read_vectored(tcp, &mut slots[..count])
        };
        match read {
            Ok(0) => {
                self.tunnel.commit(&self.stream, buffer, 0, granted, true);
                Sent::Ended
            }
            Ok(mut length) => {
                *wide = length >= PAYLOAD.min(granted);
                let mut ended = false;
                // A short answer and a close come together: then one record carries both, and the far end needs to wake once only.
                if length < granted.min(PAYLOAD) && socket::may_have_ended(tcp) {
                    let room = PAYLOAD_AT + length..PAYLOAD_AT + granted.min(PAYLOAD);
                    match socket::read(tcp, &mut buffer[room]) {
                        Ok(0) => ended = true,
                        Ok(more) => length += more,
                        // An error will be there for the next read.
                        Err(_) => {}
                    }
                }
                self.tunnel.commit(&self.stream, buffer, length, granted - length, ended);
                if ended { Sent::Last(length) } else { Sent::Some(length) }
            }
            Err(error) => {
                self.tunnel.release(&self.stream, granted);
                match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Sent::Empty,
                    _ => Sent::Socket(error),
                }
            }
        }
    }
}

impl Drop for HboneStream {
    fn drop(&mut self) {
        self.detach();
        self.abort();
    }
}

impl AsyncRead for HboneStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.stream.inner.lock();
        if inner.queue.is_empty() {
            return match inner.recv {
                Recv::Open => {
                    inner.wait_to_read(cx.waker());
                    Poll::Pending
                }
                Recv::Ended => Poll::Ready(Ok(())),
                Recv::Reset(_) | Recv::Lost => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            };
        }
        let mut slices = [IoSlice::new(&[]); 1];
        inner.queue.slices(&mut slices);
        let length = slices[0].len().min(buffer.remaining());
        buffer.put_slice(&slices[0][..length]);
        inner.queue.consume(length);
        let grant = inner.grant(&self.tunnel);
        drop(inner);
        self.send_grant(grant);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for HboneStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let granted = match self.tunnel.reserve(&self.stream, bytes.len(), cx.waker()) {
            Credit::Granted(granted) => granted,
            Credit::Wait => return Poll::Pending,
            Credit::Closed => return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
        };
        let mut buffer = Buffer::take();
        for (slot, piece) in buffer.chunks_mut(STRIDE).zip(bytes[..granted].chunks(PAYLOAD)) {
            slot[PAYLOAD_AT..PAYLOAD_AT + piece.len()].copy_from_slice(piece);
        }
        self.tunnel.commit(&self.stream, buffer, granted, 0, false);
        Poll::Ready(Ok(granted))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.stream.send_over() {
            self.tunnel.commit(&self.stream, Buffer::take(), 0, 0, true);
        }
        Poll::Ready(Ok(()))
    }
}
