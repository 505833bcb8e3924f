//! Connections that a pod opens: routes, retries, refusals, loops.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use mesh_core::workload::TunnelProtocol;
use mesh_core::{Change, Service, ports};
use tokio::io::AsyncWriteExt;

use super::mesh::*;
use crate::proxy::Reason;

#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_reached_through_a_tunnel() {
    let pair = Pair::start().await;
    let served = pair.server.echo(APP, "hello ");
    let mut app = pair.client.connect(pair.service_address()).await;
    expect(&mut app, "hello ").await;
    exchange(&mut app, "ping").await;
    let client = app.local_addr().unwrap();
    drop(app);
    eventually("both ends are closed", || pair.client.live() + pair.server.live() == 0).await;
    assert_eq!(served.load(std::sync::atomic::Ordering::SeqCst), 1);
    // The app sees the client's own address and port.
    assert_eq!(*pair.far.kernel.clients.lock(), [client]);
    let (near, far) = (pair.near.log(), pair.far.log());
    for part in [
        "connection complete",
        "src.workload=\"client\"",
        "src.identity=\"spiffe://cluster.local/ns/bookinfo/sa/client\"",
        "dst.service=\"server.bookinfo.svc.cluster.local\"",
        "dst.identity=\"spiffe://cluster.local/ns/bookinfo/sa/server\"",
        "dst.hbone_addr=198.18.0.2:8080",
    ] {
        assert!(near.contains(part), "{part} in {near}");
        assert!(far.contains(part), "{part} in {far}");
    }
    assert!(near.contains("bytes_sent=4 bytes_recv=10"), "{near}");
    assert!(far.contains("bytes_sent=10 bytes_recv=4"), "{far}");
    for node in [&pair.near, &pair.far] {
        assert!(node.metrics().contains("connection_security_policy=\"mutual_tls\""), "{}", node.metrics());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_is_reached_by_its_own_address_in_both_families() {
    let pair = Pair::start().await;
    for ip in [v4(2), v6(2)] {
        let address = SocketAddr::new(ip, APP);
        echo(pair.server.listen_at(address), "");
        let mut app = pair.client.connect(address).await;
        exchange(&mut app, "direct").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hardening_B66_the_outside_is_reached_as_asked() {
    let pair = Pair::start().await;
    let outside = pair.hub.attach(&[std::net::IpAddr::from([192, 0, 2, 7])]);
    let listener = outside.listen(SocketAddr::from(([192, 0, 2, 7], 443)));
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let mut app = pair.client.connect(SocketAddr::from(([192, 0, 2, 7], 443))).await;
    let (stream, peer) = soon(listener.accept()).await.unwrap();
    assert_eq!(peer.ip(), pair.client.ip());
    tokio::spawn(async move {
        let (mut read, mut write) = stream.into_split();
        tokio::io::copy(&mut read, &mut write).await
    });
    exchange(&mut app, "plain").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_without_a_tunnel_is_reached_in_plaintext() {
    let pair = Pair::start().await;
    let plain = pair.hub.attach(&[v4(9)]);
    let listener = plain.listen(SocketAddr::new(v4(9), APP));
    listener.set_nonblocking(true).unwrap();
    echo(tokio::net::TcpListener::from_std(listener).unwrap(), "");
    pair.apply(vec![Change::Workload(workload("plain", vec![v4(9)]))]);
    let mut app = pair.client.connect(SocketAddr::new(v4(9), APP)).await;
    exchange(&mut app, "plain").await;
    drop(app);
    eventually("closed", || pair.client.live() == 0).await;
    assert!(pair.near.metrics().contains("connection_security_policy=\"unknown\""));
    assert!(!pair.near.metrics().contains("mutual_tls"));
}

/// One of two endpoints refuses tunnels: no connection may notice.
#[tokio::test(flavor = "multi_thread")]
async fn a_failing_endpoint_is_replaced_before_the_first_byte() {
    let pair = Pair::start().await;
    pair.server.echo(APP, "");
    // An address of a namespace that nothing listens in: refused at once.
    let _dead = pair.hub.attach(&[v4(3)]);
    let mut dead = workload("dead", vec![v4(3)]);
    dead.protocol = TunnelProtocol::Hbone;
    pair.apply(vec![Change::Workload(serving(dead))]);
    for n in 0..24 {
        let mut app = pair.client.connect(pair.service_address()).await;
        exchange(&mut app, &format!("request {n}")).await;
    }
    // Five failures in a row eject it: then it is not even tried.
    assert_eq!(ejected(&pair), ["dead"]);
}

fn ejected(pair: &Pair) -> Vec<String> {
    let snapshot = pair.near.state.snapshot_owned();
    let set = snapshot.endpoints(&service().key()).unwrap();
    let now = pair.near.shared.now_ms();
    let members = set.members().iter().filter(|endpoint| endpoint.is_ejected(now));
    members.map(|endpoint| endpoint.workload.name.to_string()).collect()
}

/// An endpoint that says that it takes no more tunnels now is replaced, and not taken for broken.
#[tokio::test(flavor = "multi_thread")]
async fn hardening_F35_an_endpoint_at_its_limit_is_not_ejected() {
    let pair = Pair::start().await;
    pair.server.echo(APP, "");
    let full = pair.hub.attach(&[v4(3)]);
    let listener = full.listen(SocketAddr::new(v4(3), ports::HBONE));
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let dials = Arc::new(AtomicUsize::new(0));
    let count = dials.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            count.fetch_add(1, Relaxed);
            let _ = stream.write_all(&[21, 3, 3, 0, 2, 2, 90]).await;
        }
    });
    let mut workload = workload("full", vec![v4(3)]);
    workload.protocol = TunnelProtocol::Hbone;
    pair.apply(vec![Change::Workload(serving(workload))]);
    for n in 0..100 {
        let mut app = pair.client.connect(pair.service_address()).await;
        exchange(&mut app, &format!("request {n}")).await;
        if dials.load(Relaxed) >= 6 {
            break;
        }
    }
    // Five failures in a row would eject it.
    assert!(dials.load(Relaxed) >= 6);
    assert_eq!(ejected(&pair), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn hardening_B46_an_endpoint_whose_app_is_closed_is_replaced() {
    let pair = Pair::start().await;
    let second = TestPod::start(&pair.hub, &pair.far, "second", 4);
    second.echo(APP, "");
    // "server" is up with its agent but has no app on the port: 503.
    pair.apply(vec![Change::Workload(serving(second.workload()))]);
    for _ in 0..8 {
        let mut app = pair.client.connect(pair.service_address()).await;
        exchange(&mut app, "answered by the other").await;
    }
    assert!(pair.far.refused(Reason::AppUnreachable) > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn features_R9_a_refused_app_port_is_a_reset() {
    let pair = Pair::start().await;
    let started = Instant::now();
    pair.client.expect_refused(pair.service_address()).await;
    assert!(started.elapsed() < Duration::from_secs(5));
    assert_eq!(pair.near.refused(Reason::Upstream), 1);
    assert_eq!(pair.far.refused(Reason::AppUnreachable), 1);
    eventually("both ends are closed", || pair.client.live() + pair.server.live() == 0).await;
    assert!(pair.near.metrics().contains("response_flags=\"CONNECT\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn hardening_B63_services_without_endpoint_or_port_are_reset() {
    let pair = Pair::start().await;
    let mut empty = Service { hostname: "empty.bookinfo.svc.cluster.local".into(), name: "empty".into(), ..service() };
    let empty_vip = std::net::IpAddr::from([198, 18, 100, 2]);
    empty.addresses[0].cidr = empty_vip.into();
    pair.apply(vec![Change::Service(empty)]);
    for (destination, reason) in
        [(SocketAddr::new(empty_vip, PORT), Reason::NoEndpoints), (SocketAddr::new(vip(), 81), Reason::UnknownPort)]
    {
        pair.client.expect_refused(destination).await;
        assert_eq!(pair.near.refused(reason), 1, "{reason}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hardening_B64_a_pod_that_is_its_own_endpoint_reaches_itself_once() {
    let pair = Pair::start().await;
    let served = pair.client.echo(APP, "");
    pair.apply(vec![
        Change::Workload(serving(pair.client.workload())),
        Change::RemoveAddress(pair.server.workload().uid),
    ]);
    let mut app = pair.client.connect(pair.service_address()).await;
    exchange(&mut app, "to myself").await;
    assert_eq!(served.load(std::sync::atomic::Ordering::SeqCst), 1);
    drop(app);
    eventually("closed", || pair.client.live() == 0).await;
    // Both ends are reported, with what was really checked: the kernel told who calls, no TLS did.
    let metrics = pair.near.metrics();
    for reporter in ["source", "destination"] {
        for (family, value) in
            [("connections_opened", 1), ("connections_closed", 1), ("received_bytes", 9), ("sent_bytes", 9)]
        {
            let line = metrics
                .lines()
                .find(|line| line.starts_with(&format!("istio_tcp_{family}_total{{reporter=\"{reporter}\"")))
                .unwrap_or_else(|| panic!("{family} by the {reporter} in {metrics}"));
            for part in [
                "connection_security_policy=\"kernel\"",
                "source_principal=\"spiffe://cluster.local/ns/bookinfo/sa/client\"",
                "destination_principal=\"spiffe://cluster.local/ns/bookinfo/sa/client\"",
                "destination_service=\"server.bookinfo.svc.cluster.local\"",
            ] {
                assert!(line.contains(part), "{part} in {line}");
            }
            assert!(line.ends_with(&format!("}} {value}")), "{line}");
        }
    }
    let mut app = pair.client.connect(pair.service_address()).await;
    exchange(&mut app, "again").await;
    // As a destination the pod obeys its policies, also while the connection lives.
    pair.apply(vec![Change::Policy(deny_all())]);
    expect_reset(&mut app).await;
    pair.client.expect_refused(pair.service_address()).await;
    assert_eq!(pair.near.refused(Reason::Denied), 1);
    assert_eq!(served.load(std::sync::atomic::Ordering::SeqCst), 2);
    for reporter in ["source", "destination"] {
        let failed = format!("istio_tcp_connections_failed_total{{reporter=\"{reporter}\"");
        let metrics = pair.near.metrics();
        let line = metrics.lines().find(|line| line.starts_with(&failed)).expect("both ends report the denial");
        assert!(line.contains("response_flags=\"DENY\""), "{line}");
    }
}

fn deny_all() -> mesh_core::Policy {
    use mesh_core::policy::{Action, Match, Scope};
    let anyone = Match { not_destination_ports: vec![1], ..Match::default() };
    policy("deny-all", Scope::Namespace, Action::Deny, vec![vec![anyone]])
}

#[tokio::test(flavor = "multi_thread")]
async fn hardening_B65_F53_ports_of_the_mesh_are_refused() {
    let pair = Pair::start().await;
    for port in [ports::OUTBOUND, ports::INBOUND_PLAINTEXT, ports::HBONE] {
        for ip in [pair.server.ip(), pair.client.ip()] {
            pair.client.expect_refused(SocketAddr::new(ip, port)).await;
        }
    }
    assert_eq!(pair.near.refused(Reason::MeshPort), 6);
    assert_eq!(pair.near.shared.pool.stats().tunnels, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn hardening_B53_a_connection_without_a_slot_or_from_a_stranger_is_reset() {
    let pair = Pair::start().await;
    let listener = SocketAddr::from(([127, 0, 0, 1], ports::OUTBOUND));
    expect_refused(pair.client.netns.socket(pair.client.ip()), listener).await;
    assert_eq!(pair.near.refused(Reason::NotCaptured), 1);
    // A slot that is used by anything but the pod's own address.
    let slot = pair.near.kernel.slot(pair.service_address());
    expect_refused(pair.client.netns.socket([127, 0, 0, 1].into()), slot).await;
    assert_eq!(pair.near.refused(Reason::PeerNotPod), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn hardening_F9_nothing_passes_before_the_first_configuration() {
    let pair = Pair::unsynced(|config| config.hold_unsynced = Duration::from_millis(200)).await;
    let outside = SocketAddr::from(([192, 0, 2, 7], 443));
    pair.client.expect_refused(outside).await;
    assert_eq!(pair.near.refused(Reason::NotSynced), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_held_until_the_first_configuration() {
    let pair = Pair::unsynced(|_| ()).await;
    pair.server.echo(APP, "");
    let mut app = pair.client.connect(pair.service_address()).await;
    eventually("held", || pair.client.live() == 1).await;
    pair.apply(vec![
        Change::Workload(pair.client.workload()),
        Change::Workload(serving(pair.server.workload())),
        Change::Service(service()),
        Change::Synced,
    ]);
    exchange(&mut app, "after the wait").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_address_of_the_mesh_is_held_then_refused() {
    let pair = Pair::with(|config| config.hold_unknown = Duration::from_millis(300)).await;
    let address = SocketAddr::new(v4(7), APP);
    pair.client.expect_refused(address).await;
    assert_eq!(pair.near.refused(Reason::UnknownMeshAddress), 1);
    // Meanwhile the control plane was asked, once.
    assert_eq!(pair.near.wanted.lock().try_recv(), Ok(address.ip()));
    assert!(pair.near.wanted.lock().try_recv().is_err());

    let pair = Pair::start().await;
    let mut app = pair.client.connect(address).await;
    eventually("held", || pair.client.live() == 1).await;
    let late = TestPod::start(&pair.hub, &pair.far, "late", 7);
    late.echo(APP, "");
    pair.apply(vec![Change::Workload(late.workload())]);
    exchange(&mut app, "better late").await;
}

/// The control plane answers, but with another workload: that one is not what was asked for.
#[tokio::test(flavor = "multi_thread")]
async fn hardening_B109_an_answer_about_another_address_serves_nobody() {
    let pair = Pair::with(|config| config.hold_unknown = Duration::from_secs(3)).await;
    let asked = SocketAddr::new(v4(7), APP);
    let mut app = pair.client.connect(asked).await;
    eventually("asked", || pair.near.wanted.lock().try_recv() == Ok(asked.ip())).await;
    let other = TestPod::start(&pair.hub, &pair.far, "other", 8);
    let served = other.echo(APP, "");
    pair.apply(vec![Change::Workload(other.workload())]);
    expect_reset(&mut app).await;
    assert_eq!(pair.near.refused(Reason::UnknownMeshAddress), 1);
    assert_eq!(served.load(Relaxed), 0, "nothing reached the other one");
    let mut known = pair.client.connect(SocketAddr::new(v4(8), APP)).await;
    exchange(&mut known, "under its own address").await;
}

/// A pod that walks through addresses holds no more than its share, and nothing of anybody else's.
#[tokio::test(flavor = "multi_thread")]
async fn hardening_9_11_few_connections_wait_for_unknown_addresses() {
    let pair = Pair::with(|config| {
        config.waiting_per_pod = 2;
        config.hold_unknown = DEADLINE;
    })
    .await;
    pair.server.echo(APP, "");
    let mut held = Vec::new();
    for last in [100, 101] {
        held.push(pair.client.connect(SocketAddr::new(v4(last), APP)).await);
    }
    eventually("two are held", || pair.client.live() == 2).await;
    pair.client.expect_refused(SocketAddr::new(v4(102), APP)).await;
    assert_eq!(pair.near.refused(Reason::UnknownMeshAddress), 1);
    let mut app = pair.client.connect(pair.service_address()).await;
    exchange(&mut app, "known").await;
    // The app that gives up is noticed at the end of the wait at the latest; a pod that goes takes its places along.
    pair.apply(vec![Change::Ranges(Vec::new())]);
    eventually("nothing waits", || pair.near.refused(Reason::Upstream) == 2).await;
}

/// Several accounts may serve one service; what is reported is the one that proved itself.
#[tokio::test(flavor = "multi_thread")]
async fn the_reported_identity_is_the_proven_one() {
    let pair = Pair::start().await;
    pair.server.echo(APP, "");
    // The workload's description is a moment behind: its account has changed, the service allows both.
    let mut behind = serving(pair.server.workload());
    behind.service_account = "former".into();
    let allowing = Service { subject_alt_names: vec![identity("server"), identity("third")], ..service() };
    pair.near.apply(vec![Change::Workload(behind), Change::Service(allowing)]);
    let mut app = pair.client.connect(pair.service_address()).await;
    exchange(&mut app, "hello").await;
    drop(app);
    eventually("closed", || pair.client.live() == 0).await;
    let (log, metrics) = (pair.near.log(), pair.near.metrics());
    assert!(log.contains("dst.identity=\"spiffe://cluster.local/ns/bookinfo/sa/server\""), "{log}");
    assert!(metrics.contains("destination_principal=\"spiffe://cluster.local/ns/bookinfo/sa/server\""), "{metrics}");
    assert!(!log.contains("sa/former") && !metrics.contains("sa/former"));
}

#[tokio::test(flavor = "multi_thread")]
async fn hardening_B74_somebody_else_than_expected_gets_nothing() {
    let pair = Pair::start().await;
    let served = pair.server.echo(APP, "");
    // The configuration says that another account runs there.
    let mut other = serving(pair.server.workload());
    other.service_account = "reviews".into();
    pair.near.apply(vec![Change::Workload(other)]);
    pair.client.expect_refused(pair.service_address()).await;
    assert_eq!(pair.near.refused(Reason::PeerIdentityMismatch), 1);
    assert_eq!(served.load(std::sync::atomic::Ordering::SeqCst), 0);
    assert!(pair.near.metrics().contains("response_flags=\"TLS_FAILURE\""), "{}", pair.near.metrics());
    assert!(!pair.near.metrics().contains("mutual_tls"));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_certificate_nothing_leaves() {
    let pair = Pair::with(|config| config.certificate_wait = Duration::from_millis(100)).await;
    let served = pair.server.echo(APP, "");
    pair.authority.withheld.lock().push(identity("client"));
    pair.client.expect_refused(pair.service_address()).await;
    assert_eq!(pair.near.refused(Reason::NoCertificate), 1);
    assert_eq!(served.load(std::sync::atomic::Ordering::SeqCst), 0);
    assert!(pair.near.metrics().contains("response_flags=\"IDENTITY_ERROR\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_pod_cannot_take_more_than_its_share() {
    let pair = Pair::with(|config| config.connections_per_pod = 3).await;
    pair.server.echo(APP, "");
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut app = pair.client.connect(pair.service_address()).await;
        exchange(&mut app, "in").await;
        held.push(app);
    }
    pair.client.expect_refused(pair.service_address()).await;
    assert_eq!(pair.near.refused(Reason::ConnectionLimit), 1);
    // Room again once one has ended.
    held.pop();
    eventually("one has left", || pair.client.live() == 2 && pair.server.live() == 2).await;
    let mut app = pair.client.connect(pair.service_address()).await;
    exchange(&mut app, "in again").await;
}
