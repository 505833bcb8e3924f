//! What services, pods and entries are bound to, by what they say or their namespace says for them. Called while objects are joined.

use std::collections::{BTreeMap, BTreeSet};

use mesh_core::workload::GatewayDestination;
use mesh_core::{ArcStr, GatewayAddress, NamespacedName, ports};

use super::canary::{self, Beside, Wishes};
use super::{Account, Settings, Standing, Traffic, Waypoints, key, service_entry};
use crate::diagnosis::Problem;
use crate::resource::routing::{Routed, ServiceEntry, WorkloadEntry};
use crate::resource::waypoint::{Asked, field};
use crate::resource::{Labels, Objects, Pod, Service, meta};
use crate::verdict::Optional;

/// End of the name of a waypoint that there is not: nobody can have a service of that name.
const NOWHERE: &str = "waypoint.invalid";

/// Services by the gateway of the waypoint that they are bound to; a waypoint without any has an entry, too.
pub type Served = BTreeMap<NamespacedName, BTreeSet<NamespacedName>>;

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
    pub(super) fn bind(
        &self,
        traffic: Traffic,
        own: &Asked,
        namespace: &ArcStr,
        objects: &Objects,
        settings: &Settings,
    ) -> Bound {
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
}

/// The waypoint that counts for what says this in a namespace, and whether it says it itself.
pub(super) fn asked<'a>(own: &'a Asked, namespace: &str, objects: &'a Objects) -> Option<(&'a NamespacedName, bool)> {
    match (own, objects.namespaces.get(namespace).map(|known| &known.waypoint)) {
        (Asked::Of(name), _) => Some((name, true)),
        (Asked::Unsaid, Some(Asked::Of(name))) => Some((name, false)),
        _ => None,
    }
}

pub(super) fn at(destination: GatewayDestination) -> GatewayAddress {
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
