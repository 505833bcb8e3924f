//! A waypoint that is killed: who says that it is optional is reached without it, by mutual TLS as ever; nobody else is, and nobody while something is bound to it that
//! refuses. The row of the page of faults about a waypoint that is down.
use crate::stage::{CHANGE, SOON, Stage, bookinfo};
use anyhow::{Result, ensure};
use mesh_tests::harness::{Bookinfo, Lab, Need, Waypoint, eventually, in_lab};

const OPTIONAL: &str = "undermesh.io/waypoint-optional";
const BYPASS: &str = "undermesh.io/waypoint-bypass";
const DETAILS: &str = "http://details:9080/details/0";
const PAGE: &str = "http://productpage:9080/productpage";
const DENY: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: default}\nspec: {targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: waypoint}], action: DENY, rules: [{to: [{operation: {paths: [/secret]}}]}]}\n";

fn refused(bookinfo: &Bookinfo, url: &str) -> Result<()> {
    let refused = bookinfo.client.get(url)?;
    ensure!([7, 56].contains(&refused.code), "{url}: {refused:?}");
    Ok(())
}

fn served(bookinfo: &Bookinfo, url: &str) -> Result<()> {
    bookinfo.client.get(url)?.success().map(drop)
}

/// Connections that the client's agent has led around.
fn around(bookinfo: &Bookinfo) -> Result<f64> {
    Ok(bookinfo.client.node.agent()?.metrics()?.sum("mesh_waypoint_bypassed_total", &[]))
}

#[test]
fn hardening_3_2_an_optional_waypoint_that_is_down_is_gone_around_and_no_other() -> Result<()> {
    in_lab(Need::Mesh, || {
        let Stage { lab, bookinfo, waypoint } = bookinfo("undermesh-waypoint")?;
        lab.label_service("default", "details", OPTIONAL, Some("true"))?;
        (0..5).try_for_each(|_| served(&bookinfo, DETAILS))?;
        ensure!(around(&bookinfo)? == 0.0, "a waypoint that is there was gone around");

        let pod = lab.kill_waypoint(waypoint);
        // Its pod is taken for ready until the kubelet has looked.
        for ready in [true, false] {
            lab.set_ready(&pod, ready)?;
            gone_around(&bookinfo)?;
            (0..3).try_for_each(|_| refused(&bookinfo, PAGE))?;
        }
        closed_again(&lab, &bookinfo)?;
        back(&bookinfo, &lab.restart_waypoint(pod, "waypoint")?)
    })
}

/// Details is there, and it is the client himself who comes, with his certificate.
fn gone_around(bookinfo: &Bookinfo) -> Result<()> {
    let client = "spiffe://cluster.local/ns/default/sa/sleep";
    let mutual = [("reporter", "source"), ("source_principal", client), ("connection_security_policy", "mutual_tls")];
    let labels = [&mutual[..], &[("destination_workload", "details-v1")]].concat();
    let agent = bookinfo.client.node.agent()?;
    let count = || Ok::<_, anyhow::Error>(agent.metrics()?.sum("istio_tcp_connections_opened_total", &labels));
    eventually("details without the waypoint", CHANGE, || served(bookinfo, DETAILS))?;
    let before = (around(bookinfo)?, count()?);
    (0..3).try_for_each(|_| served(bookinfo, DETAILS))?;
    let after = (around(bookinfo)?, count()?);
    ensure!((after.0 - before.0, after.1 - before.1) == (3.0, 3.0), "{before:?}, then {after:?}");
    Ok(())
}

/// While a policy is bound to the waypoint, or what goes around it is refused.
fn closed_again(lab: &Lab, bookinfo: &Bookinfo) -> Result<()> {
    lab.apply("p", DENY)?;
    eventually("a refusal for a policy's sake", CHANGE, || refused(bookinfo, DETAILS))?;
    (0..3).try_for_each(|_| refused(bookinfo, DETAILS))?;
    lab.delete("p")?;
    eventually("details without the policy", CHANGE, || served(bookinfo, DETAILS))?;
    lab.label_service("default", "details", BYPASS, Some("refuse"))?;
    eventually("a refusal of what goes around", CHANGE, || refused(bookinfo, DETAILS))?;
    lab.label_service("default", "details", BYPASS, None)?;
    eventually("details again", CHANGE, || served(bookinfo, DETAILS))
}

/// The waypoint is there, and all is led through it.
fn back(bookinfo: &Bookinfo, waypoint: &Waypoint) -> Result<()> {
    let labels = [("destination_service_name", "details")];
    eventually("requests through the waypoint", SOON, || {
        let before = waypoint.metrics()?.sum("istio_requests_total", &labels);
        served(bookinfo, DETAILS)?;
        let after = waypoint.metrics()?.sum("istio_requests_total", &labels);
        ensure!(after > before, "{before}, then {after} requests");
        Ok(())
    })?;
    let before = around(bookinfo)?;
    (0..5).try_for_each(|_| served(bookinfo, DETAILS))?;
    ensure!(around(bookinfo)? == before, "a waypoint that is back was gone around");
    served(bookinfo, PAGE)
}
