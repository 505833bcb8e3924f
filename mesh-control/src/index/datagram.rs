//! Which port of their pods the UDP ports of services lead to, for the services that UDPRoutes name. Agents and waypoints are told ports of TCP alone, so
//! gateways are told this with the route. It is one number for all endpoints of a port: where pods call different numbers by the same name, the route says so
//! and its share is dropped. Called by the joining, because it alone of what listeners are made of depends on pods.

use std::collections::{BTreeMap, BTreeSet};

use mesh_core::NamespacedName;

use crate::resource::pod::State;
use crate::resource::routing::reference::BackendReference;
use crate::resource::service::{Port, Service, Target};
use crate::resource::{Objects, meta};

/// By the service, as Kubernetes names it, and its UDP port: the port of its endpoints, or why there is none.
pub type Targets = BTreeMap<(NamespacedName, u16), Result<u16, String>>;

/// Those of all services that a UDPRoute names.
pub fn targets(objects: &Objects) -> Targets {
    let mut all = Targets::new();
    for (name, route) in &objects.routes.udp_routes {
        for reference in route.spec.0.rules.iter().flat_map(|rule| &rule.backend_refs) {
            let Some((service, number)) = named(reference, &name.namespace) else { continue };
            let Some(object) = objects.services.get(&service) else { continue };
            let Some(port) = object.datagram_ports.iter().find(|port| port.port == number) else { continue };
            all.entry((service, number)).or_insert_with(|| target(object, port, objects));
        }
    }
    all
}

/// The service and port that a reference names, if it names such.
pub fn named(reference: &BackendReference, namespace: &str) -> Option<(NamespacedName, u16)> {
    let is_service = reference.group.as_deref().unwrap_or_default().is_empty()
        && reference.kind.as_deref().unwrap_or("Service") == "Service";
    let namespace = reference.namespace.as_deref().unwrap_or(namespace);
    Some((NamespacedName::new(namespace, reference.name.as_str()), reference.port?)).filter(|_| is_service)
}

fn target(service: &Service, port: &Port, objects: &Objects) -> Result<u16, String> {
    let first = NamespacedName::new(service.namespace.clone(), "");
    let numbers: BTreeSet<u16> = match (&service.selector, &port.target) {
        (Some(_), Target::Number(number)) => return Ok(*number),
        (Some(selector), Target::Name(name)) => {
            let pods = objects.pods.range(first..).take_while(|(key, _)| key.namespace == service.namespace);
            let own = pods.filter(|(_, pod)| pod.state != State::Ended && meta::selects(selector, &pod.labels));
            let named = own.flat_map(|(_, pod)| &pod.datagram_ports).filter(|(own, _)| own == name);
            named.map(|(_, number)| *number).collect()
        }
        (None, _) => {
            let slices =
                objects.endpoint_slices.range(first..).take_while(|(key, _)| key.namespace == service.namespace);
            let own = slices.filter(|(_, slice)| slice.service == service.name);
            let named = own.flat_map(|(_, slice)| &slice.datagram_ports).filter(|(own, _)| *own == port.name);
            named.map(|(_, number)| *number).collect()
        }
    };
    let called = match &port.target {
        Target::Name(name) if service.selector.is_some() => format!("called {name:?}"),
        _ => format!("for its UDP port {}", port.port),
    };
    match Vec::from_iter(numbers).as_slice() {
        [one] => Ok(*one),
        [] => Err(format!("no endpoint of Service {}/{} has a port {called}", service.namespace, service.name)),
        several => {
            let several: Vec<String> = several.iter().take(5).map(ToString::to_string).collect();
            let (namespace, name) = (&service.namespace, &service.name);
            let several = several.join(", ");
            Err(format!("endpoints of Service {namespace}/{name} have different ports {called}: {several}"))
        }
    }
}
