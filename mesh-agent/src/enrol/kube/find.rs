//! Finds a pod on this node: from its UID to its cgroup, from there to its processes, and from these to the network namespace that the
//! container runtime holds in a folder. Called by [`super::driver`]; blocking.
//!
//! Each step is proven by the kernel and none by a name alone, except that of the cgroup, which the kubelet makes and no pod can. Between two
//! looks a process may end and its number be given to another: the process is looked at again through a descriptor of its own while
//! the namespace is held.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use mesh_proto::convert::{EnrolRequest, PodDnsRequest, PodRequest, encode_enrol_request, enrol_request};
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use super::super::check::Checker;
use super::super::machine::Spec;
use super::super::server::PodFds;
use super::super::session::{Code, Failure};
use super::facts::Facts;
use super::{cgroup, resolv};

/// Longest `resolv.conf` that is read; resolvers stop far earlier.
const LONGEST: u64 = 64 << 10;
/// Folders between the cgroup of all pods and that of one: QoS classes, and what kind puts above.
const DEEPEST: usize = 6;

/// Device and inode of a network namespace.
type Netns = (u64, u64);

/// Where to look.
#[derive(Clone, Debug)]
pub struct Finder {
    /// The host's `/proc`.
    pub proc: PathBuf,
    /// Where the runtime holds network namespaces.
    pub netns: PathBuf,
    /// The cgroup v2 folder above all pods.
    pub pods_cgroup: PathBuf,
    /// This node's name.
    pub node: String,
}

/// A process of a pod.
#[derive(Clone, Copy, Debug)]
struct Process {
    pid: u32,
    netns: Netns,
}

/// The node at one moment.
#[derive(Debug, Default)]
pub struct Seen {
    /// By the UID in the names of cgroups.
    processes: HashMap<String, Vec<Process>>,
    /// Pods with processes in version 1 hierarchies alone.
    legacy: HashSet<String>,
    held: HashMap<Netns, PathBuf>,
    cgroups: HashMap<String, PathBuf>,
}

impl Finder {
    /// Looks at the whole node once.
    pub fn look(&self) -> io::Result<Seen> {
        let mut seen = Seen::default();
        for entry in fs::read_dir(&self.proc)? {
            let name = entry?.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
            // Processes end while we look.
            let Ok(lines) = fs::read_to_string(self.proc.join(&name).join("cgroup")) else { continue };
            let member = cgroup::membership(&lines);
            if let Some(uid) = member.unified {
                if let Ok(netns) = fs::metadata(self.proc.join(&name).join("ns/net")) {
                    seen.processes.entry(uid).or_default().push(Process { pid, netns: identity(&netns) });
                }
            } else if let Some(uid) = member.legacy {
                seen.legacy.insert(uid);
            }
        }
        // The folder comes with the first pod.
        for entry in fs::read_dir(&self.netns).into_iter().flatten().flatten() {
            if let Ok(metadata) = fs::metadata(entry.path()) {
                seen.held.insert(identity(&metadata), entry.path());
            }
        }
        let _ = walk(&self.pods_cgroup, DEEPEST, &mut seen.cgroups);
        Ok(seen)
    }

    /// Opens what an enrolment of the pod needs, and has it checked.
    pub fn open(&self, seen: &Seen, pod: &Facts, checker: &Checker) -> Result<(Spec, PodFds), Failure> {
        let uid = pod.cgroup_uid.as_str();
        let folder = seen
            .cgroups
            .get(uid)
            .ok_or_else(|| passing(format!("there is no cgroup of the pod below {:?} yet", self.pods_cgroup)))?;
        let processes = seen.processes.get(uid).map_or(&[][..], Vec::as_slice);
        if processes.is_empty() {
            return Err(passing(match seen.legacy.contains(uid) {
                true => "the pod's processes are in cgroups of version 1 alone: programs cannot be attached there"
                    .to_owned(),
                false => "the pod has no process yet".to_owned(),
            }));
        }
        let cgroup: OwnedFd =
            File::open(folder).map_err(|error| passing(format!("cannot open {folder:?}: {error}")))?.into();
        let spaces: BTreeSet<Netns> = processes.iter().map(|process| process.netns).collect();
        let mut why = passing(format!("no network namespace of the pod's processes is in {:?} yet", self.netns));
        let mut found = Vec::new();
        for space in spaces {
            let Some(path) = seen.held.get(&space) else { continue };
            let netns: OwnedFd =
                File::open(path).map_err(|error| passing(format!("cannot open {path:?}: {error}")))?.into();
            match checker.check_netns(netns.as_fd(), &pod.ips) {
                Ok(id) => found.push((space, netns, id)),
                // The kubelet reports addresses a moment before or after they are there.
                Err(failure) => why = Failure { retry: true, ..failure },
            }
        }
        if found.len() > 1 {
            return Err(passing("more than one network namespace of the pod's processes has its addresses".to_owned()));
        }
        let (space, netns, id) = found.pop().ok_or(why)?;
        let inside = processes.iter().filter(|process| process.netns == space);
        // Held by `netns`, its inode is not given to another.
        let dns = inside.into_iter().find_map(|process| self.look_again(process, uid)).ok_or_else(|| {
            passing("the pod's processes ended while they were looked at, or have no readable resolv.conf".to_owned())
        })?;
        let request = self.request(pod, dns)?;
        checker.check(&request, netns.as_fd(), cgroup.as_fd())?;
        Ok((Spec { pod: request, netns: id }, PodFds { netns, adopted: None, taken_over: false }))
    }

    /// Where a pod is of which somebody else knows the network namespace: its cgroup and, if that is asked and it has a process already, what
    /// `resolv.conf` says there.
    pub fn place(
        &self,
        uid: &str,
        netns: BorrowedFd<'_>,
        with_dns: bool,
    ) -> Result<(OwnedFd, Option<PodDnsRequest>), Failure> {
        let open = |folder: &Path| {
            File::open(folder).map(OwnedFd::from).map_err(|error| passing(format!("cannot open {folder:?}: {error}")))
        };
        // A pod that is being made has no process: the others need not be looked at for it.
        if let Some(folder) = self.folder(uid).filter(|folder| !(with_dns && is_populated(folder))) {
            return Ok((open(&folder)?, None));
        }
        let seen = self.look().map_err(|error| passing(format!("cannot look at {:?}: {error}", self.proc)))?;
        let netns = netns.try_clone_to_owned().map(File::from).and_then(|file| file.metadata());
        let netns = netns.map_err(|error| passing(format!("cannot look at the network namespace: {error}")))?;
        let space = identity(&netns);
        // A pod of the kubelet's own folder has another UID in the names of its cgroups: then its processes tell.
        let mut inside = seen.processes.iter().filter(|(_, all)| all.iter().any(|process| process.netns == space));
        let uid = match (seen.cgroups.contains_key(uid), inside.next(), inside.next()) {
            (false, Some((only, _)), None) => only.as_str(),
            _ => uid,
        };
        let none = || passing(format!("there is no cgroup of the pod below {:?} yet", self.pods_cgroup));
        let cgroup = open(seen.cgroups.get(uid).ok_or_else(none)?)?;
        let processes = seen.processes.get(uid).map_or(&[][..], Vec::as_slice).iter();
        let dns = processes.filter(|process| process.netns == space).find_map(|process| self.look_again(process, uid));
        Ok((cgroup, dns))
    }

    /// The cgroup of a pod, named as the kubelet runs it.
    pub fn folder(&self, cgroup_uid: &str) -> Option<PathBuf> {
        let mut found = HashMap::new();
        // What else could not be looked at does not matter to what was found.
        let _ = walk(&self.pods_cgroup, DEEPEST, &mut found);
        found.remove(cgroup_uid)
    }

    /// Whether a pod has a process, by its cgroup. One that cannot be looked at may have.
    pub fn has_processes(&self, cgroup_uid: &str) -> bool {
        let mut found = HashMap::new();
        let whole = walk(&self.pods_cgroup, DEEPEST, &mut found);
        match found.get(cgroup_uid) {
            Some(folder) => is_populated(folder),
            None => whole.is_err(),
        }
    }

    /// The request of a pod, with the same checks as those of one on the enrolment socket. Whoever tells of the addresses, they are in one order.
    pub fn request(&self, pod: &Facts, dns: PodDnsRequest) -> Result<PodRequest, Failure> {
        let mut ips = pod.ips.clone();
        ips.sort_unstable();
        let request = PodRequest {
            uid: pod.uid.clone(),
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            service_account: pod.service_account.clone(),
            ips,
            dns: if pod.said.own_dns { PodDnsRequest { nameservers: Vec::new(), ..dns } } else { dns },
            rules: Box::new(pod.said.rules.clone()),
            node: self.node.as_str().into(),
        };
        checked(request)
    }

    /// Whether the process is still the pod's and in the namespace, and if so what its `resolv.conf` says.
    fn look_again(&self, process: &Process, uid: &str) -> Option<PodDnsRequest> {
        let folder = File::open(self.proc.join(process.pid.to_string())).ok()?;
        // Everything below is asked of this very process, or fails when it has ended.
        let of = |name: &str, flags| openat2(&folder, name, OpenHow::new().flags(flags | OFlag::O_CLOEXEC));
        let mut lines = String::new();
        File::from(of("cgroup", OFlag::O_RDONLY).ok()?).read_to_string(&mut lines).ok()?;
        let netns = File::from(of("ns/net", OFlag::O_RDONLY).ok()?).metadata().ok()?;
        if cgroup::membership(&lines).unified.as_deref() != Some(uid) || identity(&netns) != process.netns {
            return None;
        }
        let root = of("root", OFlag::O_PATH | OFlag::O_DIRECTORY).ok()?;
        // The pod made this tree: its links stay in it, and what is no file is not waited for.
        let how = OpenHow::new()
            .flags(OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let file = File::from(openat2(&root, "etc/resolv.conf", how).ok()?);
        if !file.metadata().ok()?.is_file() {
            return None;
        }
        let mut bytes = Vec::new();
        file.take(LONGEST).read_to_end(&mut bytes).ok()?;
        Some(resolv::parse(&String::from_utf8_lossy(&bytes)))
    }
}

/// Whether there is a process in a cgroup or below; perhaps, if it does not say.
fn is_populated(folder: &Path) -> bool {
    match fs::read_to_string(folder.join("cgroup.events")) {
        Ok(events) => !events.contains("populated 0"),
        // It may have gone since it was found; the file of one that goes while it is read is no device any more.
        Err(_) => folder.exists(),
    }
}

/// A request that was made here, with the same checks as one on the enrolment socket.
pub fn checked(request: PodRequest) -> Result<PodRequest, Failure> {
    match enrol_request(&encode_enrol_request(&EnrolRequest::Add(request))) {
        Ok(EnrolRequest::Add(request)) => Ok(request),
        Ok(_) => Err(Failure::lasting(Code::Refused, "not an enrolment")),
        Err(error) => Err(Failure::lasting(Code::Refused, error.to_string())),
    }
}

/// Pods' folders below one; what is in a pod's own it may have made itself.
fn walk(folder: &Path, depth: usize, found: &mut HashMap<String, PathBuf>) -> io::Result<()> {
    // A cgroup may go while it is read.
    let is_gone = |error: &io::Error| matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV));
    let entries = match fs::read_dir(folder) {
        Err(error) if is_gone(&error) => return Ok(()),
        entries => entries?,
    };
    let mut whole = Ok(());
    for entry in entries {
        let entry = match entry {
            Err(error) if is_gone(&error) => continue,
            entry => entry?,
        };
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        match entry.file_name().to_str().and_then(cgroup::pod_folder) {
            Some(uid) => {
                found.insert(uid, entry.path());
            }
            None if depth > 0 => whole = whole.and(walk(&entry.path(), depth - 1, found)),
            None => {}
        }
    }
    whole
}

fn identity(metadata: &fs::Metadata) -> Netns {
    (metadata.dev(), metadata.ino())
}

fn passing(message: String) -> Failure {
    Failure::passing(Code::Failed, message)
}
