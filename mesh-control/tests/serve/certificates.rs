//! The authority: who gets a certificate for which identity, which requests are refused, and a new root.

use mesh_core::Identity;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};
use tonic::Code;

use super::support::{self, connect, csr, request, soon};
use super::{BOOKINFO, REVIEWS, bookinfo};

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
    let now = mesh_runtime::clock::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let now = UnixTime::since_unix_epoch(now);
    for usage in [webpki::KeyUsage::client_auth(), webpki::KeyUsage::server_auth()] {
        end.verify_for_usage(algorithms, std::slice::from_ref(&anchor), &[], now, usage, None, None).unwrap();
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
async fn hardening_F43_a_new_root_is_taken_over_while_it_serves() {
    let plane = bookinfo().await;
    let old = plane.roots();
    let (key, new) =
        mesh_control::ca::authority::make(&"cluster.local".parse().unwrap(), mesh_runtime::clock::now()).unwrap();
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
