//! Keeper and worker as real processes: listening sockets survive a killed worker, the two second rule, orderly stops, one agent per node.
#![allow(
    clippy::unwrap_used,
    clippy::undocumented_unsafe_blocks,
    reason = "test code: a panic is the report, and its system calls are the harness's"
)]
#![allow(non_snake_case, reason = "tests carry the ids of the rows they prove")]

mod agent;

use std::time::{Duration, Instant};

use agent::kernel::privileged;
use agent::{Client, Host, Pod, eventually, refers_to};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

#[test]
fn hardening_F1_connects_wait_while_a_killed_worker_is_replaced() {
    if !privileged("killed worker") {
        return;
    }
    let host = Host::new();
    let agent = host.start();
    let pod = Pod::new(&host, "web");
    let client = Client::greeted(&host);
    client.add(&pod);
    client.snapshot();
    pod.connect().unwrap();
    for round in 0..5 {
        agent.kill_worker();
        // At once, while no worker runs: the backlog takes it.
        pod.connect().unwrap_or_else(|error| panic!("round {round}: {error}"));
        eventually("the pod is served again", || (host.client().is_ok() && host.pods() == ["web"]).then_some(()));
        pod.connect().unwrap_or_else(|error| panic!("round {round}, served: {error}"));
    }
    assert!(host.log().contains("taken_over=true"));
    // A client that comes back finds the pod known.
    let client = Client::greeted(&host);
    client.keep(&pod);
    client.snapshot();
    assert_eq!(host.pods(), ["web"]);
}

#[test]
fn hardening_F1_connects_wait_while_a_worker_starts_and_after_two_seconds_without_one_they_are_refused_at_once() {
    if !privileged("two second rule") {
        return;
    }
    let host = Host::new();
    let agent = host.start();
    let pod = Pod::new(&host, "web");
    let client = Client::greeted(&host);
    client.add(&pod);
    // The replacement starts, and comes no further.
    host.hold_workers();
    let died = Instant::now();
    agent.kill_worker();
    pod.connect().expect("within the hold time connects wait");
    eventually("the end of the hold time", || (died.elapsed() > Duration::from_millis(2200)).then_some(()));
    pod.connect().expect("one is starting: they wait on");
    // Its end is that of the wait.
    agent.kill_worker();
    let refused = eventually("a refusal", || pod.connect().err());
    assert_eq!(refused.raw_os_error(), Some(libc::ECONNREFUSED));
    // From then on nothing hangs: a SYN without an answer would be sent again after a second.
    let asked = Instant::now();
    assert_eq!(pod.connect().unwrap_err().raw_os_error(), Some(libc::ECONNREFUSED));
    assert!(asked.elapsed() < Duration::from_millis(900), "a refusal took {:?}", asked.elapsed());
    // The next worker opens fresh sockets from what the keeper still holds.
    assert!(!host.log().contains("taking over"), "a worker that was held went on");
    host.release_workers();
    agent.kill_worker();
    eventually("the pod is served again", || pod.connect().ok());
    eventually("the pod is shown", || (host.pods() == ["web"]).then_some(()));
}

/// A failure of the agent's never makes a pod that was captured go its ordinary, unprotected way.
#[test]
fn hardening_F1_a_pod_that_cannot_be_taken_over_is_refused_until_it_can() {
    if !privileged("take over fails") {
        return;
    }
    let host = Host::new();
    let agent = host.start();
    let (pod, other) = (Pod::new(&host, "web"), Pod::new(&host, "other"));
    let client = Client::greeted(&host);
    client.add(&pod);
    client.add(&other);
    // What the next worker finds where the pod's sockets should be.
    let in_the_way = host.pins(&pod).join("listeners");
    std::fs::remove_file(&in_the_way).unwrap();
    std::fs::create_dir(&in_the_way).unwrap();
    agent.kill_worker();
    eventually("the failure is told", || host.log().contains("cannot be taken over").then_some(()));
    eventually("the other is served", || (host.client().is_ok() && host.pods() == ["other"]).then_some(()));
    other.connect().unwrap();
    for _ in 0..20 {
        assert_eq!(pod.connect().unwrap_err().raw_os_error(), Some(libc::ECONNREFUSED));
    }
    // Known to a client that comes back, and served as soon as it can be.
    Client::greeted(&host).keep(&pod);
    std::fs::remove_dir(&in_the_way).unwrap();
    eventually("the pod is served", || pod.connect().ok());
    eventually("both are shown", || (host.pods() == ["other", "web"]).then_some(()));
    Client::greeted(&host).del(&pod);
    assert!(!host.pins(&pod).exists());
}

#[test]
fn an_orderly_stop_ends_both_and_leaves_the_pods_captured() {
    if !privileged("orderly stop") {
        return;
    }
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let host = Host::new();
        let mut agent = host.start();
        let pod = Pod::new(&host, "web");
        Client::greeted(&host).add(&pod);
        let worker = agent.worker();
        let live = pod.connect().unwrap();
        agent.signal(signal);
        assert_eq!(agent.wait().code(), Some(0));
        assert!(!std::path::Path::new(&format!("/proc/{worker}/exe")).exists());
        // Refused, not let through and not hanging.
        let asked = Instant::now();
        assert_eq!(pod.connect().unwrap_err().raw_os_error(), Some(libc::ECONNREFUSED));
        assert!(asked.elapsed() < Duration::from_millis(900));
        drop(live);
    }
}

#[test]
fn a_second_signal_ends_the_drain() {
    if !privileged("second signal") {
        return;
    }
    let host = Host::new();
    let mut command = host.command();
    // The later flag would be a usage error: the command line of the harness says 500 ms, so use the environment of a fresh one.
    command.env("UNDERMESH_LOG_LEVEL", "debug");
    let mut agent = agent::Agent { host: &host, keeper: command.spawn().unwrap() };
    eventually("the enrolment socket", || host.client().ok());
    agent.signal(Signal::SIGTERM);
    agent.signal(Signal::SIGTERM);
    assert_eq!(agent.wait().code(), Some(0));
}

#[test]
fn a_dead_keeper_takes_its_worker_along() {
    if !privileged("dead keeper") {
        return;
    }
    let host = Host::new();
    let mut agent = host.start();
    let pod = Pod::new(&host, "web");
    Client::greeted(&host).add(&pod);
    let worker = agent.worker();
    agent.signal(Signal::SIGKILL);
    agent.wait();
    eventually("the end of the worker", || kill(Pid::from_raw(worker), None).is_err().then_some(()));
    assert_eq!(pod.connect().unwrap_err().raw_os_error(), Some(libc::ECONNREFUSED));
    // A new agent knows nothing of the pod but refuses for it until a client names it.
    drop(agent);
    let _agent = host.start();
    assert_eq!(pod.connect().unwrap_err().raw_os_error(), Some(libc::ECONNREFUSED));
    let client = Client::greeted(&host);
    client.add(&pod);
    client.snapshot();
    pod.connect().unwrap();
}

#[test]
fn hardening_F8_a_second_agent_is_refused_in_one_line() {
    if !privileged("second agent") {
        return;
    }
    let host = Host::new();
    let agent = host.start();
    let output =
        host.command().stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(69));
    let line = String::from_utf8(output.stderr).unwrap();
    let expected = format!(
        "mesh-agent: another agent (pid {}) already runs with the run folder {:?}\n",
        agent.keeper.id(),
        host.run_dir()
    );
    assert_eq!(line, expected);
    // Another folder, the same instance: the kernel objects have a lock of their own, and there is no use in trying again.
    let other = host.folder.path().join("other-run");
    let mut command = host.command_in(&other);
    command.args(["--metrics", "127.0.0.1:0", "--readiness", "127.0.0.1:0"]);
    let output = command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).output().unwrap();
    let line = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(69), "{line}");
    assert!(line.contains("in use by another agent") && line.lines().count() == 1, "{line}");
    // The first is untouched.
    assert!(host.client().is_ok());
}

#[test]
fn hardening_F22_a_removed_pod_leaves_no_reference_to_its_namespace() {
    if !privileged("no reference") {
        return;
    }
    let host = Host::new();
    let agent = host.start();
    let client = Client::greeted(&host);
    let idle = agent::open_fds(agent.worker());
    for round in 0..5 {
        let pod = Pod::new(&host, &format!("web-{round}"));
        client.add(&pod);
        let live = pod.connect().unwrap();
        let (worker, keeper) = (agent.worker(), agent.keeper.id() as i32);
        assert!(refers_to(worker, pod.inode()) && refers_to(keeper, pod.inode()));
        client.del(&pod);
        // The socket thread may still be in the namespace for a moment; nothing else may.
        eventually("no reference", || {
            (!refers_to(worker, pod.inode()) && !refers_to(keeper, pod.inode())).then_some(())
        });
        // Its connections were cut, not forgotten.
        assert!(matches!(live.recv(&mut [std::mem::MaybeUninit::uninit()]), Ok(0) | Err(_)));
    }
    let left = eventually("descriptors are closed", || {
        let now = agent::open_fds(agent.worker());
        (now <= idle + 4).then_some(now)
    });
    assert!(left <= idle + 4, "{idle} descriptors before, {left} after");
}
