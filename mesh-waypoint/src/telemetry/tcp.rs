//! The numbers of connections that are copied, while they live and when they are over.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use mesh_transport::copy::ByteCounters;
use parking_lot::Mutex;

use super::Flags;
use super::labels::Labels;

/// The connections of one label set. Locked by the lane when one begins or ends, and by a scrape.
#[derive(Debug)]
pub(super) struct Connections {
    pub(super) labels: Labels,
    used: AtomicU64,
    opened: AtomicU64,
    closed: AtomicU64,
    bytes: Mutex<Moved>,
}

/// Bytes of those that are over, and the counters of the others.
#[derive(Debug, Default)]
struct Moved {
    sent: u64,
    received: u64,
    /// And whether they are the other way round.
    open: Vec<(Arc<ByteCounters>, bool)>,
}

impl Connections {
    pub(super) fn new(labels: Labels) -> Self {
        let zero = || AtomicU64::new(0);
        Self { labels, used: zero(), opened: zero(), closed: zero(), bytes: Mutex::default() }
    }

    /// When one began or ended last; none if some are open.
    pub(super) fn used(&self) -> Option<u64> {
        self.bytes.lock().open.is_empty().then(|| self.used.load(Relaxed))
    }

    pub(super) fn begin(&self, counters: Arc<ByteCounters>, now: u64) {
        self.used.store(now, Relaxed);
        self.opened.fetch_add(1, Relaxed);
        self.bytes.lock().open.push((counters, false));
    }

    fn turn(&self, counters: &Arc<ByteCounters>) {
        let mut bytes = self.bytes.lock();
        // It has just begun: it is among the last.
        if let Some((_, turned)) = bytes.open.iter_mut().rev().find(|(one, _)| Arc::ptr_eq(one, counters)) {
            *turned = true;
        }
    }

    fn end(&self, counters: &Arc<ByteCounters>, now: u64) {
        let mut bytes = self.bytes.lock();
        if let Some(at) = bytes.open.iter().position(|(one, _)| Arc::ptr_eq(one, counters)) {
            let (sent, received) = read(&bytes.open.swap_remove(at));
            bytes.sent += sent;
            bytes.received += received;
        }
        drop(bytes);
        self.used.store(now, Relaxed);
        self.closed.fetch_add(1, Relaxed);
    }
}

/// As Istio counts them: what the client gets is sent, what it says is received. A copy means its local socket, which is the endpoint's unless they are turned.
fn read((counters, turned): &(Arc<ByteCounters>, bool)) -> (u64, u64) {
    let (sent, received) = (counters.sent.load(Relaxed), counters.received.load(Relaxed));
    if *turned { (received, sent) } else { (sent, received) }
}

/// One connection that is copied, from when its endpoint is known to its end.
pub struct Copied {
    series: Arc<Connections>,
    counters: Arc<ByteCounters>,
    clock: Box<dyn Fn() -> u64 + Send + Sync>,
    /// What was unusual, for who writes it down.
    pub flags: Flags,
}

impl Copied {
    pub(super) fn new(series: Arc<Connections>, clock: Box<dyn Fn() -> u64 + Send + Sync>, flags: Flags) -> Self {
        let counters = Arc::default();
        series.begin(Arc::clone(&counters), clock());
        Self { series, counters, clock, flags }
    }

    /// The copy's local socket is the client's: what is counted as sent is what the client says, and the other way round.
    pub fn turn(&mut self) {
        self.series.turn(&self.counters);
    }

    /// To be counted in: `sent` is what goes to the client, `received` is what it says, unless they are turned.
    #[must_use]
    pub fn counters(&self) -> Arc<ByteCounters> {
        Arc::clone(&self.counters)
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        self.series.end(&self.counters, (self.clock)());
    }
}

/// Sums of several lanes.
#[derive(Debug, Default)]
pub(super) struct Sums {
    pub(super) opened: u64,
    pub(super) closed: u64,
    pub(super) sent: u64,
    pub(super) received: u64,
}

impl Sums {
    pub(super) fn add(&mut self, series: &Connections) {
        // What is closed was opened before: read in this order, there are never more closed than opened.
        self.closed += series.closed.load(Relaxed);
        self.opened += series.opened.load(Relaxed);
        let bytes = series.bytes.lock();
        let open = bytes.open.iter().map(read);
        let (sent, received) = open.fold((bytes.sent, bytes.received), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        self.sent += sent;
        self.received += received;
    }
}
