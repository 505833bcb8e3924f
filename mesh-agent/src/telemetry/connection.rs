//! One connection's telemetry: counters while it lives; one close and one log line when it ends, however it ends.
//!
//! The proxy opens a guard as soon as it knows both ends (or knows that it will not), copies bytes into the guard's counters, and closes
//! the guard with the outcome. A guard that is dropped (its task was cancelled or panicked) closes itself and says so.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use mesh_core::identity::Identity;
use mesh_core::service::Service;
use mesh_runtime::paths::PathCounters;
use mesh_transport::copy::ByteCounters;

use super::Telemetry;
use super::access_log::Level;
use super::labels::{Reporter, ResponseFlags, Security};
use super::series::{End, Ends, Peer, Series};
use super::tap;

/// What the proxy knows of a connection when it opens.
#[derive(Clone, Debug)]
pub struct ConnectionLabels {
    /// Which end this agent is.
    pub reporter: Reporter,
    /// Workload of the client.
    pub source: Peer,
    /// Identity of the client that this flow proved (inbound: the TLS peer) or asserts (outbound: our certificate). `None` for plaintext.
    pub source_identity: Option<Identity>,
    /// Workload of the server.
    pub destination: Peer,
    /// Identity of the server, as for the client.
    pub destination_identity: Option<Identity>,
    /// Service that the client addressed.
    pub service: Option<Arc<Service>>,
    /// What was checked on this flow.
    pub security: Security,
    /// Client address.
    pub source_address: SocketAddr,
    /// Address of the server: for a tunnel, with the tunnel's port.
    pub destination_address: SocketAddr,
    /// The address behind the tunnel.
    pub hbone_target: Option<SocketAddr>,
}

impl ConnectionLabels {
    /// A connection of which only the addresses are known.
    pub fn unknown(reporter: Reporter, source_address: SocketAddr, destination_address: SocketAddr) -> Self {
        Self {
            reporter,
            source: Peer::Unknown,
            source_identity: None,
            destination: Peer::Unknown,
            destination_identity: None,
            service: None,
            security: Security::Unknown,
            source_address,
            destination_address,
            hbone_target: None,
        }
    }

    fn ends(&self) -> Ends {
        Ends {
            reporter: self.reporter,
            security: self.security,
            source: End { peer: self.source.clone(), identity: self.source_identity.clone() },
            destination: End { peer: self.destination.clone(), identity: self.destination_identity.clone() },
            service: self.service.clone(),
        }
    }
}

/// How a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Both ends finished.
    Complete,
    /// Bytes flowed, then an end or the mesh cut it. Not a failure of the mesh: no failure is counted, the log says why.
    Interrupted(Cow<'static, str>),
    /// It never carried what it was opened for.
    Failed {
        /// Why, in the words of the metric.
        flags: ResponseFlags,
        /// Why, for the log.
        error: Cow<'static, str>,
    },
}

impl Outcome {
    /// A failure with its reason.
    pub fn failed(flags: ResponseFlags, error: impl Into<Cow<'static, str>>) -> Self {
        Self::Failed { flags, error: error.into() }
    }

    /// A cut with its reason.
    pub fn interrupted(error: impl Into<Cow<'static, str>>) -> Self {
        Self::Interrupted(error.into())
    }

    pub(crate) fn flags(&self) -> ResponseFlags {
        match self {
            Self::Complete | Self::Interrupted(_) => ResponseFlags::None,
            Self::Failed { flags, .. } => *flags,
        }
    }

    pub(crate) fn error(&self) -> Option<&str> {
        match self {
            Self::Complete => None,
            Self::Interrupted(error) | Self::Failed { error, .. } => Some(error),
        }
    }
}

/// Bytes from client to server and from server to client.
///
/// The copy's first socket is the application of this node: the client when this end is the source, else the server.
pub(crate) fn request_response(reporter: Reporter, counters: &ByteCounters) -> (u64, u64) {
    let (sent, received) = (counters.sent.load(Relaxed), counters.received.load(Relaxed));
    match reporter {
        Reporter::Source => (sent, received),
        Reporter::Destination => (received, sent),
    }
}

/// The telemetry of one open connection. Exactly one close metric and one access log line come of it.
#[must_use = "dropping the guard closes the connection's telemetry as aborted"]
pub struct ConnectionGuard {
    telemetry: Telemetry,
    labels: ConnectionLabels,
    series: Arc<Series>,
    slot: u32,
    counters: Arc<ByteCounters>,
    opened: Instant,
    closed: bool,
    /// The report of the other end, when no other agent makes it. It follows this one.
    far_end: Option<Box<ConnectionGuard>>,
}

impl ConnectionGuard {
    pub(super) fn open(telemetry: &Telemetry, labels: ConnectionLabels) -> Self {
        let opened = Instant::now();
        let counters = Arc::new(ByteCounters::default());
        let (series, slot) = telemetry.series().open(&labels.ends(), counters.clone(), telemetry.millis(opened));
        if telemetry.access_log().enabled(Level::Debug) {
            telemetry.access_log().opened(&labels);
        }
        Self { telemetry: telemetry.clone(), labels, series, slot, counters, opened, closed: false, far_end: None }
    }

    /// A connection of which this agent serves both ends: each is reported as if by its own agent.
    pub(super) fn open_both_ends(telemetry: &Telemetry, labels: ConnectionLabels) -> Self {
        let far_end = Self::open(telemetry, ConnectionLabels { reporter: Reporter::Destination, ..labels.clone() });
        let mut guard = Self::open(telemetry, labels);
        guard.far_end = Some(Box::new(far_end));
        guard
    }

    /// The counters that the copy advances: `sent` by the application of this node, `received` by it.
    pub fn counters(&self) -> Arc<ByteCounters> {
        self.counters.clone()
    }

    /// Where the health of its own way over the network is counted, if it does not share one.
    pub fn path(&self) -> Arc<PathCounters> {
        self.telemetry.path(&self.labels.ends())
    }

    /// What the connection was opened with.
    pub fn labels(&self) -> &ConnectionLabels {
        &self.labels
    }

    /// Ends it.
    pub fn close(mut self, outcome: Outcome) {
        self.finish(&outcome);
    }

    fn finish(&mut self, outcome: &Outcome) {
        if std::mem::replace(&mut self.closed, true) {
            return;
        }
        if let Some(far_end) = &mut self.far_end {
            far_end.counters.sent.store(self.counters.received.load(Relaxed), Relaxed);
            far_end.counters.received.store(self.counters.sent.load(Relaxed), Relaxed);
            far_end.finish(outcome);
        }
        let now = Instant::now();
        self.series.leave(self.slot, outcome.flags(), self.telemetry.millis(now));
        let bytes = (self.counters.sent.load(Relaxed), self.counters.received.load(Relaxed));
        self.telemetry.access_log().closed(&self.labels, bytes, now - self.opened, outcome, now);
        if self.telemetry.taps().is_on() {
            let bytes = request_response(self.labels.reporter, &self.counters);
            tap::closed(self.telemetry.taps(), &self.labels, bytes, now - self.opened, outcome, now);
        }
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        if !self.closed {
            self.finish(&Outcome::Interrupted("connection task ended before its connection".into()));
        }
    }
}
