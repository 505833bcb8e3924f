//! The store's promises: one winner for an address whatever the order, no index left behind, cost by what is touched.

use proptest::prelude::*;

use super::*;
use crate::{
    Connection, Policy, Service, authorize,
    policy::{Action, Clause, Match, Rule},
    service::{ServiceAddress, ServicePort},
    workload::{NetworkMode, PortMapping, TunnelProtocol},
};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn pod(name: &str, addresses: &[&str]) -> Workload {
    let mut workload = Workload::new(format!("c//Pod/shop/{name}"), "shop", name);
    workload.addresses = addresses.iter().map(|a| ip(a)).collect();
    workload
}

fn member_of(workload: Workload, service: &str) -> Workload {
    let ports = vec![PortMapping { service_port: 80, target_port: 8080 }];
    Workload { services: Arc::new([(key(service), ports)].into()), ..workload }
}

fn key(service: &str) -> NamespacedName {
    NamespacedName::new("shop", format!("{service}.shop.svc.cluster.local"))
}

fn service(name: &str, cidr: &str) -> Service {
    let mut service = Service::new("shop", name, format!("{name}.shop.svc.cluster.local"));
    service.addresses = vec![ServiceAddress { network: "".into(), cidr: cidr.parse().unwrap() }];
    service.ports = vec![ServicePort { service_port: 80, target_port: 8080, app_protocol: Default::default() }];
    service
}

fn policy(name: &str, scope: Scope, action: Action) -> Policy {
    let everything = Rule { clauses: vec![Clause { matches: vec![] }] };
    Policy { name: name.parse().unwrap(), scope, action, rules: vec![everything], dry_run: false }
}

fn owner(snapshot: &Snapshot, address: &str) -> Option<(String, u64)> {
    snapshot.owner("", &ip(address)).map(|o| (o.workload.name.to_string(), o.generation))
}

fn put(workload: Workload) -> Change {
    Change::Workload(workload)
}

#[test]
fn features_F2_an_address_that_changes_owner_changes_generation() {
    let mut store = Store::new();
    let first = owner(&store.apply(vec![put(pod("a", &["198.18.0.1"]))]).snapshot, "198.18.0.1").unwrap();
    let same = Workload { canonical_revision: "v2".into(), ..pod("a", &["198.18.0.1", "198.18.0.2"]) };
    let applied = store.apply(vec![put(same)]);
    assert_eq!(owner(&applied.snapshot, "198.18.0.1"), Some(first.clone()));
    assert_eq!(applied.diff.addresses, [ip("198.18.0.2")].into());
    assert_eq!(applied.snapshot.workload_by_address("", &ip("198.18.0.1")).unwrap().canonical_revision, "v2");

    // Removed and added in one batch: the new owner is there at once, under a new generation.
    let applied = store.apply(vec![Change::RemoveAddress("c//Pod/shop/a".into()), put(pod("b", &["198.18.0.1"]))]);
    let second = owner(&applied.snapshot, "198.18.0.1").unwrap();
    assert_eq!(second.0, "b");
    assert!(second.1 > first.1);
    assert_eq!(owner(&applied.snapshot, "198.18.0.2"), None);
    assert_eq!(applied.diff.workloads.len(), 2);

    // The same pod name and address again, but it was gone in between.
    store.apply(vec![Change::RemoveAddress("c//Pod/shop/b".into())]);
    let third = owner(&store.apply(vec![put(pod("b", &["198.18.0.1"]))]).snapshot, "198.18.0.1").unwrap();
    assert!(third.1 > second.1);
}

#[test]
fn hardening_B96_of_two_claimants_the_pod_then_the_tunnel_wins_in_any_order() {
    let at = &["198.18.0.1"][..];
    let entry = Workload { uid: "c/networking.istio.io/WorkloadEntry/shop/entry".into(), ..pod("entry", at) };
    let hbone = |w| Workload { protocol: TunnelProtocol::Hbone, ..w };
    for (one, other, winner) in [
        (entry.clone(), pod("p", at), "p"),
        (hbone(entry.clone()), pod("p", at), "p"),
        (pod("a", at), hbone(pod("b", at)), "b"),
        (pod("a", at), pod("b", at), "a"),
    ] {
        for [first, second] in [[one.clone(), other.clone()], [other, one]] {
            let mut store = Store::new();
            store.apply(vec![put(first.clone())]);
            let both = store.apply(vec![put(second.clone())]).snapshot;
            assert_eq!(owner(&both, "198.18.0.1").unwrap().0, winner);
            // Whoever stays inherits.
            let (stays, goes) = if second.name == winner { (first, second) } else { (second, first) };
            let left = store.apply(vec![Change::RemoveAddress(goes.uid)]).snapshot;
            assert_eq!(owner(&left, "198.18.0.1").unwrap().0, stays.name);
            let none = store.apply(vec![Change::RemoveAddress(stays.uid)]).snapshot;
            assert_eq!(owner(&none, "198.18.0.1"), None);
            assert!(store.contested.is_empty());
        }
    }
}

#[test]
fn host_network_pods_do_not_own_the_nodes_address() {
    let mut store = Store::new();
    let host = Workload { network_mode: NetworkMode::HostNetwork, ..pod("host", &["198.18.0.1"]) };
    let snapshot = store.apply(vec![put(host), put(pod("b", &["198.18.0.1"]))]).snapshot;
    assert_eq!(owner(&snapshot, "198.18.0.1").unwrap().0, "b");
    assert!(snapshot.workload_by_uid("c//Pod/shop/host").is_some());
}

#[test]
fn hardening_B93_the_last_of_a_batch_wins() {
    let mut store = Store::new();
    let (one, two) = (pod("a", &["198.18.0.1"]), pod("a", &["198.18.0.2"]));
    let gone = || Change::RemoveAddress("c//Pod/shop/a".into());
    let snapshot = store.apply(vec![put(one.clone()), put(two.clone())]).snapshot;
    assert_eq!((owner(&snapshot, "198.18.0.1"), owner(&snapshot, "198.18.0.2").unwrap().0), (None, "a".into()));
    let snapshot = store.apply(vec![gone(), put(one.clone())]).snapshot;
    assert_eq!(owner(&snapshot, "198.18.0.1").unwrap().0, "a");
    let snapshot = store.apply(vec![put(two), gone()]).snapshot;
    assert_eq!(snapshot.counts(), (0, 0, 0));
    assert_eq!(owner(&snapshot, "198.18.0.2"), None);
}

#[test]
fn endpoints_may_come_before_their_service_and_stay_after_it() {
    let mut store = Store::new();
    let applied = store.apply(vec![put(member_of(pod("a", &["198.18.0.1"]), "cart"))]);
    assert!(applied.snapshot.service_by_address("", &ip("198.19.0.1")).is_none());
    assert_eq!(applied.diff.services, [key("cart")].into());
    let snapshot = store.apply(vec![Change::Service(service("cart", "198.19.0.1/32"))]).snapshot;
    let set = snapshot.endpoints(&key("cart")).unwrap();
    assert_eq!((set.members().len(), set.service().unwrap().name.as_str()), (1, "cart"));
    let snapshot = store.apply(vec![Change::RemoveAddress(key("cart").to_string().into())]).snapshot;
    assert!(snapshot.service_by_address("", &ip("198.19.0.1")).is_none());
    assert!(snapshot.service_by_host("cart.shop.svc.cluster.local").is_empty());
    assert!(snapshot.endpoints(&key("cart")).unwrap().service().is_none());
    let snapshot = store.apply(vec![put(pod("a", &["198.18.0.1"]))]).snapshot;
    assert!(snapshot.endpoints(&key("cart")).is_none());
}

#[test]
fn ranges_answer_with_the_longest_and_with_the_newest_version() {
    let mut store = Store::new();
    store.apply(vec![
        Change::Service(service("wide", "198.19.0.0/16")),
        Change::Service(service("narrow", "198.19.1.0/24")),
        Change::Service(service("exact", "198.19.1.1/32")),
    ]);
    // Endpoints come and go without the service being sent again.
    let snapshot = store.apply(vec![put(member_of(pod("a", &["198.18.0.1"]), "narrow"))]).snapshot;
    let at = |snapshot: &Snapshot, a: &str| snapshot.service_by_address("", &ip(a)).map(|s| s.name.to_string());
    assert_eq!(at(&snapshot, "198.19.1.1").unwrap(), "exact");
    assert_eq!(at(&snapshot, "198.19.1.2").unwrap(), "narrow");
    assert_eq!(at(&snapshot, "198.19.2.1").unwrap(), "wide");
    assert_eq!(at(&snapshot, "198.20.0.1"), None);
    assert_eq!(snapshot.endpoints(&key("narrow")).unwrap().members().len(), 1);
    let snapshot = store.apply(vec![Change::Service(service("narrow", "198.19.3.0/24"))]).snapshot;
    assert_eq!(at(&snapshot, "198.19.1.2").unwrap(), "wide");
    assert_eq!(at(&snapshot, "198.19.3.2").unwrap(), "narrow");
}

#[test]
fn nothing_new_is_no_diff() {
    let mut store = Store::new();
    let changes = || {
        vec![
            put(member_of(pod("a", &["198.18.0.1"]), "cart")),
            Change::Service(service("cart", "198.19.0.1/32")),
            Change::Policy(policy("shop/p", Scope::Namespace, Action::Allow)),
            Change::Synced,
        ]
    };
    assert!(!store.apply(changes()).diff.is_empty());
    assert!(store.apply(changes()).diff.is_empty());
    assert!(store.apply(vec![Change::RemoveAddress("shop/nothing".into())]).diff.is_empty());
}

fn verdict(snapshot: &Snapshot, workload: &Workload) -> String {
    let connection = Connection {
        source_ip: ip("198.18.0.9"),
        source: None,
        via: None,
        destination_ip: ip("198.18.0.1"),
        destination_port: 80,
    };
    authorize(snapshot, workload, &connection).decision.to_string()
}

#[test]
fn hardening_B101_a_policy_that_has_not_arrived_denies_whoever_lists_it() {
    let mut store = Store::new();
    let lists = Workload { authorization_policies: ["shop/p".parse().unwrap()].into(), ..pod("a", &[]) };
    let snapshot = store.apply(vec![put(lists.clone())]).snapshot;
    assert_eq!(verdict(&snapshot, &lists), "policy shop/p is listed but has not arrived");
    assert_eq!(verdict(&snapshot, &pod("b", &[])), "no policy applies");
    let snapshot = store.apply(vec![Change::Policy(policy("shop/p", Scope::WorkloadSelector, Action::Allow))]).snapshot;
    assert_eq!(verdict(&snapshot, &lists), "allowed by policy shop/p");
    assert_eq!(verdict(&snapshot, &pod("b", &[])), "no policy applies");
    let snapshot = store.apply(vec![Change::RemovePolicy("shop/p".parse().unwrap())]).snapshot;
    assert_eq!(verdict(&snapshot, &lists), "policy shop/p is listed but has not arrived");
}

#[test]
fn hardening_F12_an_unreadable_policy_keeps_its_last_form_or_denies_what_it_could_select() {
    let unreadable = |name: &str, scope| Change::PolicyUnreadable { name: name.parse().unwrap(), scope };
    let (here, there) = (pod("a", &[]), Workload { namespace: "other".into(), ..pod("b", &[]) });
    let lists = Workload { authorization_policies: ["shop/p".parse().unwrap()].into(), ..there.clone() };
    let denied = "policy shop/p cannot be read";
    let free = "no policy applies";
    for (scope, expected) in [
        (None, [denied, free, denied]),
        (Some(Scope::Namespace), [denied, free, denied]),
        (Some(Scope::WorkloadSelector), [free, free, denied]),
        (Some(Scope::Global), [denied, denied, denied]),
    ] {
        let mut store = Store::new();
        let snapshot = store.apply(vec![unreadable("shop/p", scope)]).snapshot;
        let verdicts = [&here, &there, &lists].map(|w| verdict(&snapshot, w));
        assert_eq!(verdicts, expected, "{scope:?}");
        // A good form ends it.
        let snapshot = store.apply(vec![Change::Policy(policy("shop/p", Scope::Namespace, Action::Allow))]).snapshot;
        assert_eq!(verdict(&snapshot, &here), "allowed by policy shop/p");
        assert_eq!(verdict(&snapshot, &there), free);
        // And a bad one later does not replace it, whatever scope it claims.
        let snapshot = store.apply(vec![unreadable("shop/p", Some(Scope::Global))]).snapshot;
        assert_eq!(verdict(&snapshot, &here), "allowed by policy shop/p");
        assert_eq!(verdict(&snapshot, &there), free);
        assert!(snapshot.policy(&"shop/p".parse().unwrap()).unwrap().is_stale());
        let snapshot = store.apply(vec![Change::RemovePolicy("shop/p".parse().unwrap())]).snapshot;
        assert_eq!(verdict(&snapshot, &here), free);
    }
}

#[test]
fn the_diff_names_the_workloads_whose_connections_must_be_checked_again() {
    let mut store = Store::new();
    let (a, b) = (pod("a", &[]), Workload { namespace: "other".into(), ..pod("b", &[]) });
    let lists = Workload { authorization_policies: ["shop/p".parse().unwrap()].into(), ..b.clone() };
    store.apply(vec![put(a.clone()), put(b.clone())]);
    for (change, expected) in [
        (
            put(Workload { authorization_policies: ["shop/p".parse().unwrap()].into(), ..a.clone() }),
            [true, false, false],
        ),
        (Change::Policy(policy("shop/p", Scope::WorkloadSelector, Action::Deny)), [false, false, true]),
        (Change::Policy(policy("shop/p", Scope::Namespace, Action::Deny)), [true, false, true]),
        (Change::Policy(policy("root/p", Scope::Global, Action::Deny)), [true, true, true]),
        (Change::RemovePolicy("root/p".parse().unwrap()), [true, true, true]),
        (Change::RemovePolicy("shop/p".parse().unwrap()), [true, false, true]),
        (Change::RemovePolicy("shop/p".parse().unwrap()), [false, false, false]),
    ] {
        let what = format!("{change:?}");
        let diff = store.apply(vec![change]).diff;
        assert_eq!([&a, &b, &lists].map(|w| diff.concerns(w)), expected, "{what}");
    }
}

#[test]
fn old_snapshots_do_not_change() {
    let mut store = Store::new();
    let before = store.apply(vec![put(pod("a", &["198.18.0.1"]))]).snapshot;
    store.apply(vec![Change::RemoveAddress("c//Pod/shop/a".into()), put(pod("b", &["198.18.0.1"]))]);
    assert_eq!(owner(&before, "198.18.0.1").unwrap().0, "a");
    assert!(before.workload_by_uid("c//Pod/shop/a").is_some());
}

/// What readers can see, without generations, which count steps.
fn visible(snapshot: &Snapshot) -> Vec<String> {
    let mut seen: Vec<String> = snapshot.workloads().map(|w| format!("{w:?}")).collect();
    seen.extend(snapshot.services().map(|s| format!("{s:?}")));
    seen.extend(snapshot.policies().map(|p| format!("{p:?}")));
    seen.extend((0..6).filter_map(|n| {
        let at = format!("198.18.0.{n}");
        snapshot.workload_by_address("", &ip(&at)).map(|w| format!("{at} {}", w.uid))
    }));
    seen.extend((0..6).filter_map(|n| {
        let at = format!("198.19.0.{n}");
        snapshot.service_by_address("", &ip(&at)).map(|s| format!("{at} {}", s.key()))
    }));
    for name in ["s0", "s1", "s2"] {
        let members = snapshot.endpoints(&key(name)).into_iter().flat_map(|set| set.members());
        seen.extend(members.map(|e| format!("{name} {:?}", e.workload)));
    }
    seen.sort();
    seen
}

fn any_change() -> impl Strategy<Value = Change> {
    let text = |n: u8| format!("198.18.0.{n}");
    prop_oneof![
        (0..8_u8, 0..6_u8, 0..6_u8, 0..3_u8, any::<bool>()).prop_map(move |(name, a, b, s, hbone)| {
            let (a, b) = (text(a), text(b));
            let addresses = if a == b { vec![a.as_str()] } else { vec![a.as_str(), b.as_str()] };
            let mut workload = member_of(pod(&format!("w{name}"), &addresses), &format!("s{s}"));
            if name % 3 == 0 {
                workload.uid = format!("c/networking.istio.io/WorkloadEntry/shop/w{name}").into();
            }
            workload.protocol = if hbone { TunnelProtocol::Hbone } else { TunnelProtocol::None };
            put(workload)
        }),
        (0..3_u8, 0..6_u8, prop_oneof![Just(32), Just(29)])
            .prop_map(|(s, a, length)| Change::Service(service(&format!("s{s}"), &format!("198.19.0.{a}/{length}")))),
        (0..3_u8, any::<bool>()).prop_map(|(n, deny)| {
            let scope = [Scope::Global, Scope::Namespace, Scope::WorkloadSelector][usize::from(n)];
            let action = if deny { Action::Deny } else { Action::Allow };
            Change::Policy(Policy {
                rules: vec![Rule { clauses: vec![Clause { matches: vec![Match::default()] }] }],
                ..policy(&format!("shop/p{n}"), scope, action)
            })
        }),
    ]
}

fn subject(change: &Change) -> String {
    match change {
        Change::Workload(w) => w.uid.to_string(),
        Change::Service(s) => s.key().to_string(),
        Change::Policy(p) => format!("policy {}", p.name),
        other => format!("{other:?}"),
    }
}

fn removal(change: &Change) -> Change {
    match change {
        Change::Workload(w) => Change::RemoveAddress(w.uid.clone()),
        Change::Service(s) => Change::RemoveAddress(s.key().to_string().into()),
        Change::Policy(p) => Change::RemovePolicy(p.name.clone()),
        other => other.clone(),
    }
}

proptest! {
    #[test]
    fn the_order_and_batching_of_deltas_do_not_matter(
        changes in proptest::collection::vec(any_change(), 0..30),
        noise in proptest::collection::vec(any_change(), 0..10),
        seed in any::<u64>(),
    ) {
        // The last of each subject, so that any order means the same.
        let last: BTreeMap<String, Change> = changes.iter().map(|c| (subject(c), c.clone())).collect();
        let mut straight = Store::new();
        let expected = straight.apply(last.values().cloned().collect()).snapshot;

        // The same in another order, one by one, through intermediate states that come and go.
        let mut store = Store::new();
        store.apply(noise.clone());
        let mut order: Vec<Change> = last.values().cloned().collect();
        let len = order.len().max(1);
        order.rotate_left(seed as usize % len);
        if seed % 2 == 0 {
            order.reverse();
        }
        for change in order {
            store.apply(vec![change]);
        }
        let extra = noise.iter().filter(|c| !last.contains_key(&subject(c))).map(removal).collect();
        let got = store.apply(extra).snapshot;
        prop_assert_eq!(visible(&got), visible(&expected));
        prop_assert_eq!(store.contested.len(), straight.contested.len());
    }
}
