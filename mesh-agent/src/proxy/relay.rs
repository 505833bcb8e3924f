//! The part that every connection shares once both ends are open: copy, count, tell how it ended. And the socket of an app that is not answered yet.

use std::net::SocketAddr;

use mesh_transport::copy::{self, Outcome as CopyOutcome, Peer, Side};
use mesh_transport::socket;
use tokio::net::TcpStream;

use super::connections::{CutReason, Live};
use crate::telemetry::{ConnectionGuard, Outcome, ResponseFlags};

/// A socket that was accepted and not yet connected to anything. Dropping it resets it: whatever ends the set-up (an error, a cut, a panic, the end of
/// the process), the client must never see an orderly end of a connection that was not made.
pub struct Held(TcpStream);

impl Held {
    /// Takes charge of `stream`.
    pub fn new(stream: TcpStream) -> Held {
        socket::arm_reset(&stream);
        Held(stream)
    }

    /// Gives the socket up to the copy, which decides how it ends.
    pub fn release(self) -> TcpStream {
        self.0
    }

    /// Gives the socket up to somebody who ends it in order.
    pub fn disarmed(self) -> TcpStream {
        socket::disarm_reset(&self.0);
        self.0
    }

    /// The address that the client's connection was accepted at.
    pub fn local_address(&self) -> std::io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

/// Copies between the local app and its peer until both are done or `live` is cut, then closes the telemetry.
pub async fn run(app: TcpStream, peer: Peer, live: &Live, guard: ConnectionGuard) {
    let counters = guard.counters();
    live.count_with(counters.clone());
    let ended = copy::bidirectional(app, peer, counters, live.cut().clone()).await;
    guard.close(outcome(ended, live.cut_reason()));
}

/// How the copy ended, in the words of the access log.
fn outcome(ended: CopyOutcome, cut: Option<CutReason>) -> Outcome {
    match (ended, cut) {
        (CopyOutcome::Closed, _) => Outcome::Complete,
        (_, Some(CutReason::Denied)) => Outcome::failed(ResponseFlags::Deny, CutReason::Denied.as_str()),
        (_, Some(reason)) => Outcome::interrupted(reason.as_str()),
        (CopyOutcome::ResetBy(Side::Local), None) => Outcome::interrupted("reset by the local app"),
        (CopyOutcome::ResetBy(Side::Peer), None) => Outcome::interrupted("reset by the peer"),
        (CopyOutcome::Cancelled, None) => Outcome::interrupted("cancelled"),
        (CopyOutcome::Failed(Side::Local, error), None) => Outcome::interrupted(format!("local app: {error}")),
        (CopyOutcome::Failed(Side::Peer, error), None) => Outcome::interrupted(format!("peer: {error}")),
    }
}
