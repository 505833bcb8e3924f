//! The agent's side of the CNI plugin: a real agent and a small API server, and requests as the plugin makes them before a pod has a process.
#![allow(
    clippy::unwrap_used,
    clippy::undocumented_unsafe_blocks,
    reason = "test code: a panic is the report, and its system calls are the harness's"
)]
#![allow(non_snake_case, reason = "tests carry the ids of the rows they prove")]

mod agent;
#[path = "agent/api.rs"]
mod api;

use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use agent::kernel::{self, Cgroup, Factory, ip_command, new_netns, privileged};
use agent::{Agent, Host, eventually};
use api::Api;
use mesh_agent::keeper::packet;
use mesh_proto::convert::{CniAnswer, CniCommand, CniDns, CniRequest, cni_answer, encode_cni_request};
use mesh_proto::scope::{Member, Scope};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt};
use nix::sys::time::TimeVal;
use serde_json::{Value, json};

const LIST: &str = r#"{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"bridge"}]}"#;
const UID: &str = "2c48913c-b29f-11e7-9350-020968147796";

/// A node with an agent that keeps the plugin.
struct Node<'a> {
    host: &'a Host,
    api: Api,
    conf: PathBuf,
}

impl<'a> Node<'a> {
    fn new(host: &'a Host) -> Node<'a> {
        let conf = host.folder.path().join("net.d/10-pods.conflist");
        fs::create_dir(conf.parent().unwrap()).unwrap();
        fs::write(&conf, LIST).unwrap();
        fs::write(host.folder.path().join("mesh-cni"), "the program").unwrap();
        Node { host, api: Api::new(host), conf }
    }

    fn agent(&self) -> Agent<'_> {
        self.agent_with("on", self.api.kubeconfig.as_os_str())
    }

    fn agent_with(&self, cni: &str, kube: &OsStr) -> Agent<'_> {
        let path = |name: &str| self.host.folder.path().join(name);
        let mut command = self.host.command();
        command.arg("--kube").arg(kube).args(["--cni", cni]);
        command.arg("--cni-plugin").arg(path("mesh-cni")).arg("--cni-bin-dir").arg(path("bin"));
        command.arg("--cni-conf-dir").arg(path("net.d")).arg("--cni-state-dir").arg(path("state"));
        command.arg("--cni-cache-dir").arg(path("results"));
        let agent = Agent { host: self.host, keeper: command.spawn().unwrap() };
        eventually("the enrolment socket", || self.host.client().ok());
        agent
    }

    fn chain(&self) -> Vec<String> {
        let list: Value = serde_json::from_slice(&fs::read(&self.conf).unwrap()).unwrap_or_default();
        let plugins = list["plugins"].as_array().cloned().unwrap_or_default();
        plugins.iter().map(|plugin| plugin["type"].as_str().unwrap().to_owned()).collect()
    }

    fn until_chained(&self) {
        eventually("our entry in the chain", || (self.chain() == ["bridge", "undermesh-cni"]).then_some(()));
    }

    fn program(&self) -> PathBuf {
        self.host.folder.path().join("bin/undermesh-cni")
    }

    fn scope(&self) -> Option<Scope> {
        Scope::read(&fs::read(self.host.folder.path().join("state/scope.json")).ok()?).ok()
    }

    fn ask(&self, request: &CniRequest, netns: Option<BorrowedFd<'_>>) -> Option<CniAnswer> {
        let socket: OwnedFd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(60, 0)).unwrap();
        connect(socket.as_raw_fd(), &UnixAddr::new(&self.host.run_dir().join("cni.sock")).unwrap()).ok()?;
        let fds: Vec<BorrowedFd<'_>> = netns.into_iter().collect();
        packet::send(socket.as_fd(), &encode_cni_request(request), &fds).unwrap();
        let answer = packet::receive(socket.as_fd()).unwrap()?;
        Some(cni_answer(&answer.bytes).unwrap())
    }

    fn dump(&self) -> Value {
        let answer = self.host.get("/config_dump");
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
        serde_json::from_str(&body).unwrap_or_default()
    }
}

fn pod(uid: &str) -> Value {
    json!({
        "metadata": { "name": "web-0", "namespace": "default", "uid": uid, "annotations": {} },
        "spec": { "nodeName": "node-a", "serviceAccountName": "app", "containers": [] },
        "status": { "phase": "Pending" },
    })
}

fn request(command: CniCommand, patience: Duration) -> CniRequest {
    CniRequest {
        command,
        container: "0f9d".into(),
        namespace: "default".into(),
        name: "web-0".into(),
        uid: UID.into(),
        ips: vec!["fd00:198::78:1".parse().unwrap(), "198.18.78.1".parse().unwrap()],
        dns: Some(CniDns { servers: vec!["198.19.0.10".into()], ..CniDns::default() }),
        patience,
    }
}

/// What the plugins before ours have made.
fn network() -> OwnedFd {
    let netns = new_netns();
    ip_command(netns.as_fd(), "link set lo up");
    ip_command(netns.as_fd(), "link add eth0 type veth peer name eth1");
    ip_command(netns.as_fd(), "addr add 198.18.78.1/15 dev eth0");
    ip_command(netns.as_fd(), "addr add fd00:198::78:1/64 dev eth0 nodad");
    ip_command(netns.as_fd(), "link set eth0 up");
    ip_command(netns.as_fd(), "link set eth1 up");
    netns
}

#[test]
fn hardening_F46_the_chain_has_our_entry_whatever_others_write_until_it_is_taken_off() {
    if !privileged("the chain") {
        return;
    }
    let host = Host::new();
    let node = Node::new(&host);
    let agent = node.agent();
    node.until_chained();
    assert_eq!(fs::read_to_string(node.program()).unwrap(), "the program");
    for _ in 0..2 {
        fs::write(&node.conf, LIST).unwrap();
        node.until_chained();
    }
    fs::remove_file(node.program()).unwrap();
    eventually("the program", || node.program().exists().then_some(()));
    // The whole folder, and then what took its place.
    for _ in 0..2 {
        fs::remove_dir_all(node.program().parent().unwrap()).unwrap();
        eventually("the program in a new folder", || node.program().exists().then_some(()));
    }
    fs::remove_file(&node.conf).unwrap();
    eventually("the trouble", || node.dump()["cni"]["trouble"].is_string().then_some(()));
    fs::write(&node.conf, LIST).unwrap();
    node.until_chained();
    assert_eq!(fs::read_dir(node.conf.parent().unwrap()).unwrap().count(), 2, "theirs, ours, and nothing half done");

    // An upgrade leaves it there; the command does not, and the agent does not put it back.
    agent.kill_worker();
    node.until_chained();
    let path = |name: &str| host.folder.path().join(name);
    let uninstall = || {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_mesh-agent"));
        command.arg("cni-uninstall").arg("--run-dir").arg(host.run_dir()).arg("--cni-bin-dir").arg(path("bin"));
        command.arg("--cni-conf-dir").arg(path("net.d")).arg("--cni-state-dir").arg(path("state"));
        command.arg("--cni-cache-dir").arg(path("results"));
        let output = command.output().unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    };
    let admin = host.run_dir().join("admin.sock");
    eventually("the next worker's socket", || UnixStream::connect(&admin).ok());
    eventually("the next worker", || (node.dump()["cni"]["chain"] == "00-undermesh.conflist").then_some(()));
    assert_eq!(uninstall(), (true, "the agent took the CNI plugin off this node\n".to_owned()));
    assert_eq!((node.chain(), node.program().exists()), (vec!["bridge".to_owned()], false));
    assert_eq!(fs::read_dir(node.conf.parent().unwrap()).unwrap().count(), 1);
    assert_eq!(node.dump()["cni"]["uninstalled"], true);
    drop(agent);
    eventually("the end of the agent", || UnixStream::connect(&admin).err());
    fs::write(node.program(), "again").unwrap();
    assert_eq!(uninstall(), (true, "the CNI plugin is off this node\n".to_owned()));
    assert!(!node.program().exists());
}

#[test]
fn features_EN5_an_agent_that_is_to_keep_no_plugin_takes_away_what_an_earlier_one_has_left() {
    if !privileged("no plugin any more") {
        return;
    }
    let host = Host::new();
    let node = Node::new(&host);
    let agent = node.agent();
    node.until_chained();
    let own = node.conf.with_file_name("00-undermesh.conflist");
    eventually("our own file", || own.exists().then_some(()));
    drop(agent);
    // Under istio-cni, which has appended itself to the first file.
    let mut list: Value = serde_json::from_slice(&fs::read(&own).unwrap()).unwrap();
    list["plugins"].as_array_mut().unwrap().push(json!({ "type": "istio-cni" }));
    fs::write(&own, list.to_string()).unwrap();

    // Who is not told to leaves it: it may be another agent's.
    let agent = node.agent_with("off", OsStr::new("off"));
    eventually("the agent", || (node.dump()["cni"] == Value::Null).then_some(()));
    assert_eq!((node.chain(), own.exists()), (vec!["bridge".to_owned(), "undermesh-cni".to_owned()], true));
    drop(agent);

    let agent = node.agent_with("remove", OsStr::new("off"));
    eventually("all of ours is gone", || (node.dump()["cni"]["uninstalled"] == true).then_some(()));
    assert_eq!(node.chain(), ["bridge", "istio-cni"]);
    assert_eq!(fs::read_dir(node.conf.parent().unwrap()).unwrap().count(), 1);
    assert!(!node.program().exists() && node.scope().is_none());
    // A look of the worker before may just have been putting it back; an order finds the same as the second look of this one.
    fs::write(&own, list.to_string()).unwrap();
    assert!(host.admin("POST /cni-uninstall HTTP/1.1\r\nhost: localhost\r\nundermesh-admin: 1\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").contains("200 OK"));
    assert!(!own.exists());
    // What cannot be taken away is told, and tried again.
    drop(agent);
    fs::write(&own, list.to_string()).unwrap();
    fs::write(&node.conf, "{").unwrap();
    let _agent = node.agent_with("remove", OsStr::new("off"));
    let told = eventually("the trouble", || node.dump()["cni"]["trouble"].as_str().map(str::to_owned));
    assert!(told.contains("10-pods.conflist") && own.exists(), "{told}");
    fs::write(&node.conf, LIST).unwrap();
    eventually("the next attempt", || (!own.exists()).then_some(()));
    assert_eq!(node.chain(), ["bridge", "istio-cni"]);
}

#[test]
fn hardening_F46_who_takes_our_own_file_away_again_and_again_is_told_of_and_does_not_keep_us_busy() {
    if !privileged("a fight") {
        return;
    }
    let host = Host::new();
    let node = Node::new(&host);
    let _agent = node.agent();
    node.until_chained();
    let own = node.conf.with_file_name("00-undermesh.conflist");
    // As Cilium does, unless it is told not to.
    let (began, mut times) = (Instant::now(), 0);
    let told = eventually("the fight is told of", || {
        times += u32::from(fs::rename(&own, own.with_extension("conflist.cilium_bak")).is_ok());
        node.dump()["cni"]["contested"].as_str().map(str::to_owned)
    });
    assert!(told.contains("cni.exclusive=false") && told.contains("ownFile=false"), "{told}");
    // Rests of 100, 200, 400 and 800 milliseconds lie between the times.
    assert!(
        (5..20).contains(&times) && began.elapsed() >= Duration::from_millis(1500),
        "{times} times, {:?}",
        began.elapsed()
    );
    node.until_chained();
    assert!(host.http(15020, "/metrics").contains("undermesh_cni_contested 1"));
    assert_eq!(host.log().matches("is fought over").count(), 1);
    // What is left there is an end of it, and until then nobody is without the entry.
    eventually("it is put back", || (node.dump()["cni"]["chain"] == "00-undermesh.conflist").then_some(()));
}

#[test]
fn features_EN5_a_pod_that_is_out_of_the_mesh_goes_on_at_once_and_the_file_says_who_is_what() {
    if !privileged("who is what") {
        return;
    }
    let host = Host::new();
    let node = Node::new(&host);
    node.api.pod("web-0", pod(UID));
    let _agent = node.agent();
    let netns = network();
    let long = request(CniCommand::Add, Duration::from_secs(100));
    let answer = eventually("the socket", || node.ask(&long, Some(netns.as_fd())));
    assert!(matches!(&answer, CniAnswer::Pass(why) if why.contains("label")), "{answer:?}");
    assert_eq!(node.ask(&request(CniCommand::Del, Duration::from_secs(1)), None), Some(CniAnswer::Ready));

    let out = || (node.scope()?.member("default", Some(UID)) == Member::Out).then_some(());
    eventually("the file: out", out);
    node.api.namespace("default", Some("ambient"));
    eventually("the file: in", || (node.scope()?.member("default", Some("new")) == Member::In).then_some(()));
    assert_eq!(node.scope().unwrap().member("default", Some(UID)), Member::In);
    let unheard = CniRequest { uid: "other".into(), patience: Duration::from_millis(50), ..long.clone() };
    assert!(matches!(node.ask(&unheard, Some(netns.as_fd())), Some(CniAnswer::Unknown(_))));
    let renamed = CniRequest { name: "web-1".into(), ..long.clone() };
    assert!(matches!(node.ask(&renamed, Some(netns.as_fd())), Some(CniAnswer::Refused(_))));
    assert!(matches!(node.ask(&long, None), Some(CniAnswer::Unknown(_))), "no network namespace");
}

#[test]
fn features_EN5_hardening_B136_a_pod_without_a_certificate_waits_and_nothing_of_it_is_left() {
    if !privileged("no certificate") {
        return;
    }
    let host = Host::new();
    let folder = Cgroup::new(&format!("{}/pods/pod{UID}", host.instance));
    let node = Node::new(&host);
    node.api.namespace("default", Some("ambient"));
    node.api.pod("web-0", pod(UID));
    let _agent = node.agent();
    let netns = network();
    let app = Factory::new(&folder, netns.as_fd());
    let captured = || {
        let to: std::net::SocketAddr = agent::NOBODY.parse().unwrap();
        kernel::connect(&app.tcp(to.ip()), to).is_ok()
    };
    // There is no control plane: the pod is captured and its certificate never comes.
    let asked = request(CniCommand::Add, Duration::from_secs(3));
    let answer = eventually("the socket", || node.ask(&asked, Some(netns.as_fd())));
    assert!(matches!(&answer, CniAnswer::Wait(why) if why.contains("certificate")), "{answer:?}");
    eventually("the pod is let go", || (!captured()).then_some(()));
    eventually("no pod is left", || host.pods().is_empty().then_some(()));

    // A plugin that is gone in the middle leaves nothing either.
    let socket: OwnedFd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
    connect(socket.as_raw_fd(), &UnixAddr::new(&host.run_dir().join("cni.sock")).unwrap()).unwrap();
    let asked = request(CniCommand::Add, Duration::from_secs(100));
    packet::send(socket.as_fd(), &encode_cni_request(&asked), &[netns.as_fd()]).unwrap();
    eventually("the pod is captured", || captured().then_some(()));
    drop(socket);
    eventually("the pod is let go", || (!captured()).then_some(()));
    eventually("no pod is left", || host.pods().is_empty().then_some(()));

    // The wrong network: without one of the addresses, or the node's own.
    ip_command(netns.as_fd(), "addr del 198.18.78.1/15 dev eth0");
    let short = request(CniCommand::Add, Duration::from_millis(200));
    let answer = node.ask(&short, Some(netns.as_fd())).unwrap();
    assert!(matches!(&answer, CniAnswer::Refused(why) if why.contains("198.18.78.1")), "{answer:?}");
    let answer = node.ask(&short, Some(host.netns.as_fd())).unwrap();
    assert!(matches!(&answer, CniAnswer::Refused(why) if why.contains("hostNetwork")), "{answer:?}");
}
