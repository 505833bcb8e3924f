//! Takes our entries out of the folder of network configurations, and says whether a file names our plugin still. Pure; called by [`super::super::place`].

use serde_json::{Map, Value};

use super::{Change, ConfFile, List, TYPE, counts, in_order, is_ours, made_from, own, pretty, print, read, replacing};

/// Plugins that hand on to others have these in their configurations, and those again in theirs. What is deeper is none that anybody would call.
const DEEPEST: u8 = 8;
/// What Multus says of files: whose network pods get, and without which none gets any.
const FILES: [&str; 3] = ["clusterNetwork", "defaultNetworks", "readinessindicatorfile"];

/// What is to be done to have our entries out of the folder.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Removal {
    /// In this order.
    pub changes: Vec<Change>,
    /// Why our own file stays all the same, if it does.
    pub stays: Option<String>,
}

/// Takes our entries out of all files. A list of nothing else goes: it never made a network. Our own file goes last, and what others have appended to it
/// goes to what it is a copy of: they would see that they are not there any more, and until then pods would start without them. Who hands on to it
/// hands on to that one then, under the name that it has when we are out of it, and not before it has that.
///
/// It stays while it is all that gives pods a network: what it is a copy of cannot be read, or is gone, and that not for long (`bereft`).
pub fn uninstall(files: &[ConfFile], bereft: bool) -> Removal {
    let own = files.iter().find(|file| file.name == own::NAME);
    let others = || in_order(files).filter(|file| file.name != own::NAME);
    let source = own.and_then(own::source);
    // What is nothing but us goes, and nobody inherits.
    let is_source = |file: &&ConfFile| Some(&file.name) == source.as_ref() && !is_ours_alone(file);
    let is_network = |file: &&ConfFile| *file.name > *own::NAME && read(file).is_ok_and(|list| !own::hands_on(&list));
    let heir = others().find(is_source).or_else(|| others().find(is_network));
    let stays = match heir.map(|heir| (heir, read(heir))) {
        _ if own.is_none() => None,
        Some((heir, Err(why))) => {
            Some(format!("{} stays: what it is a copy of cannot be read: {}: {why}", own::NAME, heir.name))
        }
        Some((_, Ok(_))) => None,
        None if bereft => None,
        None => Some(format!("{} stays for a moment: what it is a copy of is gone", own::NAME)),
    };
    let change = |file: &ConfFile, behind: &[Value], instead: Option<&str>| match read(file) {
        Ok(list) => without(files, &file.name, list, behind, instead),
        Err(_) if is_ours_alone(file) => Some(Change { remove: Some(file.name.clone()), ..Change::default() }),
        Err(_) => None,
    };
    let behind = own.map_or_else(Vec::new, own::behind);
    let inherits = heir.and_then(|heir| change(heir, &behind, None));
    let instead = heir.filter(|_| stays.is_none()).and_then(|heir| name_after(files, heir, inherits.as_ref()));
    let is_heir = |file: &&ConfFile| heir.is_some_and(|heir| heir.name == file.name);
    let rest = others().filter(|file| !is_heir(file)).filter_map(|file| change(file, &[], instead.as_deref()));
    let mut changes: Vec<Change> = inherits.into_iter().chain(rest).collect();
    if let Some(own) = own
        && stays.is_none()
    {
        changes.push(Change { remove: Some(own.name.clone()), ..Change::default() });
    }
    Removal { changes, stays }
}

/// The file in which a network stands once it is `changed`.
fn name_after(files: &[ConfFile], file: &ConfFile, changed: Option<&Change>) -> Option<String> {
    match changed {
        None => Some(file.name.clone()),
        Some(Change { write: Some((name, _)), .. }) => Some(name.clone()),
        // It only goes: what it was made from stands beside it.
        Some(_) => read(file).ok().and_then(|list| original(&list)).filter(|from| is_read(files, from)),
    }
}

/// A file that names our plugin, also in what it hands on to, or will when whoever writes it has finished; or that hands on to our own file.
pub fn names_us(files: &[ConfFile]) -> Option<&str> {
    let names = |file: &&ConfFile| match (read(file), &file.content) {
        (Ok(list), _) => list.plugins.iter().any(|plugin| has_us(plugin, DEEPEST)),
        (Err(_), Ok(bytes)) => bytes.windows(TYPE.len()).any(|window| window == TYPE.as_bytes()),
        (Err(_), Err(_)) => false,
    };
    in_order(files).find(names).map(|file| file.name.as_str())
}

fn has_us(value: &Value, depth: u8) -> bool {
    match value {
        Value::Object(_) if is_ours(value) => true,
        // Rather once too often.
        Value::Object(_) | Value::Array(_) if depth == 0 => value.to_string().contains(TYPE),
        Value::Object(object) => object.iter().any(|(key, value)| {
            FILES.contains(&key.as_str()) && texts(value).any(|text| file_name(text) == own::NAME)
                || has_us(value, depth - 1)
        }),
        Value::Array(values) => values.iter().any(|value| has_us(value, depth - 1)),
        _ => false,
    }
}

/// Takes us out of what a plugin hands on to, and has it hand on to another file `instead` of ours. What would be left empty stays as it is.
fn take_out(value: &mut Value, instead: Option<&str>, depth: u8) {
    if depth == 0 {
        return;
    }
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                if let (true, Some(instead)) = (FILES.contains(&key.as_str()), instead) {
                    let texts: &mut [Value] =
                        if let Value::Array(values) = value { values } else { std::slice::from_mut(value) };
                    texts.iter_mut().for_each(|text| redirect(text, instead));
                }
                take_out(value, instead, depth - 1);
            }
        }
        Value::Array(values) => {
            if !values.iter().all(is_ours) {
                values.retain(|value| !is_ours(value));
            }
            values.iter_mut().for_each(|value| take_out(value, instead, depth - 1));
        }
        _ => {}
    }
}

/// The path of our own file becomes that of another one beside it.
fn redirect(text: &mut Value, instead: &str) {
    if let Value::String(path) = text
        && file_name(path) == own::NAME
    {
        path.truncate(path.len() - own::NAME.len());
        path.push_str(instead);
    }
}

fn texts(value: &Value) -> impl Iterator<Item = &str> {
    let many = value.as_array().into_iter().flatten();
    std::iter::once(value).chain(many).filter_map(Value::as_str)
}

fn file_name(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

fn is_ours_alone(file: &ConfFile) -> bool {
    let value = file.content.as_ref().ok().and_then(|bytes| serde_json::from_slice::<Value>(bytes).ok());
    let Some(value) = value else { return false };
    match value["plugins"].as_array() {
        Some(plugins) => !plugins.is_empty() && plugins.iter().all(is_ours),
        None => is_ours(&value),
    }
}

/// A file without us, and with those that had appended themselves `behind` us elsewhere; none if that is what it is.
fn without(files: &[ConfFile], name: &str, list: List, behind: &[Value], instead: Option<&str>) -> Option<Change> {
    let is_there = |plugin: &&Value| list.plugins.iter().any(|other| other["type"] == plugin["type"]);
    let behind: Vec<Value> = behind.iter().filter(|plugin| !is_there(plugin)).cloned().collect();
    let made_from = original(&list);
    let mut plugins: Vec<Value> = list.plugins.iter().filter(|plugin| !is_ours(plugin)).cloned().collect();
    plugins.iter_mut().for_each(|plugin| take_out(plugin, instead, DEEPEST));
    plugins.extend(behind);
    if plugins == list.plugins {
        return None;
    }
    match (made_from, plugins.as_mut_slice()) {
        // Somebody has made it anew, and knows better what is to be in it.
        (Some(from), [Value::Object(_)]) if is_read(files, &from) => {
            Some(Change { remove: Some(name.to_owned()), ..Change::default() })
        }
        (Some(from), [Value::Object(plugin)]) => Some(replacing(from, one(list.object, plugin), name)),
        (None, [Value::Object(plugin)]) if list.single => {
            Some(Change { write: Some((name.to_owned(), one(list.object, plugin))), ..Change::default() })
        }
        _ => Some(Change { write: Some((name.to_owned(), print(list.object, plugins))), ..Change::default() }),
    }
}

/// The file for one plugin that a list was made from, by a name of the folder: nothing that leads out of it.
fn original(list: &List) -> Option<String> {
    let is_name = |from: &&str| counts(from) && !from.contains('/') && !from.ends_with(".conflist");
    made_from(&list.plugins).and_then(Value::as_str).filter(is_name).map(str::to_owned)
}

fn is_read(files: &[ConfFile], name: &str) -> bool {
    files.iter().any(|file| file.name == name && read(file).is_ok())
}

/// A file for one plugin.
fn one(mut shared: Map<String, Value>, plugin: &mut Map<String, Value>) -> Vec<u8> {
    shared.append(plugin);
    pretty(&Value::Object(shared))
}
