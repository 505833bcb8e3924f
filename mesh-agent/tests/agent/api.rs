//! A small Kubernetes API server for the agent's tests: namespaces and pods, list, watch and the patch of a pod's status, over HTTP without
//! TLS in the node's namespace. Its watches can be cut, its history forgotten (410), and it can go away and come back.

#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

use serde_json::{Value, json};

use super::agent::Host;

/// How the server answers a watch whose place in the history is gone.
#[derive(Clone, Copy, PartialEq)]
pub enum Gone {
    /// With an error in the stream.
    InStream,
    /// With a status.
    AsStatus,
}

/// The server. Dropping it takes it away.
pub struct Api {
    state: Arc<Mutex<State>>,
    pub kubeconfig: PathBuf,
}

struct State {
    version: u64,
    /// By path, as `pods/default/a` and `namespaces/default`.
    objects: BTreeMap<String, Value>,
    /// Version, kind and line of each change.
    history: Vec<(u64, &'static str, String)>,
    /// Versions before it are forgotten.
    floor: u64,
    gone: Gone,
    away: bool,
    watches: Vec<(&'static str, TcpStream)>,
    /// Method and target of each request.
    requests: Vec<String>,
}

impl Api {
    pub fn new(host: &Host) -> Api {
        let listener = host.inside(|| TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap());
        let kubeconfig = host.folder.path().join("kubeconfig");
        let server = format!("http://{}", listener.local_addr().unwrap());
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "x",
            "clusters": [{ "name": "x", "cluster": { "server": server } }],
            "users": [{ "name": "x", "user": {} }],
            "contexts": [{ "name": "x", "context": { "cluster": "x", "user": "x" } }],
        });
        fs::write(&kubeconfig, config.to_string()).unwrap();
        let state = Arc::new(Mutex::new(State {
            version: 1,
            objects: BTreeMap::new(),
            history: Vec::new(),
            floor: 0,
            gone: Gone::InStream,
            away: false,
            watches: Vec::new(),
            requests: Vec::new(),
        }));
        let serving = Arc::downgrade(&state);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let Some(state) = serving.upgrade() else { return };
                thread::spawn(move || {
                    let _ = answer(stream, &state);
                });
            }
        });
        let api = Api { state, kubeconfig };
        api.namespace("default", None);
        api
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Sets a namespace with its label.
    pub fn namespace(&self, name: &str, mode: Option<&str>) {
        let labels = mode.map(|mode| json!({ "istio.io/dataplane-mode": mode })).unwrap_or(json!({}));
        self.state().put("namespaces", name, json!({ "metadata": { "name": name, "uid": name, "labels": labels } }));
    }

    /// Sets a pod of the namespace `default`.
    pub fn pod(&self, name: &str, object: Value) {
        self.state().put("pods", &format!("default/{name}"), object);
    }

    pub fn delete_pod(&self, name: &str) {
        self.state().delete("pods", &format!("default/{name}"));
    }

    /// The annotation that says whether the pod is enrolled.
    pub fn redirection(&self, name: &str) -> Option<String> {
        let state = self.state();
        let annotations = &state.objects[&format!("pods/default/{name}")]["metadata"]["annotations"];
        annotations["ambient.istio.io/redirection"].as_str().map(str::to_owned)
    }

    /// Ends all watches.
    pub fn cut(&self) {
        self.state().cut();
    }

    /// Forgets the history and ends all watches: they must list anew.
    pub fn forget(&self, gone: Gone) {
        let mut state = self.state();
        state.version += 1;
        (state.floor, state.gone) = (state.version, gone);
        state.cut();
    }

    /// Goes away, or comes back.
    pub fn away(&self, away: bool) {
        let mut state = self.state();
        state.away = away;
        state.cut();
    }

    /// How many requests had this in their line.
    pub fn requests(&self, text: &str) -> usize {
        self.state().requests.iter().filter(|line| line.contains(text)).count()
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.state().cut();
    }
}

impl State {
    fn put(&mut self, kind: &'static str, key: &str, mut object: Value) {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let known = self.objects.insert(format!("{kind}/{key}"), object.clone()).is_some();
        self.tell(kind, if known { "MODIFIED" } else { "ADDED" }, &object);
    }

    fn delete(&mut self, kind: &'static str, key: &str) {
        self.version += 1;
        let mut object = self.objects.remove(&format!("{kind}/{key}")).unwrap();
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.tell(kind, "DELETED", &object);
    }

    fn tell(&mut self, kind: &'static str, event: &str, object: &Value) {
        let line = format!("{}\n", json!({ "type": event, "object": object }));
        self.watches.retain_mut(|(watched, stream)| *watched != kind || stream.write_all(line.as_bytes()).is_ok());
        self.history.push((self.version, kind, line));
    }

    fn cut(&mut self) {
        for (_, stream) in self.watches.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn list(&self, kind: &str) -> Value {
        let items: Vec<&Value> = self
            .objects
            .iter()
            .filter(|(path, _)| path.starts_with(&format!("{kind}/")))
            .map(|(_, item)| item)
            .collect();
        json!({ "apiVersion": "v1", "kind": "List", "metadata": { "resourceVersion": self.version.to_string() }, "items": items })
    }

    fn watch(&mut self, kind: &'static str, since: u64, mut stream: TcpStream) -> io::Result<()> {
        let expired = status(410, "Expired");
        if since < self.floor && self.gone == Gone::AsStatus {
            return reply(&mut stream, 410, &expired);
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n")?;
        if since < self.floor {
            return writeln!(stream, "{}", json!({ "type": "ERROR", "object": expired }));
        }
        for (_, _, line) in self.history.iter().filter(|(version, watched, _)| *version > since && *watched == kind) {
            stream.write_all(line.as_bytes())?;
        }
        self.watches.push((kind, stream));
        Ok(())
    }

    fn patch(&mut self, path: &str, body: &Value) -> (u16, Value) {
        let Some(key) = path.strip_prefix("/api/v1/namespaces/").and_then(|path| path.strip_suffix("/status")) else {
            return (404, status(404, "NotFound"));
        };
        let key = key.replace("/pods/", "/");
        let Some(mut object) = self.objects.get(&format!("pods/{key}")).cloned() else {
            return (404, status(404, "NotFound"));
        };
        let (meta, change) = (&mut object["metadata"], &body["metadata"]);
        if !change["uid"].is_null() && change["uid"] != meta["uid"] {
            return (409, status(409, "Conflict"));
        }
        for (name, value) in change["annotations"].as_object().unwrap() {
            match value.is_null() {
                true => drop(meta["annotations"].as_object_mut().and_then(|all| all.remove(name))),
                false => meta["annotations"][name] = value.clone(),
            }
        }
        self.put("pods", &key, object.clone());
        (200, object)
    }
}

fn status(code: u16, reason: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure", "reason": reason, "message": reason, "code": code })
}

fn reply(stream: &mut TcpStream, code: u16, body: &Value) -> io::Result<()> {
    let body = body.to_string();
    write!(
        stream,
        "HTTP/1.1 {code} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// One request and its answer.
fn answer(mut stream: TcpStream, state: &Mutex<State>) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        if header.trim().is_empty() {
            break;
        }
        if let Some(value) = header.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let mut words = line.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let parameter = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    let mut state = state.lock().unwrap();
    if state.away {
        return Ok(());
    }
    state.requests.push(format!("{method} {target}"));
    let kind = match path {
        "/api/v1/pods" => "pods",
        "/api/v1/namespaces" => "namespaces",
        _ if method == "PATCH" => {
            let (code, object) = state.patch(path, &serde_json::from_slice(&body).unwrap());
            return reply(&mut stream, code, &object);
        }
        _ => return reply(&mut stream, 404, &status(404, "NotFound")),
    };
    if parameter("watch").is_some() {
        let since = parameter("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or_default();
        return state.watch(kind, since, stream);
    }
    let list = state.list(kind);
    reply(&mut stream, 200, &list)
}
