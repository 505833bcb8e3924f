//! Files of the state folder. Secrets are readable by their owner only: a file or folder that others can read or write is refused, because
//! what they could read is no secret and what they could write is no root.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Keys, roots and tokens are a few kilobytes.
const MAX_BYTES: u64 = 1 << 20;

/// Why the state folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The system said no.
    #[error("{call} {path}: {error}")]
    Io {
        /// What was tried.
        call: &'static str,
        /// On what.
        path: PathBuf,
        /// What came of it.
        #[source]
        error: io::Error,
    },
    /// Others have access.
    #[error(
        "{path} has mode {mode:04o}, wanted {wanted:04o}: run `chmod {wanted:04o} {path}` if nobody else had access"
    )]
    Mode {
        /// The file or folder.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
        /// What they may be at most.
        wanted: u32,
    },
    /// It belongs to somebody else.
    #[error("{path} belongs to user {owner}, not to user {us}")]
    Owner {
        /// The file or folder.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Who runs this.
        us: u32,
    },
    /// It is not what it should be.
    #[error("{path} is not a {wanted}")]
    Type {
        /// The path.
        path: PathBuf,
        /// What it should be.
        wanted: &'static str,
    },
}

fn failed(call: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    let path = path.to_owned();
    move |error| StateError::Io { call, path, error }
}

/// Makes the folder with mode 0700, or checks the one that is there. An empty folder of ours is closed to others without a word.
pub fn folder(path: &Path) -> Result<(), StateError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("create", path))?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(failed("chmod", path))
        }
        Err(error) => Err(failed("stat", path)(error)),
        Ok(meta) if !meta.is_dir() => Err(StateError::Type { path: path.to_owned(), wanted: "folder" }),
        Ok(meta) => {
            let is_empty = fs::read_dir(path).map_err(failed("list", path))?.next().is_none();
            let ours = nix::unistd::geteuid().as_raw();
            if is_empty && meta.uid() == ours && meta.mode() & 0o077 != 0 {
                fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(failed("chmod", path))?;
                return Ok(());
            }
            private(path, &meta, 0o700)
        }
    }
}

fn private(path: &Path, meta: &fs::Metadata, wanted: u32) -> Result<(), StateError> {
    let us = nix::unistd::geteuid().as_raw();
    if meta.uid() != us {
        return Err(StateError::Owner { path: path.to_owned(), owner: meta.uid(), us });
    }
    let mode = meta.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(StateError::Mode { path: path.to_owned(), mode, wanted });
    }
    Ok(())
}

/// Reads a secret; `None` if there is none.
pub fn read_secret(path: &Path) -> Result<Option<String>, StateError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("stat", path)(error)),
        Ok(meta) if !meta.is_file() => return Err(StateError::Type { path: path.to_owned(), wanted: "file" }),
        Ok(meta) => private(path, &meta, 0o600)?,
    }
    read(path)
}

/// Reads a small file; `None` if there is none.
pub fn read(path: &Path) -> Result<Option<String>, StateError> {
    // A pipe in the place of the file must not hold up the reader.
    let file = match OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("open", path)(error)),
    };
    if !file.metadata().map_err(failed("stat", path))?.is_file() {
        return Err(StateError::Type { path: path.to_owned(), wanted: "file" });
    }
    let mut text = String::new();
    let size = file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(failed("read", path))?;
    if size as u64 > MAX_BYTES {
        return Err(failed("read", path)(io::Error::other("larger than 1 MiB")));
    }
    Ok(Some(text))
}

/// Writes a file as a whole: readers see the old or the new text, and it is on disk when this returns.
pub fn write(path: &Path, text: &str, mode: u32) -> Result<(), StateError> {
    // The dot keeps it apart from every file that has a meaning: a node may be called `n1.new`.
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".new");
    let new = path.with_file_name(name);
    // Left over from a crash, possibly with other permissions.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove", &new)(error)),
        _ => {}
    }
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(mode).open(&new).map_err(failed("create", &new))?;
    file.set_permissions(fs::Permissions::from_mode(mode)).map_err(failed("chmod", &new))?;
    file.write_all(text.as_bytes()).map_err(failed("write", &new))?;
    file.sync_all().map_err(failed("sync", &new))?;
    fs::rename(&new, path).map_err(failed("rename", &new))?;
    if let Some(parent) = path.parent() {
        let folder = fs::File::open(parent).map_err(failed("open", parent))?;
        folder.sync_all().map_err(failed("sync", parent))?;
    }
    Ok(())
}

/// Removes a file that may be gone already.
pub fn remove(path: &Path) -> Result<(), StateError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}
