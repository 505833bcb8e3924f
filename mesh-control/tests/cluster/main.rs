//! The control plane on an API server, which is a small one of our own with all the faults of real ones: what is followed, what is kept there, and who
//! may call. One program, so that it is linked once.
#![allow(non_snake_case, reason = "tests carry the ids of the rows they prove")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod fake;
mod follow;
mod gateways;
mod keys;
mod leader;
mod plane;
mod rotation;
mod routes;
#[path = "../support/mod.rs"]
mod support;
mod telling;
mod webhook;

use std::time::Duration;

use mesh_control::api_server;
use mesh_control::cluster::source::ClusterSource;
use mesh_control::cluster::watch::Tuning;
use mesh_control::source::{Source, Update};
use mesh_control::yaml::document;
use serde_json::{Value as Json, json};
use support::soon;

use fake::FakeApi;

const BOOKINFO: &str = include_str!("../bookinfo/bookinfo.yaml");
const POLICY: &str = include_str!("../bookinfo/policy.yaml");

/// Short waits and small pages.
const TUNING: Tuning = Tuning {
    page: 3,
    backoff: (Duration::from_millis(5), Duration::from_millis(50)),
    absent: Duration::from_millis(20),
    worth: Duration::from_millis(20),
    idle: Duration::from_secs(30),
};

/// The documents of a manifest.
fn documents(text: &str) -> Vec<Json> {
    document::split(text).into_iter().map(|d| serde_saphyr::from_str(d.text).unwrap()).collect()
}

/// A policy of the namespace `shop`.
fn policy(name: &str, spec: Json) -> Json {
    json!({ "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": { "name": name, "namespace": "shop" }, "spec": spec })
}

fn pod(name: &str, address: &str) -> Json {
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "namespace": "shop" },
        "spec": { "nodeName": "node1", "containers": [] }, "status": { "phase": "Running", "podIP": address } })
}

/// What makes the API server know a kind of `security.istio.io`.
fn definition(plural: &str, versions: &[(&str, bool)]) -> Json {
    let versions: Vec<Json> = versions.iter().map(|(name, served)| json!({ "name": name, "served": served })).collect();
    json!({ "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": format!("{plural}.security.istio.io") }, "spec": { "versions": versions } })
}

/// An API server that knows the kinds of Istio.
async fn istio() -> FakeApi {
    let api = FakeApi::start().await;
    api.put(definition("authorizationpolicies", &[("v1beta1", true), ("v1", true)]));
    api.put(definition("peerauthentications", &[("v1", false), ("v1beta1", true)]));
    api
}

/// A source that follows an API server.
struct Following {
    source: ClusterSource,
    /// The fewest pods in any state but the first.
    fewest: usize,
    update: Update,
}

impl Following {
    async fn source(api: &FakeApi, tuning: Tuning) -> ClusterSource {
        let folder = tempfile::tempdir().unwrap();
        let client = api_server::connect(Some(&api.kubeconfig(folder.path()))).await.unwrap();
        ClusterSource::new(&client, tuning)
    }

    /// Follows; returns with the first state.
    async fn start(api: &FakeApi) -> Following {
        Self::tuned(api, TUNING).await
    }

    async fn tuned(api: &FakeApi, tuning: Tuning) -> Following {
        let mut source = Self::source(api, tuning).await;
        let update = soon("the first state", source.next()).await.unwrap();
        Following { source, fewest: usize::MAX, update }
    }

    /// Takes states until `done` holds of one.
    async fn until(&mut self, what: &str, done: impl Fn(&Update) -> bool) {
        soon(what, async {
            while !done(&self.update) {
                self.update = self.source.next().await.unwrap();
                self.fewest = self.fewest.min(self.update.objects.pods.len());
            }
        })
        .await;
    }

    async fn pods(&mut self, names: &[&str]) {
        let wanted: Vec<String> = names.iter().map(|n| format!("shop/{n}")).collect();
        let has = |u: &Update| u.objects.pods.keys().map(ToString::to_string).eq(wanted.iter().cloned());
        self.until(&format!("pods {names:?}"), has).await;
    }

    /// Policies: `!` before those that are closed.
    fn policies(&self) -> Vec<String> {
        policies(&self.update)
    }
}

fn policies(update: &Update) -> Vec<String> {
    use mesh_control::resource::Secured;
    let all = update.objects.authorization_policies.iter();
    all.map(
        |(name, p)| if matches!(p, Secured::Unreadable(_)) { format!("!{}", name.name) } else { name.name.to_string() },
    )
    .collect()
}
