//! One port on one lane: reads what comes, gives it to sessions, begins them, ends them. `edge::ports` opens and closes it.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use mesh_core::l7::{ClusterKey, Target};
use mesh_core::listener::Serves;
use mesh_runtime::{DrainToken, task};
use mesh_transport::datagram::{DatagramSocket, Received};
use parking_lot::Mutex;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio_util::sync::CancellationToken;

use super::session::{self, Session};
use super::table::{Client, Full, Idle, Limits, Table};
use crate::downstream::{Bound, Downstream};
use crate::engine::Lane;
use crate::entry::Entry;
use crate::places::Permit;
use crate::security::authorize;
use crate::telemetry::{Dropped, PortCounts};
use crate::upstream::Endpoint;
use crate::upstream::choose::{self, Wish};

/// No datagram is longer.
const LONGEST: usize = 65_535;
/// Datagrams that are read before others have their turn.
const BATCH: usize = 32;

/// One port on one lane.
pub(super) struct Port {
    pub(super) lane: Arc<Lane>,
    pub(super) number: u16,
    pub(super) counts: Arc<PortCounts>,
    pub(super) drain: DrainToken,
    socket: DatagramSocket,
    table: Mutex<Table<Arc<Session>>>,
    /// What sessions read into, one after the other.
    pub(super) scratch: Mutex<Vec<u8>>,
    /// What the kernel has lost so far.
    lost: AtomicU32,
    /// Told when a session has ended.
    ended: Notify,
}

/// Where the datagrams of a new session go.
struct Led {
    cluster: ClusterKey,
    port: u16,
    endpoint: Endpoint,
    permit: Permit,
    bound: Arc<Bound>,
}

/// Opens a port as many times as there are lanes: all addresses of both families, or of one where a node has one.
pub fn open(address: IpAddr, port: u16, count: usize) -> io::Result<Vec<std::net::UdpSocket>> {
    let one = |address: IpAddr| {
        let address = SocketAddr::new(address, port);
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        if address.ip() == IpAddr::from(Ipv6Addr::UNSPECIFIED) {
            socket.set_only_v6(false)?;
        }
        socket.set_reuse_port(true)?;
        socket.bind(&address.into())?;
        Ok::<_, io::Error>(std::net::UdpSocket::from(socket))
    };
    let all = |address: IpAddr| (0..count.max(1)).map(|_| one(address)).collect::<io::Result<Vec<_>>>();
    match all(address) {
        Err(error) if address == IpAddr::from(Ipv6Addr::UNSPECIFIED) => {
            all(Ipv4Addr::UNSPECIFIED.into()).map_err(|_| error)
        }
        opened => opened,
    }
}

/// Serves a port on this lane until it is closed, or the process has drained. Sessions end with it: without the socket there are no answers.
pub async fn serve(
    lane: Arc<Lane>,
    socket: std::net::UdpSocket,
    number: u16,
    closed: CancellationToken,
    drain: DrainToken,
) {
    let socket = match DatagramSocket::new(socket) {
        Ok(socket) => socket,
        Err(error) => return tracing::error!(port = number, %error, "a UDP port is lost"),
    };
    let settings = &lane.shared.settings;
    let limits = Limits { all: settings.datagram_sessions, of_client: settings.client_datagram_sessions };
    let port = Arc::new(Port {
        counts: lane.shared.datagrams.of(number),
        number,
        drain,
        socket,
        table: Mutex::new(Table::new(limits)),
        scratch: Mutex::new(vec![0; LONGEST]),
        lost: AtomicU32::new(0),
        ended: Notify::new(),
        lane,
    });
    port.run(&closed).await;
    for session in port.table.lock().clear() {
        session.end();
        port.counts.ended();
    }
}

impl Port {
    async fn run(self: &Arc<Self>, closed: &CancellationToken) {
        let mut buffer = vec![0; LONGEST];
        let (started, forced) = (self.drain.started_token(), self.drain.forced_token());
        loop {
            if started.is_cancelled() && self.table.lock().is_empty() {
                return;
            }
            tokio::select! {
                () = closed.cancelled() => return,
                () = forced.cancelled() => return,
                () = started.cancelled(), if !started.is_cancelled() => continue,
                () = self.ended.notified(), if started.is_cancelled() => continue,
                ready = self.socket.readable() => if let Err(error) = ready {
                    return tracing::error!(port = self.number, %error, "a UDP port is lost");
                },
            }
            for _ in 0..BATCH {
                match self.socket.try_receive(&mut buffer) {
                    Ok(came) => self.take(&buffer[..came.length.min(LONGEST)], &came),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => {
                        tracing::debug!(port = self.number, %error, "a datagram cannot be read");
                        self.counts.dropped(Dropped::System, 1);
                    }
                }
            }
        }
    }

    /// One datagram of a client.
    fn take(self: &Arc<Self>, bytes: &[u8], came: &Received) {
        let lost = came.lost.wrapping_sub(self.lost.swap(came.lost, Relaxed));
        if lost > 0 && came.lost > 0 {
            self.counts.dropped(Dropped::Queue, lost.into());
        }
        let from = SocketAddr::new(came.peer.ip().to_canonical(), came.peer.port());
        let client = Client { from, to: came.local.ip() };
        let known = self.table.lock().find(&client).cloned();
        if let Some(session) = known {
            if session.stays(self) {
                return self.forward(&client, &session, bytes);
            }
            self.forget(&client, &session);
        }
        match self.begin(client, came.peer) {
            Ok(session) => self.forward(&client, &session, bytes),
            Err(why) => self.counts.dropped(why, 1),
        }
    }

    fn forward(&self, client: &Client, session: &Arc<Session>, bytes: &[u8]) {
        match session.ask(bytes, self.lane.shared.now_ms()) {
            Ok(said) => {
                if said.talks() {
                    self.table.lock().talks(client);
                }
            }
            Err(why) => {
                self.counts.dropped(why, 1);
                if why == Dropped::Unreachable {
                    session.failed(self.lane.shared.now_ms());
                    self.forget(client, session);
                }
            }
        }
    }

    /// Begins a session.
    fn begin(self: &Arc<Self>, client: Client, peer: SocketAddr) -> Result<Arc<Session>, Dropped> {
        if self.drain.is_started() {
            return Err(Dropped::Draining);
        }
        let entry = Entry::new(self.number, client.from);
        let downstream = Downstream::at_edge(Arc::clone(&self.lane), entry, self.drain.clone());
        let led = self.lead(&downstream)?;
        self.table.lock().admits(&client).map_err(|full| match full {
            Full::All => Dropped::Sessions,
            Full::Client => Dropped::ClientSessions,
        })?;
        let socket = session::connect(led.endpoint.address).map_err(|error| {
            tracing::debug!(endpoint = %led.endpoint.address, %error, "there is no socket for a session");
            Dropped::System
        })?;
        let displaced = self.table.lock().make_room();
        if let Some(displaced) = displaced {
            self.displaced(&displaced);
        }
        let room = self.room()?;
        let Led { cluster, port, endpoint, permit, bound } = led;
        let place = (cluster, port);
        let made = |id| Arc::new(Session::new(id, socket, place, endpoint, (permit, room), downstream, bound));
        let session = Arc::clone(self.table.lock().begin(client, made));
        self.counts.began();
        task::spawn("session of datagrams", session::answers(Arc::clone(self), client, peer, Arc::clone(&session)));
        Ok(session)
    }

    /// A place among the sessions of the process. If there is none, one of this port that does not talk makes it: a flood at one port takes nothing from others,
    /// and nobody who talks makes room for a stranger.
    fn room(&self) -> Result<OwnedSemaphorePermit, Dropped> {
        let take = || Arc::clone(&self.lane.shared.datagram_rooms).try_acquire_owned();
        take().or_else(|_| {
            let silent = self.table.lock().displace_silent().ok_or(Dropped::SessionsTogether)?;
            self.displaced(&silent);
            // Another lane may have been faster.
            take().map_err(|_| Dropped::SessionsTogether)
        })
    }

    /// A session has made room.
    fn displaced(&self, session: &Session) {
        self.counts.displaced();
        self.counts.ended();
        session.end();
    }

    /// Where the datagrams of a client go.
    fn lead(&self, downstream: &Downstream) -> Result<Led, Dropped> {
        let lane = &self.lane;
        let bound = downstream.bound().map_err(|_| Dropped::NoRoute)?;
        let listener = bound.view.edge.listeners.datagrams(self.number).ok_or(Dropped::NoRoute)?;
        let Serves::Datagrams(Some(route)) = &listener.serves else { return Err(Dropped::NoRoute) };
        let place = route.draw(&mut *lane.rng.lock()).ok_or(Dropped::NoRoute)?;
        let cluster = match &place.target {
            Target::Cluster(key) => key.clone(),
            Target::Broken(why) => {
                tracing::debug!(origin = %route.origin, %why, "a datagram is dropped");
                return Err(Dropped::NoRoute);
            }
        };
        let port = place.port;
        self.allowed(downstream, &bound)?;
        let (endpoint, permit) = {
            let wish = wish(lane, &bound);
            let client = (&bound.seen(&downstream.peer), downstream.from().ip());
            let mut rng = lane.rng.lock();
            choose::datagrams(&lane.shared.datagram_places, &wish, (&cluster, port), client, &mut *rng).map_err(
                |why| {
                    tracing::debug!(origin = %route.origin, service = %cluster.service, %why, "a datagram is dropped");
                    Dropped::NoEndpoint
                },
            )?
        };
        if !bound.admits(&downstream.peer, &endpoint.workload, endpoint.address) {
            return Err(Dropped::Denied);
        }
        Ok(Led { cluster, port, endpoint, permit, bound })
    }

    /// Whether the policies of the gateway let the client in.
    pub(super) fn allowed(&self, downstream: &Downstream, bound: &Bound) -> Result<(), Dropped> {
        authorize::connection(downstream, bound).map_err(|(_, why)| {
            tracing::debug!(from = %downstream.from(), port = self.number, why, "a datagram is denied");
            Dropped::Denied
        })
    }

    /// Sends an answer to a client; what finds no room is dropped.
    pub(super) fn answer(&self, bytes: &[u8], client: &Client, peer: SocketAddr) -> bool {
        match self.socket.try_send(bytes, client.to, peer) {
            Ok(_) => return true,
            Err(error) if error.kind() == ErrorKind::WouldBlock => self.counts.dropped(Dropped::ClientBusy, 1),
            Err(error) => {
                tracing::debug!(client = %client.from, %error, "an answer cannot be sent");
                self.counts.dropped(Dropped::System, 1);
            }
        }
        false
    }

    /// Ends a session, if it is still the client's.
    pub(super) fn forget(&self, client: &Client, session: &Session) {
        if self.table.lock().remove(client, session.id).is_some() {
            self.counts.ended();
        }
        session.end();
        self.ended.notify_one();
    }

    /// How long sessions last now.
    pub(super) fn idle(&self) -> Idle {
        let settings = &self.lane.shared.settings;
        Idle {
            usual: settings.datagram_idle,
            answered: settings.datagram_answered,
            draining: self.drain.is_started().then_some(settings.drain_idle),
        }
    }
}

/// What decides about an endpoint.
pub(super) fn wish<'a>(lane: &'a Lane, bound: &'a Bound) -> Wish<'a> {
    let now_ms = lane.shared.now_ms();
    Wish::new(&bound.view, &lane.shared.own, now_ms)
}
