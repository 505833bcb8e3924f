//! One pod in the book: how it stands, and what is to be done next. Called by [`super::Book`].

use std::sync::Arc;
use std::time::Instant;

use super::super::facts::{Facts, Mark};
use super::super::wanted::{Reason, Verdict};
use super::{Namespaces, Op, PodState, SOME_FAILURES, Trouble, verdict};

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Stage {
    /// An earlier agent may have enrolled it, or this one has failed to and left it closed.
    Unknown,
    In,
    Out,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) facts: Arc<Facts>,
    /// The list that had it last.
    pub(super) listed: u64,
    pub(super) gone: bool,
    pub(super) stage: Stage,
    /// What it was enrolled from.
    pub(super) enrolled: Option<Arc<Facts>>,
    pub(super) busy: bool,
    /// The annotation could not be changed before what is to come after it.
    pub(super) unmarked: bool,
    pub(super) failures: u32,
    pub(super) not_before: Option<Instant>,
    /// Others are told that it leaves: until then it goes on to answer them.
    pub(super) lingers: Option<Instant>,
    pub(super) trouble: Option<Trouble>,
}

impl Entry {
    pub(super) fn new(facts: Arc<Facts>, listed: u64, stage: Stage) -> Entry {
        Entry {
            facts,
            listed,
            gone: false,
            stage,
            enrolled: None,
            busy: false,
            unmarked: false,
            failures: 0,
            not_before: None,
            lingers: None,
            trouble: None,
        }
    }

    pub(super) fn leave(&mut self) {
        if !self.gone {
            (self.gone, self.not_before, self.failures) = (true, None, 0);
        }
    }

    /// `replaced`: its processes are another entry's.
    pub(super) fn next(&self, verdict: Option<Verdict>, replaced: bool, now: Instant) -> Option<Op> {
        if self.busy {
            return None;
        }
        if verdict == Some(Verdict::Enrol) && self.owes_pending() {
            return Some(Op::Annotate(self.facts.clone(), Some(Mark::Pending)));
        }
        if self.not_before.is_some_and(|then| now < then) {
            return None;
        }
        let facts = || self.facts.clone();
        let marked = self.facts.redirection.is_some();
        let release = || (self.stage != Stage::Out).then(|| Op::Release(facts()));
        let bury = || (self.stage != Stage::Out).then(|| Op::Bury(facts()));
        let keep = || (self.stage == Stage::Unknown).then(|| Op::Keep(facts()));
        match verdict {
            _ if replaced => release(),
            _ if self.gone => bury(),
            Some(Verdict::Leave(Reason::Finished)) => bury(),
            // The others are to stop sending through the mesh before the pod stops answering there.
            Some(Verdict::Leave(_)) if marked && !(self.unmarked && self.stage != Stage::Out) => {
                Some(Op::Annotate(facts(), None))
            }
            Some(Verdict::Leave(_)) if self.lingers.is_some() => None,
            Some(Verdict::Leave(_)) => release(),
            None => keep(),
            Some(Verdict::Enrol) if self.facts.ips.is_empty() => keep(),
            Some(Verdict::Enrol) => {
                let current = self.enrolled.as_ref().is_some_and(|from| from.same_place(&self.facts));
                match current && self.stage == Stage::In {
                    false => Some(Op::Enrol(facts())),
                    true => (self.facts.redirection != Some(Mark::Enabled))
                        .then(|| Op::Annotate(facts(), Some(Mark::Enabled))),
                }
            }
        }
    }

    /// Whether others are to be told that the pod is not served: nothing is to be sent to it through the mesh. Not for what is over in a moment, as
    /// most that fails at the start of a pod is, unless it is said to be enrolled.
    fn owes_pending(&self) -> bool {
        let fails = self.trouble.as_ref().is_some_and(|trouble| !trouble.held && trouble.lasting)
            || self.failures >= SOME_FAILURES
            || (self.failures > 0 && self.facts.redirection == Some(Mark::Enabled));
        let told = self.facts.redirection == Some(Mark::Pending) || self.unmarked;
        self.stage != Stage::In && !self.gone && fails && !told
    }

    pub(super) fn view(&self, namespaces: &Namespaces) -> PodState {
        let trouble = || self.trouble.as_ref().map(|trouble| trouble.message.clone());
        let waits = |default: &str| Some(trouble().unwrap_or_else(|| default.to_owned()));
        let (state, reason) = match (verdict(namespaces, &self.facts), self.stage) {
            _ if self.gone => ("waiting", waits("the pod is gone and being released")),
            (Some(Verdict::Leave(reason)), Stage::Out) => ("left out", Some(reason.to_string())),
            (Some(Verdict::Leave(reason)), _) => ("waiting", waits(&format!("being released: {reason}"))),
            (Some(Verdict::Enrol), Stage::In) => ("enrolled", trouble()),
            (Some(Verdict::Enrol), _) if self.facts.ips.is_empty() => {
                ("waiting", Some("the pod has no address yet".to_owned()))
            }
            (Some(Verdict::Enrol), _) => ("waiting", waits("being enrolled")),
            (None, Stage::In) => ("enrolled", Some("the pod's namespace is not known yet".to_owned())),
            (None, _) => ("waiting", Some("the pod's namespace is not known yet".to_owned())),
        };
        PodState {
            namespace: self.facts.namespace.clone(),
            name: self.facts.name.clone(),
            uid: self.facts.uid.clone(),
            state,
            reason,
            complaints: self.facts.said.complaints.clone(),
        }
    }
}
