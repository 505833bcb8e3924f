//! Whether policies let a request, or a connection that is no HTTP, through. Who asks is who has proved it: by its certificate, and by a token.

use std::net::IpAddr;

use http::request::Parts;
use mesh_core::l7::policy::{Decision, DryRun, Subject, Verdict};
use mesh_core::l7::{Authority, Request, Token, path};
use mesh_core::{ArcStr, NamespacedName};
use mesh_transport::hbone;
use tokio::sync::watch;

use super::custom::Asker;
use crate::downstream::{Bound, Downstream};
use crate::entry::Entry;
use crate::record::{self, Nowhere};
use crate::target::Target;
use crate::telemetry::{Remark, Ruled};

/// Why a request is not answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Its path can be read in ways that nobody may be asked about.
    Malformed,
    /// Policies do not let it through: this one matches, or none allows it.
    Denied(Option<NamespacedName>),
}

/// What a request says of who sends it.
#[derive(Clone, Copy)]
pub struct Said<'a> {
    /// A token that was believed.
    pub token: Option<&'a Token>,
    /// Where its client is.
    pub remote: &'a IpAddr,
}

/// Who is to be asked about a request, before anything is decided.
pub fn askers(
    down: &Downstream,
    bound: &Bound,
    parts: &Parts,
    authority: &Authority,
    said: Said<'_>,
) -> Result<Vec<Asker>, Refused> {
    if !bound.applied.policies.asks() {
        return Ok(Vec::new());
    }
    let security = &bound.view.guard.security;
    looked_at(down, bound, parts, authority, said, |subject| {
        let asker = |(policy, provider): (&NamespacedName, &ArcStr)| Asker {
            policy: policy.clone(),
            provider: provider.to_string(),
            authorizer: security.authorizer(provider).cloned(),
        };
        bound.applied.policies.asked(subject).map(asker).collect()
    })
}

/// Decides about a request.
pub fn request(
    down: &Downstream,
    bound: &Bound,
    parts: &Parts,
    authority: &Authority,
    said: Said<'_>,
) -> Result<(), Refused> {
    if bound.applied.policies.is_empty() {
        return Ok(());
    }
    let decided = looked_at(down, bound, parts, authority, said, |subject| decide(down, bound, subject))?;
    decided.map_err(|why| {
        tracing::debug!(client = ?down.proved(), from = %down.from(), method = %parts.method, path = parts.uri.path(), %why, "denied");
        Refused::Denied(if let Decision::Denied(policy) = why { Some(policy.clone()) } else { None })
    })
}

/// What policies look at of a request.
pub fn looked_at<T>(
    down: &Downstream,
    bound: &Bound,
    parts: &Parts,
    authority: &Authority,
    said: Said<'_>,
    look: impl FnOnce(&Subject<'_>) -> T,
) -> Result<T, Refused> {
    let plainest = path::plainest(parts.uri.path()).map_err(|_| Refused::Malformed)?;
    let request = Request {
        method: &parts.method,
        scheme: down.scheme(),
        authority,
        path: parts.uri.path(),
        query: parts.uri.query(),
        headers: &parts.headers,
        port: bound.target.port(),
        gateway: "mesh",
        service: bound.target.service(),
    };
    let Said { token, remote } = said;
    let subject = Subject {
        request: Some(request),
        plainest: plainest.as_deref(),
        token,
        remote: *remote,
        ..connected(down, bound)
    };
    Ok(look(&subject))
}

/// Decides about a connection of which nothing but its ends is known.
pub fn connection(down: &Downstream, bound: &Bound) -> Result<(), Nowhere> {
    if bound.applied.policies.is_empty() {
        return Ok(());
    }
    let subject = connected(down, bound);
    // Authorizers are asked about requests.
    if let Some((_, provider)) = bound.applied.policies.asked(&subject).next() {
        return Err(("UAEX", format!("nobody can ask {provider} about what is no HTTP")));
    }
    decide(down, bound, &subject).map_err(|why| record::denied(why.to_string()))
}

/// Waits until policies do not let through any more what they have let through, and says why. `policies`: of the state, from before they were asked first.
/// Dry runs and audits are of what begins, and are not told again. What this proxy is no more for is not its to end.
pub async fn withdrawn(down: &Downstream, mut policies: watch::Receiver<()>) -> String {
    loop {
        if policies.changed().await.is_err() {
            // Nobody is left who could change any.
            return std::future::pending().await;
        }
        let Ok(bound) = down.bound() else { continue };
        let subject = connected(down, &bound);
        if let Some((policy, provider)) = bound.applied.policies.asked(&subject).next() {
            return format!("{policy}: nobody can ask {provider} about what is no HTTP");
        }
        let decision = bound.applied.policies.decide(&subject).decision;
        if !decision.is_allowed() {
            if let Decision::Denied(policy) = decision {
                down.lane.meters.ruled(policy, Ruled::Denied);
            }
            return decision.to_string();
        }
    }
}

fn decide<'a>(down: &Downstream, bound: &'a Bound, subject: &Subject<'_>) -> Result<(), Decision<'a>> {
    let policies = &bound.applied.policies;
    let verdict = policies.decide(subject);
    tell(down, &verdict);
    match verdict.decision.is_allowed() {
        true => Ok(()),
        false => Err(verdict.decision),
    }
}

/// Logs and counts what is told of a request.
fn tell(down: &Downstream, verdict: &Verdict<'_>) {
    let meters = &down.lane.meters;
    let client = || down.proved().map_or_else(|| down.from().to_string(), ToString::to_string);
    if let Decision::Denied(policy) = verdict.decision {
        meters.ruled(policy, Ruled::Denied);
    }
    if let DryRun::Denied(policy) = verdict.dry_run {
        if let Some(suppressed) = down.remark(Remark::WouldDeny) {
            tracing::info!(client = client(), %policy, suppressed, "a dry run would have denied");
        }
        meters.ruled(policy, Ruled::WouldDeny);
    }
    if let Some(policy) = verdict.audited {
        if let Some(suppressed) = down.remark(Remark::Audited) {
            tracing::info!(client = client(), %policy, suppressed, "audited");
        }
        meters.ruled(policy, Ruled::Audited);
    }
}

/// What is known of the connection.
fn connected<'a>(down: &'a Downstream, bound: &'a Bound) -> Subject<'a> {
    Subject {
        identity: down.proved(),
        principal: &down.principal,
        source: down.from().ip(),
        remote: down.from().ip(),
        destination: destination(down, bound),
        sni: down.entry.as_ref().and_then(Entry::name),
        port: bound.target.port(),
        also: bound.target.also(),
        request: None,
        plainest: None,
        token: None,
    }
}

/// The address that was asked for; by name, the service's.
fn destination(down: &Downstream, bound: &Bound) -> Option<IpAddr> {
    match (&down.asked, &bound.target) {
        (hbone::Authority::Address(address), _) => Some(address.ip()),
        (_, Target::Workload { address, .. }) => Some(address.ip()),
        (_, Target::Edge { .. }) => None,
        (_, Target::Service { service, .. }) => service.addresses.iter().find_map(|address| address.single()),
    }
}
