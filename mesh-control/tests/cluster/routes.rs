//! What says where requests go: followed once its kind is installed, kept in its last good form, and nothing that a start waits for.

use super::*;

pub fn kind(plural: &str, group: &str, versions: &[&str]) -> Json {
    let versions: Vec<Json> = versions.iter().map(|name| json!({ "name": name, "served": true })).collect();
    json!({ "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": format!("{plural}.{group}") }, "spec": { "versions": versions } })
}

fn service(spec: Json) -> Json {
    json!({ "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": { "name": "reviews", "namespace": "shop" }, "spec": spec })
}

fn hosts(update: &Update) -> Vec<String> {
    update.objects.routes.virtual_services.values().flat_map(|one| one.spec.hosts.clone()).collect()
}

#[tokio::test]
async fn routes_are_followed_once_their_kind_is_installed_and_keep_their_last_good_form() {
    let api = istio().await;
    let mut following = Following::start(&api).await;
    assert_eq!(following.update.diagnoses, []);
    let http = json!([{ "route": [{ "destination": { "host": "reviews" } }] }]);
    api.put(kind("virtualservices", "networking.istio.io", &["v1alpha3"]));
    api.put(service(json!({ "hosts": ["a"], "http": http })));
    following.until("a route", |update| hosts(update) == ["a"]).await;
    api.put(service(json!({ "hosts": ["b"], "htp": http })));
    following.until("a mistake", |update| !update.diagnoses.is_empty()).await;
    assert_eq!(hosts(&following.update), ["a"]);
    let said = &following.update.diagnoses[0];
    assert_eq!((said.object.as_str(), said.field.as_str()), ("VirtualService shop/reviews", "spec.htp"));
    assert_eq!(said.help.as_deref(), Some("did you mean `http`?"));
    api.put(service(json!({ "hosts": ["c"], "http": http })));
    following.until("another route", |update| hosts(update) == ["c"] && update.diagnoses.is_empty()).await;
    api.delete("VirtualService", "shop", "reviews");
    following.until("none", |update| hosts(update).is_empty()).await;
}

#[tokio::test]
async fn a_start_does_not_wait_for_routes_that_cannot_be_had() {
    let api = istio().await;
    api.put(pod("p1", "198.18.1.1"));
    api.put(kind("virtualservices", "networking.istio.io", &["v1"]));
    api.put(kind("httproutes", "gateway.networking.k8s.io", &["v9"]));
    api.put(service(json!({ "hosts": ["a"], "http": [{ "redirect": { "uri": "/" } }] })));
    api.refuse("virtualservices", 403, 20);
    let mut following = Following::start(&api).await;
    assert_eq!(following.update.objects.pods.len(), 1);
    let refused = |update: &Update, kind: &str| {
        let text = format!("objects of kind {kind} cannot be followed");
        update.diagnoses.iter().any(|d| d.message.starts_with(&text))
    };
    assert!(refused(&following.update, "HTTPRoute"), "{:?}", following.update.diagnoses);
    following.until("a route", |update| hosts(update) == ["a"] && !refused(update, "VirtualService")).await;
}

#[tokio::test]
async fn hardening_B144_a_route_is_told_in_its_status_where_it_leads() {
    let api = istio().await;
    api.put(kind("httproutes", "gateway.networking.k8s.io", &["v1"]));
    let service = |name: &str| {
        json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "namespace": "shop" },
            "spec": { "ports": [{ "port": 80 }], "selector": { "app": name } } })
    };
    api.put(service("reviews"));
    let theirs = json!({ "parentRef": { "name": "gate" }, "controllerName": "example.com/c", "conditions": [] });
    let parents = json!([{ "group": "", "kind": "Service", "name": "reviews" }, { "name": "gate" }]);
    let rules = json!([{ "backendRefs": [{ "name": "reviews", "port": 80 }, { "name": "ratings", "port": 80 }] }]);
    api.put(json!({ "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": { "name": "r", "namespace": "shop", "generation": 1 },
        "spec": { "parentRefs": parents, "rules": rules }, "status": { "parents": [theirs] } }));
    let plane = super::plane::start(&api, &[]).await;
    let reasons = || {
        let route = api.get("HTTPRoute", "shop", "r").unwrap();
        let parents = route["status"]["parents"].as_array().unwrap().clone();
        assert!(parents.contains(&theirs), "what others say stays");
        let ours = parents.iter().filter(|one| one["controllerName"] == "undermesh.io/gateway-controller");
        let ours: Vec<&Json> = ours.collect();
        assert!(ours.iter().all(|one| one["parentRef"]["name"] == "reviews"), "of our parents only");
        let conditions = ours.iter().flat_map(|one| one["conditions"].as_array().unwrap());
        conditions.map(|c| c["reason"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    super::plane::eventually("a missing backend", || reasons() == ["Pending", "BackendNotFound"]).await;
    api.put(service("ratings"));
    super::plane::eventually("it is there", || reasons() == ["Pending", "ResolvedRefs"]).await;
    api.delete("Service", "shop", "reviews");
    super::plane::eventually("no parent", || reasons() == ["NoMatchingParent", "BackendNotFound"]).await;
    soon("stop", plane.stop()).await;
}

#[tokio::test]
async fn what_depends_on_a_kind_that_was_never_heard_of_is_told_when_it_is() {
    let api = istio().await;
    for plural in ["gateways", "httproutes", "referencegrants"] {
        api.put(kind(plural, "gateway.networking.k8s.io", &["v1"]));
    }
    for (namespace, name) in [("shop", "reviews"), ("far", "stock")] {
        api.put(json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "namespace": namespace },
            "spec": { "ports": [{ "port": 80 }], "selector": { "app": name } } }));
    }
    // Routes of services ask for no grant.
    api.put(json!({ "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": { "name": "edge", "namespace": "shop" },
        "spec": { "gatewayClassName": "undermesh", "listeners": [{ "name": "http", "port": 80, "protocol": "HTTP" }] } }));
    let route = |name: &str, backend: Json| {
        json!({ "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "metadata": { "name": name, "namespace": "shop", "generation": 1 },
            "spec": { "parentRefs": [{ "name": "edge" }], "rules": [{ "backendRefs": [backend] }] } })
    };
    // Things are said in the order of names.
    api.put(route("far", json!({ "name": "stock", "namespace": "far", "port": 80 })));
    api.put(route("near", json!({ "name": "reviews", "port": 80 })));
    let reason = |name: &str| {
        let route = api.get("HTTPRoute", "shop", name).unwrap();
        route["status"]["parents"][0]["conditions"][1]["reason"].as_str().map(str::to_owned)
    };
    api.refuse("referencegrants", 403, usize::MAX);
    let plane = super::plane::start(&api, &[]).await;
    super::plane::eventually("what is known", || reason("near").as_deref() == Some("ResolvedRefs")).await;
    assert_eq!(reason("far"), None, "nobody knows whether there is a grant");
    api.relent();
    super::plane::eventually("that there is none", || reason("far").as_deref() == Some("RefNotPermitted")).await;
    soon("stop", plane.stop()).await;
}

#[tokio::test]
async fn what_cannot_be_read_is_told_so_also_by_a_replica_that_never_knew_a_good_form() {
    let api = istio().await;
    api.put(kind("httproutes", "gateway.networking.k8s.io", &["v1"]));
    api.put(kind("virtualservices", "networking.istio.io", &["v1"]));
    api.put(json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "reviews", "namespace": "shop" },
        "spec": { "ports": [{ "port": 80 }], "selector": { "app": "reviews" } } }));
    // As it was told when it could be read.
    let parent = json!({ "group": "", "kind": "Service", "name": "reviews" });
    let is = |r#type: &str| json!({ "type": r#type, "status": "True", "reason": r#type, "message": "", "observedGeneration": 1 });
    let before = json!([{ "parentRef": parent, "controllerName": "undermesh.io/gateway-controller",
        "conditions": [is("Accepted"), is("ResolvedRefs")] }]);
    api.put(json!({ "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": { "name": "r", "namespace": "shop", "generation": 2 },
        "spec": { "parentRefs": [parent], "rules": [{ "backendRefs": [{ "name": "reviews" }] }] },
        "status": { "parents": before } }));
    let mut wrong = service(json!({ "hosts": ["a"], "htp": [] }));
    wrong["metadata"]["generation"] = json!(1);
    api.put(wrong);
    let plane = super::plane::start(&api, &[]).await;
    let conditions = |kind: &str, name: &str, path: &str| {
        let object = api.get(kind, "shop", name).unwrap();
        let all = object.pointer(path).and_then(Json::as_array).cloned().unwrap_or_default();
        let text = |one: &Json, field: &str| one[field].as_str().unwrap_or_default().to_owned();
        all.iter().map(|one| (text(one, "type"), text(one, "status"), text(one, "message"))).collect::<Vec<_>>()
    };
    let tells = |all: Vec<(String, String, String)>, r#type: &str, why: &str| matches!(all.as_slice(), [(one, status, message)] if one == r#type && status == "False" && message.contains(why));
    let route = || conditions("HTTPRoute", "r", "/status/parents/0/conditions");
    super::plane::eventually("a route", || tells(route(), "Accepted", "a Service needs a port")).await;
    let istio_s = || conditions("VirtualService", "reviews", "/status/conditions");
    super::plane::eventually("an object of Istio's", || {
        tells(istio_s(), "undermesh.io/Accepted", "did you mean `http`?")
    })
    .await;
    let has_event = |kind: &str| api.objects("Event").iter().any(|event| event["involvedObject"]["kind"] == kind);
    super::plane::eventually("events", || has_event("HTTPRoute") && has_event("VirtualService")).await;
    soon("stop", plane.stop()).await;
}
