//! The pods that carry load, and the load: programs in pods that kubectl starts, and a look at the wire between the nodes. Called by [`super`].
use super::super::plan::Host;
use super::super::{Cluster, node, process};
use super::{Options, table::Row};
use crate::image;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

/// The namespace that is put into the mesh.
pub const MESH: &str = "measure";
/// The one that never is.
pub const OUTSIDE: &str = "measure-outside";
/// What pods of the mesh send: on the wire it must not be seen.
pub const TOKEN: &str = "undermesh-measure-canary";
const PORT: u16 = 8080;
const AMBIENT: &str = "istio.io/dataplane-mode";
const PATIENCE: Duration = Duration::from_secs(120);

/// Namespaces, services and pods.
pub struct Bed<'a> {
    pub cluster: &'a Cluster,
    image: String,
    /// Addresses of the services `web-1` and `web-2`.
    web: [String; 2],
}

impl<'a> Bed<'a> {
    /// Makes all of it, not yet in the mesh but STRICT once it is.
    pub fn make(cluster: &'a Cluster, options: &Options) -> Result<Bed<'a>> {
        let (archive, image) = image::lab(options.release, options.no_build)?;
        for node in node::all(cluster) {
            node::load(cluster, node, &archive)?;
        }
        let mut bed = Bed { cluster, image, web: Default::default() };
        for name in [MESH, OUTSIDE] {
            bed.apply(&json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } }))?;
        }
        bed.apply(&json!({
            "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "metadata": { "name": "strict", "namespace": MESH },
            "spec": { "mtls": { "mode": "STRICT" } },
        }))?;
        for index in [1, 2] {
            let name = format!("web-{index}");
            bed.apply(&json!({
                "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "namespace": MESH },
                "spec": { "selector": { "app": name }, "ports": [{ "port": PORT }] },
            }))?;
            bed.web[index - 1] =
                cluster.kubectl(&["-n", MESH, "get", "service", &name, "-o", "jsonpath={.spec.clusterIP}"])?;
        }
        for (namespace, name, node) in PODS {
            bed.pod(namespace, name, node, &[])?;
        }
        let wait = ["wait", "--for=condition=Ready", "pods", "--all", "--timeout=120s", "-n"];
        for namespace in [MESH, OUTSIDE] {
            cluster.kubectl(&[&wait[..], &[namespace]].concat())?;
        }
        Ok(bed)
    }

    /// Takes it all away.
    pub fn remove(&self) -> Result<()> {
        self.cluster.kubectl(&["delete", "namespace", MESH, OUTSIDE, "--wait=true", "--timeout=120s"]).map(drop)
    }

    /// Makes or changes an object.
    pub fn apply(&self, object: &Value) -> Result<()> {
        let mut command = self.cluster.kubectl_command();
        command.args(["apply", "-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null());
        let mut child = command.spawn().context("start kubectl")?;
        let mut input = child.stdin.take().context("kubectl has no input")?;
        input.write_all(object.to_string().as_bytes()).context("write to kubectl")?;
        drop(input);
        ensure!(child.wait().context("wait for kubectl")?.success(), "kubectl does not apply {object}");
        Ok(())
    }

    /// A pod on a node; without arguments it serves.
    pub fn pod(&self, namespace: &str, name: &str, node: u8, arguments: &[&str]) -> Result<()> {
        let mut container = json!({ "name": "lab", "image": self.image, "imagePullPolicy": "IfNotPresent" });
        if !arguments.is_empty() {
            container["args"] = json!(arguments);
        }
        self.apply(&json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "namespace": namespace, "labels": { "app": name } },
            "spec": { "nodeName": Host::Node(node).to_string(), "terminationGracePeriodSeconds": 0, "containers": [container] },
        }))
    }

    /// Puts the namespace into the mesh or takes it out, without waiting.
    pub fn label(&self, ambient: bool) -> Result<()> {
        let label = if ambient { format!("{AMBIENT}=ambient") } else { format!("{AMBIENT}-") };
        self.cluster.kubectl(&["label", "namespace", MESH, &label, "--overwrite"]).map(drop)
    }

    /// Waits until all pods of the namespace are in the mesh, or none is.
    pub fn enrolled(&self, ambient: bool) -> Result<()> {
        let path = r"jsonpath={range .items[*]}[{.metadata.annotations.ambient\.istio\.io/redirection}]{end}";
        let is_so = || {
            let said = self.cluster.kubectl(&["-n", MESH, "get", "pods", "-o", path]).unwrap_or_default();
            !said.is_empty() && if ambient { !said.contains("[]") } else { !said.contains("enabled") }
        };
        process::until(PATIENCE, is_so).context(if ambient { "pods are not enrolled" } else { "pods stay enrolled" })
    }

    /// Puts the namespace into the mesh, if it is not, and waits until each path works.
    pub fn in_mesh(&self) -> Result<()> {
        self.label(true)?;
        self.enrolled(true)?;
        for server in [1, 2] {
            self.reaches(MESH, "caller-1", server)?;
        }
        Ok(())
    }

    /// Waits until a pod reaches a server.
    pub fn reaches(&self, namespace: &str, caller: &str, server: u8) -> Result<()> {
        let address = self.address(server);
        let (host, port) = (address.ip().to_string(), address.port().to_string());
        let line = ["exec", "-n", namespace, caller, "--", "/lab", "send", &host, &port, "Cx", "--timeout", "2"];
        process::until(PATIENCE, || self.cluster.kubectl(&line).is_ok_and(|said| said.starts_with('x')))
            .with_context(|| format!("{caller} does not reach web-{server}"))
    }

    /// The service before a server.
    pub fn address(&self, server: u8) -> SocketAddr {
        let ip = self.web.get(usize::from(server).wrapping_sub(1)).and_then(|ip| ip.trim().parse().ok());
        SocketAddr::new(ip.unwrap_or(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED)), PORT)
    }

    /// Starts load from a pod.
    pub fn load(&self, namespace: &str, caller: &str, server: u8, rate: u32, long: u32) -> Result<Load> {
        let mut command = self.cluster.kubectl_command();
        command.args(["exec", "-i", "-n", namespace, caller, "--", "/lab", "load", "steady"]);
        command.arg(self.address(server).to_string()).args(["--seconds", "86400", "--limit", "15", "--token", TOKEN]);
        command.args(["--rate", &rate.to_string(), "--long", &long.to_string()]);
        Load::start(command).with_context(|| format!("load from {caller} to web-{server}"))
    }

    /// Load on both paths, through the agent of n1.
    pub fn both(&self, options: &Options) -> Result<[Load; 2]> {
        let load = |server| self.load(MESH, "caller-1", server, options.rate, options.long);
        Ok([load(1)?, load(2)?])
    }

    /// Looks at all frames between the nodes. What the pods outside of the mesh send counts apart: they speak in clear to whoever accepts a connection, and
    /// an agent that must know a client before it can refuse it accepts.
    pub fn wire(&self, release: bool) -> Result<Load> {
        let lab = crate::run::binary_dir(if release { "release" } else { "debug" })?.join("lab");
        let mut command = process::within(&self.cluster.plan.switch(), lab);
        command.args(["capture", "--token", TOKEN, "--port", &PORT.to_string()]);
        let path = "jsonpath={.items[*].status.podIPs[*].ip}";
        let strangers = self.cluster.kubectl(&["-n", OUTSIDE, "get", "pods", "-o", path])?;
        command.args(strangers.split_whitespace().flat_map(|address| ["--stranger", address]));
        Load::start(command).context("look at the wire")
    }
}

/// Namespace, name and node.
const PODS: [(&str, &str, u8); 6] = [
    (MESH, "web-1", 1),
    (MESH, "web-2", 2),
    (MESH, "caller-1", 1),
    (MESH, "caller-2", 2),
    (OUTSIDE, "outsider-1", 1),
    (OUTSIDE, "outsider-2", 2),
];

/// A program that says `started`, goes on until its input closes, and then says in one line of JSON what was.
pub struct Load {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Load {
    fn start(mut command: Command) -> Result<Load> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("start it")?;
        let output = BufReader::new(child.stdout.take().context("it has no output")?);
        let mut load = Load { child, output };
        let said = load.line()?;
        ensure!(said == "started", "it says {said:?} instead of `started`");
        Ok(load)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line).context("read what it says")?;
        Ok(line.trim().to_owned())
    }

    /// Ends it.
    pub fn finish(mut self) -> Result<Value> {
        drop(self.child.stdin.take());
        let line = self.line()?;
        let said = serde_json::from_str(&line).with_context(|| format!("it says {line:?} instead of JSON"))?;
        self.child.wait().context("wait for it")?;
        Ok(said)
    }

    /// Ends it, as a row.
    pub fn row(self, event: &str, path: &str) -> Result<Row> {
        Ok(Row::read(event, path, &self.finish()?))
    }
}

impl Drop for Load {
    /// What was not ended in order is not left behind either.
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
