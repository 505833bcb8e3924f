//! What checks look at: one picture of a cluster, taken at once. `collect` takes it, tests make it up; nothing else is known to a check.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::needs;
use crate::view::{
    ConfigMap, Definition, EndpointSlice, Event, Lease, Namespace, NetworkPolicy, Node, Pod, WebhookConfiguration,
    Workload,
};

/// Says of namespaces and pods that they are in the mesh.
pub const MODE: &str = "istio.io/dataplane-mode";
/// Says of a pod that an agent has enrolled it.
pub const REDIRECTION: &str = "ambient.istio.io/redirection";
/// The ConfigMap with the root certificate, and its key.
pub const ROOT: (&str, &str) = ("undermesh-root-cert", "root-cert.pem");
/// The label `app` of the pods of the control plane, and its other names.
pub const CONTROL: &str = "mesh-control";
/// Annotation of the agents' DaemonSet: who gives them configuration and certificates, if it is not [`CONTROL`].
pub const CONTROL_PLANE: &str = "undermesh.io/control-plane";
/// The label `app` of the agents, and their other names.
pub const AGENT: &str = "mesh-agent";

/// A cluster.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Namespace of the mesh.
    pub namespace: String,
    /// Version of this program.
    pub version: String,
    /// Our clock, in seconds since 1970.
    pub now: i64,
    /// The API server's clock.
    pub server_time: Option<i64>,
    /// Version of Kubernetes, as `v1.34.2`.
    pub kubernetes: String,
    /// Nodes.
    pub nodes: Vec<Node>,
    /// With which each kubelet says that it lives.
    pub node_leases: Vec<Lease>,
    /// The version of cgroups that a node's kubelet uses.
    pub cgroups: BTreeMap<String, u8>,
    /// Namespaces.
    pub namespaces: Vec<Namespace>,
    /// Pods of all namespaces.
    pub pods: Vec<Pod>,
    /// Endpoints of the control plane's service.
    pub endpoints: Vec<EndpointSlice>,
    /// NetworkPolicies of all namespaces.
    pub network_policies: Vec<NetworkPolicy>,
    /// Deployments of all namespaces.
    pub deployments: Vec<Workload>,
    /// DaemonSets of all namespaces.
    pub daemon_sets: Vec<Workload>,
    /// The ConfigMaps called [`ROOT`].
    pub roots: Vec<ConfigMap>,
    /// The ConfigMap with which Cilium runs, if it does.
    pub cilium: Vec<ConfigMap>,
    /// Definitions.
    pub definitions: Vec<Definition>,
    /// Validating webhooks.
    pub webhooks: Vec<WebhookConfiguration>,
    /// Warnings of the last hour.
    pub events: Vec<Event>,
    /// What somebody who needs it may not do.
    pub denied: Vec<Denial>,
    /// What agents say of themselves, by pod.
    pub agents: BTreeMap<String, Words>,
    /// What the control plane says of the configuration; nothing if it cannot be asked.
    pub diagnoses: Option<Vec<Diagnosis>>,
    /// What the API server says of the webhook when it calls it.
    pub webhook_answer: Option<String>,
    /// What could not be read, and why.
    pub unread: Vec<(String, String)>,
}

/// Somebody may not do something.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Denial {
    /// `you`, or the name of a service account.
    pub who: String,
    /// As `list pods`.
    pub what: String,
}

/// An agent's own words.
#[derive(Clone, Debug, Default)]
pub struct Words {
    /// Its page about readiness; nothing if it does not answer.
    pub readiness: Option<String>,
    /// The last lines of its log; of the run before, if it has just begun.
    pub log: String,
}

/// What the control plane says about an object.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct Diagnosis {
    /// `note`, `warning` or `error`.
    pub severity: String,
    /// As `AuthorizationPolicy default/deny`.
    pub object: String,
    /// Field.
    pub field: String,
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
}

/// Whether a pod belongs in the mesh, as agents decide it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Membership {
    /// It does.
    Wanted,
    /// Its label, or its namespace's, says so, but it has the network of its node.
    HostNetwork,
    /// Likewise, but a sidecar does the mesh's work in it.
    Sidecar,
    /// Nobody says so.
    Outside,
}

impl Snapshot {
    /// Whether there is anything of the mesh.
    pub fn is_installed(&self) -> bool {
        self.control().is_some() || self.agent().is_some()
    }

    /// Whether something of a kind that was asked for could not be read.
    pub fn is_unread(&self, what: &str) -> bool {
        self.unread.iter().any(|(name, _)| name == what)
    }

    /// Whether there is anything of the mesh, or it could not be seen.
    pub fn may_be_installed(&self) -> bool {
        self.is_installed() || self.is_unread(needs::DEPLOYMENTS) || self.is_unread(needs::DAEMON_SETS)
    }

    /// The control plane's Deployment.
    pub fn control(&self) -> Option<&Workload> {
        self.deployments.iter().find(|d| d.metadata.namespace == self.namespace && d.metadata.name == CONTROL)
    }

    /// Address of the control plane that the agents use, where it is none of ours, as an istiod.
    pub fn foreign_control(&self) -> Option<&str> {
        Some(self.agent()?.metadata.annotation(CONTROL_PLANE)).filter(|address| !address.is_empty())
    }

    /// The agents' DaemonSet.
    pub fn agent(&self) -> Option<&Workload> {
        self.daemon_sets.iter().find(|d| d.metadata.namespace == self.namespace && d.metadata.name == AGENT)
    }

    /// Pods of a part of the mesh.
    pub fn pods_of(&self, app: &str) -> impl Iterator<Item = &Pod> {
        self.pods.iter().filter(move |pod| pod.metadata.namespace == self.namespace && pod.metadata.label("app") == app)
    }

    /// The agent of a node.
    pub fn agent_on(&self, node: &str) -> Option<&Pod> {
        let mut agents = self.pods_of(AGENT).filter(|pod| pod.spec.node_name == node);
        agents.find(|pod| pod.metadata.deletion_timestamp.is_none())
    }

    /// The system's namespaces are never in the mesh.
    pub fn is_system(&self, namespace: &str) -> bool {
        namespace == self.namespace || matches!(namespace, "undermesh-system" | "istio-system" | "kube-system")
    }

    /// Whether a pod belongs in the mesh: its own label counts more than its namespace's.
    pub fn membership(&self, pod: &Pod) -> Membership {
        let namespace = self.namespaces.iter().find(|n| n.metadata.name == pod.metadata.namespace);
        let of_namespace = namespace.map_or("", |n| n.metadata.label(MODE));
        let mode = match pod.metadata.label(MODE) {
            own @ ("ambient" | "none") => own,
            _ => of_namespace,
        };
        if mode != "ambient" || self.is_system(&pod.metadata.namespace) || pod.is_finished() {
            Membership::Outside
        } else if pod.spec.host_network {
            Membership::HostNetwork
        } else if pod.metadata.annotations.contains_key("sidecar.istio.io/status") {
            Membership::Sidecar
        } else {
            Membership::Wanted
        }
    }

    /// Pods that belong in the mesh.
    pub fn wanted(&self) -> impl Iterator<Item = &Pod> {
        self.pods.iter().filter(|pod| self.membership(pod) == Membership::Wanted)
    }
}

/// Seconds since 1970 of a time as Kubernetes writes it.
pub fn seconds(time: &str) -> Option<i64> {
    time.parse::<jiff::Timestamp>().ok().map(jiff::Timestamp::as_second)
}

/// The tag of an image, which is the version of what is in it; without one as much of its digest as people compare.
pub fn tag(image: &str) -> &str {
    let (name, digest) = image.split_once('@').map_or((image, None), |(name, digest)| (name, Some(digest)));
    let last = name.rsplit('/').next().unwrap_or(name);
    match (last.split_once(':'), digest) {
        (Some((_, tag)), _) => tag,
        (None, Some(digest)) => digest.get(.."sha256:0123456789ab".len()).unwrap_or(digest),
        (None, None) => "latest",
    }
}

#[cfg(test)]
mod tests {
    use super::tag;

    #[test]
    fn images_are_named_by_tags_and_digests() {
        let digest = "sha256:1111111111111111111111111111111111111111111111111111111111111111";
        for (image, expected) in [
            ("docker.io/undermesh/mesh-agent:0.1.0", "0.1.0"),
            ("registry.example:5000/mesh-agent", "latest"),
            (&*format!("registry.example:5000/mesh-agent:0.1.0@{digest}"), "0.1.0"),
            (&*format!("registry.example:5000/mesh-agent@{digest}"), "sha256:111111111111"),
            ("mesh-agent@sha256:1", "sha256:1"),
        ] {
            assert_eq!(tag(image), expected, "{image}");
        }
    }
}
