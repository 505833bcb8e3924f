//! The numbers of one lane: how the label set of a request is found again without allocating anything, and what is done when there are too many.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use arcstr::ArcStr;
use hashbrown::{Equivalent, HashMap};
use mesh_core::{Identity, NamespacedName};
use parking_lot::Mutex;

use super::labels::Labels;
use super::mirrors::{GivenUp, Mirrors};
use super::ruled::{Ruled, Rulings};
use super::series::Series;
use super::shape::Custom;
use super::tcp::{Connections, Copied};
use super::{Flags, Measured, Protocol, Who};

/// Label sets of one lane; the requests of more are counted as one.
const MOST: usize = 4096;
/// Pairs of workloads whose label set is remembered. They may be many more than label sets: many pods are one workload.
const RECENT: usize = 8192;

/// What makes two requests one label set.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    outside: bool,
    client: ArcStr,
    /// Who a client is that is no workload: service accounts of one name are in every namespace.
    identity: Option<Identity>,
    endpoint: ArcStr,
    /// The namespace of the service, and its host.
    service: (ArcStr, ArcStr),
    status: u16,
    grpc_status: Option<u16>,
    flags: Flags,
    protocol: Protocol,
    custom: Custom,
}

/// Looks a [`Key`] up without owning one.
#[derive(Hash)]
struct At<'a> {
    outside: bool,
    client: &'a str,
    identity: Option<&'a Identity>,
    endpoint: &'a str,
    service: (&'a str, &'a str),
    status: u16,
    grpc_status: Option<u16>,
    flags: Flags,
    protocol: Protocol,
    custom: &'a Custom,
}

impl Equivalent<Key> for At<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        self.outside == key.outside
            && self.status == key.status
            && self.grpc_status == key.grpc_status
            && self.flags == key.flags
            && self.protocol == key.protocol
            && self.client == key.client
            && self.identity == key.identity.as_ref()
            && self.endpoint == key.endpoint
            && self.service.1 == key.service.1
            && self.service.0 == key.service.0
            && *self.custom == key.custom
    }
}

impl At<'_> {
    fn key(&self) -> Key {
        Key {
            outside: self.outside,
            client: self.client.into(),
            identity: self.identity.cloned(),
            endpoint: self.endpoint.into(),
            service: (self.service.0.into(), self.service.1.into()),
            status: self.status,
            grpc_status: self.grpc_status,
            flags: self.flags,
            protocol: self.protocol,
            custom: self.custom.clone(),
        }
    }
}

/// The numbers of one lane. Locked by that lane, and by a scrape for as long as it takes to list the series.
#[derive(Default)]
pub struct Meters {
    inner: Mutex<Inner>,
    /// Requests and connections that found no room for their labels.
    overflowed: AtomicU64,
    /// Connections that went in a circle.
    circles: AtomicU64,
    rulings: Rulings,
    mirrors: Mirrors,
}

#[derive(Default)]
struct Inner {
    recent: HashMap<Key, Arc<Series>>,
    series: HashMap<Labels, Arc<Series>>,
    connections: HashMap<Labels, Arc<Connections>>,
    /// The same of datagrams.
    sessions: HashMap<Labels, Arc<Connections>>,
}

impl Meters {
    /// Counts a request that is over; `now` is the process's milliseconds.
    pub fn record(&self, who: &Who<'_>, measured: &Measured, custom: &Custom, now: u64) {
        let at = At {
            outside: who.outside,
            client: who.client.map_or("", |client| &*client.uid),
            // A workload has one.
            identity: if who.client.is_some() { None } else { who.peer.proved() },
            endpoint: who.endpoint.map_or("", |endpoint| &*endpoint.uid),
            service: match (who.service, who.asked) {
                (Some(service), _) => (&*service.namespace, &*service.hostname),
                (None, Some(asked)) => (&*asked.namespace, &*asked.name),
                (None, None) => ("", ""),
            },
            status: measured.status,
            grpc_status: measured.grpc_status,
            flags: measured.flags,
            protocol: measured.protocol,
            custom,
        };
        let mut inner = self.inner.lock();
        if let Some(series) = inner.recent.get(&at) {
            return series.add(measured, now);
        }
        let mut labels = Labels::of_request(who, measured, custom);
        let full = inner.series.len() >= MOST && !inner.series.contains_key(&labels);
        if full {
            self.overflowed.fetch_add(1, Relaxed);
            labels = Labels::overflow("http");
        }
        let fresh = || Arc::new(Series::new(labels.clone()));
        let series = Arc::clone(inner.series.entry(labels.clone()).or_insert_with(fresh));
        series.add(measured, now);
        // What overflows is not remembered: when there is room again it counts at once.
        if !full {
            if inner.recent.len() >= RECENT {
                inner.recent.clear();
            }
            inner.recent.insert(at.key(), series);
        }
    }

    /// Counts a connection that is copied, from now on.
    pub fn open(
        &self,
        who: &Who<'_>,
        flags: Flags,
        custom: &Custom,
        clock: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> Copied {
        let mut labels = Labels::of_tcp(who, flags, custom);
        let mut inner = self.inner.lock();
        if inner.connections.len() >= MOST && !inner.connections.contains_key(&labels) {
            self.overflowed.fetch_add(1, Relaxed);
            labels = Labels::overflow("tcp");
        }
        let fresh = || Arc::new(Connections::new(labels.clone()));
        let series = Arc::clone(inner.connections.entry(labels.clone()).or_insert_with(fresh));
        Copied::new(series, Box::new(clock), flags)
    }

    /// Counts a session of datagrams, from now on.
    pub fn begin(&self, who: &Who<'_>, custom: &Custom, clock: impl Fn() -> u64 + Send + Sync + 'static) -> Copied {
        let mut labels = Labels::of_udp(who, custom);
        let mut inner = self.inner.lock();
        if inner.sessions.len() >= MOST && !inner.sessions.contains_key(&labels) {
            self.overflowed.fetch_add(1, Relaxed);
            labels = Labels::overflow("udp");
        }
        let fresh = || Arc::new(Connections::new(labels.clone()));
        let series = Arc::clone(inner.sessions.entry(labels.clone()).or_insert_with(fresh));
        Copied::new(series, Box::new(clock), Flags::default())
    }

    /// Counts what a policy did to a request.
    pub fn ruled(&self, policy: &NamespacedName, ruled: Ruled) {
        self.rulings.count(policy, ruled);
    }

    /// Counts a copy of a request that is given up.
    pub fn given_up(&self, why: GivenUp) {
        self.mirrors.count(why);
    }

    pub(super) fn mirrors(&self) -> &Mirrors {
        &self.mirrors
    }

    pub(super) fn rulings(&self) -> &Rulings {
        &self.rulings
    }

    /// A connection is refused because it goes in a circle of proxies. How many were before.
    pub fn circle(&self) -> u64 {
        self.circles.fetch_add(1, Relaxed)
    }

    pub(super) fn circles(&self) -> u64 {
        self.circles.load(Relaxed)
    }

    pub(super) fn overflowed(&self) -> u64 {
        self.overflowed.load(Relaxed)
    }

    pub(super) fn series(&self) -> Vec<Arc<Series>> {
        self.inner.lock().series.values().cloned().collect()
    }

    pub(super) fn connections(&self) -> Vec<Arc<Connections>> {
        self.inner.lock().connections.values().cloned().collect()
    }

    pub(super) fn sessions(&self) -> Vec<Arc<Connections>> {
        self.inner.lock().sessions.values().cloned().collect()
    }

    /// Forgets the label sets that `is_old` says, if they were not used since.
    pub(super) fn forget(&self, before: u64, is_old: impl Fn(&Labels) -> bool) {
        let mut inner = self.inner.lock();
        inner.series.retain(|labels, series| series.used() >= before || !is_old(labels));
        let is_used = |one: &Arc<Connections>| one.used().is_none_or(|used| used >= before);
        inner.connections.retain(|labels, one| is_used(one) || !is_old(labels));
        inner.sessions.retain(|labels, one| is_used(one) || !is_old(labels));
        inner.recent.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mesh_core::Workload;

    use super::*;
    use crate::peer::Peer;
    use crate::telemetry::{Exposition, expire};

    fn peer() -> Peer {
        Peer {
            address: "10.0.0.1:1".parse().unwrap(),
            identity: "spiffe://cluster.local/ns/shop/sa/client".parse().unwrap(),
            baggage: Default::default(),
            stranger: false,
            hops: 0,
        }
    }

    fn measured(status: u16) -> Measured {
        Measured {
            status,
            grpc_status: None,
            flags: Flags::default(),
            protocol: Protocol::Http,
            duration: Duration::from_millis(3),
            received: 10,
            sent: 20,
            messages_received: 0,
            messages_sent: 0,
        }
    }

    fn pod(uid: usize, workload: usize) -> Arc<Workload> {
        let mut pod = Workload::new(format!("c//Pod/shop/p{uid}"), "shop", format!("p{uid}"));
        pod.workload_name = format!("w{workload}").into();
        Arc::new(pod)
    }

    fn ask(meters: &Meters, endpoint: &Arc<Workload>, now: u64) {
        let peer = peer();
        let who = Who {
            peer: &peer,
            from: peer.address,
            outside: false,
            proved: peer.proved(),
            client: None,
            endpoint: Some(endpoint),
            service: None,
            asked: None,
        };
        meters.record(&who, &measured(200), &Custom::default(), now);
    }

    fn scrape(meters: &Arc<Meters>) -> String {
        let mut registry = mesh_runtime::metrics::Registry::default();
        registry.register_collector(Box::new(Exposition(vec![Arc::clone(meters)])));
        mesh_runtime::metrics::encode(&registry)
    }

    #[test]
    fn pods_of_one_workload_are_one_label_set_and_more_workloads_than_fit_are_counted_together() {
        let meters = Arc::new(Meters::default());
        (0..100).for_each(|uid| ask(&meters, &pod(uid, 0), 1));
        assert_eq!(meters.inner.lock().series.len(), 1);
        (1..MOST + 10).for_each(|workload| ask(&meters, &pod(1000 + workload, workload), 1));
        assert_eq!((meters.inner.lock().series.len(), meters.overflowed()), (MOST + 1, 10));
        let shown = scrape(&meters);
        let line = shown.lines().find(|line| line.starts_with("istio_requests_total{") && line.contains("overflow"));
        assert!(line.unwrap().ends_with("} 10"), "{line:?}");
        assert!(shown.contains("undermesh_requests_overflowed_total 10"));
    }

    #[test]
    fn only_who_has_proved_something_is_said_to_have() {
        let meters = Arc::new(Meters::default());
        let (peer, endpoint) = (peer(), pod(1, 1));
        let who = |outside| Who {
            peer: &peer,
            from: peer.address,
            outside,
            proved: peer.proved().filter(|_| !outside),
            client: None,
            endpoint: Some(&endpoint),
            service: None,
            asked: None,
        };
        // A gateway that is a waypoint, too, asks itself; and who comes to it from outside is not it.
        for outside in [false, true, true] {
            meters.record(&who(outside), &measured(200), &Custom::default(), 1);
        }
        let shown = scrape(&meters);
        let count = |policy: &str| {
            let label = format!("connection_security_policy=\"{policy}\"");
            let mut lines = shown.lines().filter(|line| line.starts_with("istio_requests_total{"));
            lines.find(|line| line.contains(&label)).and_then(|line| line.rsplit(' ').next())
        };
        assert_eq!((count("mutual_tls"), count("unknown")), (Some("1"), Some("2")), "{shown}");
        let open = meters.open(&who(true), Flags::default(), &Custom::default(), || 1);
        assert!(!scrape(&meters).lines().any(|line| line.starts_with("istio_tcp") && line.contains("mutual_tls")));
        drop(open);
    }

    #[test]
    fn features_TM_1_clients_and_services_of_one_name_are_counted_apart() {
        let peer = |identity: &str, stranger| Peer { identity: identity.parse().unwrap(), stranger, ..peer() };
        let here = peer("spiffe://cluster.local/ns/shop/sa/default", false);
        let there = peer("spiffe://cluster.local/ns/dev/sa/default", false);
        let far = peer("spiffe://far.example/ns/shop/sa/default", false);
        let nobody = peer("spiffe://cluster.local/ns/shop/sa/default", true);
        let service = |name: &str| -> NamespacedName { name.parse().unwrap() };
        let (a, b) = (service("shop/web.example.com"), service("dev/web.example.com"));
        let meters = Arc::new(Meters::default());
        // Twice, so that each has a chance to be taken for what was before.
        for _ in 0..2 {
            for (peer, outside, asked) in [
                (&here, false, &a),
                (&there, false, &a),
                (&far, false, &a),
                (&here, false, &b),
                (&here, true, &a),
                (&nobody, true, &a),
            ] {
                let (from, asked) = (peer.address, Some(asked));
                let proved = peer.proved().filter(|_| !outside);
                let who = Who { peer, from, outside, proved, client: None, endpoint: None, service: None, asked };
                meters.record(&who, &measured(200), &Custom::default(), 1);
            }
        }
        let shown = scrape(&meters);
        let counted: Vec<_> = shown.lines().filter(|line| line.starts_with("istio_requests_total{")).collect();
        assert_eq!(counted.len(), 6, "{shown}");
        assert!(counted.iter().all(|line| line.ends_with("} 2")), "{counted:#?}");
        // Of these one alone came to an edge.
        let reported = counted.iter().filter(|line| line.contains("reporter=\"source\"")).count();
        assert_eq!(reported, 1, "{counted:#?}");
    }

    #[test]
    fn label_sets_that_no_lane_uses_are_forgotten() {
        let lanes = [Arc::new(Meters::default()), Arc::new(Meters::default())];
        let (old, used) = (pod(1, 1), pod(2, 2));
        ask(&lanes[0], &old, 10);
        ask(&lanes[0], &used, 10);
        // The other lane still uses it: a lane that forgot it would make the sum fall.
        ask(&lanes[1], &used, 500);
        expire(&lanes, 1000, Duration::from_millis(600));
        assert_eq!(lanes[0].series().len(), 1);
        assert!(scrape(&lanes[0]).contains("destination_workload=\"w2\""));
        expire(&lanes, 2000, Duration::from_millis(600));
        assert!(lanes.iter().all(|lane| lane.series().is_empty() && lane.inner.lock().recent.is_empty()));
    }

    #[test]
    fn an_open_connection_is_counted_while_it_lives_and_never_forgotten() {
        let meters = Arc::new(Meters::default());
        let (peer, endpoint) = (peer(), pod(1, 1));
        let who = Who {
            peer: &peer,
            from: peer.address,
            outside: false,
            proved: peer.proved(),
            client: None,
            endpoint: Some(&endpoint),
            service: None,
            asked: None,
        };
        let copied = meters.open(&who, Flags::default(), &Custom::default(), || 5);
        copied.counters().sent.store(7, Relaxed);
        expire(&[Arc::clone(&meters)], 100_000, Duration::from_millis(1));
        let value = |name: &str| {
            let shown = scrape(&meters);
            let line = shown.lines().find(|line| line.starts_with(name)).map(str::to_owned);
            line.and_then(|line| line.rsplit(' ').next().map(str::to_owned))
        };
        assert_eq!(value("istio_tcp_connections_opened_total").as_deref(), Some("1"));
        assert_eq!(value("istio_tcp_connections_closed_total").as_deref(), Some("0"));
        assert_eq!(value("istio_tcp_sent_bytes_total").as_deref(), Some("7"));
        copied.counters().received.store(3, Relaxed);
        drop(copied);
        assert_eq!(value("istio_tcp_connections_closed_total").as_deref(), Some("1"));
        assert_eq!(value("istio_tcp_received_bytes_total").as_deref(), Some("3"));
        expire(&[Arc::clone(&meters)], 100_000, Duration::from_millis(1));
        assert_eq!(value("istio_tcp_connections_closed_total"), None);
    }
}
