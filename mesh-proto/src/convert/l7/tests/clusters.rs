//! How places are reached comes back as it was, and what cannot be read of one closes it and no other.

use std::time::Duration;

use mesh_core::l7::cluster::{
    Balancer, HashKey, HashTable, Keepalive, Locality, Outliers, Policy, Pool, RetryBudget, ServerName, Speaks, Tls,
    Warmup,
};
use mesh_core::l7::{Cluster, ClusterKey, Clusters, Labels, Share};
use mesh_core::spoken::{Spoken, TlsVersion};
use mesh_core::{ArcStr, NamespacedName};
use proptest::{collection::vec, option, prelude::*};
use prost::Message;

use crate::convert::l7::{ClustersRead, clusters, encode_clusters};
use crate::wire::l7 as wire;

fn word() -> impl Strategy<Value = ArcStr> {
    "[a-z][a-z0-9]{0,6}".prop_map(Into::into)
}

fn time() -> impl Strategy<Value = Duration> {
    (0..100_000_u64, 0..1_000_000_000_u32).prop_map(|(seconds, nanos)| Duration::new(seconds, nanos))
}

fn labels() -> impl Strategy<Value = Labels> {
    vec((word(), word()), 0..3).prop_map(|pairs| pairs.into_iter().collect())
}

fn share() -> impl Strategy<Value = Share> {
    (0..=1_000_000_u32).prop_map(|parts| Share::millionths(parts).unwrap())
}

fn balancer() -> impl Strategy<Value = Balancer> {
    let cookie = (word(), option::of(word()), option::of(time()), vec((word(), option::of(word())), 0..3))
        .prop_map(|(name, path, lasts, attributes)| HashKey::Cookie { name, path, lasts, attributes });
    let key = prop_oneof![
        word().prop_map(HashKey::Header),
        cookie,
        Just(HashKey::Source),
        word().prop_map(HashKey::Parameter)
    ];
    let table = prop_oneof![
        (0..100_000_u64).prop_map(HashTable::Ring),
        prop::sample::select(vec![2, 65_537, 5_000_011]).prop_map(HashTable::Maglev)
    ];
    prop_oneof![
        Just(Balancer::LeastRequest),
        Just(Balancer::RoundRobin),
        Just(Balancer::Random),
        Just(Balancer::Passthrough),
        (key, table).prop_map(|(key, table)| Balancer::Hash(key, table))
    ]
}

fn locality() -> impl Strategy<Value = Locality> {
    let distribute = vec((word(), vec((word(), 0..=100_u32), 0..3)), 0..3);
    (option::of(any::<bool>()), distribute, vec((word(), word()), 0..3), vec(word(), 0..3)).prop_map(
        |(enabled, distribute, failover, priority)| Locality {
            enabled,
            distribute: distribute.into_iter().map(|(from, to)| (from, to.into_iter().collect())).collect(),
            failover,
            priority,
        },
    )
}

fn pool() -> impl Strategy<Value = Pool> {
    let count = || prop_oneof![Just(u32::MAX), 1..1000_u32];
    let keepalive = (option::of(0..9_u32), option::of(time()), option::of(time()))
        .prop_map(|(probes, after, interval)| Keepalive { probes, after, interval });
    let speaks = prop::sample::select(vec![Speaks::AsDeclared, Speaks::Http2, Speaks::AsClient]);
    let counts = (count(), count(), count(), count(), count(), count());
    let ends = (option::of(time()), option::of(time()), option::of(time()));
    (counts, time(), ends, option::of(keepalive), speaks).prop_map(
        |(
            (connections, pending, requests, each, retries, streams),
            connect,
            (idle, silence, lifetime),
            keepalive,
            speaks,
        )| Pool {
            connections,
            connect_timeout: connect,
            pending,
            requests,
            requests_per_connection: each,
            retries,
            streams,
            idle_timeout: idle,
            silence,
            lifetime,
            keepalive,
            speaks,
        },
    )
}

fn outliers() -> impl Strategy<Value = Outliers> {
    let counts = (any::<u32>(), any::<u32>(), option::of(any::<u32>()), vec(100..600_u16, 0..3));
    (counts, time(), time(), 0..=100_u32, 0..=100_u32).prop_map(
        |((errors, gateway_errors, local_failures, statuses), interval, base, most, least)| Outliers {
            errors,
            gateway_errors,
            local_failures,
            statuses,
            interval,
            base,
            most_percent: most,
            least_healthy_percent: least,
        },
    )
}

fn tls() -> impl Strategy<Value = Tls> {
    let name = || {
        let texts = || vec(word(), 0..3);
        let version = || prop_oneof![Just(TlsVersion::V1_2), Just(TlsVersion::V1_3)];
        let spoken = (version(), version(), texts(), texts()).prop_map(|(oldest, newest, suites, groups)| Spoken {
            oldest,
            newest,
            suites,
            groups,
        });
        let spoken = prop_oneof![Just(Spoken::default()), spoken];
        (texts(), option::of(word()), option::of(word()), texts(), any::<bool>(), any::<bool>(), spoken).prop_map(
            |(roots, shown, sni, names, unverified, end_to_end, spoken)| ServerName {
                roots,
                shown,
                sni,
                names,
                unverified,
                end_to_end,
                spoken,
            },
        )
    };
    prop_oneof![Just(Tls::Mesh), Just(Tls::Plain), name().prop_map(Tls::Simple), name().prop_map(Tls::Mutual)]
}

fn policy() -> impl Strategy<Value = Policy> {
    let warmup = (time(), share(), 1000..=1_000_000_u32).prop_map(|(time, least, aggression)| Warmup {
        time,
        least,
        aggression,
    });
    let budget =
        (share(), any::<u32>(), time()).prop_map(|(share, least, interval)| RetryBudget { share, least, interval });
    let head = (balancer(), option::of(warmup), locality(), pool());
    (head, option::of(outliers()), tls(), option::of(1..=2_u8), option::of(budget)).prop_map(
        |((balancer, warmup, locality, pool), outliers, tls, proxy_protocol, retry_budget)| Policy {
            balancer,
            warmup,
            locality,
            pool,
            outliers,
            tls,
            proxy_protocol,
            retry_budget,
        },
    )
}

fn cluster() -> impl Strategy<Value = Cluster> {
    let key = (word(), 1..=2_u16, word()).prop_map(|(name, port, subset)| ClusterKey {
        service: NamespacedName { namespace: "shop".into(), name },
        port,
        subset,
    });
    let policy = prop_oneof![4 => policy().prop_map(Ok), 1 => word().prop_map(Err)];
    (key, option::of(vec(word(), 0..3)), labels(), labels(), policy).prop_map(
        |(key, clients, client_labels, labels, policy)| Cluster { key, clients, client_labels, labels, policy },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn places_come_back_as_they_were(name in word(), all in vec(cluster(), 0..6)) {
        // Of some of them there are several.
        let clusters_of = Clusters::new(all.iter().cloned().chain(all.iter().rev().cloned()));
        let bytes = encode_clusters(&name, &clusters_of);
        prop_assert_eq!(&bytes, &encode_clusters(&name, &clusters_of));
        prop_assert_eq!(clusters(&bytes), Ok(ClustersRead { name, clusters: clusters_of, closed: vec![], more_closed: 0 }));
    }

    #[test]
    fn damage_never_panics(all in vec(cluster(), 1..4), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = encode_clusters("x", &Clusters::new(all));
        let at = at.index(bytes.len());
        bytes[at] = byte;
        crate::fuzz::l7_clusters(&bytes);
    }
}

/// What becomes of a place with this reach beside one that is good.
fn read(reach: Vec<u8>) -> (Result<Policy, ArcStr>, Vec<String>) {
    let place = |port, reach| wire::Place {
        cluster: Some(wire::Cluster { service: "shop/cart".into(), port, subset: String::new() }),
        reach,
        ..Default::default()
    };
    let good = good(wire::Policy::default());
    let message = wire::Clusters { name: "shop/wp".into(), places: vec![place(80, reach), place(81, good)] };
    let read = clusters(&message.encode_to_vec()).unwrap();
    let find = |port| {
        let key = ClusterKey { service: NamespacedName::new("shop", "cart"), port, subset: "".into() };
        read.clusters.find(&key, &mesh_core::l7::Client::default()).unwrap().policy.clone()
    };
    assert_eq!(find(81), Ok(Policy::default()), "the other one is as it is");
    (find(80), read.closed.iter().map(ToString::to_string).collect())
}

fn good(policy: wire::Policy) -> Vec<u8> {
    wire::Reach { how: Some(wire::reach::How::Policy(policy)), ..Default::default() }.encode_to_vec()
}

#[test]
fn what_is_not_understood_of_a_reach_closes_its_place() {
    let hash = |key, table| {
        let kind = wire::balancer::Kind::Hash(wire::Hash { key: Some(key), table: Some(table) });
        good(wire::Policy { balancer: Some(wire::Balancer { kind: Some(kind) }), ..Default::default() })
    };
    let cookie = |name: &str, path: Option<&str>| {
        wire::hash::Key::Cookie(wire::Cookie { name: name.into(), path: path.map(Into::into), ..Default::default() })
    };
    let source = || wire::hash::Key::Source(());
    let ring = || wire::hash::Table::Ring(1024);
    let mut unknown = good(wire::Policy::default());
    unknown.extend([0xf8, 0x07, 1]);
    let simple = wire::Balancer { kind: Some(wire::balancer::Kind::Simple(9)) };
    let pool = wire::Pool { connections: 1, ..Default::default() };
    let outliers = wire::Outliers { most_percent: 101, ..Default::default() };
    for (reach, problem) in [
        (unknown, "not understood"),
        (vec![0xff], "cannot be decoded"),
        (Vec::new(), "reach.how"),
        (good(wire::Policy { balancer: Some(simple), ..Default::default() }), "balancer.simple"),
        (good(wire::Policy { proxy_protocol: 3, ..Default::default() }), "proxy_protocol"),
        (good(wire::Policy { pool: Some(pool), ..Default::default() }), "pool.connect_timeout is missing"),
        (good(wire::Policy { outliers: Some(outliers), ..Default::default() }), "outliers.interval is missing"),
        (good(wire::Policy { tls: Some(wire::Tls { mode: None }), ..Default::default() }), "tls.mode"),
        (hash(wire::hash::Key::Header("X-User".into()), ring()), "in lower case"),
        (hash(cookie("a;b", None), ring()), "no name of a cookie"),
        (hash(cookie("a", Some("/;x")), ring()), "cannot be part of a cookie"),
        (hash(source(), wire::hash::Table::Maglev(65_536)), "not a prime"),
        (hash(source(), wire::hash::Table::Ring(u64::MAX)), "the limit is"),
    ] {
        let (policy, closed) = read(reach);
        assert!(policy.is_err(), "{problem}");
        assert!(closed.len() == 1 && closed[0].contains(problem), "{closed:?}: {problem}");
    }
    assert_eq!(read(good(wire::Policy::default())), (Ok(Policy::default()), vec![]));
}

#[test]
fn of_which_place_and_whose_clients_must_be_readable() {
    let good = || wire::Place {
        cluster: Some(wire::Cluster { service: "shop/cart".into(), port: 80, subset: String::new() }),
        reach: good(wire::Policy::default()),
        ..Default::default()
    };
    let ask = |place: wire::Place| {
        let bytes = wire::Clusters { name: "x".into(), places: vec![place] }.encode_to_vec();
        clusters(&bytes).map(|read| read.clusters.iter().count()).map_err(|error| error.to_string())
    };
    assert_eq!(ask(good()), Ok(1));
    let namespaces = |names: &[&str]| wire::Clients { namespaces: names.iter().map(ToString::to_string).collect() };
    for place in [
        wire::Place { cluster: None, ..good() },
        wire::Place { cluster: Some(wire::Cluster::default()), ..good() },
        wire::Place { clients: Some(namespaces(&["a/b"])), ..good() },
        wire::Place { client_labels: [("a\n".to_owned(), "b".to_owned())].into(), ..good() },
    ] {
        assert!(ask(place.clone()).is_err(), "{place:?}");
    }
    let mut bytes = wire::Clusters::default().encode_to_vec();
    bytes.extend([0xf8, 0x07, 1]);
    assert!(clusters(&bytes).is_err());
}

#[test]
fn closed_places_are_told_of_up_to_a_number() {
    let place = wire::Place {
        cluster: Some(wire::Cluster { service: "shop/cart".into(), port: 80, subset: String::new() }),
        ..Default::default()
    };
    let read = clusters(&wire::Clusters { name: "x".into(), places: vec![place; 130] }.encode_to_vec()).unwrap();
    assert_eq!((read.closed.len(), read.more_closed, read.clusters.iter().count()), (100, 30, 130));
}
