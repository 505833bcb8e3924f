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
            origin: self.origin,
            terms: self.terms,
        })
    }
}
