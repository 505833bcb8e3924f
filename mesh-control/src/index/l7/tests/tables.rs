//! Who sees which rules of a service: clients of which namespace, on which port, of which API.

use super::*;

fn all_to(place: &str) -> String {
    format!("rules: [{{backendRefs: [{{name: {place}, namespace: shop, port: 80}}]}}]")
}

fn route(namespace: &str, name: &str, parent: &str, place: &str) -> Json {
    let spec = format!("{{parentRefs: [{{group: '', kind: Service, namespace: shop, {parent}}}], {}}}", all_to(place));
    object(Kind::HttpRoute, namespace, name, &spec)
}

fn rules(namespace: &str, name: &str, more: &str, place: &str) -> Json {
    let to = format!("{{destination: {{host: {place}.shop.svc.cluster.local, port: {{number: 80}}}}}}");
    let spec = format!("{{hosts: [web.shop.svc.cluster.local], {more} http: [{{route: [{to}]}}]}}");
    object(Kind::VirtualService, namespace, name, &spec)
}

#[test]
fn features_GA_10_and_GA_11_producers_and_consumers() {
    let producer = || route("shop", "p", "name: web", "v1");
    let consumer = || route("blog", "c", "name: web", "v2");
    check(&[
        (&[], &[("GET http://web/", "-"), ("GET http://web/ ~blog", "-")]),
        (&[producer()], &[("GET http://web/", "v1:80"), ("GET http://web/ ~blog", "v1:80"), ("GET http://v1/", "-")]),
        (
            &[consumer()],
            &[("GET http://web/ ~blog", "v2:80"), ("GET http://web/ ~shop", "-"), ("GET http://web/", "-")],
        ),
        (
            &[producer(), consumer()],
            &[("GET http://web/ ~blog", "v2:80"), ("GET http://web/ ~shop", "v1:80"), ("GET http://web/", "v1:80")],
        ),
    ]);
    // They are not taken together: what no rule of a consumer means is not the producer's.
    let one = "{parentRefs: [{group: '', kind: Service, name: web, namespace: shop}], rules: [{matches: [{path: {value: /a}}], backendRefs: [{name: v2, namespace: shop, port: 80}]}]}";
    check(&[(
        &[producer(), object(Kind::HttpRoute, "blog", "c", one)],
        &[("GET http://web/a ~blog", "v2:80"), ("GET http://web/b ~blog", "404"), ("GET http://web/b ~news", "v1:80")],
    )]);
}

#[test]
fn features_GA_10_a_route_may_be_for_one_port() {
    check(&[
        (
            &[route("shop", "o", "name: web, port: 8080", "v1")],
            &[("GET http://web/ :8080", "v1:80"), ("GET http://web/", "-")],
        ),
        (
            &[route("shop", "o", "name: web, sectionName: http-8080", "v1")],
            &[("GET http://web/ :8080", "v1:80"), ("GET http://web/", "-")],
        ),
        (
            &[route("shop", "a", "name: web, port: 80", "v1"), route("shop", "b", "name: web, port: 8080", "v2")],
            &[("GET http://web/", "v1:80"), ("GET http://web/ :8080", "v2:80")],
        ),
    ]);
}

#[test]
fn features_GA_10_other_namespaces_need_no_grant_in_the_mesh() {
    let spec = "{parentRefs: [{group: '', kind: Service, name: web}], rules: [{backendRefs: [{name: stock, namespace: far, port: 80}]}]}";
    let mesh = mesh(&[http_route(spec)]);
    assert_eq!(mesh.ask("GET http://web/"), "stock:80");
    assert_eq!(mesh.told(), [] as [&str; 0]);
}

#[test]
fn features_GA_12_the_address_decides_and_not_the_host() {
    check(&[(
        &[route("shop", "o", "name: web", "v1")],
        &[("GET http://anything.example.com/ >web", "v1:80"), ("GET http://web.shop.svc.cluster.local/ >v1", "-")],
    )]);
}

#[test]
fn routes_of_the_gateway_api_come_before_virtual_services() {
    let old = made(rules("shop", "o", "", "v1"), "2020-01-01");
    let told = |mesh: &Mesh| mesh.told().iter().any(|said| said.contains("comes before any VirtualService"));
    let both = mesh(&[old.clone(), route("shop", "r", "name: web", "v2")]);
    assert_eq!((both.ask("GET http://web/"), told(&both)), ("v2:80".to_owned(), true));
    // Only where they count.
    let consumers = mesh(&[old.clone(), route("blog", "r", "name: web", "v2")]);
    assert_eq!(consumers.ask("GET http://web/ ~blog"), "v2:80");
    assert_eq!(consumers.ask("GET http://web/ ~news"), "v1:80");
    let one_port = mesh(&[old, route("shop", "r", "name: web, port: 8080", "v2")]);
    assert_eq!(one_port.ask("GET http://web/ :8080"), "v2:80");
    assert_eq!(one_port.ask("GET http://web/"), "v1:80");
}

#[test]
fn features_VS_1_VS_2_VS_3_hosts_gateways_and_exports() {
    let in_web = |hosts: &str, more: &str| {
        virtual_service(&format!("{{hosts: [{hosts}], {more} http: [{{route: [{{destination: {{host: v3}}}}]}}]}}"))
    };
    check(&[
        (&[in_web("web", "")], &[("GET http://web/", "v3:80"), ("GET http://v1/", "-")]),
        (
            &[in_web("'*.shop.svc.cluster.local'", "")],
            &[("GET http://web/", "v3:80"), ("GET http://v1/", "v3:80"), ("GET http://stock/ >far/stock", "-")],
        ),
        (
            &[in_web("'*.shop.svc.cluster.local'", ""), rules("shop", "z", "", "v1")],
            &[("GET http://web/", "v1:80"), ("GET http://v2/", "v3:80")],
        ),
        (&[in_web("web", "gateways: [edge],")], &[("GET http://web/", "-")]),
        (&[in_web("web", "gateways: [edge, mesh],")], &[("GET http://web/", "v3:80")]),
        (
            &[rules("shop", "o", "exportTo: [.],", "v1")],
            &[("GET http://web/ ~shop", "v1:80"), ("GET http://web/ ~blog", "-"), ("GET http://web/", "-")],
        ),
        (
            &[rules("shop", "o", "exportTo: [blog, news],", "v1")],
            &[("GET http://web/ ~news", "v1:80"), ("GET http://web/ ~shop", "-")],
        ),
        (&[rules("shop", "o", "exportTo: ['~'],", "v1")], &[("GET http://web/ ~shop", "-")]),
    ]);
}

#[test]
fn features_VS_22_the_oldest_that_a_client_sees() {
    let (old, young) = ("2026-01-01", "2026-02-01");
    check(&[
        (
            &[made(rules("shop", "a", "", "v1"), young), made(rules("shop", "b", "", "v2"), old)],
            &[("GET http://web/", "v2:80")],
        ),
        (
            &[made(rules("blog", "a", "exportTo: [.],", "v1"), old), made(rules("shop", "b", "", "v2"), young)],
            &[("GET http://web/ ~blog", "v1:80"), ("GET http://web/ ~shop", "v2:80"), ("GET http://web/", "v2:80")],
        ),
        (
            &[made(rules("blog", "a", "exportTo: [.],", "v1"), young), made(rules("shop", "b", "", "v2"), old)],
            &[("GET http://web/ ~blog", "v2:80")],
        ),
    ]);
}

#[test]
fn features_VS_12_delegates() {
    let root = |matches: &str, more: &str| {
        virtual_service(&format!(
            "{{hosts: [web], http: [{{match: [{matches}], delegate: {{name: d, namespace: far}}, {more}}}, {{route: [{{destination: {{host: v2, port: {{number: 80}}}}}}]}}]}}"
        ))
    };
    let other = |matches: &str, more: &str| {
        let matches = if matches.is_empty() { String::new() } else { format!("match: [{matches}],") };
        object(
            Kind::VirtualService,
            "far",
            "d",
            &format!("{{http: [{{{matches} route: [{{destination: {{host: stock}}}}], {more}}}]}}"),
        )
    };
    let prefix = |text: &str| format!("{{uri: {{prefix: {text}}}}}");
    let to = |mine: &str, theirs: &str| [root(mine, ""), other(theirs, "")];
    check(&[
        // Without a match of its own; names are of its own namespace.
        (&to(&prefix("/a"), ""), &[("GET http://web/a", "stock:80"), ("GET http://web/b", "v2:80")]),
        (&to(&prefix("/a"), &prefix("/a/b")), &[("GET http://web/a/b", "stock:80"), ("GET http://web/a", "v2:80")]),
        // The narrower one, whoever says it.
        (&to(&prefix("/a/b"), &prefix("/a")), &[("GET http://web/a/b", "stock:80"), ("GET http://web/a", "v2:80")]),
        (
            &to(&prefix("/a"), "{uri: {exact: /a/b}, headers: {x: {exact: '1'}}}"),
            &[("GET http://web/a/b x=1", "stock:80"), ("GET http://web/a/b", "v2:80")],
        ),
        (
            &to("{headers: {y: {exact: '1'}}}", "{headers: {x: {exact: '1'}}, method: {exact: GET}}"),
            &[
                ("GET http://web/ x=1 y=1", "stock:80"),
                ("GET http://web/ x=1", "v2:80"),
                ("PUT http://web/ x=1 y=1", "v2:80"),
            ],
        ),
        (
            &to("{uri: {regex: '/a.*'}}", "{uri: {exact: /ab}}"),
            &[("GET http://web/ab", "stock:80"), ("GET http://web/ac", "v2:80")],
        ),
        // What cannot be compared is closed, as far as the rule that delegates goes.
        (
            &to("{uri: {regex: '/a.*'}}", &prefix("/ab")),
            &[
                ("GET http://web/ab", "500 the match that is delegated to and that of the rule cannot be compared"),
                ("GET http://web/b", "v2:80"),
            ],
        ),
        (
            &[
                root(&prefix("/a"), "timeout: 3s, headers: {request: {set: {x: '1', y: '1'}}}"),
                other("", "headers: {request: {set: {y: '2'}}}"),
            ],
            &[("GET http://web/a", "stock:80 req x=1,y=2 within 3s")],
        ),
        (
            &[root(&prefix("/a"), "timeout: 3s"), other("", "timeout: 0s, rewrite: {uri: /b}")],
            &[("GET http://web/a/c", "stock:80 path /b/c")],
        ),
        // One that is not there.
        (
            &[root(&prefix("/a"), "")],
            &[
                (
                    "GET http://web/a",
                    "500 spec.http[0].delegate: VirtualService far/d does not count, or there is none",
                ),
                ("GET http://web/b", "v2:80"),
            ],
        ),
    ]);
    let never = mesh(&to(&prefix("/a"), &prefix("/b")));
    assert_eq!(
        (never.ask("GET http://web/a"), never.ask("GET http://web/b")),
        ("v2:80".to_owned(), "v2:80".to_owned())
    );
    assert_eq!(never.told(), ["w http[0].delegate: no request comes to http[0] of VirtualService far/d"]);
    let hidden =
        object(Kind::VirtualService, "far", "d", "{exportTo: [.], http: [{route: [{destination: {host: stock}}]}]}");
    let hidden = mesh(&[root(&prefix("/a"), ""), hidden]);
    assert_eq!(
        hidden.ask("GET http://web/a"),
        "500 spec.http[0].delegate: VirtualService far/d is not exported to shop"
    );
    assert_eq!(hidden.told(), ["e http[0].delegate: VirtualService far/d is not exported to shop"]);
}

#[test]
fn too_many_alternatives_close_the_rule() {
    let many = |count: usize| {
        let one = |n: usize| format!("{{headers: {{x: {{exact: '{n}'}}}}}}");
        (0..count).map(one).collect::<Vec<_>>().join(", ")
    };
    let root = virtual_service(&format!("{{hosts: [web], http: [{{match: [{}], delegate: {{name: d}}}}]}}", many(70)));
    let other = format!("{{http: [{{match: [{}], route: [{{destination: {{host: v3}}}}]}}]}}", many(70));
    let mesh = mesh(&[root, object(Kind::VirtualService, "shop", "d", &other)]);
    assert_eq!(mesh.ask("GET http://web/ x=1"), "500 spec.http[0].delegate: more than 4096 conditions come of it");
    assert_eq!(mesh.told(), ["e http[0].delegate: more than 4096 conditions come of it"]);
}

#[test]
fn what_says_the_same_is_the_same() {
    let made = |place: &str| {
        let mesh = mesh(&[rules("shop", "o", "", place)]);
        let (gateway, mut made) = (NamespacedName::new("shop", "waypoint"), Made::default());
        made.tables.insert(gateway.clone(), mesh.table);
        made.clusters.insert(gateway, mesh.clusters);
        made
    };
    let before = made("v1");
    for (place, same) in [("v1", true), ("v2", false)] {
        let mut now = made(place);
        now.keep(&before);
        let tables = now.tables.values().zip(before.tables.values()).all(|(one, two)| Arc::ptr_eq(one, two));
        assert_eq!(tables, same, "{place}");
        // All services are served, whatever routes say: the places are the same.
        assert!(now.clusters.values().zip(before.clusters.values()).all(|(one, two)| Arc::ptr_eq(one, two)));
    }
}

#[test]
fn a_join_tells_what_cannot_be_done_once() {
    let closed = "{match: [{headers: {'@request.auth.claims.a': {exact: b}}}], delegate: {name: d}}";
    let root = |name: &str| {
        let spec = format!("{{hosts: [{name}], http: [{closed}]}}");
        object(Kind::VirtualService, "shop", name, &spec)
    };
    let other = object(
        Kind::VirtualService,
        "shop",
        "d",
        "{http: [{route: [{destination: {host: v3}}], headers: {request: {remove: [te]}}}]}",
    );
    let view = crate::index::build(&objects(&[root("web"), root("v1"), other]), &Settings::default());
    let told = |name: &str| view.problems.iter().filter(|(key, p)| key.name == name && !p.field.is_empty()).count();
    assert_eq!((told("web"), told("v1"), told("d")), (1, 1, 1));
    assert!(view.tables.is_empty() && view.clusters.is_empty());
}

#[test]
fn features_GA_10_routes_with_a_service_entry_as_parent_are_for_its_hosts() {
    let ports = "ports: [{number: 80, name: http, protocol: HTTP}]";
    let entry = |name: &str, hosts: &str| {
        object(Kind::ServiceEntry, "shop", name, &format!("{{hosts: [{hosts}], resolution: DNS, {ports}}}"))
    };
    let route = |parent: &str| {
        http_route(&format!(
            "{{parentRefs: [{{group: networking.istio.io, kind: ServiceEntry, name: {parent}}}], rules: [{{backendRefs: [{{name: v1, port: 80}}]}}]}}"
        ))
    };
    let both = ["a.example.com", "b.example.com"];
    for (what, parent, served, expected, acts) in [
        ("both", "two", &both[..], &both[..], true),
        ("one has no waypoint", "two", &both[..1], &both[..1], false),
        ("none has", "two", &[], &[], false),
        // The older one has the host.
        ("of another", "late", &both[..], &[], false),
    ] {
        let objects = objects(&[
            super::made(entry("late", "b.example.com"), "2024-02-02"),
            super::made(entry("two", "a.example.com, b.example.com"), "2020-01-01"),
            route(parent),
        ]);
        let settings = Settings::default();
        let indexed = super::super::super::routing::index(&objects, &settings);
        let gateway = NamespacedName::new("shop", "waypoint");
        let services = served.iter().map(|host| NamespacedName::new("shop", *host)).collect();
        let served: Served = [(gateway.clone(), services)].into();
        let made = super::super::index(&settings, &Around::new(&objects, &settings, &indexed), &served);
        let hosts: Vec<&str> = made.tables[&gateway].hosts().iter().map(|host| host.name.as_str()).collect();
        assert_eq!(hosts, expected, "{what}");
        let key = Key { kind: Kind::HttpRoute, namespace: "shop".into(), name: "o".into() };
        assert_eq!(indexed.resolved.acts(&key, &made.served, &made.listening), acts, "{what}");
    }
}
