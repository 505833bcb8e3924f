//! Clients that do not read what they have asked for: what is kept for them, how long, and who else waits for it.
#![allow(clippy::unwrap_used, non_snake_case, reason = "tests carry the ids of the rows that they prove")]

mod support;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{Full, StreamBody};
use hyper::body::{Frame, Incoming};
use mesh_core::l7::cluster::{Policy, Pool, Speaks};
use mesh_core::l7::{Cluster, Clusters, Handling, Table};
use mesh_waypoint::Settings;
use support::frames::{
    DATA, END_HEADERS, END_STREAM, HEADERS, RST_STREAM, Raw, SETTINGS, WINDOW_UPDATE, block, frame, request,
};
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const VIP: &str = "10.96.0.10";
const ASK: &str = "10.96.0.10:80";
/// More than fits into whatever is between an endpoint and a client.
const LARGE: usize = 64 << 20;
const SHORT: Duration = Duration::from_millis(200);

/// An endpoint of large answers, with so many places.
async fn large(places: u32, timeout: Option<Duration>, settings: Settings) -> Waypoint {
    large_of(Pool { requests: places, connections: places, ..Pool::default() }, timeout, settings).await
}

async fn large_of(pool: Pool, timeout: Option<Duration>, settings: Settings) -> Waypoint {
    let large = Bytes::from(vec![b'x'; LARGE]);
    let app = server(move |asked: Request<Incoming>| {
        let large = match asked.uri().path() {
            "/small" => Bytes::from_static(b"small"),
            "/some" => large.slice(..LARGE / 8),
            _ => large.clone(),
        };
        async move { Response::new(Full::new(large)) }
    });
    let table = table("app", vec![rule(Handling { timeout, ..to("app") })]);
    let waypoint = Waypoint::with(&[Backend::new("app", VIP, &[app.await])], table, settings).await;
    let policy = Policy { pool, ..Policy::default() };
    waypoint
        .state
        .set_clusters(Arc::new(Clusters::new([Cluster { policy: Ok(policy), ..Cluster::closed(cluster("app"), "") }])));
    waypoint
}

/// Waits until so many requests have ended so.
async fn counted(waypoint: &Waypoint, flag: &str, count: u32) {
    let label = format!("response_flags=\"{flag}\"");
    let ended = || -> u32 {
        let shown = waypoint.scrape();
        let of = shown.lines().filter(|line| line.starts_with("istio_requests_total") && line.contains(&label));
        of.filter_map(|line| line.rsplit(' ').next()?.parse::<u32>().ok()).sum()
    };
    soon(flag, async {
        while ended() < count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// The fields of a request for that path.
fn asked_for(path: &str) -> Vec<(&[u8], &[u8])> {
    let fields = request("GET", &[]).into_iter();
    fields.map(|(name, value)| (name, if name == b":path" { path.as_bytes() } else { value })).collect()
}

/// A connection of HTTP/2 that takes nothing of any answer, and asks in these streams.
async fn takes_nothing(waypoint: &Waypoint, path: &str, streams: &[u32]) -> Raw {
    let mut raw = Raw::open(soon("stream", waypoint.stream(ASK)).await.unwrap()).await;
    raw.send(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])).await;
    for stream in streams.iter().copied() {
        raw.send(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(&asked_for(path)))).await;
    }
    raw
}

/// Whoever asks next has a place.
async fn has_place(waypoint: &Waypoint) {
    let asked = async { while waypoint.ask(ASK, get("/small")).await.status() != StatusCode::OK {} };
    soon("a place at the endpoint", asked).await;
}

#[tokio::test]
async fn features_VS_14_the_time_of_a_request_is_over_also_for_a_client_that_does_not_read() {
    let idle = Settings { stream_idle: SHORT, ..Settings::default() };
    for (timeout, settings, flag) in [(Some(SHORT), Settings::default(), "UT"), (None, idle, "SI")] {
        for path in ["/large", "/small"] {
            let waypoint = large(2, timeout, settings.clone()).await;
            let mut raw = takes_nothing(&waypoint, path, &[1, 3]).await;
            let mut open = BTreeSet::from([1, 3]);
            while !open.is_empty() {
                let (kind, _, of, _) = soon("a reset", raw.next()).await.unwrap();
                if kind == RST_STREAM {
                    open.remove(&of);
                }
            }
            counted(&waypoint, flag, 2).await;
            has_place(&waypoint).await;
        }
        let waypoint = large(2, timeout, settings).await;
        let mut streams = Vec::new();
        for _ in 0..2 {
            let mut stream = soon("stream", waypoint.stream(ASK)).await.unwrap();
            stream.write_all(b"GET /large HTTP/1.1\r\nhost: shop\r\n\r\n").await.unwrap();
            streams.push(stream);
        }
        counted(&waypoint, flag, 2).await;
        has_place(&waypoint).await;
        for mut stream in streams {
            let mut read = Vec::new();
            assert!(soon("end", stream.read_to_end(&mut read)).await.is_err(), "it is cut, and says so");
            assert!(read.len() < LARGE);
        }
    }
}

/// All of them are asked over one connection, which visitors share.
#[tokio::test]
async fn hardening_F34_who_does_not_read_holds_up_nobody_else_at_an_endpoint_of_http_2() {
    let pool = Pool { speaks: Speaks::Http2, ..Pool::default() };
    let waypoint = large_of(pool, None, Settings::default()).await;
    let streams: Vec<_> = (0..20).map(|number| 2 * number + 1).collect();
    let mut raw = takes_nothing(&waypoint, "/large", &streams).await;
    let mut open = BTreeSet::from_iter(streams);
    while !open.is_empty() {
        let (kind, _, of, _) = soon("a head", raw.next()).await.unwrap();
        if kind == HEADERS {
            open.remove(&of);
        }
    }
    for _ in 0..2 {
        let answer = soon("an answer", waypoint.ask(ASK, get("/some"))).await;
        assert_eq!((answer.status(), answer.body().len()), (StatusCode::OK, LARGE / 8));
    }
    assert_eq!(waypoint.engine.lanes()[0].pool.open(), 1, "they share it");
}

/// Each has less patience with clients than the whole takes.
#[tokio::test]
async fn whoever_reads_slowly_and_whoever_waits_for_the_endpoint_are_not_cut() {
    const ROUNDS: u32 = 30;
    const ROUND: Duration = Duration::from_millis(50);
    let settings = Settings { stream_idle: ROUND * ROUNDS / 2, ..Settings::default() };
    let (go, gone) = tokio::sync::watch::channel(false);
    let app = server(move |asked: Request<Incoming>| {
        let (gone, silent) = (gone.clone(), asked.uri().path() == "/silent");
        async move {
            let pieces = futures_util::stream::unfold(0, move |count| {
                let mut gone = gone.clone();
                async move {
                    if silent && count == 1 {
                        gone.wait_for(|go| *go).await.unwrap();
                    }
                    let frame = Frame::data(Bytes::from(vec![b'x'; 16 << 10]));
                    (count < if silent { 2 } else { 1024 }).then_some((Ok::<_, Infallible>(frame), count + 1))
                }
            });
            Response::new(StreamBody::new(pieces))
        }
    });
    let waypoint = Waypoint::with(&[Backend::new("app", VIP, &[app.await])], Table::default(), settings).await;
    let mut raw = Raw::open(soon("stream", waypoint.stream(ASK)).await.unwrap()).await;
    raw.send(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])).await;
    for (stream, path) in [(1, "/large"), (3, "/silent")] {
        let fields = asked_for(path);
        raw.send(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(&fields))).await;
    }
    let more = |stream, bytes: u32| frame(WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes());
    raw.send(&[more(0, 1 << 30), more(3, 1 << 20)].concat()).await;
    let mut heard = [0; 2];
    for round in 1..=ROUNDS {
        raw.send(&more(1, 64 << 10)).await;
        while heard[0] < usize::try_from(round << 16).unwrap() || heard[1] < 16 << 10 {
            let (kind, flags, of, payload) = soon("a frame", raw.next()).await.unwrap();
            assert!(kind != RST_STREAM && (kind != DATA || flags & END_STREAM == 0), "{of} after {heard:?}");
            if kind == DATA {
                heard[usize::from(of == 3)] += payload.len();
            }
        }
        tokio::time::sleep(ROUND).await;
    }
    go.send(true).unwrap();
    loop {
        let (kind, flags, of, _) = soon("a frame", raw.next()).await.unwrap();
        assert_ne!(kind, RST_STREAM);
        if (kind, of) == (DATA, 3) && flags & END_STREAM != 0 {
            return;
        }
    }
}
