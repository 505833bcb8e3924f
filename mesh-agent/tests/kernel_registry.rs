//! Pods that may reach only what the registry knows, as the kernel does it: what nobody has fails at once, in every family and for datagrams, captured or not.

#![allow(
    clippy::unwrap_used,
    clippy::undocumented_unsafe_blocks,
    reason = "tests panic, and every unsafe block here is one system call"
)]
#![allow(non_snake_case, reason = "tests carry the ids of the feature table")]

mod kernel;

use std::mem::MaybeUninit;

use ipnet::IpNet;
use kernel::*;
use mesh_agent::bpf::InboundMode;
use mesh_common::Reason;
use mesh_core::CaptureRules;
use socket2::{SockAddr, Socket};

/// A node with a pod that may reach only what the registry knows: the networks around both and one address far away in each family.
fn bound_pod() -> (Node, Pod) {
    let node = Node::new();
    let pod = Pod::enrolled(&node);
    assert_eq!(node.kernel().set_registry(&nets(KNOWN), &[]).unwrap(), []);
    node.kernel().set_registry_only(pod.cookie, true).unwrap();
    (node, pod)
}

const KNOWN: &[&str] = &["198.19.7.7/32", "198.19.8.0/24", "fd00:198:7::7/128"];

fn nets(text: &[&str]) -> Vec<IpNet> {
    text.iter().map(|text| text.parse().unwrap()).collect()
}

fn tcp(pod: &Pod, to: &str) -> i32 {
    connect(&pod.app.tcp(ip(to)), at(to, 80)).err().map_or(0, |error| error.raw_os_error().unwrap_or(-1))
}

fn send(socket: &Socket, to: &str, port: u16) -> i32 {
    let sent = socket.send_to(b"x", &SockAddr::from(at(to, port)));
    sent.err().map_or(0, |error| error.raw_os_error().unwrap_or(-1))
}

fn barred(node: &Node) -> u64 {
    node.kernel().counter(Reason::NotInRegistry)
}

#[test]
fn features_SB_3_what_nobody_has_is_refused_by_the_connect_itself() {
    if !privileged("features_SB_3_what_nobody_has_is_refused_by_the_connect_itself") {
        return;
    }
    let (node, pod) = bound_pod();
    // Known: captured as ever.
    for to in ["198.19.7.7", "198.19.8.200", "fd00:198:7::7"] {
        assert_eq!(tcp(&pod, to), 0, "{to}");
    }
    assert_eq!((barred(&node), node.kernel().counter(Reason::Captured)), (0, 3));
    let unknown = ["198.19.7.8", "198.19.9.1", "169.254.169.254", OUTSIDE_V4, "fd00:198:7::8", OUTSIDE_V6];
    for (count, to) in unknown.into_iter().enumerate() {
        assert_eq!(tcp(&pod, to), libc::ECONNREFUSED, "{to}");
        assert_eq!(barred(&node), count as u64 + 1, "{to}");
    }
    // IPv4 in a socket of IPv6.
    let mapped = pod.app.tcp(ip("::1"));
    mapped.set_only_v6(false).unwrap();
    assert_eq!(errno(connect(&mapped, at("::ffff:198.19.7.8", 80))), libc::ECONNREFUSED);
    // The pod's own.
    let own = pod.app.listen(at("127.0.0.1", 8080));
    connect(&pod.app.tcp(ip("127.0.0.1")), local(&own)).unwrap();
    connect(&pod.app.tcp(ip("198.18.53.53")), at("198.18.53.53", 53)).unwrap();

    // The list is followed while all runs, and nobody else's connects are looked at.
    let before = barred(&node);
    node.kernel().set_registry(&nets(&["198.19.9.0/24"]), &nets(&["198.19.8.0/24"])).unwrap();
    assert_eq!((tcp(&pod, "198.19.9.1"), tcp(&pod, "198.19.8.200")), (0, libc::ECONNREFUSED));
    assert_eq!(barred(&node), before + 1);
    let known = node.kernel().registry().unwrap();
    assert_eq!(known, nets(&["198.19.7.7/32", "198.19.9.0/24", "fd00:198:7::7/128"]).into_iter().collect());
    node.kernel().set_registry_only(pod.cookie, false).unwrap();
    assert_eq!(tcp(&pod, "198.19.7.8"), 0);
}

#[test]
fn features_SB_3_a_range_of_all_of_ipv6_is_nothing_of_ipv4() {
    if !privileged("features_SB_3_a_range_of_all_of_ipv6_is_nothing_of_ipv4") {
        return;
    }
    let (node, pod) = bound_pod();
    node.kernel().set_registry(&nets(&["::/0"]), &[]).unwrap();
    assert_eq!((tcp(&pod, "fd00:198:7::8"), tcp(&pod, "198.19.7.8")), (0, libc::ECONNREFUSED));
    node.kernel().set_registry(&nets(&["0.0.0.0/0"]), &nets(&["::/0"])).unwrap();
    assert_eq!((tcp(&pod, "fd00:198:7::8"), tcp(&pod, "198.19.7.8")), (libc::ECONNREFUSED, 0));
    node.kernel().set_registry(&[], &nets(&["0.0.0.0/0"])).unwrap();
    assert_eq!(tcp(&pod, "198.19.7.8"), libc::ECONNREFUSED);
}

#[test]
fn features_SB_3_datagrams_and_what_is_not_captured_do_not_go_around() {
    if !privileged("features_SB_3_datagrams_and_what_is_not_captured_do_not_go_around") {
        return;
    }
    let (node, pod) = bound_pod();
    let server = pod.outside.udp_at(at(OUTSIDE_V4, 9000));
    let client = pod.app.udp(ip(OUTSIDE_V4));
    assert_eq!(send(&client, OUTSIDE_V4, 9000), libc::ECONNREFUSED);
    assert_eq!(errno(connect(&pod.app.udp(ip(OUTSIDE_V4)), at(OUTSIDE_V4, 9000))), libc::ECONNREFUSED);
    assert_eq!(send(&pod.app.udp(ip(OUTSIDE_V6)), OUTSIDE_V6, 9000), libc::ECONNREFUSED);
    // Another resolver than the pod's own is an address as any.
    assert_eq!(send(&client, OUTSIDE_V4, 53), libc::ECONNREFUSED);
    assert!(!is_ready(&server));
    assert_eq!(send(&client, "198.18.53.53", 53), 0, "the pod's own resolver");
    // What annotations take out of the mesh is refused the same.
    let except = CaptureRules {
        outbound_except: nets(&["198.18.0.0/24", "fd00:198::/64"]),
        outbound_except_ports: vec![80],
        ..CaptureRules::default()
    };
    pod.enrol_with(&node, &InboundMode::default(), &except);
    node.kernel().set_registry_only(pod.cookie, true).unwrap();
    let _listens = [pod.outside.listen(at(OUTSIDE_V4, 80)), pod.outside.listen(at(OUTSIDE_V6, 80))];
    assert_eq!((tcp(&pod, OUTSIDE_V4), tcp(&pod, OUTSIDE_V6)), (libc::ECONNREFUSED, libc::ECONNREFUSED));
    node.kernel().set_registry(&nets(&["198.18.0.1/32", "fd00:198::1/128"]), &[]).unwrap();
    assert_eq!((tcp(&pod, OUTSIDE_V4), tcp(&pod, OUTSIDE_V6)), (0, 0));
    assert_eq!(send(&client, OUTSIDE_V4, 9000), 0);
    assert_eq!(server.recv(&mut [MaybeUninit::uninit(); 8]).unwrap(), 1);
}

#[test]
fn features_SB_3_a_server_answers_whoever_calls_it() {
    if !privileged("features_SB_3_a_server_answers_whoever_calls_it") {
        return;
    }
    let (node, pod) = bound_pod();
    for (own, stranger) in [(POD_V4, OUTSIDE_V4), (POD_V6, OUTSIDE_V6)] {
        let server = pod.app.udp_at(at(own, 9000));
        let caller = pod.outside.udp_at(at(stranger, 9001));
        assert_eq!(send(&server, stranger, 9001), libc::ECONNREFUSED, "nobody has called");
        assert_eq!(send(&caller, own, 9000), 0);
        let (_, from) = server.recv_from(&mut [MaybeUninit::uninit(); 8]).unwrap();
        assert_eq!(from.as_socket(), Some(at(stranger, 9001)));
        assert_eq!(send(&server, stranger, 9001), 0);
        assert_eq!(caller.recv(&mut [MaybeUninit::uninit(); 8]).unwrap(), 1);
        // Neither another port of his, nor from another port of the pod.
        assert_eq!(send(&server, stranger, 9002), libc::ECONNREFUSED);
        assert_eq!(send(&pod.app.udp_at(at(own, 9003)), stranger, 9001), libc::ECONNREFUSED);
    }
    assert_eq!(barred(&node), 6);
}

#[test]
fn features_SB_3_it_holds_without_an_agent_and_for_a_closed_pod() {
    if !privileged("features_SB_3_it_holds_without_an_agent_and_for_a_closed_pod") {
        return;
    }
    let (mut node, pod) = bound_pod();
    node.restart();
    assert!(node.kernel().is_registry_only(pod.cookie));
    assert_eq!(node.kernel().registry().unwrap(), nets(KNOWN).into_iter().collect());
    assert_eq!((tcp(&pod, "198.19.7.7"), tcp(&pod, "198.19.7.8")), (0, libc::ECONNREFUSED));
    node.kernel().close(pod.cookie).unwrap();
    assert!(node.kernel().is_registry_only(pod.cookie));
    assert_eq!(send(&pod.app.udp(ip(OUTSIDE_V4)), OUTSIDE_V4, 9000), libc::ECONNREFUSED);
    node.kernel().remove(pod.cookie).unwrap();
    assert_eq!(send(&pod.app.udp(ip(OUTSIDE_V4)), OUTSIDE_V4, 9000), 0, "the pod is not of the mesh any more");
}

#[test]
fn what_has_no_room_is_told_and_stays_out() {
    if !privileged("what_has_no_room_is_told_and_stays_out") {
        return;
    }
    let node = Node::with(|config| config.limits.registry = 3);
    let pod = Pod::enrolled(&node);
    // One row says that nothing of IPv6 is of IPv4.
    let left = node.kernel().set_registry(&nets(KNOWN), &[]).unwrap();
    assert_eq!(left, nets(&KNOWN[2..]));
    node.kernel().set_registry_only(pod.cookie, true).unwrap();
    assert_eq!((tcp(&pod, "198.19.7.7"), tcp(&pod, "fd00:198:7::7")), (0, libc::ECONNREFUSED));
}
