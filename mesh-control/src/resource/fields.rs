//! Walks the tree of an Istio object by hand, so that every field that is not known, and every value that is not right, is reported with
//! its place, all of them at once. Nothing in a security policy may be ignored: an ignored restriction is an opening.

use std::collections::BTreeMap;

use super::Labels;
use crate::diagnosis::{Problem, closest};
use crate::yaml::node::{Entry, Node as Tree, Value, join};

/// Collects problems while an object is read.
#[derive(Debug, Default)]
pub struct Fields {
    /// What was found so far.
    pub problems: Vec<Problem>,
}

/// A mapping whose keys have been checked.
#[derive(Clone, Debug)]
pub struct Mapping<'a> {
    entries: &'a [Entry],
    path: String,
}

impl<'a> Mapping<'a> {
    /// The path of the mapping.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The path of one of its fields.
    pub fn field(&self, key: &str) -> String {
        join(&self.path, key)
    }

    /// The value of a field.
    pub fn get(&self, key: &str) -> Option<&'a Tree> {
        self.entries.iter().find(|e| e.key == key).map(|e| &e.node)
    }

    /// All fields.
    pub fn entries(&self) -> &'a [Entry] {
        self.entries
    }
}

impl Fields {
    /// Reports an error.
    pub fn error(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.problems.push(Problem::error(field, message));
    }

    /// The node as a mapping with no field outside `known`; unknown ones are reported, with what was probably meant.
    pub fn mapping<'a>(&mut self, tree: &'a Tree, path: &str, known: &[&str]) -> Option<Mapping<'a>> {
        let mapping = self.any_mapping(tree, path)?;
        for entry in mapping.entries {
            if known.contains(&entry.key.as_str()) {
                continue;
            }
            let problem =
                Problem::error(format!("{}!", join(path, &entry.key)), format!("unknown field {:?}", entry.key));
            let help = match closest(&entry.key, known) {
                Some(meant) => format!("did you mean `{meant}`?"),
                None => format!("known fields here: {}", known.join(", ")),
            };
            self.problems.push(problem.help(help));
        }
        Some(mapping)
    }

    /// The node as a mapping with any fields.
    pub fn any_mapping<'a>(&mut self, tree: &'a Tree, path: &str) -> Option<Mapping<'a>> {
        match &tree.value {
            Value::Map(entries) => Some(Mapping { entries, path: path.to_owned() }),
            other => {
                self.wrong(path, "a mapping", other);
                None
            }
        }
    }

    /// A field as a list that is not empty; `None` if it is absent or wrong.
    pub fn list<'a>(&mut self, mapping: &Mapping<'a>, key: &str) -> Option<&'a [Tree]> {
        let tree = mapping.get(key)?;
        match &tree.value {
            Value::List(items) if items.is_empty() => {
                let problem = Problem::error(
                    mapping.field(key),
                    "an empty list matches nothing and everything, depending on who reads it",
                );
                self.problems
                    .push(problem.help("delete the field if it should not restrict anything, else list the values"));
                None
            }
            Value::List(items) => Some(items),
            other => {
                self.wrong(&mapping.field(key), "a list", other);
                None
            }
        }
    }

    /// A field as a list of strings that are not empty, each with its path.
    pub fn strings<'a>(&mut self, mapping: &Mapping<'a>, key: &str) -> Vec<(String, &'a str)> {
        let items = self.list(mapping, key).unwrap_or_default();
        let mut out = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            let path = format!("{}[{index}]", mapping.field(key));
            if let Some(text) = self.text(item, &path) {
                out.push((path, text));
            }
        }
        out
    }

    /// A field as a string that is not empty.
    pub fn string<'a>(&mut self, mapping: &Mapping<'a>, key: &str) -> Option<&'a str> {
        let tree = mapping.get(key)?;
        self.text(tree, &mapping.field(key))
    }

    fn text<'a>(&mut self, tree: &'a Tree, path: &str) -> Option<&'a str> {
        const LONGEST: usize = 4096;
        match &tree.value {
            Value::String(text) if text.is_empty() => self.error(path, "an empty string"),
            Value::String(text) if text.len() > LONGEST => self.error(path, format!("longer than {LONGEST} bytes")),
            Value::String(text) if text.chars().any(char::is_control) => {
                self.error(path, "it holds control characters")
            }
            Value::String(text) => return Some(text),
            other => self.wrong(path, "a string", other),
        }
        None
    }

    /// The `selector` of a policy: its `matchLabels`; absent and empty mean everything in scope.
    pub fn selector(&mut self, spec: &Mapping<'_>) -> Option<Labels> {
        let Some(tree) = spec.get("selector") else { return Some(BTreeMap::new()) };
        let before = self.problems.len();
        let path = spec.field("selector");
        let selector = self.mapping(tree, &path, &["matchLabels"])?;
        let labels = match selector.get("matchLabels") {
            Some(tree) => self.labels(tree, &selector.field("matchLabels"))?,
            None => BTreeMap::new(),
        };
        (self.problems.len() == before).then_some(labels)
    }

    /// Labels that are compared as a whole.
    pub fn labels(&mut self, tree: &Tree, path: &str) -> Option<Labels> {
        let matching = self.any_mapping(tree, path)?;
        let mut labels = BTreeMap::new();
        for entry in matching.entries() {
            let path = matching.field(&entry.key);
            match &entry.node.value {
                Value::String(value) if value.contains('*') => {
                    self.error(path, "a selector compares whole values, `*` is not a wildcard here");
                }
                Value::String(value) => {
                    labels.insert(entry.key.clone(), value.clone());
                }
                other => self.wrong(&path, "a string", other),
            }
        }
        Some(labels)
    }

    fn wrong(&mut self, path: &str, wanted: &str, found: &Value) {
        self.problems.push(wrong(path, wanted, found));
    }
}

/// What to do about a boolean or a number where a string belongs. Kubernetes refuses it as well, and reads YAML 1.1 as we do.
pub const IN_QUOTES: &str =
    "write the value in quotes: YAML reads yes, no, on, off, y and n as booleans, and digits as numbers";

/// A value of the wrong type.
pub fn wrong(path: &str, wanted: &str, found: &Value) -> Problem {
    let problem = Problem::error(path, format!("expected {wanted}, found {}", found.kind()));
    match (wanted, found) {
        (_, Value::Null) => problem.help("delete the field or give it a value"),
        ("a string", Value::Map(_)) => {
            problem.help("write the value in quotes: YAML reads `a: b` and `a::` as mappings")
        }
        ("a string", Value::Bool(_) | Value::Int(_) | Value::Big(_) | Value::Float(_)) => problem.help(IN_QUOTES),
        ("a list", _) => problem.help("begin each item with `- `"),
        _ => problem,
    }
}
