//! A waypoint on loopback with a certificate authority, clients that reach it as agents do, and servers that do what a test says.
#![allow(dead_code, clippy::unwrap_used, missing_docs)]

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_core::l7::cluster::{Balancer, HashKey, HashTable, Policy};
use mesh_core::l7::{Action, Cluster, ClusterKey, Clusters, Forward, Handling, Rule, Table, VirtualHost};
use mesh_core::service::{AppProtocol, ServiceAddress, ServicePort};
use mesh_core::workload::{GatewayAddress, GatewayDestination, PortMapping, TunnelProtocol};
use mesh_core::{Change, Identity, NamespacedName, Service, Store, TrustDomain, Workload};
use mesh_runtime::lanes::Lanes;
use mesh_runtime::{Drain, metrics};
use mesh_transport::hbone::{
    Acceptor, AcceptorConfig, Baggage, ConnectRequest, HboneError, HboneStream, Pool, PoolConfig, TunnelKey,
};
use mesh_transport::socket::AcceptLoop;
use mesh_transport::tls::{IdentityCertificate, Roots};
use mesh_waypoint::refused::Reason;
use mesh_waypoint::shown::PlacesShown;
use mesh_waypoint::{Engine, Own, Settings, Shared, State, inbound, telemetry};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

pub mod edge;
pub mod frames;

pub const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/client";
pub const WAYPOINT: &str = "spiffe://cluster.local/ns/shop/sa/waypoint";

pub fn identity(text: &str) -> Identity {
    text.parse().unwrap()
}

pub fn name(service: &str) -> NamespacedName {
    format!("shop/{service}.shop.svc.cluster.local").parse().unwrap()
}

/// Says past the test runner that something was not tested.
pub fn skipped(name: &str, reason: &str) {
    let _ = nix::unistd::write(std::io::stderr(), format!("SKIPPED: {name}: {reason}\n").as_bytes());
}

/// An address of this machine that is not its own alone.
pub fn outer() -> Option<std::net::IpAddr> {
    let out = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    let own = out.connect("192.0.2.1:9").and_then(|()| out.local_addr()).ok()?.ip();
    Some(own).filter(|ip| mesh_core::outside::is_public(*ip))
}

/// Everything in these tests has to happen soon.
pub async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(20), future).await.unwrap_or_else(|_| panic!("{what}: not within 20 s"))
}

pub struct Ca {
    issuer: CertifiedIssuer<'static, KeyPair>,
    roots: Arc<Roots>,
}

impl Ca {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "root");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let roots = Arc::new(Roots::from_pem(issuer.pem().as_bytes(), vec![TrustDomain::default()]).unwrap());
        Self { issuer, roots }
    }

    pub fn issue(&self, id: &Identity) -> Arc<IdentityCertificate> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(id.to_string().as_str().try_into().unwrap())];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let now = time::OffsetDateTime::now_utc();
        (params.not_before, params.not_after) = (now - time::Duration::minutes(2), now + time::Duration::hours(24));
        let key = KeyPair::generate().unwrap();
        let chain = params.signed_by(&key, &self.issuer).unwrap().pem();
        let (key, roots, now) = (key.serialize_pem(), self.roots.clone(), mesh_runtime::clock::now());
        Arc::new(IdentityCertificate::from_pem(id.clone(), chain.as_bytes(), key.as_bytes(), roots, 1, now).unwrap())
    }
}

/// One service with its endpoints.
pub struct Backend {
    pub service: &'static str,
    pub vip: &'static str,
    pub protocol: AppProtocol,
    pub endpoints: Vec<SocketAddr>,
    pub bound: bool,
    pub hbone: bool,
}

impl Backend {
    pub fn new(service: &'static str, vip: &'static str, endpoints: &[SocketAddr]) -> Self {
        let endpoints = endpoints.to_vec();
        Self { service, vip, protocol: AppProtocol::Unknown, endpoints, bound: true, hbone: false }
    }

    pub fn speaking(self, protocol: AppProtocol) -> Self {
        Self { protocol, ..self }
    }

    /// What the control plane says of it.
    pub fn changes(&self) -> Vec<Change> {
        let key = name(self.service);
        let mut service = Service::new("shop", self.service, key.name.clone());
        service.addresses =
            vec![ServiceAddress { network: "".into(), cidr: format!("{}/32", self.vip).parse().unwrap() }];
        service.ports = vec![ServicePort { service_port: 80, target_port: 0, app_protocol: self.protocol }];
        let waypoint = GatewayDestination::Service(name("waypoint"));
        service.waypoint = self.bound.then_some(GatewayAddress { destination: waypoint, hbone_port: 15008 });
        let workload = |(index, address): (usize, &SocketAddr)| {
            let uid = format!("c//Pod/shop/{}-{index}", self.service);
            let mut workload = Workload::new(uid, "shop", format!("{}-{index}", self.service));
            workload.addresses = vec![address.ip()];
            workload.workload_name = self.service.into();
            workload.service_account = self.service.into();
            workload.protocol = if self.hbone { TunnelProtocol::Hbone } else { TunnelProtocol::None };
            let port = PortMapping { service_port: 80, target_port: address.port() };
            workload.services = Arc::new([(key.clone(), vec![port])].into());
            Change::Workload(workload)
        };
        let workloads = self.endpoints.iter().enumerate().map(workload);
        std::iter::once(Change::Service(service)).chain(workloads).collect()
    }
}

/// A rule for all requests.
pub fn rule(handling: Handling) -> Rule {
    Rule { conditions: Vec::new(), handling: Arc::new(handling) }
}

/// To that service.
pub fn to(service: &str) -> Handling {
    Handling::new(Action::Forward(Forward::to(cluster(service))))
}

pub fn cluster(service: &str) -> ClusterKey {
    ClusterKey { service: name(service), port: 80, subset: Default::default() }
}

/// Said of a service: what comes from one address goes to one endpoint.
pub fn by_source(service: &str) -> Arc<Clusters> {
    let policy = Policy { balancer: Balancer::Hash(HashKey::Source, HashTable::Ring(1024)), ..Policy::default() };
    Arc::new(Clusters::new([Cluster { policy: Ok(policy), ..Cluster::closed(cluster(service), "") }]))
}

/// How many different answers there are, of twenty.
pub async fn different(asked: impl AsyncFn() -> String) -> usize {
    let mut heard = std::collections::BTreeSet::new();
    for _ in 0..20 {
        heard.insert(asked().await);
    }
    heard.len()
}

/// A table with these rules for a service.
pub fn table(service: &str, rules: Vec<Rule>) -> Table {
    let host = VirtualHost { name: service.into(), service: Some(name(service)), rules, ..VirtualHost::default() };
    Table::new("test", vec![Arc::new(host)])
}

/// A waypoint that runs.
pub struct Waypoint {
    pub address: SocketAddr,
    pub state: Arc<State>,
    pub store: Store,
    pub engine: Engine,
    pub drain: Drain,
    pub ca: Ca,
    pub certificate: Arc<IdentityCertificate>,
}

impl Waypoint {
    pub async fn start(backends: &[Backend], table: Table) -> Self {
        Self::with(backends, table, Settings::default()).await
    }

    pub async fn with(backends: &[Backend], table: Table, settings: Settings) -> Self {
        Self::of(Ca::new(), backends, table, settings, Vec::new()).await
    }

    /// One that has an address of its own.
    pub async fn at(own: IpAddr, backends: &[Backend]) -> Self {
        Self::of(Ca::new(), backends, Table::default(), Settings::default(), vec![own]).await
    }

    async fn of(ca: Ca, backends: &[Backend], table: Table, settings: Settings, ips: Vec<IpAddr>) -> Self {
        let certificate = ca.issue(&identity(WAYPOINT));
        let mut store = Store::new();
        let mut changes: Vec<_> = backends.iter().flat_map(Backend::changes).collect();
        changes.push(Change::Synced);
        let state = Arc::new(State::new());
        state.set_snapshot(store.apply(changes).snapshot);
        state.set_table(Arc::new(table));
        state.set_security(Some(Arc::default()));
        let mut own = Own::new(name("waypoint"), identity(WAYPOINT));
        own.place.ips = ips;
        let settings = Settings { seed: Some(1), ..settings };
        let shared = Shared::new(state.clone(), own, settings, Arc::new(certificate.clone()));
        let engine = Engine::new(shared, Lanes::here());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let drain = Drain::new();
        tokio::spawn(mesh_waypoint::collector::run(engine.shared().clone(), drain.token()));
        tokio::spawn(inbound::accept(engine.clone(), AcceptLoop::new(listener).unwrap(), drain.token()));
        Self { address, state, store, engine, drain, ca, certificate }
    }

    /// Another one of the same authority: for endpoints whose certificates had to be made first.
    pub async fn again(former: Self, backends: &[Backend], settings: Settings) -> Self {
        Self::of(former.ca, backends, Table::default(), settings, Vec::new()).await
    }

    /// A stream to `authority` through a tunnel of a client of its own.
    pub async fn stream(&self, authority: &str) -> Result<HboneStream, HboneError> {
        self.client().stream(authority).await
    }

    pub fn client(&self) -> Client {
        let certificate = self.ca.issue(&identity(CLIENT));
        let key = TunnelKey {
            source: certificate.identity.clone(),
            source_uid: "client-1".into(),
            source_ip: [127, 0, 0, 1].into(),
            destination: self.address,
            destination_uid: "waypoint".into(),
            destination_generation: 1,
            expected: [self.certificate.identity.clone()].into(),
            lane: 0,
        };
        Client { pool: Pool::new(PoolConfig::default()), certificate, key }
    }

    /// One request of HTTP/1.1 in a connection of its own.
    pub async fn ask(&self, authority: &str, request: Request<Full<Bytes>>) -> Response<Bytes> {
        let stream = soon("stream", self.stream(authority)).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        whole(soon("answer", sender.send_request(request)).await.unwrap()).await
    }

    /// Writes bytes as they are, and reads until the waypoint closes.
    pub async fn raw(&self, authority: &str, bytes: &[u8]) -> String {
        let mut stream = soon("stream", self.stream(authority)).await.unwrap();
        // Refused in the middle, the rest cannot be written.
        let _ = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        let _ = soon("answer", stream.read_to_end(&mut answer)).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// What was refused before there was a request: how often, for which of these reasons.
    pub fn refused(&self, reasons: &[Reason]) -> u64 {
        reasons.iter().map(|reason| self.engine.shared().refusals.of(*reason)).sum()
    }

    /// Awaits that so many were refused, and sees that no more are.
    pub async fn refuses(&self, count: u64, reasons: &[Reason]) {
        let until = async {
            while self.refused(reasons) < count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let late = tokio::time::timeout(Duration::from_secs(20), until).await.is_err();
        assert!(!late && self.refused(reasons) == count, "{} instead of {count}: {reasons:?}", self.refused(reasons));
    }

    /// What a scrape shows.
    pub fn scrape(&self) -> String {
        let mut registry = metrics::Registry::default();
        let meters = self.engine.lanes().iter().map(|lane| lane.meters.clone()).collect();
        registry.register_collector(Box::new(telemetry::Exposition(meters)));
        registry.register_collector(Box::new(PlacesShown(self.engine.shared().clone())));
        registry.register_collector(Box::new(telemetry::DatagramsShown(self.engine.shared().datagrams.clone())));
        metrics::encode(&registry)
    }
}

pub struct Client {
    pub pool: Pool,
    pub certificate: Arc<IdentityCertificate>,
    pub key: TunnelKey,
}

impl Client {
    pub async fn stream(&self, authority: &str) -> Result<HboneStream, HboneError> {
        let to = self.key.destination;
        let request = ConnectRequest::to(authority.parse().unwrap());
        let dial = move || TcpStream::connect(to);
        Ok(self.pool.connect(&self.key, self.certificate.clone(), dial, request).await?.0)
    }
}

pub async fn whole(response: Response<Incoming>) -> Response<Bytes> {
    let (parts, body) = response.into_parts();
    Response::from_parts(parts, soon("body", body.collect()).await.unwrap().to_bytes())
}

pub fn get(path: &str) -> Request<Full<Bytes>> {
    Request::builder().uri(path).header("host", "shop").body(Full::default()).unwrap()
}

/// The first message of a TLS client that asks for a name.
pub fn hello(name: &str) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = builder.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
    let mut client = rustls::ClientConnection::new(Arc::new(config), name.to_owned().try_into().unwrap()).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

/// Each server has an address of its own, so that a workload is known by it.
static NEXT: AtomicU16 = AtomicU16::new(2);

pub async fn listener() -> TcpListener {
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    let ip = IpAddr::from([127, 0, 77, u8::try_from(next).unwrap()]);
    TcpListener::bind((ip, 0)).await.unwrap()
}

/// An address where nobody listens.
pub async fn nobody() -> SocketAddr {
    listener().await.local_addr().unwrap()
}

/// A server of HTTP/1.1 and HTTP/2.
pub async fn server<F, R, B>(handle: F) -> SocketAddr
where
    F: Fn(Request<Incoming>) -> R + Clone + Send + 'static,
    R: Future<Output = Response<B>> + Send + 'static,
    B: hyper::body::Body<Data = Bytes, Error = Infallible> + Send + 'static,
{
    server_at(listener().await, handle)
}

/// The same on a listener of the test's.
pub fn server_at<F, R, B>(listener: TcpListener, handle: F) -> SocketAddr
where
    F: Fn(Request<Incoming>) -> R + Clone + Send + 'static,
    R: Future<Output = Response<B>> + Send + 'static,
    B: hyper::body::Body<Data = Bytes, Error = Infallible> + Send + 'static,
{
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let handle = handle.clone();
            tokio::spawn(async move {
                let service = hyper::service::service_fn(move |request| {
                    let answer = handle(request);
                    async move { Ok::<_, Infallible>(answer.await) }
                });
                let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection_with_upgrades(TokioIo::new(tcp), service).await;
            });
        }
    });
    address
}

/// A server that says who it is and what it was asked.
pub async fn echo(who: &'static str) -> SocketAddr {
    echo_at(listener().await, who)
}

/// The same on a listener of the test's.
pub fn echo_at(listener: TcpListener, who: &'static str) -> SocketAddr {
    server_at(listener, move |request: Request<Incoming>| async move {
        let mut text = format!("{who} {} {} {:?}\n", request.method(), request.uri(), request.version());
        let mut lines: Vec<_> =
            request.headers().iter().map(|(name, value)| format!("{name}: {}\n", value.to_str().unwrap())).collect();
        lines.sort();
        text.extend(lines);
        let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        text.push_str(&String::from_utf8_lossy(&body));
        Response::new(Full::new(Bytes::from(text)))
    })
}

/// A server without HTTP: for each connection, in turn, it reads heads and answers each with those bytes; with the last ones from then on. It closes after an
/// answer that is marked so. It tells what came, piece by piece.
pub async fn scripted(
    answers: Vec<(Vec<u8>, bool)>,
) -> (SocketAddr, Arc<AtomicU16>, mpsc::UnboundedReceiver<(u16, Vec<u8>)>) {
    let listener = listener().await;
    let address = listener.local_addr().unwrap();
    let (tell, told) = mpsc::unbounded_channel();
    let connections = Arc::<AtomicU16>::default();
    let count = connections.clone();
    tokio::spawn(async move {
        loop {
            let (mut tcp, _) = listener.accept().await.unwrap();
            let number = count.fetch_add(1, Ordering::Relaxed);
            let (answer, close) = answers[usize::from(number).min(answers.len() - 1)].clone();
            let tell = tell.clone();
            tokio::spawn(async move {
                let (mut bytes, mut seen) = (vec![0; 4096], Vec::new());
                while let Ok(read @ 1..) = tcp.read(&mut bytes).await {
                    seen.extend_from_slice(&bytes[..read]);
                    let _ = tell.send((number, bytes[..read].to_vec()));
                    while let Some(end) = seen.windows(4).position(|window| window == b"\r\n\r\n") {
                        seen.drain(..end + 4);
                        if tcp.write_all(&answer).await.is_err() || close {
                            return;
                        }
                    }
                }
            });
        }
    });
    (address, connections, told)
}

/// A server that notes its requests and answers so.
pub async fn noting(status: StatusCode) -> (SocketAddr, mpsc::UnboundedReceiver<Request<Bytes>>) {
    let (tell, told) = mpsc::unbounded_channel();
    let address = server(move |request: Request<Incoming>| {
        let tell = tell.clone();
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
            let _ = tell.send(Request::from_parts(parts, body));
            let mut response = Response::new(Full::<Bytes>::default());
            *response.status_mut() = status;
            response
        }
    })
    .await;
    (address, told)
}

pub fn text(response: &Response<Bytes>) -> &str {
    std::str::from_utf8(response.body()).unwrap()
}

/// The tunnel port of an endpoint's agent: takes one request and gives its stream.
pub async fn agent(
    certificate: Arc<IdentityCertificate>,
) -> (SocketAddr, mpsc::UnboundedReceiver<(String, String, HboneStream)>) {
    let listener = listener().await;
    let address = listener.local_addr().unwrap();
    let (tell, told) = mpsc::unbounded_channel();
    let acceptor = Acceptor::new(AcceptorConfig::default());
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let (acceptor, certificate, tell) = (acceptor.clone(), certificate.clone(), tell.clone());
            tokio::spawn(async move {
                let Ok(tunnel) = acceptor.accept(tcp, &certificate).await else { return };
                let serve = tunnel.serve(Default::default(), move |request| {
                    let authority = request.authority().to_string();
                    let said = request.forwarded().map(ToString::to_string).unwrap_or_default();
                    if let Ok(stream) = request.accept(&Baggage::default()) {
                        let _ = tell.send((authority, said, stream));
                    }
                });
                serve.await;
            });
        }
    });
    (address, told)
}
