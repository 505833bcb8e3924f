//! TLS to endpoints, as DestinationRules ask for it of those outside of the mesh and BackendTLSPolicies of all, with a server that ends real TLS: whose certificate is believed, what is shown, what a
//! client gets where it is not.
#![allow(clippy::unwrap_used, non_snake_case, reason = "tests carry the ids of the rows that they prove")]

mod support;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_core::Change;
use mesh_core::l4::{ConnectionRoutes, Group, Place, Rule as Route, Split};
use mesh_core::l7::cluster::{Policy, Pool, ServerName, Speaks, Tls};
use mesh_core::l7::{Cluster, Clusters, Table, Target};
use mesh_core::listener::{Certificates, Credential, Secret};
use mesh_core::telemetry::{AccessLog, LogFormat, Scopes, Telemetry};
use mesh_waypoint::Settings;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use support::*;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

const A: &str = "10.96.0.11";
const ASK: &str = "10.96.0.11:80";
/// The host of the service that is asked for.
const HOST: &str = "a.shop.svc.cluster.local";
const URI: &str = "spiffe://other/ns/x/sa/y";

/// An authority of the world.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// A certificate with these names, and its key.
    fn issue(&self, names: &[&str]) -> (String, String) {
        let san = |name: &&str| match name.contains("://") {
            true => SanType::URI((*name).try_into().unwrap()),
            false => SanType::DnsName((*name).try_into().unwrap()),
        };
        let mut params = CertificateParams::default();
        params.subject_alt_names = names.iter().map(san).collect();
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }

    fn pem(&self) -> String {
        self.0.pem()
    }
}

/// What a waypoint has for that authority; with a certificate of its own, if one is given.
fn credential(authority: &Authority, own: Option<(String, String)>) -> Arc<Credential> {
    let (chain, key) = own.unwrap_or_default();
    let roots = Bytes::from(authority.pem());
    Arc::new(Credential { chain: chain.into(), key: Secret::new(key.into()), roots, ..Credential::default() })
}

/// How a server with this certificate ends TLS; of clients it asks for one of that authority.
fn ends(own: (String, String), clients: Option<&Authority>) -> TlsAcceptor {
    let chain = vec![CertificateDer::from_pem_slice(own.0.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(own.1.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_single_cert(chain, key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    TlsAcceptor::from(Arc::new(config))
}

/// Serves HTTP in TLS: says which name it was asked for, what was agreed on, and whether a certificate was shown. It counts handshakes.
async fn serve<S>(acceptor: TlsAcceptor, stream: S, counted: Arc<AtomicUsize>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Ok(stream) = acceptor.accept(stream).await else { return };
    counted.fetch_add(1, SeqCst);
    let (_, connection) = stream.get_ref();
    let text = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or(b"-")).into_owned();
    let said = format!(
        "sni={} alpn={} shown={}",
        connection.server_name().unwrap_or("-"),
        text(connection.alpn_protocol()),
        connection.peer_certificates().map_or(0, <[_]>::len)
    );
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let answer = Response::new(Full::new(Bytes::from(format!("{said} {:?}", request.version()))));
        async move { Ok::<_, std::convert::Infallible>(answer) }
    });
    let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    let _ = server.serve_connection(TokioIo::new(stream), service).await;
}

/// A server of HTTP in TLS, and how many handshakes it has seen.
async fn tls_server(own: (String, String), clients: Option<&Authority>) -> (SocketAddr, Arc<AtomicUsize>) {
    tls_server_on(listener().await, own, clients)
}

fn tls_server_on(
    listener: TcpListener,
    own: (String, String),
    clients: Option<&Authority>,
) -> (SocketAddr, Arc<AtomicUsize>) {
    let acceptor = ends(own, clients);
    let (address, count) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            tokio::spawn(serve(acceptor.clone(), tcp, Arc::clone(&counted)));
        }
    });
    (address, count)
}

fn say(waypoint: &Waypoint, policy: Policy) {
    let place = Cluster { policy: Ok(policy), ..Cluster::closed(cluster("a"), "") };
    waypoint.state.set_clusters(Arc::new(Clusters::new([place])));
}

fn with(tls: Tls) -> Policy {
    Policy { tls, ..Policy::default() }
}

fn known(all: &[(&str, Arc<Credential>)]) -> Arc<Certificates> {
    let all: BTreeMap<_, _> = all.iter().map(|(name, one)| ((*name).into(), Arc::clone(one))).collect();
    Arc::new(Certificates { name: "shop/waypoint".into(), all })
}

fn named(names: &[&str]) -> ServerName {
    let names = names.iter().map(|name| (*name).into()).collect();
    ServerName { roots: vec!["shop/world".into()], names, ..ServerName::default() }
}

#[tokio::test]
async fn features_DR_12_TLS_begins_where_it_is_asked_for_and_certificates_are_verified() {
    let (world, other) = (Authority::new(), Authority::new());
    let own = world.issue(&["client.example"]);
    let credentials = [
        ("shop/world", credential(&world, None)),
        ("shop/other", credential(&other, None)),
        ("shop/own", credential(&world, Some(own))),
        ("shop/broken", Arc::new(Credential { roots: "x".into(), ..Credential::default() })),
    ];
    let of = |name: &str| ServerName { roots: vec![format!("shop/{name}").into()], ..ServerName::default() };
    let showing = |name: &str| ServerName { shown: Some(format!("shop/{name}").into()), ..of("world") };
    let sni = |sni: &str| ServerName { sni: Some(sni.into()), ..of("world") };
    let both = ServerName { roots: vec!["shop/nothing".into(), "shop/world".into()], ..ServerName::default() };
    let unverified = ServerName { unverified: true, ..of("other") };
    let shown = |sni: &str, shown: usize| Ok(format!("sni={sni} alpn=http/1.1 shown={shown} HTTP/1.1"));
    let (refused, closed) = (Err(StatusCode::SERVICE_UNAVAILABLE), Err(StatusCode::INTERNAL_SERVER_ERROR));
    let host: &[&str] = &[HOST];
    for (what, names, tls, expected) in [
        ("its host", host, Tls::Simple(of("world")), shown(HOST, 0)),
        ("another's name", &["other.example"], Tls::Simple(of("world")), refused.clone()),
        ("the name that is asked for", &["x.example"], Tls::Simple(sni("x.example")), shown("x.example", 0)),
        ("not that name", host, Tls::Simple(sni("x.example")), refused.clone()),
        ("another's authority", host, Tls::Simple(of("other")), refused.clone()),
        ("nobody's authority", host, Tls::Simple(ServerName::default()), refused.clone()),
        ("anybody", &["other.example"], Tls::Simple(unverified), shown(HOST, 0)),
        ("a name of several", &["b.example"], Tls::Simple(named(&["a.example", "b.example"])), shown(HOST, 0)),
        ("a name by a pattern", &["*.b.example"], Tls::Simple(named(&["a.b.example"])), shown(HOST, 0)),
        ("its host, which is not among the names", host, Tls::Simple(named(&["b.example"])), refused.clone()),
        ("a URI", &[URI], Tls::Simple(named(&[URI])), shown(HOST, 0)),
        ("another URI", &["spiffe://other/ns/x/sa/z"], Tls::Simple(named(&[URI])), refused.clone()),
        ("a certificate is shown", host, Tls::Mutual(showing("own")), shown(HOST, 1)),
        ("a certificate is shown where one may be", host, Tls::Simple(showing("own")), shown(HOST, 1)),
        ("it has none to show", host, Tls::Mutual(showing("world")), closed.clone()),
        ("it is not known what to show", host, Tls::Simple(showing("nothing")), closed.clone()),
        ("nothing to show", host, Tls::Mutual(of("world")), closed.clone()),
        ("no such credential", host, Tls::Simple(of("nothing")), closed.clone()),
        ("one of two credentials", host, Tls::Simple(both), shown(HOST, 0)),
        ("a broken credential", host, Tls::Simple(of("broken")), closed.clone()),
    ] {
        let clients = tls.server().is_some_and(|server| server.shown.is_some()).then_some(&world);
        let (server, handshakes) = tls_server(world.issue(names), clients).await;
        let waypoint = Waypoint::start(&[Backend::new("a", A, &[server])], Table::default()).await;
        waypoint.state.set_certificates(known(&credentials));
        say(&waypoint, with(tls));
        for _ in 0..2 {
            let answer = waypoint.ask(ASK, get("/")).await;
            let got = match answer.status() {
                StatusCode::OK => Ok(text(&answer).to_owned()),
                status => Err(status),
            };
            // Without roots of its own it believes what the system does, or, where that is nobody, is closed.
            let is_of_system = what == "nobody's authority" && got == closed;
            assert!(got == expected || is_of_system, "{what}: {got:?}, not {expected:?}");
        }
        // The second request has the connection of the first.
        assert_eq!(handshakes.load(SeqCst), usize::from(expected.is_ok()), "{what}");
    }
}

#[tokio::test]
async fn HTTP_2_is_agreed_on_and_what_is_said_anew_is_not_reached_by_old_connections() {
    let world = Authority::new();
    let (server, handshakes) = tls_server(world.issue(&[HOST, "x.example"]), None).await;
    let waypoint = Waypoint::start(&[Backend::new("a", A, &[server])], Table::default()).await;
    let credentials = known(&[("shop/world", credential(&world, None))]);
    waypoint.state.set_certificates(Arc::clone(&credentials));
    say(&waypoint, Policy { pool: Pool { speaks: Speaks::Http2, ..Pool::default() }, ..with(Tls::Simple(named(&[]))) });
    let answer = waypoint.ask(ASK, get("/")).await;
    assert_eq!(text(&answer), format!("sni={HOST} alpn=h2 shown=0 HTTP/2.0"));
    // Another name is another place, with connections of its own.
    say(&waypoint, with(Tls::Simple(ServerName { sni: Some("x.example".into()), ..named(&[]) })));
    let answer = waypoint.ask(ASK, get("/")).await;
    assert_eq!(text(&answer), "sni=x.example alpn=http/1.1 shown=0 HTTP/1.1");
    assert_eq!(handshakes.load(SeqCst), 2);
    // A credential that says something else now counts for what comes next.
    waypoint.state.set_certificates(known(&[("shop/world", credential(&Authority::new(), None))]));
    assert_eq!(waypoint.ask(ASK, get("/")).await.status(), StatusCode::SERVICE_UNAVAILABLE);
    waypoint.state.set_certificates(credentials);
    assert_eq!(waypoint.ask(ASK, get("/")).await.status(), StatusCode::OK);
    // Plain HTTP is not for a port that speaks TLS.
    say(&waypoint, with(Tls::Plain));
    assert_ne!(waypoint.ask(ASK, get("/")).await.status(), StatusCode::OK);
}

/// A waypoint before one application that ends TLS itself, in the mesh.
async fn before_an_application(acceptor: TlsAcceptor) -> (Waypoint, Arc<AtomicUsize>) {
    let former = Waypoint::start(&[], Table::default()).await;
    let certificate = former.ca.issue(&identity("spiffe://cluster.local/ns/shop/sa/a"));
    let (agent, mut told) = agent(certificate).await;
    let settings = Settings { hbone_port: agent.port(), ..Settings::default() };
    let target = SocketAddr::new(agent.ip(), 8443);
    let waypoint =
        Waypoint::again(former, &[Backend { hbone: true, ..Backend::new("a", A, &[target]) }], settings).await;
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        while let Some((_, _, stream)) = told.recv().await {
            tokio::spawn(serve(acceptor.clone(), stream, Arc::clone(&counted)));
        }
    });
    (waypoint, count)
}

/// What an application answers a client that begins TLS itself.
async fn asked_in_tls(waypoint: &Waypoint, authority: &str, world: &Authority) -> String {
    let stream = waypoint.stream(authority).await.unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(world.pem().as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let client = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let client = client.with_root_certificates(roots).with_no_client_auth();
    let connecting =
        tokio_rustls::TlsConnector::from(Arc::new(client)).connect("b.example".try_into().unwrap(), stream);
    let stream = soon("handshake", connecting).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let answer = whole(soon("answer", sender.send_request(get("/"))).await.unwrap()).await;
    text(&answer).to_owned()
}

#[tokio::test]
async fn features_GA_TLS_of_an_application_begins_inside_of_its_tunnel() {
    let (world, other) = (Authority::new(), Authority::new());
    let (mut waypoint, handshakes) = before_an_application(ends(world.issue(&["b.example"]), None)).await;
    let credentials = [("shop/world", credential(&world, None)), ("shop/other", credential(&other, None))];
    waypoint.state.set_certificates(known(&credentials));
    let of = |roots: &str| {
        let (roots, sni) = (vec![roots.into()], Some("b.example".into()));
        with(Tls::Simple(ServerName { roots, sni, end_to_end: true, ..ServerName::default() }))
    };
    for (roots, expected) in [
        ("shop/world", Ok("sni=b.example alpn=http/1.1 shown=0 HTTP/1.1")),
        ("shop/other", Err(StatusCode::SERVICE_UNAVAILABLE)),
        ("shop/nothing", Err(StatusCode::INTERNAL_SERVER_ERROR)),
    ] {
        say(&waypoint, of(roots));
        let answer = waypoint.ask(ASK, get("/")).await;
        let got = if answer.status() == StatusCode::OK { Ok(text(&answer)) } else { Err(answer.status()) };
        assert_eq!(got, expected, "{roots}");
    }
    assert_eq!(handshakes.load(SeqCst), 1);
    // A client that begins it itself is not in two of them.
    say(&waypoint, of("shop/world"));
    assert_eq!(asked_in_tls(&waypoint, ASK, &world).await, "sni=b.example alpn=- shown=0 HTTP/1.1");
    // Nor is one that routes of another service lead here.
    let split = Split::new(vec![Place { target: Target::Cluster(cluster("a")), weight: 1 }]).unwrap();
    let rule = Route { origin: "TLSRoute shop/front".into(), conditions: Vec::new(), split };
    let groups = vec![Group { rules: vec![rule], ..Group::default() }];
    let mut changes = Backend::new("front", "10.96.0.12", &[]).changes();
    changes.push(Change::Connections(ConnectionRoutes { service: name("front"), groups }));
    waypoint.state.set_snapshot(waypoint.store.apply(changes).snapshot);
    assert_eq!(asked_in_tls(&waypoint, "10.96.0.12:80", &world).await, "sni=b.example alpn=- shown=0 HTTP/1.1");
    // What a DestinationRule says is about endpoints outside of the mesh: a tunnel is enough.
    say(&waypoint, with(Tls::Simple(named(&[]))));
    assert_ne!(waypoint.ask(ASK, get("/")).await.status(), StatusCode::OK);
    assert_eq!(handshakes.load(SeqCst), 3);
}

#[tokio::test]
async fn the_log_says_why_a_certificate_was_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let log = AccessLog {
        path: path.to_str().unwrap().into(),
        format: LogFormat::Text("%RESPONSE_CODE% %RESPONSE_FLAGS% %UPSTREAM_TRANSPORT_FAILURE_REASON%\n".into()),
        filter: None,
    };
    let telemetry = Telemetry { logs: vec![log], ..Telemetry::default() };
    let scopes = Scopes { waypoint: Arc::new(telemetry), ..Scopes::default() };
    let world = Authority::new();
    let (server, _) = tls_server(world.issue(&["other.example"]), None).await;
    let settings = Settings { telemetry: scopes, ..Settings::default() };
    let waypoint = Waypoint::with(&[Backend::new("a", A, &[server])], Table::default(), settings).await;
    waypoint.state.set_certificates(known(&[("shop/world", credential(&world, None))]));
    say(&waypoint, with(Tls::Simple(named(&[]))));
    assert_eq!(waypoint.ask(ASK, get("/")).await.status(), StatusCode::SERVICE_UNAVAILABLE);
    let line = async {
        loop {
            let log = std::fs::read_to_string(&path).unwrap_or_default();
            if log.ends_with('\n') {
                return log;
            }
            tokio::task::yield_now().await;
        }
    };
    let line = soon("a line", line).await;
    assert!(line.starts_with("503 UF,URX TLS_error:") || line.starts_with("503 UF TLS_error:"), "{line}");
    assert!(line.contains("other.example") || line.contains("NotValidForName") || line.contains("not valid"), "{line}");
}

/// Where only a pattern is known, the name that the client asks for is the one that is asked for, and has to be proved.
#[tokio::test]
async fn features_DR_12_SE_5_a_host_of_a_pattern_is_asked_for_by_its_own_name() {
    let Some(own) = outer() else { return skipped("TLS to names", "this machine has no address but loopback") };
    let world = Authority::new();
    let sni = |sni: &str| ServerName { sni: Some(sni.into()), ..named(&[]) };
    let shown = |sni: &str| Ok(format!("sni={sni} alpn=http/1.1 shown=0 HTTP/1.1"));
    for (what, names, tls, expected) in [
        ("its own", "x.b.example", named(&[]), shown("x.b.example")),
        ("another one of the pattern", "y.b.example", named(&[]), Err(StatusCode::SERVICE_UNAVAILABLE)),
        ("by a pattern", "*.b.example", named(&[]), shown("x.b.example")),
        ("the name that is said", "z.example", sni("z.example"), shown("z.example")),
    ] {
        let tcp = TcpListener::bind((own, 0)).await.unwrap();
        let (server, _) = tls_server_on(tcp, world.issue(&[names]), None);
        let mut waypoint = Waypoint::start(&[], Table::default()).await;
        let mut changes = Backend::new("b", "10.96.0.11", &[]).changes();
        for change in &mut changes {
            if let Change::Service(service) = change {
                service.hostname = "*.b.example".into();
                service.ports[0].target_port = server.port();
            }
        }
        waypoint.state.set_snapshot(waypoint.store.apply(changes).snapshot);
        waypoint.state.set_certificates(known(&[("shop/world", credential(&world, None))]));
        let pattern = mesh_core::NamespacedName::new("shop", "*.b.example");
        let key = mesh_core::l7::ClusterKey { service: pattern.clone(), ..cluster("b") };
        let place = Cluster { policy: Ok(with(Tls::Simple(tls))), ..Cluster::closed(key, "") };
        waypoint.state.set_clusters(Arc::new(Clusters::new([place])));
        let shared = waypoint.engine.shared();
        let snapshot = shared.state.view().snapshot.clone();
        let service = snapshot.service(&pattern).unwrap();
        let answer = async |_, _| Ok::<Vec<std::net::IpAddr>, std::io::Error>(vec![own]);
        let found = shared.names.find(service, Some("x.b.example"), (&*snapshot, ""), shared.now_ms(), answer).await;
        assert_eq!(found.unwrap().unwrap().addresses[..], [own]);
        let request = Request::builder().uri("/").header("host", "x.b.example").body(Full::default()).unwrap();
        let answer = waypoint.ask("10.96.0.11:80", request).await;
        let got = match answer.status() {
            StatusCode::OK => Ok(text(&answer).to_owned()),
            status => Err(status),
        };
        assert_eq!(got, expected, "{what}");
    }
}
