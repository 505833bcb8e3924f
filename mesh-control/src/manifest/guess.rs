//! What a document that is not YAML probably was, and whether that is enough to begin with. `manifest::file` asks: what restricts traffic must not be
//! taken for absent, and what only mentions it must not close anything.

use super::file::group;
use crate::resource::{Key, Kind, mesh_config, meta};
use crate::yaml::node::{Node, Value};
use crate::yaml::sniff::{Sniffed, sniff};

/// A guess at a document.
pub struct Guess {
    /// What it was.
    pub what: What,
    /// It may hold something that restricts traffic, or the mesh settings, and that is not in `what`, or not with certainty.
    pub vague: bool,
    /// It is one document and says a kind of ours that is shown. What says none, a Secret perhaps, is not quoted.
    pub ours: bool,
}

/// What a document was.
pub enum What {
    /// This object of ours.
    Object(Key),
    /// Something that restricts traffic in this namespace.
    Restricts(Kind, String),
    /// Nothing of ours, or nothing that anything could be closed for.
    Nothing,
}

/// Guesses at a document from its text.
pub fn guess(text: &str) -> Guess {
    let Sniffed { api_version, kind: said, namespace, name, several } = sniff(text);
    let (api_version, said, namespace) = (bare(api_version), bare(said), bare(namespace));
    let is_list = said.as_deref().is_some_and(|kind| kind.ends_with("List"));
    let api_version = api_version.unwrap_or_default();
    let exact = said.as_deref().and_then(|said| Kind::named(&api_version, said));
    let restricts = || meta::restricting(group(&api_version), said.as_deref().unwrap_or_default());
    // Of the others of a kind nothing is read.
    let is_read = |kind: &Kind| name.as_deref().map_or(*kind != Kind::ConfigMap, |name| kind.reads(name));
    let kind = exact.or_else(restricts).filter(|_| !is_list).filter(is_read);
    let placed = namespace.as_deref().is_some_and(|n| meta::label(n).is_ok());
    let restricts = kind.is_some_and(Kind::is_security) && (several || !placed);
    let mentions = (several || is_list || (kind, &said) == (None, &None)) && mentions(text);
    // The mesh settings are a ConfigMap that says its name; this one has lost it.
    let unnamed = exact == Some(Kind::ConfigMap) && name.as_deref().is_none_or(|name| meta::subdomain(name).is_err());
    let ours = kind.is_some_and(|kind| !kind.is_secret()) && said.is_some() && !several;
    let namespaced = kind.is_some_and(Kind::is_namespaced);
    let what = match (kind, name.filter(|name| meta::subdomain(name).is_ok())) {
        (Some(_), _) if namespaced && namespace.is_some() && !placed => What::Nothing,
        (Some(kind), Some(name)) if placed || !kind.is_security() => {
            let namespace = namespace.as_deref().filter(|_| namespaced);
            let namespace = namespace.unwrap_or(if namespaced { "default" } else { "" });
            What::Object(Key { kind, namespace: namespace.into(), name: name.into() })
        }
        (Some(kind), _) if kind.is_security() => {
            What::Restricts(kind, namespace.unwrap_or_else(|| "default".to_owned()))
        }
        _ => What::Nothing,
    };
    Guess { what, vague: restricts || mentions || unnamed, ours }
}

/// What is broken may be a quote or a bracket right at the word.
fn bare(word: Option<String>) -> Option<String> {
    let bare = word?.trim_matches(|c: char| !c.is_ascii_alphanumeric()).to_owned();
    (!bare.is_empty()).then_some(bare)
}

/// Whether the text has a word that stands in objects that restrict traffic, or may hold the mesh settings, outside of comments.
fn mentions(text: &str) -> bool {
    let mut words = Words::default();
    text.lines().map(uncommented).for_each(|line| words.take(line));
    words.matter()
}

/// The same for a document that is YAML.
pub fn tree_mentions(tree: &Node) -> bool {
    let mut words = Words::default();
    words.take_tree(tree);
    words.matter()
}

/// Which words were seen.
#[derive(Default)]
struct Words {
    restricts: bool,
    config_map: bool,
    /// What the mesh settings are called.
    settings: bool,
    /// Something has a name.
    named: bool,
}

impl Words {
    fn take(&mut self, text: &str) {
        self.restricts |=
            ["AuthorizationPolicy", "PeerAuthentication", "security.istio.io"].iter().any(|word| text.contains(word));
        self.config_map |= text.contains(Kind::ConfigMap.name());
        let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        for word in text.split(|c| !is_part(c)) {
            self.settings |= word == mesh_config::NAME;
            self.named |= word == "name";
        }
    }

    fn take_tree(&mut self, tree: &Node) {
        match &tree.value {
            Value::String(text) => self.take(text),
            Value::List(items) => items.iter().for_each(|item| self.take_tree(item)),
            Value::Map(entries) => {
                for entry in entries {
                    self.named |= entry.key == "name";
                    self.take_tree(&entry.node);
                }
            }
            _ => {}
        }
    }

    /// The mesh settings are a ConfigMap that says their name; in what is cut off no name may be left.
    fn matter(&self) -> bool {
        self.restricts || self.config_map && (self.settings || !self.named)
    }
}

/// A line without its comment. Behind a quote a `#` may be text.
fn uncommented(line: &str) -> &str {
    match line.find('#') {
        Some(at) if line[..at].trim_end().is_empty() => "",
        Some(at) if line[..at].ends_with([' ', '\t']) && !line[..at].contains(['"', '\'']) => &line[..at],
        _ => line,
    }
}
