//! What a pod may not reach because nobody in the registry has it. Asked by the connect and sendmsg hooks, for TCP before anything is captured or left
//! alone; so it holds whatever else is taken out of the mesh, and whether or not an agent is there.
//!
//! A server may answer whoever calls it: sk_lookup remembers callers whom the registry does not know.

use aya_ebpf::maps::lpm_trie::Key;
use mesh_common::{
    Address, Reason,
    decide::{Attempt, errno, needs_registry},
    peers::ANSWER_TIME,
    row::{FlowKey, POD_REGISTRY_ONLY, Pod, RegistryKey},
};

use crate::{
    act::{now, refuse},
    context::{Call, Packet, UDP},
    maps::{PODS, REGISTRY, UDP_CALLERS},
};

/// Whether the pod may reach only what the registry knows, and this is nobody's.
#[inline(always)]
pub fn is_barred(pod: &Pod, attempt: &Attempt) -> bool {
    needs_registry(pod, attempt) && !is_known(&attempt.destination)
}

/// The same for a datagram, or for any protocol but TCP; its verdict, if the call is to fail.
#[inline(always)]
pub fn bar(call: &Call, cookie: u64, pod: &Pod, attempt: &Attempt) -> Option<i32> {
    if !is_barred(pod, attempt) || is_answer(call, cookie, attempt) {
        return None;
    }
    let (to, port) = (&attempt.destination, attempt.port);
    Some(refuse(call, cookie, to, port, pod.outbound_port, Reason::NotInRegistry, errno::ECONNREFUSED))
}

#[inline(always)]
fn is_known(address: &Address) -> bool {
    const WHOLE: u32 = 128;
    let key = RegistryKey { prefix: WHOLE, address: *address };
    // SAFETY: the two are the same words; packed only says that less is known of where they stand.
    REGISTRY.get(unsafe { &*(&raw const key).cast::<Key<[u32; 4]>>() }).copied().unwrap_or(0) != 0
}

/// Whether the destination has sent a datagram to the socket's port lately.
#[inline(always)]
fn is_answer(call: &Call, cookie: u64, attempt: &Attempt) -> bool {
    let port = call.source_port();
    if call.protocol() != UDP || port == 0 {
        return false;
    }
    let key = caller(cookie, &attempt.destination, attempt.port, port);
    // SAFETY: values are one word, written as a whole.
    match unsafe { UDP_CALLERS.get(&key) } {
        Some(at) => now().saturating_sub(*at) <= ANSWER_TIME,
        None => false,
    }
}

/// A datagram of somebody has been let in: he may be answered.
#[inline(always)]
pub fn remember_caller(cookie: u64, packet: &Packet) {
    // SAFETY: any bytes are a row; what is remembered of a row that is another's lets nobody reach more.
    let Some(pod) = (unsafe { PODS.get(&cookie) }) else {
        return;
    };
    if packet.protocol != UDP || pod.flags & POD_REGISTRY_ONLY == 0 || is_known(&packet.ends.remote) {
        return;
    }
    let key = caller(cookie, &packet.ends.remote, packet.ends.remote_port, packet.ends.local_port);
    let _ = UDP_CALLERS.insert(&key, &now(), 0);
}

/// A server's socket may be bound to no address.
#[inline(always)]
fn caller(cookie: u64, address: &Address, port: u16, own_port: u16) -> FlowKey {
    FlowKey {
        cookie,
        source: *address,
        destination: Address::UNSPECIFIED,
        source_port: port,
        destination_port: own_port,
        reserved: 0,
    }
}
