//! Cleans nodes: on each one a pod of the agent's image that runs `mesh-agent cleanup` with the agent's own arguments, rights and host folders, and
//! ends with 0 when nothing of the mesh is left on the node. It is made of the DaemonSet that is there, so it fits the version that is there. It
//! has no credentials: whatever it cleans is on the node. Called by `uninstall`.
//!
//! What is assumed of the agent: `cleanup` is a verb that takes every flag of the agent, needs neither the control plane nor the API server nor the
//! files of its credentials, detaches programs, removes pins (`--bpffs`), the CNI plugin and its configuration, `--run-dir` and the scope file, may be run
//! again, and ends with 64 where a version does not know it.

use serde_json::{Value, json};

use crate::install::inventory::is_ours;
use crate::view::{Node, Pod};

/// Label of the pods.
pub const APP: &str = "mesh-cleanup";

/// The pod for one node, made of the DaemonSet of the agents, with another image if one is given.
pub fn pod(daemon_set: &Value, node: &str, image: Option<&str>) -> Result<Value, String> {
    let lacks = |what: &str| format!("the DaemonSet of the agents has no {what}");
    let template = daemon_set.pointer("/spec/template/spec").ok_or_else(|| lacks("template"))?;
    let container = template.pointer("/containers/0").ok_or_else(|| lacks("container"))?;
    let is_of_the_node = |volume: &&Value| volume.get("hostPath").is_some() || volume.get("emptyDir").is_some();
    let volumes: Vec<Value> = list(template, "volumes").filter(is_of_the_node).cloned().collect();
    let is_kept = |mount: &&Value| volumes.iter().any(|volume| volume["name"] == mount["name"]);
    let mounts: Vec<Value> = list(container, "volumeMounts").filter(is_kept).cloned().collect();
    let arguments: Vec<Value> = std::iter::once(json!("cleanup")).chain(list(container, "args").cloned()).collect();
    let mut cleaner = json!({ "name": APP, "args": arguments, "volumeMounts": mounts });
    for field in ["image", "imagePullPolicy", "command", "env", "securityContext"] {
        if let Some(value) = container.get(field) {
            cleaner[field] = value.clone();
        }
    }
    if let Some(image) = image {
        cleaner["image"] = json!(image);
    }
    let namespace = daemon_set.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or_default();
    let mut pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name(node),
            "namespace": namespace,
            "labels": {
                "app": APP, "app.kubernetes.io/part-of": "undermesh", "app.kubernetes.io/managed-by": "meshctl",
                "istio.io/dataplane-mode": "none",
            },
        },
        "spec": {
            "nodeName": node,
            "hostNetwork": true,
            "restartPolicy": "OnFailure",
            "automountServiceAccountToken": false,
            "terminationGracePeriodSeconds": 5,
            // A taint that evicts must not end it half way; those that only keep pods away do not count with a nodeName.
            "tolerations": [{ "operator": "Exists" }],
            "containers": [cleaner],
            "volumes": volumes,
        },
    });
    for field in ["imagePullSecrets", "priorityClassName", "securityContext"] {
        if let Some(value) = template.get(field) {
            pod["spec"][field] = value.clone();
        }
    }
    Ok(pod)
}

fn list<'a>(value: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    value[field].as_array().into_iter().flatten()
}

/// Of the pod of a node. Names of nodes may be longer than the rest leaves room for; two that begin alike stay two.
pub fn name(node: &str) -> String {
    let name = format!("{APP}-{node}");
    if name.len() <= 63 {
        return name;
    }
    let hash = node
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let head = name.get(..46).unwrap_or(&name).trim_end_matches(['.', '-']);
    format!("{head}-{hash:016x}")
}

/// Whether an object in the namespace of the mesh is neither of an installation nor of Kubernetes itself. What ends, or belongs to something else, does not count.
pub fn is_somebodys(plural: &str, object: &Value) -> bool {
    let metadata = &object["metadata"];
    let is_owned = metadata["ownerReferences"].as_array().is_some_and(|owners| !owners.is_empty());
    if is_ours(object) || is_owned || !metadata["deletionTimestamp"].is_null() {
        return false;
    }
    match plural {
        "configmaps" => {
            !["kube-root-ca.crt", "openshift-service-ca.crt"].contains(&metadata["name"].as_str().unwrap_or_default())
        }
        "secrets" => !["kubernetes.io/service-account-token", "kubernetes.io/dockercfg"]
            .contains(&object["type"].as_str().unwrap_or_default()),
        _ => true,
    }
}

/// How far a node is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum State {
    /// Nothing of the mesh is left on it.
    Clean,
    /// It works on it.
    Working(String),
    /// It will not become clean by waiting.
    Failed(String),
}

/// Judges the pod of a node.
pub fn state(node: Option<&Node>, pod: Option<&Pod>) -> State {
    match node {
        None => return State::Failed("there is no such node any more".into()),
        Some(node) if !node.is_ready() && pod.is_none_or(|pod| pod.status.phase != "Succeeded") => {
            return State::Failed("the node is not ready; uninstall again when it is back".into());
        }
        Some(_) => {}
    }
    let Some(pod) = pod else { return State::Working("waits for its pod".into()) };
    if pod.status.phase == "Succeeded" {
        return State::Clean;
    }
    let ends =
        pod.container_statuses().filter_map(|c| c.state.terminated.as_ref().or(c.last_state.terminated.as_ref()));
    if ends.into_iter().any(|end| end.exit_code == 64) {
        return State::Failed("its mesh-agent is of a version that has no `cleanup`".into());
    }
    let restarts = pod.container_statuses().map(|c| c.restart_count).max().unwrap_or(0);
    match crate::health::problem(pod) {
        Some(problem) if restarts >= 3 => State::Failed(problem),
        Some(problem) => State::Working(problem),
        None => State::Working("cleaning".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn daemon_set() -> Value {
        json!({
            "metadata": {"name": "mesh-agent", "namespace": "undermesh-system"},
            "spec": {"template": {"spec": {
                "serviceAccountName": "mesh-agent", "priorityClassName": "system-node-critical", "hostNetwork": true,
                "containers": [{
                    "name": "mesh-agent", "image": "undermesh/mesh-agent:0.1.0", "imagePullPolicy": "IfNotPresent",
                    "args": ["--node=$(NODE_NAME)"], "env": [{"name": "NODE_NAME"}], "readinessProbe": {"httpGet": {}},
                    "securityContext": {"capabilities": {"add": ["BPF"]}},
                    "volumeMounts": [{"name": "bpffs", "mountPath": "/sys/fs/bpf"}, {"name": "token", "mountPath": "/t"}],
                }],
                "volumes": [{"name": "bpffs", "hostPath": {"path": "/sys/fs/bpf"}}, {"name": "token", "projected": {}}],
            }}},
        })
    }

    #[test]
    fn a_cleaner_is_the_agent_without_its_credentials() {
        let pod = |image| super::pod(&daemon_set(), "n1", image).unwrap();
        assert_eq!(pod(Some("other:1"))["spec"]["containers"][0]["image"], "other:1");
        let pod = pod(None);
        let expected = json!({
            "nodeName": "n1", "hostNetwork": true, "restartPolicy": "OnFailure", "automountServiceAccountToken": false,
            "terminationGracePeriodSeconds": 5, "tolerations": [{"operator": "Exists"}],
            "priorityClassName": "system-node-critical",
            "containers": [{
                "name": "mesh-cleanup", "image": "undermesh/mesh-agent:0.1.0", "imagePullPolicy": "IfNotPresent",
                "args": ["cleanup", "--node=$(NODE_NAME)"], "env": [{"name": "NODE_NAME"}],
                "securityContext": {"capabilities": {"add": ["BPF"]}},
                "volumeMounts": [{"name": "bpffs", "mountPath": "/sys/fs/bpf"}],
            }],
            "volumes": [{"name": "bpffs", "hostPath": {"path": "/sys/fs/bpf"}}],
        });
        assert_eq!(pod["spec"], expected);
        assert_eq!(pod["metadata"]["namespace"], "undermesh-system");
        assert!(super::pod(&json!({}), "n1", None).is_err());
    }

    #[test]
    fn what_somebody_has_put_into_the_namespace_is_told_from_what_is_always_there() {
        let object = |name: &str, more: Value| {
            let mut object = json!({"metadata": {"name": name}});
            object["metadata"].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            object
        };
        let labels = json!({"labels": {"app.kubernetes.io/part-of": "undermesh"}});
        for (plural, object, expected) in [
            ("configmaps", object("kube-root-ca.crt", json!({})), false),
            ("configmaps", object("meshctl-install", labels.clone()), false),
            ("configmaps", object("notes", json!({})), true),
            ("secrets", object("undermesh-ca", labels), false),
            ("secrets", object("cacerts", json!({})), true),
            ("pods", object("p", json!({"ownerReferences": [{"kind": "ReplicaSet"}]})), false),
            ("pods", object("p", json!({"deletionTimestamp": "2026-11-21T16:00:00Z"})), false),
            ("authorizationpolicies", object("deny", json!({"labels": {"app": "x"}})), true),
        ] {
            assert_eq!(is_somebodys(plural, &object), expected, "{plural} {object}");
        }
        let token = json!({"metadata": {"name": "t"}, "type": "kubernetes.io/service-account-token"});
        assert!(!is_somebodys("secrets", &token));
    }

    #[test]
    fn long_names_of_nodes_stay_apart() {
        assert_eq!(name("n1"), "mesh-cleanup-n1");
        let long = "ip-10-0-0-1.a-region-with-a-long-name.compute.internal.example";
        let (one, other) = (name(&format!("{long}.a")), name(&format!("{long}.b")));
        assert!(one.len() <= 63 && one != other, "{one} {other}");
    }

    #[test]
    fn a_node_is_clean_when_its_pod_says_so() {
        let node = |ready: &str| -> Node {
            serde_json::from_value(json!({"status": {"conditions": [{"type": "Ready", "status": ready}]}})).unwrap()
        };
        let pod = |status: Value| -> Pod { serde_json::from_value(json!({"status": status})).unwrap() };
        let ended = |code: i64, restarts: i64| {
            pod(json!({"phase": "Running", "containerStatuses": [{"restartCount": restarts,
                "state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {"terminated": {"exitCode": code, "reason": "Error"}}}]}))
        };
        let (up, down) = (node("True"), node("False"));
        assert_eq!(state(Some(&up), Some(&pod(json!({"phase": "Succeeded"})))), State::Clean);
        assert_eq!(state(Some(&down), Some(&pod(json!({"phase": "Succeeded"})))), State::Clean);
        assert!(matches!(state(Some(&down), None), State::Failed(_)));
        assert!(matches!(state(None, None), State::Failed(_)));
        assert!(matches!(state(Some(&up), None), State::Working(_)));
        assert!(matches!(state(Some(&up), Some(&ended(64, 1))), State::Failed(_)));
        assert!(matches!(state(Some(&up), Some(&ended(71, 1))), State::Working(_)));
        assert!(matches!(state(Some(&up), Some(&ended(71, 3))), State::Failed(_)));
    }
}
