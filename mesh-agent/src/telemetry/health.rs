//! The agent's own health: kernel counters, map usage, tunnels, certificates. Everything is polled at scrape from its owner.
//!
//! The owners give closures once, at start (`Health::watch_*`); nothing here knows their types, and a source that is not there is not
//! printed. Names start with `mesh_`.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use arcstr::ArcStr;
use mesh_common::Reason;
use parking_lot::RwLock;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

use super::family;
use super::labels::{Pairs, bounded};

/// Use of one kernel map: its name, entries in use, entries it can hold.
pub type MapUsage = (&'static str, u64, u64);

/// A certificate that the agent holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateExpiry {
    /// The SPIFFE id.
    pub identity: String,
    /// Seconds since the epoch.
    pub not_after: i64,
}

/// Lists of revoked certificates, when there are any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RevocationHealth {
    /// In use.
    pub lists: u64,
    /// Revoked peers that we dialled and did not take, or cut.
    pub refused_servers: u64,
    /// Revoked peers that dialled us.
    pub refused_clients: u64,
    /// Reads of the file that failed and left the former lists in use.
    pub failures: u64,
}

type Poll<T> = RwLock<Option<Box<dyn Fn() -> T + Send + Sync>>>;

/// Where the numbers come from.
#[derive(Default)]
pub struct Health {
    kernel_counters: Poll<Vec<(Reason, u64)>>,
    maps: Poll<Vec<MapUsage>>,
    tunnels: Poll<u64>,
    certificates: Poll<Vec<CertificateExpiry>>,
    revocations: Poll<RevocationHealth>,
    events: AtomicU64,
    repairs: AtomicU64,
    around: AtomicU64,
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Health").finish_non_exhaustive()
    }
}

impl Health {
    /// Counters of the kernel programs: a reason and how often it applied.
    pub fn watch_kernel_counters(&self, poll: impl Fn() -> Vec<(Reason, u64)> + Send + Sync + 'static) {
        *self.kernel_counters.write() = Some(Box::new(poll));
    }

    /// Use of the kernel maps.
    pub fn watch_maps(&self, poll: impl Fn() -> Vec<MapUsage> + Send + Sync + 'static) {
        *self.maps.write() = Some(Box::new(poll));
    }

    /// Tunnels open to other nodes.
    pub fn watch_tunnels(&self, poll: impl Fn() -> u64 + Send + Sync + 'static) {
        *self.tunnels.write() = Some(Box::new(poll));
    }

    /// Certificates held.
    pub fn watch_certificates(&self, poll: impl Fn() -> Vec<CertificateExpiry> + Send + Sync + 'static) {
        *self.certificates.write() = Some(Box::new(poll));
    }

    /// Lists of revoked certificates.
    pub fn watch_revocations(&self, poll: impl Fn() -> RevocationHealth + Send + Sync + 'static) {
        *self.revocations.write() = Some(Box::new(poll));
    }

    /// An event was read from the kernel's ring buffer.
    pub(super) fn kernel_event(&self) {
        self.events.fetch_add(1, Relaxed);
    }

    /// Kernel state that had to be put right.
    pub fn repaired(&self, repairs: usize) {
        self.repairs.fetch_add(repairs as u64, Relaxed);
    }

    /// A connection has gone around a waypoint that is optional and did not answer.
    pub fn went_around(&self) {
        self.around.fetch_add(1, Relaxed);
    }
}

fn poll<T>(source: &Poll<T>) -> Option<T> {
    source.read().as_ref().map(|poll| poll())
}

impl Collector for Health {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let e = &mut encoder;
        if let Some(counters) = poll(&self.kernel_counters) {
            let rows = counters.iter().map(|(reason, count)| (Pairs([("reason", reason.name())]), *count));
            family::counters(e, "mesh_kernel_decisions", "Decisions of the kernel programs, by reason", rows)?;
            let lost = counters.iter().filter(|(reason, _)| *reason == Reason::EventLost).map(|(_, count)| count).sum();
            family::counter(e, "mesh_bpf_ringbuf_dropped", "Events the kernel had no room for", lost)?;
        }
        if let Some(maps) = poll(&self.maps) {
            let rows = maps.iter().map(|(map, used, _)| (Pairs([("map", *map)]), family::signed(*used)));
            family::gauges(e, "mesh_bpf_map_entries", "Entries in use of a kernel map", rows)?;
            let rows = maps.iter().map(|(map, _, max)| (Pairs([("map", *map)]), family::signed(*max)));
            family::gauges(e, "mesh_bpf_map_max_entries", "Entries a kernel map can hold", rows)?;
        }
        if let Some(tunnels) = poll(&self.tunnels) {
            family::gauge(e, "mesh_tunnels_open", "Tunnels open to other nodes", family::signed(tunnels))?;
        }
        if let Some(certificates) = poll(&self.certificates) {
            let rows: Vec<_> =
                certificates.iter().map(|c| (bounded(&ArcStr::from(&*c.identity)), c.not_after)).collect();
            let rows = rows.iter().map(|(identity, at)| (Pairs([("identity", identity.as_str())]), *at));
            let name = "mesh_workload_cert_expiry_timestamp_seconds";
            family::gauges(e, name, "End of validity of the certificates held", rows)?;
        }
        if let Some(revocations) = poll(&self.revocations) {
            encode_revocations(e, &revocations)?;
        }
        family::counter(e, "mesh_bpf_ringbuf_events", "Events read from the kernel", self.events.load(Relaxed))?;
        let help = "Connections that have gone around a waypoint which is optional and did not answer";
        family::counter(e, "mesh_waypoint_bypassed", help, self.around.load(Relaxed))?;
        family::counter(e, "mesh_bpf_repairs", "Kernel state put right", self.repairs.load(Relaxed))
    }
}

/// In ztunnel's names. No connection is untracked here: what could not be tracked would have been refused.
fn encode_revocations(e: &mut DescriptorEncoder, revocations: &RevocationHealth) -> fmt::Result {
    let sides = |source, destination| {
        [("source", source), ("destination", destination)].map(|(side, count)| (Pairs([("reporter", side)]), count))
    };
    let rows = sides(revocations.refused_servers, revocations.refused_clients);
    family::counters(e, "istio_crl_policy_rejections", "Connections refused or cut: the peer is revoked", rows)?;
    let help = "Connections that a new list would not reach";
    family::counters(e, "istio_crl_untracked_connections", help, sides(0, 0))?;
    let lists = family::signed(revocations.lists);
    family::gauge(e, "mesh_crl_lists", "Lists of revoked certificates in use", lists)?;
    let help = "Reads of the file of revoked certificates that failed; the former lists stay in use";
    family::counter(e, "mesh_crl_read_failures", help, revocations.failures)
}
