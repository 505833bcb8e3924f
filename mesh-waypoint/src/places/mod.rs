//! The places that requests go to, with what is known of each: its endpoints as they stand, how they are chosen, what of its limits is used. All lanes share them,
//! because what is written holds for the process; a request reads them without a lock. `upstream` asks them.

mod waiting;

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};

use arc_swap::{ArcSwap, ArcSwapOption};
use arcstr::ArcStr;
use hashbrown::HashMap;
use mesh_core::l7::balance::{Limit, PlaceState, Set, Sources, Taken, Usage};
use mesh_core::l7::cluster::Policy;
use mesh_core::l7::{Client, Cluster, ClusterKey, Labels};
use mesh_core::listener::Certificates;
use mesh_core::{EndpointSet, Service};
use parking_lot::Mutex;
use tokio::sync::Notify;

pub(crate) use self::waiting::{Slot, Waiting};
use crate::names::is_open;
use crate::origination::Origin;
use crate::state::View;

/// A place that nobody has asked for this long is forgotten.
const UNUSED_MS: u64 = 600_000;

/// Who chooses: this waypoint.
#[derive(Clone, Copy)]
pub struct Here<'a> {
    /// Where it is, as far as it knows by itself.
    pub place: &'a mesh_core::Client,
    /// The uid of its workload.
    pub uid: &'a str,
}

/// Why there is no endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum NoEndpoint {
    /// No such service, port or subset.
    #[error("the place of the route is not known")]
    Unknown,
    /// What is said of it cannot be carried out.
    #[error("the place of the route is closed")]
    Closed,
    /// None is left that may be asked.
    #[error("no endpoint is left")]
    NoneLeft,
    /// There are as many requests as there may be.
    #[error("too many requests")]
    Overflow,
}

/// The next number of [`Version::terms`].
static TERMS: AtomicU64 = AtomicU64::new(1);

/// All places.
#[derive(Default)]
pub struct Places {
    by_key: ArcSwap<HashMap<ClusterKey, Vec<Arc<Place>>>>,
    /// Held by whoever adds or forgets.
    changing: Mutex<()>,
}

/// One of them, as some clients see it.
pub struct Place {
    key: ClusterKey,
    clients: Option<Vec<ArcStr>>,
    client_labels: Labels,
    state: Arc<PlaceState>,
    now: ArcSwapOption<Version>,
    building: Mutex<()>,
    used_ms: AtomicU64,
}

/// What a place is made of, and what was made of it.
pub struct Version {
    members: Arc<EndpointSet>,
    port: Option<u16>,
    cluster: Option<Arc<Cluster>>,
    labels: u64,
    /// The service.
    pub service: Arc<Service>,
    /// Its endpoints.
    pub set: Arc<Set>,
    usual: Policy,
    /// How TLS begins there, or why it cannot; and what credentials it was made with.
    origin: Option<Result<Arc<Origin>, String>>,
    certificates: Arc<Certificates>,
    pub(crate) terms: Arc<Terms>,
}

/// Under which limits connections are made. Those that were made under others are neither used any more nor counted, and nobody is told of them who waits for one
/// under these.
#[derive(Default)]
pub(crate) struct Terms {
    id: u64,
    open: AtomicU32,
    /// Connections that wait for a request, where there is a limit of connections.
    pub(crate) waiting: Waiting,
    /// Told for each connection that may be had.
    pub(crate) freed: Notify,
}

/// A place at one moment.
#[derive(Clone)]
pub struct Found {
    /// Which.
    pub place: Arc<Place>,
    /// As it stands.
    pub now: Arc<Version>,
}

impl Version {
    /// How its endpoints are chosen and reached.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        self.cluster.as_ref().and_then(|cluster| cluster.policy.as_ref().ok()).unwrap_or(&self.usual)
    }

    /// How TLS of the world begins towards endpoints, if that is asked for; an error says why it cannot.
    pub fn origin(&self) -> Result<Option<&Arc<Origin>>, &str> {
        self.origin.as_ref().map(|origin| origin.as_ref().map_err(String::as_str)).transpose()
    }

    /// Tells apart what connections may not be shared by: the limits that they were made under. 0 is Istio's defaults.
    #[must_use]
    pub fn terms(&self) -> u64 {
        self.terms.id
    }

    /// Whether somebody has said it.
    #[must_use]
    pub fn is_said(&self) -> bool {
        self.cluster.is_some()
    }
}

impl Place {
    /// Which service, port and subset it is.
    #[must_use]
    pub fn key(&self) -> &ClusterKey {
        &self.key
    }

    /// It is used. False if it may soon have been forgotten before: who has kept it finds it anew, for others no longer find this one then. Half of the time
    /// is far from where another lane forgets it at the same moment.
    pub fn touch(&self, now_ms: u64) -> bool {
        let unused = now_ms.saturating_sub(self.used_ms.load(Relaxed));
        // Once a second: the line of memory is all lanes'.
        if unused > 1000 {
            self.used_ms.store(now_ms, Relaxed);
        }
        unused < UNUSED_MS / 2
    }

    /// What is used of its limits.
    #[must_use]
    pub fn usage(&self) -> &Arc<Usage> {
        &self.state.usage
    }
}

/// A connection that counts, until it is dropped; then somebody who waits for one under the same limits is told.
pub struct Permit {
    taken: Option<Taken>,
    terms: Arc<Terms>,
}

impl Permit {
    pub(crate) fn take(found: &Found) -> Option<Self> {
        let (terms, most) = (&found.now.terms, found.now.policy().pool.connections);
        terms.open.fetch_update(Relaxed, Relaxed, |open| (open < most).then(|| open + 1)).ok()?;
        let taken = found.place.usage().take(Limit::Connections, u32::MAX);
        Some(Self { taken, terms: Arc::clone(terms) })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        drop(self.taken.take());
        self.terms.open.fetch_sub(1, Relaxed);
        self.terms.freed.notify_one();
    }
}

impl Places {
    /// A place as a client sees it.
    pub fn find(
        &self,
        view: &View,
        own: Here<'_>,
        key: &ClusterKey,
        client: &Client<'_>,
        now_ms: u64,
    ) -> Result<Found, NoEndpoint> {
        self.find_at(view, own, (key, None), client, now_ms)
    }

    /// The same; with a port all endpoints have that one, whatever is known of theirs.
    pub fn find_at(
        &self,
        view: &View,
        own: Here<'_>,
        (key, port): (&ClusterKey, Option<u16>),
        client: &Client<'_>,
        now_ms: u64,
    ) -> Result<Found, NoEndpoint> {
        let service = view.snapshot.service(&key.service).ok_or(NoEndpoint::Unknown)?;
        let cluster = view.cluster(key, client);
        if (port.is_none() && service.port(key.port).is_none()) || (cluster.is_none() && !key.subset.is_empty()) {
            return Err(NoEndpoint::Unknown);
        }
        if let Some(why) = cluster.and_then(|cluster| cluster.policy.as_ref().err()) {
            tracing::debug!(service = %key.service, subset = %key.subset, %why, "a place is closed");
            return Err(NoEndpoint::Closed);
        }
        // Of these each request has endpoints of its own.
        static NONE: LazyLock<Arc<EndpointSet>> = LazyLock::new(Arc::default);
        let members = match view.snapshot.endpoints(&key.service) {
            Some(members) => members,
            None if is_open(service) => &NONE,
            None => return Err(NoEndpoint::NoneLeft),
        };
        let place = self.place(key, cluster, now_ms);
        let is_now = |now: &Version| {
            Arc::ptr_eq(&now.members, members)
                && now.port == port
                && (!is_open(service) || Arc::ptr_eq(&now.service, service))
                && now.cluster.as_ref().map(Arc::as_ptr) == cluster.map(Arc::as_ptr)
                && (now.labels == view.labels.version() || !now.set.reads_labels())
                && (now.origin.is_none() || Arc::ptr_eq(&now.certificates, &view.edge.certificates))
        };
        if let Some(now) = place.now.load_full().filter(|now| is_now(now)) {
            return Ok(Found { place, now });
        }
        let now = {
            let _building = place.building.lock();
            match place.now.load_full().filter(|now| is_now(now)) {
                Some(now) => now,
                None => {
                    let now = Arc::new(place.version(view, own, (members, port), service, cluster, now_ms));
                    place.now.store(Some(Arc::clone(&now)));
                    now
                }
            }
        };
        Ok(Found { place, now })
    }

    fn place(&self, key: &ClusterKey, cluster: Option<&Arc<Cluster>>, now_ms: u64) -> Arc<Place> {
        let is_it = |place: &&Arc<Place>| match cluster {
            Some(cluster) => place.clients == cluster.clients && place.client_labels == cluster.client_labels,
            None => place.clients.is_none() && place.client_labels.is_empty(),
        };
        let known = |all: &HashMap<ClusterKey, Vec<Arc<Place>>>| all.get(key)?.iter().find(is_it).cloned();
        if let Some(place) = known(&self.by_key.load()) {
            place.touch(now_ms);
            return place;
        }
        let _changing = self.changing.lock();
        let all = self.by_key.load_full();
        if let Some(place) = known(&all) {
            return place;
        }
        let place = Arc::new(Place {
            key: key.clone(),
            clients: cluster.and_then(|cluster| cluster.clients.clone()),
            client_labels: cluster.map(|cluster| cluster.client_labels.clone()).unwrap_or_default(),
            state: Arc::default(),
            now: ArcSwapOption::empty(),
            building: Mutex::default(),
            used_ms: AtomicU64::new(now_ms),
        });
        let mut next = HashMap::clone(&all);
        next.entry(key.clone()).or_default().push(Arc::clone(&place));
        self.by_key.store(Arc::new(next));
        place
    }

    /// Forgets places that nobody has asked for in a while.
    pub fn expire(&self, now_ms: u64) {
        let is_used = |place: &Arc<Place>| {
            now_ms.saturating_sub(place.used_ms.load(Relaxed)) < UNUSED_MS
                || place.usage().used(Limit::Requests) > 0
                || place.usage().used(Limit::Connections) > 0
        };
        if self.by_key.load().values().flatten().all(is_used) {
            return;
        }
        let _changing = self.changing.lock();
        let mut next = HashMap::clone(&self.by_key.load_full());
        next.retain(|_, places| {
            places.retain(is_used);
            !places.is_empty()
        });
        self.by_key.store(Arc::new(next));
    }

    /// What is shown of each: service, subset, port; endpoints that were left out so far, that are now, requests that were refused.
    #[must_use]
    pub fn shown(&self, now_ms: u64) -> Vec<(ClusterKey, u64, u32, u64)> {
        let shown = |place: &Arc<Place>| {
            let state = &place.state;
            (place.key.clone(), state.ejections.total(), state.ejections.now(now_ms).0, state.usage.overflow())
        };
        self.by_key.load().values().flatten().map(shown).collect()
    }
}

impl Place {
    fn version(
        &self,
        view: &View,
        own: Here<'_>,
        (members, port): (&Arc<EndpointSet>, Option<u16>),
        service: &Arc<Service>,
        cluster: Option<&Arc<Cluster>>,
        now_ms: u64,
    ) -> Version {
        let (none, usual) = (Labels::new(), Policy::default());
        let policy = cluster.and_then(|cluster| cluster.policy.as_ref().ok()).unwrap_or(&usual);
        // Where we are is known of our own workload.
        let mut client = own.place.clone();
        if let Some(pod) = view.snapshot.workload_by_uid(own.uid) {
            client.locality = pod.locality.clone();
        }
        let sources = Sources {
            members,
            port: self.key.port,
            target: port,
            subset: cluster.map_or(&none, |cluster| &cluster.labels),
            policy,
            labels: &view.labels,
            client: &client,
            own: view.labels.get(own.uid).map(|labels| &**labels),
            now_ms,
        };
        let set = Arc::new(Set::new(&sources, &self.state));
        let last = self.now.load();
        let before = last.as_ref().and_then(|last| last.origin.as_ref()?.as_ref().ok());
        let terms = match last.as_ref() {
            Some(last) if last.policy().pool == policy.pool => Arc::clone(&last.terms),
            _ => {
                let id = if policy.pool == usual.pool { 0 } else { TERMS.fetch_add(1, Relaxed) };
                Arc::new(Terms { id, ..Terms::default() })
            }
        };
        let origin = Origin::make(&policy.tls, &service.hostname, &view.edge.certificates, before);
        Version {
            members: Arc::clone(members),
            port,
            cluster: cluster.cloned(),
            labels: view.labels.version(),
            service: Arc::clone(service),
            set,
            origin,
            certificates: Arc::clone(&view.edge.certificates),
            usual,
            terms,
        }
    }
}
