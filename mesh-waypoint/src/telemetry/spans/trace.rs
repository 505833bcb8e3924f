//! The trace of one request: whose child it is, whether it is recorded, and its attempts.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arcstr::ArcStr;
use http::{HeaderMap, HeaderValue};
use mesh_core::telemetry::format::Template;
use mesh_core::telemetry::trace::{Incoming, Sampling, SpanId, Styles, child, decide, mark, read, strip, write};
use mesh_core::telemetry::write::cut;
use mesh_core::telemetry::{CollectorKind, SpanTag, Tracing};
use rand::Rng;

use super::{Exporter, Kind, Span, Value};
use crate::telemetry::facts::{Facts, Reached, Wanted};

/// Longest value of a tag in bytes.
const LONGEST: usize = 4096;
/// Attempts of one request that have a span.
const MOST_ATTEMPTS: usize = 32;

/// What is done with traces, compiled.
#[derive(Debug)]
pub struct Tracer {
    sampling: Sampling,
    styles: Styles,
    propagate: bool,
    istio_tags: bool,
    /// Longest path in `http.url`.
    path_length: usize,
    tags: Vec<(ArcStr, Tag)>,
    exporter: Option<Arc<Exporter>>,
}

#[derive(Debug)]
enum Tag {
    Literal(ArcStr),
    Header(ArcStr, Option<ArcStr>),
    Formatter(Template),
}

impl Tracer {
    /// Compiles it. A tag that cannot be is left out and told.
    #[must_use]
    pub fn new(form: &Tracing, exporter: Option<Arc<Exporter>>, wanted: &mut Wanted) -> Self {
        let mut tags = Vec::new();
        for (name, tag) in &form.tags {
            match compile(tag, wanted) {
                Ok(Some(tag)) => tags.push((name.clone(), tag)),
                Ok(None) => {}
                Err(error) => tracing::warn!(tag = %name, error, "a tag of spans is left out"),
            }
        }
        wanted.header("x-request-id");
        wanted.header("user-agent");
        let zipkin = form.collector.as_ref().is_some_and(|collector| collector.kind == CollectorKind::Zipkin);
        Self {
            sampling: Sampling { share: form.share, by_request_id: form.by_request_id, on_demand: false },
            styles: Styles { w3c: !zipkin, b3: false, b3_multi: zipkin },
            propagate: form.propagate,
            istio_tags: form.istio_tags,
            path_length: usize::try_from(form.tag_length).unwrap_or(usize::MAX),
            tags,
            exporter,
        }
    }
}

fn compile(tag: &SpanTag, wanted: &mut Wanted) -> Result<Option<Tag>, String> {
    Ok(match tag {
        SpanTag::Literal(text) => Some(Tag::Literal(text.clone())),
        SpanTag::Environment(name, default) => {
            let value = std::env::var(&**name).ok().map(ArcStr::from);
            value.or_else(|| default.clone()).map(Tag::Literal)
        }
        SpanTag::Header(name, default) => {
            let template = Template::compile(&format!("%REQ({name})%")).map_err(|error| error.to_string())?;
            wanted.template(&template);
            Some(Tag::Header(name.to_lowercase().into(), default.clone()))
        }
        SpanTag::Formatter(text) => {
            let template = Template::compile(text).map_err(|error| error.to_string())?;
            wanted.template(&template);
            Some(Tag::Formatter(template))
        }
    })
}

/// The trace of one request.
pub struct Trace {
    tracer: Arc<Tracer>,
    incoming: Incoming,
    id: SpanId,
    sampled: bool,
    attempts: Vec<Attempt>,
}

/// One attempt.
struct Attempt {
    id: SpanId,
    began: Instant,
    ended: Option<Instant>,
    reached: Reached,
    status: Option<u16>,
    flag: &'static str,
}

/// What an attempt's request says of its trace.
#[derive(Clone, Debug)]
pub struct Outgoing {
    id: SpanId,
    parent: u64,
    sampled: bool,
    state: Option<HeaderValue>,
    styles: Styles,
}

impl Outgoing {
    /// Says it, in place of whatever was said.
    pub fn write(&self, headers: &mut HeaderMap) {
        write(headers, self.id, Some(self.parent), self.sampled, self.state.as_ref(), self.styles);
    }
}

impl Trace {
    /// Of a request that has come. Its headers say from now on whose child its copies are.
    #[must_use]
    pub fn begin(tracer: &Arc<Tracer>, headers: &mut HeaderMap, rng: &mut impl Rng) -> Self {
        let incoming = read(headers);
        let sampled = decide(&incoming, headers, tracer.sampling, rng);
        if sampled {
            mark(headers);
        }
        let id = child(incoming.parent, rng);
        let trace = Self { tracer: Arc::clone(tracer), incoming, id, sampled, attempts: Vec::new() };
        if trace.tracer.propagate {
            let parent = trace.incoming.parent.map(|parent| parent.span);
            write(headers, id, parent, sampled, trace.incoming.state.as_ref(), trace.styles());
        } else if trace.incoming.parent.is_none() {
            strip(headers);
        }
        trace
    }

    /// The collector's way to say it, and those in which the client has.
    fn styles(&self) -> Styles {
        let (own, said) = (self.tracer.styles, self.incoming.styles);
        Styles { w3c: own.w3c || said.w3c, b3: own.b3 || said.b3, b3_multi: own.b3_multi || said.b3_multi }
    }

    /// Its number.
    #[must_use]
    pub fn number(&self) -> u128 {
        self.id.trace
    }

    /// Whether spans are made of it.
    #[must_use]
    pub fn is_recorded(&self) -> bool {
        self.sampled && self.tracer.exporter.is_some()
    }

    /// An attempt begins, at whoever is `reached`.
    pub fn attempt(&mut self, reached: impl FnOnce() -> Reached, rng: &mut impl Rng) -> Option<Outgoing> {
        let id = child(Some(self.id), rng);
        if self.is_recorded() && self.attempts.len() < MOST_ATTEMPTS {
            self.attempts.push(Attempt {
                id,
                began: Instant::now(),
                ended: None,
                reached: reached(),
                status: None,
                flag: "-",
            });
        }
        let (parent, sampled) = (self.id.span, self.sampled);
        self.tracer.propagate.then(|| Outgoing {
            id,
            parent,
            sampled,
            state: self.incoming.state.clone(),
            styles: self.styles(),
        })
    }

    /// The attempt has an answer, whose body may go on, or none.
    pub fn attempted(&mut self, status: Option<u16>, flag: &'static str) {
        if let Some(attempt) = self.attempts.last_mut() {
            (attempt.status, attempt.flag) = (status, flag);
            attempt.ended = Some(Instant::now());
        }
    }

    /// The request is over: its spans are sent.
    pub fn end(&self, facts: &Facts<'_>, began: Instant) {
        let Some(exporter) = self.tracer.exporter.as_ref().filter(|_| self.sampled) else { return };
        let at = |instant: Instant| facts.start + instant.saturating_duration_since(began);
        let end = facts.start + facts.measured.duration;
        let host = facts.who.asked.map_or(facts.asked.0, |asked| &*asked.name);
        let name = ArcStr::from(format!("{host}:{}/*", facts.asked.1));
        let last = self.attempts.len().saturating_sub(1);
        for (index, attempt) in self.attempts.iter().enumerate() {
            // The body of the last answer belongs to it.
            let over = if index == last && facts.answered { end } else { attempt.ended.map_or(end, at) };
            exporter.send(self.client(attempt, facts, &name, at(attempt.began), over));
        }
        exporter.send(self.server(facts, name, facts.start, end));
    }

    fn client(&self, attempt: &Attempt, facts: &Facts<'_>, name: &ArcStr, start: SystemTime, end: SystemTime) -> Span {
        let mut tags = Tags(Vec::with_capacity(16));
        common(&mut tags, facts, self.tracer.path_length);
        tags.text("upstream_address", attempt.reached.address.to_string());
        tags.text("peer.address", attempt.reached.address.to_string());
        let mut cluster = String::new();
        if facts.cluster_of(&attempt.reached, &mut cluster) {
            tags.text("upstream_cluster", cluster.clone());
            tags.text("upstream_cluster.name", cluster);
        }
        tags.text("response_flags", attempt.flag.to_owned());
        if let Some(status) = attempt.status {
            tags.number("http.status_code", status.into());
        }
        if self.tracer.istio_tags {
            tags.text("istio.destination_workload", attempt.reached.workload.workload_name.to_string());
        }
        Span {
            id: attempt.id,
            parent: Some(self.id.span),
            kind: Kind::Client,
            name: name.clone(),
            start,
            end: end.max(start + Duration::from_nanos(1)),
            tags: tags.0,
            failed: attempt.status.is_none_or(|status| status >= 500),
            state: self.incoming.state.clone(),
        }
    }

    fn server(&self, facts: &Facts<'_>, name: ArcStr, start: SystemTime, end: SystemTime) -> Span {
        let measured = facts.measured;
        let mut tags = Tags(Vec::with_capacity(24));
        common(&mut tags, facts, self.tracer.path_length);
        tags.number("http.status_code", measured.status.into());
        tags.number("request_size", i64::try_from(measured.received).unwrap_or(i64::MAX));
        tags.number("response_size", i64::try_from(measured.sent).unwrap_or(i64::MAX));
        tags.text("response_flags", measured.flags.to_string());
        tags.text("peer.address", facts.who.from.to_string());
        let mut cluster = String::new();
        if facts.cluster(&mut cluster) {
            tags.text("upstream_cluster", cluster);
        }
        if let Some(status) = measured.grpc_status {
            tags.number("grpc.status_code", status.into());
        }
        if self.tracer.istio_tags {
            let own = facts.own;
            tags.text("istio.canonical_service", facts.gateway.to_owned());
            tags.text("istio.canonical_revision", "latest".to_owned());
            tags.text("istio.namespace", own.namespace.to_string());
            tags.text("istio.mesh_id", own.trust_domain.to_string());
            tags.text("istio.cluster_id", facts.cluster_id.to_owned());
            if let Some(identity) = facts.who.proved() {
                tags.text("source.principal", identity.to_string());
            }
        }
        let mut scratch = String::new();
        for (name, tag) in &self.tracer.tags {
            let value = match tag {
                Tag::Literal(text) => Some(text.to_string()),
                Tag::Header(header, default) => {
                    let found = facts.remembered.and_then(|remembered| remembered.header(header));
                    found.or(default.as_deref()).map(str::to_owned)
                }
                Tag::Formatter(template) => {
                    let mut text = String::new();
                    template.write(facts, &mut scratch, &mut text);
                    Some(text)
                }
            };
            if let Some(value) = value {
                tags.named(name.clone(), value);
            }
        }
        Span {
            id: self.id,
            parent: self.incoming.parent.map(|parent| parent.span),
            kind: Kind::Server,
            name,
            start,
            end: end.max(start + Duration::from_nanos(1)),
            tags: tags.0,
            failed: measured.status >= 500 || measured.status == 0,
            state: self.incoming.state.clone(),
        }
    }
}

/// What both sides say.
fn common(tags: &mut Tags, facts: &Facts<'_>, path_length: usize) {
    tags.text("component", "proxy".to_owned());
    tags.text("node_id", facts.pod.to_owned());
    tags.text("http.protocol", if facts.http2 { "HTTP/2" } else { "HTTP/1.1" }.to_owned());
    let Some(remembered) = facts.remembered else { return };
    tags.text("http.method", remembered.method().to_string());
    tags.text("http.url", url(facts.scheme, remembered.authority(), remembered.target(), path_length));
    for (tag, header) in [("guid:x-request-id", "x-request-id"), ("user_agent", "user-agent")] {
        if let Some(value) = remembered.header(header) {
            tags.text(tag, value.to_owned());
        }
    }
}

/// What was asked for. Of the path, with its query, there is so much as is said; hosts are short.
fn url(scheme: &str, authority: &str, target: &str, length: usize) -> String {
    format!("{scheme}://{authority}{}", cut(target, length))
}

struct Tags(Vec<(ArcStr, Value)>);

impl Tags {
    fn text(&mut self, name: &str, value: String) {
        self.named(name.into(), value);
    }

    fn named(&mut self, name: ArcStr, mut value: String) {
        let length = cut(&value, LONGEST).len();
        value.truncate(length);
        self.0.push((name, Value::Text(value)));
    }

    fn number(&mut self, name: &str, value: i64) {
        self.0.push((name.into(), Value::Number(value)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_path_there_is_so_much_as_is_said() {
        for (scheme, target, length, expected) in [
            ("http", "/a?b", 256, "http://shop.example/a?b"),
            ("https", "/a?b", 256, "https://shop.example/a?b"),
            ("https", "/a?b", 2, "https://shop.example/a"),
            // The host is none of it.
            ("http", "/a?b", 0, "http://shop.example"),
        ] {
            assert_eq!(url(scheme, "shop.example", target, length), expected);
        }
    }

    #[test]
    fn other_tags_are_not_cut_where_the_path_is() {
        let mut tags = Tags(Vec::new());
        tags.text("short", "x".repeat(LONGEST));
        tags.text("long", "x".repeat(LONGEST + 1));
        assert!(tags.0.iter().all(|(_, value)| matches!(value, Value::Text(text) if text.len() == LONGEST)));
    }
}
