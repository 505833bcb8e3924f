//! The enrolment socket of a real agent, spoken packet by packet: bad input, idempotence, rollback, restarts in the middle.
#![allow(
    clippy::unwrap_used,
    clippy::undocumented_unsafe_blocks,
    reason = "test code: a panic is the report, and its system calls are the harness's"
)]
#![allow(non_snake_case, reason = "tests carry the ids of the rows they prove")]

mod agent;

use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use agent::kernel::privileged;
use agent::{Client, Host, Pod, eventually, refers_to};
use mesh_proto::enrol::{Add, Del, Hello, Keep, Request, Snapshot, request::Payload};
use prost::Message;

const REFUSED: u32 = 2;
const CONFLICT: u32 = 3;
const PROTOCOL: u32 = 1;
const UNKNOWN: u32 = 4;

fn open(path: &std::path::Path) -> OwnedFd {
    File::open(path).unwrap().into()
}

/// Only root reaches the socket, whatever the file mode says afterwards.
#[test]
fn hardening_B128_other_users_are_refused() {
    if !privileged("other users") {
        return;
    }
    use std::os::unix::fs::PermissionsExt;
    let host = Host::new();
    let _agent = host.start();
    let mode = |path: std::path::PathBuf| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(host.run_dir()), 0o700);
    assert_eq!(mode(host.run_dir().join("enrol.sock")), 0o600);
    assert_eq!(mode(host.run_dir().join("admin.sock")), 0o600);
    // A process of another user that got hold of a way to the sockets all the same.
    for path in [
        host.folder.path().to_owned(),
        host.run_dir(),
        host.run_dir().join("enrol.sock"),
        host.run_dir().join("admin.sock"),
    ] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
    }
    for (socket, kind) in [("enrol.sock", libc::SOCK_SEQPACKET), ("admin.sock", libc::SOCK_STREAM)] {
        let path = host.run_dir().join(socket);
        assert_eq!(as_nobody(&path, kind), 0, "{socket}: the server must hang up without an answer");
    }
}

/// In a child of another user: connects, sends, returns how many bytes came back (0: hung up).
fn as_nobody(path: &std::path::Path, kind: i32) -> i32 {
    let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: between fork and _exit only system calls and stack memory.
    unsafe {
        let pid = libc::fork();
        if pid == 0 {
            let mut address: libc::sockaddr_un = std::mem::zeroed();
            address.sun_family = libc::AF_UNIX as _;
            std::ptr::copy_nonoverlapping(path.as_ptr(), address.sun_path.as_mut_ptr(), path.as_bytes_with_nul().len());
            if libc::setresuid(65534, 65534, 65534) != 0 {
                libc::_exit(100);
            }
            let fd = libc::socket(libc::AF_UNIX, kind, 0);
            if libc::connect(fd, (&raw const address).cast(), size_of_val(&address) as _) != 0 {
                libc::_exit(101);
            }
            let hello = *b"\x0a\x02\x08\x01";
            libc::send(fd, hello.as_ptr().cast(), hello.len(), libc::MSG_NOSIGNAL);
            let mut answer = [0u8; 64];
            let received = libc::recv(fd, answer.as_mut_ptr().cast(), answer.len(), 0);
            libc::_exit(if received > 0 { received as i32 } else { 0 });
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(pid, &raw mut status, 0), pid);
        libc::WEXITSTATUS(status)
    }
}

#[test]
fn hardening_B129_B133_B134_a_pod_that_is_not_what_it_claims_is_refused_alone() {
    if !privileged("bad pods") {
        return;
    }
    let host = Host::new();
    let agent = host.start();
    let client = Client::greeted(&host);
    let (good, other) = (Pod::new(&host, "good"), Pod::new(&host, "other"));
    client.add(&good);

    let cgroup = open(&other.cgroup.0);
    let file: OwnedFd = tempfile::tempfile().unwrap().into();
    let own: OwnedFd = host.netns.try_clone().unwrap();
    // Where process 1 may not be looked at, the row repeats the agent's own.
    let first = File::open("/proc/1/ns/net").map(OwnedFd::from).unwrap_or_else(|_| host.netns.try_clone().unwrap());
    let mount = open(std::path::Path::new("/proc/self/ns/mnt"));
    let status = open(std::path::Path::new("/proc/self/status"));
    let agents = open(&host.agent.0);
    let parents = open(&host.pods.0);
    let ordinary = open(std::path::Path::new("/tmp"));
    let netns = || other.netns.as_fd();
    let with = |change: &dyn Fn(&mut Add)| {
        let mut add = other.add();
        change(&mut add);
        add
    };
    let plain = with(&|_| {});
    let two = [netns(), cgroup.as_fd()];
    let rows: Vec<(&str, Add, Vec<BorrowedFd<'_>>, u32)> = vec![
        ("no descriptor", plain.clone(), vec![], REFUSED),
        ("one descriptor", plain.clone(), vec![netns()], REFUSED),
        ("three descriptors", plain.clone(), vec![netns(), cgroup.as_fd(), file.as_fd()], REFUSED),
        ("a file for a netns", plain.clone(), vec![file.as_fd(), cgroup.as_fd()], REFUSED),
        ("a file of proc", plain.clone(), vec![status.as_fd(), cgroup.as_fd()], REFUSED),
        ("a mount namespace", plain.clone(), vec![mount.as_fd(), cgroup.as_fd()], REFUSED),
        ("swapped", plain.clone(), vec![cgroup.as_fd(), netns()], REFUSED),
        ("the agent's netns", plain.clone(), vec![own.as_fd(), cgroup.as_fd()], REFUSED),
        ("the machine's netns", plain.clone(), vec![first.as_fd(), cgroup.as_fd()], REFUSED),
        (
            "another pod's netns",
            with(&|add| add.ips = vec![good.address.to_string()]),
            vec![good.netns.as_fd(), cgroup.as_fd()],
            CONFLICT,
        ),
        ("the agent's cgroup", plain.clone(), vec![netns(), agents.as_fd()], REFUSED),
        ("the cgroup of all pods", plain.clone(), vec![netns(), parents.as_fd()], REFUSED),
        ("a folder for a cgroup", plain.clone(), vec![netns(), ordinary.as_fd()], REFUSED),
        ("no address", with(&|add| add.ips.clear()), two.to_vec(), REFUSED),
        ("an address of somebody else", with(&|add| add.ips = vec![good.address.to_string()]), two.to_vec(), REFUSED),
        ("two addresses of a family", with(&|add| add.ips.push("198.18.250.250".into())), two.to_vec(), REFUSED),
        ("loopback", with(&|add| add.ips = vec!["127.0.0.1".into()]), two.to_vec(), REFUSED),
        ("not an address", with(&|add| add.ips = vec!["198.18.0.256".into()]), two.to_vec(), REFUSED),
        ("no uid", with(&|add| add.uid.clear()), two.to_vec(), REFUSED),
        ("a path as namespace", with(&|add| add.namespace = "../x".into()), two.to_vec(), REFUSED),
        ("a slash in the account", with(&|add| add.service_account = "a/ns/b".into()), two.to_vec(), REFUSED),
        ("another node", with(&|add| add.node = "node-b".into()), two.to_vec(), REFUSED),
    ];
    for (what, add, fds, code) in rows {
        let answer = client.ask(Payload::Add(add), &fds).unwrap_or_else(|| panic!("{what}: hung up"));
        assert_eq!(answer.code, code, "{what}: {answer:?}");
        assert!(!answer.error.is_empty() && !answer.retry, "{what}: {answer:?}");
    }
    assert_eq!(host.pods(), ["good"]);
    good.connect().unwrap();
    let worker = agent.worker();
    eventually("every descriptor of the refused is closed", || (!refers_to(worker, other.inode())).then_some(()));
    // What was refused can still be added properly.
    client.add(&other);
    assert_eq!(host.pods(), ["good", "other"]);
}

#[test]
fn hardening_B130_B132_what_is_no_conversation_is_answered_and_closed() {
    if !privileged("bad packets") {
        return;
    }
    let host = Host::new();
    let agent = host.start();
    let worker = agent.worker();
    let hello = || Request { payload: Some(Payload::Hello(Hello { version: 1 })) }.encode_to_vec();
    let say = |payload: Payload| Request { payload: Some(payload) }.encode_to_vec();
    let snapshot = || say(Payload::Snapshot(Snapshot {}));
    let rows: Vec<(&str, Vec<Vec<u8>>)> = vec![
        ("version 2", vec![say(Payload::Hello(Hello { version: 2 }))]),
        ("version 0", vec![say(Payload::Hello(Hello { version: 0 }))]),
        ("no hello", vec![say(Payload::Del(Del { uid: "x".into() }))]),
        ("garbage", vec![b"GET / HTTP/1.1\r\n\r\n".to_vec()]),
        ("an unknown request", vec![hello(), vec![0x7a, 0x00]]),
        ("cut in the middle", vec![hello(), hello()[..3].to_vec()]),
        ("64 KiB of nothing", vec![hello(), vec![0; 65536]]),
        ("two hellos", vec![hello(), hello()]),
        ("keep after the snapshot", vec![hello(), snapshot(), say(Payload::Keep(Keep { uid: "x".into() }))]),
        ("two snapshots", vec![hello(), snapshot(), snapshot()]),
    ];
    for (what, packets) in rows {
        let client = host.client().unwrap();
        let (last, before) = packets.split_last().unwrap();
        for packet in before {
            client.send_bytes(packet, &[]).unwrap();
            assert_eq!(client.receive().map(|answer| answer.code), Some(0), "{what}");
        }
        client.send_bytes(last, &[]).unwrap();
        assert_eq!(client.receive().map(|answer| answer.code), Some(PROTOCOL), "{what}");
        assert_eq!(client.receive(), None, "{what}: the connection must be closed");
    }
    // Larger than any packet of ours: the kernel gives the agent a cut one.
    let client = Client::greeted(&host);
    let big = vec![0u8; 100 * 1024];
    // SAFETY: the buffer outlives the call.
    let sent = unsafe { libc::send(client.socket().as_raw_fd(), big.as_ptr().cast(), big.len(), libc::MSG_NOSIGNAL) };
    if sent == big.len() as isize {
        assert_eq!(client.receive().map(|answer| answer.code), Some(PROTOCOL));
    }
    // Two hundred descriptors that nobody asked for are closed again.
    let before = agent::open_fds(worker);
    let file = tempfile::tempfile().unwrap();
    let client = Client::greeted(&host);
    client.send_bytes(&snapshot(), &vec![file.as_fd(); 200]).unwrap();
    assert_eq!(client.receive().map(|answer| answer.code), Some(PROTOCOL));
    drop(client);
    eventually("the descriptors are closed", || (agent::open_fds(worker) <= before).then_some(()));
    assert_eq!(agent.worker(), worker, "the agent must not have died");
}

#[test]
fn hardening_B131_adds_and_removals_can_be_repeated() {
    if !privileged("idempotence") {
        return;
    }
    let host = Host::new();
    let _agent = host.start();
    let client = Client::greeted(&host);
    let pod = Pod::new(&host, "web");
    assert_eq!(client.ask(Payload::Keep(Keep { uid: pod.uid() }), &[]).map(|answer| answer.code), Some(UNKNOWN));
    client.del(&pod);
    client.add(&pod);
    client.add(&pod);
    client.keep(&pod);
    // The same pod in a new sandbox: the old namespace is released, the new one captured.
    let mut moved = Pod::new(&host, "web-new");
    moved.name = "web".into();
    client.add(&moved);
    moved.connect().unwrap();
    assert_eq!(host.pods(), ["web"]);
    // A removal names the uid: it means the pod, whatever namespace it is in now.
    client.del(&pod);
    client.del(&pod);
    assert_eq!(host.pods(), Vec::<String>::new());
    client.add(&pod);
    pod.connect().unwrap();
}

/// Another description of a pod that runs: whatever is stopped and started for it, no connect of the pod passes by the mesh meanwhile.
#[test]
fn hardening_B131_a_pod_described_anew_is_never_let_go_in_between() {
    if !privileged("described anew") {
        return;
    }
    let host = Host::new();
    let _agent = host.start();
    let client = Client::greeted(&host);
    let pod = Pod::new(&host, "web");
    client.add(&pod);
    let cgroup = open(&pod.cgroup.0);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let connects = scope.spawn(|| {
            let mut refused = 0;
            while !stop.load(Ordering::Relaxed) {
                match pod.connect() {
                    Ok(_) => {}
                    Err(error) if error.raw_os_error() == Some(libc::ECONNREFUSED) => refused += 1,
                    // Nobody is there to answer what leaves the pod.
                    Err(error) => panic!("passed by: {error}"),
                }
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            refused
        });
        for ndots in 1..6 {
            let mut add = pod.add();
            add.dns.as_mut().unwrap().ndots = 10 + ndots;
            let answer = client.ask(Payload::Add(add), &[pod.netns.as_fd(), cgroup.as_fd()]);
            assert_eq!(answer.map(|answer| answer.error), Some(String::new()));
        }
        stop.store(true, Ordering::Relaxed);
        connects.join().unwrap();
    });
    pod.connect().unwrap();
    client.del(&pod);
    assert_eq!(host.pods(), Vec::<String>::new());
}

/// More nameservers than resolvers ask, or than a row can hold: the pod is enrolled, and the log names those that are left alone.
#[test]
fn nameservers_beyond_what_a_pod_can_have_are_named() {
    if !privileged("many nameservers") {
        return;
    }
    let host = Host::new();
    let _agent = host.start();
    let client = Client::greeted(&host);
    for (count, warned) in [(4, false), (6, true)] {
        let pod = Pod::new(&host, &format!("web-{count}"));
        let mut add = pod.add();
        add.dns.as_mut().unwrap().nameservers = (1..=count).map(|n| format!("198.18.53.{n}")).collect();
        let cgroup = open(&pod.cgroup.0);
        client.ok(Payload::Add(add), &[pod.netns.as_fd(), cgroup.as_fd()]);
        assert_eq!(host.log().contains("passed=[198.18.53.5, 198.18.53.6]"), warned, "{}", host.log());
        client.del(&pod);
    }
}

#[test]
fn hardening_B132_a_snapshot_removes_what_was_not_named_also_after_a_restart() {
    if !privileged("snapshot") {
        return;
    }
    let host = Host::new();
    let agent = host.start();
    let pods: Vec<Pod> = (0..4).map(|n| Pod::new(&host, &format!("pod-{n}"))).collect();
    let client = Client::greeted(&host);
    pods.iter().for_each(|pod| client.send_add(pod));
    pods.iter().for_each(|_| assert_eq!(client.receive().map(|answer| answer.code), Some(0)));
    client.snapshot();
    agent.kill_worker();
    eventually("the pods are taken over", || (host.client().is_ok() && host.pods().len() == 4).then_some(()));
    let client = Client::greeted(&host);
    client.keep(&pods[0]);
    client.add(&pods[1]);
    client.snapshot();
    eventually("the others are released", || (host.pods() == ["pod-0", "pod-1"]).then_some(()));
    let (worker, keeper) = (agent.worker(), agent.keeper.id() as i32);
    for gone in &pods[2..] {
        eventually("no reference", || {
            (!refers_to(worker, gone.inode()) && !refers_to(keeper, gone.inode())).then_some(())
        });
    }
    pods[0].connect().unwrap();
}

#[test]
fn hardening_B135_adds_in_parallel_with_a_restart_in_the_middle_end_whole_or_absent() {
    if !privileged("parallel adds") {
        return;
    }
    let host = Host::new();
    let agent = host.start();
    let pods: Vec<Pod> = (0..24).map(|n| Pod::new(&host, &format!("pod-{n:02}"))).collect();
    let client = Client::greeted(&host);
    for pod in &pods[..12] {
        client.send_add(pod);
    }
    agent.kill_worker();
    eventually("the next worker", || host.client().ok());
    let client = Client::greeted(&host);
    pods.iter().for_each(|pod| client.send_add(pod));
    for pod in &pods {
        assert_eq!(client.receive().map(|answer| answer.error), Some(String::new()), "{}", pod.name);
    }
    client.snapshot();
    assert_eq!(host.pods().len(), pods.len());
    for pod in &pods {
        pod.connect().unwrap_or_else(|error| panic!("{}: {error}", pod.name));
    }
}

#[test]
fn hardening_B136_a_client_that_dies_before_its_answer_leaves_nothing() {
    if !privileged("rollback") {
        return;
    }
    let host = Host::new();
    let agent = host.start();
    for round in 0..3 {
        let pod = Pod::new(&host, &format!("pod-{round}"));
        let client = Client::greeted(&host);
        client.send_add(&pod);
        drop(client);
        let (worker, keeper) = (agent.worker(), agent.keeper.id() as i32);
        eventually("a rollback", || {
            let held = refers_to(worker, pod.inode()) || refers_to(keeper, pod.inode());
            (host.pods().is_empty() && !held).then_some(())
        });
    }
}

/// R14: an app that has the agent's ports already.
#[test]
fn ports_that_the_app_uses_are_worked_around() {
    if !privileged("taken ports") {
        return;
    }
    let host = Host::new();
    let agent = host.start();
    let pod = Pod::new(&host, "web");
    let mut apps = Vec::new();
    for port in [15001, 15006, 15008, 15053] {
        apps.push(pod.app.listen(SocketAddr::new(IpAddr::from([0, 0, 0, 0]), port)));
    }
    let client = Client::greeted(&host);
    client.add(&pod);
    pod.connect().expect("captured on another port");
    // And it survives a restart like any other.
    agent.kill_worker();
    pod.connect().unwrap();
    drop(apps);
}
