//! Tables that are full and quotas that are used up: what happens is decided, counted, and over when there is room again (R20, F27).

#![allow(
    clippy::unwrap_used,
    clippy::undocumented_unsafe_blocks,
    reason = "tests panic, and every unsafe block here is one system call"
)]
#![allow(non_snake_case, reason = "tests carry the ids of the fault catalogue")]

mod kernel;

use std::{
    fs,
    os::fd::AsFd,
    time::{Duration, Instant},
};

use kernel::*;
use mesh_agent::bpf::InboundMode;
use mesh_common::Reason;
use socket2::Socket;

/// A connection of the agent to an app that is to see a client.
fn agent_connects(node: &Node, pod: &Pod, to: std::net::SocketAddr) -> Socket {
    let agent = pod.agent.tcp(ip(POD_V4));
    agent.bind(&at(POD_V4, 0).into()).unwrap();
    node.kernel().set_client(agent.as_fd(), at("198.18.7.7", 4242)).unwrap();
    agent.set_nonblocking(true).unwrap();
    let started = errno(agent.connect(&to.into()));
    assert!(started == libc::EINPROGRESS || started == 0, "{started}");
    agent.set_nonblocking(false).unwrap();
    agent
}

#[test]
fn hardening_R20_without_room_for_a_client_the_agent_is_told() {
    if !privileged("hardening_R20_without_room_for_a_client_the_agent_is_told") {
        return;
    }
    let node = Node::with(|config| config.limits.clients = 1);
    let pod = Pod::enrolled(&node);
    let app = pod.app.listen(at(POD_V4, 9000));
    // Nobody answers there, so the entry stays.
    let waiting = agent_connects(&node, &pod, at("198.18.0.77", 9000));
    assert!(node.kernel().client_shown(waiting.as_fd()));
    let unlucky = agent_connects(&node, &pod, at(POD_V4, 9000));
    assert_eq!(accept(&app).1, local(&unlucky));
    assert!(!node.kernel().client_shown(unlucky.as_fd()), "the agent can tell, and refuse");
    assert_eq!(node.kernel().counter(Reason::ClientMapFull), 1);
    drop(waiting);
    // What another test forks keeps the socket, and so its entry, for a moment.
    let deadline = Instant::now() + WAIT;
    loop {
        let lucky = agent_connects(&node, &pod, at(POD_V4, 9000));
        let (_stream, seen) = accept(&app);
        if node.kernel().client_shown(lucky.as_fd()) {
            assert_eq!(seen, at("198.18.7.7", 4242));
            break;
        }
        assert_eq!(seen, local(&lucky));
        assert!(Instant::now() < deadline, "the place is not given back");
    }
}

#[test]
fn hardening_R20_events_that_nobody_reads_are_lost_and_counted_but_denials_are_not() {
    if !privileged("hardening_R20_events_that_nobody_reads_are_lost_and_counted_but_denials_are_not") {
        return;
    }
    let node = Node::with(|config| config.limits.event_bytes = 4096);
    let pod = Pod::enrolled(&node);
    for _ in 0..100 {
        assert_eq!(errno(connect(&pod.app.tcp(ip("127.0.0.1")), at("127.0.0.1", 15001))), libc::ECONNREFUSED);
    }
    assert_eq!(node.kernel().counter(Reason::DirectToAgent), 100);
    let lost = node.kernel().counter(Reason::EventLost);
    assert!((1..100).contains(&lost), "{lost}");
}

#[test]
fn hardening_R20_a_pod_with_too_many_ports_is_left_to_the_agent_and_starves_nobody() {
    if !privileged("hardening_R20_a_pod_with_too_many_ports_is_left_to_the_agent_and_starves_nobody") {
        return;
    }
    let node = Node::with(|config| config.limits.inbound_ports = 80);
    let (greedy, modest) = (Pod::new(&node), Pod::new(&node));
    let mode = |count: u16| InboundMode {
        default_strict: true,
        ports: (1..=count).map(|n| (9000 + n, false)).collect(),
        undecided: false,
    };
    greedy.enrol(&node, &mode(65));
    modest.enrol(&node, &mode(64));
    let reach = |pod: &Pod, port| errno(connect(&pod.outside.tcp(ip(POD_V4)), at(POD_V4, port)));
    assert_eq!((reach(&modest, 9000), reach(&modest, 9001)), (libc::ECONNREFUSED, 0));
    // The agent's listener gets everything, and the agent knows the whole policy.
    assert_eq!((reach(&greedy, 9000), reach(&greedy, 9065)), (0, 0));
    accept(&greedy.listeners.plaintext[0]);
    accept(&greedy.listeners.plaintext[0]);
    let strict = InboundMode { default_strict: true, ports: vec![], undecided: false };
    node.kernel().set_inbound(greedy.cookie, &strict).unwrap();
    assert_eq!(reach(&greedy, 9065), libc::ECONNREFUSED);
    node.kernel().set_inbound(greedy.cookie, &mode(65)).unwrap();
    assert_eq!(reach(&greedy, 9000), 0);
}

/// What policies say of other pods' ports does not keep a pod from being enrolled, nor its own policy from being held to.
#[test]
fn hardening_R20_pods_whose_ports_find_no_place_are_left_to_the_agent() {
    if !privileged("hardening_R20_pods_whose_ports_find_no_place_are_left_to_the_agent") {
        return;
    }
    let node = Node::with(|config| config.limits.inbound_ports = 100);
    let mode = |count: u16| InboundMode {
        default_strict: true,
        ports: (1..=count).map(|n| (9000 + n, false)).collect(),
        undecided: false,
    };
    let (first, second, third) = (Pod::new(&node), Pod::new(&node), Pod::enrolled(&node));
    let reach = |pod: &Pod, port| errno(connect(&pod.outside.tcp(ip(POD_V4)), at(POD_V4, port)));
    first.enrol(&node, &mode(64));
    second.enrol(&node, &mode(64));
    assert!(!node.kernel().set_inbound(third.cookie, &mode(64)).unwrap());
    assert_eq!((reach(&first, 9000), reach(&first, 9001)), (libc::ECONNREFUSED, 0));
    for pod in [&second, &third] {
        assert_eq!((reach(pod, 9000), reach(pod, 9001)), (0, 0));
        accept(&pod.listeners.plaintext[0]);
        accept(&pod.listeners.plaintext[0]);
    }
    // Fewer fit, and so does the same again, and what a pod gives up is there for another.
    assert!(node.kernel().set_inbound(third.cookie, &mode(36)).unwrap());
    assert!(node.kernel().set_inbound(third.cookie, &mode(36)).unwrap());
    assert_eq!((reach(&third, 9000), reach(&third, 9036)), (libc::ECONNREFUSED, 0));
    node.kernel().remove(first.cookie).unwrap();
    second.enrol(&node, &mode(64));
    assert_eq!((reach(&second, 9000), reach(&second, 9064)), (libc::ECONNREFUSED, 0));
}

/// Pods that open all the connections they can, and more than there are slots for, leave every other pod its share.
#[test]
fn hardening_F27_pods_that_take_all_they_can_deny_nobody_his_share() {
    if !privileged("hardening_F27_pods_that_take_all_they_can_deny_nobody_his_share") {
        return;
    }
    let mut node = Node::with(|config| {
        (config.limits.slots, config.limits.pods) = (64, 4);
        config.limits.slots_per_pod = 64;
        config.slot_hold = Duration::ZERO;
    });
    let share = 8;
    let pods: Vec<Pod> = (0..4).map(|_| Pod::enrolled(&node)).collect();
    let reach = |pod: &Pod, destinations: std::ops::Range<u8>| -> Vec<Socket> {
        let reached = |n: u8| {
            let app = pod.app.tcp(ip(POD_V4));
            connect(&app, at(&format!("198.18.9.{n}"), 80)).is_ok().then_some(app)
        };
        destinations.filter_map(reached).collect()
    };
    let greedy: Vec<Vec<Socket>> = pods[..3].iter().map(|pod| reach(pod, 0..80)).collect();
    let got: Vec<usize> = greedy.iter().map(Vec::len).collect();
    assert!(got[0] > share + share / 2 && got.iter().all(|got| *got >= share), "{got:?}");
    let refused = node.kernel().counter(Reason::SlotMapFull);
    assert!(refused >= 3 * 80 - 64, "{refused}");
    let modest = reach(&pods[3], 0..share as u8);
    assert_eq!(modest.len(), share, "{got:?}");
    // An agent that takes over counts the same.
    node.restart();
    assert!(reach(&pods[0], 80..81).is_empty());
    drop(modest);
    // What the greedy ones give back is there for all again.
    drop(greedy);
    for pod in &pods {
        while is_ready(&pod.listeners.outbound[0]) {
            accept(&pod.listeners.outbound[0]).0.set_linger(Some(Duration::ZERO)).unwrap();
        }
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    while entries(&node.maps().join("SLOTS")) != 0 {
        node.kernel().collect_slots();
        assert!(Instant::now() < deadline, "slots are never freed");
        std::thread::yield_now();
    }
    node.kernel().collect_slots();
    let got = [reach(&pods[3], 0..80).len(), reach(&pods[2], 0..80).len()];
    assert!(got[0] > share + share / 2 && got[1] > share, "{got:?}");
}

/// A pod that sends datagrams to thousands has its own answers only to lose: who was asked by its neighbour may answer all the same.
#[test]
fn hardening_R20_a_pod_that_asks_everybody_takes_no_answer_from_another() {
    if !privileged("hardening_R20_a_pod_that_asks_everybody_takes_no_answer_from_another") {
        return;
    }
    let node = Node::with(|config| config.deny_udp = true);
    let (greedy, modest) = (Pod::new(&node), Pod::new(&node));
    let strict = InboundMode { default_strict: true, ports: vec![], undecided: false };
    let bound = |factory: &Factory, address: &str, port| factory.udp_at(at(address, port));
    let mut buffer = [std::mem::MaybeUninit::uninit(); 16];
    for pod in [&greedy, &modest] {
        pod.enrol(&node, &strict);
    }
    let (app, host) = (bound(&modest.app, POD_V4, 9000), bound(&modest.outside, OUTSIDE_V4, 7000));
    app.send_to(b"question", &at(OUTSIDE_V4, 7000).into()).unwrap();
    assert_eq!(host.recv_from(&mut buffer).unwrap().0, 8);
    // To nobody; into the device all the same.
    let everybody = bound(&greedy.app, POD_V4, 9000);
    for n in 0..4000_u16 {
        everybody.send_to(b"x", &at(&format!("198.18.8.{}", n % 250), 1000 + n).into()).unwrap();
    }
    host.send_to(b"answer", &at(POD_V4, 9000).into()).unwrap();
    assert_eq!(app.recv_from(&mut buffer).unwrap().0, 6);
    assert_eq!(node.kernel().counter(Reason::UdpRefused), 0);
    // And the greedy one hears whom it asked last.
    let host = bound(&greedy.outside, OUTSIDE_V4, 7000);
    everybody.send_to(b"question", &at(OUTSIDE_V4, 7000).into()).unwrap();
    assert_eq!(host.recv_from(&mut buffer).unwrap().0, 8);
    host.send_to(b"answer", &at(POD_V4, 9000).into()).unwrap();
    assert_eq!(everybody.recv_from(&mut buffer).unwrap().0, 6);
}

#[test]
fn hardening_F25_a_table_of_slots_that_is_gone_costs_no_quota() {
    if !privileged("hardening_F25_a_table_of_slots_that_is_gone_costs_no_quota") {
        return;
    }
    let mut node = Node::with(|config| config.limits.slots_per_pod = 4);
    let pod = Pod::enrolled(&node);
    let to = |last: usize| at(&format!("198.18.9.{last}"), 80);
    let reach = |last| errno(connect(&pod.app.tcp(ip(POD_V4)), to(last)));
    assert_eq!([1, 2, 3, 4, 5].map(reach), [0, 0, 0, 0, libc::ECONNREFUSED]);
    drop(node.kernel.take());
    // As after an update that changes their size: the count of slots taken is kept, the slots are not.
    for map in ["SLOTS", "SLOT_OF"] {
        fs::remove_file(node.maps().join(map)).unwrap();
    }
    node.restart();
    pod.enrol(&node, &InboundMode::default());
    node.kernel().collect_slots();
    assert_eq!([5, 6, 7, 8, 9].map(reach), [0, 0, 0, 0, libc::ECONNREFUSED]);
    // And what a pod leaves behind in passing is not counted for ever.
    node.kernel().remove(pod.cookie).unwrap();
    node.kernel().collect_slots();
    for map in ["PODS", "SLOTS", "SLOT_OF", "SLOT_USE", "SLOT_FREED", "INBOUND_PORTS", "CLIENTS"] {
        assert_eq!(entries(&node.maps().join(map)), 0, "{map}");
    }
}

#[test]
fn a_kernel_without_chosen_errnos_refuses_all_the_same() {
    if !privileged("a_kernel_without_chosen_errnos_refuses_all_the_same") {
        return;
    }
    let node = Node::with(|config| {
        config.new_features = false;
        config.limits.slots_per_pod = 1;
    });
    assert!(node.kernel().degradations().iter().any(|name| name.contains("set_retval (Linux 6.1)")));
    let pod = Pod::enrolled(&node);
    let to = at("198.18.9.9", 8080);
    let app = pod.app.tcp(to.ip());
    connect(&app, to).unwrap();
    let (agent, _) = accept(&pod.listeners.outbound[0]);
    assert_eq!((node.kernel().original_destination(pod.cookie, local(&agent)), peer(&app)), (Some(to), to));
    for refused in [at("198.18.9.10", 80), at("127.0.0.1", 15001), at("fd00:198:9::9", 80), at("::1", 15001)] {
        assert_eq!(errno(connect(&pod.app.tcp(refused.ip()), refused)), libc::ECONNREFUSED, "{refused}");
    }
    assert!(!is_ready(&pod.listeners.outbound[0]) && !is_ready(&pod.listeners.outbound[1]));
}
