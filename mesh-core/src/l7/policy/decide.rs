//! What all policies about a request come to: whoever is to be asked first, then DENY, then ALLOW.

use std::fmt;
use std::sync::Arc;

use arcstr::ArcStr;

use super::{Action, Policy, Subject};
use crate::NamespacedName;

/// The policies about some requests, by what they do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policies {
    custom: Vec<Arc<Policy>>,
    deny: Vec<Arc<Policy>>,
    allow: Vec<Arc<Policy>>,
    audit: Vec<Arc<Policy>>,
    dry_deny: Vec<Arc<Policy>>,
    dry_allow: Vec<Arc<Policy>>,
}

/// Allow or deny, and by what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision<'p> {
    /// No DENY policy matches, and there is no ALLOW policy, or this one matches.
    Allowed(Option<&'p NamespacedName>),
    /// This DENY policy matches.
    Denied(&'p NamespacedName),
    /// There are ALLOW policies, and none matches.
    NotAllowed,
}

/// What dry-run policies would have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DryRun<'p> {
    /// There is none.
    Nothing,
    /// They let it through.
    Allowed,
    /// This one would have denied it: a DENY policy that matches, or an ALLOW policy that does not where no other allows.
    Denied(&'p NamespacedName),
}

/// A decision, and what is told beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict<'p> {
    /// What is enforced.
    pub decision: Decision<'p>,
    /// What would be.
    pub dry_run: DryRun<'p>,
    /// An AUDIT policy that matches.
    pub audited: Option<&'p NamespacedName>,
}

impl Decision<'_> {
    /// Whether the request may be answered.
    #[must_use]
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allowed(_))
    }
}

impl fmt::Display for Decision<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allowed(None) => f.write_str("no policy applies"),
            Self::Allowed(Some(name)) => write!(f, "allowed by policy {name}"),
            Self::Denied(name) => write!(f, "denied by policy {name}"),
            Self::NotAllowed => f.write_str("no allow policy matched"),
        }
    }
}

impl Policies {
    /// Adds one.
    pub fn add(&mut self, policy: &Arc<Policy>) {
        let list = match (&policy.action, policy.dry_run) {
            // Whoever is asked acts on it: there is no asking without that.
            (Action::Custom(_), true) => return,
            (Action::Custom(_), false) => &mut self.custom,
            (Action::Deny, false) => &mut self.deny,
            (Action::Deny, true) => &mut self.dry_deny,
            (Action::Allow, false) => &mut self.allow,
            (Action::Allow, true) => &mut self.dry_allow,
            (Action::Audit, _) => &mut self.audit,
        };
        list.push(Arc::clone(policy));
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Self { custom, deny, allow, audit, dry_deny, dry_allow } = self;
        [custom, deny, allow, audit, dry_deny, dry_allow].iter().all(|list| list.is_empty())
    }

    /// Whether anybody may have to be asked.
    #[must_use]
    pub fn asks(&self) -> bool {
        !self.custom.is_empty()
    }

    /// Who is to be asked about a request, each once, and the policy that says so, before [`Self::decide`] is. All of them must allow it.
    pub fn asked<'p>(&'p self, subject: &Subject<'_>) -> impl Iterator<Item = (&'p NamespacedName, &'p ArcStr)> {
        let provider = |policy: &'p Arc<Policy>| match &policy.action {
            Action::Custom(provider) => Some(provider),
            _ => None,
        };
        self.custom.iter().enumerate().filter_map(move |(index, policy)| {
            let provider = provider(policy)?;
            let mut before = self.custom[..index].iter().filter(|other| other.action == policy.action);
            let is_again = before.any(|other| other.matches(subject));
            (!is_again && policy.matches(subject)).then_some((&policy.name, provider))
        })
    }

    /// Decides.
    #[must_use]
    pub fn decide(&self, subject: &Subject<'_>) -> Verdict<'_> {
        let first = |policies: &'_ [Arc<Policy>]| policies.iter().position(|policy| policy.matches(subject));
        let denied = first(&self.deny).map(|at| &self.deny[at].name);
        let decision = match denied {
            Some(name) => Decision::Denied(name),
            None if self.allow.is_empty() => Decision::Allowed(None),
            None => match first(&self.allow) {
                Some(at) => Decision::Allowed(Some(&self.allow[at].name)),
                None => Decision::NotAllowed,
            },
        };
        let audited = first(&self.audit).map(|at| &self.audit[at].name);
        Verdict { decision, dry_run: self.dry_run(decision, subject), audited }
    }

    fn dry_run(&self, decision: Decision<'_>, subject: &Subject<'_>) -> DryRun<'_> {
        if self.dry_deny.is_empty() && self.dry_allow.is_empty() {
            return DryRun::Nothing;
        }
        if let Some(policy) = self.dry_deny.iter().find(|policy| policy.matches(subject)) {
            return DryRun::Denied(&policy.name);
        }
        // Enforcing a dry-run ALLOW policy ends "no ALLOW policy applies": whoever it does not match would be denied.
        match self.dry_allow.first() {
            Some(policy)
                if decision == Decision::Allowed(None) && !self.dry_allow.iter().any(|one| one.matches(subject)) =>
            {
                DryRun::Denied(&policy.name)
            }
            _ => DryRun::Allowed,
        }
    }
}
