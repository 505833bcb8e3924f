//! From keys to names: which resources have an address, which workloads are behind a service. Like tables it is kept in shards, and a new one costs what
//! has changed.

use std::collections::HashMap;
use std::sync::Arc;

use mesh_core::ArcStr;
use xxhash_rust::xxh64::xxh64;

const SHARDS: usize = 1024;

/// Names by key.
#[derive(Clone, Debug)]
pub struct Lookup {
    shards: Vec<Arc<HashMap<ArcStr, Vec<ArcStr>>>>,
}

impl Default for Lookup {
    fn default() -> Self {
        let shard = Arc::default();
        Self { shards: (0..SHARDS).map(|_| Arc::clone(&shard)).collect() }
    }
}

impl Lookup {
    /// The names under a key, in order.
    pub fn get(&self, key: &str) -> &[ArcStr] {
        let shard = &self.shards[xxh64(key.as_bytes(), 0) as usize % SHARDS];
        shard.get(key).map_or(&[], Vec::as_slice)
    }

    fn shard(&mut self, key: &str) -> &mut HashMap<ArcStr, Vec<ArcStr>> {
        Arc::make_mut(&mut self.shards[xxh64(key.as_bytes(), 0) as usize % SHARDS])
    }

    /// A name more under a key.
    pub fn add(&mut self, key: &str, name: &ArcStr) {
        let names = self.shard(key).entry(key.into()).or_default();
        if let Err(at) = names.binary_search(name) {
            names.insert(at, name.clone());
        }
    }

    /// A name less.
    pub fn remove(&mut self, key: &str, name: &ArcStr) {
        let shard = self.shard(key);
        let Some(names) = shard.get_mut(key) else { return };
        if let Ok(at) = names.binary_search(name) {
            names.remove(at);
        }
        if names.is_empty() {
            shard.remove(key);
        }
    }
}
