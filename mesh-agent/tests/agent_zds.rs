//! Enrolment from Istio's node agent by a real agent: the test plays istio-cni, message by message as the real one was seen to speak, and has pods with
//! cgroups as a kubelet makes them.
#![allow(
    clippy::unwrap_used,
    clippy::undocumented_unsafe_blocks,
    reason = "test code: a panic is the report, and its system calls are the harness's"
)]
#![allow(non_snake_case, reason = "tests carry the ids of the rows they prove")]

mod agent;

use std::fs;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use agent::kernel::{Cgroup, Factory, ip_command, new_netns, privileged};
use agent::{Agent, DEADLINE, Host, NOBODY, eventually, kernel};
use mesh_agent::keeper::packet;
use mesh_proto::convert::{ZdsPod, ZdsRequest, encode_zds_request, zds_ack};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, listen, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use serde_json::Value;

/// The listening side of istio-cni.
struct IstioCni {
    listener: OwnedFd,
    path: PathBuf,
}

/// One connection of the agent.
struct Connection(OwnedFd);

fn with_deadline(fd: &OwnedFd) {
    setsockopt(fd, sockopt::ReceiveTimeout, &TimeVal::new(DEADLINE.as_secs() as i64, 0)).unwrap();
}

impl IstioCni {
    fn listen(host: &Host) -> IstioCni {
        let path = host.folder.path().join("ztunnel.sock");
        let _ = fs::remove_file(&path);
        let listener = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
        bind(listener.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        listen(&listener, Backlog::new(4).unwrap()).unwrap();
        with_deadline(&listener);
        IstioCni { listener, path }
    }

    fn agent<'a>(&self, host: &'a Host) -> Agent<'a> {
        let mut command = host.command();
        command.arg("--zds").arg(&self.path);
        let agent = Agent { host, keeper: command.spawn().unwrap() };
        eventually("the admin socket", || host.client().ok());
        agent
    }

    /// The agent's next connection, after its hello.
    fn accept(&self) -> Connection {
        let fd = accept4(self.listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC).unwrap();
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        with_deadline(&fd);
        let hello = packet::receive(fd.as_fd()).unwrap().expect("a hello");
        assert_eq!(hello.bytes, [0x08, 0x01]);
        Connection(fd)
    }
}

impl Connection {
    /// The error in the answer; none if it is a yes, and the outer one if the agent has hung up.
    fn ask(&self, request: &ZdsRequest, fds: &[BorrowedFd<'_>]) -> Option<Option<String>> {
        self.send(&encode_zds_request(request), fds)
    }

    fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Option<Option<String>> {
        packet::send(self.0.as_fd(), bytes, fds).ok()?;
        let packet = packet::receive(self.0.as_fd()).ok().flatten()?;
        Some(zds_ack(&packet.bytes).unwrap())
    }

    fn ok(&self, request: &ZdsRequest, fds: &[BorrowedFd<'_>]) {
        assert_eq!(self.ask(request, fds), Some(None), "{request:?}");
    }

    /// Until it is enrolled: on a busy machine that takes longer than an answer may.
    fn add(&self, pod: &Pod) {
        self.answers(&ZdsRequest::Add(pod.info()), &[pod.netns.as_fd()], |answer| answer.is_none());
    }

    /// Until the refusal gives this reason.
    fn refused(&self, request: &ZdsRequest, fds: &[BorrowedFd<'_>], why: &str) {
        self.answers(request, fds, |answer| answer.as_ref().is_some_and(|error| error.contains(why)));
    }

    fn answers(&self, request: &ZdsRequest, fds: &[BorrowedFd<'_>], wanted: impl Fn(&Option<String>) -> bool) {
        let busy = |answer: &Option<String>| answer.as_ref().is_some_and(|error| error.contains("takes longer"));
        eventually("the answer", || {
            let answer = self.ask(request, fds).expect("an answer");
            assert!(wanted(&answer) || busy(&answer), "{request:?}: {answer:?}");
            wanted(&answer).then_some(())
        });
    }
}

/// A pod as istio-cni finds it.
struct Pod {
    name: String,
    uid: String,
    address: IpAddr,
    app: Factory,
    _cgroup: Cgroup,
    netns: OwnedFd,
}

impl Pod {
    fn new(host: &Host, name: &str) -> Pod {
        Pod::with(host, name, |netns, address| ip_command(netns, &format!("addr add {address}/15 dev eth0")))
    }

    fn with(host: &Host, name: &str, addresses: impl Fn(BorrowedFd<'_>, &str)) -> Pod {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let uid = format!("{:08x}-b29f-11e7-9350-{n:012x}", std::process::id());
        let address = format!("198.18.78.{n}");
        let netns = new_netns();
        ip_command(netns.as_fd(), "link set lo up");
        ip_command(netns.as_fd(), "link add eth0 type veth peer name eth1");
        addresses(netns.as_fd(), &address);
        ip_command(netns.as_fd(), "link set eth0 up");
        ip_command(netns.as_fd(), "link set eth1 up");
        let cgroup = Cgroup::new(&format!("{}/pods/pod{uid}", host.instance));
        let app = Factory::new(&cgroup, netns.as_fd());
        Pod { name: name.into(), uid, address: address.parse().unwrap(), app, _cgroup: cgroup, netns }
    }

    fn info(&self) -> ZdsPod {
        ZdsPod {
            uid: self.uid.as_str().into(),
            namespace: "default".into(),
            name: self.name.as_str().into(),
            service_account: "app".into(),
        }
    }

    fn is_captured(&self) -> bool {
        let to = NOBODY.parse().unwrap();
        kernel::connect(&self.app.tcp(IpAddr::from([198, 18, 0, 1])), to).is_ok()
    }
}

fn dump(host: &Host) -> Value {
    let answer = host.get("/config_dump");
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
    serde_json::from_str(&body).unwrap_or_default()
}

/// Names of the pods that run and how often each was enrolled.
fn enrolled(host: &Host) -> Vec<(String, u64)> {
    let pods = dump(host)["pods"].as_array().cloned().unwrap_or_default();
    pods.iter().map(|pod| (pod["name"].as_str().unwrap().to_owned(), pod["generation"].as_u64().unwrap())).collect()
}

#[test]
fn features_en_istio_cni_names_pods_and_the_agent_captures_them() {
    if !privileged("enrolment from istio-cni") {
        return;
    }
    let host = Host::new();
    let (a, b) = (Pod::new(&host, "a"), Pod::new(&host, "b"));
    let cni = IstioCni::listen(&host);
    let agent = cni.agent(&host);
    let connection = cni.accept();
    let unheard = host.http(15021, "/healthz/ready");
    assert!(unheard.contains("pods from istio-cni"), "{unheard}");
    connection.add(&a);
    connection.ok(&ZdsRequest::Snapshot, &[]);
    assert!(!host.http(15021, "/healthz/ready").contains("pods from istio-cni"));
    assert!(a.is_captured(), "the answer comes when the pod is captured");
    assert!(!b.is_captured());
    let shown = dump(&host)["pods"][0]["ips"][0].as_str().map(str::to_owned);
    assert_eq!(shown, Some(a.address.to_string()));
    // A new pod, and the same named again: nothing of it is interrupted.
    connection.add(&b);
    connection.add(&b);
    connection.add(&a);
    assert!(b.is_captured());
    let generations = enrolled(&host);
    assert_eq!(generations.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    connection.ok(&ZdsRequest::Del(a.uid.as_str().into()), &[]);
    assert!(!a.is_captured());
    connection.ok(&ZdsRequest::Del(a.uid.as_str().into()), &[]);
    // istio-cni is replaced: what it has, it names again; what it does not name is gone. Meanwhile pods stay.
    drop(connection);
    assert!(b.is_captured());
    let connection = cni.accept();
    connection.ok(&ZdsRequest::Keep(b.uid.as_str().into()), &[]);
    connection.ok(&ZdsRequest::Snapshot, &[]);
    assert_eq!(enrolled(&host).last(), generations.last(), "kept as it was");
    drop(connection);
    let connection = cni.accept();
    connection.add(&a);
    connection.ok(&ZdsRequest::Snapshot, &[]);
    eventually("the release of what was not named", || (!b.is_captured()).then_some(()));
    assert!(a.is_captured());
    // Another worker takes the pods over before it hears of them.
    agent.kill_worker();
    let connection = cni.accept();
    eventually("the pod in the hands of another worker", || a.is_captured().then_some(()));
    connection.add(&a);
    connection.ok(&ZdsRequest::Snapshot, &[]);
    assert!(a.is_captured());
}

#[test]
fn hardening_B132_a_pod_that_cannot_be_enrolled_is_answered_and_tried_again_and_nothing_is_let_go_until_then() {
    if !privileged("enrolment from istio-cni that fails at first") {
        return;
    }
    let host = Host::new();
    let (late, other) = (Pod::with(&host, "late", |_, _| {}), Pod::new(&host, "other"));
    let cni = IstioCni::listen(&host);
    let _agent = cni.agent(&host);
    let connection = cni.accept();
    connection.add(&other);
    connection.ok(&ZdsRequest::Snapshot, &[]);
    drop(connection);
    let connection = cni.accept();
    connection.refused(&ZdsRequest::Add(late.info()), &[late.netns.as_fd()], "no address");
    connection.ok(&ZdsRequest::Snapshot, &[]);
    let waiting = dump(&host)["istioCni"]["waiting"][0].clone();
    assert_eq!((waiting["name"].as_str(), waiting["namespace"].as_str()), (Some("late"), Some("default")));
    assert!(waiting["reason"].as_str().unwrap().contains("no address"), "{waiting}");
    assert!(other.is_captured(), "not named, and kept until every pod that was named is served");
    ip_command(late.netns.as_fd(), &format!("addr add {}/15 dev eth0", late.address));
    eventually("the late pod", || late.is_captured().then_some(()));
    eventually("the end of what was not named", || (!other.is_captured()).then_some(()));
    assert_eq!(dump(&host)["istioCni"]["waiting"], Value::Array(Vec::new()));
    // One that is named anew in another namespace is in that one.
    let moved = Pod { uid: late.uid.clone(), ..Pod::new(&host, "late") };
    connection.add(&moved);
    assert!(moved.is_captured());
    eventually("the release of the earlier network", || (!late.is_captured()).then_some(()));
}

#[test]
fn hardening_B129_B130_B131_what_istio_cni_may_not_say() {
    if !privileged("bad messages from istio-cni") {
        return;
    }
    let host = Host::new();
    let pod = Pod::new(&host, "a");
    let cni = IstioCni::listen(&host);
    let agent = cni.agent(&host);
    let connection = cni.accept();
    let add = || ZdsRequest::Add(pod.info());
    let netns = || pod.netns.as_fd();
    let (file, user) = (tempfile::tempfile().unwrap(), fs::File::open("/proc/self/ns/user").unwrap());
    let refusals: [(&[BorrowedFd<'_>], &str); 5] = [
        (&[], "one descriptor"),
        (&[netns(), netns()], "one descriptor"),
        (&[file.as_fd()], "not a namespace"),
        (&[user.as_fd()], "not a network namespace"),
        (&[host.netns.as_fd()], "node's own"),
    ];
    for (fds, why) in refusals {
        connection.refused(&add(), fds, why);
    }
    let nobody = ZdsPod { service_account: "".into(), ..pod.info() };
    connection.refused(&ZdsRequest::Add(nobody), &[netns()], "service_account");
    connection.refused(&ZdsRequest::Keep("unknown".into()), &[], "not enrolled");
    assert_eq!(connection.send(&[0x32, 1, 0], &[]), Some(Some("this request is not known here".into())));
    connection.ok(&ZdsRequest::Del("unknown".into()), &[]);
    // The conversation went on; fields of later versions change nothing.
    let more = [encode_zds_request(&add()), vec![0x7a, 1, 0]].concat();
    eventually("the pod", || (connection.send(&more, &[netns()]) == Some(None)).then_some(()));
    assert!(pod.is_captured());
    // The namespace of a pod that runs is nobody else's.
    let thief = Pod::new(&host, "thief");
    connection.refused(&ZdsRequest::Add(thief.info()), &[netns()], "belongs to pod default/a");
    connection.ok(&ZdsRequest::Snapshot, &[]);
    let ends: [(Vec<u8>, Vec<BorrowedFd<'_>>); 5] = [
        (vec![0xff; 64], vec![]),
        (vec![0; packet::MAX_PACKET + 1], vec![]),
        (encode_zds_request(&ZdsRequest::Snapshot), vec![]),
        (encode_zds_request(&ZdsRequest::Keep("u".into())), vec![]),
        (encode_zds_request(&ZdsRequest::Del("u".into())), vec![netns()]),
    ];
    let mut connection = connection;
    for (bytes, fds) in ends {
        let sent = connection.send_raw(&bytes, &fds);
        assert_eq!(sent, None, "{} bytes", bytes.len());
        connection = cni.accept();
        connection.add(&pod);
        connection.ok(&ZdsRequest::Snapshot, &[]);
        assert!(pod.is_captured(), "the end of a conversation is not that of a pod");
    }
    // Somebody who is not root is told nothing and not believed.
    drop(connection);
    drop(cni);
    let nobody = unprivileged_listener(&host);
    eventually("the refusal of somebody else", || host.log().contains("and not by root").then_some(()));
    assert!(pod.is_captured());
    drop(nobody);
    let worker = agent.worker();
    let cni = IstioCni::listen(&host);
    let connection = cni.accept();
    connection.add(&pod);
    connection.ok(&ZdsRequest::Del(pod.uid.as_str().into()), &[]);
    eventually("no descriptor of the pod is left", || {
        (!agent::refers_to(worker, nix::sys::stat::fstat(&pod.netns).unwrap().st_ino)).then_some(())
    });
}

impl Connection {
    /// Past the checks of our own sender.
    fn send_raw(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Option<Option<String>> {
        use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
        let raw: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &[][..] } else { &rights[..] };
        let fd = self.0.as_raw_fd();
        sendmsg::<()>(fd, &[std::io::IoSlice::new(bytes)], control, MsgFlags::MSG_NOSIGNAL, None).ok()?;
        let packet = packet::receive(self.0.as_fd()).ok().flatten()?;
        Some(zds_ack(&packet.bytes).unwrap())
    }
}

/// A listener at istio-cni's path that a user other than root holds: the peer of a connection is who called `listen`.
fn unprivileged_listener(host: &Host) -> OwnedFd {
    let path = host.folder.path().join("ztunnel.sock");
    let _ = fs::remove_file(&path);
    let listener = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(listener.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
    let listening = std::thread::scope(|scope| {
        let as_nobody = || {
            // The effective user of this thread alone, which ends here.
            assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, -1i64, 65534i64, -1i64) }, 0);
            listen(&listener, Backlog::new(4).unwrap())
        };
        scope.spawn(as_nobody).join().unwrap()
    });
    listening.unwrap();
    listener
}
