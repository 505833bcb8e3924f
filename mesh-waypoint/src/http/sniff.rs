//! What a connection speaks, by its first bytes. Only asked where the port does not say it.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

/// What HTTP/2 begins with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The longest method that is waited for; those that are in use are shorter.
const METHOD: usize = 24;
/// How much of empty lines is looked behind.
const EMPTY: usize = 64;

/// What is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Spoken {
    /// HTTP/1.0 or HTTP/1.1
    Http1,
    /// HTTP/2, known to the client beforehand
    Http2,
    /// Something else: bytes are copied.
    Other,
}

/// Judges the bytes that are there; `None`: more are needed.
#[must_use]
pub fn judge(bytes: &[u8]) -> Option<Spoken> {
    // Servers of HTTP/1.1 skip empty lines before a request (RFC 9112 2.2): copied as something else it would be served, and held against nothing.
    let begins = bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n')).unwrap_or(bytes.len());
    if begins > 0 {
        return match judge(&bytes[begins..]) {
            Some(Spoken::Other) if begins <= EMPTY => Some(Spoken::Other),
            None if begins <= EMPTY => None,
            _ => Some(Spoken::Http1),
        };
    }
    if bytes.starts_with(PREFACE) {
        return Some(Spoken::Http2);
    }
    if bytes.is_empty() || PREFACE.starts_with(bytes) {
        return None;
    }
    let method = bytes.iter().position(|byte| !byte.is_ascii_uppercase() && *byte != b'-').unwrap_or(bytes.len());
    match bytes.get(method) {
        _ if method > METHOD => Some(Spoken::Other),
        None => None,
        // A method, a space, and what can begin a target.
        Some(b' ') if method >= 3 => match bytes.get(method + 1) {
            None => None,
            Some(b'/' | b'*' | b'h' | b'H') => Some(Spoken::Http1),
            Some(_) if bytes.starts_with(b"CONNECT ") => Some(Spoken::Http1),
            Some(_) => Some(Spoken::Other),
        },
        Some(_) => Some(Spoken::Other),
    }
}

/// Reads until it is known. A client that ends or says nothing within `limit` speaks something else: in many protocols the server begins.
pub async fn sniff<S: AsyncRead + Unpin>(stream: &mut S, limit: Duration) -> std::io::Result<(Spoken, Bytes)> {
    let mut bytes = BytesMut::with_capacity(1024);
    let deadline = tokio::time::Instant::now() + limit;
    loop {
        if let Some(spoken) = judge(&bytes) {
            return Ok((spoken, bytes.freeze()));
        }
        match tokio::time::timeout_at(deadline, stream.read_buf(&mut bytes)).await {
            Ok(Ok(0)) | Err(_) => return Ok((Spoken::Other, bytes.freeze())),
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes() {
        let h2 = std::str::from_utf8(PREFACE).unwrap();
        for (bytes, expected) in [
            ("", None),
            ("G", None),
            ("GET", None),
            ("GET ", None),
            ("GET /", Some(Spoken::Http1)),
            ("OPTIONS *", Some(Spoken::Http1)),
            ("GET http://a/", Some(Spoken::Http1)),
            ("CONNECT a:80", Some(Spoken::Http1)),
            ("M-SEARCH *", Some(Spoken::Http1)),
            ("PROPFIND /", Some(Spoken::Http1)),
            ("PRI * HTT", None),
            ("PRI * HTTP/1.1", Some(Spoken::Http1)),
            (h2, Some(Spoken::Http2)),
            ("get /", Some(Spoken::Other)),
            ("EHLO a", Some(Spoken::Other)),
            ("QUIT\r\n", Some(Spoken::Other)),
            ("\u{16}\u{3}\u{1}", Some(Spoken::Other)),
            ("SSH-2.0-x", Some(Spoken::Other)),
            ("\r\n", None),
            ("\r\nG", None),
            ("\r\nGET /", Some(Spoken::Http1)),
            ("\n\r\n\nPOST /", Some(Spoken::Http1)),
            ("\r\nEHLO a", Some(Spoken::Other)),
            ("\r\n\u{16}\u{3}\u{1}", Some(Spoken::Other)),
            (&format!("\r\n{h2}"), Some(Spoken::Http1)),
            (&"\r\n".repeat(32), None),
            (&"\r\n".repeat(33), Some(Spoken::Http1)),
            ("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", Some(Spoken::Other)),
        ] {
            assert_eq!(judge(bytes.as_bytes()), expected, "{bytes:?}");
        }
    }
}
