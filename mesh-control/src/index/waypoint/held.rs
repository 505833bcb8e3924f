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
use crate::resource::{Objects, Secured, Unreadable};

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

/// What a policy is bound to that refuses anybody.
fn enforced(policy: &AuthorizationPolicy) -> &[TargetReference] {
    match &policy.bound {
        Some(bound) if !bound.dry_run && bound.action != Action::Audit => &bound.targets,
        _ => &[],
    }
}
