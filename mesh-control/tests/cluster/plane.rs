//! The whole control plane on an API server: the root that replicas share, its copies in all namespaces, and the tokens of service accounts.

use std::time::{Duration, Instant};

use mesh_control::access::review::{Reviewer, Times};
use mesh_control::access::token::TokenError;
use mesh_control::app::App;
use mesh_control::ca::plugged::Purpose;
use mesh_control::ca::store::RootStore;
use mesh_control::config;
use mesh_control::index::View;
use mesh_proto::ca::IstioCertificateResponse;
use mesh_proto::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use tonic::{Code, Request, Status};

use super::*;
use crate::support::{Agent, connect, csr, request};

const REVIEWS: &str = "spiffe://cluster.local/ns/bookinfo/sa/bookinfo-reviews";

const NAMES: [&str; 2] = ["undermesh-root-cert", "istio-ca-root-cert"];

pub async fn start(api: &FakeApi, more: &[&str]) -> App {
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = api.kubeconfig(folder.path()).display().to_string();
    let fixed = ["mesh-control", "--kube", "--kubeconfig", &kubeconfig];
    let places = ["--listen", "--metrics", "--webhook"].into_iter().flat_map(|flag| [flag, "127.0.0.1:0"]);
    let args = config::parse(fixed.into_iter().chain(places).chain(more.iter().copied())).map_err(|(e, _)| e).unwrap();
    soon("start", App::start(args.check().unwrap())).await.unwrap()
}

/// Bookinfo on two nodes.
pub async fn bookinfo() -> FakeApi {
    let api = istio().await;
    documents(BOOKINFO).into_iter().chain(documents(POLICY)).for_each(|object| api.put(object));
    api
}

pub fn roots(api: &FakeApi, namespace: &str, name: &str) -> Option<String> {
    let map = api.get("ConfigMap", namespace, name)?;
    Some(map["data"]["root-cert.pem"].as_str().unwrap().to_owned())
}

pub async fn eventually(what: &str, done: impl Fn() -> bool) {
    soon(what, async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// What a kubelet gives the agent of a node. Nobody here checks the signature; the API server says what it is worth.
fn token(audience: &str, account: &str, number: u32) -> String {
    use base64::Engine;
    let claims = json!({ "aud": [audience], "sub": account, "exp": 4_000_000_000u64, "jti": number });
    let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(claims.to_string());
    format!("eyJhbGciOiJSUzI1NiJ9.{claims}.c2lnbmF0dXJl")
}

pub const AGENT: &str = "system:serviceaccount:undermesh-system:mesh-agent";

/// What is known of a mesh with these nodes.
fn nodes(api: &FakeApi, names: &[&str]) -> View {
    let uid = |name: &str| api.get("Node", "", name).map(|node| node["metadata"]["uid"].as_str().unwrap().to_owned());
    View { nodes: names.iter().map(|name| ((*name).into(), uid(name))).collect(), ..View::default() }
}

fn reviewed(api: &FakeApi, node: &str) -> Json {
    let uid = api.get("Node", "", node).map_or(json!("none"), |n| n["metadata"]["uid"].clone());
    json!({ "authenticated": true, "audiences": ["undermesh"], "user": { "username": AGENT, "extra": {
        "authentication.kubernetes.io/node-name": [node], "authentication.kubernetes.io/node-uid": [uid] } } })
}

pub async fn certificate(app: &App, roots: &str, token: &str) -> Result<IstioCertificateResponse, Status> {
    let mut client = IstioCertificateServiceClient::new(connect(app.listen, roots, "127.0.0.1").await.unwrap());
    let mut request = Request::new(request(REVIEWS, &csr().1, 3600));
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    soon("certificate", client.create_certificate(request)).await.map(tonic::Response::into_inner)
}

#[tokio::test]
async fn replicas_share_a_root_that_every_namespace_has() {
    let api = bookinfo().await;
    let (one, two) = tokio::join!(start(&api, &[]), start(&api, &[]));
    let names = ["undermesh-root-cert", "istio-ca-root-cert"];
    eventually("copies", || names.iter().all(|n| roots(&api, "bookinfo", n).is_some())).await;
    let root = roots(&api, "bookinfo", names[0]).unwrap();
    assert_eq!(roots(&api, "bookinfo", names[1]).unwrap(), root);
    // Both serve with it, and the key is in the Secret alone.
    for app in [&one, &two] {
        connect(app.listen, &root, "127.0.0.1").await.unwrap();
    }
    let secret = api.get("Secret", "undermesh-system", "undermesh-ca").unwrap();
    assert!(secret["data"]["ca-key.pem"].is_string());
    // A third one makes nothing new, and puts right what somebody has broken.
    soon("stop", one.stop()).await;
    soon("stop", two.stop()).await;
    api.put(json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "late" } }));
    let mut map = api.get("ConfigMap", "bookinfo", names[0]).unwrap();
    map["data"]["root-cert.pem"] = json!("broken");
    api.put(map);
    let three = start(&api, &[]).await;
    eventually("copies", || roots(&api, "late", names[0]).is_some()).await;
    eventually("repair", || roots(&api, "bookinfo", names[0]) == Some(root.clone())).await;
    assert_eq!(api.get("Secret", "undermesh-system", "undermesh-ca").unwrap(), secret);
    connect(three.listen, &root, "127.0.0.1").await.unwrap();
    soon("stop", three.stop()).await;
}

#[tokio::test]
async fn hardening_F44_a_root_is_judged_when_it_has_been_read() {
    let api = bookinfo().await;
    let folder = tempfile::tempdir().unwrap();
    let client = api_server::connect(Some(&api.kubeconfig(folder.path()))).await.unwrap();
    let store = RootStore::Secret { client, namespace: "undermesh-system".into() };
    let purpose = Purpose { domain: "cluster.local".parse().unwrap(), host: "mesh-control".into() };
    soon("a root", store.open(&purpose, mesh_runtime::clock::now)).await.unwrap();
    // A replica that began a day before there was that root, and waited for the API server since.
    api.refuse("secrets", 503, 1);
    let now = || mesh_runtime::clock::now() - Duration::from_secs(if api.is_refusing() { 86_400 } else { 0 });
    soon("the root", store.open(&purpose, now)).await.unwrap();
    assert!(!api.is_refusing());
}

#[tokio::test]
async fn hardening_F17_copies_wait_for_a_server_that_has_enough_to_do() {
    let api = bookinfo().await;
    let namespace = |name| json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
    ["a", "b", "c"].into_iter().for_each(|name| api.put(namespace(name)));
    api.refuse("PATCH configmaps", 429, 1);
    let app = start(&api, &[]).await;
    let asked = || api.asked("PATCH").into_iter().filter(|path| path.contains("configmaps")).count();
    eventually("a refusal", || asked() > 0).await;
    let refused = Instant::now();
    // The others do not try their luck meanwhile.
    eventually("copies", || asked() > 1).await;
    assert!(refused.elapsed() > Duration::from_secs(1), "{:?}", api.asked("PATCH"));
    eventually("copies", || roots(&api, "a", "undermesh-root-cert").is_some()).await;
    soon("stop", app.stop()).await;
}

#[tokio::test]
async fn hardening_F17_a_namespace_that_nothing_can_be_written_to_keeps_no_other_waiting() {
    let api = bookinfo().await;
    let namespace = |name| json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
    ["a", "b"].into_iter().for_each(|name| api.put(namespace(name)));
    // What stands in front of it is broken.
    NAMES.iter().for_each(|name| api.refuse(&format!("/api/v1/namespaces/a/configmaps/{name}"), 500, usize::MAX));
    let app = start(&api, &[]).await;
    for name in NAMES {
        eventually(name, || ["b", "bookinfo"].iter().all(|ns| roots(&api, ns, name).is_some())).await;
    }
    assert_eq!(roots(&api, "a", NAMES[0]), None);
    api.relent();
    for name in NAMES {
        eventually(name, || roots(&api, "a", name).is_some()).await;
    }
    soon("stop", app.stop()).await;
}

#[tokio::test]
async fn what_istio_writes_is_left_to_istio() {
    let api = bookinfo().await;
    let theirs = json!({ "apiVersion": "v1", "kind": "ConfigMap", "data": { "root-cert.pem": "theirs" },
        "metadata": { "name": "istio-ca-root-cert", "namespace": "other", "labels": { "istio.io/config": "true" } } });
    api.put(theirs);
    let app = start(&api, &[]).await;
    eventually("our copy", || roots(&api, "bookinfo", "undermesh-root-cert").is_some()).await;
    assert_eq!(roots(&api, "bookinfo", "istio-ca-root-cert"), None);
    assert_eq!(roots(&api, "other", "istio-ca-root-cert").unwrap(), "theirs");
    soon("stop", app.stop()).await;
}

#[tokio::test]
async fn an_agent_is_who_the_api_server_says_and_has_the_identities_of_its_node() {
    let api = bookinfo().await;
    api.put(json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "node3" } }));
    let app = start(&api, &[]).await;
    eventually("a copy", || roots(&api, "bookinfo", "undermesh-root-cert").is_some()).await;
    let root = roots(&api, "bookinfo", "undermesh-root-cert").unwrap();
    // Pods of that identity run on the first, nothing runs on the other.
    let (home, away) = ("node1", "node3");
    let good = token("undermesh", AGENT, 1);
    api.token(&good, reviewed(&api, home));
    certificate(&app, &root, &good).await.unwrap();
    // Streams are opened with the same right.
    let mut agent = Agent::open(connect(app.listen, &root, "127.0.0.1").await.unwrap(), &good, home).await.unwrap();
    agent.until("workloads", |held| held.len() >= 10).await;

    let mut cases = vec![("not signed", token("undermesh", AGENT, 2), None, Code::Unauthenticated)];
    let mut case = |what, token: String, change: fn(&mut Json), code| {
        let mut status = reviewed(&api, home);
        change(&mut status);
        cases.push((what, token, Some(status), code));
    };
    let other = "system:serviceaccount:shop:mesh-agent";
    case("for somebody else", token("vault", AGENT, 3), |_| {}, Code::Unauthenticated);
    case("of another account", token("undermesh", other, 4), |_| {}, Code::Unauthenticated);
    case(
        "says it is, and is not",
        token("undermesh", AGENT, 5),
        |s| s["user"]["username"] = json!("system:serviceaccount:shop:mesh-agent"),
        Code::Unauthenticated,
    );
    case(
        "reviewed for somebody else",
        token("undermesh", AGENT, 6),
        |s| s["audiences"] = json!(["vault"]),
        Code::Unauthenticated,
    );
    case("reviewed for nobody", token("undermesh", AGENT, 7), |s| s["audiences"] = json!([]), Code::Unauthenticated);
    case("of no node", token("undermesh", AGENT, 8), |s| s["user"]["extra"] = json!({}), Code::Unauthenticated);
    case(
        "of a node that was replaced",
        token("undermesh", AGENT, 9),
        |s| s["user"]["extra"]["authentication.kubernetes.io/node-uid"] = json!(["old"]),
        Code::Unauthenticated,
    );
    case("of a node without the pod", token("undermesh", AGENT, 10), |_| {}, Code::PermissionDenied);
    case("no token", "x.y".into(), |_| {}, Code::Unauthenticated);
    for (what, token, status, code) in cases {
        if let Some(status) = status {
            let status = if code == Code::PermissionDenied { reviewed(&api, away) } else { status };
            api.token(&token, status);
        }
        let answer = certificate(&app, &root, &token).await;
        assert_eq!(answer.map(drop).map_err(|s| s.code()), Err(code), "{what}");
    }
    soon("stop", app.stop()).await;
}

#[tokio::test]
async fn hardening_F17_a_short_outage_stops_no_certificate() {
    let api = bookinfo().await;
    let app = start(&api, &["--audience", "undermesh", "--agent-account", "undermesh-system/mesh-agent"]).await;
    eventually("a copy", || roots(&api, "bookinfo", "undermesh-root-cert").is_some()).await;
    let root = roots(&api, "bookinfo", "undermesh-root-cert").unwrap();
    let nodes = [1, 2].map(|number| token("undermesh", AGENT, number));
    for (token, node) in nodes.iter().zip(["node1", "node2"]) {
        api.token(token, reviewed(&api, node));
    }
    let mut answers = Vec::new();
    for token in &nodes {
        answers.push(certificate(&app, &root, token).await.is_ok());
    }
    assert!(answers.contains(&true), "{answers:?}");
    api.refuse("", 503, 1_000_000);
    api.end(fake::End::Cut);
    for (token, before) in nodes.iter().zip(answers) {
        assert_eq!(certificate(&app, &root, token).await.is_ok(), before);
    }
    // Who was never seen is told to come back, not that it is refused.
    let new = token("undermesh", AGENT, 3);
    api.token(&new, reviewed(&api, "node1"));
    assert_eq!(certificate(&app, &root, &new).await.unwrap_err().code(), Code::Unavailable);
    api.relent();
    certificate(&app, &root, &new).await.map(drop).unwrap_or_else(|s| assert_eq!(s.code(), Code::PermissionDenied));
    soon("stop", app.stop()).await;
}

#[tokio::test]
async fn hardening_F17_what_was_accepted_is_accepted_while_nobody_can_be_asked() {
    let api = bookinfo().await;
    let folder = tempfile::tempdir().unwrap();
    let client = api_server::connect(Some(&api.kubeconfig(folder.path()))).await.unwrap();
    let accounts = [("undermesh-system".to_owned(), "mesh-agent".to_owned())];
    // Nothing is remembered but for want of anything better.
    let reviewer = Reviewer::new(client, vec!["undermesh".into()], &accounts)
        .times(Times { fresh: Duration::ZERO, ..Times::default() });
    let now = mesh_runtime::clock::now();
    let good = token("undermesh", AGENT, 1);
    let view = nodes(&api, &["node1"]);
    let ask = |now| reviewer.verify(Some(&good), now, &view);
    assert_eq!(ask(now).await.map(drop), Err(TokenError::Signature));
    api.token(&good, reviewed(&api, "node1"));
    assert_eq!(ask(now).await.unwrap().name, "node1");
    for code in [500, 503, 429] {
        api.refuse("tokenreviews", code, 1);
        assert_eq!(ask(now).await.unwrap().name, "node1", "{code}");
        assert!(!api.is_refusing());
    }
    // The API server has an opinion, the token its time, and the node may be gone.
    api.refuse("tokenreviews", 403, 1);
    assert_eq!(ask(now).await.map(drop), Err(TokenError::Unreviewed));
    api.refuse("tokenreviews", 503, 2);
    let late = std::time::UNIX_EPOCH + Duration::from_secs(4_000_000_000);
    assert_eq!(ask(late).await.map(drop), Err(TokenError::Expired));
    let gone = reviewer.verify(Some(&good), now, &View::default()).await;
    assert_eq!(gone.map(drop), Err(TokenError::Gone));
    // What it says next counts.
    api.relent();
    api.token(&good, json!({ "authenticated": false }));
    assert_eq!(ask(now).await.map(drop), Err(TokenError::Signature));
    api.refuse("tokenreviews", 503, 1);
    assert_eq!(ask(now).await.map(drop), Err(TokenError::Unreviewed));
}

#[tokio::test]
async fn hardening_F17_a_review_that_hangs_holds_up_nobody_for_long_and_keeps_nobody_in() {
    let api = bookinfo().await;
    let folder = tempfile::tempdir().unwrap();
    let client = api_server::connect(Some(&api.kubeconfig(folder.path()))).await.unwrap();
    let accounts = [("undermesh-system".to_owned(), "mesh-agent".to_owned())];
    let (short, long) = (Duration::from_millis(100), Duration::from_secs(3600));
    let reviewer = |busy| {
        let times = Times { fresh: Duration::ZERO, answer: long, again: short, busy };
        Reviewer::new(client.clone(), vec!["undermesh".into()], &accounts).times(times)
    };
    let now = mesh_runtime::clock::now();
    let (good, stranger) = (token("undermesh", AGENT, 1), token("undermesh", AGENT, 2));
    api.token(&good, reviewed(&api, "node1"));
    for (busy, refused) in [(Duration::ZERO, true), (long, false)] {
        let reviewer = &reviewer(busy);
        let view = nodes(&api, &["node1"]);
        let ask = async |token: &str| reviewer.verify(Some(token), now, &view).await.map(drop);
        assert_eq!(ask(&good).await, Ok(()));
        api.hold(&good, true);
        // It is not known, and was good.
        assert_eq!(soon("an answer", ask(&good)).await, Ok(()));
        // Others are reviewed meanwhile: whoever sees to it that this one is not must not win by it.
        let both = async || tokio::join!(ask(&good), ask(&stranger));
        if refused {
            // On a busy machine the others may come too late.
            soon("a refusal", async {
                while both().await != (Err(TokenError::Unreviewed), Err(TokenError::Signature)) {}
            })
            .await;
        } else {
            assert_eq!(soon("an answer", both()).await, (Ok(()), Err(TokenError::Signature)));
        }
        api.hold(&good, false);
    }
}
