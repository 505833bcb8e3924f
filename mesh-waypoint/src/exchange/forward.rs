//! Where a request goes and what goes there: the place, what its attempts have in common, and what becomes of the answer.

use std::borrow::Cow;
use std::time::Duration;

use arcstr::ArcStr;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use http::header::{HeaderValue, SET_COOKIE};
use http::request::Parts;
use http::{HeaderName, Response, Version};
use hyper::body::Body;
use hyper::upgrade::OnUpgrade;
use mesh_core::l7::balance::{Said, key};
use mesh_core::l7::cluster::{Balancer, Speaks};
use mesh_core::l7::{ClusterKey, Retries, RetryOn, Target as RuleTarget};
use mesh_core::service::AppProtocol;
use rand::Rng;
use tokio::time::Instant;

use super::attempts::{Attempts, Forward, Head, Source, source, within};
use super::mirror;
use super::outcome::{Answer, none};
use super::plan::To;
use super::reply::{self, Failure};
use super::report::Report;
use super::upgrade;
use crate::http::grpc::{self, Call};
use crate::http::{ClientBody, ResponseBody, Until, hop};
use crate::names::{self, Named, NoName};
use crate::places::Found;
use crate::target::Target;
use crate::upstream::choose;

/// A client's own limit, in milliseconds.
const TIMEOUT: HeaderName = HeaderName::from_static("x-envoy-upstream-rq-timeout-ms");
const SOCKET_KEY: HeaderName = HeaderName::from_static("sec-websocket-key");

impl Forward<'_> {
    /// Forwards it and gives the answer, with what is held for it in `report`.
    pub async fn run(
        &self,
        parts: &mut Parts,
        body: ClientBody,
        upgrade: &mut Option<OnUpgrade>,
        report: &mut Report,
    ) -> Result<Response<ResponseBody>, Failure> {
        let retries = self.retries();
        let (mut until, hurried) = self.until(parts, retries);
        let found = self.found()?;
        let named = match found.as_ref().filter(|found| names::is_open(&found.now.service)) {
            None => None,
            Some(found) => {
                within(until.as_deref(), Box::pin(self.named(found)).as_mut()).await.unwrap_or(Err(Failure::LATE))?
            }
        };
        let (mut attempts, cookie) =
            self.attempts(parts, body, report, (retries, until.as_deref_mut()), (found, named))?;
        attempts.hurried = hurried;
        let (Answer { mut response, connection, has }, endpoint) =
            match attempts.run(until.as_deref_mut(), report).await {
                Ok(answered) => answered,
                Err(failure) => {
                    attempts.give_up();
                    return Err(failure);
                }
            };
        if response.status() == http::StatusCode::SWITCHING_PROTOCOLS {
            let asked = self.asked.said.upgrade.is_some();
            let Some(client) = upgrade.take().filter(|_| asked) else { return Err(Failure::PROTOCOL) };
            let (response, switched) = upgrade::switch(client, (response, has), self.asked.socket);
            report.switches(endpoint, switched);
            return Ok(response);
        }
        // In HTTP/2 any 2xx would open the socket, and the endpoint has not.
        if self.asked.socket && response.status().is_success() {
            return Err(Failure::PROTOCOL);
        }
        hop::strip(response.headers_mut(), has);
        report.forwarded(endpoint, connection);
        // Who calls in HTTP/1.1 is a bridge or a probe, and reads what there is.
        let web = report.web();
        let is_call = web.is_some() || self.asked.call.is_grpc() && parts.version == Version::HTTP_2;
        if is_call && grpc::is_foreign(response.status(), response.headers()) {
            let text = format!("no gRPC: an answer of HTTP with the status {}", response.status().as_u16());
            let mut answer = reply::text(response.status(), text.into(), true);
            web.iter().for_each(|web| web.answer(answer.headers_mut()));
            answer.headers_mut().extend(cookie.map(|cookie| (SET_COOKIE, cookie)));
            return Ok(answer);
        }
        if let Some(cookie) = cookie {
            response.headers_mut().append(SET_COOKIE, cookie);
        }
        let has_status = !is_call || response.headers().contains_key(grpc::STATUS);
        web.iter().for_each(|web| web.answer(response.headers_mut()));
        Ok(response.map(|body| ResponseBody::stream(body, until).with_status(has_status).in_web(web)))
    }

    /// When the request is over, as its rule or its client says; and whether the client has said so, and less than the rule. Of gRPC a client says how long a call may
    /// take, and counts from its beginning; how much time the rule gives, which it may say in its stead, is for what comes after the end of the request.
    fn until(&self, parts: &mut Parts, retries: &Retries) -> (Option<Box<Until>>, bool) {
        let own = parts.headers.remove(TIMEOUT).and_then(|value| value.to_str().ok()?.parse().ok());
        let rule = self.plan.handling.as_ref().and_then(|rule| rule.timeout).filter(|timeout| !timeout.is_zero());
        // Zero is none.
        let said = own.map_or(rule, |own| Some(Duration::from_millis(own)).filter(|own| !own.is_zero()));
        let call = if self.asked.call.is_any() { grpc::timeout(&parts.headers).ok().flatten() } else { None };
        let timeout = said.into_iter().chain(call).min();
        let hurried = timeout.is_some_and(|timeout| rule.is_none_or(|rule| timeout < rule));
        // In a box: most requests have none.
        let is_needed = timeout.is_some() || retries.per_try_timeout.is_some();
        let until = is_needed.then(|| {
            let now = Instant::now();
            Box::new(Until::new(call.and_then(|call| now.checked_add(call)), said, now))
        });
        (until, hurried)
    }

    /// What the rule says of it, else the table of whoever serves the service.
    fn retries(&self) -> &Retries {
        match &self.plan.handling {
            Some(handling) => &handling.retries,
            None => self.bound.view.table.retries(),
        }
    }

    /// What the attempts have in common, and the cookie that the answer brings the client. Mirrors are sent here.
    fn attempts<'r>(
        &'r self,
        parts: &mut Parts,
        body: ClientBody,
        report: &mut Report,
        (retries, until): (&'r Retries, Option<&mut Until>),
        (found, named): (Option<Found>, Option<Named>),
    ) -> Result<(Attempts<'r, 'r>, Option<HeaderValue>), Failure> {
        let http2 = self.asked.said.upgrade.is_none() && self.http2(parts.version, found.as_ref());
        let (hash, cookie) = self.hash(parts, found.as_ref());
        let mut body = body;
        if let Call::Web(web) = self.asked.call
            && http2
            && found.as_ref().is_some_and(says_grpc)
        {
            web.request(&mut parts.headers);
            body.decode(web.decoder());
            report.translated(web);
        }
        let mirrors = match &self.plan.to {
            To::Place(place) => &*place.mirrors,
            _ => &[],
        };
        let again = retries.attempts > 0 && repeats(&retries.on, http2, self.asked.call.is_any());
        let lane = &self.down.lane;
        let copies: Vec<_> = mirrors
            .iter()
            .map(|_| {
                mirror::begin(lane, Some(&mut body).filter(|body| !body.is_end_stream()).map(|body| |to| body.feed(to)))
            })
            .collect();
        let is_copied = copies.iter().any(Option::is_some);
        let source = source(body, again, lane.shared.settings.replay_bytes, report);
        // What goes on as bytes has no end that could be waited for.
        if let Some(until) = until.filter(|_| !self.asked.socket && !matches!(source, Source::Empty)) {
            until.after(report.received());
        }
        let head = self.head(parts)?;
        for (cluster, begun) in mirrors.iter().zip(copies) {
            if let Some(begun) = begun {
                mirror::send(self.down, begun, self.copy(&head, parts.version, report.is_grpc()), cluster.clone());
            }
        }
        let attempts = Attempts {
            of: self,
            retries,
            hurried: false,
            http2,
            again,
            is_copied,
            source,
            head: Some(head),
            tried: Vec::new(),
            trace: None,
            found,
            named,
            hash,
            why: None,
        };
        Ok((attempts, cookie))
    }

    /// Where the request goes, if not to a workload itself.
    fn cluster(&self) -> Option<Cow<'_, ClusterKey>> {
        if let Some(backend) = self.plan.backend() {
            return match &backend.target {
                RuleTarget::Cluster(key) => Some(Cow::Borrowed(key)),
                RuleTarget::Broken(_) => None,
            };
        }
        let service = self.bound.target.service()?.clone();
        Some(Cow::Owned(ClusterKey { service, port: self.bound.target.port(), subset: ArcStr::new() }))
    }

    /// The place that it goes to, if not to a workload itself.
    fn found(&self) -> Result<Option<Found>, Failure> {
        let Some(cluster) = self.cluster() else {
            return match &self.bound.target {
                Target::Workload { .. } => Ok(None),
                Target::Service { .. } | Target::Edge { .. } => Err(Failure::GONE),
            };
        };
        let shared = &self.down.lane.shared;
        let find = || {
            let client = self.bound.seen(&self.down.peer);
            choose::place(&shared.places, &self.wish(&[], None), &cluster, &client)
        };
        self.bound.place(&cluster, shared.now_ms(), find).map(Some).map_err(none)
    }

    /// Where the host leads that is asked for, of a place of which only a pattern is known.
    async fn named(&self, found: &Found) -> Result<Option<Named>, Failure> {
        let shared = &self.down.lane.shared;
        let known = (&*self.bound.view.snapshot, &*shared.own.place.network);
        let (service, host) = (&found.now.service, Some(self.asked.authority.host()));
        let named = match names::passed(service, self.bound.target.address(), known) {
            Some(passed) => passed.map(Some),
            None => shared.names.find(service, host, known, shared.now_ms(), names::by_the_system).await,
        };
        named.map_err(|why| match why {
            NoName::Unknown => Failure::UNKNOWN_HOST,
            NoName::NoAddress => Failure::NO_ADDRESS,
        })
    }

    fn http2(&self, version: Version, found: Option<&Found>) -> bool {
        speaks_http2(found, version, self.down.entry.is_some(), self.asked.call.is_grpc())
    }

    /// What a copy of the request says.
    fn copy(&self, head: &Head, version: Version, grpc: bool) -> mirror::Copy {
        mirror::Copy {
            method: head.method.clone(),
            target: head.target.clone(),
            headers: head.headers.clone(),
            version,
            grpc,
            trailers: self.asked.said.trailers,
            name: self.asked.authority.host().to_owned(),
            host: head.host.clone(),
        }
    }

    /// What decides its endpoint, if that is a thing that it says; and the cookie by which it is to say it from now on.
    fn hash(&self, parts: &Parts, found: Option<&Found>) -> (Option<u64>, Option<HeaderValue>) {
        let Some(Balancer::Hash(wanted, _)) = found.map(|found| &found.now.policy().balancer) else {
            return (None, None);
        };
        let said = Said { headers: &parts.headers, query: parts.uri.query(), source: self.asked.remote };
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

/// As is said of the place; else as its port says; else as the client speaks. What a browser at the edge speaks tells nothing of an application that says
/// nothing: there only gRPC, which is nothing else, is HTTP/2 on.
pub(super) fn speaks_http2(found: Option<&Found>, version: Version, at_edge: bool, grpc: bool) -> bool {
    let is_http2 = version == Version::HTTP_2;
    let Some(found) = found else { return is_http2 };
    match (found.now.policy().pool.speaks, declared(found)) {
        (Speaks::Http2, _) | (Speaks::AsDeclared, Some(AppProtocol::Http2 | AppProtocol::Grpc)) => true,
        (Speaks::AsDeclared, Some(AppProtocol::Http11)) => false,
        (Speaks::AsDeclared, _) if at_edge => is_http2 && grpc,
        _ => is_http2,
    }
}

/// What the port of a place says that is spoken there.
fn declared(found: &Found) -> Option<AppProtocol> {
    found.now.service.port(found.place.key().port).map(|port| port.app_protocol)
}

fn says_grpc(found: &Found) -> bool {
    declared(found) == Some(AppProtocol::Grpc)
}

/// Whether an attempt whose request was sent may be followed by another: else nothing needs to be kept.
fn repeats(on: &RetryOn, http2: bool, grpc: bool) -> bool {
    const SENT: u16 = RetryOn::ALL & !RetryOn::CONNECT_FAILURE & !RetryOn::REFUSED_STREAM;
    on.events & SENT != 0
        || !on.statuses.is_empty()
        || (http2 && on.events & RetryOn::REFUSED_STREAM != 0)
        || (grpc && on.grpc != 0)
}
