//! Istio's policy algebra as tables, and as properties over arbitrary policies.

use std::net::IpAddr;

use proptest::prelude::*;

use super::{
    reference::{Facts, allowed},
    *,
};
use crate::{
    Connection,
    authorize::{AllowReason, Applicable, Decision, DenyReason, decide},
    fuzz::{Bytes, evaluate},
};

fn facts(identity: Option<&str>) -> Facts {
    Facts {
        identity: identity.map(|id| id.parse().unwrap()),
        source_ip: "198.18.0.1".parse().unwrap(),
        destination_ip: "198.18.1.1".parse().unwrap(),
        destination_port: 9080,
    }
}

const PRODUCTPAGE: &str = "spiffe://cluster.local/ns/bookinfo/sa/productpage";
const FOREIGN: &str = "spiffe://elsewhere.example/ns/bookinfo/sa/productpage";

fn policy(action: Action, rules: Vec<Rule>) -> Policy {
    Policy { name: NamespacedName::new("bookinfo", "p"), scope: Scope::Namespace, action, rules, dry_run: false }
}

fn rule(clauses: Vec<Vec<Match>>) -> Rule {
    Rule { clauses: clauses.into_iter().map(|matches| Clause { matches }).collect() }
}

fn single(m: Match) -> Vec<Rule> {
    vec![rule(vec![vec![m]])]
}

fn exact(text: &str) -> Vec<StringMatch> {
    vec![StringMatch::Exact(text.into())]
}

fn no_match() -> Match {
    Match { destination_ports: vec![1], ..Match::default() }
}

fn yes_match() -> Match {
    Match { destination_ports: vec![9080], ..Match::default() }
}

#[test]
fn the_algebra_of_rules_clauses_and_matches() {
    for (expected, rules) in [
        (false, vec![]),
        (true, vec![Rule::default()]),
        (true, vec![rule(vec![vec![]])]),
        (false, vec![rule(vec![vec![Match::default()]])]),
        (true, vec![rule(vec![vec![Match::default(), yes_match()]])]),
        (true, vec![rule(vec![vec![no_match(), yes_match()]])]),
        (false, vec![rule(vec![vec![yes_match()], vec![no_match()]])]),
        (true, vec![rule(vec![vec![yes_match()], vec![]])]),
        (true, vec![rule(vec![vec![no_match()]]), rule(vec![vec![yes_match()]])]),
        (false, vec![rule(vec![vec![no_match()]]), rule(vec![vec![no_match()]])]),
    ] {
        let policy = policy(Action::Allow, rules);
        assert_eq!(evaluate(std::slice::from_ref(&policy), &facts(None)), expected, "{policy:#?}");
    }
}

#[test]
fn each_field_against_each_kind_of_peer() {
    type Case = (&'static str, Match, [bool; 3]);
    let account = |sa: &str| ServiceAccountMatch { namespace: "bookinfo".into(), service_account: sa.into() };
    let any = Match::default;
    // Expected for: our peer, the same name in another trust domain, plaintext.
    let cases: Vec<Case> = vec![
        ("principal", Match { principals: exact(&PRODUCTPAGE[9..]), ..any() }, [true, false, false]),
        ("principal with scheme", Match { principals: exact(PRODUCTPAGE), ..any() }, [false, false, false]),
        ("not principal", Match { not_principals: exact(&PRODUCTPAGE[9..]), ..any() }, [false, true, true]),
        ("presence", Match { principals: vec![StringMatch::Presence], ..any() }, [true, true, false]),
        ("absence", Match { not_principals: vec![StringMatch::Presence], ..any() }, [false, false, true]),
        (
            "prefix",
            Match { principals: vec![StringMatch::Prefix("cluster.local/".into())], ..any() },
            [true, false, false],
        ),
        (
            "suffix",
            Match { principals: vec![StringMatch::Suffix("/productpage".into())], ..any() },
            [true, true, false],
        ),
        (
            "dot is not a pattern",
            Match { principals: exact("cluster.local/ns/bookinfo/sa/productpag."), ..any() },
            [false; 3],
        ),
        ("namespace", Match { namespaces: exact("bookinfo"), ..any() }, [true, true, false]),
        ("not namespace", Match { not_namespaces: exact("bookinfo"), ..any() }, [false, false, true]),
        ("no namespace is not an empty one", Match { namespaces: exact(""), ..any() }, [false; 3]),
        (
            "an empty prefix is not plaintext's",
            Match { principals: vec![StringMatch::Prefix("".into())], ..any() },
            [true, true, false],
        ),
        (
            "account in any domain",
            Match { service_accounts: vec![account("productpage")], ..any() },
            [true, true, false],
        ),
        ("other account", Match { service_accounts: vec![account("reviews")], ..any() }, [false; 3]),
        ("not account", Match { not_service_accounts: vec![account("productpage")], ..any() }, [false, false, true]),
        ("source", Match { source_ips: vec!["198.18.0.0/24".parse().unwrap()], ..any() }, [true; 3]),
        ("other source", Match { source_ips: vec!["198.18.9.0/24".parse().unwrap()], ..any() }, [false; 3]),
        ("not source", Match { not_source_ips: vec!["198.18.0.0/24".parse().unwrap()], ..any() }, [false; 3]),
        ("v6 range and v4 peer", Match { source_ips: vec!["::/0".parse().unwrap()], ..any() }, [false; 3]),
        ("destination", Match { destination_ips: vec!["198.18.1.1/32".parse().unwrap()], ..any() }, [true; 3]),
        ("not destination", Match { not_destination_ips: vec!["198.18.1.1/32".parse().unwrap()], ..any() }, [false; 3]),
        ("port", Match { destination_ports: vec![80, 9080], ..any() }, [true; 3]),
        ("not port", Match { not_destination_ports: vec![80, 9080], ..any() }, [false; 3]),
        (
            "fields of one match are anded",
            Match { destination_ports: vec![9080], principals: exact(&PRODUCTPAGE[9..]), ..any() },
            [true, false, false],
        ),
        (
            "a value on both lists never holds",
            Match { principals: exact(&PRODUCTPAGE[9..]), not_principals: exact(&PRODUCTPAGE[9..]), ..any() },
            [false; 3],
        ),
    ];
    for (name, m, expected) in cases {
        let policies = [policy(Action::Allow, single(m))];
        for (peer, expected) in [Some(PRODUCTPAGE), Some(FOREIGN), None].into_iter().zip(expected) {
            let facts = facts(peer);
            assert_eq!(evaluate(&policies, &facts), expected, "{name}, {peer:?}");
            assert_eq!(allowed(&policies, &facts), expected, "reference: {name}, {peer:?}");
        }
    }
}

#[test]
fn a_mapped_address_is_the_address_it_maps() {
    let ranges = vec!["198.18.0.0/24".parse().unwrap()];
    let policies = [policy(Action::Deny, single(Match { source_ips: ranges, ..Match::default() }))];
    let mapped: IpAddr = "::ffff:198.18.0.1".parse().unwrap();
    let facts = Facts { source_ip: mapped, ..facts(None) };
    assert!(!evaluate(&policies, &facts));
}

#[test]
fn deny_wins_then_allow_must_match_then_all_is_allowed() {
    let name = |n: &str| NamespacedName::new("bookinfo", n);
    let named = |n: &str, action, yes: bool, dry_run| Policy {
        name: name(n),
        dry_run,
        ..policy(action, single(if yes { yes_match() } else { no_match() }))
    };
    let decision = |policies: &[Policy]| {
        let f = facts(None);
        let connection = Connection {
            source_ip: f.source_ip,
            source: None,
            via: None,
            destination_ip: f.destination_ip,
            destination_port: f.destination_port,
        };
        decide(policies.iter().map(Applicable::Policy), &connection)
    };
    use Action::{Allow, Deny};
    use Decision as D;
    for (policies, expected, dry) in [
        (vec![], D::Allow(AllowReason::NoPolicies), vec![]),
        (vec![named("d", Deny, false, false)], D::Allow(AllowReason::NoPolicies), vec![]),
        (vec![named("d", Deny, true, false)], D::Deny(DenyReason::Policy(name("d"))), vec![]),
        (vec![named("a", Allow, true, false)], D::Allow(AllowReason::Policy(name("a"))), vec![]),
        (vec![named("a", Allow, false, false)], D::Deny(DenyReason::NoAllowPolicyMatched), vec![]),
        (
            vec![named("a", Allow, true, false), named("d", Deny, true, false)],
            D::Deny(DenyReason::Policy(name("d"))),
            vec![],
        ),
        (
            vec![named("a", Allow, false, false), named("b", Allow, true, false)],
            D::Allow(AllowReason::Policy(name("b"))),
            vec![],
        ),
        (vec![named("d", Deny, true, true)], D::Allow(AllowReason::NoPolicies), vec![name("d")]),
        (vec![named("a", Allow, false, true)], D::Allow(AllowReason::NoPolicies), vec![name("a")]),
        (vec![named("a", Allow, true, true)], D::Allow(AllowReason::NoPolicies), vec![]),
        (
            vec![named("a", Allow, true, false), named("b", Allow, false, true)],
            D::Allow(AllowReason::Policy(name("a"))),
            vec![],
        ),
    ] {
        let verdict = decision(&policies);
        assert_eq!((verdict.decision, verdict.dry_run), (expected, dry), "{policies:#?}");
    }
}

#[test]
fn hardening_B99_an_allow_policy_without_rules_denies_all() {
    assert!(!evaluate(&[policy(Action::Allow, vec![])], &facts(Some(PRODUCTPAGE))));
    assert!(evaluate(&[policy(Action::Deny, vec![])], &facts(Some(PRODUCTPAGE))));
}

#[test]
fn strict_is_a_deny_of_plaintext() {
    let strict = [Policy::deny_plaintext(NamespacedName::new("bookinfo", "strict"), Scope::Namespace)];
    assert!(evaluate(&strict, &facts(Some(PRODUCTPAGE))));
    assert!(!evaluate(&strict, &facts(None)));
}

/// Every way to lose a rule, one of several matches, or all that a match says, in an ALLOW policy. (One of several conditions of a match
/// cannot be lost: reading refuses the policy instead.)
fn narrowed(policy: &Policy) -> Vec<Policy> {
    let mut all = Vec::new();
    for r in 0..policy.rules.len() {
        let mut less = policy.clone();
        less.rules.remove(r);
        all.push(less);
        for c in 0..policy.rules[r].clauses.len() {
            let matches = &policy.rules[r].clauses[c].matches;
            for m in 0..matches.len() {
                if matches.len() > 1 {
                    let mut less = policy.clone();
                    less.rules[r].clauses[c].matches.remove(m);
                    all.push(less);
                }
                let mut less = policy.clone();
                less.rules[r].clauses[c].matches[m] = Match::default();
                all.push(less);
            }
        }
    }
    all
}

/// Every way to take one list out of a match of a DENY policy such that the match still says something.
fn broadened(policy: &Policy) -> Vec<Policy> {
    let clear: [fn(&mut Match); 12] = [
        |m| m.namespaces.clear(),
        |m| m.not_namespaces.clear(),
        |m| m.principals.clear(),
        |m| m.not_principals.clear(),
        |m| m.service_accounts.clear(),
        |m| m.not_service_accounts.clear(),
        |m| m.source_ips.clear(),
        |m| m.not_source_ips.clear(),
        |m| m.destination_ips.clear(),
        |m| m.not_destination_ips.clear(),
        |m| m.destination_ports.clear(),
        |m| m.not_destination_ports.clear(),
    ];
    let mut all = Vec::new();
    for r in 0..policy.rules.len() {
        for c in 0..policy.rules[r].clauses.len() {
            for m in 0..policy.rules[r].clauses[c].matches.len() {
                for clear in clear {
                    let mut less = policy.clone();
                    let one = &mut less.rules[r].clauses[c].matches[m];
                    clear(one);
                    if !one.is_empty() {
                        all.push(less);
                    }
                }
            }
        }
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_evaluator_equals_the_reference(data in proptest::collection::vec(any::<u8>(), 0..200)) {
        crate::fuzz::authorization(&data);
    }

    #[test]
    fn dropping_a_field_of_a_policy_never_widens_access(data in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut bytes = Bytes(&data);
        let facts = bytes.facts();
        let policies = bytes.policies();
        for (index, policy) in policies.iter().enumerate().filter(|(_, p)| !p.dry_run) {
            for less in if policy.action == Action::Allow { narrowed(policy) } else { broadened(policy) } {
                let mut changed = policies.clone();
                changed[index] = less;
                prop_assert!(!evaluate(&changed, &facts) || evaluate(&policies, &facts), "{:#?}", changed);
            }
        }
    }

    #[test]
    fn adding_allow_never_denies_more_and_adding_deny_never_allows_more(
        data in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut bytes = Bytes(&data);
        let facts = bytes.facts();
        let extra = Policy { dry_run: false, ..bytes.policy() };
        let policies = bytes.policies();
        let more: Vec<_> = policies.iter().cloned().chain([extra.clone()]).collect();
        let (before, after) = (evaluate(&policies, &facts), evaluate(&more, &facts));
        let first_allow = !policies.iter().any(|p| p.action == Action::Allow && !p.dry_run);
        match extra.action {
            Action::Deny => prop_assert!(before || !after),
            // The first ALLOW policy of a workload is what closes it; every later one only opens.
            Action::Allow if !first_allow => prop_assert!(after || !before),
            Action::Allow => {}
        }
    }
}

#[test]
fn replays_the_fuzz_corpus() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/authorization");
    let files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).collect();
    assert!(files.len() >= 10, "{} files", files.len());
    files.iter().for_each(|file| crate::fuzz::authorization(&std::fs::read(file).unwrap()));
}
