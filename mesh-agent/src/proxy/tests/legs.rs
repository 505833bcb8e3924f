//! Whose connections over the network are measured, under which labels: tunnels of two agents, plain connections, and what is no network.

use std::net::SocketAddr;

use mesh_core::Change;

use super::mesh::*;
use super::plaintext::plain;
use crate::proxy::legs;

/// The label sets of a metric, each shortened to `reporter source(principal) destination(principal) policy`, and their values.
fn shown(node: &Node, metric: &str) -> Vec<(String, u64)> {
    shown_in(&node.metrics(), metric)
}

fn shown_in(metrics: &str, metric: &str) -> Vec<(String, u64)> {
    let samples = metrics.lines().filter_map(|line| line.strip_prefix(metric)?.strip_prefix('{')?.split_once("} "));
    let mut shown: Vec<_> = samples
        .map(|(labels, value)| {
            let label = |name: &str| {
                let value = labels.split(&format!("{name}=\"")).nth(1).and_then(|rest| rest.split('"').next());
                value.and_then(|value| value.rsplit('/').next()).unwrap_or_default().to_owned()
            };
            let end =
                |end: &str| format!("{}({})", label(&format!("{end}_workload")), label(&format!("{end}_principal")));
            let (source, destination) = (end("source"), end("destination"));
            let text = format!("{} {source} {destination} {}", label("reporter"), label("connection_security_policy"));
            (text, value.parse().unwrap())
        })
        .collect();
    shown.sort_unstable();
    shown
}

/// Segments that were sent for the first time: a machine that stalls sends some again.
fn segments(node: &Node) -> Vec<(String, u64)> {
    let metrics = node.metrics();
    let all = |name: &str| shown_in(&metrics, &format!("undermesh_tcp_{name}_total"));
    let once = all("segments").into_iter().zip(all("retransmitted_segments"));
    once.map(|((pair, sent), (same, again))| {
        assert_eq!(pair, same, "{metrics}");
        (pair, sent - again)
    })
    .collect()
}

fn pairs(node: &Node) -> Vec<String> {
    shown(node, "undermesh_tcp_segments_total").into_iter().map(|(pair, _)| pair).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn features_TM_13_a_tunnel_is_counted_for_the_pair_of_its_identities_by_both_ends() {
    let pair = Pair::start().await;
    pair.server.echo(APP, "");
    for _ in 0..3 {
        let mut app = pair.client.connect(pair.service_address()).await;
        exchange(&mut app, "ping").await;
    }
    eventually("closed", || pair.client.live() + pair.server.live() == 0).await;
    assert_eq!(pair.near.shared.pool.purge(|_| true), 1);
    let (near, far) = (
        "source client-deploy(client) server-deploy(server) mutual_tls",
        "destination client-deploy(client) server-deploy(server) mutual_tls",
    );
    eventually("both have counted", || (pairs(&pair.near), pairs(&pair.far)) == (vec![near.into()], vec![far.into()]))
        .await;
    for node in [&pair.near, &pair.far] {
        assert!(shown(node, "undermesh_tcp_segments_total")[0].1 >= 3, "{}", node.metrics());
        // At its end, and before if it has taken long.
        let measured = shown(node, "undermesh_tcp_rtt_seconds_count");
        assert!(measured[0].1 >= 1, "{}", node.metrics());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn features_TM_13_a_plain_connection_is_counted_while_it_lives_and_once() {
    let pair = Pair::start().await;
    let outside = pair.hub.attach(&[v4(9)]);
    let listener = outside.listen(SocketAddr::new(v4(9), APP));
    listener.set_nonblocking(true).unwrap();
    echo(tokio::net::TcpListener::from_std(listener).unwrap(), "");
    pair.server.echo(APP, "");
    pair.apply(vec![Change::Workload(workload("plain", vec![v4(9)]))]);
    let mut out = pair.client.connect(SocketAddr::new(v4(9), APP)).await;
    let mut inward = plain(&pair, APP).await;
    for round in 1..=3 {
        exchange(&mut out, "ping").await;
        exchange(&mut inward, "ping").await;
        legs::look(&pair.near.shared).await;
        legs::look(&pair.far.shared).await;
        let out = ("source client-deploy(unknown) plain-deploy(unknown) unknown".to_owned(), round);
        assert_eq!(segments(&pair.near), [out], "{}", pair.near.metrics());
        let inward = ("destination client-deploy(unknown) server-deploy(unknown) unknown".to_owned(), round);
        assert_eq!(segments(&pair.far), [inward], "{}", pair.far.metrics());
    }
    let before = (segments(&pair.near), segments(&pair.far));
    drop((out, inward));
    eventually("closed", || pair.client.live() + pair.server.live() == 0).await;
    assert_eq!((segments(&pair.near), segments(&pair.far)), before, "nothing was sent since");
}

/// A pod that calls itself, and the legs between agents and apps: nothing of that goes over the network.
#[tokio::test(flavor = "multi_thread")]
async fn features_TM_13_what_stays_in_the_pod_is_not_measured() {
    let pair = Pair::start().await;
    pair.client.echo(APP, "");
    pair.apply(vec![
        Change::RemoveAddress(pair.server.workload().uid),
        Change::Workload(serving(pair.client.workload())),
    ]);
    let mut app = pair.client.connect(pair.service_address()).await;
    exchange(&mut app, "to myself").await;
    legs::look(&pair.near.shared).await;
    drop(app);
    eventually("closed", || pair.client.live() == 0).await;
    assert!(pair.near.metrics().contains("connection_security_policy=\"kernel\""), "{}", pair.near.metrics());
    assert_eq!(pairs(&pair.near), [""; 0]);
}
