//! Choices over a place, as tables: who is chosen, how often, and who is not.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::*;
use crate::l7::Share;
use crate::l7::cluster::{HashKey, HashTable, Locality as Said, Warmup};
use crate::service::ServicePort;
use crate::workload::PortMapping;
use crate::{Change, Locality, NamespacedName, Service, Store, Workload};

/// A service with endpoints: name, labels as `k=v,k=v`, region, weight.
struct Place {
    store: Store,
    key: NamespacedName,
    labels: LabelIndex,
    state: Arc<PlaceState>,
    rng: SmallRng,
}

fn labels(text: &str) -> Labels {
    text.split_terminator(',').filter_map(|pair| pair.split_once('=')).map(|(k, v)| (k.into(), v.into())).collect()
}

impl Place {
    fn new(endpoints: &[(&str, &str, &str, u32)]) -> Self {
        let mut service = Service::new("shop", "cart", "cart.shop.svc.cluster.local");
        service.ports = vec![ServicePort { service_port: 80, target_port: 8080, app_protocol: Default::default() }];
        let (key, mut store) = (service.key(), Store::new());
        store.apply(vec![Change::Service(service)]);
        let state = Arc::default();
        let mut place = Self { store, key, labels: LabelIndex::default(), state, rng: SmallRng::seed_from_u64(7) };
        endpoints.iter().for_each(|(name, labels, region, weight)| place.add(name, labels, region, *weight));
        place
    }

    fn plain(names: &[&str]) -> Self {
        Self::new(&names.iter().map(|name| (*name, "", "", 1)).collect::<Vec<_>>())
    }

    fn add(&mut self, name: &str, text: &str, region: &str, weight: u32) {
        let mut workload = Workload::new(name, "shop", name);
        let number = u8::try_from(self.store.snapshot().workloads().count()).unwrap();
        workload.addresses = vec![IpAddr::from([10, 0, 0, number + 1])];
        workload.locality = Locality { region: region.into(), ..Locality::default() };
        workload.capacity = weight;
        let port = PortMapping { service_port: 80, target_port: 8080 };
        workload.services = Arc::new([(self.key.clone(), vec![port])].into());
        self.store.apply(vec![Change::Workload(workload)]);
        self.labels = self.labels.with([(name.into(), Some(Arc::new(labels(text))))]);
    }

    fn set(&self, subset: &str, policy: &Policy, now_ms: u64) -> Arc<Set> {
        let snapshot = self.store.snapshot();
        let locality = Locality { region: "here".into(), ..Locality::default() };
        let sources = Sources {
            members: snapshot.endpoints(&self.key).unwrap(),
            port: 80,
            target: None,
            subset: &labels(subset),
            policy,
            labels: &self.labels,
            client: &Client { locality, ..Client::default() },
            own: None,
            now_ms,
        };
        Arc::new(Set::new(&sources, &self.state))
    }

    /// How often each is chosen in a thousand.
    fn shares(&mut self, set: &Arc<Set>, now_ms: u64, hash: Option<u64>, tried: &[&str]) -> BTreeMap<String, u32> {
        let tried: Vec<ArcStr> = tried.iter().map(|name| (*name).into()).collect();
        let mut shares = BTreeMap::new();
        for _ in 0..1000 {
            let ask = Ask { hash, tried: &tried, elsewhere: false, now_ms };
            let name = set.pick(&ask, &mut self.rng).map_or("none".to_owned(), |one| one.workload.uid.to_string());
            *shares.entry(name).or_default() += 1;
        }
        shares
    }

    fn fail(&self, set: &Arc<Set>, name: &str, times: usize, now_ms: u64) -> bool {
        let endpoint = set.endpoints().iter().find(|one| *one.workload.uid == *name).unwrap();
        let lease = set.lease(endpoint);
        (0..times).any(|_| lease.judge().report(Ended::Status(500), now_ms).is_some())
    }
}

fn balanced(balancer: Balancer) -> Policy {
    Policy { balancer, ..Policy::default() }
}

fn ejecting(least_healthy_percent: u32) -> Policy {
    let outliers = Outliers { most_percent: 100, least_healthy_percent, ..Outliers::default() };
    Policy { outliers: Some(outliers), ..Policy::default() }
}

fn keys(shares: &BTreeMap<String, u32>) -> Vec<&str> {
    shares.keys().map(String::as_str).collect()
}

#[test]
fn features_DR_2_a_subset_has_the_endpoints_with_its_labels() {
    let mut place = Place::new(&[
        ("a", "version=v1", "", 1),
        ("b", "version=v2,track=canary", "", 1),
        ("c", "version=v2", "", 1),
        ("d", "", "", 1),
        ("e", "version=v1", "", 0),
    ]);
    for (subset, expected) in [
        ("", &["a", "b", "c", "d"][..]),
        ("version=v1", &["a"]),
        ("version=v2", &["b", "c"]),
        ("version=v2,track=canary", &["b"]),
        ("version=v3", &["none"]),
    ] {
        let set = place.set(subset, &Policy::default(), 0);
        assert_eq!(keys(&place.shares(&set, 0, None, &[])), expected, "{subset}");
        assert_eq!(set.reads_labels(), !subset.is_empty());
    }
}

#[test]
fn features_DR_4_each_way_shares_as_weights_say() {
    let mut place = Place::new(&[("a", "", "", 1), ("b", "", "", 3)]);
    for balancer in [Balancer::LeastRequest, Balancer::RoundRobin, Balancer::Random, Balancer::Passthrough] {
        let set = place.set("", &balanced(balancer.clone()), 0);
        let shares = place.shares(&set, 0, None, &[]);
        // Of two that do nothing the one drawn first is taken.
        assert!((200..300).contains(&shares["a"]), "{balancer:?}: {shares:?}");
        assert_eq!(keys(&place.shares(&set, 0, None, &["b"])), ["a"], "{balancer:?}");
        assert_eq!(keys(&place.shares(&set, 0, None, &["a", "b"])), ["none"], "{balancer:?}");
    }
    let turns = place.set("", &balanced(Balancer::RoundRobin), 0);
    assert_eq!(place.shares(&turns, 0, None, &[])["a"], 250);
}

#[test]
fn features_DR_4_of_two_the_less_loaded() {
    let mut place = Place::plain(&["a", "b", "c"]);
    let set = place.set("", &Policy::default(), 0);
    let busy = &set.endpoints()[0].clone();
    let leases: Vec<_> = (0..10).map(|_| set.lease(busy)).collect();
    assert_eq!(busy.state().active(), 10);
    let shares = place.shares(&set, 0, None, &[]);
    // Only if no other one is drawn beside it.
    assert!(shares.get("a").copied().unwrap_or_default() < 50, "{shares:?}");
    // The next version knows it.
    let next = place.set("", &Policy::default(), 1);
    assert_eq!(next.endpoints()[0].state().active(), 10);
    drop(leases);
    assert_eq!(busy.state().active(), 0);
}

#[test]
fn features_DR_5_the_same_goes_to_the_same() {
    for table in [HashTable::Ring(1024), HashTable::Maglev(65_537)] {
        let mut place = Place::plain(&["a", "b", "c", "d"]);
        let policy = balanced(Balancer::Hash(HashKey::Source, table));
        let set = place.set("", &policy, 0);
        let mut all = BTreeMap::new();
        for user in 0..50_u32 {
            let number = hash(&user.to_le_bytes());
            let shares = place.shares(&set, 0, Some(number), &[]);
            assert_eq!(shares.len(), 1, "{table:?}");
            all.insert(number, keys(&shares)[0].to_owned());
        }
        assert!(all.values().collect::<std::collections::BTreeSet<_>>().len() == 4, "{table:?} {all:?}");
        assert_eq!(place.shares(&set, 0, None, &[]).len(), 4, "what says nothing goes anywhere");
        // Another endpoint takes some from the others, and little moves among those.
        place.add("e", "", "", 1);
        let next = place.set("", &policy, 1);
        let mut moved = 0;
        for (number, before) in all {
            let after = keys(&place.shares(&next, 1, Some(number), &[]))[0].to_owned();
            moved += u32::from(after != "e" && after != before);
            // One that is tried gives way to just one.
            assert_eq!(place.shares(&next, 1, Some(number), &[&after]).len(), 1);
        }
        assert!(moved < 8, "{table:?}: {moved} of 50");
    }
}

#[test]
fn features_DR_6_only_what_comes_later_is_new() {
    let warmup =
        Warmup { time: Duration::from_secs(100), least: Share::millionths(100_000).unwrap(), aggression: 1000 };
    for balancer in [Balancer::RoundRobin, Balancer::LeastRequest] {
        let mut place = Place::plain(&["a", "b", "c"]);
        let policy = Policy { warmup: Some(warmup), ..balanced(balancer.clone()) };
        let first = place.set("", &policy, 1000);
        assert!(place.shares(&first, 1000, None, &[]).values().all(|n| (250..420).contains(n)));
        place.add("d", "", "", 1);
        let next = place.set("", &policy, 2000);
        let young = place.shares(&next, 3000, None, &[])["d"];
        let old = place.shares(&next, 200_000, None, &[])["d"];
        assert!(young < 90 && (180..320).contains(&old), "{balancer:?}: {young} and {old}");
    }
}

#[test]
fn features_B11_who_is_left_out_gets_nothing_until_its_time_is_over() {
    let mut place = Place::plain(&["a", "b", "c"]);
    let set = place.set("", &ejecting(0), 0);
    assert!(!place.fail(&set, "a", 4, 0) && place.fail(&set, "a", 1, 0));
    assert_eq!(keys(&place.shares(&set, 29_999, None, &[])), ["b", "c"]);
    assert_eq!(keys(&place.shares(&set, 30_000, None, &[])), ["a", "b", "c"]);
    // The next version of the endpoints knows it, too.
    assert!(place.fail(&set, "a", 5, 30_000));
    place.add("d", "", "", 1);
    let next = place.set("", &ejecting(0), 31_000);
    assert_eq!(keys(&place.shares(&next, 89_999, None, &[])), ["b", "c", "d"]);
    assert_eq!(place.shares(&next, 90_000, None, &[]).len(), 4);
}

#[test]
fn features_DR_11_with_too_few_that_are_well_all_are_asked() {
    for (least, failing, expected) in [
        (0, &["a", "b"][..], &["c"][..]),
        (0, &["a", "b", "c"], &["none"]),
        (50, &["a"], &["b", "c"]),
        (50, &["a", "b"], &["a", "b", "c"]),
        (50, &["a", "b", "c"], &["a", "b", "c"]),
    ] {
        let mut place = Place::plain(&["a", "b", "c"]);
        let set = place.set("", &ejecting(least), 0);
        assert!(failing.iter().all(|name| place.fail(&set, name, 5, 0)));
        assert_eq!(keys(&place.shares(&set, 1, None, &[])), expected, "{least} {failing:?}");
    }
}

#[test]
fn features_DR_7_the_next_level_takes_what_the_first_cannot() {
    let endpoints = [("a", "", "here", 1), ("b", "", "here", 1), ("c", "", "here", 1), ("d", "", "there", 1)];
    let mut place = Place::new(&endpoints);
    let set = place.set("", &ejecting(0), 0);
    assert_eq!(keys(&place.shares(&set, 0, None, &[])), ["a", "b", "c"]);
    assert_eq!(keys(&place.shares(&set, 0, None, &["a", "b", "c"])), ["d"], "who was tried is not tried again");
    // Two of three: 93 of a hundred stay.
    assert!(place.fail(&set, "a", 5, 0));
    let shares = place.shares(&set, 1, None, &[]);
    assert!((30..120).contains(&shares["d"]) && !shares.contains_key("a"), "{shares:?}");
    assert!(place.fail(&set, "b", 5, 0) && place.fail(&set, "c", 5, 0));
    assert_eq!(keys(&place.shares(&set, 1, None, &[])), ["d"]);
    let off = Policy { locality: Said { enabled: Some(false), ..Said::default() }, ..ejecting(0) };
    assert_eq!(place.set("", &off, 0).levels.len(), 1);
}

#[test]
fn features_VS_15_another_locality_comes_before_one_in_which_somebody_was_tried() {
    let endpoints = [("a", "", "here", 1), ("b", "", "here", 1), ("c", "", "there", 1), ("d", "", "there", 1)];
    let mut place = Place::new(&endpoints);
    let set = place.set("", &ejecting(0), 0);
    for (tried, expected) in [
        (&[][..], &["a", "b"][..]),
        (&["a"], &["c", "d"]),
        (&["a", "c"], &["b"]),
        (&["a", "b", "c"], &["d"]),
        (&["a", "b", "c", "d"], &["none"]),
        // Whom nobody knows any more is of no locality.
        (&["gone"], &["a", "b"]),
    ] {
        let tried: Vec<ArcStr> = tried.iter().map(|name| (*name).into()).collect();
        let found: std::collections::BTreeSet<_> = (0..100)
            .map(|_| {
                let ask = Ask { hash: None, tried: &tried, elsewhere: true, now_ms: 0 };
                set.pick(&ask, &mut place.rng).map_or("none", |one| &*one.workload.uid)
            })
            .collect();
        assert_eq!(found.into_iter().collect::<Vec<_>>(), expected, "{tried:?}");
    }
}

#[test]
fn features_DR_7_shares_of_places() {
    let mut place =
        Place::new(&[("a", "", "here", 1), ("b", "", "there", 1), ("c", "", "there", 1), ("d", "", "far", 1)]);
    let to = [("here".into(), 80), ("there".into(), 20)].into();
    let locality = Said { distribute: vec![("here".into(), to)], ..Said::default() };
    let policy = Policy { locality, ..Policy::default() };
    let set = place.set("", &policy, 0);
    let shares = place.shares(&set, 0, None, &[]);
    assert!((760..840).contains(&shares["a"]) && shares["b"] + shares["c"] + shares["a"] == 1000, "{shares:?}");
    // Its share is not lost when nobody is left there.
    assert_eq!(keys(&place.shares(&set, 0, None, &["a"])), ["b", "c"]);
}

#[test]
fn where_nothing_is_said_only_lost_connections_leave_an_endpoint_out() {
    let place = Place::plain(&["a", "b", "c"]);
    let set = place.set("", &Policy::default(), 0);
    assert!(!place.fail(&set, "a", 20, 0));
    let lease = set.lease(&set.endpoints()[0]);
    assert!((0..5).any(|_| lease.judge().report(Ended::Failed, 0).is_some()));
    assert!(set.endpoints()[0].state().is_ejected(1));
}

#[test]
fn an_endpoint_of_a_family_that_who_chooses_has_no_address_of_is_none() {
    let mut place = Place::plain(&["a", "b"]);
    let six: IpAddr = "fd00::1".parse().unwrap();
    for (name, addresses) in [("b", vec![six]), ("c", vec![six, [10, 0, 0, 3].into()])] {
        let mut workload = Workload::new(name, "shop", name);
        workload.addresses = addresses;
        let port = PortMapping { service_port: 80, target_port: 8080 };
        workload.services = Arc::new([(place.key.clone(), vec![port])].into());
        place.store.apply(vec![Change::Workload(workload)]);
    }
    for (what, ips, expected) in [
        ("of IPv4", vec![IpAddr::from([10, 0, 0, 9])], vec!["10.0.0.1:8080", "10.0.0.3:8080"]),
        ("of IPv6", vec![six], vec!["[fd00::1]:8080", "[fd00::1]:8080"]),
        ("of both", vec![IpAddr::from([10, 0, 0, 9]), six], vec!["10.0.0.1:8080", "10.0.0.3:8080", "[fd00::1]:8080"]),
        ("nobody knows", vec![], vec!["10.0.0.1:8080", "10.0.0.3:8080", "[fd00::1]:8080"]),
    ] {
        let snapshot = place.store.snapshot();
        let client = Client { ips, ..Client::default() };
        let sources = Sources {
            members: snapshot.endpoints(&place.key).unwrap(),
            port: 80,
            target: None,
            subset: &Labels::new(),
            policy: &Policy::default(),
            labels: &place.labels,
            client: &client,
            own: None,
            now_ms: 0,
        };
        let set = Set::new(&sources, &place.state);
        let mut found: Vec<String> = set.endpoints().iter().map(|endpoint| endpoint.address.to_string()).collect();
        found.sort();
        assert_eq!(found, expected, "{what}");
    }
}
