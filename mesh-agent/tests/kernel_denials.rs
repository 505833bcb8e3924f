//! The rarer reasons for which the programs refuse and drop: each with the errno that an app or a peer gets, and the counter that says why.

#![allow(
    clippy::unwrap_used,
    clippy::undocumented_unsafe_blocks,
    reason = "tests panic, and every unsafe block here is one system call"
)]
#![allow(non_snake_case, reason = "tests carry the ids of the fault catalogue")]

mod kernel;

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd},
    thread,
};

use kernel::*;
use mesh_agent::bpf::{InboundMode, PodListenerFds, PodSpec};
use mesh_common::Reason;
use mesh_core::CaptureRules;

/// R9: what cannot leave the pod has the errno that it has without the mesh.
#[test]
fn features_R9_a_missing_family_and_a_loopback_source_have_their_errno() {
    if !privileged("features_R9_a_missing_family_and_a_loopback_source_have_their_errno") {
        return;
    }
    let node = Node::new();
    let pod = Pod::new(&node);
    let listeners = PodListenerFds { outbound_v4: Some(pod.listeners.outbound[0].as_fd()), ..Default::default() };
    let spec = PodSpec {
        cookie: pod.cookie,
        netns: pod.netns.as_fd(),
        ips: &[ip(POD_V4)],
        nameservers: &[],
        listeners: &listeners,
        inbound: &InboundMode::default(),
        rules: &CaptureRules::default(),
        registry_only: false,
    };
    node.kernel().enrol(&spec).unwrap_or_else(|error| panic!("{}", chain(&error)));
    let to = at("fd00:198:9::9", 80);
    assert_eq!(errno(connect(&pod.app.tcp(to.ip()), to)), libc::ENETUNREACH);
    assert_eq!(node.kernel().counter(Reason::NoFamily), 1);
    let app = pod.app.tcp(ip("127.0.0.1"));
    app.bind(&at("127.0.0.1", 0).into()).unwrap();
    assert_eq!(errno(connect(&app, at("198.18.9.9", 80))), libc::EINVAL);
    assert_eq!(node.kernel().counter(Reason::LoopbackSource), 1);
}

/// R20: a socket that may not have more memory keeps no state, so it is refused; an accepted one shows its client all the same.
#[test]
fn hardening_R20_without_memory_for_a_sockets_state_nothing_passes() {
    if !privileged("hardening_R20_without_memory_for_a_sockets_state_nothing_passes") {
        return;
    }
    let node = Node::new();
    let pod = Pod::enrolled(&node);
    let limit = |bytes: &str| -> io::Result<()> {
        let set = || {
            assert_eq!(unsafe { libc::setns(pod.netns.as_raw_fd(), libc::CLONE_NEWNET) }, 0);
            fs::write("/proc/sys/net/core/optmem_max", bytes)
        };
        thread::scope(|scope| scope.spawn(set).join().unwrap())
    };
    let app = pod.app.listen(at(POD_V4, 9000));
    let agent = pod.agent.tcp(ip(POD_V4));
    agent.bind(&at(POD_V4, 0).into()).unwrap();
    node.kernel().set_client(agent.as_fd(), at("198.18.7.7", 4242)).unwrap();
    if let Err(error) = limit("1") {
        println!(
            "SKIPPED: hardening_R20_without_memory_for_a_sockets_state_nothing_passes: optmem_max of a pod: {error}"
        );
        return;
    }
    let to = at("198.18.9.9", 80);
    assert_eq!(errno(connect(&pod.app.tcp(to.ip()), to)), libc::ECONNREFUSED);
    assert_eq!(node.kernel().counter(Reason::NoSocketStorage), 1);
    assert!(!is_ready(&pod.listeners.outbound[0]));
    assert_eq!(entries(&node.maps().join("SLOTS")), 0, "nor does it cost a slot");

    connect(&agent, at(POD_V4, 9000)).unwrap();
    assert!(node.kernel().client_shown(agent.as_fd()));
    let (accepted, from) = accept(&app);
    assert_eq!((from, peer(&accepted)), (at("198.18.7.7", 4242), at("198.18.7.7", 4242)));
    assert_eq!(node.kernel().counter(Reason::ClientShown), 0);

    limit("65536").unwrap();
    connect(&pod.app.tcp(to.ip()), to).unwrap();
    accept(&pod.listeners.outbound[0]);
}

/// F25: a row that is gone, or is another pod's, opens neither direction.
#[test]
fn hardening_F25_a_row_that_is_gone_or_anothers_opens_nothing() {
    if !privileged("hardening_F25_a_row_that_is_gone_or_anothers_opens_nothing") {
        return;
    }
    let node = Node::new();
    let pod = Pod::enrolled(&node);
    let app = pod.app.listen(at(POD_V4, 9000));
    let rows = node.maps().join("PODS");
    let own: [u8; size_of::<mesh_common::row::Pod>()] = value(&rows, pod.cookie);
    let mut anothers = own;
    anothers[..8].copy_from_slice(&(pod.cookie + 1).to_ne_bytes());
    overwrite(&rows, pod.cookie, Some(&anothers));
    let to = at("198.18.9.9", 80);
    assert_eq!(errno(connect(&pod.app.tcp(to.ip()), to)), libc::ECONNREFUSED);
    assert_eq!(node.kernel().counter(Reason::PodClosed), 1);
    let missing = || node.kernel().counter(Reason::PodMissing);
    for (n, port) in [9000, 15008].into_iter().enumerate() {
        assert_eq!(errno(connect(&pod.outside.tcp(ip(POD_V4)), at(POD_V4, port))), libc::ECONNREFUSED);
        assert_eq!(missing(), n as u64 + 1);
    }
    overwrite(&rows, pod.cookie, None);
    assert_eq!(errno(connect(&pod.outside.tcp(ip(POD_V4)), at(POD_V4, 9000))), libc::ECONNREFUSED);
    assert_eq!(missing(), 3);
    assert!(!is_ready(&app) && !is_ready(&pod.listeners.plaintext[0]) && !is_ready(&pod.listeners.hbone[0]));
    pod.enrol(&node, &InboundMode::default());
    connect(&pod.outside.tcp(ip(POD_V4)), at(POD_V4, 9000)).unwrap();
    accept(&pod.listeners.plaintext[0]);
}

/// R2: a listener that the kernel does not take for the connection is as good as none.
#[test]
fn hardening_R2_a_listener_of_another_kind_drops_and_never_passes() {
    if !privileged("hardening_R2_a_listener_of_another_kind_drops_and_never_passes") {
        return;
    }
    let node = Node::new();
    let mut pod = Pod::new(&node);
    let app = pod.app.listen(at(POD_V4, 9000));
    pod.listeners.plaintext[0] = pod.agent.udp_at(at("127.0.0.1", 15006));
    pod.enrol(&node, &InboundMode::default());
    assert_eq!(errno(connect(&pod.outside.tcp(ip(POD_V4)), at(POD_V4, 9000))), libc::ECONNREFUSED);
    assert_eq!(node.kernel().counter(Reason::AssignFailed), 1);
    assert!(!is_ready(&app));
}
