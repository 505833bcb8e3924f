//! Which endpoint takes a request. Pure, over the snapshot and what is known of the endpoints.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use arcstr::ArcStr;
use mesh_core::balance::Ask;
use mesh_core::l7::ClusterKey;
use mesh_core::{Client, EndpointLease, Identity, Service, Snapshot, Workload, ports};
use rand::Rng;

/// Who takes a request.
#[derive(Debug)]
pub struct Endpoint {
    /// The workload.
    pub workload: Arc<Workload>,
    /// The service that it is chosen for.
    pub service: Option<Arc<Service>>,
    /// Its address, and the application's port.
    pub address: SocketAddr,
    /// Changes when the address changes owner.
    pub generation: u64,
    /// Counts the request at the endpoint while it lives.
    pub lease: Option<EndpointLease>,
}

/// Why there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum NoEndpoint {
    /// No such service, port or subset.
    #[error("the place of the route is not known")]
    Unknown,
    /// None is left that may be asked.
    #[error("no endpoint is left")]
    NoneLeft,
}

impl Endpoint {
    /// Who may answer there.
    #[must_use]
    pub fn expected(&self) -> Vec<Identity> {
        let mut expected = self.service.as_ref().map(|service| service.subject_alt_names.clone()).unwrap_or_default();
        let own = self.workload.identity();
        if !expected.contains(&own) {
            expected.push(own);
        }
        expected
    }

    /// It took a connection.
    pub fn connected(&self, now_ms: u64) {
        if let Some(lease) = &self.lease {
            lease.report_success(now_ms);
        }
    }

    /// It did not.
    pub fn failed(&self, now_ms: u64) {
        if let Some(lease) = &self.lease
            && lease.report_failure(now_ms)
        {
            tracing::info!(endpoint = %self.workload.uid, address = %self.address, "endpoint ejected after repeated failures");
        }
    }
}

/// An endpoint of a cluster that was not tried.
pub fn endpoint(
    snapshot: &Snapshot,
    own: &Client,
    cluster: &ClusterKey,
    tried: &[ArcStr],
    now_ms: u64,
    rng: &mut impl Rng,
) -> Result<Endpoint, NoEndpoint> {
    let service = snapshot.service(&cluster.service).ok_or(NoEndpoint::Unknown)?;
    // What a subset means is not known here; all endpoints would be the wrong ones.
    if service.port(cluster.port).is_none() || !cluster.subset.is_empty() {
        return Err(NoEndpoint::Unknown);
    }
    let like = own.ips.first().copied().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let ask = Ask { client: own, port: cluster.port, like, now_ms, tried };
    let pick = snapshot.endpoints(&cluster.service).and_then(|set| set.pick(&ask, rng)).ok_or(NoEndpoint::NoneLeft)?;
    let address = SocketAddr::new(pick.address, pick.target_port);
    if ports::is_mesh_port(address.port()) || pick.workload.network_gateway.is_some() {
        return Err(NoEndpoint::NoneLeft);
    }
    Ok(Endpoint {
        generation: generation(snapshot, &pick.workload, address.ip()),
        service: Some(Arc::clone(service)),
        workload: pick.workload,
        address,
        lease: Some(pick.lease),
    })
}

/// A workload that was asked for itself.
#[must_use]
pub fn workload(workload: &Arc<Workload>, address: SocketAddr, snapshot: &Snapshot) -> Option<Endpoint> {
    (workload.network_gateway.is_none() && !ports::is_mesh_port(address.port())).then(|| Endpoint {
        workload: Arc::clone(workload),
        service: None,
        address,
        generation: generation(snapshot, workload, address.ip()),
        lease: None,
    })
}

/// Of an address with a newer owner nothing is shared with the owner.
fn generation(snapshot: &Snapshot, workload: &Workload, ip: IpAddr) -> u64 {
    let owner = snapshot.owner(&workload.network, &ip).filter(|owner| owner.workload.uid == workload.uid);
    owner.map_or(0, |owner| owner.generation)
}
