//! Where the cgroups of processes are, told from `/proc`: of the pods (configuration asks, when nobody says it) and of the kubelet (enrolment asks).
//!
//! An agent in a container sees the paths of others from its own cgroup on (`/../../..`), and its own as `/`. So a thread enters the namespace of the
//! node's first process and looks from there.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};

/// Cgroup v2 at a moment, as the node's first process sees it.
#[derive(Debug, Default)]
pub struct Hierarchy {
    /// Root within the hierarchy, and where it is mounted here.
    mounts: Vec<(String, PathBuf)>,
}

impl Hierarchy {
    /// The folder of a path in the hierarchy.
    pub fn folder(&self, path: &str) -> Option<PathBuf> {
        let below = |root: &str| match root {
            "/" => Some(path),
            root => path.strip_prefix(root).filter(|rest| rest.is_empty() || rest.starts_with('/')),
        };
        let found = self.mounts.iter().filter_map(|(root, point)| Some((root.len(), point, below(root)?)));
        let (_, point, rest) = found.max_by_key(|(length, ..)| *length)?;
        Some(match rest.trim_start_matches('/') {
            "" => point.clone(),
            rest => point.join(rest),
        })
    }

    /// Reads `/proc/self/mountinfo`.
    fn parse(text: &str) -> Hierarchy {
        let mount = |line: &str| {
            let (place, kind) = line.split_once(" - ")?;
            let mut fields = place.split(' ').skip(3);
            let (root, point) = (fields.next()?, fields.next()?);
            kind.starts_with("cgroup2 ").then(|| (plain(root), PathBuf::from(plain(point))))
        };
        let mut mounts: Vec<(String, PathBuf)> = Vec::new();
        for (root, point) in text.lines().filter_map(mount) {
            // Of several at one place the last is seen: a container's own hierarchy lies under the host's.
            mounts.retain(|(_, other)| *other != point);
            mounts.push((root, point));
        }
        Hierarchy { mounts }
    }
}

/// Spaces and the like are written in octal there.
fn plain(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// The path in the version 2 hierarchy that `/proc/<pid>/cgroup` names.
pub fn unified(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::"))
}

/// What of a process's path is above all pods: up to the kubelet's folder of them, by whichever driver.
fn above_pods(path: &str) -> Option<&str> {
    let mut end = 0;
    for part in path.split('/') {
        end += part.len();
        if part == "kubepods" || part == "kubepods.slice" || part.ends_with("-kubepods.slice") {
            return Some(&path[..end]);
        }
        end += 1;
    }
    None
}

/// The numbers of all processes that `proc` shows.
pub fn processes(proc: &Path) -> impl Iterator<Item = u32> {
    let entries = fs::read_dir(proc).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Looks at the hierarchy as the first process of `proc` sees it, or, without the right to, as this one does.
pub fn look<T: Send>(proc: &Path, look: impl FnOnce(&Hierarchy) -> T + Send) -> std::io::Result<T> {
    std::thread::scope(|scope| {
        let looking = move || {
            if let Ok(first) = File::open(proc.join("1/ns/cgroup")) {
                let _ = setns(first, CloneFlags::CLONE_NEWCGROUP);
            }
            let mounts = fs::read_to_string("/proc/thread-self/mountinfo")?;
            Ok(look(&Hierarchy::parse(&mounts)))
        };
        let thread = std::thread::Builder::new().name("cgroups".into()).spawn_scoped(scope, looking)?;
        thread.join().unwrap_or_else(|_| Err(std::io::Error::other("the thread panicked")))
    })
}

/// The folder above all pods of the node whose processes `proc` shows.
pub fn find_pods(proc: &Path) -> Result<PathBuf, String> {
    let found = look(proc, |hierarchy| {
        let path = |pid: u32| fs::read_to_string(proc.join(format!("{pid}/cgroup"))).ok();
        let paths: BTreeSet<String> = processes(proc)
            .filter_map(path)
            .filter_map(|text| unified(&text).and_then(above_pods).map(str::to_owned))
            .collect();
        let mut folders: BTreeSet<PathBuf> = paths.iter().filter_map(|path| hierarchy.folder(path)).collect();
        if folders.is_empty() {
            // An agent that is started anew has left its pod, and may be the only one of the node.
            let own = fs::read_to_string("/proc/thread-self/cgroup").ok();
            let own = own.as_deref().and_then(unified).and_then(|path| hierarchy.folder(path));
            let beside = own.iter().filter_map(|own| fs::read_dir(own.parent()?).ok()).flatten().flatten();
            folders.extend(beside.map(|entry| entry.path()).filter(|path| is_above_pods(path)));
        }
        folders
    });
    let found: Vec<PathBuf> = found.map_err(|error| format!("cannot look at {proc:?}: {error}"))?.into_iter().collect();
    match &found[..] {
        [one] => Ok(one.clone()),
        [] => Err(format!(
            "no process in {proc:?} is in a pod's cgroup of version 2: say which folder is above the pods'"
        )),
        several => Err(format!("several folders are above pods, {several:?}: say which is this node's")),
    }
}

fn is_above_pods(folder: &Path) -> bool {
    folder.to_str().is_some_and(|path| above_pods(path) == Some(path)) && folder.is_dir()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_above_the_pods_in_all_layouts() {
        let rows = [
            ("/kubepods/burstable/podx/y", Some("/kubepods")),
            ("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podx.slice/z.scope", Some("/kubepods.slice")),
            ("/um1-n1/kubepods/podx", Some("/um1-n1/kubepods")),
            ("/kubelet/kubepods/besteffort/podx", Some("/kubelet/kubepods")),
            (
                "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-podx.slice/c",
                Some("/kubelet.slice/kubelet-kubepods.slice"),
            ),
            ("/docker/id/kubelet/kubepods/podx", Some("/docker/id/kubelet/kubepods")),
            ("/system.slice/kubelet.service", None),
            ("/mykubepods/podx", None),
            ("/", None),
            ("", None),
        ];
        for (path, expected) in rows {
            assert_eq!(above_pods(path), expected, "{path}");
        }
    }

    #[test]
    fn paths_become_folders_where_the_hierarchy_is_mounted() {
        let pure = "36 25 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
        let hybrid = "30 25 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                      32 30 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
        let part = "40 25 0:30 /docker/id /sys/fs/cg\\040roup rw - cgroup2 cgroup rw\n";
        let legacy = "32 30 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
        let both = format!("{part}{pure}");
        let hidden = format!("39 25 0:30 /kubepods/podx/c /sys/fs/cgroup ro - cgroup2 cgroup ro\n{pure}");
        let rows = [
            (pure, "/kubepods/podx", Some("/sys/fs/cgroup/kubepods/podx")),
            (pure, "/", Some("/sys/fs/cgroup")),
            (hybrid, "/um1-n1/system.slice", Some("/sys/fs/cgroup/unified/um1-n1/system.slice")),
            (part, "/docker/id/kubelet", Some("/sys/fs/cg roup/kubelet")),
            (part, "/docker/id", Some("/sys/fs/cg roup")),
            (part, "/docker/idx/kubelet", None),
            (part, "/kubelet", None),
            (&both, "/docker/id/x", Some("/sys/fs/cg roup/x")),
            (&both, "/kubelet", Some("/sys/fs/cgroup/kubelet")),
            (&hidden, "/kubepods/podx/c/below", Some("/sys/fs/cgroup/kubepods/podx/c/below")),
            // Outside of what this process can see.
            (part, "/../x", None),
            (legacy, "/x", None),
            ("", "/x", None),
        ];
        for (mounts, path, expected) in rows {
            let folder = Hierarchy::parse(mounts).folder(path);
            assert_eq!(folder.as_deref().and_then(Path::to_str), expected, "{path} with {mounts}");
        }
        assert_eq!(unified("12:pids:/a\n1:name=systemd:/b\n0::/c\n"), Some("/c"));
        assert_eq!(unified("12:pids:/a\n"), None);
    }

    #[test]
    fn this_process_is_where_the_kernel_says() {
        let found = look(Path::new("/proc"), |hierarchy| {
            let text = fs::read_to_string("/proc/self/cgroup").unwrap();
            unified(&text).map(|path| (path.to_owned(), hierarchy.folder(path)))
        });
        let Some((path, folder)) = found.unwrap() else {
            println!("SKIPPED: a process and its cgroup: no cgroup of version 2 here");
            return;
        };
        let Some(folder) = folder else {
            println!("SKIPPED: a process and its cgroup: {path} is mounted nowhere here");
            return;
        };
        let inside = fs::read_to_string(folder.join("cgroup.procs")).unwrap();
        assert!(inside.lines().any(|line| line == std::process::id().to_string()), "{folder:?}");
    }
}
