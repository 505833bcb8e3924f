//! What is named and does not count: because nobody has heard of its kind, because its namespace is not of the mesh, or because it cannot be read.

use serde_json::{Value as Json, json};

use super::tests::{object, said, shop, with};
use crate::cluster::decode::decode;
use crate::index::{Settings, build};
use crate::resource::Kind;
use crate::resource::catalog::{Catalog, Found, Live, Scan};

/// A scan of some objects.
fn scan(objects: &[Json]) -> Scan {
    let found = objects.iter().map(|object| {
        let version = object["apiVersion"].as_str().unwrap();
        let kind = Kind::named(version, object["kind"].as_str().unwrap()).unwrap();
        let item = decode(kind, version, object.clone()).unwrap();
        Found { key: item.key, origin: String::new(), outcome: item.outcome }
    });
    Scan { found: found.collect(), ..Scan::default() }
}

#[test]
fn nothing_is_missing_of_a_kind_that_has_never_been_heard_of() {
    let to =
        |destination: &str| format!("{{hosts: [reviews], http: [{{route: [{{destination: {{{destination}}}}}]}}]}}");
    let route = |parent: &str, backend: &str| {
        format!("{{parentRefs: [{{{parent}}}], rules: [{{backendRefs: [{{{backend}}}]}}]}}")
    };
    let (service, reviews) = ("group: '', kind: Service, name: reviews", "name: reviews, port: 80");
    let front = || {
        let spec = "{gatewayClassName: undermesh, listeners: [{name: http, port: 80, protocol: TCP}]}";
        object(Kind::Gateway, "far", "front", spec)
    };
    let own = || {
        let spec = "{gatewayClassName: undermesh, listeners: [{name: http, port: 80, protocol: HTTP}]}";
        object(Kind::Gateway, "shop", "own", spec)
    };
    for (kind, spec, more, unheard) in [
        (Kind::VirtualService, to("host: a.example.com"), vec![], Kind::ServiceEntry),
        (Kind::VirtualService, to("host: reviews, subset: v1"), vec![], Kind::DestinationRule),
        (
            Kind::VirtualService,
            "{hosts: [a.com], gateways: [front], http: [{route: [{destination: {host: reviews}}]}]}".to_owned(),
            vec![],
            Kind::IstioGateway,
        ),
        (Kind::DestinationRule, "{host: a.example.com}".to_owned(), vec![], Kind::ServiceEntry),
        (Kind::HttpRoute, route("name: front, namespace: far", reviews), vec![], Kind::Gateway),
        // A class that nobody knows yet may be another controller's.
        (Kind::HttpRoute, route("name: front, namespace: far", reviews), vec![front()], Kind::GatewayClass),
        (
            Kind::HttpRoute,
            route("group: networking.istio.io, kind: ServiceEntry, name: x", reviews),
            vec![],
            Kind::ServiceEntry,
        ),
        (
            Kind::HttpRoute,
            route("name: own", "name: stock, namespace: far, port: 80"),
            vec![own()],
            Kind::ReferenceGrant,
        ),
        (
            Kind::HttpRoute,
            route(service, "group: networking.istio.io, kind: Hostname, name: a.com, port: 443"),
            vec![],
            Kind::ServiceEntry,
        ),
        (
            Kind::Gateway,
            "{gatewayClassName: theirs, listeners: [{name: h, port: 80, protocol: HTTP}]}".to_owned(),
            vec![],
            Kind::GatewayClass,
        ),
        (
            Kind::Gateway,
            "{gatewayClassName: undermesh, listeners: [{name: s, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: c, namespace: far}]}}]}".to_owned(),
            vec![],
            Kind::ReferenceGrant,
        ),
    ] {
        let own = object(kind, "shop", "o", &spec);
        let scan = scan(&[shop(), more, vec![own]].concat());
        let (mut objects, _) = Catalog::default().apply(&scan);
        let heard = build(&objects, &Settings::default());
        assert_eq!((said(&heard).len(), heard.resolved.unknown.len()), (1, 0), "{spec}");
        objects.unheard.insert(unheard);
        let view = build(&objects, &Settings::default());
        assert_eq!(said(&view), [""; 0], "{spec}");
        let unknown: Vec<&str> = view.resolved.unknown.iter().map(|key| &*key.name).filter(|n| *n == "o").collect();
        assert_eq!(unknown, ["o"], "{spec}");
    }
}

#[test]
fn what_is_in_a_namespace_that_is_not_selected_does_not_count_and_is_not_said_to_be_missing() {
    let settings = json!({ "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "name": "undermesh", "namespace": "undermesh-system" },
        "data": { "mesh": "discoverySelectors: [{matchLabels: {mesh: in}}]" } });
    let space = |name: &str, mesh: &str| json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": { "mesh": mesh } } });
    let service = |spec: &str| {
        let spec = format!("{{hosts: [a.com], http: [{spec}]}}");
        object(Kind::VirtualService, "shop", "o", &spec)
    };
    let to = |destination: &str| service(&format!("{{route: [{{destination: {{{destination}}}}}]}}"));
    let route = |parent: &str, backend: &str| {
        let spec = format!("{{parentRefs: [{{{parent}}}], rules: [{{backendRefs: [{{{backend}}}]}}]}}");
        object(Kind::HttpRoute, "shop", "o", &spec)
    };
    let (reviews, ratings) = ("group: '', kind: Service, name: reviews", "name: ratings, port: 9080");
    let unselected = "does not count: no discoverySelectors select its namespace";
    let entry = || {
        object(
            Kind::ServiceEntry,
            "far",
            "e",
            "{hosts: [b.com], ports: [{number: 80, name: h, protocol: HTTP}], resolution: DNS}",
        )
    };
    let gateway = |kind, spec: &str| object(kind, "far", "front", spec);
    let grant = |of: &str, what: &str| {
        let spec = format!(
            "{{from: [{{group: gateway.networking.k8s.io, kind: {of}, namespace: shop}}], to: [{{group: '', kind: {what}}}]}}"
        );
        object(Kind::ReferenceGrant, "far", "g", &spec)
    };
    let tls = "{gatewayClassName: undermesh, listeners: [{name: s, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: c, namespace: far}]}}]}";
    let door = "{gatewayClassName: undermesh, listeners: [{name: http, port: 80, protocol: HTTP}]}";
    let door = object(Kind::Gateway, "shop", "own", door);
    let select = "(have discoverySelectors select that namespace)";
    for (own, other, expected) in [
        (
            route("name: front, namespace: far", ratings),
            gateway(
                Kind::Gateway,
                "{gatewayClassName: undermesh, listeners: [{name: h, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}}]}",
            ),
            format!("w parentRefs[0]: Gateway far/front {unselected}"),
        ),
        (
            route("group: networking.istio.io, kind: ServiceEntry, name: e, namespace: far", ratings),
            entry(),
            format!("w parentRefs[0]: ServiceEntry far/e {unselected}"),
        ),
        (
            route("name: own", "name: stock, namespace: far, port: 80"),
            grant("HTTPRoute", "Service"),
            format!(
                "e rules[0].backendRefs[0]: the ReferenceGrant of far that lets a HTTPRoute of shop name Service stock {unselected} {select}"
            ),
        ),
        (
            route(reviews, "group: networking.istio.io, kind: Hostname, name: b.com, port: 80"),
            entry(),
            format!(
                "e rules[0].backendRefs[0]: ServiceEntry far/e of b.com {unselected} (make a ServiceEntry with this host)"
            ),
        ),
        (
            object(Kind::Gateway, "shop", "o", tls),
            grant("Gateway", "Secret"),
            format!(
                "e listeners[0].tls.certificateRefs[0]: the ReferenceGrant of far that lets a Gateway of shop name Secret c {unselected} {select}"
            ),
        ),
        (
            to("host: b.com"),
            entry(),
            format!(
                "e http[0].route[0].destination.host: ServiceEntry far/e of b.com {unselected} (requests that come here are answered with 500)"
            ),
        ),
        (
            to("host: stock.far.svc.cluster.local, subset: v1"),
            object(Kind::DestinationRule, "far", "d", "{host: stock, subsets: [{name: v1}]}"),
            format!(
                "e http[0].route[0].destination.subset: DestinationRule far/d, whose subset \"v1\" is, {unselected} (requests that come here are answered with 500)"
            ),
        ),
        (
            service("{match: [{uri: {prefix: /a}}], delegate: {name: v, namespace: far}}"),
            object(Kind::VirtualService, "far", "v", "{http: [{route: [{destination: {host: stock}}]}]}"),
            format!("e http[0].delegate: VirtualService far/v {unselected}"),
        ),
        (
            object(
                Kind::VirtualService,
                "shop",
                "o",
                "{hosts: [a.com], gateways: [far/front], http: [{route: [{destination: {host: reviews}}]}]}",
            ),
            gateway(
                Kind::IstioGateway,
                "{selector: {a: b}, servers: [{port: {number: 80, name: h, protocol: HTTP}, hosts: ['*']}]}",
            ),
            format!("w gateways[0]: Gateway far/front {unselected}"),
        ),
        (
            object(Kind::DestinationRule, "shop", "o", "{host: b.com}"),
            entry(),
            format!("w host: ServiceEntry far/e of b.com {unselected} (it changes nothing before there is one)"),
        ),
    ] {
        let spaces = |far: &str| vec![settings.clone(), space("shop", "in"), space("far", far), door.clone()];
        let around = |far: &str| [spaces(far), vec![own.clone(), other.clone()]].concat();
        // Secrets are no objects of this kind, and here there are none.
        let mut clear = said(&with(&around("in")));
        clear.retain(|line| !line.contains("there is no Secret"));
        assert_eq!(clear, [""; 0], "{expected}");
        let view = with(&around("out"));
        assert_eq!(said(&view), [expected]);
        assert_eq!(view.routes.iter().filter(|(key, _)| &*key.namespace == "far").count(), 0);
    }
}

#[test]
fn a_route_that_could_never_be_read_belongs_to_its_parents_and_counts_nowhere() {
    let route = |parents: &str| {
        let spec = format!("{{parentRefs: {parents}, rules: [{{backendRefs: [{{name: reviews}}]}}]}}");
        object(Kind::HttpRoute, "shop", "o", &spec)
    };
    let (ours, theirs) = ("{group: '', kind: Service, name: reviews}", "{group: example.com, kind: Mesh, name: x}");
    for (parents, expected) in [
        (format!("[{ours}]"), 1),
        (format!("[{theirs}, {ours}]"), 1),
        (format!("[{theirs}]"), 0),
        // It is told where it can be read what it belongs to.
        (format!("[7, {{kind: Service}}, {ours}, {ours}]"), 1),
        ("x".to_owned(), 0),
        (format!("[{}]", vec![theirs; 40].join(", ")), 0),
        (format!("[{}, {ours}]", vec![theirs; 40].join(", ")), 0),
    ] {
        let scan = scan(&[shop(), vec![route(&parents)]].concat());
        let Found { key, outcome: unread, .. } = scan.found.last().unwrap().clone();
        assert!(unread.is_err());
        let mut live = Live::default();
        scan.found.iter().for_each(|found| live.put(&found.key, &found.outcome));
        for objects in [live.objects().0, Catalog::default().apply(&scan).0] {
            let view = build(&objects, &Settings::default());
            let belonging = view.resolved.belonging(&key, &view.served, &view.listening);
            assert_eq!(belonging.as_ref().map_or(0, |all| all.parents.len()), expected, "{parents}");
            assert!(belonging.is_none_or(|all| all.broken.is_none()));
            assert!(view.resolved.by_service.is_empty() && view.resolved.routes.is_empty());
        }
        // It can be read later, and is gone in the end.
        let good = object(Kind::HttpRoute, "shop", "o", &format!("{{parentRefs: [{ours}]}}"));
        live.put(&key, &self::scan(&[good]).found[0].outcome);
        assert!(build(&live.objects().0, &Settings::default()).resolved.unread.is_empty());
        live.remove(&key);
        live.put(&key, &unread);
        assert_eq!(live.objects().0.unread_routes.len(), 1);
        live.remove(&key);
        assert!(live.objects().0.unread_routes.is_empty());
    }
}
