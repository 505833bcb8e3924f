//! One service with every kind of rule; each connection with where it goes.

use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;

fn to(service: &str, weight: u32) -> Place {
    let key = ClusterKey { service: NamespacedName::new("shop", service), port: 9000, subset: ArcStr::new() };
    Place { target: Target::Cluster(key), weight }
}

fn rule(origin: &str, conditions: Vec<Condition>, places: Vec<Place>) -> Rule {
    Rule { origin: origin.into(), conditions, split: Split::new(places).unwrap() }
}

fn routes(groups: Vec<Group>) -> ConnectionRoutes {
    ConnectionRoutes { service: NamespacedName::new("shop", "echo"), groups }
}

fn ask(namespace: &'static str, port: u16, server_name: ServerName<'static>) -> Ask<'static> {
    Ask { address: "198.19.0.1".parse().unwrap(), port, namespace, labels: None, server_name }
}

fn say(routes: &ConnectionRoutes, ask: &Ask<'_>) -> String {
    match routes.choose(ask, &mut StdRng::seed_from_u64(1)) {
        Choice::Own => "own".to_owned(),
        Choice::Look => "look".to_owned(),
        Choice::To(key) => key.service.name.to_string(),
        Choice::Closed(origin, why) => format!("{origin}: {why}"),
    }
}

fn names(all: &[&str]) -> Condition {
    Condition {
        server_names: all.iter().map(|name| HostPattern::parse(name).unwrap()).collect(),
        ..Condition::default()
    }
}

#[test]
fn each_connection_has_one_rule() {
    let mut subnet = Condition { port: Some(9001), ..Condition::default() };
    subnet.destinations = vec!["198.19.0.0/24".parse().unwrap()];
    let elsewhere = Condition { destinations: vec!["198.19.9.0/24".parse().unwrap()], ..Condition::default() };
    let from_test = Condition { source_namespace: Some("test".into()), ..Condition::default() };
    let istio = Group {
        falls_through: true,
        rules: vec![
            rule("a", vec![elsewhere], vec![to("never", 1)]),
            rule("b", vec![subnet], vec![to("by-port", 1)]),
            rule("c", vec![from_test], vec![to("by-namespace", 1)]),
            Rule {
                split: Split::closed("no such host"),
                ..rule("d", vec![Condition { port: Some(9002), ..Condition::default() }], vec![])
            },
            rule("e", vec![Condition { port: Some(9003), ..Condition::default() }], vec![to("zero", 0)]),
        ],
        ..Group::default()
    };
    let consumer = Group {
        clients: Some(vec!["client".into()]),
        ports: vec![9001],
        rules: vec![rule("f", vec![names(&["a.example", "*.b.example"])], vec![to("consumer", 1)])],
        ..Group::default()
    };
    let routes = routes(vec![consumer, istio]);
    let (unread, absent, is) = (ServerName::Unread, ServerName::Absent, ServerName::Is);
    for (asked, expected) in [
        (ask("shop", 9000, unread), "own"),
        (ask("shop", 9001, unread), "by-port"),
        (ask("test", 9000, unread), "by-namespace"),
        (ask("shop", 9002, unread), "d: no such host"),
        (ask("shop", 9003, unread), "e: it has no place with a weight"),
        // Another group's port, and the client sees the next group.
        (ask("client", 9000, unread), "own"),
        (ask("client", 9001, unread), "look"),
        (ask("client", 9001, is("a.example")), "consumer"),
        (ask("client", 9001, is("x.b.example")), "consumer"),
        (ask("client", 9001, is("b.example")), ": no rule of the routes of this service means it"),
        (ask("client", 9001, absent), ": no rule of the routes of this service means it"),
    ] {
        assert_eq!(say(&routes, &asked), expected, "{asked:?}");
    }
}

#[test]
fn a_name_is_looked_for_only_where_it_may_decide() {
    let by_name = Condition { port: Some(443), ..names(&["a.example"]) };
    let group = Group {
        falls_through: true,
        rules: vec![
            rule(
                "tls",
                vec![by_name.clone(), Condition { port: Some(444), ..Condition::default() }],
                vec![to("one", 1)],
            ),
            rule("tcp", vec![], vec![to("two", 1)]),
        ],
        ..Group::default()
    };
    let routes = routes(vec![group]);
    for (port, server_name, expected) in [
        (443, ServerName::Unread, "look"),
        (443, ServerName::Is("a.example"), "one"),
        (443, ServerName::Absent, "two"),
        (444, ServerName::Unread, "one"),
        (445, ServerName::Unread, "two"),
    ] {
        assert_eq!(say(&routes, &ask("shop", port, server_name)), expected, "{port} {server_name:?}");
    }
}

#[test]
fn weights_decide_how_often() {
    let group =
        Group { rules: vec![rule("w", vec![], vec![to("one", 80), to("none", 0), to("two", 20)])], ..Group::default() };
    let (routes, mut rng) = (routes(vec![group]), StdRng::seed_from_u64(7));
    let mut two = 0;
    for _ in 0..10_000 {
        match routes.choose(&ask("shop", 1, ServerName::Unread), &mut rng) {
            Choice::To(key) if key.service.name == "two" => two += 1,
            Choice::To(key) => assert_eq!(key.service.name, "one"),
            other => panic!("{other:?}"),
        }
    }
    assert!((1_800..2_200).contains(&two), "{two}");
    let huge = vec![to("one", u32::MAX), to("two", 1)];
    assert_eq!(Split::new(huge), Err(WeightOverflow(4_294_967_296)));
}

/// Labels that nobody knows are none: what is for some clients only is for no others.
#[test]
fn features_VS_21_a_rule_for_clients_by_their_labels_is_for_no_others() {
    let labels = |text: &str| -> Labels {
        text.split_terminator(',').filter_map(|pair| pair.split_once('=')).map(|(k, v)| (k.into(), v.into())).collect()
    };
    let mut web = Condition { source_labels: labels("app=web,tier=front"), ..Condition::default() };
    web.source_namespace = Some("shop".into());
    let rules = vec![rule("a", vec![web], vec![to("for-web", 1)]), rule("b", vec![], vec![to("for-all", 1)])];
    let routes = routes(vec![Group { falls_through: true, rules, ..Group::default() }]);
    for (namespace, own, expected) in [
        ("shop", Some("app=web,tier=front,v=1"), "for-web"),
        ("shop", Some("app=web"), "for-all"),
        ("shop", Some("app=web,tier=back"), "for-all"),
        ("blog", Some("app=web,tier=front"), "for-all"),
        ("shop", None, "for-all"),
    ] {
        let own = own.map(labels);
        let ask = Ask { labels: own.as_ref(), ..ask(namespace, 9000, ServerName::Absent) };
        assert_eq!(say(&routes, &ask), expected, "{namespace} {own:?}");
    }
}
