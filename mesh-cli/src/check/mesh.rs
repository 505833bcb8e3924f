//! Checks of what is installed: the control plane, the webhook, the agents. Pure; the table is in `check`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::facts::{AGENT, CONTROL, ROOT, Snapshot, tag};
use super::report::Finding;
use crate::health;
use crate::view::{Node, Pod, WebhookConfiguration};
use crate::webhook::PAUSED;

/// A root that ends within so many days is worth a word.
const ROOT_DAYS: i64 = 30;

/// What to do about what keeps a pod from running.
fn remedy(problem: &str, namespace: &str, pod: &Pod) -> String {
    let image = pod.spec.containers.first().map_or("", |c| c.image.as_str());
    let starts = |words: &[&str]| words.iter().any(|word| problem.starts_with(word));
    if starts(&["ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"]) {
        return format!("see that {image} exists and nodes may pull it: image.hub, image.tag, image.pullSecrets");
    }
    if starts(&["no node takes it"]) {
        return "make room on a node, or change nodeSelector, tolerations or resources in the values".into();
    }
    if starts(&["CreateContainerConfigError"]) {
        return format!("kubectl -n {namespace} describe pod {}: a ConfigMap or Secret is missing", pod.metadata.name);
    }
    format!("kubectl -n {namespace} logs {} --previous; kubectl -n {namespace} describe pod {0}", pod.metadata.name)
}

/// The control plane serves.
pub fn control_ready(snapshot: &Snapshot) -> Vec<Finding> {
    let Some(control) = snapshot.control() else {
        if snapshot.foreign_control().is_some() {
            return Vec::new();
        }
        let why = "there is no Deployment mesh-control: agents get neither configuration nor certificates";
        return vec![Finding::error(
            format!("namespace {}", snapshot.namespace),
            why,
            "meshctl install --reuse-values",
        )];
    };
    let progress = health::deployment(control, &snapshot.pods);
    if progress.done {
        return Vec::new();
    }
    let mut found: Vec<Finding> = snapshot
        .pods_of(CONTROL)
        .filter_map(|pod| Some((pod, health::problem(pod)?)))
        .map(|(pod, problem)| {
            let fix = remedy(&problem, &snapshot.namespace, pod);
            Finding::error(format!("pod {}", pod.metadata.full_name()), problem, fix)
        })
        .collect();
    if found.is_empty() {
        let why = format!("{}/{} replicas are ready{}", progress.ready, progress.wanted, because(&progress.why));
        let fix = format!("kubectl -n {} describe deployment mesh-control", snapshot.namespace);
        found.push(Finding::error("Deployment mesh-control", why, fix));
    }
    found
}

fn because(why: &[String]) -> String {
    why.first().map_or_else(String::new, |first| format!(": {first}"))
}

/// Its service leads to it.
pub fn control_endpoints(snapshot: &Snapshot) -> Vec<Finding> {
    if snapshot.control().is_none() {
        return Vec::new();
    }
    let mut endpoints = snapshot.endpoints.iter().flat_map(|slice| &slice.endpoints);
    if endpoints.any(|endpoint| endpoint.conditions.ready != Some(false) && !endpoint.addresses.is_empty()) {
        return Vec::new();
    }
    let ready = snapshot.pods_of(CONTROL).filter(|pod| pod.is_ready()).count();
    let (why, fix) = match ready {
        0 => (
            "it has no ready endpoint: new pods get no certificate and changes reach no node; what runs goes on",
            "make the control plane ready (above)",
        ),
        _ => (
            "it has no ready endpoint although pods are ready: its selector does not fit their labels",
            "meshctl install --reuse-values: it restores the Service",
        ),
    };
    vec![Finding::error(format!("Service {}/mesh-control", snapshot.namespace), why, fix)]
}

/// One replica may be lost.
pub fn control_replicas(snapshot: &Snapshot) -> Vec<Finding> {
    let replicas = snapshot.control().map(|control| control.spec.replicas.unwrap_or(1));
    match replicas {
        Some(0) => vec![Finding::error(
            "Deployment mesh-control",
            "it is scaled to 0",
            "meshctl install --reuse-values, or kubectl scale",
        )],
        Some(1) => {
            let why = "one replica: while it restarts, no certificate is made and no change reaches a node";
            vec![Finding::warning(
                "Deployment mesh-control",
                why,
                "meshctl install --reuse-values --set control.replicas=2",
            )]
        }
        _ => Vec::new(),
    }
}

/// The root is where agents look for it, and is good for a while.
pub fn root(snapshot: &Snapshot) -> Vec<Finding> {
    if !snapshot.is_installed() || snapshot.foreign_control().is_some() {
        return Vec::new();
    }
    let object = format!("ConfigMap {}/{}", snapshot.namespace, ROOT.0);
    let remake =
        format!("kubectl -n {} delete configmap {}: the control plane writes it again", snapshot.namespace, ROOT.0);
    let Some(root) = snapshot.roots.iter().find(|root| root.metadata.namespace == snapshot.namespace) else {
        let why = "it is missing: agents cannot start, for they have no root to trust the control plane by";
        return vec![Finding::error(
            object,
            why,
            "the control plane writes it: make it ready (above), and see its log",
        )];
    };
    let pem = root.data.get(ROOT.1).map_or("", String::as_str);
    let ends = match ends(pem) {
        Ok(ends) => ends,
        Err(why) => return vec![Finding::error(object, format!("{}: {why}", ROOT.1), remake)],
    };
    let days = (ends - snapshot.now).div_euclid(24 * 3600);
    let mut found = Vec::new();
    if days < 0 {
        let why = format!("the root certificate ended {} days ago: nobody is believed", -days);
        found.push(Finding::error(
            object,
            why,
            "give the control plane a new root (Secret cacerts, or delete undermesh-ca and restart it)",
        ));
    } else if days < ROOT_DAYS {
        found.push(Finding::warning(
            object,
            format!("the root certificate ends in {days} days"),
            "rotate the root now, with both roots trusted for a while",
        ));
    }
    let members: Vec<&str> = snapshot.wanted().map(|pod| pod.metadata.namespace.as_str()).collect();
    for copy in snapshot.roots.iter().filter(|copy| members.contains(&copy.metadata.namespace.as_str())) {
        if copy.data.get(ROOT.1).is_none_or(|text| text.trim() != pem.trim()) {
            let why = "it differs from the one in the mesh's namespace: what trusts it refuses the mesh";
            let fix = format!(
                "kubectl -n {} delete configmap {}: the control plane writes it again",
                copy.metadata.namespace, ROOT.0
            );
            found.push(Finding::warning(format!("ConfigMap {}/{}", copy.metadata.namespace, ROOT.0), why, fix));
        }
    }
    found
}

/// When the last of some certificates ends, in seconds since 1970.
fn ends(pem: &str) -> Result<i64, String> {
    let mut last = None;
    for block in x509_parser::pem::Pem::iter_from_buffer(pem.as_bytes()) {
        let block = block.map_err(|_| "it is no PEM".to_owned())?;
        let certificate = block.parse_x509().map_err(|_| "it holds something that is no certificate".to_owned())?;
        last = last.max(Some(certificate.validity().not_after.timestamp()));
    }
    last.ok_or_else(|| "it holds no certificate".into())
}

/// The webhook answers, or lets edits pass.
pub fn webhook(snapshot: &Snapshot) -> Vec<Finding> {
    let mut found = Vec::new();
    let is_ours = |configuration: &&WebhookConfiguration| {
        configuration.webhooks.iter().any(|w| w.client_config.service.namespace == snapshot.namespace)
    };
    for configuration in snapshot.webhooks.iter().filter(is_ours) {
        let object = format!("ValidatingWebhookConfiguration {}", configuration.metadata.name);
        let remove = format!(
            "kubectl delete validatingwebhookconfiguration {}; meshctl install --reuse-values makes it again",
            configuration.metadata.name
        );
        let is_paused = configuration.metadata.annotation(PAUSED) == "true";
        if is_paused {
            let why =
                "it is paused: edits of policies pass unchecked when nobody answers, and nobody waits for an answer";
            found.push(Finding::warning(object.clone(), why, "meshctl webhook resume"));
        }
        for webhook in &configuration.webhooks {
            let refuses = webhook.failure_policy == "Fail";
            let mut complain = |why: String, fix: &str| {
                let make = if refuses { Finding::error } else { Finding::warning };
                found.push(make(object.clone(), format!("{}: {why}", webhook.name), fix.to_owned()));
            };
            let effect = if refuses { "every edit of a policy is refused" } else { "edits pass unchecked" };
            let bundle = decode(&webhook.client_config.ca_bundle);
            match bundle.as_deref().map(ends) {
                None => complain(format!("its CA bundle is not base64: {effect}"), &remove),
                Some(_) if webhook.client_config.ca_bundle.is_empty() => complain(
                    format!("it has no CA bundle: the control plane has not entered it, so {effect}"),
                    "make the control plane ready (above); it enters it",
                ),
                Some(Err(why)) => complain(format!("its CA bundle cannot be read ({why}): {effect}"), &remove),
                Some(Ok(ends)) if ends < snapshot.now => {
                    complain(format!("its CA bundle has ended: {effect}"), &remove)
                }
                Some(Ok(_)) => {}
            }
            if refuses && !snapshot.pods_of(CONTROL).any(Pod::is_ready) {
                complain(
                    "nobody answers it, and it refuses what nobody answers: policies cannot be edited".into(),
                    "meshctl webhook pause lets edits pass; make the control plane ready (above), then meshctl webhook resume",
                );
            }
        }
        if let Some(answer) = &snapshot.webhook_answer {
            let why = if answer.contains("x509") || answer.contains("certificate") {
                format!("the API server does not trust what answers, so the CA bundle is wrong: {answer}")
            } else {
                format!("the API server cannot reach it: {answer}")
            };
            found.push(Finding::error(object, why, remove));
        }
    }
    found
}

fn decode(text: &str) -> Option<String> {
    String::from_utf8(STANDARD.decode(text).ok()?).ok()
}

/// All parts and this program are of one version.
pub fn versions(snapshot: &Snapshot) -> Vec<Finding> {
    let mut found = Vec::new();
    let control = snapshot.control().and_then(|c| c.spec.template.spec.containers.first()).map(|c| tag(&c.image));
    let agent = snapshot.agent().and_then(|a| a.spec.template.spec.containers.first()).map(|c| tag(&c.image));
    let minor = |tag: &str| -> Option<(u32, u32)> {
        let mut parts = tag.trim_start_matches('v').split('.');
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    };
    if let (Some(control), Some(agent)) = (control, agent)
        && control != agent
    {
        let why = format!("the control plane is {control} and the agents are {agent}");
        let fix = "meshctl install --reuse-values: it brings both to the version of this program";
        let is_near = match (minor(control), minor(agent)) {
            // An agent works with a control plane of its own version and of the next.
            (Some((a, b)), Some((c, d))) => a == c && (b == d || b == d + 1),
            _ => false,
        };
        let make = if is_near { Finding::warning } else { Finding::error };
        found.push(make("versions", why, fix));
    }
    if let Some(control) =
        control.filter(|control| minor(control).is_some() && minor(control) != minor(&snapshot.version))
    {
        let why = format!("this program is {} and the control plane is {control}", snapshot.version);
        found.push(Finding::warning(
            "meshctl",
            why,
            "use the meshctl of the version that is installed, or update the mesh with it",
        ));
    }
    let old = snapshot.pods_of(AGENT).filter(|pod| {
        let image = pod.spec.containers.first().map(|c| tag(&c.image));
        image != agent && agent.is_some()
    });
    for pod in old {
        let why = format!("it still runs {}", pod.spec.containers.first().map_or("", |c| tag(&c.image)));
        let fix = format!("kubectl -n {} rollout status daemonset mesh-agent", snapshot.namespace);
        found.push(Finding::warning(format!("node {}", pod.spec.node_name), why, fix));
    }
    found
}

/// Every node that can have an agent has one.
pub fn agent_nodes(snapshot: &Snapshot) -> Vec<Finding> {
    let Some(agents) = snapshot.agent() else {
        if snapshot.control().is_none() {
            return Vec::new();
        }
        let why = "there is no DaemonSet mesh-agent: no pod is in the mesh";
        return vec![Finding::error(
            format!("namespace {}", snapshot.namespace),
            why,
            "meshctl install --reuse-values",
        )];
    };
    let spec = &agents.spec.template.spec;
    let mut found = Vec::new();
    for node in snapshot.nodes.iter().filter(|node| snapshot.agent_on(&node.metadata.name).is_none()) {
        let count = snapshot.wanted().filter(|pod| pod.spec.node_name == node.metadata.name).count();
        let taint = node.spec.taints.iter().find(|taint| {
            let matters = ["NoSchedule", "NoExecute"].contains(&taint.effect.as_str());
            matters
                && !taint.key.starts_with("node.kubernetes.io/")
                && !spec.tolerations.iter().any(|t| t.covers(taint))
        });
        let selector = spec.node_selector.iter().find(|(key, value)| node.metadata.labels.get(*key) != Some(value));
        let (why, fix) = match (taint, selector) {
            (Some(taint), _) => (
                format!("the taint {}:{} keeps the agent away", taint_text(taint), taint.effect),
                "add the toleration to agent.tolerations; the default tolerates everything".to_owned(),
            ),
            (None, Some((key, value))) if key == "kubernetes.io/os" => {
                let _ = value;
                continue;
            }
            (None, Some((key, value))) => (
                format!("the agent's nodeSelector wants {key}={value}, which the node lacks"),
                format!("kubectl label node {} {key}={value}, or change agent.nodeSelector", node.metadata.name),
            ),
            (None, None) => (
                "it has no agent, and nothing that is known here keeps it away".to_owned(),
                format!("kubectl -n {} describe daemonset mesh-agent", snapshot.namespace),
            ),
        };
        let make = if count > 0 || node_takes_pods(node) { Finding::error } else { Finding::warning };
        let pods = if count > 0 { format!("; {count} pods on it should be in the mesh") } else { String::new() };
        found.push(make(format!("node {}", node.metadata.name), format!("{why}{pods}"), fix));
    }
    found
}

fn node_takes_pods(node: &Node) -> bool {
    node.is_ready() && !node.spec.unschedulable
}

fn taint_text(taint: &crate::view::Taint) -> String {
    if taint.value.is_empty() { taint.key.clone() } else { format!("{}={}", taint.key, taint.value) }
}

/// What an agent says when it cannot start, what it means, and what to do.
const CAUSES: [(&str, &str, &str); 10] = [
    ("the kernel lacks", "the kernel lacks a feature", "update the node's kernel; the log names what it lacks"),
    (
        "mount bpf on",
        "the node has no bpffs",
        "mount it on the node (mount -t bpf bpf /sys/fs/bpf, or a systemd unit) and see that /sys/fs/bpf is in the pod",
    ),
    (
        "is not a cgroup v2 folder",
        "a cgroup folder is not there or not of version 2",
        "set agent.cgroups.pods to the folder of all pods in the node's cgroup v2 tree",
    ),
    (
        "--pods-cgroup",
        "the pods' cgroup is not where it is looked for",
        "set agent.cgroups.pods to the folder of all pods: /sys/fs/cgroup/kubepods.slice (systemd driver) or /sys/fs/cgroup/kubepods",
    ),
    ("--control-root", "the root certificate is not in the pod", "see the check of the root certificate above"),
    (
        "--token",
        "the pod has no token",
        "the API server must issue tokens for the audience `undermesh` (service account token projection)",
    ),
    (
        "is in use by another agent",
        "another agent runs on the node",
        "end it: a second installation, or a process outside of Kubernetes",
    ),
    (
        "the agent needs",
        "it lacks rights",
        "the namespace or a policy engine takes capabilities away: allow those of the chart",
    ),
    (
        "Address already in use",
        "a port of the node is taken",
        "free 15020 and 15021 on the node, or set other ports (agent.extraArgs)",
    ),
    (
        "cannot connect to",
        "it does not reach the control plane",
        "see that nodes reach the Service mesh-control on 15012 and resolve its name",
    ),
];

/// Agents are ready, or why they are not.
pub fn agent_ready(snapshot: &Snapshot) -> Vec<Finding> {
    let mut found = Vec::new();
    for pod in snapshot.pods_of(AGENT) {
        let Some(problem) = health::problem(pod) else { continue };
        let object =
            format!("node {}", if pod.spec.node_name.is_empty() { &pod.metadata.name } else { &pod.spec.node_name });
        let words = snapshot.agents.get(&pod.metadata.name).cloned().unwrap_or_default();
        let cause = CAUSES.iter().find(|(sign, _, _)| words.log.contains(sign));
        let mount = snapshot.events.iter().find(|event| {
            event.involved_object.uid == pod.metadata.uid
                && event.reason == "FailedMount"
                && health::is_on_its_way(&problem)
        });
        let finding = match (cause, mount, words.readiness.as_deref()) {
            (Some((sign, why, fix)), _, _) => {
                let line = words.log.lines().rev().find(|line| line.contains(sign)).unwrap_or_default();
                Finding::error(object, format!("{why}: {}", line.trim()), *fix)
            }
            (None, Some(event), _) => {
                let fix = if event.message.contains(ROOT.0) {
                    "see the check of the root certificate above"
                } else {
                    "see that the folder or object exists"
                };
                Finding::error(object, format!("a volume cannot be mounted: {}", event.message), fix)
            }
            (None, None, Some(page)) if page.contains("configuration") => {
                let why = format!("it has no configuration yet ({})", page.trim());
                Finding::error(
                    object,
                    why,
                    "see that the control plane is ready and that the node reaches Service mesh-control on 15012",
                )
            }
            (None, None, Some(page)) if !page.trim().is_empty() => {
                let fix = format!("kubectl -n {} logs {}", snapshot.namespace, pod.metadata.name);
                Finding::error(object, format!("{problem}: {}", page.trim()), fix)
            }
            _ => {
                let fix = remedy(&problem, &snapshot.namespace, pod);
                Finding::error(object, problem, fix)
            }
        };
        found.push(finding);
    }
    found
}
