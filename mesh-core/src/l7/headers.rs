//! Changes of headers, on the way there or back.

use http::{HeaderMap, HeaderName, HeaderValue};

/// How many waypoints a request has passed: what has passed too many goes in a circle.
pub const HOPS: HeaderName = HeaderName::from_static("x-mesh-hops");

/// Whether a header may be changed by a rule. Not those that say where a message ends or what is true of one connection: a changed one would let a
/// message be read as two. Nor the count of waypoints, without which nothing ends a circle of rules. The host is changed by a rewrite.
#[must_use]
pub fn is_changeable(name: &HeaderName) -> bool {
    use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE};
    let fixed = [CONNECTION, CONTENT_LENGTH, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE];
    !fixed.contains(name) && *name != HOPS && !["keep-alive", "proxy-connection"].contains(&name.as_str())
}

/// Whether a request can be told by a header. Those of one connection are another's, or gone, before anybody compares them, and the host has a condition
/// of its own.
#[must_use]
pub fn is_matchable(name: &HeaderName) -> bool {
    use http::header::{CONNECTION, HOST, TRANSFER_ENCODING};
    ![CONNECTION, HOST, TRANSFER_ENCODING].contains(name)
        && !["keep-alive", "proxy-connection"].contains(&name.as_str())
}

/// What is changed: first what is taken away, then what is replaced, then what is appended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct HeaderChanges {
    /// Replaced, or made.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Appended as a line of their own.
    pub add: Vec<(HeaderName, HeaderValue)>,
    /// Taken away, all lines.
    pub remove: Vec<HeaderName>,
}

impl HeaderChanges {
    /// Nothing is changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.add.is_empty() && self.remove.is_empty()
    }

    /// Changes `headers`. A header that there is no room for (32,768 of them) is left out.
    pub fn apply(&self, headers: &mut HeaderMap) {
        for name in &self.remove {
            headers.remove(name);
        }
        for (name, value) in &self.set {
            _ = headers.try_insert(name.clone(), value.clone());
        }
        for (name, value) in &self.add {
            _ = headers.try_append(name.clone(), value.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_messages_and_the_mesh_go_by_is_not_changed() {
        for (name, expected) in [
            ("x-own", true),
            ("x-mesh", true),
            ("expect", true),
            ("x-mesh-hops", false),
            ("host", false),
            ("content-length", false),
            ("transfer-encoding", false),
            ("keep-alive", false),
        ] {
            assert_eq!(is_changeable(&HeaderName::from_static(name)), expected, "{name}");
        }
    }

    #[test]
    fn removed_then_set_then_added() {
        let pair = |name: &'static str, value| (HeaderName::from_static(name), HeaderValue::from_static(value));
        let changes = HeaderChanges {
            set: vec![pair("a", "1"), pair("b", "1")],
            add: vec![pair("b", "2"), pair("c", "2")],
            remove: vec![HeaderName::from_static("a"), HeaderName::from_static("d")],
        };
        let mut headers: HeaderMap =
            [pair("a", "0"), pair("b", "0"), pair("c", "0"), pair("d", "0")].into_iter().collect();
        headers.append("b", HeaderValue::from_static("00"));
        changes.apply(&mut headers);
        let all = |name: &str| headers.get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>().join(" ");
        assert_eq!([all("a"), all("b"), all("c"), all("d")], ["1", "1 2", "0 2", ""]);
        assert!(HeaderChanges::default().is_empty() && !changes.is_empty());
    }
}
