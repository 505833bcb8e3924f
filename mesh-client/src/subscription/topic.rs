//! One type of a subscription: what is held of it, which removals are not believed yet, and when it is complete.

use std::collections::{HashMap, HashSet};

use arcstr::ArcStr;
use mesh_core::{Change, intern::Interner};
use mesh_proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Resource};
use prost::Message;

use super::events::{Alarm, Due, Limits};
use super::held::Held;
use super::resources::{self, Item};

/// A first answer of this size may be the first of several. Our own control plane cuts at 48 MiB by a generous count.
pub(super) const LARGE_MESSAGE: usize = 40 << 20;
/// The part after a large one comes within this, counted from when the large one was applied.
const NEXT_PART_MS: u64 = 1_000;

/// A removal that is not believed yet.
#[derive(Debug)]
pub(super) struct Suspended {
    pub(super) names: HashSet<ArcStr>,
    since_ms: u64,
    /// A stream that began after the hold time is, or will be, the second opinion.
    asked: bool,
}

/// One type.
#[derive(Debug)]
pub(super) struct Topic {
    pub(super) type_url: &'static str,
    pub(super) held: HashMap<ArcStr, Held>,
    /// How many of `held` count as members of the mesh: workloads, or policies.
    members: usize,
    pub(super) answered: bool,
    pub(super) answered_here: bool,
    pub(super) connected: bool,
    /// Held, but neither listed in the reconnect request nor heard of since.
    unlisted: HashSet<ArcStr>,
    pub(super) last_answer_ms: u64,
    /// The first answer was so large that more may follow; if nothing has by then, it was all.
    complete_at_ms: Option<u64>,
    pub(super) suspended: Option<Suspended>,
    interner: Interner,
}

impl Topic {
    pub(super) fn new(type_url: &'static str) -> Self {
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

    pub(super) fn open(&mut self, node: Node, limits: Limits, now_ms: u64) -> DeltaDiscoveryRequest {
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

    pub(super) fn close(&mut self) {
        self.connected = false;
        self.complete_at_ms = None;
    }

    pub(super) fn receive(
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

    pub(super) fn next_timer(&self, limits: &Limits) -> Option<u64> {
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

    pub(super) fn tick(&mut self, limits: &Limits, now_ms: u64, due: &mut Due) {
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
