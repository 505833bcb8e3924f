//! The kernel programs of Undermesh. `mesh-agent::bpf` loads them; `mesh-common` holds the rows and the decisions.
//!
//! ```text
//!  program        hook                                    what it does
//!  connect4|6     cgroup of the pods                      TCP of an enrolled pod goes to a slot; DNS to its nameservers likewise
//!  sendmsg4|6     cgroup of the pods                      unconnected DNS datagrams
//!  recvmsg4|6     cgroup of the pods                      their answers come from the nameserver again
//!  getpeername4|6 cgroup of the pods                      apps see whom they called, and who calls them
//!  tcp_states     cgroup of the pods and of the agent     users of slots; the client's address goes to the accepted socket
//!  probe_tickets  cgroup of the kubelet                   its connects to ports of probes pass the pods' lookup
//!  pod_lookup     network namespace of one pod            slots and the network reach the agent's listeners, or nobody
//! ```
//!
//! Every hook is parse, look up, decide, act. Kernel 5.15 and later; features of later kernels are switched by [`maps::HAVE_SET_RETVAL`].

// The stable atomics want compare-and-swap, which this target lacks; adding in place is all that is needed.
#![feature(core_intrinsics)]
#![allow(internal_features)]
#![no_std]
#![no_main]

mod act;
mod connect;
mod context;
mod dns;
mod lookup;
mod maps;
mod outside;
mod peername;
mod probe;
mod slots;
mod sockops;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Nothing panics: the verifier would reject a loop that is reachable.
    loop {}
}

/// Of our licences, Apache-2.0 OR GPL-2.0-only, the one that lets the programs call the kernel's GPL helpers; it knows no word for the pair.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 7] = *b"GPL v2\0";
