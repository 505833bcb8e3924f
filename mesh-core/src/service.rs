//! A service: a hostname with addresses and ports that stands for a changing set of workloads.

use std::net::IpAddr;

use arcstr::ArcStr;
use ipnet::IpNet;
use serde::Serialize;

use crate::{GatewayAddress, Identity, NamespacedName};

/// One address or range of a service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct ServiceAddress {
    /// The network that the address belongs to.
    pub network: ArcStr,
    /// A single address has the full prefix length.
    pub cidr: IpNet,
}

impl ServiceAddress {
    /// The address, when it is a single one.
    #[must_use]
    pub fn single(&self) -> Option<IpAddr> {
        (self.cidr.prefix_len() == self.cidr.max_prefix_len()).then(|| self.cidr.addr())
    }
}

/// What is spoken on a port, as declared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub enum AppProtocol {
    /// Not declared.
    #[default]
    Unknown,
    /// HTTP/1.1
    Http11,
    /// HTTP/2 without TLS
    Http2,
    /// gRPC
    Grpc,
    /// Opaque TCP
    Tcp,
    /// TLS that the app terminates
    Tls,
}

/// One port of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct ServicePort {
    /// What clients ask for.
    pub service_port: u16,
    /// The default for endpoints that do not name their own; 0 means that they must.
    pub target_port: u16,
    /// What is spoken.
    pub app_protocol: AppProtocol,
}

/// A property that client and endpoint may share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum Scope {
    /// The same region.
    Region,
    /// The same zone.
    Zone,
    /// The same subzone.
    Subzone,
    /// The same node.
    Node,
    /// The same cluster.
    Cluster,
    /// The same network.
    Network,
}

/// What the scopes mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub enum Mode {
    /// No locality: all endpoints are equal.
    #[default]
    Unspecified,
    /// Only endpoints that match every scope.
    Strict,
    /// Endpoints that match more leading scopes come first.
    Failover,
    /// No endpoint is chosen: the connection goes to its original destination.
    Passthrough,
}

/// Which endpoints may take traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub enum HealthPolicy {
    /// Ready ones.
    #[default]
    OnlyHealthy,
    /// All.
    AllowAll,
}

/// How endpoints are chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct LoadBalancing {
    /// Ordered scopes.
    pub preferences: Vec<Scope>,
    /// Their meaning.
    pub mode: Mode,
    /// Which endpoints count.
    pub health: HealthPolicy,
}

/// Address families that clients should be told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub enum IpFamilies {
    /// Those of the addresses.
    #[default]
    Automatic,
    /// Only IPv4.
    Ipv4Only,
    /// Only IPv6.
    Ipv6Only,
    /// Both.
    Dual,
}

/// Who may see the service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub enum Visibility {
    /// Every namespace.
    #[default]
    Public,
    /// Its own.
    Namespace,
}

/// A second waypoint that has a share of what comes for a service, as Istio's labels `istio.io/use-waypoint-canary` ask for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Canary {
    /// Which one.
    pub waypoint: GatewayAddress,
    /// Its share of connections, and of requests at gateways: at most 100, of 100.
    pub weight: u32,
}

/// One service as the control plane describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Service {
    /// The namespace.
    pub namespace: ArcStr,
    /// The short name.
    pub name: ArcStr,
    /// The host that clients ask for, lowercase, without a final dot; may start with `*.`.
    pub hostname: ArcStr,
    /// Its addresses and ranges; none means headless.
    pub addresses: Vec<ServiceAddress>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// Identities that may serve it besides those of its endpoints.
    pub subject_alt_names: Vec<Identity>,
    /// How endpoints are chosen.
    pub load_balancing: LoadBalancing,
    /// Families to answer with.
    pub ip_families: IpFamilies,
    /// The waypoint that clients must go through.
    pub waypoint: Option<GatewayAddress>,
    /// One that clients may go through instead; nothing without [`Service::waypoint`].
    pub canary: Option<Canary>,
    /// Where no endpoint of the waypoint answers, clients may go without it: somebody has said so, and nothing is bound to it that refuses anybody.
    pub waypoint_optional: bool,
    /// It comes from Kubernetes rather than from an entry for the same host.
    pub canonical: bool,
    /// Who may see it.
    pub visibility: Visibility,
}

impl Service {
    /// A service with everything else at its default: builders and tests start from here.
    #[must_use]
    pub fn new(namespace: impl Into<ArcStr>, name: impl Into<ArcStr>, hostname: impl Into<ArcStr>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
            hostname: hostname.into(),
            addresses: Vec::new(),
            ports: Vec::new(),
            subject_alt_names: Vec::new(),
            load_balancing: LoadBalancing::default(),
            ip_families: IpFamilies::Automatic,
            waypoint: None,
            canary: None,
            waypoint_optional: false,
            canonical: false,
            visibility: Visibility::Public,
        }
    }

    /// `namespace/hostname`, the name that workloads refer to.
    #[must_use]
    pub fn key(&self) -> NamespacedName {
        NamespacedName { namespace: self.namespace.clone(), name: self.hostname.clone() }
    }

    /// Waypoints that serve it: its own, and the canary beside that.
    pub fn waypoints(&self) -> impl Iterator<Item = &GatewayAddress> {
        let canary = self.canary.as_ref().filter(|_| self.waypoint.is_some());
        self.waypoint.iter().chain(canary.map(|canary| &canary.waypoint))
    }

    /// No address of its own: DNS answers with the endpoints'.
    #[must_use]
    pub fn is_headless(&self) -> bool {
        self.addresses.is_empty()
    }

    /// The declared port, if there is one.
    #[must_use]
    pub fn port(&self, service_port: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|p| p.service_port == service_port)
    }

    /// Whether clients of `namespace` may see it.
    #[must_use]
    pub fn visible_from(&self, namespace: &str) -> bool {
        self.visibility == Visibility::Public || self.namespace == namespace
    }
}
