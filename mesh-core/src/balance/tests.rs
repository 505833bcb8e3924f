//! Choices are checked by their distribution with a seeded generator, ejection by an explicit clock.

use std::collections::HashMap;

use rand::{SeedableRng, rngs::StdRng};

use super::*;
use crate::{
    Change, Client, Locality, NamespacedName, Store,
    service::{HealthPolicy, LoadBalancing, Mode, Scope, ServicePort},
    workload::{Health, PortMapping},
};

const KEY: &str = "shop/cart.shop.svc.cluster.local";

fn service(balancing: LoadBalancing) -> Service {
    let mut service = Service::new("shop", "cart", "cart.shop.svc.cluster.local");
    service.ports = vec![ServicePort { service_port: 80, target_port: 8080, app_protocol: Default::default() }];
    service.load_balancing = balancing;
    service
}

fn member(n: u8) -> Workload {
    let mut workload = Workload::new(format!("c//Pod/shop/cart-{n:03}"), "shop", format!("cart-{n:03}"));
    workload.addresses = vec![IpAddr::from([198, 18, 0, n])];
    workload.services = memberships(&[(80, 0)]);
    workload
}

fn memberships(ports: &[(u16, u16)]) -> crate::workload::Memberships {
    let ports = ports.iter().map(|(s, t)| PortMapping { service_port: *s, target_port: *t }).collect();
    Arc::new([(KEY.parse().unwrap(), ports)].into())
}

fn set_of(balancing: LoadBalancing, members: Vec<Workload>) -> Arc<EndpointSet> {
    let mut changes: Vec<Change> = members.into_iter().map(Change::Workload).collect();
    changes.push(Change::Service(service(balancing)));
    let applied = Store::new().apply(changes);
    Arc::clone(applied.snapshot.endpoints(&KEY.parse::<NamespacedName>().unwrap()).unwrap())
}

fn client() -> Client {
    Client::default()
}

fn ask<'a>(client: &'a Client, now_ms: u64, tried: &'a [ArcStr]) -> Ask<'a> {
    Ask { client, port: 80, like: IpAddr::from([198, 18, 0, 0]), now_ms, tried }
}

/// How often each member is picked, as its last octet, when connections end at once.
fn histogram(set: &EndpointSet, client: &Client, now_ms: u64, picks: usize) -> HashMap<u8, usize> {
    let mut rng = StdRng::seed_from_u64(1);
    let mut seen = HashMap::new();
    for _ in 0..picks {
        let pick = set.pick(&ask(client, now_ms, &[]), &mut rng).expect("an endpoint");
        *seen.entry(octet(&pick)).or_default() += 1;
    }
    seen
}

fn octet(pick: &Pick) -> u8 {
    match pick.address {
        IpAddr::V4(v4) => v4.octets()[3],
        IpAddr::V6(_) => panic!("v6"),
    }
}

fn picked(set: &EndpointSet, client: &Client, now_ms: u64) -> Vec<u8> {
    let mut members: Vec<u8> = histogram(set, client, now_ms, 400).into_keys().collect();
    members.sort_unstable();
    members
}

#[test]
fn equal_members_get_equal_shares() {
    let set = set_of(LoadBalancing::default(), (1..=4).map(member).collect());
    let seen = histogram(&set, &client(), 0, 8000);
    assert!((1..=4).all(|n| (1800..2200).contains(&seen[&n])), "{seen:?}");
}

#[test]
fn capacity_is_weight_and_zero_takes_nothing() {
    let members = [(1, 1), (2, 3), (3, 0), (4, 6)];
    let members = members.map(|(n, capacity)| Workload { capacity, ..member(n) });
    let set = set_of(LoadBalancing::default(), members.to_vec());
    let seen = histogram(&set, &client(), 0, 10_000);
    let share = |n| seen.get(&n).copied().unwrap_or(0);
    assert!((900..1100).contains(&share(1)), "{seen:?}");
    assert!((2800..3200).contains(&share(2)), "{seen:?}");
    assert_eq!(share(3), 0);
    assert!((5700..6300).contains(&share(4)), "{seen:?}");
}

#[test]
fn open_connections_spread_evenly_by_weight() {
    let mut members: Vec<_> = (1..=10).map(member).collect();
    members[0].capacity = 4;
    let set = set_of(LoadBalancing::default(), members);
    let (client, mut rng) = (client(), StdRng::seed_from_u64(2));
    let open: Vec<Pick> = (0..1300).map(|_| set.pick(&ask(&client, 0, &[]), &mut rng).unwrap()).collect();
    for endpoint in set.members() {
        let expected = 100 * endpoint.workload.capacity;
        assert!(endpoint.active().abs_diff(expected) <= expected / 10 + 3, "{endpoint:?}");
    }
    drop(open);
    assert!(set.members().iter().all(|e| e.active() == 0));
}

#[test]
fn a_busy_endpoint_is_avoided() {
    let set = set_of(LoadBalancing::default(), vec![member(1), member(2)]);
    let (client, mut rng) = (client(), StdRng::seed_from_u64(3));
    let busy = [arcstr::literal!("c//Pod/shop/cart-002")];
    let _open: Vec<Pick> = (0..50).map(|_| set.pick(&ask(&client, 0, &busy), &mut rng).unwrap()).collect();
    let seen = histogram(&set, &client, 0, 1000);
    assert!(seen.get(&1).copied().unwrap_or(0) < 60, "{seen:?}");
}

#[test]
fn only_members_that_serve_the_port_in_this_network_and_are_ready() {
    let unready = Workload { health: Health::Unhealthy, ..member(2) };
    let elsewhere = Workload { network: "other".into(), ..member(3) };
    let no_address = Workload { addresses: vec![], ..member(4) };
    let members = vec![member(1), unready, elsewhere, no_address];
    assert_eq!(picked(&set_of(LoadBalancing::default(), members.clone()), &client(), 0), [1]);
    let all = LoadBalancing { health: HealthPolicy::AllowAll, ..LoadBalancing::default() };
    assert_eq!(picked(&set_of(all, members), &client(), 0), [1, 2]);
}

#[test]
fn the_members_own_target_port_wins_over_the_services() {
    let (client, mut rng) = (client(), StdRng::seed_from_u64(4));
    for (own, expected) in [(&[(80, 9999)][..], 9999), (&[(80, 0)], 8080), (&[(81, 9999)], 8080)] {
        let set = set_of(LoadBalancing::default(), vec![Workload { services: memberships(own), ..member(1) }]);
        assert_eq!(set.pick(&ask(&client, 0, &[]), &mut rng).unwrap().target_port, expected);
    }
    let set = set_of(LoadBalancing::default(), vec![member(1)]);
    assert!(set.pick(&Ask { port: 81, ..ask(&client, 0, &[]) }, &mut rng).is_none());
}

#[test]
fn locality_ranks_only_where_the_service_asks() {
    let at = |n: u8, zone: &str, node: &str| {
        let locality = Locality { region: "r".into(), zone: zone.into(), subzone: "".into() };
        Workload { locality, node: node.into(), ..member(n) }
    };
    let members = vec![at(1, "a", "n1"), at(2, "a", "n2"), at(3, "b", "n3"), at(4, "b", "n3")];
    let client = |zone: &str, node: &str| Client {
        locality: Locality { region: "r".into(), zone: zone.into(), subzone: "".into() },
        node: node.into(),
        ..Client::default()
    };
    let lb =
        |mode, preferences: &[Scope]| LoadBalancing { mode, preferences: preferences.to_vec(), ..Default::default() };
    use Scope::{Network, Node, Region, Subzone, Zone};
    for (name, balancing, client, expected) in [
        ("none", lb(Mode::Unspecified, &[]), client("a", "n1"), vec![1, 2, 3, 4]),
        ("scopes without mode", lb(Mode::Unspecified, &[Zone]), client("a", "n1"), vec![1, 2, 3, 4]),
        ("same zone", lb(Mode::Failover, &[Network, Region, Zone]), client("a", "n1"), vec![1, 2]),
        ("same zone, none there", lb(Mode::Failover, &[Network, Region, Zone]), client("c", "n9"), vec![1, 2, 3, 4]),
        ("same node", lb(Mode::Failover, &[Network, Region, Zone, Subzone, Node]), client("a", "n2"), vec![2]),
        (
            "same node, else zone",
            lb(Mode::Failover, &[Network, Region, Zone, Subzone, Node]),
            client("b", "n9"),
            vec![3, 4],
        ),
        ("local", lb(Mode::Strict, &[Node]), client("b", "n3"), vec![3, 4]),
    ] {
        assert_eq!(picked(&set_of(balancing, members.clone()), &client, 0), expected, "{name}");
    }
    let local = set_of(lb(Mode::Strict, &[Node]), members.clone());
    let (nowhere, unknown) = (client("b", "n9"), client("", ""));
    let mut rng = StdRng::seed_from_u64(5);
    assert!(local.pick(&ask(&nowhere, 0, &[]), &mut rng).is_none());
    assert!(local.pick(&ask(&unknown, 0, &[]), &mut rng).is_none());
}

#[test]
fn tried_endpoints_are_not_chosen_again() {
    let set = set_of(LoadBalancing::default(), (1..=5).map(member).collect());
    let (client, mut rng, mut tried) = (client(), StdRng::seed_from_u64(6), Vec::new());
    while let Some(pick) = set.pick(&ask(&client, 0, &tried), &mut rng) {
        assert!(!tried.contains(&pick.workload.uid));
        tried.push(pick.workload.uid.clone());
    }
    assert_eq!(tried.len(), 5);
}

/// Fails the member until it is ejected or `times` is used up.
fn fail(set: &EndpointSet, n: u8, times: u32, now_ms: u64) -> bool {
    let others: Vec<ArcStr> =
        set.members().iter().filter(|e| e.workload.uid != member(n).uid).map(|e| e.workload.uid.clone()).collect();
    let (client, mut rng) = (client(), StdRng::seed_from_u64(7));
    (0..times).any(|_| set.pick(&ask(&client, now_ms, &others), &mut rng).unwrap().lease.report_failure(now_ms))
}

#[test]
fn five_failures_in_a_row_eject_for_a_growing_time() {
    let set = set_of(LoadBalancing::default(), (1..=4).map(member).collect());
    assert!(!fail(&set, 1, 4, 0));
    assert_eq!(picked(&set, &client(), 0), [1, 2, 3, 4]);
    assert!(fail(&set, 1, 1, 1_000));
    assert_eq!(picked(&set, &client(), 1_000), [2, 3, 4]);
    assert_eq!(picked(&set, &client(), 30_999), [2, 3, 4]);
    assert_eq!(picked(&set, &client(), 31_000), [1, 2, 3, 4]);
    assert!(fail(&set, 1, 5, 40_000));
    assert_eq!(picked(&set, &client(), 99_999), [2, 3, 4]);
    assert_eq!(picked(&set, &client(), 100_000), [1, 2, 3, 4]);
}

#[test]
fn a_success_between_failures_keeps_the_endpoint() {
    let set = set_of(LoadBalancing::default(), (1..=4).map(member).collect());
    assert!(!fail(&set, 1, 4, 0));
    let others: Vec<ArcStr> = (2..=4).map(|n| member(n).uid).collect();
    let pick = set.pick(&ask(&client(), 0, &others), &mut StdRng::seed_from_u64(8)).unwrap();
    pick.lease.report_success(0);
    assert!(!fail(&set, 1, 4, 0));
}

#[test]
fn never_the_last_and_never_more_than_the_limit() {
    let alone = set_of(LoadBalancing::default(), vec![member(1)]);
    assert!(!fail(&alone, 1, 50, 0));
    assert_eq!(picked(&alone, &client(), 0), [1]);

    let pair = set_of(LoadBalancing::default(), vec![member(1), member(2)]);
    assert!(fail(&pair, 1, 5, 0));
    assert!(!fail(&pair, 2, 50, 0));
    assert_eq!(picked(&pair, &client(), 0), [2]);

    let thirty = set_of(LoadBalancing::default(), (1..=30).map(member).collect());
    let ejected = (1..=30).filter(|n| fail(&thirty, *n, 5, 0)).count();
    assert_eq!(ejected, 3);
}

#[test]
fn an_ejected_endpoint_is_better_than_none() {
    let set = set_of(LoadBalancing::default(), vec![member(1), member(2)]);
    assert!(fail(&set, 1, 5, 0));
    let tried = [member(2).uid];
    let pick = set.pick(&ask(&client(), 0, &tried), &mut StdRng::seed_from_u64(9)).unwrap();
    assert_eq!(octet(&pick), 1);
}

#[test]
fn with_most_endpoints_out_ejections_are_ignored() {
    let policy = OutlierPolicy { max_percent: 100, ..OutlierPolicy::default() };
    let mut store = Store::new().with_outlier_policy(policy);
    let mut changes: Vec<Change> = (1..=10).map(|n| Change::Workload(member(n))).collect();
    changes.push(Change::Service(service(LoadBalancing::default())));
    let snapshot = store.apply(changes).snapshot;
    let set = snapshot.endpoints(&KEY.parse().unwrap()).unwrap();
    assert!((1..=5).all(|n| fail(set, n, 5, 0)));
    assert_eq!(picked(set, &client(), 0), [6, 7, 8, 9, 10]);
    assert!(fail(set, 6, 5, 0));
    assert_eq!(picked(set, &client(), 0), (1..=10).collect::<Vec<u8>>());
    assert_eq!(picked(set, &client(), 30_000), (1..=10).collect::<Vec<u8>>());
}

#[test]
fn what_was_learned_survives_changes_but_not_a_new_address() {
    let mut store = Store::new();
    let mut changes: Vec<Change> = (1..=4).map(|n| Change::Workload(member(n))).collect();
    changes.push(Change::Service(service(LoadBalancing::default())));
    let key = KEY.parse().unwrap();
    let set = Arc::clone(store.apply(changes).snapshot.endpoints(&key).unwrap());
    assert!(fail(&set, 1, 5, 0));
    let open = set.pick(&ask(&client(), 0, &[]), &mut StdRng::seed_from_u64(1)).unwrap();

    let changed = Workload { canonical_revision: "v2".into(), ..member(1) };
    let snapshot = store.apply(vec![Change::Workload(changed), Change::Workload(member(5))]).snapshot;
    let set = snapshot.endpoints(&key).unwrap();
    assert_eq!(picked(set, &client(), 0), [2, 3, 4, 5]);
    assert_eq!(set.members().iter().map(Endpoint::active).sum::<u32>(), 1);
    drop(open);
    assert_eq!(set.members().iter().map(Endpoint::active).sum::<u32>(), 0);

    let moved = Workload { addresses: vec![IpAddr::from([198, 18, 0, 77])], ..member(1) };
    let snapshot = store.apply(vec![Change::Workload(moved)]).snapshot;
    assert_eq!(picked(snapshot.endpoints(&key).unwrap(), &client(), 0), [2, 3, 4, 5, 77]);
}

#[test]
fn a_pick_does_not_cost_more_in_a_larger_set() {
    let pick_time = |size: u32| {
        let members = (0..size).map(|n| {
            let mut workload = member(0);
            workload.uid = format!("c//Pod/shop/cart-{n:06}").into();
            workload.addresses = vec![IpAddr::from((0xc612_0000 + n).to_be_bytes())];
            workload.capacity = 1 + n % 3;
            workload
        });
        let set = set_of(LoadBalancing::default(), members.collect());
        let (client, mut rng) = (client(), StdRng::seed_from_u64(1));
        let mut best = std::time::Duration::MAX;
        set.pick(&ask(&client, 0, &[]), &mut rng);
        for _ in 0..20 {
            let start = std::time::Instant::now();
            for _ in 0..200 {
                set.pick(&ask(&client, 0, &[]), &mut rng).unwrap();
            }
            best = best.min(start.elapsed());
        }
        best
    };
    let (small, large) = (pick_time(20), pick_time(20_000));
    // A linear pick would be a thousand times slower; cache misses are not.
    assert!(large < small * 20, "{small:?} for 20 members, {large:?} for 20000");
}

#[test]
fn an_endpoint_of_a_family_that_the_client_has_no_address_of_is_not_chosen() {
    let (four, six) = (IpAddr::from([198, 18, 1, 1]), "fd00:198::1".parse::<IpAddr>().unwrap());
    let of = |n: u8, addresses: &[IpAddr]| Workload { addresses: addresses.to_vec(), ..member(n) };
    let set = set_of(LoadBalancing::default(), vec![of(1, &[four]), of(2, &[six]), of(3, &[six, four])]);
    let only_six = set_of(LoadBalancing::default(), vec![of(2, &[six])]);
    for (what, ips, like, expected) in [
        ("of IPv4", &[four][..], four, vec![(1, four), (3, four)]),
        // Whatever address of the service it asked for.
        ("of IPv4, by IPv6", &[four], six, vec![(1, four), (3, four)]),
        ("of IPv6", &[six], six, vec![(2, six), (3, six)]),
        ("of both", &[six, four], four, vec![(1, four), (2, six), (3, four)]),
        ("nobody knows", &[], six, vec![(1, four), (2, six), (3, six)]),
    ] {
        let client = Client { ips: ips.to_vec(), ..client() };
        let mut rng = StdRng::seed_from_u64(1);
        let mut found = std::collections::BTreeSet::new();
        for _ in 0..200 {
            let pick = set.pick(&Ask { like, ..ask(&client, 0, &[]) }, &mut rng).expect("an endpoint");
            let number: u8 = pick.workload.name.trim_start_matches("cart-").parse().unwrap();
            found.insert((number, pick.address));
        }
        assert_eq!(found.into_iter().collect::<Vec<_>>(), expected, "{what}");
        let none = only_six.pick(&Ask { like, ..ask(&client, 0, &[]) }, &mut rng).is_none();
        assert_eq!(none, ips == [four], "{what}: there is nobody else");
    }
}
