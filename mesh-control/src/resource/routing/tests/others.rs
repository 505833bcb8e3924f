//! Tests of the readers of the kinds that have no file of their own: good and bad objects of each.

use super::*;

#[test]
fn workloads() {
    good(
        Kind::WorkloadEntry,
        &[
            (
                "{address: 10.0.0.1, ports: {http: 8080}, labels: {app: a}, serviceAccount: a, weight: 1, locality: eu/z}",
                &[],
            ),
            ("{network: other}", &[]),
            (
                "{address: 192.0.2.1, network: other}",
                &[
                    "w network: a mesh is one network here: it is reached as all others are, through no gateway of another network (delete it, or the endpoint if nobody can reach it so)",
                ],
            ),
        ],
    );
    bad(
        Kind::WorkloadEntry,
        &[
            ("{adress: 10.0.0.1}", &["adress: unknown field \"adress\" (did you mean `address`?)"]),
            (
                "{address: 'unix://x', ports: {http: 0}, serviceAccount: A/b, locality: a/b/c/d}",
                &[
                    "address: the path of a socket begins with `/`",
                    "ports: a socket has no ports",
                    "ports.http: 0 is not a port (write a number from 1 to 65535)",
                    "serviceAccount: \"A/b\": it must begin and end with a lower-case letter or digit",
                    "locality: more than region, zone and sub-zone",
                ],
            ),
        ],
    );
    good(
        Kind::WorkloadGroup,
        &[(
            "{metadata: {labels: {app: a}}, template: {serviceAccount: a, ports: {http: 80}}, probe: {httpGet: {port: 80, path: /ok}, periodSeconds: 5}}",
            &[],
        )],
    );
    bad(
        Kind::WorkloadGroup,
        &[
            ("{}", &["spec: the field `template` is missing"]),
            (
                "{template: {address: 1.1.1.1}, probe: {exec: {command: []}, grpc: {port: 0}}}",
                &[
                    "template.address: each entry has its own address (delete the field)",
                    "probe: exec and grpc exclude each other (keep one of them)",
                    "probe.grpc.port: 0 is not a port (write a number from 1 to 65535)",
                    "probe.exec.command: no program",
                ],
            ),
        ],
    );
}

#[test]
fn sidecars() {
    good(
        Kind::Sidecar,
        &[
            (
                "{workloadSelector: {labels: {app: a}}, egress: [{hosts: ['./*', istio-system/*, '~/*', '~other/a.com']}], outboundTrafficPolicy: {mode: REGISTRY_ONLY},
              ingress: [{port: {number: 80, protocol: HTTP, name: http}, defaultEndpoint: '127.0.0.1:8080', connectionPool: {x: 1}}]}",
                &[
                    "w egress: known, not in force: of a Sidecar outboundTrafficPolicy counts",
                    "w ingress: known, not in force: of a Sidecar outboundTrafficPolicy counts",
                ],
            ),
            (
                "{outboundTrafficPolicy: {mode: ALLOW_ANY_DYNAMIC_DNS}}",
                &[
                    "w outboundTrafficPolicy.mode: no name of a request or of TLS is looked up where nobody knows its host: it is ALLOW_ANY, and connections go to the address that they are made to (write ALLOW_ANY)",
                ],
            ),
        ],
    );
    bad(
        Kind::Sidecar,
        &[
            (
                "{egress: [{hosts: [a.com]}, {hosts: []}], ingress: [{port: {number: 80, protocol: HTTP}, defaultEndpoint: '10.0.0.1:80'}], outboundTrafficPolicy: {mode: ALLOW}}",
                &[
                    "outboundTrafficPolicy.mode: unknown value \"ALLOW\" (write one of REGISTRY_ONLY, ALLOW_ANY, ALLOW_ANY_DYNAMIC_DNS)",
                ],
            ),
            (
                "{egress: [{hosts: [a.com]}, {hosts: []}], ingress: [{port: {number: 80, protocol: HTTP}, defaultEndpoint: '10.0.0.1:80'}]}",
                &[
                    "egress[0].hosts[0]: \"a.com\" does not say the namespace: write as ./a.com",
                    "egress[1].hosts: no host (write as `./*` or `istio-system/*`)",
                    "ingress[0].defaultEndpoint: \"10.0.0.1:80\" is none of the pod (write as 127.0.0.1:8080 or unix:///path)",
                ],
            ),
        ],
    );
}

#[test]
fn tokens_and_telemetry() {
    good(
        Kind::RequestAuthentication,
        &[
            ("{}", &[]),
            (
                "{selector: {matchLabels: {app: a}}, jwtRules: [{issuer: https://a.com, jwksUri: 'https://a.com/keys', audiences: [b], fromHeaders: [{name: x-jwt, prefix: 'JWT '}],
                  outputClaimToHeaders: [{header: x-user, claim: sub}], forwardOriginalToken: true, timeout: 5s}, {issuer: b, jwks: '{\"keys\": []}'}]}",
                &[],
            ),
            ("{targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: waypoint}]}", &[]),
            (
                "{jwtRules: [{issuer: a, timeout: 15s}, {issuer: b, timeout: 16s}]}",
                &["w jwtRules[1].timeout: a place of keys has 15 s at most: that is in force (write no more)"],
            ),
        ],
    );
    bad(
        Kind::RequestAuthentication,
        &[
            ("{jwtRule: [{issuer: a}]}", &["jwtRule: unknown field \"jwtRule\" (did you mean `jwtRules`?)"]),
            // Its definition keeps what it does not know, so that nothing that was meant to refuse a token is dropped unheard.
            (
                "{unheardOf: 1}",
                &[
                    "unheardOf: unknown field \"unheardOf\" (known fields here: selector, targetRef, targetRefs, jwtRules)",
                ],
            ),
            ("{jwtRules: [{jwks: x}]}", &["jwtRules[0]: the field `issuer` is missing"]),
            (
                "{selector: {}, targetRefs: [{kind: Pod, name: a}], jwtRules: [{issuer: a, jwksUri: a, jwks: x, fromHeaders: [{name: 'a b'}]}]}",
                &[
                    "spec: selector and targetRefs exclude each other (keep one of them)",
                    "targetRefs[0]: nothing is bound to Pod. (bind it to a Gateway (group gateway.networking.k8s.io), a Service or a ServiceEntry)",
                    "jwtRules[0]: jwks and jwksUri exclude each other (keep one of them)",
                    "jwtRules[0].jwksUri: \"a\" is no place of keys (write a URL that begins with https://)",
                    "jwtRules[0].jwks: it holds no keys (write a JSON Web Key Set: {\"keys\": [...]})",
                    "jwtRules[0].fromHeaders[0].name: \"a b\" is not the name of a header",
                ],
            ),
        ],
    );
    good(
        Kind::Telemetry,
        &[(
            "{metrics: [{providers: [{name: prometheus}], overrides: [{match: {metric: REQUEST_COUNT, mode: CLIENT}, tagOverrides: {a: {operation: REMOVE}, b: {value: request.host}}}]}],
              accessLogging: [{disabled: false, filter: {expression: 'response.code >= 400'}}],
              tracing: [{randomSamplingPercentage: 0.5, customTags: {c: {literal: {value: d}}}}]}",
            &[],
        )],
    );
    bad(
        Kind::Telemetry,
        &[
            (
                "{metrics: [{overrides: [{match: {metric: REQUESTS_COUNT}}]}]}",
                &[
                    "metrics[0].overrides[0].match.metric: unknown value \"REQUESTS_COUNT\" (did you mean `REQUEST_COUNT`?)",
                ],
            ),
            (
                "{metrics: [{overrides: [{tagOverrides: {a: {operation: UPSERT}}}]}], tracing: [{randomSamplingPercentage: 101, customTags: {b: {}}}]}",
                &[
                    "metrics[0].overrides[0].tagOverrides.a: the field `value` is missing (write an expression)",
                    "tracing[0].randomSamplingPercentage: 101 is not a percentage (write a number from 0 to 100)",
                    "tracing[0].customTags.b: it says nothing (add literal, environment, header or formatter)",
                ],
            ),
        ],
    );
}

#[test]
fn routes_of_calls_and_connections() {
    good(
        Kind::GrpcRoute,
        &[(
            "{parentRefs: [{group: '', kind: Service, name: a}], hostnames: [a.com], rules: [{matches: [{method: {service: a.b.C, method: Get}, headers: [{name: x-a, value: b}]}],
              filters: [{type: RequestHeaderModifier, requestHeaderModifier: {add: [{name: a, value: b}]}}], backendRefs: [{name: b, port: 80, weight: 2}]}]}",
            &[],
        )],
    );
    bad(
        Kind::GrpcRoute,
        &[(
            "{parentRefs: [{name: gw}], rules: [{matches: [{method: {}}, {method: {service: a/b}}], filters: [{type: RequestRedirect, requestRedirect: {}}]}]}",
            &[
                "rules[0].matches[0].method: neither a service nor a method (add `service` or `method`)",
                "rules[0].matches[1].method.service: \"a/b\" is not the name of a service",
                "rules[0].filters[0].type: RequestRedirect is a filter of HTTPRoute (a GRPCRoute has RequestHeaderModifier, ResponseHeaderModifier, RequestMirror and ExtensionRef)",
            ],
        )],
    );
    for kind in [Kind::TlsRoute, Kind::TcpRoute, Kind::UdpRoute] {
        good(
            kind,
            &[("{parentRefs: [{name: gw, sectionName: a}], rules: [{backendRefs: [{name: a, port: 53}]}]}", &[])],
        );
        bad(
            kind,
            &[
                (
                    "{parentRefs: [{name: gw}]}",
                    &["rules: there are 0 rules (write one: nothing tells connections apart)"],
                ),
                (
                    "{rules: [{backendRefs: []}]}",
                    &["rules[0].backendRefs: it leads nowhere (name a Service and its port)"],
                ),
                (
                    "{rules: [{backendRefs: [{name: a}]}]}",
                    &["rules[0].backendRefs[0]: a Service needs a port (add `port`)"],
                ),
            ],
        );
    }
    good(Kind::TlsRoute, &[("{hostnames: ['*.a.com'], rules: [{backendRefs: [{name: a, port: 443}]}]}", &[])]);
}

#[test]
fn classes_policies_and_grants() {
    good(Kind::GatewayClass, &[("{controllerName: undermesh.io/gateway-controller, description: ours}", &[])]);
    bad(
        Kind::GatewayClass,
        &[(
            "{controllerName: undermesh}",
            &[
                "controllerName: \"undermesh\" is not the name of a controller (write a domain and a path, as undermesh.io/gateway-controller)",
            ],
        )],
    );
    good(
        Kind::BackendTlsPolicy,
        &[
            ("{targetRefs: [{group: '', kind: Service, name: a}], validation: {hostname: a.com, wellKnownCACertificates: System}}", &[]),
            (
                "{targetRefs: [{group: '', kind: Service, name: a, sectionName: https}], validation: {hostname: a.com, caCertificateRefs: [{group: '', kind: ConfigMap, name: c}],
                  subjectAltNames: [{type: URI, uri: 'spiffe://a/b'}]}}",
                &[],
            ),
        ],
    );
    bad(
        Kind::BackendTlsPolicy,
        &[
            (
                "{targetRefs: [], validation: {hostname: 1.1.1.1, subjectAltNames: [{type: Hostname, uri: a}]}}",
                &[
                    "targetRefs: it is for nothing (name a Service)",
                    "validation: nobody is believed (add caCertificateRefs, or wellKnownCACertificates: System)",
                    "validation.hostname: \"1.1.1.1\" is an address, and names are compared",
                    "validation.subjectAltNames[0]: it must have `hostname`, and nothing else (it is what the type says)",
                ],
            ),
            (
                r#"{targetRefs: [{group: '', kind: Service, name: a}], validation: {hostname: a.com, wellKnownCACertificates: System,
                  subjectAltNames: [{type: URI, uri: "a\tb"}]}}"#,
                &[r#"validation.subjectAltNames[0]: "a\tb" has a control character"#],
            ),
        ],
    );
    good(
        Kind::ReferenceGrant,
        &[(
            "{from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: a}], to: [{group: '', kind: Service, name: b}]}",
            &[],
        )],
    );
    bad(
        Kind::ReferenceGrant,
        &[
            (
                "{from: [{kind: HTTPRoute, namespace: a, group: b}], to: []}",
                &["to: it allows nothing (add an item, or delete the object)"],
            ),
            ("{to: [{group: '', kind: Service}]}", &["spec: the field `from` is missing"]),
        ],
    );
}

#[test]
fn kinds_of_proxies_are_refused_by_name() {
    for kind in [Kind::EnvoyFilter, Kind::WasmPlugin, Kind::ProxyConfig] {
        let (object, lines) = read(kind, "{anything: [at, all]}");
        assert!(object.is_none() && lines.len() == 1, "{lines:?}");
        let start = format!("kind: {} is not supported and has no effect: it ", kind.name());
        assert!(lines[0].starts_with(&start) && lines[0].contains("delete it"), "{lines:?}");
    }
}

#[test]
fn what_a_later_definition_has_is_not_refused_where_it_can_come_from_one() {
    let spec = json!({ "parentRefs": [{ "name": "gw" }], "ruels": [], "invented": { "later": 1 } });
    let of = |kind: Kind, spec: &Json| {
        let version = kind.api_versions()[0];
        let object = json!({ "apiVersion": version, "kind": kind.name(), "metadata": { "name": "o", "namespace": "shop" }, "spec": spec });
        let file = file::read("o.yaml", object.to_string().as_bytes());
        (file.found[0].0.outcome.is_ok(), decode(kind, version, object).unwrap().outcome.is_ok())
    };
    assert_eq!(of(Kind::HttpRoute, &spec), (false, true), "somebody else's definition");
    let spec = json!({ "host": "a", "invented": { "later": 1 } });
    assert_eq!(of(Kind::DestinationRule, &spec), (false, true), "Istio's may be a later one");
    let spec = json!({ "host": "a", "subset": [] });
    assert_eq!(of(Kind::DestinationRule, &spec), (false, false), "a mistake");
}
