//! An API server as far as a control plane needs one, for very many objects: they are kept as text, lists come in pages, watches go on from a version and
//! get bookmarks. It knows nothing of what objects mean but two things: who a token is of, and which kinds are defined.
use anyhow::Result;
use base64::Engine;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value as Json, json};
use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

/// How often a watch on which nothing happens hears so.
const BOOKMARK: Duration = Duration::from_secs(10);
/// Lines of a watch in one piece.
const LINES: usize = 256;

type Body = BoxBody<Bytes, Infallible>;
type Name = (String, String);

/// The server; all copies are the same one.
#[derive(Clone)]
pub struct Api {
    /// Where it listens.
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
    version: Arc<watch::Sender<u64>>,
}

#[derive(Default)]
struct State {
    version: u64,
    kinds: HashMap<String, Kind>,
}

#[derive(Default)]
struct Kind {
    objects: BTreeMap<Name, Arc<str>>,
    log: Vec<(u64, Bytes)>,
}

impl State {
    fn kind(&mut self, plural: &str) -> &mut Kind {
        self.kinds.entry(plural.to_owned()).or_default()
    }
}

impl Api {
    /// Listens on the loopback address.
    pub async fn start() -> Result<Api> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let api =
            Api { address: listener.local_addr()?, state: Arc::default(), version: Arc::new(watch::Sender::new(0)) };
        let server = api.clone();
        tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                let api = server.clone();
                let service = service_fn(move |request| api.clone().answer(request));
                let connection = hyper::server::conn::http1::Builder::new();
                tokio::spawn(async move { connection.serve_connection(TokioIo::new(stream), service).await });
            }
        });
        Ok(api)
    }

    /// Writes a kubeconfig for it.
    pub fn kubeconfig(&self, folder: &Path) -> Result<PathBuf> {
        let path = folder.join("kubeconfig");
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters:\n- name: c\n  cluster: {{server: \"http://{}\"}}\n\
             contexts:\n- name: c\n  context: {{cluster: c, user: u}}\nusers:\n- name: u\n  user: {{}}\n",
            self.address
        );
        std::fs::write(&path, text)?;
        Ok(path)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds or replaces an object.
    pub fn put(&self, plural: &str, mut object: Json) {
        let name = name_of(&object);
        let mut state = self.lock();
        state.version += 1;
        let version = state.version;
        let old = state.kind(plural).objects.contains_key(&name);
        let metadata = &mut object["metadata"];
        metadata["resourceVersion"] = json!(version.to_string());
        if metadata["uid"].is_null() {
            metadata["uid"] = json!(format!("uid-{plural}-{}-{}", name.0, name.1));
        }
        let text: Arc<str> = object.to_string().into();
        let kind = state.kind(plural);
        kind.log.push((version, line(if old { "MODIFIED" } else { "ADDED" }, &text)));
        kind.objects.insert(name, text);
        drop(state);
        self.version.send_replace(version);
    }

    /// Takes an object away.
    pub fn delete(&self, plural: &str, namespace: &str, name: &str) {
        let mut state = self.lock();
        let Some(text) = state.kind(plural).objects.remove(&(namespace.into(), name.into())) else { return };
        state.version += 1;
        let version = state.version;
        let mut object: Json = serde_json::from_str(&text).unwrap_or_default();
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        state.kind(plural).log.push((version, line("DELETED", &object.to_string())));
        drop(state);
        self.version.send_replace(version);
    }

    /// An object.
    pub fn get(&self, plural: &str, namespace: &str, name: &str) -> Option<Json> {
        let text = self.lock().kind(plural).objects.get(&(namespace.into(), name.into())).cloned()?;
        serde_json::from_str(&text).ok()
    }

    /// Forgets what was: watches that begin before now are of no use. Whoever watches already is not disturbed.
    pub fn forget(&self) {
        self.lock().kinds.values_mut().for_each(|kind| kind.log = Vec::new());
    }

    async fn answer(self, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        let (method, uri) = (request.method().clone(), request.uri().clone());
        let content = request.headers().get(http::header::CONTENT_TYPE).cloned();
        let merges = content.is_some_and(|c| c.as_bytes().ends_with(b"merge-patch+json"));
        let text = request.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
        let body: Json = serde_json::from_slice(&text).unwrap_or_default();
        let query = uri.query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
        let query: HashMap<String, String> = query.map(|(k, v)| (k.to_owned(), unescaped(v))).collect();
        let (plural, namespace, name) = parts(uri.path());
        Ok(match (method, name) {
            (Method::GET, Some(name)) => match self.get(&plural, &namespace, &name) {
                Some(object) => reply(StatusCode::OK, &object),
                None => failure(404, "NotFound", &plural, &name),
            },
            (Method::GET, None) if query.contains_key("watch") => self.watch(plural, &query),
            (Method::GET, None) => self.list(&plural, &query),
            (Method::POST, None) if plural == "tokenreviews" => reply(StatusCode::CREATED, &self.review(&body)),
            (Method::POST, None) => {
                let mut object = body;
                object["metadata"]["namespace"] = json!(namespace);
                if let Some(prefix) = object["metadata"]["generateName"].as_str() {
                    object["metadata"]["name"] = json!(format!("{prefix}{}", self.lock().version));
                }
                let (namespace, name) = name_of(&object);
                match self.get(&plural, &namespace, &name) {
                    Some(_) => failure(409, "AlreadyExists", &plural, &name),
                    None => self.kept(&plural, &namespace, &name, object),
                }
            }
            (Method::PUT, Some(name)) => match self.get(&plural, &namespace, &name) {
                Some(old) if is_newer(&old, &body) => failure(409, "Conflict", &plural, &name),
                Some(_) => self.kept(&plural, &namespace, &name, body),
                None => failure(404, "NotFound", &plural, &name),
            },
            (Method::PATCH, Some(name)) if merges => match self.get(&plural, &namespace, &name) {
                Some(old) if is_newer(&old, &body) => failure(409, "Conflict", &plural, &name),
                Some(mut object) => {
                    merge(&mut object, &body);
                    self.kept(&plural, &namespace, &name, object)
                }
                None => failure(404, "NotFound", &plural, &name),
            },
            (Method::PATCH, Some(name)) => self.kept(&plural, &namespace, &name, body),
            (_, name) => failure(405, "MethodNotAllowed", &plural, &name.unwrap_or_default()),
        })
    }

    fn kept(&self, plural: &str, namespace: &str, name: &str, mut object: Json) -> Response<Body> {
        object["metadata"]["namespace"] = json!(namespace);
        object["metadata"]["name"] = json!(name);
        self.put(plural, object);
        reply(StatusCode::OK, &self.get(plural, namespace, name).unwrap_or_default())
    }

    /// Tokens here say of themselves which node they are of.
    fn review(&self, body: &Json) -> Json {
        let claims = body["spec"]["token"].as_str().and_then(|t| t.split('.').nth(1)).unwrap_or_default();
        let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(claims).unwrap_or_default();
        let claims: Json = serde_json::from_slice(&claims).unwrap_or_default();
        let node = claims["node"].as_str().unwrap_or_default();
        let status = match self.get("nodes", "", node) {
            Some(known) => json!({ "authenticated": true, "audiences": claims["aud"],
                "user": { "username": claims["sub"], "extra": {
                    "authentication.kubernetes.io/node-name": [node],
                    "authentication.kubernetes.io/node-uid": [known["metadata"]["uid"]] } } }),
            None => json!({ "authenticated": false, "error": "unknown" }),
        };
        json!({ "kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "status": status, "spec": body["spec"] })
    }

    fn list(&self, plural: &str, query: &HashMap<String, String>) -> Response<Body> {
        let limit = query.get("limit").and_then(|l| l.parse().ok()).unwrap_or(usize::MAX);
        let from = query.get("continue").and_then(|c| c.split_once('/')).map(|(ns, n)| (ns.to_owned(), n.to_owned()));
        let only = query.get("fieldSelector").and_then(|f| f.strip_prefix("metadata.name="));
        let mut state = self.lock();
        let version = state.version;
        let kind = state.kind(plural);
        let after = from.map_or(Bound::Unbounded, Bound::Excluded);
        let mut items = String::new();
        let (mut count, mut next) = (0, String::new());
        let mut last: Option<&Name> = None;
        for (name, text) in kind.objects.range((after, Bound::Unbounded)) {
            if only.is_some_and(|only| only != name.1) {
                continue;
            }
            if count == limit {
                next = last.map(|(namespace, name)| format!("{namespace}/{name}")).unwrap_or_default();
                break;
            }
            if count > 0 {
                items.push(',');
            }
            items.push_str(text);
            (count, last) = (count + 1, Some(name));
        }
        let metadata = json!({ "resourceVersion": version.to_string(), "continue": next });
        drop(state);
        let text = format!("{{\"kind\":\"List\",\"apiVersion\":\"v1\",\"metadata\":{metadata},\"items\":[{items}]}}");
        answer(StatusCode::OK, text.into())
    }

    fn watch(&self, plural: String, query: &HashMap<String, String>) -> Response<Body> {
        let mut position: u64 = query.get("resourceVersion").and_then(|v| v.parse().ok()).unwrap_or(0);
        let seconds = query.get("timeoutSeconds").and_then(|v| v.parse().ok()).unwrap_or(300);
        let only = query.get("fieldSelector").and_then(|f| f.strip_prefix("metadata.name=")).map(str::to_owned);
        let (sender, receiver) = mpsc::channel::<Result<Frame<Bytes>, Infallible>>(4);
        let api = self.clone();
        let mut changed = self.version.subscribe();
        let follow = async move {
            loop {
                let now = *changed.borrow_and_update();
                let lines: Vec<(u64, Bytes)> = {
                    let mut state = api.lock();
                    let log = &state.kind(&plural).log;
                    let start = log.partition_point(|(version, _)| *version <= position);
                    log[start..].iter().take(LINES).cloned().collect()
                };
                if let Some((last, _)) = lines.last() {
                    position = *last;
                    let is_wanted = |line: &Bytes| {
                        only.as_ref().is_none_or(|name| {
                            serde_json::from_slice::<Json>(line)
                                .is_ok_and(|l| l["object"]["metadata"]["name"] == **name)
                        })
                    };
                    let text: Vec<u8> =
                        lines.iter().map(|(_, l)| l).filter(|l| is_wanted(l)).flatten().copied().collect();
                    if !text.is_empty() && sender.send(Ok(Frame::data(text.into()))).await.is_err() {
                        return;
                    }
                    continue;
                }
                position = position.max(now);
                tokio::select! {
                    woken = changed.changed() => if woken.is_err() { return },
                    () = sender.closed() => return,
                    () = tokio::time::sleep(BOOKMARK) => {
                        let bookmark = json!({ "kind": "Any", "apiVersion": "v1",
                            "metadata": { "resourceVersion": position.to_string() } });
                        let line = line("BOOKMARK", &bookmark.to_string());
                        if sender.send(Ok(Frame::data(line))).await.is_err() {
                            return;
                        }
                    }
                }
            }
        };
        tokio::spawn(async move { tokio::time::timeout(Duration::from_secs(seconds), follow).await });
        let stream = futures_util::stream::unfold(receiver, |mut r| async move { Some((r.recv().await?, r)) });
        Response::new(BodyExt::boxed(StreamBody::new(stream)))
    }
}

fn line(what: &str, object: &str) -> Bytes {
    format!("{{\"type\":\"{what}\",\"object\":{object}}}\n").into()
}

fn name_of(object: &Json) -> Name {
    let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default().to_owned();
    (text("namespace"), text("name"))
}

/// The change is of an older form than the object has.
fn is_newer(object: &Json, change: &Json) -> bool {
    let version = &change["metadata"]["resourceVersion"];
    !version.is_null() && *version != object["metadata"]["resourceVersion"]
}

fn merge(object: &mut Json, change: &Json) {
    match (object, change) {
        (Json::Object(object), Json::Object(change)) => {
            for (key, change) in change.iter().filter(|(key, _)| *key != "resourceVersion") {
                merge(object.entry(key).or_insert(Json::Null), change);
            }
        }
        (object, change) => *object = change.clone(),
    }
}

fn unescaped(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let digits: String = if byte == b'%' { rest.by_ref().take(2).map(char::from).collect() } else { String::new() };
        bytes.push(u8::from_str_radix(&digits, 16).unwrap_or(if byte == b'+' { b' ' } else { byte }));
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Plural, namespace, and name of a path.
fn parts(path: &str) -> (String, String, Option<String>) {
    let path: Vec<&str> = path.trim_matches('/').split('/').collect();
    let rest = match path.as_slice() {
        ["api", _, rest @ ..] | ["apis", _, _, rest @ ..] => rest,
        _ => &[],
    };
    match rest {
        ["namespaces", namespace, plural, name @ ..] => {
            ((*plural).into(), (*namespace).into(), name.first().map(|n| (*n).to_owned()))
        }
        [plural, name @ ..] => ((*plural).into(), String::new(), name.first().map(|n| (*n).to_owned())),
        [] => Default::default(),
    }
}

fn answer(code: StatusCode, text: Bytes) -> Response<Body> {
    let mut response = Response::new(BodyExt::boxed(Full::new(text)));
    *response.status_mut() = code;
    response
}

fn reply(code: StatusCode, body: &Json) -> Response<Body> {
    answer(code, body.to_string().into())
}

fn failure(code: u16, reason: &str, plural: &str, name: &str) -> Response<Body> {
    let status = json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": reason,
        "reason": reason, "code": code, "details": { "name": name, "kind": plural } });
    reply(StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), &status)
}
