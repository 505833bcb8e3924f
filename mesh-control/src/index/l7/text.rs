//! Texts of users as requests are compared with them, or changed by them: patterns, headers, hosts.

use http::{HeaderName, HeaderValue, StatusCode};
use mesh_core::ArcStr;
use mesh_core::l7::headers::{is_changeable, is_matchable};
use mesh_core::l7::{Authority, HeaderChanges, Pattern, Text};

use super::notes::Notes;
use crate::resource::routing::values::StringMatch;

/// A regular expression.
pub fn pattern(text: &str, field: &str, notes: &mut Notes<'_>) -> Option<Pattern> {
    let made = Pattern::new(text);
    made.map_err(|why| notes.close(field, why.to_string(), "")).ok()
}

/// How a value is compared. `None` where that is not known: the rule is closed, for every value.
pub fn compared(written: &StringMatch, field: &str, notes: &mut Notes<'_>) -> Option<Text> {
    Some(match written {
        StringMatch::Exact(text) => Text::Exact(text.as_str().into()),
        StringMatch::Prefix(text) => Text::Prefix(text.as_str().into()),
        StringMatch::Regex(text) => Text::Regex(pattern(&text.0, field, notes)?),
        StringMatch::Present => Text::Present,
    })
}

/// The header that a request is told by.
pub fn matched_header(name: &str, field: &str, notes: &mut Notes<'_>) -> Option<HeaderName> {
    let Ok(header) = HeaderName::from_bytes(name.as_bytes()) else {
        notes.close(field, format!("{name:?} is not the name of a header"), "");
        return None;
    };
    if !is_matchable(&header) {
        notes.close(field, format!("no request is told by {name:?}"), "compare another header, or the host");
        return None;
    }
    Some(header)
}

/// A host as it is written into requests, with its port if it has one.
pub fn host(text: &str, field: &str, notes: &mut Notes<'_>) -> Option<ArcStr> {
    match Authority::parse(text) {
        Ok(host) => Some(host.as_str().into()),
        Err(why) => {
            notes.close(field, format!("{text:?}: {why}"), "write the name of a host, with or without a port");
            None
        }
    }
}

/// A path as it is written into requests and answers.
pub fn path(text: &str, field: &str, notes: &mut Notes<'_>) -> Option<ArcStr> {
    let written = place(text, field, notes)?;
    if text.contains('#') {
        notes.close(field, format!("{text:?} has a character that cannot stand in a path"), "write it with %");
        return None;
    }
    Some(written)
}

/// A path that a client is sent to: it may have a fragment, which no request has.
pub fn place(text: &str, field: &str, notes: &mut Notes<'_>) -> Option<ArcStr> {
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) || text.matches('#').nth(1).is_some() {
        notes.close(field, format!("{text:?} has a character that cannot stand in a path"), "write it with %");
        return None;
    }
    Some(text.into())
}

/// The status of an answer.
pub fn status(code: u16, field: &str, notes: &mut Notes<'_>) -> Option<StatusCode> {
    let status = StatusCode::from_u16(code).ok().filter(|status| (200..=599).contains(&status.as_u16()));
    if status.is_none() {
        notes.close(field, format!("{code} is not the status of an answer"), "write a number from 200 to 599");
    }
    status
}

/// Whose changes of headers they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Istio's: `:authority` and `host` of requests are the host, and `%NAME%` is a command of Envoy.
    Istio,
    /// The Gateway API's: everything is meant as it is written.
    Gateway,
}

/// Changes of headers as they are written: names with values, and names.
#[derive(Clone, Copy, Debug)]
pub struct Written<'a> {
    /// Replaced.
    pub set: &'a [(&'a str, &'a str)],
    /// Appended.
    pub add: &'a [(&'a str, &'a str)],
    /// Taken away.
    pub remove: &'a [String],
    /// On the way there, and not on the way back.
    pub of_requests: bool,
}

/// Changes of headers, and the host if they change that, too.
pub fn changes(
    written: Written<'_>,
    dialect: Dialect,
    field: &str,
    notes: &mut Notes<'_>,
) -> (HeaderChanges, Option<ArcStr>) {
    let (mut changes, mut authority) = (HeaderChanges::default(), None);
    for (what, pairs, into) in [("set", written.set, &mut changes.set), ("add", written.add, &mut changes.add)] {
        for (name, value) in pairs {
            let field = format!("{field}.{what}[{name:?}]");
            let is_host = name.eq_ignore_ascii_case("host") || *name == ":authority";
            if is_host && written.of_requests && dialect == Dialect::Istio {
                authority = authority.or_else(|| host(value, &field, notes));
                continue;
            }
            let Some(name) = changed_header(name, &field, notes) else { continue };
            let value = match dialect {
                Dialect::Gateway => (*value).to_owned(),
                Dialect::Istio => match literal(value) {
                    Some(value) => value,
                    None => {
                        let message = format!("{value:?} has a command of Envoy, and there is no Envoy here");
                        notes.close(field, message, "write what is meant; %% is a percent sign");
                        continue;
                    }
                },
            };
            match HeaderValue::from_str(&value) {
                Ok(value) => into.push((name, value)),
                Err(_) => notes.close(field, "the value cannot stand in a header", ""),
            }
        }
    }
    for (index, name) in written.remove.iter().enumerate() {
        changes.remove.extend(changed_header(name, &format!("{field}.remove[{index}]"), notes));
    }
    (changes, authority)
}

fn changed_header(name: &str, field: &str, notes: &mut Notes<'_>) -> Option<HeaderName> {
    match HeaderName::from_bytes(name.as_bytes()) {
        Ok(header) if is_changeable(&header) => Some(header),
        _ if name.eq_ignore_ascii_case("host") || name.starts_with(':') => {
            notes.close(field, format!("{name:?} is no header that could be changed"), "rewrite the host or the path");
            None
        }
        Ok(_) => {
            let message = format!("{name:?} says where messages end, is about one connection, or counts waypoints");
            notes.close(field, message, "leave it to the proxies");
            None
        }
        Err(_) => {
            notes.close(field, format!("{name:?} is not the name of a header"), "");
            None
        }
    }
}

/// What Envoy writes for a value of a header; `None` if it would put something else in.
fn literal(value: &str) -> Option<String> {
    let (mut out, mut rest) = (String::with_capacity(value.len()), value);
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..=at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('%') {
            rest = after;
            continue;
        }
        let is_name = rest.starts_with(|c: char| c.is_ascii_uppercase());
        let end = rest.trim_start_matches(|c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_');
        if is_name && end.contains('%') && end.starts_with(['%', '(', ':']) {
            return None;
        }
    }
    out.push_str(rest);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_of_envoy_are_no_text() {
        for (value, expected) in [
            ("a", Some("a")),
            ("100%", Some("100%")),
            ("%%a%%", Some("%a%")),
            ("a%20b%20c", Some("a%20b%20c")),
            ("%DOWNSTREAM_REMOTE_ADDRESS%", None),
            ("a %REQ(X-A):5% b", None),
            ("%START_TIME(%s)%", None),
        ] {
            assert_eq!(literal(value).as_deref(), expected, "{value}");
        }
    }
}
