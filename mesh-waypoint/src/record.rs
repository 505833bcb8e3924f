//! What is said of one connection that is no HTTP: it is counted from when it is known where it goes, and has a line of the access log when it is over, also if it
//! was refused. Used by `connection` and by `edge`, which copy.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use arcstr::ArcStr;
use mesh_core::telemetry::expression::{Attribute, Datum};
use mesh_runtime::lanes;
use mesh_transport::copy::{ByteCounters, Outcome, Side};
use mesh_transport::tls::{Hello, judge_hello};
use tokio::time::Instant;

use crate::downstream::Downstream;
use crate::entry::Entry;
use crate::silence::Over;
use crate::telemetry::facts::{Facts, Reached};
use crate::telemetry::{Copied, Custom, Flags, Measured, Plan, Protocol, Who, tap};
use crate::upstream::{ConnectError, Endpoint};

/// Why a connection leads nowhere: Envoy's flag for it and what happened.
pub type Nowhere = (&'static str, String);

/// What Envoy calls it when policies end a connection.
pub(crate) const DENIED: &str = "rbac_access_denied";

/// The same of one that is silent.
const SILENT: &str = "tcp_session_idle_timeout";

/// The same of one that has lasted too long.
const OLD: &str = "duration_timeout";

/// Which of a copy's counters is which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counts {
    /// What goes to the client is sent, as operators read it.
    AsSeen,
    /// The copy's local socket is the client's, so it counts as sent what the client says.
    Turned,
}

/// One connection, until its line is written.
pub struct Record<'a> {
    down: &'a Downstream,
    began: Instant,
    plan: Option<Arc<Plan>>,
    /// Somebody listened when it came.
    tapped: bool,
    flags: Flags,
    attempts: u32,
    /// Whoever was asked last.
    last: Option<Reached>,
    unreached: Option<String>,
    /// The name that its TLS asks for, where that is not the gateway's.
    name: Option<String>,
    rule: ArcStr,
    ended: Option<&'static str>,
    copied: Option<(Copied, Counts)>,
    /// It is known how it has ended.
    is_over: bool,
}

impl<'a> Record<'a> {
    /// One that has come just now.
    #[must_use]
    pub fn begin(down: &'a Downstream) -> Self {
        let plan = down.bound().ok().map(|bound| Arc::clone(bound.plan())).filter(|plan| plan.logs());
        Self {
            down,
            began: Instant::now(),
            plan,
            tapped: down.lane.shared.taps.is_on(),
            flags: Flags::default(),
            attempts: 0,
            last: None,
            unreached: None,
            name: None,
            rule: ArcStr::new(),
            ended: None,
            copied: None,
            is_over: false,
        }
    }

    /// Whether a line will be written, or heard by who listens.
    #[must_use]
    pub fn is_logged(&self) -> bool {
        self.plan.is_some() || self.tapped
    }

    /// What its first bytes say.
    pub fn read(&mut self, first: &[u8]) {
        if self.name.is_none()
            && self.is_logged()
            && let Hello::Name(name) = judge_hello(first)
        {
            self.name = Some(name);
        }
    }

    /// A rule means it.
    pub fn rule(&mut self, origin: &ArcStr) {
        if self.is_logged() {
            self.rule = origin.clone();
        }
    }

    /// An endpoint was asked.
    pub fn tried(&mut self, endpoint: &Endpoint, error: Option<&ConnectError>) {
        self.attempts += 1;
        if self.is_logged() {
            self.last = Some(reached(endpoint));
            self.unreached = error.and_then(ConnectError::reason);
        }
    }

    /// It leads nowhere, which is counted, too.
    pub fn refused(&mut self, (flag, _): &Nowhere) {
        self.flags.add(Flags::of(flag));
        if *flag == DENIED {
            self.ended = Some(DENIED);
        }
        self.is_over = true;
        self.copied = Some((count(self.down, None, self.flags), Counts::AsSeen));
    }

    /// It is at an endpoint: it is counted from now on, in what is given back.
    pub fn open(&mut self, endpoint: &Endpoint, counts: Counts) -> Arc<ByteCounters> {
        let mut copied = count(self.down, Some(endpoint), self.flags);
        if counts == Counts::Turned {
            copied.turn();
        }
        let counters = copied.counters();
        self.copied = Some((copied, counts));
        counters
    }

    /// A copy has ended.
    pub fn copied(&mut self, outcome: &Outcome) {
        let is_turned = self.copied.as_ref().is_some_and(|(_, counts)| *counts == Counts::Turned);
        let end = |side: &Side| if (*side == Side::Local) == is_turned { "DC" } else { "UC" };
        self.end(match outcome {
            Outcome::Closed => "-",
            Outcome::ResetBy(side) | Outcome::Failed(side, _) => end(side),
            Outcome::Cancelled => "LR",
        });
    }

    /// Policies have let it through and do not any more.
    pub fn withdrawn(&mut self) {
        self.ended = Some(DENIED);
        self.end("-");
    }

    /// What is said of the place lets it go on no longer.
    pub fn over(&mut self, over: Over) {
        let (ended, flag) = match over {
            Over::Silent => (SILENT, "SI"),
            Over::Old => (OLD, "DT"),
        };
        self.ended = Some(ended);
        self.end(flag);
    }

    /// It is over, with that to be said of it in Envoy's word.
    pub fn end(&mut self, flag: &'static str) {
        self.flags.add(Flags::of(flag));
        self.is_over = true;
    }

    fn tell(&self, plan: Option<&Plan>) {
        let (down, lane) = (self.down, &self.down.lane);
        let counters = self.copied.as_ref().map(|(copied, counts)| (copied.counters(), *counts));
        let (received, sent) = counters.map_or((0, 0), |(counters, counts)| {
            let (sent, received) = (counters.sent.load(Relaxed), counters.received.load(Relaxed));
            if counts == Counts::Turned { (sent, received) } else { (received, sent) }
        });
        let duration = self.began.elapsed();
        let measured = Measured {
            status: 0,
            grpc_status: None,
            flags: self.flags,
            protocol: Protocol::Http,
            duration,
            received,
            sent,
            messages_received: 0,
            messages_sent: 0,
        };
        let bound = down.bound().ok();
        let endpoint = self.last.as_ref();
        let (own, asked) = (&lane.shared.own, down.asked.to_string());
        let who = Who {
            peer: &down.peer,
            from: down.from(),
            outside: down.is_outside(),
            proved: down.proved(),
            client: bound.as_ref().and_then(|bound| bound.client.as_ref()),
            endpoint: endpoint.map(|reached| &reached.workload),
            service: endpoint.and_then(|reached| reached.service.as_ref()),
            asked: bound.as_ref().and_then(|bound| bound.target.service()),
        };
        let facts = Facts {
            remembered: None,
            who: &who,
            measured: &measured,
            start: mesh_runtime::clock::now() - duration,
            head_ms: None,
            body_ms: None,
            http2: false,
            copied: Some("tcp"),
            edge: down.entry.is_some(),
            scheme: down.scheme(),
            rule: &self.rule,
            endpoint,
            answered: sent > 0,
            said: None,
            unreached: self.unreached.as_deref(),
            attempts: self.attempts,
            server_name: down.entry.as_ref().and_then(Entry::name).or(self.name.as_deref()),
            ended: self.ended,
            asked: (&asked, down.asked.port()),
            own: &own.identity,
            pod: own.uid.rsplit('/').next().unwrap_or_default(),
            gateway: own.baggage.workload.as_deref().unwrap_or_default(),
            cluster_id: &own.place.cluster_id,
            trace: None,
        };
        if let Some(plan) = plan {
            plan.log(&facts, lanes::current(), &mut lane.scratch.lock());
        }
        if self.tapped {
            tap::offer(&lane.shared.taps, self.began.into_std(), &facts, plan);
        }
    }
}

impl Drop for Record<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            // Given up by whoever served it: the process ends, or the client had not even said what it wants.
            self.end(if self.copied.is_some() { "LR" } else { "DC" });
        }
        if self.is_logged() {
            self.tell(self.plan.as_deref());
        }
    }
}

/// That endpoint, as it is told of: kept by whoever is asked for lines or spans only.
#[must_use]
pub fn reached(endpoint: &Endpoint) -> Reached {
    Reached {
        workload: Arc::clone(&endpoint.workload),
        service: endpoint.service.clone(),
        address: endpoint.address,
        place: endpoint.found.as_ref().map(|found| found.place.key().clone()),
    }
}

/// The flag of what policies deny: Envoy has no word for it, so nothing is written for it.
#[must_use]
pub fn denied(why: String) -> Nowhere {
    (DENIED, why)
}

/// Counts the connection for as long as what is given back lives.
fn count(downstream: &Downstream, endpoint: Option<&Endpoint>, flags: Flags) -> Copied {
    let bound = downstream.bound().ok();
    let who = Who {
        peer: &downstream.peer,
        from: downstream.from(),
        outside: downstream.is_outside(),
        proved: downstream.proved(),
        client: bound.as_ref().and_then(|bound| bound.client.as_ref()),
        endpoint: endpoint.map(|endpoint| &endpoint.workload),
        service: endpoint.and_then(|endpoint| endpoint.service.as_ref()),
        asked: bound.as_ref().and_then(|bound| bound.target.service()),
    };
    let lane = &downstream.lane;
    let shared = Arc::clone(&lane.shared);
    let shape = bound.as_ref().and_then(|bound| bound.plan().shape.clone());
    let custom = shape.map(|shape| Custom::of(&shape, |attribute| datum(downstream, attribute)));
    lane.meters.open(&who, flags, &custom.unwrap_or_default(), move || shared.now_ms())
}

/// What an expression knows of a connection that is copied: there are no requests in it.
fn datum(downstream: &Downstream, attribute: Attribute) -> Option<Datum> {
    match attribute {
        Attribute::SourceAddress => Some(Datum::Text(downstream.from().to_string())),
        Attribute::SourcePort => Some(Datum::Number(downstream.from().port().into())),
        Attribute::DestinationAddress => Some(Datum::Text(downstream.asked.to_string())),
        Attribute::DestinationPort => Some(Datum::Number(downstream.asked.port().into())),
        Attribute::ConnectionMtls => Some(Datum::Is(downstream.proved().is_some())),
        Attribute::ConnectionPeer => Some(Datum::Text(downstream.proved()?.to_string())),
        _ => None,
    }
}
