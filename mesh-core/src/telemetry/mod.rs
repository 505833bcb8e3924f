//! What is measured, logged and traced of requests: the one form of what Telemetry objects and mesh settings say of a waypoint. The control plane makes it
//! and tells what it cannot make; waypoints compile it once and do it.

#[cfg(feature = "expressions")]
pub mod expression;
pub mod format;
pub mod trace;
pub mod write;

use std::collections::BTreeMap;
use std::sync::Arc;

use arcstr::ArcStr;

use crate::NamespacedName;
use crate::l7::Share;

/// Logs of one waypoint or service; more are not kept.
pub const MOST_LOGS: usize = 8;
/// Tags of one waypoint or service.
pub const MOST_TAGS: usize = 64;

/// What is said of all that a waypoint does, and of what it does for single services instead.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scopes {
    /// Whatever has nothing of its own.
    pub waypoint: Arc<Telemetry>,
    /// Single services.
    pub services: BTreeMap<NamespacedName, Arc<Telemetry>>,
}

impl Scopes {
    /// What holds for requests for that service.
    #[must_use]
    pub fn of(&self, service: Option<&NamespacedName>) -> &Arc<Telemetry> {
        service.and_then(|service| self.services.get(service)).unwrap_or(&self.waypoint)
    }
}

/// What is done with requests. The default: all metrics, no log, no spans.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Telemetry {
    /// What is different with metrics.
    pub metrics: BTreeMap<Metric, MetricRule>,
    /// Lines that are written.
    pub logs: Vec<AccessLog>,
    /// Spans that are sent.
    pub tracing: Option<Tracing>,
}

/// One of Istio's metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "they are called as in Telemetry objects")]
pub enum Metric {
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

impl Metric {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::RequestCount,
        Self::RequestDuration,
        Self::RequestSize,
        Self::ResponseSize,
        Self::TcpOpenedConnections,
        Self::TcpClosedConnections,
        Self::TcpSentBytes,
        Self::TcpReceivedBytes,
        Self::GrpcRequestMessages,
        Self::GrpcResponseMessages,
    ];

    /// Whether it is of requests, and not of connections that are copied.
    #[must_use]
    pub fn is_of_requests(self) -> bool {
        !matches!(
            self,
            Self::TcpOpenedConnections | Self::TcpClosedConnections | Self::TcpSentBytes | Self::TcpReceivedBytes
        )
    }
}

/// What is different with one metric.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MetricRule {
    /// It is not made.
    pub disabled: bool,
    /// Labels: what an expression of CEL says, or `None`: they are left out.
    pub tags: BTreeMap<ArcStr, Option<ArcStr>>,
}

/// Lines that are written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccessLog {
    /// The file; empty is the standard output.
    pub path: ArcStr,
    /// How a line looks.
    pub format: LogFormat,
    /// Only requests of which this expression of CEL is true.
    pub filter: Option<ArcStr>,
}

/// How a line looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// A text with operators; empty is Istio's.
    Text(ArcStr),
    /// An object with these keys; none are Istio's.
    Json(Vec<(ArcStr, ArcStr)>),
}

impl Default for LogFormat {
    fn default() -> Self {
        Self::Text(ArcStr::new())
    }
}

impl LogFormat {
    /// Compiles it.
    pub fn compile(&self) -> Result<format::Format, format::FormatError> {
        match self {
            Self::Text(text) if text.is_empty() => Ok(format::Format::default()),
            Self::Text(text) => format::Format::text(text),
            Self::Json(keys) if keys.is_empty() => Ok(format::Format::default_json()),
            Self::Json(keys) => format::Format::json(keys),
        }
    }
}

/// Spans that are sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tracing {
    /// Where they go; none if only headers are sent on.
    pub collector: Option<Collector>,
    /// How many requests of which nobody has said it.
    pub share: Share,
    /// A request id that says so counts.
    pub by_request_id: bool,
    /// Headers are sent on.
    pub propagate: bool,
    /// Spans say what Istio knows of the request.
    pub istio_tags: bool,
    /// What else they say.
    pub tags: BTreeMap<ArcStr, SpanTag>,
    /// Longest path in the tag `http.url`, in bytes.
    pub tag_length: u32,
}

impl Default for Tracing {
    fn default() -> Self {
        Self {
            collector: None,
            share: Share::default(),
            by_request_id: true,
            propagate: true,
            istio_tags: true,
            tags: BTreeMap::new(),
            tag_length: 256,
        }
    }
}

/// Who takes spans.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Collector {
    /// What is spoken.
    pub kind: CollectorKind,
    /// Its host: of a service, or of something outside the mesh.
    pub host: ArcStr,
    /// Its port.
    pub port: u16,
    /// The path; empty is the usual one.
    pub path: ArcStr,
    /// Headers that it wants.
    pub headers: Vec<(ArcStr, ArcStr)>,
}

/// What a collector speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CollectorKind {
    /// OTLP over gRPC.
    OtlpGrpc,
    /// OTLP over HTTP, as protobuf.
    OtlpHttp,
    /// Zipkin's JSON, version 2.
    Zipkin,
}

/// What else a span says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SpanTag {
    /// A text.
    Literal(ArcStr),
    /// A variable of the process, or else this.
    Environment(ArcStr, Option<ArcStr>),
    /// A header of the request, or else this.
    Header(ArcStr, Option<ArcStr>),
    /// What a line of the log would say.
    Formatter(ArcStr),
}
