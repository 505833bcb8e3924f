//! TLSRoutes and TCPRoutes: where connections go, by the name that TLS asks for and by weight.

use mesh_core::l7::{Backend, Forward, HostPattern, Target};
use mesh_core::listener::Passage;

use super::super::filter::Reading;
use crate::index::l7::Around;
use crate::index::routing::Route;
use crate::index::routing::backends::Part;
use crate::resource::routing::routes::ConnectionRule;
use crate::resource::{Key, Kind};

/// Passages of a listener, the narrowest name first. Of two for one name the older route counts, which comes first.
pub(super) fn passages<'a>(routes: impl Iterator<Item = (&'a Key, Vec<HostPattern>, Forward)>) -> Vec<Passage> {
    let mut all: Vec<Passage> = Vec::new();
    for (key, hosts, forward) in routes {
        let fresh: Vec<HostPattern> =
            hosts.into_iter().filter(|host| !all.iter().any(|known| known.hosts.contains(host))).collect();
        let one = |host| Passage { origin: key.to_string().into(), hosts: vec![host], forward: forward.clone() };
        all.extend(fresh.into_iter().map(one));
    }
    all.sort_by_key(|passage| match passage.hosts.first() {
        Some(HostPattern::Exact(_)) => (0, 0),
        Some(HostPattern::Below(parent)) => (1, usize::MAX - parent.len()),
        Some(HostPattern::Any) | None => (2, 0),
    });
    all
}

/// Where the connections of a route go.
pub(super) fn forward(key: &Key, route: &Route, around: &Around<'_>) -> Forward {
    let name = mesh_core::NamespacedName::new(key.namespace.clone(), key.name.clone());
    let rules: &[ConnectionRule] = match key.kind {
        Kind::TlsRoute => around.routes.tls_routes.get(&name).map_or(&[], |route| &route.spec.rules),
        Kind::TcpRoute => around.routes.tcp_routes.get(&name).map_or(&[], |route| &route.spec.rules),
        _ => &[],
    };
    let reading = Reading { around, route, namespace: &key.namespace, rule: 0 };
    let references = rules.first().map(|rule| rule.backend_refs.as_slice()).unwrap_or_default();
    let places = references
        .iter()
        .enumerate()
        .map(|(index, reference)| Backend::new(reading.target(Part::Backend(index)), reference.weight.unwrap_or(1)));
    Forward::new(places.collect()).unwrap_or_else(|error| {
        let broken = Backend::new(Target::Broken(error.to_string().into()), 1);
        Forward::new(vec![broken]).unwrap_or_else(|_| unreachable!("one place of the weight 1"))
    })
}
