//! Pods of Gateways: which pod serves which Gateway, where a waypoint is found, and what its pods say that rules of Istio go by. Called by the index of waypoints, and
//! by whoever says which pods may have what.

use std::collections::{BTreeMap, BTreeSet};

use mesh_core::workload::GatewayDestination;
use mesh_core::{ArcStr, NamespacedName, ports};

use super::gateways::{Deployed, Standing, Waypoint};
use super::{Settings, Waypoints, key};
use crate::diagnosis::Problem;
use crate::index::view::WaypointPod;
use crate::resource::gateway_topology::GatewayTopology;
use crate::resource::pod::State;
use crate::resource::waypoint::GATEWAY_NAME;
use crate::resource::{Labels, Objects, Pod, Secured, Service};

/// Labels of the pods of gateways, as far as Gateways of Istio select by them.
pub type PodLabels = BTreeMap<NamespacedName, BTreeSet<Labels>>;

/// What pods of gateways say of what stands before them.
pub type PodTopologies = BTreeMap<NamespacedName, GatewayTopology>;

impl Waypoints {
    /// By the service that has its name, or else by the address of a pod of it.
    pub(super) fn destination(
        &self,
        name: &NamespacedName,
        objects: &Objects,
        settings: &Settings,
    ) -> Option<GatewayDestination> {
        let has_port = |service: &Service| service.ports.iter().any(|port| port.port == ports::HBONE);
        let deployed = self.waypoint(name).map(|waypoint| &waypoint.deployed);
        let own = deployed.map_or_else(|| name.name.clone(), |deployed| deployed.service.clone());
        let own = NamespacedName::new(name.namespace.clone(), own);
        // Behind one of another Gateway that is called so, too, are proxies that know nothing of what this one serves and enforces.
        let is_others = |service: &Service| {
            let label = service.selector.as_ref().and_then(|labels| labels.get(GATEWAY_NAME));
            label.is_some_and(|label| deployed.is_some_and(|deployed| deployed.label != *label))
        };
        match objects.services.get(&own) {
            Some(service) if !service.is_alias && has_port(service) && !is_others(service) => {
                Some(GatewayDestination::Service(key(&own.namespace, &own.name, settings)))
            }
            _ => {
                let serves = |pod: &&Pod| self.served_by(pod).is_some_and(|(own, _)| own == *name);
                let pods = pods_of(objects, &name.namespace).filter(serves);
                // One that is ready, if there is any, and of these always the same.
                let (ready, others): (Vec<_>, Vec<_>) = pods.partition(|pod| pod.state == State::Ready);
                let address = *ready.into_iter().chain(others).flat_map(|pod| &pod.addresses).next()?;
                let network = ArcStr::new();
                Some(GatewayDestination::Address(mesh_core::workload::NetworkAddress { network, address }))
            }
        }
    }

    /// The waypoint that a pod serves: it says so, and has the service account that the Gateway's pods have. Who has that shows the waypoint's
    /// identity anyway; a label alone proves nothing.
    pub fn served_by(&self, pod: &Pod) -> Option<(NamespacedName, &Waypoint)> {
        let name = self.gateway_of(pod)?;
        let waypoint = self.waypoint(&name)?;
        Some((name, waypoint))
    }

    /// The Gateway that a pod serves, waypoint or not, by the same signs.
    pub fn gateway_of(&self, pod: &Pod) -> Option<NamespacedName> {
        if pod.host_network || pod.state == State::Ended {
            return None;
        }
        let (name, own) = self.named_by(pod)?;
        (own.account == pod.service_account).then_some(name)
    }

    /// The same, if it is no waypoint.
    pub fn edge_of(&self, pod: &Pod) -> Option<NamespacedName> {
        self.gateway_of(pod).filter(|name| self.waypoint(name).is_none())
    }

    /// The Gateway that a pod says it serves. A name that is longer than a label's value may be stands there cut.
    fn named_by(&self, pod: &Pod) -> Option<(NamespacedName, &Deployed)> {
        let label = pod.labels.get(GATEWAY_NAME)?.as_str();
        let name = NamespacedName::new(pod.namespace.clone(), label);
        if let Some(own) = self.gateways.get(&name).and_then(Standing::deployed) {
            return Some((name, own));
        }
        let of = self.of(&pod.namespace).filter_map(|(name, standing)| Some((name.clone(), standing.deployed()?)));
        of.into_iter().find(|(_, own)| own.label == label)
    }

    /// Gateways of a namespace.
    fn of(&self, namespace: &ArcStr) -> impl Iterator<Item = (&NamespacedName, &Standing)> + use<'_> {
        let (first, namespace) = (NamespacedName::new(namespace.clone(), ""), namespace.clone());
        self.gateways.range(first..).take_while(move |(name, _)| name.namespace == namespace)
    }

    /// Whether a service is that by which a waypoint is found.
    pub(super) fn finds(&self, service: &Service, own: &GatewayDestination) -> bool {
        self.of(&service.namespace).any(|(_, standing)| match standing {
            Standing::Ours(waypoint) => waypoint.destination.as_ref() == Some(own),
            _ => false,
        })
    }

    /// Whether a pod may serve a Gateway for all that is known: it serves one, or says so before Gateways and their classes have been heard of. What an agent
    /// has captured serves none. Its identity is nobody else's.
    pub fn may_serve(&self, pod: &Pod) -> bool {
        let Some(label) = pod.labels.get(GATEWAY_NAME) else { return false };
        let name = NamespacedName::new(pod.namespace.clone(), label.as_str());
        let is_unknown = match self.gateways.get(&name) {
            Some(standing) => *standing == Standing::Unknown,
            None => self.unheard,
        };
        self.gateway_of(pod).is_some() || is_unknown && !pod.enrolled && !pod.host_network
    }

    /// What a pod is to be told that says it serves a waypoint.
    pub fn pod_problem(&self, pod: &Pod) -> Option<Problem> {
        let (name, own) = self.named_by(pod)?;
        if pod.host_network {
            let message = format!("a pod of Gateway {name} has a network of its own, this one has its node's");
            let help = "write `hostNetwork: false`; until then it serves nobody";
            return Some(Problem::error("spec.hostNetwork", message).help(help));
        }
        let (own, wanted) = (&pod.service_account, &own.account);
        if own != wanted {
            let message = format!("a pod of Gateway {name} has the service account {wanted}, this one has {own}");
            let help = "until then it serves nobody";
            return Some(Problem::error("spec.serviceAccountName", message).help(help));
        }
        pod.enrolled.then(|| {
            let message = "a waypoint or gateway reaches the mesh itself, and the node's agent has captured this pod";
            let problem = Problem::error("metadata.labels[\"istio.io/dataplane-mode\"]", message);
            problem.help("write `none`; until then nobody reaches it")
        })
    }

    /// The pods that serve waypoints of ours, in namespaces of the mesh. A pod that runs on no node that is known runs nowhere: whoever has a token that was
    /// made for it is not that pod.
    pub fn pods(&self, objects: &Objects, settings: &Settings) -> BTreeMap<NamespacedName, WaypointPod> {
        let namespaces: BTreeSet<&ArcStr> = self.deployed().map(|(name, _)| &name.namespace).collect();
        let mut pods = BTreeMap::new();
        for namespace in namespaces.into_iter().filter(|name| settings.discovers(objects, name)) {
            for pod in pods_of(objects, namespace) {
                let Some(gateway) = self.gateway_of(pod) else { continue };
                if !objects.nodes.contains_key(&pod.node) {
                    continue;
                }
                let served = WaypointPod {
                    gateway,
                    uid: pod.uid.clone(),
                    account: pod.service_account.clone(),
                    node: pod.node.clone(),
                };
                pods.insert(NamespacedName::new(pod.namespace.clone(), pod.name.clone()), served);
            }
        }
        pods
    }

    /// Labels of pods that serve gateways, of those keys that any Gateway of Istio or policy selects by: what else their labels say changes nothing.
    pub fn labels(&self, objects: &Objects) -> PodLabels {
        let selectors = objects.routes.istio_gateways.values().map(|object| &object.spec.selector);
        let policies = objects.authorization_policies.values().filter_map(|secured| match secured {
            Secured::Readable(policy) => Some(&policy.selector),
            Secured::Unreadable(known) => known.selector.as_ref(),
        });
        let tokens = objects.routes.request_authentications.values();
        let tokens = tokens.filter_map(|object| Some(&object.spec.selector.as_ref()?.match_labels));
        let telemetries = objects.routes.telemetries.values();
        let telemetries = telemetries.filter_map(|object| Some(&object.spec.selector.as_ref()?.match_labels));
        let unread = objects.unread_authentications.values().filter_map(|known| known.selector.as_ref());
        let selectors = selectors.chain(policies).chain(tokens).chain(telemetries).chain(unread);
        let keys: BTreeSet<&String> = selectors.flat_map(Labels::keys).collect();
        let mut all = PodLabels::new();
        if keys.is_empty() {
            return all;
        }
        let namespaces: BTreeSet<&ArcStr> = self.deployed().map(|(name, _)| &name.namespace).collect();
        for pod in namespaces.into_iter().flat_map(|namespace| pods_of(objects, namespace)) {
            let Some(gateway) = self.gateway_of(pod) else { continue };
            let labels = pod.labels.iter().filter(|(key, _)| keys.contains(key));
            let labels = labels.map(|(key, value)| (key.clone(), value.clone())).collect();
            all.entry(gateway).or_default().insert(labels);
        }
        all
    }

    /// What pods that serve gateways say of what stands before them. Where pods of one disagree, as while others take their place, what is believed least counts.
    pub fn topologies(&self, objects: &Objects) -> PodTopologies {
        let mut all = PodTopologies::new();
        let namespaces: BTreeSet<&ArcStr> = self.deployed().map(|(name, _)| &name.namespace).collect();
        for pod in namespaces.into_iter().flat_map(|namespace| pods_of(objects, namespace)) {
            let Some(gateway) = self.gateway_of(pod) else { continue };
            let own = pod.topology.as_deref().cloned().unwrap_or_default();
            let least = all.get(&gateway).map_or_else(|| own.clone(), |known: &GatewayTopology| known.least(&own));
            all.insert(gateway, least);
        }
        all.retain(|_, said| *said != GatewayTopology::default());
        all
    }
}

fn pods_of<'a>(objects: &'a Objects, namespace: &'a ArcStr) -> impl Iterator<Item = &'a Pod> {
    let first = NamespacedName::new(namespace.clone(), "");
    let pods = objects.pods.range(first..).map(|(_, pod)| &**pod);
    pods.take_while(move |pod| pod.namespace == *namespace)
}
