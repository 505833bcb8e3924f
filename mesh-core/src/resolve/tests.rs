//! One mesh with everything in it; each destination with its route.

use std::sync::Arc;

use rand::{SeedableRng, rngs::StdRng};

use super::*;
use crate::{
    Change, GatewayAddress, Store,
    service::{LoadBalancing, ServiceAddress, ServicePort},
    workload::{GatewayDestination, NetworkMode, PortMapping, TunnelProtocol},
};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn workload(name: &str, address: &str, protocol: TunnelProtocol, service: Option<&str>) -> Workload {
    let mut workload = Workload::new(format!("c//Pod/shop/{name}"), "shop", name);
    workload.addresses = vec![ip(address)];
    workload.protocol = protocol;
    workload.service_account = name.split('-').next().unwrap().into();
    if let Some(service) = service {
        let ports = vec![PortMapping { service_port: 80, target_port: 8080 }];
        workload.services = Arc::new([(key(service), ports)].into());
    }
    workload
}

fn key(service: &str) -> NamespacedName {
    NamespacedName::new("shop", format!("{service}.shop.svc.cluster.local"))
}

fn service(name: &str, addresses: &[&str]) -> Service {
    let mut service = Service::new("shop", name, format!("{name}.shop.svc.cluster.local"));
    let cidr = |text: &&str| text.parse().unwrap_or_else(|_| ip(text).into());
    service.addresses = addresses.iter().map(|a| ServiceAddress { network: "".into(), cidr: cidr(a) }).collect();
    service.ports = vec![ServicePort { service_port: 80, target_port: 0, app_protocol: Default::default() }];
    service
}

fn waypoint() -> Option<GatewayAddress> {
    Some(GatewayAddress { destination: GatewayDestination::Service(key("waypoint")), hbone_port: 15008 })
}

fn mesh() -> Store {
    use TunnelProtocol::{Hbone, None as Plain};
    let mut store = Store::new();
    let through = Service { waypoint: waypoint(), ..service("l7", &["198.19.0.4"]) };
    let external = Service {
        load_balancing: LoadBalancing { mode: Mode::Passthrough, ..Default::default() },
        ..service("external", &["198.19.0.5"])
    };
    let remote = Workload { network_gateway: waypoint(), ..workload("remote-1", "198.18.0.8", Hbone, None) };
    let host = workload("host-1", "198.18.3.1", Hbone, Some("hostnet"));
    store.apply(vec![
        Change::Ranges(vec!["198.18.0.0/16".parse().unwrap(), "fd00:198::/48".parse().unwrap()]),
        Change::Workload(workload("cart-1", "198.18.0.1", Hbone, Some("cart"))),
        Change::Workload(workload("plain-1", "198.18.0.2", Plain, Some("plain"))),
        Change::Workload(workload("l7-1", "198.18.0.3", Hbone, Some("l7"))),
        Change::Workload(Workload { waypoint: waypoint(), ..workload("wp-1", "198.18.0.4", Hbone, None) }),
        Change::Workload(remote),
        Change::Workload(Workload { network_mode: NetworkMode::HostNetwork, ..host }),
        Change::Service(service("cart", &["198.19.0.1", "fd00:199::1"])),
        Change::Service(service("plain", &["198.19.0.2"])),
        Change::Service(service("empty", &["198.19.0.3"])),
        Change::Service(service("ranged", &["198.19.8.0/24"])),
        Change::Service(service("hostnet", &["198.19.0.6"])),
        Change::Service(through),
        Change::Service(external),
        Change::Synced,
    ]);
    store
}

fn ask(snapshot: &Snapshot, destination: &str, tried: &[ArcStr]) -> Result<Route, Refusal> {
    let source = Client { ips: vec![ip("198.18.0.99")], ..Client::default() };
    let request = Request { source: &source, destination: destination.parse().unwrap(), now_ms: 0, tried };
    resolve(snapshot, &request, &mut StdRng::seed_from_u64(1))
}

#[test]
fn each_destination_has_one_route() {
    let snapshot = mesh().snapshot();
    for (destination, expected) in [
        ("198.18.0.1:9000", "HBONE to 198.18.0.1:9000 (c//Pod/shop/cart-1)"),
        ("[::ffff:198.18.0.1]:9000", "HBONE to 198.18.0.1:9000 (c//Pod/shop/cart-1)"),
        ("198.18.0.2:9000", "plain TCP to 198.18.0.2:9000 (c//Pod/shop/plain-1)"),
        ("198.19.0.1:80", "HBONE to 198.18.0.1:8080 (c//Pod/shop/cart-1)"),
        ("[fd00:199::1]:80", "HBONE to 198.18.0.1:8080 (c//Pod/shop/cart-1)"),
        ("198.19.0.2:80", "plain TCP to 198.18.0.2:8080 (c//Pod/shop/plain-1)"),
        ("198.19.0.6:80", "HBONE to 198.18.3.1:8080 (c//Pod/shop/host-1)"),
        ("198.19.0.5:80", "passthrough to 198.19.0.5:80"),
        ("198.19.0.5:443", "passthrough to 198.19.0.5:443"),
        ("198.51.100.7:443", "passthrough to 198.51.100.7:443"),
        ("198.19.0.1:81", "service shop/cart.shop.svc.cluster.local has no port 81"),
        ("198.19.0.3:80", "service shop/empty.shop.svc.cluster.local has no endpoint left for port 80"),
        ("198.19.8.77:80", "service shop/ranged.shop.svc.cluster.local has no endpoint left for port 80"),
        ("198.19.0.4:80", "shop/l7.shop.svc.cluster.local must be reached through its waypoint"),
        ("198.18.0.4:80", "c//Pod/shop/wp-1 must be reached through its waypoint"),
        ("198.18.0.8:80", "workload c//Pod/shop/remote-1 is only reachable through the gateway of its network"),
        ("198.18.3.1:80", "198.18.3.1 is inside the mesh but belongs to no known workload or service"),
        ("198.18.7.7:80", "198.18.7.7 is inside the mesh but belongs to no known workload or service"),
        ("[fd00:198::7]:80", "fd00:198::7 is inside the mesh but belongs to no known workload or service"),
        ("198.18.0.1:15008", "port 15008 belongs to the mesh"),
        ("198.18.0.1:15006", "port 15006 belongs to the mesh"),
        ("198.18.0.2:15001", "port 15001 belongs to the mesh"),
        ("198.18.0.99:15008", "port 15008 belongs to the mesh"),
    ] {
        let answer = ask(&snapshot, destination, &[]).map_or_else(|e| e.to_string(), |route| route.to_string());
        assert_eq!(answer, expected, "{destination}");
    }
}

#[test]
fn the_upstream_says_who_may_answer_and_where_the_tunnel_is() {
    let mut store = mesh();
    let extra: Identity = "spiffe://cluster.local/ns/shop/sa/extra".parse().unwrap();
    let cart = Service { subject_alt_names: vec![extra.clone()], ..service("cart", &["198.19.0.1"]) };
    let snapshot = store.apply(vec![Change::Service(cart)]).snapshot;
    let Ok(Route::Hbone(upstream)) = ask(&snapshot, "198.19.0.1:80", &[]) else { panic!("no tunnel") };
    assert_eq!(upstream.tunnel, "198.18.0.1:15008".parse().unwrap());
    assert_eq!(upstream.expected, [extra, "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap()]);
    assert_eq!(upstream.service.unwrap().name, "cart");
    assert_eq!(upstream.generation, snapshot.owner("", &ip("198.18.0.1")).unwrap().generation);
    let Ok(Route::Hbone(upstream)) = ask(&snapshot, "198.18.0.1:80", &[]) else { panic!("no tunnel") };
    assert_eq!(upstream.expected.len(), 1);
    assert!(upstream.lease.is_none() && upstream.service.is_none());
}

#[test]
fn the_next_endpoint_until_none_is_left() {
    let mut store = mesh();
    let second = workload("cart-2", "198.18.0.7", TunnelProtocol::Hbone, Some("cart"));
    let snapshot = store.apply(vec![Change::Workload(second)]).snapshot;
    let mut tried = Vec::new();
    for _ in 0..2 {
        let Ok(Route::Hbone(upstream)) = ask(&snapshot, "198.19.0.1:80", &tried) else { panic!("no tunnel") };
        assert!(!tried.contains(&upstream.workload.uid));
        tried.push(upstream.workload.uid.clone());
    }
    let refusal = ask(&snapshot, "198.19.0.1:80", &tried).unwrap_err();
    assert_eq!(refusal, Refusal::NoEndpoints { service: key("cart"), port: 80 });
}

#[test]
fn hardening_F9_before_the_first_full_state_everything_is_refused() {
    let mut store = Store::new();
    let cart = workload("cart-1", "198.18.0.1", TunnelProtocol::Hbone, None);
    let snapshot = store.apply(vec![Change::Workload(cart)]).snapshot;
    for destination in ["198.18.0.1:80", "198.51.100.7:443"] {
        assert_eq!(ask(&snapshot, destination, &[]).unwrap_err(), Refusal::NotSynced);
    }
}

#[test]
fn an_endpoint_on_a_mesh_port_is_refused() {
    let mut store = mesh();
    let mut evil = workload("evil-1", "198.18.0.5", TunnelProtocol::None, None);
    let ports = vec![PortMapping { service_port: 80, target_port: 15001 }];
    evil.services = Arc::new([(key("empty"), ports)].into());
    let snapshot = store.apply(vec![Change::Workload(evil)]).snapshot;
    assert_eq!(ask(&snapshot, "198.19.0.3:80", &[]).unwrap_err(), Refusal::MeshPort(15001));
}
