//! Who and what is refused, and how a waypoint ends.
#![allow(clippy::unwrap_used, non_snake_case, reason = "tests carry the ids of the rows that they prove")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_core::policy::{Action, Policy};
use mesh_core::service::AppProtocol;
use mesh_core::{Change, Service};
use mesh_transport::hbone::HboneError;
use mesh_waypoint::Settings;
use mesh_waypoint::downstream::follow;
use mesh_waypoint::refused::Reason;
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;

const VIP: &str = "10.96.0.10";
const ASK: &str = "10.96.0.10:80";

#[tokio::test]
async fn only_what_is_bound_to_this_waypoint_is_reached_through_it() {
    let app = echo("app").await;
    let other = Backend { bound: false, ..Backend::new("other", "10.96.0.99", &[app]) };
    let waypoint = Waypoint::start(&[Backend::new("app", VIP, &[app]), other], Default::default()).await;
    for (authority, status) in [
        ("10.96.0.99:80", 400),
        ("10.96.0.10:81", 400),
        ("10.96.0.10:15008", 400),
        ("192.0.2.1:80", 400),
        ("127.0.0.1:80", 400),
    ] {
        match soon("refusal", waypoint.stream(authority)).await {
            Err(HboneError::Refused(found)) => assert_eq!(found.as_u16(), status, "{authority}"),
            other => panic!("{authority}: {other:?}"),
        }
    }
    // An address of a workload that has no waypoint is not a way around.
    assert!(soon("refusal", waypoint.stream(&app.to_string())).await.is_err());
    assert_eq!(waypoint.ask(ASK, get("/")).await.status(), StatusCode::OK);
}

/// What is on its way when a service is let go is served as before, and the connection ends; new ones are refused.
#[tokio::test]
async fn a_connection_outlives_the_binding_of_its_service_by_what_is_on_its_way() {
    let app = echo("app").await;
    let mut waypoint = Waypoint::start(&[Backend::new("app", VIP, &[app])], Default::default()).await;
    let stream = waypoint.stream(ASK).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let bound = waypoint.state.view().snapshot.service_by_host("app.shop.svc.cluster.local")[0].clone();
    let service = Service { waypoint: None, ..Service::clone(&bound) };
    follow(waypoint.engine.shared(), waypoint.store.apply(vec![Change::Service(service)]).snapshot);
    let answer = whole(soon("answer", sender.send_request(get("/"))).await.unwrap()).await;
    assert_eq!((answer.status(), &answer.headers()["connection"]), (StatusCode::OK, &"close".parse().unwrap()));
    soon("end", connection).await.unwrap().unwrap();
    assert!(soon("refusal", waypoint.stream(ASK)).await.is_err());
}

/// One that is idle asks for nothing, and would be refused whenever it does.
#[tokio::test]
async fn idle_connections_end_when_their_service_is_let_go() {
    let app = echo("app").await;
    let backends = [Backend::new("app", VIP, &[app]), Backend::new("other", "10.96.0.11", &[app])];
    let settings = Settings { drain_idle: Duration::from_millis(50), ..Settings::default() };
    let mut waypoint = Waypoint::with(&backends, Default::default(), settings).await;
    let stream = waypoint.stream(ASK).await.unwrap();
    let (mut one, first) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let first = tokio::spawn(first);
    let stream = waypoint.stream(ASK).await.unwrap();
    let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let (mut two, second) = builder.handshake(TokioIo::new(stream)).await.unwrap();
    let second = tokio::spawn(second);
    let stream = waypoint.stream("10.96.0.11:80").await.unwrap();
    let (mut others, stays) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(stays);
    assert_eq!(whole(one.send_request(get("/")).await.unwrap()).await.status(), StatusCode::OK);
    assert_eq!(whole(two.send_request(get("/")).await.unwrap()).await.status(), StatusCode::OK);
    assert_eq!(whole(others.send_request(get("/")).await.unwrap()).await.status(), StatusCode::OK);
    let bound = waypoint.state.view().snapshot.service_by_host("app.shop.svc.cluster.local")[0].clone();
    let service = Service { waypoint: None, ..Service::clone(&bound) };
    follow(waypoint.engine.shared(), waypoint.store.apply(vec![Change::Service(service)]).snapshot);
    soon("the end of HTTP/1.1", first).await.unwrap().unwrap();
    soon("the end of HTTP/2", second).await.unwrap().unwrap();
    soon("the other service", others.ready()).await.unwrap();
    assert_eq!(whole(others.send_request(get("/")).await.unwrap()).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn whoever_proves_nothing_is_not_heard() {
    let app = echo("app").await;
    let waypoint = Waypoint::start(&[Backend::new("app", VIP, &[app])], Default::default()).await;
    let mut plain = TcpStream::connect(waypoint.address).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nhost: shop\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = soon("end", plain.read_to_end(&mut answer)).await;
    assert!(!answer.starts_with(b"HTTP"));
    waypoint.refuses(1, &[Reason::NotTls]).await;
    // Another authority's certificate is none.
    let mut client = waypoint.client();
    client.certificate = Ca::new().issue(&identity(CLIENT));
    assert!(soon("refusal", client.stream(ASK)).await.is_err());
    // Each side sees another's: whoever is first says it.
    waypoint.refuses(1, &[Reason::ClientCertificate, Reason::RefusedByPeer]).await;
    // Who looks whether the port is open.
    drop(TcpStream::connect(waypoint.address).await.unwrap());
    waypoint.refuses(1, &[Reason::HandshakeClosed]).await;
}

#[tokio::test]
async fn policies_of_the_endpoint_are_asked_for_the_client() {
    let app = echo("app").await;
    let mut waypoint = Waypoint::start(&[Backend::new("app", VIP, &[app])], Default::default()).await;
    let stream = waypoint.stream(ASK).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    assert_eq!(whole(sender.send_request(get("/")).await.unwrap()).await.status(), StatusCode::OK);
    // An ALLOW policy without rules lets nobody in, also those whose connection is there already.
    let policy = Policy {
        name: "shop/nobody".parse().unwrap(),
        action: Action::Allow,
        scope: mesh_core::policy::Scope::Namespace,
        rules: Vec::new(),
        dry_run: false,
    };
    waypoint.state.set_snapshot(waypoint.store.apply(vec![Change::Policy(policy)]).snapshot);
    sender.ready().await.unwrap();
    let denied = whole(soon("answer", sender.send_request(get("/"))).await.unwrap()).await;
    assert_eq!((denied.status(), text(&denied)), (StatusCode::FORBIDDEN, "RBAC: access denied"));
}

#[tokio::test]
async fn a_drain_loses_no_request() {
    let (begun, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (tell, wait) = (begun.clone(), go.clone());
    let app = server(move |_: Request<Incoming>| {
        let (tell, wait) = (tell.clone(), wait.clone());
        async move {
            tell.notify_one();
            wait.notified().await;
            Response::new(Full::new(Bytes::from_static(b"done")))
        }
    })
    .await;
    let waypoint = Waypoint::start(&[Backend::new("app", VIP, &[app])], Default::default()).await;
    let stream = waypoint.stream(ASK).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let answer = tokio::spawn(sender.send_request(get("/")));
    soon("request", begun.notified()).await;
    waypoint.drain.start();
    go.notify_one();
    let answer = whole(soon("answer", answer).await.unwrap().unwrap()).await;
    assert_eq!((text(&answer), &answer.headers()["connection"]), ("done", &"close".parse().unwrap()));
    soon("end", connection).await.unwrap().unwrap();
    // New tunnels go elsewhere.
    soon("refusal", async { while TcpStream::connect(waypoint.address).await.is_ok() {} }).await;
}

#[tokio::test]
async fn a_waypoint_that_knows_nothing_yet_refuses() {
    let waypoint = Waypoint::start(&[], Default::default()).await;
    waypoint.state.set_snapshot(Default::default());
    match soon("refusal", waypoint.stream(ASK)).await {
        Err(HboneError::Refused(status)) => assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE),
        other => panic!("{other:?}"),
    }
    waypoint.refuses(1, &[Reason::NotSynced]).await;
}

/// As browsers open them beforehand: they have asked nothing, and nobody waits for that when the process is to stop.
#[tokio::test]
async fn a_connection_that_has_said_nothing_hears_that_it_is_to_end() {
    let settings = Settings { drain_idle: Duration::from_millis(500), ..Settings::default() };
    let backend = Backend::new("app", VIP, &[echo("app").await]).speaking(AppProtocol::Http11);
    let waypoint = Waypoint::with(&[backend], mesh_core::l7::Table::default(), settings).await;
    let mut stream = soon("stream", waypoint.stream(ASK)).await.unwrap();
    waypoint.drain.start();
    let mut heard = Vec::new();
    assert_eq!(soon("its end", stream.read_to_end(&mut heard)).await.unwrap(), 0, "in order");
}
