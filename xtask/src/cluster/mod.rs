//! `cargo xtask cluster`: a real Kubernetes cluster on one Linux machine, with no container around its nodes and no virtual machine.
//!
//! `plan` names everything; `programs` builds what runs; `pki`, `control`, `network`, `config`, `node`, `cgroup` and `init` make
//! the cluster; `process` starts, finds and ends; `measure` is a verb that only uses it. Each node has a network, mount, process and name space and cgroups of its own, and in them
//! the real containerd, runc, kubelet and kube-proxy. All nodes share one kernel, so nothing of one may be attached above its cgroups.
mod balancer;
mod cgroup;
mod config;
mod control;
mod fault;
mod init;
mod measure;
mod network;
mod node;
mod pki;
mod plan;
mod process;
mod programs;
mod up;

pub use programs::{NEEDED, build};

use crate::image::{self, Image};
use crate::{chart, run};
use anyhow::{Context, Result, ensure};
use control::Part;
use plan::{CLUSTERS, Family, Host, NODES, Plan};
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;

/// Options of the verb.
#[derive(clap::Args)]
pub struct Args {
    /// Which cluster of this machine.
    #[arg(long, global = true, env = "UNDERMESH_CLUSTER", default_value_t = 0, value_parser = clap::value_parser!(u8).range(..i64::from(CLUSTERS)))]
    cluster: u8,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Build Kubernetes' programs, etcd and CoreDNS from their Go modules into a cache; minutes, once.
    Build {
        /// Only say what is missing.
        #[arg(long)]
        check: bool,
    },
    /// Start a control plane and nodes, and wait until every node is Ready and names are resolved.
    Up {
        /// How many nodes.
        #[arg(default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=i64::from(NODES)))]
        nodes: u8,
        /// Make IPv6 the primary family; the cluster has both in any case.
        #[arg(long)]
        ipv6: bool,
    },
    /// Stop and remove all of the cluster.
    Down,
    /// Print the first number that no cluster of this machine has.
    Free,
    /// Run kubectl as the cluster's admin.
    #[command(disable_help_flag = true)]
    Kubectl {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Run meshctl as the cluster's admin, built as it is in the tree.
    #[command(disable_help_flag = true)]
    Meshctl {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Run a command in a node: in its network, mounts and processes.
    Node {
        node: u8,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, default_value = "bash")]
        command: Vec<String>,
    },
    /// Cut a node's power and start it again: processes, network, /run and bpffs are lost, disks stay.
    Reboot { node: u8 },
    /// End a part of the control plane, or cut the power of a node (n1).
    Stop { what: String },
    /// Start what was stopped.
    Start { what: String },
    /// Make an image from files of this machine, for `load`; programs get their shared libraries too.
    Image {
        /// What pods call it, as registry.example/web:1.
        name: String,
        archive: PathBuf,
        /// A file and where it is in the image, as target/debug/web:/web.
        #[arg(long, value_name = "FILE:PATH")]
        file: Vec<String>,
        /// Add the machine's busybox under all its names.
        #[arg(long)]
        busybox: bool,
        /// What a container of it runs.
        #[arg(long, num_args = 1.., allow_hyphen_values = true)]
        entrypoint: Vec<String>,
    },
    /// Install, upgrade or uninstall the product's chart by Helm's own engine, and wait until all is ready.
    Helm {
        #[arg(value_parser = ["install", "upgrade", "uninstall"])]
        what: String,
        /// Values for the chart, instead of those that `values` prints.
        #[arg(long, value_name = "FILE")]
        values: Option<PathBuf>,
    },
    /// Give image archives to every node.
    Load { archives: Vec<PathBuf> },
    /// Give the API server's clients bad days, until `fault` without options ends them.
    Fault(fault::Faults),
    /// Put load on pods of the mesh that is installed, do to it what `kill`, `rollout` and the like name, and print what the load noticed.
    Measure(measure::Options),
    /// Say what runs.
    Status,
    /// Print what the chart of the product must be told of this cluster.
    Values,
    #[command(hide = true)]
    Balancer,
    #[command(hide = true)]
    Init { node: u8 },
}

/// A cluster on this machine.
struct Cluster {
    plan: Plan,
    folder: PathBuf,
    programs: PathBuf,
}

impl Cluster {
    fn new(index: u8) -> Result<Cluster> {
        let target = run::binary_dir("")?;
        let folder = target.join(format!("cluster{index}"));
        let primary = if folder.join("ipv6").exists() { Family::V6 } else { Family::V4 };
        Ok(Cluster { plan: Plan { index, primary }, folder, programs: programs::folder()? })
    }

    fn pki(&self) -> PathBuf {
        self.folder.join("pki")
    }

    fn kubeconfig(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.kubeconfig"))
    }

    fn log(&self, name: &str) -> PathBuf {
        self.folder.join(format!("log/{name}.log"))
    }

    fn kubectl_command(&self) -> std::process::Command {
        let mut command = process::within(&self.plan.netns(Host::Control), self.programs.join("kubectl"));
        command.arg("--kubeconfig").arg(self.kubeconfig("admin"));
        command
    }

    /// Runs kubectl to its end and returns what it printed.
    fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        process::output(self.kubectl_command().args(arguments))
    }

    /// Fails unless the cluster was started, from this target folder.
    fn must_exist(&self) -> Result<()> {
        let index = self.plan.index;
        ensure!(network::exists(self.plan), "there is no cluster {index}: `cargo xtask cluster up` makes it");
        ensure!(
            self.folder.join("log").exists(),
            "cluster {index} was started from another target folder: use it from there, or `cargo xtask cluster --cluster {index} down`"
        );
        Ok(())
    }
}

/// An address that services of type LoadBalancer of a cluster may ask for, and that is not given to others soon.
pub fn service_address(index: u8) -> String {
    Plan { index, primary: Family::V4 }.balancer(200).v4
}

/// Fails with one line if the cluster exists.
pub fn must_be_free(index: u8) -> Result<()> {
    network::must_be_free(Plan { index, primary: Family::V4 })
}

fn free() -> Result<u8> {
    (0..CLUSTERS).find(|index| must_be_free(*index).is_ok()).context("all clusters of this machine are there already")
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    if let Verb::Build { check } = args.verb {
        let folder = if check { programs::check() } else { programs::build() };
        return folder.map(|folder| println!("{}", folder.display()));
    }
    if let Verb::Image { name, archive, file, busybox, entrypoint } = &args.verb {
        let words: Vec<&str> = entrypoint.iter().map(String::as_str).collect();
        let mut image = Image::new(name, &words);
        for file in file {
            let (source, target) = file.rsplit_once(':').with_context(|| format!("`{file}` is not FILE:PATH"))?;
            image = image.file(source.into(), target);
        }
        if *busybox {
            run::need(&["busybox"])?;
            image = image.busybox(&run::find("busybox").context("busybox is gone")?)?;
        }
        return image::write(&image, archive).map(drop);
    }
    if let Verb::Free = args.verb {
        return free().map(|index| println!("{index}"));
    }
    if let Verb::Up { .. } = args.verb {
        run::need(&NEEDED)?;
    }
    run::need_root("cluster")?;
    let mut cluster = Cluster::new(args.cluster)?;
    match &args.verb {
        Verb::Build { .. } => return Ok(()),
        Verb::Up { nodes, ipv6 } => {
            cluster.plan.primary = if *ipv6 { Family::V6 } else { Family::V4 };
            return up::up(&cluster, *nodes);
        }
        Verb::Down => return up::down(&cluster),
        Verb::Balancer => return balancer::run(&cluster),
        Verb::Init { node } => return init::run(&cluster, *node),
        _ => cluster.must_exist()?,
    }
    match &args.verb {
        Verb::Kubectl { arguments } => Err(cluster.kubectl_command().args(arguments).exec()).context("start kubectl"),
        Verb::Meshctl { arguments } => {
            run::check(run::cargo()?.args(["build", "--quiet", "-p", "mesh-cli"]))?;
            let program = run::binary_dir("debug")?.join("meshctl");
            let mut meshctl = process::within(&cluster.plan.netns(Host::Control), program);
            Err(meshctl.arg("--kubeconfig").arg(cluster.kubeconfig("admin")).args(arguments).exec())
                .context("start meshctl")
        }
        Verb::Node { node, command } => {
            let (program, arguments) = command.split_first().context("no command")?;
            Err(node::inside(&cluster, *node, program)?.args(arguments).exec()).context("start nsenter")
        }
        Verb::Reboot { node } => {
            thing(&cluster, &format!("n{node}"))?;
            node::power_off(&cluster, *node)?;
            node::power_on(&cluster, *node)
        }
        Verb::Stop { what } => match thing(&cluster, what)? {
            Thing::Part(part) => control::stop(&cluster, part),
            Thing::Node(node) => {
                ensure!(node::first(&cluster, node).is_some(), "node {node} is off already");
                node::power_off(&cluster, node)
            }
        },
        Verb::Start { what } => match thing(&cluster, what)? {
            Thing::Part(part) => control::start(&cluster, part),
            Thing::Node(node) => {
                ensure!(node::first(&cluster, node).is_none(), "node {node} is on already");
                node::power_on(&cluster, node)
            }
        },
        Verb::Load { archives } => {
            for archive in archives {
                let archive = fs::canonicalize(archive).with_context(|| format!("find {}", archive.display()))?;
                for node in node::all(&cluster) {
                    node::load(&cluster, node, &archive)?;
                }
            }
            Ok(())
        }
        Verb::Helm { what, values } => {
            let values = match values {
                Some(file) => chart::values(file)?,
                None => config::values(&cluster),
            };
            let python = process::within(&cluster.plan.netns(Host::Control), "python3");
            chart::release(python, what, &cluster.kubeconfig("admin"), &values)
        }
        Verb::Fault(faults) => fault::set(&cluster, faults),
        Verb::Measure(options) => measure::run(&cluster, options),
        Verb::Values => {
            println!("{:#}", config::values(&cluster));
            Ok(())
        }
        _ => up::status(&cluster),
    }
}

/// What can be stopped and started.
enum Thing {
    Part(Part),
    Node(u8),
}

fn thing(cluster: &Cluster, name: &str) -> Result<Thing> {
    if let Some(part) = Part::ALL.into_iter().find(|part| part.name() == name) {
        return Ok(Thing::Part(part));
    }
    let nodes = node::all(cluster);
    if let Some(node) = nodes.iter().find(|node| format!("n{node}") == name) {
        return Ok(Thing::Node(*node));
    }
    let parts = Part::ALL.map(Part::name).join(", ");
    let nodes: Vec<String> = nodes.iter().map(|node| format!("n{node}")).collect();
    anyhow::bail!("there is no `{name}`; there are {parts}, {}", nodes.join(", "))
}
