//! HTTP/1.1 of clients: where one request ends and the next begins.

use std::time::Duration;

use http::StatusCode;
use mesh_core::l7::Table;
use mesh_core::service::AppProtocol;
use mesh_waypoint::Settings;
use mesh_waypoint::refused::Reason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::support::*;
use super::{ASK, VIP};

const EVIL: &str = "GET /evil HTTP/1.1\r\nhost: shop\r\n\r\n";

async fn waypoint(app: std::net::SocketAddr) -> Waypoint {
    let backend = Backend::new("app", VIP, &[app]).speaking(AppProtocol::Http11);
    Waypoint::start(&[backend], Table::default()).await
}

fn statuses(answer: &str) -> Vec<&str> {
    answer.split("HTTP/1.1 ").skip(1).map(|rest| &rest[..3]).collect()
}

#[tokio::test]
async fn hardening_B153_to_B158_one_request_or_400_and_the_end() {
    let (app, mut told) = noting(StatusCode::OK).await;
    let waypoint = waypoint(app).await;
    let post = |fields: &str, body: &str| format!("POST /a HTTP/1.1\r\nhost: shop\r\n{fields}\r\n{body}{EVIL}");
    let line = |line: &str| format!("{line}\r\nhost: shop\r\n\r\n{EVIL}");
    let long = "a".repeat(64 * 1024);
    let mut rows = 0;
    for (request, expected) in [
        // B153, B154
        (post("content-length: 4\r\ntransfer-encoding: chunked\r\n", "0\r\n\r\n"), "400"),
        (post("transfer-encoding: chunked\r\ncontent-length: 4\r\n", "0\r\n\r\n"), "400"),
        (post("transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n", "0\r\n\r\n"), "400"),
        (post("transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n", "0\r\n\r\n"), "400"),
        (post("transfer-encoding: gzip, chunked\r\n", "0\r\n\r\n"), "400"),
        (post("transfer-encoding: chunked, identity\r\n", "0\r\n\r\n"), "400"),
        (post("transfer-encoding: xchunked\r\n", ""), "400"),
        (post("transfer-encoding : chunked\r\n", "0\r\n\r\n"), "400"),
        ("POST /a HTTP/1.0\r\nhost: shop\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n".to_owned() + EVIL, "400"),
        (post("content-length: 2\r\ncontent-length: 2\r\n", "ab"), "400"),
        (post("content-length: 2\r\ncontent-length: 3\r\n", "ab"), "400"),
        (post("content-length: +2\r\n", "ab"), "400"),
        (post("content-length: -2\r\n", "ab"), "400"),
        (post("content-length: 0x2\r\n", "ab"), "400"),
        (post("content-length: 2,2\r\n", "ab"), "400"),
        (post("content-length:\r\n", ""), "400"),
        (post("content-length: 18446744073709551616\r\n", ""), "400"),
        // B156
        (post("a: b\n", ""), "400"),
        (post("a: b\rc\r\n", ""), "400"),
        (post("a: b\r\n folded\r\n", ""), "400"),
        (post("a: b\0c\r\n", ""), "400"),
        (post("a\u{e9}: b\r\n", ""), "400"),
        (post(": b\r\n", ""), "400"),
        (post("a b: c\r\n", ""), "400"),
        (post("x_user: c\r\n", ""), "400"),
        ("GET /a HTTP/1.1\nhost: shop\n\n".to_owned() + EVIL, "400"),
        // B157
        (format!("GET /a HTTP/1.1\r\n\r\n{EVIL}"), "400"),
        (post("host: shop\r\n", ""), "400"),
        (format!("GET /a HTTP/1.1\r\nhost: a, b\r\n\r\n{EVIL}"), "400"),
        (format!("GET /a HTTP/1.1\r\nhost: user@shop\r\n\r\n{EVIL}"), "400"),
        (format!("GET /a HTTP/1.1\r\nhost: shop/x\r\n\r\n{EVIL}"), "400"),
        (format!("GET http://shop/a HTTP/1.1\r\n\r\n{EVIL}"), "400"),
        (line("GET ftp://shop/a HTTP/1.1"), "400"),
        // B158
        (line(&format!("GET /{long} HTTP/1.1")), "4xx"),
        (post(&format!("a: {long}\r\n"), ""), "431"),
        (post(&"a: b\r\n".repeat(1000), ""), "431"),
        (line(&format!("{} / HTTP/1.1", "A".repeat(1024))), "400"),
        (line("GET  / HTTP/1.1"), "400"),
        ("GET /\r\n\r\n".to_owned() + EVIL, "400"),
        (line("GET / HTTP/1.2"), "400"),
        (line("GET / HTTP/2.0"), "400"),
        (line("GET /a#b HTTP/1.1"), "400"),
        (line("GET /a\0b HTTP/1.1"), "400"),
        (line("GET admin HTTP/1.1"), "400"),
        // B160
        ("CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\n\r\n".to_owned() + EVIL, "405"),
        (line("TRACE / HTTP/1.1"), "405"),
        // B163
        (post("expect: x\r\ncontent-length: 2\r\n", "ab"), "417"),
        ("\x16\x03\x01 this is no HTTP\r\n\r\n".to_owned() + EVIL, "400"),
    ] {
        let answer = waypoint.raw(ASK, request.as_bytes()).await;
        let statuses = statuses(&answer);
        assert_eq!(statuses.len(), 1, "{request:.200?}: {answer}");
        assert!(
            statuses[0] == expected || (expected == "4xx" && ["414", "431"].contains(&statuses[0])),
            "{request:.200?}: {answer}"
        );
        assert!(told.try_recv().is_err(), "{request:.200?}");
        rows += 1;
        // Each is counted once: as what it is, or as a request.
        let asked = waypoint.scrape();
        let asked = asked.lines().filter(|line| line.starts_with("istio_requests_total{"));
        let asked: u64 = asked.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum();
        waypoint.refuses(rows - asked, &[Reason::Smuggling, Reason::Http1, Reason::HeadTooLarge]).await;
    }
    for (least, reason) in [(20, Reason::Smuggling), (5, Reason::Http1), (3, Reason::HeadTooLarge)] {
        assert!(waypoint.refused(&[reason]) >= least, "{reason:?}: {}", waypoint.refused(&[reason]));
    }
    assert!(waypoint.scrape().contains("undermesh_waypoint_refused_total{reason=\"http_ambiguous\"} "));
}

#[tokio::test]
async fn hardening_B155_what_follows_a_broken_chunk_is_no_request() {
    let (app, mut told) = noting(StatusCode::OK).await;
    let waypoint = waypoint(app).await;
    for body in [
        "ffffffffffffffff0\r\n",
        "-1\r\n",
        "0x1\r\na\r\n0\r\n\r\n",
        "1 \r\na\r\n0\r\n\r\n",
        "1\na\r\n0\r\n\r\n",
        "1\r\nab\r\n0\r\n\r\n",
        "1\r\na0\r\n\r\n",
        "0\r\ncontent-length: 5\r\n\r\n",
        "0\r\nhost: b\r\n\r\n",
        "0\r\na: b\n\r\n",
        &format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(64 * 1024)),
    ] {
        let head = "POST /a HTTP/1.1\r\nhost: shop\r\ntransfer-encoding: chunked\r\n\r\n";
        let answer = waypoint.raw(ASK, format!("{head}{body}{EVIL}").as_bytes()).await;
        assert!(matches!(statuses(&answer)[..], [] | ["400"]), "{body:.80?}: {answer}");
    }
    waypoint.refuses(11, &[Reason::Smuggling]).await;
    while let Ok(request) = told.try_recv() {
        assert_ne!(request.uri().path(), "/evil");
    }
}

#[tokio::test]
async fn hardening_B163_B164_a_body_that_does_not_go_on_ends_its_connection() {
    let (app, _told) = noting(StatusCode::OK).await;
    let settings = Settings { body_timeout: Duration::from_millis(300), ..Settings::default() };
    let waypoint = Waypoint::with(&[Backend::new("app", VIP, &[app])], Table::default(), settings).await;
    for head in
        ["content-length: 9\r\n", "transfer-encoding: chunked\r\n", "content-length: 9\r\nexpect: 100-continue\r\n"]
    {
        let mut stream = waypoint.stream(ASK).await.unwrap();
        stream.write_all(format!("POST / HTTP/1.1\r\nhost: shop\r\n{head}\r\n").as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = soon("the end", stream.read_to_end(&mut answer)).await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(!answer.contains(" 200 "), "{head}: {answer}");
    }
}

#[tokio::test]
async fn hardening_B163_who_announces_a_body_begins_it_or_is_not_waited_for() {
    assert_eq!(Settings::default().header_timeout, Duration::from_secs(10));
    let (app, _told) = noting(StatusCode::OK).await;
    let settings = Settings { header_timeout: Duration::from_millis(300), ..Settings::default() };
    let waypoint = Waypoint::with(&[Backend::new("app", VIP, &[app])], Table::default(), settings).await;
    let ask = async |head: &str| {
        let mut stream = waypoint.stream(ASK).await.unwrap();
        stream.write_all(format!("POST / HTTP/1.1\r\nhost: shop\r\n{head}").as_bytes()).await.unwrap();
        stream
    };
    // What has begun, or may be made as it goes, is waited for.
    let begun = ask("content-length: 2\r\nconnection: close\r\n\r\na").await;
    let made = ask("transfer-encoding: chunked\r\nconnection: close\r\n\r\n").await;
    for head in [
        "content-length: 9\r\n\r\n",
        "content-length: 9\r\nexpect: 100-continue\r\n\r\n",
        "transfer-encoding: chunked\r\nexpect: 100-continue\r\n\r\n",
    ] {
        let (mut stream, mut answer) = (ask(head).await, Vec::new());
        let _ = soon("the end", stream.read_to_end(&mut answer)).await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(!answer.contains(" 200 "), "{head}: {answer}");
    }
    for (mut stream, rest) in [(begun, "b"), (made, "1\r\na\r\n0\r\n\r\n")] {
        stream.write_all(rest.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = soon("the end", stream.read_to_end(&mut answer)).await;
        assert_eq!(statuses(&String::from_utf8_lossy(&answer)), ["200"], "{rest}");
    }
}

#[tokio::test]
async fn hardening_B164_requests_in_one_piece_are_answered_in_order() {
    let app = echo("app").await;
    let waypoint = waypoint(app).await;
    let mut requests: String = (0..999).map(|n| format!("GET /{n} HTTP/1.1\r\nhost: shop\r\n\r\n")).collect();
    requests.push_str("GET /999 HTTP/1.1\r\nhost: shop\r\nconnection: close\r\n\r\n");
    let answer = waypoint.raw(ASK, requests.as_bytes()).await;
    let order: Vec<_> = answer.split("app GET /").skip(1).map(|rest| rest.split(' ').next().unwrap()).collect();
    assert_eq!(order, (0..1000).map(|n| n.to_string()).collect::<Vec<_>>());
}

#[tokio::test]
async fn hardening_B164_an_answer_before_the_body_ends_the_connection() {
    let (app, connections, _told) =
        scripted(vec![(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno".to_vec(), false)]).await;
    let waypoint = waypoint(app).await;
    let mut stream = waypoint.stream(ASK).await.unwrap();
    let head = "POST /a HTTP/1.1\r\nhost: shop\r\ncontent-length: 100000000\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&[b'x'; 32 * 1024]).await.unwrap();
    let mut answer = [0; 256];
    let read = soon("answer", stream.read(&mut answer)).await.unwrap();
    assert!(answer[..read].starts_with(b"HTTP/1.1 200 OK\r\n"));
    // However much more is sent, it is not read for ever.
    let mut sent = 0_usize;
    soon("the end", async {
        while stream.write_all(&[b'x'; 16 * 1024]).await.is_ok() && stream.flush().await.is_ok() && sent < 50_000_000 {
            sent += 16 * 1024;
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(sent < 8_000_000, "{sent}");
    // Nor is the endpoint's connection, in which the rest of the body is owed, used again.
    assert_eq!(waypoint.ask(ASK, get("/")).await.status(), StatusCode::OK);
    assert_eq!(connections.load(std::sync::atomic::Ordering::Relaxed), 2);
}

#[tokio::test]
async fn hardening_B161_bytes_behind_an_upgrade_wait_for_the_agreement() {
    let listener = listener().await;
    let waypoint = waypoint(listener.local_addr().unwrap()).await;
    let mut stream = waypoint.stream(ASK).await.unwrap();
    let request = "GET /chat HTTP/1.1\r\nhost: shop\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nearly";
    stream.write_all(request.as_bytes()).await.unwrap();
    let (mut far, _) = soon("accept", listener.accept()).await.unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"\r\n\r\n") {
        assert!(soon("head", far.read_buf(&mut seen)).await.unwrap() > 0);
    }
    let early = tokio::time::timeout(Duration::from_millis(200), far.read_u8()).await;
    assert!(early.is_err(), "{early:?} before the agreement");
    far.write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
        .await
        .unwrap();
    let mut early = [0; 5];
    soon("bytes", far.read_exact(&mut early)).await.unwrap();
    assert_eq!(&early, b"early");
}

#[tokio::test]
async fn hardening_B161_bytes_behind_an_upgrade_that_is_declined_are_no_request() {
    let (app, mut told) = noting(StatusCode::FORBIDDEN).await;
    let waypoint = waypoint(app).await;
    let request =
        format!("GET /chat HTTP/1.1\r\nhost: shop\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n{EVIL}");
    let answer = waypoint.raw(ASK, request.as_bytes()).await;
    assert_eq!(statuses(&answer), ["403"], "{answer}");
    assert!(answer.contains("connection: close\r\n"), "{answer}");
    assert_eq!(soon("request", told.recv()).await.unwrap().uri().path(), "/chat");
    assert!(told.try_recv().is_err());
    let body =
        "GET /chat HTTP/1.1\r\nhost: shop\r\nconnection: upgrade\r\nupgrade: websocket\r\ncontent-length: 3\r\n\r\nabc";
    assert_eq!(statuses(&waypoint.raw(ASK, body.as_bytes()).await), ["400"]);
    assert!(told.try_recv().is_err());
}

/// Behind whatever else an application agreed to might come requests that nobody would hold against policies: it is not asked, and what comes next is a request.
#[tokio::test]
async fn hardening_B161_nothing_but_a_websocket_is_asked_of_an_endpoint() {
    let (app, mut told) = noting(StatusCode::OK).await;
    let waypoint = waypoint(app).await;
    for upgrade in ["TLS/1.0", "SPDY/3.1", "something/2", "h2c, websocket"] {
        let more = "GET /b HTTP/1.1\r\nhost: shop\r\nconnection: close\r\n\r\n";
        let request =
            format!("GET /a HTTP/1.1\r\nhost: shop\r\nconnection: upgrade\r\nupgrade: {upgrade}\r\n\r\n{more}");
        let answer = waypoint.raw(ASK, request.as_bytes()).await;
        assert_eq!(statuses(&answer), ["200", "200"], "{upgrade}: {answer}");
        for path in ["/a", "/b"] {
            let request = soon("request", told.recv()).await.unwrap();
            assert_eq!(request.uri().path(), path, "{upgrade}");
            assert!(!request.headers().contains_key("upgrade"), "{upgrade}");
        }
    }
}

#[tokio::test]
async fn hardening_B161_http_2_is_not_agreed_to_and_the_connection_goes_on() {
    let app = echo("app").await;
    let waypoint = waypoint(app).await;
    let first = "GET /a HTTP/1.1\r\nhost: shop\r\nconnection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n\r\n";
    let second = "GET /b HTTP/1.1\r\nhost: shop\r\nconnection: close\r\n\r\n";
    let answer = waypoint.raw(ASK, format!("{first}{second}").as_bytes()).await;
    assert_eq!(statuses(&answer), ["200", "200"]);
    assert!(
        answer.contains("app GET /b ") && !answer.contains("h2c") && !answer.contains("http2-settings"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_body_goes_on_whatever_the_method() {
    let app = echo("app").await;
    let waypoint = waypoint(app).await;
    for method in ["GET", "DELETE", "POST"] {
        let request = format!(
            "{method} /a HTTP/1.1\r\nhost: shop\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
        );
        let answer = waypoint.raw(ASK, request.as_bytes()).await;
        assert!(answer.contains("transfer-encoding: chunked\n") && answer.ends_with("hello"), "{answer}");
    }
}
