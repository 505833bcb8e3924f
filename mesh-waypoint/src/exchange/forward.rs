//! Attempts: each at one endpoint, until one has an answer that is not tried again. Nothing is sent to the client before that.

use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use arcstr::ArcStr;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use http::header::{CONTENT_LENGTH, HOST, HeaderValue, SET_COOKIE, TRANSFER_ENCODING};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, Method, Request, Response, Version};
use hyper::body::{Body, Incoming};
use hyper::upgrade::OnUpgrade;
use mesh_core::l7::balance::{Ended, Said, key};
use mesh_core::l7::cluster::{Balancer, Speaks};
use mesh_core::l7::retry::AttemptEnd;
use mesh_core::l7::{ClusterKey, Retries, RetryOn, Target as RuleTarget};
use mesh_core::service::AppProtocol;
use mesh_transport::hbone::HboneError;
use rand::Rng;
use tokio::time::{Instant, timeout_at};

use super::asked::Asked;
use super::mirror;
use super::plan::{Plan, To};
use super::reply::Failure;
use super::report::Report;
use super::upgrade;
use crate::downstream::{Bound, Downstream};
use crate::http::hop;
use crate::http::outgoing::address;
use crate::http::tape::Tape;
use crate::http::{ClientBody, Count, RequestBody, ResponseBody};
use crate::names::{self, Named, NoName};
use crate::places::{Found, NoEndpoint};
use crate::target::Target;
use crate::telemetry::spans::Outgoing;
use crate::upstream::choose::{self, Wish};
use crate::upstream::{ConnectError, Connection, Endpoint, SendError};

/// A client's own limit, in milliseconds.
const TIMEOUT: HeaderName = HeaderName::from_static("x-envoy-upstream-rq-timeout-ms");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const SOCKET_KEY: HeaderName = HeaderName::from_static("sec-websocket-key");
const RATE_LIMITED: HeaderName = HeaderName::from_static("x-envoy-ratelimited");
/// Connections that were closed under our hands: so often another one is taken without counting it as an attempt.
const STALE: u32 = 3;

/// What is done where no rule says it.
static DEFAULT: LazyLock<Retries> = LazyLock::new(Retries::default);

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

/// What is sent, for each attempt anew.
struct Head {
    method: Method,
    target: PathAndQuery,
    host: HeaderValue,
    headers: HeaderMap,
}

enum Source {
    Empty,
    Once(ClientBody, Arc<Count>),
    Gone,
    Tape(Arc<Tape>),
}

/// An attempt without an answer.
struct Lost {
    end: AttemptEnd,
    failure: Failure,
    /// Another endpoint may do better.
    elsewhere: bool,
}

impl Forward<'_> {
    /// Forwards it and gives the answer, with what is held for it in `report`.
    pub async fn run(
        &self,
        parts: &mut Parts,
        body: ClientBody,
        upgrade: &mut Option<OnUpgrade>,
        report: &mut Report,
    ) -> Result<Response<ResponseBody>, Failure> {
        let retries = self.plan.handling.as_ref().map_or(&*DEFAULT, |handling| &handling.retries);
        let own = parts.headers.remove(TIMEOUT).and_then(|value| value.to_str().ok()?.parse().ok());
        let timeout = own.map(Duration::from_millis).or(self.plan.handling.as_ref().and_then(|rule| rule.timeout));
        let deadline = timeout.filter(|timeout| !timeout.is_zero()).map(|timeout| Instant::now() + timeout);
        let found = self.found()?;
        let named = match found.as_ref().filter(|found| names::is_pattern(&found.now.service)) {
            None => None,
            Some(found) => {
                within(deadline, Box::pin(self.named(found)).as_mut()).await.unwrap_or(Err(Failure::LATE))?
            }
        };
        let http2 = self.asked.said.upgrade.is_none() && self.http2(parts.version, found.as_ref());
        let (hash, cookie) = self.hash(parts, found.as_ref());
        let mirrors = match &self.plan.to {
            To::Place(place) => &*place.mirrors,
            _ => &[],
        };
        let again = retries.attempts > 0 && repeats(&retries.on, http2, self.asked.grpc);
        let source = source(body, again || !mirrors.is_empty(), self.down.lane.shared.settings.replay_bytes, report);
        let head = self.head(parts)?;
        for cluster in mirrors {
            let tape = match &source {
                Source::Tape(tape) => Some(Arc::clone(tape)),
                _ => None,
            };
            let copy = mirror::Copy {
                method: head.method.clone(),
                target: head.target.clone(),
                headers: head.headers.clone(),
                tape,
            };
            mirror::send(self.down, copy, cluster.clone(), &head.host, http2);
        }
        let mut attempts = Attempts {
            of: self,
            retries,
            deadline,
            http2,
            again,
            source,
            head: Some(head),
            tried: Vec::new(),
            trace: None,
            found,
            named,
            hash,
            why: None,
        };
        let (mut response, connection, endpoint) = attempts.run(report).await?;
        if response.status() == http::StatusCode::SWITCHING_PROTOCOLS {
            let asked = self.asked.said.upgrade.is_some();
            let Some(client) = upgrade.take().filter(|_| asked) else { return Err(Failure::PROTOCOL) };
            return Ok(upgrade::switch(&self.down.drain, client, response, endpoint, self.asked.socket));
        }
        // In HTTP/2 any 2xx would open the socket, and the endpoint has not.
        if self.asked.socket && response.status().is_success() {
            return Err(Failure::PROTOCOL);
        }
        hop::strip(response.headers_mut());
        if let Some(cookie) = cookie {
            response.headers_mut().append(SET_COOKIE, cookie);
        }
        report.forwarded(endpoint, connection);
        Ok(response.map(|body| ResponseBody::stream(body, deadline)))
    }

    /// Where the request goes, if not to a workload itself.
    fn cluster(&self) -> Option<ClusterKey> {
        if let Some(backend) = self.plan.backend() {
            return match &backend.target {
                RuleTarget::Cluster(key) => Some(key.clone()),
                RuleTarget::Broken(_) => None,
            };
        }
        let service = self.bound.target.service()?.clone();
        Some(ClusterKey { service, port: self.bound.target.port(), subset: ArcStr::new() })
    }

    /// The place that it goes to, if not to a workload itself.
    fn found(&self) -> Result<Option<Found>, Failure> {
        let Some(cluster) = self.cluster() else {
            return match &self.bound.target {
                Target::Workload { .. } => Ok(None),
                Target::Service { .. } | Target::Edge { .. } => Err(Failure::GONE),
            };
        };
        let client = self.bound.seen(&self.down.peer);
        choose::place(&self.down.lane.shared.places, &self.wish(&[], None), &cluster, &client).map(Some).map_err(none)
    }

    /// Where the host leads that is asked for, of a place of which only a pattern is known.
    async fn named(&self, found: &Found) -> Result<Option<Named>, Failure> {
        let shared = &self.down.lane.shared;
        let known = (&*self.bound.view.snapshot, &*shared.own.place.network);
        let host = Some(self.asked.authority.host());
        let named = shared.names.find(&found.now.service, host, known, shared.now_ms(), names::by_the_system).await;
        named.map_err(|why| match why {
            NoName::Unknown => Failure::UNKNOWN_HOST,
            NoName::NoAddress => Failure::NO_ADDRESS,
        })
    }

    fn wish<'a>(&'a self, tried: &'a [ArcStr], hash: Option<u64>) -> Wish<'a> {
        let shared = &self.down.lane.shared;
        Wish { view: &self.bound.view, own: &shared.own, tried, hash, encrypted: false, now_ms: shared.now_ms() }
    }

    /// As is said of the place; else as its port says; else as the client speaks. What a browser at the edge speaks tells nothing of an application that says
    /// nothing: there only gRPC, which is nothing else, is HTTP/2 on.
    fn http2(&self, version: Version, found: Option<&Found>) -> bool {
        let is_http2 = version == Version::HTTP_2;
        let Some(found) = found else { return is_http2 };
        let declared = self.cluster().and_then(|key| found.now.service.port(key.port)).map(|port| port.app_protocol);
        match (found.now.policy().pool.speaks, declared) {
            (Speaks::Http2, _) | (Speaks::AsDeclared, Some(AppProtocol::Http2 | AppProtocol::Grpc)) => true,
            (Speaks::AsDeclared, Some(AppProtocol::Http11)) => false,
            (Speaks::AsDeclared, _) if self.down.entry.is_some() => is_http2 && self.asked.grpc,
            _ => is_http2,
        }
    }

    /// What decides its endpoint, if that is a thing that it says; and the cookie by which it is to say it from now on.
    fn hash(&self, parts: &Parts, found: Option<&Found>) -> (Option<u64>, Option<HeaderValue>) {
        let Some(Balancer::Hash(wanted, _)) = found.map(|found| &found.now.policy().balancer) else {
            return (None, None);
        };
        let source = self.down.from().ip();
        let said = Said { headers: &parts.headers, query: parts.uri.query(), source };
        key(wanted, &said, &mut *self.down.lane.rng.lock())
    }

    /// The request with what the rule and the place change.
    fn head(&self, parts: &mut Parts) -> Result<Head, Failure> {
        let mut headers = std::mem::take(&mut parts.headers);
        if let Some(handling) = &self.plan.handling {
            handling.request.apply(&mut headers);
        }
        let (mut target, mut host) = (None, None);
        if let To::Place(place) = &self.plan.to {
            (target, host) = (place.target.clone(), place.authority.as_deref());
        }
        if let Some(backend) = self.plan.backend() {
            backend.request.apply(&mut headers);
        }
        if self.asked.socket && !headers.contains_key(SOCKET_KEY) {
            let key: [u8; 16] = self.down.lane.rng.lock().random();
            let key = HeaderValue::from_str(&BASE64_STANDARD.encode(key)).map_err(|_| Failure::CLOSED)?;
            headers.insert(SOCKET_KEY, key);
        }
        let host = host.unwrap_or_else(|| self.asked.authority.as_str());
        Ok(Head {
            method: std::mem::take(&mut parts.method),
            target: target.or_else(|| parts.uri.path_and_query().cloned()).ok_or(Failure::BAD_REQUEST)?,
            host: HeaderValue::from_str(host).map_err(|_| Failure::CLOSED)?,
            headers,
        })
    }
}

/// What becomes of something that has a deadline or none; nothing when that is over.
async fn within<F: Future>(deadline: Option<Instant>, work: Pin<&mut F>) -> Option<F::Output> {
    match deadline {
        None => Some(work.await),
        Some(deadline) => timeout_at(deadline, work).await.ok(),
    }
}

/// Whether an attempt whose request was sent may be followed by another: else nothing needs to be kept.
fn repeats(on: &RetryOn, http2: bool, grpc: bool) -> bool {
    const SENT: u16 = RetryOn::ALL & !RetryOn::CONNECT_FAILURE & !RetryOn::REFUSED_STREAM;
    on.events & SENT != 0
        || !on.statuses.is_empty()
        || (http2 && on.events & RetryOn::REFUSED_STREAM != 0)
        || (grpc && on.grpc != 0)
}

fn source(body: ClientBody, keep: bool, limit: usize, report: &mut Report) -> Source {
    if body.is_end_stream() {
        return Source::Empty;
    }
    let count = report.received();
    if keep { Source::Tape(Tape::new(body, limit, count)) } else { Source::Once(body, count) }
}

impl Source {
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

struct Attempts<'a, 'f> {
    of: &'a Forward<'f>,
    retries: &'a Retries,
    deadline: Option<Instant>,
    http2: bool,
    /// A request that was sent may be sent again.
    again: bool,
    source: Source,
    head: Option<Head>,
    tried: Vec<ArcStr>,
    /// What the next request says of its trace.
    trace: Option<Outgoing>,
    found: Option<Found>,
    /// Where the host of the request leads, if its place is known as a pattern only.
    named: Option<Named>,
    hash: Option<u64>,
    /// Why the last connection did not come about.
    why: Option<String>,
}

type Answer = (Response<Incoming>, Connection);

impl Attempts<'_, '_> {
    async fn run(&mut self, report: &mut Report) -> Result<(Response<Incoming>, Connection, Endpoint), Failure> {
        let mut attempt = 1;
        let mut second = None;
        loop {
            let mut endpoint = self.endpoint()?;
            endpoint.retry = second.take();
            let limit = self.retries.per_try_timeout.map(|time| Instant::now() + time);
            let limit = limit.into_iter().chain(self.deadline).min();
            self.trace = report.attempt(&endpoint);
            let ended = {
                let once = std::pin::pin!(self.once(&endpoint));
                within(limit, once).await
            };
            let ended =
                ended.unwrap_or(Err(Lost { end: AttemptEnd::PerTryTimeout, failure: Failure::LATE, elsewhere: true }));
            match &ended {
                Ok((response, ..)) => report.attempted(Some(response.status().as_u16()), "-"),
                Err(lost) => report.attempted(None, lost.failure.flag),
            }
            report.unreached(self.why.take());
            if let Some(ended) = counted(&ended) {
                endpoint.ended(ended, self.of.down.lane.shared.now_ms());
            }
            if self.deadline.is_some_and(|deadline| ended.is_err() && Instant::now() >= deadline) {
                return Err(Failure::LATE);
            }
            let (end, failure, elsewhere) = match &ended {
                Ok((response, ..)) => (judged(response), None, true),
                Err(lost) => (lost.end, Some(lost.failure), lost.elsewhere),
            };
            let possible = self.head.is_some() && !matches!(self.source, Source::Gone) && elsewhere;
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
                return match ended {
                    Ok((response, connection)) => Ok((response, connection, endpoint)),
                    Err(lost) => {
                        if attempt > 1 && attempt > self.retries.attempts {
                            report.flag("URX");
                        }
                        Err(failure.unwrap_or(lost.failure))
                    }
                };
            }
            drop(ended);
            if self.retries.elsewhere {
                self.tried.push(endpoint.workload.uid.clone());
            }
            // Its place is free while nobody is asked.
            drop(endpoint);
            let pause = self.retries.pause(attempt, &mut *self.of.down.lane.rng.lock());
            tokio::time::sleep(pause).await;
            attempt += 1;
        }
    }

    /// Who is asked next. When all were tried, anybody.
    fn endpoint(&self) -> Result<Endpoint, Failure> {
        let (of, lane) = (self.of, &self.of.down.lane);
        let endpoint = match (&self.found, &of.bound.target) {
            (None, Target::Workload { workload, address }) => {
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
                let fresh = choose::endpoint(found, &of.wish(&self.tried, self.hash), &mut *rng);
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
                Ok(response) if !is_sound(&response) => {
                    return Err(Lost { end: AttemptEnd::Reset, failure: Failure::PROTOCOL, elsewhere: true });
                }
                Ok(response) => return Ok((response, connection)),
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
            RequestBody::Tape(_) | RequestBody::Kept(..) | RequestBody::Empty => {}
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

impl Clone for Head {
    fn clone(&self) -> Self {
        Self {
            method: self.method.clone(),
            target: self.target.clone(),
            host: self.host.clone(),
            headers: self.headers.clone(),
        }
    }
}

fn none(why: NoEndpoint) -> Failure {
    match why {
        NoEndpoint::Unknown => Failure::GONE,
        NoEndpoint::Closed => Failure::CLOSED,
        NoEndpoint::NoneLeft => Failure::NO_ENDPOINT,
        NoEndpoint::Overflow => Failure::OVERFLOW,
    }
}

/// What the end of an attempt says of its endpoint; nothing if it never was about the endpoint.
fn counted(ended: &Result<Answer, Lost>) -> Option<Ended> {
    match ended {
        Ok((response, _)) => Some(Ended::Status(status(response))),
        Err(lost) if lost.failure == Failure::OVERFLOW => None,
        Err(lost) if lost.failure == Failure::LATE => Some(Ended::Late),
        // We have nothing to prove who we are, or the client's body is gone.
        Err(lost) => lost.elsewhere.then_some(Ended::Failed),
    }
}

/// The status, or what one of gRPC that comes with the head is in HTTP.
fn status(response: &Response<Incoming>) -> u16 {
    match response.headers().get(GRPC_STATUS).and_then(|value| value.to_str().ok()) {
        Some("2" | "13" | "15") => 500,
        Some("4") => 504,
        Some("12") => 501,
        Some("14") => 503,
        _ => response.status().as_u16(),
    }
}

/// An attempt whose endpoint cannot be reached.
fn unreached(error: &ConnectError) -> Lost {
    let elsewhere = match error {
        ConnectError::Tunnel(error) => error.before_first_byte(),
        ConnectError::Overflow | ConnectError::NoCertificate => false,
        _ => true,
    };
    let full = matches!(error, ConnectError::Overflow | ConnectError::Tunnel(HboneError::Overloaded));
    Lost {
        end: AttemptEnd::ConnectFailure,
        failure: if full { Failure::OVERFLOW } else { Failure::CONNECT },
        elsewhere,
    }
}

/// Whether an answer can be read in one way only. What cannot is not passed on, for the client may read it in another.
fn is_sound(response: &Response<Incoming>) -> bool {
    let headers = response.headers();
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let (coding, more) = (codings.next(), codings.next());
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let (length, again) = (lengths.next(), lengths.next());
    let is_number = |value: &HeaderValue| !value.is_empty() && value.as_bytes().iter().all(u8::is_ascii_digit);
    response.status().as_u16() < 600
        && more.is_none()
        && coding.is_none_or(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked") && length.is_none())
        && again.is_none()
        && length.is_none_or(is_number)
}

/// What an answer means for another attempt.
fn judged(response: &Response<Incoming>) -> AttemptEnd {
    let grpc = response.headers().get(GRPC_STATUS).and_then(|value| value.to_str().ok()?.parse().ok());
    let rate_limited = response.headers().contains_key(RATE_LIMITED);
    AttemptEnd::Response { status: response.status().as_u16(), grpc, rate_limited }
}
