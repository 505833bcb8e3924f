//! Capture of TCP connects: what the app sees, what the agent learns, what is refused.

#![allow(
    clippy::unwrap_used,
    clippy::undocumented_unsafe_blocks,
    reason = "tests panic, and every unsafe block here is one system call"
)]
#![allow(non_snake_case, reason = "tests carry the ids of the fault catalogue")]

mod kernel;

use kernel::*;
use mesh_common::Reason;

#[test]
fn a_connect_reaches_the_agent_and_both_see_the_truth() {
    if !privileged("a_connect_reaches_the_agent_and_both_see_the_truth") {
        return;
    }
    let node = Node::new();
    let pod = Pod::enrolled(&node);
    for (index, to) in [at("198.18.9.9", 8080), at("fd00:198:9::9", 8080)].into_iter().enumerate() {
        let app = pod.app.tcp(to.ip());
        connect(&app, to).unwrap();
        let (agent, client) = accept(&pod.listeners.outbound[index]);
        assert_eq!(client, local(&app), "the agent sees the app's own address");
        assert_eq!(client.ip(), ip([POD_V4, POD_V6][index]));
        assert_eq!(node.kernel().original_destination(pod.cookie, local(&agent)), Some(to));
        assert_eq!(peer(&app), to);
        ping(&app, &agent);
    }
    assert_eq!(node.kernel().counter(Reason::Captured), 2);
}

/// F27: with no place left for the client's address the agent learns that the app does not see it, and refuses.
#[test]
fn hardening_F27_a_full_client_map_is_told() {
    if !privileged("hardening_F27_a_full_client_map_is_told") {
        return;
    }
    let node = Node::with(|config| config.limits.clients = 1);
    let pod = Pod::enrolled(&node);
    let (app, client) = (pod.app.listen(at(POD_V4, 9000)), at("198.18.7.7", 4242));
    // An app that accepts nobody: whoever connects to it waits, and keeps its place in the map.
    let deaf = pod.app.listen(at(POD_V4, 9001));
    deaf.listen(0).unwrap();
    let waiting = |socket: &socket2::Socket| {
        socket.set_nonblocking(true).unwrap();
        let _ = socket.connect(&at(POD_V4, 9001).into());
    };
    let fillers: Vec<_> = (0..4).map(|_| pod.app.tcp(ip(POD_V4))).collect();
    fillers.iter().for_each(waiting);
    let agent = || {
        let agent = pod.agent.tcp(ip(POD_V4));
        agent.bind(&at(POD_V4, 0).into()).unwrap();
        node.kernel().set_client(std::os::fd::AsFd::as_fd(&agent), client).unwrap();
        agent
    };
    let shown = |socket: &socket2::Socket| node.kernel().client_shown(std::os::fd::AsFd::as_fd(socket));
    let first = agent();
    waiting(&first);
    assert!(shown(&first));

    let second = agent();
    connect(&second, at(POD_V4, 9000)).unwrap();
    let (_, seen) = accept(&app);
    assert!(!shown(&second));
    assert_eq!(seen.ip(), ip(POD_V4), "which is why the agent must not let it go on");
    assert_eq!(node.kernel().counter(Reason::ClientMapFull), 1);

    drop(first);
    let third = agent();
    connect(&third, at(POD_V4, 9000)).unwrap();
    assert!(shown(&third));
    assert_eq!(accept(&app).1, client);
}

#[test]
fn an_app_sees_the_client_that_the_agent_names() {
    if !privileged("an_app_sees_the_client_that_the_agent_names") {
        return;
    }
    let node = Node::new();
    let pod = Pod::enrolled(&node);
    for (own, client) in [(POD_V4, at("198.18.7.7", 4242)), (POD_V6, at("fd00:198:7::7", 4242))] {
        let app = pod.app.listen(at(own, 9000));
        let agent = pod.agent.tcp(ip(own));
        agent.bind(&at(own, 0).into()).unwrap();
        node.kernel().set_client(std::os::fd::AsFd::as_fd(&agent), client).unwrap();
        connect(&agent, at(own, 9000)).unwrap();
        assert!(node.kernel().client_shown(std::os::fd::AsFd::as_fd(&agent)));
        let (accepted, seen) = accept(&app);
        assert_eq!(seen, client, "accept4");
        assert_eq!(peer(&accepted), client, "getpeername");
        assert_eq!(local(&accepted), at(own, 9000));
        ping(&accepted, &agent);
    }
    assert_eq!(
        node.kernel().map_usage().iter().find(|map| map.0 == "CLIENTS").unwrap().1,
        0,
        "nothing stays in the map"
    );
}
