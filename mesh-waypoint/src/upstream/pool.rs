//! Connections of one lane to endpoints. Of HTTP/1.1 one serves one request at a time and waits here in between; of HTTP/2 many requests share one. What is said of
//! a place counts for all lanes together: how many connections it may have, how many requests may wait for one.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use hashbrown::HashMap;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use mesh_core::l7::balance::{Limit, Taken};
use mesh_core::l7::cluster::Pool as Said;
use mesh_runtime::task;
use parking_lot::Mutex;

use super::choose::Endpoint;
use super::connection::{Active, Connection, Sender, Single};
use super::dial::{ConnectError, Wire, dial};
use super::dialing::{Dial, Ride};
use super::key::{At, Key};
use super::life::{Life, Since};
use super::room::{Room, UNSAID, drive};
use crate::http::RequestBody;
use crate::http::io::{Io, Watch};
use crate::http::window::{STREAM_WINDOW, connection_window};
use crate::origination::Inside;
use crate::peer::Peer;
use crate::places::{Found, Permit, Slot};
use crate::shared::Shared;

/// Connections of HTTP/2 that one endpoint and client may have; with all their streams in use more requests are refused. A limit for what has gone wrong: how many
/// requests a place may have at once is the DestinationRule's to say, and those of a lane have a limit together.
const MULTI: usize = 1024;
/// Connections of HTTP/2 that are made for one endpoint and client side by side.
const DIALS: usize = 16;
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
    sender: Waits,
    watch: Arc<Watch>,
    heads: usize,
    since: Since,
    life: Life,
}

enum Waits {
    Here(http1::SendRequest<RequestBody>),
    /// Of a place with few connections: another lane may close it.
    ForAnybody(Arc<Slot>),
}

#[derive(Default)]
struct Multi {
    connections: Vec<Shareable>,
    /// Those that are being made.
    dials: Vec<Dial>,
    /// How many streams the endpoint let the latest have, if it has said so: another one will not have more.
    told: Option<usize>,
}

struct Shareable {
    sender: http2::SendRequest<RequestBody>,
    room: Room,
    active: Arc<AtomicUsize>,
    since: Since,
    life: Life,
}

/// One connection of the lane, and of its place.
struct Open {
    lane: Arc<AtomicUsize>,
    _permit: Option<Permit>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.lane.fetch_sub(1, Relaxed);
    }
}

enum Choice {
    Use(Connection),
    Wait(Ride),
    Dial,
}

/// What is said of an endpoint's place, if it is one of a place.
fn said(endpoint: &Endpoint) -> Option<(&Found, &Said)> {
    endpoint.found.as_ref().map(|found| (found, &found.now.policy().pool))
}

/// So many requests a connection of HTTP/2 may have at once.
fn streams(shared: &Shared, endpoint: &Endpoint) -> u32 {
    said(endpoint).map_or(u32::MAX, |(_, said)| said.streams).min(shared.settings.streams)
}

/// The place of a request among those that wait, if there is room.
fn pending(endpoint: &Endpoint) -> Result<Option<Taken>, ConnectError> {
    let Some((found, said)) = said(endpoint) else { return Ok(None) };
    found.place.usage().take(Limit::Pending, said.pending).map(Some).ok_or(ConnectError::Overflow)
}

impl Pool {
    /// A connection for one request: one that waits, or a new one. `fresh` asks for a new one.
    pub async fn connect(
        &self,
        shared: &Arc<Shared>,
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
            stranger: peer.stranger,
            origin: endpoint.origin().map_or(0, |origin| origin.id()),
            terms: endpoint.found.as_ref().map_or(0, |found| found.now.terms()),
        };
        // In boxes, as all that is large and that few requests wait for.
        if http2 {
            return Box::pin(self.multiplexed(shared, endpoint, peer, &at, fresh)).await;
        }
        let waiting = if fresh { None } else { self.waiting(&at) };
        match waiting {
            Some(connection) => Ok(connection),
            None => Box::pin(self.another(shared, endpoint, peer, &at, fresh)).await,
        }
    }

    /// One more connection of HTTP/1.1, or one that became free while that had to wait.
    async fn another(
        &self,
        shared: &Shared,
        endpoint: &Endpoint,
        peer: &Peer,
        at: &At<'_>,
        fresh: bool,
    ) -> Result<Connection, ConnectError> {
        let pending = pending(endpoint)?;
        let permit = match endpoint.found.as_ref() {
            None => None,
            Some(found) => loop {
                // Whoever frees one after this has looked tells it.
                let mut freed = std::pin::pin!(found.now.terms.freed.notified());
                freed.as_mut().enable();
                if let Some(permit) = Permit::take(found) {
                    endpoint.turn.end();
                    break Some(permit);
                }
                if !fresh && let Some(connection) = self.waiting(at) {
                    endpoint.turn.end();
                    return Ok(connection);
                }
                endpoint.turn.begin();
                // What waits for others has no room for us; whoever closes it tells us.
                found.now.terms.waiting.close_one();
                freed.await;
            },
        };
        let connection = self.dial_http1(shared, endpoint, peer, at, permit).await;
        drop(pending);
        connection
    }

    /// A connection for bytes.
    pub async fn dial(
        &self,
        shared: &Shared,
        endpoint: &Endpoint,
        peer: &Peer,
    ) -> Result<(Wire, Option<Permit>), ConnectError> {
        let permit = permit(endpoint)?;
        Ok((dial(shared, endpoint, peer, Inside::Bytes).await?, permit))
    }

    /// Takes back what has served its request in order.
    pub fn give_back(&self, shared: &Shared, connection: Connection, found: Option<&Found>) {
        let Sender::Http1(Single { sender, watch, heads }, key) = connection.sender else { return };
        if sender.is_closed() || !connection.life.goes_on() {
            return;
        }
        let few = found.filter(|found| found.now.policy().pool.connections < u32::MAX);
        let sender = match few {
            None => Waits::Here(sender),
            Some(_) => Waits::ForAnybody(Arc::new(Slot::new(Some(sender)))),
        };
        if let (Some(found), Waits::ForAnybody(slot)) = (few, &sender) {
            found.now.terms.waiting.add(slot);
        }
        let mut inner = self.inner.lock();
        let idle = inner.http1.entry(key).or_default();
        // The one that has waited longest is the one that the endpoint closes first.
        if idle.len() >= shared.settings.idle_connections {
            idle.remove(0);
        }
        idle.push(Idle { sender, watch, heads, since: Since::now(), life: connection.life });
        drop(inner);
        if let Some(found) = few {
            found.now.terms.freed.notify_one();
        }
    }

    /// Closes what has waited for too long.
    pub fn expire(&self) {
        let young = |since: Since, life: &Life| !life.has_waited(since) && life.is_young();
        let mut inner = self.inner.lock();
        inner.http2.values_mut().for_each(Multi::harvest);
        inner.http1.retain(|_, idle| {
            idle.retain(|idle| young(idle.since, &idle.life) && !idle.sender.is_closed());
            !idle.is_empty()
        });
        inner.http2.retain(|_, multi| {
            multi
                .connections
                .retain(|one| !one.sender.is_closed() && (young(one.since, &one.life) || one.active.load(Relaxed) > 0));
            !multi.connections.is_empty() || !multi.dials.is_empty()
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
            let one = &idle[index];
            if one.sender.is_closed() || one.life.has_waited(one.since) || !one.life.goes_on() {
                idle.remove(index);
            } else if one.sender.is_ready() {
                let Idle { sender, watch, heads, life, .. } = idle.remove(index);
                // Another lane may have closed it just now.
                let Some(sender) = sender.take() else { continue };
                let sender = Sender::Http1(Single { sender, watch, heads }, Arc::clone(key));
                return Some(Connection { sender, reused: true, life: life.next() });
            }
            // It still sends the body of a request that was answered early.
        }
        None
    }

    fn count(&self, shared: &Shared, permit: Option<Permit>) -> Result<Open, ConnectError> {
        let before = self.open.fetch_add(1, Relaxed);
        let open = Open { lane: Arc::clone(&self.open), _permit: permit };
        if before < shared.settings.upstream_connections { Ok(open) } else { Err(ConnectError::Overflow) }
    }

    async fn dial_http1(
        &self,
        shared: &Shared,
        endpoint: &Endpoint,
        peer: &Peer,
        at: &At<'_>,
        permit: Option<Permit>,
    ) -> Result<Connection, ConnectError> {
        let open = self.count(shared, permit)?;
        let watch = Arc::default();
        let wire = dial(shared, endpoint, peer, Inside::Http1).await?;
        // With the stream: what becomes another protocol goes on after the connection of HTTP, and counts as long.
        let io = TokioIo::new(Io::new(wire, bytes::Bytes::new(), Arc::clone(&watch)).holding(open));
        let (sender, connection) =
            http1::Builder::new().max_header_size(shared.settings.header_bytes).handshake::<_, RequestBody>(io).await?;
        task::spawn("connection to an endpoint", async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "a connection to an endpoint was lost");
            }
        });
        let single = Single { sender, watch, heads: HEADS * shared.settings.header_bytes };
        let life = Life::begin(endpoint, &shared.settings);
        Ok(Connection { sender: Sender::Http1(single, at.key()), reused: false, life })
    }

    async fn multiplexed(
        &self,
        shared: &Arc<Shared>,
        endpoint: &Endpoint,
        peer: &Peer,
        at: &At<'_>,
        fresh: bool,
    ) -> Result<Connection, ConnectError> {
        let (mut rounds, mut failed) = (0, None);
        let streams = streams(shared, endpoint);
        // So many requests one connection takes that is made now.
        let seats = said(endpoint).map_or(streams, |(_, said)| said.requests_per_connection.min(streams));
        let (streams, seats) = (streams as usize, seats as usize);
        let mut waits = None;
        loop {
            let choice = match self.choose(at, streams, seats, (fresh, rounds > 0))? {
                Choice::Use(connection) => return Ok(connection),
                choice => choice,
            };
            // More requests may wait than the next connection has streams, so one wait is not enough. Each brings a connection, or an end.
            if rounds == MULTI {
                return Err(ConnectError::Overflow);
            }
            rounds += 1;
            if waits.is_none() {
                waits = pending(endpoint)?;
            }
            let ride = match (choice, failed) {
                // Of those who have waited in vain one tries again, for all of them: an endpoint that is gone is not dialled by each in turn.
                (Choice::Wait(_), Some(error)) => return Err(error),
                (Choice::Wait(ride), None) => ride,
                _ => match self.begin(shared, endpoint, peer, at) {
                    Ok(ride) => ride,
                    // Who wants a fresh one is not helped by one that there is.
                    Err(error) => return (!fresh).then(|| self.crowded(at, streams)).flatten().ok_or(error),
                },
            };
            failed = match ride.ended().await {
                Ok(()) => None,
                Err(error @ ConnectError::Shared) => Some(error),
                Err(error) => return Err(error),
            };
        }
    }

    /// A connection that has a stream free, one that is being made and has, or neither.
    /// Who wants a fresh one gets none until one was made for it, and the latest then.
    fn choose(
        &self,
        at: &At<'_>,
        streams: usize,
        seats: usize,
        (fresh, made): (bool, bool),
    ) -> Result<Choice, ConnectError> {
        let mut inner = self.inner.lock();
        if !inner.http2.contains_key(at) {
            inner.http2.insert(at.key(), Multi::default());
        }
        let Some(multi) = inner.http2.get_mut(at) else { return Err(ConnectError::Overflow) };
        multi.harvest();
        multi.connections.retain(|one| !one.sender.is_closed() && one.life.goes_on());
        let has_room = |one: &&mut Shareable| one.active.load(Relaxed) < streams.min(one.room.streams());
        let mut free = multi.connections.iter_mut().filter(has_room);
        let free = if fresh { free.next_back() } else { free.next() };
        if let Some(one) = free.filter(|_| !fresh || made) {
            return Ok(Choice::Use(one.used()));
        }
        let seats = multi.told.map_or(seats, |told| seats.min(told));
        if let Some(dial) = multi.dials.iter().find(|dial| dial.riders() < seats) {
            return Ok(Choice::Wait(dial.ride()));
        }
        let is_full = multi.dials.len() >= DIALS || multi.connections.len() + multi.dials.len() >= MULTI;
        match multi.least() {
            _ if !is_full => Ok(Choice::Dial),
            Some(dial) => Ok(Choice::Wait(dial.ride())),
            None => Err(ConnectError::Overflow),
        }
    }

    /// Where there may be no more connections: the one with the fewest streams, of which the endpoint takes one more when another has ended.
    fn crowded(&self, at: &At<'_>, streams: usize) -> Option<Connection> {
        let mut inner = self.inner.lock();
        let all = inner.http2.get_mut(at)?.connections.iter_mut();
        let is_open = |one: &&mut Shareable| !one.sender.is_closed() && one.life.goes_on();
        let open = all.filter(|one| is_open(one) && one.active.load(Relaxed) < streams);
        Some(open.min_by_key(|one| one.active.load(Relaxed))?.used())
    }

    /// Begins to make one more, in a task of its own: the request that asks for it may have no time left while others have. If there may be no more it waits for
    /// one that is being made.
    fn begin(&self, shared: &Arc<Shared>, endpoint: &Endpoint, peer: &Peer, at: &At<'_>) -> Result<Ride, ConnectError> {
        let open = permit(endpoint).and_then(|permit| self.count(shared, permit));
        let mut inner = self.inner.lock();
        let multi = inner.http2.entry(at.key()).or_default();
        let open = match open {
            Ok(open) => open,
            Err(error) => return multi.least().map(Dial::ride).ok_or(error),
        };
        let (shared, endpoint, peer) = (Arc::clone(shared), endpoint.uncounted(), peer.clone());
        let life = Life::begin(&endpoint, &shared.settings).unused();
        let dial = Dial::begin(life, async move { dial_http2(&shared, &endpoint, &peer, open).await });
        let ride = dial.ride();
        multi.dials.push(dial);
        Ok(ride)
    }
}

impl Shareable {
    /// For one request more.
    fn used(&mut self) -> Connection {
        (self.since, self.life) = (Since::now(), self.life.next());
        let sender = Sender::Http2(self.sender.clone(), Active::of(&self.active));
        Connection { sender, reused: !self.life.is_first(), life: self.life }
    }
}

impl Multi {
    /// Takes over connections that have been made.
    fn harvest(&mut self) {
        if self.dials.is_empty() {
            return;
        }
        for dial in self.dials.extract_if(.., |dial| dial.is_over()) {
            if let Some((sender, room, life)) = dial.take() {
                self.told = Some(room.streams()).filter(|streams| *streams != usize::MAX);
                self.connections.push(Shareable { sender, room, active: Arc::default(), since: Since::now(), life });
            }
        }
    }

    /// Of those that are being made the one that the fewest wait for.
    fn least(&self) -> Option<&Dial> {
        self.dials.iter().min_by_key(|dial| dial.riders())
    }
}

/// Makes a connection of HTTP/2.
async fn dial_http2(
    shared: &Shared,
    endpoint: &Endpoint,
    peer: &Peer,
    open: Open,
) -> Result<(http2::SendRequest<RequestBody>, Room), ConnectError> {
    let wire = dial(shared, endpoint, peer, Inside::Http2).await?;
    let io = TokioIo::new(Io::new(wire, bytes::Bytes::new(), Arc::default()));
    // It writes something, which an endpoint may not take.
    let limit = shared.settings.connect_timeout;
    let begun = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(connection_window(streams(shared, endpoint)))
        .initial_max_send_streams(UNSAID)
        .max_header_list_size(u32::try_from(shared.settings.header_bytes).unwrap_or(u32::MAX))
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING)
        .handshake::<_, RequestBody>(io);
    let begun = tokio::time::timeout(limit, begun).await;
    let (sender, connection) = begun.map_err(|_| ConnectError::Timeout)??;
    let (connection, room, first) = drive(connection);
    task::spawn("connection to an endpoint", async move {
        let _open = open;
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to an endpoint was lost");
        }
    });
    // Whoever waits for it would have as many streams as wait, and what the endpoint does not take would hang.
    first.said().await;
    Ok((sender, room))
}

/// A connection more of the endpoint's place, for what does not wait for one.
fn permit(endpoint: &Endpoint) -> Result<Option<Permit>, ConnectError> {
    let Some(found) = &endpoint.found else { return Ok(None) };
    let closed = || found.now.terms.waiting.close_one().then(|| Permit::take(found)).flatten();
    let permit = Permit::take(found).or_else(closed);
    permit.map(Some).ok_or(ConnectError::Overflow)
}

impl Waits {
    fn is_closed(&self) -> bool {
        match self {
            Self::Here(sender) => sender.is_closed(),
            Self::ForAnybody(slot) => slot.lock().as_ref().is_none_or(http1::SendRequest::is_closed),
        }
    }

    fn is_ready(&self) -> bool {
        match self {
            Self::Here(sender) => sender.is_ready(),
            Self::ForAnybody(slot) => slot.lock().as_ref().is_some_and(http1::SendRequest::is_ready),
        }
    }

    fn take(self) -> Option<http1::SendRequest<RequestBody>> {
        match self {
            Self::Here(sender) => Some(sender),
            Self::ForAnybody(slot) => slot.lock().take(),
        }
    }
}
