//! Whether a policy matches a connection: any rule, all clauses of a rule, any match of a clause, all lists of a match, any value of a list.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Clause, Match, Policy, Rule, ServiceAccountMatch, StringMatch};
use crate::Identity;

/// What a policy looks at, prepared once for all policies of a connection.
#[derive(Clone, Debug)]
pub struct Subject<'a> {
    identity: Option<&'a Identity>,
    /// Without `spiffe://`; empty without an identity.
    principal: String,
    source_ip: IpAddr,
    destination_ip: IpAddr,
    destination_port: u16,
}

impl<'a> Subject<'a> {
    /// `identity` is what the peer proved by TLS, never what its address suggests.
    #[must_use]
    pub fn new(
        identity: Option<&'a Identity>,
        source_ip: IpAddr,
        destination_ip: IpAddr,
        destination_port: u16,
    ) -> Self {
        let principal = identity.map(Identity::principal).unwrap_or_default();
        let (source_ip, destination_ip) = (source_ip.to_canonical(), destination_ip.to_canonical());
        Self { identity, principal, source_ip, destination_ip, destination_port }
    }

    fn namespace(&self) -> &str {
        self.identity.map_or("", |identity| &identity.namespace)
    }

    fn is_account(&self, account: &ServiceAccountMatch) -> bool {
        self.identity
            .is_some_and(|id| id.namespace == account.namespace && id.service_account == account.service_account)
    }
}

impl Policy {
    /// Whether any rule matches. Says nothing about allowing or denying.
    #[must_use]
    pub fn matches(&self, subject: &Subject<'_>) -> bool {
        self.rules.iter().any(|rule| rule.matches(subject))
    }
}

impl Rule {
    fn matches(&self, subject: &Subject<'_>) -> bool {
        self.clauses.iter().all(|clause| clause.matches(subject))
    }
}

impl Clause {
    fn matches(&self, subject: &Subject<'_>) -> bool {
        self.matches.is_empty() || self.matches.iter().any(|m| m.matches(subject))
    }
}

impl Match {
    /// Whether no list has a value.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.namespaces.is_empty()
            && self.not_namespaces.is_empty()
            && self.principals.is_empty()
            && self.not_principals.is_empty()
            && self.service_accounts.is_empty()
            && self.not_service_accounts.is_empty()
            && self.source_ips.is_empty()
            && self.not_source_ips.is_empty()
            && self.destination_ips.is_empty()
            && self.not_destination_ips.is_empty()
            && self.destination_ports.is_empty()
            && self.not_destination_ports.is_empty()
    }

    fn matches(&self, subject: &Subject<'_>) -> bool {
        let known = subject.identity.is_some();
        let namespace = |m: &StringMatch| known && m.matches(subject.namespace());
        let principal = |m: &StringMatch| known && m.matches(&subject.principal);
        let account = |m: &ServiceAccountMatch| subject.is_account(m);
        let source = |net: &IpNet| net.contains(&subject.source_ip);
        let destination = |net: &IpNet| net.contains(&subject.destination_ip);
        let port = |port: &u16| *port == subject.destination_port;
        !self.is_empty()
            && holds(&self.namespaces, &self.not_namespaces, namespace)
            && holds(&self.principals, &self.not_principals, principal)
            && holds(&self.service_accounts, &self.not_service_accounts, account)
            && holds(&self.source_ips, &self.not_source_ips, source)
            && holds(&self.destination_ips, &self.not_destination_ips, destination)
            && holds(&self.destination_ports, &self.not_destination_ports, port)
    }
}

/// Some value of `positive` (if it has any) and no value of `negative`.
fn holds<T>(positive: &[T], negative: &[T], matches: impl Fn(&T) -> bool) -> bool {
    (positive.is_empty() || positive.iter().any(&matches)) && !negative.iter().any(&matches)
}
