//! What the authority remembers of its requests: how many a node, or the waypoints of a namespace, made lately, and which key belongs to which identity. What
//! it remembers of waypoints takes no place of what it remembers of nodes.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use mesh_core::{ArcStr, Identity};

use crate::access::who::Share;

/// How much is admitted and remembered of one kind of client.
struct Limits {
    /// Requests that one may make at once.
    burst: f64,
    /// Requests a second after that.
    rate: f64,
    /// Clients remembered.
    clients: usize,
    /// Keys remembered.
    keys: usize,
}

/// A node has fewer identities when it starts.
const NODES: Limits = Limits { burst: 500.0, rate: 50.0, clients: 10_000, keys: 100_000 };
/// A waypoint has one identity, and its namespace some waypoints.
const WAYPOINTS: Limits = Limits { burst: 100.0, rate: 5.0, clients: 10_000, keys: 20_000 };

/// A bucket of tokens for each node, and for the waypoints of each namespace.
#[derive(Debug, Default)]
pub struct Rates {
    nodes: Buckets,
    waypoints: Buckets,
}

type Buckets = HashMap<ArcStr, (f64, Instant)>;

impl Rates {
    /// Whether those of the share may make another request now.
    pub fn admit(&mut self, share: &Share, now: Instant) -> bool {
        let (buckets, name, Limits { burst, rate, clients, .. }) = match share {
            Share::Node(name) => (&mut self.nodes, name, NODES),
            Share::Waypoints(namespace) => (&mut self.waypoints, namespace, WAYPOINTS),
        };
        if buckets.len() >= clients && !buckets.contains_key(name) {
            // A full bucket says no more than no bucket.
            let idle = Duration::from_secs_f64(burst / rate);
            buckets.retain(|_, (_, last)| now.saturating_duration_since(*last) < idle);
            if buckets.len() >= clients {
                return false;
            }
        }
        let (tokens, last) = buckets.entry(name.clone()).or_insert((burst, now));
        *tokens = (*tokens + now.saturating_duration_since(*last).as_secs_f64() * rate).min(burst);
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
    nodes: VecDeque<Arc<[u8]>>,
    waypoints: VecDeque<Arc<[u8]>>,
}

impl Keys {
    /// Claims the key for the identity until `until`, as one of the share's; false if it is another identity's, whosever that is.
    pub fn claim(
        &mut self,
        key: &[u8],
        identity: &Identity,
        share: &Share,
        until: SystemTime,
        now: SystemTime,
    ) -> bool {
        if let Some((owner, end)) = self.owners.get_mut(key) {
            if owner != identity && *end > now {
                return false;
            }
            *owner = identity.clone();
            *end = until.max(*end);
            return true;
        }
        let (order, most) = match share {
            Share::Node(_) => (&mut self.nodes, NODES.keys),
            Share::Waypoints(_) => (&mut self.waypoints, WAYPOINTS.keys),
        };
        while order.len() >= most {
            if let Some(oldest) = order.pop_front() {
                self.owners.remove(&oldest);
            }
        }
        let id: Arc<[u8]> = key.into();
        self.owners.insert(id.clone(), (identity.clone(), until));
        order.push_back(id);
        true
    }
}
