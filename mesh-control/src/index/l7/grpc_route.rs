//! GRPCRoutes: their rules, as requests of HTTP/2 whose path is a service and a method.

use mesh_core::l7::order::{Api, Candidate, Origin};
use mesh_core::l7::{Condition, HeaderMatch, PathKind};

use super::filter::{Reading, value};
use super::notes::Notes;
use super::parts::Parts;
use super::text::{matched_header, pattern};
use super::{Around, Problems};
use crate::index::routing::Route;
use crate::resource::routing::Routed;
use crate::resource::routing::http_route::ValueKind;
use crate::resource::routing::routes::{GrpcMatch, GrpcMethod, GrpcRoute, GrpcRule};
use crate::resource::{Key, Kind};

/// The rules of a route whose references lead where `route` says.
pub fn rules(
    object: &Routed<GrpcRoute>,
    route: &Route,
    around: &Around<'_>,
    problems: &mut Problems,
) -> Vec<Candidate> {
    let key = Key { kind: Kind::GrpcRoute, namespace: object.namespace.clone(), name: object.name.clone() };
    let origin = |index| Origin {
        api: Api::Gateway,
        created: object.created,
        namespace: object.namespace.clone(),
        name: object.name.clone(),
        kind: Kind::GrpcRoute.name().into(),
        index,
    };
    let read = |(index, rule): (usize, &GrpcRule)| {
        let mut notes = Notes::new(key.clone(), problems);
        let reading = Reading { around, route, namespace: &object.namespace, rule: index };
        parts(rule, &reading, &mut notes).finish(origin(index), &around.retries)
    };
    object.spec.rules.iter().enumerate().map(read).collect()
}

fn parts(rule: &GrpcRule, reading: &Reading<'_>, notes: &mut Notes<'_>) -> Parts {
    let field = format!("spec.rules[{}]", reading.rule);
    let mut parts = Parts::new(rule.name.as_deref().unwrap_or_default(), notes.origin());
    for (index, one) in rule.matches.iter().enumerate() {
        parts.conditions.push(condition(one, &format!("{field}.matches[{index}]"), notes));
    }
    reading.actions(&mut parts, &rule.filters, &rule.backend_refs, notes);
    if rule.session_persistence.is_some() {
        let message = "clients are not kept at one endpoint by a route";
        notes.close(format!("{field}.sessionPersistence"), message, "use `consistentHash` of a DestinationRule");
    }
    parts.closed = notes.closed();
    parts
}

fn condition(one: &GrpcMatch, field: &str, notes: &mut Notes<'_>) -> Condition {
    let path = one.method.as_ref().and_then(|method| path(method, &format!("{field}.method"), notes));
    let headers = one.headers.iter().enumerate().filter_map(|(index, one)| {
        let field = format!("{field}.headers[{index}]");
        let name = matched_header(&one.name, &format!("{field}.name"), notes)?;
        Some(HeaderMatch { name, value: value(one, &field, notes)?, invert: false })
    });
    Condition { path: path.map(Into::into), headers: headers.collect(), ..Condition::default() }
}

/// The paths of a method's calls.
fn path(method: &GrpcMethod, field: &str, notes: &mut Notes<'_>) -> Option<PathKind> {
    const ANY: &str = "[^/]+";
    let is_pattern = method.kind == Some(ValueKind::RegularExpression);
    let text = match (is_pattern, &method.service, &method.method) {
        (_, None, None) => return None,
        (false, Some(service), Some(method)) => return Some(PathKind::Exact(format!("/{service}/{method}").into())),
        (false, Some(service), None) => return Some(PathKind::Prefix(format!("/{service}/").into())),
        (false, None, Some(method)) => format!("/{ANY}/{}", regex::escape(method)),
        (true, service, method) => {
            let part =
                |text: &Option<String>| text.as_ref().map_or_else(|| ANY.to_owned(), |text| format!("(?:{text})"));
            // Each for itself: two halves may be a whole that neither of them is.
            for (name, text) in [("service", service), ("method", method)] {
                if let Some(text) = text {
                    pattern(text, &format!("{field}.{name}"), notes)?;
                }
            }
            format!("/{}/{}", part(service), part(method))
        }
    };
    pattern(&text, field, notes).map(PathKind::Regex)
}
