//! What is done with requests, compiled: once for each configuration, read by each request.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_core::NamespacedName;
use mesh_core::telemetry::expression::Expression;
use mesh_core::telemetry::format::{Field, Format, Message};
use mesh_core::telemetry::{AccessLog, Scopes, Telemetry};

use super::facts::{Facts, Wanted};
use super::remarks::Remarks;
use super::shape::Shape;
use super::sink::{Sink, Writer};
use super::spans::{Exporters, Tracer};

/// Where what is said of requests goes to. One for the process.
#[derive(Default)]
pub struct Tools {
    /// Lines.
    pub writer: Writer,
    /// Spans.
    pub exporters: Exporters,
    /// Lines of the process's own log.
    pub remarks: Remarks,
}

/// What is done with all requests.
#[derive(Default)]
pub struct Plans {
    waypoint: Arc<Plan>,
    services: BTreeMap<NamespacedName, Arc<Plan>>,
}

/// What is done with some requests.
#[derive(Default)]
pub struct Plan {
    logs: Vec<Log>,
    /// What is different with their numbers.
    pub shape: Option<Arc<Shape>>,
    /// Their traces.
    pub tracer: Option<Arc<Tracer>>,
    /// What must be remembered of their messages.
    pub wanted: Wanted,
}

struct Log {
    format: Format,
    /// Its lines have the path with its query.
    shows_path: bool,
    filter: Option<Expression>,
    sink: Arc<Sink>,
}

impl Plans {
    /// Compiles it. What cannot be is done in the way that shows most, and told: a filter that is none keeps nothing back.
    #[must_use]
    pub fn compile(scopes: &Scopes, tools: &Tools) -> Self {
        let one = |telemetry: &Telemetry| Arc::new(Plan::compile(telemetry, tools));
        let services = scopes.services.iter().map(|(name, telemetry)| (name.clone(), one(telemetry))).collect();
        Self { waypoint: one(&scopes.waypoint), services }
    }

    /// For requests for that service.
    #[must_use]
    pub fn of(&self, service: Option<&NamespacedName>) -> &Arc<Plan> {
        service.and_then(|service| self.services.get(service)).unwrap_or(&self.waypoint)
    }
}

impl Plan {
    fn compile(telemetry: &Telemetry, tools: &Tools) -> Self {
        let mut wanted = Wanted::default();
        let logs = telemetry.logs.iter().filter_map(|log| Log::compile(log, tools, &mut wanted)).collect();
        let tracer = telemetry.tracing.as_ref().map(|tracing| {
            let exporter = tracing.collector.as_ref().map(|collector| tools.exporters.to(collector));
            Arc::new(Tracer::new(tracing, exporter, &mut wanted))
        });
        let shape = Shape::compile(&telemetry.metrics, &mut wanted);
        Self { logs, shape, tracer, wanted }
    }

    /// Whether something of the messages is asked for when a request is over.
    #[must_use]
    pub fn remembers(&self) -> bool {
        !self.logs.is_empty() || self.shape.as_ref().is_some_and(|shape| shape.asks())
    }

    /// Whether lines are written.
    #[must_use]
    pub fn logs(&self) -> bool {
        !self.logs.is_empty()
    }

    /// Whether a line of that request is written that has its query: it may hold what is secret, so that nothing else shows it.
    #[must_use]
    pub fn shows_query(&self, facts: &Facts<'_>) -> bool {
        self.logs.iter().any(|log| log.shows_path && log.is_kept(facts))
    }

    /// Writes the lines of a request that is over, into the buffer of that lane. `scratch` is anything.
    pub fn log(&self, facts: &Facts<'_>, lane: usize, scratch: &mut [String; 2]) {
        let [value, line] = scratch;
        for log in &self.logs {
            if !log.is_kept(facts) {
                continue;
            }
            line.clear();
            log.format.line(facts, value, line);
            log.sink.append(lane, line.as_bytes());
        }
    }
}

impl Log {
    fn compile(log: &AccessLog, tools: &Tools, wanted: &mut Wanted) -> Option<Self> {
        let format = log.format.compile().unwrap_or_else(|error| {
            tracing::warn!(%error, "the format of an access log is none: Istio's is used");
            Format::default()
        });
        let filter = log.filter.as_ref().and_then(|filter| {
            let compiled = Expression::compile(filter);
            compiled
                .inspect_err(|error| tracing::warn!(%filter, %error, "a filter is none: all requests are logged"))
                .ok()
        });
        let sink = tools.writer.sink(&log.path);
        if sink.is_none() {
            tracing::warn!(path = %log.path, "too many files of access logs: this one is not written");
        }
        wanted.format(&format);
        filter.iter().for_each(|filter| wanted.expression(filter));
        let shows_path = format.fields().any(|part| part == (Message::Request, &Field::Path));
        Some(Self { format, shows_path, filter, sink: sink? })
    }

    fn is_kept(&self, facts: &Facts<'_>) -> bool {
        self.filter.as_ref().is_none_or(|filter| filter.is_true(|attribute| facts.datum(attribute)))
    }
}
