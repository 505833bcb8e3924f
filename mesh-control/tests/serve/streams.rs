//! Streams of discovery: what a node is sent, edits while it listens, and when its stream ends.

use mesh_core::NamespacedName;
use mesh_core::workload::{TunnelProtocol, WorkloadType};
use mesh_proto::convert::{self, AddressResource};
use mesh_proto::discovery as wire;
use mesh_proto::{ADDRESS_TYPE, AUTHORIZATION_TYPE};
use tonic::Code;

use super::support::{Agent, Plane, soon};
use super::{BOOKINFO, POLICY, REVIEWS, bookinfo};

const STRICT: &str = "undermesh-system/istio_converted_static_strict";

fn uid(pod: &str) -> String {
    let number = ["productpage-v1", "details-v1", "reviews-v1", "reviews-v2", "reviews-v3", "ratings-v1"]
        .iter()
        .position(|p| *p == pod)
        .unwrap();
    format!("Kubernetes//Pod/bookinfo/{pod}-5d8f7c9b6d-x{number}abc")
}

#[tokio::test]
async fn features_B1_bookinfo_is_served_as_istio_would() {
    let plane = bookinfo().await;
    let mut agent = plane.agent("node1").await;
    agent.until("everything", |held| held.len() == 4 + 6 + 2).await;

    let Ok(AddressResource::Workload(reviews)) = convert::address(agent.bytes(&uid("reviews-v2"))) else {
        panic!("no workload")
    };
    assert_eq!(reviews.identity().to_string(), REVIEWS);
    assert_eq!(reviews.protocol, TunnelProtocol::Hbone);
    assert_eq!((reviews.workload_name.as_str(), reviews.workload_type), ("reviews-v2", WorkloadType::Deployment));
    assert_eq!((reviews.canonical_name.as_str(), reviews.canonical_revision.as_str()), ("reviews", "v2"));
    assert_eq!((reviews.node.as_str(), reviews.locality.zone.as_str()), ("node1", "z1"));
    assert_eq!(reviews.addresses.len(), 2);
    let service = NamespacedName::new("bookinfo", "reviews.bookinfo.svc.cluster.local");
    assert_eq!(reviews.target_port(&service, 9080), Some(9080));
    assert_eq!(reviews.authorization_policies.iter().map(ToString::to_string).collect::<Vec<_>>(), [STRICT]);

    let Ok(AddressResource::Service(service)) =
        convert::address(agent.bytes("bookinfo/reviews.bookinfo.svc.cluster.local"))
    else {
        panic!("no service")
    };
    assert_eq!(service.addresses.len(), 2);
    assert_eq!(
        agent.held["bookinfo/reviews.bookinfo.svc.cluster.local"].aliases,
        ["/198.18.200.3", "/fd00:198:ffff::3"]
    );

    let Ok(AddressResource::Workload(ratings)) = convert::address(agent.bytes(&uid("ratings-v1"))) else {
        panic!("no workload")
    };
    assert_eq!(
        ratings.authorization_policies.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["bookinfo/ratings", STRICT]
    );
    let policy = convert::policy(agent.bytes("bookinfo/ratings")).unwrap();
    assert_eq!(policy.rules[0].clauses.len(), 2);
    assert_eq!(plane.page("/debug/diagnoses").await.1.trim(), "[]");
}

#[tokio::test]
async fn an_edit_arrives_as_a_delta() {
    let plane = bookinfo().await;
    let mut agent = plane.agent("node2").await;
    agent.until("everything", |held| held.len() == 12).await;

    // A pod is no longer enrolled; a policy changes; a service goes.
    plane.write("policy.yaml", &POLICY.replace("sa/bookinfo-reviews", "sa/nobody"));
    let response = agent.next().await.unwrap();
    assert_eq!((response.type_url.as_str(), response.resources.len()), (AUTHORIZATION_TYPE, 1));

    plane.write("bookinfo.yaml", &BOOKINFO.replacen("redirection: enabled", "redirection: disabled", 1));
    let response = agent.next().await.unwrap();
    assert_eq!(response.resources.iter().map(|r| r.name.clone()).collect::<Vec<_>>(), [uid("productpage-v1")]);

    plane.remove("policy.yaml");
    agent.until("no policy", |held| !held.contains_key("bookinfo/ratings")).await;
    let Ok(AddressResource::Workload(ratings)) = convert::address(agent.bytes(&uid("ratings-v1"))) else {
        panic!("no workload")
    };
    assert!(ratings.authorization_policies.is_empty());

    // A bad edit changes nothing but the diagnoses.
    plane.write("bookinfo.yaml", "{[");
    soon("diagnosis", async {
        while !plane.page("/debug/diagnoses").await.1.contains("not valid YAML") {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(agent.held.len(), 4 + 6 + 1);
    let synced = plane.page("/debug/syncz").await.1;
    assert!(synced.contains("\"node\": \"node2\"") && synced.contains("ztunnel-x"), "{synced}");
}

#[tokio::test]
async fn hardening_F11_a_reconnect_resends_nothing() {
    let plane = bookinfo().await;
    let mut agent = plane.agent("node1").await;
    agent.until("everything", |held| held.len() == 12).await;
    let versions = |prefix: &str, agent: &Agent| {
        let held = agent.held.values().filter(|r| r.resource.as_ref().unwrap().type_url == prefix);
        held.map(|r| (r.name.clone(), r.version.clone())).collect()
    };
    let resume = |url: &str| wire::DeltaDiscoveryRequest {
        node: Some(wire::Node::default()),
        type_url: url.into(),
        initial_resource_versions: versions(url, &agent),
        ..Default::default()
    };
    let requests = [ADDRESS_TYPE, AUTHORIZATION_TYPE].map(resume);
    drop(agent);
    let plane = plane.restart().await;
    let mut client = mesh_proto::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient::new(
        plane.channel().await,
    );
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    for request in requests {
        sender.send(request).await.unwrap();
    }
    let mut stream = tonic::Request::new(tokio_stream::wrappers::ReceiverStream::new(receiver));
    stream.metadata_mut().insert("authorization", format!("Bearer {}", plane.token("node1")).parse().unwrap());
    let mut responses = soon("stream", client.delta_aggregated_resources(stream)).await.unwrap().into_inner();
    for _ in 0..2 {
        let response = soon("response", responses.message()).await.unwrap().unwrap();
        assert_eq!((response.resources.len(), response.removed_resources.len()), (0, 0), "{}", response.type_url);
    }
}

#[tokio::test]
async fn hardening_B110_a_stream_ends_with_the_right_to_it() {
    let plane = Plane::start(&[("bookinfo.yaml", BOOKINFO)], &["--token-ttl", "5s"]).await;
    // With its token, which lives for five seconds; the file has a newer one by then.
    let old = plane.token("node1");
    let mut agent = plane.agent("node1").await;
    agent.until("everything", |held| held.len() == 11).await;
    let status = agent.next().await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unauthenticated, "the token expires"));
    soon("a newer token", async {
        while plane.token("node1") == old {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // With its node.
    let mut agent = plane.agent("node1").await;
    agent.until("everything", |held| held.len() == 11).await;
    let left: Vec<&str> = BOOKINFO.split("---\n").filter(|d| !d.contains("name: node1\n")).collect();
    plane.write("bookinfo.yaml", &left.join("---\n"));
    let status = loop {
        if let Err(status) = agent.next().await {
            break status;
        }
    };
    assert_eq!(status.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn a_node_with_too_many_streams_loses_its_oldest_and_takes_nobody_s_place() {
    let plane = bookinfo().await;
    let mut other = plane.agent("node2").await;
    other.until("everything", |held| held.len() == 12).await;
    let mut agents = Vec::new();
    for _ in 0..5 {
        let mut agent = plane.agent("node1").await;
        agent.until("everything", |held| held.len() == 12).await;
        agents.push(agent);
    }
    assert_eq!(agents[0].next().await.unwrap_err().code(), Code::Unavailable);
    plane.remove("policy.yaml");
    for agent in agents.iter_mut().skip(1).chain([&mut other]) {
        agent.until("the change", |held| !held.contains_key("bookinfo/ratings")).await;
    }
}

#[tokio::test]
async fn hardening_F12_refusals_are_counted() {
    let plane = bookinfo().await;
    let mut agent = plane.agent("node1").await;
    let first = soon("response", agent.next()).await.unwrap();
    // The acknowledgement has freed the way for a refusal of the next response.
    agent.until("everything", |held| held.len() == 12).await;
    plane.write("extra.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: extra}\nspec: {clusterIP: 198.18.200.99, ports: [{port: 1}]}\n");
    let nack = |nonce: &str, url: &str| wire::DeltaDiscoveryRequest {
        type_url: url.into(),
        response_nonce: nonce.into(),
        error_detail: Some(wire::Status { code: 0, message: "default/extra: \u{1b}[31mbad".into(), details: vec![] }),
        ..Default::default()
    };
    agent.send(nack(&first.nonce, &first.type_url)).await;
    let response = agent.next().await.unwrap();
    assert_eq!(response.resources[0].name, "default/extra.default.svc.cluster.local");
    assert!(!plane.page("/metrics").await.1.contains("pilot_total_xds_rejects{"), "a stale refusal is none");
    plane.write("extra.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: extra}\nspec: {clusterIP: 198.18.200.98, ports: [{port: 1}]}\n");
    let plain = soon("raw response", agent.raw()).await;
    agent.send(nack(&plain.nonce, &plain.type_url)).await;
    soon("count", async {
        while !plane.page("/metrics").await.1.contains("pilot_total_xds_rejects{type=\"address\"} 1") {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn features_TM_12_what_a_change_takes_to_its_clients_is_measured() {
    let plane = bookinfo().await;
    let (mut one, mut two) = (plane.agent("node1").await, plane.agent("node2").await);
    for agent in [&mut one, &mut two] {
        agent.until("everything", |held| held.len() == 12).await;
    }
    let count = async || {
        let (_, metrics) = plane.page("/metrics").await;
        let line = metrics.lines().find_map(|line| line.strip_prefix("pilot_proxy_convergence_time_count "));
        line.unwrap().parse::<u64>().unwrap()
    };
    let before = count().await;
    plane.write("extra.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: extra}\nspec: {clusterIP: 198.18.200.99, ports: [{port: 1}]}\n");
    for agent in [&mut one, &mut two] {
        agent.until("the change", |held| held.len() == 13).await;
    }
    soon("one for each client", async { while count().await < before + 2 {} }).await;
}

#[tokio::test]
async fn the_end_of_the_process_ends_the_streams() {
    let plane = bookinfo().await;
    let mut agent = plane.agent("node1").await;
    agent.until("everything", |held| held.len() == 12).await;
    let listen = plane.app.listen;
    soon("stop", plane.app.stop()).await;
    // Told by the server: a connection that is only gone has no such words.
    let end = agent.next().await.unwrap_err();
    assert_eq!((end.code(), end.message()), (Code::Unavailable, "shutting down"));
    tokio::net::TcpStream::connect(listen).await.unwrap_err();
}

/// The second stream of a node has nothing large made for it until the first one has answered; other nodes do not wait for either.
#[tokio::test]
async fn hardening_B103_a_large_response_is_not_built_before_its_turn() {
    let nodes = "apiVersion: v1\nkind: Node\nmetadata: {name: node1}\n---\napiVersion: v1\nkind: Node\nmetadata: {name: node2}\n";
    let long = "x".repeat(1000);
    let names: String = (0..1500).map(|n| format!("cluster.local/ns/shop/sa/{long}{n}, ")).collect();
    let policy = format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: large, namespace: shop}}\nspec: {{rules: [{{from: [{{source: {{principals: [{names}]}}}}]}}]}}\n"
    );
    let plane = Plane::start(&[("nodes.yaml", nodes), ("policy.yaml", &policy)], &[]).await;
    let mut first = plane.agent("node1").await;
    let mut sent = Vec::new();
    for _ in 0..2 {
        sent.push(soon("the first stream", first.raw()).await);
    }
    let mut second = plane.agent("node1").await;
    // Addresses are asked for first and are small.
    assert_eq!(soon("the second stream", second.raw()).await.type_url, ADDRESS_TYPE);
    let mut other = plane.agent("node2").await;
    other.until("everything", |held| held.contains_key("shop/large")).await;
    let (_, metrics) = plane.page("/metrics").await;
    assert!(metrics.contains("pilot_xds_pushes{type=\"authorization\"} 2\n"), "{metrics}");
    for response in sent {
        let (type_url, response_nonce) = (response.type_url, response.nonce);
        first.send(wire::DeltaDiscoveryRequest { type_url, response_nonce, ..Default::default() }).await;
    }
    let response = soon("its turn", second.raw()).await;
    assert!(response.resources.iter().any(|r| r.name == "shop/large"));
}
