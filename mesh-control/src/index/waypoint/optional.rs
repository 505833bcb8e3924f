//! Whether clients of a service may go without its waypoint while nobody answers there: `undermesh.io/waypoint-optional: "true"` on it or on its namespace says so, and
//! nothing is bound to the waypoint that refuses anybody. Without that a waypoint that is down is never gone around. Pure; the joining asks for each service.
//!
//! The pods' guard (`bypass`) needs to know nothing of it: where there is one, somebody refuses what goes around, and then no waypoint is optional.

use mesh_core::NamespacedName;

use super::bypass::said;
use super::canary::Wishes;
use super::{Traffic, Waypoints, asked};
use crate::diagnosis::Problem;
use crate::index::Settings;
use crate::resource::waypoint::{Bypass, OPTIONAL};
use crate::resource::{Objects, Service};
use crate::verdict::Optional;

impl Waypoints {
    /// Whether the waypoint of a service is optional.
    pub fn optional(&self, service: &Service, objects: &Objects, settings: &Settings) -> Optional {
        let of_namespace = || objects.namespaces.get(&service.namespace).and_then(|known| known.optional);
        if service.is_alias || service.optional.or_else(of_namespace) != Some(true) {
            return Optional::Unsaid;
        }
        let Some((gateway, _)) = asked(&service.waypoint, &service.namespace, objects) else { return Optional::Unsaid };
        if self.service(service, objects, settings).gateway.is_none() {
            // There is none, or it takes nothing of this: what is missing is told, and closed.
            return Optional::Unsaid;
        }
        let name = NamespacedName::new(service.namespace.clone(), service.name.clone());
        let gateways = || Wishes::of_service(service).gateways(objects);
        let class = |gateway| objects.routes.gateways.get(gateway).map(|known| &*known.spec.gateway_class_name);
        let held = &self.held;
        // Of pods that are asked for themselves the namespace says it, whatever their service allows.
        let is_for_workloads = || self.waypoint(gateway).is_some_and(|waypoint| waypoint.is_for(Traffic::Workload));
        let refuses_pods = || said(&service.namespace, objects) == Bypass::Refuse && is_for_workloads();
        if service.is_headless {
            Optional::Closed("the service has no address, who asks for it asks for its pods")
        } else if held.services.contains(&name) || self.is_held(&service.namespace, gateways()) {
            Optional::Closed("an AuthorizationPolicy or a RequestAuthentication is bound to it or to the service")
        } else if gateways().any(|gateway| held.limits.count(&name, gateway, class(gateway))) {
            Optional::Closed("a RateLimit is bound to it or to the service")
        } else if self.refuses(service, objects) || refuses_pods() {
            Optional::Closed("`undermesh.io/waypoint-bypass` says that nothing goes around it")
        } else if held.unheard {
            Optional::Closed("it is not known yet what is bound to it")
        } else {
            Optional::InForce
        }
    }

    /// What a service is to be told that asks for what it does not get.
    pub(super) fn not_optional(&self, service: &Service, objects: &Objects, settings: &Settings) -> Option<Problem> {
        if service.optional != Some(true) {
            return None;
        }
        let (message, help) = match self.optional(service, objects, settings) {
            Optional::InForce => return None,
            Optional::Closed(why) => (format!("the waypoint is not optional: {why}"), "delete that, or the label"),
            Optional::Unsaid => {
                let message = "there is no waypoint of this mesh that clients could go without: it has no effect";
                (message.to_owned(), "bind the service by `istio.io/use-waypoint`")
            }
        };
        Some(Problem::warning(format!("metadata.labels[\"{OPTIONAL}\"]"), message).help(help))
    }
}
