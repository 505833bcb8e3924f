//! Tells objects what is in force of them: conditions in their status, and an event when that is something to act on. Only the leader does, only when
//! there is something new, and only so fast: a thousand policies that all become something else are told within minutes, not at once.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use jiff::Timestamp;
use kube::Client;
use serde_json::{Map, Value as Json, json};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use super::conditions::{Said, said, told};
use super::decode::conditions;
use super::source::resource;
use crate::api_server::{Failure, get, send};
use crate::index::View;
use crate::resource::{Key, Kind};
use crate::verdict::{Mark, Standing, Verdict, Verdicts};

/// For the API server to answer.
const ANSWER: Duration = Duration::from_secs(10);
const MERGE: &str = "application/merge-patch+json";
/// What an event may say.
const EVENT: usize = 1000;

/// Times; tests have shorter ones.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Between two objects.
    pub each: Duration,
    /// After a failure.
    pub rest: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { each: Duration::from_millis(100), rest: Duration::from_secs(5) }
    }
}

/// What was said last of an object, so that it is not said again: of which object, and of which form of it.
type Known = HashMap<Key, (String, i64, Said)>;

/// Tells for ever; only while `leads` says so.
pub async fn run(
    client: Client,
    mut verdicts: watch::Receiver<Arc<Verdicts>>,
    view: watch::Receiver<Arc<View>>,
    mut leads: watch::Receiver<bool>,
    pace: Pace,
) {
    let mut known = Known::new();
    let mut queue: VecDeque<Key> = VecDeque::new();
    let mut each = tokio::time::interval(pace.each);
    each.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut resting = Instant::now();
    let mut complaint = String::new();
    loop {
        let is_leader = *leads.borrow_and_update();
        let now = verdicts.borrow_and_update().clone();
        let with_istio = view.borrow().settings.istio_runs;
        if is_leader {
            known.retain(|key, _| now.contains_key(key));
            queue =
                now.iter().filter(|(key, v)| is_new(key, v, with_istio, &known)).map(|(key, _)| key.clone()).collect();
        } else {
            // Another one may say something else meanwhile.
            known.clear();
            queue.clear();
        }
        // What is in the queue is told, until there is news.
        loop {
            tokio::select! {
                changed = verdicts.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    break;
                }
                changed = leads.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    break;
                }
                _ = each.tick(), if !queue.is_empty() && Instant::now() >= resting => {
                    let Some(key) = queue.pop_front() else { continue };
                    let Some(verdict) = now.get(&key) else { continue };
                    let said = said(verdict, with_istio);
                    match tell(&client, &key, verdict, &said).await {
                        Ok(()) => {
                            complaint.clear();
                            known.insert(key, (verdict.mark.uid.clone(), verdict.mark.generation, said));
                        }
                        Err(failure) if failure.code == 409 => queue.push_back(key),
                        Err(failure) => {
                            if failure.is_away() {
                                resting = Instant::now() + pace.rest.max(failure.retry_after.unwrap_or_default());
                                queue.push_back(key.clone());
                            } else {
                                // Not again before it is another one.
                                known.insert(key.clone(), (verdict.mark.uid.clone(), verdict.mark.generation, said));
                            }
                            let text = failure.to_string();
                            if text != complaint {
                                tracing::warn!(object = %key, %failure, "cannot write what is in force of an object");
                                complaint = text;
                            }
                        }
                    }
                }
                () = tokio::time::sleep_until(resting), if !queue.is_empty() && Instant::now() < resting => {}
            }
        }
    }
}

/// Whether there is something to say that the object does not say already.
fn is_new(key: &Key, verdict: &Verdict, with_istio: bool, known: &Known) -> bool {
    let said = said(verdict, with_istio);
    let Mark { uid, generation, conditions, .. } = &verdict.mark;
    if known.get(key).is_some_and(|(u, g, s)| u == uid && g == generation && *s == said) {
        return false;
    }
    match key.kind {
        // Settings have no status: only what is wrong with them is told.
        Kind::ConfigMap => matches!(verdict.standing, Standing::LastGood | Standing::NoEffect),
        _ => known.contains_key(key) || told(conditions, &said, *generation, Timestamp::UNIX_EPOCH).is_some(),
    }
}

/// The path of an object.
fn path(key: &Key, mark: &Mark) -> String {
    let plural = resource(key.kind).plural;
    let root = if mark.api_version.contains('/') { "apis" } else { "api" };
    format!("/{root}/{}/namespaces/{}/{plural}/{}", mark.api_version, key.namespace, key.name)
}

async fn tell(client: &Client, key: &Key, verdict: &Verdict, said: &Said) -> Result<(), Failure> {
    let mark = &verdict.mark;
    if key.kind == Kind::ConfigMap {
        return event(client, key, mark, said).await;
    }
    let path = path(key, mark);
    // As it is now: what others say of it is kept.
    let object: Map<String, Json> = match get(client, &path, "application/json", ANSWER).await {
        Ok(object) => object,
        Err(failure) if failure.missing.is_some() => return Ok(()),
        Err(failure) => return Err(failure),
    };
    let metadata = |field: &str| object.get("metadata").and_then(|m| m.get(field)).cloned().unwrap_or_default();
    let generation = metadata("generation").as_i64().unwrap_or_default();
    if metadata("uid").as_str() != Some(&mark.uid) || generation != mark.generation {
        // Another form of it is on its way to be judged.
        return Ok(());
    }
    let before = conditions(&object);
    let Some(after) = told(&before, said, generation, Timestamp::now()) else { return Ok(()) };
    let body =
        json!({ "metadata": { "resourceVersion": metadata("resourceVersion") }, "status": { "conditions": after } });
    send::<Json>(client, Method::PATCH, &format!("{path}/status"), MERGE, &body, ANSWER).await?;
    tracing::debug!(object = %key, condition = said.r#type, holds = said.holds, reason = said.reason, "condition written");
    // That all is well is news only for something that was not.
    let was_refused = before.iter().any(|c| c["type"] == said.r#type && c["status"] == "False");
    if !said.holds || was_refused {
        // The condition says it, too: an event that is lost is not missed.
        let _ = event(client, key, mark, said).await;
    }
    Ok(())
}

async fn event(client: &Client, key: &Key, mark: &Mark, said: &Said) -> Result<(), Failure> {
    let now = format!("{:.0}", Timestamp::now());
    let mut message = said.message.clone();
    message.truncate(message.floor_char_boundary(EVENT));
    let (r#type, reason) = if said.holds { ("Normal", "InForce") } else { ("Warning", "NotInForce") };
    let body = json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": { "generateName": format!("{}.", key.name), "namespace": key.namespace.as_str() },
        "involvedObject": {
            "apiVersion": mark.api_version,
            "kind": key.kind.name(),
            "namespace": key.namespace.as_str(),
            "name": key.name.as_str(),
            "uid": mark.uid,
        },
        "type": r#type,
        "reason": reason,
        "message": message,
        "source": { "component": "mesh-control" },
        "reportingComponent": "undermesh.io/mesh-control",
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    });
    let path = format!("/api/v1/namespaces/{}/events", key.namespace);
    send::<Json>(client, Method::POST, &path, "application/json", &body, ANSWER).await.map(drop)
}
