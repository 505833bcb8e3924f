//! GRPCRoute, TLSRoute, TCPRoute and UDPRoute: where calls, and connections, go.

use serde::Deserialize;

use super::http_route::{Backend, Filter, FilterKind, NamedMatch, SessionPersistence, ValueKind};
use super::reference::{BackendReference, Parents, check_backend, check_hostnames, check_parents};
use super::values::{Pattern, matchable};
use super::{Check, Spec};

/// What a GRPCRoute asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GrpcRoute {
    /// What it belongs to.
    pub parent_refs: Parents,
    /// Whether it belongs to gateways that it does not name.
    pub use_default_gateways: Option<String>,
    /// Hosts that are asked for; those of the listener if it is not said.
    pub hostnames: Vec<String>,
    /// What is done.
    pub rules: Vec<GrpcRule>,
}

/// What is done with a call that any of `matches` fits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GrpcRule {
    /// What policies call it.
    pub name: Option<String>,
    /// Alternatives; every call if there are none.
    pub matches: Vec<GrpcMatch>,
    /// What is changed.
    pub filters: Vec<Filter>,
    /// Where it goes, by weight.
    pub backend_refs: Vec<Backend>,
    /// The same client comes to the same endpoint.
    pub session_persistence: Option<SessionPersistence>,
}

/// Conditions, all of which must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct GrpcMatch {
    /// The method.
    pub method: Option<GrpcMethod>,
    /// Headers.
    pub headers: Vec<NamedMatch>,
}

/// A method; what is not said is any.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct GrpcMethod {
    /// Exact if it is not said.
    #[serde(rename = "type")]
    pub kind: Option<ValueKind>,
    /// With its package.
    pub service: Option<String>,
    /// Of the service.
    pub method: Option<String>,
}

impl Spec for GrpcRoute {
    fn check(&self, check: &mut Check<'_>) {
        check_parents(&self.parent_refs, check);
        check_hostnames(&self.hostnames, check);
        for (index, rule) in self.rules.iter().enumerate() {
            let field = format!("spec.rules[{index}]");
            for (index, one) in rule.matches.iter().enumerate() {
                one.check(&format!("{field}.matches[{index}]"), check);
            }
            calls(&format!("{field}.filters"), &rule.filters, check);
            for (index, backend) in rule.backend_refs.iter().enumerate() {
                let field = format!("{field}.backendRefs[{index}]");
                check_backend(&field, &backend.reference(), check);
                calls(&format!("{field}.filters"), &backend.filters, check);
            }
        }
    }
}

/// Filters of calls: those that change no path.
fn calls(field: &str, filters: &[Filter], check: &mut Check<'_>) {
    use FilterKind::{ExtensionRef, RequestHeaderModifier, RequestMirror, ResponseHeaderModifier};
    for (index, filter) in filters.iter().enumerate() {
        let field = format!("{field}[{index}]");
        match [RequestHeaderModifier, ResponseHeaderModifier, RequestMirror, ExtensionRef].contains(&filter.kind) {
            true => filter.check(&field, &super::http_route::Rule::default(), check),
            false => check.error(
                format!("{field}.type"),
                format!("{:?} is a filter of HTTPRoute", filter.kind),
                "a GRPCRoute has RequestHeaderModifier, ResponseHeaderModifier, RequestMirror and ExtensionRef",
            ),
        }
    }
}

impl GrpcMatch {
    fn check(&self, field: &str, check: &mut Check<'_>) {
        if let Some(method) = &self.method {
            let field = format!("{field}.method");
            let parts = [("service", &method.service), ("method", &method.method)];
            if parts.iter().all(|(_, part)| part.is_none()) {
                check.error(&field, "neither a service nor a method", "add `service` or `method`");
            }
            for (name, part) in parts.into_iter().filter_map(|(name, part)| Some((name, part.as_ref()?))) {
                let field = format!("{field}.{name}");
                let is_name = !part.is_empty()
                    && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || (c == '.' && name == "service"));
                match method.kind {
                    Some(ValueKind::RegularExpression) => check.must(field, Pattern::try_from(part.clone()).map(drop)),
                    _ if !is_name => check.error(field, format!("{part:?} is not the name of a {name}"), ""),
                    _ => {}
                }
            }
        }
        for (index, one) in self.headers.iter().enumerate() {
            let field = format!("{field}.headers[{index}]");
            check.must(format!("{field}.name"), matchable(&one.name));
            if one.kind == Some(ValueKind::RegularExpression) {
                check.must(format!("{field}.value"), Pattern::try_from(one.value.clone()).map(drop));
            }
        }
    }
}

/// What happens to connections, or datagrams.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConnectionRule {
    /// What policies call it.
    pub name: Option<String>,
    /// Where they go, by weight.
    pub backend_refs: Vec<BackendReference>,
}

/// What a TLSRoute asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TlsRoute {
    /// What it belongs to.
    pub parent_refs: Parents,
    /// Whether it belongs to gateways that it does not name.
    pub use_default_gateways: Option<String>,
    /// Names that clients ask for.
    pub hostnames: Vec<String>,
    /// Where they go: one rule.
    pub rules: Vec<ConnectionRule>,
}

/// What a TCPRoute asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TcpRoute {
    /// What it belongs to.
    pub parent_refs: Parents,
    /// Whether it belongs to gateways that it does not name.
    pub use_default_gateways: Option<String>,
    /// Where they go: one rule.
    pub rules: Vec<ConnectionRule>,
}

/// What a UDPRoute asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct UdpRoute(pub TcpRoute);

impl Spec for TlsRoute {
    fn check(&self, check: &mut Check<'_>) {
        check_parents(&self.parent_refs, check);
        check_hostnames(&self.hostnames, check);
        connections(&self.rules, check);
    }
}

impl Spec for TcpRoute {
    fn check(&self, check: &mut Check<'_>) {
        check_parents(&self.parent_refs, check);
        connections(&self.rules, check);
    }
}

impl Spec for UdpRoute {
    fn check(&self, check: &mut Check<'_>) {
        self.0.check(check);
    }
}

fn connections(rules: &[ConnectionRule], check: &mut Check<'_>) {
    if rules.len() != 1 {
        check.error(
            "spec.rules",
            format!("there are {} rules", rules.len()),
            "write one: nothing tells connections apart",
        );
    }
    for (index, rule) in rules.iter().enumerate() {
        let field = format!("spec.rules[{index}].backendRefs");
        if rule.backend_refs.is_empty() {
            check.error(&field, "it leads nowhere", "name a Service and its port");
        }
        for (index, backend) in rule.backend_refs.iter().enumerate() {
            check_backend(&format!("{field}[{index}]"), backend, check);
        }
    }
}
