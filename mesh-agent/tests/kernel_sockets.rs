//! Capture with every kind of socket: what an app can do with a socket must work as without the mesh.

#![allow(
    clippy::unwrap_used,
    clippy::undocumented_unsafe_blocks,
    reason = "tests panic, and every unsafe block here is one system call"
)]
#![allow(non_snake_case, reason = "tests carry the ids of the fault catalogue")]

mod kernel;

use std::{
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd},
};

use kernel::*;
use mesh_common::Reason;
use socket2::{SockAddr, Socket};

/// Both ends of a captured connection.
fn captured(node: &Node, pod: &Pod, app: &Socket, to: SocketAddr) -> Socket {
    connect(app, to).unwrap_or_else(|error| panic!("connect {to}: {error}"));
    assert_captured(node, pod, app, to)
}

fn assert_captured(node: &Node, pod: &Pod, app: &Socket, to: SocketAddr) -> Socket {
    let canonical = SocketAddr::new(to.ip().to_canonical(), to.port());
    let (agent, client) = accept(&pod.listeners.outbound[usize::from(canonical.is_ipv6())]);
    assert_eq!(node.kernel().original_destination(pod.cookie, local(&agent)), Some(canonical));
    assert_eq!(client.port(), local(app).port());
    assert_eq!(peer(app), to);
    ping(app, &agent);
    agent
}

#[test]
fn features_R7_v4_mapped_bound_and_unbound() {
    if !privileged("features_R7_v4_mapped_bound_and_unbound") {
        return;
    }
    let node = Node::new();
    let pod = Pod::enrolled(&node);
    let mapped = at("::ffff:198.18.9.9", 8080);
    let app = pod.app.tcp(mapped.ip());
    captured(&node, &pod, &app, mapped);
    assert_eq!(local(&app).ip(), ip("::ffff:198.18.0.2"));

    for (bind, to, source) in [
        (at(POD_V4, 0), at("198.18.9.9", 8080), POD_V4),
        (at(POD_V4, 40001), at("198.18.9.9", 8080), POD_V4),
        (at("0.0.0.0", 40002), at("198.18.9.9", 8080), POD_V4),
        (at(POD_V6, 0), at("fd00:198:9::9", 8080), POD_V6),
        (at("::", 40003), at("fd00:198:9::9", 8080), POD_V6),
        (at("::", 40004), mapped, "::ffff:198.18.0.2"),
    ] {
        let app = pod.app.tcp(bind.ip());
        app.bind(&bind.into()).unwrap();
        captured(&node, &pod, &app, to);
        assert_eq!(local(&app).ip(), ip(source), "bound to {bind}");
        if bind.port() != 0 {
            assert_eq!(local(&app).port(), bind.port());
        }
    }
    // A loopback source cannot leave the host; Linux says EINVAL.
    let app = pod.app.tcp(ip("127.0.0.1"));
    app.bind(&at("127.0.0.1", 0).into()).unwrap();
    assert_eq!(errno(connect(&app, at("198.18.9.9", 8080))), libc::EINVAL);
}

#[test]
fn features_R13_one_source_port_to_two_destinations() {
    if !privileged("features_R13_one_source_port_to_two_destinations") {
        return;
    }
    let node = Node::new();
    let pod = Pod::enrolled(&node);
    let mut ends = Vec::new();
    for last in 1..=5u8 {
        let to = at(&format!("198.18.9.{last}"), 8080);
        let app = pod.app.tcp(to.ip());
        app.set_reuse_address(true).unwrap();
        app.bind(&at(POD_V4, 41000).into()).unwrap();
        let agent = captured(&node, &pod, &app, to);
        ends.push((app, agent));
    }
    for (app, agent) in &ends {
        ping(app, agent);
    }
}

#[test]
fn features_R8_reconnect_after_unspec_uses_nothing_stale() {
    if !privileged("features_R8_reconnect_after_unspec_uses_nothing_stale") {
        return;
    }
    let node = Node::new();
    let pod = Pod::enrolled(&node);
    let app = pod.app.tcp(ip(POD_V4));
    drop(captured(&node, &pod, &app, at("198.18.9.9", 8080)));
    disconnect(&app);
    drop(captured(&node, &pod, &app, at("198.18.9.8", 9090)));
    disconnect(&app);
    // Now somewhere that is not captured: a real loopback peer, and a loopback source.
    let listener = pod.app.listen(at("127.0.0.1", 9000));
    connect(&app, at("127.0.0.1", 9000)).unwrap();
    let (_accepted, from) = accept(&listener);
    assert_eq!(peer(&app), at("127.0.0.1", 9000));
    assert_eq!((from, local(&app).ip()), (local(&app), ip("127.0.0.1")));
    disconnect(&app);
    // Descriptors of one socket share what it is connected to.
    let twin = app.try_clone().unwrap();
    drop(captured(&node, &pod, &twin, at("198.18.9.6", 80)));
    assert_eq!(peer(&app), at("198.18.9.6", 80));
    // The first call after a connect that did not block only says how that ended.
    let again = || errno(app.connect(&at("198.18.9.5", 80).into()));
    assert_eq!((again(), again()), (0, libc::EISCONN));
    disconnect(&app);
    drop(twin);
    // A refused connect, then another try with the same socket.
    assert_eq!(errno(connect(&app, at("127.0.0.1", 15001))), libc::ECONNREFUSED);
    drop(captured(&node, &pod, &app, at("198.18.9.7", 80)));
}

#[test]
fn hardening_B72_nonblocking_fast_open_and_mptcp() {
    if !privileged("hardening_B72_nonblocking_fast_open_and_mptcp") {
        return;
    }
    let node = Node::new();
    let pod = Pod::enrolled(&node);
    let to = at("198.18.9.9", 8080);
    let address = SockAddr::from(to);

    let app = pod.app.tcp(to.ip());
    app.set_nonblocking(true).unwrap();
    let started = errno(app.connect(&address));
    assert!(started == libc::EINPROGRESS || started == 0, "{started}");
    let agent = accept(&pod.listeners.outbound[0]).0;
    app.set_nonblocking(false).unwrap();
    assert_eq!((peer(&app), node.kernel().original_destination(pod.cookie, local(&agent))), (to, Some(to)));
    ping(&app, &agent);

    let app = pod.app.tcp(to.ip());
    let sent = unsafe {
        libc::sendto(
            app.as_raw_fd(),
            b"tfo".as_ptr().cast(),
            3,
            libc::MSG_FASTOPEN,
            address.as_ptr().cast(),
            address.len(),
        )
    };
    assert_eq!(sent, 3, "{}", std::io::Error::last_os_error());
    let agent = accept(&pod.listeners.outbound[0]).0;
    let mut data = [std::mem::MaybeUninit::uninit(); 3];
    assert_eq!(agent.recv(&mut data).unwrap(), 3);
    assert_eq!(peer(&app), to);

    for (domain, to, index) in [(libc::AF_INET, to, 0), (libc::AF_INET6, at("fd00:198:9::9", 8080), 1)] {
        let app = pod.app.socket(domain, libc::SOCK_STREAM, libc::IPPROTO_MPTCP);
        connect(&app, to).unwrap();
        let agent = accept(&pod.listeners.outbound[index]).0;
        assert_eq!(node.kernel().original_destination(pod.cookie, local(&agent)), Some(to));
        assert_eq!(peer(&app), to, "the outer socket of MPTCP shows the truth too");
        ping(&app, &agent);
    }
}

#[test]
fn hardening_B72_io_uring_connect() {
    if !privileged("hardening_B72_io_uring_connect") {
        return;
    }
    let node = Node::new();
    let pod = Pod::enrolled(&node);
    let Ok(mut ring) = io_uring::IoUring::new(2) else {
        println!("SKIPPED: hardening_B72_io_uring_connect: the kernel has no io_uring");
        return;
    };
    for to in [at("198.18.9.9", 8080), at("fd00:198:9::9", 8080)] {
        let app = pod.app.tcp(to.ip());
        let address = SockAddr::from(to);
        let connect = io_uring::opcode::Connect::new(
            io_uring::types::Fd(app.as_raw_fd()),
            address.as_ptr().cast(),
            address.len(),
        )
        .build();
        unsafe { ring.submission().push(&connect).unwrap() };
        ring.submit_and_wait(1).unwrap();
        assert_eq!(ring.completion().next().unwrap().result(), 0);
        assert_captured(&node, &pod, &app, to);
    }
}

#[test]
fn a_socket_bound_to_a_device_is_captured_all_the_same() {
    if !privileged("a_socket_bound_to_a_device_is_captured_all_the_same") {
        return;
    }
    let node = Node::new();
    let pod = Pod::enrolled(&node);
    let app = pod.app.tcp(ip(POD_V4));
    app.bind_device(Some(b"eth0")).unwrap();
    let to = at("198.18.9.9", 8080);
    match errno(connect(&app, to)) {
        0 => {
            assert_captured(&node, &pod, &app, to);
            assert_eq!(node.kernel().counter(Reason::DeviceUnbound), 1);
        }
        refused => {
            assert_eq!(refused, libc::ECONNREFUSED);
            assert_eq!(node.kernel().counter(Reason::DeviceBound), 1);
        }
    }
}

#[test]
fn hardening_B67_unusual_destinations_keep_their_errno() {
    if !privileged("hardening_B67_unusual_destinations_keep_their_errno") {
        return;
    }
    let node = Node::new();
    let enrolled = Pod::enrolled(&node);
    let plain = Pod::new(&node);
    for to in [
        at("0.0.0.0", 80),
        at("::", 80),
        at("255.255.255.255", 80),
        at("224.0.0.1", 80),
        at("127.0.0.1", 9),
        at("::1", 9),
        at("127.0.0.1", 0),
        at(POD_V4, 9),
        at(POD_V6, 9),
        at("ff02::1", 80),
    ] {
        let result = |pod: &Pod| errno(connect(&pod.app.tcp(to.ip()), to));
        assert_eq!(result(&enrolled), result(&plain), "{to}");
    }
    assert_eq!(node.kernel().counter(Reason::Captured), 0);
}

#[test]
fn a_slot_is_shared_counted_and_freed() {
    if !privileged("a_slot_is_shared_counted_and_freed") {
        return;
    }
    let node = Node::with(|config| config.slot_hold = std::time::Duration::ZERO);
    let pod = Pod::enrolled(&node);
    let used = || node.kernel().map_usage().iter().find(|map| map.0 == "SLOTS").unwrap().1;
    let to = at("198.18.9.9", 8080);
    let apps = [pod.app.tcp(to.ip()), pod.app.tcp(to.ip())];
    let agents: Vec<_> = apps.iter().map(|app| captured(&node, &pod, app, to)).collect();
    assert_eq!(local(&agents[0]), local(&agents[1]), "one destination, one slot");
    assert_eq!(used(), 1);
    let start = std::time::Instant::now();
    while start.elapsed() < std::time::Duration::from_millis(1200) {
        assert_eq!(node.kernel().collect_slots(), 0, "a slot with users stays");
        std::thread::yield_now();
    }
    assert_eq!(peer(&apps[0]), to);
    for agent in &agents {
        agent.set_linger(Some(std::time::Duration::ZERO)).unwrap();
    }
    drop((agents, apps));
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
    while used() != 0 {
        node.kernel().collect_slots();
        assert!(std::time::Instant::now() < deadline, "the slot is never freed");
        std::thread::yield_now();
    }
}

#[test]
fn hardening_F27_a_pod_at_its_quota_is_refused_and_others_are_not() {
    if !privileged("hardening_F27_a_pod_at_its_quota_is_refused_and_others_are_not") {
        return;
    }
    let node = Node::with(|config| config.limits.slots_per_pod = 4);
    let (greedy, modest) = (Pod::enrolled(&node), Pod::enrolled(&node));
    let to = |last: usize| at(&format!("198.18.9.{last}"), 80);
    for last in 1..=4 {
        connect(&greedy.app.tcp(ip(POD_V4)), to(last)).unwrap();
    }
    assert_eq!(errno(connect(&greedy.app.tcp(ip(POD_V4)), to(5))), libc::ECONNREFUSED);
    assert_eq!(errno(connect(&greedy.app.tcp(ip(POD_V4)), to(1))), 0, "a known destination still works");
    connect(&modest.app.tcp(ip(POD_V4)), to(5)).unwrap();
    assert_eq!(node.kernel().counter(Reason::SlotQuota), 1);
}

#[test]
fn hardening_F27_full_maps_refuse_and_count() {
    if !privileged("hardening_F27_full_maps_refuse_and_count") {
        return;
    }
    let node = Node::with(|config| {
        config.limits.slots = 8;
        config.limits.pods = 2;
        config.limits.clients = 1;
    });
    let pod = Pod::enrolled(&node);
    let mut refused = 0;
    for last in 1..=40 {
        refused += usize::from(errno(connect(&pod.app.tcp(ip(POD_V4)), at(&format!("198.18.9.{last}"), 80))) != 0);
    }
    assert!(refused >= 20, "{refused} of 40 refused with 8 slots");
    assert_eq!(node.kernel().counter(Reason::SlotMapFull), refused as u64);
    // The 17th pod, scaled: enrolment is refused and leaves nothing, the first pods are untouched.
    let second = Pod::enrolled(&node);
    let mut pods = vec![];
    let mut failed = 0;
    for _ in 0..4 {
        let pod = Pod::new(&node);
        failed += usize::from(pod.try_enrol(&node, &Default::default()).is_err());
        pods.push(pod);
    }
    assert!(failed >= 1, "more pods than rows");
    let listener = second.app.listen(at("127.0.0.1", 9000));
    connect(&second.app.tcp(ip("127.0.0.1")), at("127.0.0.1", 9000)).unwrap();
    accept(&listener);
    let _ = pod.netns.as_fd();
}
