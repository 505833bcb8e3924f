//! connect4 and connect6: TCP of an enrolled pod goes to a slot. Kernel 4.17; without them nothing is captured.
//!
//! A v6 socket that connects to a v4-mapped address runs connect6; `Address` holds both forms alike.

use aya_ebpf::{
    helpers::generated::{bpf_get_netns_cookie, bpf_setsockopt},
    macros::cgroup_sock_addr,
    maps::lpm_trie::Key,
    programs::SockAddrContext,
};
use mesh_common::{
    Address, Reason,
    decide::{Attempt, Capture, capture_tcp, capture_udp, errno, leaves},
    row::{POD_RULES, Pod, RangeKey, SOCKET_CAPTURED, SlotKey, SocketState},
};

use crate::{
    act::{ALLOW, agent_alive, count, make_socket_state, refuse},
    context::{Call, Family, LOOPBACK_INDEX, TCP, UDP},
    lookup::port_rule,
    maps::{PODS, RANGE_RULES},
    outside::{bar, is_barred},
    slots,
};

#[cgroup_sock_addr(connect4)]
pub fn connect4(context: SockAddrContext) -> i32 {
    let call = Call::new(&context, Family::V4);
    let verdict = connect(&call);
    #[cfg(feature = "log")]
    aya_log_ebpf::debug!(
        &context,
        "connect4: protocol {}, now to port {}, verdict {}",
        call.protocol(),
        call.port(),
        verdict
    );
    verdict
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(context: SockAddrContext) -> i32 {
    let call = Call::new(&context, Family::V6);
    let verdict = connect(&call);
    #[cfg(feature = "log")]
    aya_log_ebpf::debug!(
        &context,
        "connect6: protocol {}, now to port {}, verdict {}",
        call.protocol(),
        call.port(),
        verdict
    );
    verdict
}

#[inline(always)]
fn connect(call: &Call) -> i32 {
    // SAFETY: the context is this call's.
    let cookie = unsafe { bpf_get_netns_cookie(call.raw.cast()) };
    // SAFETY: any bytes are a row; whether they are this pod's is asked last.
    let Some(pod) = (unsafe { PODS.get(&cookie) }) else {
        return ALLOW;
    };
    let protocol = call.protocol();
    let attempt =
        Attempt { destination: call.address(), port: call.port(), source: call.source(), agent_alive: agent_alive() };
    if protocol != TCP
        && let Some(verdict) = bar(call, cookie, pod, &attempt)
    {
        return verdict;
    }
    if protocol != TCP && protocol != UDP {
        return ALLOW;
    }
    if protocol == UDP {
        match capture_udp(pod, &attempt) {
            Capture::Nameserver(number) if is_free_of_device(call) => {
                call.set_slot(number, attempt.destination.is_v4(), pod.dns_port);
                count(Reason::DnsCaptured);
            }
            Capture::Pass(Reason::DnsAgentAway) => count(Reason::DnsAgentAway),
            _ => {}
        }
        return ALLOW;
    }
    let directed = match direct(call, cookie, pod, &attempt) {
        Ok(_) if !pod.is_of(cookie) => Err((Reason::PodClosed, errno::ECONNREFUSED)),
        directed => directed,
    };
    match directed {
        Ok(reason) => {
            count(reason);
            ALLOW
        }
        Err((reason, errno)) => {
            refuse(call, cookie, &attempt.destination, attempt.port, pod.outbound_port, reason, errno)
        }
    }
}

/// Acts on the decision about a TCP connect: what to count, or how to refuse it.
#[inline(always)]
fn direct(call: &Call, cookie: u64, pod: &Pod, attempt: &Attempt) -> Result<Reason, (Reason, i32)> {
    let refused = |reason| (reason, errno::ECONNREFUSED);
    match capture_tcp(pod, attempt) {
        Capture::Pass(reason) => Ok(reason),
        Capture::Refuse(reason, errno) => Err((reason, errno)),
        _ if is_barred(pod, attempt) => Err(refused(Reason::NotInRegistry)),
        _ if pod.flags & POD_RULES != 0 && is_excluded(cookie, pod, attempt) => Ok(Reason::OutboundExcluded),
        Capture::Nameserver(number) => {
            unbind_device(call).map_err(refused)?;
            call.set_slot(number, attempt.destination.is_v4(), pod.dns_port);
            Ok(Reason::DnsCaptured)
        }
        Capture::Slot => {
            capture(call, cookie, pod, &attempt.destination, attempt.port).map_err(refused)?;
            Ok(Reason::Captured)
        }
    }
}

/// Whether the pod's annotations take the destination out of the mesh.
#[inline(always)]
fn is_excluded(cookie: u64, pod: &Pod, attempt: &Attempt) -> bool {
    const WHOLE: u32 = 128;
    let key = RangeKey::new(cookie, attempt.destination, WHOLE);
    // SAFETY: the two are the same words; packed only says that less is known of where they stand.
    let range = RANGE_RULES.get(unsafe { &*(&raw const key).cast::<Key<[u32; 6]>>() }).copied().unwrap_or(0);
    leaves(pod.flags, port_rule(cookie, attempt.port), range)
}

#[inline(always)]
fn capture(call: &Call, cookie: u64, pod: &Pod, to: &Address, port: u16) -> Result<(), Reason> {
    unbind_device(call)?;
    let socket = call.socket();
    if socket.is_null() {
        return Err(Reason::NoSocketStorage);
    }
    let state = make_socket_state(socket).ok_or(Reason::NoSocketStorage)?;
    let number = slots::acquire(cookie, pod, to, port)?;
    *state = SocketState {
        kind: SOCKET_CAPTURED,
        reserved: 0,
        key: SlotKey { cookie, slot: number, reserved: 0 },
        client: Default::default(),
    };
    call.set_slot(number, to.is_v4(), pod.outbound_port);
    Ok(())
}

/// A socket that is bound to a device would send the slot's address out there; let go of the device, or refuse.
#[inline(always)]
fn unbind_device(call: &Call) -> Result<(), Reason> {
    if is_free_of_device(call) {
        return Ok(());
    }
    const SOL_SOCKET: i32 = 1;
    const SO_BINDTODEVICE: i32 = 25;
    let mut none = [0u8; 4];
    // SAFETY: the context is this call's, the buffer lives on the stack for the call.
    let result = unsafe {
        bpf_setsockopt(call.raw.cast(), SOL_SOCKET, SO_BINDTODEVICE, none.as_mut_ptr().cast(), none.len() as i32)
    };
    if result != 0 {
        return Err(Reason::DeviceBound);
    }
    count(Reason::DeviceUnbound);
    Ok(())
}

#[inline(always)]
fn is_free_of_device(call: &Call) -> bool {
    let device = call.device();
    device == 0 || device == LOOPBACK_INDEX
}
