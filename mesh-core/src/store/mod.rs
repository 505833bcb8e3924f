//! The only writer of snapshots. It applies batches of changes to a working copy, keeps every index consistent, and hands out the result with
//! a `Diff` of what readers must look at again. A batch costs what it touches, not what exists.

mod addresses;
mod policies;
mod services;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use arcstr::ArcStr;
use prefix_trie::joint::JointPrefixSet;

use crate::{
    Change, EndpointSet, NamespacedName, Snapshot, Workload, balance::OutlierPolicy, policy::Scope,
    workload::NetworkAddress,
};

/// What a batch touched: added, changed or removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diff {
    /// Workload uids.
    pub workloads: BTreeSet<ArcStr>,
    /// Services whose description or members changed.
    pub services: BTreeSet<NamespacedName>,
    /// Policies.
    pub policies: BTreeSet<NamespacedName>,
    /// Workload addresses that changed owner.
    pub addresses: BTreeSet<IpAddr>,
    /// A mesh-wide policy changed.
    pub global_policies: bool,
    /// Namespaces of which a namespace-wide policy changed.
    pub policy_namespaces: BTreeSet<ArcStr>,
    /// What is said of connections to what nobody is known to have.
    pub outbound: bool,
    /// The first full state is complete with this batch.
    pub synced: bool,
}

impl Diff {
    /// Nothing changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether decisions about connections to this workload may come out differently now. `workload` is the version that decided before.
    #[must_use]
    pub fn concerns(&self, workload: &Workload) -> bool {
        self.workloads.contains(&workload.uid)
            || self.global_policies
            || self.policy_namespaces.contains(&workload.namespace)
            || workload.authorization_policies.iter().any(|name| self.policies.contains(name))
    }

    fn policy(&mut self, name: &NamespacedName, scope: Scope) {
        self.policies.insert(name.clone());
        match scope {
            Scope::Global => self.global_policies = true,
            Scope::Namespace => _ = self.policy_namespaces.insert(name.namespace.clone()),
            Scope::WorkloadSelector => {}
        }
    }
}

/// The result of one batch.
#[derive(Clone, Debug)]
pub struct Applied {
    /// The new state.
    pub snapshot: Arc<Snapshot>,
    /// What is new in it.
    pub diff: Diff,
}

/// Owns the state of the mesh. One task has it; everybody else reads snapshots.
#[derive(Default)]
pub struct Store {
    current: Snapshot,
    /// Addresses that more than one workload claims, with the uids of all claimants.
    contested: HashMap<NetworkAddress, Vec<ArcStr>>,
    last_generation: u64,
    outlier_policy: OutlierPolicy,
}

/// Collected while a batch is applied.
#[derive(Default)]
struct Batch {
    diff: Diff,
    members: HashMap<NamespacedName, BTreeMap<ArcStr, Option<Arc<Workload>>>>,
}

impl Store {
    /// An empty, unsynced state.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets when endpoints of services that appear from now on are ejected.
    #[must_use]
    pub fn with_outlier_policy(mut self, policy: OutlierPolicy) -> Self {
        self.outlier_policy = policy;
        self
    }

    /// The state as of the last batch.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::new(self.current.clone())
    }

    /// Applies changes in order, later ones winning, as one step.
    pub fn apply(&mut self, changes: Vec<Change>) -> Applied {
        let mut batch = Batch::default();
        for change in changes {
            match change {
                Change::Workload(workload) => self.put_workload(workload, &mut batch),
                Change::Service(service) => self.put_service(service, &mut batch.diff),
                Change::RemoveAddress(name) => self.remove_address(&name, &mut batch),
                Change::Policy(policy) => self.put_policy(policy, &mut batch.diff),
                Change::RemovePolicy(name) => self.remove_policy(&name, &mut batch.diff),
                Change::PolicyUnreadable { name, scope } => self.mark_unreadable(name, scope, &mut batch.diff),
                Change::Connections(routes) => {
                    self.current.connections.insert(routes.service.clone(), Arc::new(routes));
                }
                Change::RemoveConnections(service) => _ = self.current.connections.remove(&service),
                Change::Clusters(service, clusters) => {
                    self.current.clusters.insert(service, Arc::new(clusters));
                }
                Change::RemoveClusters(service) => _ = self.current.clusters.remove(&service),
                Change::Outbound(scope, said) => {
                    batch.diff.outbound |= self.current.outbound.insert(scope, said.clone()) != Some(said);
                }
                Change::RemoveOutbound(scope) => batch.diff.outbound |= self.current.outbound.remove(&scope).is_some(),
                Change::OutboundKnown => {
                    batch.diff.outbound |= !std::mem::replace(&mut self.current.outbound_known, true);
                }
                Change::Labels(changes) => self.current.labels = Arc::new(self.current.labels.with(changes)),
                Change::Ranges(ranges) => {
                    let ranges: JointPrefixSet<_> = ranges.into_iter().collect();
                    self.current.ranges = Arc::new(ranges);
                }
                Change::Synced => {
                    batch.diff.synced |= !self.current.synced;
                    self.current.synced = true;
                }
            }
        }
        for (key, changes) in batch.members {
            self.update_members(&key, &changes);
            batch.diff.services.insert(key);
        }
        self.current.version += 1;
        Applied { snapshot: self.snapshot(), diff: batch.diff }
    }

    fn put_workload(&mut self, workload: Workload, batch: &mut Batch) {
        let former = self.current.workloads.get(&workload.uid).cloned();
        if former.as_deref() == Some(&workload) {
            return;
        }
        let workload = Arc::new(workload);
        self.current.workloads.insert(workload.uid.clone(), Arc::clone(&workload));
        self.move_addresses(former.as_deref(), Some(&workload), &mut batch.diff);
        batch.leave(former.as_deref(), &workload.uid);
        for service in workload.services.keys() {
            let changes = batch.members.entry(service.clone()).or_default();
            changes.insert(workload.uid.clone(), Some(Arc::clone(&workload)));
        }
        batch.diff.workloads.insert(workload.uid.clone());
    }

    fn remove_address(&mut self, name: &str, batch: &mut Batch) {
        if let Some(workload) = self.current.workloads.remove(name) {
            self.move_addresses(Some(&workload), None, &mut batch.diff);
            batch.leave(Some(&workload), &workload.uid);
            batch.diff.workloads.insert(workload.uid.clone());
        } else if let Ok(key) = name.parse::<NamespacedName>() {
            self.remove_service(&key, &mut batch.diff);
        }
    }

    fn update_members(&mut self, key: &NamespacedName, changes: &BTreeMap<ArcStr, Option<Arc<Workload>>>) {
        let set = match self.current.endpoints.get(key) {
            Some(set) => set.with_changes(changes),
            None => EndpointSet::with_outlier_policy(self.outlier_policy)
                .with_service(self.current.services.get(key).cloned())
                .with_changes(changes),
        };
        if set.is_empty() {
            self.current.endpoints.remove(key);
        } else {
            self.current.endpoints.insert(key.clone(), Arc::new(set));
        }
    }
}

impl Batch {
    /// Takes the workload out of all services that it was in.
    fn leave(&mut self, former: Option<&Workload>, uid: &ArcStr) {
        for service in former.iter().flat_map(|w| w.services.keys()) {
            self.members.entry(service.clone()).or_default().insert(uid.clone(), None);
        }
    }
}
