//! What live taps hear of a connection that is over, or was refused: what its line of the log says. Called by `connection` and `handle`, while anybody listens.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use mesh_core::snapshot::Snapshot;
use mesh_core::tap::{End, Kind, Seen, Selector};
use mesh_core::{Identity, Service};
use mesh_runtime::tap::Taps;

use super::connection::{ConnectionLabels, Outcome};
use super::labels::{Reporter, ResponseFlags};
use super::series::Peer;

/// When it began: so long ago.
struct Start(Duration);

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let began = mesh_runtime::clock::now() - self.0;
        Timestamp::try_from(began).map_or(Ok(()), |at| write!(f, "{at:.3}"))
    }
}

/// It is over. `bytes` are those of the client and those of the server.
#[cold]
pub(super) fn closed(
    taps: &Taps<Selector>,
    labels: &ConnectionLabels,
    bytes: (u64, u64),
    duration: Duration,
    outcome: &Outcome,
    now: Instant,
) {
    let (start, address) = (Start(duration), labels.hbone_target.unwrap_or(labels.destination_address));
    let seen = Seen {
        source: end(&labels.source, labels.source_identity.as_ref(), labels.source_address),
        destination: end(&labels.destination, labels.destination_identity.as_ref(), address),
        service: labels.service.as_ref().map(|service| (&*service.namespace, &*service.hostname)),
        flags: outcome.flags().as_str(),
        details: outcome.error().unwrap_or_default(),
        duration_ms: u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
        received: bytes.0,
        sent: bytes.1,
        security: labels.security.as_str(),
        ..nothing(labels.reporter, &start)
    };
    // All that is told of it was known when it began, whoever listened then.
    taps.offer(now, now, |selector| selector.selects(&seen), || seen.line());
}

/// A connection that was refused before anything of its ends was known but their addresses.
#[derive(Clone, Copy, Debug)]
pub struct Refusal<'a> {
    /// Which end we are.
    pub reporter: Reporter,
    /// Who asked; unspecified if that is not known.
    pub from: SocketAddr,
    /// Whom it wanted to reach.
    pub to: SocketAddr,
    /// Why.
    pub error: &'a str,
    /// Why, as a flag.
    pub flags: ResponseFlags,
    /// `tcp` or `udp`.
    pub protocol: &'static str,
}

/// Whose addresses those are, for who asks for a name. Nobody has proved anything.
#[derive(Debug, Default)]
pub struct Parties {
    source: Peer,
    destination: Peer,
    service: Option<Arc<Service>>,
}

impl Parties {
    /// Looks them up.
    pub fn of(snapshot: &Snapshot, network: &str, from: IpAddr, to: IpAddr) -> Self {
        let peer = |address: IpAddr| Peer::from(snapshot.workload_by_address(network, &address).cloned());
        Self { source: peer(from), destination: peer(to), service: snapshot.service_by_address(network, &to).cloned() }
    }
}

/// It was refused.
#[cold]
pub(super) fn refused(taps: &Taps<Selector>, refusal: &Refusal<'_>, parties: &Parties, now: Instant) {
    let start = Start(Duration::ZERO);
    let seen = Seen {
        source: end(&parties.source, None, refusal.from),
        destination: end(&parties.destination, None, refusal.to),
        service: parties.service.as_ref().map(|service| (&*service.namespace, &*service.hostname)),
        flags: refusal.flags.as_str(),
        details: refusal.error,
        protocol: refusal.protocol,
        ..nothing(refusal.reporter, &start)
    };
    taps.offer(now, now, |selector| selector.selects(&seen), || seen.line());
}

fn nothing(reporter: Reporter, time: &dyn fmt::Display) -> Seen<'_> {
    Seen {
        kind: Kind::Connection,
        time,
        source: End::default(),
        destination: End::default(),
        service: None,
        routed: None,
        asked: None,
        protocol: "tcp",
        status: None,
        grpc_status: None,
        flags: ResponseFlags::None.as_str(),
        details: "",
        failure: "",
        duration_ms: 0,
        received: 0,
        sent: 0,
        attempts: None,
        rule: "",
        direction: reporter.direction(),
        security: "",
    }
}

fn end<'a>(peer: &'a Peer, identity: Option<&'a Identity>, address: SocketAddr) -> End<'a> {
    let (namespace, workload, pod) = match peer {
        Peer::Unknown => (identity.map_or("", |identity| &*identity.namespace), "", ""),
        Peer::Workload(workload) => (&*workload.namespace, &*workload.workload_name, &*workload.name),
        Peer::Labels(labels) => (&*labels.namespace, &*labels.workload, ""),
    };
    let identity = identity.map(|identity| identity as &dyn fmt::Display);
    End { address: Some(address), namespace, workload, pod, identity }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flag_can_be_asked_for() {
        assert!(ResponseFlags::ALL.iter().all(|flag| mesh_core::tap::FLAGS.contains(&flag.as_str())));
    }
}
