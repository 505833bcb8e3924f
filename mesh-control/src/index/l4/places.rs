//! What DestinationRules say of the places of services, for agents: they act on what is about connections where no waypoint stands before a service. Whoever
//! has written something else is told that only a waypoint does it. Where no rule is, the mesh settings may say something: then every service has places.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_core::l7::{Cluster, ClusterKey, Clusters};
use mesh_core::{ArcStr, NamespacedName};

use crate::diagnosis::Problem;
use crate::index::l7::labels::Wanted;
use crate::index::l7::{Around, Problems, clusters};
use crate::resource::mesh_defaults::MeshDefaults;
use crate::resource::routing::destination_rule::{
    ConnectionPool, HttpPool, LoadBalancer, Locality, Tls, TlsMode, TrafficPolicy,
};
use crate::resource::routing::{DestinationRule, Routed};
use crate::resource::service::Port;
use crate::resource::{Key, Kind, Objects};

/// What is said where nobody but a waypoint does it.
const OF_WAYPOINTS: &str = "agents do not act on it: only a waypoint of the service does";

/// What is said of the places of each service of which anything is: of all its ports, and of what routes of connections name. `entries` are hosts of
/// ServiceEntries: of those agents heed no rules.
pub fn index(
    objects: &Objects,
    around: &Around<'_>,
    named: &BTreeSet<ClusterKey>,
    entries: &[(NamespacedName, Vec<Port>)],
    problems: &mut Problems,
) -> BTreeMap<NamespacedName, Arc<Clusters>> {
    let mut keys: BTreeSet<ClusterKey> = named.iter().filter(|key| !key.subset.is_empty()).cloned().collect();
    let mut plain: BTreeSet<ClusterKey> = BTreeSet::new();
    let of = |name: &NamespacedName, ports: &[Port]| {
        let key = |port: &Port| ClusterKey { service: name.clone(), port: port.port, subset: ArcStr::new() };
        ports.iter().map(key).collect::<Vec<_>>()
    };
    let is_said = says_something(around.defaults);
    for service in objects.services.values() {
        let name = around.hosts.key(service);
        if around.rules.named(&name.name).next().is_some() {
            keys.extend(of(&name, &service.ports));
        } else if is_said {
            plain.extend(of(&name, &service.ports));
        }
    }
    for (name, ports) in entries.iter().filter(|(name, _)| is_said && around.rules.named(&name.name).next().is_none()) {
        plain.extend(of(name, ports));
    }
    let mut by_service: BTreeMap<NamespacedName, Vec<Cluster>> = BTreeMap::new();
    let mut reader = clusters::Reader { around, of_gateway: None, problems, references: &mut Vec::new() };
    for key in plain {
        let all = by_service.entry(key.service.clone()).or_default();
        all.extend(clusters::of_key(&key, &mut reader).into_iter().map(without_failover));
    }
    for key in keys {
        let all = by_service.entry(key.service.clone()).or_default();
        // What is for some pods of a namespace: agents know no labels of clients.
        all.extend(clusters::of_key(&key, &mut reader).into_iter().filter(|one| one.client_labels.is_empty()));
    }
    by_service.into_iter().map(|(service, all)| (service, Arc::new(Clusters::new(all)))).collect()
}

/// Whether the mesh settings say anything of places that no rule is about, and agents act on it.
pub fn says_something(defaults: &MeshDefaults) -> bool {
    let shares = |said: &Locality| said.enabled != Some(false) && !said.distribute.is_empty();
    defaults.connect_timeout.is_some() || defaults.locality.as_ref().is_some_and(shares)
}

/// Where no rule has anybody left out, what comes after those who are says nothing. It would be in each place of each service, and its labels be told of all workloads.
fn without_failover(mut place: Cluster) -> Cluster {
    if let Ok(policy) = &mut place.policy {
        policy.locality.failover.clear();
        policy.locality.priority.clear();
    }
    place
}

/// The labels that these places ask for.
pub fn wanted(places: &BTreeMap<NamespacedName, Arc<Clusters>>) -> Wanted {
    let all = places.values().flat_map(|clusters| clusters.iter()).map(|cluster| Cluster::clone(cluster));
    Wanted::of(&Default::default(), &Clusters::new(all))
}

/// DestinationRules that any of these is made of.
pub fn in_force(places: &BTreeMap<NamespacedName, Arc<Clusters>>, around: &Around<'_>) -> BTreeSet<Key> {
    let rules = places.keys().flat_map(|service| around.rules.named(&service.name).map(|rule| key(rule)));
    rules.collect()
}

/// What of these rules those do not act on who they are in force at; `at_waypoints` are those that a waypoint or gateway acts on.
pub fn left_out(in_force: &BTreeSet<Key>, at_waypoints: &BTreeSet<Key>, around: &Around<'_>) -> Problems {
    let rules = around.routes.destination_rules.values().map(|rule| (key(rule), rule));
    let tell = |(key, rule): (Key, &Arc<Routed<DestinationRule>>)| {
        let spec = &rule.spec;
        let (is_at_agents, is_at_waypoints) = (in_force.contains(&key), at_waypoints.contains(&key));
        let told = match is_at_agents && !is_at_waypoints {
            true => {
                let of_spec = [spec.workload_selector.is_some().then(|| "spec.workloadSelector".to_owned())];
                let all = of_spec.into_iter().flatten().chain(of_policies(spec)).chain(fields(spec, of_waypoints));
                let help = "make a waypoint for the service";
                all.map(|field| Problem::warning(field, OF_WAYPOINTS).help(help)).collect()
            }
            false => Vec::new(),
        };
        told.into_iter().map(|problem| (key.clone(), problem)).collect::<Vec<_>>()
    };
    rules.flat_map(tell).collect()
}

fn key(rule: &Routed<DestinationRule>) -> Key {
    Key { kind: Kind::DestinationRule, namespace: rule.namespace.clone(), name: rule.name.clone() }
}

/// The policies of a rule, by their fields.
fn policies(spec: &DestinationRule) -> impl Iterator<Item = (String, &TrafficPolicy)> {
    let own = spec.traffic_policy.iter().map(|policy| ("spec.trafficPolicy".to_owned(), &**policy));
    let of_subsets = spec.subsets.iter().enumerate().filter_map(|(index, subset)| {
        Some((format!("spec.subsets[{index}].trafficPolicy"), subset.traffic_policy.as_deref()?))
    });
    own.chain(of_subsets)
}

/// What only a waypoint does of what policies say once for all ports.
fn of_policies(spec: &DestinationRule) -> Vec<String> {
    let of = |(field, policy): (String, &TrafficPolicy)| {
        let there = [
            (policy.tunnel.is_some(), "tunnel"),
            (policy.proxy_protocol.is_some(), "proxyProtocol"),
            (policy.retry_budget.is_some(), "retryBudget"),
        ];
        let there = there.into_iter().filter(|(is, _)| *is);
        there.map(|(_, name)| format!("{field}.{name}")).collect::<Vec<_>>()
    };
    policies(spec).flat_map(of).collect()
}

type Parts<'a> = (&'a Option<LoadBalancer>, &'a Option<ConnectionPool>, &'a Option<Tls>);

/// The fields of those parts of policies, for all ports and for one, of which this says that they are there.
fn fields(spec: &DestinationRule, there: impl Fn(Parts<'_>) -> Vec<(bool, &'static str)>) -> Vec<String> {
    let mut fields = Vec::new();
    let mut add = |field: &str, parts: Parts<'_>| {
        let named = there(parts).into_iter().filter(|(is, _)| *is);
        fields.extend(named.map(|(_, name)| format!("{field}.{name}")));
    };
    for (field, policy) in policies(spec) {
        add(&field, (&policy.load_balancer, &policy.connection_pool, &policy.tls));
        for (index, port) in policy.port_level_settings.iter().enumerate() {
            let parts = (&port.load_balancer, &port.connection_pool, &port.tls);
            add(&format!("{field}.portLevelSettings[{index}]"), parts);
        }
    }
    fields
}

fn of_waypoints((balancer, pool, tls): Parts<'_>) -> Vec<(bool, &'static str)> {
    let hash = balancer.as_ref().and_then(|balancer| balancer.consistent_hash.as_ref());
    let is_tls = |tls: &Tls| matches!(tls.mode, Some(TlsMode::Simple | TlsMode::Mutual));
    let is_idle = |pool: &ConnectionPool| pool.tcp.idle_timeout.is_some_and(|span| !span.0.is_zero());
    let limits_time = |pool: &ConnectionPool| pool.tcp.max_connection_duration.is_some();
    vec![
        (hash.is_some_and(|hash| hash.use_source_ip != Some(true)), "loadBalancer.consistentHash"),
        (pool.as_ref().is_some_and(|pool| pool.http != HttpPool::default()), "connectionPool.http"),
        (pool.as_ref().is_some_and(limits_time), "connectionPool.tcp.maxConnectionDuration"),
        (pool.as_ref().is_some_and(is_idle), "connectionPool.tcp.idleTimeout"),
        (tls.as_ref().is_some_and(is_tls), "tls"),
    ]
}
