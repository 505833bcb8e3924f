//! Flows that are not what they should be: floods of SYNs, connections that are given up early, datagrams.

#![allow(
    clippy::unwrap_used,
    clippy::undocumented_unsafe_blocks,
    reason = "tests panic, and every unsafe block here is one system call"
)]
#![allow(non_snake_case, reason = "tests carry the ids of the fault catalogue")]

mod kernel;

use std::time::{Duration, Instant};

use kernel::*;
use mesh_agent::bpf::InboundMode;
use mesh_agent::proxy::mode_of;
use mesh_common::Reason;
use mesh_core::policy::{GUARD, Policy, Scope};
use mesh_core::workload::{GatewayAddress, GatewayDestination, NetworkAddress, TunnelProtocol};
use mesh_core::{Change, NamespacedName, Store, Workload};
use socket2::SockAddr;

/// B60: SYNs without an end meet cookies, not a full queue: who means it still gets in, and the app behind never sees the others.
#[test]
fn hardening_B60_a_flood_of_syns_keeps_nobody_out() {
    if !privileged("hardening_B60_a_flood_of_syns_keeps_nobody_out") {
        return;
    }
    let node = Node::new();
    let pod = Pod::enrolled(&node);
    let app = pod.app.listen(at(POD_V4, 9000));
    let wire = wire::Wire::new(&pod);
    for n in 0..20_000_u32 {
        let source = std::net::IpAddr::from([198, 18, 200, (n % 250) as u8 + 1]);
        wire.send_syn(source, 1024 + (n % 50_000) as u16, at(POD_V4, if n % 2 == 0 { 9000 } else { 15008 }));
    }
    for (port, listener) in [(9000, &pod.listeners.plaintext[0]), (15008, &pod.listeners.hbone[0])] {
        let client = pod.outside.tcp(ip(POD_V4));
        connect(&client, at(POD_V4, port)).unwrap();
        let (agent, from) = accept(listener);
        assert_eq!(from, local(&client));
        ping(&client, &agent);
        assert!(!is_ready(listener), "none of the others is a connection");
    }
    assert!(!is_ready(&app));
}

/// B69: an app that gives up before the agent has accepted leaves nothing in the maps.
#[test]
fn hardening_B69_what_is_closed_before_it_is_accepted_leaves_nothing() {
    if !privileged("hardening_B69_what_is_closed_before_it_is_accepted_leaves_nothing") {
        return;
    }
    let node = Node::with(|config| config.slot_hold = Duration::ZERO);
    let pod = Pod::enrolled(&node);
    let used = |map: &str| node.kernel().map_usage().iter().find(|usage| usage.0 == map).unwrap().1;
    for n in 0..200_u8 {
        let app = pod.app.tcp(ip(POD_V4));
        app.set_nonblocking(true).unwrap();
        let _ = app.connect(&at(&format!("198.18.9.{n}"), 8080).into());
        if n % 2 == 0 {
            app.set_linger(Some(Duration::ZERO)).unwrap();
        }
    }
    assert!(used("SLOTS") > 0);
    // The agent finds them dead or dying, and lets go.
    while is_ready(&pod.listeners.outbound[0]) {
        drop(accept(&pod.listeners.outbound[0]));
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    while used("SLOTS") != 0 {
        node.kernel().collect_slots();
        assert!(Instant::now() < deadline, "{} slots are never freed", used("SLOTS"));
        std::thread::yield_now();
    }
    let left = |map: &str| entries(&node.maps().join(map));
    assert_eq!((left("SLOTS"), left("SLOT_OF"), left("CLIENTS")), (0, 0, 0));
    let (app, to) = (pod.app.tcp(ip(POD_V4)), at("198.18.9.9", 8080));
    connect(&app, to).unwrap();
    let (agent, _) = accept(&pod.listeners.outbound[0]);
    assert_eq!(node.kernel().original_destination(pod.cookie, local(&agent)), Some(to));
}

/// Datapath 2.7: what was connected before the pod was enrolled goes on as it is, and so does what was connected through the agent when it is released.
#[test]
fn features_what_is_connected_survives_enrolment_and_release() {
    if !privileged("features_what_is_connected_survives_enrolment_and_release") {
        return;
    }
    let node = Node::new();
    let pod = Pod::new(&node);
    let server = pod.outside.listen(at(OUTSIDE_V4, 8080));
    let listener = pod.app.listen(at(POD_V4, 9000));
    let (app, client) = (pod.app.tcp(ip(POD_V4)), pod.outside.tcp(ip(POD_V4)));
    connect(&app, at(OUTSIDE_V4, 8080)).unwrap();
    connect(&client, at(POD_V4, 9000)).unwrap();
    let (far, near) = (accept(&server).0, accept(&listener).0);
    pod.enrol(&node, &InboundMode { default_strict: true, ports: vec![], undecided: false });
    ping(&app, &far);
    ping(&client, &near);
    assert_eq!((peer(&app), peer(&near)), (at(OUTSIDE_V4, 8080), local(&client)));
    let (captured, to) = (pod.app.tcp(ip(POD_V4)), at(OUTSIDE_V4, 8080));
    connect(&captured, to).unwrap();
    let agent = accept(&pod.listeners.outbound[0]).0;
    node.kernel().remove(pod.cookie).unwrap();
    ping(&captured, &agent);
    ping(&app, &far);
}

/// B73: UDP passes, under STRICT as well, which speaks of TCP; it is counted as what it is.
#[test]
fn hardening_B73_udp_passes_and_is_counted() {
    if !privileged("hardening_B73_udp_passes_and_is_counted") {
        return;
    }
    let node = Node::new();
    let pod = Pod::new(&node);
    pod.enrol(&node, &InboundMode { default_strict: true, ports: vec![], undecided: false });
    for (index, own) in [POD_V4, POD_V6].into_iter().enumerate() {
        let (app, client) = (pod.app.udp_at(at(own, 9000)), pod.outside.udp(ip(own)));
        client.send_to(b"datagram", &SockAddr::from(at(own, 9000))).unwrap();
        let mut buffer = [std::mem::MaybeUninit::uninit(); 16];
        let (length, from) = app.recv_from(&mut buffer).unwrap();
        assert_eq!((length, from.as_socket().unwrap().port()), (8, local(&client).port()));
        assert_eq!(node.kernel().counter(Reason::UdpPassed), index as u64 + 1);
        // And back, from an unconnected socket as from any server.
        app.send_to(b"reply", &from).unwrap();
        assert_eq!(client.recv_from(&mut buffer).unwrap().0, 5);
    }
    assert_eq!(errno(connect(&pod.outside.tcp(ip(POD_V4)), at(POD_V4, 9000))), libc::ECONNREFUSED, "TCP does not");
}

/// As after a restart of the agent, before it has heard of any policy: the agent judges TCP, and nobody would judge a datagram.
#[test]
fn features_udp_deny_holds_while_the_policies_are_not_known() {
    if !privileged("features_udp_deny_holds_while_the_policies_are_not_known") {
        return;
    }
    let mut node = Node::with(|config| config.deny_udp = true);
    let pod = Pod::new(&node);
    pod.enrol(&node, &InboundMode { default_strict: false, ports: vec![(9001, true)], undecided: false });
    node.restart();
    pod.enrol(&node, &InboundMode { undecided: true, ..InboundMode::default() });
    datagrams_are_refused_and_tcp_is_not(&node, &pod, [9000, 9001]);
    // More ports than a pod may have: the agent has the whole policy, for TCP.
    let many = (0..=node.config.limits.inbound_ports_per_pod as u16).map(|n| (10_000 + n, true)).collect();
    node.kernel()
        .set_inbound(pod.cookie, &InboundMode { default_strict: false, ports: many, undecided: false })
        .unwrap();
    datagrams_are_refused_and_tcp_is_not(&node, &pod, [9000, 10_000]);
}

/// Who comes without an identity is led through the pod's waypoint, by the agent, which no datagram comes to: none goes around the waypoint.
#[test]
fn design_10_9_udp_deny_holds_where_strangers_are_led_through_a_waypoint() {
    if !privileged("design_10_9_udp_deny_holds_where_strangers_are_led_through_a_waypoint") {
        return;
    }
    let node = Node::with(|config| config.deny_udp = true);
    let pod = Pod::new(&node);
    let at_waypoint = NetworkAddress { network: "".into(), address: ip("198.18.0.9") };
    let mut workload = Workload::new("uid", "shop", "pod");
    workload.protocol = TunnelProtocol::Hbone;
    workload.waypoint =
        Some(GatewayAddress { destination: GatewayDestination::Address(at_waypoint), hbone_port: 15008 });
    // Led, and whoever goes around it is denied; neither; led alone.
    let through = Policy::through("shop".into());
    let guard = Policy::deny_plaintext(NamespacedName::new("shop", format!("{GUARD}x")), Scope::WorkloadSelector);
    for (policies, is_refused) in [(vec![&through, &guard], true), (vec![], false), (vec![&through], true)] {
        workload.authorization_policies = policies.iter().map(|policy| policy.name.clone()).collect();
        let mut store = Store::new();
        store.apply(policies.into_iter().cloned().map(Change::Policy).chain([Change::Synced]).collect());
        let mode = mode_of(&store.snapshot(), Some(&workload));
        pod.enrol(&node, &mode);
        match is_refused {
            true => datagrams_are_refused_and_tcp_is_not(&node, &pod, [9000, 9001]),
            false => pass_datagrams(&node, &pod, 9000),
        }
    }
}

fn datagrams_are_refused_and_tcp_is_not(node: &Node, pod: &Pod, ports: [u16; 2]) {
    datagrams_are_refused(node, pod, ports);
    for port in ports {
        connect(&pod.outside.tcp(ip(POD_V4)), at(POD_V4, port)).unwrap();
        accept(&pod.listeners.plaintext[0]);
    }
}

fn datagrams_are_refused(node: &Node, pod: &Pod, ports: [u16; 2]) {
    let mut buffer = [std::mem::MaybeUninit::uninit(); 16];
    let bound = |port| pod.app.udp_at(at(POD_V4, port));
    let (apps, dns) = (ports.map(bound), bound(53));
    let refused = node.kernel().counter(Reason::UdpRefused);
    let stranger = pod.outside.udp(ip(POD_V4));
    for port in [ports[0], ports[1], 53] {
        stranger.send_to(b"datagram", &SockAddr::from(at(POD_V4, port))).unwrap();
    }
    // In order on one wire.
    assert_eq!(dns.recv_from(&mut buffer).unwrap().0, 8);
    assert!(apps.iter().all(|app| !is_ready(app)));
    assert_eq!(node.kernel().counter(Reason::UdpRefused), refused + 2);
    apps[0].send_to(b"question", &SockAddr::from(at(OUTSIDE_V4, local(&stranger).port()))).unwrap();
    let asked = stranger.recv_from(&mut buffer).unwrap().1;
    stranger.send_to(b"answer", &asked).unwrap();
    assert_eq!(apps[0].recv_from(&mut buffer).unwrap().0, 6);
}

/// A pod that cannot be served is closed: nobody knows its policies, so where datagrams are refused it takes none, on whatever port, that it did not
/// ask for. DNS and answers are let in, as they always are.
#[test]
fn features_udp_deny_a_closed_pod_takes_answers_and_dns_only() {
    if !privileged("features_udp_deny_a_closed_pod_takes_answers_and_dns_only") {
        return;
    }
    let mut node = Node::with(|config| config.deny_udp = true);
    let pod = Pod::new(&node);
    pod.enrol(&node, &InboundMode { default_strict: false, ports: vec![(9001, false)], undecided: false });
    pass_datagrams(&node, &pod, 9000);
    node.kernel().close(pod.cookie).unwrap();
    let refused = node.kernel().counter(Reason::PodClosed);
    datagrams_are_refused(&node, &pod, [9000, 9001]);
    // Late news of the policies, from a proxy that is being stopped, opens nothing.
    node.kernel().set_inbound(pod.cookie, &InboundMode::default()).unwrap();
    datagrams_are_refused(&node, &pod, [9000, 9001]);
    assert_eq!(errno(connect(&pod.outside.tcp(ip(POD_V4)), at(POD_V4, 9001))), libc::ECONNREFUSED);
    assert_eq!(node.kernel().counter(Reason::PodClosed), refused + 1);
    // The setting of the agent that runs decides, not of the one that captured the pod.
    for deny in [false, true] {
        node.config.deny_udp = deny;
        node.restart();
        pod.enrol(&node, &InboundMode { default_strict: true, ports: vec![(9001, false)], undecided: false });
        node.config.deny_udp = !deny;
        node.restart();
        assert_eq!(entries(&node.maps().join("UDP_PEERS")), usize::from(!deny));
        match deny {
            true => pass_datagrams(&node, &pod, 9000),
            false => datagrams_are_refused(&node, &pod, [9000, 9002]),
        }
        node.kernel().close(pod.cookie).unwrap();
        match deny {
            true => pass_datagrams(&node, &pod, 9000),
            false => datagrams_are_refused(&node, &pod, [9000, 9001]),
        }
    }
}

/// A datagram that the pod did not ask for reaches the app.
fn pass_datagrams(node: &Node, pod: &Pod, port: u16) {
    let passed = node.kernel().counter(Reason::UdpPassed);
    let app = pod.app.udp_at(at(POD_V4, port));
    pod.outside.udp(ip(POD_V4)).send_to(b"datagram", &SockAddr::from(at(POD_V4, port))).unwrap();
    assert_eq!(app.recv_from(&mut [std::mem::MaybeUninit::uninit(); 16]).unwrap().0, 8);
    assert_eq!(node.kernel().counter(Reason::UdpPassed), passed + 1);
}

/// A pod that is captured already is refused nothing less on its way from one policy to a stricter one: what the old one says of a port goes when the
/// new one holds. An enrolment that fails half way stands still in the middle.
#[test]
fn hardening_B29_enrolment_under_a_stricter_policy_opens_no_port_on_its_way() {
    if !privileged("hardening_B29_enrolment_under_a_stricter_policy_opens_no_port_on_its_way") {
        return;
    }
    let node = Node::with(|config| config.deny_udp = true);
    let pod = Pod::new(&node);
    pod.enrol(&node, &InboundMode { default_strict: false, ports: vec![(9000, true)], undecided: false });
    let pin = node.maps().with_file_name("pods").join(format!("{:016x}/link", pod.cookie));
    std::fs::remove_file(&pin).unwrap();
    std::fs::create_dir(&pin).unwrap();
    let stricter = InboundMode { default_strict: true, ports: vec![], undecided: false };
    pod.try_enrol(&node, &stricter).unwrap_err();
    datagrams_are_refused(&node, &pod, [9000, 9001]);
    std::fs::remove_dir(&pin).unwrap();
    pod.enrol(&node, &stricter);
    datagrams_are_refused(&node, &pod, [9000, 9001]);
}

/// Whom a server on an open port answers is for strangers to choose, and they may be many: those that the pod asked itself answer all the same.
#[test]
fn features_udp_deny_strangers_that_an_open_port_answers_push_out_nobody() {
    if !privileged("features_udp_deny_strangers_that_an_open_port_answers_push_out_nobody") {
        return;
    }
    let node = Node::with(|config| config.deny_udp = true);
    let pod = Pod::new(&node);
    pod.enrol(&node, &InboundMode { default_strict: true, ports: vec![(9001, false)], undecided: false });
    let mut buffer = [std::mem::MaybeUninit::uninit(); 16];
    for (own, outside) in [(POD_V4, OUTSIDE_V4), (POD_V6, OUTSIDE_V6)] {
        let (asking, serving) = (pod.app.udp(ip(own)), pod.app.udp_at(at(own, 9001)));
        let asked = pod.outside.udp_at(at(outside, 7000));
        asking.send_to(b"question", &SockAddr::from(at(outside, 7000))).unwrap();
        let question = asked.recv_from(&mut buffer).unwrap().1;
        for port in 20_000..24_000 {
            serving.send_to(b"reply", &SockAddr::from(at(outside, port))).unwrap();
        }
        let refused = node.kernel().counter(Reason::UdpRefused);
        asked.send_to(b"answer", &question).unwrap();
        assert_eq!(node.kernel().counter(Reason::UdpRefused), refused);
        assert_eq!(asking.recv_from(&mut buffer).unwrap().0, 6);
    }
}

/// Design 9.6: with the setting, a STRICT port takes no datagram that the pod did not ask for; DNS it does take, and other ports are as they were.
#[test]
fn features_udp_deny_lets_answers_and_dns_in_and_nothing_else() {
    if !privileged("features_udp_deny_lets_answers_and_dns_in_and_nothing_else") {
        return;
    }
    let node = Node::with(|config| config.deny_udp = true);
    let pod = Pod::new(&node);
    pod.enrol(&node, &InboundMode { default_strict: true, ports: vec![(9001, false)], undecided: false });
    let mut buffer = [std::mem::MaybeUninit::uninit(); 16];
    let bound = |factory: &Factory, own: &str, port| factory.udp_at(at(own, port));
    for (own, outside) in [(POD_V4, OUTSIDE_V4), (POD_V6, OUTSIDE_V6)] {
        let refused = node.kernel().counter(Reason::UdpRefused);
        let (strict, open, dns) = (bound(&pod.app, own, 9000), bound(&pod.app, own, 9001), bound(&pod.app, own, 53));
        let stranger = bound(&pod.outside, outside, 7000);
        for port in [9000, 9001, 53] {
            stranger.send_to(b"datagram", &SockAddr::from(at(own, port))).unwrap();
        }
        // In order on one wire: when the last has come, the first has not been let in.
        assert_eq!(open.recv_from(&mut buffer).unwrap().0, 8);
        assert_eq!(dns.recv_from(&mut buffer).unwrap().0, 8);
        assert!(!is_ready(&strict), "nobody asked for it");
        assert_eq!(node.kernel().counter(Reason::UdpRefused), refused + 1);
        // An answer, to an unconnected socket and to a connected one; from another port it is none.
        strict.send_to(b"question", &SockAddr::from(at(outside, 7000))).unwrap();
        let asked = stranger.recv_from(&mut buffer).unwrap().1;
        let other = bound(&pod.outside, outside, 7001);
        other.send_to(b"datagram", &asked).unwrap();
        stranger.send_to(b"answer", &asked).unwrap();
        assert_eq!(strict.recv_from(&mut buffer).unwrap().0, 6);
        assert!(!is_ready(&strict));
        let connected = pod.app.udp(ip(own));
        connect(&connected, at(outside, 7001)).unwrap();
        other.send_to(b"answer", &SockAddr::from(local(&connected))).unwrap();
        assert_eq!(connected.recv_from(&mut buffer).unwrap().0, 6);
        // Inside the pod nothing is refused.
        let neighbour = pod.app.udp(ip(own));
        neighbour.send_to(b"inside", &SockAddr::from(at(own, 9000))).unwrap();
        assert_eq!(strict.recv_from(&mut buffer).unwrap().0, 6);
        assert_eq!(node.kernel().counter(Reason::UdpRefused), refused + 2);
    }
    // The policy decides, live.
    let undecided = InboundMode { default_strict: false, ports: vec![(9003, false)], undecided: true };
    node.kernel().set_inbound(pod.cookie, &undecided).unwrap();
    datagrams_are_refused_and_tcp_is_not(&node, &pod, [9002, 9003]);
    node.kernel().set_inbound(pod.cookie, &InboundMode::default()).unwrap();
    let (app, stranger) = (bound(&pod.app, POD_V4, 9002), bound(&pod.outside, OUTSIDE_V4, 7002));
    stranger.send_to(b"datagram", &SockAddr::from(at(POD_V4, 9002))).unwrap();
    assert_eq!(app.recv_from(&mut buffer).unwrap().0, 8);
}
