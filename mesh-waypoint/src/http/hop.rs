//! Header fields that belong to one connection: taken away before a message goes on, put back where the next connection needs them.

use http::header::{CONNECTION, HOST, TE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Version};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// What the fields of one connection said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// Another protocol is asked for, or agreed to.
    pub upgrade: Option<HeaderValue>,
    /// Trailers are understood.
    pub trailers: bool,
}

/// Takes away what belongs to one connection, and what the message says does.
pub fn strip(headers: &mut HeaderMap) -> Said {
    let mut said = Said::default();
    if headers.contains_key(TE) {
        let wants = |value: &HeaderValue| value.as_bytes().split(|b| *b == b',').any(|t| is(t, "trailers"));
        said.trailers = headers.get_all(TE).iter().any(wants);
        headers.remove(TE);
    }
    let upgrade = headers.remove(UPGRADE);
    if headers.contains_key(CONNECTION) {
        let named: Vec<_> = headers.get_all(CONNECTION).iter().cloned().collect();
        headers.remove(CONNECTION);
        for token in named.iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b',')) {
            if is(token, "upgrade") {
                said.upgrade = upgrade.clone();
            } else if !is(token, "close") && !is(token, "keep-alive") {
                // Not what says whom the message is for or where it ends: to name that is an attack.
                let name = HeaderName::from_bytes(token.trim_ascii());
                if let Ok(name) = name
                    && name != HOST
                    && name != http::header::CONTENT_LENGTH
                {
                    headers.remove(name);
                }
            }
        }
    }
    headers.remove(TRANSFER_ENCODING);
    headers.remove(KEEP_ALIVE);
    headers.remove(PROXY_CONNECTION);
    said
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
        assert_eq!(strip(&mut map), Said { upgrade: None, trailers: true });
        assert_eq!(map, headers(&[("host", "a"), ("x-kept", "1"), ("content-length", "3")]));
    }

    #[test]
    fn an_upgrade_needs_both_fields_and_http_1() {
        let mut map = headers(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]);
        let said = strip(&mut map);
        assert!(map.is_empty());
        restore(&mut map, &said, Version::HTTP_11);
        assert_eq!(map, headers(&[("upgrade", "websocket"), ("connection", "upgrade")]));
        let mut map = HeaderMap::new();
        restore(&mut map, &said, Version::HTTP_2);
        assert!(map.is_empty());
    }
}
