//! Gateways with their own tokens: each is sent what it listens for and the certificates that it names, and gets its own identity.

use std::collections::HashMap;

use mesh_core::listener::Serves;
use mesh_proto::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE, CERTIFICATES_TYPE, CLUSTERS_TYPE, LISTENERS_TYPE, ROUTE_TABLE_TYPE, convert,
};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::support::{Agent, Plane, soon};

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

/// A Secret with a certificate of its own for a name, and the certificate.
fn secret(name: &str) -> (String, String) {
    let made = rcgen::generate_simple_self_signed(vec!["web.example.com".to_owned()]).unwrap();
    let [cert, key] = [made.cert.pem(), made.signing_key.serialize_pem()];
    let encode = |text: &str| STANDARD.encode(text);
    let text = format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}, namespace: shop}}\ntype: kubernetes.io/tls\n\
         data: {{tls.crt: {}, tls.key: {}}}\n",
        encode(&cert),
        encode(&key)
    );
    (text, cert)
}

#[tokio::test]
async fn features_B18_certificates_are_swapped_live_and_go_to_who_names_them() {
    const EDGE: &str = "spec: {gatewayClassName: undermesh, listeners: [{name: http, port: 80, protocol: HTTP, hostname: \"*.example.com\"}]}";
    const SECURE: &str = "spec: {gatewayClassName: undermesh, listeners: [{name: https, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: web}]}}]}";
    let mesh = MESH.replace(EDGE, SECURE);
    assert_ne!(mesh, MESH);
    let plane = Plane::start(&[("mesh.yaml", &mesh)], &[]).await;
    let told = async |text: &str| {
        soon(text, async { while !plane.page("/debug/diagnoses").await.1.contains(text) {} }).await;
    };
    told("there is no Secret shop/web").await;
    let mut edge = stream(&plane, "waypoint-shop_edge").await;
    edge.until("its listeners", |held| held.contains_key("Listeners shop/edge")).await;

    let shown = |held: &HashMap<String, mesh_proto::discovery::Resource>| {
        let bytes = held.get("Certificates shop/edge")?.resource.as_ref()?.value.clone();
        let all = convert::certificates(&bytes).unwrap().all;
        Some(all.into_iter().map(|(name, one)| (name.to_string(), one.chain.clone())).collect::<Vec<_>>())
    };
    let ((first, one), (second, two)) = (secret("web"), secret("web"));
    let (unnamed, _) = secret("unnamed");
    plane.write("unnamed.yaml", &unnamed);
    for (text, chain) in [(first, one), (second.clone(), two)] {
        plane.write("web.yaml", &text);
        let wanted = Some(vec![("shop/web".to_owned(), bytes::Bytes::from(chain))]);
        edge.until("its certificate", |held| shown(held) == wanted).await;
    }
    assert!(!plane.page("/debug/diagnoses").await.1.contains("Secret"));
    // One that is no good is in use no more, and it is told which and why.
    plane.write("web.yaml", &second.replace("tls.key: ", "tls.key: AAAA"));
    told("Secret shop/web: ").await;
    edge.until("nothing", |held| shown(held) == Some(vec![])).await;
    plane.remove("web.yaml");
    told("there is no Secret shop/web").await;

    // Whoever serves another gateway is not sent it.
    plane.write("web.yaml", &second);
    edge.until("its certificate", |held| shown(held).is_some_and(|all| all.len() == 1)).await;
    let mut agent = stream(&plane, "node1").await;
    agent.until("addresses", |held| held.contains_key("shop/web.shop.svc.cluster.local")).await;
    assert!(!agent.held.keys().any(|name| name.starts_with("Certificates")));
}
