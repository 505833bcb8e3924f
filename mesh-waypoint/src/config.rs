//! What the waypoint is told at its start: flags, then environment (`UNDERMESH_<FLAG>`), then defaults. The defaults are those of a pod of the control
//! plane's making.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arcstr::ArcStr;
use clap::{Parser, ValueEnum};
use mesh_client::ControlConfig;
use mesh_core::telemetry::{AccessLog, Scopes, Telemetry};
use mesh_core::{Client, Identity, IdentityError, NamespacedName, TrustDomain};
use mesh_runtime::logging::{Filter, LogFormat};
use mesh_transport::hbone::Baggage;

use crate::settings::Settings;
use crate::shared::Own;

/// Exit status of a wrong command line (EX_USAGE).
pub const EXIT_USAGE: i32 = 64;
/// Exit status of a wrong configuration (EX_CONFIG).
pub const EXIT_CONFIG: i32 = 78;
/// Exit status when an address is taken (EX_UNAVAILABLE).
pub const EXIT_UNAVAILABLE: i32 = 69;
/// Exit status when a system call failed (EX_OSERR).
pub const EXIT_SYSTEM: i32 = 71;

/// Where the admin socket is: said to the process and to who asks it.
const ADMIN: &str = "UNDERMESH_ADMIN";

/// Most threads that make sense.
const MAX_WORKERS: usize = 512;

/// The L7 proxy of the Undermesh service mesh.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "mesh-waypoint",
    version,
    about,
    after_help = "`mesh-waypoint tap [SELECTOR]` asks the process of the same --admin for a live tap."
)]
pub struct Config {
    /// Name of the Gateway that this waypoint is of
    #[arg(long, value_name = "NAME", env = "UNDERMESH_GATEWAY", value_parser = name)]
    pub gateway: String,
    /// Namespace of the waypoint
    #[arg(long, value_name = "NAME", env = "UNDERMESH_NAMESPACE", value_parser = name)]
    pub namespace: String,
    /// Name of the waypoint's service, by NAME.NAMESPACE.svc.CLUSTER-DOMAIN others are bound to it [default: the gateway's name]
    #[arg(long, value_name = "NAME", env = "UNDERMESH_SERVICE", value_parser = name)]
    pub service: Option<String>,
    /// Service account of the waypoint [default: the gateway's name]
    #[arg(long, value_name = "NAME", env = "UNDERMESH_SERVICE_ACCOUNT", value_parser = name)]
    pub service_account: Option<String>,
    /// Name of the waypoint's pod
    #[arg(long, value_name = "NAME", env = "UNDERMESH_POD", value_parser = name)]
    pub pod: String,
    /// Addresses of the waypoint's pod, separated by commas
    #[arg(long, value_name = "IP,IP", env = "UNDERMESH_IPS", value_delimiter = ',')]
    pub ips: Vec<IpAddr>,
    /// Name of the Kubernetes node
    #[arg(long, value_name = "NAME", env = "UNDERMESH_NODE", value_parser = name)]
    pub node: String,
    /// Control plane, as HOST:PORT
    #[arg(long, value_name = "HOST:PORT", env = "UNDERMESH_CONTROL", value_parser = host_and_port)]
    pub control: String,
    /// Name in the control plane's certificate [default: the host of --control]
    #[arg(long, value_name = "NAME", env = "UNDERMESH_CONTROL_NAME")]
    pub control_name: Option<String>,
    /// File with the control plane's root certificate
    #[arg(long, value_name = "PATH", env = "UNDERMESH_CONTROL_ROOT")]
    pub control_root: PathBuf,
    /// File with the waypoint's token
    #[arg(long, value_name = "PATH", env = "UNDERMESH_TOKEN")]
    pub token: PathBuf,
    /// Cluster id sent to the control plane
    #[arg(long, value_name = "ID", env = "UNDERMESH_CLUSTER_ID", default_value = "Kubernetes")]
    pub cluster_id: String,
    /// Network that the waypoint is in
    #[arg(long, value_name = "NAME", env = "UNDERMESH_NETWORK", default_value = "")]
    pub network: String,
    /// Trust domain of the mesh
    #[arg(long, value_name = "NAME", env = "UNDERMESH_TRUST_DOMAIN", default_value = "cluster.local")]
    pub trust_domain: TrustDomain,
    /// DNS domain of the cluster
    #[arg(long, value_name = "NAME", env = "UNDERMESH_CLUSTER_DOMAIN", default_value = "cluster.local", value_parser = name)]
    pub cluster_domain: String,
    /// Where tunnels are taken
    #[arg(long, value_name = "IP:PORT", env = "UNDERMESH_HBONE", default_value = "[::]:15008")]
    pub hbone: SocketAddr,
    /// Where a gateway listens; its ports are those of its listeners
    #[arg(long, value_name = "IP", env = "UNDERMESH_LISTEN", default_value = "::")]
    pub listen: IpAddr,
    /// Address of the metrics server
    #[arg(long, value_name = "IP:PORT", env = "UNDERMESH_METRICS", default_value = "0.0.0.0:15020")]
    pub metrics: SocketAddr,
    /// Address of the readiness server
    #[arg(long, value_name = "IP:PORT", env = "UNDERMESH_READINESS", default_value = "0.0.0.0:15021")]
    pub readiness: SocketAddr,
    /// Unix socket for live taps, for this process's user alone; @NAME is in no folder [default: none]
    #[arg(long, value_name = "PATH", env = ADMIN)]
    pub admin: Option<PathBuf>,
    /// How long requests may go on after SIGTERM, as 5s, 500ms or 2m
    #[arg(long, value_name = "TIME", env = "UNDERMESH_DRAIN", default_value = "20s", value_parser = duration)]
    pub drain: Duration,
    /// Threads, each with its own connections, 1 to 512 [default: one per CPU]
    #[arg(long, value_name = "COUNT", env = "UNDERMESH_WORKERS", value_parser = workers)]
    pub workers: Option<usize>,
    /// Whether each request is logged on the standard output, where the control plane says nothing of logs
    #[arg(long, value_name = "WHEN", env = "UNDERMESH_ACCESS_LOG", default_value = "off")]
    pub access_log: Switch,
    /// text or json
    #[arg(long, value_name = "FORMAT", env = "UNDERMESH_LOG_FORMAT", default_value = "text", value_parser = log_format)]
    pub log_format: LogFormat,
    /// LEVEL or TARGET=LEVEL, separated by commas
    #[arg(long, value_name = "FILTER", env = "UNDERMESH_LOG_LEVEL", default_value = "info")]
    pub log_level: Filter,
}

/// What `mesh-waypoint tap` is told: it asks the process that serves, and copies what that says.
#[derive(Clone, Debug, Parser)]
#[command(name = "mesh-waypoint tap", version)]
pub struct TapConfig {
    /// Unix socket of the process that is asked
    #[arg(long, value_name = "PATH", env = ADMIN)]
    pub admin: PathBuf,
    /// What is wanted, as to=service:shop/reviews&code=5xx; everything without one
    #[arg(default_value = "", allow_hyphen_values = true)]
    pub selector: String,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// Yes.
    On,
    /// No.
    Off,
}

impl Config {
    /// Who the waypoint is.
    pub fn own(&self) -> Result<Own, IdentityError> {
        let account = self.service_account.as_deref().unwrap_or(&self.gateway);
        let identity = Identity::new(self.trust_domain.clone(), &self.namespace, account)?;
        let service = self.service.as_deref().unwrap_or(&self.gateway);
        let host = format!("{service}.{}.svc.{}", self.namespace, self.cluster_domain.to_ascii_lowercase());
        let service = NamespacedName { namespace: self.namespace.as_str().into(), name: host.into() };
        let text = |text: &str| Some(ArcStr::from(text)).filter(|text| !text.is_empty());
        let place = Client {
            network: self.network.as_str().into(),
            cluster_id: self.cluster_id.as_str().into(),
            node: self.node.as_str().into(),
            ips: self.ips.clone(),
            ..Own::new(service.clone(), identity.clone()).place
        };
        let baggage = Baggage {
            cluster: text(&self.cluster_id),
            namespace: text(&self.namespace),
            workload: text(&self.gateway),
            service: text(&self.gateway),
            ..Baggage::default()
        };
        let uid = format!("{}//Pod/{}/{}", self.cluster_id, self.namespace, self.pod).into();
        Ok(Own { uid, place, baggage, ..Own::new(service, identity) })
    }

    /// Limits.
    #[must_use]
    pub fn settings(&self) -> Settings {
        // Clients that ask nothing get a quarter of the time, so that what they ask in it can still be answered.
        let drain_idle = self.drain / 4;
        let logs = match self.access_log {
            Switch::On => vec![AccessLog::default()],
            Switch::Off => Vec::new(),
        };
        let waypoint = Arc::new(Telemetry { logs, ..Telemetry::default() });
        let telemetry = Scopes { waypoint, ..Scopes::default() };
        Settings { telemetry, drain_idle, ..Settings::default() }
    }

    /// How the control plane is reached.
    #[must_use]
    pub fn control(&self) -> ControlConfig {
        let token = Some(self.token.clone());
        let defaults = ControlConfig::new(self.control.clone(), self.control_root.clone(), token, self.node.clone());
        ControlConfig {
            server_name: self.control_name.clone().unwrap_or_else(|| defaults.server_name.clone()),
            cluster_id: self.cluster_id.clone(),
            network: self.network.clone(),
            namespace: self.namespace.clone(),
            pod_name: self.pod.clone(),
            instance_ip: self.ips.first().copied(),
            own: Some(format!("{}/{}", self.namespace, self.gateway)),
            ..defaults
        }
    }

    /// Threads.
    #[must_use]
    pub fn lanes(&self) -> usize {
        let cpus = || std::thread::available_parallelism().map_or(2, usize::from);
        self.workers.unwrap_or_else(cpus).min(MAX_WORKERS)
    }
}

fn name(text: &str) -> Result<String, String> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-');
    match !text.is_empty() && text.len() <= 253 && text.chars().all(good) {
        true => Ok(text.to_owned()),
        false => Err("expected 1 to 253 letters, digits, dots and dashes".to_owned()),
    }
}

fn host_and_port(text: &str) -> Result<String, String> {
    let good = text.rsplit_once(':').is_some_and(|(host, port)| {
        let bracketed = host.starts_with('[') && host.ends_with(']');
        !host.is_empty() && (bracketed || !host.contains(':')) && port.parse::<u16>().is_ok_and(|port| port > 0)
    });
    if good { Ok(text.to_owned()) } else { Err("expected HOST:PORT".to_owned()) }
}

fn duration(text: &str) -> Result<Duration, String> {
    let parse = || {
        let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
        let number: u64 = number.parse().ok()?;
        match unit {
            "ms" => Some(Duration::from_millis(number)),
            "s" => Some(Duration::from_secs(number)),
            "m" => Some(Duration::from_secs(number.checked_mul(60)?)),
            _ => None,
        }
    };
    let short = |time: &Duration| *time <= Duration::from_secs(3600);
    parse().filter(short).ok_or_else(|| "expected a time up to one hour, as 5s, 500ms or 2m".to_owned())
}

fn workers(text: &str) -> Result<usize, String> {
    let count = text.parse().ok().filter(|count| (1..=MAX_WORKERS).contains(count));
    count.ok_or_else(|| format!("expected a number from 1 to {MAX_WORKERS}"))
}

fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "text" | "plain" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("expected text or json".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEEDED: [&str; 19] = [
        "mesh-waypoint",
        "--gateway",
        "wp",
        "--namespace",
        "shop",
        "--pod",
        "wp-1",
        "--node",
        "n1",
        "--control",
        "control:15012",
        "--control-root",
        "/root.pem",
        "--token",
        "/token",
        "--ips",
        "10.0.0.1,fd00::1",
        "--drain",
        "8s",
    ];

    #[test]
    fn who_the_waypoint_is_follows_from_its_gateway() {
        let config = Config::try_parse_from(NEEDED).unwrap();
        let own = config.own().unwrap();
        assert_eq!(own.service.to_string(), "shop/wp.shop.svc.cluster.local");
        assert_eq!(own.identity.to_string(), "spiffe://cluster.local/ns/shop/sa/wp");
        assert_eq!((own.uid.as_str(), own.place.ips.len()), ("Kubernetes//Pod/shop/wp-1", 2));
        assert_eq!(config.settings().drain_idle, Duration::from_secs(2));
        let other = Config::try_parse_from(NEEDED.iter().chain(&["--service", "other"])).unwrap();
        assert_eq!(other.own().unwrap().service.to_string(), "shop/other.shop.svc.cluster.local");
        assert_eq!(other.control().own.as_deref(), Some("shop/wp"));
    }

    #[test]
    fn what_is_wrong_is_refused() {
        for (flag, value) in [
            ("--gateway", ""),
            ("--namespace", "a b"),
            ("--control", "control"),
            ("--drain", "5"),
            ("--drain", "2000m"),
            ("--workers", "0"),
            ("--ips", "x"),
            ("--access-log", "maybe"),
            ("--log-format", "xml"),
            ("--trust-domain", "A"),
        ] {
            let mut arguments = NEEDED.to_vec();
            match arguments.iter().position(|argument| *argument == flag) {
                Some(at) => arguments[at + 1] = value,
                None => arguments.extend([flag, value]),
            }
            let error = Config::try_parse_from(arguments).expect_err(value).to_string();
            assert!(error.contains(flag), "{flag} {value}: {error}");
        }
    }
}
