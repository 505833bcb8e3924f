//! Why the proxy refused or lost a connection: one word per reason, the same in logs and in the metric `undermesh_proxy_refused_total`.

use std::fmt;

use mesh_core::Refusal;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelSetEncoder, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

/// Declares the reasons with their words, so that a reason cannot lack one.
macro_rules! reasons {
    ($($(#[doc = $doc:literal])* $name:ident = $word:literal,)+) => {
        /// A reason to refuse.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[doc = $doc])* $name,)+ }

        impl Reason {
            /// Every reason.
            pub const ALL: &'static [Reason] = &[$(Reason::$name,)+];

            /// Its word.
            pub fn as_str(self) -> &'static str {
                match self { $(Reason::$name => $word,)+ }
            }
        }
    };
}

reasons! {
    /// A captured connection came from an address that is not the pod's: slot addresses can be reached by others in IPv6.
    PeerNotPod = "peer_not_pod",
    /// A connection reached the agent's port without having been captured.
    NotCaptured = "not_captured",
    /// The pod has its limit of connections.
    ConnectionLimit = "connection_limit",
    /// No configuration has ever arrived, and did not within the hold time.
    NotSynced = "not_synced",
    /// The service has no endpoint that could take the connection.
    NoEndpoints = "no_endpoints",
    /// The service does not have the port.
    UnknownPort = "unknown_port",
    /// An address of the mesh that nobody is known to own.
    UnknownMeshAddress = "unknown_mesh_address",
    /// An address outside of the mesh that nobody is known to have, where only such may be reached.
    NotInRegistry = "not_in_registry",
    /// A port of the mesh itself: a loop or a spoof.
    MeshPort = "mesh_port",
    /// A destination that has a waypoint, which cannot be reached.
    NoWaypoint = "no_waypoint",
    /// A route of the destination refuses the connection, or leads nowhere.
    Route = "route_refused",
    /// A destination that only a gateway leads to.
    Destination = "destination_refused",
    /// A tunnel arrived for an address that is not the pod's.
    NotPodAddress = "not_pod_address",
    /// Too many handshakes from one address, or in all.
    HalfOpenLimit = "half_open_limit",
    /// The peer did not finish the handshake, or not in time.
    Handshake = "handshake_failed",
    /// A request for another address than the one that the tunnel leads to.
    IpMismatch = "ip_mismatch",
    /// A request that makes no sense.
    BadRequest = "bad_request",
    /// A host that this pod does not serve.
    UnknownHost = "unknown_host",
    /// The pod's own workload is not known, or the configuration shows somebody else under its address.
    UnknownWorkload = "unknown_workload",
    /// A policy denies it.
    Denied = "denied",
    /// A policy denies it now; it was allowed when it was opened.
    DeniedLater = "denied_later",
    /// The app did not accept the connection.
    AppUnreachable = "app_unreachable",
    /// The client's address could not be passed to the kernel.
    ClientAddress = "client_address",
    /// There is no certificate for the pod.
    NoCertificate = "no_certificate",
    /// Somebody else than expected answered.
    PeerIdentityMismatch = "peer_identity_mismatch",
    /// The destination could not be reached.
    Upstream = "upstream_unreachable",
    /// The destination's agent denied it.
    DeniedByPeer = "denied_by_peer",
    /// The pod or the agent is stopping.
    Stopping = "stopping",
}

impl From<&Refusal> for Reason {
    fn from(refusal: &Refusal) -> Reason {
        match refusal {
            Refusal::NotSynced => Reason::NotSynced,
            Refusal::NoEndpoints { .. } => Reason::NoEndpoints,
            Refusal::UnknownPort { .. } => Reason::UnknownPort,
            Refusal::UnknownMeshAddress(_) => Reason::UnknownMeshAddress,
            Refusal::NotInRegistry { .. } => Reason::NotInRegistry,
            Refusal::MeshPort(_) => Reason::MeshPort,
            Refusal::NoWaypoint { .. } => Reason::NoWaypoint,
            Refusal::Route { .. } => Reason::Route,
            Refusal::RemoteNetwork { .. } => Reason::Destination,
        }
    }
}

/// The counters, one per reason, resolved once so that a flood of refusals takes no lock.
#[derive(Debug)]
pub struct RefusalCounters {
    counters: Vec<Counter>,
}

impl RefusalCounters {
    /// Registers the family.
    pub fn new(registry: &mut Registry) -> RefusalCounters {
        let family = Family::<ReasonLabel, Counter>::default();
        registry.register(
            "undermesh_proxy_refused",
            "Connections that the proxy refused or cut, by reason",
            family.clone(),
        );
        RefusalCounters {
            counters: Reason::ALL.iter().map(|reason| family.get_or_create(&ReasonLabel(*reason)).clone()).collect(),
        }
    }

    /// Counts one.
    pub fn count(&self, reason: Reason) {
        self.counters[reason as usize].inc();
    }

    /// The count so far.
    pub fn of(&self, reason: Reason) -> u64 {
        self.counters[reason as usize].get()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct ReasonLabel(Reason);

impl EncodeLabelSet for ReasonLabel {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        let mut label = encoder.encode_label();
        let mut key = label.encode_label_key()?;
        fmt::Write::write_str(&mut key, "reason")?;
        let mut value: LabelValueEncoder<'_> = key.encode_label_value()?;
        self.0.as_str().encode(&mut value)?;
        value.finish()
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_word_and_counter() {
        let mut registry = Registry::default();
        let counters = RefusalCounters::new(&mut registry);
        for reason in Reason::ALL {
            counters.count(*reason);
            assert_eq!(counters.of(*reason), 1, "{reason}");
        }
        let mut words: Vec<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), Reason::ALL.len());
    }
}
