//! A rule that leaves what is done to another object: together they mean the requests that both mean, and what the other says wins.

use mesh_core::ArcStr;
use mesh_core::l7::{Condition, PathKind, PathMatch, Text};

use super::super::parts::{Parts, merged};
use crate::resource::routing::values::Limit;

/// Conditions that may come of one rule that delegates.
pub const MOST_CONDITIONS: usize = 4096;

/// What comes of one rule of the other object. `None`: no request can fit both.
pub fn joined(outer: &Parts, inner: Parts) -> Option<Parts> {
    let mut closed = outer.closed.clone().or(inner.closed);
    let conditions = match (&*outer.conditions, &*inner.conditions) {
        ([], _) => inner.conditions,
        (_, []) => outer.conditions.clone(),
        (some, others) => {
            let mut both = Vec::new();
            let pairs = some.iter().flat_map(|one| others.iter().map(move |other| (one, other)));
            // One more than there may be, so that it is noticed.
            for (one, other) in pairs.take(MOST_CONDITIONS + 1) {
                match both_of(one, other) {
                    Both::Is(condition) => both.push(condition),
                    Both::Never => {}
                    Both::Unclear(condition) => {
                        let why = "the match that is delegated to and that of the rule cannot be compared";
                        closed = closed.or_else(|| Some(why.to_owned()));
                        both.push(condition);
                    }
                }
            }
            both
        }
    };
    if conditions.is_empty() && !(outer.conditions.is_empty()) {
        return None;
    }
    let name = match (outer.name.as_str(), inner.name.as_str()) {
        ("", name) | (name, "") => name.to_owned(),
        (one, two) => format!("{one}-{two}"),
    };
    Some(Parts {
        name,
        origin: inner.origin,
        conditions,
        action: inner.action,
        request: merged(outer.request.clone(), inner.request),
        response: merged(outer.response.clone(), inner.response),
        rewrite: inner.rewrite.or_else(|| outer.rewrite.clone()),
        mirrors: inner.mirrors.or_else(|| outer.mirrors.clone()),
        fault: inner.fault.or_else(|| outer.fault.clone()),
        cors: inner.cors.or_else(|| outer.cors.clone()),
        timeout: if inner.timeout == Limit::Unset { outer.timeout } else { inner.timeout },
        retries: inner.retries.or_else(|| outer.retries.clone()),
        closed,
    })
}

/// What fits two.
enum Both<T> {
    /// Just this.
    Is(T),
    /// Nothing.
    Never,
    /// Some of this.
    Unclear(T),
}

fn both_of(one: &Condition, two: &Condition) -> Both<Condition> {
    let (mut is_never, mut is_unclear) = (false, false);
    let mut note = |found: Both<()>| match found {
        Both::Is(()) => {}
        Both::Never => is_never = true,
        Both::Unclear(()) => is_unclear = true,
    };
    let mut text = |one: &Option<Text>, two: &Option<Text>| keep(one, two, narrower_text, &mut note);
    let (scheme, method) = (text(&one.scheme, &two.scheme), text(&one.method, &two.method));
    let authority = text(&one.authority, &two.authority);
    let path = keep(&one.path, &two.path, narrower_path, &mut note);
    let port = keep(&one.port, &two.port, same, &mut note);
    let source_namespace = keep(&one.source_namespace, &two.source_namespace, same, &mut note);
    let mut source_labels = one.source_labels.clone();
    for (key, value) in &two.source_labels {
        if source_labels.insert(key.clone(), value.clone()).is_some_and(|before| before != *value) {
            note(Both::Never);
        }
    }
    let gateways = gateways(&one.gateways, &two.gateways);
    if gateways.is_empty() && !one.gateways.is_empty() && !two.gateways.is_empty() {
        note(Both::Never);
    }
    let name = match (one.name.as_str(), two.name.as_str()) {
        ("", name) | (name, "") => name.into(),
        (one, two) => ArcStr::from(format!("{one}-{two}")),
    };
    let (headers, query) = ([&*one.headers, &two.headers].concat(), [&*one.query, &two.query].concat());
    let both = Condition {
        name,
        path,
        scheme,
        method,
        authority,
        headers,
        query,
        port,
        gateways,
        source_labels,
        source_namespace,
    };
    match (is_never, is_unclear) {
        (true, _) => Both::Never,
        (false, true) => Both::Unclear(both),
        (false, false) => Both::Is(both),
    }
}

/// The narrower of two, if both say something.
fn keep<T: Clone>(
    one: &Option<T>,
    two: &Option<T>,
    narrower: impl Fn(&T, &T) -> Both<T>,
    note: &mut impl FnMut(Both<()>),
) -> Option<T> {
    let (Some(first), Some(second)) = (one, two) else { return one.clone().or_else(|| two.clone()) };
    let (found, kept) = match narrower(first, second) {
        Both::Is(kept) => (Both::Is(()), kept),
        Both::Never => (Both::Never, first.clone()),
        Both::Unclear(kept) => (Both::Unclear(()), kept),
    };
    note(found);
    Some(kept)
}

fn same<T: Clone + PartialEq>(one: &T, two: &T) -> Both<T> {
    if one == two { Both::Is(one.clone()) } else { Both::Never }
}

fn gateways(one: &[ArcStr], two: &[ArcStr]) -> Vec<ArcStr> {
    match (one, two) {
        ([], all) | (all, []) => all.to_vec(),
        (some, others) => some.iter().filter(|gateway| others.contains(gateway)).cloned().collect(),
    }
}

fn narrower_text(one: &Text, two: &Text) -> Both<Text> {
    match (one, two) {
        (Text::Present, other) | (other, Text::Present) => Both::Is(other.clone()),
        (Text::Exact(text), other) | (other, Text::Exact(text)) => match other.matches(text.as_bytes()) {
            true => Both::Is(Text::Exact(text.clone())),
            false => Both::Never,
        },
        (Text::Prefix(one), Text::Prefix(two)) => {
            match (one.starts_with(two.as_str()), two.starts_with(one.as_str())) {
                (true, _) => Both::Is(Text::Prefix(one.clone())),
                (_, true) => Both::Is(Text::Prefix(two.clone())),
                _ => Both::Never,
            }
        }
        (one, two) if one == two => Both::Is(one.clone()),
        (one, _) => Both::Unclear(one.clone()),
    }
}

fn narrower_path(one: &PathMatch, two: &PathMatch) -> Both<PathMatch> {
    use PathKind::{Exact, Prefix};
    if one == two {
        return Both::Is(one.clone());
    }
    let is_within = |inner: &PathMatch, outer: &PathMatch| match (&inner.kind, &outer.kind) {
        // A text that may be in either case is within one that may not only if it has no letters; that is not worth a rule.
        _ if inner.ignore_case && !outer.ignore_case => None,
        (Exact(text), _) => Some(outer.matches(text)),
        (Prefix(text), Prefix(_)) => Some(outer.matches(text)),
        (Prefix(_), Exact(_)) => Some(false),
        _ => None,
    };
    match (is_within(one, two), is_within(two, one)) {
        (Some(true), _) => Both::Is(one.clone()),
        (_, Some(true)) => Both::Is(two.clone()),
        // One that is exact and not within the other fits nothing of it.
        (Some(false), _) if matches!(one.kind, Exact(_)) => Both::Never,
        (_, Some(false)) if matches!(two.kind, Exact(_)) => Both::Never,
        (Some(false), Some(false)) => Both::Never,
        _ => Both::Unclear(one.clone()),
    }
}
