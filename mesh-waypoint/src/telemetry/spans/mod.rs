//! Spans of requests: one of the waypoint as a server, and one as a client for each attempt. What is not recorded costs two numbers drawn by lot.
//!
//! ```text
//! Tracer (compiled) ── Trace (one request) ── Span ── Exporter: a bounded queue ── crate::collector: batches, as otlp | zipkin say it
//! ```

mod exporter;
pub mod otlp;
mod trace;
pub mod zipkin;

use std::time::SystemTime;

use arcstr::ArcStr;
use http::HeaderValue;
use mesh_core::telemetry::trace::SpanId;

pub use exporter::{Counts, Exporter, Exporters, Start};
pub use trace::{Outgoing, Trace, Tracer};

/// Which side of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The waypoint was called.
    Server,
    /// The waypoint has called.
    Client,
}

/// What a span says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A text.
    Text(String),
    /// A number.
    Number(i64),
}

/// One span that is over.
#[derive(Clone, Debug)]
pub struct Span {
    /// Its ids.
    pub id: SpanId,
    /// Whose child it is.
    pub parent: Option<u64>,
    /// Which side.
    pub kind: Kind,
    /// What was called.
    pub name: ArcStr,
    /// When it began.
    pub start: SystemTime,
    /// When it ended.
    pub end: SystemTime,
    /// What it says.
    pub tags: Vec<(ArcStr, Value)>,
    /// It failed.
    pub failed: bool,
    /// What vendors say.
    pub state: Option<HeaderValue>,
}

impl Span {
    fn since_epoch(at: SystemTime) -> std::time::Duration {
        at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
    }
}
