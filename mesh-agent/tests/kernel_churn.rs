//! Pods that come and go at speed (F20, R25): what they took is given back, every time.

#![allow(
    clippy::unwrap_used,
    clippy::undocumented_unsafe_blocks,
    reason = "tests panic, and every unsafe block here is one system call"
)]
#![allow(non_snake_case, reason = "tests carry the ids of the fault catalogue")]

mod kernel;

use std::{
    fs,
    net::IpAddr,
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use kernel::*;
use mesh_agent::bpf::{InboundMode, PodListenerFds, PodSpec, netns_cookie};
use mesh_core::CaptureRules;

const CYCLES: usize = 300;

/// One life: enrolled, one connection captured, released.
fn live(node: &Node, netns: &OwnedFd, own: IpAddr) {
    let cookie = netns_cookie(netns.as_fd()).unwrap();
    let (agent, app) = (Factory::new(&node.agent, netns.as_fd()), Factory::new(&node.pods, netns.as_fd()));
    let outbound = agent.listen(at("127.0.0.1", 15001));
    let spec = PodSpec {
        cookie,
        netns: netns.as_fd(),
        ips: &[own],
        nameservers: &[ip("198.18.53.53")],
        listeners: &PodListenerFds { outbound_v4: Some(outbound.as_fd()), ..PodListenerFds::default() },
        inbound: &InboundMode { default_strict: true, ports: vec![(9000, false)], undecided: false },
        rules: &CaptureRules::default(),
        registry_only: false,
    };
    node.kernel().enrol(&spec).unwrap_or_else(|error| panic!("{}", chain(&error)));
    let to = at("198.18.9.9", 8080);
    let socket = app.tcp(to.ip());
    connect(&socket, to).unwrap();
    let (accepted, _) = accept(&outbound);
    assert_eq!(node.kernel().original_destination(cookie, local(&accepted)), Some(to));
    node.kernel().remove(cookie).unwrap();
}

/// Descriptors and threads of this process.
fn held() -> (usize, usize) {
    let count = |folder: &str| fs::read_dir(folder).unwrap().count();
    (count("/proc/self/fd"), count("/proc/self/task"))
}

/// A thread that was joined may be listed for a moment longer.
fn assert_held(before: (usize, usize)) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while held() != before && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(held(), before, "descriptors and threads");
}

fn pod(own: IpAddr) -> OwnedFd {
    let netns = new_netns();
    ip_command(netns.as_fd(), "link set lo up");
    ip_command(netns.as_fd(), &format!("addr add {own}/32 dev lo"));
    netns
}

/// One after the other, then four at a time. The only test of its process: it counts the process's descriptors and threads.
#[test]
fn hardening_F20_and_F55_three_hundred_pods_leave_the_node_as_it_was() {
    if !privileged("hardening_F20_and_F55_three_hundred_pods_leave_the_node_as_it_was") {
        return;
    }
    let node = Node::new();
    let own = ip(POD_V4);
    live(&node, &pod(own), own);
    let before = held();
    (0..CYCLES).for_each(|_| live(&node, &pod(own), own));
    assert_held(before);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..CYCLES / 20).for_each(|_| live(&node, &pod(own), own)));
        }
    });
    assert_held(before);
    assert!(node.kernel().enrolled().is_empty());
    for map in ["PODS", "SLOTS", "SLOT_OF", "SLOT_USE", "SLOT_FREED", "INBOUND_PORTS", "CLIENTS"] {
        assert_eq!(entries(&node.maps().join(map)), 0, "{map}");
    }
    assert_eq!(fs::read_dir(node.maps().with_file_name("pods")).unwrap().count(), 0);
    assert!(node.kernel().verify().unwrap().is_empty());
}
