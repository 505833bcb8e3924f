//! What the callers of the kernel module say and hear: configuration, a pod to enrol, errors and repairs.

use std::{io, net::IpAddr, os::fd::BorrowedFd, path::PathBuf, time::Duration};

use mesh_common::decide;
use mesh_core::CaptureRules;

/// Where and how large. One per agent.
#[derive(Clone, Debug)]
pub struct KernelConfig {
    /// Name of this node on the kernel: several agents may share one (demo, tests).
    pub instance: String,
    /// Parent cgroup (v2) of the node's pods; never the root.
    pub pods_cgroup: PathBuf,
    /// The agent's own cgroup (v2); the agent must already be in it.
    pub agent_cgroup: PathBuf,
    /// Folder of all instances; its parent is mounted as bpffs if it is not.
    pub bpffs: PathBuf,
    /// Asks for the programs' own log; only a debug build of the object has one.
    pub debug_log: bool,
    /// Sizes of the maps.
    pub limits: Limits,
    /// Runs the behavioural self-test at start.
    pub self_test: bool,
    /// DNS goes to the original resolver when the last heartbeat is older than this.
    pub heartbeat_stale: Duration,
    /// How long a slot without users stays, so that late packets and retries find it.
    pub slot_hold: Duration,
    /// Refuses datagrams from the network to one address (not broadcast or multicast) where plaintext TCP is refused, answers and DNS excepted.
    pub deny_udp: bool,
    /// Istio's node agent redirects the pods' traffic by iptables as well: what its rules send to the agent's ports is taken.
    pub redirected: bool,
    /// Uses what newer kernels have. Without, the programs do what they do on the oldest kernel that they run on.
    pub new_features: bool,
}

impl KernelConfig {
    /// The defaults for an instance.
    pub fn new(instance: impl Into<String>, pods_cgroup: impl Into<PathBuf>, agent_cgroup: impl Into<PathBuf>) -> Self {
        Self {
            instance: instance.into(),
            pods_cgroup: pods_cgroup.into(),
            agent_cgroup: agent_cgroup.into(),
            bpffs: "/sys/fs/bpf/undermesh".into(),
            debug_log: false,
            limits: Limits::default(),
            self_test: true,
            heartbeat_stale: Duration::from_secs(3),
            slot_hold: Duration::from_secs(30),
            deny_udp: false,
            redirected: false,
            new_features: true,
        }
    }

    /// What holds for all pods.
    pub(super) fn setting(&self) -> Setting {
        Setting { deny_udp: self.deny_udp, redirected: self.redirected }
    }
}

/// What holds for all pods of the node.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Setting {
    /// See [`KernelConfig::deny_udp`].
    pub deny_udp: bool,
    /// See [`KernelConfig::redirected`].
    pub redirected: bool,
}

/// Sizes of the maps. All that hooks insert into are preallocated: memory is paid at start, never during a connect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Enrolled pods.
    pub pods: u32,
    /// Destinations of all pods together that are in use or were lately.
    pub slots: u32,
    /// The same, for one pod at most. Half of the slots are the pods' own, in equal shares; of the rest a pod gets less the less is free. So no
    /// pod can starve another, see [`mesh_common::decide::place`].
    pub slots_per_pod: u32,
    /// Connections of the agent to apps between SYN and accept.
    pub clients: u32,
    /// Ports with a mode of their own, of all pods.
    pub inbound_ports: u32,
    /// The same, for one pod.
    pub inbound_ports_per_pod: u32,
    /// Ports and, as many again, ranges that pods' annotations name, of all pods.
    pub rules: u32,
    /// Addresses and ranges that the registry knows, as far as they lie outside of the mesh's ranges: so many may be reached from pods that may reach nothing
    /// else. Memory is taken for those that there are.
    pub registry: u32,
    /// Those outside of the registry who call such pods' ports by datagrams and may be answered, of all pods.
    pub udp_callers: u32,
    /// Ports that the kubelet may ask, of all addresses of all pods.
    pub probes: u32,
    /// Connections of the kubelet to them at once.
    pub tickets: u32,
    /// Bytes of the event ring; a power of two of at least a page.
    pub event_bytes: u32,
}

impl Limits {
    /// How many slots are each pod's own, and how many all pods share.
    pub fn shares(&self) -> (u32, u32) {
        decide::divide(self.slots, self.pods)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            pods: 1024,
            slots: 65_536,
            slots_per_pod: 8_192,
            clients: 32_768,
            inbound_ports: 16_384,
            inbound_ports_per_pod: 256,
            rules: 16_384,
            registry: 65_536,
            udp_callers: 8_192,
            probes: 16_384,
            tickets: 4_096,
            event_bytes: 256 * 1024,
        }
    }
}

/// A pod to enrol.
#[derive(Clone, Copy, Debug)]
pub struct PodSpec<'a> {
    /// Cookie of its network namespace, see [`super::netns_cookie`].
    pub cookie: u64,
    /// Its network namespace.
    pub netns: BorrowedFd<'a>,
    /// Its addresses, at most four; the first of each family is the source of captured connections.
    pub ips: &'a [IpAddr],
    /// Its nameservers, at most four; none switches DNS capture off.
    pub nameservers: &'a [IpAddr],
    /// The agent's sockets inside the namespace.
    pub listeners: &'a PodListenerFds<'a>,
    /// What plaintext from the network meets.
    pub inbound: &'a InboundMode,
    /// What is left alone.
    pub rules: &'a CaptureRules,
    /// It may reach only what the registry knows; what that is, [`super::Kernel::set_registry`] has said.
    pub registry_only: bool,
}

/// The agent's sockets in a pod's namespace, bound to 127.0.0.1 and ::1 on any port. A missing one means that what would go to it is
/// refused. UDP replies leave from the port that the DNS sockets are bound to, so the four DNS sockets must share one.
#[derive(Clone, Copy, Debug, Default)]
pub struct PodListenerFds<'a> {
    /// Captured TCP connections.
    pub outbound_v4: Option<BorrowedFd<'a>>,
    /// Captured TCP connections.
    pub outbound_v6: Option<BorrowedFd<'a>>,
    /// Plaintext from the network.
    pub plaintext_v4: Option<BorrowedFd<'a>>,
    /// Plaintext from the network.
    pub plaintext_v6: Option<BorrowedFd<'a>>,
    /// HBONE from the network.
    pub hbone_v4: Option<BorrowedFd<'a>>,
    /// HBONE from the network.
    pub hbone_v6: Option<BorrowedFd<'a>>,
    /// DNS queries.
    pub dns_udp_v4: Option<BorrowedFd<'a>>,
    /// DNS queries.
    pub dns_udp_v6: Option<BorrowedFd<'a>>,
    /// DNS connections.
    pub dns_tcp_v4: Option<BorrowedFd<'a>>,
    /// DNS connections.
    pub dns_tcp_v6: Option<BorrowedFd<'a>>,
}

/// Whether plaintext TCP from the network is dropped in the kernel. What is not dropped comes to the agent, which decides by the whole
/// policy: so a pod with more ports than it may have, or than there is room for, is left to the agent altogether. Datagrams never come to
/// the agent: where they are refused and the mode is undecided, all ports refuse them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct InboundMode {
    /// STRICT for ports that have no entry.
    pub default_strict: bool,
    /// Port and whether it is STRICT.
    pub ports: Vec<(u16, bool)>,
    /// More ports may be STRICT than this says, or what is not refused is led through a waypoint, as datagrams cannot be.
    pub undecided: bool,
}

/// Why a call of this module failed.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Another agent of the same instance runs.
    #[error("instance {instance} is in use by another agent (lock on {path})", path = path.display())]
    Locked {
        /// Instance name.
        instance: String,
        /// What is locked.
        path: PathBuf,
    },
    /// A system call failed.
    #[error("{call} {path}", path = path.display())]
    Io {
        /// The call.
        call: &'static str,
        /// What it was about.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a program, map or link.
    #[error("{action} {name}")]
    Bpf {
        /// What was tried.
        action: &'static str,
        /// Program, map or link.
        name: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The configuration cannot work.
    #[error("{0}")]
    Config(String),
    /// A pod asks for more than its row can hold, or for something that cannot be enrolled.
    #[error("pod {cookie:#x}: {reason}")]
    Pod {
        /// Its cookie.
        cookie: u64,
        /// What is wrong.
        reason: String,
    },
    /// The kernel does not let this process load programs.
    #[error("the kernel lets this process load no programs: {0}")]
    Forbidden(String),
    /// The kernel is too old, or was built without something.
    #[error("the kernel lacks {0}")]
    Missing(String),
    /// The self-test found that the kernel does not do what the programs need.
    #[error("self-test: {0}")]
    SelfTest(String),
}

/// A program of somebody else in a hook that ours use.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, serde::Serialize)]
pub struct Foreign {
    /// The hook, by the name of our program in it.
    pub hook: &'static str,
    /// Its id.
    pub program: u32,
    /// Its name.
    pub name: String,
}

/// Something that [`super::Kernel::verify`] found changed behind our back, and put right.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Repair {
    /// Link or pin.
    pub name: String,
    /// What was wrong with it.
    pub what: &'static str,
}
