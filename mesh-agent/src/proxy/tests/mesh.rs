//! A small mesh in one process: pods in their own network namespaces, each served by a real `PodProxy`; two agents, so that tunnels are real. Only the
//! kernel and the certificate authority are stood in for.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mesh_core::policy::{Action, Clause, Match, Rule, Scope};
use mesh_core::service::{ServiceAddress, ServicePort};
use mesh_core::workload::{PortMapping, TunnelProtocol};
use mesh_core::{ArcStr, Change, Identity, NamespacedName, Policy, Service, TrustDomain, Workload, ports};
use mesh_runtime::lanes::Lanes;
use mesh_runtime::metrics::Registry;
use mesh_transport::netns::NetnsSockets;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::fakes::{Authority, FakeKernel};
use super::net::{Hub, Netns};
use crate::bpf::InboundMode;
use crate::pod::Pod;
use crate::proxy::{PodProxy, ProxyConfig, ProxyListeners, ProxyShared, Reason};
use crate::state::{StateHandle, StateWriter};
use crate::telemetry::{AccessLog, Telemetry, TelemetryConfig};

/// No single step of a test takes longer.
pub const DEADLINE: Duration = Duration::from_secs(60);
pub const NAMESPACE: &str = "bookinfo";
/// Where the apps of these tests listen.
pub const APP: u16 = 8080;
/// The service's port.
pub const PORT: u16 = 80;

/// `work` within the deadline.
pub async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, work).await.expect("in time")
}

/// Waits until `what` holds.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < DEADLINE, "never: {what}");
        tokio::task::yield_now().await;
    }
}

pub fn v4(last: u8) -> IpAddr {
    IpAddr::from([198, 18, 0, last])
}

pub fn v6(last: u16) -> IpAddr {
    IpAddr::from([0xfd00, 0x198, 0, 0, 0, 0, 0, last])
}

pub fn vip() -> IpAddr {
    IpAddr::from([198, 18, 100, 1])
}

pub fn identity(account: &str) -> Identity {
    Identity::new(TrustDomain::default(), NAMESPACE, account).unwrap()
}

/// One agent.
pub struct Node {
    pub shared: Arc<ProxyShared>,
    pub kernel: Arc<FakeKernel>,
    writer: Mutex<StateWriter>,
    /// Addresses that the control plane was asked about.
    pub wanted: Mutex<tokio::sync::mpsc::Receiver<IpAddr>>,
    pub state: Arc<StateHandle>,
    log: Arc<Mutex<Vec<u8>>>,
    telemetry: Telemetry,
    pub registry: Registry,
}

struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Node {
    pub fn start(name: &str, authority: &Arc<Authority>, lanes: Lanes, adjust: impl FnOnce(&mut ProxyConfig)) -> Node {
        let mut config = ProxyConfig { node: name.into(), ..ProxyConfig::default() };
        adjust(&mut config);
        let (state, writer, wanted) = StateHandle::new();
        let kernel = Arc::new(FakeKernel::default());
        let mut registry = Registry::default();
        let log = Arc::new(Mutex::new(Vec::new()));
        let access_log =
            AccessLog::to_writer(mesh_runtime::logging::LogFormat::Text, Box::new(Shared(log.clone()))).unwrap();
        let telemetry = Telemetry::with_log(&mut registry, &TelemetryConfig::default(), access_log);
        let shared = ProxyShared::new(
            config,
            state.clone(),
            authority.clone(),
            kernel.clone(),
            telemetry.clone(),
            lanes,
            &mut registry,
        );
        Node { shared, kernel, writer: Mutex::new(writer), wanted: Mutex::new(wanted), state, log, telemetry, registry }
    }

    pub fn apply(&self, changes: Vec<Change>) {
        self.writer.lock().apply(changes);
    }

    pub fn refused(&self, reason: Reason) -> u64 {
        self.shared.refusals.of(reason)
    }

    /// The access log so far.
    pub fn log(&self) -> String {
        assert!(self.telemetry.access_log().flush(DEADLINE));
        String::from_utf8(self.log.lock().clone()).unwrap()
    }

    pub fn metrics(&self) -> String {
        mesh_runtime::metrics::encode(&self.registry)
    }
}

/// One served pod.
pub struct TestPod {
    pub netns: Netns,
    pub pod: Arc<Pod>,
    pub proxy: Option<PodProxy>,
    kernel: Arc<FakeKernel>,
}

static COOKIE: AtomicU64 = AtomicU64::new(1);

impl TestPod {
    /// A pod of `node` with its proxy running.
    pub fn start(hub: &Hub, node: &Node, name: &str, last: u8) -> TestPod {
        let ips = vec![v4(last), v6(u16::from(last))];
        let netns = hub.attach(&ips);
        TestPod::enrol(netns, node, name, name, ips)
    }

    /// The same in a namespace that is already there.
    pub fn enrol(netns: Netns, node: &Node, uid: &str, name: &str, ips: Vec<IpAddr>) -> TestPod {
        let sockets = NetnsSockets::new(netns.descriptor(), &ips, None).unwrap();
        let pod = Arc::new(Pod {
            uid: uid.into(),
            namespace: NAMESPACE.into(),
            name: name.into(),
            service_account: name.into(),
            identity: identity(name),
            ips: ips.clone(),
            dns: crate::pod::PodDns::default(),
            rules: Default::default(),
            netns: netns.descriptor(),
            netns_cookie: COOKIE.fetch_add(1, Ordering::Relaxed),
            netns_inode: 0,
            generation: 1,
            sockets,
        });
        let listeners = ProxyListeners {
            outbound: vec![netns.listen(SocketAddr::from(([0, 0, 0, 0], ports::OUTBOUND)))],
            plaintext: ips.iter().map(|ip| netns.listen(SocketAddr::new(*ip, ports::INBOUND_PLAINTEXT))).collect(),
            hbone: ips.iter().map(|ip| netns.listen(SocketAddr::new(*ip, ports::HBONE))).collect(),
        };
        let proxy = PodProxy::start(pod.clone(), listeners, node.shared.clone()).unwrap();
        assert!(proxy.kernel_ready());
        TestPod { netns, pod, proxy: Some(proxy), kernel: node.kernel.clone() }
    }

    pub fn ip(&self) -> IpAddr {
        self.pod.ips[0]
    }

    /// What an app's `connect(destination)` becomes.
    pub async fn connect(&self, destination: SocketAddr) -> TcpStream {
        self.try_connect(destination).await.unwrap()
    }

    pub async fn try_connect(&self, destination: SocketAddr) -> std::io::Result<TcpStream> {
        let slot = self.kernel.slot(destination);
        soon(self.netns.socket(self.ip()).connect(slot)).await
    }

    /// A connect that the mesh refuses.
    pub async fn expect_refused(&self, destination: SocketAddr) {
        refused(self.try_connect(destination).await).await;
    }

    /// A listener of an app in the pod.
    pub fn listen(&self, port: u16) -> TcpListener {
        self.listen_at(SocketAddr::new(self.ip(), port))
    }

    pub fn listen_at(&self, address: SocketAddr) -> TcpListener {
        let listener = self.netns.listen(address);
        listener.set_nonblocking(true).unwrap();
        TcpListener::from_std(listener).unwrap()
    }

    /// An app that echoes, and greets first with `banner`. Counts the connections it got.
    pub fn echo(&self, port: u16, banner: &'static str) -> Arc<AtomicU32> {
        echo(self.listen(port), banner)
    }

    pub fn live(&self) -> usize {
        self.proxy.as_ref().unwrap().connections().len()
    }

    pub fn mode(&self) -> InboundMode {
        self.kernel.modes.lock()[&self.pod.netns_cookie].clone()
    }

    /// The pod as the control plane describes it.
    pub fn workload(&self) -> Workload {
        let mut workload = workload(&self.pod.name, self.pod.ips.clone());
        workload.protocol = TunnelProtocol::Hbone;
        workload
    }
}

pub fn workload(name: &str, ips: Vec<IpAddr>) -> Workload {
    let mut workload = Workload::new(format!("Kubernetes//Pod/{NAMESPACE}/{name}"), NAMESPACE, name);
    workload.addresses = ips;
    workload.service_account = name.into();
    workload.workload_name = ArcStr::from(format!("{name}-deploy"));
    workload.canonical_name = name.into();
    workload.cluster_id = "Kubernetes".into();
    workload
}

/// `server.bookinfo` on its VIP.
pub fn service() -> Service {
    let mut service = Service::new(NAMESPACE, "server", "server.bookinfo.svc.cluster.local");
    service.addresses = vec![ServiceAddress { network: ArcStr::new(), cidr: vip().into() }];
    service.ports =
        vec![ServicePort { service_port: PORT, target_port: APP, app_protocol: mesh_core::service::AppProtocol::Tcp }];
    service
}

/// `workload` as an endpoint of [`service`].
pub fn serving(mut workload: Workload) -> Workload {
    let mapping = vec![PortMapping { service_port: PORT, target_port: APP }];
    workload.services = Arc::new([(service().key(), mapping)].into_iter().collect());
    workload
}

pub fn policy_name(name: &str) -> NamespacedName {
    NamespacedName::new(NAMESPACE, name)
}

/// A policy that asks for mutual TLS on this port.
pub fn strict_port(name: &str, port: u16) -> Policy {
    let mut policy = Policy::deny_plaintext(policy_name(name), Scope::WorkloadSelector);
    let matches = vec![Match { destination_ports: vec![port], ..Match::default() }];
    policy.rules[0].clauses.push(Clause { matches });
    policy
}

/// A policy from its rules, each a list of clauses of one match.
pub fn policy(name: &str, scope: Scope, action: Action, rules: Vec<Vec<Match>>) -> Policy {
    let rules = rules
        .into_iter()
        .map(|clauses| Rule { clauses: clauses.into_iter().map(|one| Clause { matches: vec![one] }).collect() })
        .collect();
    Policy { name: policy_name(name), scope, action, rules, dry_run: false }
}

/// Client and server on two agents, with a service in front of the server; everything synced.
pub struct Pair {
    pub hub: Hub,
    pub authority: Arc<Authority>,
    pub near: Node,
    pub far: Node,
    pub client: TestPod,
    pub server: TestPod,
}

impl Pair {
    pub async fn start() -> Pair {
        Pair::with(|_| ()).await
    }

    pub async fn with(adjust: impl Fn(&mut ProxyConfig)) -> Pair {
        let pair = Pair::unsynced(adjust).await;
        pair.sync();
        pair
    }

    /// Tells both agents of the pods and the service.
    pub fn sync(&self) {
        self.apply(vec![
            Change::Workload(self.client.workload()),
            Change::Workload(serving(self.server.workload())),
            Change::Service(service()),
            Change::Ranges(vec!["198.18.0.0/15".parse().unwrap(), "fd00:198::/32".parse().unwrap()]),
            Change::Synced,
        ]);
    }

    pub async fn unsynced(adjust: impl Fn(&mut ProxyConfig)) -> Pair {
        Pair::on(Lanes::here(), Lanes::here(), adjust)
    }

    /// The nodes' connections live on these threads; they accept on the test's own.
    pub fn on(near: Lanes, far: Lanes, adjust: impl Fn(&mut ProxyConfig)) -> Pair {
        let hub = Hub::new();
        let authority = Authority::new();
        let (near, far) =
            (Node::start("near", &authority, near, &adjust), Node::start("far", &authority, far, &adjust));
        let client = TestPod::start(&hub, &near, "client", 1);
        let server = TestPod::start(&hub, &far, "server", 2);
        Pair { hub, authority, near, far, client, server }
    }

    /// To both agents.
    pub fn apply(&self, changes: Vec<Change>) {
        self.near.apply(changes.clone());
        self.far.apply(changes);
    }

    pub fn service_address(&self) -> SocketAddr {
        SocketAddr::new(vip(), PORT)
    }

    pub fn server_address(&self) -> SocketAddr {
        SocketAddr::new(self.server.ip(), APP)
    }
}

/// Serves `listener` with an echo after `banner`.
pub fn echo(listener: TcpListener, banner: &'static str) -> Arc<AtomicU32> {
    let count = Arc::new(AtomicU32::new(0));
    let counter = count.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            counter.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                stream.write_all(banner.as_bytes()).await?;
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await?;
                write.shutdown().await
            });
        }
    });
    count
}

/// Writes `text` and reads it back.
pub async fn exchange(stream: &mut TcpStream, text: &str) {
    soon(stream.write_all(text.as_bytes())).await.unwrap();
    expect(stream, text).await;
}

/// Reads exactly `text`.
pub async fn expect(stream: &mut TcpStream, text: &str) {
    let mut back = vec![0; text.len()];
    soon(stream.read_exact(&mut back)).await.unwrap_or_else(|error| panic!("reading {text:?}: {error}"));
    assert_eq!(String::from_utf8_lossy(&back), text);
}

/// Connects and is reset.
pub async fn expect_refused(socket: tokio::net::TcpSocket, address: SocketAddr) {
    refused(soon(socket.connect(address)).await).await;
}

/// What came of a connect that was refused: the app sees a reset, on `connect` itself if that is quick, else on its first read.
pub async fn refused(connected: std::io::Result<TcpStream>) {
    match connected {
        Ok(mut stream) => expect_reset(&mut stream).await,
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
    }
}

/// Reads to the end, which must be a reset.
pub async fn expect_reset(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    let error = soon(stream.read_to_end(&mut rest)).await.expect_err("an orderly end instead of a reset");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "after {} bytes", rest.len());
}
