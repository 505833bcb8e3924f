//! Which endpoint of a service takes a connection: the best locality rank (only where the service asks for one), then two candidates drawn by
//! weight, then the less loaded of the two. A pick costs the same for two endpoints and for a hundred thousand.
//!
//! What is learned about endpoints (connections in flight, failures, ejection) is kept by `(service, uid)` across snapshots.

mod outlier;
mod rank;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, fmt, net::IpAddr, sync::Arc};

use arc_swap::ArcSwap;
use arcstr::ArcStr;
pub use outlier::OutlierPolicy;
use outlier::{EndpointState, Outliers};
use rand::Rng;
use rank::Table;
pub(crate) use rank::{Alias, Place, may_serve};

use crate::{Client, Service, Workload};

/// Selection tables that one set keeps: one for each port and place that clients asked from.
const MAX_TABLES: usize = 64;

/// One member of a service.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// The workload behind it.
    pub workload: Arc<Workload>,
    state: Arc<EndpointState>,
}

impl Endpoint {
    /// Connections in flight through this agent.
    #[must_use]
    pub fn active(&self) -> u32 {
        self.state.active()
    }

    /// Whether passive ejection keeps it out of the choice.
    #[must_use]
    pub fn is_ejected(&self, now_ms: u64) -> bool {
        self.state.is_ejected(now_ms)
    }
}

/// The members of a service, sorted by uid, and how to choose among them.
pub struct EndpointSet {
    service: Option<Arc<Service>>,
    members: Arc<[Endpoint]>,
    outliers: Arc<Outliers>,
    tables: ArcSwap<Tables>,
}

/// One for each port and place that was asked from; few, so searched in order.
type Tables = Vec<((u16, Place), Arc<Table>)>;

/// What a client wants from a service.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// Who asks.
    pub client: &'a Client,
    /// The service's port.
    pub port: u16,
    /// An address of this family is preferred; of one that the client has no address of none is taken.
    pub like: IpAddr,
    /// Monotonic milliseconds.
    pub now_ms: u64,
    /// Uids that were tried already for this connection.
    pub tried: &'a [ArcStr],
}

/// The chosen endpoint.
#[derive(Debug)]
pub struct Pick {
    /// The workload.
    pub workload: Arc<Workload>,
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub target_port: u16,
    /// Counts the connection as long as it lives.
    pub lease: EndpointLease,
}

/// One connection in flight to an endpoint. Dropping it ends the count; reporting feeds ejection.
pub struct EndpointLease(Held);

enum Held {
    /// Counted by the set that it is of: without memory of its own.
    Own(Counted),
    Other(Box<dyn Outcome>),
}

/// Whoever chose an endpoint counts the connection as long as this lives, and takes note of how it went.
pub trait Outcome: Send + Sync {
    /// The endpoint accepted the connection.
    fn success(&self, now_ms: u64);

    /// The connection failed before its first byte. Returns whether the endpoint is ejected by this.
    fn failure(&self, now_ms: u64) -> bool;
}

impl EndpointLease {
    /// Of somebody who chooses in a way of his own.
    #[must_use]
    pub fn of(outcome: impl Outcome + 'static) -> Self {
        Self(Held::Other(Box::new(outcome)))
    }

    fn new(endpoint: &Endpoint, outliers: &Arc<Outliers>) -> Self {
        endpoint.state.begin();
        Self(Held::Own(Counted { state: Arc::clone(&endpoint.state), outliers: Arc::clone(outliers) }))
    }

    /// The endpoint accepted the connection.
    pub fn report_success(&self, now_ms: u64) {
        match &self.0 {
            Held::Own(counted) => counted.success(now_ms),
            Held::Other(outcome) => outcome.success(now_ms),
        }
    }

    /// The connection failed before its first byte. Returns whether the endpoint is ejected by this.
    pub fn report_failure(&self, now_ms: u64) -> bool {
        self.report_failure_of(u32::MAX, now_ms)
    }

    /// The same, where so many in a row are enough, however many it takes elsewhere. Who was chosen in a way of somebody's own is judged in that way.
    pub fn report_failure_of(&self, enough: u32, now_ms: u64) -> bool {
        match &self.0 {
            Held::Own(counted) => counted.outliers.failure(&counted.state, enough, now_ms),
            Held::Other(outcome) => outcome.failure(now_ms),
        }
    }
}

impl fmt::Debug for EndpointLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EndpointLease")
    }
}

/// A connection that a set of endpoints counts.
struct Counted {
    state: Arc<EndpointState>,
    outliers: Arc<Outliers>,
}

impl Outcome for Counted {
    fn success(&self, now_ms: u64) {
        self.outliers.success(&self.state, now_ms);
    }

    fn failure(&self, now_ms: u64) -> bool {
        self.outliers.failure(&self.state, u32::MAX, now_ms)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.state.end();
    }
}

impl Default for EndpointSet {
    fn default() -> Self {
        Self::with_outlier_policy(OutlierPolicy::default())
    }
}

impl EndpointSet {
    /// An empty set with its own ejection settings.
    #[must_use]
    pub fn with_outlier_policy(policy: OutlierPolicy) -> Self {
        Self::from_parts(None, Arc::new([]), Arc::new(Outliers::new(policy)))
    }

    fn from_parts(service: Option<Arc<Service>>, members: Arc<[Endpoint]>, outliers: Arc<Outliers>) -> Self {
        Self { service, members, outliers, tables: ArcSwap::default() }
    }

    /// The same members under a new description of the service, or without one.
    #[must_use]
    pub fn with_service(&self, service: Option<Arc<Service>>) -> Self {
        let set = Self::from_parts(service, Arc::clone(&self.members), Arc::clone(&self.outliers));
        set.outliers.set_usable(&set.members, set.usable());
        set
    }

    /// The set after `changes` (`None` removes). Endpoints whose addresses stay keep what was learned about them.
    #[must_use]
    pub fn with_changes(&self, changes: &BTreeMap<ArcStr, Option<Arc<Workload>>>) -> Self {
        let mut members = Vec::with_capacity(self.members.len() + changes.len());
        let mut old = self.members.iter().peekable();
        for (uid, change) in changes {
            while let Some(endpoint) = old.next_if(|e| e.workload.uid < *uid) {
                members.push(endpoint.clone());
            }
            let former = old.next_if(|e| e.workload.uid == *uid);
            if let Some(workload) = change {
                let same = former.filter(|f| f.workload.addresses == workload.addresses);
                let state = same.map(|f| Arc::clone(&f.state)).unwrap_or_default();
                members.push(Endpoint { workload: Arc::clone(workload), state });
            }
        }
        members.extend(old.cloned());
        let set = Self::from_parts(self.service.clone(), members.into(), Arc::clone(&self.outliers));
        set.outliers.set_usable(&set.members, set.usable());
        set
    }

    /// The service's description, if it has arrived.
    #[must_use]
    pub fn service(&self) -> Option<&Arc<Service>> {
        self.service.as_ref()
    }

    /// All members, sorted by uid, whatever their health.
    #[must_use]
    pub fn members(&self) -> &[Endpoint] {
        &self.members
    }

    /// Members that may take traffic by their health.
    pub fn serving(&self) -> impl Iterator<Item = &Endpoint> {
        self.members.iter().filter(|e| rank::may_serve(self.service.as_deref(), &e.workload))
    }

    /// Neither members nor a description.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty() && self.service.is_none()
    }

    /// Chooses an endpoint that was not tried. Ejected ones are taken only when nothing else is left, or when so many are ejected that the
    /// fault is more likely ours.
    pub fn pick(&self, ask: &Ask<'_>, rng: &mut impl Rng) -> Option<Pick> {
        let table = self.table(ask.port, ask.client)?;
        let untried = |e: &Endpoint| !ask.tried.contains(&e.workload.uid);
        let panicking = self.outliers.panicking(ask.now_ms);
        let fit = |e: &Endpoint| untried(e) && (panicking || !e.is_ejected(ask.now_ms));
        let chosen = table.choose(&self.members, fit, rng).or_else(|| table.choose(&self.members, untried, rng))?;
        let endpoint = &self.members[chosen.member as usize];
        Some(Pick {
            address: endpoint.workload.address_for(ask.client, ask.like)?,
            workload: Arc::clone(&endpoint.workload),
            target_port: chosen.target_port,
            lease: EndpointLease::new(endpoint, &self.outliers),
        })
    }

    fn usable(&self) -> u32 {
        u32::try_from(self.serving().count()).unwrap_or(u32::MAX)
    }

    fn table(&self, port: u16, client: &Client) -> Option<Arc<Table>> {
        let service = self.service.as_deref()?;
        let place = Place::of(client, &service.load_balancing);
        if let Some((_, table)) = self.tables.load().iter().find(|((p, at), _)| *p == port && *at == place) {
            return Some(Arc::clone(table));
        }
        let table = Arc::new(Table::build(service, &self.members, port, &place));
        self.tables.rcu(|tables| {
            let mut tables = if tables.len() < MAX_TABLES { Vec::clone(tables) } else { Vec::new() };
            tables.push(((port, place.clone()), Arc::clone(&table)));
            tables
        });
        Some(table)
    }
}

impl fmt::Debug for EndpointSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EndpointSet").field("members", &self.members).finish_non_exhaustive()
    }
}
