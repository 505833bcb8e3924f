//! What the mesh settings say of logs and spans: who does where no Telemetry says it (`defaultProviders`,
//! `accessLogFile`, `enableTracing`), and how many requests are traced. Read by `mesh_config`.

use std::collections::BTreeMap;

use mesh_core::ArcStr;
use mesh_core::telemetry::{AccessLog, Collector, CollectorKind, LogFormat};
use serde::Deserialize;

use super::routing::there;
use super::routing::values::Span;
use super::strict::{self, Unknown};
use crate::diagnosis::Problem;
use crate::yaml::node::{Node as Tree, Value};

/// The provider of logs that everybody has: the standard output.
pub const STDOUT: &str = "envoy";

/// Who may take something, by name.
pub type Takers = BTreeMap<ArcStr, Provider>;

/// What the settings say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MeshTelemetry {
    /// Who may take something, by name.
    pub providers: Takers,
    /// Who takes lines where no Telemetry says it.
    pub default_logs: Vec<ArcStr>,
    /// Who takes spans where no Telemetry says it.
    pub default_tracing: Option<ArcStr>,
    /// The log of `accessLogFile`, which counts where no Telemetry says anything.
    pub file: Option<AccessLog>,
    /// Requests are traced where no Telemetry says it.
    pub enable_tracing: bool,
    /// Of `defaultConfig`.
    pub tracing: ProxyTracing,
}

/// Who takes something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Provider {
    /// Lines.
    Log(AccessLog),
    /// Spans; with the longest path in the tag `http.url`.
    Spans(Collector, Option<u32>),
    /// Whoever scrapes.
    Metrics,
    /// What waypoints do not do.
    NotBuilt(&'static str),
}

/// Logs in files, as they are written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FileLog {
    path: String,
    log_format: Option<Format>,
    #[serde(deserialize_with = "there")]
    omit_empty_values: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Format {
    text: Option<String>,
    labels: Option<BTreeMap<String, String>>,
}

/// A collector of Zipkin's, as it is written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(dead_code, reason = "what is only known by name is read so that it is no unknown field")]
pub struct Zipkin {
    service: String,
    port: u16,
    max_tag_length: Option<u32>,
    #[serde(rename = "enable64bitTraceId", deserialize_with = "there")]
    enable_64bit_trace_id: bool,
    path: Option<String>,
    trace_context_option: Option<String>,
}

/// A collector of OpenTelemetry's, as it is written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OpenTelemetry {
    service: String,
    port: u16,
    max_tag_length: Option<u32>,
    http: Option<Http>,
    #[serde(deserialize_with = "there")]
    grpc: bool,
    #[serde(deserialize_with = "there")]
    resource_detectors: bool,
    #[serde(deserialize_with = "there")]
    dynatrace_sampler: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Http {
    path: String,
    timeout: Option<Span>,
    headers: Vec<HttpHeader>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct HttpHeader {
    name: String,
    value: Option<String>,
    env_name: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Defaults {
    access_logging: Vec<String>,
    tracing: Vec<String>,
    #[serde(deserialize_with = "there")]
    metrics: bool,
}

/// What is traced, of `defaultConfig.tracing`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProxyTracing {
    /// How many requests, in millionths.
    pub share: Option<u32>,
    /// A collector of Zipkin's, in an older form.
    pub zipkin: Option<Collector>,
    /// Longest path in the tag `http.url`.
    pub tag_length: Option<u32>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Tracing {
    sampling: Option<f64>,
    zipkin: Option<ZipkinAddress>,
    max_path_tag_length: Option<u32>,
    #[serde(deserialize_with = "there")]
    custom_tags: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct ZipkinAddress {
    address: String,
}

/// Reads what the settings say. `at` is the path of the settings; what is wrong refuses them.
pub fn read(mesh: &Tree, at: &str, providers: Takers, problems: &mut Vec<Problem>) -> MeshTelemetry {
    let mut telemetry = MeshTelemetry { providers, ..MeshTelemetry::default() };
    let path = |key: &str| format!("{at}.{key}");
    telemetry.file = file(mesh, at, problems);
    telemetry.enable_tracing = matches!(flag(mesh, "enableTracing", at, problems), Some(true));
    if let Some(tree) = mesh.get("defaultProviders") {
        let read: Option<Defaults> = strict::read(tree, &path("defaultProviders"), Unknown::Wrong, problems);
        let read = read.unwrap_or_default();
        telemetry.default_logs = read.access_logging.iter().map(|name| name.as_str().into()).collect();
        telemetry.default_tracing = read.tracing.first().map(|name| name.as_str().into());
        if read.metrics {
            let message = "numbers are always shown to whoever scrapes: it has no effect";
            problems.push(Problem::warning(path("defaultProviders.metrics"), message));
        }
    }
    if let Some(tree) = mesh.get("defaultConfig") {
        telemetry.tracing = proxy(tree, &path("defaultConfig"), problems);
    }
    telemetry
}

fn flag(mesh: &Tree, key: &str, at: &str, problems: &mut Vec<Problem>) -> Option<bool> {
    strict::read(mesh.get(key)?, &format!("{at}.{key}"), Unknown::Wrong, problems)
}

/// The log of the three settings that are older than Telemetry.
fn file(mesh: &Tree, at: &str, problems: &mut Vec<Problem>) -> Option<AccessLog> {
    let mut text = |key: &str| -> Option<String> {
        strict::read(mesh.get(key)?, &format!("{at}.{key}"), Unknown::Wrong, problems)
    };
    let (path, format, encoding) = (text("accessLogFile"), text("accessLogFormat"), text("accessLogEncoding"));
    let json = match encoding.as_deref() {
        None | Some("TEXT") => false,
        Some("JSON") => true,
        Some(other) => {
            let problem = Problem::error(format!("{at}.accessLogEncoding"), format!("unknown value {other:?}"));
            problems.push(problem.help("write TEXT or JSON"));
            return None;
        }
    };
    let field = format!("{at}.accessLogFormat");
    let format = match (json, format.filter(|format| !format.is_empty())) {
        (false, text) => lines(&text.unwrap_or_default()),
        (true, None) => LogFormat::Json(Vec::new()),
        (true, Some(text)) => match serde_json::from_str::<BTreeMap<String, String>>(&text) {
            Ok(keys) => LogFormat::Json(keys.into_iter().map(|(key, value)| (key.into(), value.into())).collect()),
            Err(error) => {
                problems.push(Problem::error(field, format!("it is no object of JSON with texts: {error}")));
                return None;
            }
        },
    };
    compile(&format, &field, problems);
    let path = path.filter(|path| !path.is_empty())?;
    Some(AccessLog { path: path.into(), format, filter: None })
}

/// A text of lines: whoever does not end them means that they end all the same, as in Istio.
fn lines(text: &str) -> LogFormat {
    match text {
        "" => LogFormat::default(),
        text if text.ends_with('\n') => LogFormat::Text(text.into()),
        text => LogFormat::Text(format!("{text}\n").into()),
    }
}

fn compile(format: &LogFormat, field: &str, problems: &mut Vec<Problem>) {
    if let Err(error) = format.compile() {
        problems.push(Problem::error(field, error.to_string()));
    }
}

impl Zipkin {
    /// Who takes the spans. What is wrong refuses the settings.
    pub fn provider(&self, field: &str, problems: &mut Vec<Problem>) -> Provider {
        let host = place(&self.service, self.port, field, problems);
        if self.trace_context_option.as_deref().is_some_and(|option| option != "USE_B3") {
            let message = "requests are sent on with headers of B3, and with those of W3C where they came with them: it has no effect";
            problems.push(Problem::warning(format!("{field}.traceContextOption"), message).help("write USE_B3"));
        }
        let path = self.path.clone().unwrap_or_default().into();
        let collector = Collector { kind: CollectorKind::Zipkin, host, port: self.port, path, headers: Vec::new() };
        Provider::Spans(collector, self.max_tag_length)
    }
}

impl FileLog {
    /// Who takes it. What is wrong refuses the settings.
    pub fn provider(&self, field: &str, problems: &mut Vec<Problem>) -> Provider {
        let format = match &self.log_format {
            Some(Format { text: Some(_), labels: Some(_) }) => {
                let message = "text and labels exclude each other";
                problems.push(Problem::error(format!("{field}.logFormat"), message).help("keep one of them"));
                LogFormat::default()
            }
            Some(Format { labels: Some(labels), .. }) => {
                let keys = labels.iter().map(|(key, value)| (key.as_str().into(), value.as_str().into()));
                LogFormat::Json(keys.collect())
            }
            format => lines(format.as_ref().and_then(|format| format.text.as_deref()).unwrap_or_default()),
        };
        compile(&format, &format!("{field}.logFormat"), problems);
        if self.omit_empty_values {
            let message = "what is not known is written as `-` or null in any case: it has no effect";
            problems.push(Problem::warning(format!("{field}.omitEmptyValues"), message));
        }
        Provider::Log(AccessLog { path: self.path.as_str().into(), format, filter: None })
    }
}

impl OpenTelemetry {
    /// Who takes it. What is wrong refuses the settings.
    pub fn provider(&self, field: &str, problems: &mut Vec<Problem>) -> Provider {
        let host = place(&self.service, self.port, field, problems);
        for (name, is_there) in [
            ("grpc", self.grpc),
            ("resourceDetectors", self.resource_detectors),
            ("dynatraceSampler", self.dynatrace_sampler),
        ] {
            if is_there {
                let message = format!("{name} is known, but not built yet: it has no effect");
                problems.push(Problem::warning(format!("{field}.{name}"), message));
            }
        }
        let (kind, path, headers) = match &self.http {
            None => (CollectorKind::OtlpGrpc, ArcStr::new(), Vec::new()),
            Some(http) => {
                if http.timeout.is_some() {
                    let message = "a batch has five seconds in any case: it has no effect";
                    problems.push(Problem::warning(format!("{field}.http.timeout"), message));
                }
                let headers = http.headers.iter().enumerate().filter_map(|(index, header)| {
                    let field = format!("{field}.http.headers[{index}]");
                    if http::HeaderName::try_from(&header.name).is_err() {
                        problems.push(Problem::error(field, format!("{:?} is not the name of a header", header.name)));
                        return None;
                    }
                    if header.env_name.is_some() {
                        let message = "envName is known, but not built yet: the header is not sent";
                        problems.push(Problem::warning(format!("{field}.envName"), message));
                    }
                    Some((header.name.as_str().into(), header.value.as_deref()?.into()))
                });
                (CollectorKind::OtlpHttp, http.path.as_str().into(), headers.collect())
            }
        };
        Provider::Spans(Collector { kind, host, port: self.port, path, headers }, self.max_tag_length)
    }
}

/// The host of `namespace/host` or `host`.
fn place(service: &str, port: u16, field: &str, problems: &mut Vec<Problem>) -> ArcStr {
    let host = service.rsplit('/').next().unwrap_or_default();
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':');
    if host.is_empty() || host.len() > 253 || !host.chars().all(good) {
        problems.push(Problem::error(format!("{field}.service"), format!("{service:?} is no host")));
    }
    if port == 0 {
        problems.push(Problem::error(format!("{field}.port"), "the port is missing"));
    }
    host.into()
}

fn proxy(tree: &Tree, at: &str, problems: &mut Vec<Problem>) -> ProxyTracing {
    if let Value::Map(entries) = &tree.value {
        // What stands before gateways others read.
        for entry in entries.iter().filter(|entry| !["tracing", "gatewayTopology"].contains(&entry.key.as_str())) {
            let message = format!("{} is not built: it has no effect", entry.key);
            problems.push(Problem::warning(format!("{at}.{}", entry.key), message));
        }
    }
    let at = format!("{at}.tracing");
    let read = tree.get("tracing").and_then(|tree| strict::read::<Tracing>(tree, &at, Unknown::Either, problems));
    let Some(read) = read else { return ProxyTracing::default() };
    if read.custom_tags {
        let message = "customTags are read of Telemetry only: they have no effect here";
        problems.push(Problem::warning(format!("{at}.customTags"), message));
    }
    let share = read.sampling.and_then(|percent| {
        let share = millionths(percent);
        if share.is_none() {
            problems.push(Problem::error(format!("{at}.sampling"), format!("{percent} is no percentage")));
        }
        share
    });
    let zipkin = read.zipkin.and_then(|zipkin| {
        let parsed = zipkin.address.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
        let Some((host, port)) = parsed else {
            let message = format!("{:?} is no HOST:PORT", zipkin.address);
            problems.push(Problem::error(format!("{at}.zipkin.address"), message));
            return None;
        };
        let host = place(host, port, &format!("{at}.zipkin"), problems);
        Some(Collector { kind: CollectorKind::Zipkin, host, port, path: ArcStr::new(), headers: Vec::new() })
    });
    ProxyTracing { share, zipkin, tag_length: read.max_path_tag_length }
}

/// Of a percentage from 0 to 100.
#[must_use]
pub fn millionths(percent: f64) -> Option<u32> {
    // Rounded, so that 0.1 is 1000.
    (0.0..=100.0).contains(&percent).then(|| (percent * 10_000.0).round() as u32)
}
