//! A serde deserializer over a tree that lets nothing pass: every field that a type does not have is reported with what was probably meant, and so is every
//! value that does not fit, all of them and not only the first. The kinds of `routing` are read with it: their types are the tables of their fields.
//!
//! serde ends at the first error. What is wrong is therefore left out and the tree read again, until nothing new is found; only broken objects cost more.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, forward_to_deserialize_any};

use super::fields::wrong;
use crate::diagnosis::{Problem, Severity, closest};
use crate::yaml::node::{Entry, Node, Value, join};

/// Errors that are looked for in one object, and fields that it may have too many of.
const MOST: usize = 20;

/// Why a tree does not fit a type.
#[derive(Debug)]
pub struct Fault {
    /// The field, once it is known.
    field: Option<String>,
    message: String,
    help: Option<String>,
    /// A field that is not there.
    missing: Option<&'static str>,
}

impl Fault {
    fn new(message: String) -> Self {
        Self { field: None, message, help: None, missing: None }
    }

    fn of(problem: Problem) -> Self {
        Self { help: problem.help, ..Self::new(problem.message) }
    }

    /// The innermost place that says so is where it is.
    fn at(mut self, path: &str) -> Self {
        self.field.get_or_insert_with(|| path.to_owned());
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field.as_deref().unwrap_or_default(), self.message)
    }
}

impl std::error::Error for Fault {}

impl de::Error for Fault {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(message.to_string())
    }

    fn missing_field(field: &'static str) -> Self {
        Self { missing: Some(field), ..Self::new(format!("the field `{field}` is missing")) }
    }
}

/// What a field is that is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// An error.
    Wrong,
    /// An error if it is nearly a known one; else it may be of a later version.
    Either,
    /// Of a later version.
    Later,
}

/// What is known while one object is read.
struct Context {
    /// Fields that were found to be wrong, which are not looked at again.
    left_out: HashSet<String>,
    /// What a field is that is not known.
    unknown: Unknown,
    /// Those fields.
    found: RefCell<Vec<Problem>>,
}

/// Reads a value at `path`. `None` if there is any error.
pub fn read<'de, T: Deserialize<'de>>(
    tree: &'de Node,
    path: &str,
    unknown: Unknown,
    problems: &mut Vec<Problem>,
) -> Option<T> {
    let mut context = Context { left_out: HashSet::new(), unknown, found: RefCell::default() };
    let mut errors: Vec<Problem> = Vec::new();
    let mut value = None;
    for _ in 0..MOST {
        let fault = match T::deserialize(Reader { node: tree, path: path.to_owned(), context: &context }) {
            Ok(read) => {
                value = Some(read);
                break;
            }
            Err(fault) => fault.at(path),
        };
        let field = fault.field.unwrap_or_default();
        // What is missing only because it was left out has been told.
        if !fault.missing.is_some_and(|missing| context.left_out.contains(&join(&field, missing))) {
            errors.push(Problem { help: fault.help, ..Problem::error(field.clone(), fault.message) });
        }
        if field == path || !context.left_out.insert(field) {
            break;
        }
    }
    let found = context.found.into_inner();
    let is_good = errors.is_empty() && found.iter().all(|problem| problem.severity != Severity::Error);
    problems.extend(found);
    problems.extend(errors);
    value.filter(|_| is_good)
}

struct Reader<'de, 'c> {
    node: &'de Node,
    path: String,
    context: &'c Context,
}

impl<'de> Reader<'de, '_> {
    fn wrong(&self, wanted: &str) -> Fault {
        Fault::of(wrong(&self.path, wanted, &self.node.value)).at(&self.path)
    }

    fn number(&self, least: i64, most: u64) -> Result<i128, Fault> {
        let number = match self.node.value {
            Value::Int(n) => i128::from(n),
            Value::Big(n) => i128::from(n),
            _ => return Err(self.wrong("a whole number")),
        };
        if number < i128::from(least) || number > i128::from(most) {
            let mut fault = Fault::new(format!("{number} is out of range")).at(&self.path);
            fault.help = Some(format!("write a number from {least} to {most}"));
            return Err(fault);
        }
        Ok(number)
    }

    fn entries(&self) -> Result<&'de [Entry], Fault> {
        match &self.node.value {
            Value::Map(entries) => Ok(entries),
            _ => Err(self.wrong("a mapping")),
        }
    }

    /// Tells of a field that is none.
    fn unknown(&self, key: &str, known: &[&str]) {
        let problem = Problem::error(format!("{}!", join(&self.path, key)), format!("unknown field {key:?}"));
        let help = match closest(key, known) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None if known.is_empty() => "there are no fields here".to_owned(),
            None => format!("known fields here: {}", known.join(", ")),
        };
        let severity = match self.context.unknown {
            Unknown::Later => Severity::Warning,
            Unknown::Either if closest(key, known).is_none() => Severity::Warning,
            Unknown::Either | Unknown::Wrong => Severity::Error,
        };
        let problem = Problem { severity, ..problem.help(help) };
        let mut found = self.context.found.borrow_mut();
        if found.len() < MOST && !found.contains(&problem) {
            found.push(problem);
        }
    }
}

macro_rules! numbers {
    ($($method:ident $visit:ident $type:ty, $least:expr, $most:expr;)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
            let number = self.number($least, $most)?;
            visitor.$visit(<$type>::try_from(number).unwrap_or_default())
        }
    )*};
}

impl<'de> Deserializer<'de> for Reader<'de, '_> {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(b) => visitor.visit_bool(*b),
            Value::Int(n) => visitor.visit_i64(*n),
            Value::Big(n) => visitor.visit_u64(*n),
            Value::Float(n) => visitor.visit_f64(*n),
            Value::String(s) => visitor.visit_borrowed_str(s),
            Value::List(_) => self.deserialize_seq(visitor),
            Value::Map(_) => self.deserialize_map(visitor),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.node.value {
            Value::Bool(b) => visitor.visit_bool(b),
            _ => Err(self.wrong("true or false")),
        }
    }

    numbers! {
        deserialize_u8 visit_u8 u8, 0, u64::from(u8::MAX);
        deserialize_u16 visit_u16 u16, 0, u64::from(u16::MAX);
        deserialize_u32 visit_u32 u32, 0, u64::from(u32::MAX);
        deserialize_u64 visit_u64 u64, 0, u64::MAX;
        deserialize_i32 visit_i32 i32, i64::from(i32::MIN), i32::MAX as u64;
        deserialize_i64 visit_i64 i64, i64::MIN, i64::MAX as u64;
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.node.value {
            Value::Float(n) => visitor.visit_f64(n),
            Value::Int(n) => visitor.visit_f64(n as f64),
            _ => Err(self.wrong("a number")),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::String(text) => visitor.visit_borrowed_str(text),
            _ => Err(self.wrong("a string")),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.node.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::List(items) => visitor.visit_seq(Items { items: items.iter().enumerate(), of: &self }),
            _ => Err(self.wrong("a list")),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let entries = self.entries()?.iter();
        visitor.visit_map(Entries { entries, known: None, current: None, of: &self })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        known: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let entries = self.entries()?.iter();
        visitor.visit_map(Entries { entries, known: Some(known), current: None, of: &self })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let Value::String(text) = &self.node.value else { return Err(self.wrong("a string")) };
        if !variants.contains(&text.as_str()) {
            let mut fault = Fault::new(format!("unknown value {text:?}")).at(&self.path);
            fault.help = Some(match closest(text, variants) {
                Some(meant) => format!("did you mean `{meant}`?"),
                None => format!("write one of {}", variants.join(", ")),
            });
            return Err(fault);
        }
        visitor.visit_enum(Variant(text))
    }

    forward_to_deserialize_any! {
        i8 i16 i128 u128 f32 char bytes byte_buf unit unit_struct tuple tuple_struct identifier ignored_any
    }
}

/// The name of a variant, which holds nothing.
struct Variant<'de>(&'de str);

impl<'de> EnumAccess<'de> for Variant<'de> {
    type Error = Fault;
    type Variant = Empty;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Empty), Fault> {
        Ok((seed.deserialize(self.0.into_deserializer())?, Empty))
    }
}

struct Empty;

impl<'de> de::VariantAccess<'de> for Empty {
    type Error = Fault;

    fn unit_variant(self) -> Result<(), Fault> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, _: T) -> Result<T::Value, Fault> {
        Err(Fault::new("a word cannot hold anything".to_owned()))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, Fault> {
        Err(Fault::new("a word cannot hold anything".to_owned()))
    }

    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], _: V) -> Result<V::Value, Fault> {
        Err(Fault::new("a word cannot hold anything".to_owned()))
    }
}

struct Items<'de, 'c> {
    items: std::iter::Enumerate<std::slice::Iter<'de, Node>>,
    of: &'c Reader<'de, 'c>,
}

impl<'de> SeqAccess<'de> for Items<'de, '_> {
    type Error = Fault;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Fault> {
        for (index, node) in self.items.by_ref() {
            let path = format!("{}[{index}]", self.of.path);
            if self.of.context.left_out.contains(&path) {
                continue;
            }
            let reader = Reader { node, path: path.clone(), context: self.of.context };
            return seed.deserialize(reader).map(Some).map_err(|fault| fault.at(&path));
        }
        Ok(None)
    }
}

struct Entries<'de, 'c> {
    entries: std::slice::Iter<'de, Entry>,
    /// The only fields that there may be, if it matters.
    known: Option<&'static [&'static str]>,
    current: Option<(&'de Node, String)>,
    of: &'c Reader<'de, 'c>,
}

impl<'de> MapAccess<'de> for Entries<'de, '_> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Fault> {
        for entry in self.entries.by_ref() {
            let path = join(&self.of.path, &entry.key);
            if self.of.context.left_out.contains(&path) {
                continue;
            }
            if let Some(known) = self.known.filter(|known| !known.contains(&entry.key.as_str())) {
                self.of.unknown(&entry.key, known);
                continue;
            }
            self.current = Some((&entry.node, path));
            return seed.deserialize(entry.key.as_str().into_deserializer()).map(Some);
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Fault> {
        let Some((node, path)) = self.current.take() else {
            return Err(Fault::new("a value without a key".to_owned()));
        };
        let reader = Reader { node, path: path.clone(), context: self.of.context };
        seed.deserialize(reader).map_err(|fault| fault.at(&path))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::yaml::node::parse;

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(rename_all = "camelCase")]
    struct Thing {
        name: String,
        #[serde(default)]
        ports: Vec<u16>,
        mode: Option<Mode>,
        #[serde(default)]
        parts: BTreeMap<String, Part>,
        share: Option<f64>,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(rename_all = "SCREAMING_SNAKE_CASE")]
    enum Mode {
        On,
        OffForever,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(rename_all = "camelCase")]
    struct Part {
        size: u32,
    }

    #[test]
    fn all_that_is_wrong_is_said_at_once() {
        for (text, expected) in [
            ("{name: a, ports: [1, 2], mode: OFF_FOREVER, parts: {x.y: {size: 1}}, share: 1}", &[][..]),
            ("{name: a, mode: null}", &[]),
            ("{}", &["s: the field `name` is missing"]),
            ("[]", &["s: expected a mapping, found a list"]),
            ("{name: 7}", &["s.name: expected a string, found a number (in quotes)"]),
            ("{name: a, ports: 80}", &["s.ports: expected a list, found a number (begin each item with `- `)"]),
            (
                "{nam: a, ports: [70000, -1, 80, x], mode: ON_FOREVER, parts: {a: {}, b: {size: 1, sise: 2}}}",
                &[
                    "s.nam!: unknown field \"nam\" (did you mean `name`?)",
                    "s.parts.b.sise!: unknown field \"sise\" (did you mean `size`?)",
                    "s.ports[0]: 70000 is out of range (write a number from 0 to 65535)",
                    "s.ports[1]: -1 is out of range (write a number from 0 to 65535)",
                    "s.ports[3]: expected a whole number, found a string",
                    "s.mode: unknown value \"ON_FOREVER\" (did you mean `OFF_FOREVER`?)",
                    "s.parts.a: the field `size` is missing",
                    "s: the field `name` is missing",
                ],
            ),
            ("{name: a, mode: OFF_FOREVR}", &["s.mode: unknown value \"OFF_FOREVR\" (did you mean `OFF_FOREVER`?)"]),
            (
                "{name: a, mode: 1, parts: []}",
                &["s.mode: expected a string, found a number (in quotes)", "s.parts: expected a mapping, found a list"],
            ),
        ] {
            let (tree, mut problems) = (parse(text).unwrap(), Vec::new());
            let thing: Option<Thing> = read(&tree, "s", Unknown::Wrong, &mut problems);
            let said: Vec<String> = problems
                .iter()
                .map(|p| {
                    let help = p.help.as_deref().map(|h| if h.contains("quotes") { "in quotes" } else { h });
                    format!("{}: {}{}", p.field, p.message, help.map(|h| format!(" ({h})")).unwrap_or_default())
                })
                .collect();
            assert_eq!(said, expected, "{text}");
            assert_eq!(thing.is_some(), expected.is_empty(), "{text}");
        }
    }

    #[test]
    fn fields_of_a_later_version_need_not_be_known() {
        for (text, unknown, severity) in [
            ("{name: a, later: {x: 1}}", Unknown::Wrong, Severity::Error),
            ("{name: a, later: {x: 1}}", Unknown::Either, Severity::Warning),
            ("{name: a, later: {x: 1}}", Unknown::Later, Severity::Warning),
            ("{name: a, prots: [1]}", Unknown::Either, Severity::Error),
            ("{name: a, prots: [1]}", Unknown::Later, Severity::Warning),
        ] {
            let (tree, mut problems) = (parse(text).unwrap(), Vec::new());
            let is_read = read::<Thing>(&tree, "s", unknown, &mut problems).is_some();
            assert_eq!((problems.len(), problems[0].severity), (1, severity), "{text} {unknown:?}");
            assert_eq!(is_read, severity == Severity::Warning, "{text} {unknown:?}");
        }
    }

    #[test]
    fn an_object_with_thousands_of_errors_says_some_of_them() {
        let text = format!("{{name: a, ports: [{}]}}", "x,".repeat(5000));
        let (tree, mut problems) = (parse(&text).unwrap(), Vec::new());
        assert!(read::<Thing>(&tree, "s", Unknown::Wrong, &mut problems).is_none());
        assert_eq!(problems.len(), MOST);
    }
}
