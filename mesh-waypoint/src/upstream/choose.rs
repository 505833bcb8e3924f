//! Which endpoint takes a request: of a place the one that what is said of it chooses, or the workload that was asked for itself.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use arcstr::ArcStr;
use http::HeaderMap;
use mesh_core::l7::ClusterKey;
use mesh_core::l7::balance::{self, Ask, Ended, Judge, Lease, Limit, Said, Taken};
use mesh_core::l7::cluster::{Balancer, HashKey};
use mesh_core::l7::{self};
use mesh_core::resolve::{self, Route};
use mesh_core::workload::TunnelProtocol;
use mesh_core::{Identity, Service, Snapshot, Workload, ports};
use rand::Rng;

use crate::http::wait::Wait;
use crate::names::Named;
use crate::origination::Origin;
use crate::places::{Found, Here, NoEndpoint, Permit, Places};
use crate::shared::Own;
use crate::state::View;

/// Who takes a request.
pub struct Endpoint {
    /// The workload.
    pub workload: Arc<Workload>,
    /// The service that it is chosen for.
    pub service: Option<Arc<Service>>,
    /// Its address, and the application's port.
    pub address: SocketAddr,
    /// Changes when the address changes owner.
    pub generation: u64,
    /// The place that it is chosen from.
    pub found: Option<Found>,
    origin: Option<Arc<Origin>>,
    /// It is the waypoint of the service, which is asked for the service's address.
    pub waypoint: Option<Tunnel>,
    /// Counts the request at the endpoint while it lives.
    lease: Option<Lease>,
    /// Counts it at the place.
    _taken: Option<Taken>,
    /// Counts it as a second attempt.
    pub retry: Option<Taken>,
    /// Whether the request waits for others before it is the endpoint's turn.
    pub turn: Wait,
}

/// How a waypoint is reached.
#[derive(Clone)]
pub struct Tunnel {
    /// Where it listens.
    pub at: SocketAddr,
    expected: Box<[Identity]>,
}

impl Endpoint {
    /// A workload itself, of no place.
    fn new(workload: Arc<Workload>, address: SocketAddr, generation: u64) -> Self {
        Self {
            workload,
            service: None,
            address,
            generation,
            found: None,
            origin: None,
            waypoint: None,
            lease: None,
            _taken: None,
            retry: None,
            turn: Wait::default(),
        }
    }

    /// One for which a place was found.
    fn of(found: &Found, workload: Arc<Workload>, address: SocketAddr, generation: u64) -> Self {
        let service = Some(Arc::clone(&found.now.service));
        Self { service, found: Some(found.clone()), ..Self::new(workload, address, generation) }
    }

    /// One that a place has chosen.
    fn chosen(found: &Found, chosen: &balance::Endpoint, snapshot: &Snapshot) -> Self {
        let generation = generation(snapshot, &chosen.workload, chosen.address.ip());
        let lease = Some(found.now.set.lease(chosen));
        Self { lease, ..Self::of(found, Arc::clone(&chosen.workload), chosen.address, generation) }
    }

    /// The same for a connection that is nobody's yet: nothing is counted by it.
    pub(super) fn uncounted(&self) -> Self {
        Self {
            service: self.service.clone(),
            found: self.found.clone(),
            origin: self.origin.clone(),
            waypoint: self.waypoint.clone(),
            ..Self::new(Arc::clone(&self.workload), self.address, self.generation)
        }
    }

    /// Who may answer there.
    #[must_use]
    pub fn expected(&self) -> Vec<Identity> {
        if let Some(waypoint) = &self.waypoint {
            return waypoint.expected.to_vec();
        }
        let mut expected = self.service.as_ref().map(|service| service.subject_alt_names.clone()).unwrap_or_default();
        let own = self.workload.identity();
        if !expected.contains(&own) {
            expected.push(own);
        }
        expected
    }

    /// How TLS of the world begins there, if that is asked for.
    #[must_use]
    pub fn origin(&self) -> Option<&Arc<Origin>> {
        self.origin.as_ref()
    }

    /// Takes note of how requests there end.
    #[must_use]
    pub fn judge(&self) -> Option<&Judge> {
        self.lease.as_ref().map(Lease::judge)
    }

    /// Takes note of how the request ended.
    pub fn ended(&self, ended: Ended, now_ms: u64) {
        report(self.judge(), &self.workload.uid, ended, now_ms);
    }
}

/// Takes note of how a request to an endpoint ended, and says so if that leaves it out.
pub fn report(judge: Option<&Judge>, uid: &str, ended: Ended, now_ms: u64) {
    if let Some(reason) = judge.and_then(|judge| judge.report(ended, now_ms)) {
        tracing::info!(endpoint = uid, reason = reason.text(), "an endpoint is left out for a while");
    }
}

/// What decides about an endpoint.
pub struct Wish<'a> {
    /// What is known.
    pub view: &'a View,
    /// Who chooses.
    pub own: &'a Own,
    /// Uids that were tried already.
    pub tried: &'a [ArcStr],
    /// Whether other localities than theirs come first.
    pub elsewhere: bool,
    /// What the request says, if that decides.
    pub hash: Option<u64>,
    /// What will be sent is TLS of the client's own, that goes to the application as it is.
    pub encrypted: bool,
    /// Monotonic milliseconds.
    pub now_ms: u64,
}

impl<'a> Wish<'a> {
    /// Whatever endpoint there is.
    pub fn new(view: &'a View, own: &'a Own, now_ms: u64) -> Self {
        Self { view, own, tried: &[], elsewhere: false, hash: None, encrypted: false, now_ms }
    }
}

/// The place that a request goes to.
pub fn place(
    places: &Places,
    wish: &Wish<'_>,
    cluster: &ClusterKey,
    client: &l7::Client<'_>,
) -> Result<Found, NoEndpoint> {
    let own = Here { place: &wish.own.place, uid: &wish.own.uid };
    places.find(wish.view, own, cluster, client, wish.now_ms)
}

/// An endpoint of a place that was not tried.
pub fn endpoint(found: &Found, wish: &Wish<'_>, rng: &mut impl Rng) -> Result<Endpoint, NoEndpoint> {
    let usage = found.place.usage();
    let Some(taken) = usage.take(Limit::Requests, found.now.policy().pool.requests) else {
        usage.refused();
        return Err(NoEndpoint::Overflow);
    };
    if found.now.service.waypoint.is_some()
        && wish.view.edge.listeners.waypoint_services().contains(&found.now.service.key())
    {
        return through_waypoint(found, wish, taken, rng);
    }
    let chosen = pick(found, wish, wish.hash, rng)?;
    let workload = &chosen.workload;
    // Endpoints of the mesh are reached in its own way, whatever is said, unless it is said of their applications; what is said of others must not be left undone.
    let mut origin = None;
    let is_outside = workload.protocol == TunnelProtocol::None;
    if is_outside && found.now.policy().proxy_protocol.is_some() {
        tracing::debug!(endpoint = %workload.uid, "the PROXY protocol to endpoints outside the mesh is not spoken");
        return Err(NoEndpoint::Closed);
    }
    let is_end_to_end = found.now.policy().tls.server().is_some_and(|server| server.end_to_end);
    // What a gateway listens for is its own, also in a tunnel.
    let is_gateway = workload.native_tunnel || wish.view.is_gateway(workload);
    if (is_outside || is_gateway || is_end_to_end) && !(is_end_to_end && wish.encrypted) {
        origin = found.now.origin().map_err(|why| {
            tracing::debug!(endpoint = %workload.uid, why, "TLS cannot begin");
            NoEndpoint::Closed
        })?;
    }
    let origin = origin.cloned();
    Ok(Endpoint { origin, _taken: Some(taken), ..Endpoint::chosen(found, chosen, &wish.view.snapshot) })
}

/// An endpoint for datagrams, all of which go to the same one; `port` is the application's. They go there as they are: there is no tunnel for them, so neither
/// a waypoint nor TLS is on the way.
pub fn datagrams(
    places: &Places,
    wish: &Wish<'_>,
    (cluster, port): (&ClusterKey, u16),
    client: (&l7::Client<'_>, IpAddr),
    rng: &mut impl Rng,
) -> Result<(Endpoint, Permit), NoEndpoint> {
    let own = Here { place: &wish.own.place, uid: &wish.own.uid };
    let found = places.find_at(wish.view, own, (cluster, Some(port)), client.0, wish.now_ms)?;
    let Some(permit) = Permit::take(&found) else {
        found.place.usage().refused();
        return Err(NoEndpoint::Overflow);
    };
    let chosen = pick(&found, wish, by_source(&found, client.1, rng), rng)?;
    Ok((Endpoint::chosen(&found, chosen, &wish.view.snapshot), permit))
}

/// What decides about what says nothing but its client's address, which are bytes and datagrams.
pub fn by_source(found: &Found, source: IpAddr, rng: &mut impl Rng) -> Option<u64> {
    let Balancer::Hash(wanted @ HashKey::Source, _) = &found.now.policy().balancer else { return None };
    balance::key(wanted, &Said { headers: &HeaderMap::new(), query: None, source }, rng).0
}

/// Whether datagrams may still go to an endpoint that was chosen for them.
pub fn keeps(
    places: &Places,
    wish: &Wish<'_>,
    (cluster, port): (&ClusterKey, u16),
    client: &l7::Client<'_>,
    endpoint: &Endpoint,
) -> bool {
    let own = Here { place: &wish.own.place, uid: &wish.own.uid };
    let found = places.find_at(wish.view, own, (cluster, Some(port)), client, wish.now_ms);
    let is_it = |one: &balance::Endpoint| one.workload.uid == endpoint.workload.uid && one.address == endpoint.address;
    found.is_ok_and(|found| found.now.set.endpoints().iter().any(is_it))
}

/// An address of a name that was looked up for a place of which only a pattern is known, that was not tried. It is no workload that anybody has told of.
pub fn named(found: &Found, named: &Named, wish: &Wish<'_>) -> Result<Endpoint, NoEndpoint> {
    let (usage, service) = (found.place.usage(), &found.now.service);
    let uid = |ip: &IpAddr| ArcStr::from(format!("name/{}/{ip}", named.name));
    let fresh = named.addresses.iter().map(|ip| (uid(ip), *ip)).find(|(uid, _)| !wish.tried.contains(uid));
    let (uid, ip) = fresh.ok_or(NoEndpoint::NoneLeft)?;
    let asked = service.port(found.place.key().port).ok_or(NoEndpoint::Unknown)?;
    let port = if asked.target_port == 0 { asked.service_port } else { asked.target_port };
    if ports::is_mesh_port(port) {
        return Err(NoEndpoint::NoneLeft);
    }
    let Some(taken) = usage.take(Limit::Requests, found.now.policy().pool.requests) else {
        usage.refused();
        return Err(NoEndpoint::Overflow);
    };
    if found.now.policy().proxy_protocol.is_some() {
        return Err(NoEndpoint::Closed);
    }
    let closed = |why: &str| {
        tracing::debug!(%uid, why, "TLS cannot begin");
        NoEndpoint::Closed
    };
    let origin = found.now.origin().map_err(closed)?;
    let origin = origin.map(|origin| origin.for_name(&named.name)).transpose().map_err(|why| closed(&why))?;
    let mut workload = Workload::new(uid, service.namespace.clone(), service.name.clone());
    workload.addresses = vec![ip];
    workload.network = wish.own.place.network.clone();
    workload.workload_name = service.name.clone();
    workload.canonical_name = service.name.clone();
    let endpoint = Endpoint::of(found, Arc::new(workload), SocketAddr::new(ip, port), 0);
    Ok(Endpoint { origin, _taken: Some(taken), ..endpoint })
}

/// The waypoint of a service, as an agent would take it: it is asked for the service's address, and what is said of the service's endpoints is its to heed. Of a service
/// without one it is asked for an endpoint, if it is the endpoint's as well.
fn through_waypoint(found: &Found, wish: &Wish<'_>, taken: Taken, rng: &mut impl Rng) -> Result<Endpoint, NoEndpoint> {
    let (service, source) = (&found.now.service, &wish.own.place);
    let mut addresses = service.addresses.iter().filter(|at| at.network == source.network).filter_map(|at| at.single());
    let destination = match addresses.next() {
        Some(address) => SocketAddr::new(address, found.place.key().port),
        None => pick(found, wish, wish.hash, rng)?.address,
    };
    let request = resolve::Request { source, destination, place: None, now_ms: wish.now_ms, tried: wish.tried };
    match resolve::resolve(&wish.view.snapshot, &request, rng) {
        Ok(Route::Hbone(upstream)) if upstream.waypoint => {
            let waypoint = Some(Tunnel { at: upstream.tunnel, expected: upstream.expected.into() });
            let endpoint = Endpoint::of(found, upstream.workload, upstream.target, upstream.generation);
            Ok(Endpoint { waypoint, _taken: Some(taken), ..endpoint })
        }
        Ok(_) => Err(NoEndpoint::NoneLeft),
        Err(why) => {
            tracing::debug!(%why, "a service cannot be reached through its waypoint");
            Err(NoEndpoint::NoneLeft)
        }
    }
}

/// A workload that was asked for itself.
#[must_use]
pub fn workload(workload: &Arc<Workload>, address: SocketAddr, snapshot: &Snapshot) -> Option<Endpoint> {
    may_be_asked(workload, address).then(|| {
        let generation = generation(snapshot, workload, address.ip());
        Endpoint::new(Arc::clone(workload), address, generation)
    })
}

/// What the place chooses.
fn pick<'a>(
    found: &'a Found,
    wish: &Wish<'_>,
    hash: Option<u64>,
    rng: &mut impl Rng,
) -> Result<&'a balance::Endpoint, NoEndpoint> {
    let ask = Ask { hash, tried: wish.tried, elsewhere: wish.elsewhere, now_ms: wish.now_ms };
    let chosen = found.now.set.pick(&ask, rng);
    chosen.filter(|one| may_be_asked(&one.workload, one.address)).ok_or(NoEndpoint::NoneLeft)
}

/// The mesh's own ports are nobody's application, and nothing here passes through gateways between networks.
fn may_be_asked(workload: &Workload, address: SocketAddr) -> bool {
    workload.network_gateway.is_none() && !ports::is_mesh_port(address.port())
}

/// Of an address with a newer owner nothing is shared with the owner.
fn generation(snapshot: &Snapshot, workload: &Workload, ip: std::net::IpAddr) -> u64 {
    let owner = snapshot.owner(&workload.network, &ip).filter(|owner| owner.workload.uid == workload.uid);
    owner.map_or(0, |owner| owner.generation)
}
