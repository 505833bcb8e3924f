//! Checks of the cluster itself, before and after an installation. Pure; the table is in `check`.

use super::facts::{MODE, Snapshot, seconds};
use super::report::Finding;
use crate::view::{Node, Workload};

/// What the chart asks for, in its `kubeVersion`.
const KUBERNETES: (u32, u32) = (1, 30);
/// The oldest kernel whose programs are supported.
const KERNEL: (u32, u32) = (5, 15);
/// Clocks may differ by so many seconds: less than what certificates allow for.
const SKEW: i64 = 20;
/// A kubelet renews its lease every ten seconds, and may be late.
const LEASE: i64 = 60;

/// The first two numbers of a version, whatever is around them.
fn numbers(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.trim_start_matches('v').split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn linux(snapshot: &Snapshot) -> impl Iterator<Item = &Node> {
    snapshot.nodes.iter().filter(|node| node.status.node_info.operating_system != "windows")
}

fn of_node(node: &Node) -> String {
    format!("node {}", node.metadata.name)
}

/// Kubernetes is new enough.
pub fn kubernetes(snapshot: &Snapshot) -> Vec<Finding> {
    match numbers(&snapshot.kubernetes) {
        Some(version) if version < KUBERNETES => vec![Finding::error(
            "API server",
            format!("it is Kubernetes {}, and {}.{} is needed", snapshot.kubernetes, KUBERNETES.0, KUBERNETES.1),
            "update the cluster",
        )],
        _ => Vec::new(),
    }
}

/// Kernels are new enough.
pub fn kernel(snapshot: &Snapshot) -> Vec<Finding> {
    let old = linux(snapshot).filter(|node| numbers(&node.status.node_info.kernel_version).is_some_and(|v| v < KERNEL));
    old.map(|node| {
        let info = &node.status.node_info;
        let why = format!(
            "it runs Linux {} ({}), and {}.{} is needed for the programs that steer sockets",
            info.kernel_version, info.os_image, KERNEL.0, KERNEL.1
        );
        let fix = "update the node's image, or keep the agent and labelled pods away from it (agent.nodeSelector)";
        Finding::error(of_node(node), why, fix)
    })
    .collect()
}

/// Our images run there.
pub fn platform(snapshot: &Snapshot) -> Vec<Finding> {
    if !snapshot.nodes.is_empty() && linux(snapshot).next().is_none() {
        let fix = "add a Linux node";
        return vec![Finding::error("nodes", "there is no Linux node, and the mesh runs on no other", fix)];
    }
    let other = linux(snapshot).filter(|node| {
        let architecture = node.status.node_info.architecture.as_str();
        !["", "amd64", "arm64"].contains(&architecture)
    });
    other
        .map(|node| {
            let why = format!(
                "its architecture is {}, and images are for amd64 and arm64",
                node.status.node_info.architecture
            );
            Finding::warning(of_node(node), why, "build images for it, or exclude it with agent.nodeSelector")
        })
        .collect()
}

/// Nodes take pods.
pub fn ready(snapshot: &Snapshot) -> Vec<Finding> {
    let down = snapshot.nodes.iter().filter(|node| !node.is_ready());
    down.map(|node| {
        let why = "it is not ready: its agent can neither start nor be looked at";
        Finding::warning(of_node(node), why, format!("kubectl describe node {}", node.metadata.name))
    })
    .collect()
}

/// Cgroups are of version 2. Where an agent serves, it has found them.
pub fn cgroups(snapshot: &Snapshot) -> Vec<Finding> {
    let serves = |node: &str| snapshot.agent_on(node).is_some_and(crate::view::Pod::is_ready);
    let old = snapshot.cgroups.iter().filter(|(node, version)| **version == 1 && !serves(node));
    old.map(|(node, _)| {
        Finding::warning(
            format!("node {node}"),
            "its kubelet uses cgroup v1: the agent needs the v2 tree that holds the pods, which such a node has only if it is hybrid",
            "boot with systemd.unified_cgroup_hierarchy=1; nothing is to be done on a hybrid node: its agent finds the v2 tree, and then this is not said any more",
        )
    })
    .collect()
}

/// Clocks agree. Certificates that begin in the future are refused.
pub fn clocks(snapshot: &Snapshot) -> Vec<Finding> {
    const FIX: &str = "synchronise it (NTP, chrony); certificates and tokens are refused where clocks differ";
    let mut found = Vec::new();
    let Some(server) = snapshot.server_time else { return found };
    let ours = snapshot.now - server;
    if ours.abs() > SKEW {
        let why = format!("its clock is {} s {} the API server's", ours.abs(), side(ours));
        found.push(Finding::warning("this machine", why, FIX));
    }
    for node in snapshot.nodes.iter().filter(|node| node.is_ready()) {
        let lease = snapshot.node_leases.iter().find(|lease| lease.metadata.name == node.metadata.name);
        let Some(renewed) = lease.and_then(|lease| seconds(lease.spec.renew_time.as_deref()?)) else { continue };
        let skew = renewed - server;
        if !(-LEASE..=SKEW).contains(&skew) {
            let why = format!("its clock is about {} s {} the API server's", skew.abs(), side(skew));
            found.push(Finding::error(of_node(node), why, FIX));
        }
    }
    found
}

fn side(skew: i64) -> &'static str {
    if skew > 0 { "ahead of" } else { "behind" }
}

/// No other mesh takes the same pods.
pub fn other_meshes(snapshot: &Snapshot) -> Vec<Finding> {
    let is_mesh = |set: &&Workload| {
        let name = set.metadata.name.as_str();
        name == "ztunnel"
            || name == "istio-cni-node"
            || set.metadata.label("k8s-app") == "istio-cni-node"
            || name == "kmesh"
    };
    let is_ours = |w: &&Workload| w.metadata.label("app.kubernetes.io/part-of") == "undermesh";
    let is_elsewhere = |w: &&Workload| is_ours(w) && w.metadata.namespace != snapshot.namespace;
    let twins = snapshot.daemon_sets.iter().filter(is_elsewhere).map(|set| {
        let why = "Undermesh is installed in this namespace: two share neither nodes nor roles";
        let fix = format!("say -n {}, or uninstall that one first", set.metadata.namespace);
        Finding::error(format!("DaemonSet {}", set.metadata.full_name()), why, fix)
    });
    let mut found: Vec<Finding> = twins.collect();
    let others = snapshot.daemon_sets.iter().filter(is_mesh).map(|set| {
        let why = format!("another mesh enrols pods by the label {MODE}, too: both would capture the same connections");
        let fix = "remove it, or migrate: take the label from its namespaces, uninstall it, then label them again";
        Finding::error(format!("DaemonSet {}", set.metadata.full_name()), why, fix)
    });
    found.extend(others);
    let is_istiod = |d: &&Workload| {
        d.metadata.label("app") == "istiod" && d.metadata.label("app.kubernetes.io/part-of") != "undermesh"
    };
    let istiods = snapshot.deployments.iter().filter(is_istiod);
    found.extend(istiods.filter(|_| snapshot.foreign_control().is_none()).map(|deployment| {
        let why =
            "a control plane of Istio runs: policies in istio-system are its own, and it writes istio-ca-root-cert";
        let fix = "put mesh-wide policies into the mesh's own namespace, or uninstall Istio once its sidecars are gone";
        Finding::warning(format!("Deployment {}", deployment.metadata.full_name()), why, fix)
    }));
    found
}

/// Nobody else rewrites the destination of connections where we do.
pub fn other_hooks(snapshot: &Snapshot) -> Vec<Finding> {
    let cilium = snapshot
        .daemon_sets
        .iter()
        .filter(|set| set.metadata.name == "cilium" || set.metadata.label("k8s-app") == "cilium");
    cilium
        .map(|set| {
            let why = "Cilium may translate service addresses in connect() before the mesh sees them; then policy and balancing of services are its own";
            let fix = "set socketLB.hostNamespaceOnly=true in Cilium's values";
            Finding::warning(format!("DaemonSet {}", set.metadata.full_name()), why, fix)
        })
        .collect()
}

/// Nothing takes away the file that the CNI plugin has of its own. Agents that have none, or no plugin, lose nothing.
pub fn cni_exclusive(snapshot: &Snapshot) -> Vec<Finding> {
    let says = |agent: &Workload, flag: &str| {
        agent
            .spec
            .template
            .spec
            .containers
            .iter()
            .flat_map(|container| &container.args)
            .any(|argument| argument == flag)
    };
    let has_file = snapshot.agent().is_none_or(|agent| says(agent, "--cni=on") && !says(agent, "--cni-own-file=off"));
    let exclusive =
        snapshot.cilium.iter().filter(|map| map.data.get("cni-exclusive").is_some_and(|value| value == "true"));
    exclusive
        .filter(|_| has_file)
        .map(|map| {
            let why = "Cilium renames the CNI configurations of others (cni-exclusive: \"true\"), and with them 00-undermesh.conflist: \
                       new pods may start uncaptured until the agent has put its entry back";
            let fix = "set cni.exclusive=false in Cilium's values; or agent.cni.ownFile=false in the mesh's, which only ends the quarrel";
            Finding::warning(format!("ConfigMap {}", map.metadata.full_name()), why, fix)
        })
        .collect()
}

/// Definitions that somebody else has installed can be read.
pub fn definitions(snapshot: &Snapshot) -> Vec<Finding> {
    const READABLE: [(&str, &[&str]); 3] = [
        ("security.istio.io", &["v1", "v1beta1"]),
        ("networking.istio.io", &["v1", "v1beta1", "v1alpha3"]),
        ("gateway.networking.k8s.io", &["v1", "v1beta1", "v1alpha3", "v1alpha2"]),
    ];
    let mut found = Vec::new();
    for definition in &snapshot.definitions {
        let Some((_, known)) = READABLE.iter().find(|(group, _)| *group == definition.spec.group) else { continue };
        let served: Vec<&str> = definition.spec.versions.iter().filter(|v| v.served).map(|v| v.name.as_str()).collect();
        if !served.iter().any(|version| known.contains(version)) {
            let why = format!("it serves {}, and this version of the mesh reads {}", list(&served), list(known));
            let fix = "install the definitions of a release that serves one of these, or update Undermesh";
            found.push(Finding::error(format!("CustomResourceDefinition {}", definition.metadata.name), why, fix));
        }
        let bundle = definition.metadata.annotation(BUNDLE);
        if release(bundle).is_some_and(|release| release < OLDEST_BUNDLE) {
            let (major, minor) = OLDEST_BUNDLE;
            let why = format!(
                "it is of the Gateway API {bundle}, and what is read here is that of v{major}.{minor} and later"
            );
            let fix = "install the definitions of a later release of the Gateway API; they are the cluster's, meshctl does not";
            found.push(Finding::warning(format!("CustomResourceDefinition {}", definition.metadata.name), why, fix));
        }
    }
    found
}

/// Of which release a definition of the Gateway API is.
const BUNDLE: &str = "gateway.networking.k8s.io/bundle-version";
/// The oldest that is read.
const OLDEST_BUNDLE: (u32, u32) = (1, 1);

/// As `v1.2.0`.
fn release(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.strip_prefix('v')?.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn list(words: &[&str]) -> String {
    if words.is_empty() { "no version".into() } else { words.join(", ") }
}

/// The namespace allows what agents need.
pub fn pod_security(snapshot: &Snapshot) -> Vec<Finding> {
    const LABEL: &str = "pod-security.kubernetes.io/enforce";
    let namespace = snapshot.namespaces.iter().find(|n| n.metadata.name == snapshot.namespace);
    if namespace.is_some_and(|n| n.metadata.deletion_timestamp.is_some()) {
        let why = "it is being deleted, and takes nothing new meanwhile";
        let fix = format!(
            "wait until it is gone; if it stays: kubectl get namespace {} -o yaml says why",
            snapshot.namespace
        );
        return vec![Finding::error(format!("namespace {}", snapshot.namespace), why, fix)];
    }
    let level = namespace.map_or("", |n| n.metadata.label(LABEL));
    if level.is_empty() || level == "privileged" {
        return Vec::new();
    }
    let why = format!("its label {LABEL}={level} forbids the agents, which enter the network namespaces of pods");
    let fix = format!("kubectl label namespace {} {LABEL}=privileged --overwrite", snapshot.namespace);
    vec![Finding::error(format!("namespace {}", snapshot.namespace), why, fix)]
}

/// Whoever runs this, or an account of the mesh, may do what it has to.
pub fn rights(snapshot: &Snapshot) -> Vec<Finding> {
    let denied = snapshot.denied.iter().map(|denial| {
        let fix = match denial.who.as_str() {
            "you" => "ask an administrator of the cluster for it, or use their context (--context)".to_owned(),
            _ => {
                "`meshctl install --reuse-values`: it makes the roles; if somebody trims them, add this rule".to_owned()
            }
        };
        let object = if denial.who == "you" { "you".to_owned() } else { format!("service account {}", denial.who) };
        Finding::error(object, format!("may not {}", denial.what), fix)
    });
    denied.collect()
}

/// Everything could be looked at.
pub fn readable(snapshot: &Snapshot) -> Vec<Finding> {
    let unread = snapshot.unread.iter();
    unread
        .map(|(what, why)| {
            let fix = "checks that need it are not made; give yourself the right to read it, or try again";
            Finding::warning(what.as_str(), format!("cannot be read: {why}"), fix)
        })
        .collect()
}

/// Labels say what they are meant to say.
pub fn labels(snapshot: &Snapshot) -> Vec<Finding> {
    let mut found = Vec::new();
    let namespaces = snapshot.namespaces.iter().map(|n| ("namespace", &n.metadata));
    let pods =
        snapshot.pods.iter().filter(|pod| pod.metadata.owner_references.is_empty()).map(|p| ("pod", &p.metadata));
    for (kind, meta) in namespaces.chain(pods) {
        let object = format!("{kind} {}", meta.full_name());
        let place = match meta.namespace.as_str() {
            "" => format!("kubectl label {kind} {}", meta.name),
            namespace => format!("kubectl -n {namespace} label {kind} {}", meta.name),
        };
        for (key, value) in &meta.labels {
            if key == MODE && !["ambient", "none"].contains(&value.as_str()) {
                let why = format!(
                    "{MODE}={value} means nothing: it is neither ambient nor none, so it is as if it were not there"
                );
                found.push(Finding::error(object.clone(), why, format!("{place} {MODE}=ambient --overwrite")));
            } else if key != MODE && is_misspelt(key) {
                let why = format!("the label {key} means nothing; {MODE} may be meant");
                found.push(Finding::error(object.clone(), why, format!("{place} {MODE}={value} {key}-")));
            }
        }
        let is_member = meta.label(MODE) == "ambient";
        if kind == "namespace" && is_member && snapshot.is_system(&meta.name) {
            let why = "namespaces of the cluster and of control planes are never in the mesh: the label does nothing";
            found.push(Finding::warning(object.clone(), why, format!("{place} {MODE}-")));
        }
        if is_member && meta.label("istio-injection") == "enabled" {
            let why = "it asks for sidecars (istio-injection=enabled) and for the mesh; a pod with a sidecar is left out of the mesh";
            found.push(Finding::warning(object.clone(), why, format!("{place} istio-injection-")));
        }
    }
    found
}

/// A key that was meant to be [`MODE`].
fn is_misspelt(key: &str) -> bool {
    let bare: String = key.to_ascii_lowercase().chars().filter(char::is_ascii_alphanumeric).collect();
    let (prefix, name) = key.rsplit_once('/').unwrap_or(("", key));
    let name: String = name.to_ascii_lowercase().chars().filter(char::is_ascii_alphanumeric).collect();
    bare == "istioiodataplanemode"
        || (prefix.is_empty() || prefix.contains("istio"))
            && ["dataplanemode", "dataplanmode", "dataplane", "dataplanemodes", "datplanemode"].contains(&name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_kubernetes_is_that_of_the_chart() {
        let chart = &crate::chart::embed::files()["Chart.yaml"];
        assert!(chart.contains(&format!("kubeVersion: \">={}.{}.0-0\"", KUBERNETES.0, KUBERNETES.1)), "{chart}");
    }
}
