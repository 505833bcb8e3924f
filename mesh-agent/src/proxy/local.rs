//! What the proxy knows about the one pod it serves: the enrolment, which is authoritative for who the pod is, and the pod's workload in the current
//! snapshot, which says what applies to it. The two must agree; a snapshot that shows somebody else under the pod's address is not believed.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mesh_core::snapshot::Snapshot;
use mesh_core::workload::Workload;

use crate::pod::Pod;

/// The pod's workload in `snapshot`: found by the pod's address, accepted only if it carries the enrolled pod's namespace, name and identity.
///
/// The address alone proves nothing: after a quick reuse the snapshot may still show the former owner.
pub fn workload_of<'a>(pod: &Pod, network: &str, snapshot: &'a Snapshot) -> Option<&'a Arc<Workload>> {
    pod.ips.iter().find_map(|ip| snapshot.workload_by_address(network, ip).filter(|workload| belongs_to(pod, workload)))
}

fn belongs_to(pod: &Pod, workload: &Workload) -> bool {
    workload.name == pod.name
        && workload.namespace == pod.namespace
        && workload.service_account == pod.identity.service_account
        && workload.trust_domain == pod.identity.trust_domain
}

/// Whether `ip` is one of the pod's own addresses, in either notation.
pub fn is_own(pod: &Pod, ip: IpAddr) -> bool {
    pod.ips.contains(&ip.to_canonical())
}

/// The pod's address of the family of `destination`: the source of everything dialled for the pod.
pub fn source_for(pod: &Pod, destination: IpAddr) -> Option<IpAddr> {
    pod.ips.iter().copied().find(|ip| ip.is_ipv4() == destination.is_ipv4())
}

/// An IPv4 address in IPv6 clothes is the IPv4 address.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
