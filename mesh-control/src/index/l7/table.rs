//! The table of one waypoint. Of a service that it serves there is a virtual host for each group of clients that sees rules of its own:
//!
//! 1. clients of a namespace with routes of the Gateway API for the service: consumers; these routes, and no others, are theirs;
//! 2. all other clients, if there are such routes in the service's namespace: producers;
//! 3. else, clients of each namespace with the VirtualService that they see first.
//!
//! A service without rules for a client has no virtual host for it: `pick` finds no host then, and the request goes to the service's endpoints; so it is with a port for
//! which a VirtualService has no rule, as in Istio. A host without a rule that fits is something else: 404.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_core::l7::order::{Candidate, arrange};
use mesh_core::l7::{Condition, Rule, Table, VirtualHost};
use mesh_core::{ArcStr, NamespacedName};

use super::{Around, Problems, Read, virtual_service};
use crate::index::routing::hosts::sees;
use crate::index::routing::parents::Attached;
use crate::resource::routing::virtual_service::{MESH, VirtualService};
use crate::resource::{Key, Kind};

/// Whose rules some clients see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Routes of the Gateway API, those that count first at the front.
    Routes(Vec<Key>),
    /// This one.
    VirtualService(NamespacedName),
}

/// Clients of these namespaces, or all that nobody before has named.
pub type Clients = Option<Vec<ArcStr>>;

/// The table of the waypoint of `gateway`, which serves `services`.
pub fn table(
    gateway: &NamespacedName,
    services: &BTreeSet<NamespacedName>,
    around: &Around<'_>,
    read: &Read,
    problems: &mut Problems,
) -> Table {
    let hosts = services.iter().flat_map(|service| of_service(service, around, read, problems));
    let hosts = hosts.map(Arc::new).collect();
    Table::new(gateway.to_string(), hosts).retrying(around.retries.clone())
}

fn of_service(service: &NamespacedName, around: &Around<'_>, read: &Read, problems: &mut Problems) -> Vec<VirtualHost> {
    let Some(host) = around.hosts.keyed(service) else { return Vec::new() };
    let ports = host.numbers();
    let mut hosts: Vec<VirtualHost> = Vec::new();
    for port in &ports {
        let says = |object: &VirtualService| object.routes_requests(*port);
        for (clients, source) in sources(service, *port, &[Kind::GrpcRoute, Kind::HttpRoute], says, around) {
            let Some(rules) = rules(&source, *port, around, read, problems) else { continue };
            let same = hosts.iter_mut().find(|host| host.clients == clients && host.rules == rules);
            match same {
                Some(host) => host.ports.push(*port),
                None => hosts.push(VirtualHost {
                    name: service.name.clone(),
                    service: Some(service.clone()),
                    ports: vec![*port],
                    clients,
                    rules,
                    ..VirtualHost::default()
                }),
            }
        }
    }
    for host in hosts.iter_mut().filter(|host| host.ports.len() == ports.len()) {
        host.ports.clear();
    }
    hosts
}

/// Who sees what, of a port of a service: routes of these kinds, of which of several for one port the first counts, and VirtualServices. No namespace is
/// there twice. A VirtualService that `says` nothing of what is asked for stands before no other.
pub fn sources(
    service: &NamespacedName,
    port: u16,
    kinds: &[Kind],
    says: impl Fn(&VirtualService) -> bool,
    around: &Around<'_>,
) -> Vec<(Clients, Source)> {
    let mut groups = routes(service, port, kinds, around);
    let producers = groups.remove(&service.namespace);
    let mut named: BTreeSet<ArcStr> = groups.keys().cloned().collect();
    let consumers = groups.into_iter().map(|(namespace, keys)| (Some(vec![namespace]), Source::Routes(keys)));
    let mut sources: Vec<(Clients, Source)> = consumers.collect();
    if let Some(keys) = producers {
        sources.push((None, Source::Routes(keys)));
        return sources;
    }
    for name in virtual_services(service, around) {
        let Some(object) = around.routes.virtual_services.get(name).filter(|object| says(&object.spec)) else {
            continue;
        };
        let source = Source::VirtualService(name.clone());
        let Some(mut exports) = exported(&object.spec.export_to, &object.namespace) else {
            sources.push((None, source));
            break;
        };
        exports.retain(|namespace| named.insert(namespace.clone()));
        if !exports.is_empty() {
            sources.push((Some(exports), source));
        }
    }
    sources
}

/// Routes of the Gateway API for a port of a service, by their namespaces.
fn routes(service: &NamespacedName, port: u16, kinds: &[Kind], around: &Around<'_>) -> BTreeMap<ArcStr, Vec<Key>> {
    let is_for = |key: &&Key| {
        let parents = around.resolved.routes.get(key).map(|route| route.parents.as_slice()).unwrap_or_default();
        let attached = parents.iter().filter_map(|(_, outcome)| outcome.as_ref().ok());
        attached
            .into_iter()
            .map(Attached::services)
            .any(|(of, on)| of.contains(service) && on.is_none_or(|on| on == port))
    };
    let mut groups: BTreeMap<ArcStr, Vec<Key>> = BTreeMap::new();
    let of_kind = |key: &&Key| kinds.contains(&key.kind);
    for key in around.resolved.by_service.get(service).into_iter().flatten().filter(of_kind).filter(is_for) {
        groups.entry(key.namespace.clone()).or_default().push(key.clone());
    }
    // One kind for each port: the more specific one. A route that it leaves no port of is refused before.
    for keys in groups.values_mut() {
        if let Some(first) = kinds.iter().copied().find(|kind| keys.iter().any(|key| key.kind == *kind)) {
            keys.retain(|key| key.kind == first);
        }
    }
    groups
}

/// VirtualServices of the mesh for a service, those that count first at the front: its name before wildcards, the longest of those first.
pub(super) fn virtual_services<'a>(service: &NamespacedName, around: &'a Around<'_>) -> Vec<&'a NamespacedName> {
    let wildcards = service.name.match_indices('.').map(|(at, _)| format!("*{}", &service.name[at..]));
    let names = std::iter::once(service.name.to_string()).chain(wildcards);
    let mut all: Vec<&NamespacedName> = Vec::new();
    for name in names {
        for object in around.resolved.by_host.get(&(MESH.to_owned(), name)).into_iter().flatten() {
            if !all.contains(&object) {
                all.push(object);
            }
        }
    }
    all
}

/// Namespaces that see an object; `None` is all.
fn exported(export_to: &[String], own: &ArcStr) -> Option<Vec<ArcStr>> {
    if export_to.is_empty() || export_to.iter().any(|to| to == "*") {
        return None;
    }
    let names = export_to.iter().map(|to| if to == "." { own.clone() } else { ArcStr::from(to.as_str()) });
    let seeing: BTreeSet<ArcStr> = names.filter(|name| sees(export_to, own, name)).filter(|name| name != "~").collect();
    Some(seeing.into_iter().collect())
}

/// The rules in the order in which they are tried; `None` of an object that says nothing of HTTP at this port.
fn rules(source: &Source, port: u16, around: &Around<'_>, read: &Read, problems: &mut Problems) -> Option<Vec<Rule>> {
    let candidates: Vec<Candidate> = match source {
        Source::Routes(keys) => keys.iter().filter_map(|key| read.routes.get(key)).flatten().cloned().collect(),
        Source::VirtualService(name) => {
            let known = read.virtual_services.get(name)?;
            let object = around.routes.virtual_services.get(name)?;
            let all = match known.by_port {
                true => virtual_service::rules(object, Some(port), around, problems).candidates,
                false => known.candidates.clone(),
            };
            let here: Vec<Candidate> = all.into_iter().filter_map(|candidate| at(port, candidate)).collect();
            if here.is_empty() {
                return None;
            }
            here
        }
    };
    Some(arrange(candidates))
}

/// A rule as far as it is for what comes through the mesh to a port.
fn at(port: u16, mut candidate: Candidate) -> Option<Candidate> {
    if candidate.conditions.is_empty() {
        return Some(candidate);
    }
    let is_here = |one: &Condition| {
        one.port.is_none_or(|own| own == port)
            && (one.gateways.is_empty() || one.gateways.iter().any(|name| name == MESH))
    };
    candidate.conditions.retain(is_here);
    for one in &mut candidate.conditions {
        one.port = None;
        one.gateways.clear();
    }
    (!candidate.conditions.is_empty()).then_some(candidate)
}
