//! Capture of TCP connects: what the app sees, what the agent learns, what is refused.

#![allow(
    clippy::unwrap_used,
    clippy::undocumented_unsafe_blocks,
    reason = "tests panic, and every unsafe block here is one system call"
)]

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
