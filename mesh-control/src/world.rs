//! The world: all resources as they go over the wire, with names, aliases and versions. Each world is immutable; it keeps what its
//! predecessor had in common with it, and the names that changed lately, so that a session need not compare everything.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use mesh_core::{ArcStr, NamespacedName, Service, Workload};
use mesh_proto::convert::{encode_policy, encode_service, encode_workload};
use mesh_proto::{ADDRESS_TYPE, AUTHORIZATION_TYPE};
use xxhash_rust::xxh64::xxh64;

use crate::index::View;

/// Generations of which the changes are remembered.
const HISTORY: usize = 64;

/// What is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Policies. They come first: a workload must not list a policy that the agent does not have.
    Authorization,
    /// Workloads and services.
    Address,
}

impl Kind {
    /// In the order in which they are sent.
    pub const ALL: [Kind; 2] = [Kind::Authorization, Kind::Address];

    /// The kind with this type URL.
    pub fn of_url(url: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|k| k.url() == url)
    }

    /// Its type URL.
    pub fn url(self) -> &'static str {
        match self {
            Kind::Authorization => AUTHORIZATION_TYPE,
            Kind::Address => ADDRESS_TYPE,
        }
    }

    /// A short name for logs and metrics.
    pub fn short(self) -> &'static str {
        match self {
            Kind::Authorization => "authorization",
            Kind::Address => "address",
        }
    }
}

/// One resource, ready to be sent.
#[derive(Debug, PartialEq, Eq)]
pub struct Resource {
    /// Its name.
    pub name: ArcStr,
    /// Other names that it can be asked for by: `network/address`.
    pub aliases: Vec<String>,
    /// Hash of its bytes.
    pub version: u64,
    /// The message.
    pub bytes: Bytes,
}

impl Resource {
    fn new(name: ArcStr, aliases: Vec<String>, bytes: Vec<u8>) -> Self {
        Self { name, aliases, version: xxh64(&bytes, 0), bytes: bytes.into() }
    }

    /// The version as it is written on the wire.
    pub fn version_text(&self) -> String {
        format!("{:016x}", self.version)
    }
}

/// All resources of one kind, by name.
#[derive(Debug, Default)]
pub struct Table {
    resources: BTreeMap<ArcStr, Arc<Resource>>,
    /// Names that changed, newest last.
    history: VecDeque<(u64, Arc<[ArcStr]>)>,
}

impl Table {
    /// The resource called `name`.
    pub fn get(&self, name: &str) -> Option<&Arc<Resource>> {
        self.resources.get(name)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&ArcStr, &Arc<Resource>)> {
        self.resources.iter()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.resources.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.resources.is_empty()
    }

    /// Names that changed after `generation`; `None` if that is too long ago.
    pub fn changed_since(&self, generation: u64) -> Option<BTreeSet<ArcStr>> {
        let first = self.history.front().map_or(u64::MAX, |(g, _)| *g);
        if first > generation + 1 {
            return None;
        }
        let later = self.history.iter().filter(|(g, _)| *g > generation);
        Some(later.flat_map(|(_, names)| names.iter().cloned()).collect())
    }

    fn replaced(&self, generation: u64, mut resources: BTreeMap<ArcStr, Arc<Resource>>) -> Self {
        let mut changed = Vec::new();
        for (name, resource) in &mut resources {
            match self.resources.get(name) {
                Some(old) if old == resource => *resource = old.clone(),
                _ => changed.push(name.clone()),
            }
        }
        changed.extend(self.resources.keys().filter(|n| !resources.contains_key(*n)).cloned());
        let mut history = self.history.clone();
        if history.len() >= HISTORY {
            history.pop_front();
        }
        history.push_back((generation, changed.into()));
        Self { resources, history }
    }
}

/// Everything there is to send, at one moment.
#[derive(Debug, Default)]
pub struct World {
    /// Counts worlds, from 1.
    pub generation: u64,
    authorizations: Table,
    addresses: Table,
    aliases: HashMap<String, Vec<ArcStr>>,
    members: HashMap<ArcStr, Vec<ArcStr>>,
}

impl World {
    /// The world that follows this one.
    #[must_use]
    pub fn next(&self, view: &View) -> World {
        let generation = self.generation + 1;
        let mut aliases: HashMap<String, Vec<ArcStr>> = HashMap::new();
        let mut members: HashMap<ArcStr, Vec<ArcStr>> = HashMap::new();
        let mut addresses = BTreeMap::new();
        for service in view.services.values() {
            let resource = service_resource(service);
            addresses.insert(resource.name.clone(), Arc::new(resource));
        }
        for workload in view.workloads.values() {
            let resource = workload_resource(workload);
            for service in workload.services.keys() {
                members.entry(service.to_string().into()).or_default().push(resource.name.clone());
            }
            addresses.insert(resource.name.clone(), Arc::new(resource));
        }
        for resource in addresses.values() {
            for alias in &resource.aliases {
                aliases.entry(alias.clone()).or_default().push(resource.name.clone());
            }
        }
        let authorizations = view.policies.iter().map(|(name, policy)| {
            let name: ArcStr = name.to_string().into();
            (name.clone(), Arc::new(Resource::new(name, Vec::new(), encode_policy(policy))))
        });
        let authorizations = self.authorizations.replaced(generation, authorizations.collect());
        let addresses = self.addresses.replaced(generation, addresses);
        World { generation, authorizations, addresses, aliases, members }
    }

    /// The resources of a kind.
    pub fn table(&self, kind: Kind) -> &Table {
        match kind {
            Kind::Authorization => &self.authorizations,
            Kind::Address => &self.addresses,
        }
    }

    /// What somebody means who asks for `key`: a resource by name, whatever has that address, and with a service its workloads.
    pub fn lookup(&self, kind: Kind, key: &str) -> Vec<ArcStr> {
        if kind == Kind::Authorization {
            return self.authorizations.get(key).map(|r| r.name.clone()).into_iter().collect();
        }
        let mut names: Vec<ArcStr> = match self.addresses.get(key) {
            Some(resource) => vec![resource.name.clone()],
            None => self.aliases.get(key).cloned().unwrap_or_default(),
        };
        for service in names.clone() {
            names.extend(self.members.get(&service).into_iter().flatten().cloned());
        }
        names.dedup();
        names
    }
}

fn workload_resource(workload: &Workload) -> Resource {
    let own_address = workload.network_mode == mesh_core::workload::NetworkMode::Standard;
    let aliases = workload.addresses.iter().filter(|_| own_address).map(|a| format!("{}/{a}", workload.network));
    Resource::new(workload.uid.clone(), aliases.collect(), encode_workload(workload))
}

fn service_resource(service: &Service) -> Resource {
    let key: NamespacedName = service.key();
    let aliases = service.addresses.iter().filter_map(|a| a.single().map(|ip| format!("{}/{ip}", a.network)));
    Resource::new(key.to_string().into(), aliases.collect(), encode_service(service))
}
