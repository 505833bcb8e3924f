//! Which of several rules for one host comes first: the Gateway API's order, in which the more specific match wins over the older route, and Istio's, in
//! which a VirtualService's rules are tried as they are written. Pure: the same input in any order gives the same table, in every replica.

use std::{cmp::Reverse, collections::BTreeMap, sync::Arc};

use arcstr::ArcStr;

use super::{Condition, Handling, HostPattern, PathKind, Rule, VirtualHost};

/// Whose kind an object is. Of two for one host the first counts, and the other does nothing there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Api {
    /// GRPCRoute and HTTPRoute.
    Gateway,
    /// VirtualService.
    Istio,
}

/// Where a rule is written. Smaller is earlier: what does not say its age, then the oldest, then the first by name, then the first in the object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Origin {
    /// Whose kind it is.
    pub api: Api,
    /// When the object was made, in seconds of UNIX time.
    pub created: Option<i64>,
    /// Its namespace.
    pub namespace: ArcStr,
    /// Its name.
    pub name: ArcStr,
    /// Its kind, of two with one name.
    pub kind: ArcStr,
    /// Which of its rules it is.
    pub index: usize,
}

/// A rule, and where it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Where.
    pub origin: Origin,
    /// Alternatives; none means everything.
    pub conditions: Vec<Condition>,
    /// What is done.
    pub handling: Arc<Handling>,
}

/// Puts the rules for one host into the order in which they are tried. Of two APIs only the Gateway API's stay.
#[must_use]
pub fn arrange(mut candidates: Vec<Candidate>) -> Vec<Rule> {
    candidates.sort_by(|a, b| a.origin.cmp(&b.origin));
    match candidates.first().map(|first| first.origin.api) {
        None => Vec::new(),
        Some(Api::Istio) => as_written(candidates),
        Some(Api::Gateway) => {
            candidates.retain(|candidate| candidate.origin.api == Api::Gateway);
            by_match(candidates)
        }
    }
}

/// Each alternative is a rule of its own, because another route's may come between two of one rule.
fn by_match(candidates: Vec<Candidate>) -> Vec<Rule> {
    let mut rules = Vec::new();
    for Candidate { conditions, handling, .. } in candidates {
        if conditions.is_empty() {
            rules.push(Rule { conditions: Vec::new(), handling: Arc::clone(&handling) });
        }
        let single = |condition| Rule { conditions: vec![condition], handling: Arc::clone(&handling) };
        rules.extend(conditions.into_iter().map(single));
    }
    // They are in the order of their origins, and sorting leaves equals so.
    rules.sort_by_key(|rule| rule.conditions.first().map_or_else(|| rank(&Condition::default()), rank));
    rules
}

/// What comes first of what a path, a method, headers and parameters say; smaller is first.
type Rank = (PathRank, bool, Reverse<usize>, Reverse<usize>);

/// Exact paths, then the longest prefix, then patterns, then every path. The Gateway API leaves patterns open; so do we as Istio does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum PathRank {
    Exact,
    Prefix(Reverse<usize>),
    Pattern(Reverse<usize>),
    Any,
}

fn rank(condition: &Condition) -> Rank {
    let path = match condition.path.as_ref().map(|path| &path.kind) {
        None => PathRank::Any,
        Some(PathKind::Exact(_)) => PathRank::Exact,
        Some(PathKind::Regex(pattern)) => PathRank::Pattern(Reverse(pattern.text().len())),
        Some(PathKind::Prefix(text) | PathKind::Segments(text)) => {
            match text.strip_suffix('/').unwrap_or(text).chars().count() {
                0 => PathRank::Any,
                length => PathRank::Prefix(Reverse(length)),
            }
        }
    };
    (path, condition.method.is_none(), Reverse(condition.headers.len()), Reverse(condition.query.len()))
}

/// As they are written. Of several objects what takes everything comes last, or the others would never be asked.
fn as_written(candidates: Vec<Candidate>) -> Vec<Rule> {
    let (mut rules, mut last) = (Vec::new(), Vec::new());
    let mut ended: Option<(ArcStr, ArcStr)> = None;
    for Candidate { origin, mut conditions, handling } in candidates {
        let object = (origin.namespace, origin.name);
        if ended.as_ref() == Some(&object) {
            continue;
        }
        // Each alternative for itself, as in Istio: those before the one that takes all are asked in their turn.
        let always = conditions.iter().position(Condition::is_always);
        let rest = always.map(|at| conditions.split_off(at));
        if conditions.is_empty() || rest.is_some() {
            ended = Some(object);
            last.push(Rule {
                conditions: rest.into_iter().flatten().take(1).collect(),
                handling: Arc::clone(&handling),
            });
        }
        if !conditions.is_empty() {
            rules.push(Rule { conditions, handling });
        }
    }
    rules.extend(last);
    rules
}

/// Virtual hosts of a listener: for each name the rules of all that name it. A request that no rule of a name means goes on to less specific ones, if the
/// name is the Gateway API's.
#[must_use]
pub fn assemble(candidates: &[(Vec<HostPattern>, Candidate)]) -> Vec<VirtualHost> {
    let mut by_host: BTreeMap<&HostPattern, Vec<Candidate>> = BTreeMap::new();
    for (hosts, candidate) in candidates {
        for host in hosts {
            let of_host = by_host.entry(host).or_default();
            if !of_host.contains(candidate) {
                of_host.push(candidate.clone());
            }
        }
    }
    let host = |(host, of_host): (&HostPattern, Vec<Candidate>)| VirtualHost {
        name: host.to_string().into(),
        hosts: vec![host.clone()],
        falls_through: of_host.iter().any(|candidate| candidate.origin.api == Api::Gateway),
        rules: arrange(of_host),
        ..VirtualHost::default()
    };
    by_host.into_iter().map(host).collect()
}
