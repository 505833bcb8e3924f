//! What all pods of the node share: configuration, state, certificates, kernel, tunnels, telemetry, and the list of the pods themselves.
//! Built once by `app.rs`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use mesh_core::ArcStr;
use mesh_runtime::lanes::Lanes;
use mesh_runtime::metrics::Registry;
use mesh_transport::hbone::{Acceptor, AcceptorConfig, Pool, PoolConfig};
use parking_lot::Mutex;
use serde::Serialize;

use super::config::ProxyConfig;
use super::connections::ConnectionView;
use super::context::PodContext;
use super::legs;
use super::places::Places;
use super::reasons::RefusalCounters;
use super::recheck;
use super::seams::{Certificates, Interception};
use super::turns::Table;
use crate::state::StateHandle;
use crate::telemetry::Telemetry;

/// Shared by all pods.
pub struct ProxyShared {
    /// Limits and deadlines.
    pub config: ProxyConfig,
    /// The mesh as this node knows it.
    pub state: Arc<StateHandle>,
    /// Certificates of local identities.
    pub certificates: Arc<dyn Certificates>,
    /// The kernel's side of capture.
    pub interception: Arc<dyn Interception>,
    /// Tunnels that this node dialled.
    pub pool: Pool,
    /// Accepts tunnels; one for the process, so that its caps are global.
    pub acceptor: Acceptor,
    /// Metrics and access log.
    pub telemetry: Telemetry,
    /// The threads that connections live on.
    pub lanes: Lanes,
    /// Places for connects to apps.
    pub app_connects: Arc<Table>,
    /// Places of which it is said how their endpoints are reached.
    pub places: Places,
    /// What the kernel has been told of the registry.
    pub known: super::registry::Registry,
    /// Refusals by reason.
    pub refusals: RefusalCounters,
    /// By enrolment uid. Locked when a pod comes or goes and for each configuration change, never per connection.
    pods: Mutex<HashMap<ArcStr, Arc<PodContext>>>,
    started: Instant,
}

/// The live connections of one pod, for the admin socket.
#[derive(Debug, Serialize)]
pub struct PodConnections {
    /// Enrolment uid.
    pub uid: ArcStr,
    /// Namespace.
    pub namespace: ArcStr,
    /// Name.
    pub name: ArcStr,
    /// Open connections, oldest first.
    pub connections: Vec<ConnectionView>,
}

impl ProxyShared {
    /// Builds it and starts the task that follows the configuration. Must run inside a Tokio runtime.
    pub fn new(
        config: ProxyConfig,
        state: Arc<StateHandle>,
        certificates: Arc<dyn Certificates>,
        interception: Arc<dyn Interception>,
        telemetry: Telemetry,
        lanes: Lanes,
        registry: &mut Registry,
    ) -> Arc<ProxyShared> {
        let updates = state.updates();
        let shared = Arc::new(ProxyShared {
            pool: Pool::new(PoolConfig {
                dial_timeout: config.connect_timeout,
                revocations: config.revocations.clone(),
                ..PoolConfig::default()
            }),
            acceptor: Acceptor::new(AcceptorConfig {
                revocations: config.revocations.clone(),
                handshakes_per_second: config.handshakes_per_second,
                ..AcceptorConfig::default()
            }),
            places: Places::default(),
            known: Default::default(),
            refusals: RefusalCounters::new(registry),
            pods: Mutex::new(HashMap::new()),
            started: Instant::now(),
            app_connects: Table::new(config.app_connects, config.pods),
            config,
            state,
            certificates,
            interception,
            telemetry,
            lanes,
        });
        mesh_runtime::task::spawn_vital("recheck", recheck::run(Arc::downgrade(&shared), updates));
        mesh_runtime::task::spawn("health of the network", legs::run(Arc::downgrade(&shared)));
        shared
    }

    /// Monotonic milliseconds for balancing and ejection.
    pub fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// The live connections of every pod, for the admin socket.
    pub fn connections(&self) -> Vec<PodConnections> {
        let mut pods: Vec<_> = self
            .pods()
            .iter()
            .map(|context| PodConnections {
                uid: context.pod.uid.clone(),
                namespace: context.pod.namespace.clone(),
                name: context.pod.name.clone(),
                connections: context.connections.view(),
            })
            .collect();
        pods.sort_unstable_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        pods
    }

    /// The pods that are served now.
    pub(super) fn pods(&self) -> Vec<Arc<PodContext>> {
        self.pods.lock().values().cloned().collect()
    }

    pub(super) fn add(&self, context: &Arc<PodContext>) {
        self.pods.lock().insert(context.pod.uid.clone(), context.clone());
    }

    /// Forgets a pod, unless a newer enrolment of the same uid has taken its place.
    pub(super) fn remove(&self, context: &Arc<PodContext>) {
        let mut pods = self.pods.lock();
        if pods.get(&context.pod.uid).is_some_and(|current| Arc::ptr_eq(current, context)) {
            pods.remove(&context.pod.uid);
        }
    }
}
