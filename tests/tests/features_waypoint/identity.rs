//! Who the client is behind a waypoint: row C5 of the features page and decision 10.10. Policies that select the endpoint mean the client, not the waypoint.
use crate::stage::{CHANGE, bookinfo, failed, httpbin, is};
use anyhow::{Context, Result, ensure};
use mesh_tests::harness::policy::Authorization;
use mesh_tests::harness::{Need, PodSpec, eventually, in_lab};
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
        client.get(direct)?.success()?;
        stage.lab.label_service("default", "reviews", "undermesh.io/waypoint-bypass", None)?;
        eventually("an answer around the waypoint", CHANGE, || client.get(&around)?.success())?;

        // Nor where nobody asks for that and a policy is bound to the service: it would be escaped by an address.
        stage.lab.apply("secret", &bound("reviews", "DENY", "to: [{operation: {paths: [/secret]}}]"))?;
        eventually("a refusal around the policy", CHANGE, || {
            let refused = client.get(&around)?;
            ensure!(refused.code == 56, "{refused:?}");
            Ok(())
        })?;
        client.get(direct)?.success()?;
        is(&client.get("http://reviews:9080/secret")?, 403, "RBAC: access denied")?;
        stage.lab.delete("secret")?;
        eventually("an answer around the waypoint", CHANGE, || client.get(&around)?.success()).map(drop)
    })
}

/// A policy of `default` that is bound to a service, or to the Gateway `waypoint`.
fn bound(target: &str, action: &str, rule: &str) -> String {
    let target = match target {
        "waypoint" => "{group: gateway.networking.k8s.io, kind: Gateway, name: waypoint}".to_owned(),
        service => format!("{{group: \"\", kind: Service, name: {service}}}"),
    };
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: default}}\nspec: {{targetRefs: [{target}], action: {action}, rules: [{{{rule}}}]}}\n"
    )
}

/// Decision 10.9: who is outside of the mesh and asks for a pod comes through the waypoint of the pod, as nobody.
#[test]
fn design_10_9_F7_who_is_outside_of_the_mesh_comes_through_the_waypoint() -> Result<()> {
    in_lab(Need::Mesh, || {
        let stage = bookinfo("undermesh-waypoint")?;
        let _servers = httpbin(&stage)?;
        let stranger = stage.lab.add_pod(PodSpec::new("stranger").namespace("outside"))?;
        let pod = stage.lab.pods("default").into_iter().find(|pod| pod.name == "httpbin-v1").context("a pod")?;
        let url = |path: &str| format!("http://{}:9080/{path}", pod.address.v4);
        let counted = || stage.waypoint.metrics().map(|all| all.sum("istio_requests_total", &STRANGER));
        // The waypoint is for services alone: L4 decides.
        stranger.get(&url("x"))?.success()?;
        ensure!(counted()? == 0.0, "a stranger has come to the waypoint");
        let for_all = [("istio.io/waypoint-for".to_owned(), "all".to_owned())].into();
        stage.lab.add_gateway("default", "waypoint", "undermesh-waypoint", &for_all)?;
        eventually("the stranger comes to the waypoint", CHANGE, || {
            let seen: serde_json::Value = serde_json::from_str(&stranger.get(&url("x"))?.success()?.stdout)?;
            let peer: SocketAddr = seen["peer"].as_str().context("a peer")?.parse()?;
            ensure!(stranger.ips().contains(&peer.ip().to_canonical()), "the app sees {peer}");
            ensure!(counted()? > 0.0, "the waypoint has counted no stranger");
            Ok(())
        })?;
        // So what is said of requests holds for him, and he has no identity: nor the pod's, whose agent led him there.
        stage.lab.apply("p", &bound("waypoint", "DENY", "to: [{operation: {paths: [/secret]}}]"))?;
        eventually("a refusal by path", CHANGE, || is(&stranger.get(&url("secret"))?, 403, "RBAC: access denied"))?;
        stranger.get(&url("x"))?.success()?;
        stage.lab.apply("p", &bound("waypoint", "ALLOW", "from: [{source: {principals: ['*']}}]"))?;
        eventually("a refusal of who is nobody", CHANGE, || is(&stranger.get(&url("x"))?, 403, "RBAC: access denied"))?;
        stage.bookinfo.client.get(&url("x"))?.success()?;
        stage.lab.delete("p")?;
        eventually("an answer", CHANGE, || stranger.get(&url("x"))?.success())?;
        // Nor does he come around a waypoint that is gone.
        stage.lab.kill_waypoint(stage.waypoint);
        let refused = stranger.get(&url("x"))?;
        ensure!(refused.code != 0, "the waypoint is gone, and there was {refused:?}");
        Ok(())
    })
}

/// Of requests whose client nobody knows.
const STRANGER: [(&str, &str); 2] = [("source_principal", "unknown"), ("destination_workload", "httpbin-v1")];
