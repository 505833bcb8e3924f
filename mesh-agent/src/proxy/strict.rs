//! Which ports of a pod are STRICT: where the kernel may refuse plaintext before the agent sees it.
//!
//! The kernel's answer must never differ from the policy's. So a port is STRICT only if some DENY policy is *certain* to match every peer without an
//! identity on that port, whatever its address; everything less certain stays with the agent, which evaluates the whole policy per connection.
//! Called by `recheck.rs` on each change and by enrolment for the first answer.

use std::collections::BTreeSet;

use mesh_core::authorize::Applicable;
use mesh_core::policy::{Action, Clause, Match, Policy, Rule, StringMatch};
use mesh_core::{Snapshot, Workload};

use crate::bpf::InboundMode;

/// What the kernel should refuse by itself of what comes for a pod; `None` while its workload is not known.
///
/// Who comes without an identity for a pod that leads strangers through its waypoint does not go around that, so what guards against going around is no
/// reason to refuse his connections. His datagrams nobody leads anywhere, and no policy that the kernel knows is about them: they are refused on every port
/// where datagrams are refused at all.
pub fn mode_of(snapshot: &Snapshot, workload: Option<&Workload>) -> InboundMode {
    let Some(workload) = workload else {
        return InboundMode { undecided: true, ..InboundMode::default() };
    };
    let is_led = workload.leads_strangers_through();
    // Before the first full state a policy may yet come.
    let mut undecided = is_led || !snapshot.is_synced();
    let mut readable = Vec::new();
    for applicable in snapshot.policies_for(workload) {
        match applicable {
            Applicable::Policy(policy) if is_led && policy.is_guard() => {}
            Applicable::Policy(policy) => readable.push(policy),
            Applicable::Unknown(_) | Applicable::Unreadable(_) => undecided = true,
        }
    }
    InboundMode { undecided, ..inbound_mode(readable.into_iter()) }
}

/// The mode in which nothing is refused that the agent can judge.
pub fn left_to_the_agent(mode: &InboundMode) -> InboundMode {
    let refuses = mode.default_strict || mode.ports.iter().any(|(_, strict)| *strict);
    InboundMode { undecided: mode.undecided || refuses, ..InboundMode::default() }
}

/// The inbound mode that `policies`, those that apply to the pod, amount to.
fn inbound_mode<'a>(policies: impl Iterator<Item = &'a Policy> + Clone) -> InboundMode {
    let denies = policies.filter(|policy| policy.action == Action::Deny && !policy.dry_run);
    let ports: BTreeSet<u16> = denies.clone().flat_map(matches_of).flat_map(ports_of).collect();
    let strict =
        |port: Option<u16>| denies.clone().any(|policy| policy.rules.iter().any(|rule| rule_is_certain(rule, port)));
    let default_strict = strict(None);
    InboundMode {
        default_strict,
        ports: ports
            .into_iter()
            .map(|port| (port, strict(Some(port))))
            .filter(|(_, port_strict)| *port_strict != default_strict)
            .collect(),
        undecided: false,
    }
}

fn matches_of(policy: &Policy) -> impl Iterator<Item = &Match> {
    policy.rules.iter().flat_map(|rule| &rule.clauses).flat_map(|clause| &clause.matches)
}

fn ports_of(one: &Match) -> impl Iterator<Item = u16> {
    one.destination_ports.iter().chain(&one.not_destination_ports).copied()
}

/// A rule that constrains nothing is left to the evaluator.
fn rule_is_certain(rule: &Rule, port: Option<u16>) -> bool {
    !rule.clauses.is_empty() && rule.clauses.iter().all(|clause| clause_is_certain(clause, port))
}

fn clause_is_certain(clause: &Clause, port: Option<u16>) -> bool {
    clause.matches.iter().any(|one| match_is_certain(one, port))
}

/// Whether the match holds for every peer without an identity on `port`; `None` stands for any port that no policy mentions.
fn match_is_certain(one: &Match, port: Option<u16>) -> bool {
    let without_identity = |values: &[StringMatch]| !values.iter().any(|value| value.matches(""));
    let depends_on_more = !(one.namespaces.is_empty()
        && one.principals.is_empty()
        && one.service_accounts.is_empty()
        && one.source_ips.is_empty()
        && one.not_source_ips.is_empty()
        && one.destination_ips.is_empty()
        && one.not_destination_ips.is_empty());
    let constrains = !(one.not_namespaces.is_empty()
        && one.not_principals.is_empty()
        && one.not_service_accounts.is_empty()
        && one.destination_ports.is_empty()
        && one.not_destination_ports.is_empty());
    let port_listed = |ports: &[u16]| port.is_some_and(|port| ports.contains(&port));
    constrains
        && !depends_on_more
        && without_identity(&one.not_namespaces)
        && without_identity(&one.not_principals)
        && (one.destination_ports.is_empty() || port_listed(&one.destination_ports))
        && !port_listed(&one.not_destination_ports)
}

#[cfg(test)]
mod tests {
    use mesh_core::NamespacedName;
    use mesh_core::policy::Scope;

    use super::*;

    fn name() -> NamespacedName {
        NamespacedName::new("bookinfo", "strict")
    }

    fn deny(rules: Vec<Vec<Match>>) -> Policy {
        let rules = rules
            .into_iter()
            .map(|clauses| Rule { clauses: clauses.into_iter().map(|one| Clause { matches: vec![one] }).collect() })
            .collect();
        Policy { name: name(), scope: Scope::Namespace, action: Action::Deny, rules, dry_run: false }
    }

    fn no_peer() -> Match {
        Match { not_principals: vec![StringMatch::Presence], ..Match::default() }
    }

    fn mode(default_strict: bool, ports: &[(u16, bool)]) -> InboundMode {
        InboundMode { default_strict, ports: ports.to_vec(), undecided: false }
    }

    #[test]
    fn strict_is_what_certainly_denies_every_plaintext_peer() {
        let strict = Policy::deny_plaintext(name(), Scope::Namespace);
        let on = |ports: &[u16]| Match { destination_ports: ports.to_vec(), ..Match::default() };
        let not_on = |ports: &[u16]| Match { not_destination_ports: ports.to_vec(), ..Match::default() };
        let from = Match { source_ips: vec!["198.18.0.0/16".parse().unwrap()], ..no_peer() };
        let cases: [(&str, Vec<Policy>, InboundMode); 10] = [
            ("nothing applies", vec![], mode(false, &[])),
            ("mesh-wide STRICT", vec![strict.clone()], mode(true, &[])),
            (
                "STRICT on two ports",
                vec![deny(vec![vec![no_peer(), on(&[80, 443])]])],
                mode(false, &[(80, true), (443, true)]),
            ),
            ("STRICT but for a port", vec![deny(vec![vec![no_peer(), not_on(&[9090])]])], mode(true, &[(9090, false)])),
            (
                "STRICT but for a port, and that port by another",
                vec![deny(vec![vec![no_peer(), not_on(&[9090])]]), deny(vec![vec![on(&[9090])]])],
                mode(true, &[]),
            ),
            ("depends on the peer's address", vec![deny(vec![vec![from]])], mode(false, &[])),
            ("dry run", vec![Policy { dry_run: true, ..strict.clone() }], mode(false, &[])),
            ("an ALLOW is no DENY", vec![Policy { action: Action::Allow, ..strict.clone() }], mode(false, &[])),
            ("a match without values never holds", vec![deny(vec![vec![Match::default()]])], mode(false, &[])),
            ("no rules never match", vec![deny(vec![])], mode(false, &[])),
        ];
        for (what, policies, expected) in cases {
            assert_eq!(inbound_mode(policies.iter()), expected, "{what}");
        }
    }
}
