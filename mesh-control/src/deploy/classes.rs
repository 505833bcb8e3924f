//! GatewayClasses, and the mesh as an object where the cluster has that kind (XMesh): those that the leader makes, and what it says on all that are ours.
//! Pure.

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

/// What is supported in meshes, in the words of the Gateway API: just that for which tests of its conformance suite for meshes have passed
/// (`cargo xtask conformance`). It is sorted by names, as that API wants it.
const MESH: [&str; 17] = [
    "GRPCRoute",
    "HTTPRoute",
    "HTTPRoute303RedirectStatusCode",
    "HTTPRoute307RedirectStatusCode",
    "HTTPRoute308RedirectStatusCode",
    "HTTPRouteParentRefPort",
    "HTTPRouteResponseHeaderModification",
    "Mesh",
    "MeshClusterIPMatching",
    "MeshConsumerRoute",
    "MeshHTTPRouteBackendRequestHeaderModification",
    "MeshHTTPRouteNamedRouteRule",
    "MeshHTTPRouteQueryParamMatching",
    "MeshHTTPRouteRedirectPath",
    "MeshHTTPRouteRedirectPort",
    "MeshHTTPRouteRewritePath",
    "MeshHTTPRouteSchemeRedirect",
];

/// What is supported at gateways, in the same words and by the same rule, with the tests of that suite for gateways.
const GATEWAYS: [&str; 46] = [
    "BackendTLSPolicy",
    "BackendTLSPolicySANValidation",
    "GRPCRoute",
    "GRPCRouteNamedRouteRule",
    "Gateway",
    "GatewayAddressEmpty",
    "GatewayBackendClientCertificate",
    "GatewayFrontendClientCertificateValidation",
    "GatewayFrontendClientCertificateValidationInsecureFallback",
    "GatewayHTTPListenerIsolation",
    "GatewayHTTPSListenerDetectMisdirectedRequests",
    "GatewayInfrastructure",
    "GatewayPort8080",
    "GatewayStaticAddresses",
    "HTTPRoute",
    "HTTPRoute303RedirectStatusCode",
    "HTTPRoute307RedirectStatusCode",
    "HTTPRoute308RedirectStatusCode",
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
    "HTTPRouteRequestMultipleMirrors",
    "HTTPRouteRequestPercentageMirror",
    "HTTPRouteRequestTimeout",
    "HTTPRouteResponseHeaderModification",
    "HTTPRouteRetry",
    "HTTPRouteSchemeRedirect",
    "ListenerSet",
    "ReferenceGrant",
    "TCPRoute",
    "TLSRoute",
    "TLSRouteModeMixed",
    "TLSRouteModeTerminate",
    "UDPRoute",
];

/// The mesh, where the cluster has the kind for it.
pub fn mesh() -> Json {
    json!({
        "apiVersion": "gateway.networking.x-k8s.io/v1alpha1",
        "kind": "XMesh",
        "metadata": {
            "name": "undermesh",
            "labels": { "app.kubernetes.io/managed-by": "mesh-control", "app.kubernetes.io/part-of": "undermesh" },
        },
        "spec": { "controllerName": CONTROLLER, "description": "Routes of services count, at their waypoints" },
    })
}

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

/// Whether a class or a mesh is ours, whoever has made it.
pub fn is_ours(class: &Json) -> bool {
    class["spec"]["controllerName"] == CONTROLLER
}

/// What is applied to the status of a class or mesh of ours; `None` if it stands there.
pub fn status(class: &Json, now: Timestamp) -> Option<Json> {
    let generation = class.pointer("/metadata/generation").and_then(Json::as_i64).unwrap_or_default();
    let is_refused = class["spec"].get("parametersRef").is_some_and(|parameters| !parameters.is_null());
    let is_mesh = class["kind"] == "XMesh";
    let accepted = Condition {
        kind: "Accepted",
        holds: !is_refused,
        reason: if is_refused { "InvalidParameters" } else { "Accepted" },
        message: match (is_refused, is_mesh) {
            (true, true) => "spec.parametersRef is not supported; what is set of a mesh is in the ConfigMap of the mesh settings".to_owned(),
            (true, false) => "spec.parametersRef is not supported; name a ConfigMap in `spec.infrastructure.parametersRef` of Gateways".to_owned(),
            (false, true) => "routes of services count, at their waypoints".to_owned(),
            (false, false) => "Gateways of the class are served".to_owned(),
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

/// What is claimed of a mesh or class.
fn features(class: &Json) -> &'static [&'static str] {
    let name = class.pointer("/metadata/name").and_then(Json::as_str).unwrap_or_default();
    if class["kind"] == "XMesh" || name.ends_with("-waypoint") { &MESH } else { &GATEWAYS }
}
