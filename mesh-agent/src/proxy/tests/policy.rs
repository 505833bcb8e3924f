//! Policies and live connections, pods that come and go, addresses that change hands.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mesh_core::policy::{Action, Match, Scope, StringMatch};
use mesh_core::{Change, Policy};
use tokio::net::TcpStream;

use super::mesh::*;
use crate::proxy::{CutReason, Reason};

/// Hardening 0 item 4 and the issue: a live connection that is denied now ends this soon after the change arrived.
const CUT: Duration = Duration::from_millis(100);

fn deny_client() -> Policy {
    let client =
        Match { principals: vec![StringMatch::Exact(identity("client").principal().into())], ..Match::default() };
    policy("deny-client", Scope::WorkloadSelector, Action::Deny, vec![vec![client]])
}

fn namespace_wide(mut policy: Policy) -> Policy {
    policy.scope = Scope::Namespace;
    policy
}

async fn cut_after(pair: &Pair, app: &mut TcpStream, changes: Vec<Change>) -> Duration {
    let started = Instant::now();
    pair.far.apply(changes);
    expect_reset(app).await;
    started.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn hardening_0_4_a_new_policy_cuts_live_connections() {
    let pair = Pair::start().await;
    pair.server.echo(APP, "");
    let mut app = pair.client.connect(pair.service_address()).await;
    exchange(&mut app, "allowed").await;
    let took = cut_after(&pair, &mut app, vec![Change::Policy(namespace_wide(deny_client()))]).await;
    assert!(took < CUT, "{took:?}");
    assert_eq!(pair.far.refused(Reason::DeniedLater), 1);
    // And new ones are refused with what the metric calls DENY.
    pair.client.expect_refused(pair.service_address()).await;
    assert_eq!(pair.near.refused(Reason::DeniedByPeer), 1);
    assert!(pair.near.metrics().contains("response_flags=\"DENY\""));
    pair.far.apply(vec![Change::RemovePolicy(policy_name("deny-client"))]);
    let mut app = pair.client.connect(pair.service_address()).await;
    exchange(&mut app, "allowed again").await;
}

/// The policy is already known and applies to nobody; what changes is the workload that lists it.
#[tokio::test(flavor = "multi_thread")]
async fn hardening_0_4_a_policy_that_arrives_with_a_workload_cuts_too() {
    let pair = Pair::start().await;
    pair.far.apply(vec![Change::Policy(deny_client())]);
    pair.server.echo(APP, "");
    let mut app = pair.client.connect(pair.service_address()).await;
    exchange(&mut app, "allowed").await;
    let mut server = serving(pair.server.workload());
    server.authorization_policies = [policy_name("deny-client")].into();
    let took = cut_after(&pair, &mut app, vec![Change::Workload(server)]).await;
    assert!(took < CUT, "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn hardening_0_3_a_listed_policy_that_is_not_there_denies() {
    let pair = Pair::start().await;
    let served = pair.server.echo(APP, "");
    let mut server = serving(pair.server.workload());
    server.authorization_policies = [policy_name("not-there-yet")].into();
    pair.apply(vec![Change::Workload(server)]);
    pair.client.expect_refused(pair.service_address()).await;
    assert_eq!(served.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_stay_allowed_are_left_alone() {
    let pair = Pair::start().await;
    pair.server.echo(APP, "");
    let mut app = pair.client.connect(pair.service_address()).await;
    exchange(&mut app, "before").await;
    let other =
        Match { principals: vec![StringMatch::Exact(identity("other").principal().into())], ..Match::default() };
    pair.apply(vec![
        Change::Policy(policy("deny-other", Scope::Namespace, Action::Deny, vec![vec![other]])),
        Change::Workload(workload("unrelated", vec![v4(200)])),
    ]);
    for n in 0..20 {
        exchange(&mut app, &format!("still here {n}")).await;
    }
}

/// Policies change while connections are opened as fast as they can: none that is denied may stay open.
#[tokio::test(flavor = "multi_thread")]
async fn hardening_B52_no_connection_slips_between_check_and_change() {
    let pair = Pair::start().await;
    pair.server.echo(APP, "");
    for _ in 0..10 {
        let opening = async {
            let mut apps = Vec::new();
            for _ in 0..10 {
                apps.push(pair.client.try_connect(pair.service_address()).await);
                tokio::task::yield_now().await;
            }
            apps
        };
        let denying = async {
            tokio::task::yield_now().await;
            pair.far.apply(vec![Change::Policy(namespace_wide(deny_client()))]);
        };
        let (apps, ()) = tokio::join!(opening, denying);
        for app in apps {
            refused(app).await;
        }
        eventually("nothing is left", || pair.server.live() == 0).await;
        pair.far.apply(vec![Change::RemovePolicy(policy_name("deny-client"))]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_that_is_gone_takes_its_connections_with_it() {
    let pair = Pair::start().await;
    pair.server.echo(APP, "");
    let mut app = pair.client.connect(pair.service_address()).await;
    exchange(&mut app, "known").await;
    let took = cut_after(&pair, &mut app, vec![Change::RemoveAddress(pair.server.workload().uid)]).await;
    assert!(took < CUT, "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn hardening_F22_a_removed_pod_is_cut_at_once() {
    let mut pair = Pair::start().await;
    pair.server.echo(APP, "");
    let mut app = pair.client.connect(pair.service_address()).await;
    exchange(&mut app, "alive").await;
    let started = Instant::now();
    soon(pair.server.proxy.take().unwrap().stop(None)).await;
    expect_reset(&mut app).await;
    assert!(started.elapsed() < Duration::from_secs(1));
    assert!(pair.far.shared.connections().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_pod_finishes_what_it_has_up_to_the_deadline() {
    let mut pair = Pair::start().await;
    pair.server.echo(APP, "");
    let mut app = pair.client.connect(pair.service_address()).await;
    exchange(&mut app, "before").await;
    let connections = pair.server.proxy.as_ref().unwrap().connections().clone();
    let stopping = tokio::spawn(pair.server.proxy.take().unwrap().stop(Some(DEADLINE)));
    for n in 0..20 {
        exchange(&mut app, &format!("during {n}")).await;
    }
    assert_eq!(connections.len(), 1);
    drop(app);
    soon(stopping).await.unwrap();

    // And no longer than the deadline.
    let mut pair = Pair::start().await;
    pair.server.echo(APP, "");
    let mut app = pair.client.connect(pair.service_address()).await;
    exchange(&mut app, "stubborn").await;
    soon(pair.server.proxy.take().unwrap().stop(Some(Duration::from_millis(100)))).await;
    expect_reset(&mut app).await;
    assert!(pair.far.log().contains(CutReason::DrainDeadline.as_str()), "{}", pair.far.log());
}

/// F21: an address goes from one pod to the next. Who asks for the first must never be served by the second, nor the other way round.
#[tokio::test(flavor = "multi_thread")]
async fn hardening_F21_a_reused_address_never_serves_under_the_former_name() {
    let mut pair = Pair::start().await;
    pair.server.echo(APP, "");
    let mut app = pair.client.connect(pair.server_address()).await;
    exchange(&mut app, "to the first").await;
    assert_eq!(pair.near.shared.pool.stats().tunnels, 1);

    // The pod is deleted, another one gets its address; the client's agent has not heard of it yet.
    let (former, ips) = (pair.server.workload(), pair.server.pod.ips.clone());
    soon(pair.server.proxy.take().unwrap().stop(None)).await;
    let netns = pair.hub.attach(&ips);
    let second = TestPod::enrol(netns, &pair.far, "second-uid", "second", ips);
    let served = second.echo(APP, "");
    pair.far.apply(vec![Change::RemoveAddress(former.uid.clone()), Change::Workload(second.workload())]);
    expect_reset(&mut app).await;
    pair.client.expect_refused(SocketAddr::new(second.ip(), APP)).await;
    assert_eq!(served.load(Ordering::SeqCst), 0);

    // Then it hears of it: tunnels to the former owner are gone, the new one is reached under its own identity.
    pair.near.apply(vec![Change::RemoveAddress(former.uid), Change::Workload(second.workload())]);
    eventually("tunnels to the former owner are closed", || pair.near.shared.pool.stats().tunnels == 0).await;
    let mut app = pair.client.connect(SocketAddr::new(second.ip(), APP)).await;
    exchange(&mut app, "to the second").await;
    drop(app);
    eventually("closed", || pair.client.live() == 0).await;
    assert!(pair.near.log().contains("dst.identity=\"spiffe://cluster.local/ns/bookinfo/sa/second\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_view_shows_who_talks_to_whom() {
    let pair = Pair::start().await;
    pair.server.echo(APP, "");
    let mut app = pair.client.connect(pair.service_address()).await;
    exchange(&mut app, "seen").await;
    let seen = || serde_json::to_value(pair.far.shared.connections()).unwrap()[0]["connections"][0].clone();
    eventually("both directions are counted", || (&seen()["sent"], &seen()["received"]) == (&4.into(), &4.into()))
        .await;
    let seen = seen();
    assert_eq!(seen["direction"], "inbound");
    assert_eq!(seen["identity"], identity("client").to_string());
    assert_eq!(seen["source"], app.local_addr().unwrap().to_string());
    assert_eq!(seen["destination"], pair.server_address().to_string());
}
