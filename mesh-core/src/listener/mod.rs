//! What a gateway listens for: ports with their listeners, which of them a name means, and what is done with a connection there. The control plane makes
//! [`Listeners`] of Gateways of both APIs, gateways ask them. Pure; no key is in them, only names of [`Certificates`], which come apart.
//!
//! ```text
//! connection -> Listeners::port -> Port::Http                          request's host -> Listener -> its table
//!                               -> Port::Tls   SNI -> Listener, TLS ends, request's host must mean the same one -> its table
//!                                                              , or TLS passes on     -> a passage by SNI
//!                               -> Port::Tls   in a tunnel of the mesh, without TLS in it -> the listeners that take such: their tables, or a passage
//!                               -> Port::Tcp   the one listener        -> its passage
//! datagram   -> Listeners::datagrams    the one listener               -> its places
//! ```

mod certificate;
mod datagram;
mod port;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use arcstr::ArcStr;
use ipnet::IpNet;

use crate::NamespacedName;
use crate::l7::{Forward, HostPattern, Table};
use crate::spoken::Spoken;

pub use certificate::{Certificates, Credential, Secret};
pub use datagram::{DatagramPlace, DatagramRoute};
pub use port::{Astray, Inside, Made, Port};

/// Everything that one gateway listens for. Immutable.
#[derive(Clone, Default)]
pub struct Listeners {
    name: ArcStr,
    all: Vec<Arc<Listener>>,
    ports: BTreeMap<u16, Port>,
    datagrams: BTreeMap<u16, Arc<Listener>>,
    topology: Topology,
    through_waypoints: BTreeSet<NamespacedName>,
}

/// One port of the pod that is to be open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Open {
    /// What comes to it.
    pub transport: Transport,
    /// Its number; one number may be open for each of both.
    pub port: u16,
}

/// How what a listener listens for comes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// In connections.
    #[default]
    Tcp,
    /// In datagrams.
    Udp,
}

/// One thing that is listened for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// For logs, as `Gateway shop/edge http`.
    pub name: ArcStr,
    /// `namespace/name` of its gateway: what conditions of routes may ask for.
    pub gateway: ArcStr,
    /// The port that clients think of: in redirects.
    pub port: u16,
    /// The port that is listened on in the pod.
    pub bind: u16,
    /// How what it listens for comes.
    pub transport: Transport,
    /// The names that it is for; of TCP `*`.
    pub hosts: Vec<HostPattern>,
    /// What becomes of TLS.
    pub encryption: Encryption,
    /// What is done with what comes.
    pub serves: Serves,
}

/// What becomes of TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Encryption {
    /// There is none.
    None,
    /// It ends here.
    Ends(Tls),
    /// It is passed on as it is.
    Passes,
    /// It is the mesh's own: clients come in tunnels, in which they have proved who they are, and nobody else is let in.
    Mesh,
}

/// TLS that ends at the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// Names of the credentials of which one is shown: the first whose key the client can verify.
    pub certificates: Vec<ArcStr>,
    /// Who clients have to be; `None`: nobody asks.
    pub clients: Option<Clients>,
    /// What is spoken.
    pub spoken: Spoken,
}

/// Which certificates clients show.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Clients {
    /// Without a certificate there is no connection.
    pub required: bool,
    /// One that nobody vouches for is let in as well, and nobody is told who he says he is: the Gateway API's `AllowInsecureFallback`.
    pub unverified: bool,
    /// Names of the credentials whose roots are believed, those of them that are known; without one nobody is let in.
    pub roots: Vec<ArcStr>,
    /// Of these alternative names one must be the client's; none means any.
    pub names: Vec<ArcStr>,
    /// SHA-256 of public keys, of which one must be the client's; none means any.
    pub keys: Vec<[u8; 32]>,
    /// SHA-256 of certificates, of which one must be the client's; none means any.
    pub hashes: Vec<[u8; 32]>,
}

impl Tls {
    /// With these certificates; all that is good is spoken, and clients need none.
    #[must_use]
    pub fn with(certificates: Vec<ArcStr>) -> Self {
        Self { certificates, clients: None, spoken: Spoken::default() }
    }
}

/// What is done with what comes to a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Serves {
    /// HTTP, by a table of its own: routes of other listeners do not count here.
    Http(Arc<Table>),
    /// Bytes, copied to one endpoint; the first passage that means the name is taken, and without one the connection is closed.
    Bytes(Vec<Passage>),
    /// Datagrams; without a route they are dropped.
    Datagrams(Option<DatagramRoute>),
    /// Nothing, because what is written cannot be done; connections are closed. The text says why.
    Closed(ArcStr),
}

/// Where bytes go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passage {
    /// The object that it is written in, for logs.
    pub origin: ArcStr,
    /// Names that clients ask for by SNI; without TLS `*`.
    pub hosts: Vec<HostPattern>,
    /// The places, of which one is drawn for each connection.
    pub forward: Forward,
}

/// What stands before a gateway, and what it may believe of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// Proxies in front that add to `x-forwarded-for`.
    pub trusted_proxies: u32,
    /// Connections begin with a PROXY header, of version 1 or 2. Those that do not are closed.
    pub proxy_protocol: bool,
    /// Who may send one, by the address that connects; others are closed before a byte of theirs is read. `None`: whoever connects.
    pub proxy_peers: Option<Vec<IpNet>>,
    /// What becomes of `x-forwarded-client-cert`.
    pub client_cert: ClientCert,
}

/// What becomes of `x-forwarded-client-cert`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientCert {
    /// It is taken away.
    Sanitize,
    /// It says who the client of this connection is: Istio's default for gateways.
    #[default]
    SanitizeSet,
    /// The client of this connection is added, if it has a certificate.
    AppendForward,
    /// It stays as it came, if the client has a certificate.
    ForwardOnly,
    /// It stays as it came.
    AlwaysForwardOnly,
}

impl Topology {
    /// Whether a PROXY header is believed of who connects from there.
    #[must_use]
    pub fn believes(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.proxy_peers.as_ref().is_none_or(|trusted| trusted.iter().any(|range| range.contains(&peer)))
    }
}

impl Listeners {
    /// Listeners of the gateway that is called `name`. A port belongs to the family (HTTP, TLS or TCP) of its first listener, and a name on it to the
    /// first that has it: others of that port or name are told of by [`Listeners::shadowed`] and get nothing.
    #[must_use]
    pub fn new(name: impl Into<ArcStr>, all: Vec<Arc<Listener>>) -> Self {
        let mut ports: BTreeMap<u16, Port> = BTreeMap::new();
        let mut datagrams: BTreeMap<u16, Arc<Listener>> = BTreeMap::new();
        for listener in &all {
            match (listener.transport, ports.get_mut(&listener.bind)) {
                (Transport::Udp, _) => drop(datagrams.entry(listener.bind).or_insert_with(|| Arc::clone(listener))),
                (Transport::Tcp, Some(port)) => port.add(listener),
                (Transport::Tcp, None) => drop(ports.insert(listener.bind, Port::of(listener))),
            }
        }
        let (topology, through_waypoints) = (Topology::default(), BTreeSet::new());
        Self { name: name.into(), all, ports, datagrams, topology, through_waypoints }
    }

    /// Whether a listener takes bytes in tunnels of the mesh, as another one of its port does.
    #[must_use]
    pub fn is_unclear(&self, listener: &Arc<Listener>) -> bool {
        let takes_bytes = listener.encryption == Encryption::Mesh && matches!(listener.serves, Serves::Bytes(_));
        takes_bytes && self.port(listener.bind).is_some_and(|port| matches!(port.inside(false), Inside::Unclear))
    }

    /// What stands before it.
    #[must_use]
    pub fn behind(self, topology: Topology) -> Self {
        Self { topology, ..self }
    }

    /// Requests to these services go through their waypoints.
    #[must_use]
    pub fn through_waypoints(self, services: BTreeSet<NamespacedName>) -> Self {
        Self { through_waypoints: services, ..self }
    }

    /// Whose they are.
    #[must_use]
    pub fn name(&self) -> &ArcStr {
        &self.name
    }

    /// All of them, as they were given.
    #[must_use]
    pub fn all(&self) -> &[Arc<Listener>] {
        &self.all
    }

    /// What stands before it.
    #[must_use]
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Services whose waypoints are not gone around.
    #[must_use]
    pub fn waypoint_services(&self) -> &BTreeSet<NamespacedName> {
        &self.through_waypoints
    }

    /// The ports of the pod to which connections come.
    pub fn ports(&self) -> impl Iterator<Item = u16> {
        self.ports.keys().copied()
    }

    /// All ports of the pod that are to be open.
    pub fn open(&self) -> impl Iterator<Item = Open> {
        let of = |transport| move |port: &u16| Open { transport, port: *port };
        self.ports.keys().map(of(Transport::Tcp)).chain(self.datagrams.keys().map(of(Transport::Udp)))
    }

    /// Whose datagrams are that come to a port of the pod.
    #[must_use]
    pub fn datagrams(&self, bind: u16) -> Option<&Arc<Listener>> {
        self.datagrams.get(&bind)
    }

    /// What is listened for on a port of the pod.
    #[must_use]
    pub fn port(&self, bind: u16) -> Option<&Port> {
        self.ports.get(&bind)
    }

    /// Listeners that another one has taken the port or all names from.
    pub fn shadowed(&self) -> impl Iterator<Item = &Arc<Listener>> {
        let has = |listener: &&Arc<Listener>| match listener.transport {
            Transport::Tcp => self.ports.get(&listener.bind).is_some_and(|port| port.has(listener)),
            Transport::Udp => self.datagrams.get(&listener.bind).is_some_and(|own| Arc::ptr_eq(own, listener)),
        };
        self.all.iter().filter(move |listener| !has(listener))
    }
}

impl Listener {
    /// Where bytes go that are for `name`; `None` is a connection without a name.
    #[must_use]
    pub fn passage(&self, name: Option<&str>) -> Option<&Passage> {
        let Serves::Bytes(passages) = &self.serves else { return None };
        let fits = |pattern: &HostPattern| name.map_or(*pattern == HostPattern::Any, |name| pattern.matches(name));
        passages.iter().find(|passage| passage.hosts.iter().any(fits))
    }
}

impl PartialEq for Listeners {
    fn eq(&self, other: &Self) -> bool {
        (&self.name, &self.all, &self.topology, &self.through_waypoints)
            == (&other.name, &other.all, &other.topology, &other.through_waypoints)
    }
}

impl Eq for Listeners {}

impl fmt::Debug for Listeners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listeners")
            .field("name", &self.name)
            .field("all", &self.all)
            .field("topology", &self.topology)
            .field("through_waypoints", &self.through_waypoints)
            .finish()
    }
}
