//! How a pod is really started and stopped on this node: sockets, keeper, proxy, kernel, DNS, certificate.
//!
//! ```text
//!  start   sockets ─> keeper ─> proxy, DNS ─> kernel (captured from here on) ─> certificate, bounded wait
//!  stop    proxy, DNS ─> kernel ─> keeper ─> close
//! ```
//! The proxy accepts before the kernel sends anything to it. A start that fails at any step undoes the steps before it. Kernel and keeper
//! calls block for milliseconds, so they run on blocking threads; the proxy runs on the data plane's runtime.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_client::CertificateManager;
use mesh_core::{Identity, TrustDomain};
use mesh_transport::netns::NetnsSockets;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::check::Checker;
use super::listeners::{Kind, Listeners};
use super::machine::{Counts, Event, Generation, Spec};
use super::manager::{ManagerHandle, Runner};
use super::record::Record;
use super::server::PodFds;
use super::session::{Code, Failure};
use crate::bpf::{Kernel, PodSpec};
use crate::dns::DnsServer;
use crate::keeper::{Held, Keeper};
use crate::pod::{Pod, PodDns};
use crate::proxy::{PodProxy, ProxyListeners, ProxyShared};

/// How long an enrolment waits for the pod's first certificate. Without one the pod is enrolled all the same: its connections wait.
const CERTIFICATE_WAIT: Duration = Duration::from_secs(2);
/// How long connections of a pod that leaves may take to end by themselves.
const LEAVE: Duration = Duration::from_secs(1);
/// The kernel takes at most this many nameservers.
const MAX_NAMESERVERS: usize = 4;

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
    /// The data plane's runtime.
    pub data: Handle,
    /// Trust domain of the node's pods.
    pub trust_domain: TrustDomain,
    /// Told how many pods there are.
    pub counts: Box<dyn Fn(Counts) + Send + Sync>,
    /// How many running pods have an identity; with none left its certificate is no longer renewed. Locked when a pod comes or goes.
    pub identities: Mutex<HashMap<Identity, usize>>,
}

/// A pod that runs.
pub struct RunningPod {
    /// How long it took until the pod was captured.
    captured_after: Duration,
    pod: Arc<Pod>,
    proxy: PodProxy,
    dns: DnsServer,
}

impl Runner for Node {
    type Payload = PodFds;
    type Running = RunningPod;

    async fn start(
        self: Arc<Self>,
        generation: Generation,
        spec: Arc<Spec>,
        payload: PodFds,
        cancel: CancellationToken,
    ) -> Result<RunningPod, Failure> {
        let taken_over = payload.taken_over;
        let undo = Undo { node: self.clone(), uid: spec.pod.uid.to_string(), cookie: spec.netns.cookie };
        match self.clone().bring_up(generation, &spec, payload, &cancel).await {
            Ok(running) => {
                self.proxy.telemetry.workload_manager().started();
                *self.identities.lock().entry(running.pod.identity.clone()).or_default() += 1;
                let Spec { pod, netns } = &*spec;
                tracing::info!(
                    namespace = %pod.namespace, pod = %pod.name, uid = %pod.uid, identity = %running.pod.identity,
                    netns = netns.inode, taken_over, captured_after = ?running.captured_after, "pod enrolled"
                );
                Ok(running)
            }
            Err(failure) => {
                undo.run().await;
                Err(failure)
            }
        }
    }

    async fn stop(self: Arc<Self>, running: RunningPod) {
        let RunningPod { pod, proxy, dns, .. } = running;
        dns.stop();
        self.proxy.telemetry.workload_manager().stopped();
        self.unuse(&pod.identity);
        let undo = Undo { node: self.clone(), uid: pod.uid.to_string(), cookie: pod.netns_cookie };
        // First no new captures, then no proxy: an app must not find the mesh half gone. A pod that leaves the mesh lives on, and what it has
        // in flight may end by itself; one that is gone has nothing left to wait for.
        undo.run().await;
        proxy.stop(Some(LEAVE)).await;
        tracing::info!(namespace = %pod.namespace, pod = %pod.name, uid = %pod.uid, "pod released");
    }

    async fn drain(self: Arc<Self>, running: RunningPod, limit: Duration) {
        // Without the keeper's copies the listeners close now: new connections are refused instead of waiting for nobody.
        let (keeper, uid) = (self.keeper.clone(), running.pod.uid.clone());
        let _ = blocking(move || keeper.remove(&uid)).await;
        running.proxy.stop(Some(limit)).await;
        running.dns.stop();
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
        self: Arc<Self>,
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
        wanted()?;
        self.certificates.prefetch(&pod.identity);
        let (listeners, for_kernel) = split(listeners).map_err(failed("duplicate the pod's sockets"))?;
        let (proxy, dns) = self.serve(&pod, listeners).await.map_err(failed("serve the pod's sockets"))?;
        let (kernel, captured, inbound) = (self.kernel.clone(), pod.clone(), proxy.inbound_mode());
        blocking(move || {
            let nameservers = &captured.dns.nameservers;
            let spec = PodSpec {
                cookie: captured.netns_cookie,
                netns: captured.netns.as_fd(),
                ips: &captured.ips,
                nameservers: &nameservers[..nameservers.len().min(MAX_NAMESERVERS)],
                listeners: &for_kernel.for_kernel(),
                inbound: &inbound,
            };
            kernel.enrol(&spec).map_err(|error| io::Error::other(chain(&error)))
        })
        .await
        .map_err(failed("capture the pod"))?;
        proxy.kernel_ready();
        let captured_after = asked.elapsed();
        if taken_over {
            return Ok(RunningPod { captured_after, pod, proxy, dns });
        }
        tokio::select! {
            () = cancel.cancelled() => wanted()?,
            _ = self.certificates.certificate(&pod.identity) => {}
            () = tokio::time::sleep(CERTIFICATE_WAIT) => {
                tracing::warn!(identity = %pod.identity, "no certificate yet: the pod's connections will wait for it");
            }
        }
        Ok(RunningPod { captured_after, pod, proxy, dns })
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
        let sockets = NetnsSockets::new(inside, &request.ips).map_err(failed("prepare the pod's sockets"))?;
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

    fn unuse(&self, identity: &Identity) {
        let mut identities = self.identities.lock();
        if let Some(count) = identities.get_mut(identity) {
            *count -= 1;
            if *count == 0 {
                identities.remove(identity);
                self.certificates.forget(identity);
            }
        }
    }

    async fn serve(&self, pod: &Arc<Pod>, listeners: Listeners) -> io::Result<(PodProxy, DnsServer)> {
        let (pod, shared, kernel) = (pod.clone(), self.proxy.clone(), self.kernel.clone());
        let serve = async move {
            let Listeners { outbound, plaintext, hbone, dns_udp, dns_tcp } = listeners;
            let dns = DnsServer::start(
                pod.clone(),
                dns_udp,
                dns_tcp,
                shared.state.clone(),
                kernel,
                shared.telemetry.clone(),
            )?;
            let proxy = PodProxy::start(pod, ProxyListeners { outbound, plaintext, hbone }, shared)?;
            Ok((proxy, dns))
        };
        self.data.spawn(serve).await.unwrap_or_else(|error| Err(io::Error::other(error)))
    }
}

/// Tells the manager about every pod that the keeper held; what cannot be taken over is given up, and its pod is captured anew when a client
/// names it. Blocking.
pub fn held_pods(keeper: &Keeper, checker: &Checker) -> io::Result<Vec<(Spec, PodFds)>> {
    let mut pods = Vec::new();
    for (key, held) in keeper.list()? {
        match take_over(held, checker) {
            Ok(pod) => pods.push(pod),
            Err(error) => {
                tracing::warn!(uid = key, error, "cannot take over what the keeper held");
                keeper.remove(&key)?;
            }
        }
    }
    Ok(pods)
}

/// Hands the manager what an earlier worker left: the pods that the keeper held, and what the kernel still has captured besides.
pub async fn adopt(manager: &ManagerHandle<PodFds>, pods: Vec<(Spec, PodFds)>, captured: Vec<u64>) {
    for (spec, payload) in pods {
        manager.tell(Event::Adopt { spec, payload }).await;
    }
    manager.tell(Event::Captured { cookies: captured }).await;
}

fn take_over(held: Held, checker: &Checker) -> Result<(Spec, PodFds), String> {
    let (spec, kinds) = Record::decode(&held.meta)?;
    let mut lasting = held.lasting;
    let netns: OwnedFd = lasting.pop().ok_or("no network namespace")?;
    let found = checker.check_netns(netns.as_fd(), &spec.pod.ips).map_err(|failure| failure.message)?;
    if found != spec.netns {
        return Err("the network namespace is another one".to_owned());
    }
    // Sockets that perished are opened afresh.
    let adopted = match held.perishable.is_empty() {
        true => None,
        false => Some(Listeners::adopt(&kinds, held.perishable).map_err(|error| error.to_string())?),
    };
    Ok((spec, PodFds { netns, adopted, taken_over: true }))
}

/// What must be undone when a start fails and when a pod goes. Each step is harmless if there is nothing to undo.
struct Undo {
    node: Arc<Node>,
    uid: String,
    cookie: u64,
}

impl Undo {
    async fn run(self) {
        let undone = blocking(move || {
            if let Err(error) = self.node.kernel.remove(self.cookie) {
                tracing::error!(uid = self.uid, error = %chain(&error), "cannot release the pod");
            }
            self.node.keeper.remove(&self.uid)
        });
        if let Err(error) = undone.await {
            tracing::error!(%error, "the keeper still holds the pod's sockets");
        }
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
