//! Circles of proxies in what is no HTTP: a gateway whose route leads to itself, gateways and waypoints whose routes lead to each other. `connection` and
//! `edge::bytes` ask before they go on to an endpoint; requests of HTTP are counted by a header (`exchange::asked`).

use std::net::IpAddr;

use mesh_core::Identity;
use mesh_core::hops::{self, To};
use mesh_core::listener::{Open, Transport};

use crate::engine::Lane;
use crate::peer::Peer;
use crate::record::Nowhere;
use crate::shared::{Own, Shared};
use crate::state::View;
use crate::upstream::Endpoint;

/// How seldom one is told of: clients choose how many there are.
const TOLD_EVERY: u64 = 256;

/// Whether a waypoint or gateway has the address and, where that was proved, the identity that belongs there.
#[must_use]
pub fn is_proxy(view: &View, own: &Own, from: IpAddr, proved: Option<&Identity>) -> bool {
    let workload = view.snapshot.workload_by_address(&own.place.network, &from.to_canonical());
    workload.is_some_and(|workload| {
        (workload.native_tunnel || view.is_gateway(workload))
            && proved.is_none_or(|proved| *proved == workload.identity())
    })
}

/// Refuses to go on to an endpoint by which the connection would come back, for ever.
pub fn break_at(lane: &Lane, view: &View, peer: &Peer, endpoint: &Endpoint) -> Result<(), Nowhere> {
    let Some(why) = circle(&lane.shared, view, peer.hops, endpoint) else { return Ok(()) };
    if lane.meters.circle().is_multiple_of(TOLD_EVERY) {
        let service = endpoint.service.as_ref().map(|service| service.key().to_string()).unwrap_or_default();
        tracing::warn!(endpoint = %endpoint.workload.uid, address = %endpoint.address, service, why, "connections go in a circle and are refused: change the route that leads there");
    }
    Err(("NR", why.to_owned()))
}

fn circle(shared: &Shared, view: &View, passed: u8, endpoint: &Endpoint) -> Option<&'static str> {
    let at = endpoint.waypoint.as_ref().map_or(endpoint.address, |waypoint| waypoint.at);
    if shared.own.place.ips.contains(&at.ip().to_canonical()) && is_heard(shared, view, at.port()) {
        return Some("it leads back to this proxy itself");
    }
    // One that is a gateway and a waypoint has no such label.
    let is_gateway = view.is_gateway(&endpoint.workload) || endpoint.workload.native_tunnel;
    let to = match (&endpoint.waypoint, is_gateway) {
        (Some(_), _) => To::Tunnel,
        (None, true) => To::Plain,
        (None, false) => To::Endpoint,
    };
    hops::onward(passed, to).is_none().then_some("it has passed too many proxies of the mesh")
}

/// Whether this process listens on the port: another one may share its address, as on the node's network.
fn is_heard(shared: &Shared, view: &View, port: u16) -> bool {
    let tcp = Open { transport: Transport::Tcp, port };
    port == shared.settings.hbone_port || view.edge.listeners.open().any(|open| open == tcp)
}
