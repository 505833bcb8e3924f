//! The cluster that all tests share, with the mesh installed, and what they do with it.
use super::objects::{self, IMAGE};
use anyhow::{Context, Result, anyhow, bail, ensure};
use mesh_tests::harness::kubernetes::{Kubernetes, hindrance};
use mesh_tests::harness::process::binary_path;
use serde_json::Value;
use std::io::Write;
use std::ops::Deref;
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Instant;

/// Both.
pub const NODES: [u8; 2] = [1, 2];
/// Of the product.
pub const SYSTEM: &str = "undermesh-system";

static MESH: OnceLock<Result<Mutex<Mesh>, String>> = OnceLock::new();

/// Runs a test when it is its turn.
pub fn in_mesh(test: impl FnOnce(&Mesh) -> Result<()>) -> Result<()> {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("a test");
    if let Some(reason) = hindrance()? {
        // Not by a macro: what these print is hidden when a test passes.
        writeln!(std::io::stderr(), "SKIPPED: {name}: {reason}")?;
        return Ok(());
    }
    let start = Instant::now();
    let mesh = MESH.get_or_init(|| Mesh::install().map(Mutex::new).map_err(|error| format!("{error:#}")));
    let mesh = mesh.as_ref().map_err(|why| anyhow!("there is no mesh: {why}"))?;
    let mesh = mesh.lock().unwrap_or_else(PoisonError::into_inner);
    let turn = Instant::now();
    let result = mesh.is_whole().and_then(|()| test(&mesh));
    println!("{name}: waited {:.1} s, took {:.1} s", (turn - start).as_secs_f32(), turn.elapsed().as_secs_f32());
    match result {
        Ok(()) => Ok(()),
        Err(error) => {
            println!("{}", mesh.report());
            mesh.mend();
            Err(error)
        }
    }
}

/// A cluster with the mesh in it.
pub struct Mesh {
    cluster: Kubernetes,
    /// Values for the chart: what is particular to the cluster.
    pub values: String,
}

impl Deref for Mesh {
    type Target = Kubernetes;

    fn deref(&self) -> &Kubernetes {
        &self.cluster
    }
}

impl Mesh {
    fn install() -> Result<Mesh> {
        let start = Instant::now();
        let cluster = Kubernetes::up(&[])?;
        let folder = cluster.folder()?.join("images");
        let out = folder.display().to_string();
        for kind in [&[][..], &["--bookinfo"]] {
            let mut command = Command::new(binary_path("xtask")?);
            let output = command.args(["image", "--no-build", "--out", &out]).args(kind).output()?;
            ensure!(output.status.success(), "xtask image: {}", String::from_utf8_lossy(&output.stderr));
            for archive in String::from_utf8_lossy(&output.stdout).lines().filter_map(|line| line.split(' ').next()) {
                cluster.run(&["load", archive])?;
            }
        }
        let (lab, archive) = (binary_path("lab")?.display().to_string(), format!("{out}/lab.tar"));
        let file = format!("{lab}:/lab");
        cluster.run(&["image", IMAGE, &archive, "--file", &file, "--busybox", "--entrypoint", "/lab"])?;
        cluster.run(&["load", &archive])?;
        let values = cluster.folder()?.join("values.yaml");
        std::fs::write(&values, cluster.run(&["values"])?)?;
        let mesh = Mesh { cluster, values: values.display().to_string() };
        mesh.meshctl_json("check --pre", 0)?;
        mesh.meshctl_json(&format!("install -f {}", mesh.values), 0)?;
        println!("installed after {:.1} s", start.elapsed().as_secs_f32());
        Ok(mesh)
    }

    /// Waits until nodes, names and the mesh are as a test expects them. After a time without an API server, or without a node, the cluster takes pods for not ready
    /// for some seconds, the DNS server among them.
    fn is_whole(&self) -> Result<()> {
        self.eventually("a whole cluster", || {
            let nodes = self.object("nodes")?;
            let nodes = nodes["items"].as_array().context("no nodes")?;
            let waiting: Vec<&str> = nodes.iter().filter(|node| !is_ready(node)).map(name).collect();
            ensure!(waiting.is_empty(), "nodes that are not ready: {waiting:?}");
            for namespace in ["kube-system", SYSTEM] {
                let slices = self.object(&format!("endpointslices -n {namespace}"))?;
                let slices = slices["items"].as_array().context("no slices")?;
                ensure!(!slices.is_empty(), "{namespace} has no endpoints");
                for slice in slices {
                    let endpoints = slice["endpoints"].as_array().map(Vec::as_slice).unwrap_or_default();
                    let ready = endpoints.iter().filter(|endpoint| endpoint["conditions"]["ready"] == true).count();
                    ensure!(ready > 0, "{}: {ready} of {} are ready", name(slice), endpoints.len());
                }
            }
            Ok(())
        })
    }

    /// Takes away what a test that failed has left.
    fn mend(&self) {
        let _ = self.run(&["start", "kube-apiserver"]);
        let _ = self.run(&["fault"]);
        let kinds = "authorizationpolicies,peerauthentications";
        for line in [
            &format!("-n {SYSTEM} scale deployment mesh-control --replicas=2"),
            &format!("-n {SYSTEM} delete {kinds} --all --timeout=30s"),
            "label namespace default istio.io/dataplane-mode-",
            &format!("-n {SYSTEM} delete gateways.gateway.networking.k8s.io --all --ignore-not-found --timeout=30s"),
        ] {
            let _ = self.kubectl(line);
        }
    }

    /// Runs `meshctl` to its end with a code, and gives what it said as JSON.
    pub fn meshctl_json(&self, line: &str, code: i32) -> Result<Value> {
        let output = self.meshctl(&format!("{line} -o json"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        let value = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.code() == Some(code), "meshctl {line}: {}: {said}\n{value}", output.status);
        serde_json::from_str(&value).with_context(|| format!("meshctl {line}: {value}"))
    }

    /// A namespace of a test, in the mesh or not.
    pub fn namespace(&self, name: &'static str, labels: Value) -> Result<Namespace<'_>> {
        self.eventually(&format!("no namespace {name} of an earlier test"), || {
            ensure!(self.kubectl(&format!("get namespace {name} --ignore-not-found -o name"))?.is_empty());
            Ok(())
        })?;
        self.apply_all(&[objects::namespace(name, labels)])?;
        Ok(Namespace { mesh: self, name })
    }

    /// Applies objects.
    pub fn apply_all(&self, objects: &[Value]) -> Result<String> {
        self.apply(&serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": objects }).to_string())
    }

    /// A counter summed over all agents.
    pub fn total(&self, name: &str, labels: &[(&str, &str)]) -> Result<f64> {
        NODES.iter().map(|node| Ok(self.metrics(*node)?.sum(name, labels))).sum()
    }

    /// Waits until nothing comes or goes: the kernels have the pods that are said to be in the mesh. Returns how many.
    pub fn settled(&self) -> Result<f64> {
        self.eventually("pods of the kernels and of the API server", || {
            let pods = self.object("pods -A")?;
            let pods = pods["items"].as_array().context("no pods")?;
            ensure!(pods.iter().all(|pod| pod["metadata"]["deletionTimestamp"].is_null()), "some end");
            let (said, kernel) = (pods.iter().filter(|pod| is_in_mesh(pod)).count() as f64, self.captured_pods()?);
            ensure!(said == kernel, "{said} are in the mesh, {kernel} in the kernels");
            Ok(kernel)
        })
    }

    /// How many pods the kernels of both nodes have.
    pub fn captured_pods(&self) -> Result<f64> {
        self.total("mesh_bpf_map_entries", &[("map", "PODS")])
    }

    /// How many replicas of the control plane are ready.
    pub fn control_becomes(&self, replicas: u32) -> Result<()> {
        self.kubectl(&format!("-n {SYSTEM} scale deployment mesh-control --replicas={replicas}"))?;
        self.eventually(&format!("{replicas} control planes"), || {
            let pods = self.object(&format!("pods -n {SYSTEM} -l app=mesh-control"))?;
            let pods = pods["items"].as_array().context("no pods")?;
            let ready = pods.iter().filter(|pod| is_ready(pod)).count() as u32;
            ensure!(pods.len() as u32 == replicas && ready == replicas, "{ready} of {} are ready", pods.len());
            Ok(())
        })
    }
}

/// A namespace, removed at the end.
pub struct Namespace<'a> {
    mesh: &'a Mesh,
    pub name: &'static str,
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        let now = "--grace-period=1 --wait=false";
        let _ = self.mesh.kubectl(&format!("delete deployments --all -n {} --wait=false", self.name));
        let _ = self.mesh.kubectl(&format!("delete pods --all -n {} {now}", self.name));
        let _ = self.mesh.kubectl(&format!("delete namespace {} --wait=false", self.name));
    }
}

impl Namespace<'_> {
    /// Its pods.
    pub fn pods(&self) -> Result<Vec<Value>> {
        let mut list = self.mesh.object(&format!("pods -n {}", self.name))?;
        match list["items"].take() {
            Value::Array(pods) => Ok(pods),
            other => bail!("no list: {other}"),
        }
    }

    /// Waits until all its pods are ready, and as many as they should be.
    pub fn becomes_ready(&self, count: usize) -> Result<()> {
        self.mesh.eventually(&format!("{count} pods ready in {}", self.name), || {
            let pods = self.pods()?;
            let waiting: Vec<&str> = pods.iter().filter(|pod| !is_ready(pod)).map(name).collect();
            ensure!(pods.len() == count && waiting.is_empty(), "{} pods, not ready: {waiting:?}", pods.len());
            Ok(())
        })
    }

    /// Waits until just these pods are in the mesh, by the word of their agents.
    pub fn in_mesh_are(&self, names: &[&str]) -> Result<()> {
        self.mesh.eventually(&format!("{names:?} in the mesh"), || {
            let pods = self.pods()?;
            let found: Vec<&str> = pods.iter().filter(|pod| is_in_mesh(pod)).map(name).collect();
            ensure!(found == names, "{found:?} are");
            Ok(())
        })
    }

    /// What changes if a pod is made anew, restarted, or a probe of it fails often enough.
    pub fn life(&self) -> Result<Vec<String>> {
        let life = |pod: &Value| {
            let ready = condition(pod, "Ready").map(|c| c["lastTransitionTime"].to_string()).unwrap_or_default();
            format!("{} {} restarts {} ready since {ready}", name(pod), pod["metadata"]["uid"], restarts(pod))
        };
        Ok(self.pods()?.iter().map(life).collect())
    }

    /// Runs a command in a pod: what it printed.
    pub fn exec(&self, pod: &str, command: &[&str]) -> Result<String> {
        self.mesh.run(&[&["kubectl", "exec", "-n", self.name, pod, "--"], command].concat())
    }
}

pub fn name(pod: &Value) -> &str {
    pod["metadata"]["name"].as_str().unwrap_or_default()
}

pub fn is_in_mesh(pod: &Value) -> bool {
    pod["metadata"]["annotations"]["ambient.istio.io/redirection"] == "enabled"
}

pub fn condition<'a>(pod: &'a Value, kind: &str) -> Option<&'a Value> {
    pod["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == kind)
}

pub fn is_ready(pod: &Value) -> bool {
    pod["metadata"]["deletionTimestamp"].is_null() && condition(pod, "Ready").is_some_and(|c| c["status"] == "True")
}

pub fn restarts(pod: &Value) -> u64 {
    let statuses = pod["status"]["containerStatuses"].as_array().into_iter().flatten();
    statuses.filter_map(|status| status["restartCount"].as_u64()).sum()
}
