//! What is taken from the last join is what a fresh one would make.

use super::*;
use crate::index::Join;
use crate::resource::Objects;

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
    let (mut join, mut last) = (Join::default(), Objects::default());
    for text in there_and_back {
        let now = kept(objects(text), &last);
        let fresh = build(&now, &Settings::default());
        last = now.clone();
        let view = join.build(now, &Settings::default());
        assert_eq!(view.workloads, fresh.workloads, "{text}");
        assert_eq!((&view.services, &view.policies), (&fresh.services, &fresh.policies), "{text}");
        assert_eq!((&view.placements, &view.nodes), (&fresh.placements, &fresh.nodes), "{text}");
        assert_eq!((&view.problems, &view.namespaces), (&fresh.problems, &fresh.namespaces), "{text}");
    }
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
