//! What a CONNECT request and its answer carry, and the strict readers of those header values.
//!
//! Header values come from an authenticated but not trusted peer: everything is bounded, nothing here decides access.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use arcstr::ArcStr;

/// Longest baggage value that is read; a longer one is dropped whole.
pub const BAGGAGE_LIMIT: usize = 4096;
/// Most members of a baggage value.
pub const BAGGAGE_MEMBERS: usize = 64;
/// Longest value of one baggage member: these become metric labels.
pub const BAGGAGE_VALUE_LIMIT: usize = 253;
/// Longest `forwarded` value that is read.
pub const FORWARDED_LIMIT: usize = 1024;
/// Longest host name in an authority, as in DNS.
pub const HOST_LIMIT: usize = 253;

/// Labels of a workload that travel with a request or its answer, for telemetry only.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Baggage {
    /// `k8s.cluster.name`
    pub cluster: Option<ArcStr>,
    /// `k8s.namespace.name`
    pub namespace: Option<ArcStr>,
    /// The kind that the workload's name was given under.
    pub workload_kind: WorkloadKind,
    /// `k8s.{deployment,cronjob,pod,job}.name`
    pub workload: Option<ArcStr>,
    /// `service.name`: the canonical service.
    pub service: Option<ArcStr>,
    /// `service.version`: the canonical revision.
    pub version: Option<ArcStr>,
    /// `cloud.region`
    pub region: Option<ArcStr>,
    /// `cloud.availability_zone`
    pub zone: Option<ArcStr>,
}

/// The kinds of workload that baggage knows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WorkloadKind {
    /// A Deployment.
    #[default]
    Deployment,
    /// A CronJob.
    CronJob,
    /// A bare Pod.
    Pod,
    /// A Job.
    Job,
}

impl WorkloadKind {
    /// The word used in the baggage key.
    pub fn word(self) -> &'static str {
        match self {
            Self::Deployment => "deployment",
            Self::CronJob => "cronjob",
            Self::Pod => "pod",
            Self::Job => "job",
        }
    }
}

impl Baggage {
    /// Reads a header value. Unknown and malformed members are ignored, values are bounded; a value past [`BAGGAGE_LIMIT`] reads as empty.
    pub fn parse(value: &[u8]) -> Self {
        let mut baggage = Self::default();
        let Ok(value) = std::str::from_utf8(value) else { return baggage };
        if value.len() > BAGGAGE_LIMIT {
            return baggage;
        }
        for member in value.split(',').take(BAGGAGE_MEMBERS) {
            let member = member.split(';').next().unwrap_or_default();
            let Some((key, value)) = member.split_once('=') else { continue };
            let value = value.trim();
            if value.is_empty()
                || value.len() > BAGGAGE_VALUE_LIMIT
                || !value.bytes().all(|byte| byte.is_ascii_graphic())
            {
                continue;
            }
            let mut workload = |kind| {
                baggage.workload_kind = kind;
                baggage.workload = Some(value.into());
            };
            match key.trim() {
                "k8s.deployment.name" => workload(WorkloadKind::Deployment),
                "k8s.cronjob.name" => workload(WorkloadKind::CronJob),
                "k8s.pod.name" => workload(WorkloadKind::Pod),
                "k8s.job.name" => workload(WorkloadKind::Job),
                "k8s.cluster.name" => baggage.cluster = Some(value.into()),
                "k8s.namespace.name" => baggage.namespace = Some(value.into()),
                "service.name" => baggage.service = Some(value.into()),
                "service.version" => baggage.version = Some(value.into()),
                "cloud.region" => baggage.region = Some(value.into()),
                "cloud.availability_zone" => baggage.zone = Some(value.into()),
                _ => {}
            }
        }
        baggage
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        *self == Self { workload_kind: self.workload_kind, ..Self::default() }
    }
}

/// The header value: a comma list without empty members, in ztunnel's order.
impl fmt::Display for Baggage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.workload_kind {
            WorkloadKind::Deployment => "k8s.deployment.name",
            WorkloadKind::CronJob => "k8s.cronjob.name",
            WorkloadKind::Pod => "k8s.pod.name",
            WorkloadKind::Job => "k8s.job.name",
        };
        let members = [
            ("k8s.cluster.name", &self.cluster),
            ("k8s.namespace.name", &self.namespace),
            (kind, &self.workload),
            ("service.name", &self.service),
            ("service.version", &self.version),
            ("cloud.region", &self.region),
            ("cloud.availability_zone", &self.zone),
        ];
        let mut separator = "";
        for (key, value) in members {
            if let Some(value) = value.as_ref().filter(|value| !value.is_empty()) {
                write!(f, "{separator}{key}={value}")?;
                separator = ",";
            }
        }
        Ok(())
    }
}

/// The `forwarded` header: the client's address and, for requests to a service, its hostname. A hint for telemetry, never for access.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forwarded {
    /// The client application's address and port.
    pub client: Option<SocketAddr>,
    /// The service hostname that the client asked for.
    pub host: Option<ArcStr>,
}

impl Forwarded {
    /// Reads one `forwarded` value as our kind of peer writes it: one element, `for` with an IP, `host`. Anything else reads as `None`.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let value = std::str::from_utf8(value).ok()?;
        if value.len() > FORWARDED_LIMIT {
            return None;
        }
        let mut forwarded = Self { client: None, host: None };
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

/// An IPv4 address written as IPv6 is the IPv4 address.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn parse_host(text: &str) -> Option<&str> {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    (text.len() <= HOST_LIMIT && !text.is_empty() && text.split('.').all(label)).then_some(text)
}

/// A W3C trace context: ids only, the flags are not interpreted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceParent {
    /// The trace.
    pub trace: u128,
    /// The parent span.
    pub span: u64,
    /// The flags byte.
    pub flags: u8,
}

impl TraceParent {
    /// A new trace with random ids.
    pub fn random(rng: &mut impl rand::Rng) -> Self {
        Self { trace: rng.random::<u128>().max(1), span: rng.random::<u64>().max(1), flags: 0 }
    }

    /// Reads a header value; malformed ones and the all-zero ids that the standard forbids read as `None`.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let value = std::str::from_utf8(value).ok()?;
        let mut parts = value.split('-');
        let hex = |text: &str, width: usize| {
            let lower =
                text.len() == width && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
            lower.then(|| u128::from_str_radix(text, 16).ok()).flatten()
        };
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        if version != "00" || parts.next().is_some() {
            return None;
        }
        let parsed = Self {
            trace: hex(trace, 32)?,
            span: u64::try_from(hex(span, 16)?).ok()?,
            flags: u8::try_from(hex(flags, 2)?).ok()?,
        };
        (parsed.trace != 0 && parsed.span != 0).then_some(parsed)
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, self.flags)
    }
}

/// Where a CONNECT wants to go.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Authority {
    /// An address; IPv4 in IPv6 form has become IPv4.
    Address(SocketAddr),
    /// A service hostname, in lower case, without trailing dot.
    Host(ArcStr, u16),
}

impl Authority {
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
    pub fn check_address(&self, local: IpAddr) -> Result<(), AuthorityProblem> {
        let Self::Address(address) = self else { return Ok(()) };
        let ip = address.ip();
        if ip == local.to_canonical() {
            return Ok(());
        }
        let special = ip.is_loopback()
            || ip.is_unspecified()
            || ip.is_multicast()
            || match ip {
                IpAddr::V4(ip) => ip.is_broadcast() || ip.is_link_local(),
                IpAddr::V6(ip) => ip.is_unicast_link_local(),
            };
        Err(if special { AuthorityProblem::SpecialAddress } else { AuthorityProblem::AddressMismatch })
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

/// A CONNECT to send.
#[derive(Debug, Clone)]
pub struct ConnectRequest {
    /// Where to: an address, or `host:port` towards gateways.
    pub authority: Authority,
    /// Labels of the source.
    pub baggage: Baggage,
    /// The client behind us.
    pub forwarded: Option<Forwarded>,
    /// The trace to continue; `None` starts one.
    pub traceparent: Option<TraceParent>,
}

impl ConnectRequest {
    /// A request for an address with nothing else.
    pub fn to(target: SocketAddr) -> Self {
        Self {
            authority: Authority::Address(canonical(target)),
            baggage: Baggage::default(),
            forwarded: None,
            traceparent: None,
        }
    }
}

/// What came with a 200.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConnectResponse {
    /// Labels of the workload that serves.
    pub baggage: Baggage,
}

/// Reads header values; what was read prints to something that reads the same.
pub(crate) fn fuzz_values(data: &[u8]) {
    let baggage = Baggage::parse(data);
    assert_eq!(Baggage::parse(baggage.to_string().as_bytes()), baggage.normal());
    if let Some(forwarded) = Forwarded::parse(data)
        && (forwarded.client.is_some() || forwarded.host.is_some())
    {
        assert_eq!(Forwarded::parse(forwarded.to_string().as_bytes()).as_ref(), Some(&forwarded));
    }
    if let Some(traceparent) = TraceParent::parse(data) {
        assert_eq!(traceparent.to_string().as_bytes(), data);
    }
    if let Some(authority) = std::str::from_utf8(data).ok().and_then(Authority::parse) {
        assert_eq!(Authority::parse(&authority.to_string()), Some(authority));
    }
}

impl Baggage {
    /// Without a kind where there is no workload to be of that kind.
    fn normal(mut self) -> Self {
        if self.workload.is_none() {
            self.workload_kind = WorkloadKind::default();
        }
        self
    }
}

#[cfg(test)]
#[allow(non_snake_case)]
mod tests {
    use super::*;

    #[test]
    fn hardening_B36_baggage_is_bounded() {
        let full = "k8s.cluster.name=Kubernetes,k8s.namespace.name=app,k8s.job.name=import,service.name=web,service.version=v1,cloud.region=r,cloud.availability_zone=z";
        assert_eq!(Baggage::parse(full.as_bytes()).to_string(), full);
        let empty = Baggage::default();
        assert_eq!(empty.to_string(), "");
        for (value, expect) in [
            ("", &empty),
            ("k8s.namespace.name", &empty),
            ("k8s.namespace.name=", &empty),
            ("other=x,=y,==", &empty),
            ("k8s.namespace.name=a b", &empty),
            ("k8s.namespace.name=\u{f6}", &empty),
            (&format!("k8s.namespace.name={}", "x".repeat(254)), &empty),
            (&format!("k8s.namespace.name=a{}", " ".repeat(5000)), &empty),
            (&format!("{}k8s.namespace.name=a", "k=v,".repeat(64)), &empty),
            (" k8s.namespace.name = app ;prop=1", &Baggage { namespace: Some("app".into()), ..Baggage::default() }),
            ("service.name=%zz", &Baggage { service: Some("%zz".into()), ..Baggage::default() }),
        ] {
            assert_eq!(&Baggage::parse(value.as_bytes()), expect, "{value}");
        }
    }

    #[test]
    fn hardening_B35_forwarded_is_read_strictly() {
        let read = |value: &str| Forwarded::parse(value.as_bytes()).map(|forwarded| forwarded.to_string());
        for (value, expect) in [
            ("for=\"10.0.0.1:80\";host=web.app.svc", "for=\"10.0.0.1:80\";host=web.app.svc"),
            ("for=10.0.0.1", "for=\"10.0.0.1:0\""),
            ("FOR=\"[fd00::1]:80\"", "for=\"[fd00::1]:80\""),
            ("for=\"[::ffff:10.0.0.1]:80\"", "for=\"10.0.0.1:80\""),
            ("for=\"[fd00::1]\";proto=http;by=x", "for=\"[fd00::1]:0\""),
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
            "for=10.0.0.1;host=a b",
            "for=10.0.0.1;host=-a",
            "for=10.0.0.1;",
            &format!("for=10.0.0.1;host={}", "a".repeat(300)),
            &format!("for=\"{}\"", "1".repeat(8192)),
        ] {
            assert_eq!(read(value), None, "{value}");
        }
    }

    #[test]
    fn hardening_B37_bad_traces_are_no_traces() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(TraceParent::parse(good.as_bytes()).unwrap().to_string(), good);
        for bad in [
            "",
            "00",
            "0000000000000000000000000000000000000000000000000000000",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0",
            "\u{e4}\u{e4}-1-1-1",
        ] {
            assert_eq!(TraceParent::parse(bad.as_bytes()), None, "{bad}");
        }
    }
}
