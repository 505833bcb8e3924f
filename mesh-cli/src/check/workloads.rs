//! Checks of users' pods and policies in a mesh that is installed. Pure; the table is in `check`.

use std::collections::BTreeMap;

use super::facts::{Diagnosis, MODE, Membership, REDIRECTION, Snapshot, seconds};
use super::report::Finding;
use crate::view::{Event, NetworkPolicy, Pod};

/// Where tunnels arrive.
const HBONE: u16 = 15008;
/// Enrolment of a pod that runs takes less.
const ENROLMENT: i64 = 30;

fn of_pod(pod: &Pod) -> String {
    format!("pod {}", pod.metadata.full_name())
}

/// Labelled pods that have the network of their node.
pub fn host_network(snapshot: &Snapshot) -> Vec<Finding> {
    let labelled = snapshot.pods.iter().filter(|pod| snapshot.membership(pod) == Membership::HostNetwork);
    labelled
        .map(|pod| {
            let why =
                "it has the network of its node (hostNetwork), so it has no address of its own and is not in the mesh";
            let fix = format!("give it a network of its own, or say that it is left out: label {MODE}=none");
            Finding::warning(of_pod(pod), why, fix)
        })
        .collect()
}

/// Labelled pods with a sidecar.
pub fn sidecars(snapshot: &Snapshot) -> Vec<Finding> {
    let labelled = snapshot.pods.iter().filter(|pod| snapshot.membership(pod) == Membership::Sidecar);
    labelled
        .map(|pod| {
            let why = "a sidecar was injected into it: it is left out of the mesh, and speaks as its sidecar does";
            let fix =
                "take istio-injection and sidecar.istio.io/inject from namespace and pod, then restart the workload";
            Finding::warning(of_pod(pod), why, fix)
        })
        .collect()
}

/// Pods that should be in the mesh are.
pub fn enrolled(snapshot: &Snapshot) -> Vec<Finding> {
    let mut found = Vec::new();
    for pod in snapshot.wanted() {
        let state = pod.metadata.annotation(REDIRECTION);
        let is_up =
            pod.status.phase == "Running" && !pod.status.pod_ip.is_empty() && pod.metadata.deletion_timestamp.is_none();
        let began = pod.metadata.creation_timestamp.as_deref().and_then(seconds);
        let is_settled = began.is_none_or(|began| snapshot.server_time.unwrap_or(snapshot.now) - began > ENROLMENT);
        if state == "enabled" || !is_up || !is_settled {
            continue;
        }
        let agent = snapshot.agent_on(&pod.spec.node_name);
        let (why, fix) = match agent {
            None => (
                format!("it is not in the mesh: node {} has no agent", pod.spec.node_name),
                "see the checks of agents above".to_owned(),
            ),
            Some(agent) if !agent.is_ready() => (
                format!("it is not in the mesh: the agent of node {} is not ready", pod.spec.node_name),
                "see the checks of agents above".to_owned(),
            ),
            Some(agent) => (
                format!("it is not in the mesh although the agent of node {} is ready", pod.spec.node_name),
                format!("kubectl -n {} logs {} | grep {}", snapshot.namespace, agent.metadata.name, pod.metadata.name),
            ),
        };
        found.push(Finding::error(of_pod(pod), why, fix));
    }
    let stale = snapshot.pods.iter().filter(|pod| {
        pod.metadata.annotation(REDIRECTION) == "enabled"
            && snapshot.membership(pod) != Membership::Wanted
            && !pod.is_finished()
            && snapshot.agent_on(&pod.spec.node_name).is_none()
    });
    found.extend(stale.map(|pod| {
        let why = "it says that it is in the mesh and should not be, and its node has no agent that could let it go";
        Finding::warning(of_pod(pod), why, "bring the agent of its node back, or restart the pod")
    }));
    found
}

/// No pod waits for the mesh's part of its network.
pub fn held(snapshot: &Snapshot) -> Vec<Finding> {
    let is_ours = |event: &&Event| {
        event.reason == "FailedCreatePodSandBox"
            && (event.message.contains("undermesh") || event.message.contains("mesh-cni"))
    };
    let latest: BTreeMap<(&str, &str), &Event> = snapshot
        .events
        .iter()
        .filter(is_ours)
        .map(|event| ((event.involved_object.namespace.as_str(), event.involved_object.name.as_str()), event))
        .collect();
    let mut found = Vec::new();
    for pod in snapshot.pods.iter().filter(|pod| pod.status.phase == "Pending" && !pod.spec.node_name.is_empty()) {
        let key = (pod.metadata.namespace.as_str(), pod.metadata.name.as_str());
        let Some(event) = latest.get(&key) else { continue };
        let agent = snapshot.agent_on(&pod.spec.node_name).is_some_and(Pod::is_ready);
        let is_missing = event.message.contains("failed to find plugin");
        let fix = match agent {
            _ if is_missing => {
                let agent = if agent { "" } else { "; it is not ready: see the checks of agents above" };
                format!(
                    "the folder of CNI plugins of node {} was emptied: its agent puts the mesh's back within seconds{agent}. If it stays, the folder itself \
                     was made anew: delete the agent's pod there, so that it sees the new one. The programs of others their own installation puts back",
                    pod.spec.node_name
                )
            }
            false => format!(
                "make the agent of node {} ready: a labelled pod waits for it, so that it never runs without the mesh",
                pod.spec.node_name
            ),
            true => "it is asked again every few seconds; if it stays, see the agent's log for its name".to_owned(),
        };
        let message: String = event.message.chars().take(300).collect();
        found.push(Finding::error(of_pod(pod), format!("it waits for its network: {message}"), fix));
    }
    found
}

/// Probes of pods in the mesh succeed.
pub fn probes(snapshot: &Snapshot) -> Vec<Finding> {
    let mut found = Vec::new();
    for pod in snapshot.wanted().filter(|pod| pod.status.phase == "Running" && !pod.is_ready()) {
        let mut events =
            snapshot.events.iter().filter(|e| e.involved_object.uid == pod.metadata.uid && e.reason == "Unhealthy");
        let Some(event) = events.next_back() else { continue };
        let is_network =
            ["refused", "reset", "timeout", "deadline", "EOF"].iter().any(|sign| event.message.contains(sign));
        let enrolled = pod.metadata.annotation(REDIRECTION) == "enabled";
        let fix = match (is_network, enrolled) {
            (true, true) => format!(
                "see whether it answers inside (kubectl exec); if so, label the pod {MODE}=none for a moment: should the probe then succeed, it is the mesh's fault, and the agent's log says why"
            ),
            _ => "the app itself answers the probe so: see its log".to_owned(),
        };
        found.push(Finding::warning(
            of_pod(pod),
            format!("a probe fails: {}", event.message.lines().next().unwrap_or_default()),
            fix,
        ));
    }
    found
}

/// NetworkPolicies let tunnels in.
pub fn network_policies(snapshot: &Snapshot) -> Vec<Finding> {
    let mut found = Vec::new();
    for policy in snapshot.network_policies.iter().filter(|policy| restricts_ingress(policy)) {
        let selected: Vec<&Pod> = snapshot
            .pods
            .iter()
            .filter(|pod| snapshot.membership(pod) == Membership::Wanted || takes_tunnels(pod))
            .filter(|pod| pod.metadata.namespace == policy.metadata.namespace)
            .filter(|pod| policy.spec.pod_selector.selects(&pod.metadata.labels))
            .collect();
        // What several policies select may be reached by what any of them allows.
        let shut = selected.iter().filter(|pod| {
            !snapshot.network_policies.iter().any(|other| {
                other.metadata.namespace == pod.metadata.namespace
                    && restricts_ingress(other)
                    && other.spec.pod_selector.selects(&pod.metadata.labels)
                    && admits_tunnels(other)
            })
        });
        let shut: Vec<_> = shut.collect();
        if let Some(pod) = shut.first() {
            let why = format!(
                "it lets nothing to port {HBONE} of {} pods in the mesh, {} among them: nobody in the mesh reaches them",
                shut.len(),
                pod.metadata.name
            );
            let fix = format!(
                "add to its ingress: - ports: [{{port: {HBONE}, protocol: TCP}}]; who may call is then decided by AuthorizationPolicy"
            );
            found.push(Finding::error(format!("NetworkPolicy {}", policy.metadata.full_name()), why, fix));
        }
    }
    found
}

/// It is the pod of a gateway that says so, by Istio's label.
fn takes_tunnels(pod: &Pod) -> bool {
    pod.metadata.labels.get("networking.istio.io/tunnel").is_some_and(|kind| kind == "http")
}

fn restricts_ingress(policy: &NetworkPolicy) -> bool {
    policy.spec.policy_types.is_empty() || policy.spec.policy_types.iter().any(|kind| kind == "Ingress")
}

fn admits_tunnels(policy: &NetworkPolicy) -> bool {
    policy.spec.ingress.iter().any(|rule| {
        rule.ports.is_empty()
            || rule.ports.iter().any(|port| {
                let is_tcp = port.protocol.is_empty() || port.protocol == "TCP";
                let first = port.port.as_u64().and_then(|port| u16::try_from(port).ok());
                let fits = match (first, port.end_port) {
                    (Some(first), Some(last)) => (first..=last).contains(&HBONE),
                    (Some(first), None) => first == HBONE,
                    // A name can be that of a port of the pod only, and no pod declares ours.
                    (None, _) => port.port.is_null(),
                };
                is_tcp && fits
            })
    })
}

/// What the control plane says of policies and the like.
pub fn policies(snapshot: &Snapshot) -> Vec<Finding> {
    let Some(diagnoses) = &snapshot.diagnoses else {
        if snapshot.control().is_none() {
            return Vec::new();
        }
        let why = "it cannot be asked what is wrong with policies (port 15014 through the API server)";
        let fix = "make the control plane ready; nodes of the API server must reach its pods";
        return vec![Finding::warning("mesh-control", why, fix)];
    };
    let worth = diagnoses.iter().filter(|diagnosis| diagnosis.severity != "note");
    // What is said of every object of a kind is said once.
    let mut same: BTreeMap<(&str, &str, &str, &str), (&Diagnosis, usize)> = BTreeMap::new();
    for diagnosis in worth {
        let kind = diagnosis.object.split(' ').next().unwrap_or_default();
        let key = (diagnosis.severity.as_str(), kind, diagnosis.field.as_str(), diagnosis.message.as_str());
        same.entry(key).or_insert((diagnosis, 0)).1 += 1;
    }
    same.into_values()
        .map(|(diagnosis, count)| {
            let field = if diagnosis.field.is_empty() { String::new() } else { format!("{}: ", diagnosis.field) };
            let fix = diagnosis.help.clone().unwrap_or_else(|| {
                "mend the object; until then its last good form is in force, or what it selects is closed".into()
            });
            let object = if diagnosis.object.is_empty() { "configuration" } else { diagnosis.object.as_str() };
            let others = if count > 1 { format!(" (and of {} others of the kind)", count - 1) } else { String::new() };
            let make = if diagnosis.severity == "error" { Finding::error } else { Finding::warning };
            make(object.to_owned(), format!("{field}{}{others}", diagnosis.message), fix)
        })
        .collect()
}
