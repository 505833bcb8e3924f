//! A new connection to an endpoint: a stream in a tunnel, or TCP where the workload has no tunnel, with TLS in it where that is asked for.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use mesh_core::l7::cluster::Keepalive;
use mesh_core::workload::TunnelProtocol;
use mesh_runtime::lanes;
use mesh_transport::hbone::{Claimed, ConnectRequest, Forwarded, HboneError, HboneStream, TunnelKey};
use mesh_transport::socket;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::client::TlsStream;

use super::choose::Endpoint;
use crate::origination::Inside;
use crate::peer::Peer;
use crate::shared::{Shared, Way};

/// Bytes to and from an endpoint.
#[derive(Debug)]
pub enum Wire {
    /// Plain.
    Tcp(TcpStream),
    /// With TLS of the world.
    Tls(Box<TlsStream<TcpStream>>),
    /// Through a tunnel.
    Hbone(HboneStream),
    /// The same, with TLS of the world.
    TlsInside(Box<TlsStream<HboneStream>>),
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// This lane has as many as it may have.
    #[error("too many connections")]
    Overflow,
    /// We have nothing to prove who we are.
    #[error("no certificate")]
    NoCertificate,
    /// The tunnel, or the stream in it.
    #[error(transparent)]
    Tunnel(#[from] HboneError),
    /// TCP.
    #[error("connect: {0}")]
    Tcp(#[from] io::Error),
    /// TLS: the certificate is not believed, or there is none.
    #[error("TLS: {0}")]
    Tls(io::Error),
    /// It took too long.
    #[error("connect: timed out")]
    Timeout,
    /// HTTP did not begin.
    #[error("connect: {0}")]
    Http(#[from] hyper::Error),
    /// Somebody else connected for us, and failed.
    #[error("connect: the attempt that was waited for has failed")]
    Shared,
}

impl ConnectError {
    /// What the log calls the failure of the transport, if it is one.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        match self {
            Self::Tls(error) => Some(format!("TLS_error:{error}")),
            Self::Tcp(error) => Some(format!("delayed_connect_error:{error}")),
            _ => None,
        }
    }
}

/// Connects. `inside` is what will be spoken.
pub async fn dial(shared: &Shared, endpoint: &Endpoint, peer: &Peer, inside: Inside) -> Result<Wire, ConnectError> {
    let said = endpoint.found.as_ref().filter(|found| found.now.is_said());
    let limit = said.map_or(shared.settings.connect_timeout, |found| found.now.policy().pool.connect_timeout);
    let connected = async {
        match endpoint.workload.protocol {
            TunnelProtocol::None if endpoint.waypoint.is_none() => {
                let tcp = tcp(endpoint.address).await?;
                keep_alive(&tcp, signs(endpoint))?;
                let Some(origin) = endpoint.origin() else { return Ok(Wire::Tcp(tcp)) };
                let begun = origin.begin(tcp, inside).await.map_err(ConnectError::Tls)?;
                Ok(Wire::Tls(Box::new(begun)))
            }
            TunnelProtocol::None | TunnelProtocol::Hbone => {
                let stream = hbone(shared, endpoint, peer).await?;
                let Some(origin) = endpoint.origin() else { return Ok(Wire::Hbone(stream)) };
                let begun = origin.begin(stream, inside).await.map_err(ConnectError::Tls)?;
                Ok(Wire::TlsInside(Box::new(begun)))
            }
        }
    };
    tokio::time::timeout(limit, connected).await.map_err(|_| ConnectError::Timeout)?
}

/// The signs of life that are said of the endpoint's place.
fn signs(endpoint: &Endpoint) -> Option<Keepalive> {
    endpoint.found.as_ref()?.now.policy().pool.keepalive
}

/// Without a word there are none.
fn keep_alive(tcp: &TcpStream, signs: Option<Keepalive>) -> io::Result<()> {
    signs.map_or(Ok(()), |signs| socket::keep_alive_as(tcp, signs.after, signs.interval, signs.probes))
}

async fn tcp(address: SocketAddr) -> Result<TcpStream, ConnectError> {
    let tcp = TcpStream::connect(address).await?;
    tcp.set_nodelay(true)?;
    Ok(tcp)
}

async fn hbone(shared: &Shared, endpoint: &Endpoint, peer: &Peer) -> Result<HboneStream, ConnectError> {
    let certificate = shared.certificates.current().ok_or(ConnectError::NoCertificate)?;
    let usual = || SocketAddr::new(endpoint.address.ip(), shared.settings.hbone_port);
    let destination = endpoint.waypoint.as_ref().map_or_else(usual, |waypoint| waypoint.at);
    let source = shared.own.ip_like(destination.ip());
    let key = TunnelKey {
        source: shared.own.identity.clone(),
        source_uid: shared.own.uid.clone(),
        source_ip: source.unwrap_or_else(|| unspecified(destination)),
        destination,
        destination_uid: endpoint.workload.uid.clone(),
        destination_generation: endpoint.generation,
        expected: endpoint.expected().into(),
        lane: lanes::current(),
    };
    // The endpoint's agent believes what a waypoint of its service says of the client. Who asks in its own name says nothing.
    let is_own = !peer.stranger && peer.identity == shared.own.identity && peer.address.port() == 0;
    let claimed = peer.proved().cloned().map_or(Claimed::Nobody, Claimed::Identity);
    let request = ConnectRequest {
        baggage: peer.baggage.clone(),
        forwarded: Some(Forwarded {
            client: Some(peer.address).filter(|_| !is_own),
            host: endpoint.service.as_ref().map(|service| service.hostname.clone()),
            identity: Some(claimed).filter(|_| !is_own),
        }),
        // No endpoint counts them.
        hops: if endpoint.waypoint.is_some() { peer.hops.saturating_add(1) } else { 0 },
        ..ConnectRequest::to(endpoint.address)
    };
    let signs = signs(endpoint);
    let dial = move || async move {
        let socket = if destination.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        if let Some(source) = source {
            socket.bind(SocketAddr::new(source, 0))?;
        }
        let tcp = socket.connect(destination).await?;
        keep_alive(&tcp, signs)?;
        Ok(tcp)
    };
    let stream = shared.tunnels.connect(&key, certificate, dial, request).await?.0;
    stream.measure(|| shared.path(Way::Out, destination.ip(), stream.peer()));
    Ok(stream)
}

fn unspecified(like: SocketAddr) -> std::net::IpAddr {
    match like {
        SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Hbone(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::TlsInside(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Hbone(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::TlsInside(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Self::Hbone(stream) => Pin::new(stream).poll_flush(cx),
            Self::TlsInside(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Hbone(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::TlsInside(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
