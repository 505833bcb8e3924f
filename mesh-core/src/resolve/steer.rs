//! Connections to a service that have a route of their own ([`crate::l4`]): first the place is decided, once for the connection, then an endpoint of it is
//! looked for as of any service.

use std::{net::SocketAddr, sync::Arc};

use rand::Rng;

use super::{Refusal, Request, Route, canonical, known_service, to_service, waypoint};
use crate::{
    Service, Snapshot,
    l4::{Ask, Choice, ServerName},
    l7::ClusterKey,
    service::Mode,
};

/// Where a connection is led.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Steer {
    /// Where it asked to go.
    Asked,
    /// That depends on the name in its first message of TLS: look for it, and ask again.
    Look,
    /// There, with each attempt.
    To(ClusterKey),
}

/// Decides where a connection is led. A service with a waypoint has its routes there.
pub fn steer(
    snapshot: &Snapshot,
    request: &Request<'_>,
    server_name: ServerName<'_>,
    rng: &mut impl Rng,
) -> Result<Steer, Refusal> {
    let destination = canonical(request.destination);
    let (network, ip) = (&*request.source.network, destination.ip());
    if snapshot.owner(network, &ip).is_some() {
        return Ok(Steer::Asked);
    }
    let Some(service) = known_service(snapshot, request.source, &ip) else { return Ok(Steer::Asked) };
    if waypoint::of_service(snapshot, service, request.source).is_some() {
        return Ok(Steer::Asked);
    }
    let Some(routes) = snapshot.connections(&service.key()) else { return Ok(Steer::Asked) };
    let labels = snapshot.labels().get(&request.source.uid).map(|labels| &**labels);
    let namespace = &*request.source.namespace;
    let ask = Ask { address: ip, port: destination.port(), namespace, labels, server_name };
    match routes.choose(&ask, rng) {
        Choice::Own => Ok(Steer::Asked),
        Choice::Look => Ok(Steer::Look),
        Choice::To(key) => Ok(Steer::To(key.clone())),
        Choice::Closed(origin, why) => {
            Err(Refusal::Route { service: service.key(), origin: origin.into(), why: why.into() })
        }
    }
}

/// The place of which an endpoint is chosen for a connection here; `None` where nobody chooses, or a waypoint does.
#[must_use]
pub fn place_of(snapshot: &Snapshot, request: &Request<'_>) -> Option<ClusterKey> {
    let destination = canonical(request.destination);
    let (network, ip) = (&*request.source.network, destination.ip());
    if !snapshot.is_synced() || snapshot.owner(network, &ip).is_some() {
        return None;
    }
    let asked = known_service(snapshot, request.source, &ip)?;
    let (service, key) = match request.place {
        Some(place) => (snapshot.service(&place.service)?, place.clone()),
        None => {
            let key = ClusterKey { service: asked.key(), port: destination.port(), subset: Default::default() };
            (asked, key)
        }
    };
    let is_ours = service.load_balancing.mode != Mode::Passthrough
        && service.port(key.port).is_some()
        && waypoint::of_service(snapshot, service, request.source).is_none();
    is_ours.then_some(key)
}

/// An endpoint of the place that was decided for a connection to `asked`. If that has a waypoint, it goes through it.
pub(super) fn to_place(
    snapshot: &Snapshot,
    asked: &Service,
    place: &ClusterKey,
    request: &Request<'_>,
    rng: &mut impl Rng,
) -> Result<Route, Refusal> {
    let refuse = |why: String| Refusal::Route { service: asked.key(), origin: Default::default(), why: why.into() };
    let Some(service) = snapshot.service(&place.service) else {
        return Err(refuse(format!("service {} is not known", place.service)));
    };
    if !place.subset.is_empty() {
        return Err(refuse(format!("of {}, the subset {:?} is not known", place.service, place.subset)));
    }
    let own = address(service, request);
    let is_plain = service.load_balancing.mode != Mode::Passthrough
        && waypoint::of_service(snapshot, service, request.source).is_none();
    if own.is_none() && !is_plain {
        return Err(refuse(format!("service {} has no address of its own to ask for", place.service)));
    }
    let destination = SocketAddr::new(own.unwrap_or(request.destination.ip()), place.port);
    to_service(snapshot, service, &Request { destination, ..*request }, rng)
}

/// An address of the service, of the family that the client asked for if there is one.
fn address(service: &Arc<Service>, request: &Request<'_>) -> Option<std::net::IpAddr> {
    let like = canonical(request.destination).ip().is_ipv4();
    let own = service.addresses.iter().filter(|at| at.network == request.source.network).filter_map(|at| at.single());
    own.min_by_key(|ip| ip.is_ipv4() != like)
}
