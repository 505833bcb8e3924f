//! Workloads that change under load: rolling restarts, and pods that come and go (F20).
use super::mesh::in_mesh;
use super::objects::{Load, ambient, idle, load_servers};
use anyhow::{Result, ensure};
use mesh_tests::harness::rounds;
use std::time::Instant;

#[test]
fn hardening_F20_rolling_restarts_and_pods_that_come_and_go_fail_no_connection_and_leave_nothing() -> Result<()> {
    in_mesh(|mesh| {
        let namespace = mesh.namespace("rolls", ambient())?;
        let rolls = load_servers(namespace.name, "rolls", 3);
        let stays = load_servers(namespace.name, "stays", 2);
        mesh.apply_all(&[&rolls[..], &stays[..]].concat())?;
        namespace.becomes_ready(5)?;
        // Long-lived connections to what stays; new ones to what rolls.
        let steady = Load::start(mesh, &namespace, ("steady", 1), "stays", (10, 10))?;
        let rolling = Load::start(mesh, &namespace, ("rolling", 2), "rolls", (50, 0))?;
        let captured = mesh.settled()?;
        let pods = namespace.pods()?.len();
        for round in 0..rounds(2, 60) {
            let start = Instant::now();
            mesh.kubectl(&format!("rollout restart -n {} deployment/rolls", namespace.name))?;
            let guests: Vec<_> =
                (0..10).map(|i| idle(namespace.name, &format!("guest{i}"), (i % 2 + 1) as u8)).collect();
            mesh.apply_all(&guests)?;
            mesh.kubectl(&format!("rollout status -n {} deployment/rolls --timeout=240s", namespace.name))?;
            mesh.eventually("ten guests in the mesh", || {
                let pods = namespace.pods()?;
                let guests = pods.iter().filter(|pod| super::mesh::name(pod).starts_with("guest"));
                let inside = guests.filter(|pod| super::mesh::is_in_mesh(pod)).count();
                ensure!(inside == 10, "{inside}");
                Ok(())
            })?;
            let guests: Vec<String> = (0..10).map(|i| format!("guest{i}")).collect();
            mesh.kubectl(&format!("delete pod -n {} --wait=false {}", namespace.name, guests.join(" ")))?;
            mesh.eventually("as many pods as before", || {
                let (now, kernel) = (namespace.pods()?.len(), mesh.captured_pods()?);
                ensure!(
                    (now, kernel) == (pods, captured),
                    "{now} pods, {kernel} in the kernel; before {pods}, {captured}"
                );
                Ok(())
            })?;
            println!("round {round} took {:.1} s", start.elapsed().as_secs_f32());
        }
        rolling.end_spotless()?;
        steady.end_spotless()
    })
}
