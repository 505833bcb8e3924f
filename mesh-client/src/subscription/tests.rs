//! Scripts of messages and times against the state machine.

use arcstr::ArcStr;
use mesh_core::l4::{ConnectionRoutes, Group, Place, Rule, Split};
use mesh_core::l7::{Cluster, ClusterKey, Clusters, Target};
use mesh_core::{NamespacedName, Policy, Service, Workload, policy};
use mesh_proto::{
    convert,
    discovery::{Any, Resource},
};

use super::events::MAX_NACK;
use super::topic::LARGE_MESSAGE;
use super::*;

fn limits() -> Limits {
    Limits {
        initial_versions_bytes: 1 << 20,
        guarded_removals: 4,
        hold_ms: 60_000,
        settle_ms: 10_000,
        demand_ms: 5_000,
    }
}

fn subscription() -> Subscription {
    Subscription::new(Node::default(), limits())
}

fn uid(n: usize) -> String {
    format!("c//Pod/shop/cart-{n}")
}

fn workload(n: usize) -> Resource {
    let bytes = convert::encode_workload(&Workload::new(uid(n), "shop", format!("cart-{n}")));
    resource(ADDRESS_TYPE, uid(n), bytes)
}

fn service() -> Resource {
    let service = Service::new("shop", "cart", "cart.shop.svc.cluster.local");
    resource(ADDRESS_TYPE, service.key().to_string(), convert::encode_service(&service))
}

fn policy_resource(name: &str) -> Resource {
    let policy = Policy::deny_plaintext(name.parse().unwrap(), policy::Scope::Namespace);
    resource(AUTHORIZATION_TYPE, name.to_owned(), convert::encode_policy(&policy))
}

fn resource(type_url: &str, name: String, value: Vec<u8>) -> Resource {
    let version = format!("{:016x}", value.len());
    Resource {
        name,
        version,
        resource: Some(Any { type_url: type_url.into(), value: value.into() }),
        ..Resource::default()
    }
}

fn response(type_url: &str, resources: Vec<Resource>, removed: Vec<String>) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: type_url.into(),
        nonce: "n".into(),
        resources,
        removed_resources: removed,
        ..DeltaDiscoveryResponse::default()
    }
}

fn addresses(resources: Vec<Resource>, removed: Vec<String>) -> DeltaDiscoveryResponse {
    response(ADDRESS_TYPE, resources, removed)
}

fn policies(resources: Vec<Resource>) -> DeltaDiscoveryResponse {
    response(AUTHORIZATION_TYPE, resources, vec![])
}

fn routes(resources: Vec<Resource>, removed: Vec<String>) -> DeltaDiscoveryResponse {
    response(CONNECTION_ROUTES_TYPE, resources, removed)
}

/// Routes of a service that lead connections to another.
fn route(service: &str, to: &str) -> Resource {
    let key = ClusterKey { service: NamespacedName::new("shop", to), port: 80, subset: "".into() };
    let split = Split::new(vec![Place { target: Target::Cluster(key), weight: 1 }]).unwrap();
    let rules = vec![Rule { origin: "".into(), conditions: vec![], split }];
    let service = NamespacedName::new("shop", service);
    let routes = ConnectionRoutes { service, groups: vec![Group { rules, ..Group::default() }] };
    resource(CONNECTION_ROUTES_TYPE, routes.service.to_string(), convert::encode_connection_routes(&routes))
}

fn uids(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(uid).collect()
}

/// What changes do, in one word each.
fn words(changes: &[Change]) -> Vec<String> {
    let mut words: Vec<String> = changes
        .iter()
        .map(|change| match change {
            Change::Workload(w) => format!("+{}", w.name),
            Change::Service(s) => format!("+{}", s.hostname),
            Change::RemoveAddress(name) => format!("-{name}"),
            Change::Policy(p) => format!("+{}", p.name),
            Change::RemovePolicy(name) => format!("-{name}"),
            Change::PolicyUnreadable { name, scope } => format!("?{name} {scope:?}"),
            Change::Connections(r) => match &r.groups[0].rules[0].split.places()[0].target {
                Target::Cluster(key) => format!("+{}->{}", r.service, key.service),
                Target::Broken(_) => format!("+{} closed", r.service),
            },
            Change::RemoveConnections(name) | Change::RemoveClusters(name) => format!("-{name}"),
            Change::Clusters(name, clusters) => format!("+{name} {}", clusters.iter().count()),
            Change::Outbound(scope, said) => format!("+{scope} {}", if said.registry_only { "only" } else { "any" }),
            Change::RemoveOutbound(scope) => format!("-{scope}"),
            Change::OutboundKnown => "outbound known".into(),
            Change::Labels(changes) => format!("{} labels", changes.len()),
            Change::Synced => "synced".into(),
            Change::Ranges(_) => "ranges".into(),
        })
        .collect();
    words.sort();
    words
}

/// Connected, with the first `count` workloads and a service held.
fn with_workloads(count: usize) -> Subscription {
    let mut subscription = subscription();
    subscription.on_connected(0);
    let resources = (0..count).map(workload).chain([service()]).collect();
    subscription.on_message(addresses(resources, vec![]), 0);
    subscription.on_message(policies(vec![policy_resource("shop/strict")]), 0);
    subscription.on_message(routes(vec![], vec![]), 0);
    nothing_said(&mut subscription);
    subscription
}

/// There are no DestinationRules and no labels that anybody asks for.
fn nothing_said(subscription: &mut Subscription) {
    for type_url in [CLUSTERS_TYPE, OUTBOUND_TYPE, WORKLOAD_LABELS_TYPE] {
        subscription.on_message(response(type_url, vec![], vec![]), 0);
    }
}

#[test]
fn all_types_are_asked_for_at_once_and_answered_ones_make_it_synced() {
    let mut s = subscription();
    let requests = s.on_connected(0);
    let types: Vec<_> = requests.iter().map(|r| r.type_url.as_str()).collect();
    let ours = [CLUSTERS_TYPE, CONNECTION_ROUTES_TYPE, OUTBOUND_TYPE, WORKLOAD_LABELS_TYPE];
    assert_eq!(types, [&[ADDRESS_TYPE, AUTHORIZATION_TYPE], &ours[..]].concat());
    assert!(requests.iter().all(|r| r.node.is_some() && r.resource_names_subscribe.is_empty()));
    assert!(requests.iter().all(|r| r.initial_resource_versions.is_empty() && r.response_nonce.is_empty()));

    let first = s.on_message(addresses(vec![workload(1), service()], vec![]), 0);
    assert_eq!(words(&first.changes), ["+cart-1", "+cart.shop.svc.cluster.local"]);
    let ack = first.reply.into_request();
    assert_eq!((ack.type_url.as_str(), ack.response_nonce.as_str(), ack.error_detail), (ADDRESS_TYPE, "n", None));
    assert!(s.on_message(policies(vec![]), 0).changes.is_empty());
    nothing_said(&mut s);
    assert!(!s.is_synced());
    let last = s.on_message(routes(vec![route("cart", "cart-v2")], vec![]), 0);
    assert_eq!(words(&last.changes), ["+shop/cart->shop/cart-v2", "synced"]);
    assert_eq!(s.next_timer(), None);
    assert!(s.on_message(policies(vec![]), 0).changes.is_empty());
}

#[test]
fn features_reconnect_names_what_is_held() {
    let mut s = with_workloads(3);
    s.on_end(false);
    let requests = s.on_connected(1);
    let mut names: Vec<_> = requests[0].initial_resource_versions.keys().cloned().collect();
    names.sort();
    assert_eq!(names, [uid(0), uid(1), uid(2), "shop/cart.shop.svc.cluster.local".into()]);
    assert_eq!(requests[0].initial_resource_versions[&uid(0)], workload(0).version);
    assert_eq!(requests[1].initial_resource_versions.len(), 1);
    // Nothing new but a removal while it was away.
    assert_eq!(words(&s.on_message(addresses(vec![], uids(1..2)), 1).changes), ["-c//Pod/shop/cart-1"]);
}

#[test]
fn hardening_B91_an_unknown_type_is_refused_and_changes_nothing() {
    let mut s = with_workloads(1);
    let received = s.on_message(response("type.googleapis.com/x", vec![workload(2)], uids(0..1)), 0);
    assert!(received.changes.is_empty());
    assert!(received.reply.into_request().error_detail.is_some());
    let mut wrong = workload(2);
    wrong.resource.as_mut().unwrap().type_url = AUTHORIZATION_TYPE.into();
    let received = s.on_message(addresses(vec![wrong, Resource::default()], vec![]), 0);
    assert!(received.changes.is_empty());
    assert_eq!(received.reply.problems.len(), 2);
}

#[test]
fn hardening_F12_good_resources_of_a_bad_push_are_applied_and_bad_ones_named() {
    let mut s = with_workloads(1);
    let bad = resource(ADDRESS_TYPE, uid(7), vec![0xff; 9]);
    let misnamed = Resource { name: uid(8), ..workload(9) };
    let received = s.on_message(addresses(vec![bad, workload(2), misnamed], vec![]), 0);
    assert_eq!(words(&received.changes), ["+cart-2"]);
    let nack = received.reply.into_request().error_detail.unwrap();
    assert!(nack.message.contains(&uid(7)) && nack.message.contains(&uid(8)), "{}", nack.message);
    assert!(matches!(&received.alarms[..], [Alarm::Rejected { problems, .. }] if problems.len() == 2));
    s.on_end(false);
    let names = s.on_connected(1)[0].initial_resource_versions.clone();
    assert!(names.contains_key(&uid(2)) && !names.contains_key(&uid(7)) && !names.contains_key(&uid(8)));
}

/// The fail points are for the whole process, so it has one of its own.
#[test]
#[cfg(debug_assertions)]
fn hardening_F6_a_resource_whose_reading_panics_is_an_unreadable_one() {
    use mesh_runtime::failpoint;
    let name = "subscription::tests::hardening_F6_a_resource_whose_reading_panics_is_an_unreadable_one";
    if std::env::var_os(failpoint::VARIABLE).is_none() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut alone = std::process::Command::new(std::env::current_exe().unwrap());
        let output = alone.args(["--exact", name]).env(failpoint::VARIABLE, file.path()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    let fail = |points: &[&str]| {
        std::fs::write(std::env::var_os(failpoint::VARIABLE).unwrap(), points.join("\n")).unwrap();
    };
    // From now on panics end a process that has too many of them.
    mesh_runtime::task::register(&mut prometheus_client::registry::Registry::default());
    let mut s = with_workloads(1);
    fail(&["xds-resource"]);
    let pushed = policies(vec![policy_resource("shop/poison"), policy_resource("shop/sound")]);
    let received = s.on_message(pushed, 0);
    assert_eq!(words(&received.changes), ["+shop/sound", "?shop/poison None"]);
    assert!(received.reply.problems[0].contains("shop/poison"), "{:?}", received.reply.problems);
    fail(&["xds-resource"]);
    // Its last form stays, and so do the others.
    let received = s.on_message(addresses(vec![workload(0), workload(1)], vec![]), 0);
    assert_eq!(words(&received.changes), ["+cart-1"]);
    assert_eq!(received.reply.problems.len(), 1);
    assert_eq!(s.held(ADDRESS_TYPE), 3);
    // More than a process may panic in a minute: the next one would meet them again.
    fail(&["xds-resource"; 11]);
    let pushed = (0..12).map(|n| policy_resource(&format!("shop/poison-{n}"))).collect();
    let received = s.on_message(policies(pushed), 0);
    assert_eq!((received.changes.len(), received.reply.problems.len()), (12, 11));
    assert_eq!(mesh_runtime::task::panics(), 13);
}

#[test]
fn hardening_F12_an_unreadable_policy_is_reported_to_the_store_and_remembered_as_refused() {
    let mut s = with_workloads(1);
    let mut bad = policy_resource("shop/strict");
    let value = &mut bad.resource.as_mut().unwrap().value;
    *value = [&value[..], &[0xf8, 0x7f, 0x01]].concat().into();
    let received = s.on_message(policies(vec![bad]), 0);
    assert_eq!(words(&received.changes), ["?shop/strict Some(Namespace)"]);
    let garbage = resource(AUTHORIZATION_TYPE, "shop/new".into(), vec![0xff]);
    assert_eq!(words(&s.on_message(policies(vec![garbage]), 0).changes), ["?shop/new None"]);
    let nameless = resource(AUTHORIZATION_TYPE, "new".into(), vec![0xff]);
    assert!(s.on_message(policies(vec![nameless]), 0).changes.is_empty());
    s.on_end(false);
    let versions = s.on_connected(1)[1].initial_resource_versions.clone();
    assert_eq!((versions["shop/strict"].as_str(), versions["shop/new"].as_str()), ("refused", "refused"));
    let removed = response(AUTHORIZATION_TYPE, vec![], vec!["shop/new".into()]);
    assert_eq!(words(&s.on_message(removed, 1).changes), ["-shop/new"]);
}

#[test]
fn hardening_B93_removed_and_sent_in_one_push_exists() {
    let mut s = with_workloads(2);
    let received = s.on_message(addresses(vec![workload(0)], vec![uid(0), uid(1)]), 0);
    assert_eq!(words(&received.changes), ["+cart-0", "-c//Pod/shop/cart-1"]);
    assert!(matches!(received.changes[0], Change::RemoveAddress(_)), "removals come first");
}

#[test]
fn a_nack_is_bounded() {
    let mut s = with_workloads(0);
    let bad = (0..2000).map(|n| resource(ADDRESS_TYPE, format!("é{n}"), vec![0xff])).collect();
    let nack = s.on_message(addresses(bad, vec![]), 0).reply.into_request().error_detail.unwrap();
    assert!(nack.message.len() <= MAX_NACK + 3);
}

#[test]
fn a_sinks_refusal_becomes_a_nack() {
    let mut reply = with_workloads(0).on_message(addresses(vec![], vec![]), 0).reply;
    reply.refuse("map full".into());
    assert_eq!(reply.into_request().error_detail.unwrap().message, "map full");
}

#[test]
fn hardening_F13_a_push_that_empties_the_mesh_is_held_until_a_later_stream_says_the_same() {
    let mut s = with_workloads(8);
    let everything = || [uids(0..8), vec!["shop/cart.shop.svc.cluster.local".into()]].concat();
    let received = s.on_message(addresses(vec![], everything()), 1_000);
    assert_eq!(received.changes, []);
    assert_eq!(received.alarms, [Alarm::RemovalSuspended { names: 9 }]);
    assert_eq!((s.suspended(), s.next_timer()), (9, Some(61_000)));

    // A control plane that flaps and repeats itself is no second opinion.
    s.on_end(false);
    assert_eq!(s.on_connected(2_000)[0].initial_resource_versions.len(), 9);
    assert!(s.on_message(addresses(vec![], everything()), 2_100).changes.is_empty());
    assert_eq!(s.on_timer(60_999), Due::default());
    let due = s.on_timer(61_000);
    assert!(due.reconnect && due.changes.is_empty());
    assert!(!s.on_timer(61_001).reconnect);

    s.on_end(false);
    assert_eq!(s.on_connected(61_100)[0].initial_resource_versions.len(), 9);
    let received = s.on_message(addresses(vec![], everything()), 61_200);
    assert_eq!(received.changes.len(), 9);
    assert_eq!(received.alarms, [Alarm::RemovalConfirmed { names: 9 }]);
    assert_eq!((s.suspended(), s.held(ADDRESS_TYPE), s.next_timer()), (0, 0, None));
}

#[test]
fn hardening_F13_what_comes_back_or_is_not_removed_again_stays() {
    let mut s = with_workloads(8);
    s.on_message(addresses(vec![], uids(0..8)), 0);
    assert!(!s.on_message(addresses(vec![workload(0)], vec![]), 10).changes.is_empty());
    assert_eq!(s.suspended(), 7);
    assert!(s.on_timer(60_000).reconnect);
    s.on_end(false);
    s.on_connected(60_100);
    // The new stream removes three: those are gone. When it has been quiet the others are known to exist.
    assert_eq!(s.on_message(addresses(vec![], vec![]), 60_150).changes.len(), 0);
    assert_eq!(s.on_message(addresses(vec![], uids(1..4)), 60_200).changes.len(), 3);
    assert_eq!((s.suspended(), s.held(ADDRESS_TYPE), s.next_timer()), (4, 6, Some(70_200)));
    assert_eq!(s.on_timer(70_200), Due::default());
    assert_eq!((s.suspended(), s.held(ADDRESS_TYPE), s.next_timer()), (0, 6, None));
}

#[test]
fn hardening_F13_a_second_opinion_may_come_after_a_first_empty_answer() {
    let mut s = with_workloads(8);
    s.on_message(addresses(vec![], uids(0..8)), 0);
    assert!(s.on_timer(60_000).reconnect);
    s.on_end(false);
    s.on_connected(60_100);
    assert!(s.on_message(addresses(vec![], vec![]), 60_200).changes.is_empty());
    assert_eq!(s.on_message(addresses(vec![], uids(0..8)), 60_300).changes.len(), 8);
    assert_eq!((s.suspended(), s.held(ADDRESS_TYPE)), (0, 1));
}

#[test]
fn a_first_state_in_parts_is_complete_with_its_last_part() {
    let large = || {
        let mut large = addresses(vec![workload(1)], vec![]);
        large.system_version_info = "x".repeat(LARGE_MESSAGE);
        large
    };
    let mut s = subscription();
    s.on_connected(0);
    s.on_message(policies(vec![]), 0);
    s.on_message(routes(vec![], vec![]), 0);
    nothing_said(&mut s);
    assert_eq!(words(&s.on_message(large(), 100).changes), ["+cart-1"]);
    assert!(!s.is_synced());
    assert_eq!(words(&s.on_message(addresses(vec![workload(2)], vec![]), 200).changes), ["+cart-2", "synced"]);

    let mut alone = subscription();
    alone.on_connected(0);
    alone.on_message(policies(vec![]), 0);
    alone.on_message(routes(vec![], vec![]), 0);
    nothing_said(&mut alone);
    alone.on_message(large(), 100);
    assert_eq!(alone.next_timer(), Some(1_100));
    assert_eq!(alone.on_timer(1_099), Due::default());
    assert_eq!(words(&alone.on_timer(1_100).changes), ["synced"]);
    assert_eq!(alone.next_timer(), None);
}

#[test]
fn ordinary_removals_are_not_held_and_policies_are_guarded_too() {
    let mut s = with_workloads(9);
    assert_eq!(s.on_message(addresses(vec![], uids(0..4)), 0).changes.len(), 4);
    let mut small = with_workloads(3);
    assert_eq!(small.on_message(addresses(vec![], uids(0..3)), 0).changes.len(), 3);

    let names: Vec<String> = (0..6).map(|n| format!("shop/p{n}")).collect();
    s.on_message(policies(names.iter().map(|n| policy_resource(n)).collect()), 0);
    let removed = s.on_message(response(AUTHORIZATION_TYPE, vec![], names), 0);
    assert_eq!((removed.changes.len(), s.suspended()), (0, 6));
}

#[test]
fn a_long_list_is_cut_and_what_a_new_stream_does_not_mention_is_gone() {
    let mut s = Subscription::new(Node::default(), Limits { initial_versions_bytes: 250, ..limits() });
    s.on_connected(0);
    s.on_message(addresses((0..20).map(workload).collect(), vec![]), 0);
    s.on_end(false);
    let listed = s.on_connected(1_000)[0].initial_resource_versions.clone();
    assert!(listed.len() >= 4 && listed.len() < 8, "{}", listed.len());
    let unlisted: Vec<usize> = (0..20).filter(|n| !listed.contains_key(&uid(*n))).collect();
    assert_eq!(s.next_timer(), None);
    // All but two of the unlisted ones are sent again, one of them in a form that cannot be read.
    let (gone, rest) = unlisted.split_at(2);
    let mut sent: Vec<Resource> = rest.iter().map(|n| workload(*n)).collect();
    sent[0].resource.as_mut().unwrap().value = vec![0xff].into();
    s.on_message(addresses(sent, vec![]), 2_000);
    assert_eq!(s.next_timer(), Some(12_000));
    s.on_message(addresses(vec![], vec![]), 5_000);
    assert_eq!(s.on_timer(14_999), Due::default());
    let mut expected: Vec<_> = gone.iter().map(|n| format!("-{}", uid(*n))).collect();
    expected.sort();
    assert_eq!(words(&s.on_timer(15_000).changes), expected);
    assert_eq!((s.next_timer(), s.held(ADDRESS_TYPE)), (None, 18));
}

#[test]
fn a_server_that_refuses_the_size_gets_a_shorter_list() {
    let mut s = Subscription::new(Node::default(), Limits { initial_versions_bytes: 1 << 20, ..limits() });
    s.on_connected(0);
    s.on_message(addresses((0..9000).map(workload).collect(), vec![]), 0);
    let bytes = |s: &mut Subscription| prost::Message::encoded_len(&s.on_connected(1)[0]);
    s.on_end(true);
    assert!(bytes(&mut s) < 400_000);
    s.on_end(true);
    let first = bytes(&mut s);
    assert!(first <= 1 << 18, "{first}");
    s.on_end(true);
    let second = bytes(&mut s);
    assert!(second <= 1 << 16, "{second}");
    s.on_end(false);
    assert_eq!(bytes(&mut s), second);
    // Everything is still held, and nothing is swept before the new stream has spoken.
    assert_eq!((s.held(ADDRESS_TYPE), s.next_timer()), (9000, None));
}

#[test]
fn hardening_B95_odd_nonces_and_versions_lose_nothing() {
    let mut s = with_workloads(2);
    let mut old = workload(0);
    old.version = "0".into();
    for nonce in ["n", "n", "", "older"] {
        let mut again = addresses(vec![old.clone()], vec!["never/existed".into()]);
        again.nonce = nonce.into();
        let received = s.on_message(again, 0);
        assert_eq!(words(&received.changes), ["+cart-0"]);
        assert_eq!(received.reply.into_request().response_nonce, nonce);
    }
    assert_eq!(s.held(ADDRESS_TYPE), 3);
}

#[test]
fn hardening_F11_a_thousand_flaps_send_nothing_twice() {
    let mut s = with_workloads(20);
    for now in 0..1000 {
        s.on_end(false);
        let requests = s.on_connected(now);
        assert_eq!(requests[0].initial_resource_versions.len(), 21);
        assert!(s.on_message(addresses(vec![], vec![]), now).changes.is_empty());
    }
    assert_eq!(s.held(ADDRESS_TYPE), 21);
}

#[test]
fn names_are_shared_with_what_the_store_keeps() {
    let mut s = with_workloads(0);
    let received = s.on_message(addresses(vec![workload(1)], vec![]), 0);
    let Change::Workload(w) = &received.changes[0] else { panic!("a workload") };
    let (name, _) = s.addresses.held.get_key_value(uid(1).as_str()).unwrap();
    assert!(ArcStr::ptr_eq(name, &w.uid));
}

#[test]
fn an_address_that_is_waited_for_is_asked_for_once_and_taken_back() {
    let mut s = with_workloads(2);
    let request = s.on_demand("/198.18.0.9".into(), 1_000).unwrap();
    assert_eq!(
        (request.type_url.as_str(), request.resource_names_subscribe),
        (ADDRESS_TYPE, vec!["/198.18.0.9".to_owned()])
    );
    assert!(request.response_nonce.is_empty() && request.node.is_none(), "neither an answer nor a new stream");
    assert_eq!(s.on_demand("/198.18.0.9".into(), 2_000), None, "asked already");
    // The answer is a resource like any other.
    assert_eq!(words(&s.on_message(addresses(vec![workload(9)], vec![]), 2_000).changes), ["+cart-9"]);
    assert_eq!(s.next_timer(), Some(6_000));
    assert!(s.on_timer(5_999).requests.is_empty());
    let back = s.on_timer(6_000).requests;
    assert_eq!(back.len(), 1);
    assert_eq!(back[0].resource_names_unsubscribe, ["/198.18.0.9"]);
    assert!(s.on_timer(6_000).requests.is_empty() && s.next_timer().is_none());
    assert!(s.on_demand("/198.18.0.9".into(), 6_000).is_some(), "and may be asked again");
}

#[test]
fn questions_are_few_and_end_with_their_stream() {
    let mut s = with_workloads(2);
    let ask = |s: &mut Subscription| (0..1_000).filter(|n| s.on_demand(format!("/198.18.1.{n}"), 0).is_some()).count();
    assert_eq!(ask(&mut s), 8, "until it is known how they are answered");
    s.on_message(addresses(vec![], vec!["/198.18.1.0".into()]), 0);
    assert_eq!(ask(&mut s), 256 - 8);
    s.on_end(false);
    s.on_connected(1);
    assert_eq!(s.on_demand("/198.18.1.1".into(), 1), None, "the first answer is on its way");
    s.on_message(addresses(vec![], vec![]), 2);
    assert!(s.on_demand("/198.18.1.1".into(), 2).is_some());
}

/// Istiod answers each question with its whole state, and says that there is no resource of the name that was asked for.
#[test]
fn hardening_F13_a_control_plane_that_answers_with_everything_is_asked_no_more() {
    let everything = || (0..100).map(workload).collect::<Vec<_>>();
    let mut s = with_workloads(100);
    // An ordinary push, however large, is no answer.
    s.on_demand("/198.18.1.1".into(), 0).unwrap();
    s.on_message(addresses(everything(), vec![]), 0);
    s.on_demand("/198.18.1.2".into(), 0).unwrap();
    let answer = s.on_message(addresses(everything(), vec!["/198.18.1.1".into()]), 1);
    assert_eq!(answer.changes.len(), 100, "it is applied all the same, and removes nothing");
    assert_eq!(s.on_demand("/198.18.1.3".into(), 2), None);
    assert!(s.on_timer(60_000).requests.is_empty(), "nothing is taken back: that is answered in the same way");
    // Nor on the next stream.
    s.on_end(false);
    s.on_connected(60_001);
    s.on_message(addresses(vec![], vec![]), 60_002);
    assert_eq!(s.on_demand("/198.18.1.3".into(), 60_003), None);
}

/// A pod that walks through addresses must not keep the stream from ever being quiet.
#[test]
fn hardening_F13_answers_that_nobody_is_there_are_no_news() {
    let mut s = Subscription::new(Node::default(), Limits { initial_versions_bytes: 0, ..limits() });
    s.on_connected(0);
    s.on_message(addresses((0..20).map(workload).collect(), vec![]), 0);
    s.on_message(policies(vec![]), 0);
    s.on_end(false);
    // No name fits into the request, so they are settled by silence.
    s.on_connected(1_000);
    s.on_message(addresses((0..18).map(workload).collect(), vec![]), 1_000);
    let settled = s.next_timer().unwrap();
    s.on_demand("/198.18.1.1".into(), 5_000).unwrap();
    let answer = s.on_message(addresses(vec![], vec!["/198.18.1.1".into()]), 6_000);
    assert!(answer.changes.is_empty());
    s.on_timer(10_000);
    assert_eq!(s.next_timer(), Some(settled));
    // What is not only such an answer is news.
    s.on_message(addresses(vec![workload(0)], vec![]), 10_500);
    assert_eq!(s.next_timer(), Some(20_500));
}

#[test]
fn who_says_nothing_of_routes_is_waited_for_a_second() {
    let mut s = subscription();
    s.on_connected(0);
    s.on_message(addresses(vec![workload(1)], vec![]), 100);
    assert_eq!(s.next_timer(), None);
    assert!(s.on_message(policies(vec![]), 200).changes.is_empty());
    assert_eq!(s.next_timer(), Some(1_200));
    // What else there is to do does not put it off.
    assert_eq!(words(&s.on_message(addresses(vec![workload(2)], vec![]), 900).changes), ["+cart-2"]);
    assert_eq!(s.on_timer(1_199), Due::default());
    assert_eq!(words(&s.on_timer(1_200).changes), ["synced"]);
    assert_eq!(s.next_timer(), None);
    // Who answers after all is heard.
    let late = s.on_message(routes(vec![route("cart", "cart-v2")], vec![]), 2_000);
    assert_eq!(words(&late.changes), ["+shop/cart->shop/cart-v2"]);
}

#[test]
fn who_answers_one_of_our_types_answers_all_and_is_waited_for() {
    let mut s = subscription();
    s.on_connected(0);
    s.on_message(addresses(vec![workload(1)], vec![]), 0);
    s.on_message(policies(vec![]), 0);
    assert_eq!(s.next_timer(), Some(1_000));
    let outside = || response(OUTBOUND_TYPE, vec![], vec![]);
    assert_eq!(words(&s.on_message(outside(), 100).changes), ["outbound known"]);
    assert_eq!(s.next_timer(), None, "nothing is due before the next answer");
    assert_eq!(s.on_timer(5_000), Due::default());
    assert!(words(&s.on_message(outside(), 5_000).changes).is_empty(), "told once");
    for type_url in [CLUSTERS_TYPE, WORKLOAD_LABELS_TYPE] {
        assert!(words(&s.on_message(response(type_url, vec![], vec![]), 5_000).changes).is_empty(), "{type_url}");
    }
    assert_eq!(words(&s.on_message(routes(vec![], vec![]), 5_000).changes), ["synced"]);
}

#[test]
fn routes_that_cannot_be_read_refuse_connections() {
    let mut s = with_workloads(1);
    let good = || route("cart", "cart-v2");
    let body = |value: Vec<u8>, type_url: &str| Some(Any { type_url: type_url.into(), value: value.into() });
    let changed = |change: &dyn Fn(&mut Resource)| {
        let mut resource = good();
        change(&mut resource);
        resource
    };
    let part_of = |rules: Vec<Vec<u8>>| {
        use mesh_proto::wire::l4;
        use prost::Message;
        let group = l4::Group { rules, ..Default::default() };
        l4::ConnectionRoutes { service: "shop/cart".into(), groups: vec![group] }.encode_to_vec()
    };
    for (name, bad) in [
        ("bytes", changed(&|r| r.resource = body(vec![0xff], CONNECTION_ROUTES_TYPE))),
        ("nothing", changed(&|r| r.resource = None)),
        ("type", changed(&|r| r.resource = body(vec![], ADDRESS_TYPE))),
        ("another's", changed(&|r| r.resource = route("other", "cart-v2").resource)),
        ("a rule", changed(&|r| r.resource = body(part_of(vec![vec![0xff]]), CONNECTION_ROUTES_TYPE))),
    ] {
        assert_eq!(words(&s.on_message(routes(vec![good()], vec![]), 0).changes), ["+shop/cart->shop/cart-v2"]);
        let received = s.on_message(routes(vec![bad], vec![]), 0);
        assert_eq!(words(&received.changes), ["+shop/cart closed"], "{name}");
        assert!(received.reply.into_request().error_detail.is_some(), "{name}");
        // It is held as something that the control plane has to send again.
        s.on_end(false);
        assert_eq!(s.on_connected(0)[3].initial_resource_versions["shop/cart"], "refused", "{name}");
    }
    assert_eq!(words(&s.on_message(routes(vec![], vec!["shop/cart".into()]), 0).changes), ["-shop/cart"]);
    assert_eq!(s.held(CONNECTION_ROUTES_TYPE), 0);
}

#[test]
fn features_SB_3_what_cannot_be_read_of_the_outside_lets_nothing_go_there() {
    let mut s = with_workloads(1);
    let bytes = |registry_only| {
        convert::encode_outbound(&mesh_core::outbound::Outbound { registry_only, origin: "Sidecar shop/a".into() })
    };
    let mut told = |name: &str, bytes: Vec<u8>, type_url: &str| {
        let mut one = resource(OUTBOUND_TYPE, name.into(), bytes);
        one.resource.as_mut().unwrap().type_url = type_url.into();
        let received = s.on_message(response(OUTBOUND_TYPE, vec![one], vec![]), 0);
        (words(&received.changes), received.reply.into_request().error_detail.is_some())
    };
    let only = |name: &str| vec![format!("+{name} only")];
    assert_eq!(told("mesh", bytes(true), OUTBOUND_TYPE), (only("mesh"), false));
    assert_eq!(told("namespace/shop", bytes(false), OUTBOUND_TYPE), (vec!["+namespace/shop any".into()], false));
    assert_eq!(told("namespace/shop", vec![0xff], OUTBOUND_TYPE), (only("namespace/shop"), true));
    assert_eq!(told("workload/a//b", bytes(false), ADDRESS_TYPE), (only("workload/a//b"), true));
    assert_eq!(told("pod/a", bytes(false), OUTBOUND_TYPE), (vec![], true));
    let gone = s.on_message(response(OUTBOUND_TYPE, vec![], vec!["mesh".into()]), 0);
    assert_eq!(words(&gone.changes), ["-mesh"]);
}

#[test]
fn an_agent_is_told_of_places_by_service_and_of_labels() {
    let mut s = with_workloads(1);
    let name = "shop/cart.shop.svc.cluster.local";
    let key = ClusterKey { service: name.parse().unwrap(), port: 80, subset: "v1".into() };
    let bytes = |name: &str| {
        let cluster = Cluster { policy: Ok(Default::default()), ..Cluster::closed(key.clone(), "") };
        convert::encode_clusters(name, &Clusters::new([cluster]))
    };
    let of = |value: Vec<u8>| response(CLUSTERS_TYPE, vec![resource(CLUSTERS_TYPE, name.into(), value)], vec![]);
    assert_eq!(words(&s.on_message(of(bytes(name)), 0).changes), [format!("+{name} 1")]);
    for bad in [vec![0xff], bytes("shop/other"), bytes("nothing")] {
        let received = s.on_message(of(bad), 0);
        assert!(received.changes.is_empty() && received.reply.into_request().error_detail.is_some());
    }
    let gone = response(CLUSTERS_TYPE, vec![], vec![name.into()]);
    assert_eq!(words(&s.on_message(gone, 0).changes), [format!("-{name}")]);
    let labels = convert::encode_workload_labels("w", &[("version".into(), "v1".into())].into());
    let labels = response(WORKLOAD_LABELS_TYPE, vec![resource(WORKLOAD_LABELS_TYPE, "w".into(), labels)], vec![]);
    let received = s.on_message(labels, 0);
    assert_eq!((words(&received.changes), received.own), (vec!["1 labels".to_owned()], None));
    let gone = response(WORKLOAD_LABELS_TYPE, vec![], vec!["w".into()]);
    assert_eq!(words(&s.on_message(gone, 0).changes), ["1 labels"]);
    assert_eq!(s.on_connected(1).len(), 6);
    // A waypoint has its own instead.
    let mut waypoint = subscription().with_own(Some("shop/waypoint"));
    let asked = waypoint.on_connected(0).into_iter().filter(|request| request.type_url == CLUSTERS_TYPE);
    assert_eq!(asked.map(|request| request.resource_names_subscribe).collect::<Vec<_>>(), [["shop/waypoint"]]);
}
