//! What connections of the pool are found by.

use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use arcstr::ArcStr;
use hashbrown::Equivalent;
use mesh_core::Identity;

/// What makes two requests share a connection: nothing of the endpoint or of the client may differ.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Key {
    uid: ArcStr,
    address: SocketAddr,
    generation: u64,
    client: IpAddr,
    identity: Identity,
    /// It has proved nothing: what is announced for nobody is no connection of who has the address and the identity that stand for it.
    stranger: bool,
    /// With which TLS; 0 is none of the world's.
    origin: u64,
    /// Under which limits; 0 is none.
    terms: u64,
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        hash(&self.uid, self.client, state);
    }
}

/// By what differs where the rest does: endpoints that a client names have one address, and names of its choice.
fn hash<H: Hasher>(uid: &str, client: IpAddr, state: &mut H) {
    uid.hash(state);
    client.hash(state);
}

/// Looks a [`Key`] up without owning one.
pub(super) struct At<'a> {
    pub(super) uid: &'a str,
    pub(super) address: SocketAddr,
    pub(super) generation: u64,
    pub(super) client: IpAddr,
    pub(super) identity: &'a Identity,
    pub(super) stranger: bool,
    pub(super) origin: u64,
    pub(super) terms: u64,
}

impl Hash for At<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        hash(self.uid, self.client, state);
    }
}

impl Equivalent<Arc<Key>> for At<'_> {
    fn equivalent(&self, key: &Arc<Key>) -> bool {
        self.address == key.address
            && self.client == key.client
            && self.stranger == key.stranger
            && self.generation == key.generation
            && self.origin == key.origin
            && self.terms == key.terms
            && self.uid == key.uid
            && *self.identity == key.identity
    }
}

impl At<'_> {
    /// An owned one.
    pub(super) fn key(&self) -> Arc<Key> {
        Arc::new(Key {
            uid: self.uid.into(),
            address: self.address,
            generation: self.generation,
            client: self.client,
            identity: self.identity.clone(),
            stranger: self.stranger,
            origin: self.origin,
            terms: self.terms,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each differs from the first in one thing.
    #[test]
    fn connections_are_shared_if_nothing_differs() {
        let identity: Identity = "spiffe://cluster.local/ns/shop/sa/a".parse().unwrap();
        let other: Identity = "spiffe://cluster.local/ns/shop/sa/b".parse().unwrap();
        let at = || At {
            uid: "c//Pod/shop/a-0",
            address: ([10, 0, 0, 1], 80).into(),
            generation: 1,
            client: [10, 0, 0, 2].into(),
            identity: &identity,
            stranger: false,
            origin: 0,
            terms: 0,
        };
        let key = at().key();
        assert!(at().equivalent(&key));
        for different in [
            At { uid: "c//Pod/shop/a-1", ..at() },
            At { address: ([10, 0, 0, 1], 81).into(), ..at() },
            At { generation: 2, ..at() },
            At { client: [10, 0, 0, 3].into(), ..at() },
            At { identity: &other, ..at() },
            At { stranger: true, ..at() },
            At { origin: 1, ..at() },
            At { terms: 1, ..at() },
        ] {
            assert!(!different.equivalent(&key) && different.key() != key, "{:?}", different.key());
        }
    }
}
