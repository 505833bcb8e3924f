//! A node as its cluster sees it: making its disk, powering it on and off, running a command in it. Called by `up`, `down` and the verbs
//! of one node; what happens inside of it is `init`'s.
use super::plan::{Host, NODES};
use super::process::{self, Process};
use super::{Cluster, cgroup, config, network, pki};
use crate::run;
use anyhow::{Context, Result};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The word by which the first process of a node is known.
pub const INIT: &str = "init";

/// The node's folder on the machine: its disks.
pub fn disk(cluster: &Cluster, node: u8) -> PathBuf {
    cluster.folder.join(format!("node{node}"))
}

/// The nodes that the cluster was made with.
pub fn all(cluster: &Cluster) -> Vec<u8> {
    (1..=NODES).filter(|node| disk(cluster, *node).exists()).collect()
}

/// Makes a new node's disk.
pub fn create(cluster: &Cluster, node: u8) -> Result<()> {
    let disk = disk(cluster, node);
    for name in ["etc", "opt", "var-lib", "var-log", "work-etc", "work-opt"] {
        fs::create_dir_all(disk.join(name)).with_context(|| format!("make {name} of node {node}"))?;
    }
    // Folders that a pod mounts keep the rights they have here.
    fs::set_permissions(&disk, fs::Permissions::from_mode(0o755))?;
    config::write(cluster, node, &disk.join("etc"))?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let (from, to) = (run::cni_plugins(&path).context("the CNI plugins are gone")?, disk.join("opt/cni/bin"));
    fs::create_dir_all(&to)?;
    for plugin in fs::read_dir(&from).with_context(|| format!("read {}", from.display()))?.flatten() {
        fs::copy(plugin.path(), to.join(plugin.file_name())).context("copy the CNI plugins")?;
    }
    pki::node(cluster, node)
}

/// Starts a node on its disk, and returns when its containerd serves.
pub fn power_on(cluster: &Cluster, node: u8) -> Result<()> {
    network::attach(cluster.plan, Host::Node(node))?;
    let mut command = process::within(&cluster.plan.netns(Host::Node(node)), "unshare");
    // When `unshare` dies, so does the first process, and with it all of the node.
    command.args(["--mount", "--pid", "--uts", "--fork", "--kill-child=SIGKILL", "--"]);
    command.arg(std::env::current_exe().context("find own binary")?);
    command.args(["cluster", "--cluster", &cluster.plan.index.to_string(), INIT, &node.to_string()]);
    let log = cluster.log(&format!("n{node}"));
    process::background(&command, &log)?;
    let serves = || inside(cluster, node, "ctr").and_then(|mut ctr| process::output(ctr.arg("version"))).is_ok();
    process::until(Duration::from_secs(60), serves)
        .with_context(|| format!("containerd of node {node} does not serve, see {}", log.display()))
}

/// Cuts a node's power: its processes, network, `/run`, bpffs and cgroups are gone, its disk stays.
pub fn power_off(cluster: &Cluster, node: u8) -> Result<()> {
    let host = Host::Node(node);
    process::end_all(&cluster.plan.netns(host))?;
    if process::netns_path(&cluster.plan.netns(host)).exists() {
        network::detach(cluster.plan, host)?;
    }
    cgroup::remove(&cluster.plan.cgroup(node))
}

/// The first process of a node, if the node is on.
pub fn first(cluster: &Cluster, node: u8) -> Option<Process> {
    let is_init = |process: &Process| {
        let words: Vec<&str> = process.arguments.iter().map(String::as_str).collect();
        matches!(words[..], [_, "cluster", "--cluster", _, INIT, ..])
    };
    process::inside(&cluster.plan.netns(Host::Node(node))).into_iter().find(is_init)
}

/// A command that runs in a node: in its network, mounts, processes and name.
pub fn inside(cluster: &Cluster, node: u8, program: &str) -> Result<Command> {
    let first = first(cluster, node).with_context(|| format!("node {node} is off"))?;
    let mut command = Command::new("nsenter");
    command.args(["--net", "--mount", "--pid", "--uts", "--target", &first.pid.to_string(), "--", program]);
    Ok(command)
}

/// Gives a node the images of an archive.
pub fn load(cluster: &Cluster, node: u8, archive: &Path) -> Result<()> {
    // The node sees the machine's files, but /run, /var/lib and some others are its own: it reads the archive from us.
    let file = fs::File::open(archive).with_context(|| format!("open {}", archive.display()))?;
    let mut ctr = inside(cluster, node, "ctr")?;
    let output =
        ctr.args(["--namespace", "k8s.io", "images", "import", "-"]).stdin(file).output().context("start ctr")?;
    anyhow::ensure!(
        output.status.success(),
        "import {} into node {node}: {}",
        archive.display(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
