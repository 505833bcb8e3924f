//! Bytes from outside of the mesh, copied to one endpoint: of a TCP listener, or of TLS by its name. The choice is per connection.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use mesh_core::hops;
use mesh_core::l7::{ClusterKey, Target};
use mesh_core::listener::{Encryption, Listener, Serves};
use mesh_runtime::DrainToken;
use mesh_transport::copy::{self, Outcome, Peer as CopyPeer};
use mesh_transport::hbone::HboneStream;
use mesh_transport::socket::Armed;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::circles;
use crate::connection::{dial, none, pass, watched};
use crate::counted::Counted;
use crate::downstream::Downstream;
use crate::engine::Lane;
use crate::entry::Entry;
use crate::places::Permit;
use crate::record::{self, Counts, Nowhere, Record};
use crate::security::authorize;
use crate::silence;
use crate::upstream::choose::Wish;
use crate::upstream::{Endpoint, Wire, choose};

/// Copies a connection as it is; `first` was read of it already.
pub async fn plain(
    lane: &Arc<Lane>,
    entry: Entry,
    listener: &Listener,
    tcp: TcpStream,
    first: Bytes,
    drain: DrainToken,
) -> Result<(), String> {
    // Dropped before it is served it is reset, so that nobody takes it for an empty answer.
    let tcp = Armed::new(tcp);
    let downstream = arrived(lane, entry, drain);
    let mut record = Record::begin(&downstream);
    let policies = lane.shared.state.policies();
    let encrypted = listener.encryption == Encryption::Passes;
    let (endpoint, mut wire, permit) = reach(&downstream, listener, encrypted, &mut record).await?;
    // What copies TLS counts as it is seen; `copy` calls the client's socket the local one.
    let counts = match wire {
        Wire::Tcp(_) | Wire::Hbone(_) => Counts::Turned,
        Wire::Tls(_) | Wire::TlsInside(_) => Counts::AsSeen,
    };
    let (counters, cut) = (record.open(&endpoint, counts), downstream.drain.forced_token());
    let said = if counts == Counts::Turned { &counters.sent } else { &counters.received };
    said.fetch_add(first.len() as u64, Relaxed);
    if let Err(error) = wire.write_all(&first).await {
        record.end("UC");
        return Err(error.to_string());
    }
    let (passed, limit) = (Arc::clone(&counters), silence::limits(&endpoint));
    let over = silence::wait(&passed, limit);
    let copying = match wire {
        Wire::Tcp(far) => copy::bidirectional(tcp, CopyPeer::Tcp(Armed::new(far)), counters, cut),
        Wire::Hbone(far) => copy::bidirectional(tcp, CopyPeer::Hbone(far), counters, cut),
        far @ (Wire::Tls(_) | Wire::TlsInside(_)) => {
            let mut near = Counted::new(tcp, counters);
            if relay(&downstream, policies, over, &mut record, &mut near, far).await? {
                near.stream().disarm();
            }
            return Ok(());
        }
    };
    let watched = watched(&downstream, policies, over, &mut record, copying).await;
    let Some(outcome) = watched else { return Ok(()) };
    record.copied(&outcome);
    drop((record, endpoint, permit));
    match outcome {
        Outcome::Failed(side, error) => Err(format!("{side:?}: {error}")),
        _ => Ok(()),
    }
}

/// Copies what comes in a tunnel of the mesh; `first` was read of it already. `encrypted`: it is TLS of the client's own.
pub async fn inside(
    lane: &Arc<Lane>,
    entry: Entry,
    listener: &Listener,
    stream: HboneStream,
    (first, encrypted): (Bytes, bool),
    drain: DrainToken,
) -> Result<(), String> {
    let downstream = arrived(lane, entry, drain);
    let mut record = Record::begin(&downstream);
    let policies = lane.shared.state.policies();
    // The permit is held until the copy is over.
    let (endpoint, wire, _permit) = reach(&downstream, listener, encrypted, &mut record).await?;
    pass(&downstream, stream, &first, (&endpoint, wire), &mut record, policies).await;
    Ok(())
}

/// Copies what comes out of TLS.
pub async fn decrypted<S: AsyncRead + AsyncWrite + Unpin>(
    lane: &Arc<Lane>,
    entry: Entry,
    listener: &Listener,
    stream: S,
    drain: DrainToken,
) -> Result<(), String> {
    let downstream = arrived(lane, entry, drain);
    let mut record = Record::begin(&downstream);
    let policies = lane.shared.state.policies();
    // The permit is held until the copy is over.
    let (endpoint, wire, _permit) = reach(&downstream, listener, false, &mut record).await?;
    let counters = record.open(&endpoint, Counts::AsSeen);
    let mut near = Counted::new(stream, Arc::clone(&counters));
    let over = silence::wait(&counters, silence::limits(&endpoint));
    relay(&downstream, policies, over, &mut record, &mut near, wire).await.map(drop)
}

/// Copies where one of the ends is TLS, of which `copy` knows nothing. Whether both directions have ended in order.
async fn relay<S: AsyncRead + AsyncWrite + Unpin>(
    downstream: &Downstream,
    policies: watch::Receiver<()>,
    over: impl Future<Output = silence::Over>,
    record: &mut Record<'_>,
    near: &mut Counted<S>,
    mut far: Wire,
) -> Result<bool, String> {
    let cut = downstream.drain.forced_token();
    let copying = async {
        tokio::select! {
            () = cut.cancelled() => None,
            copied = tokio::io::copy_bidirectional(near, &mut far) => Some(copied),
        }
    };
    let Some(copied) = watched(downstream, policies, over, record, copying).await else { return Ok(false) };
    record.end(copied.as_ref().map_or("LR", |copied| near.ended(copied)));
    copied.map_or(Ok(false), |copied| copied.map(|_| true).map_err(|error| error.to_string()))
}

/// A connection that nobody serves: it is counted and has its line, too.
pub fn refused(lane: &Arc<Lane>, entry: Entry, drain: DrainToken) {
    let downstream = Downstream::at_edge(Arc::clone(lane), entry, drain);
    Record::begin(&downstream).refused(&("NR", String::new()));
}

/// The connection, with the proxies that it has passed, as far as its address tells.
fn arrived(lane: &Arc<Lane>, entry: Entry, drain: DrainToken) -> Downstream {
    let proved = entry.client.as_ref();
    let is_proxy = circles::is_proxy(&lane.shared.state.view(), &lane.shared.own, entry.from.ip(), proved);
    let mut downstream = Downstream::at_edge(Arc::clone(lane), entry, drain);
    downstream.peer.hops = hops::passed(if is_proxy { hops::From::Plain } else { hops::From::Client });
    downstream
}

/// The same as `connect`; a connection that leads nowhere is counted, too.
async fn reach(
    downstream: &Downstream,
    listener: &Listener,
    encrypted: bool,
    record: &mut Record<'_>,
) -> Result<(Endpoint, Wire, Option<Permit>), String> {
    let connected = connect(downstream, listener, encrypted, record).await;
    connected.map_err(|nowhere| {
        record.refused(&nowhere);
        nowhere.1
    })
}

/// Where the connection goes, and a connection there: the place is drawn once, its endpoints are tried one after the other. An error is Envoy's flag for it
/// and what happened.
async fn connect(
    downstream: &Downstream,
    listener: &Listener,
    encrypted: bool,
    record: &mut Record<'_>,
) -> Result<(Endpoint, Wire, Option<Permit>), Nowhere> {
    let lane = &downstream.lane;
    let name = downstream.entry.as_ref().and_then(Entry::name);
    let cluster = place(lane, listener, name, record).map_err(|why| ("NR", why))?;
    let mut tried = Vec::new();
    loop {
        let bound = downstream.bound().map_err(|why| ("NC", why.to_string()))?;
        authorize::connection(downstream, &bound)?;
        let endpoint = {
            let (view, own) = (&bound.view, &lane.shared.own);
            let wish = Wish { tried: &tried, encrypted, ..Wish::new(view, own, lane.shared.now_ms()) };
            let found = choose::place(&lane.shared.places, &wish, &cluster, &bound.seen(&downstream.peer));
            let mut rng = lane.rng.lock();
            found.and_then(|found| {
                let hash = choose::by_source(&found, downstream.from().ip(), &mut *rng);
                choose::endpoint(&found, &Wish { hash, ..wish }, &mut *rng)
            })
        };
        let endpoint = endpoint.map_err(|why| none(why, &tried))?;
        circles::break_at(lane, &bound.view, &downstream.peer, &endpoint)?;
        if endpoint.waypoint.is_none() && !bound.admits(&downstream.peer, &endpoint.workload, endpoint.address) {
            return Err(record::denied(format!("denied by a policy of {}", endpoint.workload.uid)));
        }
        if let Some((wire, permit)) = dial(downstream, &endpoint, record, &mut tried).await {
            return Ok((endpoint, wire, permit));
        }
    }
}

fn place(lane: &Lane, listener: &Listener, name: Option<&str>, record: &mut Record<'_>) -> Result<ClusterKey, String> {
    if let Serves::Closed(why) = &listener.serves {
        return Err(why.to_string());
    }
    let passage = listener.passage(name).ok_or("no route has the name")?;
    record.rule(&passage.origin);
    let drawn = passage.forward.choose(&mut *lane.rng.lock()).ok_or("the route has no place with a weight")?;
    match &drawn.target {
        Target::Cluster(key) => Ok(key.clone()),
        Target::Broken(why) => Err(why.to_string()),
    }
}
