//! Floods of HTTP/2: each ends its connection or is read no further, memory stays where it was, and others are served meanwhile. One test in a process of its
//! own, for it measures the process.
#![allow(clippy::unwrap_used, non_snake_case, reason = "tests carry the ids of the rows that they prove")]

mod support;

use std::time::{Duration, Instant};

use http::StatusCode;
use mesh_core::l7::Table;
use mesh_core::service::AppProtocol;
use mesh_waypoint::refused::Reason;
use support::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, End, HEADERS, PING, PRIORITY, RST_STREAM, Raw, SETTINGS,
    WINDOW_UPDATE, block, frame, request,
};
use support::*;

const VIP: &str = "10.96.0.10";
const ASK: &str = "10.96.0.10:80";
/// What is sent at most of each flood.
const BYTES: usize = 8 << 20;
/// What the process may grow by in each.
const GROWTH: usize = 16 << 20;

/// Memory of this process, in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap();
    status.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// One attack: what opens it, and what is repeated, by the number of the round.
struct Flood {
    name: &'static str,
    opens: Vec<u8>,
    round: fn(u32) -> Vec<u8>,
    /// It has to end the connection.
    ends: bool,
}

fn head(stream: u32, flags: u8, method: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | flags, stream, &block(&request(method, &[])))
}

fn floods() -> Vec<Flood> {
    let plain = |name, round, ends| Flood { name, opens: Vec::new(), round, ends };
    let posted = |name, round, ends| Flood { name, opens: head(1, 0, "POST"), round, ends };
    vec![
        plain(
            "CVE-2023-44487 rapid reset",
            |n| [head(2 * n + 1, END_STREAM, "GET"), frame(RST_STREAM, 0, 2 * n + 1, &[0, 0, 0, 8])].concat(),
            true,
        ),
        plain(
            "CVE-2026-26311 reset and data",
            |n| {
                let stream = 2 * n + 1;
                [head(stream, 0, "POST"), frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]), frame(DATA, 0, stream, b"late")]
                    .concat()
            },
            true,
        ),
        plain(
            "CVE-2025-8671 streams that we reset: a window of 0",
            |n| [head(2 * n + 1, 0, "POST"), frame(WINDOW_UPDATE, 0, 2 * n + 1, &[0; 4])].concat(),
            true,
        ),
        plain(
            "CVE-2025-8671 streams that we reset: data after the end",
            |n| [head(2 * n + 1, END_STREAM, "GET"), frame(DATA, 0, 2 * n + 1, b"late")].concat(),
            true,
        ),
        plain(
            "CVE-2025-8671 streams that we reset: malformed heads",
            |n| {
                frame(
                    HEADERS,
                    END_STREAM | END_HEADERS,
                    2 * n + 1,
                    &block(&request("GET", &[(b"connection", b"close")])),
                )
            },
            true,
        ),
        Flood {
            name: "CVE-2024-27316 endless CONTINUATION",
            opens: frame(HEADERS, END_STREAM, 1, &block(&request("GET", &[]))),
            round: |_| frame(CONTINUATION, 0, 1, &block(&[(b"a", &[b'x'; 8000])])),
            ends: true,
        },
        Flood {
            name: "endless CONTINUATION without bytes",
            opens: frame(HEADERS, END_STREAM, 1, &block(&request("GET", &[]))),
            round: |_| frame(CONTINUATION, 0, 1, &[]).repeat(100),
            ends: true,
        },
        posted("RUSTSEC-2026-0258 empty DATA", |_| frame(DATA, 0, 1, &[]).repeat(100), true),
        posted("DATA that is all padding", |_| frame(DATA, 8, 1, &[200; 201]).repeat(10), true),
        plain("CVE-2019-9515 SETTINGS", |_| frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0]).repeat(100), true),
        plain(
            "CVE-2023-33953 sizes of the table",
            |n| frame(SETTINGS, 0, 0, &[0, 1, 0, 0, 16, n as u8]).repeat(100),
            true,
        ),
        plain("CVE-2019-9512 PING", |n| frame(PING, 0, 0, &u64::from(n).to_be_bytes()).repeat(100), true),
        plain("B172 PRIORITY", |n| frame(PRIORITY, 0, 2 * n + 1, &[0x80, 0, 0, 1, 255]).repeat(100), true),
        plain(
            "B172 PRIORITY on itself",
            |n| frame(PRIORITY, 0, 2 * n + 1, &[(2 * n + 1).to_be_bytes().to_vec(), vec![0]].concat()),
            true,
        ),
        plain("RST_STREAM for what never was", |n| frame(RST_STREAM, 0, 2 * n + 1, &[0, 0, 0, 8]), true),
        plain("unknown frames", |_| frame(0xbe, 0xff, 0, &[0; 1000]).repeat(10), true),
        posted("WINDOW_UPDATE", |_| frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]).repeat(100), true),
        plain("streams that are never ended", |n| head(2 * n + 1, 0, "POST"), true),
    ]
}

/// Sends a flood until the connection ends, nothing is read any more, or all is sent.
async fn attack(waypoint: &Waypoint, flood: &Flood) -> End {
    let mut raw = Raw::open(soon("stream", waypoint.stream(ASK)).await.unwrap()).await;
    let _ = raw.send(&flood.opens).await;
    let (mut sent, mut round) = (0, 0);
    while sent < BYTES && round < 100_000 {
        let mut bytes = Vec::new();
        // Many in one piece, as an attacker would.
        while bytes.len() < 16 * 1024 {
            bytes.extend((flood.round)(round));
            round += 1;
        }
        sent += bytes.len();
        match tokio::time::timeout(Duration::from_secs(2), raw.send_and_hear(&bytes)).await {
            Ok(true) => {}
            Ok(false) | Err(_) => break,
        }
    }
    raw.end(u32::MAX, Duration::from_secs(2)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hardening_B171_floods_end_and_cost_nothing() {
    let app = echo("app").await;
    let backend = Backend::new("app", VIP, &[app]).speaking(AppProtocol::Http11);
    let waypoint = Waypoint::start(&[backend], Table::default()).await;
    // What is made once is made before.
    for _ in 0..3 {
        assert_eq!(waypoint.ask(ASK, get("/")).await.status(), StatusCode::OK);
    }
    let mut ended = 0;
    for flood in floods() {
        let before = resident();
        let began = Instant::now();
        let other = async {
            let mut slowest = Duration::ZERO;
            for _ in 0..10 {
                let began = Instant::now();
                assert_eq!(waypoint.ask(ASK, get("/other")).await.status(), StatusCode::OK, "{}", flood.name);
                slowest = slowest.max(began.elapsed());
            }
            slowest
        };
        let (end, slowest) = tokio::join!(attack(&waypoint, &flood), other);
        let grown = resident().saturating_sub(before);
        println!(
            "{}: {end:?} after {:?}, {} KiB more, others waited {slowest:?}",
            flood.name,
            began.elapsed(),
            grown >> 10
        );
        assert!(grown < GROWTH, "{}: {grown} bytes more", flood.name);
        assert!(slowest < Duration::from_secs(5), "{}: others waited {slowest:?}", flood.name);
        if flood.ends {
            assert!(matches!(end, End::GoAway(1..)), "{}: {end:?}", flood.name);
            ended += 1;
            waypoint.refuses(ended, &[Reason::Http2, Reason::Http2Flood]).await;
        }
    }
    // None of the requests that were given up had a connection to the endpoint made for it that is still there.
    soon("connections", async {
        while waypoint.engine.lanes()[0].pool.open() > 110 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}
