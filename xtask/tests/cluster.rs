//! Clusters from nothing and back to nothing, two at a time: one with a pod that lives through a node's reboot, one with IPv6 as primary
//! family and an API server that its clients reach through faults. Needs root, containerd and the rest of what
//! `cargo xtask cluster` names, and its programs built: a test does not start to compile Kubernetes by itself.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const XTASK: &str = env!("CARGO_BIN_EXE_xtask");

/// A pod that comes back after its node's reboot, and a service in front of it.
const OBJECTS: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      nodeName: n1
      terminationGracePeriodSeconds: 0
      containers:
      - name: web
        image: docker.io/library/busybox:latest
        imagePullPolicy: IfNotPresent
        command: [sh, -c, "echo hello > /tmp/index.html; exec httpd -f -p 80 -h /tmp"]
        readinessProbe: {httpGet: {path: /, port: 80}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: LoadBalancer, selector: {app: web}, ports: [{port: 80}]}
"#;

/// One cluster of our own, removed at the end whatever the end is.
struct Cluster {
    index: String,
    janitor: Option<Child>,
    claim: Option<File>,
}

impl Cluster {
    /// The first free one from the top: people use them from the bottom.
    fn up(options: &[&str]) -> Cluster {
        for index in (1..8).rev() {
            // Tests that run beside this one, in this process or another, want another cluster.
            let path = std::env::temp_dir().join(format!("undermesh-cluster{index}.lock"));
            let claim = File::options().create(true).append(true).open(path).expect("a lock");
            let index = index.to_string();
            if claim.try_lock().is_err() || Path::new(&format!("/run/netns/um{index}-sw")).exists() {
                continue;
            }
            // It waits for our end, which it notices by the end of its input, also when we are killed.
            let line = format!("read -r _; exec '{XTASK}' cluster --cluster {index} down");
            let janitor = Command::new("sh").args(["-c", &line]).stdin(Stdio::piped()).spawn().expect("a janitor");
            let mut cluster = Cluster { index, janitor: Some(janitor), claim: Some(claim) };
            let output = cluster.verb(&[&["up"], options].concat());
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            if said.contains("is there already") {
                // Somebody who knows nothing of our locks was first: it is not ours to end.
                let mut janitor = cluster.janitor.take().expect("a janitor");
                janitor.kill().and_then(|()| janitor.wait()).expect("killed");
                continue;
            }
            assert!(output.status.success(), "{said}\n{}", cluster.logs());
            return cluster;
        }
        panic!("all clusters of this machine are in use");
    }

    fn verb(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(XTASK);
        command.args(["cluster", "--cluster", &self.index]).args(arguments).stdin(Stdio::null());
        command.output().expect("xtask starts")
    }

    /// Runs a verb that must succeed.
    fn run(&self, arguments: &[&str]) -> String {
        let output = self.verb(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}\n{}", self.logs());
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn apply(&self, objects: &str) {
        let mut command = Command::new(XTASK);
        command.args(["cluster", "--cluster", &self.index, "kubectl", "apply", "-f", "-"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("kubectl starts");
        child.stdin.take().expect("an input").write_all(objects.as_bytes()).expect("written");
        assert!(child.wait().expect("kubectl ends").success());
    }

    fn eventually(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(240);
        while !is_so() {
            assert!(Instant::now() < deadline, "{what} does not become true\n{}", self.logs());
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Ends it and looks at what is left, before anybody else may have its number.
    fn leaves_nothing(mut self) {
        let (index, _claim) = (self.index.clone(), self.claim.take());
        drop(self);
        assert_eq!(remains(&index), Vec::<String>::new());
    }

    /// The last lines of each log.
    fn logs(&self) -> String {
        let target = Path::new(XTASK).parent().and_then(Path::parent).expect("a target folder");
        let mut text = String::new();
        for entry in fs::read_dir(target.join(format!("cluster{}/log", self.index))).into_iter().flatten().flatten() {
            let log = String::from_utf8_lossy(&fs::read(entry.path()).unwrap_or_default()).into_owned();
            let lines: Vec<&str> = log.lines().rev().take(5).collect();
            text += &format!("--- {}\n", entry.file_name().to_string_lossy());
            lines.iter().rev().for_each(|line| text += &format!("{line}\n"));
        }
        text
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(mut janitor) = self.janitor.take() {
            drop(janitor.stdin.take());
            let _ = janitor.wait();
        }
    }
}

/// Why the test cannot run here, if it cannot.
fn hindrance() -> Option<String> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let user = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
    if user.split_whitespace().nth(1) != Some("0") {
        return Some("needs root".into());
    }
    let output = Command::new(XTASK).args(["cluster", "build", "--check"]).output().expect("xtask starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    match said.lines().find_map(|line| line.split_once("missing: ")) {
        Some((_, what)) => Some(format!("missing: {what}")),
        None if output.status.success() => None,
        None => panic!("what is missing cannot be told: {said}"),
    }
}

/// What of a cluster the machine still shows.
fn remains(index: &str) -> Vec<String> {
    let prefix = format!("um{index}-");
    let mut found = Vec::new();
    let mut folders = vec!["/run/netns".into(), "/sys/fs/cgroup".into()];
    folders.extend(fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path()));
    for folder in folders {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                found.push(entry.path().display().to_string());
            }
        }
    }
    let target = Path::new(XTASK).parent().and_then(Path::parent).expect("a target folder");
    let folder = target.join(format!("cluster{index}"));
    found.extend(folder.exists().then(|| folder.display().to_string()));
    let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
    found.extend(mounts.lines().filter(|line| line.contains(&*folder.to_string_lossy())).map(str::to_owned));
    for entry in fs::read_dir("/proc").expect("processes").flatten() {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        // The janitor's own line ends with `down`.
        let ours = line.contains(&format!("{}/", folder.display()))
            || line.contains(&format!("cluster --cluster {index} init"));
        found.extend(ours.then_some(line));
    }
    found
}

#[test]
fn a_cluster_runs_pods_survives_a_reboot_and_leaves_nothing() {
    if let Some(reason) = hindrance() {
        eprintln!("SKIPPED: cluster: {reason}");
        return;
    }
    let cluster = Cluster::up(&[]);
    let index = cluster.index.clone();
    let kubectl = |line: &str| cluster.verb(&[&["kubectl"], &line.split(' ').collect::<Vec<_>>()[..]].concat());
    let says = |line: &str| String::from_utf8_lossy(&kubectl(line).stdout).into_owned();

    assert_eq!(says("get nodes -o name"), "node/n1\nnode/n2\n");
    cluster.apply(OBJECTS);
    cluster.eventually("a pod that is ready", || says("get deploy web -o jsonpath={.status.readyReplicas}") == "1");
    let pod = says("get pods -l app=web -o jsonpath={.items[0].metadata.name}");
    assert_eq!(cluster.run(&["node", "1", "cat", "/proc/sys/kernel/hostname"]), "n1\n");
    // From the other node, by the service's address and by that of the load balancer.
    let ip = |path: &str| says(&format!("get svc web -o jsonpath={path}"));
    cluster.eventually("an address of the load balancer", || !ip("{.status.loadBalancer.ingress[0].ip}").is_empty());
    for address in [ip("{.spec.clusterIP}"), ip("{.status.loadBalancer.ingress[0].ip}")] {
        // By bash alone: the machine's static busybox cannot resolve anything outside of an image.
        let ask = format!("exec 3<>/dev/tcp/{address}/80; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; timeout 5 cat <&3");
        let page = || cluster.verb(&["node", "2", "timeout", "5", "bash", "-c", &ask]);
        cluster.eventually(&format!("a page from {address}"), || page().stdout.ends_with(b"\r\n\r\nhello\n"));
    }
    let name = "exec deploy/web -- nslookup web.default.svc.cluster.local";
    cluster.eventually("a name", || says(name).contains(&ip("{.spec.clusterIP}")));

    // An image of our own, on every node.
    let archive = std::env::temp_dir().join(format!("undermesh-cluster{index}.tar")).display().to_string();
    cluster.run(&["image", "test.example/own:1", &archive, "--busybox", "--entrypoint", "echo", "made here"]);
    cluster.run(&["load", &archive]);
    fs::remove_file(&archive).expect("removed");
    says("run own --image=test.example/own:1 --image-pull-policy=IfNotPresent --restart=Never");
    cluster.eventually("an image of our own", || says("logs own") == "made here\n");

    // A reboot loses what is in memory and keeps the disk, and the pod comes back.
    for folder in ["/run", "/var/lib", "/etc/cni/net.d", "/sys/fs/bpf"] {
        cluster.run(&["node", "1", "mkdir", &format!("{folder}/mark")]);
    }
    cluster.run(&["reboot", "1"]);
    for (folder, stays) in [("/run", false), ("/var/lib", true), ("/etc/cni/net.d", true), ("/sys/fs/bpf", false)] {
        let there = cluster.verb(&["node", "1", "test", "-d", &format!("{folder}/mark")]).status.success();
        assert_eq!(there, stays, "{folder} after the reboot");
    }
    assert!(!Path::new("/etc/cni/net.d/mark").exists(), "a node's files are its own");
    let restarted = format!(
        "get pod {pod} -o jsonpath={{.status.containerStatuses[0].restartCount}},{{.status.containerStatuses[0].ready}}"
    );
    let again = |said: String| said.ends_with(",true") && !said.starts_with("0,");
    cluster.eventually("the same pod, restarted", || again(says(&restarted)));

    // A part of the control plane goes and comes.
    cluster.run(&["stop", "kube-apiserver"]);
    assert!(!kubectl("get nodes --request-timeout=2s").status.success());
    assert!(!cluster.verb(&["stop", "kube-apiserver"]).status.success(), "it is stopped already");
    cluster.run(&["start", "kube-apiserver"]);
    cluster.eventually("the API server again", || kubectl("get nodes").status.success());

    cluster.leaves_nothing();
}

#[test]
fn a_cluster_with_ipv6_first_and_an_api_server_that_fails_its_clients() {
    if let Some(reason) = hindrance() {
        eprintln!("SKIPPED: cluster: {reason}");
        return;
    }
    let cluster = Cluster::up(&["1", "--ipv6"]);
    let index = cluster.index.clone();
    let kubectl = |line: &str| cluster.run(&[&["kubectl"], &line.split(' ').collect::<Vec<_>>()[..]].concat());
    cluster.apply(OBJECTS);
    kubectl("rollout status deploy/web --timeout=240s");
    let families = "-o jsonpath={.items[*].spec.ipFamilies}{.items[*].status.podIP}{.items[*].spec.clusterIP}";
    assert!(kubectl(&format!("get svc web {families}").replace(".items[*]", "")).starts_with("[\"IPv6\"]fd00:198:"));
    assert!(kubectl(&format!("get pods -l app=web {families}")).starts_with("fd00:198:"));
    let page = "exec deploy/web -- wget -q -O - http://web.default.svc.cluster.local/";
    assert_eq!(kubectl(page), "hello\n");

    // As the admin, but from the node, and so through what stands in front of the API server.
    let programs = Command::new(XTASK).args(["cluster", "build"]).output().expect("xtask starts").stdout;
    let program = Path::new(String::from_utf8_lossy(&programs).trim()).join("kubectl").display().to_string();
    let target = Path::new(XTASK).parent().and_then(Path::parent).expect("a target folder");
    let config = target.join(format!("cluster{index}/admin.kubeconfig")).display().to_string();
    let from_node = |path: &str| {
        let limited = ["node", "1", "timeout", "60", &program, "--kubeconfig", &config, "get", "--raw", path];
        let output = cluster.verb(&limited);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() { Ok(said) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
    };
    const WATCH: &str = "/api/v1/namespaces/default/pods?watch=1";
    cluster.run(&["fault", "--gone", "1"]);
    let events = from_node(WATCH).expect("a watch that ends in order");
    assert!(events.lines().last().is_some_and(|event| event.contains(r#""code":410"#)), "{events}");
    cluster.run(&["fault", "--cut", "2"]);
    assert!(from_node(WATCH).expect_err("a watch that is cut").contains("reset by peer"));
    cluster.run(&["fault", "--delay", "2"]);
    let start = Instant::now();
    from_node("/version").expect("a slow answer");
    assert!(start.elapsed() >= Duration::from_secs(2));
    cluster.run(&["fault", "--busy", "1"]);
    assert!(from_node("/version").expect_err("a refusal").contains("TooManyRequests"));
    kubectl("get nodes");
    cluster.run(&["fault"]);
    from_node("/version").expect("an answer");

    // The node's own clients outlive all this.
    kubectl("scale deploy/web --replicas=2");
    kubectl("rollout status deploy/web --timeout=240s");
    cluster.leaves_nothing();
}
