//! What of the outside a client may reach: all of it, or only what somebody is known to have who shows it to the client's namespace. [`resolve`](super::resolve) asks it of
//! each connection, and agents ask it again of those that are open. The kernel's table knows addresses alone, of all namespaces: it lets nobody through whom this refuses.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use super::{Client, Refusal};
use crate::{
    NamespacedName, Service, Snapshot, Workload, service::Mode, snapshot::AddressOwner, workload::NetworkAddress,
};

/// The service that has an address, as far as the client can see it: outside of the mesh one that is for other namespaces only is nobody's for him. Inside, an
/// address has one owner for all.
pub(super) fn known_service<'a>(
    snapshot: &'a Snapshot,
    source: &'a Client,
    address: &IpAddr,
) -> Option<&'a Arc<Service>> {
    let first = snapshot.service_by_address(&source.network, address)?;
    if first.visible_from(&source.namespace) || snapshot.in_mesh_ranges(*address) {
        return Some(first);
    }
    seen(snapshot, source, *address).next()
}

/// All services that have an address and that the client can see, those of the narrowest range first.
fn seen<'a>(snapshot: &'a Snapshot, source: &'a Client, address: IpAddr) -> impl Iterator<Item = &'a Arc<Service>> {
    let at = NetworkAddress { network: source.network.clone(), address };
    let own = snapshot.vips.get(&at).into_iter().flat_map(|keys| keys.iter());
    let ranges = snapshot.cidrs.get(&source.network);
    let mut within = Some(IpNet::from(address));
    let around = std::iter::from_fn(move || {
        let (range, keys) = ranges?.get_lpm(&within?)?;
        within = range.supernet();
        Some(keys)
    });
    let keys = own.chain(around.flat_map(|keys| keys.iter()));
    let services = keys.filter_map(|key: &NamespacedName| snapshot.services.get(key));
    services.filter(|service| service.visible_from(&source.namespace))
}

/// Whether a client may reach an address, by what is said of the outside. Inside of the mesh it may reach everybody but endpoints that only entries know, and
/// whether there is somebody is for [`resolve`](super::resolve) to know.
pub fn may_reach(snapshot: &Snapshot, source: &Client, to: SocketAddr) -> Result<(), Refusal> {
    let Some(said) = snapshot.outbound(&source.namespace, &source.uid).filter(|said| said.registry_only) else {
        return Ok(());
    };
    let (ip, port) = (to.ip().to_canonical(), to.port());
    let is_known = match snapshot.owner(&source.network, &ip) {
        Some(owner) => is_shown(snapshot, source, owner, port) || serves(snapshot, source, ip, port),
        None => snapshot.in_mesh_ranges(ip) || is_led(snapshot, source, ip) || serves(snapshot, source, ip, port),
    };
    match is_known {
        true => Ok(()),
        false => Err(Refusal::NotInRegistry { address: SocketAddr::new(ip, port), origin: said.origin.clone() }),
    }
}

/// Pods are there for everybody. What only entries know is there for who sees one of them, on the ports that it has.
fn is_shown(snapshot: &Snapshot, source: &Client, owner: &AddressOwner, port: u16) -> bool {
    let has = |workload: &Workload| {
        workload.services.iter().any(|(key, ports)| {
            ports.iter().any(|own| own.service_port == port || own.target_port == port)
                && snapshot.service(key).is_some_and(|service| service.visible_from(&source.namespace))
        })
    };
    // One that no host leads to, as of an entry with patterns alone, is its own namespace's.
    let is_own = |workload: &Workload| workload.services.is_empty() && workload.namespace == source.namespace;
    owner.claimants().any(|workload| !workload.is_entry() || has(workload) || is_own(workload))
}

/// Whether some service has the port at that address.
fn serves(snapshot: &Snapshot, source: &Client, address: IpAddr, port: u16) -> bool {
    seen(snapshot, source, address).any(|service| service.port(port).is_some())
}

/// Whether a service chooses an endpoint for who asks for the address: it refuses ports that it does not have itself.
fn is_led(snapshot: &Snapshot, source: &Client, address: IpAddr) -> bool {
    known_service(snapshot, source, &address).is_some_and(|service| service.load_balancing.mode != Mode::Passthrough)
}
