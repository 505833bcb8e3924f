//! HTTPRoutes: their rules, as they are written. `l7::order` puts those of several objects into the order in which they are tried.

use std::time::Duration;

use mesh_core::l7::order::{Api, Candidate, Origin};
use mesh_core::l7::path::respelled;
use mesh_core::l7::{Condition, HeaderMatch, PathKind, QueryMatch, Retries, RetryOn, Text};

use super::filter::{Reading, value};
use super::notes::Notes;
use super::parts::Parts;
use super::text::{matched_header, pattern};
use super::{Around, Problems};
use crate::index::routing::Route;
use crate::resource::routing::Routed;
use crate::resource::routing::http_route::{self as kind, HttpRoute, Match, Method, Rule};
use crate::resource::routing::values::{Limit, Span};
use crate::resource::{Key, Kind};

/// The rules of a route whose references lead where `route` says.
pub fn rules(
    object: &Routed<HttpRoute>,
    route: &Route,
    around: &Around<'_>,
    problems: &mut Problems,
) -> Vec<Candidate> {
    let key = Key { kind: Kind::HttpRoute, namespace: object.namespace.clone(), name: object.name.clone() };
    let origin = |index| Origin {
        api: Api::Gateway,
        created: object.created,
        namespace: object.namespace.clone(),
        name: object.name.clone(),
        kind: Kind::HttpRoute.name().into(),
        index,
    };
    // A route without rules has one, which takes everything.
    let usual = [Rule::default()];
    let rules = if object.spec.rules.is_empty() { &usual } else { &*object.spec.rules };
    let read = |(index, rule): (usize, &Rule)| {
        let mut notes = Notes::new(key.clone(), problems);
        let reading = Reading { around, route, namespace: &object.namespace, rule: index };
        parts(rule, &reading, &mut notes).finish(origin(index), &around.retries)
    };
    rules.iter().enumerate().map(read).collect()
}

fn parts(rule: &Rule, reading: &Reading<'_>, notes: &mut Notes<'_>) -> Parts {
    let field = format!("spec.rules[{}]", reading.rule);
    let mut parts = Parts::new(rule.name.as_deref().unwrap_or_default(), notes.origin());
    for (index, one) in rule.matches.iter().enumerate() {
        parts.conditions.push(condition(one, &format!("{field}.matches[{index}]"), notes));
    }
    reading.actions(&mut parts, &rule.filters, &rule.backend_refs, notes);
    let (all, each) = rule.timeouts.as_ref().map_or((Limit::Unset, Limit::Unset), kind::Timeouts::limits);
    parts.timeout = all;
    parts.retries = rule.retry.as_ref().map(retries);
    if let Limit::After(time) = each {
        let retries = parts.retries.get_or_insert_with(|| reading.around.retries.clone());
        retries.per_try_timeout = Some(time);
    }
    if rule.session_persistence.is_some() {
        let message = "clients are not kept at one endpoint by a route";
        notes.close(format!("{field}.sessionPersistence"), message, "use `consistentHash` of a DestinationRule");
    }
    parts.closed = notes.closed();
    parts
}

/// What is tried again: these answers, and what had none.
fn retries(written: &kind::Retry) -> Retries {
    let usual = Retries::default();
    if written.attempts == Some(0) {
        return Retries::none();
    }
    let least_pause = written.backoff.as_deref().and_then(Span::parse).map_or(Duration::ZERO, |span| span.0);
    let on = RetryOn { events: RetryOn::RESET, statuses: written.codes.clone(), ..RetryOn::default() };
    Retries { attempts: written.attempts.unwrap_or(usual.attempts), on, least_pause, ..usual }
}

/// One alternative. What cannot be compared is left out of it: the rule, which is closed then, has at least the requests that it was meant for.
fn condition(one: &Match, field: &str, notes: &mut Notes<'_>) -> Condition {
    let path = one.path.clone().unwrap_or_default();
    let text = path.value.as_deref().unwrap_or("/");
    let kind = match path.kind {
        None | Some(kind::PathKind::PathPrefix) => Some(PathKind::Segments(respelled(text).into())),
        Some(kind::PathKind::Exact) => Some(PathKind::Exact(respelled(text).into())),
        Some(kind::PathKind::RegularExpression) => {
            pattern(text, &format!("{field}.path.value"), notes).map(PathKind::Regex)
        }
    };
    let headers = one.headers.iter().enumerate().filter_map(|(index, one)| {
        let field = format!("{field}.headers[{index}]");
        let name = matched_header(&one.name, &format!("{field}.name"), notes)?;
        Some(HeaderMatch { name, value: value(one, &field, notes)?, invert: false })
    });
    let headers = headers.collect();
    let query = one.query_params.iter().enumerate().filter_map(|(index, one)| {
        let field = format!("{field}.queryParams[{index}]");
        Some(QueryMatch { name: one.name.as_str().into(), value: value(one, &field, notes)? })
    });
    let query = query.collect();
    let method = one.method.map(|method| Text::Exact(name(method).into()));
    Condition { path: kind.map(Into::into), method, headers, query, ..Condition::default() }
}

fn name(method: Method) -> &'static str {
    match method {
        Method::Get => "GET",
        Method::Head => "HEAD",
        Method::Post => "POST",
        Method::Put => "PUT",
        Method::Delete => "DELETE",
        Method::Connect => "CONNECT",
        Method::Options => "OPTIONS",
        Method::Trace => "TRACE",
        Method::Patch => "PATCH",
    }
}
