//! DestinationRule: how the endpoints of a host are reached. What a subset or a port says replaces what is said above it.

mod check;

use std::collections::BTreeMap;

use serde::Deserialize;

use super::there;
use super::values::Span;
use super::virtual_service::Port;
use crate::resource::Labels;

/// What a DestinationRule asks for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DestinationRule {
    /// A short name is one of the object's namespace.
    pub host: String,
    /// For all of the host.
    pub traffic_policy: Option<Box<TrafficPolicy>>,
    /// Parts of the host, which routes can name.
    #[serde(default)]
    pub subsets: Vec<Subset>,
    /// Namespaces that see it; none means all.
    #[serde(default)]
    pub export_to: Vec<String>,
    /// Clients that it counts for.
    pub workload_selector: Option<WorkloadSelector>,
}

/// Which workloads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadSelector {
    /// All of these they have.
    pub match_labels: Labels,
}

/// A part of a host.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Subset {
    /// What routes call it.
    pub name: String,
    /// Of its endpoints.
    #[serde(default)]
    pub labels: Labels,
    /// Instead of what the host says.
    pub traffic_policy: Option<Box<TrafficPolicy>>,
}

/// How endpoints are reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TrafficPolicy {
    /// Which of them.
    pub load_balancer: Option<LoadBalancer>,
    /// How many connections and requests.
    pub connection_pool: Option<ConnectionPool>,
    /// Which of them are left out for a while.
    pub outlier_detection: Option<OutlierDetection>,
    /// With which TLS.
    pub tls: Option<Tls>,
    /// For single ports, wholly instead of the above.
    pub port_level_settings: Vec<PortPolicy>,
    /// Through a proxy.
    pub tunnel: Option<Tunnel>,
    /// The client's address is told ahead.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// How many requests may be second attempts.
    pub retry_budget: Option<RetryBudget>,
}

/// How endpoints are reached on one port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PortPolicy {
    /// The port of the service.
    pub port: Option<Port>,
    /// Which of them.
    pub load_balancer: Option<LoadBalancer>,
    /// How many connections and requests.
    pub connection_pool: Option<ConnectionPool>,
    /// Which of them are left out for a while.
    pub outlier_detection: Option<OutlierDetection>,
    /// With which TLS.
    pub tls: Option<Tls>,
}

/// Which endpoint a request goes to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LoadBalancer {
    /// By a plain rule; the one with the fewest requests of two if nothing is said.
    pub simple: Option<Simple>,
    /// By what the request says.
    pub consistent_hash: Option<ConsistentHash>,
    /// Near ones first.
    pub locality_lb_setting: Option<Locality>,
    /// Not supported.
    #[serde(deserialize_with = "there")]
    pub zone_aware_lb_setting: bool,
    /// A new one gets little at first, in an older form.
    pub warmup_duration_secs: Option<Span>,
    /// A new one gets little at first.
    pub warmup: Option<Warmup>,
}

/// A plain rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs, reason = "they are called as in the manifest")]
pub enum Simple {
    Unspecified,
    LeastConn,
    Random,
    Passthrough,
    RoundRobin,
    LeastRequest,
}

/// By what the request says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConsistentHash {
    /// A header.
    pub http_header_name: Option<String>,
    /// A cookie, which is made if it has a `ttl`.
    pub http_cookie: Option<Cookie>,
    /// The client's address.
    pub use_source_ip: Option<bool>,
    /// A parameter of the query.
    pub http_query_parameter_name: Option<String>,
    /// In an older form.
    pub minimum_ring_size: Option<u64>,
    /// On a ring.
    pub ring_hash: Option<RingHash>,
    /// By a table.
    pub maglev: Option<Maglev>,
}

/// A cookie.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Cookie {
    /// Its name.
    pub name: String,
    /// Its path.
    pub path: Option<String>,
    /// How long it lasts; 0 is as long as the browser runs.
    pub ttl: Option<Span>,
    /// What else it says.
    #[serde(default)]
    pub attributes: Vec<Attribute>,
}

/// What else a cookie says.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Attribute {
    /// As SameSite.
    pub name: String,
    /// As Strict.
    pub value: Option<String>,
}

/// A ring.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RingHash {
    /// 1024 if it is not said.
    pub minimum_ring_size: Option<u64>,
}

/// A table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Maglev {
    /// 65537 if it is not said.
    pub table_size: Option<u64>,
}

/// Near ones first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Locality {
    /// Whether at all; none is as the mesh says.
    pub enabled: Option<bool>,
    /// Shares.
    pub distribute: Vec<Distribute>,
    /// Which region comes next.
    pub failover: Vec<Failover>,
    /// Labels that endpoints share with the client, the weightiest first.
    #[serde(rename = "failoverPriority")]
    pub priority: Vec<String>,
}

/// Shares of what comes from one place.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Distribute {
    /// Region, zone and sub-zone, with `/`, or `*`.
    pub from: String,
    /// Together a hundred.
    pub to: BTreeMap<String, u32>,
}

/// Which region comes next.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Failover {
    /// After this.
    pub from: String,
    /// This.
    pub to: String,
}

/// A new endpoint gets little at first.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Warmup {
    /// So long.
    pub duration: Span,
    /// Of what it will get; 10 if it is not said.
    pub minimum_percent: Option<f64>,
    /// How fast; 1 if it is not said.
    pub aggression: Option<f64>,
}

impl Eq for Warmup {}

/// How many connections and requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ConnectionPool {
    /// Connections.
    pub tcp: TcpPool,
    /// Requests.
    pub http: HttpPool,
}

/// Connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TcpPool {
    /// At once.
    pub max_connections: Option<i32>,
    /// To be made; 10s if it is not said.
    pub connect_timeout: Option<Span>,
    /// Without a byte; 1h if it is not said.
    pub idle_timeout: Option<Span>,
    /// At most.
    pub max_connection_duration: Option<Span>,
    /// Signs of life.
    pub tcp_keepalive: Option<Keepalive>,
}

/// Signs of life.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Keepalive {
    /// How many may fail.
    pub probes: Option<u32>,
    /// After which silence.
    pub time: Option<Span>,
    /// Between them.
    pub interval: Option<Span>,
}

/// Requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpPool {
    /// That wait for a connection.
    pub http1_max_pending_requests: Option<i32>,
    /// At once.
    pub http2_max_requests: Option<i32>,
    /// On one connection; 0 is any number.
    pub max_requests_per_connection: Option<i32>,
    /// Second attempts at once.
    pub max_retries: Option<i32>,
    /// Without a request; 1h if it is not said.
    pub idle_timeout: Option<Span>,
    /// Whether HTTP/1.1 becomes HTTP/2.
    pub h2_upgrade_policy: Option<H2Upgrade>,
    /// As the client speaks.
    pub use_client_protocol: Option<bool>,
    /// Of one connection.
    pub max_concurrent_streams: Option<i32>,
    /// Not supported.
    #[serde(rename = "http2KeepAlive", deserialize_with = "there")]
    pub http2_keep_alive: bool,
}

/// Whether HTTP/1.1 becomes HTTP/2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs, reason = "they are called as in the manifest")]
pub enum H2Upgrade {
    Default,
    DoNotUpgrade,
    Upgrade,
}

/// Which endpoints are left out for a while.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OutlierDetection {
    /// In an older form.
    pub consecutive_errors: Option<i32>,
    /// What never came to the endpoint is counted by itself.
    pub split_external_local_origin_errors: Option<bool>,
    /// So many of that; 5 if it is not said.
    pub consecutive_local_origin_failures: Option<u32>,
    /// So many of 502, 503 and 504; 0 is off.
    pub consecutive_gateway_errors: Option<u32>,
    /// So many of 5xx; 5 if it is not said, 0 is off.
    #[serde(rename = "consecutive5xxErrors")]
    pub consecutive_5xx_errors: Option<u32>,
    /// What counts as an error.
    pub outlier_detection_http_error_codes: Vec<u16>,
    /// Between looks; 10s if it is not said.
    pub interval: Option<Span>,
    /// As often as it was left out before; 30s if it is not said.
    pub base_ejection_time: Option<Span>,
    /// At once; 10 if it is not said.
    pub max_ejection_percent: Option<u32>,
    /// With fewer that are well all are used; 0 if it is not said.
    pub min_health_percent: Option<u32>,
}

/// With which TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Tls {
    /// None is the mesh's own, where the other side can.
    pub mode: Option<TlsMode>,
    /// Files, in a proxy.
    pub client_certificate: Option<String>,
    /// Files, in a proxy.
    pub private_key: Option<String>,
    /// Files, in a proxy.
    pub ca_certificates: Option<String>,
    /// Files, in a proxy.
    pub ca_crl: Option<String>,
    /// A Secret.
    pub credential_name: Option<String>,
    /// Who the other side may be.
    pub subject_alt_names: Vec<String>,
    /// The name that is asked for.
    pub sni: Option<String>,
    /// Anybody is believed.
    pub insecure_skip_verify: Option<bool>,
}

/// With which TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs, reason = "they are called as in the manifest")]
pub enum TlsMode {
    Disable,
    Simple,
    Mutual,
    IstioMutual,
}

/// Through a proxy.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tunnel {
    /// CONNECT, or POST.
    pub protocol: Option<String>,
    /// Where to.
    pub target_host: String,
    /// Where to.
    pub target_port: u16,
}

/// The client's address is told ahead.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ProxyProtocol {
    /// V1 if it is not said.
    pub version: Option<ProxyVersion>,
}

/// In which form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[allow(missing_docs, reason = "they are called as in the manifest")]
pub enum ProxyVersion {
    V1,
    V2,
}

/// How many requests may be second attempts.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RetryBudget {
    /// Of those under way; 20 if it is not said.
    pub percent: Option<f64>,
    /// At least; 3 if it is not said.
    pub min_retry_concurrency: Option<u32>,
    /// Over which time.
    pub budget_interval: Option<Span>,
}

impl Eq for RetryBudget {}
