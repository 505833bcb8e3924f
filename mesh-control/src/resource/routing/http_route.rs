//! HTTPRoute: where HTTP requests go that come to a gateway's listener, or, with a service as parent, to that service from within the mesh.

mod check;

use serde::Deserialize;

use super::reference::{BackendReference, LocalReference, Parents};
use super::there;
use super::values::{Limit, Span};

/// What an HTTPRoute asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpRoute {
    /// What it belongs to.
    pub parent_refs: Parents,
    /// Whether it belongs to gateways that it does not name.
    pub use_default_gateways: Option<String>,
    /// Hosts that are asked for; those of the listener if it is not said.
    pub hostnames: Vec<String>,
    /// What is done; one that takes everything if it is not said.
    pub rules: Vec<Rule>,
}

/// What is done with a request that any of `matches` fits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    /// What policies call it.
    pub name: Option<String>,
    /// Alternatives; every path if there are none.
    pub matches: Vec<Match>,
    /// What is changed.
    pub filters: Vec<Filter>,
    /// Where it goes, by weight; 500 if there are none and nothing else answers.
    pub backend_refs: Vec<Backend>,
    /// How long it may take.
    pub timeouts: Option<Timeouts>,
    /// What is tried again.
    pub retry: Option<Retry>,
    /// The same client comes to the same endpoint.
    pub session_persistence: Option<SessionPersistence>,
}

/// Conditions, all of which must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Match {
    /// The path; all of them if it is not said.
    pub path: Option<PathMatch>,
    /// Headers.
    pub headers: Vec<NamedMatch>,
    /// Parameters of the query.
    pub query_params: Vec<NamedMatch>,
    /// The method.
    pub method: Option<Method>,
}

/// How a path is compared.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct PathMatch {
    /// PathPrefix if it is not said.
    #[serde(rename = "type")]
    pub kind: Option<PathKind>,
    /// `/` if it is not said.
    pub value: Option<String>,
}

/// How a path is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[allow(missing_docs, reason = "they are called as in the manifest")]
pub enum PathKind {
    Exact,
    PathPrefix,
    RegularExpression,
}

/// How a header or a parameter is compared.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct NamedMatch {
    /// Exact if it is not said.
    #[serde(rename = "type")]
    pub kind: Option<ValueKind>,
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// How a value is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[allow(missing_docs, reason = "they are called as in the manifest")]
pub enum ValueKind {
    Exact,
    RegularExpression,
}

/// A method.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[allow(missing_docs, reason = "they are called as in HTTP")]
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Delete,
    Connect,
    Options,
    Trace,
    Patch,
}

/// Something that is changed: the field that is called as the type says.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Filter {
    /// Which.
    #[serde(rename = "type")]
    pub kind: FilterKind,
    /// On the way there.
    pub request_header_modifier: Option<HeaderChanges>,
    /// On the way back.
    pub response_header_modifier: Option<HeaderChanges>,
    /// A copy.
    pub request_mirror: Option<Mirror>,
    /// The client is sent elsewhere.
    pub request_redirect: Option<Redirect>,
    /// Another path, another host.
    pub url_rewrite: Option<Rewrite>,
    /// Who may call from a page of another origin.
    pub cors: Option<Cors>,
    /// Somebody is asked.
    pub external_auth: Option<ExternalAuth>,
    /// Somebody else's.
    pub extension_ref: Option<LocalReference>,
}

/// What is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[allow(missing_docs, reason = "they are called as in the manifest")]
pub enum FilterKind {
    RequestHeaderModifier,
    ResponseHeaderModifier,
    RequestMirror,
    RequestRedirect,
    #[serde(rename = "URLRewrite")]
    UrlRewrite,
    #[serde(rename = "CORS")]
    Cors,
    ExternalAuth,
    ExtensionRef,
}

/// Changes of headers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct HeaderChanges {
    /// Replaced.
    pub set: Vec<Header>,
    /// Appended.
    pub add: Vec<Header>,
    /// Taken away.
    pub remove: Vec<String>,
}

/// A header.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Header {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// A copy.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mirror {
    /// Where it goes.
    pub backend_ref: BackendReference,
    /// Of a hundred; all if nothing is said.
    pub percent: Option<u32>,
    /// Of any number.
    pub fraction: Option<Fraction>,
}

/// A share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Fraction {
    /// So many.
    pub numerator: u32,
    /// Of so many; 100 if it is not said.
    pub denominator: Option<u32>,
}

/// Where a client is sent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Redirect {
    /// http or https.
    pub scheme: Option<String>,
    /// The host.
    pub hostname: Option<String>,
    /// The path.
    pub path: Option<PathChange>,
    /// The port.
    pub port: Option<u16>,
    /// 302 if it is not said.
    pub status_code: Option<u16>,
}

/// Another path, another host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Rewrite {
    /// The host.
    pub hostname: Option<String>,
    /// The path.
    pub path: Option<PathChange>,
}

/// Another path.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PathChange {
    /// Which.
    #[serde(rename = "type")]
    pub kind: PathChangeKind,
    /// Instead of all of it.
    pub replace_full_path: Option<String>,
    /// Instead of the prefix that was matched.
    pub replace_prefix_match: Option<String>,
}

/// What of a path is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[allow(missing_docs, reason = "they are called as in the manifest")]
pub enum PathChangeKind {
    ReplaceFullPath,
    ReplacePrefixMatch,
}

/// Who may call from a page of another origin.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Cors {
    /// Origins, with wildcards.
    pub allow_origins: Vec<String>,
    /// With cookies.
    pub allow_credentials: Option<bool>,
    /// Methods.
    pub allow_methods: Vec<String>,
    /// Headers that may be sent.
    pub allow_headers: Vec<String>,
    /// Headers that may be read.
    pub expose_headers: Vec<String>,
    /// Seconds that a browser may remember it; 5 if it is not said.
    pub max_age: Option<u32>,
}

/// Somebody is asked. Read, and not looked into: nothing here asks anybody.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExternalAuth {
    /// How.
    pub protocol: String,
    /// Who.
    pub backend_ref: BackendReference,
    /// What they are told.
    #[serde(default, deserialize_with = "there")]
    pub grpc: bool,
    /// What they are told.
    #[serde(default, deserialize_with = "there")]
    pub http: bool,
    /// What they are told.
    #[serde(default, deserialize_with = "there")]
    pub forward_body: bool,
}

/// Where requests go, with changes on this way.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Backend {
    /// None is the core.
    pub group: Option<String>,
    /// None is Service.
    pub kind: Option<String>,
    /// None is the route's.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// A Service has to have it.
    pub port: Option<u16>,
    /// None is 1.
    pub weight: Option<u32>,
    /// What is changed.
    #[serde(default)]
    pub filters: Vec<Filter>,
}

impl Backend {
    /// Without the changes.
    pub fn reference(&self) -> BackendReference {
        BackendReference {
            group: self.group.clone(),
            kind: self.kind.clone(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            port: self.port,
            weight: self.weight,
        }
    }
}

/// How long it may take; 0 is for ever.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Timeouts {
    /// All attempts together.
    pub request: Option<String>,
    /// Each of them.
    pub backend_request: Option<String>,
}

impl Timeouts {
    /// For all attempts together, and for each of them.
    pub fn limits(&self) -> (Limit, Limit) {
        let limit = |text: &Option<String>| text.as_deref().and_then(Span::parse).into();
        (limit(&self.request), limit(&self.backend_request))
    }
}

/// What is tried again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Retry {
    /// For these answers.
    pub codes: Vec<u16>,
    /// So often.
    pub attempts: Option<u32>,
    /// Between attempts.
    pub backoff: Option<String>,
}

/// The same client comes to the same endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SessionPersistence {
    /// Of the cookie or the header.
    pub session_name: Option<String>,
    /// At most.
    pub absolute_timeout: Option<String>,
    /// Without a request.
    pub idle_timeout: Option<String>,
    /// Cookie, or Header.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Of the cookie.
    pub cookie_config: Option<CookieConfig>,
}

/// Of the cookie.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CookieConfig {
    /// Permanent, or Session.
    pub lifetime_type: Option<String>,
}
