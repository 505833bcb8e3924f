//! Waypoints: which Gateways are any, which pods serve them, and what is bound to them. Pure; the joining asks for each service and each pod
//! ([`Waypoints::bind`]), and whoever says who may have what knows waypoints by what is found here.
//!
//! What names a waypoint that there is not, or that does not take it, is *closed*: it is bound to a waypoint that nobody can find, and so clients refuse to
//! connect. Istio leaves it unbound, and requests go around the policies that the label was written for as soon as a Gateway is deleted, renamed or not made
//! yet. A waypoint that is down is never gone around (`mesh_core::resolve`), and one that is missing is down for good. Only who wrote the label is closed by it.
//! Unbound is what the waypoint is not for, which its owner decided and does not come and go, and what another controller's Gateway would
//! serve: that is not of this mesh, and neither are its policies.

mod bypass;
mod canary;
mod gateways;
mod held;
mod optional;

use std::collections::{BTreeMap, BTreeSet};

use mesh_core::workload::GatewayDestination;
use mesh_core::{ArcStr, GatewayAddress, NamespacedName, ports};

use super::Settings;
use super::service::key;
use super::service_entry;
use super::view::WaypointPod;
use crate::diagnosis::{Problem, Severity};
use crate::resource::gateway_topology::GatewayTopology;
use crate::resource::pod::State;
use crate::resource::routing::{Routed, ServiceEntry, WorkloadEntry};
use crate::resource::waypoint::{Asked, AskedCanary, GATEWAY_NAME, field};
use crate::resource::{Key, Kind, Labels, Objects, Pod, Secured, Service, meta};
use crate::verdict::{self, Binding, Optional};
pub use bypass::{Account, Guard, Guarded};
pub use canary::Beside;
use canary::Wishes;
pub use gateways::{Deployed, Standing, Waypoint, has_labels};
use held::Held;

/// End of the name of a waypoint that there is not: nobody can have a service of that name.
const NOWHERE: &str = "waypoint.invalid";

/// Why a service is not bound whose waypoint is not for what its clients ask for, in Istio's word.
const UNSUPPORTED: &str = "UnsupportedTrafficType";

/// Services by the gateway of the waypoint that they are bound to; a waypoint without any has an entry, too.
pub type Served = BTreeMap<NamespacedName, BTreeSet<NamespacedName>>;

/// Labels of the pods of gateways, as far as Gateways of Istio select by them.
pub type PodLabels = BTreeMap<NamespacedName, BTreeSet<Labels>>;

/// What pods of gateways say of what stands before them.
pub type PodTopologies = BTreeMap<NamespacedName, GatewayTopology>;

/// What clients ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// The address of a service.
    Service,
    /// The address of a workload.
    Workload,
}

/// All Gateways, as far as they have to do with waypoints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Waypoints {
    gateways: BTreeMap<NamespacedName, Standing>,
    /// Gateways have never been heard of.
    unheard: bool,
    /// What policies are bound to.
    held: Held,
}

/// What comes of what an object says, or its namespace for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bound {
    /// What is told to clients.
    pub address: Option<GatewayAddress>,
    /// Whose table has its requests.
    pub gateway: Option<NamespacedName>,
    /// Namespace and service account of who is found there; `None` if that is nobody. Of a Gateway that was not heard of it is what its name says.
    pub account: Option<Account>,
    /// What the object is to be told, if it is its own label.
    pub problem: Option<Problem>,
    /// What has a share of it.
    pub canary: Option<Beside>,
}

impl Bound {
    /// Whoever is found at its waypoint or its canary.
    pub fn accounts(&self) -> BTreeSet<Account> {
        self.account.iter().chain(self.canary.iter().map(|canary| &canary.account)).cloned().collect()
    }

    /// What clients are told: its waypoint and its canary.
    pub fn told(self) -> (Option<GatewayAddress>, Option<mesh_core::service::Canary>) {
        let canary = self.canary.as_ref().and_then(Beside::told);
        (self.address, canary)
    }
}

impl Waypoints {
    /// Those that there are.
    pub fn index(objects: &Objects, settings: &Settings, problems: &mut Vec<(Key, Problem)>) -> Self {
        let mut gateways = BTreeMap::new();
        for (name, gateway) in &objects.routes.gateways {
            if settings.heeds(objects, &name.namespace) {
                gateways.insert(name.clone(), Standing::of(gateway, objects, settings, problems));
            }
        }
        let (unheard, held) = (objects.unheard.contains(&Kind::Gateway), Held::index(objects, settings));
        let mut waypoints = Self { gateways, unheard, held };
        let named: Vec<_> = waypoints.ours().map(|(name, _)| name.clone()).collect();
        for name in named {
            let destination = waypoints.destination(&name, objects, settings);
            if let Some(Standing::Ours(waypoint)) = waypoints.gateways.get_mut(&name) {
                waypoint.destination = destination;
            }
        }
        for namespace in objects.namespaces.values() {
            let Asked::Of(name) = &namespace.waypoint else { continue };
            let own =
                Wishes { waypoint: &namespace.waypoint, canary: namespace.canary.as_ref(), namespace: &namespace.name };
            let canary = waypoints.beside(name, own, objects, settings).1.map(|(unusable, _)| unusable.problem());
            for problem in waypoints.flaw(name, &namespace.name, objects, settings).into_iter().chain(canary) {
                let key = Key { kind: Kind::Namespace, namespace: ArcStr::new(), name: namespace.name.clone() };
                problems.push((key, problem));
            }
        }
        let says =
            |service: &&std::sync::Arc<Service>| matches!(service.waypoint, Asked::Of(_)) || service.canary.is_some();
        for service in objects.services.values().filter(says) {
            if let Some(mut problem) = waypoints.service(service, objects, settings).problem {
                let is_closed = problem.severity == Severity::Error;
                if is_closed && waypoints.optional(service, objects, settings) == Optional::InForce {
                    problem.help =
                        Some("start it; it is optional: until then clients reach the service without it".into());
                }
                let (namespace, name) = (service.namespace.clone(), service.name.clone());
                problems.push((Key { kind: Kind::Service, namespace, name }, problem));
            }
        }
        for service in objects.services.values() {
            // Few are headless, and nothing else is told.
            let binding = service.is_headless.then(|| waypoints.binding(service, objects, settings)).flatten();
            let unreachable = match binding {
                Some(Binding::Refused(reason, _)) if reason == UNSUPPORTED => {
                    asked(&service.waypoint, &service.namespace, objects)
                        .and_then(|(name, _)| waypoints.unreachable(service, name, objects))
                }
                _ => None,
            };
            let idle = waypoints.idle(service, objects, settings);
            let not_optional = waypoints.not_optional(service, objects, settings);
            for problem in idle.into_iter().chain(unreachable).chain(not_optional) {
                let (namespace, name) = (service.namespace.clone(), service.name.clone());
                problems.push((Key { kind: Kind::Service, namespace, name }, problem));
            }
        }
        waypoints
    }

    /// Waypoints of ours.
    pub fn ours(&self) -> impl Iterator<Item = (&NamespacedName, &Waypoint)> {
        self.gateways.iter().filter_map(|(name, standing)| match standing {
            Standing::Ours(waypoint) => Some((name, waypoint)),
            _ => None,
        })
    }

    fn waypoint(&self, name: &NamespacedName) -> Option<&Waypoint> {
        match self.gateways.get(name) {
            Some(Standing::Ours(waypoint)) => Some(waypoint),
            _ => None,
        }
    }

    /// Those of ours that listen at the edge, and whether they do nothing else.
    pub fn edges(&self) -> impl Iterator<Item = (&NamespacedName, &Deployed, bool)> {
        self.deployed().filter_map(|(name, own)| match self.waypoint(name) {
            None => Some((name, own, true)),
            Some(waypoint) => waypoint.is_edge().then_some((name, own, false)),
        })
    }

    /// Whether a Gateway of ours is no waypoint.
    pub fn is_edge(&self, name: &NamespacedName) -> bool {
        self.waypoint(name).is_none()
    }

    /// What there is of each that is ours, waypoint or not.
    pub fn deployed(&self) -> impl Iterator<Item = (&NamespacedName, &Deployed)> {
        self.gateways.iter().filter_map(|(name, standing)| Some((name, standing.deployed()?)))
    }

    /// By the service that has its name, or else by the address of a pod of it.
    fn destination(&self, name: &NamespacedName, objects: &Objects, settings: &Settings) -> Option<GatewayDestination> {
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
    fn finds(&self, service: &Service, own: &GatewayDestination) -> bool {
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

    /// Which services each waypoint of ours serves. It depends on no pod.
    pub fn served(&self, objects: &Objects, settings: &Settings) -> Served {
        let mut served: Served = self.ours().map(|(name, _)| (name.clone(), BTreeSet::new())).collect();
        for service in objects.services.values().filter(|service| !service.is_alias) {
            let Bound { gateway, canary, .. } = self.service(service, objects, settings);
            for gateway in gateway.into_iter().chain(canary.map(|canary| canary.gateway)) {
                served.entry(gateway).or_default().insert(key(&service.namespace, &service.name, settings));
            }
        }
        for entry in service_entry::entries(objects, settings) {
            let Bound { gateway, canary, .. } = self.entry(entry, objects, settings);
            for gateway in gateway.into_iter().chain(canary.map(|canary| canary.gateway)) {
                let hosts = service_entry::hosts(entry, objects, settings);
                served.entry(gateway).or_default().extend(hosts.map(|(_, host)| service_entry::key(entry, host)));
            }
        }
        served
    }

    /// What a service is bound to: that by which a waypoint is found is never. One that has a waypoint's name and nothing else of it is a service as others.
    pub fn service(&self, service: &Service, objects: &Objects, settings: &Settings) -> Bound {
        let own = GatewayDestination::Service(key(&service.namespace, &service.name, settings));
        if self.finds(service, &own) {
            return Bound::default();
        }
        self.both(Wishes::of_service(service), objects, settings)
    }

    /// What clients of a service are told of its waypoint: where it is, which canary it has, and whether it is optional.
    pub fn of_service(
        &self,
        service: &Service,
        objects: &Objects,
        settings: &Settings,
    ) -> (Option<GatewayAddress>, Option<mesh_core::service::Canary>, bool) {
        let is_optional = self.optional(service, objects, settings) == Optional::InForce;
        let (waypoint, canary) = self.service(service, objects, settings).told();
        (waypoint, canary, is_optional)
    }

    /// What the hosts of a ServiceEntry are bound to. Those that are closed by what their namespace says have nothing else that tells of it.
    pub fn entry(&self, entry: &Routed<ServiceEntry>, objects: &Objects, settings: &Settings) -> Bound {
        let (own, canary) = (Asked::of(Some(&entry.marks), &entry.namespace), canary::of_entry(entry));
        let wishes = Wishes { waypoint: &own, canary: canary.as_ref(), namespace: &entry.namespace };
        let mut bound = self.both(wishes, objects, settings);
        if let (Some(_), Some((name, false))) = (&bound.address, asked(&own, &entry.namespace, objects))
            && let Some(flaw) = self.flaw(name, &entry.namespace, objects, settings)
        {
            let message = format!("{}, which the namespace names", flaw.message);
            bound.problem = Some(Problem { field: "spec.hosts".into(), message, ..flaw });
        }
        bound
    }

    /// What comes of what a service says: its waypoint, and the canary beside that if that is a waypoint.
    fn both(&self, wishes: Wishes<'_>, objects: &Objects, settings: &Settings) -> Bound {
        let mut bound = self.bind(Traffic::Service, wishes.waypoint, wishes.namespace, objects, settings);
        let Some(primary) = &bound.gateway else { return bound };
        let (canary, unusable) = self.beside(primary, wishes, objects, settings);
        let told = unusable.filter(|(_, is_own)| *is_own).map(|(unusable, _)| unusable.problem());
        bound.canary = canary;
        bound.problem = bound.problem.or(told);
        bound
    }

    /// What a pod is bound to, addressed as a workload. A pod of a waypoint is never: what it is asked for would come back to it.
    pub fn pod(&self, pod: &Pod, objects: &Objects, settings: &Settings) -> Bound {
        if self.served_by(pod).is_some() {
            return Bound::default();
        }
        let own = Asked::of(Some(&pod.labels), &pod.namespace);
        self.bind(Traffic::Workload, &own, &pod.namespace, objects, settings)
    }

    /// What a WorkloadEntry is bound to, addressed as a workload: clients are led there. No agent stands at it that could lead strangers, or refuse who goes around.
    pub fn workload_entry(&self, entry: &Routed<WorkloadEntry>, objects: &Objects, settings: &Settings) -> Bound {
        let own = Asked::of(Some(&entry.marks), &entry.namespace);
        self.bind(Traffic::Workload, &own, &entry.namespace, objects, settings)
    }

    /// What an endpoint that is written into a ServiceEntry is bound to by its own labels, likewise; without any it is bound to nothing.
    pub fn inline(&self, labels: &Labels, namespace: &ArcStr, objects: &Objects, settings: &Settings) -> Bound {
        match Asked::of(Some(labels), namespace) {
            Asked::Unsaid => Bound::default(),
            own => self.bind(Traffic::Workload, &own, namespace, objects, settings),
        }
    }

    /// What comes of what an object in `namespace` says, which goes before what the namespace says.
    fn bind(&self, traffic: Traffic, own: &Asked, namespace: &ArcStr, objects: &Objects, settings: &Settings) -> Bound {
        let Some((name, is_own)) = asked(own, namespace, objects) else { return Bound::default() };
        if !settings.discovers(objects, namespace) {
            return Bound::default();
        }
        // A namespace is told by itself, once.
        let told = |problem: Option<Problem>| problem.filter(|_| is_own);
        let flaw = self.flaw(name, namespace, objects, settings);
        match (self.gateways.get(name), flaw) {
            (Some(Standing::Foreign), flaw) => Bound { problem: told(flaw), ..Bound::default() },
            (Some(Standing::Ours(waypoint)), _) if !waypoint.is_for(traffic) => {
                let message = format!("Gateway {name} is not for {traffic}s: it has no effect");
                let problem = Problem::warning(field(), message);
                let help = "label the Gateway `istio.io/waypoint-for: all`, or another object";
                Bound { problem: told(Some(problem.help(help))), ..Bound::default() }
            }
            // Its table is made whether it can be reached or not: then that depends on no pod.
            (Some(Standing::Ours(waypoint)), flaw) if waypoint.takes(name, namespace, objects) => {
                let address = waypoint.destination.clone().map_or_else(|| nowhere(name, namespace), at);
                let account = Some((name.namespace.clone(), waypoint.deployed.account.clone()));
                let (gateway, problem) = (Some(name.clone()), told(flaw));
                Bound { address: Some(address), gateway, account, problem, ..Bound::default() }
            }
            // It may be a waypoint: its service is asked for, and if it is none, nobody is found.
            (None | Some(Standing::Unknown), None) => {
                let service = is_name(name).then(|| key(&name.namespace, &name.name, settings));
                let address =
                    service.map_or_else(|| nowhere(name, namespace), |key| at(GatewayDestination::Service(key)));
                let account = Some((name.namespace.clone(), name.name.clone()));
                Bound { address: Some(address), account, ..Bound::default() }
            }
            (_, flaw) => Bound { address: Some(nowhere(name, namespace)), problem: told(flaw), ..Bound::default() },
        }
    }

    /// What a service is told; nothing, if it has to do with no waypoint.
    pub fn binding(&self, service: &Service, objects: &Objects, settings: &Settings) -> Option<Binding> {
        let (name, is_own) = asked(&service.waypoint, &service.namespace, objects)?;
        let own = GatewayDestination::Service(key(&service.namespace, &service.name, settings));
        let is_it = self.finds(service, &own);
        if service.is_alias || is_it || !settings.discovers(objects, &service.namespace) {
            return None;
        }
        let optional = self.optional(service, objects, settings);
        let told = |reason| {
            let flaw = self.flaw(name, &service.namespace, objects, settings)?;
            if optional == Optional::InForce {
                let message =
                    format!("{}; it is optional: until then clients reach the service without it", flaw.message);
                return Some(Binding::Refused(reason, message));
            }
            let help = flaw.help.map(|help| format!(" ({help})")).unwrap_or_default();
            Some(Binding::Refused(reason, format!("{}{help}", flaw.message)))
        };
        match self.gateways.get(name) {
            None if self.unheard => Some(Binding::Untold),
            Some(Standing::Unknown | Standing::Foreign) => Some(Binding::Untold),
            None | Some(Standing::Nobody(_) | Standing::Edge(_)) => told("WaypointIsNotReady"),
            Some(Standing::Ours(waypoint)) if !waypoint.is_for(Traffic::Service) => is_own.then(|| {
                let message = format!("waypoint {name} does not take connections to services");
                Binding::Refused(UNSUPPORTED, message)
            }),
            Some(Standing::Ours(waypoint)) if !waypoint.takes(name, &service.namespace, objects) => {
                told("AttachmentDenied")
            }
            Some(Standing::Ours(waypoint)) if waypoint.destination.is_none() => told("WaypointIsNotReady"),
            Some(Standing::Ours(_)) => match self.unreachable(service, name, objects) {
                // What only its namespace asks for, and harms nobody, it is not told.
                Some(_) if !is_own && !self.refuses(service, objects) => None,
                Some(Problem { message, help, .. }) => {
                    let help = help.map(|help| format!(" ({help})")).unwrap_or_default();
                    Some(Binding::Refused(UNSUPPORTED, format!("{message}{help}")))
                }
                None => {
                    let canary = self.beside(name, Wishes::of_service(service), objects, settings).1;
                    let no_canary = canary.map(|(unusable, _)| (unusable.reason, unusable.why));
                    Some(Binding::Accepted(name.clone(), verdict::Attached { optional, no_canary }))
                }
            },
        }
    }

    /// What all services are told that have to do with a waypoint.
    pub fn bindings(&self, objects: &Objects, settings: &Settings) -> BTreeMap<NamespacedName, Binding> {
        let told = objects.services.iter();
        told.filter_map(|(name, service)| Some((name.clone(), self.binding(service, objects, settings)?))).collect()
    }

    /// Why what names a waypoint in `namespace` is not bound to it, whatever it is.
    fn flaw(
        &self,
        name: &NamespacedName,
        namespace: &ArcStr,
        objects: &Objects,
        settings: &Settings,
    ) -> Option<Problem> {
        const CLOSED: &str = "until then its clients are refused: nothing goes around a waypoint";
        if !settings.discovers(objects, namespace) {
            return None;
        }
        let closed =
            |message: String, help: &str| Some(Problem::error(field(), message).help(format!("{help}; {CLOSED}")));
        match self.gateways.get(name) {
            None if self.unheard => None,
            Some(Standing::Unknown) => None,
            None => closed(format!("there is no Gateway {name}"), "make it, or write `none`"),
            Some(Standing::Nobody(class)) => closed(
                format!("Gateway {name} is of the class {class:?}, which nobody makes"),
                "write `undermesh-waypoint` there",
            ),
            Some(Standing::Edge(_)) => closed(
                format!("Gateway {name} is no waypoint"),
                "add a listener with `name: mesh`, `port: 15008` and `protocol: HBONE` to it",
            ),
            Some(Standing::Foreign) => {
                let message = format!("Gateway {name} is another controller's: agents do not go through it");
                Some(Problem::warning(field(), message).help("name one of the class `undermesh-waypoint`"))
            }
            Some(Standing::Ours(waypoint)) if !waypoint.takes(name, namespace, objects) => closed(
                format!("Gateway {name} takes nothing of {namespace}"),
                "let `allowedRoutes.namespaces` of its listener on port 15008 select the namespace",
            ),
            Some(Standing::Ours(waypoint)) if waypoint.destination.is_none() => {
                closed(format!("Gateway {name} has neither a Service with port 15008 nor a pod"), "start it")
            }
            Some(Standing::Ours(_)) => None,
        }
    }

    /// Namespaces of which pods may be bound, or serve, otherwise than with `self`; `None`: all of them.
    pub fn moved(&self, new: &Self, objects: &Objects) -> Option<BTreeSet<ArcStr>> {
        let (old, held) = (&self.held, &new.held);
        if self.unheard != new.unheard
            || (old.absent, old.all, &old.namespaces) != (held.absent, held.all, &held.namespaces)
        {
            return None;
        }
        let names = self.gateways.keys().chain(new.gateways.keys());
        let changed: BTreeSet<_> = names.filter(|name| self.gateways.get(*name) != new.gateways.get(*name)).collect();
        let changed: BTreeSet<_> =
            changed.into_iter().chain(old.gateways.symmetric_difference(&held.gateways)).collect();
        let held: BTreeSet<_> =
            old.services.symmetric_difference(&held.services).map(|s| s.namespace.clone()).collect();
        if changed.is_empty() {
            return Some(held);
        }
        let is_meant = |asked: &Asked| matches!(asked, Asked::Of(name) if changed.contains(name));
        let serving = changed.iter().map(|name| name.namespace.clone());
        let is_canary =
            |asked: &Option<AskedCanary>| asked.as_ref().is_some_and(|asked| changed.contains(&asked.waypoint));
        let namespaces = objects.namespaces.values().filter(|n| is_meant(&n.waypoint) || is_canary(&n.canary));
        let namespaces = namespaces.map(|n| n.name.clone());
        let pods = objects.pods.values().filter(|pod| is_meant(&Asked::of(Some(&pod.labels), &pod.namespace)));
        let services = objects.services.values();
        let services = services.filter(|service| is_meant(&service.waypoint) || is_canary(&service.canary));
        let own = pods.map(|pod| pod.namespace.clone()).chain(services.map(|service| service.namespace.clone()));
        Some(serving.chain(namespaces).chain(own).chain(held).collect())
    }
}

impl std::fmt::Display for Traffic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Traffic::Service => "service",
            Traffic::Workload => "workload",
        })
    }
}

/// The waypoint that counts for what says this in a namespace, and whether it says it itself.
fn asked<'a>(own: &'a Asked, namespace: &str, objects: &'a Objects) -> Option<(&'a NamespacedName, bool)> {
    match (own, objects.namespaces.get(namespace).map(|known| &known.waypoint)) {
        (Asked::Of(name), _) => Some((name, true)),
        (Asked::Unsaid, Some(Asked::Of(name))) => Some((name, false)),
        _ => None,
    }
}

fn at(destination: GatewayDestination) -> GatewayAddress {
    GatewayAddress { destination, hbone_port: ports::HBONE }
}

/// What nobody is: a service that cannot exist. Named after what was meant, as far as that can be a name: agents say it to whoever is refused, and take no
/// service whose waypoint they cannot read.
fn nowhere(name: &NamespacedName, namespace: &ArcStr) -> GatewayAddress {
    let service = match is_name(name) {
        true => NamespacedName::new(name.namespace.clone(), format!("{}.{}.{NOWHERE}", name.name, name.namespace)),
        false => NamespacedName::new(namespace.clone(), NOWHERE),
    };
    at(GatewayDestination::Service(service))
}

/// Whether a Gateway can be called so.
fn is_name(name: &NamespacedName) -> bool {
    meta::label(&name.namespace).is_ok() && meta::subdomain(&name.name).is_ok()
}

fn pods_of<'a>(objects: &'a Objects, namespace: &'a ArcStr) -> impl Iterator<Item = &'a Pod> {
    let first = NamespacedName::new(namespace.clone(), "");
    let pods = objects.pods.range(first..).map(|(_, pod)| &**pod);
    pods.take_while(move |pod| pod.namespace == *namespace)
}
