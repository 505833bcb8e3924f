//! The world: all resources as they go over the wire, with names, aliases and versions. Each world is immutable; it shares with its predecessor what they
//! have in common, and what a client lacks of it is found once for all clients that have the same.
//!
//! ```text
//! view (what changed since the last one) -> table (bytes, in shards), lookup (keys to names)
//!                                            \ step: what brings a client from one table to another; sessions with the same table share it
//! ```

mod changes;
mod lookup;
mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};

use mesh_core::l7::Labels;
use mesh_core::{ArcStr, NamespacedName, Service, Workload};
use mesh_proto::convert::{
    encode_certificates, encode_clusters, encode_connection_routes, encode_listeners, encode_outbound, encode_policy,
    encode_route_table, encode_security, encode_service, encode_telemetry, encode_workload, encode_workload_labels,
};
use mesh_proto::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE, CERTIFICATES_TYPE, CLUSTERS_TYPE, CONNECTION_ROUTES_TYPE, LISTENERS_TYPE,
    OUTBOUND_TYPE, ROUTE_TABLE_TYPE, SECURITY_TYPE, TELEMETRY_TYPE, WORKLOAD_LABELS_TYPE,
};
use parking_lot::Mutex;

use crate::index::View;
use crate::index::l7::labels::Told;
pub use changes::Changes;
use lookup::Lookup;
pub use table::{Entry, Resource, Step, Table, version_text};

/// Clients are at so many different worlds at once, mostly at the last one or two; for those that are at others it is found out again.
const STEPS: usize = 32;

/// What is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Policies. They come first: a workload must not list a policy that the agent does not have.
    Authorization,
    /// What happens to connections of agents' pods to what nobody is known to have. It comes before the pods: one that is known is no longer held as one of
    /// whom that is not known yet.
    Outbound,
    /// Workloads and services.
    Address,
    /// What a waypoint holds requests against. It comes before what they are for.
    Security,
    /// What a waypoint measures, logs and traces. What it says of collectors names services.
    Telemetry,
    /// Labels of workloads that the following ask for.
    Labels,
    /// How a waypoint reaches the places that its routes name. They come before those: a table must not name a subset that the waypoint does not know.
    Clusters,
    /// Where connections to services go. They come after the services and the places that they name.
    Connections,
    /// What a waypoint does with requests.
    RouteTable,
    /// What a gateway shows and believes: secrets, which are that gateway's alone.
    Certificates,
    /// What a gateway listens for. It comes after the certificates that it names.
    Listeners,
}

/// Who is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Audience {
    /// An agent, which is sent nothing of waypoints.
    Agent,
    /// The waypoint of the Gateway with this `namespace/name`, which is sent what is its own and no other's.
    Waypoint(ArcStr),
}

impl Audience {
    /// What it is served, in the order in which it is sent.
    pub fn kinds(&self) -> &'static [Kind] {
        match self {
            Audience::Agent => &Kind::SHARED,
            Audience::Waypoint(_) => &Kind::ALL,
        }
    }

    /// The kind with this type URL, if it is served that.
    pub fn kind(&self, url: &str) -> Option<Kind> {
        Kind::of_url(url).filter(|kind| self.kinds().contains(kind))
    }
}

impl Kind {
    /// In the order in which they are sent.
    pub const ALL: [Kind; 11] = [
        Kind::Authorization,
        Kind::Outbound,
        Kind::Address,
        Kind::Security,
        Kind::Telemetry,
        Kind::Labels,
        Kind::Clusters,
        Kind::Connections,
        Kind::RouteTable,
        Kind::Certificates,
        Kind::Listeners,
    ];
    /// Those of agents, who all have the same. Waypoints have labels and clusters of their own instead, and everything else.
    pub const SHARED: [Kind; 6] =
        [Kind::Authorization, Kind::Outbound, Kind::Address, Kind::Labels, Kind::Clusters, Kind::Connections];

    /// The kind with this type URL.
    pub fn of_url(url: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|k| k.url() == url)
    }

    /// Its type URL.
    pub fn url(self) -> &'static str {
        match self {
            Kind::Authorization => AUTHORIZATION_TYPE,
            Kind::Address => ADDRESS_TYPE,
            Kind::Connections => CONNECTION_ROUTES_TYPE,
            Kind::Outbound => OUTBOUND_TYPE,
            Kind::Security => SECURITY_TYPE,
            Kind::Telemetry => TELEMETRY_TYPE,
            Kind::Labels => WORKLOAD_LABELS_TYPE,
            Kind::Clusters => CLUSTERS_TYPE,
            Kind::RouteTable => ROUTE_TABLE_TYPE,
            Kind::Certificates => CERTIFICATES_TYPE,
            Kind::Listeners => LISTENERS_TYPE,
        }
    }

    /// A short name for logs and metrics.
    pub fn short(self) -> &'static str {
        match self {
            Kind::Authorization => "authorization",
            Kind::Address => "address",
            Kind::Connections => "connection_routes",
            Kind::Outbound => "outbound",
            Kind::Security => "security",
            Kind::Telemetry => "telemetry",
            Kind::Labels => "workload_labels",
            Kind::Clusters => "clusters",
            Kind::RouteTable => "route_table",
            Kind::Certificates => "certificates",
            Kind::Listeners => "listeners",
        }
    }
}

/// What brings clients that hold a table to this world.
#[derive(Debug)]
struct Known {
    to: Table,
    held: Table,
    with_gone: bool,
    step: Arc<Step>,
}

/// Everything there is to send, at one moment.
#[derive(Debug, Default)]
pub struct World {
    /// Counts worlds, from 1.
    pub generation: u64,
    /// When what is new in it, and in those before it, was heard of.
    pub changes: Changes,
    authorizations: Table,
    addresses: Table,
    connections: Table,
    outbound: Table,
    /// What agents have of the kinds of which waypoints have their own: what is said of places, by service, and labels that those ask for.
    places: Table,
    labels: Table,
    /// Of each waypoint its own, by kind and `namespace/name`, each in a table of its own: nobody else's is ever looked at.
    own: BTreeMap<(Kind, ArcStr), Table>,
    /// From `network/address`.
    aliases: Lookup,
    /// From services to their workloads.
    members: Lookup,
    /// What it was made of.
    view: Arc<View>,
    /// A short critical section: what is not known is found out in it, so that it is done once.
    steps: Mutex<Vec<Known>>,
}

impl World {
    /// The world that follows this one.
    #[must_use]
    pub fn next(&self, view: &Arc<View>) -> World {
        let (mut aliases, mut members) = (self.aliases.clone(), self.members.clone());
        let mut addresses = Vec::new();
        for (uid, old, new) in changes(&self.view.workloads, &view.workloads) {
            if let Some(workload) = old {
                workload_aliases(workload).iter().for_each(|alias| aliases.remove(alias, uid));
                workload.services.keys().for_each(|service| members.remove(&service.to_string(), uid));
            }
            if let Some(workload) = new {
                workload_aliases(workload).iter().for_each(|alias| aliases.add(alias, uid));
                workload.services.keys().for_each(|service| members.add(&service.to_string(), uid));
            }
            let resource = new.map(|workload| {
                Resource::new(ADDRESS_TYPE, uid.clone(), workload_aliases(workload), encode_workload(workload))
            });
            addresses.push((uid.clone(), resource));
        }
        for (key, old, new) in changes(&self.view.services, &view.services) {
            let name: ArcStr = key.to_string().into();
            old.into_iter().flat_map(service_aliases).for_each(|alias| aliases.remove(&alias, &name));
            new.into_iter().flat_map(service_aliases).for_each(|alias| aliases.add(&alias, &name));
            let resource =
                new.map(|s| Resource::new(ADDRESS_TYPE, name.clone(), service_aliases(s), encode_service(s)));
            addresses.push((name, resource));
        }
        let policies = changes(&self.view.policies, &view.policies);
        let policies = policies.into_iter().map(|(key, _, new)| {
            let name: ArcStr = key.to_string().into();
            let of = |policy| Resource::new(AUTHORIZATION_TYPE, name.clone(), Vec::new(), encode_policy(policy));
            (name.clone(), new.map(of))
        });
        let connections = changes(&self.view.connections, &view.connections);
        let connections = connections.into_iter().map(|(key, _, new)| {
            let name: ArcStr = key.to_string().into();
            let of = |routes| {
                Resource::new(CONNECTION_ROUTES_TYPE, name.clone(), Vec::new(), encode_connection_routes(routes))
            };
            (name.clone(), new.map(of))
        });
        let places = changes(&self.view.places, &view.places).into_iter().map(|(key, _, new)| {
            let name: ArcStr = key.to_string().into();
            let of = |all| Resource::new(CLUSTERS_TYPE, name.clone(), Vec::new(), encode_clusters(&name, all));
            (name.clone(), new.map(of))
        });
        let outbound = changes(&self.view.outbound, &view.outbound).into_iter().map(|(name, _, new)| {
            let of = |said| Resource::new(OUTBOUND_TYPE, name.clone(), Vec::new(), encode_outbound(said));
            (name.clone(), new.map(of))
        });
        let mut own = self.own.clone();
        let (clusters, tables) = ((&self.view.clusters, &view.clusters), (&self.view.tables, &view.tables));
        let security = changes(&self.view.security, &view.security);
        replace(&mut own, Kind::Security, security, |_, one| encode_security(one));
        let telemetry = changes(&self.view.telemetry, &view.telemetry);
        replace(&mut own, Kind::Telemetry, telemetry, encode_telemetry);
        labels(&mut own, &self.view.labels, &view.labels);
        replace(&mut own, Kind::Clusters, changes(clusters.0, clusters.1), encode_clusters);
        replace(&mut own, Kind::RouteTable, changes(tables.0, tables.1), |_, table| encode_route_table(table));
        let certificates = changes(&self.view.certificates, &view.certificates);
        replace(&mut own, Kind::Certificates, certificates, |_, all| encode_certificates(all));
        let listeners = changes(&self.view.listeners, &view.listeners);
        replace(&mut own, Kind::Listeners, listeners, |_, all| encode_listeners(all));
        World {
            generation: self.generation + 1,
            changes: self.changes.clone(),
            own,
            authorizations: self.authorizations.replaced(policies),
            addresses: self.addresses.replaced(addresses),
            connections: self.connections.replaced(connections),
            outbound: self.outbound.replaced(outbound),
            places: self.places.replaced(places),
            labels: self.labels.replaced(labelled(&self.view.place_labels, &view.place_labels)),
            aliases,
            members,
            view: view.clone(),
            steps: Mutex::default(),
        }
    }

    /// The resources of a kind that somebody may have; none if there are none for that one.
    pub fn table(&self, kind: Kind, audience: &Audience) -> &Table {
        static NONE: LazyLock<Table> = LazyLock::new(Table::default);
        match (kind, audience) {
            (Kind::Authorization, _) => &self.authorizations,
            (Kind::Address, _) => &self.addresses,
            (Kind::Connections, _) => &self.connections,
            (Kind::Outbound, Audience::Agent) => &self.outbound,
            (Kind::Clusters, Audience::Agent) => &self.places,
            (Kind::Labels, Audience::Agent) => &self.labels,
            (_, Audience::Agent) => &NONE,
            (_, Audience::Waypoint(name)) => self.own.get(&(kind, name.clone())).unwrap_or(&NONE),
        }
    }

    /// Whether anybody is served the same by both.
    pub fn is_same(&self, other: &World) -> bool {
        let tables = |one: &Table, two: &Table| one.is(two);
        tables(&self.authorizations, &other.authorizations)
            && tables(&self.addresses, &other.addresses)
            && tables(&self.connections, &other.connections)
            && tables(&self.outbound, &other.outbound)
            && tables(&self.places, &other.places)
            && tables(&self.labels, &other.labels)
            && self.own.len() == other.own.len()
            && self.own.iter().all(|(key, own)| other.own.get(key).is_some_and(|other| own.is(other)))
    }

    /// What somebody who holds `held` lacks of a kind, as [`Table::since`] has it.
    pub fn since(&self, kind: Kind, audience: &Audience, held: &Table, limit: usize, with_gone: bool) -> Arc<Step> {
        let to = self.table(kind, audience);
        let mut steps = self.steps.lock();
        let is = |known: &&Known| known.to.is(to) && known.with_gone == with_gone && known.held.is(held);
        if let Some(known) = steps.iter().find(is) {
            return known.step.clone();
        }
        let step = Arc::new(to.since(held, limit, with_gone));
        if steps.len() >= STEPS {
            steps.remove(0);
        }
        steps.push(Known { to: to.clone(), held: held.clone(), with_gone, step: step.clone() });
        step
    }

    /// What somebody means who asks for `key`: a resource by name, whatever has that address, and with a service its workloads.
    pub fn lookup(&self, kind: Kind, audience: &Audience, key: &str) -> Vec<ArcStr> {
        let own = self.table(kind, audience).get(key).map(|entry| entry.name.clone());
        if kind != Kind::Address {
            return own.into_iter().collect();
        }
        let mut names: Vec<ArcStr> = match own {
            Some(name) => vec![name],
            None => self.aliases.get(key).to_vec(),
        };
        for service in names.clone() {
            names.extend(self.members.get(&service).iter().cloned());
        }
        names.dedup();
        names
    }
}

/// Takes over what is another of a kind that waypoints have of their own: one resource each, with the waypoint's name.
fn replace<V>(
    own: &mut BTreeMap<(Kind, ArcStr), Table>,
    kind: Kind,
    changes: Vec<Changed<'_, NamespacedName, V>>,
    encode: impl Fn(&str, &V) -> Vec<u8>,
) {
    for (gateway, _, new) in changes {
        let name: ArcStr = gateway.to_string().into();
        match new {
            Some(value) => {
                let resource = Resource::new(kind.url(), name.clone(), Vec::new(), encode(&name, value));
                let table = own.entry((kind, name.clone())).or_default();
                *table = table.replaced([(name, Some(resource))]);
            }
            None => drop(own.remove(&(kind, name))),
        }
    }
}

/// Takes over labels, of which each waypoint has a resource for each workload.
fn labels(
    own: &mut BTreeMap<(Kind, ArcStr), Table>,
    before: &BTreeMap<NamespacedName, Arc<Told>>,
    after: &BTreeMap<NamespacedName, Arc<Told>>,
) {
    let none = Arc::<Told>::default();
    let gateways: BTreeSet<&NamespacedName> = before.keys().chain(after.keys()).collect();
    for gateway in gateways {
        let (old, new) = (before.get(gateway).unwrap_or(&none), after.get(gateway).unwrap_or(&none));
        let key = (Kind::Labels, ArcStr::from(gateway.to_string()));
        let table = own.entry(key.clone()).or_default();
        *table = table.replaced(labelled(old, new));
        if table.is_empty() {
            own.remove(&key);
        }
    }
}

/// Labels of workloads that are others than before.
fn labelled(old: &Told, new: &Told) -> Vec<(ArcStr, Option<Resource>)> {
    let resource = |uid: &ArcStr, labels: &Labels| {
        Resource::new(WORKLOAD_LABELS_TYPE, uid.clone(), Vec::new(), encode_workload_labels(uid, labels))
    };
    let changes = changes(old, new).into_iter();
    changes.map(|(uid, _, new)| (uid.clone(), new.map(|labels| resource(uid, labels)))).collect()
}

/// One thing that is another than before, is new or is gone: its key, the old and the new.
type Changed<'a, K, V> = (&'a K, Option<&'a V>, Option<&'a V>);

/// What differs. What is kept from the old one is known by its address, so that most of it need not be looked at.
fn changes<'a, K: Ord, V: PartialEq>(
    old: &'a BTreeMap<K, Arc<V>>,
    new: &'a BTreeMap<K, Arc<V>>,
) -> Vec<Changed<'a, K, V>> {
    let mut changes = Vec::new();
    let mut left = old.iter().peekable();
    for (key, value) in new {
        while let Some((gone, before)) = left.next_if(|(k, _)| *k < key) {
            changes.push((gone, Some(&**before), None));
        }
        match left.next_if(|(k, _)| *k == key) {
            Some((_, before)) if Arc::ptr_eq(before, value) || before == value => {}
            before => changes.push((key, before.map(|(_, before)| &**before), Some(&**value))),
        }
    }
    changes.extend(left.map(|(gone, before)| (gone, Some(&**before), None)));
    changes
}

fn workload_aliases(workload: &Workload) -> Vec<String> {
    let own_address = workload.network_mode == mesh_core::workload::NetworkMode::Standard;
    workload.addresses.iter().filter(|_| own_address).map(|a| format!("{}/{a}", workload.network)).collect()
}

fn service_aliases(service: &Service) -> Vec<String> {
    service.addresses.iter().filter_map(|a| a.single().map(|ip| format!("{}/{ip}", a.network))).collect()
}
