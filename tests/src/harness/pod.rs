//! A pod: a network namespace with one veth to its node, a cgroup, a resolver file and the processes of its app.
use super::manifest::{Map, PodManifest, REDIRECTION, map};
use super::netlink::{self, Via};
use super::netns::Netns;
use super::node::Node;
use super::plan::{self, Dual};
use super::process::{Finished, Process, Program, lock};
use super::spawner::Spawner;
use super::{cgroup, enrol};
use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What a pod should be.
#[derive(Clone, Debug)]
pub struct PodSpec {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) node: u8,
    pub(super) service_account: String,
    pub(super) labels: Map,
    pub(super) ports: Vec<(String, u16)>,
    pub(super) ipv4_only: bool,
    pub(super) number: Option<u8>,
    pub(super) ready: bool,
}

impl PodSpec {
    /// A pod in `default` on the first node with the label `app=<name>` and the account `default`.
    pub fn new(name: &str) -> PodSpec {
        PodSpec {
            name: name.into(),
            namespace: "default".into(),
            node: 1,
            service_account: "default".into(),
            labels: map(&[("app", name)]),
            ports: Vec::new(),
            ipv4_only: false,
            number: None,
            ready: true,
        }
    }

    /// In another namespace.
    pub fn namespace(mut self, namespace: &str) -> PodSpec {
        self.namespace = namespace.into();
        self
    }

    /// On another node (from 1).
    pub fn node(mut self, node: u8) -> PodSpec {
        self.node = node;
        self
    }

    /// With another service account.
    pub fn service_account(mut self, name: &str) -> PodSpec {
        self.service_account = name.into();
        self
    }

    /// With a label.
    pub fn label(mut self, key: &str, value: &str) -> PodSpec {
        self.labels.insert(key.into(), value.into());
        self
    }

    /// With a named container port.
    pub fn port(mut self, name: &str, port: u16) -> PodSpec {
        self.ports.push((name.into(), port));
        self
    }

    /// Not ready before `Lab::set_ready`.
    pub fn unready(mut self) -> PodSpec {
        self.ready = false;
        self
    }

    /// Without IPv6.
    pub fn ipv4_only(mut self) -> PodSpec {
        self.ipv4_only = true;
        self
    }

    /// With the addresses of place `number` in the node's range, for tests that reuse an address.
    pub fn address_number(mut self, number: u8) -> PodSpec {
        self.number = Some(number);
        self
    }
}

/// A pod of the lab.
pub struct Pod {
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Unique id.
    pub uid: String,
    /// Service account.
    pub service_account: String,
    /// Addresses.
    pub address: Dual,
    /// Its node.
    pub node: Arc<Node>,
    /// Its network namespace.
    pub netns: Netns,
    /// Its cgroup.
    pub cgroup: PathBuf,
    pub(super) manifest: Mutex<PodManifest>,
    spawner: Arc<Spawner>,
    resolv_conf: PathBuf,
    device: String,
    ipv4_only: bool,
}

impl Pod {
    pub(super) fn create(spec: PodSpec, node: Arc<Node>, spawner: Arc<Spawner>, dir: &std::path::Path) -> Result<Pod> {
        let number = match spec.number {
            Some(number) => number,
            None => {
                let mut next = lock(&node.next_pod);
                *next += 1;
                *next - 1
            }
        };
        let id: u64 = rand::random();
        let uid = format!("{:08x}-{:04x}-4000-8000-{:012x}", id >> 32, id as u16, id & 0xffff_ffff_ffff);
        let address = plan::pod(node.number, number);
        let netns = Netns::create(&spec.name)?;
        let device = format!("v{:010x}", id & 0xff_ffff_ffff);
        wire(&node, &netns, &device, address, spec.ipv4_only).with_context(|| format!("wire pod {}", spec.name))?;
        let cgroup = node.pods_cgroup().join(format!("pod{uid}"));
        cgroup::create(&cgroup)?;
        let resolv_conf = dir.join(format!("{uid}.resolv.conf"));
        let namespace = &spec.namespace;
        let text = format!(
            "nameserver {}\nsearch {namespace}.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5 timeout:2\n",
            plan::DNS
        );
        std::fs::write(&resolv_conf, text).context("write resolv.conf")?;
        let ips = if spec.ipv4_only { vec![address.v4.into()] } else { address.both().to_vec() };
        let manifest = PodManifest {
            name: spec.name.clone(),
            namespace: spec.namespace.clone(),
            uid: uid.clone(),
            labels: spec.labels,
            annotations: Map::new(),
            service_account: spec.service_account.clone(),
            node: node.name.clone(),
            host_ip: plan::node(node.number).v4.to_string(),
            ips: ips.iter().map(IpAddr::to_string).collect(),
            ports: spec.ports,
            ready: spec.ready,
        };
        Ok(Pod {
            name: spec.name,
            namespace: spec.namespace,
            uid,
            service_account: spec.service_account,
            address,
            node,
            netns,
            cgroup,
            manifest: Mutex::new(manifest),
            spawner,
            resolv_conf,
            device,
            ipv4_only: spec.ipv4_only,
        })
    }

    /// Its addresses, primary first.
    pub fn ips(&self) -> Vec<IpAddr> {
        if self.ipv4_only { vec![self.address.v4.into()] } else { self.address.both().to_vec() }
    }

    /// Lets its node send it so many bytes a second, and drop what finds more than `queue` bytes waiting.
    pub fn congest(&self, rate: u32, queue: u32) -> Result<()> {
        self.node.netns.run(|| netlink::congest(&self.device, rate, queue))
    }

    /// Its SPIFFE identity in the default trust domain.
    pub fn identity(&self) -> String {
        format!("spiffe://cluster.local/ns/{}/sa/{}", self.namespace, self.service_account)
    }

    /// A program that would run inside the pod.
    pub fn program(&self, name: &str, binary: &str) -> Result<Program> {
        Ok(self.inside(Program::ours(format!("{}-{name}", self.name), binary)?))
    }

    /// A program, as it would run inside the pod.
    pub fn inside(&self, program: Program) -> Program {
        program.netns(&self.netns).cgroup(&self.cgroup).resolv_conf(&self.resolv_conf).open_files(200_000)
    }

    /// Starts a program of ours inside the pod.
    pub fn start<T: Into<std::ffi::OsString>>(
        &self,
        name: &str,
        binary: &str,
        args: impl IntoIterator<Item = T>,
    ) -> Result<Process> {
        self.spawner.spawn(self.program(name, binary)?.args(args))
    }

    /// Starts a prepared program.
    pub fn spawn(&self, program: Program) -> Result<Process> {
        self.spawner.spawn(program)
    }

    /// Runs `lab <args>` inside the pod to its end.
    pub fn lab<T: Into<std::ffi::OsString>>(&self, args: impl IntoIterator<Item = T>) -> Result<Finished> {
        self.start("lab", "lab", args)?.wait(Duration::from_secs(60))
    }

    /// Starts a server (`lab <args>`) and waits until it says that it is ready.
    pub fn serve<T: Into<std::ffi::OsString>>(&self, args: impl IntoIterator<Item = T>) -> Result<Process> {
        let process = self.start("server", "lab", args)?;
        process.wait_for("ready", Duration::from_secs(10))?;
        Ok(process)
    }

    /// `lab get <url>`: one load.
    pub fn get(&self, url: &str) -> Result<Finished> {
        self.lab(["get", url])
    }

    /// What the kubelet tells the agent about it.
    pub fn enrolment(&self) -> enrol::Enrolment {
        let search = format!("{}.svc.cluster.local", self.namespace);
        let searches = vec![search, "svc.cluster.local".into(), "cluster.local".into()];
        enrol::Enrolment {
            add: enrol::add_message(
                &self.uid,
                &self.namespace,
                &self.name,
                &self.service_account,
                self.ips().iter().map(IpAddr::to_string).collect(),
                (vec![plan::DNS.to_string()], searches),
                &self.node.name,
            ),
            netns: self.netns.clone(),
            cgroup: self.cgroup.clone(),
        }
    }

    /// Whether the pod carries the redirection annotation.
    pub fn annotated(&self) -> bool {
        lock(&self.manifest).annotations.contains_key(REDIRECTION)
    }

    pub(super) fn labels(&self) -> Map {
        lock(&self.manifest).labels.clone()
    }

    /// Kills its processes and takes its device away, as at the end of a pod.
    pub(super) fn destroy(&self) {
        let start = std::time::Instant::now();
        loop {
            let members = cgroup::members(&self.cgroup);
            if members.is_empty() || start.elapsed() > Duration::from_secs(5) {
                break;
            }
            for pid in members {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let _ = self.node.netns.run(|| netlink::delete_link(&self.device));
        let _ = cgroup::remove(&self.cgroup);
    }
}

/// A routed veth: /32 and /128 in the pod, the node answers as gateway.
fn wire(node: &Node, pod: &Netns, device: &str, address: Dual, ipv4_only: bool) -> Result<()> {
    let gateway = plan::gateway(node.number);
    let link_local: IpAddr = std::net::Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1).into();
    node.netns.run(|| {
        netlink::add_veth(device, "eth0", pod.fd())?;
        netlink::set_up(device, true)?;
        netlink::add_address(device, link_local, 64)?;
        netlink::add_route(address.v4.into(), 32, Via::Device(device))?;
        if !ipv4_only {
            netlink::add_route(address.v6.into(), 128, Via::Device(device))?;
        }
        Ok(())
    })?;
    pod.run(|| {
        netlink::set_up("eth0", true)?;
        netlink::add_address("eth0", address.v4.into(), 32)?;
        netlink::add_route(gateway.v4.into(), 32, Via::Device("eth0"))?;
        netlink::add_route(std::net::Ipv4Addr::UNSPECIFIED.into(), 0, Via::Gateway(gateway.v4.into(), "eth0"))?;
        if !ipv4_only {
            netlink::add_address("eth0", address.v6.into(), 128)?;
            netlink::add_route(std::net::Ipv6Addr::UNSPECIFIED.into(), 0, Via::Gateway(link_local, "eth0"))?;
        }
        Ok(())
    })
}
