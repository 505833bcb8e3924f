//! ListenerSets beside the other objects: which Gateway each adds its listeners to, whether that one takes them, and in which order those of one Gateway
//! count. `index::routing` puts that into [`Resolved`](super::Resolved), by which `index::l7::listeners` listens.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_core::NamespacedName;

use super::Resolved;
use super::findings::{Findings, Flaw};
use super::gateways::certificates;
use super::hosts::Hosts;
use super::parents::Owner;
use crate::diagnosis::Problem;
use crate::resource::routing::gateway::{Gateway, Origin};
use crate::resource::routing::{ListenerSet, Routed, Routes};
use crate::resource::{Key, Kind};

/// What came of looking for the Gateway of a ListenerSet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parent {
    /// There is no such Gateway, or none that counts, so nobody knows whose it would be; why.
    Missing(String),
    /// It may be there: its kind, or that of its class, has never been heard of.
    Unknown,
    /// It is another controller's, or no Gateway.
    Foreign,
    /// It is ours, and takes listeners of the namespace, or why it does not.
    Ours(NamespacedName, Result<(), String>),
}

/// Looks for the Gateway of a ListenerSet.
pub fn parent(set: &Routed<ListenerSet>, routes: &Routes, hosts: &Hosts<'_>) -> Parent {
    let reference = &set.spec.parent_ref;
    if !reference.is_gateway() {
        return Parent::Foreign;
    }
    let namespace = reference.namespace.as_deref().unwrap_or(&set.namespace);
    let name = NamespacedName::new(namespace, reference.name.as_str());
    let Some(gateway) = routes.gateways.get(&name) else {
        let is_there = hosts.all().gateways.contains_key(&name);
        let missing = || Parent::Missing(hosts.missing("Gateway", &name, is_there));
        return if hosts.is_unheard(Kind::Gateway) { Parent::Unknown } else { missing() };
    };
    if hosts.is_unheard(Kind::GatewayClass) {
        return Parent::Unknown;
    }
    match hosts.owner(gateway) {
        Owner::Ours(_) => {
            let why = || format!("Gateway {name} takes no listeners of {}: see its `allowedListeners`", set.namespace);
            let taken = takes(&gateway.spec, &name.namespace, &set.namespace, hosts).then_some(()).ok_or_else(why);
            Parent::Ours(name, taken)
        }
        Owner::Unknown => Parent::Unknown,
        Owner::Foreign | Owner::Nobody => Parent::Foreign,
    }
}

/// Whether a Gateway, which is of the namespace `own`, takes listeners of `namespace`. Where it says nothing it takes none.
fn takes(gateway: &Gateway, own: &str, namespace: &str, hosts: &Hosts<'_>) -> bool {
    let namespaces = gateway.allowed_listeners.as_ref().and_then(|allowed| allowed.namespaces.as_ref());
    namespaces.is_some_and(|all| all.takes(Origin::None, own, namespace, || hosts.labels(namespace)))
}

/// Puts each into what the objects mean together, and tells it what does not fit.
pub fn resolve(routes: &Routes, hosts: &Hosts<'_>, resolved: &mut Resolved, findings: &mut Findings) {
    let mut taken: BTreeMap<NamespacedName, Vec<&Arc<Routed<ListenerSet>>>> = BTreeMap::new();
    for (name, set) in &routes.listener_sets {
        let key = Key { kind: Kind::ListenerSet, namespace: name.namespace.clone(), name: name.name.clone() };
        match parent(set, routes, hosts) {
            Parent::Missing(why) => findings.add(&key, Problem::warning("spec.parentRef", why)),
            Parent::Unknown => findings.add(&key, Flaw::Unknown),
            Parent::Foreign => {}
            Parent::Ours(gateway, Err(why)) => {
                let help =
                    "have the Gateway take them: `allowedListeners: {namespaces: {from: All}}`, Same or Selector";
                findings.add(&key, Problem::error("spec.parentRef", why.clone()).help(help));
                resolved.refused_sets.insert(name.clone(), (gateway, why));
            }
            Parent::Ours(gateway, Ok(())) => {
                taken.entry(gateway).or_default().push(set);
                // What a ReferenceGrant lets its Gateway name it may not.
                certificates(&key, &set.spec.listeners, routes, hosts, findings);
            }
        }
    }
    for (gateway, mut sets) in taken {
        // Of one age they are in the order of their names as texts.
        sets.sort_by_cached_key(|set| (set.created, format!("{}/{}", set.namespace, set.name)));
        let names = sets.iter().map(|set| NamespacedName::new(set.namespace.clone(), set.name.clone()));
        resolved.sets.insert(gateway, names.collect());
    }
}
