//! What the agent is told at its start: flags, then environment (`UNDERMESH_<FLAG>`), then defaults. Parsed once into typed fields; every
//! problem is reported, not only the first.
//!
//! Statuses: 64 when the command line is wrong, 78 when the environment or what a path points to is wrong.

mod chain;
mod ranges;
mod raw;

use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use ipnet::IpNet;
use mesh_core::TrustDomain;
use mesh_runtime::logging::{Filter, LogFormat};

pub use self::chain::Chain;
use self::raw::{Given, Raw};
use crate::cgroups;

/// Exit status of a wrong command line (EX_USAGE).
pub const EXIT_USAGE: i32 = 64;
/// Exit status of a wrong configuration (EX_CONFIG).
pub const EXIT_CONFIG: i32 = 78;
/// Most data plane threads that make sense.
const MAX_WORKERS: usize = 512;

/// The node agent of the Undermesh service mesh.
#[derive(Debug, Parser)]
#[command(name = "mesh-agent", version, about, disable_help_subcommand = true)]
pub struct Cli {
    /// Without one: run as keeper, which supervises the worker.
    #[command(subcommand)]
    pub role: Option<Role>,
    #[command(flatten)]
    flags: Flags,
}

/// What this process is.
#[derive(Debug, Subcommand)]
pub enum Role {
    /// The agent itself; started and watched by the keeper.
    Worker(Box<Flags>),
    /// Take the CNI plugin off this node, through the agent if one runs.
    CniUninstall(CniFlags),
    /// Say by the exit status whether the agent that leads on this node is one of this pod's; for a probe.
    InCharge(ChargeFlags),
    /// Copy what passes the agent of this node to standard output, live
    Tap(TapFlags),
    /// Take from the node what an agent with these flags leaves there, once it has ended: pods go on without the mesh. May be run again.
    Cleanup(Box<Flags>),
}

/// Who asks who leads.
#[derive(Clone, Debug, Eq, PartialEq, Args)]
pub struct ChargeFlags {
    /// Folder of the agent's sockets
    #[arg(long, value_name = "VALUE", env = "UNDERMESH_RUN_DIR")]
    pub run_dir: PathBuf,
    /// The pod that asks
    #[arg(long, value_name = "VALUE", env = "UNDERMESH_STANDBY")]
    pub standby: String,
}

/// Who wants to know what passes.
#[derive(Clone, Debug, Eq, PartialEq, Args)]
pub struct TapFlags {
    /// Folder of the agent's sockets
    #[arg(long, value_name = "VALUE", env = "UNDERMESH_RUN_DIR")]
    pub run_dir: PathBuf,
    /// What is wanted, as to=workload:shop/reviews&flag=DENY; everything without one
    #[arg(default_value = "", allow_hyphen_values = true)]
    pub selector: String,
}

/// Where the CNI plugin is.
#[derive(Clone, Debug, Eq, PartialEq, Args)]
pub struct CniFlags {
    /// Folder of the agent's sockets
    #[arg(long, value_name = "VALUE", env = "UNDERMESH_RUN_DIR")]
    pub run_dir: PathBuf,
    /// Folder where container runtimes look for CNI plugins
    #[arg(long, value_name = "VALUE", env = "UNDERMESH_CNI_BIN_DIR", default_value = CNI_BIN_DIR)]
    pub cni_bin_dir: PathBuf,
    /// Folder of the node's CNI configurations
    #[arg(long, value_name = "VALUE", env = "UNDERMESH_CNI_CONF_DIR", default_value = CNI_CONF_DIR)]
    pub cni_conf_dir: PathBuf,
    /// Folder that outlives the node's power
    #[arg(long, value_name = "VALUE", env = "UNDERMESH_CNI_STATE_DIR", default_value = CNI_STATE_DIR)]
    pub cni_state_dir: PathBuf,
    /// Folder where the CNI library keeps with which chain a pod's network was made
    #[arg(long, value_name = "VALUE", env = "UNDERMESH_CNI_CACHE_DIR", default_value = CNI_CACHE_DIR)]
    pub cni_cache_dir: PathBuf,
}

const CNI_BIN_DIR: &str = "/opt/cni/bin";
const CNI_CONF_DIR: &str = "/etc/cni/net.d";
const CNI_CACHE_DIR: &str = "/var/lib/cni/results";
const CNI_STATE_DIR: &str = "/var/lib/undermesh";

macro_rules! flags {
    ($($(#[$doc:meta])* $field:ident, $flag:literal, $variable:literal;)*) => {
        /// The flags as given. Each may instead come from the environment variable of the same name, `UNDERMESH_` in front.
        #[derive(Clone, Debug, Default, Args)]
        pub struct Flags {
            $($(#[$doc])* #[arg(long = $flag, value_name = "VALUE")] $field: Option<OsString>,)*
        }

        impl Flags {
            fn raw(&self, environment: &dyn Fn(&str) -> Option<OsString>) -> Raw {
                Raw { values: vec![$(($flag, $variable, Given::of(&self.$field, environment($variable))),)*], problems: Vec::new() }
            }
        }
    };
}

flags! {
    /// Name of the Kubernetes node
    node, "node", "UNDERMESH_NODE";
    /// Tells apart several agents on one kernel [default: the node's name]
    instance, "instance", "UNDERMESH_INSTANCE";
    /// Control plane, as HOST:PORT
    control, "control", "UNDERMESH_CONTROL";
    /// Name in the control plane's certificate [default: the host of --control]
    control_name, "control-name", "UNDERMESH_CONTROL_NAME";
    /// File with the control plane's root certificate
    control_root, "control-root", "UNDERMESH_CONTROL_ROOT";
    /// File with this node's token
    token, "token", "UNDERMESH_TOKEN";
    /// File with lists of revoked certificates, PEM; read again when it changes [default: none]
    crl, "crl", "UNDERMESH_CRL";
    /// Folder for the sockets enrol.sock and admin.sock
    run_dir, "run-dir", "UNDERMESH_RUN_DIR";
    /// The cgroup v2 folder above all pods [default with --kube or --zds: the kubelet's, found by its pods]
    pods_cgroup, "pods-cgroup", "UNDERMESH_PODS_CGROUP";
    /// The agent's own cgroup v2 folder, created if missing, not below the pods' [default with --kube or --zds: undermesh, beside the pods']
    agent_cgroup, "agent-cgroup", "UNDERMESH_AGENT_CGROUP";
    /// Where kernel objects are pinned [default: /sys/fs/bpf/undermesh]
    bpffs, "bpffs", "UNDERMESH_BPFFS";
    /// Address of the metrics server [default: 0.0.0.0:15020]
    metrics, "metrics", "UNDERMESH_METRICS";
    /// Address of the readiness server [default: 0.0.0.0:15021]
    readiness, "readiness", "UNDERMESH_READINESS";
    /// text or json [default: text]
    log_format, "log-format", "UNDERMESH_LOG_FORMAT";
    /// LEVEL or TARGET=LEVEL, separated by commas [default: info]
    log_level, "log-level", "UNDERMESH_LOG_LEVEL";
    /// How long connections may go on after SIGTERM, as 5s, 500ms or 2m [default: 5s]
    drain, "drain", "UNDERMESH_DRAIN";
    /// One of several agents with this run folder, of this pod: one leads, and another follows when it dies, or when one of a pod that has not led yet is there [default: off]
    standby, "standby", "UNDERMESH_STANDBY";
    /// With --standby: how long connections of an agent that another one has followed may go on [default: 30s]
    handover, "handover", "UNDERMESH_HANDOVER";
    /// Data plane threads, each with its own connections, 1 to 512 [default: one per CPU]
    workers, "workers", "UNDERMESH_WORKERS";
    /// Trust domain of the mesh [default: cluster.local]
    trust_domain, "trust-domain", "UNDERMESH_TRUST_DOMAIN";
    /// DNS domain of the cluster [default: cluster.local]
    cluster_domain, "cluster-domain", "UNDERMESH_CLUSTER_DOMAIN";
    /// Cluster id sent to the control plane [default: Kubernetes]
    cluster_id, "cluster-id", "UNDERMESH_CLUSTER_ID";
    /// Network that this node is in [default: none]
    network, "network", "UNDERMESH_NETWORK";
    /// Ranges of the cluster's pods and services, as CIDR,CIDR: an address inside them that nobody owns is refused instead of passed [default: none]
    mesh_ranges, "mesh-ranges", "UNDERMESH_MESH_RANGES";
    /// Datagrams to one address (not broadcast or multicast) from the network to STRICT ports: pass, or deny all but answers and DNS [default: pass]
    udp, "udp", "UNDERMESH_UDP";
    /// Clients whose pods have Istio's sidecars and come with their mutual TLS: off, or on; then plaintext to STRICT ports is refused by the agent and not by the kernel [default: off]
    sidecars, "sidecars", "UNDERMESH_SIDECARS";
    /// Enrol the pods that the Kubernetes API wants in the mesh: off, cluster (with the service account of the agent's pod), or the path of a kubeconfig file [default: off]
    kube, "kube", "UNDERMESH_KUBE";
    /// Enrol the pods that Istio's node agent (istio-cni) names on this socket, as ztunnel does; it also redirects them by iptables: off, or a path [default: off]
    zds, "zds", "UNDERMESH_ZDS";
    /// With --kube or --zds: where the host's processes are seen [default: /proc]
    proc, "proc", "UNDERMESH_PROC";
    /// With --kube: where the container runtime holds the pods' network namespaces [default: /run/netns]
    netns, "netns", "UNDERMESH_NETNS";
    /// With --kube: the port by whose owner the kubelet is found, so that its probes pass [default: 10250]
    kubelet_port, "kubelet-port", "UNDERMESH_KUBELET_PORT";
    /// With --kube: hold new pods of the mesh until they are captured, by a chained CNI plugin that is kept installed: on; off: the node's CNI is not looked at; remove: what an earlier agent has left there is taken away [default: off]
    cni, "cni", "UNDERMESH_CNI";
    /// With --cni: the plugin's program [default: mesh-cni beside this program]
    cni_plugin, "cni-plugin", "UNDERMESH_CNI_PLUGIN";
    /// With --cni: where container runtimes look for CNI plugins [default: /opt/cni/bin]
    cni_bin_dir, "cni-bin-dir", "UNDERMESH_CNI_BIN_DIR";
    /// With --cni: where the node's CNI configurations are [default: /etc/cni/net.d]
    cni_conf_dir, "cni-conf-dir", "UNDERMESH_CNI_CONF_DIR";
    /// With --cni: folder that outlives the node's power, for what the plugin is to know while the agent is away; like --run-dir at the same path on the node [default: /var/lib/undermesh]
    cni_state_dir, "cni-state-dir", "UNDERMESH_CNI_STATE_DIR";
    /// With --cni: where the CNI library keeps with which chain a pod's network was made [default: /var/lib/cni/results]
    cni_cache_dir, "cni-cache-dir", "UNDERMESH_CNI_CACHE_DIR";
    /// With --cni: have the entry in a file of our own, too, a copy of the first one that runtimes take before the others: on or off [default: on]
    cni_own_file, "cni-own-file", "UNDERMESH_CNI_OWN_FILE";
}

/// Everything the agent was told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the Kubernetes node.
    pub node: String,
    /// Tells apart several agents on one kernel.
    pub instance: String,
    /// Where the control plane is and how to trust it.
    pub control: Control,
    /// File with lists of revoked certificates.
    pub crl: Option<PathBuf>,
    /// Folder for `enrol.sock` and `admin.sock`.
    pub run_dir: PathBuf,
    /// The cgroup above all pods.
    pub pods_cgroup: PathBuf,
    /// The agent's own cgroup.
    pub agent_cgroup: PathBuf,
    /// Where kernel objects are pinned.
    pub bpffs: PathBuf,
    /// Address of the metrics server.
    pub metrics: SocketAddr,
    /// Address of the readiness server.
    pub readiness: SocketAddr,
    /// Layout of log lines.
    pub log_format: LogFormat,
    /// What is logged at first.
    pub log_level: Filter,
    /// How long connections may go on after SIGTERM.
    pub drain: Duration,
    /// Which pod this agent is of, if there may be others on the node.
    pub standby: Option<String>,
    /// How long connections may go on once another agent has followed.
    pub handover: Duration,
    /// Data plane threads.
    pub workers: usize,
    /// Trust domain of identities on this node.
    pub trust_domain: TrustDomain,
    /// DNS domain of the cluster.
    pub cluster_domain: String,
    /// Ranges of the cluster's pods and services: what is inside and unknown is not the outside.
    pub mesh_ranges: Vec<IpNet>,
    /// Refuse datagrams from the network to one address where plaintext TCP is refused.
    pub deny_udp: bool,
    /// Take the mutual TLS of Istio's sidecars.
    pub sidecars: bool,
    /// Where the Kubernetes API is, if pods are enrolled from it.
    pub kube: Option<String>,
    /// Where istio-cni says which pods are enrolled, if it does.
    pub zds: Option<PathBuf>,
    /// Where the host's processes are seen.
    pub proc: PathBuf,
    /// Where the container runtime holds network namespaces.
    pub netns: PathBuf,
    /// The kubelet's port.
    pub kubelet_port: u16,
    /// What becomes of the CNI plugin.
    pub cni: Chain,
    /// The plugin's program.
    pub cni_plugin: PathBuf,
    /// Where container runtimes look for plugins.
    pub cni_bin_dir: PathBuf,
    /// Where the node's network configurations are.
    pub cni_conf_dir: PathBuf,
    /// Outlives the node's power.
    pub cni_state_dir: PathBuf,
    /// Where the CNI library keeps with which chain a pod's network was made.
    pub cni_cache_dir: PathBuf,
    /// Whether the plugin's entry is in a file of our own, too.
    pub cni_own_file: bool,
}

/// The control plane.
#[derive(Clone, Debug)]
pub struct Control {
    /// HOST:PORT.
    pub address: String,
    /// Name in its certificate; empty for the host of `address`.
    pub server_name: String,
    /// File with its root certificate.
    pub root: PathBuf,
    /// File with this node's token.
    pub token: PathBuf,
    /// Cluster id sent to it.
    pub cluster_id: String,
    /// Network that this node is in.
    pub network: String,
}

/// Why there is no configuration.
#[derive(Debug, Eq, PartialEq)]
pub struct Problems {
    /// One line each.
    pub lines: Vec<String>,
    /// The process's exit status.
    pub status: i32,
}

impl Cli {
    /// The configuration, checked against the environment and the file system.
    pub fn config(&self) -> Result<Config, Problems> {
        let flags = match &self.role {
            None | Some(Role::CniUninstall(_) | Role::InCharge(_) | Role::Tap(_)) => &self.flags,
            Some(Role::Worker(flags) | Role::Cleanup(flags)) => flags,
        };
        flags.resolve(&|name| std::env::var_os(name))
    }
}

/// Where an agent leaves something on its node.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Traces {
    /// Tells apart several agents on one kernel.
    pub instance: String,
    /// Where kernel objects are pinned.
    pub bpffs: PathBuf,
    /// Folder of its sockets.
    pub run_dir: PathBuf,
    /// The agent's own cgroup, if it is told or found.
    pub agent_cgroup: Option<PathBuf>,
    /// Where the container runtime holds the pods' network namespaces.
    pub netns: PathBuf,
    /// Where the CNI plugin is, if one is kept.
    pub cni: CniFlags,
}

impl Flags {
    /// Where an agent with these flags leaves something. What it needs beyond that, its credentials above all, may be gone.
    pub fn traces(&self, environment: &dyn Fn(&str) -> Option<OsString>) -> Result<Traces, Problems> {
        let mut raw = self.raw(environment);
        let node = raw.text("node", None);
        let instance = raw.text("instance", Some(node.as_deref().map(plain).unwrap_or_default()));
        let run_dir = raw.path("run-dir", None);
        let kube = raw.parse("kube", Some("off"), api, "off, cluster or an absolute path");
        let proc = raw.path("proc", Some("/proc"));
        // Found as the agent found it; where that is not possible any more there is no such folder either.
        let own = kube.and_then(|_| cgroups::find_pods(&proc).ok()).and_then(|pods| beside(&pods, true));
        let traces = Traces {
            instance: raw.check("instance", instance, is_plain, "letters, digits and dashes, at most 63"),
            bpffs: raw.path("bpffs", Some("/sys/fs/bpf/undermesh")),
            run_dir: run_dir.clone(),
            netns: raw.path("netns", Some("/run/netns")),
            agent_cgroup: Some(raw.path("agent-cgroup", Some(own.as_deref().unwrap_or("/"))))
                .filter(|path| path != Path::new("/")),
            cni: CniFlags {
                run_dir,
                cni_bin_dir: raw.path("cni-bin-dir", Some(CNI_BIN_DIR)),
                cni_conf_dir: raw.path("cni-conf-dir", Some(CNI_CONF_DIR)),
                cni_state_dir: raw.path("cni-state-dir", Some(CNI_STATE_DIR)),
                cni_cache_dir: raw.path("cni-cache-dir", Some(CNI_CACHE_DIR)),
            },
        };
        raw.finish(traces)
    }

    /// Types every value and reports all that is wrong.
    fn resolve(&self, environment: &dyn Fn(&str) -> Option<OsString>) -> Result<Config, Problems> {
        let mut raw = self.raw(environment);
        let node = raw.text("node", None);
        // A missing node is one problem, not two. Node names may have dots, instance names may not.
        let instance = raw.text("instance", Some(node.as_deref().map(plain).unwrap_or_default()));
        let kube = raw.parse("kube", Some("off"), api, "off, cluster or an absolute path");
        let zds = raw.parse("zds", Some("off"), socket, "off or an absolute path");
        let finds = kube.is_some() || zds.is_some();
        let proc = raw.path("proc", Some("/proc"));
        let pods_cgroup = raw.path_or("pods-cgroup", finds.then_some(|| cgroups::find_pods(&proc)));
        let config = Config {
            instance: raw.check("instance", instance, is_plain, "letters, digits and dashes, at most 63"),
            node: raw.check("node", node, is_node_name, "a node name"),
            control: Control {
                address: raw.parse("control", None, host_and_port, "HOST:PORT"),
                server_name: raw.parse("control-name", Some(""), text, "a DNS name or an address"),
                root: raw.file("control-root"),
                token: raw.file("token"),
                cluster_id: raw.parse("cluster-id", Some("Kubernetes"), text, "a name"),
                network: raw.parse("network", Some(""), text, "a name"),
            },
            crl: raw.optional_file("crl"),
            run_dir: raw.path("run-dir", None),
            agent_cgroup: raw.path("agent-cgroup", beside(&pods_cgroup, finds).as_deref()),
            pods_cgroup,
            bpffs: raw.path("bpffs", Some("/sys/fs/bpf/undermesh")),
            metrics: raw.parse("metrics", Some("0.0.0.0:15020"), |text| text.parse().ok(), "IP:PORT"),
            readiness: raw.parse("readiness", Some("0.0.0.0:15021"), |text| text.parse().ok(), "IP:PORT"),
            log_format: raw.parse("log-format", Some("text"), log_format, "text or json"),
            log_level: raw.parse(
                "log-level",
                Some("info"),
                |text| text.parse().ok(),
                "LEVEL or TARGET=LEVEL, separated by commas",
            ),
            drain: raw.parse("drain", Some("5s"), duration, "a duration like 5s, 500ms or 2m, at most 1h"),
            standby: raw.parse("standby", Some("off"), standby, "off or the UID of a pod"),
            handover: raw.parse("handover", Some("30s"), duration, "a duration like 5s, 500ms or 2m, at most 1h"),
            workers: raw.parse("workers", Some(&default_workers()), workers, "a number from 1 to 512"),
            trust_domain: raw.parse("trust-domain", Some("cluster.local"), |text| text.parse().ok(), "a trust domain"),
            cluster_domain: raw.parse("cluster-domain", Some("cluster.local"), text, "a DNS domain"),
            mesh_ranges: raw.ranges("mesh-ranges"),
            deny_udp: raw.parse("udp", Some("pass"), denied, "pass or deny"),
            sidecars: raw.parse("sidecars", Some("off"), on, "on or off"),
            kube,
            zds,
            proc,
            kubelet_port: raw.parse("kubelet-port", Some("10250"), port, "a port"),
            netns: raw.path("netns", Some("/run/netns")),
            cni: raw.parse("cni", Some("off"), Chain::read, "on, off or remove"),
            cni_plugin: raw.path("cni-plugin", Some(&default_plugin())),
            cni_bin_dir: raw.path("cni-bin-dir", Some(CNI_BIN_DIR)),
            cni_conf_dir: raw.path("cni-conf-dir", Some(CNI_CONF_DIR)),
            cni_state_dir: raw.path("cni-state-dir", Some(CNI_STATE_DIR)),
            cni_cache_dir: raw.path("cni-cache-dir", Some(CNI_CACHE_DIR)),
            cni_own_file: raw.parse("cni-own-file", Some("on"), on, "on or off"),
        };
        raw.sources(&config);
        raw.cgroups(&config);
        raw.finish(config)
    }
}

/// The agent's cgroup, if nobody says it. Pods that are nowhere are one problem, not two.
fn beside(pods: &Path, wanted: bool) -> Option<String> {
    let parent = pods.parent().unwrap_or(Path::new("/"));
    wanted.then(|| parent.join("undermesh")).and_then(|path| path.to_str().map(str::to_owned))
}

fn port(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port != 0)
}

fn text(text: &str) -> Option<String> {
    Some(text.to_owned())
}

/// What the kernel module takes as an instance's name: it becomes a folder.
fn is_plain(text: &str) -> bool {
    text.len() <= 63 && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
}

fn plain(node: &str) -> String {
    node.chars().take(63).map(|c| if is_plain(c.encode_utf8(&mut [0; 4])) { c } else { '-' }).collect()
}

fn is_node_name(text: &str) -> bool {
    text.len() <= 253 && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
}

fn host_and_port(text: &str) -> Option<String> {
    let (host, port) = text.rsplit_once(':')?;
    let bracketed = host.starts_with('[') && host.ends_with(']');
    (!host.is_empty() && (bracketed || !host.contains(':')) && port.parse::<u16>().is_ok_and(|port| port > 0))
        .then(|| text.to_owned())
}

fn denied(text: &str) -> Option<bool> {
    match text {
        "pass" => Some(false),
        "deny" => Some(true),
        _ => None,
    }
}

fn on(text: &str) -> Option<bool> {
    match text {
        "off" => Some(false),
        "on" => Some(true),
        _ => None,
    }
}

fn standby(text: &str) -> Option<Option<String>> {
    let is_name = |text: &str| !text.is_empty() && is_node_name(text);
    if text == "off" { Some(None) } else { is_name(text).then(|| Some(text.to_owned())) }
}

fn default_plugin() -> String {
    let own = std::env::current_exe().unwrap_or_default();
    own.with_file_name("mesh-cni").to_string_lossy().into_owned()
}

fn api(text: &str) -> Option<Option<String>> {
    match text {
        "off" => Some(None),
        source => (source == "cluster" || source.starts_with('/')).then(|| Some(source.to_owned())),
    }
}

fn socket(text: &str) -> Option<Option<PathBuf>> {
    match text {
        "off" => Some(None),
        path => path.starts_with('/').then(|| Some(path.into())),
    }
}

fn log_format(text: &str) -> Option<LogFormat> {
    match text {
        "text" | "plain" => Some(LogFormat::Text),
        "json" => Some(LogFormat::Json),
        _ => None,
    }
}

fn duration(text: &str) -> Option<Duration> {
    let split = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(split);
    let number: u64 = number.parse().ok()?;
    let duration = match unit {
        "ms" => Duration::from_millis(number),
        "s" => Duration::from_secs(number),
        "m" => Duration::from_secs(number.checked_mul(60)?),
        _ => return None,
    };
    (duration <= Duration::from_secs(3600)).then_some(duration)
}

fn default_workers() -> String {
    std::thread::available_parallelism().map_or(2, usize::from).min(MAX_WORKERS).to_string()
}

fn workers(text: &str) -> Option<usize> {
    text.parse().ok().filter(|count| (1..=MAX_WORKERS).contains(count))
}

impl Config {
    /// The effective configuration, for the log and the admin socket; files are named, never their contents.
    pub fn effective(&self) -> Vec<(&'static str, String)> {
        let path = |path: &Path| path.display().to_string();
        vec![
            ("node", self.node.clone()),
            ("instance", self.instance.clone()),
            ("control", self.control.address.clone()),
            ("control_name", self.control.server_name.clone()),
            ("control_root", path(&self.control.root)),
            ("token", path(&self.control.token)),
            ("cluster_id", self.control.cluster_id.clone()),
            ("network", self.control.network.clone()),
            ("trust_domain", self.trust_domain.to_string()),
            ("cluster_domain", self.cluster_domain.clone()),
            ("mesh_ranges", ranges::text(&self.mesh_ranges)),
            ("crl", self.crl.as_deref().map_or_else(|| "none".to_owned(), path)),
            ("udp", if self.deny_udp { "deny" } else { "pass" }.to_owned()),
            ("sidecars", if self.sidecars { "on" } else { "off" }.to_owned()),
            ("kube", self.kube.clone().unwrap_or_else(|| "off".to_owned())),
            ("zds", self.zds.as_deref().map_or_else(|| "off".to_owned(), path)),
            ("proc", path(&self.proc)),
            ("netns", path(&self.netns)),
            ("kubelet_port", self.kubelet_port.to_string()),
            ("cni", self.cni.word().to_owned()),
            ("cni_plugin", path(&self.cni_plugin)),
            ("cni_bin_dir", path(&self.cni_bin_dir)),
            ("cni_conf_dir", path(&self.cni_conf_dir)),
            ("cni_state_dir", path(&self.cni_state_dir)),
            ("cni_cache_dir", path(&self.cni_cache_dir)),
            ("cni_own_file", if self.cni_own_file { "on" } else { "off" }.to_owned()),
            ("run_dir", path(&self.run_dir)),
            ("pods_cgroup", path(&self.pods_cgroup)),
            ("agent_cgroup", path(&self.agent_cgroup)),
            ("bpffs", path(&self.bpffs)),
            ("metrics", self.metrics.to_string()),
            ("readiness", self.readiness.to_string()),
            ("workers", self.workers.to_string()),
            ("drain", format!("{:?}", self.drain)),
            ("standby", self.standby.clone().unwrap_or_else(|| "off".to_owned())),
            ("handover", format!("{:?}", self.handover)),
            ("log_format", format!("{:?}", self.log_format).to_ascii_lowercase()),
            ("log_level", self.log_level.to_string()),
        ]
    }
}

impl fmt::Display for Config {
    /// The effective configuration on one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (name, value)) in self.effective().into_iter().enumerate() {
            write!(f, "{}{name}={value:?}", if index > 0 { " " } else { "" })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
