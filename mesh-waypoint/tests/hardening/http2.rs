//! HTTP/2 of clients: what is malformed ends its stream or its connection, and reaches nobody.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_core::l7::Table;
use mesh_core::service::AppProtocol;
use mesh_waypoint::refused::Reason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::support::frames::{CONTINUATION, DATA, END_HEADERS, END_STREAM, End, HEADERS, Raw, block, frame, request};
use super::support::*;
use super::{ASK, VIP};

const SOON: Duration = Duration::from_secs(10);

async fn open(waypoint: &Waypoint) -> Raw {
    Raw::open(soon("stream", waypoint.stream(ASK)).await.unwrap()).await
}

async fn waypoint(app: std::net::SocketAddr) -> Waypoint {
    let backend = Backend::new("app", VIP, &[app]).speaking(AppProtocol::Http11);
    Waypoint::start(&[backend], Table::default()).await
}

/// Sends the head of a request without a body.
async fn ask(waypoint: &Waypoint, block: &[u8]) -> End {
    let mut raw = open(waypoint).await;
    raw.send(&frame(HEADERS, END_STREAM | END_HEADERS, 1, block)).await;
    raw.end(1, SOON).await
}

#[tokio::test]
async fn hardening_B167_B168_B173_malformed_heads_reach_nobody() {
    let (app, mut told) = noting(StatusCode::OK).await;
    let waypoint = waypoint(app).await;
    let with = |field: (&'static [u8], &'static [u8])| block(&request("GET", &[field]));
    let of = |fields: &[(&'static [u8], &'static [u8])]| block(fields);
    let usual: [(&'static [u8], &'static [u8]); 4] =
        [(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"shop"), (b":path", b"/")];
    let [method, scheme, authority, path] = usual;
    for (what, block) in [
        ("upper case", with((b"X-Name", b"1"))),
        ("connection", with((b"connection", b"close"))),
        ("keep-alive", with((b"keep-alive", b"1"))),
        ("upgrade", with((b"upgrade", b"websocket"))),
        ("transfer-encoding", with((b"transfer-encoding", b"chunked"))),
        ("te", with((b"te", b"gzip"))),
        ("host that differs", with((b"host", b"other"))),
        ("pseudo after regular", of(&[method, scheme, authority, (b"a", b"b"), path])),
        ("method twice", of(&[method, method, scheme, authority, path])),
        ("path twice", of(&[method, scheme, authority, path, path])),
        ("authority twice", of(&[method, scheme, authority, authority, path])),
        ("unknown pseudo", of(&[method, scheme, authority, path, (b":x", b"y")])),
        ("status", of(&[method, scheme, authority, path, (b":status", b"200")])),
        ("no method", of(&[scheme, authority, path])),
        ("no path", of(&[method, scheme, authority])),
        ("no scheme", of(&[method, authority, path])),
        ("no authority", of(&[method, scheme, path])),
        ("empty path", of(&[method, scheme, authority, (b":path", b"")])),
        ("path without slash", of(&[method, scheme, authority, (b":path", b"admin")])),
        ("path with CR LF", of(&[method, scheme, authority, (b":path", b"/ HTTP/1.1\r\nx: y")])),
        ("path with a blank", of(&[method, scheme, authority, (b":path", b"/a b")])),
        ("path with NUL", of(&[method, scheme, authority, (b":path", b"/a\0")])),
        ("method with CR LF", of(&[(b":method", b"GET / HTTP/1.1\r\n"), scheme, authority, path])),
        ("authority with CR LF", of(&[method, scheme, (b":authority", b"shop\r\nx: y"), path])),
        ("authority with a user", of(&[method, scheme, (b":authority", b"user@shop"), path])),
        ("CR", with((b"a", b"b\rc"))),
        ("LF", with((b"a", b"b\nc"))),
        ("NUL", with((b"a", b"b\0c"))),
        ("no name", with((b"", b"b"))),
        ("name with a blank", with((b"a b", b"c"))),
        ("name with CR LF", with((b"a\r\nb", b"c"))),
        ("name with a colon", with((b"a:b", b"c"))),
        ("name with _", with((b"x_user", b"c"))),
        ("content-length", with((b"content-length", b"5"))),
        ("two lengths", with((b"content-length", b"+0"))),
        ("CONNECT", of(&[(b":method", b"CONNECT"), authority])),
        ("unknown protocol", of(&[(b":method", b"CONNECT"), (b":protocol", b"connect-udp"), scheme, authority, path])),
        ("protocol without CONNECT", of(&[method, (b":protocol", b"websocket"), scheme, authority, path])),
    ] {
        let end = ask(&waypoint, &block).await;
        assert!(end.is_refusal(), "{what}: {end:?}");
        assert!(told.try_recv().is_err(), "{what}");
    }
    assert_eq!(ask(&waypoint, &of(&[method, scheme, authority, path])).await, End::Status(200));
}

#[tokio::test]
async fn hardening_B170_broken_compression_ends_the_connection() {
    let mut counted = 0;
    // PROTOCOL_ERROR or COMPRESSION_ERROR: h2 does not tell one from the other everywhere.
    let (app, mut told) = noting(StatusCode::OK).await;
    let waypoint = waypoint(app).await;
    for (what, block) in [
        ("index 0", vec![0x80]),
        ("index that is none", vec![0xff, 0xff, 0x01]),
        ("table too large", vec![0x3f, 0xff, 0xff, 0xff, 0x0f]),
        ("integer without end", vec![0xff; 16]),
        ("padding of 8 bits", vec![0x00, 0x81, 0xff, 0x00]),
        ("string that is cut", vec![0x00, 0x05, b'a']),
    ] {
        let end = ask(&waypoint, &block).await;
        assert!(matches!(end, End::GoAway(1 | 9)), "{what}: {end:?}");
        assert!(told.try_recv().is_err());
        counted += 1;
        waypoint.refuses(counted, &[Reason::Http2]).await;
    }
}

#[tokio::test]
async fn hardening_B174_B175_fields_are_counted_as_they_are_and_not_as_they_are_packed() {
    let (app, mut told) = noting(StatusCode::OK).await;
    let waypoint = waypoint(app).await;
    // One field of 4000 bytes in the table, and 12 KiB of references to it.
    let mut bomb = block(&request("GET", &[]));
    bomb.extend([0x40, 1, b'a', 0x7f, 0xa1, 0x1e]);
    bomb.extend([b'x'; 4000]);
    bomb.extend([0xbe; 12_000]);
    let end = ask(&waypoint, &bomb).await;
    assert!(end.is_refusal(), "{end:?}");
    // Crumbs, in several frames.
    let mut crumbs = block(&request("GET", &[]));
    for _ in 0..10_000 {
        crumbs.extend(block(&[(b"cookie", b"a=b")]));
    }
    let mut raw = open(&waypoint).await;
    let mut pieces = crumbs.chunks(16_000).peekable();
    let mut kind = HEADERS;
    while let Some(piece) = pieces.next() {
        let flags =
            if pieces.peek().is_none() { END_HEADERS } else { 0 } | if kind == HEADERS { END_STREAM } else { 0 };
        raw.send(&frame(kind, flags, 1, piece)).await;
        kind = CONTINUATION;
    }
    let end = raw.end(1, SOON).await;
    assert!(matches!(end, End::Status(431) | End::GoAway(_) | End::Closed), "{end:?}");
    assert!(told.try_recv().is_err());
}

/// An endpoint that counts bodies that came whole, and bodies that did not.
async fn counting() -> (std::net::SocketAddr, Arc<[AtomicUsize; 2]>) {
    let counts = Arc::<[AtomicUsize; 2]>::default();
    let seen = counts.clone();
    let app = server(move |request: Request<Incoming>| {
        let seen = seen.clone();
        async move {
            let whole = request.into_body().collect().await.is_ok();
            seen[usize::from(!whole)].fetch_add(1, Relaxed);
            Response::new(Full::new(Bytes::new()))
        }
    })
    .await;
    (app, counts)
}

/// A body, and more trailers than anybody takes, in as many frames as they need.
fn large_trailers() -> Vec<Vec<u8>> {
    let mut frames = vec![frame(DATA, 0, 1, b"abc"), frame(HEADERS, END_STREAM, 1, &block(&[(b"a", b"b")]))];
    frames.extend((0..128).map(|_| frame(CONTINUATION, 0, 1, &block(&[(b"a", &[b'x'; 8192])]))));
    frames.push(frame(CONTINUATION, END_HEADERS, 1, &[]));
    frames
}

#[tokio::test]
async fn hardening_B169_B174_a_body_that_breaks_the_rules_is_never_whole() {
    for protocol in [AppProtocol::Http11, AppProtocol::Http2] {
        let (app, counts) = counting().await;
        let waypoint = Waypoint::start(&[Backend::new("app", VIP, &[app]).speaking(protocol)], Table::default()).await;
        let post = |length: &'static [u8]| block(&request("POST", &[(b"content-length", length)]));
        let plain = block(&request("POST", &[]));
        let trailers = |fields: &[(&[u8], &[u8])]| frame(HEADERS, END_STREAM | END_HEADERS, 1, &block(fields));
        let data = |flags: u8, bytes: &[u8]| frame(DATA, flags, 1, bytes);
        for (what, head, frames) in [
            ("too short", post(b"5"), vec![data(END_STREAM, b"abc")]),
            ("too long", post(b"5"), vec![data(END_STREAM, b"abcdefg")]),
            ("too long, in two frames", post(b"5"), vec![data(0, b"abcde"), data(END_STREAM, b"f")]),
            ("too short, with trailers", post(b"5"), vec![data(0, b"abc"), trailers(&[(b"a", b"b")])]),
            ("trailers in upper case", plain.clone(), vec![data(0, b"abc"), trailers(&[(b"A", b"b")])]),
            (
                "trailers with a field before a method",
                plain.clone(),
                vec![data(0, b"abc"), trailers(&[(b"a", b"b"), (b":method", b"GET")])],
            ),
            ("1 MiB of trailers", plain.clone(), large_trailers()),
            (
                "trailers that do not end it",
                plain.clone(),
                vec![data(0, b"abc"), frame(HEADERS, END_HEADERS, 1, &block(&[(b"a", b"b")]))],
            ),
        ] {
            let mut raw = open(&waypoint).await;
            raw.send(&frame(HEADERS, END_HEADERS, 1, &head)).await;
            for frame in frames {
                raw.send(&frame).await;
            }
            let end = raw.end(1, SOON).await;
            assert!(end.is_refusal() || end == End::Status(503), "{what} {protocol:?}: {end:?}");
            assert_eq!(counts[0].load(Relaxed), 0, "{what} {protocol:?}");
        }
        // What is right arrives.
        let mut raw = open(&waypoint).await;
        raw.send(&frame(HEADERS, END_HEADERS, 1, &post(b"5"))).await;
        raw.send(&data(END_STREAM, b"abcde")).await;
        assert_eq!(raw.end(1, SOON).await, End::Status(200));
        assert_eq!(counts[0].load(Relaxed), 1);
    }
}

/// h2 leaves fields that begin with a colon out of trailers and takes the rest: nothing of them goes on.
#[tokio::test]
async fn hardening_B174_trailers_change_nothing_of_their_request() {
    let (app, mut told) = noting(StatusCode::OK).await;
    let waypoint = waypoint(app).await;
    for (name, value) in [(&b":path"[..], &b"/admin"[..]), (b":method", b"DELETE"), (b":authority", b"other")] {
        let mut raw = open(&waypoint).await;
        raw.send(&frame(HEADERS, END_HEADERS, 1, &block(&request("POST", &[])))).await;
        raw.send(&frame(DATA, 0, 1, b"abc")).await;
        raw.send(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &block(&[(name, value)]))).await;
        if raw.end(1, SOON).await == End::Status(200) {
            let seen = soon("request", told.recv()).await.unwrap();
            let host = seen.headers()["host"].to_str().unwrap();
            assert_eq!((seen.method().as_str(), seen.uri().path(), host), ("POST", "/", "shop"));
        }
    }
}

#[tokio::test]
async fn hardening_B173_a_web_socket_goes_through_a_connection_of_http_2() {
    let app = server(|mut request: Request<Incoming>| async move {
        let key = request.headers().get("sec-websocket-key").map_or(0, http::HeaderValue::len);
        let is_asked = request.headers().get("upgrade").is_some_and(|asked| asked == "websocket")
            && request.method() == "GET"
            && key == 24;
        let mut response = Response::new(Full::<Bytes>::default());
        if request.uri() != "/chat" || !is_asked {
            *response.status_mut() = if request.uri() == "/ok" { StatusCode::OK } else { StatusCode::FORBIDDEN };
            return response;
        }
        let upgraded = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut io = TokioIo::new(upgraded.await.unwrap());
            let mut bytes = [0; 4];
            io.read_exact(&mut bytes).await.unwrap();
            bytes.reverse();
            io.write_all(&bytes).await.unwrap();
            io.shutdown().await.unwrap();
        });
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        for (name, value) in [("upgrade", "websocket"), ("connection", "Upgrade"), ("sec-websocket-accept", "x")] {
            response.headers_mut().insert(name, http::HeaderValue::from_static(value));
        }
        response
    })
    .await;
    let waypoint = waypoint(app).await;
    let stream = waypoint.stream(ASK).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    // Once something was answered, the client knows that it may ask.
    let request = Request::builder().uri("http://shop/ok").body(Empty::new()).unwrap();
    assert_eq!(soon("answer", sender.send_request(request)).await.unwrap().status(), StatusCode::OK);
    let request = |path: &str| {
        Request::builder()
            .method("CONNECT")
            .uri(format!("http://shop{path}"))
            .extension(hyper::ext::Protocol::from_static("websocket"))
            .body(Empty::<Bytes>::new())
            .unwrap()
    };
    let mut answer = soon("answer", sender.send_request(request("/chat"))).await.unwrap();
    assert_eq!((answer.status(), answer.headers().get("sec-websocket-accept")), (StatusCode::OK, None));
    let mut io = TokioIo::new(hyper::upgrade::on(&mut answer).await.unwrap());
    io.write_all(b"abcd").await.unwrap();
    let mut bytes = Vec::new();
    soon("bytes", io.read_to_end(&mut bytes)).await.unwrap();
    assert_eq!(bytes, b"dcba");
    // What the endpoint declines is declined, and an answer that agrees to nothing opens nothing.
    assert_eq!(soon("answer", sender.send_request(request("/no"))).await.unwrap().status(), StatusCode::FORBIDDEN);
    assert_eq!(soon("answer", sender.send_request(request("/ok"))).await.unwrap().status(), StatusCode::BAD_GATEWAY);
}

#[tokio::test]
async fn hardening_2_1_requests_that_are_given_up_leave_nothing_behind() {
    let app = server(|_: Request<Incoming>| std::future::pending::<Response<Full<Bytes>>>()).await;
    let waypoint = waypoint(app).await;
    let stream = waypoint.stream(ASK).await.unwrap();
    let (sender, connection) =
        hyper::client::conn::http2::handshake::<_, _, Empty<Bytes>>(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    for _ in 0..20 {
        let asks = (0..50).map(|_| {
            let mut sender = sender.clone();
            async move {
                let request = Request::builder().uri("http://shop/").body(Empty::new()).unwrap();
                let _ = tokio::time::timeout(Duration::from_millis(50), sender.send_request(request)).await;
            }
        });
        futures_util::future::join_all(asks).await;
    }
    let pool = &waypoint.engine.lanes()[0].pool;
    soon("no connection is left", async {
        while pool.open() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}
