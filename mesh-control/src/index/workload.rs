//! Workloads: pods with their identity, owner, locality, services and policies; and endpoints that are no pods.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use mesh_core::policy::Policy;
use mesh_core::workload::{Health, NetworkMode, PortMapping, TunnelProtocol, WorkloadType};
use mesh_core::{ArcStr, Locality, NamespacedName, Workload};

use super::Settings;
use super::policy::Policies;
use super::service::{self, Services};
use super::view::AgentPod;
use super::waypoint::{Guard, Waypoints};
use crate::diagnosis::Problem;
use crate::resource::meta::shown;
use crate::resource::pod::State;
use crate::resource::waypoint::{TUNNEL, TUNNEL_HTTP};
use crate::resource::{Key, Kind, Objects, Pod};

/// The workload of a pod that has these addresses.
pub fn workload(
    pod: &Pod,
    addresses: Vec<IpAddr>,
    objects: &Objects,
    settings: &Settings,
    services: &Services,
    policies: &Policies,
    waypoints: &Waypoints,
) -> Workload {
    let uid = format!("{}//Pod/{}/{}", settings.cluster_id, pod.namespace, pod.name);
    let mut workload = Workload::new(uid, pod.namespace.clone(), pod.name.clone());
    let controller = pod.owner.as_ref().map(|(kind, name)| (kind.as_str(), name.as_str()));
    let (name, kind) = mesh_core::owner::workload(&pod.name, &pod.labels, controller);
    let label = |keys: &[&str]| keys.iter().find_map(|k| pod.labels.get(*k)).filter(|v| !v.is_empty()).cloned();
    let canonical = label(&["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"]);
    let revision = label(&["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"]);
    workload.addresses = addresses;
    // Of a namespace that is not of the mesh the addresses are known, so that they are reached as everything outside of it is.
    let is_member = pod.enrolled && settings.discovers(objects, &pod.namespace);
    workload.protocol = if is_member { TunnelProtocol::Hbone } else { TunnelProtocol::None };
    // No agent enrols it: it ends tunnels itself. An older gateway does not, for what it listens for.
    let says = || pod.labels.get(TUNNEL).is_some_and(|value| value == TUNNEL_HTTP);
    let ends_tunnels = waypoints.served_by(pod).is_some() || says() && waypoints.edge_of(pod).is_some();
    if ends_tunnels && settings.discovers(objects, &pod.namespace) {
        workload.protocol = TunnelProtocol::Hbone;
        workload.native_tunnel = true;
    }
    workload.waypoint = waypoints.pod(pod, objects, settings).address;
    workload.trust_domain = settings.trust_domain.clone();
    workload.service_account = pod.service_account.clone();
    workload.node = pod.node.clone();
    workload.canonical_name = shown(canonical.as_deref().unwrap_or(name));
    workload.canonical_revision = shown(revision.as_deref().unwrap_or("latest"));
    workload.workload_name = shown(name);
    workload.workload_type = kind;
    workload.cluster_id = settings.cluster_id.clone();
    workload.authorization_policies = policies.of(&pod.namespace, &pod.labels).into();
    workload.health = if pod.state == State::Ready { Health::Healthy } else { Health::Unhealthy };
    workload.services = Arc::new(service::memberships(pod, services));
    workload.locality = locality(pod, objects);
    workload.network_mode = if pod.host_network { NetworkMode::HostNetwork } else { NetworkMode::Standard };
    workload
}

fn locality(pod: &Pod, objects: &Objects) -> Locality {
    let declared = pod.labels.get("topology.istio.io/locality").or_else(|| pod.labels.get("istio-locality"));
    match declared {
        Some(text) => {
            // Labels cannot hold `/`, so a dot stands for it, unless the value has slashes after all.
            let separator = if text.contains('/') { '/' } else { '.' };
            let mut parts = text.splitn(3, separator).map(shown);
            let mut next = || parts.next().unwrap_or_default();
            Locality { region: next(), zone: next(), subzone: next() }
        }
        None => objects.nodes.get(&pod.node).map(|n| n.locality.clone()).unwrap_or_default(),
    }
}

/// Has a workload list one more policy.
pub fn list(workload: &mut Workload, policy: NamespacedName) {
    if !workload.authorization_policies.contains(&policy) {
        workload.authorization_policies = workload.authorization_policies.iter().cloned().chain([policy]).collect();
    }
}

/// Endpoints of services that have no selector: pods join the service, other addresses become workloads of their own. `workloads` are those of pods, in the
/// order of their namespaces and names. What comes back is who alone may reach pods that have joined, and in which namespaces these are; and in which namespaces pods
/// are to be found to which who has no identity is led through a waypoint.
pub fn slices<'a>(
    objects: &Objects,
    settings: &Settings,
    services: &Services,
    waypoints: &Waypoints,
    owner: impl Fn(&IpAddr) -> Option<&'a Arc<Pod>>,
    workloads: &mut Vec<Arc<Workload>>,
    problems: &mut Vec<(Key, Problem)>,
) -> (BTreeSet<(ArcStr, Guard)>, BTreeSet<ArcStr>) {
    let pods = workloads.len();
    let (mut guards, mut through) = (BTreeSet::new(), BTreeSet::new());
    let mut made: BTreeMap<(NamespacedName, IpAddr), usize> = BTreeMap::new();
    for slice in objects.endpoint_slices.values().filter(|s| !s.service.is_empty()) {
        let name = NamespacedName::new(slice.namespace.clone(), slice.service.clone());
        let Some(object) = objects.services.get(&name).filter(|s| s.selector.is_none() && !s.is_alias) else {
            continue;
        };
        let key = service::key(&slice.namespace, &slice.service, settings);
        let port = |p: &crate::resource::service::Port| {
            let target = slice.ports.iter().find(|(n, _)| *n == p.name)?.1;
            Some(PortMapping { service_port: p.port, target_port: target })
        };
        let ports: Vec<PortMapping> = object.ports.iter().filter_map(port).collect();
        let accounts = waypoints.guards(object, objects, settings);
        let led = accounts.as_ref().and_then(|_| waypoints.leads_to(object, objects, settings));
        let guard = accounts.map(|accounts| Guard::of(&accounts, ports.iter().map(|port| port.target_port)));
        for endpoint in &slice.endpoints {
            for address in &endpoint.addresses {
                let slice_key =
                    || Key { kind: Kind::EndpointSlice, namespace: slice.namespace.clone(), name: slice.name.clone() };
                // As a workload it would take the address from the service, and with it everybody's connections.
                if let Some(other) = services.addresses.get(address) {
                    let message = format!("{address} is the address of {other}, it is not used");
                    problems.push((slice_key(), Problem::error("endpoints", message)));
                    continue;
                }
                let of_pod = |namespace: &str, name: &str| {
                    let order = |w: &Arc<Workload>| (w.namespace.as_str(), w.name.as_str()).cmp(&(namespace, name));
                    workloads.get(..pods).and_then(|pods| pods.binary_search_by(order).ok())
                };
                let behind = match (&endpoint.pod, owner(address)) {
                    (Some(pod), _) => of_pod(&slice.namespace, pod),
                    (None, Some(owner)) if owner.namespace != slice.namespace => {
                        let message = format!(
                            "{address} is pod {}/{} of another namespace, it is not used",
                            owner.namespace, owner.name
                        );
                        problems.push((slice_key(), Problem::error("endpoints", message)));
                        continue;
                    }
                    (None, Some(owner)) => of_pod(&owner.namespace, &owner.name),
                    (None, None) => None,
                };
                let at = match behind {
                    Some(at) => at,
                    None if endpoint.pod.is_some() => continue,
                    None => *made.entry((name.clone(), *address)).or_insert_with(|| {
                        let uid = format!(
                            "{}/discovery.k8s.io/EndpointSlice/{}/{}/{address}",
                            settings.cluster_id, slice.namespace, slice.name
                        );
                        let mut workload = Workload::new(uid, slice.namespace.clone(), slice.name.clone());
                        workload.addresses = vec![*address];
                        workload.trust_domain = settings.trust_domain.clone();
                        workload.cluster_id = settings.cluster_id.clone();
                        workload.node = endpoint.node.clone();
                        workload.workload_type = WorkloadType::Pod;
                        workload.canonical_name = shown(&slice.service);
                        workload.workload_name = shown(&slice.service);
                        workload.canonical_revision = "latest".into();
                        workload.health = if endpoint.ready { Health::Healthy } else { Health::Unhealthy };
                        workload.locality =
                            objects.nodes.get(&endpoint.node).map(|n| n.locality.clone()).unwrap_or_default();
                        if workload.locality.zone.is_empty() {
                            workload.locality.zone = endpoint.zone.clone();
                        }
                        workloads.push(Arc::new(workload));
                        workloads.len() - 1
                    }),
                };
                if services.by_key.contains_key(&key) {
                    let workload = Arc::make_mut(&mut workloads[at]);
                    Arc::make_mut(&mut workload.services).insert(key.clone(), ports.clone());
                    // Beside that of the pod's other services: where both are of a port, both must let somebody pass.
                    if let Some(guard) = guard.as_ref().filter(|_| at < pods) {
                        list(workload, guard.name(&workload.namespace));
                        guards.insert((workload.namespace.clone(), guard.clone()));
                    }
                    // As pods that a headless service selects; what is no pod has nothing to say against it, and no agent that could lead strangers.
                    if let Some((address, with_strangers)) = led.as_ref().filter(|_| workload.waypoint.is_none()) {
                        let own = NamespacedName::new(workload.namespace.clone(), workload.name.clone());
                        let pod = objects.pods.get(&own).filter(|_| at < pods);
                        if pod.is_none_or(|pod| waypoints.may_be_led(pod)) {
                            workload.waypoint = Some(address.clone());
                            if *with_strangers && pod.is_some_and(|pod| pod.enrolled) {
                                list(workload, Policy::through(workload.namespace.clone()).name);
                                through.insert(workload.namespace.clone());
                            }
                        }
                    }
                }
            }
        }
    }
    (guards, through)
}

/// Pods of the service accounts that agents have, wherever they are.
pub fn agents(objects: &Objects, settings: &Settings) -> BTreeMap<ArcStr, AgentPod> {
    let is_agent = |p: &&Arc<Pod>| {
        let has = |(ns, name): &(_, _)| *ns == p.namespace && *name == p.service_account;
        p.state != State::Ended && settings.agents.iter().any(has)
    };
    let entry = |p: &Arc<Pod>| {
        let pod = AgentPod {
            namespace: p.namespace.clone(),
            name: p.name.clone(),
            account: p.service_account.clone(),
            node: p.node.clone(),
        };
        Some((p.uid.clone()?, pod))
    };
    objects.pods.values().filter(is_agent).filter_map(entry).collect()
}
