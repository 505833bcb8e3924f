//! Bytes from outside of the mesh, copied to one endpoint: of a TCP listener, or of TLS by its name. The choice is per connection.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use mesh_core::l7::{ClusterKey, Target};
use mesh_core::listener::{Encryption, Listener, Serves};
use mesh_runtime::DrainToken;
use mesh_transport::copy::{self, Outcome, Peer as CopyPeer};
use mesh_transport::socket::Armed;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::connection::{count, missed};
use crate::counted::Counted;
use crate::downstream::Downstream;
use crate::engine::Lane;
use crate::entry::Entry;
use crate::places::Permit;
use crate::security::authorize;
use crate::telemetry::Flags;
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
    let downstream = Downstream::at_edge(Arc::clone(lane), entry, drain);
    let encrypted = listener.encryption == Encryption::Passes;
    let (endpoint, mut wire, permit) = counted(&downstream, listener, encrypted).await?;
    let copied = count(&downstream, Some(&endpoint), Flags::default());
    wire.write_all(&first).await.map_err(|error| error.to_string())?;
    let (counters, cut) = (copied.counters(), downstream.drain.forced_token());
    counters.received.fetch_add(first.len() as u64, Relaxed);
    let outcome = match wire {
        Wire::Tcp(far) => copy::bidirectional(tcp, CopyPeer::Tcp(Armed::new(far)), counters, cut).await,
        Wire::Hbone(far) => copy::bidirectional(tcp, CopyPeer::Hbone(far), counters, cut).await,
        mut far @ (Wire::Tls(_) | Wire::TlsInside(_)) => {
            let mut near = Counted::new(tcp.disarmed(), counters);
            let moved = tokio::select! {
                () = cut.cancelled() => return Ok(()),
                moved = tokio::io::copy_bidirectional(&mut near, &mut far) => moved,
            };
            drop((copied, endpoint, permit));
            return moved.map(|_| ()).map_err(|error| error.to_string());
        }
    };
    drop((copied, endpoint, permit));
    match outcome {
        Outcome::Failed(side, error) => Err(format!("{side:?}: {error}")),
        _ => Ok(()),
    }
}

/// Copies what comes out of TLS.
pub async fn decrypted<S: AsyncRead + AsyncWrite + Unpin>(
    lane: &Arc<Lane>,
    entry: Entry,
    listener: &Listener,
    stream: S,
    drain: DrainToken,
) -> Result<(), String> {
    let downstream = Downstream::at_edge(Arc::clone(lane), entry, drain);
    let (endpoint, mut wire, permit) = counted(&downstream, listener, false).await?;
    let open = count(&downstream, Some(&endpoint), Flags::default());
    let mut stream = Counted::new(stream, open.counters());
    let cut = downstream.drain.forced_token();
    let copied = tokio::select! {
        () = cut.cancelled() => Ok((0, 0)),
        copied = tokio::io::copy_bidirectional(&mut stream, &mut wire) => copied,
    };
    drop((open, endpoint, permit));
    copied.map(|_| ()).map_err(|error| error.to_string())
}

/// The same as `connect`; a connection that leads nowhere is counted, too.
async fn counted(
    downstream: &Downstream,
    listener: &Listener,
    encrypted: bool,
) -> Result<(Endpoint, Wire, Option<Permit>), String> {
    connect(downstream, listener, encrypted).await.map_err(|(flag, error)| {
        drop(count(downstream, None, Flags::of(flag)));
        error
    })
}

/// Where the connection goes, and a connection there: the place is drawn once, its endpoints are tried one after the other. An error is Envoy's flag for it
/// and what happened.
async fn connect(
    downstream: &Downstream,
    listener: &Listener,
    encrypted: bool,
) -> Result<(Endpoint, Wire, Option<Permit>), (&'static str, String)> {
    let lane = &downstream.lane;
    let name = downstream.entry.as_ref().and_then(Entry::name);
    let cluster = place(lane, listener, name).map_err(|why| ("NR", why))?;
    let mut tried = Vec::new();
    loop {
        let bound = downstream.bound().map_err(|why| ("NC", why.to_string()))?;
        authorize::connection(downstream, &bound).map_err(|why| ("-", why))?;
        let endpoint = {
            let (view, own) = (&bound.view, &lane.shared.own);
            let wish = Wish { view, own, tried: &tried, hash: None, encrypted, now_ms: lane.shared.now_ms() };
            let found = choose::place(&lane.shared.places, &wish, &cluster, &bound.seen(&downstream.peer));
            let mut rng = lane.rng.lock();
            found.and_then(|found| {
                let hash = choose::by_source(&found, downstream.from().ip(), &mut *rng);
                choose::endpoint(&found, &Wish { hash, ..wish }, &mut *rng)
            })
        };
        let flag = if tried.is_empty() { "UH" } else { "UF" };
        let endpoint = endpoint.map_err(|why| (flag, why.to_string()))?;
        if endpoint.waypoint.is_none() && !bound.admits(&downstream.peer, &endpoint.workload, endpoint.address) {
            return Err(("-", format!("denied by a policy of {}", endpoint.workload.uid)));
        }
        match lane.pool.dial(&lane.shared, &endpoint, &downstream.peer).await {
            Ok((wire, permit)) => return Ok((endpoint, wire, permit)),
            Err(error) => missed(lane, &endpoint, &error, &mut tried),
        }
    }
}

fn place(lane: &Lane, listener: &Listener, name: Option<&str>) -> Result<ClusterKey, String> {
    if let Serves::Closed(why) = &listener.serves {
        return Err(why.to_string());
    }
    let passage = listener.passage(name).ok_or("no route has the name")?;
    let drawn = passage.forward.choose(&mut *lane.rng.lock()).ok_or("the route has no place with a weight")?;
    match &drawn.target {
        Target::Cluster(key) => Ok(key.clone()),
        Target::Broken(why) => Err(why.to_string()),
    }
}
