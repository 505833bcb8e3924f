//! Authorization policies on HTTP requests, in Istio's algebra. `pattern` holds the comparisons of paths and texts, `evaluate` the algebra, `decide` combines
//! policies. The control plane makes them of AuthorizationPolicies, waypoints ask them for each request; nothing is allocated for that, but for headers of several lines.
//!
//! Where a request can be understood in two ways, the way counts that lets less through: a denial matches if either does, an allowance if both do.
//! What a rule says and cannot be judged holds for a denial, and does not for an allowance ([`When::Unknown`]).

mod decide;
mod evaluate;
mod pattern;
#[cfg(test)]
mod tests;

use arcstr::ArcStr;
use http::HeaderName;
use ipnet::IpNet;

pub use decide::{Decision, DryRun, Policies, Verdict};
pub use evaluate::Subject;
pub use pattern::{PathPattern, PathPatternError};

use super::security::Target;
use crate::NamespacedName;
pub use crate::policy::{ServiceAccountMatch, StringMatch};

/// What a match means.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Some ALLOW policy must match if there is any.
    Allow,
    /// No DENY policy may match.
    Deny,
    /// It is told.
    Audit,
    /// The authorizer of this name is asked, before anything else is.
    Custom(ArcStr),
}

/// One policy. It matches when any rule does; without rules it never matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// `namespace/name`
    pub name: NamespacedName,
    /// Which requests it is about.
    pub target: Target,
    /// What a match means.
    pub action: Action,
    /// Alternatives.
    pub rules: Vec<Rule>,
    /// Evaluated and reported, never enforced.
    pub dry_run: bool,
}

impl Policy {
    /// What stands for a policy that cannot be read: it denies what it would have been about.
    #[must_use]
    pub fn closed(name: NamespacedName, target: Target) -> Self {
        Self { name, target, action: Action::Deny, rules: vec![Rule::default()], dry_run: false }
    }
}

/// Matches when any source (if there are some), any operation (if there are some) and all conditions do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// Who asks.
    pub from: Vec<Source>,
    /// What is asked.
    pub to: Vec<Operation>,
    /// What else must be so.
    pub when: Vec<When>,
}

/// Values of which one must be there, if there are any, and values of which none may.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct List<T> {
    /// One of them.
    pub is: Vec<T>,
    /// None of them.
    pub not: Vec<T>,
}

impl<T> Default for List<T> {
    fn default() -> Self {
        Self { is: Vec::new(), not: Vec::new() }
    }
}

impl<T> List<T> {
    /// Says nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.is.is_empty() && self.not.is_empty()
    }
}

/// Who asks: all that is said must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// The peer's identity without `spiffe://`.
    pub principals: List<StringMatch>,
    /// Its namespace.
    pub namespaces: List<StringMatch>,
    /// Its namespace and service account, in any trust domain.
    pub service_accounts: List<ServiceAccountMatch>,
    /// Its trust domain.
    pub trust_domains: List<StringMatch>,
    /// The address that the connection came from.
    pub ips: List<IpNet>,
    /// The address that the request came from, before proxies that are trusted.
    pub remote_ips: List<IpNet>,
    /// `issuer/subject` of its token.
    pub request_principals: List<StringMatch>,
}

/// What is asked: all that is said must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Operation {
    /// The host, in lower case, with or without the port that was written.
    pub hosts: List<StringMatch>,
    /// The port that the client connected to.
    pub ports: List<u16>,
    /// The method.
    pub methods: List<StringMatch>,
    /// The path, without the query.
    pub paths: List<PathPattern>,
}

/// What else must be so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum When {
    /// A text.
    Text(Attribute, List<StringMatch>),
    /// The peer's service account.
    Account(List<ServiceAccountMatch>),
    /// An address.
    Ip(Address, List<IpNet>),
    /// The port that the client connected to.
    Port(List<u16>),
    /// Something that nobody here can tell.
    Unknown(ArcStr),
}

/// A text that is known of a request. What is not there is no value: no positive list holds then, and every negative one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Attribute {
    /// A header; of several lines also all of them, with commas between.
    Header(HeaderName),
    /// The host that is asked for.
    Host,
    /// The method.
    Method,
    /// The peer's namespace.
    Namespace,
    /// The peer's identity.
    Principal,
    /// The peer's trust domain.
    TrustDomain,
    /// `issuer/subject` of the token.
    RequestPrincipal,
    /// Whom the token is for.
    Audience,
    /// Who presents it: the claim `azp`.
    Presenter,
    /// A claim, by the names that lead to it.
    Claim(Vec<ArcStr>),
    /// The name that TLS was asked for.
    Sni,
}

/// Which address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// The connection came from it.
    Source,
    /// The request came from it.
    Remote,
    /// The client asked for it.
    Destination,
}
