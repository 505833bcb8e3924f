//! HTTPRoutes and GRPCRoutes: what is in a rule, and which rule comes first.

use super::*;

const TO_V1: &str = "backendRefs: [{name: v1, port: 80}]";

/// A route of `web` with these rules.
fn route(rules: &str) -> [Json; 1] {
    [http_route(&format!("{{parentRefs: [{{group: '', kind: Service, name: web}}], rules: [{rules}]}}"))]
}

fn grpc(rules: &str) -> [Json; 1] {
    let spec = format!("{{parentRefs: [{{group: '', kind: Service, name: web}}], rules: [{rules}]}}");
    [object(Kind::GrpcRoute, "shop", "o", &spec)]
}

/// A rule to `v1` with this match, then one to `v2`.
fn when(one: &str) -> [Json; 1] {
    route(&format!("{{matches: [{one}], {TO_V1}}}, {{backendRefs: [{{name: v2, port: 80}}]}}"))
}

/// A rule to `v1` that does something more.
fn filter(filters: &str) -> [Json; 1] {
    route(&format!("{{filters: [{filters}], {TO_V1}}}"))
}

#[test]
fn features_GA_3_what_is_compared() {
    check(&[
        // By segments, and not text for text.
        (
            &when("{path: {type: PathPrefix, value: /foo}}"),
            &[
                ("GET http://web/foo", "v1:80"),
                ("GET http://web/foo/", "v1:80"),
                ("GET http://web/foo/bar", "v1:80"),
                ("GET http://web/foobar", "v2:80"),
                ("GET http://web/Foo", "v2:80"),
            ],
        ),
        (&when("{path: {value: /foo/}}"), &[("GET http://web/foo", "v1:80")]),
        (
            &when("{path: {type: Exact, value: /foo}}"),
            &[("GET http://web/foo", "v1:80"), ("GET http://web/foo/", "v2:80")],
        ),
        (
            &when("{path: {type: RegularExpression, value: '/[a-z]+/x'}}"),
            &[("GET http://web/a/x", "v1:80"), ("GET http://web/a/x/y", "v2:80")],
        ),
        (
            &when("{headers: [{name: X-User, value: jason}]}"),
            &[
                ("GET http://web/ x-user=jason", "v1:80"),
                ("GET http://web/ X-User=jason", "v1:80"),
                ("GET http://web/ x-user=JASON", "v2:80"),
            ],
        ),
        (
            &when("{headers: [{type: RegularExpression, name: x-a, value: '[0-9]+'}]}"),
            &[("GET http://web/ x-a=1", "v1:80"), ("GET http://web/ x-a=1a", "v2:80")],
        ),
        (
            &when("{method: POST, queryParams: [{name: a, value: '1'}]}"),
            &[
                ("POST http://web/?a=1", "v1:80"),
                ("POST http://web/?a=1&a=2", "v1:80"),
                ("POST http://web/?a=2&a=1", "v2:80"),
                ("GET http://web/?a=1", "v2:80"),
                ("POST http://web/", "v2:80"),
            ],
        ),
        (
            &when("{queryParams: [{type: RegularExpression, name: a, value: 'x.*'}]}"),
            &[("GET http://web/?a=xy", "v1:80")],
        ),
        (
            &when("{path: {value: '/caf%c3%a9'}}"),
            &[
                ("GET http://web/caf%C3%A9/x", "v1:80"),
                ("GET http://web/caf%c3%a9", "v1:80"),
                ("GET http://web/caf", "v2:80"),
            ],
        ),
        (
            &when("{path: {value: /a}, method: GET}, {headers: [{name: b, value: '1'}]}"),
            &[("GET http://web/a", "v1:80"), ("POST http://web/a", "v2:80"), ("POST http://web/a b=1", "v1:80")],
        ),
    ]);
}

#[test]
fn features_GA_3_the_more_specific_match_comes_first() {
    let one = |name: &str, when: &str, rules: &[(&str, &str)]| {
        let rule = |(one, to): &(&str, &str)| format!("{{matches: [{one}], backendRefs: [{{name: {to}, port: 80}}]}}");
        let rules: Vec<String> = rules.iter().map(rule).collect();
        let spec = format!("{{parentRefs: [{{group: '', kind: Service, name: web}}], rules: [{}]}}", rules.join(", "));
        made(object(Kind::HttpRoute, "shop", name, &spec), when)
    };
    let (old, young) = ("2026-01-01", "2026-02-01");
    check(&[
        // Of one route, whatever is written first.
        (
            &[one(
                "a",
                old,
                &[
                    ("{path: {value: /}}", "v1"),
                    ("{path: {value: /long}}", "v2"),
                    ("{path: {type: Exact, value: /long}}", "v3"),
                ],
            )],
            &[("GET http://web/x", "v1:80"), ("GET http://web/long/x", "v2:80"), ("GET http://web/long", "v3:80")],
        ),
        // Path before method before headers before parameters.
        (
            &[one(
                "a",
                old,
                &[
                    ("{path: {value: /a}, queryParams: [{name: q, value: '1'}]}", "v1"),
                    ("{path: {value: /a}, headers: [{name: h, value: '1'}]}", "v2"),
                    ("{path: {value: /a}, method: GET}", "v3"),
                ],
            )],
            &[
                ("GET http://web/a?q=1 h=1", "v3:80"),
                ("PUT http://web/a?q=1 h=1", "v2:80"),
                ("PUT http://web/a?q=1", "v1:80"),
            ],
        ),
        // Of several routes the more specific match, whoever is older; then the older; then the first by name.
        (
            &[one("a", young, &[("{path: {value: /a/b}}", "v1")]), one("b", old, &[("{path: {value: /a}}", "v2")])],
            &[("GET http://web/a/b", "v1:80"), ("GET http://web/a", "v2:80")],
        ),
        (
            &[one("a", young, &[("{path: {value: /a}}", "v1")]), one("b", old, &[("{path: {value: /a}}", "v2")])],
            &[("GET http://web/a", "v2:80")],
        ),
        (
            &[one("b", old, &[("{path: {value: /a}}", "v1")]), one("a", old, &[("{path: {value: /a}}", "v2")])],
            &[("GET http://web/a", "v2:80")],
        ),
    ]);
}

#[test]
fn features_GA_3_headers_rewrites_and_copies() {
    let changes = "{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-A, value: '%a%'}], add: [{name: x-b, value: '2'}], remove: [x-c]}}, {type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-d, value: '3'}]}}";
    let rewrite = |path: &str| {
        format!(
            "{{matches: [{{path: {{value: /a}}}}], filters: [{{type: URLRewrite, urlRewrite: {{{path}}}}}], {TO_V1}}}"
        )
    };
    let copy = |more: &str| {
        filter(&format!("{{type: RequestMirror, requestMirror: {{backendRef: {{name: v3, port: 80}}{more}}}}}"))
    };
    check(&[
        (&filter(changes), &[("GET http://web/", "v1:80 req x-a=%a%,+x-b=2,-x-c res x-d=3")]),
        (
            &route(&rewrite("hostname: b.com, path: {type: ReplaceFullPath, replaceFullPath: /x}")),
            &[("GET http://web/a/b?q", "v1:80 path /x?q host b.com")],
        ),
        (
            &route(&rewrite("path: {type: ReplacePrefixMatch, replacePrefixMatch: /x}")),
            &[("GET http://web/a/b", "v1:80 path /x/b"), ("GET http://web/a", "v1:80 path /x")],
        ),
        (
            &route(&rewrite("path: {type: ReplacePrefixMatch, replacePrefixMatch: /}")),
            &[("GET http://web/a/b", "v1:80 path /b")],
        ),
        (&copy(""), &[("GET http://web/", "v1:80 copy v3:80")]),
        (&copy(", percent: 0"), &[("GET http://web/", "v1:80")]),
        (&copy(", fraction: {numerator: 2, denominator: 2}"), &[("GET http://web/", "v1:80 copy v3:80")]),
    ]);
    let some = mesh(&copy(", percent: 30")).shares("GET http://web/");
    assert!(some["v1:80 copy v3:80"].abs_diff(300) < 60, "{some:?}");
}

#[test]
fn features_GA_3_redirects() {
    let to = |redirect: &str| {
        route(&format!(
            "{{matches: [{{path: {{value: /a}}}}], filters: [{{type: RequestRedirect, requestRedirect: {{{redirect}}}}}]}}"
        ))
    };
    check(&[
        (&to("hostname: b.com"), &[("GET http://web/a?x=1", "302 http://b.com/a?x=1")]),
        // Without a scheme the port of whoever listens, which is not written where it is the scheme's.
        (&to("hostname: b.com"), &[("GET http://web/a :8080", "302 http://b.com:8080/a")]),
        (&to("scheme: https"), &[("GET http://web/a :8080", "302 https://web/a")]),
        (&to("scheme: https, port: 8443, statusCode: 301"), &[("GET http://web/a", "301 https://web:8443/a")]),
        (&to("port: 80, statusCode: 308"), &[("GET http://web/a :8080", "308 http://web/a")]),
        (&to("port: 8080, statusCode: 307"), &[("POST http://web/a", "307 http://web:8080/a")]),
        (
            &to("path: {type: ReplaceFullPath, replaceFullPath: /x}, statusCode: 303"),
            &[("GET http://web/a/b", "303 http://web/x")],
        ),
        (
            &to("path: {type: ReplaceFullPath, replaceFullPath: '/#/login'}"),
            &[("GET http://web/a/b?x=1", "302 http://web/?x=1#/login")],
        ),
        (
            &to("path: {type: ReplacePrefixMatch, replacePrefixMatch: /x}"),
            &[("GET http://web/a/b", "302 http://web/x/b")],
        ),
    ]);
}

#[test]
fn features_GA_3_other_origins() {
    let cors = "{type: CORS, cors: {allowOrigins: ['https://*.a.com', 'https://b.com'], allowMethods: [GET], allowHeaders: ['*'], exposeHeaders: [x-b]}}";
    let ask = "access-control-request-method=GET access-control-request-headers=x-a";
    check(&[(
        &filter(cors),
        &[
            (
                &format!("OPTIONS http://web/ origin=https://x.y.a.com {ask}"),
                "v1:80 cors answer allow-headers=*,allow-methods=GET,allow-origin=https://x.y.a.com,expose-headers=x-b,max-age=5",
            ),
            ("GET http://web/ origin=https://b.com", "v1:80 cors add allow-origin=https://b.com,expose-headers=x-b"),
            ("GET http://web/ origin=https://a.com", "v1:80 cors pass"),
            ("GET http://web/ origin=https://xa.com", "v1:80 cors pass"),
            ("GET http://web/ origin=https://evil.com/.a.com", "v1:80 cors pass"),
            (&format!("OPTIONS http://web/ origin=https://evil.com {ask}"), "v1:80 cors answer "),
        ],
    )]);
}

#[test]
fn features_GA_3_timeouts_and_retries() {
    use std::time::Duration;

    use mesh_core::l7::{Retries, RetryOn};
    let usual = Retries::default();
    let seconds = |n| Some(Duration::from_secs(n));
    for (written, timeout, retries) in [
        ("name: a", None, usual.clone()),
        (
            "timeouts: {request: 10s, backendRequest: 2s}",
            seconds(10),
            Retries { per_try_timeout: seconds(2), ..usual.clone() },
        ),
        ("timeouts: {request: 0s}", None, usual.clone()),
        ("retry: {attempts: 0}", None, Retries::none()),
        (
            "retry: {codes: [500, 503], attempts: 3, backoff: 100ms}",
            None,
            Retries {
                attempts: 3,
                on: RetryOn { events: RetryOn::RESET, grpc: 0, statuses: vec![500, 503] },
                least_pause: Duration::from_millis(100),
                ..usual.clone()
            },
        ),
    ] {
        let found = mesh(&route(&format!("{{{written}, {TO_V1}}}"))).decide("GET http://web/", 1, |_, decision| {
            let handling = decision.unwrap().handling;
            (handling.timeout, handling.retries.clone())
        });
        assert_eq!(found, (timeout, retries), "{written}");
    }
}

#[test]
fn features_GA_3_places_by_weight_each_with_its_own() {
    let shares = |backends: &str| mesh(&route(&format!("{{backendRefs: [{backends}]}}"))).shares("GET http://web/");
    let near = |found: &BTreeMap<String, u32>, expected: &[(&str, u32)]| {
        let is_near = |(name, wanted): &(&str, u32)| found.get(*name).is_some_and(|count| count.abs_diff(*wanted) < 60);
        assert!(expected.iter().all(is_near) && found.len() == expected.len(), "{found:?}");
    };
    near(&shares("{name: v1, port: 80}, {name: v2, port: 80}"), &[("v1:80", 500), ("v2:80", 500)]);
    near(
        &shares("{name: v1, port: 80, weight: 9}, {name: v2, port: 80, weight: 1}, {name: v3, port: 80, weight: 0}"),
        &[("v1:80", 900), ("v2:80", 100)],
    );
    // One that leads nowhere: 500 for its share.
    near(
        &shares("{name: v1, port: 80}, {name: none, port: 80}"),
        &[("v1:80", 500), ("500 there is no Service shop/none", 500)],
    );
    let changed = "{name: v1, port: 80, filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: '1'}]}}]}, {name: v2, port: 80, filters: [{type: RequestRedirect, requestRedirect: {hostname: b.com}}]}, {name: v3, port: 80, filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: /x}}}]}";
    near(&shares(changed), &[("v1:80 req a=1", 333), ("302 http://b.com/", 333), ("v3:80 path /x", 333)]);
    // What of a single place cannot be done closes its share alone.
    let odd = "{name: v1, port: 80}, {name: v2, port: 80, filters: [{type: ExtensionRef, extensionRef: {group: a.com, kind: B, name: c}}]}";
    near(
        &shares(odd),
        &[("v1:80", 500), ("500 spec.rules[0].backendRefs[1].filters[0]: no filter here is a B.a.com", 500)],
    );
    assert_eq!(
        shares("{name: v1, port: 80, weight: 0}").keys().collect::<Vec<_>>(),
        ["500 the rule has no place with a weight"]
    );
}

#[test]
fn what_cannot_be_done_closes_its_rule_and_is_told() {
    for (rule, said, field) in [
        (
            "filters: [{type: ExtensionRef, extensionRef: {group: a.com, kind: B, name: c}}]",
            "no filter here is a B.a.com",
            "rules[0].filters[0]",
        ),
        (
            "filters: [{type: ExternalAuth, externalAuth: {protocol: HTTP, backendRef: {name: v1, port: 80}}}]",
            "nobody is asked here",
            "rules[0].filters[0]",
        ),
        (
            "sessionPersistence: {sessionName: a}",
            "clients are not kept at one endpoint by a route",
            "rules[0].sessionPersistence",
        ),
        (
            "filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: host, value: a}]}}]",
            "\"host\" is no header that could be changed",
            "rules[0].filters[0].requestHeaderModifier.set[\"host\"]",
        ),
        (
            r"matches: [{path: {type: RegularExpression, value: '\p{Nonsense}'}}]",
            "not a regular expression: Unicode property not found",
            "rules[0].matches[0].path.value",
        ),
    ] {
        let mesh = mesh(&route(&format!("{{{rule}, {TO_V1}}}")));
        assert_eq!(mesh.ask("GET http://web/a"), format!("500 spec.{field}: {said}"));
        assert_eq!(mesh.told(), [format!("e {field}: {said}")]);
    }
    // Nothing to do at all.
    for spec in ["rules: [{matches: [{path: {value: /a}}]}]", "rules: []"] {
        let mesh = mesh(&[http_route(&format!("{{parentRefs: [{{group: '', kind: Service, name: web}}], {spec}}}"))]);
        assert_eq!(mesh.ask("GET http://web/a"), "500 the rule has no backendRefs");
        assert_eq!(mesh.told(), ["w rules[0]: it leads nowhere: its requests are answered with 500"]);
    }
}

#[test]
fn features_GA_4_methods_of_grpc() {
    let when = |method: &str| {
        grpc(&format!("{{matches: [{{method: {{{method}}}}}], {TO_V1}}}, {{backendRefs: [{{name: v2, port: 80}}]}}"))
    };
    check(&[
        (&when("service: a.B, method: C"), &[("POST http://web/a.B/C", "v1:80"), ("POST http://web/a.B/D", "v2:80")]),
        (&when("service: a.B"), &[("POST http://web/a.B/D", "v1:80"), ("POST http://web/a.BB/D", "v2:80")]),
        (&when("method: C"), &[("POST http://web/x/C", "v1:80"), ("POST http://web/x/CC", "v2:80")]),
        (
            &when("type: RegularExpression, service: 'a[.].*', method: 'C|D'"),
            &[("POST http://web/a.b/D", "v1:80"), ("POST http://web/ab/D", "v2:80")],
        ),
        (
            &grpc(&format!("{{matches: [{{headers: [{{name: X-A, value: '1'}}]}}], {TO_V1}}}")),
            &[("POST http://web/a/b x-a=1", "v1:80"), ("POST http://web/a/b", "404")],
        ),
        (
            &grpc(&format!(
                "{{filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {{set: [{{name: a, value: '1'}}]}}}}], {TO_V1}}}"
            )),
            &[("POST http://web/a/b", "v1:80 req a=1")],
        ),
    ]);
}

#[test]
fn features_GA_10_calls_come_before_requests() {
    let http = |parent: &str| {
        let spec = format!(
            "{{parentRefs: [{{group: '', kind: Service, name: web{parent}}}], rules: [{{backendRefs: [{{name: v1, port: 80}}]}}]}}"
        );
        http_route(&spec)
    };
    let grpc = |namespace: &str, port: &str| {
        let spec = format!(
            "{{parentRefs: [{{group: '', kind: Service, name: web, namespace: shop{port}}}], rules: [{{matches: [{{method: {{service: a.B}}}}], backendRefs: [{{name: v2, namespace: shop, port: 80}}]}}]}}"
        );
        object(Kind::GrpcRoute, namespace, "g", &spec)
    };
    let (call, other) = ("POST http://web/a.B/C", "POST http://web/x");
    let other_port = "POST http://web/x :8080";
    let why =
        "w parentRefs[0]: GRPCRoute shop/g is for the same port, and of several kinds the more specific one counts";
    for (routes, expected, told) in [
        ([http(""), grpc("shop", ", port: 80")], ["v2:80", "404", "v1:80"], vec![]),
        ([http(", port: 80"), grpc("shop", ", port: 80")], ["v2:80", "404", "-"], vec![why]),
        ([http(", port: 80"), grpc("shop", "")], ["v2:80", "404", "404"], vec![why]),
        ([http(""), grpc("shop", "")], ["v2:80", "404", "404"], vec![why]),
        ([http(", port: 8080"), grpc("shop", ", port: 80")], ["v2:80", "404", "v1:80"], vec![]),
        // Of another namespace they are for others.
        ([http(""), grpc("blog", "")], ["v1:80", "v1:80", "v1:80"], vec![]),
    ] {
        let mesh = mesh(&routes);
        assert_eq!([call, other, other_port].map(|line| mesh.ask(line)), expected, "{routes:#?}");
        assert_eq!(mesh.told(), told, "{routes:#?}");
    }
}
