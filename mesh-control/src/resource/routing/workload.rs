//! WorkloadEntry: one endpoint that is no pod. WorkloadGroup: what such endpoints have in common. Sidecar: what clients of a namespace see.

use serde::Deserialize;

use super::istio_gateway::ServerTls;
use super::service_entry::{Endpoint, Selector, port_protocol};
use super::values::{host, host_pattern};
use super::virtual_service::Port;
use super::{Check, Spec, there};
use crate::resource::mesh_config::UNKNOWN_NAMES;
use crate::resource::{Labels, meta};
use crate::yaml::node::Node as Tree;

/// What a WorkloadEntry says: an endpoint, as a ServiceEntry writes it.
pub type WorkloadEntry = Endpoint;

impl Spec for Endpoint {
    fn check(&self, check: &mut Check<'_>) {
        self.check_at("spec", check);
        self.told("spec", check);
    }
}

/// What a WorkloadGroup asks for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct WorkloadGroup {
    /// Of the entries that are made.
    #[serde(default)]
    pub metadata: GroupMeta,
    /// What they say.
    pub template: Endpoint,
    /// How it is found out whether they are well.
    pub probe: Option<Probe>,
}

/// Labels and annotations.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct GroupMeta {
    /// Labels.
    pub labels: Labels,
    /// Annotations.
    pub annotations: Labels,
}

/// How it is found out whether an endpoint is well: one of four ways.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Probe {
    /// Before the first.
    pub initial_delay_seconds: Option<u32>,
    /// For an answer; 1 if it is not said.
    pub timeout_seconds: Option<u32>,
    /// Between them; 10 if it is not said.
    pub period_seconds: Option<u32>,
    /// In a row, to be well; 1 if it is not said.
    pub success_threshold: Option<u32>,
    /// In a row, to be ill; 3 if it is not said.
    pub failure_threshold: Option<u32>,
    /// By HTTP.
    pub http_get: Option<HttpProbe>,
    /// By a connection.
    pub tcp_socket: Option<TcpProbe>,
    /// By a program.
    pub exec: Option<ExecProbe>,
    /// By gRPC.
    pub grpc: Option<GrpcProbe>,
}

/// By HTTP.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpProbe {
    /// `/` if it is not said.
    pub path: Option<String>,
    /// The port.
    pub port: u16,
    /// The endpoint itself if it is not said.
    pub host: Option<String>,
    /// HTTP if it is not said.
    pub scheme: Option<String>,
    /// Sent along.
    #[serde(default)]
    pub http_headers: Vec<ProbeHeader>,
}

/// A header.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ProbeHeader {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// By a connection.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct TcpProbe {
    /// The endpoint itself if it is not said.
    pub host: Option<String>,
    /// The port.
    pub port: u16,
}

/// By a program.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ExecProbe {
    /// The program and its arguments.
    pub command: Vec<String>,
}

/// By gRPC.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct GrpcProbe {
    /// The port.
    pub port: u16,
    /// Which service is asked about.
    pub service: Option<String>,
}

impl Spec for WorkloadGroup {
    fn check(&self, check: &mut Check<'_>) {
        if !self.template.address.is_empty() {
            check.error("spec.template.address", "each entry has its own address", "delete the field");
        }
        let template = Endpoint { network: "any".into(), ..self.template.clone() };
        template.check_at("spec.template", check);
        let Some(probe) = &self.probe else { return };
        let ways = [
            ("httpGet", probe.http_get.is_some()),
            ("tcpSocket", probe.tcp_socket.is_some()),
            ("exec", probe.exec.is_some()),
            ("grpc", probe.grpc.is_some()),
        ];
        if check.one_of("spec.probe", &ways) == 0 {
            check.error("spec.probe", "it does not say how", "add httpGet, tcpSocket, exec or grpc");
        }
        let ports = [
            ("httpGet", probe.http_get.as_ref().map(|one| one.port)),
            ("tcpSocket", probe.tcp_socket.as_ref().map(|one| one.port)),
            ("grpc", probe.grpc.as_ref().map(|one| one.port)),
        ];
        for (name, port) in ports {
            if let Some(port) = port {
                check.port(format!("spec.probe.{name}.port"), port);
            }
        }
        if probe.exec.as_ref().is_some_and(|exec| exec.command.is_empty()) {
            check.error("spec.probe.exec.command", "no program", "");
        }
    }
}

/// What a Sidecar asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Sidecar {
    /// All of the namespace if it is not said.
    pub workload_selector: Option<Selector>,
    /// What comes in.
    pub ingress: Vec<Ingress>,
    /// What may be reached.
    pub egress: Vec<Egress>,
    /// What happens to the rest.
    pub outbound_traffic_policy: Option<OutboundTrafficPolicy>,
    /// Read, and not looked into.
    #[serde(deserialize_with = "there")]
    pub inbound_connection_pool: bool,
}

/// The labels of the pods that a Sidecar is for, if they can be read; none are all of its namespace.
pub(super) fn readable_selector(spec: &Tree) -> Option<Labels> {
    match spec.get("workloadSelector") {
        None => Some(Labels::default()),
        Some(written) => Selector::deserialize(written).ok().map(|selector| selector.labels),
    }
}

/// What comes in.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ingress {
    /// On which port.
    pub port: SidecarPort,
    /// At which address.
    pub bind: Option<String>,
    /// How it is captured.
    pub capture_mode: Option<CaptureMode>,
    /// Where it goes.
    pub default_endpoint: Option<String>,
    /// With which certificates.
    pub tls: Option<ServerTls>,
    /// Read, and not looked into.
    #[serde(default, deserialize_with = "there")]
    pub connection_pool: bool,
}

/// What may be reached.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Egress {
    /// `namespace/host`, with wildcards.
    pub hosts: Vec<String>,
    /// On which port; all if it is not said.
    pub port: Option<SidecarPort>,
    /// At which address.
    pub bind: Option<String>,
    /// How it is captured.
    pub capture_mode: Option<CaptureMode>,
}

/// A port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SidecarPort {
    /// Its number.
    pub number: u16,
    /// What is spoken.
    pub protocol: Option<String>,
    /// Its name.
    pub name: Option<String>,
    /// In an older form.
    pub target_port: Option<u16>,
}

/// How something is captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[allow(missing_docs, reason = "they are called as in the manifest")]
pub enum CaptureMode {
    Default,
    Iptables,
    None,
}

/// What happens to what nobody knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OutboundTrafficPolicy {
    /// REGISTRY_ONLY if it is not said.
    pub mode: Option<OutboundMode>,
    /// It goes there.
    pub egress_proxy: Option<EgressProxy>,
}

/// What happens to what nobody knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs, reason = "they are called as in the manifest")]
pub enum OutboundMode {
    RegistryOnly,
    AllowAny,
    AllowAnyDynamicDns,
}

/// A service that everything goes to.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct EgressProxy {
    /// Its name.
    pub host: String,
    /// Of a DestinationRule.
    pub subset: Option<String>,
    /// Its port.
    pub port: Option<Port>,
}

impl Spec for Sidecar {
    fn check(&self, check: &mut Check<'_>) {
        for (index, egress) in self.egress.iter().enumerate() {
            let field = format!("spec.egress[{index}]");
            if egress.hosts.is_empty() {
                check.error(format!("{field}.hosts"), "no host", "write as `./*` or `istio-system/*`");
            }
            check.each(&format!("{field}.hosts"), &egress.hosts, seen);
            if let Some(port) = &egress.port {
                check.port(format!("{field}.port.number"), port.number);
                port_protocol(&format!("{field}.port"), port.protocol.as_deref(), check);
            }
        }
        for (index, ingress) in self.ingress.iter().enumerate() {
            let field = format!("spec.ingress[{index}]");
            check.port(format!("{field}.port.number"), ingress.port.number);
            port_protocol(&format!("{field}.port"), ingress.port.protocol.as_deref(), check);
            if let Some(endpoint) = &ingress.default_endpoint {
                let is_socket = endpoint.starts_with("unix:///");
                let to = endpoint.rsplit_once(':').filter(|(address, port)| {
                    ["127.0.0.1", "0.0.0.0", "[::1]", "[::]"].contains(address)
                        && port.parse::<u16>().is_ok_and(|port| port > 0)
                });
                if !is_socket && to.is_none() {
                    check.error(
                        format!("{field}.defaultEndpoint"),
                        format!("{endpoint:?} is none of the pod"),
                        "write as 127.0.0.1:8080 or unix:///path",
                    );
                }
            }
            if let Some(tls) = &ingress.tls {
                tls.check(&format!("{field}.tls"), check);
            }
        }
        // Without a policy all of it is told to have no effect.
        if self.outbound_traffic_policy.is_some() {
            for (field, is_there) in [("egress", !self.egress.is_empty()), ("ingress", !self.ingress.is_empty())] {
                if is_there {
                    let why = "known, not in force: of a Sidecar outboundTrafficPolicy counts";
                    check.warning(format!("spec.{field}"), why, "");
                }
            }
        }
        let mode = self.outbound_traffic_policy.as_ref().and_then(|policy| policy.mode);
        if mode == Some(OutboundMode::AllowAnyDynamicDns) {
            check.warning("spec.outboundTrafficPolicy.mode", UNKNOWN_NAMES, "write ALLOW_ANY");
        }
        if let Some(proxy) = self.outbound_traffic_policy.as_ref().and_then(|policy| policy.egress_proxy.as_ref()) {
            check.must("spec.outboundTrafficPolicy.egressProxy.host", host(&proxy.host));
            let why = "known, not in force: what nobody is known to have is refused, or reached as it is asked for";
            check.warning("spec.outboundTrafficPolicy.egressProxy", why, "");
        }
    }
}

/// `namespace/host`: a namespace, `.`, `*` or `~`, and a host with wildcards; a `~` before takes away.
fn seen(text: &str) -> Result<(), String> {
    let (namespace, host) =
        text.split_once('/').ok_or_else(|| format!("{text:?} does not say the namespace: write as ./{text}"))?;
    let bare = namespace.strip_prefix('~').filter(|rest| !rest.is_empty()).unwrap_or(namespace);
    if ![".", "*", "~"].contains(&bare) && meta::label(bare).is_err() {
        return Err(format!("{text:?}: before the `/` stands a namespace, `.`, `*` or `~`"));
    }
    host_pattern(host)
}
