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

use super::conditions::{Said, Saying};
use super::decode::{addresses, conditions, told_in};
use super::source::resource;
use super::telling::{Outcome, Telling};
use crate::api_server::{Failure, get, send};
use crate::index::View;
use crate::resource::{Key, Kind};
use crate::verdict::{Mark, Verdict, Verdicts};

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
    /// Until what was said, and cannot be seen where it was said, is said again.
    pub again: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { each: Duration::from_millis(100), rest: Duration::from_secs(5), again: Duration::from_secs(60) }
    }
}

/// Tells for ever; only while `leads` says so.
pub async fn run(
    client: Client,
    mut verdicts: watch::Receiver<Arc<Verdicts>>,
    view: watch::Receiver<Arc<View>>,
    mut leads: watch::Receiver<bool>,
    pace: Pace,
) {
    let mut reporter = Reporter::new(client, pace);
    let mut each = tokio::time::interval(pace.each);
    each.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let is_leader = *leads.borrow_and_update();
        let now = verdicts.borrow_and_update().clone();
        let with_istio = view.borrow().settings.istio_runs;
        // Another one may say something else meanwhile.
        let (mut queue, mut due) = if is_leader { reporter.look(&now, with_istio) } else { (reporter.forget(), None) };
        // What is in the queue is told, until there is news.
        loop {
            let (resting, is_empty) = (reporter.resting, queue.is_empty());
            tokio::select! {
                changed = verdicts.changed() => match changed {
                    Ok(()) => break,
                    Err(_) => return,
                },
                changed = leads.changed() => match changed {
                    Ok(()) => break,
                    Err(_) => return,
                },
                _ = each.tick(), if !is_empty && Instant::now() >= resting => {
                    let Some(key) = queue.pop_front() else { continue };
                    let Some(verdict) = now.get(&key) else { continue };
                    match reporter.say(&key, verdict, with_istio).await {
                        Next::Retry => queue.push_back(key),
                        Next::Done(again) => due = due.into_iter().chain(again).min(),
                    }
                }
                () = tokio::time::sleep_until(resting), if !is_empty && Instant::now() < resting => {}
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => break,
            }
        }
    }
}

/// What becomes of one object of the queue.
enum Next {
    /// Back into the queue.
    Retry,
    /// It was told, or it cannot be; when to look at it again if nothing is heard of it.
    Done(Option<Instant>),
}

/// Says things to the API server, and complains once of what cannot be said.
struct Reporter {
    client: Client,
    pace: Pace,
    telling: Telling,
    /// Nothing is said before.
    resting: Instant,
    complaint: String,
    /// Of single objects.
    complaints: HashMap<Key, String>,
}

impl Reporter {
    fn new(client: Client, pace: Pace) -> Self {
        let (telling, complaints) = (Telling::new(pace.again), HashMap::new());
        Self { client, pace, telling, resting: Instant::now(), complaint: String::new(), complaints }
    }

    /// What there is to say, and when there will be more if nothing else happens.
    fn look(&mut self, verdicts: &Verdicts, with_istio: bool) -> (VecDeque<Key>, Option<Instant>) {
        let now = Instant::now();
        self.complaints.retain(|key, _| verdicts.contains_key(key));
        // An Istio acts on what says where requests go, and tells services of waypoints.
        let told = |key: &Key| !(with_istio && (key.kind.is_routing() || key.kind == Kind::Service));
        let queue = self.telling.look(verdicts, with_istio, told, now);
        (queue, self.telling.due(now).map(|due| self.together(due)))
    }

    fn forget(&mut self) -> VecDeque<Key> {
        self.telling.forget();
        VecDeque::new()
    }

    /// Not each by itself: what is due a moment later is said in the same go.
    fn together(&self, due: Instant) -> Instant {
        due + 10 * self.pace.each
    }

    async fn say(&mut self, key: &Key, verdict: &Verdict, with_istio: bool) -> Next {
        let said = Saying::of(key.kind, verdict, with_istio);
        let is_repeated = self.telling.is_repeated(key, verdict, &said);
        let outcome = match tell(&self.client, key, verdict, &said, is_repeated).await {
            Err(failure) if failure.code == 409 => return Next::Retry,
            Err(failure) if failure.is_away() => {
                self.resting = Instant::now() + self.pace.rest.max(failure.retry_after.unwrap_or_default());
                let text = failure.to_string();
                if text != self.complaint {
                    tracing::warn!(object = %key, %failure, "cannot write what is in force of an object");
                    self.complaint = text;
                }
                return Next::Retry;
            }
            // It may be allowed later, and others may be already.
            Err(failure) => {
                let text = failure.to_string();
                if self.complaints.get(key) != Some(&text) {
                    tracing::warn!(object = %key, %failure, "cannot write what is in force of an object");
                    self.complaints.insert(key.clone(), text);
                }
                Outcome::Refused
            }
            Ok(outcome) => {
                self.complaint.clear();
                self.complaints.remove(key);
                outcome
            }
        };
        let due = self.telling.said(key.clone(), verdict, said, outcome, Instant::now());
        Next::Done(due.map(|due| self.together(due)))
    }
}

/// The path of an object.
fn path(key: &Key, mark: &Mark) -> String {
    let plural = resource(key.kind).plural;
    let root = if mark.api_version.contains('/') { "apis" } else { "api" };
    format!("/{root}/{}/namespaces/{}/{plural}/{}", mark.api_version, key.namespace, key.name)
}

/// Writes what an object is to show, and an event of it unless just this was said before.
async fn tell(
    client: &Client,
    key: &Key,
    verdict: &Verdict,
    saying: &Saying,
    is_repeated: bool,
) -> Result<Outcome, Failure> {
    let mark = &verdict.mark;
    if key.kind == Kind::ConfigMap {
        return event(client, key, mark, saying.said()).await.map(|()| Outcome::Written);
    }
    let path = path(key, mark);
    // As it is now: what others say of it is kept.
    let object: Map<String, Json> = match get(client, &path, "application/json", ANSWER).await {
        Ok(object) => object,
        Err(failure) if failure.missing.is_some() => return Ok(Outcome::Gone),
        Err(failure) => return Err(failure),
    };
    let metadata = |field: &str| object.get("metadata").and_then(|m| m.get(field)).cloned().unwrap_or_default();
    let generation = metadata("generation").as_i64().unwrap_or_default();
    if metadata("uid").as_str() != Some(&mark.uid) || generation != mark.generation {
        // Another form of it is on its way to be judged.
        return Ok(Outcome::Gone);
    }
    let before = conditions(key.kind, &object);
    let mut status = Map::new();
    if let Some(after) = saying.told(&before, generation, Timestamp::now()) {
        status.insert(told_in(key.kind).to_owned(), Json::Array(after));
    }
    let is_news = !status.is_empty();
    if let Some(given) = saying.addresses(&addresses(key.kind, &object)) {
        status.insert("addresses".to_owned(), Json::Array(given.to_vec()));
    }
    if status.is_empty() {
        return Ok(Outcome::There);
    }
    let body = json!({ "metadata": { "resourceVersion": metadata("resourceVersion") }, "status": status });
    send::<Json>(client, Method::PATCH, &format!("{path}/status"), MERGE, &body, ANSWER).await?;
    let said = saying.said();
    tracing::debug!(object = %key, condition = said.r#type, holds = said.holds, reason = said.reason, "condition written");
    if let Some(news) = saying.news(&before).filter(|_| is_news && !is_repeated) {
        // The condition says it, too: an event that is lost is not missed.
        let _ = event(client, key, mark, news).await;
    }
    Ok(Outcome::Written)
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
