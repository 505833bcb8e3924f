//! Bytes, ends and resets through two agents and through a plain copy.
#![allow(clippy::unwrap_used, missing_docs, non_snake_case)]

mod support;

use std::hash::{DefaultHasher, Hasher};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;

use mesh_transport::copy::{self, Outcome, Peer, Side};
use mesh_transport::hbone::{ConnectRequest, ServeEnd};
use mesh_transport::socket::Armed;
use support::{Lab, pair, soon, until};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A deterministic stream of bytes.
fn bytes(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

async fn hash(mut from: impl AsyncRead + Unpin) -> (usize, u64) {
    let mut hasher = DefaultHasher::new();
    let mut buffer = vec![0; 100_000];
    let mut length = 0;
    loop {
        let count = from.read(&mut buffer).await.unwrap();
        if count == 0 {
            return (length, hasher.finish());
        }
        length += count;
        hasher.write(&buffer[..count]);
    }
}

fn hash_of(bytes: &[u8]) -> (usize, u64) {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    (bytes.len(), hasher.finish())
}

/// The connections under test: through tunnels, and through one plain copy.
async fn connection(lab: Option<&Lab>) -> (TcpStream, TcpStream, JoinHandle<Outcome>) {
    match lab {
        Some(lab) => lab.through().await,
        None => {
            let ((near, a), (b, far)) = (pair().await, pair().await);
            let copy = tokio::spawn(copy::bidirectional(
                Armed::new(a),
                Peer::Tcp(Armed::new(b)),
                Arc::default(),
                CancellationToken::new(),
            ));
            (near, far, copy)
        }
    }
}

async fn both_ways(lab: Option<&Lab>, up: usize, down: usize) {
    let (near, far, copy) = connection(lab).await;
    let (upward, downward) = (bytes(up, 3), bytes(down, 5));
    let expect = (hash_of(&upward), hash_of(&downward));
    let (near_read, mut near_write) = near.into_split();
    let (far_read, mut far_write) = far.into_split();
    let all = async {
        tokio::join!(
            async {
                near_write.write_all(&upward).await.unwrap();
                near_write.shutdown().await.unwrap();
            },
            async {
                far_write.write_all(&downward).await.unwrap();
                far_write.shutdown().await.unwrap();
            },
            hash(far_read),
            hash(near_read),
        )
    };
    let (_, _, up, down) = soon("transfer", all).await;
    assert_eq!((up, down), expect);
    assert!(matches!(soon("end", copy).await.unwrap(), Outcome::Closed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_arrive_unchanged_both_ways() {
    let lab = Lab::new().await;
    for lab in [Some(&lab), None] {
        for (up, down) in
            [(0, 0), (1, 0), (0, 1), (100, 70_000), (16_374, 16_375), (16_376, 300_000), (5_000_000, 3_000_000)]
        {
            both_ways(lab, up, down).await;
        }
    }
    until("streams end", || lab.pool.stats().streams == 0).await;
    assert_eq!(lab.pool.stats().tunnels, 1);
}

#[tokio::test]
async fn hardening_F36_each_direction_ends_alone() {
    let lab = Lab::new().await;
    for lab in [Some(&lab), None] {
        // The client ends first, the server answers afterwards; then the other way round.
        for client_first in [true, false] {
            let (near, far, copy) = connection(lab).await;
            let (mut first, mut second) = if client_first { (near, far) } else { (far, near) };
            first.write_all(b"question").await.unwrap();
            first.shutdown().await.unwrap();
            let mut question = String::new();
            soon("question", second.read_to_string(&mut question)).await.unwrap();
            assert_eq!(question, "question");
            let writing = tokio::spawn(async move {
                second.write_all(b"answer").await.unwrap();
                second.write_all(&bytes(1_000_000, 7)).await.unwrap();
                second.shutdown().await.unwrap();
                second
            });
            let mut answer = Vec::new();
            soon("answer", first.read_to_end(&mut answer)).await.unwrap();
            drop(writing.await.unwrap());
            assert_eq!(answer.len(), 1_000_006);
            assert!(matches!(soon("end", copy).await.unwrap(), Outcome::Closed));
        }
    }
}

#[tokio::test]
async fn hardening_F37_a_reset_stays_a_reset() {
    let lab = Lab::new().await;
    for lab in [Some(&lab), None] {
        for from_client in [true, false] {
            let (near, far, copy) = connection(lab).await;
            let (mut gone, mut left) = if from_client { (near, far) } else { (far, near) };
            gone.write_all(b"partial").await.unwrap();
            let mut partial = [0; 7];
            soon("partial", left.read_exact(&mut partial)).await.unwrap();
            mesh_transport::socket::reset(gone);
            let error = soon("reset", left.read(&mut partial)).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            let side = if from_client { Side::Local } else { Side::Peer };
            let outcome = soon("end", copy).await.unwrap();
            assert!(matches!(outcome, Outcome::ResetBy(by) if by == side), "{outcome:?}");
        }
    }
    until("streams end", || lab.pool.stats().streams == 0).await;
}

/// Passes bytes on, and changes one bit of them so far from the beginning.
async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, damage: Option<usize>) {
    let (mut passed, mut buffer) = (0, vec![0; 65_536]);
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let place = damage.and_then(|at| at.checked_sub(passed));
        if let Some(byte) = place.and_then(|place| buffer[..count].get_mut(place)) {
            *byte ^= 1 << (passed % 8);
        }
        passed += count;
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

/// A connection to a port over a cable that changes one bit of what goes up, or down.
async fn damaged(port: SocketAddr, at: usize, up: bool) -> std::io::Result<TcpStream> {
    let ((near, relay), far) = (pair().await, TcpStream::connect(port).await?);
    let ((from_near, to_near), (from_far, to_far)) = (relay.into_split(), far.into_split());
    tokio::spawn(pass(from_near, to_far, up.then_some(at)));
    tokio::spawn(pass(from_far, to_near, (!up).then_some(at)));
    Ok(near)
}

/// A bit that changes on the way ends the tunnel. What was delivered until then is what was sent, and its end is a reset: nobody takes half of it for all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hardening_F19_what_is_damaged_on_the_way_is_never_delivered() {
    let mut lab = Lab::new().await;
    let sent = bytes(1 << 20, 7);
    for trial in 0..24 {
        // Behind the handshake; bodies and headers of records.
        let (up, at, port) = (trial % 2 == 0, 8192 + trial * 7919, lab.tunnel_port);
        let target = lab.app.local_addr().unwrap();
        let dial = move || damaged(port, at, up);
        let key = lab.key();
        let connect = lab.pool.connect(&key, lab.client.clone(), dial, ConnectRequest::to(target));
        let both = async { tokio::join!(connect, lab.app.accept()) };
        let (stream, app) = soon("connection", both).await;
        let (near, far) = pair().await;
        let peer = Peer::Hbone(stream.unwrap().0);
        let copy = tokio::spawn(copy::bidirectional(Armed::new(far), peer, Arc::default(), lab.cancel.clone()));
        let app = app.unwrap().0;
        let (mut writer, mut reader) = if up { (near, app) } else { (app, near) };
        let text = sent.clone();
        let writing = tokio::spawn(async move {
            let written = writer.write_all(&text).await;
            (writer, written)
        });
        let mut received = Vec::new();
        let end = soon("an end", reader.read_to_end(&mut received)).await;
        assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset, "{at}: no orderly end");
        assert!(received.len() < sent.len() && sent.starts_with(&received), "{at}: {} bytes", received.len());
        assert!(!matches!(soon("outcome", copy).await.unwrap(), Outcome::Closed), "{at}");
        drop(soon("writer", writing).await);
        let end = soon("the end of the tunnel", lab.ends.recv()).await.unwrap();
        // Counted as what it is by whoever sees it; the other one is told by an alert.
        let expected = if up { ServeEnd::Protocol("bad_record") } else { ServeEnd::Lost };
        assert_eq!(end, expected, "{at}");
        until("no tunnel", || lab.pool.stats().tunnels == 0).await;
    }
    // Over a good cable all goes on.
    both_ways(Some(&lab), 300_000, 300_000).await;
}

#[tokio::test]
async fn hardening_F37_a_reset_is_seen_while_the_other_end_does_not_read() {
    let lab = Lab::new().await;
    for lab in [Some(&lab), None] {
        let (mut near, far, copy) = connection(lab).await;
        // Fill every buffer on the way, then abort.
        let blob = bytes(1 << 20, 1);
        while tokio::time::timeout(std::time::Duration::from_millis(300), near.write_all(&blob)).await.is_ok() {}
        mesh_transport::socket::reset(near);
        assert!(matches!(soon("end", copy).await.unwrap(), Outcome::ResetBy(Side::Local)));
        let error = soon("reset", hash_error(far)).await;
        assert_eq!(error, ErrorKind::ConnectionReset);
    }
}

/// Whoever has ended its own direction may still abort, and nobody would be told by reading or writing.
#[tokio::test]
async fn hardening_F37_a_reset_after_an_end_is_a_reset() {
    let lab = Lab::new().await;
    for lab in [Some(&lab), None] {
        for from_client in [true, false] {
            let (near, far, copy) = connection(lab).await;
            let (mut gone, mut left) = if from_client { (near, far) } else { (far, near) };
            gone.write_all(b"all").await.unwrap();
            gone.shutdown().await.unwrap();
            let mut all = String::new();
            soon("end", left.read_to_string(&mut all)).await.unwrap();
            assert_eq!(all, "all");
            mesh_transport::socket::reset(gone);
            let side = if from_client { Side::Local } else { Side::Peer };
            let outcome = soon("outcome", copy).await.unwrap();
            assert!(matches!(outcome, Outcome::ResetBy(by) if by == side), "{outcome:?}");
            let broken = soon("reset", left.ready(tokio::io::Interest::ERROR)).await.unwrap();
            assert!(broken.is_error());
        }
    }
    until("streams end", || lab.pool.stats().streams == 0).await;
}

async fn hash_error(mut from: TcpStream) -> ErrorKind {
    let mut buffer = vec![0; 100_000];
    loop {
        match from.read(&mut buffer).await {
            Ok(0) => panic!("a clean end"),
            Ok(_) => {}
            Err(error) => return error.kind(),
        }
    }
}

#[tokio::test]
async fn cancellation_resets_both_ends() {
    let lab = Lab::new().await;
    let (mut near, mut far, copy) = lab.through().await;
    near.write_all(b"x").await.unwrap();
    soon("byte", far.read_u8()).await.unwrap();
    lab.cancel.cancel();
    assert!(matches!(soon("end", copy).await.unwrap(), Outcome::Cancelled));
    for end in [&mut near, &mut far] {
        assert_eq!(soon("reset", end.read_u8()).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
}

#[tokio::test]
async fn hardening_F38_the_server_may_speak_first() {
    let lab = Lab::new().await;
    let ((near, _copy, _), accepted) = tokio::join!(async { lab.connect().await.unwrap() }, async {
        let (mut far, _) = lab.app.accept().await.unwrap();
        far.write_all(b"220 ready\r\n").await.unwrap();
        far
    });
    let mut near = near;
    let mut banner = [0; 11];
    soon("banner", near.read_exact(&mut banner)).await.unwrap();
    assert_eq!(&banner, b"220 ready\r\n");
    drop(accepted);
}

#[test]
fn one_connection_costs_little_memory() {
    // The whole future of a proxied connection: the copy and what it captures. A change here is a change of the memory of every idle connection.
    fn size<F: Future>(_: impl FnOnce(Armed, Peer, Arc<copy::ByteCounters>, CancellationToken) -> F) -> usize {
        size_of::<F>()
    }
    let size = size(copy::bidirectional);
    assert!(size <= 1024, "copy::bidirectional is {size} bytes");
    println!("copy::bidirectional: {size} bytes");
}
