//! The API server as a [`Source`]: one follower for each kind, and an inventory of what they tell. The first state is delivered when every kind has been
//! heard of; from then on whatever changes within a moment is one state.

use std::time::Duration;

use kube::Client;
use mesh_runtime::task;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::decode::{Item, decode};
use super::inventory::Inventory;
use super::watch::{Event, Follower, Resource, Tuning};
use crate::resource::Kind;
use crate::source::{Source, Update};

/// How long it must be quiet.
const QUIET: Duration = Duration::from_millis(20);
/// When what is never quiet is taken over all the same.
const PATIENCE: Duration = Duration::from_millis(200);
/// How often it is said what a start waits for.
const IMPATIENCE: Duration = Duration::from_secs(10);
/// Events on their way; with more the followers wait, and with them the API server.
const EVENTS: usize = 1024;

/// Slices that Kubernetes has not made from the pods that a service selects.
const NOT_DERIVED: &str = "endpointslice.kubernetes.io/managed-by!=endpointslice-controller.k8s.io";

/// The kinds of which everything is heard.
fn followed() -> Vec<Kind> {
    Kind::ALL.into_iter().filter(|kind| kind.is_followed()).collect()
}

/// How a kind is asked for. Of some nothing but their metadata is read.
pub fn resource(kind: Kind) -> Resource {
    let of = Resource {
        group: kind.group(),
        versions: kind.api_versions(),
        plural: kind.plural(),
        namespace: None,
        fields: None,
        labels: None,
        metadata_only: false,
        is_custom: kind.is_security() || kind.is_routing(),
        // Nobody's traffic waits for what says where requests go, and there are many kinds of it.
        absent: if kind.is_routing() { 4 } else { 1 },
    };
    match kind {
        Kind::ConfigMap => Resource { fields: Some("metadata.name=undermesh".into()), ..of },
        Kind::Namespace | Kind::Node | Kind::ServiceAccount => Resource { metadata_only: true, ..of },
        // That it is there is all that matters.
        _ if kind.is_refused() => Resource { metadata_only: true, ..of },
        // Those of services with a selector say again what the pods say, and change with each of them.
        Kind::EndpointSlice => Resource { labels: Some(NOT_DERIVED), ..of },
        _ => of,
    }
}

/// The API server as a source.
#[derive(Debug)]
pub struct ClusterSource {
    events: mpsc::Receiver<(Kind, Event<Item>)>,
    inventory: Inventory,
    is_started: bool,
}

impl ClusterSource {
    /// Follows every kind until it is dropped.
    pub fn new(client: &Client, tuning: Tuning) -> Self {
        let (sender, events) = mpsc::channel(EVENTS);
        for kind in followed() {
            let follower = Follower {
                client: client.clone(),
                resource: resource(kind),
                decode: move |api_version: &str, object| decode(kind, api_version, object),
                tag: kind,
                events: sender.clone(),
                tuning,
            };
            task::spawn_vital("follow", follower.run());
        }
        Self { events, inventory: Inventory::default(), is_started: false }
    }

    /// Waits until every kind has been heard of.
    async fn begin(&mut self) -> Option<()> {
        let mut told = Instant::now();
        loop {
            match timeout_at(told + IMPATIENCE, self.events.recv()).await {
                Ok(Some((kind, event))) => drop(self.inventory.take(kind, event)),
                Ok(None) => return None,
                Err(_) => {
                    told = Instant::now();
                    let waiting = self.inventory.waiting(&followed()).join(", ");
                    tracing::warn!(%waiting, "cannot begin before the API server has told of everything");
                }
            }
            if self.inventory.waiting(&followed()).is_empty() {
                return Some(());
            }
        }
    }

    /// Waits until something has changed, and takes what comes in the same moment. Says when the first of it was heard.
    async fn changed(&mut self) -> Option<Instant> {
        loop {
            let (kind, event) = self.events.recv().await?;
            if self.inventory.take(kind, event) {
                break;
            }
        }
        let since = Instant::now();
        let deadline = since + PATIENCE;
        loop {
            let quiet = (Instant::now() + QUIET).min(deadline);
            match timeout_at(quiet, self.events.recv()).await {
                Ok(Some((kind, event))) if Instant::now() < deadline => drop(self.inventory.take(kind, event)),
                Ok(Some((kind, event))) => {
                    self.inventory.take(kind, event);
                    return Some(since);
                }
                Ok(None) => return None,
                Err(_) => return Some(since),
            }
        }
    }
}

impl Source for ClusterSource {
    async fn next(&mut self) -> Option<Update> {
        let since = match self.is_started {
            true => Some(self.changed().await?.into_std()),
            false => {
                self.begin().await?;
                None
            }
        };
        self.is_started = true;
        Some(Update { since, ..self.inventory.update() })
    }
}
