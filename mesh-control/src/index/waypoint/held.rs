//! What policies are bound to by `targetRefs`: there nothing goes around a waypoint unless somebody says that it may (`bypass`). A policy that a request escapes by
//! asking for the address of a pod protects nothing, and whoever wrote it does not think of that. Pure; found once per join.
//!
//! It is read from the policies alone and not from what waypoints are given: what is bound to a Gateway that was deleted is held as before.

use std::collections::BTreeSet;

use mesh_core::l7::policy::Action;
use mesh_core::{ArcStr, NamespacedName};

use crate::index::Settings;
use crate::resource::authorization_policy::AuthorizationPolicy;
use crate::resource::routing::telemetry::TargetReference;
use crate::resource::{Kind, Objects, Secured, Unreadable};

/// What is held, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Gateways, those of classes with them.
    pub(super) gateways: BTreeSet<NamespacedName>,
    /// Services of Kubernetes.
    pub(super) services: BTreeSet<NamespacedName>,
    /// ServiceEntries, by the names of the objects.
    pub(super) entries: BTreeSet<NamespacedName>,
    /// Gateways that are not there: they may be of a class that is held.
    pub(super) absent: bool,
    /// Whatever there is of these namespaces, by policies of which nobody can tell what they are bound to.
    pub(super) namespaces: BTreeSet<ArcStr>,
    /// Everything, by such a policy in a root namespace.
    pub(super) all: bool,
    /// What RateLimits are bound to.
    pub(super) limits: Limits,
    /// Kinds of what may be bound have never been heard of.
    pub(super) unheard: bool,
}

/// What RateLimits are bound to. Who asks for a pod by its address is not counted, but nobody is to make requests go uncounted by bringing a waypoint down.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    gateways: BTreeSet<NamespacedName>,
    services: BTreeSet<NamespacedName>,
    classes: BTreeSet<String>,
}

impl Held {
    /// What the policies say together.
    pub fn index(objects: &Objects, settings: &Settings) -> Self {
        let mut held = Self::default();
        let mut classes = BTreeSet::new();
        let mut add = |held: &mut Self, namespace: &ArcStr, targets: &[TargetReference]| {
            for target in targets {
                let name = NamespacedName::new(namespace.clone(), target.name.as_str());
                match target.kind.as_str() {
                    "Gateway" => drop(held.gateways.insert(name)),
                    "Service" => drop(held.services.insert(name)),
                    "ServiceEntry" => drop(held.entries.insert(name)),
                    // Policies of a whole class are read in the root namespace only.
                    "GatewayClass" if settings.is_root(namespace) => drop(classes.insert(target.name.clone())),
                    _ => {}
                }
            }
        };
        for (name, secured) in &objects.authorization_policies {
            if !settings.heeds(objects, &name.namespace) {
                continue;
            }
            match secured {
                Secured::Readable(policy) => add(&mut held, &name.namespace, enforced(policy)),
                Secured::Unreadable(known) => {
                    let targets = held.unread(&name.namespace, known, settings);
                    add(&mut held, &name.namespace, targets);
                }
            }
        }
        for (name, known) in &objects.unread_authentications {
            if settings.heeds(objects, &name.namespace) && !settings.istio_runs {
                let targets = held.unread(&name.namespace, known, settings);
                add(&mut held, &name.namespace, targets);
            }
        }
        for (name, object) in &objects.routes.request_authentications {
            if settings.heeds(objects, &name.namespace) && !settings.istio_runs {
                add(&mut held, &name.namespace, &object.spec.target_refs);
                add(&mut held, &name.namespace, object.spec.target_ref.as_slice());
            }
        }
        for (name, object) in &objects.routes.rate_limits {
            if settings.heeds(objects, &name.namespace) {
                object.spec.target_refs.iter().for_each(|target| held.limits.add(&name.namespace, target));
            }
        }
        // Until they have been heard of, nobody can tell that nothing is bound. Policies themselves every start waits for.
        let kinds = [Kind::RequestAuthentication, Kind::RateLimit];
        held.unheard = kinds.iter().any(|kind| objects.unheard.contains(kind));
        held.absent = !classes.is_empty();
        let gateways = objects.routes.gateways.iter();
        let of_classes = gateways.filter(|(_, gateway)| classes.contains(&gateway.spec.gateway_class_name));
        held.gateways.extend(of_classes.map(|(name, _)| name.clone()));
        held
    }

    /// What is held by something that cannot be read, as far as it can be told; else it is whatever that may be bound to.
    fn unread<'a>(&mut self, namespace: &ArcStr, known: &'a Unreadable, settings: &Settings) -> &'a [TargetReference] {
        match &known.targets {
            _ if !known.bound_elsewhere => return &[],
            Some(targets) => return targets,
            None if settings.is_root(namespace) => self.all = true,
            None => drop(self.namespaces.insert(namespace.clone())),
        }
        &[]
    }

    /// Whether nothing is held at all, as in most meshes.
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether something of a namespace is held for what it is.
    pub(super) fn holds_namespace(&self, namespace: &ArcStr) -> bool {
        self.all || self.namespaces.contains(namespace)
    }
}

impl Limits {
    fn add(&mut self, namespace: &ArcStr, target: &TargetReference) {
        let name = || NamespacedName::new(namespace.clone(), target.name.as_str());
        match target.kind.as_str() {
            "Gateway" => drop(self.gateways.insert(name())),
            "Service" => drop(self.services.insert(name())),
            "GatewayClass" => drop(self.classes.insert(target.name.clone())),
            _ => {}
        }
    }

    /// Whether requests to a service are counted by its waypoint, which is of this class.
    pub(super) fn count(&self, service: &NamespacedName, gateway: &NamespacedName, class: Option<&str>) -> bool {
        self.services.contains(service)
            || self.gateways.contains(gateway)
            || class.is_some_and(|class| self.classes.contains(class))
    }
}

/// What a policy is bound to that refuses anybody.
fn enforced(policy: &AuthorizationPolicy) -> &[TargetReference] {
    match &policy.bound {
        Some(bound) if !bound.dry_run && bound.action != Action::Audit => &bound.targets,
        _ => &[],
    }
}
