//! Spans as Zipkin says them: JSON, version 2.

use std::fmt::Write as _;

use mesh_core::telemetry::write::json;

use super::{Kind, Span, Value};

/// A batch of one service's spans.
pub fn encode(service: &str, spans: &[Span]) -> Vec<u8> {
    let mut out = String::from("[");
    for (index, span) in spans.iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        one(service, span, &mut out);
    }
    out.push(']');
    out.into_bytes()
}

fn one(service: &str, span: &Span, out: &mut String) {
    let micros = |time: std::time::Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let start = micros(Span::since_epoch(span.start));
    // Zipkin takes 0 for nothing.
    let duration = micros(Span::since_epoch(span.end)).saturating_sub(start).max(1);
    let kind = match span.kind {
        Kind::Server => "SERVER",
        Kind::Client => "CLIENT",
    };
    let _ = write!(out, "{{\"traceId\":\"{:032x}\",\"id\":\"{:016x}\"", span.id.trace, span.id.span);
    if let Some(parent) = span.parent {
        let _ = write!(out, ",\"parentId\":\"{parent:016x}\"");
    }
    let _ = write!(out, ",\"kind\":\"{kind}\",\"timestamp\":{start},\"duration\":{duration},\"name\":");
    json(&span.name, out);
    out.push_str(",\"localEndpoint\":{\"serviceName\":");
    json(service, out);
    out.push_str("},\"tags\":{");
    for (index, (name, value)) in span.tags.iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        json(name, out);
        out.push(':');
        match value {
            Value::Text(text) => json(text, out),
            Value::Number(number) => drop(write!(out, "\"{number}\"")),
        }
    }
    if span.failed {
        out.push_str(if span.tags.is_empty() { "\"error\":\"true\"" } else { ",\"error\":\"true\"" });
    }
    out.push_str("}}");
}
