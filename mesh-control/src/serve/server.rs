//! Aggregated discovery over gRPC: one task per stream moves messages between the client, its session and the current world. The method is served
//! without the generated code, which would make a copy of every response for every stream.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::HeaderValue;
use http::header::CONTENT_TYPE;
use mesh_proto::discovery as wire;
use mesh_runtime::drain::DrainToken;
use mesh_runtime::task;
use parking_lot::Mutex;
use prost_types::value::Kind as ValueKind;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot, watch};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service};
use tonic::server::NamedService;

use super::convergence::Convergence;
use super::request::Requests;
use super::response::{Response, Responses};
use super::session::{Action, Progress, Session};
use super::throttle::{self, Place, Throttle};
use crate::access::check::Access;
use crate::access::pace::{Lines, Pace};
use crate::access::token::Caller;
use crate::access::who::{Share, Who};
use crate::clock::unix;
use crate::diagnosis::printable;
use crate::metrics::Metrics;
use crate::world::World;

const METHOD: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
/// Streams at once.
const MAX_STREAMS: usize = 10_000;
/// Of waypoints, apart from the agents'.
const MAX_OF_WAYPOINTS: usize = 2_000;
/// Of the waypoints of one namespace: as many as all processes of four Gateways have.
const MAX_OF_NAMESPACE: usize = 256;
/// A client that does not take a response for so long is gone.
const SEND_DEADLINE: Duration = Duration::from_secs(60);
/// A client that has not acknowledged a response after this is sent none any more, and what it was sent may not stay in memory: it is gone, too.
pub const ANSWER: Duration = Duration::from_secs(300);
/// Requests that a stream may make in a second: an agent asks and takes back one for each connection to an address that it does not know.
const REQUESTS: u32 = 500;

/// One stream, as the status shows it.
#[derive(Clone, Debug, Serialize)]
pub struct StreamStatus {
    /// The node or waypoint that the token is for.
    pub node: String,
    /// What the client calls itself.
    pub id: String,
    /// Seconds since 1970.
    pub since: u64,
    /// By kind.
    pub kinds: BTreeMap<&'static str, Progress>,
}

/// All streams.
#[derive(Debug, Default)]
pub struct Streams {
    next: AtomicU64,
    open: Mutex<BTreeMap<u64, Entered>>,
}

/// One of them.
#[derive(Debug)]
struct Entered {
    status: StreamStatus,
    share: Share,
    /// Dropped when it has to make room.
    _stay: oneshot::Sender<()>,
}

impl Streams {
    /// All streams, oldest first.
    pub fn list(&self) -> Vec<StreamStatus> {
        self.open.lock().values().map(|entered| entered.status.clone()).collect()
    }

    /// Enters a stream of somebody; the receiver ends when it has to make room: with more than it may have, the oldest ends, which is the one that nobody
    /// reads. `None` if there is no room at all.
    fn enter(&self, status: StreamStatus, who: &Who) -> Option<(u64, oneshot::Receiver<()>)> {
        let mut open = self.open.lock();
        let own: Vec<u64> = open.iter().filter(|(_, e)| e.status.node == status.node).map(|(key, _)| *key).collect();
        let surplus = (own.len() + 1).saturating_sub(who.streams());
        own.into_iter().take(surplus).for_each(|oldest| drop(open.remove(&oldest)));
        let share = who.share();
        let (mut alike, mut shared) = (0, 0);
        for entered in open.values() {
            alike += usize::from(std::mem::discriminant(&entered.share) == std::mem::discriminant(&share));
            shared += usize::from(entered.share == share);
        }
        if !has_room(&share, alike, shared) {
            return None;
        }
        let key = self.next.fetch_add(1, Ordering::Relaxed);
        let (stay, replaced) = oneshot::channel();
        open.insert(key, Entered { status, share, _stay: stay });
        Some((key, replaced))
    }

    fn update(&self, key: u64, change: impl FnOnce(&mut StreamStatus)) {
        if let Some(entered) = self.open.lock().get_mut(&key) {
            change(&mut entered.status);
        }
    }
}

/// Whether there is room for another stream out of a share, of which there are so many, and so many of its kind.
fn has_room(share: &Share, alike: usize, shared: usize) -> bool {
    match share {
        Share::Node(_) => alike < MAX_STREAMS,
        Share::Waypoints(_) => alike < MAX_OF_WAYPOINTS && shared < MAX_OF_NAMESPACE,
    }
}

/// The service.
#[derive(Clone, Debug)]
pub struct Discovery {
    /// Who may call.
    pub access: Access,
    /// What there is to send.
    pub world: watch::Receiver<Arc<World>>,
    /// Who is served.
    pub streams: Arc<Streams>,
    /// How much is sent at once.
    pub throttle: Throttle,
    /// How much is read at once of what clients have.
    pub reading: Throttle,
    /// How long a response may stay without an answer.
    pub answer: Duration,
    /// Refusals in the log.
    pub lines: Lines,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Ends the streams.
    pub drain: DrainToken,
}

impl NamedService for Discovery {
    const NAME: &'static str = "envoy.service.discovery.v3.AggregatedDiscoveryService";
}

impl<B> Service<http::Request<B>> for Discovery
where
    B: hyper::body::Body + Send + 'static,
    B::Error: std::fmt::Display,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let (head, body) = request.into_parts();
        let answer = match (head.uri.path() == METHOD, head.extensions.get::<Caller>()) {
            (false, _) => Err(Status::unimplemented("no such method")),
            (true, None) => Err(Status::unauthenticated("authentication failed")),
            (true, Some(caller)) => self.stream(caller.clone(), Requests::new(body)),
        };
        Box::pin(std::future::ready(Ok(answer.unwrap_or_else(|status| status.into_http()))))
    }
}

impl Discovery {
    /// Begins a stream.
    fn stream(&self, caller: Caller, requests: Requests) -> Result<http::Response<Body>, Status> {
        let status = StreamStatus {
            node: caller.name.to_string(),
            id: String::new(),
            since: u64::try_from(unix(mesh_runtime::clock::now())).unwrap_or(0),
            kinds: BTreeMap::new(),
        };
        // Not "resource exhausted": that is what a client hears whose request is too large.
        let entered = self.streams.enter(status, &caller.who).ok_or_else(|| Status::unavailable("too many streams"))?;
        // One response is in the socket, one waits: what changes meanwhile is merged in the session.
        let (sender, receiver) = mpsc::channel(2);
        let stream = StreamTask {
            discovery: self.clone(),
            caller,
            requests,
            sender,
            place: None,
            convergence: Convergence::default(),
        };
        task::spawn("xds-stream", stream.run(entered));
        let mut response = http::Response::new(Body::new(Responses::new(receiver)));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        Ok(response)
    }
}

struct StreamTask {
    discovery: Discovery,
    caller: Caller,
    requests: Requests,
    sender: mpsc::Sender<Result<Response, Status>>,
    /// Of the large responses under way.
    place: Option<Place>,
    convergence: Convergence,
}

/// Removes the stream from the list, however it ends.
struct Listed<'a> {
    streams: &'a Streams,
    key: u64,
    metrics: &'a Metrics,
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        self.streams.open.lock().remove(&self.key);
        self.metrics.streams.dec();
    }
}

impl StreamTask {
    async fn run(mut self, (key, replaced): (u64, oneshot::Receiver<()>)) {
        let discovery = self.discovery.clone();
        discovery.metrics.streams.inc();
        let _listed = Listed { streams: &discovery.streams, key, metrics: &discovery.metrics };
        tracing::info!(node = %self.caller.name, "xds stream opened");
        let caller = self.caller.clone();
        let end = tokio::select! {
            end = self.serve(&discovery, key) => end,
            why = discovery.access.end_of(&caller, mesh_runtime::clock::now()) => Err(why),
            _ = replaced => Err(Status::unavailable("newer streams of the same client have taken its place")),
        };
        if let Err(status) = &end {
            let _ = self.sender.try_send(Err(status.clone()));
        }
        let reason = end.err().map_or_else(|| "closed by the client".to_owned(), |s| s.message().to_owned());
        tracing::info!(node = %self.caller.name, %reason, "xds stream ended");
    }

    async fn serve(&mut self, discovery: &Discovery, key: u64) -> Result<(), Status> {
        let mut worlds = discovery.world.clone();
        let mut session = Session::new(worlds.borrow_and_update().clone(), self.caller.who.audience());
        let mut is_first = true;
        let mut pace = Pace::new(REQUESTS);
        // The oldest response without an answer, and since when it has been that.
        let mut oldest = (None, Instant::now());
        let share = self.caller.who.share();
        let mut reading = tokio::select! {
            place = discovery.reading.place(&share) => place,
            () = discovery.drain.started() => return Err(Status::unavailable("shutting down")),
        };
        loop {
            if session.oldest_pending() != oldest.0 {
                oldest = (session.oldest_pending(), Instant::now());
            }
            let overdue = tokio::time::sleep_until((oldest.1 + discovery.answer).into());
            let heard = tokio::select! {
                request = self.requests.next() => {
                    let Some(request) = request? else { return Ok(()) };
                    tokio::time::sleep(pace.delay(Instant::now())).await;
                    if is_first {
                        self.introduce(discovery, key, &request.message)?;
                        is_first = false;
                    }
                    let heard = session.request(request);
                    if session.knows_all() {
                        drop(reading.take());
                    }
                    heard
                }
                changed = worlds.changed() => {
                    changed.map_err(|_| Status::unavailable("shutting down"))?;
                    self.renew(&mut session, &mut worlds);
                    Vec::new()
                }
                () = overdue, if oldest.0.is_some() => {
                    return Err(Status::deadline_exceeded("the client does not answer"));
                }
                () = discovery.drain.started() => return Err(Status::unavailable("shutting down")),
            };
            for took in self.convergence.answered(session.oldest_pending(), Instant::now()) {
                discovery.metrics.converged(took);
            }
            if !session.is_waiting() {
                // It has answered everything: what was sent has been read.
                self.place = None;
            }
            let since = Instant::now();
            tokio::select! {
                done = self.answer(discovery, heard, &mut session, &mut worlds) => done?,
                () = discovery.drain.started() => return Err(Status::unavailable("shutting down")),
            }
            // While it waits for a place nobody listens: an answer may have come long ago.
            oldest.1 += since.elapsed();
            discovery.streams.update(key, |status| status.kinds = session.progress());
        }
    }

    /// Acts on what was heard, then sends what there is to send. Nothing large is built without a place.
    async fn answer(
        &mut self,
        discovery: &Discovery,
        heard: Vec<Action>,
        session: &mut Session,
        worlds: &mut watch::Receiver<Arc<World>>,
    ) -> Result<(), Status> {
        for action in heard {
            self.act(discovery, action).await?;
        }
        let is_large = throttle::is_large(session.unsent());
        if is_large {
            // Nobody waits for a second place while holding one.
            self.place = None;
            let share = self.caller.who.share();
            tokio::select! {
                place = discovery.throttle.place(&share) => self.place = place,
                () = self.sender.closed() => return Err(Status::cancelled("the client is gone")),
            }
            // It may have changed meanwhile.
            self.renew(session, worlds);
        }
        let actions = session.send();
        let size = |action: &Action| match action {
            Action::Send(response) => response.size(),
            Action::Nack { .. } | Action::Close(_) => 0,
        };
        if is_large && !throttle::is_large(actions.iter().map(size).sum()) {
            self.place = None;
        }
        for action in actions {
            self.act(discovery, action).await?;
        }
        if session.has_sent_all() {
            self.convergence.sent_all(session.last_response());
        }
        Ok(())
    }

    /// The session goes on with the newest world.
    fn renew(&mut self, session: &mut Session, worlds: &mut watch::Receiver<Arc<World>>) {
        let world = worlds.borrow_and_update().clone();
        if world.generation != session.generation() {
            // Those between, which it was too busy to see, had changes as well.
            self.convergence.changed(world.changes.after(session.generation()));
        }
        session.world(world);
    }

    async fn act(&mut self, discovery: &Discovery, action: Action) -> Result<(), Status> {
        match action {
            Action::Send(response) => {
                let removed = response.head.removed_resources.len();
                discovery.metrics.pushed(&response.head.type_url, response.count, removed);
                let sent = tokio::time::timeout(SEND_DEADLINE, self.sender.send(Ok(*response))).await;
                match sent {
                    Ok(Ok(())) => {
                        self.convergence.sent();
                        Ok(())
                    }
                    Ok(Err(_)) => Err(Status::cancelled("the client is gone")),
                    Err(_) => Err(Status::deadline_exceeded("the client does not read")),
                }
            }
            Action::Nack { kind, message } => {
                discovery.metrics.nacked(kind);
                if !discovery.lines.admit() {
                    return Ok(());
                }
                let message = printable(&message);
                tracing::warn!(node = %self.caller.name, kind = kind.short(), %message, "the client refused resources");
                Ok(())
            }
            Action::Close(why) => Err(Status::invalid_argument(why)),
        }
    }

    /// The first request says who the client is; that must be whom the token is for, if that is a node.
    fn introduce(&self, discovery: &Discovery, key: u64, request: &wire::DeltaDiscoveryRequest) -> Result<(), Status> {
        let node = request
            .node
            .as_ref()
            .ok_or_else(|| Status::invalid_argument("the first request must say which node it is of"))?;
        let named = node.metadata.as_ref().and_then(|m| m.fields.get("NODE_NAME")).and_then(|v| match &v.kind {
            Some(ValueKind::StringValue(name)) => Some(name.as_str()),
            _ => None,
        });
        // A waypoint says which node it is on, which its token need not know. What it is sent does not depend on it.
        let is_other =
            matches!(self.caller.who, Who::Node { .. }) && named.is_some_and(|name| name != self.caller.name);
        if is_other {
            discovery.metrics.authentication_failures.inc();
            tracing::warn!(node = %self.caller.name, claimed = %printable(named.unwrap_or_default()), "a client claims to be another node");
            return Err(Status::permission_denied("the token is for another node"));
        }
        discovery.streams.update(key, |status| status.id = printable(&node.id));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use mesh_core::NamespacedName;

    use super::*;

    #[test]
    fn waypoints_take_no_stream_of_an_agent_and_a_namespace_none_of_another() {
        let streams = Streams::default();
        let mut kept = Vec::new();
        let mut enter = |who: Who| {
            let status =
                StreamStatus { node: who.name().to_string(), id: String::new(), since: 0, kinds: BTreeMap::new() };
            let entered = streams.enter(status, &who);
            let is_in = entered.is_some();
            kept.extend(entered);
            is_in
        };
        let pod = |namespace: usize, pod: usize| {
            let namespace = format!("ns{namespace}");
            let name = NamespacedName::new(namespace.as_str(), format!("wp-{pod}"));
            let gateway = NamespacedName::new(namespace.as_str(), format!("wp{}", pod % 7));
            Who::Waypoint { gateway, uid: None, pod: Some((name, "u".into())) }
        };
        assert_eq!((0..300).filter(|n| enter(pod(0, *n))).count(), MAX_OF_NAMESPACE);
        let node = |n: usize| Who::Node { name: format!("n{n}").into(), uid: None };
        assert_eq!((0..20).filter(|n| enter(pod(1, *n)) && enter(node(*n))).count(), 20);
        // Of one pod the oldest makes room.
        assert_eq!((0..20).filter(|_| enter(pod(2, 0))).count(), 20);
        let listed = streams.list();
        let of = |who: Who| listed.iter().filter(|status| status.node == *who.name()).count();
        assert_eq!((of(pod(2, 0)), of(node(0)), listed.len()), (4, 1, MAX_OF_NAMESPACE + 20 + 20 + 4));
        let (nodes, waypoints) = (Share::Node("n".into()), Share::Waypoints("ns".into()));
        for (share, alike, shared, expected) in [
            (&nodes, MAX_STREAMS - 1, 0, true),
            (&nodes, MAX_STREAMS, 0, false),
            (&waypoints, MAX_OF_WAYPOINTS - 1, 0, true),
            (&waypoints, MAX_OF_WAYPOINTS, 0, false),
            (&waypoints, MAX_OF_NAMESPACE, MAX_OF_NAMESPACE, false),
        ] {
            assert_eq!(has_room(share, alike, shared), expected, "{share:?} {alike} {shared}");
        }
    }
}
