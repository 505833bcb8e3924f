//! VirtualServices: each row of the table of features (VS-4 to VS-13).

use super::*;

/// Rules for `web`, as they stand in `http`.
pub(super) fn rules(http: &str) -> [Json; 1] {
    [virtual_service(&format!("{{hosts: [web], http: [{http}]}}"))]
}

/// A rule to `v1` with a condition, then one to `v2`.
pub(super) fn when(condition: &str) -> [Json; 1] {
    rules(&format!(
        "{{match: [{condition}], route: [{{destination: {{host: v1, port: {{number: 80}}}}}}]}}, {{route: [{{destination: {{host: v2, port: {{number: 80}}}}}}]}}"
    ))
}

/// A rule to `v3` that says something more.
pub(super) fn to_v3(more: &str) -> [Json; 1] {
    rules(&format!("{{route: [{{destination: {{host: v3}}}}], {more}}}"))
}

#[test]
fn features_VS_4_paths_methods_schemes_and_authorities() {
    check(&[
        (
            &when("{uri: {exact: /a}}"),
            &[
                ("GET http://web/a", "v1:80"),
                ("GET http://web/a?x=1", "v1:80"),
                ("GET http://web/A", "v2:80"),
                ("GET http://web/a/", "v2:80"),
            ],
        ),
        // Text for text, and not by segments.
        (
            &when("{uri: {prefix: /foo}}"),
            &[("GET http://web/foo/bar", "v1:80"), ("GET http://web/foobar", "v1:80"), ("GET http://web/fo", "v2:80")],
        ),
        (&when("{uri: {regex: '/a[0-9]+'}}"), &[("GET http://web/a12", "v1:80"), ("GET http://web/a12b", "v2:80")]),
        (&when("{uri: {prefix: /Foo}, ignoreUriCase: true}"), &[("GET http://web/fOO/x", "v1:80")]),
        (
            &when("{uri: {exact: /foo}, ignoreUriCase: true}"),
            &[("GET http://web/FOO", "v1:80"), ("GET http://web/FOO/", "v2:80")],
        ),
        (&when("{method: {exact: POST}}"), &[("POST http://web/", "v1:80"), ("GET http://web/", "v2:80")]),
        (&when("{method: {regex: 'P.*'}}"), &[("PUT http://web/", "v1:80"), ("GET http://web/", "v2:80")]),
        (&when("{scheme: {exact: https}}"), &[("GET https://web/", "v1:80"), ("GET http://web/", "v2:80")]),
        (
            &when("{authority: {exact: Web.Shop}}"),
            &[("GET http://web.shop/", "v1:80"), ("GET http://WEB.SHOP:80/", "v1:80"), ("GET http://web/", "v2:80")],
        ),
        (&when("{authority: {prefix: web.}}"), &[("GET http://web.shop/", "v1:80"), ("GET http://web/", "v2:80")]),
        // All of one block, any of several.
        (
            &when("{uri: {prefix: /a}, method: {exact: GET}}, {uri: {exact: /b}}"),
            &[("GET http://web/a", "v1:80"), ("POST http://web/a", "v2:80"), ("POST http://web/b", "v1:80")],
        ),
    ]);
}

#[test]
fn features_VS_5_headers_and_parameters() {
    check(&[
        (
            &when("{headers: {X-User: {exact: jason}}}"),
            &[
                ("GET http://web/ x-user=jason", "v1:80"),
                ("GET http://web/ X-USER=jason", "v1:80"),
                ("GET http://web/ x-user=Jason", "v2:80"),
                ("GET http://web/", "v2:80"),
            ],
        ),
        (
            &when("{headers: {x-user: {prefix: ja}, x-b: {regex: '[0-9]+'}}}"),
            &[("GET http://web/ x-user=jason x-b=12", "v1:80"), ("GET http://web/ x-user=jason x-b=1a", "v2:80")],
        ),
        // Nothing is written: it is there.
        (&when("{headers: {x-user: {}}}"), &[("GET http://web/ x-user=", "v1:80"), ("GET http://web/", "v2:80")]),
        (
            &when("{withoutHeaders: {x-user: {exact: jason}}}"),
            &[
                ("GET http://web/", "v1:80"),
                ("GET http://web/ x-user=other", "v1:80"),
                ("GET http://web/ x-user=jason", "v2:80"),
            ],
        ),
        (
            &when("{withoutHeaders: {x-user: {}}}"),
            &[("GET http://web/", "v1:80"), ("GET http://web/ x-user=1", "v2:80")],
        ),
        (
            &when("{queryParams: {a: {exact: '1'}}, method: {exact: GET}}"),
            &[
                ("GET http://web/?a=1", "v1:80"),
                ("GET http://web/?b=2&a=1", "v1:80"),
                ("GET http://web/?a=2", "v2:80"),
                ("POST http://web/?a=1", "v2:80"),
            ],
        ),
        (&when("{queryParams: {a: {prefix: '1'}}}"), &[("GET http://web/?a=12", "v1:80")]),
        (
            &when("{queryParams: {a: {regex: '[a-c]+'}}}"),
            &[("GET http://web/?a=abc", "v1:80"), ("GET http://web/?a=abcd", "v2:80")],
        ),
        // It is no header, and is not looked at: as in Istio.
        (&when("{headers: {uri: {exact: /a}}}"), &[("GET http://web/b", "v1:80")]),
    ]);
}

#[test]
fn features_VS_6_and_VS_7_ports_and_clients() {
    check(&[
        (&when("{port: 8080}"), &[("GET http://web/ :8080", "v1:80"), ("GET http://web/ :80", "v2:80")]),
        (
            &when("{sourceNamespace: blog}"),
            &[("GET http://web/ ~blog", "v1:80"), ("GET http://web/ ~shop", "v2:80"), ("GET http://web/", "v2:80")],
        ),
        (
            &when("{sourceLabels: {app: a, version: v1}}"),
            &[
                ("GET http://web/ $app=a $version=v1 $x=y", "v1:80"),
                ("GET http://web/ $app=a", "v2:80"),
                ("GET http://web/", "v2:80"),
            ],
        ),
        (&when("{gateways: [edge]}"), &[("GET http://web/", "v2:80")]),
        (&when("{gateways: [mesh, edge]}"), &[("GET http://web/", "v1:80")]),
    ]);
    let named = rules("{name: r, match: [{name: m}], route: [{destination: {host: v3}}]}");
    mesh(&named).decide("GET http://web/", 1, |_, decision| {
        let decision = decision.unwrap();
        assert_eq!((&*decision.handling.name, &*decision.condition.unwrap().name), ("r", "r.m"));
        assert_eq!(decision.handling.origin, "VirtualService shop/o");
    });
}

/// As in Istio, where rules for other ports and gateways are none: nothing is 404 that nobody has spoken of.
#[test]
fn features_VS_6_a_port_of_which_no_rule_speaks_is_the_services_own() {
    let only = |condition: &str| {
        rules(&format!("{{match: [{condition}], route: [{{destination: {{host: v1, port: {{number: 80}}}}}}]}}"))
    };
    let older = |spec: &str| made(object(Kind::VirtualService, "shop", "older", spec), "2026-01-01");
    let younger = made(only("{port: 8080}")[0].clone(), "2026-02-01");
    let of_tcp = older("{hosts: [web], tcp: [{route: [{destination: {host: v2, port: {number: 80}}}]}]}");
    let of_80 =
        older("{hosts: [web], http: [{match: [{port: 80}], route: [{destination: {host: v2, port: {number: 80}}}]}]}");
    check(&[
        (&only("{port: 8080}"), &[("GET http://web/ :8080", "v1:80"), ("GET http://web/ :80", "-")]),
        (&only("{port: 8080, uri: {prefix: /a}}"), &[("GET http://web/ :8080", "404"), ("GET http://web/a :80", "-")]),
        (
            &only("{port: 8080, uri: {prefix: /a}}, {port: 80, uri: {prefix: /b}}"),
            &[
                ("GET http://web/a :8080", "v1:80"),
                ("GET http://web/b :8080", "404"),
                ("GET http://web/b :80", "v1:80"),
            ],
        ),
        (&only("{gateways: [edge]}"), &[("GET http://web/", "-")]),
        (&only("{gateways: [edge]}, {gateways: [mesh]}"), &[("GET http://web/", "v1:80")]),
        // One that says nothing of it stands before no other.
        (&[of_tcp, younger.clone()], &[("GET http://web/ :8080", "v1:80"), ("GET http://web/ :80", "-")]),
        (&[of_80, younger], &[("GET http://web/ :8080", "v1:80"), ("GET http://web/ :80", "v2:80")]),
    ]);
}

/// A rule is held against paths in the one spelling that they are forwarded in.
#[test]
fn features_VS_4_escapes_of_a_rule_are_those_of_a_path() {
    check(&[
        (
            &when("{uri: {prefix: '/caf%c3%a9'}}"),
            &[
                ("GET http://web/caf%c3%a9/x", "v1:80"),
                ("GET http://web/caf%C3%A9", "v1:80"),
                ("GET http://web/caf", "v2:80"),
            ],
        ),
        (&when("{uri: {exact: '/%61%3b'}}"), &[("GET http://web/a%3B", "v1:80"), ("GET http://web/%61%3b", "v1:80")]),
        (&when("{uri: {prefix: '/100%'}}"), &[("GET http://web/100", "v2:80")]),
    ]);
}

#[test]
fn features_VS_8_places_ports_and_subsets() {
    let subsets = |namespace: &str| {
        let spec = "{host: v3.shop.svc.cluster.local, subsets: [{name: one, labels: {version: v1}}]}";
        object(Kind::DestinationRule, namespace, "d", spec)
    };
    let to = |destination: &str| rules(&format!("{{route: [{{destination: {{{destination}}}}}]}}"))[0].clone();
    check(&[
        (&[to("host: v3")], &[("GET http://web/", "v3:80"), ("GET http://web/ :8080", "v3:80")]),
        // Of several ports it is the one that the client asked for.
        (&[to("host: v1")], &[("GET http://web/", "v1:80"), ("GET http://web/ :8080", "v1:8080")]),
        (&[to("host: v1, port: {number: 8080}")], &[("GET http://web/", "v1:8080")]),
        (&[to("host: stock.far.svc.cluster.local")], &[("GET http://web/ :8080", "stock:80")]),
        (&[to("host: v3, subset: one"), subsets("shop")], &[("GET http://web/", "v3/one:80")]),
        (
            &[to("host: v3, subset: one")],
            &[("GET http://web/", "500 no DestinationRule of v3.shop.svc.cluster.local has a subset \"one\"")],
        ),
        (
            &[to("host: none")],
            &[(
                "GET http://web/",
                "500 there is no service and no ServiceEntry with the host none.shop.svc.cluster.local",
            )],
        ),
        (&[to("host: v3, port: {number: 81}")], &[("GET http://web/", "500 v3.shop.svc.cluster.local has no port 81")]),
    ]);
    // A port that nobody has: told, and closed for that port alone.
    let more = [service("shop", "odd", &[80, 9090]), to("host: v1")];
    let odd = [&more[..1], &[virtual_service("{hosts: [odd], http: [{route: [{destination: {host: v1}}]}]}")]].concat();
    let mesh = mesh(&odd);
    assert_eq!(mesh.ask("GET http://odd/"), "v1:80");
    assert_eq!(mesh.ask("GET http://odd/ :9090"), "500 v1 has no port 9090, to which clients connect");
    assert_eq!(mesh.told(), ["e http[0].route[0].destination: v1 has no port 9090, to which clients connect"]);
}

#[test]
fn features_VS_8_weights() {
    let to = |weights: &[u32]| {
        let one = |(index, weight): (usize, &u32)| {
            format!("{{destination: {{host: v{}, port: {{number: 80}}}}, weight: {weight}}}", index + 1)
        };
        let route: Vec<String> = weights.iter().enumerate().map(one).collect();
        mesh(&rules(&format!("{{route: [{}]}}", route.join(", ")))).shares("GET http://web/")
    };
    for (weights, expected) in [
        (&[0][..], [1000, 0, 0]),
        (&[7], [1000, 0, 0]),
        (&[50, 50], [500, 500, 0]),
        (&[0, 10, 30], [0, 250, 750]),
        (&[1, 0, 0], [1000, 0, 0]),
    ] {
        let found = to(weights);
        for (index, wanted) in expected.iter().enumerate() {
            let count = found.get(&format!("v{}:80", index + 1)).copied().unwrap_or_default();
            let is_near = count.abs_diff(*wanted) < 60 && (*wanted > 0 || count == 0);
            assert!(is_near, "{weights:?} {found:?}");
        }
    }
}

#[test]
fn features_VS_9_headers_of_the_rule_then_of_the_place() {
    let headers = "headers: {request: {set: {X-A: '1'}, add: {x-b: '2'}, remove: [x-c]}, response: {set: {x-d: '3'}}}";
    let place =
        "{route: [{destination: {host: v3}, headers: {request: {set: {x-e: '4'}}, response: {remove: [x-f]}}}]}";
    check(&[
        (&to_v3(headers), &[("GET http://web/", "v3:80 req x-a=1,+x-b=2,-x-c res x-d=3")]),
        (&rules(place), &[("GET http://web/", "v3:80 req x-e=4 res -x-f")]),
        (&to_v3("headers: {request: {set: {':authority': a.com}}}"), &[("GET http://web/", "v3:80 host a.com")]),
        (&to_v3("headers: {request: {set: {Host: a.com}}}"), &[("GET http://web/", "v3:80 host a.com")]),
        (&to_v3("headers: {request: {set: {x-a: 100%% %}}}"), &[("GET http://web/", "v3:80 req x-a=100% %")]),
    ]);
}

#[test]
fn features_VS_10_redirects() {
    let to = |redirect: &str| rules(&format!("{{redirect: {{{redirect}}}}}"));
    check(&[
        (&to("uri: /b"), &[("GET http://web/a?x=1", "301 http://web/b?x=1")]),
        (&to("authority: b.com"), &[("GET http://web:8080/a :8080", "301 http://b.com/a")]),
        (&to("authority: 'b.com:81'"), &[("GET http://web/a", "301 http://b.com:81/a")]),
        (&to("authority: 'b.com:81', port: 82"), &[("GET http://web/a", "301 http://b.com:82/a")]),
        (&to("port: 8443, scheme: https, redirectCode: 308"), &[("GET http://web/a", "308 https://web:8443/a")]),
        (&to("derivePort: FROM_PROTOCOL_DEFAULT"), &[("GET http://web:8080/a :8080", "301 http://web/a")]),
        (&to("derivePort: FROM_REQUEST_PORT"), &[("GET http://web/a :8080", "301 http://web:8080/a")]),
        (&to("scheme: https"), &[("GET http://web/a", "301 https://web/a")]),
    ]);
    let of = |condition: &str, redirect: &str| {
        rules(&format!("{{match: [{{uri: {{{condition}}}}}], redirect: {{{redirect}}}}}"))
    };
    check(&[
        (&of("prefix: /a", "prefixRewrite: /b"), &[("GET http://web/a/c?x=1", "301 http://web/b/c?x=1")]),
        (&of("prefix: /a/", "prefixRewrite: /, scheme: https"), &[("GET http://web/a/c", "301 https://web/c")]),
        (&of("exact: /a", "prefixRewrite: /b"), &[("GET http://web/a", "301 http://web/b")]),
        (&of("prefix: /a", "uri: /b"), &[("GET http://web/a/c", "301 http://web/b")]),
        // A fragment is the client's: what is asked for has none.
        (&of("prefix: /a", "uri: '/#/login'"), &[("GET http://web/a/c?x=1", "301 http://web/?x=1#/login")]),
        (&of("prefix: /a", "prefixRewrite: '/#/b'"), &[("GET http://web/a/c", "301 http://web/#/b/c")]),
    ]);
}

#[test]
fn features_VS_6_what_a_request_is_called_in_logs() {
    let named = |rule: &str, conditions: &str| {
        rules(&format!("{{{rule} match: [{conditions}], route: [{{destination: {{host: v3}}}}]}}"))
    };
    for (written, asked, expected) in [
        (named("name: r,", "{name: m, uri: {prefix: /a}}"), "/a", "r.m"),
        (named("name: r,", "{name: m, uri: {prefix: /a}}, {name: k, uri: {prefix: /b}}"), "/b", "r.k"),
        (named("name: r,", "{uri: {prefix: /a}}, {name: k, uri: {prefix: /b}}"), "/a", ""),
        (named("", "{name: m, uri: {prefix: /a}}"), "/a", "VirtualService shop/o.m"),
    ] {
        let mesh = mesh(&written);
        let found = mesh.decide(&format!("GET http://web{asked}"), 7, |_, decision| {
            decision.unwrap().condition.map(|condition| condition.name.to_string()).unwrap_or_default()
        });
        assert_eq!(found, expected, "{written:?}");
        assert_eq!(mesh.told(), [""; 0]);
    }
    let mesh = mesh(&named("", "{statPrefix: s, uri: {prefix: /a}}"));
    let why = "waypoints make Istio's metrics, none for each route: it has no effect";
    assert_eq!(mesh.told(), [format!("w http[0].match[0].statPrefix: {why}")]);
}

#[test]
fn features_VS_11_answers() {
    check(&[
        (&rules("{directResponse: {status: 503, body: {string: closed}}}"), &[("GET http://web/", "503 closed")]),
        (&rules("{directResponse: {status: 200, body: {bytes: aGk=}}}"), &[("GET http://web/", "200 hi")]),
        (&rules("{directResponse: {status: 204}}"), &[("GET http://web/", "204 ")]),
    ]);
}

#[test]
fn features_VS_13_rewrites() {
    let to = |condition: &str, rewrite: &str| {
        rules(&format!(
            "{{match: [{{uri: {{{condition}}}}}], route: [{{destination: {{host: v3}}}}], rewrite: {{{rewrite}}}}}"
        ))
    };
    check(&[
        (
            &to("prefix: /ratings", "uri: /v1/bookRatings"),
            &[("GET http://web/ratings/7?x", "v3:80 path /v1/bookRatings/7?x")],
        ),
        (&to("prefix: /a/", "uri: /"), &[("GET http://web/a/b", "v3:80 path /b")]),
        (&to("exact: /a", "uri: /b, authority: b.com"), &[("GET http://web/a", "v3:80 path /b host b.com")]),
        (
            &to("prefix: /", r"uriRegexRewrite: {match: '/x/([^/]+)(/.*)$', rewrite: '\2/y/\1'}"),
            &[
                ("GET http://web/x/foo/v1/api", "v3:80 path /v1/api/y/foo"),
                ("GET http://web/other", "v3:80 path /other"),
            ],
        ),
    ]);
}

#[test]
fn what_cannot_be_done_closes_its_rule_and_is_told() {
    for (written, field, why) in [
        (
            when("{headers: {'@request.auth.claims.group': {exact: a}}}"),
            "http[0].match[0].headers[\"@request.auth.claims.group\"]",
            "claims of tokens tell no requests apart here",
        ),
        (
            to_v3("headers: {request: {set: {content-length: '1'}}}"),
            "http[0].headers.request.set[\"content-length\"]",
            "\"content-length\" says where messages end, is about one connection, or counts waypoints",
        ),
        (
            to_v3("headers: {request: {set: {':path': /a}}}"),
            "http[0].headers.request.set[\":path\"]",
            "\":path\" is no header that could be changed",
        ),
        (
            to_v3("headers: {response: {set: {host: a}}}"),
            "http[0].headers.response.set[\"host\"]",
            "\"host\" is no header that could be changed",
        ),
        (
            to_v3("headers: {request: {set: {x-a: '%REQ(x-b)%'}}}"),
            "http[0].headers.request.set[\"x-a\"]",
            "\"%REQ(x-b)%\" has a command of Envoy, and there is no Envoy here",
        ),
        (
            to_v3(r"rewrite: {uriRegexRewrite: {match: a, rewrite: '\1'}}"),
            "http[0].rewrite.uriRegexRewrite",
            "\"\\\\1\" names a group that the regular expression does not have: write \\\\ for a backslash",
        ),
        (
            to_v3("rewrite: {uri: '/a b'}"),
            "http[0].rewrite.uri",
            "\"/a b\" has a character that cannot stand in a path",
        ),
        (
            to_v3("rewrite: {uri: '/#/a'}"),
            "http[0].rewrite.uri",
            "\"/#/a\" has a character that cannot stand in a path",
        ),
        (
            rules("{redirect: {uri: '/#/a#b'}}"),
            "http[0].redirect.uri",
            "\"/#/a#b\" has a character that cannot stand in a path",
        ),
        (to_v3("rewrite: {authority: 'a b'}"), "http[0].rewrite.authority", "\"a b\": not the name of a host"),
        (
            rules("{redirect: {uri: \"/a\\r\\nset-cookie: x\"}}"),
            "http[0].redirect.uri",
            "\"/a\\r\\nset-cookie: x\" has a character that cannot stand in a path",
        ),
        (
            rules("{directResponse: {status: 200, body: {bytes: '!'}}}"),
            "http[0].directResponse.body.bytes",
            "not base64: Invalid symbol 33, offset 0.",
        ),
        (
            when(r"{uri: {regex: '\p{Nonsense}'}}"),
            "http[0].match[0].uri",
            "not a regular expression: Unicode property not found",
        ),
    ] {
        let mesh = mesh(&written);
        assert_eq!(mesh.ask("GET http://web/a"), format!("500 spec.{field}: {why}"));
        assert_eq!(mesh.told(), [format!("e {field}: {why}")]);
    }
    // The place alone, if it is the place's.
    let place = "{route: [{destination: {host: v3}, weight: 50, headers: {request: {set: {te: a}}}}, {destination: {host: v3}, weight: 50}]}";
    let shares = mesh(&rules(place)).shares("GET http://web/");
    assert!(shares["v3:80"].abs_diff(500) < 60 && shares.len() == 2, "{shares:?}");
}

#[test]
fn a_condition_that_cannot_be_compared_closes_at_least_what_it_means() {
    let mesh = mesh(&when("{uri: {prefix: /a}, headers: {'@request.auth.claims.group': {exact: a}}}"));
    assert!(mesh.ask("GET http://web/a").starts_with("500 "));
    assert_eq!(mesh.ask("GET http://web/b"), "v2:80");
}
