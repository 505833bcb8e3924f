//! What happens to bytes and to the ends of connections on the way through two agents.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::mesh::*;

async fn opened(pair: &Pair, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let app = pair.client.connect(pair.service_address()).await;
    let (served, _) = soon(listener.accept()).await.unwrap();
    (app, served)
}

#[tokio::test(flavor = "multi_thread")]
async fn hardening_F36_each_direction_ends_by_itself() {
    let pair = Pair::start().await;
    let listener = pair.server.listen(APP);
    for (request, answer) in [("request", "answer"), ("", "answer"), ("request", ""), ("", "")] {
        // The client ends first, the server answers after it has read everything.
        let (mut app, mut served) = opened(&pair, &listener).await;
        app.write_all(request.as_bytes()).await.unwrap();
        app.shutdown().await.unwrap();
        let mut got = String::new();
        soon(served.read_to_string(&mut got)).await.unwrap();
        assert_eq!(got, request);
        served.write_all(answer.as_bytes()).await.unwrap();
        drop(served);
        let mut got = String::new();
        soon(app.read_to_string(&mut got)).await.unwrap();
        assert_eq!(got, answer);

        // The server ends first and still reads.
        let (mut app, mut served) = opened(&pair, &listener).await;
        served.write_all(answer.as_bytes()).await.unwrap();
        served.shutdown().await.unwrap();
        let mut got = String::new();
        soon(app.read_to_string(&mut got)).await.unwrap();
        assert_eq!(got, answer);
        app.write_all(request.as_bytes()).await.unwrap();
        drop(app);
        let mut got = String::new();
        soon(served.read_to_string(&mut got)).await.unwrap();
        assert_eq!(got, request);
    }
    eventually("all are closed", || pair.client.live() + pair.server.live() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hardening_F37_a_reset_stays_a_reset_in_both_directions() {
    let pair = Pair::start().await;
    let listener = pair.server.listen(APP);
    for server_resets in [true, false] {
        let (mut app, mut served) = opened(&pair, &listener).await;
        exchange_between(&mut app, &mut served).await;
        let (aborting, mut watching) = if server_resets { (served, app) } else { (app, served) };
        mesh_transport::socket::reset(aborting);
        expect_reset(&mut watching).await;
    }
    eventually("all are closed", || pair.client.live() + pair.server.live() == 0).await;
}

async fn exchange_between(app: &mut TcpStream, served: &mut TcpStream) {
    app.write_all(b"there").await.unwrap();
    expect(served, "there").await;
    served.write_all(b"and back").await.unwrap();
    expect(app, "and back").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hardening_B47_F34_a_reader_that_stops_holds_up_only_its_own_stream() {
    let pair = Pair::start().await;
    let listener = pair.server.listen(APP);
    let (mut stalled, _unread) = opened(&pair, &listener).await;
    // Written until nothing moves any more: what lies between the two apps is bounded.
    let chunk = vec![7_u8; 64 * 1024];
    let mut written = 0;
    while let Ok(Ok(n)) = tokio::time::timeout(Duration::from_millis(500), stalled.write(&chunk)).await {
        written += n;
        assert!(written < 64 << 20, "no end to the buffers");
    }
    // A sibling in the same tunnel still works.
    let (mut app, mut served) = opened(&pair, &listener).await;
    for _ in 0..100 {
        exchange_between(&mut app, &mut served).await;
    }
    assert_eq!(pair.near.shared.pool.stats().tunnels, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn hardening_F38_a_server_may_speak_first_or_nobody_at_all() {
    let pair = Pair::start().await;
    let listener = pair.server.listen(APP);
    let (mut app, mut served) = opened(&pair, &listener).await;
    served.write_all(b"220 ready").await.unwrap();
    expect(&mut app, "220 ready").await;
    // Opened and closed without a byte.
    let (app, mut served) = opened(&pair, &listener).await;
    drop(app);
    assert_eq!(soon(served.read(&mut [0; 1])).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_bytes_arrive_in_order() {
    let pair = Pair::start().await;
    pair.server.echo(APP, "");
    let app = pair.client.connect(pair.service_address()).await;
    let (mut read, mut write) = app.into_split();
    const TOTAL: usize = 16 << 20;
    let byte = |at: usize| (at * 31 / 7) as u8;
    let writing = tokio::spawn(async move {
        let all: Vec<u8> = (0..TOTAL).map(byte).collect();
        write.write_all(&all).await.unwrap();
        write.shutdown().await.unwrap();
    });
    let mut back = Vec::with_capacity(TOTAL);
    tokio::time::timeout(Duration::from_secs(60), read.read_to_end(&mut back)).await.unwrap().unwrap();
    writing.await.unwrap();
    assert_eq!(back.len(), TOTAL);
    assert!(back.iter().enumerate().all(|(at, got)| *got == byte(at)));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_connections_share_tunnels() {
    let pair = std::sync::Arc::new(Pair::start().await);
    pair.server.echo(APP, "");
    let tasks: Vec<_> = (0..150)
        .map(|n| {
            let pair = pair.clone();
            tokio::spawn(async move {
                let mut app = pair.client.connect(pair.service_address()).await;
                exchange(&mut app, &format!("number {n}")).await;
                app
            })
        })
        .collect();
    let mut apps = Vec::new();
    for task in tasks {
        apps.push(task.await.unwrap());
    }
    assert_eq!(pair.client.live(), 150);
    let tunnels = pair.near.shared.pool.stats().tunnels;
    assert!(tunnels <= 16, "{tunnels} tunnels for 150 connections");
    drop(apps);
    eventually("all are closed", || pair.client.live() + pair.server.live() == 0).await;
}
