//! The control plane over real sockets: xDS and certificates for the nodes of Bookinfo, live edits, and who is refused.
#![allow(non_snake_case, reason = "tests carry the ids of the rows they prove")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::time::{Duration, Instant};

use mesh_core::workload::{TunnelProtocol, WorkloadType};
use mesh_core::{Identity, NamespacedName};
use mesh_proto::convert::{self, AddressResource};
use mesh_proto::discovery as wire;
use mesh_proto::{ADDRESS_TYPE, AUTHORIZATION_TYPE};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use support::{Agent, DEADLINE, Plane, connect, csr, request, soon};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Code;

const BOOKINFO: &str = include_str!("bookinfo/bookinfo.yaml");
const POLICY: &str = include_str!("bookinfo/policy.yaml");
const STRICT: &str = "undermesh-system/istio_converted_static_strict";
const REVIEWS: &str = "spiffe://cluster.local/ns/bookinfo/sa/bookinfo-reviews";

async fn bookinfo() -> Plane {
    Plane::start(&[("bookinfo.yaml", BOOKINFO), ("policy.yaml", POLICY)], &[]).await
}

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
    let start = Instant::now();
    plane.write("policy.yaml", &POLICY.replace("sa/bookinfo-reviews", "sa/nobody"));
    let response = agent.next().await.unwrap();
    assert_eq!((response.type_url.as_str(), response.resources.len()), (AUTHORIZATION_TYPE, 1));
    assert!(start.elapsed() < Duration::from_secs(2), "took {:?}", start.elapsed());

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
async fn features_CA_2_a_certificate_for_a_pod_of_the_node() {
    let plane = bookinfo().await;
    let (key, csr) = csr();
    let response = plane.certificate(&plane.token("node1"), request(REVIEWS, &csr, 3600)).await.unwrap();
    assert_eq!(response.cert_chain.len(), 2);
    assert_eq!(response.cert_chain[1], plane.roots());
    // A verifier of the mesh accepts it.
    let leaf = CertificateDer::from_pem_slice(response.cert_chain[0].as_bytes()).unwrap();
    let root = CertificateDer::from_pem_slice(response.cert_chain[1].as_bytes()).unwrap();
    let anchor = webpki::anchor_from_trusted_cert(&root).unwrap();
    let end = webpki::EndEntityCert::try_from(&leaf).unwrap();
    let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.all;
    for usage in [webpki::KeyUsage::client_auth(), webpki::KeyUsage::server_auth()] {
        end.verify_for_usage(algorithms, std::slice::from_ref(&anchor), &[], UnixTime::now(), usage, None, None)
            .unwrap();
    }
    let uris: Vec<_> = end.valid_uri_names().collect();
    assert_eq!(uris, [REVIEWS]);
    drop(key);
}

#[tokio::test]
async fn hardening_B111_B112_B118_who_gets_which_identity() {
    let plane = bookinfo().await;
    let (_, csr) = csr();
    let long = format!("spiffe://cluster.local/ns/bookinfo/sa/{}", "a".repeat(3000));
    let table: &[(&str, &str, Code)] = &[
        ("node1", REVIEWS, Code::Ok),
        ("node2", REVIEWS, Code::Ok),
        ("node1", "spiffe://cluster.local/ns/bookinfo/sa/bookinfo-ratings", Code::PermissionDenied),
        ("node2", "spiffe://cluster.local/ns/bookinfo/sa/bookinfo-productpage", Code::PermissionDenied),
        ("node1", "spiffe://cluster.local/ns/other/sa/bookinfo-reviews", Code::PermissionDenied),
        ("node1", "spiffe://cluster.local/ns/bookinfo/sa/default", Code::PermissionDenied),
        ("node1", "spiffe://evil.local/ns/bookinfo/sa/bookinfo-reviews", Code::InvalidArgument),
        ("node1", "spiffe://Cluster.Local/ns/bookinfo/sa/bookinfo-reviews", Code::InvalidArgument),
        ("node1", "spiffe://cluster.local/ns/bookinfo/sa/../bookinfo-reviews", Code::InvalidArgument),
        ("node1", "spiffe://cluster.local/ns/bookinfo/sa/bookinfo-reviews\0", Code::InvalidArgument),
        ("node1", "spiffe://cluster.local/ns/bookinfo/sa/bookinfo-reviews/", Code::InvalidArgument),
        ("node1", "spiffe://cluster.local/ns/bookinfo", Code::InvalidArgument),
        ("node1", "cluster.local/ns/bookinfo/sa/bookinfo-reviews", Code::InvalidArgument),
        ("node1", &long, Code::InvalidArgument),
        ("node1", "", Code::InvalidArgument),
    ];
    for (node, identity, expected) in table {
        // One key for one identity: each asks with its own.
        let (_, fresh) = support::csr();
        let result = plane.certificate(&plane.token(node), request(identity, &fresh, 600)).await;
        assert_eq!(result.as_ref().map_or_else(|s| s.code(), |_| Code::Ok), *expected, "{node} {identity}: {result:?}");
    }
    let mut bare = request(REVIEWS, &csr, 600);
    bare.metadata = None;
    assert_eq!(plane.certificate(&plane.token("node1"), bare).await.unwrap_err().code(), Code::InvalidArgument);

    // The pod goes: so does the right to its identity, while the pod of the other node keeps it.
    let gone: Vec<&str> = BOOKINFO
        .split("---\n")
        .filter(|d| !d.contains("kind: Pod") || !d.contains("app: reviews") || d.contains("node2"))
        .collect();
    plane.write("bookinfo.yaml", &gone.join("---\n"));
    soon("removal", async {
        loop {
            let (_, fresh) = support::csr();
            match plane.certificate(&plane.token("node1"), request(REVIEWS, &fresh, 600)).await {
                Ok(_) => tokio::task::yield_now().await,
                Err(status) => break assert_eq!(status.code(), Code::PermissionDenied),
            }
        }
    })
    .await;
    let (_, fresh) = support::csr();
    plane.certificate(&plane.token("node2"), request(REVIEWS, &fresh, 600)).await.unwrap();
}

#[tokio::test]
async fn hardening_B110_without_a_token_nothing() {
    let plane = bookinfo().await;
    let other = bookinfo().await;
    let (_, csr) = csr();
    let good = plane.token("node1");
    let (half, _) = good.split_at(good.len() / 2);
    for token in ["", "garbage", half, &other.token("node1"), "eyJhbGciOiJub25lIn0.e30."] {
        let status = plane.certificate(token, request(REVIEWS, &csr, 600)).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::Unauthenticated, "authentication failed"), "{token}");
        let status = Agent::open(plane.channel().await, token, "node1").await.err().unwrap();
        assert_eq!((status.code(), status.message()), (Code::Unauthenticated, "authentication failed"), "{token}");
    }
    // The token of one node does not open the stream of another.
    let mut agent = Agent::open(plane.channel().await, &good, "node2").await.unwrap();
    assert_eq!(agent.next().await.unwrap_err().code(), Code::PermissionDenied);
    // A node that is gone has no token, and its old one is worth nothing.
    let left: Vec<&str> = BOOKINFO.split("---\n").filter(|d| !d.contains("name: node1\n")).collect();
    plane.write("bookinfo.yaml", &left.join("---\n"));
    soon("node removed", async {
        while plane.certificate(&good, request(REVIEWS, &csr, 600)).await.map_or_else(|s| s.code(), |_| Code::Ok)
            != Code::Unauthenticated
        {}
        while plane.state("tokens").join("node1").exists() {
            tokio::task::yield_now().await;
        }
    })
    .await;
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
    for _ in 0..9 {
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

/// A stranger that answers every ping: nothing is wrong with the connection but that nobody on it has a token.
#[tokio::test]
async fn hardening_B110_who_never_shows_a_token_is_not_kept() {
    let plane = bookinfo().await;
    let mut agent = plane.agent("node1").await;
    agent.until("everything", |held| held.len() == 12).await;
    let stream = tokio::net::TcpStream::connect(plane.app.listen).await.unwrap();
    let tls = support::client_config(&plane.roots(), &[&rustls::version::TLS13]);
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut stranger = tokio_rustls::TlsConnector::from(tls).connect(name, stream).await.unwrap();
    // The preface and empty settings.
    stranger.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let cut = tokio::time::timeout(Duration::from_secs(90), async {
        let mut head = [0; 9];
        while stranger.read_exact(&mut head).await.is_ok() {
            let mut body = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            stranger.read_exact(&mut body).await?;
            let (kind, flags) = (head[3], head[4]);
            if kind == 6 && flags & 1 == 0 {
                head[4] = 1;
                stranger.write_all(&[&head[..], &body].concat()).await?;
            }
        }
        Ok::<_, std::io::Error>(())
    });
    let _ = cut.await.expect("cut in time");
    // The node that has shown its token stays.
    plane.remove("policy.yaml");
    agent.until("a change", |held| !held.contains_key("bookinfo/ratings")).await;
}

#[tokio::test]
async fn hardening_B113_B116_B117_requests_that_are_refused() {
    let plane = bookinfo().await;
    let token = plane.token("node1");
    // What is larger than any request is not read at all; both codes are 400 in HTTP's words.
    for (bad, code) in [
        ("", Code::InvalidArgument),
        ("x", Code::InvalidArgument),
        (&"x".repeat(20 << 10), Code::InvalidArgument),
        (&"x".repeat(1 << 20), Code::OutOfRange),
    ] {
        let status = plane.certificate(&token, request(REVIEWS, bad, 600)).await.unwrap_err();
        assert_eq!(status.code(), code, "{} bytes", bad.len());
    }
    let (_, csr) = csr();
    plane.certificate(&token, request(REVIEWS, &csr, 600)).await.unwrap();
    let productpage = "spiffe://cluster.local/ns/bookinfo/sa/bookinfo-productpage";
    let status = plane.certificate(&token, request(productpage, &csr, 600)).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "the key belongs to another identity"));

    // Over its rate a node is told so, and another one is not.
    let channel = plane.channel().await;
    let mut calls = 0;
    soon("limit", async {
        loop {
            let mut client =
                mesh_proto::ca::istio_certificate_service_client::IstioCertificateServiceClient::new(channel.clone());
            let mut call = tonic::Request::new(request("", "", 0));
            call.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
            calls += 1;
            if client.create_certificate(call).await.unwrap_err().code() == Code::ResourceExhausted {
                break;
            }
        }
    })
    .await;
    assert!(calls > 490, "limited after {calls}");
    let (_, fresh) = support::csr();
    plane.certificate(&plane.token("node2"), request(REVIEWS, &fresh, 600)).await.unwrap();
}

#[tokio::test]
async fn hardening_B107_the_listener_shows_a_certificate_of_the_root_for_its_names() {
    let plane = bookinfo().await;
    for name in ["127.0.0.1", "localhost", "mesh-control.undermesh-system.svc", "istiod.istio-system.svc"] {
        connect(plane.app.listen, &plane.roots(), name).await.unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    connect(plane.app.listen, &plane.roots(), "evil.example").await.unwrap_err();
    let other = bookinfo().await;
    connect(plane.app.listen, &other.roots(), "127.0.0.1").await.unwrap_err();
}

#[tokio::test]
async fn hardening_B1_B4_B6_handshakes_that_do_not_end_well() {
    let plane = bookinfo().await;
    // TLS 1.2 only.
    let tls12 = support::client_config(&plane.roots(), &[&rustls::version::TLS12]);
    let stream = tokio::net::TcpStream::connect(plane.app.listen).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    tokio_rustls::TlsConnector::from(tls12).connect(name, stream).await.unwrap_err();
    // Plain HTTP.
    let mut stream = tokio::net::TcpStream::connect(plane.app.listen).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut rest = Vec::new();
    let _ = soon("close", stream.read_to_end(&mut rest)).await;
    // Silence, while others are served.
    let mut silent = tokio::net::TcpStream::connect(plane.app.listen).await.unwrap();
    let start = Instant::now();
    plane.agent("node1").await.until("everything", |held| held.len() == 12).await;
    let _ = soon("close", silent.read_to_end(&mut rest)).await;
    assert!(
        start.elapsed() >= Duration::from_secs(4) && start.elapsed() < DEADLINE,
        "closed after {:?}",
        start.elapsed()
    );
}

#[tokio::test]
async fn hardening_B123_status_pages_tell_no_secret() {
    let plane = bookinfo().await;
    let mut agent = plane.agent("node1").await;
    agent.until("everything", |held| held.len() == 12).await;
    let secrets = [plane.token("node1"), plane.token("node2")];
    let keys = ["ca-key.pem", "token-key.pem"].map(|k| std::fs::read_to_string(plane.state(k)).unwrap());
    for path in ["/", "/metrics", "/ready", "/debug/syncz", "/debug/diagnoses"] {
        let (code, body) = plane.page(path).await;
        assert_eq!(code, 200, "{path}");
        assert!(!body.contains("PRIVATE") && !secrets.iter().any(|s| body.contains(s.as_str())), "{path}");
        assert!(
            !keys
                .iter()
                .flat_map(|k| k.lines())
                .filter(|l| l.len() > 20 && !l.starts_with('-'))
                .any(|l| body.contains(l)),
            "{path}"
        );
    }
    assert_eq!(plane.page("/debug/config").await.0, 404);
    let metrics = plane.page("/metrics").await.1;
    for line in
        ["pilot_xds 1", "mesh_control_workloads 6", "pilot_services 4", "citadel_server_root_cert_expiry_timestamp "]
    {
        assert!(metrics.contains(line), "{line} in\n{metrics}");
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
    assert!(!plane.page("/metrics").await.1.contains("pilot_total_xds_rejects_total{"), "a stale refusal is none");
    plane.write("extra.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: extra}\nspec: {clusterIP: 198.18.200.98, ports: [{port: 1}]}\n");
    let plain = soon("raw response", agent.raw()).await;
    agent.send(nack(&plain.nonce, &plain.type_url)).await;
    soon("count", async {
        while !plane.page("/metrics").await.1.contains("pilot_total_xds_rejects_total{type=\"address\"} 1") {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn hardening_F43_a_new_root_is_taken_over_while_it_serves() {
    let plane = bookinfo().await;
    let old = plane.roots();
    let (key, new) =
        mesh_control::ca::authority::make(&"cluster.local".parse().unwrap(), std::time::SystemTime::now()).unwrap();
    mesh_control::state::write(&plane.state("root-cert.pem"), &format!("{old}{new}"), 0o644).unwrap();
    mesh_control::state::write(&plane.state("ca-key.pem"), &key, 0o600).unwrap();
    // Until it is taken over the listener shows a certificate of the old root, then one of the new: both are in the bundle.
    soon("takeover", async {
        while connect(plane.app.listen, &new, "127.0.0.1").await.is_err() {
            connect(plane.app.listen, &format!("{old}{new}"), "127.0.0.1").await.unwrap();
        }
    })
    .await;
    let (_, csr) = csr();
    let chain = plane.certificate(&plane.token("node1"), request(REVIEWS, &csr, 600)).await.unwrap().cert_chain;
    assert_eq!(CertificateDer::pem_slice_iter(chain[1].as_bytes()).count(), 2);
    let identity: Identity = REVIEWS.parse().unwrap();
    assert_eq!(identity.to_string(), REVIEWS);
}

#[tokio::test]
async fn the_end_of_the_process_ends_the_streams() {
    let plane = bookinfo().await;
    let mut agent = plane.agent("node1").await;
    agent.until("everything", |held| held.len() == 12).await;
    let listen = plane.app.listen;
    let start = Instant::now();
    soon("stop", plane.app.stop()).await;
    assert_eq!(agent.next().await.unwrap_err().code(), Code::Unavailable);
    assert!(start.elapsed() < Duration::from_secs(4), "took {:?}", start.elapsed());
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
    assert!(metrics.contains("pilot_xds_pushes_total{type=\"authorization\"} 2\n"), "{metrics}");
    for response in sent {
        let (type_url, response_nonce) = (response.type_url, response.nonce);
        first.send(wire::DeltaDiscoveryRequest { type_url, response_nonce, ..Default::default() }).await;
    }
    let response = soon("its turn", second.raw()).await;
    assert!(response.resources.iter().any(|r| r.name == "shop/large"));
}
