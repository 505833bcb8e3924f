//! Bad input of gRPC, rows B176 to B181: what a client says of itself, how an endpoint ends a call, and what is not asked for twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_core::l7::{Condition, PathKind, Retries, Rule, Table};
use mesh_core::service::AppProtocol;

use crate::support::{Backend, Waypoint, server, soon, table, to};
use crate::{ASK, VIP};

type Body = UnsyncBoxBody<Bytes, std::convert::Infallible>;

/// Frames of a body, the trailers last.
fn body(data: &[&'static [u8]], trailers: &[(&'static str, &'static str)]) -> Body {
    let mut frames: Vec<_> = data.iter().map(|data| Ok(Frame::data(Bytes::from_static(data)))).collect();
    if !trailers.is_empty() {
        let all = trailers.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value)));
        frames.push(Ok(Frame::trailers(all.collect::<HeaderMap>())));
    }
    StreamBody::new(stream::iter(frames)).boxed_unsync()
}

fn call(path: &str, fields: &[(&'static str, &'static str)], body: Body) -> Request<Body> {
    let mut request = Request::builder().method(Method::POST).uri(format!("http://shop{path}"));
    for (name, value) in [("content-type", "application/grpc"), ("te", "trailers")].iter().chain(fields) {
        request = request.header(*name, *value);
    }
    request.body(body).unwrap()
}

/// The status of a call, wherever it stands; its message; its data; whether HTTP says 200.
async fn ask(waypoint: &Waypoint, request: Request<Body>) -> (String, String, Bytes, bool) {
    let stream = waypoint.stream(ASK).await.unwrap();
    let io = TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let answer = soon("answer", sender.send_request(request)).await.unwrap();
    let (head, body) = answer.into_parts();
    let body = soon("body", body.collect()).await.unwrap();
    let trailers = body.trailers().cloned().unwrap_or_default();
    let field = |name: &str| {
        let value = trailers.get(name).or_else(|| head.headers.get(name));
        value.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).unwrap_or_default()
    };
    (field("grpc-status"), field("grpc-message"), body.to_bytes(), head.status == 200)
}

async fn waypoint(handle: impl Fn(Request<Incoming>) -> Response<Body> + Clone + Send + Sync + 'static) -> Waypoint {
    let app = server(move |request| {
        let answer = handle(request);
        async move { answer }
    })
    .await;
    let backend = Backend::new("app", VIP, &[app]).speaking(AppProtocol::Grpc);
    Waypoint::start(&[backend], Table::default()).await
}

fn answer(kind: &'static str, body: Body) -> Response<Body> {
    let mut answer = Response::new(body);
    if !kind.is_empty() {
        answer.headers_mut().insert("content-type", HeaderValue::from_static(kind));
    }
    answer
}

const GOOD: &[(&str, &str)] = &[("grpc-status", "0")];

#[tokio::test]
async fn hardening_B176_messages_are_bytes_whatever_their_heads_say() {
    let waypoint = waypoint(|request| {
        answer("application/grpc", BodyExt::map_err(request.into_body(), |error| panic!("{error}")).boxed_unsync())
    })
    .await;
    for bytes in [&b"\x00\xff\xff\xff\xffab"[..], b"\x01\0\0\0\x02ab", b"\0\0\0", b"", b"\xff\xff\xff\xff\xff"] {
        let (status, _, data, ok) = ask(&waypoint, call("/svc/M", &[], body(&[bytes], GOOD))).await;
        assert_eq!((status.as_str(), &*data, ok), ("0", bytes, true));
    }
}

#[tokio::test]
async fn hardening_B177_a_timeout_that_is_none_is_refused_and_one_that_is_counts() {
    let waypoint = waypoint(|_| answer("application/grpc", body(&[b"x"], GOOD))).await;
    for (timeout, expected) in
        [("1S", true), ("99999999H", true), ("99999999999H", false), ("-1S", false), ("1x", false), ("", false)]
    {
        let (status, .., ok) = ask(&waypoint, call("/svc/M", &[("grpc-timeout", timeout)], body(&[], &[]))).await;
        assert_eq!((status.as_str(), ok), (if expected { "0" } else { "" }, expected), "{timeout:?}");
    }
    // It is a client's of gRPC: to others it means nothing.
    let mut other = call("/svc/M", &[("grpc-timeout", "1x")], body(&[], &[]));
    other.headers_mut().insert("content-type", HeaderValue::from_static("text/plain"));
    assert_eq!(ask(&waypoint, other).await.0, "0");

    let silent = server(|_| async {
        std::future::pending::<()>().await;
        Response::new(body(&[], &[]))
    })
    .await;
    let backend = Backend::new("app", VIP, &[silent]).speaking(AppProtocol::Grpc);
    let waypoint = Waypoint::start(&[backend], Table::default()).await;
    let (status, message, ..) = ask(&waypoint, call("/svc/M", &[("grpc-timeout", "20m")], body(&[], &[]))).await;
    assert_eq!((status.as_str(), message.as_str()), ("14", "upstream request timeout"));
}

#[tokio::test]
async fn hardening_B178_a_call_that_no_rule_means_is_unimplemented() {
    let app = server(|_| async { answer("application/grpc", body(&[b"x"], GOOD)) }).await;
    let condition = Condition { path: Some(PathKind::Exact("/svc/M".into()).into()), ..Condition::default() };
    let rule = Rule { conditions: vec![condition], handling: to("app").into() };
    let backend = Backend::new("app", VIP, &[app]).speaking(AppProtocol::Grpc);
    let waypoint = Waypoint::start(&[backend], table("app", vec![rule])).await;
    for (path, expected) in [
        ("/svc/M", "0"),
        ("/svc.M", "12"),
        ("/svc//M", "12"),
        ("//svc/M", "12"),
        ("/svc/M/", "12"),
        ("/svc/m", "12"),
        ("/SVC/M", "12"),
        ("/svc/M%2F", "12"),
        ("/", "12"),
    ] {
        let (status, .., ok) = ask(&waypoint, call(path, &[], body(&[], &[]))).await;
        assert_eq!((status.as_str(), ok), (expected, true), "{path}");
    }
}

#[tokio::test]
async fn hardening_B179_a_call_ends_with_a_status_whatever_the_endpoint_does() {
    type Row = (&'static str, fn() -> Response<Body>, &'static str, &'static [u8]);
    let rows: [Row; 9] = [
        ("in order", || answer("application/grpc", body(&[b"x"], GOOD)), "0", b"x"),
        ("without a status", || answer("application/grpc", body(&[b"x"], &[])), "2", b"x"),
        ("with other trailers", || answer("application/grpc", body(&[b"x"], &[("x-a", "b")])), "2", b"x"),
        ("without anything", || answer("application/grpc", body(&[], &[])), "2", b""),
        (
            "trailers alone",
            || {
                let mut answer = answer("application/grpc", body(&[], &[]));
                answer.headers_mut().insert("grpc-status", HeaderValue::from_static("0"));
                answer
            },
            "0",
            b"",
        ),
        ("a page", || answer("text/html", body(&[b"<html>"], &[])), "2", b""),
        (
            "a page that says it is busy",
            || {
                let mut answer = answer("text/html", body(&[b"<html>"], &[]));
                *answer.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
                answer
            },
            "14",
            b"",
        ),
        (
            "a failure of HTTP without a type",
            || {
                let mut answer = answer("", body(&[], &[]));
                *answer.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
                answer
            },
            "14",
            b"",
        ),
        (
            "a failure of HTTP in the type",
            || {
                let mut answer = answer("application/grpc", body(&[], &[]));
                *answer.status_mut() = http::StatusCode::NOT_FOUND;
                answer
            },
            "12",
            b"",
        ),
    ];
    for (what, row, expected, data) in rows {
        let waypoint = waypoint(move |_| row()).await;
        let (status, _, seen, ok) = ask(&waypoint, call("/svc/M", &[], body(&[b"\0\0\0\0\0"], &[]))).await;
        assert_eq!((status.as_str(), &*seen, ok), (expected, data, true), "{what}");
        let label = format!("grpc_response_status=\"{expected}\"");
        soon(what, async {
            while !waypoint.scrape().contains(&label) {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

#[tokio::test]
async fn hardening_B180_a_stream_is_not_asked_for_twice() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    // Reads something, then is not available.
    let app = server(move |mut request: Request<Incoming>| {
        let count = Arc::clone(&count);
        async move {
            count.fetch_add(1, SeqCst);
            let _ = request.body_mut().frame().await;
            let mut answer = answer("application/grpc", body(&[], &[]));
            answer.headers_mut().insert("grpc-status", HeaderValue::from_static("14"));
            answer
        }
    })
    .await;
    let backend = Backend::new("app", VIP, &[app]).speaking(AppProtocol::Grpc);
    let mut handling = to("app");
    handling.retries = Retries { backoff: Duration::from_millis(1), ..Retries::default() };
    let waypoint = Waypoint::start(&[backend], table("app", vec![crate::support::rule(handling)])).await;
    let whole = body(&[b"\0\0\0\0\x01a"], &[]);
    assert_eq!(ask(&waypoint, call("/svc/M", &[], whole)).await.0, "14");
    assert_eq!(asked.swap(0, SeqCst), 3, "what is all there is asked for again");
    let first = stream::iter([Ok(Frame::data(Bytes::from_static(b"\0\0\0\0\x01a")))]);
    let endless = StreamBody::new(futures_util::StreamExt::chain(first, stream::pending())).boxed_unsync();
    assert_eq!(ask(&waypoint, call("/svc/M", &[], endless)).await.0, "14");
    assert_eq!(asked.load(SeqCst), 1, "a stream is not");
}

#[tokio::test]
async fn hardening_B181_what_an_endpoint_says_of_a_call_is_bounded() {
    let waypoint = waypoint(|request| {
        let mut trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static("99"))]);
        if request.uri().path() == "/svc/Long" {
            let bomb = HeaderValue::try_from("%25".repeat(1 << 20 >> 1)).unwrap();
            trailers.insert("grpc-message", bomb);
        }
        let frames = [Ok(Frame::data(Bytes::from_static(b"x"))), Ok(Frame::trailers(trailers))];
        answer("application/grpc", StreamBody::new(stream::iter(frames)).boxed_unsync())
    })
    .await;
    let stream = waypoint.stream(ASK).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    // It does not end in order, and others are not held up.
    if let Ok(answer) = soon("an answer or none", sender.send_request(call("/svc/Long", &[], body(&[], &[])))).await {
        let rest = soon("the end", answer.into_body().collect()).await;
        assert!(rest.is_err(), "a mebibyte of words was passed on");
    }
    // Clients read it as they like; in labels it is one of those that there are.
    assert_eq!(ask(&waypoint, call("/svc/M", &[], body(&[], &[]))).await.0, "99");
    soon("a label", async {
        while !waypoint.scrape().contains("grpc_response_status=\"2\"") {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(!waypoint.scrape().contains("grpc_response_status=\"99\""));
}
