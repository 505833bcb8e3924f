//! The root certificate in every namespace, as ConfigMaps, for whatever pods there have to trust the mesh. What is there is followed, and only what is
//! wrong is written, by server-side apply: replicas may do it at once, and it stays as it is. A root that this replica has never had may be one that
//! others know of already: it is left for a while, in which this one looks at the root again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::Method;
use kube::Client;
use mesh_core::ArcStr;
use mesh_runtime::task;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value as Json, json};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};

use super::watch::{Event, Follower, Resource, Tuning};
use crate::api_server::{Failure, send};
use crate::ca::authority::{Authority, ROOTS_FILE};
use crate::ca::keeper;
use crate::index::View;
use crate::resource::mesh_config::IstioNames;

/// Ours; Istio's, which its own control plane writes where there is one.
const NAMES: [&str; 2] = ["undermesh-root-cert", "istio-ca-root-cert"];
const MANAGER: &str = "mesh-control";
/// Who writes Istio's, as the API server names it.
const ISTIO: &str = "pilot-discovery";
const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// How often it is looked whether the root is another one, and what failed is tried again.
const LOOK: Duration = Duration::from_secs(5);
/// For the API server to answer.
const ANSWER: Duration = Duration::from_secs(10);
/// Namespaces in a row that fail as if the API server were away: one alone may have something in front of it that is broken.
const AWAY: u32 = 3;
/// A server-side apply.
const APPLY: &str = "application/apply-patch+yaml";

/// One of the ConfigMaps as it is.
#[derive(Clone, Debug)]
pub struct RootCopy {
    namespace: ArcStr,
    /// It has our label. Who changes what is in it leaves the label.
    is_ours: bool,
    /// Somebody else has written what is in it.
    is_changed: bool,
    /// And that is Istio's control plane.
    is_istio: bool,
    text: Option<String>,
    /// When that text was first seen.
    since: Instant,
}

impl RootCopy {
    /// Reads one.
    pub fn read(object: &Json) -> Option<Self> {
        let text = |path: &str| object.pointer(path).and_then(Json::as_str);
        let label = object.pointer("/metadata/labels").and_then(|l| l.get(MANAGED_BY)).and_then(Json::as_str);
        let managers = object.pointer("/metadata/managedFields").and_then(Json::as_array);
        let writes = |entry: &&Json| {
            let field = entry.pointer("/fieldsV1/f:data").and_then(|data| data.get(format!("f:{ROOTS_FILE}")));
            field.is_some()
        };
        let manager = |entry: &Json| entry.get("manager").and_then(Json::as_str).map(str::to_owned);
        let writers: Vec<_> = managers.into_iter().flatten().filter(writes).map(manager).collect();
        Some(Self {
            namespace: text("/metadata/namespace")?.into(),
            is_ours: label == Some(MANAGER),
            is_changed: writers.iter().any(|writer| writer.as_deref() != Some(MANAGER)),
            is_istio: writers.iter().any(|writer| writer.as_deref() == Some(ISTIO)),
            text: object.pointer("/data").and_then(|d| d.get(ROOTS_FILE)).and_then(Json::as_str).map(str::to_owned),
            since: Instant::now(),
        })
    }

    fn has(&self, bundle: &str) -> bool {
        self.is_ours && self.text.as_deref() == Some(bundle)
    }

    /// Whether it may be the root that another replica of ours has taken over, and this one has not yet.
    fn may_be_newer(&self, roots: &Roots) -> bool {
        let text = self.text.as_deref().unwrap_or_default();
        let is_bundle = || CertificateDer::pem_slice_iter(text.as_bytes()).next().is_some_and(|root| root.is_ok());
        let is_replicas = self.is_ours && !self.is_changed;
        is_replicas && self.since.elapsed() < roots.settle && roots.last.as_deref() != Some(text) && is_bundle()
    }
}

/// What is known of one name: by namespace, once it has been listed.
type Copies = Option<BTreeMap<ArcStr, RootCopy>>;

/// What this replica knows of the root.
#[derive(Clone, Debug)]
pub struct Roots {
    /// The bundle now.
    pub bundle: String,
    /// And before that.
    pub last: Option<String>,
    /// Until then this replica has seen every root that others may have.
    pub settle: Duration,
    /// What is done with Istio's names.
    pub istio: IstioNames,
}

/// The namespaces where `name` has to be written.
pub fn wrong<'a>(
    name: &str,
    copies: &'a BTreeMap<ArcStr, RootCopy>,
    namespaces: &'a BTreeSet<ArcStr>,
    roots: &Roots,
) -> Vec<&'a ArcStr> {
    // Istio writes all of them, also if ours were there before. Anybody else who changes one of ours changes that one.
    let is_theirs = |copy: &RootCopy| !copy.is_ours || copy.is_istio && !copy.has(&roots.bundle);
    let is_istio_s = match roots.istio {
        IstioNames::Auto => copies.values().any(is_theirs),
        IstioNames::Own => false,
        IstioNames::Off => true,
    };
    if name != NAMES[0] && is_istio_s {
        return Vec::new();
    }
    let is_left = |copy: &RootCopy| copy.has(&roots.bundle) || copy.may_be_newer(roots);
    namespaces.iter().filter(|namespace| !copies.get(*namespace).is_some_and(is_left)).collect()
}

/// Keeps the ConfigMaps, for ever. `spread` is told the hash of the bundle that all have, but for namespaces that nothing can be written to.
pub async fn publish(
    client: Client,
    authority: Arc<ArcSwap<Authority>>,
    mut view: watch::Receiver<Arc<View>>,
    look_at_root: Duration,
    spread: watch::Sender<u64>,
    tuning: Tuning,
) {
    let (sender, mut events) = mpsc::channel(256);
    let fields = ["metadata.name=undermesh-root-cert", "metadata.name=istio-ca-root-cert"];
    for (index, fields) in fields.into_iter().enumerate() {
        let resource = Resource {
            group: "",
            versions: &["v1"],
            plural: "configmaps",
            namespace: None,
            fields: Some(fields.into()),
            labels: None,
            metadata_only: false,
            is_custom: false,
            absent: 1,
        };
        let decode = |_: &str, object: Json| RootCopy::read(&object);
        let follower =
            Follower { client: client.clone(), resource, decode, tag: index, events: sender.clone(), tuning };
        task::spawn_vital("follow", follower.run());
    }
    drop(sender);
    let mut copies: [Copies; 2] = [None, None];
    let mut writer = Writer::new(client);
    let mut names = BTreeSet::new();
    let bundle = authority.load().bundle().to_owned();
    let mut roots = Roots { bundle, last: None, settle: 2 * look_at_root, istio: IstioNames::Off };
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            event = events.recv() => {
                let Some((index, event)) = event else { return };
                take(&mut copies[index], event);
                // The others that wait are part of the same moment.
                while let Ok((index, event)) = events.try_recv() {
                    take(&mut copies[index], event);
                }
            }
            changed = view.changed() => {
                if changed.is_err() {
                    return;
                }
                // Most changes are of something else.
                let view = view.borrow_and_update();
                if view.namespaces == names && view.settings.istio_names == roots.istio {
                    continue;
                }
                names.clone_from(&view.namespaces);
                roots.istio = view.settings.istio_names;
            }
            _ = look.tick() => {}
        }
        if writer.resting.is_some_and(|until| Instant::now() < until) {
            continue;
        }
        let authority = authority.load();
        if authority.bundle() != roots.bundle {
            roots.last = Some(std::mem::replace(&mut roots.bundle, authority.bundle().to_owned()));
        }
        drop(authority);
        writer.failed.retain(|(_, namespace), _| names.contains(namespace));
        let due = NAMES.iter().zip(&copies).enumerate().flat_map(|(index, (name, known))| {
            let wrong = known.as_ref().map(|known| wrong(name, known, &names, &roots)).unwrap_or_default();
            wrong.into_iter().map(move |namespace| (index, namespace.clone()))
        });
        let due: Vec<Key> = due.collect();
        let home = &view.borrow().settings.home.clone();
        let is_known = copies.iter().all(Option::is_some) && names.contains(home);
        if is_known && due.iter().all(|key| writer.failed.contains_key(key) && key.1 != *home) {
            let hash = keeper::hash(&roots.bundle);
            spread.send_if_modified(|told| std::mem::replace(told, hash) != hash);
        }
        writer.round(due, &roots.bundle).await;
        if let Some(until) = writer.resting {
            look.reset_at(until);
        }
    }
}

/// A name and a namespace.
type Key = (usize, ArcStr);

/// Writes copies, and remembers how that went.
struct Writer {
    client: Client,
    /// What was written a moment ago has perhaps not been heard of yet.
    tried: BTreeMap<Key, Instant>,
    /// When each could last not be written.
    failed: BTreeMap<Key, Instant>,
    /// The API server wants no more before.
    resting: Option<Instant>,
    /// What was last complained of.
    complaint: String,
}

impl Writer {
    fn new(client: Client) -> Self {
        Self { client, tried: BTreeMap::new(), failed: BTreeMap::new(), resting: None, complaint: String::new() }
    }

    /// Writes what is due: what never failed first, then what has failed longest ago, so that no namespace keeps others waiting for ever.
    async fn round(&mut self, mut due: Vec<Key>, bundle: &str) {
        self.resting = None;
        self.tried.retain(|_, at| at.elapsed() < LOOK);
        due.sort_by_key(|key| self.failed.get(key).copied());
        let (mut first, mut away, mut all) = (None, 0, true);
        for key in due {
            if self.tried.contains_key(&key) {
                continue;
            }
            let (name, namespace) = (NAMES[key.0], key.1.clone());
            let result = write(&self.client, name, &namespace, bundle).await;
            self.tried.insert(key.clone(), Instant::now());
            let Err(failure) = result else {
                self.failed.remove(&key);
                away = 0;
                continue;
            };
            tracing::debug!(%namespace, name, %failure, "cannot write the root certificate");
            self.failed.insert(key, Instant::now());
            all = false;
            away = if failure.is_away() { away + 1 } else { 0 };
            let is_busy = failure.is_busy();
            let wait = failure.retry_after.unwrap_or_default();
            // A namespace that is being deleted says no; one that is not there, too.
            if failure.code != 404 && !failure.to_string().contains("because it is being terminated") {
                first.get_or_insert((name, namespace, failure));
            }
            if is_busy || away >= AWAY {
                // The others would fare no better.
                self.resting = Some(Instant::now() + wait.max(LOOK));
                break;
            }
        }
        match first {
            Some((name, namespace, failure)) => {
                let text = failure.to_string();
                if text != self.complaint {
                    tracing::warn!(%namespace, name, %failure, "cannot write the root certificate, trying again");
                    self.complaint = text;
                }
            }
            None if all => self.complaint.clear(),
            None => {}
        }
    }
}

fn take(copies: &mut Copies, event: Event<RootCopy>) {
    let since = |old: Option<&RootCopy>, copy: RootCopy| {
        let since = old.filter(|old| old.text == copy.text).map_or(copy.since, |old| old.since);
        (copy.namespace.clone(), RootCopy { since, ..copy })
    };
    match event {
        Event::Listed(all) => {
            let old = copies.take().unwrap_or_default();
            *copies = Some(all.into_iter().map(|copy| since(old.get(&copy.namespace), copy)).collect());
        }
        Event::Applied(copy) => {
            let known = copies.get_or_insert_default();
            let (namespace, copy) = since(known.get(&copy.namespace), copy);
            known.insert(namespace, copy);
        }
        Event::Deleted(copy) => drop(copies.get_or_insert_default().remove(&copy.namespace)),
        Event::Failing(why) => tracing::warn!(%why, "cannot follow the ConfigMaps of the root certificate"),
        Event::Absent | Event::Heard => {}
    }
}

async fn write(client: &Client, name: &str, namespace: &str, bundle: &str) -> Result<(), Failure> {
    let object = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": { MANAGED_BY: MANAGER, "app.kubernetes.io/part-of": "undermesh" },
        },
        "data": { ROOTS_FILE: bundle },
    });
    let path = format!("/api/v1/namespaces/{namespace}/configmaps/{name}?fieldManager={MANAGER}&force=true");
    send::<Json>(client, Method::PATCH, &path, APPLY, &object, ANSWER).await.map(drop)
}
