//! Canaries: a second waypoint that has a share of what comes for a service, as Istio's labels `istio.io/use-waypoint-canary` ask for it. Pure; the joining asks for
//! each service.
//!
//! A canary that cannot be used is left out, and all goes through the waypoint: nothing is closed by it, and nothing goes around. One that counts is a waypoint of the
//! service as its own is: it has its table, and may reach the pods that let nothing go around.

use mesh_core::{ArcStr, GatewayAddress, NamespacedName, service};

use super::{Account, Standing, Traffic, Waypoints, asked, at};
use crate::diagnosis::Problem;
use crate::index::Settings;
use crate::resource::routing::{Routed, ServiceEntry};
use crate::resource::waypoint::{Asked, AskedCanary, CANARY, CANARY_WEIGHT};
use crate::resource::{Objects, Service};

/// What a service or an entry says of its waypoints, both of them.
#[derive(Clone, Copy)]
pub(super) struct Wishes<'a> {
    pub waypoint: &'a Asked,
    pub canary: Option<&'a AskedCanary>,
    pub namespace: &'a ArcStr,
}

/// A canary that counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beside {
    /// Whose table has the requests, too.
    pub gateway: NamespacedName,
    /// Where it is, if anybody is there.
    pub address: Option<GatewayAddress>,
    /// Who its pods are.
    pub account: Account,
    /// Its share of 100.
    pub weight: u32,
}

/// Why a canary is left out, in Istio's word and as a sentence, and whether its label says it or its annotation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unusable {
    pub reason: &'static str,
    pub why: String,
    is_weight: bool,
}

impl<'a> Wishes<'a> {
    pub fn of_service(service: &'a Service) -> Self {
        Self { waypoint: &service.waypoint, canary: service.canary.as_ref(), namespace: &service.namespace }
    }

    /// The canary that counts for it, whatever it is, and whether it is its own: a namespace's counts for who has the namespace's waypoint as well.
    fn canary(&self, objects: &'a Objects) -> Option<(&'a AskedCanary, bool)> {
        let (_, is_own) = asked(self.waypoint, self.namespace, objects)?;
        match self.canary {
            Some(canary) => Some((canary, true)),
            None if is_own => None,
            None => Some((objects.namespaces.get(self.namespace)?.canary.as_ref()?, false)),
        }
    }

    /// The Gateways that are named.
    pub fn gateways(self, objects: &'a Objects) -> impl Iterator<Item = &'a NamespacedName> + use<'a> {
        let own = asked(self.waypoint, self.namespace, objects).map(|(name, _)| name);
        own.into_iter().chain(self.canary(objects).map(|(canary, _)| &canary.waypoint))
    }
}

/// What an entry says of its canary.
pub(super) fn of_entry(entry: &Routed<ServiceEntry>) -> Option<AskedCanary> {
    AskedCanary::of(Some(&entry.marks), Some(&entry.marks), &entry.namespace)
}

impl Beside {
    /// What clients are told.
    pub fn told(&self) -> Option<service::Canary> {
        Some(service::Canary { waypoint: self.address.clone()?, weight: self.weight })
    }
}

impl Unusable {
    fn new(reason: &'static str, why: String) -> Self {
        Self { reason, why, is_weight: false }
    }

    /// What the object is told whose labels say it.
    pub fn problem(&self) -> Problem {
        let field = match self.is_weight {
            true => format!("metadata.annotations[\"{CANARY_WEIGHT}\"]"),
            false => format!("metadata.labels[\"{CANARY}\"]"),
        };
        Problem::warning(field, format!("{}: all goes through the waypoint", self.why))
    }
}

impl Waypoints {
    /// The canary of what says this, whose waypoint is `primary`; and what is told of it, with whether that is the object's own.
    pub(super) fn beside(
        &self,
        primary: &NamespacedName,
        wishes: Wishes<'_>,
        objects: &Objects,
        settings: &Settings,
    ) -> (Option<Beside>, Option<(Unusable, bool)>) {
        let Some((canary, is_own)) = wishes.canary(objects) else { return (None, None) };
        match self.usable(primary, canary, wishes.namespace, objects, settings) {
            Ok(beside) if beside.address.is_some() => (Some(beside), None),
            // Its table is made whether it can be reached or not: then that depends on no pod.
            Ok(beside) => {
                let why = format!("canary {} has neither a Service with port 15008 nor a pod", canary.waypoint);
                (Some(beside), Some((Unusable::new("WaypointCanaryNotReady", why), is_own)))
            }
            Err(unusable) => (None, Some((unusable, is_own))),
        }
    }

    fn usable(
        &self,
        primary: &NamespacedName,
        canary: &AskedCanary,
        namespace: &ArcStr,
        objects: &Objects,
        settings: &Settings,
    ) -> Result<Beside, Unusable> {
        let name = &canary.waypoint;
        let weight = canary.weight.clone().map_err(|text| Unusable {
            reason: "CanaryInvalidWeight",
            why: format!("the canary's weight {text:?} is no whole number from 0 to 100"),
            is_weight: true,
        })?;
        if name == primary {
            return Err(Unusable::new("CanarySameAsPrimary", format!("canary {name} is the waypoint itself")));
        }
        let Some(Standing::Ours(waypoint)) = self.gateways.get(name) else {
            let why = self.flaw(name, namespace, objects, settings).map_or_else(
                || format!("canary {name} is not known yet"),
                |flaw| format!("canary {name} is no waypoint of this mesh ({})", flaw.message),
            );
            return Err(Unusable::new("WaypointCanaryNotReady", why));
        };
        if !waypoint.is_for(Traffic::Service) {
            return Err(Unusable::new(
                "CanaryUnsupportedTrafficType",
                format!("canary {name} does not take connections to services"),
            ));
        }
        if !waypoint.takes(name, namespace, objects) {
            return Err(Unusable::new(
                "CanaryAttachmentDenied",
                format!(
                    "canary {name} takes nothing of {namespace}: see `allowedRoutes` of its listener on port 15008"
                ),
            ));
        }
        let account = (name.namespace.clone(), waypoint.deployed.account.clone());
        Ok(Beside { gateway: name.clone(), address: waypoint.destination.clone().map(at), account, weight })
    }
}
