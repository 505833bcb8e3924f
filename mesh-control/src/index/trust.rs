//! Trust domains that mean one mesh: its own, and the aliases of the mesh settings. Policies are told of all of them where they name one, when they are made for
//! agents and waypoints, which compare texts and know of no aliases. As in Istio `cluster.local` in a policy is the mesh's own, whatever that is called.
//!
//! | written | means |
//! |---|---|
//! | `a.example/ns/x/sa/y`, `a.example/*` | the same in each domain, if `a.example` is one of them |
//! | `a.ex*`, `*.example/ns/x/sa/y` | what it did, and the other domains if it means one of them |
//! | `*`, `*/ns/x/sa/y`, `*/sa/y` | any domain, as ever |

use mesh_core::l7::policy::{self as l7, Attribute, List, When};
use mesh_core::policy::{Rule, StringMatch};
use mesh_core::{ArcStr, TrustDomain};

use super::Settings;
use crate::diagnosis::Problem;

/// Values of one list of a policy that waypoints read.
const MOST: usize = 10_000;

/// The mesh's own domain, then its aliases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domains(Vec<TrustDomain>);

impl Domains {
    /// Those of the mesh.
    pub fn of(settings: &Settings) -> Self {
        let mut all = vec![settings.trust_domain.clone()];
        let aliases = settings.aliases.iter().filter(|alias| **alias != settings.trust_domain);
        all.extend(aliases.cloned());
        Self(all)
    }

    /// Has rules of agents mean all of them.
    pub fn fill(&self, rules: &mut [Rule]) {
        if self.is_usual() {
            return;
        }
        for one in rules.iter_mut().flat_map(|rule| &mut rule.clauses).flat_map(|clause| &mut clause.matches) {
            self.principals(&mut one.principals);
            self.principals(&mut one.not_principals);
        }
    }

    /// Has rules of waypoints mean all of them.
    pub fn fill_l7(&self, rules: &mut [l7::Rule]) {
        if self.is_usual() {
            return;
        }
        for rule in rules {
            for source in &mut rule.from {
                self.both(&mut source.principals, Self::principals);
                self.both(&mut source.trust_domains, Self::names);
            }
            for condition in &mut rule.when {
                match condition {
                    When::Text(Attribute::Principal, list) => self.both(list, Self::principals),
                    When::Text(Attribute::TrustDomain, list) => self.both(list, Self::names),
                    _ => {}
                }
            }
        }
    }

    /// The first list of a policy's rules that waypoints do not read, so that they take the policy for one that refuses everything.
    pub fn too_long(&self, rules: &[l7::Rule]) -> Option<TooLong> {
        let field =
            |Found { rule, part, name, .. }: &Found| format!("spec.rules[{rule}].{}[{}].{name}", part.0, part.1);
        self.too_long_at(rules, field)
    }

    /// The same of the matches of a RateLimit that stand at `at`, which name principals and no domains.
    pub fn too_long_match(&self, rules: &[l7::Rule], at: &str) -> Option<TooLong> {
        self.too_long_at(rules, |found| format!("{at}.match[{}].principals", found.rule))
    }

    fn too_long_at(&self, rules: &[l7::Rule], field: impl Fn(&Found) -> String) -> Option<TooLong> {
        // Most are far from it, and nothing is made to find that out.
        if lists(rules).all(|list| list.count.saturating_mul(self.0.len()) <= MOST) {
            return None;
        }
        let mut filled = rules.to_vec();
        self.fill_l7(&mut filled);
        let list = lists(&filled).find(|list| list.count > MOST)?;
        Some(TooLong { field: field(&list), count: list.count, domains: self.0.len() })
    }

    /// There is one domain, and policies call it what it is called: nothing changes.
    fn is_usual(&self) -> bool {
        *self.0 == [TrustDomain::default()]
    }

    fn both(&self, list: &mut List<StringMatch>, fill: fn(&Self, &mut Vec<StringMatch>)) {
        fill(self, &mut list.is);
        fill(self, &mut list.not);
    }

    fn principals(&self, list: &mut Vec<StringMatch>) {
        each(list, |pattern| self.principal(pattern));
    }

    fn names(&self, list: &mut Vec<StringMatch>) {
        each(list, |pattern| self.name(pattern));
    }

    /// What an identity without its scheme is compared with instead of `pattern`.
    fn principal(&self, pattern: &StringMatch) -> Vec<StringMatch> {
        let of_each = |rest: &str, wrap: fn(ArcStr) -> StringMatch| {
            self.0.iter().map(|domain| wrap(format!("{domain}/{rest}").into())).collect()
        };
        match pattern {
            StringMatch::Exact(text) | StringMatch::Prefix(text) => match text.split_once('/') {
                Some((domain, rest)) if self.is_own(domain) => match pattern {
                    StringMatch::Prefix(_) => of_each(rest, StringMatch::Prefix),
                    _ => of_each(rest, StringMatch::Exact),
                },
                // Only the beginning of a domain.
                None if matches!(pattern, StringMatch::Prefix(_)) => self.and_others(
                    pattern,
                    |name| name.starts_with(text.as_str()),
                    |name| StringMatch::Prefix(format!("{name}/").into()),
                ),
                _ => vec![pattern.clone()],
            },
            StringMatch::Suffix(text) => match text.split('/').collect::<Vec<_>>().as_slice() {
                // The end of a domain, and then all of the path.
                [end, "ns", namespace, "sa", account] if !end.is_empty() => self.and_others(
                    pattern,
                    |name| name.ends_with(end),
                    |name| StringMatch::Exact(format!("{name}/ns/{namespace}/sa/{account}").into()),
                ),
                _ => vec![pattern.clone()],
            },
            StringMatch::Presence => vec![StringMatch::Presence],
        }
    }

    /// What a trust domain is compared with instead of `pattern`.
    fn name(&self, pattern: &StringMatch) -> Vec<StringMatch> {
        let exact = |name: &str| StringMatch::Exact(name.into());
        match pattern {
            StringMatch::Exact(text) if self.is_own(text) => self.0.iter().map(|one| exact(one.as_str())).collect(),
            StringMatch::Prefix(_) | StringMatch::Suffix(_) => {
                self.and_others(pattern, |name| pattern.matches(name), exact)
            }
            StringMatch::Exact(_) | StringMatch::Presence => vec![pattern.clone()],
        }
    }

    /// A pattern as it is, and if it means one of the domains what means the others of them.
    fn and_others(
        &self,
        pattern: &StringMatch,
        means: impl Fn(&str) -> bool,
        other: impl Fn(&str) -> StringMatch,
    ) -> Vec<StringMatch> {
        let (meant, others): (Vec<_>, Vec<_>) = self.0.iter().map(TrustDomain::as_str).partition(|name| means(name));
        let others = others.into_iter().filter(|_| !meant.is_empty()).map(other);
        std::iter::once(pattern.clone()).chain(others).collect()
    }

    fn is_own(&self, domain: &str) -> bool {
        domain == TrustDomain::default().as_str() || self.0.iter().any(|own| own.as_str() == domain)
    }
}

/// A list of a policy that is longer than waypoints read any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TooLong {
    /// Where it is written.
    pub field: String,
    count: usize,
    domains: usize,
}

impl TooLong {
    /// What is said of it.
    pub fn problem(&self) -> Problem {
        let Self { field, count, domains } = self;
        let of = match domains {
            1 => String::new(),
            _ => format!(" with what they mean in each of {domains} trust domains of the mesh settings"),
        };
        let message =
            format!("{count} values{of}, and waypoints read {MOST}: they refuse all requests that it is bound to");
        Problem::error(field.clone(), message).help("write patterns, or several policies")
    }
}

/// One list of those that have values of trust domains.
struct Found {
    rule: usize,
    part: (&'static str, usize),
    name: &'static str,
    count: usize,
}

fn lists(rules: &[l7::Rule]) -> impl Iterator<Item = Found> {
    rules.iter().enumerate().flat_map(|(rule, one)| {
        let of_sources = one.from.iter().enumerate().flat_map(|(at, source)| {
            let (principals, domains) = (&source.principals, &source.trust_domains);
            [
                ("source.principals", principals.is.len()),
                ("source.notPrincipals", principals.not.len()),
                ("source.trustDomains", domains.is.len()),
                ("source.notTrustDomains", domains.not.len()),
            ]
            .map(|(name, count)| (("from", at), name, count))
        });
        let of_conditions = one.when.iter().enumerate().flat_map(|(at, condition)| {
            let list = match condition {
                When::Text(Attribute::Principal | Attribute::TrustDomain, list) => Some(list),
                _ => None,
            };
            let lengths = list.map(|list| [("values", list.is.len()), ("notValues", list.not.len())]);
            lengths.into_iter().flatten().map(move |(name, count)| (("when", at), name, count))
        });
        let all = of_sources.chain(of_conditions);
        all.map(move |(part, name, count)| Found { rule, part, name, count })
    })
}

/// Each value once: of two that name two of the domains the same comes.
fn each(list: &mut Vec<StringMatch>, of: impl Fn(&StringMatch) -> Vec<StringMatch>) {
    let mut all: Vec<StringMatch> = Vec::with_capacity(list.len());
    let mut known = std::collections::HashSet::new();
    all.extend(list.iter().flat_map(of).filter(|one| known.insert(one.clone())));
    *list = all;
}

#[cfg(test)]
mod tests {
    use mesh_core::policy::{Clause, Match};

    use super::*;

    fn domains(own: &str, aliases: &[&str]) -> Domains {
        let aliases = aliases.iter().map(|name| name.parse().unwrap()).collect();
        Domains::of(&Settings { trust_domain: own.parse().unwrap(), aliases, ..Settings::default() })
    }

    /// As it is written.
    fn pattern(text: &str) -> StringMatch {
        match (text.strip_prefix('*'), text.strip_suffix('*')) {
            (Some(""), _) => StringMatch::Presence,
            (Some(end), _) => StringMatch::Suffix(end.into()),
            (None, Some(start)) => StringMatch::Prefix(start.into()),
            (None, None) => StringMatch::Exact(text.into()),
        }
    }

    fn patterns(texts: &[&str]) -> Vec<StringMatch> {
        texts.iter().map(|text| pattern(text)).collect()
    }

    #[test]
    fn features_AP_10_what_a_principal_means() {
        let two = || domains("new.example", &["old.example", "new.example"]);
        for (domains, written, expected) in [
            (two(), &["new.example/ns/a/sa/b"][..], &["new.example/ns/a/sa/b", "old.example/ns/a/sa/b"][..]),
            (two(), &["old.example/ns/a/sa/b"], &["new.example/ns/a/sa/b", "old.example/ns/a/sa/b"]),
            // Istio's name for whatever the mesh's own is.
            (two(), &["cluster.local/ns/a/sa/b"], &["new.example/ns/a/sa/b", "old.example/ns/a/sa/b"]),
            (domains("new.example", &[]), &["cluster.local/ns/a/sa/b"], &["new.example/ns/a/sa/b"]),
            (domains("cluster.local", &[]), &["cluster.local/ns/a/sa/b"], &["cluster.local/ns/a/sa/b"]),
            (
                domains("cluster.local", &["old.example"]),
                &["cluster.local/ns/a/sa/b"],
                &["cluster.local/ns/a/sa/b", "old.example/ns/a/sa/b"],
            ),
            // Strangers stay strangers, also those whose names begin or end so.
            (two(), &["far.example/ns/a/sa/b"], &["far.example/ns/a/sa/b"]),
            (two(), &["new.example.com/ns/a/sa/b"], &["new.example.com/ns/a/sa/b"]),
            (two(), &["old.example/*"], &["new.example/*", "old.example/*"]),
            (two(), &["old.example/ns/a/*"], &["new.example/ns/a/*", "old.example/ns/a/*"]),
            (two(), &["old*"], &["old*", "new.example/*"]),
            (two(), &["far*"], &["far*"]),
            (two(), &["*old.example/ns/a/sa/b"], &["*old.example/ns/a/sa/b", "new.example/ns/a/sa/b"]),
            (two(), &["*.example/ns/a/sa/b"], &["*.example/ns/a/sa/b"]),
            (two(), &["*far.example/ns/a/sa/b"], &["*far.example/ns/a/sa/b"]),
            (two(), &["*", "*/ns/a/sa/b", "*/sa/b", "*/b"], &["*", "*/ns/a/sa/b", "*/sa/b", "*/b"]),
            (two(), &["spiffe"], &["spiffe"]),
            // Each once.
            (
                two(),
                &["old.example/ns/a/sa/b", "new.example/ns/a/sa/b"],
                &["new.example/ns/a/sa/b", "old.example/ns/a/sa/b"],
            ),
        ] {
            let mut rules = [Rule {
                clauses: vec![Clause {
                    matches: vec![Match {
                        principals: patterns(written),
                        not_principals: patterns(written),
                        ..Match::default()
                    }],
                }],
            }];
            domains.fill(&mut rules);
            let found = &rules[0].clauses[0].matches[0];
            assert_eq!(found.principals, patterns(expected), "{written:?}");
            assert_eq!(found.not_principals, patterns(expected), "{written:?}");
            let list = |texts| List { is: patterns(texts), not: patterns(texts) };
            let mut rules = [l7::Rule {
                from: vec![l7::Source { principals: list(written), ..l7::Source::default() }],
                when: vec![When::Text(Attribute::Principal, list(written)), When::Text(Attribute::Host, list(written))],
                ..l7::Rule::default()
            }];
            domains.fill_l7(&mut rules);
            assert_eq!(rules[0].from[0].principals, list(expected), "{written:?}");
            let host = When::Text(Attribute::Host, list(written));
            assert_eq!(rules[0].when, [When::Text(Attribute::Principal, list(expected)), host], "{written:?}");
        }
    }

    #[test]
    fn features_AP_10_what_the_name_of_a_trust_domain_means() {
        let domains = domains("new.example", &["old.example"]);
        for (written, expected) in [
            ("old.example", &["new.example", "old.example"][..]),
            ("cluster.local", &["new.example", "old.example"]),
            ("far.example", &["far.example"]),
            ("old*", &["old*", "new.example"]),
            ("*d.example", &["*d.example", "new.example"]),
            ("*.example", &["*.example"]),
            ("*", &["*"]),
        ] {
            let list = |texts: &[&str]| List { is: patterns(texts), not: Vec::new() };
            let mut rules = [l7::Rule {
                from: vec![l7::Source { trust_domains: list(&[written]), ..l7::Source::default() }],
                when: vec![When::Text(Attribute::TrustDomain, list(&[written]))],
                ..l7::Rule::default()
            }];
            domains.fill_l7(&mut rules);
            assert_eq!(rules[0].from[0].trust_domains, list(expected), "{written}");
            assert_eq!(rules[0].when, [When::Text(Attribute::TrustDomain, list(expected))], "{written}");
        }
    }

    #[test]
    fn features_AP_10_who_has_more_values_than_waypoints_read_is_told() {
        let aliases: Vec<String> = (0..16).map(|n| format!("a{n}.example")).collect();
        let aliases: Vec<&str> = aliases.iter().map(String::as_str).collect();
        let (usual, many) = (domains("cluster.local", &[]), domains("new.example", &aliases));
        let written = |count: usize| -> List<StringMatch> {
            let one = |n: usize| pattern(&format!("cluster.local/ns/a/sa/b{n}"));
            List { is: (0..count).map(one).collect(), not: Vec::new() }
        };
        let not = |count: usize| List { is: Vec::new(), not: written(count).is };
        let source = |principals| l7::Rule {
            from: vec![l7::Source::default(), l7::Source { principals, ..l7::Source::default() }],
            ..l7::Rule::default()
        };
        let when = |list| l7::Rule { when: vec![When::Text(Attribute::Principal, list)], ..l7::Rule::default() };
        for (domains, rule, expected) in [
            (&usual, source(written(MOST)), None),
            (&usual, source(written(MOST + 1)), Some(("from[1].source.principals", MOST + 1))),
            (&many, source(written(588)), None),
            (&many, source(written(600)), Some(("from[1].source.principals", 10_200))),
            (&many, source(not(600)), Some(("from[1].source.notPrincipals", 10_200))),
            (&many, when(not(600)), Some(("when[0].notValues", 10_200))),
        ] {
            // What is said is true: such a policy is one that refuses everything where it is read.
            let name = mesh_core::NamespacedName::new("shop", "p");
            let mut rules = vec![l7::Rule { from: vec![], ..when(written(1)) }, rule];
            let found = domains.too_long(&rules);
            let expected = expected.map(|(field, count)| (format!("spec.rules[1].{field}"), count));
            assert_eq!(found.map(|found| (found.field, found.count)), expected);
            domains.fill_l7(&mut rules);
            rules[1].from.retain(|source| *source != l7::Source::default());
            let policy = l7::Policy {
                name,
                target: mesh_core::l7::security::Target::All,
                action: l7::Action::Allow,
                rules,
                dry_run: false,
            };
            let security = mesh_core::l7::Security { policies: vec![policy.clone().into()], ..Default::default() };
            let read = mesh_proto::convert::security(&mesh_proto::convert::encode_security(&security)).unwrap();
            let is_read = *read.security.policies[0] == policy;
            assert_eq!(is_read, expected.is_none());
        }
    }
}
