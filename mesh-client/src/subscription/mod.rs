//! The delta xDS subscription as a value: messages and times go in, requests and changes come out. No socket, no clock.
//!
//! ```text
//! on_connected -> initial requests of both types, with the versions of what is held
//! on_message   -> changes for the store, and the ACK or NACK to send once they are applied
//! on_demand    -> a request about one address that a connection waits for
//! on_timer     -> changes that waited for certainty, questions to take back, or the wish to connect again
//! on_end       -> remembers what the next stream must ask
//! ```
//!
//! Two kinds of removal are not believed at once. One push that removes more than half of the workloads is held back until, after a while, a
//! new stream says the same. And names that did not fit into the reconnect request are removed only after the new stream has sent everything
//! and been quiet.

mod demand;
mod held;
mod resources;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};

use arcstr::ArcStr;
use demand::Demands;
use held::Held;
use mesh_core::{Change, intern::Interner};
use mesh_proto::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE,
    discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Resource, Status},
};
use prost::Message;
use resources::Item;

/// The longest NACK text.
const MAX_NACK: usize = 8 << 10;
/// A first answer of this size may be the first of several. Our own control plane cuts at 48 MiB by a generous count.
const LARGE_MESSAGE: usize = 40 << 20;
/// The part after a large one comes within this, counted from when the large one was applied.
const NEXT_PART_MS: u64 = 1_000;
/// `INVALID_ARGUMENT`
const INVALID: i32 = 3;

/// Bounds and delays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of names and versions in a reconnect request. It shrinks by itself when a server refuses the size.
    pub initial_versions_bytes: usize,
    /// Pushes that remove fewer workloads than this are never held back.
    pub guarded_removals: usize,
    /// How long a suspicious removal is held before it is asked for again.
    pub hold_ms: u64,
    /// How long a new stream must be quiet before names that it did not mention are gone.
    pub settle_ms: u64,
    /// How long a question about one address stands. Longer than a connection is held for the answer.
    pub demand_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            initial_versions_bytes: 16 << 20,
            guarded_removals: 10,
            hold_ms: 60_000,
            settle_ms: 10_000,
            demand_ms: 5_000,
        }
    }
}

const MIN_INITIAL_VERSIONS_BYTES: usize = 64 << 10;

/// Something that an operator must see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Alarm {
    /// Resources were refused.
    Rejected {
        /// The type.
        type_url: &'static str,
        /// Which and why.
        problems: Vec<String>,
    },
    /// A removal of most of the mesh is held back.
    RemovalSuspended {
        /// How many resources.
        names: usize,
    },
    /// A removal of most of the mesh was confirmed and is being applied.
    RemovalConfirmed {
        /// How many resources.
        names: usize,
    },
}

/// The answer to one response. It is sent after its changes have been applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    type_url: String,
    nonce: String,
    problems: Vec<String>,
}

impl Reply {
    /// Adds a reason to refuse, for example that the changes could not be applied.
    pub fn refuse(&mut self, problem: String) {
        self.problems.push(problem);
    }

    /// The request to send: an ACK, or a NACK that names what is wrong.
    #[must_use]
    pub fn into_request(self) -> DeltaDiscoveryRequest {
        let mut message = self.problems.join("; ");
        if message.len() > MAX_NACK {
            let end = (0..=MAX_NACK).rev().find(|i| message.is_char_boundary(*i)).unwrap_or(0);
            message.truncate(end);
            message.push_str("...");
        }
        let error_detail = (!self.problems.is_empty()).then(|| Status { code: INVALID, message, details: Vec::new() });
        DeltaDiscoveryRequest {
            type_url: self.type_url,
            response_nonce: self.nonce,
            error_detail,
            ..DeltaDiscoveryRequest::default()
        }
    }
}

/// What came out of one response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// To be applied in order, as one batch.
    pub changes: Vec<Change>,
    /// To be sent afterwards.
    pub reply: Reply,
    /// To be logged and counted.
    pub alarms: Vec<Alarm>,
}

/// What a timer brought.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Due {
    /// To be applied.
    pub changes: Vec<Change>,
    /// To be sent.
    pub requests: Vec<DeltaDiscoveryRequest>,
    /// End the stream and open a new one.
    pub reconnect: bool,
    /// To be logged and counted.
    pub alarms: Vec<Alarm>,
}

/// The subscription to both types.
#[derive(Debug)]
pub struct Subscription {
    node: Node,
    limits: Limits,
    addresses: Topic,
    policies: Topic,
    demands: Demands,
    synced: bool,
}

impl Subscription {
    /// Nothing held, not connected.
    #[must_use]
    pub fn new(node: Node, limits: Limits) -> Self {
        let (addresses, policies) = (Topic::new(ADDRESS_TYPE), Topic::new(AUTHORIZATION_TYPE));
        Self { node, limits, addresses, policies, demands: Demands::default(), synced: false }
    }

    /// A stream is open: the requests that start it.
    pub fn on_connected(&mut self, now_ms: u64) -> Vec<DeltaDiscoveryRequest> {
        let (node, limits) = (self.node.clone(), self.limits);
        // The new stream's first answer is about everything.
        self.demands = Demands::default();
        self.topics().map(|topic| topic.open(node.clone(), limits, now_ms)).into()
    }

    /// One response.
    pub fn on_message(&mut self, response: DeltaDiscoveryResponse, now_ms: u64) -> Received {
        let mut reply =
            Reply { type_url: response.type_url.clone(), nonce: response.nonce.clone(), problems: Vec::new() };
        let limits = self.limits;
        let is_news = !self.demands.are_all_of(&response);
        let Some(topic) = self.topics().into_iter().find(|t| t.type_url == response.type_url) else {
            reply.refuse("this type was not subscribed to".into());
            return Received { changes: Vec::new(), reply, alarms: Vec::new() };
        };
        let (mut changes, mut alarms) = (Vec::new(), Vec::new());
        if is_news {
            topic.last_answer_ms = now_ms;
        }
        topic.receive(response, &limits, now_ms, &mut changes, &mut reply.problems, &mut alarms);
        self.sync(&mut changes);
        Received { changes, reply, alarms }
    }

    /// The stream ended. `too_large` means that the server refused the size of a request.
    pub fn on_end(&mut self, too_large: bool) {
        let unanswered = !(self.addresses.answered_here && self.policies.answered_here);
        if too_large && unanswered {
            let bytes = self.limits.initial_versions_bytes / 4;
            self.limits.initial_versions_bytes = bytes.max(MIN_INITIAL_VERSIONS_BYTES);
        }
        self.topics().into_iter().for_each(Topic::close);
    }

    /// Somebody waits for what this address (`network/ip`) is: the question to send, if there is one to ask.
    pub fn on_demand(&mut self, name: String, now_ms: u64) -> Option<DeltaDiscoveryRequest> {
        // Before the first answer of a stream everything is on its way already.
        let asked = self.addresses.answered_here && self.demands.ask(&name, now_ms + self.limits.demand_ms);
        asked.then(|| demand::subscribe(name))
    }

    /// When `on_timer` is next due.
    #[must_use]
    pub fn next_timer(&self) -> Option<u64> {
        let topics = [&self.addresses, &self.policies].into_iter().filter_map(|topic| topic.next_timer(&self.limits));
        topics.chain(self.demands.next_timer()).min()
    }

    /// Does what is due.
    pub fn on_timer(&mut self, now_ms: u64) -> Due {
        let (mut due, limits) = (Due::default(), self.limits);
        self.topics().into_iter().for_each(|topic| topic.tick(&limits, now_ms, &mut due));
        due.requests.extend(self.demands.expire(now_ms).map(demand::unsubscribe));
        self.sync(&mut due.changes);
        due
    }

    fn sync(&mut self, changes: &mut Vec<Change>) {
        if !self.synced && self.addresses.answered && self.policies.answered {
            self.synced = true;
            changes.push(Change::Synced);
        }
    }

    /// Whether both types have been answered once.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    /// How many resources of a type are held.
    #[must_use]
    pub fn held(&self, type_url: &str) -> usize {
        [&self.addresses, &self.policies].into_iter().find(|t| t.type_url == type_url).map_or(0, |t| t.held.len())
    }

    /// How many removals are held back.
    #[must_use]
    pub fn suspended(&self) -> usize {
        [&self.addresses, &self.policies].into_iter().flat_map(|t| &t.suspended).map(|s| s.names.len()).sum()
    }

    fn topics(&mut self) -> [&mut Topic; 2] {
        [&mut self.addresses, &mut self.policies]
    }
}

/// A removal that is not believed yet.
#[derive(Debug)]
struct Suspended {
    names: HashSet<ArcStr>,
    since_ms: u64,
    /// A stream that began after the hold time is, or will be, the second opinion.
    asked: bool,
}

/// One type.
#[derive(Debug)]
struct Topic {
    type_url: &'static str,
    held: HashMap<ArcStr, Held>,
    /// How many of `held` count as members of the mesh: workloads, or policies.
    members: usize,
    answered: bool,
    answered_here: bool,
    connected: bool,
    /// Held, but neither listed in the reconnect request nor heard of since.
    unlisted: HashSet<ArcStr>,
    last_answer_ms: u64,
    /// The first answer was so large that more may follow; if nothing has by then, it was all.
    complete_at_ms: Option<u64>,
    suspended: Option<Suspended>,
    interner: Interner,
}

impl Topic {
    fn new(type_url: &'static str) -> Self {
        Self {
            type_url,
            held: HashMap::new(),
            members: 0,
            answered: false,
            answered_here: false,
            connected: false,
            unlisted: HashSet::new(),
            last_answer_ms: 0,
            complete_at_ms: None,
            suspended: None,
            interner: Interner::default(),
        }
    }

    fn open(&mut self, node: Node, limits: Limits, now_ms: u64) -> DeltaDiscoveryRequest {
        self.connected = true;
        self.answered_here = false;
        self.unlisted.clear();
        let mut initial = HashMap::new();
        let mut bytes = 0;
        if let Some(suspended) = &mut self.suspended {
            suspended.asked |= now_ms >= suspended.since_ms + limits.hold_ms;
        }
        // Names whose removal is in doubt come first, because the answer about them is what the stream is for.
        let doubtful = |name: &ArcStr| self.suspended.as_ref().is_some_and(|s| s.names.contains(name));
        let (first, then): (Vec<_>, Vec<_>) = self.held.iter().partition(|(name, _)| doubtful(name));
        for (name, held) in first.into_iter().chain(then) {
            let version = held.version.to_string();
            // Tags and lengths of the map entry and its two strings.
            bytes += name.len() + version.len() + 12;
            if bytes <= limits.initial_versions_bytes {
                initial.insert(name.to_string(), version);
            } else {
                self.unlisted.insert(name.clone());
            }
        }
        DeltaDiscoveryRequest {
            node: Some(node),
            type_url: self.type_url.to_owned(),
            initial_resource_versions: initial,
            ..DeltaDiscoveryRequest::default()
        }
    }

    fn close(&mut self) {
        self.connected = false;
        self.complete_at_ms = None;
    }

    fn receive(
        &mut self,
        response: DeltaDiscoveryResponse,
        limits: &Limits,
        now_ms: u64,
        changes: &mut Vec<Change>,
        problems: &mut Vec<String>,
        alarms: &mut Vec<Alarm>,
    ) {
        self.answered_here = true;
        // A server cuts a state that is too large for one message; the next part follows at once.
        if !self.answered {
            self.complete_at_ms = (response.encoded_len() >= LARGE_MESSAGE).then_some(now_ms + NEXT_PART_MS);
            self.answered = self.complete_at_ms.is_none();
        }
        let gone = self.gone(response.removed_resources, &response.resources);
        // Removals come first: an address may go from a workload that is gone to one that is new.
        self.remove(gone, limits, now_ms, changes, alarms);
        changes.reserve_exact(response.resources.len() + 1);
        // One by one, each freed as soon as it is read: a full state is large.
        for resource in response.resources {
            match resources::read(self.type_url, resource, &mut self.interner) {
                Ok(item) => self.keep(item, changes),
                Err(refused) => {
                    self.exists(&refused.name);
                    problems.push(refused.problem);
                    refused.instead.into_iter().for_each(|item| self.keep(item, changes));
                }
            }
        }
        if !problems.is_empty() {
            alarms.push(Alarm::Rejected { type_url: self.type_url, problems: problems.clone() });
        }
    }

    /// Of the names that the server removes, those that are held and not sent again in the same message.
    fn gone(&self, removed: Vec<String>, resources: &[Resource]) -> HashSet<ArcStr> {
        if removed.is_empty() {
            return HashSet::new();
        }
        let present: HashSet<&str> = resources.iter().map(|resource| resource.name.as_str()).collect();
        let removed = removed.iter().filter(|name| !present.contains(name.as_str()));
        removed.filter_map(|name| self.held.get_key_value(name.as_str())).map(|(name, _)| name.clone()).collect()
    }

    /// The server has sent it, in whatever form.
    fn exists(&mut self, name: &str) {
        self.unlisted.remove(name);
        if let Some(suspended) = &mut self.suspended {
            suspended.names.remove(name);
            if suspended.names.is_empty() {
                self.suspended = None;
            }
        }
    }

    fn keep(&mut self, item: Item, changes: &mut Vec<Change>) {
        self.exists(&item.name);
        self.members += usize::from(item.member);
        let held = Held { version: item.version, member: item.member };
        if let Some(former) = self.held.insert(item.name, held) {
            self.members -= usize::from(former.member);
        }
        changes.push(item.change);
    }

    /// Removes what may be removed and holds back the rest.
    fn remove(
        &mut self,
        gone: HashSet<ArcStr>,
        limits: &Limits,
        now_ms: u64,
        changes: &mut Vec<Change>,
        alarms: &mut Vec<Alarm>,
    ) {
        let suspicious = |names: &HashSet<ArcStr>| {
            let members = names.iter().filter(|name| self.held.get(*name).is_some_and(|h| h.member)).count();
            members >= limits.guarded_removals.max(1) && members * 2 > self.members
        };
        let mut accepted = gone;
        if suspicious(&accepted) {
            let confirmed = match &mut self.suspended {
                Some(s) if now_ms >= s.since_ms + limits.hold_ms => {
                    accepted.iter().filter(|name| s.names.contains(*name)).cloned().collect()
                }
                _ => HashSet::new(),
            };
            if !confirmed.is_empty() {
                alarms.push(Alarm::RemovalConfirmed { names: confirmed.len() });
            }
            let fresh: HashSet<ArcStr> = accepted.difference(&confirmed).cloned().collect();
            if suspicious(&fresh) {
                alarms.push(Alarm::RemovalSuspended { names: fresh.len() });
                let suspended = self.suspended.get_or_insert_with(|| Suspended {
                    names: HashSet::new(),
                    since_ms: now_ms,
                    asked: false,
                });
                suspended.names.extend(fresh);
                accepted = confirmed;
            }
        }
        for name in accepted {
            self.unlisted.remove(&name);
            if let Some(suspended) = &mut self.suspended {
                suspended.names.remove(&name);
            }
            if let Some(held) = self.held.remove(&name) {
                self.members -= usize::from(held.member);
                changes.extend(resources::removal(self.type_url, name));
            }
        }
        self.suspended = self.suspended.take().filter(|s| !s.names.is_empty());
    }

    fn next_timer(&self, limits: &Limits) -> Option<u64> {
        let recheck = self.suspended.as_ref().filter(|s| !s.asked).map(|s| s.since_ms + limits.hold_ms);
        let settled = (self.sweeps() || self.has_second_opinion()).then_some(self.last_answer_ms + limits.settle_ms);
        recheck.into_iter().chain(settled).chain(self.complete_at_ms).min()
    }

    /// The stream that was opened to ask about a suspicious removal has spoken.
    fn has_second_opinion(&self) -> bool {
        self.connected && self.answered_here && self.suspended.as_ref().is_some_and(|s| s.asked)
    }

    fn sweeps(&self) -> bool {
        let waiting = |name: &ArcStr| !self.suspended.as_ref().is_some_and(|s| s.names.contains(name) && !s.asked);
        self.connected && self.answered_here && self.unlisted.iter().any(waiting)
    }

    fn tick(&mut self, limits: &Limits, now_ms: u64, due: &mut Due) {
        if self.complete_at_ms.is_some_and(|at| now_ms >= at) {
            (self.complete_at_ms, self.answered) = (None, true);
        }
        let settled = now_ms >= self.last_answer_ms + limits.settle_ms;
        let second_opinion = self.has_second_opinion();
        if settled && self.sweeps() {
            let gone = std::mem::take(&mut self.unlisted);
            self.remove(gone, limits, now_ms, &mut due.changes, &mut due.alarms);
        }
        if settled && second_opinion {
            // It was told about these names and does not remove them: they exist.
            self.suspended = None;
        }
        if let Some(suspended) = &mut self.suspended
            && !suspended.asked
            && now_ms >= suspended.since_ms + limits.hold_ms
        {
            suspended.asked = true;
            due.reconnect |= self.connected;
            // What this stream said is the first opinion.
            self.answered_here = false;
        }
    }
}
