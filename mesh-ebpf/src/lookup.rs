//! sk_lookup: one instance per pod, attached to the pod's network namespace, with its own listeners. Kernel 5.9; without it pods cannot be enrolled.
//!
//! Runs for SYNs and for datagrams of unconnected sockets, never for established ones. A miss drops: a listener of somebody else on
//! that port must not get what the agent should have checked.

use aya_ebpf::{macros::sk_lookup, programs::SkLookupContext};
use mesh_common::{
    Reason,
    decide::{Inbound, Lookup, inbound_tcp, inbound_udp},
    row::{Listener, POD_STRICT, Pod, PortKey},
};

use crate::{
    act::{count, tell},
    context::{Packet, TCP, UDP, packet},
    maps::{COOKIE, INBOUND_PORTS, LISTENERS, PODS},
};

const PASS: u32 = 1;
const DROP: u32 = 0;
const ENOENT: i32 = -2;

#[sk_lookup]
pub fn pod_lookup(context: SkLookupContext) -> u32 {
    let cookie = COOKIE.load();
    let packet = packet(context.lookup);
    // SAFETY: rows are replaced as a whole by the agent.
    let Some(pod) = (unsafe { PODS.get(&cookie) }) else {
        return drop(&packet, cookie, Reason::PodMissing);
    };
    let lookup = Lookup { remote: packet.ends.remote, local: packet.ends.local, port: packet.ends.local_port };
    let verdict = match packet.protocol {
        TCP => inbound_tcp(pod, &lookup),
        UDP => inbound_udp(pod, &lookup),
        _ => Inbound::Pass,
    };
    match verdict {
        Inbound::Pass => PASS,
        Inbound::PassCounted(reason) => {
            count(reason);
            PASS
        }
        Inbound::Steer(listener, reason) => steer(&context, &packet, cookie, listener as u32, reason),
        Inbound::Plaintext if is_strict(cookie, pod, lookup.port) => drop(&packet, cookie, Reason::StrictPlaintext),
        Inbound::Plaintext => {
            let listener = if lookup.local.is_v4() { Listener::PlaintextV4 } else { Listener::PlaintextV6 };
            steer(&context, &packet, cookie, listener as u32, Reason::SteeredPlaintext)
        }
        Inbound::Drop(reason) => drop(&packet, cookie, reason),
    }
}

#[inline(always)]
fn is_strict(cookie: u64, pod: &Pod, port: u16) -> bool {
    let key = PortKey { cookie, port: u32::from(port), reserved: 0 };
    // SAFETY: values are one word, written as a whole.
    match unsafe { INBOUND_PORTS.get(&key) } {
        Some(strict) => *strict != 0,
        None => pod.flags & POD_STRICT != 0,
    }
}

#[inline(always)]
fn steer(context: &SkLookupContext, packet: &Packet, cookie: u64, listener: u32, reason: Reason) -> u32 {
    match LISTENERS.redirect_sk_lookup(context, listener, 0) {
        Ok(()) => {
            count(reason);
            PASS
        }
        Err(ENOENT) => drop(packet, cookie, Reason::ListenerMissing),
        Err(_) => drop(packet, cookie, Reason::AssignFailed),
    }
}

#[inline(always)]
fn drop(packet: &Packet, cookie: u64, reason: Reason) -> u32 {
    tell(reason, cookie, packet.protocol, &packet.ends);
    DROP
}
