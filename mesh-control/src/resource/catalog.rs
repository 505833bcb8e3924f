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

use mesh_core::NamespacedName;

use super::{Key, Kind, Object, Objects, Secured, Unreadable};

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

    /// The object is gone; another one that gets its name later has no good form from before.
    pub fn forget(&mut self, key: &Key) {
        self.good.remove(key);
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
                // That there is such a namespace matters, too: it may be of the mesh.
                (Err(unreadable), None) if found.key.kind.counts_unread() || found.key.kind == Kind::Namespace => {
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
        kept.closed = closed.iter().filter(|(key, _)| key.kind.is_security()).count();
        self.good = good;
        (self.objects(closed), kept)
    }

    fn objects(&self, closed: Vec<(Key, Unreadable)>) -> Objects {
        let mut objects = Objects::default();
        for (key, (object, _)) in &self.good {
            let name = || NamespacedName::new(key.namespace.clone(), key.name.clone());
            match object {
                Object::MeshConfig(o) => {
                    objects.mesh_configs.insert(name(), Secured::Readable(o.clone()));
                }
                Object::Namespace(o) => drop(objects.namespaces.insert(key.name.clone(), o.clone())),
                Object::Node(o) => drop(objects.nodes.insert(key.name.clone(), o.clone())),
                Object::ServiceAccount(o) => drop(objects.service_accounts.insert(name(), o.clone())),
                Object::Pod(o) => drop(objects.pods.insert(name(), o.clone())),
                Object::Service(o) => drop(objects.services.insert(name(), o.clone())),
                Object::EndpointSlice(o) => drop(objects.endpoint_slices.insert(name(), o.clone())),
                Object::AuthorizationPolicy(o) => {
                    objects.authorization_policies.insert(name(), Secured::Readable(o.clone()));
                }
                Object::PeerAuthentication(o) => {
                    objects.peer_authentications.insert(name(), Secured::Readable(o.clone()));
                }
            }
        }
        for (key, unreadable) in closed {
            let name = NamespacedName::new(key.namespace, key.name);
            match key.kind {
                Kind::ConfigMap => {
                    objects.mesh_configs.insert(name, Secured::Unreadable(unreadable));
                }
                Kind::AuthorizationPolicy => {
                    objects.authorization_policies.insert(name, Secured::Unreadable(unreadable));
                }
                Kind::PeerAuthentication => {
                    objects.peer_authentications.insert(name, Secured::Unreadable(unreadable));
                }
                Kind::Namespace => {
                    objects.unread_namespaces.insert(name.name);
                }
                _ => {}
            }
        }
        objects
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
