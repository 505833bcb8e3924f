//! The control plane of a lab: `mesh-control` as a process in a namespace of its own on the fabric.
use super::clock::Clock;
use super::http;
use super::metrics::Metrics;
use super::netlink::{self, Via};
use super::netns::Netns;
use super::plan;
use super::process::{Process, Program, lock};
use super::spawner::Spawner;
use super::wait::eventually;
use anyhow::{Context, Result};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The control plane's place and process.
pub struct Control {
    /// Its namespace; taking its device down cuts it off.
    pub netns: Netns,
    /// Where it keeps root certificate, key and tokens.
    pub state_dir: PathBuf,
    /// What time it is there.
    pub clock: Clock,
    process: Mutex<Option<Process>>,
    manifests: PathBuf,
    cgroup: PathBuf,
    args: Vec<String>,
    spawner: Arc<Spawner>,
}

impl Control {
    pub(super) fn create(
        fabric: &Netns,
        spawner: Arc<Spawner>,
        cgroup: &Path,
        dir: &Path,
        manifests: &Path,
        (nodes, args): (u8, &[String]),
    ) -> Result<Control> {
        let netns = Netns::create("control")?;
        fabric.run(|| {
            netlink::add_veth("control", "eth0", netns.fd())?;
            netlink::set_master("control", "br0")?;
            netlink::set_up("control", true)
        })?;
        netns.run(|| {
            netlink::set_up("eth0", true)?;
            netlink::add_address("eth0", plan::control().into(), 24)?;
            // Waypoints are pods, and ask from there.
            (1..=nodes).try_for_each(|number| {
                let range = plan::network(plan::gateway(number).v4.into());
                netlink::add_route(range, 24, Via::Gateway(plan::node(number).v4.into(), "eth0"))
            })
        })?;
        let state_dir = dir.join("control-state");
        let (manifests, cgroup, args) = (manifests.to_path_buf(), cgroup.to_path_buf(), args.to_vec());
        let clock = Clock::create(dir, "control")?;
        Ok(Control { netns, state_dir, clock, process: Mutex::new(None), manifests, cgroup, args, spawner })
    }

    /// Starts the process and waits until it serves.
    pub fn start(&self) -> Result<()> {
        let address = plan::control();
        let process = self.spawner.spawn(
            Program::ours("mesh-control", "mesh-control")?
                .arg("--manifests")
                .arg(&self.manifests)
                .arg("--state-dir")
                .arg(&self.state_dir)
                .arg("--listen")
                .arg(format!("{address}:15012"))
                .arg("--metrics")
                .arg(format!("{address}:15014"))
                .args(&self.args)
                .clock(&self.clock)
                .netns(&self.netns)
                .cgroup(&self.cgroup),
        )?;
        process.wait_for("ready", Duration::from_secs(20))?;
        *lock(&self.process) = Some(process);
        Ok(())
    }

    /// Kills the process.
    pub fn kill(&self) {
        drop(lock(&self.process).take());
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: nix::sys::signal::Signal) -> Result<()> {
        lock(&self.process).as_ref().context("control plane is not running")?.signal(signal)
    }

    /// Its pid.
    pub fn pid(&self) -> Result<i32> {
        Ok(lock(&self.process).as_ref().context("control plane is not running")?.pid())
    }

    /// Everything it wrote.
    pub fn log(&self) -> String {
        lock(&self.process).as_ref().map(Process::log).unwrap_or_default()
    }

    /// Takes its cable away or plugs it in again.
    pub fn connect(&self, connected: bool) -> Result<()> {
        self.netns.run(|| netlink::set_up("eth0", connected))
    }

    /// Its metrics.
    pub fn metrics(&self) -> Result<Metrics> {
        let response = http::get(&self.netns, SocketAddr::new(plan::control().into(), 15014), "/metrics")?;
        Ok(Metrics::parse(&response.body))
    }

    /// The root certificate, once written.
    pub fn root_certificate(&self) -> PathBuf {
        self.state_dir.join("root-cert.pem")
    }

    /// The token of a node, once written.
    pub fn token(&self, node: &str) -> Result<PathBuf> {
        let path = self.state_dir.join("tokens").join(node);
        eventually(&format!("token of {node}"), Duration::from_secs(10), || {
            path.exists().then_some(()).context("no such file yet")
        })?;
        Ok(path)
    }
}
