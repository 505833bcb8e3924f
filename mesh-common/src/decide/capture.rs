//! What happens to a connect or a datagram of a pod's process. Called by the connect and sendmsg hooks.

use crate::{
    Address, Reason, ports,
    row::{POD_CLOSED, POD_INBOUND_ONLY, Pod},
    slot,
};

/// Errno values of refusals, as the hook hands them to the kernel.
pub mod errno {
    /// Invalid argument: what Linux says to a loopback source that wants to leave the host.
    pub const EINVAL: i32 = 22;
    /// Network is unreachable.
    pub const ENETUNREACH: i32 = 101;
    /// Connection refused.
    pub const ECONNREFUSED: i32 = 111;
}

/// A connect or a datagram with a destination.
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    /// Where it wants to go; IPv4 also for v4-mapped sockets.
    pub destination: Address,
    /// Host byte order.
    pub port: u16,
    /// What the socket is bound to; unspecified if it is not.
    pub source: Address,
    /// The agent has given a sign of life lately.
    pub agent_alive: bool,
}

/// What the hook does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Capture {
    /// Leave the destination alone.
    Pass(Reason),
    /// Find or make a slot for the destination and go there.
    Slot,
    /// Go to this slot of a nameserver.
    Nameserver(u32),
    /// Fail the call with this errno.
    Refuse(Reason, i32),
}

/// Decides a TCP connect.
#[inline(always)]
pub fn capture_tcp(pod: &Pod, attempt: &Attempt) -> Capture {
    let to = &attempt.destination;
    if pod.flags & POD_INBOUND_ONLY != 0 || to.is_unspecified() || attempt.port == 0 || to.is_multicast_or_broadcast() {
        return Capture::Pass(Reason::PassedLocal);
    }
    if to.is_loopback() || slot::is_v6_range(to) {
        return loopback(pod, to, attempt.port);
    }
    if pod.owns(to) {
        return Capture::Pass(Reason::PassedLocal);
    }
    if to.is_v6_link_local() {
        return Capture::Pass(Reason::PassedLinkLocal);
    }
    if pod.flags & POD_CLOSED != 0 {
        return Capture::Refuse(Reason::PodClosed, errno::ECONNREFUSED);
    }
    if !pod.has_family(to.is_v4()) {
        return Capture::Refuse(Reason::NoFamily, errno::ENETUNREACH);
    }
    if attempt.source.is_loopback() {
        return Capture::Refuse(Reason::LoopbackSource, errno::EINVAL);
    }
    match nameserver(pod, attempt) {
        Some(_) if !attempt.agent_alive => Capture::Pass(Reason::DnsAgentAway),
        Some(slot) => Capture::Nameserver(slot),
        None => Capture::Slot,
    }
}

/// Decides a UDP connect or a datagram with an address. Only DNS to the pod's own nameservers is captured.
#[inline(always)]
pub fn capture_udp(pod: &Pod, attempt: &Attempt) -> Capture {
    if pod.flags & (POD_CLOSED | POD_INBOUND_ONLY) != 0 || attempt.source.is_loopback() {
        return Capture::Pass(Reason::PassedLocal);
    }
    match nameserver(pod, attempt) {
        Some(_) if !attempt.agent_alive => Capture::Pass(Reason::DnsAgentAway),
        Some(slot) if pod.has_family(attempt.destination.is_v4()) => Capture::Nameserver(slot),
        _ => Capture::Pass(Reason::PassedLocal),
    }
}

#[inline(always)]
fn loopback(pod: &Pod, to: &Address, port: u16) -> Capture {
    let in_slots = slot::number(to) != 0;
    let to_slot = in_slots && (port == pod.outbound_port || port == pod.dns_port) && port != 0;
    if to_slot || slot::is_v6_range(to) || (is_agents_host(to) && pod.is_own_port(port)) {
        return Capture::Refuse(Reason::DirectToAgent, errno::ECONNREFUSED);
    }
    Capture::Pass(Reason::PassedLocal)
}

/// The agent listens on 127.0.0.1 and ::1 only.
#[inline(always)]
fn is_agents_host(to: &Address) -> bool {
    !to.is_v4() || to.low() == 0x7f00_0001
}

#[inline(always)]
fn nameserver(pod: &Pod, attempt: &Attempt) -> Option<u32> {
    if attempt.port != ports::RESOLVER || pod.dns_port == 0 {
        return None;
    }
    pod.nameserver_slot(&attempt.destination)
}

#[cfg(all(test, feature = "user"))]
mod tests {
    use core::net::IpAddr;
    use std::string::String;

    use super::*;
    use crate::row::POD_STRICT;

    fn ip(text: &str) -> Address {
        text.parse::<IpAddr>().expect("an address").into()
    }

    fn pod() -> Pod {
        let mut pod = Pod {
            outbound_port: 15001,
            dns_port: 15053,
            own_ports: [15001, 15006, 15008, 15053, 0, 0, 0, 0],
            ..Pod::default()
        };
        pod.addresses[0] = ip("198.18.0.2");
        pod.addresses[1] = ip("fd00:198::2");
        pod.nameservers[0] = ip("198.18.53.53");
        pod.nameservers[1] = ip("fd00:198::53");
        pod
    }

    fn attempt(to: &str, port: u16) -> Attempt {
        Attempt { destination: ip(to), port, source: Address::UNSPECIFIED, agent_alive: true }
    }

    const LOCAL: Capture = Capture::Pass(Reason::PassedLocal);
    const DIRECT: Capture = Capture::Refuse(Reason::DirectToAgent, errno::ECONNREFUSED);

    #[test]
    fn tcp() {
        let table = [
            ("198.18.9.9", 80, Capture::Slot),
            ("fd00:198::9", 80, Capture::Slot),
            ("169.254.169.254", 80, Capture::Slot),
            ("198.18.9.9", 15008, Capture::Slot),
            ("198.18.9.9", 0, LOCAL),
            ("0.0.0.0", 80, LOCAL),
            ("::", 80, LOCAL),
            ("255.255.255.255", 80, LOCAL),
            ("224.0.0.1", 80, LOCAL),
            ("ff02::1", 80, LOCAL),
            ("127.0.0.1", 80, LOCAL),
            ("127.255.0.1", 80, LOCAL),
            ("::1", 80, LOCAL),
            ("198.18.0.2", 80, LOCAL),
            ("198.18.0.2", 15001, LOCAL),
            ("fd00:198::2", 80, LOCAL),
            ("fe80::1", 80, Capture::Pass(Reason::PassedLinkLocal)),
            ("127.0.0.1", 15001, DIRECT),
            ("127.0.0.1", 15053, DIRECT),
            ("127.0.0.2", 15001, LOCAL),
            ("::1", 15006, DIRECT),
            ("127.128.1.0", 15001, DIRECT),
            ("127.128.0.1", 15053, DIRECT),
            ("127.128.1.0", 80, LOCAL),
            ("fd75:6e64:6572:6d65:7368:0:80:100", 80, DIRECT),
            ("198.18.53.53", 53, Capture::Nameserver(slot::DNS_FIRST)),
            ("fd00:198::53", 53, Capture::Nameserver(slot::DNS_FIRST + 1)),
            ("198.18.53.53", 80, Capture::Slot),
            ("198.18.53.54", 53, Capture::Slot),
        ];
        for (to, port, expected) in table {
            assert_eq!(capture_tcp(&pod(), &attempt(to, port)), expected, "{to}:{port}");
        }
    }

    #[test]
    fn udp() {
        let table = [
            ("198.18.53.53", 53, Capture::Nameserver(slot::DNS_FIRST)),
            ("fd00:198::53", 53, Capture::Nameserver(slot::DNS_FIRST + 1)),
            ("198.18.53.53", 5353, LOCAL),
            ("198.18.9.9", 53, LOCAL),
            ("127.0.0.1", 53, LOCAL),
            ("::", 53, LOCAL),
        ];
        for (to, port, expected) in table {
            assert_eq!(capture_udp(&pod(), &attempt(to, port)), expected, "{to}:{port}");
        }
    }

    #[test]
    fn the_state_of_pod_and_agent_decides() {
        let away = Attempt { agent_alive: false, ..attempt("198.18.53.53", 53) };
        assert_eq!(capture_tcp(&pod(), &away), Capture::Pass(Reason::DnsAgentAway));
        assert_eq!(capture_udp(&pod(), &away), Capture::Pass(Reason::DnsAgentAway));
        let away = Attempt { agent_alive: false, ..attempt("198.18.9.9", 80) };
        assert_eq!(capture_tcp(&pod(), &away), Capture::Slot, "only DNS stays open without the agent");

        let closed = Pod { flags: POD_CLOSED | POD_STRICT, ..pod() };
        assert_eq!(
            capture_tcp(&closed, &attempt("198.18.9.9", 80)),
            Capture::Refuse(Reason::PodClosed, errno::ECONNREFUSED)
        );
        assert_eq!(capture_tcp(&closed, &attempt("127.0.0.1", 80)), LOCAL);
        assert_eq!(capture_udp(&closed, &attempt("198.18.53.53", 53)), LOCAL);

        let joining = Pod { flags: POD_INBOUND_ONLY, ..pod() };
        assert_eq!(capture_tcp(&joining, &attempt("198.18.9.9", 80)), LOCAL);
        assert_eq!(capture_udp(&joining, &attempt("198.18.53.53", 53)), LOCAL);

        let no_dns = Pod { dns_port: 0, ..pod() };
        assert_eq!(capture_tcp(&no_dns, &attempt("198.18.53.53", 53)), Capture::Slot);
        assert_eq!(capture_udp(&no_dns, &attempt("198.18.53.53", 53)), LOCAL);

        let mut v4_only = pod();
        v4_only.addresses[1] = Address::UNSPECIFIED;
        let refused = Capture::Refuse(Reason::NoFamily, errno::ENETUNREACH);
        assert_eq!(capture_tcp(&v4_only, &attempt("fd00:198::9", 80)), refused);
        assert_eq!(capture_udp(&v4_only, &attempt("fd00:198::53", 53)), LOCAL);

        let loopback = Attempt { source: ip("127.0.0.1"), ..attempt("198.18.9.9", 80) };
        assert_eq!(capture_tcp(&pod(), &loopback), Capture::Refuse(Reason::LoopbackSource, errno::EINVAL));
        let bound = Attempt { source: ip("198.18.0.2"), ..attempt("198.18.9.9", 80) };
        assert_eq!(capture_tcp(&pod(), &bound), Capture::Slot);
    }

    /// Whatever the destination, TCP of an enrolled pod never leaves it unseen: it is sent to the agent, refused, or stays inside.
    #[test]
    fn nothing_else_passes() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for _ in 0..200_000 {
            let (a, b, c) = (next(), next(), next());
            let words = match c % 3 {
                0 => [0, 0, 0xffff_u32.to_be(), a as u32],
                1 => [a as u32, (a >> 32) as u32, b as u32, (b >> 32) as u32],
                _ => [0xfd00_0198_u32.to_be(), 0, 0, a as u32],
            };
            let to = Address { words };
            let attempt =
                Attempt { destination: to, port: (c >> 32) as u16, source: Address::UNSPECIFIED, agent_alive: true };
            if let Capture::Pass(reason) = capture_tcp(&pod(), &attempt) {
                let inside =
                    to.is_loopback() || pod().owns(&to) || to.is_unspecified() || to.is_multicast_or_broadcast();
                let told = String::from(reason.name());
                assert!(inside || attempt.port == 0 || to.is_v6_link_local(), "{attempt:?} passes as {told}");
            }
        }
    }
}
