//! A waypoint of a lab: a Gateway with its Service, and `mesh-waypoint` as pods of it, as a cluster would run what the control plane deploys. A pod of a waypoint is
//! none of the mesh's: it ends tunnels itself. The harness plays its kubelet, which looks whether it is ready.
use super::http;
use super::lab::Lab;
use super::manifest::{self, DATAPLANE_MODE, Map};
use super::metrics::Metrics;
use super::netns::Netns;
use super::plan;
use super::pod::{Pod, PodSpec};
use super::process::{Finished, Process, Program, last_lines};
use super::service::ServiceSpec;
use super::wait::eventually;
use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// On a pod: the Gateway that it serves.
pub const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";
/// On a pod of a Gateway, with `http`: it takes tunnels.
pub const TUNNEL: &str = "networking.istio.io/tunnel";
/// On a Service, Pod or Namespace: its waypoint.
pub const USE_WAYPOINT: &str = "istio.io/use-waypoint";
/// How long a waypoint may take to be ready, and to be known.
const SOON: Duration = Duration::from_secs(20);

/// A pod of a waypoint.
pub struct Waypoint {
    /// Its pod.
    pub pod: Arc<Pod>,
    process: Process,
}

impl Lab {
    /// Writes a Gateway of a waypoint's class and the Service of its name. Nobody serves it yet.
    pub fn add_gateway(&self, namespace: &str, name: &str, class: &str, labels: &Map) -> Result<()> {
        self.apply(&gateway_file(namespace, name), &manifest::waypoint(namespace, name, class, labels))?;
        let service = ServiceSpec::new(name).namespace(namespace).selector(&[(GATEWAY_NAME, name)]);
        self.add_service(service.port("mesh", 15008, 15008)).map(drop)
    }

    /// Takes a Gateway away; its Service and pods stay.
    pub fn delete_gateway(&self, namespace: &str, name: &str) -> Result<()> {
        self.delete(&gateway_file(namespace, name))
    }

    /// Starts a pod of a Gateway, waits until it is ready, and until every agent knows that.
    pub fn start_waypoint(&self, namespace: &str, gateway: &str, node: u8) -> Result<Waypoint> {
        let name = format!("{gateway}-{:06x}", rand::random::<u32>() & 0xff_ffff);
        let pod = self.add_pod(
            PodSpec::new(&name)
                .namespace(namespace)
                .node(node)
                .service_account(gateway)
                .label(GATEWAY_NAME, gateway)
                .label(DATAPLANE_MODE, "none")
                .unready(),
        )?;
        self.restart_waypoint(pod, gateway)
    }

    /// Starts a pod of a Gateway of the class `undermesh`, which listens outside of the mesh, with these labels besides, and waits until it is ready.
    pub fn start_gateway(&self, namespace: &str, gateway: &str, node: u8, labels: &[(&str, &str)]) -> Result<Waypoint> {
        let pod = self.gateway_pod(namespace, gateway, node, labels)?;
        let program = self.waypoint_program(&pod, gateway)?.args(["--service", &pod.service_account]);
        self.start_in(pod, program)
    }

    /// Starts the process of a pod of a Gateway that has none, as a kubelet starts a container again.
    pub fn restart_waypoint(&self, pod: Arc<Pod>, gateway: &str) -> Result<Waypoint> {
        let process = self.spawn(self.waypoint_program(&pod, gateway)?)?;
        let waypoint = Waypoint { pod, process };
        waypoint.wait_ready(SOON)?;
        self.set_ready(&waypoint.pod, true)?;
        self.wait_endpoint(&waypoint.pod)?;
        Ok(waypoint)
    }

    /// Ends a waypoint as a kubelet ends a pod: it is told, and nobody is sent there any more; then it is gone.
    pub fn stop_waypoint(&self, waypoint: Waypoint) -> Result<Finished> {
        waypoint.process.signal(Signal::SIGTERM)?;
        self.set_ready(&waypoint.pod, false)?;
        let finished = waypoint.process.wait(SOON)?;
        self.remove_pod(&waypoint.pod)?;
        Ok(finished)
    }

    /// Kills a waypoint. Its pod stays, and is taken for ready until `set_ready` says otherwise.
    pub fn kill_waypoint(&self, waypoint: Waypoint) -> Arc<Pod> {
        waypoint.process.kill();
        waypoint.pod.clone()
    }

    /// Starts a pod of a Gateway that listens outside of the mesh, with these arguments instead of those that tests have, and waits until it is ready.
    pub fn start_gateway_with(&self, namespace: &str, gateway: &str, node: u8, args: &[&str]) -> Result<Waypoint> {
        let pod = self.gateway_pod(namespace, gateway, node, &[])?;
        let program = self.bare_program(&pod, gateway)?.args(args);
        self.start_in(pod, program)
    }

    fn gateway_pod(&self, namespace: &str, gateway: &str, node: u8, labels: &[(&str, &str)]) -> Result<Arc<Pod>> {
        let name = format!("{gateway}-{:06x}", rand::random::<u32>() & 0xff_ffff);
        // What is made for a Gateway of this class is called so, and so are its service account and Service.
        let made = format!("{gateway}-undermesh");
        let spec = PodSpec::new(&name).namespace(namespace).node(node).service_account(&made).unready();
        let spec = spec.label(GATEWAY_NAME, gateway).label(DATAPLANE_MODE, "none").label(TUNNEL, "http");
        self.add_pod(labels.iter().fold(spec, |spec, (key, value)| spec.label(key, value)))
    }

    /// Starts the gateway's process in its pod, and waits until it is ready.
    fn start_in(&self, pod: Arc<Pod>, program: Program) -> Result<Waypoint> {
        let program = program.args(["--service-account", &pod.service_account]);
        let waypoint = Waypoint { process: self.spawn(program)?, pod };
        waypoint.wait_ready(SOON)?;
        self.set_ready(&waypoint.pod, true)?;
        Ok(waypoint)
    }

    fn waypoint_program(&self, pod: &Pod, gateway: &str) -> Result<Program> {
        Ok(self.bare_program(pod, gateway)?.args(["--drain", "5s", "--workers", "2", "--access-log", "on"]))
    }

    fn bare_program(&self, pod: &Pod, gateway: &str) -> Result<Program> {
        let ips: Vec<String> = pod.ips().iter().map(IpAddr::to_string).collect();
        Ok(pod
            .program("waypoint", "mesh-waypoint")?
            .args(["--gateway", gateway, "--namespace", &pod.namespace, "--pod", &pod.name, "--node", &pod.node.name])
            .args(["--ips", &ips.join(","), "--control", &format!("{}:15012", plan::control())])
            .arg("--control-root")
            .arg(self.control.root_certificate())
            .arg("--token")
            .arg(self.control.token(&format!("waypoint-{}_{gateway}", pod.namespace))?)
            .arg("--admin")
            .arg(self.waypoint_socket(&pod.name))
            .env("SSL_CERT_FILE", self.outside_roots().to_string_lossy())
            .clock(&pod.node.clock))
    }

    /// Waits until every agent sends requests to a pod.
    fn wait_endpoint(&self, pod: &Pod) -> Result<()> {
        for node in &self.nodes {
            let agent = node.agent()?;
            eventually(&format!("{} to know {}", node.name, pod.name), SOON, || {
                let dump = agent.admin("/config_dump")?.body;
                let value: serde_json::Value = serde_json::from_str(&dump).context("config dump is JSON")?;
                if !is_endpoint(&value, pod) {
                    bail!("it is no endpoint there");
                }
                Ok(())
            })?;
        }
        Ok(())
    }
}

impl Waypoint {
    /// Waits until it says that it serves.
    pub fn wait_ready(&self, limit: Duration) -> Result<()> {
        eventually(&format!("readiness of {}", self.pod.name), limit, || {
            if !self.process.running() {
                return Ok(Err(anyhow::anyhow!("waypoint ended: {}", last_lines(&self.log(), 20))));
            }
            let answer = http::get(&self.pod.netns, local(15021), "/healthz/ready")?;
            if answer.status != 200 {
                bail!("status {}: {}; {}", answer.status, answer.body.trim(), last_lines(&self.log(), 5));
            }
            Ok(Ok(()))
        })?
    }

    /// A scrape.
    pub fn metrics(&self) -> Result<Metrics> {
        scrape(&self.pod.netns)
    }

    /// Everything it wrote.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Lines of its log that contain all of `words`.
    pub fn lines(&self, words: &[&str]) -> Vec<String> {
        let log = self.log();
        log.lines().filter(|line| words.iter().all(|word| line.contains(word))).map(String::from).collect()
    }

    /// Its process.
    pub fn process(&self) -> &Process {
        &self.process
    }
}

fn scrape(netns: &Netns) -> Result<Metrics> {
    let response = http::get(netns, local(15020), "/stats/prometheus")?;
    if response.status != 200 {
        bail!("metrics answered {}", response.status);
    }
    Ok(Metrics::parse(&response.body))
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

fn gateway_file(namespace: &str, name: &str) -> String {
    format!("gateway-{namespace}-{name}")
}

/// Whether a config dump shows the pod as healthy and reachable by HBONE, wherever in the document its workload is.
fn is_endpoint(value: &serde_json::Value, pod: &Pod) -> bool {
    match value {
        serde_json::Value::Object(object) => {
            let text = |key: &str| object.get(key).and_then(|v| v.as_str()).unwrap_or("");
            let is_it = text("name") == pod.name && text("namespace") == pod.namespace;
            let good = text("protocol").eq_ignore_ascii_case("hbone") && text("health").eq_ignore_ascii_case("healthy");
            (is_it && good) || object.values().any(|v| is_endpoint(v, pod))
        }
        serde_json::Value::Array(list) => list.iter().any(|v| is_endpoint(v, pod)),
        _ => false,
    }
}
