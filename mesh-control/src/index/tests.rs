//! Manifests in, what agents get out: workloads, services, and policies judged by mesh-core itself.

use std::collections::BTreeMap;
use std::net::IpAddr;

use mesh_core::policy::{Action, Policy, Scope, StringMatch};
use mesh_core::service::{HealthPolicy, Mode, Scope as Locality};
use mesh_core::workload::{Health, NetworkMode, TunnelProtocol, WorkloadType};
use mesh_core::{Change, Connection, Decision, Identity, Store, authorize};

use super::{Settings, View, build};
use crate::manifest::file;
use crate::resource::catalog::{Catalog, Scan};

/// The view of some manifests.
fn view(text: &str) -> View {
    let read = file::read("a.yaml", text.as_bytes());
    let scan = Scan { found: read.found.into_iter().map(|(f, _)| f).collect(), ..Scan::default() };
    build(&Catalog::default().apply(&scan).0, &Settings::default())
}

fn pod(name: &str, more: &str) -> String {
    pod_in("shop", name, "198.18.0.1", "app: web", more)
}

fn pod_in(namespace: &str, name: &str, address: &str, labels: &str, more: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: {namespace}\n  labels: {{{labels}}}\n  annotations: {{ambient.istio.io/redirection: enabled}}\nspec:\n  nodeName: n1\n  serviceAccountName: web\n  containers:\n  - name: c\n    ports: [{{containerPort: 8080, name: http}}, {{containerPort: 53, name: dns, protocol: UDP}}]\nstatus: {{phase: Running, podIP: {address}, conditions: [{{type: Ready, status: \"True\"}}]}}\n{more}"
    )
}

const NODE: &str = "---\napiVersion: v1\nkind: Node\nmetadata:\n  name: n1\n  labels: {topology.kubernetes.io/region: r, topology.kubernetes.io/zone: z, topology.istio.io/subzone: s}\n";

fn service(name: &str, spec: &str) -> String {
    format!("---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n")
}

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
fn services_and_their_endpoints() {
    let table: &[(&str, &[u16])] = &[
        ("{selector: {app: web}, ports: [{port: 80, targetPort: http}]}", &[80, 8080]),
        ("{selector: {app: web}, ports: [{port: 80, targetPort: 81}]}", &[80, 81]),
        ("{selector: {app: web}, ports: [{port: 80}]}", &[80, 80]),
        ("{selector: {app: web}, ports: [{port: 80, targetPort: '81'}]}", &[80, 81]),
        ("{selector: {app: web}, ports: [{port: 80, targetPort: absent}]}", &[]),
        (
            "{selector: {app: web}, ports: [{port: 53, targetPort: dns, protocol: UDP}, {port: 54, targetPort: dns}]}",
            &[],
        ),
    ];
    for (spec, expected) in table {
        let view = view(&format!("{}{}", pod("web-1", ""), service("web", spec)));
        let ports: Vec<u16> = view
            .workloads
            .values()
            .flat_map(|w| w.services.values())
            .flatten()
            .flat_map(|p| [p.service_port, p.target_port])
            .collect();
        assert_eq!(&ports, expected, "{spec}");
        assert_eq!(view.workloads.values().next().unwrap().services.len(), 1, "{spec}");
    }
    for other in [
        "{selector: {app: other}, ports: [{port: 80}]}",
        "{ports: [{port: 80}]}",
        "{type: ExternalName, externalName: a.b}",
    ] {
        let view = view(&format!("{}{}", pod("web-1", ""), service("web", other)));
        assert!(view.workloads.values().next().unwrap().services.is_empty(), "{other}");
    }
    // A selector selects in its own namespace only.
    let view = view(&format!(
        "{}{}",
        pod_in("other", "web-1", "198.18.0.1", "app: web", ""),
        service("web", "{selector: {app: web}, ports: [{port: 80}]}")
    ));
    assert!(view.workloads.values().next().unwrap().services.is_empty());
}

#[test]
fn features_L4_15_which_endpoints_are_preferred() {
    let balancing = |spec: &str, annotation: &str, namespace: &str| {
        let namespace = format!(
            "---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, annotations: {{networking.istio.io/traffic-distribution: '{namespace}'}}}}\n"
        );
        let service = service("web", spec).replace(
            "namespace: shop}",
            &format!("namespace: shop, annotations: {{networking.istio.io/traffic-distribution: '{annotation}'}}}}"),
        );
        let view = view(&format!("{namespace}{service}"));
        let balancing = view.services.values().next().unwrap().load_balancing.clone();
        (balancing.preferences, balancing.mode, balancing.health)
    };
    let zone = vec![Locality::Network, Locality::Region, Locality::Zone];
    let node = vec![Locality::Network, Locality::Region, Locality::Zone, Locality::Subzone, Locality::Node];
    let ready = HealthPolicy::OnlyHealthy;
    assert_eq!(balancing("{ports: [{port: 1}]}", "", ""), (vec![], Mode::default(), ready));
    assert_eq!(balancing("{trafficDistribution: PreferClose}", "", ""), (zone.clone(), Mode::Failover, ready));
    assert_eq!(balancing("{trafficDistribution: PreferSameZone}", "", ""), (zone.clone(), Mode::Failover, ready));
    assert_eq!(balancing("{trafficDistribution: PreferSameNode}", "", ""), (node.clone(), Mode::Failover, ready));
    assert_eq!(balancing("{}", "preferclose", ""), (zone.clone(), Mode::Failover, ready));
    assert_eq!(balancing("{}", "", "PreferSameNode"), (node.clone(), Mode::Failover, ready));
    assert_eq!(balancing("{}", "PreferClose", "PreferSameNode"), (zone.clone(), Mode::Failover, ready));
    assert_eq!(balancing("{trafficDistribution: PreferSameNode}", "PreferClose", ""), (node, Mode::Failover, ready));
    assert_eq!(
        balancing("{internalTrafficPolicy: Local, trafficDistribution: PreferClose}", "", ""),
        (vec![Locality::Node], Mode::Strict, ready)
    );
    assert_eq!(
        balancing("{publishNotReadyAddresses: true}", "", ""),
        (vec![], Mode::default(), HealthPolicy::AllowAll)
    );
}

#[test]
fn addresses_of_services() {
    let addresses = |spec: &str| {
        let view = view(&service("web", spec));
        let service = view.services.values().next().unwrap().clone();
        (
            service.addresses.iter().map(|a| a.cidr.to_string()).collect::<Vec<_>>(),
            service.is_headless(),
            service.hostname.to_string(),
        )
    };
    let host = "web.shop.svc.cluster.local".to_owned();
    assert_eq!(
        addresses("{clusterIP: 198.18.200.1, clusterIPs: [198.18.200.1, 'fd00:198::1']}"),
        (vec!["198.18.200.1/32".into(), "fd00:198::1/128".into()], false, host.clone())
    );
    assert_eq!(addresses("{clusterIP: None}"), (vec![], true, host.clone()));
    assert_eq!(addresses("{clusterIP: bad}"), (vec![], true, host));
}

#[test]
fn endpoint_slices_serve_services_without_selector() {
    let slice = "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: ext-1, namespace: shop, labels: {kubernetes.io/service-name: ext}}\naddressType: IPv4\nports: [{port: 5432, name: pg}]\nendpoints:\n- {addresses: [198.18.9.1], conditions: {ready: false}, zone: z2}\n- {addresses: [198.18.0.1], targetRef: {kind: Pod, name: web-1}}\n- {addresses: [198.18.0.9]}\n- {addresses: [198.18.0.2], targetRef: {kind: Pod, name: other-1, namespace: other}}\n";
    let foreign = pod_in("other", "x", "198.18.0.9", "app: x", "");
    let view = view(&format!(
        "{NODE}{}{foreign}{slice}{}",
        pod("web-1", ""),
        service("ext", "{ports: [{port: 1, name: pg}]}")
    ));
    let members: Vec<String> = view
        .workloads
        .values()
        .filter(|w| !w.services.is_empty())
        .map(|w| format!("{} {:?} {}", w.uid, w.health, w.locality.zone))
        .collect();
    assert_eq!(
        members,
        [
            "Kubernetes//Pod/shop/web-1 Healthy z",
            "Kubernetes/discovery.k8s.io/EndpointSlice/shop/ext-1/198.18.9.1 Unhealthy z2"
        ]
    );
    assert_eq!(view.problems.len(), 1, "{:?}", view.problems);
}

/// Who may connect to a pod of `shop` with label `app: web`, at which port.
fn allowed(view: &View, from: Option<&str>, port: u16) -> bool {
    let mut store = Store::new();
    let changes = view.workloads.values().cloned().map(Change::Workload);
    let applied = store.apply(changes.chain(view.policies.values().cloned().map(Change::Policy)).collect());
    let workload = applied.snapshot.workload_by_uid("Kubernetes//Pod/shop/web-1").unwrap().clone();
    let source: Option<Identity> = from.map(|f| f.parse().unwrap());
    let connection = Connection {
        source_ip: "198.18.7.7".parse().unwrap(),
        source: source.as_ref(),
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
            "  action: DENY\n  rules:\n  - when: [{key: 'request.headers[x]', values: [y]}, {key: destination.port, values: ['80']}]",
            [false, true, false, false],
        ),
        ("shop", "  rules:\n  - when: [{key: 'request.auth.claims[x]', values: [y]}]", [false; 4]),
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
        let policies: BTreeMap<String, Policy> = view.policies.into_iter().map(|(n, p)| (n.to_string(), p)).collect();
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
    assert!(!strict(&peer("other", "a", "{mtls: {mode: Strict}}")));
    assert!(strict(&peer("undermesh-system", "a", "{mtls: {mode: STRICT}}")));
}

#[test]
fn placements_are_pods_that_live_on_a_node() {
    let places = |from: &str, to: &str| {
        view(&pod("web-1", "").replace(from, to))
            .placements
            .into_iter()
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
