//! Mirrors: copies of requests, for which nobody waits, whatever becomes of them.
#![allow(clippy::unwrap_used, non_snake_case, reason = "tests carry the ids of the rows that they prove")]

mod support;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Version};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use mesh_core::NamespacedName;
use mesh_core::l7::{ClusterKey, Handling, Mirror, Retries, Share, Table, Target};
use mesh_core::service::AppProtocol;
use mesh_waypoint::Settings;
use support::*;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

const ASK: &str = "10.96.0.10:80";
const LARGE: usize = 8 << 20;

type AnyBody = BoxBody<Bytes, std::convert::Infallible>;

/// All requests for `a` go there, and copies to `b`.
fn mirrored() -> Table {
    mirrored_to(cluster("b"))
}

fn mirrored_to(place: ClusterKey) -> Table {
    let mirror = Mirror { target: Target::Cluster(place), share: Share::ALWAYS };
    table("a", vec![rule(Handling { mirrors: vec![mirror], retries: Retries::default(), ..to("a") })])
}

async fn shop(a: &[SocketAddr], b: &[SocketAddr], settings: Settings) -> Waypoint {
    let backends = [Backend::new("a", "10.96.0.10", a), Backend::new("b", "10.96.0.11", b)];
    Waypoint::with(&backends, mirrored(), settings).await
}

/// A server that counts the bytes of its requests, and tells of those that are whole.
async fn sink() -> (SocketAddr, mpsc::UnboundedReceiver<(Version, usize)>) {
    let (tell, told) = mpsc::unbounded_channel();
    let address = server(move |request: Request<Incoming>| {
        let tell = tell.clone();
        async move {
            let version = request.version();
            let whole = request.into_body().collect().await.map(|body| body.to_bytes().len());
            if let Ok(bytes) = whole {
                let _ = tell.send((version, bytes));
            }
            Response::new(Full::<Bytes>::default())
        }
    })
    .await;
    (address, told)
}

async fn connect(waypoint: &Waypoint) -> SendRequest<AnyBody> {
    let stream = soon("stream", waypoint.stream(ASK)).await.unwrap();
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn post(body: AnyBody) -> Request<AnyBody> {
    Request::builder().method(Method::POST).uri("/").header("host", "shop").body(body).unwrap()
}

fn large() -> AnyBody {
    let piece = Bytes::from(vec![b'x'; 64 << 10]);
    let pieces = std::iter::repeat_n(piece, LARGE / (64 << 10)).map(|piece| Ok(Frame::data(piece)));
    BodyExt::boxed(StreamBody::new(futures_util::stream::iter(pieces.collect::<Vec<_>>())))
}

/// A body that is sent piece by piece.
fn pieces() -> (mpsc::UnboundedSender<Bytes>, AnyBody) {
    let (send, mut receive) = mpsc::unbounded_channel::<Bytes>();
    let stream =
        futures_util::stream::poll_fn(move |cx| receive.poll_recv(cx).map(|piece| Some(Ok(Frame::data(piece?)))));
    (send, BodyExt::boxed(StreamBody::new(stream)))
}

async fn status(sender: &mut SendRequest<AnyBody>, request: Request<AnyBody>) -> StatusCode {
    whole(soon("answer", sender.send_request(request)).await.unwrap()).await.status()
}

/// Waits until a scrape has a line with all of these.
async fn shown(waypoint: &Waypoint, parts: &[&str]) {
    soon(&format!("{parts:?}"), async {
        while !waypoint.scrape().lines().any(|line| parts.iter().all(|part| line.contains(part))) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn features_VS_18_bodies_of_any_length_are_copied_and_copies_counted() {
    let ((a, mut at_a), (b, mut at_b)) = (sink().await, sink().await);
    // On a busy machine the copy's connection may be made late.
    let waypoint = shop(&[a], &[b], Settings { mirror_bytes: LARGE / 2, ..Settings::default() }).await;
    let mut sender = connect(&waypoint).await;
    assert_eq!(status(&mut sender, post(large())).await, StatusCode::OK);
    assert_eq!(soon("request", at_a.recv()).await.unwrap().1, LARGE);
    assert_eq!(soon("copy", at_b.recv()).await.unwrap().1, LARGE);
    // One whose length is said, of which nobody looks for the end.
    assert_eq!(status(&mut sender, post(BodyExt::boxed(Full::new(vec![1; LARGE].into())))).await, StatusCode::OK);
    assert_eq!(soon("copy", at_b.recv()).await.unwrap().1, LARGE);
    let of_b = "destination_service=\"b.shop.svc.cluster.local\"";
    shown(&waypoint, &["istio_requests_total{reporter=\"waypoint\"", of_b, "response_code=\"200\"", "} 2"]).await;
    shown(&waypoint, &["istio_request_bytes_sum{", of_b, &format!("}} {}", 2 * LARGE)]).await;
    assert!(!waypoint.scrape().contains("undermesh_mirrors_given_up_total"));
    assert_eq!(waypoint.engine.lanes()[0].mirrored.load(std::sync::atomic::Ordering::Relaxed), 0);
}

/// The copy is sent as the body goes by, and not when it is whole.
#[tokio::test]
async fn features_VS_18_copies_are_streams() {
    let (a, _at_a) = sink().await;
    let (tell, mut told) = mpsc::unbounded_channel();
    let b = server(move |request: Request<Incoming>| {
        let tell = tell.clone();
        async move {
            let mut body = request.into_body();
            while let Some(Ok(frame)) = body.frame().await {
                let _ = tell.send(frame.into_data().unwrap());
            }
            Response::new(Full::<Bytes>::default())
        }
    })
    .await;
    // Longer than a copy may take once its body is there.
    let waypoint =
        shop(&[a], &[b], Settings { mirror_timeout: Duration::from_millis(100), ..Settings::default() }).await;
    let mut sender = connect(&waypoint).await;
    let (send, body) = pieces();
    let answer = tokio::spawn(async move { status(&mut sender, post(body)).await });
    for piece in ["one", "two", "three"] {
        send.send(piece.into()).unwrap();
        assert_eq!(soon(piece, told.recv()).await.unwrap(), piece);
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    drop(send);
    assert_eq!(soon("answer", answer).await.unwrap(), StatusCode::OK);
    shown(&waypoint, &["istio_requests_total{", "destination_service_name=\"b\"", "response_code=\"200\"", "} 1"])
        .await;
}

#[tokio::test]
async fn features_VS_18_a_mirror_that_is_slow_is_given_up_and_holds_up_nobody() {
    let (a, mut at_a) = sink().await;
    // It accepts, and reads nothing.
    let silent = listener().await;
    let b = silent.local_addr().unwrap();
    let waypoint = shop(&[a], &[b], Settings::default()).await;
    let mut sender = connect(&waypoint).await;
    for _ in 0..3 {
        assert_eq!(status(&mut sender, post(large())).await, StatusCode::OK);
        assert_eq!(soon("request", at_a.recv()).await.unwrap().1, LARGE);
    }
    shown(&waypoint, &["undermesh_mirrors_given_up_total{reason=\"slow\"} 3"]).await;
    assert_eq!(waypoint.engine.lanes()[0].mirrored.load(std::sync::atomic::Ordering::Relaxed), 0);
}

#[tokio::test]
async fn features_VS_18_copies_that_are_given_up_are_counted_by_why() {
    let (a, _at_a) = sink().await;
    let closes = scripted(vec![(b"no HTTP\r\n\r\n".to_vec(), true)]).await.0;
    let never = server(|_: Request<Incoming>| std::future::pending::<Response<Full<Bytes>>>()).await;
    let short = || Settings { mirror_timeout: Duration::from_millis(100), ..Settings::default() };
    for (b, settings, reason, code, flags) in [
        (vec![], Settings::default(), "no_endpoint", "", ""),
        (vec![nobody().await], Settings::default(), "connect", "503", "UF"),
        (vec![closes], Settings::default(), "no_answer", "503", "UC"),
        (vec![never], short(), "timeout", "504", "UT"),
        (vec![never], Settings { mirrors: 0, ..Settings::default() }, "too_many", "", ""),
    ] {
        let waypoint = shop(&[a], &b, settings).await;
        assert_eq!(waypoint.ask(ASK, get("/")).await.status(), StatusCode::OK, "{reason}");
        shown(&waypoint, &[&format!("undermesh_mirrors_given_up_total{{reason=\"{reason}\"}} 1")]).await;
        let counted = "destination_service_name=\"b\"";
        match code.is_empty() {
            true => assert!(!waypoint.scrape().contains(counted), "{reason}"),
            false => {
                let (code, flags) = (format!("response_code=\"{code}\""), format!("response_flags=\"{flags}\""));
                shown(&waypoint, &["istio_requests_total{", counted, &code, &flags, "} 1"]).await;
            }
        }
    }
}

/// A copy whose request ends before its body is never taken for a whole one.
#[tokio::test]
async fn features_VS_18_a_copy_of_what_is_cut_is_cut() {
    let ((a, mut at_a), (b, mut at_b)) = (sink().await, sink().await);
    let waypoint = shop(&[a], &[b], Settings::default()).await;
    let mut sender = connect(&waypoint).await;
    let (send, body) = pieces();
    let answer = tokio::spawn(async move { sender.send_request(post(body)).await.map(|_| ()) });
    send.send("some".into()).unwrap();
    shown_soon(&waypoint, 1).await;
    answer.abort();
    let _ = answer.await;
    drop(send);
    shown(&waypoint, &["undermesh_mirrors_given_up_total{reason=\"cut\"} 1"]).await;
    assert!(at_a.try_recv().is_err() && at_b.try_recv().is_err());
}

/// Waits until so many copies are on their way.
async fn shown_soon(waypoint: &Waypoint, count: usize) {
    soon("copies", async {
        while waypoint.engine.lanes()[0].mirrors.load(std::sync::atomic::Ordering::Relaxed) != count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// What is said of the mirror's place counts for it, and a request that nobody takes has a copy all the same.
#[tokio::test]
async fn features_VS_18_copies_go_as_their_own_place_wants_them() {
    let (b, mut at_b) = sink().await;
    let backends = [
        Backend::new("a", "10.96.0.10", &[nobody().await]).speaking(AppProtocol::Http11),
        Backend::new("b", "10.96.0.11", &[b]).speaking(AppProtocol::Http2),
    ];
    let waypoint = Waypoint::start(&backends, mirrored()).await;
    let mut sender = connect(&waypoint).await;
    let body = BodyExt::boxed(Full::new(Bytes::from_static(b"body")));
    assert_eq!(status(&mut sender, post(body)).await, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(soon("copy", at_b.recv()).await.unwrap(), (Version::HTTP_2, 4));
}

/// Where only a pattern is known, the name that the client asks for is where the copy goes.
#[tokio::test]
async fn features_VS_18_copies_go_to_names_that_are_looked_up() {
    let out = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    let own = out.connect("192.0.2.1:9").and_then(|()| out.local_addr()).map(|address| address.ip());
    let Some(own) = own.ok().filter(|ip| mesh_core::outside::is_public(*ip)) else {
        return skipped("mirrors to names", "this machine has no address but loopback");
    };
    let ((a, _at_a), (tell, mut told)) = (sink().await, mpsc::unbounded_channel());
    let tcp = TcpListener::bind((own, 0)).await.unwrap();
    let b = server_at(tcp, move |request: Request<Incoming>| {
        let _ = tell.send(request.headers()["host"].clone());
        async { Response::new(Full::<Bytes>::default()) }
    });
    let mut waypoint = shop(&[a], &[], Settings::default()).await;
    let mut changes = Backend::new("b", "10.96.0.11", &[]).changes();
    for change in &mut changes {
        if let mesh_core::Change::Service(service) = change {
            service.hostname = "*.b.example".into();
            service.ports[0].target_port = b.port();
        }
    }
    waypoint.state.set_snapshot(waypoint.store.apply(changes).snapshot);
    let pattern = NamespacedName::new("shop", "*.b.example");
    let place = ClusterKey { service: pattern.clone(), ..cluster("b") };
    waypoint.state.set_table(std::sync::Arc::new(mirrored_to(place)));
    let shared = waypoint.engine.shared();
    let snapshot = shared.state.view().snapshot.clone();
    let service = snapshot.service(&pattern).unwrap();
    let answer = async |_, _| Ok::<Vec<IpAddr>, std::io::Error>(vec![own]);
    let known = (&*snapshot, "");
    let named = shared.names.find(service, Some("x.b.example"), known, shared.now_ms(), answer).await;
    assert_eq!(named.unwrap().unwrap().addresses[..], [own]);
    let ask = |host: &'static str| Request::builder().uri("/").header("host", host).body(Full::default()).unwrap();
    assert_eq!(waypoint.ask(ASK, ask("x.b.example")).await.status(), StatusCode::OK);
    assert_eq!(soon("copy", told.recv()).await.unwrap(), "x.b.example-shadow");
    // The pattern does not mean this one.
    assert_eq!(waypoint.ask(ASK, ask("elsewhere.example")).await.status(), StatusCode::OK);
    shown(&waypoint, &["undermesh_mirrors_given_up_total{reason=\"no_endpoint\"} 1"]).await;
}
