//! Which of the fields that anybody here looks for a message has, found out in one pass over their names: to ask the map for each costs several times as much, and
//! most messages have few of them. Made where a message is read; used by whoever would ask for one of these.

use http::HeaderMap;

/// What names of fields begin with that only the mesh sets.
pub const MESH: &str = "x-mesh-";
/// By these the proxies of a mesh are told what to do, and by nobody outside of it.
pub const ENVOY: &str = "x-envoy-";

/// A set of fields. A message that has one of the set may have lost it since; one that is not in it was not there when the message was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fields(u32);

impl Fields {
    /// `te`.
    pub const TE: Self = Self(1);
    /// `upgrade`.
    pub const UPGRADE: Self = Self(1 << 1);
    /// `connection`.
    pub const CONNECTION: Self = Self(1 << 2);
    /// Others of one connection: `transfer-encoding`, `keep-alive`, `proxy-connection`, `http2-settings`.
    pub const OF_HOP: Self = Self(1 << 3);
    /// `expect`.
    pub const EXPECT: Self = Self(1 << 4);
    /// `content-length` or `transfer-encoding`.
    pub const LENGTH: Self = Self(1 << 5);
    /// `x-mesh-*`.
    pub const MESH: Self = Self(1 << 6);
    /// `x-envoy-*`.
    pub const ENVOY: Self = Self(1 << 7);
    /// `x-forwarded-client-cert`.
    pub const CLIENT_CERT: Self = Self(1 << 8);
    /// `grpc-status`.
    pub const GRPC_STATUS: Self = Self(1 << 9);
    /// One whose name has an underscore.
    pub const UNDERSCORE: Self = Self(1 << 10);

    /// `cookie`.
    pub const COOKIE: Self = Self(1 << 11);

    /// Those of a message.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Self {
        headers.keys().fold(Self::default(), |all, name| all.with(Self::named(name.as_str())))
    }

    /// Both sets.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether there is one of these.
    #[must_use]
    pub const fn any(self, of: Self) -> bool {
        self.0 & of.0 != 0
    }

    fn named(name: &str) -> Self {
        match name {
            "te" => Self::TE,
            "upgrade" => Self::UPGRADE,
            "cookie" => Self::COOKIE,
            "connection" => Self::CONNECTION,
            "transfer-encoding" => Self::OF_HOP.with(Self::LENGTH),
            "keep-alive" | "proxy-connection" | "http2-settings" => Self::OF_HOP,
            "expect" => Self::EXPECT,
            "content-length" => Self::LENGTH,
            "x-forwarded-client-cert" => Self::CLIENT_CERT,
            "grpc-status" => Self::GRPC_STATUS,
            other => Self::begins(other),
        }
    }

    /// What is told by how it begins, or by a byte of it.
    fn begins(name: &str) -> Self {
        let kind = match name {
            name if name.starts_with(MESH) => Self::MESH,
            name if name.starts_with(ENVOY) => Self::ENVOY,
            _ => Self::default(),
        };
        if name.bytes().any(|byte| byte == b'_') { kind.with(Self::UNDERSCORE) } else { kind }
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    #[test]
    fn each_field_is_told_by_its_name() {
        for (name, expected) in [
            ("te", Fields::TE),
            ("upgrade", Fields::UPGRADE),
            ("cookie", Fields::COOKIE),
            ("connection", Fields::CONNECTION),
            ("transfer-encoding", Fields::OF_HOP.with(Fields::LENGTH)),
            ("keep-alive", Fields::OF_HOP),
            ("proxy-connection", Fields::OF_HOP),
            ("http2-settings", Fields::OF_HOP),
            ("expect", Fields::EXPECT),
            ("content-length", Fields::LENGTH),
            ("x-mesh-hops", Fields::MESH),
            ("x-mesh-a_b", Fields::MESH.with(Fields::UNDERSCORE)),
            ("x-envoy-ratelimited", Fields::ENVOY),
            ("x-forwarded-client-cert", Fields::CLIENT_CERT),
            ("grpc-status", Fields::GRPC_STATUS),
            ("x_user", Fields::UNDERSCORE),
            ("x-mesh", Fields::default()),
            ("x-forwarded-for", Fields::default()),
            ("accept", Fields::default()),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static("1"));
            assert_eq!(Fields::of(&headers), expected, "{name}");
            headers.insert("host", HeaderValue::from_static("a"));
            assert_eq!(Fields::of(&headers), expected, "{name} and host");
        }
    }
}
