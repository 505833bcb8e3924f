//! Several keepers on one node as real processes: one follows another that dies. Connections wait meanwhile and are not refused.
#![allow(
    clippy::unwrap_used,
    clippy::undocumented_unsafe_blocks,
    reason = "test code: a panic is the report, and its system calls are the harness's"
)]
#![allow(non_snake_case, reason = "tests carry the ids of the rows they prove")]

mod agent;

use std::io;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use agent::kernel::privileged;
use agent::{Agent, Client, Host, Pod, eventually};
use nix::sys::signal::Signal;

/// A keeper of a pod, which need not lead.
fn keeper<'a>(host: &'a Host, pod: &str) -> Agent<'a> {
    Agent { host, keeper: command(host, pod).spawn().unwrap() }
}

fn command(host: &Host, pod: &str) -> Command {
    let mut command = host.command();
    command.env("UNDERMESH_STANDBY", pod).env("UNDERMESH_HANDOVER", "60s");
    command
}

fn leads(host: &Host, pod: &str) -> Option<()> {
    let mut asked = Command::new(env!("CARGO_BIN_EXE_mesh-agent"));
    asked.arg("in-charge").arg("--run-dir").arg(host.run_dir()).args(["--standby", pod]).stderr(Stdio::null());
    asked.status().unwrap().success().then_some(())
}

/// The standby has a copy of the pod's sockets.
fn follows(host: &Host, keeper: &Agent<'_>, pod: &Pod) {
    let pid = keeper.keeper.id() as i32;
    eventually("a copy", || agent::refers_to(pid, pod.inode()).then_some(()));
    assert!(keeper.find_worker().is_none(), "{}", host.log());
}

/// Connects all the time while `work` runs. None may be refused.
fn connecting(host: &Host, pod: &Pod, work: impl FnOnce()) {
    let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let connector = scope.spawn(|| -> io::Result<()> {
            while !stop.load(Ordering::Relaxed) {
                pod.connect()?;
                count.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            Ok(())
        });
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        stop.store(true, Ordering::Relaxed);
        done.unwrap();
        connector.join().unwrap().unwrap_or_else(|error| panic!("{error}\n{}", host.log()));
        assert!(count.load(Ordering::Relaxed) > 0);
    });
}

#[test]
fn hardening_F1_another_keeper_follows_one_that_was_killed_and_nobody_is_refused() {
    if !privileged("killed keeper with a standby") {
        return;
    }
    let host = Host::new();
    // None is dropped before the end: that would end all of them.
    let mut keepers = vec![keeper(&host, "a")];
    eventually("the enrolment socket", || host.client().ok());
    let pod = Pod::new(&host, "web");
    Client::greeted(&host).add(&pod);
    for round in 0..3 {
        let standby = keeper(&host, "a");
        follows(&host, &standby, &pod);
        let first = &mut keepers[round];
        let old = first.worker();
        connecting(&host, &pod, || {
            first.signal(Signal::SIGKILL);
            first.wait();
            eventually("another worker", || standby.find_worker().filter(|pid| *pid != old));
            eventually("the pod is served", || (host.client().is_ok() && host.pods() == ["web"]).then_some(()));
        });
        eventually("the other leads", || leads(&host, "a"));
        assert!(host.log().matches("following it").count() > round, "{}", host.log());
        keepers.push(standby);
    }
}

#[test]
fn hardening_F2_a_new_pods_agent_follows_in_order_and_old_connections_go_on() {
    if !privileged("rollout") {
        return;
    }
    let host = Host::new();
    let mut old = keeper(&host, "old");
    eventually("the enrolment socket", || host.client().ok());
    let pod = Pod::new(&host, "web");
    Client::greeted(&host).add(&pod);
    let mut old_standby = keeper(&host, "old");
    follows(&host, &old_standby, &pod);
    let old_worker = old.worker();
    let live = pod.connect().unwrap();
    let mut new = None;
    connecting(&host, &pod, || {
        let started = keeper(&host, "new");
        eventually("the new pod leads", || leads(&host, "new"));
        eventually("the new worker serves", || (host.client().is_ok() && host.pods() == ["web"]).then_some(()));
        new = Some(started);
    });
    let mut new = new.unwrap();
    assert_ne!(new.worker(), old_worker);
    // The old one lets its connections end, and waits in line; it is not given the lead again by itself.
    assert!(old.find_worker().is_none_or(|worker| worker == old_worker), "{}", host.log());
    assert!(leads(&host, "old").is_none());
    drop(live);
    old.signal(Signal::SIGTERM);
    old_standby.signal(Signal::SIGTERM);
    assert_eq!((old.wait().code(), old_standby.wait().code()), (Some(0), Some(0)));
    eventually("the pod is reached", || pod.connect().ok());
    assert_eq!(host.pods(), ["web"]);
    new.signal(Signal::SIGTERM);
    assert_eq!(new.wait().code(), Some(0));
    assert_eq!(pod.connect().unwrap_err().raw_os_error(), Some(libc::ECONNREFUSED));
}

#[test]
fn hardening_F2_a_new_agent_that_fails_is_taken_back_from() {
    if !privileged("failed rollout") {
        return;
    }
    let host = Host::new();
    let old = keeper(&host, "old");
    eventually("the enrolment socket", || host.client().ok());
    let pod = Pod::new(&host, "web");
    Client::greeted(&host).add(&pod);
    let mut new = None;
    connecting(&host, &pod, || {
        // Its worker has no such address.
        let child = command(&host, "new").args(["--readiness", "198.18.255.1:15021"]).spawn().unwrap();
        new = Some(Agent { host: &host, keeper: child });
        eventually("the lead is taken back", || host.log().contains("did not follow: going on").then_some(()));
        eventually("the old one leads", || leads(&host, "old"));
        eventually("the old pod's agent serves", || (host.client().is_ok() && host.pods() == ["web"]).then_some(()));
    });
    assert_ne!(old.find_worker(), None);
}
