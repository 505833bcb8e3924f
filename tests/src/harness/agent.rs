//! A node's agent: `mesh-agent` as real processes (keeper and worker), asked over its own endpoints.
use super::control::Control;
use super::http;
use super::metrics::Metrics;
use super::node::Node;
use super::plan;
use super::process::{Finished, Process, Program};
use super::spawner::Spawner;
use super::wait::eventually;
use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// A running agent.
pub struct Agent {
    /// The keeper's process; the worker is its child.
    pub process: Process,
    netns: super::netns::Netns,
    run_dir: PathBuf,
    node: String,
}

impl Agent {
    /// The command line for `node`.
    pub fn program(node: &Node, control: &Control, instance: &str, ranges: &str, args: &[String]) -> Result<Program> {
        Ok(Program::ours(format!("agent-{}", node.name), "mesh-agent")?
            .args(["--node", &node.name, "--instance", instance, "--control"])
            .arg(format!("{}:15012", plan::control()))
            .arg("--control-root")
            .arg(control.root_certificate())
            .arg("--token")
            .arg(control.token(&node.name)?)
            .arg("--run-dir")
            .arg(&node.run_dir)
            .arg("--pods-cgroup")
            .arg(node.pods_cgroup())
            .arg("--agent-cgroup")
            .arg(node.cgroup.join("agent"))
            .args(["--mesh-ranges", ranges])
            .args(args)
            .clock(&node.clock)
            .netns(&node.netns)
            .cgroup(node.cgroup.join("system")))
    }

    /// Starts a program made by `program`.
    pub fn start(node: &Node, spawner: &Spawner, program: Program) -> Result<Agent> {
        let process = spawner.spawn(program)?;
        Ok(Agent { process, netns: node.netns.clone(), run_dir: node.run_dir.clone(), node: node.name.clone() })
    }

    /// Waits for readiness.
    pub fn wait_ready(&self, limit: Duration) -> Result<()> {
        eventually(&format!("readiness of the agent on {}", self.node), limit, || {
            if !self.process.running() {
                return Ok(Err(anyhow::anyhow!(
                    "agent ended: {}",
                    super::process::last_lines(&self.process.log(), 20)
                )));
            }
            let status = self.ready_status()?;
            if status != 200 {
                bail!("status {status}: {}", super::process::last_lines(&self.process.log(), 5));
            }
            Ok(Ok(()))
        })?
    }

    /// The status of the readiness endpoint.
    pub fn ready_status(&self) -> Result<u16> {
        Ok(http::get(&self.netns, self.local(15021), "/healthz/ready")?.status)
    }

    /// A scrape.
    pub fn metrics(&self) -> Result<Metrics> {
        let response = http::get(&self.netns, self.local(15020), "/metrics")?;
        if response.status != 200 {
            bail!("metrics answered {}", response.status);
        }
        Ok(Metrics::parse(&response.body))
    }

    /// A path of the admin socket.
    pub fn admin(&self, path: &str) -> Result<http::Response> {
        http::get_unix(&self.admin_socket(), path)
    }

    /// The admin socket's path.
    pub fn admin_socket(&self) -> PathBuf {
        self.run_dir.join("admin.sock")
    }

    /// Everything both processes wrote.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Access-log lines that contain all of `words`.
    pub fn access_log(&self, words: &[&str]) -> Vec<String> {
        self.log()
            .lines()
            .filter(|line| line.contains("connection complete") && words.iter().all(|w| line.contains(w)))
            .map(String::from)
            .collect()
    }

    /// Pid of the worker.
    pub fn worker(&self) -> Result<i32> {
        children(self.process.pid()).into_iter().next().context("the keeper has no child")
    }

    /// Signals the worker only.
    pub fn signal_worker(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.worker()?), signal).context("signal worker")
    }

    /// Asks for an orderly end and waits for it.
    pub fn stop(&self, limit: Duration) -> Result<Finished> {
        self.process.signal(Signal::SIGTERM)?;
        self.process.wait(limit)
    }

    fn local(&self, port: u16) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
    }
}

/// Direct children of a process.
pub fn children(parent: i32) -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|e| e.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let after = stat.rsplit(')').next().unwrap_or("");
            let mut fields = after.split_whitespace();
            let state = fields.next();
            state != Some("Z") && fields.next().and_then(|p| p.parse().ok()) == Some(parent)
        })
        .collect()
}

/// CPU seconds (user and system) of a process so far.
pub fn cpu_seconds(pid: i32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<u64> =
        stat.rsplit(')').next().unwrap_or("").split_whitespace().map(|f| f.parse().unwrap_or(0)).collect();
    let ticks = fields.get(11).unwrap_or(&0) + fields.get(12).unwrap_or(&0);
    ticks as f64 / 100.0
}

/// Resident memory of a process in KiB.
pub fn resident_kib(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap_or("");
    line.split_whitespace().nth(1).and_then(|v| v.parse().ok()).unwrap_or(0)
}
