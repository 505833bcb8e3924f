//! Single documents: tables for each kind, golden text for the form, and the rows of the bad-input catalogue that concern their text.

use super::*;

#[test]
fn diagnoses_read_like_a_compiler_s() {
    let text = "\
# two policies
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: ratings
  namespace: bookinfo
spec:
  selector:
    matchLabels: {app: ratings}
  action: ALLOW
  rules:
  - from:
    - source:
        principles: [\"cluster.local/ns/bookinfo/sa/bookinfo-reviews\"]
    to:
    - operation:
        ports: [\"9080\", \"90800\"]
---
apiVersion: v1
kind: Service
metadata:
  name: ratings
spec:
  ports:
  - port: eighty
---
kind: Pod
metadata:
\tname: x
";
    let shown: Vec<String> = read("bookinfo.yaml", text.as_bytes()).diagnoses.iter().map(ToString::to_string).collect();
    let expected = "\
error: \"90800\" is not a port
  --> bookinfo.yaml:17:25
   |
17 |         ports: [\"9080\", \"90800\"]
   |                         ^^^^^^^
   = field `spec.rules[0].to[0].operation.ports[1]` of AuthorizationPolicy bookinfo/ratings
   = help: write a number from 1 to 65535, in quotes

error: unknown field \"principles\"
  --> bookinfo.yaml:14:9
   |
14 |         principles: [\"cluster.local/ns/bookinfo/sa/bookinfo-reviews\"]
   |         ^^^^^^^^^^
   = field `spec.rules[0].from[0].source.principles` of AuthorizationPolicy bookinfo/ratings
   = help: did you mean `principals`?

error: invalid type: string \"eighty\", expected i32
  --> bookinfo.yaml:25:11
   |
25 |   - port: eighty
   |           ^^^^^^
   = field `spec.ports[0].port` of Service default/ratings
   = help: write a number without quotes

error: a tab in the indentation
  --> bookinfo.yaml:29:1
   |
29 |  name: x
   | ^
   = in Pod default/x
   = help: indent with spaces";
    assert_eq!(shown.join("\n\n"), expected);
}

#[test]
fn policies_are_read_to_the_last_field() {
    let cases: &[(&str, &[&str])] = &[
        ("  rules: [{}]", &[]),
        ("  {}", &[]),
        ("  action: DENY\n  rules:\n  - to: [{operation: {ports: ['80']}}]", &[]),
        ("  action: deny", &["error 5 spec.action: unknown action \"deny\""]),
        ("  rules:", &["error 5 spec.rules: expected a list, found nothing"]),
        ("  rules:\n  - from:", &["error 6 spec.rules[0].from: expected a list, found nothing"]),
        (
            "  rules:\n  - from: []",
            &["error 6 spec.rules[0].from: an empty list matches nothing and everything, depending on who reads it"],
        ),
        (
            "  rules:\n  - from: [{source: {}}]",
            &["error 6 spec.rules[0].from[0].source: it restricts nothing, so it would match everybody"],
        ),
        ("  rules:\n  - from: [{}]", &["error 6 spec.rules[0].from[0]: the source is missing"]),
        (
            "  rules:\n  - from: [{source: {namespaces: ['']}}]",
            &["error 6 spec.rules[0].from[0].source.namespaces[0]: an empty string"],
        ),
        (
            "  rules:\n  - from: [{source: {namespaces: [true]}}]",
            &["error 6 spec.rules[0].from[0].source.namespaces[0]: expected a string, found a boolean"],
        ),
        (
            "  rules:\n  - from: [{source: {ipBlocks: [001:db8::]}}]",
            &["error 6 spec.rules[0].from[0].source.ipBlocks[0]: expected a string, found a mapping"],
        ),
        (
            "  rules:\n  - from: [{source: {namespaces: [a*b]}}]",
            &[
                "error 6 spec.rules[0].from[0].source.namespaces[0]: \"a*b\": `*` is a wildcard at the beginning or the end only",
            ],
        ),
        (
            "  rules:\n  - from: [{source: {principals: ['spiffe://cluster.local/ns/a/sa/b']}}]",
            &[
                "warning 6 spec.rules[0].from[0].source.principals[0]: principals are written without `spiffe://`, it is left out",
            ],
        ),
        (
            "  rules:\n  - from: [{source: {serviceAccounts: ['a/*']}}]",
            &["error 6 spec.rules[0].from[0].source.serviceAccounts[0]: \"a/*\" is not a service account"],
        ),
        (
            "  rules:\n  - from: [{source: {serviceAccounts: [a], namespaces: [b]}}]",
            &["error 6 spec.rules[0].from[0].source: serviceAccounts cannot stand beside principals or namespaces"],
        ),
        (
            "  rules:\n  - when: [{key: source.ip}]",
            &["error 6 spec.rules[0].when[0]: a condition has values or notValues"],
        ),
        (
            "  rules:\n  - when: [{key: source.port, values: ['1']}]",
            &["error 6 spec.rules[0].when[0].key: unknown attribute \"source.port\""],
        ),
        (
            "  selector: {matchExpressions: []}",
            &["error 5 spec.selector.matchExpressions: unknown field \"matchExpressions\""],
        ),
        (
            "  selector: {matchLabels: {app: 'a*'}}",
            &["error 5 spec.selector.matchLabels.app: a selector compares whole values, `*` is not a wildcard here"],
        ),
        (
            "  rules:\n  - to: [{operation: {methods: [GET]}}]",
            &[
                "warning 6 spec.rules[0].to[0].operation.methods: an agent cannot judge it: this ALLOW rule allows nothing",
            ],
        ),
        (
            "  action: DENY\n  rules:\n  - to: [{operation: {methods: [GET]}}]",
            &[
                "warning 7 spec.rules[0].to[0].operation.methods: an agent cannot judge it: this rule denies whatever its other conditions match",
            ],
        ),
        (
            "  action: CUSTOM\n  provider: {name: x}",
            &["warning 5 spec.action: agents ask no external authorizer: what the rules match is denied"],
        ),
        ("  action: AUDIT", &["warning 5 spec.action: AUDIT is not supported, the policy has no effect"]),
        ("  targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: w}]", &[]),
    ];
    for (spec, expected) in cases {
        check(&policy(spec), expected);
    }
}

#[test]
fn hardening_B148_blocks_of_addresses() {
    let block = |text: &str| policy(&format!("  rules:\n  - from: [{{source: {{ipBlocks: [\"{text}\"]}}}}]"));
    let at = "spec.rules[0].from[0].source.ipBlocks[0]";
    for good in ["10.0.0.0/8", "0.0.0.0/0", "10.0.0.1", "fd00::/8", "::/0", "fd00::1"] {
        check(&block(good), &[]);
    }
    check(&block("10.0.0.1/8"), &[&format!("warning 6 {at}: 10.0.0.1/8 has bits beyond its prefix, they are ignored")]);
    for bad in ["10.0.0.0/33", "0/0", "fe80::1%eth0", "10.0.0", "10.0.0.0/-1", "10.0.0.0/8/8", "x", "fd00::/129"] {
        check(&block(bad), &[&format!("error 6 {at}: {bad:?} is not an address or a block of addresses")]);
    }
}

#[test]
fn hardening_B141_ports_in_range() {
    for bad in ["0", "65536", "-1", "NaN", "1e3", "+80", " 80", "80-90", "4294967376"] {
        let text = policy(&format!("  rules:\n  - to: [{{operation: {{ports: [\"{bad}\"]}}}}]"));
        check(&text, &[&format!("error 6 spec.rules[0].to[0].operation.ports[0]: {bad:?} is not a port")]);
    }
    let service = |port: &str| {
        format!("apiVersion: v1\nkind: Service\nmetadata: {{name: a}}\nspec: {{ports: [{{port: {port}}}]}}\n")
    };
    check(&service("65535"), &[]);
    check(&service("0"), &["error 4 spec.ports[0].port: port 0 is out of range, it is not served"]);
    check(&service("65536"), &["error 4 spec.ports[0].port: port 65536 is out of range, it is not served"]);
    check(&service("-1"), &["error 4 spec.ports[0].port: port -1 is out of range, it is not served"]);
    assert!(found(&service("4294967376"))[0].starts_with("error 4 spec.ports[0].port: invalid value"));
}

#[test]
fn hardening_B141_shares_are_percentages() {
    let fault = |value: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: v, namespace: ns}}\nspec: {{hosts: [a], http: [{{route: [{{destination: {{host: a}}}}], fault: {{abort: {{httpStatus: 500, percentage: {{value: {value}}}}}}}}}]}}\n"
        )
    };
    let budget = |value: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: d, namespace: ns}}\nspec: {{host: a, trafficPolicy: {{retryBudget: {{percent: {value}}}}}}}\n"
        )
    };
    let sampled = |value: &str| {
        format!(
            "apiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {{name: t, namespace: ns}}\nspec: {{tracing: [{{randomSamplingPercentage: {value}}}]}}\n"
        )
    };
    for good in ["0", "0.0001", "99.99", "100"] {
        for text in [fault(good), budget(good), sampled(good)] {
            check(&text, &[]);
        }
    }
    for bad in
        [".nan", "NaN", ".inf", "-.inf", "-1", "-0.001", "100.001", "101", "1e300", "'50'", "'50%'", "[50]", "{}"]
    {
        for text in [fault(bad), budget(bad), sampled(bad)] {
            let found = found(&text);
            assert!(found.len() == 1 && found[0].starts_with("error 4 "), "{text}: {found:?}");
        }
    }
}

#[test]
fn hardening_B140_unknown_fields() {
    // Core kinds come from many versions of Kubernetes: ignored. Istio's kinds restrict: named.
    check("apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {futureField: 1}\n", &[]);
    check(&policy("  rulez: []"), &["error 5 spec.rulez: unknown field \"rulez\""]);
    let pa = |spec: &str| {
        format!(
            "apiVersion: security.istio.io/v1beta1\nkind: PeerAuthentication\nmetadata: {{name: p, namespace: ns}}\nspec: {spec}\n"
        )
    };
    check(&pa("{mtls: {mode: STRICT}}"), &[]);
    check(&pa("{mtls: {mod: STRICT}}"), &["error 4 spec.mtls.mod: unknown field \"mod\""]);
    check(&pa("{mtls: {mode: strict}}"), &["error 4 spec.mtls.mode: unknown mode \"strict\""]);
    check(
        &pa("{mtls: {mode: DISABLE}}"),
        &[
            "warning 4 spec.mtls.mode: DISABLE means the same as PERMISSIVE here: workloads of the mesh use mutual TLS with each other in any case",
        ],
    );
    check(
        &pa("{portLevelMtls: {80: {mode: STRICT}}}"),
        &["error 4 spec.portLevelMtls: ports can be set for selected workloads only"],
    );
    check(
        &pa("{selector: {matchLabels: {a: b}}, portLevelMtls: {http: {mode: STRICT}}}"),
        &["error 4 spec.portLevelMtls.http: \"http\" is not a port"],
    );
    check(&pa("null"), &["error 4 spec: expected a mapping, found nothing"]);
}

#[test]
fn hardening_B139_documents_that_no_reader_should_take() {
    let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\ng: &g [*f,*f,*f,*f,*f,*f,*f,*f,*f]\nh: &h [*g,*g,*g,*g,*g,*g,*g,*g,*g]\ni: &i [*h,*h,*h,*h,*h,*h,*h,*h,*h]\n";
    let deep = format!("a: {}1{}\n", "[".repeat(5000), "]".repeat(5000));
    let deep_blocks: String = (0..2000).map(|n| format!("{}a:\n", " ".repeat(n))).collect();
    let cases: Vec<(&str, String, u32)> = vec![
        ("bomb", bomb.to_owned(), 0),
        ("nesting", deep, 0),
        ("nested blocks", deep_blocks, 0),
        ("duplicate key", "kind: Pod\nmetadata: {name: a}\nmetadata: {name: b}\n".into(), 3),
        ("unfinished", "kind: [Pod\n".into(), 0),
        ("unknown alias", "kind: *nope\n".into(), 1),
        ("tab", "kind: Pod\nmetadata:\n\tname: a\n".into(), 3),
    ];
    for (name, text, line) in cases {
        let start = Instant::now();
        let read = read("a.yaml", text.as_bytes());
        assert!(start.elapsed() < Duration::from_secs(5), "{name} took {:?}", start.elapsed());
        assert_eq!(read.diagnoses.len(), 1, "{name}: {:?}", read.diagnoses);
        assert_eq!(read.diagnoses[0].severity, Severity::Error, "{name}");
        if line > 0 {
            assert_eq!(read.diagnoses[0].place.as_ref().map(|p| p.line), Some(line), "{name}: {:?}", read.diagnoses);
        }
    }
}

#[test]
fn hardening_B151_large_but_fair_objects() {
    let annotation = "x".repeat(1 << 20);
    let name = format!("{}.{}", "a".repeat(126), "b".repeat(126));
    let text = format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  labels: {{app: \"w\u{435}b\"}}\n  annotations: {{big: {annotation}}}\nstatus: {{phase: Running, podIP: 198.18.0.1}}\n"
    );
    check(&text, &[]);
    assert_eq!(read("a.yaml", text.as_bytes()).found.len(), 1);
    check(
        &format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {}}}\n", "a".repeat(254)),
        &[&format!(
            "error 3 metadata.name: \"{}\" is not a valid name: it is longer than 253 characters",
            "a".repeat(254)
        )],
    );
}

#[test]
fn a_broken_secret_is_not_quoted() {
    let text = "kind: Secret\nmetadata: {name: a}\nstringData:\n  password: [hunter2\n";
    let read = read("a.yaml", text.as_bytes());
    assert_eq!(read.diagnoses.len(), 1);
    assert!(!format!("{} {:?}", read.diagnoses[0], read.diagnoses[0]).contains("hunter2"));
}

#[test]
fn a_secret_is_not_quoted_whatever_is_wrong_with_it() {
    for text in [
        "{apiVersion: v1, kind: Secret, metadata: {name: A_}, stringData: {tls.key: hunter2}}\n",
        "{kind: Secret, metadata: {name: a}, stringData: {tls.key: hunter2}}\n",
        "{apiVersion: v2, kind: Secret, metadata: {name: a, labels: 5}, data: {tls.key: hunter2}}\n",
        "{apiVersion: v1, kind: SecretList, items: [{metadata: {name: A_}, data: {tls.key: hunter2}}]}\n",
        "apiVersion: v1\nkind: Secret\nmetadata: {name: a}\ndata:\n  tls.key: [hunter2\n",
    ] {
        let read = read("a.yaml", text.as_bytes());
        assert!(!read.diagnoses.is_empty(), "{text}");
        assert!(!format!("{:?}", read.diagnoses).contains("hunter2"), "{:?}", read.diagnoses);
    }
}

/// What Kubernetes refuses, because its YAML is 1.1: a word that reads as a boolean, or a number, where text belongs. In quotes it is text.
#[test]
fn names_that_are_no_text_are_refused_with_their_place() {
    let kinds: [(&str, &str); 8] = [
        ("v1", "Namespace"),
        ("v1", "Node"),
        ("v1", "ServiceAccount"),
        ("v1", "Pod"),
        ("v1", "Service"),
        ("discovery.k8s.io/v1", "EndpointSlice"),
        ("security.istio.io/v1", "AuthorizationPolicy"),
        ("security.istio.io/v1", "PeerAuthentication"),
    ];
    let words = [
        ("no", "a boolean"),
        ("Yes", "a boolean"),
        ("on", "a boolean"),
        ("OFF", "a boolean"),
        ("y", "a boolean"),
        ("n", "a boolean"),
        ("true", "a boolean"),
        ("123", "a number"),
        ("0x1f", "a number"),
        ("1e3", "a number"),
        ("1.5", "a number"),
    ];
    for (api_version, kind) in kinds {
        for (word, found_as) in words {
            let text = format!("apiVersion: {api_version}\nkind: {kind}\nmetadata:\n  name: {word}\n");
            let read = read("a.yaml", text.as_bytes());
            // What restricts traffic is closed, though it is not known what it is called.
            let closed: Vec<_> = read.found.iter().map(|(found, _)| found.key.kind.name()).collect();
            assert!(
                closed == [kind] || (closed.is_empty() && !api_version.starts_with("security")),
                "{text}: {closed:?}"
            );
            assert!(read.unsettled, "{text}");
            let width = word.len();
            let shown = format!(
                "error: expected a string, found {found_as}\n --> a.yaml:4:9\n  |\n4 |   name: {word}\n  |         {}\n  = field `metadata.name`\n  = help: write the value in quotes: YAML reads yes, no, on, off, y and n as booleans, and digits as numbers",
                "^".repeat(width)
            );
            assert_eq!(read.diagnoses[0].to_string(), shown);
            assert_eq!(read.diagnoses.len(), 1 + closed.len());
        }
        for (word, name) in
            [("'no'", "no"), ("\"123\"", "123"), ("!!str no", "no"), ("none", "none"), ("2024-01-01", "2024-01-01")]
        {
            // A service's name is a label, a policy needs no more than a name.
            let text = format!("apiVersion: {api_version}\nkind: {kind}\nmetadata:\n  name: {word}\n");
            let read = read("a.yaml", text.as_bytes());
            assert_eq!(read.found.iter().map(|(f, _)| f.key.name.to_string()).collect::<Vec<_>>(), [name], "{text}");
        }
    }
    let pod = |metadata: &str| format!("apiVersion: v1\nkind: Pod\nmetadata: {{{metadata}}}\n");
    check(&pod("name: a, namespace: no"), &["error 3 metadata.namespace: expected a string, found a boolean"]);
    check(
        &pod("name: a, labels: {version: 1}"),
        &["error 3 metadata.labels.version: invalid type: integer `1`, expected a string"],
    );
    check(
        &pod("name: a, labels: {up: on}"),
        &["error 3 metadata.labels.up: invalid type: boolean `true`, expected a string"],
    );
    check(
        "apiVersion: 1\nkind: Pod\nmetadata: {name: a}\n",
        &["error 1 apiVersion: expected a string, found a number"],
    );
    check("kind: no\n", &["error 1 kind: expected a string, found a boolean"]);
    check(&pod("name: ~"), &["error 3 metadata.name: the name is missing"]);
    check(
        &policy("  selector: {matchLabels: {version: 1, up: no}}"),
        &[
            "error 5 spec.selector.matchLabels.version: expected a string, found a number",
            "error 5 spec.selector.matchLabels.up: expected a string, found a boolean",
        ],
    );
    // A boolean is still one, however it is spelled.
    check("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {hostNetwork: yes, containers: []}\n", &[]);
}
