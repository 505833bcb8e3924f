//! The cgroups of a node: one root for all of it in every hierarchy, so that what is attached for one node touches no other. Works on
//! machines with cgroup v2, with v1, and with both (hybrid). Called by `node` and `down`.
use super::process;
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const ROOT: &str = "/sys/fs/cgroup";

/// Makes the node's root and puts this process, and so all its children, beside the pods: into `system.slice`.
pub fn enter(name: &str) -> Result<()> {
    let root = Path::new(ROOT);
    if root.join("cgroup.controllers").exists() {
        let system = root.join(name).join("system.slice");
        fs::create_dir_all(&system).with_context(|| format!("make {}", system.display()))?;
        for controller in fs::read_to_string(root.join("cgroup.controllers"))?.split_whitespace() {
            // Not every controller can be handed down; the kubelet names those that it misses.
            let _ = fs::write(root.join("cgroup.subtree_control"), format!("+{controller}"));
        }
        return join(&system);
    }
    for hierarchy in hierarchies() {
        let top = hierarchy.join(name);
        fs::create_dir_all(&top).with_context(|| format!("make {}", top.display()))?;
        // A cpuset starts empty, and nothing can run in an empty one.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if let Ok(all) = fs::read_to_string(hierarchy.join(file)) {
                fs::write(top.join(file), all).with_context(|| format!("set {file}"))?;
            }
        }
    }
    // The others are for accounting of pods; these two are the ones by which a process is found.
    for hierarchy in ["systemd", "unified"].map(|name| root.join(name)) {
        if hierarchy.is_dir() {
            let system = hierarchy.join(name).join("system.slice");
            fs::create_dir_all(&system).with_context(|| format!("make {}", system.display()))?;
            join(&system)?;
        }
    }
    Ok(())
}

/// Removes the node's cgroups; its processes have ended.
pub fn remove(name: &str) -> Result<()> {
    for top in existing(name) {
        process::until(Duration::from_secs(10), || prune(&top))
            .with_context(|| format!("{} does not get empty", top.display()))?;
    }
    Ok(())
}

/// The roots of a node that exist.
pub fn existing(name: &str) -> Vec<PathBuf> {
    let mut tops = vec![Path::new(ROOT).join(name)];
    tops.extend(hierarchies().into_iter().map(|hierarchy| hierarchy.join(name)));
    tops.retain(|top| top.is_dir());
    tops
}

fn hierarchies() -> Vec<PathBuf> {
    let children = fs::read_dir(ROOT).into_iter().flatten().flatten().map(|entry| entry.path());
    // Some are linked under a second name.
    children.filter(|path| path.is_dir() && !path.is_symlink()).collect()
}

fn join(cgroup: &Path) -> Result<()> {
    fs::write(cgroup.join("cgroup.procs"), "0").with_context(|| format!("enter {}", cgroup.display()))
}

/// Removes a cgroup with all below it, the deepest first. Says whether it is gone.
fn prune(cgroup: &Path) -> bool {
    for child in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if child.file_type().is_ok_and(|kind| kind.is_dir()) {
            prune(&child.path());
        }
    }
    let _ = fs::remove_dir(cgroup);
    !cgroup.exists()
}
