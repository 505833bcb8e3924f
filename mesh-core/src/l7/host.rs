//! Names of hosts: what a request asks for, in one spelling, and tables of whole names and wildcards that are searched from the most specific one.

use std::fmt;

use arcstr::ArcStr;
use hashbrown::HashMap;

/// Longest name of a host, without its final dot.
const LONGEST: usize = 253;
/// A colon and the longest port.
const PORT: usize = 6;

/// Why an authority is refused; the answer is 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum BadAuthority {
    /// There is none.
    #[error("no host is asked for")]
    Empty,
    /// More than 253 bytes.
    #[error("the name of the host is longer than 253 bytes")]
    TooLong,
    /// With something that is not of a name: userinfo, spaces, lists, escapes.
    #[error("not the name of a host")]
    NotAHost,
    /// The port is no port.
    #[error("the host has a port that is none")]
    NotAPort,
}

/// The host and port that a request asks for, in one spelling: lower case, no final dot, the port without zeros in front.
#[derive(Clone)]
pub struct Authority {
    text: String,
    host: usize,
    port: Option<u16>,
}

impl Authority {
    /// Reads `:authority`, or `Host`. Userinfo and lists are refused; an empty port is none.
    pub fn parse(text: &str) -> Result<Self, BadAuthority> {
        if text.is_empty() {
            return Err(BadAuthority::Empty);
        }
        // Of an address of IPv6 the port comes after the bracket.
        let colon = match text.strip_prefix('[') {
            Some(rest) => rest.find(']').map(|end| end + 2).filter(|end| *end < text.len()),
            None => text.bytes().position(|byte| byte == b':'),
        };
        let (host, port) = match colon {
            None => (text, ""),
            Some(at) => {
                let (host, port) = text.split_at(at);
                (host, port.strip_prefix(':').ok_or(BadAuthority::NotAHost)?)
            }
        };
        let port = match port {
            "" => None,
            digits if digits.bytes().all(|b| b.is_ascii_digit()) => {
                Some(digits.parse().ok().filter(|port| *port != 0).ok_or(BadAuthority::NotAPort)?)
            }
            _ => return Err(BadAuthority::NotAPort),
        };
        let host = host.strip_suffix('.').unwrap_or(host);
        if host.len() > LONGEST {
            return Err(BadAuthority::TooLong);
        }
        if !is_host(host) {
            return Err(BadAuthority::NotAHost);
        }
        let mut authority = Self { text: String::with_capacity(host.len() + PORT), host: host.len(), port };
        authority.text.push_str(host);
        authority.text.make_ascii_lowercase();
        if let Some(port) = port {
            authority.append(port);
        }
        Ok(authority)
    }

    fn append(&mut self, port: u16) {
        let mut divisor = 10_000;
        self.text.push(':');
        while divisor > 1 && port < divisor {
            divisor /= 10;
        }
        while divisor > 0 {
            self.text.push(char::from(b'0' + (port / divisor % 10) as u8));
            divisor /= 10;
        }
    }

    /// The host alone; an address of IPv6 in its brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.text[..self.host]
    }

    /// The host, and the port if one was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The port that was written. What the client says of a port decides nothing: the listener knows better.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        self.port
    }
}

fn is_host(host: &str) -> bool {
    if let Some(address) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return address.parse::<std::net::Ipv6Addr>().is_ok();
    }
    let of_name = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    // No label may be empty.
    let mut last = b'.';
    for byte in host.bytes() {
        let is_good = if byte == b'.' { last != b'.' } else { of_name(byte) };
        if !is_good {
            return false;
        }
        last = byte;
    }
    last != b'.'
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Authority({})", self.as_str())
    }
}

/// Which hosts are meant.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HostPattern {
    /// This one, in lower case.
    Exact(ArcStr),
    /// Every host below this one, however deep; not itself.
    Below(ArcStr),
    /// Every host.
    Any,
}

impl HostPattern {
    /// Reads `*`, `*.example.com` or `a.example.com`; `None` if it is none of them.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let name = |text: &str| {
            let text = text.strip_suffix('.').unwrap_or(text);
            (text.len() <= LONGEST && is_host(text)).then(|| ArcStr::from(text.to_ascii_lowercase()))
        };
        match (text, text.strip_prefix("*.")) {
            ("*", _) => Some(Self::Any),
            (_, Some(parent)) => name(parent).map(Self::Below),
            (text, None) => name(text).map(Self::Exact),
        }
    }

    /// Whether it means `host`, which is in lower case.
    #[must_use]
    pub fn matches(&self, host: &str) -> bool {
        match self {
            Self::Exact(name) => name == host,
            Self::Below(parent) => {
                host.strip_suffix(parent.as_str()).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
            }
            Self::Any => true,
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Below(parent) => write!(f, "*.{parent}"),
            Self::Any => f.write_str("*"),
        }
    }
}

/// Values by the hosts that they are for. Tables of virtual hosts use it, and so may whoever has several listeners on one port.
#[derive(Clone, Debug)]
pub struct HostIndex<T> {
    exact: HashMap<ArcStr, T>,
    below: HashMap<ArcStr, T>,
    any: Option<T>,
}

impl<T> Default for HostIndex<T> {
    fn default() -> Self {
        Self { exact: HashMap::default(), below: HashMap::default(), any: None }
    }
}

impl<T> HostIndex<T> {
    /// The value of exactly this pattern, made if there is none.
    pub fn entry(&mut self, pattern: &HostPattern) -> &mut T
    where
        T: Default,
    {
        match pattern {
            HostPattern::Exact(name) => self.exact.entry(name.clone()).or_default(),
            HostPattern::Below(parent) => self.below.entry(parent.clone()).or_default(),
            HostPattern::Any => self.any.get_or_insert_default(),
        }
    }

    /// The value of exactly this pattern.
    #[must_use]
    pub fn get(&self, pattern: &HostPattern) -> Option<&T> {
        match pattern {
            HostPattern::Exact(name) => self.exact.get(name),
            HostPattern::Below(parent) => self.below.get(parent),
            HostPattern::Any => self.any.as_ref(),
        }
    }

    /// The values that are for `host` (in lower case), the most specific first.
    pub fn find<'a, 'h>(&'a self, host: &'h str) -> impl Iterator<Item = &'a T> + use<'a, 'h, T> {
        let exact = self.exact.get(host);
        let dots = if self.below.is_empty() { "" } else { host };
        let below = dots.match_indices('.').filter_map(|(at, _)| self.below.get(&host[at + 1..]));
        exact.into_iter().chain(below).chain(&self.any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardening_B157_an_authority_has_one_spelling_or_is_refused() {
        for (text, expected) in [
            ("a.example.com", Ok("a.example.com")),
            ("A.Example.COM", Ok("a.example.com")),
            ("a.example.com.", Ok("a.example.com")),
            ("a.example.com.:080", Ok("a.example.com:80")),
            ("a:8", Ok("a:8")),
            ("a:65535", Ok("a:65535")),
            ("a:", Ok("a")),
            ("198.18.0.1:10000", Ok("198.18.0.1:10000")),
            ("[FD00::1]:80", Ok("[fd00::1]:80")),
            ("[fd00::1]", Ok("[fd00::1]")),
            ("", Err(BadAuthority::Empty)),
            (".", Err(BadAuthority::NotAHost)),
            (":80", Err(BadAuthority::NotAHost)),
            ("a..", Err(BadAuthority::NotAHost)),
            ("a..b", Err(BadAuthority::NotAHost)),
            ("user@a", Err(BadAuthority::NotAHost)),
            ("user:80@a", Err(BadAuthority::NotAPort)),
            ("a b", Err(BadAuthority::NotAHost)),
            ("a,b", Err(BadAuthority::NotAHost)),
            ("a/b", Err(BadAuthority::NotAHost)),
            ("*.a", Err(BadAuthority::NotAHost)),
            ("a%2eb", Err(BadAuthority::NotAHost)),
            ("ä", Err(BadAuthority::NotAHost)),
            ("[fd00::1", Err(BadAuthority::NotAHost)),
            ("[fd00::1]80", Err(BadAuthority::NotAHost)),
            ("[fd00::1%eth0]", Err(BadAuthority::NotAHost)),
            ("fd00::1", Err(BadAuthority::NotAPort)),
            ("a:0", Err(BadAuthority::NotAPort)),
            ("a:65536", Err(BadAuthority::NotAPort)),
            ("a:+8", Err(BadAuthority::NotAPort)),
        ] {
            let authority = Authority::parse(text);
            assert_eq!(authority.as_ref().map(Authority::as_str).map_err(|e| *e), expected, "{text}");
        }
        let longest = vec!["a".repeat(61); 4].join(".") + ".a.bcd";
        assert_eq!(longest.len(), 253);
        assert_eq!(Authority::parse(&format!("{longest}.:65535")).unwrap().host(), longest);
        assert_eq!(Authority::parse(&format!("{longest}e")).unwrap_err(), BadAuthority::TooLong);
    }

    #[test]
    fn the_most_specific_name_comes_first() {
        let mut index = HostIndex::<Vec<&str>>::default();
        for pattern in ["*", "*.com", "*.example.com", "a.example.com", "b.a.example.com"] {
            index.entry(&HostPattern::parse(pattern).unwrap()).push(pattern);
        }
        for (host, expected) in [
            ("a.example.com", vec!["a.example.com", "*.example.com", "*.com", "*"]),
            ("x.a.example.com", vec!["*.example.com", "*.com", "*"]),
            ("example.com", vec!["*.com", "*"]),
            ("xexample.com", vec!["*.com", "*"]),
            ("com", vec!["*"]),
            ("[fd00::1]", vec!["*"]),
        ] {
            let found: Vec<_> = index.find(host).flatten().copied().collect();
            assert_eq!(found, expected, "{host}");
            for pattern in expected {
                assert!(HostPattern::parse(pattern).unwrap().matches(host), "{pattern} {host}");
            }
        }
        assert!(!HostPattern::parse("*.example.com").unwrap().matches("example.com"));
        for other in ["xexample.com", "xxexample.com", ".example.com"] {
            assert!(!HostPattern::parse("*.example.com").unwrap().matches(other), "{other}");
        }
        for bad in ["*a.com", "a.*", "**", "*.", "", "a b", "*.*"] {
            assert_eq!(HostPattern::parse(bad), None, "{bad}");
        }
    }
}
