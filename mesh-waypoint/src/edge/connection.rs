//! One connection from outside of the mesh: who it is from, which listener it means, and who serves it. Everything before the first request or byte has one
//! deadline.

use std::net::SocketAddr;
use std::sync::Arc;

use ::bytes::Bytes;
use http::HeaderValue;
use mesh_core::listener::{Encryption, Listener, Port, Serves};
use mesh_runtime::{DrainToken, Rarely};
use mesh_transport::socket::Armed;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::{bytes, hello, proxy};
use crate::connection;
use crate::downstream::Downstream;
use crate::engine::Lane;
use crate::entry::terms::{self, Terms};
use crate::entry::{Entry, EntryTls};
use crate::exchange;
use crate::http::io::Io;
use crate::http::serve::{End, Serve, serve as serve_http};
use crate::http::sniff::Spoken;
use crate::refused::Reason;
use crate::shared::Shared;
use crate::sources::EdgePlace;

/// Serves a connection to its end.
pub async fn serve(lane: Arc<Lane>, tcp: Armed, bind: u16, from: SocketAddr, drain: DrainToken) {
    let from = SocketAddr::new(from.ip().to_canonical(), from.port());
    let shared = Arc::clone(&lane.shared);
    let Ok(mut place) = lane.edge_place() else {
        return shared.refusals.tell(Reason::ConnectionLimit, from, "too many connections");
    };
    let cut = drain.forced_token();
    let cut = Rarely::new(cut.cancelled());
    tokio::select! {
        () = cut => {}
        served = accepted(lane, tcp.disarmed(), Entry::new(bind, from), &mut place, drain) => {
            told(&shared, served, bind, from);
        }
    }
}

/// Tells of one that has ended out of order.
pub(super) fn told(shared: &Shared, served: Result<(), Ended>, bind: u16, from: SocketAddr) {
    match served {
        Ok(()) => {}
        Err(Ended::Refused(reason, why)) => shared.refusals.tell(reason, from, format!("port {bind}: {why}")),
        Err(Ended::Told(why)) => tracing::debug!(%from, bind, why, "a connection was refused"),
    }
}

/// Why a connection has ended out of order.
pub(super) enum Ended {
    /// Nobody has told of it.
    Refused(Reason, String),
    /// It has its record, or its requests have.
    Told(String),
}

impl From<String> for Ended {
    fn from(why: String) -> Self {
        Self::Told(why)
    }
}

/// It was refused.
pub(super) fn refused(reason: Reason, why: impl ToString) -> Ended {
    Ended::Refused(reason, why.to_string())
}

/// Who serves a connection. Nothing of the configuration is held by it but what it needs: it may live long.
enum Way {
    /// Requests.
    Requests,
    /// Bytes to a place of this listener; this much was read already.
    Bytes(Arc<Listener>, Bytes),
    /// Nobody serves the name that it asks for.
    Nowhere(&'static str),
    /// TLS ends here first.
    Ends(Arc<Listener>, Arc<Terms>, Option<String>, Bytes),
}

async fn accepted(
    lane: Arc<Lane>,
    mut tcp: TcpStream,
    mut entry: Entry,
    place: &mut EdgePlace,
    drain: DrainToken,
) -> Result<(), Ended> {
    let deadline = Instant::now() + lane.shared.settings.handshake_timeout;
    tcp.set_nodelay(true).map_err(|error| error.to_string())?;
    let found = timeout_at(deadline, Box::pin(way(&lane, &mut tcp, &mut entry, place))).await;
    // In a box each: they are of very different sizes, and the task of a connection is as large as the largest that is not.
    match found.map_err(|_| late())?? {
        Way::Requests => Ok(Box::pin(requests(lane, entry, tcp, None, drain)).await?),
        Way::Bytes(listener, first) => Ok(Box::pin(bytes::plain(&lane, entry, &listener, tcp, first, drain)).await?),
        Way::Nowhere(why) => {
            bytes::refused(&lane, entry, drain);
            Err(why.to_owned().into())
        }
        Way::Ends(listener, terms, name, first) => {
            let stream = Io::new(tcp, first, Arc::default());
            entry.tls = Some(EntryTls { name, ..EntryTls::default() });
            Box::pin(ends(lane, entry, listener, &terms, stream, deadline, drain)).await
        }
    }
}

/// Ends TLS, by the deadline, and serves what is in it.
pub(super) async fn ends<S>(
    lane: Arc<Lane>,
    mut entry: Entry,
    listener: Arc<Listener>,
    terms: &Terms,
    stream: S,
    deadline: Instant,
    drain: DrainToken,
) -> Result<(), Ended>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let accept = TlsAcceptor::from(Arc::clone(&terms.config)).accept(stream);
    let stream = timeout_at(deadline, Box::pin(accept)).await.map_err(|_| late())?;
    let stream = stream.map_err(|error| refused(Reason::of_handshake(&error), error))?;
    let stream = Box::new(stream);
    let (agreed, client) = agreed(&stream, terms).map_err(|why| refused(Reason::ClientCertificate, why))?;
    let clients = match &listener.encryption {
        Encryption::Ends(tls) => tls.clients.clone(),
        _ => None,
    };
    let name = entry.tls.take().and_then(|tls| tls.name);
    entry.tls = Some(EntryTls { name, client, clients, inside: false });
    Ok(Box::pin(decrypted(lane, entry, listener, stream, agreed, drain)).await?)
}

fn late() -> Ended {
    refused(Reason::HandshakeTimeout, "what comes before the first request did not end in time")
}

fn of_mesh_alone() -> Ended {
    refused(Reason::NotOfMesh, "the listener takes tunnels of the mesh alone")
}

/// Finds out who serves a connection, and where it comes from.
async fn way(lane: &Lane, tcp: &mut TcpStream, entry: &mut Entry, place: &mut EdgePlace) -> Result<Way, Ended> {
    let edge = Arc::clone(&lane.shared.state.view().edge);
    let limit = lane.shared.settings.handshake_timeout;
    let port = edge
        .listeners
        .port(entry.bind)
        .ok_or_else(|| refused(Reason::NoListener, "nothing is listened for any more"))?;
    let topology = edge.listeners.topology();
    let mut from = Some(entry.from.ip());
    if topology.proxy_protocol {
        if !topology.believes(entry.from.ip()) {
            return Err(refused(Reason::ProxyUntrusted, "no PROXY header is believed of who connects from there"));
        }
        let said = proxy::read(tcp, limit).await.map_err(|error| refused(error.reason(), error))?;
        entry.from = said.unwrap_or(entry.from);
        // Whoever stands in front speaks for many, and sometimes for itself.
        from = said.map(|said| said.ip());
    }
    // Proxies of requests come from a few addresses, whoever asks through them.
    let from = from.filter(|_| topology.trusted_proxies == 0);
    if let Some(Err(_)) = from.map(|from| place.of(from, lane.shared.settings.source_connections)) {
        return Err(refused(Reason::SourceLimit, "too many connections of one source"));
    }
    match port {
        Port::Http(_) => Ok(Way::Requests),
        Port::Tcp(listener) => Ok(Way::Bytes(Arc::clone(listener), Bytes::new())),
        Port::Tls { .. } if port.is_inside() => Err(of_mesh_alone()),
        Port::Tls { .. } => {
            let hello = hello::peek(tcp, &[], limit).await.map_err(|error| refused(error.reason(), error))?;
            let Some(listener) = port.named(hello.name.as_deref()).map(Arc::clone) else {
                entry.tls = Some(EntryTls { name: hello.name, ..EntryTls::default() });
                return Ok(Way::Nowhere("no listener has the name"));
            };
            match listener.encryption {
                Encryption::Passes => {
                    entry.tls = Some(EntryTls { name: hello.name, ..EntryTls::default() });
                    return Ok(Way::Bytes(listener, hello.bytes));
                }
                Encryption::Mesh => return Err(of_mesh_alone()),
                Encryption::Ends(_) | Encryption::None => {}
            }
            let terms = Arc::clone(edge.terms(&listener).map_err(|why| refused(Reason::NoCertificate, why))?);
            Ok(Way::Ends(listener, terms, hello.name, hello.bytes))
        }
    }
}

/// What the handshake has agreed on, and the client's certificate, if the listener lets it in.
fn agreed<S>(stream: &TlsStream<S>, terms: &Terms) -> Result<(Option<Spoken>, Option<HeaderValue>), String> {
    let (_, tls) = stream.get_ref();
    let chain = tls.peer_certificates();
    terms.admit(chain).map_err(|why| format!("the client is not let in: {why}"))?;
    let client = chain.filter(|chain| terms.vouches_for(chain)).and_then(<[_]>::first);
    let client = client.and_then(|leaf| HeaderValue::from_str(&terms::element(leaf)).ok());
    let alpn = tls.alpn_protocol().map(|name| if name == b"h2" { Spoken::Http2 } else { Spoken::Http1 });
    Ok((alpn, client))
}

/// What comes out of TLS that ends here.
async fn decrypted<S>(
    lane: Arc<Lane>,
    entry: Entry,
    listener: Arc<Listener>,
    stream: S,
    alpn: Option<Spoken>,
    drain: DrainToken,
) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    match &listener.serves {
        Serves::Http(_) => requests(lane, entry, stream, alpn.map(|spoken| (spoken, Bytes::new())), drain).await,
        Serves::Bytes(_) => bytes::decrypted(&lane, entry, &listener, stream, drain).await,
        Serves::Datagrams(_) => Err("datagrams do not come in connections".to_owned()),
        Serves::Closed(why) => {
            bytes::refused(&lane, entry, drain);
            Err(why.to_string())
        }
    }
}

/// Serves requests. Who has not agreed on a protocol may speak either of HTTP; of one that was seen, this much was read already.
pub(super) async fn requests<S>(
    lane: Arc<Lane>,
    entry: Entry,
    mut stream: S,
    agreed: Option<(Spoken, Bytes)>,
    drain: DrainToken,
) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let downstream = Arc::new(Downstream::at_edge(lane, entry, drain));
    let Downstream { watch, drain, lane, .. } = &*downstream;
    let settings = &lane.shared.settings;
    let (spoken, prefix) = match agreed {
        Some(agreed) => agreed,
        None => {
            // In a box, or all that have agreed would have room for it.
            let (limit, idle, began) = (settings.header_timeout, settings.drain_idle, Instant::now());
            let heard = Box::pin(connection::heard(&mut stream, limit, idle, &downstream.drain)).await;
            match heard {
                None => return Ok(()),
                Some(Ok((_, first))) if first.is_empty() => {
                    if began.elapsed() >= limit {
                        lane.shared.refusals.ended(watch, &Err(End::Silent), downstream.from());
                    }
                    connection::farewell(&mut stream, idle).await;
                    return Ok(());
                }
                Some(heard) => heard.map_err(|error| error.to_string())?,
            }
        }
    };
    let silent = settings.header_timeout;
    let serving = Serve { settings, watch: Arc::clone(watch), drain, spare: &lane.spare, of_proxy: false, silent };
    let requests = Arc::clone(&downstream);
    let handle = move |request| exchange::handle(Arc::clone(&requests), request);
    // What is no HTTP is answered as a request that cannot be read.
    let ended = serve_http(serving, spoken, stream, prefix, handle).await;
    lane.shared.refusals.ended(watch, &ended, downstream.from());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of what an asynchronous function gives back.
    fn bytes<A, B, C, D, E, F: Future>(_: impl Fn(A, B, C, D, E) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_connection_takes_no_more_memory_than_its_kind_needs() {
        assert!(bytes(serve) <= 1536, "{} bytes: what only some connections are belongs in a box", bytes(serve));
        let plain = bytes(requests::<TcpStream>);
        assert!(plain <= 3072, "{plain} bytes");
        let tls = bytes(requests::<Box<TlsStream<Io<TcpStream>>>>);
        assert!(tls <= 3072, "{tls} bytes");
    }
}
