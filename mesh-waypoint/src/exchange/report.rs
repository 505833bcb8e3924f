//! What is known of a request when it is over: numbers, lines of the log, spans. It also holds what the request holds: its place at the endpoint, the connection
//! that goes back to the pool, and the client's connection, which is not idle before.

use std::sync::Arc;
use std::time::Instant;

use arcstr::ArcStr;
use bytes::Bytes;
use http::header::{EXPECT, HOST};
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Request, Response, Version};
use hyper::body::{Body, Incoming};
use mesh_core::l7::{Condition, Handling};
use mesh_runtime::{lanes, ticks};

use super::reply::Failure;
use super::upgrade::{Judged, Switched};
use crate::downstream::{Bound, Downstream};
use crate::entry::{Entry, headers};
use crate::http::body::{Held, Over};
use crate::http::count::{Broken, Count, Messages};
use crate::http::wait::{self, Wait};
use crate::http::{ResponseBody, Web, grpc};
use crate::record;
use crate::security::authorize::Refused;
use crate::telemetry::facts::{Facts, Reached, Remembered, Wanted};
use crate::telemetry::spans::{Outgoing, Trace};
use crate::telemetry::{Custom, Details, Flags, Measured, Plan, Protocol, Who, tap};
use crate::upstream::{Connection, Endpoint};

/// The host that is asked for, as it is written: nobody has looked at it.
pub struct Host(Option<Authority>, Option<HeaderValue>);

impl Host {
    /// Of a request that has just come.
    #[must_use]
    pub fn of(parts: &Parts) -> Self {
        Self(parts.uri.authority().cloned(), parts.headers.get(HOST).cloned())
    }

    fn as_str(&self) -> &str {
        let Self(written, host) = self;
        let host = || host.as_ref().and_then(|host| host.to_str().ok()).unwrap_or_default();
        let text = written.as_ref().map_or_else(host, Authority::as_str);
        // Whoever writes a password before it is refused, and the password is nobody's to see.
        text.rsplit_once('@').map_or(text, |(_, host)| host)
    }
}

/// One request.
pub struct Report {
    down: Arc<Downstream>,
    bound: Option<Arc<Bound>>,
    began: Instant,
    http2: bool,
    /// It came by HTTPS, here or at a proxy in front that is believed.
    https: bool,
    /// It has no body.
    bare: bool,
    grpc: bool,
    /// Its client speaks gRPC-Web, and its endpoint gRPC.
    web: Option<Web>,
    /// Its body has to come at some rate.
    paced: bool,
    /// Its client has said that a body follows at once.
    announced: bool,
    status: u16,
    grpc_status: Option<u16>,
    flags: Flags,
    attempts: u32,
    received: Option<Arc<Count>>,
    sent: u64,
    messages: Messages,
    endpoint: Option<Endpoint>,
    connection: Option<Connection>,
    plan: Option<Arc<Plan>>,
    remembered: Option<Box<Remembered>>,
    trace: Option<Box<Trace>>,
    rule: ArcStr,
    /// Why we have answered.
    details: Option<Details>,
    /// Why there was no connection to whoever was asked last.
    unreached: Option<String>,
    /// Whoever was asked last, and when.
    last: Option<Reached>,
    sent_at: Option<Instant>,
    /// When the last attempt began, in `ticks`.
    sent_ms: u64,
    head: Option<Instant>,
    recorded: bool,
    /// Of a request for another protocol: what policies looked at, and both ends once they have agreed.
    judged: Option<Box<Judged>>,
    switched: Option<Box<Switched>>,
    /// Why that was ended from here, in Envoy's word.
    ended: Option<&'static str>,
}

/// Whether a client of HTTP/1.1 says that it has a body: by its length, or because it waits to be asked for it. One in chunks may be made as it goes.
fn is_announced(request: &Request<Incoming>) -> bool {
    let body = request.body();
    let is_one = request.version() != Version::HTTP_2 && !body.is_end_stream();
    is_one && (body.size_hint().exact().is_some() || request.headers().contains_key(EXPECT))
}

impl Report {
    /// A request has come.
    pub fn begin(down: Arc<Downstream>, request: &Request<Incoming>) -> Self {
        let announced = is_announced(request);
        down.watch.begin(announced);
        let https = down.scheme() == "https";
        Self {
            down,
            bound: None,
            began: Instant::now(),
            http2: request.version() == Version::HTTP_2,
            https,
            bare: request.body().is_end_stream(),
            grpc: false,
            web: None,
            paced: false,
            announced,
            status: 0,
            grpc_status: None,
            flags: Flags::default(),
            attempts: 0,
            received: None,
            sent: 0,
            messages: Messages::default(),
            endpoint: None,
            connection: None,
            plan: None,
            remembered: None,
            trace: None,
            rule: ArcStr::new(),
            details: None,
            unreached: None,
            last: None,
            sent_at: None,
            sent_ms: 0,
            head: None,
            recorded: false,
            judged: None,
            switched: None,
            ended: None,
        }
    }

    /// What the connection leads to.
    pub fn bound(&mut self, bound: &Arc<Bound>) {
        self.plan = Some(Arc::clone(bound.plan()));
        self.bound = Some(Arc::clone(bound));
    }

    /// It was read. From now on its headers say which trace it belongs to.
    pub fn asked(&mut self, parts: &mut Parts, authority: &str, grpc: bool, socket: bool) {
        self.grpc = grpc;
        self.https = self.down.entry.as_ref().is_some_and(|entry| headers::scheme(&parts.headers, entry) == "https");
        // Calls of gRPC and sockets may have nothing to say for hours. Of HTTP/1.1 the connection itself is watched.
        self.paced = self.http2 && !grpc && !socket;
        self.remember(parts, |parts, wanted| Remembered::of(parts, authority, wanted));
    }

    /// Whether anybody may be told of it.
    pub fn tells(&self) -> bool {
        let is_told = |plan: &Arc<Plan>| plan.remembers() || plan.tracer.is_some();
        self.plan.as_ref().is_some_and(is_told) || self.down.lane.shared.taps.is_on()
    }

    /// It was refused while it was read.
    #[cold]
    pub fn unread(&mut self, parts: &mut Parts, host: &Host) {
        self.remember(parts, |parts, _| Remembered::unread(parts, host.as_str()));
    }

    fn remember(&mut self, parts: &mut Parts, of: impl FnOnce(&Parts, &Wanted) -> Remembered) {
        let Some(plan) = &self.plan else { return };
        if let Some(tracer) = &plan.tracer {
            let mut rng = self.down.lane.rng.lock();
            self.trace = Some(Box::new(Trace::begin(tracer, &mut parts.headers, &mut *rng)));
        }
        let taps = &self.down.lane.shared.taps;
        if plan.remembers() || taps.is_on() || self.trace.as_ref().is_some_and(|trace| trace.is_recorded()) {
            self.remembered = Some(Box::new(of(parts, &plan.wanted)));
        }
    }

    /// A rule means it, by an alternative that may have a name: that says which rule it is of.
    pub fn rule(&mut self, handling: &Handling, condition: Option<&Condition>) {
        if self.remembered.is_some() {
            let mut names =
                condition.map(|condition| &condition.name).into_iter().chain([&handling.name, &handling.origin]);
            let name = names.find(|name| !name.is_empty());
            self.rule = name.cloned().unwrap_or_default();
        }
    }

    /// Something is to be said of it, in Envoy's word.
    pub fn flag(&mut self, flag: &'static str) {
        self.flags.add(Flags::of(flag));
    }

    /// We answer it, for that reason; `why` is made only for who is told.
    pub fn details(&mut self, why: impl FnOnce() -> Details) {
        if self.remembered.is_some() {
            self.details = Some(why());
        }
    }

    /// Policies do not let it through.
    pub fn refused(&mut self, refused: Refused) -> Failure {
        match refused {
            Refused::Malformed => {
                self.details(|| Details::Word("path_normalization_failed"));
                Failure::BAD_REQUEST
            }
            Refused::Denied(policy) => {
                self.details(|| Details::Policy(policy));
                Failure::DENIED
            }
        }
    }

    /// It fails.
    pub fn failed(&mut self, failure: &Failure) {
        self.flag(failure.flag);
        if let (None, Some(word)) = (&self.details, failure.details()) {
            self.details(|| Details::Word(word));
        }
    }

    /// It is sent to an endpoint. What is given back says which trace that belongs to.
    pub fn attempt(&mut self, endpoint: &Endpoint) -> Option<Outgoing> {
        self.attempts += 1;
        self.sent_ms = ticks::now_ms();
        if self.remembered.is_some() {
            self.last = Some(record::reached(endpoint));
            self.sent_at = Some(Instant::now());
        }
        let trace = self.trace.as_mut()?;
        let mut rng = self.down.lane.rng.lock();
        trace.attempt(|| record::reached(endpoint), &mut *rng)
    }

    /// The endpoint has answered with that status, or there is no answer for that reason.
    pub fn attempted(&mut self, status: Option<u16>, flag: &'static str) {
        if let Some(trace) = &mut self.trace {
            trace.attempted(status, flag);
        }
    }

    /// Why there was no connection for the last attempt; none if there was one.
    pub fn unreached(&mut self, why: Option<String>) {
        if self.remembered.is_some() {
            self.unreached = why;
        }
    }

    /// Counts what comes of its body.
    pub fn received(&mut self) -> Arc<Count> {
        let connection = || self.paced.then(|| Arc::clone(&self.down.watch));
        let awaited = || self.announced.then(|| Arc::clone(&self.down.watch));
        let fresh = || Arc::new(Count::new(self.grpc, connection(), awaited()));
        Arc::clone(self.received.get_or_insert_with(fresh))
    }

    /// Why its body has no end, if that is known.
    pub fn broken(&self) -> Option<Broken> {
        self.received.as_ref()?.broken()
    }

    /// Whether the last attempt, which has taken too long, says something of its endpoint; `turn`: what that had to wait for itself.
    pub fn is_late(&self, turn: &Wait) -> bool {
        let now_ms = ticks::now_ms();
        let body = self.received.as_ref().map(|received| received.wait.over_for(now_ms));
        // Its time runs from the end of the request.
        let ended = self.received.as_ref().and_then(|received| received.ended_at());
        let since_end = ended.map_or(u64::MAX, |at| u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX));
        let took_ms = now_ms.saturating_sub(self.sent_ms).min(since_end);
        wait::is_late(took_ms, body.into_iter().chain([turn.over_for(now_ms)]))
    }

    /// An endpoint has answered.
    pub fn forwarded(&mut self, endpoint: Endpoint, connection: Connection) {
        (self.endpoint, self.connection) = (Some(endpoint), Some(connection));
    }

    /// Policies look at this, and are to look at it again as long as it lasts.
    pub fn judged(&mut self, judged: Box<Judged>) {
        self.judged = Some(judged);
    }

    /// An endpoint has agreed to another protocol.
    pub fn switches(&mut self, endpoint: Endpoint, switched: Switched) {
        (self.endpoint, self.switched) = (Some(endpoint), Some(Box::new(switched)));
    }

    /// What follows, if both have agreed to another protocol.
    pub fn switched(&mut self) -> Option<(Switched, Option<Box<Judged>>)> {
        let switched = self.switched.take()?;
        Some((*switched, self.judged.take()))
    }

    /// So many bytes have followed an agreement, until that ended so.
    pub fn copied(mut self: Box<Self>, (flag, ended): (&'static str, Option<&'static str>), received: u64, sent: u64) {
        self.ended = ended;
        if flag != "-" {
            self.flag(flag);
        }
        self.received().passed(received);
        self.sent = sent;
        self.record();
    }

    /// The head of the answer is known.
    pub fn answered(&mut self, response: &Response<ResponseBody>) {
        self.status = response.status().as_u16();
        if self.grpc {
            self.grpc_status = grpc::status(response.headers());
        }
        if let (Some(remembered), Some(plan)) = (&mut self.remembered, &self.plan) {
            let now = Instant::now();
            let took = self.sent_at.map_or(0, |sent| now.saturating_duration_since(sent).as_millis());
            self.head = Some(now);
            remembered.answer((response.status(), response.headers()), took, &plan.wanted);
        }
    }

    /// What its client speaks is made gRPC: that is what is told of it from now on.
    pub fn translated(&mut self, web: Web) {
        (self.grpc, self.paced, self.web) = (true, false, Some(web));
    }

    /// How its client speaks gRPC-Web, if its endpoint does not.
    pub fn web(&self) -> Option<Web> {
        self.web
    }

    /// Whether it is gRPC.
    pub fn is_grpc(&self) -> bool {
        self.grpc
    }

    /// Whether the client speaks HTTP/2.
    pub fn is_http2(&self) -> bool {
        self.http2
    }

    fn record(&mut self) {
        if std::mem::replace(&mut self.recorded, true) {
            return;
        }
        self.down.watch.end();
        let received = self.received.as_deref().map_or(0, Count::bytes);
        let duration = self.began.elapsed();
        let shared = &self.down.lane.shared;
        let target = self.bound.as_ref().map(|bound| &bound.target);
        let who = Who {
            peer: &self.down.peer,
            from: self.down.from(),
            outside: self.down.is_outside(),
            proved: self.down.proved(),
            client: self.bound.as_ref().and_then(|bound| bound.client.as_ref()),
            endpoint: self.endpoint.as_ref().map(|endpoint| &endpoint.workload),
            service: self.endpoint.as_ref().and_then(|endpoint| endpoint.service.as_ref()),
            asked: target.and_then(|target| target.service()),
        };
        let measured = Measured {
            status: self.status,
            grpc_status: self.grpc_status,
            flags: self.flags,
            protocol: if self.grpc { Protocol::Grpc } else { Protocol::Http },
            duration,
            received,
            sent: self.sent,
            messages_received: self.received.as_deref().map_or(0, Count::messages),
            messages_sent: self.messages.count,
        };
        let shape = self.plan.as_ref().and_then(|plan| plan.shape.as_ref());
        let now = shared.now_ms();
        let tapped = shared.taps.is_on();
        if shape.is_none() && self.remembered.is_none() && !tapped {
            return self.down.lane.meters.record(&who, &measured, &Custom::default(), now);
        }
        let asked = self.down.asked.to_string();
        let facts = self.facts(&who, &measured, &asked);
        let custom = shape.map(|shape| Custom::of(shape, |attribute| facts.datum(attribute)));
        self.down.lane.meters.record(&who, &measured, &custom.unwrap_or_default(), now);
        if self.remembered.is_some() {
            self.tell(&facts);
        }
        if tapped {
            tap::offer(&shared.taps, self.began, &facts, self.plan.as_deref());
        }
    }

    /// When all of it was here.
    fn ended_at(&self) -> Option<Instant> {
        match &self.received {
            Some(received) => received.ended_at().map(tokio::time::Instant::into_std),
            None => self.bare.then_some(self.began),
        }
    }

    /// Milliseconds since it began.
    fn ms(&self, at: Instant) -> Option<u64> {
        at.saturating_duration_since(self.began).as_millis().try_into().ok()
    }

    fn facts<'a>(&'a self, who: &'a Who<'a>, measured: &'a Measured, asked: &'a str) -> Facts<'a> {
        let own = &self.down.lane.shared.own;
        Facts {
            remembered: self.remembered.as_deref(),
            who,
            measured,
            start: mesh_runtime::clock::now() - measured.duration,
            head_ms: self.head.and_then(|at| self.ms(at)),
            body_ms: self.ended_at().and_then(|at| self.ms(at)),
            http2: self.http2,
            copied: None,
            edge: self.down.entry.is_some(),
            scheme: if self.https { "https" } else { "http" },
            rule: &self.rule,
            endpoint: self.last.as_ref(),
            answered: self.endpoint.is_some(),
            said: self.details.as_ref(),
            unreached: self.unreached.as_deref(),
            attempts: self.attempts,
            server_name: self.down.entry.as_ref().and_then(Entry::name),
            ended: self.ended,
            asked: (asked, self.down.asked.port()),
            own: &own.identity,
            pod: own.uid.rsplit('/').next().unwrap_or_default(),
            gateway: own.baggage.workload.as_deref().unwrap_or_default(),
            cluster_id: &own.place.cluster_id,
            trace: self.trace.as_ref().map(|trace| trace.number()),
        }
    }

    /// Lines of the log, and spans.
    fn tell(&self, facts: &Facts<'_>) {
        let lane = &self.down.lane;
        if let Some(plan) = &self.plan {
            plan.log(facts, lanes::current(), &mut lane.scratch.lock());
        }
        if let Some(trace) = &self.trace {
            trace.end(facts, self.began);
        }
    }
}

impl Held for Report {
    fn data(&mut self, bytes: &Bytes) {
        self.sent += bytes.len() as u64;
        if self.grpc {
            self.messages.feed(bytes);
        }
    }

    fn trailers(&mut self, trailers: &HeaderMap) {
        if self.grpc {
            self.grpc_status = grpc::status(trailers);
        }
        if let (Some(remembered), Some(plan)) = (&mut self.remembered, &self.plan) {
            remembered.trailers(trailers, &plan.wanted);
        }
    }

    fn end(mut self: Box<Self>, how: Over) {
        match how {
            Over::Left => self.flag("DC"),
            // Whoever has broken the request has broken what answers it.
            Over::Lost => self.flag(match self.broken() {
                Some(Broken::Slow) => "SI",
                Some(Broken::Unended) => "DC",
                None => "UC",
            }),
            Over::Late => self.flag("UT"),
            Over::Unread => self.flag("SI"),
            Over::Whole => {
                if let Some(connection) = self.connection.take() {
                    let found = self.endpoint.as_ref().and_then(|endpoint| endpoint.found.as_ref());
                    self.down.lane.pool.give_back(&self.down.lane.shared, connection, found);
                }
            }
        }
        self.record();
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        // Given up before there was an answer: the client has left.
        if !self.recorded {
            self.flag("DC");
        }
        self.record();
    }
}
