//! The places of services of which DestinationRules say how their endpoints are reached: subsets, limits of connections, who is left out. All pods of the
//! node share what is known of a place, as all requests of a waypoint do; what is written holds for the node. `outbound` asks before each attempt.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use mesh_core::balance::Outcome;
use mesh_core::l7::balance::{Ask, Ended, Lease, Limit, PlaceState, Set, Sources, Taken, hash};
use mesh_core::l7::cluster::{Balancer, HashKey, Policy, Tls};
use mesh_core::l7::{Client, Cluster, ClusterKey, Labels};
use mesh_core::workload::TunnelProtocol;
use mesh_core::{ArcStr, EndpointLease, EndpointSet, Refusal, Request, Route, Snapshot, place_of, resolve};
use parking_lot::Mutex;
use rand::Rng;

/// A place that nobody has asked for this long is forgotten, once there are many.
const UNUSED_MS: u64 = 600_000;
/// As many are no trouble.
const FEW: usize = 256;

/// All places that are in use.
#[derive(Default)]
pub struct Places {
    /// A short critical section: what is found is shared.
    known: Mutex<HashMap<Whose, Known>>,
}

/// A place as some clients see it, and the families of their addresses, that which they ask by first: by these its endpoints are others, or other addresses.
type Whose = (ClusterKey, Option<Vec<ArcStr>>, Families);

/// Each whether it is IPv4.
type Families = (bool, Option<bool>);

#[derive(Default)]
struct Known {
    state: Arc<PlaceState>,
    now: Option<Version>,
    used_ms: u64,
}

/// What a set of endpoints was made of.
struct Version {
    members: Arc<EndpointSet>,
    cluster: Arc<Cluster>,
    labels: u64,
    set: Arc<Set>,
}

impl Places {
    /// The way to an endpoint as a DestinationRule says it; `None` where none says anything: then `mesh_core::resolve` decides.
    pub fn route(
        &self,
        snapshot: &Snapshot,
        request: &Request<'_>,
        client: IpAddr,
        rng: &mut impl Rng,
    ) -> Option<Result<Route, Refusal>> {
        let key = place_of(snapshot, request)?;
        let namespace = Some(&*request.source.namespace);
        let seen = Client { identity: request.source.identity.as_ref(), namespace, labels: None };
        let cluster = snapshot.clusters(&key.service)?.find(&key, &seen)?;
        Some(self.at(snapshot, request, &key, cluster, client, rng))
    }

    fn at(
        &self,
        snapshot: &Snapshot,
        request: &Request<'_>,
        key: &ClusterKey,
        cluster: &Arc<Cluster>,
        client: IpAddr,
        rng: &mut impl Rng,
    ) -> Result<Route, Refusal> {
        let refuse =
            |why: &str| Refusal::Route { service: key.service.clone(), origin: ArcStr::new(), why: why.into() };
        let policy = cluster.policy.as_ref().map_err(|why| refuse(why))?;
        let none = || Refusal::NoEndpoints { service: key.service.clone(), port: key.port };
        let service = snapshot.service(&key.service).ok_or_else(none)?;
        let members = snapshot.endpoints(&key.service).ok_or_else(none)?;
        let (set, state) = self.set(snapshot, request, key, cluster, policy, members);
        let of_client = || match client {
            IpAddr::V4(ip) => hash(&ip.octets()),
            IpAddr::V6(ip) => hash(&ip.octets()),
        };
        let by_client = matches!(&policy.balancer, Balancer::Hash(HashKey::Source, _));
        let ask =
            Ask { hash: by_client.then(of_client), tried: request.tried, elsewhere: false, now_ms: request.now_ms };
        let chosen = set.pick(&ask, rng).ok_or_else(none)?;
        // Endpoints of the mesh are reached in its own way, whatever is said; what is said of others must not be left undone.
        let is_asked = matches!(policy.tls, Tls::Simple(_) | Tls::Mutual(_)) || policy.proxy_protocol.is_some();
        let is_outside = chosen.workload.protocol == TunnelProtocol::None;
        // What a gateway listens for is its own, also in a tunnel.
        if is_asked && (is_outside || chosen.workload.native_tunnel) {
            return Err(refuse(
                "TLS and the PROXY protocol to endpoints outside of the mesh are spoken by waypoints only",
            ));
        }
        let Some(taken) = state.usage.take(Limit::Connections, policy.pool.connections) else {
            state.usage.refused();
            let why = format!("there are as many connections as may be: {} (maxConnections)", policy.pool.connections);
            return Err(refuse(&why));
        };
        let lease = EndpointLease::of(Leased { lease: set.lease(chosen), _taken: taken });
        let pool = Arc::new(policy.pool.clone());
        resolve::to_chosen(snapshot, service, &chosen.workload, chosen.address, lease, pool)
    }

    fn set(
        &self,
        snapshot: &Snapshot,
        request: &Request<'_>,
        key: &ClusterKey,
        cluster: &Arc<Cluster>,
        policy: &Policy,
        members: &Arc<EndpointSet>,
    ) -> (Arc<Set>, Arc<PlaceState>) {
        let mut all = self.known.lock();
        if all.len() > FEW {
            all.retain(|_, known| {
                let is_used = known.state.usage.used(Limit::Connections) > 0;
                is_used || request.now_ms.saturating_sub(known.used_ms) < UNUSED_MS
            });
        }
        let ip = request.destination.ip().to_canonical();
        let (ips, families) = addresses(request.source, ip);
        let known = all.entry((key.clone(), cluster.clients.clone(), families)).or_default();
        known.used_ms = request.now_ms;
        let labels = snapshot.labels();
        let is_now = |now: &&Version| {
            Arc::ptr_eq(&now.members, members)
                && Arc::ptr_eq(&now.cluster, cluster)
                && (now.labels == labels.version() || !now.set.reads_labels())
        };
        if let Some(now) = known.now.as_ref().filter(is_now) {
            return (Arc::clone(&now.set), Arc::clone(&known.state));
        }
        let none = Labels::new();
        let client = mesh_core::Client { ips, ..request.source.clone() };
        let sources = Sources {
            members,
            port: key.port,
            target: None,
            subset: if key.subset.is_empty() { &none } else { &cluster.labels },
            policy,
            labels,
            client: &client,
            own: None,
            now_ms: request.now_ms,
        };
        let set = Arc::new(Set::new(&sources, &known.state));
        let (members, cluster) = (Arc::clone(members), Arc::clone(cluster));
        known.now = Some(Version { members, cluster, labels: labels.version(), set: Arc::clone(&set) });
        (set, Arc::clone(&known.state))
    }
}

/// An address of each family that the client has, that which it asks by first: an endpoint of another one cannot be reached.
fn addresses(client: &mesh_core::Client, asked: IpAddr) -> (Vec<IpAddr>, Families) {
    let of = |is_ipv4: bool| client.ips.iter().find(|ip| ip.is_ipv4() == is_ipv4).copied();
    let mut ips: Vec<IpAddr> = [of(asked.is_ipv4()), of(!asked.is_ipv4())].into_iter().flatten().collect();
    if ips.is_empty() {
        ips.push(asked);
    }
    let families = (ips[0].is_ipv4(), ips.get(1).map(IpAddr::is_ipv4));
    (ips, families)
}

/// One connection to an endpoint of a place.
struct Leased {
    lease: Lease,
    _taken: Taken,
}

impl Outcome for Leased {
    fn success(&self, now_ms: u64) {
        // A connection that came about counts as an answer that is none of the errors.
        self.lease.judge().report(Ended::Status(200), now_ms);
    }

    fn failure(&self, now_ms: u64) -> bool {
        self.lease.judge().report(Ended::Failed, now_ms).is_some()
    }
}

#[cfg(test)]
mod tests {
    use mesh_core::l7::Clusters;
    use mesh_core::l7::cluster::{Outliers, Pool};
    use mesh_core::service::{ServiceAddress, ServicePort};
    use mesh_core::workload::PortMapping;
    use mesh_core::{Change, NamespacedName, Service, Store, Workload};
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    fn key(subset: &str) -> ClusterKey {
        ClusterKey { service: name(), port: 80, subset: subset.into() }
    }

    fn name() -> NamespacedName {
        NamespacedName::new("shop", "echo.shop.svc.cluster.local")
    }

    fn labels(version: &str) -> Labels {
        [("version".into(), version.into())].into()
    }

    /// A service with three endpoints, `1` to `3`, of which the last one is of the version `v2`.
    fn mesh() -> Store {
        let mut service = Service::new("shop", "echo", name().name);
        service.addresses = vec![ServiceAddress { network: "".into(), cidr: "198.19.0.1/32".parse().unwrap() }];
        service.ports = vec![ServicePort { service_port: 80, target_port: 8080, app_protocol: Default::default() }];
        let workload = |n: u8| {
            let mut workload = Workload::new(n.to_string(), "shop", n.to_string());
            workload.addresses = vec![IpAddr::from([198, 18, 1, n])];
            let ports = vec![PortMapping { service_port: 80, target_port: 8080 }];
            workload.services = Arc::new([(name(), ports)].into());
            Change::Workload(workload)
        };
        let mut store = Store::new();
        store.apply([Change::Service(service), Change::Synced].into_iter().chain((1..=3).map(workload)).collect());
        let version = |n: u8| if n == 3 { "v2" } else { "v1" };
        let of = |n: u8| (n.to_string().into(), Some(Arc::new(labels(version(n)))));
        store.apply(vec![Change::Labels((1..=3).map(of).collect())]);
        store
    }

    fn say(store: &mut Store, clusters: Vec<Cluster>) {
        store.apply(vec![Change::Clusters(name(), Clusters::new(clusters))]);
    }

    fn cluster(subset: &str, policy: Policy) -> Cluster {
        let labels = if subset.is_empty() { Labels::new() } else { labels(subset) };
        Cluster { labels, policy: Ok(policy), ..Cluster::closed(key(subset), "") }
    }

    struct Asking {
        places: Places,
        rng: StdRng,
    }

    impl Asking {
        fn new() -> Self {
            Self { places: Places::default(), rng: StdRng::seed_from_u64(1) }
        }

        fn ask(
            &mut self,
            store: &Store,
            place: Option<&ClusterKey>,
            from: u8,
            now_ms: u64,
        ) -> Option<Result<Route, Refusal>> {
            let source = mesh_core::Client { namespace: "shop".into(), ..Default::default() };
            let destination = "198.19.0.1:80".parse().unwrap();
            let request = Request { source: &source, destination, place, now_ms, tried: &[] };
            self.places.route(&store.snapshot(), &request, IpAddr::from([198, 18, 9, from]), &mut self.rng)
        }

        /// Who is asked, of so many.
        fn who(&mut self, store: &Store, place: Option<&ClusterKey>, from: u8) -> String {
            let mut all: Vec<_> = (0..40).map(|_| uid(&self.ask(store, place, from, 0).unwrap().unwrap())).collect();
            all.sort();
            all.dedup();
            all.join(" ")
        }
    }

    fn uid(route: &Route) -> String {
        match route {
            Route::Plain(up) | Route::Hbone(up) => up.workload.uid.to_string(),
            Route::Passthrough(_) => String::new(),
        }
    }

    fn lease(route: Route) -> EndpointLease {
        match route {
            Route::Plain(up) | Route::Hbone(up) => up.lease.unwrap(),
            Route::Passthrough(_) => panic!(),
        }
    }

    #[test]
    fn a_subset_is_its_endpoints_and_follows_their_labels() {
        let (mut store, mut asking) = (mesh(), Asking::new());
        assert!(asking.ask(&store, None, 1, 0).is_none(), "nothing is said of it");
        say(&mut store, vec![cluster("v1", Policy::default()), cluster("v2", Policy::default())]);
        assert!(asking.ask(&store, None, 1, 0).is_none(), "nothing is said of the whole");
        assert_eq!(asking.who(&store, Some(&key("v1")), 1), "1 2");
        assert_eq!(asking.who(&store, Some(&key("v2")), 1), "3");
        store.apply(vec![Change::Labels(vec![("2".into(), Some(Arc::new(labels("v2")))), ("3".into(), None)])]);
        assert_eq!(asking.who(&store, Some(&key("v1")), 1), "1");
        assert_eq!(asking.who(&store, Some(&key("v2")), 1), "2");
        store.apply(vec![Change::RemoveAddress("2".into())]);
        assert!(matches!(asking.ask(&store, Some(&key("v2")), 1, 0), Some(Err(Refusal::NoEndpoints { .. }))));
        say(&mut store, vec![Cluster::closed(key("v1"), "no such subset")]);
        assert!(matches!(asking.ask(&store, Some(&key("v1")), 1, 0), Some(Err(Refusal::Route { .. }))));
    }

    #[test]
    fn features_l4_8_there_are_as_many_connections_as_may_be() {
        let (mut store, mut asking) = (mesh(), Asking::new());
        let pool = Pool { connections: 2, ..Pool::default() };
        say(&mut store, vec![cluster("", Policy { pool, ..Policy::default() })]);
        let one = asking.ask(&store, None, 1, 0).unwrap().unwrap();
        let two = asking.ask(&store, None, 2, 0).unwrap().unwrap();
        let refused = asking.ask(&store, None, 1, 0).unwrap().unwrap_err().to_string();
        assert!(refused.contains("maxConnections"), "{refused}");
        drop(one);
        assert!(asking.ask(&store, None, 1, 0).unwrap().is_ok());
        drop(two);
    }

    #[test]
    fn features_l4_7_who_takes_no_connection_is_left_out_for_a_while() {
        let (mut store, mut asking) = (mesh(), Asking::new());
        let outliers = Some(Outliers { errors: 2, most_percent: 100, ..Outliers::default() });
        say(&mut store, vec![cluster("v2", Policy { outliers: outliers.clone(), ..Policy::default() })]);
        let fail = |asking: &mut Asking, store: &Store| {
            lease(asking.ask(store, Some(&key("v2")), 1, 0).unwrap().unwrap()).report_failure(0)
        };
        assert!(!fail(&mut asking, &store));
        assert!(fail(&mut asking, &store), "two in a row");
        assert!(asking.ask(&store, Some(&key("v2")), 1, 0).unwrap().is_err());
        // What is said of the same place in other words later does not forget who is left out.
        say(&mut store, vec![cluster("v2", Policy { outliers, ..Policy::default() })]);
        assert!(asking.ask(&store, Some(&key("v2")), 1, 0).unwrap().is_err());
        assert!(asking.ask(&store, Some(&key("v2")), 1, 31_000).unwrap().is_ok(), "its time is over");
    }

    #[test]
    fn the_same_client_goes_to_the_same_endpoint_if_that_is_said() {
        let (mut store, mut asking) = (mesh(), Asking::new());
        let balancer = Balancer::Hash(HashKey::Source, mesh_core::l7::cluster::HashTable::Ring(1024));
        say(&mut store, vec![cluster("", Policy { balancer, ..Policy::default() })]);
        let all: Vec<_> = (0..20).map(|from| asking.who(&store, None, from)).collect();
        assert!(all.iter().all(|who| who.len() == 1), "{all:?}");
        assert!(all.iter().any(|who| *who != all[0]), "{all:?}");
    }
}
