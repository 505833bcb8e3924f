//! sendmsg4|6 and recvmsg4|6: datagrams of unconnected sockets. Those of DNS go to the agent; whom the others went to is remembered where the mesh
//! refuses datagrams that answer nothing. Kernel 4.18 and 5.2; without them such sockets use their resolver.
//!
//! The halves are not symmetric: a v6 socket that sends to a v4-mapped address runs sendmsg4, its answers run recvmsg6.

use aya_ebpf::{helpers::generated::bpf_get_netns_cookie, macros::cgroup_sock_addr, programs::SockAddrContext};
use mesh_common::{
    Reason,
    decide::{Attempt, Capture, capture_udp},
    ports,
    row::{POD_UDP_DENY, POD_UNDECIDED, Pod},
    slot,
};

use crate::{
    act::{ALLOW, agent_alive, count, now},
    context::{Call, Family, LOOPBACK_INDEX, UDP},
    lookup::is_strict,
    maps::{PODS, UDP_PEERS},
    outside::bar,
};

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(context: SockAddrContext) -> i32 {
    send(&Call::new(&context, Family::V4))
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(context: SockAddrContext) -> i32 {
    send(&Call::new(&context, Family::V6))
}

#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(context: SockAddrContext) -> i32 {
    receive(&Call::new(&context, Family::V4))
}

#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(context: SockAddrContext) -> i32 {
    receive(&Call::new(&context, Family::V6))
}

#[inline(always)]
fn send(call: &Call) -> i32 {
    // SAFETY: the context is this call's.
    let cookie = unsafe { bpf_get_netns_cookie(call.raw.cast()) };
    // SAFETY: rows are replaced as a whole by the agent.
    let Some(pod) = (unsafe { PODS.get(&cookie) }) else {
        return ALLOW;
    };
    let attempt =
        Attempt { destination: call.address(), port: call.port(), source: call.source(), agent_alive: agent_alive() };
    if let Some(verdict) = bar(call, cookie, pod, &attempt) {
        return verdict;
    }
    if call.protocol() == UDP && (attempt.port != ports::RESOLVER || !ask_agent(call, pod, &attempt)) {
        remember(call, cookie, pod);
    }
    ALLOW
}

/// Sends a query to the agent, if it is to one of the pod's nameservers and the agent is there.
#[inline(always)]
fn ask_agent(call: &Call, pod: &Pod, attempt: &Attempt) -> bool {
    let device = call.device();
    match capture_udp(pod, attempt) {
        Capture::Nameserver(number) if device == 0 || device == LOOPBACK_INDEX => {
            call.set_slot(number, attempt.destination.is_v4(), pod.dns_port);
            count(Reason::DnsCaptured);
            return true;
        }
        Capture::Pass(Reason::DnsAgentAway) => count(Reason::DnsAgentAway),
        _ => {}
    }
    false
}

/// Who gets a datagram of the pod may answer it. A port that takes datagrams of everybody needs no leave for answers, and whom a server there
/// answers is for strangers to choose: they must not push out those that the pod has asked.
#[inline(always)]
fn remember(call: &Call, cookie: u64, pod: &Pod) {
    if pod.flags & POD_UDP_DENY != 0
        && (pod.flags & POD_UNDECIDED != 0 || is_strict(cookie, pod, call.source_port()))
        && let Some(peers) = UDP_PEERS.get_ptr_mut(&cookie)
    {
        // SAFETY: the pointer is a map value that stays mapped while the program runs. Two CPUs may choose the same oldest place at once:
        // one of their peers is forgotten then, and what stands there is, at worst, a peer that nobody asked half of.
        unsafe { &mut *peers }.remember(cookie, &call.address(), call.port(), now());
    }
}

#[inline(always)]
fn receive(call: &Call) -> i32 {
    let address = call.address();
    let Some(index) = slot::nameserver(slot::number(&address)) else {
        return ALLOW;
    };
    // SAFETY: the context is this call's.
    let cookie = unsafe { bpf_get_netns_cookie(call.raw.cast()) };
    // SAFETY: rows are replaced as a whole by the agent.
    let Some(pod) = (unsafe { PODS.get(&cookie) }) else {
        return ALLOW;
    };
    if call.port() == pod.dns_port {
        call.set(&pod.nameserver(index), ports::RESOLVER);
    }
    ALLOW
}
