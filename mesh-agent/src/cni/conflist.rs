//! Edits of the files that make the chain of CNI plugins: bytes in, bytes out. Pure; called by [`super::install`].
//!
//! A runtime takes the first file of the folder, by name. Our entry stands in that one, behind the plugins that are there; its place among
//! others that also append themselves is not fought over. A file for one plugin (`.conf`) becomes a list (`.conflist`), and again what it was.
//! Before it stands a file of our own ([`own`]), a copy with our entry: who writes his file anew takes us out of that one, and of the other not.
//!
//! A file that cannot be read and comes before the one with our entry is told of: CRI-O passes it over, and so do we; containerd gives no pod a
//! network while it is there.

mod own;
mod removal;

use serde_json::{Map, Value, json};

pub use own::{NAME as OWN, Own};
pub use removal::{Removal, names_us, uninstall};

/// The name by which a runtime finds the program.
pub const TYPE: &str = "undermesh-cni";
/// Longer files are none of a network's.
pub const LONGEST: u64 = 1 << 20;
/// What the plugin speaks; in older versions there are no chains.
const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// Where a configuration that is older, or says none, is lifted to.
const OLDEST_CHAIN: &str = "0.3.1";
/// In our entry: the name of the file for one plugin that the list was made from.
const MADE_FROM: &str = "madeFrom";

/// A file of the folder.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ConfFile {
    /// Its name.
    pub name: String,
    /// What is in it, or why that cannot be said.
    pub content: Result<Vec<u8>, String>,
}

/// What to do to the folder. A file is written before the other is removed: there is always one.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Change {
    /// The file to be replaced as a whole.
    pub write: Option<(String, Vec<u8>)>,
    /// The file to be removed then.
    pub remove: Option<String>,
    /// What is written is for the readers of this file: there may be secrets in it.
    pub like: Option<String>,
}

/// What is the case, or is to be done.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Edit {
    /// Our entry is in the file that counts.
    Chained(String),
    /// This puts it there.
    Change(Change),
    /// It cannot be put anywhere.
    Impossible(String),
}

/// The entry of our plugin.
pub fn entry(socket: &str, scope: &str, exempt: &[&str]) -> Value {
    // With the capability the runtime tells what it will write into the pod's resolv.conf.
    json!({ "type": TYPE, "socket": socket, "scope": scope, "exempt": exempt, "capabilities": { "dns": true } })
}

/// Whether a runtime looks at a file of this name.
pub fn counts(name: &str) -> bool {
    !name.starts_with('.') && [".conf", ".conflist", ".json"].iter().any(|end| name.ends_with(end))
}

/// What is to be done to have the entry in what runtimes take.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Plan {
    /// In this order; each may fail by itself.
    pub changes: Vec<Change>,
    /// The file that runtimes take then, which has the entry; or why there is none.
    pub chain: Result<String, String>,
    /// What people should know, though there is one.
    pub remark: Option<String>,
    /// Our own file is a copy of what is not there any more.
    pub orphaned: bool,
}

/// Decides about the whole folder: the entry in the file of the others, and our own file before it, unless that is not wanted.
pub fn plan(files: &[ConfFile], entry: &Value, own: Own) -> Plan {
    let others: Vec<ConfFile> = files.iter().filter(|file| file.name != own::NAME).cloned().collect();
    let there = files.iter().find(|file| file.name == own::NAME);
    let copy = own::decide(&others, there, entry, own);
    let (appended, change, remark) = match install(&others, entry) {
        Edit::Chained(chain) => (Ok(chain), None, None),
        Edit::Change(change) => {
            (Ok(change.write.as_ref().map(|(name, _)| name.clone()).unwrap_or_default()), Some(change), None)
        }
        Edit::Impossible(why) => (Err(why.clone()), None, Some(why)),
    };
    let unread = |chain: &String| {
        let before = in_order(&others).take_while(|file| file.name < *chain);
        let mut problems = before.filter_map(|file| read(file).err().map(|why| format!("{}: {why}", file.name)));
        problems
            .next()
            .map(|what| format!("{what}: containerd gives no pod a network while it is there, CRI-O passes it over"))
    };
    let is_first = in_order(&others).next().is_none_or(|file| *file.name > *own::NAME);
    let (chain, remark) = match copy.stays && is_first {
        true => (Ok(own::NAME.to_owned()), copy.remark.or(remark)),
        false => (appended.clone(), appended.as_ref().ok().and_then(unread).or(copy.remark)),
    };
    let write = copy.write.map(|(bytes, source)| Change {
        write: Some((own::NAME.to_owned(), bytes)),
        remove: None,
        like: Some(source),
    });
    let remove =
        (there.is_some() && !copy.stays).then(|| Change { remove: Some(own::NAME.to_owned()), ..Change::default() });
    // The entry is in one of them at every moment.
    let changes = write.into_iter().chain(change).chain(remove).collect();
    Plan { changes, chain, remark, orphaned: copy.orphaned }
}

/// Puts the entry into the chain.
pub fn install(files: &[ConfFile], entry: &Value) -> Edit {
    let mut why = "there is no network configuration yet".to_owned();
    for file in in_order(files) {
        match read(file) {
            Ok(list) => return insert(files, &file.name, list, entry),
            Err(problem) => why = format!("{}: {problem}", file.name),
        }
    }
    Edit::Impossible(why)
}

fn in_order(files: &[ConfFile]) -> impl Iterator<Item = &ConfFile> {
    let mut files: Vec<&ConfFile> = files.iter().filter(|file| counts(&file.name)).collect();
    files.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    files.into_iter()
}

/// A configuration as a list, and whether it was one.
struct List {
    object: Map<String, Value>,
    plugins: Vec<Value>,
    single: bool,
}

impl List {
    /// What is older than chains becomes the oldest that has them.
    fn lift(&mut self) -> Result<(), String> {
        let version = self.object.get("cniVersion").and_then(Value::as_str).unwrap_or_default();
        if VERSIONS.contains(&version) {
            return Ok(());
        }
        if !matches!(version, "" | "0.1.0" | "0.2.0") {
            return Err(format!("cniVersion {version:?} is newer than the plugin's"));
        }
        self.object.insert("cniVersion".to_owned(), OLDEST_CHAIN.into());
        Ok(())
    }
}

fn read(file: &ConfFile) -> Result<List, String> {
    let bytes = file.content.as_ref().map_err(Clone::clone)?;
    let value: Value = serde_json::from_slice(bytes).map_err(|error| format!("not JSON: {error}"))?;
    let Value::Object(mut object) = value else { return Err("not an object".to_owned()) };
    if !file.name.ends_with(".conflist") {
        if !object.get("type").is_some_and(|name| name.is_string() && name != TYPE) {
            return Err("it names no plugin that makes a network".to_owned());
        }
        let mut list = Map::new();
        for shared in ["cniVersion", "name"] {
            list.extend(object.remove(shared).map(|value| (shared.to_owned(), value)));
        }
        return Ok(List { object: list, plugins: vec![Value::Object(object)], single: true });
    }
    match object.remove("plugins") {
        Some(Value::Array(plugins)) if plugins.iter().any(|plugin| !is_ours(plugin)) => {
            Ok(List { object, plugins, single: false })
        }
        _ => Err("it has no plugins that make a network".to_owned()),
    }
}

fn is_ours(plugin: &Value) -> bool {
    plugin["type"] == TYPE
}

fn made_from(plugins: &[Value]) -> Option<&Value> {
    plugins.iter().find(|plugin| is_ours(plugin))?.get(MADE_FROM)
}

fn insert(files: &[ConfFile], name: &str, mut list: List, entry: &Value) -> Edit {
    if let Err(why) = list.lift() {
        return Edit::Impossible(format!("{name}: {why}"));
    }
    let mut entry = entry.clone();
    let made_from = match list.single {
        true => Some(Value::from(name)),
        false => made_from(&list.plugins).cloned(),
    };
    if let (Some(made_from), Some(entry)) = (made_from, entry.as_object_mut()) {
        entry.insert(MADE_FROM.to_owned(), made_from);
    }
    let ours: Vec<usize> = (0..list.plugins.len()).filter(|at| is_ours(&list.plugins[*at])).collect();
    // At the front nothing would have made the network yet.
    if let [at] = ours[..]
        && at > 0
        && list.plugins[at] == entry
    {
        return Edit::Chained(name.to_owned());
    }
    list.plugins.retain(|plugin| !is_ours(plugin));
    list.plugins.push(entry);
    let bytes = print(list.object, list.plugins);
    if !list.single {
        return Edit::Change(Change { write: Some((name.to_owned(), bytes)), ..Change::default() });
    }
    match listed(files, name) {
        Some(list) => Edit::Change(replacing(list, bytes, name)),
        None => Edit::Impossible(format!("{name}: the lists beside it are of others")),
    }
}

fn replacing(name: String, bytes: Vec<u8>, former: &str) -> Change {
    let former = Some(former.to_owned());
    Change { write: Some((name, bytes)), remove: former.clone(), like: former }
}

fn print(mut object: Map<String, Value>, plugins: Vec<Value>) -> Vec<u8> {
    object.insert("plugins".to_owned(), plugins.into());
    pretty(&Value::Object(object))
}

fn pretty(value: &Value) -> Vec<u8> {
    // Alternate form: over several lines.
    format!("{value:#}\n").into_bytes()
}

/// The list that a file for one plugin becomes: it stands where that stood, by its name, and is not in the place of a list of others.
fn listed(files: &[ConfFile], name: &str) -> Option<String> {
    let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
    let is_free = |list: &String| {
        let there = files.iter().find(|file| file.name == *list);
        there.is_none_or(|file| read(file).is_ok_and(|list| made_from(&list.plugins).is_some_and(|from| from == name)))
    };
    [stem, name].map(|name| format!("{name}.conflist")).into_iter().find(is_free)
}

#[cfg(test)]
mod tests;
