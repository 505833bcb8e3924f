//! One pod in the machine: what runs, what is to come, who waits, and how it leaves.

use std::sync::Arc;

use super::super::session::{Code, Failure};
use super::{Action, Generation, RequestId, SessionId, Spec};

#[derive(Debug)]
pub(super) enum Phase {
    Starting { waiters: Vec<RequestId> },
    Cancelling,
    Running,
    Stopping,
}

#[derive(Debug)]
pub(super) struct Current {
    pub(super) generation: Generation,
    pub(super) spec: Arc<Spec>,
    pub(super) phase: Phase,
    /// When it is gone, the kernel still has its namespace captured.
    pub(super) captured: bool,
}

#[derive(Debug)]
pub(super) struct Wanted<P> {
    pub(super) spec: Spec,
    pub(super) payload: P,
    pub(super) waiters: Vec<RequestId>,
}

#[derive(Debug)]
pub(super) struct Entry<P> {
    pub(super) current: Current,
    /// What to start when the present one is gone.
    pub(super) next: Option<Wanted<P>>,
    /// Requests that wait for the present one to be gone.
    pub(super) leaving: Vec<RequestId>,
    /// When a client last named it, in the machine's count of sessions.
    pub(super) named_at: u64,
    /// A client knows that it is enrolled.
    pub(super) confirmed: bool,
    /// Clients that do not know yet.
    pub(super) claims: Vec<(SessionId, RequestId)>,
}

impl<P> Entry<P> {
    /// Whether the pod will be there when all that is under way has ended.
    pub(super) fn stays(&self) -> bool {
        self.next.is_some() || matches!(self.current.phase, Phase::Starting { .. } | Phase::Running)
    }

    /// Whether the next start is in this namespace.
    pub(super) fn comes_to(&self, cookie: u64) -> bool {
        self.next.as_ref().is_some_and(|next| next.spec.netns.cookie == cookie)
    }

    /// The pod is not wanted any more, in no form.
    pub(super) fn leave(&mut self, actions: &mut Vec<Action<P>>) {
        self.supersede(actions);
        self.make_way(actions);
    }

    /// Drops what was to come next.
    pub(super) fn supersede(&mut self, actions: &mut Vec<Action<P>>) {
        if let Some(next) = self.next.take() {
            self.refuse(next.waiters, actions);
        }
    }

    /// Makes the present one end.
    pub(super) fn make_way(&mut self, actions: &mut Vec<Action<P>>) {
        match std::mem::replace(&mut self.current.phase, Phase::Stopping) {
            Phase::Running => self.stop(actions),
            Phase::Starting { waiters } => {
                self.current.phase = Phase::Cancelling;
                self.refuse(waiters, actions);
                actions.push(Action::Cancel { generation: self.current.generation });
            }
            Phase::Cancelling => self.current.phase = Phase::Cancelling,
            Phase::Stopping => {}
        }
    }

    /// Stops what runs.
    pub(super) fn stop(&mut self, actions: &mut Vec<Action<P>>) {
        self.current.phase = Phase::Stopping;
        self.current.captured = self.comes_to(self.current.spec.netns.cookie);
        actions.push(Action::Stop { generation: self.current.generation, close: self.current.captured });
    }

    pub(super) fn refuse(&mut self, waiters: Vec<RequestId>, actions: &mut Vec<Action<P>>) {
        self.claims.retain(|(_, request)| !waiters.contains(request));
        for request in waiters {
            let failure = Failure::passing(Code::Conflict, "a later request took the place of this one");
            actions.push(Action::Reply { request, result: Err(failure) });
        }
    }
}
