//! One connection of a client and what is true of it under the current view: what it leads to, who asks. Worked out again when the view changes, so that a
//! connection that lives long follows the configuration, and shared by its requests.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use mesh_core::authorize::{Connection, authorize};
use mesh_core::l7::{self, Applied, ClusterKey, Comes};
use mesh_core::{Identity, NamespacedName, Snapshot, Workload};
use mesh_runtime::DrainToken;
use mesh_transport::hbone::Authority;
use parking_lot::Mutex;

use crate::engine::Lane;
use crate::entry::Entry;
use crate::guard::Limiter;
use crate::http::io::Watch;
use crate::leads::Lead;
use crate::peer::Peer;
use crate::places::{Found, NoEndpoint, Place, Version};
use crate::shared::Shared;
use crate::state::View;
use crate::target::{self, NotOurs, Target};
use crate::telemetry::{Plan, Remark};

/// A service may be let go while requests are on their way here: what is connected has been told to end (`leads`), and is served as before for so long after
/// all that is idle is closed.
const FAREWELL: Duration = Duration::from_secs(5);
/// Verdicts about endpoints that one connection keeps.
const VERDICTS: usize = 64;
/// Places that it keeps.
const PLACES: usize = 16;

/// One connection of a client.
pub struct Downstream {
    /// Where it lives.
    pub lane: Arc<Lane>,
    /// Who asks.
    pub peer: Peer,
    /// What was asked for.
    pub asked: Authority,
    /// How the client came in, if it is from outside of the mesh.
    pub entry: Option<Entry>,
    /// What it does, for its deadlines.
    pub watch: Arc<Watch>,
    /// When it is to end: with the process, or when what it leads to is let go.
    pub drain: DrainToken,
    /// What the client has proved, as policies write it.
    pub principal: String,
    bound: Mutex<Option<Arc<Bound>>>,
    _lead: Option<Arc<Lead>>,
}

/// A connection under one view.
pub struct Bound {
    /// The view.
    pub view: Arc<View>,
    /// What the connection leads to.
    pub target: Target,
    /// The client, if its address belongs to a workload of the identity that was proved.
    pub client: Option<Arc<Workload>>,
    /// What its requests are held against.
    pub applied: Applied,
    /// What they are counted by.
    pub limiters: Vec<Arc<Limiter>>,
    own: Identity,
    verdicts: Mutex<Vec<(Arc<Workload>, SocketAddr, bool)>>,
    /// Weak: a connection that is idle for long must not keep what endpoints have become tables of.
    places: Mutex<Vec<(Arc<Place>, Weak<Version>)>>,
}

/// Puts in force other workloads, services or policies. Connections to what this waypoint is no more for are told to end.
pub fn follow(shared: &Shared, snapshot: Arc<Snapshot>) {
    shared.state.set_snapshot(Arc::clone(&snapshot));
    shared.leads.let_go(|asked| target::find(&snapshot, &shared.own, asked).is_err());
}

impl Downstream {
    /// A connection that was asked for.
    #[must_use]
    pub fn new(lane: Arc<Lane>, peer: Peer, asked: Authority, drain: DrainToken) -> Self {
        let lead = lane.shared.leads.to(&asked, &drain);
        let (principal, drain) = (peer.proved().map(Identity::principal).unwrap_or_default(), lead.drain.clone());
        let (watch, bound) = Default::default();
        Self { lane, peer, asked, entry: None, watch, drain, principal, bound, _lead: Some(lead) }
    }

    /// A connection to what a gateway listens for. Endpoints are asked in the gateway's own name; to policies the client is who it has proved to be in a tunnel, and
    /// from outside of the mesh nobody.
    #[must_use]
    pub fn at_edge(lane: Arc<Lane>, entry: Entry, drain: DrainToken) -> Self {
        let peer = lane.shared.own.as_peer();
        let asked = Authority::Address((peer.address.ip(), entry.bind).into());
        let (watch, bound) = Default::default();
        let principal = entry.client.as_ref().map(Identity::principal).unwrap_or_default();
        Self { lane, peer, asked, entry: Some(entry), watch, drain, principal, bound, _lead: None }
    }

    /// Where the client is.
    #[must_use]
    pub fn from(&self) -> SocketAddr {
        self.entry.as_ref().map_or(self.peer.address, |entry| entry.from)
    }

    /// What the client has proved; nothing if it comes from outside of the mesh without a tunnel.
    #[must_use]
    pub fn proved(&self) -> Option<&Identity> {
        match &self.entry {
            None => self.peer.proved(),
            Some(entry) => entry.client.as_ref(),
        }
    }

    /// Whether `peer` is the gateway or waypoint itself, which asks for a client of another kind or for one without a name.
    #[must_use]
    pub fn is_outside(&self) -> bool {
        self.entry.is_some() || self.peer.stranger
    }

    /// Whether that is said now of a single request, in the process's own log; then, how often it was not since it was said last.
    #[must_use]
    pub fn remark(&self, remark: Remark) -> Option<u64> {
        self.lane.shared.telemetry.remarks.may(remark, Instant::now())
    }

    /// The client, for logs: what it has proved, or where it is.
    #[must_use]
    pub fn client(&self) -> impl fmt::Display + '_ {
        fmt::from_fn(|f| match self.proved() {
            Some(identity) => write!(f, "{identity}"),
            None => write!(f, "{}", self.from()),
        })
    }

    /// `https` for a client from outside of the mesh whose TLS ends here; inside of the mesh nobody asks for it.
    #[must_use]
    pub fn scheme(&self) -> &'static str {
        self.entry.as_ref().map_or("http", Entry::scheme)
    }

    /// What is true of it now; for a while after that has changed to being let go what was true before, policies included.
    pub fn bound(&self) -> Result<Arc<Bound>, NotOurs> {
        let view = self.lane.shared.state.view();
        let mut held = self.bound.lock();
        if let Some(bound) = held.as_ref().filter(|bound| Arc::ptr_eq(&bound.view, &view)) {
            return Ok(Arc::clone(bound));
        }
        let own = &self.lane.shared.own;
        let target = match &self.entry {
            None => match (target::find(&view.snapshot, own, &self.asked), &*held) {
                (Err(NotOurs::NotBound), Some(last)) => {
                    let since = last.view.replaced.get().copied().unwrap_or_else(Instant::now);
                    let limit = self.lane.shared.settings.drain_idle + FAREWELL;
                    return if since.elapsed() < limit { Ok(Arc::clone(last)) } else { Err(NotOurs::NotBound) };
                }
                (found, _) => found?,
            },
            Some(entry) if view.snapshot.is_synced() => Target::Edge { bind: entry.bind },
            Some(_) => return Err(NotOurs::NotSynced),
        };
        let client = view.snapshot.workload_by_address(&own.place.network, &self.peer.address.ip());
        let client = client.filter(|workload| Some(&workload.identity()) == self.peer.proved()).cloned();
        let fresh = Arc::new(Bound {
            applied: about(&target, |comes| view.guard.security.applied(comes)),
            limiters: about(&target, |comes| view.guard.limiters_of(comes)),
            view: Arc::clone(&view),
            target,
            client,
            own: own.identity.clone(),
            verdicts: Mutex::default(),
            places: Mutex::default(),
        });
        *held = Some(Arc::clone(&fresh));
        Ok(fresh)
    }
}

type Services<'s> = std::iter::Copied<std::slice::Iter<'s, &'s NamespacedName>>;

/// Who asks for a workload itself is held against what is about any of its services: by its address nobody comes around them.
fn about<T>(target: &Target, of: impl FnOnce(Comes<Services<'_>>) -> T) -> T {
    match target {
        Target::Service { key, .. } => of(Comes::For([key].iter().copied())),
        Target::Workload { workload, .. } => {
            of(Comes::For(workload.services.keys().collect::<Vec<_>>().iter().copied()))
        }
        Target::Edge { .. } => of(Comes::AtEdge),
    }
}

impl Bound {
    /// What is measured, logged and traced of requests for the target.
    pub fn plan(&self) -> &Arc<Plan> {
        self.view.plans.of(self.target.service())
    }

    /// The client, as routes and places see it.
    pub fn seen<'a>(&'a self, peer: &'a Peer) -> l7::Client<'a> {
        let labels = self.client.as_ref().and_then(|client| self.view.labels.get(&client.uid));
        let identity = peer.proved();
        let namespace = identity.map(|identity| &*identity.namespace);
        l7::Client { identity, namespace, labels: labels.map(|own| &**own) }
    }

    /// A place as the client sees it: what `find` finds. Under one view that is always the same, and it is looked up in four tables.
    pub fn place(
        &self,
        key: &ClusterKey,
        now_ms: u64,
        find: impl FnOnce() -> Result<Found, NoEndpoint>,
    ) -> Result<Found, NoEndpoint> {
        let mut places = self.places.lock();
        if let Some(at) = places.iter().position(|(place, _)| place.key() == key) {
            let (place, now) = &places[at];
            if let Some(now) = now.upgrade().filter(|_| place.touch(now_ms)) {
                return Ok(Found { place: Arc::clone(place), now });
            }
            places.swap_remove(at);
        }
        let found = find()?;
        if places.len() >= PLACES {
            places.clear();
        }
        places.push((Arc::clone(&found.place), Arc::downgrade(&found.now)));
        Ok(found)
    }

    /// Whether the policies of the endpoint let the client in. They are asked once for each endpoint.
    pub fn admits(&self, peer: &Peer, endpoint: &Arc<Workload>, address: SocketAddr) -> bool {
        let mut verdicts = self.verdicts.lock();
        if let Some((.., admitted)) =
            verdicts.iter().find(|(workload, at, _)| Arc::ptr_eq(workload, endpoint) && *at == address)
        {
            return *admitted;
        }
        let connection = Connection {
            source_ip: peer.address.ip(),
            source: peer.proved(),
            via: Some(&self.own),
            destination_ip: address.ip(),
            destination_port: address.port(),
        };
        let verdict = authorize(&self.view.snapshot, endpoint, &connection);
        if !verdict.is_allowed() {
            tracing::debug!(source = %peer.address, endpoint = %endpoint.uid, reason = %verdict.decision, "denied");
        }
        if verdicts.len() >= VERDICTS {
            verdicts.clear();
        }
        verdicts.push((Arc::clone(endpoint), address, verdict.is_allowed()));
        verdict.is_allowed()
    }
}
