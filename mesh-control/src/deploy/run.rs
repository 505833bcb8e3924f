//! Does what a round says: follows what there is, applies, deletes and tells, while this replica leads. What fails is tried again, each object by itself and
//! less and less often; if the API server is away, everything waits.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use jiff::Timestamp;
use kube::Client;
use mesh_core::{ArcStr, NamespacedName};
use mesh_runtime::backoff::Backoff;
use mesh_runtime::task;
use serde_json::{Value as Json, json};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::listener_sets::Joined;
use super::live::{essence, is_ours};
use super::overlay::OF_CLASS;
use super::plan::{self, Parameters, whole};
use super::round::{Applied, Key, Known, Listened, Step, What, round};
use super::{Defaults, FIELD_MANAGER};
use crate::api_server::{Failure, get, send};
use crate::cluster::watch::{Event, Follower, Resource, Tuning};
use crate::index::{Settings, View};
use crate::resource::routing::Gateway;

/// For the API server to answer.
const ANSWER: Duration = Duration::from_secs(10);
const APPLY: &str = "application/apply-patch+yaml";
/// What changes in one moment is one round.
const QUIET: Duration = Duration::from_millis(30);
/// How long a ConfigMap is taken for what it was. Nothing follows it: it may be any of the cluster.
const STALE: Duration = Duration::from_secs(15);
/// After answers as if the API server were away.
const REST: Duration = Duration::from_secs(2);
/// How many of them in a row: a single object may have something in front of it that is broken.
const AWAY: u32 = 3;
/// Rounds at most so often, also where somebody else writes the same fields again and again.
const PAUSE: Duration = Duration::from_millis(100);
/// The first and the longest time until an object is tried again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));

/// Serves Gateways for ever; only while `leads` says so.
pub async fn run(
    client: Client,
    defaults: Defaults,
    mut view: watch::Receiver<Arc<View>>,
    mut leads: watch::Receiver<bool>,
    tuning: Tuning,
) {
    let mut events = follow(&client, tuning);
    let mut deployer = Deployer::new(client, defaults);
    loop {
        let wake = deployer.wake();
        tokio::select! {
            event = events.recv() => {
                let Some((what, event)) = event else { return };
                deployer.take(what, event);
                tokio::time::sleep(QUIET).await;
                while let Ok((what, event)) = events.try_recv() {
                    deployer.take(what, event);
                }
            }
            changed = view.changed() => if changed.is_err() { return },
            changed = leads.changed() => if changed.is_err() { return },
            () = tokio::time::sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
        }
        if !*leads.borrow_and_update() {
            deployer.forget();
            continue;
        }
        let view = view.borrow_and_update().clone();
        deployer.round(&view).await;
        tokio::time::sleep(PAUSE).await;
    }
}

fn follow(client: &Client, tuning: Tuning) -> mpsc::Receiver<(What, Event<Json>)> {
    const OURS: &str = "gateway.istio.io/managed=undermesh.io-gateway-controller";
    let (sender, events) = mpsc::channel(256);
    for what in What::ALL {
        let (version, plural) = what.resource();
        let is_custom = matches!(what, What::Class | What::Mesh | What::Gateway | What::ListenerSet);
        let resource = Resource {
            group: version.split_once('/').map_or("", |(group, _)| group),
            versions: match what {
                What::Class | What::Gateway | What::ListenerSet => &["gateway.networking.k8s.io/v1"],
                What::Mesh => &["gateway.networking.x-k8s.io/v1alpha1"],
                What::Deployment => &["apps/v1"],
                What::Account | What::Service => &["v1"],
                What::Autoscaler => &["autoscaling/v2"],
                What::Budget => &["policy/v1"],
            },
            plural,
            namespace: None,
            fields: None,
            labels: (!is_custom).then_some(OURS),
            metadata_only: false,
            is_custom,
            absent: if what == What::Mesh { 6 } else { 1 },
        };
        let decode = |version: &str, mut object: Json| {
            // Items of lists do not say what they are.
            object.as_object_mut()?.insert("apiVersion".to_owned(), version.into());
            Some(object)
        };
        let client = client.clone();
        let follower = Follower { client, resource, decode, tag: what, events: sender.clone(), tuning };
        task::spawn_vital("follow", follower.run());
    }
    events
}

/// What is known of an object that could not be written.
struct Attempt {
    backoff: Backoff,
    next: Instant,
    why: String,
}

/// Why a step was not done.
enum Trouble {
    /// The API server has not done it.
    Server(Failure),
    /// There is an object of that name that is somebody else's.
    Foreign,
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Trouble::Server(failure)
    }
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Trouble::Server(failure) => failure.fmt(f),
            Trouble::Foreign => f.write_str(
                "there is one that is not of this gateway, and it is not touched; rename it, or name another with the annotation gateway.istio.io/name-override",
            ),
        }
    }
}

struct Deployer {
    client: Client,
    defaults: Defaults,
    known: Known,
    /// Kinds that the cluster does not have, or does not show.
    absent: BTreeSet<What>,
    attempts: BTreeMap<Key, Attempt>,
    /// When ConfigMaps were looked at.
    read: BTreeMap<NamespacedName, Instant>,
    /// When those that are for classes were.
    of_classes_read: Option<Instant>,
    /// Those that were read last, however long ago: what is refused for a moment takes nothing away.
    of_classes_last: Option<Vec<Json>>,
    /// The API server is away until then, as far as it is known.
    resting: Option<Instant>,
}

impl Deployer {
    fn new(client: Client, defaults: Defaults) -> Self {
        let (known, attempts, read) = (Known::default(), BTreeMap::new(), BTreeMap::new());
        let (absent, resting) = (BTreeSet::new(), None);
        let (of_classes_read, of_classes_last) = (None, None);
        Self { client, defaults, known, absent, attempts, read, of_classes_read, of_classes_last, resting }
    }

    /// Another one may change everything meanwhile.
    fn forget(&mut self) {
        self.known.applied.clear();
        self.known.parameters.clear();
        self.known.failures.clear();
        self.attempts.clear();
        self.read.clear();
        self.known.of_classes = None;
        self.of_classes_read = None;
        self.resting = None;
    }

    /// When there is something to do, if nothing is heard until then.
    fn wake(&self) -> Option<Instant> {
        let attempts = self.attempts.values().map(|attempt| attempt.next);
        let stale = self.read.values().chain(&self.of_classes_read).map(|at| *at + STALE);
        let due = attempts.chain(stale).min();
        match self.resting {
            Some(resting) => Some(due.map_or(resting, |due| due.max(resting))),
            None => due,
        }
    }

    fn take(&mut self, what: What, event: Event<Json>) {
        let objects = &mut self.known.objects;
        match event {
            Event::Listed(all) => {
                self.absent.remove(&what);
                objects.insert(what, all.into_iter().filter_map(|object| Some((name(&object)?, object))).collect());
            }
            Event::Applied(object) => {
                if let Some(name) = name(&object) {
                    objects.entry(what).or_default().insert(name, object);
                }
            }
            Event::Deleted(object) => {
                if let Some(name) = name(&object) {
                    objects.entry(what).or_default().remove(&name);
                    self.known.applied.remove(&(what, name));
                }
            }
            // Without the definitions of the Gateway API there is nothing to serve, and what was made went with its Gateways.
            Event::Absent => {
                self.absent.insert(what);
                objects.remove(&what);
            }
            Event::Failing(why) => {
                // Gateways do not wait for what only adds to them.
                self.absent.insert(what);
                tracing::warn!(kind = what.kind(), %why, "cannot follow what gateways are made of");
            }
            Event::Heard => {}
        }
    }

    /// One round. Nothing is judged before everything has been heard of, but for what most clusters have not.
    async fn round(&mut self, view: &View) {
        let now = Instant::now();
        let is_known = What::ALL.iter().all(|what| match what {
            What::Mesh => true,
            // Of these none is needed to serve a Gateway, and the rights of an earlier chart do not reach for them.
            What::ListenerSet | What::Autoscaler | What::Budget if self.absent.contains(what) => true,
            _ => self.known.objects.contains_key(what),
        });
        if !is_known || self.resting.is_some_and(|until| now < until) {
            return;
        }
        self.resting = None;
        for (name, _) in self.read.extract_if(.., |_, at| *at + STALE <= now) {
            self.known.parameters.remove(&name);
        }
        if self.of_classes_read.is_some_and(|at| at + STALE <= now) {
            self.of_classes_read = None;
            self.known.of_classes = None;
        }
        let heeds = |namespace: &str| view.namespaces.contains(&ArcStr::from(namespace));
        let listened = |name: &NamespacedName, spec: &Gateway| listened(view, name, spec);
        let mut steps = round(&self.known, &self.defaults, &view.settings, heeds, listened, Timestamp::now());
        // What a Gateway names is known when what its class has is.
        for _ in 0..2 {
            if !steps.iter().any(|step| matches!(step, Step::Read(_) | Step::ReadOfClasses)) {
                break;
            }
            self.read_all(&steps, &view.settings).await;
            steps = round(&self.known, &self.defaults, &view.settings, heeds, listened, Timestamp::now());
        }
        let wanted: BTreeSet<Key> = steps.iter().filter_map(Step::key).cloned().collect();
        self.attempts.retain(|key, _| wanted.contains(key));
        self.known.failures.retain(|key, _| wanted.contains(key));
        let mut away = 0;
        for step in steps {
            let Some(key) = step.key().cloned() else { continue };
            if self.attempts.get(&key).is_some_and(|attempt| Instant::now() < attempt.next) {
                continue;
            }
            let trouble = match self.work(step).await {
                Ok(()) => {
                    away = 0;
                    self.done(&key);
                    continue;
                }
                Err(trouble) => trouble,
            };
            self.failed(key, &trouble);
            let Trouble::Server(failure) = trouble else { continue };
            away = if failure.is_away() { away + 1 } else { 0 };
            if failure.is_busy() || away >= AWAY {
                // The others would fare no better.
                self.resting = Some(Instant::now() + REST.max(failure.retry_after.unwrap_or_default()));
                return;
            }
        }
    }

    async fn read_all(&mut self, steps: &[Step], settings: &Settings) {
        if steps.contains(&Step::ReadOfClasses) {
            self.read_of_classes(settings).await;
        }
        for step in steps {
            let Step::Read(name) = step else { continue };
            let path = format!("/api/v1/namespaces/{}/configmaps/{}", name.namespace, name.name);
            let found = match get::<Json>(&self.client, &path, "application/json", ANSWER).await {
                Ok(found) => Parameters::Found(Box::new(found)),
                Err(failure) if failure.missing.is_some() => Parameters::Missing,
                Err(failure) if failure.code == 403 => Parameters::Forbidden,
                Err(failure) => {
                    tracing::warn!(config_map = %name, %failure, "cannot read the parameters of a gateway");
                    self.read.insert(name.clone(), Instant::now());
                    continue;
                }
            };
            self.read.insert(name.clone(), Instant::now());
            self.known.parameters.insert(name.clone(), found);
        }
    }

    /// Looks at the ConfigMaps that are for classes. While that fails for a moment nothing is made or taken away; while it is forbidden those count that were read
    /// last, and where none ever were, Gateways are refused and stay as they are.
    async fn read_of_classes(&mut self, settings: &Settings) {
        let own = settings.config_name().namespace;
        let path = format!("/api/v1/namespaces/{own}/configmaps?labelSelector={}", OF_CLASS.replace('/', "%2F"));
        self.of_classes_read = Some(Instant::now());
        match get::<Json>(&self.client, &path, "application/json", ANSWER).await {
            Ok(list) => {
                let all = list["items"].as_array().cloned().unwrap_or_default();
                self.of_classes_last = Some(all.clone());
                self.known.of_classes = Some(Ok(all));
            }
            Err(failure) => {
                tracing::warn!(namespace = %own, %failure, "cannot read what is for classes of gateways");
                if failure.code == 403 {
                    let last = self.of_classes_last.clone();
                    self.known.of_classes = Some(last.ok_or_else(|| plan::of_classes_forbidden(&own)));
                }
            }
        }
    }

    fn done(&mut self, key: &Key) {
        self.attempts.remove(key);
        self.known.failures.remove(key);
    }

    fn failed(&mut self, key: Key, trouble: &Trouble) {
        let why = trouble.to_string();
        // A namespace that ends takes no more, and has no need to.
        let is_ending = why.contains("because it is being terminated");
        let fresh =
            || Attempt { backoff: Backoff::new(BACKOFF.0, BACKOFF.1), next: Instant::now(), why: String::new() };
        let attempt = self.attempts.entry(key.clone()).or_insert_with(fresh);
        if attempt.why != why && !is_ending {
            tracing::warn!(kind = key.0.kind(), name = %key.1, %trouble, "cannot write what a gateway needs, trying again");
        }
        attempt.why.clone_from(&why);
        attempt.next = Instant::now() + attempt.backoff.next(&mut rand::rng()).max(BACKOFF.0);
        if What::MADE.contains(&key.0) {
            self.known.failures.insert(key.clone(), format!("{} {}: {why}", key.0.kind(), key.1.name));
        }
    }

    async fn work(&mut self, step: Step) -> Result<(), Trouble> {
        match step {
            Step::Apply(key, desired, hash) => self.apply(key, &desired, hash).await,
            Step::Delete(key, uid) => {
                let body = json!({ "apiVersion": "v1", "kind": "DeleteOptions", "preconditions": { "uid": uid } });
                let path = key.0.path(&key.1);
                match send::<Json>(&self.client, Method::DELETE, &path, "application/json", &body, ANSWER).await {
                    Err(failure) if failure.missing.is_some() || failure.code == 409 => {}
                    other => drop(other?),
                }
                tracing::info!(kind = key.0.kind(), name = %key.1, "deleted what no gateway needs any more");
                self.forget_one(&key);
                Ok(())
            }
            Step::Tell(key, body) => {
                let path = format!("{}/status?fieldManager={FIELD_MANAGER}&force=true", key.0.path(&key.1));
                // Told to one that is gone, it would be made again.
                let sent = send::<Json>(&self.client, Method::PATCH, &path, APPLY, &body, ANSWER).await;
                match sent {
                    Err(failure) if failure.missing.is_some() => self.forget_one(&key),
                    Err(failure) => return Err(failure.into()),
                    Ok(object) => self.heard(&key, object),
                }
                Ok(())
            }
            Step::Read(_) | Step::ReadOfClasses => Ok(()),
        }
    }

    /// Applies an object, if it is not somebody else's.
    async fn apply(&mut self, key: Key, desired: &Json, hash: u64) -> Result<(), Trouble> {
        let path = key.0.path(&key.1);
        let is_known = self.known.objects.get(&key.0).is_some_and(|all| all.contains_key(&key.1));
        if !is_known {
            match get::<Json>(&self.client, &path, "application/json", ANSWER).await {
                Err(failure) if failure.missing.is_some() => {}
                Err(failure) => return Err(failure.into()),
                // It is one that we make and have not heard of yet.
                Ok(live) if is_ours(&live) => self.heard(&key, live),
                // A service account that the Gateway names may be anybody's and is used as it is; so is a class, and the mesh.
                Ok(live) if matches!(key.0, What::Account | What::Class | What::Mesh) => {
                    self.known.applied.insert(key.clone(), Applied { desired: hash, live: essence(&live) });
                    self.heard(&key, live);
                    return Ok(());
                }
                Ok(_) => return Err(Trouble::Foreign),
            }
        }
        let path = format!("{path}?fieldManager={FIELD_MANAGER}&force=true");
        let object = send::<Json>(&self.client, Method::PATCH, &path, APPLY, desired, ANSWER).await?;
        tracing::debug!(kind = key.0.kind(), name = %key.1, "applied");
        if What::MADE.contains(&key.0) {
            self.known.applied.insert(key.clone(), Applied { desired: hash, live: essence(&object) });
        }
        self.heard(&key, object);
        Ok(())
    }

    /// As if it had been followed: that comes a moment later.
    fn heard(&mut self, key: &Key, object: Json) {
        self.known.objects.entry(key.0).or_default().insert(key.1.clone(), object);
    }

    fn forget_one(&mut self, key: &Key) {
        if let Some(all) = self.known.objects.get_mut(&key.0) {
            all.remove(&key.1);
        }
        self.known.applied.remove(key);
    }
}

/// What the view says of a Gateway; `None` if it was joined in another form, or not all is known that it names.
fn listened(view: &View, name: &NamespacedName, spec: &Gateway) -> Option<Listened> {
    view.routes.gateways.get(name).filter(|joined| joined.spec == *spec)?;
    let told = view.listeners_told.gateways.get(name)?.clone();
    let ports = view.listeners.get(name).into_iter().flat_map(|all| all.open().collect::<Vec<_>>());
    let sets = &view.listeners_told.sets;
    // Of one that names a Secret that nobody has heard of it is not known yet.
    if view.resolved.sets.get(name).into_iter().flatten().any(|set| !sets.contains_key(set)) {
        return None;
    }
    let sets = sets.iter().filter(|(_, told)| told.gateway == *name).filter_map(|(set, told)| {
        let spec = view.routes.listener_sets.get(set)?.spec.clone();
        Some((set.clone(), Joined { spec, told: told.clone() }))
    });
    let gateway = view.gateways_told.get(name).cloned().unwrap_or_default();
    let hosts = spec.addresses.iter().filter(|address| address.kind.as_deref() == Some("Hostname"));
    let hosts = hosts.filter_map(|address| Some(whole(address.value.as_deref()?, &name.namespace, &view.settings)));
    let is_there = |host: &String| view.services.values().any(|service| *service.hostname == **host);
    Some(Listened {
        told,
        gateway,
        sets: sets.collect(),
        ports: ports.collect(),
        hosts: hosts.filter(is_there).collect(),
    })
}

fn name(object: &Json) -> Option<NamespacedName> {
    let text = |path: &str| object.pointer(path).and_then(Json::as_str);
    Some(NamespacedName::new(text("/metadata/namespace").unwrap_or_default(), text("/metadata/name")?))
}
