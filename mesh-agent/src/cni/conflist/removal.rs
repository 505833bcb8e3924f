//! Takes our entries out of the folder of network configurations, and says whether a file names our plugin still. Pure; called by [`super::super::place`].

use serde_json::Value;

use super::{Change, ConfFile, List, TYPE, counts, in_order, is_ours, made_from, own, pretty, print, read, replacing};

/// What is to be done to have our entries out of the folder.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Removal {
    /// In this order.
    pub changes: Vec<Change>,
    /// Why our own file stays all the same, if it does.
    pub stays: Option<String>,
}

/// Takes our entries out of all files. A list of nothing else goes: it never made a network. Our own file goes last, and what others have appended to it
/// goes to what it is a copy of: they would see that they are not there any more, and until then pods would start without them.
///
/// It stays while it is all that gives pods a network: what it is a copy of cannot be read, or is gone, and that not for long (`bereft`).
pub fn uninstall(files: &[ConfFile], bereft: bool) -> Removal {
    let own = files.iter().find(|file| file.name == own::NAME);
    let others = || in_order(files).filter(|file| file.name != own::NAME);
    let source = own.and_then(own::source);
    let heir =
        others().find(|file| Some(&file.name) == source.as_ref()).or_else(|| others().find(|file| read(file).is_ok()));
    let behind = own.map_or_else(Vec::new, own::behind);
    let change = |file: &ConfFile| match read(file) {
        Ok(list) => {
            let is_heir = heir.is_some_and(|heir| heir.name == file.name);
            without(files, &file.name, list, if is_heir { &behind } else { &[] })
        }
        Err(_) if is_ours_alone(file) => Some(Change { remove: Some(file.name.clone()), ..Change::default() }),
        Err(_) => None,
    };
    let mut changes: Vec<Change> = others().filter_map(change).collect();
    let stays = match heir.map(|heir| (heir, read(heir))) {
        _ if own.is_none() => None,
        Some((heir, Err(why))) if !is_ours_alone(heir) => {
            Some(format!("{} stays: what it is a copy of cannot be read: {}: {why}", own::NAME, heir.name))
        }
        Some((_, Ok(_))) => None,
        _ if bereft => None,
        _ => Some(format!("{} stays for a moment: what it is a copy of is gone", own::NAME)),
    };
    if let Some(own) = own
        && stays.is_none()
    {
        changes.push(Change { remove: Some(own.name.clone()), ..Change::default() });
    }
    Removal { changes, stays }
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

fn is_ours_alone(file: &ConfFile) -> bool {
    let value = file.content.as_ref().ok().and_then(|bytes| serde_json::from_slice::<Value>(bytes).ok());
    let Some(value) = value else { return false };
    match value["plugins"].as_array() {
        Some(plugins) => !plugins.is_empty() && plugins.iter().all(is_ours),
        None => is_ours(&value),
    }
}

/// A file without us, and with those that had appended themselves `behind` us elsewhere; none if that is what it is.
fn without(files: &[ConfFile], name: &str, list: List, behind: &[Value]) -> Option<Change> {
    let is_there = |plugin: &&Value| list.plugins.iter().any(|other| other["type"] == plugin["type"]);
    let behind: Vec<Value> = behind.iter().filter(|plugin| !is_there(plugin)).cloned().collect();
    if behind.is_empty() && !list.plugins.iter().any(is_ours) {
        return None;
    }
    // A name of the folder, and nothing that leads out of it.
    let is_name = |from: &&str| counts(from) && !from.contains('/') && !from.ends_with(".conflist");
    let made_from = made_from(&list.plugins).and_then(Value::as_str).filter(is_name).map(str::to_owned);
    let mut plugins: Vec<Value> = list.plugins.into_iter().filter(|plugin| !is_ours(plugin)).collect();
    plugins.extend(behind);
    match (made_from, plugins.as_mut_slice()) {
        // Somebody has made it anew, and knows better what is to be in it.
        (Some(from), [Value::Object(_)]) if files.iter().any(|file| file.name == from && read(file).is_ok()) => {
            Some(Change { remove: Some(name.to_owned()), ..Change::default() })
        }
        (Some(from), [Value::Object(plugin)]) => {
            let mut single = list.object;
            single.append(plugin);
            Some(replacing(from, pretty(&Value::Object(single)), name))
        }
        _ => Some(Change { write: Some((name.to_owned(), print(list.object, plugins))), ..Change::default() }),
    }
}
