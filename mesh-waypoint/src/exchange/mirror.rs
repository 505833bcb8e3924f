//! Copies of requests, for which nobody waits: sent as the body goes by, to hosts whose name says that they are copies; at most so many at once. Each is counted
//! as any request is once it has an endpoint, and by why it was given up if it was.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use http::header::{CONTENT_LENGTH, HeaderValue, TRANSFER_ENCODING};
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Request, Response, Version};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use mesh_core::l7::ClusterKey;
use mesh_runtime::task;

use super::forward::speaks_http2;
use crate::downstream::{Bound, Downstream};
use crate::engine::Lane;
use crate::http::feed::{Fed, FedBody, Feed, Gauge, Room, feed};
use crate::http::outgoing::address;
use crate::http::{RequestBody, grpc, hop};
use crate::names;
use crate::places::Found;
use crate::telemetry::{Custom, Flags, GivenUp, Measured, Protocol, Who};
use crate::upstream::choose::{self, Wish};
use crate::upstream::{Connection, Endpoint, SendError};

/// Connections that were closed under our hands: so often another one is taken.
const STALE: u32 = 3;

/// What is copied.
pub struct Copy {
    /// The method.
    pub method: Method,
    /// The path and query.
    pub target: PathAndQuery,
    /// The headers.
    pub headers: HeaderMap,
    /// What the client speaks.
    pub version: Version,
    /// It is gRPC.
    pub grpc: bool,
    /// Trailers are understood.
    pub trailers: bool,
    /// The host that the client asked for, without a port.
    pub name: String,
    /// The host that the request is sent to.
    pub host: HeaderValue,
}

/// A copy that may be made: its place among all of the lane, and its body, if there is one.
pub struct Begun {
    place: Place,
    body: Option<(FedBody, Gauge)>,
}

struct Place(Arc<Lane>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.mirrors.fetch_sub(1, Relaxed);
    }
}

/// What has become of a copy.
struct Sent {
    began: Instant,
    endpoint: Option<Endpoint>,
    status: u16,
    grpc_status: Option<u16>,
    bytes: u64,
}

/// Begins a copy, unless there are too many already. `feed` takes what the body is to be given to, if there is one.
pub fn begin(lane: &Arc<Lane>, feed_to: Option<impl FnOnce(Feed)>) -> Option<Begun> {
    let before = lane.mirrors.fetch_add(1, Relaxed);
    let place = Place(Arc::clone(lane));
    let settings = &lane.shared.settings;
    if before >= settings.mirrors {
        lane.meters.given_up(GivenUp::TooMany);
        return None;
    }
    let body = feed_to.map(|feed_to| {
        let room = Room { one: settings.mirror_bytes, all: settings.mirrors_bytes, used: Arc::clone(&lane.mirrored) };
        let (writer, body, gauge) = feed(room);
        feed_to(writer);
        (body, gauge)
    });
    Some(Begun { place, body })
}

/// Sends a copy.
pub fn send(down: &Arc<Downstream>, begun: Begun, copy: Copy, cluster: ClusterKey) {
    let down = Arc::clone(down);
    task::spawn("copy of a request", async move {
        let Begun { place, body } = begun;
        let (body, gauge) = match body {
            Some((body, gauge)) => (RequestBody::Fed(body), Some(gauge)),
            None => (RequestBody::Empty, None),
        };
        let grpc = copy.grpc;
        let mut sent = Sent { began: Instant::now(), endpoint: None, status: 0, grpc_status: None, bytes: 0 };
        let limit = place.0.shared.settings.mirror_timeout;
        let ended = {
            let work = std::pin::pin!(deliver(&down, copy, body, &cluster, &mut sent));
            let broken = async {
                match &gauge {
                    Some(gauge) => gauge.broken().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                ended = until(work, limit, gauge.as_ref()) => ended.unwrap_or(Err(GivenUp::Timeout)),
                () = broken => Err(GivenUp::Cut),
            }
        };
        if let Err(why) = ended {
            // That the body has no end is why the endpoint has had none.
            let why = match gauge.as_ref().map(Gauge::state) {
                Some(Fed::Full) => GivenUp::Slow,
                Some(Fed::Cut) => GivenUp::Cut,
                _ => why,
            };
            place.0.meters.given_up(why);
            tracing::debug!(mirror = %cluster.service, ?why, "a copy of a request is given up");
        }
        record(&down, &sent, gauge.as_ref(), grpc, ended.err());
    });
}

/// Waits for as long as the request's body comes, and then for so long at least; at most twice as long.
async fn until<F: Future>(
    mut work: std::pin::Pin<&mut F>,
    limit: Duration,
    gauge: Option<&Gauge>,
) -> Option<F::Output> {
    loop {
        let was_open = gauge.is_some_and(|gauge| gauge.state() == Fed::Open);
        match tokio::time::timeout(limit, work.as_mut()).await {
            Ok(done) => return Some(done),
            Err(_) if was_open => {}
            Err(_) => return None,
        }
    }
}

async fn deliver(
    down: &Downstream,
    copy: Copy,
    body: RequestBody,
    cluster: &ClusterKey,
    sent: &mut Sent,
) -> Result<(), GivenUp> {
    let lane = &down.lane;
    let bound = down.bound().map_err(|_| GivenUp::NoEndpoint)?;
    let found = {
        let wish = wish(down, &bound);
        choose::place(&lane.shared.places, &wish, cluster, &bound.seen(&down.peer)).map_err(|_| GivenUp::NoEndpoint)?
    };
    let http2 = speaks_http2(Some(&found), copy.version, down.entry.is_some(), copy.grpc);
    let endpoint = sent.endpoint.insert(endpoint(down, &bound, &found, &copy).await?);
    if endpoint.waypoint.is_none() && !bound.admits(&down.peer, &endpoint.workload, endpoint.address) {
        return Err(GivenUp::Denied);
    }
    drop(bound);
    let host = shadow(&copy.host).ok_or(GivenUp::NoEndpoint)?;
    let mut request = Request::new(body);
    *request.method_mut() = copy.method;
    *request.headers_mut() = copy.headers;
    address(&mut request, copy.target, host, http2).ok_or(GivenUp::NoEndpoint)?;
    // hyper takes a body of unknown length for none where there mostly is none.
    if !http2 && !matches!(request.body(), RequestBody::Empty) && !request.headers().contains_key(CONTENT_LENGTH) {
        request.headers_mut().insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    let said = hop::Said { upgrade: None, trailers: copy.trailers };
    let version = request.version();
    hop::restore(request.headers_mut(), &said, version);
    let (mut response, connection) = ask(down, endpoint, request, http2).await?;
    sent.status = response.status().as_u16();
    sent.grpc_status = grpc::status(response.headers());
    while let Some(frame) = response.body_mut().frame().await {
        let frame = frame.map_err(|_| GivenUp::NoAnswer)?;
        match frame.trailers_ref() {
            Some(trailers) => sent.grpc_status = grpc::status(trailers),
            None => sent.bytes += frame.data_ref().map_or(0, |data| data.len() as u64),
        }
    }
    lane.pool.give_back(&lane.shared, connection, endpoint.found.as_ref());
    Ok(())
}

fn wish<'a>(down: &'a Downstream, bound: &'a Bound) -> Wish<'a> {
    let shared = &down.lane.shared;
    Wish::new(&bound.view, &shared.own, shared.now_ms())
}

/// Who takes it. Where only a pattern is known, the name that the client asked for is looked up, as for the request itself.
async fn endpoint(down: &Downstream, bound: &Bound, found: &Found, copy: &Copy) -> Result<Endpoint, GivenUp> {
    let (lane, shared) = (&down.lane, &down.lane.shared);
    let chosen = match names::is_open(&found.now.service) {
        false => choose::endpoint(found, &wish(down, bound), &mut *lane.rng.lock()),
        true => {
            let known = (&*bound.view.snapshot, &*shared.own.place.network);
            let (service, name) = (&found.now.service, Some(&*copy.name));
            let named = match names::passed(service, bound.target.address(), known) {
                Some(passed) => passed.map(Some),
                None => shared.names.find(service, name, known, shared.now_ms(), names::by_the_system).await,
            };
            let named = named.ok().flatten().ok_or(GivenUp::NoEndpoint)?;
            choose::named(found, &named, &wish(down, bound))
        }
    };
    chosen.map_err(|_| GivenUp::NoEndpoint)
}

async fn ask(
    down: &Downstream,
    endpoint: &Endpoint,
    request: Request<RequestBody>,
    http2: bool,
) -> Result<(Response<Incoming>, Connection), GivenUp> {
    let (lane, mut request) = (&down.lane, request);
    for stale in 0..=STALE {
        let connected = lane.pool.connect(&lane.shared, endpoint, &down.peer, http2, stale == STALE).await;
        let mut connection = connected.map_err(|_| GivenUp::Connect)?;
        match connection.send(request).await {
            Ok(response) => return Ok((response, connection)),
            Err(SendError::NotSent(again)) => request = *again,
            Err(SendError::Refused | SendError::Lost(_)) => return Err(GivenUp::NoAnswer),
        }
    }
    Err(GivenUp::NoAnswer)
}

/// Counts it as any request, if it had an endpoint.
fn record(down: &Downstream, sent: &Sent, gauge: Option<&Gauge>, grpc: bool, given_up: Option<GivenUp>) {
    let Some(endpoint) = &sent.endpoint else { return };
    let bound = down.bound().ok();
    let who = Who {
        peer: &down.peer,
        from: down.from(),
        outside: down.is_outside(),
        proved: down.proved(),
        client: bound.as_ref().and_then(|bound| bound.client.as_ref()),
        endpoint: Some(&endpoint.workload),
        service: endpoint.service.as_ref(),
        asked: None,
    };
    // In Envoy's words, as of a request that failed so.
    let (status, flag) = match given_up {
        None => (sent.status, "-"),
        Some(GivenUp::Denied) => (403, "-"),
        Some(GivenUp::Connect) => (503, "UF"),
        Some(GivenUp::NoAnswer) if sent.status == 0 => (503, "UC"),
        Some(GivenUp::NoAnswer) => (sent.status, "UC"),
        Some(GivenUp::Timeout) => (504, "UT"),
        Some(GivenUp::Slow | GivenUp::Cut | GivenUp::TooMany | GivenUp::NoEndpoint) => (sent.status, "DC"),
    };
    let measured = Measured {
        status,
        grpc_status: sent.grpc_status.filter(|_| grpc),
        flags: Flags::of(flag),
        protocol: if grpc { Protocol::Grpc } else { Protocol::Http },
        duration: sent.began.elapsed(),
        received: gauge.map_or(0, Gauge::passed),
        sent: sent.bytes,
        messages_received: 0,
        messages_sent: 0,
    };
    let shape = bound.as_ref().and_then(|bound| bound.plan().shape.clone());
    let custom = shape.map(|shape| Custom::of(&shape, |_| None)).unwrap_or_default();
    down.lane.meters.record(&who, &measured, &custom, down.lane.shared.now_ms());
}

/// The host with what says that it is a copy, before the port.
fn shadow(host: &HeaderValue) -> Option<HeaderValue> {
    let host = host.to_str().ok()?;
    let end = host.rfind(':').filter(|at| !host[*at..].contains(']')).unwrap_or(host.len());
    let (name, port) = host.split_at(end);
    HeaderValue::from_str(&format!("{name}-shadow{port}")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_told_by_their_host() {
        for (host, expected) in
            [("shop", "shop-shadow"), ("shop:80", "shop-shadow:80"), ("10.0.0.1:80", "10.0.0.1-shadow:80")]
        {
            assert_eq!(shadow(&HeaderValue::from_static(host)).unwrap(), expected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_of_a_copy_begins_when_its_body_is_there() {
        let limit = Duration::from_secs(15);
        let room = Room { one: 1024, all: 1024, used: Arc::default() };
        let work = async |seconds| tokio::time::sleep(Duration::from_secs(seconds)).await;
        assert!(until(std::pin::pin!(work(14)), limit, None).await.is_some());
        assert!(until(std::pin::pin!(work(16)), limit, None).await.is_none());
        let (writer, _body, gauge) = feed(room);
        assert!(until(std::pin::pin!(work(100)), limit, Some(&gauge)).await.is_some());
        let ends = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(20)).await;
            writer.end();
        });
        assert!(until(std::pin::pin!(work(36)), limit, Some(&gauge)).await.is_some());
        assert!(until(std::pin::pin!(work(16)), limit, Some(&gauge)).await.is_none());
        ends.await.unwrap();
    }
}
