//! Mutual TLS as Istio's sidecars speak it to each other: straight to the application's address and port, told by the protocols that the first message offers,
//! with the application's bytes in it. Called by the agent of a pod whose clients still have sidecars; who they are is verified exactly as that of tunnels.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use mesh_core::identity::Identity;
use rustls::ServerConfig;
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::certificate::Roots;
use super::handshake::HandshakeError;
use super::revocation::{Admission, Proof, Revocations};
use super::verify::{ClientVerifier, Usage, VerifyError, WallClock, peer_identity};
use super::{IdentityCertificate, hello};
use crate::socket::Armed;

/// With what the names of all protocols begin that sidecars offer each other, and nobody else.
const OFFERED: &[u8] = b"istio";
/// What of that is agreed on. `istio` says nothing more than that both ends are of the mesh; sidecars offer it always, and beside it, for TCP, one
/// (`istio-peer-exchange`) by which both ends would say more about themselves before the first byte.
const AGREED: [&[u8]; 3] = [b"istio", b"istio-http/1.1", b"istio-h2"];

/// A client's connection, decrypted. Dropping it resets the client, unless it was disarmed.
#[derive(Debug)]
pub struct SidecarStream {
    tls: Box<TlsStream<Armed>>,
    peer: Identity,
    revoked: CancellationToken,
    _admission: Option<Admission>,
}

/// Whether a connection begins with the first message of a sidecar; what was looked at is still there to be read. Waits at most for `limit`, for clients may
/// leave it to the server to begin; what is no TLS is known by its first byte.
///
/// # Errors
/// Those of the connection.
pub async fn is_sidecar(stream: &tokio::net::TcpStream, limit: Duration) -> io::Result<bool> {
    let judge = |bytes: &[u8]| match hello::is_tls(bytes) {
        false => Some(false),
        true => hello::offers(bytes, OFFERED),
    };
    Ok(hello::peek(stream, limit, judge).await?.unwrap_or(false))
}

/// Shakes hands with a sidecar as the pod. A client without a certificate, or with one that the mesh's roots do not vouch for, is refused.
///
/// # Errors
/// Why there is no connection; it is over then.
pub async fn accept_sidecar(
    tcp: Armed,
    certificate: &IdentityCertificate,
    revocations: Option<&Arc<Revocations>>,
    limit: Duration,
) -> Result<SidecarStream, HandshakeError> {
    let shaken = tokio::time::timeout(limit, TlsAcceptor::from(certificate.sidecar_config()).accept(tcp)).await;
    let tls = shaken.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(of_tls)?;
    let agreed = tls.get_ref().1.alpn_protocol();
    if !agreed.is_some_and(|name| AGREED.contains(&name)) {
        return Err(HandshakeError::Alpn);
    }
    let chain = tls.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
    let peer = peer_identity(&chain).map_err(HandshakeError::Peer)?;
    let revoked = CancellationToken::new();
    let admission = revocations.map(|revocations| admit(revocations, certificate, chain, &revoked)).transpose();
    let admission = admission.map_err(HandshakeError::Peer)?;
    Ok(SidecarStream { tls: Box::new(tls), peer, revoked, _admission: admission })
}

fn admit(
    revocations: &Arc<Revocations>,
    certificate: &IdentityCertificate,
    chain: Vec<rustls::pki_types::CertificateDer<'static>>,
    revoked: &CancellationToken,
) -> Result<Admission, VerifyError> {
    let (usage, at) = (Usage::Client, mesh_runtime::clock::now());
    let token = revoked.clone();
    revocations.admit(Proof { chain, roots: certificate.roots().clone(), usage, at }, move || token.cancel())
}

/// What rustls says comes wrapped in an error of input.
fn of_tls(error: io::Error) -> HandshakeError {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(inner) => inner.clone().into(),
        None => error.into(),
    }
}

/// The client's certificate is required and verified as that of tunnels; sidecars speak TLS 1.2 as well. No tickets: a resumed session would skip that.
pub(super) fn server_config(roots: &Arc<Roots>, key: &Arc<CertifiedKey>) -> ServerConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_details(provider, Arc::new(WallClock))
        .with_safe_default_protocol_versions()
        .expect("the provider has suites of both versions")
        .with_client_cert_verifier(Arc::new(ClientVerifier::new(roots.clone())))
        .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(key.clone())));
    config.alpn_protocols = AGREED.iter().map(|name| name.to_vec()).collect();
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config
}

impl SidecarStream {
    /// Who the client proved to be.
    #[must_use]
    pub fn peer(&self) -> &Identity {
        &self.peer
    }

    /// Cancelled when the client's certificate is revoked.
    #[must_use]
    pub fn revoked(&self) -> &CancellationToken {
        &self.revoked
    }

    /// The connection below.
    #[must_use]
    pub fn socket(&self) -> &Armed {
        self.tls.get_ref().0
    }
}

impl AsyncRead for SidecarStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tls).poll_read(cx, buffer)
    }
}

impl AsyncWrite for SidecarStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().tls).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tls).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tls).poll_shutdown(cx)
    }
}
