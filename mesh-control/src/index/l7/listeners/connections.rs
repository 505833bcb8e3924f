//! Where the connections of a server of Istio's Gateway go: by `tls` rules of VirtualServices where TLS is passed on, and else by their `tcp` rules.

use mesh_core::l7::{Backend, ClusterKey, Forward, HostPattern, Target};
use mesh_core::listener::{Encryption, Passage};

use super::super::Problems;
use super::super::notes::Notes;
use super::classic::One;
use crate::index::routing::findings::Flaw;
use crate::index::routing::virtual_services::{destination, gateway_name};
use crate::resource::routing::Routed;
use crate::resource::routing::virtual_service::{self as kind, Destination, VirtualService};
use crate::resource::{Key, Kind};

/// Passages, those of the narrowest names first, and the VirtualServices that they are of.
pub(super) fn passages(one: &One<'_>, encryption: &Encryption, problems: &mut Problems) -> (Vec<Passage>, Vec<Key>) {
    let (mut all, mut used) = (Vec::new(), Vec::new());
    for (name, object, hosts) in one.virtual_services() {
        let key = Key { kind: Kind::VirtualService, namespace: name.namespace.clone(), name: name.name.clone() };
        let mut notes = Notes::new(key.clone(), problems);
        let before = all.len();
        match encryption {
            Encryption::Passes => {
                for (index, rule) in object.spec.tls.iter().enumerate() {
                    let names = server_names(one, object, rule);
                    if !names.is_empty() {
                        let field = format!("spec.tls[{index}].route");
                        all.push(passage(one, object, names, &rule.route, &field, &mut notes));
                    }
                }
            }
            // Whatever name was asked for, it has come to this server; the host of the object says nothing of bytes.
            _ => {
                for (index, rule) in object.spec.tcp.iter().enumerate().filter(|(_, rule)| is_here(one, object, rule)) {
                    let field = format!("spec.tcp[{index}].route");
                    // In tunnels of the mesh nobody asks for a name.
                    let names = match encryption {
                        Encryption::None | Encryption::Mesh => vec![HostPattern::Any],
                        _ => hosts.clone(),
                    };
                    // Nothing tells connections of one name apart.
                    if names.iter().all(|name| all.iter().any(|earlier: &Passage| earlier.hosts.contains(name))) {
                        let message = format!("an earlier rule has all connections of the server {}", one.field);
                        notes.warn(format!("spec.tcp[{index}]"), message, "delete one, or write a port for each");
                    }
                    all.push(passage(one, object, names, &rule.route, &field, &mut notes));
                }
            }
        }
        if all.len() > before {
            used.push(key);
        }
    }
    (by_name(all), used)
}

/// Each name apart, the narrowest first: what else a rule names gives it nothing that another one names more narrowly.
fn by_name(passages: Vec<Passage>) -> Vec<Passage> {
    let apart = |passage: Passage| {
        let Passage { origin, hosts, forward } = passage;
        let one = move |host| Passage { origin: origin.clone(), hosts: vec![host], forward: forward.clone() };
        hosts.into_iter().map(one)
    };
    let mut all: Vec<Passage> = passages.into_iter().flat_map(apart).collect();
    // A stable sort: of one name the oldest object stays first.
    all.sort_by_key(|passage| passage.hosts.first().map_or((2, 0), breadth));
    all
}

fn breadth(pattern: &HostPattern) -> (u8, usize) {
    match pattern {
        HostPattern::Exact(_) => (0, 0),
        HostPattern::Below(parent) => (1, usize::MAX - parent.len()),
        HostPattern::Any => (2, 0),
    }
}

/// The names of a rule that are for this server.
fn server_names(one: &One<'_>, object: &Routed<VirtualService>, rule: &kind::TlsRule) -> Vec<HostPattern> {
    let own = |gateways: &[String]| {
        gateways.is_empty() || gateways.iter().any(|name| gateway_name(name, &object.namespace) == one.name())
    };
    let here = rule.matches.iter().filter(|one_match| {
        own(&one_match.gateways)
            && one_match.port.is_none_or(|port| port == one.port())
            && is_anybody(
                &one_match.source_labels,
                one_match.source_namespace.as_deref(),
                &one_match.destination_subnets,
            )
    });
    let mut names: Vec<HostPattern> = Vec::new();
    for pattern in here.flat_map(|one_match| &one_match.sni_hosts).filter_map(|text| HostPattern::parse(text)) {
        names.extend(
            one.shared(&object.namespace, &pattern)
                .into_iter()
                .filter(|name| !names.contains(name))
                .collect::<Vec<_>>(),
        );
    }
    names
}

fn is_here(one: &One<'_>, object: &Routed<VirtualService>, rule: &kind::TcpRule) -> bool {
    rule.matches.is_empty()
        || rule.matches.iter().any(|one_match| {
            let gateways = &one_match.gateways;
            let own = |name: &String| gateway_name(name, &object.namespace) == one.name();
            (gateways.is_empty() || gateways.iter().any(own))
                && one_match.port.is_none_or(|port| port == one.port())
                && is_anybody(
                    &one_match.source_labels,
                    one_match.source_namespace.as_deref(),
                    &one_match.destination_subnets,
                )
        })
}

/// A client from outside has no labels and no namespace, and which address of the gateway it has asked for nobody knows.
fn is_anybody(labels: &crate::resource::Labels, namespace: Option<&str>, subnets: &[String]) -> bool {
    labels.is_empty() && namespace.is_none_or(str::is_empty) && subnets.is_empty()
}

fn passage(
    one: &One<'_>,
    object: &Routed<VirtualService>,
    hosts: Vec<HostPattern>,
    route: &[kind::Target],
    field: &str,
    notes: &mut Notes<'_>,
) -> Passage {
    let is_only = route.len() == 1;
    let places = route.iter().enumerate().map(|(index, written)| {
        let field = format!("{field}[{index}].destination");
        let weight = if is_only { 1 } else { written.weight };
        Backend::new(target(one, object, &written.destination, &field, notes), weight)
    });
    let forward = Forward::new(places.collect()).unwrap_or_else(|error| {
        notes.apart(|notes| notes.close(field, error.to_string(), "write smaller weights"));
        let broken = Backend::new(Target::Broken(error.to_string().into()), 1);
        Forward::new(vec![broken]).unwrap_or_else(|_| unreachable!("one place of the weight 1"))
    });
    Passage { origin: notes.origin(), hosts, forward }
}

/// Where a destination is. What is wrong with it is told where objects are looked at beside each other.
fn target(
    one: &One<'_>,
    object: &Routed<VirtualService>,
    written: &Destination,
    field: &str,
    notes: &mut Notes<'_>,
) -> Target {
    let broken = |why: String| Target::Broken(why.into());
    let (around, namespace) = (one.around, &object.namespace);
    let place = match destination(field, written, namespace, &around.rules, &around.hosts) {
        Ok(place) => place,
        Err(Flaw::Wrong(problem)) => return broken(problem.message),
        Err(Flaw::Unknown) => return broken("it is not known yet what there is of its kind".to_owned()),
    };
    let port = place.port.unwrap_or(one.port());
    if !place.host.has_port(port) {
        let why = format!("{} has no port {port}, to which clients connect", written.host);
        let help = format!("add `port: {{number: …}}`; it has {}", place.host.ports().join(", "));
        notes.apart(|notes| notes.close(field, why.clone(), &help));
        return broken(why);
    }
    let subset = written.subset.as_deref().unwrap_or_default().into();
    Target::Cluster(ClusterKey { service: place.service, port, subset })
}
