//! The kinds that are read: one row of a table for each, with what sources need to find its objects. Everything else about a kind is in its own file.

/// A kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "they are called as in Kubernetes; the table says the group")]
pub enum Kind {
    /// Of which only the mesh settings are read.
    ConfigMap,
    /// Of which only certificates are read, and on a cluster only those that gateways name.
    Secret,
    /// A ConfigMap as others name it: roots are read of it, and on a cluster only of those that are named.
    CaBundle,
    Namespace,
    Node,
    ServiceAccount,
    Pod,
    Service,
    EndpointSlice,
    AuthorizationPolicy,
    PeerAuthentication,
    VirtualService,
    DestinationRule,
    ServiceEntry,
    /// The older of two kinds with the name Gateway.
    IstioGateway,
    WorkloadEntry,
    WorkloadGroup,
    Sidecar,
    RequestAuthentication,
    Telemetry,
    /// Of our own.
    RateLimit,
    /// Refused by name, as are the next two.
    EnvoyFilter,
    WasmPlugin,
    ProxyConfig,
    GatewayClass,
    Gateway,
    ListenerSet,
    HttpRoute,
    GrpcRoute,
    TlsRoute,
    TcpRoute,
    UdpRoute,
    BackendTlsPolicy,
    ReferenceGrant,
}

/// What is known of a kind.
struct Facts {
    name: &'static str,
    group: &'static str,
    /// What `apiVersion:` may say, the best first.
    api_versions: &'static [&'static str],
    plural: &'static str,
    scope: Scope,
}

#[derive(Clone, Copy, PartialEq)]
enum Scope {
    Cluster,
    Namespace,
}

const CORE: &[&str] = &["v1"];
const SECURITY: &[&str] = &["security.istio.io/v1", "security.istio.io/v1beta1"];
const NETWORKING: &[&str] = &["networking.istio.io/v1", "networking.istio.io/v1beta1", "networking.istio.io/v1alpha3"];
const GATEWAY: &[&str] = &["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1beta1"];
/// Of kinds that came later, or are still to come.
const LATER: &[&str] = &[
    "gateway.networking.k8s.io/v1",
    "gateway.networking.k8s.io/v1beta1",
    "gateway.networking.k8s.io/v1alpha3",
    "gateway.networking.k8s.io/v1alpha2",
];

impl Kind {
    /// All of them, but for [`Kind::CaBundle`]: that is how ConfigMaps are read that others name.
    pub const ALL: [Kind; 33] = [
        Kind::ConfigMap,
        Kind::Secret,
        Kind::Namespace,
        Kind::Node,
        Kind::ServiceAccount,
        Kind::Pod,
        Kind::Service,
        Kind::EndpointSlice,
        Kind::AuthorizationPolicy,
        Kind::PeerAuthentication,
        Kind::VirtualService,
        Kind::DestinationRule,
        Kind::ServiceEntry,
        Kind::IstioGateway,
        Kind::WorkloadEntry,
        Kind::WorkloadGroup,
        Kind::Sidecar,
        Kind::RequestAuthentication,
        Kind::Telemetry,
        Kind::RateLimit,
        Kind::EnvoyFilter,
        Kind::WasmPlugin,
        Kind::ProxyConfig,
        Kind::GatewayClass,
        Kind::Gateway,
        Kind::ListenerSet,
        Kind::HttpRoute,
        Kind::GrpcRoute,
        Kind::TlsRoute,
        Kind::TcpRoute,
        Kind::UdpRoute,
        Kind::BackendTlsPolicy,
        Kind::ReferenceGrant,
    ];

    fn facts(self) -> Facts {
        let of =
            |name, group, api_versions, plural| Facts { name, group, api_versions, plural, scope: Scope::Namespace };
        let core = |name, plural| of(name, "", CORE, plural);
        let security = |name, plural| of(name, "security.istio.io", SECURITY, plural);
        let networking = |name, plural| of(name, "networking.istio.io", NETWORKING, plural);
        let gateway = |name, versions, plural| of(name, "gateway.networking.k8s.io", versions, plural);
        let everywhere = |facts| Facts { scope: Scope::Cluster, ..facts };
        match self {
            Kind::ConfigMap => core("ConfigMap", "configmaps"),
            Kind::Secret => core("Secret", "secrets"),
            Kind::CaBundle => core("ConfigMap", "configmaps"),
            Kind::Namespace => everywhere(core("Namespace", "namespaces")),
            Kind::Node => everywhere(core("Node", "nodes")),
            Kind::ServiceAccount => core("ServiceAccount", "serviceaccounts"),
            Kind::Pod => core("Pod", "pods"),
            Kind::Service => core("Service", "services"),
            Kind::EndpointSlice => of("EndpointSlice", "discovery.k8s.io", &["discovery.k8s.io/v1"], "endpointslices"),
            Kind::AuthorizationPolicy => security("AuthorizationPolicy", "authorizationpolicies"),
            Kind::PeerAuthentication => security("PeerAuthentication", "peerauthentications"),
            Kind::VirtualService => networking("VirtualService", "virtualservices"),
            Kind::DestinationRule => networking("DestinationRule", "destinationrules"),
            Kind::ServiceEntry => networking("ServiceEntry", "serviceentries"),
            Kind::IstioGateway => networking("Gateway", "gateways"),
            Kind::WorkloadEntry => networking("WorkloadEntry", "workloadentries"),
            Kind::WorkloadGroup => networking("WorkloadGroup", "workloadgroups"),
            Kind::Sidecar => networking("Sidecar", "sidecars"),
            Kind::RequestAuthentication => security("RequestAuthentication", "requestauthentications"),
            Kind::Telemetry => {
                let versions = &["telemetry.istio.io/v1", "telemetry.istio.io/v1alpha1"];
                of("Telemetry", "telemetry.istio.io", versions, "telemetries")
            }
            Kind::RateLimit => of("RateLimit", "undermesh.io", &["undermesh.io/v1alpha1"], "ratelimits"),
            Kind::EnvoyFilter => {
                of("EnvoyFilter", "networking.istio.io", &["networking.istio.io/v1alpha3"], "envoyfilters")
            }
            Kind::WasmPlugin => {
                of("WasmPlugin", "extensions.istio.io", &["extensions.istio.io/v1alpha1"], "wasmplugins")
            }
            Kind::ProxyConfig => {
                of("ProxyConfig", "networking.istio.io", &["networking.istio.io/v1beta1"], "proxyconfigs")
            }
            Kind::GatewayClass => everywhere(gateway("GatewayClass", GATEWAY, "gatewayclasses")),
            Kind::Gateway => gateway("Gateway", GATEWAY, "gateways"),
            Kind::ListenerSet => gateway("ListenerSet", &["gateway.networking.k8s.io/v1"], "listenersets"),
            Kind::HttpRoute => gateway("HTTPRoute", GATEWAY, "httproutes"),
            Kind::GrpcRoute => gateway("GRPCRoute", LATER, "grpcroutes"),
            Kind::TlsRoute => gateway("TLSRoute", LATER, "tlsroutes"),
            Kind::TcpRoute => gateway("TCPRoute", LATER, "tcproutes"),
            Kind::UdpRoute => gateway("UDPRoute", LATER, "udproutes"),
            Kind::BackendTlsPolicy => gateway("BackendTLSPolicy", LATER, "backendtlspolicies"),
            Kind::ReferenceGrant => gateway("ReferenceGrant", LATER, "referencegrants"),
        }
    }

    /// The name in `kind:`.
    pub fn name(self) -> &'static str {
        self.facts().name
    }

    /// Its API group; empty for the core.
    pub fn group(self) -> &'static str {
        self.facts().group
    }

    /// Its name in paths.
    pub fn plural(self) -> &'static str {
        self.facts().plural
    }

    /// What `apiVersion:` may say, the best first.
    pub fn api_versions(self) -> &'static [&'static str] {
        self.facts().api_versions
    }

    /// What it is called where its name alone could mean another one.
    pub fn title(self) -> &'static str {
        match self {
            Kind::IstioGateway => "Gateway.networking.istio.io",
            _ => self.name(),
        }
    }

    /// Whether objects of the kind live in a namespace.
    pub fn is_namespaced(self) -> bool {
        self.facts().scope == Scope::Namespace
    }

    /// Whether the kind restricts traffic, so that an unreadable object must not be treated as absent.
    pub fn is_security(self) -> bool {
        matches!(self, Kind::AuthorizationPolicy | Kind::PeerAuthentication)
    }

    /// Whether it is one of `resource::routing`: it says where requests go, and agents get nothing of it.
    pub fn is_routing(self) -> bool {
        self > Kind::PeerAuthentication
    }

    /// Whether it can mean nothing here and is refused by its name.
    pub fn is_refused(self) -> bool {
        matches!(self, Kind::EnvoyFilter | Kind::WasmPlugin | Kind::ProxyConfig)
    }

    /// Whether its definition is somebody else's (the Gateway API's): others act on its objects, and a later version of it may have more fields.
    pub fn is_shared(self) -> bool {
        self.group() == "gateway.networking.k8s.io"
    }

    /// Whether it is told to its objects what is in force of them.
    pub fn is_told(self) -> bool {
        self == Kind::Service
            || self.counts_unread()
            || self.is_told_by_parent()
            || self.is_routing() && !self.is_shared() && !self.is_refused()
    }

    /// Whether it is a route of the Gateway API, whose status has a part for each of its parents.
    pub fn is_route(self) -> bool {
        matches!(self, Kind::HttpRoute | Kind::GrpcRoute | Kind::TlsRoute | Kind::TcpRoute | Kind::UdpRoute)
    }

    /// Whether its status has a part for each object above it: routes for their parents, BackendTLSPolicies for the gateways that reach what they are about.
    pub fn is_told_by_parent(self) -> bool {
        self.is_route() || self == Kind::BackendTlsPolicy
    }

    /// Whether an object that cannot be read is still one: there is no doing without what it says.
    pub fn counts_unread(self) -> bool {
        self.is_security() || self == Kind::ConfigMap
    }

    /// Whether all objects of the kind are followed on a cluster. Secrets are asked for by name.
    pub fn is_followed(self) -> bool {
        self != Kind::Secret
    }

    /// Whether what stands in an object of the kind is shown to nobody.
    pub fn is_secret(self) -> bool {
        self == Kind::Secret
    }

    /// Whether an object of the kind with this name is read.
    pub fn reads(self, name: &str) -> bool {
        self != Kind::ConfigMap || name == super::mesh_config::NAME
    }

    /// The kind that an object says it is of. One whose group is not ours is found by its name, unless the name is one that others use.
    pub fn named(api_version: &str, name: &str) -> Option<Kind> {
        let group = group(api_version);
        let mut all = Kind::ALL.into_iter().filter(|kind| kind.name() == name);
        let exact = all.clone().find(|kind| kind.group() == group);
        exact.or_else(|| all.find(|kind| !kind.is_routing() || group.is_empty()))
    }
}

/// The group of an `apiVersion`.
pub fn group(api_version: &str) -> &str {
    api_version.split_once('/').map_or("", |(group, _)| group)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_found_by_what_objects_say() {
        for kind in Kind::ALL {
            for version in kind.api_versions() {
                assert_eq!(Kind::named(version, kind.name()), Some(kind));
                assert_eq!(group(version), kind.group());
            }
        }
        for (version, name, expected) in [
            ("networking.istio.io/v2", "Gateway", Some(Kind::IstioGateway)),
            ("gateway.networking.k8s.io/v2", "Gateway", Some(Kind::Gateway)),
            ("gateway.example.com/v1", "Gateway", None),
            ("v1", "VirtualService", Some(Kind::VirtualService)),
            ("", "HTTPRoute", Some(Kind::HttpRoute)),
            ("serving.knative.dev/v1", "Service", Some(Kind::Service)),
            ("v1", "Secret", Some(Kind::Secret)),
            ("v1", "Event", None),
        ] {
            assert_eq!(Kind::named(version, name), expected, "{version} {name}");
        }
        let titles: std::collections::BTreeSet<_> = Kind::ALL.iter().map(|kind| kind.title()).collect();
        assert_eq!(titles.len(), Kind::ALL.len());
    }
}
