//! WebSockets while they are open: they count among the connections of their place, policies that change end them, and their line has what went by.
#![allow(clippy::unwrap_used, non_snake_case, reason = "tests carry the ids of the rows that they prove")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{Empty, Full};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_core::l7::cluster::{Policy, Pool};
use mesh_core::l7::policy::{self, List, Operation, PathPattern};
use mesh_core::l7::{Cluster, Clusters, Security, SecurityTarget, Table};
use mesh_core::service::AppProtocol;
use mesh_core::telemetry::{AccessLog, LogFormat, Scopes, Telemetry};
use mesh_waypoint::Settings;
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const VIP: &str = "10.96.0.10";
const ASK: &str = "10.96.0.10:80";

/// An endpoint that sends back what it hears in a socket.
async fn chat() -> std::net::SocketAddr {
    server(|mut request: Request<Incoming>| async move {
        let mut response = Response::new(Full::<Bytes>::default());
        if request.headers().contains_key("upgrade") {
            let upgraded = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let (mut read, mut write) = tokio::io::split(TokioIo::new(upgraded.await.unwrap()));
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            for (name, value) in [("upgrade", "websocket"), ("connection", "Upgrade")] {
                response.headers_mut().insert(name, HeaderValue::from_static(value));
            }
        }
        response
    })
    .await
}

async fn open(waypoint: &Waypoint, http2: bool) -> TokioIo<Upgraded> {
    let io = TokioIo::new(soon("stream", waypoint.stream(ASK)).await.unwrap());
    let mut answer = if http2 {
        let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        let request = |path: &str| Request::builder().uri(format!("http://shop{path}"));
        // Once something was answered, the client knows that it may ask.
        let first = request("/").body(Empty::<Bytes>::new()).unwrap();
        soon("answer", sender.send_request(first)).await.unwrap();
        let protocol = hyper::ext::Protocol::from_static("websocket");
        let request = request("/chat").method("CONNECT").extension(protocol).body(Empty::new()).unwrap();
        soon("answer", sender.send_request(request)).await.unwrap()
    } else {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        let mut request = get("/chat");
        request.headers_mut().insert("upgrade", HeaderValue::from_static("websocket"));
        request.headers_mut().insert("connection", HeaderValue::from_static("upgrade"));
        soon("answer", sender.send_request(request)).await.unwrap()
    };
    assert_eq!(answer.status().as_u16(), if http2 { 200 } else { 101 });
    let mut io = TokioIo::new(soon("agreement", hyper::upgrade::on(&mut answer)).await.unwrap());
    let mut heard = [0; 5];
    io.write_all(b"hello").await.unwrap();
    soon("bytes", io.read_exact(&mut heard)).await.unwrap();
    io
}

async fn until(lines: impl Fn() -> String, written: &str) {
    let same = async {
        while lines() != written {
            tokio::time::sleep(Duration::from_millis(5)).await
        }
    };
    let came = tokio::time::timeout(Duration::from_secs(20), same).await;
    assert!(came.is_ok(), "{} for {written}", lines());
}

async fn none_is_open(waypoint: &Waypoint) {
    let pool = &waypoint.engine.lanes()[0].pool;
    soon("the end of its connection", async {
        while pool.open() > 0 {
            tokio::task::yield_now().await
        }
    })
    .await;
    assert_eq!(waypoint.ask(ASK, get("/")).await.status(), StatusCode::OK);
    soon("the end of that", async {
        while pool.open() > 0 {
            tokio::task::yield_now().await
        }
    })
    .await;
}

#[tokio::test]
async fn features_DR_9_a_web_socket_is_a_connection_until_it_ends_and_policies_may_end_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let lines = || std::fs::read_to_string(&path).unwrap_or_default();
    let format = "%REQ(:PATH)% %BYTES_RECEIVED% %BYTES_SENT% %RESPONSE_FLAGS% %CONNECTION_TERMINATION_DETAILS%";
    let filter = Some("request.path == '/chat'".into());
    let log = AccessLog {
        path: path.to_str().unwrap().into(),
        format: LogFormat::Text(format!("{format}\n").into()),
        filter,
    };
    let of_all = Arc::new(Telemetry { logs: vec![log], ..Telemetry::default() });
    let settings = Settings { telemetry: Scopes { waypoint: of_all, ..Scopes::default() }, ..Settings::default() };
    let backend = Backend::new("app", VIP, &[chat().await]).speaking(AppProtocol::Http11);
    let waypoint = Waypoint::with(&[backend], Table::default(), settings).await;
    let pool = Pool { connections: 1, requests_per_connection: 1, ..Pool::default() };
    let policy = Policy { pool, ..Policy::default() };
    waypoint
        .state
        .set_clusters(Arc::new(Clusters::new([Cluster { policy: Ok(policy), ..Cluster::closed(cluster("app"), "") }])));
    let mut written = String::new();
    for http2 in [false, true] {
        let mut io = open(&waypoint, http2).await;
        assert_eq!(waypoint.engine.lanes()[0].pool.open(), 1, "it is a connection of its place");
        assert_eq!(lines(), written, "it is not over");
        io.shutdown().await.unwrap();
        soon("end", io.read_to_end(&mut Vec::new())).await.unwrap();
        written.push_str("/chat 5 5 - -\n");
        until(&lines, &written).await;
        none_is_open(&waypoint).await;

        let mut io = open(&waypoint, http2).await;
        let paths = |path: &str| List { is: vec![PathPattern::new(path).unwrap()], not: vec![] };
        let denies = |path: &str| {
            let to = vec![Operation { paths: paths(path), ..Operation::default() }];
            let policy = policy::Policy {
                name: mesh_core::NamespacedName::new("shop", "deny"),
                target: SecurityTarget::All,
                action: policy::Action::Deny,
                rules: vec![policy::Rule { to, ..policy::Rule::default() }],
                dry_run: false,
            };
            Some(Arc::new(Security { policies: vec![Arc::new(policy)], ..Security::default() }))
        };
        // What is said of others does not end it.
        waypoint.state.set_security(denies("/other"));
        let mut heard = [0; 5];
        io.write_all(b"hello").await.unwrap();
        soon("bytes", io.read_exact(&mut heard)).await.unwrap();
        waypoint.state.set_security(denies("/chat"));
        let _ = soon("end", io.read_to_end(&mut Vec::new())).await;
        written.push_str("/chat 10 10 - rbac_access_denied\n");
        until(&lines, &written).await;
        waypoint.state.set_security(Some(Arc::default()));
        none_is_open(&waypoint).await;
    }
}
