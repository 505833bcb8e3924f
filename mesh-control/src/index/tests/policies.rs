//! Policies, judged by mesh-core itself.

use super::*;

/// Who may connect to a pod of `shop` with label `app: web`, at which port.
pub(super) fn allowed(view: &View, from: Option<&str>, port: u16) -> bool {
    let mut store = Store::new();
    let changes = view.workloads.values().map(|w| Change::Workload((**w).clone()));
    let applied = store.apply(changes.chain(view.policies.values().map(|p| Change::Policy((**p).clone()))).collect());
    let workload = applied.snapshot.workload_by_uid("Kubernetes//Pod/shop/web-1").unwrap().clone();
    let source: Option<Identity> = from.map(|f| f.parse().unwrap());
    let connection = Connection {
        source_ip: "198.18.7.7".parse().unwrap(),
        source: source.as_ref(),
        via: None,
        destination_ip: workload.addresses[0],
        destination_port: port,
    };
    matches!(authorize(&applied.snapshot, &workload, &connection).decision, Decision::Allow(_))
}

const ALICE: Option<&str> = Some("spiffe://cluster.local/ns/shop/sa/alice");
const BOB: Option<&str> = Some("spiffe://cluster.local/ns/other/sa/bob");

fn with_policy(namespace: &str, spec: &str) -> View {
    view(&format!(
        "{}---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: {namespace}}}\nspec:\n{spec}\n",
        pod("web-1", "")
    ))
}

#[test]
fn authorization_policies_decide() {
    // namespace, spec, then who is let in: alice at 80, alice at 81, bob at 80, nobody in particular at 80
    let table: &[(&str, &str, [bool; 4])] = &[
        ("shop", "  {}", [false; 4]),
        ("shop", "  rules: [{}]", [true; 4]),
        ("other", "  {}", [true; 4]),
        ("istio-system", "  {}", [false; 4]),
        ("undermesh-system", "  {}", [false; 4]),
        ("shop", "  action: DENY", [true; 4]),
        ("shop", "  action: DENY\n  rules: [{}]", [false; 4]),
        ("shop", "  selector: {matchLabels: {app: other}}", [true; 4]),
        ("shop", "  selector: {matchLabels: {app: web}}", [false; 4]),
        ("shop", "  selector: {}", [false; 4]),
        ("other", "  selector: {matchLabels: {app: web}}", [true; 4]),
        ("istio-system", "  selector: {matchLabels: {app: web}}", [false; 4]),
        (
            "shop",
            "  rules:\n  - from: [{source: {principals: [cluster.local/ns/shop/sa/alice]}}]",
            [true, true, false, false],
        ),
        (
            "shop",
            "  rules:\n  - from: [{source: {principals: ['spiffe://cluster.local/ns/shop/sa/alice']}}]",
            [true, true, false, false],
        ),
        ("shop", "  rules:\n  - from: [{source: {principals: ['*/sa/bob']}}]", [false, false, true, false]),
        ("shop", "  rules:\n  - from: [{source: {principals: ['*']}}]", [true, true, true, false]),
        ("shop", "  action: DENY\n  rules:\n  - from: [{source: {notPrincipals: ['*']}}]", [true, true, true, false]),
        (
            "shop",
            "  action: DENY\n  rules:\n  - from: [{source: {principals: ['*/alice']}}]",
            [false, false, true, true],
        ),
        ("shop", "  rules:\n  - from: [{source: {serviceAccounts: [alice]}}]", [true, true, false, false]),
        ("shop", "  rules:\n  - from: [{source: {serviceAccounts: [other/bob]}}]", [false, false, true, false]),
        (
            "shop",
            "  rules:\n  - from: [{source: {namespaces: [shop]}}]\n    to: [{operation: {ports: ['80']}}]",
            [true, false, false, false],
        ),
        (
            "shop",
            "  rules:\n  - from: [{source: {namespaces: [shop]}}]\n  - to: [{operation: {ports: ['80']}}]",
            [true, true, true, true],
        ),
        ("shop", "  rules:\n  - to: [{operation: {notPorts: ['80']}}]", [false, true, false, false]),
        ("shop", "  rules:\n  - from: [{source: {ipBlocks: [198.18.7.0/24]}}]", [true; 4]),
        ("shop", "  rules:\n  - from: [{source: {ipBlocks: [198.18.7.9/24]}}]", [true; 4]),
        ("shop", "  rules:\n  - from: [{source: {notIpBlocks: [198.18.7.7]}}]", [false; 4]),
        ("shop", "  rules:\n  - when: [{key: destination.port, values: ['80']}]", [true, false, true, true]),
        (
            "shop",
            "  rules:\n  - when: [{key: source.namespace, values: [shop]}, {key: destination.port, notValues: ['80']}]",
            [false, true, false, false],
        ),
        (
            "shop",
            "  rules:\n  - when: [{key: destination.ip, values: [198.18.0.1]}, {key: source.principal, values: ['*/bob']}]",
            [false, false, true, false],
        ),
        // What L4 cannot judge: an allowing rule allows nothing, a denying one denies at least what it says.
        ("shop", "  rules:\n  - to: [{operation: {methods: [GET], ports: ['80']}}]", [false; 4]),
        ("shop", "  rules:\n  - to: [{operation: {methods: [GET]}}, {operation: {ports: ['80']}}]", [false; 4]),
        (
            "shop",
            "  rules:\n  - to: [{operation: {methods: [GET]}}]\n  - to: [{operation: {ports: ['80']}}]",
            [true, false, true, true],
        ),
        ("shop", "  action: DENY\n  rules:\n  - to: [{operation: {methods: [GET]}}]", [false; 4]),
        (
            "shop",
            "  action: DENY\n  rules:\n  - to: [{operation: {methods: [GET], ports: ['80']}}]",
            [false, true, false, false],
        ),
        (
            "shop",
            "  action: DENY\n  rules:\n  - to: [{operation: {methods: [GET]}}, {operation: {ports: ['80']}}]",
            [false; 4],
        ),
        (
            "shop",
            "  action: DENY\n  rules:\n  - from: [{source: {namespaces: [shop]}}]\n    to: [{operation: {paths: [/a]}}]",
            [false, false, true, true],
        ),
        (
            "shop",
            "  action: DENY\n  rules:\n  - when: [{key: 'request.headers[x]', values: [v]}, {key: destination.port, values: ['80']}]",
            [false, true, false, false],
        ),
        ("shop", "  rules:\n  - when: [{key: 'request.auth.claims[x]', values: [v]}]", [false; 4]),
        ("shop", "  rules:\n  - from: [{source: {requestPrincipals: ['*'], namespaces: [shop]}}]", [false; 4]),
        ("shop", "  action: DENY\n  rules:\n  - from: [{source: {remoteIpBlocks: [1.2.3.4]}}]", [false; 4]),
        (
            "shop",
            "  action: CUSTOM\n  provider: {name: x}\n  rules:\n  - to: [{operation: {ports: ['80']}}]",
            [false, true, false, false],
        ),
        ("shop", "  action: AUDIT\n  rules: [{}]", [true; 4]),
        ("shop", "  targetRefs: [{kind: Gateway, name: w}]", [true; 4]),
        // Unreadable and never read: what it selects is closed, or its namespace.
        ("shop", "  rulez: []", [false; 4]),
        ("shop", "  selector: {matchLabels: {app: other}}\n  rulez: []", [true; 4]),
        ("shop", "  selector: {matchLabel: {app: other}}", [false; 4]),
        ("other", "  rulez: []", [true; 4]),
        ("istio-system", "  action: DENI", [false; 4]),
        ("shop", "  targetRefs: [{kind: Gateway, name: w}]\n  rulez: []", [true; 4]),
        ("shop", "  rules:\n  - from: [{source: {ipBlocks: [10.0.0.0/33]}}]", [false; 4]),
        ("shop", "  action: DENY\n  rules:\n  - from: [{source: {namespaces: []}}]", [false; 4]),
    ];
    for (namespace, spec, expected) in table {
        let view = with_policy(namespace, spec);
        let found =
            [allowed(&view, ALICE, 80), allowed(&view, ALICE, 81), allowed(&view, BOB, 80), allowed(&view, None, 80)];
        assert_eq!(&found, expected, "in {namespace}:\n{spec}");
    }
}

#[test]
fn hardening_B149_many_policies_on_one_pod() {
    let mut text = pod("web-1", "");
    for n in 0..1000 {
        text.push_str(&format!(
            "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p{n}, namespace: shop}}\nspec: {{selector: {{matchLabels: {{app: web}}}}, action: DENY, rules: [{{to: [{{operation: {{ports: ['{}']}}}}]}}]}}\n",
            1000 + n
        ));
    }
    let view = view(&text);
    assert_eq!(view.workloads.values().next().unwrap().authorization_policies.len(), 1000);
    assert!(allowed(&view, ALICE, 80) && !allowed(&view, ALICE, 1999));
}

#[test]
fn features_AP_7_a_dry_run_is_marked() {
    let marked = |value: &str| {
        let view = view(&format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: shop, annotations: {{istio.io/dry-run: {value}}}}}\nspec: {{}}\n"
        ));
        view.policies.values().find(|p| p.name.name == "p").unwrap().dry_run
    };
    assert!(marked("\"true\""));
    assert!(!marked("\"false\""));
    assert!(!marked("\"maybe\""), "what is not understood is enforced");
}

fn peer(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

/// Every mode at every level, and at each of three ports of the workload, against the rule in plain words: the narrowest that says something
/// counts.
#[test]
fn peer_authentication_truth_table() {
    let modes = ["UNSET", "PERMISSIVE", "STRICT", "DISABLE"];
    let effective = |levels: &[&str]| levels.iter().rev().find(|m| **m != "UNSET").is_some_and(|m| *m == "STRICT");
    // For those who accept, DISABLE is PERMISSIVE; at the narrow levels it is tried all the same.
    let wide_modes = ["UNSET", "PERMISSIVE", "STRICT"];
    for mesh in wide_modes {
        for namespace in wide_modes {
            let wide = format!(
                "{}{}",
                peer("istio-system", "mesh", &format!("{{mtls: {{mode: {mesh}}}}}")),
                peer("shop", "ns", &format!("{{mtls: {{mode: {namespace}}}}}"))
            );
            let view_wide = view(&format!("{}{wide}", pod("web-1", "")));
            assert_eq!(!allowed(&view_wide, None, 80), effective(&[mesh, namespace]), "{mesh} {namespace}");
            assert!(allowed(&view_wide, ALICE, 80));
            for workload in modes {
                for first in modes {
                    for second in modes {
                        let spec = format!(
                            "{{selector: {{matchLabels: {{app: web}}}}, mtls: {{mode: {workload}}}, portLevelMtls: {{80: {{mode: {first}}}, 81: {{mode: {second}}}}}}}"
                        );
                        let view = view(&format!("{}{wide}{}", pod("web-1", ""), peer("shop", "w", &spec)));
                        for (port, mode) in [(80, first), (81, second), (82, "UNSET")] {
                            let strict = effective(&[mesh, namespace, workload, mode]);
                            assert_eq!(
                                !allowed(&view, None, port),
                                strict,
                                "{mesh} {namespace} {workload} {first} {second} at {port}"
                            );
                            assert!(
                                allowed(&view, ALICE, port),
                                "an identity is never refused by a PeerAuthentication"
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn converted_policies_have_istiod_s_names_and_shapes() {
    let shape = |spec: &str| {
        let view = view(&format!("{}{}", pod("web-1", ""), peer("shop", "w", spec)));
        let listed: Vec<String> =
            view.workloads.values().next().unwrap().authorization_policies.iter().map(ToString::to_string).collect();
        let policies: BTreeMap<String, Arc<Policy>> =
            view.policies.into_iter().map(|(n, p)| (n.to_string(), p)).collect();
        (listed, policies)
    };
    let select = "selector: {matchLabels: {app: web}}";
    let (listed, policies) = shape(&format!("{{{select}, mtls: {{mode: STRICT}}}}"));
    assert_eq!(listed, ["undermesh-system/istio_converted_static_strict"]);
    let strict = &policies["undermesh-system/istio_converted_static_strict"];
    assert_eq!((strict.scope, strict.action), (Scope::WorkloadSelector, Action::Deny));
    assert_eq!(strict.rules[0].clauses[0].matches[0].not_principals, [StringMatch::Presence]);

    let (listed, policies) = shape(&format!(
        "{{{select}, mtls: {{mode: STRICT}}, portLevelMtls: {{80: {{mode: PERMISSIVE}}, 81: {{mode: DISABLE}}}}}}"
    ));
    assert_eq!(listed, ["shop/converted_peer_authentication_w"]);
    let converted = &policies["shop/converted_peer_authentication_w"];
    assert_eq!((converted.scope, converted.action, converted.rules.len()), (Scope::WorkloadSelector, Action::Deny, 1));
    let ports: Vec<_> =
        converted.rules[0].clauses.iter().skip(1).map(|c| c.matches[0].not_destination_ports.clone()).collect();
    assert_eq!(ports, [[80], [81]]);

    let (listed, policies) = shape(&format!(
        "{{{select}, mtls: {{mode: PERMISSIVE}}, portLevelMtls: {{80: {{mode: STRICT}}, 81: {{mode: STRICT}}}}}}"
    ));
    assert_eq!(listed, ["shop/converted_peer_authentication_w"]);
    assert_eq!(
        policies["shop/converted_peer_authentication_w"].rules.len(),
        2,
        "one rule for each port, not one for both"
    );

    let (listed, _) = shape(&format!("{{{select}, mtls: {{mode: PERMISSIVE}}}}"));
    assert_eq!(listed, Vec::<String>::new());
}

#[test]
fn of_two_peer_authentications_the_older_counts_and_an_unreadable_one_closes() {
    let aged = |name: &str, time: &str, mode: &str| {
        peer("shop", name, &format!("{{mtls: {{mode: {mode}}}}}"))
            .replace(&format!("name: {name}"), &format!("name: {name}, creationTimestamp: \"{time}\""))
    };
    let strict = |text: &str| !allowed(&view(&format!("{}{text}", pod("web-1", ""))), None, 80);
    let (old, new) = ("2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z");
    assert!(strict(&format!("{}{}", aged("a", new, "PERMISSIVE"), aged("b", old, "STRICT"))));
    assert!(!strict(&format!("{}{}", aged("a", new, "STRICT"), aged("b", old, "PERMISSIVE"))));
    assert!(strict(&format!(
        "{}{}",
        peer("shop", "a", "{mtls: {mode: STRICT}}"),
        peer("shop", "b", "{mtls: {mode: PERMISSIVE}}")
    )));
    assert!(strict(&format!("{}{}", aged("a", old, "PERMISSIVE"), peer("shop", "b", "{mtls: {mode: Strict}}"))));
    assert!(strict(&format!("{}{}", peer("shop", "a", "{mtls: {mode: STRICT}}"), aged("b", old, "PERMISSIVE"))));
    assert!(strict(&format!("{}{}", peer("shop", "a", "{mtls: {mode: PERMISSIVE}}"), aged("b", new, "STRICT"))));
    assert!(!strict(&peer("other", "a", "{mtls: {mode: Strict}}")));
    assert!(strict(&peer("undermesh-system", "a", "{mtls: {mode: STRICT}}")));
}

/// Names do not decide whether plaintext is refused, and what has no effect is said so.
#[test]
fn of_two_peer_authentications_without_age_the_stricter_counts() {
    let told = |text: &str, strict: bool| {
        let view = view(&format!("{}{text}", pod("web-1", "")));
        assert_eq!(!allowed(&view, None, 80), strict, "{text}");
        view.problems
            .iter()
            .filter(|(k, _)| k.kind == Kind::PeerAuthentication)
            .map(|(k, p)| format!("{k}: {}", p.message))
            .collect::<Vec<_>>()
    };
    let (strict, permissive) = ("{mtls: {mode: STRICT}}", "{mtls: {mode: PERMISSIVE}}");
    for (namespace, other) in
        [("shop", "shop"), ("undermesh-system", "undermesh-system"), ("undermesh-system", "istio-system")]
    {
        let text = format!("{}{}", peer(namespace, "allow-legacy", permissive), peer(other, "default", strict));
        let expected = format!(
            "PeerAuthentication {namespace}/allow-legacy: another PeerAuthentication decides here, this one has no effect: {other}/default"
        );
        assert_eq!(told(&text, true), [expected]);
    }
    // What says nothing inherits.
    let mesh = peer("istio-system", "default", strict);
    assert_eq!(told(&format!("{mesh}{}{}", peer("shop", "a", permissive), peer("shop", "b", "{}")), true).len(), 1);
    assert_eq!(told(&format!("{mesh}{}", peer("shop", "a", permissive)), false), [""; 0]);

    let select = |name: &str, label: &str, mode: &str| {
        peer("shop", name, &format!("{{selector: {{matchLabels: {{{label}}}}}, mtls: {{mode: {mode}}}}}"))
    };
    let apart = format!("{}{}", select("a", "app: other", "STRICT"), select("b", "app: web", "PERMISSIVE"));
    assert_eq!(told(&apart, false), [""; 0]);
    let two = format!("{}{}", select("a", "app: web", "PERMISSIVE"), select("b", "app: web", "STRICT"));
    let said = "PeerAuthentication shop/a: another PeerAuthentication decides for pods that both select, this one has no effect there: shop/b";
    assert_eq!(told(&two, true), [said]);
    // Whatever pods are called after a rollout, and in whatever order they come, the same is said.
    let three = format!("{two}{}", select("c", "tier: back", "STRICT"));
    let told = |names: [&str; 2]| {
        let both = |name: &str, labels: &str| pod_in("shop", name, "198.18.0.1", labels, "");
        let view = view(&format!("{three}{}{}", both(names[0], "app: web, tier: back"), both(names[1], "app: web")));
        let of_peers = view.problems.into_iter().filter(|(key, _)| key.kind == Kind::PeerAuthentication);
        of_peers.map(|(key, problem)| format!("{key}: {}", problem.message)).collect::<Vec<_>>()
    };
    assert_eq!(told(["web-1", "web-2"]), told(["web-4", "web-3"]));
}
