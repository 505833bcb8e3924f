//! Pods: identity, addresses, state, and what their labels say about them.

use std::net::IpAddr;

use k8s_openapi::api::core::v1 as k8s;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use mesh_core::ArcStr;

use super::gateway_topology::{self, GatewayTopology};
use super::waypoint::GATEWAY_NAME;
use super::{Key, Labels, meta};
use crate::diagnosis::Problem;

/// Set to `enabled` on a pod once its node's agent has enrolled it.
pub const REDIRECTION: &str = "ambient.istio.io/redirection";

/// How far a pod is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Serves.
    Ready,
    /// Its containers and its readiness gates say that it serves, and the cluster does not: its node has not been heard of. It is the last resort.
    Unheard,
    /// Alive, but not to be sent traffic.
    NotReady,
    /// Ended: its address may belong to another pod by now.
    Ended,
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace.
    pub namespace: ArcStr,
    /// Its name.
    pub name: ArcStr,
    /// Its `metadata.uid`, if it has one; a pod that was made again under the same name has another.
    pub uid: Option<ArcStr>,
    /// Its labels.
    pub labels: Labels,
    /// The node it is bound to; empty before it is.
    pub node: ArcStr,
    /// The service account; `default` if it names none.
    pub service_account: ArcStr,
    /// Its addresses, in order, without repetition.
    pub addresses: Vec<IpAddr>,
    /// It shares its node's network.
    pub host_network: bool,
    /// Its agent has enrolled it.
    pub enrolled: bool,
    /// Where it is in its life.
    pub state: State,
    /// It is being deleted.
    pub terminating: bool,
    /// Kind and name of its controller.
    pub owner: Option<(String, String)>,
    /// Named container ports of TCP.
    pub ports: Vec<(String, u16)>,
    /// Named container ports of UDP.
    pub datagram_ports: Vec<(String, u16)>,
    /// When it was made, seconds.
    pub created: Option<i64>,
    /// What stands before it, if it serves a Gateway and says so.
    pub topology: Option<Box<GatewayTopology>>,
}

/// Reduces a pod.
pub fn read(key: &Key, object: k8s::Pod) -> (Pod, Vec<Problem>) {
    let mut problems = Vec::new();
    let spec = object.spec.unwrap_or_default();
    let status = object.status.unwrap_or_default();
    let addresses = addresses(&status, &mut problems);
    let terminating = object.metadata.deletion_timestamp.is_some();
    let gates: Vec<String> = spec.readiness_gates.iter().flatten().map(|gate| gate.condition_type.clone()).collect();
    let host_network = spec.host_network.unwrap_or(false);
    let enrolled = match meta::annotation(&object.metadata, REDIRECTION) {
        Some("enabled") => true,
        None | Some("pending" | "disabled" | "") => false,
        Some(other) => {
            let field = format!("metadata.annotations[\"{REDIRECTION}\"]");
            let problem =
                Problem::warning(field, format!("{other:?} is not a known state, the pod is not in the mesh"));
            problems.push(problem.help("the node's agent writes `enabled` here"));
            false
        }
    };
    let service_account = match spec.service_account_name.or(spec.service_account).filter(|s| !s.is_empty()) {
        None => "default".into(),
        Some(name) if meta::subdomain(&name).is_ok() => name.into(),
        Some(name) => {
            let message = format!("{name:?} is not the name of a service account, the pod gets none of its identity");
            problems.push(Problem::error("spec.serviceAccountName", message));
            "default".into()
        }
    };
    let ports = |transport: &str| {
        let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        containers
            .flat_map(|c| c.ports.iter().flatten())
            .filter(|p| p.protocol.as_deref().unwrap_or("TCP") == transport)
            .filter_map(|p| Some((p.name.clone()?, u16::try_from(p.container_port).ok()?)))
            .collect()
    };
    let (ports, datagram_ports) = (ports("TCP"), ports("UDP"));
    let owner = object
        .metadata
        .owner_references
        .iter()
        .flatten()
        .find(|o| o.controller == Some(true))
        .map(|o| (o.kind.clone(), o.name.clone()));
    let pod = Pod {
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        uid: object.metadata.uid.as_deref().map(ArcStr::from),
        labels: meta::labels(&object.metadata),
        node: meta::node(spec.node_name, "spec.nodeName", &mut problems),
        service_account,
        addresses,
        host_network,
        enrolled: enrolled && !host_network,
        state: match state(&status, &gates) {
            State::Ready | State::Unheard if terminating => State::NotReady,
            state => state,
        },
        terminating,
        owner,
        ports,
        datagram_ports,
        created: meta::created(&object.metadata),
        topology: topology(&object.metadata, &mut problems),
    };
    (pod, problems)
}

/// What stands before a pod that serves a Gateway. What it says and cannot mean is not taken for what others say.
fn topology(metadata: &ObjectMeta, problems: &mut Vec<Problem>) -> Option<Box<GatewayTopology>> {
    metadata.labels.as_ref()?.get(GATEWAY_NAME)?;
    let annotations = metadata.annotations.as_ref()?;
    annotations.get(gateway_topology::ANNOTATION)?;
    Some(Box::new(GatewayTopology::annotated(annotations, "metadata.annotations", problems)))
}

fn addresses(status: &k8s::PodStatus, problems: &mut Vec<Problem>) -> Vec<IpAddr> {
    let listed =
        status.pod_ips.iter().flatten().enumerate().map(|(i, p)| (format!("status.podIPs[{i}].ip"), p.ip.as_str()));
    let single = status.pod_ip.iter().map(|ip| ("status.podIP".to_owned(), ip.as_str()));
    let mut addresses = Vec::new();
    for (field, text) in listed.chain(single) {
        match text.parse::<IpAddr>() {
            Ok(address) if usable(address) => {
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
            Ok(_) => problems.push(Problem::error(field, format!("{text} cannot be a pod's address, it is not used"))),
            Err(_) if text.is_empty() => {}
            Err(_) => problems.push(Problem::error(field, format!("{text:?} is not an IP address, it is not used"))),
        }
    }
    addresses
}

/// Not an address that means something else to every host.
pub fn usable(address: IpAddr) -> bool {
    !(address.is_unspecified() || address.is_loopback() || address.is_multicast())
        && address != IpAddr::from([255, 255, 255, 255])
}

fn state(status: &k8s::PodStatus, gates: &[String]) -> State {
    let phase = status.phase.as_deref().unwrap_or_default();
    if matches!(phase, "Succeeded" | "Failed") {
        return State::Ended;
    }
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let condition = |name: &str| conditions.iter().find(|c| c.type_ == name);
    let is_true = |name: &str| condition(name).is_some_and(|c| c.status == "True");
    match condition("Ready") {
        Some(_) if is_true("Ready") => State::Ready,
        // The node controller changes `Ready` alone.
        Some(_) if is_true("ContainersReady") && gates.iter().all(|gate| is_true(gate)) => State::Unheard,
        Some(_) => State::NotReady,
        // A hand-written status often says no more than the phase.
        None if conditions.is_empty() && phase == "Running" => State::Ready,
        None => State::NotReady,
    }
}
