//! The command line. Everything that is wrong with it is reported at once; what the process then runs with is [`Config`], with nothing
//! left to check.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use mesh_core::TrustDomain;
use mesh_runtime::logging::{Filter, LogFormat};

use crate::access::token::AUDIENCE;
use crate::deploy::Defaults;
use crate::index::Settings;
use crate::resource::mesh_config::IstioNames;
use crate::resource::meta;

/// Exit code: the command line cannot be understood.
pub const EXIT_USAGE: u8 = 64;
/// Exit code: the configuration cannot be used.
pub const EXIT_CONFIG: u8 = 78;

const LONGEST_TTL: Duration = Duration::from_secs(90 * 24 * 3600);
const SHORTEST_TTL: Duration = Duration::from_secs(5);

/// The control plane of Undermesh: reads a cluster or a folder of manifests, serves xDS to agents, and is their certificate authority.
#[derive(Debug, Parser)]
#[command(name = "mesh-control", version, disable_help_subcommand = true)]
pub struct Args {
    /// Folder of Kubernetes and Istio manifests; edits are followed live
    #[arg(long, value_name = "DIR", required_unless_present = "kube", conflicts_with = "kube")]
    pub manifests: Option<PathBuf>,
    /// With --manifests: folder for the root certificate, its key and the nodes' tokens; made with mode 0700
    #[arg(long, value_name = "DIR", required_unless_present = "kube", conflicts_with = "kube")]
    pub state_dir: Option<PathBuf>,
    /// Follow a Kubernetes API server; the root is kept there, in the Secret undermesh-ca of the root namespace
    #[arg(long)]
    pub kube: bool,
    /// With --kube: how to reach the API server, instead of as the pod that this runs in
    #[arg(long, value_name = "FILE", requires = "kube", conflicts_with = "manifests")]
    pub kubeconfig: Option<PathBuf>,
    /// With --kube: for whom tokens of service accounts must be meant; may be repeated [default: undermesh and istio-ca]
    #[arg(long, value_name = "NAME", requires = "kube", conflicts_with = "manifests")]
    pub audience: Vec<String>,
    /// With --kube: service account of the nodes' agents; may be repeated [default: mesh-agent of the root namespace]
    #[arg(long, value_name = "NAMESPACE/NAME", requires = "kube", conflicts_with = "manifests")]
    pub agent_account: Vec<String>,
    /// Whether names that Istio has given are ours, namespace istio-system and ConfigMap istio-ca-root-cert; auto: unless an Istio uses them
    #[arg(long, value_name = "HOW", default_value = "auto", value_parser = IstioNames::TEXTS)]
    pub istio_names: String,
    /// With --kube: image of mesh-waypoint; Gateways get pods of it. Without, none is made
    #[arg(long, value_name = "IMAGE", requires = "kube", conflicts_with = "manifests")]
    pub gateway_image: Option<String>,
    /// With --gateway-image: when it is pulled
    #[arg(long, value_name = "WHEN", default_value = "IfNotPresent", value_parser = ["Always", "IfNotPresent", "Never"])]
    pub gateway_pull_policy: String,
    /// With --gateway-image: name of a Secret to pull it with, in the namespaces of Gateways; may be repeated
    #[arg(long, value_name = "NAME", requires = "gateway_image")]
    pub gateway_pull_secret: Vec<String>,
    /// With --gateway-image: where their pods find this control plane [default: mesh-control.ROOT-NAMESPACE.svc:15012]
    #[arg(long, value_name = "HOST:PORT", requires = "gateway_image")]
    pub gateway_control: Option<String>,
    /// With --gateway-image: network that their pods are in
    #[arg(long, value_name = "NAME", requires = "gateway_image", default_value = "")]
    pub gateway_network: String,
    /// Address for xDS and the certificate authority, TLS
    #[arg(long, value_name = "IP:PORT", default_value = "0.0.0.0:15012")]
    pub listen: SocketAddr,
    /// With --kube: address of the webhook that checks objects before they are kept, TLS [default: 0.0.0.0:15017]
    #[arg(long, value_name = "IP:PORT", requires = "kube", conflicts_with = "manifests")]
    pub webhook: Option<SocketAddr>,
    /// Address for metrics, readiness and status, plain HTTP
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:15014")]
    pub metrics: SocketAddr,
    /// Trust domain of all identities, unless the mesh settings say another one
    #[arg(long, value_name = "NAME", default_value = "cluster.local")]
    pub trust_domain: String,
    /// Cluster in the uid of every workload, and in every token
    #[arg(long, value_name = "NAME", default_value = "Kubernetes")]
    pub cluster_id: String,
    /// End of the host names of services
    #[arg(long, value_name = "NAME", default_value = "cluster.local")]
    pub cluster_domain: String,
    /// Longest and usual lifetime of certificates: a number with s, m, h or d
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = duration)]
    pub secret_ttl: Duration,
    /// How long a new root is trusted before anything is signed under it, and an old one after that [default: as long as certificates last]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub root_overlap: Option<Duration>,
    /// With --manifests: lifetime of nodes' tokens, renewed at half
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = duration)]
    pub token_ttl: Duration,
    /// Namespace of the control plane: its mesh settings are the ConfigMap undermesh, and its policies hold in the whole mesh
    #[arg(long, value_name = "NAME", default_value = "undermesh-system")]
    pub root_namespace: String,
    /// A further DNS name or address in the listener's certificate; may be repeated
    #[arg(long, value_name = "NAME")]
    pub san: Vec<String>,
    /// How log lines look
    #[arg(long, value_name = "FORMAT", default_value = "text", value_parser = ["text", "json"])]
    pub log_format: String,
    /// What is logged: LEVEL or TARGET=LEVEL, separated by commas
    #[arg(long, value_name = "FILTER", default_value = "info")]
    pub log_level: String,
    /// Threads that serve
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub threads: u16,
}

/// Where objects come from, and where secrets are kept.
#[derive(Clone, Debug)]
pub enum Origin {
    /// A machine without a cluster.
    Folder {
        /// Folder of manifests.
        manifests: PathBuf,
        /// Folder of secrets.
        state_dir: PathBuf,
    },
    /// A Kubernetes API server.
    Cluster {
        /// How to reach it; without, as the pod that this is.
        kubeconfig: Option<PathBuf>,
        /// For whom tokens must be meant.
        audiences: Vec<String>,
        /// Namespace and name of the service accounts of agents.
        agents: Vec<(String, String)>,
        /// Address of the webhook.
        webhook: SocketAddr,
        /// What the pods of Gateways are made with; none are made without.
        gateways: Option<Box<Defaults>>,
    },
}

/// What the process runs with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where objects come from.
    pub origin: Origin,
    /// Address of xDS and CA.
    pub listen: SocketAddr,
    /// Address of metrics and status.
    pub metrics: SocketAddr,
    /// What joins depend on; the mesh settings stand over it.
    pub settings: Settings,
    /// Longest lifetime of certificates.
    pub secret_ttl: Duration,
    /// How long roots overlap, if not as long as certificates last.
    pub root_overlap: Option<Duration>,
    /// Lifetime of tokens.
    pub token_ttl: Duration,
    /// Further names in the listener's certificate.
    pub san: Vec<String>,
    /// How log lines look.
    pub log_format: LogFormat,
    /// What is logged.
    pub log_filter: Filter,
    /// Threads that serve.
    pub threads: usize,
}

/// A number with a unit. Neither zero nor more than 90 days.
fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        _ => return Err("write a whole number with s, m, h or d, such as 24h".into()),
    };
    let number: u64 = number.parse().map_err(|_| "write a whole number with s, m, h or d, such as 24h".to_owned())?;
    let duration = number.checked_mul(seconds).map(Duration::from_secs).unwrap_or(Duration::MAX);
    if !(SHORTEST_TTL..=LONGEST_TTL).contains(&duration) {
        return Err("write a time from 5s to 90d".into());
    }
    Ok(duration)
}

/// Reads the command line. The error is what clap prints, with the exit code.
pub fn parse<I, T>(args: I) -> Result<Args, (clap::Error, u8)>
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    Args::try_parse_from(args).map_err(|error| {
        let code = if error.use_stderr() { EXIT_USAGE } else { 0 };
        (error, code)
    })
}

impl Args {
    /// Checks what the command line means. All problems at once.
    pub fn check(self) -> Result<Config, Vec<String>> {
        let mut problems = Vec::new();
        let trust_domain =
            self.trust_domain.parse::<TrustDomain>().map_err(|e| problems.push(format!("--trust-domain: {e}"))).ok();
        for (flag, text) in [("--cluster-domain", &self.cluster_domain), ("--root-namespace", &self.root_namespace)] {
            if let Err(why) = meta::subdomain(text) {
                problems.push(format!("{flag}: {text:?}: {why}"));
            }
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if self.cluster_id.is_empty() || self.cluster_id.len() > 253 || !self.cluster_id.chars().all(plain) {
            problems.push("--cluster-id: letters, digits, `-`, `_` and `.` only, at most 253".into());
        }
        let log_filter = self.log_level.parse::<Filter>().map_err(|e| problems.push(format!("--log-level: {e}"))).ok();
        let origin = self.origin(&mut problems);
        for name in &self.san {
            if name.parse::<std::net::IpAddr>().is_err() && meta::subdomain(name).is_err() {
                problems.push(format!("--san: {name:?} is neither a DNS name nor an address"));
            }
        }
        if self.listen == self.metrics && self.listen.port() != 0 {
            problems.push("--metrics: the same address as --listen".into());
        }
        let (Some(origin), Some(trust_domain), Some(log_filter), true) =
            (origin, trust_domain, log_filter, problems.is_empty())
        else {
            return Err(problems);
        };
        let agents = match &origin {
            Origin::Cluster { agents, .. } => {
                agents.iter().map(|(namespace, name)| (namespace.as_str().into(), name.as_str().into())).collect()
            }
            Origin::Folder { .. } => Vec::new(),
        };
        Ok(Config {
            origin,
            listen: self.listen,
            metrics: self.metrics,
            settings: Settings {
                trust_domain,
                cluster_id: self.cluster_id.into(),
                cluster_domain: self.cluster_domain.into(),
                istio_names: IstioNames::of(&self.istio_names).unwrap_or_default(),
                agents,
                ..Settings::at(&self.root_namespace)
            },
            secret_ttl: self.secret_ttl,
            root_overlap: self.root_overlap,
            token_ttl: self.token_ttl,
            san: self.san,
            log_format: if self.log_format == "json" { LogFormat::Json } else { LogFormat::Text },
            log_filter,
            threads: usize::from(self.threads),
        })
    }

    fn origin(&self, problems: &mut Vec<String>) -> Option<Origin> {
        if let (Some(manifests), Some(state_dir)) = (&self.manifests, &self.state_dir) {
            if let Err(error) = std::fs::read_dir(manifests) {
                problems.push(format!("--manifests {}: {error}", manifests.display()));
            }
            if state_dir.starts_with(manifests) {
                problems.push("--state-dir: secrets do not belong into the folder of manifests".into());
            }
            return Some(Origin::Folder { manifests: manifests.clone(), state_dir: state_dir.clone() });
        }
        if let Some(Err(error)) = self.kubeconfig.as_ref().map(std::fs::File::open) {
            problems.push(format!("--kubeconfig: {error}"));
        }
        if self.audience.iter().any(String::is_empty) {
            problems.push("--audience: it is empty".into());
        }
        let mut agents = Vec::new();
        for account in &self.agent_account {
            match account.split_once('/') {
                Some((namespace, name)) if meta::label(namespace).is_ok() && meta::subdomain(name).is_ok() => {
                    agents.push((namespace.to_owned(), name.to_owned()));
                }
                _ => problems.push(format!("--agent-account: {account:?} is not a namespace and a name, as a/b")),
            }
        }
        if agents.is_empty() {
            agents.push((self.root_namespace.clone(), "mesh-agent".to_owned()));
        }
        let audiences = match self.audience.is_empty() {
            true => vec!["undermesh".to_owned(), AUDIENCE.to_owned()],
            false => self.audience.clone(),
        };
        let webhook = self.webhook.unwrap_or(SocketAddr::from(([0, 0, 0, 0], 15017)));
        if webhook.port() != 0 && [self.listen, self.metrics].contains(&webhook) {
            problems.push("--webhook: the same address as --listen or --metrics".into());
        }
        let gateways = self.gateways(problems).map(Box::new);
        Some(Origin::Cluster { kubeconfig: self.kubeconfig.clone(), audiences, agents, webhook, gateways })
    }

    fn gateways(&self, problems: &mut Vec<String>) -> Option<Defaults> {
        let image = self.gateway_image.clone()?;
        if image.is_empty() || image.len() > 1024 || image.chars().any(|c| c.is_whitespace() || c.is_control()) {
            problems
                .push(format!("--gateway-image: {image:?} is not an image, as docker.io/undermesh/mesh-waypoint:1"));
        }
        for secret in &self.gateway_pull_secret {
            if meta::subdomain(secret).is_err() {
                problems.push(format!("--gateway-pull-secret: {secret:?} is not the name of a Secret"));
            }
        }
        let control = match &self.gateway_control {
            None => format!("mesh-control.{}.svc:15012", self.root_namespace),
            Some(text) => text.clone(),
        };
        if control.rsplit_once(':').is_none_or(|(host, port)| host.is_empty() || port.parse::<u16>().is_err()) {
            problems.push(format!("--gateway-control: {control:?} is not HOST:PORT"));
        }
        Some(Defaults {
            image,
            pull_policy: self.gateway_pull_policy.clone(),
            pull_secrets: self.gateway_pull_secret.clone(),
            control,
            network: self.gateway_network.clone(),
            log_level: "info".to_owned(),
            log_format: self.log_format.clone(),
        })
    }
}
