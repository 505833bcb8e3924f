//! Enrolment from the Kubernetes API by a real agent: a small API server, and pods with cgroups and network namespaces laid out as a kubelet and a
//! container runtime do.
#![allow(
    clippy::unwrap_used,
    clippy::undocumented_unsafe_blocks,
    reason = "test code: a panic is the report, and its system calls are the harness's"
)]
#![allow(non_snake_case, reason = "tests carry the ids of the rows they prove")]

mod agent;
#[path = "agent/api.rs"]
mod api;

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use agent::kernel::{self, Cgroup, Factory, ip_command, new_netns, privileged};
use agent::{Agent, Host, eventually};
use api::{Api, Gone};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};

/// What a kubelet and a container runtime keep on a node.
struct Kubelet<'a> {
    host: &'a Host,
    netns: PathBuf,
    _class: Cgroup,
    _root: Cgroup,
}

/// A network namespace that the runtime holds in its folder.
struct Held(PathBuf);

impl Drop for Held {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
        let _ = fs::remove_file(&self.0);
    }
}

/// A pod: its process first, so that its cgroups can go.
struct Pod {
    name: String,
    uid: String,
    addresses: [String; 2],
    app: Factory,
    _container: Cgroup,
    folder: Cgroup,
    netns: OwnedFd,
    held: Option<Held>,
}

impl<'a> Kubelet<'a> {
    fn new(host: &'a Host) -> Kubelet<'a> {
        let pods = format!("{}/pods", host.instance);
        let root = Cgroup::new(&format!("{pods}/kubepods"));
        let class = Cgroup::new(&format!("{pods}/kubepods/burstable"));
        let netns = host.folder.path().join("netns");
        fs::create_dir(&netns).unwrap();
        Kubelet { host, netns, _class: class, _root: root }
    }

    fn agent(&self, api: &Api) -> Agent<'_> {
        let mut command = self.host.command();
        command.arg("--kube").arg(&api.kubeconfig).arg("--netns").arg(&self.netns);
        let agent = Agent { host: self.host, keeper: command.spawn().unwrap() };
        eventually("the enrolment socket", || self.host.client().ok());
        agent
    }

    fn pod(&self, name: &str) -> Pod {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let uid = format!("{:08x}-b29f-11e7-9350-{:012x}", std::process::id(), n);
        let addresses = [format!("198.18.77.{n}"), format!("fd00:198::77:{n:x}")];
        let netns = new_netns();
        ip_command(netns.as_fd(), "link set lo up");
        ip_command(netns.as_fd(), "link add eth0 type veth peer name eth1");
        ip_command(netns.as_fd(), &format!("addr add {}/15 dev eth0", addresses[0]));
        ip_command(netns.as_fd(), &format!("addr add {}/64 dev eth0 nodad", addresses[1]));
        ip_command(netns.as_fd(), "link set eth0 up");
        ip_command(netns.as_fd(), "link set eth1 up");
        let path = format!("{}/pods/kubepods/burstable/pod{uid}", self.host.instance);
        let folder = Cgroup::new(&path);
        let container = Cgroup::new(&format!("{path}/{}", "0f".repeat(32)));
        let app = Factory::new(&container, netns.as_fd());
        let held = Some(self.hold(name, netns.as_fd()));
        Pod { name: name.into(), uid, addresses, app, _container: container, folder, netns, held }
    }

    /// As container runtimes do: a file onto which the namespace is mounted.
    fn hold(&self, name: &str, netns: BorrowedFd<'_>) -> Held {
        let path = self.netns.join(format!("cni-{name}"));
        File::create(&path).unwrap();
        let source = PathBuf::from(format!("/proc/self/fd/{}", netns.as_raw_fd()));
        mount(Some(&source), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        Held(path)
    }

    /// Names of the enrolled pods and how often each was enrolled.
    fn enrolled(&self) -> Vec<(String, u64)> {
        let dump = self.dump();
        let pods = dump["pods"].as_array().cloned().unwrap_or_default();
        pods.iter().map(|pod| (pod["name"].as_str().unwrap().to_owned(), pod["generation"].as_u64().unwrap())).collect()
    }

    fn names(&self) -> Vec<String> {
        self.enrolled().into_iter().map(|(name, _)| name).collect()
    }

    /// State and reason of a pod in the admin dump.
    fn state(&self, name: &str) -> (String, String) {
        let dump = self.dump();
        let pods = dump["kubernetes"]["pods"].as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let pod = pods.iter().find(|pod| pod["name"] == name).cloned().unwrap_or_default();
        (text(&pod["state"]), text(&pod["reason"]))
    }

    fn dump(&self) -> Value {
        let answer = self.host.get("/config_dump");
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
        serde_json::from_str(&body).unwrap_or_default()
    }

    fn until_enrolled(&self, names: &[&str]) {
        eventually(&format!("exactly {names:?} enrolled"), || (self.names() == names).then_some(()));
    }
}

impl Pod {
    /// As the API server has it.
    fn object(&self) -> Value {
        let ips: Vec<Value> = self.addresses.iter().map(|ip| json!({ "ip": ip })).collect();
        json!({
            "metadata": { "name": self.name, "namespace": "default", "uid": self.uid, "annotations": {} },
            "spec": { "nodeName": "node-a", "serviceAccountName": "app", "containers": [] },
            "status": { "phase": "Running", "podIPs": ips },
        })
    }

    /// Whether the agent answers for where nobody listens.
    fn is_captured(&self) -> bool {
        let to: std::net::SocketAddr = agent::NOBODY.parse().unwrap();
        let socket = self.app.tcp(to.ip());
        kernel::connect(&socket, to).is_ok()
    }

    /// The kernel lets go of a pod a moment after it is no longer counted.
    fn until_free(&self) {
        eventually("the pod is not captured", || (!self.is_captured()).then_some(()));
    }
}

fn can_run(test: &str) -> bool {
    if !PathBuf::from("/etc/resolv.conf").exists() {
        println!("SKIPPED: {test}: needs a resolv.conf, as every pod has one");
        return false;
    }
    privileged(test)
}

#[test]
fn features_EN1_EN2_EN3_EN4_labels_enrol_and_release_running_pods() {
    if !can_run("labels") {
        return;
    }
    let host = Host::new();
    let kubelet = Kubelet::new(&host);
    let api = Api::new(&host);
    let (a, b) = (kubelet.pod("a"), kubelet.pod("b"));
    api.pod("a", a.object());
    api.pod("b", b.object());
    let extra = |name: &str, change: &dyn Fn(&mut Value)| {
        let mut object = a.object();
        (object["metadata"]["name"], object["metadata"]["uid"]) = (json!(name), json!(format!("uid-{name}")));
        change(&mut object);
        api.pod(name, object);
    };
    extra("host", &|pod| pod["spec"]["hostNetwork"] = json!(true));
    extra("sidecar", &|pod| pod["metadata"]["annotations"] = json!({ "sidecar.istio.io/status": "{}" }));
    extra("out", &|pod| pod["metadata"]["labels"] = json!({ "istio.io/dataplane-mode": "none" }));
    extra("done", &|pod| pod["status"]["phase"] = json!("Succeeded"));
    let _agent = kubelet.agent(&api);
    eventually("a verdict about a", || (kubelet.state("a").0 == "left out").then_some(()));
    assert_eq!((kubelet.names(), a.is_captured()), (Vec::new(), false));

    api.namespace("default", Some("ambient"));
    kubelet.until_enrolled(&["a", "b"]);
    assert!(a.is_captured() && b.is_captured());
    for name in ["a", "b"] {
        eventually("the annotation", || (api.redirection(name).as_deref() == Some("enabled")).then_some(()));
    }
    assert_eq!(
        api.requests("fieldSelector=spec.nodeName%3Dnode-a"),
        api.requests("/api/v1/pods?"),
        "its own node only"
    );
    let reasons =
        [("host", "hostNetwork"), ("sidecar", "sidecar"), ("out", "dataplane-mode=none"), ("done", "finished")];
    for (name, reason) in reasons {
        let (state, why) = kubelet.state(name);
        assert!(state == "left out" && why.contains(reason), "{name}: {state}: {why}");
        assert_eq!(api.redirection(name), None, "{name}");
    }

    let mut object = b.object();
    object["metadata"]["labels"] = json!({ "istio.io/dataplane-mode": "none" });
    object["metadata"]["annotations"] = json!({ "ambient.istio.io/redirection": "enabled" });
    api.pod("b", object);
    kubelet.until_enrolled(&["a"]);
    b.until_free();
    assert!(a.is_captured());
    assert_eq!(api.redirection("b"), None);

    api.namespace("default", None);
    kubelet.until_enrolled(&[]);
    a.until_free();
    assert_eq!(api.redirection("a"), None);
    api.namespace("default", Some("ambient"));
    kubelet.until_enrolled(&["a"]);
    drop(a);
    api.delete_pod("a");
    kubelet.until_enrolled(&[]);
}

#[test]
fn hardening_F9_a_pod_that_is_deleted_by_force_stays_captured_until_its_processes_are_gone() {
    if !can_run("deleted by force") {
        return;
    }
    let host = Host::new();
    let kubelet = Kubelet::new(&host);
    let api = Api::new(&host);
    let (a, b, failed) = (kubelet.pod("a"), kubelet.pod("b"), kubelet.pod("failed"));
    api.namespace("default", Some("ambient"));
    for pod in [&a, &b, &failed] {
        api.pod(&pod.name, pod.object());
    }
    let agent = kubelet.agent(&api);
    kubelet.until_enrolled(&["a", "b", "failed"]);
    // The objects are gone, and nobody has ended the processes.
    api.delete_pod("a");
    let mut object = failed.object();
    object["status"]["phase"] = json!("Failed");
    api.pod("failed", object);
    let waits = |name: &str| {
        eventually("a pod that waits for the end of its processes", || {
            let (state, why) = kubelet.state(name);
            (state == "waiting" && why.contains("its processes still run")).then_some(())
        });
    };
    waits("a");
    waits("failed");
    assert!(a.is_captured() && failed.is_captured());
    // Nor does an agent that never heard of them let go.
    api.away(true);
    api.delete_pod("b");
    agent.kill_worker();
    let admin = host.run_dir().join("admin.sock");
    eventually("the next worker's socket", || std::os::unix::net::UnixStream::connect(&admin).ok());
    api.away(false);
    ["a", "b", "failed"].into_iter().for_each(waits);
    assert!(a.is_captured() && b.is_captured() && failed.is_captured());
    // With their processes they go.
    drop((a, failed));
    kubelet.until_enrolled(&["b"]);
    assert!(b.is_captured());
    drop(b);
    kubelet.until_enrolled(&[]);
}

#[test]
fn hardening_F16_F17_watches_that_are_cut_or_forgotten_release_nobody() {
    if !can_run("watches") {
        return;
    }
    let host = Host::new();
    let kubelet = Kubelet::new(&host);
    let api = Api::new(&host);
    let a = kubelet.pod("a");
    api.namespace("default", Some("ambient"));
    api.pod("a", a.object());
    let _agent = kubelet.agent(&api);
    kubelet.until_enrolled(&["a"]);
    let before = kubelet.enrolled();
    let rounds: [(&str, &dyn Fn()); 3] = [
        ("cut", &|| api.cut()),
        ("410 in the stream", &|| api.forget(Gone::InStream)),
        ("410 as status", &|| api.forget(Gone::AsStatus)),
    ];
    for (what, disturb) in rounds {
        // What happens while nobody watches is heard afterwards.
        disturb();
        let b = kubelet.pod("b");
        api.pod("b", b.object());
        kubelet.until_enrolled(&["a", "b"]);
        disturb();
        drop(b);
        api.delete_pod("b");
        kubelet.until_enrolled(&["a"]);
        assert_eq!(kubelet.enrolled(), before, "{what}: a stays as it was");
        assert!(a.is_captured());
    }
}

#[test]
fn hardening_F9_without_the_api_server_pods_stay_over_a_restart_and_are_put_right_afterwards() {
    if !can_run("the API server away") {
        return;
    }
    let host = Host::new();
    let kubelet = Kubelet::new(&host);
    let api = Api::new(&host);
    let (a, b) = (kubelet.pod("a"), kubelet.pod("b"));
    api.namespace("default", Some("ambient"));
    api.pod("a", a.object());
    api.pod("b", b.object());
    let agent = kubelet.agent(&api);
    kubelet.until_enrolled(&["a", "b"]);
    eventually("the annotation", || api.redirection("b"));

    api.away(true);
    api.delete_pod("b");
    agent.kill_worker();
    let admin = host.run_dir().join("admin.sock");
    eventually("the next worker's socket", || std::os::unix::net::UnixStream::connect(&admin).ok());
    eventually("the next worker", || (kubelet.names() == ["a", "b"]).then_some(()));
    assert!(a.is_captured() && b.is_captured());
    drop(b);
    let heard = eventually("the view", || kubelet.dump()["kubernetes"]["pods"].as_array().map(Vec::len));
    assert_eq!(heard, 0, "it has not heard of any pod");

    let before = kubelet.enrolled()[0].clone();
    api.away(false);
    kubelet.until_enrolled(&["a"]);
    assert_eq!(kubelet.enrolled(), [before], "a is kept, not enrolled anew");
    // The release of b, which was awaited, may come first.
    eventually("a in the view", || (kubelet.state("a") == ("enrolled".into(), String::new())).then_some(()));
}

#[test]
fn nothing_is_enrolled_on_a_guess() {
    if !can_run("guesses") {
        return;
    }
    let host = Host::new();
    let kubelet = Kubelet::new(&host);
    let api = Api::new(&host);
    let mut a = kubelet.pod("a");
    // Another namespace with the same addresses, held by the runtime, but not of a process of the pod.
    let other = new_netns();
    ip_command(other.as_fd(), "link add eth0 type veth peer name eth1");
    ip_command(other.as_fd(), &format!("addr add {}/15 dev eth0", a.addresses[0]));
    ip_command(other.as_fd(), &format!("addr add {}/64 dev eth0 nodad", a.addresses[1]));
    let _stale = kubelet.hold("stale", other.as_fd());
    drop(a.held.take());
    api.namespace("default", Some("ambient"));
    api.pod("a", a.object());
    let _agent = kubelet.agent(&api);
    let waits = |reason: &str| {
        eventually(reason, || {
            let (state, why) = kubelet.state("a");
            (state == "waiting" && why.contains(reason)).then_some(())
        });
        assert_eq!((kubelet.names(), api.redirection("a")), (Vec::new(), None), "{reason}");
    };
    waits("no network namespace of the pod's processes");

    // The right namespace, and an address that is not in it.
    a.held = Some(kubelet.hold("a", a.netns.as_fd()));
    ip_command(a.netns.as_fd(), &format!("addr del {}/64 dev eth0", a.addresses[1]));
    waits("does not have the address");
    ip_command(a.netns.as_fd(), &format!("addr add {}/64 dev eth0 nodad", a.addresses[1]));
    kubelet.until_enrolled(&["a"]);
    let dump = kubelet.dump();
    assert_eq!(dump["pods"][0]["netns_inode"], json!(nix::sys::stat::fstat(&a.netns).unwrap().st_ino));
    assert!(a.folder.0.exists() && a.is_captured());
}
