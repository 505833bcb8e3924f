//! Where signer and roots are kept: files of the state folder, or a Secret of the cluster that all replicas share. Both hold the same texts under the
//! same names, and are looked at again while the process runs. What the operator plugs in is beside them: a folder, or a Secret of its own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use kube::Client;
use mesh_runtime::backoff::Backoff;
use serde::Deserialize;
use serde_json::json;

use super::authority::{Authority, AuthorityError, KEY_FILE, ROOTS_FILE};
use super::plugged::{self, Plugged, Purpose};
use super::turn::{self, NEXT_FILE, ROTATION_FILE, Texts};
use crate::api_server::{Failure, get, send};
use crate::state::{self, StateError};

/// Name of the Secret.
pub const SECRET: &str = "undermesh-ca";
/// On the Secret, a text that was not there before asks for a new root; a file of that name in the state folder does, too.
pub const ASKED: &str = "undermesh.io/rotate-root";
const ASKED_FILE: &str = "rotate-root";
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
    /// What is plugged in cannot be used.
    #[error("{0}")]
    Plugged(String),
    /// The API server says no, or nothing.
    #[error("{0}")]
    Server(Failure),
}

impl From<StateError> for StoreError {
    fn from(error: StateError) -> Self {
        StoreError::Authority(error.into())
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Secret {
    metadata: Metadata,
    data: Option<BTreeMap<String, Option<String>>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Metadata {
    uid: Option<String>,
    resource_version: Option<String>,
    annotations: Option<BTreeMap<String, String>>,
}

impl Secret {
    /// A part as text; empty if there is none, or it is none.
    fn text(&self, name: &str) -> String {
        let part = self.data.as_ref().and_then(|data| data.get(name)?.as_ref());
        let bytes = part.and_then(|text| STANDARD.decode(text).ok());
        bytes.and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default()
    }

    fn texts(&self) -> Texts {
        let [key, roots, next, rotation] = [KEY_FILE, ROOTS_FILE, NEXT_FILE, ROTATION_FILE].map(|name| self.text(name));
        Texts { key, roots, next, rotation }
    }
}

/// What is kept, as it was read.
#[derive(Clone, Debug)]
pub struct Stored {
    /// The texts.
    pub texts: Texts,
    /// What the operator asks for.
    pub asked: String,
    /// Of the object, for a change of just that.
    version: Option<String>,
}

impl RootStore {
    /// How often it is worth looking whether the root is another one.
    pub fn look(&self) -> Duration {
        match self {
            RootStore::Folder(_) => Duration::from_secs(2),
            RootStore::Secret { .. } => Duration::from_secs(5),
        }
    }

    /// How the place is called, before the name of a part.
    pub fn place(&self) -> String {
        match self {
            RootStore::Folder(folder) => format!("{}/", folder.display()),
            RootStore::Secret { namespace, .. } => format!("Secret {namespace}/{SECRET}: "),
        }
    }

    /// How the place of what is plugged in is called.
    pub fn plugged_place(&self) -> String {
        match self {
            RootStore::Folder(folder) => folder.join(plugged::NAME).display().to_string(),
            RootStore::Secret { namespace, .. } => format!("Secret {namespace}/{}", plugged::NAME),
        }
    }

    /// Reads the signer, or takes what is plugged in, or makes one. Waits for an API server that is away, and judges what it says by what time it is
    /// then. What is plugged in and cannot be used is an error if there is nothing else: nobody who plugs in a signer wants another one.
    pub async fn open(&self, purpose: &Purpose, now: impl Fn() -> SystemTime) -> Result<Authority, StoreError> {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
        loop {
            match self.try_open(purpose, &now).await {
                Err(StoreError::Server(failure)) if failure.is_away() => {
                    let delay = backoff.next(&mut rand::rng());
                    tracing::warn!(%failure, "cannot read the root, trying again");
                    tokio::time::sleep(delay + failure.retry_after.unwrap_or_default()).await;
                }
                opened => return opened,
            }
        }
    }

    async fn try_open(&self, purpose: &Purpose, now: &impl Fn() -> SystemTime) -> Result<Authority, StoreError> {
        if let Some(stored) = self.read().await? {
            match turn::authority(&stored.texts, &self.place(), now()) {
                Ok(authority) => return Ok(authority),
                Err(error) => match self.plugged(purpose, now()).await? {
                    None => return Err(error.into()),
                    Some(plugged) => {
                        let texts = turn::first(Some(&plugged), &purpose.domain, now())?;
                        tracing::warn!(%error, "what is kept cannot be used, what is plugged in takes its place");
                        self.write(&stored, &texts).await?;
                    }
                },
            }
        } else {
            let plugged = self.plugged(purpose, now()).await?;
            let texts = turn::first(plugged.as_ref(), &purpose.domain, now())?;
            self.create(&texts).await?;
        }
        let stored = self.read().await?;
        let gone = || StoreError::Server(Failure::new(format!("{}deleted at once", self.place())));
        Ok(turn::authority(&stored.ok_or_else(gone)?.texts, &self.place(), now())?)
    }

    /// What is kept; `None` if there is nothing.
    pub async fn read(&self) -> Result<Option<Stored>, StoreError> {
        match self {
            RootStore::Folder(folder) => {
                state::folder(folder)?;
                let text = |name: &str| state::read(&folder.join(name));
                let secret = |name: &str| state::read_secret(&folder.join(name));
                let (key, roots) = (secret(KEY_FILE)?, text(ROOTS_FILE)?);
                let half = |present: &str, absent: &str| AuthorityError::Half {
                    present: folder.join(present),
                    absent: folder.join(absent),
                };
                let (key, roots) = match (key, roots) {
                    (Some(key), Some(roots)) => (key, roots),
                    (Some(_), None) => return Err(half(KEY_FILE, ROOTS_FILE).into()),
                    (None, Some(_)) => return Err(half(ROOTS_FILE, KEY_FILE).into()),
                    (None, None) => return Ok(None),
                };
                let next = secret(NEXT_FILE)?.unwrap_or_default();
                let texts = Texts { key, roots, next, rotation: text(ROTATION_FILE)?.unwrap_or_default() };
                let asked = text(ASKED_FILE)?.unwrap_or_default();
                Ok(Some(Stored { texts, asked: asked.trim().to_owned(), version: None }))
            }
            RootStore::Secret { client, namespace } => {
                let secret = read_secret(client, namespace, SECRET).await?;
                Ok(secret.map(|secret| Stored {
                    texts: secret.texts(),
                    asked: secret.metadata.annotations.as_ref().and_then(|a| a.get(ASKED)).cloned().unwrap_or_default(),
                    version: secret.metadata.resource_version.clone(),
                }))
            }
        }
    }

    /// What is plugged in; an error if it is there and cannot be used.
    pub async fn plugged(&self, purpose: &Purpose, now: SystemTime) -> Result<Option<Plugged>, StoreError> {
        let mut parts = BTreeMap::new();
        match self {
            RootStore::Folder(folder) => {
                let folder = folder.join(plugged::NAME);
                if !folder.is_dir() {
                    return Ok(None);
                }
                for name in plugged::names() {
                    let path = folder.join(name);
                    let is_secret = name.ends_with("key.pem") || name.ends_with(".key");
                    let text = if is_secret { state::read_secret(&path)? } else { state::read(&path)? };
                    text.map(|text| parts.insert(name.to_owned(), text));
                }
            }
            RootStore::Secret { client, namespace } => {
                let Some(secret) = read_secret(client, namespace, plugged::NAME).await? else { return Ok(None) };
                let named = plugged::names().map(|name| (name.to_owned(), secret.text(name)));
                parts.extend(named.filter(|(_, text)| !text.is_empty()));
            }
        }
        plugged::read(&parts, &self.plugged_place(), purpose, now).map(Some).map_err(StoreError::Plugged)
    }

    async fn create(&self, texts: &Texts) -> Result<(), StoreError> {
        match self {
            RootStore::Folder(folder) => Ok(write_files(folder, texts)?),
            RootStore::Secret { client, namespace } => create_secret(client, namespace, texts).await,
        }
    }

    /// Keeps `texts` instead of what was `stored`. Somebody else who was faster is an error.
    pub async fn write(&self, stored: &Stored, texts: &Texts) -> Result<(), StoreError> {
        let (client, namespace) = match self {
            RootStore::Folder(folder) => return Ok(write_files(folder, texts)?),
            RootStore::Secret { client, namespace } => (client, namespace),
        };
        let change = json!({
            "metadata": { "resourceVersion": stored.version },
            "data": data(texts),
        });
        let path = format!("/api/v1/namespaces/{namespace}/secrets/{SECRET}");
        let kept = send::<Secret>(client, Method::PATCH, &path, "application/merge-patch+json", &change, ANSWER).await;
        kept.map(drop).map_err(StoreError::Server)
    }

    /// Says on the operator's object what becomes of it, in a cluster.
    pub async fn tell(&self, is_good: bool, message: &str) -> Result<(), StoreError> {
        let RootStore::Secret { client, namespace } = self else { return Ok(()) };
        let secret = read_secret(client, namespace, plugged::NAME).await?;
        let (name, uid) = match secret {
            Some(secret) => (plugged::NAME, secret.metadata.uid),
            None => (SECRET, read_secret(client, namespace, SECRET).await?.and_then(|secret| secret.metadata.uid)),
        };
        let now = format!("{:.0}", jiff::Timestamp::now());
        let mut message = message.to_owned();
        message.truncate(message.floor_char_boundary(1000));
        let (r#type, reason) = if is_good { ("Normal", "InForce") } else { ("Warning", "NotInForce") };
        let event = json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": { "generateName": format!("{name}."), "namespace": namespace },
            "involvedObject": { "apiVersion": "v1", "kind": "Secret", "namespace": namespace, "name": name, "uid": uid },
            "type": r#type,
            "reason": reason,
            "message": message,
            "source": { "component": "mesh-control" },
            "reportingComponent": "undermesh.io/mesh-control",
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        });
        let path = format!("/api/v1/namespaces/{namespace}/events");
        let sent = send::<serde_json::Value>(client, Method::POST, &path, "application/json", &event, ANSWER).await;
        sent.map(drop).map_err(StoreError::Server)
    }
}

fn data(texts: &Texts) -> serde_json::Value {
    let part = |text: &str| if text.is_empty() { json!(null) } else { json!(STANDARD.encode(text)) };
    json!({
        KEY_FILE: part(&texts.key),
        ROOTS_FILE: part(&texts.roots),
        NEXT_FILE: part(&texts.next),
        ROTATION_FILE: part(&texts.rotation),
    })
}

/// One after the other, so that a crash between two leaves what can be read: the key comes before a certificate that nobody could sign under, and a root
/// goes when nobody signs under it any more.
fn write_files(folder: &Path, texts: &Texts) -> Result<(), StateError> {
    let put = |name: &str, text: &str, mode| {
        let path = folder.join(name);
        if state::read(&path)?.is_some_and(|old| old == text) { Ok(()) } else { state::write(&path, text, mode) }
    };
    if !texts.next.is_empty() {
        put(NEXT_FILE, &texts.next, 0o600)?;
    }
    put(ROTATION_FILE, &texts.rotation, 0o644)?;
    put(KEY_FILE, &texts.key, 0o600)?;
    put(ROOTS_FILE, &texts.roots, 0o644)?;
    if texts.next.is_empty() { state::remove(&folder.join(NEXT_FILE)) } else { Ok(()) }
}

async fn create_secret(client: &Client, namespace: &str, texts: &Texts) -> Result<(), StoreError> {
    let mut data = data(texts);
    if let Some(data) = data.as_object_mut() {
        data.retain(|_, text| !text.is_null());
    }
    let secret = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": SECRET,
            "labels": { "app.kubernetes.io/part-of": "undermesh", "app.kubernetes.io/managed-by": "mesh-control" },
        },
        "type": "Opaque",
        "data": data,
    });
    let path = format!("/api/v1/namespaces/{namespace}/secrets");
    let made: Result<Secret, Failure> = send(client, Method::POST, &path, "application/json", &secret, ANSWER).await;
    match made {
        Ok(_) => tracing::info!(namespace, name = SECRET, "a new root is kept"),
        // Another replica was faster, or the answer was lost: what is there counts.
        Err(failure) if failure.code == 409 => {}
        Err(failure) => return Err(StoreError::Server(failure)),
    }
    Ok(())
}

/// A Secret; `None` if there is none.
async fn read_secret(client: &Client, namespace: &str, name: &str) -> Result<Option<Secret>, StoreError> {
    let path = format!("/api/v1/namespaces/{namespace}/secrets/{name}");
    match get(client, &path, "application/json", ANSWER).await {
        Ok(secret) => Ok(Some(secret)),
        Err(failure) if failure.code == 404 => Ok(None),
        Err(failure) => Err(StoreError::Server(failure)),
    }
}
