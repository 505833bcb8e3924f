//! sockops on the kubelet's cgroup: when it connects to what a pod of the node declares as a probe, its four addresses and ports become a ticket,
//! which the pod's sk_lookup lets pass; when the socket is closed the ticket goes. Nothing is told by an address: whoever else sends from the
//! node's has none. Kernel 5.15.

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_TCP_CONNECT_CB, bpf_sock_ops},
    helpers::generated::bpf_get_netns_cookie,
    macros::sock_ops,
    programs::SockOpsContext,
};
use mesh_common::{
    Reason,
    row::{FlowKey, ProbeKey},
};

use crate::{
    act::{count, now},
    context::tcp_ends,
    maps::{COOKIE, PROBES, TICKETS},
    sockops::{TCP_CLOSE, flow, watch},
};

#[sock_ops]
pub fn probe_tickets(context: SockOpsContext) -> u32 {
    match context.op() {
        // Before the SYN leaves; the source port is known.
        BPF_SOCK_OPS_TCP_CONNECT_CB => {
            if let Some(ticket) = ticket(context.ops) {
                watch(context.ops);
                if TICKETS.insert(&ticket, now(), u64::from(BPF_ANY)).is_err() {
                    count(Reason::TicketLost);
                }
            }
        }
        BPF_SOCK_OPS_STATE_CB if context.arg(1) == TCP_CLOSE => {
            if let Some(ticket) = ticket(context.ops) {
                let _ = TICKETS.remove(&ticket);
            }
        }
        _ => {}
    }
    1
}

/// The ticket of this socket: none unless it is of the node's own network, which containers below the kubelet are not, and leads to a probe.
#[inline(always)]
fn ticket(ops: *mut bpf_sock_ops) -> Option<FlowKey> {
    // SAFETY: the context is this call's.
    if unsafe { bpf_get_netns_cookie(ops.cast()) } != COOKIE.load() {
        return None;
    }
    let ends = tcp_ends(ops);
    let key = ProbeKey { address: ends.remote, port: u32::from(ends.remote_port) };
    // SAFETY: values are one word, written as a whole.
    let pod = *unsafe { PROBES.get(&key) }?;
    Some(flow(pod, &ends))
}
