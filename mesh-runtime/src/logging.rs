//! The process's log: one line per event on standard output, in the layout that ztunnel's users parse, with a level that can be changed
//! while the process runs.
//!
//! ```text
//! 2026-11-20T10:35:31.040477Z  info  access  connection complete  src.addr=10.77.1.2:38518 duration="5ms"      (tabs between columns)
//! {"level":"info","time":"2026-11-20T10:35:31.040477Z","scope":"access","message":"connection complete","src.addr":"10.77.1.2:38518"}
//! ```

use std::fmt::{self, Write as _};
use std::str::FromStr;

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};

/// Longest accepted filter, in bytes.
pub const MAX_FILTER: usize = 1024;

/// How lines look.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum LogFormat {
    /// Columns separated by tabs.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Why the log could not be set up or changed.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The text is not a filter.
    #[error("log filter {0:?}: expected LEVEL or TARGET=LEVEL, separated by commas, at most {MAX_FILTER} bytes")]
    Filter(String),
    /// A subscriber is installed already.
    #[error("the log of this process is set up already")]
    AlreadySet,
    /// The subscriber is gone.
    #[error("the log of this process is closed")]
    Closed,
}

/// What is logged: a default level and levels of single targets.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Filter {
    default: LevelFilter,
    targets: Vec<(String, LevelFilter)>,
}

impl Default for Filter {
    /// Everything from `info` up.
    fn default() -> Self {
        Filter { default: LevelFilter::INFO, targets: Vec::new() }
    }
}

impl FromStr for Filter {
    type Err = LogError;

    fn from_str(text: &str) -> Result<Self, LogError> {
        let wrong = || LogError::Filter(text.chars().take(80).collect());
        if text.len() > MAX_FILTER {
            return Err(wrong());
        }
        let mut filter = Filter::default();
        for part in text.split(',') {
            match part.trim().split_once('=') {
                None => filter.default = level(part.trim()).ok_or_else(wrong)?,
                Some((target, name)) if is_target(target) => {
                    filter.targets.push((target.to_owned(), level(name).ok_or_else(wrong)?));
                }
                Some(_) => return Err(wrong()),
            }
        }
        Ok(filter)
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.default)?;
        self.targets.iter().try_for_each(|(target, level)| write!(f, ",{target}={level}"))
    }
}

impl From<&Filter> for Targets {
    fn from(filter: &Filter) -> Targets {
        Targets::new().with_default(filter.default).with_targets(filter.targets.iter().cloned())
    }
}

fn level(name: &str) -> Option<LevelFilter> {
    // Names only: LevelFilter's own parser also takes numbers.
    let known = ["off", "error", "warn", "info", "debug", "trace"];
    known.contains(&name.to_ascii_lowercase().as_str()).then(|| name.parse().ok()).flatten()
}

fn is_target(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '-'))
}

/// Changes the running log. Cheap to clone.
#[derive(Clone)]
pub struct LogControl {
    handle: reload::Handle<Targets, Registry>,
    current: std::sync::Arc<parking_lot::Mutex<Filter>>,
}

impl fmt::Debug for LogControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LogControl({})", self.current.lock())
    }
}

impl LogControl {
    /// A control over no log, for tests: the level can be read and set and has no effect.
    pub fn detached(filter: Filter) -> Self {
        let (_, handle) = reload::Layer::new(Targets::from(&filter));
        LogControl { handle, current: std::sync::Arc::new(parking_lot::Mutex::new(filter)) }
    }

    /// Replaces the filter.
    pub fn set_level(&self, filter: Filter) -> Result<(), LogError> {
        self.handle.reload(Targets::from(&filter)).map_err(|_| LogError::Closed)?;
        *self.current.lock() = filter;
        Ok(())
    }

    /// The filter in force.
    pub fn level(&self) -> Filter {
        self.current.lock().clone()
    }
}

/// Installs the log of this process.
pub fn init(format: LogFormat, filter: Filter) -> Result<LogControl, LogError> {
    let (targets, handle) = reload::Layer::new(Targets::from(&filter));
    let lines = tracing_subscriber::fmt::layer()
        .event_format(Lines { format })
        .with_ansi(false)
        // A closed standard output must not become a panic in whoever logs.
        .log_internal_errors(false)
        .with_filter(targets);
    tracing_subscriber::registry().with(lines).try_init().map_err(|_| LogError::AlreadySet)?;
    Ok(LogControl { handle, current: std::sync::Arc::new(parking_lot::Mutex::new(filter)) })
}

/// The line layouts.
struct Lines {
    format: LogFormat,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        let metadata = event.metadata();
        let level = metadata.level().as_str().to_ascii_lowercase();
        let mut scope = metadata.target().to_owned();
        for span in context.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
            let _ = write!(scope, ":{}", span.name());
        }
        match self.format {
            LogFormat::Text => {
                write!(out, "{time}\t{level}\t{scope}\t{}", OneLine(&fields.message))?;
                for (name, value) in &fields.rest {
                    match value {
                        Value::String(text) if !fields.bare.contains(name) => {
                            write!(out, "\t{name}={}", Value::from(text.as_str()))?
                        }
                        Value::String(text) => write!(out, "\t{name}={}", OneLine(text))?,
                        other => write!(out, "\t{name}={other}")?,
                    }
                }
                writeln!(out)
            }
            LogFormat::Json => {
                let mut line = Map::new();
                line.insert("level".into(), level.into());
                line.insert("time".into(), time.into());
                line.insert("scope".into(), scope.into());
                line.insert("message".into(), fields.message.into());
                line.extend(fields.rest);
                writeln!(out, "{}", Value::Object(line))
            }
        }
    }
}

/// Text whose control characters are escaped, so that no value can forge a line or drive a terminal.
struct OneLine<'a>(&'a str);

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .chars()
            .try_for_each(|c| if c.is_control() { write!(f, "{}", c.escape_default()) } else { f.write_char(c) })
    }
}

/// An event's fields in the order of the call site; `bare` names those given with `%` or `?`, which print without quotes.
#[derive(Default)]
struct Fields {
    message: String,
    rest: Vec<(String, Value)>,
    bare: Vec<String>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        self.rest.push((field.name().to_owned(), value));
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
        } else {
            self.bare.push(field.name().to_owned());
            self.put(field, format!("{value:?}").into());
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" { self.message = value.to_owned() } else { self.put(field, value.into()) }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.put(field, value.to_string().into());
    }
}

#[cfg(test)]
mod tests;
