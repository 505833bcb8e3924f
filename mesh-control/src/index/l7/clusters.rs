//! The places that a waypoint forwards to, with what DestinationRules say of them. A client sees the rule of its own namespace for a host, else that of the
//! host's, else that of everybody; so there is a place for each group of clients that sees the same rules, and one for all others.

mod policy;
mod tls;

use std::collections::BTreeSet;
use std::sync::Arc;

use mesh_core::l7::{Action, Backend, Cluster, ClusterKey, Clusters, Labels, Mirror, Table, Target};
use mesh_core::listener::{Listeners, Serves};
use mesh_core::{ArcStr, NamespacedName};

use super::backend_tls::Policies;
use super::{Around, Problems};
use crate::index::certificates::Reference;
use crate::resource::routing::{DestinationRule, Routed};

type Rule = Arc<Routed<DestinationRule>>;

/// A gateway or waypoint that reaches places.
#[derive(Clone, Copy)]
pub struct Of<'a, 'o> {
    /// Which.
    pub gateway: &'a NamespacedName,
    /// Policies about what it reaches.
    pub policies: &'a Policies<'o>,
    /// What it shows to servers, or why it reaches none.
    pub shown: &'a Result<Option<ArcStr>, ArcStr>,
}

/// For whom places are read, and what is found besides.
pub struct Reader<'a, 'o> {
    /// The objects.
    pub around: &'a Around<'o>,
    /// `None`: agents, who begin no TLS of the world.
    pub of_gateway: Option<Of<'a, 'o>>,
    /// What is to be said.
    pub problems: &'a mut Problems,
    /// Secrets that are named for the gateway.
    pub references: &'a mut Vec<Reference>,
}

/// What is said of the places that a table, listeners or routes of connections to the services that its waypoint serves name, and of all ports of those services.
pub fn clusters(
    table: &Table,
    listeners: Option<&Arc<Listeners>>,
    services: &BTreeSet<NamespacedName>,
    reader: &mut Reader<'_, '_>,
) -> Clusters {
    let around = reader.around;
    let mut keys = named(table);
    for listener in listeners.into_iter().flat_map(|listeners| listeners.all()) {
        match &listener.serves {
            Serves::Http(table) => keys.extend(named(table)),
            Serves::Bytes(passages) => {
                let places = passages.iter().flat_map(|passage| passage.forward.backends());
                keys.extend(places.filter_map(|place| match &place.target {
                    Target::Cluster(key) => Some(key.clone()),
                    Target::Broken(_) => None,
                }));
            }
            Serves::Datagrams(route) => {
                let places = route.iter().flat_map(|route| route.places());
                keys.extend(places.filter_map(|place| match &place.target {
                    Target::Cluster(key) => Some(key.clone()),
                    Target::Broken(_) => None,
                }));
            }
            Serves::Closed(_) => {}
        }
    }
    for service in services {
        keys.extend(around.connections.get(service).into_iter().flat_map(|routes| routes.places()).cloned());
        if let Some(host) = around.hosts.keyed(service) {
            let key = |port: u16| ClusterKey { service: service.clone(), port, subset: ArcStr::new() };
            keys.extend(host.numbers().into_iter().map(key));
        }
    }
    Clusters::new(keys.iter().flat_map(|key| of_key(key, reader)).collect::<Vec<_>>())
}

/// Every place that a table names.
fn named(table: &Table) -> BTreeSet<ClusterKey> {
    let mut keys = BTreeSet::new();
    let mut add = |target: &Target| {
        if let Target::Cluster(key) = target {
            keys.insert(key.clone());
        }
    };
    for rule in table.hosts().iter().flat_map(|host| &host.rules) {
        let backends: &[Backend] = match &rule.handling.action {
            Action::Forward(forward) => forward.backends(),
            _ => &[],
        };
        let copies = |mirrors: &[Mirror], add: &mut dyn FnMut(&Target)| mirrors.iter().for_each(|one| add(&one.target));
        copies(&rule.handling.mirrors, &mut add);
        for backend in backends {
            add(&backend.target);
            copies(&backend.mirrors, &mut add);
        }
    }
    keys
}

/// One place, as each group of clients sees it.
pub fn of_key(key: &ClusterKey, reader: &mut Reader<'_, '_>) -> Vec<Cluster> {
    let around = reader.around;
    let others = rules(key, "", around);
    let mut groups: Vec<(Vec<&Rule>, Vec<ArcStr>)> = Vec::new();
    for namespace in namespaces(key, around) {
        let seen = rules(key, &namespace, around);
        if seen == others {
            continue;
        }
        match groups.iter_mut().find(|(same, _)| *same == seen) {
            Some((_, names)) => names.push(namespace),
            None => groups.push((seen, vec![namespace])),
        }
    }
    let groups = groups.into_iter().map(|(rules, names)| (rules, Some(names))).chain([(others, None)]);
    let mut clusters = Vec::new();
    for (rules, clients) in groups {
        let (selecting, general): (Vec<&Rule>, Vec<&Rule>) =
            rules.into_iter().partition(|rule| rule.spec.workload_selector.is_some());
        for rule in selecting {
            let selector = rule.spec.workload_selector.iter().flat_map(|selector| &selector.match_labels);
            let client_labels = selector.map(|(k, v)| (k.as_str().into(), v.as_str().into())).collect();
            clusters.push(cluster(key, clients.clone(), client_labels, &[rule], reader));
        }
        clusters.push(cluster(key, clients, Labels::new(), &general, reader));
    }
    clusters
}

fn cluster(
    key: &ClusterKey,
    clients: Option<Vec<ArcStr>>,
    client_labels: Labels,
    rules: &[&Rule],
    reader: &mut Reader<'_, '_>,
) -> Cluster {
    let (labels, policy) = policy::policy(key, rules, reader);
    Cluster { key: key.clone(), clients, client_labels, labels, policy }
}

/// The rules of a place that clients of a namespace see. One for some pods is for pods of its own namespace.
fn rules<'a>(key: &ClusterKey, namespace: &str, around: &Around<'a>) -> Vec<&'a Rule> {
    let (full, home) = (&key.service.name, &key.service.namespace);
    let mut rules = around.rules.of_host(full, namespace, home, &around.hosts);
    rules.retain(|rule| rule.spec.workload_selector.is_none() || *rule.namespace == *namespace);
    rules
}

/// Namespaces whose clients may see something that others do not.
fn namespaces(key: &ClusterKey, around: &Around<'_>) -> BTreeSet<ArcStr> {
    let mut names = BTreeSet::new();
    for rule in around.rules.named(&key.service.name) {
        names.insert(rule.namespace.clone());
        let named = rule.spec.export_to.iter().filter(|to| ![".", "*", "~"].contains(&to.as_str()));
        names.extend(named.map(|name| ArcStr::from(name.as_str())));
    }
    names
}
