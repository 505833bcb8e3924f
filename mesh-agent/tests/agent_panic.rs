//! Panics in a real agent (F6), without a control plane: in what clients talk to, in the start of a pod, and in tasks that the agent cannot do without.
#![allow(
    clippy::unwrap_used,
    clippy::undocumented_unsafe_blocks,
    reason = "test code: a panic is the report, and its system calls are the harness's"
)]
#![allow(non_snake_case, reason = "tests carry the ids of the rows they prove")]

mod agent;

use std::fs::File;
use std::os::fd::AsFd;

use agent::kernel::privileged;
use agent::{Agent, Client, Host, Pod, eventually, refers_to};
use mesh_proto::enrol::{Keep, request::Payload};

fn panics(host: &Host) -> String {
    let metrics = host.http(15020, "/metrics");
    metrics.lines().find(|line| line.starts_with("panics_total ")).unwrap_or_default().to_owned()
}

/// A pod that was enrolled before is served: its connections are captured, and the agent knows of them.
fn serves(host: &Host, pod: &Pod) {
    eventually(&format!("service for {}", pod.name), || {
        let _connection = pod.connect().ok()?;
        eventually("the agent's answer", || host.client().ok());
        host.get("/connections").contains(agent::NOBODY).then_some(())
    });
}

/// After so many panics it is the same worker still, and these pods are served.
fn goes_on(agent: &Agent<'_>, worker: i32, count: usize, pods: &[&Pod]) {
    pods.iter().for_each(|pod| serves(agent.host, pod));
    assert_eq!(panics(agent.host), format!("panics_total {count}"));
    assert_eq!(agent.worker(), worker);
}

fn another_worker(agent: &Agent<'_>, old: i32) {
    eventually("another worker", || agent.find_worker().filter(|pid| *pid != old));
    eventually("the enrolment socket", || agent.host.client().ok());
}

#[test]
fn hardening_F6_a_client_whose_conversation_panics_is_gone_and_others_are_not() {
    if !privileged("panics") {
        return;
    }
    let host = Host::new();
    let agent = host.start();
    let (worker, client, kept) = (agent.worker(), Client::greeted(&host), Pod::new(&host, "kept"));
    client.add(&kept);
    // The answer to an enrolment takes two seconds without an authority. A machine that takes longer for what follows tries again.
    let (rounds, lost) = (1..=5)
        .find_map(|round| {
            let (unlucky, pod) = (Client::greeted(&host), Pod::new(&host, &format!("lost-{round}")));
            unlucky.send_add(&pod);
            // The request has been read, and its sockets are open: the next packet is the one that panics.
            let keeper = agent.keeper.id() as i32;
            eventually("the start of the pod", || refers_to(keeper, pod.inode()).then_some(()));
            host.fail_at(&["enrolment"]);
            let _ = unlucky.send_bytes(b"anything", &[]);
            let heard = unlucky.receive();
            eventually("the panic", || host.not_failed().is_empty().then_some(()));
            if heard.is_some() {
                client.del(&pod);
            }
            heard.is_none().then_some((round, pod))
        })
        .unwrap();
    // What it asked for and never heard of is rolled back, as of any client that dies.
    eventually("the end of its pod", || (host.pods() == ["kept"] && !refers_to(worker, lost.inode())).then_some(()));
    client.keep(&kept);
    goes_on(&agent, worker, rounds, &[&kept]);
}

#[test]
fn hardening_F6_a_start_that_panics_is_told_and_can_be_asked_for_again() {
    if !privileged("panics") {
        return;
    }
    let host = Host::new();
    let agent = host.start();
    let (worker, client) = (agent.worker(), Client::greeted(&host));
    let (kept, pod) = (Pod::new(&host, "kept"), Pod::new(&host, "pod"));
    client.add(&kept);
    host.fail_at(&["start"]);
    let cgroup = File::open(&pod.cgroup.0).unwrap();
    let answer = client.ask(Payload::Add(pod.add()), &[pod.netns.as_fd(), cgroup.as_fd()]).unwrap();
    assert!(!answer.done && answer.retry && answer.error.contains("panicked"), "{answer:?}");
    assert_eq!((host.not_failed().as_str(), host.pods()), ("", vec!["kept".to_owned()]));
    assert!(!refers_to(agent.keeper.id() as i32, pod.inode()), "nobody else would have the keeper let go");
    client.add(&pod);
    goes_on(&agent, worker, 1, &[&pod, &kept]);
}

#[test]
fn hardening_F6_a_task_that_the_agent_cannot_do_without_is_not_missed() {
    if !privileged("panics") {
        return;
    }
    let host = Host::new();
    let mut agent = host.start();
    let (client, pod) = (Client::greeted(&host), Pod::new(&host, "pod"));
    client.add(&pod);
    serves(&host, &pod);
    let worker = agent.worker();
    host.fail_at(&["accept"]);
    let _unlucky = pod.connect().unwrap();
    another_worker(&agent, worker);
    assert_eq!(host.not_failed(), "");
    assert_eq!(agent.keeper.try_wait().unwrap(), None, "the keeper stays");
    serves(&host, &pod);
    let client = Client::greeted(&host);
    client.ok(Payload::Keep(Keep { uid: pod.uid() }), &[]);
}

#[test]
fn hardening_F6_more_than_ten_panics_in_a_minute_are_too_many() {
    if !privileged("panics") {
        return;
    }
    let host = Host::new();
    let agent = host.start();
    let (worker, client, pod) = (agent.worker(), Client::greeted(&host), Pod::new(&host, "pod"));
    client.add(&pod);
    for _ in 0..10 {
        host.fail_at(&["http"]);
        assert_eq!(host.get("/healthz"), "", "the connection dies");
        assert!(host.get("/healthz").contains("200 OK"), "the next one does not");
    }
    goes_on(&agent, worker, 10, &[&pod]);
    host.fail_at(&["http"]);
    assert_eq!(host.get("/healthz"), "");
    another_worker(&agent, worker);
    assert!(host.log().contains("more than 10 panics within a minute"), "it must say why");
    serves(&host, &pod);
    eventually("the pod in the dump", || (host.pods() == ["pod"]).then_some(()));
    assert_eq!(panics(&host), "panics_total 0");
}
