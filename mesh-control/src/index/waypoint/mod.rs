//! Waypoints: which Gateways are any, which pods serve them, and what is bound to them. Pure; the joining asks for each service and each pod
//! ([`bound`]), and whoever says who may have what knows waypoints by what is found here.
//!
//! What names a waypoint that there is not, or that does not take it, is *closed*: it is bound to a waypoint that nobody can find, and so clients refuse to
//! connect. Istio leaves it unbound, and requests go around the policies that the label was written for as soon as a Gateway is deleted, renamed or not made
//! yet. A waypoint that is down is never gone around (`mesh_core::resolve`), and one that is missing is down for good. Only who wrote the label is closed by it.
//! Unbound is what the waypoint is not for, which its owner decided and does not come and go, and what another controller's Gateway would
//! serve: that is not of this mesh, and neither are its policies.

mod bound;
mod bypass;
mod canary;
mod gateways;
mod held;
mod optional;
mod serving;
mod told;

use std::collections::{BTreeMap, BTreeSet};

use mesh_core::{ArcStr, NamespacedName};

use super::Settings;
use super::service::key;
use super::service_entry;
use crate::diagnosis::Problem;
use crate::resource::waypoint::{Asked, AskedCanary};
use crate::resource::{Key, Kind, Objects};
pub use bound::{Bound, Served};
use bound::{asked, at};
pub use bypass::{Account, Guard, Guarded};
pub use canary::Beside;
pub use gateways::{Deployed, Standing, Waypoint, has_labels};
use held::Held;
pub use serving::{PodLabels, PodTopologies};

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
        problems.extend(waypoints.problems(objects, settings));
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
