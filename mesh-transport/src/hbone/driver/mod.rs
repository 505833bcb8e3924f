//! The one task of a tunnel: reads, opens records in place, follows the HTTP/2 frames and delivers DATA straight from the read buffer; flushes what
//! the socket did not take; keeps the peer alive or declares it dead. The pool spawns it for a client, `InboundTunnel::serve` is it for a server.
//!
//! The peer is authenticated but not trusted: every count here has a limit, and what it can make us do for free is paid from [`Driver::patience`].

mod blocks;
mod control;
mod end;
mod frames;
mod records;

use std::future::Future;
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use http::StatusCode;
use tokio::time::Sleep;
use tokio_util::sync::WaitForCancellationFutureOwned;

use self::end::CloseOnDrop;
use crate::buffer::{BUFFER, Buffer};
use crate::hbone::frame::{self, Head, code, flag, kind, setting};
use crate::hbone::headers;
use crate::hbone::hpack::{Decoder, Field, HpackError};
use crate::hbone::queue::queued_in_all;
use crate::hbone::server::InboundRequest;
use crate::hbone::stream::{Stream, Unwelcome};
use crate::hbone::tunnel::{
    CONNECTION_WINDOW, Closed, QUEUED_LIMIT, Role, SMALL_WINDOW, STREAM_WINDOW, Status, Tunnel,
};
use crate::hbone::{Baggage, ServeEnd};
use crate::socket;
use crate::tls::Opener;

/// Largest frame we accept, and announce.
const FRAME_LIMIT: usize = 1 << 20;
/// Largest header list, decoded, as a server and as a client.
const SERVER_HEADER_LIST: usize = 64 * 1024;
const CLIENT_HEADER_LIST: usize = 16 * 1024;
/// Largest header block, encoded, over HEADERS and its CONTINUATIONs; and how many of these.
const BLOCK_LIMIT: usize = 64 * 1024;
const CONTINUATIONS: u32 = 32;
/// Largest payload of frames that are neither DATA nor header blocks.
const CONTROL_LIMIT: usize = 16 * 1024;
/// Frames that cost us something and the peer nothing: so many at once, and so many each second.
const PATIENCE: f64 = 4096.0;
const PATIENCE_PER_SECOND: f64 = 1024.0;
/// KeyUpdates in ten seconds.
const KEY_UPDATES: u32 = 32;
/// Handshake messages after the handshake are tickets and key updates: small.
const POST_HANDSHAKE_LIMIT: usize = 16 * 1024;
/// Ranges gathered for one delivery.
const GATHER: usize = 32;
/// Reads before other tasks get their turn.
const TURN: u32 = 8;
/// Refill the connection window when this much of it is used.
const CONNECTION_REFILL: i64 = CONNECTION_WINDOW / 4;
/// What our PINGs carry: to hear from the peer, and to learn that it has seen our first GOAWAY.
const PING_ALIVE: [u8; 8] = *b"undermsh";
/// Sent beside them for a request that is not answered; any answer is one, so nobody looks for this one.
pub(in crate::hbone) const PING_ANYBODY: [u8; 8] = *b"anybody?";
const PING_GOODBYE: [u8; 8] = *b"goodbye!";
/// How often the round trip is measured while data flows.
const MEASURE_INTERVAL: Duration = Duration::from_secs(1);

/// Timers of a tunnel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timers {
    pub(super) preface: Duration,
    pub(super) ping_interval: Duration,
    pub(super) ping_timeout: Duration,
    /// Close when there was no stream for this long.
    pub(super) idle: Option<Duration>,
}

/// A broken rule: the code for GOAWAY and a word for logs.
struct Violation(u32, &'static str);
type Checked<T = ()> = Result<T, Violation>;

/// Where in a frame the next byte is.
enum Place {
    /// The client's preface; so many bytes matched.
    Preface(usize),
    Head([u8; frame::HEADER], usize),
    /// DATA: bytes left of payload and of padding; the pad length byte is still to come if `None`.
    Data {
        stream: Option<Arc<Stream>>,
        left: usize,
        padding: Option<usize>,
        end: bool,
    },
    /// Any other frame, gathered whole.
    Whole(Head),
    /// A frame that is ignored; so many bytes left.
    Skip(usize),
}

/// A header block in the making.
struct Block {
    stream: u32,
    end_stream: bool,
    bytes: Vec<u8>,
    continuations: u32,
}

pub(super) struct Driver<H> {
    tunnel: Arc<Tunnel>,
    opener: Opener,
    on_request: H,
    /// See [`super::AcceptorConfig::any_address`].
    any_address: bool,
    timers: Timers,
    /// Sealed bytes `start..end` of `buffer` wait to be opened; without a buffer they are in `rest`, the beginning of one record.
    buffer: Option<Buffer>,
    start: usize,
    end: usize,
    rest: Vec<u8>,
    /// Content that arrived with the handshake, already opened.
    opened: Vec<u8>,
    place: Place,
    payload: Vec<u8>,
    block: Option<Block>,
    decoder: Decoder,
    /// Ranges of the read buffer for one stream, delivered together.
    gathered: Vec<Range<usize>>,
    gathered_for: Option<Arc<Stream>>,
    /// Frames to send at the end of a turn.
    out: Vec<u8>,
    post_handshake: Vec<u8>,
    key_updates: (Instant, u32),
    first_frame: bool,
    connection_window: i64,
    last_peer_stream: u32,
    patience: f64,
    patience_at: Instant,
    /// The window that our last SETTINGS gave to streams, and since when the peer has yet to acknowledge them.
    offered: i64,
    unacknowledged: Option<Instant>,
    tick: Pin<Box<Sleep>>,
    drain: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    goaway_sent: Goaway,
    /// When the first GOAWAY was sent.
    announced: Option<Instant>,
    /// The peer said GOAWAY.
    peer_gone: bool,
    retire: Option<Instant>,
    ping_sent: Option<Instant>,
    measured_at: Option<Instant>,
    heard: bool,
    refused: u64,
}

#[derive(PartialEq, Eq, Clone, Copy)]
enum Goaway {
    No,
    /// The peer may still open streams that it sent before it heard us.
    Announced,
    Final,
}

impl<H: FnMut(InboundRequest)> Driver<H> {
    /// `received` and `opened` are what arrived with the handshake. Writes the preface and SETTINGS.
    pub(super) fn new(
        tunnel: Arc<Tunnel>,
        opener: Opener,
        received: &[u8],
        opened: Vec<u8>,
        max_streams: u32,
        timers: Timers,
        on_request: H,
    ) -> Self {
        let role = tunnel.role;
        let mut buffer = None;
        if !received.is_empty() {
            let mut fresh = Buffer::take();
            fresh[..received.len()].copy_from_slice(received);
            buffer = Some(fresh);
        }
        tunnel.control(|out| match role {
            Role::Client => {
                out.extend_from_slice(frame::PREFACE);
                frame::settings(
                    out,
                    &[
                        (setting::ENABLE_PUSH, 0),
                        (setting::INITIAL_WINDOW_SIZE, STREAM_WINDOW as u32),
                        (setting::MAX_FRAME_SIZE, FRAME_LIMIT as u32),
                        (setting::MAX_HEADER_LIST_SIZE, CLIENT_HEADER_LIST as u32),
                    ],
                );
                frame::window_update(out, 0, (CONNECTION_WINDOW - frame::DEFAULT_WINDOW) as u32);
            }
            Role::Server => {
                frame::settings(
                    out,
                    &[
                        (setting::MAX_CONCURRENT_STREAMS, max_streams),
                        (setting::INITIAL_WINDOW_SIZE, STREAM_WINDOW as u32),
                        (setting::MAX_FRAME_SIZE, FRAME_LIMIT as u32),
                        (setting::MAX_HEADER_LIST_SIZE, SERVER_HEADER_LIST as u32),
                    ],
                );
                frame::window_update(out, 0, (CONNECTION_WINDOW - frame::DEFAULT_WINDOW) as u32);
            }
        });
        let list = if role == Role::Server { SERVER_HEADER_LIST } else { CLIENT_HEADER_LIST };
        let place = if role == Role::Server { Place::Preface(0) } else { Place::Head([0; frame::HEADER], 0) };
        let now = Instant::now();
        Self {
            tunnel,
            opener,
            on_request,
            any_address: false,
            timers,
            buffer,
            start: 0,
            end: received.len(),
            rest: Vec::new(),
            opened,
            place,
            payload: Vec::new(),
            block: None,
            decoder: Decoder::new(list),
            gathered: Vec::with_capacity(GATHER),
            gathered_for: None,
            out: Vec::new(),
            post_handshake: Vec::new(),
            key_updates: (now, 0),
            first_frame: true,
            connection_window: CONNECTION_WINDOW,
            last_peer_stream: 0,
            patience: PATIENCE,
            patience_at: now,
            offered: STREAM_WINDOW,
            unacknowledged: Some(now),
            tick: Box::pin(tokio::time::sleep(timers.preface)),
            drain: None,
            goaway_sent: Goaway::No,
            announced: None,
            peer_gone: false,
            retire: None,
            ping_sent: None,
            measured_at: None,
            heard: false,
            refused: 0,
        }
    }

    /// There are no more new streams after this time: one of the two certificates ends.
    pub(super) fn retire_at(mut self, time: SystemTime) -> Self {
        let left = time.duration_since(mesh_runtime::clock::now()).unwrap_or_default();
        // Far-away instants overflow; a day longer than any mesh certificate is as good as never.
        self.retire = Some(Instant::now() + left.min(Duration::from_secs(400 * 86_400)));
        self
    }

    pub(super) fn any_address(mut self, any: bool) -> Self {
        self.any_address = any;
        self
    }

    pub(super) fn drain_on(mut self, drain: WaitForCancellationFutureOwned) -> Self {
        self.drain = Some(Box::pin(drain));
        self
    }

    /// Drives until the tunnel is over.
    pub(super) async fn run(mut self) -> ServeEnd {
        let guard = CloseOnDrop(self.tunnel.clone());
        std::future::poll_fn(|cx| self.poll(cx)).await;
        let end = match self.tunnel.closed() {
            Some(Closed::Protocol(word)) => ServeEnd::Protocol(word),
            Some(Closed::Done(_) | Closed::Purged) | None => ServeEnd::Closed,
            Some(Closed::Lost(_) | Closed::Alert(_) | Closed::Preface) => ServeEnd::Lost,
        };
        self.linger(end).await;
        drop(guard);
        end
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        mesh_runtime::failpoint::pass("tunnel");
        self.tunnel.driver.register(cx.waker());
        let mut turn = 0;
        let mut broken = None;
        if self.buffer.is_some() || !self.opened.is_empty() {
            self.turn(None);
        }
        loop {
            let mut status = self.tunnel.status();
            if status.closed {
                return Poll::Ready(());
            }
            if self.poll_drain(cx, status) | self.poll_tick(cx) {
                status = self.tunnel.status();
            }
            if status.blocked
                && broken.is_none()
                && let Err(error) = self.poll_flush(cx)
            {
                // First read what the peer sent before it went away: it may tell why.
                broken = Some(Closed::Lost(error.to_string().into()));
            }
            if status.closed {
                continue;
            }
            if turn == TURN {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            turn += 1;
            if broken.is_none() {
                match self.tunnel.socket.poll_read_ready(cx) {
                    Poll::Pending => {
                        self.give_back();
                        return Poll::Pending;
                    }
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(error)) => {
                        self.tunnel.close(Closed::Lost(error.to_string().into()));
                        continue;
                    }
                }
            }
            let buffer = self.buffer.get_or_insert_with(|| {
                let mut buffer = Buffer::take();
                buffer[..self.end].copy_from_slice(&std::mem::take(&mut self.rest));
                buffer
            });
            let read = match broken {
                None => socket::read(&self.tunnel.socket, &mut buffer[self.end..]),
                Some(_) => socket::read_unasked(&self.tunnel.socket, &mut buffer[self.end..]),
            };
            match read {
                Ok(0) => {
                    // Without TLS' goodbye the end may be an attacker's; open streams see a reset either way.
                    let reason = match broken.take() {
                        Some(reason) => reason,
                        None if self.tunnel.active() == 0 => Closed::Done("peer closed"),
                        None => Closed::Lost("peer closed with open streams".into()),
                    };
                    self.tunnel.close(reason);
                }
                Ok(count) => {
                    self.heard = true;
                    self.tunnel.heard();
                    let end = self.end + count;
                    self.turn(Some(end));
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                    if let Some(reason) = broken.take() {
                        self.tunnel.close(reason);
                    }
                }
                Err(error) => self.tunnel.close(Closed::Lost(error.to_string().into())),
            }
        }
    }

    /// Writes what waits, as far as the socket takes it.
    fn poll_flush(&self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.tunnel.socket.poll_write_ready(cx) {
            Poll::Ready(ready) => ready?,
            Poll::Pending => return Ok(()),
        }
        self.tunnel.flush()?;
        // Still blocked: ask again, so that the reactor knows we wait.
        if self.tunnel.is_blocked() && self.tunnel.socket.poll_write_ready(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
        Ok(())
    }

    /// Nothing to read: the buffer is for others. What is left of it is the beginning of a record, which a peer may leave so for ever.
    fn give_back(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            self.rest = buffer[self.start..self.end].to_vec();
            (self.start, self.end) = (0, self.rest.len());
        }
    }
}
