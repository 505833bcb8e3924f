//! What was seen, as one line of JSON. Values that others write are cut, and have no control characters: the line may be shown as it is.

use std::fmt::{Display, Write as _};

use super::{End, LONGEST_LINE, Seen};
use crate::telemetry::write;

/// Longest value in bytes, as it is written.
const LONGEST: usize = 1024;
/// All values together; the rest of a line is names of its keys, and numbers.
const ROOM: usize = LONGEST_LINE - 1024;

/// An object that is written; what is empty is left out.
struct Object<'a> {
    out: &'a mut String,
    /// Bytes that values may still take.
    room: &'a mut usize,
    is_first: bool,
}

impl<'a> Object<'a> {
    fn begin(out: &'a mut String, room: &'a mut usize) -> Self {
        out.push('{');
        Self { out, room, is_first: true }
    }

    fn key(&mut self, key: &str) {
        if !std::mem::replace(&mut self.is_first, false) {
            self.out.push(',');
        }
        let _ = write!(self.out, "\"{key}\":");
    }

    fn text(&mut self, key: &str, value: &str) {
        if !value.is_empty() {
            self.key(key);
            let before = self.out.len();
            write::json_cut(value, LONGEST.min(*self.room), self.out);
            *self.room = self.room.saturating_sub(self.out.len() - before - 2);
        }
    }

    fn shown(&mut self, key: &str, value: Option<impl Display>) {
        if let Some(value) = value {
            self.text(key, &value.to_string());
        }
    }

    fn number(&mut self, key: &str, value: impl Display) {
        self.key(key);
        let _ = write!(self.out, "{value}");
    }

    fn end(self) {
        self.out.push('}');
    }
}

impl Seen<'_> {
    /// The line, with its end.
    #[must_use]
    pub fn line(&self) -> String {
        let (mut out, mut room) = (String::with_capacity(512), ROOM);
        let mut line = Object::begin(&mut out, &mut room);
        line.text("kind", self.kind.as_str());
        line.shown("time", Some(self.time));
        line.text("direction", self.direction);
        line.key("source");
        end(&self.source, None, line.out, line.room);
        line.key("destination");
        end(&self.destination, self.service, line.out, line.room);
        line.text("routedTo", self.routed.map_or("", |(_, host)| host));
        line.text("protocol", self.protocol);
        line.text("security", self.security);
        if let Some(asked) = &self.asked {
            line.text("method", asked.method);
            line.text("authority", asked.authority);
            line.text("path", asked.path);
            line.text("query", asked.query.unwrap_or_default());
        }
        if let Some(status) = self.status {
            line.number("status", status);
        }
        if let Some(status) = self.grpc_status {
            line.number("grpcStatus", status);
        }
        line.text("flags", self.flags);
        line.text("details", self.details);
        line.text("failure", self.failure);
        line.text("rule", self.rule);
        if let Some(attempts) = self.attempts {
            line.number("attempts", attempts);
        }
        line.number("durationMs", self.duration_ms);
        line.number("bytesReceived", self.received);
        line.number("bytesSent", self.sent);
        line.end();
        out.push('\n');
        out
    }
}

fn end(end: &End<'_>, service: Option<(&str, &str)>, out: &mut String, room: &mut usize) {
    let mut object = Object::begin(out, room);
    if let Some((namespace, host)) = service {
        object.text("service", host);
        object.text("serviceNamespace", namespace);
    }
    object.text("namespace", end.namespace);
    object.text("workload", end.workload);
    object.text("pod", end.pod);
    object.shown("address", end.address);
    object.shown("identity", end.identity);
    object.end();
}
