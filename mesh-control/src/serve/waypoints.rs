//! Sessions of waypoints by script: each is sent its own routes, after the addresses that they name.

use std::sync::Arc;

use mesh_core::NamespacedName;
use mesh_core::l4::ConnectionRoutes;
use mesh_core::l7::cluster::Policy;
use mesh_core::l7::{Cluster, ClusterKey, Clusters, Table, VirtualHost};

use super::tests::{Script, view};
use crate::index::View;
use crate::world::{Audience, Kind};

/// With tables: gateway, and what its host is called.
fn with(view: View, tables: &[(&str, &str)]) -> View {
    let table = |name: &str, host: &str| {
        let host = VirtualHost { name: host.into(), ..VirtualHost::default() };
        Arc::new(Table::new(name, vec![Arc::new(host)]))
    };
    let named = |name: &str| NamespacedName::new("shop", name);
    let tables = tables.iter().map(|(name, host)| (named(name), table(name, host))).collect();
    View { tables, ..view }
}

fn waypoint(name: &str) -> Audience {
    Audience::Waypoint(format!("shop/{name}").into())
}

fn two(host: &str) -> View {
    with(view(&[("a", "198.18.0.1")], &[], &[]), &[("one", host), ("two", "x")])
}

#[test]
fn a_waypoint_is_sent_its_own_routes_and_no_other_s_whatever_it_asks_for() {
    let subscribe = |names: &'static [&'static str]| {
        move |r: &mut mesh_proto::discovery::DeltaDiscoveryRequest| {
            r.resource_names_subscribe = names.iter().map(|n| (*n).to_owned()).collect();
        }
    };
    let mut all = Script::of(&two("x"), waypoint("one"));
    assert_eq!(all.open(Kind::RouteTable), ["routetable +shop/one"]);
    for (names, answer) in [
        (&["*"][..], "routetable +shop/one"),
        (&["shop/one"], "routetable +shop/one"),
        (&["shop/two"], "routetable -shop/two"),
        (&["one"], "routetable -one"),
        (&["shop/one", "shop/two"], "routetable +shop/one -shop/two"),
    ] {
        let mut script = Script::of(&two("x"), waypoint("one"));
        assert_eq!(script.ask(subscribe(names), Kind::RouteTable), [answer], "{names:?}");
    }
    // Who says that it has another's is told that there is none.
    let mut script = Script::of(&two("x"), waypoint("one"));
    let has = |r: &mut mesh_proto::discovery::DeltaDiscoveryRequest| {
        r.initial_resource_versions = [("shop/two".to_owned(), "1".to_owned())].into();
    };
    assert_eq!(script.ask(has, Kind::RouteTable), ["routetable +shop/one -shop/two"]);
    assert_eq!(Script::of(&two("x"), waypoint("none")).open(Kind::RouteTable), ["routetable"]);
    // An agent asks for a type that it is not served.
    let mut agent = Script::of(&two("x"), Audience::Agent);
    assert_eq!(agent.ask(subscribe(&["shop/one"]), Kind::RouteTable), ["routetable"]);
    assert_eq!(agent.ask(subscribe(&["*"]), Kind::RouteTable), [""; 0]);
    assert_eq!(agent.update(&two("y")), [""; 0]);
}

#[test]
fn a_change_of_its_routes_is_sent_and_another_s_is_not() {
    let mut script = Script::of(&two("x"), waypoint("one"));
    script.open(Kind::RouteTable);
    script.ack(Kind::RouteTable);
    assert_eq!(script.update(&with(two("x"), &[("one", "x"), ("two", "y")])), [""; 0]);
    assert_eq!(script.update(&two("y")), ["routetable +shop/one"]);
    script.ack(Kind::RouteTable);
    assert_eq!(script.update(&two("y")), [""; 0]);
    assert_eq!(script.update(&with(two("y"), &[("two", "x")])), ["routetable -shop/one"]);
}

#[test]
fn routes_come_after_the_addresses_that_they_name() {
    let mut script = Script::of(&two("x"), waypoint("one"));
    for kind in Kind::ALL {
        script.open(kind);
        script.ack(kind);
    }
    assert!(script.session.knows_all());
    // The first change is under way; of the second nothing is sent before it is answered.
    let changed = |host: &str| with(view(&[("b", "198.18.0.2")], &[], &[]), &[("one", host)]);
    assert_eq!(script.update(&changed("y")), ["address +b -a", "routetable +shop/one"]);
    let third = with(view(&[("c", "198.18.0.3")], &[], &[]), &[("one", "z")]);
    script.ack(Kind::RouteTable);
    assert_eq!(script.update(&third), [""; 0]);
    assert_eq!(script.ack(Kind::Address), ["address +c -b", "routetable +shop/one"]);
}

#[test]
fn places_come_before_the_routes_that_name_them() {
    let with_place = |host: &str, port: u16| {
        let key = ClusterKey { service: NamespacedName::new("shop", "cart"), port, subset: "v1".into() };
        let cluster = Cluster { policy: Ok(Policy::default()), ..Cluster::closed(key, "") };
        let clusters = [(NamespacedName::new("shop", "one"), Arc::new(Clusters::new([cluster])))].into();
        View { clusters, ..two(host) }
    };
    let mut script = Script::of(&with_place("x", 80), waypoint("one"));
    // Whatever is asked for first: routes wait for nothing that was not asked for.
    assert_eq!(script.open(Kind::RouteTable), ["routetable +shop/one"]);
    assert_eq!(script.open(Kind::Clusters), ["clusters +shop/one"]);
    for kind in [Kind::RouteTable, Kind::Clusters] {
        script.ack(kind);
    }
    assert_eq!(script.update(&with_place("y", 81)), ["clusters +shop/one", "routetable +shop/one"]);
    script.ack(Kind::RouteTable);
    assert_eq!(script.update(&with_place("z", 82)), [""; 0], "the places of before are not acknowledged");
    assert_eq!(script.ack(Kind::Clusters), ["clusters +shop/one", "routetable +shop/one"]);
    assert_eq!(Script::of(&with_place("x", 80), waypoint("two")).open(Kind::Clusters), ["clusters"]);
    assert_eq!(Script::of(&with_place("x", 80), Audience::Agent).open(Kind::Clusters), ["clusters"]);
}

#[test]
fn routes_of_connections_are_everybody_s_and_come_after_addresses() {
    let routed = |address: &str, services: &[&str]| {
        let routes = services.iter().map(|name| NamespacedName::new("shop", *name));
        let routes = routes.map(|service| (service.clone(), Arc::new(ConnectionRoutes { service, groups: vec![] })));
        View { connections: routes.collect(), ..view(&[("a", address)], &[], &[]) }
    };
    for audience in [Audience::Agent, waypoint("one")] {
        let mut script = Script::of(&routed("198.18.0.1", &["x"]), audience);
        for kind in [Kind::Authorization, Kind::Address] {
            script.open(kind);
            script.ack(kind);
        }
        assert_eq!(script.update(&routed("198.18.0.2", &["x"])), ["address +a"], "nobody has asked for routes");
        script.ack(Kind::Address);
        assert_eq!(script.open(Kind::Connections), ["connectionroutes +shop/x"]);
        script.ack(Kind::Connections);
        let next = routed("198.18.0.3", &["y"]);
        assert_eq!(script.update(&next), ["address +a", "connectionroutes +shop/y -shop/x"]);
        script.ack(Kind::Connections);
        assert_eq!(script.update(&routed("198.18.0.4", &["x"])), [""; 0], "addresses are not acknowledged");
        assert_eq!(script.ack(Kind::Address), ["address +a", "connectionroutes +shop/x -shop/y"]);
    }
    // Agents that are not ours never ask.
    let mut ztunnel = Script::of(&routed("198.18.0.1", &["x"]), Audience::Agent);
    for kind in [Kind::Authorization, Kind::Address] {
        assert!(!ztunnel.session.knows_all());
        ztunnel.open(kind);
    }
    assert!(ztunnel.session.knows_all());
}
