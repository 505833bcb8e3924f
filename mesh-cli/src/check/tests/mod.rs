//! Set-ups that are broken in one way each: the check that finds it, where, why and what to do. A cluster in which nothing is wrong is the
//! beginning of each; whatever else complains is a false alarm and fails the test.

mod broken;

use std::collections::BTreeSet;

use serde_json::{Value, json};

use self::broken::BROKEN;
use super::facts::{CONTROL, CONTROL_PLANE, Snapshot, Words};
use super::{CHECKS, judge};

/// Of a root that ends in 2126. Made once with openssl; its key was thrown away.
const ROOT: &str = include_str!("root.pem");
/// 2026-11-21.
const NOW: i64 = 1_795_276_800;

/// A cluster of two nodes with a mesh and one namespace in it.
fn healthy() -> Snapshot {
    let mut snapshot =
        Snapshot { namespace: "undermesh-system".into(), version: "0.1.0".into(), now: NOW, ..Snapshot::default() };
    snapshot.server_time = Some(NOW);
    snapshot.kubernetes = "v1.34.2".into();
    snapshot.nodes = list(["n1", "n2"].map(|name| {
        json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/os": "linux"}},
            "status": {
                "conditions": [{"type": "Ready", "status": "True"}],
                "nodeInfo": {"kernelVersion": "6.8.0-41-generic", "osImage": "Ubuntu", "operatingSystem": "linux", "architecture": "amd64"},
            },
        })
    }));
    snapshot.node_leases = list(
        ["n1", "n2"]
            .map(|name| json!({"metadata": {"name": name}, "spec": {"renewTime": "2026-11-21T15:59:55.000000Z"}})),
    );
    snapshot.cgroups = [("n1".into(), 2), ("n2".into(), 2)].into();
    snapshot.namespaces = list([
        json!({"metadata": {"name": "undermesh-system", "labels": {"pod-security.kubernetes.io/enforce": "privileged", "istio.io/dataplane-mode": "none"}}}),
        json!({"metadata": {"name": "kube-system"}}),
        json!({"metadata": {"name": "shop", "labels": {"istio.io/dataplane-mode": "ambient"}}}),
    ]);
    snapshot.pods = list([
        pod("undermesh-system", "mesh-control-a", "mesh-control", "n1"),
        pod("undermesh-system", "mesh-control-b", "mesh-control", "n2"),
        agent("mesh-agent-1", "n1"),
        agent("mesh-agent-2", "n2"),
        web(),
    ]);
    snapshot.endpoints = list([json!({"endpoints": [{"addresses": ["10.244.1.2"], "conditions": {"ready": true}}]})]);
    let template = |app: &str| {
        json!({"spec": {
            "containers": [{"name": app, "image": format!("undermesh/{app}:0.1.0")}],
            "tolerations": [{"operator": "Exists"}], "nodeSelector": {"kubernetes.io/os": "linux"},
        }})
    };
    let workload = |app: &str, status: Value| {
        json!({
            "metadata": {"namespace": "undermesh-system", "name": app, "generation": 1},
            "spec": {"replicas": 2, "selector": {"matchLabels": {"app": app}}, "template": template(app)}, "status": status,
        })
    };
    snapshot.deployments = list([workload(
        "mesh-control",
        json!({"observedGeneration": 1, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}),
    )]);
    snapshot.daemon_sets = list([workload(
        "mesh-agent",
        json!({"observedGeneration": 1, "desiredNumberScheduled": 2, "updatedNumberScheduled": 2, "numberAvailable": 2}),
    )]);
    snapshot.roots = list(["undermesh-system", "shop"].map(root));
    snapshot.definitions = list([definition("security.istio.io", "authorizationpolicies", "v1")]);
    snapshot.webhooks = list([webhook(ROOT, "Fail")]);
    snapshot.diagnoses = Some(Vec::new());
    snapshot
}

fn list<T: serde::de::DeserializeOwned, const N: usize>(objects: [Value; N]) -> Vec<T> {
    objects.into_iter().map(|object| serde_json::from_value(object).unwrap()).collect()
}

fn pod(namespace: &str, name: &str, app: &str, node: &str) -> Value {
    json!({
        "metadata": {"namespace": namespace, "name": name, "uid": name, "labels": {"app": app}, "annotations": {},
            "creationTimestamp": "2026-11-21T12:00:00Z", "ownerReferences": [{"kind": "ReplicaSet", "name": "r"}]},
        "spec": {"nodeName": node, "containers": [{"name": app, "image": format!("undermesh/{app}:0.1.0")}]},
        "status": {"phase": "Running", "podIP": "10.244.1.9", "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{"name": app, "ready": true, "state": {"running": {}}}]},
    })
}

fn agent(name: &str, node: &str) -> Value {
    let mut agent = pod("undermesh-system", name, "mesh-agent", node);
    agent["spec"]["hostNetwork"] = json!(true);
    agent
}

fn web() -> Value {
    let mut web = pod("shop", "web", "web", "n1");
    web["metadata"]["annotations"] = json!({"ambient.istio.io/redirection": "enabled"});
    web
}

fn root(namespace: &str) -> Value {
    json!({"metadata": {"namespace": namespace, "name": "undermesh-root-cert"}, "data": {"root-cert.pem": ROOT}})
}

/// The ConfigMap of a Cilium that is this exclusive.
fn cilium(exclusive: &str) -> Value {
    json!({"metadata": {"namespace": "kube-system", "name": "cilium-config"}, "data": {"cni-exclusive": exclusive}})
}

fn definition(group: &str, plural: &str, version: &str) -> Value {
    json!({"metadata": {"name": format!("{plural}.{group}")}, "spec": {"group": group, "versions": [{"name": version, "served": true}]}})
}

fn webhook(bundle: &str, policy: &str) -> Value {
    use base64::Engine as _;
    let bundle = base64::engine::general_purpose::STANDARD.encode(bundle);
    let service = json!({"namespace": "undermesh-system", "name": "mesh-control"});
    json!({"metadata": {"name": "undermesh"}, "webhooks": [{"name": "validate.undermesh.io", "failurePolicy": policy,
        "clientConfig": {"caBundle": bundle, "service": service}}]})
}

/// A pod that is not ready, because of its only container.
fn broken(mut pod: Value, phase: &str, container: Value) -> Value {
    pod["status"] = json!({"phase": phase, "podIP": "10.244.1.9", "containerStatuses": [container]});
    pod
}

fn waits(reason: &str) -> Value {
    json!({"name": "c", "state": {"waiting": {"reason": reason, "message": "it is so"}}})
}

fn crashed(code: i64) -> Value {
    json!({"name": "c", "state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {"terminated": {"exitCode": code, "reason": "Error"}}})
}

fn one<T: serde::de::DeserializeOwned>(object: Value) -> T {
    serde_json::from_value(object).unwrap()
}

/// The agent of n2 ends with a code and these words.
fn agent_ends(snapshot: &mut Snapshot, code: i64, log: &str) {
    snapshot.pods[3] = one(broken(agent("mesh-agent-2", "n2"), "Running", crashed(code)));
    snapshot.agents.insert("mesh-agent-2".into(), Words { readiness: None, log: log.into() });
}

fn event(reason: &str, pod: &str, message: &str) -> crate::view::Event {
    one(json!({"type": "Warning", "reason": reason, "message": message,
        "involvedObject": {"kind": "Pod", "namespace": "shop", "name": pod, "uid": pod}}))
}

#[test]
fn nothing_is_wrong_with_a_cluster_in_which_nothing_is_wrong() {
    let findings: Vec<_> = judge(&healthy(), false).checks.into_iter().flat_map(|check| check.findings).collect();
    assert_eq!(findings, []);
}

#[test]
fn agents_of_an_istiod_need_no_control_plane_of_ours() {
    let mut snapshot = healthy();
    let istiod = one(json!({"metadata": {"namespace": "istio-system", "name": "istiod", "labels": {"app": "istiod"}}}));
    snapshot.deployments = vec![istiod];
    (snapshot.roots, snapshot.endpoints, snapshot.webhooks, snapshot.diagnoses) = Default::default();
    snapshot.pods.retain(|pod| pod.metadata.label("app") != CONTROL);
    let found = |snapshot: &Snapshot| -> Vec<String> {
        judge(snapshot, false).checks.into_iter().flat_map(|check| check.findings).map(|f| f.object).collect()
    };
    assert!(found(&snapshot).iter().any(|object| object == "namespace undermesh-system"), "{:?}", found(&snapshot));
    let annotations = &mut snapshot.daemon_sets[0].metadata.annotations;
    annotations.insert(CONTROL_PLANE.into(), "istiod.istio-system.svc:15012".into());
    assert_eq!(found(&snapshot), Vec::<String>::new());
}

#[test]
fn at_least_20_broken_set_ups_are_explained() {
    let set_ups: BTreeSet<&str> = BROKEN.iter().map(|row| row.0).collect();
    assert_eq!(set_ups.len(), BROKEN.len(), "two rows have one name");
    assert!(set_ups.len() >= 20, "{} set-ups", set_ups.len());
    // That each is found, by these checks alone, with its reason and its remedy, is what the next test shows.
    for (what, _, ids, object, why, fix) in BROKEN {
        assert!(!ids.is_empty() && [object, why, fix].iter().all(|words| !words.is_empty()), "{what}");
    }
}

#[test]
fn every_broken_set_up_is_explained_with_its_fix() {
    for (what, damage, ids, object, why, fix) in BROKEN {
        let mut snapshot = healthy();
        damage(&mut snapshot);
        let report = judge(&snapshot, false);
        let found: Vec<_> = report.checks.iter().filter(|check| !check.findings.is_empty()).collect();
        let named: Vec<_> = found.iter().map(|check| check.id).collect();
        assert_eq!(named, *ids, "{what}: {found:#?}");
        let fits = found
            .iter()
            .flat_map(|check| &check.findings)
            .any(|finding| finding.object == *object && finding.why.contains(why) && finding.fix.contains(fix));
        assert!(fits, "{what}: {found:#?}");
    }
}

#[test]
fn every_check_has_its_set_up() {
    let broken: BTreeSet<&str> = BROKEN.iter().flat_map(|row| row.2.iter().copied()).collect();
    let all: BTreeSet<&str> = CHECKS.iter().map(|(_, _, id, ..)| *id).collect();
    assert_eq!(broken, all);
    assert_eq!(all.len(), CHECKS.len(), "two checks have one name");
}

#[test]
fn a_cluster_without_a_mesh_is_only_asked_what_an_installation_needs() {
    let mut snapshot = healthy();
    snapshot.deployments.clear();
    snapshot.daemon_sets.clear();
    snapshot.pods.clear();
    snapshot.roots.clear();
    let report = judge(&snapshot, true);
    assert!(!report.has_errors());
    assert!(report.checks.iter().all(|check| check.group == "cluster"));
}

#[test]
fn cilium_takes_away_only_what_there_is() {
    let found = |exclusive: &str, arguments: Option<&[&str]>| {
        let mut snapshot = healthy();
        snapshot.cilium = list([cilium(exclusive)]);
        match arguments {
            None => snapshot.daemon_sets.clear(),
            Some(arguments) => {
                let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
                snapshot.daemon_sets[0].spec.template.spec.containers[0].args = arguments;
            }
        }
        super::cluster::cni_exclusive(&snapshot).len()
    };
    for (exclusive, arguments, expected) in [
        ("true", Some(&["--kube=cluster", "--cni=on"][..]), 1),
        ("false", Some(&["--cni=on"]), 0),
        ("", Some(&["--cni=on"]), 0),
        ("true", Some(&["--cni=on", "--cni-own-file=off"]), 0),
        ("true", Some(&["--cni=remove"]), 0),
        ("true", Some(&[]), 0),
        // Before an installation: as the chart has it.
        ("true", None, 1),
        ("false", None, 0),
    ] {
        assert_eq!(found(exclusive, arguments), expected, "{exclusive} {arguments:?}");
    }
}

#[test]
fn tunnels_get_through_what_admits_them() {
    let admits = |spec: Value| {
        let mut snapshot = healthy();
        snapshot.network_policies = list([json!({"metadata": {"namespace": "shop", "name": "p"}, "spec": spec})]);
        super::workloads::network_policies(&snapshot).is_empty()
    };
    let with = |ingress: Value| json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": ingress});
    for (spec, expected) in [
        (with(json!([])), false),
        (with(json!([{}])), true),
        (with(json!([{"from": [{"podSelector": {}}]}])), true),
        (with(json!([{"ports": [{"port": 15008}]}])), true),
        (with(json!([{"ports": [{"port": 15008, "protocol": "UDP"}]}])), false),
        (with(json!([{"ports": [{"port": 15000, "endPort": 15010}]}])), true),
        (with(json!([{"ports": [{"port": "http"}]}])), false),
        (json!({"podSelector": {}, "policyTypes": ["Egress"]}), true),
        (json!({"podSelector": {"matchLabels": {"app": "db"}}, "policyTypes": ["Ingress"]}), true),
        (json!({"podSelector": {"matchExpressions": [{"key": "app", "operator": "Exists"}]}}), false),
    ] {
        assert_eq!(admits(spec.clone()), expected, "{spec}");
    }
    // Pods of gateways, which no agent enrols, take tunnels where they say so.
    for (tunnel, expected) in [("http", 1), ("none", 0)] {
        let mut snapshot = healthy();
        let labels = json!({"istio.io/dataplane-mode": "none", "networking.istio.io/tunnel": tunnel});
        let metadata = json!({"namespace": "edge", "name": "edge-1", "labels": labels});
        snapshot.pods.extend(list([json!({"metadata": metadata, "status": {"phase": "Running"}})]));
        let spec = json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"ports": [{"port": 443}]}]});
        snapshot.network_policies = list([json!({"metadata": {"namespace": "edge", "name": "p"}, "spec": spec})]);
        assert_eq!(super::workloads::network_policies(&snapshot).len(), expected, "{tunnel}");
    }
}

#[test]
fn no_advice_resets_the_values_of_an_installation() {
    for (what, break_it, ..) in BROKEN {
        let mut snapshot = healthy();
        break_it(&mut snapshot);
        for finding in judge(&snapshot, false).checks.into_iter().flat_map(|check| check.findings) {
            let installs = finding.fix.matches("meshctl install").count();
            let keeps = finding.fix.matches("meshctl install --reuse-values").count();
            assert_eq!(installs, keeps, "{what}: {}", finding.fix);
        }
    }
}
