//! Small servers to talk to: line echo with a greeting (Istio's tcp-echo), HTTP that tells what it saw, a server that speaks first.
use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

/// Listens on all addresses of both families; on IPv4 alone where the namespace has no IPv6.
pub fn listen(port: u16, reuse_port: bool) -> Result<TcpListener> {
    let bind = |domain, address: SocketAddr| -> std::io::Result<TcpListener> {
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        if reuse_port {
            socket.set_reuse_port(true)?;
        }
        if domain == Domain::IPV6 {
            socket.set_only_v6(false)?;
        }
        socket.bind(&address.into())?;
        socket.listen(4096)?;
        Ok(socket.into())
    };
    bind(Domain::IPV6, SocketAddr::new(std::net::Ipv6Addr::UNSPECIFIED.into(), port))
        .or_else(|_| bind(Domain::IPV4, SocketAddr::new(std::net::Ipv4Addr::UNSPECIFIED.into(), port)))
        .with_context(|| format!("listen on port {port}"))
}

/// Answers each line with `<prefix> <line>` on each port, and logs who called.
pub fn tcp_echo(ports: &[u16], prefix: &str) -> Result<()> {
    let mut threads = Vec::new();
    for port in ports {
        let (listener, port, prefix) = (listen(*port, false)?, *port, prefix.to_string());
        threads.push(std::thread::spawn(move || {
            for stream in listener.incoming().filter_map(|s| s.ok()) {
                let prefix = prefix.clone();
                std::thread::spawn(move || echo_lines(&stream, port, &prefix));
            }
        }));
    }
    println!("ready");
    for thread in threads {
        let _ = thread.join();
    }
    Ok(())
}

fn echo_lines(stream: &TcpStream, port: u16, prefix: &str) {
    let peer = stream.peer_addr().map(|p| p.to_string()).unwrap_or_default();
    println!("connection port={port} peer={peer}");
    let mut lines = BufReader::new(stream);
    let mut line = String::new();
    let how = loop {
        match lines.read_line(&mut line) {
            Ok(0) => break "eof",
            Err(_) => break "reset",
            Ok(_) => {}
        }
        println!("line port={port} peer={peer} text={}", line.trim_end());
        let mut out = stream;
        if out.write_all(format!("{prefix} {line}").as_bytes()).is_err() {
            break "reset";
        }
        line.clear();
    };
    println!("end port={port} peer={peer} how={how}");
}

/// Sends a banner as soon as a client connects, then echoes nothing and waits for its end.
pub fn banner(port: u16, text: &str) -> Result<()> {
    let listener = listen(port, false)?;
    println!("ready");
    for stream in listener.incoming().filter_map(|s| s.ok()) {
        let text = format!("{text}\n");
        std::thread::spawn(move || {
            let mut out = &stream;
            let _ = out.write_all(text.as_bytes());
            let _ = std::io::copy(&mut &stream, &mut std::io::sink());
        });
    }
    Ok(())
}

/// HTTP on a port: any path answers 200 with what was seen, `/status/<code>` answers that code, and all paths answer `status` if there is one; each answer
/// comes `delay` later. A line tells of each request.
pub fn http(port: u16, name: &str, delay: Duration, status: Option<u16>) -> Result<()> {
    let listener = listen(port, false)?;
    listener.set_nonblocking(true).context("set non-blocking")?;
    runtime()?.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener).context("adopt listener")?;
        println!("ready");
        loop {
            let Ok((stream, peer)) = listener.accept().await else { continue };
            let name = name.to_string();
            tokio::spawn(async move {
                let service = service_fn(move |request| {
                    let mut answer = tell(&name, peer, &request);
                    if let Some(status) = status.and_then(|status| http::StatusCode::from_u16(status).ok()) {
                        *answer.status_mut() = status;
                    }
                    async move {
                        tokio::time::sleep(delay).await;
                        Ok::<_, Infallible>(answer)
                    }
                });
                let _ =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            });
        }
    })
}

pub(super) fn tell(name: &str, peer: SocketAddr, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let headers: BTreeMap<&str, &str> =
        request.headers().iter().map(|(k, v)| (k.as_str(), v.to_str().unwrap_or(""))).collect();
    let path = request.uri().path();
    println!("request {} {path} host={}", request.method(), headers.get("host").unwrap_or(&""));
    let body = json!({
        "server": name, "peer": peer.to_string(), "method": request.method().as_str(), "path": path, "headers": headers,
    });
    let status = path.strip_prefix("/status/").and_then(|s| s.parse().ok()).unwrap_or(200);
    let mut response = Response::new(Full::new(Bytes::from(format!("{body}\n"))));
    *response.status_mut() = http::StatusCode::from_u16(status).unwrap_or(http::StatusCode::OK);
    response
}

/// A small runtime for the servers.
pub fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().context("start runtime")
}
