//! The API server under load: watches that are too old every five seconds (F16), and one that is not there at all, with certificates that must be renewed.
use super::mesh::{Mesh, NODES, Namespace, in_mesh, is_in_mesh, name};
use super::objects::{Load, ambient, idle, load_servers};
use anyhow::{Context, Result, ensure};
use mesh_tests::harness::span;
use serde_json::Value;
use std::time::{Duration, Instant};

const SHORT: Duration = Duration::from_secs(60);
const SHORTER: Duration = Duration::from_secs(30);
const FULL: Duration = Duration::from_secs(600);

/// Two servers on two nodes, and pods of an account whose certificates are asked for now.
fn servers<'a>(mesh: &'a Mesh, name: &'static str) -> Result<Namespace<'a>> {
    let namespace = mesh.namespace(name, ambient())?;
    mesh.apply_all(&load_servers(name, "server", 2))?;
    namespace.becomes_ready(2)?;
    Ok(namespace)
}

#[test]
fn hardening_F16_watches_that_are_too_old_release_nobody_and_fail_no_connection() -> Result<()> {
    in_mesh(|mesh| {
        let namespace = servers(mesh, "watched")?;
        let loads = [("load1", 1), ("load2", 2)].map(|pod| Load::start(mesh, &namespace, pod, "server", (30, 10)));
        let members = namespace.pods()?.iter().filter(|pod| is_in_mesh(pod)).count();
        let captured = mesh.settled()?;
        // Not the kubelets': they would make no pods for minutes.
        mesh.run(&["fault", "--gone", "5", "--agent", "mesh-"])?;
        let (start, time) = (Instant::now(), span(SHORTER, FULL));
        let mut round = 0;
        while start.elapsed() < time {
            // What changes is heard of meanwhile, and nothing else is.
            let pod = format!("guest{round}");
            mesh.apply_all(&[idle(namespace.name, &pod, (round % 2 + 1) as u8)])?;
            let begin = Instant::now();
            mesh.eventually("a guest in the mesh", || {
                ensure!(is_in_mesh(&mesh.object(&format!("pod -n {} {pod}", namespace.name))?));
                ensure!(mesh.captured_pods()? == captured + 1.0);
                Ok(())
            })?;
            let joined = begin.elapsed();
            mesh.kubectl(&format!("delete pod -n {} {pod}", namespace.name))?;
            mesh.eventually("the guest is gone from the kernel", || {
                ensure!(mesh.captured_pods()? == captured, "{} pods", mesh.captured_pods()?);
                Ok(())
            })?;
            let now = namespace.pods()?.iter().filter(|pod| is_in_mesh(pod)).count();
            ensure!(now == members, "{now} of {members} pods are marked as in the mesh");
            println!(
                "round {round}: joined in {:.1} s, {:.0} s of {time:?}",
                joined.as_secs_f32(),
                start.elapsed().as_secs_f32()
            );
            round += 1;
        }
        mesh.run(&["fault"])?;
        loads.into_iter().try_for_each(|load| load?.end_spotless())
    })
}

/// When the certificate of an account ends, by the agent of its node.
fn expiry(mesh: &Mesh, node: u8, namespace: &str) -> Result<f64> {
    let metrics = mesh.metrics(node)?;
    let part = format!("/ns/{namespace}/");
    let of = metrics.samples.iter().filter(|sample| sample.name == "mesh_workload_cert_expiry_timestamp_seconds");
    let of = of.filter(|sample| sample.labels.values().any(|value| value.contains(&part)));
    of.map(|sample| sample.value)
        .reduce(f64::min)
        .with_context(|| format!("node {node} tells of no certificate of {namespace}"))
}

/// When each node has renewed its lease.
fn renewals(mesh: &Mesh) -> Result<Vec<String>> {
    let leases = mesh.object("leases -n kube-node-lease")?;
    let leases = leases["items"].as_array().context("no leases")?;
    Ok(leases.iter().map(|lease| lease["spec"]["renewTime"].to_string()).collect())
}

#[test]
fn hardening_F10_without_an_api_server_nothing_fails_and_certificates_are_renewed() -> Result<()> {
    in_mesh(|mesh| {
        let time = span(SHORT, FULL);
        // So that they are due while it is away.
        let ttl = time.as_secs().max(60);
        let install = format!("install -f {}", mesh.values);
        mesh.meshctl_json(&format!("{install} --set control.secretTtl={ttl}s"), 0)?;
        // The replicas are new: what has just begun waits for agents to follow them, and longer than it may where much else runs.
        let before = servers(mesh, "before")?;
        for pod in [("first1", 1), ("first2", 2)] {
            Load::start(mesh, &before, pod, "server", (1, 1))?.end()?;
        }
        drop(before);
        let namespace = servers(mesh, "alone")?;
        let loads = [("load1", 1), ("load2", 2)].map(|pod| Load::start(mesh, &namespace, pod, "server", (30, 10)));
        let life = namespace.life()?;
        let members: Vec<String> =
            namespace.pods()?.iter().filter(|pod| is_in_mesh(pod)).map(|pod| name(pod).to_owned()).collect();
        let captured = mesh.settled()?;
        mesh.run(&["stop", "kube-apiserver"])?;
        let start = Instant::now();
        let before = NODES.map(|node| expiry(mesh, node, namespace.name));
        while start.elapsed() < time {
            ensure!(mesh.captured_pods()? == captured, "pods were let go");
            std::thread::sleep(Duration::from_millis(500));
        }
        let after = NODES.map(|node| expiry(mesh, node, namespace.name));
        mesh.run(&["start", "kube-apiserver"])?;
        mesh.eventually("an API server", || mesh.kubectl("get --raw /readyz").map(drop))?;
        for ((node, before), after) in NODES.into_iter().zip(before).zip(after) {
            let (before, after) = (before?, after?);
            println!("n{node}: certificates end {:.0} s later than before", after - before);
            ensure!(after > before, "n{node}: no certificate was renewed: {before} {after}");
        }
        // What it hears then changes nothing.
        let first_heard = renewals(mesh)?;
        mesh.eventually("nodes that are heard of", || {
            let nodes = mesh.object("nodes")?;
            let ready = |node: &Value| super::mesh::condition(node, "Ready").is_some_and(|c| c["status"] == "True");
            ensure!(nodes["items"].as_array().is_some_and(|nodes| nodes.iter().all(ready)));
            // Until they have renewed their leases they look ready as they were, with clocks that have stood still.
            let heard = renewals(mesh)?;
            ensure!(heard.iter().zip(&first_heard).all(|(now, first)| now != first), "{heard:?}");
            Ok(())
        })?;
        let names: Vec<&str> = members.iter().map(String::as_str).collect();
        namespace.in_mesh_are(&names)?;
        // Nodes that nobody has heard of have pods that are not ready, for the cluster: that one is not the mesh's affair.
        let lives = |life: &[String]| -> Vec<String> {
            life.iter().map(|one| one.split(" ready since ").next().unwrap_or(one).to_owned()).collect()
        };
        let now = namespace.life()?;
        ensure!(lives(&now) == lives(&life), "before {life:#?}, now {now:#?}");
        loads.into_iter().try_for_each(|load| load?.end_spotless())?;
        mesh.meshctl_json(&install, 0)?;
        Ok(())
    })
}
