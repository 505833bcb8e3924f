//! The parts that one replica does for all of them, with short waits of their own: conditions that are refused or undone, and a lease that cannot be renewed.

use std::sync::Arc;

use mesh_control::cluster::lease::{self, Terms};
use mesh_control::cluster::report::{self, Pace};
use mesh_control::index::View;
use mesh_control::resource::{Key, Kind};
use mesh_control::verdict::{Mark, Standing, Verdict, Verdicts};

use super::leader::{is, versioned};
use super::plane::eventually;
use super::*;

/// What a policy that cannot be read is told, by a report of its own with short waits.
struct Telling {
    api: FakeApi,
    verdicts: tokio::sync::watch::Sender<Arc<Verdicts>>,
    view: tokio::sync::watch::Sender<Arc<View>>,
    leads: tokio::sync::watch::Sender<bool>,
}

impl Telling {
    async fn start(again: Duration) -> Telling {
        let api = istio().await;
        ["p", "q", "r", "s"].into_iter().for_each(|name| api.put(versioned(policy(name, json!({ "rulez": [] })), 1)));
        let folder = tempfile::tempdir().unwrap();
        let client = api_server::connect(Some(&api.kubeconfig(folder.path()))).await.unwrap();
        let telling = Telling {
            api,
            verdicts: tokio::sync::watch::Sender::new(Arc::default()),
            view: tokio::sync::watch::Sender::new(Arc::default()),
            leads: tokio::sync::watch::Sender::new(true),
        };
        let (verdicts, view) = (telling.verdicts.subscribe(), telling.view.subscribe());
        let short = Duration::from_millis(1);
        let pace = Pace { each: short, rest: short, again };
        tokio::spawn(report::run(client, verdicts, view, telling.leads.subscribe(), pace));
        telling
    }

    /// Judges policies, as they were seen last with these conditions.
    fn judge(&self, policies: &[(&str, Vec<Json>)]) {
        let judged = policies.iter().map(|(name, conditions)| {
            let key = Key { kind: Kind::AuthorizationPolicy, namespace: "shop".into(), name: (*name).into() };
            let object = self.api.get("AuthorizationPolicy", "shop", name).unwrap();
            let uid = object["metadata"]["uid"].as_str().unwrap().into();
            let (api_version, conditions) = ("security.istio.io/v1".into(), conditions.clone());
            let mark = Mark { api_version, uid, generation: 1, conditions, ..Mark::default() };
            let verdict = Verdict {
                standing: Standing::Closed,
                reasons: Vec::new(),
                route: None,
                at_waypoint: false,
                binding: None,
                given: None,
                mark,
            };
            (key, verdict)
        });
        self.verdicts.send_replace(Arc::new(judged.collect()));
    }

    async fn told(&self, name: &str, what: &str) {
        eventually(what, || is(&self.api, name, "False", "Invalid", "1")).await;
    }

    /// Somebody takes the condition away.
    fn undo(&self) {
        let mut object = self.api.get("AuthorizationPolicy", "shop", "p").unwrap();
        object["status"] = json!({});
        self.api.put(object);
    }

    fn conditions(&self) -> Vec<Json> {
        let object = self.api.get("AuthorizationPolicy", "shop", "p").unwrap();
        object["status"]["conditions"].as_array().unwrap().clone()
    }
}

#[tokio::test]
async fn a_condition_that_was_refused_is_written_when_it_is_allowed() {
    let telling = Telling::start(Duration::from_millis(50)).await;
    telling.api.refuse("PATCH authorizationpolicies", 403, 2);
    telling.judge(&[("p", Vec::new())]);
    telling.told("p", "a right that comes later").await;
    assert!(!telling.api.is_refusing());
}

#[tokio::test]
async fn a_condition_that_somebody_takes_away_is_written_again() {
    // It was seen there, and then not any more: at once.
    let telling = Telling::start(Duration::from_secs(3600)).await;
    telling.judge(&[("p", Vec::new())]);
    telling.told("p", "the first").await;
    telling.judge(&[("p", telling.conditions()), ("q", Vec::new())]);
    telling.told("q", "that this was taken in").await;
    telling.undo();
    telling.judge(&[("p", Vec::new())]);
    telling.told("p", "what was undone").await;
    // It was never seen there: after a while.
    let telling = Telling::start(Duration::from_millis(50)).await;
    telling.judge(&[("p", Vec::new())]);
    telling.told("p", "the first").await;
    telling.undo();
    telling.told("p", "what was undone unseen").await;
}

#[tokio::test]
async fn a_condition_that_is_taken_away_again_and_again_is_not_written_each_time() {
    let telling = Telling::start(Duration::from_secs(3600)).await;
    telling.judge(&[("p", Vec::new())]);
    telling.told("p", "the first").await;
    telling.judge(&[("p", telling.conditions()), ("q", Vec::new())]);
    telling.told("q", "that this was taken in").await;
    telling.undo();
    telling.judge(&[("p", Vec::new())]);
    telling.told("p", "what was undone once").await;
    // Whoever it is does so again: now it is not only we who must wait for the other.
    telling.judge(&[("p", telling.conditions()), ("r", Vec::new())]);
    telling.told("r", "that this was taken in").await;
    telling.undo();
    telling.judge(&[("p", Vec::new()), ("s", Vec::new())]);
    // Things are said in the order of names.
    telling.told("s", "that this was taken in").await;
    let about_p = |path: &String| path.ends_with("/p/status");
    assert_eq!(telling.api.asked("PATCH").iter().filter(|path| about_p(path)).count(), 2);
    // That it is said again is no news.
    let events = telling.api.objects("Event");
    assert_eq!(events.iter().filter(|event| event["involvedObject"]["name"] == "p").count(), 1);
}

#[tokio::test]
async fn a_leader_that_gets_no_answer_steps_down_in_time() {
    let api = istio().await;
    let folder = tempfile::tempdir().unwrap();
    let client = api_server::connect(Some(&api.kubeconfig(folder.path()))).await.unwrap();
    let (short, long) = (Duration::from_millis(300), Duration::from_secs(3600));
    let terms = Terms { lasts: long, steps_down: short, look: short / 10, answer: long };
    let (leads, mut leader) = tokio::sync::watch::channel(false);
    let (begun, drain) = (tokio::sync::watch::Sender::new(true), mesh_runtime::drain::Drain::new());
    let election = lease::run(client, "undermesh-system".into(), terms, begun.subscribe(), leads, drain.token());
    let election = tokio::spawn(election);
    soon("a leader", leader.wait_for(|leads| *leads)).await.unwrap();
    api.slow(long);
    api.refuse("leases", 503, usize::MAX);
    soon("none", leader.wait_for(|leads| !*leads)).await.unwrap();
    election.abort();
}
