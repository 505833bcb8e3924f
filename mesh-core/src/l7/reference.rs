//! Matching once more, written from the rules in prose and for nothing but plainness: everything is copied, nothing is shared, there are no indexes.

use std::collections::BTreeMap;

use super::{Condition, HostPattern, PathKind, Table, Text};

/// One request and its client, in plain values.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    pub(super) method: String,
    pub(super) scheme: String,
    pub(super) host: String,
    pub(super) written_port: Option<u16>,
    pub(super) path: String,
    /// Decoded.
    pub(super) query: Vec<(String, String)>,
    pub(super) headers: Vec<(String, String)>,
    pub(super) port: u16,
    pub(super) gateway: String,
    pub(super) service: Option<String>,
    pub(super) namespace: Option<String>,
    pub(super) labels: Option<BTreeMap<String, String>>,
}

/// Names of the host and the rule that mean the request; the outer error is that no host does.
pub(super) fn find(table: &Table, facts: &Facts) -> Result<Result<(String, String), ()>, ()> {
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
            PathKind::Regex(pattern) => whole(pattern.text(), &facts.path),
            PathKind::Segments(text) => {
                let of = |text: &str| lower(text).split('/').map(str::to_owned).collect::<Vec<_>>();
                let (mut wanted, found) = (of(text), of(&facts.path));
                if wanted.last().is_some_and(String::is_empty) {
                    wanted.pop();
                }
                found.len() >= wanted.len() && found[..wanted.len()] == wanted[..]
            }
        });
    }
    for (wanted, value) in [(&condition.scheme, &facts.scheme), (&condition.method, &facts.method)] {
        all.push(wanted.as_ref().is_none_or(|wanted| text(wanted, value)));
    }
    if let Some(wanted) = &condition.authority {
        let with_port = facts.written_port.map(|port| format!("{}:{port}", facts.host));
        all.push(text(wanted, &facts.host) || with_port.is_some_and(|value| text(wanted, &value)));
    }
    for header in &condition.headers {
        let values = facts.headers.iter().filter(|(name, _)| name == header.name.as_str());
        let count = values.filter(|(_, value)| text(&header.value, value)).count();
        all.push(if header.invert { count == 0 } else { count > 0 });
    }
    for parameter in &condition.query {
        let first = facts.query.iter().find(|(name, _)| *name == parameter.name.as_str());
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

fn text(wanted: &Text, value: &str) -> bool {
    match wanted {
        Text::Exact(text) => text.as_str() == value,
        Text::Prefix(text) => value.starts_with(text.as_str()),
        Text::Regex(pattern) => whole(pattern.text(), value),
        Text::Present => true,
    }
}

/// By searching all matches of the longest kind: a whole match is one that is as long as the text.
fn whole(pattern: &str, value: &str) -> bool {
    let pattern = regex::bytes::RegexBuilder::new(&format!("^(?:{pattern})$")).unicode(false).build().unwrap();
    pattern.find(value.as_bytes()).is_some_and(|found| found.len() == value.len())
}
