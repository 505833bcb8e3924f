//! What objects of the Gateway API name each other by, and which of them are for a mesh as ours.

use serde::Deserialize;

use super::values::host;
use super::{Check, values};
use crate::resource::meta;
use crate::yaml::node::{Node as Tree, Value};

/// The classes of gateways that are ours, and Istio's names for the same, which are ours where no Istio runs.
const CLASSES: [(&str, bool); 4] =
    [("undermesh", false), ("undermesh-waypoint", false), ("istio", true), ("istio-waypoint", true)];
/// The definition of routes lets no more stand there.
const MOST_PARENTS: usize = 32;
/// The same of hosts of a route.
const MOST_HOSTNAMES: usize = 16;
/// Who acts on gateways of our classes.
pub const CONTROLLER: &str = "undermesh.io/gateway-controller";

/// What a route belongs to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ParentReference {
    /// None is the Gateway API's; empty is the core.
    pub group: Option<String>,
    /// None is Gateway.
    pub kind: Option<String>,
    /// None is the route's.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// A listener of it, or a port.
    pub section_name: Option<String>,
    /// A port of it.
    pub port: Option<u16>,
}

/// Where requests go.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct BackendReference {
    /// None is the core.
    pub group: Option<String>,
    /// None is Service.
    pub kind: Option<String>,
    /// None is the route's.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// A Service has to have it.
    pub port: Option<u16>,
    /// None is 1.
    pub weight: Option<u32>,
}

/// Another object, in the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct LocalReference {
    /// Its group; empty is the core.
    pub group: String,
    /// Its kind.
    pub kind: String,
    /// Its name.
    pub name: String,
}

/// A Secret or the like, perhaps in another namespace.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ObjectReference {
    /// None is the core.
    pub group: Option<String>,
    /// Its kind; a Secret where it may be left out.
    pub kind: Option<String>,
    /// Its name.
    pub name: String,
    /// None is the object's.
    pub namespace: Option<String>,
}

/// What a route is, that several kinds have.
pub type Parents = Vec<ParentReference>;

impl ParentReference {
    /// It is a service: the route is the mesh's.
    pub fn is_service(&self) -> bool {
        let group = self.group.as_deref().unwrap_or("gateway.networking.k8s.io");
        let kind = self.kind.as_deref().unwrap_or("Gateway");
        (group.is_empty() && kind == "Service") || (group == "networking.istio.io" && kind == "ServiceEntry")
    }
}

/// What a route that cannot be read belongs to, of its `spec`: each that can be read by itself.
pub(super) fn readable_parents(spec: &Tree) -> Vec<ParentReference> {
    let items = match spec.get("parentRefs").map(|node| &node.value) {
        Some(Value::List(items)) => items.as_slice(),
        _ => &[],
    };
    let mut parents = Vec::new();
    for parent in items.iter().take(MOST_PARENTS).filter_map(|item| ParentReference::deserialize(item).ok()) {
        // Statuses have each once.
        if !parents.contains(&parent) {
            parents.push(parent);
        }
    }
    parents
}

/// Whether any of what a route belongs to is a service.
pub fn is_of_the_mesh(parents: &Parents) -> bool {
    parents.iter().any(ParentReference::is_service)
}

/// Whether gateways of a class are ours.
pub fn is_our_class(name: &str, with_istio: bool) -> bool {
    CLASSES.iter().any(|(class, is_istio_s)| *class == name && !(*is_istio_s && with_istio))
}

/// Looks at what a route belongs to.
pub(super) fn check_parents(parents: &Parents, check: &mut Check<'_>) {
    for (index, parent) in parents.iter().enumerate() {
        let field = format!("spec.parentRefs[{index}]");
        name(&field, &parent.name, check);
        namespace(&field, parent.namespace.as_deref(), check);
        if let Some(port) = parent.port {
            check.port(format!("{field}.port"), port);
        }
        let kind = parent.kind.as_deref().unwrap_or("Gateway");
        if kind == "Service" && parent.group.is_none() {
            check.error(&field, "there is no Service in gateway.networking.k8s.io", "write `group: \"\"`");
        }
    }
    let identities = parents.iter().enumerate().map(|(i, parent)| (format!("spec.parentRefs[{i}]"), parent));
    // Two that differ in nothing.
    check.once(identities);
}

pub(super) fn check_backend(field: &str, backend: &BackendReference, check: &mut Check<'_>) {
    name(field, &backend.name, check);
    namespace(field, backend.namespace.as_deref(), check);
    let group = backend.group.as_deref().unwrap_or_default();
    let is_service = group.is_empty() && backend.kind.as_deref().unwrap_or("Service") == "Service";
    match backend.port {
        None if is_service => check.error(field, "a Service needs a port", "add `port`"),
        Some(port) => check.port(format!("{field}.port"), port),
        None => {}
    }
    if backend.weight.is_some_and(|weight| weight > 1_000_000) {
        check.error(format!("{field}.weight"), "more than 1000000", "");
    }
}

pub(super) fn name(field: &str, name: &str, check: &mut Check<'_>) {
    check.must(format!("{field}.name"), meta::subdomain(name).map_err(|why| format!("{name:?} is not a name: {why}")));
}

pub(super) fn namespace(field: &str, namespace: Option<&str>, check: &mut Check<'_>) {
    let Some(namespace) = namespace else { return };
    let good = meta::label(namespace).map_err(|why| format!("{namespace:?} is not a namespace: {why}"));
    check.must(format!("{field}.namespace"), good);
}

/// The hosts of a route.
pub(super) fn check_hostnames(hostnames: &[String], check: &mut Check<'_>) {
    check.few("spec.hostnames", hostnames.len(), MOST_HOSTNAMES);
    check.each("spec.hostnames", hostnames, hostname);
}

/// The name of a host, or of those below one.
pub(super) fn hostname(text: &str) -> Result<(), String> {
    if text.parse::<std::net::IpAddr>().is_ok() {
        return Err(format!("{text:?} is an address, and names are compared"));
    }
    match text.strip_prefix("*.") {
        Some(rest) => host(rest).map_err(|_| format!("{text:?} is not the name of a host")),
        None => host(text),
    }
}

/// A length of time of the Gateway API: up to four numbers with `h`, `m`, `s` or `ms`.
pub(super) fn duration(field: &str, text: Option<&str>, check: &mut Check<'_>) -> Option<values::Span> {
    let text = text?;
    let units = ["ms", "h", "m", "s"];
    let is_plain = text.chars().all(|c| c.is_ascii_digit() || "hms".contains(c));
    let parts = text.split(|c: char| !c.is_ascii_digit()).filter(|part| !part.is_empty());
    let is_short = parts.clone().count() <= 4 && parts.clone().all(|part| part.len() <= 5);
    let ends = units.iter().any(|unit| text.ends_with(unit));
    let span = values::Span::parse(text).filter(|_| is_plain && is_short && ends);
    if span.is_none() {
        check.error(field, format!("{text:?} is no length of time"), "write as 500ms, 10s or 1h30m");
    }
    span
}
