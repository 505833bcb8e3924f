//! The worker: builds every part, in the order that their invariants ask for, and stops them.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_client::{CertificateManager, ClientMetrics, ControlConfig};
use mesh_core::Change;
use mesh_runtime::lanes::Lanes;
use mesh_runtime::logging::LogControl;
use mesh_runtime::metrics::Registry;
use mesh_runtime::signal::Shutdown;
use mesh_runtime::watchdog::{self, Beat};
use mesh_runtime::{Drain, Readiness, operator, task};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Handle};
use tokio::sync::mpsc;

use super::crl::CrlFile;
use super::handover::{Parts, Successor, once_free};
use super::plugin::Plugin;
use super::{EXIT_CONFIG, EXIT_SYSTEM, EXIT_UNAVAILABLE, Refusal, house, log, raise_fd_limit};
use crate::admin::{self, Admin, Order};
use crate::bpf::{Kernel, KernelConfig};
use crate::cni;
use crate::config::Config;
use crate::dns::DnsZone;
use crate::enrol::adopt;
use crate::enrol::check::Checker;
use crate::enrol::kube::{self, Enroller, Finder, Follower, Probes};
use crate::enrol::machine::Counts;
use crate::enrol::node::Node;
use crate::enrol::server::PodFds;
use crate::enrol::{EnrolServer, Manager, ManagerHandle, zds};
use crate::keeper::{Keeper, lock};
use crate::proxy::{ProxyConfig, ProxyShared};
use crate::state::{StateHandle, StateWriter};
use crate::telemetry::{Telemetry, TelemetryConfig};

/// By this mark the rules that istio-cni makes in pods know the proxy's own packets, which they leave alone.
const ISTIO_MARK: u32 = 0x539;
/// How long the worker before this one may go on serving while this one has no configuration.
const FOLLOW: Duration = Duration::from_secs(5);
/// How often a pending readiness is looked at again by those who log it.
const SYNC_NOTICE: Duration = Duration::from_secs(10);

/// Runs the agent until it is told to stop.
pub fn run(config: Config) -> Result<i32, Refusal> {
    // First of all: no other descriptor may take the number that the keeper gave us.
    let keeper = Keeper::from_environment().map_err(Refusal::system("keeper's socket"))?;
    let log = log(&config)?;
    tracing::info!("effective configuration: {config}");
    // Without a keeper this process is its own: same lock, same cgroup.
    let _lock = match keeper.is_present() {
        true => None,
        false => {
            tracing::warn!("no keeper: connections are refused while this process is replaced");
            let lock = lock::acquire(&config.run_dir)?;
            lock::join_cgroup(&config.agent_cgroup)?;
            Some(lock)
        }
    };
    raise_fd_limit();
    if mesh_runtime::fds::limit() < 2 * mesh_runtime::fds::RESERVE {
        let line = format!("the limit of file descriptors must be at least {}", 2 * mesh_runtime::fds::RESERVE);
        return Err(Refusal { status: EXIT_CONFIG, line });
    }
    let system = Refusal::system;
    let (lanes, running) = Lanes::start("data", config.workers).map_err(system("threads of the data plane"))?;
    let control =
        Builder::new_current_thread().thread_name("control").enable_all().build().map_err(system("control runtime"))?;
    let names = || std::iter::once("control".to_owned()).chain((0..).map(|lane| format!("data-{lane}")));
    let handles = std::iter::once(control.handle()).chain(lanes.handles()).cloned();
    let beats = std::iter::once(Beat::of(control.handle())).chain(lanes.beats().cloned());
    watchdog::watch(names().zip(beats).collect());
    let runtimes: Vec<_> = names().zip(handles).collect();
    let status = control.block_on(serve(config, log, Arc::new(keeper), lanes, runtimes));
    // Tasks that are left have been told to end; a blocking call that hangs must not keep the process.
    running.stop();
    control.shutdown_timeout(Duration::from_millis(200));
    status
}

async fn serve(
    config: Config,
    log: LogControl,
    keeper: Arc<Keeper>,
    lanes: Lanes,
    runtimes: Vec<(String, Handle)>,
) -> Result<i32, Refusal> {
    let mut shutdown = Shutdown::install().map_err(Refusal::system("signal handlers"))?;
    let mut successor = Successor::expect(config.standby.is_some()).map_err(Refusal::system("signal handlers"))?;
    let readiness = Readiness::new();
    let (booting, synced) = (readiness.task("start"), readiness.task("configuration"));
    let servers = Drain::new();
    let readiness_port = bind(config.readiness, &config).await?;
    let metrics_port = bind(config.metrics, &config).await?;
    task::spawn_vital(
        "readiness server",
        operator::serve_readiness(readiness_port, readiness.clone(), servers.token()),
    );

    let crl = config.crl.as_deref().map(CrlFile::open).transpose()?;
    let kernel = start_kernel(&config).await?;
    let mut registry = Registry::default();
    mesh_runtime::metrics::register_process(&mut registry);
    let telemetry_config = TelemetryConfig { log_format: config.log_format, ..TelemetryConfig::default() };
    let telemetry = Telemetry::new(&mut registry, &telemetry_config).map_err(Refusal::system("telemetry"))?;
    telemetry.process().watch_runtimes(runtimes);
    let client_metrics = ClientMetrics::new(&mut registry);

    let control = Arc::new(control_config(&config));
    let (state, mut writer, wanted) = StateHandle::new();
    if config.mesh_ranges.is_empty() {
        tracing::warn!(
            "no --mesh-ranges: an unknown address of the cluster is taken for the outside and reached in plaintext"
        );
    }
    writer.apply(vec![Change::Ranges(config.mesh_ranges.clone())]);
    let certificates = CertificateManager::new(control.clone(), client_metrics.clone())
        .map_err(|error| Refusal::new(EXIT_CONFIG, "certificate client", &error))?;
    subscribe(control, writer, wanted, client_metrics);
    let proxy = {
        let proxy_config = ProxyConfig {
            node: config.node.as_str().into(),
            network: config.control.network.as_str().into(),
            redirected: config.zds.is_some(),
            sidecars: config.sidecars,
            revocations: crl.as_ref().map(|crl| crl.revocations().clone()),
            ..ProxyConfig::default()
        };
        let certificates = Arc::new(certificates.clone());
        ProxyShared::new(
            proxy_config,
            state.clone(),
            certificates,
            kernel.clone(),
            telemetry.clone(),
            lanes.clone(),
            &mut registry,
        )
    };
    house::watch_health(&telemetry, &kernel, &proxy, &certificates);
    if let Some(crl) = crl {
        house::watch_crl(&telemetry, &crl);
        task::spawn_vital("revoked certificates", crl.follow());
    }
    let leading = Drain::new();
    let network = config.control.network.as_str().into();
    house::keep(&lanes, &kernel, &telemetry, &state, network, leading.token());

    let node = Node {
        kernel: kernel.clone(),
        keeper: keeper.clone(),
        proxy: proxy.clone(),
        certificates: certificates.clone(),
        lanes,
        zone: DnsZone {
            cluster_domain: config.cluster_domain.to_ascii_lowercase().trim_end_matches('.').into(),
            network: config.control.network.as_str().into(),
        },
        trust_domain: config.trust_domain.clone(),
        mark: config.zds.is_some().then_some(ISTIO_MARK),
        counts: count_pods(&mut registry, &telemetry),
    };
    let manager = Manager::spawn(Arc::new(node));
    let plugin = Plugin::of(&config, &readiness, &mut registry);
    task::spawn_vital("metrics server", operator::serve_metrics(metrics_port, registry, servers.token()));
    let (orders, mut ordered) = mpsc::channel(1);
    let (kube, kube_asked) = kube::handle();
    let zds = config.zds.as_ref().map(|_| Arc::new(Mutex::new(zds::View::default())));
    let admin = Admin {
        config: config
            .effective()
            .into_iter()
            .map(|(name, value)| (name.to_owned(), serde_json::Value::from(value)))
            .collect(),
        node: config.node.clone(),
        telemetry: telemetry.clone(),
        state: state.clone(),
        certificates: certificates.clone(),
        proxy,
        kernel: kernel.clone(),
        manager: manager.clone(),
        kube: kube.clone(),
        zds: zds.clone(),
        cni: plugin.as_ref().map(Plugin::handle),
        log,
        readiness: readiness.clone(),
        orders,
    };
    let admin_socket = admin::listen(&config.run_dir).map_err(Refusal::system("admin socket"))?;
    task::spawn_vital("admin server", admin::serve(admin_socket, Arc::new(admin), servers.token()));

    let checker = Checker::new(&config.node, &config.pods_cgroup, &config.agent_cgroup)
        .map_err(Refusal::system("checks of pods"))?;
    let checker = Arc::new(checker);
    // The one before serves until the pods are adopted, and its keeper waits for that (`keeper::succession`).
    if keeper.follows() && !state.synced_within(FOLLOW).await {
        tracing::warn!("no configuration yet: connections wait for it here rather than where they are served");
    }
    // Before clients may speak: what they say about pods is compared with what runs.
    let (listing, looking) = (keeper.clone(), checker.clone());
    let captured = kernel.enrolled();
    let held = tokio::task::spawn_blocking(move || adopt::held_pods(&listing, &looking)).await;
    let held = held.unwrap_or_else(|error| Err(std::io::Error::other(error))).map_err(Refusal::system("keeper"))?;
    if !held.is_empty() {
        tracing::info!(pods = held.len(), "taking over the pods of an earlier worker");
    }
    adopt::adopt(&manager, held, captured).await;
    let enrolment = Drain::new();
    let kept = plugin.and_then(|plugin| plugin.kept(enrolment.token()));
    match &config.kube {
        Some(source) => {
            let follower = Follower { kernel: kernel.clone(), proc: config.proc.clone(), port: config.kubelet_port };
            let probes = follower.spawn(enrolment.token());
            let enroller = enroller(source, &config, checker.clone(), manager.clone(), probes).await?;
            if let Some(kept) = kept {
                let means = cni::Means {
                    kube,
                    finder: enroller.finder.clone(),
                    checker: checker.clone(),
                    manager: manager.clone(),
                    certificates,
                    trust_domain: config.trust_domain.clone(),
                };
                kept.start(&config, means, state.clone(), enrolment.token())?;
            }
            enroller.spawn(kube_asked, enrolment.token());
        }
        None => {
            // The admin socket is told so.
            drop(kube_asked);
            // Whose probes passed while an earlier agent followed the kubelet, nobody follows now.
            kernel.leave_kubelet()?;
        }
    }
    if let (Some(socket), Some(view)) = (&config.zds, zds) {
        let places = zds::Places {
            finder: finder(&config),
            checker: checker.clone(),
            cluster_domain: config.cluster_domain.as_str().into(),
            resolv_conf: "/etc/resolv.conf".into(),
        };
        let unheard = readiness.task("pods from istio-cni");
        zds::ZdsClient::new(socket.clone(), places, manager.clone(), view, unheard).spawn(enrolment.token());
    }
    let server = EnrolServer::bind(&config.run_dir, checker).map_err(Refusal::system("enrolment socket"))?;
    task::spawn_vital("enrolment server", server.run(manager.clone(), enrolment.token()));
    booting.met();
    task::spawn("readiness of the configuration", async move {
        while !state.synced_within(SYNC_NOTICE).await {
            tracing::warn!("no configuration yet: connections of pods are held, then refused");
        }
        tracing::info!("configuration is complete");
        synced.met();
    });
    tracing::info!(node = config.node, instance = config.instance, "agent started");

    let parts = Parts { enrolment, leading, servers, manager, kernel, keeper };
    let mut limit = config.drain;
    loop {
        tokio::select! {
            signal = shutdown.requested() => {
                tracing::info!(signal, "stopping");
                break;
            }
            Some(order) = ordered.recv() => {
                if matches!(order, Order::Quit) {
                    limit = Duration::ZERO;
                }
                break;
            }
            () = successor.is_there() => {
                parts.give_way().await;
                limit = config.handover;
            }
        }
    }
    let _draining = readiness.task("draining");
    parts.enrolment.cut();
    tokio::select! {
        () = parts.manager.drain(limit) => tracing::info!("all connections ended or were cut"),
        signal = shutdown.requested() => tracing::warn!(signal, "second signal: stopping now"),
    }
    parts.servers.drain(Duration::from_millis(100)).await;
    Ok(0)
}

async fn bind(address: std::net::SocketAddr, config: &Config) -> Result<TcpListener, Refusal> {
    // A worker that was just killed leaves connections in TIME_WAIT; tokio's bind sets SO_REUSEADDR, so they do not matter.
    let attempt = || async move {
        TcpListener::bind(address)
            .await
            .map_err(|error| Refusal::new(EXIT_UNAVAILABLE, &format!("cannot listen on {address}"), &error))
    };
    once_free(config, attempt).await
}

async fn enroller(
    source: &str,
    config: &Config,
    checker: Arc<Checker>,
    manager: ManagerHandle<PodFds>,
    probes: Arc<Mutex<Probes>>,
) -> Result<Enroller, Refusal> {
    let failed = |line| Refusal { status: EXIT_CONFIG, line: format!("--kube: {line}") };
    let client = kube::connect(source).await.map_err(failed)?;
    Ok(Enroller { client, finder: finder(config), checker, manager, probes })
}

fn finder(config: &Config) -> Finder {
    Finder {
        proc: config.proc.clone(),
        netns: config.netns.clone(),
        pods_cgroup: config.pods_cgroup.clone(),
        node: config.node.clone(),
    }
}

async fn start_kernel(config: &Config) -> Result<Arc<Kernel>, Refusal> {
    let kernel_config = KernelConfig {
        bpffs: config.bpffs.clone(),
        deny_udp: config.deny_udp,
        redirected: config.zds.is_some(),
        ..KernelConfig::new(config.instance.clone(), config.pods_cgroup.clone(), config.agent_cgroup.clone())
    };
    let attempt = || async {
        let kernel_config = kernel_config.clone();
        let started = tokio::task::spawn_blocking(move || Kernel::start(kernel_config)).await;
        Ok(started.map_err(|error| Refusal::new(EXIT_SYSTEM, "kernel", &error))??)
    };
    let kernel = once_free(config, attempt).await?;
    for missing in kernel.degradations() {
        tracing::warn!(missing, "the kernel lacks a feature");
    }
    kernel.heartbeat();
    Ok(Arc::new(kernel))
}

fn control_config(config: &Config) -> ControlConfig {
    let control = &config.control;
    let defaults = ControlConfig::new(
        control.address.clone(),
        control.root.clone(),
        Some(control.token.clone()),
        config.node.clone(),
    );
    let server_name =
        if control.server_name.is_empty() { defaults.server_name.clone() } else { control.server_name.clone() };
    ControlConfig { server_name, cluster_id: control.cluster_id.clone(), network: control.network.clone(), ..defaults }
}

fn subscribe(
    control: Arc<ControlConfig>,
    mut writer: StateWriter,
    wanted: mpsc::Receiver<IpAddr>,
    metrics: ClientMetrics,
) {
    let sink = move |changes| {
        writer.apply(changes);
        Ok(())
    };
    task::spawn_vital("control stream", async move { match mesh_client::run(control, sink, wanted, metrics).await {} });
}

/// Pods in the metrics: how many are on their way, and how many nobody has claimed. Those that run are counted where they start and stop.
fn count_pods(registry: &mut Registry, telemetry: &Telemetry) -> Box<dyn Fn(Counts) + Send + Sync> {
    let unnamed = prometheus_client::metrics::gauge::Gauge::<i64>::default();
    let help = "Pods taken over from an earlier worker that no client has named since";
    registry.register("undermesh_pods_unnamed", help, unnamed.clone());
    let metrics = telemetry.workload_manager().clone();
    Box::new(move |counts| {
        metrics.pending(counts.pending);
        unnamed.set(counts.unnamed as i64);
    })
}
