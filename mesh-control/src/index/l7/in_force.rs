//! Which of Istio's objects waypoints act on: those that say something of a service that one serves. Whoever wrote another is told that nobody acts on it.

use std::collections::BTreeSet;

use mesh_core::NamespacedName;

use super::{Around, table};
use crate::resource::{Key, Kind};

/// VirtualServices and DestinationRules that are about any of `services`, and VirtualServices that such a one delegates to.
pub fn of(services: &BTreeSet<NamespacedName>, around: &Around<'_>) -> BTreeSet<Key> {
    let key = |kind, name: &NamespacedName| Key { kind, namespace: name.namespace.clone(), name: name.name.clone() };
    let mut all = BTreeSet::new();
    for name in services.iter().flat_map(|service| table::virtual_services(service, around)) {
        let Some(object) = around.routes.virtual_services.get(name) else { continue };
        if object.spec.http.is_empty() {
            continue;
        }
        all.insert(key(Kind::VirtualService, name));
        for delegate in object.spec.http.iter().filter_map(|rule| rule.delegate.as_ref()) {
            let namespace = delegate.namespace.as_deref().unwrap_or(&name.namespace);
            let other = NamespacedName::new(namespace, delegate.name.as_str());
            if around.routes.virtual_services.contains_key(&other) {
                all.insert(key(Kind::VirtualService, &other));
            }
        }
    }
    all.extend(destination_rules(services, around));
    all
}

/// DestinationRules that are about any of `services`.
pub fn destination_rules(services: &BTreeSet<NamespacedName>, around: &Around<'_>) -> BTreeSet<Key> {
    let mut all = BTreeSet::new();
    for (name, object) in &around.routes.destination_rules {
        let host = around.hosts.full(&object.spec.host, &name.namespace);
        let is_of = |service: &NamespacedName| match host.strip_prefix('*') {
            Some(suffix) => service.name.ends_with(suffix),
            None => service.name == host,
        };
        if services.iter().any(is_of) {
            let (kind, namespace, name) = (Kind::DestinationRule, name.namespace.clone(), name.name.clone());
            all.insert(Key { kind, namespace, name });
        }
    }
    all
}
