//! What the mesh settings say of external authorizers: those of `extensionProviders` that policies with the action CUSTOM may name. Read by
//! `mesh_providers`; where a provider is, the joining finds out.

use std::collections::BTreeMap;
use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode};
use mesh_core::ArcStr;
use mesh_core::l7::ClusterKey;
use mesh_core::l7::authorizer::{Authorizer, BodyShown, Form, HttpForm, USUAL_STATUS, USUAL_TIMEOUT};
use mesh_core::l7::headers::is_changeable;
use mesh_core::policy::StringMatch;
use serde::Deserialize;

use super::routing::values::{Span, host};
use crate::diagnosis::Problem;

/// Bytes of a body that may be shown.
const MOST_BODY: u32 = 16 << 20;

/// By name; none if it is a provider of something else.
pub type Authorizers = BTreeMap<ArcStr, Option<Provider>>;

/// An external authorizer, as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provider {
    /// The namespace of its service, if that is said.
    pub namespace: Option<ArcStr>,
    /// The host of its service, in lower case.
    pub host: ArcStr,
    /// The service's port.
    pub port: u16,
    form: Form,
    timeout: Duration,
    fail_open: bool,
    status_on_error: StatusCode,
    body: Option<BodyShown>,
    routes_again: bool,
}

impl Provider {
    /// The authorizer, of whose service it is known what it is called in tables of services.
    #[must_use]
    pub fn at(&self, name: &ArcStr, place: ClusterKey) -> Authorizer {
        Authorizer {
            name: name.clone(),
            place,
            form: self.form.clone(),
            timeout: self.timeout,
            fail_open: self.fail_open,
            status_on_error: self.status_on_error,
            body: self.body,
            routes_again: self.routes_again,
        }
    }
}

/// By HTTP, as it is written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Http {
    service: String,
    port: u16,
    timeout: Option<Span>,
    path_prefix: Option<String>,
    fail_open: bool,
    status_on_error: Option<String>,
    include_headers_in_check: Vec<String>,
    include_request_headers_in_check: Vec<String>,
    include_additional_headers_in_check: BTreeMap<String, String>,
    include_request_body_in_check: Option<RequestBody>,
    headers_to_upstream_on_allow: Vec<String>,
    headers_to_downstream_on_deny: Vec<String>,
    headers_to_downstream_on_allow: Vec<String>,
    clear_route_cache: bool,
}

/// By gRPC, as it is written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Grpc {
    service: String,
    port: u16,
    timeout: Option<Span>,
    fail_open: bool,
    status_on_error: Option<String>,
    include_request_body_in_check: Option<RequestBody>,
    clear_route_cache: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RequestBody {
    max_request_bytes: u32,
    allow_partial_message: bool,
    pack_as_bytes: bool,
}

/// What is wrong, and where.
struct Reader<'a> {
    at: String,
    problems: &'a mut Vec<Problem>,
}

/// The authorizer that a provider at `at` is, if it is one.
pub fn provider(at: &str, http: Option<&Http>, grpc: Option<&Grpc>, problems: &mut Vec<Problem>) -> Option<Provider> {
    match (http, grpc) {
        (Some(_), Some(_)) => {
            let problem = Problem::error(at, "envoyExtAuthzHttp and envoyExtAuthzGrpc exclude each other");
            problems.push(problem.help("keep one of them"));
            None
        }
        (Some(http), None) => Some(http.provider(&mut Reader { at: format!("{at}.envoyExtAuthzHttp"), problems })),
        (None, Some(grpc)) => Some(grpc.provider(&mut Reader { at: format!("{at}.envoyExtAuthzGrpc"), problems })),
        (None, None) => None,
    }
}

impl Http {
    fn provider(&self, reader: &mut Reader<'_>) -> Provider {
        let prefix = self.path_prefix.as_deref().unwrap_or_default().trim_end_matches('/');
        if !prefix.is_empty()
            && (!prefix.starts_with('/')
                || prefix.contains(['?', '#'])
                || http::uri::PathAndQuery::try_from(prefix).is_err())
        {
            reader.error("pathPrefix", format!("{prefix:?} is not a path"), "begin it with `/`");
        }
        if !self.include_headers_in_check.is_empty() {
            let message = "it is the older name of includeRequestHeadersInCheck";
            reader.problems.push(Problem::warning(format!("{}.includeHeadersInCheck", reader.at), message));
        }
        let mut sent = reader.patterns("includeRequestHeadersInCheck", &self.include_request_headers_in_check);
        sent.extend(reader.patterns("includeHeadersInCheck", &self.include_headers_in_check));
        let form = HttpForm {
            path_prefix: prefix.into(),
            sent,
            fixed: reader.fixed(&self.include_additional_headers_in_check),
            to_upstream: reader.patterns("headersToUpstreamOnAllow", &self.headers_to_upstream_on_allow),
            on_deny: reader.patterns("headersToDownstreamOnDeny", &self.headers_to_downstream_on_deny),
            on_allow: reader.patterns("headersToDownstreamOnAllow", &self.headers_to_downstream_on_allow),
        };
        let (namespace, host) = reader.place(&self.service, self.port);
        Provider {
            namespace,
            host,
            port: self.port,
            form: Form::Http(form),
            timeout: reader.timeout(self.timeout),
            fail_open: self.fail_open,
            status_on_error: reader.status(self.status_on_error.as_deref()),
            body: reader.body(self.include_request_body_in_check.as_ref()),
            routes_again: self.clear_route_cache,
        }
    }
}

impl Grpc {
    fn provider(&self, reader: &mut Reader<'_>) -> Provider {
        let (namespace, host) = reader.place(&self.service, self.port);
        Provider {
            namespace,
            host,
            port: self.port,
            form: Form::Grpc,
            timeout: reader.timeout(self.timeout),
            fail_open: self.fail_open,
            status_on_error: reader.status(self.status_on_error.as_deref()),
            body: reader.body(self.include_request_body_in_check.as_ref()),
            routes_again: self.clear_route_cache,
        }
    }
}

impl Reader<'_> {
    fn error(&mut self, field: &str, message: impl Into<String>, help: &str) {
        let problem = Problem::error(format!("{}.{field}", self.at), message);
        self.problems.push(if help.is_empty() { problem } else { problem.help(help) });
    }

    /// `[namespace/]host`
    fn place(&mut self, service: &str, port: u16) -> (Option<ArcStr>, ArcStr) {
        let (namespace, name) = match service.split_once('/') {
            Some((namespace, name)) => (Some(namespace), name),
            None => (None, service),
        };
        let is_good = host(name).is_ok() && namespace.is_none_or(|namespace| super::meta::label(namespace).is_ok());
        if !is_good {
            self.error(
                "service",
                format!("{service:?} is not a service"),
                "write `host` or `namespace/host`, with the whole name of the host, as ext-authz.foo.svc.cluster.local",
            );
        }
        if port == 0 {
            self.error("port", "the port of the service is missing", "");
        }
        (namespace.map(ArcStr::from), name.trim_end_matches('.').to_ascii_lowercase().into())
    }

    fn timeout(&mut self, timeout: Option<Span>) -> Duration {
        if timeout.is_some_and(|timeout| timeout < Span::LEAST) {
            self.error("timeout", "shorter than a millisecond", "write at least 1ms");
        }
        timeout.map_or(USUAL_TIMEOUT, |timeout| timeout.0)
    }

    fn status(&mut self, text: Option<&str>) -> StatusCode {
        let Some(text) = text else { return USUAL_STATUS };
        let status = text.parse::<u16>().ok().filter(|code| (200..600).contains(code));
        status.and_then(|code| StatusCode::from_u16(code).ok()).unwrap_or_else(|| {
            self.error(
                "statusOnError",
                format!("{text:?} is not a status"),
                "write a number from 200 to 599, in quotes",
            );
            USUAL_STATUS
        })
    }

    fn body(&mut self, body: Option<&RequestBody>) -> Option<BodyShown> {
        let body = body?;
        if !(1..=MOST_BODY).contains(&body.max_request_bytes) {
            let message = format!("{} bytes", body.max_request_bytes);
            let help = format!("write a number from 1 to {MOST_BODY}");
            self.error("includeRequestBodyInCheck.maxRequestBytes", message, &help);
        }
        Some(BodyShown {
            most: usize::try_from(body.max_request_bytes).unwrap_or(usize::MAX),
            partial: body.allow_partial_message,
            as_bytes: body.pack_as_bytes,
        })
    }

    /// Names of headers, in lower case, with a `*` at one end.
    fn patterns(&mut self, field: &str, all: &[String]) -> Vec<StringMatch> {
        let mut found = Vec::new();
        for (index, text) in all.iter().enumerate() {
            let lower = text.to_ascii_lowercase();
            let (pattern, rest) = match (lower.strip_prefix('*'), lower.strip_suffix('*')) {
                (Some(suffix), _) => (StringMatch::Suffix(suffix.into()), suffix),
                (None, Some(prefix)) => (StringMatch::Prefix(prefix.into()), prefix),
                (None, None) => (StringMatch::Exact(lower.as_str().into()), lower.as_str()),
            };
            if HeaderName::try_from(rest).is_err() || rest.contains('*') {
                let message = format!("{text:?} is not the name of a header, nor its beginning or end with `*`");
                self.error(&format!("{field}[{index}]"), message, "");
            }
            found.push(pattern);
        }
        found
    }

    fn fixed(&mut self, all: &BTreeMap<String, String>) -> Vec<(HeaderName, HeaderValue)> {
        let mut found = Vec::new();
        for (name, value) in all {
            let parsed = HeaderName::try_from(name).ok().filter(is_changeable).zip(HeaderValue::try_from(value).ok());
            match parsed {
                Some(pair) => found.push(pair),
                None => {
                    let field = format!("includeAdditionalHeadersInCheck.{name}");
                    self.error(&field, "not a header that can be set", "");
                }
            }
        }
        found
    }
}
