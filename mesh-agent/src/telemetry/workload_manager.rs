//! Metrics of enrolment, in the node proxy's names. Called by whoever adds and removes pods. (The control plane's stream is counted by
//! mesh-client, which owns it.)

use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

use super::family;

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
