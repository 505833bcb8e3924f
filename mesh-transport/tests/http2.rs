//! The HTTP/2 of a tunnel against a peer that writes frames by hand, and against the h2 crate, which is what ztunnel speaks with.
#![allow(clippy::unwrap_used, missing_docs, non_snake_case)]

mod support;

use std::time::{Duration, Instant};

use bytes::Bytes;
use mesh_transport::hbone::{AcceptorConfig, ConnectRequest, HboneError, PoolConfig, ServeEnd};
use rustls::version::TLS13;
use support::{Ca, Lab, client, soon, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const FRAME_SIZE_ERROR: u32 = 6;
const REFUSED_STREAM: u32 = 7;
const COMPRESSION_ERROR: u32 = 9;
const ENHANCE_YOUR_CALM: u32 = 11;

/// A client that writes frames by hand.
struct Raw {
    tls: TlsStream<TcpStream>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

fn header_block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    let string = |text: &str, block: &mut Vec<u8>| {
        if text.len() < 127 {
            block.push(text.len() as u8);
        } else {
            block.push(127);
            let mut rest = text.len() - 127;
            while rest >= 128 {
                block.push((rest & 127) as u8 | 128);
                rest >>= 7;
            }
            block.push(rest as u8);
        }
        block.extend_from_slice(text.as_bytes());
    };
    for (name, value) in fields {
        block.push(0);
        string(name, &mut block);
        string(value, &mut block);
    }
    block
}

impl Raw {
    /// TLS only.
    async fn tls(lab: &Lab) -> Self {
        let (chain, key) = lab.ca.sign(Ca::params("spiffe://cluster.local/ns/app/sa/client"));
        let tcp = TcpStream::connect(lab.tunnel_port).await.unwrap();
        tcp.set_nodelay(true).unwrap();
        Self { tls: client::connect(tcp, client::config(Some((&chain, &key)), &["h2"], &[&TLS13])).await.unwrap() }
    }

    /// TLS, preface and settings.
    async fn connect(lab: &Lab) -> Self {
        let mut raw = Self::tls(lab).await;
        let mut hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        hello.extend(frame(SETTINGS, 0, 0, &[]));
        raw.write(&hello).await;
        raw
    }

    async fn write(&mut self, bytes: &[u8]) {
        self.tls.write_all(bytes).await.unwrap();
        self.tls.flush().await.unwrap();
    }

    async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.write(&frame(kind, flags, stream, payload)).await;
    }

    async fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        soon("frame", self.tls.read_exact(&mut head)).await.ok()?;
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, l0, l1, l2]) as usize];
        soon("payload", self.tls.read_exact(&mut payload)).await.ok()?;
        Some(Frame { kind, flags, stream: u32::from_be_bytes([s0, s1, s2, s3]), payload })
    }

    /// The next frame of this kind.
    async fn wait(&mut self, kind: u8) -> Frame {
        loop {
            let frame = self.next().await.unwrap_or_else(|| panic!("closed before frame {kind}"));
            assert!(frame.kind != GOAWAY || kind == GOAWAY, "{frame:?} {}", String::from_utf8_lossy(&frame.payload));
            if frame.kind == kind {
                return frame;
            }
        }
    }

    async fn goaway(&mut self) -> u32 {
        let payload = self.wait(GOAWAY).await.payload;
        u32::from_be_bytes(payload[4..8].try_into().unwrap())
    }

    async fn request(&mut self, stream: u32, fields: &[(&str, &str)]) {
        self.send(HEADERS, 0x4, stream, &header_block(fields)).await;
    }

    /// The status of the next answer; 0 for a reset.
    async fn status(&mut self, stream: u32) -> u16 {
        loop {
            let frame = self.next().await.expect("an answer");
            match frame.kind {
                HEADERS if frame.stream == stream => {
                    return match frame.payload[0] {
                        0x88 => 200,
                        0x8c => 400,
                        // A literal :status.
                        _ => std::str::from_utf8(&frame.payload[2..5]).unwrap().parse().unwrap(),
                    };
                }
                RST_STREAM if frame.stream == stream => return 0,
                GOAWAY => panic!("{frame:?}"),
                _ => {}
            }
        }
    }
}

fn authority(lab: &Lab) -> String {
    lab.app.local_addr().unwrap().to_string()
}

async fn connected(lab: &Lab) -> (Raw, TcpStream) {
    let mut raw = Raw::connect(lab).await;
    raw.request(1, &[(":method", "CONNECT"), (":authority", &authority(lab))]).await;
    let (far, _) = soon("app", lab.app.accept()).await.unwrap();
    assert_eq!(raw.status(1).await, 200);
    (raw, far)
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

/// Frames that end the tunnel, with the code that says why.
#[tokio::test]
async fn hardening_B41_B42_B44_B45_broken_frames_end_the_tunnel() {
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

// ---- against the h2 crate

#[tokio::test]
async fn an_h2_client_works_with_our_server() {
    let lab = Lab::new().await;
    let raw = Raw::tls(&lab).await;
    let (mut send, connection) = h2::client::Builder::new()
        .initial_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
        .max_frame_size(1 << 20)
        .max_header_list_size(16 << 10)
        .enable_push(false)
        .handshake::<_, Bytes>(raw.tls)
        .await
        .unwrap();
    tokio::spawn(connection);
    for _ in 0..3 {
        let request = http::Request::builder()
            .method("CONNECT")
            .uri(authority(&lab))
            .header("baggage", "k8s.cluster.name=Kubernetes,k8s.namespace.name=app,k8s.deployment.name=client")
            .header("forwarded", "for=\"127.0.0.1:4321\";host=app.svc")
            .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00")
            .body(())
            .unwrap();
        let (response, mut body) = send.send_request(request, false).unwrap();
        let (mut far, _) = soon("app", lab.app.accept()).await.unwrap();
        let response = soon("answer", response).await.unwrap();
        assert_eq!(response.status(), 200);
        // Three megabytes back and forth.
        let echo = tokio::spawn(async move {
            let (mut read, mut write) = far.split();
            tokio::io::copy(&mut read, &mut write).await.unwrap();
            drop(far);
        });
        let sent: Vec<u8> = (0..3_000_000u32).map(|number| ((number * 7) >> 2) as u8).collect();
        let all = Bytes::from(sent.clone());
        let sending = tokio::spawn(async move {
            let mut rest = all;
            while !rest.is_empty() {
                body.reserve_capacity(rest.len());
                let room = std::future::poll_fn(|cx| body.poll_capacity(cx)).await.unwrap().unwrap();
                body.send_data(rest.split_to(room.min(rest.len())), false).unwrap();
            }
            body.send_data(Bytes::new(), true).unwrap();
        });
        let mut incoming = response.into_body();
        let mut received = Vec::new();
        while let Some(data) = soon("data", incoming.data()).await {
            let data = data.unwrap();
            incoming.flow_control().release_capacity(data.len()).unwrap();
            received.extend_from_slice(&data);
        }
        assert!(received == sent);
        sending.await.unwrap();
        echo.await.unwrap();
    }
    // A refusal: its status arrives although the stream is reset behind it.
    let request = http::Request::builder().method("CONNECT").uri("127.0.0.1:1").body(()).unwrap();
    let (response, _body) = send.send_request(request, false).unwrap();
    assert_eq!(soon("answer", response).await.unwrap().status(), 503);
}

#[tokio::test]
async fn our_client_works_with_an_h2_server() {
    let lab = Lab::new().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let config = lab.server.server_config();
    let server = tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        let tls = tokio_rustls::TlsAcceptor::from(config).accept(tcp).await.unwrap();
        let mut connection = h2::server::Builder::new()
            .initial_window_size(4 << 20)
            .initial_connection_window_size(16 << 20)
            .max_frame_size(1 << 20)
            .max_header_list_size(64 << 10)
            .max_concurrent_streams(200)
            .handshake::<_, Bytes>(tls)
            .await
            .unwrap();
        let mut seen = Vec::new();
        while let Some(request) = connection.accept().await {
            let Ok((request, mut respond)) = request else { break };
            let (parts, mut body) = request.into_parts();
            seen.push((parts.method.to_string(), parts.uri.to_string(), parts.headers.get("forwarded").cloned()));
            match parts.uri.port_u16().unwrap() {
                81 => {
                    let refusal = http::Response::builder().status(401).body(()).unwrap();
                    respond.send_response(refusal, true).unwrap();
                }
                82 => respond.send_reset(h2::Reason::REFUSED_STREAM),
                _ => {
                    let answer = http::Response::builder().header("baggage", "service.name=served").body(()).unwrap();
                    let mut send = respond.send_response(answer, false).unwrap();
                    tokio::spawn(async move {
                        while let Some(Ok(data)) = body.data().await {
                            body.flow_control().release_capacity(data.len()).unwrap();
                            send.reserve_capacity(data.len());
                            send.send_data(data, false).unwrap();
                        }
                        send.send_data(Bytes::new(), true).unwrap();
                    });
                }
            }
        }
        seen
    });
    let mut key = lab.key();
    key.destination = address;
    let dial = move || TcpStream::connect(address);
    let mut request = ConnectRequest::to("10.0.0.9:80".parse().unwrap());
    request.forwarded =
        Some(mesh_transport::hbone::Forwarded { client: Some("10.0.0.1:99".parse().unwrap()), host: None });
    let (stream, response) = soon("answer", lab.pool.connect(&key, lab.client.clone(), dial, request)).await.unwrap();
    assert_eq!(response.baggage.service.as_deref(), Some("served"));
    let sent: Vec<u8> = (0..5_000_000u32).map(|number| ((number * 13) >> 3) as u8).collect();
    let (mut read, mut write) = tokio::io::split(stream);
    let (_, received) = tokio::join!(
        async {
            write.write_all(&sent).await.unwrap();
            write.shutdown().await.unwrap();
        },
        async {
            let mut received = Vec::new();
            soon("echo", read.read_to_end(&mut received)).await.unwrap();
            received
        }
    );
    assert!(received == sent);
    drop((read, write));
    let request = ConnectRequest::to("10.0.0.9:81".parse().unwrap());
    let error = soon("refusal", lab.pool.connect(&key, lab.client.clone(), dial, request)).await.unwrap_err();
    assert!(matches!(error, HboneError::Refused(http::StatusCode::UNAUTHORIZED)), "{error}");
    assert_eq!(error.response_flag(), "DENY");
    assert!(!error.before_first_byte());
    until("streams end", || lab.pool.stats().streams == 0).await;
    lab.pool.drain();
    until("pool empties", || lab.pool.stats().keys == 0).await;
    let seen = soon("server", server).await.unwrap();
    assert_eq!(seen[0].0, "CONNECT");
    assert_eq!(seen[0].1, "10.0.0.9:80");
    assert_eq!(seen[0].2.as_ref().unwrap(), "for=\"10.0.0.1:99\"");
}
