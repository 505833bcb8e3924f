//! `meshctl tap` before an API server that runs commands in pods, and before a socket: several proxies at once, some of which fail.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tungstenite::Message;
use tungstenite::handshake::derive_accept_key;
use tungstenite::protocol::{Role, WebSocket};

/// What a command in a pod says: streams with bytes; without a last word its connection is cut.
type Script = Vec<(u8, String)>;
/// Instead of a stream: the connection is closed as it should be.
const CLOSE: u8 = 255;
/// Instead of a status: nobody answers.
const SILENCE: u16 = 0;

struct Server {
    folder: tempfile::TempDir,
    log: Arc<Mutex<Vec<String>>>,
}

/// Lists of objects by path without its query; and what is said by the command in a pod of that name, or with which status it is refused.
type Lists = fn(&str) -> Option<Value>;
type Scripts = fn(&str) -> Result<Script, u16>;

impl Server {
    fn new(lists: Lists, scripts: Scripts) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let folder = tempfile::tempdir().unwrap();
        let text = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}], "users": [{"name": "u", "user": {}}],
            "clusters": [{"name": "c", "cluster": {"server": format!("http://127.0.0.1:{port}")}}],
        });
        std::fs::write(folder.path().join("kubeconfig"), text.to_string()).unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&log);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let log = Arc::clone(&kept);
                std::thread::spawn(move || serve(stream, lists, scripts, &log));
            }
        });
        Server { folder, log }
    }

    /// Exit status, standard output and standard error.
    fn run(&self, line: &str) -> (Option<i32>, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_meshctl"));
        command.arg("--kubeconfig").arg(self.folder.path().join("kubeconfig")).args(line.split(' '));
        let output = command.stdin(Stdio::null()).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    }

    fn asked(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }
}

fn serve(stream: TcpStream, lists: Lists, scripts: Scripts, log: &Mutex<Vec<String>>) {
    let mut reader = BufReader::new(stream);
    loop {
        let (mut first, mut key) = (String::new(), String::new());
        if reader.read_line(&mut first).is_err() || first.is_empty() {
            return;
        }
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).is_err() || line.trim().is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("sec-websocket-key")
            {
                key = value.trim().to_owned();
            }
        }
        let path = first.split_whitespace().nth(1).unwrap_or_default();
        let (bare, query) = path.split_once('?').unwrap_or((path, ""));
        let query = form_urlencoded::parse(query.as_bytes());
        let asked: Vec<String> = query.map(|(key, value)| format!("{key}={value}")).collect();
        log.lock().unwrap().push(format!("{bare} {}", asked.join(" ")));
        let stream = reader.get_mut();
        let answer = |code: u16, value: &Value| {
            let text = value.to_string();
            format!(
                "HTTP/1.1 {code} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{text}",
                text.len()
            )
        };
        let Some(pod) = bare.strip_suffix("/exec").and_then(|path| path.rsplit('/').next()) else {
            let found =
                lists(bare).map_or_else(|| answer(404, &json!({"message": "no such path"})), |v| answer(200, &v));
            if stream.write_all(found.as_bytes()).is_err() {
                return;
            }
            continue;
        };
        match scripts(pod) {
            // Until the client has gone.
            Err(SILENCE) => drop(reader.read_to_end(&mut Vec::new())),
            Err(code) => {
                let refusal = answer(code, &json!({"message": "it is not for you"}));
                // What is kept alive is asked again on the same connection, as by the clients of real servers.
                if stream.write_all(refusal.as_bytes()).is_ok() && code != 101 {
                    continue;
                }
            }
            Ok(script) => {
                let accept = derive_accept_key(key.as_bytes());
                let head = format!(
                    "HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n"
                );
                let _ = stream.write_all(head.as_bytes());
                let mut socket = WebSocket::from_raw_socket(stream, Role::Server, None);
                for (channel, text) in script {
                    let _ = match channel {
                        CLOSE => socket.close(None),
                        channel => socket.send(Message::binary([&[channel][..], text.as_bytes()].concat())),
                    };
                }
            }
        }
        return;
    }
}

fn pod(namespace: &str, name: &str, node: &str, labels: &Value) -> Value {
    let containers = json!([{"name": if namespace == "shop" { "istio-proxy" } else { "mesh-agent" }}]);
    json!({
        "metadata": {"namespace": namespace, "name": name, "labels": labels},
        "spec": {"nodeName": node, "containers": containers}, "status": {"phase": "Running"},
    })
}

/// A namespace whose services have a waypoint with two pods, and one pod, on a node with an agent.
fn shop(path: &str) -> Option<Value> {
    let items = |items: Vec<Value>| Some(json!({"items": items}));
    let of = json!({"gateway.networking.k8s.io/gateway-name": "wp"});
    match path {
        "/api/v1/namespaces/shop" => {
            Some(json!({"metadata": {"name": "shop", "labels": {"istio.io/use-waypoint": "wp"}}}))
        }
        "/api/v1/namespaces/shop/pods" => items(vec![
            pod("shop", "web-1", "n1", &json!({"app": "web"})),
            pod("shop", "wp-1", "n2", &of),
            pod("shop", "wp-2", "n2", &of),
        ]),
        "/api/v1/namespaces/shop/services" => {
            items(vec![json!({"metadata": {"namespace": "shop", "name": "web"}, "spec": {"selector": {"app": "web"}}})])
        }
        "/api/v1/namespaces/front/pods" => {
            let owned = |name: &str, kind: &str, owner: &str| {
                let mut pod = pod("front", name, "n1", &json!({"pod-template-hash": "5d"}));
                pod["metadata"]["ownerReferences"] = json!([{"kind": kind, "name": owner, "controller": true}]);
                pod
            };
            items(vec![owned("api-5d-x", "ReplicaSet", "api-5d"), owned("db-0", "StatefulSet", "db")])
        }
        "/api/v1/namespaces/undermesh-system/pods" => {
            items(vec![pod("undermesh-system", "agent-1", "n1", &json!({"app": "mesh-agent"}))])
        }
        _ => None,
    }
}

/// The same without a waypoint.
fn bare(path: &str) -> Option<Value> {
    match path {
        "/api/v1/namespaces/shop" => Some(json!({"metadata": {"name": "shop"}})),
        "/api/v1/namespaces/shop/pods" => Some(json!({"items": [pod("shop", "web-1", "n1", &json!({"app": "web"}))]})),
        path => shop(path),
    }
}

fn begun(proxy: &str) -> String {
    format!("{{\"kind\":\"tap\",\"name\":\"{proxy}\"}}\n")
}

const ENDED: &str = "{\"kind\":\"end\",\"matched\":5,\"shown\":1,\"limited\":4,\"lost\":0}\n";
const SUCCESS: &str = "{\"status\":\"Success\"}";

fn exit(code: i32) -> String {
    json!({"status": "Failure", "message": "x", "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]}}).to_string()
}

fn request(path: &str) -> String {
    format!(
        "{{\"kind\":\"request\",\"time\":\"2026-01-02T03:04:05.678Z\",\"source\":{{\"workload\":\"web\",\"namespace\":\"shop\"}},\"destination\":{{}},\"method\":\"GET\",\"authority\":\"web\",\"path\":\"{path}\",\"status\":503,\"flags\":\"UH\",\"durationMs\":1,\"bytesReceived\":2,\"bytesSent\":3}}\n"
    )
}

/// One pod tells all, in pieces that end anywhere; one has too many taps; the agent dies.
fn mixed(pod: &str) -> Result<Script, u16> {
    let line = request("/a");
    Ok(match pod {
        "wp-1" => {
            vec![(1, begun("shop/wp-1") + &line[..40]), (1, line[40..].to_owned() + ENDED), (3, SUCCESS.to_owned())]
        }
        "wp-2" => vec![(2, "4 taps are open here\n".to_owned()), (3, exit(75))],
        _ => vec![(1, begun("n1") + "{\"kind\":\"connection\",\"direction\":\"inbound\",\"flags\":\"DENY\"}\n")],
    })
}

const SHOWN: &str = "03:04:05.678 shop/wp-1 web.shop -> ? GET web /a 503 UH 1ms 2/3B\n";

#[test]
fn features_tm_16_streams_of_all_proxies_are_merged_and_one_that_fails_ends_alone() {
    let server = Server::new(shop, mixed);
    let (code, out, told) = server.run("tap web -n shop --from deploy/api.front --max-rps 7 --duration 1m");
    assert_eq!(code, Some(0), "{out}{told}");
    assert!(out.contains(SHOWN) && out.lines().count() == 2, "{out}");
    assert!(out.contains("- node/n1 ? -> ? inbound DENY 0ms 0/0B\n"), "{out}");
    for line in [
        "shop/wp-1 is tapped",
        "shop/wp-1: not shown of 5: 4 over --max-rps",
        "shop/wp-2: 4 taps are open here",
        "node/n1: it broke off before its time",
    ] {
        assert!(told.contains(line), "{line}: {told}");
    }
    let asked = server.asked();
    let of = |pod: &str| asked.iter().find(|line| line.contains(&format!("/{pod}/exec "))).unwrap().clone();
    let waypoint = "/api/v1/namespaces/shop/pods/wp-1/exec stdout=true stderr=true container=istio-proxy command=/mesh-waypoint command=tap command=max-rps=7&seconds=60&from=workload%3Afront%2Fapi&to=service%3Ashop%2Fweb";
    assert_eq!(of("wp-1"), waypoint);
    // An agent knows a service by its pods.
    assert!(of("agent-1").contains("container=mesh-agent command=/mesh-agent command=tap command=--run-dir=/run/undermesh command=max-rps=7&seconds=60&from=workload%3Afront%2Fapi&to=service%3Ashop%2Fweb&to=pod%3Ashop%2Fweb-1"), "{asked:?}");
    // Pods of a StatefulSet are known by their own names.
    let server = Server::new(shop, mixed);
    let (_, _, told) = server.run("tap web -n shop --from sts/db.front");
    let asked = server.asked();
    assert!(
        asked.iter().any(|line| line.ends_with("&from=pod%3Afront%2Fdb-0&to=service%3Ashop%2Fweb")),
        "{asked:?}{told}"
    );
    // Only what has requests is asked for what only requests have.
    let server = Server::new(shop, mixed);
    let (code, out, told) = server.run("tap web -n shop --code 5xx -o json");
    assert_eq!((code, server.asked().iter().any(|line| line.contains("agent-1/exec"))), (Some(0), false), "{told}");
    let lines: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let kinds: Vec<_> =
        lines.iter().map(|line| (line["proxy"].as_str().unwrap(), line["kind"].as_str().unwrap())).collect();
    assert_eq!(kinds, [("shop/wp-1", "tap"), ("shop/wp-1", "request"), ("shop/wp-1", "end")]);
    assert_eq!((&lines[1]["path"], &lines[2]["limited"]), (&"/a".into(), &4.into()));
}

#[test]
fn features_tm_16_what_cannot_be_tapped_is_told_with_its_reason() {
    let rows: [(Lists, Scripts, &str, i32, &str); 21] = [
        (
            shop,
            |_| Err(403),
            "tap web -n shop",
            69,
            "shop/wp-1: the API server answers 403: it is not for you; who taps",
        ),
        (shop, |_| Err(403), "tap web -n shop", 69, "needs the rights to get and create pods/exec in namespace shop"),
        (shop, |_| Err(403), "tap web -n shop", 69, "none of the proxies could be tapped"),
        (
            shop,
            |_| Ok(vec![(2, "error: unexpected argument".into()), (3, exit(64))]),
            "tap web -n shop",
            69,
            "shop/wp-1: the proxy is too old for taps: upgrade it",
        ),
        (
            shop,
            |_| Ok(vec![(3, json!({"status": "Failure", "message": "container is gone"}).to_string())]),
            "tap web -n shop",
            69,
            "shop/wp-2: container is gone",
        ),
        (shop, |_| Err(400), "tap web -n shop", 69, "shop/wp-1: the API server answers 400: it is not for you"),
        (
            shop,
            |_| Err(101),
            "tap web -n shop",
            69,
            "it does not speak over a WebSocket as Kubernetes does: upgrade header was not set to websocket; a proxy before it",
        ),
        (
            shop,
            |_| Err(SILENCE),
            "tap web -n shop --request-timeout 1s",
            69,
            "shop/wp-1: the API server: no answer within 1 s (--request-timeout)",
        ),
        (
            shop,
            |_| Ok(vec![(3, "nonsense".to_owned())]),
            "tap web -n shop",
            69,
            "shop/wp-1: it broke off before its time: failed to deserialize status object",
        ),
        (
            shop,
            |_| Ok(vec![(CLOSE, String::new())]),
            "tap web -n shop",
            69,
            "shop/wp-1: it broke off before its time: the proxy has ended, or the way to it",
        ),
        (shop, mixed, "tap web -n gone", 1, "there is no namespace gone; -n says which is meant"),
        (shop, mixed, "tap gone -n shop", 1, "there is no service shop/gone"),
        (shop, mixed, "tap sts/web -n shop", 1, "there is no pod of statefulset shop/web"),
        (shop, mixed, "tap web -n shop --from ds/db.front", 1, "there is no pod of daemonset front/db"),
        (
            shop,
            mixed,
            "tap web -n shop --from deploy/later.front",
            0,
            "there is no pod of workload front/later; who is of",
        ),
        (shop, mixed, "tap sts/web -n shop --socket /nowhere", 64, "by their own names: with --socket write pod/NAME"),
        (
            shop,
            mixed,
            "tap waypoint/other -n shop",
            1,
            "waypoint shop/other has no pod: `meshctl waypoint status -n shop other` says why",
        ),
        (bare, mixed, "tap web -n shop --path /a", 1, "no waypoint or gateway that runs serves service shop/web"),
        (bare, mixed, "tap web -n shop", 0, "no waypoint serves it: only its connections are seen"),
        (shop, mixed, "tap web -n shop --code 9xx", 64, "`code=9xx`: a code is 100 to 599"),
        (shop, mixed, "tap web -n shop -o yaml", 64, "-o text or -o json"),
    ];
    for (lists, scripts, line, expected, words) in rows {
        let server = Server::new(lists, scripts);
        let (code, out, told) = server.run(line);
        assert_eq!(code, Some(expected), "{line}: {out}{told}");
        assert!(told.contains(words), "{line}: {told}");
        // A wrong command line is told before anybody is asked.
        assert!(expected != 64 || server.asked().is_empty(), "{line}: {:?}", server.asked());
    }
}

/// Much on both streams at once, and the connection is cut when all is told.
#[test]
fn features_tm_16_all_that_is_said_is_shown() {
    let server = Server::new(shop, |_| {
        let mut script = vec![(1, String::new()), (2, String::new()), (1, begun("shop/wp-1"))];
        for _ in 0..100 {
            script.extend([(1, request("/a")), (2, "x".repeat(5000))]);
        }
        script.push((1, request("/b").repeat(1000)));
        script.push((1, ENDED.to_owned()));
        Ok(script)
    });
    let (code, out, told) = server.run("tap waypoint/wp -n shop");
    assert_eq!((code, out.lines().count()), (Some(0), 2 * 1100), "{told}");
    assert!(!told.contains("broke off"), "{told}");
}

/// Over a socket of this machine no cluster is asked, and who reads no more is not written to for ever.
#[test]
fn features_tm_16_lines_that_cannot_be_written_are_an_error_unless_nobody_reads() {
    let server = Server::new(shop, mixed);
    let run = |out: Stdio| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_meshctl"));
        command.arg("--kubeconfig").arg(server.folder.path().join("kubeconfig")).args(["tap", "web", "-n", "shop"]);
        let output = command.stdin(Stdio::null()).stdout(out).stderr(Stdio::piped()).spawn().unwrap();
        let output = output.wait_with_output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, told) = run(std::fs::File::options().write(true).open("/dev/full").unwrap().into());
    assert!(code == Some(1) && told.contains("standard output: No space left"), "{code:?} {told}");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let (code, told) = run(writer.into());
    assert!(code == Some(0) && !told.contains("standard output"), "{code:?} {told}");
}

#[test]
fn features_tm_16_a_socket_is_asked_without_a_cluster() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("admin.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let asked = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = [0; 4096];
        let read = stream.read(&mut head).unwrap();
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
        let mut text = begun("shop/wp-1");
        // Until the client has gone.
        while stream.write_all(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes()).is_ok() {
            text = request("/a");
        }
        String::from_utf8_lossy(&head[..read]).into_owned()
    });
    let mut command = Command::new(env!("CARGO_BIN_EXE_meshctl"));
    command.args(["tap", "svc/web.shop", "--method", "GET", "--kubeconfig", "/nowhere", "--socket"]).arg(&path);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut first = String::new();
    out.read_line(&mut first).unwrap();
    assert_eq!(first, SHOWN);
    drop(out);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let asked = asked.join().unwrap();
    assert!(
        asked.starts_with("GET /tap?max-rps=100&seconds=600&method=GET&to=service%3Ashop%2Fweb HTTP/1.1\r\n"),
        "{asked}"
    );
}
