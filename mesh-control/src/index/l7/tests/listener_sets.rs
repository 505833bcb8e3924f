//! ListenerSets beside Gateways and routes: who is attached to whom, what is listened for, and what each is told. Cases are called as in the Gateway API's
//! conformance suite where it has them.

use mesh_core::listener::{Encryption, Listeners};

use super::listeners::ask;
use super::*;
use crate::index::View;
use crate::index::l7::listeners::told::ListenerTold;

fn view(all: &[Json]) -> View {
    crate::index::build(&objects(all), &Settings::default())
}

/// A Gateway of ours in `shop`, which listens for `gateway.com`.
fn edge(more: &str) -> Json {
    let listeners =
        "[{name: own, port: 80, protocol: HTTP, hostname: gateway.com, allowedRoutes: {namespaces: {from: All}}}]";
    object(Kind::Gateway, "shop", "edge", &format!("{{gatewayClassName: undermesh, listeners: {listeners}{more}}}"))
}

fn from(from: &str) -> String {
    format!(", allowedListeners: {{namespaces: {{from: {from}}}}}")
}

fn set(namespace: &str, name: &str, listeners: &str) -> Json {
    let spec = format!("{{parentRef: {{name: edge, namespace: shop}}, listeners: [{listeners}]}}");
    object(Kind::ListenerSet, namespace, name, &spec)
}

/// A listener of HTTP on port 80.
fn http(name: &str, more: &str) -> String {
    format!("{{name: {name}, port: 80, protocol: HTTP, hostname: {name}.com{more}}}")
}

fn namespace(name: &str, labels: &Json) -> Json {
    json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": labels } })
}

/// A route with these parents, from the prefix of its name to `service`.
fn route(namespace: &str, name: &str, parents: &str, service: &str) -> Json {
    let rule = format!(
        "{{matches: [{{path: {{value: /{name}}}}}], backendRefs: [{{name: {service}, namespace: shop, port: 80}}]}}"
    );
    object(Kind::HttpRoute, namespace, name, &format!("{{parentRefs: [{parents}], rules: [{rule}]}}"))
}

fn grant(from: &str, kind: &str, to: &str, of: &str) -> Json {
    let from = format!("[{{group: gateway.networking.k8s.io, kind: {kind}, namespace: {from}}}]");
    object(
        Kind::ReferenceGrant,
        of,
        &format!("g-{}", kind.to_lowercase()),
        &format!("{{from: {from}, to: [{{group: '', kind: {to}}}]}}"),
    )
}

fn listeners(view: &View) -> &Listeners {
    &view.listeners[&NamespacedName::new("shop", "edge")]
}

fn word(why: Option<&(&'static str, String)>) -> &'static str {
    why.map_or("-", |why| why.0)
}

/// Of each set whether it is accepted, or why it is refused; and of its listeners how many routes they have and what is wrong.
fn told(view: &View) -> Vec<String> {
    let one = |one: &ListenerTold| format!("{}:{}:{}", one.name, one.attached, word(one.why_not()));
    let of = |(name, set): (&NamespacedName, &crate::index::l7::listeners::told::SetTold)| {
        let all: Vec<String> = set.listeners.iter().map(one).collect();
        let standing = if set.is_accepted() { "accepted" } else { word(set.refused.as_ref()) };
        format!("{name} {standing} {}", all.join(" ")).trim_end().to_owned()
    };
    view.listeners_told.sets.iter().map(of).collect()
}

/// What a route is told of each of its parents, in their order; `served` of those where it is in force.
fn parents(view: &View, namespace: &str, name: &str) -> Vec<&'static str> {
    let key = Key { kind: Kind::HttpRoute, namespace: namespace.into(), name: name.into() };
    let belonging = view.resolved.belonging(&key, &view.served, &view.listening).unwrap();
    let of = |(parent, refused): &(_, Option<(&'static str, String)>)| match refused {
        Some((reason, _)) => reason,
        None if belonging.served.contains(parent) => "served",
        None => "pending",
    };
    belonging.parents.iter().map(of).collect()
}

const SET: &str = "group: gateway.networking.k8s.io, kind: ListenerSet, namespace: shop";

#[test]
fn features_GA_9_ListenerSetAllowedNamespace_and_what_counts_where_nothing_is_said() {
    let selector = ", allowedListeners: {namespaces: {from: Selector, selector: {matchLabels: {allowed: ns}}}}";
    for (allowed, expected) in [
        ("", ["NotAllowed", "NotAllowed", "NotAllowed"]),
        (", allowedListeners: {}", ["NotAllowed", "NotAllowed", "NotAllowed"]),
        (", allowedListeners: {namespaces: {}}", ["NotAllowed", "NotAllowed", "NotAllowed"]),
        (&from("None"), ["NotAllowed", "NotAllowed", "NotAllowed"]),
        (&from("Same"), ["NotAllowed", "NotAllowed", "accepted l:0:-"]),
        (&from("All"), ["accepted l:0:-", "accepted l:0:-", "accepted l:0:-"]),
        (selector, ["accepted l:0:-", "NotAllowed", "NotAllowed"]),
    ] {
        let sets = ["chosen", "other", "shop"]
            .map(|of| set(of, "s", &format!("{{name: l, port: 80, protocol: HTTP, hostname: {of}.com}}")));
        let all = [
            sets.to_vec(),
            vec![edge(allowed), namespace("chosen", &json!({ "allowed": "ns" })), namespace("other", &json!({}))],
        ];
        let view = view(&all.concat());
        let found: Vec<String> =
            ["chosen", "other", "shop"].iter().zip(expected).map(|(of, one)| format!("{of}/s {one}")).collect();
        assert_eq!(told(&view), found, "{allowed}");
        let said = |of: &str| {
            view.problems
                .iter()
                .any(|(key, problem)| *key.namespace == *of && problem.message.contains("allowedListeners"))
        };
        for (of, one) in ["chosen", "other", "shop"].into_iter().zip(expected) {
            assert_eq!(
                ask(listeners(&view), 80, &format!("{of}.com/")) == "404",
                one != "NotAllowed",
                "{allowed} {of}"
            );
            assert_eq!(said(of), one == "NotAllowed", "{allowed} {of}");
        }
    }
}

#[test]
fn features_GA_9_ListenerSetAllowedRoutesNamespaces() {
    let takes = |from: &str| format!(", allowedRoutes: {{namespaces: {{from: {from}}}}}");
    let inner = [
        http("all", &takes("All")),
        http("same", &takes("Same")),
        http("selector", &takes("Selector, selector: {matchLabels: {allowed: ns}}")),
    ];
    let to = |name: &str, namespace: &str| {
        format!("{{group: gateway.networking.k8s.io, kind: ListenerSet, name: {name}, namespace: {namespace}}}")
    };
    let far = to("cross", "far-set");
    let all = [
        edge(&from("All")),
        namespace("chosen", &json!({ "allowed": "ns" })),
        set("shop", "s", &inner.join(", ")),
        set("far-set", "cross", &http("cross", "")),
        route("shop", "near", &to("s", "shop"), "v1"),
        route("chosen", "chosen", &to("s", "shop"), "v2"),
        route("other", "other", &to("s", "shop"), "v3"),
        route("far-set", "beside", &far, "v1"),
        route("shop", "gate", &far, "v2"),
        grant("chosen", "HTTPRoute", "Service", "shop"),
    ];
    let mut more = all.to_vec();
    for (at, of) in ["other", "far-set"].into_iter().enumerate() {
        let mut one = grant(of, "HTTPRoute", "Service", "shop");
        one["metadata"]["name"] = json!(format!("g{at}"));
        more.push(one);
    }
    let view = view(&more);
    assert_eq!(told(&view), ["far-set/cross accepted cross:1:-", "shop/s accepted all:3:- same:1:- selector:1:-"]);
    for (host, paths) in
        [("all", ["v1:80", "v2:80", "v3:80"]), ("same", ["v1:80", "404", "404"]), ("selector", ["404", "v2:80", "404"])]
    {
        for (path, expected) in ["near", "chosen", "other"].iter().zip(paths) {
            assert_eq!(ask(listeners(&view), 80, &format!("{host}.com/{path}")), expected, "{host} {path}");
        }
    }
    // Its own namespace is that of the set, and not the Gateway's.
    assert_eq!(ask(listeners(&view), 80, "cross.com/beside"), "v1:80");
    assert_eq!(ask(listeners(&view), 80, "cross.com/gate"), "404");
    assert_eq!(
        (parents(&view, "far-set", "beside"), parents(&view, "shop", "gate")),
        (vec!["served"], vec!["NotAllowedByListeners"])
    );
}

#[test]
fn features_GA_9_ListenerSetAllowedRoutesSupportedKinds() {
    let tls = "{name: l, port: 443, protocol: TLS, hostname: a.com, allowedRoutes: {kinds: [{kind: HTTPRoute}]}, tls: {mode: Passthrough}}";
    let view = view(&[edge(&from("All")), set("shop", "s", tls)]);
    assert_eq!(told(&view), ["shop/s - l:0:InvalidRouteKinds"]);
}

#[test]
fn features_GA_9_ListenerSetHTTPRouting() {
    let gateway = format!("{{name: edge}}, {{{SET}, name: a}}, {{{SET}, name: b}}");
    let all = [
        edge(&from("All")),
        set("shop", "a", &[http("a1", ""), http("a2", "")].join(", ")),
        set("shop", "b", &http("b1", "")),
        route("shop", "everywhere", &gateway, "v1"),
        route("shop", "gate", "{name: edge}", "v2"),
        route("shop", "of-a", &format!("{{{SET}, name: a}}"), "v2"),
        route("shop", "of-a1", &format!("{{{SET}, name: a, sectionName: a1}}"), "v3"),
        route("shop", "of-port", &format!("{{{SET}, name: b, port: 80}}"), "v3"),
        route("shop", "of-nothing", &format!("{{{SET}, name: b, port: 81}}, {{{SET}, name: missing}}"), "v3"),
    ];
    let view = view(&all);
    assert_eq!(told(&view), ["shop/a accepted a1:3:- a2:2:-", "shop/b accepted b1:2:-"]);
    for (path, expected) in [
        ("everywhere", ["v1:80", "v1:80", "v1:80", "v1:80"]),
        ("gate", ["v2:80", "404", "404", "404"]),
        ("of-a", ["404", "v2:80", "v2:80", "404"]),
        ("of-a1", ["404", "v3:80", "404", "404"]),
        ("of-port", ["404", "404", "404", "v3:80"]),
        ("of-nothing", ["404", "404", "404", "404"]),
    ] {
        for (host, expected) in ["gateway", "a1", "a2", "b1"].iter().zip(expected) {
            assert_eq!(ask(listeners(&view), 80, &format!("{host}.com/{path}")), expected, "{host} {path}");
        }
    }
    assert_eq!(parents(&view, "shop", "everywhere"), ["served", "served", "served"]);
    // Of a set that there is not nobody knows whose it would be.
    assert_eq!(parents(&view, "shop", "of-nothing"), ["NoMatchingParent"]);
    let names: Vec<_> = listeners(&view).all().iter().map(|one| one.name.as_str()).collect();
    assert_eq!(
        names,
        ["Gateway shop/edge own", "ListenerSet shop/a a1", "ListenerSet shop/a a2", "ListenerSet shop/b b1"]
    );
}

#[test]
fn features_GA_9_ListenerSetDualParentRefIndependence_and_its_neighbours() {
    let all = [
        edge(&from("Same")),
        set("shop", "s", &http("inner", "")),
        route("shop", "both", &format!("{{name: edge}}, {{{SET}, name: s}}"), "v1"),
        // A name of the set's listener means nothing of the Gateway.
        route(
            "shop",
            "one",
            &format!("{{name: edge, sectionName: inner}}, {{{SET}, name: s, sectionName: inner}}"),
            "v2",
        ),
        route("shop", "gate", "{name: edge}", "v1"),
        route("shop", "inner", &format!("{{{SET}, name: s}}"), "v2"),
    ];
    let view = view(&all);
    assert_eq!(parents(&view, "shop", "both"), ["served", "served"]);
    assert_eq!(parents(&view, "shop", "one"), ["NoMatchingParent", "served"]);
    assert_eq!((parents(&view, "shop", "gate"), parents(&view, "shop", "inner")), (vec!["served"], vec!["served"]));
    for (url, expected) in [
        ("gateway.com/both", "v1:80"),
        ("inner.com/both", "v1:80"),
        ("gateway.com/one", "404"),
        ("inner.com/one", "v2:80"),
        ("inner.com/gate", "404"),
        ("gateway.com/inner", "404"),
    ] {
        assert_eq!(ask(listeners(&view), 80, url), expected, "{url}");
    }
    assert_eq!(told(&view), ["shop/s accepted inner:3:-"]);
}

#[test]
fn features_GA_9_ListenerSetHostnameConflict_and_ProtocolConflict() {
    let tcp = |name: &str| format!("{{name: {name}, port: 80, protocol: TCP}}");
    let host = |name: &str, of: &str| format!("{{name: {name}, port: 80, protocol: HTTP, hostname: {of}.com}}");
    for (reason, of_gateway, of_set) in [
        ("HostnameConflict", host("gate", "Gateway"), host("inner", "inner")),
        ("ProtocolConflict", tcp("gate"), tcp("inner")),
    ] {
        let all = [
            edge(&from("Same")),
            set("shop", "with-gateway-1", &[http("one", ""), of_gateway.clone(), host("inner", "inner")].join(", ")),
            set("shop", "with-gateway-2", &of_gateway),
            set("shop", "with-set-1", &[http("two", ""), of_set.clone()].join(", ")),
            set("shop", "with-set-2", &of_set),
        ];
        let view = view(&all);
        let expected = [
            format!("shop/with-gateway-1 accepted one:0:- gate:0:{reason} inner:0:-"),
            format!("shop/with-gateway-2 - gate:0:{reason}"),
            format!("shop/with-set-1 accepted two:0:- inner:0:{reason}"),
            format!("shop/with-set-2 - inner:0:{reason}"),
        ];
        assert_eq!(told(&view), expected);
        assert_eq!(view.listeners_told.gateways[&NamespacedName::new("shop", "edge")][0].why_not(), None);
        // What others have written is nobody's business.
        let own = &view.listeners_told.sets[&NamespacedName::new("shop", "with-set-2")].listeners[0];
        let why = &own.conflict.as_ref().unwrap().1;
        let whose = if reason == "HostnameConflict" { "another ListenerSet's" } else { "one of the Gateway's" };
        assert!(why.contains(whose) && !why.contains('"'), "{why}");
    }
}

#[test]
fn features_GA_9_the_older_set_counts_then_the_first_by_its_name_as_a_text() {
    let sets = |ages: [&str; 3]| {
        let of = |(namespace, age): (&str, &str)| {
            let one = set(namespace, "s", "{name: l, port: 80, protocol: HTTP, hostname: a.com}");
            if age.is_empty() { one } else { made(one, age) }
        };
        let all = ["a", "a-b", "c"].into_iter().zip(ages).map(of);
        all.chain([edge(&from("All"))]).collect::<Vec<_>>()
    };
    for (ages, first) in [
        // As texts `a-b/s` is before `a/s`.
        (["2026-01-01", "2026-01-01", "2026-01-01"], "a-b"),
        (["2026-01-02", "2026-01-03", "2026-01-01"], "c"),
        (["2026-01-02", "2026-01-03", "2026-01-03"], "a"),
    ] {
        let view = view(&sets(ages));
        let counts: Vec<String> = told(&view).into_iter().filter(|one| one.contains("accepted")).collect();
        assert_eq!(counts, [format!("{first}/s accepted l:0:-")], "{ages:?}");
    }
}

#[test]
fn features_GA_9_ListenerSetReferenceGrant() {
    let secret = "tls: {certificateRefs: [{name: c, namespace: certs}]}";
    let inner = |host: &str| format!("{{name: l, port: 443, protocol: HTTPS, hostname: {host}, {secret}}}");
    let own = "{name: l, port: 443, protocol: HTTPS, hostname: own.com, tls: {certificateRefs: [{name: mine}]}}";
    let all = [
        edge(&from("All")),
        set("shop", "granted", &inner("a.com")),
        set("else", "alone", &inner("b.com")),
        set("else", "own", own),
        grant("shop", "ListenerSet", "Secret", "certs"),
        // What a Gateway may its sets may not.
        grant("else", "Gateway", "Secret", "certs"),
    ];
    let view = view(&all);
    let shown = |name: &str| {
        let all = listeners(&view).all();
        let found = all.iter().find(|one| *one.name == *name).map(|one| one.encryption.clone());
        let Some(Encryption::Ends(tls)) = found else { panic!("{name}") };
        tls.certificates.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(shown("ListenerSet shop/granted l"), ["certs/c"]);
    assert_eq!(shown("ListenerSet else/alone l"), [""; 0]);
    // Its own namespace is that of the set.
    assert_eq!(shown("ListenerSet else/own l"), ["else/mine"]);
    let secrets: Vec<String> = view.secrets.iter().map(ToString::to_string).collect();
    assert_eq!(secrets, ["Secret certs/c", "Secret else/mine"]);
    // Those that may be named are not there.
    assert_eq!(
        told(&view),
        [
            "else/alone - l:0:RefNotPermitted",
            "else/own - l:0:InvalidCertificateRef",
            "shop/granted - l:0:InvalidCertificateRef"
        ]
    );
    let said = |namespace: &str| {
        view.problems
            .iter()
            .filter(|(key, _)| *key.namespace == *namespace)
            .map(|(_, one)| one.message.clone())
            .collect::<Vec<_>>()
    };
    assert!(
        said("else").iter().any(|one| one.contains("lets a ListenerSet of else name Secret c")),
        "{:?}",
        said("else")
    );
}

#[test]
fn features_GA_9_no_set_is_a_waypoint_and_no_gateway_is_filled_by_one() {
    let hbone = "{name: mesh, port: 15008, protocol: HBONE}";
    let view = view(&[edge(&from("All")), set("shop", "s", hbone)]);
    assert_eq!(told(&view), ["shop/s - mesh:0:UnsupportedProtocol"]);
    assert_eq!(listeners(&view).all().len(), 1);
    let many = |at: usize| {
        let all: Vec<String> = (0..64).map(|one| http(&format!("h{at}-{one}"), "")).collect();
        set("shop", &format!("s{at:02}"), &all.join(", "))
    };
    let all: Vec<Json> = (0..17).map(many).chain([edge(&from("All"))]).collect();
    let view = self::view(&all);
    assert_eq!(listeners(&view).all().len(), 1024);
    let last = &view.listeners_told.sets[&NamespacedName::new("shop", "s16")];
    assert!(!last.is_accepted());
    assert_eq!(last.listeners[0].refused.as_ref().unwrap().0, "TooManyListeners");
}

#[test]
fn hardening_no_namespace_keeps_others_from_a_gateway_by_coming_first() {
    let many = |namespace: &str, sets: usize| -> Vec<Json> {
        let one = |at: usize| {
            let all: Vec<String> = (0..64).map(|one| http(&format!("{namespace}{at}-{one}"), "")).collect();
            set(namespace, &format!("s{at:02}"), &all.join(", "))
        };
        (0..sets).map(one).collect()
    };
    let served = |namespaces: &[(&str, usize)]| {
        let all = namespaces.iter().flat_map(|(namespace, sets)| many(namespace, *sets)).chain([edge(&from("All"))]);
        let view = view(&all.collect::<Vec<_>>());
        let of = |namespace: &str| {
            let sets = view.listeners_told.sets.iter().filter(|(name, _)| *name.namespace == *namespace);
            sets.flat_map(|(_, told)| &told.listeners).filter(|listener| listener.refused.is_none()).count()
        };
        namespaces.iter().map(|(namespace, _)| of(namespace)).collect::<Vec<_>>()
    };
    assert_eq!(served(&[("early", 15)]), [960]);
    assert_eq!(served(&[("early", 20), ("late", 1)]), [959, 64]);
    assert_eq!(served(&[("early", 20), ("late", 20)]), [511, 511]);
    assert_eq!(served(&[("early", 20), ("late", 20), ("more", 1)]), [479, 479, 64]);
}

#[test]
fn features_GA_9_sets_of_others_are_none_of_ours() {
    let theirs = object(
        Kind::Gateway,
        "shop",
        "edge",
        "{gatewayClassName: nginx, listeners: [{name: h, port: 80, protocol: HTTP}], allowedListeners: {namespaces: {from: All}}}",
    );
    let all = [theirs, set("shop", "s", &http("l", "")), route("shop", "r", &format!("{{{SET}, name: s}}"), "v1")];
    let found = view(&all);
    let key = Key { kind: Kind::HttpRoute, namespace: "shop".into(), name: "r".into() };
    assert!(told(&found).is_empty() && found.listeners.is_empty() && !found.resolved.routes.contains_key(&key));
    // Of a Gateway that there is not nobody knows whose it would be, but it is said.
    let found = view(&all[1..]);
    assert!(told(&found).is_empty());
    assert!(
        found
            .problems
            .iter()
            .any(|(key, one)| key.kind == Kind::ListenerSet && one.message == "there is no Gateway shop/edge")
    );
}
