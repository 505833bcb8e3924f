//! Throughput, latency and connections per second through two agents on loopback, each step against a direct connection.
//!
//! `cargo run --release -p mesh-transport --example hbone_bench -- [seconds]`
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_transport::copy::{self, Peer};
use mesh_transport::hbone::ConnectRequest;
use mesh_transport::socket::Armed;
use support::{Lab, handle};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A runtime of one thread, as one agent of one node.
fn node<F: Future + Send + 'static>(name: &str, future: F) -> std::thread::JoinHandle<()>
where
    F::Output: Send,
{
    std::thread::Builder::new()
        .name(name.into())
        .spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async { drop(future.await) });
        })
        .unwrap()
}

fn main() {
    let seconds: f64 = std::env::args().nth(1).map_or(2.0, |text| text.parse().unwrap());
    let time = Duration::from_secs_f64(seconds);
    let (app, mesh) = start();
    for (name, to) in [("direct", app), ("mesh", mesh)] {
        let before = cpu();
        let rtt = std::thread::scope(|scope| scope.spawn(|| round_trips(to, 64, time)).join().unwrap());
        let big = round_trips(to, 16 * 1024, time);
        let echoed = cpu();
        let one = stream(to, 1, time);
        let streamed = cpu();
        let four = stream(to, 4, time);
        let before_connections = cpu();
        let conns = connections(to, 1, time);
        let connected = cpu();
        let many = connections(to, 16, time);
        println!(
            "{name:>7}: rtt 64 B p50 {:.0} p99 {:.0} us, 16 KiB p50 {:.0} p99 {:.0} us; stream {one:.1} / {four:.1} Gbit/s; {conns:.0} / {many:.0} conns/s",
            rtt.0, rtt.1, big.0, big.1
        );
        let per = |from: [f64; 2], to: [f64; 2], units: f64| {
            [0, 1].map(|node| ((to[node] - from[node]) / units * 100.0).round() / 100.0)
        };
        println!(
            "         cpu of [client, server] agent: {:?} s in round trips, {:?} s per GB, {:?} us per connection",
            per(before, echoed, 1.0),
            per(echoed, streamed, one / 8.0 * seconds),
            per(before_connections, connected, conns * seconds / 1e6)
        );
    }
}

/// The application, the server's agent and the client's agent; returns the application's address and the captured one.
fn start() -> (SocketAddr, SocketAddr) {
    let (tell, told) = std::sync::mpsc::channel();
    let app = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = app.local_addr().unwrap();
    std::thread::spawn(move || application(&app));
    let (server_tell, server_told) = std::sync::mpsc::channel();
    node("server", async move {
        let lab = Lab::new().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        server_tell.send((listener.local_addr().unwrap(), lab.client.clone(), lab.server.clone(), lab.key())).unwrap();
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let (acceptor, certificate, cancel, drain) =
                (lab.acceptor.clone(), lab.server.clone(), lab.cancel.clone(), lab.drain.clone());
            tokio::spawn(async move {
                let tunnel = acceptor.accept(tcp, &certificate).await.unwrap();
                tunnel.serve(drain, move |request| drop(tokio::spawn(handle(request, cancel.clone())))).await
            });
        }
    });
    let (tunnel_port, certificate, _, mut key) = server_told.recv().unwrap();
    key.destination = tunnel_port;
    node("client", async move {
        let pool = mesh_transport::hbone::Pool::new(Default::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        tell.send(listener.local_addr().unwrap()).unwrap();
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let (pool, key, certificate) = (pool.clone(), key.clone(), certificate.clone());
            tokio::spawn(async move {
                tcp.set_nodelay(true).unwrap();
                let dial = move || TcpStream::connect(tunnel_port);
                let (stream, _) = pool.connect(&key, certificate, dial, ConnectRequest::to(address)).await.unwrap();
                copy::bidirectional(Armed::new(tcp), Peer::Hbone(stream), Arc::default(), Default::default()).await
            });
        }
    });
    (address, told.recv().unwrap())
}

/// First byte decides: `e` echoes 64 B or 16 KiB messages, `s` swallows, `c` answers 1 KiB and closes.
fn application(listener: &std::net::TcpListener) {
    use std::io::{Read, Write};
    for connection in listener.incoming() {
        let mut connection = connection.unwrap();
        std::thread::Builder::new()
            .stack_size(512 * 1024)
            .spawn(move || {
                connection.set_nodelay(true).unwrap();
                let mut mode = [0];
                if connection.read_exact(&mut mode).is_err() {
                    return;
                }
                let mut buffer = vec![0; 256 * 1024];
                match mode[0] {
                    b'c' => drop(connection.write_all(&buffer[..1024])),
                    b's' => while connection.read(&mut buffer).is_ok_and(|count| count > 0) {},
                    _ => {
                        while let Ok(count) = connection.read(&mut buffer) {
                            if count == 0 || connection.write_all(&buffer[..count]).is_err() {
                                return;
                            }
                        }
                    }
                }
            })
            .unwrap();
    }
}

fn round_trips(to: SocketAddr, size: usize, time: Duration) -> (f64, f64) {
    use std::io::{Read, Write};
    let mut connection = std::net::TcpStream::connect(to).unwrap();
    connection.set_nodelay(true).unwrap();
    connection.write_all(b"e").unwrap();
    let mut buffer = vec![7; size];
    let start = Instant::now();
    let mut samples = Vec::new();
    while start.elapsed() < time {
        let before = Instant::now();
        connection.write_all(&buffer).unwrap();
        connection.read_exact(&mut buffer).unwrap();
        samples.push(before.elapsed().as_secs_f64() * 1e6);
    }
    samples.sort_by(f64::total_cmp);
    (samples[samples.len() / 2], samples[samples.len() * 99 / 100])
}

fn stream(to: SocketAddr, count: usize, time: Duration) -> f64 {
    use std::io::Write;
    let threads: Vec<_> = (0..count)
        .map(|_| {
            std::thread::spawn(move || {
                let mut connection = std::net::TcpStream::connect(to).unwrap();
                connection.write_all(b"s").unwrap();
                let buffer = vec![7; 256 * 1024];
                let start = Instant::now();
                let mut sent = 0;
                while start.elapsed() < time {
                    connection.write_all(&buffer).unwrap();
                    sent += buffer.len();
                }
                sent as f64 * 8.0 / 1e9 / start.elapsed().as_secs_f64()
            })
        })
        .collect();
    threads.into_iter().map(|thread| thread.join().unwrap()).sum()
}

fn connections(to: SocketAddr, clients: usize, time: Duration) -> f64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    let start = Instant::now();
    let done = local.block_on(&runtime, async {
        let tasks: Vec<_> = (0..clients)
            .map(|_| {
                tokio::task::spawn_local(async move {
                    let mut done = 0u64;
                    let mut answer = Vec::with_capacity(2048);
                    while start.elapsed() < time {
                        let mut connection = TcpStream::connect(to).await.unwrap();
                        connection.write_all(b"c").await.unwrap();
                        answer.clear();
                        connection.read_to_end(&mut answer).await.unwrap();
                        assert_eq!(answer.len(), 1024);
                        done += 1;
                    }
                    done
                })
            })
            .collect();
        let mut done = 0;
        for task in tasks {
            done += task.await.unwrap();
        }
        done
    });
    done as f64 / start.elapsed().as_secs_f64()
}

/// CPU seconds of the two agents so far.
fn cpu() -> [f64; 2] {
    ["client", "server"].map(|name| {
        let mut ticks = 0;
        for task in std::fs::read_dir("/proc/self/task").unwrap() {
            // Threads of the application come and go.
            let Ok(stat) = std::fs::read_to_string(task.unwrap().path().join("stat")) else { continue };
            let (head, tail) = stat.rsplit_once(") ").unwrap();
            if head.ends_with(&format!("({name}")) {
                ticks += tail.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum::<u64>();
            }
        }
        ticks as f64 / 100.0
    })
}
