//! Waypoints with their own tokens: what they are sent, what they are not, and which certificates they get.

use std::collections::HashMap;
use std::time::Duration;

use mesh_core::policy::GUARD;
use mesh_proto::discovery as wire;
use mesh_proto::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE, CLUSTERS_TYPE, ROUTE_TABLE_TYPE, SECURITY_TYPE, WORKLOAD_LABELS_TYPE, convert,
};
use tonic::Code;

use super::support::{Agent, Plane, csr, request, soon};

const ALL: [&str; 6] =
    [ADDRESS_TYPE, AUTHORIZATION_TYPE, SECURITY_TYPE, WORKLOAD_LABELS_TYPE, CLUSTERS_TYPE, ROUTE_TABLE_TYPE];
const OWN: &str = "spiffe://cluster.local/ns/shop/sa/wp";

/// Two waypoints; a service is bound to the first one, which has a pod.
const MESH: &str = r#"
apiVersion: v1
kind: Node
metadata: {name: node1}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/use-waypoint: wp}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, clusterIP: 198.18.200.1, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: wp, namespace: shop}
spec: {selector: {gateway.networking.k8s.io/gateway-name: wp}, clusterIP: 198.18.200.2, ports: [{port: 15008}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: shop}
spec: {gatewayClassName: undermesh-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: other, namespace: shop}
spec: {gatewayClassName: undermesh-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
apiVersion: v1
kind: Pod
metadata: {name: wp-1, namespace: shop, labels: {gateway.networking.k8s.io/gateway-name: wp}}
spec: {nodeName: node1, serviceAccountName: wp, containers: [{name: c}]}
status: {phase: Running, podIP: 198.18.1.7, conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web, version: v1}, annotations: {ambient.istio.io/redirection: enabled}}
spec: {nodeName: node1, serviceAccountName: web, containers: [{name: c}]}
status: {phase: Running, podIP: 198.18.1.8, conditions: [{type: Ready, status: "True"}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: shop}
spec: {hosts: [web], http: [{timeout: 1s, route: [{destination: {host: web, subset: v1}}]}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web, namespace: shop}
spec: {host: web, subsets: [{name: v1, labels: {version: v1}}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: viewer, namespace: shop}
spec: {targetRefs: [{group: "", kind: Service, name: web}], rules: [{to: [{operation: {methods: [GET]}}]}]}
"#;

async fn plane() -> Plane {
    Plane::start(&[("mesh.yaml", MESH)], &[]).await
}

fn token(plane: &Plane, name: &str) -> String {
    plane.token(&format!("waypoint-shop_{name}"))
}

/// A stream of a waypoint that has some of what there is.
async fn stream(plane: &Plane, name: &str, held: HashMap<String, wire::Resource>) -> Agent {
    Agent::open_for(plane.channel().await, &token(plane, name), "node1", &ALL, held).await.unwrap()
}

fn hosts(agent: &Agent, name: &str) -> Vec<String> {
    let read = convert::route_table(agent.bytes(name)).unwrap();
    assert_eq!(read.closed, []);
    read.table.hosts().iter().map(|host| host.name.to_string()).collect()
}

/// What agents are sent. The policy has the web's pod refuse what goes around the waypoint.
const SHARED: [&str; 6] = [
    "Kubernetes//Pod/shop/web-1",
    "Kubernetes//Pod/shop/wp-1",
    "shop/undermesh_waypoint_bypass_",
    "shop/web.shop.svc.cluster.local",
    "shop/wp.shop.svc.cluster.local",
    "undermesh-system/istio_converted_static_strict",
];

/// What a client has, in order; of a guard without what tells it from others.
fn names(held: &HashMap<String, wire::Resource>) -> Vec<&str> {
    let mut names: Vec<&str> =
        held.keys().map(|name| name.find(GUARD).map_or(name.as_str(), |at| &name[..at + GUARD.len()])).collect();
    names.sort_unstable();
    names
}

/// Waits until a waypoint has all that it is to have.
async fn all(agent: &mut Agent, own: &'static str) {
    let mut wanted = SHARED.to_vec();
    let clusters = format!("Clusters {own}");
    let security = format!("Security {own}");
    wanted.extend([own, &clusters, &security]);
    // Only whom its routes ask about, and only that.
    wanted.extend((own == "shop/wp").then_some("WorkloadLabels Kubernetes//Pod/shop/web-1"));
    wanted.sort_unstable();
    agent.until("everything", |held| names(held) == wanted).await;
}

#[tokio::test]
async fn a_waypoint_is_sent_addresses_and_its_own_routes_and_an_agent_no_routes() {
    let plane = plane().await;
    let (mut wp, mut other) =
        (stream(&plane, "wp", HashMap::new()).await, stream(&plane, "other", HashMap::new()).await);
    all(&mut wp, "shop/wp").await;
    all(&mut other, "shop/other").await;
    assert_eq!(hosts(&wp, "shop/wp"), ["web.shop.svc.cluster.local"]);
    assert!(hosts(&other, "shop/other").is_empty());
    let clusters = |agent: &Agent, name: &str| convert::clusters(agent.bytes(&format!("Clusters {name}"))).unwrap();
    let own = clusters(&wp, "shop/wp");
    let subsets: std::collections::BTreeMap<_, _> = own.clusters.iter().map(|c| (&*c.key.subset, &c.labels)).collect();
    assert_eq!((&*own.name, own.closed.len(), subsets.len()), ("shop/wp", 0, 2));
    assert_eq!(subsets["v1"]["version"], "v1");
    let labels = convert::workload_labels(wp.bytes("WorkloadLabels Kubernetes//Pod/shop/web-1")).unwrap().1;
    assert_eq!(labels, [("version".into(), "v1".into())].into());
    assert_eq!(clusters(&other, "shop/other").clusters.iter().count(), 0);
    let security = |agent: &Agent, name: &str| convert::security(agent.bytes(&format!("Security {name}"))).unwrap();
    let own = security(&wp, "shop/wp").security;
    let policies: Vec<_> = own.policies.iter().map(|policy| policy.name.to_string()).collect();
    assert_eq!((&*own.name, policies), ("shop/wp", vec!["shop/viewer".to_owned()]));
    assert!(security(&other, "shop/other").security.policies.is_empty());
    assert!(!wp.held.contains_key("shop/other") && !other.held.contains_key("shop/wp"));
    // By name, another's is not there.
    let asked = wire::DeltaDiscoveryRequest {
        type_url: ROUTE_TABLE_TYPE.into(),
        resource_names_subscribe: vec!["shop/wp".into()],
        ..Default::default()
    };
    other.send(asked).await;
    let answer = other.next().await.unwrap();
    assert_eq!((answer.resources.len(), answer.removed_resources), (0, vec!["shop/wp".to_owned()]));
    // An agent gets an empty answer, whatever changes.
    let mut agent =
        Agent::open_for(plane.channel().await, &plane.token("node1"), "node1", &ALL, HashMap::new()).await.unwrap();
    let mut answered = Vec::new();
    while answered.len() < ALL.len() {
        answered.push(agent.next().await.unwrap().type_url);
    }
    // What DestinationRules say of places is for agents, too: of each service apart.
    let places = "Clusters shop/web.shop.svc.cluster.local";
    assert_eq!(names(&agent.held), [&[places], &SHARED[..]].concat());
    assert!(answered.contains(&ROUTE_TABLE_TYPE.to_owned()));
    let Ok(convert::AddressResource::Service(web)) = convert::address(agent.bytes("shop/web.shop.svc.cluster.local"))
    else {
        panic!("no service")
    };
    assert!(web.waypoint.is_some());
    let Ok(convert::AddressResource::Workload(pod)) = convert::address(agent.bytes("Kubernetes//Pod/shop/wp-1")) else {
        panic!("no workload")
    };
    assert!(pod.native_tunnel && pod.waypoint.is_none());
}

#[tokio::test]
async fn a_change_of_what_it_serves_is_pushed_and_a_restart_sends_nothing_again() {
    let plane = plane().await;
    let mut wp = stream(&plane, "wp", HashMap::new()).await;
    all(&mut wp, "shop/wp").await;
    plane.write("mesh.yaml", &MESH.replace("timeout: 1s", "timeout: 2s"));
    let changed = |held: &HashMap<String, wire::Resource>| {
        let table = held["shop/wp"].resource.as_ref().unwrap();
        let table = convert::route_table(&table.value).unwrap().table;
        table.hosts()[0].rules[0].handling.timeout == Some(Duration::from_secs(2))
    };
    wp.until("the other timeout", changed).await;
    let held = std::mem::take(&mut wp.held);
    let plane = plane.restart().await;
    let mut again = stream(&plane, "wp", held).await;
    for _ in ALL {
        let answer = again.next().await.unwrap();
        assert_eq!((answer.resources.len(), answer.removed_resources.len()), (0, 0), "{}", answer.type_url);
    }
}

#[tokio::test]
async fn a_waypoint_gets_a_certificate_for_its_own_identity_only_and_no_agent_gets_it() {
    let plane = plane().await;
    let (wp, other, node) = (token(&plane, "wp"), token(&plane, "other"), plane.token("node1"));
    for (token, identity, expected) in [
        (&wp, OWN, None),
        (&wp, "spiffe://cluster.local/ns/shop/sa/web", Some(Code::PermissionDenied)),
        (&wp, "spiffe://cluster.local/ns/shop/sa/other", Some(Code::PermissionDenied)),
        // There is no pod of it.
        (&other, "spiffe://cluster.local/ns/shop/sa/other", Some(Code::PermissionDenied)),
        (&other, OWN, Some(Code::PermissionDenied)),
        (&node, "spiffe://cluster.local/ns/shop/sa/web", None),
        (&node, OWN, Some(Code::PermissionDenied)),
    ] {
        let (_key, csr) = csr();
        let answer = plane.certificate(token, request(identity, &csr, 3600)).await;
        assert_eq!(answer.err().map(|status| status.code()), expected, "{identity}");
    }
}

#[tokio::test]
async fn a_waypoint_that_is_gone_is_served_no_longer() {
    let plane = plane().await;
    let old = token(&plane, "wp");
    let mut wp = stream(&plane, "wp", HashMap::new()).await;
    all(&mut wp, "shop/wp").await;
    plane.write(
        "mesh.yaml",
        &MESH.replace(
            "{name: wp, namespace: shop}\nspec: {gatewayClassName: undermesh-waypoint",
            "{name: wp, namespace: shop}\nspec: {gatewayClassName: example",
        ),
    );
    let ended = soon("the end", async {
        loop {
            if let Err(status) = wp.receive().await {
                return status.code();
            }
        }
    });
    // It is told why, or cut before it can be.
    assert!(matches!(ended.await, Code::Unauthenticated | Code::Cancelled));
    let refused = Agent::open_for(plane.channel().await, &old, "node1", &ALL, HashMap::new()).await;
    assert_eq!(refused.err().map(|status| status.code()), Some(Code::Unauthenticated));
    let (_key, csr) = csr();
    assert_eq!(plane.certificate(&old, request(OWN, &csr, 3600)).await.unwrap_err().code(), Code::Unauthenticated);
    let file = plane.state("tokens").join("waypoint-shop_wp");
    soon("no token", async {
        while file.exists() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
