//! A blocking HTTP/1.1 GET for metrics, readiness and admin endpoints: one request per connection.
use super::netns::Netns;
use anyhow::{Context, Result, bail};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(5);

/// A response.
#[derive(Debug, Clone)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Body, decoded.
    pub body: String,
}

/// Asks a TCP endpoint from inside a namespace.
pub fn get(netns: &Netns, address: SocketAddr, path: &str) -> Result<Response> {
    netns.run(|| {
        let stream = TcpStream::connect_timeout(&address, LIMIT).with_context(|| format!("connect to {address}"))?;
        stream.set_read_timeout(Some(LIMIT))?;
        exchange(stream, &request("GET", path))
    })
}

/// Asks an endpoint on a Unix socket.
pub fn get_unix(socket: &Path, path: &str) -> Result<Response> {
    send_unix(socket, "GET", path)
}

/// Sends a request without a body to a Unix socket.
pub fn send_unix(socket: &Path, method: &str, path: &str) -> Result<Response> {
    let stream = UnixStream::connect(socket).with_context(|| format!("connect to {}", socket.display()))?;
    stream.set_read_timeout(Some(LIMIT))?;
    exchange(stream, &request(method, path))
}

fn request(method: &str, path: &str) -> String {
    format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nundermesh-admin: lab\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
    )
}

fn exchange(mut stream: impl Read + Write, request: &str) -> Result<Response> {
    stream.write_all(request.as_bytes()).context("send request")?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).context("read response")?;
    parse(&bytes)
}

fn parse(bytes: &[u8]) -> Result<Response> {
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").context("response has no header end")?;
    let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).context("response has no status")?;
    let body = &bytes[end + 4..];
    let body = if head.contains("transfer-encoding: chunked") { unchunk(body)? } else { body.to_vec() };
    Ok(Response { status, body: String::from_utf8_lossy(&body).into_owned() })
}

fn unchunk(mut rest: &[u8]) -> Result<Vec<u8>> {
    let mut whole = Vec::new();
    loop {
        let end = rest.windows(2).position(|w| w == b"\r\n").context("chunk has no size line")?;
        let line = String::from_utf8_lossy(&rest[..end]);
        let size = usize::from_str_radix(line.split(';').next().unwrap_or("").trim(), 16).context("chunk size")?;
        rest = &rest[end + 2..];
        if size == 0 {
            return Ok(whole);
        }
        if rest.len() < size + 2 {
            bail!("chunk is cut short");
        }
        whole.extend_from_slice(&rest[..size]);
        rest = &rest[size + 2..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn responses_are_decoded() {
        let plain = parse(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi").unwrap();
        assert_eq!((plain.status, plain.body.as_str()), (200, "hi"));
        let chunked =
            parse(b"HTTP/1.1 503 no\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n").unwrap();
        assert_eq!((chunked.status, chunked.body.as_str()), (503, "abcde"));
        assert!(parse(b"HTTP/1.1 200 OK").is_err());
    }
}
