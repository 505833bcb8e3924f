//! Labels of workloads that waypoints are told: only those that routes and DestinationRules ask for, and only of workloads that they ask about. On Istio's wire
//! workloads have none. A waypoint is told them one workload at a time: a list of a subset's members would be sent anew, as a whole, for each pod of a large
//! service that comes or goes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use mesh_core::hops::GATEWAY;
use mesh_core::l7::{Clusters, Labels, Table};
use mesh_core::{ArcStr, NamespacedName, Workload};

use crate::resource::{Labels as Written, meta};

/// Labels of one workload that waypoints read; a pod with more of them, all asked for, is told about with those that come first.
const MOST: usize = 1000;

/// What one waypoint asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Of endpoints, by their service.
    endpoints: BTreeMap<NamespacedName, Asked>,
    /// Of everybody who may be a client.
    clients: Asked,
    /// Keys, of its own pods.
    own: BTreeSet<ArcStr>,
    /// Which Gateway pods serve that listen outside of the mesh.
    gateways: bool,
}

/// Some labels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Asked {
    pairs: BTreeSet<(ArcStr, ArcStr)>,
    /// With whatever value.
    keys: BTreeSet<ArcStr>,
}

/// Labels by uid.
pub type Told = BTreeMap<ArcStr, Arc<Labels>>;

impl Wanted {
    /// What these routes and places ask for.
    pub fn of(table: &Table, clusters: &Clusters) -> Self {
        let mut wanted = Self::default();
        for condition in table.hosts().iter().flat_map(|host| &host.rules).flat_map(|rule| &rule.conditions) {
            wanted.clients.add(&condition.source_labels);
        }
        for cluster in clusters.iter() {
            wanted.clients.add(&cluster.client_labels);
            let priority = cluster.policy.as_ref().map(|policy| &*policy.locality.priority).unwrap_or_default();
            if cluster.labels.is_empty() && priority.is_empty() {
                continue;
            }
            let endpoints = wanted.endpoints.entry(cluster.key.service.clone()).or_default();
            endpoints.add(&cluster.labels);
            for label in priority {
                match label.split_once('=') {
                    Some((key, value)) => {
                        endpoints.pairs.insert((key.into(), value.into()));
                    }
                    None => {
                        endpoints.keys.insert(label.clone());
                        wanted.own.insert(label.clone());
                    }
                }
            }
        }
        wanted
    }

    /// And these, of everybody who may be a client.
    #[must_use]
    pub fn with_clients<'a>(mut self, labels: impl Iterator<Item = &'a Labels>) -> Self {
        labels.for_each(|labels| self.clients.add(labels));
        self
    }

    /// And those of clients that somebody else asks for.
    pub fn add_clients_of(&mut self, other: &Self) {
        self.clients.pairs.extend(other.clients.pairs.iter().cloned());
    }

    /// Whether it asks for labels of clients.
    #[must_use]
    pub fn asks_of_clients(&self) -> bool {
        !self.clients.is_empty()
    }

    /// And who serves a gateway: by that proxies notice that they lead to each other.
    #[must_use]
    pub fn with_gateways(self) -> Self {
        Self { gateways: true, ..self }
    }

    fn is_empty(&self) -> bool {
        !self.gateways && self.endpoints.is_empty() && self.clients.is_empty()
    }
}

impl Asked {
    fn add(&mut self, labels: &Labels) {
        self.pairs.extend(labels.iter().map(|(key, value)| (key.clone(), value.clone())));
    }

    fn is_empty(&self) -> bool {
        self.pairs.is_empty() && self.keys.is_empty()
    }
}

/// A label, and whoever asks for it.
#[derive(Default)]
struct Askers<'a> {
    pairs: HashMap<(&'a str, &'a str), Vec<usize>>,
    keys: HashMap<&'a str, Vec<usize>>,
}

impl<'a> Askers<'a> {
    fn add(&mut self, asked: &'a Asked, who: usize) {
        asked.pairs.iter().for_each(|(key, value)| self.pairs.entry((key, value)).or_default().push(who));
        asked.keys.iter().for_each(|key| self.keys.entry(key).or_default().push(who));
    }

    fn of<'k>(&'k self, key: &'k str, value: &'k str) -> impl Iterator<Item = usize> {
        let (pairs, keys) = (self.pairs.get(&(key, value)), self.keys.get(key));
        pairs.into_iter().chain(keys).flatten().copied()
    }
}

/// One pod, or an endpoint that is none.
pub struct Seen<'a> {
    /// Its labels.
    pub labels: &'a Written,
    /// What becomes of it.
    pub workload: &'a Workload,
    /// Whose waypoint it serves.
    pub serves: Option<NamespacedName>,
    /// The gateway that it serves and that is no waypoint.
    pub gateway: Option<NamespacedName>,
}

/// What each waypoint is told of these pods.
pub fn told<'a>(
    wanted: &BTreeMap<&NamespacedName, &Arc<Wanted>>,
    pods: impl Iterator<Item = Seen<'a>>,
) -> BTreeMap<NamespacedName, Arc<Told>> {
    let asking: Vec<_> = wanted.iter().filter(|(_, wanted)| !wanted.is_empty()).collect();
    let mut told: Vec<Told> = vec![Told::new(); asking.len()];
    if !asking.is_empty() {
        let (mut by_service, mut of_all) = (HashMap::<&NamespacedName, Askers<'_>>::new(), Askers::default());
        for (who, (_, wanted)) in asking.iter().enumerate() {
            of_all.add(&wanted.clients, who);
            for (service, asked) in &wanted.endpoints {
                by_service.entry(service).or_default().add(asked, who);
            }
        }
        for Seen { labels, workload, serves, gateway } in pods {
            for who in (0..asking.len()).filter(|who| gateway.is_some() && asking[*who].1.gateways) {
                let labels = told[who].entry(workload.uid.clone()).or_default();
                let name = gateway.as_ref().map(|gateway| gateway.name.clone()).unwrap_or_default();
                Arc::make_mut(labels).insert(GATEWAY.into(), name);
            }
            let of_services: Vec<_> = workload.services.keys().filter_map(|key| by_service.get(key)).collect();
            let own = serves.and_then(|gateway| asking.iter().position(|(name, _)| ***name == gateway));
            for (key, value) in labels {
                let endpoint = of_services.iter().flat_map(|askers| askers.of(key, value));
                let own = own.filter(|who| asking[*who].1.own.contains(key.as_str()));
                // Of labels that no API server lets an object have, waypoints read none, nor what else the workload has.
                let asking = of_all.of(key, value).chain(endpoint).chain(own);
                for who in asking.filter(|_| meta::pair(key, value).is_ok()) {
                    let labels = told[who].entry(workload.uid.clone()).or_default();
                    if labels.len() < MOST {
                        Arc::make_mut(labels).insert(key.as_str().into(), value.as_str().into());
                    }
                }
            }
        }
    }
    asking.into_iter().map(|(name, _)| NamespacedName::clone(name)).zip(told.into_iter().map(Arc::new)).collect()
}

#[cfg(test)]
mod tests {
    use mesh_core::l7::cluster::{Locality, Policy};
    use mesh_core::l7::{Cluster, ClusterKey, Condition, Handling, Rule, VirtualHost};

    use super::*;

    fn labels(text: &str) -> Labels {
        text.split_terminator(',').filter_map(|pair| pair.split_once('=')).map(|(k, v)| (k.into(), v.into())).collect()
    }

    fn key(service: &str) -> ClusterKey {
        ClusterKey { service: NamespacedName::new("shop", service), port: 80, subset: "s".into() }
    }

    /// A subset of a service, by its labels, with labels by which endpoints are put in order.
    fn subset(service: &str, text: &str, priority: &[&str]) -> Cluster {
        let locality =
            Locality { priority: priority.iter().map(|label| (*label).into()).collect(), ..Locality::default() };
        let policy = Ok(Policy { locality, ..Policy::default() });
        Cluster { labels: labels(text), policy, ..Cluster::closed(key(service), "") }
    }

    fn asking_clients(text: &str) -> Table {
        let condition = Condition { source_labels: labels(text), ..Condition::default() };
        let handling = Arc::new(Handling::new(mesh_core::l7::Action::Closed("x".into())));
        let host = VirtualHost { rules: vec![Rule { conditions: vec![condition], handling }], ..Default::default() };
        Table::new("x", vec![Arc::new(host)])
    }

    fn seen((labels, workload): &(Written, Workload)) -> Seen<'_> {
        let serves = (&*workload.name == "wp").then(|| NamespacedName::new("shop", "wp"));
        Seen { labels, workload, serves, gateway: None }
    }

    #[test]
    fn only_what_is_asked_for_is_told_and_only_of_whom_it_is_asked() {
        let pod = |name: &str, text: &str, service: &str| {
            let mut workload = Workload::new(name, "shop", name);
            workload.services = Arc::new([(NamespacedName::new("shop", service), Vec::new())].into());
            let labels: Written = labels(text).iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
            (labels, workload)
        };
        let many: Vec<String> = (0..MOST + 1).map(|n| format!("k{n}=v")).collect();
        let pods = [
            pod("a1", "version=v1,app=a", "a"),
            pod("a2", "version=v2,app=a", "a"),
            pod("b1", "version=v1,app=b,tier=web", "b"),
            pod("wp", "version=v1,tier=edge", "wp"),
            pod("b2", "version=v1,app=b,tier=a\tb", "b"),
            pod("c1", &many.join(","), "c"),
        ];
        let ask = |table: &Table, clusters: Vec<Cluster>| -> Vec<String> {
            let wanted = Wanted::of(table, &Clusters::new(clusters));
            let (name, wanted) = (NamespacedName::new("shop", "wp"), Arc::new(wanted));
            let all = [(&name, &wanted)].into();
            let told = told(&all, pods.iter().map(seen));
            let told = told.values().flat_map(|told| told.iter());
            told.map(|(uid, labels)| {
                let pairs: Vec<_> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
                format!("{uid} {}", pairs.join(","))
            })
            .collect()
        };
        let none = Table::default();
        assert_eq!(ask(&none, vec![subset("a", "", &[])]), [""; 0]);
        assert_eq!(ask(&none, vec![subset("a", "version=v1", &[])]), ["a1 version=v1"]);
        let both = vec![subset("a", "version=v1", &[]), subset("a", "version=v2,app=a", &[])];
        assert_eq!(ask(&none, both), ["a1 app=a,version=v1", "a2 app=a,version=v2"]);
        assert_eq!(ask(&asking_clients("app=b"), vec![]), ["b1 app=b", "b2 app=b"]);
        let with_order = vec![subset("b", "", &["tier", "app=b", "topology.kubernetes.io/zone"])];
        assert_eq!(ask(&none, with_order), ["b1 app=b,tier=web", "b2 app=b", "wp tier=edge"]);
        let selecting = Cluster { client_labels: labels("version=v2"), ..subset("b", "", &[]) };
        assert_eq!(ask(&none, vec![selecting]), ["a2 version=v2"]);
        let all = many.iter().map(|pair| subset("c", pair, &[])).collect();
        assert_eq!(ask(&none, all)[0].split(',').count(), MOST);
    }
}
