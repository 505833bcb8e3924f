//! Policies that are bound to nothing, at gateways at the edge: no agent stands before these.

use std::collections::BTreeMap;

use mesh_core::NamespacedName;
use mesh_core::l7::policy::Action;

use super::security::{given, mesh, policy, said};
use super::*;

/// Of pods of the gateways.
const ACCOUNT: &str = "serviceAccountName: front";

/// Gateways at the edge of `shop` and `other`; one pod serves that of `shop`, and has a label that the Gateway does not say.
fn edges(more: &str) -> View {
    let gateway = |namespace: &str| {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: edge, namespace: {namespace}, annotations: {{gateway.istio.io/service-account: front}}}}\nspec: {{gatewayClassName: undermesh, infrastructure: {{labels: {{tier: front}}}}, listeners: [{{name: http, port: 80, protocol: HTTP}}]}}\n"
        )
    };
    let labels = "gateway.networking.k8s.io/gateway-name: edge, istio: ingressgateway";
    let pod = pod_in("shop", "edge-1", "198.18.0.9", labels, "").replace("serviceAccountName: web", ACCOUNT);
    mesh(&format!("{}{}{pod}{more}", gateway("shop"), gateway("other")))
}

#[test]
fn features_AP_2_SEC_6_a_gateway_has_the_policies_of_its_namespace_and_those_that_select_its_pods() {
    let unreadable = "{rulez: []}";
    for (what, policy, expected) in [
        ("of its namespace", policy("shop", "{}"), &["shop/edge"][..]),
        ("of the mesh", policy("undermesh-system", "{}"), &["other/edge", "shop/edge"]),
        ("of another namespace", policy("third", "{}"), &[]),
        (
            "by the name of the gateway",
            policy("shop", "{selector: {matchLabels: {gateway.networking.k8s.io/gateway-name: edge}}}"),
            &["shop/edge"],
        ),
        (
            "by what the Gateway writes, everywhere",
            policy("undermesh-system", "{selector: {matchLabels: {tier: front}}}"),
            &["other/edge", "shop/edge"],
        ),
        (
            "by what its pods have",
            policy("undermesh-system", "{selector: {matchLabels: {istio: ingressgateway}}}"),
            &["shop/edge"],
        ),
        ("by what others have", policy("shop", "{selector: {matchLabels: {app: web}}}"), &[]),
        ("unreadable", policy("shop", unreadable), &["shop/edge"]),
        ("unreadable, of others", policy("shop", "{selector: {matchLabels: {app: web}}, rulez: []}"), &[]),
        (
            "for gateways alone unreadable",
            policy("shop", "{rules: [{when: [{key: 'request.headers[:path]', values: [a]}]}]}"),
            &["shop/edge"],
        ),
        (
            "tokens of its namespace",
            policy("shop", "{jwtRules: [{issuer: a}]}").replace("AuthorizationPolicy", "RequestAuthentication"),
            &["shop/edge"],
        ),
        (
            "tokens, by what its pods have",
            policy("undermesh-system", "{selector: {matchLabels: {istio: ingressgateway}}, jwtRules: [{issuer: a}]}")
                .replace("AuthorizationPolicy", "RequestAuthentication"),
            &["shop/edge"],
        ),
        (
            "tokens of its namespace that are unreadable",
            policy("shop", "{jwtRules: [{issuer: a, fromHeader: []}]}")
                .replace("AuthorizationPolicy", "RequestAuthentication"),
            &["shop/edge"],
        ),
        (
            "unreadable tokens of others",
            policy("shop", "{selector: {matchLabels: {app: web}}, jwtRules: [{issuer: a, fromHeader: []}]}")
                .replace("AuthorizationPolicy", "RequestAuthentication"),
            &[],
        ),
    ] {
        let view = edges(&policy);
        let expected: BTreeMap<String, Vec<String>> =
            expected.iter().map(|gateway| ((*gateway).to_owned(), vec!["all".to_owned()])).collect();
        assert_eq!(given(&view), expected, "{what}");
        let own = &view.security[&NamespacedName::new("shop", "edge")];
        if what.contains("unreadable") && !expected.is_empty() {
            assert_eq!((&own.policies[0].action, own.policies[0].rules.len()), (&Action::Deny, 1), "{what}");
        }
        let told = said(&view).iter().any(|said| said.starts_with("spec: Gateway shop/edge, whose pods it selects"));
        assert_eq!(told, what == "for gateways alone unreadable", "{what}: {:?}", said(&view));
    }
    // All of it, of which agents can judge nothing.
    let rules = "{action: DENY, rules: [{from: [{source: {remoteIpBlocks: [10.0.0.0/8]}}], to: [{operation: {methods: [GET]}}]}]}";
    let view = edges(&policy("shop", rules));
    let own = &view.security[&NamespacedName::new("shop", "edge")].policies[0];
    assert_eq!((own.rules[0].from[0].remote_ips.is.len(), own.rules[0].to[0].methods.is.len()), (1, 1));
}

#[test]
fn a_gateway_that_is_a_waypoint_as_well_has_them_at_its_edge_and_nowhere_else() {
    let gateway = |listeners: &str| {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: both, namespace: third}}\nspec: {{gatewayClassName: undermesh, allowedListeners: {{namespaces: {{from: Same}}}}, listeners: [{{name: mesh, port: 15008, protocol: HBONE}}{listeners}]}}\n"
        )
    };
    let set = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: ListenerSet\nmetadata: {name: more, namespace: third}\nspec: {parentRef: {name: both}, listeners: [{name: a, port: 80, protocol: HTTP}]}\n";
    let http = gateway(", {name: http, port: 80, protocol: HTTP}");
    let tokens = policy("third", "{jwtRules: [{issuer: a}]}").replace("AuthorizationPolicy", "RequestAuthentication");
    let target = "{targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: both}]}";
    for (what, objects, expected) in [
        ("of its namespace", format!("{http}{}", policy("third", "{}")), Some("edge")),
        ("of the mesh", format!("{http}{}", policy("undermesh-system", "{}")), Some("edge")),
        ("tokens", format!("{http}{tokens}"), Some("edge")),
        ("of a ListenerSet", format!("{}{set}{}", gateway(""), policy("third", "{}")), Some("edge")),
        ("of a waypoint alone", format!("{}{}", gateway(""), policy("third", "{}")), None),
        ("bound to it", format!("{http}{}", policy("third", target)), Some("all")),
        (
            "that nobody can read",
            format!("{http}{}", policy("third", "{targetRefs: [{kind: Pod, name: a}]}")),
            Some("all"),
        ),
    ] {
        let given = given(&mesh(&objects));
        let expected = expected.map(|target| vec![target.to_owned()]);
        assert_eq!(given.get("third/both"), expected.as_ref(), "{what}");
    }
}

#[test]
fn what_a_gateway_has_of_policies_is_that_of_a_fresh_join_whatever_becomes_of_its_pods() {
    let policy = policy("undermesh-system", "{selector: {matchLabels: {istio: ingressgateway}}}");
    let gateway = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: edge, namespace: shop, annotations: {gateway.istio.io/service-account: front}}\nspec: {gatewayClassName: undermesh, listeners: [{name: http, port: 80, protocol: HTTP}]}\n";
    let pod = |labels: &str| {
        let labels = format!("gateway.networking.k8s.io/gateway-name: edge{labels}");
        pod_in("shop", "edge-1", "198.18.0.9", &labels, "").replace("serviceAccountName: web", ACCOUNT)
    };
    let mut join = crate::index::Join::default();
    for (labels, expected) in [("", 0), (", istio: ingressgateway", 1), (", istio: egressgateway", 0)] {
        let objects = read(&format!("{gateway}{policy}{}", pod(labels)));
        let view = join.build(objects, &Settings::default());
        assert_eq!(view.security[&NamespacedName::new("shop", "edge")].policies.len(), expected, "{labels}");
    }
}

#[test]
fn features_TM_7_telemetry_that_selects_pods_of_a_gateway_is_in_force_there() {
    let telemetry = |namespace: &str, selector: &str| {
        format!(
            "---\napiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {{name: t, namespace: {namespace}}}\nspec: {{selector: {{matchLabels: {{{selector}}}}}, accessLogging: [{{providers: [{{name: envoy}}]}}]}}\n"
        )
    };
    for (what, namespace, selector, expected) in [
        ("by the name of the gateway", "shop", "gateway.networking.k8s.io/gateway-name: edge", &["shop/edge"][..]),
        ("by what the Gateway writes", "shop", "tier: front", &["shop/edge"]),
        ("by what its pods have", "shop", "istio: ingressgateway", &["shop/edge"]),
        ("by what others have", "shop", "app: web", &[]),
        ("by a label of the waypoint's pods", "shop", "gateway.networking.k8s.io/gateway-name: wp", &[]),
        ("of another namespace", "third", "tier: front", &[]),
        ("labels of the root namespace mean pods there, as in Istio", "undermesh-system", "tier: front", &[]),
    ] {
        let view = edges(&telemetry(namespace, selector));
        let logging = view.telemetry.iter().filter(|(_, scopes)| !scopes.waypoint.logs.is_empty());
        assert_eq!(logging.map(|(gateway, _)| gateway.to_string()).collect::<Vec<_>>(), expected, "{what}");
        let told = view.problems.iter().filter(|(key, _)| key.kind == Kind::Telemetry);
        let told: Vec<&str> = told.map(|(_, problem)| problem.message.as_str()).collect();
        assert_eq!(told.len(), usize::from(expected.is_empty()), "{what}: {told:?}");
        assert!(told.iter().all(|one| one.ends_with("it has no effect")), "{what}: {told:?}");
        let is_in_force = view.at_waypoints.iter().any(|key| key.kind == Kind::Telemetry);
        assert_eq!(is_in_force, !expected.is_empty(), "{what}");
    }
}

#[test]
fn a_gateway_s_own_labels_are_those_of_its_pods_as_well_unless_it_says_others() {
    for (what, spec, policy_s, expected) in [
        ("its own", "", "tier: front", true),
        ("others", "infrastructure: {labels: {a: b}}, ", "tier: front", false),
        ("those others", "infrastructure: {labels: {a: b}}, ", "a: b", true),
        ("annotations alone", "infrastructure: {annotations: {a: b}}, ", "tier: front", true),
        ("what somebody else has made", "addresses: [{type: Hostname, value: front}], ", "tier: front", false),
        ("what is ours to say", "", "gateway.networking.k8s.io/gateway-name: other", false),
    ] {
        let gateway = format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: edge, namespace: shop, labels: {{tier: front, gateway.networking.k8s.io/gateway-name: other}}}}\nspec: {{gatewayClassName: undermesh, {spec}listeners: [{{name: http, port: 80, protocol: HTTP}}]}}\n"
        );
        let policy =
            policy("shop", &format!("{{action: DENY, selector: {{matchLabels: {{{policy_s}}}}}, rules: [{{}}]}}"));
        let view = mesh(&format!("{gateway}{policy}"));
        assert_eq!(!given(&view).is_empty(), expected, "{what}");
    }
    let proxies = |key: &str, field: &str| {
        let config = "proxy.istio.io/config: 'gatewayTopology: {numTrustedProxies: 2}'";
        let spec =
            if field.is_empty() { String::new() } else { format!("infrastructure: {{annotations: {{{config}}}}}, ") };
        let own = if field.is_empty() { config } else { key };
        let view = mesh(&format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: edge, namespace: shop, annotations: {{{own}}}}}\nspec: {{gatewayClassName: undermesh, {spec}listeners: [{{name: http, port: 80, protocol: HTTP}}]}}\n"
        ));
        view.listeners[&NamespacedName::new("shop", "edge")].topology().trusted_proxies
    };
    assert_eq!((proxies("", ""), proxies("a: b", "of what serves it")), (2, 2));
}
