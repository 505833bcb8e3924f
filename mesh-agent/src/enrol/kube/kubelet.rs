//! Finds the node's kubelet, so that what it asks the pods' probes passes: whoever listens on its port (10250) in the node's network, and the cgroup of that
//! process. Started by the worker with `--kube`.
//!
//! Only root's sockets count, and all who have it open must be of one cgroup. What the hook itself refuses (the root cgroup, one that holds pods)
//! is told as any other reason for which no probe passes.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mesh_runtime::{DrainToken, task};
use parking_lot::Mutex;
use serde::Serialize;

use super::super::node::chain;
use crate::bpf::Kernel;
use crate::cgroups::{self, Hierarchy};

/// Between two looks: a kubelet that was started anew asks at once, and may have another cgroup.
const PERIOD: Duration = Duration::from_secs(1);
/// A socket that listens, as `/proc/net/tcp` says it.
const LISTENS: &str = "0A";

/// For the admin socket.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Probes {
    /// The cgroup whose processes may ask the pods' probes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubelet: Option<PathBuf>,
    /// Why no probe passes, or why it may not be the right one any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// Follows the kubelet.
pub struct Follower {
    /// The programs.
    pub kernel: Arc<Kernel>,
    /// The host's `/proc`.
    pub proc: PathBuf,
    /// The kubelet's port.
    pub port: u16,
}

/// The kubelet at a moment.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Kubelet {
    pid: u32,
    /// Tells it apart from a later process of that number.
    started: String,
    path: String,
    folder: PathBuf,
}

impl Follower {
    /// Starts the task; what it finds is in the returned place.
    pub fn spawn(self, drain: DrainToken) -> Arc<Mutex<Probes>> {
        let said = Arc::new(Mutex::new(Probes::default()));
        task::spawn_vital("kubelet's probes", self.run(said.clone(), drain));
        said
    }

    async fn run(self, said: Arc<Mutex<Probes>>, drain: DrainToken) {
        let this = Arc::new(self);
        let mut known = None;
        loop {
            let (looking, before) = (this.clone(), known.clone());
            let look = tokio::task::spawn_blocking(move || looking.look(before));
            let found = look.await.unwrap_or_else(|_| Err("looking for the kubelet panicked".to_owned()));
            if let Ok(kubelet) = &found
                && known.as_ref() != Some(kubelet)
            {
                tracing::info!(cgroup = ?kubelet.folder, pid = kubelet.pid, "the kubelet's probes pass");
            }
            tell(&found, &mut said.lock());
            known = found.ok();
            tokio::select! {
                () = drain.started() => return,
                () = tokio::time::sleep(PERIOD) => {}
            }
        }
    }

    fn look(&self, known: Option<Kubelet>) -> Result<Kubelet, String> {
        let look = |hierarchy: &Hierarchy| match known {
            Some(known) if self.of(known.pid, hierarchy) == Some(known.clone()) => Ok(known),
            _ => self.find(hierarchy),
        };
        let found = cgroups::look(&self.proc, look).map_err(|error| format!("cannot look at {:?}: {error}", self.proc));
        let kubelet = found??;
        self.kernel.follow_kubelet(&kubelet.folder).map_err(|error| chain(&error))?;
        Ok(kubelet)
    }

    fn find(&self, hierarchy: &Hierarchy) -> Result<Kubelet, String> {
        let tables = ["tcp", "tcp6"].map(|table| fs::read_to_string(format!("/proc/self/net/{table}")));
        let sockets: HashSet<String> = tables
            .iter()
            .flatten()
            .flat_map(|text| listeners(text, self.port))
            .map(|inode| format!("socket:[{inode}]"))
            .collect();
        if sockets.is_empty() {
            return Err(format!("no socket of root listens on the kubelet's port {} in the node's network", self.port));
        }
        let has_it = |pid: &u32| {
            let fds = fs::read_dir(self.proc.join(format!("{pid}/fd"))).into_iter().flatten().flatten();
            fds.filter_map(|fd| fs::read_link(fd.path()).ok())
                .any(|to| to.to_str().is_some_and(|to| sockets.contains(to)))
        };
        let owners: Vec<u32> = cgroups::processes(&self.proc).filter(has_it).collect();
        let found: Vec<Kubelet> = owners.iter().filter_map(|pid| self.of(*pid, hierarchy)).collect();
        let folders: BTreeSet<&Path> = found.iter().map(|kubelet| &*kubelet.folder).collect();
        match (found.first(), folders.len()) {
            (Some(kubelet), 1) => Ok(kubelet.clone()),
            (Some(_), _) => {
                Err(format!("processes of several cgroups listen on the kubelet's port {}: {folders:?}", self.port))
            }
            (None, _) => Err(format!(
                "whoever listens on the kubelet's port {} is not among the processes in {:?}, or in no cgroup of version 2 that is mounted here",
                self.port, self.proc
            )),
        }
    }

    /// What is known of a process.
    fn of(&self, pid: u32, hierarchy: &Hierarchy) -> Option<Kubelet> {
        let read = |name: &str| fs::read_to_string(self.proc.join(format!("{pid}/{name}"))).ok();
        let (stat, cgroup) = (read("stat")?, read("cgroup")?);
        let path = cgroups::unified(&cgroup)?.to_owned();
        Some(Kubelet { pid, started: started(&stat)?.to_owned(), folder: hierarchy.folder(&path)?, path })
    }
}

fn tell(found: &Result<Kubelet, String>, said: &mut Probes) {
    match found {
        Ok(kubelet) => *said = Probes { kubelet: Some(kubelet.folder.clone()), trouble: None },
        Err(trouble) => {
            if said.trouble.as_ref() != Some(trouble) {
                tracing::warn!(trouble, "probes of the kubelet may meet the mesh's rules");
            }
            said.trouble = Some(trouble.clone());
        }
    }
}

/// When a process started, of `/proc/<pid>/stat`. Its name, in parentheses, may hold anything.
fn started(stat: &str) -> Option<&str> {
    stat.rsplit_once(") ")?.1.split(' ').nth(19)
}

/// Inodes of root's sockets that listen on a port, of `/proc/net/tcp` or `tcp6`.
fn listeners(text: &str, port: u16) -> Vec<&str> {
    let listens = |line: &&str| -> Option<bool> {
        let mut fields = line.split_ascii_whitespace();
        let (_, local) = fields.nth(1)?.rsplit_once(':')?;
        let (state, user) = (fields.nth(1)?, fields.nth(3)?);
        Some(u16::from_str_radix(local, 16).ok()? == port && state == LISTENS && user == "0")
    };
    let lines = text.lines().filter(|line| listens(line).unwrap_or(false));
    lines.filter_map(|line| line.split_ascii_whitespace().nth(9)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_pl5_who_listens_on_the_kubelets_port() {
        let head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";
        let line = |local: &str, state: &str, uid: &str, inode: &str| {
            format!(
                "   0: {local} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000   {uid}        0 {inode} 1 0000 100 0 0 10 0\n"
            )
        };
        let text = [
            head.to_owned(),
            line("0100007F:280A", "0A", "0", "11"),
            line("00000000:280A", "0A", "1000", "12"),
            line("00000000:280A", "01", "0", "13"),
            line("00000000:280B", "0A", "0", "14"),
            line("00000000000000000000000000000000:280A", "0A", "0", "15"),
            "garbage\n:\n".to_owned(),
        ];
        assert_eq!(listeners(&text.concat(), 10_250), ["11", "15"]);
        assert_eq!(listeners("", 10_250), Vec::<&str>::new());
    }

    #[test]
    fn a_name_says_nothing_about_a_start() {
        let after: Vec<String> = (3..=30).map(|field| field.to_string()).collect();
        for name in ["kubelet", "a) b (c", ") 1 2"] {
            let line = format!("17 ({name}) {}", after.join(" "));
            assert_eq!(started(&line), Some("22"), "{name}");
        }
        assert_eq!((started("17 (x"), started("")), (None, None));
    }
}
