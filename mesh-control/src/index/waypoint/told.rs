//! What objects are told of the waypoints that they name: problems, the condition of services, and why something is not bound. Called by the index of waypoints,
//! and by whoever writes statuses.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_core::workload::GatewayDestination;
use mesh_core::{ArcStr, NamespacedName};

use super::canary::{self, Wishes};
use super::{Settings, Standing, Traffic, Waypoints, asked, key, service_entry};
use crate::diagnosis::{Problem, Severity};
use crate::resource::routing::service_entry::Resolution;
use crate::resource::routing::{Routed, ServiceEntry};
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
        let wishes = Wishes::of_service(service);
        if let Err(told) = self.bound(wishes, optional == Optional::InForce, objects, settings)? {
            return Some(told);
        }
        match self.unreachable(service, name, objects) {
            // What only its namespace asks for, and harms nobody, it is not told.
            Some(_) if !is_own && !self.refuses(service, objects) => None,
            Some(Problem { message, help, .. }) => {
                let help = help.map(|help| format!(" ({help})")).unwrap_or_default();
                Some(Binding::Refused(UNSUPPORTED, format!("{message}{help}")))
            }
            None => Some(self.accepted(name, wishes, optional, objects, settings)),
        }
    }

    /// What a ServiceEntry is told, whose hosts are bound as services are.
    fn entry_binding(
        &self,
        entry: &Arc<Routed<ServiceEntry>>,
        objects: &Objects,
        settings: &Settings,
    ) -> Option<Binding> {
        let (own, canary) = (Asked::of(Some(&entry.marks), &entry.namespace), canary::of_entry(entry));
        let wishes = Wishes { waypoint: &own, canary: canary.as_ref(), namespace: &entry.namespace };
        let (name, _) = asked(wishes.waypoint, wishes.namespace, objects)?;
        // Of one that only tells more of others, or whose hosts nobody can find, nothing is bound.
        let has_hosts = service_entry::hosts(entry, objects, settings).next().is_some();
        if !settings.discovers(objects, &entry.namespace) || !has_hosts {
            return None;
        }
        match self.bound(wishes, false, objects, settings)? {
            Ok(()) if entry.spec.resolution == Resolution::None && entry.spec.addresses.is_empty() => {
                let why = "its hosts have no address here: clients connect to their own ones (write `addresses`)";
                Some(Binding::Refused(UNSUPPORTED, why.to_owned()))
            }
            Ok(()) => Some(self.accepted(name, wishes, Optional::Unsaid, objects, settings)),
            Err(told) => Some(told),
        }
    }

    fn accepted(
        &self,
        name: &NamespacedName,
        wishes: Wishes<'_>,
        optional: Optional,
        objects: &Objects,
        settings: &Settings,
    ) -> Binding {
        let canary = self.beside(name, wishes, objects, settings).1;
        let no_canary = canary.map(|(unusable, _)| (unusable.reason, unusable.why));
        Binding::Accepted(name.clone(), verdict::Attached { optional, no_canary })
    }

    /// Whether the waypoint that counts for who says this has it, or else what to tell; nothing, if that is nothing. `optional`: clients need not wait for it.
    fn bound(
        &self,
        wishes: Wishes<'_>,
        optional: bool,
        objects: &Objects,
        settings: &Settings,
    ) -> Option<Result<(), Binding>> {
        let (name, is_own) = asked(wishes.waypoint, wishes.namespace, objects)?;
        let told = |reason| {
            let flaw = self.flaw(name, wishes.namespace, objects, settings)?;
            let help = match optional {
                true => "; it is optional: until then clients reach the service without it".to_owned(),
                false => flaw.help.map(|help| format!(" ({help})")).unwrap_or_default(),
            };
            Some(Err(Binding::Refused(reason, format!("{}{help}", flaw.message))))
        };
        match self.gateways.get(name) {
            None if self.unheard => Some(Err(Binding::Untold)),
            Some(Standing::Unknown | Standing::Foreign) => Some(Err(Binding::Untold)),
            None | Some(Standing::Nobody(_) | Standing::Edge(_)) => told("WaypointIsNotReady"),
            Some(Standing::Ours(waypoint)) if !waypoint.is_for(Traffic::Service) => is_own.then(|| {
                let message = format!("waypoint {name} does not take connections to services");
                Err(Binding::Refused(UNSUPPORTED, message))
            }),
            Some(Standing::Ours(waypoint)) if !waypoint.takes(name, wishes.namespace, objects) => {
                told("AttachmentDenied")
            }
            Some(Standing::Ours(waypoint)) if waypoint.destination.is_none() => told("WaypointIsNotReady"),
            Some(Standing::Ours(_)) => Some(Ok(())),
        }
    }

    /// What all services and ServiceEntries are told that have to do with a waypoint.
    pub fn bindings(&self, objects: &Objects, settings: &Settings) -> BTreeMap<Key, Binding> {
        let services = objects.services.values();
        let services =
            services.filter_map(|service| Some((of_service(service), self.binding(service, objects, settings)?)));
        let entries = objects.routes.service_entries.iter().filter_map(|(name, entry)| {
            let (namespace, own) = (name.namespace.clone(), name.name.clone());
            let key = Key { kind: Kind::ServiceEntry, namespace, name: own };
            Some((key, self.entry_binding(entry, objects, settings)?))
        });
        services.chain(entries).collect()
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
