//! Tokens while nobody can be asked about them: the API server's own keys vouch for them, as long as their pods are there.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use mesh_control::access::discovery::Keys;
use mesh_control::clock::unix;
use tonic::Code;

use super::plane::{AGENT, bookinfo, certificate, eventually, roots, start};
use super::*;
use crate::support::page;

const SET: &str = "/openid/v1/jwks";
const ISSUER: &str = "/.well-known/openid-configuration";

/// Signs tokens as an API server does.
struct Signer(EcdsaKeyPair);

impl Signer {
    fn new() -> Self {
        Self(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap())
    }

    fn publish(&self, api: &FakeApi) {
        let point = self.0.public_key().as_ref();
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let key = json!({ "kty": "EC", "use": "sig", "alg": "ES256", "kid": "k", "crv": "P-256",
            "x": encode(&point[1..33]), "y": encode(&point[33..]) });
        api.page(SET, json!({ "keys": [key] }).to_string());
        api.page(ISSUER, json!({ "issuer": "https://kubernetes" }).to_string());
    }

    /// The token of an agent's pod.
    fn token(&self, api: &FakeApi, pod: &str, node: &str) -> String {
        let uid = |kind: &str, namespace: &str, name: &str| {
            api.get(kind, namespace, name).unwrap()["metadata"]["uid"].clone()
        };
        let now = unix(mesh_runtime::clock::now());
        let claims = json!({
            "iss": "https://kubernetes", "sub": AGENT, "aud": ["undermesh"], "exp": now + 3600, "nbf": now, "iat": now,
            "kubernetes.io": {
                "namespace": "undermesh-system", "serviceaccount": { "name": "mesh-agent" },
                "pod": { "name": pod, "uid": uid("Pod", "undermesh-system", pod) },
                "node": { "name": node, "uid": uid("Node", "", node) },
            },
        });
        let encode = |text: String| URL_SAFE_NO_PAD.encode(text);
        let signed = format!("{}.{}", encode(r#"{"alg":"ES256","kid":"k"}"#.into()), encode(claims.to_string()));
        let signature = self.0.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

fn agent(name: &str, node: &str) -> Json {
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "namespace": "undermesh-system" },
        "spec": { "nodeName": node, "hostNetwork": true, "serviceAccountName": "mesh-agent", "containers": [] },
        "status": { "phase": "Running" } })
}

#[tokio::test]
async fn hardening_F46_a_token_that_nobody_has_seen_is_known_by_its_key_and_its_pod() {
    let api = bookinfo().await;
    let signer = Signer::new();
    signer.publish(&api);
    api.put(json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "node3" } }));
    [("one", "node1"), ("two", "node1"), ("three", "node3")].iter().for_each(|(pod, node)| api.put(agent(pod, node)));
    let app = start(&api, &[]).await;
    eventually("a copy", || roots(&api, "bookinfo", "undermesh-root-cert").is_some()).await;
    let root = roots(&api, "bookinfo", "undermesh-root-cert").unwrap();
    soon("keys", async {
        while !page(app.metrics, "/metrics").await.1.lines().any(|line| line == "mesh_control_token_keys 1") {}
    })
    .await;
    let [one, two] = ["one", "two"].map(|pod| signer.token(&api, pod, "node1"));
    let code = async |token: &str| certificate(&app, &root, token).await.map_or_else(|s| s.code(), |_| Code::Ok);
    // The API server is there: what it does not know is refused, whatever its keys say.
    assert_eq!(code(&one).await, Code::Unauthenticated);
    api.refuse("tokenreviews", 503, usize::MAX);
    assert_eq!(code(&one).await, Code::Ok);
    assert_eq!(code(&two).await, Code::Ok);
    let (_, metrics) = page(app.metrics, "/metrics").await;
    assert!(metrics.lines().any(|line| line == "mesh_control_tokens_vouched_total 2"), "{metrics}");
    // Not what somebody else has signed, and of no node but the pod's.
    assert_eq!(code(&Signer::new().token(&api, "one", "node1")).await, Code::Unauthenticated);
    assert_eq!(code(&signer.token(&api, "one", "node3")).await, Code::Unauthenticated);
    // An identity that does not run there stays out of reach.
    assert_eq!(code(&signer.token(&api, "three", "node3")).await, Code::PermissionDenied);
    // The pod goes, and comes back under its name; the other is not concerned.
    api.delete("Pod", "undermesh-system", "one");
    soon("a refusal", async { while code(&one).await != Code::Unauthenticated {} }).await;
    api.put(agent("one", "node1"));
    soon("the new pod", async { while code(&signer.token(&api, "one", "node1")).await != Code::Ok {} }).await;
    assert_eq!(code(&one).await, Code::Unauthenticated);
    assert_eq!(code(&two).await, Code::Ok);
    soon("stop", app.stop()).await;
}

#[tokio::test]
async fn hardening_B187_keys_that_cannot_be_had_replace_none() {
    let api = FakeApi::start().await;
    let folder = tempfile::tempdir().unwrap();
    let client = api_server::connect(Some(&api.kubeconfig(folder.path()))).await.unwrap();
    let keys = Keys::default();
    let known = |keys: &Keys| keys.get().map(|known| known.0.len());
    soon("nothing", keys.fetch(&client)).await.unwrap_err();
    assert_eq!(known(&keys), None);
    Signer::new().publish(&api);
    assert_eq!(soon("keys", keys.fetch(&client)).await.unwrap(), 1);
    for (what, text) in [
        ("HTML", "<html>".to_owned()),
        ("nothing", String::new()),
        ("no key", r#"{"keys":[]}"#.to_owned()),
        ("large", format!(r#"{{"keys":[],"x":"{}"}}"#, "x".repeat(1 << 20))),
    ] {
        api.page(SET, text);
        soon(what, keys.fetch(&client)).await.unwrap_err();
        assert_eq!(known(&keys), Some(1), "{what}");
    }
    Signer::new().publish(&api);
    for code in [302, 403, 500, 503] {
        api.refuse(SET, code, 1);
        soon("an error", keys.fetch(&client)).await.unwrap_err();
        assert_eq!(known(&keys), Some(1), "{code}");
    }
    // The request that was answered is the last one: nobody follows to another place.
    assert!(api.asked("GET").iter().all(|path| path == SET || path == ISSUER));
    soon("keys", keys.fetch(&client)).await.unwrap();
}
