//! The agent on a real cluster: the real kubelet, container runtime and API server of `cargo xtask cluster`, with the agent as a process of a node and the
//! control plane beside it. Skipped, and said so, where the cluster's programs or ours are not built.
#![allow(clippy::unwrap_used, reason = "test code: a panic is the report")]
#![allow(non_snake_case, reason = "tests carry the ids of the rows they prove")]

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Long: many builds may run beside a cluster.
const DEADLINE: Duration = Duration::from_secs(300);
const NODE: &str = "n1";

/// A program that was built beside the agent.
fn program(name: &str) -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_mesh-agent")).with_file_name(name)
}

/// Why the test cannot run here, if it cannot.
fn hindrance() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root".into());
    }
    if let Some(missing) = ["xtask", "mesh-control"].into_iter().find(|name| !program(name).exists()) {
        return Some(format!("{missing} is not built"));
    }
    let output = Command::new(program("xtask")).args(["cluster", "build", "--check"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    match said.lines().find_map(|line| line.split_once("missing: ")) {
        Some((_, what)) => Some(format!("missing: {what}")),
        None if output.status.success() => None,
        None => panic!("what is missing cannot be told: {said}"),
    }
}

/// A cluster, and what runs in its first node; all removed at the end, whatever the end is.
struct Cluster {
    index: String,
    janitor: Child,
    folder: tempfile::TempDir,
    processes: RefCell<Vec<Child>>,
    _claim: File,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.janitor.stdin.take());
        let _ = self.janitor.wait();
        // They ended with their node.
        self.processes.get_mut().iter_mut().for_each(|child| drop(child.kill().and_then(|()| child.wait())));
    }
}

impl Cluster {
    /// The first free one from the top: people use them from the bottom. Or the one of `UNDERMESH_CLUSTER`.
    fn up() -> Cluster {
        let told = std::env::var("UNDERMESH_CLUSTER").ok().and_then(|index| index.parse::<u8>().ok());
        let indices = told.map_or_else(|| (1..8).rev().collect(), |index| vec![index]);
        for index in indices {
            let claim = std::env::temp_dir().join(format!("undermesh-cluster{index}.lock"));
            let claim = File::options().create(true).append(true).open(claim).unwrap();
            if claim.try_lock().is_err() || Path::new(&format!("/run/netns/um{index}-sw")).exists() {
                continue;
            }
            // It waits for our end, which it notices by the end of its input, also when we are killed.
            let line = format!("read -r _; exec '{}' cluster --cluster {index} down", program("xtask").display());
            let mut janitor = Command::new("sh").args(["-c", &line]).stdin(Stdio::piped()).spawn().unwrap();
            let xtask = || Command::new(program("xtask"));
            let up = xtask().args(["cluster", "--cluster", &index.to_string(), "up", "1"]).output().unwrap();
            let said = String::from_utf8_lossy(&up.stderr).into_owned();
            if said.contains("is there already") {
                janitor.kill().and_then(|()| janitor.wait()).unwrap();
                continue;
            }
            let folder = tempfile::tempdir().unwrap();
            let cluster =
                Cluster { index: index.to_string(), janitor, folder, processes: RefCell::default(), _claim: claim };
            assert!(up.status.success(), "{said}");
            return cluster;
        }
        panic!("no cluster of this machine is free");
    }

    fn verb(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program("xtask"));
        command.args(["cluster", "--cluster", &self.index]).args(arguments).stdin(Stdio::null());
        command
    }

    fn kubectl(&self, line: &str) -> Output {
        self.verb(&[&["kubectl"], &line.split(' ').collect::<Vec<_>>()[..]].concat()).output().unwrap()
    }

    /// What kubectl prints. It may fail for a moment, and what it then does not print says nothing.
    fn says(&self, line: &str) -> String {
        self.eventually(line, || {
            let output = self.kubectl(line);
            output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
        })
    }

    fn run(&self, line: &str) {
        self.eventually(line, || self.kubectl(line).status.success().then_some(()));
    }

    fn apply(&self, objects: &[Value]) {
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects }).to_string();
        self.eventually("objects applied", || self.give(&["apply"], &list).status.success().then_some(()));
    }

    /// Kubectl with text to read.
    fn give(&self, verb: &[&str], text: &str) -> Output {
        let mut command = self.verb(&[&["kubectl"], verb, &["-f", "-"]].concat());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // One that ended early says so itself.
        let _ = child.stdin.take().unwrap().write_all(text.as_bytes());
        child.wait_with_output().unwrap()
    }

    /// Runs in the node until it is lost.
    fn start(&self, name: &str, arguments: &[&str]) {
        let log = File::create(self.folder.path().join(format!("{name}.log"))).unwrap();
        let program = program(name);
        let mut command = self.verb(&["node", "1", program.to_str().unwrap()]);
        let child = command.args(arguments).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        self.processes.borrow_mut().push(child);
    }

    /// Asks from the node, as anybody may who has a shell there: the first line of the answer's body.
    fn get(&self, host: &str, port: u16, path: &str) -> Option<String> {
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        let url = format!("http://{host}:{port}{path}");
        let output = self.verb(&["node", "1", "curl", "-sSg", "-m", "10", &url]).output().unwrap();
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn probes_passed(&self) -> u64 {
        let metrics = self.get("127.0.0.1", 15020, "/metrics").unwrap_or_default();
        let line =
            metrics.lines().find_map(|line| line.strip_prefix("mesh_kernel_decisions_total{reason=\"probe_passed\"} "));
        line.and_then(|count| count.parse().ok()).unwrap_or_default()
    }

    fn eventually<T>(&self, what: &str, mut so: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(value) = so() {
                return value;
            }
            assert!(Instant::now() < deadline, "{what} does not become true\n{}", self.logs());
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn logs(&self) -> String {
        let mut text = String::from_utf8_lossy(&self.kubectl("get pods -A -o wide").stdout).into_owned();
        for name in ["mesh-control", "mesh-agent"] {
            let log = fs::read_to_string(self.folder.path().join(format!("{name}.log"))).unwrap_or_default();
            let last: Vec<&str> = log.lines().rev().take(15).collect();
            text += &format!("--- {name}\n{}\n", last.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
        text
    }

    /// Control plane and agent, as processes of the node.
    fn install(&self) {
        self.apply(&[
            json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "undermesh-system" } }),
            json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "mesh-agent", "namespace": "undermesh-system" } }),
            kind("PeerAuthentication", "peerauthentications"),
            kind("AuthorizationPolicy", "authorizationpolicies"),
        ]);
        let admin = program("x")
            .parent()
            .and_then(Path::parent)
            .unwrap()
            .join(format!("cluster{}/admin.kubeconfig", self.index));
        let admin = admin.to_str().unwrap();
        let file = |name: &str| self.folder.path().join(name).to_str().unwrap().to_owned();
        self.start(
            "mesh-control",
            &["--kube", "--kubeconfig", admin, "--listen", "127.0.0.1:15012", "--metrics", "127.0.0.1:15014"],
        );
        let write = |name: &str, line: &str| {
            let text = self.eventually(line, || Some(self.says(line)).filter(|text| !text.is_empty()));
            fs::write(file(name), text.trim()).unwrap();
        };
        write("root.pem", "get configmap undermesh-root-cert -n undermesh-system -o jsonpath={.data.root-cert\\.pem}");
        write(
            "token",
            "create token mesh-agent -n undermesh-system --audience undermesh --bound-object-kind Node --bound-object-name n1",
        );
        // Where its cgroups are, and the kubelet's, it finds itself.
        let (root, token) = (file("root.pem"), file("token"));
        let control = ["--control", "127.0.0.1:15012", "--control-name", "mesh-control", "--control-root", &root];
        let rest = ["--node", NODE, "--token", &token, "--kube", admin, "--run-dir", "/run/undermesh"];
        self.start("mesh-agent", &[&control[..], &rest[..]].concat());
        self.eventually("the agent ready", || self.get("127.0.0.1", 15021, "/healthz/ready"));
    }
}

/// A definition that takes anything.
fn kind(kind: &str, plural: &str) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": format!("{plural}.security.istio.io") },
        "spec": {
            "group": "security.istio.io", "scope": "Namespaced",
            "names": { "kind": kind, "listKind": format!("{kind}List"), "plural": plural, "singular": kind.to_lowercase() },
            "versions": [{ "name": "v1", "served": true, "storage": true, "schema": {
                "openAPIV3Schema": { "type": "object", "x-kubernetes-preserve-unknown-fields": true } } }],
        },
    })
}

/// A pod with a port that is a probe (8080, asked by HTTP and by TCP) and one that is not.
fn pod(name: &str, port: u16, change: impl FnOnce(&mut Value)) -> Value {
    let serve =
        format!("echo {name} > /tmp/index.html; httpd -p {} -h /tmp; exec httpd -f -p {port} -h /tmp", port + 1);
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": "default", "labels": {} },
        "spec": {
            "nodeName": NODE, "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "app", "image": "docker.io/library/busybox:latest", "imagePullPolicy": "IfNotPresent",
                "command": ["sh", "-c", serve], "ports": [{ "name": "web", "containerPort": port }],
                "readinessProbe": { "httpGet": { "port": "web" }, "periodSeconds": 1, "timeoutSeconds": 5 },
                "livenessProbe": { "tcpSocket": { "port": port }, "periodSeconds": 1, "timeoutSeconds": 5 },
            }],
        },
    });
    change(&mut pod);
    pod
}

#[test]
fn features_EN4_EN11_PL5_PA4_running_pods_join_and_leave_live_and_their_probes_stay_green_under_strict_and_default_deny()
 {
    if let Some(reason) = hindrance() {
        println!("SKIPPED: the agent on a cluster: {reason}");
        return;
    }
    let cluster = Cluster::up();
    cluster.install();
    cluster.apply(&[
        pod("web", 8080, |_| {}),
        pod("out", 8080, |pod| pod["metadata"]["labels"] = json!({ "istio.io/dataplane-mode": "none" })),
        pod("host", 18_080, |pod| pod["spec"]["hostNetwork"] = json!(true)),
    ]);
    let field = |pod: &str, path: &str| cluster.says(&format!("get pod {pod} -o jsonpath={{{path}}}"));
    let mark = |pod: &str| field(pod, r".metadata.annotations.ambient\.istio\.io/redirection");
    let ready = |pod: &str| field(pod, r#".status.conditions[?(@.type=="Ready")].status"#);
    // What changes if a probe fails often enough, or a pod is made anew.
    let life = || {
        field(
            "web",
            r#".metadata.uid},{.status.containerStatuses[0].restartCount},{.status.conditions[?(@.type=="Ready")].lastTransitionTime"#,
        )
    };
    for name in ["web", "out", "host"] {
        cluster.eventually(&format!("{name} is ready"), || (ready(name) == "True").then_some(()));
    }
    let before =
        cluster.eventually("its life", || Some(life()).filter(|life| life.split(',').all(|part| !part.is_empty())));
    let ips = cluster.eventually("an address of each family", || {
        let ips: Vec<String> = field("web", ".status.podIPs[*].ip").split(' ').map(str::to_owned).collect();
        (ips.len() == 2).then_some(ips)
    });
    let answers = |port: u16| ips.iter().map(|ip| cluster.get(ip, port, "/").is_some()).collect::<Vec<_>>();
    let until = |what: &str, port: u16, open: bool| {
        cluster.eventually(what, || (answers(port) == [open, open]).then_some(()));
    };
    until("not in the mesh: anybody is answered", 8080, true);

    cluster.run("label namespace default istio.io/dataplane-mode=ambient");
    cluster.eventually("web is enrolled", || (mark("web") == "enabled").then_some(()));
    assert_eq!((mark("out"), mark("host")), (String::new(), String::new()));
    cluster.apply(&[
        json!({ "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
                "metadata": { "name": "strict", "namespace": "default" }, "spec": { "mtls": { "mode": "STRICT" } } }),
        json!({ "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
                "metadata": { "name": "nobody", "namespace": "default" }, "spec": {} }),
    ]);
    until("STRICT: who is not the kubelet is refused, on the port of a probe too", 8080, false);
    assert_eq!(answers(8081), [false, false]);
    let passed = cluster.probes_passed();
    cluster.eventually("ten probes more", || (cluster.probes_passed() >= passed + 10).then_some(()));
    assert_eq!((ready("web").as_str(), life()), ("True", before.clone()), "{}", cluster.logs());
    assert_eq!(answers(8080), [false, false]);

    // Live, by an annotation: one port leaves the mesh and comes back.
    cluster.run("annotate pod web traffic.sidecar.istio.io/excludeInboundPorts=8081");
    until("an excluded port is open", 8081, true);
    assert_eq!(answers(8080), [false, false]);
    cluster.run("annotate pod web traffic.sidecar.istio.io/excludeInboundPorts-");
    until("and is not any more", 8081, false);

    refuses_probes_of_others(&cluster);
    cluster.run("label namespace default istio.io/dataplane-mode-");
    cluster.eventually("the annotation is gone", || mark("web").is_empty().then_some(()));
    until("released: anybody is answered", 8080, true);
    cluster.run("label pod web istio.io/dataplane-mode=ambient");
    until("its own label is enough", 8080, false);
    assert_eq!(
        (mark("web").as_str(), ready("web").as_str(), life()),
        ("enabled", "True", before),
        "{}",
        cluster.logs()
    );
}

/// To a pod.
type Change = fn(&mut Value);

/// With the policy of the chart.
fn refuses_probes_of_others(cluster: &Cluster) {
    let rendered = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/rendered/undermesh.yaml");
    let rendered = fs::read_to_string(rendered).unwrap();
    let of_policy =
        |object: &&str| object.contains("kind: ValidatingAdmissionPolicy") && object.contains("probe-hosts");
    let policy: Vec<&str> = rendered.split("\n---\n").filter(of_policy).collect();
    let applied = cluster.give(&["apply"], &policy.join("\n---\n"));
    assert!(policy.len() == 2 && applied.status.success(), "{}", String::from_utf8_lossy(&applied.stderr));
    let made = |change: Change| {
        let output = cluster.give(&["create", "--dry-run=server"], &pod("probing", 80, change).to_string());
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let others: [(&str, Change); 3] = [
        ("a probe", |pod| pod["spec"]["containers"][0]["readinessProbe"]["httpGet"]["host"] = json!("198.18.9.9")),
        ("a hook", |pod| {
            let hook = json!({ "tcpSocket": { "port": 80, "host": "web.default.svc" } });
            pod["spec"]["containers"][0]["lifecycle"]["preStop"] = hook;
        }),
        ("a probe of a sidecar", |pod| {
            let mut sidecar = pod["spec"]["containers"][0].clone();
            (sidecar["name"], sidecar["restartPolicy"]) = (json!("sidecar"), json!("Always"));
            sidecar["startupProbe"] = json!({ "tcpSocket": { "port": 80, "host": "fd00:198::9" } });
            pod["spec"]["initContainers"] = json!([sidecar]);
        }),
    ];
    for (what, change) in others {
        // It takes the API server a moment to know of it.
        cluster.eventually(what, || made(change).1.contains("probe-hosts.undermesh.io").then_some(()));
    }
    let fine: [Change; 2] =
        [|_| {}, |pod| pod["spec"]["containers"][0]["livenessProbe"]["tcpSocket"]["host"] = json!("127.0.0.1")];
    for change in fine {
        cluster.eventually("a pod that is fine", || made(change).0.then_some(()));
    }
}
