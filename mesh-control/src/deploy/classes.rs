//! GatewayClasses: those that the leader makes, and what it says on all that are ours. Pure.

use jiff::Timestamp;
use serde_json::{Value as Json, json};

use super::standing::{Condition, since};
use crate::resource::mesh_config::IstioNames;
use crate::resource::routing::reference::CONTROLLER;

/// Names, and for people. Istio's are made only where the settings say that they are ours: elsewhere an Istio may come later, and wants its own; a Gateway of
/// theirs is served all the same as long as nobody has made the class.
const OURS: [(&str, &str); 2] = [
    ("undermesh", "Gateways at the edge of the mesh"),
    ("undermesh-waypoint", "Waypoints: what acts on requests inside of the mesh"),
];
const ISTIO_S: [(&str, &str); 2] =
    [("istio", "The same as undermesh"), ("istio-waypoint", "The same as undermesh-waypoint")];

/// What is supported, in the words of the Gateway API, for meshes. It is sorted by their names, as that API wants it.
const MESH: [&str; 23] = [
    "GRPCRoute",
    "HTTPRoute",
    "HTTPRouteBackendProtocolH2C",
    "HTTPRouteBackendProtocolWebSocket",
    "HTTPRouteBackendRequestHeaderModification",
    "HTTPRouteBackendTimeout",
    "HTTPRouteCORS",
    "HTTPRouteDestinationPortMatching",
    "HTTPRouteHostRewrite",
    "HTTPRouteMethodMatching",
    "HTTPRouteNamedRouteRule",
    "HTTPRouteParentRefPort",
    "HTTPRoutePathRedirect",
    "HTTPRoutePathRewrite",
    "HTTPRoutePortRedirect",
    "HTTPRouteQueryParamMatching",
    "HTTPRouteRequestMirror",
    "HTTPRouteRequestTimeout",
    "HTTPRouteResponseHeaderModification",
    "HTTPRouteSchemeRedirect",
    "Mesh",
    "MeshClusterIPMatching",
    "ReferenceGrant",
];

/// The classes that are to be there.
pub fn wanted(names: IstioNames) -> Vec<Json> {
    let istio_s = if names == IstioNames::Own { &ISTIO_S[..] } else { &[] };
    let object = |(name, description): &(&str, &str)| {
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "GatewayClass",
            "metadata": {
                "name": name,
                "labels": { "app.kubernetes.io/managed-by": "mesh-control", "app.kubernetes.io/part-of": "undermesh" },
            },
            "spec": { "controllerName": CONTROLLER, "description": description },
        })
    };
    OURS.iter().chain(istio_s).map(object).collect()
}

/// Whether a class is ours, whoever has made it.
pub fn is_ours(class: &Json) -> bool {
    class["spec"]["controllerName"] == CONTROLLER
}

/// What is applied to the status of a class of ours; `None` if it stands there.
pub fn status(class: &Json, now: Timestamp) -> Option<Json> {
    let generation = class.pointer("/metadata/generation").and_then(Json::as_i64).unwrap_or_default();
    let is_refused = class["spec"].get("parametersRef").is_some_and(|parameters| !parameters.is_null());
    let accepted = Condition {
        kind: "Accepted",
        holds: !is_refused,
        reason: if is_refused { "InvalidParameters" } else { "Accepted" },
        message: match is_refused {
            true => "spec.parametersRef is not supported; name a ConfigMap in `spec.infrastructure.parametersRef` of Gateways".into(),
            false => "Gateways of the class are served".to_owned(),
        },
    };
    let empty = json!([]);
    let before = class.pointer("/status/conditions").unwrap_or(&empty);
    let condition = since(before, &accepted, generation, now);
    let features: Vec<Json> = features(class).iter().map(|name| json!({ "name": name })).collect();
    let is_there = before.as_array().is_some_and(|all| all.contains(&condition))
        && class.pointer("/status/supportedFeatures").and_then(Json::as_array) == Some(&features);
    (!is_there).then(|| json!({ "conditions": [condition], "supportedFeatures": features }))
}

/// What is claimed of a class. Of gateways at the edge nothing is until their listeners stand.
fn features(class: &Json) -> &'static [&'static str] {
    let name = class.pointer("/metadata/name").and_then(Json::as_str).unwrap_or_default();
    if name.ends_with("-waypoint") { &MESH } else { &[] }
}
