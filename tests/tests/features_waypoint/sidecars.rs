//! Clients that still have sidecars of Istio's, at pods that have none any more: row F7 of the features page, on real agents and a real waypoint.
use crate::stage::{CHANGE, SOON};
use anyhow::{Result, ensure};
use mesh_tests::harness::manifest::DATAPLANE_MODE;
use mesh_tests::harness::policy::{Authorization, peer_authentication};
use mesh_tests::harness::sidecar::{Identity, Mesh, get};
use mesh_tests::harness::waypoint::USE_WAYPOINT;
use mesh_tests::harness::{Lab, LabConfig, Need, PodSpec, eventually, in_lab};
use std::net::SocketAddr;

const DENY: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: default}\nspec:\n  targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: waypoint}]\n  action: DENY\n  rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/legacy]}}], to: [{operation: {paths: [/secret]}}]}]\n";

#[test]
fn features_F7_clients_with_sidecars_are_who_they_are() -> Result<()> {
    in_lab(Need::Mesh, || {
        let agent_args = vec!["--sidecars".into(), "on".into()];
        let lab = Lab::with_mesh(LabConfig { agent_args, ..LabConfig::default() })?;
        let server = lab.add_pod(PodSpec::new("server").label("app", "server").service_account("server").node(2))?;
        let _server = server.serve(["http", "--port", "8000", "--name", "server"])?;
        let legacy = PodSpec::new("legacy").service_account("legacy").label(DATAPLANE_MODE, "none");
        let legacy = lab.add_pod(legacy)?;
        lab.enrol_namespace("default")?;
        lab.wait_hbone(&[&server])?;
        let mesh = Mesh::of(&lab.control.state_dir)?;
        let own = mesh.issue("spiffe://cluster.local/ns/default/sa/legacy")?;
        let to = SocketAddr::new(server.address.v4.into(), 8000);
        let is = "spiffe://cluster.local/ns/default/sa/server";
        let ask = |identity: Option<&Identity>, path: &str| get(&legacy.netns, to, path, identity, is);
        let becomes = |what: &str, path: &str, expected: Option<u16>| {
            eventually(what, CHANGE, || {
                let answer = ask(Some(&own), path);
                ensure!(answer.as_ref().ok() == expected.as_ref(), "{answer:?}");
                Ok(())
            })
        };
        eventually("an answer", SOON, || ask(Some(&own), "/x").map(drop))?;
        // STRICT speaks of mutual TLS, which this is.
        lab.apply("strict", &peer_authentication("default", "STRICT", None, &[]))?;
        let plain = format!("http://{to}/x");
        eventually("plaintext is refused", CHANGE, || {
            let answer = legacy.get(&plain)?;
            ensure!(answer.code != 0, "{answer:?}");
            Ok(())
        })?;
        ensure!(ask(Some(&own), "/x")? == 200, "mutual TLS is not");
        let stranger = Mesh::unknown()?.issue("spiffe://cluster.local/ns/default/sa/legacy")?;
        ensure!(ask(Some(&stranger), "/x").is_err() && ask(None, "/x").is_err(), "who proves nothing is let in");
        // Policies at L4 mean who it is.
        lab.apply("l4", &Authorization::deny("l4", "server").from("default", "legacy").yaml())?;
        becomes("a refusal of this client", "/x", None)?;
        lab.apply("l4", &Authorization::allow("l4", "server").from("default", "legacy").yaml())?;
        becomes("an answer for this client", "/x", Some(200))?;
        let other = mesh.issue("spiffe://cluster.local/ns/default/sa/other")?;
        ensure!(ask(Some(&other), "/x").is_err(), "another one is let in");
        lab.delete("l4")?;
        // So do those at L7, at the waypoint of the pod, through which it is led.
        let for_all = [("istio.io/waypoint-for".to_owned(), "all".to_owned())].into();
        lab.add_gateway("default", "waypoint", "undermesh-waypoint", &for_all)?;
        let waypoint = lab.start_waypoint("default", "waypoint", 1)?;
        lab.enrol_namespace_with("default", &[(USE_WAYPOINT, "waypoint")])?;
        let client = [("source_principal", "spiffe://cluster.local/ns/default/sa/legacy")];
        eventually("it comes to the waypoint as who it is", SOON, || {
            ask(Some(&own), "/x")?;
            ensure!(waypoint.metrics()?.sum("istio_requests_total", &client) > 0.0, "the waypoint has not counted it");
            Ok(())
        })?;
        lab.apply("p", DENY)?;
        becomes("a refusal by path", "/secret", Some(403))?;
        ensure!(ask(Some(&own), "/x")? == 200, "it was not meant");
        ensure!(ask(Some(&other), "/secret")? == 200, "nor was the other one");
        lab.kill_waypoint(waypoint);
        ensure!(ask(Some(&own), "/x").is_err(), "around the waypoint that is gone");
        Ok(())
    })
}
