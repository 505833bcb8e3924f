//! The self-test at start. A file of its own: the process itself has to sit in the agent's cgroup.

#![allow(
    clippy::unwrap_used,
    clippy::undocumented_unsafe_blocks,
    reason = "tests panic, and every unsafe block here is one system call"
)]

mod kernel;

use kernel::*;
use mesh_agent::bpf::{Kernel, KernelError};

#[test]
fn the_self_test_passes_in_the_agents_cgroup_and_names_what_is_wrong_elsewhere() {
    if !privileged("the_self_test_passes_in_the_agents_cgroup_and_names_what_is_wrong_elsewhere") {
        return;
    }
    let mut node = Node::new();
    drop(node.kernel.take());
    node.config.self_test = true;
    match Kernel::start(node.config.clone()) {
        Err(KernelError::SelfTest(reason)) => assert!(reason.contains("is the agent in its cgroup?"), "{reason}"),
        other => panic!("{other:?}"),
    }

    // What an agent left that died in the middle of its test.
    std::fs::create_dir(node.pods.0.join("undermesh-selftest-1")).unwrap();
    let join = |cgroup: &std::path::Path| std::fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string());
    join(&node.agent.0).unwrap();
    let start = std::time::Instant::now();
    let started = Kernel::start(node.config.clone());
    let took = start.elapsed();
    join(V2.as_ref()).unwrap();
    let kernel = started.unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert!(kernel.enrolled().is_empty() && kernel.degradations().is_empty());
    assert_eq!(std::fs::read_dir(&node.pods.0).unwrap().flatten().filter(|entry| entry.path().is_dir()).count(), 0);
    println!("start with self-test took {took:?}");
    node.kernel = Some(kernel);
}
