//! The process: it proves who it is, asks for its configuration, becomes ready, serves, and ends.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

#[path = "../../mesh-client/tests/common/mod.rs"]
mod plane;
mod support;

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Stdio;
use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use hyper_util::rt::TokioIo;
use mesh_core::l7::policy::{self, Policy};
use mesh_core::l7::{
    Action, Condition, DirectResponse, Handling, HostPattern, PathKind, Rule, Security, SecurityTarget, Table,
    VirtualHost,
};
use mesh_core::listener::{Encryption, Listener, Listeners, Serves, Transport};
use mesh_core::{Change, NamespacedName, TrustDomain};
use mesh_proto::discovery::{Any, DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use mesh_proto::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE, CERTIFICATES_TYPE, CLUSTERS_TYPE, CONNECTION_ROUTES_TYPE, LISTENERS_TYPE,
    ROUTE_TABLE_TYPE, SECURITY_TYPE, TELEMETRY_TYPE, WORKLOAD_LABELS_TYPE, convert,
};
use mesh_transport::hbone::{Pool, PoolConfig, TunnelKey};
use mesh_transport::tls::{IdentityCertificate, Roots};
use plane::{AdsStream, ControlPlane};
use rcgen::{CertificateParams, KeyPair, SanType};
use support::{Backend, CLIENT, Client, WAYPOINT, echo_at, get, identity, name, soon, text, whole};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

const VIP: &str = "10.96.0.10";

async fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

struct Process {
    child: Child,
    hbone: SocketAddr,
    metrics: SocketAddr,
    readiness: SocketAddr,
}

impl Process {
    async fn start(plane: &ControlPlane) -> Self {
        let (hbone, metrics, readiness) = (free().await, free().await, free().await);
        let child = Command::new(env!("CARGO_BIN_EXE_mesh-waypoint"))
            .args(["--gateway", "waypoint", "--namespace", "shop", "--pod", "waypoint-1", "--node", "node-1"])
            .args(["--control".to_owned(), plane.address.to_string()])
            .arg("--control-root")
            .arg(plane.path("root.pem"))
            .arg("--token")
            .arg(plane.path("token"))
            .args(["--hbone".to_owned(), hbone.to_string(), "--metrics".to_owned(), metrics.to_string()])
            .args(["--readiness".to_owned(), readiness.to_string()])
            .args(["--workers", "2", "--drain", "5s", "--access-log", "on"])
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self { child, hbone, metrics, readiness }
    }

    async fn ready(&self) -> Option<String> {
        fetch(self.readiness, "/healthz/ready").await
    }

    async fn until_ready(&self) {
        soon("ready", async {
            while !self.ready().await.is_some_and(|answer| answer.starts_with("HTTP/1.1 200")) {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        })
        .await;
    }
}

/// One answer of the operator's servers, with its head.
async fn fetch(from: SocketAddr, path: &str) -> Option<String> {
    let mut tcp = TcpStream::connect(from).await.ok()?;
    tcp.write_all(format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").as_bytes()).await.ok()?;
    let mut answer = String::new();
    tcp.read_to_string(&mut answer).await.ok()?;
    Some(answer)
}

fn resource(name: String, type_url: &str, value: Vec<u8>) -> Resource {
    let body = Any { type_url: type_url.to_owned(), value: value.into() };
    Resource { name, version: "1".to_owned(), resource: Some(body), ..Resource::default() }
}

fn addresses(backend: &Backend) -> Vec<Resource> {
    let resource = |change: Change| match change {
        Change::Workload(workload) => {
            resource(workload.uid.to_string(), ADDRESS_TYPE, convert::encode_workload(&workload))
        }
        Change::Service(service) => {
            resource(service.key().to_string(), ADDRESS_TYPE, convert::encode_service(&service))
        }
        other => panic!("{other:?}"),
    };
    backend.changes().into_iter().map(resource).collect()
}

async fn respond(stream: &AdsStream, request: &DeltaDiscoveryRequest, resources: Vec<Resource>) {
    respond_with(stream, request, resources, Vec::new()).await;
}

async fn respond_with(
    stream: &AdsStream,
    request: &DeltaDiscoveryRequest,
    resources: Vec<Resource>,
    removed_resources: Vec<String>,
) {
    let nonce = request.type_url.clone();
    let response = DeltaDiscoveryResponse {
        type_url: nonce.clone(),
        nonce,
        resources,
        removed_resources,
        ..DeltaDiscoveryResponse::default()
    };
    stream.respond(response).await;
}

/// The waypoint's policies.
fn security(policies: Vec<Policy>) -> Resource {
    let policies = policies.into_iter().map(Arc::new).collect();
    let security = Security { name: "shop/waypoint".into(), policies, ..Security::default() };
    resource("shop/waypoint".to_owned(), SECURITY_TYPE, convert::encode_security(&security))
}

/// A gateway's: HTTP on one port, all of it to the app.
fn listeners(bind: u16) -> Vec<u8> {
    let host = VirtualHost {
        hosts: vec![HostPattern::Any],
        rules: vec![support::rule(support::to("app"))],
        ..VirtualHost::default()
    };
    let listener = Listener {
        name: "Gateway shop/waypoint http".into(),
        gateway: "shop/waypoint".into(),
        port: 80,
        bind,
        transport: Transport::Tcp,
        hosts: vec![HostPattern::Any],
        encryption: Encryption::None,
        serves: Serves::Http(Arc::new(Table::new("http", vec![Arc::new(host)]))),
    };
    convert::encode_listeners(&Listeners::new("shop/waypoint", vec![Arc::new(listener)]))
}

/// A client with a certificate of the mesh's authority.
fn client(ca: &plane::Ca, to: SocketAddr) -> Client {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(CLIENT.try_into().unwrap())];
    let csr = params.serialize_request(&key).unwrap().pem().unwrap();
    let chain = ca.sign(&csr, plane::Leaf::default());
    let roots = Arc::new(Roots::from_pem(ca.pem.as_bytes(), vec![TrustDomain::default()]).unwrap());
    let (own, now) = (identity(CLIENT), mesh_runtime::clock::now());
    let certificate =
        IdentityCertificate::from_pem(own, chain.as_bytes(), key.serialize_pem().as_bytes(), roots, 1, now).unwrap();
    let key = TunnelKey {
        source: certificate.identity.clone(),
        source_uid: "client-1".into(),
        source_ip: [127, 0, 0, 1].into(),
        destination: to,
        destination_uid: "waypoint".into(),
        destination_generation: 1,
        expected: [identity(WAYPOINT)].into(),
        lane: 0,
    };
    Client { pool: Pool::new(PoolConfig::default()), certificate: Arc::new(certificate), key }
}

async fn ask(client: &Client, path: &str) -> http::Response<Bytes> {
    let stream = soon("stream", client.stream("10.96.0.10:80")).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    whole(soon("answer", sender.send_request(get(path))).await.unwrap()).await
}

/// In a network of its own: an address of the loopback cannot be a workload's, and no other one is there for certain.
#[test]
fn a_waypoint_from_its_start_to_its_end() {
    let test = std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        for command in ["link set lo up", "addr add 198.18.77.1/32 dev lo"] {
            assert!(std::process::Command::new("ip").args(command.split(' ')).status().unwrap().success());
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(from_start_to_end());
    });
    test.join().unwrap();
}

async fn from_start_to_end() {
    let mesh = Arc::new(plane::Ca::new("mesh"));
    let signer = mesh.clone();
    let mut plane = ControlPlane::start(Arc::new(move |request, _| Ok(signer.answer(&request.csr)))).await;
    let mut process = Process::start(&plane).await;
    let app = echo_at(TcpListener::bind("198.18.77.1:0").await.unwrap(), "app");
    let backend = Backend::new("app", VIP, &[app]);
    let tea = DirectResponse { status: StatusCode::IM_A_TEAPOT, body: Bytes::from_static(b"tea") };
    let condition = Condition { path: Some(PathKind::Exact("/tea".into()).into()), ..Condition::default() };
    let handling = Handling::new(Action::Respond(tea)).into();
    let rules = vec![Rule { conditions: vec![condition], handling }, support::rule(support::to("app"))];
    let named = support::table("app", rules);
    let table = Table::new("shop/waypoint", named.hosts().to_vec());

    let mut stream = plane.stream().await;
    let mut asked = Vec::new();
    for _ in 0..10 {
        asked.push(stream.request().await);
    }
    let connections = asked.remove(2);
    assert_eq!(connections.type_url, CONNECTION_ROUTES_TYPE);
    respond(&stream, &connections, Vec::new()).await;
    let types: Vec<_> = asked.iter().map(|request| request.type_url.as_str()).collect();
    let own = [SECURITY_TYPE, TELEMETRY_TYPE, CLUSTERS_TYPE, ROUTE_TABLE_TYPE, CERTIFICATES_TYPE, LISTENERS_TYPE];
    assert_eq!(types, [&[ADDRESS_TYPE, AUTHORIZATION_TYPE, WORKLOAD_LABELS_TYPE], &own[..]].concat());
    assert!(asked[3..].iter().all(|request| request.resource_names_subscribe == ["shop/waypoint"]));
    respond(&stream, &asked[0], addresses(&backend)).await;
    respond(&stream, &asked[1], Vec::new()).await;
    respond(&stream, &asked[2], Vec::new()).await;
    respond(&stream, &asked[3], vec![security(vec![])]).await;
    respond(&stream, &asked[4], Vec::new()).await;
    respond(&stream, &asked[5], Vec::new()).await;
    respond(&stream, &asked[7], Vec::new()).await;
    let edge = free().await.port();
    respond(&stream, &asked[8], vec![resource("shop/waypoint".to_owned(), LISTENERS_TYPE, listeners(edge))]).await;
    // Without its table it does not serve.
    for _ in 0..9 {
        assert!(stream.request().await.error_detail.is_none());
    }
    let pending = process.ready().await.unwrap();
    assert!(pending.starts_with("HTTP/1.1 500") && pending.contains("configuration"), "{pending}");
    assert!(TcpStream::connect(process.hbone).await.is_err());
    let routes = resource("shop/waypoint".to_owned(), ROUTE_TABLE_TYPE, convert::encode_route_table(&table));
    respond(&stream, &asked[6], vec![routes]).await;
    process.until_ready().await;

    // Its port is opened by who follows the listeners, a moment before or after.
    let outside = soon("an answer outside of the mesh", async {
        loop {
            if let Some(answer) = fetch((Ipv4Addr::LOCALHOST, edge).into(), "/y").await {
                return answer;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(outside.contains("app GET /y ") && outside.contains("x-forwarded-for: 127.0.0.1"), "{outside}");

    let client = client(&mesh, process.hbone);
    let answer = ask(&client, "/x").await;
    assert!(text(&answer).starts_with("app GET /x "), "{}", text(&answer));
    assert_eq!(ask(&client, "/tea").await.status(), StatusCode::IM_A_TEAPOT);
    // What it is told next counts for the next request; that there is nothing any more closes it.
    let nothing = Policy {
        name: NamespacedName::new("shop", "allow-nothing"),
        target: SecurityTarget::All,
        action: policy::Action::Allow,
        rules: Vec::new(),
        dry_run: false,
    };
    for (resources, expected) in [
        (vec![security(vec![nothing])], StatusCode::FORBIDDEN),
        (vec![security(vec![])], StatusCode::OK),
        (vec![], StatusCode::FORBIDDEN),
    ] {
        let gone = if resources.is_empty() { vec!["shop/waypoint".to_owned()] } else { Vec::new() };
        respond_with(&stream, &asked[3], resources, gone).await;
        let changed = async {
            while ask(&client, "/x").await.status() != expected {
                tokio::task::yield_now().await;
            }
        };
        support::soon("the policies", changed).await;
    }
    let shown = fetch(process.metrics, "/stats/prometheus").await.unwrap();
    assert!(shown.contains("istio_requests_total{reporter=\"waypoint\""), "{shown}");
    assert_eq!(name("waypoint").to_string(), "shop/waypoint.shop.svc.cluster.local");

    let pid = nix::unistd::Pid::from_raw(process.child.id().unwrap().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    let status = soon("end", process.child.wait()).await.unwrap();
    assert!(status.success(), "{status}");
}

#[tokio::test]
async fn a_wrong_command_line_is_refused_with_what_is_wrong() {
    let output = Command::new(env!("CARGO_BIN_EXE_mesh-waypoint")).args(["--gateway", "a b"]).output().await.unwrap();
    assert_eq!(output.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--gateway"));
}
