//! A hash map that is cheap to clone and cheap to change a little: shards behind `Arc`s, copied only when a change touches a shard that an
//! older snapshot still uses. The store and its snapshots are made of these.

use std::{
    hash::{BuildHasher, Hash},
    sync::Arc,
};

use hashbrown::{DefaultHashBuilder, Equivalent, HashTable, hash_table::Entry};

const SHARDS: usize = 256;

type Shard<K, V> = Arc<HashTable<(K, V)>>;

/// Keys hash with a per-map random seed. An element of 100k costs a copy of about 400 entries when its shard is shared.
pub(crate) struct CowMap<K, V> {
    hasher: DefaultHashBuilder,
    shards: Box<[Shard<K, V>]>,
    len: usize,
}

impl<K, V> Clone for CowMap<K, V> {
    fn clone(&self) -> Self {
        Self { hasher: self.hasher.clone(), shards: self.shards.clone(), len: self.len }
    }
}

impl<K, V> Default for CowMap<K, V> {
    fn default() -> Self {
        let empty = Arc::new(HashTable::new());
        Self {
            hasher: DefaultHashBuilder::default(),
            shards: (0..SHARDS).map(|_| Arc::clone(&empty)).collect(),
            len: 0,
        }
    }
}

impl<K: Hash + Eq + Clone, V: Clone> CowMap<K, V> {
    pub(crate) fn get<Q: Hash + Equivalent<K> + ?Sized>(&self, key: &Q) -> Option<&V> {
        let hash = self.hasher.hash_one(key);
        self.shards[shard_of(hash)].find(hash, |(k, _)| key.equivalent(k)).map(|(_, value)| value)
    }

    /// The value that was there before.
    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<V> {
        let hash = self.hasher.hash_one(&key);
        let hasher = &self.hasher;
        let shard = Arc::make_mut(&mut self.shards[shard_of(hash)]);
        match shard.entry(hash, |(k, _)| *k == key, |(k, _)| hasher.hash_one(k)) {
            Entry::Occupied(mut slot) => Some(std::mem::replace(&mut slot.get_mut().1, value)),
            Entry::Vacant(slot) => {
                slot.insert((key, value));
                self.len += 1;
                None
            }
        }
    }

    pub(crate) fn remove<Q: Hash + Equivalent<K> + ?Sized>(&mut self, key: &Q) -> Option<V> {
        let hash = self.hasher.hash_one(key);
        let shared = &mut self.shards[shard_of(hash)];
        // Looked up first so that removing what is not there copies nothing.
        shared.find(hash, |(k, _)| key.equivalent(k))?;
        let entry = Arc::make_mut(shared).find_entry(hash, |(k, _)| key.equivalent(k)).ok()?;
        self.len -= 1;
        Some(entry.remove().0.1)
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &(K, V)> {
        self.shards.iter().flat_map(|shard| shard.iter())
    }
}

// The table inside a shard uses the low and the top seven bits.
fn shard_of(hash: u64) -> usize {
    (hash >> 40) as usize % SHARDS
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn behaves_as_a_map_and_leaves_clones_alone() {
        let mut map = CowMap::<u32, u32>::default();
        let mut model = HashMap::new();
        let mut copies = Vec::new();
        for step in 0..4000_u32 {
            let key = step.wrapping_mul(2_654_435_761) % 500;
            if step % 3 == 0 {
                assert_eq!(map.remove(&key), model.remove(&key));
            } else {
                assert_eq!(map.insert(key, step), model.insert(key, step));
            }
            if step % 500 == 0 {
                copies.push((map.clone(), model.clone()));
            }
        }
        copies.push((map, model));
        for (map, model) in copies {
            assert_eq!(map.len(), model.len());
            assert_eq!(map.values().count(), model.len());
            assert!(model.iter().all(|(k, v)| map.get(k) == Some(v)));
        }
    }

    #[test]
    fn one_change_copies_one_shard() {
        let mut map = CowMap::<u32, u32>::default();
        for key in 0..10_000 {
            map.insert(key, key);
        }
        let before = map.clone();
        map.insert(1, 2);
        assert!(map.remove(&123_456).is_none());
        let copied = before.shards.iter().zip(&map.shards).filter(|(a, b)| !Arc::ptr_eq(a, b)).count();
        assert_eq!(copied, 1);
    }
}
