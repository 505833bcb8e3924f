//! Keeps what the API server knows of the webhook: the certificate by which it knows us, and what it does when nobody answers. The configuration itself is
//! installed with the control plane; where there is none, or it was taken away, nothing is made. Only the leader does it.
//!
//! Whether the API server reaches us is tried through the API server itself: it is asked to keep, as a dry run, an object that only we refuse.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use kube::Client;
use rand::Rng;
use serde_json::{Value as Json, json};
use tokio::sync::watch;

use super::review::{PROBE, probed};
use crate::api_server::{Failure, get, send};
use crate::ca::authority::Authority;

/// What the ValidatingWebhookConfiguration is called.
pub const NAME: &str = "undermesh-validation";
/// On the configuration, `"true"` holds the webhook back: it is asked, and nobody waits for an answer.
pub const PAUSED: &str = "undermesh.io/paused";
/// For the API server to answer, with the webhook's own time in it.
const ANSWER: Duration = Duration::from_secs(15);
/// Lists of webhooks are merged by their names.
const STRATEGIC: &str = "application/strategic-merge-patch+json";

/// Times; tests have shorter ones.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// Between looks while something is to be done or wrong.
    pub soon: Duration,
    /// And while all is well.
    pub late: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self { soon: Duration::from_secs(3), late: Duration::from_secs(10) }
    }
}

/// What a probe found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Probe {
    /// The API server has asked us.
    Answered,
    /// It has not, or could not.
    Unanswered,
    /// It cannot be told.
    Unknown,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
enum Step {
    /// Change the configuration.
    Patch(Json),
    /// It knows us: see whether it reaches us.
    Probe,
    /// Nothing.
    Rest,
}

/// Looks for ever; only while `leads` says so.
pub async fn run(
    client: Client,
    namespace: String,
    authority: Arc<ArcSwap<Authority>>,
    mut leads: watch::Receiver<bool>,
    times: Times,
) {
    let mut complaint = String::new();
    loop {
        let mut pause = times.late;
        if *leads.borrow_and_update() {
            let bundle = STANDARD.encode(authority.load().bundle());
            match turn(&client, &namespace, &bundle).await {
                Ok(is_well) => {
                    complaint.clear();
                    pause = if is_well { times.late } else { times.soon };
                }
                Err(failure) => {
                    pause = times.soon.max(failure.retry_after.unwrap_or_default());
                    let text = failure.to_string();
                    if text != complaint {
                        tracing::warn!(%failure, "cannot look after the webhook's configuration, trying again");
                        complaint = text;
                    }
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            changed = leads.changed() => {
                if changed.is_err() {
                    return;
                }
            }
        }
    }
}

/// One look. Whether all is as it should be.
async fn turn(client: &Client, namespace: &str, bundle: &str) -> Result<bool, Failure> {
    let path = format!("/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/{NAME}");
    let config: Json = match get(client, &path, "application/json", ANSWER).await {
        Ok(config) => config,
        Err(failure) if failure.missing.is_some() => return Ok(true),
        Err(failure) => return Err(failure),
    };
    let patch = async |body: &Json| send::<Json>(client, Method::PATCH, &path, STRATEGIC, body, ANSWER).await.map(drop);
    match step(&config, bundle) {
        Step::Patch(body) => patch(&body).await.map(|()| false),
        Step::Rest => Ok(true),
        Step::Probe => {
            let found = probe(client, namespace, &config).await;
            if let Some((body, policy)) = follows(&config, found) {
                patch(&body).await?;
                match policy {
                    "Fail" => tracing::info!("the webhook is asked and answers: objects are kept only if it agrees"),
                    _ => tracing::warn!(
                        "the API server does not reach the webhook: objects are kept without its consent"
                    ),
                }
            }
            Ok(found == Probe::Answered)
        }
    }
}

fn webhooks(config: &Json) -> &[Json] {
    config.get("webhooks").and_then(Json::as_array).map_or(&[], Vec::as_slice)
}

/// A change of some webhooks: the configuration that was read is meant, and no other.
fn change(config: &Json, of: impl Fn(&Json) -> Option<Json>) -> Option<Json> {
    let changed: Vec<Json> = webhooks(config)
        .iter()
        .filter_map(|webhook| {
            let mut change = of(webhook)?;
            change["name"] = webhook.get("name")?.clone();
            Some(change)
        })
        .collect();
    let version = config.get("metadata").and_then(|m| m.get("resourceVersion")).cloned().unwrap_or_default();
    (!changed.is_empty()).then(|| json!({ "metadata": { "resourceVersion": version }, "webhooks": changed }))
}

fn set_policy(config: &Json, policy: &str) -> Option<Json> {
    change(config, |webhook| {
        let is_so = webhook.get("failurePolicy").and_then(Json::as_str) == Some(policy);
        (!is_so).then(|| json!({ "failurePolicy": policy }))
    })
}

/// What the configuration lacks.
fn step(config: &Json, bundle: &str) -> Step {
    let is_known = |webhook: &Json| {
        webhook.get("clientConfig").and_then(|c| c.get("caBundle")).and_then(Json::as_str) == Some(bundle)
    };
    let unknown = change(config, |w| (!is_known(w)).then(|| json!({ "clientConfig": { "caBundle": bundle } })));
    if let Some(body) = unknown {
        return Step::Patch(body);
    }
    let annotations = config.get("metadata").and_then(|m| m.get("annotations"));
    let is_paused = annotations.and_then(|a| a.get(PAUSED)).and_then(Json::as_str) == Some("true");
    match (is_paused, webhooks(config).is_empty()) {
        (_, true) => Step::Rest,
        (true, _) => set_policy(config, "Ignore").map_or(Step::Rest, Step::Patch),
        (false, _) => Step::Probe,
    }
}

/// What follows from a probe, with the policy.
fn follows(config: &Json, probe: Probe) -> Option<(Json, &'static str)> {
    let policy = match probe {
        Probe::Answered => "Fail",
        Probe::Unanswered => "Ignore",
        Probe::Unknown => return None,
    };
    set_policy(config, policy).map(|body| (body, policy))
}

/// Asks the API server to keep, as a dry run, what only we refuse.
async fn probe(client: &Client, namespace: &str, config: &Json) -> Probe {
    let nonce = format!("{:016x}", rand::rng().random::<u64>());
    let object = json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": { "name": "undermesh-webhook-probe", "namespace": namespace, "annotations": { PROBE: nonce } },
        "spec": { "selector": { "matchLabels": { "undermesh.io/nothing": "none" } }, "action": "DENY" },
    });
    let path = format!(
        "/apis/security.istio.io/v1/namespaces/{namespace}/authorizationpolicies?dryRun=All&fieldManager=mesh-control"
    );
    let kept = send::<Json>(client, Method::POST, &path, "application/json", &object, ANSWER).await.map(drop);
    let found = judge(&kept, &nonce, config);
    if let (Probe::Unanswered, Err(failure)) = (found, &kept) {
        tracing::debug!(%failure, "the webhook does not answer");
    }
    found
}

fn judge(kept: &Result<(), Failure>, nonce: &str, config: &Json) -> Probe {
    // There may be others that are asked about policies: that one of them fails says nothing of ours.
    let names = || webhooks(config).iter().filter_map(|webhook| webhook.get("name").and_then(Json::as_str));
    let is_ours = |text: &str| names().any(|name| text.contains(&format!("failed calling webhook \"{name}\"")));
    match kept {
        // Nobody minded.
        Ok(()) => Probe::Unanswered,
        Err(failure) => match failure.to_string() {
            text if text.contains(&probed(nonce)) => Probe::Answered,
            text if is_ours(&text) => Probe::Unanswered,
            _ => Probe::Unknown,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(webhooks: &[(&str, &str, &str)], paused: Option<&str>) -> Json {
        let webhooks: Vec<Json> = webhooks
            .iter()
            .map(|(name, bundle, policy)| {
                json!({ "name": name, "clientConfig": { "service": {}, "caBundle": bundle }, "failurePolicy": policy })
            })
            .collect();
        let annotations = paused.map_or(Json::Null, |paused| json!({ PAUSED: paused }));
        json!({ "metadata": { "resourceVersion": "7", "annotations": annotations }, "webhooks": webhooks })
    }

    fn patch(webhooks: Json) -> Json {
        json!({ "metadata": { "resourceVersion": "7" }, "webhooks": webhooks })
    }

    #[test]
    fn a_configuration_comes_to_know_us_before_it_waits_for_us() {
        for (what, config, expected) in [
            ("nothing in it", config(&[], None), Step::Rest),
            (
                "new",
                config(&[("a", "", "Ignore"), ("b", "ours", "Fail")], None),
                Step::Patch(patch(json!([{ "name": "a", "clientConfig": { "caBundle": "ours" } }]))),
            ),
            ("known", config(&[("a", "ours", "Ignore")], None), Step::Probe),
            ("known and waited for", config(&[("a", "ours", "Fail")], None), Step::Probe),
            (
                "paused",
                config(&[("a", "ours", "Fail"), ("b", "ours", "Ignore")], Some("true")),
                Step::Patch(patch(json!([{ "name": "a", "failurePolicy": "Ignore" }]))),
            ),
            ("paused as it is", config(&[("a", "ours", "Ignore")], Some("true")), Step::Rest),
            ("not paused any more", config(&[("a", "ours", "Ignore")], Some("false")), Step::Probe),
        ] {
            assert_eq!(step(&config, "ours"), expected, "{what}");
        }
        assert_eq!(step(&json!({}), "ours"), Step::Rest);
    }

    #[test]
    fn it_is_waited_for_once_it_has_answered() {
        let (open, shut) = (config(&[("a", "ours", "Ignore")], None), config(&[("a", "ours", "Fail")], None));
        let to = |policy: &'static str| Some((patch(json!([{ "name": "a", "failurePolicy": policy }])), policy));
        for (config, probe, expected) in [
            (&open, Probe::Answered, to("Fail")),
            (&open, Probe::Unanswered, None),
            (&open, Probe::Unknown, None),
            (&shut, Probe::Answered, None),
            (&shut, Probe::Unanswered, to("Ignore")),
            (&shut, Probe::Unknown, None),
        ] {
            assert_eq!(follows(config, probe), expected, "{probe:?}");
        }
    }

    #[test]
    fn a_probe_is_answered_by_us_or_not_at_all() {
        let refused = |why: &str| Err(Failure::new(why));
        let config = config(&[("a", "", "Fail"), ("b", "", "Fail")], None);
        for (kept, expected) in [
            (Ok(()), Probe::Unanswered),
            (refused("admission webhook \"a\" denied the request: undermesh is here: n1"), Probe::Answered),
            (refused("admission webhook \"a\" denied the request: undermesh is here: n2"), Probe::Unknown),
            (refused("failed calling webhook \"a\": failed to call webhook: x509"), Probe::Unanswered),
            (refused("failed calling webhook \"b\": context deadline exceeded"), Probe::Unanswered),
            // Somebody else's.
            (refused("failed calling webhook \"validate.other.io\": failed to call webhook: x509"), Probe::Unknown),
            (refused("failed calling webhook \"a.other.io\": context deadline exceeded"), Probe::Unknown),
            (refused("the API server answers 403: forbidden"), Probe::Unknown),
        ] {
            assert_eq!(judge(&kept, "n1", &config), expected, "{kept:?}");
        }
    }
}
