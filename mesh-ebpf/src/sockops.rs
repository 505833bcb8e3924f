//! sockops: counts the users of slots, and carries the client's address from the agent's socket to the app's accepted one. Kernel 5.15.
//!
//! ```text
//!  app's socket     CAPTURED --connect--> COUNTED --close--> EMPTY
//!  agent's socket   AGENT --connect--> PUBLISHED (client in CLIENTS) --close--> AGENT
//!  accepted socket  (established) takes the client out of CLIENTS --> ACCEPTED, until the app closes it
//! ```

use aya_ebpf::{
    bindings::{
        BPF_ANY, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG,
        BPF_SOCK_OPS_TCP_CONNECT_CB, bpf_sock_ops,
    },
    helpers::generated::{bpf_get_netns_cookie, bpf_sock_ops_cb_flags_set},
    macros::sock_ops,
    programs::SockOpsContext,
};
use mesh_common::{
    Reason,
    row::{FlowKey, SOCKET_ACCEPTED, SOCKET_AGENT, SOCKET_CAPTURED, SOCKET_COUNTED, SOCKET_EMPTY, SOCKET_PUBLISHED},
    slot,
};

use crate::{
    act::{count, make_socket_state, socket_state, tell},
    context::{Ends, TCP, tcp_ends, tcp_socket},
    maps::{CLIENTS, PODS},
    slots,
};

pub const TCP_CLOSE: u32 = 7;

#[sock_ops]
pub fn tcp_states(context: SockOpsContext) -> u32 {
    match context.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => connecting(context.ops),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => established(context.ops),
        BPF_SOCK_OPS_STATE_CB if context.arg(1) == TCP_CLOSE => closed(context.ops),
        _ => {}
    }
    1
}

/// Before the SYN leaves; the source port is known.
#[inline(always)]
fn connecting(ops: *mut bpf_sock_ops) {
    let socket = tcp_socket(ops);
    if socket.is_null() {
        return;
    }
    let Some(state) = socket_state(socket) else {
        return;
    };
    let ends = tcp_ends(ops);
    match state.kind {
        SOCKET_CAPTURED if slot::number(&ends.remote) == state.key.slot => {
            watch(ops);
            slots::enter(&state.key);
            state.kind = SOCKET_COUNTED;
        }
        SOCKET_AGENT | SOCKET_PUBLISHED => {
            // SAFETY: the context is this call's.
            let cookie = unsafe { bpf_get_netns_cookie(ops.cast()) };
            watch(ops);
            state.kind = match CLIENTS.insert(flow(cookie, &ends), state.client, u64::from(BPF_ANY)) {
                Ok(()) => SOCKET_PUBLISHED,
                Err(_) => {
                    tell(Reason::ClientMapFull, cookie, TCP, &ends);
                    SOCKET_AGENT
                }
            };
        }
        _ => {}
    }
}

/// The child of an app's listener, before accept can return it.
#[inline(always)]
fn established(ops: *mut bpf_sock_ops) {
    // SAFETY: the context is this call's.
    let cookie = unsafe { bpf_get_netns_cookie(ops.cast()) };
    // SAFETY: rows are replaced as a whole by the agent.
    let Some(pod) = (unsafe { PODS.get(&cookie) }) else {
        return;
    };
    let ends = tcp_ends(ops);
    if !pod.owns(&ends.remote) {
        return;
    }
    let flow = FlowKey {
        cookie,
        source: ends.remote,
        destination: ends.local,
        source_port: ends.remote_port,
        destination_port: ends.local_port,
        reserved: 0,
    };
    // SAFETY: values are written as a whole by `connecting`.
    let Some(client) = (unsafe { CLIENTS.get(&flow) }) else {
        return;
    };
    let client = *client;
    let socket = tcp_socket(ops);
    if socket.is_null() {
        return;
    }
    // Without memory for it the entry stays in the map, where getpeername finds it too.
    if let Some(state) = make_socket_state(socket) {
        state.kind = SOCKET_ACCEPTED;
        state.client = client;
        let _ = CLIENTS.remove(&flow);
        count(Reason::ClientShown);
    }
}

#[inline(always)]
fn closed(ops: *mut bpf_sock_ops) {
    let socket = tcp_socket(ops);
    if socket.is_null() {
        return;
    }
    let Some(state) = socket_state(socket) else {
        return;
    };
    match state.kind {
        SOCKET_COUNTED => {
            slots::leave(&state.key);
            state.kind = SOCKET_EMPTY;
        }
        SOCKET_PUBLISHED => {
            // SAFETY: the context is this call's.
            let cookie = unsafe { bpf_get_netns_cookie(ops.cast()) };
            let _ = CLIENTS.remove(flow(cookie, &tcp_ends(ops)));
            state.kind = SOCKET_AGENT;
        }
        _ => {}
    }
}

#[inline(always)]
pub fn flow(cookie: u64, ends: &Ends) -> FlowKey {
    FlowKey {
        cookie,
        source: ends.local,
        destination: ends.remote,
        source_port: ends.local_port,
        destination_port: ends.remote_port,
        reserved: 0,
    }
}

/// Asks for state changes of this socket; other programs' flags stay.
#[inline(always)]
pub fn watch(ops: *mut bpf_sock_ops) {
    // SAFETY: the context is this call's and has a full socket.
    unsafe {
        let flags = core::ptr::read_volatile(&raw const (*ops).bpf_sock_ops_cb_flags);
        bpf_sock_ops_cb_flags_set(ops, (flags | BPF_SOCK_OPS_STATE_CB_FLAG) as i32);
    }
}
