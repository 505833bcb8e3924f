//! The accepting side of tunnels: the handshake with its caps and deadlines, and the requests that come out of a tunnel.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime};

use http::StatusCode;
use mesh_core::identity::Identity;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::admission::admit;
use super::driver::{Driver, Timers};
use super::half_open::{Guard, HalfOpen, Limited, Limits};
use super::headers::{Request, RequestProblem};
use super::stream::Stream;
use super::tunnel::{Parts, Role, Tunnel};
use super::{Authority, AuthorityProblem, Baggage, Forwarded, HboneError, HboneStream, TraceParent};
use crate::tls::{self, Admission, HandshakeError, IdentityCertificate, Proof, Revocations, TlsStream, Usage};

/// Limits and deadlines of accepted tunnels.
#[derive(Debug, Clone)]
pub struct AcceptorConfig {
    /// TLS handshake deadline, in total and not per read.
    pub tls_timeout: Duration,
    /// Deadline for the HTTP/2 preface after TLS.
    pub preface_timeout: Duration,
    /// Handshakes under way at once from one address.
    pub half_open_per_source: usize,
    /// Handshakes under way at once in all.
    pub half_open: usize,
    /// Handshakes that one address may begin each second, and at once after a quiet time. A dial of ours serves up to a hundred connections.
    pub handshakes_per_second: u32,
    /// See `handshakes_per_second`.
    pub handshake_burst: u32,
    /// Tunnels of one address to one of ours: it must not take all those that a pod may have.
    pub tunnels_per_source: usize,
    /// Tunnels in all; one address has a quarter of them at most.
    pub tunnels: usize,
    /// Streams per tunnel.
    pub max_streams: u32,
    /// PING interval.
    pub ping_interval: Duration,
    /// A tunnel is closed when a PING is not answered in this time.
    pub ping_timeout: Duration,
    /// Requests may name any address but special ones, and the caller decides which it serves: a waypoint's way. Without it an address must be the
    /// tunnel's own.
    pub any_address: bool,
    /// Whom to refuse although the certificate is valid.
    pub revocations: Option<Arc<Revocations>>,
}

impl Default for AcceptorConfig {
    fn default() -> Self {
        Self {
            tls_timeout: Duration::from_secs(5),
            preface_timeout: Duration::from_secs(5),
            half_open_per_source: 256,
            half_open: 4096,
            handshakes_per_second: 256,
            handshake_burst: 1024,
            tunnels_per_source: 1024,
            tunnels: 65_536,
            max_streams: 200,
            ping_interval: Duration::from_secs(10),
            ping_timeout: Duration::from_secs(20),
            any_address: false,
            revocations: None,
        }
    }
}

/// Why a tunnel was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// Too many handshakes under way from this address, or in all.
    #[error("too many handshakes under way")]
    TooManyHalfOpen,
    /// This address begins handshakes too often.
    #[error("too many handshakes from one address")]
    TooFast,
    /// This address has its share of tunnels, or there are too many in all.
    #[error("too many tunnels")]
    TooManyTunnels,
    /// The handshake did not end in time.
    #[error("handshake timed out")]
    Timeout,
    /// The handshake failed.
    #[error("handshake: {0}")]
    Handshake(#[from] HandshakeError),
}

impl From<Limited> for AcceptError {
    fn from(limited: Limited) -> Self {
        match limited {
            Limited::UnderWay => Self::TooManyHalfOpen,
            Limited::Rate => Self::TooFast,
            Limited::Tunnels => Self::TooManyTunnels,
        }
    }
}

impl AcceptError {
    /// Whether a limit of ours refused, before anything was read.
    pub fn is_limit(&self) -> bool {
        matches!(self, Self::TooManyHalfOpen | Self::TooFast | Self::TooManyTunnels)
    }

    /// A short stable name for logs and counters.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::TooManyHalfOpen => "too_many_handshakes",
            Self::TooFast => "handshake_rate",
            Self::TooManyTunnels => "too_many_tunnels",
            Self::Timeout => "handshake_timeout",
            Self::Handshake(error) => error.reason(),
        }
    }
}

/// Accepts tunnels; one per process, so that its caps are global. Clones share them.
#[derive(Debug, Clone)]
pub struct Acceptor {
    config: Arc<AcceptorConfig>,
    half_open: Arc<HalfOpen>,
}

impl Acceptor {
    /// An acceptor with these limits.
    pub fn new(config: AcceptorConfig) -> Self {
        let limits = Limits {
            per_source: config.half_open_per_source,
            total: config.half_open,
            per_second: config.handshakes_per_second,
            burst: config.handshake_burst,
            tunnels: config.tunnels_per_source,
            tunnels_in_all: config.tunnels,
        };
        Self { config: Arc::new(config), half_open: Arc::new(HalfOpen::new(limits)) }
    }

    /// Handshakes under way.
    pub fn half_open(&self) -> usize {
        self.half_open.total()
    }

    /// Shakes hands. Dropping the future closes the connection.
    pub async fn accept(
        &self,
        tcp: TcpStream,
        certificate: &IdentityCertificate,
    ) -> Result<InboundTunnel, AcceptError> {
        let source = tcp.peer_addr().map_err(HandshakeError::from)?.ip().to_canonical();
        let local = tcp.local_addr().map_err(HandshakeError::from)?.ip().to_canonical();
        let mut place = self.half_open.enter(source, local, Instant::now()).inspect_err(|_| tls::say_busy(&tcp))?;
        tcp.set_nodelay(true).map_err(HandshakeError::from)?;
        let handshake = tls::accept(tcp, certificate.server_config());
        let tls =
            tokio::time::timeout(self.config.tls_timeout, handshake).await.map_err(|_| AcceptError::Timeout)??;
        place.opened();
        let TlsStream { tcp, peer, chain, expires, sealer, opener, keys, received, opened, unsent } = tls;
        let parts = Parts { socket: tcp, peer, generation: certificate.generation, sealer, keys, unsent };
        let tunnel = Arc::new(Tunnel::new(Role::Server, parts, self.config.max_streams).map_err(HandshakeError::from)?);
        let proof = || Proof {
            chain,
            roots: certificate.roots().clone(),
            usage: Usage::Client,
            at: mesh_runtime::clock::now(),
        };
        let admission = admit(self.config.revocations.as_ref(), &tunnel, proof).map_err(HandshakeError::Peer)?;
        Ok(InboundTunnel {
            tunnel,
            place,
            admission,
            expires: expires.min(certificate.not_after),
            opener,
            received,
            opened,
            config: self.config.clone(),
        })
    }
}

/// Refuses a connection for a limit of the caller's, before anything is read from it: its client tries another endpoint and does not take this one for
/// broken.
pub fn refuse_busy(tcp: TcpStream) {
    tls::say_busy(&tcp);
}

/// An authenticated tunnel that is not served yet.
pub struct InboundTunnel {
    tunnel: Arc<Tunnel>,
    /// Among the tunnels of its source.
    place: Guard,
    admission: Option<Admission>,
    /// When the first of the two certificates ends.
    expires: SystemTime,
    opener: tls::Opener,
    received: Vec<u8>,
    opened: Vec<u8>,
    config: Arc<AcceptorConfig>,
}

impl fmt::Debug for InboundTunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InboundTunnel")
            .field("peer", self.peer())
            .field("from", &self.peer_address())
            .finish_non_exhaustive()
    }
}

impl InboundTunnel {
    /// Who the client proved to be.
    pub fn peer(&self) -> &Identity {
        &self.tunnel.peer
    }

    /// The tunnel's own address; its IP is the pod's.
    pub fn local_address(&self) -> SocketAddr {
        self.tunnel.local
    }

    /// The client's address.
    pub fn peer_address(&self) -> SocketAddr {
        self.tunnel.remote
    }

    /// Serves until the tunnel ends. This future is the tunnel's only task: spawn it. `on_request` is called for every well-formed CONNECT and must not block;
    /// it spawns what handles the request. Malformed requests are answered here. When `drain` is cancelled the peer is told to open no more streams
    /// and the tunnel ends with its last one; dropping the future cuts everything.
    pub async fn serve(self, drain: CancellationToken, on_request: impl FnMut(InboundRequest) + Send) -> ServeEnd {
        let _held = (self.place, self.admission);
        let timers = Timers {
            preface: self.config.preface_timeout,
            ping_interval: self.config.ping_interval,
            ping_timeout: self.config.ping_timeout,
            idle: None,
        };
        let driver = Driver::new(
            self.tunnel,
            self.opener,
            &self.received,
            self.opened,
            self.config.max_streams,
            timers,
            on_request,
        );
        driver
            .any_address(self.config.any_address)
            .retire_at(self.expires)
            .drain_on(drain.cancelled_owned())
            .run()
            .await
    }
}

/// How a tunnel ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServeEnd {
    /// The peer closed it, or it was drained.
    Closed,
    /// The transport failed, the peer was silent, or the tunnel was cut here.
    Lost,
    /// The peer broke the protocol; the word names the rule.
    Protocol(&'static str),
}

/// A well-formed CONNECT that waits for an answer. Dropping it refuses with 503.
pub struct InboundRequest {
    tunnel: Arc<Tunnel>,
    /// Taken when answered.
    stream: Option<Arc<Stream>>,
    request: Request,
}

impl fmt::Debug for InboundRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InboundRequest")
            .field("authority", &self.request.authority)
            .field("peer", self.peer())
            .finish_non_exhaustive()
    }
}

impl InboundRequest {
    pub(super) fn new(tunnel: Arc<Tunnel>, stream: Arc<Stream>, request: Request) -> Self {
        Self { tunnel, stream: Some(stream), request }
    }

    /// Where it wants to go. An address is already known to be the tunnel's own, unless the acceptor takes any.
    pub fn authority(&self) -> &Authority {
        &self.request.authority
    }

    /// Who the client proved to be.
    pub fn peer(&self) -> &Identity {
        &self.tunnel.peer
    }

    /// The tunnel's own address.
    pub fn local_address(&self) -> SocketAddr {
        self.tunnel.local
    }

    /// The client's tunnel address: its IP is the source workload's.
    pub fn peer_address(&self) -> SocketAddr {
        self.tunnel.remote
    }

    /// Labels that the peer claims.
    pub fn baggage(&self) -> &Baggage {
        &self.request.baggage
    }

    /// What the peer says about its client.
    pub fn forwarded(&self) -> Option<&Forwarded> {
        self.request.forwarded.as_ref()
    }

    /// How many proxies the connection has passed, as the peer says.
    pub fn hops(&self) -> u8 {
        self.request.hops
    }

    /// The trace to continue.
    pub fn traceparent(&self) -> Option<TraceParent> {
        self.request.traceparent
    }

    /// Resolves when the client gave up; the application must not be connected any more.
    pub async fn cancelled(&self) {
        let Some(stream) = &self.stream else { return };
        std::future::poll_fn(|cx| stream.poll_given_up(cx)).await;
    }

    /// Answers 200 with the serving workload's labels. Fails if the client gave up.
    pub fn accept(mut self, baggage: &Baggage) -> Result<HboneStream, HboneError> {
        let Some(stream) = self.stream.take() else { return Err(HboneError::Closed("answered".into())) };
        self.tunnel.answer(&stream, StatusCode::OK, baggage)?;
        Ok(HboneStream::new(self.tunnel.clone(), stream))
    }

    /// Answers with another status.
    pub fn refuse(mut self, status: StatusCode) {
        self.answer_refusal(status);
    }

    fn answer_refusal(&mut self, status: StatusCode) {
        if let Some(stream) = self.stream.take() {
            // A client that gave up needs no answer.
            let _ = self.tunnel.answer(&stream, status, &Baggage::default());
        }
    }
}

impl Drop for InboundRequest {
    fn drop(&mut self) {
        self.answer_refusal(StatusCode::SERVICE_UNAVAILABLE);
    }
}

/// Requests refused before anybody saw them, by reason; `ip_mismatch` and `special_address` are attempts to use a tunnel as a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusals {
    /// Header fields that no honest peer sends.
    pub malformed_headers: u64,
    /// Another method than CONNECT.
    pub not_connect: u64,
    /// An unreadable authority.
    pub bad_authority: u64,
    /// The address of another pod.
    pub ip_mismatch: u64,
    /// Loopback, link-local, multicast, unspecified.
    pub special_address: u64,
}

static REFUSALS: [AtomicU64; 5] = [const { AtomicU64::new(0) }; 5];

pub(super) fn count(problem: RequestProblem) {
    let index = match problem {
        RequestProblem::Malformed => 0,
        RequestProblem::NotConnect => 1,
        RequestProblem::Authority => 2,
        RequestProblem::Address(AuthorityProblem::AddressMismatch) => 3,
        RequestProblem::Address(AuthorityProblem::SpecialAddress) => 4,
    };
    REFUSALS[index].fetch_add(1, Relaxed);
}

/// The process's counts of refused requests.
pub fn refusals() -> Refusals {
    let [malformed_headers, not_connect, bad_authority, ip_mismatch, special_address] =
        REFUSALS.each_ref().map(|count| count.load(Relaxed));
    Refusals { malformed_headers, not_connect, bad_authority, ip_mismatch, special_address }
}
