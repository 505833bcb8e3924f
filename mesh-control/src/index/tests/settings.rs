//! Mesh settings: what they change in what agents get, whose they are, and which namespaces they take in.

use super::*;
use mesh_core::NamespacedName;

use crate::resource::mesh_config::IstioNames;

fn settings(mesh: &str) -> String {
    config("undermesh-system", mesh)
}

fn config(namespace: &str, mesh: &str) -> String {
    let mesh = mesh.replace('\n', "\n    ");
    format!(
        "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: undermesh, namespace: {namespace}}}\ndata:\n  mesh: |\n    {mesh}\n"
    )
}

fn strict(namespace: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: default, namespace: {namespace}}}\nspec: {{mtls: {{mode: STRICT}}}}\n"
    )
}

fn deny(namespace: &str, name: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{action: DENY, rules: [{{from: [{{source: {{namespaces: [x]}}}}]}}]}}\n"
    )
}

pub const ISTIOD: &str = "---\napiVersion: v1\nkind: Service\nmetadata: {name: istiod, namespace: istio-system}\nspec: {selector: {app: istiod}, ports: [{port: 15012}]}\n";

/// Whether the only pod refuses plaintext.
fn is_strict(text: &str) -> bool {
    let view = view(&format!("{text}{NODE}{}", pod("web-1", "")));
    let workload = view.workloads.values().next().unwrap();
    workload.authorization_policies.iter().any(|p| p.name == "istio_converted_static_strict")
}

#[test]
fn policies_of_root_namespaces_hold_in_the_whole_mesh() {
    let stranger = ISTIOD.replace("istio-system", "shop");
    let ours = ISTIOD.replace("app: istiod", "app: mesh-control");
    let pod = pod_in("istio-system", "istiod-1", "198.18.0.9", "app: istiod", "");
    for (what, text, expected) in [
        ("ours", strict("undermesh-system"), true),
        ("Istio's, with no Istio", strict("istio-system"), true),
        ("Istio's, with an Istio", format!("{}{ISTIOD}", strict("istio-system")), false),
        ("Istio's, with our service under its name", format!("{}{ours}", strict("istio-system")), true),
        ("Istio's, with an istiod that anybody can make", format!("{}{stranger}", strict("istio-system")), true),
        (
            "Istio's, ours by setting",
            format!("{}{ISTIOD}{}", strict("istio-system"), settings("istioNames: own")),
            true,
        ),
        ("Istio's, nobody's by setting", format!("{}{}", strict("istio-system"), settings("istioNames: off")), false),
        ("another's", strict("config"), false),
        ("another's by setting", format!("{}{}", strict("config"), settings("rootNamespace: config")), true),
        (
            "ours, with another one by setting",
            format!("{}{}", strict("undermesh-system"), settings("rootNamespace: config")),
            false,
        ),
        ("by a setting of nobody", format!("{}{}", strict("config"), config("shop", "rootNamespace: config")), false),
    ] {
        assert_eq!(is_strict(&text), expected, "{what}");
    }
    // The pod of an istiod says it too; ended ones do not.
    let by_pod = |pod: &str| view(&format!("{}{NODE}{pod}", strict("istio-system"))).settings.root_namespaces.len();
    assert_eq!(by_pod(&pod), 1);
    assert_eq!(by_pod(&pod.replace("phase: Running", "phase: Succeeded")), 2);
}

#[test]
fn a_trust_domain_is_everybody_s() {
    let text = format!("{NODE}{}{}", pod("web-1", ""), settings("trustDomain: prod.example"));
    let view = view(&text);
    assert_eq!(view.settings.trust_domain.as_str(), "prod.example");
    assert!(view.workloads.values().all(|w| w.trust_domain.as_str() == "prod.example"));
    assert_eq!(view.settings.istio_names, IstioNames::Auto);
    // Agents have theirs from their command lines.
    let said: Vec<String> = view.problems.iter().map(|(key, problem)| format!("{key}: {}", problem.message)).collect();
    let expected = "prod.example is not the trust domain that processes were started with, cluster.local";
    assert_eq!(said, [format!("ConfigMap undermesh-system/undermesh: {expected}")]);
    let same = format!("{NODE}{}{}", pod("web-1", ""), settings("trustDomain: cluster.local"));
    assert_eq!(super::view(&same).problems, []);
}

#[test]
fn features_AP_10_policies_of_agents_mean_all_trust_domains_of_the_mesh() {
    let policy = "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop}\nspec: {rules: [{from: [{source: {principals: [old.example/ns/a/sa/b]}}]}]}\n";
    let who = |mesh: &str| {
        let view = view(&format!("{policy}{}", settings(mesh)));
        let rules = &view.policies[&"shop/p".parse().unwrap()].rules;
        rules[0].clauses[0].matches[0].principals.clone()
    };
    let exact = |domain: &str| StringMatch::Exact(format!("{domain}/ns/a/sa/b").into());
    assert_eq!(who(""), [exact("old.example")]);
    let both = [exact("cluster.local"), exact("old.example")];
    assert_eq!(who("trustDomainAliases: [old.example]"), both);
}

#[test]
fn settings_elsewhere_are_told_of() {
    let view = view(&config("shop", "trustDomain: evil.example"));
    assert_eq!(view.settings.trust_domain.as_str(), "cluster.local");
    let said: Vec<String> = view.problems.iter().map(|(key, problem)| format!("{key}: {}", problem.message)).collect();
    assert_eq!(
        said,
        ["ConfigMap shop/undermesh: the mesh settings are those of namespace undermesh-system, these have no effect"]
    );
}

#[test]
fn namespaces_that_are_not_selected_have_addresses_and_nothing_else() {
    let namespace = |name: &str, labels: &str| {
        format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{{labels}}}}}\n")
    };
    let objects = [
        NODE.to_owned(),
        namespace("shop", "mesh: in"),
        namespace("lab", "mesh: out"),
        namespace("undermesh-system", ""),
        pod("web-1", ""),
        pod_in("lab", "probe-1", "198.18.0.2", "app: probe", ""),
        // No such namespace is known.
        pod_in("ghost", "probe-2", "198.18.0.3", "app: probe", ""),
        deny("shop", "in"),
        deny("lab", "out"),
        strict("lab"),
        deny("undermesh-system", "everywhere"),
    ]
    .concat();
    let members = |text: &str| {
        let view = view(text);
        let members: Vec<String> = view
            .workloads
            .values()
            .filter(|w| w.protocol == TunnelProtocol::Hbone)
            .map(|w| w.namespace.to_string())
            .collect();
        (view, members)
    };
    let (all, everybody) = members(&objects);
    assert_eq!(everybody, ["ghost", "lab", "shop"]);
    for (selectors, expected) in [
        ("- matchLabels: {mesh: in}", vec!["shop"]),
        ("- matchLabels: {kubernetes.io/metadata.name: lab}", vec!["lab"]),
        ("- matchLabels: {kubernetes.io/metadata.name: ghost}", vec!["ghost"]),
        ("- matchExpressions: [{key: mesh, operator: Exists}]", vec!["lab", "shop"]),
        ("- matchLabels: {mesh: in}\n- matchLabels: {mesh: out}", vec!["lab", "shop"]),
        ("[]", vec!["ghost", "lab", "shop"]),
    ] {
        let text = format!("{objects}{}", settings(&format!("discoverySelectors:\n{selectors}")));
        let (view, some) = members(&text);
        assert_eq!(some, expected, "{selectors}");
        // Everything can be reached as before.
        assert!(view.workloads.keys().eq(all.workloads.keys()), "{selectors}");
        assert!(view.placements.iter().map(|(_, namespace, _)| namespace.as_str()).eq(expected.iter().copied()));
        assert!(view.namespaces.contains("undermesh-system"), "{selectors}");
    }
    // The mesh's own namespace is of it, also with another root namespace: its agents need the root.
    let (view, _) = members(&format!(
        "{objects}{}",
        settings("rootNamespace: config\ndiscoverySelectors:\n- matchLabels: {mesh: in}")
    ));
    assert_eq!(view.namespaces.iter().map(|n| n.as_str()).collect::<Vec<_>>(), ["shop", "undermesh-system"]);
    let (view, _) = members(&format!("{objects}{}", settings("discoverySelectors:\n- matchLabels: {mesh: in}")));
    let policies: Vec<String> = view.policies.keys().map(ToString::to_string).collect();
    assert_eq!(policies, ["shop/in", "undermesh-system/everywhere", "undermesh-system/istio_converted_static_strict"]);
    let refused: Vec<String> = view.problems.iter().map(|(key, _)| key.to_string()).collect();
    assert_eq!(refused, ["AuthorizationPolicy lab/out", "PeerAuthentication lab/default"]);
    assert!(view.workloads.values().filter(|w| w.namespace == "lab").all(|w| w.authorization_policies.is_empty()));
}

#[test]
fn policies_of_a_namespace_are_out_of_force_only_if_its_labels_say_so() {
    let namespace = |labels: &str| {
        format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, labels: {{{labels}}}}}\n")
    };
    let selectors = settings("discoverySelectors:\n- matchLabels: {mesh: \"true\"}");
    let objects = format!("{NODE}{}{}{}{selectors}", pod("web-1", ""), deny("shop", "p"), strict("shop"));
    for (what, namespace, in_force, is_member) in [
        ("selected", namespace("mesh: \"true\""), true, true),
        ("not selected", namespace("mesh: \"false\""), false, false),
        ("a boolean for a label", namespace("mesh: true"), true, true),
        ("not YAML", namespace("mesh: [true"), true, true),
        ("not known", String::new(), true, false),
        ("its name is no name", namespace("").replace("name: shop", "name: [shop]"), true, false),
    ] {
        let view = view(&format!("{objects}{namespace}"));
        let workload = view.workloads.values().next().unwrap();
        let listed = workload.authorization_policies.iter().any(|p| p.name == "istio_converted_static_strict");
        let served = view.policies.keys().any(|name| name.name == "p");
        assert_eq!((listed, served), (in_force, in_force), "{what}");
        assert_eq!(workload.protocol == TunnelProtocol::Hbone, is_member, "{what}");
    }
}

#[test]
fn features_EX_5_what_has_no_export_to_has_the_meshs() {
    let own = "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: NAME, namespace: shop}\nspec: {hosts: [web], http: [{route: [{destination: {host: web}}]}]EXPORT}\n";
    let objects = [("usual", ""), ("open", ", exportTo: ['*']")]
        .map(|(name, export)| own.replace("NAME", name).replace("EXPORT", export))
        .concat();
    for (mesh, expected) in [("", vec![]), ("defaultVirtualServiceExportTo: ['.']", vec!["."])] {
        let view = view(&format!("{objects}{}", settings(mesh)));
        let of = |name: &str| view.routes.virtual_services[&NamespacedName::new("shop", name)].spec.export_to.clone();
        assert_eq!(
            (of("usual"), of("open")),
            (expected.into_iter().map(str::to_owned).collect(), vec!["*".to_owned()])
        );
    }
}
