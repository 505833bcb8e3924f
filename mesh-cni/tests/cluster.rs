//! The plugin on a real cluster (`cargo xtask cluster`): new pods are captured before their first packet, held while the agent is away and after a
//! reboot of the node, and left alone when they are none of the mesh. Needs root, the cluster's programs and the product's binaries; a test
//! does not start to build them.
#![allow(clippy::unwrap_used, reason = "test code: a panic is the report")]
#![allow(non_snake_case, reason = "tests carry the ids of the rows they prove")]

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(240);

fn binaries() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_mesh-cni")).parent().unwrap().to_owned()
}

/// Why the test cannot run here, if it cannot.
fn hindrance() -> Option<String> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    if !status.lines().any(|line| line.starts_with("Uid:") && line.split_whitespace().nth(2) == Some("0")) {
        return Some("needs root".into());
    }
    let missing = ["xtask", "mesh-agent", "mesh-control"].into_iter().find(|name| !binaries().join(name).exists());
    if let Some(name) = missing {
        return Some(format!("{name} is not built: cargo build --workspace --bins"));
    }
    let check = Command::new(binaries().join("xtask")).args(["cluster", "build", "--check"]).output().unwrap();
    let said = String::from_utf8_lossy(&check.stderr).trim().to_owned();
    (!check.status.success()).then_some(said)
}

/// A cluster of one node, removed at the end whatever the end is.
struct Cluster {
    index: u8,
    janitor: Option<Child>,
    control: Option<Child>,
    _claim: File,
}

impl Cluster {
    /// The one that is asked for, or the first free one from the top: people use them from the bottom.
    fn up() -> Cluster {
        let given = std::env::var("UNDERMESH_CLUSTER").ok().and_then(|index| index.parse().ok());
        let indices = given.map_or_else(|| (1..8).rev().collect(), |index: u8| vec![index]);
        for index in indices {
            let path = std::env::temp_dir().join(format!("undermesh-cluster{index}.lock"));
            let claim = File::options().create(true).append(true).open(path).unwrap();
            if claim.try_lock().is_err() || Path::new(&format!("/run/netns/um{index}-sw")).exists() {
                continue;
            }
            // It waits for our end, which it notices by the end of its input, also when we are killed.
            let xtask = binaries().join("xtask");
            let line = format!("read -r _; exec '{}' cluster --cluster {index} down", xtask.display());
            let janitor = Command::new("sh").args(["-c", &line]).stdin(Stdio::piped()).spawn().unwrap();
            let cluster = Cluster { index, janitor: Some(janitor), control: None, _claim: claim };
            let output = cluster.verb(&["up", "1"]);
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            return cluster;
        }
        panic!("all clusters of this machine are in use");
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binaries().join("xtask"));
        command.args(["cluster", "--cluster", &self.index.to_string()]).args(arguments).stdin(Stdio::null());
        command
    }

    fn verb(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn run(&self, arguments: &[&str]) -> String {
        let output = self.verb(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn kubectl(&self, arguments: &[&str]) -> Option<String> {
        let output = self.verb(&[&["kubectl", "--request-timeout=10s"], arguments].concat());
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn on_node(&self, script: &str) -> Option<String> {
        let output = self.verb(&["node", "1", "sh", "-c", script]);
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn apply(&self, objects: &[Value]) {
        let mut command = self.command(&["kubectl", "apply", "-f", "-"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects });
        child.stdin.take().unwrap().write_all(list.to_string().as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
    }

    fn folder(&self) -> PathBuf {
        binaries().parent().unwrap().join(format!("cluster{}", self.index))
    }

    fn eventually<T>(&self, what: &str, mut value: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(value) = value() {
                return value;
            }
            assert!(Instant::now() < deadline, "{what} does not become true\n{}", self.report());
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// What people would look at.
    fn report(&self) -> String {
        let mut text = self.kubectl(&["get", "pods", "-A", "-o", "wide"]).unwrap_or_default();
        text += &self.kubectl(&["get", "events", "-A", "--field-selector=type=Warning"]).unwrap_or_default();
        for name in ["agent.log", "control.log"] {
            let log = fs::read_to_string(self.folder().join(name)).unwrap_or_default();
            let lines: Vec<&str> = log.lines().rev().take(30).collect();
            text += &format!("--- {name}\n");
            lines.iter().rev().for_each(|line| text += &format!("{line}\n"));
        }
        text
    }

    /// The control plane, beside the API server.
    fn start_control(&mut self) {
        let log = File::create(self.folder().join("control.log")).unwrap();
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &format!("um{}-cp", self.index)]).arg(binaries().join("mesh-control"));
        command.args(["--kube", "--listen", "0.0.0.0:15012"]);
        command
            .arg("--san")
            .arg(self.control_address())
            .arg("--kubeconfig")
            .arg(self.folder().join("admin.kubeconfig"));
        self.control = Some(command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap());
        let root = [
            "get",
            "configmap",
            "-n",
            "undermesh-system",
            "undermesh-root-cert",
            "-o",
            "jsonpath={.data.root-cert\\.pem}",
        ];
        let root =
            self.eventually("the root certificate", || self.kubectl(&root).filter(|root| root.contains("BEGIN")));
        fs::write(self.folder().join("root.pem"), root).unwrap();
        let token =
            ["create", "token", "mesh-agent", "-n", "undermesh-system", "--audience=undermesh", "--duration=1h"];
        let bound = ["--bound-object-kind=Node", "--bound-object-name=n1"];
        let token = self.eventually("a token", || self.kubectl(&[&token[..], &bound[..]].concat()));
        fs::write(self.folder().join("token"), token.trim()).unwrap();
    }

    fn control_address(&self) -> String {
        format!("198.18.{}.1", 32 * self.index)
    }

    /// Where nobody listens: refused at once, unless the agent is between.
    fn nobody(&self) -> String {
        format!("198.18.{}.11 9", 32 * self.index)
    }

    /// Starts the agent on the node; it ends with the node, or by `stop_agent`.
    fn start_agent(&self) {
        let unified = match Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
            true => "/sys/fs/cgroup",
            false => "/sys/fs/cgroup/unified",
        };
        let node = format!("{unified}/um{}-n1", self.index);
        let file = |name: &str| self.folder().join(name).display().to_string();
        let script = format!(
            "mkdir -p {node}/kubepods {node}/undermesh /run/undermesh; echo $$ > /run/agent.pid; exec {agent} --node n1 \
             --control {control}:15012 --control-root {root} --token {token} --run-dir /run/undermesh \
             --pods-cgroup {node}/kubepods --agent-cgroup {node}/undermesh --kube {kubeconfig} --cni on >> {log} 2>&1",
            agent = binaries().join("mesh-agent").display(),
            control = self.control_address(),
            root = file("root.pem"),
            token = file("token"),
            kubeconfig = file("admin.kubeconfig"),
            log = file("agent.log"),
        );
        // It is reaped with us; what it starts ends with the node.
        let mut command = self.command(&["node", "1", "sh", "-c", &script]);
        drop(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    }

    fn stop_agent(&self) {
        self.on_node("kill -9 $(cat /run/agent.pid)").unwrap();
        self.eventually("the agent's end", || self.on_node("! test -e /proc/$(cat /run/agent.pid)"));
    }

    fn until_chained(&self) {
        self.eventually("our entry in the chain", || {
            self.on_node("grep -q undermesh-cni /etc/cni/net.d/10-bridge.conflist")
        });
    }

    /// A pod that connects to nobody with the first thing that it does, and says how that was.
    fn pod(&self, namespace: &str, name: &str) -> Value {
        let script = format!(
            "nc {} < /dev/null 2> /tmp/said; if grep -q \"can't connect\" /tmp/said; then echo direct; else echo captured; fi; \
             exec sleep 1000000",
            self.nobody()
        );
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "namespace": namespace, "name": name },
            "spec": {
                "nodeName": "n1", "terminationGracePeriodSeconds": 0,
                "containers": [{
                    "name": "c", "image": "docker.io/library/busybox:latest", "imagePullPolicy": "IfNotPresent",
                    "command": ["sh", "-c", script],
                }],
            },
        })
    }

    /// What the pod said of its first connection, in its life after so many others.
    fn said(&self, namespace: &str, name: &str, restarts: u64) -> Option<String> {
        let of_pod = ["get", "pod", "-n", namespace, name, "-o", "json"];
        let pod: Value = serde_json::from_str(&self.kubectl(&of_pod)?).ok()?;
        let container = &pod["status"]["containerStatuses"][0];
        if container["restartCount"].as_u64()? < restarts || !container["state"]["running"].is_object() {
            return None;
        }
        let said = self.kubectl(&["logs", "-n", namespace, name])?;
        Some(said.trim().to_owned()).filter(|said| !said.is_empty())
    }

    fn says(&self, namespace: &str, name: &str, restarts: u64, expected: &str) {
        let said = self.eventually(&format!("{namespace}/{name} runs"), || self.said(namespace, name, restarts));
        assert_eq!(said, expected, "{namespace}/{name}\n{}", self.report());
    }

    /// The kubelet has been told that the pod is held back.
    fn is_held(&self, namespace: &str, name: &str) {
        let field = format!("--field-selector=involvedObject.name={name},reason=FailedCreatePodSandBox");
        let events = ["get", "events", "-n", namespace, &field, "-o", "jsonpath={.items[*].message}"];
        let held = || self.kubectl(&events).filter(|text| text.contains("undermesh: held back"));
        self.eventually(&format!("{namespace}/{name} is held back"), held);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(mut control) = self.control.take() {
            let _ = control.kill();
            let _ = control.wait();
        }
        if let Some(mut janitor) = self.janitor.take() {
            drop(janitor.stdin.take());
            let _ = janitor.wait();
        }
    }
}

#[test]
fn features_EN5_EN6_hardening_F45_F46_no_pod_of_the_mesh_starts_uncaptured() {
    if let Some(why) = hindrance() {
        println!("SKIPPED: the CNI plugin on a cluster: {why}");
        return;
    }
    let mut cluster = Cluster::up();
    let namespace = |name: &str, labels: Value| json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": labels } });
    cluster.apply(&[
        namespace("undermesh-system", json!({})),
        namespace("shop", json!({ "istio.io/dataplane-mode": "ambient" })),
        namespace("plain", json!({})),
        json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "namespace": "undermesh-system", "name": "mesh-agent" } }),
    ]);
    cluster.start_control();
    cluster.start_agent();
    cluster.until_chained();
    let original = cluster.on_node("cat /etc/cni/net.d/10-bridge.conflist").unwrap();

    // Before its first packet.
    cluster.apply(&[cluster.pod("shop", "first"), cluster.pod("plain", "out")]);
    cluster.says("shop", "first", 0, "captured");
    cluster.says("plain", "out", 0, "direct");

    // Somebody writes the chain anew.
    let anew = r#"{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"loopback"}]}"#;
    cluster.on_node(&format!("echo '{anew}' > /etc/cni/net.d/10-bridge.conflist")).unwrap();
    cluster.until_chained();
    fs::write(cluster.folder().join("original.conflist"), &original).unwrap();
    let copy = format!("cp {} /etc/cni/net.d/10-bridge.conflist", cluster.folder().join("original.conflist").display());
    cluster.on_node(&copy).unwrap();

    // The same again and again, while pods start. Each file is half there for a moment.
    cluster.until_chained();
    let mut plain: Value = serde_json::from_str(&original).unwrap();
    plain["plugins"].as_array_mut().unwrap().retain(|plugin| plugin["type"] != "undermesh-cni");
    let (file, stop) = (cluster.folder().join("plain.conflist"), cluster.folder().join("stop"));
    fs::write(&file, plain.to_string()).unwrap();
    let once = format!("cat {} > /etc/cni/net.d/10-bridge.conflist", file.display());
    let script = format!("until test -e {}; do {once}; sleep 0.02; done", stop.display());
    let mut writer = cluster.command(&["node", "1", "sh", "-c", &script]).spawn().unwrap();
    let names: Vec<String> = (0..6).map(|n| format!("written{n}")).collect();
    cluster.apply(&names.iter().map(|name| cluster.pod("shop", name)).collect::<Vec<_>>());
    names.iter().for_each(|name| cluster.says("shop", name, 0, "captured"));
    fs::write(&stop, "").unwrap();
    writer.wait().unwrap();
    cluster.until_chained();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    cluster.kubectl(&[&["delete", "pod", "-n", "shop", "--wait=false"], &names[..]].concat()).unwrap();

    // The agent is away, and there is nobody to put right what others write.
    cluster.stop_agent();
    cluster.on_node(&once).unwrap();
    cluster.apply(&[cluster.pod("shop", "second"), cluster.pod("plain", "late")]);
    cluster.says("plain", "late", 0, "direct");
    cluster.is_held("shop", "second");
    assert_eq!(cluster.said("shop", "second", 0), None);
    cluster.start_agent();
    cluster.says("shop", "second", 0, "captured");

    // The node's power is cut, and the agent comes later than everything else.
    cluster.run(&["reboot", "1"]);
    cluster.says("plain", "out", 1, "direct");
    cluster.is_held("shop", "first");
    assert_eq!((cluster.said("shop", "first", 1), cluster.said("shop", "second", 1)), (None, None));
    cluster.start_agent();
    cluster.says("shop", "first", 1, "captured");
    cluster.says("shop", "second", 1, "captured");

    // Taken off, the node has the chain of the others.
    let uninstall = format!("{} cni-uninstall --run-dir /run/undermesh", binaries().join("mesh-agent").display());
    cluster.eventually("the plugin is off", || cluster.on_node(&uninstall));
    assert_eq!(
        cluster.on_node("cat /etc/cni/net.d/* | grep -c undermesh; ls /opt/cni/bin | grep -c undermesh; true").unwrap(),
        "0\n0\n"
    );
    cluster.apply(&[cluster.pod("plain", "last")]);
    cluster.says("plain", "last", 0, "direct");
}
