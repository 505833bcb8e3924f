//! What operators see of requests: numbers.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    non_snake_case,
    reason = "tests carry the ids of the rows that they prove"
)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_core::l7::{
    Abort, AbortStatus, Action, Condition, Delay, Fault, Handling, PathKind, Retries, RetryOn, Rule, Share, Table,
};
use mesh_core::service::AppProtocol;
use mesh_core::telemetry::{AccessLog, LogFormat, Scopes, Telemetry};
use mesh_waypoint::Settings;
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const VIP: &str = "10.96.0.10";
const ASK: &str = "10.96.0.10:80";

/// Waits for a line of the metrics with all of these in it, and gives its value.
async fn value(waypoint: &Waypoint, parts: &[&str]) -> String {
    let find = || {
        let shown = waypoint.scrape();
        let line = shown.lines().find(|line| parts.iter().all(|part| line.contains(part)))?;
        Some(line.rsplit(' ').next()?.to_owned())
    };
    soon(&format!("{parts:?}"), async {
        loop {
            if let Some(value) = find() {
                return value;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
}

fn at(path: &str, handling: Handling) -> Rule {
    let condition = Condition { path: Some(PathKind::Exact(path.into()).into()), ..Condition::default() };
    Rule { conditions: vec![condition], handling: handling.into() }
}

#[tokio::test]
async fn features_TM_3_messages_of_grpc_are_counted_in_both_directions() {
    let app = server(|request: Request<Incoming>| async move {
        let _ = request.into_body().collect().await;
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        // One message, cut in its head.
        let parts = [&[0, 0][..], &[0, 0, 2, 7, 7]].map(|part| Ok(Frame::data(Bytes::from_static(part))));
        let frames = parts.into_iter().chain([Ok(Frame::trailers(trailers))]);
        Response::new(StreamBody::new(futures_util::stream::iter(frames.collect::<Vec<_>>())))
    })
    .await;
    let waypoint =
        Waypoint::start(&[Backend::new("app", VIP, &[app]).speaking(AppProtocol::Grpc)], Table::default()).await;
    let stream = soon("stream", waypoint.stream(ASK)).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let body = Full::new(Bytes::from_static(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 9]));
    let request = Request::builder().method(Method::POST).uri("http://shop/svc/Method");
    let request = request.header("content-type", "application/grpc").body(body).unwrap();
    let _ = whole(soon("answer", sender.send_request(request)).await.unwrap()).await;
    let grpc = "request_protocol=\"grpc\",response_code=\"200\",grpc_response_status=\"0\"";
    assert_eq!(value(&waypoint, &["istio_request_messages_total{", grpc]).await, "2");
    assert_eq!(value(&waypoint, &["istio_response_messages_total{", grpc]).await, "1");
}

#[tokio::test]
async fn features_TM_1_what_is_copied_is_counted_as_connections_and_bytes() {
    let listener = listener().await;
    let app = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        let mut said = [0; 4];
        tcp.read_exact(&mut said).await.unwrap();
        tcp.write_all(b"answer").await.unwrap();
        let _ = tcp.read_to_end(&mut Vec::new()).await;
    });
    let gone = Backend::new("gone", "10.96.0.11", &[nobody().await]).speaking(AppProtocol::Tcp);
    let backends = [Backend::new("app", VIP, &[app]).speaking(AppProtocol::Tcp), gone];
    let waypoint = Waypoint::start(&backends, Table::default()).await;
    let mut stream = soon("stream", waypoint.stream(ASK)).await.unwrap();
    stream.write_all(b"said").await.unwrap();
    let mut answer = [0; 6];
    soon("answer", stream.read_exact(&mut answer)).await.unwrap();
    let app = "destination_service_name=\"app\"";
    // While it lives.
    assert_eq!(value(&waypoint, &["istio_tcp_connections_opened_total{", app]).await, "1");
    assert_eq!(value(&waypoint, &["istio_tcp_received_bytes_total{", app, "\"tcp\""]).await, "4");
    assert_eq!(value(&waypoint, &["istio_tcp_sent_bytes_total{", app]).await, "6");
    assert_eq!(value(&waypoint, &["istio_tcp_connections_closed_total{", app]).await, "0");
    drop(stream);
    assert_eq!(value(&waypoint, &["istio_tcp_connections_closed_total{", app, "} 1"]).await, "1");
    let _ = waypoint.stream("10.96.0.11:80").await;
    assert_eq!(value(&waypoint, &["istio_tcp_connections_closed_total{", "response_flags=\"UF\""]).await, "1");
}

/// One request for each flag that a waypoint gives.
#[tokio::test]
async fn features_TM_5_each_failure_has_its_flag() {
    let app = echo("app").await;
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let never = server(move |request: Request<Incoming>| {
        let _ = tell.send(request.uri().path().to_owned());
        std::future::pending::<Response<Full<Bytes>>>()
    })
    .await;
    let backends = [
        Backend::new("app", VIP, &[app]),
        Backend::new("none", "10.96.0.11", &[]),
        Backend::new("gone", "10.96.0.12", &[nobody().await]),
        Backend::new("never", "10.96.0.13", &[never]),
        Backend::new("bad", "10.96.0.14", &[noting(StatusCode::BAD_GATEWAY).await.0]),
    ];
    let again = |on: &str| Retries { on: RetryOn::parse(on).unwrap(), ..Retries::default() };
    let delay = Some(Delay { time: Duration::from_millis(1), share: Share::ALWAYS });
    let abort = Some(Abort { status: AbortStatus::Http(StatusCode::IM_A_TEAPOT), share: Share::ALWAYS });
    let slow = Handling { timeout: Some(Duration::from_millis(50)), ..to("never") };
    let rules = vec![
        at("/fi", Handling { fault: Some(Fault { delay: None, abort }), ..to("app") }),
        at("/di", Handling { fault: Some(Fault { delay, abort: None }), ..to("app") }),
        at("/both", Handling { fault: Some(Fault { delay, abort }), ..to("app") }),
        at("/uh", to("none")),
        at("/uf", to("gone")),
        at("/urx", Handling { retries: Retries::default(), ..to("gone") }),
        at("/urx-answered", Handling { retries: again("502"), ..to("bad") }),
        at("/answered", Handling { retries: again("503"), ..to("bad") }),
        at("/ut", slow),
        at("/dc", to("never")),
        at("/nc", Handling::new(Action::Closed("broken".into()))),
    ];
    let waypoint = Waypoint::start(&backends, table("app", rules)).await;
    for (path, status, flags) in [
        ("/fi", 418, "FI"),
        ("/di", 200, "DI"),
        ("/both", 418, "DI,FI"),
        ("/uh", 503, "UH"),
        ("/uf", 503, "UF"),
        ("/urx", 503, "UF,URX"),
        ("/urx-answered", 502, "URX"),
        ("/answered", 502, "-"),
        ("/ut", 504, "UT"),
        ("/nc", 500, "NC"),
        ("/other", 404, "NR"),
    ] {
        let answer = waypoint.ask(ASK, get(path)).await;
        assert_eq!(answer.status(), status, "{path}");
        let labels = format!("response_code=\"{status}\",response_flags=\"{flags}\"");
        assert_eq!(value(&waypoint, &["istio_requests_total{", &labels]).await, "1", "{path}");
    }
    // The client leaves before there is an answer.
    let mut stream = waypoint.stream(ASK).await.unwrap();
    stream.write_all(b"GET /dc HTTP/1.1\r\nhost: shop\r\n\r\n").await.unwrap();
    // It has arrived.
    while soon("request", told.recv()).await.unwrap() != "/dc" {}
    drop(stream);
    assert_eq!(value(&waypoint, &["istio_requests_total{", "response_code=\"0\",response_flags=\"DC\""]).await, "1");
}

#[tokio::test]
async fn features_TM_2_durations_and_sizes_are_in_envoys_buckets() {
    let app = server(|request: Request<Incoming>| async move {
        let _ = request.into_body().collect().await;
        Response::new(Full::new(Bytes::from(vec![b'x'; 700])))
    })
    .await;
    let waypoint = Waypoint::start(&[Backend::new("app", VIP, &[app])], Table::default()).await;
    let request = Request::builder().method("POST").uri("/").header("host", "shop");
    waypoint.ask(ASK, request.body(Full::new(Bytes::from(vec![b'y'; 30]))).unwrap()).await;
    for (name, label, expected) in [
        ("istio_request_bytes_bucket{", "le=\"25.0\"", "0"),
        ("istio_request_bytes_bucket{", "le=\"50.0\"", "1"),
        ("istio_request_bytes_sum{", "", "30.0"),
        ("istio_response_bytes_bucket{", "le=\"500.0\"", "0"),
        ("istio_response_bytes_bucket{", "le=\"1000.0\"", "1"),
        ("istio_response_bytes_bucket{", "le=\"+Inf\"", "1"),
        ("istio_request_duration_milliseconds_bucket{", "le=\"3600000.0\"", "1"),
        ("istio_request_duration_milliseconds_count{", "", "1"),
    ] {
        assert_eq!(value(&waypoint, &[name, label]).await, expected, "{name} {label}");
    }
}

/// A body that does not come to its end says who has ended it: our own deadline, the endpoint, or the client.
#[tokio::test]
async fn features_TM_5_a_body_without_its_end_says_who_ended_it() {
    let begun = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nbody";
    let (breaks, ..) = scripted(vec![(begun.to_vec(), true)]).await;
    let (waits, ..) = scripted(vec![(begun.to_vec(), false)]).await;
    let backends = [Backend::new("waits", VIP, &[waits]), Backend::new("breaks", "10.96.0.11", &[breaks])];
    let late = Handling { timeout: Some(Duration::from_millis(100)), ..to("waits") };
    let rules = vec![at("/ut", late), at("/uc", to("breaks")), at("/dc", to("waits"))];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let format = LogFormat::Text("%REQ(:PATH)% %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%\n".into());
    let log = AccessLog { path: path.to_str().unwrap().into(), format, filter: None };
    let telemetry =
        Scopes { waypoint: Arc::new(Telemetry { logs: vec![log], ..Telemetry::default() }), ..Scopes::default() };
    let waypoint =
        Waypoint::with(&backends, table("waits", rules), Settings { telemetry, ..Settings::default() }).await;
    for (path, flags) in [("/ut", "UT"), ("/uc", "UC"), ("/dc", "DC")] {
        let mut stream = soon("stream", waypoint.stream(ASK)).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: shop\r\n\r\n").as_bytes()).await.unwrap();
        let mut heard = Vec::new();
        while !heard.ends_with(b"body") {
            if soon("body", stream.read_buf(&mut heard)).await.is_err() {
                break;
            }
        }
        if path != "/dc" {
            let _ = soon("end", stream.read_to_end(&mut heard)).await;
        }
        drop(stream);
        let labels = format!("response_code=\"200\",response_flags=\"{flags}\"");
        assert_eq!(value(&waypoint, &["istio_requests_total{", &labels]).await, "1", "{path}");
    }
    let lines = soon("lines", async {
        loop {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            if text.lines().count() == 3 {
                return text;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let expected = concat!(
        "/ut 200 UT response_timeout\n",
        "/uc 200 UC upstream_reset_after_response_started{connection_termination}\n",
        "/dc 200 DC downstream_remote_disconnect\n"
    );
    assert_eq!(lines.await, expected);
}
