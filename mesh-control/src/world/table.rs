//! All resources of one kind as they go over the wire, in shards that tables share for as long as nothing in them changes: a new table costs what has
//! changed, what differs between two tables is found by comparing shards, and every stream sends the same bytes.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use mesh_core::ArcStr;
use mesh_proto::discovery as wire;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};
use xxhash_rust::xxh64::xxh64;

/// Of each table. With a hundred thousand resources a shard has a hundred, and what is copied for one change is 30 KiB.
const SHARDS: usize = 1024;
/// The field of a response that holds resources.
const RESOURCES: u32 = 2;

/// One resource, ready to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// Its name.
    pub name: ArcStr,
    /// Hash of the message.
    pub version: u64,
    /// As it stands in a response: version, name, aliases and message, after the key of their field.
    pub bytes: Bytes,
}

impl Resource {
    /// A message of type `url` under a name and other names that it can be asked for by.
    pub fn new(url: &str, name: ArcStr, aliases: Vec<String>, message: Vec<u8>) -> Self {
        let version = xxh64(&message, 0);
        let resource = wire::Resource {
            version: version_text(version),
            resource: Some(wire::Any { type_url: url.to_owned(), value: message.into() }),
            name: name.to_string(),
            aliases,
            ttl: None,
            cache_control: None,
        };
        let mut bytes = Vec::with_capacity(resource.encoded_len() + 8);
        encode_key(RESOURCES, WireType::LengthDelimited, &mut bytes);
        encode_varint(resource.encoded_len() as u64, &mut bytes);
        resource.encode_raw(&mut bytes);
        Self { name, version, bytes: bytes.into() }
    }
}

/// A version as it is written on the wire.
pub fn version_text(version: u64) -> String {
    format!("{version:016x}")
}

/// A resource of a shard.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its name.
    pub name: ArcStr,
    /// Hash of the message.
    pub version: u64,
    /// Where it is in the shard's bytes.
    at: (u32, u32),
}

/// Some resources of a table, by name. What a client holds has no bytes.
#[derive(Debug, Default)]
pub struct Shard {
    entries: Box<[Entry]>,
    bytes: Bytes,
    sum: Sum,
}

/// Of names and versions in any order. Whoever chooses names cannot tell which have the same sum: its key is of this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sum {
    count: usize,
    hashes: u64,
}

impl Sum {
    fn add(&mut self, name: &str, version: u64) {
        static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        self.count += 1;
        self.hashes = self.hashes.wrapping_add(KEY.hash_one((name, version)));
    }

    fn of(entries: &[Entry]) -> Self {
        let mut sum = Sum::default();
        entries.iter().for_each(|entry| sum.add(&entry.name, entry.version));
        sum
    }
}

impl Shard {
    fn get(&self, name: &str) -> Option<&Entry> {
        let at = self.entries.binary_search_by(|entry| entry.name.as_str().cmp(name)).ok()?;
        self.entries.get(at)
    }

    /// The bytes of one of its entries.
    fn part(&self, entry: &Entry) -> Bytes {
        self.bytes.slice(entry.at.0 as usize..entry.at.1 as usize)
    }

    fn replaced(&self, changes: BTreeMap<ArcStr, Option<Resource>>) -> Self {
        let kept = self.entries.iter().filter(|entry| !changes.contains_key(&entry.name));
        let kept = kept.map(|e| (e.name.clone(), e.version, self.part(e)));
        let new = changes.values().flatten().map(|r| (r.name.clone(), r.version, r.bytes.clone()));
        let mut all: Vec<_> = kept.chain(new).collect();
        all.sort_by(|(a, ..), (b, ..)| a.cmp(b));
        let mut bytes = Vec::with_capacity(all.iter().map(|(.., b)| b.len()).sum());
        let place = |(name, version, part): (ArcStr, u64, Bytes)| {
            let start = bytes.len() as u32;
            bytes.extend_from_slice(&part);
            Entry { name, version, at: (start, bytes.len() as u32) }
        };
        let entries: Box<[Entry]> = all.into_iter().map(place).collect();
        Self { sum: Sum::of(&entries), entries, bytes: bytes.into() }
    }

    /// Names and versions alone; of a name that is there twice the last one counts.
    fn held(mut held: Vec<(ArcStr, u64)>) -> Self {
        held.reverse();
        held.sort_by(|(a, _), (b, _)| a.cmp(b));
        held.dedup_by(|next, one| next.0 == one.0);
        let entries: Box<[Entry]> =
            held.into_iter().map(|(name, version)| Entry { name, version, at: (0, 0) }).collect();
        Self { sum: Sum::of(&entries), entries, bytes: Bytes::new() }
    }
}

/// What it takes to bring whoever holds one shard to another.
#[derive(Debug, Default)]
pub struct Difference {
    /// Resources to send, in pieces.
    pub parts: Vec<Bytes>,
    /// How many there are.
    pub count: usize,
    /// How many bytes.
    pub size: usize,
    /// Names of what is gone.
    pub gone: Vec<ArcStr>,
}

/// All resources of one kind; copies share everything.
#[derive(Clone, Debug)]
pub struct Table {
    shards: Arc<[Arc<Shard>]>,
    len: usize,
}

impl Default for Table {
    fn default() -> Self {
        static EMPTY: LazyLock<Table> = LazyLock::new(|| {
            let shard = Arc::<Shard>::default();
            Table { shards: (0..SHARDS).map(|_| shard.clone()).collect(), len: 0 }
        });
        EMPTY.clone()
    }
}

fn shard_of(name: &str) -> usize {
    xxh64(name.as_bytes(), 0) as usize % SHARDS
}

impl Table {
    fn of(shards: Vec<Arc<Shard>>) -> Table {
        let len = shards.iter().map(|shard| shard.entries.len()).sum();
        Table { shards: shards.into(), len }
    }

    /// The resource called `name`.
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.shards[shard_of(name)].get(name)
    }

    /// The same as it stands in a response.
    pub fn part(&self, name: &str) -> Option<Bytes> {
        let shard = &self.shards[shard_of(name)];
        shard.get(name).map(|entry| shard.part(entry))
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.shards.iter().flat_map(|shard| shard.entries.iter())
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether it is the very same table, not one that is equal to it.
    pub fn is(&self, other: &Table) -> bool {
        Arc::ptr_eq(&self.shards, &other.shards)
    }

    /// This one with other resources under some names, or none. The very same if they are the same.
    #[must_use]
    pub fn replaced(&self, changes: impl IntoIterator<Item = (ArcStr, Option<Resource>)>) -> Table {
        let mut by_shard: HashMap<usize, BTreeMap<ArcStr, Option<Resource>>> = HashMap::new();
        for (name, resource) in changes {
            let index = shard_of(&name);
            let shard = &self.shards[index];
            let old = shard.get(&name);
            let is_same = match (old, &resource) {
                (None, None) => true,
                // The aliases are of the message, too.
                (Some(old), Some(new)) => old.version == new.version && shard.part(old) == new.bytes,
                _ => false,
            };
            if !is_same {
                by_shard.entry(index).or_default().insert(name, resource);
            }
        }
        if by_shard.is_empty() {
            return self.clone();
        }
        let mut shards: Vec<_> = self.shards.to_vec();
        for (index, changes) in by_shard {
            shards[index] = Arc::new(shards[index].replaced(changes));
        }
        Table::of(shards)
    }

    /// What a client holds that says so of itself. As far as it holds what this table has, that is shared, and found by sums alone: a client that comes
    /// back mostly has almost everything.
    #[must_use]
    pub fn claimed<'a>(&self, held: impl Iterator<Item = (&'a str, u64)> + Clone) -> Table {
        let mut sums = vec![Sum::default(); SHARDS];
        for (name, version) in held.clone() {
            sums[shard_of(name)].add(name, version);
        }
        if sums.iter().all(|sum| sum.count == 0) {
            return Table::default();
        }
        let is_own: Vec<bool> = sums.iter().zip(self.shards.iter()).map(|(sum, own)| *sum == own.sum).collect();
        if is_own.iter().all(|is| *is) {
            return self.clone();
        }
        let mut others: HashMap<usize, Vec<(ArcStr, u64)>> = HashMap::new();
        for (name, version) in held {
            let index = shard_of(name);
            if !is_own[index] {
                let name = self.shards[index].get(name).map_or_else(|| name.into(), |entry| entry.name.clone());
                others.entry(index).or_default().push((name, version));
            }
        }
        let shards = self.shards.iter().enumerate().map(|(index, own)| match others.remove(&index) {
            Some(held) => Arc::new(Shard::held(held)),
            None if is_own[index] => own.clone(),
            None => Arc::default(),
        });
        Table::of(shards.collect())
    }

    /// What somebody who holds `held` lacks of this table, at most `limit` bytes of it if that is more than one shard, and what it holds then. What is
    /// gone comes with the last of what is lacking, and only `with_gone`.
    pub fn since(&self, held: &Table, limit: usize, with_gone: bool) -> Step {
        let mut step = Step { next: self.clone(), is_complete: true, is_whole: true, ..Step::default() };
        if held.is(self) {
            return step;
        }
        let mut next: Vec<Arc<Shard>> = held.shards.to_vec();
        let mut gone = Vec::new();
        for (index, (old, new)) in held.shards.iter().zip(self.shards.iter()).enumerate() {
            if Arc::ptr_eq(old, new) {
                continue;
            }
            let Difference { parts, count, size, gone: gone_here } = difference(old, new);
            if step.size > 0 && step.size + size > limit {
                step.is_complete = false;
                break;
            }
            step.parts.extend(parts);
            step.count += count;
            step.size += size;
            next[index] = if gone_here.is_empty() { new.clone() } else { Arc::new(both(old, new)) };
            gone.extend(gone_here);
        }
        if step.is_complete && (with_gone || gone.is_empty()) {
            step.gone = gone;
            return step;
        }
        step.is_whole = false;
        step.next = Table::of(next);
        step
    }
}

/// One response's worth.
#[derive(Debug, Default)]
pub struct Step {
    /// Resources, in pieces.
    pub parts: Vec<Bytes>,
    /// How many there are.
    pub count: usize,
    /// How many bytes.
    pub size: usize,
    /// Names of what is gone.
    pub gone: Vec<ArcStr>,
    /// What is held with it.
    pub next: Table,
    /// It has the last of what is lacking.
    pub is_complete: bool,
    /// There is nothing after it, not even what is gone.
    pub is_whole: bool,
}

/// What whoever holds `old` lacks of `new`.
fn difference(old: &Shard, new: &Shard) -> Difference {
    if old.entries.is_empty() {
        let parts = if new.bytes.is_empty() { Vec::new() } else { vec![new.bytes.clone()] };
        return Difference { parts, count: new.entries.len(), size: new.bytes.len(), gone: Vec::new() };
    }
    let mut difference = Difference::default();
    let mut left = old.entries.iter().peekable();
    for entry in &new.entries {
        while let Some(gone) = left.next_if(|old| old.name < entry.name) {
            difference.gone.push(gone.name.clone());
        }
        let held = left.next_if(|old| old.name == entry.name);
        if held.is_none_or(|held| held.version != entry.version) {
            let part = new.part(entry);
            difference.count += 1;
            difference.size += part.len();
            difference.parts.push(part);
        }
    }
    difference.gone.extend(left.map(|gone| gone.name.clone()));
    difference
}

/// All of `new`, and what only `old` has.
fn both(old: &Shard, new: &Shard) -> Shard {
    let own = new.entries.iter().map(|e| (e.name.clone(), e.version));
    let gone = old.entries.iter().filter(|e| new.get(&e.name).is_none()).map(|e| (e.name.clone(), e.version));
    Shard::held(own.chain(gone).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(resources: &[(&str, &str)]) -> Table {
        Table::default().replaced(resources.iter().map(|(name, text)| change(name, text)))
    }

    fn change(name: &str, text: &str) -> (ArcStr, Option<Resource>) {
        let resource = Resource::new("t", name.into(), vec![format!("alias of {name}")], text.as_bytes().to_vec());
        (name.into(), Some(resource))
    }

    /// What a step says, as `+name=text` and `-name`.
    fn told(step: &Step) -> Vec<String> {
        let bytes: Vec<u8> = step.parts.iter().flatten().copied().collect();
        let response = wire::DeltaDiscoveryResponse::decode(&*bytes).unwrap();
        assert_eq!((response.resources.len(), bytes.len()), (step.count, step.size));
        let text = |r: &wire::Resource| String::from_utf8(r.resource.as_ref().unwrap().value.to_vec()).unwrap();
        let added = response.resources.iter().map(|r| format!("+{}={}", r.name, text(r)));
        let mut told: Vec<_> = added.chain(step.gone.iter().map(|name| format!("-{name}"))).collect();
        told.sort();
        told
    }

    #[test]
    fn what_is_lacking_is_found_between_any_two_tables() {
        let one: Vec<_> = (0..3000).map(|n| (format!("n{n}"), "x")).collect();
        let all = table(&one.iter().map(|(n, t)| (n.as_str(), *t)).collect::<Vec<_>>());
        assert_eq!((all.len(), all.get("n17").is_some(), all.get("m").is_some()), (3000, true, false));
        let next = all.replaced([change("n17", "y"), change("m", "z"), ("n18".into(), None), ("n".into(), None)]);
        assert_eq!(told(&next.since(&all, usize::MAX, true)), ["+m=z", "+n17=y", "-n18"]);
        assert_eq!(told(&all.since(&next, usize::MAX, true)), ["+n17=x", "+n18=x", "-m"]);
        assert_eq!(told(&next.since(&next, usize::MAX, true)), [""; 0]);
        assert_eq!(next.since(&Table::default(), usize::MAX, true).count, 3000);
        assert!(next.replaced([change("n17", "y")]).is(&next), "the same again is nothing new");
        // What is gone may wait.
        let step = next.since(&all, usize::MAX, false);
        assert_eq!((told(&step), step.is_whole), (vec!["+m=z".to_owned(), "+n17=y".to_owned()], false));
        let step = next.since(&step.next, usize::MAX, true);
        assert_eq!((told(&step), step.next.is(&next)), (vec!["-n18".to_owned()], true));
    }

    #[test]
    fn what_is_large_comes_in_steps_and_what_is_gone_with_the_last() {
        let (one, two) = (table(&[("old", "x")]), table(&[("a", "1"), ("b", "2"), ("c", "3")]));
        let (mut held, mut said) = (one, Vec::new());
        for left in [2, 1, 0] {
            let step = two.since(&held, 1, true);
            assert_eq!((step.count, step.is_whole), (1, left == 0));
            said.extend(told(&step));
            held = step.next;
        }
        said.sort();
        assert_eq!(said, ["+a=1", "+b=2", "+c=3", "-old"]);
        assert!(held.is(&two));
    }

    fn claimed(table: &Table, held: &[(&str, u64)]) -> Table {
        table.claimed(held.iter().copied())
    }

    #[test]
    fn who_says_what_it_holds_is_believed_and_shares_what_it_has() {
        let own = table(&[("a", "1"), ("b", "2")]);
        let version = |name: &str| own.get(name).unwrap().version;
        let all = claimed(&own, &[("b", version("b")), ("a", version("a"))]);
        assert!(all.is(&own));
        let some = claimed(&own, &[("a", version("a")), ("b", 7), ("c", 1)]);
        assert_eq!(told(&own.since(&some, usize::MAX, true)), ["+b=2", "-c"]);
        let twice = claimed(&own, &[("b", version("b")), ("a", version("a")), ("b", 7)]);
        assert_eq!(told(&own.since(&twice, usize::MAX, true)), ["+b=2"], "the last one counts");
        let twice = claimed(&own, &[("b", 7), ("a", version("a")), ("b", version("b"))]);
        assert_eq!(told(&own.since(&twice, usize::MAX, true)), [""; 0]);
        assert!(claimed(&own, &[]).is(&Table::default()));
    }

    proptest::proptest! {
        #[test]
        fn whoever_comes_back_after_any_changes_is_told_all_of_them(
            before in proptest::collection::btree_map(0..3000_u32, 0..3_u8, 0..300),
            after in proptest::collection::btree_map(0..3000_u32, 0..3_u8, 0..300),
            kept in proptest::collection::vec(0..3000_u32, 0..3000),
        ) {
            // Much is the same before and after.
            let kept: std::collections::BTreeSet<u32> = kept.into_iter().collect();
            let with_kept = |some: &std::collections::BTreeMap<u32, u8>| {
                let all = some.iter().map(|(n, text)| (*n, *text)).chain(kept.iter().map(|n| (*n, 9)));
                let all: std::collections::BTreeMap<_, _> = all.collect();
                Table::default().replaced(all.iter().map(|(n, text)| change(&format!("n{n}"), &text.to_string())))
            };
            let (before, after) = (with_kept(&before), with_kept(&after));
            let said: Vec<_> = before.iter().map(|entry| (entry.name.clone(), entry.version)).collect();
            let held = after.claimed(said.iter().rev().map(|(name, version)| (name.as_str(), *version)));
            proptest::prop_assert_eq!(held.len(), before.len());
            proptest::prop_assert_eq!(told(&after.since(&held, usize::MAX, true)), told(&after.since(&before, usize::MAX, true)));
        }
    }
}
