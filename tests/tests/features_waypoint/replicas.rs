//! Three waypoints of one Gateway, of which one stops, one is killed, and then all are gone, under load: row F47 of the fault catalogue.
use crate::stage::SOON;
use anyhow::{Context, Result, ensure};
use mesh_tests::apps::client::now_ms;
use mesh_tests::harness::waypoint::USE_WAYPOINT;
use mesh_tests::harness::{Lab, LabConfig, Need, Pod, PodSpec, Process, ServiceSpec, Waypoint, eventually, in_lab};
use nix::sys::signal::Signal;
use std::sync::Arc;
use std::time::Duration;

/// From when on the load may fail no more than this part of it.
const SETTLED_MS: u64 = 2000;
const FAILED_AT_MOST: f64 = 0.001;
/// How much of the load is looked at.
const LOOKED_AT: Duration = Duration::from_secs(12);
const PORT: u16 = 8080;

struct Scene {
    lab: Lab,
    client: Arc<Pod>,
    waypoints: Vec<Waypoint>,
    address: String,
    _server: Process,
}

impl Scene {
    fn start() -> Result<Scene> {
        let lab = Lab::with_mesh(LabConfig::default())?;
        let client = lab.add_pod(PodSpec::new("client").service_account("client"))?;
        let server = lab.add_pod(PodSpec::new("server").label("app", "server").node(2))?;
        let _server = server.serve(["load", "serve"])?;
        let service = ServiceSpec::new("server").selector(&[("app", "server")]).port("tcp", PORT, PORT);
        let address = lab.add_service(service)?.context("the service's address")?.v4.to_string();
        lab.enrol_namespace("default")?;
        lab.wait_hbone(&[&client, &server])?;
        lab.add_gateway("default", "waypoint", "undermesh-waypoint", &Default::default())?;
        let start = |node| lab.start_waypoint("default", "waypoint", node);
        let waypoints = vec![start(1)?, start(2)?, start(2)?];
        lab.enrol_namespace_with("default", &[(USE_WAYPOINT, "waypoint")])?;
        Ok(Scene { lab, client, waypoints, address, _server })
    }

    fn load(&self) -> Result<Process> {
        let target = format!("{}:{PORT}", self.address);
        let args = ["load", "steady", &target, "--rate", "200", "--long", "0", "--seconds", "3600", "--limit", "4"];
        let load = self.client.start("steady", "lab", args)?;
        load.wait_for("started", SOON)?;
        Ok(load)
    }

    /// Waits until each of them carries some of the load.
    fn all_carry(&self) -> Result<()> {
        eventually("each waypoint carries connections", SOON, || {
            for waypoint in &self.waypoints {
                let opened = waypoint.metrics()?.sum("istio_tcp_connections_opened_total", &[]);
                ensure!(opened > 0.0, "{} has carried none", waypoint.pod.name);
            }
            Ok(())
        })
    }

    fn sends(&self) -> Result<i32> {
        let port = PORT.to_string();
        Ok(self.client.lab(["send", &self.address, &port, "Chello", "--timeout", "8"])?.code)
    }
}

/// Lets the load go on after `fault`, and holds what began when that had settled against the limit.
fn bears(load: &Process, fault: impl FnOnce() -> Result<()>) -> Result<()> {
    let began = now_ms() as u64;
    fault()?;
    // The load is the clock here.
    std::thread::sleep(LOOKED_AT);
    load.close_stdin();
    let output = load.wait(Duration::from_secs(60))?.stdout;
    let told: serde_json::Value = serde_json::from_str(output.lines().last().unwrap_or(""))?;
    let number = |value: &serde_json::Value| value.as_u64().unwrap_or(u64::MAX);
    let bursts = told["bursts"].as_array().context("bursts of failures")?;
    let late = bursts.iter().filter(|burst| number(&burst[1]) >= began + SETTLED_MS);
    let failed: u64 = late.map(|burst| number(&burst[2])).sum();
    let carried = number(&told["ok"]);
    ensure!(carried > 1000, "{told}");
    ensure!(
        (failed as f64) < FAILED_AT_MOST * carried as f64,
        "{failed} of {carried} failed after {SETTLED_MS} ms: {told}"
    );
    Ok(())
}

#[test]
fn hardening_F47_a_waypoint_that_stops_or_dies_is_left_out_and_without_any_all_is_refused() -> Result<()> {
    in_lab(Need::Mesh, || {
        let mut scene = Scene::start()?;
        eventually("the first exchange", SOON, || {
            let code = scene.sends()?;
            ensure!(code == 0, "code {code}");
            Ok(())
        })?;
        let load = scene.load()?;
        scene.all_carry()?;
        // It is there, for all that the control plane and the kernel know; it only does nothing any more.
        bears(&load, || scene.waypoints[0].process().signal(Signal::SIGSTOP))?;
        scene.waypoints[0].process().signal(Signal::SIGCONT)?;

        let load = scene.load()?;
        scene.all_carry()?;
        let killed = scene.waypoints.remove(2);
        bears(&load, || {
            scene.lab.kill_waypoint(killed);
            Ok(())
        })?;

        for waypoint in scene.waypoints.drain(..) {
            scene.lab.kill_waypoint(waypoint);
        }
        for _ in 0..3 {
            let code = scene.sends()?;
            ensure!(code != 0, "around the waypoints that are gone");
        }
        let counted = scene.client.node.agent()?.metrics()?.sum("undermesh_proxy_refused_total", &[]);
        ensure!(counted >= 3.0, "{counted} are counted as refused");
        Ok(())
    })
}
