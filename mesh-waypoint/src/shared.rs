//! What all lanes read and none writes: who this waypoint is, its limits, its certificate, the state. Made once, by the process or by a test.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use arcstr::ArcStr;
use mesh_core::tap::Selector;
use mesh_core::telemetry::Scopes;
use mesh_core::{Client, Identity, NamespacedName};
use mesh_runtime::paths::PathCounters;
use mesh_runtime::tap::Taps;
use mesh_runtime::ticks;
use mesh_transport::hbone::{Acceptor, AcceptorConfig, Baggage, Pool as Tunnels, PoolConfig};
use mesh_transport::tls::IdentityCertificate;
use tokio::sync::Semaphore;

use crate::leads::Leads;
use crate::names::Names;
use crate::peer::Peer;
use crate::places::Places;
use crate::refused::Refusals;
use crate::settings::Settings;
use crate::state::State;
use crate::telemetry::{self, Datagrams, Paths, Plans, Tools};

/// Who this waypoint is.
#[derive(Clone, Debug)]
pub struct Own {
    /// Its service, as `namespace/hostname`: by this name others are bound to it.
    pub service: NamespacedName,
    /// What it proves.
    pub identity: Identity,
    /// Tells it from others, for tunnels.
    pub uid: ArcStr,
    /// Where it is: endpoints nearby may be preferred.
    pub place: Client,
    /// What it says of itself to clients.
    pub baggage: Baggage,
}

impl Own {
    /// A waypoint of that service.
    #[must_use]
    pub fn new(service: NamespacedName, identity: Identity) -> Self {
        let place =
            Client { namespace: identity.namespace.clone(), identity: Some(identity.clone()), ..Client::default() };
        Self { uid: service.to_string().into(), service, identity, place, baggage: Baggage::default() }
    }

    /// An address of its own, of the family of `like`.
    #[must_use]
    pub fn ip_like(&self, like: IpAddr) -> Option<IpAddr> {
        self.place.ips.iter().copied().find(|ip| ip.is_ipv4() == like.is_ipv4())
    }

    /// It as who asks: for clients from outside of the mesh it asks in its own name, because they have none.
    #[must_use]
    pub fn as_peer(&self) -> Peer {
        let ip = self.place.ips.first().copied().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        self.on_behalf_of((ip, 0).into())
    }

    /// It as who asks for somebody.
    #[must_use]
    pub fn on_behalf_of(&self, address: SocketAddr) -> Peer {
        Peer { address, identity: self.identity.clone(), baggage: self.baggage.clone(), stranger: false, hops: 0 }
    }

    /// A client that has proved nothing.
    #[must_use]
    pub fn as_stranger(&self, address: SocketAddr) -> Peer {
        Peer { baggage: Baggage::default(), stranger: true, ..self.on_behalf_of(address) }
    }
}

/// Where the certificate comes from.
pub trait Certificates: Send + Sync {
    /// The one in use, if there is a valid one.
    fn current(&self) -> Option<Arc<IdentityCertificate>>;
}

impl Certificates for Arc<IdentityCertificate> {
    fn current(&self) -> Option<Arc<IdentityCertificate>> {
        Some(Arc::clone(self))
    }
}

/// Who has dialled a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The other end.
    In,
    /// We.
    Out,
}

/// What all lanes read.
pub struct Shared {
    /// What the control plane has said.
    pub state: Arc<State>,
    /// Who we are.
    pub own: Own,
    /// Limits.
    pub settings: Settings,
    /// What we prove it with.
    pub certificates: Arc<dyn Certificates>,
    /// Where lines and spans go to.
    pub telemetry: Arc<Tools>,
    /// Who listens to what passes.
    pub taps: Arc<Taps<Selector>>,
    /// What requests go to.
    pub places: Places,
    /// What datagrams go to.
    pub datagram_places: Places,
    /// Places for sessions of datagrams.
    pub datagram_rooms: Arc<Semaphore>,
    /// How the network carries tunnels. Its lock is taken for new ones.
    pub paths: Paths,
    /// Numbers of UDP ports.
    pub datagrams: Arc<Datagrams>,
    /// What was refused before there was a request.
    pub refusals: Refusals,
    /// Names of requests that were looked up.
    pub names: Names,
    /// What connections of clients lead to. Its lock is taken for new connections, not for requests.
    pub leads: Leads,
    /// Tunnels to endpoints. Its lock is taken for new connections, not for requests.
    pub tunnels: Tunnels,
    acceptor: Acceptor,
    started: Instant,
    started_ms: u64,
}

impl Shared {
    /// With nothing open yet.
    #[must_use]
    pub fn new(state: Arc<State>, own: Own, settings: Settings, certificates: Arc<dyn Certificates>) -> Self {
        let acceptor = Acceptor::new(AcceptorConfig { any_address: true, ..AcceptorConfig::default() });
        let rooms = settings.datagram_sessions_together.min(Semaphore::MAX_PERMITS);
        let shared = Self {
            state,
            own,
            settings,
            certificates,
            telemetry: Arc::default(),
            taps: Arc::default(),
            places: Places::default(),
            datagram_places: Places::default(),
            datagram_rooms: Arc::new(Semaphore::new(rooms)),
            paths: telemetry::paths(),
            datagrams: Arc::default(),
            refusals: Refusals::default(),
            names: Names::default(),
            leads: Leads::default(),
            tunnels: Tunnels::new(PoolConfig::default()),
            acceptor,
            started: Instant::now(),
            started_ms: ticks::now_ms(),
        };
        shared.set_telemetry(&shared.settings.telemetry);
        shared
    }

    /// Puts in force what is to be measured, logged and traced.
    pub fn set_telemetry(&self, scopes: &Scopes) {
        self.state.set_plans(Plans::compile(scopes, &self.telemetry).into());
    }

    /// Where it is counted how the network carries a tunnel, from `address` to here or from here to it; `peer` has proved to be there.
    pub fn path(&self, way: Way, address: IpAddr, peer: &Identity) -> Arc<PathCounters> {
        let (view, own) = (self.state.view(), &self.own);
        let end = |address: Option<IpAddr>, identity: &Identity| {
            let at = address.and_then(|ip| view.snapshot.workload_by_address(&own.place.network, &ip.to_canonical()));
            // The address only helps to find a name for the identity.
            telemetry::path_end(at.filter(|workload| workload.identity() == *identity).map(|found| &**found), identity)
        };
        let (here, baggage) = (end(own.place.ips.first().copied(), &own.identity), &own.baggage);
        let here = telemetry::path_end_called(here, baggage.workload.as_ref(), baggage.cluster.as_ref());
        let there = end(Some(address), peer);
        let (source, destination) = match way {
            Way::In => (there, here),
            Way::Out => (here, there),
        };
        telemetry::path(&self.paths, source, destination, self.now_ms())
    }

    /// Takes tunnels; its limits are those of the process.
    pub fn acceptor(&self) -> &Acceptor {
        &self.acceptor
    }

    /// Monotonic milliseconds, as of the last tick.
    pub fn now_ms(&self) -> u64 {
        ticks::now_ms().saturating_sub(self.started_ms)
    }

    /// Monotonic nanoseconds.
    pub fn now_ns(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}
