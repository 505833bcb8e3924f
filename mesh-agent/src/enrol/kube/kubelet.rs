//! Finds the node's kubelet, so that what it asks the pods' probes passes: whoever listens on its port (10250) in the node's network, and the cgroup of that
//! process. Started by the worker with `--kube`.
//!
//! Only root's sockets count, and all who have it open must be of one cgroup, which is no pod's. What the hook itself refuses (the root cgroup, one that
//! holds pods) is told as any other reason for which no probe passes. A cgroup that the kubelet shares (k3s, RKE2 and microk8s run it with all of their own,
//! a shell runs it in its login session) is taken as a whole, because there is nothing finer to be had, and who else is in it is told.
//!
//! What is asked of the pods is the kubelet's, not its own wish: see [`super::rules`] for probes that name another host.

use std::collections::{BTreeSet, HashSet};
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_runtime::{DrainToken, task};
use parking_lot::Mutex;
use serde::Serialize;

use super::super::node::chain;
use super::cgroup;
use crate::bpf::Kernel;
use crate::cgroups::{self, Hierarchy};

/// Between two looks: a kubelet that was started anew asks at once, and may have another cgroup.
const PERIOD: Duration = Duration::from_secs(1);
/// Longest wait after looks at every process that led to no kubelet.
const LONGEST_PERIOD: Duration = Duration::from_secs(30);
/// Between two looks at who else is in the kubelet's cgroup. What it runs for a moment, to mount a volume, is not there twice.
const COMPANY_PERIOD: Duration = Duration::from_secs(10);
/// Programs beside the kubelet that are told by name.
const MOST_NAMED: usize = 8;
/// A socket that listens, as `/proc/net/tcp` says it.
const LISTENS: &str = "0A";

/// For the admin socket.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Probes {
    /// The cgroup whose processes may ask the pods' probes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubelet: Option<PathBuf>,
    /// Why no probe passes, why it may not be the right one any more, or who else is in that cgroup.
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

/// The kubelet and who else is in its cgroup.
#[derive(Clone, Debug)]
struct Found {
    kubelet: Kubelet,
    company: Company,
}

/// Programs in the kubelet's cgroup that are not its own.
#[derive(Clone, Debug, Default)]
struct Company {
    looked: Option<Instant>,
    seen: BTreeSet<String>,
    /// Seen at two looks after each other.
    stay: BTreeSet<String>,
}

/// Why there is no kubelet.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Miss {
    /// Nobody listens. What the former had stays, as it may be back in a moment.
    Away(String),
    /// Somebody does, and is not found among the processes.
    Unseen(String),
    /// Somebody does who is not to be taken for it.
    Refused(String),
}

impl Miss {
    fn message(&self) -> &String {
        match self {
            Miss::Away(message) | Miss::Unseen(message) | Miss::Refused(message) => message,
        }
    }
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
        let (mut known, mut period): (Option<Found>, _) = (None, PERIOD);
        loop {
            let (looking, before) = (this.clone(), known.clone());
            let look = tokio::task::spawn_blocking(move || looking.look(before));
            let panicked = |_| Err(Miss::Unseen("looking for the kubelet panicked".to_owned()));
            let found = look.await.unwrap_or_else(panicked);
            if let Ok(Found { kubelet, .. }) = &found
                && known.as_ref().map(|known| &known.kubelet) != Some(kubelet)
            {
                tracing::info!(cgroup = ?kubelet.folder, pid = kubelet.pid, "the kubelet's probes pass");
            }
            tell(&found, &mut said.lock());
            period = next_period(period, &found);
            known = found.ok();
            tokio::select! {
                () = drain.started() => return,
                () = tokio::time::sleep(period) => {}
            }
        }
    }

    fn look(&self, known: Option<Found>) -> Result<Found, Miss> {
        let look = |hierarchy: &Hierarchy| {
            let still = |known: &Kubelet| {
                Held::of(&self.proc, known.pid).and_then(|held| held.kubelet(hierarchy)).as_ref() == Some(known)
            };
            let (kubelet, company) = match known {
                Some(Found { kubelet, company }) if still(&kubelet) => (kubelet, company),
                _ => (find(&self.proc, self.port, hierarchy)?, Company::default()),
            };
            let is_time = company.looked.is_none_or(|then| then.elapsed() >= COMPANY_PERIOD);
            let company = match is_time {
                true => company.meet(others(&self.proc, &kubelet), Instant::now()),
                false => company,
            };
            Ok(Found { kubelet, company })
        };
        let unseen = |error| Miss::Unseen(format!("cannot look at {:?}: {error}", self.proc));
        let found = cgroups::look(&self.proc, look).map_err(unseen)?;
        if let Err(Miss::Refused(_)) = &found
            && let Err(error) = self.kernel.leave_kubelet()
        {
            tracing::warn!(error = chain(&error), "processes of a former kubelet may still ask the pods' probes");
        }
        let found = found?;
        self.kernel.follow_kubelet(&found.kubelet.folder).map_err(|error| Miss::Refused(chain(&error)))?;
        Ok(found)
    }
}

/// A process's folder, held open: what is read through it is of this very process, or fails when that has ended.
struct Held {
    pid: u32,
    folder: File,
}

impl Held {
    fn of(proc: &Path, pid: u32) -> Option<Held> {
        Some(Held { pid, folder: File::open(proc.join(pid.to_string())).ok()? })
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.folder.as_raw_fd()))
    }

    fn read(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.path(name)).ok()
    }

    fn has_any(&self, sockets: &HashSet<String>) -> bool {
        let fds = fs::read_dir(self.path("fd")).into_iter().flatten().flatten();
        fds.filter_map(|fd| fs::read_link(fd.path()).ok()).any(|to| to.to_str().is_some_and(|to| sockets.contains(to)))
    }

    /// What is known of it.
    fn kubelet(&self, hierarchy: &Hierarchy) -> Option<Kubelet> {
        let (stat, cgroup) = (self.read("stat")?, self.read("cgroup")?);
        let path = cgroups::unified(&cgroup)?.to_owned();
        Some(Kubelet { pid: self.pid, started: started(&stat)?.to_owned(), folder: hierarchy.folder(&path)?, path })
    }

    /// Device and inode of its program.
    fn program(&self) -> Option<(u64, u64)> {
        fs::metadata(self.path("exe")).ok().map(|file| (file.dev(), file.ino()))
    }

    fn name(&self) -> Option<String> {
        let program = fs::read_link(self.path("exe")).ok().map(|path| path.to_string_lossy().into_owned());
        program.or_else(|| Some(self.read("comm")?.trim().to_owned()))
    }
}

fn find(proc: &Path, port: u16, hierarchy: &Hierarchy) -> Result<Kubelet, Miss> {
    let tables = ["tcp", "tcp6"].map(|table| fs::read_to_string(format!("/proc/self/net/{table}")));
    let sockets: HashSet<String> = tables
        .iter()
        .flatten()
        .flat_map(|text| listeners(text, port))
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    if sockets.is_empty() {
        let message = format!("no socket of root listens on the kubelet's port {port} in the node's network");
        return Err(Miss::Away(message));
    }
    let owner = |pid: u32| {
        let held = Held::of(proc, pid)?;
        if !held.has_any(&sockets) {
            return None;
        }
        let found = held.kubelet(hierarchy)?;
        // Its cgroup is that of an owner only if it was one before and after.
        held.has_any(&sockets).then_some(found)
    };
    let unseen = || {
        Miss::Unseen(format!(
            "whoever listens on the kubelet's port {port} is not among the processes in {proc:?}, or in no cgroup of version 2 that is mounted here",
        ))
    };
    choose(cgroups::processes(proc).filter_map(owner).collect(), port)?.ok_or_else(unseen)
}

/// The kubelet, of all who have its socket open.
fn choose(mut owners: Vec<Kubelet>, port: u16) -> Result<Option<Kubelet>, Miss> {
    if let Some(owner) = owners.iter().find(|owner| cgroup::pod_of(&owner.path).is_some()) {
        let message =
            format!("a process of a pod, {}, listens on the kubelet's port {port}: {:?}", owner.pid, owner.folder);
        return Err(Miss::Refused(message));
    }
    let folders: BTreeSet<&Path> = owners.iter().map(|owner| &*owner.folder).collect();
    if folders.len() > 1 {
        let message = format!("processes of several cgroups listen on the kubelet's port {port}: {folders:?}");
        return Err(Miss::Refused(message));
    }
    Ok((!owners.is_empty()).then(|| owners.swap_remove(0)))
}

/// Other programs in the kubelet's cgroup. Numbers in `cgroup.procs` are those of the reader's own processes and 0 for others, so it only tells
/// whether there is anybody.
fn others(proc: &Path, kubelet: &Kubelet) -> BTreeSet<String> {
    let own = Held::of(proc, kubelet.pid).and_then(|held| held.program());
    if own.is_some() && count(&kubelet.folder) == 1 {
        return BTreeSet::new();
    }
    let other = |pid: u32| {
        let held = Held::of(proc, pid)?;
        let is_inside = is_in(cgroups::unified(&held.read("cgroup")?)?, &kubelet.path);
        if !is_inside || pid == kubelet.pid || (own.is_some() && held.program() == own) {
            return None;
        }
        held.name()
    };
    cgroups::processes(proc).filter_map(other).collect()
}

/// Processes in a cgroup and below.
fn count(folder: &Path) -> usize {
    let here = fs::read_to_string(folder.join("cgroup.procs")).map_or(0, |text| text.lines().count());
    let below = fs::read_dir(folder).into_iter().flatten().flatten();
    let folders = below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    here + folders.map(|entry| count(&entry.path())).sum::<usize>()
}

/// Whether a cgroup is another or below it.
fn is_in(path: &str, above: &str) -> bool {
    path.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

impl Company {
    fn meet(self, seen: BTreeSet<String>, now: Instant) -> Company {
        Company { looked: Some(now), stay: &seen & &self.seen, seen }
    }

    fn trouble(&self) -> Option<String> {
        let named: Vec<&str> = self.stay.iter().take(MOST_NAMED).map(String::as_str).collect();
        (!named.is_empty()).then(|| {
            format!(
                "the kubelet's cgroup holds other programs, and what they ask of the pods' probes passes too: {named:?}"
            )
        })
    }
}

/// How long to wait: looking at every process costs too much to go on with it each second.
fn next_period(last: Duration, found: &Result<Found, Miss>) -> Duration {
    match found {
        Ok(_) | Err(Miss::Away(_)) => PERIOD,
        Err(Miss::Unseen(_) | Miss::Refused(_)) => last.saturating_mul(2).min(LONGEST_PERIOD),
    }
}

fn tell(found: &Result<Found, Miss>, said: &mut Probes) {
    let (kubelet, trouble) = match found {
        Ok(Found { kubelet, company }) => (Some(kubelet.folder.clone()), company.trouble()),
        Err(miss @ Miss::Refused(_)) => (None, Some(miss.message().clone())),
        Err(miss) => (said.kubelet.clone(), Some(miss.message().clone())),
    };
    if let Some(trouble) = trouble.as_ref().filter(|trouble| said.trouble.as_ref() != Some(trouble)) {
        match found {
            Ok(_) => tracing::warn!(trouble, "not only the kubelet's probes pass"),
            Err(_) => tracing::warn!(trouble, "probes of the kubelet may meet the mesh's rules"),
        }
    }
    *said = Probes { kubelet, trouble };
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

    fn owner(pid: u32, path: &str) -> Kubelet {
        Kubelet { pid, started: "1".into(), path: path.into(), folder: Path::new("/sys/fs/cgroup").join(&path[1..]) }
    }

    /// The cgroups of the port's owners, and which of them it is.
    type Row<'a> = (&'a [&'a str], Result<Option<u32>, &'a str>);

    #[test]
    fn features_pl5_who_is_taken_for_the_kubelet() {
        let pod = "/kubepods/burstable/pod2c48913c-b29f-11e7-9350-020968147796/c/kubelet.service";
        let (one, other) = ("/system.slice/kubelet.service", "/system.slice/other.service");
        let rows: [Row<'_>; 6] = [
            (&[], Ok(None)),
            (&[one], Ok(Some(0))),
            (&[one, one], Ok(Some(0))),
            (&[one, other], Err("several cgroups")),
            (&[pod], Err("a process of a pod, 0,")),
            (&[one, pod], Err("a process of a pod, 1,")),
        ];
        for (paths, expected) in rows {
            let owners = paths.iter().zip(0..).map(|(path, pid)| owner(pid, path)).collect();
            match (choose(owners, 10_250), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found.map(|found| found.pid), expected, "{paths:?}"),
                (Err(Miss::Refused(message)), Err(expected)) => assert!(message.contains(expected), "{message}"),
                (found, _) => panic!("{paths:?}: {found:?}"),
            }
        }
    }

    #[test]
    fn looks_that_cost_much_and_find_nothing_become_rare() {
        let found = || Ok(Found { kubelet: owner(1, "/a"), company: Company::default() });
        let seconds = |last, found: &Result<Found, Miss>| next_period(Duration::from_secs(last), found).as_secs();
        for miss in [Miss::Unseen(String::new()), Miss::Refused(String::new())] {
            let miss = Err(miss);
            let waits = [1, 2, 16, 30].map(|last| seconds(last, &miss));
            assert_eq!(waits, [2, 4, 30, 30]);
        }
        assert_eq!((seconds(30, &found()), seconds(30, &Err(Miss::Away(String::new())))), (1, 1));
    }

    #[test]
    fn features_pl5_who_stays_in_the_kubelets_cgroup_is_told() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        let now = Instant::now();
        let company = Company::default().meet(names(&["/bin/mount", "/bin/k3s"]), now);
        assert_eq!(company.trouble(), None);
        let company = company.meet(names(&["/bin/k3s", "/bin/du"]), now);
        assert!(company.trouble().is_some_and(|told| told.contains("k3s") && !told.contains("mount")));
        assert_eq!(company.meet(names(&["/bin/x"]), now).trouble(), None);
        for (path, above, inside) in
            [("/a", "/a", true), ("/a/b", "/a", true), ("/ab", "/a", false), ("/", "/a", false), ("/b/a", "/a", false)]
        {
            assert_eq!(is_in(path, above), inside, "{path} in {above}");
        }
        // Told once, and the cgroup stays in use; one that is refused is not.
        let mut said = Probes::default();
        let company = Company { stay: names(&["/bin/k3s"]), ..Company::default() };
        tell(&Ok(Found { kubelet: owner(1, "/a"), company }), &mut said);
        assert!(said.kubelet.is_some() && said.trouble.is_some());
        tell(&Err(Miss::Away("away".into())), &mut said);
        assert!(said.kubelet.is_some() && said.trouble.as_deref() == Some("away"));
        tell(&Err(Miss::Refused("refused".into())), &mut said);
        assert_eq!(said, Probes { kubelet: None, trouble: Some("refused".into()) });
    }

    #[test]
    fn features_pl5_who_listens_is_found_with_its_company() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let proc = Path::new("/proc");
        let found = cgroups::look(proc, |hierarchy| find(proc, port, hierarchy)).unwrap();
        let kubelet = match found {
            Ok(kubelet) => kubelet,
            Err(miss) => {
                println!("SKIPPED: who listens is found: needs root and cgroup version 2: {miss:?}");
                return;
            }
        };
        assert_eq!(kubelet.pid, std::process::id());
        let mut sleeper = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let company = others(proc, &kubelet);
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        assert!(
            company.iter().any(|name| name.contains("sleep") || name.contains("coreutils") || name.contains("busybox")),
            "{company:?}"
        );
        drop(listener);
        let gone = cgroups::look(proc, |hierarchy| find(proc, port, hierarchy)).unwrap();
        assert!(matches!(gone, Err(Miss::Away(_))), "{gone:?}");
    }
}
