//! A node: a network namespace on the fabric with a pod range, service translation, cluster DNS, a cgroup and an agent.
use super::agent::Agent;
use super::cgroup;
use super::clock::Clock;
use super::enrol::Kubelet;
use super::netlink::{self, Via};
use super::netns::Netns;
use super::plan;
use super::process::{Process, Program, lock};
use super::spawner::Spawner;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A node of the lab.
pub struct Node {
    /// Number, from 1.
    pub number: u8,
    /// `node<number>`.
    pub name: String,
    /// Its network namespace.
    pub netns: Netns,
    /// Its cgroup: `agent` and `pods` are below.
    pub cgroup: PathBuf,
    /// Folder of the agent: sockets.
    pub run_dir: PathBuf,
    /// What time it is there.
    pub clock: Clock,
    pub(super) agent: Mutex<Option<Arc<Agent>>>,
    pub(super) kubelet: Kubelet,
    pub(super) next_pod: Mutex<u8>,
    _dns: Process,
}

impl Node {
    /// The file with the points at which the node's agent is to panic, if the lab lets it.
    pub fn fail_points(&self) -> PathBuf {
        self.run_dir.with_extension("failpoints")
    }

    /// Where Istio's node agent listens.
    pub fn zds(&self) -> PathBuf {
        self.run_dir.with_extension("zds")
    }

    /// Has the node's agent panic once at each of these points.
    pub fn fail_at(&self, points: &[&str]) -> Result<()> {
        std::fs::write(self.fail_points(), points.join("\n")).context("write fail points")
    }

    /// Builds node `number` of `count` and connects it to the fabric.
    pub(super) fn create(
        number: u8,
        count: u8,
        fabric: &Netns,
        spawner: &Spawner,
        cgroup: &Path,
        dir: &Path,
    ) -> Result<Node> {
        let name = format!("node{number}");
        let netns = Netns::create(&name)?;
        let port = format!("n{number}");
        fabric.run(|| {
            netlink::add_veth(&port, "eth0", netns.fd())?;
            netlink::set_master(&port, "br0")?;
            netlink::set_up(&port, true)
        })?;
        let (own, gateway) = (plan::node(number), plan::gateway(number));
        netns.run(|| {
            netlink::set_up("eth0", true)?;
            netlink::add_address("eth0", own.v4.into(), 24)?;
            netlink::add_address("eth0", own.v6.into(), 64)?;
            netlink::add_address("lo", gateway.v4.into(), 32)?;
            netlink::add_address("lo", gateway.v6.into(), 128)?;
            for other in (1..=count).filter(|n| *n != number) {
                let (range, via) = (plan::pod(other, 0), plan::node(other));
                netlink::add_route(plan::network(range.v4.into()), 24, Via::Gateway(via.v4.into(), "eth0"))?;
                netlink::add_route(plan::network(range.v6.into()), 64, Via::Gateway(via.v6.into(), "eth0"))?;
            }
            let outside = plan::outside();
            netlink::add_route(plan::network(outside.v4.into()), 24, Via::Device("eth0"))?;
            netlink::add_route(plan::network(outside.v6.into()), 64, Via::Device("eth0"))
        })?;
        let cgroup = cgroup.join(&name);
        for part in ["agent", "pods", "system"] {
            cgroup::create(&cgroup.join(part))?;
        }
        let run_dir = dir.join(&name);
        std::fs::create_dir_all(&run_dir).context("create run folder")?;
        let dns = spawner.spawn(
            Program::ours(format!("dns-{name}"), "lab")?
                .args(["dns", "--listen"])
                .arg(format!("{}:53", gateway.v4))
                .arg("--records")
                .arg(dir.join("dns.records"))
                .netns(&netns)
                .cgroup(cgroup.join("system")),
        )?;
        dns.wait_for("ready", Duration::from_secs(10))?;
        let kubelet = Kubelet::start(run_dir.join("enrol.sock"));
        let (agent, next_pod) = (Mutex::new(None), Mutex::new(0));
        let clock = Clock::create(dir, &name)?;
        Ok(Node { number, name, netns, cgroup, run_dir, clock, agent, kubelet, next_pod, _dns: dns })
    }

    /// The running agent.
    pub fn agent(&self) -> Result<Arc<Agent>> {
        lock(&self.agent).clone().with_context(|| format!("no agent on {}", self.name))
    }

    /// The kubelet's side of enrolment.
    pub fn kubelet(&self) -> &Kubelet {
        &self.kubelet
    }

    /// Where pods' cgroups are.
    pub fn pods_cgroup(&self) -> PathBuf {
        self.cgroup.join("pods")
    }
}
