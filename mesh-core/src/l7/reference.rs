//! Matching once more, written from the rules in prose and for nothing but plainness: everything is copied, nothing is shared, there are no indexes.
//! Tests and the fuzzer hold the real matcher against it.

use std::collections::BTreeMap;

use regex_automata::{nfa::thompson::pikevm::PikeVM, util::syntax};

use super::{Client, Condition, HostPattern, PathKind, Request, Table, Text};

/// One request and its client, in plain values.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    pub(crate) method: String,
    pub(crate) scheme: String,
    pub(crate) host: String,
    pub(crate) written_port: Option<u16>,
    pub(crate) path: String,
    /// Decoded.
    pub(crate) query: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) headers: Vec<(String, Vec<u8>)>,
    pub(crate) port: u16,
    pub(crate) gateway: String,
    pub(crate) service: Option<String>,
    pub(crate) namespace: Option<String>,
    pub(crate) labels: Option<BTreeMap<String, String>>,
}

impl Facts {
    /// What there is to know about a request.
    pub(crate) fn of(request: &Request<'_>, client: &Client<'_>) -> Self {
        let mut query = Vec::new();
        for pair in request.query.unwrap_or_default().split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            query.push((plain(name), plain(value)));
        }
        let headers = request.headers.iter().map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()));
        Self {
            method: request.method.to_string(),
            scheme: request.scheme.to_owned(),
            host: request.authority.host().to_owned(),
            written_port: request.authority.port(),
            path: request.path.to_owned(),
            query,
            headers: headers.collect(),
            port: request.port,
            gateway: request.gateway.to_owned(),
            service: request.service.map(ToString::to_string),
            namespace: client.namespace.map(str::to_owned),
            labels: client.labels.map(|all| all.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()),
        }
    }
}

/// Without escapes: a plus is a space, and what only looks like an escape means itself.
fn plain(text: &str) -> Vec<u8> {
    let (bytes, mut out, mut at) = (text.as_bytes(), Vec::new(), 0);
    while at < bytes.len() {
        let digits = text.get(at + 1..at + 3).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
        match (bytes[at], digits.and_then(|digits| u8::from_str_radix(digits, 16).ok())) {
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 2;
            }
            (b'+', _) => out.push(b' '),
            (byte, _) => out.push(byte),
        }
        at += 1;
    }
    out
}

/// Names of the host and the rule that mean the request; the outer error is that no host does.
pub(crate) fn find(table: &Table, facts: &Facts) -> Result<Result<(String, String), ()>, ()> {
    let mut hosts: Vec<(Vec<u64>, usize)> = Vec::new();
    for (index, host) in table.hosts().iter().enumerate() {
        let mut ranks = Vec::new();
        match &facts.service {
            Some(service) => {
                if host.service.as_ref().map(ToString::to_string).as_ref() == Some(service) {
                    ranks.push(0);
                }
            }
            None => ranks.extend(host.hosts.iter().filter_map(|pattern| distance(pattern, &facts.host))),
        }
        let sees = match (&host.clients, &facts.namespace) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(names), Some(own)) => names.iter().any(|name| name.as_str() == own),
        };
        let here = host.ports.is_empty() || host.ports.contains(&facts.port);
        for rank in ranks {
            if sees && here {
                let wide = [u64::from(host.clients.is_none()), u64::from(host.ports.is_empty())];
                hosts.push((vec![rank, wide[0], wide[1], index as u64], index));
            }
        }
    }
    hosts.sort();
    if hosts.is_empty() {
        return Err(());
    }
    for (_, index) in hosts {
        let host = &table.hosts()[index];
        for rule in &host.rules {
            let mut any = rule.conditions.is_empty();
            for condition in &rule.conditions {
                if holds(condition, facts) {
                    any = true;
                }
            }
            if any {
                return Ok(Ok((host.name.to_string(), rule.handling.name.to_string())));
            }
        }
        if !host.falls_through {
            break;
        }
    }
    Ok(Err(()))
}

/// 0 for the name itself, more the less a wildcard says.
fn distance(pattern: &HostPattern, host: &str) -> Option<u64> {
    let text = pattern.to_string();
    if text == host {
        return Some(0);
    }
    if text == "*" {
        return Some(1_000);
    }
    let parent = text.strip_prefix('*')?;
    let is_below = host.ends_with(parent) && host.len() > parent.len();
    is_below.then(|| 999 - parent.len() as u64)
}

fn holds(condition: &Condition, facts: &Facts) -> bool {
    let mut all = Vec::new();
    if let Some(path) = &condition.path {
        let lower = |text: &str| if path.ignore_case { text.to_ascii_lowercase() } else { text.to_owned() };
        all.push(match &path.kind {
            PathKind::Exact(text) => lower(text) == lower(&facts.path),
            PathKind::Prefix(text) => lower(&facts.path).starts_with(&lower(text)),
            PathKind::Regex(pattern) => whole(pattern.text(), facts.path.as_bytes()),
            PathKind::Segments(text) => {
                let of = |text: &str| lower(text).split('/').map(str::to_owned).collect::<Vec<_>>();
                let (mut wanted, found) = (of(text), of(&facts.path));
                // `*` has no segments, not even before its first slash.
                if wanted.len() > 1 && wanted.last().is_some_and(String::is_empty) {
                    wanted.pop();
                }
                found.len() >= wanted.len() && found[..wanted.len()] == wanted[..]
            }
        });
    }
    for (wanted, value) in [(&condition.scheme, &facts.scheme), (&condition.method, &facts.method)] {
        all.push(wanted.as_ref().is_none_or(|wanted| text(wanted, value.as_bytes())));
    }
    if let Some(wanted) = &condition.authority {
        let with_port = facts.written_port.map(|port| format!("{}:{port}", facts.host));
        let is_that = |value: String| text(wanted, value.as_bytes());
        all.push(is_that(facts.host.clone()) || with_port.is_some_and(is_that));
    }
    for header in &condition.headers {
        let values = facts.headers.iter().filter(|(name, _)| name == header.name.as_str());
        let count = values.filter(|(_, value)| text(&header.value, value)).count();
        all.push(if header.invert { count == 0 } else { count > 0 });
    }
    for parameter in &condition.query {
        let first = facts.query.iter().find(|(name, _)| *name == parameter.name.as_bytes());
        all.push(first.is_some_and(|(_, value)| text(&parameter.value, value)));
    }
    if let Some(port) = condition.port {
        all.push(port == facts.port);
    }
    if !condition.gateways.is_empty() {
        all.push(condition.gateways.iter().filter(|gateway| gateway.as_str() == facts.gateway).count() > 0);
    }
    if let Some(wanted) = &condition.source_namespace {
        all.push(facts.namespace.as_deref() == Some(wanted.as_str()));
    }
    for (key, value) in &condition.source_labels {
        let own = facts.labels.as_ref().and_then(|labels| labels.get(key.as_str()));
        all.push(own.map(String::as_str) == Some(value.as_str()));
    }
    !all.contains(&false)
}

fn text(wanted: &Text, value: &[u8]) -> bool {
    match wanted {
        Text::Exact(text) => text.as_bytes() == value,
        Text::Prefix(text) => value.starts_with(text.as_bytes()),
        Text::Regex(pattern) => whole(pattern.text(), value),
        Text::Present => true,
    }
}

/// By the engine that knows no short cuts: of a match that must begin and end where the text does it is enough that there is one.
fn whole(pattern: &str, value: &[u8]) -> bool {
    let unicode = pattern.contains("\\p") || pattern.contains("\\P");
    let language = syntax::Config::new().unicode(unicode).utf8(false);
    let machine = PikeVM::builder().syntax(language).build(&format!("^(?:{pattern})$"));
    let machine = machine.expect("a pattern was accepted in parentheses before");
    machine.find_iter(&mut machine.create_cache(), value).any(|found| found.range() == (0..value.len()))
}
