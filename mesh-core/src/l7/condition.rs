//! What a rule looks at, and whether a request is that. Text is compared byte by byte but for what says that its case does not count.

use std::collections::BTreeMap;

use arcstr::ArcStr;
use http::{HeaderMap, HeaderName, Method};

use super::{Authority, Pattern, query};
use crate::{Identity, NamespacedName};

/// Labels of a pod.
pub type Labels = BTreeMap<ArcStr, ArcStr>;

/// One request, as it is going to be forwarded.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Its method.
    pub method: &'a Method,
    /// `http` or `https`: how the client came.
    pub scheme: &'a str,
    /// The host that is asked for.
    pub authority: &'a Authority,
    /// The path without the query, as [`normalise`](super::path::normalise) gave it.
    pub path: &'a str,
    /// What is behind the question mark.
    pub query: Option<&'a str>,
    /// Its headers.
    pub headers: &'a HeaderMap,
    /// The port that the client connected to: the service's, or the listener's.
    pub port: u16,
    /// Where it came in: `mesh`, or `namespace/name` of a gateway.
    pub gateway: &'a str,
    /// The service whose address the client connected to. It decides then, and not the host that is asked for.
    pub service: Option<&'a NamespacedName>,
}

/// Who asks. What is not known fits no condition.
#[derive(Clone, Copy, Debug, Default)]
pub struct Client<'a> {
    /// As the TLS peer proved it, or a waypoint that may say so.
    pub identity: Option<&'a Identity>,
    /// Its namespace.
    pub namespace: Option<&'a str>,
    /// Its labels.
    pub labels: Option<&'a Labels>,
}

/// How a text is compared.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Text {
    /// It is this.
    Exact(ArcStr),
    /// It begins with this.
    Prefix(ArcStr),
    /// All of it matches this.
    Regex(Pattern),
    /// It is there.
    Present,
}

impl Text {
    /// Whether a value that is there is meant.
    #[must_use]
    pub fn matches(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(text) => text.as_bytes() == value,
            Self::Prefix(text) => value.starts_with(text.as_bytes()),
            Self::Regex(pattern) => pattern.matches(value),
            Self::Present => true,
        }
    }
}

/// How a path is compared.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PathKind {
    /// It is this.
    Exact(ArcStr),
    /// It begins with this text: Istio's prefix.
    Prefix(ArcStr),
    /// It begins with these segments: the Gateway API's prefix. `/a` means `/a` and `/a/b`, not `/ab`; a final slash does not count.
    Segments(ArcStr),
    /// All of it matches this.
    Regex(Pattern),
}

/// Which paths are meant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PathMatch {
    /// How it is compared.
    pub kind: PathKind,
    /// Letters of ASCII may be of either case; not for patterns, which say so themselves.
    pub ignore_case: bool,
}

impl From<PathKind> for PathMatch {
    fn from(kind: PathKind) -> Self {
        Self { kind, ignore_case: false }
    }
}

impl PathMatch {
    /// Whether `path`, without its query, is meant.
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        match &self.kind {
            PathKind::Exact(text) => path.len() == text.len() && self.begins(path, text),
            PathKind::Prefix(text) => self.begins(path, text),
            PathKind::Segments(text) => {
                let text = text.strip_suffix('/').unwrap_or(text);
                self.begins(path, text) && matches!(path.as_bytes().get(text.len()), None | Some(b'/'))
            }
            PathKind::Regex(pattern) => pattern.matches(path.as_bytes()),
        }
    }

    fn begins(&self, path: &str, text: &str) -> bool {
        let start = path.as_bytes().get(..text.len());
        start.is_some_and(|start| match self.ignore_case {
            true => start.eq_ignore_ascii_case(text.as_bytes()),
            false => start == text.as_bytes(),
        })
    }
}

/// Which values of a header are meant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HeaderMatch {
    /// The header.
    pub name: HeaderName,
    /// Its value; of several lines any may be it.
    pub value: Text,
    /// Requests are meant that have no such value: Istio's `withoutHeaders`.
    pub invert: bool,
}

impl HeaderMatch {
    fn matches(&self, headers: &HeaderMap) -> bool {
        let found = headers.get_all(&self.name).iter().any(|value| self.value.matches(value.as_bytes()));
        found != self.invert
    }
}

/// Which values of a parameter of the query are meant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct QueryMatch {
    /// The parameter, without escapes.
    pub name: ArcStr,
    /// Its value, without escapes; of several the first counts.
    pub value: Text,
}

impl QueryMatch {
    fn matches(&self, query: &str) -> bool {
        query::first(query, &self.name).is_some_and(|found| match &self.value {
            Text::Exact(text) => found.is(text),
            Text::Prefix(text) => found.begins(text),
            Text::Regex(pattern) => pattern.matches(&found.plain()),
            Text::Present => true,
        })
    }
}

/// Requests that are meant: everything that is said must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Condition {
    /// For logs.
    pub name: ArcStr,
    /// The path.
    pub path: Option<PathMatch>,
    /// How the client came.
    pub scheme: Option<Text>,
    /// The method.
    pub method: Option<Text>,
    /// The host that is asked for, in lower case, with or without the port that was written.
    pub authority: Option<Text>,
    /// Headers.
    pub headers: Vec<HeaderMatch>,
    /// Parameters of the query.
    pub query: Vec<QueryMatch>,
    /// The port that the client connected to.
    pub port: Option<u16>,
    /// Where it came in; anywhere if there are none.
    pub gateways: Vec<ArcStr>,
    /// Labels that the client must have.
    pub source_labels: Labels,
    /// The client's namespace.
    pub source_namespace: Option<ArcStr>,
}

impl Condition {
    /// Whether the request of the client is meant.
    #[must_use]
    pub fn matches(&self, request: &Request<'_>, client: &Client<'_>) -> bool {
        let text = |wanted: &Option<Text>, value: &str| wanted.as_ref().is_none_or(|t| t.matches(value.as_bytes()));
        self.path.as_ref().is_none_or(|path| path.matches(request.path))
            && text(&self.method, request.method.as_str())
            && self.port.is_none_or(|port| port == request.port)
            && text(&self.scheme, request.scheme)
            && (text(&self.authority, request.authority.host()) || text(&self.authority, request.authority.as_str()))
            && (self.gateways.is_empty() || self.gateways.iter().any(|gateway| gateway == request.gateway))
            && self.source_namespace.as_ref().is_none_or(|wanted| client.namespace == Some(wanted))
            && (self.source_labels.is_empty()
                || client.labels.is_some_and(|labels| has_all(labels, &self.source_labels)))
            && self.headers.iter().all(|header| header.matches(request.headers))
            && self.query.iter().all(|one| one.matches(request.query.unwrap_or_default()))
    }

    /// Whether it says nothing but, perhaps, that the path begins with `/`.
    #[must_use]
    pub fn is_always(&self) -> bool {
        let rest = Self { name: ArcStr::new(), path: None, ..self.clone() };
        let path = match self.path.as_ref().map(|path| &path.kind) {
            None => true,
            Some(PathKind::Prefix(text) | PathKind::Segments(text)) => text.is_empty() || text == "/",
            Some(PathKind::Regex(pattern)) => matches!(pattern.text().as_str(), ".*" | "/.*"),
            Some(PathKind::Exact(_)) => false,
        };
        path && rest == Self::default()
    }
}

/// Whether these labels have all of those.
pub(crate) fn has_all(labels: &Labels, wanted: &Labels) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_compared_without_escapes_and_the_first_counts() {
        let exact = |text: &str| Text::Exact(text.into());
        for (query, name, value, expected) in [
            ("a=1", "a", exact("1"), true),
            ("a=1", "a", exact("2"), false),
            ("b=1&a=1", "a", exact("1"), true),
            ("a=2&a=1", "a", exact("1"), false),
            ("a=%31", "a", exact("1"), true),
            ("%61=1", "a", exact("1"), true),
            ("a=x+y%20z", "a", exact("x y z"), true),
            ("a=%zz%4", "a", exact("%zz%4"), true),
            ("a", "a", exact(""), true),
            ("a", "a", Text::Present, true),
            ("", "a", Text::Present, false),
            ("", "", Text::Present, true),
            ("A=1", "a", Text::Present, false),
            ("a=%6aason", "a", Text::Prefix("jas".into()), true),
            ("a=ja", "a", Text::Prefix("jas".into()), false),
            ("a=%6aason", "a", Text::Regex(Pattern::new("j[a-z]+").unwrap()), true),
            ("a=jason", "a", Text::Regex(Pattern::new("j[a-z]+").unwrap()), true),
            ("a=jason1", "a", Text::Regex(Pattern::new("j[a-z]+").unwrap()), false),
        ] {
            let wanted = QueryMatch { name: name.into(), value };
            assert_eq!(wanted.matches(query), expected, "{query} {wanted:?}");
        }
    }
}
