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
