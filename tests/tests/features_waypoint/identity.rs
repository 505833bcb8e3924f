//! Who the client is behind a waypoint: row C5 of the features page and decision 10.10. Policies that select the endpoint mean the client, not the waypoint.
use crate::stage::{CHANGE, bookinfo, failed, httpbin};
use anyhow::{Context, Result, ensure};
use mesh_tests::harness::policy::Authorization;
use mesh_tests::harness::{Need, eventually, in_lab};
use std::net::SocketAddr;

#[test]
fn features_C5_F7_policies_at_the_endpoint_mean_the_client() -> Result<()> {
    in_lab(Need::Mesh, || {
        let stage = bookinfo("undermesh-waypoint")?;
        let _servers = httpbin(&stage)?;
        let client = &stage.bookinfo.client;
        // The application sees the address of the client's pod.
        let seen = client.get("http://httpbin-v1:9080/x")?.success()?.stdout;
        let seen: serde_json::Value = serde_json::from_str(&seen)?;
        let peer: SocketAddr = seen["peer"].as_str().context("a peer")?.parse()?;
        ensure!(
            client.ips().contains(&peer.ip().to_canonical()),
            "the peer is {peer}, and the client {:?}",
            client.ips()
        );

        let policy = Authorization::allow("only-page", "reviews").from("default", "bookinfo-productpage");
        stage.lab.apply("only-page", &policy.yaml())?;
        let direct = "http://reviews:9080/reviews/0";
        eventually("a refusal", CHANGE, || {
            let refused = client.get(direct)?;
            ensure!(refused.stderr.contains("HTTP 403") && refused.stdout == "RBAC: access denied", "{refused:?}");
            Ok(())
        })?;
        let loads = stage.loads(None, 20)?;
        ensure!(failed(&loads).is_none(), "{:?}", failed(&loads));
        // Addressed as a workload the pod has no waypoint, and its agent knows the policy, too.
        let pod = stage.bookinfo.pod("reviews-v1")?;
        let around = client.get(&format!("http://{}:9080/reviews/0", pod.address.v4))?;
        ensure!(around.code == 56, "{around:?}");
        let page = "spiffe://cluster.local/ns/default/sa/bookinfo-productpage";
        let edge = [("reporter", "destination"), ("destination_workload", "reviews-v1"), ("source_principal", page)];
        let counted = pod.node.agent()?.metrics()?.sum("istio_tcp_connections_opened_total", &edge);
        ensure!(counted > 0.0, "the endpoint's agent counts nothing of productpage");
        stage.lab.delete("only-page")?;
        eventually("an answer", CHANGE, || client.get(direct)?.success())?;

        // F7: nothing goes around the waypoint where that is asked for, and what comes by it is let in as before.
        let around = format!("http://{}:9080/reviews/0", pod.address.v4);
        client.get(&around)?.success()?;
        stage.lab.label_service("default", "reviews", "undermesh.io/waypoint-bypass", Some("refuse"))?;
        eventually("a refusal around the waypoint", CHANGE, || {
            let refused = client.get(&around)?;
            ensure!(refused.code == 56, "{refused:?}");
            Ok(())
        })?;
        let loads = stage.loads(None, 20)?;
        ensure!(failed(&loads).is_none(), "{:?}", failed(&loads));
        client.get(direct)?.success().map(drop)
    })
}
