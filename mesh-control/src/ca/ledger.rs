//! What the authority remembers of its requests: how many a node made lately, and which key belongs to which identity.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use mesh_core::{ArcStr, Identity};

/// Requests that a node may make at once: more than it has identities when it starts.
const BURST: f64 = 500.0;
/// Requests a second after that.
const RATE: f64 = 50.0;
/// Nodes remembered.
const MAX_NODES: usize = 10_000;
/// Keys remembered.
const MAX_KEYS: usize = 100_000;

/// A bucket of tokens for each node.
#[derive(Debug, Default)]
pub struct Rates {
    nodes: HashMap<ArcStr, (f64, Instant)>,
}

impl Rates {
    /// Whether the node may make another request now.
    pub fn admit(&mut self, node: &ArcStr, now: Instant) -> bool {
        if self.nodes.len() >= MAX_NODES && !self.nodes.contains_key(node) {
            // A full bucket says no more than no bucket.
            let idle = Duration::from_secs_f64(BURST / RATE);
            self.nodes.retain(|_, (_, last)| now.saturating_duration_since(*last) < idle);
            if self.nodes.len() >= MAX_NODES {
                return false;
            }
        }
        let (tokens, last) = self.nodes.entry(node.clone()).or_insert((BURST, now));
        *tokens = (*tokens + now.saturating_duration_since(*last).as_secs_f64() * RATE).min(BURST);
        *last = now;
        if *tokens < 1.0 {
            return false;
        }
        *tokens -= 1.0;
        true
    }
}

/// Which identity has used a key. A key with two identities would let one pod be the other.
#[derive(Debug, Default)]
pub struct Keys {
    owners: HashMap<Arc<[u8]>, (Identity, SystemTime)>,
    order: VecDeque<Arc<[u8]>>,
}

impl Keys {
    /// Claims the key for the identity until `until`; false if it is another's.
    pub fn claim(&mut self, key: &[u8], identity: &Identity, until: SystemTime, now: SystemTime) -> bool {
        if let Some((owner, end)) = self.owners.get_mut(key) {
            if owner != identity && *end > now {
                return false;
            }
            *owner = identity.clone();
            *end = until.max(*end);
            return true;
        }
        while self.order.len() >= MAX_KEYS {
            if let Some(oldest) = self.order.pop_front() {
                self.owners.remove(&oldest);
            }
        }
        let id: Arc<[u8]> = key.into();
        self.owners.insert(id.clone(), (identity.clone(), until));
        self.order.push_back(id);
        true
    }
}
