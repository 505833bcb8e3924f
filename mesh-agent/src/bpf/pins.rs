//! The folder of pins: bpffs, the lock of the instance, folders of this and other versions.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::{
            ffi::OsStrExt,
            fs::{DirBuilderExt, MetadataExt, PermissionsExt},
        },
    },
    path::{Path, PathBuf},
};

use mesh_common::ABI_VERSION;

use super::config::{KernelConfig, KernelError};
use super::sys;

const BPF_FS: i64 = 0xcafe_4a11;
const CGROUP2_FS: i64 = 0x6367_7270;

/// Folders of one instance.
#[derive(Clone, Debug)]
pub struct Pins {
    /// `<bpffs>/<instance>`.
    pub instance: PathBuf,
    /// `<bpffs>/<instance>/v<ABI>`.
    pub version: PathBuf,
}

impl Pins {
    /// The folders, by name only.
    pub fn new(config: &KernelConfig) -> Self {
        let instance = config.bpffs.join(&config.instance);
        Self { version: instance.join(format!("v{ABI_VERSION}")), instance }
    }

    /// Makes the folders, after mounting bpffs if that is missing.
    pub fn prepare(&self, config: &KernelConfig) -> Result<(), KernelError> {
        mount_bpffs(&config.bpffs)?;
        // bpffs may be mounted for everybody to write to, and whoever can rename a folder of ours can have its pins forgotten.
        for folder in [&config.bpffs, &self.instance] {
            close_to_others(folder)?;
        }
        for folder in [self.maps(), self.links(), self.pods()] {
            fs::create_dir_all(&folder).map_err(|source| failed("mkdir", &folder, source))?;
        }
        Ok(())
    }

    /// Pins of maps.
    pub fn maps(&self) -> PathBuf {
        self.version.join("maps")
    }

    /// Pins of links to cgroups.
    pub fn links(&self) -> PathBuf {
        self.version.join("links")
    }

    /// Folders of pods.
    pub fn pods(&self) -> PathBuf {
        self.version.join("pods")
    }

    /// Folder of one pod.
    pub fn pod(&self, cookie: u64) -> PathBuf {
        self.pods().join(format!("{cookie:016x}"))
    }

    /// Folders of other versions of the rows, left by other versions of the agent.
    pub fn other_versions(&self) -> Vec<PathBuf> {
        list(&self.instance).into_iter().filter(|path| *path != self.version).collect()
    }

    /// Cookies of pods that have a folder, in this or another version.
    pub fn pinned_pods(&self) -> Vec<u64> {
        let mut folders = self.other_versions();
        folders.push(self.version.clone());
        let mut cookies: Vec<u64> = folders
            .iter()
            .flat_map(|version| list(&version.join("pods")))
            .filter_map(|path| u64::from_str_radix(path.file_name()?.to_str()?, 16).ok())
            .collect();
        cookies.sort_unstable();
        cookies.dedup();
        cookies
    }
}

/// Holds the instance for this process; a folder of bpffs can be locked, a file there cannot exist.
pub fn lock(path: &Path, instance: &str) -> Result<OwnedFd, KernelError> {
    let folder = File::open(path).map_err(|source| failed("open", path, source))?;
    // SAFETY: the descriptor is open.
    if unsafe { libc::flock(folder.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
        return Ok(folder.into());
    }
    let source = io::Error::last_os_error();
    if source.kind() == io::ErrorKind::WouldBlock {
        return Err(KernelError::Locked { instance: instance.to_owned(), path: path.to_owned() });
    }
    Err(failed("flock", path, source))
}

/// True if the lock is of the folder that is there now.
pub fn is_lock_of(lock: &OwnedFd, path: &Path) -> bool {
    let held = lock.try_clone().map(File::from).and_then(|folder| folder.metadata());
    match (held, fs::metadata(path)) {
        (Ok(held), Ok(there)) => (held.dev(), held.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

/// The id of a cgroup, which is its inode; refused unless it is a child in the version 2 hierarchy.
pub fn cgroup_id(path: &Path) -> Result<u64, KernelError> {
    if filesystem(path)? != CGROUP2_FS {
        return Err(KernelError::Config(format!("{} is not a version 2 cgroup", path.display())));
    }
    let inode = fs::metadata(path).map_err(|source| failed("stat", path, source))?.ino();
    if inode == 1 {
        return Err(KernelError::Config(format!(
            "{} is the root cgroup: hooks there would meet every process",
            path.display()
        )));
    }
    Ok(inode)
}

/// Removes a folder of bpffs and everything in it.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(metadata) if !metadata.is_dir() => return fs::remove_file(path),
        Ok(_) => {}
    }
    for child in list(path) {
        remove_tree(&child)?;
    }
    fs::remove_dir(path)
}

/// Detaches every link that is pinned below a folder, so that the kernel is as before when this returns and not when its workers get to it.
pub fn detach_links(path: &Path) {
    if path.is_dir() {
        list(path).iter().for_each(|child| detach_links(child));
    } else if let Ok(object) = sys::open_pin(path) {
        // Maps are pinned here too: the kernel refuses to detach what is no link.
        let _ = sys::link_detach(object.as_fd());
    }
}

/// The entries of a folder; none if it cannot be read.
pub fn list(path: &Path) -> Vec<PathBuf> {
    fs::read_dir(path).map(|entries| entries.flatten().map(|entry| entry.path()).collect()).unwrap_or_default()
}

/// An error of a system call about a path.
pub fn failed(call: &'static str, path: &Path, source: io::Error) -> KernelError {
    KernelError::Io { call, path: path.to_owned(), source }
}

/// Makes a folder, if there is none, that only this user can write to, list and enter.
fn close_to_others(folder: &Path) -> Result<(), KernelError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|source| failed("mkdir", folder, source))?;
    let there = fs::symlink_metadata(folder).map_err(|source| failed("stat", folder, source))?;
    // SAFETY: the call has no preconditions and cannot fail.
    let own = unsafe { libc::geteuid() };
    if !there.is_dir() || there.uid() != own {
        let what = format!("{} must be a folder of user {own} and is one of user {}", folder.display(), there.uid());
        return Err(KernelError::Config(what));
    }
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).map_err(|source| failed("chmod", folder, source))
}

fn mount_bpffs(folder: &Path) -> Result<(), KernelError> {
    let mut existing = folder;
    while !existing.exists() {
        existing = existing.parent().unwrap_or(Path::new("/"));
    }
    if filesystem(existing)? == BPF_FS {
        return Ok(());
    }
    let point = folder.parent().unwrap_or(folder);
    // It would hide everything from whoever enters this mount namespace afterwards.
    if point == Path::new("/") {
        let what = format!("{}: bpffs is not mounted over /: name a folder below another", folder.display());
        return Err(KernelError::Config(what));
    }
    fs::create_dir_all(point).map_err(|source| failed("mkdir", point, source))?;
    let target = std::ffi::CString::new(point.as_os_str().as_bytes())
        .map_err(|_| KernelError::Config(format!("{} holds a zero byte", point.display())))?;
    // Agents that start together must not mount over each other's pins.
    let lock = File::open(point).map_err(|source| failed("open", point, source))?;
    // SAFETY: the descriptor is open.
    if unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX) } != 0 {
        return Err(failed("flock", point, io::Error::last_os_error()));
    }
    if filesystem(point)? == BPF_FS {
        return Ok(());
    }
    // SAFETY: all strings end with a zero byte and live for the call.
    let result =
        unsafe { libc::mount(c"bpf".as_ptr(), target.as_ptr(), c"bpf".as_ptr(), 0, c"mode=0700".as_ptr().cast()) };
    if result == 0 { Ok(()) } else { Err(failed("mount bpf on", point, io::Error::last_os_error())) }
}

fn filesystem(path: &Path) -> Result<i64, KernelError> {
    let c_path = std::ffi::CString::new(path.as_os_str().as_bytes())
        .map_err(|_| KernelError::Config(format!("{} holds a zero byte", path.display())))?;
    let mut stat = std::mem::MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: both pointers are valid for the call.
    if unsafe { libc::statfs(c_path.as_ptr(), stat.as_mut_ptr()) } != 0 {
        return Err(failed("statfs", path, io::Error::last_os_error()));
    }
    // SAFETY: the call filled it.
    Ok(unsafe { stat.assume_init() }.f_type)
}
