//! What the API says about one pod, reduced to what enrolment needs. Made by [`super::watch`].

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;
use mesh_core::ArcStr;
use mesh_proto::convert::PodRequest;

use super::rules::{self, Said};
use super::wanted::Mode;

/// The annotation that tells the control plane, and people, that a pod is enrolled.
pub const REDIRECTION: &str = "ambient.istio.io/redirection";
/// Is on pods with a sidecar.
const SIDECAR: &str = "sidecar.istio.io/status";
/// On pods that serve a Gateway: which one, of which class, and who looks after them.
const GATEWAY: &str = "gateway.networking.k8s.io/gateway-name";
const GATEWAY_CLASS: &str = "gateway.networking.k8s.io/gateway-class-name";
const MANAGED: &str = "gateway.istio.io/managed";
/// Controllers whose pods end tunnels themselves: ours, and Istio's of waypoints.
const MANAGERS: [&str; 2] = ["undermesh.io-gateway-controller", "istio.io-mesh-controller"];
/// Classes whose pods do.
const CLASSES: [&str; 3] = ["undermesh-waypoint", "undermesh", "istio-waypoint"];
/// The UID under which the kubelet runs a pod of its own folder; the API shows it under another.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// What the annotation says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mark {
    /// The pod is enrolled: others may send to it through the mesh.
    Enabled,
    /// It is to be and cannot be, yet.
    Pending,
    /// Something that nobody defined.
    Other,
}

impl Mark {
    fn of(value: &str) -> Mark {
        [Mark::Enabled, Mark::Pending].into_iter().find(|mark| mark.value() == value).unwrap_or(Mark::Other)
    }

    /// As it is written.
    pub fn value(self) -> &'static str {
        match self {
            Mark::Enabled => "enabled",
            Mark::Pending => "pending",
            Mark::Other => "",
        }
    }
}

/// A pod as the kubelet names it to a container runtime.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Called {
    /// The UID in the names of its cgroups.
    pub cgroup_uid: ArcStr,
    /// Kubernetes namespace.
    pub namespace: ArcStr,
    /// Name.
    pub name: ArcStr,
}

/// One pod.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Facts {
    /// Kubernetes UID.
    pub uid: ArcStr,
    /// The UID in the names of its cgroups.
    pub cgroup_uid: ArcStr,
    /// Kubernetes namespace.
    pub namespace: ArcStr,
    /// Name.
    pub name: ArcStr,
    /// Service account.
    pub service_account: ArcStr,
    /// Addresses, as the kubelet reported them.
    pub ips: Vec<IpAddr>,
    /// Its own label.
    pub mode: Option<Mode>,
    /// It has a sidecar.
    pub sidecar: bool,
    /// It serves a Gateway whose pods are of the mesh themselves.
    pub gateway: bool,
    /// It uses the node's network.
    pub host_network: bool,
    /// Its processes have ended.
    pub finished: bool,
    /// What the annotation says, if it is there.
    pub redirection: Option<Mark>,
    /// What its annotations and probes take out of the mesh.
    pub said: Said,
    /// Changes whenever containers of it were started: its network may be another one then.
    pub life: u64,
}

impl Facts {
    /// Reads a pod; none without what every stored pod has.
    pub fn of(pod: &Pod) -> Option<Facts> {
        let meta = &pod.metadata;
        let (uid, spec) = (meta.uid.clone()?, pod.spec.as_ref()?);
        let annotation = |key: &str| meta.annotations.as_ref().and_then(|all| all.get(key));
        let status = pod.status.clone().unwrap_or_default();
        let ips = status.pod_ips.unwrap_or_default().into_iter().filter_map(|ip| ip.ip.parse().ok());
        let mut life = DefaultHasher::new();
        let containers = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
        for container in containers {
            (&container.name, &container.container_id).hash(&mut life);
        }
        Some(Facts {
            cgroup_uid: annotation(MIRROR).unwrap_or(&uid).as_str().into(),
            uid: uid.into(),
            namespace: meta.namespace.clone()?.into(),
            name: meta.name.clone()?.into(),
            service_account: spec
                .service_account_name
                .as_deref()
                .filter(|name| !name.is_empty())
                .unwrap_or("default")
                .into(),
            ips: ips.collect(),
            mode: meta.labels.as_ref().and_then(Mode::of),
            sidecar: annotation(SIDECAR).is_some(),
            gateway: meta.labels.as_ref().is_some_and(serves_gateway),
            host_network: spec.host_network.unwrap_or_default(),
            finished: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
            redirection: annotation(REDIRECTION).map(|value| Mark::of(value)),
            said: rules::read(pod),
            life: life.finish(),
        })
    }

    /// Whether this is the pod that is called so. The UID alone does not say it: whoever may make pods may write that of another into
    /// the annotation of one of his own.
    pub fn is(&self, called: &Called) -> bool {
        (&self.cgroup_uid, &self.namespace, &self.name) == (&called.cgroup_uid, &called.namespace, &called.name)
    }

    /// How the kubelet names it.
    pub fn called(&self) -> Called {
        Called { cgroup_uid: self.cgroup_uid.clone(), namespace: self.namespace.clone(), name: self.name.clone() }
    }

    /// Whether it is the API's image of a pod of the kubelet's own folder.
    pub fn is_mirror(&self) -> bool {
        self.uid != self.cgroup_uid
    }

    /// What is left of a pod of which the API says nothing any more.
    pub fn of_the_past(pod: &PodRequest) -> Facts {
        Facts {
            uid: pod.uid.clone(),
            cgroup_uid: pod.uid.clone(),
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            service_account: pod.service_account.clone(),
            ips: pod.ips.clone(),
            mode: None,
            sidecar: false,
            gateway: false,
            host_network: false,
            finished: false,
            redirection: None,
            said: Said::default(),
            life: 0,
        }
    }

    /// Whether an enrolment from `self` is one from `other` too.
    pub fn same_place(&self, other: &Facts) -> bool {
        (&self.ips, &self.service_account, self.life, &self.said.rules, self.said.own_dns)
            == (&other.ips, &other.service_account, other.life, &other.said.rules, other.said.own_dns)
    }
}

/// Whether a pod with these labels serves a Gateway that is of the mesh itself. That it is one of the Gateway's the control plane checks, by its service account;
/// here nothing is gained by a label but what `istio.io/dataplane-mode: none` gives anyway.
fn serves_gateway(labels: &BTreeMap<String, String>) -> bool {
    let is = |key: &str, known: &[&str]| labels.get(key).is_some_and(|value| known.contains(&value.as_str()));
    labels.contains_key(GATEWAY) && (is(MANAGED, &MANAGERS) || is(GATEWAY_CLASS, &CLASSES))
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    /// A running pod without labels.
    pub fn pod(name: &str) -> Facts {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": { "name": name, "namespace": "default", "uid": format!("uid-{name}") },
            "spec": { "containers": [], "serviceAccountName": "app" },
            "status": { "phase": "Running", "podIPs": [{ "ip": "198.18.0.1" }, { "ip": "fd00:198::1" }] },
        }))
        .unwrap();
        Facts::of(&pod).unwrap()
    }

    #[test]
    fn what_is_read_of_a_pod() {
        let full: Pod = serde_json::from_value(json!({
            "metadata": {
                "name": "p", "namespace": "n", "uid": "u",
                "labels": { "istio.io/dataplane-mode": "ambient" },
                "annotations": { "sidecar.istio.io/status": "{}", "ambient.istio.io/redirection": "pending",
                                 "kubernetes.io/config.mirror": "0123456789abcdef0123456789abcdef" },
            },
            "spec": { "containers": [], "hostNetwork": true },
            "status": { "phase": "Failed" },
        }))
        .unwrap();
        let facts = Facts::of(&full).unwrap();
        assert_eq!(
            (facts.mode, facts.sidecar, facts.host_network, facts.finished),
            (Some(Mode::InMesh), true, true, true)
        );
        assert_eq!((facts.redirection, facts.service_account.as_str()), (Some(Mark::Pending), "default"));
        assert_eq!((facts.uid.as_str(), facts.cgroup_uid.as_str()), ("u", "0123456789abcdef0123456789abcdef"));
        assert!(facts.ips.is_empty());
        let plain = pod("a");
        assert_eq!((plain.mode, plain.sidecar, plain.host_network, plain.finished), (None, false, false, false));
        assert_eq!((plain.ips.len(), plain.redirection), (2, None));
    }

    #[test]
    fn features_en3_who_serves_a_gateway() {
        let named = (GATEWAY, "wp");
        for (labels, expected) in [
            (&[][..], false),
            // Whoever made it looks after it: a gateway of somebody who knows nothing of meshes.
            (&[named], false),
            (&[named, (MANAGED, "undermesh.io-gateway-controller")], true),
            (&[named, (MANAGED, "istio.io-mesh-controller")], true),
            (&[named, (MANAGED, "example.com-controller")], false),
            (&[named, (GATEWAY_CLASS, "undermesh-waypoint")], true),
            (&[named, (GATEWAY_CLASS, "undermesh")], true),
            (&[named, (GATEWAY_CLASS, "theirs")], false),
            (&[(GATEWAY_CLASS, "undermesh-waypoint")], false),
            (&[(MANAGED, "istio.io-mesh-controller")], false),
        ] {
            let labels: BTreeMap<_, _> = labels.iter().map(|(key, value)| (*key, *value)).collect();
            let pod: Pod = serde_json::from_value(json!({
                "metadata": { "name": "p", "namespace": "n", "uid": "u", "labels": labels },
                "spec": { "containers": [] },
            }))
            .unwrap();
            assert_eq!(Facts::of(&pod).unwrap().gateway, expected, "{labels:?}");
        }
    }

    #[test]
    fn a_container_that_was_started_anew_is_another_life() {
        let with = |id: &str| {
            let pod: Pod = serde_json::from_value(json!({
                "metadata": { "name": "p", "namespace": "n", "uid": "u" },
                "spec": { "containers": [] },
                "status": { "containerStatuses": [{ "name": "c", "containerID": id, "image": "", "imageID": "", "ready": true, "restartCount": 0 }] },
            }))
            .unwrap();
            Facts::of(&pod).unwrap()
        };
        assert!(with("containerd://1").same_place(&with("containerd://1")));
        assert!(!with("containerd://1").same_place(&with("containerd://2")));
    }
}
