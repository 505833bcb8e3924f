//! How a pod is really started and stopped on this node: sockets, keeper, proxy, kernel, DNS, certificate.
//!
//! ```text
//!  start   sockets ─> keeper ─> proxy, DNS ─> kernel (captured from here on) ─> certificate, bounded wait
//!  stop    proxy, DNS ─> kernel ─> keeper ─> close
//! ```
//! The proxy accepts before the kernel sends anything to it. A start that fails at any step undoes the steps before it, except that what
//! was captured before is closed and not let go: the failure is ours, and the pod's traffic must not pass because of it. Kernel and keeper
//! calls block for milliseconds, so they run on blocking threads; the proxy runs on the data plane's runtime.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_client::CertificateManager;
use mesh_common::row::NAMESERVERS;
use mesh_core::{ArcStr, CaptureRules, Identity, TrustDomain};
use mesh_runtime::lanes::Lanes;
use mesh_transport::netns::NetnsSockets;
use tokio_util::sync::CancellationToken;

use super::listeners::{Kind, Listeners};
use super::machine::{Counts, Generation, Spec};
use super::manager::Runner;
use super::record::Record;
use super::server::PodFds;
use super::session::{Code, Failure};
use crate::bpf::{Kernel, PodSpec};
use crate::dns::{DnsServer, DnsZone};
use crate::keeper::Keeper;
use crate::pod::{Pod, PodDns};
use crate::proxy::{PodProxy, ProxyListeners, ProxyShared};

/// How long an enrolment waits for the pod's first certificate and for the configuration, which says what the pod may reach. Without them the pod is
/// enrolled all the same: its connections wait.
const READY_WAIT: Duration = Duration::from_secs(2);
/// How long connections of a pod that leaves may take to end by themselves.
const LEAVE: Duration = Duration::from_secs(1);
/// How long to wait before a pod that cannot be taken over is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// What starting pods needs.
pub struct Node {
    /// The kernel programs.
    pub kernel: Arc<Kernel>,
    /// Holder of the sockets.
    pub keeper: Arc<Keeper>,
    /// What all proxies share.
    pub proxy: Arc<ProxyShared>,
    /// Certificates of the pods' identities.
    pub certificates: CertificateManager,
    /// The data plane's threads.
    pub lanes: Lanes,
    /// What names mean to the node's pods.
    pub zone: DnsZone,
    /// Trust domain of the node's pods.
    pub trust_domain: TrustDomain,
    /// On the agent's packets inside of pods, for packet filters there.
    pub mark: Option<u32>,
    /// Told how many pods there are.
    pub counts: Box<dyn Fn(Counts) + Send + Sync>,
}

/// A pod that runs.
pub struct RunningPod {
    /// How long it took until the pod was captured.
    captured_after: Duration,
    pod: Arc<Pod>,
    proxy: PodProxy,
    dns: DnsServer,
    _certificate: CertificateUse,
}

/// As long as a pod of the identity is there, its certificate is kept and renewed.
struct CertificateUse {
    certificates: CertificateManager,
    identity: Identity,
}

impl CertificateUse {
    fn new(certificates: &CertificateManager, identity: &Identity) -> Self {
        certificates.prefetch(identity);
        CertificateUse { certificates: certificates.clone(), identity: identity.clone() }
    }
}

impl Drop for CertificateUse {
    fn drop(&mut self) {
        self.certificates.forget(&self.identity);
    }
}

impl Runner for Node {
    type Payload = PodFds;
    type Running = RunningPod;

    async fn start(
        self: Arc<Self>,
        generation: Generation,
        spec: Arc<Spec>,
        mut payload: PodFds,
        captured: bool,
        cancel: CancellationToken,
    ) -> Result<RunningPod, Failure> {
        let Spec { pod, netns } = &*spec;
        let taken_over = payload.taken_over;
        loop {
            // Nobody waits for the answer about a pod that is taken over, so nobody would ask again.
            let again = if taken_over { payload.netns.try_clone().ok() } else { None };
            let failure = match self.bring_up(generation, &spec, payload, &cancel).await {
                Ok(running) => {
                    self.proxy.telemetry.workload_manager().started();
                    tracing::info!(
                        namespace = %pod.namespace, pod = %pod.name, uid = %pod.uid, identity = %running.pod.identity,
                        netns = netns.inode, taken_over, captured_after = ?running.captured_after, "pod enrolled"
                    );
                    return Ok(running);
                }
                Err(failure) => failure,
            };
            self.uncapture(&pod.uid, netns.cookie, captured).await;
            let Some(netns) = again.filter(|_| failure.retry && !cancel.is_cancelled()) else {
                self.unkeep(&pod.uid).await;
                return Err(failure);
            };
            tracing::error!(
                namespace = %pod.namespace, pod = %pod.name, uid = %pod.uid, %failure,
                "the pod cannot be taken over: its connections are refused until it can"
            );
            let _ = tokio::time::timeout(AGAIN, cancel.cancelled()).await;
            payload = PodFds { netns, adopted: None, taken_over };
        }
    }

    async fn stop(self: Arc<Self>, running: RunningPod, close: bool) {
        let RunningPod { pod, proxy, dns, _certificate, .. } = running;
        self.proxy.telemetry.workload_manager().stopped();
        // First no new captures, then neither proxy nor resolver: an app must not find the mesh half gone. A pod that leaves the mesh lives on, and what
        // it has in flight may end by itself; one that is gone has nothing left to wait for.
        self.uncapture(&pod.uid, pod.netns_cookie, close).await;
        self.unkeep(&pod.uid).await;
        proxy.stop(Some(LEAVE)).await;
        dns.stop();
        tracing::info!(namespace = %pod.namespace, pod = %pod.name, uid = %pod.uid, closed = close, "pod released");
    }

    async fn drain(self: Arc<Self>, running: RunningPod, limit: Duration) {
        // Without the keeper's copies the listeners close now: new connections are refused instead of waiting for nobody.
        self.unkeep(&running.pod.uid).await;
        running.proxy.stop(Some(limit)).await;
        running.dns.stop();
    }

    async fn let_go(self: Arc<Self>, uid: ArcStr) {
        self.unkeep(&uid).await;
    }

    async fn release(self: Arc<Self>, cookies: BTreeSet<u64>) {
        tracing::info!(pods = cookies.len(), "releasing pods that an earlier agent had captured and nobody names");
        let kernel = self.kernel.clone();
        let released = blocking(move || {
            for cookie in cookies {
                if let Err(error) = kernel.remove(cookie) {
                    tracing::warn!(cookie, error = %chain(&error), "cannot release a pod that is gone");
                }
            }
            Ok(())
        });
        if let Err(error) = released.await {
            tracing::error!(%error, "release of pods");
        }
    }

    fn counted(&self, counts: Counts) {
        (self.counts)(counts);
    }
}

impl Node {
    /// Looks at `cancel` between the steps and never leaves one half done: a blocking step goes on when its future is dropped, and would
    /// then race with the undoing.
    async fn bring_up(
        &self,
        generation: Generation,
        spec: &Arc<Spec>,
        payload: PodFds,
        cancel: &CancellationToken,
    ) -> Result<RunningPod, Failure> {
        let wanted = || if cancel.is_cancelled() { Err(Failure::passing(Code::Conflict, "cancelled")) } else { Ok(()) };
        wanted()?;
        let asked = Instant::now();
        let taken_over = payload.taken_over;
        let (pod, listeners) = self.prepare(generation, spec, payload).await?;
        mesh_runtime::failpoint::pass("start");
        wanted()?;
        let certificate = CertificateUse::new(&self.certificates, &pod.identity);
        let (listeners, for_kernel) = split(listeners).map_err(failed("duplicate the pod's sockets"))?;
        let (proxy, dns) = self.serve(&pod, listeners).await.map_err(failed("serve the pod's sockets"))?;
        let (kernel, captured, inbound) = (self.kernel.clone(), pod.clone(), proxy.inbound_mode());
        let registry_only = proxy.registry_only();
        blocking(move || {
            let nameservers = &captured.dns.nameservers;
            let spec = PodSpec {
                cookie: captured.netns_cookie,
                netns: captured.netns.as_fd(),
                ips: &captured.ips,
                nameservers: &nameservers[..nameservers.len().min(NAMESERVERS)],
                listeners: &for_kernel.for_kernel(),
                inbound: &inbound,
                rules: &captured.rules,
                // Until that is known it stays as an earlier agent has left it.
                registry_only: registry_only.unwrap_or_else(|| kernel.is_registry_only(captured.netns_cookie)),
            };
            kernel.enrol(&spec).map_err(|error| io::Error::other(chain(&error)))
        })
        .await
        .map_err(failed("capture the pod"))?;
        proxy.kernel_ready();
        let captured_after = asked.elapsed();
        warn_of_more_nameservers(&pod);
        let running = RunningPod { captured_after, pod, proxy, dns, _certificate: certificate };
        if taken_over {
            return Ok(running);
        }
        let identity = &running.pod.identity;
        tokio::select! {
            () = cancel.cancelled() => wanted()?,
            _ = async { tokio::join!(self.certificates.certificate(identity), running.proxy.settled(READY_WAIT)) } => {}
            () = tokio::time::sleep(READY_WAIT) => {
                tracing::warn!(%identity, "no certificate or no configuration yet: the pod's connections will wait for it");
            }
        }
        Ok(running)
    }

    /// Opens or takes over the sockets, has them held, and makes the pod.
    async fn prepare(
        &self,
        generation: Generation,
        spec: &Arc<Spec>,
        payload: PodFds,
    ) -> Result<(Arc<Pod>, Listeners), Failure> {
        let request = &spec.pod;
        let identity = Identity::new(self.trust_domain.clone(), &request.namespace, &request.service_account)
            .map_err(|error| Failure::lasting(Code::Refused, error.to_string()))?;
        let netns = payload.netns;
        let inside = netns.try_clone().map_err(failed("duplicate the netns"))?;
        let sockets =
            NetnsSockets::new(inside, &request.ips, self.mark).map_err(failed("prepare the pod's sockets"))?;
        let (listeners, fresh) = match payload.adopted {
            Some(listeners) => (listeners, false),
            None => (Listeners::open(&sockets).await.map_err(failed("open the pod's sockets"))?, true),
        };
        let pod = Arc::new(Pod {
            uid: request.uid.clone(),
            namespace: request.namespace.clone(),
            name: request.name.clone(),
            service_account: request.service_account.clone(),
            identity,
            ips: request.ips.clone(),
            dns: PodDns {
                nameservers: request.dns.nameservers.clone(),
                searches: request.dns.searches.iter().map(ToString::to_string).collect(),
                ndots: request.dns.ndots,
            },
            rules: CaptureRules::clone(&request.rules),
            netns,
            netns_cookie: spec.netns.cookie,
            netns_inode: spec.netns.inode,
            generation,
            sockets,
        });
        if !fresh {
            return Ok((pod, listeners));
        }
        let (keeper, spec, held) = (self.keeper.clone(), spec.clone(), pod.clone());
        let listeners = blocking(move || {
            let all = listeners.all();
            let kinds: Vec<Kind> = all.iter().map(|(kind, _)| *kind).collect();
            let sockets: Vec<_> = all.iter().map(|(_, fd)| *fd).collect();
            keeper.put(&held.uid, &Record::new(&spec, kinds).encode(), &[held.netns.as_fd()], &sockets)?;
            Ok(listeners)
        });
        Ok((pod, listeners.await.map_err(failed("hand the pod's sockets to the keeper"))?))
    }

    /// Lets go of the pod in the kernel, or has its new connections refused there. Harmless if it is not captured.
    async fn uncapture(&self, uid: &str, cookie: u64, close: bool) {
        let kernel = self.kernel.clone();
        let done = blocking(move || {
            let done = if close { kernel.close(cookie) } else { kernel.remove(cookie) };
            done.map_err(|error| io::Error::other(chain(&error)))
        });
        if let Err(error) = done.await {
            tracing::error!(uid, close, %error, "cannot release the pod");
        }
    }

    /// Has the keeper close what it holds of the pod.
    async fn unkeep(&self, uid: &ArcStr) {
        let (keeper, key) = (self.keeper.clone(), uid.clone());
        if let Err(error) = blocking(move || keeper.remove(&key)).await {
            tracing::error!(%uid, %error, "the keeper still holds the pod's sockets");
        }
    }

    async fn serve(&self, pod: &Arc<Pod>, listeners: Listeners) -> io::Result<(PodProxy, DnsServer)> {
        let (pod, shared, kernel, zone) = (pod.clone(), self.proxy.clone(), self.kernel.clone(), self.zone.clone());
        let serve = async move {
            let Listeners { outbound, plaintext, hbone, dns_udp, dns_tcp } = listeners;
            let dns = DnsServer::start(
                pod.clone(),
                zone,
                dns_udp,
                dns_tcp,
                shared.state.clone(),
                kernel,
                shared.telemetry.clone(),
            )?;
            let proxy = PodProxy::start(pod, ProxyListeners { outbound, plaintext, hbone }, shared)?;
            Ok((proxy, dns))
        };
        self.lanes.home().spawn(serve).await.unwrap_or_else(|error| Err(io::Error::other(error)))
    }
}

/// What resolv.conf honours fits. The rest, which resolvers do not ask either, is not captured; and that must not be a secret.
fn warn_of_more_nameservers(pod: &Pod) {
    if let Some(passed @ [_, ..]) = pod.dns.nameservers.get(NAMESERVERS..) {
        tracing::warn!(
            namespace = %pod.namespace, pod = %pod.name, ?passed,
            "more than {NAMESERVERS} nameservers: queries to these pass by the mesh"
        );
    }
}

/// A second set of descriptors for the kernel call; the first goes to proxy and DNS.
fn split(listeners: Listeners) -> io::Result<(Listeners, Listeners)> {
    let copies = listeners.all().into_iter().map(|(kind, fd)| Ok((kind, fd.try_clone_to_owned()?)));
    let (kinds, fds): (Vec<Kind>, Vec<OwnedFd>) = copies.collect::<io::Result<Vec<_>>>()?.into_iter().unzip();
    let copy = Listeners::adopt(&kinds, fds)?;
    Ok((listeners, copy))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> Failure {
    move |error| Failure::passing(Code::Failed, format!("cannot {what}: {error}"))
}

/// An error with its causes on one line.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
