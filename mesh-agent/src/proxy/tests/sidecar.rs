//! Clients with sidecars of Istio's: what their mutual TLS proves, and where they are led. The client is rustls' own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use http::StatusCode;
use mesh_core::policy::{Action, Match, Policy, Scope, StringMatch};
use mesh_core::workload::TunnelProtocol;
use mesh_core::{Change, Workload};
use rustls::ClientConfig;
use rustls::pki_types::{IpAddr, Ipv4Addr, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::fakes::Authority;
use super::mesh::*;
use super::plaintext::{plain, plain_refused};
use super::waypoint::{Waypoint, endpoint, through, waypoints};
use crate::proxy::Reason;

/// What a sidecar offers for TCP and for HTTP.
const TCP: &[&str] = &["istio-peer-exchange", "istio"];
const HTTP: &[&str] = &["istio-http/1.1", "istio", "http/1.1"];

/// The client's pod has a sidecar, and no tunnel.
async fn with_a_sidecar() -> Pair {
    let pair = Pair::with(|config| config.sidecars = true).await;
    let client = Workload { protocol: TunnelProtocol::None, ..pair.client.workload() };
    pair.apply(vec![Change::Workload(client)]);
    pair
}

/// What a sidecar of `account` speaks, with a certificate of `authority` if it shows one.
fn speaks(pair: &Pair, authority: Option<&Authority>, account: &str, offers: &[&str]) -> ClientConfig {
    let certificate = pair.authority.issue(&identity("client"));
    // It expects the server's identity; of whom it is itself a certificate of its own says.
    let expecting = certificate.client_config(&[identity("server")]);
    let mut config = match authority {
        Some(authority) => {
            let own = authority.issue(&identity(account)).client_config(&[identity("server")]);
            let mut config = ClientConfig::clone(&expecting);
            config.client_auth_cert_resolver = own.client_auth_cert_resolver.clone();
            config
        }
        None => {
            let mut config = ClientConfig::clone(&expecting);
            config.client_auth_cert_resolver = Arc::new(NoCertificate);
            config
        }
    };
    config.alpn_protocols = offers.iter().map(|name| name.as_bytes().to_vec()).collect();
    config
}

#[derive(Debug)]
struct NoCertificate;

impl rustls::client::ResolvesClientCert for NoCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

type Tls = TlsStream<TcpStream>;

async fn shake(tcp: TcpStream, config: ClientConfig) -> std::io::Result<Tls> {
    let name = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::from([0, 0, 0, 0])));
    soon(TlsConnector::from(Arc::new(config)).connect(name, tcp)).await
}

/// What comes back for a line; the error if nothing does.
async fn says(tls: std::io::Result<Tls>, line: &str) -> std::io::Result<String> {
    let mut tls = tls?;
    soon(tls.write_all(line.as_bytes())).await?;
    soon(tls.flush()).await?;
    let mut answer = vec![0; line.len()];
    soon(tls.read_exact(&mut answer)).await?;
    soon(tls.shutdown()).await?;
    let mut rest = Vec::new();
    soon(tls.read_to_end(&mut rest)).await?;
    assert!(rest.is_empty(), "{rest:?}");
    Ok(String::from_utf8(answer).unwrap())
}

fn only(account: &str) -> Change {
    let who = StringMatch::Exact(identity(account).principal().into());
    let rule = vec![vec![Match { principals: vec![who], ..Match::default() }]];
    Change::Policy(policy("only", Scope::Namespace, Action::Allow, rule))
}

#[tokio::test(flavor = "multi_thread")]
async fn features_F7_a_sidecar_proves_who_it_is_and_policies_mean_it() {
    let pair = with_a_sidecar().await;
    let served = pair.server.echo(APP, "");
    let ask = async |account: &str, offers: &[&str]| {
        let config = speaks(&pair, Some(&pair.authority), account, offers);
        says(shake(plain(&pair, APP).await, config).await, "as it is").await.ok()
    };
    // STRICT, which speaks of mutual TLS, and this is; plaintext is refused, by the agent.
    pair.apply(vec![Change::Policy(Policy::deny_plaintext(policy_name("strict"), Scope::Namespace)), only("client")]);
    eventually("the agent judges", || pair.server.mode().undecided && !pair.server.mode().default_strict).await;
    for offers in [TCP, HTTP, &["istio"], &["istio-h2", "istio", "h2"]] {
        assert_eq!(ask("client", offers).await.as_deref(), Some("as it is"), "{offers:?}");
    }
    assert_eq!((served.load(SeqCst), ask("guest", TCP).await, served.load(SeqCst)), (4, None, 4));
    plain_refused(&pair, APP).await;
    let log = pair.far.log();
    let line = ["src.identity=\"spiffe://cluster.local/ns/bookinfo/sa/client\"", "dst.addr=198.18.0.2:8080"];
    assert!(log.lines().any(|entry| line.iter().all(|part| entry.contains(part))), "{log}");
    assert!(pair.far.metrics().contains("connection_security_policy=\"mutual_tls\""));
    // What is open is cut by a policy that comes later.
    let config = speaks(&pair, Some(&pair.authority), "client", TCP);
    let mut open = shake(plain(&pair, APP).await, config).await.unwrap();
    soon(open.write_all(b"x")).await.unwrap();
    soon(open.read_exact(&mut [0])).await.unwrap();
    pair.apply(vec![only("guest")]);
    assert!(soon(open.read_exact(&mut [0])).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn features_F7_who_shows_nothing_or_something_wrong_is_no_client() {
    let pair = with_a_sidecar().await;
    let served = pair.server.echo(APP, "");
    let other = Authority::new();
    for (authority, why) in [(None, "no certificate"), (Some(&*other), "another authority")] {
        let config = speaks(&pair, authority, "client", TCP);
        assert!(says(shake(plain(&pair, APP).await, config).await, "x").await.is_err(), "{why}");
    }
    assert_eq!((served.load(SeqCst), pair.far.refused(Reason::Handshake)), (0, 2));
    // TLS of somebody's own is his application's affair, whoever is asked for.
    let config = speaks(&pair, Some(&pair.authority), "client", &["h2", "http/1.1"]);
    assert!(shake(plain(&pair, APP).await, config).await.is_err(), "the app echoes, and is no server of TLS");
    assert_eq!((served.load(SeqCst), pair.far.refused(Reason::Handshake)), (1, 2));
    // Nor does anybody look at connections of who has a tunnel, or of nobody that is known.
    pair.apply(vec![Change::Workload(pair.client.workload())]);
    let config = speaks(&pair, Some(&pair.authority), "client", TCP);
    assert!(shake(plain(&pair, APP).await, config).await.is_err());
    assert_eq!((served.load(SeqCst), pair.far.refused(Reason::Handshake)), (2, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn features_F7_a_sidecar_is_led_through_the_waypoint_as_who_it_is() {
    let pair = with_a_sidecar().await;
    let served = pair.server.echo(APP, "");
    let waypoint = Waypoint::start(&pair, "waypoint", 66, StatusCode::OK);
    let led = Policy::through(NAMESPACE.into());
    let mut server = Workload { waypoint: through(), ..serving(pair.server.workload()) };
    server.authorization_policies = [led.name.clone()].into();
    pair.apply(vec![
        Change::Policy(led),
        Change::Service(waypoints()),
        Change::Workload(endpoint("waypoint", 66)),
        Change::Workload(server),
    ]);
    let config = speaks(&pair, Some(&pair.authority), "client", HTTP);
    let mut open = shake(plain(&pair, APP).await, config).await.unwrap();
    let from: SocketAddr = open.get_ref().0.local_addr().unwrap();
    soon(open.write_all(b"through")).await.unwrap();
    let mut answer = [0; 7];
    soon(open.read_exact(&mut answer)).await.unwrap();
    assert_eq!((&answer, served.load(SeqCst)), (b"through", 0));
    let said = format!("for=\"{from}\";identity=\"{}\"", identity("client"));
    assert_eq!(*waypoint.said.lock(), [said]);
    drop(open);
    // It is gone, and so is the way: nobody goes around it.
    pair.apply(vec![Change::RemoveAddress(endpoint("waypoint", 66).uid)]);
    let config = speaks(&pair, Some(&pair.authority), "client", TCP);
    assert!(says(shake(plain(&pair, APP).await, config).await, "x").await.is_err());
    assert_eq!((pair.far.refused(Reason::NoWaypoint), served.load(SeqCst)), (1, 0));
}
