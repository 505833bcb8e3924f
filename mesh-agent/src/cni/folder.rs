//! The folder of network configurations as it is on the disk: reads it with bounds, and replaces its files as a whole. Used by [`super::place`] and
//! [`super::scope`].

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use super::conflist::{self, Change, ConfFile};

/// More files than this are not a folder of network configurations.
const MOST: usize = 256;

/// The files that a runtime would look at.
pub fn read(folder: &Path) -> Result<Vec<ConfFile>, String> {
    let failed = |error: io::Error| format!("{}: {error}", folder.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if !conflist::counts(&name) {
            continue;
        }
        if files.len() == MOST {
            return Err(format!("{}: more than {MOST} network configurations", folder.display()));
        }
        let content = bounded(&entry.path());
        files.push(ConfFile { name, content });
    }
    files.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

pub fn bounded(path: &Path) -> Result<Vec<u8>, String> {
    // A link is read, as runtimes do; what is no file (a pipe, say) is not waited for.
    if !fs::metadata(path).map_err(|error| error.to_string())?.is_file() {
        return Err("not a file".to_owned());
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|error| error.to_string())?;
    file.take(conflist::LONGEST + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    match bytes.len() as u64 > conflist::LONGEST {
        true => Err(format!("longer than {} bytes", conflist::LONGEST)),
        false => Ok(bytes),
    }
}

/// Carries a change of what was seen out. Whoever writes at this moment has the last word; we look again when he has.
pub fn carry_out(folder: &Path, change: Change, seen: &[ConfFile]) -> io::Result<()> {
    let as_seen = |name: &str| {
        let path = folder.join(name);
        let now = fs::symlink_metadata(&path).is_ok().then(|| bounded(&path));
        match now.as_ref() == seen.iter().find(|file| file.name == *name).map(|file| &file.content) {
            true => Ok(()),
            false => Err(io::Error::new(io::ErrorKind::ResourceBusy, "somebody else is writing there")),
        }
    };
    if let Some((name, bytes)) = &change.write {
        // What takes the place of another file, or is a copy of it, is for the same readers: there may be secrets in it.
        let mode = |name: &String| fs::metadata(folder.join(name)).map(|metadata| metadata.mode() & 0o777).ok();
        let mode = change.like.as_ref().and_then(mode).or_else(|| mode(name)).unwrap_or(0o644);
        let may = || change.remove.iter().chain([name]).chain(&change.like).try_for_each(|name| as_seen(name));
        replace_when(&folder.join(name), bytes, mode, may)?;
    }
    let Some(name) = &change.remove else { return Ok(()) };
    as_seen(name)?;
    fs::remove_file(folder.join(name))
}

/// Replaces a file as a whole: it is the old one or the new one at every moment, also when the power fails. A link is replaced, and not what it
/// leads to.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    replace_when(path, bytes, mode, || Ok(()))
}

/// The same, if it may be, which is asked at the last moment: a disk may take its time for the bytes.
fn replace_when(path: &Path, bytes: &[u8], mode: u32, may: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let folder = path.parent().ok_or_else(|| io::Error::other("no folder"))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // No runtime looks at a name like this.
    let unfinished = folder.join(format!(".{name}.undermesh"));
    // One that was broken off, or a link, is not written through.
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&unfinished)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        may()?;
        fs::rename(&unfinished, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&unfinished);
        return written;
    }
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = r#"{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"bridge"}]}"#;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn hardening_f46_who_writes_while_we_do_has_the_last_word() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path();
        let file = |name: &str| folder.join(name);
        let theirs = || fs::write(file("10-a.conflist"), "theirs");
        fs::write(file("10-a.conflist"), LIST).unwrap();
        // Between what was seen and the moment at which the file is replaced.
        let seen = read(folder).unwrap();
        theirs().unwrap();
        let change = |write: Option<&str>, remove: Option<&str>| Change {
            write: write.map(|name| (name.to_owned(), b"ours".to_vec())),
            remove: remove.map(str::to_owned),
            like: None,
        };
        for change in [
            change(Some("10-a.conflist"), None),
            change(None, Some("10-a.conflist")),
            change(Some("10-b.conflist"), Some("10-a.conflist")),
            Change { like: Some("10-a.conflist".to_owned()), ..change(Some("00-b.conflist"), None) },
        ] {
            assert_eq!(carry_out(folder, change, &seen).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        }
        let busy = replace_when(&file("10-a.conflist"), b"ours", 0o644, || Err(io::ErrorKind::ResourceBusy.into()));
        assert!(busy.is_err());
        // A file that was not there.
        assert!(carry_out(folder, change(Some("10-a.conflist"), None), &[]).is_err());
        assert_eq!(
            (names(folder), fs::read(file("10-a.conflist")).unwrap()),
            (vec!["10-a.conflist".to_owned()], b"theirs".to_vec())
        );
        carry_out(folder, change(Some("10-a.conflist"), None), &read(folder).unwrap()).unwrap();
        assert_eq!(fs::read(file("10-a.conflist")).unwrap(), b"ours");
    }

    #[test]
    fn hardening_f49_a_write_that_fails_leaves_the_old_file() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a.conflist");
        fs::write(&path, LIST).unwrap();
        // What is unfinished cannot be made: its name is a folder's.
        fs::create_dir(root.path().join(".a.conflist.undermesh")).unwrap();
        assert!(replace(&path, b"new", 0o644).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), LIST);
    }
}
