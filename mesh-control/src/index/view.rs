//! The view: everything that is served, from one set of objects.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_core::{ArcStr, NamespacedName, Policy, Service, TrustDomain, Workload};

use super::{policy, service, workload};
use crate::diagnosis::Problem;
use crate::resource::{Key, Objects};

/// What joins depend on besides the objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Of all identities.
    pub trust_domain: TrustDomain,
    /// In the uid of every workload.
    pub cluster_id: ArcStr,
    /// End of every service's host name.
    pub cluster_domain: ArcStr,
    /// Policies there hold in the whole mesh; converted mesh-wide policies get the first one's name.
    pub root_namespaces: Vec<ArcStr>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            trust_domain: TrustDomain::default(),
            cluster_id: "Kubernetes".into(),
            cluster_domain: "cluster.local".into(),
            root_namespaces: vec!["undermesh-system".into(), "istio-system".into()],
        }
    }
}

impl Settings {
    /// Whether policies of `namespace` hold in the whole mesh.
    pub fn is_root(&self, namespace: &str) -> bool {
        self.root_namespaces.iter().any(|r| r == namespace)
    }
}

/// Who may ask for which identity: `(node, namespace, service account)` of pods that are alive.
pub type Placements = BTreeSet<(ArcStr, ArcStr, ArcStr)>;

/// Everything that agents get, and what is wrong with it.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// By uid.
    pub workloads: BTreeMap<ArcStr, Workload>,
    /// By `namespace/hostname`.
    pub services: BTreeMap<NamespacedName, Service>,
    /// By `namespace/name`.
    pub policies: BTreeMap<NamespacedName, Policy>,
    /// Which node runs which identity.
    pub placements: Placements,
    /// Nodes, with their uid if they have one.
    pub nodes: BTreeMap<ArcStr, Option<String>>,
    /// What does not fit together.
    pub problems: Vec<(Key, Problem)>,
}

/// Joins everything. The result depends on nothing else: a restart brings the same.
pub fn build(objects: &Objects, settings: &Settings) -> View {
    let mut problems = Vec::new();
    let policies = policy::index(objects, settings, &mut problems);
    let services = service::index(objects, settings, &mut problems);
    let workloads = workload::index(objects, settings, &services, &policies, &mut problems);
    View {
        workloads: workloads.into_iter().map(|w| (w.uid.clone(), w)).collect(),
        services: services.by_key.into_iter().map(|(k, s)| (k, Arc::unwrap_or_clone(s))).collect(),
        policies: policies.all,
        placements: workload::placements(objects),
        nodes: objects.nodes.values().map(|n| (n.name.clone(), n.uid.clone())).collect(),
        problems,
    }
}
