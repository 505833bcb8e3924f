//! How to reach the control plane and who asks. Filled in by the agent's command line.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use mesh_core::TrustDomain;

use crate::{bearer::Bearer, subscription::Limits};

/// Settings of both clients.
#[derive(Clone, Debug)]
pub struct ControlConfig {
    /// `host:port` to connect to.
    pub address: String,
    /// The name that the control plane's certificate must carry: a DNS name or an address.
    pub server_name: String,
    /// PEM file with the roots that the control plane's certificate must chain to; read again for each connection.
    pub root_cert: PathBuf,
    /// File with the bearer token; read again for each stream and each certificate request. `None` sends no token.
    pub token: Option<PathBuf>,
    /// Sent as node metadata and as the header `clusterid`.
    pub cluster_id: String,
    /// The node's network.
    pub network: String,
    /// The node's name.
    pub node: String,
    /// The namespace that the agent runs in.
    pub namespace: String,
    /// The agent's own name; the node's if it has none.
    pub pod_name: String,
    /// The agent's address, for the node id.
    pub instance_ip: Option<IpAddr>,
    /// How long certificates should live.
    pub certificate_ttl: Duration,
    /// Further trust domains whose workloads are accepted as peers.
    pub trust_domain_aliases: Vec<TrustDomain>,
    /// Of which waypoint to subscribe to what it has of its own, if of one: `namespace/name` of its Gateway.
    pub own: Option<String>,
    /// Bounds and delays of the subscription.
    pub limits: Limits,
}

impl ControlConfig {
    /// Defaults for everything but the place and the node. The certificate's name is the host of `address`; the agent's own names are those in its token,
    /// if it has any.
    #[must_use]
    pub fn new(
        address: impl Into<String>,
        root_cert: PathBuf,
        token: Option<PathBuf>,
        node: impl Into<String>,
    ) -> Self {
        let (address, node) = (address.into(), node.into());
        let bearer = token.as_deref().map(Bearer::of).unwrap_or_default();
        let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host);
        Self {
            server_name: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            address,
            root_cert,
            token,
            cluster_id: "Kubernetes".into(),
            network: String::new(),
            pod_name: bearer.pod.unwrap_or_else(|| node.clone()),
            node,
            namespace: bearer.namespace.unwrap_or_else(|| "undermesh-system".into()),
            instance_ip: None,
            certificate_ttl: Duration::from_secs(24 * 3600),
            trust_domain_aliases: Vec::new(),
            own: None,
            limits: Limits::default(),
        }
    }
}
