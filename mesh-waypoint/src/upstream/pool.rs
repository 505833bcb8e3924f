//! Connections of one lane to endpoints. Of HTTP/1.1 one serves one request at a time and waits here in between; of HTTP/2 many requests share one.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use mesh_runtime::task;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::choose::Endpoint;
use super::connection::{Active, Connection, Sender, Single};
use super::dial::{ConnectError, Wire, dial};
use super::key::{At, Key};
use crate::http::RequestBody;
use crate::http::io::Io;
use crate::peer::Peer;
use crate::shared::Shared;

/// Connections of HTTP/2 that one endpoint and client may have; with all their streams in use more requests are refused.
const MULTI: usize = 16;
/// Heads of the largest size that may come for one request, those of `1xx` among them; more and the connection is closed.
const HEADS: usize = 4;
/// An endpoint that does not answer a ping of HTTP/2 for this long is gone.
const PING: Duration = Duration::from_secs(20);

/// Connections of one lane.
#[derive(Default)]
pub struct Pool {
    inner: Mutex<Inner>,
    open: Arc<AtomicUsize>,
}

#[derive(Default)]
struct Inner {
    http1: HashMap<Arc<Key>, Vec<Idle>>,
    http2: HashMap<Arc<Key>, Multi>,
}

struct Idle {
    single: Single,
    since: Instant,
}

#[derive(Default)]
struct Multi {
    connections: Vec<Shareable>,
    /// Somebody connects; closed when that has ended.
    dialing: Option<watch::Receiver<()>>,
}

struct Shareable {
    sender: http2::SendRequest<RequestBody>,
    active: Arc<AtomicUsize>,
    since: Instant,
}

/// One connection of the lane.
struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

enum Choice {
    Use(Connection),
    Wait(watch::Receiver<()>),
    Dial(watch::Sender<()>),
}

impl Pool {
    /// A connection for one request: one that waits, or a new one. `fresh` asks for a new one.
    pub async fn connect(
        &self,
        shared: &Shared,
        endpoint: &Endpoint,
        peer: &Peer,
        http2: bool,
        fresh: bool,
    ) -> Result<Connection, ConnectError> {
        let at = At {
            uid: &endpoint.workload.uid,
            address: endpoint.address,
            generation: endpoint.generation,
            client: peer.address.ip(),
            identity: &peer.identity,
        };
        if http2 {
            return self.multiplexed(shared, endpoint, peer, &at, fresh).await;
        }
        if !fresh && let Some(connection) = self.waiting(&at) {
            return Ok(connection);
        }
        self.dial_http1(shared, endpoint, peer, &at).await
    }

    /// A connection for bytes.
    pub async fn dial(&self, shared: &Shared, endpoint: &Endpoint, peer: &Peer) -> Result<Wire, ConnectError> {
        dial(shared, endpoint, peer).await
    }

    /// Takes back what has served its request in order.
    pub fn give_back(&self, shared: &Shared, connection: Connection) {
        let Sender::Http1(single, key) = connection.sender else { return };
        if single.sender.is_closed() {
            return;
        }
        let mut inner = self.inner.lock();
        let idle = inner.http1.entry(key).or_default();
        // The one that has waited longest is the one that the endpoint closes first.
        if idle.len() >= shared.settings.idle_connections {
            idle.remove(0);
        }
        idle.push(Idle { single, since: Instant::now() });
    }

    /// Closes what has waited for so long.
    pub fn expire(&self, limit: Duration) {
        let now = Instant::now();
        let young = |since: Instant| now.saturating_duration_since(since) < limit;
        let mut inner = self.inner.lock();
        inner.http1.retain(|_, idle| {
            idle.retain(|idle| young(idle.since) && !idle.single.sender.is_closed());
            !idle.is_empty()
        });
        inner.http2.retain(|_, multi| {
            multi
                .connections
                .retain(|one| !one.sender.is_closed() && (young(one.since) || one.active.load(Relaxed) > 0));
            !multi.connections.is_empty() || multi.dialing.is_some()
        });
    }

    /// Connections that are open now.
    pub fn open(&self) -> usize {
        self.open.load(Relaxed)
    }

    fn waiting(&self, at: &At<'_>) -> Option<Connection> {
        let mut inner = self.inner.lock();
        let (key, idle) = inner.http1.get_key_value_mut(at)?;
        for index in (0..idle.len()).rev() {
            if idle[index].single.sender.is_closed() {
                idle.remove(index);
            } else if idle[index].single.sender.is_ready() {
                let Idle { single, .. } = idle.remove(index);
                return Some(Connection { sender: Sender::Http1(single, Arc::clone(key)), reused: true });
            }
            // It still sends the body of a request that was answered early.
        }
        None
    }

    fn count(&self, shared: &Shared) -> Result<Open, ConnectError> {
        let open = Open(Arc::clone(&self.open));
        let before = self.open.fetch_add(1, Relaxed);
        if before < shared.settings.upstream_connections { Ok(open) } else { Err(ConnectError::Overflow) }
    }

    async fn dial_http1(
        &self,
        shared: &Shared,
        endpoint: &Endpoint,
        peer: &Peer,
        at: &At<'_>,
    ) -> Result<Connection, ConnectError> {
        let open = self.count(shared)?;
        let watch = Arc::default();
        let io = TokioIo::new(Io::new(dial(shared, endpoint, peer).await?, bytes::Bytes::new(), Arc::clone(&watch)));
        let (sender, connection) =
            http1::Builder::new().max_header_size(shared.settings.header_bytes).handshake::<_, RequestBody>(io).await?;
        task::spawn("connection to an endpoint", async move {
            let _open = open;
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "a connection to an endpoint was lost");
            }
        });
        let single = Single { sender, watch, heads: HEADS * shared.settings.header_bytes };
        Ok(Connection { sender: Sender::Http1(single, at.key()), reused: false })
    }

    async fn multiplexed(
        &self,
        shared: &Shared,
        endpoint: &Endpoint,
        peer: &Peer,
        at: &At<'_>,
        fresh: bool,
    ) -> Result<Connection, ConnectError> {
        let mut waited = false;
        loop {
            match self.choose(at, shared.settings.streams as usize, fresh && !waited)? {
                Choice::Use(connection) => return Ok(connection),
                Choice::Wait(mut dialing) => {
                    if waited {
                        return Err(ConnectError::Shared);
                    }
                    waited = true;
                    let _ = dialing.changed().await;
                }
                Choice::Dial(done) => {
                    let made = self.dial_http2(shared, endpoint, peer).await;
                    let mut inner = self.inner.lock();
                    let multi = inner.http2.entry(at.key()).or_default();
                    multi.dialing = None;
                    drop(done);
                    let sender = made?;
                    let active = Arc::default();
                    let connection =
                        Connection { sender: Sender::Http2(sender.clone(), Active::of(&active)), reused: false };
                    multi.connections.push(Shareable { sender, active, since: Instant::now() });
                    return Ok(connection);
                }
            }
        }
    }

    fn choose(&self, at: &At<'_>, streams: usize, fresh: bool) -> Result<Choice, ConnectError> {
        let mut inner = self.inner.lock();
        if !inner.http2.contains_key(at) {
            inner.http2.insert(at.key(), Multi::default());
        }
        let Some(multi) = inner.http2.get_mut(at) else { return Err(ConnectError::Overflow) };
        multi.connections.retain(|one| !one.sender.is_closed());
        let free = multi.connections.iter_mut().find(|one| one.active.load(Relaxed) < streams);
        if let Some(one) = free.filter(|_| !fresh) {
            one.since = Instant::now();
            let sender = Sender::Http2(one.sender.clone(), Active::of(&one.active));
            return Ok(Choice::Use(Connection { sender, reused: true }));
        }
        // Whoever began may have given up.
        if let Some(dialing) = multi.dialing.as_ref().filter(|dialing| dialing.has_changed().is_ok()) {
            return Ok(Choice::Wait(dialing.clone()));
        }
        if multi.connections.len() >= MULTI {
            return Err(ConnectError::Overflow);
        }
        let (done, dialing) = watch::channel(());
        multi.dialing = Some(dialing);
        Ok(Choice::Dial(done))
    }

    async fn dial_http2(
        &self,
        shared: &Shared,
        endpoint: &Endpoint,
        peer: &Peer,
    ) -> Result<http2::SendRequest<RequestBody>, ConnectError> {
        let open = self.count(shared)?;
        let io = TokioIo::new(Io::new(dial(shared, endpoint, peer).await?, bytes::Bytes::new(), Arc::default()));
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(256 * 1024)
            .initial_connection_window_size(1024 * 1024)
            .max_header_list_size(u32::try_from(shared.settings.header_bytes).unwrap_or(u32::MAX))
            .keep_alive_interval(PING)
            .keep_alive_timeout(PING)
            .handshake::<_, RequestBody>(io)
            .await?;
        task::spawn("connection to an endpoint", async move {
            let _open = open;
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to an endpoint was lost");
            }
        });
        Ok(sender)
    }
}
