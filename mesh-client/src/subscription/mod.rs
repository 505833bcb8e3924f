//! The delta xDS subscription as a value: messages and times go in, requests and changes come out. No socket, no clock.
//!
//! ```text
//! on_connected -> initial requests of all types, with the versions of what is held
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
mod events;
mod held;
mod labels;
mod own;
mod resources;
#[cfg(test)]
mod tests;
mod topic;

use demand::Demands;
pub use events::{Alarm, Due, Limits, Received, Reply};
use labels::Labels;
use mesh_core::Change;
use mesh_proto::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE, CLUSTERS_TYPE, CONNECTION_ROUTES_TYPE, OUTBOUND_TYPE, WORKLOAD_LABELS_TYPE,
    discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node},
};
use own::OwnTopic;
pub use own::{Own, OwnKind};
use topic::Topic;

const MIN_INITIAL_VERSIONS_BYTES: usize = 64 << 10;
/// A control plane that is not ours may never answer about types of ours: so long after everything else nothing waits for it any more.
const ROUTES_MS: u64 = 1_000;

/// The subscription to what everybody has, and to what a waypoint has of its own if that is wanted.
#[derive(Debug)]
pub struct Subscription {
    node: Node,
    limits: Limits,
    addresses: Topic,
    policies: Topic,
    /// Of the places of services. A waypoint has its own instead.
    clusters: Option<Topic>,
    connections: Topic,
    /// What happens to connections to what nobody is known to have: a waypoint makes none.
    outbound: Option<Topic>,
    /// Until when they are waited for, once everything else was answered.
    connections_by_ms: Option<u64>,
    outbound_told: bool,
    own: Vec<OwnTopic>,
    labels: Labels,
    demands: Demands,
    synced: bool,
}

impl Subscription {
    /// Nothing held, not connected.
    #[must_use]
    pub fn new(node: Node, limits: Limits) -> Self {
        let (addresses, policies) = (Topic::new(ADDRESS_TYPE), Topic::new(AUTHORIZATION_TYPE));
        Self {
            node,
            limits,
            addresses,
            policies,
            clusters: Some(Topic::new(CLUSTERS_TYPE)),
            connections: Topic::new(CONNECTION_ROUTES_TYPE),
            outbound: Some(Topic::new(OUTBOUND_TYPE)),
            connections_by_ms: None,
            outbound_told: false,
            own: Vec::new(),
            labels: Labels::default(),
            demands: Demands::default(),
            synced: false,
        }
    }

    /// Subscribes to what the waypoint of that name has of its own, too. Without it nothing is complete.
    #[must_use]
    pub fn with_own(mut self, name: Option<&str>) -> Self {
        self.clusters = self.clusters.filter(|_| name.is_none());
        self.outbound = self.outbound.filter(|_| name.is_none());
        self.own = name.into_iter().flat_map(|name| OwnKind::ALL.map(|kind| OwnTopic::new(kind, name))).collect();
        self
    }

    /// A stream is open: the requests that start it.
    pub fn on_connected(&mut self, now_ms: u64) -> Vec<DeltaDiscoveryRequest> {
        let (node, limits) = (self.node.clone(), self.limits);
        self.demands.renew();
        let mut requests: Vec<_> = self.topics().map(|topic| topic.open(node.clone(), limits, now_ms)).collect();
        requests.push(self.labels.open(node.clone(), limits.initial_versions_bytes));
        requests.extend(self.own.iter_mut().map(|own| own.open(node.clone())));
        requests
    }

    /// One response.
    pub fn on_message(&mut self, response: DeltaDiscoveryResponse, now_ms: u64) -> Received {
        let mut reply =
            Reply { type_url: response.type_url.clone(), nonce: response.nonce.clone(), problems: Vec::new() };
        let limits = self.limits;
        let is_news = !self.demands.are_all_of(&response);
        if response.type_url == ADDRESS_TYPE {
            self.demands.learn(&response, self.addresses.held.len());
        }
        let is_labels = response.type_url == WORKLOAD_LABELS_TYPE;
        let topic = self.own.iter_mut().find(|own| own.kind.url() == response.type_url);
        if is_labels || topic.is_some() {
            let type_url = topic.as_ref().map_or(WORKLOAD_LABELS_TYPE, |topic| topic.kind.url());
            let mut changes = Vec::new();
            let own = match topic {
                Some(topic) => topic.receive(response, &mut reply.problems),
                None => {
                    let told = self.labels.receive(response, &mut reply.problems);
                    match told.is_empty() {
                        true => None,
                        false if self.own.is_empty() => {
                            changes.push(Change::Labels(told));
                            None
                        }
                        false => Some(Own::Labels(told)),
                    }
                }
            };
            self.sync(&mut changes, now_ms);
            let problems = reply.problems.clone();
            let alarm = (!problems.is_empty()).then_some(Alarm::Rejected { type_url, problems });
            return Received { changes, own, reply, alarms: alarm.into_iter().collect() };
        }
        let Some(topic) = self.topics().find(|t| t.type_url == response.type_url) else {
            reply.refuse("this type was not subscribed to".into());
            return Received { changes: Vec::new(), own: None, reply, alarms: Vec::new() };
        };
        let (mut changes, mut alarms) = (Vec::new(), Vec::new());
        if is_news {
            topic.last_answer_ms = now_ms;
        }
        topic.receive(response, &limits, now_ms, &mut changes, &mut reply.problems, &mut alarms);
        self.sync(&mut changes, now_ms);
        Received { changes, own: None, reply, alarms }
    }

    /// The stream ended. `too_large` means that the server refused the size of a request.
    pub fn on_end(&mut self, too_large: bool) {
        let labels = self.own.is_empty() || self.labels.answered_here;
        let own = labels && self.own.iter().all(|own| own.answered_here);
        let unanswered = !(self.addresses.answered_here && self.policies.answered_here && own);
        if too_large && unanswered {
            let bytes = self.limits.initial_versions_bytes / 4;
            self.limits.initial_versions_bytes = bytes.max(MIN_INITIAL_VERSIONS_BYTES);
        }
        self.topics().for_each(Topic::close);
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
        let topics = self.shared().filter_map(|topic| topic.next_timer(&self.limits));
        // Once one is answered, all are waited for, however long that takes: there is nothing to do then.
        let routes = self.connections_by_ms.filter(|_| !self.synced && !self.ours().any(|answered| answered));
        topics.chain(self.demands.next_timer()).chain(routes).min()
    }

    /// Does what is due.
    pub fn on_timer(&mut self, now_ms: u64) -> Due {
        let (mut due, limits) = (Due::default(), self.limits);
        self.topics().for_each(|topic| topic.tick(&limits, now_ms, &mut due));
        due.requests.extend(self.demands.expire(now_ms).map(demand::unsubscribe));
        self.sync(&mut due.changes, now_ms);
        due
    }

    fn sync(&mut self, changes: &mut Vec<Change>, now_ms: u64) {
        if self.outbound.as_ref().is_some_and(|topic| topic.answered) && !self.outbound_told {
            self.outbound_told = true;
            changes.push(Change::OutboundKnown);
        }
        let own = (self.own.is_empty() || self.labels.answered) && self.own.iter().all(|own| own.answered);
        if self.synced || !(self.addresses.answered && self.policies.answered && own) {
            return;
        }
        let by_ms = *self.connections_by_ms.get_or_insert(now_ms + ROUTES_MS);
        // A control plane that answers one of them answers all: only one of another maker is not waited for.
        let some = self.ours().any(|answered| answered);
        if self.ours().all(|answered| answered) || (!some && now_ms >= by_ms) {
            self.synced = true;
            changes.push(Change::Synced);
        }
    }

    /// Whether each of the types that only our control plane has is answered.
    fn ours(&self) -> impl Iterator<Item = bool> {
        let optional = [&self.clusters, &self.outbound].into_iter().flatten().map(|topic| topic.answered);
        optional.chain([self.connections.answered, self.labels.answered])
    }

    /// Whether everything that is subscribed to has been answered once, or will not be.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    /// How many resources of a type are held.
    #[must_use]
    pub fn held(&self, type_url: &str) -> usize {
        if let Some(own) = self.own.iter().find(|own| own.kind.url() == type_url) {
            return own.held();
        }
        if type_url == WORKLOAD_LABELS_TYPE {
            return self.labels.held();
        }
        self.shared().find(|t| t.type_url == type_url).map_or(0, |t| t.held.len())
    }

    /// How many removals are held back.
    #[must_use]
    pub fn suspended(&self) -> usize {
        self.shared().flat_map(|t| &t.suspended).map(|s| s.names.len()).sum()
    }

    fn shared(&self) -> impl Iterator<Item = &Topic> {
        let shared = [&self.addresses, &self.policies].into_iter().chain(&self.clusters);
        shared.chain([&self.connections]).chain(&self.outbound)
    }

    fn topics(&mut self) -> impl Iterator<Item = &mut Topic> {
        let shared = [&mut self.addresses, &mut self.policies].into_iter().chain(&mut self.clusters);
        shared.chain([&mut self.connections]).chain(&mut self.outbound)
    }
}
