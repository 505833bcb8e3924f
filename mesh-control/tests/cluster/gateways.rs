//! What serves Gateways: made, told, made again, and taken away by the leader; and what is somebody else's stays.

use super::plane::{eventually, start};
use super::*;
use crate::support::page;

fn kind(plural: &str) -> Json {
    json!({ "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": format!("{plural}.gateway.networking.k8s.io") }, "spec": { "versions": [{ "name": "v1", "served": true }] } })
}

fn waypoint(name: &str) -> Json {
    json!({ "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": { "name": name, "namespace": "shop", "generation": 1 },
        "spec": { "gatewayClassName": "undermesh-waypoint", "listeners": [{ "name": "mesh", "port": 15008, "protocol": "HBONE" }] } })
}

/// Status and message of a condition of a Gateway.
fn told(api: &FakeApi, name: &str, kind: &str) -> Option<(String, String)> {
    let gateway = api.get("Gateway", "shop", name)?;
    let condition = gateway["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == kind)?.clone();
    let text = |field: &str| condition[field].as_str().unwrap().to_owned();
    Some((text("status"), text("message")))
}

#[tokio::test]
async fn the_leader_makes_what_serves_a_gateway_and_touches_nothing_else() {
    const MADE: [&str; 3] = ["ServiceAccount", "Deployment", "Service"];
    let api = istio().await;
    for plural in ["gateways", "gatewayclasses"] {
        api.put(kind(plural));
    }
    api.put(json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "shop" } }));
    let theirs = json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "taken", "namespace": "shop" },
        "spec": { "clusterIPs": ["198.19.0.1"], "clusterIP": "198.19.0.1", "ports": [{ "port": 80 }] } });
    api.put(theirs.clone());
    api.put(waypoint("wp"));
    api.put(waypoint("taken"));
    // A refusal is no end.
    api.refuse("PATCH deployments", 403, 1);
    let app = start(&api, &["--gateway-image", "registry.example/mesh-waypoint:1"]).await;
    eventually("classes", || {
        api.get("GatewayClass", "", "undermesh-waypoint")
            .is_some_and(|c| c["status"]["conditions"][0]["status"] == "True")
    })
    .await;
    eventually("what serves it", || MADE.iter().all(|kind| api.get(kind, "shop", "wp").is_some())).await;
    let deployment = api.get("Deployment", "shop", "wp").unwrap();
    let image = &deployment["spec"]["template"]["spec"]["containers"][0]["image"];
    assert_eq!(image, "registry.example/mesh-waypoint:1");
    eventually("it is told", || told(&api, "wp", "Accepted").is_some_and(|(status, _)| status == "True")).await;

    // Somebody else's stays as it is, and that is said.
    eventually("why not", || {
        told(&api, "taken", "Programmed")
            .is_some_and(|(status, why)| status == "False" && why.contains("not of this gateway"))
    })
    .await;
    assert_eq!(api.get("Service", "shop", "taken").unwrap()["spec"], theirs["spec"]);

    // What is taken away comes again.
    api.delete("ServiceAccount", "shop", "wp");
    eventually("another one", || api.get("ServiceAccount", "shop", "wp").is_some()).await;

    api.delete("Gateway", "shop", "wp");
    eventually("nothing of it", || MADE.iter().all(|kind| api.get(kind, "shop", "wp").is_none())).await;
    assert!(api.get("Service", "shop", "taken").is_some());
    app.stop().await;
}

#[tokio::test]
async fn features_GA_2_an_autoscaler_and_a_budget_come_and_go_with_the_keys_of_a_config_map() {
    const ASKED: [&str; 2] = ["HorizontalPodAutoscaler", "PodDisruptionBudget"];
    let api = istio().await;
    for plural in ["gateways", "gatewayclasses"] {
        api.put(kind(plural));
    }
    api.put(json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "shop" } }));
    let parameters = |name: &str, data: &Json| json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name, "namespace": "shop" }, "data": data });
    let both = json!({ "horizontalPodAutoscaler": "spec: {maxReplicas: 4}", "podDisruptionBudget": "spec: {minAvailable: 1}" });
    api.put(parameters("both", &both));
    api.put(parameters("none", &json!({})));
    let with = |config_map: &str| {
        let mut gateway = waypoint("wp");
        let reference = json!({ "group": "", "kind": "ConfigMap", "name": config_map });
        gateway["spec"]["infrastructure"] = json!({ "parametersRef": reference });
        gateway
    };
    let theirs = json!({ "apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
        "metadata": { "name": "other", "namespace": "shop" }, "spec": { "minAvailable": 2 } });
    api.put(theirs);
    api.put(with("both"));
    // An older chart has no rights for one of them: the Gateway is served all the same, and told.
    api.refuse("PATCH horizontalpodautoscalers", 403, 1);
    let app = start(&api, &["--gateway-image", "registry.example/mesh-waypoint:1"]).await;
    eventually("both", || ASKED.iter().all(|kind| api.get(kind, "shop", "wp").is_some())).await;
    let scaler = api.get("HorizontalPodAutoscaler", "shop", "wp").unwrap();
    assert_eq!((&scaler["spec"]["maxReplicas"], &scaler["spec"]["scaleTargetRef"]["name"]), (&json!(4), &json!("wp")));
    api.delete("PodDisruptionBudget", "shop", "wp");
    eventually("another one", || api.get("PodDisruptionBudget", "shop", "wp").is_some()).await;

    // Of the class, too: a Gateway that names nothing has what is for all of them.
    let mut plain = waypoint("plain");
    plain["spec"]["gatewayClassName"] = json!("undermesh-waypoint");
    let labels = json!({ "gateway.istio.io/defaults-for-class": "undermesh-waypoint" });
    api.put(json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "defaults", "namespace": "undermesh-system", "labels": labels },
        "data": { "podDisruptionBudget": "spec: {maxUnavailable: 1}" } }));
    app.stop().await;
    api.put(plain);
    let app = start(&api, &["--gateway-image", "registry.example/mesh-waypoint:1"]).await;
    eventually("that of its class", || api.get("PodDisruptionBudget", "shop", "plain").is_some()).await;
    assert!(api.get("HorizontalPodAutoscaler", "shop", "plain").is_none());
    api.delete("ConfigMap", "undermesh-system", "defaults");

    api.put(with("none"));
    eventually("neither", || ASKED.iter().all(|kind| api.get(kind, "shop", "wp").is_none())).await;
    assert!(api.get("Deployment", "shop", "wp").is_some() && api.get("PodDisruptionBudget", "shop", "other").is_some());
    app.stop().await;
}

#[tokio::test]
async fn without_an_image_nothing_is_made() {
    let api = istio().await;
    for plural in ["gateways", "gatewayclasses"] {
        api.put(kind(plural));
    }
    api.put(json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "shop" } }));
    api.put(waypoint("wp"));
    let app = start(&api, &[]).await;
    eventually("a leader", || api.get("Lease", "undermesh-system", "mesh-control").is_some()).await;
    assert_eq!(api.requests("WATCH", "/apis/apps/v1/deployments"), 0);
    assert!(api.get("Deployment", "shop", "wp").is_none() && api.get("GatewayClass", "", "undermesh").is_none());
    app.stop().await;
}

#[tokio::test]
async fn features_GA_9_listeners_of_another_namespace_are_added_to_a_gateway_and_told() {
    let api = istio().await;
    for plural in ["gateways", "gatewayclasses", "listenersets"] {
        api.put(kind(plural));
    }
    for namespace in ["shop", "far"] {
        api.put(json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": namespace } }));
    }
    let edge = |from: &str| {
        json!({ "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
            "metadata": { "name": "edge", "namespace": "shop", "generation": 1 },
            "spec": { "gatewayClassName": "undermesh", "allowedListeners": { "namespaces": { "from": from } },
                "listeners": [{ "name": "http", "port": 80, "protocol": "HTTP" }] } })
    };
    api.put(edge("All"));
    api.put(json!({ "apiVersion": "gateway.networking.k8s.io/v1", "kind": "ListenerSet",
        "metadata": { "name": "more", "namespace": "far", "generation": 7 },
        "spec": { "parentRef": { "name": "edge", "namespace": "shop" }, "listeners": [
            { "name": "http", "port": 8080, "protocol": "HTTP" }, { "name": "raw", "port": 80, "protocol": "TCP" }] } }));
    let app = start(&api, &["--gateway-image", "registry.example/mesh-waypoint:1"]).await;
    let status = || api.get("ListenerSet", "far", "more").map(|set| set["status"].clone()).unwrap_or_default();
    let reason = |at: &Json, kind: &str| {
        let all = at["conditions"].as_array().cloned().unwrap_or_default();
        let one = all.iter().find(|one| one["type"] == kind).cloned();
        one.map_or_else(String::new, |one| format!("{} {}", one["status"], one["reason"]).replace('"', ""))
    };
    eventually("it is told", || reason(&status(), "Accepted") == "True ListenersNotValid").await;
    assert_eq!(reason(&status()["listeners"][1], "Conflicted"), "True ProtocolConflict");
    assert_eq!(status()["conditions"][0]["observedGeneration"], 7);
    let attached = || api.get("Gateway", "shop", "edge").map(|edge| edge["status"]["attachedListenerSets"].clone());
    eventually("its Gateway is told", || attached() == Some(json!(1))).await;
    let ports = || {
        let ports = api.get("Service", "shop", "edge-undermesh")?["spec"]["ports"].as_array()?.clone();
        Some(ports.iter().filter_map(|one| one["port"].as_u64()).collect::<Vec<_>>())
    };
    eventually("its port", || ports() == Some(vec![15021, 80, 8080])).await;

    api.put(edge("Same"));
    eventually("it is refused", || reason(&status(), "Programmed") == "False NotAllowed").await;
    eventually("none of it is left", || ports() == Some(vec![15021, 80]) && attached() == Some(json!(0))).await;
    app.stop().await;
}

#[tokio::test]
async fn features_B18_only_secrets_that_gateways_name_are_asked_for() {
    let api = istio().await;
    for plural in ["gateways", "gatewayclasses", "referencegrants"] {
        api.put(kind(plural));
    }
    api.put(json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "shop" } }));
    let edge = |secret: Json| {
        json!({ "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
            "metadata": { "name": "edge", "namespace": "shop", "generation": 1 },
            "spec": { "gatewayClassName": "undermesh", "listeners": [{ "name": "https", "port": 443, "protocol": "HTTPS",
                "tls": { "certificateRefs": [secret] } }] } })
    };
    let secret = |name: &str, crt: &str| {
        json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name, "namespace": "shop" },
            "data": { "tls.crt": crt, "tls.key": "aHVudGVyMg==" } })
    };
    api.put(edge(json!({ "name": "web" })));
    api.put(secret("web", "!"));
    api.put(secret("other", "!"));
    let app = start(&api, &["--gateway-image", "registry.example/mesh-waypoint:1"]).await;
    // A start has heard of what is named.
    let diagnoses = async || page(app.metrics, "/debug/diagnoses").await.1;
    assert!(diagnoses().await.contains("Secret shop/web: tls.crt is no base64"), "{}", diagnoses().await);
    let told = async |text: &str| soon(text, async { while !diagnoses().await.contains(text) {} }).await;
    let asked = |method: &str| {
        let mut asked = api.asked(method);
        asked.retain(|path| path.ends_with("/secrets"));
        asked.dedup();
        asked
    };
    eventually("a watch", || !asked("WATCH").is_empty()).await;
    assert_eq!((asked("GET"), asked("WATCH")), (vec![SECRETS.to_owned()], vec![SECRETS.to_owned()]));
    api.put(secret("web", "AAAA"));
    told("Secret shop/web: there is no certificate in its tls.crt").await;
    let listener = || api.get("Gateway", "shop", "edge")?["status"]["listeners"][0].as_object().cloned();
    let unresolved = || {
        let listener = listener()?;
        let all = listener["conditions"].as_array()?.clone();
        let one = all.into_iter().find(|condition| condition["type"] == "ResolvedRefs")?;
        Some((one["status"].clone(), one["reason"].clone(), one["message"].as_str()?.to_owned()))
    };
    eventually("its status", || {
        unresolved().is_some_and(|(status, reason, why)| {
            status == "False"
                && reason == "InvalidCertificateRef"
                && why.contains("there is no certificate in its tls.crt")
        })
    })
    .await;
    api.delete("Secret", "shop", "web");
    told("there is no Secret shop/web").await;
    // Of another namespace, only with a grant.
    api.put(edge(json!({ "name": "web", "namespace": "far" })));
    told("far").await;
    assert_eq!(asked("GET"), [SECRETS]);
    app.stop().await;
}

#[tokio::test]
async fn features_GA_policies_are_told_of_gateways_and_only_what_they_name_is_asked_for() {
    let api = istio().await;
    for plural in ["gateways", "gatewayclasses", "httproutes", "backendtlspolicies", "referencegrants"] {
        api.put(kind(plural));
    }
    let object = |kind: &str, name: &str, spec: Json| {
        json!({ "apiVersion": "gateway.networking.k8s.io/v1", "kind": kind, "spec": spec,
            "metadata": { "name": name, "namespace": "shop", "generation": 1 } })
    };
    let bundle = |name: &str, text: &str| {
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name, "namespace": "shop" },
            "data": { "ca.crt": text } })
    };
    api.put(json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "shop" } }));
    api.put(json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web", "namespace": "shop" },
        "spec": { "clusterIPs": ["198.19.0.1"], "clusterIP": "198.19.0.1", "ports": [{ "port": 443 }] } }));
    let listeners = json!([{ "name": "http", "port": 80, "protocol": "HTTP" }]);
    api.put(object("Gateway", "edge", json!({ "gatewayClassName": "undermesh", "listeners": listeners })));
    let rules = json!([{ "backendRefs": [{ "name": "web", "port": 443 }] }]);
    api.put(object("HTTPRoute", "r", json!({ "parentRefs": [{ "name": "edge" }], "rules": rules })));
    let validation = json!({ "hostname": "web.example",
        "caCertificateRefs": [{ "group": "", "kind": "ConfigMap", "name": "ca" }] });
    let targets = json!([{ "group": "", "kind": "Service", "name": "web" }]);
    api.put(object("BackendTLSPolicy", "p", json!({ "targetRefs": targets, "validation": validation })));
    api.put(bundle("other", "!"));
    let app = start(&api, &[]).await;
    let told = || {
        let policy = api.get("BackendTLSPolicy", "shop", "p")?;
        let ancestors = policy["status"]["ancestors"].as_array()?.clone();
        let of = |one: &Json| {
            let conditions = one["conditions"].as_array().into_iter().flatten();
            let reasons: Vec<&str> = conditions.filter_map(|condition| condition["reason"].as_str()).collect();
            format!("{} {}", one["ancestorRef"]["name"].as_str().unwrap_or_default(), reasons.join(" "))
        };
        Some(ancestors.iter().map(of).collect::<Vec<_>>())
    };
    let becomes = async |what: &str, expected: &[&str]| {
        eventually(what, || told().is_some_and(|told| told == expected)).await;
    };
    becomes("nobody to believe", &["edge NoValidCACertificate InvalidCACertificateRef"]).await;
    let roots = rcgen::generate_simple_self_signed(vec!["a.example".to_owned()]).unwrap().cert.pem();
    api.put(bundle("ca", &roots));
    becomes("roots", &["edge Accepted ResolvedRefs"]).await;
    api.put(bundle("ca", "rubbish"));
    becomes("rubbish", &["edge NoValidCACertificate InvalidCACertificateRef"]).await;
    let own = "/api/v1/namespaces/shop/configmaps";
    for method in ["GET", "WATCH"] {
        let mut asked = api.asked(method);
        asked.retain(|path| path.contains("/namespaces/shop/configmaps"));
        assert!(!asked.is_empty() && asked.iter().all(|path| path == own), "{method} {asked:?}");
    }
    // What nobody reaches any more is told nothing.
    api.delete("HTTPRoute", "shop", "r");
    becomes("nobody", &[]).await;
    app.stop().await;
}

const SECRETS: &str = "/api/v1/namespaces/shop/secrets";
