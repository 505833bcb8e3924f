//! The root certificate in every namespace, as ConfigMaps, for whatever pods there have to trust the mesh. What is there is followed, and only what is wrong is
//! written, by server-side apply: replicas may do it at once, and it stays as it is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::Method;
use kube::Client;
use mesh_core::ArcStr;
use mesh_runtime::task;
use serde_json::{Value as Json, json};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};

use super::watch::{Event, Follower, Resource, Tuning};
use crate::api_server::{Failure, send};
use crate::ca::authority::{Authority, ROOTS_FILE};

/// Ours; Istio's, which its own control plane writes where there is one.
const NAMES: [&str; 2] = ["undermesh-root-cert", "istio-ca-root-cert"];
const MANAGER: &str = "mesh-control";
const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// How often it is looked whether the root is another one, and what failed is tried again.
const LOOK: Duration = Duration::from_secs(5);
/// For the API server to answer.
const ANSWER: Duration = Duration::from_secs(10);
/// A server-side apply.
const APPLY: &str = "application/apply-patch+yaml";

/// One of the ConfigMaps as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootCopy {
    namespace: ArcStr,
    is_ours: bool,
    text: Option<String>,
}

impl RootCopy {
    /// Reads one.
    pub fn read(object: &Json) -> Option<Self> {
        let text = |path: &str| object.pointer(path).and_then(Json::as_str);
        let manager = object.pointer("/metadata/labels").and_then(|l| l.get(MANAGED_BY)).and_then(Json::as_str);
        Some(Self {
            namespace: text("/metadata/namespace")?.into(),
            is_ours: manager == Some(MANAGER),
            text: object.pointer("/data").and_then(|d| d.get(ROOTS_FILE)).and_then(Json::as_str).map(str::to_owned),
        })
    }
}

/// What is known of one name: by namespace, once it has been listed.
type Copies = Option<BTreeMap<ArcStr, RootCopy>>;

/// The namespaces where `name` has to be written.
pub fn wrong<'a>(
    name: &str,
    copies: &'a BTreeMap<ArcStr, RootCopy>,
    namespaces: &'a BTreeSet<ArcStr>,
    bundle: &'a str,
) -> Vec<&'a ArcStr> {
    // Whoever has written one writes all of them.
    if name != NAMES[0] && copies.values().any(|copy| !copy.is_ours) {
        return Vec::new();
    }
    let is_right = |ns: &&ArcStr| copies.get(*ns).is_some_and(|c| c.is_ours && c.text.as_deref() == Some(bundle));
    namespaces.iter().filter(|ns| !is_right(ns)).collect()
}

/// Keeps the ConfigMaps, for ever.
pub async fn publish(
    client: Client,
    authority: Arc<ArcSwap<Authority>>,
    mut namespaces: watch::Receiver<BTreeSet<ArcStr>>,
    istio_too: bool,
    tuning: Tuning,
) {
    let (sender, mut events) = mpsc::channel(256);
    let fields = ["metadata.name=undermesh-root-cert", "metadata.name=istio-ca-root-cert"];
    for (index, fields) in fields.into_iter().take(if istio_too { 2 } else { 1 }).enumerate() {
        let resource = Resource {
            group: "",
            versions: &["v1"],
            plural: "configmaps",
            fields: Some(fields),
            metadata_only: false,
            is_custom: false,
        };
        let decode = |_: &str, object: Json| RootCopy::read(&object);
        let follower =
            Follower { client: client.clone(), resource, decode, tag: index, events: sender.clone(), tuning };
        task::spawn_vital("follow", follower.run());
    }
    drop(sender);
    let mut copies: [Copies; 2] = [None, None];
    // What was written a moment ago has perhaps not been heard of yet.
    let mut tried: BTreeMap<(usize, ArcStr), Instant> = BTreeMap::new();
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
            changed = namespaces.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            _ = look.tick() => {}
        }
        let names = namespaces.borrow_and_update().clone();
        let bundle = authority.load().bundle().to_owned();
        tried.retain(|_, at| at.elapsed() < LOOK);
        for (index, (name, known)) in NAMES.iter().zip(&copies).enumerate() {
            let Some(known) = known else { continue };
            for namespace in wrong(name, known, &names, &bundle) {
                if tried.contains_key(&(index, namespace.clone())) {
                    continue;
                }
                tried.insert((index, namespace.clone()), Instant::now());
                if let Err(failure) = write(&client, name, namespace, &bundle).await {
                    // A namespace that is being deleted says no; one that is not there yet, too. The next look tries again.
                    tracing::debug!(%namespace, name, %failure, "cannot write the root certificate");
                }
            }
        }
    }
}

fn take(copies: &mut Copies, event: Event<RootCopy>) {
    match event {
        Event::Listed(all) => *copies = Some(all.into_iter().map(|copy| (copy.namespace.clone(), copy)).collect()),
        Event::Applied(copy) => drop(copies.get_or_insert_default().insert(copy.namespace.clone(), copy)),
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
