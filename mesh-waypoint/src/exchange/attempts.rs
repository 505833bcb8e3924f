//! Attempts: each at one endpoint, until one has an answer that is not tried again. Nothing is sent to the client before that.

use std::pin::Pin;
use std::sync::Arc;

use arcstr::ArcStr;
use http::header::{CONTENT_LENGTH, HOST, HeaderValue, TRANSFER_ENCODING};
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Request};
use http_body_util::BodyExt;
use hyper::body::Body;
use mesh_core::l7::Retries;
use mesh_core::l7::balance::Ended;
use mesh_core::l7::retry::AttemptEnd;
use mesh_runtime::task;
use tokio::time::{Instant, timeout_at};

use super::asked::Asked;
use super::outcome::{Answer, Lost, counted, none, unreached};
use super::plan::Plan;
use super::reply::Failure;
use super::report::Report;
use crate::downstream::{Bound, Downstream};
use crate::http::count::{Broken, Reading};
use crate::http::outgoing::address;
use crate::http::tape::Tape;
use crate::http::{ClientBody, RequestBody, Until, hop};
use crate::names::Named;
use crate::places::{Found, NoEndpoint};
use crate::target::Target;
use crate::telemetry::spans::Outgoing;
use crate::upstream::choose::Wish;
use crate::upstream::{ConnectError, Endpoint, SendError, choose};

/// Connections that were closed under our hands: so often another one is taken without counting it as an attempt.
const STALE: u32 = 3;

/// One request on its way.
pub struct Forward<'a> {
    /// Whose connection it came by.
    pub down: &'a Arc<Downstream>,
    /// What the connection leads to.
    pub bound: &'a Bound,
    /// What is done with it.
    pub plan: &'a Plan,
    /// What was read of it.
    pub asked: &'a Asked,
}

impl Forward<'_> {
    /// What it wants of an endpoint.
    pub(super) fn wish<'a>(&'a self, tried: &'a [ArcStr], hash: Option<u64>) -> Wish<'a> {
        let shared = &self.down.lane.shared;
        let (view, own) = (&self.bound.view, &shared.own);
        Wish { tried, hash, ..Wish::new(view, own, shared.now_ms()) }
    }
}

/// What is sent, for each attempt anew.
#[derive(Clone)]
pub(super) struct Head {
    pub(super) method: Method,
    pub(super) target: PathAndQuery,
    pub(super) host: HeaderValue,
    pub(super) headers: HeaderMap,
}

/// Where a request's body comes from, for each attempt.
pub(super) enum Source {
    Empty,
    Once(ClientBody, Reading),
    Gone,
    Tape(Arc<Tape>),
}

/// As far as it is to be had again, it is kept.
pub(super) fn source(body: ClientBody, keep: bool, limit: usize, report: &mut Report) -> Source {
    if body.is_end_stream() {
        return Source::Empty;
    }
    let count = report.received();
    if keep { Source::Tape(Tape::new(body, limit, count)) } else { Source::Once(body, count.into()) }
}

impl Source {
    /// Whether an endpoint has some of it, and its client sends more.
    fn is_underway(&self) -> bool {
        matches!(self, Self::Tape(tape) if tape.is_underway())
    }

    fn take(&mut self) -> Option<RequestBody> {
        match self {
            Self::Empty => Some(RequestBody::Empty),
            Self::Tape(tape) => tape.read().map(RequestBody::Tape),
            Self::Gone => None,
            Self::Once(..) => match std::mem::replace(self, Self::Gone) {
                Self::Once(body, count) => Some(RequestBody::Stream(body, count)),
                _ => None,
            },
        }
    }
}

/// The attempts of one request.
pub(super) struct Attempts<'a, 'f> {
    pub(super) of: &'a Forward<'f>,
    pub(super) retries: &'a Retries,
    /// When it is over is the client's own: that an endpoint does not keep it says nothing of the endpoint.
    pub(super) hurried: bool,
    pub(super) http2: bool,
    /// A request that was sent may be sent again.
    pub(super) again: bool,
    /// Copies of it are on their way.
    pub(super) is_copied: bool,
    pub(super) source: Source,
    pub(super) head: Option<Head>,
    pub(super) tried: Vec<ArcStr>,
    /// What the next request says of its trace.
    pub(super) trace: Option<Outgoing>,
    pub(super) found: Option<Found>,
    /// Where the host of the request leads, if its place is known as a pattern only.
    pub(super) named: Option<Named>,
    pub(super) hash: Option<u64>,
    /// Why the last connection did not come about.
    pub(super) why: Option<String>,
}

impl Attempts<'_, '_> {
    /// Makes them.
    pub(super) async fn run(
        &mut self,
        mut until: Option<&mut Until>,
        report: &mut Report,
    ) -> Result<(Answer, Endpoint), Failure> {
        let mut attempt = 1;
        let mut second = None;
        loop {
            let mut endpoint = self.endpoint()?;
            endpoint.retry = second.take();
            if let Some(until) = until.as_deref_mut() {
                until.begin(self.retries.per_try_timeout, Instant::now());
            }
            self.trace = report.attempt(&endpoint);
            let ended = {
                let once = std::pin::pin!(self.once(&endpoint));
                within(until.as_deref(), once).await
            };
            let ended =
                ended.unwrap_or(Err(Lost { end: AttemptEnd::PerTryTimeout, failure: Failure::LATE, elsewhere: true }));
            // An endpoint of HTTP/2 only hears that the stream is over.
            let ended = ended.map_err(|lost| match report.broken() {
                Some(Broken::Slow) => Lost { failure: Failure::SLOW_BODY, elsewhere: false, ..lost },
                Some(Broken::Unended) => Lost { failure: Failure::BODY, elsewhere: false, ..lost },
                None => lost,
            });
            match &ended {
                Ok(answer) => report.attempted(Some(answer.response.status().as_u16()), "-"),
                Err(lost) => report.attempted(None, lost.failure.flag),
            }
            report.unreached(self.why.take());
            let is_own =
                |until: &Until| until.is_named(Instant::now()) || self.hurried && until.is_over(Instant::now());
            let is_own = || until.as_deref().is_some_and(is_own);
            let is_fault = |ended: &Ended| *ended != Ended::Late || !is_own() && report.is_late(&endpoint.turn);
            if let Some(ended) = counted(&ended).filter(is_fault) {
                endpoint.ended(ended, self.of.down.lane.shared.now_ms());
            }
            if ended.is_err() && until.as_deref().is_some_and(|until| until.is_over(Instant::now())) {
                return Err(Failure::LATE);
            }
            let (end, failure, elsewhere) = match &ended {
                Ok(answer) => (answer.judged(), None, true),
                Err(lost) => (lost.end, Some(lost.failure), lost.elsewhere),
            };
            // A call whose client still speaks is a stream: an endpoint may have acted on what it has heard, and another one would hear the first words late.
            let has_heard =
                !matches!(end, AttemptEnd::ConnectFailure | AttemptEnd::RefusedStream | AttemptEnd::ResetBeforeRequest);
            let streams = has_heard && self.of.asked.call.is_any() && self.source.is_underway();
            let possible = self.head.is_some() && !matches!(self.source, Source::Gone) && elsewhere && !streams;
            let mut again = possible && self.retries.again(attempt, &end);
            if let Some(found) = self.found.as_ref().filter(|_| again) {
                let policy = found.now.policy();
                // What is held for this attempt must not take the place of the next one.
                endpoint.retry = None;
                second = found.place.usage().retry(&policy.pool, policy.retry_budget.as_ref());
                if second.is_none() {
                    again = false;
                    report.flag("UO");
                }
            }
            if !again {
                // Also an answer may be one that there would have been another attempt for.
                if attempt > 1 && self.retries.is_exhausted(attempt, &end) {
                    report.flag("URX");
                }
                return match ended {
                    Ok(answer) => Ok((answer, endpoint)),
                    Err(lost) => Err(failure.unwrap_or(lost.failure)),
                };
            }
            drop(ended);
            // What the request says chooses its endpoint, and only that: the next attempt says the same. Names that were looked up and waypoints are not chosen by it.
            let stays = self.hash.is_some() && self.named.is_none() && endpoint.waypoint.is_none();
            if (self.retries.elsewhere || self.retries.remote_localities) && !stays {
                self.tried.push(endpoint.workload.uid.clone());
            }
            // Its place is free while nobody is asked.
            drop(endpoint);
            let pause = self.retries.pause(attempt, &mut *self.of.down.lane.rng.lock());
            tokio::time::sleep(pause).await;
            attempt += 1;
        }
    }

    /// No endpoint has had it. What is left of its body is for its copies.
    pub(super) fn give_up(&mut self) {
        if let (true, Some(mut body)) = (self.is_copied, self.source.take()) {
            let limit = self.of.down.lane.shared.settings.mirror_timeout;
            task::spawn("body of a copy", async move {
                let all = async { while let Some(Ok(_)) = body.frame().await {} };
                let _ = tokio::time::timeout(limit, all).await;
            });
        }
    }

    /// Who is asked next. When all were tried, anybody.
    fn endpoint(&self) -> Result<Endpoint, Failure> {
        let (of, lane) = (self.of, &self.of.down.lane);
        let endpoint = match (&self.found, &of.bound.target) {
            (None, Target::Workload { workload, address, .. }) => {
                choose::workload(workload, *address, &of.bound.view.snapshot).ok_or(NoEndpoint::NoneLeft)
            }
            (None, Target::Service { .. } | Target::Edge { .. }) => Err(NoEndpoint::Unknown),
            (Some(found), _) if self.named.is_some() => {
                let named = self.named.as_ref();
                let of_name = |tried| {
                    named
                        .ok_or(NoEndpoint::NoneLeft)
                        .and_then(|named| choose::named(found, named, &of.wish(tried, None)))
                };
                of_name(&self.tried).or_else(|why| match why {
                    NoEndpoint::NoneLeft => of_name(&[]),
                    other => Err(other),
                })
            }
            (Some(found), _) => {
                let mut rng = lane.rng.lock();
                let wish = Wish { elsewhere: self.retries.remote_localities, ..of.wish(&self.tried, self.hash) };
                let fresh = choose::endpoint(found, &wish, &mut *rng);
                fresh.or_else(|why| match self.tried.is_empty() || why != NoEndpoint::NoneLeft {
                    true => Err(why),
                    false => choose::endpoint(found, &of.wish(&[], self.hash), &mut *rng),
                })
            }
        };
        let endpoint = endpoint.map_err(none)?;
        // What is said of the endpoints behind a waypoint it asks itself.
        let admits = || of.bound.admits(&of.down.peer, &endpoint.workload, endpoint.address);
        match endpoint.waypoint.is_some() || admits() {
            true => Ok(endpoint),
            false => Err(Failure::DENIED),
        }
    }

    async fn once(&mut self, endpoint: &Endpoint) -> Result<Answer, Lost> {
        let lane = &self.of.down.lane;
        let mut held: Option<Box<Request<RequestBody>>> = None;
        let mut stale = 0;
        loop {
            let fresh = stale >= STALE;
            let connected = lane.pool.connect(&lane.shared, endpoint, &self.of.down.peer, self.http2, fresh).await;
            let mut connection = connected.map_err(|error| {
                tracing::debug!(endpoint = %endpoint.workload.uid, %error, "an endpoint cannot be reached");
                if matches!(error, ConnectError::Overflow)
                    && let Some(found) = &endpoint.found
                {
                    found.place.usage().refused();
                }
                self.keep(held.take());
                self.why = error.reason();
                unreached(&error)
            })?;
            let request = match held.take() {
                Some(request) => *request,
                None => {
                    self.request().ok_or(Lost { end: AttemptEnd::Reset, failure: Failure::LOST, elsewhere: false })?
                }
            };
            match connection.send(request).await {
                Ok(response) => {
                    let answer = Answer::new(response, connection);
                    let unsound = Lost { end: AttemptEnd::Reset, failure: Failure::PROTOCOL, elsewhere: true };
                    return if answer.is_sound() { Ok(answer) } else { Err(unsound) };
                }
                Err(SendError::NotSent(request)) if connection.reused && !fresh => {
                    held = Some(request);
                    stale += 1;
                }
                Err(SendError::NotSent(request)) => {
                    self.keep(Some(request));
                    return Err(Lost { end: AttemptEnd::ResetBeforeRequest, failure: Failure::LOST, elsewhere: true });
                }
                Err(SendError::Refused) => {
                    return Err(Lost { end: AttemptEnd::RefusedStream, failure: Failure::REFUSED, elsewhere: true });
                }
                Err(SendError::Lost(error)) => {
                    tracing::debug!(endpoint = %endpoint.workload.uid, %error, "an endpoint gave no answer");
                    // A body that the client does not end is no fault of the endpoint's.
                    let (failure, elsewhere) = match (error.is_user(), error.is_parse()) {
                        (true, _) => (Failure::BODY, false),
                        (_, true) => (Failure::PROTOCOL, true),
                        _ => (Failure::LOST, true),
                    };
                    return Err(Lost { end: AttemptEnd::Reset, failure, elsewhere });
                }
            }
        }
    }

    /// The request of the next attempt. What may not be needed again is not copied.
    fn request(&mut self) -> Option<Request<RequestBody>> {
        let body = self.source.take()?;
        let head = match self.again {
            true => self.head.as_ref()?.clone(),
            false => self.head.take()?,
        };
        let mut request = Request::new(body);
        *request.method_mut() = head.method;
        *request.headers_mut() = head.headers;
        if let Some(trace) = &self.trace {
            trace.write(request.headers_mut());
        }
        address(&mut request, head.target, head.host, self.http2)?;
        // hyper takes a body of unknown length for none where there mostly is none.
        if !self.http2
            && !matches!(request.body(), RequestBody::Empty)
            && !request.headers().contains_key(CONTENT_LENGTH)
        {
            request.headers_mut().insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        let version = request.version();
        hop::restore(request.headers_mut(), &self.of.asked.said, version);
        Some(request)
    }

    /// Takes back a request of which nothing was sent.
    fn keep(&mut self, request: Option<Box<Request<RequestBody>>>) {
        let Some(request) = request else { return };
        let (mut parts, body) = request.into_parts();
        match body {
            RequestBody::Stream(body, count) => self.source = Source::Once(body, count),
            // Of a tape there is another reader, and nothing of nothing.
            RequestBody::Tape(_) | RequestBody::Fed(_) | RequestBody::Kept(_) | RequestBody::Empty => {}
        }
        if self.head.is_some() {
            return;
        }
        let host = match parts.uri.authority() {
            Some(authority) => HeaderValue::from_str(authority.as_str()).ok(),
            None => parts.headers.remove(HOST),
        };
        let target = parts.uri.path_and_query().cloned();
        if let (Some(host), Some(target)) = (host, target) {
            self.head = Some(Head { method: parts.method, target, host, headers: parts.headers });
        }
    }
}

/// What becomes of something that is over then; nothing when that is so.
pub(super) async fn within<F: Future>(until: Option<&Until>, mut work: Pin<&mut F>) -> Option<F::Output> {
    // By then it may be known to be later.
    while let Some(end) = until.and_then(Until::left) {
        if let Ok(done) = timeout_at(end, work.as_mut()).await {
            return Some(done);
        }
    }
    match until.is_some_and(|until| until.at(Instant::now()).is_some()) {
        true => None,
        false => Some(work.await),
    }
}
