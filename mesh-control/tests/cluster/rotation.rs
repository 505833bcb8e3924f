//! Two replicas and a signer that is plugged in: the roots that they trust, show, and give to namespaces and the webhook, at every moment.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mesh_control::webhook::registration;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::plane::{bookinfo, eventually, roots, start};
use super::*;
use crate::support::{connect, page};

const HOME: &str = "undermesh-system";

/// A root and a signer below it, as the Secret that Istio's manual makes.
fn cacerts() -> (Json, String) {
    let authority = |name: &str| {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        (rcgen::KeyPair::generate().unwrap(), params)
    };
    let ((root_key, root), (key, signer)) = (authority("plugged root"), authority("plugged signer"));
    let root_pem = root.self_signed(&root_key).unwrap().pem();
    let signer_pem = signer.signed_by(&key, &rcgen::Issuer::from_params(&root, &root_key)).unwrap().pem();
    let encode = |text: &str| STANDARD.encode(text);
    let secret = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "cacerts", "namespace": HOME }, "data": {
        "ca-cert.pem": encode(&signer_pem), "ca-key.pem": encode(&key.serialize_pem()),
        "cert-chain.pem": encode(&format!("{signer_pem}{root_pem}")), "root-cert.pem": encode(&root_pem) } });
    (secret, root_pem)
}

fn count(bundle: &str) -> usize {
    CertificateDer::pem_slice_iter(bundle.as_bytes()).count()
}

#[tokio::test]
async fn hardening_F43_features_CA_5_replicas_rotate_together_and_nobody_meets_a_stranger() {
    let api = bookinfo().await;
    let namespace = |name| json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
    [HOME, "shop"].into_iter().for_each(|name| api.put(namespace(name)));
    api.put(json!({ "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
        "metadata": { "name": registration::NAME },
        "webhooks": [{ "name": "a", "clientConfig": { "service": { "name": "mesh-control" } }, "failurePolicy": "Ignore" }] }));
    let overlap = ["--root-overlap", "15s"];
    let (one, two) = tokio::join!(start(&api, &overlap), start(&api, &overlap));
    let copy = |namespace: &str| roots(&api, namespace, "undermesh-root-cert");
    let bundle = || {
        let config = api.get("ValidatingWebhookConfiguration", "", registration::NAME).unwrap();
        let text = config["webhooks"][0]["clientConfig"]["caBundle"].as_str().unwrap_or_default().to_owned();
        String::from_utf8(STANDARD.decode(text).unwrap()).unwrap()
    };
    let kept = |name: &str| {
        let secret = api.get("Secret", HOME, "undermesh-ca").unwrap();
        let text = secret["data"][name].as_str().unwrap_or_default().to_owned();
        String::from_utf8(STANDARD.decode(text).unwrap()).unwrap()
    };
    eventually("copies", || [HOME, "shop", "bookinfo"].iter().all(|name| copy(name).is_some())).await;
    eventually("a bundle of the webhook", || !bundle().is_empty()).await;
    let (secret, new) = cacerts();
    api.put(secret.clone());
    let mut both = false;
    tokio::time::timeout(2 * support::DEADLINE, async {
        loop {
            // Whatever is to be had now is enough for whoever connects now.
            let (home, shop, webhook) = (copy(HOME).unwrap(), copy("shop").unwrap(), bundle());
            let was_signed = kept("ca-key.pem").contains("CERTIFICATE");
            for app in [&one, &two] {
                connect(app.listen, &home, "127.0.0.1").await.unwrap();
                connect(app.listen, &shop, "127.0.0.1").await.unwrap();
                connect(app.webhook.unwrap(), &webhook, "127.0.0.1").await.unwrap();
            }
            // The new one signs when everybody has both roots, not before.
            if !both && was_signed {
                both = true;
                let maps = [HOME, "shop", "bookinfo"].map(|name| copy(name).unwrap());
                assert!(maps.iter().chain([&webhook]).all(|text| count(text) == 2), "{maps:?} {webhook}");
            }
            if both && home == new && shop == new && webhook == new {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("the rotation ends");
    assert_eq!((kept("root-cert.pem"), kept("next-ca-key.pem")), (new.clone(), String::new()));
    for app in [&one, &two] {
        connect(app.listen, &new, "127.0.0.1").await.unwrap();
        connect(app.webhook.unwrap(), &new, "127.0.0.1").await.unwrap();
    }
    // A bad one changes nothing, and somebody says so.
    let mut bad = secret;
    bad["data"]["ca-key.pem"] = json!(STANDARD.encode("garbage"));
    api.put(bad);
    eventually("an event", || {
        let is_told = |event: &Json| event["reason"] == "NotInForce" && event["involvedObject"]["name"] == "cacerts";
        api.objects("Event").iter().any(is_told)
    })
    .await;
    soon("diagnoses", async {
        for app in [&one, &two] {
            while !page(app.metrics, "/debug/diagnoses").await.1.contains("Secret undermesh-system/cacerts") {}
        }
    })
    .await;
    assert_eq!(copy("shop"), Some(new));
    soon("stop", one.stop()).await;
    soon("stop", two.stop()).await;
}

#[tokio::test]
async fn features_CA_5_a_new_installation_has_the_signer_that_is_plugged_in_or_none() {
    let api = bookinfo().await;
    let (secret, root) = cacerts();
    let mut bad = secret.clone();
    bad["data"]["root-cert.pem"] = json!("");
    api.put(bad);
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = api.kubeconfig(folder.path()).display().to_string();
    let fixed = ["mesh-control", "--kube", "--kubeconfig", &kubeconfig];
    let places = ["--listen", "--metrics", "--webhook"].into_iter().flat_map(|flag| [flag, "127.0.0.1:0"]);
    let args = mesh_control::config::parse(fixed.into_iter().chain(places)).map_err(|(e, _)| e).unwrap();
    let started = soon("a start", mesh_control::app::App::start(args.check().unwrap())).await;
    let error = started.map(drop).unwrap_err().to_string();
    assert!(error.contains("Secret undermesh-system/cacerts: root-cert.pem is missing or empty"), "{error}");
    assert!(api.get("Secret", HOME, "undermesh-ca").is_none());
    api.put(secret);
    let app = start(&api, &[]).await;
    connect(app.listen, &root, "127.0.0.1").await.unwrap();
    eventually("a copy", || roots(&api, "bookinfo", "undermesh-root-cert") == Some(root.clone())).await;
    soon("stop", app.stop()).await;
}
