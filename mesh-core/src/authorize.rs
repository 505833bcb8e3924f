//! Whether a connection to a local workload may exist, and why. The proxy calls this once per connection and again for every live connection
//! that a `Diff` touches.

use std::{fmt, net::IpAddr};

use crate::{
    Identity, NamespacedName, Policy, Snapshot, Workload,
    policy::{Action, Subject},
};

/// What is known of a connection at the destination.
#[derive(Clone, Copy, Debug)]
pub struct Connection<'a> {
    /// The peer's address.
    pub source_ip: IpAddr,
    /// What the peer proved by TLS, or whom it speaks for; `None` for plaintext.
    pub source: Option<&'a Identity>,
    /// The waypoint that speaks for the client, as it proved by TLS: what guards against going around waypoints means it, and everything else the client.
    pub via: Option<&'a Identity>,
    /// The workload's address that was asked for.
    pub destination_ip: IpAddr,
    /// The application's port.
    pub destination_port: u16,
}

/// Why a connection may exist.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum AllowReason {
    /// No ALLOW policy applies to the workload, and no DENY policy matched.
    NoPolicies,
    /// This ALLOW policy matched.
    Policy(NamespacedName),
}

/// Why a connection may not exist.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum DenyReason {
    /// This DENY policy matched.
    Policy(NamespacedName),
    /// ALLOW policies apply and none matched.
    NoAllowPolicyMatched,
    /// The workload lists a policy that has not arrived.
    UnknownPolicy(NamespacedName),
    /// A policy that could apply was sent in a form that cannot be read.
    UnreadablePolicy(NamespacedName),
}

/// Allow or deny.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Decision {
    /// The connection may exist.
    Allow(AllowReason),
    /// It may not.
    Deny(DenyReason),
}

impl Decision {
    /// Whether the connection may exist.
    #[must_use]
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allow(_))
    }
}

impl fmt::Display for AllowReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPolicies => f.write_str("no policy applies"),
            Self::Policy(name) => write!(f, "allowed by policy {name}"),
        }
    }
}

impl fmt::Display for DenyReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Policy(name) => write!(f, "denied by policy {name}"),
            Self::NoAllowPolicyMatched => f.write_str("no allow policy matched"),
            Self::UnknownPolicy(name) => write!(f, "policy {name} is listed but has not arrived"),
            Self::UnreadablePolicy(name) => write!(f, "policy {name} cannot be read"),
        }
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allow(reason) => reason.fmt(f),
            Self::Deny(reason) => reason.fmt(f),
        }
    }
}

/// A decision, and what dry-run policies would have changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What is enforced.
    pub decision: Decision,
    /// Dry-run policies that would have denied this connection had they been enforced.
    pub dry_run: Vec<NamespacedName>,
}

impl Verdict {
    /// Whether the connection may exist.
    #[must_use]
    pub fn is_allowed(&self) -> bool {
        self.decision.is_allowed()
    }

    fn deny(reason: DenyReason) -> Self {
        Self { decision: Decision::Deny(reason), dry_run: Vec::new() }
    }
}

/// One entry of the policies that concern a workload.
#[derive(Clone, Copy, Debug)]
pub enum Applicable<'a> {
    /// Readable: evaluate it.
    Policy(&'a Policy),
    /// Listed by the workload and absent.
    Unknown(&'a NamespacedName),
    /// Present, unreadable, and never seen in a good form.
    Unreadable(&'a NamespacedName),
}

/// Decides: what is unknown or unreadable denies, then DENY policies, then ALLOW policies; without ALLOW policies the rest is allowed.
#[must_use]
pub fn authorize(snapshot: &Snapshot, destination: &Workload, connection: &Connection<'_>) -> Verdict {
    decide(snapshot.policies_for(destination), connection)
}

pub(crate) fn decide<'a>(policies: impl Iterator<Item = Applicable<'a>>, connection: &Connection<'_>) -> Verdict {
    let Connection { source_ip, destination_ip, destination_port, .. } = *connection;
    let subject = Subject::new(connection.source, source_ip, destination_ip, destination_port);
    let via = connection.via.map(|via| Subject::new(Some(via), source_ip, destination_ip, destination_port));
    let mut tally = Tally::default();
    for applicable in policies {
        match applicable {
            Applicable::Unknown(name) => return Verdict::deny(DenyReason::UnknownPolicy(name.clone())),
            Applicable::Unreadable(name) => return Verdict::deny(DenyReason::UnreadablePolicy(name.clone())),
            Applicable::Policy(policy) => {
                let meant = via.as_ref().filter(|_| policy.is_guard()).unwrap_or(&subject);
                tally.count(policy, meant);
            }
        }
    }
    tally.verdict()
}

#[derive(Default)]
struct Tally<'a> {
    denied_by: Option<&'a NamespacedName>,
    allow_policies: bool,
    allowed_by: Option<&'a NamespacedName>,
    dry_run_denied: Vec<NamespacedName>,
    dry_run_allows: Vec<NamespacedName>,
    dry_run_allowed: bool,
}

impl<'a> Tally<'a> {
    fn count(&mut self, policy: &'a Policy, subject: &Subject<'_>) {
        let matched = policy.matches(subject);
        match (policy.action, policy.dry_run) {
            (Action::Deny, false) if matched => self.denied_by = self.denied_by.or(Some(&policy.name)),
            (Action::Deny, true) if matched => self.dry_run_denied.push(policy.name.clone()),
            (Action::Deny, _) => {}
            (Action::Allow, false) => {
                self.allow_policies = true;
                if matched {
                    self.allowed_by = self.allowed_by.or(Some(&policy.name));
                }
            }
            (Action::Allow, true) if matched => self.dry_run_allowed = true,
            (Action::Allow, true) => self.dry_run_allows.push(policy.name.clone()),
        }
    }

    fn verdict(self) -> Verdict {
        let decision = match (self.denied_by, self.allow_policies, self.allowed_by) {
            (Some(name), _, _) => Decision::Deny(DenyReason::Policy(name.clone())),
            (None, _, Some(name)) => Decision::Allow(AllowReason::Policy(name.clone())),
            (None, true, None) => Decision::Deny(DenyReason::NoAllowPolicyMatched),
            (None, false, None) => Decision::Allow(AllowReason::NoPolicies),
        };
        let mut dry_run = self.dry_run_denied;
        // Enforcing a dry-run ALLOW policy ends "no ALLOW policy applies": whoever it does not match would be denied.
        if decision == Decision::Allow(AllowReason::NoPolicies) && !self.dry_run_allowed {
            dry_run.extend(self.dry_run_allows);
        }
        Verdict { decision, dry_run }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Clause, GUARD, Match, Rule, Scope, StringMatch};

    /// A guard lets the waypoint pass and nobody else, whoever the client is; other policies mean the client.
    #[test]
    fn features_F7_a_guard_means_who_holds_the_connection_and_other_policies_the_client() {
        let id = |account: &str| format!("spiffe://cluster.local/ns/shop/sa/{account}").parse::<Identity>();
        let (client, waypoint) = (id("client").unwrap(), id("waypoint").unwrap());
        let only = |name: &str, who: &Identity| {
            let one = Match { not_principals: vec![StringMatch::Exact(who.principal().into())], ..Match::default() };
            let rules = vec![Rule { clauses: vec![Clause { matches: vec![one] }] }];
            let (name, scope) = (NamespacedName::new("shop", name), Scope::WorkloadSelector);
            Policy { name, scope, action: Action::Deny, rules, dry_run: false }
        };
        let guard = only(&format!("{GUARD}1"), &waypoint);
        let allowed = |policy: &Policy, source: Option<&Identity>, via: Option<&Identity>| {
            let ip = IpAddr::from([198, 18, 0, 1]);
            let connection = Connection { source_ip: ip, source, via, destination_ip: ip, destination_port: 80 };
            decide([Applicable::Policy(policy)].into_iter(), &connection).is_allowed()
        };
        for (policy, source, via, expected) in [
            (&guard, Some(&client), Some(&waypoint), true),
            (&guard, Some(&client), None, false),
            (&guard, Some(&waypoint), Some(&client), false),
            (&guard, None, None, false),
            (&only("a", &client), Some(&client), Some(&waypoint), true),
            (&only("a", &waypoint), Some(&client), Some(&waypoint), false),
        ] {
            assert_eq!(allowed(policy, source, via), expected, "{} {source:?} {via:?}", policy.name);
        }
    }
}
