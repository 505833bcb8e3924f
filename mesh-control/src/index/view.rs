//! The view: everything that is served, from one set of objects.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_core::{ArcStr, NamespacedName, Policy, Service, Workload};

use super::settings::Settings;
use super::{policy, service, workload};
use crate::diagnosis::Problem;
use crate::resource::{Key, Objects};

/// Who may ask for which identity: `(node, namespace, service account)` of pods that are alive.
pub type Placements = BTreeSet<(ArcStr, ArcStr, ArcStr)>;

/// A pod of an agent, as its token names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentPod {
    /// Its namespace.
    pub namespace: ArcStr,
    /// Its name.
    pub name: ArcStr,
    /// Its service account.
    pub account: ArcStr,
    /// The node that it is bound to.
    pub node: ArcStr,
}

/// Everything that agents get, and what is wrong with it.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// What it was joined with.
    pub settings: Settings,
    /// Namespaces of the mesh.
    pub namespaces: BTreeSet<ArcStr>,
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
    /// Pods of agents that have not ended, by uid.
    pub agents: BTreeMap<ArcStr, AgentPod>,
    /// What does not fit together.
    pub problems: Vec<(Key, Problem)>,
}

impl View {
    /// Whether a node of that name and uid exists.
    pub fn has_node(&self, name: &str, uid: Option<&str>) -> bool {
        self.nodes.get(name).is_some_and(|known| known.as_deref() == uid)
    }

    /// Whether just that pod of an agent exists.
    pub fn has_agent(&self, uid: &str, pod: &AgentPod) -> bool {
        self.agents.get(uid) == Some(pod)
    }
}

/// Joins everything with `settings`, and what the objects say over them. The result depends on nothing else: a restart brings the same.
pub fn build(objects: &Objects, settings: &Settings) -> View {
    let mut problems = Vec::new();
    let settings = &settings.with(objects, &mut problems);
    let policies = policy::index(objects, settings, &mut problems);
    let services = service::index(objects, settings, &mut problems);
    let workloads = workload::index(objects, settings, &services, &policies, &mut problems);
    View {
        workloads: workloads.into_iter().map(|w| (w.uid.clone(), w)).collect(),
        services: services.by_key.into_iter().map(|(k, s)| (k, Arc::unwrap_or_clone(s))).collect(),
        policies: policies.all,
        placements: workload::placements(objects, settings),
        nodes: objects.nodes.values().map(|n| (n.name.clone(), n.uid.clone())).collect(),
        agents: workload::agents(objects, settings),
        namespaces: objects.namespaces.keys().filter(|name| settings.discovers(objects, name)).cloned().collect(),
        settings: settings.clone(),
        problems,
    }
}
