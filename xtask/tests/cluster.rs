//! Clusters from nothing and back to nothing, two at a time: one with a pod that lives through a node's reboot, one with IPv6 as primary
//! family and an API server that its clients reach through faults. Needs root, containerd and the rest of what
//! `cargo xtask cluster` names, and its programs built: a test does not start to compile Kubernetes by itself.

#[path = "support/cluster.rs"]
mod support;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use support::{Cluster, XTASK, can_run, remains};

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

#[test]
fn a_cluster_runs_pods_survives_a_reboot_and_leaves_nothing() {
    if !can_run("cluster") {
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
fn of_a_cluster_that_does_not_come_up_nothing_is_left() {
    if !can_run("cluster") {
        return;
    }
    let cluster = Cluster::free().next().expect("a number that is free");
    let index = cluster.index.clone();
    let in_the_way = |what: &str| {
        let added = Command::new("ip").args(["netns", "add", &format!("um{index}-{what}")]).status();
        assert!(added.expect("ip starts").success());
    };
    let said = |output: std::process::Output| {
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    // etcd and the API server run when it comes to the first node.
    in_the_way("n1");
    let error = said(cluster.verb(&["up"]));
    assert_eq!(remains(&index), [""; 0], "{error}");
    assert!(
        error.contains(&format!("cluster {index} did not come up and was taken down, its logs are in ")),
        "{error}"
    );
    let logs = Path::new(XTASK).ancestors().nth(2).expect("a target folder").join(format!("cluster{index}-failed"));
    assert!(logs.join("etcd.log").exists(), "{error}");
    fs::remove_dir_all(logs).expect("removed");

    // What stands is named, before anything is built, and stays.
    in_the_way("sw");
    let there =
        format!("error: cluster {index} is there already: `cargo xtask cluster --cluster {index} down` ends it");
    let mut conformance = Command::new(XTASK);
    conformance.args(["conformance", "--fresh", "--cluster", &index]);
    for said in [said(cluster.verb(&["up"])), said(conformance.output().expect("xtask starts"))] {
        assert!(said.starts_with(&there) && said.lines().count() == 1, "{said}");
    }
    assert!(Path::new(&format!("/run/netns/um{index}-sw")).exists());
    cluster.leaves_nothing();
}

#[test]
fn a_cluster_with_ipv6_first_and_an_api_server_that_fails_its_clients() {
    if !can_run("cluster") {
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
