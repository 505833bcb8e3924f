//! What a request looks like on both sides of a waypoint, whatever of HTTP is spoken.
#![allow(clippy::unwrap_used, non_snake_case, reason = "tests carry the ids of the rows that they prove")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_core::l7::{Handling, Retries, Table};
use mesh_core::service::AppProtocol;
use mesh_waypoint::Settings;
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const VIP: &str = "10.96.0.10";

async fn http2(
    waypoint: &Waypoint,
) -> hyper::client::conn::http2::SendRequest<http_body_util::combinators::UnsyncBoxBody<Bytes, std::convert::Infallible>>
{
    let stream = soon("stream", waypoint.stream("10.96.0.10:80")).await.unwrap();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

async fn raw(waypoint: &Waypoint, bytes: &[u8]) -> String {
    waypoint.raw("10.96.0.10:80", bytes).await
}

#[tokio::test]
async fn a_request_of_http_1_arrives_with_its_host_and_an_id() {
    let app = echo("app").await;
    let waypoint = Waypoint::start(&[Backend::new("app", VIP, &[app])], Table::default()).await;
    let mut request = get("/a?b=c");
    request.headers_mut().insert("connection", HeaderValue::from_static("x-mine"));
    request.headers_mut().insert("x-mine", HeaderValue::from_static("1"));
    let answer = waypoint.ask("10.96.0.10:80", request).await;
    assert_eq!(answer.status(), StatusCode::OK);
    let text = text(&answer);
    assert!(
        text.starts_with(
            "app GET /a?b=c HTTP/1.1\nhost: shop\nx-forwarded-proto: http\nx-mesh-hops: 1\nx-request-id: "
        ),
        "{text}"
    );
    assert!(!text.contains("x-mine"));
}

#[tokio::test]
async fn hardening_B166_a_client_of_the_mesh_says_nothing_of_its_certificate() {
    let app = echo("app").await;
    let waypoint = Waypoint::start(&[Backend::new("app", VIP, &[app])], Table::default()).await;
    let mut request = get("/a");
    let said = HeaderValue::from_static("URI=spiffe://cluster.local/ns/a/sa/admin");
    request.headers_mut().insert("x-forwarded-client-cert", said);
    let answer = waypoint.ask("10.96.0.10:80", request).await;
    assert!(text(&answer).starts_with("app GET /a ") && !text(&answer).contains("client-cert"), "{}", text(&answer));
}

#[tokio::test]
async fn connections_are_used_again_on_both_sides() {
    let listener = listener().await;
    let app = listener.local_addr().unwrap();
    let waypoint = Waypoint::start(&[Backend::new("app", VIP, &[app])], Table::default()).await;
    let stream = waypoint.stream("10.96.0.10:80").await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    // One connection is accepted, and no other.
    let serving = tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        let service = hyper::service::service_fn(|_: Request<Incoming>| async {
            Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from_static(b"once"))))
        });
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tcp), service).await.unwrap();
    });
    for _ in 0..20 {
        soon("ready", sender.ready()).await.unwrap();
        let answer = whole(soon("answer", sender.send_request(get("/"))).await.unwrap()).await;
        assert_eq!(text(&answer), "once");
    }
    serving.abort();
}

#[tokio::test]
async fn an_answer_with_trailers_ends_in_order_and_its_connection_is_used_again() {
    let answer =
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n2\r\nok\r\n0\r\nx-sum: 7\r\n\r\n";
    let (app, connections, _told) = scripted(vec![(answer.to_vec(), false); 3]).await;
    let waypoint = Waypoint::start(&[Backend::new("app", VIP, &[app])], Table::default()).await;
    for _ in 0..3 {
        assert_eq!(text(&waypoint.ask("10.96.0.10:80", get("/")).await), "ok");
    }
    assert_eq!(connections.load(std::sync::atomic::Ordering::SeqCst), 1);
    assert!(!waypoint.scrape().contains("response_flags=\"DC\""));
}

/// RFC 9113 8.2.3: what HTTP/2 may send on several lines is one in HTTP/1.1.
#[tokio::test]
async fn cookies_that_come_on_several_lines_go_on_as_one() {
    let app = server(|request: Request<Incoming>| async move {
        let lines: Vec<_> = request.headers().get_all("cookie").iter().map(|line| line.to_str().unwrap()).collect();
        assert_eq!(request.version(), Version::HTTP_11);
        Response::new(Full::new(Bytes::from(lines.join("|"))))
    })
    .await;
    let backend = Backend::new("app", VIP, &[app]).speaking(AppProtocol::Http11);
    let waypoint = Waypoint::start(&[backend], Table::default()).await;
    let mut sender = http2(&waypoint).await;
    let request = Request::builder().uri("http://shop/").header("cookie", "a=1").header("cookie", "session=x");
    let body = Full::<Bytes>::default().map_err(|never| match never {}).boxed_unsync();
    let answer = soon("answer", sender.send_request(request.body(body).unwrap())).await.unwrap();
    assert_eq!(soon("body", answer.into_body().collect()).await.unwrap().to_bytes(), "a=1; session=x");
}

/// A first endpoint reads all of it and cannot serve it: the second one has all of it, too.
#[tokio::test]
async fn a_request_that_is_tried_again_has_its_trailers() {
    let tried = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = tried.clone();
    let app = server(move |request: Request<Incoming>| {
        let first = count.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 0;
        async move {
            let body = request.into_body().collect().await.unwrap();
            let sum = body.trailers().and_then(|sent| sent.get("x-sum")).cloned();
            let mut response = Response::new(Full::new(body.to_bytes()));
            *response.status_mut() = if first { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
            response.headers_mut().extend(sum.map(|sum| (http::HeaderName::from_static("x-sum"), sum)));
            response
        }
    })
    .await;
    let mut retries = Retries { backoff: Duration::from_millis(1), ..Retries::default() };
    retries.on.statuses.push(503);
    let handling = Handling { retries, ..to("app") };
    let backend = Backend::new("app", VIP, &[app]).speaking(AppProtocol::Http2);
    let waypoint = Waypoint::start(&[backend], table("app", vec![rule(handling)])).await;
    let mut sender = http2(&waypoint).await;
    let trailers = HeaderMap::from_iter([("x-sum".parse().unwrap(), HeaderValue::from_static("7"))]);
    let frames = [Ok(Frame::data(Bytes::from_static(b"hello"))), Ok(Frame::trailers(trailers))];
    let body = StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync();
    let request = Request::builder().method(Method::POST).uri("http://shop/").header("te", "trailers");
    let answer = soon("answer", sender.send_request(request.body(body).unwrap())).await.unwrap();
    assert_eq!((answer.status(), tried.load(std::sync::atomic::Ordering::SeqCst)), (StatusCode::OK, 2));
    assert_eq!(answer.headers().get("x-sum").map(|sum| sum.as_bytes()), Some(&b"7"[..]));
}

#[tokio::test]
async fn http_2_and_the_trailers_of_grpc_go_through() {
    let app = server(|request: Request<Incoming>| async move {
        assert_eq!((request.version(), request.headers()["te"].as_bytes()), (Version::HTTP_2, &b"trailers"[..]));
        assert_eq!(request.uri().authority().unwrap(), "shop");
        let body = request.into_body().collect().await.unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("5"));
        let sent = body.trailers().map(|sent| sent["x-sum"].clone()).unwrap();
        trailers.insert("x-sum", sent);
        let frames = [Ok(Frame::data(body.to_bytes())), Ok(Frame::trailers(trailers))];
        Response::new(StreamBody::new(futures_util::stream::iter(frames)))
    })
    .await;
    let backend = Backend::new("app", VIP, &[app]).speaking(AppProtocol::Grpc);
    let waypoint = Waypoint::start(&[backend], Table::default()).await;
    let mut sender = http2(&waypoint).await;
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", HeaderValue::from_static("7"));
    let frames = [Ok(Frame::data(Bytes::from_static(b"hello"))), Ok(Frame::trailers(trailers))];
    let body = StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync();
    let request = Request::builder()
        .method(Method::POST)
        .uri("http://shop/svc/Method")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(body)
        .unwrap();
    let answer = soon("answer", sender.send_request(request)).await.unwrap();
    let body = soon("body", answer.into_body().collect()).await.unwrap();
    let trailers = body.trailers().unwrap();
    assert_eq!((&trailers["grpc-status"], &trailers["x-sum"]), (&"5".parse().unwrap(), &"7".parse().unwrap()));
    assert_eq!(body.to_bytes(), "hello");
    soon("count", async {
        while !waypoint.scrape().contains("grpc_response_status=\"5\"") {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// One after the other, each alone on its connections: nothing may wait for the next to be sent. The last is more than any buffer on the way holds.
#[tokio::test]
async fn requests_of_http_2_that_are_alone_go_through_whatever_their_size() {
    let app = server(|request: Request<Incoming>| async move {
        Response::new(request.into_body().map_err(|error| -> std::convert::Infallible { panic!("{error}") }))
    })
    .await;
    let backend = Backend::new("app", VIP, &[app]).speaking(AppProtocol::Http2);
    let waypoint = Waypoint::start(&[backend], Table::default()).await;
    let mut sender = http2(&waypoint).await;
    for bytes in [0, 1, 1024, 100_000, 3 << 20] {
        let body = Full::new(Bytes::from(vec![7; bytes])).boxed_unsync();
        let request = Request::builder().method(Method::POST).uri("http://shop/x").body(body).unwrap();
        let answer = whole(soon("answer", sender.send_request(request)).await.unwrap()).await;
        assert_eq!((answer.status(), answer.body().len()), (StatusCode::OK, bytes));
    }
}

#[tokio::test]
async fn http_2_reaches_what_speaks_http_1_only() {
    let app = echo("app").await;
    let backend = Backend::new("app", VIP, &[app]).speaking(AppProtocol::Http11);
    let waypoint = Waypoint::start(&[backend], Table::default()).await;
    let mut sender = http2(&waypoint).await;
    let request = Request::builder().uri("http://shop/x").body(Full::default().boxed_unsync()).unwrap();
    let answer = whole(soon("answer", sender.send_request(request)).await.unwrap()).await;
    assert!(text(&answer).starts_with("app GET /x HTTP/1.1\nhost: shop\n"), "{}", text(&answer));
}

#[tokio::test]
async fn a_connection_can_become_a_web_socket() {
    let app = server(|mut request: Request<Incoming>| async move {
        assert_eq!(request.headers()["upgrade"], "websocket");
        let upgraded = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut io = TokioIo::new(upgraded.await.unwrap());
            let mut bytes = [0; 4];
            io.read_exact(&mut bytes).await.unwrap();
            bytes.reverse();
            io.write_all(&bytes).await.unwrap();
            io.shutdown().await.unwrap();
        });
        let mut response = Response::new(Full::<Bytes>::default());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        response.headers_mut().insert("upgrade", HeaderValue::from_static("websocket"));
        response.headers_mut().insert("connection", HeaderValue::from_static("Upgrade"));
        response
    })
    .await;
    let waypoint = Waypoint::start(&[Backend::new("app", VIP, &[app])], Table::default()).await;
    let stream = waypoint.stream("10.96.0.10:80").await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    let mut request = get("/chat");
    request.headers_mut().insert("upgrade", HeaderValue::from_static("websocket"));
    request.headers_mut().insert("connection", HeaderValue::from_static("upgrade"));
    let mut answer = soon("answer", sender.send_request(request)).await.unwrap();
    assert_eq!(
        (answer.status(), answer.headers()["upgrade"].as_bytes()),
        (StatusCode::SWITCHING_PROTOCOLS, &b"websocket"[..])
    );
    let mut io = TokioIo::new(hyper::upgrade::on(&mut answer).await.unwrap());
    io.write_all(b"abcd").await.unwrap();
    let mut answer = Vec::new();
    soon("bytes", io.read_to_end(&mut answer)).await.unwrap();
    assert_eq!(answer, b"dcba");
}

#[tokio::test]
async fn what_is_no_http_is_copied() {
    let listener = listener().await;
    let app = listener.local_addr().unwrap();
    let waypoint = Waypoint::start(&[Backend::new("app", VIP, &[app])], Table::default()).await;
    let mut stream = waypoint.stream("10.96.0.10:80").await.unwrap();
    stream.write_all(b"\x16\x03hello").await.unwrap();
    let (mut far, _): (TcpStream, _) = soon("accept", listener.accept()).await.unwrap();
    let mut bytes = [0; 7];
    soon("bytes", far.read_exact(&mut bytes)).await.unwrap();
    assert_eq!(&bytes, b"\x16\x03hello");
    far.write_all(b"bye").await.unwrap();
    drop(far);
    let mut answer = Vec::new();
    soon("end", stream.read_to_end(&mut answer)).await.unwrap();
    assert_eq!(answer, b"bye");
}

#[tokio::test]
async fn an_endpoint_with_a_tunnel_is_told_whose_request_it_is() {
    let former = Waypoint::start(&[], Table::default()).await;
    let certificate = former.ca.issue(&identity("spiffe://cluster.local/ns/shop/sa/app"));
    let (agent, mut told) = agent(certificate).await;
    let settings = Settings { hbone_port: agent.port(), ..Settings::default() };
    let target = std::net::SocketAddr::new(agent.ip(), 8080);
    let waypoint =
        Waypoint::again(former, &[Backend { hbone: true, ..Backend::new("app", VIP, &[target]) }], settings).await;
    let serving = tokio::spawn(async move {
        let (authority, said, stream) = told.recv().await.unwrap();
        let service = hyper::service::service_fn(|request: Request<Incoming>| async move {
            Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from(request.uri().to_string()))))
        });
        tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        (authority, said)
    });
    let answer = waypoint.ask("10.96.0.10:80", get("/far")).await;
    assert_eq!(text(&answer), "/far");
    let (authority, said) = serving.await.unwrap();
    assert_eq!(authority, target.to_string());
    let who = ";host=app.shop.svc.cluster.local;identity=\"spiffe://cluster.local/ns/shop/sa/client\"";
    assert!(said.starts_with("for=\"127.0.0.1:") && said.ends_with(who), "{said}");
}

#[tokio::test]
async fn one_spelling_of_a_path_goes_on() {
    let app = echo("app").await;
    let waypoint = Waypoint::start(&[Backend::new("app", VIP, &[app])], Table::default()).await;
    for (asked, expected) in
        [("/a/../b/./c", "/b/c"), ("/%61%2f", "/a%2F"), ("/a\\b", "/a/b"), ("/x?%61/../b", "/x?%61/../b")]
    {
        let request = format!("GET {asked} HTTP/1.1\r\nhost: shop\r\nconnection: close\r\n\r\n");
        let answer = raw(&waypoint, request.as_bytes()).await;
        assert!(answer.contains(&format!("app GET {expected} ")), "{asked}: {answer}");
    }
}

#[tokio::test]
async fn a_client_that_waits_for_100_gets_it() {
    let app = echo("app").await;
    let waypoint = Waypoint::start(&[Backend::new("app", VIP, &[app])], Table::default()).await;
    let mut stream = waypoint.stream("10.96.0.10:80").await.unwrap();
    let head =
        b"POST / HTTP/1.1\r\nhost: shop\r\nexpect: 100-continue\r\ncontent-length: 4\r\nconnection: close\r\n\r\n";
    stream.write_all(head).await.unwrap();
    let mut answer = vec![0; 25];
    soon("continue", stream.read_exact(&mut answer)).await.unwrap();
    assert_eq!(answer, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"body").await.unwrap();
    answer.clear();
    soon("answer", stream.read_to_end(&mut answer)).await.unwrap();
    let answer = String::from_utf8(answer).unwrap();
    assert!(
        answer.contains("content-length: 4\n") && answer.ends_with("body") && !answer.contains("expect"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_header_that_does_not_end_ends_its_connection() {
    let app = echo("app").await;
    let settings = Settings { header_timeout: std::time::Duration::from_millis(200), ..Settings::default() };
    let waypoint = Waypoint::with(&[Backend::new("app", VIP, &[app])], Table::default(), settings).await;
    let mut stream = waypoint.stream("10.96.0.10:80").await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: sh").await.unwrap();
    let mut answer = Vec::new();
    assert!(soon("end", stream.read_to_end(&mut answer)).await.is_err(), "reset, for nothing was answered");
}

/// Bodies of HTTP/2 have to come at some rate, each for itself; calls of gRPC may be silent for as long as they like.
#[tokio::test]
async fn a_body_of_http_2_that_hardly_goes_on_ends_and_no_other_does() {
    let app = server(|request: Request<Incoming>| async move {
        let length = request.into_body().collect().await.map(|body| body.to_bytes().len());
        Response::new(Full::new(Bytes::from(format!("{length:?}"))))
    })
    .await;
    let settings = Settings { body_timeout: Duration::from_millis(300), ..Settings::default() };
    let waypoint = Waypoint::with(&[Backend::new("app", VIP, &[app])], Table::default(), settings).await;
    let sender = http2(&waypoint).await;
    // Each stream sends pieces of that size, at such intervals, until its sender is dropped.
    let ask = |kind: &'static str, piece: usize| {
        let (send, mut receive) = tokio::sync::mpsc::unbounded_channel::<Bytes>();
        let pieces =
            futures_util::stream::poll_fn(move |cx| receive.poll_recv(cx).map(|it| Some(Ok(Frame::data(it?)))));
        let request = Request::post("http://shop/").header("content-type", kind);
        let answer = sender.clone().send_request(request.body(StreamBody::new(pieces).boxed_unsync()).unwrap());
        let sends = tokio::spawn(async move {
            for _ in 0..15 {
                if piece > 0 && send.send(vec![b'x'; piece].into()).is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        async move {
            let answer = soon("answer", answer).await.unwrap();
            let status = answer.status();
            sends.abort();
            (status, text(&whole(answer).await).to_owned())
        }
    };
    let (slow, silent, quick, call) =
        tokio::join!(ask("text/plain", 1), ask("text/plain", 0), ask("text/plain", 4096), ask("application/grpc", 1));
    for slow in [slow, silent] {
        assert_eq!(slow, (StatusCode::REQUEST_TIMEOUT, "the body of the request did not go on in time".to_owned()));
    }
    assert_eq!(quick, (StatusCode::OK, format!("Ok({})", 15 * 4096)));
    assert_eq!(call.0, StatusCode::OK);
    assert!(waypoint.scrape().contains("response_code=\"408\",response_flags=\"SI\""));
}

const TIME: Duration = Duration::from_secs(1);
/// How long a client takes for its body.
const UPLOAD: Duration = Duration::from_millis(1500);

/// Sends a body slowly over HTTP/2, and gives the answer, and how long that took.
async fn slowly(waypoint: &Waypoint, path: &str, headers: &[(&str, &str)]) -> (Response<Bytes>, Duration) {
    let mut sender = http2(waypoint).await;
    let (send, mut receive) = tokio::sync::mpsc::unbounded_channel::<Bytes>();
    let pieces = futures_util::stream::poll_fn(move |cx| receive.poll_recv(cx).map(|it| Some(Ok(Frame::data(it?)))));
    let mut request = Request::post(format!("http://shop{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let began = std::time::Instant::now();
    let answer = sender.send_request(request.body(StreamBody::new(pieces).boxed_unsync()).unwrap());
    let answer = async { (whole(soon("answer", answer).await.unwrap()).await, began.elapsed()) };
    let sends = async {
        tokio::time::sleep(UPLOAD).await;
        // Who has its answer listens no more.
        let _ = send.send(Bytes::from_static(b"slow"));
        drop(send);
    };
    tokio::join!(answer, sends).0
}

/// Whoever sends for long is not cut for it, and a call whose client still speaks is not over; what the client says itself of a call counts from its beginning.
#[tokio::test]
async fn features_VS_14_the_time_of_a_rule_runs_from_the_end_of_the_request() {
    let app = server(|request: Request<Incoming>| async move {
        let never = request.uri().path() == "/never";
        let length = request.into_body().collect().await.map(|body| body.to_bytes().len());
        if never {
            std::future::pending::<()>().await;
        }
        Response::new(Full::new(Bytes::from(format!("{length:?}"))))
    })
    .await;
    let with = async |timeout, retries: Retries| {
        let handling = Handling { timeout, retries, ..to("app") };
        let waypoint = Waypoint::start(&[Backend::new("app", VIP, &[app])], table("app", vec![rule(handling)])).await;
        // The end of the second one comes in a frame of its own, behind all that it has said it has.
        let (ok, never, known, call) = tokio::join!(
            slowly(&waypoint, "/", &[]),
            slowly(&waypoint, "/never", &[]),
            slowly(&waypoint, "/never", &[("content-length", "4")]),
            slowly(&waypoint, "/", &[("content-type", "application/grpc"), ("grpc-timeout", "100m")]),
        );
        assert_eq!((ok.0.status(), text(&ok.0)), (StatusCode::OK, "Ok(4)"));
        for (late, took) in [never, known] {
            assert_eq!(late.status(), StatusCode::GATEWAY_TIMEOUT);
            assert!(took >= UPLOAD + TIME, "{took:?}");
        }
        assert_eq!((call.0.headers()["grpc-status"].as_bytes(), call.1 < UPLOAD), (&b"14"[..], true), "{:?}", call.1);
    };
    let tried = Retries { per_try_timeout: Some(TIME), ..Retries::none() };
    tokio::join!(with(Some(TIME), Retries::none()), with(Some(TIME), Retries::default()), with(None, tried));
}

/// A request whose body nobody takes, or no more of, has its time as any other.
#[tokio::test]
async fn features_VS_14_a_body_that_no_endpoint_takes_does_not_stop_the_time() {
    // Connections come about, and nobody reads.
    let silent = listener().await;
    let address = silent.local_addr().unwrap();
    let large = Request::post("/").header("host", "shop").body(Full::new(Bytes::from(vec![b'x'; 32 << 20]))).unwrap();
    let small = Request::post("/").header("host", "shop").body(Full::new(Bytes::from_static(b"small"))).unwrap();
    for retries in [Retries::none(), Retries::default()] {
        let handling = Handling { timeout: Some(TIME), retries, ..to("app") };
        let backends = [Backend::new("app", VIP, &[address])];
        let waypoint = Waypoint::start(&backends, table("app", vec![rule(handling)])).await;
        let pool = mesh_core::l7::cluster::Pool { connections: 1, ..Default::default() };
        let policy = mesh_core::l7::cluster::Policy { pool, ..Default::default() };
        let cluster =
            mesh_core::l7::Cluster { policy: Ok(policy), ..mesh_core::l7::Cluster::closed(cluster("app"), "") };
        waypoint.state.set_clusters(Arc::new(mesh_core::l7::Clusters::new([cluster])));
        // One has the only connection, the other waits for it.
        let (one, other) =
            tokio::join!(waypoint.ask("10.96.0.10:80", large.clone()), waypoint.ask("10.96.0.10:80", small.clone()));
        assert_eq!([one.status(), other.status()], [StatusCode::GATEWAY_TIMEOUT; 2]);
    }
}
