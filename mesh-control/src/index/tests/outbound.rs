//! Who may reach what nobody is known to have: what the mesh settings and Sidecars make of each pod, as agents work it out of what they are told.

use super::*;

fn settings(mode: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: undermesh, namespace: undermesh-system}}\ndata: {{mesh: \"outboundTrafficPolicy: {{mode: {mode}}}\"}}\n"
    )
}

fn sidecar(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

const ONLY: &str = "{outboundTrafficPolicy: {mode: REGISTRY_ONLY}}";
const ANY: &str = "{outboundTrafficPolicy: {mode: ALLOW_ANY}}";

/// Who says of each of the three pods that only the registry counts, who of a pod of `shop` that is not known yet, and what agents are told for it.
fn told(text: &str) -> ([Option<String>; 4], Vec<String>, Vec<String>) {
    let pods = [("shop", "web-1", "app: web"), ("shop", "db-1", "app: db"), ("bank", "web-1", "app: web")];
    let pod = |(at, (namespace, name, labels)): (usize, &(&str, &str, &str))| {
        pod_in(namespace, name, &format!("198.18.0.{}", at + 1), labels, "")
    };
    let all: String = pods.iter().enumerate().map(pod).collect();
    let view = view(&format!("{NODE}{all}{text}"));
    let mut store = Store::new();
    let changes = view.outbound.iter().map(|(name, said)| {
        let scope = mesh_core::outbound::Scope::parse(name).expect("a scope");
        Change::Outbound(scope, (**said).clone())
    });
    let known = view.workloads.values().map(|workload| Change::Workload((**workload).clone()));
    let snapshot = store.apply(known.chain(changes).collect()).snapshot;
    let of = |namespace: &str, uid: &str| {
        let said = snapshot.outbound(&namespace.into(), &uid.into());
        said.filter(|said| said.registry_only).map(|said| said.origin.to_string())
    };
    let [web, db, other] = pods.map(|(namespace, name, _)| {
        let workload = view.workloads.values().find(|w| w.namespace == namespace && w.name == name).expect("a pod");
        of(namespace, &workload.uid)
    });
    let of = [web, db, other, of("shop", "Kubernetes//Pod/shop/new")];
    let of_sidecars = view.problems.iter().filter(|(key, _)| key.kind == Kind::Sidecar);
    let problems = of_sidecars.map(|(key, problem)| format!("{} {}", key.name, problem.message)).collect();
    (of, view.outbound.keys().map(ToString::to_string).collect(), problems)
}

#[test]
fn features_SB_3_the_most_specific_sidecar_counts() {
    let by = |who: &str| Some(who.to_owned());
    let (mesh, shop) = (by("the mesh settings"), by("Sidecar shop/a"));
    let web = "{workloadSelector: {labels: {app: web}}, outboundTrafficPolicy: {mode: REGISTRY_ONLY}}";
    let free = web.replace("REGISTRY_ONLY", "ALLOW_ANY");
    let nobody = web.replace("web", "nobody");
    let silent = "{workloadSelector: {labels: {app: nobody}}}";
    let unread = by("Sidecar shop/a, which cannot be read");
    let bad = |selector: &str| match selector {
        "" => "{outboundTrafficPolicy: {mode: REGISTRY}}".to_owned(),
        labels => format!("{{workloadSelector: {labels}, outboundTrafficPolicy: {{mode: REGISTRY}}}}"),
    };
    let root = || sidecar("undermesh-system", "all", ONLY);
    for (what, text, expected, names) in [
        ("nothing", String::new(), [None, None, None, None], 0),
        ("any", settings("ALLOW_ANY"), [None, None, None, None], 0),
        ("the settings", settings("REGISTRY_ONLY"), [mesh.clone(), mesh.clone(), mesh.clone(), mesh.clone()], 1),
        ("a namespace", sidecar("shop", "a", ONLY), [shop.clone(), shop.clone(), None, shop.clone()], 1),
        (
            "no mode is the strict one",
            sidecar("shop", "a", "{outboundTrafficPolicy: {}}"),
            [shop.clone(), shop.clone(), None, shop.clone()],
            1,
        ),
        (
            "a namespace that may",
            settings("REGISTRY_ONLY") + &sidecar("shop", "a", ANY),
            [None, None, mesh.clone(), None],
            2,
        ),
        ("some pods", sidecar("shop", "a", web), [shop.clone(), None, None, shop.clone()], 2),
        (
            "some pods that may",
            sidecar("shop", "a", ONLY) + &sidecar("shop", "b", &free),
            [None, shop.clone(), None, shop.clone()],
            2,
        ),
        (
            "the root",
            root(),
            [
                by("Sidecar undermesh-system/all"),
                by("Sidecar undermesh-system/all"),
                by("Sidecar undermesh-system/all"),
                by("Sidecar undermesh-system/all"),
            ],
            1,
        ),
        (
            "not the root",
            root() + &sidecar("shop", "a", ANY),
            [None, None, by("Sidecar undermesh-system/all"), None],
            2,
        ),
        // Before there is a pod that it selects nobody knows whether a new one is.
        ("nobody yet", sidecar("shop", "a", &nobody), [None, None, None, shop.clone()], 1),
        (
            "nobody yet, who may",
            sidecar("shop", "a", &nobody.replace("REGISTRY_ONLY", "ALLOW_ANY")),
            [const { None }; 4],
            0,
        ),
        ("nobody yet, unread", sidecar("shop", "a", &bad("{labels: {app: x}}")), [None, None, None, unread.clone()], 1),
        (
            "nobody yet, as the mesh",
            settings("REGISTRY_ONLY") + &sidecar("shop", "a", ANY) + &sidecar("shop", "b", silent),
            [None, None, mesh.clone(), mesh.clone()],
            3,
        ),
        (
            "nobody yet, where nobody may",
            sidecar("shop", "a", ONLY) + &sidecar("shop", "b", &nobody),
            [shop.clone(), shop.clone(), None, shop.clone()],
            1,
        ),
        // One that says nothing leaves it to the mesh settings, as in Istio.
        (
            "one without",
            root() + &sidecar("shop", "a", "{}"),
            [None, None, by("Sidecar undermesh-system/all"), None],
            2,
        ),
        // One that cannot be read may have said it.
        ("unread", sidecar("shop", "a", &bad("")), [unread.clone(), unread.clone(), None, unread.clone()], 1),
        (
            "unread, of some pods",
            sidecar("shop", "a", &bad("{labels: {app: web}}")),
            [unread.clone(), None, None, unread.clone()],
            2,
        ),
        (
            "unread, of unknown pods",
            sidecar("shop", "a", &bad("[x]")),
            [unread.clone(), unread.clone(), None, unread.clone()],
            1,
        ),
        (
            "unread, and one that may",
            sidecar("shop", "a", &bad("")) + &sidecar("shop", "b", ANY),
            [unread.clone(), unread.clone(), None, unread.clone()],
            1,
        ),
        ("an Istio", sidecar("shop", "a", ONLY) + super::settings::ISTIOD, [None, None, None, None], 0),
    ] {
        let (of, told, _) = told(&text);
        assert_eq!((of, told.len()), (expected, names), "{what}: {told:?}");
    }
}

#[test]
fn what_does_not_count_is_told() {
    let idle = "known, not in force: agents know all services, and it has no outboundTrafficPolicy";
    assert_eq!(told(&sidecar("shop", "a", "{}")).2, [format!("a {idle}")]);
    assert_eq!(told(&sidecar("shop", "a", ONLY)).2, [""; 0]);
    let nobody = "{workloadSelector: {labels: {app: nobody}}, outboundTrafficPolicy: {mode: REGISTRY_ONLY}}";
    assert_eq!(told(&sidecar("shop", "a", nobody)).2, [""; 0]);
    let (of, _, problems) = told(&(sidecar("shop", "a", ANY) + &sidecar("shop", "b", ONLY)));
    assert_eq!(of, [None, None, None, None]);
    assert_eq!(problems, ["b a is for the whole namespace, too, and is older: it counts"]);
}
