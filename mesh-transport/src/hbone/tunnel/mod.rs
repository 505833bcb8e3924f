//! What the driver and the streams of a tunnel share: the sealing half of the connection, the flow-control windows for sending, the stream table.
//!
//! ```text
//!   copy task --reserve--> credit --read app--> slots --commit--> seal and queue               (tunnel lock, no await)
//!             --transmit--> write the queue, unless another task is at it                      (no lock)
//!   driver    --read, open (no lock)--> Stream::deliver --> app socket or queue                (stream lock)
//!             --flush the queue when the socket is writable--> wake the next waiting stream
//! ```
//!
//! Lock order: tunnel, then stream. The tunnel's is held for bookkeeping and sealing, the stream's also for a non-blocking system call; neither across
//! an await.

mod send;
mod streams;

use std::collections::{HashMap, VecDeque};
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, OnceLock};
use std::task::Waker;
use std::time::{Duration, Instant};

use futures_util::task::AtomicWaker;
use http::StatusCode;
use mesh_core::identity::Identity;
use mesh_runtime::paths::PathCounters;
use parking_lot::{Mutex, MutexGuard};
use tokio::net::TcpStream;

use crate::buffer::{BUFFER, Buffer};
use crate::hbone::driver::PING_ANYBODY;
use crate::hbone::frame::{self, Head, code, flag, kind};
use crate::hbone::stream::Stream;
use crate::hbone::{Authority, Baggage, ConnectRequest, HboneError, TraceParent, hpack};
use crate::path::Leg;
use crate::socket;
use crate::tls::{CONTENT_DATA, CONTENT_HANDSHAKE, KeySchedule, RECORD_CONTENT, RECORD_HEADER, Sealer, TRAILER};

/// Payload of one DATA frame: with its header it fills one record exactly, and it is within every peer's frame limit.
pub(crate) const PAYLOAD: usize = RECORD_CONTENT - frame::HEADER;
/// Where the payload begins in a slot.
pub(crate) const PAYLOAD_AT: usize = RECORD_HEADER + frame::HEADER;
/// Distance of two slots in a buffer.
pub(crate) const STRIDE: usize = RECORD_HEADER + RECORD_CONTENT + TRAILER;
/// Slots of a buffer.
pub(crate) const SLOTS: usize = BUFFER / STRIDE;
/// Most payload of one batch.
pub(crate) const BATCH: usize = SLOTS * PAYLOAD;
/// With this much sealed and unsent, streams wait.
const PENDING_LIMIT: usize = 64 * 1024;
/// With this much sealed and unsent, a peer that provokes control frames and does not read is cut.
const PENDING_FATAL: usize = 4 * 1024 * 1024;
/// Times that a task looks for more to write, before it leaves the rest to the driver and goes back to its own work.
const ROUNDS: u32 = 8;
/// Batches up to this size are copied together instead of keeping a whole buffer each.
const COALESCE: usize = 32 * 1024;
/// A stream's receive window at first; our SETTINGS announce it.
pub(in crate::hbone) const STREAM_WINDOW: i64 = 256 * 1024;
/// The same while the process holds more than [`QUEUED_LIMIT`] for applications that do not read, until it is half of that. Streams whose applications
/// do read go on with it, and grow it if it holds them up.
pub(in crate::hbone) const SMALL_WINDOW: i64 = 32 * 1024;
pub(in crate::hbone) const QUEUED_LIMIT: usize = if cfg!(test) { 4 } else { 64 } * 1024 * 1024;
/// The connection's receive window; it is refilled on arrival, so it never is what stalls a stream.
pub(in crate::hbone) const CONNECTION_WINDOW: i64 = 16 * 1024 * 1024;

/// Which end of the tunnel we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::hbone) enum Role {
    Client,
    Server,
}

/// Why a tunnel is over.
#[derive(Debug, Clone)]
pub(in crate::hbone) enum Closed {
    /// Drained, idle, or ended by the peer without open streams.
    Done(&'static str),
    /// The pool does not want it any more.
    Purged,
    /// The transport failed, the peer was silent, or the tunnel was cut here.
    Lost(Arc<str>),
    /// The peer's TLS refused us.
    Alert(u8),
    /// No SETTINGS in time.
    Preface,
    /// The peer broke the protocol.
    Protocol(&'static str),
}

impl Closed {
    /// What a request that waits for its answer is told.
    pub(in crate::hbone) fn error(&self, settled: bool) -> HboneError {
        match self {
            Self::Preface => HboneError::PrefaceTimeout,
            Self::Alert(alert) if !settled => HboneError::Tls(crate::tls::HandshakeError::PeerAlert(*alert)),
            Self::Alert(alert) => HboneError::Closed(format!("tls alert {alert}").into()),
            Self::Done(why) => HboneError::Closed((*why).into()),
            Self::Purged => HboneError::Closed("purged".into()),
            Self::Lost(why) => HboneError::Closed(why.clone()),
            Self::Protocol(why) => HboneError::Closed(format!("protocol error: {why}").into()),
        }
    }
}

/// A sealed stretch of bytes that the socket did not take yet.
struct Segment {
    buffer: Buffer,
    start: usize,
    end: usize,
}

/// Who writes queued bytes to the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writer {
    /// Nobody, as nothing is queued.
    Idle,
    /// A task that is in the system call without the lock. It looks for more afterwards.
    Busy,
    /// The driver, as soon as the socket is writable.
    Driver,
}

struct State {
    sealer: Sealer,
    writer: Writer,
    pending: VecDeque<Segment>,
    pending_bytes: usize,
    /// Granted to streams, and neither committed nor released yet: it will be queued all at once if many workers send.
    granted: usize,
    /// Credit for the whole tunnel.
    window: i64,
    /// Credit that a new stream starts with.
    initial_window: i64,
    /// Receive window that our last SETTINGS gave to streams, and the one that the peer has certainly taken on.
    offered: i64,
    taken_on: i64,
    /// Streams that wait for the queue to drain or for tunnel credit. Each is in here at most once.
    waiting: VecDeque<Arc<Stream>>,
    next_id: u32,
    peer_max_streams: u32,
    active: u32,
    idle_since: Option<Instant>,
    /// The peer's SETTINGS arrived.
    settled: bool,
    /// No more streams: we said or heard GOAWAY, or the certificate expired.
    draining: bool,
    closed: Option<Closed>,
    closed_at: Option<Instant>,
}

/// A tunnel, shared by its driver and its streams.
pub(crate) struct Tunnel {
    pub(in crate::hbone) socket: TcpStream,
    pub(in crate::hbone) role: Role,
    pub(in crate::hbone) peer: Identity,
    /// Of our certificate: which renewal it was.
    pub(in crate::hbone) generation: u64,
    pub(in crate::hbone) local: SocketAddr,
    pub(in crate::hbone) remote: SocketAddr,
    /// When the handshake was finished.
    pub(in crate::hbone) made_at: Instant,
    pub(in crate::hbone) driver: AtomicWaker,
    /// Smoothed round trip in nanoseconds.
    pub(in crate::hbone) round_trip: AtomicU64,
    /// Nanoseconds since [`EPOCH`] when the socket last could not take a batch: a sign of a saturated tunnel.
    congested_at: AtomicU64,
    /// How often something was read. Written by the driver alone.
    reads: AtomicU64,
    /// One more than what `reads` was when the peer was last asked whether it is there, and when it was found silent.
    asked_at: AtomicU64,
    silent_at: AtomicU64,
    max_streams: u32,
    keys: Mutex<Box<dyn KeySchedule>>,
    state: Mutex<State>,
    /// Locked to look up, insert and remove; never together with anything slow.
    streams: Mutex<HashMap<u32, Arc<Stream>>>,
    pub(in crate::hbone) drain_requested: AtomicBool,
    /// Where its health is counted, if it is.
    leg: OnceLock<Leg>,
}

static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Answer to a stream that wants to send.
pub(in crate::hbone) enum Credit {
    /// This many payload bytes may be committed.
    Granted(usize),
    /// Later; the stream's write waker will be called.
    Wait,
    /// Never again.
    Closed,
}

/// What a new tunnel is made of, from a finished handshake.
pub(in crate::hbone) struct Parts {
    pub(in crate::hbone) socket: TcpStream,
    pub(in crate::hbone) peer: Identity,
    pub(in crate::hbone) generation: u64,
    pub(in crate::hbone) sealer: Sealer,
    pub(in crate::hbone) keys: Box<dyn KeySchedule>,
    /// Bytes of the handshake that still have to be sent.
    pub(in crate::hbone) unsent: Vec<u8>,
}

impl Tunnel {
    pub(in crate::hbone) fn new(role: Role, parts: Parts, max_streams: u32) -> io::Result<Self> {
        let Parts { socket, peer, generation, sealer, keys, unsent } = parts;
        let (local, remote) = (socket.local_addr()?, socket.peer_addr()?);
        let mut state = State {
            sealer,
            writer: if unsent.is_empty() { Writer::Idle } else { Writer::Driver },
            pending: VecDeque::new(),
            pending_bytes: 0,
            granted: 0,
            window: frame::DEFAULT_WINDOW,
            initial_window: frame::DEFAULT_WINDOW,
            offered: STREAM_WINDOW,
            taken_on: STREAM_WINDOW,
            waiting: VecDeque::new(),
            next_id: 1,
            peer_max_streams: u32::MAX,
            active: 0,
            idle_since: Some(Instant::now()),
            settled: false,
            draining: false,
            closed: None,
            closed_at: None,
        };
        for piece in unsent.chunks(BUFFER) {
            let mut buffer = Buffer::take();
            buffer[..piece.len()].copy_from_slice(piece);
            state.pending_bytes += piece.len();
            state.pending.push_back(Segment { buffer, start: 0, end: piece.len() });
        }
        Ok(Self {
            socket,
            role,
            peer,
            generation,
            local: canonical(local),
            remote: canonical(remote),
            made_at: Instant::now(),
            driver: AtomicWaker::new(),
            round_trip: AtomicU64::new(0),
            congested_at: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            asked_at: AtomicU64::new(0),
            silent_at: AtomicU64::new(0),
            max_streams,
            keys: Mutex::new(keys),
            state: Mutex::new(state),
            streams: Mutex::new(HashMap::new()),
            drain_requested: AtomicBool::new(false),
            leg: OnceLock::new(),
        })
    }

    /// Takes no more streams; the driver says so to the peer and ends when the last one is over.
    pub(in crate::hbone) fn drain(&self) {
        self.state.lock().draining = true;
        self.drain_requested.store(true, Relaxed);
        self.driver.wake();
    }

    /// Stops handing out streams without telling the peer: the certificate is no longer valid, or the pool does not want it.
    pub(in crate::hbone) fn retire(&self) {
        if !std::mem::replace(&mut self.state.lock().draining, true) {
            self.driver.wake();
        }
    }

    /// Ends everything. The first reason stays.
    pub(in crate::hbone) fn close(&self, reason: Closed) {
        let mut state = self.state.lock();
        self.close_locked(&mut state, reason);
    }

    fn close_locked(&self, state: &mut State, reason: Closed) {
        if state.closed.is_some() {
            return;
        }
        state.closed = Some(reason);
        state.closed_at = Some(Instant::now());
        state.draining = true;
        state.waiting.clear();
        let streams: Vec<_> = self.streams.lock().drain().map(|(_, stream)| stream).collect();
        state.active = 0;
        for stream in streams {
            stream.lost();
        }
        self.driver.wake();
    }

    /// What the driver has to know between two steps, under one lock.
    pub(in crate::hbone) fn status(&self) -> Status {
        let state = self.state.lock();
        Status {
            closed: state.closed.is_some(),
            blocked: state.writer == Writer::Driver,
            finished: state.draining && state.active == 0,
        }
    }

    pub(in crate::hbone) fn closed(&self) -> Option<Closed> {
        self.state.lock().closed.clone()
    }

    /// The error for a request that was open when the tunnel ended.
    pub(in crate::hbone) fn closed_error(&self) -> HboneError {
        let state = self.state.lock();
        match &state.closed {
            Some(closed) => closed.error(state.settled),
            None => HboneError::Closed("stream closed".into()),
        }
    }

    /// When a tunnel that had worked was lost: by the peer, by the network, or cut here for a revocation or with its driver. A fresh one is judged anew, so
    /// its requests may be asked again there. `None` if it is not over, was not wanted any more, or ended for an alert or a broken rule.
    pub(in crate::hbone) fn lost_at(&self) -> Option<Instant> {
        let state = self.state.lock();
        let lost = state.settled && matches!(state.closed, Some(Closed::Lost(_) | Closed::Done(_)));
        state.closed_at.filter(|_| lost)
    }

    pub(in crate::hbone) fn settled(&self) -> bool {
        self.state.lock().settled
    }

    /// Whether we have opened this stream at any time.
    pub(in crate::hbone) fn was_opened(&self, id: u32) -> bool {
        id < self.state.lock().next_id
    }

    pub(in crate::hbone) fn active(&self) -> u32 {
        self.state.lock().active
    }

    /// Whether a stream can be opened.
    pub(in crate::hbone) fn has_room(&self) -> bool {
        self.state.lock().has_room(self.max_streams)
    }

    /// Stops handing out streams if there has been none for `limit`. One step: a stream is either opened before or not at all.
    pub(in crate::hbone) fn retire_if_idle(&self, limit: Duration) -> bool {
        let mut state = self.state.lock();
        let idle = state.idle_since.is_some_and(|since| since.elapsed() >= limit);
        state.draining |= idle;
        idle
    }

    /// Something was read.
    pub(in crate::hbone) fn heard(&self) {
        self.reads.store(self.reads.load(Relaxed) + 1, Relaxed);
    }

    /// Asks the peer whether it is there, once until it says anything. What is returned is for [`Tunnel::is_silent_since`].
    pub(in crate::hbone) fn ask_for_a_sign(&self) -> u64 {
        let mark = self.reads.load(Relaxed) + 1;
        if self.asked_at.swap(mark, Relaxed) != mark {
            self.control(|out| frame::ping(out, false, PING_ANYBODY));
        }
        mark
    }

    /// Whether nothing was read since the peer was asked for a sign; then others are told so at once until something is.
    pub(in crate::hbone) fn is_silent_since(&self, mark: u64) -> bool {
        let silent = self.reads.load(Relaxed) + 1 == mark;
        if silent {
            self.silent_at.store(mark, Relaxed);
        }
        silent
    }

    /// Whether the peer was found silent, and is.
    pub(in crate::hbone) fn is_silent(&self) -> bool {
        self.silent_at.load(Relaxed) == self.reads.load(Relaxed) + 1
    }

    /// From now on the health of the connection is counted, with all that it was before; who says so first decides where.
    pub(in crate::hbone) fn measure(&self, counters: impl FnOnce() -> Arc<PathCounters>) {
        self.leg.get_or_init(|| Leg::new(counters()));
    }

    /// Counts what the kernel knows of the connection since the last look.
    pub(in crate::hbone) fn look(&self) {
        if let Some(leg) = self.leg.get() {
            leg.look(&self.socket);
        }
    }

    /// Whether the socket could not take a batch within the last `window`.
    pub(in crate::hbone) fn congested(&self, window: Duration) -> bool {
        let at = self.congested_at.load(Relaxed);
        at != 0 && EPOCH.elapsed().saturating_sub(Duration::from_nanos(at)) < window
    }
}

/// Between two steps of the driver.
#[derive(Debug, Clone, Copy)]
pub(in crate::hbone) struct Status {
    pub(in crate::hbone) closed: bool,
    /// Sealed bytes wait for the socket to be writable.
    pub(in crate::hbone) blocked: bool,
    /// Draining, and the last stream is over.
    pub(in crate::hbone) finished: bool,
}

impl State {
    /// Whether a stream may be given credit.
    fn may_send(&self) -> bool {
        self.pending_bytes < PENDING_LIMIT && self.granted < PENDING_FATAL / 2 && self.window > 0
    }

    fn has_room(&self, own_limit: u32) -> bool {
        !self.draining && self.active < own_limit.min(self.peer_max_streams) && self.next_id < 0x7fff_0000
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
