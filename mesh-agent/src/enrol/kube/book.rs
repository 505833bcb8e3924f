//! What the API has said so far and what has been done about it: a state machine without I/O. [`super::driver`] feeds it and carries its
//! operations out, at most one per pod at a time; whatever changes meanwhile is looked at when that one has ended.
//!
//! ```text
//!  one pod:   Unknown (start) ── kept, enrolled ──> In ── released ──> Out        In: place changed ── enrol again
//!                  ├──────────── released ────────────────────────────> Out ── wanted ── enrol
//!                  └── failed ── again, with backoff                           failed: Unknown, it may be captured and closed
//! ```
//! What the API says has ended is released when none of its processes is left: an object is gone at once when somebody deletes it by force, and its
//! processes run on until the kubelet has ended them. What is kept so is no more than pods that have processes on the node.
//!
//! The snapshot, which lets go of what an earlier agent had captured and nobody names, waits for both lists and for every pod that is wanted, or of
//! which that is not known: what is captured and not found stays closed, whatever it is that is wrong with it.

mod entry;

use std::collections::{BTreeMap, btree_map};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_core::ArcStr;
use serde::Serialize;

use self::entry::{Entry, Stage};
use super::facts::{Called, Facts, Mark};
use super::wanted::{Mode, Reason, Verdict, wanted};

/// First and longest wait before a failed operation is tried again; the driver adds no jitter: pods of one node are few.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// Longest wait before it is looked again whether a pod that has ended has processes left: until then its addresses are not free.
const LONGEST_LOOK: Duration = Duration::from_secs(1);
/// How long a pod that leaves goes on to answer in the mesh: until every other agent has surely heard that it leaves.
const LINGER: Duration = Duration::from_secs(2);
/// Enrolments that failed before the pod's annotation says so: 1.5 seconds.
const SOME_FAILURES: u32 = 4;

/// What the API said.
#[derive(Debug)]
pub enum Heard<T, K> {
    /// A list begins.
    Listing,
    /// Of the list.
    Listed(T),
    /// The list is complete: what was not in it is gone.
    Complete,
    /// New or changed.
    Changed(T),
    /// Gone.
    Gone(K),
}

/// What is to be done about a pod.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Op {
    /// Find and enrol it; if that fails and an earlier agent had it, keep that.
    Enrol(Arc<Facts>),
    /// Keep it if an earlier agent had it.
    Keep(Arc<Facts>),
    /// Take it out.
    Release(Arc<Facts>),
    /// Take it out if none of its processes is left.
    Bury(Arc<Facts>),
    /// Say in its annotation how it stands, or take the annotation away.
    Annotate(Arc<Facts>, Option<Mark>),
}

impl Op {
    /// Whose it is.
    pub fn pod(&self) -> &Arc<Facts> {
        match self {
            Op::Enrol(pod) | Op::Keep(pod) | Op::Release(pod) | Op::Bury(pod) | Op::Annotate(pod, _) => pod,
        }
    }
}

/// How an operation failed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Trouble {
    /// For people.
    pub message: String,
    /// The pod is enrolled all the same, as it was before.
    pub held: bool,
    /// The pod is not what the API says, and the same request meets that again.
    pub lasting: bool,
}

/// A pod in the admin dump.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct PodState {
    /// Kubernetes namespace.
    pub namespace: ArcStr,
    /// Name.
    pub name: ArcStr,
    /// Kubernetes UID.
    pub uid: ArcStr,
    /// `enrolled`, `left out` or `waiting`.
    pub state: &'static str,
    /// Why, unless it is enrolled and all is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What its annotations say and is not in force.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub complaints: Vec<String>,
}

/// Namespaces with their label and the list that had them last.
type Namespaces = BTreeMap<String, (Option<Mode>, u64)>;

/// What the API has said, for others; of both lists, once they are complete.
#[derive(Clone, Debug, Default)]
pub struct Knowledge {
    /// Both lists are complete.
    pub complete: bool,
    namespaces: Arc<Namespaces>,
    /// Pods of the node that are there, and what is to be done with each.
    pub pods: Vec<(Arc<Facts>, Verdict)>,
}

impl Knowledge {
    /// Complete knowledge of these.
    pub fn new(namespaces: impl Iterator<Item = (String, Option<Mode>)>, pods: Vec<(Arc<Facts>, Verdict)>) -> Self {
        let namespaces = namespaces.map(|(name, mode)| (name, (mode, 0))).collect();
        Knowledge { complete: true, namespaces: Arc::new(namespaces), pods }
    }

    /// The pod of this name, and what is to be done with it.
    pub fn pod(&self, called: &Called) -> Option<&(Arc<Facts>, Verdict)> {
        self.pods.iter().find(|(pod, _)| pod.is(called))
    }

    /// All namespaces with their label.
    pub fn namespaces(&self) -> impl Iterator<Item = (&str, Option<Mode>)> {
        self.namespaces.iter().map(|(name, (mode, _))| (name.as_str(), *mode))
    }
}

/// Why nobody else may enrol a pod now.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum NotBegun {
    /// The API has not said all that the decision needs.
    Unheard,
    /// It is not to be in the mesh.
    Left(Reason),
    /// Something is being done about it.
    Busy,
    /// The API has the UID under another name.
    Other(Arc<Facts>),
}

/// The book.
#[derive(Debug, Default)]
pub struct Book {
    namespaces: Arc<Namespaces>,
    /// Counts what was heard.
    heard: u64,
    pods: BTreeMap<ArcStr, Entry>,
    namespace_lists: Lists,
    pod_lists: Lists,
    settled: bool,
}

#[derive(Debug, Default)]
struct Lists {
    begun: u64,
    complete: bool,
}

impl Book {
    /// Takes what was said about namespaces.
    pub fn namespace(&mut self, heard: Heard<(String, Option<Mode>), String>) {
        let round = self.namespace_lists.begun;
        self.heard += 1;
        match heard {
            Heard::Listing => self.namespace_lists.begun += 1,
            Heard::Listed((name, mode)) | Heard::Changed((name, mode)) => {
                Arc::make_mut(&mut self.namespaces).insert(name, (mode, round));
            }
            Heard::Gone(name) => {
                Arc::make_mut(&mut self.namespaces).remove(&name);
            }
            Heard::Complete => {
                Arc::make_mut(&mut self.namespaces).retain(|_, (_, listed)| *listed == round);
                self.namespace_lists.complete = true;
            }
        }
    }

    /// Takes what was said about pods of the node. Gives back a pod of which it is news that it has the kubelet call others, in the mesh or not.
    pub fn pod(&mut self, heard: Heard<Facts, String>) -> Option<Arc<Facts>> {
        let round = self.pod_lists.begun;
        self.heard += 1;
        match heard {
            Heard::Listing => self.pod_lists.begun += 1,
            Heard::Listed(facts) | Heard::Changed(facts) => return self.changed(facts, round),
            Heard::Gone(uid) => {
                if let Some(entry) = self.pods.get_mut(uid.as_str()) {
                    entry.leave();
                }
            }
            Heard::Complete => {
                self.pods.values_mut().filter(|entry| entry.listed != round).for_each(Entry::leave);
                self.pod_lists.complete = true;
            }
        }
        None
    }

    /// An earlier agent had these, and nobody has named them since: those of which the API says nothing have ended.
    pub fn inherit(&mut self, pods: Vec<Facts>) {
        for facts in pods {
            if let btree_map::Entry::Vacant(vacant) = self.pods.entry(facts.uid.clone()) {
                let entry = vacant.insert(Entry::new(Arc::new(facts), self.pod_lists.begun, Stage::Unknown));
                entry.leave();
            }
        }
    }

    /// Whether both lists are complete, so that it is known who is not named any more.
    pub fn is_complete(&self) -> bool {
        self.namespace_lists.complete && self.pod_lists.complete
    }

    fn changed(&mut self, facts: Facts, round: u64) -> Option<Arc<Facts>> {
        // After the snapshot nothing of an earlier agent is left.
        let stage = if self.settled { Stage::Out } else { Stage::Unknown };
        let facts = Arc::new(facts);
        let told = self.pods.get(&facts.uid).map(|entry| &entry.facts.said.elsewhere);
        let is_news = !facts.said.elsewhere.is_empty() && told != Some(&facts.said.elsewhere);
        let entry = self.pods.entry(facts.uid.clone()).or_insert_with(|| Entry::new(facts.clone(), round, stage));
        if *entry.facts != *facts {
            entry.facts = facts;
            entry.not_before = None;
        }
        entry.listed = round;
        entry.gone = false;
        is_news.then(|| entry.facts.clone())
    }

    /// Changes with everything that is heard.
    pub fn heard(&self) -> u64 {
        self.heard
    }

    /// What was heard, once both lists are complete.
    pub fn knowledge(&self) -> Knowledge {
        if !self.is_complete() {
            return Knowledge::default();
        }
        let there = self.pods.values().filter(|entry| !entry.gone);
        let pods = there.filter_map(|entry| Some((entry.facts.clone(), verdict(&self.namespaces, &entry.facts)?)));
        Knowledge { complete: true, namespaces: self.namespaces.clone(), pods: pods.collect() }
    }

    /// Somebody else enrols a pod, because it knows where the pod is before the API does. It is an operation like those that are due, and
    /// its end is to be told in the same way.
    pub fn begin(&mut self, called: &Called) -> Result<Op, NotBegun> {
        let Book { namespaces, namespace_lists, pod_lists, pods, .. } = self;
        if !(namespace_lists.complete && pod_lists.complete) {
            return Err(NotBegun::Unheard);
        }
        // A UID that the API itself has given is nobody else's.
        let other =
            pods.get(&called.cgroup_uid).filter(|entry| !entry.gone && entry.facts.cgroup_uid == called.cgroup_uid);
        let missing = other.map_or(NotBegun::Unheard, |entry| NotBegun::Other(entry.facts.clone()));
        let entry = pods.values_mut().find(|entry| !entry.gone && entry.facts.is(called)).ok_or(missing)?;
        match verdict(namespaces, &entry.facts) {
            None => Err(NotBegun::Unheard),
            Some(Verdict::Leave(reason)) => Err(NotBegun::Left(reason)),
            Some(Verdict::Enrol) if entry.busy => Err(NotBegun::Busy),
            Some(Verdict::Enrol) => {
                entry.busy = true;
                Ok(Op::Enrol(entry.facts.clone()))
            }
        }
    }

    /// What is to be done now. Nothing before both lists are complete.
    pub fn due(&mut self, now: Instant) -> Vec<Op> {
        if !self.is_complete() {
            return Vec::new();
        }
        self.pods.retain(|_, entry| !(entry.gone && !entry.busy && entry.stage == Stage::Out));
        let mut ops = Vec::new();
        // Pods of the kubelet's own folder, of which only the object was made anew: the processes are those of the new one.
        let mirrored: Vec<Called> = self
            .pods
            .values()
            .filter(|entry| !entry.gone && entry.facts.is_mirror())
            .map(|e| e.facts.called())
            .collect();
        for entry in self.pods.values_mut() {
            entry.lingers = entry.lingers.filter(|until| now < *until);
            let verdict = verdict(&self.namespaces, &entry.facts);
            let replaced =
                entry.gone && entry.facts.is_mirror() && mirrored.iter().any(|called| entry.facts.is(called));
            if let Some(op) = entry.next(verdict, replaced, now) {
                entry.busy = true;
                ops.push(op);
            }
        }
        ops
    }

    /// When there may be something to do though nothing was said.
    pub fn next_due(&self) -> Option<Instant> {
        let idle = self.pods.values().filter(|entry| !entry.busy);
        idle.flat_map(|entry| [entry.not_before, entry.lingers]).flatten().min()
    }

    /// An operation has ended.
    pub fn done(&mut self, op: &Op, result: Result<(), Trouble>, now: Instant) {
        let Some(entry) = self.pods.get_mut(&op.pod().uid) else { return };
        entry.busy = false;
        let before = std::mem::replace(&mut entry.trouble, result.as_ref().err().cloned());
        match (op, &result) {
            (Op::Enrol(facts), Ok(())) => (entry.stage, entry.enrolled) = (Stage::In, Some(facts.clone())),
            (Op::Keep(_), Ok(())) => entry.stage = Stage::In,
            (Op::Enrol(_) | Op::Keep(_), Err(trouble)) => {
                entry.stage = if trouble.held { Stage::In } else { Stage::Unknown };
                entry.enrolled = None;
            }
            (Op::Release(_) | Op::Bury(_), Ok(())) => {
                (entry.stage, entry.enrolled, entry.unmarked) = (Stage::Out, None, false);
            }
            (Op::Bury(_), Err(trouble)) if trouble.held => entry.stage = Stage::In,
            (Op::Release(_) | Op::Bury(_), Err(_)) => {}
            (Op::Annotate(_, mark), Ok(())) => {
                // Until the API tells it itself.
                Arc::make_mut(&mut entry.facts).redirection = *mark;
                entry.lingers = (mark.is_none() && entry.stage == Stage::In).then(|| now + LINGER);
            }
            (Op::Annotate(_, mark), Err(_)) => entry.unmarked = *mark != Some(Mark::Enabled),
        }
        if matches!(op, Op::Enrol(_)) {
            entry.unmarked = false;
        }
        match (&result, op) {
            // Neither the wait of an enrolment nor its reason is that of what is said about it.
            (_, Op::Annotate(_, Some(Mark::Pending))) => entry.trouble = before,
            (Ok(()), _) => (entry.failures, entry.not_before) = (0, None),
            // The release does not wait for an annotation.
            (Err(_), Op::Annotate(_, None)) if entry.stage != Stage::Out => {}
            (Err(_), _) => {
                let longest = if matches!(op, Op::Bury(_)) { LONGEST_LOOK } else { LONGEST_WAIT };
                let wait = FIRST_WAIT.saturating_mul(1 << entry.failures.min(16)).min(longest);
                entry.failures = entry.failures.saturating_add(1);
                // What was said since then may have changed it already.
                let is_news = *entry.facts != **op.pod() || (entry.gone && !matches!(op, Op::Release(_) | Op::Bury(_)));
                entry.not_before = (!is_news).then(|| now + wait);
            }
        }
    }

    /// Whether the snapshot may be made now: true once.
    pub fn settle(&mut self) -> bool {
        if self.settled || !self.namespace_lists.complete || !self.pod_lists.complete {
            return false;
        }
        self.settled = self.pods.values().all(|entry| {
            let may_go_on = || match verdict(&self.namespaces, &entry.facts) {
                _ if entry.gone => false,
                // Nothing was captured of what has no address.
                Some(Verdict::Enrol) => entry.facts.ips.is_empty() && entry.trouble.is_some(),
                Some(Verdict::Leave(_)) | None => false,
            };
            !entry.busy && (entry.stage != Stage::Unknown || may_go_on())
        });
        self.settled
    }

    /// Every pod of the node and what became of it, by namespace and name.
    pub fn view(&self) -> Vec<PodState> {
        let mut states: Vec<PodState> = self.pods.values().map(|entry| entry.view(&self.namespaces)).collect();
        states.sort_unstable_by(|a, b| (&a.namespace, &a.name, &a.uid).cmp(&(&b.namespace, &b.name, &b.uid)));
        states
    }
}

/// None while the pod's namespace is not known: the two watches are not in step.
fn verdict(namespaces: &Namespaces, pod: &Facts) -> Option<Verdict> {
    let label = namespaces.get(pod.namespace.as_str()).map(|(mode, _)| *mode);
    match wanted(label.flatten(), pod) {
        Verdict::Leave(Reason::NotLabelled) if label.is_none() => None,
        verdict => Some(verdict),
    }
}

#[cfg(test)]
mod tests;
