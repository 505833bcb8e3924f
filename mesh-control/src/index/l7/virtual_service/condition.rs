//! Which requests a rule means. What cannot be compared is left out of the condition, so that the rule, which is closed then, has at least the requests that
//! it was meant for.

use std::collections::BTreeMap;

use mesh_core::l7::path::respelled;
use mesh_core::l7::{Condition, HeaderMatch, PathKind, PathMatch, QueryMatch, Text};

use super::super::notes::Notes;
use super::super::text::{compared, matched_header};
use crate::index::routing::virtual_services::gateway_name;
use crate::resource::meta::shown;
use crate::resource::routing::values::StringMatch;
use crate::resource::routing::virtual_service::HttpMatch;

/// Claims of tokens stand among the headers.
const CLAIMS: &str = "@request.auth.claims";
/// What is no header and not looked at as one, as in Istio; whoever writes it is told by the reader.
const NO_HEADERS: [&str; 4] = ["uri", "scheme", "method", "authority"];

/// One alternative of a rule of an object that lives in `namespace`.
pub fn condition(one: &HttpMatch, namespace: &str, field: &str, notes: &mut Notes<'_>) -> Condition {
    if one.stat_prefix.as_ref().is_some_and(|prefix| !prefix.is_empty()) {
        let message = "waypoints make Istio's metrics, none for each route: it has no effect";
        let help = "give the match a `name`: logs and spans have it in %ROUTE_NAME%";
        notes.warn(format!("{field}.statPrefix"), message, help);
    }
    let mut text = |name: &str, written: &Option<StringMatch>| {
        written.as_ref().and_then(|written| compared(written, &format!("{field}.{name}"), notes))
    };
    let path = text("uri", &one.uri).and_then(|text| {
        let kind = match text {
            Text::Exact(text) => PathKind::Exact(respelled(&text).into()),
            Text::Prefix(text) => PathKind::Prefix(respelled(&text).into()),
            Text::Regex(pattern) => PathKind::Regex(pattern),
            Text::Present => return None,
        };
        let ignore_case = one.ignore_uri_case && !matches!(kind, PathKind::Regex(_));
        Some(PathMatch { kind, ignore_case })
    });
    let (scheme, method) = (text("scheme", &one.scheme), text("method", &one.method));
    // Hosts of requests are in lower case.
    let authority = text("authority", &one.authority).map(|text| match text {
        Text::Exact(text) => Text::Exact(text.to_ascii_lowercase().into()),
        Text::Prefix(text) => Text::Prefix(text.to_ascii_lowercase().into()),
        other => other,
    });
    let mut headers = headers(&one.headers, false, &format!("{field}.headers"), notes);
    headers.extend(self::headers(&one.without_headers, true, &format!("{field}.withoutHeaders"), notes));
    let query = one.query_params.iter().filter_map(|(name, value)| {
        let value = compared(value, &format!("{field}.queryParams[{name:?}]"), notes)?;
        Some(QueryMatch { name: name.as_str().into(), value })
    });
    Condition {
        name: shown(one.name.as_deref().unwrap_or_default()),
        path,
        scheme,
        method,
        authority,
        headers,
        query: query.collect(),
        port: one.port,
        gateways: one.gateways.iter().map(|gateway| gateway_name(gateway, namespace).into()).collect(),
        source_labels: one.source_labels.iter().map(|(k, v)| (k.as_str().into(), v.as_str().into())).collect(),
        source_namespace: one.source_namespace.as_deref().filter(|name| !name.is_empty()).map(Into::into),
    }
}

fn headers(
    written: &BTreeMap<String, StringMatch>,
    invert: bool,
    field: &str,
    notes: &mut Notes<'_>,
) -> Vec<HeaderMatch> {
    let mut all = Vec::new();
    for (name, value) in written.iter().filter(|(name, _)| !NO_HEADERS.contains(&name.as_str())) {
        let field = format!("{field}[{name:?}]");
        if name.starts_with(CLAIMS) {
            notes.close(
                field,
                "claims of tokens tell no requests apart here",
                "let an AuthorizationPolicy compare them",
            );
            continue;
        }
        let Some(name) = matched_header(name, &field, notes) else { continue };
        let Some(value) = compared(value, &field, notes) else { continue };
        all.push(HeaderMatch { name, value, invert });
    }
    all
}
