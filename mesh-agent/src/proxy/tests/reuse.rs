//! Addresses that change hands: tunnels end with the pairing that they were made for, and nobody is served under another's name, however often and in
//! whatever order the news comes.

use std::sync::atomic::Ordering;

use mesh_core::workload::TunnelProtocol;
use mesh_core::{ArcStr, Change, Workload};

use super::mesh::*;
use crate::proxy::Reason;

fn tunnels(pair: &Pair) -> usize {
    pair.near.shared.pool.stats().tunnels
}

/// The former owner still exists and is not mentioned by the change that takes its address.
#[tokio::test(flavor = "multi_thread")]
async fn hardening_F21_a_tunnel_ends_when_somebody_else_takes_the_address() {
    let pair = Pair::start().await;
    pair.server.echo(APP, "");
    // Known by an entry that a user wrote, until a pod claims the address.
    let mut entry = serving(pair.server.workload());
    entry.uid = "Kubernetes/networking.istio.io/WorkloadEntry/bookinfo/server".into();
    pair.near.apply(vec![Change::RemoveAddress(pair.server.workload().uid), Change::Workload(entry)]);
    let mut app = pair.client.connect(pair.server_address()).await;
    exchange(&mut app, "to the entry").await;
    assert_eq!(tunnels(&pair), 1);
    pair.near.apply(vec![Change::Workload(serving(pair.server.workload()))]);
    expect_reset(&mut app).await;
    eventually("the tunnel is closed", || tunnels(&pair) == 0).await;
    let mut app = pair.client.connect(pair.server_address()).await;
    exchange(&mut app, "to the pod").await;
}

/// A workload that keeps one address and gives up the other.
#[tokio::test(flavor = "multi_thread")]
async fn hardening_F21_a_tunnel_ends_with_the_address_that_its_workload_gave_up() {
    let pair = Pair::start().await;
    for ip in [v4(2), v6(2)] {
        echo(pair.server.listen_at(std::net::SocketAddr::new(ip, APP)), "");
    }
    let mut kept = pair.client.connect(std::net::SocketAddr::new(v4(2), APP)).await;
    let mut lost = pair.client.connect(std::net::SocketAddr::new(v6(2), APP)).await;
    exchange(&mut kept, "kept").await;
    exchange(&mut lost, "lost").await;
    assert_eq!(tunnels(&pair), 2);
    let mut fewer = pair.server.workload();
    fewer.addresses.retain(|ip| ip.is_ipv4());
    pair.near.apply(vec![Change::Workload(fewer)]);
    expect_reset(&mut lost).await;
    exchange(&mut kept, "still there").await;
    eventually("one tunnel is left", || tunnels(&pair) == 1).await;
}

/// Whoever fell behind so far that it does not know what changed looks at everything, tunnels included.
#[tokio::test]
async fn hardening_F21_a_lost_update_closes_the_tunnel_all_the_same() {
    let pair = Pair::start().await;
    pair.server.echo(APP, "");
    let mut app = pair.client.connect(pair.server_address()).await;
    exchange(&mut app, "to the first").await;
    pair.near.apply(vec![Change::RemoveAddress(pair.server.workload().uid)]);
    // More changes than a follower may be behind; there is one thread, so it has seen none of them.
    for n in 0..1_000 {
        pair.near.apply(vec![Change::Workload(workload("noise", vec![noise_ip(n)]))]);
    }
    expect_reset(&mut app).await;
    eventually("the tunnel is closed", || tunnels(&pair) == 0).await;
}

fn noise_ip(n: usize) -> std::net::IpAddr {
    std::net::IpAddr::from([198, 19, (n >> 8) as u8, n as u8])
}

/// One address and two accounts that take turns, faster than anything is cleaned up. The client's agent learns of each change before, with or after it
/// happens; connects go on all the time.
#[tokio::test(flavor = "multi_thread")]
async fn hardening_F21_an_address_reused_thousands_of_times_is_never_anothers() {
    // A machine may be faster than what one address may begin.
    let mut pair = Pair::with(|config| config.handshakes_per_second = 1 << 20).await;
    let address = pair.server_address();
    let ips = pair.server.pod.ips.clone();
    let served = pair.server.echo(APP, "");
    let mut owner = pair.server.workload();
    let mut refused_before = 0_u64;
    let reuses = if std::env::var_os("UNDERMESH_SOAK").is_some() { 10_000 } else { 2_000 };
    for n in 0..reuses {
        let name = if n % 2 == 0 { "even" } else { "odd" };
        let next = described(n, name, &ips);
        let change = turn(n, &owner, &next);
        let early = n % 3 == 0;
        if early {
            change.iter().for_each(|changes| pair.near.apply(changes.clone()));
        }
        // The pod's network namespace stays, so that what is measured is the mesh and not the creation of namespaces.
        soon(pair.server.proxy.take().unwrap().stop(None)).await;
        let netns = pair.server.netns.duplicate();
        pair.server = TestPod::enrol(netns, &pair.far, &format!("uid-{n}"), name, ips.clone());
        change.iter().for_each(|changes| pair.far.apply(changes.clone()));
        if !early {
            // Whom the client's agent believes to be there is gone: it is refused, whatever tunnel was open.
            let before = served.load(Ordering::SeqCst);
            pair.client.expect_refused(address).await;
            assert_eq!(served.load(Ordering::SeqCst), before, "reuse {n}: served under the former name");
            refused_before += 1;
            change.iter().for_each(|changes| pair.near.apply(changes.clone()));
        }
        let mut app = pair.client.connect(address).await;
        exchange(&mut app, "whom do I speak to").await;
        owner = next;
    }
    assert_eq!(served.load(Ordering::SeqCst) as usize, reuses);
    let mismatches = pair.near.refused(Reason::PeerIdentityMismatch);
    assert!(mismatches > 0 && mismatches <= refused_before, "{mismatches} of {refused_before}");
    eventually("all is closed", || pair.client.live() == 0 && pair.server.live() == 0).await;
    eventually("only the last owner's tunnel is left", || tunnels(&pair) <= 1).await;
    let stats = pair.near.shared.pool.stats();
    assert!(stats.keys <= 1 && stats.dialing == 0, "{stats:?}");
    for line in pair.near.metrics().lines().filter(|line| line.contains("mutual_tls")) {
        for name in ["even", "odd"] {
            if line.contains(&format!("destination_workload=\"{name}-deploy\"")) {
                assert!(line.contains(&format!("destination_principal=\"{}\"", identity(name))), "{line}");
            }
        }
    }
}

fn described(n: usize, name: &str, ips: &[std::net::IpAddr]) -> Workload {
    let mut next = workload(name, ips.to_vec());
    next.uid = ArcStr::from(format!("Kubernetes//Pod/bookinfo/{name}-{n}"));
    next.protocol = TunnelProtocol::Hbone;
    next
}

/// The news of a change of hands: in one batch, the removal first, or the removal last.
fn turn(n: usize, former: &Workload, next: &Workload) -> Vec<Vec<Change>> {
    let (gone, here) = (Change::RemoveAddress(former.uid.clone()), Change::Workload(next.clone()));
    match n % 5 {
        0 | 1 => vec![vec![gone, here]],
        2 => vec![vec![here, gone]],
        3 => vec![vec![gone], vec![here]],
        _ => vec![vec![here], vec![gone]],
    }
}
