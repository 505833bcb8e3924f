//! The table of TCP series: one set of atomics per label set, interned, counted live, bounded, and forgotten when its workloads are gone.
//!
//! ```text
//!  open(labels) -> recent (by pointers, ~50 ns) -> series (by label set) -> Arc<Series>
//!                                                    full: one overflow series per reporter and security
//!  scrape: finished bytes + bytes of the connections still open, so counters advance during a connection
//!  expire: idle longer than the grace time, nothing open, and an end or the service no longer configured -> removed
//! ```
//! A connection is registered while the table is read-locked and `expire` holds it for writing, so no count goes to a series that has
//! just been removed. The locks are short and never held over an await. Called by `connection` and by the registry at scrape.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use mesh_core::identity::Identity;
use mesh_core::service::Service;
use mesh_core::snapshot::Snapshot;
use mesh_core::workload::Workload;
use mesh_transport::copy::ByteCounters;
use parking_lot::{Mutex, RwLock};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::labels::{
    Flagged, Pairs, PeerLabels, Reporter, ResponseFlags, Security, ServiceLabels, TrafficLabels, UNKNOWN,
};

/// Pointer-keyed shortcuts kept; they pin configuration objects, so there are few and they live for one sweep.
const RECENT: usize = 4096;

/// What identifies a connection's series before any label is made. Holding the objects keeps their addresses from being reused.
#[derive(Clone)]
pub(crate) struct Ends {
    pub(crate) reporter: Reporter,
    pub(crate) security: Security,
    pub(crate) source: End,
    pub(crate) destination: End,
    pub(crate) service: Option<Arc<Service>>,
}

/// One end as the proxy knows it.
#[derive(Clone)]
pub(crate) struct End {
    pub(crate) peer: Peer,
    pub(crate) identity: Option<Identity>,
}

/// What is known of the workload at one end.
#[derive(Clone, Debug, Default)]
pub enum Peer {
    /// Nothing: an address outside the mesh.
    #[default]
    Unknown,
    /// A workload of the configuration.
    Workload(Arc<Workload>),
    /// Labels that an authenticated peer sent of itself, for a workload the configuration does not hold.
    Labels(Arc<PeerLabels>),
}

impl Peer {
    /// The workload, if the configuration holds it.
    pub fn workload(&self) -> Option<&Arc<Workload>> {
        match self {
            Self::Workload(workload) => Some(workload),
            Self::Unknown | Self::Labels(_) => None,
        }
    }

    fn address(&self) -> usize {
        match self {
            Self::Unknown => 0,
            Self::Workload(workload) => Arc::as_ptr(workload).addr(),
            Self::Labels(labels) => Arc::as_ptr(labels).addr(),
        }
    }
}

impl From<Arc<Workload>> for Peer {
    fn from(workload: Arc<Workload>) -> Self {
        Self::Workload(workload)
    }
}

impl From<Option<Arc<Workload>>> for Peer {
    fn from(workload: Option<Arc<Workload>>) -> Self {
        workload.map_or(Self::Unknown, Self::Workload)
    }
}

impl End {
    pub(super) fn labels(&self) -> PeerLabels {
        let labels = match &self.peer {
            Peer::Unknown => PeerLabels::unknown(),
            Peer::Workload(workload) => PeerLabels::of(workload),
            Peer::Labels(labels) => labels.as_ref().clone(),
        };
        labels.with_principal(self.identity.as_ref())
    }
}

impl Ends {
    fn labels(&self) -> TrafficLabels {
        TrafficLabels {
            reporter: self.reporter,
            source: self.source.labels(),
            service: self.service.as_deref().map_or_else(ServiceLabels::unknown, ServiceLabels::of),
            destination: self.destination.labels(),
            security: self.security,
        }
    }

    fn key(&self) -> RecentKey {
        RecentKey {
            reporter: self.reporter,
            security: self.security,
            source: (self.source.peer.address(), self.source.identity.clone()),
            destination: (self.destination.peer.address(), self.destination.identity.clone()),
            service: self.service.as_ref().map_or(0, |service| Arc::as_ptr(service).addr()),
        }
    }
}

#[derive(PartialEq, Eq, Hash)]
struct RecentKey {
    reporter: Reporter,
    security: Security,
    source: (usize, Option<Identity>),
    destination: (usize, Option<Identity>),
    service: usize,
}

/// The counters of one label set.
pub(crate) struct Series {
    labels: TrafficLabels,
    opened: AtomicU64,
    closed: AtomicU64,
    failed: [AtomicU64; ResponseFlags::COUNT],
    /// Milliseconds since the table began, of the last open or close.
    used: AtomicU64,
    /// Short critical sections: a push, a removal, or a sum at scrape.
    bytes: Mutex<Bytes>,
}

/// Bytes of finished connections and the counters of those that are open.
#[derive(Default)]
struct Bytes {
    request: u64,
    response: u64,
    open: Vec<Option<Live>>,
    free: Vec<u32>,
}

struct Live {
    counters: Arc<ByteCounters>,
    reporter: Reporter,
}

impl Live {
    /// Bytes from client to server, and from server to client.
    fn read(&self) -> (u64, u64) {
        super::connection::request_response(self.reporter, &self.counters)
    }
}

impl Series {
    fn new(labels: TrafficLabels) -> Self {
        Self {
            labels,
            opened: AtomicU64::new(0),
            closed: AtomicU64::new(0),
            failed: Default::default(),
            used: AtomicU64::new(0),
            bytes: Mutex::default(),
        }
    }

    fn enter(&self, counters: Arc<ByteCounters>, now: u64) -> u32 {
        self.opened.fetch_add(1, Relaxed);
        self.used.fetch_max(now, Relaxed);
        let live = Some(Live { counters, reporter: self.labels.reporter });
        let mut bytes = self.bytes.lock();
        if let Some(slot) = bytes.free.pop() {
            bytes.open[slot as usize] = live;
            return slot;
        }
        bytes.open.push(live);
        u32::try_from(bytes.open.len() - 1).unwrap_or(u32::MAX)
    }

    /// Ends the connection that [`SeriesTable::open`] put in `slot`: its bytes become final.
    pub(crate) fn leave(&self, slot: u32, flags: ResponseFlags, now: u64) {
        {
            let mut bytes = self.bytes.lock();
            if let Some(live) = bytes.open.get_mut(slot as usize).and_then(Option::take) {
                let (request, response) = live.read();
                bytes.request += request;
                bytes.response += response;
                bytes.free.push(slot);
                if bytes.free.len() == bytes.open.len() {
                    bytes.open.clear();
                    bytes.free.clear();
                }
            }
        }
        self.used.fetch_max(now, Relaxed);
        if flags != ResponseFlags::None {
            self.failed[flags.index()].fetch_add(1, Relaxed);
        }
        self.closed.fetch_add(1, Relaxed);
    }

    fn totals(&self) -> (u64, u64) {
        let bytes = self.bytes.lock();
        bytes
            .open
            .iter()
            .flatten()
            .map(Live::read)
            .fold((bytes.request, bytes.response), |sum, live| (sum.0 + live.0, sum.1 + live.1))
    }

    fn idle(&self, now: u64, grace: u64) -> bool {
        let bytes = self.bytes.lock();
        bytes.open.len() == bytes.free.len() && now.saturating_sub(self.used.load(Relaxed)) > grace
    }
}

impl fmt::Debug for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Series").field("labels", &self.labels).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Table {
    series: HashMap<TrafficLabels, Arc<Series>>,
    recent: HashMap<RecentKey, (Ends, Arc<Series>)>,
}

/// All TCP series of the agent.
pub(crate) struct SeriesTable {
    table: RwLock<Table>,
    cap: usize,
    overflowed: AtomicU64,
    expired: AtomicU64,
}

impl fmt::Debug for SeriesTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SeriesTable").field("cap", &self.cap).finish_non_exhaustive()
    }
}

impl SeriesTable {
    pub(crate) fn new(cap: usize) -> Self {
        Self { table: RwLock::default(), cap, overflowed: AtomicU64::new(0), expired: AtomicU64::new(0) }
    }

    /// Finds or makes the series of a connection and registers its counters. The slot is for [`Series::leave`].
    pub(crate) fn open(&self, ends: &Ends, counters: Arc<ByteCounters>, now: u64) -> (Arc<Series>, u32) {
        let key = ends.key();
        {
            let table = self.table.read();
            if let Some((_, series)) = table.recent.get(&key) {
                return (series.clone(), series.enter(counters, now));
            }
        }
        let labels = ends.labels();
        let mut table = self.table.write();
        let full = table.series.len() >= self.cap && !table.series.contains_key(&labels);
        let labels = if full {
            self.overflowed.fetch_add(1, Relaxed);
            TrafficLabels::overflow(ends.reporter, ends.security)
        } else {
            labels
        };
        let series = match table.series.get(&labels) {
            Some(series) => series.clone(),
            None => {
                let series = Arc::new(Series::new(labels.clone()));
                table.series.insert(labels, series.clone());
                series
            }
        };
        // Overflow is never remembered: room made by `expire` must count at once, and each connection that overflows must be counted.
        if !full {
            if table.recent.len() >= RECENT {
                table.recent.clear();
            }
            table.recent.insert(key, (ends.clone(), series.clone()));
        }
        let slot = series.enter(counters, now);
        (series, slot)
    }

    /// Forgets series that have nothing open, were not used for `grace`, and name a workload or service the snapshot no longer holds.
    pub(crate) fn expire(&self, snapshot: &Snapshot, now: u64, grace: Duration) -> usize {
        let grace = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        let idle: Vec<Arc<Series>> = {
            let mut table = self.table.write();
            table.recent.clear();
            table.series.values().filter(|series| series.idle(now, grace)).cloned().collect()
        };
        if idle.is_empty() {
            return 0;
        }
        let known = Known::of(snapshot);
        let mut table = self.table.write();
        let mut removed = 0;
        for series in idle.iter().filter(|series| !known.has(&series.labels)) {
            // It may have been used since it was listed; under the write lock it cannot be entered.
            if series.idle(now, grace) {
                table.recent.clear();
                table.series.remove(&series.labels);
                removed += 1;
            }
        }
        self.expired.fetch_add(removed as u64, Relaxed);
        removed
    }

    /// Number of series held.
    pub(crate) fn len(&self) -> usize {
        self.table.read().series.len()
    }
}

/// The names that the configuration still holds, as far as series speak of them.
pub(super) struct Known<'a> {
    /// By namespace and name, with their revisions.
    workloads: HashMap<(&'a str, &'a str), HashSet<&'a str>>,
    services: HashSet<(&'a str, &'a str)>,
}

impl<'a> Known<'a> {
    pub(super) fn of(snapshot: &'a Snapshot) -> Self {
        let mut workloads: HashMap<_, HashSet<_>> = HashMap::new();
        for one in snapshot.workloads() {
            let name = (one.namespace.as_str(), one.workload_name.as_str());
            workloads.entry(name).or_default().insert(one.canonical_revision.as_str());
        }
        let services = snapshot.services().map(|s| (s.namespace.as_str(), s.hostname.as_str())).collect();
        Self { workloads, services }
    }

    /// Whether there is a workload of that name, of whatever revision.
    pub(super) fn has_workload(&self, namespace: &str, name: &str) -> bool {
        self.workloads.contains_key(&(namespace, name))
    }

    fn has(&self, labels: &TrafficLabels) -> bool {
        let peer = |peer: &PeerLabels| {
            peer.workload == UNKNOWN
                || (self.workloads.get(&(&*peer.namespace, &*peer.workload)))
                    .is_some_and(|revisions| revisions.contains(&*peer.canonical_revision))
        };
        let service = &labels.service;
        peer(&labels.source)
            && peer(&labels.destination)
            && (service.host == UNKNOWN || self.services.contains(&(&service.namespace, &service.host)))
    }
}

impl Collector for SeriesTable {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let mut rows: Vec<Row> = self.table.read().series.values().cloned().map(Row::of).collect();
        rows.sort_unstable_by_key(|row| Arc::as_ptr(&row.series).addr());
        let plain: [Family; 4] = [
            ("istio_tcp_connections_opened", "TCP connections opened", |row| row.series.opened.load(Relaxed)),
            ("istio_tcp_connections_closed", "TCP connections closed", |row| row.series.closed.load(Relaxed)),
            ("istio_tcp_sent_bytes", "Response bytes, from server to client, of both reporters", |row| row.response),
            ("istio_tcp_received_bytes", "Request bytes, from client to server, of both reporters", |row| row.request),
        ];
        if !rows.is_empty() {
            for (name, help, value) in plain {
                let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
                for row in &rows {
                    let labels = Flagged(&row.series.labels, ResponseFlags::None);
                    ConstCounter::new(value(row)).encode(family.encode_family(&labels)?)?;
                }
            }
        }
        let failed: Vec<_> = rows
            .iter()
            .flat_map(|row| {
                ResponseFlags::ALL.map(|flags| (row, flags, row.series.failed[flags.index()].load(Relaxed)))
            })
            .filter(|&(_, _, count)| count > 0)
            .collect();
        if !failed.is_empty() {
            let (name, help) = ("istio_tcp_connections_failed", "TCP connections that failed, by response_flags");
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (row, flags, count) in failed {
                ConstCounter::new(count).encode(family.encode_family(&Flagged(&row.series.labels, flags))?)?;
            }
        }
        self.encode_self(&mut encoder, rows.len())
    }
}

impl SeriesTable {
    fn encode_self(&self, encoder: &mut DescriptorEncoder, held: usize) -> Result<(), fmt::Error> {
        let (name, help) = ("mesh_telemetry_series", "TCP label sets held");
        let family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        ConstGauge::new(i64::try_from(held).unwrap_or(i64::MAX)).encode(family)?;
        let (name, help) = ("mesh_telemetry_series_events", "Label sets that expired, connections counted as overflow");
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (event, count) in [("expired", &self.expired), ("overflow", &self.overflowed)] {
            let labels = Pairs([("event", event)]);
            ConstCounter::new(count.load(Relaxed)).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

type Family = (&'static str, &'static str, fn(&Row) -> u64);

/// One series with its bytes read once, so that both byte families of a scrape agree.
struct Row {
    series: Arc<Series>,
    request: u64,
    response: u64,
}

impl Row {
    fn of(series: Arc<Series>) -> Self {
        let (request, response) = series.totals();
        Self { series, request, response }
    }
}
