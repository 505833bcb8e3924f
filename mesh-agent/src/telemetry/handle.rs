//! The handle that the rest of the agent holds: opens connections, gives the metric groups, runs the sweep.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use mesh_common::{Event, Reason};
use mesh_core::snapshot::Snapshot;
use mesh_core::tap::Selector;
use mesh_runtime::logging::LogFormat;
use mesh_runtime::paths::{PathCounters, PathTable};
use mesh_runtime::tap::Taps;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::Registry;

use super::access_log::AccessLog;
use super::connection::{ConnectionGuard, ConnectionLabels};
use super::dns::DnsMetrics;
use super::family;
use super::health::Health;
use super::labels::{Pairs, Reporter, ResponseFlags};
use super::path::PathLabels;
use super::process::Process;
use super::series::{Ends, Known, SeriesTable};
use super::tap::{self, Parties, Refusal};
use super::workload_manager::WorkloadManagerMetrics;

/// Bounds of the telemetry.
#[derive(Clone, Debug)]
pub struct TelemetryConfig {
    /// Label sets of TCP metrics, and pairs of workloads whose network is measured; more share one overflow set. A scrape prints at most five lines of about
    /// 1 KiB for each of the former, and fifteen of less than half of that for each of the latter.
    pub series: usize,
    /// How long the series of workloads that are gone are still shown. Longer than a few scrapes, so that the last values are seen.
    pub grace: Duration,
    /// How access log lines look.
    pub log_format: LogFormat,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self { series: 4096, grace: Duration::from_secs(300), log_format: LogFormat::Text }
    }
}

/// All telemetry of the agent; cheap to clone.
#[derive(Clone)]
pub struct Telemetry {
    inner: Arc<Inner>,
}

struct Inner {
    started: Instant,
    grace: Duration,
    access_log: AccessLog,
    series: Arc<SeriesTable>,
    paths: Arc<PathTable<PathLabels>>,
    dns: Arc<DnsMetrics>,
    workload_manager: Arc<WorkloadManagerMetrics>,
    health: Arc<Health>,
    process: Arc<Process>,
    sockets: [AtomicI64; 2],
    taps: Arc<Taps<Selector>>,
}

impl fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Telemetry").field("series", &self.inner.series.len()).finish_non_exhaustive()
    }
}

impl Telemetry {
    /// Telemetry with default bounds and the access log on standard output.
    ///
    /// # Errors
    /// If the writer thread of the access log cannot be started.
    pub fn new(registry: &mut Registry, config: &TelemetryConfig) -> std::io::Result<Self> {
        let log = AccessLog::stdout(config.log_format)?;
        Ok(Self::with_log(registry, config, log))
    }

    /// Telemetry with an access log of the caller's.
    pub fn with_log(registry: &mut Registry, config: &TelemetryConfig, access_log: AccessLog) -> Self {
        let inner = Arc::new(Inner {
            started: Instant::now(),
            grace: config.grace,
            access_log,
            series: Arc::new(SeriesTable::new(config.series)),
            paths: Arc::new(PathTable::new(config.series)),
            dns: Arc::default(),
            workload_manager: Arc::default(),
            health: Arc::default(),
            process: Arc::default(),
            sockets: Default::default(),
            taps: Arc::default(),
        });
        registry.register_collector(Box::new(inner.series.clone()));
        registry.register_collector(Box::new(inner.paths.clone()));
        registry.register_collector(Box::new(inner.dns.clone()));
        registry.register_collector(Box::new(inner.workload_manager.clone()));
        registry.register_collector(Box::new(inner.health.clone()));
        registry.register_collector(Box::new(inner.process.clone()));
        registry.register_collector(Box::new(Small(inner.clone())));
        Self { inner }
    }

    /// A connection opens: counts it, and gives what counts and logs the rest.
    pub fn open(&self, labels: ConnectionLabels) -> ConnectionGuard {
        ConnectionGuard::open(self, labels)
    }

    /// The same for a connection that begins and ends in pods of this agent without a tunnel: nobody else reports its destination's end.
    pub fn open_both_ends(&self, labels: ConnectionLabels) -> ConnectionGuard {
        ConnectionGuard::open_both_ends(self, labels)
    }

    /// Where the health of connections over the network between these ends is counted.
    pub(crate) fn path(&self, ends: &Ends) -> Arc<PathCounters> {
        let overflow = || PathLabels::overflow(ends.reporter, ends.security);
        self.inner.paths.counters(PathLabels::of(ends), overflow, self.millis(Instant::now()))
    }

    /// A connection was refused before its ends were known: a rate-limited warning, no series. `parties` are asked for only while somebody taps.
    pub fn refused(&self, refusal: &Refusal<'_>, parties: impl FnOnce() -> Parties) {
        let now = Instant::now();
        self.inner.access_log.refused(refusal.reporter, refusal.from, refusal.to, refusal.error, now);
        if self.inner.taps.is_on() {
            tap::refused(self.taps(), refusal, &parties(), now);
        }
    }

    /// The kernel refused or dropped something: counted, and told by a rate-limited warning, and to taps, for which `parties` says whose addresses those are.
    pub fn kernel_event(&self, event: &Event, parties: impl FnOnce(IpAddr, IpAddr) -> Parties) {
        self.inner.health.kernel_event();
        let address = |address: mesh_common::Address, port| SocketAddr::new(IpAddr::from(address).to_canonical(), port);
        let from = address(event.source, event.source_port);
        let to = address(event.destination, event.destination_port);
        let reporter = match event.reason {
            Reason::StrictPlaintext
            | Reason::ListenerMissing
            | Reason::ForeignToSlot
            | Reason::MeshPort
            | Reason::UdpRefused
            | Reason::PodMissing => Reporter::Destination,
            _ => Reporter::Source,
        };
        let flags = match event.reason {
            Reason::StrictPlaintext
            | Reason::UdpRefused
            | Reason::ForeignToSlot
            | Reason::MeshPort
            | Reason::DirectToAgent
            | Reason::NotInRegistry => ResponseFlags::Deny,
            _ => ResponseFlags::Connect,
        };
        let protocol = if i32::from(event.protocol) == libc::IPPROTO_UDP { "udp" } else { "tcp" };
        let refusal = Refusal { reporter, from, to, error: event.reason.name(), flags, protocol };
        self.refused(&refusal, || parties(from.ip(), to.ip()));
    }

    /// A socket was accepted; it counts as open until the guard is dropped.
    pub fn socket(&self, reporter: Reporter) -> SocketGuard {
        self.inner.sockets[reporter as usize].fetch_add(1, Relaxed);
        SocketGuard { telemetry: self.clone(), reporter }
    }

    /// Forgets the series of workloads and services that the snapshot no longer holds. To be called about once a minute; the cost is one
    /// pass over the workloads when there is an idle series, else next to nothing. Returns how many TCP series went.
    pub fn expire(&self, snapshot: &Snapshot, now: Instant) -> usize {
        let now = self.millis(now);
        self.inner.dns.expire(now, self.inner.grace);
        let known = || {
            let known = Known::of(snapshot);
            move |labels: &PathLabels| labels.are_known(&known)
        };
        self.inner.paths.expire(known, now, self.inner.grace);
        self.inner.series.expire(snapshot, now, self.inner.grace)
    }

    /// TCP label sets held now.
    pub fn series_held(&self) -> usize {
        self.inner.series.len()
    }

    /// DNS metrics.
    pub fn dns(&self) -> &Arc<DnsMetrics> {
        &self.inner.dns
    }

    /// Metrics of enrolment.
    pub fn workload_manager(&self) -> &Arc<WorkloadManagerMetrics> {
        &self.inner.workload_manager
    }

    /// Sources of the agent's health.
    pub fn health(&self) -> &Arc<Health> {
        &self.inner.health
    }

    /// Resources of the process; runtimes are added here.
    pub fn process(&self) -> &Arc<Process> {
        &self.inner.process
    }

    /// Who listens to connections.
    pub fn taps(&self) -> &Arc<Taps<Selector>> {
        &self.inner.taps
    }

    /// The access log, for its end.
    pub fn access_log(&self) -> &AccessLog {
        &self.inner.access_log
    }

    pub(crate) fn series(&self) -> &SeriesTable {
        &self.inner.series
    }

    /// Milliseconds since the telemetry began: small, atomic, and comparable.
    pub(crate) fn millis(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.inner.started).as_millis()).unwrap_or(u64::MAX)
    }
}

/// An open socket of `istio_tcp_sockets_open`.
#[derive(Debug)]
pub struct SocketGuard {
    telemetry: Telemetry,
    reporter: Reporter,
}

impl Drop for SocketGuard {
    fn drop(&mut self) {
        self.telemetry.inner.sockets[self.reporter as usize].fetch_sub(1, Relaxed);
    }
}

/// The families that are one value or two.
struct Small(Arc<Inner>);

impl fmt::Debug for Small {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Small")
    }
}

impl Collector for Small {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let open = [Reporter::Source, Reporter::Destination].map(|reporter| {
            (Pairs([("reporter", reporter.as_str())]), self.0.sockets[reporter as usize].load(Relaxed))
        });
        family::gauges(&mut encoder, "istio_tcp_sockets_open", "TCP sockets open", open)?;
        self.0.access_log.encode(&mut encoder)
    }
}
