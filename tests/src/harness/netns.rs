//! Network namespaces without names: each is held by a file descriptor and gone when its last holder is.
use super::netlink;
use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns, unshare};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// One network namespace. Clones share it.
#[derive(Clone, Debug)]
pub struct Netns {
    fd: Arc<OwnedFd>,
    name: Arc<str>,
}

impl Netns {
    /// Makes an empty namespace with loopback up, forwarding on and reverse-path filters off, as a node or pod would have it.
    pub fn create(name: &str) -> Result<Netns> {
        let fd = std::thread::scope(|scope| {
            scope
                .spawn(|| -> Result<OwnedFd> {
                    unshare(CloneFlags::CLONE_NEWNET).context("unshare network namespace")?;
                    netlink::set_up("lo", true)?;
                    for (key, value) in [
                        ("ipv4.ip_forward", "1"),
                        ("ipv4.conf.all.rp_filter", "0"),
                        ("ipv4.conf.default.rp_filter", "0"),
                        ("ipv6.conf.all.forwarding", "1"),
                        ("ipv6.conf.all.accept_dad", "0"),
                        ("ipv6.conf.default.accept_dad", "0"),
                        ("ipv4.ping_group_range", "0 2147483647"),
                    ] {
                        netlink::sysctl(key, value)?;
                    }
                    Ok(File::open("/proc/thread-self/ns/net").context("open own network namespace")?.into())
                })
                .join()
                .unwrap_or_else(|_| Err(anyhow::anyhow!("namespace thread panicked")))
        })
        .with_context(|| format!("create network namespace {name}"))?;
        Ok(Netns { fd: Arc::new(fd), name: name.into() })
    }

    /// One that has a name, as `ip netns` gives them.
    pub fn named(name: &str) -> Result<Netns> {
        let path = format!("/run/netns/{name}");
        let file = File::open(&path).with_context(|| format!("open {path}"))?;
        Ok(Netns { fd: Arc::new(file.into()), name: name.into() })
    }

    /// Runs `work` on a thread of its own inside this namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(self.fd.as_fd(), CloneFlags::CLONE_NEWNET).context("enter network namespace")?;
                    work()
                })
                .join()
                .unwrap_or_else(|_| Err(anyhow::anyhow!("a thread in namespace {} panicked", self.name)))
        })
    }

    /// What it was called at creation, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The descriptor, for `setns` in a child or for the enrolment socket.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
