//! One pod's DNS server: the sockets around `handle`. Local answers are given where the query is read; a query for a nameserver becomes a
//! task, of which a pod has a bounded number, so that a slow nameserver delays nobody and a flood costs one bucket check per datagram.
//!
//! Started and stopped with the pod's proxy. Listeners are given open, in the pod's network namespace.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener as StdTcpListener, UdpSocket as StdUdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_runtime::{failpoint, task};
use mesh_transport::datagram::{DatagramSocket, Received};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::cache::{Cache, Cached, Key};
use super::environment::Environment;
use super::handle::{Action, handle};
use super::upstream;
use super::wire::{MAX_QUERY, Query, code};
use crate::telemetry::{Bucket, DnsCounters, DnsEvent, DnsProtocol, Rate, Telemetry};

/// Bounds of one pod.
#[derive(Clone, Copy, Debug)]
pub struct DnsConfig {
    /// Queries of a pod, local and forwarded, UDP and TCP. A busy resolver client asks a few hundred a second.
    pub rate: Rate,
    /// Queries of a pod that wait for a nameserver; each has a socket.
    pub in_flight: usize,
    /// TCP connections of a pod.
    pub connections: usize,
    /// How long a TCP connection may be silent, or take for one message.
    pub idle: Duration,
}

impl Default for DnsConfig {
    fn default() -> Self {
        Self {
            rate: Rate { rate: 5000.0, burst: 5000.0 },
            in_flight: 256,
            connections: 64,
            idle: Duration::from_secs(10),
        }
    }
}

/// A running server. Dropping it stops it.
#[derive(Debug)]
pub struct DnsServer {
    stop: CancellationToken,
}

impl DnsServer {
    /// Serves the listeners until stopped. Needs a runtime.
    ///
    /// # Errors
    /// If a listener cannot be registered with the runtime.
    pub fn serve<E: Environment>(
        environment: Arc<E>,
        config: DnsConfig,
        udp: Vec<StdUdpSocket>,
        tcp: Vec<StdTcpListener>,
        telemetry: Telemetry,
    ) -> io::Result<Self> {
        let pod = Arc::new(Pod {
            environment,
            telemetry,
            bucket: Mutex::new(Bucket::new(config.rate)),
            cache: Mutex::default(),
            in_flight: Arc::new(Semaphore::new(config.in_flight)),
            connections: Arc::new(Semaphore::new(config.connections)),
            config,
        });
        let stop = CancellationToken::new();
        for socket in udp {
            let socket = Arc::new(DatagramSocket::new(socket)?);
            task::spawn_vital(
                "dns-udp",
                stop.clone().run_until_cancelled_owned(datagrams(pod.clone(), socket, stop.clone())),
            );
        }
        for listener in tcp {
            listener.set_nonblocking(true)?;
            let listener = TcpListener::from_std(listener)?;
            task::spawn_vital(
                "dns-tcp",
                stop.clone().run_until_cancelled_owned(streams(pod.clone(), listener, stop.clone())),
            );
        }
        Ok(Self { stop })
    }

    /// Stops it; queries under way get no answer and are asked again of the original nameserver.
    pub fn stop(&self) {
        self.stop.cancel();
    }
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// What the tasks of one server share.
struct Pod<E> {
    environment: Arc<E>,
    telemetry: Telemetry,
    /// Held for a few arithmetic operations.
    bucket: Mutex<Bucket>,
    /// Held for a look-up or an insertion.
    cache: Mutex<Cache>,
    in_flight: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    config: DnsConfig,
}

/// What is left to do after the part that needs no waiting.
enum Next<'a> {
    Send(Vec<u8>),
    Ask { query: Query<'a>, nameserver: SocketAddr, counters: Arc<DnsCounters> },
    Nothing,
}

impl<E: Environment> Pod<E> {
    fn event(&self, event: DnsEvent) {
        self.telemetry.dns().event(event);
    }

    /// Whether the pod may ask now.
    fn admits(&self, peer: IpAddr, now: Instant) -> bool {
        let refusal = if !self.environment.owns(peer.to_canonical()) {
            DnsEvent::ForeignPeer
        } else if !self.bucket.lock().take(now) {
            DnsEvent::RateLimited
        } else {
            return true;
        };
        self.event(refusal);
        false
    }

    fn first<'a>(&self, message: &'a [u8], protocol: DnsProtocol, local: SocketAddr, now: Instant) -> Next<'a> {
        failpoint::pass("dns");
        let names = |host: &str, asked| self.environment.names(host, asked);
        let (query, reply) = match handle(message, protocol, names, &mut rand::rng()) {
            Action::Reply(query, reply) => (query, Some(reply)),
            Action::Forward(query) => (query, None),
            Action::Refuse(reply) => {
                self.event(DnsEvent::Malformed);
                return Next::Send(reply);
            }
            Action::Drop(refusal) => {
                self.event(refusal);
                return Next::Nothing;
            }
        };
        let source = self.environment.source();
        let counters = self.telemetry.dns().counters(query.kind, protocol, &source, self.telemetry.millis(now));
        counters.request();
        if let Some(reply) = reply {
            return Next::Send(reply);
        }
        let Some(nameserver) = self.environment.nameserver(local) else {
            self.event(DnsEvent::UnknownServer);
            return Next::Send(query.error(code::SERVER_FAILURE));
        };
        match self.cached(&query, nameserver, now) {
            Some(cached) if !cached.stale => {
                Next::Send(query.deliver(&cached.bytes, cached.age, limit(&query, protocol)))
            }
            _ => Next::Ask { query, nameserver, counters },
        }
    }

    fn cached(&self, query: &Query, nameserver: SocketAddr, now: Instant) -> Option<Cached> {
        self.cache.lock().find(&Key::of(query, nameserver)?, now)
    }

    /// The reply after asking the nameserver: its answer, else a stale one, else SERVFAIL.
    async fn ask(
        &self,
        query: Query<'_>,
        nameserver: SocketAddr,
        protocol: DnsProtocol,
        counters: &DnsCounters,
    ) -> Vec<u8> {
        let started = Instant::now();
        let answer = upstream::ask(&*self.environment, nameserver, &query, protocol).await;
        let now = Instant::now();
        counters.upstream(now - started, answer.is_ok());
        let limit = limit(&query, protocol);
        let failure = match answer {
            Ok(answer) if answer.truncated => return answer.bytes,
            Ok(answer) if answer.code != code::SERVER_FAILURE => {
                if let Some(key) = Key::of(&query, nameserver) {
                    self.cache.lock().store(key, &answer, now);
                }
                return query.deliver(&answer.bytes, 0, limit);
            }
            Ok(answer) => query.deliver(&answer.bytes, 0, limit),
            Err(error) => {
                tracing::debug!(target: "dns", %nameserver, %error, "nameserver did not answer");
                query.error(code::SERVER_FAILURE)
            }
        };
        match self.cached(&query, nameserver, now) {
            Some(cached) => {
                self.event(DnsEvent::Stale);
                query.deliver(&cached.bytes, cached.age, limit)
            }
            None => failure,
        }
    }
}

fn limit(query: &Query, protocol: DnsProtocol) -> usize {
    match protocol {
        DnsProtocol::Udp => query.datagram(),
        DnsProtocol::Tcp => usize::from(u16::MAX),
    }
}

async fn datagrams<E: Environment>(pod: Arc<Pod<E>>, socket: Arc<DatagramSocket>, stop: CancellationToken) {
    // One byte more than a query may have, so that longer ones are seen as such.
    let mut buffer = vec![0; MAX_QUERY + 1];
    loop {
        let received = match socket.receive(&mut buffer).await {
            Ok(received) => received,
            // An error of an earlier send, or no memory: the socket itself stays good.
            Err(error) => {
                tracing::debug!(target: "dns", %error, "receive failed");
                tokio::task::yield_now().await;
                continue;
            }
        };
        let now = Instant::now();
        if !pod.admits(received.peer.ip(), now) {
            continue;
        }
        let message = &buffer[..received.length.min(buffer.len())];
        match task::contain("dns-udp", || pod.first(message, DnsProtocol::Udp, received.local, now)) {
            None | Some(Next::Nothing) => {}
            Some(Next::Send(reply)) => send(&socket, &reply, received).await,
            Some(Next::Ask { query, nameserver, counters }) => {
                let Ok(permit) = pod.in_flight.clone().try_acquire_owned() else {
                    pod.event(DnsEvent::Overloaded);
                    send(&socket, &query.error(code::SERVER_FAILURE), received).await;
                    continue;
                };
                let (pod, socket, message) = (pod.clone(), socket.clone(), message.to_vec());
                let ask = async move {
                    let _permit = permit;
                    failpoint::pass("dns-query");
                    // Parsed a moment ago; a view cannot outlive the receive buffer, so the task has its own.
                    let Ok(query) = Query::parse(&message) else { return };
                    let reply = pod.ask(query, nameserver, DnsProtocol::Udp, &counters).await;
                    send(&socket, &reply, received).await;
                };
                task::spawn("dns-query", stop.clone().run_until_cancelled_owned(ask));
            }
        }
    }
}

async fn send(socket: &DatagramSocket, reply: &[u8], to: Received) {
    if let Err(error) = socket.send(reply, to.local.ip(), to.peer).await {
        tracing::debug!(target: "dns", peer = %to.peer, %error, "reply could not be sent");
    }
}

async fn streams<E: Environment>(pod: Arc<Pod<E>>, listener: TcpListener, stop: CancellationToken) {
    let mut pause = Duration::ZERO;
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // No descriptors or no memory: accept again at once would spin.
                pause = (pause * 2).clamp(Duration::from_millis(5), Duration::from_millis(100));
                tracing::debug!(target: "dns", %error, "accept failed");
                tokio::time::sleep(pause).await;
                continue;
            }
        };
        pause = Duration::ZERO;
        if !pod.environment.owns(peer.ip().to_canonical()) {
            pod.event(DnsEvent::ForeignPeer);
            continue;
        }
        let Ok(permit) = pod.connections.clone().try_acquire_owned() else {
            pod.event(DnsEvent::Overloaded);
            continue;
        };
        let pod = pod.clone();
        task::spawn(
            "dns-connection",
            stop.clone().run_until_cancelled_owned(async move {
                let _permit = permit;
                if let Err(error) = serve_stream(&pod, stream, peer.ip()).await {
                    tracing::debug!(target: "dns", %peer, %error, "connection closed");
                }
            }),
        );
    }
}

/// Messages of one connection, one after the other. Anything wrong closes it.
async fn serve_stream<E: Environment>(pod: &Pod<E>, mut stream: TcpStream, peer: IpAddr) -> io::Result<()> {
    let local = stream.local_addr()?;
    stream.set_nodelay(true)?;
    let mut message = vec![0; MAX_QUERY];
    let mut pending = Vec::new();
    loop {
        let Some(length) = timeout(pod.config.idle, next_message(&mut stream, &mut message)).await?? else {
            return Ok(());
        };
        let now = Instant::now();
        if !pod.admits(peer, now) {
            return Ok(());
        }
        pending.clear();
        let reply = match pod.first(&message[..length], DnsProtocol::Tcp, local, now) {
            Next::Nothing => return Ok(()),
            Next::Send(reply) => reply,
            Next::Ask { query, nameserver, counters } => match pod.in_flight.try_acquire() {
                Ok(_permit) => pod.ask(query, nameserver, DnsProtocol::Tcp, &counters).await,
                Err(_) => {
                    pod.event(DnsEvent::Overloaded);
                    query.error(code::SERVER_FAILURE)
                }
            },
        };
        let size = u16::try_from(reply.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        pending.extend_from_slice(&size.to_be_bytes());
        pending.extend_from_slice(&reply);
        timeout(pod.config.idle, stream.write_all(&pending)).await??;
    }
}

/// Reads one message; `None` at the end of the stream. A length that no query has is an error, and nothing of it is read.
async fn next_message(stream: &mut TcpStream, message: &mut [u8]) -> io::Result<Option<usize>> {
    let mut prefix = [0; 2];
    if stream.read(&mut prefix[..1]).await? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut prefix[1..]).await?;
    let length = usize::from(u16::from_be_bytes(prefix));
    let Some(room) = message.get_mut(..length).filter(|room| room.len() >= 12) else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("message of {length} bytes")));
    };
    stream.read_exact(room).await?;
    Ok(Some(length))
}
