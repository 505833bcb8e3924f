//! The lab's own v2 cgroup tree: `undermesh-<run>/<node>/{agent,pods/<pod>}`. Never the root, never another's.
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// Where the unified hierarchy is mounted on this machine (hybrid hosts mount it beside the v1 controllers).
pub fn root() -> Result<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").context("read mounts")?;
    mounts
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            let (_, at, kind) = (words.next()?, words.next()?, words.next()?);
            (kind == "cgroup2").then(|| PathBuf::from(at))
        })
        .next()
        .context("no cgroup v2 hierarchy is mounted")
}

/// Creates a cgroup and its parents below the mount point.
pub fn create(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).with_context(|| format!("create cgroup {}", path.display()))
}

/// Processes that are in `path` or below, as this process's pid namespace sees them.
pub fn members(path: &Path) -> Vec<i32> {
    let mut found: Vec<i32> = std::fs::read_to_string(path.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.parse().ok())
        .filter(|pid| *pid > 0)
        .collect();
    for child in children(path) {
        found.extend(members(&child));
    }
    found
}

/// Removes `path` and everything below; it must be empty of processes.
pub fn remove(path: &Path) -> Result<()> {
    for child in children(path) {
        remove(&child)?;
    }
    match std::fs::remove_dir(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("remove cgroup {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn children(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(path) else { return Vec::new() };
    entries.filter_map(|e| e.ok()).filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect()
}
