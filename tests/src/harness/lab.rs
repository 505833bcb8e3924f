//! The lab itself: builds the fabric and the nodes, keeps pods, services and manifests in step, starts the mesh, cleans up.
use super::agent::Agent;
use super::control::Control;
use super::manifest::{self, Manifests, Map, ServiceManifest, map};
use super::netlink::{self, Via};
use super::netns::Netns;
use super::nft::{self, Translation, Transport};
use super::node::{self, Node};
use super::plan::{self, Dual};
use super::pod::{Pod, PodSpec};
use super::process::{Process, Program, last_lines, lock};
use super::spawner::Spawner;
use super::{cgroup, wait};
use anyhow::{Context, Result};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The annotation by which a pod says that its node's agent has it.
pub const REDIRECTION: &str = "ambient.istio.io/redirection";
/// The opt-in label.
pub const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";

/// Choices for a lab.
#[derive(Clone, Debug)]
pub struct LabConfig {
    /// How many nodes.
    pub nodes: u8,
    /// Extra arguments of `mesh-control`.
    pub control_args: Vec<String>,
    /// Extra arguments of `mesh-agent`.
    pub agent_args: Vec<String>,
    /// Zone label per node; `zone<number>` where the list is shorter.
    pub zones: Vec<String>,
}

impl Default for LabConfig {
    fn default() -> LabConfig {
        LabConfig { nodes: 2, control_args: Vec::new(), agent_args: Vec::new(), zones: Vec::new() }
    }
}

/// A service as the lab knows it: enough for kube-proxy's part and cluster DNS.
#[derive(Clone, Debug)]
pub struct ServiceSpec {
    name: String,
    namespace: String,
    selector: Map,
    ports: Vec<(String, u16, u16)>,
    headless: bool,
    traffic_distribution: Option<String>,
}

impl ServiceSpec {
    /// A service in `default` that selects `app=<name>`.
    pub fn new(name: &str) -> ServiceSpec {
        ServiceSpec {
            name: name.into(),
            namespace: "default".into(),
            selector: map(&[("app", name)]),
            ports: Vec::new(),
            headless: false,
            traffic_distribution: None,
        }
    }

    /// In another namespace.
    pub fn namespace(mut self, namespace: &str) -> ServiceSpec {
        self.namespace = namespace.into();
        self
    }

    /// With another selector.
    pub fn selector(mut self, selector: &[(&str, &str)]) -> ServiceSpec {
        self.selector = map(selector);
        self
    }

    /// With a port.
    pub fn port(mut self, name: &str, port: u16, target: u16) -> ServiceSpec {
        self.ports.push((name.into(), port, target));
        self
    }

    /// Without an address of its own.
    pub fn headless(mut self) -> ServiceSpec {
        self.headless = true;
        self
    }

    /// With `spec.trafficDistribution`.
    pub fn traffic_distribution(mut self, value: &str) -> ServiceSpec {
        self.traffic_distribution = Some(value.into());
        self
    }
}

#[derive(Default)]
struct State {
    pods: Vec<Arc<Pod>>,
    services: Vec<(ServiceSpec, Option<Dual>)>,
    outside_names: Vec<(String, Vec<IpAddr>)>,
    next_service: u16,
}

/// A running lab. Dropping it removes everything.
pub struct Lab {
    /// Unique name of this run; also the instance prefix of its agents.
    pub run: String,
    /// Its folder: manifests, state, logs.
    pub dir: PathBuf,
    /// The manifests folder.
    pub manifests: Manifests,
    /// The bridge between the nodes.
    pub fabric: Netns,
    /// A machine outside the cluster.
    pub outside: Netns,
    /// The control plane.
    pub control: Control,
    /// Nodes, first is number 1.
    pub nodes: Vec<Arc<Node>>,
    state: Mutex<State>,
    config: LabConfig,
    cgroup: PathBuf,
    spawner: Arc<Spawner>,
}

impl Lab {
    /// Builds networks, nodes and cluster services; no mesh yet.
    pub fn start(config: LabConfig) -> Result<Lab> {
        let run = format!("{}-{:06x}", std::process::id(), rand::random::<u32>() & 0xff_ffff);
        let dir = std::env::temp_dir().join(format!("undermesh-{run}"));
        std::fs::create_dir_all(&dir).context("create lab folder")?;
        let cgroup = cgroup::root()?.join(format!("undermesh-{run}"));
        cgroup::create(&cgroup)?;
        let system = cgroup.join("system");
        cgroup::create(&system)?;
        let spawner = Arc::new(Spawner::start(&cgroup, &dir)?);
        let fabric = Netns::create("fabric")?;
        fabric.run(|| {
            netlink::add_bridge("br0")?;
            netlink::set_up("br0", true)
        })?;
        let manifests = Manifests::open(dir.join("manifests"))?;
        std::fs::write(dir.join("dns.records"), "").context("write DNS records")?;
        let control = Control::create(&fabric, spawner.clone(), &system, &dir, manifests.dir(), &config.control_args)?;
        let outside = outside(&config, &fabric)?;
        let mut nodes = Vec::new();
        for number in 1..=config.nodes {
            let node = Arc::new(Node::create(number, &config, &fabric, &spawner, &cgroup, &dir)?);
            let gateway = plan::gateway(number);
            let zone = config.zones.get(usize::from(number) - 1).cloned().unwrap_or(format!("zone{number}"));
            let labels = map(&[("topology.kubernetes.io/region", "lab"), ("topology.kubernetes.io/zone", &zone)]);
            let ranges = [
                format!("{}/24", node::network(gateway.v4.into())),
                format!("{}/64", node::network(gateway.v6.into())),
            ];
            let addresses = [plan::node(number).v4.to_string(), plan::node(number).v6.to_string()];
            manifests.put(&format!("node-{}", node.name), &manifest::node(&node.name, &addresses, &ranges, &labels))?;
            nodes.push(node);
        }
        let lab = Lab {
            run,
            dir,
            manifests,
            fabric,
            outside,
            control,
            nodes,
            state: Mutex::default(),
            config,
            cgroup,
            spawner,
        };
        for namespace in ["default", "undermesh-system", "istio-system"] {
            lab.namespace(namespace, &[])?;
        }
        lab.sync()?;
        Ok(lab)
    }

    /// `start`, then control plane and agents, all ready.
    pub fn with_mesh(config: LabConfig) -> Result<Lab> {
        let lab = Lab::start(config)?;
        lab.start_mesh()?;
        Ok(lab)
    }

    /// Starts the control plane and one agent per node and waits until they are ready.
    pub fn start_mesh(&self) -> Result<()> {
        self.control.start()?;
        for node in &self.nodes {
            self.start_agent(node)?;
        }
        for node in &self.nodes {
            node.agent()?.wait_ready(Duration::from_secs(30))?;
        }
        Ok(())
    }

    /// Starts the agent of one node without waiting.
    pub fn start_agent(&self, node: &Node) -> Result<()> {
        let program = self.agent_program(node)?;
        let agent = Agent::start(node, &self.spawner, program)?;
        *lock(&node.agent) = Some(Arc::new(agent));
        Ok(())
    }

    /// The command line that `start_agent` uses, for tests that change it.
    pub fn agent_program(&self, node: &Node) -> Result<Program> {
        let instance = format!("{}-{}", self.run, node.name);
        Agent::program(node, &self.control, &instance, &self.config.agent_args)
    }

    /// Starts an agent with another command line; the caller owns it.
    pub fn adopt_agent(&self, node: &Node, program: Program) -> Result<Agent> {
        Agent::start(node, &self.spawner, program)
    }

    /// Starts a program with the lab's namespaces around it.
    pub fn spawn(&self, program: Program) -> Result<Process> {
        self.spawner.spawn(program)
    }

    /// A node by number, from 1.
    pub fn node(&self, number: u8) -> &Arc<Node> {
        &self.nodes[usize::from(number) - 1]
    }

    /// Writes a namespace with labels; again to change them.
    pub fn namespace(&self, name: &str, labels: &[(&str, &str)]) -> Result<()> {
        let mut labels = map(labels);
        labels.insert("kubernetes.io/metadata.name".into(), name.into());
        self.manifests.put(&format!("namespace-{name}"), &manifest::namespace(name, &labels))?;
        self.manifests.put(&format!("sa-{name}-default"), &manifest::service_account(name, "default"))
    }

    /// Writes any manifest.
    pub fn apply(&self, file: &str, text: &str) -> Result<()> {
        self.manifests.put(file, text)
    }

    /// Removes a manifest written by `apply`.
    pub fn delete(&self, file: &str) -> Result<()> {
        self.manifests.remove(file)
    }

    /// Adds a pod: namespace, addresses, manifest, cluster services. Not enrolled.
    pub fn add_pod(&self, spec: PodSpec) -> Result<Arc<Pod>> {
        let node = self.node(spec.node).clone();
        let account = format!("sa-{}-{}", spec.namespace, spec.service_account);
        self.manifests.put(&account, &manifest::service_account(&spec.namespace, &spec.service_account))?;
        let pod = Arc::new(Pod::create(spec, node, self.spawner.clone(), &self.dir)?);
        self.write_pod(&pod)?;
        lock(&self.state).pods.push(pod.clone());
        self.sync()?;
        Ok(pod)
    }

    /// Removes a pod as a kubelet does: out of the mesh, processes killed, device and object gone.
    pub fn remove_pod(&self, pod: &Arc<Pod>) -> Result<()> {
        if pod.annotated() {
            pod.node.kubelet.del(&pod.uid)?;
        }
        pod.destroy();
        lock(&self.state).pods.retain(|p| p.uid != pod.uid);
        self.manifests.remove(&pod_file(pod))?;
        self.sync()
    }

    /// Sets the Ready condition of a pod.
    pub fn set_ready(&self, pod: &Pod, ready: bool) -> Result<()> {
        lock(&pod.manifest).ready = ready;
        self.write_pod(pod)?;
        self.sync()
    }

    /// Adds a service. Its addresses are returned; none if it is headless.
    pub fn add_service(&self, spec: ServiceSpec) -> Result<Option<Dual>> {
        let address = {
            let mut state = lock(&self.state);
            let address = (!spec.headless).then(|| plan::service(state.next_service));
            state.next_service += 1;
            state.services.push((spec.clone(), address));
            address
        };
        let text = manifest::service(&ServiceManifest {
            name: spec.name.clone(),
            namespace: spec.namespace.clone(),
            annotations: Map::new(),
            selector: spec.selector.clone(),
            cluster_ips: address.map(|a| vec![a.v4.to_string(), a.v6.to_string()]).unwrap_or_default(),
            ports: spec.ports.clone(),
            traffic_distribution: spec.traffic_distribution.clone(),
        });
        self.manifests.put(&format!("service-{}-{}", spec.namespace, spec.name), &text)?;
        self.sync()?;
        Ok(address)
    }

    /// Makes cluster DNS know a name of the outside world.
    pub fn outside_name(&self, name: &str, addresses: &[IpAddr]) -> Result<()> {
        lock(&self.state).outside_names.push((name.into(), addresses.to_vec()));
        self.sync()
    }

    /// Starts `lab <args>` on the machine outside the cluster and waits until it is ready.
    pub fn serve_outside(&self, args: &[&str]) -> Result<Process> {
        let program =
            Program::ours("outside", "lab")?.args(args).netns(&self.outside).cgroup(self.cgroup.join("system"));
        let process = self.spawner.spawn(program)?;
        process.wait_for("ready", Duration::from_secs(10))?;
        Ok(process)
    }

    /// Pods of a namespace.
    pub fn pods(&self, namespace: &str) -> Vec<Arc<Pod>> {
        lock(&self.state).pods.iter().filter(|p| p.namespace == namespace).cloned().collect()
    }

    /// Labels a namespace into the mesh and enrols each of its pods.
    pub fn enrol_namespace(&self, namespace: &str) -> Result<()> {
        self.namespace(namespace, &[(DATAPLANE_MODE, "ambient")])?;
        for pod in self.pods(namespace) {
            self.enrol(&pod)?;
        }
        Ok(())
    }

    /// Takes the label away and every pod out.
    pub fn unenrol_namespace(&self, namespace: &str) -> Result<()> {
        self.namespace(namespace, &[])?;
        let pods = self.pods(namespace);
        self.leave(&pods.iter().map(AsRef::as_ref).collect::<Vec<_>>())
    }

    /// Enrols one pod: told to the agent, acknowledged, then annotated.
    pub fn enrol(&self, pod: &Pod) -> Result<()> {
        pod.node.kubelet.add(pod.enrolment())?;
        self.announce(pod)
    }

    /// Sets the annotation that says that a pod's node has it in the mesh, whoever does the node's part.
    pub fn announce(&self, pod: &Pod) -> Result<()> {
        lock(&pod.manifest).annotations.insert(REDIRECTION.into(), "enabled".into());
        self.write_pod(pod)
    }

    /// Takes one pod out of the mesh.
    pub fn unenrol(&self, pod: &Pod) -> Result<()> {
        self.leave(&[pod])
    }

    /// The annotations go first, and the pods are taken out when the peers have heard: none calls them by HBONE any more.
    fn leave(&self, pods: &[&Pod]) -> Result<()> {
        for pod in pods {
            lock(&pod.manifest).annotations.remove(REDIRECTION);
            self.write_pod(pod)?;
        }
        self.wait_announced(pods, false)?;
        pods.iter().try_for_each(|pod| pod.node.kubelet.del(&pod.uid))
    }

    /// Waits until every agent knows these pods by HBONE, so that what follows is the mesh's steady state.
    pub fn wait_hbone(&self, pods: &[&Pod]) -> Result<()> {
        self.wait_announced(pods, true)
    }

    fn wait_announced(&self, pods: &[&Pod], hbone: bool) -> Result<()> {
        for node in &self.nodes {
            let agent = node.agent()?;
            wait::eventually(&format!("{} to know the pods", node.name), Duration::from_secs(15), || {
                let dump = agent.admin("/config_dump")?.body;
                let value: serde_json::Value = serde_json::from_str(&dump).context("config dump is JSON")?;
                for pod in pods {
                    if knows_hbone(&value, pod) != hbone {
                        anyhow::bail!("{} is HBONE there: {}", pod.name, !hbone);
                    }
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// The end of every log, for failure messages.
    pub fn report(&self) -> String {
        let mut text = String::new();
        let mut entries: Vec<_> =
            std::fs::read_dir(self.dir.join("logs")).map(|d| d.filter_map(|e| e.ok()).collect()).unwrap_or_default();
        entries.sort_by_key(|e: &std::fs::DirEntry| e.file_name());
        for entry in entries {
            let log = std::fs::read_to_string(entry.path()).unwrap_or_default();
            if !log.is_empty() {
                let name = entry.file_name();
                text.push_str(&format!("--- {} ---\n{}\n", name.to_string_lossy(), last_lines(&log, 40)));
            }
        }
        text
    }

    /// The lab's cgroup.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    fn write_pod(&self, pod: &Pod) -> Result<()> {
        let text = manifest::pod(&lock(&pod.manifest));
        self.manifests.put(&pod_file(pod), &text)
    }

    /// Brings service translation and cluster DNS in line with pods and services.
    fn sync(&self) -> Result<()> {
        let state = lock(&self.state);
        let mut translations = Vec::new();
        let mut records = String::new();
        for (service, address) in &state.services {
            let endpoints: Vec<&Arc<Pod>> = state
                .pods
                .iter()
                .filter(|p| p.namespace == service.namespace && lock(&p.manifest).ready)
                .filter(|p| {
                    let labels = p.labels();
                    service.selector.iter().all(|(k, v)| labels.get(k) == Some(v))
                })
                .collect();
            let addresses: Vec<IpAddr> = match address {
                Some(address) => address.both().to_vec(),
                None => endpoints.iter().flat_map(|p| p.ips()).collect(),
            };
            records.push_str(&format!("{}.{}.svc.cluster.local", service.name, service.namespace));
            for ip in &addresses {
                records.push_str(&format!(" {ip}"));
            }
            records.push('\n');
            for ip in address.iter().flat_map(|a| a.both()) {
                for (_, port, target) in &service.ports {
                    let same_family = endpoints.iter().flat_map(|p| p.ips()).filter(|e| e.is_ipv4() == ip.is_ipv4());
                    translations.push(Translation {
                        transport: Transport::Tcp,
                        service: SocketAddr::new(ip, *port),
                        endpoints: same_family.map(|e| SocketAddr::new(e, *target)).collect(),
                    });
                }
            }
        }
        for (name, addresses) in &state.outside_names {
            records.push_str(name);
            for ip in addresses {
                records.push_str(&format!(" {ip}"));
            }
            records.push('\n');
        }
        let file = self.dir.join("dns.records");
        let partial = self.dir.join("dns.records.partial");
        std::fs::write(&partial, records)
            .and_then(|()| std::fs::rename(&partial, &file))
            .context("write DNS records")?;
        for node in &self.nodes {
            let mut all = translations.clone();
            for transport in [Transport::Udp, Transport::Tcp] {
                all.push(Translation {
                    transport,
                    service: SocketAddr::new(plan::DNS.into(), 53),
                    endpoints: vec![SocketAddr::new(plan::gateway(node.number).v4.into(), 53)],
                });
            }
            node.netns.run(|| nft::replace(&all)).with_context(|| format!("services of {}", node.name))?;
        }
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() || std::env::var_os("UNDERMESH_LOGS").is_some() {
            eprintln!("{}", self.report());
        }
        self.spawner.shutdown();
    }
}

fn pod_file(pod: &Pod) -> String {
    format!("pod-{}-{}", pod.namespace, pod.name)
}

/// Whether a config dump shows the pod as reachable by HBONE, wherever in the document its workload is.
fn knows_hbone(value: &serde_json::Value, pod: &Pod) -> bool {
    match value {
        serde_json::Value::Object(object) => {
            let text = |key: &str| object.get(key).and_then(|v| v.as_str()).unwrap_or("");
            (text("name") == pod.name
                && text("namespace") == pod.namespace
                && text("protocol").eq_ignore_ascii_case("hbone"))
                || object.values().any(|v| knows_hbone(v, pod))
        }
        serde_json::Value::Array(list) => list.iter().any(|v| knows_hbone(v, pod)),
        _ => false,
    }
}

fn outside(config: &LabConfig, fabric: &Netns) -> Result<Netns> {
    let netns = Netns::create("outside")?;
    fabric.run(|| {
        netlink::add_veth("outside", "eth0", netns.fd())?;
        netlink::set_master("outside", "br0")?;
        netlink::set_up("outside", true)
    })?;
    netns.run(|| {
        netlink::set_up("eth0", true)?;
        for ip in plan::outside().both() {
            let prefix = if ip.is_ipv4() { 24 } else { 64 };
            netlink::add_address("eth0", ip, prefix)?;
            for number in 1..=config.nodes {
                let (own, range) = (plan::node(number), plan::gateway(number));
                let (own, range): (IpAddr, IpAddr) =
                    if ip.is_ipv4() { (own.v4.into(), range.v4.into()) } else { (own.v6.into(), range.v6.into()) };
                netlink::add_route(own, if ip.is_ipv4() { 32 } else { 128 }, Via::Device("eth0"))?;
                netlink::add_route(node::network(range), prefix, Via::Gateway(own, "eth0"))?;
            }
        }
        Ok(())
    })?;
    Ok(netns)
}
