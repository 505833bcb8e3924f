//! Plaintext that arrives for a pod.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;

use mesh_core::policy::{Action, Match, Scope, StringMatch};
use mesh_core::{Change, Policy, ports};
use tokio::net::TcpStream;

use super::mesh::*;
use crate::bpf::InboundMode;
use crate::proxy::Reason;

/// A connection of somebody without a mesh, steered to the server's agent as for `port` of the app.
pub(super) async fn plain(pair: &Pair, port: u16) -> TcpStream {
    *pair.far.kernel.steered.lock() = Some(port);
    let steered = SocketAddr::new(pair.server.ip(), ports::INBOUND_PLAINTEXT);
    soon(pair.client.netns.socket(pair.client.ip()).connect(steered)).await.unwrap()
}

pub(super) async fn plain_refused(pair: &Pair, port: u16) {
    *pair.far.kernel.steered.lock() = Some(port);
    let steered = SocketAddr::new(pair.server.ip(), ports::INBOUND_PLAINTEXT);
    expect_refused(pair.client.netns.socket(pair.client.ip()), steered).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hardening_B55_B56_B59_permissive_passes_bytes_untouched_and_believes_none() {
    let pair = Pair::start().await;
    pair.server.echo(APP, "");
    let mut app = plain(&pair, APP).await;
    // The start of a TLS handshake, of HTTP/2 and of PROXY protocol: all just bytes.
    for bytes in
        ["\x16\x03\x01\x02\x00\x01", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n"]
    {
        exchange(&mut app, bytes).await;
    }
    let client = app.local_addr().unwrap();
    drop(app);
    eventually("closed", || pair.server.live() == 0).await;
    assert_eq!(*pair.far.kernel.clients.lock(), [client]);
    let log = pair.far.log();
    assert!(log.contains("dst.addr=198.18.0.2:8080") && !log.contains("src.identity"), "{log}");
    assert!(
        pair.far.metrics().contains("connection_security_policy=\"unknown\"")
            && !pair.far.metrics().contains("mutual_tls")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn hardening_B54_strict_resets_and_opens_nothing() {
    let pair = Pair::start().await;
    let served = pair.server.echo(APP, "");
    let mut early = plain(&pair, APP).await;
    exchange(&mut early, "permitted so far").await;
    pair.apply(vec![Change::Policy(Policy::deny_plaintext(policy_name("strict"), Scope::Namespace))]);
    // The kernel is told, live plaintext is cut, and the agent refuses by itself what still arrives.
    eventually("the kernel is in step", || {
        pair.server.mode() == InboundMode { default_strict: true, ports: vec![], undecided: false }
    })
    .await;
    expect_reset(&mut early).await;
    plain_refused(&pair, APP).await;
    assert_eq!(served.load(Ordering::SeqCst), 1);
    assert_eq!(pair.far.refused(Reason::Denied), 1);
    assert!(pair.far.metrics().contains("response_flags=\"DENY\""));
    // Tunnels are not plaintext.
    let mut app = pair.client.connect(pair.service_address()).await;
    exchange(&mut app, "mutual").await;
    // And back.
    pair.apply(vec![Change::RemovePolicy(policy_name("strict"))]);
    eventually("the kernel is in step again", || {
        pair.server.mode() == InboundMode { default_strict: false, ports: vec![], undecided: false }
    })
    .await;
    let mut app = plain(&pair, APP).await;
    exchange(&mut app, "plain again").await;
}

/// What the kernel may not take for the whole truth: the agent decides by it all the same, but nobody else would for a datagram.
#[tokio::test(flavor = "multi_thread")]
async fn hardening_B54_what_is_not_known_of_the_policies_is_undecided() {
    let pair = Pair::unsynced(|_| ()).await;
    let undecided = async |expected: bool| {
        let open = InboundMode { default_strict: false, ports: vec![], undecided: expected };
        assert_eq!(pair.server.proxy.as_ref().unwrap().inbound_mode(), open);
        eventually("the kernel is in step", || pair.server.mode() == open).await;
    };
    undecided(true).await;
    let mut server = serving(pair.server.workload());
    pair.apply(vec![Change::Workload(server.clone())]);
    undecided(true).await;
    pair.apply(vec![Change::Synced]);
    undecided(false).await;
    server.authorization_policies = [policy_name("late")].into();
    pair.apply(vec![Change::Workload(server)]);
    undecided(true).await;
    let allow = policy("late", Scope::WorkloadSelector, Action::Allow, vec![]);
    pair.apply(vec![Change::Policy(allow)]);
    undecided(false).await;
    pair.apply(vec![Change::PolicyUnreadable { name: policy_name("garbled"), scope: Some(Scope::Namespace) }]);
    undecided(true).await;
    pair.apply(vec![Change::RemovePolicy(policy_name("garbled"))]);
    undecided(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strict_ports_follow_the_policy() {
    let pair = Pair::start().await;
    let mut server = serving(pair.server.workload());
    server.authorization_policies = [policy_name("ports")].into();
    pair.apply(vec![Change::Policy(strict_port("ports", 9090)), Change::Workload(server)]);
    eventually("the kernel is in step", || {
        pair.server.mode() == InboundMode { default_strict: false, ports: vec![(9090, true)], undecided: false }
    })
    .await;
    pair.server.echo(APP, "");
    pair.server.echo(9090, "");
    let mut app = plain(&pair, APP).await;
    exchange(&mut app, "this port is open").await;
    plain_refused(&pair, 9090).await;
}

/// Enrolment writes the mode that it was given at its beginning, whatever was written since.
#[tokio::test(flavor = "multi_thread")]
async fn what_changed_while_the_kernel_took_the_pod_is_in_force() {
    let pair = Pair::start().await;
    let mut server = serving(pair.server.workload());
    server.authorization_policies = [policy_name("ports")].into();
    pair.apply(vec![Change::Policy(strict_port("ports", 9090)), Change::Workload(server)]);
    let strict = InboundMode { default_strict: false, ports: vec![(9090, true)], undecided: false };
    eventually("the kernel is in step", || pair.server.mode() == strict).await;
    pair.far.kernel.modes.lock().insert(pair.server.pod.netns_cookie, InboundMode::default());
    assert!(pair.server.proxy.as_ref().unwrap().kernel_ready());
    assert_eq!(pair.server.mode(), strict);
}

/// Room for the modes of ports comes back when other pods go, and no change of the pod's own says so.
#[tokio::test]
async fn hardening_R20_a_mode_that_found_no_room_is_tried_again() {
    let pair = Pair::start().await;
    pair.far.kernel.ports_full.store(true, Ordering::Relaxed);
    let mut server = serving(pair.server.workload());
    server.authorization_policies = [policy_name("ports")].into();
    pair.apply(vec![Change::Policy(strict_port("ports", 9090)), Change::Workload(server)]);
    eventually("the agent judges", || pair.far.kernel.reduced.load(Ordering::Relaxed) > 0).await;
    assert!(pair.server.mode().undecided);
    // Every task that has something to do has done it: nothing but the time makes it try again.
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    let tried = pair.far.kernel.reduced.load(Ordering::Relaxed);
    pair.far.kernel.ports_full.store(false, Ordering::Relaxed);
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    assert!(pair.server.mode().undecided && pair.far.kernel.reduced.load(Ordering::Relaxed) == tried);
    tokio::time::pause();
    tokio::time::advance(2 * crate::proxy::context::ROOM_RETRY).await;
    tokio::time::resume();
    eventually("the kernel is in step", || {
        pair.server.mode() == InboundMode { default_strict: false, ports: vec![(9090, true)], undecided: false }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hardening_B53_the_agents_own_port_is_no_destination() {
    let pair = Pair::start().await;
    plain_refused(&pair, ports::INBOUND_PLAINTEXT).await;
    assert_eq!(pair.far.refused(Reason::NotCaptured), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn hardening_B61_any_principal_means_somebody() {
    let pair = Pair::start().await;
    let served = pair.server.echo(APP, "");
    let anybody = Match { principals: vec![StringMatch::Presence], ..Match::default() };
    pair.apply(vec![Change::Policy(policy("anybody", Scope::Namespace, Action::Allow, vec![vec![anybody]]))]);
    plain_refused(&pair, APP).await;
    assert_eq!(served.load(Ordering::SeqCst), 0);
    let mut app = pair.client.connect(pair.service_address()).await;
    exchange(&mut app, "I am somebody").await;
}

/// An address is not an identity, whoever's it is: not a workload's that a policy allows, not the one that kubelet's probes are translated to elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn hardening_B57_B58_no_address_makes_a_principal() {
    let pair = Pair::start().await;
    let served = pair.server.echo(APP, "");
    let client =
        Match { principals: vec![StringMatch::Exact(identity("client").principal().into())], ..Match::default() };
    pair.apply(vec![Change::Policy(policy("client", Scope::Namespace, Action::Allow, vec![vec![client]]))]);
    // From the very address that the configuration says is the client's.
    plain_refused(&pair, APP).await;
    let probes = std::net::IpAddr::from([169, 254, 7, 127]);
    let spoofer = pair.hub.attach(&[probes]);
    let steered = SocketAddr::new(pair.server.ip(), ports::INBOUND_PLAINTEXT);
    expect_refused(spoofer.socket(probes), steered).await;
    assert_eq!((served.load(Ordering::SeqCst), pair.far.refused(Reason::Denied)), (0, 2));
    assert!(!pair.far.log().contains("src.identity"));
    let mut app = pair.client.connect(pair.service_address()).await;
    exchange(&mut app, "with a certificate").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hardening_B62_a_port_that_nobody_declared_is_judged_by_its_number() {
    let pair = Pair::start().await;
    let listener = Match { destination_ports: vec![12_345], ..Match::default() };
    pair.apply(vec![Change::Policy(policy("port", Scope::Namespace, Action::Allow, vec![vec![listener]]))]);
    pair.server.echo(12_345, "");
    let mut app = plain(&pair, 12_345).await;
    exchange(&mut app, "undeclared").await;
    plain_refused(&pair, APP).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hardening_F9_plaintext_is_held_until_the_first_configuration() {
    let pair = Pair::unsynced(|config| config.hold_unsynced = std::time::Duration::from_millis(200)).await;
    let served = pair.server.echo(APP, "");
    plain_refused(&pair, APP).await;
    assert_eq!(pair.far.refused(Reason::NotSynced), 1);
    assert_eq!(served.load(Ordering::SeqCst), 0);
}
