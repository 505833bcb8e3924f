//! What a pod's annotations take out of the mesh, as the kernel does it.

#![allow(
    clippy::unwrap_used,
    clippy::undocumented_unsafe_blocks,
    reason = "tests panic, and every unsafe block here is one system call"
)]
#![allow(non_snake_case, reason = "tests carry the ids of the feature table")]

mod kernel;

use kernel::*;
use mesh_agent::bpf::InboundMode;
use mesh_common::Reason;
use mesh_core::CaptureRules;
use socket2::Socket;

/// Listens outside, in both families.
fn servers(pod: &Pod, port: u16) -> [Socket; 2] {
    [OUTSIDE_V4, OUTSIDE_V6].map(|address| pod.outside.listen(at(address, port)))
}

/// The pod's connects go past the agent, from its own address.
fn leaves(pod: &Pod, servers: &[Socket; 2]) {
    for (server, own) in servers.iter().zip([POD_V4, POD_V6]) {
        let to = local(server);
        let client = pod.app.tcp(to.ip());
        connect(&client, to).unwrap_or_else(|error| panic!("{to}: {error}"));
        let (accepted, from) = accept(server);
        assert_eq!(from.ip(), ip(own));
        ping(&client, &accepted);
    }
}

fn is_captured(node: &Node, pod: &Pod, address: &str, port: u16) {
    let to = at(address, port);
    connect(&pod.app.tcp(to.ip()), to).unwrap();
    let (agent, _) = accept(&pod.listeners.outbound[usize::from(to.is_ipv6())]);
    assert_eq!(node.kernel().original_destination(pod.cookie, local(&agent)), Some(to));
}

/// What comes from the network to a port of the pod reaches the app itself.
fn enters(pod: &Pod, port: u16) {
    for own in [POD_V4, POD_V6] {
        let app = pod.app.listen(at(own, port));
        let client = pod.outside.tcp(ip(own));
        connect(&client, at(own, port)).unwrap_or_else(|error| panic!("{own}:{port}: {error}"));
        assert_eq!(accept(&app).1, local(&client));
    }
}

fn is_refused(pod: &Pod, port: u16) {
    let _app = pod.app.listen(at(POD_V4, port));
    assert_eq!(errno(connect(&pod.outside.tcp(ip(POD_V4)), at(POD_V4, port))), libc::ECONNREFUSED, "{port}");
}

fn strict() -> InboundMode {
    InboundMode { default_strict: true, ..InboundMode::default() }
}

#[test]
fn features_EN11_ranges_and_ports_that_the_pod_reaches_without_the_mesh() {
    if !privileged("outbound rules") {
        return;
    }
    let node = Node::new();
    let pod = Pod::new(&node);
    let (web, database) = (servers(&pod, 8080), servers(&pod, 3306));
    let around = || ["198.18.0.0/24", "fd00:198::/64"].map(|range| range.parse().unwrap()).to_vec();
    let far = || vec!["198.18.9.0/24".parse().unwrap()];

    let except = CaptureRules { outbound_except: around(), ..CaptureRules::default() };
    pod.enrol_with(&node, &strict(), &except);
    leaves(&pod, &web);
    is_captured(&node, &pod, "198.18.9.9", 8080);
    is_captured(&node, &pod, "fd00:198:9::9", 8080);
    assert_eq!(node.kernel().counter(Reason::OutboundExcluded), 2);
    is_refused(&pod, 9000);

    let except = CaptureRules { outbound_except_ports: vec![3306], ..CaptureRules::default() };
    pod.enrol_with(&node, &strict(), &except);
    leaves(&pod, &database);
    is_captured(&node, &pod, OUTSIDE_V4, 8080);

    let only = CaptureRules { outbound_only: Some(far()), outbound_also: vec![3306], ..CaptureRules::default() };
    pod.enrol_with(&node, &strict(), &only);
    leaves(&pod, &web);
    is_captured(&node, &pod, "198.18.9.9", 80);
    is_captured(&node, &pod, OUTSIDE_V4, 3306);

    let none = CaptureRules { outbound_only: Some(vec![]), ..CaptureRules::default() };
    pod.enrol_with(&node, &strict(), &none);
    leaves(&pod, &web);
    leaves(&pod, &database);
    pod.enrol(&node, &strict());
    is_captured(&node, &pod, OUTSIDE_V6, 8080);
    is_captured(&node, &pod, OUTSIDE_V4, 3306);
}

#[test]
fn features_EN9_EN11_ports_that_are_reached_without_the_mesh() {
    if !privileged("inbound rules") {
        return;
    }
    let node = Node::new();
    let pod = Pod::new(&node);
    let open = CaptureRules { inbound_open: true, ..CaptureRules::default() };
    pod.enrol_with(&node, &strict(), &open);
    enters(&pod, 9000);
    assert_eq!(node.kernel().counter(Reason::InboundExcluded), 2);
    connect(&pod.outside.tcp(ip(POD_V4)), at(POD_V4, 15008)).unwrap();
    accept(&pod.listeners.hbone[0]);
    is_refused(&pod, 15001);
    is_captured(&node, &pod, OUTSIDE_V4, 8080);

    let except = CaptureRules { inbound_except: vec![9000], ..CaptureRules::default() };
    pod.enrol_with(&node, &strict(), &except);
    enters(&pod, 9000);
    is_refused(&pod, 9001);

    let only = CaptureRules { inbound_only: Some(vec![9000]), inbound_except: vec![9000], ..CaptureRules::default() };
    pod.enrol_with(&node, &strict(), &only);
    is_refused(&pod, 9000);
    enters(&pod, 9001);

    // Nobody knows of a closed pod whether its rules still hold.
    pod.enrol_with(&node, &strict(), &open);
    node.kernel().close(pod.cookie).unwrap();
    is_refused(&pod, 9000);
    pod.enrol(&node, &strict());
    is_refused(&pod, 9000);
}

#[test]
fn features_EN11_rules_for_which_there_is_no_room_take_nothing_out_of_the_mesh() {
    if !privileged("room for rules") {
        return;
    }
    let node = Node::new();
    let (first, second) = (Pod::new(&node), Pod::new(&node));
    let ports = (1..=60).collect();
    let many = CaptureRules { outbound_only: Some(vec![]), outbound_also: ports, ..CaptureRules::default() };
    first.enrol_with(&node, &strict(), &many);
    leaves(&first, &servers(&first, 8080));
    second.enrol_with(&node, &strict(), &many);
    is_captured(&node, &second, OUTSIDE_V4, 8080);
    // With the first gone there is.
    node.kernel().remove(first.cookie).unwrap();
    second.enrol_with(&node, &strict(), &many);
    leaves(&second, &servers(&second, 8080));
}
