//! The way through a waypoint. The control plane says of each service and workload which one it has, by what the waypoint is for; here it is only taken.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use rand::Rng;

use super::{
    Asked, Client, Refusal, Request, Route, Upstream, WaypointProblem, canonical, generation, may_answer, route,
};
use crate::{
    GatewayAddress, Service, Snapshot, Workload,
    balance::{Ask, Pick},
    service::Mode,
    workload::GatewayDestination,
};

/// The waypoint that a client must take: none for the waypoint itself, or its connections would come back to it.
pub(super) fn needed<'a>(
    snapshot: &Snapshot,
    waypoint: Option<&'a GatewayAddress>,
    source: &Client,
) -> Option<&'a GatewayAddress> {
    waypoint.filter(|gateway| !is_of(snapshot, gateway, source))
}

/// The same for who asks for a service: none for its waypoint and its canary, either of which reaches endpoints itself.
pub(super) fn of_service<'a>(snapshot: &Snapshot, service: &'a Service, source: &Client) -> Option<&'a GatewayAddress> {
    let comes_from_there = || service.waypoints().any(|gateway| is_of(snapshot, gateway, source));
    service.waypoint.as_ref().filter(|_| !comes_from_there())
}

/// Through the waypoint of a service, or its canary by its share. While nobody is found at the canary all go through the waypoint, and never the other way around:
/// policies of the waypoint's Gateway are not the canary's, and of those only a share of what comes is to be spared.
pub(super) fn to_either(
    snapshot: &Snapshot,
    gateway: &GatewayAddress,
    service: &Arc<Service>,
    request: &Request<'_>,
    rng: &mut impl Rng,
) -> Result<Route, Refusal> {
    let canary = service.canary.as_ref().filter(|canary| rng.random_range(0..100) < canary.weight);
    if let Some(canary) = canary
        && let Ok(route) = to(snapshot, &canary.waypoint, Asked::Service(service), request, rng)
    {
        return Ok(route);
    }
    to(snapshot, gateway, Asked::Service(service), request, rng)
}

/// Whether the client is an endpoint of the waypoint. Its addresses lead to a workload, and who it has proved to be must be that one.
fn is_of(snapshot: &Snapshot, gateway: &GatewayAddress, source: &Client) -> bool {
    let mut owners = source.ips.iter().filter_map(|ip| snapshot.owner(&source.network, ip));
    owners.any(|owner| {
        let workload = &owner.workload;
        let proved = source.identity.as_ref() == Some(&workload.identity());
        proved
            && match find(snapshot, gateway) {
                Some(Found::Service(service)) => workload.services.contains_key(&service.key()),
                Some(Found::Workload(found, _)) => found.uid == workload.uid,
                None => false,
            }
    })
}

/// Whether a peer is a waypoint of what a workload serves: of a service that it is an endpoint of, or its own. Such a peer speaks for its clients.
pub fn speaks_for(snapshot: &Snapshot, workload: &Workload, peer: &Client) -> bool {
    let services = workload.services.keys().filter_map(|key| snapshot.service(key));
    services
        .flat_map(|service| service.waypoints())
        .chain(workload.waypoint.as_ref())
        .any(|gateway| is_of(snapshot, gateway, peer))
}

/// Whether an address is one of the waypoint that stands before a workload. It proves nothing: who comes from there is not sent there again.
pub fn is_waypoint_of(snapshot: &Snapshot, workload: &Workload, network: &str, address: &IpAddr) -> bool {
    let owner = snapshot.owner(network, address).map(|owner| &owner.workload);
    owner.is_some_and(|owner| match workload.waypoint.as_ref().and_then(|gateway| find(snapshot, gateway)) {
        Some(Found::Service(service)) => owner.services.contains_key(&service.key()),
        Some(Found::Workload(found, _)) => owner.uid == found.uid,
        None => false,
    })
}

/// How many endpoints the waypoint of a service has, and its canary, in all.
pub fn waypoint_endpoints(snapshot: &Snapshot, service: &Service) -> usize {
    let of = |gateway| match find(snapshot, gateway) {
        Some(Found::Service(service)) => snapshot.endpoints(&service.key()).map_or(0, |set| set.members().len()),
        Some(Found::Workload(..)) => 1,
        None => 0,
    };
    service.waypoints().map(of).sum()
}

/// What a waypoint's name or address is.
enum Found<'a> {
    Service(&'a Arc<Service>),
    Workload(&'a Arc<Workload>, IpAddr),
}

fn find<'a>(snapshot: &'a Snapshot, gateway: &GatewayAddress) -> Option<Found<'a>> {
    match &gateway.destination {
        GatewayDestination::Service(key) => snapshot.service(key).map(Found::Service),
        GatewayDestination::Address(at) => match snapshot.owner(&at.network, &at.address) {
            Some(owner) => Some(Found::Workload(&owner.workload, at.address)),
            None => snapshot.service_by_address(&at.network, &at.address).map(Found::Service),
        },
    }
}

/// A tunnel to the waypoint, in which is asked for what the app asked for.
pub(super) fn to(
    snapshot: &Snapshot,
    gateway: &GatewayAddress,
    asked: Asked<'_>,
    request: &Request<'_>,
    rng: &mut impl Rng,
) -> Result<Route, Refusal> {
    let refuse = |problem| {
        let destination = match asked {
            Asked::Service(service) => service.key().to_string(),
            Asked::Workload(workload) => workload.uid.to_string(),
        };
        Refusal::NoWaypoint { destination, waypoint: name(gateway), problem }
    };
    let service_asked = match asked {
        Asked::Service(service) => Some(Arc::clone(service)),
        Asked::Workload(_) => None,
    };
    let target = canonical(request.destination);
    let upstream = match find(snapshot, gateway).ok_or_else(|| refuse(WaypointProblem::Unknown))? {
        Found::Workload(workload, _) if request.tried.contains(&workload.uid) => {
            return Err(refuse(WaypointProblem::NoEndpoints));
        }
        Found::Workload(workload, address) => Upstream {
            target,
            tunnel: SocketAddr::new(address, gateway.hbone_port),
            expected: vec![workload.identity()],
            service: service_asked,
            generation: generation(snapshot, workload, &address),
            lease: None,
            pool: None,
            workload: Arc::clone(workload),
            waypoint: true,
        },
        Found::Service(service) => {
            let Pick { workload, address, target_port, lease } =
                endpoint(snapshot, service, gateway.hbone_port, request, rng).map_err(refuse)?;
            Upstream {
                target,
                tunnel: SocketAddr::new(address, target_port),
                expected: may_answer(service, &workload),
                service: service_asked,
                generation: generation(snapshot, &workload, &address),
                lease: Some(lease),
                pool: None,
                workload,
                waypoint: true,
            }
        }
    };
    route(upstream)
}

/// An endpoint of the waypoint's service. That this has a waypoint itself does not matter: there is one on a way.
fn endpoint(
    snapshot: &Snapshot,
    service: &Service,
    port: u16,
    request: &Request<'_>,
    rng: &mut impl Rng,
) -> Result<Pick, WaypointProblem> {
    if service.load_balancing.mode == Mode::Passthrough {
        return Err(WaypointProblem::NoEndpoints);
    }
    service.port(port).ok_or(WaypointProblem::NoPort(port))?;
    let like = request.source.ips.first().copied().unwrap_or_else(|| request.destination.ip());
    let ask = Ask { client: request.source, port, like, now_ms: request.now_ms, tried: request.tried };
    let set = snapshot.endpoints(&service.key());
    set.and_then(|set| set.pick(&ask, rng)).ok_or(WaypointProblem::NoEndpoints)
}

fn name(gateway: &GatewayAddress) -> String {
    match &gateway.destination {
        GatewayDestination::Service(key) => key.to_string(),
        GatewayDestination::Address(at) => at.address.to_string(),
    }
}
