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
use super::decode::{conditions, told_in};
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
    /// Until what was said, and cannot be seen where it was said, is said again.
    pub again: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { each: Duration::from_millis(100), rest: Duration::from_secs(5), again: Duration::from_secs(60) }
    }
}

/// The longest that is not said again, as many times the shortest.
const LONGEST: u32 = 64;

/// What was said last of an object: nothing else shows it before the object is heard of again, and it need not be said twice meanwhile.
#[derive(Clone, Debug, PartialEq)]
struct Last {
    /// Of which object.
    uid: String,
    /// And which form of it.
    generation: i64,
    said: Saying,
    at: Instant,
    /// Until it is said again. It may have been refused, or undone by somebody else before it was seen; an event that was made never is.
    pause: Option<Duration>,
}

impl Last {
    fn is_of(&self, verdict: &Verdict, said: &Saying) -> bool {
        self.uid == verdict.mark.uid && self.generation == verdict.mark.generation && self.said == *said
    }

    fn again(&self) -> Option<Instant> {
        self.pause.map(|pause| self.at + pause)
    }
}

type Known = HashMap<Key, Last>;

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
    // Of single objects.
    let mut complaints: HashMap<Key, String> = HashMap::new();
    loop {
        // When something is to be said again.
        let mut due: Option<Instant> = None;
        let is_leader = *leads.borrow_and_update();
        let now = verdicts.borrow_and_update().clone();
        let with_istio = view.borrow().settings.istio_runs;
        if is_leader {
            let at = Instant::now();
            known.retain(|key, last| now.get(key).is_some_and(|verdict| !is_seen(key, verdict, with_istio, last)));
            complaints.retain(|key, _| now.contains_key(key));
            // An Istio acts on what says where requests go.
            let new = now.iter().filter(|(key, _)| !(with_istio && key.kind.is_routing()));
            let new = new.filter(|(key, verdict)| is_new(key, verdict, with_istio, known.get(*key), at));
            queue = new.map(|(key, _)| key.clone()).collect();
            // Not each by itself: what is due a moment later is said in the same go.
            due =
                known.values().filter_map(Last::again).filter(|again| *again > at).min().map(|at| at + 10 * pace.each);
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
                    let said = Saying::of(key.kind, verdict, with_istio);
                    let before = known.get(&key).filter(|last| last.is_of(verdict, &said)).and_then(|last| last.pause);
                    let told = tell(&client, &key, verdict, &said).await;
                    let pause = match &told {
                        Err(failure) if failure.code == 409 => {
                            queue.push_back(key);
                            continue;
                        }
                        Err(failure) if failure.is_away() => {
                            resting = Instant::now() + pace.rest.max(failure.retry_after.unwrap_or_default());
                            let text = failure.to_string();
                            if text != complaint {
                                tracing::warn!(object = %key, %failure, "cannot write what is in force of an object");
                                complaint = text;
                            }
                            queue.push_back(key);
                            continue;
                        }
                        // It may be allowed later, and others may be already.
                        Err(failure) => {
                            let text = failure.to_string();
                            if complaints.get(&key) != Some(&text) {
                                tracing::warn!(object = %key, %failure, "cannot write what is in force of an object");
                                complaints.insert(key.clone(), text);
                            }
                            Some(pace.again)
                        }
                        Ok(told) => {
                            complaint.clear();
                            complaints.remove(&key);
                            match (key.kind, told) {
                                (Kind::ConfigMap, _) => None,
                                (_, Told::Written) => Some(pace.again),
                                // It is there, and the object has not been heard of since: each time less is expected.
                                (_, Told::Nothing) => {
                                    let longer = before.map_or(pace.again, |before| before * 2);
                                    Some(longer.min(pace.again * LONGEST))
                                }
                            }
                        }
                    };
                    let at = Instant::now();
                    let Mark { uid, generation, .. } = &verdict.mark;
                    let last = Last { uid: uid.clone(), generation: *generation, said, at, pause };
                    let again = last.again().map(|again| again + 10 * pace.each);
                    due = due.into_iter().chain(again).min();
                    known.insert(key, last);
                }
                () = tokio::time::sleep_until(resting), if !queue.is_empty() && Instant::now() < resting => {}
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => break,
            }
        }
    }
}

/// Whether the object itself shows what was said last of it, so that nothing else need be remembered.
fn is_seen(key: &Key, verdict: &Verdict, with_istio: bool, last: &Last) -> bool {
    let said = Saying::of(key.kind, verdict, with_istio);
    key.kind != Kind::ConfigMap && last.is_of(verdict, &said) && shows(&verdict.mark, &said)
}

fn shows(mark: &Mark, said: &Saying) -> bool {
    said.told(&mark.conditions, mark.generation, Timestamp::UNIX_EPOCH).is_none()
}

/// Whether there is something to say that the object does not say already, as far as is known.
fn is_new(key: &Key, verdict: &Verdict, with_istio: bool, last: Option<&Last>, now: Instant) -> bool {
    let said = Saying::of(key.kind, verdict, with_istio);
    match (key.kind, last) {
        (_, Some(last)) if last.is_of(verdict, &said) => last.again().is_some_and(|again| again <= now),
        // Settings have no status: only what is wrong with them is told.
        (Kind::ConfigMap, _) => matches!(verdict.standing, Standing::LastGood | Standing::NoEffect),
        // It may show what was true before that.
        (_, Some(_)) => true,
        (_, None) => !shows(&verdict.mark, &said),
    }
}

/// The path of an object.
fn path(key: &Key, mark: &Mark) -> String {
    let plural = resource(key.kind).plural;
    let root = if mark.api_version.contains('/') { "apis" } else { "api" };
    format!("/{root}/{}/namespaces/{}/{plural}/{}", mark.api_version, key.namespace, key.name)
}

/// What came of telling.
enum Told {
    Written,
    /// It was there, or the object is another one by now.
    Nothing,
}

async fn tell(client: &Client, key: &Key, verdict: &Verdict, saying: &Saying) -> Result<Told, Failure> {
    let (mark, said) = (&verdict.mark, saying.said());
    if key.kind == Kind::ConfigMap {
        return event(client, key, mark, said).await.map(|()| Told::Written);
    }
    let path = path(key, mark);
    // As it is now: what others say of it is kept.
    let object: Map<String, Json> = match get(client, &path, "application/json", ANSWER).await {
        Ok(object) => object,
        Err(failure) if failure.missing.is_some() => return Ok(Told::Nothing),
        Err(failure) => return Err(failure),
    };
    let metadata = |field: &str| object.get("metadata").and_then(|m| m.get(field)).cloned().unwrap_or_default();
    let generation = metadata("generation").as_i64().unwrap_or_default();
    if metadata("uid").as_str() != Some(&mark.uid) || generation != mark.generation {
        // Another form of it is on its way to be judged.
        return Ok(Told::Nothing);
    }
    let before = conditions(key.kind, &object);
    let Some(after) = saying.told(&before, generation, Timestamp::now()) else { return Ok(Told::Nothing) };
    let status = Map::from_iter([(told_in(key.kind).to_owned(), Json::Array(after))]);
    let body = json!({ "metadata": { "resourceVersion": metadata("resourceVersion") }, "status": status });
    send::<Json>(client, Method::PATCH, &format!("{path}/status"), MERGE, &body, ANSWER).await?;
    tracing::debug!(object = %key, condition = said.r#type, holds = said.holds, reason = said.reason, "condition written");
    // That all is well is news only for something that was not.
    let was_refused = before.iter().any(|c| c["type"] == said.r#type && c["status"] == "False");
    if !said.holds || was_refused {
        // The condition says it, too: an event that is lost is not missed.
        let _ = event(client, key, mark, said).await;
    }
    Ok(Told::Written)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_is_said_again_if_it_cannot_be_seen() {
        let minute = Duration::from_secs(60);
        let key = |kind| Key { kind, namespace: "shop".into(), name: "p".into() };
        let (policy, settings) = (key(Kind::AuthorizationPolicy), key(Kind::ConfigMap));
        let verdict = |standing, conditions: &[Json]| {
            let mark = Mark { uid: "u".into(), generation: 3, conditions: conditions.to_vec(), ..Mark::default() };
            Verdict { standing, reasons: Vec::new(), route: None, mark }
        };
        let start = Instant::now();
        let last = |standing, generation, pause| {
            let said = Saying::of(Kind::AuthorizationPolicy, &verdict(standing, &[]), false);
            Some(Last { uid: "u".into(), generation, said, at: start, pause })
        };
        let shown = |standing| {
            let said = Saying::of(Kind::AuthorizationPolicy, &verdict(standing, &[]), false);
            said.told(&[], 3, Timestamp::UNIX_EPOCH).unwrap()
        };
        let (good, bad) = (Standing::InForce, Standing::Closed);
        let (is_good, is_bad) = (shown(good), shown(bad));
        for (what, key, verdict, last, seconds, new, seen) in [
            ("nothing was said", &policy, verdict(good, &[]), None, 0, true, false),
            ("the one before said it", &policy, verdict(good, &is_good), None, 0, false, false),
            ("a moment ago", &policy, verdict(good, &[]), last(good, 3, Some(minute)), 59, false, false),
            ("and it never came", &policy, verdict(good, &[]), last(good, 3, Some(minute)), 60, true, false),
            ("it came", &policy, verdict(good, &is_good), last(good, 3, Some(minute)), 1, false, true),
            ("it came, and was undone", &policy, verdict(good, &[]), None, 2, true, false),
            ("of another form", &policy, verdict(good, &[]), last(good, 2, Some(minute)), 1, true, false),
            ("something else", &policy, verdict(good, &is_bad), last(bad, 3, Some(minute)), 1, true, false),
            ("an old one is shown", &policy, verdict(good, &is_good), last(bad, 3, Some(minute)), 1, true, false),
            ("settings are good", &settings, verdict(good, &[]), None, 0, false, false),
            ("settings are bad", &settings, verdict(Standing::LastGood, &[]), None, 0, true, false),
            (
                "told once",
                &settings,
                verdict(Standing::LastGood, &[]),
                last(Standing::LastGood, 3, None),
                9999,
                false,
                false,
            ),
            (
                "refused",
                &settings,
                verdict(Standing::LastGood, &[]),
                last(Standing::LastGood, 3, Some(minute)),
                60,
                true,
                false,
            ),
        ] {
            let now = start + Duration::from_secs(seconds);
            assert_eq!(is_new(key, &verdict, false, last.as_ref(), now), new, "{what}");
            assert_eq!(last.is_some_and(|last| is_seen(key, &verdict, false, &last)), seen, "{what}");
        }
    }
}
