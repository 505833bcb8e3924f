//! The lab itself: builds the fabric and the nodes, keeps pods, services and manifests in step, starts the mesh, cleans up.
use super::agent::Agent;
use super::clock::Clock;
use super::cluster::Cluster;
use super::control::Control;
use super::manifest::{self, Manifests, map};
use super::netns::Netns;
use super::node::Node;
use super::plan::{self, Dual};
use super::pod::{Pod, PodSpec};
use super::process::{Process, Program, last_lines, lock};
use super::service::ServiceSpec;
use super::spawner::Spawner;
use super::{cgroup, netlink, outside, require};
use anyhow::{Context, Result};
use std::ffi::OsString;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

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
    /// Agents hear of pods from Istio's node agent, at `Node::zds`; whoever starts the lab's mesh plays it.
    pub istio_cni: bool,
    /// Agents panic where `Node::fail_at` says; a debug build only.
    pub fail_points: bool,
}

impl Default for LabConfig {
    fn default() -> LabConfig {
        LabConfig {
            nodes: 2,
            control_args: Vec::new(),
            agent_args: Vec::new(),
            zones: Vec::new(),
            istio_cni: false,
            fail_points: false,
        }
    }
}

#[derive(Default)]
struct State {
    pods: Vec<Arc<Pod>>,
    cluster: Cluster,
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
    /// The wall clock of all.
    pub clock: Clock,
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
        // From here on the janitor removes both; until then nobody else does.
        let spawner = Spawner::start(&cgroup, &dir).inspect_err(|_| {
            let _ = cgroup::remove(&cgroup);
            let _ = std::fs::remove_dir_all(&dir);
        })?;
        let spawner = Arc::new(spawner);
        let fabric = Netns::create("fabric")?;
        fabric.run(|| {
            netlink::add_bridge("br0")?;
            netlink::set_up("br0", true)
        })?;
        let manifests = Manifests::open(dir.join("manifests"))?;
        std::fs::write(dir.join("dns.records"), "").context("write DNS records")?;
        let control = Control::create(
            &fabric,
            spawner.clone(),
            &system,
            &dir,
            manifests.dir(),
            (config.nodes, &config.control_args),
        )?;
        let outside = outside::create(config.nodes, &fabric)?;
        let mut nodes = Vec::new();
        for number in 1..=config.nodes {
            let node = Arc::new(Node::create(number, config.nodes, &fabric, &spawner, &cgroup, &dir)?);
            let gateway = plan::gateway(number);
            let zone = config.zones.get(usize::from(number) - 1).cloned().unwrap_or(format!("zone{number}"));
            let labels = map(&[("topology.kubernetes.io/region", "lab"), ("topology.kubernetes.io/zone", &zone)]);
            let ranges = [
                format!("{}/24", plan::network(gateway.v4.into())),
                format!("{}/64", plan::network(gateway.v6.into())),
            ];
            let addresses = [plan::node(number).v4.to_string(), plan::node(number).v6.to_string()];
            manifests.put(&format!("node-{}", node.name), &manifest::node(&node.name, &addresses, &ranges, &labels))?;
            nodes.push(node);
        }
        let lab = Lab {
            clock: Clock::of_all(&dir),
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

    /// The same, and one pod in it, `client`.
    pub fn with_client() -> Result<(Lab, Arc<Pod>)> {
        let lab = Lab::with_mesh(LabConfig::default())?;
        let client = lab.add_pod(PodSpec::new("client").node(1))?;
        lab.enrol_namespace("default")?;
        lab.wait_hbone(&[&client])?;
        Ok((lab, client))
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
        let ranges = plan::mesh_ranges(self.config.nodes);
        let mut program = Agent::program(node, &self.control, &instance, &ranges, &self.config.agent_args)?;
        if self.config.istio_cni {
            program = program.arg("--zds").arg(node.zds());
        }
        Ok(match self.config.fail_points {
            true => program.env("UNDERMESH_FAILPOINTS", node.fail_points().to_string_lossy()),
            false => program,
        })
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

    /// Removes the object of a pod that goes on: nobody knows it until something writes it again.
    pub fn forget(&self, pod: &Pod) -> Result<()> {
        self.manifests.remove(&pod_file(pod))
    }

    /// Sets the Ready condition of a pod.
    pub fn set_ready(&self, pod: &Pod, ready: bool) -> Result<()> {
        lock(&pod.manifest).ready = ready;
        self.write_pod(pod)?;
        self.sync()
    }

    /// Adds a service. Its addresses are returned; none if it is headless.
    pub fn add_service(&self, spec: ServiceSpec) -> Result<Option<Dual>> {
        let address = lock(&self.state).cluster.add_service(spec.clone());
        let text = manifest::service(&spec.manifest(address));
        self.manifests.put(&format!("service-{}-{}", spec.namespace, spec.name), &text)?;
        self.sync()?;
        Ok(address)
    }

    /// Sets a label of a service, or takes it away.
    pub fn label_service(&self, namespace: &str, name: &str, key: &str, value: Option<&str>) -> Result<()> {
        self.change_service(namespace, name, |spec| match value {
            Some(value) => drop(spec.labels.insert(key.into(), value.into())),
            None => drop(spec.labels.remove(key)),
        })
    }

    /// Sets an annotation of a service.
    pub fn annotate_service(&self, namespace: &str, name: &str, key: &str, value: &str) -> Result<()> {
        self.change_service(namespace, name, |spec| drop(spec.annotations.insert(key.into(), value.into())))
    }

    fn change_service(&self, namespace: &str, name: &str, change: impl FnOnce(&mut ServiceSpec)) -> Result<()> {
        let (spec, address) = lock(&self.state).cluster.change_service(namespace, name, change)?;
        self.manifests.put(&format!("service-{namespace}-{name}"), &manifest::service(&spec.manifest(address)))
    }

    /// Makes cluster DNS know a name of the outside world.
    pub fn outside_name(&self, name: &str, addresses: &[IpAddr]) -> Result<()> {
        lock(&self.state).cluster.add_outside(name, addresses);
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

    /// A server outside of the cluster that ends TLS for `host` on port 443, with a certificate that waypoints believe.
    pub fn serve_outside_tls(&self, name: &str, host: &str) -> Result<Process> {
        let roots = self.outside_roots();
        let roots = roots.to_str().context("a path that is text")?;
        self.serve_outside(&["https", "--port", "443", "--name", name, "--roots", roots, "--host", host])
    }

    /// The file with certificates of authorities outside of the cluster that waypoints believe. It is read when the first of them begins TLS there.
    pub fn outside_roots(&self) -> PathBuf {
        self.dir.join("outside-roots.pem")
    }

    /// The admin socket of a waypoint's or gateway's pod.
    pub fn waypoint_socket(&self, pod: &str) -> PathBuf {
        self.dir.join(format!("{pod}.sock"))
    }

    /// `meshctl` on this machine, which reaches the sockets of all nodes and pods.
    pub fn meshctl<T: Into<OsString>>(&self, args: impl IntoIterator<Item = T>) -> Result<Process> {
        self.spawn(Program::ours("meshctl", "meshctl")?.args(args))
    }

    /// Pods of a namespace.
    pub fn pods(&self, namespace: &str) -> Vec<Arc<Pod>> {
        lock(&self.state).pods.iter().filter(|p| p.namespace == namespace).cloned().collect()
    }

    /// The end of every log, for failure messages.
    pub fn report(&self) -> String {
        let mut text = String::new();
        let mut entries: Vec<_> =
            std::fs::read_dir(self.dir.join("logs")).map(|d| d.filter_map(|e| e.ok()).collect()).unwrap_or_default();
        entries.sort_by_key(|e: &std::fs::DirEntry| e.file_name());
        for entry in entries {
            let log = std::fs::read_to_string(entry.path()).unwrap_or_default();
            // Connections that went well would hide what did not.
            let log: Vec<&str> = log.lines().filter(|line| !line.contains("\tinfo\taccess\t")).collect();
            let log = log.join("\n");
            if !log.is_empty() {
                text.push_str(&format!("--- {} ---\n", entry.file_name().to_string_lossy()));
                for line in last_lines(&log, 20).lines() {
                    text.push_str(&format!("{line:.240}\n"));
                }
            }
        }
        text
    }

    /// The lab's cgroup.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    pub(super) fn write_pod(&self, pod: &Pod) -> Result<()> {
        let text = manifest::pod(&lock(&pod.manifest));
        self.manifests.put(&pod_file(pod), &text)
    }

    /// Brings service translation and cluster DNS in line with pods and services.
    fn sync(&self) -> Result<()> {
        let state = lock(&self.state);
        state.cluster.write(&state.pods, &self.nodes, &self.dir.join("dns.records"))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() || std::env::var_os("UNDERMESH_LOGS").is_some() {
            eprintln!("{}", self.report());
        }
        require::keep_logs(|| self.report());
        self.spawner.shutdown();
    }
}

fn pod_file(pod: &Pod) -> String {
    format!("pod-{}-{}", pod.namespace, pod.name)
}
