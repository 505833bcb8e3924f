//! Who of the replicas writes: whoever holds a Lease (`coordination.k8s.io`). Statuses and events have one writer that way; nothing that pods depend on
//! waits for an election, so two leaders for a moment, or none, cost nothing but a write.
//!
//! Times of other replicas are not compared with the own clock: a lease has lapsed when it was seen unchanged for its duration.

use std::time::Duration;

use http::Method;
use jiff::Timestamp;
use kube::Client;
use mesh_runtime::drain::DrainToken;
use rand::Rng;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::api_server::{Failure, get, send};

/// What the Lease is called.
pub const NAME: &str = "mesh-control";

/// Times; tests have shorter ones.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// How long a lease lasts that nobody renews.
    pub lasts: Duration,
    /// When a leader that could not renew it steps down; before it has lapsed.
    pub steps_down: Duration,
    /// Between looks at it.
    pub look: Duration,
    /// For the API server to answer.
    pub answer: Duration,
}

impl Default for Terms {
    fn default() -> Self {
        let [lasts, steps_down, look, answer] = [15, 10, 2, 5].map(Duration::from_secs);
        Self { lasts, steps_down, look, answer }
    }
}

/// A lease as it is written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    holder_identity: Option<String>,
    lease_duration_seconds: Option<u64>,
    acquire_time: Option<String>,
    renew_time: Option<String>,
    lease_transitions: Option<u64>,
}

/// What to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// There is none.
    Create,
    /// It is ours.
    Renew,
    /// It is nobody's any more.
    Take,
    /// It is another's.
    Wait,
}

/// What one replica has seen of the lease.
#[derive(Debug)]
struct Observer {
    me: String,
    seen: Option<(Spec, Instant)>,
}

impl Observer {
    /// `patience` is for others to come first.
    fn step(&mut self, spec: Option<&Spec>, now: Instant, lasts: Duration, patience: Duration) -> Step {
        let Some(spec) = spec else { return Step::Create };
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        if holder == self.me {
            return Step::Renew;
        }
        let since = match &self.seen {
            Some((seen, since)) if seen == spec => *since,
            _ => {
                self.seen = Some((spec.clone(), now));
                now
            }
        };
        let lasts = spec.lease_duration_seconds.map_or(lasts, Duration::from_secs);
        let unchanged = now.duration_since(since);
        let is_free = holder.is_empty() && unchanged >= patience || unchanged > lasts + patience;
        if is_free { Step::Take } else { Step::Wait }
    }

    /// What is written for a step.
    fn spec(&self, old: Option<&Spec>, step: Step, lasts: Duration, now: Timestamp) -> Spec {
        let now = format!("{now:.6}");
        let transitions = old.and_then(|old| old.lease_transitions).unwrap_or_default();
        let (acquired, transitions) = match (step, old) {
            (Step::Renew, Some(old)) => (old.acquire_time.clone(), transitions),
            (Step::Take, _) => (None, transitions.saturating_add(1)),
            _ => (None, transitions),
        };
        Spec {
            holder_identity: Some(self.me.clone()),
            // A lease of zero seconds is none.
            lease_duration_seconds: Some(lasts.as_secs().max(1)),
            acquire_time: acquired.or_else(|| Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(transitions),
        }
    }
}

/// Takes part in the election until the drain starts, and then gives the lease back. `leads` says whether it is ours. Before this replica has `begun` to
/// serve, it takes only what nobody wants for a while who does.
pub async fn run(
    client: Client,
    namespace: String,
    terms: Terms,
    begun: watch::Receiver<bool>,
    leads: watch::Sender<bool>,
    drain: DrainToken,
) {
    // Of a pod it is the pod's name.
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    // A process that was started again on the same host is another one.
    let me = format!("{host}_{:016x}", rand::rng().random::<u64>());
    let mut observer = Observer { me, seen: None };
    let mut renewed = Instant::now();
    let mut complaint = String::new();
    loop {
        // Others count from when they see it renewed, which is not before it was asked for.
        let asked = Instant::now();
        let patience = if *begun.borrow() { Duration::ZERO } else { terms.lasts };
        let turn = turn(&client, &namespace, &mut observer, terms, patience);
        // A leader that gets no answer is none any more when its time is up; anybody else may wait.
        let is_leader = *leads.borrow();
        let taken = match is_leader {
            true => timeout_at(renewed + terms.steps_down, turn).await.unwrap_or_else(|_| Err(late(terms))),
            false => turn.await,
        };
        match taken {
            Ok(is_ours) => {
                complaint.clear();
                renewed = asked;
                tell(&leads, is_ours);
            }
            Err(failure) => {
                tracing::debug!(%failure, "cannot read or write the lease");
                if renewed.elapsed() >= terms.steps_down {
                    tell(&leads, false);
                    let text = failure.to_string();
                    if text != complaint {
                        tracing::warn!(%failure, "cannot take part in the election of who writes statuses, trying again");
                        complaint = text;
                    }
                }
            }
        }
        let pause = terms.look.mul_f64(rand::rng().random_range(0.8..1.2));
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = drain.started() => break,
        }
    }
    if leads.send_replace(false) {
        let _ = give_back(&client, &namespace, &observer, terms.answer).await;
    }
}

fn late(terms: Terms) -> Failure {
    Failure::new(format!("the lease could not be renewed within {:?}", terms.steps_down))
}

fn tell(leads: &watch::Sender<bool>, is_ours: bool) {
    let changed = leads.send_if_modified(|leads| std::mem::replace(leads, is_ours) != is_ours);
    match (changed, is_ours) {
        (true, true) => tracing::info!("this replica writes statuses now"),
        (true, false) => tracing::info!("another replica writes statuses now"),
        (false, _) => {}
    }
}

fn path(namespace: &str) -> String {
    format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases")
}

#[derive(Deserialize)]
struct Lease {
    metadata: Json,
    #[serde(default)]
    spec: Spec,
}

async fn read(client: &Client, namespace: &str, answer: Duration) -> Result<Option<Lease>, Failure> {
    match get(client, &format!("{}/{NAME}", path(namespace)), "application/json", answer).await {
        Ok(lease) => Ok(Some(lease)),
        Err(failure) if failure.missing.is_some() => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// One look, and what follows from it. Whether the lease is ours now.
async fn turn(
    client: &Client,
    namespace: &str,
    observer: &mut Observer,
    terms: Terms,
    patience: Duration,
) -> Result<bool, Failure> {
    let Terms { lasts, answer, .. } = terms;
    let lease = read(client, namespace, answer).await?;
    let old = lease.as_ref().map(|lease| &lease.spec);
    let step = observer.step(old, Instant::now(), lasts, patience);
    let spec = observer.spec(old, step, lasts, Timestamp::now());
    match (step, lease) {
        (Step::Wait, _) => return Ok(false),
        (Step::Renew | Step::Take, Some(lease)) => write(client, namespace, &lease.metadata, &spec, answer).await?,
        _ => {
            let labels = json!({ "app.kubernetes.io/part-of": "undermesh", "app.kubernetes.io/managed-by": NAME });
            let metadata = json!({ "name": NAME, "namespace": namespace, "labels": labels });
            let body = body(&metadata, &spec);
            send::<Json>(client, Method::POST, &path(namespace), "application/json", &body, answer).await?;
        }
    }
    Ok(true)
}

fn body(metadata: &Json, spec: &Spec) -> Json {
    json!({ "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec })
}

/// Replaces the lease that was read; if it is another one by now, the API server says no.
async fn write(
    client: &Client,
    namespace: &str,
    metadata: &Json,
    spec: &Spec,
    answer: Duration,
) -> Result<(), Failure> {
    let path = format!("{}/{NAME}", path(namespace));
    send::<Json>(client, Method::PUT, &path, "application/json", &body(metadata, spec), answer).await.map(drop)
}

async fn give_back(client: &Client, namespace: &str, observer: &Observer, answer: Duration) -> Result<(), Failure> {
    let Some(mut lease) = read(client, namespace, answer).await? else { return Ok(()) };
    if lease.spec.holder_identity.as_deref() != Some(&observer.me) {
        return Ok(());
    }
    lease.spec.holder_identity = Some(String::new());
    lease.spec.lease_duration_seconds = Some(1);
    write(client, namespace, &lease.metadata, &lease.spec, answer).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(holder: &str, renewed: &str) -> Spec {
        Spec {
            holder_identity: Some(holder.into()),
            lease_duration_seconds: Some(15),
            renew_time: Some(renewed.into()),
            ..Spec::default()
        }
    }

    #[test]
    fn a_lease_is_taken_when_nobody_has_renewed_it_while_it_was_looked_at() {
        let (start, lasts) = (Instant::now(), Duration::from_secs(60));
        let mut observer = Observer { me: "me".into(), seen: None };
        let other = |renewed| Some(spec("other", renewed));
        for (seconds, lease, expected) in [
            (0, None, Step::Create),
            (0, Some(spec("me", "a")), Step::Renew),
            (0, Some(spec("", "a")), Step::Take),
            // However old it says that it is.
            (1, other("1970-01-01T00:00:00.000000Z"), Step::Wait),
            (16, other("1970-01-01T00:00:00.000000Z"), Step::Wait),
            (17, other("1970-01-01T00:00:00.000000Z"), Step::Take),
            (18, other("b"), Step::Wait),
            (33, other("c"), Step::Wait),
            (48, other("c"), Step::Wait),
            (49, other("c"), Step::Take),
            // Somebody else was faster.
            (50, Some(spec("third", "c")), Step::Wait),
            (51, Some(Spec { holder_identity: None, ..spec("", "c") }), Step::Take),
        ] {
            let now = start + Duration::from_secs(seconds);
            assert_eq!(observer.step(lease.as_ref(), now, lasts, Duration::ZERO), expected, "{seconds} {lease:?}");
        }
    }

    #[test]
    fn who_does_not_serve_yet_lets_others_come_first() {
        let (start, lasts) = (Instant::now(), Duration::from_secs(60));
        let mut observer = Observer { me: "me".into(), seen: None };
        for (seconds, lease, expected) in [
            (0, None, Step::Create),
            (0, Some(spec("me", "a")), Step::Renew),
            (0, Some(spec("", "a")), Step::Wait),
            (59, Some(spec("", "a")), Step::Wait),
            (60, Some(spec("", "a")), Step::Take),
            (61, Some(spec("other", "b")), Step::Wait),
            (136, Some(spec("other", "b")), Step::Wait),
            (137, Some(spec("other", "b")), Step::Take),
        ] {
            let now = start + Duration::from_secs(seconds);
            assert_eq!(observer.step(lease.as_ref(), now, lasts, lasts), expected, "{seconds} {lease:?}");
        }
    }

    #[test]
    fn what_is_written_says_since_when_and_how_often() {
        let observer = Observer { me: "me".into(), seen: None };
        let now: Timestamp = "2026-11-21T10:00:00Z".parse().unwrap();
        let write = |old: Option<&Spec>, step| observer.spec(old, step, Duration::from_secs(15), now);
        let new = write(None, Step::Create);
        assert_eq!(
            (new.holder_identity.as_deref(), new.lease_duration_seconds, new.lease_transitions),
            (Some("me"), Some(15), Some(0))
        );
        assert_eq!(new.acquire_time.as_deref(), Some("2026-11-21T10:00:00.000000Z"));
        assert_eq!(new.acquire_time, new.renew_time);
        let old = Spec { acquire_time: Some("before".into()), lease_transitions: Some(4), ..spec("me", "before") };
        let again = write(Some(&old), Step::Renew);
        assert_eq!((again.acquire_time.as_deref(), again.lease_transitions), (Some("before"), Some(4)));
        assert_eq!(again.renew_time, new.renew_time);
        let taken = write(Some(&old), Step::Take);
        assert_eq!((taken.acquire_time, taken.lease_transitions), (new.renew_time, Some(5)));
    }
}
