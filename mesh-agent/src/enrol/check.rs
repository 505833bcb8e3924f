//! Whether the descriptors and addresses of an enrolment are what they claim to be. The wrong network namespace under the right name would
//! give one pod the identity of another, so nothing the client says about them is believed.
//!
//! Blocking: looks into the pod's namespace from a thread made for it, which is not used for anything else afterwards.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use mesh_proto::convert::PodRequest;
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::{FileStat, fstat, stat};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, NSFS_MAGIC, fstatfs};

use super::machine::NetnsId;
use super::session::{Code, Failure};

/// `ioctl` that says which kind of namespace a descriptor is.
const NS_GET_NSTYPE: libc::c_ulong = 0xb703;

/// What this node and agent are, to compare pods with.
#[derive(Debug)]
pub struct Checker {
    node: String,
    /// Device and inode of namespaces that are no pod's: the agent's own and the machine's first.
    host_netns: Vec<(u64, u64)>,
    pods_cgroup: PathBuf,
    agent_cgroup: PathBuf,
}

impl Checker {
    /// Looks at this process. The cgroups must exist.
    pub fn new(node: &str, pods_cgroup: &Path, agent_cgroup: &Path) -> io::Result<Self> {
        let own = stat("/proc/self/ns/net")?;
        // A container may be forbidden to look at process 1; then its own namespace is all there is to compare.
        let first = stat("/proc/1/ns/net").ok();
        Ok(Checker {
            node: node.to_owned(),
            host_netns: [Some(own), first].into_iter().flatten().map(|stat| device_and_inode(&stat)).collect(),
            pods_cgroup: pods_cgroup.canonicalize()?,
            agent_cgroup: agent_cgroup.canonicalize()?,
        })
    }

    /// Checks one pod; returns how its network namespace is named.
    pub fn check(&self, pod: &PodRequest, netns: BorrowedFd<'_>, cgroup: BorrowedFd<'_>) -> Result<NetnsId, Failure> {
        if *pod.node != *self.node {
            return Err(refused(format!("the pod is on node {:?}, this is {:?}", pod.node.as_str(), self.node)));
        }
        one_per_family(&pod.ips)?;
        self.check_cgroup(cgroup)?;
        self.check_netns(netns, &pod.ips)
    }

    /// Checks that `netns` is a pod's and has all of `ips`; also used for what the keeper held.
    pub fn check_netns(&self, netns: BorrowedFd<'_>, ips: &[IpAddr]) -> Result<NetnsId, Failure> {
        if fstatfs(netns).map_err(unreadable("netns"))?.filesystem_type() != NSFS_MAGIC {
            return Err(refused("the first descriptor is not a namespace"));
        }
        // SAFETY: this ioctl takes no argument and only reads.
        let kind = unsafe { libc::ioctl(netns.as_raw_fd(), NS_GET_NSTYPE) };
        if kind != libc::CLONE_NEWNET {
            return Err(refused("the first descriptor is not a network namespace"));
        }
        let identity = device_and_inode(&fstat(netns).map_err(unreadable("netns"))?);
        if self.host_netns.contains(&identity) {
            return Err(refused("the network namespace is the node's own: pods with hostNetwork are not enrolled"));
        }
        let seen = look_inside(netns).map_err(|error| {
            Failure::passing(Code::Failed, format!("cannot look into the network namespace: {error}"))
        })?;
        for ip in ips {
            if !seen.interfaces.iter().any(|interface| interface.address == *ip) {
                return Err(refused(format!("the network namespace does not have the address {ip}")));
            }
        }
        Ok(NetnsId { cookie: seen.cookie, inode: identity.1 })
    }

    fn check_cgroup(&self, cgroup: BorrowedFd<'_>) -> Result<(), Failure> {
        if fstatfs(cgroup).map_err(unreadable("cgroup"))?.filesystem_type() != CGROUP2_SUPER_MAGIC {
            return Err(refused("the second descriptor is not a cgroup v2 folder"));
        }
        let path = std::fs::read_link(format!("/proc/self/fd/{}", cgroup.as_raw_fd()))
            .map_err(|error| Failure::passing(Code::Failed, format!("cannot read the cgroup's path: {error}")))?;
        // The kernel marks a removed folder in its link.
        if !path.is_dir() {
            return Err(refused(format!("the cgroup {path:?} is not a folder that exists")));
        }
        if path.starts_with(&self.agent_cgroup) || self.agent_cgroup.starts_with(&path) {
            return Err(refused("the cgroup is the agent's own or above it"));
        }
        if path == self.pods_cgroup || !path.starts_with(&self.pods_cgroup) {
            return Err(refused(format!("the cgroup {path:?} is not below {:?}", self.pods_cgroup)));
        }
        Ok(())
    }
}

struct Inside {
    cookie: u64,
    interfaces: Vec<Interface>,
}

/// An address of a network device.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Interface {
    /// Of the device.
    pub name: String,
    /// One of its addresses.
    pub address: IpAddr,
}

/// The addresses in a network namespace, in the kernel's order.
pub fn interfaces(netns: BorrowedFd<'_>) -> io::Result<Vec<Interface>> {
    look_inside(netns).map(|inside| inside.interfaces)
}

/// Reads cookie and addresses of a namespace from a thread that enters it and then ends.
fn look_inside(netns: BorrowedFd<'_>) -> io::Result<Inside> {
    std::thread::scope(|scope| {
        let look = || {
            setns(netns, CloneFlags::CLONE_NEWNET)?;
            let cookie = own_cookie()?;
            let interfaces = nix::ifaddrs::getifaddrs()?;
            let interfaces = interfaces.filter_map(|interface| {
                let address = interface.address?;
                let v4 = address.as_sockaddr_in().map(|address| IpAddr::from(address.ip()));
                let address = v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::from(address.ip())))?;
                Some(Interface { name: interface.interface_name, address })
            });
            Ok(Inside { cookie, interfaces: interfaces.collect() })
        };
        let thread = std::thread::Builder::new().name("netns-check".into()).spawn_scoped(scope, look)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
    })
}

/// The cookie of the calling thread's network namespace.
fn own_cookie() -> io::Result<u64> {
    let socket = std::os::unix::net::UnixDatagram::unbound()?;
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the option writes at most `length` bytes to `cookie`, which is that long.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &mut length,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

fn one_per_family(ips: &[IpAddr]) -> Result<(), Failure> {
    let v4 = ips.iter().filter(|ip| ip.is_ipv4()).count();
    let v6 = ips.len() - v4;
    if v4 > 1 || v6 > 1 {
        return Err(refused("more than one address of a family"));
    }
    if ips.is_empty() { Err(refused("no address")) } else { Ok(()) }
}

fn device_and_inode(stat: &FileStat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

fn refused(message: impl Into<String>) -> Failure {
    Failure::lasting(Code::Refused, message)
}

fn unreadable(what: &'static str) -> impl Fn(nix::errno::Errno) -> Failure {
    move |errno| refused(format!("the {what} descriptor cannot be read: {errno}"))
}
