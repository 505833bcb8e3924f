//! How policies compare paths and other texts.

use std::hash;

use arcstr::ArcStr;

use super::super::path::{respelled, unescaped};
use crate::policy::StringMatch;

/// Why a text is no pattern of a path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathPatternError {
    /// Nothing is written.
    #[error("an empty path")]
    Empty,
    /// `*` elsewhere than at one end.
    #[error("{0:?}: `*` is a wildcard at the beginning or the end only")]
    Star(String),
    /// Braces that are no template.
    #[error(
        "{0:?}: a template has `{{*}}` and `{{**}}` as whole segments, `{{**}}` as the last of them, and no other `*`"
    )]
    Template(String),
}

/// Which paths are meant: `/a`, `/a*`, `*a`, `*`, or a template such as `/a/{*}/b/{**}`.
#[derive(Clone, Debug)]
pub struct PathPattern {
    text: ArcStr,
    /// In the spelling that requests have.
    spelt: Shape,
    /// As applications may read it.
    plain: Shape,
}

#[derive(Clone, Debug)]
enum Shape {
    Exact(String),
    Prefix(String),
    Suffix(String),
    Present,
    /// Segments from the front, then what comes after `{**}` if there is that.
    Template(Vec<Segment>, Option<String>),
}

#[derive(Clone, Debug)]
enum Segment {
    Text(String),
    /// One, of at least one character.
    Any,
}

impl PathPattern {
    /// Reads one.
    pub fn new(text: impl Into<ArcStr>) -> Result<Self, PathPatternError> {
        let text = text.into();
        let spelt = Shape::new(&text, respelled)?;
        let plain = Shape::new(&text, unescaped)?;
        Ok(Self { text, spelt, plain })
    }

    /// As it was written.
    #[must_use]
    pub fn text(&self) -> &ArcStr {
        &self.text
    }

    /// Whether a path is meant as it is spelt.
    pub(super) fn matches(&self, path: &str) -> bool {
        self.spelt.matches(path)
    }

    /// Whether it is meant as applications may read it.
    pub(super) fn matches_plainest(&self, plainest: &str) -> bool {
        self.plain.matches(plainest)
    }
}

impl PartialEq for PathPattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for PathPattern {}

impl hash::Hash for PathPattern {
    fn hash<H: hash::Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl Shape {
    fn new(text: &str, spell: fn(&str) -> String) -> Result<Self, PathPatternError> {
        if text.is_empty() {
            return Err(PathPatternError::Empty);
        }
        if text.contains(['{', '}']) {
            return Self::template(text, spell);
        }
        let (shape, inner): (fn(String) -> Self, &str) = match (text.strip_prefix('*'), text.strip_suffix('*')) {
            (Some(""), _) => return Ok(Self::Present),
            (Some(rest), _) => (Self::Suffix, rest),
            (_, Some(rest)) => (Self::Prefix, rest),
            _ => (Self::Exact, text),
        };
        match inner.contains('*') {
            true => Err(PathPatternError::Star(text.chars().take(200).collect())),
            false => Ok(shape(spell(inner))),
        }
    }

    fn template(text: &str, spell: fn(&str) -> String) -> Result<Self, PathPatternError> {
        let wrong = || PathPatternError::Template(text.chars().take(200).collect());
        let literal = |part: &str| match part.contains(['{', '}', '*']) {
            true => Err(wrong()),
            false => Ok(spell(part)),
        };
        let (front, end) = match text.split_once("{**}") {
            Some((front, end)) => {
                let is_whole = front.ends_with('/') && (end.is_empty() || end.starts_with('/'));
                (front.strip_suffix('/').filter(|_| is_whole).ok_or_else(wrong)?, Some(literal(end)?))
            }
            None => (text, None),
        };
        let rest = if front.is_empty() { front } else { front.strip_prefix('/').ok_or_else(wrong)? };
        let parts = rest.split('/').take(if front.is_empty() { 0 } else { usize::MAX });
        let segments = parts.map(|part| match part {
            "{*}" => Ok(Segment::Any),
            part => literal(part).map(Segment::Text),
        });
        Ok(Self::Template(segments.collect::<Result<_, _>>()?, end))
    }

    fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(text) => path == text,
            Self::Prefix(text) => path.starts_with(text.as_str()),
            Self::Suffix(text) => path.ends_with(text.as_str()),
            Self::Present => !path.is_empty(),
            Self::Template(segments, end) => {
                let mut rest = path;
                for segment in segments {
                    let Some(tail) = rest.strip_prefix('/') else { return false };
                    let (part, tail) = tail.split_at(tail.find('/').unwrap_or(tail.len()));
                    let is = match segment {
                        Segment::Any => !part.is_empty(),
                        Segment::Text(text) => part == text,
                    };
                    if !is {
                        return false;
                    }
                    rest = tail;
                }
                match end {
                    None => rest.is_empty(),
                    Some(end) => rest.strip_prefix('/').is_some_and(|rest| rest.ends_with(end.as_str())),
                }
            }
        }
    }
}

/// [`StringMatch`] on bytes: values of headers need not be UTF-8.
pub(super) fn text_matches(pattern: &StringMatch, value: &[u8]) -> bool {
    match pattern {
        StringMatch::Exact(text) => value == text.as_bytes(),
        StringMatch::Prefix(text) => value.starts_with(text.as_bytes()),
        StringMatch::Suffix(text) => value.ends_with(text.as_bytes()),
        StringMatch::Presence => !value.is_empty(),
    }
}
