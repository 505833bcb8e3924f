//! What comes through a connection: HTTP, which is served request by request, or something else, which is copied to one endpoint.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use arcstr::ArcStr;
use bytes::Bytes;
use mesh_core::l7::ClusterKey;
use mesh_core::l7::balance::Ended;
use mesh_core::service::AppProtocol;
use mesh_runtime::DrainToken;
use mesh_transport::copy::{self, Outcome, Peer as CopyPeer};
use mesh_transport::hbone::HboneStream;
use mesh_transport::socket::Armed;
use mesh_transport::tls::is_tls;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;

use crate::circles;
use crate::counted::Counted;
use crate::downstream::{Bound, Downstream};
use crate::exchange;
use crate::http::serve::{Serve, serve as serve_http};
use crate::http::sniff::{Spoken, sniff};
use crate::names::{self, Named, NoName};
use crate::peer::Peer;
use crate::places::{NoEndpoint, Permit};
use crate::record::{self, Counts, Nowhere, Record};
use crate::security::authorize;
use crate::silence;
use crate::steer;
use crate::target::Target;
use crate::upstream::choose::{self, Wish};
use crate::upstream::{ConnectError, Endpoint, Wire};

/// Serves a connection to its end.
pub async fn serve(downstream: Arc<Downstream>, mut stream: HboneStream) {
    let Ok(bound) = downstream.bound() else { return };
    let settings = &downstream.lane.shared.settings;
    let sniffed = match bound.target.protocol() {
        _ if steer::takes_all(&downstream, &bound) => Ok((Spoken::Other, None)),
        // Where the application's TLS may begin here, clients may leave it out.
        AppProtocol::Tls if own(&bound).is_some_and(|place| begins_tls(&bound, &place, &downstream.peer)) => {
            sniff(&mut stream, settings.sniff_timeout).await.map(|(spoken, first)| (spoken, Some(first)))
        }
        AppProtocol::Tcp | AppProtocol::Tls => Ok((Spoken::Other, None)),
        // Whatever the port is said to speak, the client may speak both; only what is no HTTP is an error then, and hyper says so.
        AppProtocol::Http11 | AppProtocol::Http2 | AppProtocol::Grpc => {
            let heard = heard(&mut stream, settings.idle_timeout, settings.drain_idle, &downstream.drain).await;
            let Some(heard) = heard else { return };
            heard.map(|(spoken, first)| match spoken {
                Spoken::Other => (Spoken::Http1, Some(first)),
                spoken => (spoken, Some(first)),
            })
        }
        AppProtocol::Unknown => {
            sniff(&mut stream, settings.sniff_timeout).await.map(|(spoken, first)| (spoken, Some(first)))
        }
    };
    drop(bound);
    let (spoken, first) = match sniffed {
        Ok(sniffed) => sniffed,
        Err(error) => return tracing::debug!(client = %downstream.client(), %error, "a connection was lost"),
    };
    if spoken == Spoken::Other {
        return tunnel(&downstream, stream, first).await;
    }
    let Downstream { watch, drain, lane, .. } = &*downstream;
    let (watch_of, of_proxy) = (Arc::clone(watch), downstream.peer.hops > 0);
    // Applications keep connections for later.
    let silent = settings.idle_timeout;
    let serving = Serve { settings, watch: watch_of, drain, spare: &lane.spare, of_proxy, silent };
    let requests = Arc::clone(&downstream);
    let handle = move |request| exchange::handle(Arc::clone(&requests), request);
    let ended = serve_http(serving, spoken, stream, first.unwrap_or_default(), handle).await;
    lane.shared.refusals.ended(watch, &ended, downstream.from());
}

/// What a client of HTTP speaks, who may take its time to begin. Once the process is to stop it has no more of it than one that has asked before: nothing comes of
/// it then.
pub(crate) async fn heard<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    limit: Duration,
    drain_idle: Duration,
    drain: &DrainToken,
) -> Option<io::Result<(Spoken, Bytes)>> {
    let heard = tokio::select! {
        heard = sniff(stream, limit) => Some(heard),
        () = async { drain.started().await; tokio::time::sleep(drain_idle).await } => None,
    };
    if heard.is_none() {
        farewell(stream, drain_idle).await;
    }
    heard
}

/// Ends a connection in order: dropped at once it would be reset. Who does not end it either within `limit` is cut.
pub(crate) async fn farewell<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, limit: Duration) {
    let farewell = async {
        let mut rest = [0; 64];
        stream.shutdown().await?;
        while stream.read(&mut rest).await? > 0 {}
        io::Result::Ok(())
    };
    let _ = tokio::time::timeout(limit, farewell).await;
}

/// Copies to one endpoint. Dropping a stream before both of its directions ended is a reset for the client. `first`: what was read to see what is spoken, if
/// somebody has looked.
async fn tunnel(downstream: &Downstream, mut stream: HboneStream, first: Option<Bytes>) {
    let mut record = Record::begin(downstream);
    let policies = downstream.lane.shared.state.policies();
    let (client, asked) = (downstream.client(), &downstream.asked);
    let (looked, mut prefix) = (first.is_some(), first.unwrap_or_default());
    let (endpoint, wire, permit) = match reach(downstream, &mut stream, &mut prefix, looked, &mut record).await {
        Ok(connected) => connected,
        Err(nowhere) => {
            record.refused(&nowhere);
            return tracing::debug!(%client, %asked, error = nowhere.1, "a connection was refused");
        }
    };
    pass(downstream, stream, &prefix, (&endpoint, wire), &mut record, policies).await;
    drop((record, endpoint, permit));
}

/// Copies what comes through a tunnel to an endpoint; `prefix` was read already. A reset stays one.
pub(crate) async fn pass(
    downstream: &Downstream,
    stream: HboneStream,
    prefix: &[u8],
    (endpoint, wire): (&Endpoint, Wire),
    record: &mut Record<'_>,
    policies: watch::Receiver<()>,
) {
    let counters = record.open(endpoint, Counts::AsSeen);
    counters.received.fetch_add(prefix.len() as u64, Relaxed);
    let cut = downstream.drain.forced_token();
    let (passed, limit) = (Arc::clone(&counters), silence::limits(endpoint));
    let over = silence::wait(&passed, limit);
    match wire {
        Wire::Tcp(mut tcp) => {
            if tcp.write_all(prefix).await.is_err() {
                return record.end("UC");
            }
            let copying = copy::bidirectional(Armed::new(tcp), CopyPeer::Hbone(stream), counters, cut);
            let Some(outcome) = watched(downstream, policies, over, record, copying).await else { return };
            record.copied(&outcome);
            if let Outcome::Failed(side, error) = outcome {
                tracing::debug!(client = %downstream.client(), ?side, %error, "a connection failed");
            }
        }
        mut far => {
            let mut near = Counted::new(stream, counters);
            let copying = async {
                far.write_all(prefix).await?;
                tokio::io::copy_bidirectional(&mut near, &mut far).await
            };
            let copying = async {
                tokio::select! { () = cut.cancelled() => None, copied = copying => Some(copied) }
            };
            let Some(copied) = watched(downstream, policies, over, record, copying).await else { return };
            record.end(copied.map_or("LR", |copied| near.ended(&copied)));
        }
    }
}

/// Copies until the copy ends by itself; nothing comes of it if policies, its silence or its age end it before.
pub(crate) async fn watched<T>(
    downstream: &Downstream,
    policies: watch::Receiver<()>,
    over: impl Future<Output = silence::Over>,
    record: &mut Record<'_>,
    copying: impl Future<Output = T>,
) -> Option<T> {
    tokio::select! {
        copied = copying => return Some(copied),
        why = authorize::withdrawn(downstream, policies) => {
            tracing::debug!(client = %downstream.client(), asked = %downstream.asked, why, "a connection was ended");
            record.withdrawn();
        }
        over = over => record.over(over),
    }
    None
}

/// Connects to where the connection leads. What has to be read for that is added to `first`.
async fn reach(
    downstream: &Downstream,
    stream: &mut HboneStream,
    first: &mut Bytes,
    looked: bool,
    record: &mut Record<'_>,
) -> Result<(Endpoint, Wire, Option<Permit>), Nowhere> {
    let place = steer::place(downstream, stream, first, record).await?;
    let named = named(downstream, place.as_ref(), stream, first).await?;
    if !looked && first.is_empty() {
        let bound = downstream.bound().map_err(|why| ("NC", why.to_string()))?;
        let begins = place.as_ref().is_some_and(|place| begins_tls(&bound, place, &downstream.peer));
        drop(bound);
        // A client that begins it itself is told apart.
        if begins {
            let limit = downstream.lane.shared.settings.sniff_timeout;
            let (_, read) = sniff(stream, limit).await.map_err(|error| ("DC", error.to_string()))?;
            *first = read;
        }
    }
    read_name(downstream, stream, first, record).await;
    connect(downstream, place.as_ref(), is_tls(first), named.as_ref(), record).await
}

/// The log has the name that TLS asks for, which nobody has looked at where the port is said to speak TLS: there the client begins.
async fn read_name(downstream: &Downstream, stream: &mut HboneStream, first: &mut Bytes, record: &mut Record<'_>) {
    let is_tls = || downstream.bound().is_ok_and(|bound| bound.target.protocol() == AppProtocol::Tls);
    if first.is_empty() && record.is_logged() && is_tls() {
        // What was read is in `first`; the record reads it from there, as it does where somebody has looked.
        steer::server_name(stream, first, downstream.lane.shared.settings.sniff_timeout).await;
    }
    record.read(first);
}

/// The service that is asked for, as a place.
fn own(bound: &Bound) -> Option<ClusterKey> {
    let Target::Service { key, port, .. } = &bound.target else { return None };
    Some(ClusterKey { service: key.clone(), port: *port, subset: Default::default() })
}

/// Whether somebody has said that applications of the place are spoken to with TLS.
fn begins_tls(bound: &Bound, place: &ClusterKey, peer: &Peer) -> bool {
    let policy = bound.view.cluster(place, &bound.seen(peer)).and_then(|place| place.policy.as_ref().ok());
    policy.and_then(|policy| policy.tls.server()).is_some_and(|server| server.end_to_end)
}

/// Where the name leads that the client asks for in TLS, if it connects to a service of which only a pattern is known.
async fn named(
    downstream: &Downstream,
    place: Option<&ClusterKey>,
    stream: &mut HboneStream,
    first: &mut Bytes,
) -> Result<Option<Named>, Nowhere> {
    let bound = downstream.bound().map_err(|why| ("NC", why.to_string()))?;
    let (view, wanted) = (bound.view.clone(), bound.target.address());
    drop(bound);
    let service = place.and_then(|place| view.snapshot.service(&place.service)).filter(|one| names::is_open(one));
    let Some(service) = service else { return Ok(None) };
    let shared = &downstream.lane.shared;
    let nowhere = |why: NoName| match why {
        NoName::Unknown => ("NR", why.to_string()),
        NoName::NoAddress => ("DF", why.to_string()),
    };
    let known = (&*view.snapshot, &*shared.own.place.network);
    if let Some(passed) = names::passed(service, wanted, known) {
        return passed.map(Some).map_err(nowhere);
    }
    let name = steer::server_name(stream, first, shared.settings.handshake_timeout).await;
    let found = shared.names.find(service, name.as_deref(), known, shared.now_ms(), names::by_the_system).await;
    found.map_err(nowhere)
}

/// To an endpoint of the place, or the workload that was asked for. An error is Envoy's flag for it and what happened.
async fn connect(
    downstream: &Downstream,
    place: Option<&ClusterKey>,
    encrypted: bool,
    named: Option<&Named>,
    record: &mut Record<'_>,
) -> Result<(Endpoint, Wire, Option<Permit>), Nowhere> {
    let lane = &downstream.lane;
    let mut tried = Vec::new();
    loop {
        let bound = downstream.bound().map_err(|why| ("NC", why.to_string()))?;
        authorize::connection(downstream, &bound)?;
        let endpoint = match &bound.target {
            Target::Workload { workload, address, .. } => choose::workload(workload, *address, &bound.view.snapshot)
                .filter(|_| tried.is_empty())
                .ok_or(NoEndpoint::NoneLeft),
            // Bytes from outside of the mesh are `edge::bytes`'.
            Target::Edge { .. } => Err(NoEndpoint::Unknown),
            Target::Service { key, port, .. } => {
                let own = ClusterKey { service: key.clone(), port: *port, subset: Default::default() };
                let cluster = place.unwrap_or(&own);
                let (view, own) = (&bound.view, &lane.shared.own);
                let wish = Wish { tried: &tried, encrypted, ..Wish::new(view, own, lane.shared.now_ms()) };
                let found = choose::place(&lane.shared.places, &wish, cluster, &bound.seen(&downstream.peer));
                let mut rng = lane.rng.lock();
                found.and_then(|found| match named {
                    Some(named) => choose::named(&found, named, &wish),
                    None => {
                        let hash = choose::by_source(&found, downstream.from().ip(), &mut *rng);
                        choose::endpoint(&found, &Wish { hash, ..wish }, &mut *rng)
                    }
                })
            }
        };
        let endpoint = endpoint.map_err(|why| none(why, &tried))?;
        circles::break_at(lane, &bound.view, &downstream.peer, &endpoint)?;
        if !bound.admits(&downstream.peer, &endpoint.workload, endpoint.address) {
            return Err(record::denied(format!("denied by a policy of {}", endpoint.workload.uid)));
        }
        if let Some((wire, permit)) = dial(downstream, &endpoint, record, &mut tried).await {
            return Ok((endpoint, wire, permit));
        }
    }
}

/// No endpoint takes the connection, after those that were tried.
pub(crate) fn none(why: NoEndpoint, tried: &[ArcStr]) -> Nowhere {
    let flag = match why {
        NoEndpoint::Overflow => "UO",
        _ if tried.is_empty() => "UH",
        _ => "UF",
    };
    (flag, why.to_string())
}

/// A connection to an endpoint; without one, another endpoint is asked next.
pub(crate) async fn dial(
    downstream: &Downstream,
    endpoint: &Endpoint,
    record: &mut Record<'_>,
    tried: &mut Vec<ArcStr>,
) -> Option<(Wire, Option<Permit>)> {
    let lane = &downstream.lane;
    let dialled = lane.pool.dial(&lane.shared, endpoint, &downstream.peer).await;
    record.tried(endpoint, dialled.as_ref().err());
    dialled
        .inspect_err(|error| {
            tracing::debug!(endpoint = %endpoint.workload.uid, %error, "an endpoint cannot be reached");
            if !matches!(error, ConnectError::Overflow | ConnectError::NoCertificate) {
                endpoint.ended(Ended::Failed, lane.shared.now_ms());
            }
            tried.push(endpoint.workload.uid.clone());
        })
        .ok()
}
