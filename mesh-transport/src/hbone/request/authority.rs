//! Where a CONNECT wants to go: the strict reader of `:authority`, and the check that a tunnel leads to its own pod.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use arcstr::ArcStr;

/// Longest host name in an authority, as in DNS.
const HOST_LIMIT: usize = 253;

/// Where a CONNECT wants to go.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Authority {
    /// An address; IPv4 in IPv6 form has become IPv4.
    Address(SocketAddr),
    /// A service hostname, in lower case, without trailing dot.
    Host(ArcStr, u16),
}

/// Ends the hosts that stand for an address which a stranger asks for. Nobody can be called so.
const OF_STRANGER: &str = ".stranger.undermesh.invalid";

impl Authority {
    /// An address that is asked for by who has no identity, of the waypoint before it. As a host that no service has: a waypoint that knows nothing of strangers refuses it,
    /// and does not take him for the pod whose tunnel he comes in.
    pub fn of_stranger(address: SocketAddr) -> Self {
        let hex = match address.ip().to_canonical() {
            IpAddr::V4(ip) => format!("{:08x}", ip.to_bits()),
            IpAddr::V6(ip) => format!("{:032x}", ip.to_bits()),
        };
        Self::Host(format!("{hex}{OF_STRANGER}").into(), address.port())
    }

    /// The address, if it is one of [`Authority::of_stranger`].
    pub fn stranger_s(&self) -> Option<SocketAddr> {
        let Self::Host(host, port) = self else { return None };
        let hex = host.strip_suffix(OF_STRANGER)?;
        if !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let ip = match hex.len() {
            8 => IpAddr::from(u32::from_str_radix(hex, 16).ok()?.to_be_bytes()),
            32 => IpAddr::from(u128::from_str_radix(hex, 16).ok()?.to_be_bytes()),
            _ => return None,
        };
        Some(canonical(SocketAddr::new(ip, *port)))
    }

    /// The port.
    pub fn port(&self) -> u16 {
        match self {
            Self::Address(address) => address.port(),
            Self::Host(_, port) => *port,
        }
    }

    /// Reads `ip:port`, `[ip6]:port` or `host:port`. The port is 1 to 65535 in plain decimal.
    pub fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        if port.is_empty() || port.len() > 5 || !port.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let port: u16 = port.parse().ok().filter(|port| *port != 0)?;
        if let Some(inner) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            let ip = Ipv6Addr::from_str(inner).ok()?;
            return Some(Self::Address(canonical(SocketAddr::new(IpAddr::V6(ip), port))));
        }
        if host.contains(':') {
            return None;
        }
        if let Ok(ip) = host.parse() {
            return Some(Self::Address(SocketAddr::new(IpAddr::V4(ip), port)));
        }
        let host = host.strip_suffix('.').unwrap_or(host);
        // What ends in a number is a misspelt address, never a hostname.
        let numeric = host.rsplit('.').next().is_some_and(|label| {
            let hex = label.strip_prefix("0x").or_else(|| label.strip_prefix("0X"));
            label.bytes().all(|byte| byte.is_ascii_digit())
                || hex.is_some_and(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
        });
        let host = parse_host(host).filter(|_| !numeric)?;
        Some(Self::Host(host.to_ascii_lowercase().into(), port))
    }

    /// Checks an address authority against the address the tunnel arrived at: a pod's tunnel port leads to that pod and nowhere else.
    /// Without one any address will do that is not a special one.
    pub fn check_address(&self, local: Option<IpAddr>) -> Result<(), AuthorityProblem> {
        let Self::Address(address) = self else { return Ok(()) };
        let ip = address.ip();
        if local.is_some_and(|local| ip == local.to_canonical()) {
            return Ok(());
        }
        let special = ip.is_loopback()
            || ip.is_unspecified()
            || ip.is_multicast()
            || match ip {
                IpAddr::V4(ip) => ip.is_broadcast() || ip.is_link_local(),
                IpAddr::V6(ip) => ip.is_unicast_link_local(),
            };
        match (special, local) {
            (true, _) => Err(AuthorityProblem::SpecialAddress),
            (false, Some(_)) => Err(AuthorityProblem::AddressMismatch),
            (false, None) => Ok(()),
        }
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Host(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

/// Why an address authority is answered 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityProblem {
    /// Another pod's address: somebody tries to use this tunnel as a relay.
    #[error("ip_mismatch")]
    AddressMismatch,
    /// Loopback, link-local, multicast or unspecified.
    #[error("special_address")]
    SpecialAddress,
}

pub(super) fn parse_host(text: &str) -> Option<&str> {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    (text.len() <= HOST_LIMIT && !text.is_empty() && text.split('.').all(label)).then_some(text)
}

/// An IPv4 address written as IPv6 is the IPv4 address.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_stranger_asks_for_is_a_host_that_reads_back_as_an_address() {
        for (address, host) in [
            ("198.18.0.1:80", "c6120001.stranger.undermesh.invalid:80"),
            ("[::ffff:198.18.0.1]:80", "c6120001.stranger.undermesh.invalid:80"),
            ("[fd00:198::1]:443", "fd000198000000000000000000000001.stranger.undermesh.invalid:443"),
        ] {
            let address: SocketAddr = address.parse().unwrap();
            let authority = Authority::of_stranger(address);
            assert_eq!(authority.to_string(), host);
            let read = Authority::parse(host).unwrap();
            assert_eq!((read.stranger_s(), read), (Some(canonical(address)), authority));
        }
        for other in [
            "198.18.0.1:80",
            "web.app.svc:80",
            "c6120001.stranger.undermesh.invalid.com:80",
            "c612001.stranger.undermesh.invalid:80",
            "c61200010.stranger.undermesh.invalid:80",
            "x6120001.stranger.undermesh.invalid:80",
            "a.c6120001.stranger.undermesh.invalid:80",
        ] {
            assert_eq!(Authority::parse(other).unwrap().stranger_s(), None, "{other}");
        }
    }
}
