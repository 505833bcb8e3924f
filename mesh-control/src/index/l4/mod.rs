//! Routes of connections, made of what the objects mean together (`index::routing`), for agents and waypoints: for each service that has any, the rules that
//! count for clients of each namespace. The joining calls [`index`] when something that they are made of has changed.
//!
//! A service whose port speaks HTTP has no rules of VirtualServices here, as in Istio: its `http` rules are its waypoint's. What does not say what it speaks
//! has them. Of hosts of ServiceEntries also `http` rules count that mean whole connections: that is how Istio has egress gateways (`entries`). What is written and cannot be done is noted: its rule refuses, and its writer is told.

mod entries;
pub mod places;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use ipnet::IpNet;
use mesh_core::NamespacedName;
use mesh_core::l4::{Condition, ConnectionRoutes, Group, Place, Rule, Split};
use mesh_core::l7::{ClusterKey, Clusters, HostPattern, Target};
use mesh_core::service::AppProtocol;

use super::Settings;
use super::l7::labels::Wanted;
use super::l7::notes::Notes;
use super::l7::table::{Source, sources};
use super::l7::{Around, Problems};
use super::routing::Route;
use super::routing::backends::{Part, Spot};
use super::routing::findings::Flaw;
use super::routing::virtual_services::{destination, gateway_name};
use super::target::of_reference;
use crate::resource::routing::Routed;
use crate::resource::routing::routes::ConnectionRule;
use crate::resource::routing::virtual_service::{self as kind, MESH, VirtualService};
use crate::resource::service::Port;
use crate::resource::{Key, Kind, Labels, Objects};

/// What agents and waypoints are given, and what is to be said of the objects that it is made of.
#[derive(Clone, Debug, Default)]
pub struct Made {
    /// By service.
    pub routes: BTreeMap<NamespacedName, Arc<ConnectionRoutes>>,
    /// How the places of services are reached of which that is said, by service.
    pub places: BTreeMap<NamespacedName, Arc<Clusters>>,
    /// Which labels of workloads those ask for.
    pub wanted: Arc<Wanted>,
    /// VirtualServices and DestinationRules that all that is made of.
    pub in_force: BTreeSet<Key>,
    /// What is to be said.
    pub problems: Problems,
}

impl Made {
    /// What says the same as before is the same: whoever serves it need not look.
    pub fn keep(&mut self, before: &Self) {
        for (service, routes) in &mut self.routes {
            if let Some(same) = before.routes.get(service).filter(|same| *same == routes) {
                *routes = same.clone();
            }
        }
        for (service, places) in &mut self.places {
            if let Some(same) = before.places.get(service).filter(|same| *same == places) {
                *places = same.clone();
            }
        }
    }
}

/// Makes the routes of all services that have any, and what is said of places.
pub fn index(objects: &Objects, settings: &Settings, around: &Around<'_>) -> Made {
    let mut made = Made::default();
    let has_routes = !around.routes.tcp_routes.is_empty() || !around.routes.tls_routes.is_empty();
    let is_read = has_routes || !around.routes.virtual_services.is_empty() || places::says_something(around.defaults);
    let entries: Vec<_> = match is_read && !settings.istio_runs {
        true => entries::hosts(objects, settings, around),
        false => Vec::new(),
    };
    // Most meshes say nothing of connections.
    let has_any = has_routes || around.routes.virtual_services.values().any(|object| says_something(&object.spec));
    if has_any {
        for service in objects.services.values() {
            let of = Of { service: around.hosts.key(service), ports: &service.ports, is_entry: false };
            let routes = of_service(of, !settings.istio_runs, around, &mut made.in_force, &mut made.problems);
            made.routes.extend(routes.map(|routes| (routes.service.clone(), Arc::new(routes))));
        }
    }
    for (service, ports) in &entries {
        let of = Of { service: service.clone(), ports, is_entry: true };
        let routes = of_service(of, true, around, &mut made.in_force, &mut made.problems);
        made.routes.extend(routes.map(|routes| (routes.service.clone(), Arc::new(routes))));
    }
    // Istio's own kinds are Istio's where it runs.
    if !settings.istio_runs {
        let named = made.routes.values().flat_map(|routes| routes.places()).cloned().collect();
        made.places = places::index(objects, around, &named, &entries, &mut made.problems);
        let of_clients = made.routes.values().flat_map(|routes| routes.conditions());
        made.wanted = Arc::new(places::wanted(&made.places).with_clients(of_clients.map(|one| &one.source_labels)));
        made.in_force.extend(places::in_force(&made.places, around));
    }
    // Who is asked on several ports is read as often.
    let mut told = HashSet::new();
    made.problems.retain(|said| told.insert(said.clone()));
    made
}

fn says_something(spec: &VirtualService) -> bool {
    !spec.tcp.is_empty() || !spec.tls.is_empty()
}

/// What clients connect to.
struct Of<'a> {
    service: NamespacedName,
    ports: &'a [Port],
    /// A host of a ServiceEntry.
    is_entry: bool,
}

fn of_service(
    of: Of<'_>,
    with_istio_s: bool,
    around: &Around<'_>,
    in_force: &mut BTreeSet<Key>,
    problems: &mut Problems,
) -> Option<ConnectionRoutes> {
    let Of { service, ports, is_entry } = of;
    let mut groups: Vec<Group> = Vec::new();
    for port in ports {
        let says = |object: &VirtualService| {
            object.routes_connections(port.port) || is_entry && object.routes_requests(port.port)
        };
        for (clients, source) in sources(&service, port.port, &[Kind::TlsRoute, Kind::TcpRoute], says, around) {
            let group = match &source {
                Source::Routes(keys) => Some((false, of_routes(keys, around, problems))),
                Source::VirtualService(name) => with_istio_s
                    .then(|| around.routes.virtual_services.get(name))
                    .flatten()
                    .and_then(|object| of_virtual_service(object, port, is_entry, around, problems))
                    .map(|rules| {
                        in_force.insert(key_of(name));
                        (true, rules)
                    }),
            };
            let Some((falls_through, rules)) = group else { continue };
            let same = |known: &&mut Group| {
                (&known.clients, known.falls_through, &known.rules) == (&clients, falls_through, &rules)
            };
            match groups.iter_mut().find(same) {
                Some(known) => known.ports.push(port.port),
                None => groups.push(Group { clients, ports: vec![port.port], falls_through, rules }),
            }
        }
    }
    (!groups.is_empty()).then_some(ConnectionRoutes { service, groups })
}

fn key_of(virtual_service: &NamespacedName) -> Key {
    let NamespacedName { namespace, name } = virtual_service.clone();
    Key { kind: Kind::VirtualService, namespace, name }
}

/// Rules of routes of the Gateway API. Of TCPRoutes the first counts, because it means every connection; of TLSRoutes that with the longer name, each name for itself.
fn of_routes(keys: &[Key], around: &Around<'_>, problems: &mut Problems) -> Vec<Rule> {
    let mut rules: Vec<(usize, Rule)> = Vec::new();
    for key in keys {
        let Some(route) = around.resolved.routes.get(key) else { continue };
        let name = NamespacedName::new(key.namespace.clone(), key.name.clone());
        let mut notes = Notes::new(key.clone(), problems);
        let (written, hostnames): (&[ConnectionRule], &[String]) = match key.kind {
            Kind::TcpRoute => match around.routes.tcp_routes.get(&name) {
                Some(object) => (&object.spec.rules, &[]),
                None => continue,
            },
            Kind::TlsRoute => match around.routes.tls_routes.get(&name) {
                Some(object) => (&object.spec.rules, &object.spec.hostnames),
                None => continue,
            },
            _ => continue,
        };
        let names = names(hostnames, "spec.hostnames", &mut notes);
        for (index, one) in written.iter().enumerate() {
            let (split, closed) = notes.apart(|notes| reference_split(index, one, key, route, around, notes));
            let split = closed.map_or(split, Split::closed);
            let rule = |conditions| Rule { origin: notes.origin(), conditions, split: split.clone() };
            if names.is_empty() {
                rules.push((0, rule(Vec::new())));
            }
            rules.extend(names.iter().map(|name| {
                let condition = Condition { server_names: vec![name.clone()], ..Condition::default() };
                (specificity(name), rule(vec![condition]))
            }));
        }
    }
    // A stable sort: of the same length the older one stays first.
    rules.sort_by_key(|(specific, _)| std::cmp::Reverse(*specific));
    rules.into_iter().map(|(_, rule)| rule).collect()
}

/// Whole names before wildcards, then the longer ones.
fn specificity(pattern: &HostPattern) -> usize {
    match pattern {
        HostPattern::Exact(name) => 1_000 + name.len(),
        HostPattern::Below(parent) => 1 + parent.len(),
        HostPattern::Any => 0,
    }
}

fn reference_split(
    rule: usize,
    written: &ConnectionRule,
    key: &Key,
    route: &Route,
    around: &Around<'_>,
    notes: &mut Notes<'_>,
) -> Split {
    let places = written.backend_refs.iter().enumerate().map(|(index, reference)| {
        let place = route.backends.get(&Spot { rule, part: Part::Backend(index) });
        Place { target: of_reference(place, &key.namespace, &around.hosts), weight: reference.weight.unwrap_or(1) }
    });
    split(places.collect(), &format!("spec.rules[{rule}].backendRefs"), notes)
}

fn split(places: Vec<Place>, field: &str, notes: &mut Notes<'_>) -> Split {
    Split::new(places).unwrap_or_else(|why| {
        notes.close(field, why.to_string(), "write smaller weights");
        Split::default()
    })
}

fn names(written: &[String], field: &str, notes: &mut Notes<'_>) -> Vec<HostPattern> {
    let name = |(index, text): (usize, &String)| {
        let pattern = HostPattern::parse(text);
        if pattern.is_none() {
            notes.close(
                format!("{field}[{index}]"),
                format!("{text:?} is no name of a host"),
                "write one as a.example.com",
            );
        }
        pattern
    };
    written.iter().enumerate().filter_map(name).collect()
}

/// Rules of a VirtualService for connections to a port; `None` if it says nothing of such a port.
fn of_virtual_service(
    object: &Routed<VirtualService>,
    port: &Port,
    is_entry: bool,
    around: &Around<'_>,
    problems: &mut Problems,
) -> Option<Vec<Rule>> {
    let is_http = matches!(port.protocol, AppProtocol::Http11 | AppProtocol::Http2 | AppProtocol::Grpc);
    let key = Key { kind: Kind::VirtualService, namespace: object.namespace.clone(), name: object.name.clone() };
    let mut reading = Reading { around, object, port, notes: Notes::new(key, problems) };
    if is_http && is_entry {
        return entries::of_requests(&mut reading);
    }
    if is_http || !says_something(&object.spec) {
        return None;
    }
    let mut rules = Vec::new();
    // What is plain TCP has no names.
    for (index, rule) in object.spec.tls.iter().enumerate().filter(|_| port.protocol != AppProtocol::Tcp) {
        let field = format!("spec.tls[{index}]");
        let matches = rule.matches.iter().enumerate().map(|(at, one)| (at, Match::from(one)));
        rules.extend(reading.rule(matches.collect(), &rule.route, &field));
    }
    for (index, rule) in object.spec.tcp.iter().enumerate() {
        let field = format!("spec.tcp[{index}]");
        let matches = rule.matches.iter().enumerate().map(|(at, one)| (at, Match::from(one)));
        rules.extend(reading.rule(matches.collect(), &rule.route, &field));
    }
    (!rules.is_empty()).then_some(rules)
}

/// What the matches of both lists have in common.
struct Match<'a> {
    names: &'a [String],
    subnets: &'a [String],
    port: Option<u16>,
    labels: &'a Labels,
    gateways: &'a [String],
    namespace: Option<&'a str>,
}

impl<'a> From<&'a kind::TlsMatch> for Match<'a> {
    fn from(one: &'a kind::TlsMatch) -> Self {
        Self {
            names: &one.sni_hosts,
            subnets: &one.destination_subnets,
            port: one.port,
            labels: &one.source_labels,
            gateways: &one.gateways,
            namespace: one.source_namespace.as_deref(),
        }
    }
}

impl<'a> From<&'a kind::TcpMatch> for Match<'a> {
    fn from(one: &'a kind::TcpMatch) -> Self {
        Self {
            names: &[],
            subnets: &one.destination_subnets,
            port: one.port,
            labels: &one.source_labels,
            gateways: &one.gateways,
            namespace: one.source_namespace.as_deref(),
        }
    }
}

struct Reading<'a> {
    around: &'a Around<'a>,
    object: &'a Routed<VirtualService>,
    port: &'a Port,
    notes: Notes<'a>,
}

impl Reading<'_> {
    /// A rule; `None` if none of its alternatives can mean a connection to this port of the mesh.
    fn rule(&mut self, matches: Vec<(usize, Match<'_>)>, route: &[kind::Target], field: &str) -> Option<Rule> {
        let mut conditions = Vec::new();
        let is_for_all = matches.is_empty();
        self.notes.closed();
        for (index, one) in matches {
            conditions.extend(self.condition(&one, &format!("{field}.match[{index}]")));
        }
        if conditions.is_empty() && !is_for_all {
            return None;
        }
        let is_only = route.len() == 1;
        let places = route.iter().enumerate().map(|(index, target)| {
            let weight = if is_only { 1 } else { target.weight };
            Place { target: self.target(&target.destination, &format!("{field}.route[{index}].destination")), weight }
        });
        let places = places.collect();
        let split = split(places, &format!("{field}.route"), &mut self.notes);
        let split = self.notes.closed().map_or(split, Split::closed);
        Some(Rule { origin: self.notes.origin(), conditions, split })
    }

    fn condition(&mut self, one: &Match<'_>, field: &str) -> Option<Condition> {
        let own = &self.object.namespace;
        let is_of_mesh = one.gateways.is_empty() || one.gateways.iter().any(|name| gateway_name(name, own) == MESH);
        if !is_of_mesh || one.port.is_some_and(|port| port != self.port.port) {
            return None;
        }
        let mut destinations = Vec::new();
        for (index, text) in one.subnets.iter().enumerate() {
            let range = text.parse::<IpNet>().ok().or_else(|| Some(text.parse::<std::net::IpAddr>().ok()?.into()));
            match range {
                Some(net) => destinations.push(net.trunc()),
                None => {
                    let field = format!("{field}.destinationSubnets[{index}]");
                    self.notes.close(field, format!("{text:?} is no range of addresses"), "write one as 198.18.0.0/16");
                }
            }
        }
        Some(Condition {
            port: one.port,
            server_names: names(one.names, &format!("{field}.sniHosts"), &mut self.notes),
            destinations,
            source_namespace: one.namespace.filter(|name| !name.is_empty()).map(Into::into),
            source_labels: one.labels.iter().map(|(key, value)| (key.as_str().into(), value.as_str().into())).collect(),
        })
    }

    /// Where a destination is. What is wrong with it is told where objects are looked at beside each other.
    fn target(&mut self, written: &kind::Destination, field: &str) -> Target {
        let broken = |why: String| Target::Broken(why.into());
        let (around, namespace) = (self.around, &self.object.namespace);
        let place = match destination(field, written, namespace, &around.rules, &around.hosts) {
            Ok(place) => place,
            Err(Flaw::Wrong(problem)) => return broken(problem.message),
            Err(Flaw::Unknown) => return broken("it is not known yet what there is of its kind".to_owned()),
        };
        let port = place.port.unwrap_or(self.port.port);
        if !place.host.has_port(port) {
            let why = format!("{} has no port {port}, to which clients connect", written.host);
            let help = format!("add `port: {{number: …}}`; it has {}", place.host.ports().join(", "));
            self.notes.apart(|notes| notes.close(field, why.clone(), &help));
            return broken(why);
        }
        let subset = written.subset.as_deref().unwrap_or_default().into();
        Target::Cluster(ClusterKey { service: place.service, port, subset })
    }
}
