//! Metrics of the agent's two counterparts: the control plane's stream, and whoever adds and removes pods.
//!
//! Called by the subscription (`XdsMetrics`) and by enrolment (`WorkloadManagerMetrics`).

use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

use super::family;
use super::labels::Pairs;

/// Why a stream to the control plane ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdsTermination {
    /// It could not be opened.
    ConnectionError,
    /// It failed while open.
    Error,
    /// The server asked to connect anew.
    Reconnect,
    /// It ended in order.
    Complete,
}

impl XdsTermination {
    const ALL: [Self; 4] = [Self::ConnectionError, Self::Error, Self::Reconnect, Self::Complete];

    fn as_str(self) -> &'static str {
        match self {
            Self::ConnectionError => "ConnectionError",
            Self::Error => "Error",
            Self::Reconnect => "Reconnect",
            Self::Complete => "Complete",
        }
    }
}

/// Type URLs counted by name; others share one label, as the name comes from the peer.
const TYPES: [&str; 3] =
    ["type.googleapis.com/istio.workload.Address", "type.googleapis.com/istio.security.Authorization", "other"];

/// The stream of configuration.
#[derive(Debug, Default)]
pub struct XdsMetrics {
    terminations: [AtomicU64; 4],
    messages: [AtomicU64; TYPES.len()],
    bytes: [AtomicU64; TYPES.len()],
    connected: AtomicI64,
}

impl XdsMetrics {
    /// A stream opened.
    pub fn connected(&self) {
        self.connected.store(1, Relaxed);
    }

    /// A stream, or the attempt to open one, ended.
    pub fn terminated(&self, reason: XdsTermination) {
        self.connected.store(0, Relaxed);
        self.terminations[reason as usize].fetch_add(1, Relaxed);
    }

    /// A response of a type came.
    pub fn message(&self, type_url: &str, bytes: usize) {
        let index = TYPES.iter().position(|known| *known == type_url).unwrap_or(TYPES.len() - 1);
        self.messages[index].fetch_add(1, Relaxed);
        self.bytes[index].fetch_add(bytes as u64, Relaxed);
    }
}

impl Collector for XdsMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let by_type = |values: &[AtomicU64; TYPES.len()]| {
            let counts = [0, 1, 2].map(|i| (Pairs([("url", TYPES[i])]), values[i].load(Relaxed)));
            counts.into_iter().filter(|(_, count)| *count > 0)
        };
        let ends = XdsTermination::ALL
            .map(|reason| (Pairs([("reason", reason.as_str())]), self.terminations[reason as usize].load(Relaxed)));
        let (name, help) = ("istio_xds_connection_terminations", "Streams to the control plane that ended, by reason");
        family::counters(&mut encoder, name, help, ends.into_iter().filter(|(_, count)| *count > 0))?;
        family::counters(&mut encoder, "istio_xds_message", "Responses of the control plane", by_type(&self.messages))?;
        let (name, help) = ("istio_xds_message_bytes", "Bytes of the responses of the control plane");
        family::counters(&mut encoder, name, help, by_type(&self.bytes))?;
        let help = "1 while the stream to the control plane is open";
        family::gauge(&mut encoder, "mesh_xds_connected", help, self.connected.load(Relaxed))
    }
}

/// Pods that the agent serves.
#[derive(Debug, Default)]
pub struct WorkloadManagerMetrics {
    active: AtomicI64,
    pending: AtomicI64,
    started: AtomicU64,
    stopped: AtomicU64,
}

impl WorkloadManagerMetrics {
    /// A pod's proxy runs.
    pub fn started(&self) {
        self.active.fetch_add(1, Relaxed);
        self.started.fetch_add(1, Relaxed);
    }

    /// A pod's proxy ended.
    pub fn stopped(&self) {
        self.active.fetch_sub(1, Relaxed);
        self.stopped.fetch_add(1, Relaxed);
    }

    /// So many pods wait for their proxy.
    pub fn pending(&self, pods: usize) {
        self.pending.store(family::signed(pods), Relaxed);
    }

    /// Pods served now.
    pub fn active(&self) -> i64 {
        self.active.load(Relaxed)
    }
}

impl Collector for WorkloadManagerMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let e = &mut encoder;
        family::gauge(e, "workload_manager_active_proxy_count", "Pods served", self.active.load(Relaxed))?;
        family::gauge(e, "workload_manager_pending_proxy_count", "Pods waiting", self.pending.load(Relaxed))?;
        family::counter(e, "workload_manager_proxies_started", "Pod proxies started", self.started.load(Relaxed))?;
        family::counter(e, "workload_manager_proxies_stopped", "Pod proxies stopped", self.stopped.load(Relaxed))
    }
}
