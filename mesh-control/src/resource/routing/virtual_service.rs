//! VirtualService: where requests to some hosts go. `http` rules are tried in their order, then `tls` by the name that the client asks for, then `tcp`.

mod check;

use std::collections::BTreeMap;

use serde::Deserialize;

use super::values::{Limit, Pattern, Span, StringMatch};
use crate::resource::Labels;

/// The mesh itself, among names of gateways.
pub const MESH: &str = "mesh";

/// What a VirtualService asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VirtualService {
    /// Hosts that it is about; none if it is only delegated to.
    pub hosts: Vec<String>,
    /// Where it counts; none means in the mesh.
    pub gateways: Vec<String>,
    /// Rules for HTTP, the first that matches counts.
    pub http: Vec<HttpRule>,
    /// Rules for TLS that is passed on.
    pub tls: Vec<TlsRule>,
    /// Rules for connections.
    pub tcp: Vec<TcpRule>,
    /// Namespaces that see it; none means all.
    pub export_to: Vec<String>,
}

impl VirtualService {
    /// Whether it says anything of requests that come through the mesh to a port of its hosts.
    pub fn routes_requests(&self, port: u16) -> bool {
        self.http
            .iter()
            .any(|rule| rule.matches.is_empty() || rule.matches.iter().any(|one| is_for(one.port, &one.gateways, port)))
    }

    /// The same of connections.
    pub fn routes_connections(&self, port: u16) -> bool {
        let of_tcp = |rule: &TcpRule| {
            rule.matches.is_empty() || rule.matches.iter().any(|one| is_for(one.port, &one.gateways, port))
        };
        self.tcp.iter().any(of_tcp)
            || self.tls.iter().any(|rule| rule.matches.iter().any(|one| is_for(one.port, &one.gateways, port)))
    }
}

/// Whether an alternative may fit what comes through the mesh to a port.
fn is_for(own: Option<u16>, gateways: &[String], port: u16) -> bool {
    own.is_none_or(|own| own == port) && (gateways.is_empty() || gateways.iter().any(|name| name == MESH))
}

/// What happens to an HTTP request that any of `matches` fits; all fit if there are none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpRule {
    /// For logs.
    pub name: Option<String>,
    /// Alternatives.
    #[serde(rename = "match")]
    pub matches: Vec<HttpMatch>,
    /// Where it goes, by weight.
    pub route: Vec<HttpTarget>,
    /// The client is sent elsewhere.
    pub redirect: Option<Redirect>,
    /// The client is answered at once.
    pub direct_response: Option<DirectResponse>,
    /// Another VirtualService decides.
    pub delegate: Option<Delegate>,
    /// Changes of path and authority.
    pub rewrite: Option<Rewrite>,
    /// For the whole request; 0 is no limit, and so is none unless the mesh has one.
    pub timeout: Option<Span>,
    /// What is tried again; none is the mesh's default.
    pub retries: Option<Retries>,
    /// What goes wrong on purpose.
    pub fault: Option<Fault>,
    /// Copies, in an older form.
    pub mirror: Option<Destination>,
    /// Copies.
    pub mirrors: Vec<Mirror>,
    /// How much of it is copied.
    pub mirror_percentage: Option<Percent>,
    /// The same in an older form.
    pub mirror_percent: Option<u32>,
    /// And in the oldest.
    #[serde(rename = "mirror_percent")]
    pub mirror_percent_oldest: Option<u32>,
    /// Who may call from a page of another origin.
    pub cors_policy: Option<Cors>,
    /// Changes of headers.
    pub headers: Headers,
}

/// Conditions, all of which must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpMatch {
    /// For logs.
    pub name: Option<String>,
    /// The path.
    pub uri: Option<StringMatch>,
    /// `http` or `https`.
    pub scheme: Option<StringMatch>,
    /// The method.
    pub method: Option<StringMatch>,
    /// The host that was asked for.
    pub authority: Option<StringMatch>,
    /// Headers.
    pub headers: BTreeMap<String, StringMatch>,
    /// Headers that do not match.
    pub without_headers: BTreeMap<String, StringMatch>,
    /// Parameters of the query.
    pub query_params: BTreeMap<String, StringMatch>,
    /// The port that was addressed.
    pub port: Option<u16>,
    /// Labels of the client.
    pub source_labels: Labels,
    /// Namespace of the client.
    pub source_namespace: Option<String>,
    /// Where it counts, instead of where the object does.
    pub gateways: Vec<String>,
    /// Paths are compared without regard to case.
    pub ignore_uri_case: bool,
    /// In names of statistics.
    pub stat_prefix: Option<String>,
}

/// One of the places that requests go to.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpTarget {
    /// The place.
    pub destination: Destination,
    /// Its share; none of it goes there at 0, unless it is the only place.
    #[serde(default)]
    pub weight: u32,
    /// Changes of headers on this way.
    #[serde(default)]
    pub headers: Headers,
}

/// A host, and what of it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Destination {
    /// A short name is one of the object's namespace.
    pub host: String,
    /// Of a DestinationRule.
    pub subset: Option<String>,
    /// May be left out if the host has one port.
    pub port: Option<Port>,
}

/// A port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Port {
    /// Its number.
    pub number: u16,
}

/// Changes of headers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Headers {
    /// On the way there.
    pub request: HeaderChanges,
    /// On the way back.
    pub response: HeaderChanges,
}

/// What is done, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct HeaderChanges {
    /// Replaced.
    pub set: BTreeMap<String, String>,
    /// Appended.
    pub add: BTreeMap<String, String>,
    /// Taken away.
    pub remove: Vec<String>,
}

/// Where a client is sent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Redirect {
    /// The whole path.
    pub uri: Option<String>,
    /// Or what stands for the prefix that the rule means, as in a rewrite.
    pub prefix_rewrite: Option<String>,
    /// The host.
    pub authority: Option<String>,
    /// The port.
    pub port: Option<u16>,
    /// Or where it is taken from.
    pub derive_port: Option<DerivePort>,
    /// The scheme.
    pub scheme: Option<String>,
    /// 301 if it is not said.
    pub redirect_code: Option<u16>,
}

/// Where a port is taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum DerivePort {
    /// 80 or 443.
    FromProtocolDefault,
    /// The request.
    FromRequestPort,
}

/// An answer that is written in the rule.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct DirectResponse {
    /// The status.
    pub status: u16,
    /// The body.
    pub body: Option<Body>,
}

/// A body, in one of two forms.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Body {
    /// As text.
    pub string: Option<String>,
    /// In base64.
    pub bytes: Option<String>,
}

/// Another VirtualService.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Delegate {
    /// Its name.
    pub name: String,
    /// Its namespace; none is that of the object.
    pub namespace: Option<String>,
}

/// Changes of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rewrite {
    /// Instead of the path, or of the prefix that was matched.
    pub uri: Option<String>,
    /// Instead of the host.
    pub authority: Option<String>,
    /// A replacement in the path.
    pub uri_regex_rewrite: Option<RegexRewrite>,
}

/// A replacement of what matches.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct RegexRewrite {
    /// What is replaced.
    #[serde(rename = "match")]
    pub matches: Pattern,
    /// With what; `\1` is a group.
    pub rewrite: String,
}

/// What is tried again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Retries {
    /// How often. None is 0, which is never: clients of Istio's own types cannot write one of them without the other.
    pub attempts: Option<u32>,
    /// For each attempt; none is that of the rule.
    pub per_try_timeout: Option<Span>,
    /// What for, with commas; none is the mesh's default.
    pub retry_on: Option<String>,
    /// Also in other places.
    pub retry_remote_localities: Option<bool>,
    /// Elsewhere than before; none is yes.
    pub retry_ignore_previous_hosts: Option<bool>,
    /// Before the second attempt; 25ms if it is not said.
    pub backoff: Option<Span>,
}

/// What goes wrong on purpose.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Fault {
    /// Requests wait.
    pub delay: Option<Delay>,
    /// Requests fail.
    pub abort: Option<Abort>,
}

/// How long requests wait.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Delay {
    /// So long.
    pub fixed_delay: Option<Span>,
    /// Nobody has ever done this.
    pub exponential_delay: Option<Span>,
    /// How many, in an older form.
    pub percent: Option<u32>,
    /// How many; none is none.
    pub percentage: Option<Percent>,
}

/// How requests fail.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Abort {
    /// With this status.
    pub http_status: Option<u16>,
    /// With this one of gRPC.
    pub grpc_status: Option<String>,
    /// Nobody has ever done this.
    pub http2_error: Option<String>,
    /// How many; none is none.
    pub percentage: Option<Percent>,
}

/// A share, in millionths of a hundred.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "WrittenPercent")]
pub struct Percent(pub i64);

#[derive(Default, Deserialize)]
#[serde(default)]
struct WrittenPercent {
    value: f64,
}

impl From<WrittenPercent> for Percent {
    fn from(written: WrittenPercent) -> Self {
        // What is no percentage stays none.
        Percent((written.value * 10_000.0).clamp(-1.0, 1_000_001.0).round() as i64)
    }
}

/// A copy of requests.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Mirror {
    /// Where it goes.
    pub destination: Destination,
    /// How many; none is all.
    pub percentage: Option<Percent>,
}

/// Who may call from a page of another origin.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Cors {
    /// In an older form, whole origins.
    pub allow_origin: Vec<String>,
    /// Origins.
    pub allow_origins: Vec<StringMatch>,
    /// Methods.
    pub allow_methods: Vec<String>,
    /// Headers that may be sent.
    pub allow_headers: Vec<String>,
    /// Headers that may be read.
    pub expose_headers: Vec<String>,
    /// How long a browser may remember it.
    pub max_age: Option<Span>,
    /// With cookies.
    pub allow_credentials: Option<bool>,
    /// What happens to other questions of browsers.
    pub unmatched_preflights: Option<Preflights>,
}

/// What happens to questions of browsers that no origin fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Preflights {
    /// As if it were not said.
    Unspecified,
    /// They go on.
    Forward,
    /// They do not.
    Ignore,
}

/// What happens to TLS that is passed on.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct TlsRule {
    /// Alternatives.
    #[serde(rename = "match")]
    pub matches: Vec<TlsMatch>,
    /// Where it goes, by weight.
    #[serde(default)]
    pub route: Vec<Target>,
}

/// Conditions, all of which must hold.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TlsMatch {
    /// Names that the client asks for.
    pub sni_hosts: Vec<String>,
    /// Addresses that it connects to.
    #[serde(default)]
    pub destination_subnets: Vec<String>,
    /// The port.
    pub port: Option<u16>,
    /// Labels of the client.
    #[serde(default)]
    pub source_labels: Labels,
    /// Where it counts.
    #[serde(default)]
    pub gateways: Vec<String>,
    /// Namespace of the client.
    pub source_namespace: Option<String>,
}

/// What happens to connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct TcpRule {
    /// Alternatives; none is always.
    #[serde(rename = "match")]
    pub matches: Vec<TcpMatch>,
    /// Where they go, by weight.
    pub route: Vec<Target>,
}

/// Conditions, all of which must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TcpMatch {
    /// Addresses that the client connects to.
    pub destination_subnets: Vec<String>,
    /// The port.
    pub port: Option<u16>,
    /// Nobody has ever done this.
    pub source_subnet: Option<String>,
    /// Labels of the client.
    pub source_labels: Labels,
    /// Where it counts.
    pub gateways: Vec<String>,
    /// Namespace of the client.
    pub source_namespace: Option<String>,
}

/// One of the places that connections go to.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Target {
    /// The place.
    pub destination: Destination,
    /// Its share.
    #[serde(default)]
    pub weight: u32,
}

impl HttpRule {
    /// How long a request may take.
    pub fn limit(&self) -> Limit {
        self.timeout.into()
    }
}

impl VirtualService {
    /// Whether it counts between pods of the mesh.
    pub fn is_of_the_mesh(&self) -> bool {
        self.gateways.is_empty() || self.gateways.iter().any(|gateway| gateway == MESH)
    }
}
