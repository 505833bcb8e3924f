//! Where a captured connection goes. The proxy asks once for each attempt, naming the endpoints that already failed, and does what the route
//! says. Nothing here guesses: what the mesh should know but does not is refused.

mod outside;
mod steer;
mod waypoint;

use outside::known_service;
pub use outside::may_reach;
pub use waypoint::{is_waypoint_of, speaks_for, waypoint_endpoints};

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use arcstr::ArcStr;
use rand::Rng;
pub use steer::{Steer, place_of, steer};

use crate::{
    EndpointLease, Identity, Locality, NamespacedName, Service, Snapshot, Workload,
    balance::{Ask, Pick},
    l7::{ClusterKey, cluster::Pool},
    ports,
    service::Mode,
    snapshot::AddressOwner,
    workload::TunnelProtocol,
};

/// The local pod that connects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Client {
    /// Its network.
    pub network: ArcStr,
    /// Its cluster.
    pub cluster_id: ArcStr,
    /// Its node.
    pub node: ArcStr,
    /// Where its node is.
    pub locality: Locality,
    /// Its namespace.
    pub namespace: ArcStr,
    /// The uid of its workload; empty if that is not known.
    pub uid: ArcStr,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// As its certificate says it; `None` if that is not known.
    pub identity: Option<Identity>,
}

impl Client {
    /// Whether it has an address of the family of `address`, so that it can connect there. Nothing is ruled out for one of whom no address is known.
    #[must_use]
    pub fn can_reach(&self, address: &IpAddr) -> bool {
        self.only_ipv4().is_none_or(|only| only == address.is_ipv4())
    }

    /// Whether all of its addresses are of IPv4, or all of IPv6; `None` if it has both, or none that is known.
    pub(crate) fn only_ipv4(&self) -> Option<bool> {
        let first = self.ips.first()?.is_ipv4();
        self.ips.iter().all(|ip| ip.is_ipv4() == first).then_some(first)
    }
}

/// One attempt of one connection.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Who connects.
    pub source: &'a Client,
    /// What the app asked for.
    pub destination: SocketAddr,
    /// Where a route leads the connection instead, as [`steer`] said.
    pub place: Option<&'a ClusterKey>,
    /// Monotonic milliseconds.
    pub now_ms: u64,
    /// Uids of endpoints that this connection has tried.
    pub tried: &'a [ArcStr],
}

/// How to connect.
#[derive(Debug)]
pub enum Route {
    /// Outside the mesh: as the app asked.
    Passthrough(SocketAddr),
    /// A known workload without a tunnel.
    Plain(Upstream),
    /// A workload with HBONE.
    Hbone(Upstream),
}

/// The chosen workload and how it is addressed. With a waypoint on the way it is the waypoint's, and the target is what the app asked for.
#[derive(Debug)]
pub struct Upstream {
    /// Who takes the connection.
    pub workload: Arc<Workload>,
    /// The CONNECT authority: the app's address and port there, or for a waypoint the service's or workload's that was asked for.
    pub target: SocketAddr,
    /// The HBONE listener of the workload.
    pub tunnel: SocketAddr,
    /// Identities that the peer may prove.
    pub expected: Vec<Identity>,
    /// The service that was asked for, if it was one.
    pub service: Option<Arc<Service>>,
    /// Changes when the address changes owner; part of every cache key about it.
    pub generation: u64,
    /// Counts the connection and takes its outcome; only when an endpoint was chosen, so that there may be another one.
    pub lease: Option<EndpointLease>,
    /// What is said of connections to it.
    pub pool: Option<Arc<Pool>>,
    /// It is a waypoint: who it is for, and may be asked for nothing else.
    pub waypoint: bool,
}

/// Why there is no route. Every refusal is closed: the connection is not made.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// Configuration has never been complete.
    #[error("configuration has not arrived yet")]
    NotSynced,
    /// No endpoint of the service is left.
    #[error("service {service} has no endpoint left for port {port}")]
    NoEndpoints {
        /// Which service.
        service: NamespacedName,
        /// The service's port.
        port: u16,
    },
    /// The service has no such port.
    #[error("service {service} has no port {port}")]
    UnknownPort {
        /// Which service.
        service: NamespacedName,
        /// The port that was asked for.
        port: u16,
    },
    /// Inside the ranges of the mesh, and nobody's.
    #[error("{0} is inside the mesh but belongs to no known workload or service")]
    UnknownMeshAddress(IpAddr),
    /// Outside of the mesh, on that port nobody's whom the client can see, and it may reach only what somebody is known to have.
    #[error("{address} is nobody's that the mesh knows, and only what it knows may be reached{}", of(.origin))]
    NotInRegistry {
        /// What was asked for.
        address: SocketAddr,
        /// The object that says so.
        origin: ArcStr,
    },
    /// A port of the mesh itself: a loop or a spoof.
    #[error("port {0} belongs to the mesh")]
    MeshPort(u16),
    /// The destination must be reached through a waypoint, and that cannot be reached. Nothing goes around it.
    #[error("{destination} must be reached through its waypoint {waypoint}, which {problem}")]
    NoWaypoint {
        /// The service's key or the workload's uid.
        destination: String,
        /// The waypoint's service, or its address.
        waypoint: String,
        /// What is the matter with it.
        problem: WaypointProblem,
    },
    /// A route of the service refuses the connection, or leads it where nothing is.
    #[error("connections to {service} have a route{}, but {why}", of(.origin))]
    Route {
        /// The service that was asked for.
        service: NamespacedName,
        /// The object that says so, if it is one.
        origin: ArcStr,
        /// What is the matter.
        why: ArcStr,
    },
    /// The workload is behind a gateway of another network.
    #[error("workload {uid} is only reachable through the gateway of its network")]
    RemoteNetwork {
        /// Which workload.
        uid: ArcStr,
    },
}

/// Why a waypoint cannot be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum WaypointProblem {
    /// No service and no workload is known by its name or address.
    #[error("is not known")]
    Unknown,
    /// Its service has no such port.
    #[error("has no port {0}")]
    NoPort(u16),
    /// No endpoint is left that could be tried.
    #[error("has no endpoint left")]
    NoEndpoints,
}

impl Refusal {
    /// A short constant name, for metrics and access logs.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotSynced => "not_synced",
            Self::NoEndpoints { .. } => "no_endpoints",
            Self::UnknownPort { .. } => "unknown_port",
            Self::UnknownMeshAddress(_) => "unknown_mesh_address",
            Self::NotInRegistry { .. } => "not_in_registry",
            Self::MeshPort(_) => "mesh_port",
            Self::NoWaypoint { .. } => "no_waypoint",
            Self::Route { .. } => "route",
            Self::RemoteNetwork { .. } => "remote_network",
        }
    }
}

fn of(origin: &str) -> String {
    if origin.is_empty() { String::new() } else { format!(" ({origin})") }
}

/// Decides in this order: a workload's address, a service's address, a service's range, a range of the mesh, outside.
pub fn resolve(snapshot: &Snapshot, request: &Request<'_>, rng: &mut impl Rng) -> Result<Route, Refusal> {
    if !snapshot.is_synced() {
        return Err(Refusal::NotSynced);
    }
    let (ip, port) = (request.destination.ip().to_canonical(), request.destination.port());
    let network = &*request.source.network;
    let asked = SocketAddr::new(ip, port);
    if let Some(owner) = snapshot.owner(network, &ip) {
        if owner.workload.is_entry() {
            may_reach(snapshot, request.source, asked)?;
        }
        return to_workload(snapshot, owner, request, rng);
    }
    if let Some(service) = known_service(snapshot, request.source, &ip) {
        if service.load_balancing.mode == Mode::Passthrough {
            may_reach(snapshot, request.source, asked)?;
        }
        return match request.place {
            None => to_service(snapshot, service, request, rng),
            Some(place) => steer::to_place(snapshot, service, place, request, rng),
        };
    }
    if request.source.ips.contains(&ip) && ports::is_mesh_port(port) {
        return Err(Refusal::MeshPort(port));
    }
    if snapshot.in_mesh_ranges(ip) {
        return Err(Refusal::UnknownMeshAddress(ip));
    }
    may_reach(snapshot, request.source, asked)?;
    Ok(Route::Passthrough(asked))
}

/// The way of a connection whose waypoint cannot be reached, as [`resolve`] has said, to a service that says that it may be gone without; `None` where nobody
/// says so. Whoever asks has tried all endpoints of the waypoint, and none of them has answered. No route of the service counts: its routes are the waypoint's.
pub fn around(snapshot: &Snapshot, request: &Request<'_>, rng: &mut impl Rng) -> Option<Result<Route, Refusal>> {
    let ip = request.destination.ip().to_canonical();
    if !snapshot.is_synced() || snapshot.owner(&request.source.network, &ip).is_some() {
        return None;
    }
    let asked = known_service(snapshot, request.source, &ip)?;
    let (service, port) = match request.place {
        None => (asked, request.destination.port()),
        Some(place) if place.subset.is_empty() => (snapshot.service(&place.service)?, place.port),
        Some(_) => return None,
    };
    let is_led = waypoint::of_service(snapshot, service, request.source).is_some();
    // Where nobody chooses an endpoint there is nothing but the address, which leads to the waypoint.
    if !service.waypoint_optional || !is_led || service.load_balancing.mode == Mode::Passthrough {
        return None;
    }
    let destination = SocketAddr::new(request.destination.ip(), port);
    Some(to_own_endpoint(snapshot, service, &Request { destination, ..*request }, rng))
}

/// Chooses an endpoint of a service that is already known, by name rather than by address.
pub fn to_service(
    snapshot: &Snapshot,
    service: &Arc<Service>,
    request: &Request<'_>,
    rng: &mut impl Rng,
) -> Result<Route, Refusal> {
    if let Some(gateway) = waypoint::of_service(snapshot, service, request.source) {
        return waypoint::to_either(snapshot, gateway, service, request, rng);
    }
    if service.load_balancing.mode == Mode::Passthrough {
        return Ok(Route::Passthrough(canonical(request.destination)));
    }
    to_own_endpoint(snapshot, service, request, rng)
}

fn to_own_endpoint(
    snapshot: &Snapshot,
    service: &Arc<Service>,
    request: &Request<'_>,
    rng: &mut impl Rng,
) -> Result<Route, Refusal> {
    let (key, destination) = (service.key(), request.destination);
    let port = destination.port();
    if service.port(port).is_none() {
        return Err(Refusal::UnknownPort { service: key, port });
    }
    let ask =
        Ask { client: request.source, port, like: destination.ip(), now_ms: request.now_ms, tried: request.tried };
    let Some(pick) = snapshot.endpoints(&key).and_then(|set| set.pick(&ask, rng)) else {
        return Err(Refusal::NoEndpoints { service: key, port });
    };
    to_endpoint(snapshot, service, pick)
}

/// To an endpoint of a place that was chosen as DestinationRules say.
pub fn to_chosen(
    snapshot: &Snapshot,
    service: &Arc<Service>,
    workload: &Arc<Workload>,
    target: SocketAddr,
    lease: EndpointLease,
    pool: Arc<Pool>,
) -> Result<Route, Refusal> {
    route(Upstream {
        target,
        tunnel: SocketAddr::new(target.ip(), ports::HBONE),
        expected: may_answer(service, workload),
        service: Some(Arc::clone(service)),
        generation: generation(snapshot, workload, &target.ip()),
        lease: Some(lease),
        pool: Some(pool),
        workload: Arc::clone(workload),
        waypoint: false,
    })
}

fn to_endpoint(snapshot: &Snapshot, service: &Arc<Service>, pick: Pick) -> Result<Route, Refusal> {
    let Pick { workload, address, target_port, lease } = pick;
    route(Upstream {
        target: SocketAddr::new(address, target_port),
        tunnel: SocketAddr::new(address, ports::HBONE),
        expected: may_answer(service, &workload),
        service: Some(Arc::clone(service)),
        generation: generation(snapshot, &workload, &address),
        lease: Some(lease),
        pool: None,
        workload,
        waypoint: false,
    })
}

/// Identities that an endpoint of a service may prove.
fn may_answer(service: &Service, workload: &Workload) -> Vec<Identity> {
    let mut expected = service.subject_alt_names.clone();
    let own = workload.identity();
    if !expected.contains(&own) {
        expected.push(own);
    }
    expected
}

/// The address may have a newer owner than the member that was picked: then the member is on the host network or about to go, and the caches about the
/// address must not be shared with the owner's.
fn generation(snapshot: &Snapshot, workload: &Workload, address: &IpAddr) -> u64 {
    let owner = snapshot.owner(&workload.network, address);
    owner.filter(|o| o.workload.uid == workload.uid).map_or(0, |o| o.generation)
}

fn to_workload(
    snapshot: &Snapshot,
    owner: &AddressOwner,
    request: &Request<'_>,
    rng: &mut impl Rng,
) -> Result<Route, Refusal> {
    let workload = &owner.workload;
    if let Some(gateway) = waypoint::needed(snapshot, workload.waypoint.as_ref(), request.source) {
        return waypoint::to(snapshot, gateway, Asked::Workload(workload), request, rng);
    }
    let target = canonical(request.destination);
    route(Upstream {
        workload: Arc::clone(workload),
        target,
        tunnel: SocketAddr::new(target.ip(), ports::HBONE),
        expected: vec![workload.identity()],
        service: None,
        generation: owner.generation,
        lease: None,
        pool: None,
        waypoint: false,
    })
}

/// What the app asked for.
#[derive(Clone, Copy)]
enum Asked<'a> {
    Service(&'a Arc<Service>),
    Workload(&'a Workload),
}

fn canonical(destination: SocketAddr) -> SocketAddr {
    SocketAddr::new(destination.ip().to_canonical(), destination.port())
}

fn route(upstream: Upstream) -> Result<Route, Refusal> {
    if ports::is_mesh_port(upstream.target.port()) {
        return Err(Refusal::MeshPort(upstream.target.port()));
    }
    if upstream.waypoint {
        // Whatever is said of its tunnel: without one it would be asked for the app's own bytes, unproved.
        return Ok(Route::Hbone(upstream));
    }
    if upstream.workload.network_gateway.is_some() {
        return Err(Refusal::RemoteNetwork { uid: upstream.workload.uid.clone() });
    }
    // A proxy's own tunnel ends in what it serves, which is not what its operators ask.
    let is_operator_s = [ports::METRICS, ports::READINESS].contains(&upstream.target.port());
    match upstream.workload.protocol {
        TunnelProtocol::Hbone if upstream.workload.native_tunnel && is_operator_s => Ok(Route::Plain(upstream)),
        TunnelProtocol::Hbone => Ok(Route::Hbone(upstream)),
        TunnelProtocol::None => Ok(Route::Plain(upstream)),
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passthrough(to) => write!(f, "passthrough to {to}"),
            Self::Plain(up) => write!(f, "plain TCP to {} ({})", up.target, up.workload.uid),
            Self::Hbone(up) if up.waypoint => {
                write!(f, "HBONE to {} by the waypoint {} ({})", up.target, up.tunnel, up.workload.uid)
            }
            Self::Hbone(up) => write!(f, "HBONE to {} ({})", up.target, up.workload.uid),
        }
    }
}

#[cfg(test)]
mod tests;
