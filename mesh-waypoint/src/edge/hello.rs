//! The first message of a TLS client: read only to see which name is asked for, and kept, because whoever ends TLS has to read it, too.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use mesh_transport::tls::is_tls;
use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::refused::Reason;

/// Most bytes of a first message. The largest honest one, with keys against quantum computers, is a few thousand.
const MOST: usize = 64 * 1024;

/// What was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The name that is asked for, in lower case.
    pub name: Option<String>,
    /// All that was read.
    pub bytes: Bytes,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum NoHello {
    /// The client, or the way to it.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is not TLS.
    #[error("not_tls")]
    NotTls,
    /// It is TLS, and not as it should be.
    #[error(transparent)]
    Tls(#[from] rustls::Error),
    /// It does not end.
    #[error("a first message of more than {MOST} bytes")]
    TooLarge,
    /// It does not end in time.
    #[error("handshake_timeout")]
    Late,
}

impl NoHello {
    /// Its word.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Io(_) => Reason::HandshakeClosed,
            Self::NotTls => Reason::NotTls,
            Self::Tls(error) => Reason::of_tls(error),
            Self::TooLarge => Reason::Handshake,
            Self::Late => Reason::HandshakeTimeout,
        }
    }
}

/// Reads it, of which `first` was read already; all of it has to be there within `limit`. Who sends something else is told so, if TLS has a word for it.
pub async fn peek<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    first: &[u8],
    limit: Duration,
) -> Result<Hello, NoHello> {
    tokio::time::timeout(limit, read(stream, first)).await.map_err(|_| NoHello::Late)?
}

async fn read<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, first: &[u8]) -> Result<Hello, NoHello> {
    let (mut acceptor, mut bytes) = (Acceptor::default(), BytesMut::with_capacity(4096));
    bytes.extend_from_slice(first);
    let mut judged = 0;
    loop {
        if judged == bytes.len() {
            bytes.reserve(1024);
            if stream.read_buf(&mut bytes).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
        if !is_tls(&bytes) {
            return Err(NoHello::NotTls);
        }
        let mut fresh = &bytes[std::mem::replace(&mut judged, bytes.len())..];
        while !fresh.is_empty() {
            acceptor.read_tls(&mut fresh)?;
            match acceptor.accept() {
                Ok(None) => {}
                Ok(Some(accepted)) => {
                    let name = accepted.client_hello().server_name().map(str::to_ascii_lowercase);
                    let name = name.map(|name| name.strip_suffix('.').map_or_else(|| name.clone(), str::to_owned));
                    return Ok(Hello { name, bytes: bytes.freeze() });
                }
                Err((error, mut alert)) => {
                    let mut told = Vec::new();
                    alert.write_all(&mut told)?;
                    let _ = stream.write_all(&told).await;
                    let _ = stream.shutdown().await;
                    return Err(error.into());
                }
            }
        }
        if bytes.len() >= MOST {
            return Err(NoHello::TooLarge);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::{ClientConfig, ClientConnection, RootCertStore};

    use super::*;

    fn hello(name: &str) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
        let name = name.to_owned().try_into().unwrap();
        let mut bytes = Vec::new();
        ClientConnection::new(Arc::new(config), name).unwrap().write_tls(&mut bytes).unwrap();
        bytes
    }

    async fn ask(pieces: Vec<Vec<u8>>, ends: bool) -> Result<Option<String>, String> {
        let (mut client, mut server) = tokio::io::duplex(256 * 1024);
        let client = async move {
            for piece in pieces {
                let _ = client.write_all(&piece).await;
                tokio::task::yield_now().await;
            }
            if ends {
                let _ = client.shutdown().await;
            }
            client
        };
        let (_client, hello) = tokio::join!(client, peek(&mut server, &[], Duration::from_secs(5)));
        hello.map(|hello| hello.name).map_err(|error| error.to_string())
    }

    #[tokio::test(start_paused = true)]
    async fn hardening_B1_to_B5_the_first_message_of_a_client() {
        let good = hello("a.example.com");
        let single = good.iter().map(|byte| vec![*byte]).collect::<Vec<_>>();
        let name = || Ok(Some("a.example.com".to_owned()));
        assert_eq!(ask(vec![good.clone()], false).await, name());
        assert_eq!(ask(single, false).await, name());
        // Some of it, or all of it, was read to see what is spoken.
        for first in [1, 50, good.len()] {
            let (mut client, mut server) = tokio::io::duplex(256 * 1024);
            client.write_all(&good[first..]).await.unwrap();
            let hello = peek(&mut server, &good[..first], Duration::from_secs(5)).await.unwrap();
            assert_eq!((hello.name.as_deref(), &hello.bytes[..]), (Some("a.example.com"), &good[..]));
        }
        assert_eq!(ask(vec![hello("198.18.0.1")], false).await, Ok(None));
        assert_eq!(ask(vec![], false).await, Err("handshake_timeout".to_owned()));
        assert_eq!(ask(vec![good[..50].to_vec()], false).await, Err("handshake_timeout".to_owned()));
        assert_eq!(ask(vec![b"GET / HTTP/1.1\r\n\r\n".to_vec()], false).await, Err("not_tls".to_owned()));
        assert!(ask(vec![good[..50].to_vec()], true).await.is_err());
        // A record that is longer than any.
        assert!(ask(vec![vec![22, 3, 1, 0xff, 0xff], vec![0; 70_000]], false).await.is_err());
        // A message of 10 MiB, in records as long as may be.
        let mut record = vec![22, 3, 1, 0x40, 0x00, 1, 0xa0, 0, 0];
        record.resize(5 + 0x4000, 0);
        let mut next = vec![22, 3, 1, 0x40, 0x00];
        next.resize(5 + 0x4000, 0);
        assert!(ask(std::iter::once(record).chain(std::iter::repeat_n(next, 8)).collect(), false).await.is_err());
    }
}
