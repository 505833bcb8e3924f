//! Our own file in the folder of network configurations: a copy of the first one of the others with our entry, under a name that comes before theirs.
//! Pure; called by [`super::plan`].
//!
//! Another plugin that is installed or updated writes its file anew, without our entry; runtimes go on to take ours. What it is a copy of is
//! followed: the copy is made anew when that changes. While that cannot be read (somebody is writing it, or it is broken) the copy stays
//! as it is; and when it is gone for good, so is the copy, whatever else there is that no copy can be made of: without a network of its own a node
//! is not to look as if it had one.

use serde_json::Value;

use super::{ConfFile, List, TYPE, in_order, is_ours, print, read};

/// Comes before the names that plugins give their files, but for Multus's, which hands on to other files and is not to find itself there.
pub const NAME: &str = "00-undermesh.conflist";
/// In our entry: the file that this is a copy of.
const COPY_OF: &str = "copyOf";
/// Hands on to the plugins of another file: a copy of its file would call itself.
const DELEGATES: &str = "multus";

/// Whether there is to be such a file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Own {
    /// None.
    Off,
    /// One.
    On {
        /// What it is a copy of has been gone for so long that it goes, too.
        bereft: bool,
        /// Somebody takes it away time and again: if it is not there, it is not put back yet.
        rests: bool,
    },
}

/// What becomes of it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Copy {
    /// What is to be in it, and the file for whose readers it is.
    pub(super) write: Option<(Vec<u8>, String)>,
    /// There is one then.
    pub(super) stays: bool,
    /// What it is a copy of is not there.
    pub(super) orphaned: bool,
    /// What people should know.
    pub(super) remark: Option<String>,
}

/// Decides. `others` are all files but it, `there` is it.
pub(super) fn decide(others: &[ConfFile], there: Option<&ConfFile>, entry: &Value, own: Own) -> Copy {
    let Own::On { bereft, rests } = own else { return Copy::default() };
    let as_it_is = |remark: String| Copy { stays: there.is_some(), remark: there.map(|_| remark), ..Copy::default() };
    let orphaned = |why: &str| {
        let gone = as_it_is(format!("{NAME}: what it is a copy of is gone{why}"));
        Copy { stays: gone.stays && !bereft, orphaned: gone.stays, ..gone }
    };
    let Some(source) = in_order(others).find(|file| *file.name > *NAME) else { return orphaned("") };
    // Runtimes take an earlier one: there is no use for ours, but somebody may hand on to one that is there already.
    if there.is_none() && (rests || in_order(others).any(|file| *file.name < *NAME)) {
        return Copy::default();
    }
    let wanted = match read(source).and_then(|list| copy(list, &source.name, entry, there)) {
        Ok(wanted) => wanted,
        Err(why) => {
            let of = there.and_then(self::source);
            return match others.iter().any(|file| Some(&file.name) == of.as_ref()) {
                true => as_it_is(format!("{NAME} stays as it was: {}: {why}", source.name)),
                false => orphaned(&format!(", and of what there is, there cannot be one: {}: {why}", source.name)),
            };
        }
    };
    let same = there.and_then(|file| serde_json::from_slice::<Value>(file.content.as_ref().ok()?).ok());
    let differs = same != serde_json::from_slice(&wanted).ok();
    Copy { write: differs.then(|| (wanted, source.name.clone())), stays: true, ..Copy::default() }
}

fn copy(mut list: List, source: &str, entry: &Value, there: Option<&ConfFile>) -> Result<Vec<u8>, String> {
    list.lift()?;
    list.plugins.retain(|plugin| !is_ours(plugin));
    if hands_on(&list) {
        return Err(format!("{DELEGATES} hands on to other files, which a copy may be one of"));
    }
    // Who appends himself to the first file has done so to ours; what it is a copy of does not know of him.
    let behind = there.map_or_else(Vec::new, behind);
    let known =
        |plugin: &Value| plugin["type"] == TYPE || list.plugins.iter().any(|other| other["type"] == plugin["type"]);
    let behind: Vec<Value> = behind.into_iter().filter(|plugin| !known(plugin)).collect();
    let mut entry = entry.clone();
    entry[COPY_OF] = source.into();
    list.plugins.push(entry);
    list.plugins.extend(behind);
    Ok(print(list.object, list.plugins))
}

/// Whether a list hands on to those of other files.
pub(super) fn hands_on(list: &List) -> bool {
    list.plugins.iter().any(|plugin| plugin["type"].as_str().is_some_and(|name| name.starts_with(DELEGATES)))
}

/// The plugins that others have appended to it.
pub(super) fn behind(own: &ConfFile) -> Vec<Value> {
    let Ok(list) = read(own) else { return Vec::new() };
    let ours = list.plugins.iter().position(is_ours);
    ours.map_or_else(Vec::new, |at| list.plugins.into_iter().skip(at + 1).filter(|plugin| !is_ours(plugin)).collect())
}

/// The file that it is a copy of, as it says itself.
pub(super) fn source(own: &ConfFile) -> Option<String> {
    let list = read(own).ok()?;
    let entry = list.plugins.iter().find(|plugin| is_ours(plugin))?;
    entry[COPY_OF].as_str().map(str::to_owned)
}
