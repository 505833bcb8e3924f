//! The `forwarded` header, read strictly: a hint for telemetry, and for access only what it says of the client, of whom it may be believed.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use arcstr::ArcStr;
use mesh_core::Identity;

use super::authority::{canonical, parse_host};

/// Longest `forwarded` value that is read.
const FORWARDED_LIMIT: usize = 1024;

/// The `forwarded` header: the client's address and, for requests to a service, its hostname. A hint for telemetry; who the client is counts for access, and is to be
/// believed of a waypoint of what was asked for alone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Forwarded {
    /// The client application's address and port.
    pub client: Option<SocketAddr>,
    /// The service hostname that the client asked for.
    pub host: Option<ArcStr>,
    /// Who the client is, as a waypoint says that has checked it. An agent says nothing: who it is its certificate says. But for a client without an identity,
    /// which an agent leads through the waypoint of its own pod, it says that it is nobody.
    pub identity: Option<Claimed>,
}

/// Who a client is said to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claimed {
    /// Whose identity was checked.
    Identity(Identity),
    /// It has proved nothing.
    Nobody,
}

/// In `identity`; no identity reads so.
const NOBODY: &str = "none";

impl Claimed {
    /// The identity, if it has one.
    pub fn identity(&self) -> Option<&Identity> {
        match self {
            Self::Identity(identity) => Some(identity),
            Self::Nobody => None,
        }
    }

    fn parse(text: &str) -> Option<Self> {
        if text == NOBODY { Some(Self::Nobody) } else { text.parse().ok().map(Self::Identity) }
    }
}

impl fmt::Display for Claimed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Identity(identity) => identity.fmt(f),
            Self::Nobody => f.write_str(NOBODY),
        }
    }
}

impl Forwarded {
    /// Reads one `forwarded` value as our kind of peer writes it: one element, `for` with an IP, `host`, `identity`. Anything else reads as `None`.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let value = std::str::from_utf8(value).ok()?;
        if value.len() > FORWARDED_LIMIT {
            return None;
        }
        let mut forwarded = Self::default();
        let mut rest = value;
        loop {
            let (name, tail) = rest.split_once('=')?;
            let name = name.trim();
            let (text, tail) = match tail.strip_prefix('"') {
                Some(quoted) => {
                    // No escapes: neither an address nor a hostname needs one.
                    let (text, tail) = quoted.split_once('"')?;
                    (!text.contains('\\')).then_some((text, tail))?
                }
                None => {
                    let end = tail.find([';', ',']).unwrap_or(tail.len());
                    (tail[..end].trim(), &tail[end..])
                }
            };
            match name.to_ascii_lowercase().as_str() {
                "for" if forwarded.client.is_none() => forwarded.client = Some(parse_node(text)?),
                "host" if forwarded.host.is_none() => forwarded.host = Some(parse_host(text)?.into()),
                "identity" if forwarded.identity.is_none() => forwarded.identity = Some(Claimed::parse(text)?),
                "by" | "proto" => {}
                _ => return None,
            }
            let tail = tail.trim_start();
            match tail.strip_prefix(';') {
                Some(tail) => rest = tail,
                None if tail.is_empty() => return Some(forwarded),
                // A second element was added by a proxy on the way; which of the two is the client is not ours to guess.
                None => return None,
            }
        }
    }
}

impl fmt::Display for Forwarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        if let Some(client) = self.client {
            write!(f, "for=\"{client}\"")?;
            separator = ";";
        }
        if let Some(host) = &self.host {
            write!(f, "{separator}host={host}")?;
            separator = ";";
        }
        if let Some(identity) = &self.identity {
            write!(f, "{separator}identity=\"{identity}\"")?;
        }
        Ok(())
    }
}

fn parse_node(text: &str) -> Option<SocketAddr> {
    if let Ok(address) = SocketAddr::from_str(text) {
        return Some(canonical(address));
    }
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    let ip = match bare {
        Some(text) => IpAddr::V6(Ipv6Addr::from_str(text).ok()?),
        None => IpAddr::V4(text.parse().ok()?),
    };
    Some(canonical(SocketAddr::new(ip, 0)))
}

#[cfg(test)]
#[allow(non_snake_case)]
mod tests {
    use super::*;

    #[test]
    fn hardening_B35_forwarded_is_read_strictly() {
        let read = |value: &str| Forwarded::parse(value.as_bytes()).map(|forwarded| forwarded.to_string());
        for (value, expect) in [
            ("for=\"10.0.0.1:80\";host=web.app.svc", "for=\"10.0.0.1:80\";host=web.app.svc"),
            ("for=10.0.0.1", "for=\"10.0.0.1:0\""),
            ("FOR=\"[fd00::1]:80\"", "for=\"[fd00::1]:80\""),
            ("for=\"[::ffff:10.0.0.1]:80\"", "for=\"10.0.0.1:80\""),
            ("for=\"[fd00::1]\";proto=http;by=x", "for=\"[fd00::1]:0\""),
            (
                "identity=\"spiffe://a/ns/b/sa/c\";for=10.0.0.1;host=x",
                "for=\"10.0.0.1:0\";host=x;identity=\"spiffe://a/ns/b/sa/c\"",
            ),
            ("for=10.0.0.1;identity=none", "for=\"10.0.0.1:0\";identity=\"none\""),
        ] {
            assert_eq!(read(value).as_deref(), Some(expect), "{value}");
        }
        for value in [
            "",
            "for",
            "for=",
            "for=_hidden",
            "for=unknown",
            "for=fd00::1",
            "for=\"10.0.0.1:80",
            "for=10.0.0.1:99999",
            "for=\"10.0.0.1\\\"\"",
            "for=10.0.0.1,for=10.0.0.2",
            "for=10.0.0.1;for=10.0.0.2",
            "for=10.0.0.1;secret=1",
            "for=10.0.0.1;identity=a",
            "for=10.0.0.1;identity=",
            "for=10.0.0.1;identity=None",
            "for=10.0.0.1;identity=\"spiffe://a/ns/b/sa/c,spiffe://a/ns/b/sa/d\"",
            "for=10.0.0.1;identity=\"spiffe://a/ns/b/sa/c\";identity=\"spiffe://a/ns/b/sa/c\"",
            "for=10.0.0.1;host=a b",
            "for=10.0.0.1;host=-a",
            "for=10.0.0.1;",
            &format!("for=10.0.0.1;host={}", "a".repeat(300)),
            &format!("for=\"{}\"", "1".repeat(8192)),
        ] {
            assert_eq!(read(value), None, "{value}");
        }
    }
}
