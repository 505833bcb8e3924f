//! A real Kubernetes cluster of `cargo xtask cluster` for tests: one of our own, removed at the end whatever the end is, its nodes' networks, and `meshctl`.
use super::capture::Capture;
use super::http;
use super::metrics::Metrics;
use super::netns::Netns;
use super::process::binary_path;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::fs::File;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Nothing on a cluster takes longer, on any machine that is busy.
pub const LONG: Duration = Duration::from_secs(240);
const STEP: Duration = Duration::from_millis(200);

/// One cluster.
pub struct Kubernetes {
    index: u8,
    xtask: PathBuf,
    janitor: Child,
    _claim: File,
}

impl Drop for Kubernetes {
    fn drop(&mut self) {
        drop(self.janitor.stdin.take());
        let _ = self.janitor.wait();
    }
}

/// Why there can be no cluster here, if there can be none.
pub fn hindrance() -> Result<Option<String>> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(Some("needs root".into()));
    }
    for name in ["xtask", "lab", "bookinfo", "mesh-agent", "mesh-control", "mesh-cni", "mesh-waypoint", "meshctl"] {
        if let Err(error) = binary_path(name) {
            return Ok(Some(format!("{error:#}")));
        }
    }
    let check = Command::new(binary_path("xtask")?).args(["cluster", "build", "--check"]).output()?;
    let said = String::from_utf8_lossy(&check.stderr).into_owned();
    match said.lines().find_map(|line| line.split_once("missing: ")) {
        Some((_, what)) => Ok(Some(format!("missing: {what}"))),
        None if check.status.success() => Ok(None),
        None => bail!("what is missing cannot be told: {said}"),
    }
}

impl Kubernetes {
    /// The one that `UNDERMESH_CLUSTER` names, or the first free one from the top: people use them from the bottom.
    pub fn up(options: &[&str]) -> Result<Kubernetes> {
        let xtask = binary_path("xtask")?;
        let told = std::env::var("UNDERMESH_CLUSTER").ok().and_then(|index| index.parse::<u8>().ok());
        for index in told.map_or_else(|| (1..8).rev().collect(), |index| vec![index]) {
            // Tests that run beside this one, in this process or another, want another cluster.
            let path = std::env::temp_dir().join(format!("undermesh-cluster{index}.lock"));
            let claim = File::options().create(true).append(true).open(path).context("open a lock")?;
            if claim.try_lock().is_err() || Path::new(&format!("/run/netns/um{index}-sw")).exists() {
                continue;
            }
            // It waits for our end, which it notices by the end of its input, also when we are killed.
            let line = format!("read -r _; exec '{}' cluster --cluster {index} down", xtask.display());
            let janitor = Command::new("sh").args(["-c", &line]).stdin(Stdio::piped()).spawn().context("a janitor")?;
            let mut cluster = Kubernetes { index, xtask: xtask.clone(), janitor, _claim: claim };
            let up = cluster.verb(&[&["up"], options].concat()).output().context("start xtask")?;
            let said = String::from_utf8_lossy(&up.stderr).into_owned();
            if said.contains("is there already") {
                // Somebody who knows nothing of our locks was first: it is not ours to end.
                cluster.janitor.kill()?;
                continue;
            }
            ensure!(up.status.success(), "{said}");
            return Ok(cluster);
        }
        bail!("no cluster of this machine is free")
    }

    /// A verb of `cargo xtask cluster`.
    pub fn verb(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.xtask);
        command.args(["cluster", "--cluster", &self.index.to_string()]).args(arguments).stdin(Stdio::null());
        command
    }

    /// Runs a verb to its end; what it printed, or its complaint.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        printed(arguments, self.verb(arguments).output().context("start xtask")?)
    }

    /// kubectl as the admin, past all faults; what it printed, or its complaint.
    pub fn kubectl(&self, line: &str) -> Result<String> {
        let words: Vec<&str> = line.split(' ').collect();
        self.run(&[&["kubectl"], &words[..]].concat())
    }

    /// Applies manifests; what is said of them, or the complaint.
    pub fn apply(&self, manifests: &str) -> Result<String> {
        let mut child = self
            .verb(&["kubectl", "apply", "-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        // One that ended early says so itself.
        let _ = child.stdin.take().context("no input")?.write_all(manifests.as_bytes());
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "apply: {}", said.trim());
        Ok(said)
    }

    /// Objects, or one object.
    pub fn object(&self, line: &str) -> Result<Value> {
        let text = self.kubectl(&format!("get {line} -o json"))?;
        serde_json::from_str(&text).with_context(|| format!("get {line}"))
    }

    /// Runs a command in a node.
    pub fn on_node(&self, node: u8, script: &str) -> Result<String> {
        self.run(&["node", &node.to_string(), "sh", "-c", script])
    }

    /// `meshctl`, where it reaches the API server.
    pub fn meshctl(&self, line: &str) -> Result<Output> {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/um{}-cp", self.index)).arg("--").arg(binary_path("meshctl")?);
        command.arg("--kubeconfig").arg(self.folder()?.join("admin.kubeconfig")).args(line.split(' '));
        command.stdin(Stdio::null()).output().context("start meshctl")
    }

    /// The network of a host: `n1`, `cp`, or `sw`, by which all packets between hosts go.
    pub fn netns(&self, host: &str) -> Result<Netns> {
        Netns::named(&format!("um{}-{host}", self.index))
    }

    /// Reads all packets between hosts.
    pub fn capture(&self, tokens: &[&str]) -> Result<Capture> {
        Capture::start(&self.netns("sw")?, tokens)
    }

    /// Asks a server in the network of a node, with neither API server nor kubelet between.
    pub fn get(&self, node: u8, port: u16, path: &str) -> Result<http::Response> {
        http::get(&self.netns(&format!("n{node}"))?, SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port), path)
    }

    /// What the agent of a node counts.
    pub fn metrics(&self, node: u8) -> Result<Metrics> {
        let response = self.get(node, 15020, "/metrics")?;
        ensure!(response.status == 200, "metrics of node {node}: {}", response.status);
        Ok(Metrics::parse(&response.body))
    }

    /// An address of the first node where nobody listens: connections are refused at once, unless the mesh is between.
    pub fn nobody(&self) -> String {
        format!("198.18.{}.11 9", 32 * u16::from(self.index))
    }

    /// What the names of cgroups and networks of its hosts begin with.
    pub fn prefix(&self) -> String {
        format!("um{}-", self.index)
    }

    /// Where the cluster's files are.
    pub fn folder(&self) -> Result<PathBuf> {
        let target = self.xtask.parent().and_then(Path::parent).context("xtask is in no target folder")?;
        Ok(target.join(format!("cluster{}", self.index)))
    }

    /// Asks until something gives a value; the last reason that it gave, and what people would look at, are in the error.
    pub fn eventually<T>(&self, what: &str, mut so: impl FnMut() -> Result<T>) -> Result<T> {
        let deadline = Instant::now() + LONG;
        loop {
            match so() {
                Ok(value) => return Ok(value),
                Err(error) if Instant::now() > deadline => {
                    bail!("{what}: not within {LONG:?}: {error:#}\n{}", self.report())
                }
                Err(_) => std::thread::sleep(STEP),
            }
        }
    }

    /// What people would look at.
    pub fn report(&self) -> String {
        let mut text = String::new();
        for line in [
            "get pods -A -o wide",
            "get events -A --sort-by=.lastTimestamp --field-selector=type=Warning",
            "-n undermesh-system logs -l app=mesh-control --tail=20 --prefix",
            "-n undermesh-system logs -l app=mesh-agent --tail=200 --prefix",
        ] {
            let said = self.kubectl(line).unwrap_or_else(|error| format!("{error:#}"));
            // Not each connection that was fine.
            let lines: Vec<&str> = said.lines().filter(|line| !line.contains("\tconnection complete\t")).collect();
            text += &format!("--- {line}\n{}\n", lines[lines.len().saturating_sub(40)..].join("\n"));
        }
        text
    }
}

fn printed(arguments: &[&str], output: Output) -> Result<String> {
    ensure!(output.status.success(), "{}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
