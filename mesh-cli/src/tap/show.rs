//! What proxies say, as it is shown: a line for each request or connection, for people or as JSON; what was left out, and how a stream has ended. Pure.

use serde_json::Value;

use crate::output::printable;

/// What one line of a proxy is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Line {
    /// It has begun, and calls itself so.
    Begun(String),
    /// A request or a connection.
    Seen(Value),
    /// How many there were until now.
    Counts(Counts),
    /// Its time is over.
    End(Counts),
}

/// How many there were.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// That were asked for.
    pub matched: u64,
    /// Of those, more than the rate.
    pub limited: u64,
    /// Of those, lost because nobody read fast enough.
    pub lost: u64,
}

impl Counts {
    /// What was left out, for people; nothing if all is there.
    pub fn left_out(&self) -> Option<String> {
        let parts = [(self.limited, "over --max-rps"), (self.lost, "lost because they were not read fast enough")];
        let parts: Vec<String> =
            parts.iter().filter(|(count, _)| *count > 0).map(|(count, why)| format!("{count} {why}")).collect();
        (!parts.is_empty()).then(|| format!("not shown of {}: {}", self.matched, parts.join(", ")))
    }
}

/// Reads a line; the error says what it is instead.
pub fn line(text: &str) -> Result<Line, String> {
    let value: Value = serde_json::from_str(text).map_err(|_| format!("{text:?} is no line of a tap"))?;
    let number = |key: &str| value[key].as_u64().unwrap_or(0);
    let counts = || Counts { matched: number("matched"), limited: number("limited"), lost: number("lost") };
    match value["kind"].as_str() {
        Some("tap") => Ok(Line::Begun(value["name"].as_str().unwrap_or_default().to_owned())),
        Some("counts") => Ok(Line::Counts(counts())),
        Some("end") => Ok(Line::End(counts())),
        Some("request" | "connection") => Ok(Line::Seen(value)),
        _ => Err(format!("{text:?} is no line of a tap")),
    }
}

/// As JSON, with who says it.
pub fn json(proxy: &str, text: &str) -> String {
    // It was read, so that it is an object.
    let rest = text.trim_start().strip_prefix('{').unwrap_or(text);
    format!("{{\"proxy\":{},{rest}\n", Value::from(proxy))
}

/// For people: time, proxy, who has asked whom for what, what came of it.
pub fn text(proxy: &str, seen: &Value) -> String {
    let at = |pointer: &str| seen.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let number = |key: &str| seen[key].as_u64();
    let time = at("/time").split_once('T').map_or("-", |(_, time)| time.trim_end_matches('Z'));
    let mut words = vec![time.to_owned(), proxy.to_owned(), source(seen), "->".to_owned(), destination(seen)];
    if at("/kind") == "request" {
        words.push(or_dash(at("/method")));
        words.push(or_dash(at("/authority")));
        let query = at("/query");
        words.push(if query.is_empty() { or_dash(at("/path")) } else { format!("{}?{query}", at("/path")) });
        words.push(number("status").unwrap_or(0).to_string());
        if let Some(status) = number("grpcStatus") {
            words.push(format!("grpc={status}"));
        }
    } else {
        words
            .extend([at("/direction"), at("/protocol")].into_iter().filter(|word| !word.is_empty()).map(str::to_owned));
    }
    words.push(or_dash(at("/flags")));
    words.push(format!("{}ms", number("durationMs").unwrap_or(0)));
    words.push(format!("{}/{}B", number("bytesReceived").unwrap_or(0), number("bytesSent").unwrap_or(0)));
    // What everything says that went well says nothing.
    let reason = [at("/details"), at("/failure")];
    words.extend(reason.into_iter().filter(|why| !why.is_empty() && *why != "via_upstream").map(str::to_owned));
    let mut line = printable(&words.join(" ")).replace('\n', " ");
    line.push('\n');
    line
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".into() } else { text.into() }
}

/// The workload as `name.namespace`, or what else is known of it.
fn source(seen: &Value) -> String {
    let at = |key: &str| seen["source"][key].as_str().unwrap_or_default();
    named(at("workload"), at("namespace"), at("address"))
}

/// The service, or who was asked without one.
fn destination(seen: &Value) -> String {
    let at = |key: &str| seen["destination"][key].as_str().unwrap_or_default();
    let (host, namespace) = (at("service"), at("serviceNamespace"));
    match host.split_once(&format!(".{namespace}.svc.")) {
        _ if host.is_empty() => named(at("workload"), at("namespace"), at("address")),
        Some((name, _)) if !namespace.is_empty() => format!("{name}.{namespace}"),
        _ => host.to_owned(),
    }
}

fn named(workload: &str, namespace: &str, address: &str) -> String {
    match (workload.is_empty(), namespace.is_empty()) {
        (false, _) => format!("{workload}.{namespace}"),
        (true, _) if !address.is_empty() => address.to_owned(),
        (true, false) => format!("?.{namespace}"),
        (true, true) => "?".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn features_tm_16_a_request_is_a_line_and_so_is_a_connection() {
        let request = json!({
            "kind": "request", "time": "2026-01-02T03:04:05.678Z",
            "source": {"namespace": "shop", "workload": "web", "address": "10.0.0.1:1"},
            "destination": {"service": "reviews.books.svc.cluster.local", "serviceNamespace": "books"},
            "method": "GET", "authority": "reviews:9080", "path": "/api", "status": 503, "grpcStatus": 14,
            "flags": "UF,URX", "details": "upstream_reset", "failure": "refused", "durationMs": 12, "bytesReceived": 1, "bytesSent": 2,
        });
        let expected = "03:04:05.678 shop/wp-1 web.shop -> reviews.books GET reviews:9080 /api 503 grpc=14 UF,URX 12ms 1/2B upstream_reset refused\n";
        assert_eq!(text("shop/wp-1", &request), expected);
        let connection = json!({
            "kind": "connection", "time": "2026-01-02T03:04:05.678Z", "direction": "inbound", "protocol": "tcp",
            "source": {"address": "10.0.0.1:1"}, "destination": {"workload": "db", "namespace": "shop"},
            "flags": "DENY", "durationMs": 0, "bytesReceived": 0, "bytesSent": 0, "details": "no\n\u{1b}[2Jpolicy",
        });
        let expected = "03:04:05.678 node/n1 10.0.0.1:1 -> db.shop inbound tcp DENY 0ms 0/0B no \\u{1b}[2Jpolicy\n";
        assert_eq!(text("node/n1", &connection), expected);
        // Of a request that could not be read nothing is known, and a host may be no name of Kubernetes'.
        let mut other = json!({"kind": "request", "status": 400, "destination": {"service": "example.com", "serviceNamespace": "shop"}});
        assert_eq!(text("p", &other), "- p ? -> example.com - - - 400 - 0ms 0/0B\n");
        other["path"] = "/a".into();
        other["query"] = "b=c".into();
        assert_eq!(text("p", &other), "- p ? -> example.com - - /a?b=c 400 - 0ms 0/0B\n");
    }

    #[test]
    fn features_tm_16_lines_of_proxies_are_told_apart() {
        assert_eq!(line(r#"{"kind":"tap","name":"shop/wp-1"}"#), Ok(Line::Begun("shop/wp-1".into())));
        let counts = Counts { matched: 9, limited: 3, lost: 1 };
        assert_eq!(line(r#"{"kind":"counts","matched":9,"shown":5,"limited":3,"lost":1}"#), Ok(Line::Counts(counts)));
        assert_eq!(line(r#"{"kind":"end","matched":9,"limited":3,"lost":1}"#), Ok(Line::End(counts)));
        assert!(matches!(line(r#"{"kind":"request"}"#), Ok(Line::Seen(_))));
        assert!(line("panic: x").is_err() && line("[]").is_err() && line(r#"{"kind":"x"}"#).is_err());
        assert_eq!(
            counts.left_out().unwrap(),
            "not shown of 9: 3 over --max-rps, 1 lost because they were not read fast enough"
        );
        assert_eq!(Counts { matched: 9, ..Counts::default() }.left_out(), None);
        let shown = json("shop/\"x", r#"{"kind":"request","path":"/\u202e"}"#);
        assert_eq!(shown, "{\"proxy\":\"shop/\\\"x\",\"kind\":\"request\",\"path\":\"/\\u202e\"}\n");
        assert_eq!(serde_json::from_str::<Value>(&shown).unwrap()["path"], "/\u{202e}");
    }
}
