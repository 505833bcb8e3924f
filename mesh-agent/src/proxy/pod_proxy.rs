//! The proxy of one pod: its accept loops, and how they end. Started and stopped by enrolment.
//!
//! ```text
//! start ── accept loops ──> one task per connection or tunnel
//! stop(Some(d)): no new connections, GOAWAY to the peers, wait up to d, cut the rest
//! stop(None):    cut everything now (the pod is gone)
//! ```

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_transport::socket::{self, AcceptLoop, Armed};
use socket2::SockRef;
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;

use super::accept;
use super::connections::{Connections, CutReason};
use super::context::PodContext;
use super::shared::ProxyShared;
use super::{inbound, outbound, plaintext};
use crate::bpf::InboundMode;
use crate::pod::Pod;

/// How long tasks that were told to end may take to do so.
const LET_GO: Duration = Duration::from_secs(1);

/// The pod's TCP listeners, created or adopted by enrolment; one per address family and port.
#[derive(Debug, Default)]
pub struct ProxyListeners {
    /// Captured outbound connections.
    pub outbound: Vec<std::net::TcpListener>,
    /// Plaintext that was steered to the agent.
    pub plaintext: Vec<std::net::TcpListener>,
    /// Tunnels.
    pub hbone: Vec<std::net::TcpListener>,
}

/// A running proxy. Dropping it without [`PodProxy::stop`] cuts everything.
pub struct PodProxy {
    context: Arc<PodContext>,
    tasks: TaskTracker,
}

impl PodProxy {
    /// Starts serving `pod`. Fails only if a listener cannot be registered with the runtime; then nothing is served.
    pub fn start(pod: Arc<Pod>, listeners: ProxyListeners, shared: Arc<ProxyShared>) -> io::Result<PodProxy> {
        let proxy = PodProxy { context: PodContext::new(pod, shared.clone()), tasks: TaskTracker::new() };
        let outbound = registered(listeners.outbound, None)?;
        let plaintext = registered(listeners.plaintext, shared.config.keepalive)?;
        // Tunnels have their own PING.
        let hbone = registered(listeners.hbone, None)?;
        // Known to the recheck task before the first connection: no change may slip between.
        shared.add(&proxy.context);
        proxy.context.refresh(&shared.state.snapshot(), |_| false);
        outbound.into_iter().for_each(|listener| proxy.accept("outbound", listener, outbound::serve));
        plaintext.into_iter().for_each(|listener| proxy.accept("plaintext", listener, plaintext::serve));
        hbone.into_iter().for_each(|listener| proxy.accept("tunnel", listener, inbound::serve));
        Ok(proxy)
    }

    /// What the kernel should refuse by itself, for the enrolment of the pod with the kernel.
    pub fn inbound_mode(&self) -> InboundMode {
        self.context.inbound_mode(&self.context.shared.state.snapshot())
    }

    /// To be called once the kernel knows the pod: from then on its inbound mode is kept in step, including what changed since
    /// [`PodProxy::inbound_mode`] was asked. What was written before, enrolment has replaced.
    pub fn kernel_ready(&self) -> bool {
        self.context.forget_inbound();
        self.context.sync_outbound(&self.context.shared.state.snapshot()) & self.context.sync_inbound()
    }

    /// Whether the pod may reach only what the registry knows, `None` while that is not known. Of one that may not the kernel knows the registry now.
    pub fn registry_only(&self) -> Option<bool> {
        let shared = &self.context.shared;
        let snapshot = shared.state.snapshot();
        let registry_only = self.context.is_registry_only(&snapshot);
        if registry_only == Some(true) {
            shared.known.follow(&*shared.interception, &snapshot, &shared.config.network, None, || true);
        }
        registry_only
    }

    /// Waits for the configuration, at most so long, and has the kernel told what the pod may reach.
    pub async fn settled(&self, limit: Duration) {
        if self.context.shared.state.synced_within(limit).await {
            // The registry goes first.
            self.registry_only();
            self.context.sync_outbound(&self.context.shared.state.snapshot());
        }
    }

    #[cfg(test)]
    pub(super) fn context(&self) -> &Arc<PodContext> {
        &self.context
    }

    /// The pod's live connections.
    pub fn connections(&self) -> &Arc<Connections> {
        &self.context.connections
    }

    /// Stops. With `drain`, live connections may take that long to end by themselves; without, the pod is gone and they are cut now.
    pub async fn stop(self, drain: Option<Duration>) {
        self.context.stop.cancel();
        if let Some(limit) = drain {
            self.context.drain.cancel();
            self.tasks.close();
            let ended = async {
                self.context.connections.emptied().await;
                // The last bytes and our goodbye are still with the tunnels, which end by themselves now, over a slow link not at once.
                self.tasks.wait().await;
            };
            let _ = tokio::time::timeout(limit, ended).await;
        }
        self.context.cut(if drain.is_some() { CutReason::DrainDeadline } else { CutReason::PodRemoved });
        self.tasks.close();
        // Connections inside tunnels have tasks of their own; each has told its telemetry when it has left the registry.
        let ended = async {
            self.tasks.wait().await;
            self.context.connections.emptied().await;
        };
        if tokio::time::timeout(LET_GO, ended).await.is_err() {
            tracing::warn!(pod = %self.context.pod.name, left = self.tasks.len(), "proxy tasks did not end in time");
        }
    }

    fn accept<S, F>(&self, name: &'static str, listener: AcceptLoop, serve: S)
    where
        S: Fn(Arc<PodContext>, Armed, SocketAddr) -> F + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let (context, tasks, stop) = (self.context.clone(), self.tasks.clone(), self.context.stop.clone());
        let lanes = self.context.shared.lanes.clone();
        let serve = Arc::new(serve);
        let loop_ = accept::run(listener, stop, move |stream, peer| {
            let Some(lane) = lanes.elsewhere() else {
                mesh_runtime::task::spawn(name, tasks.track_future(serve(context.clone(), stream, peer)));
                return;
            };
            let (serve, context) = (serve.clone(), context.clone());
            let moved = async move {
                match stream.moved() {
                    Ok(stream) => serve(context, stream, peer).await,
                    Err(error) => tracing::error!(%error, %peer, "cannot move a connection to another thread"),
                }
            };
            mesh_runtime::task::spawn_on(lane, name, tasks.track_future(moved));
        });
        mesh_runtime::task::spawn_vital(name, self.tasks.track_future(loop_));
    }
}

impl Drop for PodProxy {
    /// Runs after [`PodProxy::stop`] too, where it finds nothing left.
    fn drop(&mut self) {
        self.context.cut(CutReason::PodRemoved);
        self.context.shared.remove(&self.context);
        self.context.shared.pool.purge_source(&self.context.pod.uid);
    }
}

/// Options are set on the listener once: accepted sockets inherit them, and a connection costs no call for them.
fn registered(listeners: Vec<std::net::TcpListener>, keepalive: Option<Duration>) -> io::Result<Vec<AcceptLoop>> {
    listeners
        .into_iter()
        .map(|listener| {
            listener.set_nonblocking(true)?;
            SockRef::from(&listener).set_tcp_nodelay(true)?;
            if let Some(interval) = keepalive {
                socket::keep_alive(&listener, interval)?;
            }
            AcceptLoop::new(TcpListener::from_std(listener)?)
        })
        .collect()
}
