//! Pods become workloads: names, states, addresses, places.

use super::*;

#[test]
fn a_pod_becomes_a_workload() {
    let view = view(&format!(
        "{NODE}{}{}",
        pod("web-1", ""),
        service("web", "{selector: {app: web}, ports: [{port: 80, targetPort: http}]}")
    ));
    let workload = &view.workloads["Kubernetes//Pod/shop/web-1"];
    assert_eq!(workload.identity().to_string(), "spiffe://cluster.local/ns/shop/sa/web");
    assert_eq!(workload.addresses, ["198.18.0.1".parse::<IpAddr>().unwrap()]);
    assert_eq!(workload.protocol, TunnelProtocol::Hbone);
    assert_eq!((workload.node.as_str(), workload.cluster_id.as_str()), ("n1", "Kubernetes"));
    assert_eq!((workload.canonical_name.as_str(), workload.canonical_revision.as_str()), ("web", "latest"));
    assert_eq!((workload.workload_name.as_str(), workload.workload_type), ("web-1", WorkloadType::Pod));
    let locality = &workload.locality;
    assert_eq!((locality.region.as_str(), locality.zone.as_str(), locality.subzone.as_str()), ("r", "z", "s"));
    assert_eq!(
        (workload.health, workload.network_mode, workload.native_tunnel),
        (Health::Healthy, NetworkMode::Standard, false)
    );
    let services: Vec<String> =
        workload.services.iter().map(|(k, p)| format!("{k} {}->{}", p[0].service_port, p[0].target_port)).collect();
    assert_eq!(services, ["shop/web.shop.svc.cluster.local 80->8080"]);
    assert_eq!(view.problems, []);
}

#[test]
fn owners_give_workloads_their_names() {
    let owned = |labels: &str, owner: &str, name: &str| {
        let text = pod_in("shop", name, "198.18.0.1", labels, "");
        let owner = if owner.is_empty() {
            String::new()
        } else {
            format!("  ownerReferences: [{{{owner}, controller: true, apiVersion: v1, uid: u}}]\n")
        };
        let view = view(&text.replace("spec:\n", &format!("{owner}spec:\n")));
        let workload = view.workloads.values().next().unwrap().clone();
        (
            workload.workload_name.to_string(),
            workload.workload_type,
            workload.canonical_name.to_string(),
            workload.canonical_revision.to_string(),
        )
    };
    let is = |name: &str, kind, canonical: &str, revision: &str| {
        (name.to_owned(), kind, canonical.to_owned(), revision.to_owned())
    };
    let hash = "pod-template-hash: abc";
    assert_eq!(
        owned(hash, "kind: ReplicaSet, name: web-abc", "web-abc-x"),
        is("web", WorkloadType::Deployment, "web", "latest")
    );
    assert_eq!(owned(hash, "", "my-web-abc-x7"), is("my-web", WorkloadType::Deployment, "my-web", "latest"));
    assert_eq!(
        owned("a: b", "kind: ReplicaSet, name: web-abc", "web-abc-x"),
        is("web-abc-x", WorkloadType::Pod, "web-abc-x", "latest")
    );
    assert_eq!(
        owned("a: b", "kind: Job, name: backup-28812345", "backup-28812345-q"),
        is("backup", WorkloadType::CronJob, "backup", "latest")
    );
    assert_eq!(
        owned("a: b", "kind: Job, name: backup", "backup-q"),
        is("backup", WorkloadType::Job, "backup", "latest")
    );
    assert_eq!(owned("a: b", "kind: StatefulSet, name: db", "db-0"), is("db-0", WorkloadType::Pod, "db-0", "latest"));
    assert_eq!(
        owned("app: a, app.kubernetes.io/name: b, version: v1, app.kubernetes.io/version: v2", "", "p"),
        is("p", WorkloadType::Pod, "b", "v2")
    );
    assert_eq!(
        owned(
            "app: a, service.istio.io/canonical-name: c, service.istio.io/canonical-revision: r, service.istio.io/workload-name: w",
            "",
            "p"
        ),
        is("w", WorkloadType::Pod, "c", "r")
    );
}

#[test]
fn states_of_pods() {
    let one = |from: &str, to: &str| {
        let view = view(&pod("web-1", "").replace(from, to));
        view.workloads.values().next().map(|w| (w.health, w.protocol, w.network_mode))
    };
    let standard = NetworkMode::Standard;
    assert_eq!(one("x", "x"), Some((Health::Healthy, TunnelProtocol::Hbone, standard)));
    assert_eq!(one("phase: Running", "phase: Succeeded"), None);
    assert_eq!(one("phase: Running", "phase: Failed"), None);
    assert_eq!(
        one("status: \"True\"", "status: \"False\""),
        Some((Health::Unhealthy, TunnelProtocol::Hbone, standard))
    );
    assert_eq!(
        one(", conditions: [{type: Ready, status: \"True\"}]", ""),
        Some((Health::Healthy, TunnelProtocol::Hbone, standard))
    );
    assert_eq!(one("podIP: 198.18.0.1", "podIP: ''"), None);
    assert_eq!(
        one("redirection: enabled", "redirection: pending"),
        Some((Health::Healthy, TunnelProtocol::None, standard))
    );
    assert_eq!(
        one("nodeName: n1", "hostNetwork: true"),
        Some((Health::Healthy, TunnelProtocol::None, NetworkMode::HostNetwork))
    );
    let terminating = "name: web-1\n  deletionTimestamp: \"2026-11-21T00:00:00Z\"";
    assert_eq!(one("name: web-1", terminating), Some((Health::Unhealthy, TunnelProtocol::Hbone, standard)));
}

#[test]
fn hardening_F10_pods_of_nodes_that_are_not_heard_of_serve_where_nobody_else_does() {
    let service = service("web", "{selector: {app: web}, clusterIP: 198.19.0.1, ports: [{port: 80}]}");
    let second = pod_in("shop", "web-2", "198.18.0.2", "app: web", "");
    let unheard = |pod: &str, more: &str| {
        let conditions = format!("status: \"False\"}}, {{type: ContainersReady, status: \"True\"{more}");
        pod.replace("status: \"True\"", &conditions)
    };
    let gate = |pod: &str| pod.replace("  nodeName: n1", "  nodeName: n1\n  readinessGates: [{conditionType: g}]");
    let (one, not_ready) = (pod("web-1", ""), second.replace("status: \"True\"", "status: \"False\""));
    let ended = one.replace("name: web-1", "name: web-1\n  deletionTimestamp: \"2026-11-21T00:00:00Z\"");
    for (what, pods, expected) in [
        ("alone", unheard(&one, ""), vec![true]),
        ("beside one that is ready", format!("{}{second}", unheard(&one, "")), vec![false, true]),
        ("beside one that is not", format!("{}{not_ready}", unheard(&one, "")), vec![true, false]),
        ("all", format!("{}{}", unheard(&one, ""), unheard(&second, "")), vec![true, true]),
        ("it is to end", unheard(&ended, ""), vec![false]),
        ("it waits at a gate", gate(&unheard(&one, "")), vec![false]),
        ("it has passed a gate", gate(&unheard(&one, "}, {type: g, status: \"True\"")), vec![true]),
        ("its containers are not ready", one.replace("status: \"True\"", "status: \"False\""), vec![false]),
        ("of no service", unheard(&one, "").replace("app: web", "app: x"), vec![false]),
    ] {
        let view = view(&format!("{NODE}{service}{pods}"));
        let healthy: Vec<bool> = view.workloads.values().map(|w| w.health == Health::Healthy).collect();
        assert_eq!(healthy, expected, "{what}");
    }
    // A service of one version has nobody else; the one of all has.
    let own = super::service("web-v1", "{selector: {version: v1}, clusterIP: 198.19.0.2, ports: [{port: 80}]}");
    let first = unheard(&pod_in("shop", "web-1", "198.18.0.1", "app: web, version: v1", ""), "");
    let view = view(&format!("{NODE}{service}{own}{first}{second}"));
    let healthy: Vec<bool> = view.workloads.values().map(|w| w.health == Health::Healthy).collect();
    assert_eq!(healthy, [false, true]);
}

#[test]
fn hardening_F21_an_address_has_one_owner() {
    // Of two pods with one address the one that stays has it; of two that stay, the younger.
    let created = |time: &str| format!("name: b\n  creationTimestamp: \"{time}\"");
    let both = format!(
        "{}{}",
        pod_in("shop", "a", "198.18.0.1", "app: a", "")
            .replace("name: a\n", "name: a\n  creationTimestamp: \"2026-01-01T00:00:00Z\"\n"),
        pod_in("shop", "b", "198.18.0.1", "app: b", "").replacen("name: b", &created("2026-02-01T00:00:00Z"), 1)
    );
    let owners = |text: &str| view(text).workloads.keys().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(owners(&both), ["Kubernetes//Pod/shop/b"]);
    assert_eq!(view(&both).problems.len(), 2 + 1, "both nodes unknown, one address lost");
    let dying = both.replacen("name: b", "name: b\n  deletionTimestamp: \"2026-03-01T00:00:00Z\"", 1);
    assert_eq!(owners(&dying), ["Kubernetes//Pod/shop/a"]);
    let ended = both.replace("phase: Running", "phase: Succeeded");
    assert_eq!(owners(&ended), Vec::<String>::new());
}

#[test]
fn placements_are_pods_that_live_on_a_node() {
    let places = |from: &str, to: &str| {
        view(&pod("web-1", "").replace(from, to))
            .placements
            .iter()
            .map(|(n, s, a)| format!("{n} {s} {a}"))
            .collect::<Vec<_>>()
    };
    assert_eq!(places("x", "x"), ["n1 shop web"]);
    assert_eq!(places("phase: Running", "phase: Succeeded"), Vec::<String>::new());
    assert_eq!(places("nodeName: n1", "nodeName: ''"), Vec::<String>::new());
    assert_eq!(places("nodeName: n1", "nodeName: n1\n  hostNetwork: true"), Vec::<String>::new());
    assert_eq!(
        places("podIP: 198.18.0.1", "podIP: ''"),
        ["n1 shop web"],
        "a pod needs its certificate before anybody else knows it"
    );
}
