//! The part that every connection shares once both ends are open: copy, count, tell how it ended.

use mesh_core::EndpointLease;
use mesh_transport::copy::{self, Outcome as CopyOutcome, Peer, Side};
use mesh_transport::path::Measured;
use mesh_transport::socket::Armed;

use super::connections::{CutReason, Registration};
use crate::telemetry::{ConnectionGuard, Outcome, ResponseFlags, SocketGuard};

/// A connection that is set up: both ends are open, and this is all that its task keeps for the rest of its life.
pub struct Carried {
    /// The local app's socket.
    pub app: Armed,
    /// The other end.
    pub peer: Peer,
    /// Its entry, and so what may cut it.
    pub registration: Registration,
    /// Its entry as the destination, when the pod called itself: the policies of that side may cut it too.
    pub hairpin: Option<Registration>,
    /// Count it, at its endpoint and as an open socket, as long as it lives.
    pub counted: (Option<EndpointLease>, Option<SocketGuard>),
    /// Its telemetry.
    pub guard: ConnectionGuard,
}

impl Carried {
    /// Copies until both directions are done or the connection is cut, then closes the telemetry.
    ///
    /// Boxed, because a future keeps a copy of what it is given for each function it is handed through.
    pub async fn run(self: Box<Self>) {
        let live = self.hairpin.as_ref().unwrap_or(&self.registration).live();
        let counters = self.guard.counters();
        live.count_with(counters.clone());
        let peer = match self.peer {
            // A tunnel is measured as a whole, and what stays in the pod sees no network.
            Peer::Tcp(socket) if self.hairpin.is_none() => {
                let measured = Measured::new(socket, self.guard.path());
                self.registration.live().watch_with(measured.watch());
                Peer::Measured(measured)
            }
            peer => peer,
        };
        let ended = copy::bidirectional(self.app, peer, counters, live.cut().clone()).await;
        self.guard.close(outcome(ended, live.cut_reason()));
        drop(self.counted);
    }
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
