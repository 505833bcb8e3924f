//! An API server as far as a control plane needs one, with the faults that real ones have: a list that is held up, pages that expire, watches that are cut,
//! closed, or told that they are too old, answers that say to come back later. It keeps objects as JSON and knows nothing of what they mean.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value as Json, json};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

type Body = BoxBody<Bytes, std::io::Error>;

/// The server; all copies are the same one.
#[derive(Clone)]
pub struct FakeApi {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
    /// Changes with everything that watches have to look at.
    changed: Arc<watch::Sender<u64>>,
}

#[derive(Default)]
struct State {
    /// By plural, then by namespace and name.
    objects: HashMap<String, BTreeMap<(String, String), Json>>,
    version: u64,
    /// All changes: version, plural, type, object.
    log: Vec<(u64, String, &'static str, Json)>,
    /// Nothing before can be watched.
    oldest: u64,
    /// Answers instead of the right ones: plural ("" for any; `PATCH` and a plural for changes alone), code, how many.
    refusals: Vec<(String, u16, usize)>,
    /// How long a refusal takes.
    slowness: Duration,
    /// What is held up: lists of a plural, or `watches of` it, or reviews of a token.
    held: Vec<String>,
    /// Watches that began before this many were ended have to end, and how.
    ends: Vec<End>,
    /// Requests: what was done (a GET that goes on is a WATCH), and the path without the query.
    requests: Vec<(String, String)>,
    /// What TokenReview says of a token.
    tokens: HashMap<String, Json>,
    /// What is no object, by path.
    pages: HashMap<String, String>,
    /// How many versions there have been of all, for uids.
    made: u64,
}

/// How watches end.
#[derive(Clone, Copy, PartialEq)]
pub enum End {
    /// In order.
    Close,
    /// In the middle of a line.
    Cut,
    /// They are told that they are too old.
    Gone,
    /// With something that is no event.
    Garbage,
}

impl FakeApi {
    pub async fn start() -> FakeApi {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let api = FakeApi {
            address: listener.local_addr().unwrap(),
            state: Arc::default(),
            changed: Arc::new(watch::Sender::new(0)),
        };
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
        api
    }

    /// A kubeconfig for it.
    pub fn kubeconfig(&self, folder: &Path) -> PathBuf {
        let path = folder.join("kubeconfig");
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters:\n- name: c\n  cluster: {{server: \"http://{}\"}}\n\
             contexts:\n- name: c\n  context: {{cluster: c, user: u}}\nusers:\n- name: u\n  user: {{}}\n",
            self.address
        );
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Adds or replaces an object of a manifest.
    pub fn put(&self, mut object: Json) {
        let mut state = self.state.lock().unwrap();
        let plural = plural(object["kind"].as_str().unwrap());
        let key = key(&object);
        state.version += 1;
        state.made += 1;
        let old = state.objects.entry(plural.clone()).or_default().get(&key).cloned();
        let uid = match &old {
            Some(old) => old["metadata"]["uid"].clone(),
            None => json!(format!("uid-{}", state.made)),
        };
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = uid;
        }
        object["metadata"]["resourceVersion"] = json!(state.version.to_string());
        object["metadata"]["managedFields"] = json!([{ "manager": "test", "fieldsV1": { "f:metadata": {} } }]);
        let version = state.version;
        let what = if old.is_some() { "MODIFIED" } else { "ADDED" };
        state.log.push((version, plural.clone(), what, object.clone()));
        state.objects.entry(plural).or_default().insert(key, object);
        drop(state);
        self.tell();
    }

    pub fn delete(&self, kind: &str, namespace: &str, name: &str) {
        let mut state = self.state.lock().unwrap();
        let plural = plural(kind);
        let gone = state.objects.entry(plural.clone()).or_default().remove(&(namespace.into(), name.into()));
        let mut object = gone.unwrap_or_else(|| panic!("no {kind} {namespace}/{name}"));
        state.version += 1;
        object["metadata"]["resourceVersion"] = json!(state.version.to_string());
        let version = state.version;
        state.log.push((version, plural, "DELETED", object));
        drop(state);
        self.tell();
    }

    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Option<Json> {
        let state = self.state.lock().unwrap();
        state.objects.get(&plural(kind))?.get(&(namespace.into(), name.into())).cloned()
    }

    /// All objects of a kind.
    pub fn objects(&self, kind: &str) -> Vec<Json> {
        self.state.lock().unwrap().objects.get(&plural(kind)).into_iter().flatten().map(|(_, o)| o.clone()).collect()
    }

    /// Ends all watches.
    pub fn end(&self, how: End) {
        self.state.lock().unwrap().ends.push(how);
        self.tell();
    }

    /// Forgets what was: watches from before are too old.
    pub fn compact(&self) {
        let mut state = self.state.lock().unwrap();
        state.version += 1;
        state.oldest = state.version;
        state.log.clear();
    }

    /// The next requests for `plural` are answered with `code`.
    pub fn refuse(&self, plural: &str, code: u16, times: usize) {
        self.state.lock().unwrap().refusals.push((plural.into(), code, times));
    }

    /// Refusals take so long.
    pub fn slow(&self, slowness: Duration) {
        self.state.lock().unwrap().slowness = slowness;
    }

    /// Makes the next requests for anything right again.
    pub fn relent(&self) {
        self.state.lock().unwrap().refusals.clear();
    }

    /// Whether refusals are left.
    pub fn is_refusing(&self) -> bool {
        !self.state.lock().unwrap().refusals.is_empty()
    }

    /// Lists of a plural wait, or `watches of` it, or reviews of a token, or they go on.
    pub fn hold(&self, what: &str, is_held: bool) {
        let mut state = self.state.lock().unwrap();
        state.held.retain(|held| held != what);
        if is_held {
            state.held.push(what.into());
        }
        drop(state);
        self.tell();
    }

    /// Answers with a text of its own.
    pub fn page(&self, path: &str, text: impl Into<String>) {
        self.state.lock().unwrap().pages.insert(path.into(), text.into());
    }

    pub fn token(&self, token: &str, status: Json) {
        self.state.lock().unwrap().tokens.insert(token.into(), status);
    }

    /// How often a kind of the core was listed, page by page.
    pub fn lists(&self, plural: &str) -> usize {
        self.requests("GET", &format!("/api/v1/{plural}"))
    }

    /// How often a path was asked for.
    pub fn requests(&self, method: &str, path: &str) -> usize {
        self.asked(method).iter().filter(|asked| *asked == path).count()
    }

    /// What was asked for by `method`, in order.
    pub fn asked(&self, method: &str) -> Vec<String> {
        let state = self.state.lock().unwrap();
        state.requests.iter().filter(|(m, _)| m == method).map(|(_, path)| path.clone()).collect()
    }

    fn tell(&self) {
        self.changed.send_modify(|n| *n += 1);
    }

    async fn answer(self, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        let (method, uri) = (request.method().clone(), request.uri().clone());
        let merges = request
            .headers()
            .get(http::header::CONTENT_TYPE)
            .is_some_and(|c| c.as_bytes().ends_with(b"merge-patch+json"));
        let text = request.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
        let body: Json = serde_json::from_slice(&text).unwrap_or_default();
        let query: HashMap<String, String> =
            form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()).into_owned().collect();
        let (plural, namespace, name) = parts(uri.path());
        let refusal = {
            let mut state = self.state.lock().unwrap();
            let what = if query.contains_key("watch") { "WATCH" } else { method.as_str() };
            state.requests.push((what.to_owned(), uri.path().to_owned()));
            let refusal = state.refusals.iter_mut().find(|(of, ..)| {
                of.is_empty()
                    || *of == plural
                    || *of == uri.path()
                    || of.strip_prefix("PATCH ") == Some(&plural) && method == Method::PATCH
            });
            let code = refusal.map(|(_, code, times)| {
                *times -= 1;
                *code
            });
            state.refusals.retain(|(.., times)| *times > 0);
            code.map(|code| (code, state.slowness))
        };
        if let Some((code, slowness)) = refusal {
            tokio::time::sleep(slowness).await;
            return Ok(refused(code));
        }
        let page = self.state.lock().unwrap().pages.get(uri.path()).cloned();
        if let Some(page) = page {
            return Ok(Response::new(BodyExt::boxed(Full::from(page).map_err(|never| match never {}))));
        }
        if plural.is_empty() {
            return Ok(refused(404));
        }
        Ok(match (method, name) {
            (Method::GET, Some(name)) => match self.get_plural(&plural, &namespace, &name) {
                Some(object) => reply(StatusCode::OK, &object),
                None => failure(404, "NotFound", &json!({ "name": name, "kind": plural })),
            },
            (Method::GET, None) if query.contains_key("watch") => {
                self.held(&format!("watches of {plural}")).await;
                self.watch(&plural, &query)
            }
            (Method::GET, None) => self.list(&plural, &query).await,
            (Method::POST, None) if plural == "tokenreviews" => {
                let token = body["spec"]["token"].as_str().unwrap_or_default();
                self.held(token).await;
                let known = self.state.lock().unwrap().tokens.get(token).cloned();
                let status = known.unwrap_or_else(|| json!({ "authenticated": false, "error": "unknown" }));
                reply(StatusCode::CREATED, &json!({ "kind": "TokenReview", "status": status, "spec": body["spec"] }))
            }
            (Method::POST, None) => {
                let mut object = body;
                object["metadata"]["namespace"] = json!(namespace);
                if let Some(prefix) = object["metadata"]["generateName"].as_str() {
                    object["metadata"]["name"] = json!(format!("{prefix}{}", self.state.lock().unwrap().version));
                }
                let (namespace, name) = key(&object);
                if self.get_plural(&plural, &namespace, &name).is_some() {
                    return Ok(failure(409, "AlreadyExists", &json!({ "name": name, "kind": plural })));
                }
                if !query.contains_key("dryRun") {
                    self.put(object.clone());
                }
                reply(StatusCode::CREATED, &object)
            }
            (Method::PUT, Some(name)) => match self.replaces(&plural, &namespace, &name, &body) {
                Ok(_) => {
                    self.put(body.clone());
                    reply(StatusCode::OK, &body)
                }
                Err(refused) => *refused,
            },
            (Method::PATCH, Some(name)) if merges => match self.replaces(&plural, &namespace, &name, &body) {
                Ok(mut object) => {
                    merge(&mut object, &body);
                    self.put(object.clone());
                    reply(StatusCode::OK, &object)
                }
                Err(refused) => *refused,
            },
            // Of an apply to the status nothing else is taken.
            (Method::PATCH, Some(name)) if uri.path().ends_with("/status") => {
                match self.replaces(&plural, &namespace, &name, &json!({})) {
                    Ok(mut object) => {
                        merge(&mut object, &json!({ "status": body["status"] }));
                        self.put(object.clone());
                        reply(StatusCode::OK, &object)
                    }
                    Err(refused) => *refused,
                }
            }
            (Method::PATCH, Some(name)) => {
                self.put(body.clone());
                reply(StatusCode::OK, &self.get_plural(&plural, &namespace, &name).unwrap_or(body))
            }
            (Method::DELETE, Some(name)) => match self.replaces(&plural, &namespace, &name, &json!({})) {
                Ok(object) => {
                    self.delete(object["kind"].as_str().unwrap_or_default(), &namespace, &name);
                    reply(StatusCode::OK, &object)
                }
                Err(refused) => *refused,
            },
            _ => failure(405, "MethodNotAllowed", &Json::Null),
        })
    }

    fn get_plural(&self, plural: &str, namespace: &str, name: &str) -> Option<Json> {
        self.state.lock().unwrap().objects.get(plural)?.get(&(namespace.into(), name.into())).cloned()
    }

    /// The object that a change is of, if it is the one that was read before.
    fn replaces(&self, plural: &str, namespace: &str, name: &str, change: &Json) -> Result<Json, Box<Response<Body>>> {
        let old = self.get_plural(plural, namespace, name);
        let old = old.ok_or_else(|| Box::new(failure(404, "NotFound", &json!({ "name": name, "kind": plural }))))?;
        let version = &change["metadata"]["resourceVersion"];
        if !version.is_null() && *version != old["metadata"]["resourceVersion"] {
            return Err(Box::new(failure(409, "Conflict", &json!({ "name": name, "kind": plural }))));
        }
        Ok(old)
    }

    async fn held(&self, what: &str) {
        let mut changed = self.changed.subscribe();
        while self.state.lock().unwrap().held.iter().any(|held| held == what) {
            changed.changed().await.unwrap();
        }
    }

    async fn list(&self, plural: &str, query: &HashMap<String, String>) -> Response<Body> {
        self.held(plural).await;
        let state = self.state.lock().unwrap();
        let all = state.objects.get(plural).into_iter().flatten();
        let all: Vec<Json> = all.map(|(_, o)| bare(o)).filter(|o| is_wanted(o, query)).collect();
        let offset: usize = query.get("continue").map_or(0, |c| c.parse().unwrap());
        let limit = query.get("limit").map_or(usize::MAX, |l| l.parse().unwrap());
        let end = offset.saturating_add(limit).min(all.len());
        let next = if end < all.len() { end.to_string() } else { String::new() };
        let items = match &all[offset.min(end)..end] {
            // As Go writes it.
            [] => Json::Null,
            items => json!(items),
        };
        let metadata = json!({ "resourceVersion": state.version.to_string(), "continue": next });
        reply(StatusCode::OK, &json!({ "kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items }))
    }

    fn watch(&self, plural: &str, query: &HashMap<String, String>) -> Response<Body> {
        let mut position: u64 = query.get("resourceVersion").map_or(0, |v| v.parse().unwrap());
        let (sender, receiver) = mpsc::channel::<Result<Frame<Bytes>, std::io::Error>>(16);
        let (api, plural, query) = (self.clone(), plural.to_owned(), query.clone());
        let mut changed = self.changed.subscribe();
        let ends = self.state.lock().unwrap().ends.len();
        tokio::spawn(async move {
            let line = |what: &str, object: &Json| {
                Ok(Frame::data(Bytes::from(format!("{}\n", json!({ "type": what, "object": object })))))
            };
            loop {
                let (events, end) = {
                    let state = api.state.lock().unwrap();
                    let end = state.ends.get(ends).copied();
                    let end = if position < state.oldest { Some(End::Gone) } else { end };
                    let new =
                        state.log.iter().filter(|(v, p, _, o)| *v > position && *p == plural && is_wanted(o, &query));
                    let events: Vec<_> = new.map(|(v, _, what, o)| (*v, *what, o.clone())).collect();
                    // What has happened since is not heard of by this watch.
                    (if end.is_some() { Vec::new() } else { events }, end)
                };
                for (version, what, object) in events {
                    position = version;
                    if sender.send(line(what, &object)).await.is_err() {
                        return;
                    }
                }
                let status = json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                    "message": "too old resource version", "reason": "Expired", "code": 410 });
                match end {
                    None => {}
                    Some(End::Close) => return,
                    Some(End::Gone) => return drop(sender.send(line("ERROR", &status)).await),
                    Some(End::Garbage) => {
                        return drop(sender.send(Ok(Frame::data(Bytes::from_static(b"<html>\n")))).await);
                    }
                    Some(End::Cut) => {
                        let half = Frame::data(Bytes::from_static(b"{\"type\":\"ADDED\",\"obj"));
                        let _ = sender.send(Ok(half)).await;
                        let _ = sender.send(Err(std::io::ErrorKind::ConnectionReset.into())).await;
                        return;
                    }
                }
                tokio::select! {
                    woken = changed.changed() => woken.unwrap(),
                    () = sender.closed() => return,
                }
            }
        });
        Response::new(BodyExt::boxed(StreamBody::new(ReceiverStream::new(receiver))))
    }
}

/// Lists of things with names are merged by name, as webhooks are.
fn merge(object: &mut Json, change: &Json) {
    match (object, change) {
        (Json::Object(object), Json::Object(change)) => {
            for (key, change) in change.iter().filter(|(key, _)| *key != "resourceVersion") {
                merge(object.entry(key).or_insert(Json::Null), change);
            }
        }
        (Json::Array(items), Json::Array(changes))
            if !changes.is_empty() && changes.iter().all(|c| c["name"].is_string()) =>
        {
            for change in changes {
                if let Some(item) = items.iter_mut().find(|item| item["name"] == change["name"]) {
                    merge(item, change);
                }
            }
        }
        (object, change) => *object = change.clone(),
    }
}

/// Objects of lists do not say what they are.
fn bare(object: &Json) -> Json {
    let mut object = object.clone();
    if let Some(map) = object.as_object_mut() {
        map.remove("kind");
        map.remove("apiVersion");
    }
    object
}

fn is_wanted(object: &Json, query: &HashMap<String, String>) -> bool {
    let name = query.get("fieldSelector").and_then(|f| f.strip_prefix("metadata.name="));
    let selector = query.get("labelSelector");
    let is = |(label, value): (&str, &str)| object["metadata"]["labels"][label] == value;
    let has_label = selector.is_none_or(|selector| match selector.split_once("!=") {
        Some(other) => !is(other),
        None => selector.split_once('=').is_none_or(is),
    });
    name.is_none_or(|name| object["metadata"]["name"] == name) && has_label
}

fn key(object: &Json) -> (String, String) {
    let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default().to_owned();
    (text("namespace"), text("name"))
}

fn plural(kind: &str) -> String {
    match kind.to_lowercase() {
        kind if kind.ends_with('s') => format!("{kind}es"),
        kind if kind.ends_with("policy") || kind.ends_with("entry") => format!("{}ies", kind.trim_end_matches('y')),
        kind => format!("{kind}s"),
    }
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

fn reply(code: StatusCode, body: &Json) -> Response<Body> {
    let body = Full::new(Bytes::from(body.to_string())).map_err(|never| match never {});
    let mut response = Response::new(BodyExt::boxed(body));
    *response.status_mut() = code;
    response
}

/// What the API server says that understood the question.
fn failure(code: u16, reason: &str, details: &Json) -> Response<Body> {
    let status = json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": reason,
        "reason": reason, "details": details, "code": code });
    reply(StatusCode::from_u16(code).unwrap(), &status)
}

/// What is said before anybody has understood the question: by the API server's own filters, or by whoever stands before it.
fn refused(code: u16) -> Response<Body> {
    let text = match code {
        404 => "404 page not found\n",
        429 => "Too Many Requests, please try again later.\n",
        502 => "",
        code => return failure(code, "refused", &Json::Null),
    };
    let mut response = Response::new(BodyExt::boxed(Full::from(text).map_err(|never| match never {})));
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    if code == 429 {
        response.headers_mut().insert(http::header::RETRY_AFTER, "2".parse().unwrap());
    }
    response
}
