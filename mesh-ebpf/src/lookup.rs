//! sk_lookup: one instance per pod, attached to the pod's network namespace, with its own listeners. Kernel 5.9; without it pods cannot be enrolled.
//!
//! Runs for SYNs and for datagrams of unconnected sockets, never for established ones. A miss drops: a listener of somebody else on
//! that port must not get what the agent should have checked.

use aya_ebpf::{macros::sk_lookup, programs::SkLookupContext};
use mesh_common::{
    Reason,
    decide::{Inbound, Lookup, inbound},
    row::{Listener, POD_STRICT, POD_UNDECIDED, Pod, PortKey},
};

use crate::{
    act::{count, now, tell},
    context::{Packet, TCP, UDP, packet},
    maps::{COOKIE, INBOUND_PORTS, LISTENERS, PODS, UDP_PEERS},
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
    if !pod.is_of(cookie) {
        return Err(Reason::PodMissing);
    }
    let (listener, reason) = match verdict {
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
