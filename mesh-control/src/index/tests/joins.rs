//! What is taken from the last join is what a fresh one would make.

use super::*;
use crate::index::Join;
use crate::resource::Objects;
use mesh_core::NamespacedName;

fn objects(text: &str) -> Objects {
    let read = file::read("a.yaml", text.as_bytes());
    let scan = Scan { found: read.found.into_iter().map(|(f, _)| f).collect(), ..Scan::default() };
    Catalog::default().apply(&scan).0
}

/// The same objects again are the same ones, as they are when a source says that one has changed.
fn kept(mut new: Objects, old: &Objects) -> Objects {
    for (name, pod) in &mut new.pods {
        if let Some(old) = old.pods.get(name).filter(|old| *old == pod) {
            *pod = old.clone();
        }
    }
    new
}

#[test]
fn whatever_changes_the_result_is_that_of_a_fresh_join() {
    let label = |name: &str, labels: &str| pod_in("shop", name, "198.18.0.1", labels, "");
    let other = pod_in("other", "x", "198.18.0.2", "app: x", "");
    let web = service("web", "{selector: {app: web}, clusterIP: 198.19.0.1, ports: [{port: 80, targetPort: nope}]}");
    let peer = |namespace: &str| {
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: p, namespace: {namespace}}}\nspec: {{mtls: {{mode: STRICT}}}}\n"
        )
    };
    let deny = |namespace: &str| {
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: d, namespace: {namespace}}}\nspec: {{selector: {{matchLabels: {{app: web}}}}, action: DENY, rules: [{{}}]}}\n"
        )
    };
    let namespace = |name: &str, labels: &str| {
        format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{{labels}}}}}\n")
    };
    let settings = "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: undermesh, namespace: undermesh-system}\ndata: {mesh: \"discoverySelectors: [{matchLabels: {mesh: in}}]\"}\n";
    let slice = "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: ext-1, namespace: shop, labels: {kubernetes.io/service-name: ext}}\naddressType: IPv4\nports: [{port: 5432, name: pg}]\nendpoints:\n- {addresses: [198.18.0.1], targetRef: {kind: Pod, name: web-1}}\n- {addresses: [198.18.9.9]}\n";
    let ext = service("ext", "{ports: [{port: 1, name: pg}]}");
    let one = label("web-1", "app: web");
    // The same address in another namespace: who has it depends on both.
    let thief = pod_in("thief", "t", "198.18.0.1", "app: web", "");
    let base = format!("{one}{other}");
    // Of whose node nobody has heard, alone and beside one that is ready.
    let second = pod_in("shop", "web-2", "198.18.0.4", "app: web", "");
    let unheard =
        |pod: &str| pod.replace("status: \"True\"", "status: \"False\"}, {type: ContainersReady, status: \"True\"");
    let steps = [
        base.clone(),
        format!("{base}{web}"),
        format!("{base}{web}{NODE}"),
        format!("{NODE}{web}{other}{}", label("web-1", "app: web, version: v2")),
        format!("{NODE}{web}{other}{}", label("web-1", "app: else")),
        format!("{base}{web}{}", peer("shop")),
        format!("{base}{web}{}", peer("undermesh-system")),
        format!("{base}{web}{}", deny("other")),
        format!("{base}{web}{}", deny("undermesh-system")),
        format!("{base}{web}{thief}"),
        format!("{other}{web}{thief}"),
        format!("{base}{web}{}{settings}", namespace("shop", "mesh: in")),
        format!("{base}{web}{}{settings}", namespace("shop", "mesh: out")),
        format!("{base}{slice}{ext}{web}"),
        format!("{base}{slice}"),
        format!("{web}{second}{one}"),
        format!("{web}{second}{}", unheard(&one)),
        format!("{web}{}{}", unheard(&second), unheard(&one)),
        format!("{web}{}{one}", unheard(&second)),
        other.clone(),
        String::new(),
        base,
    ];
    // Also the other way around, and each with itself.
    let there_and_back = steps.iter().chain(steps.iter().rev()).flat_map(|step| [step, step]);
    assert_same(there_and_back);
}

/// Joins one after the other, and each also by itself.
fn assert_same<'a>(texts: impl Iterator<Item = &'a String>) {
    let (mut join, mut last) = (Join::default(), Objects::default());
    for text in texts {
        let now = kept(objects(text), &last);
        let fresh = build(&now, &Settings::default());
        last = now.clone();
        let view = join.build(now, &Settings::default());
        assert_eq!(view.workloads, fresh.workloads, "{text}");
        assert_eq!((&view.services, &view.policies), (&fresh.services, &fresh.policies), "{text}");
        assert_eq!((&view.placements, &view.nodes), (&fresh.placements, &fresh.nodes), "{text}");
        assert_eq!((&view.problems, &view.namespaces), (&fresh.problems, &fresh.namespaces), "{text}");
        assert_eq!((&view.routes, &view.resolved), (&fresh.routes, &fresh.resolved), "{text}");
    }
}

/// An object that says where requests go.
fn route(group: &str, kind: &str, namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: {group}/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

/// A VirtualService with a subset, its DestinationRule, and a route of the Gateway API with a gateway of another namespace.
fn routes() -> [String; 4] {
    let istio = |kind: &str, spec: &str| route("networking.istio.io", kind, "shop", "web", spec);
    let gateway =
        |kind: &str, namespace: &str, spec: &str| route("gateway.networking.k8s.io", kind, namespace, "front", spec);
    let listener = "{name: http, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {team: a}}}}}";
    [
        istio(
            "VirtualService",
            "{hosts: [web], http: [{route: [{destination: {host: web, subset: v1, port: {number: 80}}}]}]}",
        ),
        istio("DestinationRule", "{host: web, subsets: [{name: v1}]}"),
        gateway(
            "HTTPRoute",
            "shop",
            "{parentRefs: [{name: front, namespace: far}, {group: '', kind: Service, name: web}], rules: [{backendRefs: [{name: web, port: 80}]}]}",
        ),
        gateway("Gateway", "far", &format!("{{gatewayClassName: undermesh, listeners: [{listener}]}}")),
    ]
}

#[test]
fn whatever_changes_routes_mean_what_they_mean_in_a_fresh_join() {
    let web = |port: u16| service("web", &format!("{{selector: {{app: web}}, ports: [{{port: {port}}}]}}"));
    let namespace = |labels: &str| {
        format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, labels: {{{labels}}}}}\n")
    };
    // Its name is good, and nothing else.
    let unread = "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: [1]}\n";
    let settings = |mesh: &str| {
        format!(
            "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: undermesh, namespace: undermesh-system}}\ndata: {{mesh: \"{mesh}\"}}\n"
        )
    };
    let selects = settings("discoverySelectors: [{matchLabels: {mesh: in}}]");
    let istiod = service("istiod", "{selector: {app: istiod}, ports: [{port: 1}]}").replace("shop", "istio-system");
    let [one, two, three, four] = routes();
    let all = [one.clone(), two.clone(), three.clone(), four.clone()].concat();
    // It cannot be read, for want of a port; what it belongs to can.
    let broken = route(
        "gateway.networking.k8s.io",
        "HTTPRoute",
        "shop",
        "broken",
        "{parentRefs: [{group: '', kind: Service, name: web}], rules: [{backendRefs: [{name: web}]}]}",
    );
    let steps = [
        all.clone(),
        format!("{all}{}", web(80)),
        format!("{all}{}{broken}", web(80)),
        format!("{all}{}", web(81)),
        format!("{one}{three}{four}{}", web(80)),
        format!("{one}{two}{three}{}", web(80)),
        format!("{all}{}{}", web(80), namespace("team: a")),
        format!("{all}{}{}", web(80), namespace("team: b")),
        format!("{all}{}{}{selects}", web(80), namespace("team: a")),
        format!("{all}{}{}{selects}", web(80), namespace("team: a, mesh: in")),
        format!("{all}{}{unread}{selects}", web(80)),
        format!("{all}{}{selects}", web(80)),
        format!("{all}{}{}", web(80), settings("rootNamespace: shop")),
        format!("{all}{}{istiod}", web(80)),
        String::new(),
    ];
    assert_same(steps.iter().chain(steps.iter().rev()).flat_map(|step| [step, step]));
}

#[test]
fn routes_are_not_resolved_anew_when_a_pod_changes() {
    let web = |port: u16| service("web", &format!("{{selector: {{app: web}}, ports: [{{port: {port}}}]}}"));
    let text = |labels: &str, port: u16| {
        format!("{}{}{}", pod_in("shop", "web-1", "198.18.0.1", labels, ""), web(port), routes().concat())
    };
    let mut join = Join::default();
    let mut build = |text: &str| join.build(objects(text), &Settings::default());
    let (one, two, three) = (build(&text("app: a", 80)), build(&text("app: b", 80)), build(&text("app: b", 81)));
    assert_ne!(one.workloads, two.workloads);
    assert!(Arc::ptr_eq(&one.resolved, &two.resolved) && Arc::ptr_eq(&one.routes, &two.routes));
    assert!(!one.problems.is_empty() && one.problems == two.problems);
    assert!(one.resolved != three.resolved && three.problems.len() > two.problems.len());
}

#[test]
fn features_EX_5_mesh_settings_alone_are_joined_and_what_they_fill_in_is_not_made_again() {
    let settings = |mesh: &str| {
        format!(
            "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: undermesh, namespace: undermesh-system}}\ndata:\n  mesh: \"{mesh}\"\n"
        )
    };
    let for_itself = settings("{defaultVirtualServiceExportTo: [.], defaultDestinationRuleExportTo: [.]}");
    let base = format!("{}{}", pod_in("shop", "web-1", "198.18.0.1", "app: a", ""), routes().concat());
    let steps = [
        base.clone(),
        format!("{base}{for_itself}"),
        format!("{base}{}", settings("defaultVirtualServiceExportTo: [far]")),
        format!("{base}{}", settings("defaultHttpRetryPolicy: {attempts: 0}")),
        format!("{base}{}", settings("")),
    ];
    assert_same(steps.iter().chain(steps.iter().rev()).flat_map(|step| [step, step]));

    let name = NamespacedName::new("shop", "web");
    let first = objects(&format!("{base}{for_itself}"));
    let mut second = objects(&format!("{}{for_itself}", base.replace("app: a", "app: b")));
    second.routes = first.routes.clone();
    let mut join = Join::default();
    let mut filled = |objects: Objects| {
        join.build(objects, &Settings::default());
        let routes = &join.objects().routes;
        (routes.virtual_services[&name].clone(), routes.destination_rules[&name].clone())
    };
    let (one, two) = (filled(first.clone()), filled(second));
    assert!(Arc::ptr_eq(&one.0, &two.0) && Arc::ptr_eq(&one.1, &two.1));
    // One that is written anew has nothing of the one before.
    let mut third = first;
    let edited = objects(&base.replace("hosts: [web]", "hosts: [web, other]"));
    third.routes.virtual_services = edited.routes.virtual_services;
    let three = filled(third);
    assert_eq!((three.0.spec.hosts.len(), &three.0.spec.export_to), (2, &vec![".".to_owned()]));
    assert!(Arc::ptr_eq(&one.1, &three.1));
}

#[test]
fn rules_of_a_host_are_found_by_its_name_and_by_every_wildcard_that_it_fits() {
    use crate::index::routing::destination_rules::Rules;
    use crate::index::routing::hosts::Hosts;

    let rule = |namespace: &str, name: &str, host: &str| {
        route("networking.istio.io", "DestinationRule", namespace, name, &format!("{{host: \"{host}\"}}"))
    };
    let objects = objects(
        &[
            rule("shop", "short", "web"),
            rule("shop", "every", "*"),
            rule("shop", "far", "*.local"),
            rule("shop", "near", "*.shop.svc.cluster.local"),
            rule("shop", "other", "*.far.svc.cluster.local"),
            rule("far", "full", "web.shop.svc.cluster.local"),
            rule("client", "own", "web.shop.svc.cluster.local"),
            rule("client", "wild", "*.shop.svc.cluster.local"),
            rule("undermesh-system", "root", "WEB.shop.svc.cluster.local"),
        ]
        .concat(),
    );
    let settings = Settings::default();
    let hosts = Hosts::new(&objects.routes, &objects, &settings);
    let rules = Rules::new(&objects.routes, &hosts);
    // The client's, else those of where the host lives, else everybody's; of these the nearest name.
    for (host, client, home, expected) in [
        ("web.shop.svc.cluster.local", "client", "shop", &["own"][..]),
        ("v2.shop.svc.cluster.local", "client", "shop", &["wild"]),
        ("web.shop.svc.cluster.local", "shop", "shop", &["short"]),
        ("web.shop.svc.cluster.local", "else", "shop", &["short"]),
        ("web.shop.svc.cluster.local", "else", "nowhere", &["root"]),
        ("v2.shop.svc.cluster.local", "shop", "shop", &["near"]),
        ("a.local", "shop", "shop", &["far"]),
        ("a.com", "shop", "shop", &["every"]),
        ("*.shop.svc.cluster.local", "shop", "shop", &["near"]),
        ("*", "shop", "shop", &["every"]),
        ("a.com", "else", "nowhere", &[]),
    ] {
        let found = rules.of_host(host, client, home, &hosts);
        assert_eq!(found.iter().map(|rule| &*rule.name).collect::<Vec<_>>(), expected, "{host} {client} {home}");
    }
    let named: Vec<&str> = rules.named("web.shop.svc.cluster.local").map(|rule| &*rule.name).collect();
    assert_eq!(named, ["own", "full", "short", "root", "wild", "near", "far", "every"]);
}

#[test]
fn what_has_not_changed_is_not_made_again() {
    let text = |labels: &str| {
        format!(
            "{}{}",
            pod_in("shop", "web-1", "198.18.0.1", labels, ""),
            pod_in("shop", "web-2", "198.18.0.2", "a: b", "")
        )
    };
    let mut join = Join::default();
    let first = objects(&text("app: a"));
    let second = kept(objects(&text("app: c")), &first);
    let (one, two) = (join.build(first, &Settings::default()), join.build(second, &Settings::default()));
    let same = |name: &str| Arc::ptr_eq(&one.workloads[name], &two.workloads[name]);
    assert!(!same("Kubernetes//Pod/shop/web-1") && same("Kubernetes//Pod/shop/web-2"));
}
