//! DNS metrics: requests of the pods, and what became of those that went to the pods' own nameservers.
//!
//! Label sets are bounded: query types that are not usual count as `other`, and past [`CAP`] sources share the labels `overflow`.
//! Sources that ask nothing for a grace time are forgotten with the TCP series (`DnsMetrics::expire`). Called by `crate::dns`.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use arcstr::ArcStr;
use parking_lot::RwLock;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::histogram::Histogram;

use super::family;
use super::labels::{Pairs, bounded};

/// Sources (canonical service and revision) that have labels of their own.
const CAP: usize = 512;
/// The node proxy's buckets, in seconds.
const BUCKETS: [f64; 6] = [0.0005, 0.001, 0.01, 0.1, 1.0, 5.0];

/// How the query came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DnsProtocol {
    /// A datagram.
    Udp,
    /// A stream with length prefixes.
    Tcp,
}

impl DnsProtocol {
    /// The label value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        }
    }
}

/// The canonical service a pod belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DnsSource {
    service: ArcStr,
    revision: ArcStr,
}

impl DnsSource {
    /// Both values are bounded as every label value is; empty means unknown.
    pub fn new(canonical_service: &ArcStr, canonical_revision: &ArcStr) -> Self {
        Self { service: bounded(canonical_service), revision: bounded(canonical_revision) }
    }
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Labels {
    kind: &'static str,
    protocol: DnsProtocol,
    source: DnsSource,
}

impl Labels {
    fn pairs(&self) -> Pairs<'_, 4> {
        Pairs([
            ("request_query_type", self.kind),
            ("request_protocol", self.protocol.as_str()),
            ("source_canonical_service", &self.source.service),
            ("source_canonical_revision", &self.source.revision),
        ])
    }
}

/// The counters of one kind of query of one source. Keep it for the life of the query.
#[derive(Debug)]
pub struct DnsCounters {
    requests: AtomicU64,
    upstream_requests: AtomicU64,
    upstream_failures: AtomicU64,
    duration: Histogram,
    used: AtomicU64,
}

impl DnsCounters {
    fn new() -> Self {
        Self {
            requests: AtomicU64::new(0),
            upstream_requests: AtomicU64::new(0),
            upstream_failures: AtomicU64::new(0),
            duration: Histogram::new(BUCKETS),
            used: AtomicU64::new(0),
        }
    }

    /// A query of a pod.
    pub fn request(&self) {
        self.requests.fetch_add(1, Relaxed);
    }

    /// A query that went to the nameserver the pod had asked, and how long the answer took.
    pub fn upstream(&self, took: Duration, answered: bool) {
        self.upstream_requests.fetch_add(1, Relaxed);
        if !answered {
            self.upstream_failures.fetch_add(1, Relaxed);
        }
        self.duration.observe(took.as_secs_f64());
    }
}

/// What may become of a query besides an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DnsEvent {
    /// Above the pod's rate.
    RateLimited,
    /// Too many queries of the pod wait for a nameserver.
    Overloaded,
    /// Not a message, or not one we serve.
    Malformed,
    /// A response sent to us.
    Reflected,
    /// From an address that is not the pod's.
    ForeignPeer,
    /// The nameserver behind the slot address is not known.
    UnknownServer,
    /// Replies given from cache past their time because the nameserver was silent.
    Stale,
}

impl DnsEvent {
    const ALL: [Self; 7] = [
        Self::RateLimited,
        Self::Overloaded,
        Self::Malformed,
        Self::Reflected,
        Self::ForeignPeer,
        Self::UnknownServer,
        Self::Stale,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::RateLimited => "rate_limited",
            Self::Overloaded => "overloaded",
            Self::Malformed => "malformed",
            Self::Reflected => "reflected",
            Self::ForeignPeer => "foreign_peer",
            Self::UnknownServer => "unknown_server",
            Self::Stale => "stale",
        }
    }
}

/// All DNS families.
#[derive(Default)]
pub struct DnsMetrics {
    counters: RwLock<HashMap<Labels, Arc<DnsCounters>>>,
    events: [AtomicU64; DnsEvent::ALL.len()],
}

impl fmt::Debug for DnsMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DnsMetrics").finish_non_exhaustive()
    }
}

impl DnsMetrics {
    /// The counters for a query type (as a number of the wire), a protocol and a source.
    pub fn counters(&self, kind: u16, protocol: DnsProtocol, source: &DnsSource, now: u64) -> Arc<DnsCounters> {
        let mut labels = Labels { kind: kind_name(kind), protocol, source: source.clone() };
        if let Some(counters) = self.counters.read().get(&labels) {
            counters.used.fetch_max(now, Relaxed);
            return counters.clone();
        }
        let mut table = self.counters.write();
        if table.len() >= CAP {
            const OVERFLOW: ArcStr = arcstr::literal!("overflow");
            labels.source = DnsSource { service: OVERFLOW, revision: OVERFLOW };
        }
        let counters = table.entry(labels).or_insert_with(|| Arc::new(DnsCounters::new())).clone();
        counters.used.fetch_max(now, Relaxed);
        counters
    }

    /// Counts a query that was not served in the usual way.
    pub fn event(&self, event: DnsEvent) {
        self.events[event as usize].fetch_add(1, Relaxed);
    }

    /// How often that happened.
    pub fn events(&self, event: DnsEvent) -> u64 {
        self.events[event as usize].load(Relaxed)
    }

    /// Forgets sources that asked nothing for `grace`; handles still held keep them.
    pub(super) fn expire(&self, now: u64, grace: Duration) {
        let grace = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        self.counters.write().retain(|_, counters| {
            Arc::strong_count(counters) > 1 || now.saturating_sub(counters.used.load(Relaxed)) <= grace
        });
    }
}

impl Collector for DnsMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let rows: Vec<_> = self.counters.read().iter().map(|(labels, row)| (labels.clone(), row.clone())).collect();
        let families: [Counted; 3] = [
            ("istio_dns_requests", "DNS queries of pods", |row| &row.requests),
            ("istio_dns_upstream_requests", "DNS queries sent to the pods' nameservers", |row| &row.upstream_requests),
            ("istio_dns_upstream_failures", "DNS queries that no nameserver answered", |row| &row.upstream_failures),
        ];
        for (name, help, value) in families {
            let samples = rows.iter().map(|(labels, row)| (labels.pairs(), value(row).load(Relaxed)));
            family::counters(&mut encoder, name, help, samples.filter(|(_, count)| *count > 0))?;
        }
        let asked = |row: &DnsCounters| row.upstream_requests.load(Relaxed) > 0;
        if rows.iter().any(|(_, row)| asked(row)) {
            let (name, help) = ("istio_dns_upstream_request_duration_seconds", "Time the pods' nameservers took");
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
            for (labels, row) in rows.iter().filter(|(_, row)| asked(row)) {
                row.duration.encode(family.encode_family(&labels.pairs())?)?;
            }
        }
        let events = DnsEvent::ALL.map(|event| (Pairs([("event", event.as_str())]), self.events(event)));
        let help = "DNS queries that were not served in the usual way";
        family::counters(&mut encoder, "mesh_dns_events", help, events.into_iter().filter(|(_, count)| *count > 0))
    }
}

/// Name, help and value of a counter family.
type Counted = (&'static str, &'static str, fn(&DnsCounters) -> &AtomicU64);

/// Names of the query types that clients ask; the rest of the 65536 share one.
fn kind_name(kind: u16) -> &'static str {
    match kind {
        1 => "A",
        2 => "NS",
        5 => "CNAME",
        6 => "SOA",
        12 => "PTR",
        15 => "MX",
        16 => "TXT",
        28 => "AAAA",
        33 => "SRV",
        35 => "NAPTR",
        64 => "SVCB",
        65 => "HTTPS",
        255 => "ANY",
        _ => "other",
    }
}
