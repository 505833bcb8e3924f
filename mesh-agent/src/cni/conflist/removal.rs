//! Takes our entries out of the folder of network configurations, and says whether a file names our plugin still. Pure; called by [`super::super::place`].

use serde_json::Value;

use super::{Change, ConfFile, List, TYPE, counts, in_order, is_ours, made_from, own, pretty, print, read, replacing};

/// Takes our entries out of all files. A list of nothing else goes: it never made a network.
pub fn uninstall(files: &[ConfFile]) -> Vec<Change> {
    let change = |file: &ConfFile| match read(file) {
        _ if file.name == own::NAME => Some(Change { remove: Some(file.name.clone()), ..Change::default() }),
        Ok(list) => without(files, &file.name, list),
        Err(_) if is_ours_alone(file) => Some(Change { remove: Some(file.name.clone()), ..Change::default() }),
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

fn is_ours_alone(file: &ConfFile) -> bool {
    let value = file.content.as_ref().ok().and_then(|bytes| serde_json::from_slice::<Value>(bytes).ok());
    let Some(value) = value else { return false };
    match value["plugins"].as_array() {
        Some(plugins) => !plugins.is_empty() && plugins.iter().all(is_ours),
        None => is_ours(&value),
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
