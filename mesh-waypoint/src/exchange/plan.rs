//! What is done with one request, taken from the table so that the request can be changed: where it goes, with which target, what is answered instead.

use std::sync::Arc;
use std::time::Duration;

use arcstr::ArcStr;
use bytes::Bytes;
use http::StatusCode;
use http::request::Parts;
use http::uri::PathAndQuery;
use mesh_core::l7::cors::CorsVerdict;
use mesh_core::l7::path::{Spelling, normalise};
use mesh_core::l7::{self, AbortStatus, Action, Authority, Backend, ClusterKey, Handling, Outcome, Target};
use rand::Rng;

use super::reply::Failure;
use crate::downstream::Bound;
use crate::peer::Peer;

/// The plan for one request.
pub struct Plan {
    /// The rule; none if the service has no routes.
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

/// Asks the table.
pub fn plan(
    bound: &Bound,
    peer: &Peer,
    parts: &Parts,
    authority: &Authority,
    spelling: Spelling,
    rng: &mut impl Rng,
) -> Plan {
    let table = &bound.view.table;
    let Some(service) = bound.target.service().filter(|service| table.has_service(service)) else {
        return Plan::of(To::Asked);
    };
    let request = l7::Request {
        method: &parts.method,
        scheme: "http",
        authority,
        path: parts.uri.path(),
        query: parts.uri.query(),
        headers: &parts.headers,
        port: bound.target.port(),
        gateway: "mesh",
        service: Some(service),
    };
    let client = bound.seen(peer);
    let Ok(decision) = l7::pick(table, &request, &client, rng) else { return Plan::of(To::Fail(Failure::NO_ROUTE)) };
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
