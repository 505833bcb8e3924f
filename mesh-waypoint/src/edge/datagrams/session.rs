//! One client's datagrams: to which endpoint they go, by a socket that is connected to it, and how they are answered. It ends when nobody says anything for a
//! while, when the endpoint is not there (ICMP), or when what is said by now leads elsewhere or forbids it: then nothing goes either way, and the client's next
//! datagram begins another one.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use mesh_core::l7::balance::Ended;
use mesh_core::l7::{ClusterKey, Target};
use mesh_core::listener::Serves;
use mesh_runtime::lanes;
use mesh_transport::copy::ByteCounters;
use parking_lot::Mutex;
use socket2::SockRef;
use tokio::net::UdpSocket;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::port::{self, Port};
use super::table::{Client, Said};
use crate::downstream::{Bound, Downstream};
use crate::places::Permit;
use crate::record;
use crate::telemetry::facts::Facts;
use crate::telemetry::{Copied, Custom, Dropped, Flags, Measured, Protocol, Who, tap};
use crate::upstream::{Endpoint, choose};

/// Answers that are read before others have their turn.
const BATCH: usize = 32;

/// One client's datagrams.
pub(super) struct Session {
    pub(super) id: u64,
    socket: UdpSocket,
    place: (ClusterKey, u16),
    endpoint: Endpoint,
    downstream: Downstream,
    /// What was true when it was looked at last.
    bound: Mutex<Arc<Bound>>,
    talk: Mutex<Talk>,
    began: Instant,
    /// Counts the session while it lives.
    _copied: Copied,
    counters: Arc<ByteCounters>,
    over: CancellationToken,
    _permit: Permit,
    /// Its place among the sessions of the process, until it ends.
    room: Mutex<Option<OwnedSemaphorePermit>>,
}

/// What was said so far.
#[derive(Clone, Copy)]
struct Talk {
    said: Said,
    last_ms: u64,
    unreachable: bool,
}

/// A socket by which nobody but the endpoint is heard.
pub(super) fn connect(endpoint: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = match endpoint {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = std::net::UdpSocket::bind(any)?;
    socket.set_nonblocking(true)?;
    socket.connect(endpoint)?;
    UdpSocket::from_std(socket)
}

impl Session {
    pub(super) fn new(
        id: u64,
        socket: UdpSocket,
        place: (ClusterKey, u16),
        endpoint: Endpoint,
        (permit, room): (Permit, OwnedSemaphorePermit),
        downstream: Downstream,
        bound: Arc<Bound>,
    ) -> Self {
        let lane = &downstream.lane;
        let shared = Arc::clone(&lane.shared);
        let now_ms = shared.now_ms();
        let copied = {
            let who = who(&downstream, &endpoint);
            let custom = bound.plan().shape.as_ref().map(|shape| Custom::of(shape, |_| None)).unwrap_or_default();
            lane.meters.begin(&who, &custom, move || shared.now_ms())
        };
        Self {
            id,
            socket,
            place,
            endpoint,
            bound: Mutex::new(bound),
            talk: Mutex::new(Talk { said: Said::default(), last_ms: now_ms, unreachable: false }),
            began: Instant::now(),
            counters: copied.counters(),
            _copied: copied,
            downstream,
            over: CancellationToken::new(),
            _permit: permit,
            room: Mutex::new(Some(room)),
        }
    }

    /// Whether its datagrams may still go where they go: the route still leads there, the policies let it, the endpoint is still one. Looked at once for each
    /// view.
    pub(super) fn stays(&self, port: &Port) -> bool {
        let Ok(bound) = self.downstream.bound() else { return false };
        if Arc::ptr_eq(&self.bound.lock(), &bound) {
            return true;
        }
        let (cluster, number) = (&self.place.0, self.place.1);
        let routed = match bound.view.edge.listeners.datagrams(port.number).map(|listener| &listener.serves) {
            Some(Serves::Datagrams(Some(route))) => route.keeps(&Target::Cluster(cluster.clone()), number),
            _ => false,
        };
        let lane = &self.downstream.lane;
        let stays = routed
            && port.allowed(&self.downstream, &bound).is_ok()
            && bound.admits(&self.downstream.peer, &self.endpoint.workload, self.endpoint.address)
            && choose::keeps(
                &lane.shared.datagram_places,
                &port::wish(lane, &bound),
                (cluster, number),
                &bound.seen(&self.downstream.peer),
                &self.endpoint,
            );
        *self.bound.lock() = bound;
        stays
    }

    /// A datagram of the client. What has been said so far, or why it was dropped.
    pub(super) fn ask(&self, bytes: &[u8], now_ms: u64) -> Result<Said, Dropped> {
        // Not by tokio, which knows nothing yet of a socket that was opened just now, and would not even try.
        match SockRef::from(&self.socket).send(bytes) {
            Ok(_) => {}
            Err(error) => {
                return Err(match error.kind() {
                    ErrorKind::WouldBlock => Dropped::EndpointBusy,
                    _ if is_unreachable(&error) => Dropped::Unreachable,
                    _ => Dropped::System,
                });
            }
        }
        self.counters.received.fetch_add(bytes.len() as u64, Relaxed);
        let mut talk = self.talk.lock();
        talk.said.asked += 1;
        talk.last_ms = now_ms;
        Ok(talk.said)
    }

    /// The endpoint is not there.
    pub(super) fn failed(&self, now_ms: u64) {
        self.talk.lock().unreachable = true;
        self.endpoint.ended(Ended::Failed, now_ms);
    }

    /// Its answers are not waited for any more.
    pub(super) fn end(&self) {
        self.over.cancel();
        self.room.lock().take();
    }

    /// Answers that are there; false if the endpoint is not, or the session may not go on.
    fn relay(&self, port: &Port, client: &Client, peer: SocketAddr) -> bool {
        if self.over.is_cancelled() || !self.stays(port) {
            return false;
        }
        let mut scratch = port.scratch.lock();
        for _ in 0..BATCH {
            match self.socket.try_recv(&mut scratch) {
                Ok(length) => {
                    let now_ms = port.lane.shared.now_ms();
                    let first = {
                        let mut talk = self.talk.lock();
                        talk.said.answered += 1;
                        talk.last_ms = now_ms;
                        talk.said.answered == 1
                    };
                    if first {
                        self.endpoint.ended(Ended::Status(200), now_ms);
                    }
                    if port.answer(&scratch[..length], client, peer) {
                        self.counters.sent.fetch_add(length as u64, Relaxed);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                Err(error) => {
                    tracing::debug!(endpoint = %self.endpoint.address, %error, "an endpoint is not there");
                    // The datagram that it is said of went nowhere.
                    port.counts.dropped(Dropped::Unreachable, 1);
                    self.failed(port.lane.shared.now_ms());
                    return false;
                }
            }
        }
        true
    }

    /// The line of the log.
    fn tell(&self) {
        let bound = Arc::clone(&self.bound.lock());
        let (lane, talk) = (&self.downstream.lane, *self.talk.lock());
        let (duration, own) = (self.began.elapsed(), &lane.shared.own);
        let flags = if talk.unreachable { Flags::of("UF") } else { Flags::default() };
        let measured = Measured {
            status: 0,
            grpc_status: None,
            flags,
            protocol: Protocol::Http,
            duration,
            received: self.counters.received.load(Relaxed),
            sent: self.counters.sent.load(Relaxed),
            messages_received: talk.said.asked,
            messages_sent: talk.said.answered,
        };
        let (who, asked) = (who(&self.downstream, &self.endpoint), self.downstream.asked.to_string());
        let reached = record::reached(&self.endpoint);
        let facts = Facts {
            remembered: None,
            who: &who,
            measured: &measured,
            start: mesh_runtime::clock::now() - duration,
            head_ms: None,
            body_ms: None,
            http2: false,
            copied: Some("udp"),
            edge: true,
            scheme: "http",
            rule: "",
            endpoint: Some(&reached),
            answered: talk.said.answered > 0,
            said: None,
            unreached: None,
            attempts: 1,
            server_name: None,
            ended: None,
            asked: (&asked, self.place.0.port),
            own: &own.identity,
            pod: own.uid.rsplit('/').next().unwrap_or_default(),
            gateway: own.baggage.workload.as_deref().unwrap_or_default(),
            cluster_id: &own.place.cluster_id,
            trace: None,
        };
        bound.plan().log(&facts, lanes::current(), &mut lane.scratch.lock());
        if lane.shared.taps.is_on() {
            // All that is told of it was remembered, whenever it began.
            tap::offer(&lane.shared.taps, std::time::Instant::now(), &facts, Some(bound.plan()));
        }
    }

    /// When it is over if nobody says anything until then.
    fn until(&self, port: &Port) -> Instant {
        let talk = *self.talk.lock();
        let lasts = talk.said.lasts(&port.idle());
        let since = Duration::from_millis(port.lane.shared.now_ms().saturating_sub(talk.last_ms));
        Instant::now() + lasts.saturating_sub(since)
    }
}

/// Gives the client what its endpoint answers, until the session is over.
pub(super) async fn answers(port: Arc<Port>, client: Client, peer: SocketAddr, session: Arc<Session>) {
    let started = port.drain.started_token();
    loop {
        let until = session.until(&port);
        let draining = started.is_cancelled();
        tokio::select! {
            () = session.over.cancelled() => break,
            () = started.cancelled(), if !draining => {}
            () = sleep_until(until) => if session.until(&port) <= Instant::now() { break },
            ready = session.socket.readable() => {
                if ready.is_err() || !session.relay(&port, &client, peer) {
                    break;
                }
            }
        }
    }
    port.forget(&client, &session);
    session.tell();
}

fn who<'a>(downstream: &'a Downstream, endpoint: &'a Endpoint) -> Who<'a> {
    Who {
        peer: &downstream.peer,
        from: downstream.from(),
        outside: true,
        proved: None,
        client: None,
        endpoint: Some(&endpoint.workload),
        service: endpoint.service.as_ref(),
        asked: None,
    }
}

/// What ICMP said, or the kernel knows.
fn is_unreachable(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable)
}
