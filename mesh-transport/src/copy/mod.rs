//! Moves bytes both ways between an application's socket and its peer. RST stays RST, half-close stays half-close.
//!
//! Called by the proxy, one future per connection; an idle connection holds no buffer.

mod hbone;
mod tcp;

use std::io;
use std::sync::Arc;

use futures_util::future::Either;
use tokio_util::sync::CancellationToken;

pub use crate::counters::ByteCounters;
use crate::hbone::HboneStream;
use crate::path::Measured;
use crate::socket::Armed;

/// The other end of a copy.
#[derive(Debug)]
pub enum Peer {
    /// A plain connection.
    Tcp(Armed),
    /// The same over the network, whose health is counted.
    Measured(Measured),
    /// A stream of a tunnel.
    Hbone(HboneStream),
}

/// Which end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The local socket.
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
    /// We cut it; both ends were reset.
    Cancelled,
    /// A socket failed; both ends were reset.
    Failed(Side, io::Error),
}

/// Copies until both directions ended. Cancellation resets both ends, and so does dropping the future.
///
/// Not an `async fn`: that would keep its arguments beside the future they were given to.
pub fn bidirectional(
    local: Armed,
    peer: Peer,
    counters: Arc<ByteCounters>,
    cancel: CancellationToken,
) -> impl Future<Output = Outcome> {
    match peer {
        Peer::Tcp(peer) => Either::Left(Either::Left(tcp::copy(local, peer, counters, cancel))),
        Peer::Measured(peer) => Either::Left(Either::Right(tcp::copy(local, peer, counters, cancel))),
        Peer::Hbone(stream) => Either::Right(hbone::copy(local, stream, counters, cancel)),
    }
}

/// The outcome of an error on one side.
fn failed(side: Side, error: io::Error) -> Outcome {
    if crate::socket::is_reset(&error) { Outcome::ResetBy(side) } else { Outcome::Failed(side, error) }
}
