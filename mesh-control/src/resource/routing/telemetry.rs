//! Telemetry: which metrics, logs and spans are made. RequestAuthentication: which tokens of requests are believed. Both count for workloads, or for what
//! they are bound to.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::destination_rule::WorkloadSelector;
use super::reference::name;
use super::values::{Span, header};
use super::{Check, Spec};
use crate::resource::{Labels, Unreadable, token_keys};
use crate::yaml::node::{Node as Tree, Value};

/// What an object can be bound to at once.
const MOST_TARGETS: usize = 16;

/// What an object is bound to.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct TargetReference {
    /// None and empty are the core.
    #[serde(default)]
    pub group: String,
    /// Its kind.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// None is the object's.
    pub namespace: Option<String>,
}

/// What objects can be bound to.
const TARGETS: [(&str, &str); 5] = [
    ("gateway.networking.k8s.io", "Gateway"),
    ("gateway.networking.k8s.io", "GatewayClass"),
    ("", "Service"),
    ("core", "Service"),
    ("networking.istio.io", "ServiceEntry"),
];

pub(super) fn bound(
    selector: &Option<WorkloadSelector>,
    target: &Option<TargetReference>,
    targets: &[TargetReference],
    check: &mut Check<'_>,
) {
    check.one_of(
        "spec",
        &[("selector", selector.is_some()), ("targetRef", target.is_some()), ("targetRefs", !targets.is_empty())],
    );
    if targets.len() > MOST_TARGETS {
        check.error("spec.targetRefs", format!("more than {MOST_TARGETS}"), "");
    }
    let all = targets.iter().enumerate().map(|(index, one)| (format!("spec.targetRefs[{index}]"), one));
    for (field, one) in all.chain(target.iter().map(|one| ("spec.targetRef".to_owned(), one))) {
        name(&field, &one.name, check);
        if !TARGETS.contains(&(one.group.as_str(), one.kind.as_str())) {
            let message = format!("nothing is bound to {}.{}", one.kind, one.group);
            check.error(
                &field,
                message,
                "bind it to a Gateway (group gateway.networking.k8s.io), a Service or a ServiceEntry",
            );
        }
        if one.namespace.as_deref().is_some_and(|namespace| namespace != check.namespace) {
            check.error(format!("{field}.namespace"), "another namespace than the object's", "delete the field");
        }
    }
}

/// What a RequestAuthentication that cannot be read is about, as far as that can be: there it is closed. Of one that names things, or may, of which it cannot be
/// told what they are, there are no targets.
pub(super) fn known(spec: &Tree, namespace: &str) -> Unreadable {
    const SELECTOR: &str = "selector";
    const NAMES: [&str; 2] = ["targetRef", "targetRefs"];
    let fields: Vec<&str> = match &spec.value {
        Value::Map(entries) => entries.iter().map(|entry| entry.key.as_str()).collect(),
        _ => vec![""],
    };
    let is_bound = fields.iter().any(|field| NAMES.contains(field));
    let is_selecting = fields.contains(&SELECTOR);
    // A field that nobody knows may be one of these with another spelling.
    let is_open = !is_bound && !is_selecting && fields.iter().any(|field| *field != "jwtRules");
    let selector = spec.get(SELECTOR).and_then(|written| WorkloadSelector::deserialize(written).ok());
    let items = NAMES.iter().filter_map(|name| spec.get(name)).flat_map(|node| match &node.value {
        Value::List(items) => items.as_slice(),
        _ => std::slice::from_ref(node),
    });
    let can_be = |target: &TargetReference| {
        TARGETS.contains(&(target.group.as_str(), target.kind.as_str()))
            && target.namespace.as_deref().is_none_or(|named| named == namespace)
    };
    let targets: Option<Vec<_>> = items.map(|item| TargetReference::deserialize(item).ok().filter(can_be)).collect();
    Unreadable {
        selector: if is_selecting { selector.map(|known| known.match_labels) } else { Some(Labels::default()) },
        bound_elsewhere: is_bound || is_open,
        targets: targets.filter(|targets| !targets.is_empty() && !is_selecting),
        ..Unreadable::default()
    }
}

/// What a RequestAuthentication asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RequestAuthentication {
    /// Which workloads; all of the namespace if nothing is said.
    pub selector: Option<WorkloadSelector>,
    /// What it is bound to, in an older form.
    pub target_ref: Option<TargetReference>,
    /// What it is bound to.
    pub target_refs: Vec<TargetReference>,
    /// Which tokens are believed; one of others is refused, and none is not asked for.
    pub jwt_rules: Vec<JwtRule>,
}

/// Which tokens are believed.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JwtRule {
    /// Who has made them.
    pub issuer: String,
    /// For whom; anybody if nothing is said.
    #[serde(default)]
    pub audiences: Vec<String>,
    /// Where the keys are; the issuer says it if it is not said.
    pub jwks_uri: Option<String>,
    /// In an older form.
    #[serde(rename = "jwks_uri")]
    pub jwks_uri_older: Option<String>,
    /// The keys.
    pub jwks: Option<String>,
    /// Where a token may stand; `Authorization: Bearer` and the parameter access_token if nothing is said.
    #[serde(default)]
    pub from_headers: Vec<FromHeader>,
    /// Parameters.
    #[serde(default)]
    pub from_params: Vec<String>,
    /// Cookies.
    #[serde(default)]
    pub from_cookies: Vec<String>,
    /// What it says is sent on so.
    pub output_payload_to_header: Option<String>,
    /// It is itself sent on; none is no.
    pub forward_original_token: Option<bool>,
    /// Single claims are sent on so.
    #[serde(default)]
    pub output_claim_to_headers: Vec<ClaimHeader>,
    /// For the keys; 5s if it is not said, and [`token_keys::LONGEST`] at most.
    pub timeout: Option<Span>,
    /// Claims that are lists with blanks between.
    #[serde(default)]
    pub space_delimited_claims: Vec<String>,
}

/// Where a token may stand.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct FromHeader {
    /// The header.
    pub name: String,
    /// Before the token.
    pub prefix: Option<String>,
}

/// How a claim is sent on.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ClaimHeader {
    /// The header.
    pub header: String,
    /// The claim.
    pub claim: String,
}

impl Spec for RequestAuthentication {
    fn check(&self, check: &mut Check<'_>) {
        bound(&self.selector, &self.target_ref, &self.target_refs, check);
        for (index, rule) in self.jwt_rules.iter().enumerate() {
            let field = format!("spec.jwtRules[{index}]");
            if rule.issuer.is_empty() {
                check.error(format!("{field}.issuer"), "the issuer is empty", "");
            }
            let uris = [("jwksUri", &rule.jwks_uri), ("jwks_uri", &rule.jwks_uri_older)];
            let ways = [("jwks", rule.jwks.is_some()), ("jwksUri", uris.iter().any(|(_, uri)| uri.is_some()))];
            check.one_of(&field, &ways);
            for (name, uri) in uris.into_iter().filter_map(|(name, uri)| Some((name, uri.as_ref()?))) {
                let parsed = uri.parse::<http::Uri>().ok();
                let is_good = parsed
                    .is_some_and(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some());
                if !is_good {
                    check.error(
                        format!("{field}.{name}"),
                        format!("{uri:?} is no place of keys"),
                        "write a URL that begins with https://",
                    );
                }
            }
            if let Some(keys) = &rule.jwks {
                let keys: Option<serde_json::Value> = serde_json::from_str(keys).ok();
                if !keys.is_some_and(|keys| keys["keys"].is_array()) {
                    check.error(
                        format!("{field}.jwks"),
                        "it holds no keys",
                        "write a JSON Web Key Set: {\"keys\": [...]}",
                    );
                }
            }
            for (index, one) in rule.from_headers.iter().enumerate() {
                check.must(format!("{field}.fromHeaders[{index}].name"), header(&one.name));
            }
            if let Some(name) = &rule.output_payload_to_header {
                check.must(format!("{field}.outputPayloadToHeader"), header(name));
            }
            for (index, one) in rule.output_claim_to_headers.iter().enumerate() {
                let field = format!("{field}.outputClaimToHeaders[{index}]");
                check.must(format!("{field}.header"), header(&one.header));
                if one.claim.is_empty() {
                    check.error(format!("{field}.claim"), "the claim is empty", "");
                }
            }
            check.time(format!("{field}.timeout"), rule.timeout);
            if rule.timeout.is_some_and(|span| span.0 > token_keys::LONGEST) {
                let message =
                    format!("a place of keys has {} s at most: that is in force", token_keys::LONGEST.as_secs());
                check.warning(format!("{field}.timeout"), message, "write no more");
            }
        }
    }
}

/// What a Telemetry asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Telemetry {
    /// Which workloads; all of the namespace if nothing is said.
    pub selector: Option<WorkloadSelector>,
    /// What it is bound to, in an older form.
    pub target_ref: Option<TargetReference>,
    /// What it is bound to.
    pub target_refs: Vec<TargetReference>,
    /// Metrics.
    pub metrics: Vec<Metrics>,
    /// Logs.
    pub access_logging: Vec<AccessLogging>,
    /// Spans.
    pub tracing: Vec<Tracing>,
}

/// Who takes something.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Provider {
    /// As the mesh settings call it.
    pub name: String,
}

/// Metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metrics {
    /// Who takes them.
    pub providers: Vec<Provider>,
    /// What is different.
    pub overrides: Vec<Override>,
    /// How often; 5s if it is not said.
    pub reporting_interval: Option<Span>,
}

/// What is different with some metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Override {
    /// Which; all if nothing is said.
    #[serde(rename = "match")]
    pub matches: Option<MetricMatch>,
    /// They are not made.
    pub disabled: Option<bool>,
    /// Labels.
    pub tag_overrides: BTreeMap<String, TagOverride>,
}

/// Which metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MetricMatch {
    /// One of Istio's.
    pub metric: Option<Metric>,
    /// Another.
    pub custom_metric: Option<String>,
    /// On which side.
    pub mode: Option<Side>,
}

/// One of Istio's metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs, reason = "they are called as in the manifest")]
pub enum Metric {
    AllMetrics,
    RequestCount,
    RequestDuration,
    RequestSize,
    ResponseSize,
    TcpOpenedConnections,
    TcpClosedConnections,
    TcpSentBytes,
    TcpReceivedBytes,
    GrpcRequestMessages,
    GrpcResponseMessages,
}

/// On which side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs, reason = "they are called as in the manifest")]
pub enum Side {
    ClientAndServer,
    Client,
    Server,
}

/// What is different with a label.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct TagOverride {
    /// UPSERT if it is not said.
    pub operation: Option<TagOperation>,
    /// An expression of CEL.
    pub value: Option<String>,
}

/// What happens to a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[allow(missing_docs, reason = "they are called as in the manifest")]
pub enum TagOperation {
    Upsert,
    Remove,
}

/// Logs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct AccessLogging {
    /// On which side.
    #[serde(rename = "match")]
    pub matches: Option<SideMatch>,
    /// Who takes them.
    pub providers: Vec<Provider>,
    /// They are not made.
    pub disabled: Option<bool>,
    /// Which.
    pub filter: Option<Filter>,
}

/// On which side.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct SideMatch {
    /// On both if it is not said.
    pub mode: Option<Side>,
}

/// Which.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Filter {
    /// An expression of CEL.
    pub expression: String,
}

/// Spans.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Tracing {
    /// On which side.
    #[serde(rename = "match")]
    pub matches: Option<SideMatch>,
    /// Who takes them.
    pub providers: Vec<Provider>,
    /// How many requests.
    pub random_sampling_percentage: Option<f64>,
    /// They are not sent.
    pub disable_span_reporting: Option<bool>,
    /// By the request's id.
    pub use_request_id_for_trace_sampling: Option<bool>,
    /// Headers are not sent on.
    pub disable_context_propagation: Option<bool>,
    /// With what Istio says of the request.
    pub enable_istio_tags: Option<bool>,
    /// What else they say.
    pub custom_tags: BTreeMap<String, CustomTag>,
}

impl Eq for Tracing {}

/// What else a span says: one of four.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct CustomTag {
    /// A text.
    pub literal: Option<Text>,
    /// A variable of the process.
    pub environment: Option<Lookup>,
    /// A header.
    pub header: Option<Lookup>,
    /// As a log would write it.
    pub formatter: Option<Text>,
}

/// A text.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Text {
    /// It.
    pub value: String,
}

/// Something that has a name.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Lookup {
    /// It.
    pub name: String,
    /// If there is none.
    pub default_value: Option<String>,
}

impl Spec for Telemetry {
    fn check(&self, check: &mut Check<'_>) {
        bound(&self.selector, &self.target_ref, &self.target_refs, check);
        for (index, metrics) in self.metrics.iter().enumerate() {
            let field = format!("spec.metrics[{index}]");
            check.time(format!("{field}.reportingInterval"), metrics.reporting_interval);
            for (index, one) in metrics.overrides.iter().enumerate() {
                let field = format!("{field}.overrides[{index}]");
                if let Some(which) = &one.matches {
                    let ways = [("metric", which.metric.is_some()), ("customMetric", which.custom_metric.is_some())];
                    check.one_of(&format!("{field}.match"), &ways);
                }
                for (tag, change) in &one.tag_overrides {
                    let field = crate::yaml::node::join(&format!("{field}.tagOverrides"), tag);
                    match (change.operation, &change.value) {
                        (Some(TagOperation::Remove), Some(_)) => {
                            check.error(&field, "what is removed has no value", "delete `value`")
                        }
                        (None | Some(TagOperation::Upsert), None) => {
                            check.error(&field, "the field `value` is missing", "write an expression")
                        }
                        _ => {}
                    }
                }
            }
        }
        for (index, tracing) in self.tracing.iter().enumerate() {
            let field = format!("spec.tracing[{index}]");
            if let Some(share) = tracing.random_sampling_percentage {
                check.percent(format!("{field}.randomSamplingPercentage"), share);
            }
            for (tag, value) in &tracing.custom_tags {
                let field = crate::yaml::node::join(&format!("{field}.customTags"), tag);
                let ways = [
                    ("literal", value.literal.is_some()),
                    ("environment", value.environment.is_some()),
                    ("header", value.header.is_some()),
                    ("formatter", value.formatter.is_some()),
                ];
                if check.one_of(&field, &ways) == 0 {
                    check.error(&field, "it says nothing", "add literal, environment, header or formatter");
                }
            }
        }
    }
}
