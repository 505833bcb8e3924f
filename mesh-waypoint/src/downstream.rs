//! One connection of a client and what is true of it under the current view: what it leads to, who asks. Worked out again when the view changes, so that a
//! connection that lives long follows the configuration, and shared by its requests.

use std::net::SocketAddr;
use std::sync::Arc;

use mesh_core::authorize::{Connection, authorize};
use mesh_core::l7::{self, Applied};
use mesh_core::{Identity, NamespacedName, Workload};
use mesh_runtime::DrainToken;
use mesh_transport::hbone::Authority;
use parking_lot::Mutex;

use crate::engine::Lane;
use crate::http::io::Watch;
use crate::peer::Peer;
use crate::state::View;
use crate::target::{self, NotOurs, Target};
use crate::telemetry::Plan;

/// Verdicts about endpoints that one connection keeps.
const VERDICTS: usize = 64;

/// One connection of a client.
pub struct Downstream {
    /// Where it lives.
    pub lane: Arc<Lane>,
    /// Who asks.
    pub peer: Peer,
    /// What was asked for.
    pub asked: Authority,
    /// What it does, for its deadlines.
    pub watch: Arc<Watch>,
    /// When the process stops.
    pub drain: DrainToken,
    /// What the client has proved, as policies write it.
    pub principal: String,
    bound: Mutex<Option<Arc<Bound>>>,
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
    own: Identity,
    verdicts: Mutex<Vec<(Arc<Workload>, SocketAddr, bool)>>,
}

impl Downstream {
    /// A connection that was asked for.
    #[must_use]
    pub fn new(lane: Arc<Lane>, peer: Peer, asked: Authority, drain: DrainToken) -> Self {
        let principal = peer.identity.principal();
        Self { lane, peer, asked, watch: Arc::default(), drain, principal, bound: Mutex::new(None) }
    }

    /// What is true of it now.
    pub fn bound(&self) -> Result<Arc<Bound>, NotOurs> {
        let view = self.lane.shared.state.view();
        let mut bound = self.bound.lock();
        if let Some(bound) = bound.as_ref().filter(|bound| Arc::ptr_eq(&bound.view, &view)) {
            return Ok(Arc::clone(bound));
        }
        let own = &self.lane.shared.own;
        let target = target::find(&view.snapshot, own, &self.asked)?;
        let client = view.snapshot.workload_by_address(&own.place.network, &self.peer.address.ip());
        let client = client.filter(|workload| workload.identity() == self.peer.identity).cloned();
        let fresh = Arc::new(Bound {
            applied: applied(&view, &target),
            view: Arc::clone(&view),
            target,
            client,
            own: own.identity.clone(),
            verdicts: Mutex::default(),
        });
        *bound = Some(Arc::clone(&fresh));
        Ok(fresh)
    }
}

/// Who asks for a workload itself is held against what is about any of its services: by its address nobody comes around them.
fn applied(view: &View, target: &Target) -> Applied {
    let security = &view.guard.security;
    match target {
        Target::Service { key, .. } => security.applied(std::iter::once(key)),
        Target::Workload { workload, .. } => {
            let services: Vec<&NamespacedName> = workload.services.keys().collect();
            security.applied(services.into_iter())
        }
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
        let identity = &peer.identity;
        l7::Client { identity: Some(identity), namespace: Some(&identity.namespace), labels: labels.map(|own| &**own) }
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
            source: Some(&peer.identity),
            via: Some(&self.own),
            destination_ip: address.ip(),
            destination_port: address.port(),
        };
        let verdict = authorize(&self.view.snapshot, endpoint, &connection);
        if !verdict.is_allowed() {
            tracing::debug!(client = %peer.identity, endpoint = %endpoint.uid, reason = %verdict.decision, "denied");
        }
        if verdicts.len() >= VERDICTS {
            verdicts.clear();
        }
        verdicts.push((Arc::clone(endpoint), address, verdict.is_allowed()));
        verdict.is_allowed()
    }
}
