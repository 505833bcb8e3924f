//! Another path, another host. This is where memory is allocated, and only for rules that change something.

use arcstr::ArcStr;

use super::{Condition, PathKind, Replacement};

/// What of a request is changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rewrite {
    /// The path.
    pub path: Option<PathChange>,
    /// The host that is asked for, with its port if it is to have one.
    pub authority: Option<ArcStr>,
}

/// How a path is changed. The query stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathChange {
    /// This instead of all of it.
    Full(ArcStr),
    /// This instead of the prefix that the rule means. A rule that means whole paths, or patterns, has its whole path replaced.
    Prefix(ArcStr),
    /// Replacements of what a pattern finds.
    Regex(Replacement),
}

impl PathChange {
    /// The path that comes of `path` (without a query) under a rule with this condition. It begins with `/`.
    #[must_use]
    pub fn apply(&self, path: &str, condition: Option<&Condition>) -> String {
        let changed = match self {
            Self::Full(text) => text.to_string(),
            Self::Regex(replacement) => replacement.apply(path),
            Self::Prefix(text) => {
                let matched = condition.and_then(|condition| condition.path.as_ref()).map(|path| &path.kind);
                match matched {
                    None => format!("{text}{}", path.strip_prefix('/').unwrap_or(path)),
                    Some(PathKind::Segments(prefix)) => segments(path, prefix, text),
                    Some(PathKind::Prefix(prefix)) => raw(path, prefix, text),
                    Some(PathKind::Exact(_) | PathKind::Regex(_)) => text.to_string(),
                }
            }
        };
        if changed.starts_with('/') { changed } else { format!("/{changed}") }
    }
}

/// `prefix` is whole segments, with or without a final slash, and so is what stands for it.
fn segments(path: &str, prefix: &str, text: &str) -> String {
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
    let rest = path.get(prefix.len()..).unwrap_or_default();
    if rest.is_empty() { text.to_owned() } else { format!("{}{rest}", text.strip_suffix('/').unwrap_or(text)) }
}

/// Text for text; but a prefix that becomes `/` takes the slash after it along.
fn raw(path: &str, prefix: &str, text: &str) -> String {
    let rest = path.get(prefix.len()..).unwrap_or_default();
    let rest = if text == "/" { rest.strip_prefix('/').unwrap_or(rest) } else { rest };
    format!("{text}{rest}")
}

/// The path with the query of the request, unless it has one of its own. A fragment, which only a place that a client is sent to has, stays at the end.
pub(super) fn with_query(mut path: String, query: Option<&str>) -> String {
    let end = path.find('#').unwrap_or(path.len());
    if let Some(query) = query.filter(|_| !path[..end].contains('?')) {
        path.insert_str(end, query);
        path.insert(end, '?');
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::l7::Pattern;

    fn meant(kind: Option<PathKind>) -> Condition {
        Condition { path: kind.map(Into::into), ..Condition::default() }
    }

    #[test]
    fn what_stands_for_a_prefix() {
        let segments = |text: &str| Some(PathKind::Segments(text.into()));
        let raw = |text: &str| Some(PathKind::Prefix(text.into()));
        for (kind, path, text, expected) in [
            // The table of the Gateway API's documentation.
            (segments("/foo"), "/foo/bar", "/xyz", "/xyz/bar"),
            (segments("/foo"), "/foo/bar", "/xyz/", "/xyz/bar"),
            (segments("/foo/"), "/foo/bar", "/xyz", "/xyz/bar"),
            (segments("/foo/"), "/foo/bar", "/xyz/", "/xyz/bar"),
            (segments("/foo"), "/foo", "/xyz", "/xyz"),
            (segments("/foo/"), "/foo", "/xyz", "/xyz"),
            (segments("/foo"), "/foo/", "/xyz", "/xyz/"),
            (segments("/foo"), "/foo/bar", "", "/bar"),
            (segments("/foo/"), "/foo/bar", "/", "/bar"),
            (segments("/foo"), "/foo/", "", "/"),
            (segments("/foo"), "/foo", "", "/"),
            (segments("/foo"), "/foo", "/", "/"),
            (segments("/"), "/a", "/b", "/b/a"),
            (raw("/ratings"), "/ratings/1", "/v1/bookRatings", "/v1/bookRatings/1"),
            (raw("/foo"), "/foobar", "/", "/bar"),
            (raw("/foo"), "/foo/bar", "/", "/bar"),
            (raw("/foo/"), "/foo/bar", "/", "/bar"),
            (raw("/foo/"), "/foo/bar", "/v2/", "/v2/bar"),
            (None, "/a", "/v1/", "/v1/a"),
            (Some(PathKind::Exact("/a".into())), "/a", "/b", "/b"),
            (Some(PathKind::Regex(Pattern::new("/.*").unwrap())), "/a", "b", "/b"),
        ] {
            let changed = PathChange::Prefix(text.into()).apply(path, Some(&meant(kind.clone())));
            assert_eq!(changed, expected, "{kind:?} {path} -> {text}");
        }
        assert_eq!(PathChange::Full("/one".into()).apply("/a/b", None), "/one");
        let change = PathChange::Regex(Replacement::new("/a/(.*)", r"\1").unwrap());
        assert_eq!(change.apply("/a/b", None), "/b");
    }
}
