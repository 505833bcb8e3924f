//! UDPRoutes in, where datagrams of a listener go out.

use mesh_core::listener::{DatagramPlace, Serves};

use super::listeners::gateway;
use super::*;

const UDP: &str = "[{name: dns, port: 53, protocol: UDP}]";

/// A Service of `shop` with a UDP port 53 that leads to `target`.
fn names(name: &str, target: &str, selector: &str) -> Json {
    let mut service = object(Kind::Service, "shop", name, "{}");
    let target: Json = serde_saphyr::from_str(target).unwrap();
    service["spec"] = json!({ "ports": [
        { "name": "dns-tcp", "port": 53, "protocol": "TCP" },
        { "name": "dns", "port": 53, "protocol": "UDP", "targetPort": target },
    ] });
    if !selector.is_empty() {
        service["spec"]["selector"] = json!({ "app": selector });
    }
    service
}

fn pod(name: &str, app: &str, ports: &str) -> Json {
    let ports: Json = serde_saphyr::from_str(ports).unwrap();
    json!({ "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": "shop", "labels": { "app": app } },
        "spec": { "containers": [{ "name": "a", "ports": ports }] } })
}

fn slice(name: &str, service: &str, port: u16) -> Json {
    json!({ "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": { "name": name, "namespace": "shop", "labels": { "kubernetes.io/service-name": service } },
        "endpoints": [{ "addresses": ["198.18.9.9"] }],
        "ports": [{ "name": "dns", "port": port, "protocol": "UDP" }, { "name": "dns-tcp", "port": 99, "protocol": "TCP" }] })
}

fn udp(name: &str, backends: &str) -> Json {
    object(
        Kind::UdpRoute,
        "shop",
        name,
        &format!("{{parentRefs: [{{name: edge}}], rules: [{{backendRefs: [{backends}]}}]}}"),
    )
}

/// Where the datagrams go that come to port 53, or that they are dropped.
fn led(listeners: &str, more: &[Json]) -> String {
    let (listeners, _) = gateway(listeners, more);
    let Some(listener) = listeners.datagrams(53) else { return "closed".to_owned() };
    let Serves::Datagrams(Some(route)) = &listener.serves else { return "dropped".to_owned() };
    let place = |place: &DatagramPlace| match &place.target {
        Target::Cluster(key) => {
            let name = key.service.name.split('.').next().unwrap();
            format!("{name}:{}>{}*{}", key.port, place.port, place.weight)
        }
        Target::Broken(why) => format!("({why})*{}", place.weight),
    };
    let places: Vec<String> = route.places().iter().map(place).collect();
    format!("{}: {}", route.origin, places.join(" "))
}

#[test]
fn features_GA_UDPRoute_leads_to_udp_ports_by_weight() {
    let pods = [pod("a", "named", "[{name: dns, containerPort: 5353, protocol: UDP}, {name: dns, containerPort: 99}]")];
    let other = pod("b", "named", "[{name: dns, containerPort: 5354, protocol: UDP}]");
    let all = [
        names("number", "1053", "x"),
        names("named", "dns", "named"),
        names("none", "other", "named"),
        names("bare", "53", ""),
        slice("s", "bare", 7053),
    ];
    let to = |backends: &str, more: &[Json]| led(UDP, &[&all[..], &pods, more, &[udp("r", backends)]].concat());
    let of = |text: &str| format!("UDPRoute shop/r: {text}");
    for (backends, expected) in [
        ("{name: number, port: 53}", "number:53>1053*1"),
        ("{name: number, port: 53, weight: 3}, {name: named, port: 53, weight: 0}", "number:53>1053*3 named:53>5353*0"),
        ("{name: bare, port: 53}", "bare:53>7053*1"),
        ("{name: none, port: 53}", "(no endpoint of Service shop/none has a port called \"other\")*1"),
        // A port of TCP is none of UDP.
        ("{name: v1, port: 80, weight: 2}, {name: number, port: 53}", "(v1 has no UDP port 80)*2 number:53>1053*1"),
        ("{name: gone, port: 53}", "(there is no Service shop/gone)*1"),
        ("{group: a.example, kind: Thing, name: x, port: 53}", "(requests cannot go to a Thing.a.example)*1"),
        (
            "{group: networking.istio.io, kind: Hostname, name: a.com, port: 53}",
            "(datagrams cannot go to a Hostname)*1",
        ),
    ] {
        assert_eq!(to(backends, &[]), of(expected), "{backends}");
    }
    let several = "(endpoints of Service shop/named have different ports called \"dns\": 5353, 5354)*1";
    assert_eq!(to("{name: named, port: 53}", &[other]), of(several));
    let several = "(endpoints of Service shop/bare have different ports for its UDP port 53: 7053, 7054)*1";
    assert_eq!(to("{name: bare, port: 53}", &[slice("t", "bare", 7054)]), of(several));
    assert_eq!(led(UDP, &[]), "dropped");
}

#[test]
fn features_GA_of_several_UDPRoutes_the_oldest_counts_and_another_namespace_grants() {
    let all = [names("one", "1", "x"), names("two", "2", "x")];
    let (one, two) = (udp("a", "{name: one, port: 53}"), udp("b", "{name: two, port: 53}"));
    let of = |more: &[Json]| led(UDP, &[&all[..], more].concat());
    let (first, second) = ("UDPRoute shop/a: one:53>1*1", "UDPRoute shop/b: two:53>2*1");
    assert_eq!(of(&[one.clone(), two.clone()]), first, "of one age the first by name");
    assert_eq!(of(&[made(one, "2026-01-02"), made(two, "2026-01-01")]), second);
    let mut far = names("far", "3", "x");
    far["metadata"]["namespace"] = json!("far");
    let to = udp("a", "{name: far, namespace: far, port: 53}");
    let refused = "UDPRoute shop/a: (no ReferenceGrant of far lets a UDPRoute of shop name Service far)*1";
    assert_eq!(led(UDP, &[far.clone(), to.clone()]), refused);
    let grant = "{from: [{group: gateway.networking.k8s.io, kind: UDPRoute, namespace: shop}], to: [{group: '', kind: Service}]}";
    let grant = object(Kind::ReferenceGrant, "far", "g", grant);
    assert_eq!(led(UDP, &[far, to, grant]), "UDPRoute shop/a: far:53>3*1");
}

#[test]
fn features_GA_a_UDPRoute_fits_no_other_listener_and_no_service() {
    let key = Key { kind: Kind::UdpRoute, namespace: "shop".into(), name: "r".into() };
    let backend = "rules: [{backendRefs: [{name: one, port: 53}]}]";
    for (parent, listeners, served, expected) in [
        ("{name: edge}", UDP, 1, ""),
        ("{name: edge}", "[{name: tcp, port: 53, protocol: TCP}]", 0, "NotAllowedByListeners"),
        ("{name: edge, sectionName: none}", UDP, 0, "NoMatchingParent"),
        ("{group: '', kind: Service, name: one}", UDP, 0, "NoMatchingParent"),
    ] {
        let spec = format!("{{gatewayClassName: undermesh, listeners: {listeners}}}");
        let route = object(Kind::UdpRoute, "shop", "r", &format!("{{parentRefs: [{parent}], {backend}}}"));
        let all = [object(Kind::Gateway, "shop", "edge", &spec), names("one", "1", "x"), route];
        let view = crate::index::build(&objects(&all), &Settings::default());
        let belonging = view.resolved.belonging(&key, &view.served, &view.listening).unwrap();
        let reasons: Vec<&str> =
            belonging.parents.iter().map(|(_, why)| why.as_ref().map_or("", |why| why.0)).collect();
        assert_eq!((reasons, belonging.served.len()), (vec![expected], served), "{parent} {listeners}");
        let idle = view.problems.iter().any(|(of, problem)| *of == key && problem.message.contains("not in force"));
        assert!(served == 0 || !idle, "{parent} {listeners}");
    }
}

#[test]
fn a_pod_that_calls_its_port_another_number_changes_what_gateways_are_told() {
    let of = |number: u16| {
        let listeners =
            object(Kind::Gateway, "shop", "edge", &format!("{{gatewayClassName: undermesh, listeners: {UDP}}}"));
        let ports = format!("[{{name: dns, containerPort: {number}, protocol: UDP}}]");
        objects(&[listeners, names("one", "dns", "a"), pod("p", "a", &ports), udp("r", "{name: one, port: 53}")])
    };
    let (mut join, gateway) = (crate::index::join::Join::default(), NamespacedName::new("shop", "edge"));
    for number in [5353, 5354] {
        let view = join.build(of(number), &Settings::default());
        let Serves::Datagrams(Some(route)) = &view.listeners[&gateway].datagrams(53).unwrap().serves else { panic!() };
        assert_eq!(route.places()[0].port, number);
    }
}
