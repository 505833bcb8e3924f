//! One mesh with everything in it; each destination with its route.

use std::sync::Arc;

use rand::{SeedableRng, rngs::StdRng};

use super::*;
use crate::{
    Change, GatewayAddress, Store,
    service::{Canary, LoadBalancing, ServiceAddress, ServicePort},
    workload::{GatewayDestination, NetworkAddress, NetworkMode, PortMapping, TunnelProtocol},
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
    let gateway = Workload { native_tunnel: true, ..workload("edge-1", "198.18.0.9", Hbone, None) };
    let host = workload("host-1", "198.18.3.1", Hbone, Some("hostnet"));
    store.apply(vec![
        Change::Ranges(vec!["198.18.0.0/16".parse().unwrap(), "fd00:198::/48".parse().unwrap()]),
        Change::Workload(gateway),
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
    let request = Request { source: &source, destination: destination.parse().unwrap(), place: None, now_ms: 0, tried };
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
        ("198.18.0.8:80", "workload c//Pod/shop/remote-1 is only reachable through the gateway of its network"),
        ("198.18.3.1:80", "198.18.3.1 is inside the mesh but belongs to no known workload or service"),
        ("198.18.7.7:80", "198.18.7.7 is inside the mesh but belongs to no known workload or service"),
        ("[fd00:198::7]:80", "fd00:198::7 is inside the mesh but belongs to no known workload or service"),
        ("198.18.0.9:443", "HBONE to 198.18.0.9:443 (c//Pod/shop/edge-1)"),
        ("198.18.0.9:15020", "plain TCP to 198.18.0.9:15020 (c//Pod/shop/edge-1)"),
        ("198.18.0.9:15021", "plain TCP to 198.18.0.9:15021 (c//Pod/shop/edge-1)"),
        ("198.18.0.1:15020", "HBONE to 198.18.0.1:15020 (c//Pod/shop/cart-1)"),
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

/// A waypoint with two endpoints, its own port in its pods, and who is bound to it.
fn with_waypoints() -> Store {
    use TunnelProtocol::{Hbone, None as Plain};
    let mut store = mesh();
    let port = |service_port, target_port| ServicePort { service_port, target_port, app_protocol: Default::default() };
    let of_waypoint = |name: &str, service: &str, address: &str, protocol| {
        let mut pod = workload(name, address, protocol, None);
        pod.services = Arc::new([(key(service), vec![PortMapping { service_port: 15008, target_port: 15108 }])].into());
        pod
    };
    let at = |address: &str, hbone_port| {
        let address = NetworkAddress { network: "".into(), address: ip(address) };
        Some(GatewayAddress { destination: GatewayDestination::Address(address), hbone_port })
    };
    let named = |name: &str, hbone_port| {
        Some(GatewayAddress { destination: GatewayDestination::Service(key(name)), hbone_port })
    };
    let san = "spiffe://cluster.local/ns/shop/sa/waypoint-too".parse().unwrap();
    let bound = |name: &str, vip: &str, waypoint| Change::Service(Service { waypoint, ..service(name, &[vip]) });
    let waypoint = |name: &str, vip: &str| Service { ports: vec![port(15008, 0)], ..service(name, &[vip]) };
    store.apply(vec![
        Change::Service(Service { subject_alt_names: vec![san], ..waypoint("waypoint", "198.19.1.1") }),
        Change::Workload(of_waypoint("waypoint-1", "waypoint", "198.18.1.1", Hbone)),
        Change::Service(waypoint("deserted", "198.19.1.2")),
        Change::Service(Service { waypoint: waypoint_of("waypoint"), ..waypoint("plain-wp", "198.19.1.3") }),
        Change::Workload(of_waypoint("plainwp-1", "plain-wp", "198.18.1.3", Plain)),
        bound("by-vip", "198.19.2.1", at("198.19.1.1", 15008)),
        bound("by-pod", "198.19.2.2", at("198.18.1.1", 15008)),
        bound("to-deserted", "198.19.2.3", named("deserted", 15008)),
        bound("to-nothing", "198.19.2.4", named("nothing", 15008)),
        bound("to-nowhere", "198.19.2.5", at("198.18.9.9", 15008)),
        bound("to-port", "198.19.2.6", named("waypoint", 9)),
        bound("to-plain", "198.19.2.7", named("plain-wp", 15008)),
        Change::Service(Service {
            load_balancing: LoadBalancing { mode: Mode::Passthrough, ..Default::default() },
            ..Service { waypoint: named("waypoint", 15008), ..service("egress", &["198.19.2.8"]) }
        }),
    ]);
    store
}

fn waypoint_of(name: &str) -> Option<GatewayAddress> {
    Some(GatewayAddress { destination: GatewayDestination::Service(key(name)), hbone_port: 15008 })
}

#[test]
fn who_has_a_waypoint_is_reached_through_it_or_not_at_all() {
    let snapshot = with_waypoints().snapshot();
    let through = |target: &str| format!("HBONE to {target} by the waypoint 198.18.1.1:15108 (c//Pod/shop/waypoint-1)");
    let closed = |service: &str, waypoint: &str, why: &str| {
        format!("shop/{service}.shop.svc.cluster.local must be reached through its waypoint {waypoint}, which {why}")
    };
    let named = |name: &str| format!("shop/{name}.shop.svc.cluster.local");
    for (destination, expected) in [
        ("198.19.0.4:80", through("198.19.0.4:80")),
        ("[::ffff:198.19.0.4]:80", through("198.19.0.4:80")),
        ("198.18.0.4:9000", through("198.18.0.4:9000")),
        ("198.19.2.1:80", through("198.19.2.1:80")),
        ("198.19.2.2:80", through("198.19.2.2:80").replace("15108", "15008")),
        ("198.19.2.8:443", through("198.19.2.8:443")),
        ("198.19.2.3:80", closed("to-deserted", &named("deserted"), "has no endpoint left")),
        ("198.19.2.4:80", closed("to-nothing", "shop/nothing.shop.svc.cluster.local", "is not known")),
        ("198.19.2.5:80", closed("to-nowhere", "198.18.9.9", "is not known")),
        ("198.19.2.6:80", closed("to-port", &named("waypoint"), "has no port 9")),
        // One without a tunnel of its own is asked by tunnel all the same, and so is one that has a waypoint.
        ("198.19.2.7:80", "HBONE to 198.19.2.7:80 by the waypoint 198.18.1.3:15108 (c//Pod/shop/plainwp-1)".to_owned()),
        // Addressed by the service, the waypoint of the pod behind it does not matter.
        ("198.19.0.1:80", "HBONE to 198.18.0.1:8080 (c//Pod/shop/cart-1)".to_owned()),
        ("198.19.0.4:15008", "port 15008 belongs to the mesh".to_owned()),
        ("198.18.0.4:15006", "port 15006 belongs to the mesh".to_owned()),
    ] {
        let answer = ask(&snapshot, destination, &[]).map_or_else(|e| e.to_string(), |route| route.to_string());
        assert_eq!(answer, expected, "{destination}");
    }
}

#[test]
fn a_waypoint_is_asked_for_what_the_app_asked_for() {
    let snapshot = with_waypoints().snapshot();
    let own: Identity = "spiffe://cluster.local/ns/shop/sa/waypoint".parse().unwrap();
    let too: Identity = "spiffe://cluster.local/ns/shop/sa/waypoint-too".parse().unwrap();
    for (destination, service, expected, leased) in [
        ("198.19.0.4:80", Some("l7"), vec![too.clone(), own.clone()], true),
        ("198.18.0.4:80", None, vec![too, own.clone()], true),
        ("198.19.2.2:80", Some("by-pod"), vec![own], false),
    ] {
        let Ok(Route::Hbone(upstream)) = ask(&snapshot, destination, &[]) else { panic!("no tunnel") };
        assert_eq!(upstream.target, destination.parse().unwrap());
        assert_eq!(upstream.service.map(|service| service.name.to_string()).as_deref(), service);
        assert_eq!((upstream.expected, upstream.lease.is_some(), upstream.waypoint), (expected, leased, true));
        assert_eq!(upstream.generation, snapshot.owner("", &ip("198.18.1.1")).unwrap().generation);
    }
}

#[test]
fn the_next_endpoint_of_a_waypoint_until_none_is_left() {
    let mut store = with_waypoints();
    let first = store.snapshot().workload_by_uid("c//Pod/shop/waypoint-1").unwrap().as_ref().clone();
    let uid = "c//Pod/shop/waypoint-2".into();
    let second = Workload { uid, addresses: vec![ip("198.18.1.2")], ..first };
    let snapshot = store.apply(vec![Change::Workload(second)]).snapshot;
    let mut tried = Vec::new();
    for _ in 0..2 {
        let Ok(Route::Hbone(upstream)) = ask(&snapshot, "198.19.0.4:80", &tried) else { panic!("no tunnel") };
        assert!(upstream.waypoint && !tried.contains(&upstream.workload.uid));
        tried.push(upstream.workload.uid.clone());
    }
    for destination in ["198.19.0.4:80", "198.19.2.2:80"] {
        assert_eq!(ask(&snapshot, destination, &tried).unwrap_err().reason(), "no_waypoint");
    }
}

#[test]
fn hardening_3_2_only_what_says_so_is_reached_without_its_waypoint() {
    let mut store = with_waypoints();
    let optional = |name: &str, vip: &str, waypoint: Option<GatewayAddress>| Service {
        waypoint,
        waypoint_optional: true,
        ..service(name, &[vip])
    };
    let passes = LoadBalancing { mode: Mode::Passthrough, ..Default::default() };
    let more = vec![
        Change::Service(optional("maybe", "198.19.3.1", waypoint_of("waypoint"))),
        Change::Workload(workload("maybe-1", "198.18.0.31", TunnelProtocol::Hbone, Some("maybe"))),
        Change::Service(optional("nobody", "198.19.3.2", waypoint_of("waypoint"))),
        Change::Service(optional("unbound", "198.19.3.3", None)),
        Change::Service(Service {
            load_balancing: passes,
            ..optional("outside", "198.19.3.4", waypoint_of("waypoint"))
        }),
    ];
    let snapshot = store.apply(more).snapshot;
    let source = Client { ips: vec![ip("198.18.0.99")], ..Client::default() };
    let place = |name: &str, subset: &str| ClusterKey { service: key(name), port: 80, subset: subset.into() };
    let around = |destination: &str, place: Option<&ClusterKey>, tried: &[ArcStr], source: &Client| {
        let request = Request { source, destination: destination.parse().unwrap(), place, now_ms: 0, tried };
        let said = crate::around(&snapshot, &request, &mut StdRng::seed_from_u64(1));
        said.map(|said| said.map_or_else(|refusal| refusal.reason().to_owned(), |route| route.to_string()))
    };
    let direct = Some("HBONE to 198.18.0.31:8080 (c//Pod/shop/maybe-1)");
    for (destination, expected) in [
        ("198.19.3.1:80", direct),
        ("198.19.3.1:81", Some("unknown_port")),
        ("198.19.3.2:80", Some("no_endpoints")),
        // It does not say so; it has none; it is a pod; nobody chooses an endpoint; it is nobody.
        ("198.19.0.4:80", None),
        ("198.19.3.3:80", None),
        ("198.18.0.31:80", None),
        ("198.18.0.4:80", None),
        ("198.19.3.4:80", None),
        ("198.51.100.7:443", None),
    ] {
        assert_eq!(around(destination, None, &[], &source).as_deref(), expected, "{destination}");
    }
    // As ever, unless nothing is left.
    let through = ask(&snapshot, "198.19.3.1:80", &[]).unwrap().to_string();
    assert!(through.contains("by the waypoint"), "{through}");
    let tried = ["c//Pod/shop/maybe-1".into()];
    assert_eq!(around("198.19.3.1:80", None, &tried, &source).as_deref(), Some("no_endpoints"));
    // Where a route leads there, too, and not to a part of it.
    let [all, part] = ["", "v1"].map(|subset| place("maybe", subset));
    assert_eq!(around("198.19.0.1:80", Some(&all), &[], &source).as_deref(), direct);
    assert_eq!(around("198.19.0.1:80", Some(&part), &[], &source), None);
    // The waypoint itself is not led anywhere, and before the first configuration nobody is.
    let account = "spiffe://cluster.local/ns/shop/sa/waypoint".parse().ok();
    let own = Client { ips: vec![ip("198.18.1.1")], identity: account, ..Client::default() };
    assert_eq!(around("198.19.3.1:80", None, &[], &own), None);
    let request =
        Request { source: &source, destination: "198.19.3.1:80".parse().unwrap(), place: None, now_ms: 0, tried: &[] };
    assert!(crate::around(&Store::new().snapshot(), &request, &mut StdRng::seed_from_u64(1)).is_none());
}

#[test]
fn a_waypoint_does_not_go_through_itself() {
    let snapshot = with_waypoints().snapshot();
    let go = |address: &str, account: Option<&str>, destination: &str| {
        let identity = account.map(|name| format!("spiffe://cluster.local/ns/shop/sa/{name}").parse().unwrap());
        let source = Client { ips: vec![ip(address)], identity, ..Client::default() };
        let destination = destination.parse().unwrap();
        let request = Request { source: &source, destination, place: None, now_ms: 0, tried: &[] };
        resolve(&snapshot, &request, &mut StdRng::seed_from_u64(1)).map(|route| route.to_string())
    };
    let (l7, pod) = ("HBONE to 198.18.0.3:8080 (c//Pod/shop/l7-1)", "HBONE to 198.18.0.4:80 (c//Pod/shop/wp-1)");
    let through = "HBONE to 198.19.0.4:80 by the waypoint 198.18.1.1:15108 (c//Pod/shop/waypoint-1)";
    let of_other = "HBONE to 198.19.2.7:80 by the waypoint 198.18.1.3:15108 (c//Pod/shop/plainwp-1)";
    for (address, account, destination, expected) in [
        ("198.18.1.1", Some("waypoint"), "198.19.0.4:80", l7),
        ("198.18.1.1", Some("waypoint"), "198.18.0.4:80", pod),
        (
            "198.18.1.1",
            Some("waypoint"),
            "198.19.2.2:80",
            "service shop/by-pod.shop.svc.cluster.local has no endpoint left for port 80",
        ),
        ("198.18.1.1", Some("waypoint"), "198.19.2.7:80", of_other),
        // Neither the address alone nor the identity alone makes a waypoint of somebody.
        ("198.18.1.1", Some("other"), "198.19.0.4:80", through),
        ("198.18.1.1", None, "198.19.0.4:80", through),
        ("198.18.0.99", Some("waypoint"), "198.19.0.4:80", through),
        ("198.18.1.3", Some("plainwp"), "198.19.0.4:80", through),
    ] {
        let route = go(address, account, destination).unwrap_or_else(|refusal| refusal.to_string());
        assert_eq!(route, expected, "{address} {account:?} {destination}");
    }
}

#[test]
fn design_10_10_a_waypoint_speaks_for_clients_of_what_is_bound_to_it() {
    let snapshot = with_waypoints().snapshot();
    let speaks = |address: &str, account: &str, workload: &str| {
        let identity = format!("spiffe://cluster.local/ns/shop/sa/{account}").parse().ok();
        let peer = Client { ips: vec![ip(address)], identity, ..Client::default() };
        let workload = snapshot.workload_by_uid(&format!("c//Pod/shop/{workload}")).unwrap();
        speaks_for(&snapshot, workload, &peer)
    };
    for (address, account, workload, expected) in [
        // By a service that it is an endpoint of, and by itself.
        ("198.18.1.1", "waypoint", "l7-1", true),
        ("198.18.1.1", "waypoint", "wp-1", true),
        // Neither the address alone nor the identity alone.
        ("198.18.1.1", "other", "l7-1", false),
        ("198.18.0.99", "waypoint", "l7-1", false),
        // Another's waypoint, and nobody's.
        ("198.18.1.3", "plainwp", "l7-1", false),
        ("198.18.1.1", "waypoint", "waypoint-1", false),
    ] {
        assert_eq!(speaks(address, account, workload), expected, "{address} {account} {workload}");
    }
}

/// What comes for a service with a canary, and what its canary and its waypoint themselves ask for.
#[test]
fn features_CL_3_a_canary_has_its_share_and_the_waypoint_the_rest() {
    let to = |name: &str, weight| waypoint_of(name).map(|waypoint| Canary { waypoint, weight });
    let l7 = |canary| Service { waypoint: waypoint_of("waypoint"), canary, ..service("l7", &["198.19.0.4"]) };
    let shares = |canary: Option<Canary>, tried: &[ArcStr]| {
        let snapshot = with_waypoints().apply(vec![Change::Service(l7(canary))]).snapshot;
        let destination = "198.19.0.4:80".parse().unwrap();
        let request = Request { source: &Client::default(), destination, place: None, now_ms: 0, tried };
        let mut rng = StdRng::seed_from_u64(7);
        let mut found = [0; 3];
        for _ in 0..1000 {
            let at = match resolve(&snapshot, &request, &mut rng) {
                Ok(Route::Hbone(up)) if up.waypoint && up.workload.name == "waypoint-1" => 0,
                Ok(Route::Hbone(up)) if up.waypoint && up.workload.name == "plainwp-1" => 1,
                _ => 2,
            };
            found[at] += 1;
        }
        found
    };
    assert_eq!(shares(None, &[]), [1000, 0, 0]);
    assert_eq!(shares(to("plain-wp", 0), &[]), [1000, 0, 0]);
    assert_eq!(shares(to("plain-wp", 100), &[]), [0, 1000, 0]);
    let [own, canary, others] = shares(to("plain-wp", 20), &[]);
    assert!((150..250).contains(&canary) && own + canary == 1000 && others == 0, "{own} {canary} {others}");
    // Nobody is at the canary, or nobody is left there: all is the waypoint's.
    assert_eq!(shares(to("deserted", 100), &[]), [1000, 0, 0]);
    assert_eq!(shares(to("nothing", 100), &[]), [1000, 0, 0]);
    assert_eq!(shares(to("plain-wp", 100), &["c//Pod/shop/plainwp-1".into()]), [1000, 0, 0]);
    // And never the other way around.
    let [own, canary, closed] = shares(to("plain-wp", 20), &["c//Pod/shop/waypoint-1".into()]);
    assert!(own == 0 && (150..250).contains(&canary) && closed == 1000 - canary, "{own} {canary} {closed}");
    let snapshot = with_waypoints().apply(vec![Change::Service(l7(to("plain-wp", 0)))]).snapshot;
    for (address, account) in [("198.18.1.1", "waypoint"), ("198.18.1.3", "plainwp")] {
        let identity = format!("spiffe://cluster.local/ns/shop/sa/{account}").parse().ok();
        let source = Client { ips: vec![ip(address)], identity, ..Client::default() };
        let destination = "198.19.0.4:80".parse().unwrap();
        let request = Request { source: &source, destination, place: None, now_ms: 0, tried: &[] };
        let route = resolve(&snapshot, &request, &mut StdRng::seed_from_u64(1)).unwrap();
        assert_eq!(route.to_string(), "HBONE to 198.18.0.3:8080 (c//Pod/shop/l7-1)", "{account}");
        let endpoint = snapshot.workload_by_uid("c//Pod/shop/l7-1").unwrap();
        assert!(speaks_for(&snapshot, endpoint, &source), "{account}");
    }
}

/// The services of the mesh with routes for connections to `cart`: by port, by name, into nothing.
fn with_routes() -> Store {
    use crate::l4::{Condition, ConnectionRoutes, Group, Place, Rule, Split};
    let mut store = with_waypoints();
    let to = |name: &str, subset: &str| {
        let key = ClusterKey { service: key(name), port: 80, subset: subset.into() };
        Split::new(vec![Place { target: crate::l7::Target::Cluster(key), weight: 1 }]).unwrap()
    };
    let rule = |port, names: &[&str], split| {
        let server_names = names.iter().map(|name| crate::l7::HostPattern::parse(name).unwrap()).collect();
        let condition = Condition { port: Some(port), server_names, ..Condition::default() };
        Rule { origin: "TCPRoute shop/r".into(), conditions: vec![condition], split }
    };
    let rules = vec![
        rule(80, &[], to("plain", "")),
        rule(443, &["by-name"], to("l7", "")),
        rule(81, &[], to("nothing-known", "")),
        rule(82, &[], to("plain", "v1")),
        rule(83, &[], Split::closed("its weights are too many")),
        rule(84, &[], to("hostnet", "")),
    ];
    let groups = vec![Group { rules, ..Group::default() }];
    let routes = ConnectionRoutes { service: key("cart"), groups: groups.clone() };
    let behind = ConnectionRoutes { service: key("l7"), groups };
    store.apply(vec![Change::Connections(routes), Change::Connections(behind)]);
    store
}

#[test]
fn a_route_leads_connections_to_another_service() {
    use crate::l4::ServerName;
    let mut store = with_routes();
    let source = Client { ips: vec![ip("198.18.0.99")], ..Client::default() };
    let go = |snapshot: &Snapshot, destination: &str, name: ServerName<'_>| {
        let mut rng = StdRng::seed_from_u64(1);
        let destination = destination.parse().unwrap();
        let request = Request { source: &source, destination, place: None, now_ms: 0, tried: &[] };
        let place = match steer(snapshot, &request, name, &mut rng)? {
            Steer::Look => return Ok("look".to_owned()),
            Steer::Asked => None,
            Steer::To(key) => Some(key),
        };
        resolve(snapshot, &Request { place: place.as_ref(), ..request }, &mut rng).map(|route| route.to_string())
    };
    let refused = |origin: &str, why: &str| {
        format!("connections to shop/cart.shop.svc.cluster.local have a route{origin}, but {why}")
    };
    let snapshot = store.snapshot();
    for (destination, name, expected) in [
        ("198.19.0.1:80", ServerName::Unread, "plain TCP to 198.18.0.2:8080 (c//Pod/shop/plain-1)".to_owned()),
        ("[fd00:199::1]:80", ServerName::Unread, "plain TCP to 198.18.0.2:8080 (c//Pod/shop/plain-1)".to_owned()),
        ("198.19.0.1:443", ServerName::Unread, "look".to_owned()),
        // The place has a waypoint, which is asked for the place.
        (
            "198.19.0.1:443",
            ServerName::Is("by-name"),
            "HBONE to 198.19.0.4:80 by the waypoint 198.18.1.1:15108 (c//Pod/shop/waypoint-1)".to_owned(),
        ),
        ("198.19.0.1:443", ServerName::Absent, refused("", "no rule of the routes of this service means it")),
        (
            "198.19.0.1:81",
            ServerName::Unread,
            refused("", "service shop/nothing-known.shop.svc.cluster.local is not known"),
        ),
        (
            "198.19.0.1:82",
            ServerName::Unread,
            refused("", "of shop/plain.shop.svc.cluster.local, the subset \"v1\" is not known"),
        ),
        ("198.19.0.1:83", ServerName::Unread, refused(" (TCPRoute shop/r)", "its weights are too many")),
        ("198.19.0.1:84", ServerName::Unread, "HBONE to 198.18.3.1:8080 (c//Pod/shop/host-1)".to_owned()),
        // Routes are of services: who asks for a pod gets it, and a waypoint has the routes itself.
        ("198.18.0.1:80", ServerName::Unread, "HBONE to 198.18.0.1:80 (c//Pod/shop/cart-1)".to_owned()),
        (
            "198.19.0.4:80",
            ServerName::Unread,
            "HBONE to 198.19.0.4:80 by the waypoint 198.18.1.1:15108 (c//Pod/shop/waypoint-1)".to_owned(),
        ),
    ] {
        let answer = go(&snapshot, destination, name).unwrap_or_else(|refusal: Refusal| refusal.to_string());
        assert_eq!(answer, expected, "{destination} {name:?}");
    }
    let snapshot = store.apply(vec![Change::RemoveConnections(key("cart"))]).snapshot;
    let answer = go(&snapshot, "198.19.0.1:80", ServerName::Unread).unwrap();
    assert_eq!(answer, "HBONE to 198.18.0.1:8080 (c//Pod/shop/cart-1)");
}

#[test]
fn features_SB_3_B66_what_nobody_has_is_refused_where_only_the_registry_counts() {
    use crate::outbound::{Outbound, Scope};
    let mut store = mesh();
    let said = |registry_only| Outbound { registry_only, origin: "Sidecar shop/default".into() };
    let of = |snapshot: &Snapshot, uid: &str, destination: &str| {
        let source =
            Client { ips: vec![ip("198.18.0.99")], namespace: "shop".into(), uid: uid.into(), ..Client::default() };
        let destination = destination.parse().unwrap();
        let request = Request { source: &source, destination, place: None, now_ms: 0, tried: &[] };
        let route = resolve(snapshot, &request, &mut StdRng::seed_from_u64(1));
        route.map_or_else(|e| format!("{} {e}", e.reason()), |route| route.to_string())
    };
    let refused = |ip: &str| {
        let rule = "and only what it knows may be reached (Sidecar shop/default)";
        format!("not_in_registry {ip} is nobody's that the mesh knows, {rule}")
    };
    let change = Change::Outbound(Scope::Namespace("shop".into()), said(true));
    let free = Change::Outbound(Scope::Workload("free".into()), said(false));
    let snapshot = store.apply(vec![change, free]).snapshot;
    for (destination, expected) in [
        ("198.51.100.7:443", refused("198.51.100.7:443")),
        ("[::ffff:198.51.100.7]:443", refused("198.51.100.7:443")),
        ("[2001:db8::7]:443", refused("[2001:db8::7]:443")),
        // Somebody's, as before.
        ("198.18.0.2:9000", "plain TCP to 198.18.0.2:9000 (c//Pod/shop/plain-1)".into()),
        ("198.19.0.5:80", "passthrough to 198.19.0.5:80".into()),
        // A port that the service there does not have.
        ("198.19.0.5:444", refused("198.19.0.5:444")),
        (
            "198.19.8.77:80",
            "no_endpoints service shop/ranged.shop.svc.cluster.local has no endpoint left for port 80".into(),
        ),
        (
            "198.18.7.7:80",
            "unknown_mesh_address 198.18.7.7 is inside the mesh but belongs to no known workload or service".into(),
        ),
    ] {
        assert_eq!(of(&snapshot, "bound", destination), expected, "{destination}");
    }
    assert_eq!(of(&snapshot, "free", "198.51.100.7:443"), "passthrough to 198.51.100.7:443");
    let applied = store.apply(vec![Change::RemoveOutbound(Scope::Namespace("shop".into()))]);
    assert!(applied.diff.outbound);
    assert_eq!(of(&applied.snapshot, "bound", "198.51.100.7:443"), "passthrough to 198.51.100.7:443");
}

#[test]
fn outside_of_the_mesh_a_service_is_somebody_s_only_where_it_is_seen() {
    use crate::{
        outbound::{Outbound, Scope},
        service::Visibility,
    };
    let entry = |namespace: &str, range: &str, visibility| Service {
        load_balancing: LoadBalancing { mode: Mode::Passthrough, ..Default::default() },
        ports: vec![ServicePort { service_port: 443, target_port: 0, app_protocol: Default::default() }],
        namespace: namespace.into(),
        visibility,
        ..service(&range.replace(['.', '/'], "-"), &[range])
    };
    let mut store = mesh();
    let snapshot = store
        .apply(vec![
            Change::Outbound(Scope::Mesh, Outbound { registry_only: true, origin: "the mesh settings".into() }),
            Change::Service(entry("a", "0.0.0.0/0", Visibility::Namespace)),
            Change::Service(entry("b", "0.0.0.0/0", Visibility::Namespace)),
            Change::Service(entry("a", "192.0.2.0/24", Visibility::Public)),
            Change::Service(entry("a", "192.0.2.7", Visibility::Namespace)),
            Change::Service(entry("a", "198.18.9.9", Visibility::Namespace)),
        ])
        .snapshot;
    for (namespace, destination, is_reached) in [
        ("a", "198.51.100.7:443", true),
        ("b", "198.51.100.7:443", true),
        ("c", "198.51.100.7:443", false),
        // What others see is not hidden by what they do not.
        ("c", "192.0.2.7:443", true),
        // Inside of the mesh it is somebody's for all.
        ("c", "198.18.9.9:443", true),
    ] {
        let source = Client { namespace: namespace.into(), ..Client::default() };
        let destination: SocketAddr = destination.parse().unwrap();
        let request = Request { source: &source, destination, place: None, now_ms: 0, tried: &[] };
        let route = resolve(&snapshot, &request, &mut StdRng::seed_from_u64(1));
        assert_eq!(route.is_ok(), is_reached, "{namespace} {destination}: {route:?}");
        assert_eq!(may_reach(&snapshot, &source, destination).is_ok(), is_reached, "{namespace} {destination}");
    }
}

#[test]
fn features_SE_7_SB_3_an_endpoint_of_an_entry_is_somebody_s_on_its_ports_where_the_entry_is_seen() {
    use crate::{
        outbound::{Outbound, Scope},
        service::Visibility,
    };
    let entry = |namespace: &str, host: &str, visibility, [port, at]: [u16; 2], address: &str| {
        let ports = vec![ServicePort { service_port: port, target_port: at, app_protocol: Default::default() }];
        let service = Service { ports, visibility, ..Service::new(namespace, host, host) };
        let uid = format!("c/networking.istio.io/ServiceEntry/{namespace}/{host}/{address}");
        let mut endpoint = Workload::new(uid, namespace, host);
        endpoint.addresses = vec![ip(address)];
        endpoint.services =
            Arc::new([(service.key(), vec![PortMapping { service_port: port, target_port: at }])].into());
        [Change::Service(service), Change::Workload(endpoint)]
    };
    let (hidden, shown) = (Visibility::Namespace, Visibility::Public);
    let ranged = Service {
        load_balancing: LoadBalancing { mode: Mode::Passthrough, ..Default::default() },
        ..service("ranged-2", &["192.0.2.0/28"])
    };
    let pod = Workload {
        addresses: vec![ip("203.0.113.20")],
        ..workload("far-1", "203.0.113.20", TunnelProtocol::Hbone, None)
    };
    let mut store = mesh();
    let changes = [
        entry("pay", "private.example.com", hidden, [443, 443], "203.0.113.9"),
        entry("pay", "public.example.com", shown, [443, 8443], "203.0.113.10"),
        // Two entries with one endpoint: whoever of them has the address, each shows it to its own, on its own port.
        entry("a", "twice.example.com", hidden, [5432, 5432], "203.0.113.11"),
        entry("b", "twice.example.com", hidden, [6432, 6432], "203.0.113.11"),
        // Besides, all see a range on port 80.
        entry("pay", "within.example.com", hidden, [443, 443], "192.0.2.1"),
        entry("pay", "inside.example.com", hidden, [443, 443], "198.18.200.1"),
    ];
    store.apply(changes.into_iter().flatten().collect());
    // Of an entry of which no host leads anywhere.
    let mut alone = Workload::new("c/networking.istio.io/ServiceEntry/pay/alone/203.0.113.30", "pay", "alone");
    alone.addresses = vec![ip("203.0.113.30")];
    store.apply(vec![Change::Service(ranged), Change::Workload(pod), Change::Workload(alone)]);
    let check = |snapshot: &Snapshot, namespace: &str, destination: &str| {
        let source = Client { namespace: namespace.into(), ..Client::default() };
        let destination: SocketAddr = destination.parse().unwrap();
        let request = Request { source: &source, destination, place: None, now_ms: 0, tried: &[] };
        let route = resolve(snapshot, &request, &mut StdRng::seed_from_u64(1));
        assert_eq!(route.is_ok(), may_reach(snapshot, &source, destination).is_ok(), "{namespace} {destination}");
        route.map_or_else(|why| why.reason(), |_| "reached")
    };
    let rows = [
        ("pay", "203.0.113.9:443", "reached"),
        ("pay", "203.0.113.9:22", "not_in_registry"),
        ("web", "203.0.113.9:443", "not_in_registry"),
        ("web", "203.0.113.9:22", "not_in_registry"),
        ("web", "[::ffff:203.0.113.9]:443", "not_in_registry"),
        ("web", "203.0.113.10:443", "reached"),
        ("web", "203.0.113.10:8443", "reached"),
        ("web", "203.0.113.10:80", "not_in_registry"),
        ("a", "203.0.113.11:5432", "reached"),
        ("a", "203.0.113.11:6432", "not_in_registry"),
        ("b", "203.0.113.11:6432", "reached"),
        ("b", "203.0.113.11:5432", "not_in_registry"),
        ("pay", "192.0.2.1:443", "reached"),
        ("web", "192.0.2.1:80", "reached"),
        ("web", "192.0.2.1:443", "not_in_registry"),
        ("web", "198.18.200.1:443", "not_in_registry"),
        ("pay", "203.0.113.30:5432", "reached"),
        ("web", "203.0.113.30:5432", "not_in_registry"),
        // Pods are there for everybody, wherever they are and on all ports.
        ("web", "203.0.113.20:22", "reached"),
        ("web", "198.18.0.1:9000", "reached"),
    ];
    let free = store.snapshot();
    assert!(rows.iter().all(|(namespace, to, _)| check(&free, namespace, to) == "reached"));
    let said = Outbound { registry_only: true, origin: "the mesh settings".into() };
    let bound = store.apply(vec![Change::Outbound(Scope::Mesh, said)]).snapshot;
    for (namespace, destination, expected) in rows {
        assert_eq!(check(&bound, namespace, destination), expected, "{namespace} {destination}");
    }
    // The first of the two is gone, and has taken nothing of the other one.
    let gone =
        vec![Change::RemoveAddress("c/networking.istio.io/ServiceEntry/a/twice.example.com/203.0.113.11".into())];
    let left = store.apply(gone).snapshot;
    assert_eq!(check(&left, "a", "203.0.113.11:5432"), "not_in_registry");
    assert_eq!(check(&left, "b", "203.0.113.11:6432"), "reached");
}

#[test]
fn what_the_registry_has_is_said_of_whole_ranges() {
    let snapshot = mesh().snapshot();
    let has = |text: &str| snapshot.has("", &text.parse().unwrap());
    assert!(has("198.18.0.1/32") && has("198.19.0.1/32") && has("198.19.8.0/24") && has("fd00:199::1/128"));
    assert!(!has("198.19.8.77/32") && !has("198.19.8.0/25") && !has("198.18.0.0/16") && !has("198.51.100.7/32"));
    assert_eq!(snapshot.ranges().count(), 2);
    assert!(snapshot.owned("").any(|address| address == ip("198.18.0.1")));
}
