//! getpeername4|6: apps see the destination they asked for, and the real client of what they accept. Kernel 5.8; the same hooks run for accept4.
//!
//! The slot is in the peer's address itself, so nothing can go stale: not after AF_UNSPEC, not on the outer socket of MPTCP.

use aya_ebpf::{helpers::generated::bpf_get_netns_cookie, macros::cgroup_sock_addr, programs::SockAddrContext};
use mesh_common::{
    Address, ports,
    row::{Client, FlowKey, Pod, SOCKET_ACCEPTED, SlotKey},
    slot,
};

use crate::{
    act::{ALLOW, socket_state},
    context::{Call, Family, TCP},
    maps::{CLIENTS, PODS, SLOTS},
};

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(context: SockAddrContext) -> i32 {
    getpeername(&Call::new(&context, Family::V4))
}

#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(context: SockAddrContext) -> i32 {
    getpeername(&Call::new(&context, Family::V6))
}

#[inline(always)]
fn getpeername(call: &Call) -> i32 {
    // SAFETY: the context is this call's.
    let cookie = unsafe { bpf_get_netns_cookie(call.raw.cast()) };
    // SAFETY: rows are replaced as a whole by the agent.
    let Some(pod) = (unsafe { PODS.get(&cookie) }) else {
        return ALLOW;
    };
    let peer = call.address();
    let number = slot::number(&peer);
    if number != 0 {
        called(call, cookie, pod, number);
    } else if pod.owns(&peer) {
        accepted(call, cookie, &peer);
    }
    ALLOW
}

#[inline(always)]
fn called(call: &Call, cookie: u64, pod: &Pod, number: u32) {
    let port = call.port();
    if let Some(index) = slot::nameserver(number) {
        if port == pod.dns_port {
            call.set(&pod.nameserver(index), ports::RESOLVER);
        }
        return;
    }
    // SAFETY: a slot with users is not freed.
    if port == pod.outbound_port
        && let Some(row) = unsafe { SLOTS.get(SlotKey { cookie, slot: number, reserved: 0 }) }
    {
        call.set(&row.address, row.port);
    }
}

#[inline(always)]
fn accepted(call: &Call, cookie: u64, peer: &Address) {
    let socket = call.socket();
    if socket.is_null() {
        return;
    }
    if let Some(state) = socket_state(socket)
        && state.kind == SOCKET_ACCEPTED
    {
        show(call, &state.client);
        return;
    }
    if call.protocol() != TCP {
        return;
    }
    // Kernels whose sockops program cannot copy the client keep it in the map.
    let flow = FlowKey {
        cookie,
        source: *peer,
        destination: call.source(),
        source_port: call.port(),
        destination_port: call.source_port(),
        reserved: 0,
    };
    // SAFETY: values are written as a whole by sockops.
    if let Some(client) = unsafe { CLIENTS.get(&flow) } {
        show(call, client);
    }
}

/// A client of the other family cannot be shown on an IPv4 socket.
#[inline(always)]
fn show(call: &Call, client: &Client) {
    if call.family == Family::V6 || client.address.is_v4() {
        call.set(&client.address, client.port as u16);
    }
}
