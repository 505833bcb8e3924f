//! The TLS handshake of a tunnel, through rustls' unbuffered interface: every byte stays in buffers of ours, so that the record layer can
//! take over exactly where the handshake ended. Called by the pool (client) and the acceptor (server); both put the deadline around it.

use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use mesh_core::identity::Identity;
use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::{CertificateDer, IpAddr, Ipv4Addr, ServerName};
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, UnbufferedStatus};
use rustls::{AlertDescription, ClientConfig, ConnectionTrafficSecrets, ExtractedSecrets, ServerConfig};
use socket2::SockRef;
use tokio::net::TcpStream;

use super::record::{Opener, RecordError, Sealer};
use super::verify::{self, VerifyError, identity_and_end};

/// Most handshake bytes held at once. The largest honest flight is a 16 KiB chain; a peer that needs more is not one.
const INCOMING_LIMIT: usize = 64 * 1024;
/// Longest record that any version of TLS allows.
const RECORD_LIMIT: usize = (1 << 14) + 2048;

/// Why a handshake failed. Cheap to clone.
#[derive(Debug, Clone, thiserror::Error)]
pub enum HandshakeError {
    /// The socket failed or the peer closed it.
    #[error("{0}")]
    Io(Arc<io::Error>),
    /// What arrived is not TLS.
    #[error("not_tls")]
    NotTls,
    /// TLS refused: an alert, an incompatibility, a bad certificate.
    #[error("{0}")]
    Tls(Arc<rustls::Error>),
    /// The peer's certificate was refused by the mesh's rules.
    #[error("{0}")]
    Peer(VerifyError),
    /// The peer did not agree to speak HTTP/2.
    #[error("peer did not negotiate h2")]
    Alpn,
    /// The peer refused us after our side of the handshake was done; the number is the TLS alert.
    #[error("peer refused us with tls alert {0}")]
    PeerAlert(u8),
    /// A handshake message too large to be honest.
    #[error("handshake of more than {INCOMING_LIMIT} bytes")]
    TooLarge,
}

impl HandshakeError {
    /// Whether the peer said that it refuses for a limit. Anybody on the way can say so: it must not excuse more than a failed dial.
    pub(crate) fn is_busy(&self) -> bool {
        matches!(self, Self::Tls(error) if **error == rustls::Error::AlertReceived(AlertDescription::UserCanceled))
    }

    /// A short stable name for logs and counters.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Io(_) => "handshake_closed",
            Self::NotTls => "not_tls",
            Self::Tls(_) => "tls_failed",
            Self::Peer(VerifyError::PeerIdentityMismatch { .. }) => "peer_identity_mismatch",
            Self::Peer(VerifyError::Revoked) => "peer_revoked",
            Self::Peer(_) => "peer_refused",
            Self::PeerAlert(_) => "refused_by_peer",
            Self::Alpn => "no_h2",
            Self::TooLarge => "handshake_too_large",
        }
    }
}

impl From<io::Error> for HandshakeError {
    fn from(error: io::Error) -> Self {
        Self::Io(Arc::new(error))
    }
}

impl From<rustls::Error> for HandshakeError {
    fn from(error: rustls::Error) -> Self {
        match verify::cause(&error) {
            Some(cause) => Self::Peer(cause.clone()),
            None if matches!(error, rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType)) => {
                Self::NotTls
            }
            None => Self::Tls(Arc::new(error)),
        }
    }
}

impl From<RecordError> for HandshakeError {
    fn from(error: RecordError) -> Self {
        Self::Tls(Arc::new(rustls::Error::General(error.to_string())))
    }
}

/// Gives the next secrets when a side updates its key.
pub(crate) trait KeySchedule: Send {
    fn next_sealer(&mut self) -> Result<Sealer, HandshakeError>;
    fn next_opener(&mut self) -> Result<Opener, HandshakeError>;
}

impl<Data: Send> KeySchedule for rustls::kernel::KernelConnection<Data> {
    fn next_sealer(&mut self) -> Result<Sealer, HandshakeError> {
        let (sequence, secrets): (u64, ConnectionTrafficSecrets) = self.update_tx_secret()?;
        Ok(Sealer::new(sequence, &secrets)?)
    }

    fn next_opener(&mut self) -> Result<Opener, HandshakeError> {
        let (sequence, secrets): (u64, ConnectionTrafficSecrets) = self.update_rx_secret()?;
        Ok(Opener::new(sequence, &secrets)?)
    }
}

/// A TCP connection after a mutual handshake: both halves of the record layer, and what arrived or still has to leave with the last flight.
pub struct TlsStream {
    pub(crate) tcp: TcpStream,
    pub(crate) peer: Identity,
    /// The peer's certificates, leaf first, and when the leaf's validity ends.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) expires: SystemTime,
    pub(crate) sealer: Sealer,
    pub(crate) opener: Opener,
    pub(crate) keys: Box<dyn KeySchedule>,
    /// Encrypted bytes that arrived behind the handshake.
    pub(crate) received: Vec<u8>,
    /// Content that rustls has already decrypted.
    pub(crate) opened: Vec<u8>,
    /// The client's last flight, to be sent together with the first request.
    pub(crate) unsent: Vec<u8>,
}

impl std::fmt::Debug for TlsStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsStream").field("peer", &self.peer).finish_non_exhaustive()
    }
}

/// The two kinds of unbuffered connection, which share no trait in rustls.
trait Side: Sized {
    type Data: Send + 'static;
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
    fn handshaking(&self) -> bool;
    fn wants_write(&self) -> bool;
    fn agreed(&self) -> (Option<&[u8]>, Option<&[CertificateDer<'static>]>);
    fn extract(self) -> Result<(ExtractedSecrets, Box<dyn KeySchedule>), rustls::Error>;
}

macro_rules! side {
    ($connection:ty, $data:ty) => {
        impl Side for $connection {
            type Data = $data;
            fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
                self.process_tls_records(incoming)
            }
            fn handshaking(&self) -> bool {
                self.is_handshaking()
            }
            fn wants_write(&self) -> bool {
                std::ops::Deref::deref(self).wants_write()
            }
            fn agreed(&self) -> (Option<&[u8]>, Option<&[CertificateDer<'static>]>) {
                (self.alpn_protocol(), self.peer_certificates())
            }
            fn extract(self) -> Result<(ExtractedSecrets, Box<dyn KeySchedule>), rustls::Error> {
                let (secrets, kernel) = self.dangerous_into_kernel_connection()?;
                Ok((secrets, Box::new(kernel)))
            }
        }
    };
}
side!(UnbufferedClientConnection, rustls::client::ClientConnectionData);
side!(UnbufferedServerConnection, rustls::server::ServerConnectionData);

/// Shakes hands as the client.
pub(crate) async fn connect(tcp: TcpStream, config: Arc<ClientConfig>) -> Result<TlsStream, HandshakeError> {
    // The name is never sent nor compared: the verifier looks at identities.
    let name = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::from([0, 0, 0, 0])));
    shake(tcp, UnbufferedClientConnection::new(config, name)?, true).await
}

/// Shakes hands as the server.
pub(crate) async fn accept(tcp: TcpStream, config: Arc<ServerConfig>) -> Result<TlsStream, HandshakeError> {
    shake(tcp, UnbufferedServerConnection::new(config)?, false).await
}

enum Step {
    Again,
    Transmit,
    Read,
    Done,
    Fail(HandshakeError),
}

async fn shake<S: Side>(tcp: TcpStream, mut side: S, client: bool) -> Result<TlsStream, HandshakeError> {
    let mut incoming = Vec::new();
    let mut outgoing = Vec::new();
    let mut opened = Vec::new();
    // rustls sees one record more at a time, and none behind the last one of the handshake: it would answer a KeyUpdate there with one of its own,
    // which it sends with its next data, that is never.
    let mut shown = 0;
    loop {
        let UnbufferedStatus { mut discard, state, .. } = side.process(&mut incoming[..shown]);
        let step = match state {
            Ok(ConnectionState::EncodeTlsData(mut data)) => {
                encode(&mut outgoing, |buffer| data.encode(buffer))?;
                Step::Again
            }
            Ok(ConnectionState::TransmitTlsData(data)) => {
                data.done();
                Step::Transmit
            }
            Ok(ConnectionState::BlockedHandshake) => Step::Read,
            Ok(ConnectionState::WriteTraffic(_)) => Step::Done,
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                while let Some(record) = traffic.next_record() {
                    let record = record?;
                    discard += record.discard;
                    opened.extend_from_slice(record.payload);
                }
                Step::Again
            }
            Ok(_) => Step::Fail(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Err(error) => Step::Fail(error.into()),
        };
        incoming.drain(..discard);
        shown -= discard;
        match step {
            Step::Again => {}
            // The client's last flight waits for the first request: one packet instead of two.
            Step::Transmit if client && !side.handshaking() => {}
            Step::Transmit => {
                write_all(&tcp, &outgoing).await?;
                outgoing.clear();
            }
            Step::Done if !side.handshaking() => break,
            Step::Done | Step::Read => {
                shown = loop {
                    match record_end(&incoming, shown) {
                        Some(end) => break end,
                        None => read_more(&tcp, &mut incoming).await?,
                    }
                };
            }
            Step::Fail(error) => {
                send_alert(&tcp, &mut side, &mut outgoing);
                return Err(error);
            }
        }
    }
    let (alpn, certificates) = side.agreed();
    if alpn != Some(b"h2") {
        return Err(HandshakeError::Alpn);
    }
    let chain = certificates.unwrap_or_default().to_vec();
    let (peer, expires) = identity_and_end(&chain).map_err(HandshakeError::Peer)?;
    let (secrets, keys) = side.extract()?;
    let sealer = Sealer::new(secrets.tx.0, &secrets.tx.1)?;
    let opener = Opener::new(secrets.rx.0, &secrets.rx.1)?;
    Ok(TlsStream { tcp, peer, chain, expires, sealer, opener, keys, received: incoming, opened, unsent: outgoing })
}

/// Where the record that begins at `start` ends, once it is there. What cannot be a record is for rustls to refuse at once.
fn record_end(incoming: &[u8], start: usize) -> Option<usize> {
    let &[content_type, _, _, high, low] = incoming[start..].first_chunk()?;
    let length = usize::from(u16::from_be_bytes([high, low]));
    if !(20..=23).contains(&content_type) || length > RECORD_LIMIT {
        return Some(incoming.len());
    }
    let end = start + 5 + length;
    (end <= incoming.len()).then_some(end)
}

fn encode(
    outgoing: &mut Vec<u8>,
    mut encode: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>,
) -> Result<(), HandshakeError> {
    let used = outgoing.len();
    let mut room = 4096;
    loop {
        outgoing.resize(used + room, 0);
        match encode(&mut outgoing[used..]) {
            Ok(written) => {
                outgoing.truncate(used + written);
                return Ok(());
            }
            Err(EncodeError::InsufficientSize(size)) => room = size.required_size,
            Err(error) => return Err(rustls::Error::General(error.to_string()).into()),
        }
    }
}

/// After an error rustls may hold an alert for the peer. Best effort: the connection is over. Nothing else may be asked of rustls any more: it panics when
/// it meets what is left of the peer's flight, and as well when that is gone.
fn send_alert<S: Side>(tcp: &TcpStream, side: &mut S, outgoing: &mut Vec<u8>) {
    while side.wants_write() {
        let Ok(ConnectionState::EncodeTlsData(mut data)) = side.process(&mut []).state else { break };
        if encode(outgoing, |buffer| data.encode(buffer)).is_err() {
            break;
        }
    }
    if !outgoing.is_empty() {
        let _ = tcp.try_write(outgoing);
    }
}

/// A fatal alert in the clear, which no failure sends: we refuse before we have read anything, as there are too many.
const BUSY: [u8; 7] = [21, 3, 3, 0, 2, 2, 90];

/// Tells a client that its connection is refused for a limit. Best effort; the connection is over.
pub(crate) fn say_busy(tcp: &TcpStream) {
    // Not through the reactor, which has not heard yet that a new socket can be written.
    let _ = SockRef::from(tcp).send(&BUSY);
}

async fn write_all(tcp: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match tcp.try_write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => tcp.writable().await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

async fn read_more(tcp: &TcpStream, incoming: &mut Vec<u8>) -> Result<(), HandshakeError> {
    if incoming.len() >= INCOMING_LIMIT {
        return Err(HandshakeError::TooLarge);
    }
    let room = (INCOMING_LIMIT - incoming.len()).min(8 * 1024);
    incoming.reserve(room);
    loop {
        match tcp.try_read_buf(&mut bytes::BufMut::limit(&mut *incoming, room)) {
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => tcp.readable().await?,
            Err(error) => return Err(error.into()),
        }
    }
}
