//! The decision once more, written from the rules in prose and for nothing but plainness: no early return, no sharing, no borrowed iterators.
//! Tests and the fuzzer hold the real evaluator against it.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Action, Match, Policy, StringMatch};
use crate::Identity;

/// One connection, in plain values.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub(crate) identity: Option<Identity>,
    pub(crate) source_ip: IpAddr,
    pub(crate) destination_ip: IpAddr,
    pub(crate) destination_port: u16,
}

/// Whether the connection is allowed by these policies, all of them known and readable.
pub(crate) fn allowed(policies: &[Policy], facts: &Facts) -> bool {
    let enforced: Vec<&Policy> = policies.iter().filter(|p| !p.dry_run).collect();
    let mut some_deny_matches = false;
    let mut some_allow_exists = false;
    let mut some_allow_matches = false;
    for policy in enforced {
        let matched = policy_matches(policy, facts);
        if policy.action == Action::Deny && matched {
            some_deny_matches = true;
        }
        if policy.action == Action::Allow {
            some_allow_exists = true;
            if matched {
                some_allow_matches = true;
            }
        }
    }
    if some_deny_matches {
        return false;
    }
    if some_allow_exists {
        return some_allow_matches;
    }
    true
}

fn policy_matches(policy: &Policy, facts: &Facts) -> bool {
    let mut any_rule = false;
    for rule in &policy.rules {
        let mut all_clauses = true;
        for clause in &rule.clauses {
            let mut any_match = clause.matches.is_empty();
            for one in &clause.matches {
                if match_matches(one, facts) {
                    any_match = true;
                }
            }
            if !any_match {
                all_clauses = false;
            }
        }
        if all_clauses {
            any_rule = true;
        }
    }
    any_rule
}

fn match_matches(m: &Match, facts: &Facts) -> bool {
    let mut conditions = Vec::new();
    let strings = |list: &[StringMatch], value: &Option<String>| {
        let hits = list.iter().filter(|m| value.as_ref().is_some_and(|v| string_matches(m, v))).count();
        (list.len(), hits)
    };
    let nets = |list: &[IpNet], ip: IpAddr| (list.len(), list.iter().filter(|n| net_contains(n, ip)).count());
    let ports = |list: &[u16]| (list.len(), list.iter().filter(|p| **p == facts.destination_port).count());

    let namespace = facts.identity.as_ref().map(|i| i.namespace.to_string());
    let principal = facts.identity.as_ref().map(|i| i.to_string().replacen("spiffe://", "", 1));
    let account = facts.identity.as_ref().map(|i| (i.namespace.to_string(), i.service_account.to_string()));
    let accounts = |list: &[super::ServiceAccountMatch]| {
        let same =
            |m: &&super::ServiceAccountMatch| account == Some((m.namespace.to_string(), m.service_account.to_string()));
        (list.len(), list.iter().filter(same).count())
    };
    for (positive, (values, hits)) in [
        (true, strings(&m.namespaces, &namespace)),
        (false, strings(&m.not_namespaces, &namespace)),
        (true, strings(&m.principals, &principal)),
        (false, strings(&m.not_principals, &principal)),
        (true, accounts(&m.service_accounts)),
        (false, accounts(&m.not_service_accounts)),
        (true, nets(&m.source_ips, facts.source_ip)),
        (false, nets(&m.not_source_ips, facts.source_ip)),
        (true, nets(&m.destination_ips, facts.destination_ip)),
        (false, nets(&m.not_destination_ips, facts.destination_ip)),
        (true, ports(&m.destination_ports)),
        (false, ports(&m.not_destination_ports)),
    ] {
        if values > 0 {
            conditions.push(if positive { hits > 0 } else { hits == 0 });
        }
    }
    !conditions.is_empty() && conditions.iter().all(|c| *c)
}

fn string_matches(m: &StringMatch, value: &str) -> bool {
    match m {
        StringMatch::Exact(text) => text.as_bytes() == value.as_bytes(),
        StringMatch::Prefix(text) => value.len() >= text.len() && value.as_bytes()[..text.len()] == *text.as_bytes(),
        StringMatch::Suffix(text) => {
            value.len() >= text.len() && value.as_bytes()[value.len() - text.len()..] == *text.as_bytes()
        }
        StringMatch::Presence => !value.is_empty(),
    }
}

fn net_contains(net: &IpNet, ip: IpAddr) -> bool {
    let bits = |ip: IpAddr| -> String {
        match ip {
            IpAddr::V4(v4) => v4.octets().iter().map(|b| format!("{b:08b}")).collect(),
            IpAddr::V6(v6) => v6.octets().iter().map(|b| format!("{b:08b}")).collect(),
        }
    };
    let length = usize::from(net.prefix_len());
    let (mine, theirs) = (bits(net.addr()), bits(ip));
    mine.len() == theirs.len() && mine[..length] == theirs[..length]
}
