//! Follows the objects of one kind for ever: list, watch from there, resume where it was cut, list again when that is not possible. Whoever started it gets
//! events over a channel, and reads nothing of Kubernetes' protocol. What is listed again arrives as a whole or not at all.
//!
//! ```text
//! list --Listed--> watch --(cut, closed, timed out)--> watch from the last version
//!   ^                |  410, or three failures in a row
//!   +----------------+        no such custom resource: Absent, looked for again every few seconds
//! ```

use std::borrow::Cow;
use std::convert::Infallible;
use std::time::Duration;

use kube::Client;
use kube::core::WatchEvent;
use mesh_core::ArcStr;
use mesh_runtime::backoff::Backoff;
use rand::Rng;
use serde::Deserialize;
use serde_json::Value as Json;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use crate::api_server::{Failure, follow, get, unreadable};

/// For an answer, or one page of a list, to arrive whole.
const ANSWER: Duration = Duration::from_secs(60);
/// Failures in a row after which a list is asked for instead of more of the same.
const RELIST_AFTER: u32 = 3;
/// Failures in a row after which they are told of: a cut connection is none of anybody's business.
const TELL_AFTER: u32 = 2;

/// What is followed.
#[derive(Clone, Debug)]
pub struct Resource {
    /// Its API group; empty for the core.
    pub group: &'static str,
    /// What can be read, as `apiVersion`, the best first.
    pub versions: &'static [&'static str],
    /// Its name in paths.
    pub plural: &'static str,
    /// In this namespace only.
    pub namespace: Option<ArcStr>,
    /// A field selector.
    pub fields: Option<Cow<'static, str>>,
    /// A label selector.
    pub labels: Option<&'static str>,
    /// Only the metadata is wanted.
    pub metadata_only: bool,
    /// It is there only if somebody has installed it.
    pub is_custom: bool,
    /// While it is not, it is looked for so many times less often than others.
    pub absent: u32,
}

impl Resource {
    /// Where it is, with those parts of a query that are not empty.
    fn path(&self, version: &str, query: &[(&str, &str)]) -> String {
        let mut text = form_urlencoded::Serializer::new(String::new());
        let fields = ("fieldSelector", self.fields.as_deref().unwrap_or_default());
        let labels = ("labelSelector", self.labels.unwrap_or_default());
        text.extend_pairs(query.iter().chain([&fields, &labels]).filter(|(_, value)| !value.is_empty()));
        let (text, plural) = (text.finish(), self.plural);
        let root = if self.group.is_empty() { "api" } else { "apis" };
        match &self.namespace {
            None => format!("/{root}/{version}/{plural}?{text}"),
            Some(namespace) => format!("/{root}/{version}/namespaces/{namespace}/{plural}?{text}"),
        }
    }
}

/// Something was heard about a kind.
#[derive(Clone, Debug)]
pub enum Event<T> {
    /// All that there is.
    Listed(Vec<T>),
    /// One is new or another than before.
    Applied(T),
    /// One is gone.
    Deleted(T),
    /// There is no such kind in the cluster.
    Absent,
    /// Nothing is wrong any more.
    Heard,
    /// Nothing can be heard, again and again.
    Failing(String),
}

/// Times and sizes; tests have shorter ones.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    /// Objects in one answer.
    pub page: usize,
    /// The first and the longest delay between attempts.
    pub backoff: (Duration, Duration),
    /// Between looks for a kind that is not there.
    pub absent: Duration,
    /// A watch that has lasted so long since it was answered was worth having: what ends it is no failure in a row with others.
    pub worth: Duration,
    /// A watch that is silent for so long is dead: API servers send a bookmark every minute.
    pub idle: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            page: 500,
            // A few replicas may ask a dead API server a few times a second; agents wait for what they hear when it is back.
            backoff: (Duration::from_millis(200), Duration::from_secs(5)),
            absent: Duration::from_secs(5),
            worth: Duration::from_secs(2),
            idle: Duration::from_secs(150),
        }
    }
}

/// Follows one kind.
pub struct Follower<K, T, D> {
    /// Of the API server.
    pub client: Client,
    /// What is followed.
    pub resource: Resource,
    /// Makes what is kept of an object that was asked for as an apiVersion.
    pub decode: D,
    /// Goes with each event.
    pub tag: K,
    /// Where they go; it ends when nobody wants them.
    pub events: mpsc::Sender<(K, Event<T>)>,
    /// Times and sizes.
    pub tuning: Tuning,
}

/// Nobody wants events any more.
struct Unwanted;

/// How a watch ended.
enum Ended {
    /// In order; it can be resumed.
    Closed,
    /// There is nothing to resume.
    Expired,
    /// Somehow.
    Failed(Failure),
}

/// How it has gone lately.
struct Health {
    backoff: Backoff,
    /// In a row.
    failures: u32,
    /// That nothing can be heard was told, and not yet that it can.
    is_told: bool,
    /// The watch before was answered, and nothing came: not before a line does it is known that anything can be heard.
    was_silent: bool,
}

impl Health {
    /// It was told that nothing can be heard, and a watch that lasts shows that this is over.
    fn may_recover(&self) -> bool {
        self.is_told && !self.was_silent
    }

    /// Something was worth having.
    fn reset(&mut self) {
        self.backoff.reset();
        self.failures = 0;
    }
}

/// Whole answers to a list.
struct Listed<T> {
    items: Vec<T>,
    version: &'static str,
    at: String,
}

#[derive(Deserialize)]
struct Page {
    metadata: PageMeta,
    // An empty list of Go may be null.
    items: Option<Vec<Json>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PageMeta {
    resource_version: String,
    r#continue: String,
}

#[derive(Deserialize)]
struct Definition {
    spec: DefinitionSpec,
}

#[derive(Deserialize)]
struct DefinitionSpec {
    versions: Vec<DefinitionVersion>,
}

#[derive(Deserialize)]
struct DefinitionVersion {
    name: String,
    served: bool,
}

impl<K: Copy, T, D: Fn(&str, Json) -> Option<T>> Follower<K, T, D> {
    /// Follows until nobody wants to hear of it.
    pub async fn run(self) {
        let (base, max) = self.tuning.backoff;
        let mut health = Health { backoff: Backoff::new(base, max), failures: 0, is_told: false, was_silent: false };
        let Err(Unwanted) = self.forever(&mut health).await;
    }

    async fn forever(&self, health: &mut Health) -> Result<Infallible, Unwanted> {
        loop {
            let Listed { items, version, mut at } = match self.list().await {
                Ok(Some(listed)) => listed,
                Ok(None) => {
                    self.send(Event::Absent).await?;
                    health.is_told = false;
                    health.reset();
                    let share = rand::rng().random_range(0.8..1.2);
                    self.pause(self.tuning.absent.mul_f64(share) * self.resource.absent).await?;
                    continue;
                }
                Err(failure) => {
                    self.failed(health, failure).await?;
                    continue;
                }
            };
            tracing::debug!(kind = self.resource.plural, version, at, objects = items.len(), "listed");
            self.send(Event::Listed(items)).await?;
            health.is_told = false;
            loop {
                match self.watch(version, &mut at, health).await? {
                    Ended::Closed => {
                        let delay = health.backoff.next(&mut rand::rng());
                        self.pause(delay).await?;
                    }
                    Ended::Expired => {
                        tracing::debug!(kind = self.resource.plural, at, "too old to go on from, listing again");
                        let delay = health.backoff.next(&mut rand::rng());
                        self.pause(delay).await?;
                        break;
                    }
                    Ended::Failed(failure) => {
                        let is_gone = failure.code == 404;
                        self.failed(health, failure).await?;
                        if is_gone || health.failures.is_multiple_of(RELIST_AFTER) {
                            break;
                        }
                    }
                }
            }
        }
    }

    /// All objects; `None` if there is no such kind.
    async fn list(&self) -> Result<Option<Listed<T>>, Failure> {
        let Some(version) = self.version().await? else { return Ok(None) };
        let (mut items, mut limit, mut next) = (Vec::new(), Some(self.tuning.page), String::new());
        loop {
            let limit_text = limit.map(|limit| limit.to_string()).unwrap_or_default();
            let path = self.resource.path(version, &[("limit", &limit_text), ("continue", &next)]);
            let page: Page = match get(&self.client, &path, self.accept("PartialObjectMetadataList"), ANSWER).await {
                // The moment that the pages were of is forgotten: once more, in one piece.
                Err(failure) if failure.code == 410 && !next.is_empty() => {
                    (limit, next) = (None, String::new());
                    items.clear();
                    continue;
                }
                page => page?,
            };
            let decoded = page.items.into_iter().flatten().filter_map(|item| (self.decode)(version, item));
            items.extend(decoded);
            next = page.metadata.r#continue;
            if next.is_empty() {
                return Ok(Some(Listed { items, version, at: page.metadata.resource_version }));
            }
        }
    }

    /// The version to ask for. That a custom resource is not there is believed only if the API server says of its definition, by name, that there is
    /// none: a server that is just starting may not know all that it serves, and what stands before it may know nothing.
    async fn version(&self) -> Result<Option<&'static str>, Failure> {
        let Resource { group, plural, versions, is_custom, .. } = &self.resource;
        if !is_custom {
            return Ok(versions.first().copied());
        }
        let missing = ("customresourcedefinitions".to_owned(), format!("{plural}.{group}"));
        let path = format!("/apis/apiextensions.k8s.io/v1/{}/{}", missing.0, missing.1);
        let definition: Definition = match get(&self.client, &path, "application/json", ANSWER).await {
            Ok(definition) => definition,
            Err(failure) if failure.missing.as_ref() == Some(&missing) => return Ok(None),
            Err(failure) => return Err(failure),
        };
        let is_served = |version: &&&str| {
            let name = version.rsplit('/').next();
            definition.spec.versions.iter().any(|v| v.served && Some(v.name.as_str()) == name)
        };
        match versions.iter().find(is_served) {
            Some(version) => Ok(Some(*version)),
            None => Err(Failure::new(format!("{plural}.{group} is served in none of the versions {versions:?}"))),
        }
    }

    async fn watch(&self, version: &str, at: &mut String, health: &mut Health) -> Result<Ended, Unwanted> {
        let seconds = rand::rng().random_range(240..300).to_string();
        let bookmarks = ("allowWatchBookmarks", "true");
        let query = [("watch", "true"), bookmarks, ("resourceVersion", at.as_str()), ("timeoutSeconds", &seconds)];
        let path = self.resource.path(version, &query);
        let mut lines = match follow(&self.client, &path, self.accept("PartialObjectMetadata"), ANSWER).await {
            Ok(lines) => lines,
            Err(failure) => return Ok(ended(failure)),
        };
        let answered = Instant::now();
        let mut heard = answered;
        loop {
            if health.may_recover() && answered.elapsed() >= self.tuning.worth {
                self.heard(health).await?;
            }
            let until = if health.may_recover() { answered + self.tuning.worth } else { heard + self.tuning.idle };
            let next = tokio::select! {
                next = timeout_at(until, lines.next()) => next,
                () = self.events.closed() => return Err(Unwanted),
            };
            let next = match next {
                Ok(next) => next,
                Err(_) if health.may_recover() => continue,
                // Not worth anything, however long it was: a server that says nothing is one that fails.
                Err(_) => {
                    health.was_silent = true;
                    return Ok(Ended::Failed(Failure::new("nothing was heard for too long")));
                }
            };
            heard = Instant::now();
            let end = match next {
                Ok(Some(line)) => match self.line(version, &line, at, health).await? {
                    None => continue,
                    Some(end) => end,
                },
                // Half a line is not told of.
                Ok(None) => Ended::Closed,
                Err(failure) => ended(failure),
            };
            if answered.elapsed() >= self.tuning.worth {
                health.reset();
            }
            return Ok(end);
        }
    }

    /// Takes a line of a watch; how it ends the watch, if it does.
    async fn line(
        &self,
        version: &str,
        line: &[u8],
        at: &mut String,
        health: &mut Health,
    ) -> Result<Option<Ended>, Unwanted> {
        let event = match serde_json::from_slice::<WatchEvent<Json>>(line) {
            Ok(event) => event,
            Err(error) => return Ok(Some(ended(unreadable(&error)))),
        };
        let (object, is_deleted) = match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => (Some(object), false),
            WatchEvent::Deleted(object) => (Some(object), true),
            WatchEvent::Bookmark(bookmark) => {
                *at = bookmark.metadata.resource_version;
                (None, false)
            }
            WatchEvent::Error(status) => return Ok(Some(ended(Failure::refused(&status)))),
        };
        health.was_silent = false;
        self.heard(health).await?;
        health.reset();
        let Some(object) = object else { return Ok(None) };
        let seen = object.pointer("/metadata/resourceVersion").and_then(Json::as_str).map(str::to_owned);
        if let Some(item) = (self.decode)(version, object) {
            self.send(if is_deleted { Event::Deleted(item) } else { Event::Applied(item) }).await?;
        }
        // Not before it has been told: what is not known may be asked for again.
        seen.into_iter().for_each(|seen| *at = seen);
        Ok(None)
    }

    fn accept(&self, metadata: &'static str) -> &'static str {
        match (self.resource.metadata_only, metadata) {
            (false, _) => "application/json",
            (true, "PartialObjectMetadata") => "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
            (true, _) => "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
        }
    }

    async fn failed(&self, health: &mut Health, failure: Failure) -> Result<(), Unwanted> {
        let delay = health.backoff.next(&mut rand::rng());
        let delay = failure.retry_after.map_or(delay, |least| least + delay);
        tracing::debug!(kind = self.resource.plural, error = %failure, ?delay, "cannot follow");
        health.failures = health.failures.saturating_add(1);
        if health.failures >= TELL_AFTER {
            self.send(Event::Failing(failure.to_string())).await?;
            health.is_told = true;
        }
        self.pause(delay).await
    }

    async fn heard(&self, health: &mut Health) -> Result<(), Unwanted> {
        if std::mem::take(&mut health.is_told) {
            self.send(Event::Heard).await?;
        }
        Ok(())
    }

    async fn pause(&self, delay: Duration) -> Result<(), Unwanted> {
        tokio::select! {
            () = tokio::time::sleep(delay) => Ok(()),
            () = self.events.closed() => Err(Unwanted),
        }
    }

    async fn send(&self, event: Event<T>) -> Result<(), Unwanted> {
        self.events.send((self.tag, event)).await.map_err(|_| Unwanted)
    }
}

fn ended(failure: Failure) -> Ended {
    if failure.code == 410 { Ended::Expired } else { Ended::Failed(failure) }
}
