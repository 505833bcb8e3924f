//! Tunnels that arrive for a pod: what a peer may ask for. The peer of these tests is authenticated and hostile: it writes its requests by hand.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::StatusCode;
use mesh_core::{Change, ports};
use mesh_transport::hbone::{Authority, ConnectRequest, HboneError, HboneStream, Pool, PoolConfig, TunnelKey};

use super::mesh::*;
use crate::proxy::Reason;

/// Sends one CONNECT from the client pod's address with the client pod's certificate.
async fn ask(pair: &Pair, authority: Authority) -> Result<HboneStream, HboneError> {
    let request = ConnectRequest { authority, ..ConnectRequest::to(pair.server_address()) };
    ask_with(pair, request).await
}

pub(super) async fn ask_with(pair: &Pair, request: ConnectRequest) -> Result<HboneStream, HboneError> {
    let tunnel = SocketAddr::new(pair.server.ip(), ports::HBONE);
    let key = TunnelKey {
        source: identity("client"),
        source_uid: "hostile".into(),
        source_ip: pair.client.ip(),
        destination: tunnel,
        destination_uid: "server".into(),
        destination_generation: 0,
        expected: Arc::new([identity("server")]),
        lane: 0,
    };
    let pod = pair.client.pod.clone();
    let dial = move || async move { crate::proxy::context::dial(&pod, tunnel).await };
    let patient = PoolConfig {
        dial_timeout: DEADLINE,
        tls_timeout: DEADLINE,
        request_timeout: DEADLINE,
        ..PoolConfig::default()
    };
    let pool = Pool::new(patient);
    soon(pool.connect(&key, pair.authority.issue(&identity("client")), dial, request)).await.map(|(stream, _)| stream)
}

pub(super) fn status(result: Result<HboneStream, HboneError>) -> u16 {
    match result {
        Ok(_) => 200,
        Err(HboneError::Refused(status)) => status.as_u16(),
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hardening_B29_B30_B31_only_the_pods_own_address_may_be_asked_for() {
    let pair = Pair::start().await;
    let served = pair.server.echo(APP, "");
    let neighbour = TestPod::start(&pair.hub, &pair.far, "neighbour", 5);
    neighbour.echo(APP, "");
    let before = mesh_transport::hbone::refusals().ip_mismatch;
    let v4_mapped: IpAddr = "::ffff:198.18.0.2".parse().unwrap();
    for (ip, expected) in [
        (pair.server.ip(), 200),
        (v4_mapped, 200),
        (neighbour.ip(), 400),
        (pair.client.ip(), 400),
        (vip(), 400),
        (IpAddr::from([127, 0, 0, 1]), 400),
        ("::1".parse().unwrap(), 400),
        (IpAddr::from([0, 0, 0, 0]), 400),
        (IpAddr::from([169, 254, 169, 254]), 400),
        (IpAddr::from([224, 0, 0, 1]), 400),
        (IpAddr::from([255, 255, 255, 255]), 400),
    ] {
        let answer = status(ask(&pair, Authority::Address(SocketAddr::new(ip, APP))).await);
        assert_eq!(answer, expected, "{ip}");
    }
    eventually("the two good ones were served", || served.load(Ordering::SeqCst) == 2).await;
    assert!(mesh_transport::hbone::refusals().ip_mismatch >= before + 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn hardening_B32_B51_ports_of_the_mesh_are_not_targets() {
    let pair = Pair::start().await;
    for port in [ports::OUTBOUND, ports::INBOUND_PLAINTEXT, ports::HBONE] {
        let answer = status(ask(&pair, Authority::Address(SocketAddr::new(pair.server.ip(), port))).await);
        assert_eq!(answer, 503, "{port}");
    }
    assert_eq!(pair.far.refused(Reason::MeshPort), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn hardening_B33_only_hosts_that_the_pod_backs_are_served() {
    let pair = Pair::start().await;
    pair.server.echo(APP, "");
    let mut elsewhere = service();
    elsewhere.namespace = "other".into();
    elsewhere.hostname = "server.other.svc.cluster.local".into();
    elsewhere.addresses.clear();
    pair.apply(vec![Change::Service(elsewhere)]);
    for (host, port, expected) in [
        ("server.bookinfo.svc.cluster.local", PORT, 200),
        ("server.bookinfo.svc.cluster.local", 81, 503),
        ("server.other.svc.cluster.local", PORT, 503),
        ("unknown.bookinfo.svc.cluster.local", PORT, 503),
    ] {
        let answer = status(ask(&pair, Authority::Host(host.into(), port)).await);
        assert_eq!(answer, expected, "{host}:{port}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hardening_B34_B35_headers_name_a_port_for_the_app_and_nothing_else() {
    use mesh_transport::hbone::Forwarded;
    let pair = Pair::start().await;
    pair.server.echo(APP, "");
    let claims = |client: SocketAddr| ConnectRequest {
        forwarded: Some(Forwarded { client: Some(client), ..Forwarded::default() }),
        ..ConnectRequest::to(pair.server_address())
    };
    let honest = SocketAddr::new(pair.client.ip(), 40_000);
    let forged = SocketAddr::new(v4(77), 40_001);
    let _honest = ask_with(&pair, claims(honest)).await.unwrap();
    let _forged = ask_with(&pair, claims(forged)).await.unwrap();
    let clients = pair.far.kernel.clients.lock().clone();
    assert_eq!(clients[0], honest);
    assert_eq!(clients[1].ip(), pair.client.ip());
    assert_ne!(clients[1].port(), forged.port());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_the_configuration_does_not_know_serves_nobody() {
    let pair = Pair::with(|config| config.hold_unknown = std::time::Duration::from_millis(100)).await;
    let served = pair.server.echo(APP, "");
    pair.far.apply(vec![Change::RemoveAddress(pair.server.workload().uid)]);
    assert_eq!(status(ask(&pair, Authority::Address(pair.server_address())).await), 503);
    // Nor does one under whose address somebody else is shown: that one's policies are not this pod's.
    let mut other = workload("somebody-else", pair.server.pod.ips.clone());
    other.protocol = mesh_core::workload::TunnelProtocol::Hbone;
    pair.far.apply(vec![Change::Workload(other)]);
    assert_eq!(status(ask(&pair, Authority::Address(pair.server_address())).await), 503);
    assert_eq!(pair.far.refused(Reason::UnknownWorkload), 2);
    assert_eq!(served.load(Ordering::SeqCst), 0);
}

/// Somebody else may have filled the places: whom that keeps out must not take the pod for broken.
#[tokio::test(flavor = "multi_thread")]
async fn hardening_F35_a_pod_without_a_place_for_a_tunnel_says_so() {
    let pair = Pair::with(|config| config.tunnels_per_pod = 0).await;
    let refused = ask(&pair, Authority::Address(pair.server_address())).await;
    assert!(matches!(refused, Err(HboneError::PeerBusy)), "{:?}", refused.err());
    assert_eq!(pair.far.refused(Reason::ConnectionLimit), 1);
}

/// The client's agent has heard of the pod, the pod's own has not yet.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_waits_a_moment_for_its_own_description() {
    let pair = Pair::with(|config| config.hold_unknown = DEADLINE).await;
    pair.server.echo(APP, "");
    pair.far.apply(vec![Change::RemoveAddress(pair.server.workload().uid)]);
    let mut app = pair.client.connect(pair.service_address()).await;
    eventually("held", || pair.server.live() == 1).await;
    pair.far.apply(vec![Change::Workload(workload("unrelated", vec![v4(200)]))]);
    pair.far.apply(vec![Change::Workload(serving(pair.server.workload()))]);
    exchange(&mut app, "in the end").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hardening_F27_without_a_place_for_the_clients_address_the_flow_is_refused() {
    let pair = Pair::start().await;
    let served = pair.server.echo(APP, "");
    pair.far.kernel.client_map_full.store(true, Ordering::Relaxed);
    assert_eq!(
        status(ask(&pair, Authority::Address(pair.server_address())).await),
        StatusCode::SERVICE_UNAVAILABLE.as_u16()
    );
    assert_eq!(pair.far.refused(Reason::ClientAddress), 1);
    assert_eq!(served.load(Ordering::SeqCst), 0);
}

/// The map was full when the connection left: the app has it already, and takes the pod's own address for its client.
#[tokio::test(flavor = "multi_thread")]
async fn hardening_F27_an_app_that_does_not_see_its_client_is_reset() {
    use mesh_core::Change;
    let pair = Pair::start().await;
    let app = pair.server.listen(APP);
    pair.far.kernel.client_hidden.store(true, Ordering::Relaxed);
    let asked = async { status(ask(&pair, Authority::Address(pair.server_address())).await) };
    let (answer, accepted) = tokio::join!(asked, soon(app.accept()));
    assert_eq!(answer, 503);
    expect_reset(&mut accepted.unwrap().0).await;
    assert_eq!(pair.far.refused(Reason::ClientAddress), 1);
    // The same for plaintext.
    *pair.far.kernel.steered.lock() = Some(APP);
    let steered = SocketAddr::new(pair.server.ip(), ports::INBOUND_PLAINTEXT);
    let plain = expect_refused(pair.client.netns.socket(pair.client.ip()), steered);
    let ((), accepted) = tokio::join!(plain, soon(app.accept()));
    expect_reset(&mut accepted.unwrap().0).await;
    assert_eq!(pair.far.refused(Reason::ClientAddress), 2);
    // And for a pod that calls itself.
    let own = pair.client.listen(APP);
    pair.apply(vec![
        Change::Workload(serving(pair.client.workload())),
        Change::RemoveAddress(pair.server.workload().uid),
    ]);
    pair.near.kernel.client_hidden.store(true, Ordering::Relaxed);
    let ((), accepted) = tokio::join!(pair.client.expect_refused(pair.service_address()), soon(own.accept()));
    expect_reset(&mut accepted.unwrap().0).await;
    // An app that resets by itself is no such case: its client hears of the reset, not of a refusal.
    assert_eq!(pair.near.refused(Reason::ClientAddress), 1);
}

/// F52: a source address proves nothing, the certificate decides. A pod that presents its own certificate from another pod's address is authorized as
/// itself and gets no name but its own.
#[tokio::test(flavor = "multi_thread")]
async fn hardening_F52_the_certificate_decides_whatever_the_address() {
    use mesh_core::policy::{Action, Match, Scope, StringMatch};
    let pair = Pair::start().await;
    let served = pair.server.echo(APP, "");
    let only_client =
        Match { principals: vec![StringMatch::Exact(identity("client").principal().into())], ..Match::default() };
    pair.apply(vec![Change::Policy(policy("only-client", Scope::Namespace, Action::Allow, vec![vec![only_client]]))]);
    let tunnel = SocketAddr::new(pair.server.ip(), ports::HBONE);
    let key = TunnelKey {
        source: identity("thief"),
        source_uid: "thief".into(),
        source_ip: pair.client.ip(),
        destination: tunnel,
        destination_uid: "server".into(),
        destination_generation: 0,
        expected: Arc::new([identity("server")]),
        lane: 0,
    };
    let pod = pair.client.pod.clone();
    let dial = move || async move { crate::proxy::context::dial(&pod, tunnel).await };
    let pool = Pool::new(PoolConfig::default());
    let result = soon(pool.connect(
        &key,
        pair.authority.issue(&identity("thief")),
        dial,
        ConnectRequest::to(pair.server_address()),
    ))
    .await;
    assert_eq!(status(result.map(|(stream, _)| stream)), 401);
    assert_eq!(served.load(Ordering::SeqCst), 0);
    eventually("the refusal is logged", || pair.far.log().contains("direction=\"inbound\"")).await;
    let log = pair.far.log();
    assert!(log.contains("src.identity=\"spiffe://cluster.local/ns/bookinfo/sa/thief\""), "{log}");
    assert!(!log.contains("src.workload=\"client\""), "{log}");
}

/// Every connect to an app has a place in a table of the node while it is under way. Those to a port that does not answer wait for each other, and
/// connects to the pod's other ports for none of them.
#[tokio::test(flavor = "multi_thread")]
async fn hardening_R20_a_port_that_does_not_answer_keeps_no_other_port_waiting() {
    let pair = Pair::with(|config| {
        config.app_connect_timeout = DEADLINE;
        config.app_connects_per_port = 40;
    })
    .await;
    pair.server.echo(APP + 1, "");
    let listener = pair.server.netns.listen(pair.server_address());
    socket2::SockRef::from(&listener).listen(0).unwrap();
    let hung = || ask(&pair, Authority::Address(pair.server_address()));
    // The first few are taken by the backlog.
    let hanging = async {
        futures_util::future::join_all((0..60).map(|_| hung())).await;
        std::future::pending().await
    };
    let other = async {
        eventually("all turns of the port are taken", || pair.far.kernel.clients.lock().len() >= 40).await;
        let answered = ask(&pair, Authority::Address(SocketAddr::new(pair.server.ip(), APP + 1))).await;
        (answered.is_ok(), pair.far.refused(Reason::AppUnreachable))
    };
    let (answered, given_up) = tokio::select! {
        () = hanging => unreachable!("it never ends"),
        seen = other => seen,
    };
    assert!(answered);
    assert_eq!(given_up, 0, "it waited for others");
    // And everything is as before when they are gone.
    eventually("they are gone", || pair.server.live() == 0).await;
    assert!(ask(&pair, Authority::Address(SocketAddr::new(pair.server.ip(), APP + 1))).await.is_ok());
}

/// An app whose backlog is full does not answer at all.
#[tokio::test(flavor = "multi_thread")]
async fn hardening_B46_an_app_that_does_not_answer_is_given_up() {
    let pair = Pair::with(|config| config.app_connect_timeout = std::time::Duration::from_millis(200)).await;
    let listener = pair.server.netns.listen(pair.server_address());
    socket2::SockRef::from(&listener).listen(0).unwrap();
    let mut held = Vec::new();
    while pair.far.refused(Reason::AppUnreachable) == 0 {
        match ask(&pair, Authority::Address(pair.server_address())).await {
            Ok(stream) => held.push(stream),
            refused => assert_eq!(status(refused), 503),
        }
        assert!(held.len() < 10, "the backlog never fills");
    }
}
