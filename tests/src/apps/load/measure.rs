//! Round trips, bulk, new connections, idle connections and the bare cost of `connect()`.
use anyhow::{Context, Result, bail};
use serde_json::json;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

fn dial(target: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&target, Duration::from_secs(5))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.set_write_timeout(Some(Duration::from_secs(10)))?;
    Ok(stream)
}

/// The value at `percent` of sorted samples.
fn percentile(sorted: &[f64], percent: f64) -> f64 {
    if sorted.is_empty() {
        return 0.0;
    }
    sorted[((sorted.len() - 1) as f64 * percent / 100.0) as usize]
}

fn summary(mut samples: Vec<f64>) -> serde_json::Value {
    samples.sort_by(f64::total_cmp);
    json!({
        "n": samples.len(), "p50_us": percentile(&samples, 50.0), "p99_us": percentile(&samples, 99.0),
        "p999_us": percentile(&samples, 99.9),
    })
}

/// Ping-pong of `bytes` on one connection.
pub fn round_trips(target: SocketAddr, bytes: usize, time: Duration) -> Result<()> {
    let mut stream = dial(target).with_context(|| format!("connect to {target}"))?;
    stream.write_all(b"E")?;
    let mut buffer = vec![0; bytes];
    let mut samples = Vec::with_capacity(1 << 20);
    let mut ping = |stream: &mut TcpStream| -> Result<()> {
        stream.write_all(&buffer).context("send")?;
        stream.read_exact(&mut buffer).context("receive")
    };
    for _ in 0..200 {
        ping(&mut stream)?;
    }
    let end = Instant::now() + time;
    let mut last = Instant::now();
    while last < end {
        ping(&mut stream)?;
        let now = Instant::now();
        samples.push((now - last).as_secs_f64() * 1e6);
        last = now;
    }
    println!("{}", summary(samples));
    Ok(())
}

/// One-way bulk on `connections`, counted by the server; a write may take as long as `patience`.
pub fn stream(target: SocketAddr, connections: usize, time: Duration, patience: Duration) -> Result<()> {
    let start = Instant::now();
    let total = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..connections)
            .map(|_| {
                scope.spawn(move || -> Result<u64> {
                    let mut stream = dial(target)?;
                    stream.set_write_timeout(Some(patience))?;
                    stream.write_all(b"S")?;
                    let block = vec![0; 128 << 10];
                    while start.elapsed() < time {
                        stream.write_all(&block)?;
                    }
                    stream.shutdown(Shutdown::Write)?;
                    let mut count = [0; 8];
                    stream.read_exact(&mut count).context("read the server's count")?;
                    Ok(u64::from_le_bytes(count))
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap_or_else(|_| bail!("thread panicked"))).sum::<Result<u64>>()
    })?;
    let seconds = start.elapsed().as_secs_f64();
    println!("{}", json!({"bytes": total, "seconds": seconds, "gbit_s": total as f64 * 8.0 / seconds / 1e9}));
    Ok(())
}

/// Connect, one byte there and back, the server closes; by `clients` at a time.
pub fn connections(target: SocketAddr, clients: usize, time: Duration) -> Result<()> {
    let errors = AtomicU64::new(0);
    let start = Instant::now();
    let samples: Vec<f64> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..clients)
            .map(|_| {
                scope.spawn(|| {
                    let mut samples = Vec::with_capacity(1 << 16);
                    while start.elapsed() < time {
                        let one = Instant::now();
                        let result = dial(target).and_then(|mut s| {
                            s.write_all(b"Cx")?;
                            let mut answer = Vec::new();
                            s.read_to_end(&mut answer)?;
                            if answer == b"x" { Ok(()) } else { Err(std::io::ErrorKind::UnexpectedEof.into()) }
                        });
                        match result {
                            Ok(()) => samples.push(one.elapsed().as_secs_f64() * 1e6),
                            Err(_) => {
                                errors.fetch_add(1, Ordering::Relaxed);
                                std::thread::sleep(Duration::from_millis(1));
                            }
                        }
                    }
                    samples
                })
            })
            .collect();
        threads.into_iter().flat_map(|t| t.join().unwrap_or_default()).collect()
    });
    let seconds = start.elapsed().as_secs_f64();
    let mut value = json!({"per_second": samples.len() as f64 / seconds, "errors": errors.load(Ordering::Relaxed)});
    value["latency"] = summary(samples);
    println!("{value}");
    Ok(())
}

/// Opens `count` connections that echo one byte, prints `open`, and keeps them until standard input closes.
pub fn idle(target: SocketAddr, count: usize) -> Result<()> {
    let mut held = Vec::with_capacity(count);
    for i in 0..count {
        let mut stream = dial(target).with_context(|| format!("connection {i}"))?;
        stream.write_all(b"Ex").context("send")?;
        stream.read_exact(&mut [0; 1]).with_context(|| format!("echo on connection {i}"))?;
        held.push(stream);
    }
    println!("open {count}");
    let _ = std::io::stdin().read(&mut [0; 1]);
    let mut broken = 0;
    for stream in &mut held {
        if stream.write_all(b"y").and_then(|()| stream.read_exact(&mut [0; 1])).is_err() {
            broken += 1;
        }
    }
    println!("{}", json!({"count": count, "broken": broken}));
    Ok(())
}

/// `connect()` to a closed port on loopback, many times: the bare cost of the call, with what hooks add to it.
pub fn connect_cost(target: SocketAddr, time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    let mut samples = Vec::with_capacity(1 << 20);
    while Instant::now() < end {
        let socket = socket2::Socket::new(socket2::Domain::for_address(target), socket2::Type::STREAM, None)?;
        let one = Instant::now();
        let _ = socket.connect(&target.into());
        samples.push(one.elapsed().as_secs_f64() * 1e6);
    }
    println!("{}", summary(samples));
    Ok(())
}
