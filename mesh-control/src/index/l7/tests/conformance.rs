//! What the Gateway API's conformance suite asks of meshes, one test for each of its tests, so that it fails without a cluster. The routes are our own
//! writing of the same cases; the services are `echo`, `echo-v1` and `echo-v2`.

use super::*;

fn services() -> Vec<Json> {
    let ports = &[80, 8080, 7070];
    ["echo", "echo-v1", "echo-v2"].map(|name| service("shop", name, ports)).into()
}

fn with(route: Json) -> Mesh {
    mesh(&[services(), vec![route]].concat())
}

fn of(kind: Kind, namespace: &str, parent: &str, rules: &str) -> Json {
    let spec = format!("{{parentRefs: [{{group: '', kind: Service, {parent}}}], rules: [{rules}]}}");
    object(kind, namespace, "o", &spec)
}

/// A route of `echo` on port 80.
fn echo(rules: &str) -> Mesh {
    with(of(Kind::HttpRoute, "shop", "name: echo, port: 80", rules))
}

/// Rules with one filter each, by the prefix of the path.
fn filters(kind: &str, field: &str, rules: &[(&str, &str)], more: &str) -> Mesh {
    let rule = |(prefix, what): &(&str, &str)| {
        format!("{{matches: [{{path: {{value: {prefix}}}}}], filters: [{{type: {kind}, {field}: {{{what}}}}}]{more}}}")
    };
    echo(&rules.iter().map(rule).collect::<Vec<_>>().join(", "))
}

fn asks(mesh: &Mesh, requests: &[(&str, &str)]) {
    for (line, expected) in requests {
        assert_eq!(mesh.ask(&format!("GET http://echo{line}")), *expected, "{line}");
    }
    assert!(mesh.told().iter().all(|said| said.starts_with('w')), "{:?}", mesh.told());
}

#[test]
fn features_GA_10_mesh_basic() {
    assert_eq!(mesh(&services()).ask("GET http://echo/"), "-");
}

#[test]
fn features_GA_10_mesh_traffic_split() {
    let mesh = with(of(
        Kind::HttpRoute,
        "shop",
        "name: echo",
        "{matches: [{path: {type: Exact, value: /v1}}], backendRefs: [{name: echo-v1, port: 80}]}, {matches: [{path: {type: Exact, value: /v2}}], backendRefs: [{name: echo-v2, port: 80}]}",
    ));
    asks(&mesh, &[("/v1", "echo-v1:80"), ("/v2", "echo-v2:80"), ("/v3", "404")]);
}

#[test]
fn features_GA_10_mesh_http_route_simple_same_namespace() {
    asks(&echo("{backendRefs: [{name: echo-v1, port: 8080}]}"), &[("/", "echo-v1:8080"), ("/ :8080", "-")]);
}

#[test]
fn features_GA_10_mesh_http_route_matching() {
    let one = |prefix: &str, version: &str, to: &str| {
        format!(
            "{{matches: [{{path: {{value: {prefix}}}}}, {{headers: [{{name: version, value: {version}}}]}}], backendRefs: [{{name: {to}, port: 8080}}]}}"
        )
    };
    let mesh = echo(&format!("{}, {}", one("/", "one", "echo-v1"), one("/v2", "two", "echo-v2")));
    let (v1, v2) = ("echo-v1:8080", "echo-v2:8080");
    asks(
        &mesh,
        &[
            ("/", v1),
            ("/example", v1),
            ("/ Version=one", v1),
            ("/v2", v2),
            ("/v2/example", v2),
            ("/ Version=two", v2),
            ("/v2/", v2),
            ("/v2example", v1),
            ("/foo/v2/example", v1),
        ],
    );
}

#[test]
fn features_GA_10_mesh_http_route_query_param_matching() {
    let animal = |name: &str| format!("queryParams: [{{name: animal, value: {name}}}]");
    let rules = [
        (format!("{{{}}}", animal("whale")), 1),
        (format!("{{{}}}", animal("dolphin")), 2),
        (format!("{{path: {{value: /path1}}, {}}}", animal("whale")), 1),
        (format!("{{headers: [{{name: version, value: one}}], {}}}", animal("whale")), 2),
        (
            format!(
                "{{path: {{value: /path3}}, {}}}, {{path: {{value: /path4}}, headers: [{{name: version, value: three}}], {}}}",
                animal("shark"),
                animal("kraken")
            ),
            1,
        ),
        ("{path: {value: /path5}}".to_owned(), 1),
        (format!("{{{}}}", animal("hydra")), 2),
    ]
    .map(|(matches, to)| format!("{{matches: [{matches}], backendRefs: [{{name: echo-v{to}, port: 8080}}]}}"));
    let (v1, v2) = ("echo-v1:8080", "echo-v2:8080");
    asks(
        &echo(&rules.join(", ")),
        &[
            ("/?animal=whale", v1),
            ("/?animal=dolphin", v2),
            ("/?animal=whale&otherparam=irrelevant", v1),
            ("/?animal=dolphin&color=yellow", v2),
            ("/?color=blue", "404"),
            ("/?animal=dog", "404"),
            ("/?animal=whaledolphin", "404"),
            ("/", "404"),
            ("/path1?animal=whale", v1),
            ("/?animal=whale version=one", v2),
            ("/path3?animal=shark", v1),
            ("/path4?animal=kraken version=three", v1),
            ("/?animal=shark", "404"),
            ("/path4?animal=kraken", "404"),
            ("/path5?animal=hydra", v1),
        ],
    );
}

#[test]
fn features_GA_10_mesh_http_route_weight() {
    let shares =
        echo("{backendRefs: [{name: echo-v1, port: 8080, weight: 70}, {name: echo-v2, port: 8080, weight: 30}]}")
            .shares("GET http://echo/");
    assert!(shares["echo-v1:8080"].abs_diff(700) < 50 && shares["echo-v2:8080"].abs_diff(300) < 50, "{shares:?}");
}

#[test]
fn features_GA_10_mesh_http_route_request_header_modifiers() {
    let changes = [
        ("/set", "set: [{name: X-Header-Set, value: new}]", "x-header-set=new"),
        ("/add", "add: [{name: X-Header-Add, value: new}]", "+x-header-add=new"),
        ("/remove", "remove: [X-Header-Remove]", "-x-header-remove"),
        (
            "/multiple",
            "set: [{name: x-1, value: a}, {name: X-2, value: b}], add: [{name: x-3, value: c}, {name: x-4, value: d}], remove: [X-5, x-6]",
            "x-1=a,x-2=b,+x-3=c,+x-4=d,-x-5,-x-6",
        ),
    ];
    for (path, what, shown) in changes {
        let to = "backendRefs: [{name: echo-v1, port: 8080";
        let of_rule = filters("RequestHeaderModifier", "requestHeaderModifier", &[(path, what)], &format!(", {to}}}]"));
        asks(&of_rule, &[(path, &format!("echo-v1:8080 req {shown}"))]);
        let of_backend = format!(
            "{{matches: [{{path: {{value: {path}}}}}], {to}, filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {{{what}}}}}]}}]}}"
        );
        asks(&echo(&of_backend), &[(path, &format!("echo-v1:8080 req {shown}"))]);
    }
}

#[test]
fn features_GA_10_mesh_http_route_redirects() {
    let path = |kind: &str, text: &str| format!("path: {{type: Replace{kind}, replace{kind}: {text}}}");
    let (prefix, full) = (path("PrefixMatch", "/new-prefix"), path("FullPath", "/new"));
    let host = "hostname: example.org";
    let rows = [
        // Of the host and the status.
        (host.to_owned(), "302 http://example.org/from"),
        (format!("{host}, statusCode: 301"), "301 http://example.org/from"),
        ("statusCode: 303".to_owned(), "303 http://echo/from"),
        ("statusCode: 307".to_owned(), "307 http://echo/from"),
        ("statusCode: 308".to_owned(), "308 http://echo/from"),
        // Of the path.
        (prefix.clone(), "302 http://echo/new-prefix"),
        (full.clone(), "302 http://echo/new"),
        (format!("{host}, {prefix}"), "302 http://example.org/new-prefix"),
        (format!("{host}, {full}"), "302 http://example.org/new"),
        (format!("{full}, statusCode: 301"), "301 http://echo/new"),
        // Of the port.
        ("port: 8083".to_owned(), "302 http://echo:8083/from"),
        (format!("{host}, port: 8083"), "302 http://example.org:8083/from"),
        ("port: 8083, statusCode: 301".to_owned(), "301 http://echo:8083/from"),
        // Of the scheme.
        ("scheme: https".to_owned(), "302 https://echo/from"),
        (format!("scheme: https, {host}"), "302 https://example.org/from"),
        ("scheme: https, statusCode: 301".to_owned(), "301 https://echo/from"),
    ];
    for (redirect, expected) in rows {
        asks(&filters("RequestRedirect", "requestRedirect", &[("/from", &redirect)], ""), &[("/from", expected)]);
    }
    let deeper = filters("RequestRedirect", "requestRedirect", &[("/old", &prefix), ("/full", &full)], "");
    asks(
        &deeper,
        &[("/old/lemon", "302 http://echo/new-prefix/lemon"), ("/full/path/original", "302 http://echo/new")],
    );
}

#[test]
fn features_GA_10_mesh_http_route_rewrite_path() {
    let path = |kind: &str, text: &str| format!("path: {{type: Replace{kind}, replace{kind}: {text}}}");
    let rules = [
        ("/prefix/one", path("PrefixMatch", "/one")),
        ("/strip-prefix", path("PrefixMatch", "/")),
        ("/full/one", path("FullPath", "/one")),
        ("/full/and-headers", path("FullPath", "/test")),
    ];
    let rules: Vec<(&str, &str)> = rules.iter().map(|(from, to)| (*from, to.as_str())).collect();
    let mesh = filters("URLRewrite", "urlRewrite", &rules, ", backendRefs: [{name: echo-v1, port: 80}]");
    asks(
        &mesh,
        &[
            ("/prefix/one/two", "echo-v1:80 path /one/two"),
            ("/strip-prefix/three", "echo-v1:80 path /three"),
            ("/strip-prefix", "echo-v1:80 path /"),
            ("/full/one/two", "echo-v1:80 path /one"),
            ("/full/and-headers/test", "echo-v1:80 path /test"),
        ],
    );
    let both = "{matches: [{path: {value: /a}}], filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: /b}}}, {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-Set, value: s}]}}], backendRefs: [{name: echo-v1, port: 80}]}";
    asks(&echo(both), &[("/a", "echo-v1:80 path /b req x-set=s")]);
}

#[test]
fn features_GA_10_mesh_http_route_named_rule() {
    let one = |name: &str, path: &str, to: u32| {
        format!("{{{name} matches: [{{path: {{value: {path}}}}}], backendRefs: [{{name: echo-v{to}, port: 8080}}]}}")
    };
    let mesh = echo(&format!("{}, {}", one("name: named-rule,", "/named", 1), one("", "/unnamed", 2)));
    asks(&mesh, &[("/named", "echo-v1:8080"), ("/unnamed", "echo-v2:8080")]);
    mesh.decide("GET http://echo/named", 1, |_, decision| assert_eq!(decision.unwrap().handling.name, "named-rule"));
}

/// A rule that marks answers, and leads back to the service.
fn marking(to: &str, more: &str) -> String {
    format!(
        "{{filters: [{{type: ResponseHeaderModifier, responseHeaderModifier: {{set: [{{name: X-Header-Set, value: set}}]}}}}], backendRefs: [{{name: {to}, port: 80{more}}}]}}"
    )
}

#[test]
fn features_GA_10_mesh_ports() {
    let one = with(of(Kind::HttpRoute, "shop", "name: echo-v1, port: 80", &marking("echo-v1", "")));
    assert_eq!(one.ask("GET http://echo-v1/"), "echo-v1:80 res x-header-set=set");
    assert_eq!(one.ask("GET http://echo-v1:8080/ :8080"), "-");
    let all = with(of(Kind::HttpRoute, "shop", "name: echo-v2", &marking("echo-v2", "")));
    assert_eq!(all.ask("GET http://echo-v2/"), "echo-v2:80 res x-header-set=set");
    assert_eq!(all.ask("GET http://echo-v2:8080/ :8080"), "echo-v2:80 res x-header-set=set");
}

#[test]
fn features_GA_10_mesh_frontend() {
    let mesh = with(of(Kind::HttpRoute, "shop", "name: echo-v2", &marking("echo-v2", "")));
    assert_eq!(mesh.ask("GET http://echo-v2/"), "echo-v2:80 res x-header-set=set");
    // Another service with the same pods.
    assert_eq!(mesh.ask("GET http://echo/"), "-");
}

#[test]
fn features_GA_12_mesh_frontend_hostname() {
    let mesh = with(of(Kind::HttpRoute, "shop", "name: echo-v2", &marking("echo-v2", "")));
    assert_eq!(mesh.ask("GET http://wrong.example.com/ >echo-v2"), "echo-v2:80 res x-header-set=set");
    assert_eq!(mesh.ask("GET http://echo-v2/ >echo"), "-");
}

#[test]
fn features_GA_11_mesh_consumer_route() {
    let rules = marking("echo-v1", ", namespace: shop");
    let mesh = with(of(Kind::HttpRoute, "consumer", "name: echo-v1, namespace: shop", &rules));
    assert_eq!(mesh.ask("GET http://echo-v1/ ~consumer"), "echo-v1:80 res x-header-set=set");
    assert_eq!(mesh.ask("GET http://echo-v1/ ~shop"), "-");
    assert_eq!(mesh.told(), [""; 0]);
}

#[test]
fn features_GA_4_mesh_grpc_route_weight() {
    let rules = "{backendRefs: [{name: echo-v1, port: 7070, weight: 70}, {name: echo-v2, port: 7070, weight: 30}, {name: echo, port: 7070, weight: 0}]}";
    let mesh = with(of(Kind::GrpcRoute, "shop", "name: echo, port: 7070", rules));
    let shares = mesh.shares("POST http://echo/gateway_api_conformance.echo_basic.grpcecho.GrpcEcho/Echo :7070");
    assert!(shares["echo-v1:7070"].abs_diff(700) < 50 && shares["echo-v2:7070"].abs_diff(300) < 50, "{shares:?}");
    assert_eq!(mesh.ask("GET http://echo/"), "-");
}

#[test]
fn features_GA_4_mesh_grpc_route_request_header_modifier() {
    let one = |case: &str, what: &str| {
        format!(
            "{{matches: [{{headers: [{{name: x-test-case, value: {case}}}]}}], filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {{{what}}}}}], backendRefs: [{{name: echo-v1, port: 7070}}]}}"
        )
    };
    let rules = [
        one("set", "set: [{name: x-header-set, value: new}]"),
        one("add", "add: [{name: x-header-add, value: new}]"),
        one("remove", "remove: [x-header-remove]"),
    ];
    let mesh = with(of(Kind::GrpcRoute, "shop", "name: echo, port: 7070", &rules.join(", ")));
    for (case, shown) in [("set", "x-header-set=new"), ("add", "+x-header-add=new"), ("remove", "-x-header-remove")] {
        let line = format!("POST http://echo/a.B/C :7070 x-test-case={case}");
        assert_eq!(mesh.ask(&line), format!("echo-v1:7070 req {shown}"));
    }
}
