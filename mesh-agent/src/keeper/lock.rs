//! What makes an agent the only one of its instance: the run folder, its lock, and its cgroup.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, fstatfs};

/// Why this process may not be the agent.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another agent runs.
    #[error("another agent{} already runs with the run folder {folder:?}", .pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default())]
    Taken {
        /// Where both look.
        folder: PathBuf,
        /// The holder, if it could be read.
        pid: Option<u32>,
    },
    /// The folder belongs to another user.
    #[error("the run folder {folder:?} belongs to user {uid}, not to this one")]
    Foreign {
        /// The folder.
        folder: PathBuf,
        /// Its owner.
        uid: u32,
    },
    /// The cgroup is not one that the kernel programs can tell apart.
    #[error("{0:?} is not a cgroup v2 folder")]
    NotCgroup2(PathBuf),
    /// A system call failed.
    #[error("cannot {what} {path:?}")]
    Io {
        /// Verb.
        what: &'static str,
        /// Object.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
}

/// In the run folder.
pub const FILE: &str = "agent.lock";

/// Held as long as the process is the agent. Copies of its descriptor are the same lock, in whatever process.
#[derive(Debug)]
pub struct InstanceLock {
    file: File,
}

impl InstanceLock {
    /// The lock that another agent gave away.
    pub fn inherited(descriptor: OwnedFd) -> io::Result<Self> {
        let mut file = File::from(descriptor);
        name(&mut file)?;
        Ok(InstanceLock { file })
    }
}

impl AsFd for InstanceLock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Says who has the lock.
fn name(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}

fn failed<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> LockError + 'a {
    move |source| LockError::Io { what, path: path.to_owned(), source }
}

/// Creates the run folder, closed to other users, and takes its lock without waiting.
pub fn acquire(run_dir: &Path) -> Result<InstanceLock, LockError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(run_dir).map_err(failed("create", run_dir))?;
    // By descriptor, and not through a link: what is looked at and what is closed must be one and the same folder.
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW);
    let folder = options.open(run_dir).map_err(failed("open", run_dir))?;
    let owner = folder.metadata().map_err(failed("read", run_dir))?.uid();
    if owner != nix::unistd::geteuid().as_raw() {
        return Err(LockError::Foreign { folder: run_dir.to_owned(), uid: owner });
    }
    folder.set_permissions(fs::Permissions::from_mode(0o700)).map_err(failed("close to others", run_dir))?;
    let path = run_dir.join(FILE);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    loop {
        let mut file = options.open(&path).map_err(failed("open", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                let mut text = String::new();
                let _ = file.read_to_string(&mut text);
                return Err(LockError::Taken { folder: run_dir.to_owned(), pid: text.trim().parse().ok() });
            }
            Err(fs::TryLockError::Error(source)) => return Err(failed("lock", &path)(source)),
        }
        // Whoever cleans up removes the file while it holds the lock: one that was opened before is nobody's lock any more.
        if is_there(&file, &path).map_err(failed("read", &path))? {
            name(&mut file).map_err(failed("write", &path))?;
            return Ok(InstanceLock { file });
        }
    }
}

/// Whether a file that is open is the one of this name.
fn is_there(file: &File, path: &Path) -> io::Result<bool> {
    let held = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(there) => Ok((held.dev(), held.ino()) == (there.dev(), there.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Creates the agent's own cgroup and moves this process into it; what it starts afterwards is in it too. The kernel programs leave the
/// sockets of this cgroup alone, so it must exist before any socket does.
pub fn join_cgroup(cgroup: &Path) -> Result<(), LockError> {
    fs::create_dir_all(cgroup).map_err(failed("create", cgroup))?;
    let folder = File::open(cgroup).map_err(failed("open", cgroup))?;
    let kind = fstatfs(folder.as_fd()).map_err(|errno| failed("read", cgroup)(errno.into()))?;
    if kind.filesystem_type() != CGROUP2_SUPER_MAGIC {
        return Err(LockError::NotCgroup2(cgroup.to_owned()));
    }
    let procs = cgroup.join("cgroup.procs");
    fs::write(&procs, format!("{}\n", std::process::id())).map_err(failed("join", &procs))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

    use super::*;

    #[test]
    fn hardening_f8_the_second_agent_is_refused_with_the_pid_of_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let run_dir = folder.path().join("run");
        let first = acquire(&run_dir).unwrap();
        let mode = fs::metadata(&run_dir).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o700);
        let refused = acquire(&run_dir).unwrap_err().to_string();
        let expected =
            format!("another agent (pid {}) already runs with the run folder {run_dir:?}", std::process::id());
        assert_eq!(refused, expected);
        // Given away it is held until both have let go of it.
        let given = InstanceLock::inherited(first.as_fd().try_clone_to_owned().unwrap()).unwrap();
        drop(first);
        assert!(matches!(acquire(&run_dir), Err(LockError::Taken { .. })));
        drop(given);
        acquire(&run_dir).unwrap();
    }

    #[test]
    fn hardening_f8_a_cleanup_that_removes_the_lock_leaves_no_two_agents() {
        let folder = tempfile::tempdir().unwrap();
        let (run_dir, path) = (folder.path().join("run"), folder.path().join("run").join(FILE));
        let holders = AtomicU32::new(0);
        // Each round as `mesh-agent cleanup` does: the file is removed under the lock.
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let mut held = 0;
                    while held < 1_000 {
                        let Ok(lock) = acquire(&run_dir) else { continue };
                        assert_eq!(holders.fetch_add(1, SeqCst), 0, "another one holds the lock");
                        std::thread::yield_now();
                        holders.fetch_sub(1, SeqCst);
                        // The last that is done: from here on the next may begin.
                        fs::remove_file(&path).unwrap();
                        drop(lock);
                        held += 1;
                    }
                });
            }
        });
    }

    #[test]
    fn a_link_is_no_run_folder() {
        let folder = tempfile::tempdir().unwrap();
        let (target, link) = (folder.path().join("target"), folder.path().join("run"));
        fs::create_dir(&target).unwrap();
        fs::set_permissions(&target, fs::Permissions::from_mode(0o755)).unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert!(matches!(acquire(&link), Err(LockError::Io { what: "open", .. })));
        assert_eq!(fs::metadata(&target).unwrap().permissions().mode() & 0o777, 0o755);
    }

    #[test]
    fn an_ordinary_folder_is_not_a_cgroup() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(join_cgroup(&folder.path().join("agent")), Err(LockError::NotCgroup2(_))));
    }
}
