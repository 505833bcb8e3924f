//! What all objects share: names and their grammar, labels, times.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use mesh_core::ArcStr;

use super::fields::wrong;
use super::{Key, Kind, Labels};
use crate::diagnosis::{Problem, Severity, closest};
use crate::yaml::node::{Node as Tree, Value};

/// Longest text that others read, in bytes: longer than any name, and what stands in a cookie or a query is none.
const LONGEST_SHOWN: usize = 512;

/// A document's head: enough to know what it is, even if the rest cannot be read.
#[derive(Debug, PartialEq, Eq)]
pub enum Head {
    /// An object of a kind that is read.
    Object(Key),
    /// `kind: List`, or `kind: PodList`, whose items need not say again what they are: objects are under `items`.
    List(Option<TypeMeta>),
    /// Some other kind.
    Other(TypeMeta),
}

/// What an object is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypeMeta {
    /// `apiVersion`
    pub api_version: String,
    /// `kind`
    pub kind: String,
}

/// Reads the head, with what is wrong with it. Problems of severity error mean that the object must not be used; with `None` it is
/// not even known which object is meant. `inherited` is what a list says of its items.
pub fn head(tree: &Tree, inherited: Option<&TypeMeta>) -> (Option<Head>, Vec<Problem>) {
    let mut problems = Vec::new();
    let head = read_head(tree, inherited, &mut problems);
    let head = head.unwrap_or_else(|problem| {
        problems.push(problem);
        None
    });
    (head, problems)
}

fn read_head(tree: &Tree, inherited: Option<&TypeMeta>, problems: &mut Vec<Problem>) -> Result<Option<Head>, Problem> {
    if !matches!(tree.value, Value::Map(_)) {
        let message = format!("a manifest is a mapping, this is {}", tree.value.kind());
        return Err(Problem::error("", message).help("begin with `apiVersion:` and `kind:`"));
    }
    let api_version = text(tree.get("apiVersion"), "apiVersion")?;
    let (api_version, kind_name) = match (text(tree.get("kind"), "kind")?, inherited) {
        (Some(kind), _) => (api_version.unwrap_or_default(), kind),
        (None, Some(list)) => (api_version.unwrap_or(&list.api_version), list.kind.as_str()),
        (None, None) => {
            return Err(Problem::error("kind", "the kind is missing").help("add `kind:` and `apiVersion:`"));
        }
    };
    if let Some(of) = kind_name.strip_suffix("List")
        && (of.is_empty() || Kind::ALL.iter().any(|k| k.name() == of))
    {
        let items = TypeMeta { api_version: api_version.to_owned(), kind: of.to_owned() };
        return Ok(Some(Head::List((!of.is_empty()).then_some(items))));
    }
    let other = || Head::Other(TypeMeta { api_version: api_version.to_owned(), kind: kind_name.to_owned() });
    let kind = match Kind::named(api_version, kind_name) {
        Some(kind) => kind,
        None => {
            let Some(meant) = meant(api_version, kind_name) else { return Ok(Some(other())) };
            // A policy must not be out of force because its kind is misspelt: it is one that cannot be read.
            let problem = Problem::error("kind", format!("there is no kind {kind_name}"));
            problems.push(problem.help(format!("did you mean `{}`?", meant.name())));
            meant
        }
    };
    // What is wrong with the others of a kind is not ours to say; roots may be in them.
    if kind == Kind::ConfigMap && !key(kind, tree).is_ok_and(|key| kind.reads(&key.name)) {
        let bundle = key(Kind::CaBundle, tree).ok().filter(|_| api_version == "v1");
        return Ok(Some(bundle.map_or_else(other, Head::Object)));
    }
    if !kind.api_versions().contains(&api_version) {
        let is_ours = kind.is_routing() || kind.is_security() || kind == Kind::EndpointSlice;
        if !is_ours && api_version.contains('/') {
            // Another group's kind of the same name, such as a Knative Service.
            return Ok(Some(other()));
        }
        let said = if api_version.is_empty() {
            "the apiVersion is missing".into()
        } else {
            format!("unknown apiVersion {api_version:?}")
        };
        problems
            .push(Problem::error("apiVersion", said).help(format!("write `apiVersion: {}`", kind.api_versions()[0])));
    }
    Ok(Some(Head::Object(key(kind, tree)?)))
}

/// The kind that was probably meant by one that there is not.
fn meant(api_version: &str, kind: &str) -> Option<Kind> {
    let group = super::kind::group(api_version);
    let of_the_group = || Kind::ALL.into_iter().filter(|k| k.group() == group && !k.is_security());
    let near = |names: Vec<&str>| closest(kind, &names).and_then(|name| Kind::named(api_version, name));
    match group {
        // Of a core kind, or of one that lost its group.
        "" if api_version == "v1" => near(Kind::ALL.into_iter().filter(|k| !k.is_routing()).map(Kind::name).collect()),
        // What is nearly a policy restricts traffic, whatever else it may be near to.
        _ if group != "security.istio.io" && of_the_group().next().is_some_and(Kind::is_routing) => {
            near(of_the_group().map(Kind::name).collect())
        }
        _ => restricting(api_version.split('/').next().unwrap_or_default(), kind),
    }
}

/// The security kind that an object of this group and kind, each empty if it is not known, must be taken for. Of the group's own kinds there is
/// one more, which restricts nothing by itself; whatever else is written there restricts traffic, and an AuthorizationPolicy can restrict the most.
pub fn restricting(group: &str, kind: &str) -> Option<Kind> {
    let security = || Kind::ALL.into_iter().filter(|k| k.is_security());
    let near = closest(kind, &security().map(Kind::name).collect::<Vec<_>>());
    let unknown = group == "security.istio.io" && kind != "RequestAuthentication";
    security().find(|k| near == Some(k.name())).or(unknown.then_some(Kind::AuthorizationPolicy))
}

/// Which object of the kind it is.
fn key(kind: Kind, tree: &Tree) -> Result<Key, Problem> {
    let metadata = |key: &str| tree.get("metadata").and_then(|m| m.get(key));
    let name = text(metadata("name"), "metadata.name")?
        .ok_or_else(|| Problem::error("metadata.name", "the name is missing").help("add `metadata.name`"))?;
    let namespace = match kind.is_namespaced() {
        true => text(metadata("namespace"), "metadata.namespace")?.unwrap_or("default"),
        false => "",
    };
    let valid = match kind {
        Kind::Service | Kind::Namespace => label(name),
        _ => subdomain(name),
    };
    valid.map_err(|why| Problem::error("metadata.name", format!("{name:?} is not a valid name: {why}")))?;
    if !namespace.is_empty() {
        label(namespace).map_err(|why| {
            Problem::error("metadata.namespace", format!("{namespace:?} is not a valid namespace: {why}"))
        })?;
    }
    Ok(Key { kind, namespace: namespace.into(), name: name.into() })
}

/// A field of the head; `None` if it is absent or empty.
fn text<'a>(tree: Option<&'a Tree>, field: &str) -> Result<Option<&'a str>, Problem> {
    match tree.map(|node| &node.value) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str()).filter(|t| !t.is_empty())),
        Some(other) => Err(wrong(field, "a string", other)),
    }
}

/// Whether any of the problems makes the object unusable.
pub fn has_error(problems: &[Problem]) -> bool {
    problems.iter().any(|p| p.severity == Severity::Error)
}

/// RFC 1123 label: what namespaces and services are called.
pub fn label(text: &str) -> Result<(), &'static str> {
    if text.len() > 63 {
        return Err("it is longer than 63 characters");
    }
    segment(text)
}

/// RFC 1123 subdomain: what other objects are called.
pub fn subdomain(text: &str) -> Result<(), &'static str> {
    if text.len() > 253 {
        return Err("it is longer than 253 characters");
    }
    text.split('.').try_for_each(segment)
}

fn segment(text: &str) -> Result<(), &'static str> {
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = text.as_bytes();
    if !edge(bytes.first()) || !edge(bytes.last()) {
        return Err("it must begin and end with a lower-case letter or digit");
    }
    if !bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-') {
        return Err("it may hold lower-case letters, digits and `-` only");
    }
    Ok(())
}

/// The labels of an object.
pub fn labels(meta: &ObjectMeta) -> Labels {
    meta.labels.clone().unwrap_or_default()
}

/// A label as objects of an API server have it: a name, with a prefix or without one, and a value.
pub fn pair(key: &str, value: &str) -> Result<(), String> {
    let is_word = |text: &str| {
        let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
        let bytes = text.as_bytes();
        bytes.len() <= 63
            && edge(bytes.first())
            && edge(bytes.last())
            && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    };
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    match is_word(name) && prefix.is_none_or(|prefix| subdomain(prefix).is_ok()) {
        true if value.is_empty() || is_word(value) => Ok(()),
        true => Err(format!("no label has the value {value:?}")),
        false => Err(format!("no label is called {key:?}")),
    }
}

/// Whether others read a text that they are told.
pub fn told(text: &str) -> Result<(), String> {
    if text.len() > LONGEST_SHOWN {
        return Err(format!("longer than {LONGEST_SHOWN} bytes"));
    }
    match text.chars().any(char::is_control) {
        true => Err(format!("{text:?} has a control character")),
        false => Ok(()),
    }
}

/// What others may be told of a text that only describes something: nothing that they refuse to read. No label of an API server's has any of that.
pub fn shown(text: &str) -> ArcStr {
    if told(text).is_ok() {
        return text.into();
    }
    let mut out = String::new();
    for one in text.chars().filter(|one| !one.is_control()) {
        if out.len() + one.len_utf8() > LONGEST_SHOWN {
            break;
        }
        out.push(one);
    }
    out.into()
}

/// The name of a node in `field`; empty, which is none, if it is no name.
pub fn node(name: Option<String>, field: &str, problems: &mut Vec<Problem>) -> ArcStr {
    match name {
        Some(name) if name.is_empty() || subdomain(&name).is_ok() => name.into(),
        Some(name) => {
            let message = format!("{name:?} is not the name of a node, it is taken for none");
            problems.push(Problem::error(field, message));
            ArcStr::default()
        }
        None => ArcStr::default(),
    }
}

/// One annotation.
pub fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}

/// When the object was made, in seconds; objects in files mostly do not say.
pub fn created(meta: &ObjectMeta) -> Option<i64> {
    meta.creation_timestamp.as_ref().map(|t| t.0.as_second())
}

/// Whether `labels` satisfy `selector`; the empty selector selects everything.
pub fn selects(selector: &Labels, labels: &Labels) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml::node::parse;

    #[test]
    fn heads() {
        let cases = [
            ("apiVersion: v1\nkind: Pod\nmetadata: {name: web-1}\n", Ok("Pod default/web-1")),
            ("apiVersion: v1\nkind: Node\nmetadata: {name: n1, namespace: x}\n", Ok("Node n1")),
            ("apiVersion: v1\nkind: Service\nmetadata: {name: a.b}\n", Err("metadata.name")),
            ("apiVersion: v1\nkind: Pod\nmetadata: {name: ../etc}\n", Err("metadata.name")),
            ("apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: A}\n", Err("metadata.namespace")),
            ("apiVersion: v1\nkind: Pod\n", Err("metadata.name")),
            ("apiVersion: v1\nkind: Service\nmetadata: {name: 7}\n", Err("metadata.name")),
            ("- a\n", Err("")),
            ("apiVersion: v1\n", Err("kind")),
        ];
        for (text, expected) in cases {
            let (head, problems) = head(&parse(text).unwrap(), None);
            match expected {
                Ok(key) => {
                    assert!(matches!(&head, Some(Head::Object(k)) if k.to_string() == key), "{text}: {head:?}");
                    assert_eq!(problems, []);
                }
                Err(field) => {
                    assert_eq!(head, None, "{text}");
                    assert_eq!(problems[0].field, field, "{text}");
                }
            }
        }
    }

    #[test]
    fn what_others_are_told_they_can_read() {
        for (text, expected) in [("", ""), ("a b", "a b"), ("a\tb\u{85}\n", "ab"), ("\u{7f}", "")] {
            assert_eq!(shown(text), expected, "{text:?}");
        }
        assert_eq!(shown(&"ä".repeat(256)), "ä".repeat(256));
        assert_eq!(shown(&"ä".repeat(257)), "ä".repeat(256));
        let mut problems = Vec::new();
        let read = |name: &str, problems: &mut _| node(Some(name.into()), "spec.nodeName", problems);
        assert_eq!(
            (read("n-1.local", &mut problems), read("", &mut problems)),
            ("n-1.local".into(), ArcStr::default())
        );
        assert_eq!(problems, []);
        assert_eq!((read("n\t1", &mut problems), read("../n", &mut problems)), (ArcStr::default(), ArcStr::default()));
        assert_eq!(problems.len(), 2);
    }

    #[test]
    fn labels_are_what_an_api_server_takes() {
        let long = "v".repeat(64);
        for (key, value, is_good) in [
            ("app", "web", true),
            ("app", "", true),
            ("App_1.x", "A-1_b.c", true),
            ("topology.kubernetes.io/zone", "eu-1a", true),
            ("", "a", false),
            ("/app", "a", false),
            ("a/b/c", "a", false),
            ("a b/c", "a", false),
            ("Topology.kubernetes.io/zone", "eu-1a", false),
            ("app", "a\tb", false),
            ("app", "-a", false),
            ("app", &long, false),
            (&long, "a", false),
        ] {
            assert_eq!(pair(key, value).is_ok(), is_good, "{key:?}: {value:?}");
        }
    }

    #[test]
    fn a_security_kind_with_a_wrong_version_is_known_and_wrong() {
        let text =
            "apiVersion: security.istio.io/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: a, namespace: b}\n";
        let (head, problems) = head(&parse(text).unwrap(), None);
        assert!(matches!(head, Some(Head::Object(_))));
        assert!(has_error(&problems));
    }
}
