//! Tunnels that arrive, and the connections inside them: whose address is asked for, and whether it is bound to this waypoint. What is not is refused before
//! a byte of it is read.

use std::net::SocketAddr;
use std::sync::Arc;

use http::StatusCode;
use mesh_core::{hops, ports};
use mesh_runtime::{DrainToken, task};
use mesh_transport::hbone::{Authority, Claimed, InboundRequest, ServeEnd, refuse_busy};
use mesh_transport::socket::{AcceptLoop, Armed};

use crate::circles;
use crate::connection;
use crate::downstream::Downstream;
use crate::edge::inside::{self, Come};
use crate::engine::{Engine, Lane};
use crate::peer::Peer;
use crate::refused::Reason;
use crate::shared::Way;
use crate::sources::Full;
use crate::target::NotOurs;

/// Accepts tunnels until the process drains. Each lives on one lane.
pub async fn accept(engine: Engine, mut listener: AcceptLoop, drain: DrainToken) -> std::io::Result<()> {
    loop {
        let (tcp, from) = tokio::select! {
            () = drain.started() => return Ok(()),
            accepted = listener.accept() => accepted?,
        };
        let (engine, drain) = (engine.clone(), drain.clone());
        let thread = engine.threads().home().clone();
        task::spawn_on(&thread, "tunnel", async move {
            // Its events come to this thread from now on.
            match tcp.moved() {
                Ok(tcp) => tunnel(Arc::clone(engine.here()), tcp, from, drain).await,
                Err(error) => tracing::debug!(%error, "a connection was lost"),
            }
        });
    }
}

async fn tunnel(lane: Arc<Lane>, tcp: Armed, from: SocketAddr, drain: DrainToken) {
    let from = SocketAddr::new(from.ip().to_canonical(), from.port());
    let shared = Arc::clone(&lane.shared);
    let Some(certificate) = lane.shared.certificates.current() else {
        shared.refusals.tell(Reason::NoCertificate, from, "there is no certificate for tunnels");
        return refuse_busy(tcp.disarmed());
    };
    let tunnel = match lane.shared.acceptor().accept(tcp.disarmed(), &certificate).await {
        Ok(tunnel) => tunnel,
        Err(error) => return shared.refusals.tell(Reason::from(&error), from, error),
    };
    let stop = drain.started_token();
    let forced = drain.clone();
    let serve = tunnel.serve(stop, move |request| {
        let (lane, drain) = (Arc::clone(&lane), drain.clone());
        task::spawn("connection", connection(lane, request, drain));
    });
    tokio::select! {
        () = forced.forced() => {}
        end = serve => if let ServeEnd::Protocol(rule) = end {
            shared.refusals.tell(Reason::Tunnel, from, rule);
        }
    }
}

/// Answers one CONNECT and serves what comes through it.
async fn connection(lane: Arc<Lane>, request: InboundRequest, drain: DrainToken) {
    if let Some(bind) = inside::asked(&lane, request.authority()) {
        return at_edge(lane, request, bind, drain).await;
    }
    let (asked, peer) = match request.authority().stranger_s() {
        None => (request.authority().clone(), peer(&lane, &request)),
        Some(asked) => match stranger(&lane, &request, asked) {
            Some(stranger) => (Authority::Address(asked), stranger),
            None => {
                let error = format!("{} leads somebody here who asks for another: {asked}", request.peer());
                lane.shared.refusals.tell(Reason::NotBound, request.peer_address(), error);
                return request.refuse(status(NotOurs::NotBound));
            }
        },
    };
    let downstream = Arc::new(Downstream::new(lane, peer, asked, drain));
    let refused = match ports::is_mesh_port(downstream.asked.port()) {
        true => Err(NotOurs::UnknownPort),
        false => downstream.bound().map(|_| ()),
    };
    if let Err(why) = refused {
        let error = format!("{} asks for {}: {why}", downstream.client(), downstream.asked);
        downstream.lane.shared.refusals.tell(why.into(), downstream.from(), error);
        return request.refuse(status(why));
    }
    let from = request.peer_address().ip();
    let Ok(stream) = request.accept(&downstream.lane.shared.own.baggage) else { return };
    stream.measure(|| downstream.lane.shared.path(Way::In, from, stream.peer()));
    connection::serve(downstream, stream).await;
}

/// The same for what a gateway listens for.
async fn at_edge(lane: Arc<Lane>, request: InboundRequest, bind: u16, drain: DrainToken) {
    let peer = peer(&lane, &request);
    let come = match Come::new(&lane, bind, peer.address, peer.identity) {
        Ok(come) => come,
        Err(full) => {
            let reason = if full == Full::All { Reason::ConnectionLimit } else { Reason::SourceLimit };
            lane.shared.refusals.tell(reason, peer.address, format!("port {bind}: too many connections"));
            return request.refuse(StatusCode::SERVICE_UNAVAILABLE);
        }
    };
    let Ok(stream) = request.accept(&lane.shared.own.baggage) else { return };
    stream.measure(|| lane.shared.path(Way::In, peer.address.ip(), stream.peer()));
    come.serve(lane, stream, drain).await;
}

/// In ztunnel's codes: what is a mistake is 400, what may be better elsewhere or later 503.
fn status(why: NotOurs) -> StatusCode {
    match why {
        NotOurs::NotSynced => StatusCode::SERVICE_UNAVAILABLE,
        NotOurs::Unknown | NotOurs::NotBound | NotOurs::UnknownPort => StatusCode::BAD_REQUEST,
    }
}

/// A client without a tunnel whom the agent of a pod leads here, because this is the waypoint of that pod, and who he is, if he has proved that to the agent. Nobody
/// else may: it would get around what is refused to its own identity.
fn stranger(lane: &Lane, request: &InboundRequest, asked: SocketAddr) -> Option<Peer> {
    let (view, own) = (lane.shared.state.view(), &lane.shared.own);
    let pod = view.snapshot.workload_by_address(&own.place.network, &asked.ip())?;
    let is_it =
        pod.identity() == *request.peer() && pod.addresses.contains(&request.peer_address().ip().to_canonical());
    let said = request.forwarded()?;
    let (client, claimed) = (said.client?, said.identity.as_ref()?);
    let client = SocketAddr::new(client.ip().to_canonical(), client.port());
    // Nobody is this waypoint itself.
    let is_own = own.place.ips.contains(&client.ip());
    (is_it && !is_own && client.port() != 0).then(|| match claimed {
        Claimed::Nobody => own.as_stranger(client),
        // He has shown the agent of the pod who he is, in a way of his own.
        Claimed::Identity(identity) => {
            Peer { identity: identity.clone(), baggage: Default::default(), ..own.on_behalf_of(client) }
        }
    })
}

/// The client is who the certificate says. Its address is the tunnel's; its agent adds the port, if it speaks of the same address.
fn peer(lane: &Lane, request: &InboundRequest) -> Peer {
    let tunnel = request.peer_address();
    let claimed = request.forwarded().and_then(|forwarded| forwarded.client);
    let address = claimed.filter(|claimed| claimed.ip() == tunnel.ip().to_canonical()).unwrap_or(tunnel);
    let address = SocketAddr::new(address.ip().to_canonical(), address.port());
    // Of an agent it would be its application's word.
    let said = request.hops();
    let is_believed =
        said > 0 && circles::is_proxy(&lane.shared.state.view(), &lane.shared.own, tunnel.ip(), Some(request.peer()));
    let hops = if is_believed { hops::passed(hops::From::Tunnel(said)) } else { 0 };
    Peer { address, identity: request.peer().clone(), baggage: request.baggage().clone(), stranger: false, hops }
}
