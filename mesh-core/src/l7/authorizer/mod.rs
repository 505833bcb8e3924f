//! External authorizers: who is asked about requests that a CUSTOM policy matches, what they are told, and what their answers change. The control plane makes
//! them of the providers in the mesh settings; waypoints ask them, in one of Envoy's two forms (`http`; that of gRPC has its messages in mesh-proto).

mod http;

use std::time::Duration;

use ::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use arcstr::ArcStr;

pub use self::http::HttpForm;
use super::ClusterKey;
use super::headers::is_changeable;

/// How long an answer may take where nothing is said, as in Istio.
pub const USUAL_TIMEOUT: Duration = Duration::from_secs(600);
/// What a client is told where nobody has answered and nothing else is said.
pub const USUAL_STATUS: StatusCode = StatusCode::FORBIDDEN;

/// Who is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authorizer {
    /// What policies call it.
    pub name: ArcStr,
    /// Where it is.
    pub place: ClusterKey,
    /// How it is asked.
    pub form: Form,
    /// How long an answer may take.
    pub timeout: Duration,
    /// Without an answer the request is let through; else it is denied.
    pub fail_open: bool,
    /// What the client is told without an answer.
    pub status_on_error: StatusCode,
    /// It is shown the body; else it is not.
    pub body: Option<BodyShown>,
    /// Its changes of headers count for the choice of a route.
    pub routes_again: bool,
}

/// How an authorizer is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Form {
    /// By `envoy.service.auth.v3.Authorization/Check`.
    Grpc,
    /// By a request like the one that it is about.
    Http(HttpForm),
}

/// How much of a body is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyShown {
    /// At most so many bytes.
    pub most: usize,
    /// Of a longer one the beginning; else a longer one is refused with 413, whatever the authorizer would say.
    pub partial: bool,
    /// As bytes, not as a text: of gRPC only.
    pub as_bytes: bool,
}

/// What an authorizer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The request is let through.
    Allowed(Changes),
    /// It is not; the client is told this.
    Denied(Denial),
}

/// What changes of a request that is let through, and of the answer to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Of the request.
    pub request: HeaderEdits,
    /// Of the answer.
    pub response: HeaderEdits,
}

/// What a client is told whose request is not let through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    /// The status.
    pub status: StatusCode,
    /// Headers.
    pub headers: HeaderEdits,
    /// The body.
    pub body: Vec<u8>,
}

/// What is done with one header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edit {
    /// It is replaced, or made.
    Set,
    /// A line more.
    Append,
    /// It is made if it is not there.
    AddIfAbsent,
    /// It is replaced if it is there.
    SetIfPresent,
}

/// Changes of headers that somebody outside of the mesh asks for: only those that a rule could ask for as well.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderEdits {
    edits: Vec<(HeaderName, HeaderValue, Edit)>,
    remove: Vec<HeaderName>,
}

impl HeaderEdits {
    /// Adds one; one of a header that nobody may change is left out.
    pub fn edit(&mut self, name: HeaderName, value: HeaderValue, edit: Edit) {
        if is_theirs(&name) {
            self.edits.push((name, value, edit));
        }
    }

    /// A header is taken away, before anything else is done; one that nobody may change stays.
    pub fn remove(&mut self, name: HeaderName) {
        if is_theirs(&name) {
            self.remove.push(name);
        }
    }

    /// Nothing is changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.edits.is_empty() && self.remove.is_empty()
    }

    /// Changes `headers`. A header that there is no room for is left out.
    pub fn apply(&self, headers: &mut HeaderMap) {
        for name in &self.remove {
            headers.remove(name);
        }
        for (name, value, edit) in &self.edits {
            let is_there = headers.contains_key(name);
            match edit {
                Edit::Append => drop(headers.try_append(name.clone(), value.clone())),
                Edit::AddIfAbsent if is_there => {}
                Edit::SetIfPresent if !is_there => {}
                Edit::Set | Edit::AddIfAbsent | Edit::SetIfPresent => {
                    drop(headers.try_insert(name.clone(), value.clone()));
                }
            }
        }
    }
}

/// Whether an authorizer may change a header: not those that say what the message or the connection is, nor what only the mesh says.
fn is_theirs(name: &HeaderName) -> bool {
    is_changeable(name) && *name != ::http::header::EXPECT && !name.as_str().starts_with("x-mesh-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_changed_as_it_is_asked_and_some_never() {
        let name = |name: &'static str| HeaderName::from_static(name);
        let value = |value: &'static str| HeaderValue::from_static(value);
        let mut edits = HeaderEdits::default();
        assert!(edits.is_empty());
        for (header, edit) in [
            ("set", Edit::Set),
            ("append", Edit::Append),
            ("absent", Edit::AddIfAbsent),
            ("new", Edit::AddIfAbsent),
            ("present", Edit::SetIfPresent),
            ("none", Edit::SetIfPresent),
            ("host", Edit::Set),
            ("content-length", Edit::Set),
            ("x-mesh-hops", Edit::Set),
            ("expect", Edit::Append),
        ] {
            edits.edit(name(header), value("2"), edit);
        }
        for header in ["gone", "x-mesh-hops", "transfer-encoding"] {
            edits.remove(name(header));
        }
        let old = ["set", "append", "absent", "present", "gone", "x-mesh-hops", "host", "transfer-encoding"];
        let mut headers: HeaderMap = old.into_iter().map(|header| (name(header), value("1"))).collect();
        edits.apply(&mut headers);
        let mut all: Vec<_> =
            headers.iter().map(|(name, value)| format!("{name}={}", value.to_str().unwrap())).collect();
        all.sort();
        let expected = [
            "absent=1",
            "append=1",
            "append=2",
            "host=1",
            "new=2",
            "present=2",
            "set=2",
            "transfer-encoding=1",
            "x-mesh-hops=1",
        ];
        assert_eq!(all, expected);
    }
}
