//! What happens to a TCP SYN or an unconnected UDP datagram that arrives in a pod's namespace. Called by the sk_lookup program.

use crate::{
    Address, Reason, ports,
    row::{Listener, POD_CLOSED, POD_REDIRECTED, POD_UDP_DENY, Pod},
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
    /// A datagram from the network where the mesh refuses them: dropped if the port is STRICT, or may be, and it answers nothing.
    Datagram,
    /// Nobody gets it.
    Drop(Reason),
}

/// Decides a TCP connection.
#[inline(always)]
pub fn inbound_tcp(pod: &Pod, lookup: &Lookup) -> Inbound {
    inbound(pod, lookup, true)
}

/// Decides a UDP datagram.
#[inline(always)]
pub fn inbound_udp(pod: &Pod, lookup: &Lookup) -> Inbound {
    inbound(pod, lookup, false)
}

/// Decides both, in one piece: two would double what the verifier has to follow.
///
/// "Own" is judged by address, not by device: a pod's call to its own address arrives with the index of its network device.
#[inline(always)]
pub fn inbound(pod: &Pod, lookup: &Lookup, tcp: bool) -> Inbound {
    let v4 = lookup.local.is_v4();
    let from_pod = pod.owns(&lookup.remote);
    let number = slot::number(&lookup.local);
    if number != 0 || slot::is_v6_range(&lookup.local) {
        let to_slot = slot_listener(pod, lookup, number, tcp);
        return match to_slot {
            Some((listener, reason)) if from_pod => Inbound::Steer(family(v4, listener), reason),
            Some(_) => Inbound::Drop(Reason::ForeignToSlot),
            None if !v4 || (tcp && lookup.port == pod.outbound_port) => Inbound::Drop(Reason::ForeignToSlot),
            None if from_pod || lookup.remote.is_loopback() => Inbound::Pass,
            None => Inbound::Drop(Reason::ForeignToSlot),
        };
    }
    // Equal ends: the pod calls an address of its own that nobody told us of, like its link-local one.
    let own = from_pod || lookup.remote.is_loopback() || lookup.remote.same(&lookup.local);
    if lookup.local.is_loopback() {
        let agents_host = !v4 || lookup.local.low() == 0x7f00_0001;
        // Of its ports the agent uses only the one of DNS for datagrams: on the others they are the app's.
        let agents_port =
            if tcp { pod.is_own_port(lookup.port) } else { lookup.port != 0 && lookup.port == pod.dns_port };
        let redirected = if agents_host && own { redirected_connect(pod, lookup.port, tcp) } else { None };
        return if !own {
            Inbound::Drop(Reason::ForeignToSlot)
        } else if let Some((listener, reason)) = redirected {
            Inbound::Steer(family(v4, listener), reason)
        } else if agents_host && agents_port {
            Inbound::Drop(Reason::DirectToAgent)
        } else {
            Inbound::Pass
        };
    }
    if own {
        return Inbound::Pass;
    }
    if !tcp {
        // The agent's own answers over IPv6 come from a slot; over IPv4 a slot is loopback.
        let answer = slot::is_v6_range(&lookup.remote);
        return if answer {
            Inbound::Pass
        } else if pod.flags & POD_UDP_DENY != 0 && lookup.port != ports::RESOLVER {
            Inbound::Datagram
        } else {
            Inbound::PassCounted(Reason::UdpPassed)
        };
    }
    let redirected = pod.flags & POD_REDIRECTED != 0;
    if redirected && is_host_probe(&lookup.remote) && !is_mesh_port(lookup.port) {
        return Inbound::PassCounted(Reason::ProbePassed);
    }
    if pod.flags & POD_CLOSED != 0 {
        return Inbound::Drop(Reason::PodClosed);
    }
    match lookup.port {
        // Which port it was for only the agent learns, so it is the agent that judges.
        ports::INBOUND_PLAINTEXT if redirected => {
            Inbound::Steer(family(v4, Listener::PlaintextV4), Reason::SteeredPlaintext)
        }
        ports::HBONE => Inbound::Steer(family(v4, Listener::HboneV4), Reason::SteeredHbone),
        ports::OUTBOUND | ports::INBOUND_PLAINTEXT | ports::DNS => Inbound::Drop(Reason::MeshPort),
        _ => Inbound::Plaintext,
    }
}

/// The listener (of IPv4) to which Istio's rules have sent what the pod asked for and no hook has seen: it was not made in the pod's cgroup, or asks a
/// nameserver that is not the pod's.
#[inline(always)]
fn redirected_connect(pod: &Pod, port: u16, tcp: bool) -> Option<(Listener, Reason)> {
    if pod.flags & POD_REDIRECTED == 0 {
        return None;
    }
    match port {
        ports::OUTBOUND if tcp => Some((Listener::OutboundV4, Reason::SteeredOutbound)),
        ports::DNS if tcp => Some((Listener::DnsTcpV4, Reason::SteeredDns)),
        ports::DNS => Some((Listener::DnsUdpV4, Reason::SteeredDns)),
        _ => None,
    }
}

/// What Istio's node agent makes of the source of everything that a process of the host sends to a pod. Nobody else has the address, so nobody else hears
/// an answer.
#[inline(always)]
fn is_host_probe(remote: &Address) -> bool {
    remote.same(&HOST_PROBE_V4) || remote.same(&HOST_PROBE_V6)
}

#[inline(always)]
fn is_mesh_port(port: u16) -> bool {
    matches!(port, ports::HBONE | ports::OUTBOUND | ports::INBOUND_PLAINTEXT | ports::DNS)
}

/// 169.254.7.127
const HOST_PROBE_V4: Address = Address::from_v4_word(0xa9fe_077f_u32.to_be());
/// fd16:9254:7127:1337:ffff:ffff:ffff:ffff
const HOST_PROBE_V6: Address =
    Address { words: [0xfd16_9254_u32.to_be(), 0x7127_1337_u32.to_be(), u32::MAX, u32::MAX] };

/// The listener (of IPv4) that stands behind a slot; `None` if the port is not one of slots.
#[inline(always)]
fn slot_listener(pod: &Pod, lookup: &Lookup, number: u32, tcp: bool) -> Option<(Listener, Reason)> {
    if tcp && slot::is_flow(number) && lookup.port == pod.outbound_port {
        return Some((Listener::OutboundV4, Reason::SteeredOutbound));
    }
    if slot::nameserver(number).is_some() && lookup.port == pod.dns_port && pod.dns_port != 0 {
        let listener = if tcp { Listener::DnsTcpV4 } else { Listener::DnsUdpV4 };
        return Some((listener, Reason::SteeredDns));
    }
    None
}

/// The same listener for the packet's family.
#[inline(always)]
fn family(v4: bool, listener: Listener) -> Listener {
    match listener {
        four if v4 => four,
        Listener::OutboundV4 => Listener::OutboundV6,
        Listener::PlaintextV4 => Listener::PlaintextV6,
        Listener::HboneV4 => Listener::HboneV6,
        Listener::DnsUdpV4 => Listener::DnsUdpV6,
        Listener::DnsTcpV4 => Listener::DnsTcpV6,
        six => six,
    }
}

#[cfg(all(test, feature = "user"))]
mod tests {
    use core::net::IpAddr;

    use super::*;

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
        pod
    }

    fn lookup(remote: &str, local: &str, port: u16) -> Lookup {
        Lookup { remote: ip(remote), local: ip(local), port }
    }

    const FOREIGN: Inbound = Inbound::Drop(Reason::ForeignToSlot);
    const SLOT6: &str = "fd75:6e64:6572:6d65:7368:0:80:100";
    const DNS6: &str = "fd75:6e64:6572:6d65:7368:0:80:1";

    #[test]
    fn tcp() {
        let outbound = |listener| Inbound::Steer(listener, Reason::SteeredOutbound);
        let dns = |listener| Inbound::Steer(listener, Reason::SteeredDns);
        let hbone = |listener| Inbound::Steer(listener, Reason::SteeredHbone);
        let direct = Inbound::Drop(Reason::DirectToAgent);
        let mesh = Inbound::Drop(Reason::MeshPort);
        let table = [
            // Slots: from the pod's own address only.
            ("198.18.0.2", "127.128.1.0", 15001, outbound(Listener::OutboundV4)),
            ("fd00:198::2", SLOT6, 15001, outbound(Listener::OutboundV6)),
            ("127.0.0.1", "127.128.1.0", 15001, FOREIGN),
            ("198.18.0.3", "127.128.1.0", 15001, FOREIGN),
            ("fd00:198::3", SLOT6, 15001, FOREIGN),
            ("::1", SLOT6, 15001, FOREIGN),
            ("198.18.0.2", "127.128.0.1", 15053, dns(Listener::DnsTcpV4)),
            ("fd00:198::2", DNS6, 15053, dns(Listener::DnsTcpV6)),
            ("198.18.0.3", "127.128.0.1", 15053, FOREIGN),
            // No slot has this number, or this port.
            ("198.18.0.2", "127.128.0.1", 15001, FOREIGN),
            ("198.18.0.2", "127.255.255.254", 15001, FOREIGN),
            ("198.18.0.2", "127.255.255.255", 15001, FOREIGN),
            ("fd00:198::2", SLOT6, 80, FOREIGN),
            ("fd00:198::2", "fd75:6e64:6572:6d65:7368::", 15001, FOREIGN),
            ("127.0.0.1", "127.128.1.0", 80, Inbound::Pass),
            // Loopback and the pod's own address are the pod's business, the agent's listeners excepted.
            ("127.0.0.1", "127.0.0.1", 80, Inbound::Pass),
            ("198.18.0.2", "127.0.0.1", 80, Inbound::Pass),
            ("::1", "::1", 80, Inbound::Pass),
            ("198.18.0.2", "198.18.0.2", 80, Inbound::Pass),
            ("198.18.0.2", "198.18.0.2", 15001, Inbound::Pass),
            ("fd00:198::2", "fd00:198::2", 15008, Inbound::Pass),
            ("fe80::2", "fe80::2", 80, Inbound::Pass),
            ("127.0.0.1", "127.0.0.1", 15001, direct),
            ("::1", "::1", 15008, direct),
            ("198.18.0.3", "127.0.0.1", 80, FOREIGN),
            // The network.
            ("198.18.0.3", "198.18.0.2", 80, Inbound::Plaintext),
            ("fd00:198::3", "fd00:198::2", 80, Inbound::Plaintext),
            ("fe80::3", "fe80::2", 80, Inbound::Plaintext),
            ("198.18.0.3", "198.18.0.77", 80, Inbound::Plaintext),
            ("198.18.0.3", "198.18.0.2", 15008, hbone(Listener::HboneV4)),
            ("fd00:198::3", "fd00:198::2", 15008, hbone(Listener::HboneV6)),
            ("198.18.0.3", "198.18.0.2", 15001, mesh),
            ("198.18.0.3", "198.18.0.2", 15006, mesh),
            ("fd00:198::3", "fd00:198::2", 15053, mesh),
        ];
        for (remote, local, port, expected) in table {
            assert_eq!(inbound_tcp(&pod(), &lookup(remote, local, port)), expected, "{remote} -> {local}:{port}");
        }
        let closed = Pod { flags: POD_CLOSED, ..pod() };
        for port in [80, 15008] {
            let verdict = inbound_tcp(&closed, &lookup("198.18.0.3", "198.18.0.2", port));
            assert_eq!(verdict, Inbound::Drop(Reason::PodClosed));
        }
        assert_eq!(inbound_tcp(&closed, &lookup("127.0.0.1", "127.0.0.1", 80)), Inbound::Pass);
    }

    #[test]
    fn what_istio_redirects_comes_to_the_agent() {
        let redirected = Pod { flags: POD_REDIRECTED, ..pod() };
        let to = |listener, reason| Inbound::Steer(listener, reason);
        let mesh = Inbound::Drop(Reason::MeshPort);
        let probe = Inbound::PassCounted(Reason::ProbePassed);
        const PROBE6: &str = "fd16:9254:7127:1337:ffff:ffff:ffff:ffff";
        let table = [
            ("198.18.0.3", "198.18.0.2", 15006, to(Listener::PlaintextV4, Reason::SteeredPlaintext), mesh),
            ("fd00:198::3", "fd00:198::2", 15006, to(Listener::PlaintextV6, Reason::SteeredPlaintext), mesh),
            ("198.18.0.3", "198.18.0.2", 15001, mesh, mesh),
            ("198.18.0.3", "198.18.0.2", 15053, mesh, mesh),
            ("198.18.0.3", "198.18.0.2", 80, Inbound::Plaintext, Inbound::Plaintext),
            ("169.254.7.127", "198.18.0.2", 8080, probe, Inbound::Plaintext),
            (PROBE6, "fd00:198::2", 8080, probe, Inbound::Plaintext),
            ("169.254.7.127", "198.18.0.2", 15001, mesh, mesh),
            ("169.254.7.128", "198.18.0.2", 8080, Inbound::Plaintext, Inbound::Plaintext),
            ("169.254.7.127", "127.0.0.1", 8080, FOREIGN, FOREIGN),
            (
                "198.18.0.2",
                "127.0.0.1",
                15001,
                to(Listener::OutboundV4, Reason::SteeredOutbound),
                Inbound::Drop(Reason::DirectToAgent),
            ),
            (
                "fd00:198::2",
                "::1",
                15001,
                to(Listener::OutboundV6, Reason::SteeredOutbound),
                Inbound::Drop(Reason::DirectToAgent),
            ),
            (
                "198.18.0.2",
                "127.0.0.1",
                15053,
                to(Listener::DnsTcpV4, Reason::SteeredDns),
                Inbound::Drop(Reason::DirectToAgent),
            ),
            (
                "198.18.0.2",
                "127.0.0.1",
                15008,
                Inbound::Drop(Reason::DirectToAgent),
                Inbound::Drop(Reason::DirectToAgent),
            ),
            ("198.18.0.2", "127.0.0.2", 15001, Inbound::Pass, Inbound::Pass),
            ("198.18.0.3", "127.0.0.1", 15001, FOREIGN, FOREIGN),
        ];
        for (remote, local, port, expected, otherwise) in table {
            let lookup = lookup(remote, local, port);
            assert_eq!(inbound_tcp(&redirected, &lookup), expected, "{remote} -> {local}:{port}");
            assert_eq!(inbound_tcp(&pod(), &lookup), otherwise, "{remote} -> {local}:{port}, not redirected");
        }
        let asked = lookup("198.18.0.2", "127.0.0.1", 15053);
        assert_eq!(inbound_udp(&redirected, &asked), to(Listener::DnsUdpV4, Reason::SteeredDns));
        let closed = Pod { flags: POD_REDIRECTED | POD_CLOSED, ..pod() };
        let plaintext = lookup("198.18.0.3", "198.18.0.2", 15006);
        assert_eq!(inbound_tcp(&closed, &plaintext), Inbound::Drop(Reason::PodClosed));
        // A kubelet that is refused ends containers.
        assert_eq!(inbound_tcp(&closed, &lookup("169.254.7.127", "198.18.0.2", 8080)), probe);
    }

    #[test]
    fn udp() {
        let dns = |listener| Inbound::Steer(listener, Reason::SteeredDns);
        let table = [
            ("198.18.0.2", "127.128.0.1", 15053, dns(Listener::DnsUdpV4)),
            ("fd00:198::2", DNS6, 15053, dns(Listener::DnsUdpV6)),
            ("127.0.0.1", "127.128.0.1", 15053, FOREIGN),
            ("fd00:198::3", DNS6, 15053, FOREIGN),
            ("fd00:198::2", SLOT6, 15001, FOREIGN),
            ("127.0.0.1", "127.0.0.1", 15053, Inbound::Drop(Reason::DirectToAgent)),
            // Other ports of the agent are free for datagrams of the app.
            ("127.0.0.1", "127.0.0.1", 15001, Inbound::Pass),
            ("::1", "::1", 15008, Inbound::Pass),
            ("127.0.0.1", "127.0.0.1", 53, Inbound::Pass),
            // The agent's own answer.
            (DNS6, "fd00:198::2", 40000, Inbound::Pass),
            ("198.18.0.2", "198.18.0.2", 53, Inbound::Pass),
            ("198.18.0.3", "198.18.0.2", 53, Inbound::PassCounted(Reason::UdpPassed)),
            ("198.18.0.3", "127.0.0.1", 53, FOREIGN),
        ];
        let refusing = Pod { flags: POD_UDP_DENY, ..pod() };
        for (port, expected) in [(53, Inbound::PassCounted(Reason::UdpPassed)), (9000, Inbound::Datagram)] {
            assert_eq!(inbound_udp(&refusing, &lookup("198.18.0.3", "198.18.0.2", port)), expected, "{port}");
            assert_eq!(inbound_udp(&refusing, &lookup("198.18.0.2", "198.18.0.2", port)), Inbound::Pass);
        }
        for (remote, local, port, expected) in table {
            assert_eq!(inbound_udp(&pod(), &lookup(remote, local, port)), expected, "{remote} -> {local}:{port}");
        }
    }
}
