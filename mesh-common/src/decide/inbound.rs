//! What happens to a TCP SYN or an unconnected UDP datagram that arrives in a pod's namespace. Called by the sk_lookup program.

use crate::{
    Address, Reason, ports,
    row::{Listener, POD_CLOSED, Pod},
    slot,
};

/// A packet that looks for a socket.
#[derive(Clone, Copy, Debug)]
pub struct Lookup {
    /// Who sends.
    pub remote: Address,
    /// Whom it is for.
    pub local: Address,
    /// Destination port, host byte order.
    pub port: u16,
}

/// What the program does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Inbound {
    /// The kernel's own lookup goes on.
    Pass,
    /// As [`Inbound::Pass`], and counted.
    PassCounted(Reason),
    /// Give it to a listener of the agent; drop it if the listener is gone.
    Steer(Listener, Reason),
    /// Plaintext from the network: to the agent, or dropped if the port is STRICT.
    Plaintext,
    /// Nobody gets it.
    Drop(Reason),
}

/// Decides a TCP connection.
#[inline(always)]
pub fn inbound_tcp(pod: &Pod, lookup: &Lookup) -> Inbound {
    let v4 = lookup.local.is_v4();
    let own = is_own(pod, &lookup.remote);
    if let Some(verdict) = slots(pod, lookup, own, family(v4, Listener::DnsTcpV4, Listener::DnsTcpV6), true) {
        return verdict;
    }
    if own {
        return Inbound::Pass;
    }
    if pod.flags & POD_CLOSED != 0 {
        return Inbound::Drop(Reason::PodClosed);
    }
    match lookup.port {
        ports::HBONE => Inbound::Steer(family(v4, Listener::HboneV4, Listener::HboneV6), Reason::SteeredHbone),
        ports::OUTBOUND | ports::INBOUND_PLAINTEXT | ports::DNS => Inbound::Drop(Reason::MeshPort),
        _ => Inbound::Plaintext,
    }
}

/// Decides a UDP datagram.
#[inline(always)]
pub fn inbound_udp(pod: &Pod, lookup: &Lookup) -> Inbound {
    let v4 = lookup.local.is_v4();
    let own = is_own(pod, &lookup.remote);
    if let Some(verdict) = slots(pod, lookup, own, family(v4, Listener::DnsUdpV4, Listener::DnsUdpV6), false) {
        return verdict;
    }
    if own { Inbound::Pass } else { Inbound::PassCounted(Reason::UdpPassed) }
}

/// Slots and loopback, before anything else: `None` if the destination is neither.
#[inline(always)]
fn slots(pod: &Pod, lookup: &Lookup, own: bool, dns: Listener, tcp: bool) -> Option<Inbound> {
    let to = &lookup.local;
    let v4 = to.is_v4();
    let number = slot::number(to);
    if number != 0 {
        let from_pod = pod.owns(&lookup.remote);
        if tcp && slot::is_flow(number) && lookup.port == pod.outbound_port {
            return Some(steer(
                from_pod,
                family(v4, Listener::OutboundV4, Listener::OutboundV6),
                Reason::SteeredOutbound,
            ));
        }
        if slot::nameserver(number).is_some() && lookup.port == pod.dns_port && pod.dns_port != 0 {
            return Some(steer(from_pod, dns, Reason::SteeredDns));
        }
        if !v4 || (tcp && lookup.port == pod.outbound_port) {
            return Some(Inbound::Drop(Reason::ForeignToSlot));
        }
    } else if slot::is_v6_range(to) {
        return Some(Inbound::Drop(Reason::ForeignToSlot));
    }
    if !to.is_loopback() {
        return None;
    }
    if !own {
        return Some(Inbound::Drop(Reason::ForeignToSlot));
    }
    if pod.is_own_port(lookup.port) && (!v4 || to.low() == 0x7f00_0001) {
        return Some(Inbound::Drop(Reason::DirectToAgent));
    }
    Some(Inbound::Pass)
}

#[inline(always)]
fn steer(from_pod: bool, listener: Listener, reason: Reason) -> Inbound {
    if from_pod { Inbound::Steer(listener, reason) } else { Inbound::Drop(Reason::ForeignToSlot) }
}

/// Judged by address, not by device: a pod's call to its own address arrives with the index of its network device.
#[inline(always)]
fn is_own(pod: &Pod, remote: &Address) -> bool {
    remote.is_loopback() || pod.owns(remote)
}

#[inline(always)]
fn family(v4: bool, four: Listener, six: Listener) -> Listener {
    if v4 { four } else { six }
}
