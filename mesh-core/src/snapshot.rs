//! One immutable state of the mesh. Readers hold an `Arc` of it for as long as one decision takes; `Store` makes the next one.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use arcstr::ArcStr;
use hashbrown::Equivalent;
use ipnet::IpNet;
use prefix_trie::joint::{JointPrefixMap, JointPrefixSet};

use crate::{
    EndpointSet, NamespacedName, Policy, Service, Workload,
    authorize::Applicable,
    cow::CowMap,
    l4::ConnectionRoutes,
    l7::{Clusters, LabelIndex},
    outbound::{self, Outbound},
    policy::Scope,
    workload::NetworkAddress,
};

/// Who holds an address, and since when.
#[derive(Clone, Debug)]
pub struct AddressOwner {
    /// The workload.
    pub workload: Arc<Workload>,
    /// Others that have the address too, and get it when that one is gone.
    pub(crate) others: Arc<[Arc<Workload>]>,
    /// Changes whenever the address changes owner. Caches of anything about the address carry it.
    pub generation: u64,
}

impl AddressOwner {
    /// All workloads that have the address, the one that counts first.
    pub(crate) fn claimants(&self) -> impl Iterator<Item = &Arc<Workload>> {
        std::iter::once(&self.workload).chain(&*self.others)
    }
}

/// A policy by name: its last good form, if there ever was one.
#[derive(Debug)]
pub struct PolicyEntry {
    pub(crate) name: NamespacedName,
    pub(crate) policy: Option<Policy>,
    pub(crate) scope: Scope,
    pub(crate) stale: bool,
}

impl PolicyEntry {
    /// `namespace/name`
    #[must_use]
    pub fn name(&self) -> &NamespacedName {
        &self.name
    }

    /// The last good form; `None` denies whatever the policy could select.
    #[must_use]
    pub fn policy(&self) -> Option<&Policy> {
        self.policy.as_ref()
    }

    /// The newest form could not be read.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        self.stale
    }

    fn applicable(&self) -> Applicable<'_> {
        self.policy.as_ref().map_or(Applicable::Unreadable(&self.name), Applicable::Policy)
    }
}

pub(crate) type PolicyList = Arc<[Arc<PolicyEntry>]>;
pub(crate) type CidrIndex = HashMap<ArcStr, JointPrefixMap<IpNet, Vec<NamespacedName>>>;

/// Everything that decisions need, consistent in itself.
#[derive(Clone, Default)]
pub struct Snapshot {
    pub(crate) version: u64,
    pub(crate) synced: bool,
    pub(crate) workloads: CowMap<ArcStr, Arc<Workload>>,
    pub(crate) addresses: CowMap<NetworkAddress, AddressOwner>,
    pub(crate) services: CowMap<NamespacedName, Arc<Service>>,
    pub(crate) hosts: CowMap<ArcStr, Arc<[Arc<Service>]>>,
    pub(crate) vips: CowMap<NetworkAddress, Arc<[NamespacedName]>>,
    pub(crate) cidrs: Arc<CidrIndex>,
    pub(crate) endpoints: CowMap<NamespacedName, Arc<EndpointSet>>,
    pub(crate) policies: CowMap<NamespacedName, Arc<PolicyEntry>>,
    pub(crate) global_policies: PolicyList,
    pub(crate) namespace_policies: CowMap<ArcStr, PolicyList>,
    pub(crate) connections: CowMap<NamespacedName, Arc<ConnectionRoutes>>,
    pub(crate) clusters: CowMap<NamespacedName, Arc<Clusters>>,
    pub(crate) labels: Arc<LabelIndex>,
    pub(crate) outbound: CowMap<outbound::Scope, Outbound>,
    pub(crate) outbound_known: bool,
    pub(crate) ranges: Arc<JointPrefixSet<IpNet>>,
}

impl Snapshot {
    /// Grows with each applied batch.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Whether the first full state has arrived. Before that nothing may be concluded from absence.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    /// A workload by uid.
    #[must_use]
    pub fn workload_by_uid(&self, uid: &str) -> Option<&Arc<Workload>> {
        self.workloads.get(uid)
    }

    /// The workload that owns an address. Host-network workloads own none.
    #[must_use]
    pub fn workload_by_address(&self, network: &str, address: &IpAddr) -> Option<&Arc<Workload>> {
        self.owner(network, address).map(|owner| &owner.workload)
    }

    /// The workload that owns an address, with the generation of that ownership.
    #[must_use]
    pub fn owner(&self, network: &str, address: &IpAddr) -> Option<&AddressOwner> {
        self.addresses.get(&At { network, address: *address })
    }

    /// The service that has an address: exactly, or else by its longest range.
    #[must_use]
    pub fn service_by_address(&self, network: &str, address: &IpAddr) -> Option<&Arc<Service>> {
        if let Some(keys) = self.vips.get(&At { network, address: *address }) {
            return self.services.get(keys.first()?);
        }
        let (_, keys) = self.cidrs.get(network)?.get_lpm(&IpNet::from(*address))?;
        self.services.get(keys.first()?)
    }

    /// Whether exactly this range, or this single address, is one of a service's, or a workload's.
    #[must_use]
    pub fn has(&self, network: &str, range: &IpNet) -> bool {
        if range.prefix_len() == range.max_prefix_len() {
            let at = At { network, address: range.addr() };
            return self.addresses.get(&at).is_some() || self.vips.get(&at).is_some();
        }
        self.cidrs.get(network).is_some_and(|ranges| ranges.get(range).is_some())
    }

    /// Addresses of all workloads of a network that have any of their own, in no order.
    pub fn owned<'a>(&'a self, network: &'a str) -> impl Iterator<Item = IpAddr> + 'a {
        let own = self.addresses.iter().filter(move |(at, _)| at.network == network);
        own.map(|(at, _)| at.address)
    }

    /// The ranges of pods and services.
    pub fn ranges(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.ranges.iter()
    }

    /// All services with that hostname, the canonical ones first.
    #[must_use]
    pub fn service_by_host(&self, hostname: &str) -> &[Arc<Service>] {
        self.hosts.get(hostname).map_or(&[], |services| services)
    }

    /// A service by `namespace/hostname`.
    #[must_use]
    pub fn service(&self, key: &NamespacedName) -> Option<&Arc<Service>> {
        self.services.get(key)
    }

    /// The members of a service; they may have arrived before it.
    #[must_use]
    pub fn endpoints(&self, key: &NamespacedName) -> Option<&Arc<EndpointSet>> {
        self.endpoints.get(key)
    }

    /// What is said of connections to a service.
    #[must_use]
    pub fn connections(&self, service: &NamespacedName) -> Option<&Arc<ConnectionRoutes>> {
        self.connections.get(service)
    }

    /// What DestinationRules say of the places of a service.
    #[must_use]
    pub fn clusters(&self, service: &NamespacedName) -> Option<&Arc<Clusters>> {
        self.clusters.get(service)
    }

    /// Labels of workloads, as far as those ask for them.
    #[must_use]
    pub fn labels(&self) -> &Arc<LabelIndex> {
        &self.labels
    }

    /// A policy by name, readable or not.
    #[must_use]
    pub fn policy(&self, name: &NamespacedName) -> Option<&PolicyEntry> {
        self.policies.get(name).map(|entry| &**entry)
    }

    /// Every policy that concerns a workload, once: mesh-wide ones, those of its namespace, those that it lists.
    pub fn policies_for<'a>(&'a self, workload: &'a Workload) -> impl Iterator<Item = Applicable<'a>> {
        let namespace = self.namespace_policies.get(&workload.namespace).map_or(&[][..], |list| &**list);
        let scoped = self.global_policies.iter().chain(namespace).map(|entry| entry.applicable());
        let listed = workload.authorization_policies.iter().filter_map(|name| match self.policies.get(name) {
            None => Some(Applicable::Unknown(name)),
            Some(entry) => (!entry.covers(&workload.namespace)).then(|| entry.applicable()),
        });
        scoped.chain(listed)
    }

    /// Whether the address is inside a range of pods or services, known or not.
    #[must_use]
    pub fn in_mesh_ranges(&self, address: IpAddr) -> bool {
        self.ranges.get_lpm(&IpNet::from(address)).is_some()
    }

    /// All workloads, in no order.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.values()
    }

    /// All services, in no order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// All policies, in no order.
    pub fn policies(&self) -> impl Iterator<Item = &PolicyEntry> {
        self.policies.values().map(|entry| &**entry)
    }

    /// How many workloads, services and policies there are.
    #[must_use]
    pub fn counts(&self) -> (usize, usize, usize) {
        (self.workloads.len(), self.services.len(), self.policies.len())
    }
}

impl PolicyEntry {
    /// Whether the policy concerns all workloads of a namespace without being listed.
    pub(crate) fn covers(&self, namespace: &str) -> bool {
        match self.scope {
            Scope::Global => true,
            Scope::Namespace => self.name.namespace == namespace,
            Scope::WorkloadSelector => false,
        }
    }
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (workloads, services, policies) = self.counts();
        write!(f, "Snapshot(v{}, {workloads} workloads, {services} services, {policies} policies)", self.version)
    }
}

/// Looks up a [`NetworkAddress`] without owning one.
#[derive(Hash)]
struct At<'a> {
    network: &'a str,
    address: IpAddr,
}

impl Equivalent<NetworkAddress> for At<'_> {
    fn equivalent(&self, key: &NetworkAddress) -> bool {
        self.address == key.address && self.network == key.network
    }
}
