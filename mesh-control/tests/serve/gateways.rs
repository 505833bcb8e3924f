//! Gateways with their own tokens: each is sent what it listens for, and gets its own identity.

use std::collections::HashMap;

use mesh_core::listener::Serves;
use mesh_proto::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE, CERTIFICATES_TYPE, CLUSTERS_TYPE, LISTENERS_TYPE, ROUTE_TABLE_TYPE, convert,
};

use super::support::{Agent, Plane};

const ALL: [&str; 6] =
    [ADDRESS_TYPE, AUTHORIZATION_TYPE, CLUSTERS_TYPE, ROUTE_TABLE_TYPE, CERTIFICATES_TYPE, LISTENERS_TYPE];

/// Two gateways; one has a pod and a route.
const MESH: &str = r#"
apiVersion: v1
kind: Node
metadata: {name: node1}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, clusterIP: 198.18.200.1, ports: [{port: 80}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge, namespace: shop}
spec: {gatewayClassName: undermesh, listeners: [{name: http, port: 80, protocol: HTTP, hostname: "*.example.com"}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: other, namespace: shop}
spec: {gatewayClassName: undermesh, listeners: [{name: http, port: 81, protocol: HTTP}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: shop}
spec: {parentRefs: [{name: edge}], hostnames: [web.example.com], rules: [{backendRefs: [{name: web, port: 80}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: edge-1, namespace: shop, labels: {gateway.networking.k8s.io/gateway-name: edge}}
spec: {nodeName: node1, serviceAccountName: edge, containers: [{name: c}]}
status: {phase: Running, podIP: 198.18.1.7, conditions: [{type: Ready, status: "True"}]}
"#;

async fn stream(plane: &Plane, token: &str) -> Agent {
    Agent::open_for(plane.channel().await, &plane.token(token), "node1", &ALL, HashMap::new()).await.unwrap()
}

#[tokio::test]
async fn a_gateway_is_sent_what_it_listens_for_and_nobody_else_is() {
    let plane = Plane::start(&[("mesh.yaml", MESH)], &[]).await;
    let mut edge = stream(&plane, "waypoint-shop_edge").await;
    edge.until("its listeners", |held| held.contains_key("Listeners shop/edge")).await;
    let read = convert::listeners(edge.bytes("Listeners shop/edge")).unwrap();
    assert_eq!((read.closed, read.closed_rules), (Vec::new(), Vec::new()));
    let listener = read.listeners.port(80).unwrap().named(Some("web.example.com")).unwrap();
    assert_eq!((&*listener.name, &*listener.gateway), ("Gateway shop/edge http", "shop/edge"));
    let Serves::Http(table) = &listener.serves else { panic!("{listener:?}") };
    let hosts: Vec<String> = table.hosts().iter().flat_map(|host| &host.hosts).map(ToString::to_string).collect();
    assert_eq!(hosts, ["web.example.com"]);
    assert!(read.listeners.port(81).is_none() && !edge.held.contains_key("Listeners shop/other"));

    let mut agent = stream(&plane, "node1").await;
    agent.until("addresses", |held| held.contains_key("shop/web.shop.svc.cluster.local")).await;
    assert!(!agent.held.keys().any(|name| name.starts_with("Listeners")));
}
