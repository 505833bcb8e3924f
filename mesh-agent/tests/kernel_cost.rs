//! What the hooks cost (R21). Ratios within one run on one machine; the bounds are loose because tests run beside each other.

#![allow(
    clippy::unwrap_used,
    clippy::undocumented_unsafe_blocks,
    reason = "tests panic, and every unsafe block here is one system call"
)]

mod kernel;

use std::time::{Duration, Instant};

use kernel::*;

const CONNECTS: usize = 300;

/// Time of an undisturbed connect on loopback: one of the fastest, for tests run beside each other.
fn undisturbed(pod: &Pod) -> Duration {
    let listener = pod.app.listen(at("127.0.0.1", 9000));
    let mut times: Vec<Duration> = (0..CONNECTS)
        .map(|_| {
            let app = pod.app.tcp(ip("127.0.0.1"));
            let start = Instant::now();
            app.connect(&at("127.0.0.1", 9000).into()).unwrap();
            let took = start.elapsed();
            accept(&listener);
            took
        })
        .collect();
    times.sort();
    times[CONNECTS / 10]
}

#[test]
fn loopback_connects_cost_next_to_nothing() {
    if !privileged("loopback_connects_cost_next_to_nothing") {
        return;
    }
    let mut node = Node::new();
    let pod = Pod::new(&node);
    let attached = undisturbed(&pod);
    pod.enrol(&node, &Default::default());
    let enrolled = undisturbed(&pod);
    let start = Instant::now();
    for _ in 0..5 {
        pod.enrol(&node, &Default::default());
    }
    let enrol = start.elapsed() / 5;
    let start = Instant::now();
    node.kernel().remove(pod.cookie).unwrap();
    let remove = start.elapsed();
    drop(node.kernel.take());
    uninstall(&node.config);
    let plain = undisturbed(&pod);
    println!(
        "connect on loopback: plain {plain:?}, hooks attached {attached:?}, enrolled {enrolled:?}; enrol {enrol:?}, remove {remove:?}"
    );
    assert!(attached < plain + Duration::from_micros(20), "un-enrolled: {attached:?} against {plain:?}");
    assert!(enrolled < plain + Duration::from_micros(30), "enrolled: {enrolled:?} against {plain:?}");
    assert!(enrol < Duration::from_millis(500), "{enrol:?}");
}
