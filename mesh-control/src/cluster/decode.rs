//! One object of the API server, reduced to what is kept of it. Read like a document of a manifest, so that both sources understand the same.

use mesh_runtime::task::contain;
use serde_json::{Map, Value as Json};

use crate::diagnosis::{Diagnosis, Problem};
use crate::manifest::file::diagnosis;
use crate::resource::meta::{self, Head, TypeMeta, head};
use crate::resource::{self, Key, Kind, Object, Unreadable};
use crate::verdict::Mark;
use crate::yaml::node::{Entry, Node, Span, Value};

/// Written by `kubectl apply`: the whole object once more.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// An object as it is kept.
#[derive(Clone, Debug)]
pub struct Item {
    /// What it is called.
    pub key: Key,
    /// Another object of the same name has another one.
    pub uid: String,
    /// The object, or how much is known of it.
    pub outcome: Result<Object, Unreadable>,
    /// What is wrong with it.
    pub diagnoses: Vec<Diagnosis>,
    /// For kinds to whose objects it is told what is in force of them.
    note: Option<Note>,
}

/// What it takes to tell an object something.
#[derive(Clone, Debug)]
struct Note {
    api_version: String,
    generation: i64,
    conditions: Vec<Json>,
    addresses: Vec<Json>,
}

impl Item {
    /// What is told to it goes there.
    pub fn mark(&self) -> Option<Mark> {
        let Note { api_version, generation, conditions, addresses } = self.note.clone()?;
        let (uid, diagnoses, is_read) = (self.uid.clone(), self.diagnoses.clone(), self.outcome.is_ok());
        Some(Mark { api_version, uid, generation, conditions, addresses, is_read, diagnoses })
    }

    /// Whether nothing that matters differs. What was told to the object does not, but for the addresses that were given to its hosts: replicas learn of each other's.
    pub fn is_like(&self, other: &Item) -> bool {
        fn noted(item: &Item) -> Option<(i64, &[Json])> {
            item.note.as_ref().map(|note| (note.generation, note.addresses.as_slice()))
        }
        let like = match (&self.outcome, &other.outcome) {
            (Ok(one), Ok(two)) => one == two,
            (Err(one), Err(two)) => one == two,
            _ => false,
        };
        like && self.uid == other.uid && noted(self) == noted(other) && self.diagnoses == other.diagnoses
    }
}

/// Reads an object that was asked for as `api_version` of `kind`. `None` for one without a usable name, which no API server has.
pub fn decode(kind: Kind, api_version: &str, object: Json) -> Option<Item> {
    let mut object = match object {
        Json::Object(object) => object,
        _ => Map::new(),
    };
    strip(&mut object);
    let uid = object.get("metadata").and_then(|m| m.get("uid")).and_then(Json::as_str).unwrap_or_default().to_owned();
    let note = kind.is_told().then(|| Note {
        api_version: api_version.to_owned(),
        generation: object.get("metadata").and_then(|m| m.get("generation")).and_then(Json::as_i64).unwrap_or_default(),
        conditions: conditions(kind, &object),
        addresses: addresses(kind, &object),
    });
    let tree = tree(Json::Object(object));
    // Items of lists do not say what they are, and metadata says that it is metadata.
    let asked = TypeMeta { api_version: api_version.to_owned(), kind: kind.name().to_owned() };
    let (head, problems) = head(&tree, Some(&asked));
    let Some(Head::Object(key)) = head else {
        tracing::error!(kind = kind.name(), ?problems, "the API server has an object without a usable name");
        return None;
    };
    let (outcome, problems) = if meta::has_error(&problems) {
        (Err(Unreadable::default()), problems)
    } else {
        // Whoever may write one object must not be able to stop the reading of all.
        match contain("decode", || resource::read(&key, &tree)) {
            Some(read) => (read.outcome, read.problems),
            None => (Err(Unreadable::default()), vec![Problem::error("", "the reader failed on it")]),
        }
    };
    let diagnoses = problems.into_iter().map(|problem| diagnosis(Some(&key), problem, None)).collect();
    Some(Item { key, uid, outcome, diagnoses, note })
}

/// What an object is told stands here in its status.
pub fn told_in(kind: Kind) -> &'static str {
    match kind {
        Kind::BackendTlsPolicy => "ancestors",
        kind if kind.is_route() => "parents",
        _ => "conditions",
    }
}

/// The conditions of an object's status; of routes and policies of the Gateway API, what it says of each object above them.
pub fn conditions(kind: Kind, object: &Map<String, Json>) -> Vec<Json> {
    let conditions = object.get("status").and_then(|status| status.get(told_in(kind))).and_then(Json::as_array);
    conditions.cloned().unwrap_or_default()
}

/// The addresses that a ServiceEntry's status says were given to its hosts.
pub fn addresses(kind: Kind, object: &Map<String, Json>) -> Vec<Json> {
    let status = object.get("status").filter(|_| kind == Kind::ServiceEntry);
    let addresses = status.and_then(|status| status.get("addresses")).and_then(Json::as_array);
    addresses.cloned().unwrap_or_default()
}

/// Takes away what nobody reads, before anything is made of it.
pub fn strip(object: &mut Map<String, Json>) {
    object.remove("kind");
    object.remove("apiVersion");
    if let Some(Json::Object(metadata)) = object.get_mut("metadata") {
        metadata.remove("managedFields");
        if let Some(Json::Object(annotations)) = metadata.get_mut("annotations") {
            annotations.remove(LAST_APPLIED);
        }
    }
    if let Some(Json::Object(status)) = object.get_mut("status") {
        // A node's images, a pod's containers: most of what there is to say, and never asked for.
        for key in ["images", "containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"] {
            status.remove(key);
        }
    }
}

/// JSON as a tree that has no places.
pub fn tree(json: Json) -> Node {
    let span = Span::default();
    let value = match json {
        Json::Null => Value::Null,
        Json::Bool(b) => Value::Bool(b),
        Json::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(n), _) => Value::Int(n),
            (None, Some(n)) => Value::Big(n),
            (None, None) => Value::Float(n.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::String(text),
        Json::Array(items) => Value::List(items.into_iter().map(tree).collect()),
        Json::Object(entries) => Value::Map(
            entries.into_iter().map(|(key, value)| Entry { key, key_span: span, node: tree(value) }).collect(),
        ),
    };
    Node { value, span }
}
