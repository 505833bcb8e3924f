//! The name that a client asks for in its first message of TLS, read without taking a byte from the connection. Called by whoever routes connections by it
//! and leaves the TLS to somebody else.

use std::io::{self, Cursor};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::sys::socket::{MsgFlags, recv};
use rustls::server::{Acceptor, ClientHello};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::Instant;

/// As much of a connection is looked at. A first message with post-quantum keys has some 2 KiB; a longer one than this has no name for us.
const LIMIT: usize = 16 * 1024;
/// The type of a record with which TLS begins.
const HANDSHAKE: u8 = 22;

/// Whether the first bytes of a connection, if there are any, are those of TLS.
#[must_use]
pub fn is_tls(bytes: &[u8]) -> bool {
    bytes.first() == Some(&HANDSHAKE)
}

/// What the first bytes of a connection say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hello {
    /// More of them are needed.
    More,
    /// It is no TLS, or no name is asked for.
    Nameless,
    /// This name, in lower case and without a final dot.
    Name(String),
}

/// Judges the first bytes of a connection.
#[must_use]
pub fn judge(bytes: &[u8]) -> Hello {
    let name = read(bytes, |hello| {
        let name = hello.server_name().map(|name| name.trim_end_matches('.').to_ascii_lowercase());
        name.filter(|name| !name.is_empty())
    });
    name.map_or(Hello::More, |name| name.flatten().map_or(Hello::Nameless, Hello::Name))
}

/// Whether the first message offers a protocol whose name begins so; `None`: more bytes are needed.
pub(super) fn offers(bytes: &[u8], begin: &[u8]) -> Option<bool> {
    let offered = read(bytes, |hello| hello.alpn().is_some_and(|mut names| names.any(|name| name.starts_with(begin))));
    offered.map(|offered| offered.unwrap_or(false))
}

/// What the first message says; inside, `None` if it is none. `None`: more bytes are needed.
fn read<T>(bytes: &[u8], say: impl FnOnce(&ClientHello<'_>) -> T) -> Option<Option<T>> {
    let mut acceptor = Acceptor::default();
    let mut rest = Cursor::new(bytes);
    // One read takes a record at most.
    while rest.position() < bytes.len() as u64 {
        match acceptor.read_tls(&mut rest) {
            Ok(1..) => {}
            _ => return Some(None),
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                return Some(Some(say(&accepted.client_hello())));
            }
            Ok(None) => {}
            Err(_) => return Some(None),
        }
    }
    (bytes.len() >= LIMIT).then_some(None)
}

/// Waits for the name in the first message of `stream`, at most for `limit`; `None` if there is none by then. What was looked at is still there to be read.
///
/// # Errors
/// Those of the connection.
pub async fn peek_server_name(stream: &TcpStream, limit: Duration) -> io::Result<Option<String>> {
    let judge = |bytes: &[u8]| match judge(bytes) {
        Hello::More => None,
        Hello::Nameless => Some(None),
        Hello::Name(name) => Some(Some(name)),
    };
    Ok(peek(stream, limit, judge).await?.flatten())
}

/// What is made of the first bytes of `stream`, without taking them; `None` if they do not come within `limit`.
pub(super) async fn peek<T>(
    stream: &TcpStream,
    limit: Duration,
    judge: impl Fn(&[u8]) -> Option<T>,
) -> io::Result<Option<T>> {
    let deadline = Instant::now() + limit;
    let mut buffer = vec![0; LIMIT];
    let mut seen = 0;
    loop {
        let Ok(ready) = tokio::time::timeout_at(deadline, stream.ready(Interest::READABLE)).await else {
            return Ok(None);
        };
        let ready = ready?;
        let before = seen;
        let looked = stream.try_io(Interest::READABLE, || {
            seen = recv(stream.as_raw_fd(), &mut buffer, MsgFlags::MSG_PEEK)?;
            // What is there already is not waited for again.
            if seen > before { Ok(()) } else { Err(io::ErrorKind::WouldBlock.into()) }
        });
        match looked {
            Ok(()) => {
                if let Some(judged) = judge(&buffer[..seen]) {
                    return Ok(Some(judged));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if ready.is_read_closed() {
                    return Ok(None);
                }
            }
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, ClientConnection, RootCertStore};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    const LONG: Duration = Duration::from_secs(10);

    fn hello(name: &str) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_name_is_found_when_all_of_the_message_is_there() {
        let bytes = hello("Shop.Example");
        for end in 0..bytes.len() {
            assert_eq!(judge(&bytes[..end]), Hello::More, "{end} of {}", bytes.len());
        }
        assert_eq!(judge(&bytes), Hello::Name("shop.example".to_owned()));
        assert_eq!(judge(&[&*bytes, b"more"].concat()), Hello::Name("shop.example".to_owned()));
        assert_eq!(judge(&hello("198.18.0.1")), Hello::Nameless);
        for other in [&b"GET / HTTP/1.1\r\n"[..], b"\0\0\0\0\0", b"SSH-2.0-x\r\n", &[0x16; 40], &[0xff; 40]] {
            assert_eq!(judge(other), Hello::Nameless, "{other:?}");
        }
        // A record that is cut into many, as some clients do it, is one message all the same.
        let cut: Vec<u8> =
            bytes[5..].chunks(100).flat_map(|part| [&[0x16, 3, 1, 0, part.len() as u8], part].concat()).collect();
        assert_eq!(judge(&cut), Hello::Name("shop.example".to_owned()));
    }

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (client, listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn nothing_is_taken_from_the_connection() {
        let (mut client, mut server) = pair().await;
        let bytes = hello("shop.example");
        let (first, second) = bytes.split_at(100);
        client.write_all(first).await.unwrap();
        let rest = async {
            server.readable().await.unwrap();
            client.write_all(second).await.unwrap();
        };
        let (name, ()) = tokio::join!(peek_server_name(&server, LONG), rest);
        assert_eq!(name.unwrap().as_deref(), Some("shop.example"));
        let mut read = vec![0; bytes.len()];
        server.read_exact(&mut read).await.unwrap();
        assert_eq!(read, bytes);
    }

    #[tokio::test]
    async fn who_says_nothing_or_ends_has_no_name() {
        let (_client, server) = pair().await;
        assert_eq!(peek_server_name(&server, Duration::from_millis(20)).await.unwrap(), None);
        let (mut client, server) = pair().await;
        client.write_all(&hello("shop.example")[..50]).await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(peek_server_name(&server, LONG).await.unwrap(), None);
        let (client, server) = pair().await;
        drop(client);
        assert_eq!(peek_server_name(&server, LONG).await.unwrap(), None);
    }
}
