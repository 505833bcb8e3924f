//! What arrives in a pod's namespace: steered, passed or dropped.

#![allow(
    clippy::unwrap_used,
    clippy::undocumented_unsafe_blocks,
    reason = "tests panic, and every unsafe block here is one system call"
)]
#![allow(non_snake_case, reason = "tests carry the ids of the fault catalogue")]

mod kernel;

use kernel::*;
use mesh_agent::bpf::InboundMode;
use mesh_common::Reason;

#[test]
fn the_network_meets_the_agent_and_loopback_does_not() {
    if !privileged("the_network_meets_the_agent_and_loopback_does_not") {
        return;
    }
    let node = Node::new();
    let pod = Pod::enrolled(&node);
    for (index, own) in [POD_V4, POD_V6].into_iter().enumerate() {
        let app = pod.app.listen(at(own, 9000));
        for (port, listener) in [(9000, &pod.listeners.plaintext[index]), (15008, &pod.listeners.hbone[index])] {
            let client = pod.outside.tcp(ip(own));
            connect(&client, at(own, port)).unwrap();
            let (agent, from) = accept(listener);
            assert_eq!((from, local(&agent)), (local(&client), at(own, port)), "addresses are those of the wire");
            ping(&client, &agent);
        }
        assert!(!is_ready(&app), "nothing reached the app past the agent");

        // Own address and loopback: straight to the app, from the app's own sockets.
        let client = pod.app.tcp(ip(own));
        connect(&client, at(own, 9000)).unwrap();
        let (accepted, from) = accept(&app);
        assert_eq!(from, local(&client));
        ping(&client, &accepted);
    }
    let app = pod.app.listen(at("127.0.0.1", 9001));
    let client = pod.app.tcp(ip("127.0.0.1"));
    connect(&client, at("127.0.0.1", 9001)).unwrap();
    assert_eq!(accept(&app).1, local(&client));
    let app = pod.app.listen(at("::1", 9001));
    let client = pod.app.tcp(ip("::1"));
    connect(&client, at("::1", 9001)).unwrap();
    assert_eq!(accept(&app).1, local(&client));
    let app = pod.app.listen(at("127.200.0.1", 9001));
    let client = pod.app.tcp(ip("127.200.0.1"));
    connect(&client, at("127.200.0.1", 9001)).unwrap();
    accept(&app);
    let app = pod.app.listen(at("0.0.0.0", 9002));
    let client = pod.app.tcp(ip("0.0.0.0"));
    connect(&client, at("0.0.0.0", 9002)).unwrap();
    accept(&app);
}

#[test]
fn strict_is_per_port_and_changes_live() {
    if !privileged("strict_is_per_port_and_changes_live") {
        return;
    }
    let node = Node::new();
    let pod = Pod::new(&node);
    let strict = InboundMode { default_strict: true, ports: vec![(9001, false)], undecided: false };
    pod.enrol(&node, &strict);
    let _apps = [pod.app.listen(at(POD_V4, 9000)), pod.app.listen(at(POD_V4, 9001))];
    let reach = |port| errno(connect(&pod.outside.tcp(ip(POD_V4)), at(POD_V4, port)));
    assert_eq!(reach(9000), libc::ECONNREFUSED);
    assert_eq!(reach(9001), 0);
    assert_eq!(reach(15008), 0, "HBONE is open in STRICT");
    node.kernel()
        .set_inbound(pod.cookie, &InboundMode { default_strict: false, ports: vec![(9001, true)], undecided: false })
        .unwrap();
    assert_eq!(reach(9000), 0);
    assert_eq!(reach(9001), libc::ECONNREFUSED);
    node.kernel().set_inbound(pod.cookie, &InboundMode::default()).unwrap();
    assert_eq!(reach(9001), 0);
    assert_eq!(node.kernel().counter(Reason::StrictPlaintext), 2);
}

#[test]
fn hardening_F52_mesh_ports_and_slots_are_closed_to_the_network() {
    if !privileged("hardening_F52_mesh_ports_and_slots_are_closed_to_the_network") {
        return;
    }
    let node = Node::new();
    let pod = Pod::enrolled(&node);
    // The app may listen there itself; from outside it is closed all the same.
    let _apps = [pod.app.listen(at(POD_V4, 15001)), pod.app.listen(at(POD_V6, 15001))];
    for own in [POD_V4, POD_V6] {
        for port in [15001, 15006, 15053] {
            assert_eq!(errno(connect(&pod.outside.tcp(ip(own)), at(own, port))), libc::ECONNREFUSED, "{own}:{port}");
        }
        let client = pod.app.tcp(ip(own));
        assert_eq!(errno(connect(&client, at(own, 15001))), 0, "and inside it works");
    }
    // A slot exists; a host that routes the prefix to the pod must not reach the agent through it.
    let to = at("fd00:198:9::9", 8080);
    connect(&pod.app.tcp(to.ip()), to).unwrap();
    let (agent, _) = accept(&pod.listeners.outbound[1]);
    let slot = local(&agent);
    ip_command(std::os::fd::AsFd::as_fd(&pod.outside_netns), &format!("-6 route add {}/128 via {POD_V6}", slot.ip()));
    let spoof = pod.outside.tcp(slot.ip());
    assert_eq!(errno(connect(&spoof, slot)), libc::ECONNREFUSED);
    assert!(!is_ready(&pod.listeners.outbound[1]));
    assert!(node.kernel().counter(Reason::ForeignToSlot) >= 1);
    assert!(node.kernel().counter(Reason::MeshPort) >= 6);
}

/// SYNs with sources and destinations that no honest host sends, written on the wire: none opens a connection to the app, to the agent,
/// or half of one.
#[test]
fn hardening_F52_addresses_forged_on_the_wire_open_nothing() {
    if !privileged("hardening_F52_addresses_forged_on_the_wire_open_nothing") {
        return;
    }
    let node = Node::new();
    let pod = Pod::enrolled(&node);
    let apps = [pod.app.listen(at(POD_V4, 9000)), pod.app.listen(at(POD_V6, 9000))];
    // A slot exists in each family, so a forged call to it is not refused for want of one.
    let mut slots = Vec::new();
    for (index, to) in [at("198.18.9.9", 80), at("fd00:198:9::9", 80)].into_iter().enumerate() {
        connect(&pod.app.tcp(to.ip()), to).unwrap();
        slots.push(local(&accept(&pod.listeners.outbound[index]).0).ip().to_string());
    }
    let rows = [
        (POD_V4, POD_V4, 9000),
        ("127.0.0.1", POD_V4, 9000),
        (slots[0].as_str(), POD_V4, 9000),
        (POD_V4, slots[0].as_str(), 15001),
        ("198.18.77.77", slots[0].as_str(), 15001),
        (POD_V4, "127.0.0.1", 15001),
        (POD_V6, POD_V6, 9000),
        ("::1", POD_V6, 9000),
        (slots[1].as_str(), POD_V6, 9000),
        ("::ffff:198.18.0.2", POD_V6, 9000),
        (POD_V6, "::ffff:198.18.0.2", 9000),
        (POD_V6, slots[1].as_str(), 15001),
        ("fd00:198::77", slots[1].as_str(), 15001),
        ("::1", "::1", 15001),
    ];
    let wire = wire::Wire::new(&pod);
    for (source, destination, port) in rows {
        wire.send_syn(ip(source), 40000, at(destination, port));
    }
    // An honest one is seen half open, so the forged would be.
    wire.send_syn(ip("198.18.0.77"), 40001, at(POD_V4, 9000));
    wire.send_syn(ip("fd00:198::77"), 40001, at(POD_V6, 9000));
    // What comes after them on the same wire has been met, so they have.
    for (index, own) in [POD_V4, POD_V6].into_iter().enumerate() {
        connect(&pod.outside.tcp(ip(own)), at(own, 9000)).unwrap();
        accept(&pod.listeners.plaintext[index]);
    }
    assert!(apps.iter().chain(&pod.listeners.outbound).chain(&pod.listeners.plaintext).all(|socket| !is_ready(socket)));
    let half_open = |port: u16| {
        let with_port = format!(":{port:04X} ");
        pod.connections().into_iter().filter(|line| line.contains(&with_port)).collect::<Vec<_>>()
    };
    assert_eq!((half_open(40000), half_open(40001).len()), (Vec::new(), 2));
}

/// The agent's ports are TCP's, but for DNS: datagrams to them are the app's own affair.
#[test]
fn features_R15_datagrams_on_loopback_are_the_apps() {
    if !privileged("features_R15_datagrams_on_loopback_are_the_apps") {
        return;
    }
    let node = Node::new();
    let pod = Pod::enrolled(&node);
    for (host, port) in [("127.0.0.1", 15001), ("127.0.0.1", 15008), ("::1", 15006), ("::1", 53)] {
        let (server, client) = (pod.app.udp_at(at(host, port)), pod.app.udp(ip(host)));
        client.send_to(b"x", &at(host, port).into()).unwrap();
        let mut byte = [std::mem::MaybeUninit::uninit(); 1];
        assert_eq!(server.recv(&mut byte).unwrap(), 1, "{host}:{port}");
    }
    let client = pod.app.udp(ip("127.0.0.1"));
    client.send_to(b"x", &at("127.0.0.1", 15053).into()).unwrap();
    assert!(!is_ready(&pod.listeners.dns_udp[0]), "the agent's own port is not");
    assert_eq!(node.kernel().counter(Reason::DirectToAgent), 1);
}

#[test]
fn hardening_B65_an_app_cannot_call_the_agent_itself() {
    if !privileged("hardening_B65_an_app_cannot_call_the_agent_itself") {
        return;
    }
    let node = Node::new();
    let pod = Pod::enrolled(&node);
    for to in [
        at("127.0.0.1", 15001),
        at("127.0.0.1", 15006),
        at("127.0.0.1", 15008),
        at("::1", 15001),
        at("127.128.1.0", 15001),
        at("fd75:6e64:6572:6d65:7368:0:80:100", 15001),
        at("::ffff:127.0.0.1", 15001),
    ] {
        let app = pod.app.tcp(to.ip());
        assert_eq!(errno(connect(&app, to)), libc::ECONNREFUSED, "{to}");
    }
    // Also bound to the pod's address, as a captured socket would be.
    let app = pod.app.tcp(ip(POD_V4));
    app.bind(&at(POD_V4, 0).into()).unwrap();
    assert_eq!(errno(connect(&app, at("127.128.1.0", 15001))), libc::ECONNREFUSED);
    for listener in pod.listeners.outbound.iter().chain(&pod.listeners.plaintext).chain(&pod.listeners.hbone) {
        assert!(!is_ready(listener));
    }
    assert_eq!(node.kernel().counter(Reason::DirectToAgent), 8);
}

#[test]
fn hardening_R2_without_listeners_everything_is_refused_at_once() {
    if !privileged("hardening_R2_without_listeners_everything_is_refused_at_once") {
        return;
    }
    let node = Node::new();
    let mut pod = Pod::enrolled(&node);
    let app = pod.app.listen(at(POD_V4, 9000));
    pod.listeners = Listeners::none(&pod.agent);
    let to = at("198.18.9.9", 8080);
    assert_eq!(errno(connect(&pod.app.tcp(to.ip()), to)), libc::ECONNREFUSED);
    for port in [9000, 15008] {
        assert_eq!(errno(connect(&pod.outside.tcp(ip(POD_V4)), at(POD_V4, port))), libc::ECONNREFUSED);
    }
    assert!(!is_ready(&app), "a miss is never passed to the app");
    // One each: what is dropped without an answer is sent again.
    assert_eq!(node.kernel().counter(Reason::ListenerMissing), 3);
}
