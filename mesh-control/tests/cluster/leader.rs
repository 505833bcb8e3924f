//! What one replica does for all of them: conditions and events of objects, and the webhook's configuration; and mesh settings, which every replica heeds.

use mesh_control::app::App;
use mesh_control::webhook::registration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::plane::{eventually, roots, start};
use super::*;

const NEVER: &str = "a change that must not come";

fn lease(api: &FakeApi) -> Option<String> {
    let lease = api.get("Lease", "undermesh-system", "mesh-control")?;
    Some(lease["spec"]["holderIdentity"].as_str().unwrap().to_owned())
}

/// Status, reason and generation of a policy's condition.
fn condition(api: &FakeApi, name: &str) -> Option<(String, String, String)> {
    let policy = api.get("AuthorizationPolicy", "shop", name)?;
    let condition = policy["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == "ZtunnelAccepted")?.clone();
    let text = |field: &str| condition[field].as_str().unwrap().to_owned();
    Some((text("status"), text("reason"), text("observedGeneration")))
}

fn is(api: &FakeApi, name: &str, status: &str, reason: &str, generation: &str) -> bool {
    condition(api, name) == Some((status.into(), reason.into(), generation.into()))
}

/// Asks for something else; the status stays, as an API server sees to.
fn edit(api: &FakeApi, name: &str, spec: &Json, generation: u64) {
    let mut object = api.get("AuthorizationPolicy", "shop", name).unwrap();
    object["spec"] = spec.clone();
    api.put(versioned(object, generation));
}

fn versioned(mut object: Json, generation: u64) -> Json {
    object["metadata"]["generation"] = json!(generation);
    object
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
async fn hardening_F45_conditions_wait_for_a_server_that_has_enough_to_do_and_are_written_then() {
    let api = istio().await;
    (0..3).for_each(|n| api.put(versioned(policy(&format!("p{n}"), json!({})), 1)));
    api.refuse("PATCH authorizationpolicies", 409, 2);
    api.refuse("PATCH authorizationpolicies", 429, 1);
    let app = start(&api, &[]).await;
    eventually("all", || (0..3).all(|n| is(&api, &format!("p{n}"), "True", "Accepted", "1"))).await;
    soon("stop", app.stop()).await;
}

fn settings(mesh: &str) -> Json {
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
    api.put(namespace("later", json!({ "mesh": "in" })));
    eventually("a copy", || own("later")).await;
    assert!(!own("out"));
    api.put(settings("istioNames: auto\n"));
    eventually("copies everywhere", || own("out") && roots(&api, "in", "istio-ca-root-cert").is_some()).await;
    soon("stop", app.stop()).await;
}

/// What the API server would send, and what comes back.
async fn review(app: &App, roots: &str, object: &Json) -> Json {
    let body = json!({ "request": { "uid": "u", "operation": "CREATE", "object": object,
        "kind": { "group": "security.istio.io", "version": "v1", "kind": "AuthorizationPolicy" } } })
    .to_string();
    let text = ask(app, roots, "POST /validate?timeout=5s", body.as_bytes()).await;
    serde_json::from_str(text.split_once("\r\n\r\n").unwrap().1).unwrap_or_else(|_| panic!("{text}"))
}

async fn ask(app: &App, roots: &str, what: &str, body: &[u8]) -> String {
    let tls = crate::support::client_config(roots, &[&rustls::version::TLS13]);
    let mut tls = (*tls).clone();
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let tls = std::sync::Arc::new(tls);
    let name = rustls_pki_types::ServerName::try_from("mesh-control.undermesh-system.svc").unwrap();
    let stream = tokio::net::TcpStream::connect(app.webhook.unwrap()).await.unwrap();
    let mut stream = tokio_rustls::TlsConnector::from(tls).connect(name, stream).await.unwrap();
    let head = format!("{what} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
    let _ = stream.write_all(&[head.as_bytes(), body].concat()).await;
    let mut text = Vec::new();
    let _ = soon("answer", stream.read_to_end(&mut text)).await;
    String::from_utf8(text).unwrap()
}

#[tokio::test]
async fn the_webhook_is_known_by_the_root_and_refuses_what_cannot_be_read() {
    use base64::Engine;
    let api = istio().await;
    api.put(json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "shop" } }));
    let hook = |name: &str| json!({ "name": name, "clientConfig": { "service": { "name": "mesh-control" } }, "failurePolicy": "Fail" });
    api.put(json!({ "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
        "metadata": { "name": registration::NAME }, "webhooks": [hook("a"), hook("b")] }));
    let app = start(&api, &[]).await;
    eventually("a copy of the root", || roots(&api, "shop", "undermesh-root-cert").is_some()).await;
    let root = roots(&api, "shop", "undermesh-root-cert").unwrap();
    let webhooks = || api.get("ValidatingWebhookConfiguration", "", registration::NAME).unwrap()["webhooks"].clone();
    let bundle = base64::engine::general_purpose::STANDARD.encode(&root);
    eventually("its bundle", || webhooks().as_array().unwrap().iter().all(|w| w["clientConfig"]["caBundle"] == bundle))
        .await;
    // This API server asks no webhooks, so it keeps what only we refuse, and is told not to wait for us.
    eventually("Ignore", || webhooks().as_array().unwrap().iter().all(|w| w["failurePolicy"] == "Ignore")).await;
    assert_eq!(webhooks()[0]["clientConfig"]["service"]["name"], "mesh-control");

    let refused = review(&app, &root, &policy("p", json!({ "rulez": [] }))).await;
    assert_eq!(refused["response"]["allowed"], false);
    assert_eq!(review(&app, &root, &policy("p", json!({}))).await["response"], json!({ "uid": "u", "allowed": true }));
    // What is no review is none, and nothing else suffers from it.
    let large = vec![b' '; 9 << 20];
    for (what, body, status) in [
        ("GET /validate", &b""[..], "404"),
        ("POST /", b"{}", "404"),
        ("POST /validate", b"", "400"),
        ("POST /validate", b"\xff{", "400"),
        ("POST /validate", &b"[".repeat(100_000), "400"),
        ("POST /validate", &large, "413"),
    ] {
        let answer = ask(&app, &root, what, body).await;
        // Of a body that is too large the rest need not be waited for.
        let is_right = answer.starts_with(&format!("HTTP/1.1 {status}")) || answer.is_empty() && status == "413";
        assert!(is_right, "{what}: {answer}");
    }
    let page = ("galley_validation_failed_total 1", "galley_validation_passed_total 1");
    let metrics = crate::support::page(app.metrics, "/metrics").await.1;
    assert!(metrics.contains(page.0) && metrics.contains(page.1), "{metrics}");
    soon("stop", app.stop()).await;
}
