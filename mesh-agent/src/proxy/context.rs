//! One served pod inside the proxy: the enrolment, what the snapshot says of it, and its live connections. Shared by the pod's tasks, refreshed by
//! `recheck.rs` whenever the configuration changes.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use mesh_core::l7::cluster::Pool;
use mesh_core::{ArcStr, Client, Snapshot, Workload};
use mesh_transport::hbone::{Baggage, WorkloadKind};
use mesh_transport::socket::{self, Armed};
use mesh_transport::tls::IdentityCertificate;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::connections::{Connections, CutReason};
use super::local;
use super::looks::{Look, Looks};
use super::reasons::Reason;
use super::shared::ProxyShared;
use super::strict;
use super::turns::Turns;
use crate::bpf::InboundMode;
use crate::pod::Pod;

/// The tasks of one pod share this.
pub struct PodContext {
    /// The enrolment: authoritative for who the pod is.
    pub pod: Arc<Pod>,
    /// What all pods share.
    pub shared: Arc<ProxyShared>,
    /// The pod's live connections.
    pub connections: Arc<Connections>,
    /// Stops the accept loops.
    pub stop: CancellationToken,
    /// Tells the peers of inbound tunnels to open no more streams.
    pub drain: CancellationToken,
    /// Ends inbound tunnels at once.
    pub halt: CancellationToken,
    view: ArcSwap<View>,
    tunnels: AtomicU32,
    waiting: AtomicU32,
    /// Clients that are looked at before anything is known of them.
    looks: Arc<Looks>,
    /// Turns of connects to the pod's apps.
    pub app_connects: Turns,
    /// The mode that the kernel last accepted. A short lock of the recheck task and of start-up, never taken per connection.
    inbound: Mutex<Option<Accepted>>,
    /// Whether the kernel was told that the pod may reach only the registry; likewise.
    registry_only: Mutex<Option<bool>>,
}

/// How soon a mode that the kernel had no room for is tried again: each try reads what all pods have there.
pub const ROOM_RETRY: Duration = Duration::from_secs(60);

/// A mode that the kernel has taken.
struct Accepted {
    mode: InboundMode,
    /// When to try again: there was no room for it, and the agent judges in the kernel's stead.
    again_at: Option<Instant>,
}

/// What the current snapshot says of the pod. Replaced as a whole.
pub struct View {
    /// The pod's workload; before the control plane knows the pod, one made of the enrolment. For labels and locality only: what authorizes looks the
    /// workload up in the snapshot that it decides by.
    pub workload: Arc<Workload>,
    /// The pod as a client.
    pub client: Client,
    /// The labels that travel with its requests and answers.
    pub baggage: Baggage,
    known: bool,
}

/// One of the places that a pod has for something; free again when dropped.
pub struct Place<'a>(&'a AtomicU32);

impl PodContext {
    /// The context of a pod that is about to be served.
    pub fn new(pod: Arc<Pod>, shared: Arc<ProxyShared>) -> Arc<PodContext> {
        let view = View::of(&pod, &shared, Arc::new(enrolled(&pod, &shared)), false);
        Arc::new(PodContext {
            connections: Connections::new(shared.config.connections_per_pod),
            stop: CancellationToken::new(),
            drain: CancellationToken::new(),
            halt: CancellationToken::new(),
            view: ArcSwap::from_pointee(view),
            tunnels: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
            looks: Arc::default(),
            app_connects: Turns::new(shared.app_connects.clone(), shared.config.app_connects_per_port),
            inbound: Mutex::new(None),
            registry_only: Mutex::new(None),
            pod,
            shared,
        })
    }

    /// What the snapshot says of the pod.
    pub fn view(&self) -> Guard<Arc<View>> {
        self.view.load()
    }

    /// The pod's workload in `snapshot`, if it is this pod's.
    pub fn workload<'a>(&self, snapshot: &'a Snapshot) -> Option<&'a Arc<Workload>> {
        local::workload_of(&self.pod, &self.shared.config.network, snapshot)
    }

    /// Counts a refusal and logs it at debug; the access log has the ones that got as far as a destination.
    pub fn refuse(&self, reason: Reason, what: impl std::fmt::Display) {
        self.shared.refusals.count(reason);
        tracing::debug!(pod = %self.pod.name, namespace = %self.pod.namespace, reason = reason.as_str(), "{what}");
    }

    /// The pod's certificate, waiting a bounded time for the first one.
    pub async fn certificate(&self) -> io::Result<Arc<IdentityCertificate>> {
        let certificates = &self.shared.certificates;
        if let Some(certificate) = certificates.current(&self.pod.identity) {
            return Ok(certificate);
        }
        let fetched =
            tokio::time::timeout(self.shared.config.certificate_wait, certificates.fetch(&self.pod.identity)).await;
        fetched.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "no certificate in time")))
    }

    /// A plain connection from the pod's address inside the pod's network namespace, as if the app had made it.
    pub async fn dial(&self, destination: SocketAddr) -> io::Result<Armed> {
        self.dial_as(destination, None).await
    }

    /// The same, with the deadline and the signs of life that are said of its destination, if any are.
    pub async fn dial_as(&self, destination: SocketAddr, said: Option<&Pool>) -> io::Result<Armed> {
        let config = &self.shared.config;
        let limit = said.map_or(config.connect_timeout, |pool| pool.connect_timeout);
        let stream = within(limit, dial(&self.pod, destination)).await?;
        match said.and_then(|pool| pool.keepalive) {
            Some(signs) => socket::keep_alive_as(&stream, signs.after, signs.interval, signs.probes)?,
            None => config.keepalive.map_or(Ok(()), |interval| socket::keep_alive(&stream, interval))?,
        }
        Ok(Armed::new(stream))
    }

    /// A place for one more inbound tunnel; `None` when the pod has its limit.
    pub fn tunnel_place(&self) -> Option<Place<'_>> {
        Place::take(&self.tunnels, self.shared.config.tunnels_per_pod)
    }

    /// A place for one more connection that waits for the configuration to know its destination.
    pub fn waiting_place(&self) -> Option<Place<'_>> {
        Place::take(&self.waiting, self.shared.config.waiting_per_pod)
    }

    /// A place for one more client whose first message is looked at; `None` when there are too many, of its address or in all.
    pub fn look(&self, from: IpAddr) -> Option<Look> {
        self.looks.begin(from)
    }

    /// Takes over what `snapshot` says. Returns whether live connections have to be authorized again: the pod's workload is another one, or `concerns`
    /// says so of the version that decided before or of the one that decides now.
    pub fn refresh(&self, snapshot: &Snapshot, concerns: impl Fn(&Workload) -> bool) -> bool {
        let old = self.view.load_full();
        let (workload, known) = View::workload(&self.pod, &self.shared, snapshot, &old);
        let replaced = old.known != known || !Arc::ptr_eq(&old.workload, &workload);
        let affected = replaced || concerns(&old.workload) || concerns(&workload);
        if replaced {
            self.view.store(Arc::new(View::of(&self.pod, &self.shared, workload, known)));
        }
        affected
    }

    /// Brings the kernel's plaintext refusal in step with the policies. False means that the kernel did not take it; the caller tries again. Where the
    /// kernel had no room the agent judges, so that is in step, and is tried again when [`ROOM_RETRY`] is over. Until the pod's workload is known no
    /// connection is refused in the kernel: it is held by the agent instead.
    pub fn sync_inbound(&self) -> bool {
        let mut current = self.inbound.lock();
        // The newest, by whoever comes last: nobody brings back what was before.
        let wanted = self.inbound_mode(&self.shared.state.snapshot());
        let is_due = |again_at: Option<Instant>| again_at.is_some_and(|at| Instant::now() >= at);
        if current.as_ref().is_some_and(|accepted| accepted.mode == wanted && !is_due(accepted.again_at)) {
            return true;
        }
        match self.shared.interception.set_inbound(self.pod.netns_cookie, &wanted) {
            Ok(whole) => {
                let again_at = (!whole).then(|| Instant::now() + ROOM_RETRY);
                *current = Some(Accepted { mode: wanted, again_at });
            }
            Err(error) => {
                tracing::debug!(pod = %self.pod.name, %error, "inbound mode not set");
                return false;
            }
        }
        true
    }

    /// Forgets what the kernel has accepted: somebody else may have written since.
    pub fn forget_inbound(&self) {
        *self.inbound.lock() = None;
        *self.registry_only.lock() = None;
    }

    /// Whether the pod may reach only what the registry knows; `None` while that is not known.
    pub fn is_registry_only(&self, snapshot: &Snapshot) -> Option<bool> {
        let view = self.view();
        let said = || snapshot.outbound(&view.client.namespace, &view.client.uid);
        let is_known = snapshot.is_synced() && snapshot.is_outbound_known();
        is_known.then(|| said().is_some_and(|said| said.registry_only))
    }

    /// Has the kernel know that. While it is not known, what the kernel was told before stays. False: it did not take it.
    pub fn sync_outbound(&self, snapshot: &Snapshot) -> bool {
        let mut current = self.registry_only.lock();
        let Some(wanted) = self.is_registry_only(snapshot) else { return true };
        if *current == Some(wanted) {
            return true;
        }
        if let Err(error) = self.shared.interception.set_registry_only(self.pod.netns_cookie, wanted) {
            tracing::debug!(pod = %self.pod.name, %error, "what the pod may reach is not set");
            return false;
        }
        *current = Some(wanted);
        true
    }

    /// What the kernel should refuse by itself.
    pub fn inbound_mode(&self, snapshot: &Snapshot) -> InboundMode {
        let mode = strict::mode_of(snapshot, self.workload(snapshot).map(Arc::as_ref));
        // Who has a sidecar proves who he is behind what the kernel would refuse.
        if self.shared.config.sidecars { strict::left_to_the_agent(&mode) } else { mode }
    }

    /// Ends everything of the pod at once.
    pub fn cut(&self, reason: CutReason) {
        self.stop.cancel();
        self.connections.close(reason);
        self.halt.cancel();
    }
}

impl<'a> Place<'a> {
    fn take(taken: &'a AtomicU32, limit: u32) -> Option<Self> {
        // Made before the comparison, so that what does not fit is given back.
        let (before, place) = (taken.fetch_add(1, Ordering::AcqRel), Place(taken));
        (before < limit).then_some(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl View {
    fn of(pod: &Pod, shared: &ProxyShared, workload: Arc<Workload>, known: bool) -> View {
        let client = Client {
            network: shared.config.network.clone(),
            cluster_id: workload.cluster_id.clone(),
            node: shared.config.node.clone(),
            locality: workload.locality.clone(),
            namespace: pod.namespace.clone(),
            uid: workload.uid.clone(),
            ips: pod.ips.clone(),
            identity: Some(pod.identity.clone()),
        };
        View { client, baggage: baggage_of(&workload), workload, known }
    }

    /// The pod's workload, and whether the snapshot has it.
    fn workload(pod: &Pod, shared: &ProxyShared, snapshot: &Snapshot, former: &View) -> (Arc<Workload>, bool) {
        match local::workload_of(pod, &shared.config.network, snapshot) {
            Some(workload) => (workload.clone(), true),
            None if !former.known => (former.workload.clone(), false),
            None => (Arc::new(enrolled(pod, shared)), false),
        }
    }
}

/// A workload of what the enrolment alone says.
fn enrolled(pod: &Pod, shared: &ProxyShared) -> Workload {
    let mut workload = Workload::new(pod.uid.clone(), pod.namespace.clone(), pod.name.clone());
    workload.addresses = pod.ips.clone();
    workload.network = shared.config.network.clone();
    workload.trust_domain = pod.identity.trust_domain.clone();
    workload.service_account = pod.identity.service_account.clone();
    workload.node = shared.config.node.clone();
    workload
}

/// The labels of a workload as they travel.
pub fn baggage_of(workload: &Workload) -> Baggage {
    let some = |text: &ArcStr| (!text.is_empty()).then(|| text.clone());
    Baggage {
        cluster: some(&workload.cluster_id),
        namespace: some(&workload.namespace),
        workload_kind: match workload.workload_type {
            mesh_core::workload::WorkloadType::Deployment => WorkloadKind::Deployment,
            mesh_core::workload::WorkloadType::CronJob => WorkloadKind::CronJob,
            mesh_core::workload::WorkloadType::Pod => WorkloadKind::Pod,
            mesh_core::workload::WorkloadType::Job => WorkloadKind::Job,
        },
        workload: some(&workload.workload_name),
        service: some(&workload.canonical_name),
        version: some(&workload.canonical_revision),
        region: some(&workload.locality.region),
        zone: some(&workload.locality.zone),
    }
}

/// Connects from `pod`'s address inside its network namespace. The caller has the deadline.
pub async fn dial(pod: &Pod, destination: SocketAddr) -> io::Result<TcpStream> {
    let source = local::source_for(pod, destination.ip())
        .ok_or_else(|| io::Error::new(io::ErrorKind::AddrNotAvailable, "the pod has no address of that family"))?;
    pod.sockets.tcp_socket_from(source).await?.connect(destination).await
}

/// The result of `work`, or a timeout.
pub async fn within<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
