//! Connections that are no HTTP, on real sockets: where routes of connections lead them.
#![allow(clippy::unwrap_used, non_snake_case, reason = "tests carry the ids of the rows that they prove")]

mod support;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use mesh_core::Change;
use mesh_core::l4::{Condition, ConnectionRoutes, Group, Place, Rule as Route, Split};
use mesh_core::l7::{Cluster, ClusterKey, Clusters, HostPattern, Table, Target, cluster::Policy};
use mesh_core::service::AppProtocol;
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const ASK: &str = "10.96.0.11:80";

/// A server that says its name as soon as anybody connects, then how much it has heard.
async fn greeter(name: &'static str) -> SocketAddr {
    let listener = listener().await;
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut tcp, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let _ = tcp.write_all(name.as_bytes()).await;
                let mut heard = Vec::new();
                let _ = tcp.read_to_end(&mut heard).await;
                let _ = tcp.write_all(format!(" {}", heard.len()).as_bytes()).await;
            });
        }
    });
    address
}

fn split(places: &[(ClusterKey, u32)]) -> Split {
    let place = |(key, weight): &(ClusterKey, u32)| Place { target: Target::Cluster(key.clone()), weight: *weight };
    Split::new(places.iter().map(place).collect()).unwrap()
}

fn route(conditions: Vec<Condition>, split: Split) -> Route {
    Route { origin: "TCPRoute shop/a".into(), conditions, split }
}

fn named(names: &[&str]) -> Vec<Condition> {
    let server_names = names.iter().map(|name| HostPattern::parse(name).unwrap()).collect();
    vec![Condition { server_names, ..Condition::default() }]
}

/// What is said of connections to `a`.
fn say(waypoint: &mut Waypoint, falls_through: bool, rules: Vec<Route>) {
    let group = Group { falls_through, rules, ..Group::default() };
    let change = Change::Connections(ConnectionRoutes { service: name("a"), groups: vec![group] });
    waypoint.state.set_snapshot(waypoint.store.apply(vec![change]).snapshot);
}

async fn start(protocol: AppProtocol) -> Waypoint {
    let mut backends = Vec::new();
    for (name, vip) in [("a", "10.96.0.11"), ("one", "10.96.0.12"), ("two", "10.96.0.13")] {
        backends.push(Backend::new(name, vip, &[greeter(name).await]).speaking(protocol));
    }
    Waypoint::start(&backends, Table::default()).await
}

/// What comes back over a connection in which this is said; nothing if it is cut.
async fn say_to(waypoint: &Waypoint, bytes: &[u8]) -> String {
    let mut stream = soon("stream", waypoint.stream(ASK)).await.unwrap();
    if stream.write_all(bytes).await.is_err() || stream.shutdown().await.is_err() {
        return String::new();
    }
    let mut heard = String::new();
    match soon("end", stream.read_to_string(&mut heard)).await {
        Ok(_) => heard,
        Err(_) => String::new(),
    }
}

#[tokio::test]
async fn features_B7_connections_are_shared_by_weight_also_behind_a_waypoint() {
    let mut waypoint = start(AppProtocol::Tcp).await;
    assert_eq!(say_to(&waypoint, b"abc").await, "a 3");
    say(&mut waypoint, true, vec![route(vec![], split(&[(cluster("one"), 4), (cluster("two"), 1)]))]);
    let mut counts = BTreeMap::new();
    for _ in 0..100 {
        *counts.entry(say_to(&waypoint, b"abc").await).or_insert(0) += 1;
    }
    let (one, two) = (counts["one 3"], counts["two 3"]);
    assert!(one + two == 100 && (5..=40).contains(&two), "{counts:?}");
    say(&mut waypoint, true, vec![route(vec![], Split::closed("no such host"))]);
    assert_eq!(say_to(&waypoint, b"abc").await, "");
    let gone = Change::RemoveConnections(name("a"));
    waypoint.state.set_snapshot(waypoint.store.apply(vec![gone]).snapshot);
    assert_eq!(say_to(&waypoint, b"abc").await, "a 3");
}

#[tokio::test]
async fn tls_goes_by_its_name_untouched() {
    let mut waypoint = start(AppProtocol::Tls).await;
    say(&mut waypoint, true, vec![route(named(&["*.b.example"]), split(&[(cluster("two"), 1)]))]);
    let (ours, other) = (hello("x.b.example"), hello("other.example"));
    assert_eq!(say_to(&waypoint, &ours).await, format!("two {}", ours.len()));
    assert_eq!(say_to(&waypoint, &other).await, format!("a {}", other.len()));
    assert_eq!(say_to(&waypoint, b"no tls").await, "a 6");
    say(&mut waypoint, false, vec![route(named(&["x.b.example"]), split(&[(cluster("two"), 1)]))]);
    assert_eq!(say_to(&waypoint, &ours).await, format!("two {}", ours.len()));
    assert_eq!(say_to(&waypoint, &other).await, "", "no TLSRoute has the name");
}

#[tokio::test]
async fn subsets_of_services_are_places_of_connections_too() {
    let mut waypoint = start(AppProtocol::Tcp).await;
    let key = ClusterKey { subset: "v2".into(), ..cluster("one") };
    say(&mut waypoint, true, vec![route(vec![], split(&[(key.clone(), 1)]))]);
    assert_eq!(say_to(&waypoint, b"x").await, "", "nobody may guess who is of a subset");
    let labels: mesh_core::l7::Labels = [("version".into(), "v2".into())].into();
    let subset = Cluster { labels: labels.clone(), policy: Ok(Policy::default()), ..Cluster::closed(key, "") };
    waypoint.state.set_clusters(Arc::new(Clusters::new([subset])));
    assert_eq!(say_to(&waypoint, b"x").await, "");
    waypoint.state.set_labels(vec![("c//Pod/shop/one-0".into(), Some(Arc::new(labels)))]);
    assert_eq!(say_to(&waypoint, b"x").await, "one 1");
}

#[tokio::test]
async fn features_DR_5_connections_of_one_address_go_to_one_endpoint() {
    let all = [greeter("one").await, greeter("two").await, greeter("three").await];
    let waypoint =
        Waypoint::start(&[Backend::new("a", "10.96.0.11", &all).speaking(AppProtocol::Tcp)], Table::default()).await;
    let count = async || different(async || say_to(&waypoint, b"x").await).await;
    assert!(count().await > 1);
    waypoint.state.set_clusters(by_source("a"));
    assert_eq!(count().await, 1);
}

#[tokio::test]
async fn a_route_for_connections_takes_requests_too_if_no_other_route_is_for_them() {
    let mut waypoint = start(AppProtocol::Unknown).await;
    let request = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    let one = || vec![route(vec![], split(&[(cluster("one"), 1)]))];
    say(&mut waypoint, false, one());
    assert_eq!(say_to(&waypoint, request).await, format!("one {}", request.len()));
    assert_eq!(say_to(&waypoint, b"EHLO a\r\n").await, "one 8");
    waypoint.state.set_table(Arc::new(table("a", vec![rule(to("a"))])));
    assert!(!say_to(&waypoint, request).await.starts_with("one"));
    assert_eq!(say_to(&waypoint, b"EHLO a\r\n").await, "one 8");
}

/// `resolution: NONE`: whoever asks for an address of the service's range comes to that address.
#[tokio::test]
async fn features_SE_5_where_the_address_is_left_to_the_client_it_is_passed_on() {
    let Some(own) = outer() else { return skipped("passed on", "this machine has no address but loopback") };
    let tcp = tokio::net::TcpListener::bind((own, 0)).await.unwrap();
    let port = tcp.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut tcp, _) = tcp.accept().await.unwrap();
            tokio::spawn(async move {
                let mut heard = [0; 4];
                let _ = tcp.read_exact(&mut heard).await;
                let answer = if heard == *b"GET " {
                    &b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nhi"[..]
                } else {
                    b"bytes"
                };
                let _ = tcp.write_all(answer).await;
            });
        }
    });
    for (protocol, expected) in [(AppProtocol::Http11, "200 OK"), (AppProtocol::Tcp, "bytes")] {
        let mut waypoint = Waypoint::start(&[], Table::default()).await;
        let mut changes = Backend::new("a", "10.96.0.11", &[]).speaking(protocol).changes();
        for change in &mut changes {
            if let Change::Service(service) = change {
                service.hostname = "db.example.com".into();
                service.load_balancing.mode = mesh_core::service::Mode::Passthrough;
                service.addresses[0].cidr = ipnet::IpNet::from(own);
                service.ports[0].service_port = port;
                service.ports[0].target_port = port;
            }
        }
        waypoint.state.set_snapshot(waypoint.store.apply(changes).snapshot);
        let first: &[u8] = match protocol {
            AppProtocol::Tcp => b"data",
            _ => b"GET / HTTP/1.1\r\nhost: db.example.com\r\nconnection: close\r\n\r\n",
        };
        let answer = waypoint.raw(&format!("{own}:{port}"), first).await;
        assert!(answer.contains(expected), "{protocol:?}: {answer:?}");
    }
}
