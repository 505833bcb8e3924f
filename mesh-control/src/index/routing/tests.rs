//! Routes beside the objects that they name: what is said of them, and what they mean together. Each table is read as manifests and as the API server has
//! them, and both must say the same.

use serde_json::{Value as Json, json};

use super::*;
use crate::cluster::decode::decode;
use crate::index::{View, build};
use crate::manifest::file;
use crate::resource::Kind;
use crate::resource::catalog::{Catalog, Found, Scan};

pub(super) fn object(kind: Kind, namespace: &str, name: &str, spec: &str) -> Json {
    let spec: Json = serde_saphyr::from_str(spec).unwrap_or_else(|e| panic!("{spec}: {e}"));
    let mut object = json!({ "apiVersion": kind.api_versions()[0], "kind": kind.name(),
        "metadata": { "name": name }, "spec": spec });
    if kind.is_namespaced() {
        object["metadata"]["namespace"] = json!(namespace);
    }
    object
}

fn made(mut object: Json, when: &str) -> Json {
    object["metadata"]["creationTimestamp"] = json!(format!("{when}T00:00:00Z"));
    object
}

fn service(namespace: &str, name: &str, port: u16) -> Json {
    object(
        Kind::Service,
        namespace,
        name,
        &format!("{{ports: [{{name: http, port: {port}}}], selector: {{app: {name}}}}}"),
    )
}

/// What stands in every case.
pub(super) fn shop() -> Vec<Json> {
    vec![
        service("shop", "reviews", 80),
        service("shop", "reviews-v1", 80),
        service("shop", "ratings", 9080),
        service("far", "stock", 80),
    ]
}

/// The view of some objects, from either source.
fn view(objects: &[Json]) -> View {
    let text: Vec<String> = objects.iter().map(|object| format!("---\n{object}\n")).collect();
    let read = file::read("a.yaml", text.concat().as_bytes());
    assert!(read.diagnoses.is_empty(), "{:?}", read.diagnoses);
    let scan = Scan { found: read.found.into_iter().map(|(found, _)| found).collect(), ..Scan::default() };
    let from_file = build(&Catalog::default().apply(&scan).0, &Settings::default());
    let mut scan = Scan::default();
    for object in objects {
        let version = object["apiVersion"].as_str().unwrap();
        let kind = Kind::named(version, object["kind"].as_str().unwrap()).unwrap();
        let item = decode(kind, version, object.clone()).unwrap();
        scan.found.push(Found { key: item.key, origin: String::new(), outcome: item.outcome });
    }
    let from_server = build(&Catalog::default().apply(&scan).0, &Settings::default());
    assert_eq!(from_file.resolved, from_server.resolved);
    assert_eq!(from_file.problems, from_server.problems);
    from_server
}

/// What is said of the object called `o`, without that nothing acts on it.
pub(super) fn said(view: &View) -> Vec<String> {
    let own = view.problems.iter().filter(|(key, problem)| &*key.name == "o" && !problem.field.is_empty());
    own.map(|(_, problem)| {
        let mark = problem.severity.to_string().chars().next().unwrap();
        let help = problem.help.as_ref().map(|help| format!(" ({help})")).unwrap_or_default();
        format!("{mark} {}: {}{help}", problem.field.trim_start_matches("spec."), problem.message)
    })
    .collect()
}

pub(super) fn with(more: &[Json]) -> View {
    view(&[shop(), more.to_vec()].concat())
}

#[test]
fn where_virtual_services_lead() {
    let rule = |namespace: &str, spec: &str| object(Kind::DestinationRule, namespace, "d", spec);
    let v1 = || rule("shop", "{host: reviews, subsets: [{name: v1, labels: {v: '1'}}]}");
    let to =
        |destination: &str| format!("{{hosts: [reviews], http: [{{route: [{{destination: {{{destination}}}}}]}}]}}");
    let place = "http[0].route[0].destination";
    let nowhere = "(requests that come here are answered with 500)";
    for (spec, more, expected) in [
        (to("host: reviews"), vec![], vec![]),
        (to("host: reviews.shop.svc.cluster.local, port: {number: 80}"), vec![], vec![]),
        (
            to("host: reviews, port: {number: 81}"),
            vec![],
            vec![format!("e {place}.port.number: reviews.shop.svc.cluster.local has no port 81 (it has 80)")],
        ),
        (
            to("host: review"),
            vec![],
            vec![format!(
                "e {place}.host: there is no service and no ServiceEntry with the host review.shop.svc.cluster.local (did you mean `reviews.shop.svc.cluster.local`?)"
            )],
        ),
        (
            to("host: stock.far"),
            vec![],
            vec![format!(
                "e {place}.host: there is no service and no ServiceEntry with the host stock.far (did you mean `stock.far.svc.cluster.local`?)"
            )],
        ),
        (
            to("host: a.example.com"),
            vec![],
            vec![format!("e {place}.host: there is no service and no ServiceEntry with the host a.example.com {nowhere}")],
        ),
        (
            to("host: a.example.com, port: {number: 443}"),
            vec![object(Kind::ServiceEntry, "far", "e", "{hosts: ['*.example.com'], ports: [{number: 443, name: tls, protocol: TLS}]}")],
            vec![],
        ),
        (
            to("host: a.example.com"),
            vec![object(
                Kind::ServiceEntry,
                "far",
                "e",
                "{hosts: [a.example.com], exportTo: [.], ports: [{number: 443, name: tls, protocol: TLS}], resolution: DNS}",
            )],
            vec![format!("e {place}.host: there is no service and no ServiceEntry with the host a.example.com {nowhere}")],
        ),
        (to("host: reviews, subset: v1"), vec![v1()], vec![]),
        (
            to("host: reviews, subset: v1"),
            vec![],
            vec![format!("e {place}.subset: no DestinationRule of reviews.shop.svc.cluster.local has a subset \"v1\" {nowhere}")],
        ),
        (
            to("host: reviews, subset: other"),
            vec![v1()],
            vec![format!("e {place}.subset: no DestinationRule of reviews.shop.svc.cluster.local has a subset \"other\" (there are v1)")],
        ),
        (
            to("host: reviews, subset: v1"),
            vec![rule("far", "{host: reviews.shop.svc.cluster.local, subsets: [{name: v1}]}")],
            vec![format!("e {place}.subset: no DestinationRule of reviews.shop.svc.cluster.local has a subset \"v1\" {nowhere}")],
        ),
        (
            to("host: reviews, subset: v1"),
            vec![rule("undermesh-system", "{host: reviews.shop.svc.cluster.local, subsets: [{name: v1}]}")],
            vec![],
        ),
        (
            "{hosts: [a.com], gateways: [./front], http: [{route: [{destination: {host: reviews}}]}]}".to_owned(),
            vec![object(Kind::IstioGateway, "shop", "front", "{selector: {a: b}, servers: [{port: {number: 80, name: h, protocol: HTTP}, hosts: ['*']}]}")],
            vec![],
        ),
        (
            "{hosts: [reviews], gateways: [front], http: [{route: [{destination: {host: reviews}}]}]}".to_owned(),
            vec![object(Kind::IstioGateway, "far", "front", "{selector: {a: b}, servers: [{port: {number: 80, name: h, protocol: HTTP}, hosts: ['*']}]}")],
            vec!["w gateways[0]: there is no Gateway shop/front (did you mean `far/front`?)".to_owned()],
        ),
        (
            "{hosts: [a.com], gateways: [far/front], http: [{match: [{uri: {prefix: /a}}], delegate: {name: o}}, {match: [{uri: {prefix: /b}}], delegate: {name: none}}, {delegate: {name: v}}]}".to_owned(),
            vec![
                object(Kind::IstioGateway, "far", "front", "{selector: {a: b}, servers: [{port: {number: 80, name: h, protocol: HTTP}, hosts: ['*']}]}"),
                object(Kind::VirtualService, "shop", "v", "{hosts: [b.com], http: [{route: [{destination: {host: reviews}}]}]}"),
            ],
            vec![
                "e http[0].delegate: it delegates to itself".to_owned(),
                "e http[1].delegate: there is no VirtualService shop/none".to_owned(),
                "e http[2].delegate: VirtualService shop/v has hosts of its own (only one without `hosts` can be delegated to)".to_owned(),
            ],
        ),
    ] {
        let view = with(&[vec![object(Kind::VirtualService, "shop", "o", &spec)], more].concat());
        assert_eq!(said(&view), expected, "{spec}");
    }
}

#[test]
fn hardening_B145_of_several_for_one_host_one_counts_whatever_comes_first() {
    let spec =
        |more: &str| format!("{{hosts: [reviews], {more} http: [{{route: [{{destination: {{host: reviews}}}}]}}]}}");
    let one = |namespace: &str, name: &str, when: &str, more: &str| {
        let spec = spec(more)
            .replace("[reviews]", "[reviews.shop.svc.cluster.local]")
            .replace("host: reviews}", "host: reviews.shop.svc.cluster.local}");
        made(object(Kind::VirtualService, namespace, name, &spec), when)
    };
    let (old, young) = ("2026-01-01", "2026-02-01");
    let first = |other: &str| {
        vec![format!(
            "w hosts[0]: VirtualService {other} has reviews.shop.svc.cluster.local in the mesh (the oldest counts, then the first by name: make one of the two)"
        )]
    };
    let route = object(
        Kind::HttpRoute,
        "shop",
        "r",
        "{parentRefs: [{group: '', kind: Service, name: reviews}], rules: [{backendRefs: [{name: reviews-v1, port: 80}]}]}",
    );
    for (what, own, others, expected) in [
        ("alone", one("shop", "o", old, ""), vec![], vec![]),
        ("the older", one("shop", "o", old, ""), vec![one("shop", "a", young, "")], vec![]),
        ("the younger", one("shop", "o", young, ""), vec![one("shop", "z", old, "")], first("shop/z")),
        ("as old, a later name", one("shop", "o", old, ""), vec![one("shop", "a", old, "")], first("shop/a")),
        ("as old, an earlier name", one("shop", "o", old, ""), vec![one("shop", "z", old, "")], vec![]),
        ("as old, an earlier namespace", one("shop", "o", old, ""), vec![one("far", "z", old, "")], first("far/z")),
        ("nobody sees both", one("shop", "o", young, "exportTo: [.],"), vec![one("far", "z", old, "exportTo: [.],")], vec![]),
        ("some see both", one("shop", "o", young, "exportTo: [.],"), vec![one("far", "z", old, "exportTo: [shop],")], first("far/z")),
        (
            "a route of the Gateway API",
            one("shop", "o", old, ""),
            vec![route],
            vec!["w hosts[0]: HTTPRoute shop/r is for reviews.shop.svc.cluster.local, too, and comes before any VirtualService".to_owned()],
        ),
    ] {
        let all = [shop(), vec![own], others].concat();
        let back: Vec<Json> = all.iter().rev().cloned().collect();
        let (one, two) = (view(&all), view(&back));
        assert_eq!(said(&one), expected, "{what}");
        assert_eq!(one.resolved, two.resolved, "{what}");
    }
    // At a gateway all are tried, in their order.
    let gateway = object(
        Kind::IstioGateway,
        "shop",
        "front",
        "{selector: {a: b}, servers: [{port: {number: 80, name: h, protocol: HTTP}, hosts: ['*']}]}",
    );
    let at = |name: &str, when: &str| {
        made(
            object(Kind::VirtualService, "shop", name, &spec("gateways: [front],").replace("[reviews]", "[a.com]")),
            when,
        )
    };
    let view = with(&[gateway, at("o", young), at("z", old)]);
    assert_eq!(
        said(&view),
        ["n hosts[0]: rules of VirtualService shop/z for a.com at Gateway shop/front are tried before these"]
    );
    let order: Vec<&str> =
        view.resolved.by_host[&("shop/front".to_owned(), "a.com".to_owned())].iter().map(|name| &*name.name).collect();
    assert_eq!(order, ["z", "o"]);
}

#[test]
fn hardening_B145_routes_with_one_match_are_in_the_same_order_for_everybody() {
    let route = |name: &str, when: &str, more: &str| {
        let spec = format!(
            "{{parentRefs: [{{group: '', kind: Service, name: reviews}}], rules: [{{matches: [{{path: {{value: /a}}}}], backendRefs: [{{name: reviews-v1, port: 80}}]}}, {{backendRefs: [{{name: reviews, port: 80}}], {more}}}]}}"
        );
        made(object(Kind::HttpRoute, "shop", name, &spec), when)
    };
    let (old, young) = ("2026-01-01", "2026-02-01");
    let prefix = "matches: [{path: {type: PathPrefix, value: /a/}}]";
    for (what, own, other, expected, order) in [
        (
            "the younger",
            route("o", young, ""),
            route("z", old, "matches: [{path: {value: /c}}]"),
            vec!["HTTPRoute shop/z"; 1],
            ["z", "o"],
        ),
        ("as old", route("o", old, "matches: [{path: {value: /b}}]"), route("z", old, ""), vec![], ["o", "z"]),
        (
            "within one it is the order",
            route("o", old, prefix),
            route("z", young, "matches: [{path: {value: /c}}]"),
            vec![],
            ["o", "z"],
        ),
    ] {
        let all = [shop(), vec![own, other]].concat();
        let back: Vec<Json> = all.iter().rev().cloned().collect();
        let (one, two) = (view(&all), view(&back));
        assert_eq!(one.resolved, two.resolved, "{what}");
        let names: Vec<&str> = one.resolved.by_service.values().flatten().map(|key| &*key.name).collect();
        assert_eq!(names, order, "{what}");
        let expected: Vec<String> = expected
            .iter()
            .map(|first| format!("w rules[0].matches[0]: {first} has the same match and comes first"))
            .collect();
        assert_eq!(said(&one), expected, "{what}");
    }
}

#[test]
fn hardening_B144_a_reference_that_leads_nowhere_breaks_its_own_share() {
    let of = |parent: &str, backend: &str| {
        format!(
            "{{parentRefs: [{{{parent}}}], rules: [{{backendRefs: [{{{backend}}}, {{name: reviews-v1, port: 80}}]}}]}}"
        )
    };
    let to = |backend: &str| of("name: edge", backend);
    let edge = "{gatewayClassName: undermesh, listeners: [{name: http, port: 80, protocol: HTTP}]}";
    let edge = object(Kind::Gateway, "shop", "edge", edge);
    let grant = |from: &str, to: &str| {
        object(
            Kind::ReferenceGrant,
            "far",
            "g",
            &format!(
                "{{from: [{{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: {from}}}], to: [{{group: '', kind: Service{to}}}]}}"
            ),
        )
    };
    let refused = "e rules[0].backendRefs[0]: no ReferenceGrant of far lets a HTTPRoute of shop name Service stock (make one in that namespace)";
    let hostname = |name: &str| format!("group: networking.istio.io, kind: Hostname, name: {name}, port: 80");
    let entry = |to: &str| {
        let spec = "hosts: [b.com], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS";
        object(Kind::ServiceEntry, "far", "e", &format!("{{{spec}, exportTo: [{to}]}}"))
    };
    for (backend, more, expected, reason) in [
        ("name: ratings, port: 9080", vec![], "", None),
        // The service itself: its endpoints, and no circle.
        ("name: reviews, port: 80", vec![], "", None),
        (
            "name: ratings, port: 80",
            vec![],
            "e rules[0].backendRefs[0]: ratings has no port 80 (it has 9080)",
            Some("BackendNotFound"),
        ),
        (
            "name: rating, port: 80",
            vec![],
            "e rules[0].backendRefs[0]: there is no Service shop/rating (did you mean `ratings.shop.svc.cluster.local`?)",
            Some("BackendNotFound"),
        ),
        ("name: stock, namespace: far, port: 80", vec![], refused, Some("RefNotPermitted")),
        ("name: stock, namespace: far, port: 80", vec![grant("shop", "")], "", None),
        ("name: stock, namespace: far, port: 80", vec![grant("shop", ", name: stock")], "", None),
        (
            "name: stock, namespace: far, port: 80",
            vec![grant("shop", ", name: other")],
            refused,
            Some("RefNotPermitted"),
        ),
        ("name: stock, namespace: far, port: 80", vec![grant("elsewhere", "")], refused, Some("RefNotPermitted")),
        (
            "group: storage.example.com, kind: Bucket, name: b",
            vec![],
            "e rules[0].backendRefs[0]: requests cannot go to a Bucket.storage.example.com (name a Service, or a Hostname of networking.istio.io)",
            Some("InvalidKind"),
        ),
        (
            "group: networking.istio.io, kind: Hostname, name: a.com, port: 443",
            vec![],
            "e rules[0].backendRefs[0]: there is no host a.com (make a ServiceEntry with this host)",
            Some("BackendNotFound"),
        ),
        // A Service of another namespace by its host is none other than by its name, whether it is there or not.
        (&hostname("stock.far.svc.cluster.local"), vec![], refused, Some("RefNotPermitted")),
        (&hostname("none.far.svc.cluster.local"), vec![], &refused.replace("stock", "none"), Some("RefNotPermitted")),
        (&hostname("stock.far.svc.cluster.local"), vec![grant("shop", ", name: stock")], "", None),
        (&hostname("reviews.shop.svc.cluster.local"), vec![], "", None),
        // What a ServiceEntry has is for whoever sees it.
        (&hostname("b.com"), vec![entry("'*'")], "", None),
        (
            &hostname("b.com"),
            vec![entry(".")],
            "e rules[0].backendRefs[0]: there is no host b.com (make a ServiceEntry with this host)",
            Some("BackendNotFound"),
        ),
    ] {
        let view = with(&[vec![edge.clone(), object(Kind::HttpRoute, "shop", "o", &to(backend))], more].concat());
        assert_eq!(said(&view).join("; "), expected, "{backend}");
        let route = view.resolved.routes.values().next().unwrap();
        let outcomes: Vec<Option<&str>> =
            route.backends.values().map(|outcome| outcome.as_ref().err().map(|broken| broken.reason.name())).collect();
        assert_eq!(outcomes, [reason, None], "{backend}: the other one is as it was");
    }
    // Within the mesh nothing is granted; but a route that a gateway has, too, exposes what it leads to.
    let (service, far) = ("group: '', kind: Service, name: reviews", "name: stock, namespace: far, port: 80");
    assert_eq!(said(&with(&[object(Kind::HttpRoute, "shop", "o", &of(service, far))])), [""; 0]);
    let both = of(&format!("{service}}}, {{name: edge"), far);
    assert_eq!(said(&with(&[edge.clone(), object(Kind::HttpRoute, "shop", "o", &both)])), [refused]);
    // Copies are references, too, and of other kinds of routes all are.
    let mirror = "{parentRefs: [{group: '', kind: Service, name: reviews}], rules: [{filters: [{type: RequestMirror, requestMirror: {backendRef: {name: none, port: 80}}}], backendRefs: [{name: ratings, port: 9080}]}]}";
    assert_eq!(said(&with(&[object(Kind::HttpRoute, "shop", "o", mirror)])).len(), 1);
    for kind in [Kind::GrpcRoute, Kind::TlsRoute, Kind::TcpRoute] {
        let route = object(
            kind,
            "shop",
            "o",
            "{parentRefs: [{group: '', kind: Service, name: reviews}], rules: [{backendRefs: [{name: none, port: 80}]}]}",
        );
        let expected = "e rules[0].backendRefs[0]: there is no Service shop/none (its requests are answered with 500)";
        assert_eq!(said(&with(&[route])), [expected], "{}", kind.name());
    }
}

#[test]
fn what_routes_belong_to() {
    let gateway = |class: &str, listeners: &str| {
        object(Kind::Gateway, "far", "front", &format!("{{gatewayClassName: {class}, listeners: [{listeners}]}}"))
    };
    let all = "allowedRoutes: {namespaces: {from: All}}";
    let http = |more: &str| gateway("undermesh", &format!("{{name: http, port: 80, protocol: HTTP, {more}}}"));
    let space =
        json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "shop", "labels": { "team": "a" } } });
    let front = "{name: front, namespace: far}";
    for (parent, more, expected, reason) in [
        ("{group: '', kind: Service, name: reviews}", vec![], "", Some("")),
        ("{group: '', kind: Service, name: reviews, port: 80}", vec![], "", Some("")),
        ("{group: '', kind: Service, name: reviews, sectionName: http}", vec![], "", Some("")),
        ("{group: '', kind: Service, name: none}", vec![], "there is no Service shop/none", Some("NoMatchingParent")),
        (
            "{group: '', kind: Service, name: reviews, port: 81}",
            vec![],
            "reviews has no port 81",
            Some("NoMatchingParent"),
        ),
        (
            "{group: '', kind: Service, name: reviews, sectionName: x}",
            vec![],
            "reviews has no port called \"x\"",
            Some("NoMatchingParent"),
        ),
        (
            "{group: '', kind: Service, name: pods}",
            vec![object(Kind::Service, "shop", "pods", "{clusterIP: None, ports: [{port: 80}], selector: {app: a}}")],
            "Service shop/pods is headless: nobody asks for it by an address, so no request is for it",
            Some("NoMatchingParent"),
        ),
        (
            "{group: '', kind: Service, name: alias}",
            vec![object(Kind::Service, "shop", "alias", "{type: ExternalName, externalName: a.example.com}")],
            "Service shop/alias is another name of a host: nobody asks for it by an address, so no request is for it",
            Some("NoMatchingParent"),
        ),
        (
            "{group: networking.istio.io, kind: ServiceEntry, name: x}",
            vec![],
            "there is no ServiceEntry shop/x",
            Some("NoMatchingParent"),
        ),
        ("{group: policy.example.com, kind: Mesh, name: x}", vec![], "", None),
        (front, vec![], "there is no Gateway far/front", None),
        (front, vec![gateway("theirs", "{name: http, port: 80, protocol: HTTP}")], "", None),
        (front, vec![http(all)], "", Some("")),
        (
            front,
            vec![
                gateway("theirs", &format!("{{name: http, port: 80, protocol: HTTP, {all}}}")),
                object(Kind::GatewayClass, "", "theirs", "{controllerName: undermesh.io/gateway-controller}"),
            ],
            "",
            Some(""),
        ),
        (
            "{name: front, namespace: far, sectionName: https}",
            vec![http(all)],
            "Gateway far/front has no listener called \"https\"",
            Some("NoMatchingParent"),
        ),
        (
            "{name: front, namespace: far, port: 81}",
            vec![http(all)],
            "Gateway far/front has no listener on port 81",
            Some("NoMatchingParent"),
        ),
        (
            front,
            vec![http("")],
            "no listener of Gateway far/front that is meant takes a HTTPRoute of shop: see `allowedRoutes` and `protocol`",
            Some("NotAllowedByListeners"),
        ),
        (
            front,
            vec![
                http("allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {team: a}}}}"),
                space.clone(),
            ],
            "",
            Some(""),
        ),
        (
            front,
            vec![http("allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {team: b}}}}"), space],
            "no listener of Gateway far/front that is meant takes a HTTPRoute of shop: see `allowedRoutes` and `protocol`",
            Some("NotAllowedByListeners"),
        ),
        (
            front,
            vec![http("allowedRoutes: {namespaces: {from: All}, kinds: [{kind: GRPCRoute}]}")],
            "no listener of Gateway far/front that is meant takes a HTTPRoute of shop: see `allowedRoutes` and `protocol`",
            Some("NotAllowedByListeners"),
        ),
        (
            front,
            vec![gateway("undermesh", &format!("{{name: tcp, port: 80, protocol: TCP, {all}}}"))],
            "no listener of Gateway far/front that is meant takes a HTTPRoute of shop: see `allowedRoutes` and `protocol`",
            Some("NotAllowedByListeners"),
        ),
        (front, vec![http(&format!("hostname: '*.com', {all}"))], "", Some("")),
        (
            front,
            vec![http(&format!("hostname: a.org, {all}"))],
            "no listener of Gateway far/front has any of a.com",
            Some("NoMatchingListenerHostname"),
        ),
    ] {
        let spec = format!(
            "{{parentRefs: [{parent}], hostnames: [a.com], rules: [{{backendRefs: [{{name: ratings, port: 9080}}]}}]}}"
        );
        let view = with(&[vec![object(Kind::HttpRoute, "shop", "o", &spec)], more].concat());
        let expected: Vec<String> = Some(expected)
            .filter(|text| !text.is_empty())
            .map(|text| format!("w parentRefs[0]: {text}"))
            .into_iter()
            .collect();
        assert_eq!(said(&view), expected, "{parent}");
        let found = view
            .resolved
            .routes
            .values()
            .next()
            .map(|route| route.parents[0].1.as_ref().err().map_or("", |refusal| refusal.reason.name()));
        assert_eq!(found, reason, "{parent}");
    }
    for (one, two, expected) in [
        ("a.com", "A.com", true),
        ("*.com", "a.b.com", true),
        ("*.com", "com", false),
        ("*.b.com", "*.com", true),
        ("*.a.com", "*.b.com", false),
    ] {
        assert_eq!((parents::intersect(one, two), parents::intersect(two, one)), (expected, expected), "{one} {two}");
    }
}

#[test]
fn a_name_of_tls_that_an_older_route_has_is_told() {
    let route = |name: &str, when: &str, names: &str| {
        let spec = format!(
            "{{parentRefs: [{{name: front}}], hostnames: [{names}], rules: [{{backendRefs: [{{name: reviews, port: 80}}]}}]}}"
        );
        made(object(Kind::TlsRoute, "shop", name, &spec), when)
    };
    let spec =
        "{gatewayClassName: undermesh, listeners: [{name: tls, port: 443, protocol: TLS, tls: {mode: Passthrough}}]}";
    let front = object(Kind::Gateway, "shop", "front", spec);
    for (names, expected) in [
        ("a.com", vec![]),
        ("c.com, B.com", vec!["w hostnames[1]: TLSRoute shop/old has the same match and comes first"]),
    ] {
        let all = [front.clone(), route("old", "2026-01-01", "x.com, b.com"), route("o", "2026-02-01", names)];
        assert_eq!(said(&with(&all)), expected, "{names}");
    }
}

#[test]
fn gateways_and_destination_rules_beside_what_they_name() {
    let tls = |reference: &str| {
        format!(
            "{{gatewayClassName: undermesh, listeners: [{{name: s, port: 443, protocol: HTTPS, tls: {{certificateRefs: [{{{reference}}}]}}}}]}}"
        )
    };
    let grant = object(
        Kind::ReferenceGrant,
        "far",
        "g",
        "{from: [{group: gateway.networking.k8s.io, kind: Gateway, namespace: shop}], to: [{group: '', kind: Secret}]}",
    );
    let field = "listeners[0].tls.certificateRefs[0]";
    for (spec, more, expected) in [
        (
            tls("name: c"),
            vec![],
            format!("e {field}: there is no Secret shop/c (until then the listener refuses connections)"),
        ),
        (
            tls("name: c, kind: ConfigMap"),
            vec![],
            format!("e {field}: a ConfigMap is no certificate (name a Secret of type kubernetes.io/tls)"),
        ),
        (
            tls("name: c, namespace: far"),
            vec![],
            format!(
                "e {field}: no ReferenceGrant of far lets a Gateway of shop name Secret c (make one in that namespace)"
            ),
        ),
        (
            tls("name: c, namespace: far"),
            vec![grant],
            format!("e {field}: there is no Secret far/c (until then the listener refuses connections)"),
        ),
        (
            "{gatewayClassName: undermsh, listeners: [{name: h, port: 80, protocol: HTTP}]}".to_owned(),
            vec![],
            "w gatewayClassName: there is no GatewayClass \"undermsh\" (did you mean `undermesh`?)".to_owned(),
        ),
        (
            "{gatewayClassName: theirs, listeners: [{name: h, port: 80, protocol: HTTP}]}".to_owned(),
            vec![object(Kind::GatewayClass, "", "theirs", "{controllerName: example.com/c}")],
            String::new(),
        ),
    ] {
        let view = with(&[vec![object(Kind::Gateway, "shop", "o", &spec)], more].concat());
        assert_eq!(said(&view).join("; "), expected, "{spec}");
    }
    let policy = "trafficPolicy: {connectionPool: {tcp: {maxConnections: 1}}}";
    let other = |spec: &str| made(object(Kind::DestinationRule, "shop", "a", spec), "2026-01-01");
    for (spec, more, expected) in [
        ("{host: reviews}".to_owned(), vec![], vec![]),
        ("{host: '*.shop.svc.cluster.local'}".to_owned(), vec![], vec![]),
        (
            "{host: '*.none.svc.cluster.local'}".to_owned(),
            vec![],
            vec![
                "w host: there is no service and no ServiceEntry with the host *.none.svc.cluster.local (it changes nothing before there is one)",
            ],
        ),
        (
            "{host: revews}".to_owned(),
            vec![],
            vec![
                "w host: there is no service and no ServiceEntry with the host revews.shop.svc.cluster.local (did you mean `reviews.shop.svc.cluster.local`?)",
            ],
        ),
        (
            format!("{{host: reviews, {policy}, subsets: [{{name: v1}}]}}"),
            vec![other(&format!(
                "{{host: reviews.shop.svc.cluster.local, {policy}, subsets: [{{name: v1}}, {{name: v2}}]}}"
            ))],
            vec![
                "w subsets[0].name: DestinationRule shop/a has a subset \"v1\" of reviews.shop.svc.cluster.local, too (the oldest counts, then the first by name)",
                "w trafficPolicy: that of DestinationRule shop/a counts for reviews.shop.svc.cluster.local (the oldest counts, then the first by name)",
            ],
        ),
        (format!("{{host: reviews, {policy}}}"), vec![other("{host: reviews, subsets: [{name: v2}]}")], vec![]),
    ] {
        let own = made(object(Kind::DestinationRule, "shop", "o", &spec), "2026-02-01");
        assert_eq!(said(&with(&[vec![own], more].concat())), expected, "{spec}");
    }
}

#[test]
fn nothing_is_said_of_istio_s_own_kinds_where_an_istio_runs() {
    let istiod = object(Kind::Service, "istio-system", "istiod", "{ports: [{port: 15012}], selector: {app: istiod}}");
    let service =
        object(Kind::VirtualService, "shop", "o", "{hosts: [x], http: [{route: [{destination: {host: none}}]}]}");
    assert_eq!(said(&with(std::slice::from_ref(&service))).len(), 1);
    assert_eq!(said(&with(&[service, istiod])), [""; 0]);
}
