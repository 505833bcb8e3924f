//! The connection to the API server, questions to it, and answers that go on. What it answers is never printed, but for what a refusal says of itself:
//! it may be a Secret. Requests go by `Client::send` alone; whatever else that client has looks at answers in ways of its own: some log what they
//! cannot read, some heed no status, all lose `Retry-After`.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::{Bytes, BytesMut};
use http::header::{RETRY_AFTER, USER_AGENT};
use http::{HeaderValue, Method, Request, Response};
use http_body_util::{BodyExt, Limited};
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::Status;
use kube::{Client, Config};
use serde::de::DeserializeOwned;
use serde_json::Value as Json;

/// How the API server's log and its fairness know us.
const AGENT: &str = concat!("mesh-control/", env!("CARGO_PKG_VERSION"));
/// What is read of a refusal.
const MAX_REFUSAL: usize = 64 << 10;
/// What is read of a line: ten times what an object may have.
const MAX_LINE: usize = 16 << 20;

/// Connects with a kubeconfig, or as the pod that this runs in. Nothing is sent yet.
pub async fn connect(kubeconfig: Option<&Path>) -> Result<Client> {
    let mut config = match kubeconfig {
        Some(path) => {
            let read = Kubeconfig::read_from(path).with_context(|| format!("--kubeconfig {}", path.display()))?;
            Config::from_custom_kubeconfig(read, &KubeConfigOptions::default())
                .await
                .with_context(|| format!("--kubeconfig {}", path.display()))?
        }
        None => {
            Config::incluster().context("--kube without --kubeconfig is for a pod: there is no service account here")?
        }
    };
    config.connect_timeout = Some(Duration::from_secs(5));
    // Whoever asks knows when to ask again; the client's own retries heed no `Retry-After`.
    config.default_retry = false;
    Client::try_from(config).context("set up the client of the API server")
}

/// Why there is no answer.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Of HTTP; 0 if there was none.
    pub code: u16,
    /// What the server asks for, at most a minute.
    pub retry_after: Option<Duration>,
    /// The API server itself says that it has no such object, and which: plural and name. Whoever else answers 404 knows nothing of objects.
    pub missing: Option<(String, String)>,
    why: String,
}

impl Failure {
    /// Without a code.
    pub fn new(why: impl fmt::Display) -> Self {
        Self { code: 0, retry_after: None, missing: None, why: why.to_string() }
    }

    /// An answer that is none, in the form that Kubernetes gives it.
    pub fn refused(status: &Status) -> Self {
        Self::with(status.code, 0, Some(status))
    }

    fn with(code: u16, seconds: u32, status: Option<&Status>) -> Self {
        let details = status.and_then(|status| status.details.as_ref());
        let seconds = seconds.max(details.map_or(0, |d| d.retry_after_seconds));
        let seconds = if code == 429 { seconds.max(1) } else { seconds };
        let why = match status.map_or("", |status| status.message.trim()) {
            "" => format!("the API server answers {code}"),
            message => format!("the API server answers {code}: {message}"),
        };
        let is_missing = code == 404 && status.is_some_and(|status| status.reason == "NotFound");
        Self {
            code,
            retry_after: (seconds > 0).then(|| Duration::from_secs(u64::from(seconds.min(60)))),
            missing: details.filter(|_| is_missing).map(|d| (d.kind.clone(), d.name.clone())),
            why,
        }
    }

    /// Whether the server is away or busy, rather than of another opinion.
    pub fn is_away(&self) -> bool {
        matches!(self.code, 0 | 408 | 429 | 500..)
    }

    /// Whether the server says that it has enough to do.
    pub fn is_busy(&self) -> bool {
        self.retry_after.is_some() || matches!(self.code, 408 | 429 | 503)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        Self::new(chain(&error))
    }
}

/// What went wrong, and why, down to the last reason.
fn chain(error: &dyn std::error::Error) -> String {
    let mut why = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let text = inner.to_string();
        if !why.contains(&text) {
            why = format!("{why}: {text}");
        }
        source = inner.source();
    }
    why
}

/// Lines of an answer that goes on.
pub struct Lines {
    body: Body,
    text: BytesMut,
    /// There is no end of a line in so much of it.
    searched: usize,
}

impl Lines {
    /// The next one, whole; `None` at the end. Whoever stops waiting loses nothing.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            if let Some(end) = self.text[self.searched..].iter().position(|byte| *byte == b'\n') {
                let line = self.text.split_to(self.searched + end + 1);
                self.searched = 0;
                return Ok(Some(line.freeze()));
            }
            self.searched = self.text.len();
            if self.searched > MAX_LINE {
                return Err(Failure::new(format!("a line of the answer is longer than {MAX_LINE} bytes")));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => self.text.extend(frame.into_data().ok()),
                Some(Err(error)) => return Err(Failure::new(chain(&error))),
                None => return Ok(None),
            }
        }
    }
}

/// Reads `path`, whose answer goes on; `deadline` is for its beginning.
pub async fn follow(client: &Client, path: &str, accept: &str, deadline: Duration) -> Result<Lines, Failure> {
    let request = Request::get(path).header(http::header::ACCEPT, accept).body(Vec::new()).map_err(Failure::new)?;
    let response = in_time(deadline, open(client, request)).await?;
    Ok(Lines { body: response.into_body(), text: BytesMut::new(), searched: 0 })
}

/// Reads `path`.
pub async fn get<T: DeserializeOwned>(
    client: &Client,
    path: &str,
    accept: &str,
    deadline: Duration,
) -> Result<T, Failure> {
    let request = Request::get(path).header(http::header::ACCEPT, accept).body(Vec::new());
    ask(client, request.map_err(Failure::new)?, deadline).await
}

/// Reads `path` as it is, at most `limit` bytes.
pub async fn fetch(client: &Client, path: &str, limit: usize, deadline: Duration) -> Result<Bytes, Failure> {
    let request = Request::get(path).header(http::header::ACCEPT, "*/*").body(Vec::new()).map_err(Failure::new)?;
    let whole = async {
        let body = Limited::new(open(client, request).await?.into_body(), limit);
        body.collect().await.map_err(|error| Failure::new(chain(error.as_ref())))
    };
    Ok(in_time(deadline, whole).await?.to_bytes())
}

/// Sends `body` to `path`.
pub async fn send<T: DeserializeOwned>(
    client: &Client,
    method: Method,
    path: &str,
    content_type: &str,
    body: &Json,
    deadline: Duration,
) -> Result<T, Failure> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::ACCEPT, "application/json")
        .header(http::header::CONTENT_TYPE, content_type)
        .body(body.to_string().into_bytes());
    ask(client, request.map_err(Failure::new)?, deadline).await
}

async fn ask<T: DeserializeOwned>(
    client: &Client,
    request: Request<Vec<u8>>,
    deadline: Duration,
) -> Result<T, Failure> {
    let whole = async {
        let body = open(client, request).await?.into_body();
        body.collect().await.map_err(|error| Failure::new(chain(&error)))
    };
    let body = in_time(deadline, whole).await?.to_bytes();
    serde_json::from_slice(&body).map_err(|error| unreadable(&error))
}

/// The whole text of the error may quote a value.
pub fn unreadable(error: &serde_json::Error) -> Failure {
    let (what, line, column) = (error.classify(), error.line(), error.column());
    Failure::new(format!("the answer cannot be read: {what:?} error at line {line} column {column}"))
}

async fn in_time<T>(deadline: Duration, answer: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let late = || Failure::new(format!("no answer within {deadline:?}"));
    tokio::time::timeout(deadline, answer).await.map_err(|_| late())?
}

/// The answer, if it is one.
async fn open(client: &Client, mut request: Request<Vec<u8>>) -> Result<Response<Body>, Failure> {
    request.headers_mut().insert(USER_AGENT, HeaderValue::from_static(AGENT));
    let response = client.send(request.map(Body::from)).await?;
    if response.status().is_success() {
        return Ok(response);
    }
    let (head, body) = response.into_parts();
    // A date is not what Kubernetes writes.
    let seconds = head.headers.get(RETRY_AFTER).and_then(|v| v.to_str().ok()?.trim().parse().ok()).unwrap_or(0);
    let body = Limited::new(body, MAX_REFUSAL).collect().await.ok().map(http_body_util::Collected::to_bytes);
    let status: Option<Status> = body.and_then(|body| serde_json::from_slice(&body).ok());
    Err(Failure::with(head.status.as_u16(), seconds, status.as_ref()))
}
