//! Single values of a policy: ports, patterns, principals, service accounts, blocks of addresses. Each that is not right is reported.

use std::net::IpAddr;

use ipnet::IpNet;
use mesh_core::ArcStr;
use mesh_core::policy::{ServiceAccountMatch, StringMatch};

use crate::diagnosis::Problem;
use crate::resource::fields::{Fields, Mapping};
use crate::resource::{Key, meta};

pub(super) fn ports(mapping: &Mapping<'_>, key: &str, fields: &mut Fields) -> Vec<u16> {
    let mut out = Vec::new();
    for (path, text) in fields.strings(mapping, key) {
        match text.parse::<u16>() {
            Ok(port) if port != 0 && text.bytes().all(|b| b.is_ascii_digit()) => out.push(port),
            _ => {
                let problem = Problem::error(path, format!("{text:?} is not a port"));
                fields.problems.push(problem.help("write a number from 1 to 65535, in quotes"));
            }
        }
    }
    out
}

fn pattern(text: &str) -> StringMatch {
    if text == "*" {
        StringMatch::Presence
    } else if let Some(suffix) = text.strip_prefix('*') {
        StringMatch::Suffix(suffix.into())
    } else if let Some(prefix) = text.strip_suffix('*') {
        StringMatch::Prefix(prefix.into())
    } else {
        StringMatch::Exact(text.into())
    }
}

pub(super) fn patterns(mapping: &Mapping<'_>, key: &str, fields: &mut Fields) -> Vec<StringMatch> {
    let mut out = Vec::new();
    for (path, text) in fields.strings(mapping, key) {
        let pattern = pattern(text);
        let inner = match &pattern {
            StringMatch::Exact(t) | StringMatch::Prefix(t) | StringMatch::Suffix(t) => t.as_str(),
            StringMatch::Presence => "",
        };
        if inner.contains('*') {
            let problem = Problem::error(path, format!("{text:?}: `*` is a wildcard at the beginning or the end only"));
            fields.problems.push(problem.help("list the values, or use one `*` at one end"));
        } else {
            out.push(pattern);
        }
    }
    out
}

/// Principals are identities without their scheme; with it they would match nobody, which in a denial is an opening.
pub(super) fn principals(mapping: &Mapping<'_>, key: &str, fields: &mut Fields) -> Vec<StringMatch> {
    let mut found = patterns(mapping, key, fields);
    for (index, pattern) in found.iter_mut().enumerate() {
        if let StringMatch::Exact(text) | StringMatch::Prefix(text) = pattern
            && let Some(rest) = text.strip_prefix("spiffe://").map(ArcStr::from)
        {
            let problem = Problem::warning(
                format!("{}[{index}]", mapping.field(key)),
                "principals are written without `spiffe://`, it is left out",
            );
            fields.problems.push(problem.help(format!("write \"{rest}\"")));
            *text = rest;
        }
    }
    found
}

pub(super) fn service_accounts(
    key: &Key,
    mapping: &Mapping<'_>,
    field: &str,
    fields: &mut Fields,
) -> Vec<ServiceAccountMatch> {
    let mut out = Vec::new();
    for (path, text) in fields.strings(mapping, field) {
        let (namespace, name) = text.split_once('/').unwrap_or((&key.namespace, text));
        if meta::label(namespace).is_err() || meta::subdomain(name).is_err() {
            let problem = Problem::error(path, format!("{text:?} is not a service account"));
            fields.problems.push(problem.help("write `name` or `namespace/name`, without wildcards"));
        } else {
            out.push(ServiceAccountMatch { namespace: namespace.into(), service_account: name.into() });
        }
    }
    out
}

pub(super) fn blocks(mapping: &Mapping<'_>, key: &str, fields: &mut Fields) -> Vec<IpNet> {
    let mut out = Vec::new();
    for (path, text) in fields.strings(mapping, key) {
        let parsed = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        match parsed {
            Ok(block) => {
                if block.trunc() != block {
                    let problem =
                        Problem::warning(path, format!("{text} has bits beyond its prefix, they are ignored"));
                    fields.problems.push(problem.help(format!("write \"{}\"", block.trunc())));
                }
                out.push(block.trunc());
            }
            Err(_) => {
                let problem = Problem::error(path, format!("{text:?} is not an address or a block of addresses"));
                fields
                    .problems
                    .push(problem.help("write an address or a block such as \"10.0.0.0/8\", without a zone"));
            }
        }
    }
    out
}
