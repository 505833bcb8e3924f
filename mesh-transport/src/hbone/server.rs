//! The accepting side of tunnels.
use std::{net::SocketAddr, time::Duration};
use http::StatusCode;
use mesh_core::identity::Identity;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use super::{Authority, Baggage, Forwarded, HboneStream, TraceParent};
use crate::tls::IdentityCertificate;

/// Limits and deadlines of accepted tunnels.
#[derive(Debug, Clone)]
pub struct AcceptorConfig {
    /// TLS handshake deadline, in total.
    pub tls_timeout: Duration,
    /// Deadline for the HTTP/2 preface after TLS.
    pub preface_timeout: Duration,
    /// Handshakes under way at once from one address.
    pub half_open_per_source: usize,
    /// Handshakes under way at once in all.
    pub half_open: usize,
    /// Streams per tunnel.
    pub max_streams: u32,
    /// PING interval.
    pub ping_interval: Duration,
    /// A tunnel is closed when a PING is not answered in this time.
    pub ping_timeout: Duration,
}
impl Default for AcceptorConfig {
    fn default() -> Self {
        Self { tls_timeout: Duration::from_secs(5), preface_timeout: Duration::from_secs(5), half_open_per_source: 256, half_open: 4096, max_streams: 200, ping_interval: Duration::from_secs(10), ping_timeout: Duration::from_secs(20) }
    }
}
/// Why a tunnel was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// Too many handshakes under way from this address, or in all.
    #[error("too many handshakes under way")]
    TooManyHalfOpen,
    /// The handshake did not end in time.
    #[error("handshake timed out")]
    Timeout,
    /// The handshake failed.
    #[error("handshake: {0}")]
    Handshake(#[from] crate::tls::HandshakeError),
}
/// Accepts tunnels; one per process, so that its caps are global. Clones share them.
#[derive(Debug, Clone)]
pub struct Acceptor { config: std::sync::Arc<AcceptorConfig> }
impl Acceptor {
    /// An acceptor with these limits.
    pub fn new(config: AcceptorConfig) -> Self { Self { config: std::sync::Arc::new(config) } }
    /// Shakes hands. Cancel safe: dropping it closes the connection.
    pub async fn accept(&self, tcp: TcpStream, certificate: &IdentityCertificate) -> Result<InboundTunnel, AcceptError> {
        let _ = (tcp, certificate, &self.config);
        Err(AcceptError::Timeout)
    }
}
/// An authenticated tunnel that is not served yet.
#[derive(Debug)]
pub struct InboundTunnel { peer: Identity, local: SocketAddr, remote: SocketAddr }
impl InboundTunnel {
    /// Who the client proved to be.
    pub fn peer(&self) -> &Identity { &self.peer }
    /// The tunnel's own address; its IP is the pod's.
    pub fn local_address(&self) -> SocketAddr { self.local }
    /// The client's address.
    pub fn peer_address(&self) -> SocketAddr { self.remote }
    /// Serves until the tunnel ends. This future is the tunnel's only task: spawn it. `on_request` is called for every well-formed CONNECT and must not block;
    /// it spawns what handles the request. Malformed requests are answered here. When `drain` is cancelled the peer is told to open no more streams
    /// and the tunnel ends with its last one; dropping the future cuts everything.
    pub async fn serve(self, drain: CancellationToken, on_request: impl FnMut(InboundRequest) + Send) -> ServeEnd {
        let _ = (drain, on_request);
        ServeEnd::Closed
    }
}
/// How a tunnel ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServeEnd {
    /// The peer closed it, or it was drained.
    Closed,
    /// The transport failed or the peer was silent.
    Lost,
    /// The peer broke the protocol; the word names the rule.
    Protocol(&'static str),
}
/// A well-formed CONNECT that waits for an answer. Dropping it refuses with 503.
#[derive(Debug)]
pub struct InboundRequest { authority: Authority, peer: Identity, local: SocketAddr, remote: SocketAddr, baggage: Baggage, forwarded: Option<Forwarded>, traceparent: Option<TraceParent> }
impl InboundRequest {
    /// Where it wants to go. An address is already known to be the tunnel's own.
    pub fn authority(&self) -> &Authority { &self.authority }
    /// Who the client proved to be.
    pub fn peer(&self) -> &Identity { &self.peer }
    /// The tunnel's own address.
    pub fn local_address(&self) -> SocketAddr { self.local }
    /// The client's tunnel address: its IP is the source workload's.
    pub fn peer_address(&self) -> SocketAddr { self.remote }
    /// Labels that the peer claims.
    pub fn baggage(&self) -> &Baggage { &self.baggage }
    /// What the peer says about its client.
    pub fn forwarded(&self) -> Option<&Forwarded> { self.forwarded.as_ref() }
    /// The trace to continue.
    pub fn traceparent(&self) -> Option<TraceParent> { self.traceparent }
    /// Resolves when the client gave up; the application must not be connected any more.
    pub async fn cancelled(&self) { std::future::pending::<()>().await }
    /// Answers 200 with the serving workload's labels. Fails if the client gave up.
    pub fn accept(self, baggage: &Baggage) -> Result<HboneStream, super::HboneError> { let _ = baggage; Err(super::HboneError::Overloaded) }
    /// Answers with another status.
    pub fn refuse(self, status: StatusCode) { let _ = status; }
}
