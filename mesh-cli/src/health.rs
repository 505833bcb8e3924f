//! How far a Deployment or DaemonSet is, and what keeps a pod from being ready. Pure; called by `install`, which waits, and by `check` and `status`,
//! which explain.

use serde::Serialize;
use serde_json::Value;

use crate::view::{Pod, Workload, condition};

/// One component on its way.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Progress {
    /// As `DaemonSet mesh-agent`.
    pub component: String,
    /// Pods that are as they should be.
    pub ready: i64,
    /// Pods that are wanted.
    pub wanted: i64,
    /// There is nothing left to wait for.
    pub done: bool,
    /// What is in the way, one line for each pod.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub why: Vec<String>,
}

impl Progress {
    /// `DaemonSet mesh-agent: 7/9 ready · node-3: ImagePullBackOff`.
    pub fn line(&self) -> String {
        let more = self.why.len().saturating_sub(1);
        let why = match (self.why.first(), more) {
            (None, _) => String::new(),
            (Some(first), 0) => format!(" · {first}"),
            (Some(first), more) => format!(" · {first} (and {more} more)"),
        };
        format!("{}: {}/{} ready{why}", self.component, self.ready, self.wanted)
    }
}

/// A Deployment, with the pods that it selects.
pub fn deployment(workload: &Workload, pods: &[Pod]) -> Progress {
    let (status, wanted) = (&workload.status, workload.spec.replicas.unwrap_or(1));
    let is_seen = status.observed_generation >= workload.metadata.generation;
    let is_rolled = status.updated_replicas >= wanted && status.replicas <= status.updated_replicas;
    let done = is_seen && is_rolled && status.available_replicas >= wanted;
    let mut why = problems(workload, pods);
    if let Some(failed) = condition(&status.conditions, "ReplicaFailure").filter(|c| c.status == "True") {
        why.insert(0, failed.message.clone());
    }
    let ready = if is_seen { status.available_replicas.min(status.updated_replicas) } else { 0 };
    progress("Deployment", workload, ready, wanted, done, why)
}

/// A DaemonSet, with the pods that it selects.
pub fn daemon_set(workload: &Workload, pods: &[Pod]) -> Progress {
    let (status, wanted) = (&workload.status, workload.status.desired_number_scheduled);
    let is_seen = status.observed_generation >= workload.metadata.generation;
    let done = is_seen && status.updated_number_scheduled >= wanted && status.number_available >= wanted;
    let mut why = problems(workload, pods);
    if is_seen && wanted == 0 {
        why.push("no node is eligible: look at its nodeSelector and tolerations".into());
    }
    let ready = if is_seen { status.number_available.min(status.updated_number_scheduled) } else { 0 };
    progress("DaemonSet", workload, ready, wanted, done && wanted > 0, why)
}

/// A Gateway whose Deployment the control plane makes; `said` is the Gateway while there is none.
pub fn gateway(name: &str, deployment_of_it: Option<&Workload>, pods: &[Pod], said: &Value) -> Progress {
    let component = format!("Gateway {name}");
    if let Some(workload) = deployment_of_it {
        return Progress { component, ..deployment(workload, pods) };
    }
    let conditions = said["status"]["conditions"].as_array().into_iter().flatten();
    let mut refused = conditions.filter(|one| one["type"] == "Accepted" && one["status"] == "False");
    let why = refused.find_map(|one| one["message"].as_str());
    let why = why.unwrap_or("mesh-control has not made its pods yet").to_owned();
    Progress { component, ready: 0, wanted: 1, done: false, why: vec![why] }
}

fn progress(kind: &str, workload: &Workload, ready: i64, wanted: i64, done: bool, why: Vec<String>) -> Progress {
    let why = if done { Vec::new() } else { why };
    Progress { component: format!("{kind} {}", workload.metadata.name), ready, wanted, done, why }
}

fn problems(workload: &Workload, pods: &[Pod]) -> Vec<String> {
    let selected = pods.iter().filter(|pod| pod.metadata.namespace == workload.metadata.namespace);
    let selected = selected.filter(|pod| workload.spec.selector.selects(&pod.metadata.labels));
    let mut found: Vec<String> =
        selected.filter_map(|pod| Some(format!("{}: {}", place(pod), problem(pod)?))).collect();
    found.sort();
    found
}

/// Where a pod is, which says more than its name.
fn place(pod: &Pod) -> &str {
    if pod.spec.node_name.is_empty() { &pod.metadata.name } else { &pod.spec.node_name }
}

/// What keeps a pod from being ready; nothing if it is, or if it is on its way.
pub fn problem(pod: &Pod) -> Option<String> {
    if pod.metadata.deletion_timestamp.is_some() {
        return Some("it is being deleted".into());
    }
    if pod.is_ready() || pod.status.phase == "Succeeded" {
        return None;
    }
    let status = &pod.status;
    if let Some(waits) = condition(&status.conditions, "PodScheduled").filter(|c| c.status == "False") {
        return Some(format!("no node takes it: {}", first_line(&waits.message)));
    }
    if status.phase == "Failed" {
        return Some(format!("it has failed: {} {}", status.reason, first_line(&status.message)).trim_end().to_owned());
    }
    for container in pod.container_statuses() {
        // Waiting alone is the way things start.
        let ended = container.state.terminated.as_ref().or(container.last_state.terminated.as_ref());
        let waiting = container.state.waiting.as_ref();
        match (waiting, ended) {
            (Some(waiting), Some(ended)) if waiting.reason == "CrashLoopBackOff" => {
                return Some(format!("CrashLoopBackOff, {}", exit(ended.exit_code, &ended.reason)));
            }
            (Some(waiting), _) if !["", "ContainerCreating", "PodInitializing"].contains(&waiting.reason.as_str()) => {
                return Some(waits(&waiting.reason, first_line(&waiting.message)));
            }
            (None, Some(ended)) if container.state.terminated.is_some() && ended.exit_code != 0 => {
                return Some(exit(ended.exit_code, &ended.reason));
            }
            _ => {}
        }
    }
    let starting = pod.container_statuses().any(|c| c.state.waiting.is_some());
    Some(if starting || pod.status.container_statuses.is_empty() { "starting" } else { "runs, not ready yet" }.into())
}

/// A container that does not start. Whether an image is pulled just now or will be in a moment is one and the same to who waits.
fn waits(reason: &str, message: &str) -> String {
    let (reason, message) = match reason {
        "ErrImagePull" | "ImagePullBackOff" => {
            ("ImagePullBackOff", message.rsplit_once("ErrImagePull: ").map_or(message, |(_, cause)| cause))
        }
        _ => (reason, message),
    };
    if message.is_empty() { reason.to_owned() } else { format!("{reason}: {}", short(message)) }
}

/// Beginning and end of a long message: what failed, and the last cause.
fn short(text: &str) -> String {
    const EACH: usize = 90;
    let count = text.chars().count();
    if count <= 2 * EACH {
        return text.to_owned();
    }
    let (head, tail): (String, String) = (text.chars().take(EACH).collect(), text.chars().skip(count - EACH).collect());
    format!("{head} ... {tail}")
}

/// Whether what [`problem`] says is a normal part of a start.
pub fn is_on_its_way(problem: &str) -> bool {
    matches!(problem, "starting" | "runs, not ready yet" | "it is being deleted")
}

/// The exit codes of our own programs have a meaning.
fn exit(code: i64, reason: &str) -> String {
    let meaning = match code {
        64 => "its command line is wrong",
        69 => "something it needs is not available",
        70 => "the kernel lacks what it needs",
        71 => "the operating system refuses something",
        77 => "it lacks a capability",
        78 => "its configuration is wrong",
        _ => reason,
    };
    format!("it ends with {code} ({meaning})")
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: Value, status: Value) -> Pod {
        let metadata = json!({"name": "p", "namespace": "u", "labels": {"app": "x"}});
        serde_json::from_value(json!({"metadata": metadata, "spec": spec, "status": status})).unwrap()
    }

    #[test]
    fn what_keeps_a_pod_from_being_ready() {
        let waiting = |reason: &str, message: &str| json!({"phase": "Pending", "containerStatuses": [{"state": {"waiting": {"reason": reason, "message": message}}}]});
        let table = [
            (json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}), None),
            (json!({"phase": "Succeeded"}), None),
            (json!({"phase": "Pending"}), Some("starting")),
            (waiting("ContainerCreating", ""), Some("starting")),
            (
                waiting("ImagePullBackOff", "Back-off pulling \"x\"\nmore"),
                Some("ImagePullBackOff: Back-off pulling \"x\""),
            ),
            (
                waiting("ErrImagePull", "failed to pull \"x\": not found"),
                Some("ImagePullBackOff: failed to pull \"x\": not found"),
            ),
            (
                waiting(
                    "ImagePullBackOff",
                    "Back-off pulling image \"x\": ErrImagePull: failed to pull \"x\": not found",
                ),
                Some("ImagePullBackOff: failed to pull \"x\": not found"),
            ),
            (waiting("CreateContainerConfigError", ""), Some("CreateContainerConfigError")),
            (
                json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "message": "0/2 nodes"}]}),
                Some("no node takes it: 0/2 nodes"),
            ),
            (
                json!({"phase": "Running", "containerStatuses": [{
                    "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                    "lastState": {"terminated": {"exitCode": 70, "reason": "Error"}},
                }]}),
                Some("CrashLoopBackOff, it ends with 70 (the kernel lacks what it needs)"),
            ),
            (
                json!({"phase": "Running", "containerStatuses": [{"state": {"terminated": {"exitCode": 1, "reason": "Error"}}}]}),
                Some("it ends with 1 (Error)"),
            ),
            (
                json!({"phase": "Running", "containerStatuses": [{"state": {"running": {}}}]}),
                Some("runs, not ready yet"),
            ),
            (json!({"phase": "Failed", "reason": "Evicted", "message": "disk"}), Some("it has failed: Evicted disk")),
        ];
        for (status, expected) in table {
            assert_eq!(problem(&pod(json!({}), status.clone())).as_deref(), expected, "{status}");
        }
    }

    fn workload(spec: Value, status: Value) -> Workload {
        let mut spec = spec;
        spec["selector"] = json!({"matchLabels": {"app": "x"}});
        let metadata = json!({"name": "mesh", "namespace": "u", "generation": 2});
        serde_json::from_value(json!({"metadata": metadata, "spec": spec, "status": status})).unwrap()
    }

    #[test]
    fn a_rollout_is_over_when_every_new_pod_serves() {
        let table = [
            // Numbers of the generation before say nothing.
            (json!({"observedGeneration": 1, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}), 0, false),
            (json!({"observedGeneration": 2, "replicas": 3, "updatedReplicas": 2, "availableReplicas": 3}), 2, false),
            (json!({"observedGeneration": 2, "replicas": 2, "updatedReplicas": 1, "availableReplicas": 2}), 1, false),
            (json!({"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}), 2, true),
        ];
        for (status, ready, done) in table {
            let progress = deployment(&workload(json!({"replicas": 2}), status.clone()), &[]);
            assert_eq!((progress.ready, progress.wanted, progress.done), (ready, 2, done), "{status}");
        }
        let status = |desired: i64, updated: i64, available: i64| {
            json!({"observedGeneration": 2, "desiredNumberScheduled": desired, "updatedNumberScheduled": updated,
                "numberAvailable": available})
        };
        let table = [
            (status(2, 2, 2), 2, true),
            (status(2, 1, 2), 1, false),
            (status(2, 2, 1), 1, false),
            (status(0, 0, 0), 0, false),
        ];
        for (status, ready, done) in table {
            let progress = daemon_set(&workload(json!({}), status.clone()), &[]);
            assert_eq!((progress.ready, progress.done), (ready, done), "{status}");
        }
    }

    #[test]
    fn a_gateway_is_there_when_its_pods_are() {
        let of = |deployment: Option<Value>, said: Value| {
            let deployment = deployment.map(|status| workload(json!({"replicas": 1}), status));
            let found = gateway("edge", deployment.as_ref(), &[], &said);
            (found.done, found.line())
        };
        let conditions = |message: &str| json!({"status": {"conditions": [{"type": "Accepted", "status": "False", "message": message}]}});
        let ready = |count: i64| json!({"observedGeneration": 2, "replicas": 1, "updatedReplicas": 1, "availableReplicas": count});
        for (deployment, said, done, line) in [
            (None, Value::Null, false, "Gateway edge: 0/1 ready · mesh-control has not made its pods yet"),
            (None, conditions("no"), false, "Gateway edge: 0/1 ready · no"),
            (Some(ready(0)), Value::Null, false, "Gateway edge: 0/1 ready"),
            (Some(ready(1)), Value::Null, true, "Gateway edge: 1/1 ready"),
        ] {
            assert_eq!(of(deployment, said), (done, line.to_owned()));
        }
    }

    #[test]
    fn a_line_names_the_first_obstacle() {
        let broken =
            json!({"phase": "Pending", "containerStatuses": [{"state": {"waiting": {"reason": "ErrImagePull"}}}]});
        let pods = [pod(json!({"nodeName": "n2"}), broken.clone()), pod(json!({"nodeName": "n1"}), broken)];
        let status = json!({"observedGeneration": 2, "desiredNumberScheduled": 2});
        let line = daemon_set(&workload(json!({}), status), &pods).line();
        assert_eq!(line, "DaemonSet mesh: 0/2 ready · n1: ImagePullBackOff (and 1 more)");
    }
}
