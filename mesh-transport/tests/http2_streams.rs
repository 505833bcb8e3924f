//! Requests and streams of a tunnel against a peer that writes frames by hand: their status, their limits, their end.
#![allow(clippy::unwrap_used, missing_docs, non_snake_case)]

mod support;

use std::time::Duration;

use mesh_transport::hbone::ServeEnd;
use support::raw::*;
use support::{Lab, soon};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn hardening_B26_B27_B28_B30_B33_requests_and_their_status() {
    let lab = Lab::new().await;
    let mut raw = Raw::connect(&lab).await;
    let good = authority(&lab);
    let zeros = "0".repeat(55);
    let long = format!("{}.svc:80", "a".repeat(300));
    let cases: Vec<(Vec<(&str, &str)>, u16)> = vec![
        (vec![(":method", "GET"), (":authority", &good)], 400),
        (vec![(":method", "POST"), (":authority", &good)], 400),
        (vec![(":method", "connect"), (":authority", &good)], 400),
        (vec![(":method", "GET"), (":scheme", "https"), (":path", "/"), (":authority", &good)], 400),
        (vec![(":method", "CONNECT")], 400),
        (vec![(":authority", &good)], 400),
        (vec![(":method", "CONNECT"), (":method", "CONNECT"), (":authority", &good)], 400),
        (vec![(":method", "CONNECT"), (":authority", &good), (":authority", "10.0.0.1:80")], 400),
        (vec![(":method", "CONNECT"), (":authority", &good), (":path", "/")], 400),
        (vec![(":method", "CONNECT"), (":authority", &good), (":scheme", "https")], 400),
        (vec![(":method", "CONNECT"), (":authority", &good), (":protocol", "websocket")], 400),
        (vec![("x", "y"), (":method", "CONNECT"), (":authority", &good)], 400),
        (vec![(":method", "CONNECT"), (":authority", &good), ("Upper", "y")], 400),
        (vec![(":method", "CONNECT"), (":authority", &good), ("x", "a\r\nb")], 400),
        (vec![(":method", "CONNECT"), (":authority", &good), ("transfer-encoding", "chunked")], 400),
        (vec![(":method", "CONNECT"), (":authority", "127.0.0.1")], 400),
        (vec![(":method", "CONNECT"), (":authority", "127.0.0.1:0")], 400),
        (vec![(":method", "CONNECT"), (":authority", "127.0.0.1:65536")], 400),
        (vec![(":method", "CONNECT"), (":authority", "127.0.0.1:99999999999")], 400),
        (vec![(":method", "CONNECT"), (":authority", "127.0.0.1:-1")], 400),
        (vec![(":method", "CONNECT"), (":authority", "127.0.0.1: 80")], 400),
        (vec![(":method", "CONNECT"), (":authority", "10.1.2.3:80")], 400),
        (vec![(":method", "CONNECT"), (":authority", "[::1]:80")], 400),
        (vec![(":method", "CONNECT"), (":authority", &long)], 400),
        // A hostname is for the handler to judge; the one of this lab knows none.
        (vec![(":method", "CONNECT"), (":authority", "reviews.app.svc.cluster.local:80")], 503),
        // The app's port is closed.
        (vec![(":method", "CONNECT"), (":authority", "127.0.0.1:1")], 503),
        (vec![(":method", "CONNECT"), (":authority", &good)], 200),
        // Odd but harmless: what telemetry cannot read it ignores.
        (
            vec![
                (":method", "CONNECT"),
                (":authority", &good),
                ("baggage", ",,=;%zz"),
                ("forwarded", "for=_hidden"),
                ("traceparent", &zeros),
            ],
            200,
        ),
        (
            vec![
                (":method", "CONNECT"),
                (":authority", &good),
                ("content-length", "5"),
                ("x-forwarded-network", "other"),
            ],
            200,
        ),
    ];
    for (number, (fields, expect)) in cases.iter().enumerate() {
        let stream = 1 + 2 * number as u32;
        raw.request(stream, fields).await;
        assert_eq!(raw.status(stream).await, *expect, "{fields:?}");
    }
}

#[tokio::test]
async fn hardening_B39_streams_above_the_limit_are_refused() {
    let lab = Lab::new().await;
    let mut raw = Raw::connect(&lab).await;
    let mut held = Vec::new();
    for number in 0..200 {
        raw.request(1 + 2 * number, &[(":method", "CONNECT"), (":authority", &authority(&lab))]).await;
        held.push(soon("app", lab.app.accept()).await.unwrap());
    }
    raw.request(401, &[(":method", "CONNECT"), (":authority", &authority(&lab))]).await;
    loop {
        let reset = raw.wait(RST_STREAM).await;
        if reset.stream == 401 {
            assert_eq!(reset.payload, REFUSED_STREAM.to_be_bytes());
            break;
        }
    }
    // One ends, the next is taken.
    drop(held.pop());
    raw.send(DATA, 1, 1 + 2 * 199, &[]).await;
    loop {
        let data = raw.wait(DATA).await;
        if data.stream == 1 + 2 * 199 && data.flags & 1 == 1 {
            break;
        }
    }
    raw.request(403, &[(":method", "CONNECT"), (":authority", &authority(&lab))]).await;
    soon("app", lab.app.accept()).await.unwrap();
}

#[tokio::test]
async fn hardening_B48_B50_ends_and_resets_reach_the_application() {
    let lab = Lab::new().await;
    // END_STREAM with the request: the application sees an empty input and can still answer.
    let mut raw = Raw::connect(&lab).await;
    raw.send(
        HEADERS,
        5,
        1,
        &header_block(&[(":method", "CONNECT"), (":authority", &authority(&lab)), ("content-length", "7")]),
    )
    .await;
    let (mut far, _) = soon("app", lab.app.accept()).await.unwrap();
    assert_eq!(soon("end", far.read(&mut [0; 9])).await.unwrap(), 0);
    far.write_all(b"answer").await.unwrap();
    drop(far);
    let mut answer = Vec::new();
    loop {
        let data = raw.wait(DATA).await;
        answer.extend(data.payload);
        if data.flags & 1 == 1 {
            break;
        }
    }
    assert_eq!(answer, b"answer");

    // Trailers end a stream like DATA does.
    let (mut raw, mut far) = connected(&lab).await;
    raw.send(DATA, 0, 1, b"hello").await;
    raw.request(1, &[("x", "not the end")]).await;
    assert_eq!(raw.wait(RST_STREAM).await.payload, PROTOCOL_ERROR.to_be_bytes());
    assert!(soon("reset", far.read_to_end(&mut Vec::new())).await.is_err());
    let (mut raw, mut far) = connected(&lab).await;
    raw.send(DATA, 0, 1, b"hello").await;
    raw.send(HEADERS, 5, 1, &header_block(&[("x", "trailer")])).await;
    let mut hello = String::new();
    soon("end", far.read_to_string(&mut hello)).await.unwrap();
    assert_eq!(hello, "hello");

    // A reset with any code before the end of data is a reset, also the CANCEL of a ztunnel.
    for code in [8u32, 0, 2, 10] {
        let (mut raw, mut far) = connected(&lab).await;
        raw.send(DATA, 0, 1, b"partial").await;
        soon("partial", far.read_exact(&mut [0; 7])).await.unwrap();
        raw.send(RST_STREAM, 0, 1, &code.to_be_bytes()).await;
        let error = soon("reset", far.read(&mut [0; 9])).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "code {code}");
    }
    // After the end of data CANCEL only says that the peer does not read any more.
    let (mut raw, mut far) = connected(&lab).await;
    raw.send(DATA, 1, 1, b"all").await;
    raw.send(RST_STREAM, 0, 1, &8u32.to_be_bytes()).await;
    let mut all = String::new();
    soon("end", far.read_to_string(&mut all)).await.unwrap();
    assert_eq!(all, "all");

    // The application's reset is RST_STREAM, and not CANCEL, which a ztunnel would take for a clean end.
    let (mut raw, mut far) = connected(&lab).await;
    raw.send(DATA, 0, 1, b"x").await;
    soon("x", far.read_u8()).await.unwrap();
    mesh_transport::socket::reset(far);
    assert_eq!(raw.wait(RST_STREAM).await.payload, 10u32.to_be_bytes());
}

#[tokio::test]
async fn hardening_B49_a_draining_tunnel_finishes_its_streams_and_takes_no_more() {
    let mut lab = Lab::new().await;
    let (mut raw, mut far) = connected(&lab).await;
    lab.drain.cancel();
    let first = raw.wait(GOAWAY).await;
    assert_eq!(first.payload[..8], [0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
    let ping = raw.wait(PING).await;
    raw.send(PING, 1, 0, &ping.payload).await;
    let last = raw.wait(GOAWAY).await;
    assert_eq!(last.payload[..8], [0, 0, 0, 1, 0, 0, 0, 0]);
    raw.request(3, &[(":method", "CONNECT"), (":authority", &authority(&lab))]).await;
    raw.send(DATA, 1, 1, b"still here").await;
    let mut text = String::new();
    soon("end", far.read_to_string(&mut text)).await.unwrap();
    assert_eq!(text, "still here");
    drop(far);
    assert_eq!(soon("end", lab.ends.recv()).await, Some(ServeEnd::Closed));
    let accepted = tokio::time::timeout(Duration::from_millis(50), lab.app.accept()).await;
    assert!(accepted.is_err(), "stream 3 was not taken");
}

/// What a drained tunnel has given to the kernel may be under way for long on a slow link, and what the peer says meanwhile must not turn it into a reset.
#[tokio::test]
async fn a_drained_tunnel_waits_for_a_peer_that_is_slow_to_take_the_last_bytes() {
    const BYTES: usize = 300_000;
    let mut lab = Lab::new().await;
    let (mut raw, mut far) = connected(&lab).await;
    for stream in [0, 1] {
        raw.send(WINDOW_UPDATE, 0, stream, &(4 * BYTES as u32).to_be_bytes()).await;
    }
    lab.drain.cancel();
    raw.wait(GOAWAY).await;
    let ping = raw.wait(PING).await;
    raw.send(PING, 1, 0, &ping.payload).await;
    raw.wait(GOAWAY).await;
    raw.send(DATA, 1, 1, b"that is all").await;
    soon("end", far.read_to_string(&mut String::new())).await.unwrap();
    soon("last bytes", far.write_all(&vec![7; BYTES])).await.unwrap();
    drop(far);
    // Longer than a tunnel waits for a peer that has everything.
    let early = tokio::time::timeout(Duration::from_millis(1500), lab.ends.recv()).await;
    raw.send(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes()).await;
    let mut received = 0;
    loop {
        let frame = raw.wait(DATA).await;
        received += frame.payload.len();
        if frame.flags & 1 != 0 {
            break;
        }
    }
    assert_eq!(received, BYTES);
    assert!(early.is_err(), "it ended before the bytes were through");
    drop(raw);
    assert_eq!(soon("end", lab.ends.recv()).await, Some(ServeEnd::Closed));
}

/// ztunnel#2100: many small DATA frames that nobody drains are what databases do, not an attack.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_frames_to_a_stalled_reader_are_no_flood() {
    let lab = Lab::new().await;
    let mut conns = Vec::new();
    for _ in 0..100 {
        let (near, far, _) = lab.through().await;
        near.set_nodelay(true).unwrap();
        conns.push((near, far));
    }
    for _ in 0..300 {
        for (near, _) in &mut conns {
            near.write_all(b"x").await.unwrap();
        }
    }
    assert_eq!((lab.pool.stats().tunnels, lab.pool.stats().streams), (1, 100), "no GOAWAY");
    for (_, far) in &mut conns {
        soon("bytes", far.read_exact(&mut [0; 300])).await.unwrap();
    }
}

#[tokio::test]
async fn hardening_B49_a_peer_that_has_said_goaway_opens_no_more() {
    let lab = Lab::new().await;
    let (mut raw, mut far) = connected(&lab).await;
    raw.send(GOAWAY, 0, 0, &[0; 8]).await;
    raw.request(3, &[(":method", "CONNECT"), (":authority", &authority(&lab))]).await;
    assert_eq!(raw.wait(RST_STREAM).await.payload, REFUSED_STREAM.to_be_bytes());
    raw.send(DATA, 1, 1, b"still here").await;
    let mut text = String::new();
    soon("end", far.read_to_string(&mut text)).await.unwrap();
    assert_eq!(text, "still here");
}

/// Only the answer to the PING behind our GOAWAY shows that the peer knows of it.
#[tokio::test]
async fn hardening_B49_an_answer_to_another_ping_does_not_end_the_grace() {
    let lab = Lab::new().await;
    let (mut raw, _far) = connected(&lab).await;
    lab.drain.cancel();
    raw.wait(GOAWAY).await;
    raw.send(PING, 1, 0, b"undermsh").await;
    raw.send(PING, 1, 0, b"whatever").await;
    raw.request(3, &[(":method", "CONNECT"), (":authority", &authority(&lab))]).await;
    let (_far, _) = soon("app", lab.app.accept()).await.unwrap();
    assert_eq!(raw.status(3).await, 200);
    raw.send(PING, 1, 0, b"goodbye!").await;
    assert_eq!(raw.wait(GOAWAY).await.payload[..4], 3u32.to_be_bytes());
}
