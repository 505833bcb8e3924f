//! The agent's own client against the control plane: what is served is understood, and certificates pass its checks.
#![allow(non_snake_case, reason = "tests carry the ids of the rows they prove")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::net::IpAddr;
use std::sync::Arc;

use mesh_client::{CertificateManager, ClientMetrics, ControlConfig};
use mesh_core::{Change, Identity, NamespacedName, Snapshot, Store};
use prometheus_client::registry::Registry;
use support::{Plane, soon};
use tokio::sync::{mpsc, watch};

const BOOKINFO: &str = include_str!("bookinfo/bookinfo.yaml");
const POLICY: &str = include_str!("bookinfo/policy.yaml");

fn config(plane: &Plane, node: &str) -> Arc<ControlConfig> {
    let token = plane.state("tokens").join(node);
    Arc::new(ControlConfig::new(plane.app.listen.to_string(), plane.state("root-cert.pem"), Some(token), node))
}

/// A subscription of the node: its latest snapshot, and where to ask for single addresses.
fn subscribe(plane: &Plane, node: &str) -> (watch::Receiver<Arc<Snapshot>>, mpsc::Sender<IpAddr>) {
    let mut store = Store::new();
    let (sender, receiver) = watch::channel(store.apply(vec![]).snapshot);
    let sink = move |changes: Vec<Change>| {
        let snapshot = store.apply(changes).snapshot;
        sender.send(snapshot).map_err(|e| e.to_string())
    };
    let (want, wanted) = mpsc::channel(8);
    tokio::spawn(mesh_client::run(config(plane, node), sink, wanted, ClientMetrics::new(&mut Registry::default())));
    (receiver, want)
}

#[tokio::test]
async fn what_is_served_is_understood() {
    let plane = Plane::start(&[("bookinfo.yaml", BOOKINFO), ("policy.yaml", POLICY)], &[]).await;
    let (mut snapshots, want) = subscribe(&plane, "node1");
    let whole =
        |s: &Arc<Snapshot>| s.workloads().count() == 6 && s.services().count() == 4 && s.policies().count() == 2;
    let snapshot = soon("everything", snapshots.wait_for(whole)).await.unwrap().clone();
    let reviews = NamespacedName::new("bookinfo", "reviews.bookinfo.svc.cluster.local");
    assert!(snapshot.endpoints(&reviews).is_some());

    // Questions about single addresses, of nobody and of somebody, disturb nothing of what follows.
    let known = *snapshot.workloads().find_map(|w| w.addresses.first()).unwrap();
    for address in [IpAddr::from([198, 18, 77, 77]), known] {
        want.send(address).await.unwrap();
    }
    plane.remove("policy.yaml");
    let fewer = |s: &Arc<Snapshot>| s.policies().count() == 1;
    let snapshot = soon("removal", snapshots.wait_for(fewer)).await.unwrap().clone();
    assert_eq!(snapshot.workloads().count(), 6);
    // The stream is the session's that the status shows, and nothing was refused.
    let synced = plane.page("/debug/syncz").await.1;
    assert!(synced.contains("\"node\": \"node1\"") && synced.contains("\"nacks\": 0"), "{synced}");
}

#[tokio::test]
async fn hardening_F54_one_call_for_many_who_want_the_same_certificate() {
    let plane = Plane::start(&[("bookinfo.yaml", BOOKINFO)], &["--secret-ttl", "1h"]).await;
    let manager =
        CertificateManager::new(config(&plane, "node1"), ClientMetrics::new(&mut Registry::default())).unwrap();
    let names = ["reviews", "productpage"];
    let wanted: Vec<Identity> =
        names.iter().map(|n| format!("spiffe://cluster.local/ns/bookinfo/sa/bookinfo-{n}").parse().unwrap()).collect();
    wanted.iter().for_each(|identity| manager.prefetch(identity));
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..200 {
        let (manager, identity) = (manager.clone(), wanted[n % 2].clone());
        tasks.spawn(async move { (manager.certificate(&identity).await.identity.clone(), identity) });
    }
    soon("certificates", async {
        while let Some(done) = tasks.join_next().await {
            let (got, wanted) = done.unwrap();
            assert_eq!(got, wanted);
        }
    })
    .await;
    let metrics = plane.page("/metrics").await.1;
    assert!(metrics.contains("citadel_server_csr_count 2\n"), "{metrics}");
}
