//! Listeners of gateways, both ways. One that cannot be read in all of its parts is there all the same and closes connections: left out, a less specific one
//! would take them. One of which not even the place can be read refuses them all.

use ipnet::IpNet;
use mesh_core::ArcStr;
use mesh_core::l7::{HostPattern, Target};
use mesh_core::listener::{
    ClientCert, Clients, DatagramPlace, DatagramRoute, Encryption, Listener, Listeners, Passage, Serves, Tls, Topology,
    Transport,
};
use prost::Message;
use std::sync::Arc;

use super::{ClosedRule, Reader, action, encode_route_table, few, spoken};
use crate::convert::{ConvertError, field};
use crate::wire::l7 as wire;

/// Listeners of one gateway, names and passages of one listener, names of certificates.
const MOST_LISTENERS: usize = 4096;
const MOST: usize = 10_000;
/// Services whose waypoints are not gone around.
const MOST_SERVICES: usize = 100_000;
/// Proxies in front of a gateway.
const MOST_PROXIES: u32 = 64;

/// Listeners, and what of them is closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadListeners {
    /// They.
    pub listeners: Listeners,
    /// Listeners that close connections because they could not be read, with the reason.
    pub closed: Vec<(ArcStr, ConvertError)>,
    /// Rules of their tables that answer 500 because they could not be read, the first of them.
    pub closed_rules: Vec<ClosedRule>,
}

/// Reads one `undermesh.l7.v1.Listeners`.
pub fn listeners(bytes: &[u8]) -> Result<ReadListeners, ConvertError> {
    let message = wire::Listeners::decode(bytes).map_err(ConvertError::decode)?;
    if message.encoded_len() != bytes.len() {
        return Err(ConvertError::UnknownFields);
    }
    few("listeners", message.listeners.len(), MOST_LISTENERS)?;
    few("through_waypoints", message.through_waypoints.len(), MOST_SERVICES)?;
    let (mut reader, mut closed, mut all) = (Reader::default(), Vec::new(), Vec::new());
    for bytes in &message.listeners {
        let (listener, problem) = listener(bytes, &mut reader)?;
        closed.extend(problem.map(|problem| (listener.name.clone(), problem)));
        all.push(Arc::new(listener));
    }
    let service = |key: String| field::key("through_waypoints", &key);
    let services = message.through_waypoints.into_iter().map(service).collect::<Result<_, _>>()?;
    let name = field::text("name", message.name)?;
    let listeners = Listeners::new(name, all)
        .behind(message.topology.map(topology).transpose()?.unwrap_or_default())
        .through_waypoints(services);
    Ok(ReadListeners { listeners, closed, closed_rules: reader.closed })
}

/// The bytes of an `undermesh.l7.v1.Listeners`. The same value always gives the same bytes.
#[must_use]
pub fn encode_listeners(listeners: &Listeners) -> Vec<u8> {
    let topology = listeners.topology();
    let topology = wire::Topology {
        trusted_proxies: topology.trusted_proxies,
        proxy_protocol: topology.proxy_protocol,
        client_cert: match topology.client_cert {
            ClientCert::SanitizeSet => wire::ForwardedClientCert::SanitizeSet,
            ClientCert::Sanitize => wire::ForwardedClientCert::Sanitize,
            ClientCert::AppendForward => wire::ForwardedClientCert::AppendForward,
            ClientCert::ForwardOnly => wire::ForwardedClientCert::ForwardOnly,
            ClientCert::AlwaysForwardOnly => wire::ForwardedClientCert::AlwaysForwardOnly,
        }
        .into(),
        proxy_peers: topology.proxy_peers.as_ref().map(|all| wire::ProxyPeers { all: all.iter().map(block).collect() }),
    };
    wire::Listeners {
        name: listeners.name().to_string(),
        listeners: listeners.all().iter().map(|listener| write(listener).encode_to_vec()).collect(),
        topology: Some(topology),
        through_waypoints: listeners.waypoint_services().iter().map(ToString::to_string).collect(),
    }
    .encode_to_vec()
}

fn topology(message: wire::Topology) -> Result<Topology, ConvertError> {
    if message.trusted_proxies > MOST_PROXIES {
        let problem = format!("{}, the limit is {MOST_PROXIES}", message.trusted_proxies);
        return Err(ConvertError::invalid("topology.trusted_proxies", problem));
    }
    let client_cert = match field::known("topology.client_cert", message.client_cert)? {
        wire::ForwardedClientCert::SanitizeSet => ClientCert::SanitizeSet,
        wire::ForwardedClientCert::Sanitize => ClientCert::Sanitize,
        wire::ForwardedClientCert::AppendForward => ClientCert::AppendForward,
        wire::ForwardedClientCert::ForwardOnly => ClientCert::ForwardOnly,
        wire::ForwardedClientCert::AlwaysForwardOnly => ClientCert::AlwaysForwardOnly,
    };
    let peers = message.proxy_peers.map(|peers| {
        few("topology.proxy_peers", peers.all.len(), MOST)?;
        peers.all.iter().map(|one| field::net("topology.proxy_peers", &one.address, one.length)).collect()
    });
    Ok(Topology {
        trusted_proxies: message.trusted_proxies,
        proxy_protocol: message.proxy_protocol,
        proxy_peers: peers.transpose()?,
        client_cert,
    })
}

fn block(range: &IpNet) -> wire::Block {
    wire::Block { address: field::octets(range.addr()), length: range.prefix_len().into() }
}

/// A listener, closed if there is a problem. An error: its place is not known.
fn listener(bytes: &[u8], reader: &mut Reader) -> Result<(Listener, Option<ConvertError>), ConvertError> {
    let message = wire::Listener::decode(bytes).map_err(ConvertError::decode)?;
    let whole = message.encoded_len() == bytes.len();
    let place = message.place.clone().ok_or(ConvertError::Missing { field: "listeners.place" })?;
    let mut listener = Listener {
        name: field::text("listeners.place.name", place.name)?,
        gateway: ArcStr::new(),
        port: field::port("listeners.place.port", place.port)?,
        bind: field::port("listeners.place.bind", place.bind)?,
        transport: match field::known("listeners.place.transport", place.transport)? {
            wire::ListenerTransport::Tcp => Transport::Tcp,
            wire::ListenerTransport::Udp => Transport::Udp,
        },
        hosts: hosts("listeners.place.hosts", place.hosts)?,
        encryption: match field::known("listeners.place.encryption", place.encryption)? {
            wire::ListenerEncryption::None => Encryption::None,
            // Closed, what would be shown does not matter.
            wire::ListenerEncryption::Ends => Encryption::Ends(Tls::with(Vec::new())),
            wire::ListenerEncryption::Passes => Encryption::Passes,
            wire::ListenerEncryption::Mesh => Encryption::Mesh,
        },
        serves: Serves::Closed(ArcStr::new()),
    };
    let read = if whole { open(&mut listener, message, reader) } else { Err(ConvertError::UnknownFields) };
    if let Err(problem) = &read {
        let why = action::reason("closed", format!("the listener cannot be read: {problem}"));
        listener.serves = Serves::Closed(why.unwrap_or_default());
    }
    Ok((listener, read.err()))
}

/// Everything but the place.
fn open(listener: &mut Listener, message: wire::Listener, reader: &mut Reader) -> Result<(), ConvertError> {
    use wire::listener::Serves as Kind;
    listener.gateway = field::text("listeners.gateway", message.gateway)?;
    match (&mut listener.encryption, message.tls) {
        (Encryption::Ends(own), Some(tls)) => *own = self::tls(tls)?,
        (Encryption::Ends(_), None) => return Err(ConvertError::Missing { field: "listeners.tls" }),
        (_, Some(_)) => return Err(ConvertError::invalid("listeners.tls", "TLS does not end here")),
        (_, None) => {}
    }
    listener.serves = match message.serves {
        Some(Kind::Datagrams(_)) if listener.transport == Transport::Tcp || listener.encryption != Encryption::None => {
            return Err(ConvertError::invalid("listeners.datagrams", "connections come there"));
        }
        Some(Kind::Datagrams(datagrams)) => Serves::Datagrams(datagrams.route.map(datagram_route).transpose()?),
        Some(Kind::Http(_) | Kind::Bytes(_)) if listener.transport == Transport::Udp => {
            return Err(ConvertError::invalid("listeners.serves", "datagrams come there"));
        }
        Some(Kind::Http(_)) if listener.encryption == Encryption::Passes => {
            return Err(ConvertError::invalid("listeners.http", "TLS does not end here"));
        }
        Some(Kind::Http(bytes)) => Serves::Http(Arc::new(reader.table(&bytes)?)),
        Some(Kind::Bytes(passages)) => {
            few("listeners.bytes", passages.all.len(), MOST)?;
            Serves::Bytes(passages.all.into_iter().map(|one| passage(one, reader)).collect::<Result<_, _>>()?)
        }
        Some(Kind::Closed(why)) => Serves::Closed(action::reason("listeners.closed", why)?),
        None => return Err(ConvertError::Missing { field: "listeners.serves" }),
    };
    Ok(())
}

fn passage(message: wire::Passage, reader: &mut Reader) -> Result<Passage, ConvertError> {
    let forward = message.forward.ok_or(ConvertError::Missing { field: "bytes.forward" })?;
    Ok(Passage {
        origin: field::text("bytes.origin", message.origin)?,
        hosts: hosts("bytes.hosts", message.hosts)?,
        forward: action::read_forward(forward, &mut reader.budget)?,
    })
}

fn datagram_route(message: wire::DatagramRoute) -> Result<DatagramRoute, ConvertError> {
    few("datagrams.places", message.places.len(), MOST)?;
    let places = message.places.into_iter().map(datagram_place).collect::<Result<_, _>>()?;
    let origin = field::text("datagrams.origin", message.origin)?;
    DatagramRoute::new(origin, places).map_err(|error| ConvertError::invalid("datagrams.weight", error.to_string()))
}

fn datagram_place(message: wire::DatagramPlace) -> Result<DatagramPlace, ConvertError> {
    let target = action::target(message.target)?;
    let port = match target {
        Target::Cluster(_) => field::port("datagrams.port", message.port)?,
        Target::Broken(_) => field::port_or_zero("datagrams.port", message.port)?,
    };
    Ok(DatagramPlace { target, port, weight: message.weight })
}

fn tls(message: wire::ListenerTls) -> Result<Tls, ConvertError> {
    let wire::ListenerTls { certificates, clients: own, oldest, newest, suites, groups } = message;
    Ok(Tls {
        certificates: texts("tls.certificates", certificates)?,
        clients: own.map(clients).transpose()?,
        spoken: spoken::read(wire::Spoken { oldest, newest, suites, groups })?,
    })
}

fn clients(message: wire::ListenerClients) -> Result<Clients, ConvertError> {
    let digests = |field, all: Vec<Vec<u8>>| {
        few(field, all.len(), MOST)?;
        let digest = |bytes: Vec<u8>| {
            <[u8; 32]>::try_from(bytes).map_err(|_| ConvertError::invalid(field, "not the length of SHA-256"))
        };
        all.into_iter().map(digest).collect::<Result<Vec<_>, _>>()
    };
    Ok(Clients {
        required: message.required,
        unverified: message.unverified,
        roots: texts("clients.roots", message.roots)?,
        names: texts("clients.names", message.names)?,
        keys: digests("clients.keys", message.keys)?,
        hashes: digests("clients.hashes", message.hashes)?,
    })
}

fn texts(field: &'static str, all: Vec<String>) -> Result<Vec<ArcStr>, ConvertError> {
    few(field, all.len(), MOST)?;
    all.into_iter().map(|text| field::text(field, text)).collect()
}

fn hosts(field: &'static str, all: Vec<String>) -> Result<Vec<HostPattern>, ConvertError> {
    few(field, all.len(), MOST)?;
    let host = |text: String| {
        let problem = || ConvertError::invalid(field, format!("{text:?} is neither a host nor `*.` with one"));
        HostPattern::parse(&text).ok_or_else(problem)
    };
    all.into_iter().map(host).collect()
}

fn write(listener: &Listener) -> wire::Listener {
    let strings = |all: &[ArcStr]| all.iter().map(ToString::to_string).collect();
    let patterns = |all: &[HostPattern]| all.iter().map(ToString::to_string).collect();
    let clients = |clients: &Clients| wire::ListenerClients {
        required: clients.required,
        unverified: clients.unverified,
        roots: strings(&clients.roots),
        names: strings(&clients.names),
        keys: clients.keys.iter().map(|digest| digest.to_vec()).collect(),
        hashes: clients.hashes.iter().map(|digest| digest.to_vec()).collect(),
    };
    let (encryption, tls) = match &listener.encryption {
        Encryption::None => (wire::ListenerEncryption::None, None),
        Encryption::Passes => (wire::ListenerEncryption::Passes, None),
        Encryption::Mesh => (wire::ListenerEncryption::Mesh, None),
        Encryption::Ends(tls) => {
            let wire::Spoken { oldest, newest, suites, groups } = spoken::write(&tls.spoken);
            let certificates = strings(&tls.certificates);
            let clients = tls.clients.as_ref().map(clients);
            let tls = wire::ListenerTls { certificates, clients, oldest, newest, suites, groups };
            (wire::ListenerEncryption::Ends, Some(tls))
        }
    };
    let passage = |passage: &Passage| wire::Passage {
        origin: passage.origin.to_string(),
        hosts: patterns(&passage.hosts),
        forward: Some(action::write_forward(&passage.forward)),
    };
    let transport = match listener.transport {
        Transport::Tcp => wire::ListenerTransport::Tcp,
        Transport::Udp => wire::ListenerTransport::Udp,
    };
    wire::Listener {
        place: Some(wire::ListenerPlace {
            name: listener.name.to_string(),
            port: listener.port.into(),
            bind: listener.bind.into(),
            hosts: patterns(&listener.hosts),
            encryption: encryption.into(),
            transport: transport.into(),
        }),
        gateway: listener.gateway.to_string(),
        serves: Some(match &listener.serves {
            Serves::Http(table) => wire::listener::Serves::Http(encode_route_table(table)),
            Serves::Bytes(all) => {
                wire::listener::Serves::Bytes(wire::Passages { all: all.iter().map(passage).collect() })
            }
            Serves::Datagrams(route) => {
                let route = route.as_ref().map(write_datagram_route);
                wire::listener::Serves::Datagrams(wire::Datagrams { route })
            }
            Serves::Closed(why) => wire::listener::Serves::Closed(why.to_string()),
        }),
        tls,
    }
}

fn write_datagram_route(route: &DatagramRoute) -> wire::DatagramRoute {
    let place = |place: &DatagramPlace| wire::DatagramPlace {
        target: Some(action::write_target(&place.target)),
        port: place.port.into(),
        weight: place.weight,
    };
    wire::DatagramRoute { origin: route.origin.to_string(), places: route.places().iter().map(place).collect() }
}
