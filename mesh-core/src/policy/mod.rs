//! Authorization policies at L4 in Istio's algebra. `matcher` holds the leaf comparisons, `evaluate` the algebra; `authorize` combines policies.

mod evaluate;
mod matcher;
pub(crate) mod reference;
#[cfg(test)]
mod tests;

use arcstr::ArcStr;
pub use evaluate::Subject;
use ipnet::IpNet;
pub use matcher::{ServiceAccountMatch, StringMatch};
use serde::Serialize;

use crate::NamespacedName;

/// What a policy applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Scope {
    /// The mesh.
    Global,
    /// All workloads of the policy's namespace.
    Namespace,
    /// Workloads that list it.
    WorkloadSelector,
}

/// What a match means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Action {
    /// Some ALLOW policy must match if there is any.
    Allow,
    /// No DENY policy may match.
    Deny,
}

/// Begins the names of policies that guard against going around a waypoint. The control plane makes them; no object can be called so.
pub const GUARD: &str = "undermesh_waypoint_bypass_";

/// The policy that denies nobody, and whose being listed says to the agent of a pod: who comes without an identity is led through the pod's own waypoint. The control
/// plane makes it; no object can be called so, and whoever does not know it takes it for what it is.
pub const THROUGH: &str = "undermesh_waypoint_through";

/// One policy. It matches when any rule does; without rules it never matches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Policy {
    /// `namespace/name`
    pub name: NamespacedName,
    /// What it applies to.
    pub scope: Scope,
    /// What a match means.
    pub action: Action,
    /// Alternatives.
    pub rules: Vec<Rule>,
    /// Evaluated and reported, never enforced.
    pub dry_run: bool,
}

/// Matches when all clauses do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Rule {
    /// All must match.
    pub clauses: Vec<Clause>,
}

/// Matches when any of its matches does; an empty clause is true.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Clause {
    /// Alternatives.
    pub matches: Vec<Match>,
}

/// Matches when every list that is not empty holds: some value of a positive list, no value of a `not_` list. A match with no value at all
/// never matches.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Match {
    /// The peer's namespace.
    pub namespaces: Vec<StringMatch>,
    /// Not the peer's namespace.
    pub not_namespaces: Vec<StringMatch>,
    /// The peer's identity without `spiffe://`.
    pub principals: Vec<StringMatch>,
    /// Not the peer's identity.
    pub not_principals: Vec<StringMatch>,
    /// The peer's namespace and service account, in any trust domain.
    pub service_accounts: Vec<ServiceAccountMatch>,
    /// Not the peer's service account.
    pub not_service_accounts: Vec<ServiceAccountMatch>,
    /// The peer's address.
    pub source_ips: Vec<IpNet>,
    /// Not the peer's address.
    pub not_source_ips: Vec<IpNet>,
    /// The workload's address.
    pub destination_ips: Vec<IpNet>,
    /// Not the workload's address.
    pub not_destination_ips: Vec<IpNet>,
    /// The application's port.
    pub destination_ports: Vec<u16>,
    /// Not the application's port.
    pub not_destination_ports: Vec<u16>,
}

impl Policy {
    /// Whether it guards against going around a waypoint: then who holds the connection is meant, and not for whom.
    #[must_use]
    pub fn is_guard(&self) -> bool {
        self.name.name.starts_with(GUARD)
    }

    /// [`THROUGH`], of a namespace.
    #[must_use]
    pub fn through(namespace: ArcStr) -> Self {
        let name = NamespacedName::new(namespace, THROUGH);
        Self { name, scope: Scope::WorkloadSelector, action: Action::Deny, rules: Vec::new(), dry_run: false }
    }

    /// The policy that STRICT mutual TLS becomes: deny whoever has no identity.
    #[must_use]
    pub fn deny_plaintext(name: NamespacedName, scope: Scope) -> Self {
        let no_peer = Match { not_principals: vec![StringMatch::Presence], ..Match::default() };
        let rules = vec![Rule { clauses: vec![Clause { matches: vec![no_peer] }] }];
        Self { name, scope, action: Action::Deny, rules, dry_run: false }
    }

    /// The namespace that the policy is in.
    #[must_use]
    pub fn namespace(&self) -> &ArcStr {
        &self.name.namespace
    }
}
