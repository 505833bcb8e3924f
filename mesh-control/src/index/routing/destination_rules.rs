//! DestinationRules beside the other objects: of which host they are, which subsets a route can name, and which names of certificates nobody looks at without them.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_core::Identity;

use super::findings::{Findings, Flaw};
use super::hosts::{Hosts, see_both, sees};
use super::order::age;
use crate::diagnosis::Problem;
use crate::resource::routing::destination_rule::{Tls, TlsMode};
use crate::resource::routing::{DestinationRule, Routed, Routes};
use crate::resource::{Key, Kind};

type Rule = Arc<Routed<DestinationRule>>;

/// All of them, by the full name of their host: what a route names is found without a look at all the others.
#[derive(Debug)]
pub struct Rules<'a>(BTreeMap<String, Vec<&'a Rule>>);

impl<'a> Rules<'a> {
    /// Those that there are.
    pub fn new(routes: &'a Routes, hosts: &Hosts<'_>) -> Self {
        let mut by_host: BTreeMap<String, Vec<&Rule>> = BTreeMap::new();
        for rule in routes.destination_rules.values() {
            by_host.entry(hosts.full(&rule.spec.host, &rule.namespace)).or_default().push(rule);
        }
        Self(by_host)
    }

    /// Those of a host that count for clients of `namespace`, of which the first that says something counts: the client's own, else those of where the host
    /// lives, else those of everybody; of these the name, else the longest wildcard. Those for some of the client's pods come first.
    pub fn of_host(&self, full: &str, namespace: &str, home: &str, hosts: &Hosts<'_>) -> Vec<&'a Rule> {
        let seen: Vec<&'a Rule> =
            self.named(full).filter(|rule| sees(&rule.spec.export_to, &rule.namespace, namespace)).collect();
        let is_of = |rule: &Rule, rank: usize| match rank {
            0 => &*rule.namespace == namespace,
            1 => &*rule.namespace == home,
            _ => hosts.is_root(&rule.namespace),
        };
        for rank in 0..3 {
            let of_rank: Vec<&'a Rule> = seen.iter().filter(|rule| is_of(rule, rank)).copied().collect();
            // They are in the order of their names' length.
            let Some(nearest) = of_rank.first().map(|rule| hosts.full(&rule.spec.host, &rule.namespace)) else {
                continue;
            };
            let fits = |rule: &&Rule| hosts.full(&rule.spec.host, &rule.namespace) == nearest;
            let mut fitting: Vec<&'a Rule> = of_rank.into_iter().filter(|rule| fits(rule)).collect();
            fitting.sort_by_key(|rule| (rule.spec.workload_selector.is_none(), age(rule)));
            return fitting;
        }
        Vec::new()
    }

    /// Those whose host means `full`, whoever sees them, the nearest name first.
    pub fn named(&self, full: &str) -> impl Iterator<Item = &'a Rule> + '_ {
        // A wildcard is the whole first label, or all there is.
        let wildcards = full.match_indices('.').map(|(at, _)| format!("*{}", &full[at..])).chain(["*".to_owned()]);
        let names: Vec<String> =
            std::iter::once(full.to_owned()).chain(wildcards.filter(|name| name != full)).collect();
        names.into_iter().flat_map(|name| self.0.get(&name).into_iter().flatten().copied())
    }

    /// The subsets of a host that a route of `namespace` can name.
    pub fn subsets(&self, full: &str, namespace: &str, home: &str, hosts: &Hosts<'_>) -> Vec<&'a str> {
        // Their own reading says that those of wildcards cannot be named.
        let rules =
            self.of_host(full, namespace, home, hosts).into_iter().filter(|rule| !rule.spec.host.starts_with('*'));
        rules.flat_map(|rule| &rule.spec.subsets).map(|subset| subset.name.as_str()).collect()
    }
}

/// Tells them what does not fit together.
pub fn check(routes: &Routes, rules: &Rules<'_>, hosts: &Hosts<'_>, findings: &mut Findings) {
    unverified(routes, rules, hosts, findings);
    for rule in routes.destination_rules.values() {
        let full = hosts.full(&rule.spec.host, &rule.namespace);
        if hosts.has_any(&full, &rule.namespace) {
            continue;
        }
        if hosts.is_unheard(Kind::ServiceEntry) {
            findings.add(&key(rule), Flaw::Unknown);
        } else {
            let message = hosts.ignored(&full, &rule.namespace);
            let problem = Problem::warning("spec.host", message.unwrap_or_else(|| hosts.nothing(&full)));
            let help = hosts.meant(&full, &rule.namespace);
            let help = help.unwrap_or_else(|| "it changes nothing before there is one".into());
            findings.add(&key(rule), problem.help(help));
        }
    }
    for (full, rules) in &rules.0 {
        let mut rules = rules.clone();
        rules.sort_by_key(|rule| age(rule));
        for (index, rule) in rules.iter().enumerate() {
            // Of one namespace they are taken together; between namespaces the client's decides.
            let before = rules[..index].iter().filter(|other| other.namespace == rule.namespace).filter(|other| {
                let of = |rule: &'_ Rule| (rule.spec.export_to.clone(), rule.namespace.clone());
                let ((one, own), (two, other)) = (of(rule), of(other));
                see_both((&one, &own), (&two, &other))
            });
            for other in before {
                for (at, subset) in rule.spec.subsets.iter().enumerate() {
                    if other.spec.subsets.iter().any(|known| known.name == subset.name) {
                        let message = format!(
                            "DestinationRule {}/{} has a subset {:?} of {full}, too",
                            other.namespace, other.name, subset.name
                        );
                        let problem = Problem::warning(format!("spec.subsets[{at}].name"), message);
                        findings.add(&key(rule), problem.help("the oldest counts, then the first by name"));
                    }
                }
                if rule.spec.traffic_policy.is_some() && other.spec.traffic_policy.is_some() {
                    let message =
                        format!("that of DestinationRule {}/{} counts for {full}", other.namespace, other.name);
                    let problem = Problem::warning("spec.trafficPolicy", message);
                    findings.add(&key(rule), problem.help("the oldest counts, then the first by name"));
                }
            }
        }
    }
}

/// Identities of the mesh are verified without a rule; other names are in certificates that only a rule has anybody look at.
fn unverified(routes: &Routes, rules: &Rules<'_>, hosts: &Hosts<'_>, findings: &mut Findings) {
    for entry in routes.service_entries.values() {
        let mut names = entry.spec.subject_alt_names.iter().enumerate();
        let Some((index, name)) = names.find(|(_, name)| name.parse::<Identity>().is_err()) else { continue };
        let is_looked_at = |host: &String| rules.named(&host.to_ascii_lowercase()).any(|rule| begins_tls(&rule.spec));
        if entry.spec.hosts.iter().any(is_looked_at) {
            continue;
        }
        let key = Key { kind: Kind::ServiceEntry, namespace: entry.namespace.clone(), name: entry.name.clone() };
        if hosts.is_unheard(Kind::DestinationRule) {
            findings.add(&key, Flaw::Unknown);
            continue;
        }
        let message = format!("{name:?} is not verified: no DestinationRule begins TLS towards its hosts");
        let problem = Problem::warning(format!("spec.subjectAltNames[{index}]"), message);
        findings.add(&key, problem.help("write one with `tls: {mode: SIMPLE}`: gateways and waypoints heed it"));
    }
}

fn begins_tls(rule: &DestinationRule) -> bool {
    let begins =
        |tls: &Option<Tls>| tls.as_ref().is_some_and(|tls| matches!(tls.mode, Some(TlsMode::Simple | TlsMode::Mutual)));
    let of_subsets = rule.subsets.iter().filter_map(|subset| subset.traffic_policy.as_ref());
    let mut policies = rule.traffic_policy.iter().chain(of_subsets);
    policies.any(|policy| begins(&policy.tls) || policy.port_level_settings.iter().any(|port| begins(&port.tls)))
}

fn key(rule: &Rule) -> Key {
    Key { kind: Kind::DestinationRule, namespace: rule.namespace.clone(), name: rule.name.clone() }
}
