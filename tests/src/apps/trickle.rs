//! `lab trickle`: clients that begin a TLS handshake one byte at a time and never finish it, and come back when they are closed.
use super::servers::runtime;
use anyhow::Result;
use serde_json::json;
use std::io::Read;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A handshake record of 512 bytes that holds a ClientHello, as far as anybody ever sees.
const START: [u8; 9] = [22, 3, 1, 2, 0, 1, 0, 1, 252];

#[derive(Default)]
struct Tally {
    opened: AtomicU64,
    failed: AtomicU64,
    closed: AtomicU64,
}

/// Keeps `count` such clients going until standard input closes. Prints `open` when each has tried once, and what became of them last.
pub fn run(target: SocketAddr, count: usize, interval: Duration) -> Result<()> {
    let runtime = runtime()?;
    let tally: Arc<Tally> = Arc::default();
    for _ in 0..count {
        let tally = tally.clone();
        runtime.spawn(async move {
            loop {
                one(target, interval, &tally).await;
                tokio::time::sleep(interval).await;
            }
        });
    }
    let load = |n: &AtomicU64| n.load(Relaxed);
    while load(&tally.opened) + load(&tally.failed) < count as u64 {
        std::thread::sleep(Duration::from_millis(10));
    }
    println!("open {count}");
    let _ = std::io::stdin().read(&mut [0; 1]);
    println!(
        "{}",
        json!({"opened": load(&tally.opened), "failed": load(&tally.failed), "closed": load(&tally.closed)})
    );
    Ok(())
}

async fn one(target: SocketAddr, interval: Duration, tally: &Tally) {
    let Ok(mut stream) = TcpStream::connect(target).await else {
        tally.failed.fetch_add(1, Relaxed);
        return;
    };
    tally.opened.fetch_add(1, Relaxed);
    let hello = START.into_iter().chain(std::iter::repeat(0));
    for byte in hello {
        let mut answer = [0; 64];
        let closed = tokio::select! {
            read = stream.read(&mut answer) => matches!(read, Ok(0) | Err(_)),
            () = tokio::time::sleep(interval) => stream.write_all(&[byte]).await.is_err(),
        };
        if closed {
            break;
        }
    }
    tally.closed.fetch_add(1, Relaxed);
}
