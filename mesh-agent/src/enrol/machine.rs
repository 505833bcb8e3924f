//! Which pods there are and what happens to each: a state machine without I/O. [`super::manager`] feeds it and carries its actions out.
//!
//! ```text
//!  one pod:        Add              Started ok            Del, gone from snapshot, replaced
//!        (absent) ─────> Starting ─────────────> Running ───────────────────────────> Stopping ── Stopped ──> (absent) or Starting the next
//!                           │ Started failed                                             ^
//!                           └──> (absent)      Del while Starting: Cancelling ── Started ┘
//! ```
//! Every start has a generation of its own, so that an answer about an earlier one is never taken for the present one. `P` is what a start
//! needs and the machine does not look at (descriptors).
//!
//! What the kernel has captured once never goes its ordinary way again because something of ours failed or takes a while: a start of
//! such a pod that fails, and a stop that makes room for a new start in the same namespace, leave it captured and closed. Only a pod that
//! nobody wants any more is let go.

mod entry;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use mesh_core::ArcStr;
use mesh_proto::convert::PodRequest;

use self::entry::{Current, Entry, Phase, Wanted};
use super::session::{Code, Failure};

/// Names a connection of a client.
pub type SessionId = u64;
/// Names a request that waits for its answer.
pub type RequestId = u64;
/// Names one start of a pod.
pub type Generation = u64;

/// A network namespace.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct NetnsId {
    /// Never reused while the machine runs.
    pub cookie: u64,
    /// As `/proc` shows it.
    pub inode: u64,
}

/// A pod that was checked.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Spec {
    /// Who it is.
    pub pod: PodRequest,
    /// Where it is.
    pub netns: NetnsId,
}

/// What happened.
#[derive(Debug)]
#[expect(missing_docs, reason = "the fields are the nouns of the variant's sentence")]
pub enum Event<P> {
    /// The keeper held this pod for us.
    Adopt { spec: Spec, payload: P },
    /// The kernel has these cookies captured, for an earlier agent. Comes once, after the adoptions.
    Captured { cookies: Vec<u64> },
    /// A `Release` ended.
    Released { cookies: BTreeSet<u64> },
    /// A client connected and said hello.
    Opened { session: SessionId },
    /// A client's connection ended.
    Closed { session: SessionId },
    /// A client wants a pod enrolled.
    Add { session: SessionId, request: RequestId, spec: Spec, payload: P },
    /// A client still has this pod.
    Keep { request: RequestId, uid: ArcStr },
    /// A client's pod is gone.
    Del { request: RequestId, uid: ArcStr },
    /// A client has named all its pods.
    Snapshot { session: SessionId, request: RequestId },
    /// The answer to this request reached the client's socket.
    Delivered { request: RequestId },
    /// A start ended.
    Started { generation: Generation, result: Result<(), Failure> },
    /// A stop ended.
    Stopped { generation: Generation },
    /// A start or stop broke off, and what the kernel has of it is not known. Its end is told next.
    BrokeOff { generation: Generation },
}

/// What to do.
#[derive(Debug, Eq, PartialEq)]
#[expect(missing_docs, reason = "the fields are the nouns of the variant's sentence")]
pub enum Action<P> {
    /// Capture this pod; ends with `Started`. If it fails, the namespace is left closed if it was captured before, else as it was.
    Start { generation: Generation, spec: Arc<Spec>, payload: P, captured: bool },
    /// The start is not wanted any more; it still ends with `Started`.
    Cancel { generation: Generation },
    /// Release this pod, or, where the next start is to be in the same namespace, close it; ends with `Stopped`.
    Stop { generation: Generation, close: bool },
    /// Answer a request.
    Reply { request: RequestId, result: Result<(), Failure> },
    /// Release these cookies in the kernel; ends with `Released`.
    Release { cookies: BTreeSet<u64> },
}

/// The pods of the node.
#[derive(Debug)]
pub struct Machine<P> {
    pods: BTreeMap<ArcStr, Entry<P>>,
    /// Counts opened sessions; says what was named before and what after.
    opened: u64,
    /// The count at which each live session opened.
    sessions: HashMap<SessionId, u64>,
    last_generation: Generation,
    /// Captured pods that nothing else is known of, or whose start failed, with the uid then. Refused by the kernel until a client adds or
    /// deletes them or a snapshot disowns them.
    orphans: BTreeMap<u64, Option<ArcStr>>,
    /// Orphans on their way out.
    releasing: BTreeSet<u64>,
}

impl<P> Default for Machine<P> {
    fn default() -> Self {
        Machine {
            pods: BTreeMap::new(),
            opened: 0,
            sessions: HashMap::new(),
            last_generation: 0,
            orphans: BTreeMap::new(),
            releasing: BTreeSet::new(),
        }
    }
}

/// How many pods are where.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// Captured.
    pub running: usize,
    /// On their way in or out.
    pub pending: usize,
    /// Adopted and named by no client since.
    pub unnamed: usize,
}

impl<P> Machine<P> {
    /// Takes one event.
    pub fn apply(&mut self, event: Event<P>) -> Vec<Action<P>> {
        let mut actions = Vec::new();
        match event {
            Event::Adopt { spec, payload } => self.adopt(spec, payload, &mut actions),
            Event::Captured { cookies } => {
                self.orphans = cookies.into_iter().map(|cookie| (cookie, None)).collect();
                for entry in self.pods.values() {
                    self.orphans.remove(&entry.current.spec.netns.cookie);
                }
            }
            Event::Released { cookies } => self.releasing.retain(|cookie| !cookies.contains(cookie)),
            Event::Opened { session } => {
                self.opened += 1;
                self.sessions.insert(session, self.opened);
            }
            Event::Closed { session } => self.closed(session, &mut actions),
            Event::Add { session, request, spec, payload } => {
                let result = self.add(session, request, spec, payload, &mut actions);
                reply_if_done(request, result, &mut actions);
            }
            Event::Keep { request, uid } => {
                let result = self.keep(&uid);
                actions.push(Action::Reply { request, result });
            }
            Event::Del { request, uid } => self.del(request, &uid, &mut actions),
            Event::Snapshot { session, request } => self.snapshot(session, request, &mut actions),
            Event::Delivered { request } => self.delivered(request),
            Event::Started { generation, result } => self.started(generation, result, &mut actions),
            Event::Stopped { generation } => self.stopped(generation, &mut actions),
            Event::BrokeOff { generation } => {
                if let Some((_, entry)) = self.by_generation(generation) {
                    entry.current.captured = true;
                }
            }
        }
        actions
    }

    /// How many pods are where.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for entry in self.pods.values() {
            match entry.current.phase {
                Phase::Running => counts.running += 1,
                Phase::Starting { .. } | Phase::Cancelling | Phase::Stopping => counts.pending += 1,
            }
            counts.unnamed += usize::from(entry.named_at == 0);
        }
        counts
    }

    /// Generations that run, for an orderly stop.
    pub fn running(&self) -> Vec<Generation> {
        let running = self.pods.values().filter(|entry| matches!(entry.current.phase, Phase::Running));
        running.map(|entry| entry.current.generation).collect()
    }

    fn adopt(&mut self, spec: Spec, payload: P, actions: &mut Vec<Action<P>>) {
        let uid = spec.pod.uid.clone();
        if self.pods.contains_key(&uid) {
            return;
        }
        // Whether it is captured we have not asked: it may be.
        let current = self.start(spec, payload, Vec::new(), true, actions);
        self.pods.insert(
            uid,
            Entry { current, next: None, leaving: Vec::new(), named_at: 0, confirmed: true, claims: Vec::new() },
        );
    }

    /// `Ok(true)`: done; `Ok(false)`: the request waits.
    fn add(
        &mut self,
        session: SessionId,
        request: RequestId,
        spec: Spec,
        payload: P,
        actions: &mut Vec<Action<P>>,
    ) -> Result<bool, Failure> {
        let uid = spec.pod.uid.clone();
        self.netns_is_free(&uid, spec.netns)?;
        let named_at = self.opened;
        let Some(entry) = self.pods.get_mut(&uid) else {
            let current = self.start(spec, payload, vec![request], false, actions);
            let claims = vec![(session, request)];
            self.pods
                .insert(uid, Entry { current, next: None, leaving: Vec::new(), named_at, confirmed: false, claims });
            return Ok(false);
        };
        entry.named_at = named_at;
        let same = *entry.current.spec == spec && entry.next.is_none();
        match &mut entry.current.phase {
            Phase::Running if same => {
                entry.claims.push((session, request));
                return Ok(true);
            }
            Phase::Starting { waiters } if same => waiters.push(request),
            _ => {
                // Another description of a pod that somebody knows to be enrolled is no reason to let it go; a new one after its end is.
                entry.confirmed &= entry.stays();
                entry.supersede(actions);
                entry.next = Some(Wanted { spec, payload, waiters: vec![request] });
                entry.make_way(actions);
            }
        }
        entry.claims.push((session, request));
        Ok(false)
    }

    fn netns_is_free(&self, uid: &ArcStr, netns: NetnsId) -> Result<(), Failure> {
        if self.releasing.contains(&netns.cookie) {
            return Err(Failure::passing(Code::Conflict, "the network namespace is being released"));
        }
        for (other, entry) in &self.pods {
            let present = entry.current.spec.netns.cookie == netns.cookie;
            let coming = entry.next.as_ref().is_some_and(|next| next.spec.netns.cookie == netns.cookie);
            if other == uid || !(present || coming) {
                continue;
            }
            let leaving = !coming && matches!(entry.current.phase, Phase::Stopping | Phase::Cancelling);
            let pod = &entry.current.spec.pod;
            let message = format!("the network namespace belongs to pod {}/{} ({other})", pod.namespace, pod.name);
            return Err(Failure { code: Code::Conflict, message, retry: leaving });
        }
        Ok(())
    }

    fn keep(&mut self, uid: &ArcStr) -> Result<(), Failure> {
        let opened = self.opened;
        let unknown = || Failure::lasting(Code::Unknown, format!("pod {uid} is not enrolled: add it"));
        let entry = self.pods.get_mut(uid).filter(|entry| entry.stays()).ok_or_else(unknown)?;
        entry.named_at = opened;
        // Whoever keeps it knows that it is enrolled.
        entry.confirmed = true;
        Ok(())
    }

    fn del(&mut self, request: RequestId, uid: &ArcStr, actions: &mut Vec<Action<P>>) {
        let running = self.pods.get_mut(uid);
        let gone = running.is_none();
        if let Some(entry) = running {
            entry.leaving.push(request);
            entry.leave(actions);
        }
        self.disown(|orphan| orphan == Some(uid), actions);
        if gone {
            actions.push(Action::Reply { request, result: Ok(()) });
        }
    }

    fn snapshot(&mut self, session: SessionId, request: RequestId, actions: &mut Vec<Action<P>>) {
        let since = self.since(session);
        for entry in self.pods.values_mut().filter(|entry| entry.named_at < since) {
            entry.leave(actions);
        }
        self.disown(|_| true, actions);
        actions.push(Action::Reply { request, result: Ok(()) });
    }

    /// The pods that a snapshot of this session would let go now.
    pub fn unnamed(&self, session: SessionId) -> Vec<Arc<Spec>> {
        let since = self.since(session);
        self.pods.values().filter(|entry| entry.named_at < since).map(|entry| entry.current.spec.clone()).collect()
    }

    fn since(&self, session: SessionId) -> u64 {
        self.sessions.get(&session).copied().unwrap_or(self.opened)
    }

    /// Lets go of the orphans of these pods, but for those that are to be started again.
    fn disown(&mut self, concerns: impl Fn(Option<&ArcStr>) -> bool, actions: &mut Vec<Action<P>>) {
        let wanted = |cookie: &u64| self.pods.values().any(|entry| entry.comes_to(*cookie));
        let disowned = self.orphans.extract_if(.., |cookie, uid| concerns(uid.as_ref()) && !wanted(cookie));
        let disowned = disowned.map(|(cookie, _)| cookie).collect();
        self.release(disowned, actions);
    }

    fn release(&mut self, cookies: BTreeSet<u64>, actions: &mut Vec<Action<P>>) {
        if !cookies.is_empty() {
            self.releasing.extend(&cookies);
            actions.push(Action::Release { cookies });
        }
    }

    fn delivered(&mut self, request: RequestId) {
        for entry in self.pods.values_mut() {
            let before = entry.claims.len();
            entry.claims.retain(|(_, claim)| *claim != request);
            // A failed add has no claim left, so this answer was a yes.
            entry.confirmed |= entry.claims.len() < before;
        }
    }

    /// What a client asked for and never heard of is rolled back: it will believe that it failed.
    fn closed(&mut self, session: SessionId, actions: &mut Vec<Action<P>>) {
        self.sessions.remove(&session);
        for entry in self.pods.values_mut() {
            let before = entry.claims.len();
            entry.claims.retain(|(claimant, _)| *claimant != session);
            if entry.claims.len() < before && entry.claims.is_empty() && !entry.confirmed {
                entry.leave(actions);
            }
        }
    }

    fn started(&mut self, generation: Generation, result: Result<(), Failure>, actions: &mut Vec<Action<P>>) {
        let Some((uid, entry)) = self.by_generation(generation) else { return };
        let phase = std::mem::replace(&mut entry.current.phase, Phase::Running);
        match (phase, result) {
            (Phase::Starting { waiters }, Ok(())) => {
                actions.extend(waiters.into_iter().map(|request| Action::Reply { request, result: Ok(()) }));
            }
            (Phase::Starting { waiters }, Err(failure)) => {
                entry.claims.retain(|(_, request)| !waiters.contains(request));
                for request in waiters {
                    actions.push(Action::Reply { request, result: Err(failure.clone()) });
                }
                if entry.current.captured {
                    // Closed. Whoever names it next has it started again, and whoever does not has it released.
                    entry.current.captured = false;
                    let cookie = entry.current.spec.netns.cookie;
                    self.orphans.insert(cookie, Some(uid.clone()));
                }
                self.gone(&uid, actions);
            }
            (_, Ok(())) => entry.stop(actions),
            (_, Err(_)) => self.gone(&uid, actions),
        }
    }

    fn stopped(&mut self, generation: Generation, actions: &mut Vec<Action<P>>) {
        if let Some((uid, _)) = self.by_generation(generation) {
            self.gone(&uid, actions);
        }
    }

    /// The present one is gone: let go of its namespace if it was left closed for nobody, tell who waited, and start the next.
    fn gone(&mut self, uid: &ArcStr, actions: &mut Vec<Action<P>>) {
        let Some(entry) = self.pods.get_mut(uid) else { return };
        let cookie = entry.current.spec.netns.cookie;
        let inherits = entry.current.captured && entry.comes_to(cookie);
        let disowned = entry.current.captured && !inherits;
        let leaving = std::mem::take(&mut entry.leaving);
        let next = entry.next.take();
        self.release(disowned.then_some(cookie).into_iter().collect(), actions);
        actions.extend(leaving.into_iter().map(|request| Action::Reply { request, result: Ok(()) }));
        match next {
            None => {
                self.pods.remove(uid);
            }
            Some(next) => {
                let current = self.start(next.spec, next.payload, next.waiters, inherits, actions);
                if let Some(entry) = self.pods.get_mut(uid) {
                    entry.current = current;
                }
            }
        }
    }

    fn start(
        &mut self,
        spec: Spec,
        payload: P,
        waiters: Vec<RequestId>,
        captured: bool,
        actions: &mut Vec<Action<P>>,
    ) -> Current {
        self.last_generation += 1;
        let (generation, spec) = (self.last_generation, Arc::new(spec));
        let captured = self.orphans.remove(&spec.netns.cookie).is_some() || captured;
        actions.push(Action::Start { generation, spec: spec.clone(), payload, captured });
        Current { generation, spec, phase: Phase::Starting { waiters }, captured }
    }

    fn by_generation(&mut self, generation: Generation) -> Option<(ArcStr, &mut Entry<P>)> {
        let mut entries = self.pods.iter_mut();
        entries.find(|(_, entry)| entry.current.generation == generation).map(|(uid, entry)| (uid.clone(), entry))
    }
}

fn reply_if_done<P>(request: RequestId, result: Result<bool, Failure>, actions: &mut Vec<Action<P>>) {
    match result {
        Ok(false) => {}
        Ok(true) => actions.push(Action::Reply { request, result: Ok(()) }),
        Err(failure) => actions.push(Action::Reply { request, result: Err(failure) }),
    }
}

#[cfg(test)]
mod tests;
