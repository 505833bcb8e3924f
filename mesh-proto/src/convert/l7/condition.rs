//! Conditions of rules, both ways.

use http::HeaderName;
use mesh_core::{
    ArcStr,
    l7::{Condition, HeaderMatch, Labels, PathKind, PathMatch, QueryMatch, Text, headers::is_matchable},
};

use super::{budget::Budget, few};
use crate::{
    convert::{ConvertError, field},
    wire::l7 as wire,
};

/// Longest text that something is compared with, in bytes.
const LONGEST: usize = 8192;
/// Headers, parameters, gateways or labels of one condition.
const MOST: usize = 100;

/// Reads conditions leaf by leaf: one that cannot be read is left out and noted, and whoever asked closes the rule.
pub(super) struct Leaves<'a> {
    pub(super) budget: &'a mut Budget,
    /// The first problem.
    pub(super) problem: Option<ConvertError>,
}

impl Leaves<'_> {
    pub(super) fn note(&mut self, problem: ConvertError) {
        self.problem.get_or_insert(problem);
    }

    fn good<T>(&mut self, read: Result<T, ConvertError>) -> Option<T> {
        read.map_err(|problem| self.note(problem)).ok()
    }

    pub(super) fn condition(&mut self, message: wire::Condition) -> Condition {
        for (field, count) in [
            ("conditions.headers", message.headers.len()),
            ("conditions.query", message.query.len()),
            ("conditions.gateways", message.gateways.len()),
            ("conditions.source_labels", message.source_labels.len()),
        ] {
            self.good(few(field, count, MOST));
        }
        let path = message.path.map(|path| read_path(path, self.budget));
        let scheme = message.scheme.map(|text| read_text("conditions.scheme", text, self.budget));
        let method = message.method.map(|text| read_text("conditions.method", text, self.budget));
        let authority = message.authority.map(|text| read_text("conditions.authority", text, self.budget));
        let headers: Vec<_> = message.headers.into_iter().take(MOST).map(|one| read_header(one, self.budget)).collect();
        let query: Vec<_> = message.query.into_iter().take(MOST).map(|one| read_query(one, self.budget)).collect();
        // A gateway left out would mean fewer requests, or all: then it is all.
        let gateways: Result<Vec<_>, _> = message.gateways.into_iter().map(gateway).collect();
        let labels = message.source_labels.into_iter().take(MOST).map(label);
        let labels: Vec<Result<_, _>> = labels.collect();
        let name = field::text("conditions.name", message.name);
        let port = field::port_or_zero("conditions.port", message.port);
        let namespace = field::text("conditions.source_namespace", message.source_namespace);
        Condition {
            name: self.good(name).unwrap_or_default(),
            path: path.and_then(|read| self.good(read)),
            scheme: scheme.and_then(|read| self.good(read)),
            method: method.and_then(|read| self.good(read)),
            authority: authority.and_then(|read| self.good(read)),
            headers: headers.into_iter().filter_map(|read| self.good(read)).collect(),
            query: query.into_iter().filter_map(|read| self.good(read)).collect(),
            port: self.good(port).filter(|port| *port != 0),
            gateways: self.good(gateways).unwrap_or_default(),
            source_labels: labels.into_iter().filter_map(|read| self.good(read)).collect::<Labels>(),
            source_namespace: self.good(namespace).filter(|name| !name.is_empty()),
        }
    }
}

fn long(field: &'static str, text: String) -> Result<ArcStr, ConvertError> {
    if text.len() > LONGEST {
        return Err(ConvertError::invalid(field, format!("{} bytes long, the limit is {LONGEST}", text.len())));
    }
    Ok(text.into())
}

fn gateway(name: String) -> Result<ArcStr, ConvertError> {
    let name = field::text("conditions.gateways", name)?;
    if name.is_empty() {
        return Err(ConvertError::invalid("conditions.gateways", "an empty name"));
    }
    Ok(name)
}

fn label((key, value): (String, String)) -> Result<(ArcStr, ArcStr), ConvertError> {
    let field = "conditions.source_labels";
    Ok((field::text(field, key)?, field::text(field, value)?))
}

pub(super) fn read_text(field: &'static str, message: wire::Text, budget: &mut Budget) -> Result<Text, ConvertError> {
    use wire::text::Kind;
    match message.kind {
        Some(Kind::Exact(text)) => long(field, text).map(Text::Exact),
        Some(Kind::Prefix(text)) => long(field, text).map(Text::Prefix),
        Some(Kind::Regex(text)) => budget.pattern(field, text).map(Text::Regex),
        Some(Kind::Present(())) => Ok(Text::Present),
        None => Err(ConvertError::invalid(field, "says neither exact, prefix, regex nor present")),
    }
}

fn read_path(message: wire::PathMatch, budget: &mut Budget) -> Result<PathMatch, ConvertError> {
    use wire::path_match::Kind;
    let field = "conditions.path";
    let kind = match message.kind {
        Some(Kind::Exact(text)) => PathKind::Exact(long(field, text)?),
        Some(Kind::Prefix(text)) => PathKind::Prefix(long(field, text)?),
        Some(Kind::Segments(text)) => PathKind::Segments(long(field, text)?),
        Some(Kind::Regex(text)) => PathKind::Regex(budget.pattern(field, text)?),
        None => return Err(ConvertError::invalid(field, "says neither exact, prefix, segments nor regex")),
    };
    Ok(PathMatch { kind, ignore_case: message.ignore_case })
}

fn read_header(message: wire::HeaderMatch, budget: &mut Budget) -> Result<HeaderMatch, ConvertError> {
    let field = "conditions.headers";
    let name = HeaderName::try_from(&message.name);
    let name = name.map_err(|_| ConvertError::invalid(field, format!("{:?} is no header", message.name)))?;
    if !is_matchable(&name) {
        return Err(ConvertError::invalid(
            field,
            format!("{name} is about a connection, or the host: requests cannot be told by it"),
        ));
    }
    let value = message.value.ok_or(ConvertError::Missing { field: "conditions.headers.value" })?;
    Ok(HeaderMatch { name, value: read_text(field, value, budget)?, invert: message.invert })
}

fn read_query(message: wire::QueryMatch, budget: &mut Budget) -> Result<QueryMatch, ConvertError> {
    let field = "conditions.query";
    let value = message.value.ok_or(ConvertError::Missing { field: "conditions.query.value" })?;
    Ok(QueryMatch { name: long(field, message.name)?, value: read_text(field, value, budget)? })
}

pub(super) fn write_text(text: &Text) -> wire::Text {
    use wire::text::Kind;
    let kind = match text {
        Text::Exact(text) => Kind::Exact(text.to_string()),
        Text::Prefix(text) => Kind::Prefix(text.to_string()),
        Text::Regex(pattern) => Kind::Regex(pattern.text().to_string()),
        Text::Present => Kind::Present(()),
    };
    wire::Text { kind: Some(kind) }
}

pub(super) fn write(condition: &Condition) -> wire::Condition {
    use wire::path_match::Kind;
    let path = |path: &PathMatch| {
        let kind = match &path.kind {
            PathKind::Exact(text) => Kind::Exact(text.to_string()),
            PathKind::Prefix(text) => Kind::Prefix(text.to_string()),
            PathKind::Segments(text) => Kind::Segments(text.to_string()),
            PathKind::Regex(pattern) => Kind::Regex(pattern.text().to_string()),
        };
        wire::PathMatch { kind: Some(kind), ignore_case: path.ignore_case }
    };
    let header = |one: &HeaderMatch| wire::HeaderMatch {
        name: one.name.to_string(),
        value: Some(write_text(&one.value)),
        invert: one.invert,
    };
    let query = |one: &QueryMatch| wire::QueryMatch { name: one.name.to_string(), value: Some(write_text(&one.value)) };
    let pair = |(key, value): (&ArcStr, &ArcStr)| (key.to_string(), value.to_string());
    wire::Condition {
        name: condition.name.to_string(),
        path: condition.path.as_ref().map(path),
        scheme: condition.scheme.as_ref().map(write_text),
        method: condition.method.as_ref().map(write_text),
        authority: condition.authority.as_ref().map(write_text),
        headers: condition.headers.iter().map(header).collect(),
        query: condition.query.iter().map(query).collect(),
        port: condition.port.unwrap_or_default().into(),
        gateways: condition.gateways.iter().map(ToString::to_string).collect(),
        source_labels: condition.source_labels.iter().map(pair).collect(),
        source_namespace: condition.source_namespace.as_ref().map(ToString::to_string).unwrap_or_default(),
    }
}
