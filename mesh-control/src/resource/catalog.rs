//! What is in force: the last good form of every object. A scan of a source replaces it as a whole; objects that cannot be read now keep the
//! form they had, and a security object that never had one is closed. One that cannot even be named is taken for one that its origin had
//! before, if there is such a one.
//!
//! ```text
//! scan: key -> Ok(object) | Err(unreadable)      catalog: key -> last good object
//!        \______________________________________/
//!                      Objects, in force
//! ```

use std::collections::{BTreeMap, BTreeSet};

use super::{Key, Kind, Object, Objects, Unreadable};

/// One object as a scan found it.
#[derive(Clone, Debug)]
pub struct Found {
    /// What it is called.
    pub key: Key,
    /// Where it came from: a file, for the folder source.
    pub origin: String,
    /// The object, or how much is known of it.
    pub outcome: Result<Object, Unreadable>,
}

/// All that a source sees at one moment.
#[derive(Clone, Debug, Default)]
pub struct Scan {
    /// The objects, each key once.
    pub found: Vec<Found>,
    /// Origins of which some part could not even be identified: what came from them before stays.
    pub unsettled: BTreeSet<String>,
    /// The source itself could not be read: everything stays.
    pub blind: bool,
}

/// How many objects of a scan are in force in an older form, or closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// In force in their last good form.
    pub last_good: usize,
    /// Closed: a security object that never was good.
    pub closed: usize,
}

impl Kept {
    /// Says how many there are if they are more or fewer than was `told` last; returns whether it did.
    pub fn tell(self, told: &mut Kept) -> bool {
        let Kept { last_good, closed } = self;
        let is_new = std::mem::replace(told, self) != self;
        match (is_new, self == Kept::default()) {
            (true, false) => tracing::warn!(last_good, closed, "some objects are not in force as written"),
            (true, true) => tracing::info!("all objects are in force as written again"),
            (false, _) => {}
        }
        is_new
    }
}

/// Whether it matters that there is an object that cannot be read and never could: it may restrict traffic, be a namespace of the mesh, forbid plaintext, keep pods
/// from what nobody knows, or be a route whose parents it is told to.
fn matters_unread(kind: Kind) -> bool {
    kind.counts_unread()
        || is_closed(kind)
        || matches!(kind, Kind::Namespace | Kind::Sidecar)
        || kind.is_told_by_parent()
}

/// Whether such an object closes what it is about.
fn is_closed(kind: Kind) -> bool {
    kind.is_security() || kind == Kind::RequestAuthentication
}

/// The last good form of every object.
#[derive(Debug, Default)]
pub struct Catalog {
    good: BTreeMap<Key, (Object, String)>,
}

impl Catalog {
    /// Whether a good form of the object is in force.
    pub fn has(&self, key: &Key) -> bool {
        self.good.contains_key(key)
    }

    /// Takes a scan over and returns what is in force now.
    pub fn apply(&mut self, scan: &Scan) -> (Objects, Kept) {
        let mut good = BTreeMap::new();
        let mut closed = Vec::new();
        let mut kept = Kept::default();
        let mut mentioned = BTreeSet::new();
        for found in &scan.found {
            mentioned.insert(&found.key);
            match (&found.outcome, self.good.remove(&found.key)) {
                (Ok(object), _) => {
                    good.insert(found.key.clone(), (object.clone(), found.origin.clone()));
                }
                (Err(_), Some((object, _))) => {
                    kept.last_good += 1;
                    good.insert(found.key.clone(), (object, found.origin.clone()));
                }
                (Err(unreadable), None) if matters_unread(found.key.kind) => {
                    closed.push((found.key.clone(), unreadable.clone()));
                }
                (Err(_), None) => {}
            }
        }
        let mut missing = BTreeSet::new();
        for (key, (object, origin)) in std::mem::take(&mut self.good) {
            if !mentioned.contains(&key) && (scan.blind || scan.unsettled.contains(&origin)) {
                kept.last_good += 1;
                if key.kind.is_security() {
                    missing.insert(origin.clone());
                }
                good.insert(key, (object, origin));
            }
        }
        let origins: BTreeMap<&Key, &String> = scan.found.iter().map(|found| (&found.key, &found.origin)).collect();
        closed.retain(|(key, unreadable)| {
            !(unreadable.nameless && origins.get(key).is_some_and(|origin| missing.contains(*origin)))
        });
        kept.closed = closed.iter().filter(|(key, _)| is_closed(key.kind)).count();
        self.good = good;
        (self.objects(closed), kept)
    }

    fn objects(&self, closed: Vec<(Key, Unreadable)>) -> Objects {
        let mut objects = Objects::default();
        self.good.iter().for_each(|(key, (object, _))| objects.set(key, object));
        closed.iter().for_each(|(key, unreadable)| objects.close(key, unreadable));
        objects
    }
}

/// The same for a source that says what has changed, object by object, and always knows which one it is.
#[derive(Debug, Default)]
pub struct Live {
    objects: Objects,
    /// In force in their last good form.
    stale: BTreeSet<Key>,
    closed: BTreeSet<Key>,
    /// With a good form; those that are not stale have it now.
    good: BTreeSet<Key>,
}

impl Live {
    /// An object is new, or is another than before.
    pub fn put(&mut self, key: &Key, outcome: &Result<Object, Unreadable>) {
        let Self { objects, stale, closed, good } = self;
        stale.remove(key);
        closed.remove(key);
        match outcome {
            Ok(object) => {
                objects.set(key, object);
                good.insert(key.clone());
            }
            Err(_) if good.contains(key) => drop(stale.insert(key.clone())),
            Err(unreadable) if matters_unread(key.kind) => {
                objects.close(key, unreadable);
                closed.insert(key.clone());
            }
            Err(_) => objects.remove(key),
        }
    }

    /// An object is gone; another one that gets its name later has no good form from before.
    pub fn remove(&mut self, key: &Key) {
        self.objects.remove(key);
        for keys in [&mut self.stale, &mut self.closed, &mut self.good] {
            keys.remove(key);
        }
    }

    /// What is in force now.
    pub fn objects(&self) -> (Objects, Kept) {
        let closed = self.closed.iter().filter(|key| is_closed(key.kind)).count();
        (self.objects.clone(), Kept { last_good: self.stale.len(), closed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_told_of_when_it_changes() {
        let mut told = Kept::default();
        for (last_good, closed, is_told) in [(0, 0, false), (1, 0, true), (1, 0, false), (0, 1, true), (0, 0, true)] {
            assert_eq!(Kept { last_good, closed }.tell(&mut told), is_told, "{last_good} {closed}");
        }
    }
}
