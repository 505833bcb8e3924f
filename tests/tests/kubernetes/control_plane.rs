//! The control plane under load: one replica killed, and both away (F10).
use super::mesh::{SYSTEM, in_mesh, is_in_mesh, name};
use super::objects::{Load, ambient, load_servers, policy};
use anyhow::{Context, Result, ensure};
use mesh_tests::harness::span;
use serde_json::json;
use std::time::{Duration, Instant};

#[test]
fn hardening_F10_a_replica_is_killed_and_both_are_away_and_no_connection_fails() -> Result<()> {
    in_mesh(|mesh| {
        let namespace = mesh.namespace("steady", ambient())?;
        mesh.apply_all(&load_servers(namespace.name, "server", 2))?;
        namespace.becomes_ready(2)?;
        let load = Load::start(mesh, &namespace, ("load", 1), "server", (50, 10))?;
        let replicas = mesh.object(&format!("pods -n {SYSTEM} -l app=mesh-control"))?;
        let victim = name(&replicas["items"][0]).to_owned();
        mesh.kubectl(&format!("-n {SYSTEM} delete pod {victim} --grace-period=0 --force"))?;
        // A new pod gets its certificate, and a policy is heard of, with one replica.
        mesh.apply_all(&[super::objects::idle(namespace.name, "new", 2)])?;
        mesh.eventually("a new pod in the mesh", || {
            let pod = mesh.object(&format!("pod -n {} new", namespace.name))?;
            ensure!(is_in_mesh(&pod));
            Ok(())
        })?;
        mesh.control_becomes(2)?;

        mesh.control_becomes(0)?;
        let away = span(Duration::from_secs(20), Duration::from_secs(600));
        let start = Instant::now();
        while start.elapsed() < away {
            for node in super::mesh::NODES {
                // What is told of them may be that they miss it; that they serve is what counts.
                let ready = mesh.get(node, 15021, "/healthz/ready")?;
                ensure!(ready.status == 200, "agent of n{node}: {} {}", ready.status, ready.body);
            }
            std::thread::sleep(Duration::from_millis(500));
        }
        mesh.control_becomes(2)?;
        load.end_spotless()?;

        // What they say counts again.
        let back = Instant::now();
        mesh.eventually("a policy is let in", || {
            mesh.apply_all(&[policy(namespace.name, "nobody", json!({}))]).map(drop)
        })?;
        let address = mesh.object(&format!("service -n {} server", namespace.name))?;
        let address = address["spec"]["clusterIP"].as_str().context("no address")?.to_owned();
        let ask = format!("printf Chello | nc -w 2 {address} {} | grep -q hello", super::objects::PORT);
        mesh.eventually("the policy counts", || {
            ensure!(namespace.exec("new", &["sh", "-c", &ask]).is_err(), "it is answered");
            Ok(())
        })?;
        println!("a policy counted {:.1} s after both were back", back.elapsed().as_secs_f32());
        Ok(())
    })
}
