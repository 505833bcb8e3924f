//! A workload: one pod, or one entry that stands for a machine outside the cluster, with its addresses, identity and memberships.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use arcstr::ArcStr;
use serde::{Serialize, Serializer};

use crate::{Client, Identity, NamespacedName, TrustDomain, policy::THROUGH};

/// How the workload wants to be reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub enum TunnelProtocol {
    /// Plain TCP.
    #[default]
    None,
    /// Mutual TLS with HTTP/2 CONNECT on port 15008.
    Hbone,
}

/// Whether the address is the workload's own or its node's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub enum NetworkMode {
    /// An own network namespace.
    #[default]
    Standard,
    /// The node's: the address does not tell which workload is meant.
    HostNetwork,
}

/// Readiness, as the control plane knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub enum Health {
    /// Ready.
    #[default]
    Healthy,
    /// Not ready.
    Unhealthy,
}

/// What created the workload; only labels depend on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub enum WorkloadType {
    /// A Deployment, or anything like it.
    #[default]
    Deployment,
    /// A CronJob.
    CronJob,
    /// A bare pod.
    Pod,
    /// A Job.
    Job,
}

/// Where the workload runs. Empty means unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Locality {
    /// `topology.kubernetes.io/region`
    pub region: ArcStr,
    /// `topology.kubernetes.io/zone`
    pub zone: ArcStr,
    /// `topology.istio.io/subzone`
    pub subzone: ArcStr,
}

/// From a port of a service to the workload's port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct PortMapping {
    /// What clients ask for.
    pub service_port: u16,
    /// Where the workload listens; 0 means that the workload does not serve the port.
    pub target_port: u16,
}

/// Services by `namespace/hostname`, with the workload's ports. Shared, because all replicas have the same.
pub type Memberships = Arc<BTreeMap<NamespacedName, Vec<PortMapping>>>;

/// An address in a named network; the network is empty in a single-network mesh.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct NetworkAddress {
    /// The network's name.
    pub network: ArcStr,
    /// The address.
    pub address: IpAddr,
}

/// Where a gateway or waypoint is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum GatewayDestination {
    /// A service, as `namespace/hostname`.
    Service(NamespacedName),
    /// A workload or service address.
    Address(NetworkAddress),
}

/// A waypoint or a network gateway.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct GatewayAddress {
    /// Where.
    pub destination: GatewayDestination,
    /// Its port for HBONE.
    pub hbone_port: u16,
}

/// What the workload speaks behind its tunnel, when that is not plain TCP to the asked port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct ApplicationTunnel {
    /// PROXY protocol v2 is expected.
    pub proxy_protocol: bool,
    /// All connections go to this port; 0 means the asked one.
    pub port: u16,
}

/// One workload as the control plane describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Workload {
    /// Unique for ever: `cluster//Pod/namespace/name` for pods.
    pub uid: ArcStr,
    /// The pod's name.
    pub name: ArcStr,
    /// The pod's namespace.
    pub namespace: ArcStr,
    /// Its addresses, without repetition.
    pub addresses: Vec<IpAddr>,
    /// The network that the addresses belong to.
    pub network: ArcStr,
    /// How to reach it.
    pub protocol: TunnelProtocol,
    /// With `namespace` and `service_account`, the identity.
    pub trust_domain: TrustDomain,
    /// The service account.
    pub service_account: ArcStr,
    /// The node that it runs on.
    pub node: ArcStr,
    /// `service.istio.io/canonical-name`
    pub canonical_name: ArcStr,
    /// `service.istio.io/canonical-revision`
    pub canonical_revision: ArcStr,
    /// The owner's name.
    pub workload_name: ArcStr,
    /// The owner's kind.
    pub workload_type: WorkloadType,
    /// The cluster.
    pub cluster_id: ArcStr,
    /// Policies whose selector matches. Unknown ones deny.
    #[serde(serialize_with = "shared")]
    pub authorization_policies: Arc<[NamespacedName]>,
    /// Readiness.
    pub health: Health,
    /// A DNS name to resolve when there is no address.
    pub hostname: ArcStr,
    /// The services that it is an endpoint of.
    #[serde(serialize_with = "shared")]
    pub services: Memberships,
    /// Where it runs.
    pub locality: Locality,
    /// Whether the address is its own.
    pub network_mode: NetworkMode,
    /// Its weight among the endpoints of a service; 0 takes no traffic.
    pub capacity: u32,
    /// It terminates HBONE itself.
    pub native_tunnel: bool,
    /// PROXY protocol or a fixed port behind the tunnel.
    pub application_tunnel: Option<ApplicationTunnel>,
    /// The waypoint for connections addressed to the workload.
    pub waypoint: Option<GatewayAddress>,
    /// The gateway of its network.
    pub network_gateway: Option<GatewayAddress>,
}

impl Workload {
    /// Whether who comes without an identity is led through the waypoint that stands before this workload ([`THROUGH`](crate::policy::THROUGH)). Not while others know of no
    /// tunnel to it: what the waypoint then sends on in plaintext would be led to it again.
    #[must_use]
    pub fn leads_strangers_through(&self) -> bool {
        self.protocol == TunnelProtocol::Hbone
            && self.waypoint.is_some()
            && self.authorization_policies.iter().any(|policy| policy.name == THROUGH)
    }

    /// A workload with everything else at its default: builders and tests start from here.
    #[must_use]
    pub fn new(uid: impl Into<ArcStr>, namespace: impl Into<ArcStr>, name: impl Into<ArcStr>) -> Self {
        Self {
            uid: uid.into(),
            name: name.into(),
            namespace: namespace.into(),
            addresses: Vec::new(),
            network: ArcStr::new(),
            protocol: TunnelProtocol::None,
            trust_domain: TrustDomain::default(),
            service_account: arcstr::literal!("default"),
            node: ArcStr::new(),
            canonical_name: ArcStr::new(),
            canonical_revision: ArcStr::new(),
            workload_name: ArcStr::new(),
            workload_type: WorkloadType::Deployment,
            cluster_id: ArcStr::new(),
            authorization_policies: Arc::new([]),
            health: Health::Healthy,
            hostname: ArcStr::new(),
            services: Memberships::default(),
            locality: Locality::default(),
            network_mode: NetworkMode::Standard,
            capacity: 1,
            native_tunnel: false,
            application_tunnel: None,
            waypoint: None,
            network_gateway: None,
        }
    }

    /// The SPIFFE identity that the workload's certificate must carry.
    #[must_use]
    pub fn identity(&self) -> Identity {
        Identity {
            trust_domain: self.trust_domain.clone(),
            namespace: self.namespace.clone(),
            service_account: self.service_account.clone(),
        }
    }

    /// The target port for a port of a service that the workload is a member of.
    #[must_use]
    pub fn target_port(&self, service: &NamespacedName, service_port: u16) -> Option<u16> {
        let ports = self.services.get(service)?;
        ports.iter().find(|p| p.service_port == service_port).map(|p| p.target_port)
    }

    /// An address that `client` can reach: one of the family of `like`, or else any.
    #[must_use]
    pub fn address_for(&self, client: &Client, like: IpAddr) -> Option<IpAddr> {
        let mut usable = self.addresses.iter().filter(|a| client.can_reach(a));
        let same = usable.clone().find(|a| a.is_ipv4() == like.is_ipv4());
        same.or_else(|| usable.next()).copied()
    }

    /// Whether the uid is a pod's, rather than an entry that a user wrote.
    #[must_use]
    pub fn is_pod(&self) -> bool {
        self.uid.contains("//Pod/")
    }

    /// Whether nobody but a ServiceEntry, or a WorkloadEntry that one selects, says that it is there.
    #[must_use]
    pub fn is_entry(&self) -> bool {
        is_entry(&self.uid)
    }
}

/// [`Workload::is_entry`], by the uid.
#[must_use]
pub fn is_entry(uid: &str) -> bool {
    uid.contains("/networking.istio.io/")
}

/// Serialises what is behind an `Arc`.
fn shared<T: Serialize + ?Sized, S: Serializer>(value: &Arc<T>, serializer: S) -> Result<S::Ok, S::Error> {
    (**value).serialize(serializer)
}
