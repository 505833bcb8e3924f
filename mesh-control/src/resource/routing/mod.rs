//! Where requests go: the kinds of Istio's networking group and of the Gateway API. A kind is a file here: a type with its fields, read by
//! `resource::strict`, and what must hold between them ([`Spec::check`]). The index has them in their last good form; waypoints act on
//! some, and [`inaction`] is what is told to writers of those that nobody acts on.

pub mod destination_rule;
pub mod gateway;
pub mod grants;
pub mod http_route;
pub mod istio_gateway;
pub mod listener_set;
pub mod rate_limit;
pub mod reference;
pub mod routes;
pub mod service_entry;
pub mod telemetry;
pub mod unsupported;
pub mod values;
pub mod virtual_service;
pub mod workload;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_core::{ArcStr, NamespacedName};
use serde::Deserialize;

pub use destination_rule::DestinationRule;
pub use gateway::Gateway;
pub use grants::{BackendTlsPolicy, GatewayClass, ReferenceGrant};
pub use http_route::HttpRoute;
pub use istio_gateway::IstioGateway;
pub use listener_set::ListenerSet;
pub use rate_limit::RateLimit;
pub use routes::{GrpcRoute, TcpRoute, TlsRoute, UdpRoute};
pub use service_entry::ServiceEntry;
pub use telemetry::{RequestAuthentication, Telemetry};
pub use virtual_service::VirtualService;
pub use workload::{Sidecar, WorkloadEntry, WorkloadGroup};

use super::fields::Fields;
use super::strict::Unknown;
use super::{Key, Kind, Labels, Object, Read, Unreadable, meta, strict};
use crate::diagnosis::Problem;
use crate::yaml::node::{Node as Tree, Value, join};

/// What an object of these kinds asks for, with its fields.
pub trait Spec: for<'de> Deserialize<'de> {
    /// What must hold between fields.
    fn check(&self, check: &mut Check<'_>);

    /// Takes from the status what is read of it: of most kinds nothing.
    fn take_status(&mut self, _status: &Tree) {}

    /// Takes from labels and annotations what is more than [`Routed::marks`]: of most kinds nothing.
    fn take_metadata(&mut self, _metadata: &Tree) {}
}

/// An object of one of these kinds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routed<S> {
    /// Its namespace; empty for kinds without.
    pub namespace: ArcStr,
    /// Its name.
    pub name: ArcStr,
    /// Its `metadata.uid`, if it has one.
    pub uid: Option<ArcStr>,
    /// When it was made, seconds; of two that contradict each other, the older one wins.
    pub created: Option<i64>,
    /// Labels and annotations that are of a mesh.
    pub marks: Labels,
    /// What it asks for.
    pub spec: S,
}

macro_rules! routing {
    ($($(#[$doc:meta])* $kind:ident $field:ident,)*) => {
        /// One object.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum Routing {
            $($(#[$doc])* $kind(Arc<Routed<$kind>>),)*
        }

        /// All objects of these kinds.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Routes {
            $($(#[$doc])* pub $field: BTreeMap<NamespacedName, Arc<Routed<$kind>>>,)*
        }

        impl Routes {
            /// Adds one.
            pub fn insert(&mut self, name: NamespacedName, object: &Routing) {
                match object {
                    $(Routing::$kind(object) => drop(self.$field.insert(name, object.clone())),)*
                }
            }

            /// Takes one away. Kinds of others have none.
            pub fn remove(&mut self, kind: Kind, name: &NamespacedName) {
                match kind {
                    $(Kind::$kind => drop(self.$field.remove(name)),)*
                    _ => {}
                }
            }

            /// Each of them.
            pub fn iter(&self) -> impl Iterator<Item = (Key, Routing)> + '_ {
                let of = |kind, name: &NamespacedName| Key { kind, namespace: name.namespace.clone(), name: name.name.clone() };
                std::iter::empty()$(.chain(self.$field.iter().map(move |(name, object)| (of(Kind::$kind, name), Routing::$kind(object.clone())))))*
            }

            /// Those whose names are kept.
            pub fn retain(&mut self, keep: impl Fn(&NamespacedName) -> bool) {
                $(self.$field.retain(|name, _| keep(name));)*
            }
        }

        /// Reads an object of any of these kinds.
        pub fn read(key: &Key, tree: &Tree) -> Read {
            match key.kind {
                $(Kind::$kind => spec(key, tree, |object| Routing::$kind(Arc::new(object))),)*
                _ => unsupported::read(key),
            }
        }
    };
}

routing! {
    /// Where requests to a host go.
    VirtualService virtual_services,
    /// How endpoints of a host are reached.
    DestinationRule destination_rules,
    /// Hosts beside those of Kubernetes' services.
    ServiceEntry service_entries,
    /// Istio's Gateway: what a proxy at the edge listens for.
    IstioGateway istio_gateways,
    /// An endpoint that is no pod.
    WorkloadEntry workload_entries,
    /// What such endpoints have in common.
    WorkloadGroup workload_groups,
    /// What clients of a namespace see.
    Sidecar sidecars,
    /// Which tokens of requests are believed.
    RequestAuthentication request_authentications,
    /// Which metrics, logs and spans are made.
    Telemetry telemetries,
    /// How many requests there may be.
    RateLimit rate_limits,
    /// Who makes the gateways of a class.
    GatewayClass gateway_classes,
    /// The Gateway API's.
    Gateway gateways,
    /// Listeners that are added to a Gateway.
    ListenerSet listener_sets,
    /// Where HTTP requests go.
    HttpRoute http_routes,
    /// Where calls of gRPC go.
    GrpcRoute grpc_routes,
    /// Where TLS goes that is passed on.
    TlsRoute tls_routes,
    /// Where connections go.
    TcpRoute tcp_routes,
    /// Where datagrams go.
    UdpRoute udp_routes,
    /// How backends are known.
    BackendTlsPolicy backend_tls_policies,
    /// Who may name objects of another namespace.
    ReferenceGrant reference_grants,
}

/// Whether waypoints, gateways or agents act on objects of a kind: then it depends on what such an object is about, or who serves it, whether it is in
/// force.
pub fn is_acted_on(kind: Kind) -> bool {
    inaction(kind).is_some_and(|why| why == NO_WAYPOINT || why == NO_GATEWAY)
}

/// Why nothing of an object is in force that waypoints act on, where there is none for what it is about.
pub const NO_WAYPOINT: &str = "known, not in force: there is no waypoint that acts on it";
/// The same of gateways.
const NO_GATEWAY: &str = "known, not in force: there is no gateway that acts on it";

/// Why nothing of an object of a kind is in force, however good it is; where it depends on waypoints, whether there is one is to be seen.
pub fn inaction(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::VirtualService
        | Kind::DestinationRule
        | Kind::HttpRoute
        | Kind::GrpcRoute
        | Kind::TlsRoute
        | Kind::TcpRoute
        | Kind::UdpRoute
        | Kind::RequestAuthentication
        | Kind::RateLimit
        | Kind::Telemetry => Some(NO_WAYPOINT),
        Kind::BackendTlsPolicy => Some("known, not in force: no gateway and no waypoint reaches what it is about"),
        Kind::IstioGateway | Kind::GatewayClass | Kind::Gateway | Kind::ListenerSet | Kind::ReferenceGrant => {
            Some(NO_GATEWAY)
        }
        Kind::WorkloadEntry => Some("known, not in force: no ServiceEntry of its namespace selects it"),
        Kind::WorkloadGroup => {
            Some("known, not in force: endpoints are pods, WorkloadEntries and what ServiceEntries write")
        }
        Kind::Sidecar => Some("known, not in force: agents know all services, and it has no outboundTrafficPolicy"),
        _ => None,
    }
}

/// Whether an object is for a mesh as ours, and not for somebody else who acts on the kind, too.
pub fn is_ours(object: &Routing, with_istio: bool) -> bool {
    match object {
        Routing::HttpRoute(route) => reference::is_of_the_mesh(&route.spec.parent_refs),
        Routing::GrpcRoute(route) => reference::is_of_the_mesh(&route.spec.parent_refs),
        Routing::TlsRoute(route) => reference::is_of_the_mesh(&route.spec.parent_refs),
        Routing::TcpRoute(route) => reference::is_of_the_mesh(&route.spec.parent_refs),
        Routing::UdpRoute(route) => reference::is_of_the_mesh(&route.spec.0.parent_refs),
        Routing::GatewayClass(class) => class.spec.controller_name == reference::CONTROLLER,
        // They are for whatever gateway acts on what they name.
        Routing::ListenerSet(_) | Routing::BackendTlsPolicy(_) | Routing::ReferenceGrant(_) => false,
        Routing::Gateway(gateway) => reference::is_our_class(&gateway.spec.gateway_class_name, with_istio),
        Routing::RateLimit(_) => true,
        // Istio's own kinds.
        _ => !with_istio,
    }
}

fn spec<S: Spec>(key: &Key, tree: &Tree, wrap: impl FnOnce(Routed<S>) -> Routing) -> Read {
    let mut fields = Fields::default();
    let top = fields.mapping(tree, "", &["apiVersion", "kind", "metadata", "spec", "status"]);
    let mut problems = fields.problems;
    let empty = Tree { value: Value::Map(Vec::new()), span: tree.span };
    let written = top.as_ref().and_then(|top| top.get("spec")).unwrap_or(&empty);
    // An API server shows no field that the definition does not have: one that is not known here is of a later version, and not ours to refuse.
    let is_served = tree.span.line == 0;
    // Definitions of the security group, and of our own, show all that was written.
    let shows_all = key.kind.group() == "security.istio.io" || key.kind == Kind::RateLimit;
    let unknown = match (is_served && !shows_all, key.kind.is_shared()) {
        (false, _) => Unknown::Wrong,
        (true, false) => Unknown::Either,
        (true, true) => Unknown::Later,
    };
    let mut read: Option<S> = strict::read(written, "spec", unknown, &mut problems);
    if let Some(spec) = &mut read {
        top.as_ref().and_then(|top| top.get("status")).into_iter().for_each(|status| spec.take_status(status));
        tree.get("metadata").into_iter().for_each(|metadata| spec.take_metadata(metadata));
        spec.check(&mut Check::new(&key.namespace, &mut problems));
    }
    let outcome = match read {
        Some(spec) if !meta::has_error(&problems) => Ok(Object::Routing(wrap(Routed {
            namespace: key.namespace.clone(),
            name: key.name.clone(),
            uid: tree.get("metadata").and_then(|m| m.get("uid")).and_then(Tree::as_str).map(ArcStr::from),
            created: created(tree),
            marks: marks(tree),
            spec,
        }))),
        _ if key.kind == Kind::BackendTlsPolicy => {
            Err(Unreadable { policy_targets: grants::readable_targets(written), ..Unreadable::default() })
        }
        _ if key.kind.is_route() => {
            Err(Unreadable { parents: reference::readable_parents(written), ..Unreadable::default() })
        }
        _ if key.kind == Kind::RequestAuthentication => Err(telemetry::known(written, &key.namespace)),
        _ if key.kind == Kind::Sidecar => {
            Err(Unreadable { selector: workload::readable_selector(written), ..Unreadable::default() })
        }
        _ => Err(Unreadable::default()),
    };
    Read { outcome, problems }
}

/// Something is written there, whatever it is.
pub(in crate::resource) fn there<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    serde::de::IgnoredAny::deserialize(deserializer).map(|_| true)
}

fn created(tree: &Tree) -> Option<i64> {
    let text = tree.get("metadata").and_then(|m| m.get("creationTimestamp")).and_then(Tree::as_str)?;
    text.parse::<jiff::Timestamp>().ok().map(jiff::Timestamp::as_second)
}

/// What labels and annotations say to meshes and gateways; the others are nobody's business here, and may be long.
fn marks(tree: &Tree) -> Labels {
    let of_a_mesh = |key: &str| {
        let group = key.split('/').next().unwrap_or_default();
        ["istio.io", "undermesh.io", "gateway.networking.k8s.io"].iter().any(|own| group.ends_with(own))
    };
    let metadata = tree.get("metadata");
    let of = |field: &str| match metadata.and_then(|m| m.get(field)).map(|node| &node.value) {
        Some(Value::Map(entries)) => entries.as_slice(),
        _ => &[],
    };
    let written = of("annotations").iter().chain(of("labels")).filter(|entry| of_a_mesh(&entry.key));
    written.filter_map(|entry| Some((entry.key.clone(), entry.node.as_str()?.to_owned()))).collect()
}

/// Labels by which one client or endpoint is known. Waypoints read as many of a condition of a route; of a place they read more, and nobody needs them.
const MOST_LABELS: usize = 100;

/// Collects what does not fit together within one object.
#[derive(Debug)]
pub struct Check<'a> {
    /// Where the object lives.
    pub namespace: &'a str,
    problems: &'a mut Vec<Problem>,
}

impl<'a> Check<'a> {
    /// Of an object in `namespace`.
    pub fn new(namespace: &'a str, problems: &'a mut Vec<Problem>) -> Self {
        Self { namespace, problems }
    }
}

impl Check<'_> {
    /// The object, or the part at `field`, can never be in force.
    pub fn error(&mut self, field: impl Into<String>, message: impl Into<String>, help: &str) {
        self.problems.push(with_help(Problem::error(field, message), help));
    }

    /// It is in force, and does not do what it seems to.
    pub fn warning(&mut self, field: impl Into<String>, message: impl Into<String>, help: &str) {
        self.problems.push(with_help(Problem::warning(field, message), help));
    }

    /// A value must be of a grammar.
    pub fn must(&mut self, field: impl Into<String>, checked: Result<(), String>) {
        if let Err(why) = checked {
            self.error(field, why, "");
        }
    }

    /// Each of some values must be.
    pub fn each<T: AsRef<str>>(&mut self, field: &str, values: &[T], grammar: impl Fn(&str) -> Result<(), String>) {
        for (index, value) in values.iter().enumerate() {
            self.must(format!("{field}[{index}]"), grammar(value.as_ref()));
        }
    }

    /// Labels that somebody is known by.
    pub fn labels(&mut self, field: &str, labels: &Labels) {
        self.few(field, labels.len(), MOST_LABELS);
        for (key, value) in labels {
            self.must(join(field, key), meta::pair(key, value));
        }
    }

    /// No more than others read.
    pub fn few(&mut self, field: impl Into<String>, count: usize, most: usize) {
        if count > most {
            self.error(field, format!("{count} entries, the limit is {most}"), "");
        }
    }

    /// No value is there twice.
    pub fn once<T: Ord + std::fmt::Debug>(&mut self, values: impl IntoIterator<Item = (String, T)>) {
        let mut seen = BTreeSet::new();
        for (field, value) in values {
            let text = format!("{value:?}");
            if !seen.insert(value) {
                self.error(field, format!("{text} is there more than once"), "");
            }
        }
    }

    /// A port, which is none if it is 0.
    pub fn port(&mut self, field: impl Into<String>, port: u16) {
        if port == 0 {
            self.error(field, "0 is not a port", "write a number from 1 to 65535");
        }
    }

    /// A length of time that a timer can keep.
    pub fn time(&mut self, field: impl Into<String>, span: Option<values::Span>) {
        if span.is_some_and(|span| span < values::Span::LEAST) {
            self.error(field, "shorter than a millisecond", "write at least 1ms");
        }
    }

    /// A share of a hundred.
    pub fn percent(&mut self, field: impl Into<String>, value: f64) {
        if !(0.0..=100.0).contains(&value) {
            self.error(field, format!("{value} is not a percentage"), "write a number from 0 to 100");
        }
    }

    /// Of some fields exactly one may be there. Returns how many are.
    pub fn one_of(&mut self, field: &str, there: &[(&str, bool)]) -> usize {
        let names: Vec<&str> = there.iter().filter(|(_, is)| *is).map(|(name, _)| *name).collect();
        if names.len() > 1 {
            self.error(field, format!("{} exclude each other", names.join(" and ")), "keep one of them");
        }
        names.len()
    }
}

fn with_help(problem: Problem, help: &str) -> Problem {
    if help.is_empty() { problem } else { problem.help(help) }
}

#[cfg(test)]
mod tests;
