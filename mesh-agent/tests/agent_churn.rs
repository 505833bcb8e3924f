//! Pods that come and go at speed on a real agent (F20, F55, R25): keeper and worker give everything back.
#![allow(
    clippy::unwrap_used,
    clippy::undocumented_unsafe_blocks,
    reason = "test code: a panic is the report, and its system calls are the harness's"
)]
#![allow(non_snake_case, reason = "tests carry the ids of the rows they prove")]

mod agent;

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};

use agent::kernel::{Cgroup, entries, ip_command, new_netns, privileged};
use agent::{Client, Host, eventually, open_fds, open_files, refers_to, within_deadline};
use mesh_proto::enrol::{Add, Del, Response, request::Payload};

const PODS: usize = 100;

fn netns() -> OwnedFd {
    let netns = new_netns();
    ip_command(netns.as_fd(), "link set lo up");
    ip_command(netns.as_fd(), "addr add 198.18.0.2/32 dev lo");
    netns
}

fn add(uid: &str, n: usize) -> Add {
    Add {
        uid: uid.into(),
        namespace: "default".into(),
        name: uid.into(),
        // Identities come and go too, each with two pods.
        service_account: format!("pair-{}", n / 2),
        ips: vec!["198.18.0.2".into()],
        dns: None,
        node: "node-a".into(),
        capture: None,
    }
}

fn all_done(client: &Client, count: usize) {
    for n in 0..count {
        assert_eq!(client.receive(), Some(Response { done: true, ..Response::default() }), "answer {n}");
    }
}

#[test]
fn hardening_F20_three_hundred_pods_in_waves_leave_the_agent_as_it_was() {
    if !privileged("churn") {
        return;
    }
    let host = Host::new();
    let agent = host.start();
    let cgroup = Cgroup::new(&format!("{}/pods/churn", host.instance));
    let folder = File::open(&cgroup.0).unwrap();
    let client = Client::greeted(&host);
    let (worker, keeper) = (agent.worker(), agent.keeper.id() as i32);
    let mut fresh = None;
    // The first pod makes what stays: threads, their sockets, the way to the certificate authority.
    for (round, count) in [1, PODS, PODS, PODS].into_iter().enumerate() {
        let pods: Vec<(String, OwnedFd)> = (0..count).map(|n| (format!("pod-{round}-{n}"), netns())).collect();
        for (n, (uid, netns)) in pods.iter().enumerate() {
            client.send(Payload::Add(add(uid, n)), &[netns.as_fd(), folder.as_fd()]);
        }
        all_done(&client, count);
        assert_eq!(host.pods().len(), count);
        for (uid, _) in &pods {
            client.send(Payload::Del(Del { uid: uid.clone() }), &[]);
        }
        all_done(&client, count);
        for (uid, netns) in &pods {
            let inode = nix::sys::stat::fstat(netns).unwrap().st_ino;
            eventually(&format!("no reference to {uid}"), || {
                (!refers_to(worker, inode) && !refers_to(keeper, inode)).then_some(())
            });
        }
        let fresh = fresh.get_or_insert_with(|| [open_files(worker), open_files(keeper)]);
        let as_before = || (open_fds(worker) <= fresh[0].len() && open_fds(keeper) <= fresh[1].len()).then_some(());
        if within_deadline(as_before).is_none() {
            let now = [open_files(worker), open_files(keeper)];
            panic!("round {round}: more descriptors than after one pod (worker, keeper): {fresh:#?}\nnow {now:#?}");
        }
    }
    let dump = host.get("/config_dump");
    assert!(!dump.contains("spiffe://cluster.local/ns/default/sa/pair-"), "certificates of pods that are gone");
    let maps = host.pinned().join("maps");
    for map in ["PODS", "SLOTS", "SLOT_OF", "SLOT_USE", "SLOT_FREED", "INBOUND_PORTS", "CLIENTS"] {
        assert_eq!(entries(&maps.join(map)), 0, "{map}");
    }
    assert_eq!(fs::read_dir(host.pinned().join("pods")).unwrap().count(), 0);
    assert_eq!(agent.worker(), worker, "the agent must not have died");
}
