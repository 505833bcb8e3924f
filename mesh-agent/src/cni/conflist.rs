//! Edits of the files that make the chain of CNI plugins: bytes in, bytes out. Pure; called by [`super::install`].
//!
//! A runtime takes the first file of the folder, by name. Our entry stands in that one, behind the plugins that are there; its place among
//! others that also append themselves is not fought over. A file for one plugin (`.conf`) becomes a list (`.conflist`), and again what it was.

use serde_json::{Map, Value, json};

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
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Change {
    /// The file to be replaced as a whole.
    pub write: Option<(String, Vec<u8>)>,
    /// The file to be removed then.
    pub remove: Option<String>,
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

/// Puts the entry into the chain.
pub fn install(files: &[ConfFile], entry: &Value) -> Edit {
    let mut why = "there is no network configuration yet".to_owned();
    for file in in_order(files) {
        match read(file) {
            Ok(list) => return insert(files, &file.name, list, entry),
            // Runtimes differ in whether they pass over such a file; for a pod there is a network only where they do.
            Err(problem) => why = format!("{}: {problem}", file.name),
        }
    }
    Edit::Impossible(why)
}

/// Takes our entries out of all files. A list of nothing else goes: it never made a network.
pub fn uninstall(files: &[ConfFile]) -> Vec<Change> {
    let change = |file: &ConfFile| match read(file) {
        Ok(list) => without(files, &file.name, list),
        Err(_) if is_ours_alone(file) => Some(Change { write: None, remove: Some(file.name.clone()) }),
        Err(_) => None,
    };
    in_order(files).filter_map(change).collect()
}

/// A file that names our plugin, or will when whoever writes it has finished.
pub fn names_us(files: &[ConfFile]) -> Option<&str> {
    let names = |file: &&ConfFile| match (read(file), &file.content) {
        (Ok(list), _) => list.plugins.iter().any(is_ours),
        (Err(_), Ok(bytes)) => bytes.windows(TYPE.len()).any(|window| window == TYPE.as_bytes()),
        (Err(_), Err(_)) => false,
    };
    in_order(files).find(names).map(|file| file.name.as_str())
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

fn is_ours_alone(file: &ConfFile) -> bool {
    let value = file.content.as_ref().ok().and_then(|bytes| serde_json::from_slice::<Value>(bytes).ok());
    let Some(value) = value else { return false };
    match value["plugins"].as_array() {
        Some(plugins) => !plugins.is_empty() && plugins.iter().all(is_ours),
        None => is_ours(&value),
    }
}

fn made_from(plugins: &[Value]) -> Option<&Value> {
    plugins.iter().find(|plugin| is_ours(plugin))?.get(MADE_FROM)
}

fn insert(files: &[ConfFile], name: &str, mut list: List, entry: &Value) -> Edit {
    let version = list.object.get("cniVersion").and_then(Value::as_str).unwrap_or_default().to_owned();
    if !VERSIONS.contains(&version.as_str()) {
        if !matches!(version.as_str(), "" | "0.1.0" | "0.2.0") {
            return Edit::Impossible(format!("{name}: cniVersion {version:?} is newer than the plugin's"));
        }
        list.object.insert("cniVersion".to_owned(), OLDEST_CHAIN.into());
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
        return Edit::Change(Change { write: Some((name.to_owned(), bytes)), remove: None });
    }
    match listed(files, name) {
        Some(list) => Edit::Change(Change { write: Some((list, bytes)), remove: Some(name.to_owned()) }),
        None => Edit::Impossible(format!("{name}: the lists beside it are of others")),
    }
}

fn without(files: &[ConfFile], name: &str, list: List) -> Option<Change> {
    list.plugins.iter().find(|plugin| is_ours(plugin))?;
    // A name of the folder, and nothing that leads out of it.
    let is_name = |from: &&str| counts(from) && !from.contains('/') && !from.ends_with(".conflist");
    let made_from = made_from(&list.plugins).and_then(Value::as_str).filter(is_name).map(str::to_owned);
    let mut plugins: Vec<Value> = list.plugins.into_iter().filter(|plugin| !is_ours(plugin)).collect();
    match (made_from, plugins.as_mut_slice()) {
        // Somebody has made it anew, and knows better what is to be in it.
        (Some(from), [Value::Object(_)]) if files.iter().any(|file| file.name == from && read(file).is_ok()) => {
            Some(Change { write: None, remove: Some(name.to_owned()) })
        }
        (Some(from), [Value::Object(plugin)]) => {
            let mut single = list.object;
            single.append(plugin);
            let bytes = pretty(&Value::Object(single));
            Some(Change { write: Some((from, bytes)), remove: Some(name.to_owned()) })
        }
        _ => Some(Change { write: Some((name.to_owned(), print(list.object, plugins))), remove: None }),
    }
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
