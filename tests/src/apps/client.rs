//! A curl-like client with curl's exit codes (6 name, 7 connect, 28 timeout, 52 empty, 56 reset), and raw TCP probes.
use anyhow::Result;
use serde_json::json;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Name not found.
pub const NAME: i32 = 6;
/// Connection refused or no route.
pub const CONNECT: i32 = 7;
/// Too slow.
pub const TIMEOUT: i32 = 28;
/// Closed without an answer.
pub const EMPTY: i32 = 52;
/// Reset while sending or receiving.
pub const RESET: i32 = 56;

/// How an attempt failed.
#[derive(Debug, Clone)]
pub struct Failure {
    /// curl's exit code.
    pub code: i32,
    /// What happened.
    pub message: String,
}

fn failure(code: i32, message: impl Into<String>) -> Failure {
    Failure { code, message: message.into() }
}

fn io_failure(e: &std::io::Error) -> Failure {
    let code = match e.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => TIMEOUT,
        _ => RESET,
    };
    failure(code, e.to_string())
}

/// Resolves and connects, each address in turn.
pub fn dial(host: &str, port: u16, limit: Duration) -> Result<TcpStream, Failure> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let addresses: Vec<SocketAddr> =
        (host, port).to_socket_addrs().map_err(|e| failure(NAME, format!("could not resolve {host}: {e}")))?.collect();
    let mut last = failure(NAME, format!("{host} has no address"));
    for address in addresses {
        match TcpStream::connect_timeout(&address, limit) {
            Ok(stream) => {
                let _ = stream.set_read_timeout(Some(limit));
                let _ = stream.set_write_timeout(Some(limit));
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Err(e) => {
                let code = match e.kind() {
                    ErrorKind::TimedOut => TIMEOUT,
                    // It was open, and was reset before anybody looked.
                    ErrorKind::ConnectionReset => RESET,
                    _ => CONNECT,
                };
                last = failure(code, format!("connect to {address}: {e}"));
            }
        }
    }
    Err(last)
}

/// A request for `get`.
#[derive(Debug, Clone)]
pub struct Get {
    /// `http://host[:port]/path`.
    pub url: String,
    /// `GET`, or another method; there is no body.
    pub method: String,
    /// `name: value` lines.
    pub headers: Vec<String>,
    /// Limit for connecting and for each read.
    pub timeout: Duration,
}

/// One load on one connection of its own.
pub fn get(request: &Get) -> Result<(u16, String), Failure> {
    let rest = request.url.strip_prefix("http://").unwrap_or(&request.url);
    let (authority, path) = rest.find('/').map_or((rest, "/"), |at| (&rest[..at], &rest[at..]));
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port.parse().unwrap_or(80)),
        _ => (authority, 80),
    };
    let mut stream = dial(host, port, request.timeout)?;
    let mut text =
        format!("{} {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\nAccept: */*\r\n", request.method);
    for header in &request.headers {
        text.push_str(header);
        text.push_str("\r\n");
    }
    text.push_str("\r\n");
    stream.write_all(text.as_bytes()).map_err(|e| io_failure(&e))?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    if reader.read_line(&mut line).map_err(|e| io_failure(&e))? == 0 {
        return Err(failure(EMPTY, "empty reply"));
    }
    let status = line.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or_else(|| failure(1, "no HTTP status"))?;
    let mut length = None;
    loop {
        line.clear();
        reader.read_line(&mut line).map_err(|e| io_failure(&e))?;
        let header = line.trim_end().to_ascii_lowercase();
        if header.is_empty() {
            break;
        }
        if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse::<u64>().ok();
        }
    }
    let mut body = Vec::new();
    let read = match length {
        Some(n) => reader.take(n).read_to_end(&mut body),
        None => reader.read_to_end(&mut body),
    };
    read.map_err(|e| io_failure(&e))?;
    if length.is_some_and(|n| n != body.len() as u64) {
        return Err(failure(18, "body cut short"));
    }
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

/// `lab get`: one load prints its body. Returns the exit code.
pub fn run_get(request: &Get) -> i32 {
    match get(request) {
        Ok((status, body)) => {
            eprintln!("HTTP {status}");
            print!("{body}");
            if status < 400 { 0 } else { 22 }
        }
        Err(e) => {
            eprintln!("{}", e.message);
            e.code
        }
    }
}

/// `lab get --count`: each load prints one JSON line. Returns the worst exit code.
pub fn run_gets(request: &Get, count: u32, interval: Duration) -> i32 {
    let mut worst = 0;
    for _ in 0..count {
        let start = Instant::now();
        let result = get(request);
        let ms = start.elapsed().as_secs_f64() * 1000.0;
        let line = match &result {
            Ok((status, body)) => json!({"status": status, "exit": 0, "ms": ms, "body": body}),
            Err(e) => json!({"status": 0, "exit": e.code, "ms": ms, "error": e.message}),
        };
        println!("{line}");
        worst = worst.max(result.err().map_or(0, |e| e.code));
        std::thread::sleep(interval.saturating_sub(start.elapsed()));
    }
    worst
}

/// `lab send`: one line out, one line back; with `reset` the connection is then reset instead of closed.
pub fn run_send(host: &str, port: u16, text: &str, limit: Duration, reset: bool) -> i32 {
    let attempt = || -> Result<String, Failure> {
        let mut stream = dial(host, port, limit)?;
        stream.write_all(format!("{text}\n").as_bytes()).map_err(|e| io_failure(&e))?;
        let mut line = String::new();
        let read = BufReader::new(&stream).read_line(&mut line);
        if reset {
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).map_err(|e| io_failure(&e))?;
        }
        match read {
            Ok(0) => Err(failure(EMPTY, "closed without an answer")),
            Ok(_) => Ok(line),
            Err(e) => Err(io_failure(&e)),
        }
    };
    report(attempt())
}

/// `lab listen`: connects, says nothing, prints the first line and the milliseconds it took.
pub fn run_listen(host: &str, port: u16, limit: Duration) -> i32 {
    let start = Instant::now();
    let attempt = || -> Result<String, Failure> {
        let stream = dial(host, port, limit)?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).map_err(|e| io_failure(&e))?;
        Ok(format!("{} {:.3}\n", line.trim_end(), start.elapsed().as_secs_f64() * 1000.0))
    };
    report(attempt())
}

/// `lab hello`: begins TLS for a name and prints the first line that comes back: who routes by the name has passed it on, and who answers is no TLS server.
pub fn run_hello(host: &str, port: u16, name: &str, limit: Duration) -> i32 {
    let attempt = || -> Result<String, Failure> {
        let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider);
        let builder = builder.with_safe_default_protocol_versions().map_err(|e| failure(EMPTY, e.to_string()))?;
        let config = builder.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
        let name = name.to_owned().try_into().map_err(|_| failure(NAME, format!("{name:?} is no name")))?;
        let tls = rustls::ClientConnection::new(std::sync::Arc::new(config), name);
        let mut hello = Vec::new();
        tls.map_err(|e| failure(EMPTY, e.to_string()))?.write_tls(&mut hello).map_err(|e| io_failure(&e))?;
        let mut stream = dial(host, port, limit)?;
        stream.write_all(&hello).map_err(|e| io_failure(&e))?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).map_err(|e| io_failure(&e))?;
        Ok(line)
    };
    report(attempt())
}

/// `lab probe`: connects, stays for `hold`, prints both ends and how it went.
pub fn run_probe(host: &str, port: u16, hold: Duration, limit: Duration) -> i32 {
    let start = Instant::now();
    let attempt = || -> Result<String, Failure> {
        let mut stream = dial(host, port, limit)?;
        let connected = start.elapsed();
        let local = stream.local_addr().map_err(|e| io_failure(&e))?;
        let peer = stream.peer_addr().map_err(|e| io_failure(&e))?;
        let line = format!("connected local={local} peer={peer} us={}\n", connected.as_micros());
        if hold.is_zero() {
            return Ok(line);
        }
        let _ = stream.set_read_timeout(Some(hold));
        match stream.read(&mut [0; 64]) {
            Ok(0) => Err(failure(EMPTY, format!("{line}closed"))),
            Ok(_) => Ok(line),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(line),
            Err(e) => Err(failure(RESET, format!("{line}{e}"))),
        }
    };
    let code = report(attempt());
    eprintln!("ms={:.3}", start.elapsed().as_secs_f64() * 1000.0);
    code
}

fn report(result: Result<String, Failure>) -> i32 {
    match result {
        Ok(text) => {
            print!("{text}");
            0
        }
        Err(e) => {
            eprintln!("{}", e.message);
            e.code
        }
    }
}

/// Milliseconds since the epoch, comparable across the lab's processes.
pub fn now_ms() -> u128 {
    #[expect(clippy::disallowed_methods, reason = "the apps are none of the mesh")]
    SystemTime::now().duration_since(UNIX_EPOCH).map(|d| d.as_millis()).unwrap_or(0)
}

/// `lab hold`: one connection to a load server in echo mode that carries `token` every `interval`, until standard input closes or
/// the connection is cut or an answer takes longer than `limit`. Prints `open` first and `cut <how> at <ms>` or `done <echoes>` last.
pub fn run_hold(host: &str, port: u16, token: &str, interval: Duration, limit: Duration) -> i32 {
    let mut stream = match dial(host, port, limit) {
        Ok(stream) => stream,
        Err(e) => {
            eprintln!("{}", e.message);
            return e.code;
        }
    };
    if stream.write_all(b"E").is_err() {
        return RESET;
    }
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let asked = stop.clone();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read(&mut [0; 1]);
        asked.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    let mut answer = vec![0; token.len()];
    let mut echoes = 0u64;
    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
        let result = stream.write_all(token.as_bytes()).and_then(|()| stream.read_exact(&mut answer));
        if let Err(e) = result {
            let how = match e.kind() {
                ErrorKind::UnexpectedEof => "closed",
                ErrorKind::WouldBlock | ErrorKind::TimedOut => "timeout",
                _ => "reset",
            };
            println!("cut {how} at {} after {echoes}", now_ms());
            return if how == "timeout" { TIMEOUT } else { RESET };
        }
        if answer != token.as_bytes() {
            println!("cut wrong-bytes at {} after {echoes}", now_ms());
            return 1;
        }
        if echoes == 0 {
            println!("open");
        }
        echoes += 1;
        std::thread::sleep(interval);
    }
    println!("done {echoes}");
    0
}

/// `lab resolve`: the addresses that the pod's resolver gives, one a line.
pub fn run_resolve(name: &str) -> i32 {
    match (name, 0).to_socket_addrs() {
        Ok(addresses) => {
            let mut lines: Vec<String> = addresses.map(|a| a.ip().to_string()).collect();
            lines.dedup();
            println!("{}", lines.join("\n"));
            0
        }
        Err(e) => {
            eprintln!("{e}");
            NAME
        }
    }
}
