//! The API server: a client, the two watches, and the annotation. Called by [`super::driver`].
//!
//! A watch that fails is taken up again with growing waits; nothing that was heard before is forgotten meanwhile. One whose place in the history
//! is gone (410) lists anew.

use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use futures_util::stream::{self, BoxStream, Stream, StreamExt};
use http::HeaderValue;
use http::header::USER_AGENT;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{Api, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, Config};
use serde_json::json;

use super::book::Heard;
use super::facts::{Facts, Mark, REDIRECTION};
use super::wanted::Mode;

/// How long the server lets a watch run, and, with a few seconds more, after what silence it is taken for dead.
const WATCH_SECONDS: u32 = 90;
/// How long a list may be silent, or an annotation take.
const ANSWER: Duration = Duration::from_secs(120);
const PATCH: Duration = Duration::from_secs(10);
/// What it calls itself.
const AGENT: &str = concat!("mesh-agent/", env!("CARGO_PKG_VERSION"));
/// Longest wait before a watch is made anew.
const ANEW: Duration = Duration::from_secs(1);

/// What a watch says; an error is for the log, the watch goes on by itself.
pub type Hearing<T> = BoxStream<'static, Result<Heard<T, String>, String>>;

/// A client: with a pod's service account (`cluster`), or as a kubeconfig file says.
pub async fn connect(source: &str) -> Result<Client, String> {
    let text = |error: &(dyn std::error::Error + 'static)| super::super::node::chain(error);
    let mut config = match source {
        "cluster" => Config::incluster().map_err(|error| text(&error))?,
        path => {
            let file = Kubeconfig::read_from(Path::new(path)).map_err(|error| text(&error))?;
            let options = KubeConfigOptions::default();
            Config::from_custom_kubeconfig(file, &options).await.map_err(|error| text(&error))?
        }
    };
    config.connect_timeout = Some(PATCH);
    config.read_timeout = Some(ANSWER);
    // Who it is stands in the audit log.
    config.headers.push((USER_AGENT, HeaderValue::from_static(AGENT)));
    Client::try_from(config).map_err(|error| text(&error))
}

/// Namespaces with their label.
pub fn namespaces(client: &Client) -> Hearing<(String, Option<Mode>)> {
    let api: Api<PartialObjectMeta<Namespace>> = Api::all(client.clone());
    let config = watcher::Config::default().timeout(WATCH_SECONDS);
    follow(
        move || watcher(api.clone(), config.clone()).default_backoff(),
        |namespace: &PartialObjectMeta<Namespace>| {
            let name = namespace.metadata.name.clone()?;
            Some((name.clone(), (name, namespace.metadata.labels.as_ref().and_then(Mode::of))))
        },
    )
}

/// Pods of one node.
pub fn pods(client: &Client, node: &str) -> Hearing<Facts> {
    let api: Api<Pod> = Api::all(client.clone());
    let config = watcher::Config::default().timeout(WATCH_SECONDS).fields(&format!("spec.nodeName={node}"));
    follow(
        move || watcher(api.clone(), config.clone()).default_backoff(),
        |pod: &Pod| Facts::of(pod).map(|facts| (facts.uid.to_string(), facts)),
    )
}

/// Sets the pod's annotation, or takes it away. A pod that is gone has nothing to be said about.
pub async fn annotate(client: &Client, pod: &Facts, mark: Option<Mark>) -> Result<(), String> {
    let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace);
    // The UID makes the server refuse it for a later pod of the same name.
    let value = mark.map(Mark::value);
    let patch = json!({ "metadata": { "uid": pod.uid.as_str(), "annotations": { REDIRECTION: value } } });
    let (params, patch) = (PatchParams::default(), Patch::Merge(&patch));
    // Through the status, which needs no right to change what the pod is.
    match tokio::time::timeout(PATCH, api.patch_status(&pod.name, &params, &patch)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(kube::Error::Api(status))) if status.code == 404 => Ok(()),
        Ok(Err(error)) => Err(super::super::node::chain(&error)),
        Err(_) => Err(format!("no answer within {PATCH:?}")),
    }
}

/// Turns a watch's events into what was heard; `read` gives key and value. The watcher takes a 410 that answers its request for a passing
/// failure and asks for ever from the same place, so it is made anew then.
fn follow<K, T, S>(
    make: impl Fn() -> S + Send + 'static,
    read: impl Fn(&K) -> Option<(String, T)> + Send + 'static,
) -> Hearing<T>
where
    K: Send + 'static,
    T: Send + 'static,
    S: Stream<Item = watcher::Result<Event<K>>> + Send + 'static,
{
    let first: Pin<Box<S>> = Box::pin(make());
    let heard = stream::unfold((first, make, read), async |(mut watch, make, read)| {
        loop {
            let heard = match watch.next().await? {
                Ok(Event::Init) => Ok(Heard::Listing),
                Ok(Event::InitApply(object)) => match read(&object) {
                    Some((_, value)) => Ok(Heard::Listed(value)),
                    None => continue,
                },
                Ok(Event::InitDone) => Ok(Heard::Complete),
                Ok(Event::Apply(object)) => match read(&object) {
                    Some((_, value)) => Ok(Heard::Changed(value)),
                    None => continue,
                },
                Ok(Event::Delete(object)) => match read(&object) {
                    Some((key, _)) => Ok(Heard::Gone(key)),
                    None => continue,
                },
                Err(error) => {
                    if is_gone(&error) {
                        // The watcher's own wait went with it; and many nodes are told so at once.
                        tokio::time::sleep(ANEW.mul_f64(rand::random())).await;
                        watch = Box::pin(make());
                    }
                    Err(super::super::node::chain(&error))
                }
            };
            return Some((heard, (watch, make, read)));
        }
    });
    heard.boxed()
}

fn is_gone(error: &watcher::Error) -> bool {
    use watcher::Error::{WatchFailed, WatchStartFailed};
    matches!(error, WatchStartFailed(kube::Error::Api(status)) | WatchFailed(kube::Error::Api(status)) if status.code == 410)
}
