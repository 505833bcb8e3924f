//! What all hooks do besides their job: count, tell, refuse, keep state with a socket.

use aya_ebpf::{
    bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock},
    helpers::generated::{bpf_ktime_get_ns, bpf_set_retval, bpf_sk_storage_get},
};
use mesh_common::{Address, Reason, event::EventRow, row::SocketState, slot};

use crate::{
    context::{Call, Ends},
    maps::{CONTROL, COUNTERS, EVENTS, HAVE_SET_RETVAL, SOCKETS},
};

/// Lets the call go on.
pub const ALLOW: i32 = 1;
const DENY: i32 = 0;

#[inline(always)]
pub fn count(reason: Reason) {
    if let Some(counter) = COUNTERS.get_ptr_mut(reason as u32) {
        // SAFETY: the pointer is this CPU's value of an array map, and programs do not move between CPUs.
        unsafe { *counter += 1 };
    }
}

#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_ktime_get_ns() }
}

/// True if the agent gave a sign of life lately.
#[inline(always)]
pub fn agent_alive() -> bool {
    match CONTROL.get(0) {
        Some(control) => now().wrapping_sub(control.heartbeat) <= control.stale_after,
        None => false,
    }
}

/// Counts a denial and writes an event about it.
#[inline(always)]
pub fn tell(reason: Reason, cookie: u64, protocol: u32, ends: &Ends) {
    count(reason);
    let Some(mut entry) = EVENTS.reserve::<EventRow>(0) else {
        count(Reason::EventLost);
        return;
    };
    entry.write(EventRow {
        time: now(),
        cookie,
        reason: reason as u32,
        protocol,
        source: ends.remote,
        destination: ends.local,
        source_port: ends.remote_port,
        destination_port: ends.local_port,
        reserved: 0,
    });
    entry.submit(0);
}

/// Fails the call with an errno that programs know: an unexpected EPERM makes kernel clients (NFS) spin.
#[inline(always)]
pub fn refuse(call: &Call, cookie: u64, to: &Address, port: u16, own_port: u16, reason: Reason, errno: i32) -> i32 {
    tell(
        reason,
        cookie,
        call.protocol(),
        &Ends { local: *to, local_port: port, remote: call.source(), remote_port: call.source_port() },
    );
    if HAVE_SET_RETVAL.load() != 0 {
        // SAFETY: the helper only stores the value; the hook is one that may call it.
        unsafe { bpf_set_retval(-errno) };
        return DENY;
    }
    call.set_slot(slot::REFUSED, to.is_v4(), own_port);
    ALLOW
}

/// The state kept with a socket, if there is any.
#[inline(always)]
pub fn socket_state(socket: *mut bpf_sock) -> Option<&'static mut SocketState> {
    // SAFETY: the socket comes from the context and is not null (callers check); the helper returns null or a valid value.
    unsafe { bpf_sk_storage_get(storage(), socket.cast(), core::ptr::null_mut(), 0).cast::<SocketState>().as_mut() }
}

/// The same, made if there is none; `None` if the kernel has no memory for it.
#[inline(always)]
pub fn make_socket_state(socket: *mut bpf_sock) -> Option<&'static mut SocketState> {
    // SAFETY: as above.
    unsafe {
        bpf_sk_storage_get(storage(), socket.cast(), core::ptr::null_mut(), u64::from(BPF_SK_STORAGE_GET_F_CREATE))
            .cast::<SocketState>()
            .as_mut()
    }
}

#[inline(always)]
fn storage() -> *mut core::ffi::c_void {
    core::ptr::from_ref(&SOCKETS).cast_mut().cast()
}
