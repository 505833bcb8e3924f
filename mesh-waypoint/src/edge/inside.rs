//! One connection to what a gateway listens for that comes in a tunnel of the mesh: whose it is has been proved, so a listener that is for the mesh (Istio's
//! `ISTIO_MUTUAL`) takes it as it is. No PROXY header is expected, but of those that are named as who sends them. Called by `inbound`.

use std::net::SocketAddr;
use std::sync::Arc;

use ::bytes::Bytes;
use mesh_core::Identity;
use mesh_core::listener::{Encryption, Inside, Listener, Port, Serves};
use mesh_runtime::{DrainToken, Rarely};
use mesh_transport::hbone::{Authority, HboneStream};
use mesh_transport::tls::is_tls;
use tokio::time::Instant;

use super::connection::{Ended, ends, refused, requests, told};
use super::{bytes, hello, proxy};
use crate::connection;
use crate::engine::Lane;
use crate::entry::view::Edge;
use crate::entry::{Entry, EntryTls, headers};
use crate::http::io::Io;
use crate::http::sniff::{Spoken, judge, sniff};
use crate::refused::Reason;
use crate::sources::{EdgePlace, Full};

/// A connection that may come in.
#[derive(Debug)]
pub struct Come {
    entry: Entry,
    _place: EdgePlace,
}

/// The port of this pod that is asked for, if a gateway listens there.
pub fn asked(lane: &Lane, authority: &Authority) -> Option<u16> {
    let Authority::Address(asked) = authority else { return None };
    let is_own = lane.shared.own.place.ips.contains(&asked.ip().to_canonical());
    let listens = || lane.shared.state.view().edge.listeners.port(asked.port()).is_some();
    (is_own && listens()).then_some(asked.port())
}

impl Come {
    /// A connection of this client to a port, if there is a place for it.
    ///
    /// # Errors
    /// Which places are taken.
    pub fn new(lane: &Lane, bind: u16, from: SocketAddr, client: Identity) -> Result<Self, Full> {
        let mut place = lane.edge_place()?;
        // Proxies of requests come from a few addresses, whoever asks through them.
        if lane.shared.state.view().edge.listeners.topology().trusted_proxies == 0 {
            place.of(from.ip(), lane.shared.settings.source_connections)?;
        }
        let mut entry = Entry::new(bind, from);
        entry.client = Some(client);
        Ok(Self { entry, _place: place })
    }

    /// Serves it to its end.
    pub async fn serve(self, lane: Arc<Lane>, stream: HboneStream, drain: DrainToken) {
        let (shared, bind, from) = (Arc::clone(&lane.shared), self.entry.bind, self.entry.from);
        let cut = drain.forced_token();
        let cut = Rarely::new(cut.cancelled());
        tokio::select! {
            () = cut => {}
            served = accepted(lane, stream, self.entry, drain) => told(&shared, served, bind, from),
        }
    }
}

/// Who serves it, by what is listened for and what is spoken.
async fn accepted(lane: Arc<Lane>, mut stream: HboneStream, mut entry: Entry, drain: DrainToken) -> Result<(), Ended> {
    let edge = Arc::clone(&lane.shared.state.view().edge);
    let gone = || refused(Reason::NoListener, "nothing is listened for any more");
    let port = edge.listeners.port(entry.bind).ok_or_else(gone)?;
    let (topology, settings) = (edge.listeners.topology(), &lane.shared.settings);
    let is_sender = topology.proxy_peers.is_some() && topology.believes(entry.from.ip());
    if topology.proxy_protocol && is_sender {
        let said = Box::pin(proxy::read(&mut stream, settings.handshake_timeout)).await;
        entry.from = said.map_err(|error| refused(error.reason(), error))?.unwrap_or(entry.from);
    }
    match port {
        Port::Http(_) => return Ok(Box::pin(requests(lane, entry, stream, None, drain)).await?),
        Port::Tcp(listener) => return copied(&lane, entry, listener, stream, (Bytes::new(), false), drain).await,
        Port::Tls { .. } => {}
    }
    if let Some(listener) = port.all_inside() {
        entry.tls = Some(of_mesh(&lane, &entry));
        return copied(&lane, entry, listener, stream, (Bytes::new(), false), drain).await;
    }
    // Only where bytes may be meant the server may begin.
    let takes_bytes = !matches!(port.inside(false), Inside::Nobody);
    let limit = if takes_bytes { settings.sniff_timeout } else { settings.header_timeout };
    let heard = Box::pin(sniff(&mut stream, limit)).await;
    let (spoken, first) = heard.map_err(|error| error.to_string())?;
    if spoken == Spoken::Other && first.is_empty() && !takes_bytes {
        connection::farewell(&mut stream, settings.drain_idle).await;
        return Ok(());
    }
    if spoken == Spoken::Other && !first.is_empty() && judge(&first).is_none() {
        return Err(refused(Reason::HeadTimeout, "what is spoken cannot be told in time"));
    }
    if spoken == Spoken::Other && !first.is_empty() && is_tls(&first) {
        return Box::pin(encrypted(lane, &edge, port, entry, stream, first, drain)).await;
    }
    let of_mesh = of_mesh(&lane, &entry);
    entry.tls = Some(of_mesh);
    match port.inside(spoken != Spoken::Other) {
        Inside::Requests => Ok(Box::pin(requests(lane, entry, stream, Some((spoken, first)), drain)).await?),
        Inside::Bytes(listener) => copied(&lane, entry, listener, stream, (first, false), drain).await,
        Inside::Nobody => Err(refused(Reason::NotTls, "not_tls")),
        Inside::Unclear => Err(refused(Reason::NotTls, "several listeners of the port take such bytes of the mesh")),
    }
}

/// The client's own TLS is in the tunnel.
async fn encrypted(
    lane: Arc<Lane>,
    edge: &Edge,
    port: &Port,
    mut entry: Entry,
    mut stream: HboneStream,
    first: Bytes,
    drain: DrainToken,
) -> Result<(), Ended> {
    let limit = lane.shared.settings.handshake_timeout;
    let deadline = Instant::now() + limit;
    let hello = hello::peek(&mut stream, &first, limit).await;
    let hello = hello.map_err(|error| refused(error.reason(), error))?;
    let listener = port.named(hello.name.as_deref()).map(Arc::clone);
    entry.tls = Some(EntryTls { name: hello.name.clone(), ..EntryTls::default() });
    let Some(listener) = listener else {
        bytes::refused(&lane, entry, drain);
        return Err(Ended::Told("no listener has the name".to_owned()));
    };
    match (&listener.encryption, &listener.serves) {
        (Encryption::Ends(_), _) => {
            let terms = edge.terms(&listener).map(Arc::clone);
            let terms = terms.map_err(|why| refused(Reason::NoCertificate, why))?;
            let stream = Io::new(stream, hello.bytes, Arc::default());
            ends(lane, entry, listener, &terms, stream, deadline, drain).await
        }
        (Encryption::Mesh, Serves::Http(_)) => {
            Err(refused(Reason::Handshake, "TLS in a tunnel, which the listener has in place of TLS"))
        }
        (Encryption::Mesh, _) => {
            entry.tls = Some(EntryTls { name: hello.name, ..of_mesh(&lane, &entry) });
            copied(&lane, entry, &listener, stream, (hello.bytes, true), drain).await
        }
        (Encryption::Passes | Encryption::None, _) => {
            copied(&lane, entry, &listener, stream, (hello.bytes, true), drain).await
        }
    }
}

/// What stands for TLS.
fn of_mesh(lane: &Lane, entry: &Entry) -> EntryTls {
    let own = &lane.shared.own.identity;
    let client = entry.client.as_ref().and_then(|client| headers::element(own, client));
    EntryTls { client, inside: true, ..EntryTls::default() }
}

async fn copied(
    lane: &Arc<Lane>,
    entry: Entry,
    listener: &Listener,
    stream: HboneStream,
    first: (Bytes, bool),
    drain: DrainToken,
) -> Result<(), Ended> {
    Ok(Box::pin(bytes::inside(lane, entry, listener, stream, first, drain)).await?)
}
