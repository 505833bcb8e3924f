//! The webhook of a whole control plane: how the API server comes to know it, what it answers, and to whom.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use mesh_control::app::App;
use mesh_control::ca::plugged::Purpose;
use mesh_control::ca::store::RootStore;
use mesh_control::webhook::registration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::leader::{condition, is, settings, versioned};
use super::plane::{eventually, roots, start};
use super::*;

/// What the API server would send, and what comes back.
async fn review(app: &App, roots: &str, object: &Json) -> Json {
    let body = json!({ "request": { "uid": "u", "operation": "CREATE", "object": object,
        "kind": { "group": "security.istio.io", "version": "v1", "kind": "AuthorizationPolicy" } } })
    .to_string();
    let text = ask(app, roots, "POST /validate?timeout=5s", body.as_bytes()).await;
    serde_json::from_str(text.split_once("\r\n\r\n").unwrap().1).unwrap_or_else(|_| panic!("{text}"))
}

async fn ask(app: &App, roots: &str, what: &str, body: &[u8]) -> String {
    let mut stream = open(app.webhook.unwrap(), roots).await.unwrap();
    let head = format!("{what} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
    let _ = stream.write_all(&[head.as_bytes(), body].concat()).await;
    let mut text = Vec::new();
    let _ = soon("answer", stream.read_to_end(&mut text)).await;
    String::from_utf8(text).unwrap()
}

async fn open(webhook: std::net::SocketAddr, roots: &str) -> std::io::Result<impl AsyncRead + AsyncWrite + Unpin> {
    let tls = crate::support::client_config(roots, &[&rustls::version::TLS13]);
    let mut tls = (*tls).clone();
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let tls = Arc::new(tls);
    let name = rustls_pki_types::ServerName::try_from("mesh-control.undermesh-system.svc").unwrap();
    let stream = tokio::net::TcpStream::connect(webhook).await?;
    tokio_rustls::TlsConnector::from(tls).connect(name, stream).await
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
    let page = ("galley_validation_failed 1", "galley_validation_passed 1");
    let metrics = crate::support::page(app.metrics, "/metrics").await.1;
    assert!(metrics.contains(page.0) && metrics.contains(page.1), "{metrics}");
    soon("stop", app.stop()).await;
}

/// Settings that cannot be read hold a start up for as long as it takes somebody to repair them, past a webhook that the API server has to reach.
#[tokio::test]
async fn a_replica_that_waits_follows_the_root_and_has_the_webhook_known_by_it() {
    use base64::Engine;
    let api = istio().await;
    api.put(settings("trustDomain: [\n"));
    api.put(versioned(policy("p", json!({})), 1));
    let hook =
        json!({ "name": "a", "clientConfig": { "service": { "name": "mesh-control" } }, "failurePolicy": "Fail" });
    api.put(json!({ "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
        "metadata": { "name": registration::NAME }, "webhooks": [hook] }));
    let server = api.clone();
    let waiting = tokio::spawn(async move { start(&server, &[]).await });
    let bundle = || {
        let config = api.get("ValidatingWebhookConfiguration", "", registration::NAME).unwrap();
        config["webhooks"][0]["clientConfig"]["caBundle"].as_str().map(str::to_owned)
    };
    eventually("a bundle", || bundle().is_some()).await;
    // Another root.
    let old = bundle();
    api.delete("Secret", "undermesh-system", "undermesh-ca");
    let folder = tempfile::tempdir().unwrap();
    let client = api_server::connect(Some(&api.kubeconfig(folder.path()))).await.unwrap();
    let store = RootStore::Secret { client, namespace: "undermesh-system".into() };
    let purpose = Purpose { domain: "cluster.local".parse().unwrap(), host: "mesh-control".into() };
    let new = soon("a root", store.open(&purpose, mesh_runtime::clock::now)).await.unwrap();
    let new = base64::engine::general_purpose::STANDARD.encode(new.bundle());
    assert_ne!(old.as_ref(), Some(&new));
    eventually("the new root", || bundle().as_ref() == Some(&new)).await;
    assert!(!waiting.is_finished());
    assert_eq!(condition(&api, "p"), None);
    api.put(settings("trustDomain: cluster.local\n"));
    let app = soon("a start", waiting).await.unwrap();
    eventually("a condition", || is(&api, "p", "True", "Accepted", "1")).await;
    soon("stop", app.stop()).await;
}

/// Whoever sends a body byte by byte, and comes again when that is refused, keeps nobody else's place.
#[tokio::test]
async fn hardening_F35_bodies_that_trickle_hold_up_no_review() {
    const SLOW: usize = 20;
    let api = istio().await;
    api.put(json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "shop" } }));
    let app = start(&api, &[]).await;
    eventually("a copy of the root", || roots(&api, "shop", "undermesh-root-cert").is_some()).await;
    let root = roots(&api, "shop", "undermesh-root-cert").unwrap();
    let (webhook, arriving) = (app.webhook.unwrap(), Arc::new(AtomicUsize::new(0)));
    let slow = (0..SLOW).map(|_| {
        let (root, arriving) = (root.clone(), arriving.clone());
        tokio::spawn(async move {
            loop {
                let Ok(mut stream) = open(webhook, &root).await else { continue };
                let head = b"POST /validate HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n{";
                let _ = stream.write_all(head).await;
                let _ = stream.flush().await;
                arriving.fetch_add(1, Ordering::Relaxed);
                // Until it is answered, or cut.
                let (mut answer, mut tick) = ([0; 1], tokio::time::interval(Duration::from_millis(50)));
                loop {
                    tokio::select! {
                        _ = stream.read(&mut answer) => break,
                        _ = tick.tick() => {}
                    }
                    let _ = stream.write_all(b" ").await;
                    let _ = stream.flush().await;
                }
            }
        })
    });
    let slow: Vec<_> = slow.collect();
    eventually("bodies on their way", || arriving.load(Ordering::Relaxed) >= SLOW).await;
    // A busy machine may be slow once. If a slow body had a place of a review, each of these would wait for several of them.
    soon("a review in time", async {
        loop {
            let since = Instant::now();
            let answer = review(&app, &root, &policy("p", json!({}))).await;
            assert_eq!(answer["response"]["allowed"], true);
            if since.elapsed() < Duration::from_secs(2) {
                break;
            }
        }
    })
    .await;
    slow.into_iter().for_each(|task| task.abort());
    soon("stop", app.stop()).await;
}
