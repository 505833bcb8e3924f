//! gRPC-Web, what browsers speak: gRPC to endpoints whose port says that they speak that, and as it came to all others.
#![allow(clippy::unwrap_used, non_snake_case, reason = "tests carry the ids of the rows that they prove")]

mod support;

use std::convert::Infallible;
use std::net::SocketAddr;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_core::l7::Table;
use mesh_core::service::AppProtocol;
use support::{Backend, Waypoint, nobody, server, soon, text, whole};

const VIP: &str = "10.96.0.10";
const ASK: &str = "10.96.0.10:80";
/// A message of gRPC, and what the application's answer ends with.
const MESSAGE: &[u8] = b"\0\0\0\0\x02hi";
const END: &[u8] = b"\x80\0\0\0\x0fgrpc-status:5\r\n";

/// An application of gRPC, which gives back what it has heard and says 5; of other types it says so. `/head` is answered without a message, `/page` with a page.
async fn application() -> SocketAddr {
    server(|request: Request<Incoming>| async move {
        let (head, body) = request.into_parts();
        let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let said = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("-").to_owned();
        if !said("content-type").starts_with("application/grpc+") {
            return plain(StatusCode::OK, format!("{:?} {} {}", head.version, said("content-type"), body.len()));
        }
        assert_eq!((said("te"), head.version), ("trailers".to_owned(), Version::HTTP_2));
        if head.uri.path() == "/page" {
            return plain(StatusCode::SERVICE_UNAVAILABLE, "<html>".to_owned());
        }
        let ending: HeaderMap =
            [(http::HeaderName::from_static("grpc-status"), HeaderValue::from_static("5"))].into_iter().collect();
        let is_bare = head.uri.path() == "/head";
        let frames = [Ok::<_, Infallible>(Frame::data(body)), Ok(Frame::trailers(ending.clone()))];
        // `/unsaid` ends without a status.
        let (skipped, sent) = (if is_bare { 2 } else { 0 }, if head.uri.path() == "/unsaid" { 1 } else { 2 });
        let frames = stream::iter(frames.into_iter().take(sent).skip(skipped));
        let mut answer = Response::new(StreamBody::new(frames).boxed_unsync());
        answer.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc+proto"));
        if is_bare {
            answer.headers_mut().extend(ending);
        }
        answer
    })
    .await
}

fn plain(status: StatusCode, text: String) -> Response<UnsyncBoxBody<Bytes, Infallible>> {
    let mut answer = Response::new(Full::from(text).boxed_unsync());
    *answer.status_mut() = status;
    answer
}

async fn shop(protocol: AppProtocol, endpoints: &[SocketAddr]) -> Waypoint {
    Waypoint::start(&[Backend::new("shop", VIP, endpoints).speaking(protocol)], Table::default()).await
}

fn call(path: &str, kind: &str, body: &[u8]) -> Request<Full<Bytes>> {
    let request = Request::post(format!("http://shop{path}")).header("host", "shop").header("content-type", kind);
    request.header("x-grpc-web", "1").body(Full::from(body.to_vec())).unwrap()
}

/// The same in HTTP/2.
async fn ask2(waypoint: &Waypoint, request: Request<Full<Bytes>>) -> Response<Bytes> {
    let io = TokioIo::new(waypoint.stream(ASK).await.unwrap());
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    whole(soon("answer", sender.send_request(request)).await.unwrap()).await
}

fn kind(answer: &Response<Bytes>) -> &str {
    answer.headers()["content-type"].to_str().unwrap()
}

#[tokio::test]
async fn features_GW_2_what_browsers_speak_is_grpc_to_an_application_of_grpc() {
    let waypoint = shop(AppProtocol::Grpc, &[application().await]).await;
    let binary = [MESSAGE, END].concat();
    let text = |bytes: &[u8]| BASE64_STANDARD.encode(bytes).into_bytes();
    let in_text = [text(MESSAGE), text(END)].concat();
    for (kind_asked, body, expected) in [
        ("application/grpc-web+proto", MESSAGE, &binary),
        ("application/grpc-web-text+proto", &text(MESSAGE), &in_text),
    ] {
        for is_http2 in [false, true] {
            let request = call("/svc/M", kind_asked, body);
            let answer = if is_http2 { ask2(&waypoint, request).await } else { waypoint.ask(ASK, request).await };
            assert_eq!((answer.status(), kind(&answer)), (StatusCode::OK, kind_asked), "{is_http2}");
            assert_eq!(answer.body(), expected, "{kind_asked} {is_http2}");
        }
    }
    // Those who watch see gRPC: its messages and how it ended.
    let scrape = waypoint.scrape();
    let line = |metric: &str| {
        let mut lines = scrape.lines().filter(|line| line.starts_with(&format!("{metric}{{")));
        lines.find(|line| line.contains("request_protocol=\"grpc\"")).map(str::to_owned).unwrap_or_default()
    };
    let requests = line("istio_requests_total");
    assert!(requests.contains("grpc_response_status=\"5\"") && requests.ends_with(" 4"), "{scrape}");
    for metric in ["istio_request_messages_total", "istio_response_messages_total"] {
        assert!(line(metric).ends_with(" 4"), "{metric}: {scrape}");
    }
}

#[tokio::test]
async fn features_GW_2_an_answer_without_messages_says_its_status_in_its_head() {
    let waypoint = shop(AppProtocol::Grpc, &[application().await]).await;
    let nobody = shop(AppProtocol::Grpc, &[nobody().await]).await;
    for (of, path, expected) in [(&waypoint, "/head", "5"), (&waypoint, "/page", "14"), (&nobody, "/svc/M", "14")] {
        let answer = of.ask(ASK, call(path, "application/grpc-web+proto", MESSAGE)).await;
        assert_eq!((answer.status(), kind(&answer)), (StatusCode::OK, "application/grpc-web+proto"), "{path}");
        assert_eq!((answer.headers()["grpc-status"].to_str().unwrap(), answer.body().len()), (expected, 0), "{path}");
    }
}

#[tokio::test]
async fn features_GW_2_a_call_that_its_application_ends_without_a_status_has_one() {
    let waypoint = shop(AppProtocol::Grpc, &[application().await]).await;
    let answer = waypoint.ask(ASK, call("/unsaid", "application/grpc-web", MESSAGE)).await;
    let said = answer.body().strip_prefix(MESSAGE).unwrap();
    assert!(said.starts_with(b"\x80") && said[5..].starts_with(b"grpc-status:2\r\ngrpc-message:"), "{said:?}");
    assert_eq!(usize::from(said[4]), said.len() - 5);
}

#[tokio::test]
async fn features_PL_7_to_an_application_of_anything_else_it_goes_as_it_came() {
    for protocol in [AppProtocol::Http11, AppProtocol::Http2, AppProtocol::Unknown] {
        let waypoint = shop(protocol, &[application().await]).await;
        let answer = waypoint.ask(ASK, call("/svc/M", "application/grpc-web-text", b"AAAA")).await;
        let version = if protocol == AppProtocol::Http2 { "HTTP/2.0" } else { "HTTP/1.1" };
        assert_eq!(text(&answer), format!("{version} application/grpc-web-text 4"), "{protocol:?}");
    }
}

#[tokio::test]
async fn features_GW_2_text_that_is_none_is_refused() {
    let waypoint = shop(AppProtocol::Grpc, &[application().await]).await;
    for bad in ["A*AA", "AAAAA", "AA=A"] {
        let answer = waypoint.ask(ASK, call("/svc/M", "application/grpc-web-text", bad.as_bytes())).await;
        let status = answer.headers().get("grpc-status").map(|status| status.to_str().unwrap());
        assert_eq!((status, kind(&answer)), (Some("13"), "application/grpc-web-text+proto"), "{bad}");
    }
}
