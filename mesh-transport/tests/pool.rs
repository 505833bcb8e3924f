//! The pool: one dial for many, tunnels of a key for that key alone, growth, purge, idleness, dead peers, stalled readers.
#![allow(clippy::unwrap_used, missing_docs, non_snake_case)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use mesh_transport::hbone::{AcceptorConfig, ConnectRequest, HboneError, PoolConfig, PoolStats, Stage, TunnelKey};
use support::raw::Raw;
use support::{Ca, Lab, identity, soon, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[tokio::test]
async fn a_thousand_waiters_share_one_black_hole() {
    let config = PoolConfig { dial_timeout: Duration::from_secs(2), ..PoolConfig::default() };
    let lab = Lab::with(config, AcceptorConfig::default()).await;
    let dials = Arc::new(AtomicUsize::new(0));
    let start = Instant::now();
    let mut waiters = tokio::task::JoinSet::new();
    for _ in 0..1000 {
        let (pool, key, certificate, dials) = (lab.pool.clone(), lab.key(), lab.client.clone(), dials.clone());
        waiters.spawn(async move {
            let dial = move || {
                dials.fetch_add(1, Relaxed);
                std::future::pending()
            };
            pool.connect(&key, certificate, dial, ConnectRequest::to("10.0.0.1:80".parse().unwrap()))
                .await
                .map(drop)
                .unwrap_err()
        });
    }
    while let Some(error) = waiters.join_next().await {
        let error = error.unwrap();
        assert!(matches!(error, HboneError::DialTimeout), "{error}");
        assert_eq!((error.stage(), error.before_first_byte(), error.response_flag()), (Stage::Dial, true, "CONNECT"));
    }
    // Ten timeouts one after the other would be 20 s.
    assert!(start.elapsed() < Duration::from_secs(10), "one timeout, not a convoy: {:?}", start.elapsed());
    // A hundred streams fit a tunnel: ten dials serve a thousand.
    assert_eq!(dials.load(Relaxed), 10);
    assert_eq!(lab.pool.stats(), PoolStats::default());
}

/// Whoever refuses for a limit says so, in front of the hello as well as behind it: it is not taken for broken.
#[tokio::test]
async fn hardening_F35_a_dial_that_a_limit_refuses_says_so() {
    let lab = Lab::with(PoolConfig::default(), AcceptorConfig { tunnels_per_source: 0, ..Default::default() }).await;
    for _ in 0..20 {
        let port = lab.tunnel_port;
        let request = ConnectRequest::to("10.0.0.1:80".parse().unwrap());
        let dial = move || TcpStream::connect(port);
        let error = soon("answer", lab.pool.connect(&lab.key(), lab.client.clone(), dial, request)).await.unwrap_err();
        assert!(matches!(error, HboneError::PeerBusy), "{error}");
        assert!(error.before_first_byte());
    }
}

#[tokio::test]
async fn waiters_share_one_dial_and_survive_each_other() {
    let lab = Lab::new().await;
    let dials = Arc::new(AtomicUsize::new(0));
    let target = lab.app.local_addr().unwrap();
    let connect = || {
        let (pool, key, certificate, dials, port) =
            (lab.pool.clone(), lab.key(), lab.client.clone(), dials.clone(), lab.tunnel_port);
        tokio::spawn(async move {
            let dial = move || {
                dials.fetch_add(1, Relaxed);
                async move {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    TcpStream::connect(port).await
                }
            };
            pool.connect(&key, certificate, dial, ConnectRequest::to(target)).await.unwrap()
        })
    };
    let first = connect();
    tokio::task::yield_now().await;
    let rest: Vec<_> = (0..49).map(|_| connect()).collect();
    tokio::task::yield_now().await;
    // Whoever started the dial goes away; the others get their tunnel.
    first.abort();
    let mut streams = Vec::new();
    for waiter in rest {
        streams.push(soon("stream", waiter).await.unwrap());
    }
    assert_eq!(dials.load(Relaxed), 1);
    assert_eq!((lab.pool.stats().tunnels, lab.pool.stats().streams), (1, 49));
    drop(streams);
    until("streams end", || lab.pool.stats().streams == 0).await;
}

#[tokio::test]
async fn full_tunnels_get_company_and_return_to_use() {
    let config = PoolConfig { max_streams: 4, ..PoolConfig::default() };
    let lab = Lab::with(config, AcceptorConfig::default()).await;
    let mut conns = Vec::new();
    for _ in 0..10 {
        conns.push(lab.through().await);
    }
    assert_eq!((lab.pool.stats().tunnels, lab.pool.stats().streams), (3, 10));
    conns.drain(..8);
    until("streams end", || lab.pool.stats().streams == 2).await;
    for _ in 0..8 {
        conns.push(lab.through().await);
    }
    assert_eq!((lab.pool.stats().tunnels, lab.pool.stats().streams), (3, 10), "no new tunnel");
}

#[tokio::test]
async fn the_peers_limit_counts_too() {
    let config = AcceptorConfig { max_streams: 3, ..AcceptorConfig::default() };
    let lab = Lab::with(PoolConfig::default(), config).await;
    let mut conns = Vec::new();
    for _ in 0..9 {
        conns.push(lab.through().await);
    }
    assert_eq!((lab.pool.stats().tunnels, lab.pool.stats().streams), (3, 9));
}

#[tokio::test]
async fn a_tunnel_serves_its_own_key_only() {
    let lab = Lab::new().await;
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = app.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok(accepted) = app.accept().await {
            drop(tokio::spawn(async move { accepted.0.into_std() }))
        }
    });
    let other = identity("spiffe://cluster.local/ns/app/sa/other");
    let base = lab.key();
    let keys = [
        base.clone(),
        TunnelKey { source: other.clone(), ..base.clone() },
        TunnelKey { source_uid: "client-2".into(), ..base.clone() },
        TunnelKey { source_ip: [127, 0, 0, 2].into(), ..base.clone() },
        TunnelKey { destination: "127.0.0.1:9".parse().unwrap(), ..base.clone() },
        TunnelKey { destination_uid: "server-2".into(), ..base.clone() },
        TunnelKey { destination_generation: 2, ..base.clone() },
        TunnelKey { expected: [lab.server.identity.clone(), other].into(), ..base.clone() },
        TunnelKey { lane: 1, ..base.clone() },
    ];
    // Every key dials once, in whatever order connections come.
    let dials: Vec<_> = keys.iter().map(|_| Arc::new(AtomicUsize::new(0))).collect();
    let mut state = 12345u32;
    let mut held = Vec::new();
    for _ in 0..200 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let index = (state >> 16) as usize % keys.len();
        let (counter, port) = (dials[index].clone(), lab.tunnel_port);
        let dial = move || {
            counter.fetch_add(1, Relaxed);
            TcpStream::connect(port)
        };
        let (stream, _) =
            soon("stream", lab.pool.connect(&keys[index], lab.client.clone(), dial, ConnectRequest::to(target)))
                .await
                .unwrap();
        if state & 0x100 == 0 {
            held.push(stream);
        }
    }
    assert_eq!(dials.iter().map(|dials| dials.load(Relaxed)).collect::<Vec<_>>(), [1; 9]);
    assert_eq!(lab.pool.stats().keys, 9);
    drop(held);
    // Purges take exactly what they name, streams included.
    let former = |key: &TunnelKey| key.destination_uid == "server-1" && key.destination_generation < 2;
    assert_eq!(lab.pool.purge(former), 7);
    assert_eq!(lab.pool.purge(|key| key.destination_uid == "server-2"), 1);
    assert_eq!(lab.pool.stats().keys, 1);
    assert_eq!(lab.pool.purge_source("client-2"), 0);
    assert_eq!(lab.pool.purge_source("client-1"), 1);
    assert_eq!(lab.pool.stats(), PoolStats::default());
}

#[tokio::test]
async fn a_purge_cuts_streams_and_a_dial_under_way() {
    let lab = Lab::new().await;
    let (mut near, mut far, _copy) = lab.through().await;
    assert_eq!(lab.pool.purge_source("client-1"), 1);
    for end in [&mut near, &mut far] {
        assert_eq!(soon("reset", end.read_u8()).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    }
    // A dial that is purged must not put its tunnel into the pool.
    let (go, gone) = tokio::sync::oneshot::channel::<()>();
    let (pool, key, certificate, port) = (lab.pool.clone(), lab.key(), lab.client.clone(), lab.tunnel_port);
    let waiter = tokio::spawn(async move {
        let dial = move || async move {
            gone.await.unwrap();
            TcpStream::connect(port).await
        };
        pool.connect(&key, certificate, dial, ConnectRequest::to("127.0.0.1:1".parse().unwrap())).await
    });
    until("dial", || lab.pool.stats().dialing == 1).await;
    lab.pool.purge(|key| key.destination_uid == "server-1");
    go.send(()).unwrap();
    assert!(soon("end", waiter).await.unwrap().is_err());
    assert_eq!(lab.pool.stats(), PoolStats::default());
}

#[tokio::test]
async fn idle_tunnels_end_and_their_entries_go() {
    let config = PoolConfig {
        idle_timeout: Duration::from_millis(100),
        preface_timeout: Duration::from_millis(1000),
        ping_interval: Duration::from_millis(50),
        ..PoolConfig::default()
    };
    let mut lab = Lab::with(config, AcceptorConfig::default()).await;
    let (near, far, copy) = lab.through().await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(lab.pool.stats().tunnels, 1, "a tunnel with a stream is not idle");
    drop((near, far));
    soon("end", copy).await.unwrap();
    until("tunnel ends", || lab.pool.stats() == PoolStats::default()).await;
    assert_eq!(soon("server", lab.ends.recv()).await, Some(mesh_transport::hbone::ServeEnd::Closed));
}

#[tokio::test]
async fn a_draining_peer_is_left_for_a_new_tunnel() {
    let lab = Lab::new().await;
    let (mut near, mut far, _copy) = lab.through().await;
    lab.drain.cancel();
    // The old stream goes on; new ones need another tunnel, which this peer, draining, ends at once.
    near.write_all(b"still").await.unwrap();
    let mut still = [0; 5];
    soon("still", far.read_exact(&mut still)).await.unwrap();
    drop((near, far));
    until("tunnel ends", || lab.pool.stats() == PoolStats::default()).await;
}

#[tokio::test]
async fn hardening_F39_a_dead_peer_is_noticed_and_a_silent_application_is_not() {
    let config = PoolConfig {
        ping_interval: Duration::from_millis(100),
        ping_timeout: Duration::from_millis(200),
        preface_timeout: Duration::from_millis(200),
        request_timeout: Duration::from_secs(60),
        ..PoolConfig::default()
    };
    let lab = Lab::with(config, AcceptorConfig::default()).await;
    // The way to the peer can be cut without a word.
    let relay = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = relay.local_addr().unwrap();
    let port = lab.tunnel_port;
    let relaying = tokio::spawn(async move {
        let (mut a, _) = relay.accept().await.unwrap();
        let mut b = TcpStream::connect(port).await.unwrap();
        let (cut, mut when) = tokio::sync::mpsc::channel::<()>(1);
        std::mem::forget(cut);
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut a, &mut b) => {}
            _ = when.recv() => {}
        }
        (a, b)
    });
    let target = lab.app.local_addr().unwrap();
    let (mut stream, _) = lab
        .pool
        .connect(&lab.key(), lab.client.clone(), move || TcpStream::connect(address), ConnectRequest::to(target))
        .await
        .unwrap();
    let (_far, _) = lab.app.accept().await.unwrap();
    // Ten intervals of silence harm nothing.
    tokio::time::sleep(Duration::from_millis(1000)).await;
    assert_eq!(lab.pool.stats().streams, 1);
    relaying.abort();
    // The abort closes the relay's sockets, so this peer is gone rather than silent: a reset in either case.
    let start = Instant::now();
    assert!(soon("reset", stream.read_u8()).await.is_err());
    assert!(start.elapsed() < Duration::from_secs(3));
    until("pool forgets", || lab.pool.stats() == PoolStats::default()).await;
}

#[tokio::test]
async fn hardening_F39_a_black_hole_is_noticed_by_ping() {
    let config = PoolConfig {
        ping_interval: Duration::from_millis(50),
        ping_timeout: Duration::from_millis(150),
        preface_timeout: Duration::from_millis(300),
        ..PoolConfig::default()
    };
    let lab = Lab::with(config, AcceptorConfig::default()).await;
    let relay = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = relay.local_addr().unwrap();
    let port = lab.tunnel_port;
    let (cut, when) = tokio::sync::oneshot::channel::<()>();
    tokio::spawn(async move {
        let (mut a, _) = relay.accept().await.unwrap();
        let mut b = TcpStream::connect(port).await.unwrap();
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut a, &mut b) => {}
            _ = when => {}
        }
        // From here on nothing moves, and nothing is closed.
        std::future::pending::<()>().await;
        drop((a, b));
    });
    let target = lab.app.local_addr().unwrap();
    let (mut stream, _) = lab
        .pool
        .connect(&lab.key(), lab.client.clone(), move || TcpStream::connect(address), ConnectRequest::to(target))
        .await
        .unwrap();
    let (_far, _) = lab.app.accept().await.unwrap();
    cut.send(()).unwrap();
    let start = Instant::now();
    assert_eq!(soon("reset", stream.read_u8()).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hardening_F34_stalled_readers_do_not_stall_their_neighbours() {
    let lab = Lab::new().await;
    // All streams share few tunnels; a hundred of them are filled and never read.
    let mut stalled = Vec::new();
    for _ in 0..100 {
        let (near, far, copy) = lab.through().await;
        stalled.push((near, far, copy));
    }
    let blob = vec![7; 1 << 20];
    let mut filled = 0;
    for (near, _, _) in &mut stalled {
        while let Ok(count) = tokio::time::timeout(Duration::from_millis(30), near.write(&blob)).await {
            filled += count.unwrap();
        }
    }
    assert!(filled > 100 * 256 * 1024);
    let limit = PoolConfig::default().max_streams as usize;
    let (mut near, mut far, copy) = lab.through().await;
    assert_eq!(lab.pool.stats().tunnels, 1 + 100 / limit);
    // Make room beside the stalled ones in the first tunnel, so that the neighbours really share it.
    let (first, ..) = stalled.pop().unwrap();
    drop(first);
    until("room", || lab.pool.stats().streams == limit).await;
    let (mut near2, mut far2, _copy2) = lab.through().await;
    for (near, far) in [(&mut near, &mut far), (&mut near2, &mut far2)] {
        let total = 20_000_000;
        let transfer = async {
            tokio::join!(
                async {
                    let mut left = total;
                    while left > 0 {
                        let count = left.min(blob.len());
                        near.write_all(&blob[..count]).await.unwrap();
                        left -= count;
                    }
                },
                async {
                    let mut buffer = vec![0; 1 << 18];
                    let mut read = 0;
                    while read < total {
                        read += far.read(&mut buffer).await.unwrap();
                    }
                }
            )
        };
        soon("neighbour", transfer).await;
        let start = Instant::now();
        for _ in 0..20 {
            near.write_all(b"ping").await.unwrap();
            far.read_exact(&mut [0; 4]).await.unwrap();
        }
        assert!(start.elapsed() < Duration::from_secs(2));
    }
    drop((near, far));
    soon("end", copy).await.unwrap();
    // Those who start reading again get everything.
    let (near, mut far, _copy) = stalled.pop().unwrap();
    drop(near);
    let mut rest = Vec::new();
    soon("rest", far.read_to_end(&mut rest)).await.unwrap();
    assert!(rest.iter().all(|byte| *byte == 7));
    assert!(rest.len() > 256 * 1024, "{} bytes, {filled} filled", rest.len());
}

#[tokio::test]
async fn hardening_F41_a_renewed_certificate_is_used_for_what_comes_next() {
    let mut lab = Lab::new().await;
    let (mut near, mut far, copy) = lab.through().await;
    lab.client = lab.ca.issue_with(&lab.client.identity, Ca::params(&lab.client.identity.to_string()), 2);
    let next = [lab.through().await, lab.through().await];
    assert_eq!((lab.pool.stats().tunnels, lab.pool.stats().streams), (2, 3), "one more tunnel");
    near.write_all(b"still").await.unwrap();
    soon("still", far.read_exact(&mut [0; 5])).await.unwrap();
    drop((near, far));
    soon("end", copy).await.unwrap();
    until("the former tunnel ends", || lab.pool.stats().tunnels == 1).await;
    drop(next);
}

/// The identity that a tunnel proved is proven for as long as the certificate says.
#[tokio::test]
async fn hardening_F41_no_stream_is_opened_to_a_peer_whose_certificate_has_ended() {
    let ca = Ca::new();
    let id = identity("spiffe://cluster.local/ns/app/sa/server");
    let server = ca.issue_with(&id, Ca::brief_params(&id.to_string()), 1);
    let lab = Lab::of(ca, server, PoolConfig::default(), AcceptorConfig::default()).await;
    let (mut near, mut far, _copy) = lab.through().await;
    let error = soon("the end of validity", async {
        loop {
            if let Err(error) = lab.connect().await {
                return error;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    assert_eq!(error.stage(), Stage::Tls, "{error}");
    near.write_all(b"still").await.unwrap();
    soon("still", far.read_exact(&mut [0; 5])).await.unwrap();
}

#[tokio::test]
async fn hardening_F41_a_client_whose_certificate_has_ended_is_asked_to_come_again() {
    let lab = Lab::new().await;
    let mut raw = Raw::tls_as(&lab, Ca::brief_params("spiffe://cluster.local/ns/app/sa/client")).await;
    raw.hello().await;
    assert_eq!(raw.goaway().await, 0);
}
