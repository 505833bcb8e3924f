//! Nodes: where they are. Each node of the mesh gets a token for its agent.

use k8s_openapi::api::core::v1 as k8s;
use mesh_core::{ArcStr, Locality};

use super::{Key, meta};
use crate::diagnosis::Problem;

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: ArcStr,
    /// Its `metadata.uid`, if it has one; a token made for one uid is not good for another.
    pub uid: Option<String>,
    /// From its topology labels.
    pub locality: Locality,
}

/// Reduces a node.
pub fn read(key: &Key, object: k8s::Node) -> (Node, Vec<Problem>) {
    let labels = object.metadata.labels.unwrap_or_default();
    // The beta labels are what nodes of old clusters still carry.
    let part = |keys: [&str; 2]| keys.iter().find_map(|k| labels.get(*k)).map(|v| meta::shown(v)).unwrap_or_default();
    let locality = Locality {
        region: part(["topology.kubernetes.io/region", "failure-domain.beta.kubernetes.io/region"]),
        zone: part(["topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone"]),
        subzone: part(["topology.istio.io/subzone", "topology.istio.io/subzone"]),
    };
    (Node { name: key.name.clone(), uid: object.metadata.uid, locality }, Vec::new())
}
