//! The facade over programs, maps and pins.

use std::{io, net::SocketAddr, os::fd::BorrowedFd};

use mesh_common::{Event, Reason};

use super::config::{InboundMode, KernelConfig, KernelError, PodSpec, Repair};

/// The loaded programs of one instance. Dropping it leaves everything pinned and working.
#[derive(Debug)]
pub struct Kernel {
    config: KernelConfig,
}

/// Reader of the typed events of the programs; there is one per instance.
#[derive(Debug)]
pub struct Events;

impl Kernel {
    /// Locks the instance, mounts bpffs if needed, loads the programs or adopts what a dead agent left, tests that they work.
    pub fn start(config: KernelConfig) -> Result<Self, KernelError> {
        Err(KernelError::Config(format!("instance {}: not built yet", config.instance)))
    }

    /// Missing kernel features by name; empty on a current kernel.
    pub fn degradations(&self) -> &[&'static str] {
        &[]
    }

    /// Captures a pod, or updates a captured one. Idempotent.
    pub fn enrol(&self, pod: &PodSpec<'_>) -> Result<(), KernelError> {
        Err(KernelError::Pod { cookie: pod.cookie, reason: self.config.instance.clone() })
    }

    /// Changes what plaintext from the network meets.
    pub fn set_inbound(&self, _cookie: u64, _mode: &InboundMode) -> Result<(), KernelError> {
        Ok(())
    }

    /// Releases a pod: its sockets are no longer captured. Unknown cookies are fine.
    pub fn remove(&self, _cookie: u64) -> Result<(), KernelError> {
        Ok(())
    }

    /// Cookies of all enrolled pods, also of those that a dead agent left.
    pub fn enrolled(&self) -> Vec<u64> {
        Vec::new()
    }

    /// What the app asked for, by the local address of the agent's accepted socket or of a received datagram.
    pub fn original_destination(&self, _cookie: u64, _local: SocketAddr) -> Option<SocketAddr> {
        None
    }

    /// Makes the app see `client` as its peer. Call it on the agent's socket before it connects to the app.
    pub fn set_client(&self, _agent_socket: BorrowedFd<'_>, _client: SocketAddr) -> Result<(), KernelError> {
        Ok(())
    }

    /// True if the app of a connected agent socket sees the client given to [`Self::set_client`]; false if the map was full.
    pub fn client_shown(&self, _agent_socket: BorrowedFd<'_>) -> bool {
        false
    }

    /// A sign of life, to be given every second. DNS goes to the original resolver without it.
    pub fn heartbeat(&self) {}

    /// Frees slots that nobody has used for a while; to be called every few seconds.
    pub fn collect_slots(&self) -> usize {
        0
    }

    /// All counters of the programs, summed over the CPUs.
    pub fn counters(&self) -> Vec<(Reason, u64)> {
        Vec::new()
    }

    /// Name, used and maximum entries of each map.
    pub fn map_usage(&self) -> Vec<(&'static str, u64, u64)> {
        Vec::new()
    }

    /// The reader of events.
    pub fn events(&self) -> Result<Events, KernelError> {
        Ok(Events)
    }

    /// Checks that every program is attached where it belongs and attaches again what is not.
    pub fn verify(&self) -> Result<Vec<Repair>, KernelError> {
        Ok(Vec::new())
    }

    /// Removes every pin and link of an instance.
    pub fn uninstall(_config: &KernelConfig) -> Result<(), KernelError> {
        Ok(())
    }
}

impl Events {
    /// The next event. Cancel safe.
    pub async fn next(&mut self) -> io::Result<Event> {
        std::future::pending().await
    }
}

/// The cookie of a network namespace: never reused while the machine runs.
pub fn netns_cookie(_netns: BorrowedFd<'_>) -> io::Result<u64> {
    Err(io::Error::from(io::ErrorKind::Unsupported))
}
