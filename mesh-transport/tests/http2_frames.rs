//! The frames of a tunnel against a peer that writes them by hand: what is legal, what is odd, what ends the tunnel.
#![allow(clippy::unwrap_used, missing_docs, non_snake_case)]

mod support;

use std::time::{Duration, Instant};

use mesh_transport::hbone::{AcceptorConfig, PoolConfig, ServeEnd};
use support::raw::*;
use support::{Lab, soon};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Frames that end the tunnel, with the code that says why.
#[tokio::test]
async fn hardening_B41_B42_B43_B44_B45_broken_frames_end_the_tunnel() {
    let lab = Lab::new().await;
    let request = header_block(&[(":method", "CONNECT"), (":authority", &authority(&lab))]);
    let open = frame(HEADERS, 4, 1, &request);
    let after = |bytes: Vec<u8>| [open.clone(), bytes].concat();
    let many = |count: usize, bytes: Vec<u8>| bytes.repeat(count);
    let setting = |id: u16, value: u32| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat();
    let cases: Vec<(&str, Vec<u8>, u32)> = vec![
        ("DATA on stream 0", frame(DATA, 0, 0, b"x"), PROTOCOL_ERROR),
        ("DATA on an idle stream", frame(DATA, 0, 5, b"x"), PROTOCOL_ERROR),
        ("HEADERS on an even stream", frame(HEADERS, 4, 2, &request), PROTOCOL_ERROR),
        ("HEADERS on stream 0", frame(HEADERS, 4, 0, &request), PROTOCOL_ERROR),
        ("CONTINUATION of nothing", frame(CONTINUATION, 4, 1, &request), PROTOCOL_ERROR),
        (
            "interrupted headers",
            [frame(HEADERS, 0, 1, &request), frame(PING, 0, 0, b"12345678")].concat(),
            PROTOCOL_ERROR,
        ),
        ("padding longer than the frame", after(frame(DATA, 8, 1, &[200, 1, 2])), PROTOCOL_ERROR),
        ("padding without length", after(frame(DATA, 8, 1, &[])), FRAME_SIZE_ERROR),
        ("header padding too long", frame(HEADERS, 0xc, 1, &[200, 1, 2]), PROTOCOL_ERROR),
        ("WINDOW_UPDATE 0", frame(WINDOW_UPDATE, 0, 0, &[0; 4]), PROTOCOL_ERROR),
        ("window overflow", frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]), FLOW_CONTROL_ERROR),
        ("WINDOW_UPDATE of 3 bytes", frame(WINDOW_UPDATE, 0, 0, &[0; 3]), FRAME_SIZE_ERROR),
        ("WINDOW_UPDATE on an idle stream", frame(WINDOW_UPDATE, 0, 9, &[0, 0, 9, 9]), PROTOCOL_ERROR),
        ("SETTINGS of 5 bytes", frame(SETTINGS, 0, 0, &[0; 5]), FRAME_SIZE_ERROR),
        ("SETTINGS on a stream", frame(SETTINGS, 0, 1, &[]), PROTOCOL_ERROR),
        ("SETTINGS ack with content", frame(SETTINGS, 1, 0, &[0; 6]), FRAME_SIZE_ERROR),
        ("INITIAL_WINDOW_SIZE 2^31", frame(SETTINGS, 0, 0, &setting(4, 1 << 31)), FLOW_CONTROL_ERROR),
        ("MAX_FRAME_SIZE 1", frame(SETTINGS, 0, 0, &setting(5, 1)), PROTOCOL_ERROR),
        ("ENABLE_PUSH 2", frame(SETTINGS, 0, 0, &setting(2, 2)), PROTOCOL_ERROR),
        ("PING of 7 bytes", frame(PING, 0, 0, &[0; 7]), FRAME_SIZE_ERROR),
        ("PING on a stream", frame(PING, 0, 1, &[0; 8]), PROTOCOL_ERROR),
        ("RST_STREAM on an idle stream", frame(RST_STREAM, 0, 1, &[0; 4]), PROTOCOL_ERROR),
        ("RST_STREAM of 3 bytes", after(frame(RST_STREAM, 0, 1, &[0; 3])), FRAME_SIZE_ERROR),
        ("GOAWAY of 3 bytes", frame(GOAWAY, 0, 0, &[0; 3]), FRAME_SIZE_ERROR),
        (
            "a request on a lower number",
            [frame(HEADERS, 4, 5, &request), frame(HEADERS, 4, 3, &request)].concat(),
            PROTOCOL_ERROR,
        ),
        ("PUSH_PROMISE from a client", after(frame(PUSH_PROMISE, 4, 1, &[0, 0, 0, 2])), PROTOCOL_ERROR),
        ("frame of 16 MiB", vec![0xff, 0xff, 0xff, DATA, 0, 0, 0, 0, 1], FRAME_SIZE_ERROR),
        ("bad HPACK", frame(HEADERS, 4, 1, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff]), COMPRESSION_ERROR),
        ("unknown HPACK index", frame(HEADERS, 4, 1, &[0xfe]), COMPRESSION_ERROR),
        // Floods.
        ("SETTINGS flood", many(20_000, frame(SETTINGS, 0, 0, &[])), ENHANCE_YOUR_CALM),
        ("PING flood", many(20_000, frame(PING, 0, 0, &[0; 8])), ENHANCE_YOUR_CALM),
        ("PRIORITY flood", many(50_000, frame(PRIORITY, 0, 1, &[0; 5])), ENHANCE_YOUR_CALM),
        ("unknown frame flood", many(50_000, frame(99, 0, 0, &[])), ENHANCE_YOUR_CALM),
        ("small window flood", after(many(50_000, frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]))), ENHANCE_YOUR_CALM),
        ("empty DATA flood", after(many(100_000, frame(DATA, 0, 1, &[]))), ENHANCE_YOUR_CALM),
        ("padded empty DATA flood", after(many(100_000, frame(DATA, 8, 1, &[0]))), ENHANCE_YOUR_CALM),
        (
            "flood of trailers",
            after([frame(DATA, 1, 1, b"x"), many(20_000, frame(HEADERS, 5, 1, &[]))].concat()),
            ENHANCE_YOUR_CALM,
        ),
        (
            "CONTINUATION flood",
            [frame(HEADERS, 0, 1, &[]), many(10_000, frame(CONTINUATION, 0, 1, &[]))].concat(),
            ENHANCE_YOUR_CALM,
        ),
        (
            "endless headers",
            [frame(HEADERS, 0, 1, &[]), many(100, frame(CONTINUATION, 0, 1, &[0; 8000]))].concat(),
            ENHANCE_YOUR_CALM,
        ),
        ("10 000 fields", frame(HEADERS, 4, 1, &[0x82; 10_000]), ENHANCE_YOUR_CALM),
        (
            "rapid reset",
            (0..20_000)
                .flat_map(|number| {
                    let id = 1 + 2 * number;
                    [frame(HEADERS, 4, id, &request), frame(RST_STREAM, 0, id, &8u32.to_be_bytes())].concat()
                })
                .collect(),
            ENHANCE_YOUR_CALM,
        ),
    ];
    for (name, bytes, expect) in cases {
        let raw = Raw::connect(&lab).await;
        let (mut read, mut write) = tokio::io::split(raw.tls);
        let writing = tokio::spawn(async move {
            for piece in bytes.chunks(64 * 1024) {
                if write.write_all(piece).await.is_err() {
                    break;
                }
            }
            let _ = write.flush().await;
            write
        });
        let mut received = Vec::new();
        let _ = soon(name, read.read_to_end(&mut received)).await;
        drop(writing.await.unwrap());
        let mut at = 0;
        let mut code = None;
        while let Some(head) = received.get(at..at + 9) {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            if head[3] == GOAWAY {
                code = received.get(at + 13..at + 17).map(|code| u32::from_be_bytes(code.try_into().unwrap()));
            }
            at += 9 + length;
        }
        assert_eq!(code, Some(expect), "{name}");
    }
}

#[tokio::test]
async fn harmless_oddities_are_ignored() {
    let lab = Lab::new().await;
    let (mut raw, mut far) = connected(&lab).await;
    raw.send(77, 0xff, 1, b"unknown").await;
    raw.send(PRIORITY, 0, 1, &[0; 5]).await;
    // Reserved bits set; padding of every size; a frame in pieces.
    raw.write(&[0, 0, 1, DATA, 0xf0 & !8, 0x80, 0, 0, 1, b'a']).await;
    for pad in [0usize, 1, 255] {
        let mut payload = vec![pad as u8, b'b'];
        payload.extend(vec![0; pad]);
        raw.send(DATA, 8, 1, &payload).await;
    }
    for byte in frame(DATA, 0, 1, b"cd") {
        raw.write(&[byte]).await;
    }
    raw.send(SETTINGS, 0, 0, &[0xff, 0xff, 0, 0, 0, 9]).await;
    let mut received = [0; 6];
    soon("bytes", far.read_exact(&mut received)).await.unwrap();
    assert_eq!(&received, b"abbbcd");
}

#[tokio::test]
async fn more_than_the_window_ends_the_tunnel() {
    let lab = Lab::new().await;
    let (raw, far) = connected(&lab).await;
    let (mut read, mut write) = tokio::io::split(raw.tls);
    tokio::spawn(async move {
        loop {
            if write.write_all(&frame(DATA, 0, 1, &[0; 16_384])).await.is_err() {
                return;
            }
        }
    });
    let mut received = Vec::new();
    let _ = soon("goaway", read.read_to_end(&mut received)).await;
    let words = String::from_utf8_lossy(&received).into_owned();
    assert!(words.contains("stream_window"), "the peer ignores flow control and is told so");
    drop(far);
}

#[tokio::test]
async fn hardening_B40_a_header_list_of_65_kib_ends_the_tunnel() {
    let lab = Lab::new().await;
    let mut raw = Raw::connect(&lab).await;
    let big = "x".repeat(63_000);
    let block = header_block(&[(":method", "CONNECT"), (":authority", &authority(&lab)), ("a", &big)]);
    raw.send(HEADERS, 4, 1, &block).await;
    assert_eq!(raw.status(1).await, 200);
    let block = [block, vec![0x82; 100]].concat();
    raw.send(HEADERS, 4, 3, &block).await;
    assert_eq!(raw.goaway().await, ENHANCE_YOUR_CALM);
}

#[tokio::test]
async fn hardening_B24_B25_what_is_not_http2_is_closed() {
    let config = AcceptorConfig { preface_timeout: Duration::from_millis(200), ..AcceptorConfig::default() };
    let mut lab = Lab::with(PoolConfig::default(), config).await;
    for (bytes, expect) in [
        (b"CONNECT 127.0.0.1:80 HTTP/1.1\r\nhost: x\r\n\r\n".as_slice(), ServeEnd::Protocol("bad_preface")),
        (b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", ServeEnd::Protocol("bad_preface")),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", ServeEnd::Lost),
        (b"PRI", ServeEnd::Lost),
        (b"", ServeEnd::Lost),
    ] {
        let mut raw = Raw::tls(&lab).await;
        raw.write(bytes).await;
        let start = Instant::now();
        let mut rest = Vec::new();
        let _ = soon("close", raw.tls.read_to_end(&mut rest)).await;
        assert!(start.elapsed() < Duration::from_secs(3));
        assert_eq!(soon("end", lab.ends.recv()).await, Some(expect), "{}", String::from_utf8_lossy(bytes));
    }
}

#[tokio::test]
async fn the_server_speaks_ztunnels_settings() {
    let lab = Lab::new().await;
    let mut raw = Raw::connect(&lab).await;
    let settings = raw.wait(SETTINGS).await;
    let values: Vec<_> = settings
        .payload
        .chunks(6)
        .map(|entry| (entry[1], u32::from_be_bytes(entry[2..].try_into().unwrap())))
        .collect();
    assert_eq!(values, [(3, 200), (4, 256 * 1024), (5, 1 << 20), (6, 64 * 1024)]);
    assert_eq!(raw.wait(WINDOW_UPDATE).await.payload, 16_711_681u32.to_be_bytes());
    raw.send(PING, 0, 0, b"12345678").await;
    loop {
        let ping = raw.wait(PING).await;
        if ping.flags == 1 {
            assert_eq!(ping.payload, b"12345678");
            break;
        }
    }
}

/// Padding is consumed on arrival, whatever else arrives with it.
#[tokio::test]
async fn padding_does_not_use_a_window_up() {
    let lab = Lab::new().await;
    let (mut raw, _far) = connected(&lab).await;
    raw.request(3, &[(":method", "CONNECT"), (":authority", &authority(&lab))]).await;
    let (mut far, _) = soon("app", lab.app.accept()).await.unwrap();
    assert_eq!(raw.status(3).await, 200);
    // Much more than the window of 256 KiB.
    let padding = [&[255u8][..], &[0; 255]].concat();
    let pair = [frame(DATA, 0, 3, b"x"), frame(DATA, 8, 1, &padding)].concat();
    let (mut read, mut write) = tokio::io::split(raw.tls);
    let reading = tokio::spawn(async move { tokio::io::copy(&mut read, &mut tokio::io::sink()).await });
    // Whole pairs in each record: padding is never the first thing that the other end sees.
    for _ in 0..80 {
        soon("written", write.write_all(&pair.repeat(50))).await.unwrap();
        write.flush().await.unwrap();
    }
    soon("data", far.read_exact(&mut [0; 4000])).await.unwrap();
    reading.abort();
}

/// Whoever never takes on our windows would be out of the limit that they are for (RFC 9113 6.5.3).
#[tokio::test]
async fn hardening_B47_settings_that_are_never_acknowledged_end_the_tunnel() {
    let timeout = Duration::from_secs(1);
    let config = AcceptorConfig { ping_interval: timeout / 4, ping_timeout: timeout, ..AcceptorConfig::default() };
    let mut lab = Lab::with(PoolConfig::default(), AcceptorConfig { preface_timeout: timeout, ..config }).await;
    let start = Instant::now();
    let mut raw = Raw::connect(&lab).await;
    // Alive in every other way.
    let goaway = soon("goaway", async {
        loop {
            let frame = raw.next().await.unwrap();
            match frame.kind {
                PING if frame.flags & 1 == 0 => raw.send(PING, 1, 0, &frame.payload).await,
                GOAWAY => return frame.payload,
                _ => {}
            }
        }
    })
    .await;
    assert_eq!(goaway[4..8], 4_u32.to_be_bytes());
    // Behind all that is queued at both ends of a slow link it may take longer than a peer may be silent.
    assert!(start.elapsed() > timeout * 4, "after {:?}", start.elapsed());
    assert_eq!(soon("end", lab.ends.recv()).await, Some(ServeEnd::Protocol("settings_not_acknowledged")));
}

/// A drip of bytes is a sign of life only if it leads somewhere.
#[tokio::test]
async fn hardening_B43_headers_that_never_end_are_given_up() {
    let timeout = Duration::from_millis(200);
    let config = AcceptorConfig { ping_interval: timeout / 2, ping_timeout: timeout, ..AcceptorConfig::default() };
    let config = AcceptorConfig { preface_timeout: timeout / 2, ..config };
    let mut lab = Lab::with(PoolConfig::default(), config).await;
    let block = header_block(&[(":method", "CONNECT"), (":authority", &authority(&lab))]);
    let whole = frame(CONTINUATION, 0, 1, &[0; 16_000]);
    for start in [frame(HEADERS, 0, 1, &block), vec![0, 0xff, 0xff, HEADERS, 4, 0, 0, 0, 1]] {
        let mut raw = Raw::connect(&lab).await;
        raw.send(SETTINGS, 1, 0, &[]).await;
        raw.write(&start).await;
        let whole = whole.clone();
        let drip = tokio::spawn(async move {
            for byte in whole {
                if raw.tls.write_all(&[byte]).await.is_err() {
                    return;
                }
                tokio::time::sleep(timeout / 20).await;
            }
        });
        assert_eq!(soon("end", lab.ends.recv()).await, Some(ServeEnd::Lost));
        drip.abort();
    }
}
