//! The listener and the status pages: handshakes, strangers, and what is shown to whom.

use std::time::{Duration, Instant};

use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Code;

use super::support::{self, Agent, DEADLINE, connect, csr, request, soon};
use super::{BOOKINFO, REVIEWS, bookinfo};

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
