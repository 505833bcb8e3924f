//! The one task of a tunnel: reads, opens records in place, follows the HTTP/2 frames and delivers DATA straight from the read buffer; flushes what
//! the socket did not take; keeps the peer alive or declares it dead. The pool spawns it for a client, `InboundTunnel::serve` is it for a server.
//!
//! The peer is authenticated but not trusted: every count here has a limit, and what it can make us do for free is paid from [`Driver::patience`].

use std::future::Future;
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::StatusCode;
use tokio::time::Sleep;
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::frame::{self, Head, code, flag, kind, setting};
use super::headers;
use super::hpack::{Decoder, Field, HpackError};
use super::server::InboundRequest;
use super::stream::{Recv, Stream};
use super::tunnel::{CONNECTION_WINDOW, Closed, Role, STREAM_WINDOW, Status, Tunnel};
use super::{Baggage, ServeEnd};
use crate::buffer::{BUFFER, Buffer};
use crate::socket;
use crate::tls::{CONTENT_ALERT, CONTENT_DATA, CONTENT_HANDSHAKE, Front, Opener};

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
    timers: Timers,
    /// Sealed bytes `start..end` of `buffer` wait to be opened; no buffer is held while there are none.
    buffer: Option<Buffer>,
    start: usize,
    end: usize,
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
    tick: Pin<Box<Sleep>>,
    drain: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    goaway_sent: Goaway,
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
            timers,
            buffer,
            start: 0,
            end: received.len(),
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
            tick: Box::pin(tokio::time::sleep(timers.preface)),
            drain: None,
            goaway_sent: Goaway::No,
            retire: None,
            ping_sent: None,
            measured_at: None,
            heard: false,
            refused: 0,
        }
    }

    /// Opens no more streams after this time: the certificate ends.
    pub(super) fn retire_after(mut self, time: Duration) -> Self {
        // Far-away instants overflow; a day longer than any mesh certificate is as good as never.
        self.retire = Some(Instant::now() + time.min(Duration::from_secs(400 * 86_400)));
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
            Some(Closed::Done(_)) | None => ServeEnd::Closed,
            Some(Closed::Lost(_) | Closed::Alert(_) | Closed::Preface) => ServeEnd::Lost,
        };
        self.linger(end).await;
        drop(guard);
        end
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.tunnel.driver.register(cx.waker());
        let mut turn = 0;
        if self.end > 0 || !self.opened.is_empty() {
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
            if status.pending {
                match self.tunnel.socket.poll_write_ready(cx) {
                    Poll::Ready(Ok(())) => {
                        if let Err(error) = self.tunnel.flush() {
                            self.tunnel.close(Closed::Lost(error.to_string().into()));
                            continue;
                        }
                        // Still pending: ask again, so that the reactor knows we wait.
                        if self.tunnel.has_pending() && self.tunnel.socket.poll_write_ready(cx).is_ready() {
                            cx.waker().wake_by_ref();
                        }
                    }
                    Poll::Ready(Err(error)) => {
                        self.tunnel.close(Closed::Lost(error.to_string().into()));
                        continue;
                    }
                    Poll::Pending => {}
                }
            }
            if status.closed {
                continue;
            }
            if turn == TURN {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            turn += 1;
            match self.tunnel.socket.poll_read_ready(cx) {
                Poll::Pending => {
                    if self.start == self.end {
                        self.buffer = None;
                    }
                    return Poll::Pending;
                }
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => {
                    self.tunnel.close(Closed::Lost(error.to_string().into()));
                    continue;
                }
            }
            let buffer = self.buffer.get_or_insert_with(Buffer::take);
            match socket::read(&self.tunnel.socket, &mut buffer[self.end..]) {
                Ok(0) => {
                    // Without TLS' goodbye the end may be an attacker's; open streams see a reset either way.
                    let reason = if self.tunnel.active() == 0 {
                        Closed::Done("peer closed")
                    } else {
                        Closed::Lost("peer closed with open streams".into())
                    };
                    self.tunnel.close(reason);
                }
                Ok(count) => {
                    self.heard = true;
                    let end = self.end + count;
                    self.turn(Some(end));
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(error) => self.tunnel.close(Closed::Lost(error.to_string().into())),
            }
        }
    }

    /// Opens and follows what was received, then sends what that called for.
    fn turn(&mut self, end: Option<usize>) {
        if let Some(end) = end {
            self.end = end;
        }
        let result = self.records();
        if !self.out.is_empty() {
            let out = std::mem::take(&mut self.out);
            self.tunnel.control(|frames| frames.extend_from_slice(&out));
            self.out = out;
            self.out.clear();
        }
        if let Err(Violation(code, word)) = result {
            tracing::debug!(peer = %self.tunnel.peer, from = %self.tunnel.remote, word, "tunnel violates the protocol");
            self.tunnel.control(|out| frame::goaway(out, self.last_peer_stream, code, word));
            self.tunnel.close(Closed::Protocol(word));
        }
    }

    fn records(&mut self) -> Checked {
        if !self.opened.is_empty() {
            let opened = std::mem::take(&mut self.opened);
            self.content(&opened, 0..opened.len())?;
            self.deliver(&opened);
        }
        let Some(mut buffer) = self.buffer.take() else { return Ok(()) };
        let result = self.records_in(&mut buffer);
        self.deliver(&buffer);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.start > 0 {
            buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        self.buffer = Some(buffer);
        result
    }

    fn records_in(&mut self, buffer: &mut [u8]) -> Checked {
        loop {
            let length = match Opener::front(&buffer[self.start..self.end]) {
                Ok(Front::Record(length)) => length,
                Ok(Front::Incomplete(_)) => return Ok(()),
                Err(_) => return Err(Violation(code::PROTOCOL_ERROR, "bad_record")),
            };
            let at = self.start;
            let (content_type, range) = self
                .opener
                .open(&mut buffer[at..at + length])
                .map_err(|_| Violation(code::PROTOCOL_ERROR, "bad_record"))?;
            self.start += length;
            let range = at + range.start..at + range.end;
            match content_type {
                CONTENT_DATA => {
                    if range.is_empty() {
                        self.pay(1.0)?;
                    }
                    self.content(buffer, range)?;
                }
                CONTENT_HANDSHAKE => self.post_handshake(&buffer[range])?,
                CONTENT_ALERT => {
                    let alert = buffer[range].get(1).copied().unwrap_or_default();
                    let reason = match alert {
                        0 if self.tunnel.active() == 0 => Closed::Done("peer closed"),
                        0 => Closed::Lost("peer closed with open streams".into()),
                        alert => Closed::Alert(alert),
                    };
                    self.deliver(buffer);
                    self.tunnel.close(reason);
                    return Ok(());
                }
                _ => return Err(Violation(code::PROTOCOL_ERROR, "bad_record")),
            }
        }
    }

    /// Tickets are ignored, key updates followed (RFC 8446 4.6).
    fn post_handshake(&mut self, bytes: &[u8]) -> Checked {
        self.post_handshake.extend_from_slice(bytes);
        if self.post_handshake.len() > POST_HANDSHAKE_LIMIT {
            return Err(Violation(code::ENHANCE_YOUR_CALM, "post_handshake_flood"));
        }
        while let Some(&[message, l0, l1, l2]) = self.post_handshake.first_chunk::<4>() {
            let length = 4 + u32::from_be_bytes([0, l0, l1, l2]) as usize;
            if length > POST_HANDSHAKE_LIMIT {
                return Err(Violation(code::PROTOCOL_ERROR, "bad_post_handshake"));
            }
            if self.post_handshake.len() < length {
                return Ok(());
            }
            let requested = self.post_handshake.get(4).copied();
            self.post_handshake.drain(..length);
            match (message, self.tunnel.role) {
                (4, Role::Client) => self.pay(16.0)?,
                (24, _) if length == 5 && self.post_handshake.is_empty() => {
                    let (since, count) = &mut self.key_updates;
                    if since.elapsed() > Duration::from_secs(10) {
                        (*since, *count) = (Instant::now(), 0);
                    }
                    *count += 1;
                    if *count > KEY_UPDATES {
                        return Err(Violation(code::ENHANCE_YOUR_CALM, "key_update_flood"));
                    }
                    self.opener =
                        self.tunnel.next_opener().map_err(|_| Violation(code::PROTOCOL_ERROR, "bad_key_update"))?;
                    if requested == Some(1) {
                        self.tunnel.answer_key_update();
                    }
                }
                _ => return Err(Violation(code::PROTOCOL_ERROR, "bad_post_handshake")),
            }
        }
        Ok(())
    }

    /// Follows the frames in `base[range]`.
    fn content(&mut self, base: &[u8], mut range: Range<usize>) -> Checked {
        while !range.is_empty() {
            match &mut self.place {
                Place::Preface(matched) => {
                    let wanted = &frame::PREFACE[*matched..];
                    let length = wanted.len().min(range.len());
                    if base[range.start..range.start + length] != wanted[..length] {
                        return Err(Violation(code::PROTOCOL_ERROR, "bad_preface"));
                    }
                    range.start += length;
                    *matched += length;
                    if *matched == frame::PREFACE.len() {
                        self.place = Place::Head([0; frame::HEADER], 0);
                    }
                }
                Place::Head(bytes, have) => {
                    let length = (frame::HEADER - *have).min(range.len());
                    bytes[*have..*have + length].copy_from_slice(&base[range.start..range.start + length]);
                    range.start += length;
                    *have += length;
                    if *have == frame::HEADER {
                        let head = Head::parse(bytes);
                        self.place = self.begin(head)?;
                        self.complete_if_empty(base)?;
                    }
                }
                Place::Data { stream, left, padding, .. } => {
                    if padding.is_none() {
                        let pad = usize::from(base[range.start]);
                        range.start += 1;
                        *left -= 1;
                        if pad > *left {
                            return Err(Violation(code::PROTOCOL_ERROR, "bad_padding"));
                        }
                        *left -= pad;
                        *padding = Some(pad);
                    }
                    let length = (*left).min(range.len());
                    if length > 0 {
                        let piece = range.start..range.start + length;
                        range.start += length;
                        *left -= length;
                        if let Some(stream) = stream.clone() {
                            self.gather(base, stream, piece);
                        }
                    }
                    if let Place::Data { left: 0, padding: Some(padding), .. } = &mut self.place {
                        let length = (*padding).min(range.len());
                        range.start += length;
                        *padding -= length;
                    }
                    self.complete_if_empty(base)?;
                }
                Place::Whole(head) => {
                    let length = (head.length - self.payload.len()).min(range.len());
                    self.payload.extend_from_slice(&base[range.start..range.start + length]);
                    range.start += length;
                    self.complete_if_empty(base)?;
                }
                Place::Skip(left) => {
                    let length = (*left).min(range.len());
                    range.start += length;
                    *left -= length;
                    self.complete_if_empty(base)?;
                }
            }
        }
        Ok(())
    }

    fn gather(&mut self, base: &[u8], stream: Arc<Stream>, piece: Range<usize>) {
        let other = self.gathered_for.as_ref().is_some_and(|current| !Arc::ptr_eq(current, &stream));
        if other || self.gathered.len() == GATHER {
            self.deliver(base);
        }
        self.gathered_for = Some(stream);
        self.gathered.push(piece);
    }

    /// Hands over what was gathered. Must run before `base` changes and before anything that ends the stream.
    fn deliver(&mut self, base: &[u8]) {
        let Some(stream) = self.gathered_for.take() else { return };
        let grant = stream.deliver(&self.tunnel, base, &self.gathered);
        self.gathered.clear();
        self.grant(&stream, grant);
    }

    fn grant(&mut self, stream: &Stream, grant: u32) {
        if grant == 0 {
            return;
        }
        frame::window_update(&mut self.out, stream.id, grant);
        if self.ping_sent.is_none() && self.measured_at.is_none_or(|at| at.elapsed() > MEASURE_INTERVAL) {
            self.ping();
        }
    }

    fn ping(&mut self) {
        self.ping_sent = Some(Instant::now());
        frame::ping(&mut self.out, false, *b"undermsh");
    }

    /// Judges a frame by its header and decides how its payload is read.
    fn begin(&mut self, head: Head) -> Checked<Place> {
        if head.length > FRAME_LIMIT {
            return Err(Violation(code::FRAME_SIZE_ERROR, "frame_too_large"));
        }
        if std::mem::replace(&mut self.first_frame, false)
            && (head.kind != kind::SETTINGS || head.flags & flag::ACK != 0)
        {
            return Err(Violation(code::PROTOCOL_ERROR, "no_settings"));
        }
        if let Some(block) = &self.block
            && (head.kind != kind::CONTINUATION || head.stream != block.stream)
        {
            return Err(Violation(code::PROTOCOL_ERROR, "interrupted_headers"));
        }
        self.payload.clear();
        match head.kind {
            kind::DATA => return self.begin_data(head),
            kind::HEADERS | kind::CONTINUATION => {
                let before = self.block.as_ref().map_or(0, |block| block.bytes.len());
                if before + head.length > BLOCK_LIMIT {
                    return Err(Violation(code::ENHANCE_YOUR_CALM, "headers_too_large"));
                }
            }
            kind::PRIORITY
            | kind::RST_STREAM
            | kind::SETTINGS
            | kind::PUSH_PROMISE
            | kind::PING
            | kind::GOAWAY
            | kind::WINDOW_UPDATE => {
                if head.length > CONTROL_LIMIT {
                    return Err(Violation(code::FRAME_SIZE_ERROR, "frame_too_large"));
                }
            }
            _ => {
                self.pay(1.0 + head.length as f64 / 1024.0)?;
                return Ok(Place::Skip(head.length));
            }
        }
        Ok(Place::Whole(head))
    }

    fn begin_data(&mut self, head: Head) -> Checked<Place> {
        if head.stream == 0 {
            return Err(Violation(code::PROTOCOL_ERROR, "data_on_stream_0"));
        }
        let end = head.flags & flag::END_STREAM != 0;
        let padded = head.flags & flag::PADDED != 0;
        if padded && head.length == 0 {
            return Err(Violation(code::FRAME_SIZE_ERROR, "bad_padding"));
        }
        if head.length == usize::from(padded) && !end {
            // Nothing but a frame header: RUSTSEC-2026-0258's flood.
            self.pay(1.0)?;
        }
        let length = head.length as i64;
        self.connection_window -= length;
        if self.connection_window < 0 {
            return Err(Violation(code::FLOW_CONTROL_ERROR, "connection_window"));
        }
        let used = CONNECTION_WINDOW - self.connection_window;
        if used >= CONNECTION_REFILL {
            frame::window_update(&mut self.out, 0, used as u32);
            self.connection_window = CONNECTION_WINDOW;
        }
        let cached = self.gathered_for.as_ref().filter(|stream| stream.id == head.stream).cloned();
        let stream = match cached.or_else(|| self.tunnel.stream(head.stream)) {
            Some(stream) => match stream.count_received(length) {
                Ok(()) => Some(stream),
                Err(Recv::Open) => return Err(Violation(code::FLOW_CONTROL_ERROR, "stream_window")),
                Err(Recv::Ended) => {
                    self.pay(4.0)?;
                    frame::rst_stream(&mut self.out, head.stream, code::STREAM_CLOSED);
                    stream.peer_reset(code::STREAM_CLOSED);
                    self.tunnel.settle(&stream);
                    None
                }
                Err(_) => None,
            },
            None if self.is_idle(head.stream) => return Err(Violation(code::PROTOCOL_ERROR, "data_on_idle_stream")),
            // Still under way when we ended the stream.
            None => None,
        };
        Ok(Place::Data { stream, left: head.length, padding: if padded { None } else { Some(0) }, end })
    }

    /// Whether nobody has ever opened this stream.
    fn is_idle(&self, id: u32) -> bool {
        match self.tunnel.role {
            Role::Server => id.is_multiple_of(2) || id > self.last_peer_stream,
            Role::Client => id.is_multiple_of(2) || !self.tunnel.was_opened(id),
        }
    }

    /// Acts on the current frame if its payload is complete.
    fn complete_if_empty(&mut self, base: &[u8]) -> Checked {
        let head_place = || Place::Head([0; frame::HEADER], 0);
        match &self.place {
            Place::Data { left: 0, padding: Some(0), .. } => {
                let Place::Data { stream, end, .. } = std::mem::replace(&mut self.place, head_place()) else {
                    return Ok(());
                };
                let Some(stream) = stream else { return Ok(()) };
                if end {
                    self.deliver(base);
                    stream.end();
                    self.tunnel.settle(&stream);
                } else if self.gathered_for.is_none() {
                    // Padding alone filled the window.
                    let grant = stream.consume_padding(&self.tunnel);
                    self.grant(&stream, grant);
                }
            }
            Place::Whole(head) if self.payload.len() == head.length => {
                let head = *head;
                self.place = head_place();
                let payload = std::mem::take(&mut self.payload);
                let result = self.act(base, head, &payload);
                self.payload = payload;
                if self.payload.capacity() > CONTROL_LIMIT {
                    self.payload = Vec::new();
                }
                result?;
            }
            Place::Skip(0) => self.place = head_place(),
            _ => {}
        }
        Ok(())
    }

    fn act(&mut self, base: &[u8], head: Head, payload: &[u8]) -> Checked {
        match head.kind {
            kind::HEADERS => self.on_headers(base, head, payload),
            kind::CONTINUATION => self.on_continuation(base, head, payload),
            kind::SETTINGS => self.on_settings(head, payload),
            kind::PING => self.on_ping(head, payload),
            kind::RST_STREAM => {
                let &[c0, c1, c2, c3] = payload else {
                    return Err(Violation(code::FRAME_SIZE_ERROR, "bad_rst_stream"));
                };
                if head.stream == 0 || self.is_idle(head.stream) {
                    return Err(Violation(code::PROTOCOL_ERROR, "rst_on_idle_stream"));
                }
                self.deliver(base);
                match self.tunnel.stream(head.stream) {
                    Some(stream) => {
                        let unanswered = stream.peer_reset(u32::from_be_bytes([c0, c1, c2, c3]));
                        self.tunnel.settle(&stream);
                        if unanswered {
                            self.pay(4.0)?;
                        }
                    }
                    None => self.pay(1.0)?,
                }
                Ok(())
            }
            kind::WINDOW_UPDATE => {
                let &[w0, w1, w2, w3] = payload else {
                    return Err(Violation(code::FRAME_SIZE_ERROR, "bad_window_update"));
                };
                let increment = i64::from(u32::from_be_bytes([w0, w1, w2, w3]) & 0x7fff_ffff);
                if head.stream != 0 && self.is_idle(head.stream) {
                    return Err(Violation(code::PROTOCOL_ERROR, "window_on_idle_stream"));
                }
                if increment < 1024 {
                    self.pay(1.0)?;
                }
                if increment == 0 && head.stream == 0 {
                    return Err(Violation(code::PROTOCOL_ERROR, "empty_window_update"));
                }
                if increment == 0 || !self.tunnel.granted(head.stream, increment) {
                    if head.stream == 0 {
                        return Err(Violation(code::FLOW_CONTROL_ERROR, "window_overflow"));
                    }
                    // An error of that stream: counted like a reset by the peer, since the peer caused it.
                    self.pay(4.0)?;
                    if let Some(stream) = self.tunnel.stream(head.stream) {
                        let error = if increment == 0 { code::PROTOCOL_ERROR } else { code::FLOW_CONTROL_ERROR };
                        frame::rst_stream(&mut self.out, head.stream, error);
                        stream.peer_reset(error);
                        self.tunnel.settle(&stream);
                    }
                }
                Ok(())
            }
            kind::GOAWAY => {
                let Some(&[l0, l1, l2, l3]) = payload.first_chunk::<4>() else {
                    return Err(Violation(code::FRAME_SIZE_ERROR, "bad_goaway"));
                };
                if head.stream != 0 {
                    return Err(Violation(code::PROTOCOL_ERROR, "goaway_on_stream"));
                }
                self.pay(4.0)?;
                self.tunnel.gone_away(u32::from_be_bytes([l0, l1, l2, l3]) & 0x7fff_ffff);
                Ok(())
            }
            kind::PRIORITY => {
                if payload.len() != 5 || head.stream == 0 {
                    return Err(Violation(code::FRAME_SIZE_ERROR, "bad_priority"));
                }
                self.pay(1.0)
            }
            _ => Err(Violation(code::PROTOCOL_ERROR, "push_promise")),
        }
    }

    fn on_headers(&mut self, base: &[u8], head: Head, payload: &[u8]) -> Checked {
        if head.stream == 0 || (self.tunnel.role == Role::Server && head.stream.is_multiple_of(2)) {
            return Err(Violation(code::PROTOCOL_ERROR, "headers_on_wrong_stream"));
        }
        let mut fragment = payload;
        let mut padding = 0;
        if head.flags & flag::PADDED != 0 {
            let (&length, rest) = fragment.split_first().ok_or(Violation(code::FRAME_SIZE_ERROR, "bad_padding"))?;
            (padding, fragment) = (usize::from(length), rest);
        }
        if head.flags & flag::PRIORITY != 0 {
            fragment = fragment.get(5..).ok_or(Violation(code::FRAME_SIZE_ERROR, "bad_headers"))?;
        }
        let length = fragment.len().checked_sub(padding).ok_or(Violation(code::PROTOCOL_ERROR, "bad_padding"))?;
        let block = Block {
            stream: head.stream,
            end_stream: head.flags & flag::END_STREAM != 0,
            bytes: fragment[..length].to_vec(),
            continuations: 0,
        };
        if head.flags & flag::END_HEADERS == 0 {
            self.block = Some(block);
            return Ok(());
        }
        self.on_block(base, block)
    }

    fn on_continuation(&mut self, base: &[u8], head: Head, payload: &[u8]) -> Checked {
        let Some(mut block) = self.block.take() else {
            return Err(Violation(code::PROTOCOL_ERROR, "continuation_of_nothing"));
        };
        block.bytes.extend_from_slice(payload);
        block.continuations += 1;
        if block.continuations > CONTINUATIONS {
            return Err(Violation(code::ENHANCE_YOUR_CALM, "continuation_flood"));
        }
        if head.flags & flag::END_HEADERS == 0 {
            self.block = Some(block);
            return Ok(());
        }
        self.on_block(base, block)
    }

    fn on_block(&mut self, base: &[u8], block: Block) -> Checked {
        let fields = match self.decoder.decode(&block.bytes) {
            Ok(fields) => fields,
            Err(HpackError::Malformed) => return Err(Violation(code::COMPRESSION_ERROR, "bad_hpack")),
            Err(HpackError::TooLarge) => return Err(Violation(code::ENHANCE_YOUR_CALM, "headers_too_large")),
        };
        match self.tunnel.role {
            Role::Server if block.stream > self.last_peer_stream => {
                self.last_peer_stream = block.stream;
                self.on_request(&fields, &block)
            }
            Role::Client if self.is_idle(block.stream) => {
                Err(Violation(code::PROTOCOL_ERROR, "headers_on_idle_stream"))
            }
            _ => {
                let Some(stream) = self.tunnel.stream(block.stream) else { return self.pay(1.0) };
                if self.tunnel.role == Role::Client {
                    match headers::parse_answer(&fields) {
                        Some((status, _)) if status.is_informational() && !block.end_stream => return self.pay(1.0),
                        Some((status, baggage)) => {
                            if !stream.set_answer(status, baggage) {
                                return self.stream_error(&stream);
                            }
                            if block.end_stream {
                                stream.end();
                                self.tunnel.settle(&stream);
                            }
                            return Ok(());
                        }
                        None => {}
                    }
                }
                // Trailers: their content means nothing to a tunnel, their END_STREAM does.
                let pseudo = fields.iter().any(|field| field.name.starts_with(b":"));
                if pseudo || !block.end_stream {
                    return self.stream_error(&stream);
                }
                self.deliver(base);
                stream.end();
                self.tunnel.settle(&stream);
                Ok(())
            }
        }
    }

    fn stream_error(&mut self, stream: &Stream) -> Checked {
        self.pay(4.0)?;
        frame::rst_stream(&mut self.out, stream.id, code::PROTOCOL_ERROR);
        stream.peer_reset(code::PROTOCOL_ERROR);
        self.tunnel.settle(stream);
        Ok(())
    }

    fn on_request(&mut self, fields: &[Field], block: &Block) -> Checked {
        if self.goaway_sent == Goaway::Final {
            return Ok(());
        }
        let Some(stream) = self.tunnel.opened_by_peer(block.stream) else {
            self.refused += 1;
            self.pay(1.0)?;
            frame::rst_stream(&mut self.out, block.stream, code::REFUSED_STREAM);
            return Ok(());
        };
        if block.end_stream {
            stream.end();
        }
        match headers::parse_request(fields, self.tunnel.local.ip()) {
            Ok(request) => {
                (self.on_request)(InboundRequest::new(self.tunnel.clone(), stream, request));
                Ok(())
            }
            Err(problem) => {
                tracing::debug!(peer = %self.tunnel.peer, from = %self.tunnel.remote, %problem, "refused a request");
                super::server::count(problem);
                let _ = self.tunnel.answer(&stream, StatusCode::BAD_REQUEST, &Baggage::default());
                self.pay(2.0)
            }
        }
    }

    fn on_settings(&mut self, head: Head, payload: &[u8]) -> Checked {
        if head.stream != 0 {
            return Err(Violation(code::PROTOCOL_ERROR, "settings_on_stream"));
        }
        if head.flags & flag::ACK != 0 {
            return if payload.is_empty() {
                self.pay(1.0)
            } else {
                Err(Violation(code::FRAME_SIZE_ERROR, "bad_settings"))
            };
        }
        if payload.len() % 6 != 0 {
            return Err(Violation(code::FRAME_SIZE_ERROR, "bad_settings"));
        }
        self.pay(8.0)?;
        let (mut window, mut streams) = (None, None);
        for entry in payload.chunks_exact(6) {
            let &[i0, i1, v0, v1, v2, v3] = entry else { continue };
            let value = u32::from_be_bytes([v0, v1, v2, v3]);
            match u16::from_be_bytes([i0, i1]) {
                setting::ENABLE_PUSH if value > 1 => return Err(Violation(code::PROTOCOL_ERROR, "bad_settings")),
                setting::MAX_CONCURRENT_STREAMS => streams = Some(value),
                setting::INITIAL_WINDOW_SIZE if i64::from(value) > frame::MAX_WINDOW => {
                    return Err(Violation(code::FLOW_CONTROL_ERROR, "bad_settings"));
                }
                setting::INITIAL_WINDOW_SIZE => window = Some(i64::from(value)),
                setting::MAX_FRAME_SIZE if !(16_384..1 << 24).contains(&value) => {
                    return Err(Violation(code::PROTOCOL_ERROR, "bad_settings"));
                }
                _ => {}
            }
        }
        if !self.tunnel.configured(window, streams) {
            return Err(Violation(code::FLOW_CONTROL_ERROR, "window_overflow"));
        }
        frame::settings_ack(&mut self.out);
        Ok(())
    }

    fn on_ping(&mut self, head: Head, payload: &[u8]) -> Checked {
        let Ok(opaque) = <[u8; 8]>::try_from(payload) else {
            return Err(Violation(code::FRAME_SIZE_ERROR, "bad_ping"));
        };
        if head.stream != 0 {
            return Err(Violation(code::PROTOCOL_ERROR, "ping_on_stream"));
        }
        self.pay(2.0)?;
        if head.flags & flag::ACK == 0 {
            frame::ping(&mut self.out, true, opaque);
            return Ok(());
        }
        if let Some(sent) = self.ping_sent.take() {
            let sample = sent.elapsed().as_nanos() as u64;
            let old = self.tunnel.round_trip.load(Relaxed);
            self.tunnel.round_trip.store(if old == 0 { sample } else { (old * 7 + sample) / 8 }, Relaxed);
            self.measured_at = Some(Instant::now());
        }
        if self.goaway_sent == Goaway::Announced {
            self.goaway_sent = Goaway::Final;
            frame::goaway(&mut self.out, self.last_peer_stream, code::NO_ERROR, "");
        }
        Ok(())
    }

    /// Charges for a frame that costs the peer nothing.
    fn pay(&mut self, price: f64) -> Checked {
        self.patience -= price;
        if self.patience >= 0.0 {
            return Ok(());
        }
        let now = Instant::now();
        let earned = (now - self.patience_at).as_secs_f64() * PATIENCE_PER_SECOND;
        self.patience_at = now;
        self.patience = (self.patience + earned).min(PATIENCE);
        if self.patience < 0.0 { Err(Violation(code::ENHANCE_YOUR_CALM, "flood")) } else { Ok(()) }
    }

    // ---- timers and the end

    /// Returns whether it did something.
    fn poll_drain(&mut self, cx: &mut Context<'_>, mut status: Status) -> bool {
        let before = self.goaway_sent;
        if self.drain.as_mut().is_some_and(|drain| drain.as_mut().poll(cx).is_ready()) {
            self.drain = None;
            self.tunnel.drain();
        }
        if self.goaway_sent == Goaway::No && self.tunnel.drain_requested.load(Relaxed) {
            // First without a limit, so that requests under way are not lost; the answer to the PING shows that the peer knows (RFC 9113 6.8).
            self.goaway_sent = Goaway::Announced;
            self.tunnel.control(|out| {
                frame::goaway(out, 0x7fff_ffff, code::NO_ERROR, "");
                frame::ping(out, false, *b"goodbye!");
            });
            self.ping_sent = Some(Instant::now());
            status = self.tunnel.status();
        }
        if status.finished
            && (self.tunnel.role == Role::Client || self.goaway_sent != Goaway::Announced)
        {
            self.say_goodbye("drained");
        }
        before != self.goaway_sent
    }

    fn say_goodbye(&mut self, why: &'static str) {
        if self.goaway_sent != Goaway::Final {
            self.goaway_sent = Goaway::Final;
            self.tunnel.control(|out| frame::goaway(out, self.last_peer_stream, code::NO_ERROR, ""));
        }
        self.tunnel.say_goodbye();
        self.tunnel.close(Closed::Done(why));
    }

    /// Returns whether a timer was due.
    fn poll_tick(&mut self, cx: &mut Context<'_>) -> bool {
        let mut due = false;
        while self.tick.as_mut().poll(cx).is_ready() {
            due = true;
            if !self.tunnel.settled() {
                self.tunnel.close(Closed::Preface);
                return true;
            }
            if self.retire.is_some_and(|at| at <= Instant::now()) {
                self.tunnel.retire();
            }
            if self.timers.idle.is_some_and(|limit| self.tunnel.idle().is_some_and(|idle| idle >= limit)) {
                self.say_goodbye("idle");
                return true;
            }
            if self.heard {
                // Anything received proves that the peer lives.
                self.heard = false;
            } else if self.ping_sent.is_some_and(|sent| sent.elapsed() >= self.timers.ping_timeout) {
                self.tunnel.close(Closed::Lost("peer does not answer".into()));
                return true;
            }
            if self.ping_sent.is_none() {
                self.ping_sent = Some(Instant::now());
                self.tunnel.control(|out| frame::ping(out, false, *b"undermsh"));
            }
            let next = self.timers.ping_interval.min(self.timers.idle.unwrap_or(self.timers.ping_interval));
            self.tick.as_mut().reset(tokio::time::Instant::now() + next);
        }
        due
    }

    /// After the last frame: sends what is queued, then FIN, and reads on for a moment, so that the peer gets our reason before the socket's close.
    async fn linger(&mut self, end: ServeEnd) {
        if end == ServeEnd::Lost {
            socket::close(&self.tunnel.socket);
            return;
        }
        let goodbye = async {
            while self.tunnel.has_pending() {
                self.tunnel.socket.writable().await?;
                self.tunnel.flush()?;
            }
            socket::finish(&self.tunnel.socket);
            let mut buffer = Buffer::take();
            let mut read = 0;
            while read < 64 * BUFFER {
                self.tunnel.socket.readable().await?;
                match socket::read(&self.tunnel.socket, &mut buffer) {
                    Ok(0) => break,
                    Ok(count) => read += count,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
            io::Result::Ok(())
        };
        let _ = tokio::time::timeout(Duration::from_millis(500), goodbye).await;
        socket::close(&self.tunnel.socket);
    }
}

/// Whoever drops the driver ends the tunnel.
struct CloseOnDrop(Arc<Tunnel>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close(Closed::Lost("tunnel was cut".into()));
        socket::close(&self.0.socket);
    }
}
