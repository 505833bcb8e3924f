//! What is done with one request, taken from the table so that the request can be changed: where it goes, with which target, what is answered instead.

use std::sync::Arc;
use std::time::Duration;

use arcstr::ArcStr;
use bytes::Bytes;
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, StatusCode};
use mesh_core::NamespacedName;
use mesh_core::l7::cors::CorsVerdict;
use mesh_core::l7::path::{Spelling, normalise};
use mesh_core::l7::{
    self, AbortStatus, Action, Authority, Backend, ClusterKey, Condition, Handling, Miss, Outcome, Table, Target,
};
use mesh_core::listener::{Astray, Serves};
use rand::Rng;

use super::reply::Failure;
use crate::downstream::{Bound, Downstream};
use crate::entry::headers::scheme;

/// The plan for one request.
pub struct Plan {
    /// The rule; none if the service has no routes for such a request.
    pub handling: Option<Arc<Handling>>,
    /// What browsers are told.
    pub cors: CorsVerdict,
    /// It waits first.
    pub delay: Option<Duration>,
    /// Then it fails.
    pub abort: Option<AbortStatus>,
    /// Then this is done.
    pub to: To,
}

/// Where a request goes.
pub enum To {
    /// To the address that the client asked for.
    Asked,
    /// To a place of the rule.
    Place(Place),
    /// The client is sent there.
    Redirect(StatusCode, String),
    /// The client is answered.
    Respond(StatusCode, Bytes),
    /// It fails.
    Fail(Failure),
}

/// A place of a rule, and what is changed on the way.
pub struct Place {
    /// Which of the rule's.
    pub backend: usize,
    /// Another path and query.
    pub target: Option<PathAndQuery>,
    /// Another host.
    pub authority: Option<ArcStr>,
    /// Where copies go.
    pub mirrors: Vec<ClusterKey>,
}

impl Plan {
    fn of(to: To) -> Self {
        Self { handling: None, cors: CorsVerdict::Pass, delay: None, abort: None, to }
    }

    /// The place of the rule.
    pub fn backend(&self) -> Option<&Backend> {
        let To::Place(place) = &self.to else { return None };
        match &self.handling.as_ref()?.action {
            Action::Forward(forward) => forward.backends().get(place.backend),
            _ => None,
        }
    }
}

/// Which table is asked, and what of the question follows from how the request came.
enum At<'a> {
    /// None: it goes where the client asked to go.
    Asked,
    /// This one.
    Table { table: &'a Table, request: Came<'a> },
}

/// How the request came.
struct Came<'a> {
    scheme: &'static str,
    port: u16,
    gateway: &'a str,
    service: Option<&'a NamespacedName>,
}

impl<'a> At<'a> {
    fn of(bound: &'a Bound, down: &'a Downstream, headers: &HeaderMap, authority: &Authority) -> Result<Self, Failure> {
        let Some(entry) = &down.entry else {
            return Ok(bound.target.service().map_or(Self::Asked, |service| {
                let (table, port, service) = (&*bound.view.table, bound.target.port(), Some(service));
                Self::Table { table, request: Came { scheme: "http", port, gateway: "mesh", service } }
            }));
        };
        // A listener that went away has taken its routes with it.
        let port = bound.view.edge.listeners.port(entry.bind).ok_or(Failure::NO_ROUTE)?;
        let listener = port.request(entry.made(), authority.host()).map_err(|astray| match astray {
            Astray::Unknown => Failure::NO_ROUTE,
            Astray::Misdirected => Failure::MISDIRECTED,
        })?;
        // Whoever came in on other terms comes anew.
        if !entry.fits(&listener.encryption) {
            return Err(Failure::MISDIRECTED);
        }
        match &listener.serves {
            Serves::Http(table) => {
                let (scheme, port, gateway) = (scheme(headers, entry), listener.port, listener.gateway.as_str());
                Ok(Self::Table { table, request: Came { scheme, port, gateway, service: None } })
            }
            Serves::Closed(_) => Err(Failure::CLOSED),
            Serves::Bytes(_) | Serves::Datagrams(_) => Err(Failure::NO_ROUTE),
        }
    }
}

/// Asks the table. `found` is told of the rule, and which of its alternatives it was.
pub fn plan(
    bound: &Bound,
    down: &Downstream,
    parts: &Parts,
    authority: &Authority,
    spelling: Spelling,
    rng: &mut impl Rng,
    found: impl FnOnce(&Handling, Option<&Condition>),
) -> Plan {
    let at = match At::of(bound, down, &parts.headers, authority) {
        Ok(At::Asked) => return Plan::of(To::Asked),
        Ok(At::Table { table, request }) => (table, request),
        Err(failure) => return Plan::of(To::Fail(failure)),
    };
    let (table, place) = at;
    let request = l7::Request {
        method: &parts.method,
        scheme: place.scheme,
        authority,
        path: parts.uri.path(),
        query: parts.uri.query(),
        headers: &parts.headers,
        port: place.port,
        gateway: place.gateway,
        service: place.service,
    };
    // Who comes from outside of the mesh has proved nothing that a rule could ask for, and as in Istio rules of gateways ask nobody from inside either.
    let client = match (&down.entry, down.proved()) {
        (None, Some(_)) => bound.seen(&down.peer),
        _ => l7::Client::default(),
    };
    let decision = match l7::pick(table, &request, &client, rng) {
        Ok(decision) => decision,
        // The service has no rules, or none on this port, or for this client.
        Err(Miss::Host) if request.service.is_some() => return Plan::of(To::Asked),
        Err(_) => return Plan::of(To::Fail(Failure::NO_ROUTE)),
    };
    found(decision.handling, decision.condition);
    let to = match decision.outcome {
        Outcome::Forward(backend) => {
            let target = decision.rewritten_path(&request).map(|path| {
                let path = normalise(&parts.method, &path, spelling).ok()?.into_owned();
                PathAndQuery::try_from(path).ok()
            });
            match (target, index(&decision.handling.action, backend)) {
                // What a rewrite makes of a path may be what no request may have.
                (Some(None), _) => To::Fail(Failure::BAD_REQUEST),
                (_, None) => To::Fail(Failure::CLOSED),
                (target, Some(backend)) => {
                    let cluster = |target: &Target| match target {
                        Target::Cluster(key) => Some(key.clone()),
                        Target::Broken(_) => None,
                    };
                    To::Place(Place {
                        backend,
                        target: target.flatten(),
                        authority: decision.rewritten_authority().cloned(),
                        mirrors: decision.mirrors.iter().filter_map(|mirror| cluster(&mirror.target)).collect(),
                    })
                }
            }
        }
        Outcome::Redirect(redirect) => To::Redirect(redirect.status, redirect.location(&request, decision.condition)),
        Outcome::Respond(response) => To::Respond(response.status, response.body.clone()),
        Outcome::Closed(why) => {
            tracing::debug!(rule = %decision.handling.origin, why, "a rule cannot be carried out");
            To::Fail(Failure::CLOSED)
        }
    };
    let cors = decision.handling.cors.as_ref().map(|cors| cors.judge(&parts.method, &parts.headers));
    Plan {
        handling: Some(Arc::clone(decision.handling)),
        cors: cors.unwrap_or(CorsVerdict::Pass),
        delay: decision.delay,
        abort: decision.abort,
        to,
    }
}

fn index(action: &Action, backend: &Backend) -> Option<usize> {
    let Action::Forward(forward) = action else { return None };
    forward.backends().iter().position(|one| std::ptr::eq(one, backend))
}
