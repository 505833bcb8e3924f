//! The connection to the API server: get, list, apply, delete, by path and as JSON. Every command uses it. What is made of answers is decided
//! elsewhere.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use http::header::{ACCEPT, CONTENT_TYPE, DATE, HeaderName, RETRY_AFTER, USER_AGENT};
use http::{HeaderValue, Method, Request};
use http_body_util::{BodyExt, Limited};
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::chart::object::Reference;
use crate::stop::{FAILED, Stop, UNAVAILABLE};

/// Who we are to the API server when we change something.
pub const MANAGER: &str = "meshctl";
/// Objects in one answer to a list.
const PAGE: usize = 500;
/// The largest answer that is read.
pub(crate) const MAX_ANSWER: usize = 256 << 20;

/// How often a server is asked that has too much to do.
const TRIES: u32 = 6;
/// It may want to be left alone for longer than anybody waits.
const LONGEST_REST: Duration = Duration::from_secs(5);

/// How to reach a cluster; empty means what kubectl would do.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Kubeconfig.
    pub kubeconfig: Option<PathBuf>,
    /// Context in it.
    pub context: Option<String>,
    /// User to act as.
    pub impersonate: Option<String>,
    /// For one answer.
    pub timeout: Duration,
}

/// Why there is no answer, or which one.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Of HTTP; 0 if there was none.
    pub code: u16,
    /// One line.
    pub why: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Stop {
        let code = match failure.code {
            0 | 401 | 403 | 429 | 500.. => UNAVAILABLE,
            _ => FAILED,
        };
        Stop::new(code, failure.why)
    }
}

/// A client of one cluster.
pub struct Api {
    pub(crate) client: Client,
    timeout: Duration,
    /// Kinds whose paths are known: plural, and whether they have a namespace. Held for a look only.
    kinds: Mutex<HashMap<(String, String), (String, bool)>>,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// Of HTTP.
    pub code: u16,
    /// The server's clock, if it told it.
    pub date: Option<String>,
    /// It wants to be asked again after so many seconds.
    pub retry_after: Option<u64>,
    /// What it said.
    pub body: Vec<u8>,
}

/// What it calls itself.
const AGENT: &str = concat!("meshctl/", env!("CARGO_PKG_VERSION"));

impl Api {
    /// Sets up a connection. Nothing is sent yet.
    pub async fn connect(access: &Access) -> Result<Api, Stop> {
        let unusable = |what: &str, error: &dyn std::error::Error| {
            Stop::new(
                UNAVAILABLE,
                format!("{what}: {}; --kubeconfig and --context say which cluster is meant", chain(error)),
            )
        };
        let options = KubeConfigOptions { context: access.context.clone(), ..KubeConfigOptions::default() };
        let mut config = match &access.kubeconfig {
            Some(path) => {
                let what = format!("kubeconfig {}", path.display());
                let read = Kubeconfig::read_from(path).map_err(|error| unusable(&what, &error))?;
                Config::from_custom_kubeconfig(read, &options).await.map_err(|error| unusable(&what, &error))?
            }
            None if access.context.is_some() => {
                Config::from_kubeconfig(&options).await.map_err(|error| unusable("kubeconfig", &error))?
            }
            None => Config::infer().await.map_err(|error| unusable("no cluster is configured", &error))?,
        };
        config.connect_timeout = Some(access.timeout.min(Duration::from_secs(10)));
        config.auth_info.impersonate.clone_from(&access.impersonate);
        // Who it is stands in the audit log.
        config.headers.push((USER_AGENT, HeaderValue::from_static(AGENT)));
        // The library asks again for minutes, until what is said is that there is no answer. See `send`.
        config.default_retry = false;
        let client = Client::try_from(config).map_err(|error| unusable("the client of the API server", &error))?;
        Ok(Api { client, timeout: access.timeout, kinds: Mutex::default() })
    }

    /// With a client that exists, for tests.
    pub fn with(client: Client) -> Api {
        Api { client, timeout: Duration::from_secs(30), kinds: Mutex::default() }
    }

    /// Sends a request and reads the whole answer, whatever its code. A server that says when it wants to be asked again has done nothing yet: it has too
    /// much to do, or has just begun.
    pub async fn send(&self, method: Method, path: &str, kind: &str, body: Vec<u8>) -> Result<Answer, Failure> {
        let mut tries = 1;
        loop {
            let answer = self.send_once(method.clone(), path, kind, body.clone()).await?;
            let is_busy = answer.code == 429 || answer.code >= 500;
            let Some(wait) = answer.retry_after.filter(|_| is_busy && tries < TRIES) else { return Ok(answer) };
            tokio::time::sleep(Duration::from_secs(wait).min(LONGEST_REST)).await;
            tries += 1;
        }
    }

    async fn send_once(&self, method: Method, path: &str, kind: &str, body: Vec<u8>) -> Result<Answer, Failure> {
        let request = Request::builder().method(method).uri(path).header(ACCEPT, "application/json, */*");
        let request = if kind.is_empty() { request } else { request.header(CONTENT_TYPE, kind) };
        let request = request.body(Body::from(body)).map_err(|error| failed(error.to_string()))?;
        let whole = async {
            let response = self.client.send(request).await.map_err(|error| failed(chain(&error)))?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(|error| failed(error.to_string()))?;
            let header =
                |name: HeaderName| head.headers.get(name).and_then(|value| Some(value.to_str().ok()?.to_owned()));
            let retry_after = header(RETRY_AFTER).and_then(|seconds| seconds.parse().ok());
            Ok(Answer { code: head.status.as_u16(), date: header(DATE), retry_after, body: body.to_bytes().to_vec() })
        };
        self.in_time(whole).await
    }

    /// What is no answer within the time of one is none.
    pub(crate) async fn in_time<T>(&self, whole: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        let late = || failed(format!("no answer within {} s (--request-timeout)", self.timeout.as_secs()));
        tokio::time::timeout(self.timeout, whole).await.map_err(|_| late())?
    }

    /// Sends one request whose answer is an object.
    async fn ask(&self, method: Method, path: &str, kind: &str, body: Vec<u8>) -> Result<(u16, Value), Failure> {
        let answer = self.send(method.clone(), path, kind, body).await?;
        let value: Option<Value> = serde_json::from_slice(&answer.body).ok();
        if (200..300).contains(&answer.code) {
            let unreadable = || Failure { code: 0, why: format!("{method} {path}: the answer is not JSON") };
            return value.map(|value| (answer.code, value)).ok_or_else(unreadable);
        }
        Err(refused(answer.code, reason(&value.unwrap_or_default())))
    }

    /// One object.
    pub async fn get(&self, path: &str) -> Result<Value, Failure> {
        self.ask(Method::GET, path, "", Vec::new()).await.map(|(_, value)| value)
    }

    /// One object, if it is there.
    pub async fn find(&self, path: &str) -> Result<Option<Value>, Failure> {
        match self.get(path).await {
            Ok(value) => Ok(Some(value)),
            Err(failure) if failure.code == 404 => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// All objects of a path, which may have a query.
    pub async fn list(&self, path: &str) -> Result<Vec<Value>, Failure> {
        let mut items = Vec::new();
        self.pages(path, |part| items.extend(part)).await.map(|()| items)
    }

    /// Page by page: whole objects of a large cluster do not fit into memory together.
    async fn pages(&self, path: &str, mut each: impl FnMut(Vec<Value>)) -> Result<(), Failure> {
        let mut next = String::new();
        loop {
            let query = form_urlencoded::Serializer::new(String::new())
                .append_pair("limit", &PAGE.to_string())
                .append_pair("continue", &next)
                .finish();
            let join = if path.contains('?') { '&' } else { '?' };
            let mut page = self.get(&format!("{path}{join}{query}")).await?;
            if let Some(Value::Array(part)) = page.get_mut("items").map(Value::take) {
                each(part);
            }
            match page.pointer("/metadata/continue").and_then(Value::as_str) {
                Some(token) if !token.is_empty() => token.clone_into(&mut next),
                _ => return Ok(()),
            }
        }
    }

    /// All objects of a path, as what is known of them here. One that cannot be read is left out.
    pub async fn view<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>, Failure> {
        self.view_all(path).await.map(|(found, _)| found)
    }

    /// The same, with how many could not be read.
    pub async fn view_all<T: DeserializeOwned>(&self, path: &str) -> Result<(Vec<T>, usize), Failure> {
        let (mut found, mut strange) = (Vec::new(), 0);
        let each = |part: Vec<Value>| {
            for item in part {
                match serde_json::from_value(item) {
                    Ok(item) => found.push(item),
                    Err(_) => strange += 1,
                }
            }
        };
        self.pages(path, each).await?;
        Ok((found, strange))
    }

    /// Server-side apply. Says whether it is new.
    pub async fn apply(&self, path: &str, object: &Value, is_forced: bool) -> Result<bool, Failure> {
        self.applied(path, object, is_forced).await.map(|(code, _)| code == 201)
    }

    /// The same, with what it has become.
    pub async fn applied(&self, path: &str, object: &Value, is_forced: bool) -> Result<(u16, Value), Failure> {
        let path = format!("{path}?fieldManager={MANAGER}&force={is_forced}");
        let body = object.to_string().into_bytes();
        self.ask(Method::PATCH, &path, "application/apply-patch+yaml", body).await
    }

    /// Makes an object.
    pub async fn create(&self, path: &str, object: &Value) -> Result<Value, Failure> {
        self.ask(Method::POST, path, "application/json", object.to_string().into_bytes()).await.map(|(_, value)| value)
    }

    /// Changes a part of an object.
    pub async fn merge(&self, path: &str, change: &Value) -> Result<(), Failure> {
        let body = change.to_string().into_bytes();
        self.ask(Method::PATCH, path, "application/merge-patch+json", body).await.map(drop)
    }

    /// Changes a part of an object, with items of lists found by their names.
    pub async fn merge_lists(&self, path: &str, change: &Value) -> Result<(), Failure> {
        let path = format!("{path}?fieldManager={MANAGER}");
        let body = change.to_string().into_bytes();
        self.ask(Method::PATCH, &path, "application/strategic-merge-patch+json", body).await.map(drop)
    }

    /// Deletes an object and what it owns. Says whether there was one.
    pub async fn delete(&self, path: &str) -> Result<bool, Failure> {
        let options = br#"{"apiVersion":"v1","kind":"DeleteOptions","propagationPolicy":"Background"}"#.to_vec();
        match self.ask(Method::DELETE, path, "application/json", options).await {
            Ok(_) => Ok(true),
            Err(failure) if failure.code == 404 => Ok(false),
            Err(failure) => Err(failure),
        }
    }

    /// Where an object is. Asks the server once for each kind.
    pub async fn path_of(&self, reference: &Reference) -> Result<String, Failure> {
        // What an inventory says may have been written by others, and becomes part of a path.
        let is_plain = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || ".:_-".contains(c));
        if ![&reference.kind, &reference.namespace, &reference.name].into_iter().all(|text| is_plain(text))
            || !reference.api_version.split('/').all(|part| is_plain(part) && !part.is_empty())
            || [".", ".."].contains(&reference.name.as_str())
        {
            return Err(Failure { code: 400, why: format!("no object can be called {reference}") });
        }
        let base = match reference.group() {
            "" => format!("/api/{}", reference.api_version),
            _ => format!("/apis/{}", reference.api_version),
        };
        let key = (reference.api_version.clone(), reference.kind.clone());
        let known = self.kinds.lock().ok().and_then(|kinds| kinds.get(&key).cloned());
        let (plural, is_namespaced) = match known {
            Some(known) => known,
            None => {
                let absent = || Failure {
                    code: 404,
                    why: format!("the cluster has no kind {} of {}", reference.kind, reference.api_version),
                };
                let resources = self.find(&base).await?.ok_or_else(absent)?;
                let mut resources = resources["resources"].as_array().into_iter().flatten();
                let is_it = |r: &&Value| {
                    r["kind"] == reference.kind.as_str() && !r["name"].as_str().unwrap_or("/").contains('/')
                };
                let found = resources.find(is_it).ok_or_else(absent)?;
                let known = (found["name"].as_str().unwrap_or_default().to_owned(), found["namespaced"] == true);
                if let Ok(mut kinds) = self.kinds.lock() {
                    kinds.insert(key, known.clone());
                }
                known
            }
        };
        Ok(match (is_namespaced, reference.namespace.as_str()) {
            (true, "") => format!("{base}/namespaces/default/{plural}/{}", reference.name),
            (true, namespace) => format!("{base}/namespaces/{namespace}/{plural}/{}", reference.name),
            (false, _) => format!("{base}/{plural}/{}", reference.name),
        })
    }

    /// A page of a pod, through the API server.
    pub async fn page_of_pod(&self, namespace: &str, pod: &str, port: u16, page: &str) -> Result<Answer, Failure> {
        let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}:{port}/proxy{page}");
        self.send(Method::GET, &path, "", Vec::new()).await
    }
}

/// There is no answer.
pub(crate) fn failed(why: String) -> Failure {
    Failure { code: 0, why: format!("the API server: {why}") }
}

/// The answer is no.
pub(crate) fn refused(code: u16, message: &str) -> Failure {
    Failure { code, why: format!("the API server answers {code}: {message}") }
}

/// What an answer that is no object says of why.
pub(crate) fn reason(answer: &Value) -> &str {
    answer["message"].as_str().unwrap_or("no reason is given")
}

/// What went wrong, and why, down to the last reason.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut why = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let text = inner.to_string();
        if !why.contains(&text) {
            why = format!("{why}: {text}");
        }
        source = inner.source();
    }
    why.replace('\n', " ")
}
