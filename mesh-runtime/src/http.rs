//! Small HTTP/1.1 servers for operators: metrics, readiness, admin. Over TCP, or over a Unix socket of one user.
//!
//! Everything is limited: connections, those of one address, header bytes, body bytes, time to read a head, time to take the answer. A slow
//! or hostile client costs one connection slot for at most [`Limits::connection`], and never all of them. Handlers get the whole body and
//! give a whole response, or one that goes on ([`lasting`]) for a time that they say.

use std::borrow::Cow;
use std::collections::HashMap;
use std::convert::Infallible;
use std::ffi::OsStr;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http::{Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use crate::drain::DrainToken;
use crate::task;

/// A response with a body in memory, or one that goes on.
pub type Reply = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// Said of a reply: its connection may live so much longer.
#[derive(Clone, Copy)]
struct Lasting(Duration);

/// What one server allows.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once; further ones wait in the backlog.
    pub connections: usize,
    /// Connections at once from one address; further ones are closed.
    pub per_source: usize,
    /// Bytes of a request head.
    pub head: usize,
    /// Bytes of a request body.
    pub body: usize,
    /// Time to send a whole request head.
    pub head_time: Duration,
    /// Life of a connection, answer included; of one with an answer that goes on at least until that one's time is over, and no longer with each further one.
    pub connection: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections: 32,
            per_source: 8,
            head: 96 * 1024,
            body: 64 * 1024,
            head_time: Duration::from_secs(5),
            connection: Duration::from_secs(10),
        }
    }
}

/// Serves `handler` on a TCP listener until the drain starts.
pub async fn serve_tcp<H, F>(listener: TcpListener, limits: Limits, drain: DrainToken, handler: H)
where
    H: Fn(Request<Bytes>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Reply> + Send + 'static,
{
    let sources = Sources::default();
    let accept = || async {
        let (stream, peer) = listener.accept().await?;
        Ok(sources.admit(peer.ip(), limits.per_source).map(|admitted| (stream, Some(admitted))))
    };
    serve(limits, drain, handler, accept).await;
}

/// How many connections each address has. Locked when one comes or goes.
#[derive(Clone, Debug, Default)]
struct Sources(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One connection of an address, until it is dropped.
#[derive(Debug)]
struct Admitted {
    sources: Sources,
    source: IpAddr,
}

impl Sources {
    fn admit(&self, source: IpAddr, limit: usize) -> Option<Admitted> {
        let mut counts = self.0.lock();
        let count = counts.entry(source).or_default();
        (*count < limit).then(|| {
            *count += 1;
            Admitted { sources: self.clone(), source }
        })
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut counts = self.sources.0.lock();
        if let Some(count) = counts.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.source);
            }
        }
    }
}

/// Serves `handler` on a Unix listener until the drain starts; clients whose user is not `uid` are hung up on before a byte is read.
pub async fn serve_unix<H, F>(listener: UnixListener, uid: u32, limits: Limits, drain: DrainToken, handler: H)
where
    H: Fn(Request<Bytes>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Reply> + Send + 'static,
{
    let accept = || async {
        let (stream, _) = listener.accept().await?;
        match stream.peer_cred() {
            Ok(peer) if peer.uid() == uid => Ok(Some((stream, None))),
            Ok(peer) => {
                tracing::warn!(uid = peer.uid(), pid = peer.pid(), "refused a client of another user");
                Ok(None)
            }
            Err(_) => Ok(None),
        }
    };
    serve(limits, drain, handler, accept).await;
}

/// The user that this process runs as: whose sockets of the operator's are for him alone.
pub fn own_user() -> u32 {
    nix::unistd::getuid().as_raw()
}

/// Whether a request over a Unix socket may be a browser's, or of somebody whom a name has led here: no `Origin`, and no foreign `Host`, is served.
pub fn is_foreign<B>(request: &Request<B>) -> bool {
    let host = request.headers().get(header::HOST).map(|host| host.as_bytes());
    request.headers().contains_key(header::ORIGIN) || !matches!(host, None | Some(b"" | b"localhost" | b"admin"))
}

/// Where a Unix socket is that is called so: `@NAME` is in no folder, but in the network namespace; whoever is in it may connect.
pub fn unix_address(path: &Path) -> Cow<'_, Path> {
    match path.as_os_str().as_bytes().strip_prefix(b"@") {
        Some(name) => Cow::Owned(OsStr::from_bytes(&[b"\0", name].concat()).into()),
        None => Cow::Borrowed(path),
    }
}

/// A Unix socket, for this process's user alone, whom [`serve_unix`] knows. One of an earlier process makes room.
pub fn listen_unix(path: &Path) -> io::Result<UnixListener> {
    if let Cow::Owned(address) = unix_address(path) {
        return UnixListener::bind(address);
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// A plain text answer.
pub fn text(status: StatusCode, body: impl Into<String>) -> Reply {
    reply(status, "text/plain; charset=utf-8", body.into().into_bytes())
}

/// A JSON answer.
pub fn json(body: &serde_json::Value) -> Reply {
    reply(StatusCode::OK, "application/json", format!("{body:#}\n").into_bytes())
}

/// An answer of any type.
pub fn reply(status: StatusCode, content_type: &'static str, body: Vec<u8>) -> Reply {
    let mut reply = Response::new(Full::new(Bytes::from(body)).boxed_unsync());
    *reply.status_mut() = status;
    reply.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    reply
}

/// An answer that goes on for as long as `pieces` does, at most for `time`: then its connection is cut, whoever has not read it.
pub fn lasting(
    content_type: &'static str,
    time: Duration,
    pieces: impl Stream<Item = Bytes> + Send + 'static,
) -> Reply {
    let mut reply = Response::new(StreamBody::new(pieces.map(|piece| Ok(Frame::data(piece)))).boxed_unsync());
    reply.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    reply.extensions_mut().insert(Lasting(time));
    reply
}

async fn serve<H, F, S, A, AF>(limits: Limits, drain: DrainToken, handler: H, accept: A)
where
    H: Fn(Request<Bytes>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Reply> + Send + 'static,
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    A: Fn() -> AF,
    AF: Future<Output = io::Result<Option<(S, Option<Admitted>)>>>,
{
    let slots = Arc::new(Semaphore::new(limits.connections));
    loop {
        let accepted = async {
            // The semaphore is never closed.
            let slot = slots.clone().acquire_owned().await;
            (slot, accept().await)
        };
        let (slot, stream) = tokio::select! {
            () = drain.started() => return,
            accepted = accepted => accepted,
        };
        match stream {
            Ok(Some((stream, admitted))) => {
                let (handler, drain) = (handler.clone(), drain.clone());
                task::spawn("http connection", async move {
                    let _held = (slot, admitted);
                    tokio::select! {
                        () = drain.forced() => {}
                        () = connection(stream, limits, handler) => {}
                    }
                });
            }
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept an operator's connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Serves it until its time is over, which an answer may have made longer.
async fn connection<S, H, F>(stream: S, limits: Limits, handler: H)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Fn(Request<Bytes>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Reply> + Send + 'static,
{
    let (longer, mut until) = watch::channel(Instant::now() + limits.connection);
    let service = service_fn(move |request| answer(request, limits.body, handler.clone(), longer.clone()));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_time)
        .max_buf_size(limits.head)
        .keep_alive(true)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(served);
    loop {
        let end = *until.borrow_and_update();
        let ended = tokio::select! {
            ended = served.as_mut() => ended,
            () = tokio::time::sleep_until(end) => return,
            // The sender lives in what is served.
            _ = until.changed() => continue,
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "an operator's connection ended");
        }
        return;
    }
}

async fn answer<H, F>(
    request: Request<Incoming>,
    body_limit: usize,
    handler: H,
    longer: watch::Sender<Instant>,
) -> Result<Reply, Infallible>
where
    H: Fn(Request<Bytes>) -> F,
    F: Future<Output = Reply>,
{
    crate::failpoint::pass("http");
    let (parts, body) = request.into_parts();
    let reply = match Limited::new(body, body_limit).collect().await {
        Ok(body) => handler(Request::from_parts(parts, body.to_bytes())).await,
        Err(_) => text(StatusCode::PAYLOAD_TOO_LARGE, "request body too large or cut\n"),
    };
    if let Some(Lasting(time)) = reply.extensions().get() {
        longer.send_modify(|until| *until = (*until).max(Instant::now() + *time));
    }
    Ok(reply)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpStream, UnixStream};

    use super::*;
    use crate::drain::Drain;

    async fn start(limits: Limits) -> (std::net::SocketAddr, Drain) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, drain) = (listener.local_addr().unwrap(), Drain::new());
        let handler = |request: Request<Bytes>| async move { text(StatusCode::OK, request.uri().path().to_owned()) };
        tokio::spawn(serve_tcp(listener, limits, drain.token(), handler));
        (address, drain)
    }

    async fn exchange(address: std::net::SocketAddr, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let _ = stream.write_all(request).await;
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await.unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }

    #[tokio::test]
    async fn hardening_b122_oversize_heads_and_bodies_are_refused() {
        let (address, _drain) = start(Limits::default()).await;
        let good = exchange(address, b"GET /x HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await;
        assert!(good.starts_with("HTTP/1.1 200 ") && good.ends_with("/x"), "{good}");
        let long = format!("GET /{} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n", "a".repeat(80_000));
        assert!(exchange(address, long.as_bytes()).await.starts_with("HTTP/1.1 414 "));
        let huge = format!("GET /{} HTTP/1.1\r\nhost: localhost\r\n\r\n", "a".repeat(1 << 20));
        let refused = exchange(address, huge.as_bytes()).await;
        assert!(refused.is_empty() || refused.starts_with("HTTP/1.1 4"), "{refused}");
        let body =
            format!("POST / HTTP/1.1\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{}", 70_000, "b".repeat(70_000));
        let refused = exchange(address, body.as_bytes()).await;
        assert!(refused.is_empty() || refused.starts_with("HTTP/1.1 413 "), "{refused}");
    }

    #[tokio::test]
    async fn hardening_b126_slow_clients_lose_their_slot() {
        let limits = Limits {
            connections: 1,
            head_time: Duration::from_millis(100),
            connection: Duration::from_millis(300),
            ..Limits::default()
        };
        let (address, _drain) = start(limits).await;
        let mut slow = TcpStream::connect(address).await.unwrap();
        slow.write_all(b"GET / HT").await.unwrap();
        // The only slot is taken; it comes back when the slow client's time is up.
        let answer = exchange(address, b"GET /next HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
        assert!(answer.ends_with("/next"), "{answer}");
    }

    /// What goes on has a longer life than a connection, and an end, also if nobody reads it.
    #[tokio::test]
    async fn hardening_b126_what_goes_on_has_an_end() {
        let limits = Limits { connection: Duration::from_millis(50), ..Limits::default() };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, drain) = (listener.local_addr().unwrap(), Drain::new());
        let handler = |_| async {
            let pieces = futures_util::stream::unfold((), |()| async {
                tokio::time::sleep(Duration::from_millis(1)).await;
                Some((Bytes::from_static(&[b'x'; 1024]), ()))
            });
            lasting("text/plain", Duration::from_millis(400), pieces)
        };
        tokio::spawn(serve_tcp(listener, limits, drain.token(), handler));
        let began = std::time::Instant::now();
        let answer = exchange(address, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert!(answer.len() > 2048, "{}", answer.len());
        let took = began.elapsed();
        assert!(took >= Duration::from_millis(400), "{took:?}");
    }

    /// A connection that is kept has the time of its last answer, not that of all of them.
    #[tokio::test(start_paused = true)]
    async fn hardening_b126_what_goes_on_again_adds_nothing() {
        const TIME: Duration = Duration::from_secs(60);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, drain) = (listener.local_addr().unwrap(), Drain::new());
        let head_time = Duration::from_secs(3600);
        let limits = Limits { head_time, ..Limits::default() };
        let handler = |_| async { lasting("text/plain", TIME, futures_util::stream::empty()) };
        tokio::spawn(serve_tcp(listener, limits, drain.token(), handler));
        let mut stream = TcpStream::connect(address).await.unwrap();
        for _ in 0..3 {
            stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        }
        let began = Instant::now();
        let mut answers = String::new();
        stream.read_to_string(&mut answers).await.unwrap();
        assert_eq!(answers.matches("200 OK").count(), 3, "{answers}");
        assert!((TIME..2 * TIME).contains(&began.elapsed()), "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn hardening_b126_one_address_cannot_take_every_slot() {
        let limits = Limits { connections: 4, per_source: 3, connection: Duration::from_secs(60), ..Limits::default() };
        let (address, _drain) = start(Limits { head_time: Duration::from_secs(60), ..limits }).await;
        let greedy = || async {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind("127.0.0.9:0".parse().unwrap()).unwrap();
            let mut stream = socket.connect(address).await.unwrap();
            let _ = stream.write_all(b"GET / HT").await;
            stream
        };
        let held = [greedy().await, greedy().await, greedy().await];
        for _ in 0..20 {
            let mut refused = greedy().await;
            assert!(matches!(refused.read(&mut [0]).await, Ok(0) | Err(_)), "the fourth is closed");
        }
        // Others are served, and so is the greedy one when it has let go of something.
        let request = b"GET /next HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
        assert!(exchange(address, request).await.ends_with("/next"));
        drop(held);
        let served = async {
            loop {
                let mut stream = greedy().await;
                let _ = stream.write_all(b"TP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
                let mut answer = String::new();
                if stream.read_to_string(&mut answer).await.is_ok() && answer.starts_with("HTTP/1.1 200") {
                    return;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(30), served).await.unwrap();
    }

    #[tokio::test]
    async fn hardening_b127_other_users_are_hung_up_on() {
        let folder = std::env::temp_dir().join(format!("mesh-runtime-http-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("admin.sock");
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let drain = Drain::new();
        let me = nix::unistd::getuid().as_raw();
        let handler = |_| async { text(StatusCode::OK, "secret") };
        tokio::spawn(serve_unix(listener, me + 1, Limits::default(), drain.token(), handler));
        let mut stream = UnixStream::connect(&path).await.unwrap();
        let _ = stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(answer.is_empty());
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
