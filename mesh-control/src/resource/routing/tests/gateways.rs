//! Istio's Gateways, Gateways of the Gateway API, and HTTPRoutes.

use super::*;

#[test]
fn good_ones_of_istio() {
    good(
        Kind::IstioGateway,
        &[
            (
                "{selector: {istio: ingressgateway}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*'], tls: {httpsRedirect: true}},
                  {port: {number: 443, name: https, protocol: HTTPS}, hosts: [shop/a.com, ./b.com, '*/*.c.com'], tls: {mode: SIMPLE, credentialName: c, minProtocolVersion: TLSV1_2}},
                  {port: {number: 8443, name: tls, protocol: TLS}, hosts: ['*.d.com'], tls: {mode: PASSTHROUGH}},
                  {port: {number: 8444, name: mutual, protocol: HTTPS}, hosts: [e.com], tls: {mode: MUTUAL, credentialName: c, caCrl: x}},
                  {port: {number: 15443, name: east, protocol: TLS}, hosts: ['*.local'], tls: {mode: ISTIO_MUTUAL}}]}",
                &[],
            ),
            (
                "{servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: [a.com]}]}",
                &["w selector: it selects every proxy (write the labels of the gateway's pods, as `istio: ingressgateway`)"],
            ),
        ],
    );
}

#[test]
fn bad_ones_of_istio() {
    let all = "selector: {istio: ingressgateway}, servers:";
    bad(
        Kind::IstioGateway,
        &[
            (&format!("{{{all} []}}"), &["servers: it listens for nothing (add a server with `port` and `hosts`)"]),
            (
                &format!("{{{all} [{{port: {{number: 443, name: https, protocol: HTTPS}}, hosts: [a.com]}}]}}"),
                &[
                    "servers[0]: HTTPS needs certificates (add `tls`, with `mode: SIMPLE` and `credentialName`, or `mode: PASSTHROUGH`)",
                ],
            ),
            (
                &format!(
                    "{{{all} [{{port: {{number: 443, name: https, protocol: HTTPS}}, hosts: [a.com], tls: {{mode: SIMPLE}}}}]}}"
                ),
                &[
                    "servers[0].tls: there is no certificate to show (add `credentialName`, the name of a Secret of type kubernetes.io/tls)",
                ],
            ),
            (
                &format!(
                    "{{{all} [{{port: {{number: 80, name: http, protocol: HTTP}}, hosts: [], tls: {{mode: SIMPLE, credentialName: c}}}}]}}"
                ),
                &[
                    "servers[0].hosts: no host (write \"*\" for all)",
                    "servers[0].tls: HTTP is spoken without TLS (write `protocol: HTTPS`, or of `tls` httpsRedirect only)",
                ],
            ),
            (
                &format!(
                    "{{{all} [{{port: {{number: 80, protocol: HTTPP, name: a}}, hosts: [A/b/c]}}, {{port: {{number: 80, protocol: TCP, name: a}}, hosts: ['*']}}]}}"
                ),
                &[
                    "servers[1].port.name: \"a\" is there more than once",
                    "servers[0].port.protocol: \"HTTPP\" is no protocol that is known (did you mean `HTTP`?)",
                    "servers[0].hosts[0]: \"A/b/c\": before the `/` stands a namespace, `.` or `*`",
                    "servers[1].port.protocol: port 80 speaks HTTPP and TCP (use two ports)",
                ],
            ),
            (
                &format!("{{{all} [{{port: {{number: 80}}, hosts: ['*']}}]}}"),
                &["servers[0].port: the field `protocol` is missing"],
            ),
            (
                &format!(
                    r#"{{{all} [{{port: {{number: 443, name: a, protocol: HTTPS}}, hosts: ['*'], tls: {{mode: MUTUAL, credentialName: c, subjectAltNames: ["a\tb"]}}}}]}}"#
                ),
                &[r#"servers[0].tls.subjectAltNames[0]: "a\tb" has a control character"#],
            ),
        ],
    );
}

#[test]
fn good_ones() {
    good(
        Kind::Gateway,
        &[
            ("{gatewayClassName: undermesh, listeners: [{name: http, port: 80, protocol: HTTP}]}", &[]),
            (
                "{gatewayClassName: undermesh, listeners: [{name: https, hostname: '*.a.com', port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: c, namespace: certs}]},
                  allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {a: b}}}, kinds: [{kind: HTTPRoute}]}},
                  {name: tls, hostname: b.com, port: 443, protocol: TLS, tls: {mode: Passthrough}}, {name: dns, port: 53, protocol: UDP}, {name: own, port: 1, protocol: example.com/x}],
                  addresses: [{value: 10.0.0.1}], infrastructure: {labels: {a: b}}}",
                &[],
            ),
            ("{gatewayClassName: undermesh-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}", &[]),
            // As the Gateway API has it: a selector without `from: Selector` is ignored.
            (
                "{gatewayClassName: undermesh, listeners: [{name: http, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: Same, selector: {matchLabels: {a: b}}}}}], allowedListeners: {namespaces: {selector: {}}}}",
                &[
                    "w listeners[0].allowedRoutes.namespaces.selector: it counts with `from: Selector` only: it is ignored (write `from: Selector`, or delete it)",
                    "w allowedListeners.namespaces.selector: it counts with `from: Selector` only: it is ignored (write `from: Selector`, or delete it)",
                ],
            ),
            // One listener is refused, and the others count.
            (
                "{gatewayClassName: undermesh, listeners: [{name: http, port: 80, protocol: HTTP}, {name: odd, port: 1111, protocol: INVALID}]}",
                &[
                    "w listeners[1].protocol: \"INVALID\" is no protocol (write one of HTTP, HTTPS, TLS, TCP, UDP, HBONE, or one of an implementation, as example.com/x)",
                ],
            ),
        ],
    );
}

#[test]
fn what_a_gateway_says_of_what_stands_before_it_must_be_readable() {
    let with = |config: &str| {
        format!(
            "{{gatewayClassName: undermesh, listeners: [{{name: http, port: 80, protocol: HTTP}}], infrastructure: {{annotations: {{proxy.istio.io/config: {config:?}}}}}}}"
        )
    };
    good(Kind::Gateway, &[(&with("gatewayTopology: {numTrustedProxies: 1}"), &[])]);
    let field = "infrastructure.annotations[\"proxy.istio.io/config\"]";
    let mistyped = format!(
        "{field}.gatewayTopology.numTrustedProxie: unknown field \"numTrustedProxie\" (did you mean `numTrustedProxies`?)"
    );
    bad(Kind::Gateway, &[(&with("gatewayTopology: {numTrustedProxie: 1}"), &[&mistyped])]);
}

#[test]
fn good_sets_of_listeners() {
    good(
        Kind::ListenerSet,
        &[
            ("{parentRef: {name: edge}, listeners: [{name: http, port: 80, protocol: HTTP}]}", &[]),
            (
                "{parentRef: {group: gateway.networking.k8s.io, kind: Gateway, name: edge, namespace: infra}, listeners: [
                  {name: https, hostname: '*.a.com', port: 443, protocol: HTTPS, tls: {mode: Terminate, certificateRefs: [{group: '', kind: Secret, name: c, namespace: certs}]},
                  allowedRoutes: {namespaces: {from: Selector, selector: {matchExpressions: [{key: a, operator: Exists}]}}, kinds: [{kind: HTTPRoute}]}},
                  {name: tcp, port: 9000, protocol: TCP}]}",
                &[],
            ),
            // Another controller's own.
            ("{parentRef: {group: a.b, kind: C, name: edge}, listeners: [{name: own, port: 1, protocol: a.b/c}]}", &[]),
        ],
    );
}

#[test]
fn bad_sets_of_listeners() {
    bad(
        Kind::ListenerSet,
        &[
            ("{listeners: [{name: a, port: 80, protocol: HTTP}]}", &["spec: the field `parentRef` is missing"]),
            ("{parentRef: {name: edge}}", &["spec: the field `listeners` is missing"]),
            (
                "{parentRef: {name: Edge, namespace: a.b}, listeners: []}",
                &[
                    "parentRef.name: \"Edge\" is not a name: it must begin and end with a lower-case letter or digit",
                    "parentRef.namespace: \"a.b\" is not a namespace: it may hold lower-case letters, digits and `-` only",
                    "listeners: it listens for nothing (add a listener with `name`, `port` and `protocol`)",
                ],
            ),
            (
                "{parentRef: {name: edge}, listeners: [{name: a, port: 0, protocol: TCP, hostname: a.com}, {name: a, port: 80, protocol: HTTP, tls: {}}]}",
                &[
                    "listeners[1].name: \"a\" is there more than once",
                    "listeners[0].port: 0 is not a port (write a number from 1 to 65535)",
                    "listeners[0].hostname: TCP has no names of hosts (delete the field)",
                    "listeners[1].tls: HTTP is spoken without TLS (write `protocol: HTTPS` or TLS)",
                ],
            ),
        ],
    );
}

#[test]
fn bad_ones() {
    bad(
        Kind::Gateway,
        &[
            ("{listeners: [{name: a, port: 80, protocol: HTTP}]}", &["spec: the field `gatewayClassName` is missing"]),
            (
                "{gatewayClassName: u}",
                &["listeners: it listens for nothing (add a listener with `name`, `port` and `protocol`)"],
            ),
            (
                "{gatewayClassName: u, listeners: [{name: a, port: 80, protocol: HTTPP, hostname: 1.2.3.4}, {name: a, port: 443, protocol: HTTPS}, {name: c, port: 443, protocol: HTTPS, tls: {}}]}",
                &[
                    "listeners[1].name: \"a\" is there more than once",
                    "listeners[2]: (443, \"TCP\", \"HTTPS\", None) is there more than once",
                    "listeners[0].hostname: \"1.2.3.4\" is an address, and names are compared",
                    "w listeners[0].protocol: \"HTTPP\" is no protocol (did you mean `HTTP`?)",
                    "listeners[1]: HTTPS needs `tls` (add `tls: {certificateRefs: [{name: …}]}`)",
                    "listeners[2].tls: there is no certificate to show (add `certificateRefs: [{name: …}]`, the name of a Secret of type kubernetes.io/tls)",
                ],
            ),
            (
                "{gatewayClassName: u, listeners: [{name: a, port: 80, protocol: HTTP, tls: {}, allowedRoutes: {namespaces: {from: Selector}}}]}",
                &[
                    "listeners[0].tls: HTTP is spoken without TLS (write `protocol: HTTPS` or TLS)",
                    "listeners[0].allowedRoutes.namespaces: the field `selector` is missing",
                ],
            ),
            (
                "{gatewayClassName: u, listeners: [{name: a, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: Any}}}]}",
                &[
                    "listeners[0].allowedRoutes.namespaces.from: unknown value \"Any\" (write one of All, Selector, Same, None)",
                ],
            ),
        ],
    );
}

#[test]
fn good_routes() {
    good(
        Kind::HttpRoute,
        &[
            ("{parentRefs: [{group: '', kind: Service, name: reviews, port: 9080}], rules: [{backendRefs: [{name: reviews-v1, port: 9080}]}]}", &[]),
            (
                "{parentRefs: [{name: gw, namespace: infra, sectionName: https}], hostnames: [a.com, '*.b.com'], rules: [
                  {name: r, matches: [{path: {type: PathPrefix, value: /a}, headers: [{name: x-a, value: b}], method: GET, queryParams: [{type: RegularExpression, name: q, value: 'a+'}]}],
                   filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: b}], remove: [c]}},
                             {type: URLRewrite, urlRewrite: {hostname: h.com, path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}},
                             {type: RequestMirror, requestMirror: {backendRef: {name: m, port: 80}, percent: 10}},
                             {type: CORS, cors: {allowOrigins: ['*'], maxAge: 5}}],
                   backendRefs: [{name: a, port: 80, weight: 90}, {name: b, namespace: other, port: 80, weight: 10}],
                   timeouts: {request: 10s, backendRequest: 2s}, retry: {codes: [500, 503], attempts: 2, backoff: 100ms}},
                  {filters: [{type: RequestRedirect, requestRedirect: {scheme: https, statusCode: 301}}]}]}",
                &[],
            ),
        ],
    );
}

#[test]
fn bad_routes() {
    let parent = "parentRefs: [{name: gw}]";
    bad(
        Kind::HttpRoute,
        &[
            (
                "{parentRefs: [{kind: Service, name: a}]}",
                &["parentRefs[0]: there is no Service in gateway.networking.k8s.io (write `group: \"\"`)"],
            ),
            (
                &format!("{{{parent}, hostnames: [a.com:80, 1.1.1.1]}}"),
                &[
                    "hostnames[0]: \"a.com:80\" is not the name of a host",
                    "hostnames[1]: \"1.1.1.1\" is an address, and names are compared",
                ],
            ),
            (
                &format!("{{{parent}, rules: [{{backendRefs: [{{name: a}}]}}]}}"),
                &["rules[0].backendRefs[0]: a Service needs a port (add `port`)"],
            ),
            (
                &format!(
                    "{{{parent}, rules: [{{matches: [{{path: {{value: a}}}}, {{path: {{type: Exact, value: /a//b}}}}, {{path: {{type: RegularExpression, value: '['}}}}]}}]}}"
                ),
                &[
                    "rules[0].matches[0].path.value: \"a\" does not begin with `/` (write `/a`)",
                    "rules[0].matches[1].path.value: \"/a//b\" is a path that no request has (write it without //, . and .., %2f and #)",
                    "rules[0].matches[2].path.value: not a regular expression: unclosed character class",
                ],
            ),
            (
                &format!(
                    "{{{parent}, rules: [{{filters: [{{type: RequestRedirect, urlRewrite: {{}}}}], backendRefs: [{{name: a, port: 80}}]}}]}}"
                ),
                &[
                    "rules[0].filters[0]: the field `requestRedirect` is missing (it is what the type says)",
                    "rules[0].filters[0].urlRewrite: the type says another filter (make two filters of it)",
                    "rules[0].backendRefs: the client is sent elsewhere: no request comes here (delete backendRefs or the redirect)",
                ],
            ),
            (
                &format!(
                    "{{{parent}, rules: [{{matches: [{{path: {{type: Exact, value: /a}}}}], filters: [{{type: URLRewrite, urlRewrite: {{path: {{type: ReplacePrefixMatch, replacePrefixMatch: /b}}}}}}]}}]}}"
                ),
                &[
                    "rules[0].filters[0].urlRewrite.path: there is a match without a prefix that could be replaced (match paths with `type: PathPrefix`)",
                ],
            ),
            (
                &format!(
                    "{{{parent}, rules: [{{timeouts: {{request: 1s, backendRequest: 2s}}}}, {{timeouts: {{request: 1.5s}}}}]}}"
                ),
                &[
                    "rules[0].timeouts.backendRequest: longer than `request` (each attempt is a part of the request)",
                    "rules[1].timeouts.request: \"1.5s\" is no length of time (write as 500ms, 10s or 1h30m)",
                ],
            ),
            (
                &format!("{{{parent}, rules: [{{matches: [{{method: get}}]}}]}}"),
                &["rules[0].matches[0].method: unknown value \"get\" (did you mean `GET`?)"],
            ),
        ],
    );
}
