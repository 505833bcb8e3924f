//! What the clients count. Names are ztunnel's where it has the same thing.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, SystemTime},
};

use mesh_runtime::metrics::Registry;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Url {
    pub(crate) url: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Reason {
    pub(crate) reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Outcome {
    pub(crate) outcome: &'static str,
}

/// Counters and gauges of the subscription and of certificates; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct ClientMetrics {
    pub(crate) terminations: Family<Reason, Counter>,
    pub(crate) messages: Family<Url, Counter>,
    pub(crate) message_bytes: Family<Url, Counter>,
    pub(crate) rejected: Family<Url, Counter>,
    pub(crate) held: Family<Url, Gauge>,
    pub(crate) suspended: Gauge,
    pub(crate) demands: Counter,
    pub(crate) connected: Gauge,
    pub(crate) last_message: Gauge<f64, AtomicU64>,
    pub(crate) certificates: Family<Outcome, Counter>,
    pub(crate) identities: Gauge,
    last_error: Arc<parking_lot::Mutex<Option<String>>>,
}

impl ClientMetrics {
    /// Registers everything.
    #[must_use]
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let m = &metrics;
        registry.register(
            "istio_xds_connection_terminations",
            "Ends of the stream to the control plane, by reason",
            m.terminations.clone(),
        );
        registry.register("istio_xds_message", "Messages from the control plane, by type", m.messages.clone());
        registry.register(
            "istio_xds_message_bytes",
            "Bytes of messages from the control plane, by type",
            m.message_bytes.clone(),
        );
        registry.register(
            "undermesh_xds_rejected",
            "Resources refused because they cannot be read",
            m.rejected.clone(),
        );
        registry.register("undermesh_xds_resources", "Resources held, by type", m.held.clone());
        registry.register(
            "undermesh_xds_suspended_removals",
            "Removals held back because one push removed more than half of the mesh",
            m.suspended.clone(),
        );
        registry.register(
            "undermesh_xds_on_demand",
            "Addresses that a connection waited for and the control plane was asked about",
            m.demands.clone(),
        );
        registry.register(
            "undermesh_xds_connected",
            "1 while the stream to the control plane is up",
            m.connected.clone(),
        );
        registry.register(
            "undermesh_xds_last_message_timestamp_seconds",
            "When the control plane was last heard",
            m.last_message.clone(),
        );
        registry.register("undermesh_certificate_requests", "Certificate requests, by outcome", m.certificates.clone());
        registry.register(
            "undermesh_certificate_identities",
            "Identities that certificates are kept for",
            m.identities.clone(),
        );
        metrics
    }

    /// Whether the stream is up.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.connected.get() == 1
    }

    /// Why the stream last ended, until it is up again.
    #[must_use]
    pub fn last_error(&self) -> Option<String> {
        self.last_error.lock().clone()
    }

    pub(crate) fn set_error(&self, error: Option<String>) {
        *self.last_error.lock() = error;
    }

    pub(crate) fn heard(&self) {
        let since_epoch = mesh_runtime::clock::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        self.last_message.set(since_epoch.as_secs_f64());
    }

    pub(crate) fn certificate(&self, outcome: &'static str) {
        self.certificates.get_or_create(&Outcome { outcome }).inc();
    }
}
