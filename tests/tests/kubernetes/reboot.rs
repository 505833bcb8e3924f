//! A node loses its power (EN-6, F45): whatever comes first afterwards, no process of a pod of the mesh runs outside of it, and nothing that it says
//! crosses the wire in clear.
use super::membership::first_connect;
use super::mesh::{in_mesh, is_ready, name, restarts};
use super::objects::{PORT, ambient, load_servers, pod};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::time::Instant;

const CANARY: &str = "canary-5d1f0c3b9a7e";
const PODS: usize = 4;

#[test]
fn features_EN6_hardening_F45_after_a_reboot_no_pod_of_the_mesh_speaks_in_clear() -> Result<()> {
    in_mesh(|mesh| {
        let inside = mesh.namespace("rebooted", ambient())?;
        let outside = mesh.namespace("beside", json!({}))?;
        let mut servers = load_servers(inside.name, "server", 1);
        servers[0]["spec"]["template"]["spec"]["nodeName"] = json!("n2");
        mesh.apply_all(&servers)?;
        inside.becomes_ready(1)?;
        inside.in_mesh_are(&inside.pods()?.iter().map(name).collect::<Vec<_>>())?;
        let service = mesh.object(&format!("service -n {} server", inside.name))?;
        let address = service["spec"]["clusterIP"].as_str().context("no address")?.to_owned();
        // The load server gives back what it gets. Each life says first how it fares, and then speaks all the time.
        let speak =
            format!("while :; do printf C{CANARY} | nc -w 2 {address} {PORT} > /dev/null 2>&1; sleep 0.1; done");
        let script = format!("{}; {speak}", first_connect(mesh));
        let capture = mesh.capture(&[CANARY])?;
        for (namespace, speaks) in [(&inside, &script), (&outside, &format!("{}; sleep 1000000", first_connect(mesh)))]
        {
            let pods: Vec<_> =
                (0..PODS).map(|i| pod(namespace.name, &format!("p{i}"), 1, &["sh", "-c", speaks])).collect();
            mesh.apply_all(&pods)?;
        }
        inside.becomes_ready(PODS + 1)?;
        outside.becomes_ready(PODS)?;
        let said = |namespace: &str, pod: &str| mesh.kubectl(&format!("logs -n {namespace} {pod}"));
        let all_said = |expected: [&str; 2]| -> Result<()> {
            for (namespace, expected) in [&inside, &outside].into_iter().zip(expected) {
                for i in 0..PODS {
                    let what = format!("{}/p{i} has said something", namespace.name);
                    let said = mesh.eventually(&what, || {
                        let said = said(namespace.name, &format!("p{i}"))?;
                        ensure!(!said.is_empty());
                        Ok(said)
                    })?;
                    ensure!(said.trim() == expected, "{}/p{i}: {said}", namespace.name);
                }
            }
            Ok(())
        };
        all_said(["captured", "direct"])?;

        let start = Instant::now();
        mesh.run(&["reboot", "1"])?;
        let mut back = Vec::new();
        for namespace in [&outside, &inside] {
            mesh.eventually(&format!("{} is back", namespace.name), || {
                let pods = namespace.pods()?;
                let late: Vec<&str> = pods
                    .iter()
                    .filter(|pod| pod["spec"]["nodeName"] == "n1" && !(restarts(pod) > 0 && is_ready(pod)))
                    .map(name)
                    .collect();
                ensure!(late.is_empty(), "not {late:?}");
                Ok(())
            })?;
            back.push(format!("{} {:.1} s", namespace.name, start.elapsed().as_secs_f32()));
        }
        println!("after the power was cut: {}", back.join(", "));
        all_said(["captured", "direct"])?;
        mesh.eventually("the agents are ready", || {
            let agents = mesh.object("daemonset -n undermesh-system mesh-agent")?;
            ensure!(agents["status"]["numberReady"] == 2, "{}", agents["status"]);
            Ok(())
        })?;
        // They speak to each other again, and never did in clear.
        let before = capture.seen().hbone_packets;
        mesh.eventually("words by HBONE", || {
            ensure!(capture.seen().hbone_packets > before + 10);
            Ok(())
        })?;
        let seen = capture.seen();
        ensure!(seen.sightings.is_empty() && seen.lost == 0, "{:?}, {} lost", seen.sightings.first(), seen.lost);
        Ok(())
    })
}
