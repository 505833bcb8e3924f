//! Services: addresses, ports, selector, and which endpoints they prefer.

use std::net::IpAddr;

use k8s_openapi::api::core::v1 as k8s;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use mesh_core::ArcStr;
use mesh_core::service::{AppProtocol, IpFamilies};

use super::waypoint::{self, Asked, AskedCanary, Bypass};
use super::{Key, Labels, meta, pod};
use crate::diagnosis::Problem;

/// Which endpoints are preferred, as an annotation of services and namespaces.
pub const TRAFFIC_DISTRIBUTION: &str = "networking.istio.io/traffic-distribution";

/// Which endpoints are preferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distribution {
    /// Those of the client's zone.
    SameZone,
    /// Those of the client's node, then of its zone.
    SameNode,
}

/// Where a port leads in a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// To this port.
    Number(u16),
    /// To the container port of this name.
    Name(String),
}

/// A port of TCP or UDP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its name; empty if it has none.
    pub name: String,
    /// What clients ask for.
    pub port: u16,
    /// Where it leads.
    pub target: Target,
    /// What is spoken there, as far as declared.
    pub protocol: AppProtocol,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its namespace.
    pub namespace: ArcStr,
    /// Its name.
    pub name: ArcStr,
    /// Its virtual addresses; none if it is headless.
    pub addresses: Vec<IpAddr>,
    /// It never has one: who asks for it asks for its pods.
    pub is_headless: bool,
    /// It is only a DNS alias; the mesh has no part in it.
    pub is_alias: bool,
    /// TCP ports.
    pub ports: Vec<Port>,
    /// UDP ports: what gateways send datagrams to. Agents are told nothing of them.
    pub datagram_ports: Vec<Port>,
    /// Which pods serve it; none means that endpoint slices say.
    pub selector: Option<Labels>,
    /// Which endpoints are preferred.
    pub distribution: Option<Distribution>,
    /// Only endpoints of the client's node are used.
    pub local_only: bool,
    /// Endpoints that are not ready are used as well.
    pub publish_not_ready: bool,
    /// Address families.
    pub families: IpFamilies,
    /// Its waypoint, as far as it says that itself.
    pub waypoint: Asked,
    /// What has a share of what its waypoint has, as far as it says that itself.
    pub canary: Option<AskedCanary>,
    /// What is done with what goes around it, as far as it says that itself.
    pub bypass: Bypass,
    /// Whether clients may go without it while it does not answer, as far as it says that itself.
    pub optional: Option<bool>,
    /// Whether gateways go through it, as far as it says that itself.
    pub ingress: Option<bool>,
    /// When it was made, seconds; of two with the same address, the older one gets it.
    pub created: Option<i64>,
}

impl Distribution {
    fn parse(text: &str) -> Option<Self> {
        if text.eq_ignore_ascii_case("PreferClose") || text.eq_ignore_ascii_case("PreferSameZone") {
            Some(Distribution::SameZone)
        } else if text.eq_ignore_ascii_case("PreferSameNode") {
            Some(Distribution::SameNode)
        } else {
            None
        }
    }

    /// The annotation's value on a service or a namespace.
    pub fn of_annotation(meta: &ObjectMeta, problems: &mut Vec<Problem>) -> Option<Self> {
        let text = meta::annotation(meta, TRAFFIC_DISTRIBUTION)?;
        let parsed = Self::parse(text);
        if parsed.is_none() {
            problems.push(unknown_distribution(&format!("metadata.annotations[\"{TRAFFIC_DISTRIBUTION}\"]"), text));
        }
        parsed
    }
}

fn unknown_distribution(field: &str, text: &str) -> Problem {
    Problem::warning(field, format!("{text:?} is not a traffic distribution, endpoints are used without preference"))
        .help("write PreferSameZone, PreferClose or PreferSameNode")
}

/// Reduces a service.
pub fn read(key: &Key, object: k8s::Service) -> (Service, Vec<Problem>) {
    let mut problems = Vec::new();
    let spec = object.spec.unwrap_or_default();
    let is_alias = spec.type_.as_deref() == Some("ExternalName");
    if spec.session_affinity.as_deref() == Some("ClientIP") {
        problems
            .push(Problem::warning("spec.sessionAffinity", "session affinity has no effect for clients in the mesh"));
    }
    let distribution = match spec.traffic_distribution.as_deref() {
        Some(text) => Distribution::parse(text).or_else(|| {
            problems.push(unknown_distribution("spec.trafficDistribution", text));
            None
        }),
        None => Distribution::of_annotation(&object.metadata, &mut problems),
    };
    let local_only = match spec.internal_traffic_policy.as_deref() {
        Some("Local") => true,
        None | Some("Cluster") => false,
        Some(other) => {
            let problem =
                Problem::error("spec.internalTrafficPolicy", format!("{other:?} is neither Cluster nor Local"));
            problems.push(problem.help("write `Local` or delete the field"));
            false
        }
    };
    let families = match spec.ip_families.as_deref().unwrap_or_default() {
        [one] if one == "IPv4" => IpFamilies::Ipv4Only,
        [one] if one == "IPv6" => IpFamilies::Ipv6Only,
        [_, _] => IpFamilies::Dual,
        _ => IpFamilies::Automatic,
    };
    let service = Service {
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        addresses: addresses(&spec, &mut problems),
        is_headless: spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip).any(|text| text == "None"),
        is_alias,
        ports: ports(&spec, "TCP", &mut problems),
        datagram_ports: ports(&spec, "UDP", &mut problems),
        selector: spec.selector.filter(|s| !s.is_empty()),
        distribution,
        local_only,
        publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
        families,
        waypoint: Asked::of(object.metadata.labels.as_ref(), &key.namespace),
        canary: AskedCanary::of(object.metadata.labels.as_ref(), object.metadata.annotations.as_ref(), &key.namespace),
        bypass: Bypass::of(&object.metadata, &mut problems),
        optional: waypoint::optional(&object.metadata, &mut problems),
        ingress: waypoint::ingress(object.metadata.labels.as_ref()),
        created: meta::created(&object.metadata),
    };
    (service, problems)
}

fn addresses(spec: &k8s::ServiceSpec, problems: &mut Vec<Problem>) -> Vec<IpAddr> {
    let listed = spec.cluster_ips.iter().flatten().enumerate().map(|(i, ip)| (format!("spec.clusterIPs[{i}]"), ip));
    let single = spec.cluster_ip.iter().map(|ip| ("spec.clusterIP".to_owned(), ip));
    let mut addresses = Vec::new();
    for (field, text) in listed.chain(single) {
        match text.parse::<IpAddr>() {
            _ if text == "None" || text.is_empty() => {}
            Ok(address) if pod::usable(address) => {
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
            Ok(_) => {
                problems.push(Problem::error(field, format!("{text} cannot be a service's address, it is not used")))
            }
            Err(_) => {
                let problem = Problem::error(field, format!("{text:?} is not an IP address, it is not used"));
                problems.push(problem.help("write an address, or `None` for a headless service"));
            }
        }
    }
    addresses
}

/// Those of one transport.
fn ports(spec: &k8s::ServiceSpec, transport: &str, problems: &mut Vec<Problem>) -> Vec<Port> {
    let mut ports: Vec<Port> = Vec::new();
    for (index, port) in spec.ports.iter().flatten().enumerate() {
        if port.protocol.as_deref().unwrap_or("TCP") != transport {
            continue;
        }
        let field = format!("spec.ports[{index}]");
        let Some(number) = port_number(port.port) else {
            let problem = Problem::error(
                format!("{field}.port"),
                format!("port {} is out of range, it is not served", port.port),
            );
            problems.push(problem.help("write a number from 1 to 65535"));
            continue;
        };
        let target = match &port.target_port {
            None | Some(IntOrString::Int(0)) => Target::Number(number),
            Some(IntOrString::Int(n)) => match port_number(*n) {
                Some(n) => Target::Number(n),
                None => {
                    let problem = Problem::error(
                        format!("{field}.targetPort"),
                        format!("port {n} is out of range, it is not served"),
                    );
                    problems.push(problem.help("write a number from 1 to 65535, or the name of a container port"));
                    continue;
                }
            },
            Some(IntOrString::String(name)) if name.is_empty() => Target::Number(number),
            Some(IntOrString::String(name)) => match name.parse().ok().and_then(port_number) {
                Some(n) => {
                    let message =
                        format!("{name:?} in quotes is the name of a container port, it is read as the number");
                    problems.push(
                        Problem::warning(format!("{field}.targetPort"), message)
                            .help(format!("write `targetPort: {n}`")),
                    );
                    Target::Number(n)
                }
                None => Target::Name(name.clone()),
            },
        };
        if ports.iter().any(|p| p.port == number) {
            problems.push(Problem::error(
                format!("{field}.port"),
                format!("port {number} is there twice, the first one is used"),
            ));
            continue;
        }
        let name = port.name.clone().unwrap_or_default();
        let protocol = app_protocol(port.app_protocol.as_deref(), &name);
        ports.push(Port { name, port: number, target, protocol });
    }
    ports
}

fn port_number(port: i32) -> Option<u16> {
    u16::try_from(port).ok().filter(|p| *p != 0)
}

/// From `appProtocol`, else from the name's part before the first `-`.
fn app_protocol(declared: Option<&str>, name: &str) -> AppProtocol {
    let word = declared.unwrap_or_else(|| name.split('-').next().unwrap_or_default());
    match word.to_ascii_lowercase().as_str() {
        "http" | "http1" | "kubernetes.io/ws" => AppProtocol::Http11,
        "http2" | "h2c" | "kubernetes.io/h2c" => AppProtocol::Http2,
        "grpc" | "grpc-web" => AppProtocol::Grpc,
        "tls" | "https" | "kubernetes.io/wss" => AppProtocol::Tls,
        "tcp" => AppProtocol::Tcp,
        _ => AppProtocol::Unknown,
    }
}
