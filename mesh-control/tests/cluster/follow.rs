//! Objects of an API server: whole from the beginning, followed through every fault, and understood as those of a folder are.

use mesh_control::index::{self, Settings};
use mesh_control::manifest::watch::FolderSource;

use super::fake::End;
use super::*;

#[tokio::test]
async fn both_sources_make_the_same_of_the_same_objects() {
    let folder = tempfile::tempdir().unwrap();
    let api = istio().await;
    let broken = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: odd, namespace: bookinfo}\nspec: {rulez: []}\n";
    for (name, text) in [("a.yaml", BOOKINFO), ("b.yaml", POLICY), ("c.yaml", broken)] {
        std::fs::write(folder.path().join(name), text).unwrap();
        documents(text).into_iter().for_each(|object| api.put(object));
    }
    let there = Following::start(&api).await.update;
    let here = FolderSource::new(folder.path()).next().await.unwrap();
    let settings = Settings::default();
    let (one, two) = (index::build(&here.objects, &settings), index::build(&there.objects, &settings));
    assert!(one.workloads.len() == 6 && one.services.len() == 4, "{one:?}");
    assert_eq!(one.workloads, two.workloads);
    assert_eq!(one.services, two.services);
    assert_eq!(one.policies, two.policies);
    assert_eq!(one.placements, two.placements);
    assert_eq!(one.nodes.keys().collect::<Vec<_>>(), two.nodes.keys().collect::<Vec<_>>());
    assert_eq!(one.problems, two.problems);
    // A node of a cluster is one of its kind.
    assert!(two.nodes.values().all(Option::is_some));
    let texts = |update: &Update| {
        let mut all: Vec<_> =
            update.diagnoses.iter().map(|d| (d.object.clone(), d.field.clone(), d.message.clone())).collect();
        all.sort();
        all
    };
    assert_eq!(texts(&here), texts(&there));
}

#[tokio::test]
async fn nothing_is_delivered_before_everything_has_been_listed() {
    let api = istio().await;
    (1..9).for_each(|n| api.put(pod(&format!("p{n}"), &format!("198.18.1.{n}"))));
    api.hold("pods", true);
    api.refuse("authorizationpolicies", 403, 3);
    let mut source = Following::source(&api, TUNING).await;
    let next = source.next();
    tokio::pin!(next);
    // All kinds but one have been listed; the one is asked for.
    soon("the list of pods", async {
        while api.lists("pods") == 0 || api.is_refusing() {
            assert!(within(Duration::from_millis(5), &mut next).await.is_none());
        }
    })
    .await;
    assert!(within(LONG, &mut next).await.is_none());
    api.hold("pods", false);
    let update = soon("the first state", next).await.unwrap();
    assert_eq!(update.objects.pods.len(), 8);
    assert_eq!(update.diagnoses, []);
}

/// Much longer than a source waits for more of the same moment.
const LONG: Duration = Duration::from_secs(2);

/// What a future has to say within a time.
async fn within<F: Future + Unpin>(time: Duration, future: &mut F) -> Option<F::Output> {
    tokio::time::timeout(time, future).await.ok()
}

#[tokio::test]
async fn hardening_F16_a_watch_that_is_too_old_loses_nothing() {
    let api = istio().await;
    let names = ["p1", "p2", "p3", "p4", "p5", "p6", "p7"];
    names.iter().enumerate().for_each(|(n, name)| api.put(pod(name, &format!("198.18.1.{}", n + 1))));
    let mut following = Following::start(&api).await;
    following.pods(&names).await;

    // What is deleted and made while nobody hears of it is noticed at the next list, and nothing else is.
    for round in 1..=5 {
        let (gone, new) = (format!("extra{}", round - 1), format!("extra{round}"));
        api.end(End::Gone);
        if round > 1 {
            api.delete("Pod", "shop", &gone);
        }
        api.put(pod(&new, "198.18.1.99"));
        api.compact();
        let mut wanted = vec![new.as_str()];
        wanted.extend(names);
        following.pods(&wanted).await;
    }
    // Once the first of them is there, each round takes one and brings one: 7 for a moment, never fewer.
    assert!(following.fewest >= 7, "{}", following.fewest);
    // Six lists of three pages each.
    let listed = api.lists("pods");
    assert!(listed >= 6 * 3, "{listed}");
}

#[tokio::test]
async fn hardening_F17_cut_closed_and_broken_watches_go_on_where_they_were() {
    let api = istio().await;
    api.put(pod("p0", "198.18.1.1"));
    let mut following = Following::start(&api).await;
    for (round, how) in [End::Close, End::Cut, End::Garbage, End::Cut, End::Close].into_iter().enumerate() {
        api.end(how);
        api.delete("Pod", "shop", &format!("p{round}"));
        let new = format!("p{}", round + 1);
        api.put(pod(&new, &format!("198.18.1.{}", round + 1)));
        following.pods(&[&new]).await;
    }
}

#[tokio::test]
async fn hardening_F17_who_is_told_to_wait_waits_and_what_was_known_stays() {
    let api = istio().await;
    api.put(pod("p1", "198.18.1.1"));
    let mut following = Following::start(&api).await;
    following.pods(&["p1"]).await;
    let before = api.lists("pods");
    api.refuse("pods", 500, 1_000_000);
    api.end(End::Cut);
    api.put(pod("p2", "198.18.1.2"));
    // It is said that nothing can be heard, by name, and nothing is lost meanwhile.
    following
        .until("a diagnosis", |u| u.diagnoses.iter().any(|d| d.message.contains("kind Pod cannot be followed")))
        .await;
    assert_eq!(following.update.objects.pods.len(), 1);
    api.relent();
    following.pods(&["p1", "p2"]).await;
    following.until("no diagnosis", |u| u.diagnoses.is_empty()).await;
    // "Come back in two seconds" is heeded, by lists and by watches.
    let mut names = vec!["p1", "p2"];
    for (new, how) in [("p3", End::Gone), ("p4", End::Close)] {
        api.refuse("pods", 429, 1);
        let since = std::time::Instant::now();
        api.end(how);
        api.put(pod(new, "198.18.1.3"));
        names.push(new);
        following.pods(&names).await;
        assert!(since.elapsed() >= Duration::from_secs(2), "{new}");
    }
    assert!(api.lists("pods") > before);
}

#[tokio::test]
async fn hardening_F17_a_refusal_without_a_word_is_one() {
    let api = istio().await;
    let mut following = Following::start(&api).await;
    api.refuse("pods", 502, 1_000_000);
    api.end(End::Close);
    let told = |u: &Update| u.diagnoses.iter().any(|d| d.message.contains("the API server answers 502"));
    following.until("a diagnosis", told).await;
}

#[tokio::test]
async fn hardening_F17_slow_failures_are_told_of_and_their_end_too() {
    let api = istio().await;
    let mut following = Following::start(&api).await;
    // Each of them takes longer than a watch that was worth having.
    api.slow(TUNING.worth * 2);
    api.refuse("pods", 500, 2);
    api.hold("watches of pods", true);
    api.end(End::Close);
    following.until("a diagnosis", |u| !u.diagnoses.is_empty()).await;
    api.hold("watches of pods", false);
    // From here on nothing changes any more: neither a list nor an object says that the watch is there again.
    following.until("no diagnosis", |u| u.diagnoses.is_empty()).await;
    let listed = api.lists("pods");
    assert_eq!(listed, 1, "two failures are no reason to list again");
}

#[tokio::test]
async fn hardening_F17_a_watch_that_is_silent_for_ever_is_a_failure() {
    let api = istio().await;
    let tuning = Tuning { idle: TUNING.worth * 2, ..TUNING };
    let mut following = Following::tuned(&api, tuning).await;
    let is_told = |u: &Update| u.diagnoses.iter().any(|d| d.message.contains("nothing was heard for too long"));
    following.until("a diagnosis", is_told).await;
    soon("another list", async {
        while api.lists("pods") < 2 {
            following.update = following.source.next().await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn hardening_B150_kinds_that_nobody_has_installed_are_noticed_when_they_come_and_when_they_go() {
    let api = FakeApi::start().await;
    api.put(pod("p1", "198.18.1.1"));
    let mut following = Following::start(&api).await;
    assert_eq!(following.policies(), [""; 0]);

    let deny = policy("deny", json!({ "action": "DENY", "rules": [{}] }));
    api.put(deny.clone());
    api.put(definition("authorizationpolicies", &[("v1", true)]));
    following.until("the policy", |u| policies(u) == ["deny"]).await;

    // A server that does not serve what its definition says is not one without policies, nor is one that does not serve definitions.
    for plural in ["authorizationpolicies", "customresourcedefinitions"] {
        api.refuse(plural, 404, 1_000_000);
        api.end(End::Gone);
        let is_told =
            |u: &Update| u.diagnoses.iter().any(|d| d.message.contains("AuthorizationPolicy cannot be followed"));
        following.until("a diagnosis", is_told).await;
        assert_eq!(following.policies(), ["deny"], "{plural}");
        api.relent();
        following.until("no diagnosis", |u| u.diagnoses.is_empty()).await;
        assert_eq!(following.policies(), ["deny"], "{plural}");
    }

    api.delete("CustomResourceDefinition", "", "authorizationpolicies.security.istio.io");
    api.end(End::Gone);
    following.until("no policy", |u| policies(u).is_empty()).await;
}

#[tokio::test]
async fn a_policy_keeps_its_last_good_form_but_not_that_of_another_one() {
    let api = istio().await;
    let (good, bad) = (json!({ "action": "DENY", "rules": [{}] }), json!({ "rulez": [] }));
    api.put(policy("a", good.clone()));
    api.put(policy("b", bad.clone()));
    let mut following = Following::start(&api).await;
    assert_eq!(following.policies(), ["a", "!b"]);
    let errors = |u: &Update| u.diagnoses.iter().map(|d| d.object.clone()).collect::<Vec<_>>();
    assert_eq!(errors(&following.update), ["AuthorizationPolicy shop/b"]);

    api.put(policy("a", bad.clone()));
    following.until("two errors", |u| errors(u).len() == 2).await;
    assert_eq!(following.policies(), ["a", "!b"]);
    api.put(policy("b", good.clone()));
    following.until("b", |u| policies(u) == ["a", "b"]).await;

    // Deleted and made again: another object, which never had a good form.
    api.delete("AuthorizationPolicy", "shop", "a");
    api.put(policy("a", bad.clone()));
    following.until("a closed", |u| policies(u) == ["!a", "b"]).await;
    // The same, while nobody hears of it.
    api.refuse("authorizationpolicies", 500, 6);
    api.end(End::Gone);
    api.delete("AuthorizationPolicy", "shop", "b");
    api.put(policy("b", bad));
    api.compact();
    following.until("b closed", |u| policies(u) == ["!a", "!b"]).await;
}

#[tokio::test]
async fn endpoints_that_were_made_from_pods_are_not_asked_for() {
    let api = istio().await;
    let slice = |name: &str, by: &str| {
        json!({ "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "endpoints": [],
            "metadata": { "name": name, "namespace": "shop",
                "labels": { "kubernetes.io/service-name": "web", "endpointslice.kubernetes.io/managed-by": by } } })
    };
    api.put(slice("derived", "endpointslice-controller.k8s.io"));
    api.put(slice("written", "me"));
    let mut following = Following::start(&api).await;
    api.put(slice("derived-too", "endpointslice-controller.k8s.io"));
    api.put(slice("mirrored", "endpointslicemirroring-controller.k8s.io"));
    let names = |u: &Update| u.objects.endpoint_slices.keys().map(|n| n.name.to_string()).collect::<Vec<_>>();
    following.until("both that are needed", |u| names(u).len() == 2).await;
    assert_eq!(names(&following.update), ["mirrored", "written"]);
}

#[tokio::test]
async fn what_matters_is_told_of_and_what_does_not_is_not() {
    let api = istio().await;
    let namespace = |name: &str| json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
    api.put(namespace("a"));
    let mut following = Following::start(&api).await;
    // Another status of a node is nothing new.
    api.put(json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n1" } }));
    let key = |u: &Update| u.objects.nodes.contains_key("n1");
    following.until("the node", key).await;
    (0..20).for_each(|n| {
        api.put(
            json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n1" }, "status": { "images": [n] } }),
        );
    });
    assert!(within(LONG, &mut Box::pin(following.source.next())).await.is_none());
    api.put(namespace("b"));
    following.until("the namespace", |u| u.objects.namespaces.len() == 2).await;
}
