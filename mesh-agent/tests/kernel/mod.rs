//! Harness of the kernel tests: a node (two cgroups, an instance of the kernel programs) and a pod (a network namespace with a
//! veth to an outside namespace). Sockets come from small processes that sit in the right cgroup and namespace and pass them over:
//! a socket keeps the cgroup and the namespace of its making, so tests use them like their own.

#![allow(dead_code, unused_imports, reason = "each test file uses its part")]

use std::{
    fs::{self, File},
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    process::{self, Command},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use mesh_agent::bpf::{InboundMode, Kernel, KernelConfig, KernelError, Limits, PodListenerFds, PodSpec, netns_cookie};
use mesh_core::CaptureRules;
use parking_lot::{Condvar, Mutex};
use socket2::Socket;

mod factory;
mod janitor;
mod pins;
mod sockets;
pub mod wire;

pub use factory::{Factory, family};
pub use pins::*;
pub use sockets::*;

pub const V2: &str = "/sys/fs/cgroup/unified";
pub const POD_V4: &str = "198.18.0.2";
pub const POD_V6: &str = "fd00:198::2";
pub const OUTSIDE_V4: &str = "198.18.0.1";
pub const OUTSIDE_V6: &str = "fd00:198::1";
pub const WAIT: Duration = Duration::from_secs(15);
static NEXT: AtomicU32 = AtomicU32::new(0);

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn at(text: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip(text), port)
}

/// True if the test can run; says loudly why not.
pub fn privileged(test: &str) -> bool {
    let root = unsafe { libc::geteuid() } == 0;
    if !root || !PathBuf::from(V2).join("cgroup.procs").exists() {
        println!("SKIPPED: {test}: needs root and a version 2 cgroup at {V2}");
        return false;
    }
    true
}

/// A cgroup that goes away with its processes. One that does not is the fault of the test: processes must be dropped first.
pub struct Cgroup(pub PathBuf);

impl Cgroup {
    pub fn new(name: &str) -> Self {
        janitor::start();
        let path = PathBuf::from(V2).join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let deadline = Instant::now() + WAIT;
        while let Err(error) = fs::remove_dir(&self.0) {
            if error.kind() == io::ErrorKind::NotFound {
                return;
            }
            if Instant::now() > deadline {
                let inside = fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default();
                left_behind(&format!("{}: {error}; processes {:?}", self.0.display(), inside.split_whitespace()));
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Fails the test for something of it that outlives it, unless it fails already.
pub fn left_behind(what: &str) {
    match thread::panicking() {
        true => eprintln!("left behind: {what}"),
        false => panic!("left behind: {what}"),
    }
}

/// One node: its cgroups and its programs.
pub struct Node {
    pub kernel: Option<Kernel>,
    pub config: KernelConfig,
    pub pods: Cgroup,
    pub agent: Cgroup,
    _parent: Cgroup,
    _alone: Alone,
}

/// Held by the test that has nodes. The others of its process wait: what they fork would keep this one's sockets, listeners and links for a moment
/// after it has dropped them, and much here is about what happens at that moment. Tests of other processes go on.
struct Alone;

/// The test that has nodes, and how many. It is known by the name of its thread, which `in_netns` hands on.
static ALONE: Mutex<(Option<String>, usize)> = Mutex::new((None, 0));
static NOBODY: Condvar = Condvar::new();

impl Alone {
    fn wait() -> Self {
        let own = thread::current().name().map(str::to_owned);
        let mut held = ALONE.lock();
        while held.1 > 0 && held.0 != own {
            NOBODY.wait(&mut held);
        }
        *held = (own, held.1 + 1);
        Self
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        let mut held = ALONE.lock();
        held.1 -= 1;
        if held.1 == 0 {
            NOBODY.notify_all();
        }
    }
}

impl Node {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    pub fn with(change: impl FnOnce(&mut KernelConfig)) -> Self {
        let alone = Alone::wait();
        let name = format!("undermesh-test-{}-{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let parent = Cgroup::new(&name);
        let pods = Cgroup::new(&format!("{name}/pods"));
        let agent = Cgroup::new(&format!("{name}/agent"));
        let mut config = KernelConfig::new(name, pods.0.clone(), agent.0.clone());
        config.self_test = false;
        config.limits = Limits {
            pods: 16,
            slots: 1024,
            slots_per_pod: 256,
            clients: 256,
            inbound_ports: 256,
            inbound_ports_per_pod: 64,
            rules: 64,
            registry: 64,
            udp_callers: 64,
            probes: 64,
            tickets: 64,
            event_bytes: 64 * 1024,
        };
        change(&mut config);
        let kernel = Kernel::start(config.clone()).unwrap_or_else(|error| panic!("{}", chain(&error)));
        Self { kernel: Some(kernel), config, pods, agent, _parent: parent, _alone: alone }
    }

    pub fn kernel(&self) -> &Kernel {
        self.kernel.as_ref().unwrap()
    }

    /// Where its maps are pinned.
    pub fn maps(&self) -> PathBuf {
        self.config.bpffs.join(&self.config.instance).join(format!("v{}/maps", mesh_common::ABI_VERSION))
    }

    /// The agent dies and another one starts: everything pinned stays.
    pub fn restart(&mut self) -> &Kernel {
        drop(self.kernel.take());
        let deadline = Instant::now() + WAIT;
        self.kernel = loop {
            match Kernel::start(self.config.clone()) {
                Ok(kernel) => break Some(kernel),
                // Another test's child may hold our lock between its fork and its first system call.
                Err(KernelError::Locked { .. }) if Instant::now() < deadline => thread::yield_now(),
                Err(error) => panic!("{}", chain(&error)),
            }
        };
        self.kernel()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(self.kernel.take());
        uninstall(&self.config);
    }
}

pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

/// Removes an instance, see [`Node::restart`] for the wait.
pub fn uninstall(config: &KernelConfig) {
    let deadline = Instant::now() + WAIT;
    while let Err(error) = Kernel::uninstall(config, None) {
        if !matches!(error, KernelError::Locked { .. }) || Instant::now() > deadline {
            left_behind(&chain(&error));
            return;
        }
        thread::yield_now();
    }
    let instance = config.bpffs.join(&config.instance);
    if instance.exists() {
        left_behind(&instance.display().to_string());
    }
}

/// A pod with its agent's listeners, and the network around it.
pub struct Pod {
    pub netns: OwnedFd,
    pub outside_netns: OwnedFd,
    pub cookie: u64,
    /// Sockets of the pod's processes.
    pub app: Factory,
    /// Sockets of the agent inside the pod.
    pub agent: Factory,
    /// Sockets of a host outside; its cgroup is the agent's, so no hook sees them.
    pub outside: Factory,
    pub listeners: Listeners,
}

pub struct Listeners {
    pub outbound: [Socket; 2],
    pub plaintext: [Socket; 2],
    pub hbone: [Socket; 2],
    pub dns_udp: [Socket; 2],
    pub dns_tcp: [Socket; 2],
}

impl Listeners {
    pub fn new(agent: &Factory) -> Self {
        let tcp = |port| [agent.listen(at("127.0.0.1", port)), agent.listen(at("::1", port))];
        let udp = |address: SocketAddr| {
            let socket = agent.udp_at(address);
            let (level, option) = if address.is_ipv4() {
                (libc::IPPROTO_IP, libc::IP_PKTINFO)
            } else {
                (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO)
            };
            let on = 1i32;
            assert_eq!(unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const on).cast(), 4) }, 0);
            socket
        };
        Self {
            outbound: tcp(15001),
            plaintext: tcp(15006),
            hbone: tcp(15008),
            dns_tcp: tcp(15053),
            dns_udp: [udp(at("127.0.0.1", 15053)), udp(at("::1", 15053))],
        }
    }

    pub fn fds(&self) -> PodListenerFds<'_> {
        PodListenerFds {
            outbound_v4: Some(self.outbound[0].as_fd()),
            outbound_v6: Some(self.outbound[1].as_fd()),
            plaintext_v4: Some(self.plaintext[0].as_fd()),
            plaintext_v6: Some(self.plaintext[1].as_fd()),
            hbone_v4: Some(self.hbone[0].as_fd()),
            hbone_v6: Some(self.hbone[1].as_fd()),
            dns_udp_v4: Some(self.dns_udp[0].as_fd()),
            dns_udp_v6: Some(self.dns_udp[1].as_fd()),
            dns_tcp_v4: Some(self.dns_tcp[0].as_fd()),
            dns_tcp_v6: Some(self.dns_tcp[1].as_fd()),
        }
    }
}

pub fn new_netns() -> OwnedFd {
    thread::spawn(|| {
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "{}", io::Error::last_os_error());
        OwnedFd::from(File::open("/proc/thread-self/ns/net").unwrap())
    })
    .join()
    .unwrap()
}

/// Runs a function inside a namespace, on a thread with the name of the caller's.
pub fn in_netns<T: Send>(netns: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> T {
    let name = thread::current().name().unwrap_or_default().to_owned();
    thread::scope(|scope| {
        let run = || {
            assert_eq!(unsafe { libc::setns(netns.as_raw_fd(), libc::CLONE_NEWNET) }, 0);
            work()
        };
        thread::Builder::new().name(name).spawn_scoped(scope, run).unwrap().join().unwrap()
    })
}

/// Runs `ip` with arguments inside a namespace.
pub fn ip_command(netns: BorrowedFd<'_>, arguments: &str) {
    ip_output(&netns, arguments);
}

/// The same, for what it prints.
pub fn ip_output(netns: &impl AsFd, arguments: &str) -> String {
    let netns = netns.as_fd();
    thread::scope(|scope| {
        let run = || {
            assert_eq!(unsafe { libc::setns(netns.as_raw_fd(), libc::CLONE_NEWNET) }, 0);
            let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
            assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        };
        scope.spawn(run).join().unwrap()
    })
}

impl Pod {
    /// A pod with both families, not enrolled yet.
    pub fn new(node: &Node) -> Self {
        Self::beside(node, new_netns())
    }

    /// The same, with this namespace as the network around it.
    pub fn beside(node: &Node, outside_netns: OwnedFd) -> Self {
        let netns = new_netns();
        let outside_path = format!("/proc/{}/fd/{}", process::id(), outside_netns.as_raw_fd());
        ip_command(netns.as_fd(), "link set lo up");
        ip_command(outside_netns.as_fd(), "link set lo up");
        ip_command(netns.as_fd(), &format!("link add eth0 type veth peer name eth0 netns {outside_path}"));
        for (end, v4, v6) in [(&netns, POD_V4, POD_V6), (&outside_netns, OUTSIDE_V4, OUTSIDE_V6)] {
            ip_command(end.as_fd(), &format!("addr add {v4}/24 dev eth0"));
            ip_command(end.as_fd(), &format!("addr add {v6}/64 dev eth0 nodad"));
            ip_command(end.as_fd(), "link set eth0 up");
        }
        // Packets before that are lost, those that look for neighbours too.
        for end in [&netns, &outside_netns] {
            let started = Instant::now();
            while !ip_output(end, "-o link show eth0").contains("state UP") {
                assert!(started.elapsed() < Duration::from_secs(60), "eth0 does not come up");
            }
        }
        ip_command(netns.as_fd(), &format!("route add default via {OUTSIDE_V4}"));
        ip_command(netns.as_fd(), &format!("-6 route add default via {OUTSIDE_V6}"));
        let cookie = netns_cookie(netns.as_fd()).unwrap();
        let app = Factory::new(&node.pods, netns.as_fd());
        let agent = Factory::new(&node.agent, netns.as_fd());
        let outside = Factory::new(&node.agent, outside_netns.as_fd());
        let listeners = Listeners::new(&agent);
        Self { netns, outside_netns, cookie, app, agent, outside, listeners }
    }

    /// A pod that is enrolled with PERMISSIVE ports and one nameserver of each family.
    pub fn enrolled(node: &Node) -> Self {
        let pod = Self::new(node);
        pod.enrol(node, &InboundMode::default());
        pod
    }

    pub fn enrol(&self, node: &Node, inbound: &InboundMode) {
        self.try_enrol(node, inbound).unwrap_or_else(|error| panic!("{}", chain(&error)));
    }

    pub fn try_enrol(&self, node: &Node, inbound: &InboundMode) -> Result<(), mesh_agent::bpf::KernelError> {
        self.try_enrol_with(node, inbound, &CaptureRules::default())
    }

    /// With rules about what is left alone.
    pub fn enrol_with(&self, node: &Node, inbound: &InboundMode, rules: &CaptureRules) {
        self.try_enrol_with(node, inbound, rules).unwrap_or_else(|error| panic!("{}", chain(&error)));
    }

    fn try_enrol_with(
        &self,
        node: &Node,
        inbound: &InboundMode,
        rules: &CaptureRules,
    ) -> Result<(), mesh_agent::bpf::KernelError> {
        node.kernel().enrol(&PodSpec {
            cookie: self.cookie,
            netns: self.netns.as_fd(),
            ips: &[ip(POD_V4), ip(POD_V6)],
            nameservers: &[ip("198.18.53.53"), ip("fd00:198::53")],
            listeners: &self.listeners.fds(),
            inbound,
            rules,
            registry_only: false,
        })
    }
}

impl Pod {
    /// What the kernel says of TCP sockets in the pod's namespace, listeners aside.
    pub fn connections(&self) -> Vec<String> {
        thread::scope(|scope| {
            let look = || {
                assert_eq!(unsafe { libc::setns(self.netns.as_raw_fd(), libc::CLONE_NEWNET) }, 0);
                let tables = ["tcp", "tcp6"].map(|table| fs::read_to_string(format!("/proc/thread-self/net/{table}")));
                let lines: String = tables.into_iter().flatten().collect();
                lines.lines().filter(|line| !line.contains(" 0A ")).map(str::to_owned).collect()
            };
            scope.spawn(look).join().unwrap()
        })
    }
}

impl Listeners {
    /// Sockets that listen nowhere: the agent's are closed.
    pub fn none(agent: &Factory) -> Self {
        let pair = || [agent.tcp(ip("127.0.0.1")), agent.tcp(ip("::1"))];
        Self { outbound: pair(), plaintext: pair(), hbone: pair(), dns_udp: pair(), dns_tcp: pair() }
    }
}
