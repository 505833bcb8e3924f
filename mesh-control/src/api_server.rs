//! The connection to the API server, and single questions to it. What it answers is never printed: it may be a Secret.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use http::{Method, Request};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde::de::DeserializeOwned;
use serde_json::Value as Json;

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
    why: String,
}

impl Failure {
    /// Without a code.
    pub fn new(why: impl fmt::Display) -> Self {
        Self { code: 0, retry_after: None, why: why.to_string() }
    }

    /// Whether the server is away or busy, rather than of another opinion.
    pub fn is_away(&self) -> bool {
        matches!(self.code, 0 | 408 | 429 | 500..)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => {
                let seconds = status.details.as_ref().map_or(0, |d| d.retry_after_seconds);
                let seconds = if status.code == 429 { seconds.max(1) } else { seconds };
                let why = match status.message.trim() {
                    "" => format!("the API server answers {}", status.code),
                    message => format!("the API server answers {}: {message}", status.code),
                };
                let retry_after = (seconds > 0).then(|| Duration::from_secs(u64::from(seconds.min(60))));
                Self { code: status.code, retry_after, why }
            }
            // Its text quotes nothing of what was read.
            kube::Error::SerdeError(error) => Self::new(format!("the answer cannot be read: {error}")),
            error => {
                let mut why = error.to_string();
                let mut source = std::error::Error::source(&error);
                while let Some(inner) = source {
                    let text = inner.to_string();
                    if !why.contains(&text) {
                        why = format!("{why}: {text}");
                    }
                    source = inner.source();
                }
                Self::new(why)
            }
        }
    }
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
    // Not `Client::request`: it logs an answer that it cannot read.
    let text = match tokio::time::timeout(deadline, client.request_text(request)).await {
        Ok(text) => text?,
        Err(_) => return Err(Failure::new(format!("no answer within {deadline:?}"))),
    };
    serde_json::from_str(&text).map_err(|error| Failure::new(format!("the answer cannot be read: {error}")))
}
