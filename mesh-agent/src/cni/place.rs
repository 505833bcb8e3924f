//! Puts program and entry where they belong on the node, and takes them away again. Blocking; called by [`super::install`] and by the commands that
//! clean up. What is edited how is decided by [`super::conflist`].

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::cache;
use super::conflist::{self, Own, Plan, Removal};
use super::folder::{carry_out, read, replace};
use crate::enrol::kube::SYSTEM;

/// Between two attempts to take the entries out.
const QUIET: Duration = Duration::from_millis(50);
/// How long a writer who has our entry in what he writes is waited for when it is to go.
const SETTLE: Duration = Duration::from_secs(2);

/// Where everything is.
#[derive(Clone, Debug)]
pub struct Places {
    /// The program to be installed.
    pub plugin: PathBuf,
    /// The folder where runtimes look for plugins.
    pub bin_dir: PathBuf,
    /// The folder of network configurations.
    pub conf_dir: PathBuf,
    /// The agent's socket for the plugin, as the node sees it.
    pub socket: PathBuf,
    /// The file of the scope, as the node sees it.
    pub scope: PathBuf,
    /// Whether the entry is to be in a file of our own, too.
    pub own_file: bool,
    /// Where runtimes keep with which chain they have made a pod's network.
    pub cache: PathBuf,
}

/// What [`ensure`] found or did.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Done {
    /// The file of the chain.
    pub chain: String,
    /// The folders were edited just now.
    pub edited: bool,
    /// What is not well all the same.
    pub remark: Option<String>,
    /// Our own file is a copy of what is not there any more.
    pub orphaned: bool,
    /// Our own file was not there, and was put there.
    pub own_put: bool,
}

/// Why [`ensure`] could not do it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Trouble {
    /// In a sentence, with the path.
    pub why: String,
    /// Something was to be edited, and that failed: the attempt itself may be heard of as a change of the folder.
    pub edit: bool,
}

impl From<String> for Trouble {
    fn from(why: String) -> Trouble {
        Trouble { why, edit: false }
    }
}

/// Puts program and entry where they belong, if they are not there. `bereft`: what our own file is a copy of has been gone for long; `rests`: if our own
/// file is not there, it is not put back yet.
pub fn ensure(places: &Places, bereft: bool, rests: bool) -> Result<Done, Trouble> {
    // The program first: an entry without one would keep every pod of the node from starting.
    let installed = install_program(places)?;
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let entry = conflist::entry(&text(&places.socket), &text(&places.scope), &SYSTEM);
    let own = if places.own_file { Own::On { bereft, rests } } else { Own::Off };
    let done = chain(&places.conf_dir, &entry, places.scope.exists(), own)?;
    Ok(Done { edited: done.edited || installed, ..done })
}

fn chain(folder: &Path, entry: &Value, scope_is_there: bool, own: Own) -> Result<Done, Trouble> {
    let _turn = turn(folder);
    let files = read(folder)?;
    // Of a node of which nobody knows yet who is in the mesh, every pod would wait, and for ever if the agent may not ask.
    if !scope_is_there && conflist::names_us(&files).is_none() {
        return Err("the API server has not yet told who is in the mesh".to_owned().into());
    }
    let text = |why: String| format!("{}: {why}", folder.display());
    let Plan { changes, chain, remark, orphaned } = conflist::plan(&files, entry, own);
    let edited = !changes.is_empty();
    let writes_own = changes.iter().any(|change| change.write.as_ref().is_some_and(|(name, _)| name == conflist::OWN));
    let own_put = writes_own && files.iter().all(|file| file.name != conflist::OWN);
    // One that fails, for somebody is writing there, does not keep back the next.
    let mut failed = None;
    for change in changes {
        failed = carry_out(folder, change, &files).err().or(failed);
    }
    match (failed, chain) {
        (Some(error), _) => Err(Trouble { why: text(error.to_string()), edit: true }),
        (None, Err(why)) => Err(text(why).into()),
        (None, Ok(chain)) => Ok(Done { chain, edited, remark: remark.map(text), orphaned, own_put }),
    }
}

/// Takes entries and program off the node; harmless if they are not there. Says whether they were.
pub fn remove(places: &Places) -> Result<bool, String> {
    let failed = |path: &Path, error: io::Error| format!("{}: {error}", path.display());
    let mut was_there = places.conf_dir.exists() && unchain(&places.conf_dir)?;
    // Before the program: what names it could not be ended without it. And after it: what was under way has ended then.
    cache::forget(&places.cache)?;
    for path in [&program(places), &places.scope] {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(path, error)),
            removed => was_there |= removed.is_ok(),
        }
    }
    cache::forget(&places.cache)?;
    // Ours if nothing else is in it.
    if let Some(folder) = places.scope.parent() {
        let _ = fs::remove_dir(folder);
    }
    Ok(was_there)
}

/// Takes the entries out. The program may go only when no file names it any more: a runtime that does not find one of a chain gives no pod a network.
/// Says whether there were any.
fn unchain(folder: &Path) -> Result<bool, String> {
    let _turn = turn(folder);
    let began = Instant::now();
    let mut was_there = false;
    loop {
        let is_last = began.elapsed() > SETTLE;
        let files = read(folder)?;
        let Removal { changes, stays } = conflist::uninstall(&files, is_last);
        was_there |= !changes.is_empty();
        let done = changes.into_iter().try_for_each(|change| carry_out(folder, change, &files));
        let files = read(folder)?;
        let why = match (done, stays, conflist::names_us(&files)) {
            (Ok(()), None, None) => return Ok(was_there),
            (Err(error), ..) => format!("{}: {error}", folder.display()),
            (_, Some(stays), _) => format!("{}: {stays}: if nobody is writing it, mend or remove it", folder.display()),
            (.., Some(name)) => {
                let path = folder.join(name);
                format!(
                    "{}: still names {}: if nobody is writing it, mend or remove it",
                    path.display(),
                    conflist::TYPE
                )
            }
        };
        if is_last {
            return Err(why);
        }
        std::thread::sleep(QUIET);
    }
}

/// Held by whoever of us edits the folder: an agent, and a command that cleans up. Where the file system has no locks, it goes without.
fn turn(folder: &Path) -> Option<File> {
    let folder = File::open(folder).ok()?;
    let _ = folder.lock();
    Some(folder)
}

fn program(places: &Places) -> PathBuf {
    places.bin_dir.join(conflist::TYPE)
}

/// Says whether it was not there as it is to be.
fn install_program(places: &Places) -> Result<bool, Trouble> {
    let failed = |path: &Path, error: io::Error| format!("{}: {error}", path.display());
    let unedited = |why: String| Trouble { why, edit: true };
    let ours = fs::read(&places.plugin).map_err(|error| failed(&places.plugin, error))?;
    let target = program(places);
    let there = fs::symlink_metadata(&target);
    let fits = |metadata: &fs::Metadata| {
        metadata.is_file() && metadata.len() == ours.len() as u64 && metadata.mode() & 0o111 == 0o111
    };
    if there.is_ok_and(|metadata| fits(&metadata)) && fs::read(&target).is_ok_and(|there| there == ours) {
        return Ok(false);
    }
    fs::create_dir_all(&places.bin_dir).map_err(|error| unedited(failed(&places.bin_dir, error)))?;
    replace(&target, &ours, 0o755).map_err(|error| {
        let why = match fs::metadata(&places.bin_dir).map(|folder| folder.nlink()) {
            // What is mounted into a container is the old one for ever.
            Ok(0) => format!(
                "{}: the folder was removed on the node: this pod must be made anew to see what took its place",
                places.bin_dir.display()
            ),
            _ => failed(&target, error),
        };
        unedited(why)
    })?;
    Ok(true)
}

#[cfg(test)]
mod tests;
