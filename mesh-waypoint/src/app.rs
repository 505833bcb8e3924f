//! Puts the waypoint together: starts the parts in order, and stops them in order.
//!
//! ```text
//! log ─ lanes ─ operator's servers ─ state, control stream, certificate ─ (both there) ─ tunnels ─ ready ─ SIGTERM ─ drain
//! ```
//! What requests need runs on the lanes; the control stream, the certificate and the operator's servers on a thread of their own.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mesh_client::subscription::Own as OwnResource;
use mesh_client::{CertificateManager, ClientMetrics, ControlConfig, Sink};
use mesh_core::{Change, Identity, Store};
use mesh_runtime::lanes::Lanes;
use mesh_runtime::metrics::{self, Registry};
use mesh_runtime::signal::Shutdown;
use mesh_runtime::watchdog::{self, Beat};
use mesh_runtime::{Drain, DrainToken, Readiness, http, logging, operator, task};
use mesh_transport::socket::AcceptLoop;
use mesh_transport::tls::IdentityCertificate;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

use crate::admin;
use crate::collector;
use crate::config::{Config, EXIT_CONFIG, EXIT_SYSTEM, EXIT_UNAVAILABLE};
use crate::downstream;
use crate::edge::ports;
use crate::engine::Engine;
use crate::inbound;
use crate::shared::{Certificates, Shared};
use crate::shown::PlacesShown;
use crate::state::State;
use crate::telemetry::{DatagramsShown, Exposition, Losses};

/// How long is waited for the operator's servers at the end.
const SERVERS: Duration = Duration::from_millis(100);

/// Why the waypoint cannot run: one line and an exit status.
#[derive(Debug)]
pub struct Refusal {
    status: i32,
    line: String,
}

impl Refusal {
    fn of(status: i32, what: &str, error: impl std::fmt::Display) -> Self {
        Self { status, line: format!("{what}: {error}") }
    }

    fn system<E: std::fmt::Display>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::of(EXIT_SYSTEM, what, error)
    }
}

/// The certificate of one identity.
struct Own {
    manager: CertificateManager,
    identity: Identity,
}

impl Certificates for Own {
    fn current(&self) -> Option<Arc<IdentityCertificate>> {
        self.manager.current(&self.identity)
    }
}

/// Runs until told to stop; returns the exit status.
pub fn main(config: &Config) -> i32 {
    run(config).unwrap_or_else(|refusal| {
        // The status counts, whoever reads.
        let _ = writeln!(std::io::stderr(), "mesh-waypoint: {}", refusal.line);
        refusal.status
    })
}

fn run(config: &Config) -> Result<i32, Refusal> {
    logging::init(config.log_format, config.log_level.clone()).map_err(Refusal::system("log"))?;
    if let Err(error) = mesh_runtime::fds::raise_limit() {
        tracing::warn!(%error, "cannot raise the limit of file descriptors");
    }
    let (lanes, running) = Lanes::start("data", config.lanes()).map_err(Refusal::system("threads"))?;
    let control = tokio::runtime::Builder::new_current_thread()
        .thread_name("control")
        .enable_all()
        .build()
        .map_err(Refusal::system("control runtime"))?;
    let names = std::iter::once("control".to_owned()).chain((0..).map(|lane| format!("data-{lane}")));
    let beats = std::iter::once(Beat::of(control.handle())).chain(lanes.beats().cloned());
    watchdog::watch(names.zip(beats).collect());
    let status = control.block_on(serve(config, lanes));
    running.stop();
    control.shutdown_timeout(Duration::from_millis(200));
    status
}

async fn serve(config: &Config, lanes: Lanes) -> Result<i32, Refusal> {
    let mut shutdown = Shutdown::install().map_err(Refusal::system("signal handlers"))?;
    let own = config.own().map_err(|error| Refusal::of(EXIT_CONFIG, "identity", error))?;
    let (servers, drain) = (Drain::new(), Drain::new());
    let readiness = Readiness::new();
    let (synced, certified) = (readiness.task("configuration"), readiness.task("certificate"));
    let listening = readiness.task("tunnels");
    let readiness_port = bind(config.readiness).await?;
    task::spawn_vital(
        "readiness server",
        operator::serve_readiness(readiness_port, readiness.clone(), servers.token()),
    );

    let mut registry = Registry::default();
    metrics::register_process(&mut registry);
    let client_metrics = ClientMetrics::new(&mut registry);
    let control = Arc::new(config.control());
    let certificates = CertificateManager::new(control.clone(), client_metrics.clone())
        .map_err(|error| Refusal::of(EXIT_CONFIG, "certificate client", error))?;
    certificates.prefetch(&own.identity);
    let state = Arc::new(State::new());
    let identity = own.identity.clone();
    tracing::info!(service = %own.service, %identity, "waypoint started");
    let source = Arc::new(Own { manager: certificates.clone(), identity: identity.clone() });
    let engine = Engine::new(Shared::new(state, own, config.settings(), source), lanes);
    engine.keep_tidy(&drain.token());
    let shared = Arc::clone(engine.shared());
    let complete = subscribe(control, Arc::clone(&shared), client_metrics);
    task::spawn("collectors", collector::run(Arc::clone(&shared), servers.token()));
    task::spawn("unused numbers", engine.clone().expire(drain.token()));
    let meters = engine.lanes().iter().map(|lane| lane.meters.clone()).collect();
    registry.register_collector(Box::new(Exposition(meters)));
    registry.register_collector(Box::new(Losses(Arc::clone(&shared.telemetry))));
    registry.register_collector(Box::new(PlacesShown(Arc::clone(&shared))));
    registry.register_collector(Box::new(DatagramsShown(Arc::clone(&shared.datagrams))));
    registry.register_collector(Box::new(Arc::clone(&shared.paths)));
    let metrics_port = bind(config.metrics).await?;
    task::spawn_vital("metrics server", operator::serve_metrics(metrics_port, registry, servers.token()));

    if let Some(path) = &config.admin {
        listen_for_admin(path, &shared, servers.token());
    }

    let start = async {
        certificates.certificate(&identity).await;
        certified.met();
        let mut complete = complete;
        // The stream that tells is vital: it ends with the process.
        let _ = complete.wait_for(|complete| *complete).await;
        synced.met();
    };
    tokio::select! {
        () = start => {}
        signal = shutdown.requested() => {
            tracing::info!(signal, "stopping before anything was served");
            return Ok(0);
        }
    }
    let tunnels = match bind(config.hbone).await {
        // Both families are the default; a node may have one.
        Err(_) if config.hbone.ip() == IpAddr::from(Ipv6Addr::UNSPECIFIED) => {
            bind(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), config.hbone.port())).await?
        }
        bound => bound?,
    };
    let tunnels = AcceptLoop::new(tunnels).map_err(Refusal::system("tunnel port"))?;
    let own = [config.hbone, config.metrics, config.readiness].map(|address| address.port()).to_vec();
    task::spawn_vital("ports of a gateway", ports::keep(engine.clone(), config.listen, own, drain.token()));
    let token = drain.token();
    task::spawn_vital("tunnel port", async move {
        if let Err(error) = inbound::accept(engine, tunnels, token).await {
            tracing::error!(%error, "the tunnel port is lost");
        }
    });
    listening.met();
    tracing::info!(address = %config.hbone, "tunnels are taken");

    let signal = shutdown.requested().await;
    tracing::info!(signal, "stopping");
    let _draining = readiness.task("draining");
    tokio::select! {
        drained = drain.drain(config.drain) => tracing::info!(?drained, "all requests ended or were cut"),
        signal = shutdown.requested() => tracing::warn!(signal, "second signal: stopping now"),
    }
    // The last spans may not go; the last lines do.
    shared.telemetry.writer.finish();
    servers.drain(SERVERS).await;
    Ok(0)
}

/// A place that takes no socket costs what would be asked over it, and no request.
fn listen_for_admin(path: &Path, shared: &Arc<Shared>, drain: DrainToken) {
    match http::listen_unix(path) {
        Ok(socket) => drop(task::spawn("admin server", admin::serve(socket, Arc::clone(shared), drain))),
        Err(error) => tracing::warn!(path = %path.display(), %error, "no admin socket: nobody can tap this proxy"),
    }
}

/// Puts in force what arrives.
struct Applied {
    store: Store,
    shared: Arc<Shared>,
    complete: watch::Sender<bool>,
}

impl Sink for Applied {
    fn apply(&mut self, changes: Vec<Change>) -> Result<(), String> {
        let snapshot = self.store.apply(changes).snapshot;
        let synced = snapshot.is_synced();
        downstream::follow(&self.shared, snapshot);
        self.complete.send_if_modified(|known| synced && !std::mem::replace(known, true));
        Ok(())
    }

    fn apply_own(&mut self, own: OwnResource) -> Result<(), String> {
        let state = &self.shared.state;
        match own {
            OwnResource::Security(security) => state.set_security(security),
            // Where nothing is said, the command line counts.
            OwnResource::Telemetry(Some(scopes)) => self.shared.set_telemetry(&scopes),
            OwnResource::Telemetry(None) => self.shared.set_telemetry(&self.shared.settings.telemetry),
            OwnResource::Clusters(clusters) => state.set_clusters(clusters.unwrap_or_default()),
            OwnResource::Labels(changes) => state.set_labels(changes),
            OwnResource::Routes(table) => state.set_table(table.unwrap_or_default()),
            OwnResource::Certificates(certificates) => state.set_certificates(certificates.unwrap_or_default()),
            OwnResource::Listeners(listeners) => state.set_listeners(listeners.unwrap_or_default()),
        }
        Ok(())
    }
}

/// Follows the control plane. What is given back becomes true when its first state is complete.
fn subscribe(control: Arc<ControlConfig>, shared: Arc<Shared>, metrics: ClientMetrics) -> watch::Receiver<bool> {
    let (tell, complete) = watch::channel(false);
    let sink = Applied { store: Store::new(), shared, complete: tell };
    // Nobody asks for single addresses: what is bound to a waypoint is told to it.
    let (never, wanted) = mpsc::channel(1);
    task::spawn_vital("control stream", async move {
        let _never = never;
        match mesh_client::run(control, sink, wanted, metrics).await {}
    });
    complete
}

async fn bind(address: SocketAddr) -> Result<TcpListener, Refusal> {
    let refused = |error| Refusal::of(EXIT_UNAVAILABLE, &format!("cannot listen on {address}"), error);
    TcpListener::bind(address).await.map_err(refused)
}
