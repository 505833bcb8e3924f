//! What one connection moved. Counted by the copy and by the streams of a tunnel, read by telemetry.

use std::sync::atomic::AtomicU64;

/// Bytes moved so far; read while the connection lives.
#[derive(Debug, Default)]
pub struct ByteCounters {
    /// From the local socket to the peer.
    pub sent: AtomicU64,
    /// From the peer to the local socket.
    pub received: AtomicU64,
}
