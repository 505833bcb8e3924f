//! Tests of the reader of VirtualServices: good and bad ones.

use super::*;

const KIND: Kind = Kind::VirtualService;

#[test]
fn good_ones() {
    let route = "{route: [{destination: {host: reviews}}]}";
    good(
        KIND,
        &[
            (&format!("{{hosts: [reviews], http: [{route}]}}"), &[]),
            ("{hosts: ['*.example.com', 10.0.0.1], gateways: [mesh, istio-system/public], http: [{redirect: {authority: b.com}}]}", &[]),
            ("{hosts: ['*'], gateways: [public], http: [{directResponse: {status: 200, body: {string: hello}}}]}", &[]),
            ("{http: [{match: [{uri: {prefix: /a}}], route: [{destination: {host: a}}]}]}", &[]),
            (
                "{hosts: [reviews.shop.svc.cluster.local], exportTo: ['.', other], http: [
                    {name: v2, match: [{uri: {regex: '/v[0-9]+/.*'}, headers: {end-user: {exact: jason}, x-any: {}}, method: {exact: GET}, port: 9080,
                        queryParams: {q: {prefix: a}}, withoutHeaders: {x-no: {}}, sourceLabels: {app: web}, sourceNamespace: shop}],
                     route: [{destination: {host: reviews, subset: v2, port: {number: 9080}}, weight: 90, headers: {request: {set: {x-a: b}, remove: [x-c]}}},
                             {destination: {host: reviews, subset: v1}, weight: 10}],
                     timeout: 1.5s, retries: {attempts: 3, perTryTimeout: 500ms, retryOn: '5xx,reset, 503'},
                     fault: {delay: {fixedDelay: 7s, percentage: {value: 0.1}}, abort: {httpStatus: 500, percentage: {value: 100}}},
                     mirrors: [{destination: {host: reviews, subset: v3}, percentage: {value: 5}}],
                     corsPolicy: {allowOrigins: [{exact: https://a.com}], allowMethods: [GET], allowHeaders: [x-a], maxAge: 24h, unmatchedPreflights: IGNORE},
                     rewrite: {uri: /, authority: b}}]}",
                &[],
            ),
            (
                "{hosts: ['*.a.com'], gateways: [public], tls: [{match: [{sniHosts: [x.a.com], port: 443, destinationSubnets: [10.0.0.0/8]}],
                  route: [{destination: {host: x}}]}], tcp: [{match: [{port: 27017}], route: [{destination: {host: m, port: {number: 27017}}, weight: 1},
                  {destination: {host: other}, weight: 3}]}]}",
                &[],
            ),
            // What does not do what it seems to.
            (
                &format!("{{hosts: [a], http: [{route}, {route}]}}"),
                &["w http[1]: no request comes so far: http[0] takes all (put the rule without conditions last)"],
            ),
            (
                "{hosts: [a], http: [{match: [{headers: {X-User: {exact: a}}, method: {exact: get}}], route: [{destination: {host: a}}],
                  fault: {abort: {httpStatus: 500}}}]}",
                &[
                    "w http[0].match[0].method: methods are in upper case: no request has this one",
                    "w http[0].match[0].headers.X-User: names of headers are in lower case here (write `x-user`)",
                    "w http[0].fault.abort: without `percentage` it happens to no request (write `percentage: {value: 100}`)",
                ],
            ),
        ],
    );
}

#[test]
fn bad_ones() {
    let a = "route: [{destination: {host: a}}]";
    bad(
        KIND,
        &[
            ("{hosts: [a]}", &["spec: it has no rules (add `http`, `tls` or `tcp`)"]),
            (
                "{host: [a], http: [{route: [{destination: {host: a}}]}]}",
                &["host: unknown field \"host\" (did you mean `hosts`?)"],
            ),
            (
                "{hosts: [a], http: [{rute: [{destination: {host: a}}]}]}",
                &["http[0].rute: unknown field \"rute\" (did you mean `route`?)"],
            ),
            (
                "{hosts: [a], http: [{route: [{destination: {subset: v1}}]}]}",
                &["http[0].route[0].destination: the field `host` is missing"],
            ),
            (
                &format!(
                    r#"{{hosts: [a], http: [{{match: [{{sourceLabels: {{app: "a\tb"}}, sourceNamespace: a b}}], {a}}}]}}"#
                ),
                &[
                    r#"http[0].match[0].sourceLabels.app: no label has the value "a\tb""#,
                    r#"http[0].match[0].sourceNamespace: "a b" is not the name of a namespace: it may hold lower-case letters, digits and `-` only"#,
                ],
            ),
            (
                &format!(r#"{{hosts: [a], tcp: [{{match: [{{sourceLabels: {{"a b": x}}}}], {a}}}]}}"#),
                &[r#"tcp[0].match[0].sourceLabels["a b"]: no label is called "a b""#],
            ),
            (
                "{hosts: [a], http: [{}]}",
                &["http[0]: the rule does nothing (add `route`, `redirect`, `directResponse` or `delegate`)"],
            ),
            (
                &format!("{{hosts: [a], http: [{{{a}, redirect: {{uri: /b}}}}]}}"),
                &["http[0]: route and redirect exclude each other (keep one of them)"],
            ),
            (
                &format!("{{hosts: ['*'], http: [{{{a}}}]}}"),
                &["hosts[0]: \"*\" cannot mean every host of the mesh (name hosts, or bind it to gateways)"],
            ),
            (
                &format!("{{hosts: [http://a], gateways: [A_b], http: [{{{a}}}]}}"),
                &[
                    "hosts[0]: \"http://a\" is not the name of a host",
                    "gateways[0]: \"A_b\" is neither `mesh` nor the name of a gateway, as istio-system/public",
                ],
            ),
            (&format!("{{hosts: [a, a], http: [{{{a}}}]}}"), &["hosts[1]: \"a\" is there more than once"]),
            (
                &format!("{{hosts: [a], http: [{{{a}, timeout: 5}}]}}"),
                &[
                    "http[0].timeout: expected a string, found a number (write the value in quotes: YAML reads yes, no, on, off, y and n as booleans, and digits as numbers)",
                ],
            ),
            (
                &format!("{{hosts: [a], http: [{{{a}, timeout: '5'}}]}}"),
                &["http[0].timeout: \"5\" is no length of time: write a number with a unit, as 500ms, 10s or 1h"],
            ),
            (
                &format!("{{hosts: [a], http: [{{{a}, retries: {{attempts: 2, retryOn: 'conect-failure'}}}}]}}"),
                &[
                    "http[0].retries.retryOn: nothing is tried again for \"conect-failure\" (did you mean `connect-failure`?)",
                ],
            ),
            (
                &format!(
                    "{{hosts: [a], http: [{{{a}, match: [{{uri: {{exact: /a, prefix: /b}}}}, {{uri: {{}}}}, {{uri: {{regex: 'a('}}}}]}}]}}"
                ),
                &[
                    "http[0].match[0].uri: write one of exact, prefix and regex",
                    "http[0].match[2].uri.regex: not a regular expression: unclosed group",
                ],
            ),
            (
                "{hosts: [a], http: [{route: [{destination: {host: a}}, {destination: {host: '*.b'}}]}]}",
                &[
                    "http[0].route: all weights together are 0: nothing goes anywhere (give each place a `weight`)",
                    "http[0].route[1].destination.host: \"*.b\" has a wildcard, and one host is meant",
                ],
            ),
            (
                &format!(
                    "{{hosts: [a], http: [{{{a}, fault: {{delay: {{percentage: {{value: 101}}}}, abort: {{grpcStatus: UNAVAILABEL, percentage: {{value: 1}}}}}}}}]}}"
                ),
                &[
                    "http[0].fault.delay: the field `fixedDelay` is missing (write `fixedDelay: 5s`)",
                    "http[0].fault.delay.percentage.value: not a percentage (write a number from 0 to 100)",
                    "http[0].fault.abort.grpcStatus: \"UNAVAILABEL\" is not a code of gRPC (did you mean `UNAVAILABLE`?)",
                ],
            ),
            (
                "{hosts: [a], http: [{redirect: {redirectCode: 200, port: 80, derivePort: FROM_PORT}}]}",
                &[
                    "http[0].redirect.derivePort: unknown value \"FROM_PORT\" (write one of FROM_PROTOCOL_DEFAULT, FROM_REQUEST_PORT)",
                ],
            ),
            (
                "{hosts: [a], http: [{redirect: {uri: /a, prefixRewrite: /b}}]}",
                &["http[0].redirect: uri and prefixRewrite exclude each other (keep one of them)"],
            ),
            (
                "{hosts: [a], http: [{redirect: {redirectCode: 200}}]}",
                &["http[0].redirect.redirectCode: 200 is not a redirect (write 301, 302, 303, 307 or 308)"],
            ),
            (
                "{hosts: [a.com], gateways: [g], tls: [{match: [{sniHosts: [b.com]}], route: [{destination: {host: b}}]}]}",
                &["tls[0].match[0].sniHosts[0]: \"b.com\" is none of the object's hosts (add it to spec.hosts)"],
            ),
            (
                "{hosts: [a.com], tls: [{route: [{destination: {host: b}}]}], tcp: [{match: [{port: 70000}]}]}",
                &[
                    "tcp[0].match[0].port: 70000 is out of range (write a number from 0 to 65535)",
                    "tls[0]: the field `match` is missing",
                ],
            ),
            (
                "{gateways: [g], http: [{delegate: {name: b}}]}",
                &[
                    "hosts: the hosts are missing (without hosts it can only be delegated to: then it has `http` and no gateways)",
                    "http[0].delegate: what is delegated to cannot delegate again (write the rules here)",
                ],
            ),
        ],
    );
}
