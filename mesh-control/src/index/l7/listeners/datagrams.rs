//! UDPRoutes: where datagrams go, by weight, and which port of its pods a service has for them.

use mesh_core::l7::Target;
use mesh_core::listener::{DatagramPlace, DatagramRoute};

use super::super::filter::Reading;
use crate::index::datagram::named;
use crate::index::l7::Around;
use crate::index::routing::backends::Part;
use crate::resource::Key;
use crate::resource::routing::reference::BackendReference;

/// What a UDPRoute says. What is wrong with a reference breaks its own share and no other.
pub(super) fn route(key: &Key, around: &Around<'_>) -> Option<DatagramRoute> {
    let name = mesh_core::NamespacedName::new(key.namespace.clone(), key.name.clone());
    let (object, route) = (around.routes.udp_routes.get(&name)?, around.resolved.routes.get(key)?);
    let reading = Reading { around, route, namespace: &key.namespace, rule: 0 };
    let references = object.spec.0.rules.first().map(|rule| rule.backend_refs.as_slice()).unwrap_or_default();
    let place = |(index, reference): (usize, &BackendReference)| {
        let weight = reference.weight.unwrap_or(1);
        match (reading.target(Part::Backend(index)), port(reference, key, around)) {
            (Target::Cluster(cluster), Ok(port)) => DatagramPlace { target: Target::Cluster(cluster), port, weight },
            (Target::Cluster(_), Err(why)) => DatagramPlace { target: Target::Broken(why.into()), port: 0, weight },
            (broken @ Target::Broken(_), _) => DatagramPlace { target: broken, port: 0, weight },
        }
    };
    let places = references.iter().enumerate().map(place).collect();
    let closed = |why: String| DatagramPlace { target: Target::Broken(why.into()), port: 0, weight: 1 };
    let made = DatagramRoute::new(key.to_string(), places);
    made.or_else(|error| DatagramRoute::new(key.to_string(), vec![closed(error.to_string())])).ok()
}

/// The port that endpoints have for what a reference names.
fn port(reference: &BackendReference, key: &Key, around: &Around<'_>) -> Result<u16, String> {
    let target = named(reference, &key.namespace).and_then(|named| around.datagrams.get(&named));
    target.cloned().unwrap_or_else(|| Err(format!("nothing is known of the UDP ports of {}", reference.name)))
}
