//! What the client says when the wrong peer answers, or none.
#![allow(clippy::unwrap_used, missing_docs, non_snake_case)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use mesh_core::identity::TrustDomain;
use mesh_transport::hbone::{AcceptorConfig, ConnectRequest, HboneError, PoolConfig, Stage};
use mesh_transport::tls::{IdentityCertificate, Roots};
use support::port::CLIENT;
use support::{Ca, Lab, identity, soon};
use tokio::net::TcpStream;

#[tokio::test]
async fn the_client_refuses_a_peer_that_it_does_not_expect() {
    let lab = Lab::new().await;
    let target = lab.app.local_addr().unwrap();
    let mut key = lab.key();
    key.expected = [identity("spiffe://cluster.local/ns/app/sa/other")].into();
    let port = lab.tunnel_port;
    let dial = move || TcpStream::connect(port);
    let error = lab.pool.connect(&key, lab.client.clone(), dial, ConnectRequest::to(target)).await.unwrap_err();
    assert!(matches!(&error, HboneError::PeerIdentityMismatch { found } if *found == lab.server.identity), "{error}");
    assert_eq!(
        (error.stage(), error.response_flag(), error.reason()),
        (Stage::Tls, "TLS_FAILURE", "peer_identity_mismatch")
    );

    // A peer of another authority.
    let other = Ca::new();
    let stranger = other.issue(&identity("spiffe://cluster.local/ns/app/sa/client"));
    let error = lab.pool.connect(&lab.key(), stranger, dial, ConnectRequest::to(target)).await.unwrap_err();
    assert!(matches!(error, HboneError::Tls(_)), "{error}");
    assert_eq!(lab.pool.stats().keys, 0);
}

#[tokio::test]
async fn a_client_that_the_server_refuses_learns_that_tls_was_the_reason() {
    let lab = Lab::new().await;
    // It trusts the server's authority, but its own certificate is from elsewhere.
    let other = Ca::new();
    let (chain, key) = other.sign(Ca::params(CLIENT));
    let both = format!("{}{}", lab.ca.issuer.pem(), other.issuer.pem());
    let roots = Arc::new(Roots::from_pem(both.as_bytes(), vec![TrustDomain::default()]).unwrap());
    let stranger = IdentityCertificate::from_pem(
        identity(CLIENT),
        chain.as_bytes(),
        key.as_bytes(),
        roots,
        1,
        mesh_runtime::clock::now(),
    );
    let port = lab.tunnel_port;
    let request = ConnectRequest::to(lab.app.local_addr().unwrap());
    let error = lab
        .pool
        .connect(&lab.key(), Arc::new(stranger.unwrap()), move || TcpStream::connect(port), request)
        .await
        .unwrap_err();
    assert_eq!((error.stage(), error.response_flag()), (Stage::Tls, "TLS_FAILURE"), "{error}");
    assert!(error.before_first_byte());
}

#[tokio::test]
async fn handshakes_of_the_client_have_deadlines() {
    let config = PoolConfig {
        tls_timeout: Duration::from_millis(100),
        preface_timeout: Duration::from_millis(100),
        ..PoolConfig::default()
    };
    let lab = Lab::with(config, AcceptorConfig::default()).await;
    let request = || ConnectRequest::to(lab.app.local_addr().unwrap());
    // A peer that accepts and is silent.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap();
    let error = lab
        .pool
        .connect(&lab.key(), lab.client.clone(), move || TcpStream::connect(address), request())
        .await
        .unwrap_err();
    assert!(matches!(error, HboneError::TlsTimeout), "{error}");
    // A peer that shakes hands and never speaks HTTP/2.
    let (acceptor, certificate) = (lab.acceptor.clone(), lab.server.clone());
    tokio::spawn(async move {
        let _first = silent.accept().await.unwrap();
        let (tcp, _) = silent.accept().await.unwrap();
        let _tunnel = acceptor.accept(tcp, &certificate).await.unwrap();
        std::future::pending::<()>().await;
    });
    let error = soon(
        "preface",
        lab.pool.connect(&lab.key(), lab.client.clone(), move || TcpStream::connect(address), request()),
    )
    .await
    .unwrap_err();
    assert!(matches!(error, HboneError::PrefaceTimeout), "{error}");
    assert_eq!(error.response_flag(), "H2_HANDSHAKE_FAILURE");
    support::until("pool forgets", || lab.pool.stats().keys == 0).await;
}
