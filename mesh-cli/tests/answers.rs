//! The process before API servers that say what a test wants: what it then changes, and what it must not. A server is a thread with a closure.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Answers a request, of which it gets method and path; nothing leaves it waiting.
type Answers = dyn Fn(&str, &str) -> Option<(u16, Value)> + Send + Sync;

struct Server {
    folder: tempfile::TempDir,
    log: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn new(answers: impl Fn(&str, &str) -> Option<(u16, Value)> + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let folder = tempfile::tempdir().expect("a folder");
        let text = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}], "users": [{"name": "u", "user": {}}],
            "clusters": [{"name": "c", "cluster": {"server": format!("http://127.0.0.1:{port}")}}],
        });
        std::fs::write(folder.path().join("kubeconfig"), text.to_string()).expect("written");
        let log = Arc::new(Mutex::new(Vec::new()));
        let (answers, kept): (Arc<Answers>, _) = (Arc::new(answers), Arc::clone(&log));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (answers, log) = (Arc::clone(&answers), Arc::clone(&kept));
                std::thread::spawn(move || serve(stream, &*answers, &log));
            }
        });
        Server { folder, log }
    }

    fn meshctl(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_meshctl"));
        command.arg("--kubeconfig").arg(self.folder.path().join("kubeconfig")).args(line.split(' '));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, line: &str) -> (Option<i32>, String) {
        let Output { status, stdout, stderr } = self.meshctl(line).output().expect("meshctl starts");
        (status.code(), String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned())
    }

    fn log(&self) -> Vec<String> {
        self.log.lock().expect("a log").clone()
    }

    /// What it was asked to change.
    fn changes(&self) -> Vec<String> {
        self.log().into_iter().filter(|line| !line.starts_with("GET") && !line.contains("accessreviews")).collect()
    }
}

fn serve(stream: TcpStream, answers: &Answers, log: &Mutex<Vec<String>>) {
    let mut reader = BufReader::new(stream);
    loop {
        let (mut first, mut length) = (String::new(), 0);
        if reader.read_line(&mut first).is_err() || first.is_empty() {
            return;
        }
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).is_err() || line.trim().is_empty() {
                break;
            }
            if let Some(number) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = number.trim().parse().unwrap_or(0);
            }
        }
        let mut body = vec![0; length];
        let mut words = first.split_whitespace();
        let (Some(method), Some(path), Ok(())) = (words.next(), words.next(), reader.read_exact(&mut body)) else {
            return;
        };
        log.lock().expect("a log").push(format!("{method} {path}"));
        let Some((code, answer)) = answers(method, path) else {
            // Until the other side has enough.
            let _ = reader.read_line(&mut String::new());
            return;
        };
        let (text, wait) = (answer.to_string(), if code == 429 { "Retry-After: 0\r\n" } else { "" });
        let head = format!(
            "HTTP/1.1 {code} X\r\nContent-Type: application/json\r\n{wait}Content-Length: {}\r\n\r\n",
            text.len()
        );
        if reader.get_mut().write_all((head + &text).as_bytes()).is_err() {
            return;
        }
    }
}

/// Where kinds are, and lists that are empty: a cluster with nothing in it.
fn empty(method: &str, path: &str) -> (u16, Value) {
    let kinds = |kinds: &[(&str, &str, bool)]| {
        let all =
            kinds.iter().map(|(kind, name, is_inside)| json!({"kind": kind, "name": name, "namespaced": is_inside}));
        (200, json!({"resources": all.collect::<Vec<_>>()}))
    };
    match (method, path) {
        ("GET", "/version") => (200, json!({"gitVersion": "v1.34.2"})),
        ("GET", "/api/v1") => kinds(&[
            ("Namespace", "namespaces", false),
            ("ServiceAccount", "serviceaccounts", true),
            ("ConfigMap", "configmaps", true),
            ("Service", "services", true),
        ]),
        ("GET", "/apis/apps/v1") => kinds(&[("Deployment", "deployments", true), ("DaemonSet", "daemonsets", true)]),
        ("GET", "/apis/rbac.authorization.k8s.io/v1") => kinds(&[
            ("ClusterRole", "clusterroles", false),
            ("ClusterRoleBinding", "clusterrolebindings", false),
            ("Role", "roles", true),
            ("RoleBinding", "rolebindings", true),
        ]),
        ("GET", path) if path.contains('?') => (200, json!({"items": []})),
        ("POST", path) if path.contains("accessreviews") => (201, json!({"status": {"allowed": true}})),
        _ => (404, json!({"message": format!("no {path}")})),
    }
}

fn ours(namespace: &str, name: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": namespace, "labels": {"app.kubernetes.io/part-of": "undermesh"}}})
}

#[test]
fn an_api_server_that_answers_nothing_is_no_cluster_without_a_mesh() {
    let server = Server::new(|_, _| Some((503, json!({"message": "no healthy upstream"}))));
    for line in ["check", "check --pre", "status"] {
        let (code, said) = server.run(line);
        assert_eq!(code, Some(69), "{line}: {said}");
        assert!(said.contains("503") && !said.contains("not installed"), "{line}: {said}");
    }
    // It lives, and lets us see nothing.
    let server = Server::new(|method, path| {
        Some(if path.contains('?') { (403, json!({"message": "forbidden"})) } else { empty(method, path) })
    });
    let (code, said) = server.run("status");
    assert_eq!(code, Some(69), "{said}");
    let (_, said) = server.run("check");
    assert!(said.contains("? labelled pods are in the mesh") && !said.contains("not installed"), "{said}");
}

/// A mesh in undermesh-system, seen from another namespace: what has no namespace is there under the same names.
#[test]
fn a_mesh_in_another_namespace_is_not_touched() {
    let server = Server::new(|method, path| {
        Some(match (method, path.split('?').next().unwrap_or_default()) {
            ("GET", "/apis/apps/v1/daemonsets") => (200, json!({"items": [ours("undermesh-system", "mesh-agent")]})),
            ("GET", "/apis/rbac.authorization.k8s.io/v1/clusterroles/undermesh-control") => {
                (200, ours("", "undermesh-control"))
            }
            _ => empty(method, path),
        })
    });
    for line in ["-n typo uninstall --yes", "-n typo install", "-n typo install --skip-checks"] {
        let (code, said) = server.run(line);
        assert_eq!(code, Some(1), "{line}: {said}");
        assert!(said.contains("undermesh-system"), "{line}: {said}");
    }
    assert_eq!(server.changes(), [""; 0]);
    let (code, said) = server.run("install --reuse-values");
    assert_eq!(code, Some(65), "{said}");
    assert!(said.contains("no record of values"), "{said}");
}

/// An installation whose record names things that are not ours, one of a kind that is gone, in a namespace that it made and others use, too.
fn shared(method: &str, path: &str) -> (u16, Value) {
    let object = |api: &str, kind: &str, namespace: &str, name: &str| json!({"apiVersion": api, "kind": kind, "namespace": namespace, "name": name});
    let rbac = "rbac.authorization.k8s.io/v1";
    let record = json!({
        "version": "0.1.0", "values": {}, "madeNamespace": true,
        "objects": [
            object(rbac, "ClusterRole", "", "cluster-admin"), object(rbac, "ClusterRole", "", "undermesh-control"),
            object("monitoring.coreos.com/v1", "ServiceMonitor", "u", "mesh-control"),
            object("v1", "ConfigMap", "u", "../../kube-system/configmaps/x"),
        ],
    });
    let path = path.split_once("?limit").map_or(path, |(path, _)| path);
    match (method, path) {
        ("GET", "/api/v1/namespaces/u/configmaps/meshctl-install") => {
            (200, json!({"data": {"inventory": record.to_string()}}))
        }
        ("GET", "/apis/rbac.authorization.k8s.io/v1/clusterroles/cluster-admin") => {
            (200, json!({"metadata": {"name": "cluster-admin"}}))
        }
        ("GET", "/apis/rbac.authorization.k8s.io/v1/clusterroles/undermesh-control") => {
            (200, ours("", "undermesh-control"))
        }
        ("GET", "/api/v1/namespaces/u") => (200, json!({"metadata": {"name": "u"}})),
        ("GET", "/api/v1/namespaces/u/secrets") => (200, json!({"items": [{"metadata": {"name": "cacerts"}}]})),
        ("GET", path) if path.starts_with("/api/v1/namespaces/u/") && !path.contains('?') => {
            (200, json!({"items": []}))
        }
        ("GET", path) if path.starts_with("/apis/apps/v1/") => (200, json!({"items": []})),
        // One that the control plane has made for a Gateway, and one that somebody has given its label.
        ("GET", path) if path.starts_with("/api/v1/services?labelSelector=gateway.istio.io%2Fmanaged") => {
            let owners = json!([{"kind": "Gateway", "name": "wp"}]);
            let made = json!({"metadata": {"name": "wp", "namespace": "shop", "ownerReferences": owners}});
            (200, json!({"items": [made, {"metadata": {"name": "copied", "namespace": "shop"}}]}))
        }
        ("GET", path) if path.starts_with("/apis/gateway.networking.k8s.io/v1/gatewayclasses?") => {
            let class = |name: &str, controller: &str| json!({"metadata": {"name": name}, "spec": {"controllerName": controller}});
            let classes = [class("undermesh", "undermesh.io/gateway-controller"), class("nginx", "nginx.org/x")];
            (200, json!({"items": classes}))
        }
        ("GET", path) if path.starts_with("/apis/gateway.networking.x-k8s.io/v1alpha1/xmeshes?") => {
            let mesh = |name: &str, controller: &str| json!({"metadata": {"name": name}, "spec": {"controllerName": controller}});
            let meshes = [mesh("undermesh", "undermesh.io/gateway-controller"), mesh("other", "linkerd.io/x")];
            (200, json!({"items": meshes}))
        }
        ("GET", "/api/v1/pods" | "/apis/apiextensions.k8s.io/v1/customresourcedefinitions") => {
            (200, json!({"items": []}))
        }
        ("DELETE", _) => (200, json!({})),
        _ => empty(method, path),
    }
}

/// The same without the name that is none.
fn plain(method: &str, path: &str) -> (u16, Value) {
    let (code, mut answer) = shared(method, path);
    if let Some(text) = answer.pointer("/data/inventory").and_then(Value::as_str) {
        let mut record: Value = serde_json::from_str(text).expect("a record");
        record["objects"].as_array_mut().expect("objects").pop();
        answer["data"]["inventory"] = json!(record.to_string());
    }
    (code, answer)
}

#[test]
fn what_is_not_ours_stays_when_the_mesh_goes() {
    let server = Server::new(|method, path| Some(plain(method, path)));
    let (code, said) = server.run("-n u uninstall --yes --skip-nodes");
    assert_eq!(code, Some(0), "{said}");
    let changes = server.changes();
    let expected = [
        "DELETE /apis/rbac.authorization.k8s.io/v1/clusterroles/undermesh-control",
        "DELETE /api/v1/namespaces/shop/services/wp",
        "DELETE /apis/gateway.networking.k8s.io/v1/gatewayclasses/undermesh",
        "DELETE /apis/gateway.networking.x-k8s.io/v1alpha1/xmeshes/undermesh",
        "DELETE /api/v1/namespaces/u/configmaps/meshctl-install",
    ];
    assert_eq!(changes, expected, "{said}");
    assert!(said.contains("ClusterRole cluster-admin stays"), "{said}");
    assert!(said.contains("Namespace u stays: it holds secrets/cacerts"), "{said}");
    // A program hears the same, and not in sentences.
    let server = Server::new(|method, path| Some(plain(method, path)));
    let output = server.meshctl("-n u uninstall --yes --skip-nodes -o json").output().expect("meshctl starts");
    let told: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let names = |list: &str| -> Vec<String> {
        let all = told[list].as_array().expect("a list").iter();
        all.map(|one| format!("{} {}", one["kind"].as_str().unwrap_or("-"), one["name"].as_str().unwrap_or("-")))
            .collect()
    };
    let removed = [
        "ClusterRole undermesh-control",
        "Service wp",
        "GatewayClass undermesh",
        "XMesh undermesh",
        "ConfigMap meshctl-install",
    ];
    assert_eq!(names("removed"), removed, "{told:#}");
    assert_eq!(names("kept"), ["ClusterRole cluster-admin", "Namespace u"], "{told:#}");
    assert!(told["kept"][1]["why"].as_str().is_some_and(|why| why.contains("secrets/cacerts")), "{told:#}");
    assert_eq!(
        (&told["nodes"], &told["problems"], &told["dryRun"]),
        (&json!([]), &json!([]), &json!(false)),
        "{told:#}"
    );
    assert!(told["steps"].as_array().is_some_and(|steps| steps.iter().all(|step| step["state"] == "done")), "{told:#}");
    // What cannot be a name is no part of a path.
    let server = Server::new(|method, path| Some(shared(method, path)));
    let (code, said) = server.run("-n u uninstall --yes --skip-nodes");
    assert_eq!(code, Some(1), "{said}");
    assert!(!server.changes().iter().any(|line| line.contains("kube-system")), "{:?}", server.changes());
}

#[test]
fn an_api_server_that_is_busy_is_asked_again() {
    let asked = Mutex::new(0);
    let server = Server::new(move |method, path| {
        let mut asked = asked.lock().expect("a count");
        *asked += 1;
        Some(if *asked % 3 != 0 { (429, json!({"message": "too many"})) } else { shared(method, path) })
    });
    let (code, said) = server.run("-n u uninstall --dry-run");
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("- ClusterRole undermesh-control"), "what would be done is listed: {said}");
    assert_eq!(server.changes(), [""; 0]);
}

/// What is said of Ctrl-C while this waits for an answer to that path, which never comes.
fn interrupted(line: &str, path: &'static str) -> String {
    let server = Server::new(move |method, asked| {
        let bare = asked.split_once('?').map_or(asked, |(bare, _)| bare);
        if bare == path { None } else { Some(plain(method, asked)) }
    });
    let mut child = server.meshctl(line).spawn().expect("meshctl starts");
    let deadline = Instant::now() + Duration::from_secs(60);
    while !server.log().iter().any(|asked| asked.contains(path)) {
        assert!(Instant::now() < deadline, "{:?}", server.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill starts");
    assert!(sent.success());
    let status = loop {
        if let Some(status) = child.try_wait().expect("a child") {
            break status;
        }
        if Instant::now() > deadline {
            child.kill().expect("killed");
            panic!("Ctrl-C is not heard");
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(status.code(), Some(130), "{line}");
    let mut said = String::new();
    child.stderr.take().expect("its words").read_to_string(&mut said).expect("text");
    said
}

/// It has waited once, by which it listens for the signal, and now hangs in the middle.
#[test]
fn ctrl_c_ends_it_between_two_waits() {
    const ROLE: &str = "/apis/rbac.authorization.k8s.io/v1/clusterroles/undermesh-control";
    let said = interrupted("-n u uninstall --yes --skip-nodes --request-timeout 5m", ROLE);
    assert!(said.contains("what was done stays"), "{said}");
    // What only looks has done nothing.
    let said = interrupted("-n u tap web --request-timeout 5m", "/api/v1/namespaces/u");
    assert!(said.contains("stopped; nothing was changed"), "{said}");
}

/// What has these labels, of a namespace, or one itself.
fn user(name: &str, namespace: &str, labels: &[(&str, &str)]) -> Value {
    let labels: serde_json::Map<String, Value> =
        labels.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
    let mut object = json!({"metadata": {"name": name, "labels": labels}});
    if !namespace.is_empty() {
        object["metadata"]["namespace"] = json!(namespace);
    }
    object
}

fn list(items: &[Value]) -> (u16, Value) {
    (200, json!({"items": items}))
}

/// A namespace that uses its waypoint, beside a gateway at the edge.
fn waypoints(method: &str, path: &str) -> (u16, Value) {
    let gateway = |name: &str, protocol: &str, port: u16| {
        let programmed =
            json!({"type": "Programmed", "status": "True", "reason": "Programmed", "message": "1 of 1 pods are ready"});
        json!({
            "metadata": {"name": name, "namespace": "shop"},
            "spec": {"gatewayClassName": "undermesh-waypoint", "listeners": [{"name": "l", "port": port, "protocol": protocol}]},
            "status": {"conditions": [programmed], "addresses": [{"type": "IPAddress", "value": "10.96.0.9"}]},
        })
    };
    let path = path.split_once('?').map_or(path, |(path, _)| path);
    match (method, path) {
        ("GET", "/apis/gateway.networking.k8s.io/v1") => (200, json!({"resources": []})),
        ("GET", "/api/v1/namespaces/shop") => {
            (200, json!({"metadata": {"name": "shop", "labels": {"istio.io/use-waypoint": "wp"}}}))
        }
        ("GET", "/apis/gateway.networking.k8s.io/v1/namespaces/shop/gateways") => {
            (200, json!({"items": [gateway("wp", "HBONE", 15008), gateway("edge", "HTTP", 80)]}))
        }
        ("GET", "/apis/gateway.networking.k8s.io/v1/namespaces/shop/gateways/other") => {
            (200, gateway("other", "HBONE", 15008))
        }
        ("GET", "/apis/gateway.networking.k8s.io/v1/namespaces/shop/gateways/slow") => {
            let mut slow = gateway("slow", "HBONE", 15008);
            slow["status"]["conditions"][0]["status"] = json!("False");
            (200, slow)
        }
        ("GET", "/api/v1/namespaces") => list(&[
            user("shop", "", &[("istio.io/use-waypoint", "wp")]),
            user("front", "", &[("istio.io/use-waypoint", "wp"), ("istio.io/use-waypoint-namespace", "shop")]),
            user("other", "", &[("istio.io/use-waypoint", "wp")]),
        ]),
        ("GET", "/api/v1/services") => list(&[
            user("web", "shop", &[("istio.io/use-waypoint", "wp")]),
            user("far", "back", &[("istio.io/use-waypoint", "wp"), ("istio.io/use-waypoint-namespace", "shop")]),
            user("own", "back", &[("istio.io/use-waypoint", "wp")]),
            user("trial", "shop", &[("istio.io/use-waypoint", "x"), ("istio.io/use-waypoint-canary", "wp")]),
            user(
                "tried",
                "back",
                &[("istio.io/use-waypoint-canary", "wp"), ("istio.io/use-waypoint-canary-namespace", "shop")],
            ),
        ]),
        ("GET", "/api/v1/pods") => list(&[user("p", "shop", &[("istio.io/use-waypoint", "wp")])]),
        ("GET", "/apis/networking.istio.io/v1/serviceentries") => {
            let mut inline = user("inline", "shop", &[]);
            inline["spec"] =
                json!({"endpoints": [{"address": "192.0.2.1", "labels": {"istio.io/use-waypoint": "wp"}}]});
            list(&[user("api", "shop", &[("istio.io/use-waypoint", "wp")]), inline, user("none", "shop", &[])])
        }
        ("GET", "/apis/networking.istio.io/v1/workloadentries") => {
            list(&[user("vm", "back", &[("istio.io/use-waypoint", "wp"), ("istio.io/use-waypoint-namespace", "shop")])])
        }
        ("PATCH", path) if path.ends_with("/gateways/other") || path.ends_with("/gateways/slow") => (201, json!({})),
        ("PATCH" | "DELETE", _) => (200, json!({})),
        _ => empty(method, path),
    }
}

#[test]
fn a_namespace_is_never_left_with_a_waypoint_that_there_is_not() {
    const WP: &str = "/apis/gateway.networking.k8s.io/v1/namespaces/shop/gateways/wp";
    const OTHER: &str = "/apis/gateway.networking.k8s.io/v1/namespaces/shop/gateways/other";
    const SLOW: &str = "/apis/gateway.networking.k8s.io/v1/namespaces/shop/gateways/slow";
    const SHOP: &str = "PATCH /api/v1/namespaces/shop";
    for (line, code, part, expected) in [
        ("-n shop waypoint list", 0, "wp     service   True         10.96.0.9", vec![]),
        ("-n shop waypoint status wp", 0, "1 of 1 pods are ready", vec![]),
        ("-n shop waypoint status edge", 1, "there is no waypoint shop/edge", vec![]),
        ("-n shop waypoint delete wp edge", 1, "no waypoint shop/edge; nothing was deleted", vec![]),
        // The label goes first. Who is left with one is told.
        (
            "-n shop waypoint delete wp",
            0,
            "service shop/web is labelled",
            vec![SHOP.to_owned(), format!("DELETE {WP}")],
        ),
        ("-n shop waypoint delete --all", 0, "waypoint shop/wp deleted", vec![SHOP.to_owned(), format!("DELETE {WP}")]),
        (
            "-n shop waypoint apply --name other --enroll-namespace",
            1,
            "uses the waypoint wp already; --overwrite",
            vec![],
        ),
        ("-n none waypoint apply", 1, "there is no namespace none", vec![]),
        // The waypoint comes first.
        (
            "-n shop waypoint apply --name other --enroll-namespace --overwrite",
            0,
            "dataplane-mode=ambient",
            vec![format!("PATCH {OTHER}"), SHOP.to_owned()],
        ),
        // What cannot be reached yet would close the namespace.
        (
            "-n shop waypoint apply --name slow --enroll-namespace --overwrite --waypoint-timeout 1s",
            1,
            "waypoint shop/slow",
            vec![format!("PATCH {SLOW}")],
        ),
        (
            "-n shop waypoint apply --name slow --enroll-namespace --overwrite --wait=false",
            0,
            "namespace shop uses the waypoint slow",
            vec![format!("PATCH {SLOW}"), SHOP.to_owned()],
        ),
    ] {
        let server = Server::new(|method, path| Some(waypoints(method, path)));
        let (found, said) = server.run(line);
        assert_eq!(found, Some(code), "{line}: {said}");
        assert!(said.contains(part), "{line}: {said}");
        let changes: Vec<String> =
            server.changes().iter().map(|c| c.split('?').next().unwrap_or_default().to_owned()).collect();
        assert_eq!(changes, expected, "{line}");
    }
    let server = Server::new(|method, path| Some(empty(method, path)));
    let (code, said) = server.run("-n shop waypoint apply");
    assert!(code == Some(1) && said.contains("the cluster has no Gateway API"), "{said}");
}

#[test]
fn who_uses_a_waypoint_is_named_wherever_it_is_before_that_is_deleted() {
    let server = Server::new(|method, path| Some(waypoints(method, path)));
    let (code, said) = server.run("-n shop waypoint delete wp");
    assert_eq!(code, Some(0), "{said}");
    let named: Vec<&str> = said.lines().filter_map(|line| Some(line.split_once(" is labelled ")?.0)).collect();
    let expected = [
        "namespace front",
        "service shop/web",
        "service back/far",
        "service shop/trial",
        "service back/tried",
        "pod shop/p",
        "ServiceEntry shop/api",
        "an endpoint of ServiceEntry shop/inline",
        "WorkloadEntry back/vm",
    ];
    assert_eq!(named, expected, "{said}");
    // Who may not look into all namespaces is told so, and of his own.
    let server = Server::new(|method, path| match path.split_once('?').map_or(path, |(path, _)| path) {
        "/api/v1/namespaces" | "/api/v1/services" | "/api/v1/pods" => Some((403, json!({"message": "no"}))),
        path if path.ends_with("entries") => Some((404, json!({}))),
        "/api/v1/namespaces/shop/services" => Some(list(&[user("web", "shop", &[("istio.io/use-waypoint", "wp")])])),
        "/api/v1/namespaces/shop/pods" => Some(list(&[])),
        _ => Some(waypoints(method, path)),
    });
    let (code, said) = server.run("-n shop waypoint delete wp");
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("service shop/web is labelled"), "{said}");
    assert!(said.contains("may not list services of all namespaces"), "{said}");
    // And who may look at none of a kind, of which there may be users: the waypoint goes all the same.
    let server = Server::new(|method, path| match path.split_once('?').map_or(path, |(path, _)| path) {
        path if path.ends_with("entries") => Some((403, json!({"message": "no"}))),
        _ => Some(waypoints(method, path)),
    });
    let (code, said) = server.run("-n shop waypoint delete wp");
    assert!(code == Some(0) && said.contains("waypoint shop/wp deleted"), "{said}");
    assert!(said.contains("may not list serviceentries of namespace shop either"), "{said}");
    assert!(said.contains("service back/far is labelled"), "{said}");
    // What cannot be read for another reason leaves all as it was.
    let server = Server::new(|method, path| match path.split_once('?').map_or(path, |(path, _)| path) {
        path if path.ends_with("workloadentries") => Some((500, json!({"message": "no"}))),
        _ => Some(waypoints(method, path)),
    });
    let (code, said) = server.run("-n shop waypoint delete wp");
    assert_eq!((code, server.changes()), (Some(69), Vec::new()), "{said}");
}
