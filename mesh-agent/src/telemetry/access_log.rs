//! The access log: one line per connection, in the node proxy's fields and order, never in the way of the data path.
//!
//! ```text
//!  guard -> format on the caller -> bounded queue -> one writer thread -> stdout
//!                                   full: dropped and counted
//! ```
//! Levels go through the `tracing` filter of the target `access`, so that the admin log level applies, but lines do not go through its
//! subscriber, which may block on a slow reader. Failures of one kind are limited per second; their metrics are not.

use std::fmt::{self, Write as _};
use std::io::Write;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use mesh_runtime::limit::{Limiter, Rate, Verdict};
use mesh_runtime::logging::LogFormat;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;

use super::connection::{ConnectionLabels, Outcome};
use super::labels::{MAX_VALUE, Pairs, Reporter, ResponseFlags};
use super::series::Peer;

/// Lines that may wait for the writer: about 2 MiB of usual lines.
const QUEUE: usize = 4096;
/// Lines written by one call.
const BATCH: usize = 64 * 1024;
/// Pause of the writer between two writes. Lines of a burst share a write, and the data path need not wake the writer for each.
const PAUSE: Duration = Duration::from_millis(10);
/// Failures of one kind that are logged; a minute of a flood stays under 1 MiB.
const FAILURES: Rate = Rate { rate: 10.0, burst: 20.0 };

/// The levels the access log uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    Debug,
    Info,
    Warn,
    Error,
}

impl Level {
    fn as_str(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

enum Entry {
    Line(String),
    Flush(SyncSender<()>),
}

/// Formats lines and hands them to the writer thread.
#[derive(Debug)]
pub struct AccessLog {
    format: LogFormat,
    queue: SyncSender<Entry>,
    dropped: AtomicU64,
    suppressed: AtomicU64,
    /// One bucket per failure kind, then one for refusals without a connection.
    limiter: Limiter<{ ResponseFlags::COUNT + 1 }>,
    /// Tests have no global filter to ask.
    always: bool,
}

impl AccessLog {
    /// A log on standard output.
    pub fn stdout(format: LogFormat) -> std::io::Result<Self> {
        Self::start(format, Box::new(std::io::stdout()), false)
    }

    /// A log on any writer, with every level on.
    pub fn to_writer(format: LogFormat, writer: Box<dyn Write + Send>) -> std::io::Result<Self> {
        Self::start(format, writer, true)
    }

    fn start(format: LogFormat, writer: Box<dyn Write + Send>, always: bool) -> std::io::Result<Self> {
        let (queue, lines) = sync_channel(QUEUE);
        std::thread::Builder::new().name("access-log".into()).spawn(move || write_lines(&lines, writer))?;
        Ok(Self {
            format,
            queue,
            dropped: AtomicU64::new(0),
            suppressed: AtomicU64::new(0),
            limiter: Limiter::new(FAILURES),
            always,
        })
    }

    pub(crate) fn enabled(&self, level: Level) -> bool {
        self.always
            || match level {
                Level::Debug => tracing::enabled!(target: "access", tracing::Level::DEBUG),
                Level::Info => tracing::enabled!(target: "access", tracing::Level::INFO),
                Level::Warn => tracing::enabled!(target: "access", tracing::Level::WARN),
                Level::Error => tracing::enabled!(target: "access", tracing::Level::ERROR),
            }
    }

    pub(crate) fn opened(&self, labels: &ConnectionLabels) {
        let mut line = Line::new(self.format, Level::Debug, "connection opened");
        ends(&mut line, labels);
        self.send(line);
    }

    /// `bytes` are those that the application of this node sent and received. That is what the log says, unlike the metrics: outbound
    /// sends requests, inbound sends responses.
    pub(crate) fn closed(
        &self,
        labels: &ConnectionLabels,
        bytes: (u64, u64),
        duration: Duration,
        outcome: &Outcome,
        now: Instant,
    ) {
        let level = if outcome.error().is_some() { Level::Error } else { Level::Info };
        if !self.enabled(level) {
            return;
        }
        let mut suppressed = 0;
        if matches!(outcome, Outcome::Failed { .. }) {
            match self.limiter.check(outcome.flags().index(), now) {
                Verdict::Write { suppressed: earlier } => suppressed = earlier,
                Verdict::Suppress => {
                    self.suppressed.fetch_add(1, Relaxed);
                    return;
                }
            }
        }
        let mut line = Line::new(self.format, level, "connection complete");
        ends(&mut line, labels);
        line.number("bytes_sent", bytes.0);
        line.number("bytes_recv", bytes.1);
        line.text("duration", &format!("{}ms", duration.as_millis()));
        if let Some(error) = outcome.error() {
            line.text("error", error);
        }
        if suppressed > 0 {
            line.number("suppressed", suppressed);
        }
        self.send(line);
    }

    /// A refusal before enough was known for a connection.
    pub(crate) fn refused(&self, reporter: Reporter, from: SocketAddr, to: SocketAddr, error: &str, now: Instant) {
        if !self.enabled(Level::Warn) {
            return;
        }
        let Verdict::Write { suppressed } = self.limiter.check(ResponseFlags::COUNT, now) else {
            self.suppressed.fetch_add(1, Relaxed);
            return;
        };
        let mut line = Line::new(self.format, Level::Warn, "connection failed");
        line.address("src.addr", from);
        line.address("dst.addr", to);
        line.text("direction", reporter.direction());
        line.text("error", error);
        if suppressed > 0 {
            line.number("suppressed", suppressed);
        }
        self.send(line);
    }

    fn send(&self, line: Line) {
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = self.queue.try_send(Entry::Line(line.end()))
        {
            self.dropped.fetch_add(1, Relaxed);
        }
    }

    /// Waits until what was logged before is written, at most `limit`. For the end of the process and for tests; blocks.
    pub fn flush(&self, limit: Duration) -> bool {
        let (done, written) = sync_channel(1);
        let started = Instant::now();
        let mut entry = Entry::Flush(done);
        while started.elapsed() < limit {
            match self.queue.try_send(entry) {
                Ok(()) => return written.recv_timeout(limit.saturating_sub(started.elapsed())).is_ok(),
                Err(TrySendError::Disconnected(_)) => return false,
                Err(TrySendError::Full(back)) => entry = back,
            }
            std::thread::yield_now();
        }
        false
    }

    /// Lines that were lost because the writer was behind.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    /// Lines that were left out by the limit on failures.
    pub fn suppressed(&self) -> u64 {
        self.suppressed.load(Relaxed)
    }

    pub(super) fn encode(&self, encoder: &mut DescriptorEncoder) -> Result<(), fmt::Error> {
        let (name, help) = ("mesh_access_log_dropped", "Access log lines not written");
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (reason, count) in [("queue_full", self.dropped()), ("rate_limited", self.suppressed())] {
            ConstCounter::new(count).encode(family.encode_family(&Pairs([("reason", reason)]))?)?;
        }
        Ok(())
    }
}

/// The writer thread: as many waiting lines as fit go out in one write. A failing sink loses lines, never the thread.
fn write_lines(lines: &Receiver<Entry>, mut writer: Box<dyn Write + Send>) {
    let mut batch = String::with_capacity(BATCH);
    while let Ok(first) = lines.recv() {
        let mut next = Some(first);
        let mut flushes = Vec::new();
        while let Some(entry) = next.take() {
            match entry {
                Entry::Line(line) => batch.push_str(&line),
                Entry::Flush(done) => flushes.push(done),
            }
            if batch.len() < BATCH {
                next = lines.try_recv().ok();
            }
        }
        let full = batch.len() >= BATCH;
        let _ = writer.write_all(batch.as_bytes()).and_then(|()| writer.flush());
        batch.clear();
        if flushes.is_empty() && !full {
            std::thread::sleep(PAUSE);
        }
        for done in flushes {
            let _ = done.send(());
        }
    }
}

/// The fields that every line about a connection has.
fn ends(line: &mut Line, labels: &ConnectionLabels) {
    line.address("src.addr", labels.source_address);
    end(line, Side::Source, &labels.source, labels.source_identity.as_ref());
    line.address("dst.addr", labels.destination_address);
    if let Some(target) = labels.hbone_target {
        line.address("dst.hbone_addr", target);
    }
    if let Some(service) = &labels.service {
        line.text("dst.service", &service.hostname);
    }
    end(line, Side::Destination, &labels.destination, labels.destination_identity.as_ref());
    line.text("direction", labels.reporter.direction());
}

#[derive(Clone, Copy)]
enum Side {
    Source,
    Destination,
}

impl Side {
    /// Keys of workload, namespace, identity and cluster.
    fn keys(self) -> [&'static str; 4] {
        match self {
            Self::Source => ["src.workload", "src.namespace", "src.identity", "src.cluster"],
            Self::Destination => ["dst.workload", "dst.namespace", "dst.identity", "dst.cluster"],
        }
    }
}

fn end(line: &mut Line, side: Side, peer: &Peer, identity: Option<&mesh_core::identity::Identity>) {
    let [workload_key, namespace_key, identity_key, cluster_key] = side.keys();
    let (workload, namespace, cluster) = match peer {
        Peer::Unknown => (None, None, None),
        Peer::Workload(workload) => (Some(&workload.name), Some(&workload.namespace), Some(&workload.cluster_id)),
        Peer::Labels(labels) => (Some(&labels.workload), Some(&labels.namespace), Some(&labels.cluster)),
    };
    if let Some(workload) = workload {
        line.text(workload_key, workload);
    }
    if let Some(namespace) = namespace {
        line.text(namespace_key, namespace);
    }
    if let Some(identity) = identity {
        line.text(identity_key, &identity.to_string());
    }
    if let Some(cluster) = cluster.filter(|cluster| !cluster.is_empty()) {
        line.text(cluster_key, cluster);
    }
}

/// A line being written.
struct Line {
    format: LogFormat,
    out: String,
    fields: bool,
}

impl Line {
    fn new(format: LogFormat, level: Level, message: &str) -> Self {
        let time = jiff::Timestamp::now();
        let level = level.as_str();
        let mut out = String::with_capacity(640);
        // Writing to a String does not fail.
        let _ = match format {
            LogFormat::Text => write!(out, "{time:.6}\t{level}\taccess\t{message}"),
            LogFormat::Json => {
                write!(out, r#"{{"level":"{level}","time":"{time:.6}","scope":"access","message":"{message}""#)
            }
        };
        Self { format, out, fields: false }
    }

    fn key(&mut self, key: &'static str) {
        let _ = match self.format {
            LogFormat::Text => write!(self.out, "{}{key}=", if self.fields { ' ' } else { '\t' }),
            LogFormat::Json => write!(self.out, r#","{key}":"#),
        };
        self.fields = true;
    }

    fn number(&mut self, key: &'static str, value: u64) {
        self.key(key);
        let _ = write!(self.out, "{value}");
    }

    fn address(&mut self, key: &'static str, value: SocketAddr) {
        self.key(key);
        let _ = match self.format {
            LogFormat::Text => write!(self.out, "{value}"),
            LogFormat::Json => write!(self.out, "\"{value}\""),
        };
    }

    /// A quoted, escaped, bounded string: names come from configuration, errors may quote what a peer sent.
    fn text(&mut self, key: &'static str, value: &str) {
        self.key(key);
        self.out.push('"');
        let end = (0..=value.len().min(MAX_VALUE)).rev().find(|&end| value.is_char_boundary(end)).unwrap_or(0);
        for c in value[..end].chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                c if c.is_control() => {
                    let _ = write!(self.out, "\\u{:04x}", u32::from(c));
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }

    fn end(mut self) -> String {
        self.out.push_str(if self.format == LogFormat::Json { "}\n" } else { "\n" });
        self.out
    }
}
