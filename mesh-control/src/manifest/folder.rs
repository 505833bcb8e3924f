//! Reads a whole folder at one moment. Files that did not change since the last scan are not parsed again.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh64::xxh64;

use super::file::{self, FileRead, of_file};
use crate::diagnosis::{Diagnosis, Place, Problem, Severity};
use crate::resource::catalog::{Catalog, Found, Kept, Scan};
use crate::resource::{Key, Objects};
use crate::yaml::document::MAX_FILE_BYTES;

const MAX_DEPTH: usize = 16;
const MAX_FILES: usize = 100_000;
/// Of all files together: more than the largest mesh needs, less than the memory of a node.
const MAX_TOTAL_BYTES: u64 = 1 << 30;

const NOT_A_FILE: &str = "it is not a regular file";

/// A folder of manifests and what was last seen in it.
#[derive(Debug)]
pub struct Folder {
    root: PathBuf,
    catalog: Catalog,
    /// What was said of what is kept.
    told: Kept,
    parsed: HashMap<String, (u64, FileRead)>,
    read: fn(&str, &[u8]) -> FileRead,
}

/// What a scan brought.
#[derive(Debug, Default)]
pub struct Seen {
    /// What is in force.
    pub objects: Objects,
    /// What is wrong, by file and line.
    pub diagnoses: Vec<Diagnosis>,
    /// File and line of each object.
    pub places: BTreeMap<Key, (String, u32)>,
    /// Files and folders with something in them, security objects perhaps, that could not even be identified.
    pub unread: Vec<String>,
    /// The next scan may read more without a trace in names and times.
    pub again: bool,
}

impl Folder {
    /// A folder that has not been read yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self::reading(root, file::read)
    }

    /// The same, with files read by `read`.
    pub(super) fn reading(root: impl Into<PathBuf>, read: fn(&str, &[u8]) -> FileRead) -> Self {
        Self { root: root.into(), catalog: Catalog::default(), told: Kept::default(), parsed: HashMap::new(), read }
    }

    /// Reads everything and takes it over as a whole.
    pub fn scan(&mut self) -> Seen {
        let mut walk = Walk::default();
        walk.folder(&self.root, "", 0);
        let (mut diagnoses, mut unread) = (walk.diagnoses, walk.unread);
        let mut again = !unread.is_empty();
        let mut scan = Scan { unsettled: walk.unsettled, blind: walk.blind, ..Scan::default() };
        let mut parsed = HashMap::new();
        for (name, bytes) in &walk.files {
            let hash = xxh64(bytes, 0);
            let mut previous = self.parsed.remove(name);
            if bytes.is_empty() && previous.as_ref().is_some_and(|(_, read)| !read.found.is_empty() || read.unread) {
                // An editor or a copy that is not done yet looks like this.
                let help = Some("delete the file to remove its objects");
                diagnoses.push(of_file(
                    name,
                    Severity::Warning,
                    "the file is empty, its objects stay as they were",
                    help,
                ));
                scan.unsettled.insert(name.clone());
                unread.extend(previous.as_ref().filter(|(_, read)| read.unread).map(|_| name.clone()));
                parsed.extend(previous.map(|p| (name.clone(), p)));
                continue;
            }
            let read = match previous.take_if(|(same, _)| *same == hash && !bytes.is_empty()) {
                Some((_, read)) => read,
                None => (self.read)(name, bytes),
            };
            diagnoses.extend(read.diagnoses.iter().cloned());
            if read.unsettled {
                scan.unsettled.insert(name.clone());
            }
            if read.unread {
                unread.push(name.clone());
            }
            if read.failed {
                again = true;
                parsed.extend(previous.map(|p| (name.clone(), p)));
                continue;
            }
            parsed.insert(name.clone(), (hash, read));
        }
        let places = choose(&walk.files, &parsed, &mut scan, &mut diagnoses);
        // A file that cannot be read now is compared with its last good text when it comes back.
        self.parsed.retain(|name, _| scan.blind || scan.unsettled.contains(name));
        self.parsed.extend(parsed);
        let (objects, kept) = self.catalog.apply(&scan);
        kept.tell(&mut self.told);
        diagnoses.sort_by(|a, b| order(a).cmp(&order(b)));
        Seen { objects, diagnoses, places, unread, again }
    }

    /// Names, sizes and times of all files: equal as long as nothing changed.
    pub fn fingerprint(&self) -> u64 {
        let mut text = String::new();
        fingerprint(&self.root, 0, &mut text, &mut HashSet::new());
        xxh64(text.as_bytes(), 0)
    }
}

/// Of objects with the same name the first one that can be read is used, else the first one, which is then known to be broken: neither a bad
/// document nor a later copy takes the place of a good one. Returns where each object stands.
fn choose(
    files: &BTreeMap<String, Vec<u8>>,
    parsed: &HashMap<String, (u64, FileRead)>,
    scan: &mut Scan,
    diagnoses: &mut Vec<Diagnosis>,
) -> BTreeMap<Key, (String, u32)> {
    let reads = || files.keys().filter_map(|name| Some((name, &parsed.get(name)?.1)));
    let all = || reads().flat_map(|(name, read)| read.found.iter().map(move |(found, line)| (name, found, *line)));
    let mut chosen: BTreeMap<&Key, (&String, &Found, u32)> = BTreeMap::new();
    for one in all() {
        let used = chosen.entry(&one.1.key).or_insert(one);
        if one.1.outcome.is_ok() && used.1.outcome.is_err() {
            *used = one;
        }
    }
    for (name, found, line) in all() {
        let Some((other, used, at)) = chosen.get(&found.key).copied() else { continue };
        if std::ptr::eq(found, used) {
            scan.found.push(found.clone());
            continue;
        }
        let message = format!("{} is there more than once, this one is not used", found.key);
        let problem = Problem::error("metadata.name", message).help(format!("the one in use is at {other}:{at}"));
        let mut diagnosis = file::diagnosis(Some(&found.key), problem, None);
        diagnosis.place = of_file(name, Severity::Error, "", None).place.map(|p| Place { line, ..p });
        diagnoses.push(diagnosis);
    }
    chosen.into_iter().map(|(key, (name, _, line))| (key.clone(), (name.clone(), line))).collect()
}

fn order(d: &Diagnosis) -> (&str, u32, u32) {
    d.place.as_ref().map_or(("", 0, 0), |p| (&p.file, p.line, p.column))
}

#[derive(Default)]
struct Walk {
    files: BTreeMap<String, Vec<u8>>,
    diagnoses: Vec<Diagnosis>,
    unsettled: BTreeSet<String>,
    unread: Vec<String>,
    visited: HashSet<(u64, u64)>,
    total: u64,
    blind: bool,
}

/// Files that hold manifests. Names that begin with a dot are editors' and Kubernetes' own (`..data`).
fn is_manifest(name: &str) -> bool {
    [".yaml", ".yml", ".json"].iter().any(|end| name.ends_with(end))
}

impl Walk {
    fn folder(&mut self, path: &Path, prefix: &str, depth: usize) {
        let shown = if prefix.is_empty() { "." } else { prefix };
        let identity = fs::metadata(path).map(|m| (m.dev(), m.ino()));
        if identity.as_ref().is_ok_and(|id| !self.visited.insert(*id)) {
            return;
        }
        if depth > MAX_DEPTH {
            let message = format!("folders nest deeper than {MAX_DEPTH}");
            return self.blind(shown, message);
        }
        let entries = identity.and_then(|_| fs::read_dir(path)).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let mut entries = match entries {
            Ok(entries) => entries,
            Err(error) => return self.blind(shown, format!("the folder cannot be read: {error}")),
        };
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let file_name = entry.file_name();
            let name = file_name.to_string_lossy();
            if name.starts_with('.') {
                continue;
            }
            let path = entry.path();
            let shown = if prefix.is_empty() { name.to_string() } else { format!("{prefix}/{name}") };
            let meta = fs::metadata(&path);
            if !is_manifest(&name) && !meta.as_ref().is_ok_and(fs::Metadata::is_dir) {
                continue;
            }
            match meta {
                // Two such names may look the same.
                _ if file_name.to_str().is_none() => self.unreadable(shown, "its name is not UTF-8"),
                Ok(meta) if meta.is_dir() => self.folder(&path, &shown, depth + 1),
                Ok(meta) if meta.is_file() => self.file(&path, shown, meta.len()),
                Ok(_) => self.unreadable(shown, NOT_A_FILE),
                Err(error) => self.unreadable(shown, &error.to_string()),
            }
        }
    }

    fn file(&mut self, path: &Path, shown: String, size: u64) {
        if self.files.len() >= MAX_FILES {
            return self.unreadable(shown, &format!("there are more than {MAX_FILES} files"));
        }
        if size > MAX_FILE_BYTES {
            return self.unreadable(shown, &format!("it is larger than {} MiB", MAX_FILE_BYTES >> 20));
        }
        if self.total + size > MAX_TOTAL_BYTES {
            return self
                .unreadable(shown, &format!("all files together are larger than {} MiB", MAX_TOTAL_BYTES >> 20));
        }
        match read(path) {
            Ok(bytes) if bytes.len() as u64 > MAX_FILE_BYTES => {
                self.unreadable(shown, "it is growing beyond the limit")
            }
            Ok(bytes) => {
                self.total += bytes.len() as u64;
                self.files.insert(shown, bytes);
            }
            Err(error) => self.unreadable(shown, &error.to_string()),
        }
    }

    /// What is in a folder is not known: everything stays as it was.
    fn blind(&mut self, shown: &str, message: String) {
        self.diagnoses.push(of_file(shown, Severity::Error, message, None));
        self.unread.push(shown.to_owned());
        self.blind = true;
    }

    fn unreadable(&mut self, shown: String, why: &str) {
        let message = format!("the file cannot be read: {why}; objects that came from it stay as they were");
        self.diagnoses.push(of_file(&shown, Severity::Error, message, None));
        self.unread.push(shown.clone());
        self.unsettled.insert(shown);
    }
}

/// The file's bytes, one more than allowed at most: the limit holds for a file that grows meanwhile, too. What it is may have changed since
/// it was looked at, and a pipe would be waited for without an end.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::options().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path)?;
    let before = file.metadata()?;
    if !before.is_file() {
        return Err(io::Error::other(NOT_A_FILE));
    }
    read_whole(&file, &before)
}

/// Half of a file may be a policy of half the rules: a file that was written to since `before`, or while it was read, has not been read.
pub(super) fn read_whole(file: &File, before: &fs::Metadata) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    let stamp = |m: &fs::Metadata| (m.size(), m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec());
    if stamp(before) != stamp(&file.metadata()?) {
        return Err(io::Error::other("it is being written"));
    }
    Ok(bytes)
}

fn fingerprint(path: &Path, depth: usize, text: &mut String, visited: &mut HashSet<(u64, u64)>) {
    use std::fmt::Write;
    let Ok(meta) = fs::metadata(path) else {
        let _ = writeln!(text, "{} gone", path.display());
        return;
    };
    let stamp = (meta.dev(), meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec(), meta.ctime_nsec(), meta.mode());
    let _ = writeln!(text, "{} {stamp:?}", path.display());
    if !meta.is_dir() || depth > MAX_DEPTH || !visited.insert((meta.dev(), meta.ino())) {
        return;
    }
    let Ok(entries) = fs::read_dir(path) else { return };
    let mut paths: Vec<_> = entries.flatten().map(|e| e.path()).collect();
    paths.sort();
    for path in paths {
        if path.file_name().is_some_and(|n| !n.to_string_lossy().starts_with('.')) {
            fingerprint(&path, depth + 1, text, visited);
        }
    }
}
