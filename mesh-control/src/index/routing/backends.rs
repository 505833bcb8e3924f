//! Where the references of routes of the Gateway API lead. A broken one breaks its own share of a rule, and nothing else.

use std::fmt;

use mesh_core::NamespacedName;

use super::hosts::{Host, Hosts, UNSELECTED};
use crate::resource::routing::http_route::{Backend, Filter};
use crate::resource::routing::reference::BackendReference;
use crate::resource::routing::{Routes, Routing};
use crate::resource::{Key, Kind};

/// Where in a route a reference stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Spot {
    /// Of which rule.
    pub rule: usize,
    /// Where in it.
    pub part: Part,
}

/// Where in a rule a reference stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// `backendRefs[…]`.
    Backend(usize),
    /// `filters[…]`.
    Filter(usize),
    /// `backendRefs[…].filters[…]`.
    BackendFilter(usize, usize),
}

impl fmt::Display for Spot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spec.rules[{}]", self.rule)?;
        match self.part {
            Part::Backend(index) => write!(f, ".backendRefs[{index}]"),
            Part::Filter(index) => write!(f, ".filters[{index}]"),
            Part::BackendFilter(backend, index) => write!(f, ".backendRefs[{backend}].filters[{index}]"),
        }
    }
}

/// Where a reference leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// To a service, by the name that it has in tables of services.
    Service(NamespacedName, Option<u16>),
    /// To a host.
    Host(String, Option<u16>),
}

/// Why a reference leads nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// In one word.
    pub reason: Reason,
    /// For people.
    pub why: String,
    /// What to do.
    pub help: String,
}

/// The Gateway API's words for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "they are called as in conditions")]
pub enum Reason {
    InvalidKind,
    RefNotPermitted,
    BackendNotFound,
}

impl Reason {
    /// As in conditions.
    pub fn name(self) -> &'static str {
        match self {
            Reason::InvalidKind => "InvalidKind",
            Reason::RefNotPermitted => "RefNotPermitted",
            Reason::BackendNotFound => "BackendNotFound",
        }
    }
}

/// All references of a route.
pub fn of(route: &Routing) -> Vec<(Spot, BackendReference)> {
    let mut all = Vec::new();
    match route {
        Routing::HttpRoute(route) => {
            for (rule, one) in route.spec.rules.iter().enumerate() {
                of_rule(rule, &one.filters, &one.backend_refs, &mut all);
            }
        }
        Routing::GrpcRoute(route) => {
            for (rule, one) in route.spec.rules.iter().enumerate() {
                of_rule(rule, &one.filters, &one.backend_refs, &mut all);
            }
        }
        _ => {
            let rules = match route {
                Routing::TlsRoute(route) => &route.spec.rules,
                Routing::TcpRoute(route) => &route.spec.rules,
                Routing::UdpRoute(route) => &route.spec.0.rules,
                _ => return all,
            };
            for (rule, one) in rules.iter().enumerate() {
                let spot = |(index, reference): (usize, &BackendReference)| {
                    (Spot { rule, part: Part::Backend(index) }, reference.clone())
                };
                all.extend(one.backend_refs.iter().enumerate().map(spot));
            }
        }
    }
    all
}

fn of_rule(rule: usize, filters: &[Filter], backends: &[Backend], all: &mut Vec<(Spot, BackendReference)>) {
    let asked = |filter: &Filter| {
        let mirror = filter.request_mirror.as_ref().map(|mirror| mirror.backend_ref.clone());
        mirror.or_else(|| filter.external_auth.as_ref().map(|auth| auth.backend_ref.clone()))
    };
    for (index, filter) in filters.iter().enumerate() {
        all.extend(asked(filter).map(|reference| (Spot { rule, part: Part::Filter(index) }, reference)));
    }
    for (index, backend) in backends.iter().enumerate() {
        all.push((Spot { rule, part: Part::Backend(index) }, backend.reference()));
        for (at, filter) in backend.filters.iter().enumerate() {
            let part = Part::BackendFilter(index, at);
            all.extend(asked(filter).map(|reference| (Spot { rule, part }, reference)));
        }
    }
}

/// Where a reference of the route `key` leads. `None` if that depends on a kind that has never been heard of. `is_exposing`: requests come from a gateway,
/// and reach what its clients could not ask for themselves. Within the mesh anybody can ask any service, so there is nothing to be granted.
pub fn resolve(
    reference: &BackendReference,
    key: &Key,
    is_exposing: bool,
    routes: &Routes,
    hosts: &Hosts<'_>,
) -> Option<Result<Place, Broken>> {
    let broken = |reason, why: String, help: &str| Err(Broken { reason, why, help: help.to_owned() });
    let group = reference.group.as_deref().unwrap_or_default();
    let kind = reference.kind.as_deref().unwrap_or("Service");
    let no_port = |host: Host<'_>, port: u16| {
        let why = format!("{} has no port {port}", reference.name);
        broken(Reason::BackendNotFound, why, &format!("it has {}", host.ports().join(", ")))
    };
    Some(match (group, kind) {
        ("", "Service") => {
            let namespace = reference.namespace.as_deref().unwrap_or(&key.namespace);
            let target = ("", "Service", namespace, reference.name.as_str());
            // Before anything is said of what is there.
            if is_exposing && namespace != &*key.namespace && !is_granted(routes, key, target) {
                if hosts.is_unheard(Kind::ReferenceGrant) {
                    return None;
                }
                let (why, help) = not_granted(key, target, hosts);
                return Some(broken(Reason::RefNotPermitted, why, help));
            }
            let Some(service) = hosts.service(namespace, &reference.name) else {
                let why = format!("there is no Service {namespace}/{}", reference.name);
                let help = hosts.meant(&hosts.full(&reference.name, namespace), namespace);
                let help = help.unwrap_or_else(|| "its requests are answered with 500".into());
                return Some(broken(Reason::BackendNotFound, why, &help));
            };
            let host = Host::Service(service);
            match reference.port {
                Some(port) if key.kind == Kind::UdpRoute && !host.has_datagram_port(port) => {
                    let why = format!("{} has no UDP port {port}", reference.name);
                    let known: Vec<String> = service.datagram_ports.iter().map(|port| port.port.to_string()).collect();
                    let help = if known.is_empty() {
                        "it has none".to_owned()
                    } else {
                        format!("it has {}", known.join(", "))
                    };
                    broken(Reason::BackendNotFound, why, &help)
                }
                Some(port) if key.kind != Kind::UdpRoute && !host.has_port(port) => no_port(host, port),
                port => Ok(Place::Service(hosts.key(service), port)),
            }
        }
        ("networking.istio.io", "Hostname") if key.kind == Kind::UdpRoute => {
            broken(Reason::InvalidKind, "datagrams cannot go to a Hostname".to_owned(), "name a Service")
        }
        // As in Istio what ServiceEntries have is for whoever sees them (`exportTo`). A Service of another namespace is one by its host as by its name: a gateway does not
        // expose it unless its namespace says so.
        ("networking.istio.io", "Hostname")
            if is_exposing && !matches!(hosts.find(&reference.name, &key.namespace), Some(Host::Entry(_))) =>
        {
            let full = hosts.full(&reference.name, &key.namespace);
            let ungranted = hosts.split(&full).filter(|(name, namespace)| {
                *namespace != &*key.namespace && !is_granted(routes, key, ("", "Service", namespace, name))
            });
            match ungranted {
                Some(_) if hosts.is_unheard(Kind::ReferenceGrant) => return None,
                Some((name, namespace)) => {
                    let (why, help) = not_granted(key, ("", "Service", namespace, name), hosts);
                    broken(Reason::RefNotPermitted, why, help)
                }
                None => return of_host(reference, key, hosts),
            }
        }
        ("networking.istio.io", "Hostname") => return of_host(reference, key, hosts),
        _ => {
            let named = if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") };
            let help = "name a Service, or a Hostname of networking.istio.io";
            broken(Reason::InvalidKind, format!("requests cannot go to a {named}"), help)
        }
    })
}

/// Where a host leads that the route `key` names.
fn of_host(reference: &BackendReference, key: &Key, hosts: &Hosts<'_>) -> Option<Result<Place, Broken>> {
    let (name, broken) = (&reference.name, |why, help| Err(Broken { reason: Reason::BackendNotFound, why, help }));
    Some(match hosts.find(name, &key.namespace) {
        Some(host) => match reference.port {
            Some(port) if !host.has_port(port) => {
                broken(format!("{name} has no port {port}"), format!("it has {}", host.ports().join(", ")))
            }
            port => Ok(Place::Host(name.clone(), port)),
        },
        None if hosts.is_unheard(Kind::ServiceEntry) => return None,
        None => {
            let why = hosts.ignored(name, &key.namespace).unwrap_or_else(|| format!("there is no host {name}"));
            broken(why, "make a ServiceEntry with this host".to_owned())
        }
    })
}

/// What is named: its group, kind, namespace and name.
type Target<'a> = (&'a str, &'a str, &'a str, &'a str);

/// Why an object may not name one of another namespace, and what to do.
pub fn not_granted(key: &Key, target: Target<'_>, hosts: &Hosts<'_>) -> (String, &'static str) {
    let (_, kind, namespace, name) = target;
    let (own, of) = (key.kind.name(), &key.namespace);
    if is_granted(hosts.all(), key, target) {
        let why =
            format!("the ReferenceGrant of {namespace} that lets a {own} of {of} name {kind} {name} {UNSELECTED}");
        return (why, "have discoverySelectors select that namespace");
    }
    let why = format!("no ReferenceGrant of {namespace} lets a {own} of {of} name {kind} {name}");
    (why, "make one in that namespace")
}

/// Whether an object may name one of another namespace.
pub fn is_granted(routes: &Routes, key: &Key, (group, kind, namespace, name): Target<'_>) -> bool {
    let first = NamespacedName::new(namespace, "");
    let mut grants = routes.reference_grants.range(first..).take_while(|(known, _)| known.namespace == namespace);
    grants.any(|(_, grant)| {
        let from = grant.spec.from.iter().any(|from| {
            from.group == key.kind.group() && from.kind == key.kind.name() && from.namespace == *key.namespace
        });
        let names = |to: &str| to == name;
        from && grant
            .spec
            .to
            .iter()
            .any(|to| to.group == group && to.kind == kind && to.name.as_deref().is_none_or(names))
    })
}
