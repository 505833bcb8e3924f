//! Answers of endpoints that are none: the client gets 502 or the truth, and the connection is never used again.

use std::sync::atomic::Ordering;

use http::StatusCode;
use mesh_core::l7::{Handling, Retries};
use mesh_core::service::AppProtocol;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::support::*;
use super::{ASK, VIP};

const GOOD: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ngood";
const EVIL: &str = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil";

/// Each request is tried once.
async fn waypoint(app: std::net::SocketAddr) -> Waypoint {
    let backend = Backend::new("app", VIP, &[app]).speaking(AppProtocol::Http11);
    let once = Handling { retries: Retries { attempts: 0, ..Retries::default() }, ..to("app") };
    Waypoint::start(&[backend], table("app", vec![rule(once)])).await
}

#[tokio::test]
async fn hardening_B165_an_answer_that_is_none_is_502_and_its_connection_ends() {
    let head = |fields: &str| format!("HTTP/1.1 200 OK\r\n{fields}\r\n");
    for (answer, close) in [
        ("HTTP/1.1 200 OK\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_owned(), false),
        (head("content-length: +2\r\n") + "ok", false),
        (head("content-length: 2\r\ncontent-length: 3\r\n") + "ok", false),
        (head("content-length: 2,3\r\n") + "ok", false),
        (head("content-length: 2,2\r\n") + "ok", false),
        (head("content-length: 2\r\ncontent-length: 2\r\n") + "ok", false),
        (head("content-length: -1\r\n"), false),
        (head("content-length:\r\n"), false),
        (head("content-length: 2\r\ntransfer-encoding: chunked\r\n") + "2\r\nok\r\n0\r\n\r\n", false),
        (head("transfer-encoding: gzip, chunked\r\n") + "2\r\nok\r\n0\r\n\r\n", false),
        (head("transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n") + "2\r\nok\r\n0\r\n\r\n", false),
        (head("transfer-encoding: identity\r\n") + "ok", true),
        ("HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(), true),
        (head(&format!("a: {}\r\n", "x".repeat(1024 * 1024))), false),
        (head(&"a: b\r\n".repeat(1000)), false),
        (head("a b: c\r\n"), false),
        (head(" a: c\r\n"), false),
        (head("a: b\0c\r\n"), false),
        ("HTTP/1.1 600 What\r\ncontent-length: 0\r\n\r\n".to_owned(), false),
        ("HTTP/1.1 099 What\r\ncontent-length: 0\r\n\r\n".to_owned(), false),
        ("HTTP/1.1 2000 What\r\ncontent-length: 0\r\n\r\n".to_owned(), false),
        ("HTTP/2.0 200 OK\r\ncontent-length: 0\r\n\r\n".to_owned(), false),
        ("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n".to_owned(), false),
        ("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n".repeat(100_000), false),
        ("\x16\x03\x01 this is no HTTP\r\n\r\n".to_owned(), false),
    ] {
        let (app, connections, _told) =
            scripted(vec![(answer.clone().into_bytes(), close), (GOOD.to_vec(), false)]).await;
        let waypoint = waypoint(app).await;
        let got = waypoint.ask(ASK, get("/")).await;
        let is_502 = got.status() == StatusCode::BAD_GATEWAY;
        // The connection ends in the middle of many heads, and is lost.
        let is_lost = got.status() == StatusCode::SERVICE_UNAVAILABLE && answer.len() > 1024 * 1024;
        assert!(is_502 || is_lost, "{answer:.120?}: {got:?}");
        assert_eq!(text(&waypoint.ask(ASK, get("/")).await), "good", "{answer:.120?}");
        assert_eq!(connections.load(Ordering::Relaxed), 2, "{answer:.120?}");
    }
}

#[tokio::test]
async fn hardening_B165_what_follows_an_answer_is_not_the_next_one() {
    for (answer, status) in [
        (format!("HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\n{EVIL}"), 204),
        (format!("HTTP/1.1 304 Not Modified\r\n\r\n{EVIL}"), 304),
        (format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok{EVIL}"), 200),
        (format!("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n{EVIL}"), 200),
        (format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{EVIL}"), 200),
    ] {
        let (app, connections, _told) =
            scripted(vec![(answer.clone().into_bytes(), false), (GOOD.to_vec(), false)]).await;
        let waypoint = waypoint(app).await;
        assert_eq!(waypoint.ask(ASK, get("/")).await.status(), status, "{answer}");
        assert_eq!(text(&waypoint.ask(ASK, get("/")).await), "good", "{answer}");
        assert_eq!(connections.load(Ordering::Relaxed), 2);
    }
}

#[tokio::test]
async fn hardening_B165_an_answer_that_breaks_off_is_not_whole_to_the_client() {
    for answer in [
        "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabcX",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\nfffffffffffffffff\r\n",
    ] {
        let (app, _, _told) = scripted(vec![(answer.as_bytes().to_vec(), true)]).await;
        let waypoint = waypoint(app).await;
        let mut stream = waypoint.stream(ASK).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: shop\r\n\r\n").await.unwrap();
        let mut got = Vec::new();
        let ended = soon("the end", stream.read_to_end(&mut got)).await;
        let got = String::from_utf8_lossy(&got);
        // Reset, the client may see no byte of it; else it misses the end that it was promised.
        assert!(ended.is_err() || !got.is_empty(), "{answer:?}");
        assert!(!got.ends_with("0\r\n\r\n"), "{answer:?}: {got}");
    }
}

#[tokio::test]
async fn hardening_B165_an_endpoint_that_never_answers_has_its_time() {
    let (app, ..) = scripted(vec![(Vec::new(), false)]).await;
    let backend = Backend::new("app", VIP, &[app]).speaking(AppProtocol::Http11);
    let limited = Handling { timeout: Some(std::time::Duration::from_millis(200)), ..to("app") };
    let waypoint = Waypoint::start(&[backend], table("app", vec![rule(limited)])).await;
    assert_eq!(waypoint.ask(ASK, get("/")).await.status(), StatusCode::GATEWAY_TIMEOUT);
}
