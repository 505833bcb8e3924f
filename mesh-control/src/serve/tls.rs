//! The listener of both services: TLS 1.3 only, with a certificate of the mesh's own root that is renewed while it serves. A client that does
//! not finish its handshake in time, or opens too many, holds up nobody else.

use std::collections::HashMap;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use mesh_runtime::drain::DrainToken;
use mesh_runtime::task;
use parking_lot::Mutex;
use rcgen::SanType;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use crate::access::check::Known;
use crate::ca::authority::Authority;
use crate::ca::keeper::Renewed;
use crate::ca::sign::{self, SignError};
use crate::clock;

/// For the whole handshake, not for each read.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Until somebody has shown a token; who has none may not keep others from connecting.
const INTRODUCTION: Duration = Duration::from_secs(15);
/// Connections at once, all clients together.
const MAX_CONNECTIONS: usize = 16_384;
/// Connections at once from one address: a node's agents have a few.
const MAX_CONNECTIONS_EACH: usize = 128;

/// The listener's certificate, replaceable.
#[derive(Debug)]
pub struct ServerCertificate {
    /// With the time at which it was made.
    current: ArcSwap<(Arc<CertifiedKey>, SystemTime)>,
    names: Vec<SanType>,
    lifetime: Duration,
}

impl ServerCertificate {
    /// A certificate for `names`, signed by `authority`.
    pub fn new(
        authority: &Authority,
        names: Vec<SanType>,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Self, SignError> {
        let current = ArcSwap::from_pointee((make(authority, &names, lifetime, now)?, now));
        Ok(Self { current, names, lifetime })
    }

    /// Whether it should be replaced. Clients judge it by their clocks, which ours agrees with once it has been set right.
    pub fn is_due(&self, now: SystemTime) -> bool {
        clock::is_due(self.current.load().1, self.lifetime, now)
    }
}

impl Renewed for ServerCertificate {
    fn renew(&self, authority: &Authority, is_new: bool, now: SystemTime) {
        if !is_new && !self.is_due(now) {
            return;
        }
        match make(authority, &self.names, self.lifetime, now) {
            Ok(made) => self.current.store(Arc::new((made, now))),
            Err(error) => tracing::error!(%error, "cannot renew a listener's certificate"),
        }
    }
}

fn make(
    authority: &Authority,
    names: &[SanType],
    lifetime: Duration,
    now: SystemTime,
) -> Result<Arc<CertifiedKey>, SignError> {
    let (certificate, key) = sign::server(authority, names, lifetime, now)?;
    let provider = provider();
    let key = provider.key_provider.load_private_key(key).map_err(|e| SignError::Library(e.to_string()))?;
    let chain = [certificate].into_iter().chain(authority.chain().iter().cloned()).collect();
    Ok(Arc::new(CertifiedKey::new(chain, key)))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

impl ResolvesServerCert for ServerCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load().0.clone())
    }
}

/// The configuration of the listener.
pub fn config(certificate: Arc<ServerCertificate>) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec()];
    // Nobody reconnects often enough to gain from tickets, and none can outlive its root this way.
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// A connection whose handshake is done. It ends if nobody on it shows a token in time.
#[derive(Debug)]
pub struct Secured {
    stream: TlsStream<TcpStream>,
    known: Known,
    /// Until it is known.
    deadline: Option<Pin<Box<Sleep>>>,
    _counted: Counted,
}

impl Connected for Secured {
    type ConnectInfo = Known;
    fn connect_info(&self) -> Known {
        self.known.clone()
    }
}

impl AsyncRead for Secured {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        if self.known.is_known() {
            self.deadline = None;
        } else if self.deadline.as_mut().is_some_and(|deadline| deadline.as_mut().poll(cx).is_ready()) {
            return Poll::Ready(Err(std::io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Secured {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Accepts until the drain starts; finished handshakes arrive in the channel.
pub async fn accept(
    listener: TcpListener,
    config: Arc<ServerConfig>,
    drain: DrainToken,
    out: mpsc::Sender<std::io::Result<Secured>>,
) {
    let acceptor = TlsAcceptor::from(config);
    let total = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let each: Arc<Mutex<HashMap<IpAddr, usize>>> = Arc::default();
    loop {
        let Ok(permit) = total.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = drain.started() => return,
            () = out.closed() => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accept");
                // Out of descriptors, mostly: the backlog waits, the processor does not spin.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Some(counted) = Counted::new(&each, peer.ip(), permit) else {
            tracing::debug!(%peer, "too many connections from this address");
            continue;
        };
        let (acceptor, out) = (acceptor.clone(), out.clone());
        task::spawn("handshake", async move {
            let _ = stream.set_nodelay(true);
            let done = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await;
            match done {
                Ok(Ok(stream)) => {
                    let deadline = Some(Box::pin(tokio::time::sleep(INTRODUCTION)));
                    let secured = Secured { stream, known: Known::default(), deadline, _counted: counted };
                    drop(out.send(Ok(secured)).await);
                }
                Ok(Err(error)) => tracing::debug!(%peer, %error, "handshake failed"),
                Err(_) => tracing::debug!(%peer, "handshake timed out"),
            }
        });
    }
}

/// One connection of an address.
#[derive(Debug)]
struct Counted {
    each: Arc<Mutex<HashMap<IpAddr, usize>>>,
    address: IpAddr,
    _permit: OwnedSemaphorePermit,
}

impl Counted {
    fn new(each: &Arc<Mutex<HashMap<IpAddr, usize>>>, address: IpAddr, permit: OwnedSemaphorePermit) -> Option<Self> {
        let mut counts = each.lock();
        let count = counts.entry(address).or_default();
        if *count >= MAX_CONNECTIONS_EACH {
            return None;
        }
        *count += 1;
        drop(counts);
        Some(Self { each: each.clone(), address, _permit: permit })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut counts = self.each.lock();
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}
