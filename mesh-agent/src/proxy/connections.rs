//! The live connections of one pod: who talks to whom, how much, and the means to end each of them.
//!
//! Every proxied connection registers here *before* it is first authorized and leaves when its task ends, so a policy change either finds it in the
//! registry or was published before the check that followed the registration. One registry per pod is the index by workload; each entry carries its
//! peer and the policies need no index of their own, because which policies apply is a property of the pod (see `recheck.rs`).
//!
//! The registry is sharded so that opening connections on several cores does not contend, and an entry costs one allocation.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use mesh_core::Identity;
use mesh_transport::copy::ByteCounters;
use mesh_transport::path::Watch;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// More shards than cores of a usual node share of the agent; a shard is one small mutex and one vector.
const SHARDS: usize = 8;

/// Which way a connection goes, and what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Opened by the pod.
    Outbound,
    /// Arrived for the pod through an authenticated tunnel.
    Inbound,
    /// Arrived for the pod in plaintext.
    InboundPlaintext,
    /// The same, on its way through the pod's waypoint: what comes back from there is what policies decide about.
    ToWaypoint,
}

/// Why a connection was ended from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum CutReason {
    /// A policy that now applies denies it.
    Denied = 1,
    /// The pod's workload is no longer known, or no longer this pod's.
    WorkloadGone = 2,
    /// The pod was removed.
    PodRemoved = 3,
    /// The drain deadline passed.
    DrainDeadline = 4,
}

impl CutReason {
    fn from_code(code: u8) -> Option<CutReason> {
        match code {
            1 => Some(CutReason::Denied),
            2 => Some(CutReason::WorkloadGone),
            3 => Some(CutReason::PodRemoved),
            4 => Some(CutReason::DrainDeadline),
            _ => None,
        }
    }

    /// One word for logs.
    pub fn as_str(self) -> &'static str {
        match self {
            CutReason::Denied => "policy change",
            CutReason::WorkloadGone => "workload gone",
            CutReason::PodRemoved => "pod removed",
            CutReason::DrainDeadline => "drain deadline",
        }
    }
}

/// What a connection is about: fixed at registration.
#[derive(Debug, Clone)]
pub struct Endpoints {
    /// Which way.
    pub direction: Direction,
    /// The client's address: the pod's own for outbound, the tunnel's or connection's peer for inbound.
    pub source: SocketAddr,
    /// What the client asked for: the original destination.
    pub destination: SocketAddr,
    /// The client's authenticated identity. Never derived from an address.
    pub identity: Option<Identity>,
    /// The waypoint that said so, as it has proved; none if it was the client itself that proved it.
    pub via: Option<Identity>,
}

/// One live connection.
pub struct Live {
    /// Number within the process, for the admin view.
    pub id: u64,
    /// What it is about.
    pub endpoints: Endpoints,
    opened: Instant,
    cut: AtomicU8,
    token: CancellationToken,
    counters: OnceLock<Arc<ByteCounters>>,
    watch: OnceLock<Watch>,
}

impl Live {
    /// Cancelled when the connection has to end now.
    pub fn cut(&self) -> &CancellationToken {
        &self.token
    }

    /// Whether and why the connection has been told to end.
    pub fn cut_reason(&self) -> Option<CutReason> {
        CutReason::from_code(self.cut.load(Ordering::Acquire))
    }

    /// Tells the connection to end. The first reason stays.
    pub fn end(&self, reason: CutReason) {
        if self.cut.compare_exchange(0, reason as u8, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            self.token.cancel();
        }
    }

    /// Shows the counters of a connection that carries bytes by now.
    pub fn count_with(&self, counters: Arc<ByteCounters>) {
        let _ = self.counters.set(counters);
    }

    /// Lets its socket be looked at, if it has one over the network for itself.
    pub fn watch_with(&self, watch: Watch) {
        let _ = self.watch.set(watch);
    }

    /// To look at that.
    pub fn watch(&self) -> Option<&Watch> {
        self.watch.get()
    }
}

/// Serializable form of one connection for the admin socket.
#[derive(Debug, Clone, Serialize)]
pub struct ConnectionView {
    /// Number within the process.
    pub id: u64,
    /// Which way.
    pub direction: Direction,
    /// The client.
    pub source: SocketAddr,
    /// The original destination.
    pub destination: SocketAddr,
    /// The client's authenticated identity, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// Bytes towards the destination.
    pub sent: u64,
    /// Bytes towards the client.
    pub received: u64,
    /// Age in milliseconds.
    pub age_ms: u64,
}

/// All live connections of one pod, with its limits.
pub struct Connections {
    shards: [Mutex<Shard>; SHARDS],
    outbound: AtomicU32,
    inbound: AtomicU32,
    /// Of strangers, on their way to the waypoint.
    led: AtomicU32,
    limit: u32,
    /// The reason that everything ends from now on; 0 while the pod is served. Read after an entry was inserted, set before the entries are visited, so
    /// that no connection slips between the two.
    closed: AtomicU8,
    idle: Notify,
}

#[derive(Default)]
struct Shard {
    slots: Vec<Option<Arc<Live>>>,
    free: Vec<u32>,
}

/// Membership of one connection; leaving is dropping it.
pub struct Registration {
    connections: Arc<Connections>,
    live: Arc<Live>,
    slot: u32,
}

/// The pod already has as many connections in that direction as it may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the pod has {limit} connections in this direction, its limit")]
pub struct Full {
    /// The limit that was met.
    pub limit: u32,
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

impl Connections {
    /// An empty registry that admits `limit` connections each way, so that a flood from outside cannot stop the pod from calling out.
    pub fn new(limit: u32) -> Arc<Connections> {
        Arc::new(Connections {
            shards: Default::default(),
            outbound: AtomicU32::new(0),
            inbound: AtomicU32::new(0),
            led: AtomicU32::new(0),
            limit,
            closed: AtomicU8::new(0),
            idle: Notify::new(),
        })
    }

    /// Admits a connection. To be called before its first authorization.
    pub fn register(self: &Arc<Self>, endpoints: Endpoints) -> Result<Registration, Full> {
        let count = self.count_of(endpoints.direction);
        if count.fetch_add(1, Ordering::SeqCst) >= self.limit {
            self.release(endpoints.direction);
            return Err(Full { limit: self.limit });
        }
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let live = Arc::new(Live {
            id,
            endpoints,
            opened: Instant::now(),
            cut: AtomicU8::new(0),
            token: CancellationToken::new(),
            counters: OnceLock::new(),
            watch: OnceLock::new(),
        });
        let mut shard = self.shard(id).lock();
        let slot = match shard.free.pop() {
            Some(slot) => {
                shard.slots[slot as usize] = Some(live.clone());
                slot
            }
            None => {
                shard.slots.push(Some(live.clone()));
                (shard.slots.len() - 1) as u32
            }
        };
        drop(shard);
        if let Some(reason) = CutReason::from_code(self.closed.load(Ordering::SeqCst)) {
            live.end(reason);
        }
        Ok(Registration { connections: self.clone(), live, slot })
    }

    /// How many connections are open.
    pub fn len(&self) -> usize {
        let all = [&self.outbound, &self.inbound, &self.led];
        all.iter().map(|count| count.load(Ordering::SeqCst) as usize).sum()
    }

    /// Whether no connection is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Calls `visit` for each open connection, one shard locked at a time.
    pub fn for_each(&self, mut visit: impl FnMut(&Arc<Live>)) {
        for shard in &self.shards {
            for live in shard.lock().slots.iter().flatten() {
                visit(live);
            }
        }
    }

    /// Ends every connection, and every later one as soon as it registers.
    pub fn close(&self, reason: CutReason) {
        self.closed.store(reason as u8, Ordering::SeqCst);
        self.for_each(|live| live.end(reason));
    }

    /// Resolves when no connection is open.
    pub async fn emptied(&self) {
        loop {
            let idle = self.idle.notified();
            if self.is_empty() {
                return;
            }
            idle.await;
        }
    }

    /// The admin view, oldest first.
    pub fn view(&self) -> Vec<ConnectionView> {
        let mut views = Vec::with_capacity(self.len());
        self.for_each(|live| {
            let counters = live.counters.get();
            views.push(ConnectionView {
                id: live.id,
                direction: live.endpoints.direction,
                source: live.endpoints.source,
                destination: live.endpoints.destination,
                identity: live.endpoints.identity.as_ref().map(ToString::to_string),
                sent: counters.map_or(0, |counters| counters.sent.load(Ordering::Relaxed)),
                received: counters.map_or(0, |counters| counters.received.load(Ordering::Relaxed)),
                age_ms: live.opened.elapsed().as_millis() as u64,
            });
        });
        views.sort_unstable_by_key(|view| view.id);
        views
    }

    fn shard(&self, id: u64) -> &Mutex<Shard> {
        &self.shards[id as usize % SHARDS]
    }

    fn count_of(&self, direction: Direction) -> &AtomicU32 {
        match direction {
            Direction::Outbound => &self.outbound,
            Direction::Inbound | Direction::InboundPlaintext => &self.inbound,
            // It comes back as one that is inbound, and strangers are not to take what the pod opens itself.
            Direction::ToWaypoint => &self.led,
        }
    }

    fn release(&self, direction: Direction) {
        if self.count_of(direction).fetch_sub(1, Ordering::SeqCst) == 1 && self.is_empty() {
            self.idle.notify_waiters();
        }
    }
}

impl Registration {
    /// The registered connection.
    pub fn live(&self) -> &Arc<Live> {
        &self.live
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut shard = self.connections.shard(self.live.id).lock();
        shard.slots[self.slot as usize] = None;
        shard.free.push(self.slot);
        drop(shard);
        self.connections.release(self.live.endpoints.direction);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(direction: Direction) -> Endpoints {
        let address = SocketAddr::from(([198, 18, 0, 1], 80));
        Endpoints { direction, source: address, destination: address, identity: None, via: None }
    }

    #[tokio::test]
    async fn leaving_frees_the_place_and_the_last_one_wakes_who_waits() {
        let connections = Connections::new(2);
        let first = connections.register(endpoints(Direction::Outbound)).unwrap();
        let second = connections.register(endpoints(Direction::Outbound)).unwrap();
        assert_eq!(connections.register(endpoints(Direction::Outbound)).err(), Some(Full { limit: 2 }));
        // The other direction has its own share.
        let inbound = connections.register(endpoints(Direction::Inbound)).unwrap();
        let led = [(); 2].map(|()| connections.register(endpoints(Direction::ToWaypoint)).unwrap());
        assert!(connections.register(endpoints(Direction::ToWaypoint)).is_err());
        assert_eq!(connections.view().len(), 5);
        drop(first);
        let third = connections.register(endpoints(Direction::Outbound)).unwrap();
        let waiting = tokio::spawn({
            let connections = connections.clone();
            async move { connections.emptied().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop((second, third, inbound));
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(led);
        waiting.await.unwrap();
        assert!(connections.is_empty() && connections.view().is_empty());
    }

    #[test]
    fn whoever_registers_after_the_end_is_told_at_once() {
        let connections = Connections::new(2);
        let early = connections.register(endpoints(Direction::Inbound)).unwrap();
        early.live().end(CutReason::Denied);
        connections.close(CutReason::PodRemoved);
        let late = connections.register(endpoints(Direction::Inbound)).unwrap();
        // The first reason stays.
        assert_eq!(early.live().cut_reason(), Some(CutReason::Denied));
        assert_eq!(late.live().cut_reason(), Some(CutReason::PodRemoved));
        assert!(early.live().cut().is_cancelled() && late.live().cut().is_cancelled());
    }
}
