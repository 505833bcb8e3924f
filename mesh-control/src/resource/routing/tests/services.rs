//! DestinationRules and ServiceEntries.

use super::*;

#[test]
fn good_rules() {
    good(
        Kind::DestinationRule,
        &[
            ("{host: reviews, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}, trafficPolicy: {loadBalancer: {simple: RANDOM}}}]}", &[]),
            (
                "{host: '*.shop.svc.cluster.local', trafficPolicy: {
                    connectionPool: {tcp: {maxConnections: 100, connectTimeout: 30ms, tcpKeepalive: {time: 7200s, interval: 75s}},
                        http: {http1MaxPendingRequests: 1, http2MaxRequests: 1000, maxRequestsPerConnection: 10, h2UpgradePolicy: UPGRADE}},
                    outlierDetection: {consecutive5xxErrors: 7, interval: 5m, baseEjectionTime: 15m, maxEjectionPercent: 100},
                    loadBalancer: {localityLbSetting: {failover: [{from: eu, to: us}]}, warmup: {duration: 30s, aggression: 1}},
                    tls: {mode: MUTUAL, credentialName: c}, portLevelSettings: [{port: {number: 80}, tls: {mode: DISABLE}}],
                    retryBudget: {percent: 25.5}, proxyProtocol: {version: V2}}}",
                &[],
            ),
            ("{host: a, workloadSelector: {matchLabels: {app: web}}, trafficPolicy: {loadBalancer: {consistentHash: {httpCookie: {name: user, ttl: 0s}, maglev: {tableSize: 65537}}}}}", &[]),
            (
                "{host: a, trafficPolicy: {loadBalancer: {simple: LEAST_CONN, localityLbSetting: {failoverPriority: [topology.kubernetes.io/zone]}}, outlierDetection: {consecutiveErrors: 1},
                  tls: {sni: b}}}",
                &[
                    "w trafficPolicy.loadBalancer.simple: an old name (write LEAST_REQUEST)",
                    "w trafficPolicy.outlierDetection.consecutiveErrors: an old name (write consecutive5xxErrors)",
                    "w trafficPolicy.tls: without `mode` none of it counts (write `mode: SIMPLE` or MUTUAL)",
                ],
            ),
            (
                "{host: a, trafficPolicy: {connectionPool: {http: {http2KeepAlive: {interval: 5s}}}}}",
                &["w trafficPolicy.connectionPool.http.http2KeepAlive: not supported, it has no effect (use tcpKeepalive)"],
            ),
            (
                "{host: a, trafficPolicy: {outlierDetection: {}, loadBalancer: {localityLbSetting: {failover: [{from: eu, to: us}], failoverPriority: [topology.kubernetes.io/zone]}}}}",
                &[
                    "w trafficPolicy.loadBalancer.localityLbSetting.failover: known, not in force: `failoverPriority` says which come first (leave one of the two out; labels of regions may stand among the others in `failoverPriority`)",
                ],
            ),
            ("{host: a, trafficPolicy: {loadBalancer: {zoneAwareLbSetting: {x: [1]}}}}", &["w trafficPolicy.loadBalancer.zoneAwareLbSetting: not supported, it has no effect (use localityLbSetting)"]),
        ],
    );
}

#[test]
fn bad_rules() {
    bad(
        Kind::DestinationRule,
        &[
            ("{}", &["spec: the field `host` is missing"]),
            (
                "{hosts: a}",
                &["hosts: unknown field \"hosts\" (did you mean `host`?)", "spec: the field `host` is missing"],
            ),
            ("{host: a, subsets: [{name: v1}, {name: v1}]}", &["subsets[1].name: \"v1\" is there more than once"]),
            ("{host: a, subsets: [{labels: {version: v1}}]}", &["subsets[0]: the field `name` is missing"]),
            (
                "{host: a, trafficPolicy: {loadBalancer: {simple: ROUND_ROBBIN}}}",
                &["trafficPolicy.loadBalancer.simple: unknown value \"ROUND_ROBBIN\" (did you mean `ROUND_ROBIN`?)"],
            ),
            (
                "{host: a, trafficPolicy: {loadBalancer: {simple: RANDOM, consistentHash: {}}}}",
                &[
                    "trafficPolicy.loadBalancer: simple and consistentHash exclude each other (keep one of them)",
                    "trafficPolicy.loadBalancer.consistentHash: it does not say by what (write httpHeaderName, httpCookie, useSourceIp or httpQueryParameterName)",
                ],
            ),
            (
                "{host: a, trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x-user, useSourceIp: true, maglev: {tableSize: 65536}}}}}",
                &[
                    "trafficPolicy.loadBalancer.consistentHash: httpHeaderName and useSourceIp exclude each other (keep one of them)",
                    "trafficPolicy.loadBalancer.consistentHash.maglev.tableSize: 65536 is no prime below 5000011 (65537 is one)",
                ],
            ),
            (
                "{host: a, trafficPolicy: {loadBalancer: {localityLbSetting: {distribute: [{from: eu/*, to: {eu/*: 80, us/*: 10}}]}}, outlierDetection: {maxEjectionPercent: 200, interval: 0s}}}",
                &[
                    "trafficPolicy.loadBalancer.localityLbSetting.distribute[0].to: the shares are 90 together (make them 100)",
                    "trafficPolicy.outlierDetection.maxEjectionPercent: 200 is not a percentage (write a number from 0 to 100)",
                    "trafficPolicy.outlierDetection.interval: shorter than a millisecond (write at least 1ms)",
                ],
            ),
            (
                "{host: a, trafficPolicy: {tls: {mode: ISTIO_MUTUAL, credentialName: c}}}",
                &["trafficPolicy.tls: ISTIO_MUTUAL uses the mesh's certificates (delete the files and credentialName)"],
            ),
            (
                "{host: a, trafficPolicy: {tls: {mode: MUTUAL, clientCertificate: /a}}}",
                &[
                    "trafficPolicy.tls: MUTUAL needs a certificate to show (add credentialName, or clientCertificate and privateKey)",
                ],
            ),
            (
                "{host: a, trafficPolicy: {portLevelSettings: [{tls: {mode: SIMPLE}}, {port: {number: 0}}, {port: {number: 80}}, {port: {number: 80}}]}}",
                &[
                    "trafficPolicy.portLevelSettings[3].port.number: 80 is there more than once",
                    "trafficPolicy.portLevelSettings[0]: the field `port` is missing (write `port: {number: 80}`)",
                    "trafficPolicy.portLevelSettings[1].port.number: 0 is not a port (write a number from 1 to 65535)",
                ],
            ),
            (
                "{host: a, trafficPolicy: {connectionPool: {tcp: {maxConnections: -1, connectTimeout: 10}}}}",
                &[
                    "trafficPolicy.connectionPool.tcp.connectTimeout: expected a string, found a number (write the value in quotes: YAML reads yes, no, on, off, y and n as booleans, and digits as numbers)",
                ],
            ),
        ],
    );
}

#[test]
fn rules_say_nothing_that_waypoints_refuse_to_read() {
    let many: Vec<String> = (0..101).map(|n| format!("l{n}: a")).collect();
    bad(
        Kind::DestinationRule,
        &[
            (
                r#"{host: a, workloadSelector: {matchLabels: {app: "a\tb"}}}"#,
                &[r#"workloadSelector.matchLabels.app: no label has the value "a\tb""#],
            ),
            (
                &format!("{{host: a, workloadSelector: {{matchLabels: {{{}}}}}}}", many.join(", ")),
                &["workloadSelector.matchLabels: 101 entries, the limit is 100"],
            ),
            (
                r#"{host: a, subsets: [{name: v1, labels: {a b: x, app.b: a-}}]}"#,
                &[
                    r#"subsets[0].labels["a b"]: no label is called "a b""#,
                    r#"subsets[0].labels["app.b"]: no label has the value "a-""#,
                ],
            ),
            (
                r#"{host: a, trafficPolicy: {loadBalancer: {localityLbSetting: {failoverPriority: ["zone=a\tb", a=b, a/b/c]}}, outlierDetection: {}}}"#,
                &[
                    r#"trafficPolicy.loadBalancer.localityLbSetting.failoverPriority[0]: no label has the value "a\tb""#,
                    r#"trafficPolicy.loadBalancer.localityLbSetting.failoverPriority[2]: no label is called "a/b/c""#,
                ],
            ),
            (
                r#"{host: a, trafficPolicy: {loadBalancer: {localityLbSetting: {distribute: [{from: "a\n", to: {a: 100}}]}}, outlierDetection: {}}}"#,
                &[r#"trafficPolicy.loadBalancer.localityLbSetting.distribute[0]: "a\n" has a control character"#],
            ),
            (
                r#"{host: a, trafficPolicy: {loadBalancer: {localityLbSetting: {failover: [{from: "a\n", to: b}]}}, outlierDetection: {}}}"#,
                &[r#"trafficPolicy.loadBalancer.localityLbSetting.failover[0].from: "a\n" has a control character"#],
            ),
            (
                r#"{host: a, trafficPolicy: {loadBalancer: {consistentHash: {httpQueryParameterName: "a\tb"}}}}"#,
                &[
                    r#"trafficPolicy.loadBalancer.consistentHash.httpQueryParameterName: "a\tb" has a control character"#,
                ],
            ),
            (
                r#"{host: a, trafficPolicy: {tls: {mode: SIMPLE, sni: "a\tb", subjectAltNames: [a.com, "b\n"]}}}"#,
                &[
                    r#"trafficPolicy.tls.sni: "a\tb" has a control character"#,
                    r#"trafficPolicy.tls.subjectAltNames[1]: "b\n" has a control character"#,
                ],
            ),
            (
                r#"{host: a, trafficPolicy: {loadBalancer: {consistentHash: {httpCookie: {name: a b, path: "/;x", attributes: [{name: "", value: ä}]}}}}}"#,
                &[
                    r#"trafficPolicy.loadBalancer.consistentHash.httpCookie.name: "a b" is no name of a cookie"#,
                    r#"trafficPolicy.loadBalancer.consistentHash.httpCookie.path: "/;x" cannot be part of a cookie"#,
                    r#"trafficPolicy.loadBalancer.consistentHash.httpCookie.attributes[0].name: "" is no name of a cookie"#,
                    r#"trafficPolicy.loadBalancer.consistentHash.httpCookie.attributes[0].value: "ä" cannot be part of a cookie"#,
                ],
            ),
        ],
    );
}

#[test]
fn lists_of_rules_are_no_longer_than_waypoints_read_them() {
    let list = |count: usize, one: fn(usize) -> String| (0..count).map(one).collect::<Vec<_>>().join(", ");
    type Entry = fn(usize) -> String;
    let each: [(&str, &str, Entry, &str); 7] = [
        (
            "loadBalancer.consistentHash.httpCookie.attributes",
            "loadBalancer: {consistentHash: {httpCookie: {name: a, attributes: [",
            |n| format!("{{name: a{n}}}"),
            "]}}}",
        ),
        (
            "loadBalancer.localityLbSetting.distribute",
            "outlierDetection: {}, loadBalancer: {localityLbSetting: {distribute: [",
            |n| format!("{{from: a{n}, to: {{b: 100}}}}"),
            "]}}",
        ),
        (
            "loadBalancer.localityLbSetting.distribute[0].to",
            "outlierDetection: {}, loadBalancer: {localityLbSetting: {distribute: [{from: a, to: {",
            |n| format!("a{n}: {}", u8::from(n < 100)),
            "}}]}}",
        ),
        (
            "loadBalancer.localityLbSetting.failover",
            "outlierDetection: {}, loadBalancer: {localityLbSetting: {failover: [",
            |n| format!("{{from: a{n}, to: b}}"),
            "]}}",
        ),
        (
            "loadBalancer.localityLbSetting.failoverPriority",
            "outlierDetection: {}, loadBalancer: {localityLbSetting: {failoverPriority: [",
            |n| format!("a{n}"),
            "]}}",
        ),
        (
            "outlierDetection.outlierDetectionHttpErrorCodes",
            "outlierDetection: {outlierDetectionHttpErrorCodes: [",
            |_| "500".to_owned(),
            "]}",
        ),
        ("tls.subjectAltNames", "tls: {mode: SIMPLE, subjectAltNames: [", |n| format!("a{n}"), "]}"),
    ];
    for (field, head, one, tail) in each {
        let rule = |count| format!("{{host: a, trafficPolicy: {{{head}{}{tail}}}}}", list(count, one));
        good(Kind::DestinationRule, &[(&rule(1000), &[])]);
        let expected = format!("trafficPolicy.{field}: 1001 entries, the limit is 1000");
        bad(Kind::DestinationRule, &[(&rule(1001), &[&expected])]);
    }
}

#[test]
fn good_entries() {
    good(
        Kind::ServiceEntry,
        &[
            ("{hosts: [api.example.com], ports: [{number: 443, name: https, protocol: TLS}], resolution: DNS}", &[]),
            ("{hosts: ['*.example.com'], ports: [{number: 443, name: https, protocol: https}], location: MESH_EXTERNAL, resolution: NONE}", &[]),
            ("{hosts: ['*.example.com'], ports: [{number: 443, name: https}], resolution: DYNAMIC_DNS}", &[]),
            (
                "{hosts: [mongo.internal], addresses: [192.192.192.192/24, '2001:db8::1'], ports: [{number: 27018, name: mongodb, protocol: MONGO, targetPort: 27017}],
                  location: MESH_INTERNAL, resolution: STATIC, endpoints: [{address: 2.2.2.2, ports: {mongodb: 5555}, labels: {app: m}, locality: eu/z/s, weight: 2,
                  serviceAccount: mongo, network: other}, {address: 'unix:///var/run/m.sock'}], exportTo: ['*'], subjectAltNames: ['spiffe://cluster.local/ns/a/sa/b']}",
                &[
                    "w endpoints[0].network: a mesh is one network here: it is reached as all others are, through no gateway of another network (delete it, or the endpoint if nobody can reach it so)",
                ],
            ),
            ("{hosts: [a.com], ports: [{number: 80, name: http}], resolution: STATIC, workloadSelector: {labels: {app: a}}}", &[]),
        ],
    );
}

#[test]
fn bad_entries() {
    let port = "ports: [{number: 80, name: http}]";
    bad(
        Kind::ServiceEntry,
        &[
            ("{ports: []}", &["spec: the field `hosts` is missing"]),
            (&format!("{{hosts: [], {port}}}"), &["hosts: no host (name at least one)"]),
            (&format!("{{hosts: ['*'], {port}}}"), &["hosts[0]: \"*\" cannot mean every host"]),
            (
                &format!("{{hosts: [a], {port}, subjectAltNames: [{}]}}", vec!["a.com"; 1001].join(", ")),
                &["subjectAltNames: 1001 entries, the limit is 1000"],
            ),
            (
                &format!(r#"{{hosts: [a], {port}, subjectAltNames: ["a\tb"]}}"#),
                &[r#"subjectAltNames[0]: "a\tb" has a control character"#],
            ),
            (
                &format!("{{hosts: [a], {port}, location: MESH_EXTERN}}"),
                &["location: unknown value \"MESH_EXTERN\" (did you mean `MESH_EXTERNAL`?)"],
            ),
            (
                &format!("{{hosts: [a], {port}, resolution: STATIC}}"),
                &["resolution: STATIC, and there are no endpoints (add `endpoints` or `workloadSelector`)"],
            ),
            (
                &format!("{{hosts: [a], {port}, endpoints: [{{address: 1.1.1.1}}]}}"),
                &[
                    "endpoints: with resolution NONE the client's own choice counts (write `resolution: STATIC`, or DNS for names)",
                ],
            ),
            (
                &format!(
                    "{{hosts: [a], {port}, resolution: STATIC, endpoints: [{{address: b.com}}, {{}}], workloadSelector: {{labels: {{a: b}}}}}}"
                ),
                &[
                    "spec: endpoints and workloadSelector exclude each other (keep one of them)",
                    "endpoints[0].address: \"b.com\" is no address, and resolution is STATIC (write `resolution: DNS`)",
                    "endpoints[1].address: the address is missing (only an endpoint with `network` needs none)",
                ],
            ),
            (
                &format!("{{hosts: ['*.a.com'], {port}, resolution: DNS}}"),
                &[
                    "hosts[0]: \"*.a.com\" cannot be looked up (name endpoints, or write `resolution: NONE` or DYNAMIC_DNS)",
                ],
            ),
            (
                "{hosts: [a], addresses: [10.0.0.0/8, x], resolution: DNS, ports: [{number: 80, name: http, protocol: HTP}, {number: 80, name: http}, {number: 0, name: z}]}",
                &[
                    "ports[1].number: 80 is there more than once",
                    "ports[1].name: \"http\" is there more than once",
                    "ports[0].protocol: \"HTP\" is no protocol that is known (did you mean `HTTP`?)",
                    "ports[2].number: 0 is not a port (write a number from 1 to 65535)",
                    "addresses[1]: \"x\" is neither an address nor a block as 10.0.0.0/8",
                    "addresses[0]: a block of addresses goes with resolution NONE and STATIC only",
                ],
            ),
            (
                &format!(
                    "{{hosts: [a], {port}, resolution: STATIC, endpoints: [{{address: 1.1.1.1, ports: {{https: 443}}}}]}}"
                ),
                &["endpoints[0].ports.https: no port is called \"https\" (the ports are http)"],
            ),
        ],
    );
}
