//! A YAML document as a tree that remembers where each value stands. The folder source parses every document to this tree once; the readers of
//! core kinds deserialize from it (`yaml::fit`), the readers of Istio kinds walk it by hand.

use std::fmt;

use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

/// Line and column (from 1) and length in characters, within the document's text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// Line, from 1; 0 if unknown.
    pub line: u32,
    /// Column, from 1.
    pub column: u32,
    /// Characters covered.
    pub width: u32,
}

/// A value with its place.
#[derive(Clone, Debug)]
pub struct Node {
    /// The value.
    pub value: Value,
    /// Where it begins.
    pub span: Span,
}

/// One entry of a mapping.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Where the key stands.
    pub key_span: Span,
    /// The value.
    pub node: Node,
}

/// What a YAML node can be.
#[derive(Clone, Debug)]
pub enum Value {
    /// `null`, `~` or nothing.
    Null,
    /// `true`, `false`, or one of the other spellings of YAML 1.1, which is what Kubernetes reads.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// An integer above `i64::MAX`.
    Big(u64),
    /// A number with a fraction.
    Float(f64),
    /// A string.
    String(String),
    /// A list.
    List(Vec<Node>),
    /// A mapping, in the order written.
    Map(Vec<Entry>),
}

impl Value {
    /// What to call it in a message.
    pub fn kind(&self) -> &'static str {
        match self {
            Value::Null => "nothing",
            Value::Bool(_) => "a boolean",
            Value::Int(_) | Value::Big(_) | Value::Float(_) => "a number",
            Value::String(_) => "a string",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }
}

impl Node {
    /// The value of `key` if this is a mapping that has it.
    pub fn get(&self, key: &str) -> Option<&Node> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|e| e.key == key).map(|e| &e.node),
            _ => None,
        }
    }

    /// The text if this is a string.
    pub fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// Where `field` (`spec.rules[0].from`) stands; the place of its nearest parent if it is absent. For the name of a key
    /// rather than its value, `field` ends in `!`.
    pub fn locate(&self, field: &str) -> Span {
        let (field, key_wanted) = match field.strip_suffix('!') {
            Some(field) => (field, true),
            None => (field, false),
        };
        let mut node = self;
        let mut span = self.span;
        for segment in segments(field) {
            match (segment, &node.value) {
                (Segment::Key(key), Value::Map(entries)) => match entries.iter().find(|e| e.key == key) {
                    Some(entry) => {
                        span = if key_wanted || is_block(&entry.node) { entry.key_span } else { entry.node.span };
                        node = &entry.node;
                    }
                    None => return span,
                },
                (Segment::Index(index), Value::List(items)) => match items.get(index) {
                    Some(item) => {
                        span = item.span;
                        node = item;
                    }
                    None => return span,
                },
                _ => return span,
            }
        }
        span
    }
}

/// A mapping or a list: its key is the better place to point at.
fn is_block(node: &Node) -> bool {
    matches!(node.value, Value::List(_) | Value::Map(_) | Value::Null)
}

enum Segment<'a> {
    Key(&'a str),
    Index(usize),
}

/// Splits `a.b[2]["x.y"]` into its steps. Keys with dots are written in quoted brackets.
fn segments(field: &str) -> Vec<Segment<'_>> {
    let mut out = Vec::new();
    let mut rest = field;
    while !rest.is_empty() {
        if let Some(inner) = rest.strip_prefix("[\"") {
            let Some((key, tail)) = inner.split_once("\"]") else { break };
            out.push(Segment::Key(key));
            rest = tail.strip_prefix('.').unwrap_or(tail);
        } else if let Some(inner) = rest.strip_prefix('[') {
            let Some((index, tail)) = inner.split_once(']') else { break };
            let Ok(index) = index.parse() else { break };
            out.push(Segment::Index(index));
            rest = tail.strip_prefix('.').unwrap_or(tail);
        } else {
            let end = rest.find(['.', '[']).unwrap_or(rest.len());
            out.push(Segment::Key(&rest[..end]));
            rest = &rest[end..];
            rest = rest.strip_prefix('.').unwrap_or(rest);
        }
    }
    out
}

/// `parent.key`, or `parent["a.b/c"]` for a key that is not a plain word.
pub fn join(parent: &str, key: &str) -> String {
    let plain = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    match (parent.is_empty(), plain) {
        (true, true) => key.to_owned(),
        (false, true) => format!("{parent}.{key}"),
        (_, false) => format!("{parent}[\"{key}\"]"),
    }
}

fn span_of(location: serde_saphyr::Location) -> Span {
    let clip = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    Span { line: clip(location.line()), column: clip(location.column()), width: clip(location.span().len()) }
}

/// How much a single document may hold; far above any real object, far below what hurts.
fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: 64,
            max_nodes: 2_000_000,
            max_events: 5_000_000,
            max_aliases: 1_000,
            max_anchors: 1_000,
            max_documents: 4,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: 20_000,
            max_replay_stack_depth: 16,
            max_alias_expansions_per_anchor: 500,
        },
        // A name or label called `no` is refused by Kubernetes: it must not mean something here.
        strict_booleans: false,
        with_snippet: false,
        emit_comments: false,
    }
}

/// Parses one document. The error carries a message and the place, both within `text`.
pub fn parse(text: &str) -> Result<Node, (String, Span)> {
    let parsed: Result<Spanned<Shadow>, _> = serde_saphyr::from_str_with_options(text, options());
    match parsed {
        Ok(node) => Ok(settle(node)),
        Err(error) => {
            let mut span = error.location().map(span_of).unwrap_or_default();
            span.width = 1;
            Err((message_of(&error), span))
        }
    }
}

/// The parser's message without the place, which is printed in our own form.
fn message_of(error: &serde_saphyr::Error) -> String {
    let text = error.without_snippet().to_string();
    let first = text.lines().next().unwrap_or_default();
    let cut = first.split(" at line ").next().unwrap_or(first);
    let cut = match cut.strip_prefix("error: ") {
        Some(rest) => rest.split_once(": ").filter(|(p, _)| p.starts_with("line ")).map_or(rest, |(_, r)| r),
        None => cut,
    };
    cut.trim_end_matches('.').to_owned()
}

/// What the parser fills; turned into [`Node`] afterwards.
enum Shadow {
    Null,
    Bool(bool),
    Int(i64),
    Big(u64),
    Float(f64),
    String(String),
    List(Vec<Spanned<Shadow>>),
    Map(Vec<(Spanned<String>, Spanned<Shadow>)>),
}

fn settle(node: Spanned<Shadow>) -> Node {
    let span = span_of(node.referenced);
    let value = match node.value {
        Shadow::Null => Value::Null,
        Shadow::Bool(b) => Value::Bool(b),
        Shadow::Int(n) => Value::Int(n),
        Shadow::Big(n) => Value::Big(n),
        Shadow::Float(n) => Value::Float(n),
        Shadow::String(s) => Value::String(s),
        Shadow::List(items) => Value::List(items.into_iter().map(settle).collect()),
        Shadow::Map(entries) => Value::Map(
            entries
                .into_iter()
                .map(|(key, value)| {
                    let key_span = span_of(key.referenced);
                    Entry { key: key.value, key_span, node: settle(value) }
                })
                .collect(),
        ),
    };
    Node { value, span }
}

impl<'de> serde::Deserialize<'de> for Shadow {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ShadowVisitor;
        impl<'de> Visitor<'de> for ShadowVisitor {
            type Value = Shadow;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a YAML value")
            }
            fn visit_unit<E>(self) -> Result<Shadow, E> {
                Ok(Shadow::Null)
            }
            fn visit_none<E>(self) -> Result<Shadow, E> {
                Ok(Shadow::Null)
            }
            fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Shadow, D::Error> {
                deserializer.deserialize_any(ShadowVisitor)
            }
            fn visit_bool<E>(self, value: bool) -> Result<Shadow, E> {
                Ok(Shadow::Bool(value))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Shadow, E> {
                Ok(Shadow::Int(value))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Shadow, E> {
                Ok(i64::try_from(value).map_or(Shadow::Big(value), Shadow::Int))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Shadow, E> {
                Ok(Shadow::Float(value))
            }
            fn visit_str<E>(self, value: &str) -> Result<Shadow, E> {
                Ok(Shadow::String(value.to_owned()))
            }
            fn visit_string<E>(self, value: String) -> Result<Shadow, E> {
                Ok(Shadow::String(value))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shadow, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(Shadow::List(items))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Shadow, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Shadow::Map(entries))
            }
        }
        deserializer.deserialize_any(ShadowVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_those_of_the_text() {
        let text = "metadata:\n  name: web\n  labels: {app.kubernetes.io/name: web}\nspec:\n  ports:\n  - port: 80\n";
        let node = parse(text).unwrap();
        let place = |field: &str| {
            let span = node.locate(field);
            (span.line, span.column, span.width)
        };
        assert_eq!(place("metadata.name"), (2, 9, 3));
        assert_eq!(place("metadata.name!"), (2, 3, 4));
        assert_eq!(place("metadata.labels[\"app.kubernetes.io/name\"]"), (3, 36, 3));
        assert_eq!(place("spec.ports[0].port"), (6, 11, 2));
        assert_eq!(place("spec.ports[0].absent"), place("spec.ports[0]"));
        assert_eq!(place("spec"), (4, 1, 4));
    }

    #[test]
    fn scalars_have_the_type_that_they_look_like() {
        let node = parse("a: true\nb: on\nc: '80'\nd: 1.5\ne:\nf: 18446744073709551615\ng: n\n").unwrap();
        let kind = |key: &str| node.get(key).unwrap().value.kind();
        assert_eq!(
            ["a", "b", "c", "d", "e", "f", "g"].map(kind),
            ["a boolean", "a boolean", "a string", "a number", "nothing", "a number", "a boolean"]
        );
    }
}
