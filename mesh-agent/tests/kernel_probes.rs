//! What the node's kubelet asks of pods passes, and nothing else does.

#![allow(
    clippy::unwrap_used,
    clippy::undocumented_unsafe_blocks,
    reason = "tests panic, and every unsafe block here is one system call"
)]
#![allow(non_snake_case, reason = "tests carry the ids of the feature table")]

mod kernel;

use std::{os::fd::AsFd, time::Duration};

use kernel::*;
use mesh_agent::bpf::InboundMode;
use mesh_common::Reason;
use mesh_core::CaptureRules;

const PROBE: u16 = 8080;
const OTHER: u16 = 9000;

/// A STRICT pod with one probe, in the network of a node whose kubelet has a cgroup of its own.
struct Probed {
    // The order in which they go.
    kubelet: Factory,
    pod: Pod,
    kubelet_cgroup: Cgroup,
    node: Node,
}

impl Probed {
    fn new() -> Self {
        let outside = new_netns();
        let node = in_netns(outside.as_fd(), Node::new);
        let kubelet_cgroup = Cgroup::new(&format!("{}/kubelet", node.config.instance));
        let kubelet = Factory::new(&kubelet_cgroup, outside.as_fd());
        let pod = Pod::beside(&node, outside);
        pod.enrol_with(&node, &strict(), &probes());
        Self { kubelet, pod, kubelet_cgroup, node }
    }

    fn follow(&self) -> bool {
        self.node.kernel().follow_kubelet(&self.kubelet_cgroup.0).unwrap_or_else(|error| panic!("{}", chain(&error)))
    }

    fn refuses(&self, who: &Factory, port: u16) -> bool {
        [POD_V4, POD_V6].iter().all(|own| errno(connect(&who.tcp(ip(own)), at(own, port))) == libc::ECONNREFUSED)
    }

    /// The app itself answers, and sees who asks.
    fn passes(&self) {
        for own in [POD_V4, POD_V6] {
            let app = self.pod.app.listen(at(own, PROBE));
            let client = self.kubelet.tcp(ip(own));
            connect(&client, at(own, PROBE)).unwrap_or_else(|error| panic!("{own}: {error}"));
            let (accepted, from) = accept(&app);
            assert_eq!(from, local(&client));
            ping(&client, &accepted);
        }
    }
}

fn strict() -> InboundMode {
    InboundMode { default_strict: true, ..InboundMode::default() }
}

fn probes() -> CaptureRules {
    CaptureRules { probe_ports: vec![PROBE], ..CaptureRules::default() }
}

#[test]
fn features_PL5_PA4_probes_pass_in_strict_and_nothing_else_of_the_node_does() {
    if !privileged("probes") {
        return;
    }
    let probed = Probed::new();
    let Probed { kubelet, pod, node, .. } = &probed;
    assert!(probed.refuses(kubelet, PROBE), "nobody has said yet who the kubelet is");
    assert!(probed.follow() && !probed.follow());
    probed.passes();
    assert_eq!(node.kernel().counter(Reason::ProbePassed), 2);
    let _apps = [POD_V4, POD_V6].map(|own| [PROBE, OTHER].map(|port| pod.app.listen(at(own, port))));
    assert!(probed.refuses(kubelet, OTHER), "no probe leads there");
    assert!(probed.refuses(&pod.outside, PROBE), "another process of the node, with the node's address");

    // Where plaintext goes to the agent, a probe passes it.
    pod.enrol_with(node, &InboundMode::default(), &probes());
    drop(_apps);
    probed.passes();
    let client = pod.outside.tcp(ip(POD_V4));
    connect(&client, at(POD_V4, PROBE)).unwrap();
    assert_eq!(accept(&pod.listeners.plaintext[0]).1, local(&client));
}

#[test]
fn features_PL5_a_ticket_ends_with_its_socket_and_cannot_be_taken_over() {
    if !privileged("tickets") {
        return;
    }
    let probed = Probed::new();
    let Probed { kubelet, pod, .. } = &probed;
    probed.follow();
    let app = pod.app.listen(at(POD_V4, PROBE));
    let client = kubelet.tcp(ip(POD_V4));
    connect(&client, at(POD_V4, PROBE)).unwrap();
    let (accepted, _) = accept(&app);
    let ticket = local(&client);
    // Closed at once on both sides: nothing of the connection is left, and its port is free.
    for socket in [client, accepted] {
        socket.set_linger(Some(Duration::ZERO)).unwrap();
    }
    let thief = pod.outside.tcp(ip(POD_V4));
    thief.set_reuse_address(true).unwrap();
    thief.bind(&ticket.into()).unwrap();
    assert_eq!(errno(connect(&thief, at(POD_V4, PROBE))), libc::ECONNREFUSED);
    assert!(!is_ready(&app));
    // One that nobody answers goes too.
    drop(app);
    assert_eq!(errno(connect(&kubelet.tcp(ip(POD_V4)), at(POD_V4, PROBE))), libc::ECONNREFUSED);
    let usage = probed.node.kernel().map_usage();
    let tickets = usage.iter().find(|(name, ..)| *name == "TICKETS").unwrap();
    assert_eq!(tickets.1, 0);
}

#[test]
fn features_PL5_probes_pass_while_the_agent_is_away_and_the_pod_is_closed() {
    if !privileged("probes without an agent") {
        return;
    }
    let mut probed = Probed::new();
    probed.follow();
    drop(probed.node.kernel.take());
    probed.passes();
    let outside = probed.pod.outside_netns.try_clone().unwrap();
    in_netns(outside.as_fd(), || {
        probed.node.restart();
    });
    probed.passes();
    assert!(probed.follow(), "the new agent's program takes the place of the old one's");
    probed.passes();
    // Refused probes would have the pod's containers ended for a fault of ours.
    probed.node.kernel().close(probed.pod.cookie).unwrap();
    probed.passes();
    let app = probed.pod.app.listen(at(POD_V4, PROBE));
    assert!(probed.refuses(&probed.pod.outside, PROBE));
    drop(app);
    // What is released and comes back without probes has none.
    probed.node.kernel().remove(probed.pod.cookie).unwrap();
    probed.pod.enrol(&probed.node, &strict());
    let _apps = [POD_V4, POD_V6].map(|own| probed.pod.app.listen(at(own, PROBE)));
    assert!(probed.refuses(&probed.kubelet, PROBE));
}

#[test]
fn features_PL5_what_is_not_the_kubelets_alone_is_not_taken_for_it() {
    if !privileged("the kubelet's cgroup") {
        return;
    }
    let probed = Probed::new();
    let Probed { node, kubelet_cgroup, .. } = &probed;
    let kernel = node.kernel();
    let parent = kubelet_cgroup.0.parent().unwrap();
    for (folder, reason) in [
        (parent, "not beside each other"),
        (&node.pods.0, "not beside each other"),
        (std::path::Path::new(V2), "root cgroup"),
        (std::path::Path::new("/tmp"), "not a version 2 cgroup"),
        (&parent.join("nobody"), "nobody"),
    ] {
        let error = chain(&kernel.follow_kubelet(folder).unwrap_err());
        assert!(error.contains(reason), "{folder:?}: {error}");
    }
    // One that is refused has no tickets given where the former was, and nobody has when nobody says who the kubelet is.
    for leave in [
        |probed: &Probed| drop(probed.node.kernel().follow_kubelet(&probed.node.pods.0).unwrap_err()),
        |probed: &Probed| {
            assert!(probed.node.kernel().leave_kubelet().unwrap());
        },
    ] {
        probed.follow();
        probed.passes();
        leave(&probed);
        let _apps = [POD_V4, POD_V6].map(|own| probed.pod.app.listen(at(own, PROBE)));
        assert!(probed.refuses(&probed.kubelet, PROBE));
        assert!(!kernel.leave_kubelet().unwrap());
    }
    // A container below the kubelet has another network.
    probed.follow();
    let other = Pod::new(node);
    other.enrol_with(node, &strict(), &probes());
    let container = Factory::new(kubelet_cgroup, other.outside_netns.as_fd());
    let _app = other.app.listen(at(POD_V4, PROBE));
    assert_eq!(errno(connect(&container.tcp(ip(POD_V4)), at(POD_V4, PROBE))), libc::ECONNREFUSED);
}
