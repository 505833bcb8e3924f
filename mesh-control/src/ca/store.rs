//! Where the root is kept: two files of the state folder, or a Secret of the cluster that all replicas share. Both hold the same two texts
//! under the same names, and are looked at again while the process runs.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use kube::Client;
use mesh_core::TrustDomain;
use mesh_runtime::backoff::Backoff;
use serde::Deserialize;
use serde_json::json;

use super::authority::{self, Authority, AuthorityError, KEY_FILE, ROOTS_FILE};
use crate::api_server::{Failure, get, send};

/// Name of the Secret.
pub const SECRET: &str = "undermesh-ca";
/// For the API server to answer.
const ANSWER: Duration = Duration::from_secs(10);

/// Where the root is kept.
#[derive(Clone)]
pub enum RootStore {
    /// In files.
    Folder(PathBuf),
    /// In the Secret [`SECRET`].
    Secret {
        /// Of the API server.
        client: Client,
        /// Where the Secret is.
        namespace: String,
    },
}

/// Why there is no root.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// What is kept cannot be used.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The API server says no, or nothing.
    #[error("{0}")]
    Server(Failure),
}

#[derive(Deserialize)]
struct Secret {
    data: Option<BTreeMap<String, String>>,
}

impl RootStore {
    /// How often it is worth looking whether the root is another one.
    pub fn look(&self) -> Duration {
        match self {
            RootStore::Folder(_) => Duration::from_secs(2),
            RootStore::Secret { .. } => Duration::from_secs(20),
        }
    }

    /// Reads the root, or makes it. Waits for an API server that is away, and judges what it says by what time it is then.
    pub async fn open(
        &self,
        trust_domain: &TrustDomain,
        now: impl Fn() -> SystemTime,
    ) -> Result<Authority, StoreError> {
        let (client, namespace) = match self {
            RootStore::Folder(folder) => return Ok(Authority::open(folder, trust_domain, now())?),
            RootStore::Secret { client, namespace } => (client, namespace),
        };
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
        loop {
            match open_secret(client, namespace, trust_domain, &now).await {
                Err(StoreError::Server(failure)) if failure.is_away() => {
                    let delay = backoff.next(&mut rand::rng());
                    tracing::warn!(%failure, "cannot read the root, trying again");
                    tokio::time::sleep(delay + failure.retry_after.unwrap_or_default()).await;
                }
                opened => return opened,
            }
        }
    }

    /// Reads the root again; `None` if it is the same. Never makes one.
    pub async fn reload(&self, current: &Authority, now: SystemTime) -> Result<Option<Authority>, StoreError> {
        match self {
            RootStore::Folder(folder) => Ok(current.reload(folder, now)?),
            RootStore::Secret { client, namespace } => {
                let Some((key, roots)) = read(client, namespace).await? else {
                    return Err(StoreError::Server(Failure::new(format!("Secret {namespace}/{SECRET} is gone"))));
                };
                if current.is_of(&key, &roots) {
                    return Ok(None);
                }
                Ok(Some(parse(namespace, &key, &roots, now)?))
            }
        }
    }
}

async fn open_secret(
    client: &Client,
    namespace: &str,
    trust_domain: &TrustDomain,
    now: &impl Fn() -> SystemTime,
) -> Result<Authority, StoreError> {
    if let Some((key, roots)) = read(client, namespace).await? {
        return parse(namespace, &key, &roots, now());
    }
    let (key, roots) = authority::make(trust_domain, now()).map_err(AuthorityError::from)?;
    let secret = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": SECRET,
            "labels": { "app.kubernetes.io/part-of": "undermesh", "app.kubernetes.io/managed-by": "mesh-control" },
        },
        "type": "Opaque",
        "data": { KEY_FILE: STANDARD.encode(&key), ROOTS_FILE: STANDARD.encode(&roots) },
    });
    let path = format!("/api/v1/namespaces/{namespace}/secrets");
    let made: Result<Secret, Failure> = send(client, Method::POST, &path, "application/json", &secret, ANSWER).await;
    match made {
        Ok(_) => tracing::info!(namespace, name = SECRET, "a new root was made"),
        // Another replica was faster, or the answer was lost: what is there counts.
        Err(failure) if failure.code == 409 => {}
        Err(failure) => return Err(StoreError::Server(failure)),
    }
    match read(client, namespace).await? {
        Some((key, roots)) => parse(namespace, &key, &roots, now()),
        None => Err(StoreError::Server(Failure::new(format!("Secret {namespace}/{SECRET} was deleted at once")))),
    }
}

/// Key and bundle; `None` if there is no Secret.
async fn read(client: &Client, namespace: &str) -> Result<Option<(String, String)>, StoreError> {
    let path = format!("/api/v1/namespaces/{namespace}/secrets/{SECRET}");
    let secret: Secret = match get(client, &path, "application/json", ANSWER).await {
        Ok(secret) => secret,
        Err(failure) if failure.code == 404 => return Ok(None),
        Err(failure) => return Err(StoreError::Server(failure)),
    };
    let data = secret.data.unwrap_or_default();
    let text = |key: &str| {
        let bytes = data.get(key).and_then(|text| STANDARD.decode(text).ok());
        bytes.and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default()
    };
    Ok(Some((text(KEY_FILE), text(ROOTS_FILE))))
}

/// A Secret that is there and holds no root is never replaced: somebody put it there.
fn parse(namespace: &str, key: &str, roots: &str, now: SystemTime) -> Result<Authority, StoreError> {
    let place = |name: &str| PathBuf::from(format!("Secret {namespace}/{SECRET}: {name}"));
    Ok(Authority::parse(key, roots, now, &place(KEY_FILE), &place(ROOTS_FILE))?)
}
