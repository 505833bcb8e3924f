//! Header fields that belong to one connection: taken away before a message goes on, put back where the next connection needs them.

use http::header::{CONNECTION, TE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Version};

use super::fields::{ENVOY, Fields, MESH};
use super::guard::is_websocket;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
/// What a message says of where it comes from, whom it is for, who sends it and where it ends goes on, whatever `Connection` says: to name one of these is an
/// attack on those who believe them. So are the fields of other proxies, by how they begin.
const KEPT: [&str; 14] = [
    "host",
    "content-length",
    "content-type",
    "content-encoding",
    "authorization",
    "cookie",
    "forwarded",
    "via",
    "baggage",
    "traceparent",
    "tracestate",
    "b3",
    "x-request-id",
    "x-real-ip",
];
const KEPT_PREFIXES: [&str; 6] = ["x-forwarded-", ENVOY, MESH, "x-b3-", "grpc-", "sec-"];
/// What may not stand behind a body, for it would change what was decided by what stood before it.
const NO_TRAILERS: [&str; 18] = [
    "host",
    "content-length",
    "content-type",
    "content-encoding",
    "content-range",
    "transfer-encoding",
    "te",
    "trailer",
    "connection",
    "keep-alive",
    "proxy-connection",
    "upgrade",
    "authorization",
    "proxy-authorization",
    "cookie",
    "set-cookie",
    "forwarded",
    "expect",
];

/// What the fields of one connection said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// Another protocol is asked for, or agreed to.
    pub upgrade: Option<HeaderValue>,
    /// Trailers are understood.
    pub trailers: bool,
}

/// Takes away what belongs to one connection, and what the message says does. It has these fields.
pub fn strip(headers: &mut HeaderMap, has: Fields) -> Said {
    let mut said = Said::default();
    if !has.any(Fields::TE.with(Fields::UPGRADE).with(Fields::CONNECTION).with(Fields::OF_HOP)) {
        return said;
    }
    if has.any(Fields::TE) {
        let wants = |value: &HeaderValue| value.as_bytes().split(|b| *b == b',').any(|t| is(t, "trailers"));
        said.trailers = headers.get_all(TE).iter().any(wants);
        headers.remove(TE);
    }
    let upgrade = headers.remove(UPGRADE);
    if has.any(Fields::CONNECTION) {
        let named: Vec<_> = headers.get_all(CONNECTION).iter().cloned().collect();
        headers.remove(CONNECTION);
        for token in named.iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b',')) {
            if is(token, "upgrade") {
                said.upgrade = upgrade.clone().filter(|upgrade| is_websocket(upgrade.as_bytes()));
            } else if !is(token, "close")
                && !is(token, "keep-alive")
                && let Ok(name) = HeaderName::from_bytes(token.trim_ascii())
                && !is_kept(name.as_str())
            {
                headers.remove(name);
            }
        }
    }
    headers.remove(TRANSFER_ENCODING);
    headers.remove(KEEP_ALIVE);
    headers.remove(PROXY_CONNECTION);
    headers.remove(HTTP2_SETTINGS);
    said
}

/// Takes away of what follows a body what may not stand there.
pub fn strip_trailers(trailers: &mut HeaderMap) {
    let is_bad =
        |name: &str| NO_TRAILERS.contains(&name) || KEPT_PREFIXES[..3].iter().any(|start| name.starts_with(start));
    remove(trailers, is_bad);
}

/// Takes away fields by their names.
pub fn remove(headers: &mut HeaderMap, is_one: impl Fn(&str) -> bool) {
    let names: Vec<_> = headers.keys().filter(|name| is_one(name.as_str())).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

fn is_kept(name: &str) -> bool {
    KEPT.contains(&name) || KEPT_PREFIXES.iter().any(|start| name.starts_with(start))
}

/// Puts back what the next connection is to be told.
pub fn restore(headers: &mut HeaderMap, said: &Said, version: Version) {
    if said.trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    if let (Some(upgrade), Version::HTTP_11) = (&said.upgrade, version) {
        headers.insert(UPGRADE, upgrade.clone());
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    }
}

fn is(token: &[u8], word: &str) -> bool {
    token.trim_ascii().eq_ignore_ascii_case(word.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strip_all(map: &mut HeaderMap) -> Said {
        strip(map, Fields::of(map))
    }

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let line = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        lines.iter().map(line).collect()
    }

    #[test]
    fn what_belongs_to_one_connection_does_not_go_on() {
        let mut map = headers(&[
            ("host", "a"),
            ("connection", "X-Secret, close, host, content-length"),
            ("x-secret", "1"),
            ("x-kept", "1"),
            ("content-length", "3"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("te", "gzip, trailers"),
        ]);
        assert_eq!(strip_all(&mut map), Said { upgrade: None, trailers: true });
        assert_eq!(map, headers(&[("host", "a"), ("x-kept", "1"), ("content-length", "3")]));
    }

    #[test]
    fn hardening_B162_connection_cannot_take_away_what_others_believe() {
        let names = "x-forwarded-for, X-Forwarded-Client-Cert, forwarded, x-request-id, authorization, cookie, host, x-mesh-hops, traceparent, x-envoy-attempt-count, x-own";
        let mut map = HeaderMap::new();
        map.insert("connection", HeaderValue::from_static(names));
        for name in names.split(", ") {
            map.insert(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_static("1"));
        }
        strip_all(&mut map);
        assert_eq!(map.len(), 10, "{map:?}");
        assert!(!map.contains_key("x-own"));
    }

    #[test]
    fn what_stands_behind_a_body_is_not_what_stands_before_it() {
        let mut map = headers(&[
            ("content-length", "1"),
            ("authorization", "x"),
            ("x-forwarded-for", "1"),
            ("grpc-status", "0"),
            ("x-sum", "1"),
        ]);
        strip_trailers(&mut map);
        assert_eq!(map, headers(&[("grpc-status", "0"), ("x-sum", "1")]));
    }

    #[test]
    fn hardening_B161_http_2_is_not_agreed_to() {
        for value in ["h2c", "H2C", "websocket, h2c", "TLS/1.2", "SPDY/3.1", "tcp", "websockets", ""] {
            let mut map = headers(&[("connection", "Upgrade, HTTP2-Settings"), ("http2-settings", "AAMAAABkAAQAAP__")]);
            map.insert("upgrade", HeaderValue::from_static(value));
            assert_eq!(strip_all(&mut map), Said::default(), "{value}");
            assert!(map.is_empty());
        }
    }

    #[test]
    fn an_upgrade_needs_both_fields_and_http_1() {
        let mut map = headers(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]);
        let said = strip_all(&mut map);
        assert!(map.is_empty());
        restore(&mut map, &said, Version::HTTP_11);
        assert_eq!(map, headers(&[("upgrade", "websocket"), ("connection", "upgrade")]));
        let mut map = HeaderMap::new();
        restore(&mut map, &said, Version::HTTP_2);
        assert!(map.is_empty());
    }
}
