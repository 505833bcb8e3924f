//! RateLimit, a kind of our own: how many requests there may be. Counted by each waypoint for itself (`local`), or by a service that speaks Envoy's rate-limit protocol
//! (`global`), by who asks and by what is asked.

use std::collections::BTreeMap;
use std::time::Duration;

use http::HeaderName;
use mesh_core::ArcStr;
use mesh_core::l7::ClusterKey;
use mesh_core::l7::headers::is_matchable;
use mesh_core::l7::limit::{self, Part, Rate, USUAL_TIMEOUT, Value};
use mesh_core::l7::policy::{Attribute, List, Operation, PathPattern, Rule, Source, StringMatch, When};
use serde::Deserialize;

use super::telemetry::{TargetReference, bound};
use super::values::{Span, host};
use super::{Check, Spec};

/// Limits, descriptors, entries, matches, and what something is counted by.
const MOST: usize = 100;
/// Values of one list, as many as waypoints read.
const MOST_VALUES: usize = 10_000;

/// What a RateLimit asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RateLimit {
    /// What it is bound to.
    pub target_refs: Vec<TargetReference>,
    /// Counted by each waypoint for itself; a request needs room in all that mean it.
    pub local: Vec<Local>,
    /// Counted by a service.
    pub global: Option<Global>,
}

/// Counted by each waypoint for itself.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Local {
    /// Which requests; all if nothing is said.
    #[serde(default)]
    pub r#match: Vec<Match>,
    /// What they have in common that are counted together; all are if nothing is said.
    #[serde(default)]
    pub by: Vec<String>,
    /// How many.
    pub requests: u32,
    /// In how long.
    pub per: Span,
    /// How many at once; as many as `requests` if it is not said.
    pub burst: Option<u32>,
}

/// Counted by a service.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Global {
    /// Whose limits are meant, in the service's configuration.
    pub domain: String,
    /// The service: `[namespace/]host`.
    pub service: String,
    /// Its port.
    pub port: u16,
    /// For an answer; 20ms if it is not said.
    pub timeout: Option<Span>,
    /// Without an answer a request is let through; so it is if nothing is said.
    pub fail_open: Option<bool>,
    /// What the service is told.
    pub descriptors: Vec<Descriptor>,
}

/// What a service is told, for one of its limits.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Of which requests; all if nothing is said.
    #[serde(default)]
    pub r#match: Vec<Match>,
    /// Names and values, in this order.
    pub entries: Vec<Entry>,
}

/// A name and its value: one that is written, or what a request says.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// The name.
    pub key: String,
    /// Always this.
    pub value: Option<String>,
    /// This of the request. Of a request that has none the descriptor is not told.
    pub from: Option<String>,
}

/// Which requests: all that is said must hold. Values are compared as in AuthorizationPolicies, with a `*` at one end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Match {
    /// Identities of clients, without `spiffe://`.
    pub principals: Vec<String>,
    /// Their namespaces.
    pub namespaces: Vec<String>,
    /// Hosts that are asked for.
    pub hosts: Vec<String>,
    /// Methods.
    pub methods: Vec<String>,
    /// Paths, also with `{*}` and `{**}`.
    pub paths: Vec<String>,
    /// Headers and what they are.
    pub headers: BTreeMap<String, String>,
}

impl Spec for RateLimit {
    fn check(&self, check: &mut Check<'_>) {
        bound(&None, &None, &self.target_refs, check);
        few("spec.local", self.local.len(), check);
        if self.local.is_empty() && self.global.is_none() {
            check.error("spec", "it limits nothing", "write `local` or `global`");
        }
        for (index, local) in self.local.iter().enumerate() {
            local.check(&format!("spec.local[{index}]"), check);
        }
        if let Some(global) = &self.global {
            global.check("spec.global", check);
        }
    }
}

fn few(field: &str, count: usize, check: &mut Check<'_>) {
    if count > MOST {
        check.error(field, format!("more than {MOST}"), "");
    }
}

impl Local {
    fn check(&self, at: &str, check: &mut Check<'_>) {
        matches(&self.r#match, at, check);
        few(&format!("{at}.by"), self.by.len(), check);
        for (index, name) in self.by.iter().enumerate() {
            check.must(format!("{at}.by[{index}]"), part(name).map(drop));
        }
        check.time(format!("{at}.per"), Some(self.per));
        for (field, number) in [("requests", Some(self.requests)), ("burst", self.burst)] {
            if number == Some(0) {
                check.error(format!("{at}.{field}"), "0 lets nothing through", "use an AuthorizationPolicy to deny");
            }
        }
    }

    /// What waypoints are told. Of what was checked nothing is left out.
    #[must_use]
    pub fn limit(&self) -> limit::Local {
        limit::Local {
            rules: rules(&self.r#match),
            by: self.by.iter().filter_map(|name| part(name).ok()).collect(),
            rate: Rate { requests: self.requests, per: self.per.0, burst: self.burst.unwrap_or(self.requests) },
        }
    }
}

impl Global {
    fn check(&self, at: &str, check: &mut Check<'_>) {
        if self.domain.is_empty() {
            check.error(format!("{at}.domain"), "an empty string", "");
        }
        let (_, name) = self.place();
        check.must(format!("{at}.service"), host(name));
        check.port(format!("{at}.port"), self.port);
        check.time(format!("{at}.timeout"), self.timeout);
        few(&format!("{at}.descriptors"), self.descriptors.len(), check);
        if self.descriptors.is_empty() {
            check.error(format!("{at}.descriptors"), "the service is told nothing", "write at least one");
        }
        for (index, descriptor) in self.descriptors.iter().enumerate() {
            let at = format!("{at}.descriptors[{index}]");
            matches(&descriptor.r#match, &at, check);
            few(&format!("{at}.entries"), descriptor.entries.len(), check);
            if descriptor.entries.is_empty() {
                check.error(format!("{at}.entries"), "a descriptor without entries", "write at least one");
            }
            for (index, entry) in descriptor.entries.iter().enumerate() {
                let at = format!("{at}.entries[{index}]");
                if entry.key.is_empty() {
                    check.error(format!("{at}.key"), "an empty string", "");
                }
                check.must(at, entry.value().map(drop));
            }
        }
    }

    /// The namespace, if it is said, and the host of the service.
    #[must_use]
    pub fn place(&self) -> (Option<&str>, &str) {
        match self.service.split_once('/') {
            Some((namespace, name)) => (Some(namespace), name),
            None => (None, &self.service),
        }
    }

    /// What waypoints are told, where the service is known or is not. Of what was checked nothing is left out.
    #[must_use]
    pub fn limit(&self, place: Option<ClusterKey>) -> limit::Global {
        let entry =
            |entry: &Entry| entry.value().ok().map(|value| limit::Entry { key: entry.key.as_str().into(), value });
        let descriptor = |one: &Descriptor| limit::Descriptor {
            rules: rules(&one.r#match),
            entries: one.entries.iter().filter_map(entry).collect(),
        };
        limit::Global {
            domain: self.domain.as_str().into(),
            place,
            timeout: self.timeout.map_or(USUAL_TIMEOUT, |timeout| timeout.0).max(Duration::from_millis(1)),
            fail_open: self.fail_open.unwrap_or(true),
            descriptors: self.descriptors.iter().map(descriptor).collect(),
        }
    }
}

impl Entry {
    fn value(&self) -> Result<Value, String> {
        match (&self.value, &self.from) {
            (Some(text), None) if text.is_empty() => Err("an empty value".into()),
            (Some(text), None) => Ok(Value::Fixed(text.as_str().into())),
            (None, Some(name)) => part(name).map(Value::Of),
            _ => Err("write `value` or `from`, one of them".into()),
        }
    }
}

/// What a request is counted by, as it is written: with the names that AuthorizationPolicies have for it, where they have one.
fn part(name: &str) -> Result<Part, String> {
    Ok(match name {
        "source.principal" => Part::Principal,
        "source.namespace" => Part::Namespace,
        "source.ip" => Part::Source,
        "request.host" => Part::Host,
        "request.method" => Part::Method,
        "request.path" => Part::Path,
        "request.auth.principal" => Part::RequestPrincipal,
        _ => {
            let header = name.strip_prefix("request.headers[").and_then(|rest| rest.strip_suffix(']'));
            let header = header.and_then(header_of);
            return header.map(Part::Header).ok_or_else(|| {
                format!(
                    "{name:?}: nothing can be counted by it; write source.principal, source.namespace, source.ip, request.host, request.method, request.path, request.auth.principal or request.headers[name]"
                )
            });
        }
    })
}

fn header_of(name: &str) -> Option<HeaderName> {
    HeaderName::try_from(name).ok().filter(is_matchable)
}

fn matches(all: &[Match], at: &str, check: &mut Check<'_>) {
    few(&format!("{at}.match"), all.len(), check);
    for (index, one) in all.iter().enumerate() {
        let at = format!("{at}.match[{index}]");
        if *one == Match::default() {
            check.error(at, "it restricts nothing, so it would match all requests", "delete it");
            continue;
        }
        for (field, values) in [
            ("principals", &one.principals),
            ("namespaces", &one.namespaces),
            ("hosts", &one.hosts),
            ("methods", &one.methods),
        ] {
            check.few(format!("{at}.{field}"), values.len(), MOST_VALUES);
            check.each(&format!("{at}.{field}"), values, |text| pattern(text).map(drop));
        }
        check.few(format!("{at}.paths"), one.paths.len(), MOST_VALUES);
        check.each(&format!("{at}.paths"), &one.paths, |text| {
            PathPattern::new(text).map(drop).map_err(|error| error.to_string())
        });
        for (name, text) in &one.headers {
            let field = format!("{at}.headers.{name}");
            if header_of(name).is_none() {
                check.error(&field, "not the name of a header that requests can be told by", "");
            }
            check.must(field, pattern(text).map(drop));
        }
    }
}

fn rules(all: &[Match]) -> Vec<Rule> {
    all.iter().map(Match::rule).collect()
}

/// A value of an AuthorizationPolicy.
fn pattern(text: &str) -> Result<StringMatch, String> {
    let pattern = match (text.strip_prefix('*'), text.strip_suffix('*')) {
        _ if text == "*" => return Ok(StringMatch::Presence),
        _ if text.is_empty() => return Err("an empty string".into()),
        (Some(suffix), _) => StringMatch::Suffix(suffix.into()),
        (None, Some(prefix)) => StringMatch::Prefix(prefix.into()),
        (None, None) => StringMatch::Exact(text.into()),
    };
    match &pattern {
        StringMatch::Exact(rest) | StringMatch::Prefix(rest) | StringMatch::Suffix(rest) if rest.contains('*') => {
            Err(format!("{text:?}: `*` is a wildcard at the beginning or the end only"))
        }
        _ => Ok(pattern),
    }
}

fn list(values: impl IntoIterator<Item = impl AsRef<str>>) -> List<StringMatch> {
    List { is: values.into_iter().filter_map(|text| pattern(text.as_ref()).ok()).collect(), not: Vec::new() }
}

impl Match {
    fn rule(&self) -> Rule {
        let principals = self.principals.iter().map(|text| text.strip_prefix("spiffe://").unwrap_or(text));
        let source = Source { principals: list(principals), namespaces: list(&self.namespaces), ..Source::default() };
        let paths = self.paths.iter().filter_map(|text| PathPattern::new(ArcStr::from(text.as_str())).ok());
        let operation = Operation {
            hosts: list(self.hosts.iter().map(|host| host.to_ascii_lowercase())),
            methods: list(&self.methods),
            paths: List { is: paths.collect(), not: Vec::new() },
            ..Operation::default()
        };
        let header =
            |(name, text): (&String, &String)| Some(When::Text(Attribute::Header(header_of(name)?), list([text])));
        Rule {
            from: if source == Source::default() { Vec::new() } else { vec![source] },
            to: if operation == Operation::default() { Vec::new() } else { vec![operation] },
            when: self.headers.iter().filter_map(header).collect(),
        }
    }
}
