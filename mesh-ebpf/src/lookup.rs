//! sk_lookup: one instance per pod, attached to the pod's network namespace, with its own listeners. Kernel 5.9; without it pods cannot be enrolled.
//!
//! Runs for SYNs and for datagrams of unconnected sockets, never for established ones. A miss drops: a listener of somebody else on
//! that port must not get what the agent should have checked.

use aya_ebpf::{macros::sk_lookup, programs::SkLookupContext};
use mesh_common::{
    Reason,
    decide::{Inbound, Lookup, enters, inbound},
    row::{FlowKey, Listener, POD_RULES, POD_STRICT, POD_UNDECIDED, Pod, PortKey, TICKET_NANOSECONDS},
};

use crate::{
    act::{count, now, tell},
    context::{Packet, TCP, UDP, packet},
    maps::{COOKIE, INBOUND_PORTS, LISTENERS, PODS, PORT_RULES, TICKETS, UDP_PEERS},
    outside::remember_caller,
};

const PASS: u32 = 1;
const DROP: u32 = 0;
const ENOENT: i32 = -2;

#[sk_lookup]
pub fn pod_lookup(context: SkLookupContext) -> u32 {
    let cookie = COOKIE.load();
    let packet = packet(context.lookup);
    let verdict = judge(&context, &packet, cookie);
    #[cfg(feature = "log")]
    aya_log_ebpf::debug!(
        &context,
        "pod_lookup: protocol {}, port {}, goes on {}",
        packet.protocol,
        packet.ends.local_port,
        u32::from(verdict.is_ok())
    );
    match verdict {
        Ok(None) => PASS,
        Ok(Some(reason)) => {
            count(reason);
            remember_caller(cookie, &packet);
            PASS
        }
        Err(reason) => {
            tell(reason, cookie, packet.protocol, &packet.ends);
            DROP
        }
    }
}

/// What to count of a packet that goes on, or why it does not.
#[inline(always)]
fn judge(context: &SkLookupContext, packet: &Packet, cookie: u64) -> Result<Option<Reason>, Reason> {
    // SAFETY: any bytes are a row; whether they are this pod's is asked last.
    let pod = unsafe { PODS.get(&cookie) }.ok_or(Reason::PodMissing)?;
    let lookup = Lookup { remote: packet.ends.remote, local: packet.ends.local, port: packet.ends.local_port };
    if packet.protocol != TCP && packet.protocol != UDP {
        return Ok(None);
    }
    let verdict = inbound(pod, &lookup, packet.protocol == TCP);
    let by_port = matches!(verdict, Inbound::Plaintext | Inbound::Datagram);
    let is_strict = by_port && is_strict(cookie, pod, lookup.port);
    let refuses_datagrams = is_strict || pod.flags & POD_UNDECIDED != 0;
    let is_excluded = by_port && pod.flags & POD_RULES != 0 && enters(pod.flags, port_rule(cookie, lookup.port));
    if !pod.is_of(cookie) {
        return Err(Reason::PodMissing);
    }
    // A kubelet that is refused starts containers anew: a pod that nobody can serve now must not be ended for it.
    let may_be_probe = matches!(verdict, Inbound::Plaintext | Inbound::Drop(Reason::PodClosed));
    if may_be_probe && packet.protocol == TCP && has_ticket(cookie, packet) {
        return Ok(Some(Reason::ProbePassed));
    }
    let (listener, reason) = match verdict {
        Inbound::Plaintext | Inbound::Datagram if is_excluded => return Ok(Some(Reason::InboundExcluded)),
        Inbound::Pass => return Ok(None),
        Inbound::PassCounted(reason) => return Ok(Some(reason)),
        Inbound::Drop(reason) => return Err(reason),
        Inbound::Steer(listener, reason) => (listener, reason),
        Inbound::Datagram if refuses_datagrams && !is_answer(cookie, packet) => return Err(Reason::UdpRefused),
        Inbound::Datagram => return Ok(Some(Reason::UdpPassed)),
        Inbound::Plaintext if is_strict => return Err(Reason::StrictPlaintext),
        Inbound::Plaintext if lookup.local.is_v4() => (Listener::PlaintextV4, Reason::SteeredPlaintext),
        Inbound::Plaintext => (Listener::PlaintextV6, Reason::SteeredPlaintext),
    };
    match LISTENERS.redirect_sk_lookup(context, listener as u32, 0) {
        Ok(()) => Ok(Some(reason)),
        Err(ENOENT) => Err(Reason::ListenerMissing),
        Err(_) => Err(Reason::AssignFailed),
    }
}

/// Whether the node's kubelet makes this connection, to ask what the pod declares as a probe.
#[inline(always)]
fn has_ticket(cookie: u64, packet: &Packet) -> bool {
    let flow = FlowKey {
        cookie,
        source: packet.ends.remote,
        destination: packet.ends.local,
        source_port: packet.ends.remote_port,
        destination_port: packet.ends.local_port,
        reserved: 0,
    };
    // SAFETY: values are one word, written as a whole.
    match unsafe { TICKETS.get(&flow) } {
        Some(made) => now().wrapping_sub(*made) <= TICKET_NANOSECONDS,
        None => false,
    }
}

/// What the pod's annotations say of a port; 0 if nothing.
#[inline(always)]
pub fn port_rule(cookie: u64, port: u16) -> u32 {
    // SAFETY: values are one word, written as a whole.
    unsafe { PORT_RULES.get(&PortKey { cookie, port: u32::from(port), reserved: 0 }) }.copied().unwrap_or(0)
}

/// Whether the pod has sent a datagram there lately.
#[inline(always)]
fn is_answer(cookie: u64, packet: &Packet) -> bool {
    // SAFETY: any bytes are a row; each place says whose it is.
    match unsafe { UDP_PEERS.get(&cookie) } {
        Some(peers) => peers.may_answer(cookie, &packet.ends.remote, packet.ends.remote_port, now()),
        None => false,
    }
}

/// Whether the pod's policies have what comes to the port refused, as far as the kernel knows them.
#[inline(always)]
pub fn is_strict(cookie: u64, pod: &Pod, port: u16) -> bool {
    let key = PortKey { cookie, port: u32::from(port), reserved: 0 };
    // SAFETY: values are one word, written as a whole.
    match unsafe { INBOUND_PORTS.get(&key) } {
        Some(strict) => *strict != 0,
        None => pod.flags & POD_STRICT != 0,
    }
}
