//! What objects are told of the waypoints that they name: problems, the condition of services, and why something is not bound. Called by the index of waypoints,
//! and by whoever writes statuses.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_core::workload::GatewayDestination;
use mesh_core::{ArcStr, NamespacedName};

use super::canary::Wishes;
use super::{Settings, Standing, Traffic, Waypoints, asked, key};
use crate::diagnosis::{Problem, Severity};
use crate::resource::waypoint::{Asked, field};
use crate::resource::{Key, Kind, Objects, Service};
use crate::verdict::{self, Binding, Optional};

/// Why a service is not bound whose waypoint is not for what its clients ask for, in Istio's word.
const UNSUPPORTED: &str = "UnsupportedTrafficType";

impl Waypoints {
    /// What namespaces and services are to be told of what they name.
    pub(super) fn problems(&self, objects: &Objects, settings: &Settings) -> Vec<(Key, Problem)> {
        let mut problems = Vec::new();
        for namespace in objects.namespaces.values() {
            let Asked::Of(name) = &namespace.waypoint else { continue };
            let own =
                Wishes { waypoint: &namespace.waypoint, canary: namespace.canary.as_ref(), namespace: &namespace.name };
            let canary = self.beside(name, own, objects, settings).1.map(|(unusable, _)| unusable.problem());
            for problem in self.flaw(name, &namespace.name, objects, settings).into_iter().chain(canary) {
                let key = Key { kind: Kind::Namespace, namespace: ArcStr::new(), name: namespace.name.clone() };
                problems.push((key, problem));
            }
        }
        self.of_labels(objects, settings, &mut problems);
        for service in objects.services.values() {
            // Few are headless, and nothing else is told.
            let binding = service.is_headless.then(|| self.binding(service, objects, settings)).flatten();
            let unreachable = match binding {
                Some(Binding::Refused(reason, _)) if reason == UNSUPPORTED => {
                    asked(&service.waypoint, &service.namespace, objects)
                        .and_then(|(name, _)| self.unreachable(service, name, objects))
                }
                _ => None,
            };
            let idle = self.idle(service, objects, settings);
            let not_optional = self.not_optional(service, objects, settings);
            for problem in idle.into_iter().chain(unreachable).chain(not_optional) {
                problems.push((of_service(service), problem));
            }
        }
        problems
    }

    /// What services are to be told of their own labels.
    fn of_labels(&self, objects: &Objects, settings: &Settings, problems: &mut Vec<(Key, Problem)>) {
        let says = |service: &&Arc<Service>| matches!(service.waypoint, Asked::Of(_)) || service.canary.is_some();
        for service in objects.services.values().filter(says) {
            if let Some(mut problem) = self.service(service, objects, settings).problem {
                let is_closed = problem.severity == Severity::Error;
                if is_closed && self.optional(service, objects, settings) == Optional::InForce {
                    problem.help =
                        Some("start it; it is optional: until then clients reach the service without it".into());
                }
                problems.push((of_service(service), problem));
            }
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
    pub(super) fn flaw(
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
}

fn of_service(service: &Service) -> Key {
    Key { kind: Kind::Service, namespace: service.namespace.clone(), name: service.name.clone() }
}
