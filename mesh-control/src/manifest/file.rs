//! One file of manifests: its objects and what is wrong with them. Pure: the folder reader gives it bytes.

use std::collections::BTreeMap;

use xxhash_rust::xxh64::xxh64;

use super::guess::{Guess, What, guess, tree_mentions};
use crate::diagnosis::{Diagnosis, Place, Problem, Severity};
use crate::resource::catalog::Found;
use crate::resource::fields::wrong;
use crate::resource::meta::{self, Head, TypeMeta, head};
use crate::resource::{self, Key, Kind, Unreadable};
use crate::yaml::document::{self, Document};
use crate::yaml::node::{self, Node, Span, Value};
use crate::yaml::stack;

/// Objects in one file, and in one list of objects; more is a mistake or an attack.
const MAX_OBJECTS: usize = 200_000;
/// Diagnoses that one file may cause.
const MAX_DIAGNOSES: usize = 200;

/// What a file holds.
#[derive(Clone, Debug, Default)]
pub struct FileRead {
    /// Its objects with the line they begin at.
    pub found: Vec<(Found, u32)>,
    /// What is wrong.
    pub diagnoses: Vec<Diagnosis>,
    /// Some part could not even be identified: what came from the file before stays.
    pub unsettled: bool,
    /// Some part that may restrict traffic is not in `found`: at a start, when there is nothing that could stay, the file counts as unread.
    pub unread: bool,
    /// The reader failed, not the file: it may be read the next time.
    pub failed: bool,
}

/// Reads a file's bytes; `name` is its path in the folder.
pub fn read(name: &str, bytes: &[u8]) -> FileRead {
    apart(name, || read_here(name, bytes))
}

/// Runs the reader on a stack of its own; one that fails takes nothing else down.
pub(super) fn apart(name: &str, reader: impl FnOnce() -> FileRead + Send) -> FileRead {
    let why = match stack::with_room(reader) {
        Ok(read) => return read,
        Err(why) => why,
    };
    let diagnoses = vec![of_file(name, Severity::Error, format!("the file cannot be read: {why}"), None)];
    FileRead { found: Vec::new(), diagnoses, unsettled: true, unread: true, failed: true }
}

fn read_here(name: &str, bytes: &[u8]) -> FileRead {
    let mut reader = Reader { name, text: "", out: FileRead::default(), over: false, ignored: BTreeMap::new() };
    match document::text(bytes) {
        Ok(text) => {
            reader.text = text;
            for document in document::split(text) {
                reader.document(document);
            }
            reader.note_ignored();
        }
        Err((message, span)) => {
            reader.out.unsettled = true;
            reader.diagnose(None, Problem::error("", message).help("save the file as plain UTF-8 text"), span);
            // What restricts traffic must not be taken for absent. Without the NULs most of UTF-16 can be read.
            let text = String::from_utf8_lossy(bytes).replace('\0', "");
            for document in document::split(&text) {
                reader.guessed(guess(document.text), document.offset + 1);
            }
        }
    }
    reader.out
}

struct Reader<'a> {
    name: &'a str,
    text: &'a str,
    out: FileRead,
    /// There are more objects than are read.
    over: bool,
    /// Kinds that are not read: how many, and where the first stands.
    ignored: BTreeMap<String, (usize, u32)>,
}

impl Reader<'_> {
    fn document(&mut self, document: Document<'_>) {
        match node::parse(document.text) {
            Ok(tree) => self.tree(&tree, document.offset, None, 0),
            Err((message, span)) => self.broken(document, message, span),
        }
    }

    /// A document that is not YAML. What it was may still be told from its text; a security object is then known to be unreadable.
    fn broken(&mut self, document: Document<'_>, message: String, span: Span) {
        let guess = guess(document.text);
        let key = match &guess.what {
            What::Object(key) if guess.ours => Some(key),
            _ => None,
        };
        let quoted = guess.ours;
        let tab = document::tab(document.text);
        let problem = match tab {
            Some(_) => Problem::error("", "a tab in the indentation").help("indent with spaces"),
            None => Problem::error("", format!("not valid YAML: {message}")),
        };
        let span = moved(tab.unwrap_or(span), document.offset);
        self.diagnose(key, problem, span);
        if let Some(place) = self.out.diagnoses.last_mut().and_then(|d| d.place.as_mut()).filter(|_| !quoted) {
            place.excerpt.clear();
        }
        self.guessed(guess, document.offset + 1);
    }

    /// Takes a guess over. It never says all: more objects may be in the same text.
    fn guessed(&mut self, guess: Guess, line: u32) {
        self.out.unsettled = true;
        self.out.unread |= guess.vague;
        match guess.what {
            What::Object(key) => self.found(key, Err(Unreadable::default()), line),
            What::Restricts(kind, namespace) => self.suspect(kind, &namespace, line),
            What::Nothing => {}
        }
    }

    /// Something that restricts traffic is there, and which object it is cannot be told.
    fn suspect(&mut self, kind: Kind, namespace: &str, line: u32) {
        self.out.unsettled = true;
        let name = format!("unreadable-{:08x}", xxh64(format!("{}:{line}", self.name).as_bytes(), 0) as u32);
        let key = Key { kind, namespace: namespace.into(), name: name.into() };
        let closed = match kind {
            Kind::PeerAuthentication => "plaintext is",
            _ => "all connections are",
        };
        let message = format!(
            "it looks like an object of kind {} in namespace {namespace}, where {closed} refused until it can be read, \
             unless what the file held before is still in force",
            kind.name()
        );
        self.diagnose(Some(&key), Problem::error("", message), Span { line, column: 0, width: 0 });
        self.found(key, Err(Unreadable { nameless: true, ..Unreadable::default() }), line);
    }

    fn tree(&mut self, tree: &Node, offset: u32, inherited: Option<&TypeMeta>, depth: usize) {
        let before = self.out.diagnoses.len();
        self.object(tree, offset, inherited, depth);
        if is_secret(tree, inherited) {
            // A line of it may hold all of it.
            self.out.diagnoses[before..].iter_mut().filter_map(|d| d.place.as_mut()).for_each(|p| p.excerpt.clear());
        }
    }

    fn object(&mut self, tree: &Node, offset: u32, inherited: Option<&TypeMeta>, depth: usize) {
        let (head, problems) = head(tree, inherited);
        let key = match &head {
            Some(Head::Object(key)) => Some(key),
            _ => None,
        };
        let refused = meta::has_error(&problems);
        for problem in problems {
            let span = moved(tree.locate(&problem.field), offset);
            self.diagnose(key, problem, span);
        }
        match head {
            None => self.headless(tree, offset, inherited),
            Some(Head::List(of)) => self.list(tree, offset, of.as_ref(), depth),
            Some(Head::Other(what)) => self.other(tree, offset, what),
            Some(Head::Object(key)) => {
                let line = moved(tree.span, offset).line;
                if refused {
                    return self.found(key, Err(Unreadable::default()), line);
                }
                let read = resource::read(&key, tree);
                for problem in read.problems {
                    let span = moved(tree.locate(&problem.field), offset);
                    self.diagnose(Some(&key), problem, span);
                }
                self.found(key, read.outcome, line);
            }
        }
    }

    /// An object of which it is not known which one it is.
    fn headless(&mut self, tree: &Node, offset: u32, inherited: Option<&TypeMeta>) {
        self.out.unsettled = true;
        let text = |key: &str| tree.get(key).and_then(Node::as_str);
        let api_version = text("apiVersion").or(inherited.map(|of| of.api_version.as_str())).unwrap_or_default();
        let kind = text("kind").or(inherited.map(|of| of.kind.as_str())).unwrap_or_default();
        let kind = meta::restricting(group(api_version), kind);
        if !matches!(tree.value, Value::Map(_)) {
            self.out.unread |= kind.is_some() || tree_mentions(tree);
            return;
        }
        let Some(kind) = kind else { return };
        match self.namespace(tree, offset) {
            // There are no pods in a namespace that cannot be.
            Some(namespace) if meta::label(&namespace).is_err() => {}
            Some(namespace) => self.suspect(kind, &namespace, moved(tree.span, offset).line),
            None => self.out.unread = true,
        }
    }

    /// The namespace that an object says, if it can be told. What YAML reads as a number or a boolean was meant as it is written.
    fn namespace(&self, tree: &Node, offset: u32) -> Option<String> {
        let metadata = tree.get("metadata");
        if !matches!(metadata.map(|m| &m.value), None | Some(Value::Null | Value::Map(_))) {
            return None;
        }
        let Some(node) = metadata.and_then(|m| m.get("namespace")) else { return Some("default".to_owned()) };
        match &node.value {
            Value::Null => Some("default".to_owned()),
            Value::String(text) if text.is_empty() => Some("default".to_owned()),
            Value::String(text) => Some(text.clone()),
            Value::List(_) | Value::Map(_) => None,
            _ => {
                let Span { line, column, width } = moved(node.span, offset);
                let line = self.text.lines().nth((line as usize).checked_sub(1)?)?;
                let written = line.chars().skip((column as usize).checked_sub(1)?).take(width as usize);
                Some(written.collect()).filter(|text: &String| meta::label(text).is_ok())
            }
        }
    }

    fn list(&mut self, tree: &Node, offset: u32, of: Option<&TypeMeta>, depth: usize) {
        let problem = match tree.get("items").map(|items| &items.value) {
            _ if depth > 0 => Problem::error("kind", "a list within a list is not read").help("move its items up"),
            None | Some(Value::Null) => return,
            Some(Value::List(items)) => {
                return items.iter().for_each(|item| self.tree(item, offset, of, depth + 1));
            }
            Some(other) => wrong("items", "a list", other),
        };
        self.out.unsettled = true;
        self.out.unread |= tree_mentions(tree);
        let span = moved(tree.locate(&problem.field), offset);
        self.diagnose(None, problem, span);
    }

    fn other(&mut self, tree: &Node, offset: u32, TypeMeta { api_version, kind }: TypeMeta) {
        let restricts = api_version.starts_with("security.istio.io/") || kind == "NetworkPolicy";
        if restricts {
            let problem = Problem::warning("kind", format!("{kind} is not supported, it has no effect on the mesh"));
            return self.diagnose(None, problem, moved(tree.locate("kind"), offset));
        }
        let line = moved(tree.locate("kind"), offset).line;
        self.ignored.entry(kind).or_insert((0, line)).0 += 1;
    }

    fn note_ignored(&mut self) {
        for (kind, (count, line)) in std::mem::take(&mut self.ignored) {
            let many = if count == 1 { String::new() } else { format!(" ({count} objects)") };
            let span = Span { line, column: 0, width: 0 };
            self.diagnose(None, Problem::note("", format!("kind {kind} is not read{many}")), span);
        }
    }

    fn found(&mut self, key: Key, outcome: Result<resource::Object, Unreadable>, line: u32) {
        if self.out.found.len() >= MAX_OBJECTS {
            if !std::mem::replace(&mut self.over, true) {
                let message = format!("more than {MAX_OBJECTS} objects in one file, the others are not read");
                self.diagnose(None, Problem::error("", message), Span { line, column: 0, width: 0 });
            }
            (self.out.unsettled, self.out.unread) = (true, true);
            return;
        }
        self.out.found.push((Found { key, origin: self.name.to_owned(), outcome }, line));
    }

    fn diagnose(&mut self, key: Option<&Key>, problem: Problem, span: Span) {
        if self.out.diagnoses.len() >= MAX_DIAGNOSES {
            return;
        }
        let place = place(self.name, self.text, span);
        self.out.diagnoses.push(diagnosis(key, problem, Some(place)));
    }
}

/// Whether a document says that it is something that is shown to nobody.
fn is_secret(tree: &Node, inherited: Option<&TypeMeta>) -> bool {
    let kind = tree.get("kind").and_then(Node::as_str).or(inherited.map(|of| of.kind.as_str()));
    kind.is_some_and(|kind| Kind::ALL.into_iter().any(|known| known.is_secret() && known.name() == kind))
}

/// The group of an `apiVersion`.
pub(super) fn group(api_version: &str) -> &str {
    api_version.split('/').next().unwrap_or_default()
}

/// A problem as a diagnosis.
pub fn diagnosis(key: Option<&Key>, problem: Problem, place: Option<Place>) -> Diagnosis {
    Diagnosis {
        severity: problem.severity,
        object: key.map(Key::to_string).unwrap_or_default(),
        field: problem.field.trim_end_matches('!').to_owned(),
        message: problem.message,
        help: problem.help,
        place,
    }
}

/// A diagnosis about a whole file.
pub fn of_file(name: &str, severity: Severity, message: impl Into<String>, help: Option<&str>) -> Diagnosis {
    let place = Place { file: name.to_owned(), line: 0, column: 0, excerpt: String::new(), width: 0 };
    let problem = Problem { severity, field: String::new(), message: message.into(), help: help.map(str::to_owned) };
    diagnosis(None, problem, Some(place))
}

fn moved(span: Span, offset: u32) -> Span {
    Span { line: if span.line == 0 { 0 } else { span.line.saturating_add(offset) }, ..span }
}

/// The line of text at a span, at most 120 characters of it around the column.
fn place(file: &str, text: &str, span: Span) -> Place {
    const SHOWN: usize = 120;
    let line = (span.line > 0).then(|| text.lines().nth(span.line as usize - 1)).flatten().unwrap_or_default();
    let column = (span.column as usize).min(line.chars().count() + 1);
    let skip = if column > SHOWN { column - SHOWN / 2 } else { 0 };
    let excerpt: String = line.chars().skip(skip).take(SHOWN).map(|c| if c.is_control() { ' ' } else { c }).collect();
    let excerpt = excerpt.trim_end().to_owned();
    let column = u32::try_from(column - skip).unwrap_or(0);
    let room = u32::try_from(excerpt.chars().count()).unwrap_or(0).saturating_sub(column.saturating_sub(1)).max(1);
    Place { file: file.to_owned(), line: span.line, column, excerpt, width: span.width.clamp(1, room) }
}
