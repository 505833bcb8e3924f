//! One request and its answer.
//!
//! ```text
//! asked: made unambiguous ── security: a token, authorizers, policies, limits ── plan: the rule ── CORS, delay, abort ── redirect | answer | forward: attempts, each at one endpoint ── the answer, changed
//!                                                                         └── mirror: copies, for which nobody waits
//! ```

mod asked;
mod attempts;
mod forward;
mod mirror;
mod outcome;
mod plan;
pub mod reply;
mod report;
mod upgrade;

use std::convert::Infallible;
use std::sync::Arc;

use http::header::{CONNECTION, HeaderName, HeaderValue, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use mesh_core::l7::AbortStatus;
use mesh_core::l7::cors::CorsVerdict;
use mesh_core::l7::path::Spelling;
use mesh_core::l7::policy::Subject;
use mesh_runtime::clock;

use self::asked::Asked;
use self::plan::{Plan, To};
use self::reply::Failure;
use self::report::{Host, Report};
use crate::downstream::{Bound, Downstream};
use crate::entry::headers;
use crate::http::{ClientBody, ResponseBody, guard};
use crate::security::authenticate;
use crate::security::authorize;
use crate::security::custom::{self, Question, Refusal};
use crate::security::limit;
use crate::settings::Settings;
use crate::telemetry::Details;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Answers one request. Dropping the future gives the request up, at the endpoint too. What can be done at once is, in whichever task reads the request: the
/// future is smaller by that.
pub fn handle(
    down: Arc<Downstream>,
    mut request: Request<Incoming>,
) -> impl Future<Output = Result<Response<ResponseBody>, Infallible>> {
    let report = Box::new(Report::begin(Arc::clone(&down), &request));
    let upgrade = request.extensions_mut().remove::<OnUpgrade>();
    let closes = is_last(request.headers());
    let (parts, body) = request.into_parts();
    handled(down, parts, body, upgrade, report, closes)
}

async fn handled(
    down: Arc<Downstream>,
    mut parts: Parts,
    body: Incoming,
    mut upgrade: Option<OnUpgrade>,
    mut report: Box<Report>,
    mut closes: bool,
) -> Result<Response<ResponseBody>, Infallible> {
    let answer = answer(&down, &mut parts, body, &mut upgrade, &mut report).await;
    upgrade.into_iter().for_each(upgrade::decline);
    let mut response = match answer {
        Ok(response) => response,
        Err(Failed { failure, plan }) => {
            report.failed(&failure);
            closes |= failure.closes();
            let mut response = reply::failure(failure, report.is_grpc());
            report.web().iter().for_each(|web| web.answer(response.headers_mut()));
            if let Some(plan) = plan {
                change(&mut response, *plan);
            }
            response
        }
    };
    // HTTP/2 has been told otherwise.
    if !report.is_http2() && (closes || down.drain.is_started()) && response.status() != StatusCode::SWITCHING_PROTOCOLS
    {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    report.answered(&response);
    if let Some((switched, judged)) = report.switched() {
        upgrade::run(down, switched, judged, report);
        return Ok(response);
    }
    Ok(response.map(|body| body.holding(report)))
}

/// Whether what follows a request is not known to be another: it asks for another protocol.
fn is_last(headers: &HeaderMap) -> bool {
    headers.get_all(UPGRADE).iter().any(|asked| guard::is_websocket(asked.as_bytes()))
}

/// Why a request fails, and by which rule: an answer of ours has what that asks for in every answer. A browser shows a script what failed only if it may see it.
struct Failed {
    failure: Failure,
    plan: Option<Box<Plan>>,
}

impl From<Failure> for Failed {
    fn from(failure: Failure) -> Self {
        Self { failure, plan: None }
    }
}

async fn answer(
    down: &Arc<Downstream>,
    parts: &mut Parts,
    body: Incoming,
    upgrade: &mut Option<OnUpgrade>,
    report: &mut Report,
) -> Result<Response<ResponseBody>, Failed> {
    let bound = down.bound().map_err(|_| Failure::GONE)?;
    report.bound(&bound);
    let settings = &down.lane.shared.settings;
    let spelling = bound.view.guard.security.spelling.unwrap_or(settings.spelling);
    let mut asked = read(parts, settings, spelling, report)?;
    asked.remote = match &down.entry {
        None => {
            headers::of_mesh(&mut parts.headers, asked.has);
            if bound.view.guard.security.names_clients {
                headers::name_client(&mut parts.headers, &down.lane.shared.own.identity, down.proved());
            }
            down.peer.address.ip()
        }
        Some(entry) => {
            let topology = bound.view.edge.listeners.topology();
            headers::sanitise(&mut parts.headers, asked.has, entry, topology)
        }
    };
    let proved = authenticate::request(&bound, parts, clock::now);
    if !parts.headers.get(REQUEST_ID).is_some_and(asked::is_good_id) {
        parts.headers.insert(REQUEST_ID, asked::request_id(&mut *down.lane.rng.lock()));
    }
    report.asked(parts, asked.authority.as_str(), asked.call.is_grpc(), asked.socket);
    let token = match proved {
        Ok(token) => token,
        Err(problem) => {
            tracing::debug!(client = %down.client(), %problem, "a token is refused");
            report.details(|| Details::Token(problem.to_string()));
            return Ok(reply::unauthorized(&problem.to_string(), asked.call.is_grpc()));
        }
    };
    let said = authorize::Said { token: token.as_ref(), remote: &asked.remote };
    let mut body = ClientBody::from(body);
    let askers = authorize::askers(down, &bound, parts, &asked.authority, said).map_err(|why| report.refused(why))?;
    let question =
        Question { down, bound: &bound, parts, authority: &asked.authority, is_endless: asked.said.upgrade.is_some() };
    // In a box, as everything that few requests need and that is large while it is waited for.
    let allowed = match askers.is_empty() {
        true => Ok(custom::Allowed::default()),
        false => Box::pin(custom::ask(&question, &askers, &mut body)).await,
    };
    let allowed = match allowed {
        Ok(allowed) => allowed,
        Err(Refusal::Denied(denial)) => {
            report.flag("UAEX");
            return Ok(reply::denied(denial, asked.call.is_grpc()));
        }
        Err(refusal) => {
            if let Refusal::NoAnswer(_) = refusal {
                report.details(|| Details::Word("ext_authz_error"));
            }
            return Err(Failure::from(refusal).into());
        }
    };
    let planned = |parts: &Parts, report: &mut Report| {
        let mut rng = down.lane.rng.lock();
        plan::plan(&bound, down, parts, &asked.authority, spelling, &mut *rng, |rule, one| report.rule(rule, one))
    };
    // Unless an authorizer is to have a say in it, the route is that of the request as it came.
    let plan = (!askers.is_empty() && !allowed.routes_again).then(|| planned(parts, report));
    allowed.changes.iter().for_each(|changes| changes.request.apply(&mut parts.headers));
    if asked.said.upgrade.is_some() {
        report.judged(upgrade::Judged::of(down, parts, &asked.authority, said));
    }
    authorize::request(down, &bound, parts, &asked.authority, said).map_err(|why| report.refused(why))?;
    let counted = match counted(down, &bound, parts, &asked, said).await {
        Ok(counted) => counted,
        Err(limit::Refusal::Over(denial)) => {
            report.flag("RL");
            return Ok(reply::denied(denial, asked.call.is_grpc()));
        }
        Err(limit::Refusal::NoAnswer) => return Err(Failure::UNCOUNTED.into()),
    };
    let plan = plan.unwrap_or_else(|| planned(parts, report));
    counted.request.iter().for_each(|edits| edits.apply(&mut parts.headers));
    if !parts.headers.contains_key(FORWARDED_PROTO) {
        parts.headers.insert(FORWARDED_PROTO, HeaderValue::from_static("http"));
    }
    if let CorsVerdict::Answer(headers) = plan.cors {
        report.details(|| Details::Word("cors_response"));
        return Ok(reply::empty(headers));
    }
    if let Some(delay) = plan.delay {
        report.flag("DI");
        tokio::time::sleep(delay).await;
    }
    if let Some(abort) = plan.abort {
        report.flag("FI");
        let mut response = match abort {
            AbortStatus::Http(status) => {
                reply::text(status, bytes::Bytes::from_static(b"fault filter abort"), asked.call.is_grpc())
            }
            AbortStatus::Grpc(code) => {
                reply::of_grpc(code.into(), Some(HeaderValue::from_static("fault filter abort")))
            }
        };
        // As with Envoy what the rule changes besides is for what was to be forwarded.
        if let CorsVerdict::Change(cors) = plan.cors {
            cors.apply(response.headers_mut());
        }
        return Ok(response);
    }
    let answered = match &plan.to {
        To::Fail(failure) => Err(*failure),
        To::Redirect(status, location) => Ok(reply::redirect(*status, location)),
        To::Respond(status, body) => Ok(reply::text(*status, body.clone(), false)),
        To::Asked | To::Place(_) => {
            let forward = attempts::Forward { down, bound: &bound, plan: &plan, asked: &asked };
            forward.run(parts, body, upgrade, report).await
        }
    };
    let mut response = match answered {
        Ok(response) => response,
        Err(failure) => return Err(Failed { failure, plan: Some(Box::new(plan)) }),
    };
    change(&mut response, plan);
    allowed.changes.iter().for_each(|changes| changes.response.apply(response.headers_mut()));
    counted.response.iter().for_each(|edits| edits.apply(response.headers_mut()));
    Ok(response)
}

/// Reads a request. One that is refused is told of, too: what it has asked for is kept before it is looked at, if anybody is told.
fn read(parts: &mut Parts, settings: &Settings, spelling: Spelling, report: &mut Report) -> Result<Asked, Failure> {
    let host = report.tells().then(|| Host::of(parts));
    let asked = asked::read(parts, settings, spelling);
    if let (Err(_), Some(host)) = (&asked, host) {
        report.unread(parts, &host);
    }
    asked
}

/// Counts a request, if it is to be counted by anybody.
async fn counted(
    down: &Downstream,
    bound: &Bound,
    parts: &Parts,
    asked: &Asked,
    said: authorize::Said<'_>,
) -> Result<limit::Allowed, limit::Refusal> {
    if bound.limiters.is_empty() {
        return Ok(limit::Allowed::default());
    }
    let look = |subject: &Subject<'_>| limit::count(down, bound, subject);
    // A path that could not be looked at has been refused by then.
    let services = authorize::looked_at(down, bound, parts, &asked.authority, said, look);
    Box::pin(limit::ask(down, bound, &services.unwrap_or_else(|_| Err(limit::Refusal::NoAnswer))?)).await
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Denied(denial) => Self { status: denial.status, flag: "UAEX", text: "" },
            Refusal::NoAnswer(status) => Self { status, flag: "UAEX", text: "" },
            Refusal::Nobody => Self::DENIED,
            Refusal::TooLarge => Self::TOO_LARGE,
            Refusal::Body => Self::BODY,
        }
    }
}

/// What the rule and the place change of an answer: in this order, as of a request, so what is said of the place has the last word.
fn change(response: &mut Response<ResponseBody>, plan: Plan) {
    let headers = response.headers_mut();
    if let Some(handling) = &plan.handling {
        handling.response.apply(headers);
    }
    if let Some(backend) = plan.backend() {
        backend.response.apply(headers);
    }
    if let CorsVerdict::Change(cors) = plan.cors {
        cors.apply(headers);
    }
}

/// For the fuzzer: reads a request, and says whether its connection ends with it.
pub(crate) fn fuzz_read(parts: &mut http::request::Parts, settings: &Settings) -> Result<bool, ()> {
    let is_last = is_last(&parts.headers);
    asked::read(parts, settings, settings.spelling).map(|_| is_last).map_err(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of what an asynchronous function gives back.
    fn bytes<A, B, F: Future>(_: impl Fn(A, B) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn what_each_request_keeps_while_it_waits_is_small() {
        // It is moved before it runs, and there is one for each request that is under way.
        assert!(bytes(handle) <= 3072, "{} bytes: what few requests need belongs in a box", bytes(handle));
    }
}
