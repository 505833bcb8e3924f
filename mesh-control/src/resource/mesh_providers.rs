//! The providers that the mesh settings name (`extensionProviders`): who may take logs and spans, and who decides who gets in. Read by `mesh_config`.

use mesh_core::ArcStr;
use serde::Deserialize;

use super::mesh_authorizers::{self, Authorizers, Grpc, Http};
use super::mesh_telemetry::{FileLog, OpenTelemetry, Provider, Takers, Zipkin};
use super::routing::there;
use super::strict::{self, Unknown};
use crate::diagnosis::Problem;
use crate::yaml::node::Node as Tree;

/// Most providers.
const MOST: usize = 100;

/// All of them, each by its name in both.
#[derive(Debug, Default)]
pub struct Providers {
    /// What they are to Telemetry.
    pub takers: Takers,
    /// What they are to policies.
    pub authorizers: Authorizers,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(dead_code, reason = "what is only known by name is read so that it is no unknown field")]
struct Extension {
    name: String,
    envoy_file_access_log: Option<FileLog>,
    zipkin: Option<Zipkin>,
    opentelemetry: Option<OpenTelemetry>,
    prometheus: Option<Prometheus>,
    #[serde(deserialize_with = "there")]
    lightstep: bool,
    #[serde(deserialize_with = "there")]
    datadog: bool,
    #[serde(deserialize_with = "there")]
    stackdriver: bool,
    #[serde(deserialize_with = "there")]
    opencensus: bool,
    #[serde(deserialize_with = "there")]
    skywalking: bool,
    #[serde(deserialize_with = "there")]
    envoy_http_als: bool,
    #[serde(deserialize_with = "there")]
    envoy_tcp_als: bool,
    #[serde(deserialize_with = "there")]
    envoy_otel_als: bool,
    envoy_ext_authz_http: Option<Http>,
    envoy_ext_authz_grpc: Option<Grpc>,
    #[serde(deserialize_with = "there")]
    sds: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Prometheus {}

/// Reads `extensionProviders` at `path`; what is wrong refuses the settings.
pub fn read(tree: &Tree, path: &str, problems: &mut Vec<Problem>) -> Providers {
    let all: Vec<Extension> = strict::read(tree, path, Unknown::Wrong, problems).unwrap_or_default();
    if all.len() > MOST {
        problems.push(Problem::error(path, format!("more than {MOST} providers")));
    }
    let mut providers = Providers::default();
    for (index, one) in all.iter().take(MOST).enumerate() {
        let (at, name) = (format!("{path}[{index}]"), ArcStr::from(one.name.as_str()));
        if name.is_empty() || providers.takers.contains_key(&name) {
            problems.push(Problem::error(format!("{at}.name"), "each provider needs a name of its own"));
        }
        if name.contains('/') {
            problems.push(Problem::error(format!("{at}.name"), "a provider's name has no slash"));
        }
        providers.takers.insert(name.clone(), one.taker(&at, problems));
        let (http, grpc) = (one.envoy_ext_authz_http.as_ref(), one.envoy_ext_authz_grpc.as_ref());
        providers.authorizers.insert(name, mesh_authorizers::provider(&at, http, grpc, problems));
    }
    providers
}

impl Extension {
    /// What Telemetry that names it means.
    fn taker(&self, field: &str, problems: &mut Vec<Problem>) -> Provider {
        if let Some(log) = &self.envoy_file_access_log {
            return log.provider(&format!("{field}.envoyFileAccessLog"), problems);
        }
        if let Some(zipkin) = &self.zipkin {
            return zipkin.provider(&format!("{field}.zipkin"), problems);
        }
        if let Some(otel) = &self.opentelemetry {
            return otel.provider(&format!("{field}.opentelemetry"), problems);
        }
        if self.prometheus.is_some() {
            return Provider::Metrics;
        }
        if self.envoy_ext_authz_http.is_some() || self.envoy_ext_authz_grpc.is_some() {
            return Provider::NotBuilt("it decides who gets in, and takes nothing");
        }
        let message = "waypoints do not know providers of this kind: Telemetry that names it has no effect";
        problems.push(Problem::warning(field, message).help("use envoyFileAccessLog, opentelemetry or zipkin"));
        Provider::NotBuilt("waypoints do not know providers of its kind")
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::{HeaderName, HeaderValue, StatusCode};
    use mesh_core::l7::ClusterKey;
    use mesh_core::l7::authorizer::{Authorizer, BodyShown, Form, HttpForm};
    use mesh_core::policy::StringMatch;

    use super::*;

    fn read_text(text: &str) -> (Authorizers, Vec<String>) {
        let tree = crate::yaml::node::parse(text).unwrap();
        let mut problems = Vec::new();
        let found = read(&tree, "p", &mut problems).authorizers;
        (found, problems.iter().map(|p| format!("{} {}: {}", p.severity, p.field, p.message)).collect())
    }

    #[test]
    fn features_TM_9_which_headers_say_a_trace_is_not_chosen() {
        let message = "requests are sent on with headers of B3, and with those of W3C where they came with them: it has no effect";
        let warned = vec![format!("warning p[0].zipkin.traceContextOption: {message}")];
        for (option, expected) in [
            ("", vec![]),
            (", traceContextOption: USE_B3", vec![]),
            (", traceContextOption: USE_B3_WITH_W3C_PROPAGATION", warned),
        ] {
            let (_, said) = read_text(&format!("[{{name: z, zipkin: {{service: z, port: 9411{option}}}}}]"));
            assert_eq!(said, expected, "{option}");
        }
    }

    #[test]
    fn features_AP_6_all_fields_of_a_provider_are_read() {
        let text = "
- name: a
  envoyExtAuthzHttp:
    service: foo/Ext-Authz.foo.svc.cluster.local
    port: 8000
    timeout: 1.5s
    pathPrefix: /check/
    failOpen: true
    statusOnError: '503'
    includeRequestHeadersInCheck: [X-Ext-Authz, 'x-user*', '*-id']
    includeAdditionalHeadersInCheck: {x-mesh: '1'}
    includeRequestBodyInCheck: {maxRequestBytes: 10, allowPartialMessage: true, packAsBytes: true}
    headersToUpstreamOnAllow: [x-a]
    headersToDownstreamOnDeny: [x-b]
    headersToDownstreamOnAllow: [x-c]
    clearRouteCache: true
- name: b
  envoyExtAuthzGrpc: {service: ext-authz.foo.svc.cluster.local, port: 9000}
- name: c
  zipkin: {service: z, port: 9411}
";
        let (found, said) = read_text(text);
        assert_eq!(said, [""; 0]);
        let place = || ClusterKey { service: mesh_core::NamespacedName::new("n", "h"), port: 1, subset: ArcStr::new() };
        let one = found["a"].as_ref().unwrap();
        assert_eq!(
            (one.namespace.as_deref(), &*one.host, one.port),
            (Some("foo"), "ext-authz.foo.svc.cluster.local", 8000)
        );
        let texts = |text: &str| vec![StringMatch::Exact(text.into())];
        let expected = Authorizer {
            name: "a".into(),
            place: place(),
            form: Form::Http(HttpForm {
                path_prefix: "/check".into(),
                sent: vec![
                    StringMatch::Exact("x-ext-authz".into()),
                    StringMatch::Prefix("x-user".into()),
                    StringMatch::Suffix("-id".into()),
                ],
                fixed: vec![(HeaderName::from_static("x-mesh"), HeaderValue::from_static("1"))],
                to_upstream: texts("x-a"),
                on_deny: texts("x-b"),
                on_allow: texts("x-c"),
            }),
            timeout: Duration::from_millis(1500),
            fail_open: true,
            status_on_error: StatusCode::SERVICE_UNAVAILABLE,
            body: Some(BodyShown { most: 10, partial: true, as_bytes: true }),
            routes_again: true,
        };
        assert_eq!(one.at(&"a".into(), place()), expected);
        let usual = Authorizer {
            name: "b".into(),
            form: Form::Grpc,
            timeout: Duration::from_secs(600),
            fail_open: false,
            status_on_error: StatusCode::FORBIDDEN,
            body: None,
            routes_again: false,
            ..expected
        };
        assert_eq!(found["b"].as_ref().unwrap().at(&"b".into(), place()), usual);
        assert_eq!(found["c"], None);
    }

    #[test]
    fn what_cannot_be_heeded_refuses_the_settings() {
        let http = |more: &str| format!("[{{name: a, envoyExtAuthzHttp: {{service: a.b, port: 1, {more}}}}}]");
        for (text, field) in [
            ("[{name: a, envoyExtAuthzHttp: {port: 1}}]".to_owned(), "p[0].envoyExtAuthzHttp.service"),
            ("[{name: a, envoyExtAuthzGrpc: {service: a.b}}]".to_owned(), "p[0].envoyExtAuthzGrpc.port"),
            ("[{name: a, envoyExtAuthzGrpc: {service: 'a b', port: 1}}]".to_owned(), "p[0].envoyExtAuthzGrpc.service"),
            ("[{name: a/b, envoyExtAuthzGrpc: {service: b, port: 1}}]".to_owned(), "p[0].name"),
            (
                "[{name: a, envoyExtAuthzGrpc: {service: b, port: 1}, envoyExtAuthzHttp: {service: b, port: 1}}]"
                    .to_owned(),
                "p[0]",
            ),
            (http("timeout: 1us"), "p[0].envoyExtAuthzHttp.timeout"),
            (http("pathPrefix: check"), "p[0].envoyExtAuthzHttp.pathPrefix"),
            (http("pathPrefix: '/a?b'"), "p[0].envoyExtAuthzHttp.pathPrefix"),
            (http("statusOnError: '99'"), "p[0].envoyExtAuthzHttp.statusOnError"),
            (http("includeRequestHeadersInCheck: ['*']"), "p[0].envoyExtAuthzHttp.includeRequestHeadersInCheck[0]"),
            (http("headersToUpstreamOnAllow: ['a*b']"), "p[0].envoyExtAuthzHttp.headersToUpstreamOnAllow[0]"),
            (
                http("includeAdditionalHeadersInCheck: {host: a}"),
                "p[0].envoyExtAuthzHttp.includeAdditionalHeadersInCheck.host",
            ),
            (http("includeRequestBodyInCheck: {}"), "p[0].envoyExtAuthzHttp.includeRequestBodyInCheck.maxRequestBytes"),
            (http("failopen: true"), "p[0].envoyExtAuthzHttp.failopen"),
        ] {
            let (_, said) = read_text(&text);
            assert!(said.iter().any(|said| said.starts_with(&format!("error {field}"))), "{text}: {said:?}");
        }
    }
}
