//! What one replica does for all of them: conditions and events of objects; and mesh settings, which every replica heeds.

use super::plane::{eventually, roots, start};
use super::*;

const NEVER: &str = "a change that must not come";

fn lease(api: &FakeApi) -> Option<String> {
    let lease = api.get("Lease", "undermesh-system", "mesh-control")?;
    Some(lease["spec"]["holderIdentity"].as_str().unwrap().to_owned())
}

/// Status, reason and generation of a policy's condition.
pub fn condition(api: &FakeApi, name: &str) -> Option<(String, String, String)> {
    let policy = api.get("AuthorizationPolicy", "shop", name)?;
    let condition = policy["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == "ZtunnelAccepted")?.clone();
    let text = |field: &str| condition[field].as_str().unwrap().to_owned();
    Some((text("status"), text("reason"), text("observedGeneration")))
}

pub fn is(api: &FakeApi, name: &str, status: &str, reason: &str, generation: &str) -> bool {
    condition(api, name) == Some((status.into(), reason.into(), generation.into()))
}

/// Asks for something else; the status stays, as an API server sees to.
fn edit(api: &FakeApi, name: &str, spec: &Json, generation: u64) {
    let mut object = api.get("AuthorizationPolicy", "shop", name).unwrap();
    object["spec"] = spec.clone();
    api.put(versioned(object, generation));
}

pub fn versioned(mut object: Json, generation: u64) -> Json {
    object["metadata"]["generation"] = json!(generation);
    object
}

#[tokio::test]
async fn features_CL_10_a_service_is_told_of_its_waypoint_while_it_names_one() {
    let api = istio().await;
    let service = |name: &str, labels: Json| {
        let spec = json!({ "ports": [{ "port": 15008 }], "selector": { "app": name } });
        let condition = json!({ "type": "example.com/Balanced", "status": "True", "reason": "Balanced", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z" });
        let balanced = json!({ "conditions": [condition] });
        json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "namespace": "shop", "labels": labels }, "spec": spec, "status": balanced })
    };
    let told = || {
        let service = api.get("Service", "shop", "web")?;
        let conditions = service["status"]["conditions"].as_array()?.clone();
        assert!(conditions.iter().any(|one| one["type"] == "example.com/Balanced"), "{conditions:?}");
        let own = conditions.into_iter().find(|one| one["type"] == "istio.io/WaypointBound")?;
        assert!(own.get("observedGeneration").is_none());
        Some(format!("{} {}", own["status"].as_str()?, own["reason"].as_str()?))
    };
    api.put(super::routes::kind("gateways", "gateway.networking.k8s.io", &["v1"]));
    api.put(service("web", json!({ "istio.io/use-waypoint": "wp" })));
    let _app = start(&api, &[]).await;
    eventually("that there is none", || told().as_deref() == Some("False WaypointIsNotReady")).await;
    let listener = json!({ "name": "mesh", "port": 15008, "protocol": "HBONE" });
    let spec = json!({ "gatewayClassName": "undermesh-waypoint", "listeners": [listener] });
    api.put(service("wp", json!({})));
    api.put(json!({ "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": { "name": "wp", "namespace": "shop" }, "spec": spec }));
    eventually("that it is bound", || told().as_deref() == Some("True WaypointAccepted")).await;
    let mut released = api.get("Service", "shop", "web").unwrap();
    released["metadata"]["labels"] = json!({});
    api.put(released);
    eventually("that it is bound no more", || told().is_none()).await;
    // The waypoint's own is told nothing.
    let own = api.get("Service", "shop", "wp").unwrap();
    assert_eq!(own["status"]["conditions"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn features_SE_2_given_addresses_are_written_and_outlive_the_process_that_gave_them() {
    let api = istio().await;
    api.put(super::routes::kind("serviceentries", "networking.istio.io", &["v1"]));
    let entry = |name: &str, made: u32, addresses: &[&str]| {
        let host = format!("{name}.example.com");
        let shown: Vec<Json> = addresses.iter().map(|value| json!({ "value": value, "host": host })).collect();
        let metadata = json!({ "name": name, "namespace": "shop", "generation": 1,
            "creationTimestamp": format!("2026-01-01T00:00:{made:02}Z") });
        let spec = json!({ "hosts": [host], "resolution": "STATIC", "endpoints": [{ "address": "192.0.2.1" }] });
        json!({ "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "metadata": metadata, "spec": spec,
            "status": { "addresses": shown, "validationMessages": ["theirs"] } })
    };
    let shown = |name: &str| {
        let entry = api.get("ServiceEntry", "shop", name).unwrap();
        assert_eq!(entry["status"]["validationMessages"], json!(["theirs"]), "what others say stays");
        let all = entry["status"]["addresses"].as_array().cloned().unwrap_or_default();
        let of = |one: &Json| format!("{} {}", one["host"].as_str().unwrap(), one["value"].as_str().unwrap());
        all.iter().map(of).collect::<Vec<_>>()
    };
    let is_told = |name: &str| !api.get("ServiceEntry", "shop", name).unwrap()["status"]["conditions"].is_null();
    // Of an earlier control plane: one that is good, and one that an older object has.
    api.put(entry("kept", 1, &["240.240.9.9", "2001:2::9"]));
    api.put(entry("late", 2, &["240.240.9.9"]));
    api.put(entry("new", 3, &[]));
    let one = start(&api, &[]).await;
    eventually("all are told", || {
        ["kept", "late", "new"].into_iter().all(|name| is_told(name) && shown(name).len() == 2)
    })
    .await;
    assert_eq!(shown("kept"), ["kept.example.com 240.240.9.9", "kept.example.com 2001:2::9"]);
    assert!(
        shown("late")[0] != "late.example.com 240.240.9.9" && shown("new")[0].starts_with("new.example.com 240.240.")
    );
    let before: Vec<_> = ["kept", "late", "new"].map(shown).into();
    soon("stop", one.stop()).await;
    // An older object of that address comes while nobody looks: it has none, the others keep theirs.
    let taken = shown("new")[0].split_once(' ').unwrap().1.to_owned();
    api.put(entry("older", 0, &[]));
    let two = start(&api, &[]).await;
    eventually("it is told, too", || is_told("older") && shown("older").len() == 2).await;
    assert_eq!(["kept", "late", "new"].map(shown).to_vec(), before);
    assert!(!shown("older")[0].ends_with(&taken));
    // Who writes one of their own has none given.
    let mut own = api.get("ServiceEntry", "shop", "new").unwrap();
    own["spec"]["addresses"] = json!(["192.0.2.9"]);
    api.put(versioned(own, 2));
    eventually("none is given", || shown("new").is_empty()).await;
    two.stop().await;
}

#[tokio::test]
async fn the_leader_tells_objects_what_is_in_force_of_them() {
    let api = istio().await;
    let (good, bad) = (json!({ "action": "DENY", "rules": [{}] }), json!({ "rulez": [] }));
    let theirs = json!({ "type": "Theirs", "status": "True" });
    let mut first = versioned(policy("good", good.clone()), 1);
    first["status"]["conditions"] = json!([theirs]);
    api.put(first);
    api.put(versioned(policy("bad", bad.clone()), 1));
    let one = start(&api, &[]).await;
    eventually("conditions", || is(&api, "good", "True", "Accepted", "1") && is(&api, "bad", "False", "Invalid", "1"))
        .await;
    let kept = api.get("AuthorizationPolicy", "shop", "good").unwrap();
    assert_eq!(kept["status"]["conditions"][0], theirs);
    // An event for what is to be acted on, and none for what is well.
    let about = |name: &str| api.objects("Event").into_iter().filter(|e| e["involvedObject"]["name"] == name).count();
    eventually("an event", || about("bad") == 1).await;
    assert_eq!(about("good"), 0);

    // A second replica says nothing, until the first is gone.
    let leader = lease(&api).unwrap();
    let two = start(&api, &[]).await;
    edit(&api, "good", &bad, 2);
    eventually("the last good form", || is(&api, "good", "False", "Invalid", "2")).await;
    // It comes after the condition, and not at all if the replica ends in between.
    eventually("an event of that", || about("good") == 1).await;
    assert_eq!(lease(&api).unwrap(), leader);
    soon("stop", one.stop()).await;
    eventually("another leader", || lease(&api).is_some_and(|l| !l.is_empty() && l != leader)).await;
    edit(&api, "good", &good, 3);
    eventually("good again", || is(&api, "good", "True", "Accepted", "3")).await;
    eventually("an event of that, too", || about("good") == 2).await;

    // Nothing is written twice: what is written for the next change is all there is.
    let written =
        |name: &str| api.asked("PATCH").into_iter().filter(|path| path.ends_with(&format!("{name}/status"))).count();
    let before = (written("good"), written("bad"));
    api.put(versioned(policy("more", json!({})), 1));
    eventually("the next", || is(&api, "more", "True", "Accepted", "1")).await;
    assert_eq!((written("good"), written("bad")), before, "{NEVER}");
    soon("stop", two.stop()).await;
    // The lease is given back.
    assert_eq!(lease(&api).unwrap(), "");
}

#[tokio::test]
async fn a_lease_of_one_that_died_is_taken() {
    let api = istio().await;
    api.put(json!({ "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": { "name": "mesh-control", "namespace": "undermesh-system" },
        "spec": { "holderIdentity": "dead", "leaseDurationSeconds": 1, "leaseTransitions": 4,
            // Its clock was ahead of ours.
            "renewTime": "2999-01-01T00:00:00.000000Z" } }));
    api.put(versioned(policy("p", json!({})), 1));
    let app = start(&api, &[]).await;
    eventually("a leader that lives", || is(&api, "p", "True", "Accepted", "1")).await;
    let lease = api.get("Lease", "undermesh-system", "mesh-control").unwrap();
    assert_eq!(
        (lease["spec"]["leaseTransitions"].as_u64(), lease["spec"]["holderIdentity"] == "dead"),
        (Some(5), false)
    );
    soon("stop", app.stop()).await;
}

#[tokio::test]
async fn hardening_F17_conditions_wait_for_a_server_that_has_enough_to_do_and_are_written_then() {
    let api = istio().await;
    (0..3).for_each(|n| api.put(versioned(policy(&format!("p{n}"), json!({})), 1)));
    api.refuse("PATCH authorizationpolicies", 409, 2);
    api.refuse("PATCH authorizationpolicies", 429, 1);
    let app = start(&api, &[]).await;
    eventually("all", || (0..3).all(|n| is(&api, &format!("p{n}"), "True", "Accepted", "1"))).await;
    soon("stop", app.stop()).await;
}

pub fn settings(mesh: &str) -> Json {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "data": { "mesh": mesh },
        "metadata": { "name": "undermesh", "namespace": "undermesh-system" } })
}

#[tokio::test]
async fn mesh_settings_are_heeded_as_they_change_and_a_bad_edit_changes_nothing() {
    let api = istio().await;
    let namespace = |name: &str, labels: Json| json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": labels } });
    api.put(namespace("in", json!({ "mesh": "in" })));
    api.put(settings("discoverySelectors: [{matchLabels: {mesh: in}}]\nistioNames: \"off\"\n"));
    let app = start(&api, &[]).await;
    let own = |namespace: &str| roots(&api, namespace, "undermesh-root-cert").is_some();
    eventually("a copy", || own("in")).await;
    assert_eq!(roots(&api, "in", "istio-ca-root-cert"), None);
    // A bad edit, and then namespaces: whoever heeds the edit writes into both.
    api.put(settings("discoverySelectorz: []\n"));
    let told = || {
        api.objects("Event").into_iter().any(|e| e["involvedObject"]["kind"] == "ConfigMap" && e["type"] == "Warning")
    };
    eventually("an event", told).await;
    api.put(namespace("out", json!({})));
    // Copies are written in the order of names: after this one there is none to come.
    api.put(namespace("young", json!({ "mesh": "in" })));
    eventually("a copy", || own("young")).await;
    assert!(!own("out"));
    assert_eq!(roots(&api, "in", "istio-ca-root-cert"), None);
    api.put(settings("istioNames: auto\n"));
    eventually("copies everywhere", || own("out") && roots(&api, "in", "istio-ca-root-cert").is_some()).await;
    soon("stop", app.stop()).await;
}
