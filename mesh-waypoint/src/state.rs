//! What the control plane has said, as requests read it: one immutable view of endpoints and of what the waypoint has of its own, replaced as a whole.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use arc_swap::{ArcSwap, Guard};
use mesh_core::l7::{Client, Cluster, ClusterKey, Clusters, LabelChange, LabelIndex, Security, Table};
use mesh_core::listener::{Certificates, Listeners, Open};
use mesh_core::{Snapshot, Workload, hops};
use tokio::sync::watch;

use crate::entry::Edge;
use crate::guard;
use crate::telemetry::Plans;

/// One moment.
#[derive(Clone, Default)]
pub struct View {
    /// Workloads, services, policies.
    pub snapshot: Arc<Snapshot>,
    /// Routes.
    pub table: Arc<Table>,
    /// Labels of workloads that routes and places ask for.
    pub labels: Arc<LabelIndex>,
    /// How the places are reached that routes name.
    pub clusters: Arc<Clusters>,
    /// The same before that: places arrive before the routes that name them, and those that are gone are named for a moment longer.
    former: Arc<Clusters>,
    /// What requests are held against.
    pub guard: Arc<guard::Guard>,
    /// What is measured, logged and traced.
    pub plans: Arc<Plans>,
    /// What is listened for outside of the mesh.
    pub edge: Arc<Edge>,
    /// When it was the current one for the last time; not set while it is.
    pub replaced: Arc<OnceLock<Instant>>,
}

impl View {
    /// How a client reaches a place; `None` if nothing is said of it.
    #[must_use]
    pub fn cluster(&self, key: &ClusterKey, client: &Client<'_>) -> Option<&Arc<Cluster>> {
        self.clusters.find(key, client).or_else(|| self.former.find(key, client))
    }

    /// Whether a workload is a pod of a Gateway.
    #[must_use]
    pub fn is_gateway(&self, workload: &Workload) -> bool {
        self.labels.get(&workload.uid).is_some_and(|labels| labels.contains_key(hops::GATEWAY))
    }
}

/// The current view. Whoever applies what arrives is the only writer.
#[derive(Default)]
pub struct State {
    view: ArcSwap<View>,
    ports: watch::Sender<Vec<Open>>,
    policies: watch::Sender<()>,
}

impl State {
    /// Nothing is known yet: everything is refused.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The current view. Not to be held over an await.
    pub fn view(&self) -> Guard<Arc<View>> {
        self.view.load()
    }

    /// Other workloads, services or policies.
    pub fn set_snapshot(&self, snapshot: Arc<Snapshot>) {
        self.change(|view| view.snapshot = Arc::clone(&snapshot));
    }

    /// Other routes.
    pub fn set_table(&self, table: Arc<Table>) {
        self.change(|view| view.table = Arc::clone(&table));
    }

    /// Other listeners; certificates that are not given stay as they are.
    pub fn set_listeners(&self, listeners: Arc<Listeners>) {
        let ports = listeners.open().collect();
        let certificates = Arc::clone(&self.view().edge.certificates);
        self.set_edge(listeners, certificates);
        // Whoever opens a port finds its listeners.
        self.ports.send_replace(ports);
    }

    /// Other certificates. Connections that are there go on with theirs.
    pub fn set_certificates(&self, certificates: Arc<Certificates>) {
        let listeners = Arc::clone(&self.view().edge.listeners);
        self.set_edge(listeners, certificates);
    }

    fn set_edge(&self, listeners: Arc<Listeners>, certificates: Arc<Certificates>) {
        let edge = Arc::new(self.view().edge.next(listeners, certificates));
        self.change(|view| view.edge = Arc::clone(&edge));
    }

    /// The ports that listeners ask for.
    pub fn ports(&self) -> watch::Receiver<Vec<Open>> {
        self.ports.subscribe()
    }

    /// Told of whenever there are other policies.
    pub fn policies(&self) -> watch::Receiver<()> {
        self.policies.subscribe()
    }

    /// Other places.
    pub fn set_clusters(&self, clusters: Arc<Clusters>) {
        self.change(|view| view.former = std::mem::replace(&mut view.clusters, Arc::clone(&clusters)));
    }

    /// Other policies, or other issuers of tokens, whose keys are read here, once; without any, nothing is let through.
    pub fn set_security(&self, security: Option<Arc<Security>>) {
        let before = Arc::clone(&self.view.load().guard);
        let read = |security| guard::Guard::new(security, &before.limiters);
        let guard = Arc::new(security.map_or_else(guard::Guard::closed, read));
        self.change(|view| view.guard = Arc::clone(&guard));
        self.policies.send_replace(());
    }

    /// Other ways to measure, log and trace.
    pub fn set_plans(&self, plans: Arc<Plans>) {
        self.change(|view| view.plans = Arc::clone(&plans));
    }

    /// Other labels.
    pub fn set_labels(&self, changes: Vec<LabelChange>) {
        let labels = Arc::new(self.view.load().labels.with(changes));
        self.change(|view| view.labels = Arc::clone(&labels));
    }

    fn change(&self, change: impl Fn(&mut View)) {
        let former = self.view.rcu(|view| {
            let mut next = View { replaced: Arc::default(), ..View::clone(view) };
            change(&mut next);
            next
        });
        let _ = former.replaced.set(Instant::now());
    }
}
