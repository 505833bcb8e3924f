//! Reading and writing the contexts of hooks. Fields are read and written one by one and volatile: the verifier knows no merged accesses.

use aya_ebpf::{
    bindings::{bpf_sk_lookup, bpf_sock, bpf_sock_addr, bpf_sock_ops},
    programs::SockAddrContext,
};
use mesh_common::{Address, slot};

pub const AF_INET: u32 = 2;
pub const TCP: u32 = 6;
pub const UDP: u32 = 17;
/// The loopback device has this index in every namespace.
pub const LOOPBACK_INDEX: u32 = 1;

/// Which half of the context holds the address: a v4-mapped socket runs the hooks of IPv6.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

macro_rules! read {
    ($field:expr) => {
        // SAFETY: the field belongs to a context that the kernel keeps valid while the program runs.
        unsafe { core::ptr::read_volatile(&raw const $field) }
    };
}

macro_rules! write {
    ($field:expr, $value:expr) => {
        // SAFETY: as for reading; the verifier allows writes to these fields for the hook.
        unsafe { core::ptr::write_volatile(&raw mut $field, $value) }
    };
}

macro_rules! words {
    ($field:expr) => {
        Address { words: [read!($field[0]), read!($field[1]), read!($field[2]), read!($field[3])] }
    };
}

/// Both forms are read before one is chosen: a choice between two places of the context would become a computed pointer into it.
#[inline(always)]
fn either(v4: bool, word: u32, words: Address) -> Address {
    if v4 { Address::from_v4_word(word) } else { words }
}

/// The context of connect, sendmsg, recvmsg and getpeername.
#[derive(Clone, Copy)]
pub struct Call {
    pub raw: *mut bpf_sock_addr,
    pub family: Family,
}

impl Call {
    #[inline(always)]
    pub fn new(context: &SockAddrContext, family: Family) -> Self {
        Self { raw: context.sock_addr, family }
    }

    #[inline(always)]
    pub fn address(&self) -> Address {
        match self.family {
            Family::V4 => Address::from_v4_word(read!((*self.raw).user_ip4)),
            Family::V6 => words!((*self.raw).user_ip6),
        }
    }

    #[inline(always)]
    pub fn port(&self) -> u16 {
        u16::from_be(read!((*self.raw).user_port) as u16)
    }

    #[inline(always)]
    pub fn protocol(&self) -> u32 {
        read!((*self.raw).protocol)
    }

    /// Replaces the address. The caller knows that it fits the family.
    #[inline(always)]
    pub fn set(&self, address: &Address, port: u16) {
        match self.family {
            Family::V4 => write!((*self.raw).user_ip4, address.words[3]),
            Family::V6 => {
                write!((*self.raw).user_ip6[0], address.words[0]);
                write!((*self.raw).user_ip6[1], address.words[1]);
                write!((*self.raw).user_ip6[2], address.words[2]);
                write!((*self.raw).user_ip6[3], address.words[3]);
            }
        }
        write!((*self.raw).user_port, u32::from(port.to_be()));
    }

    /// Sends the call to a slot, in the family that the app used.
    #[inline(always)]
    pub fn set_slot(&self, number: u32, v4: bool, port: u16) {
        self.set(&slot::address(number, v4), port);
    }

    /// The socket, or null.
    #[inline(always)]
    pub fn socket(&self) -> *mut bpf_sock {
        // SAFETY: all members of the union are this pointer.
        unsafe { (*self.raw).__bindgen_anon_1.sk }
    }

    /// The address that the socket is bound to, unspecified if it is not.
    #[inline(always)]
    pub fn source(&self) -> Address {
        let socket = self.socket();
        if socket.is_null() {
            return Address::UNSPECIFIED;
        }
        match self.family {
            Family::V4 => Address::from_v4_word(read!((*socket).src_ip4)),
            Family::V6 => words!((*socket).src_ip6),
        }
    }

    /// Port that the socket is bound to, host byte order.
    #[inline(always)]
    pub fn source_port(&self) -> u16 {
        let socket = self.socket();
        if socket.is_null() { 0 } else { read!((*socket).src_port) as u16 }
    }

    /// Index of the device that the socket is bound to, 0 if none.
    #[inline(always)]
    pub fn device(&self) -> u32 {
        let socket = self.socket();
        if socket.is_null() { 0 } else { read!((*socket).bound_dev_if) }
    }
}

/// Addresses and ports of a TCP event, ports in host byte order.
#[derive(Clone, Copy)]
pub struct Ends {
    pub local: Address,
    pub local_port: u16,
    pub remote: Address,
    pub remote_port: u16,
}

#[inline(always)]
pub fn tcp_ends(ops: *mut bpf_sock_ops) -> Ends {
    let v4 = read!((*ops).family) == AF_INET;
    let local = either(v4, read!((*ops).local_ip4), words!((*ops).local_ip6));
    let remote = either(v4, read!((*ops).remote_ip4), words!((*ops).remote_ip6));
    Ends {
        local,
        local_port: read!((*ops).local_port) as u16,
        remote,
        remote_port: u32::from_be(read!((*ops).remote_port)) as u16,
    }
}

#[inline(always)]
pub fn tcp_socket(ops: *mut bpf_sock_ops) -> *mut bpf_sock {
    // SAFETY: all members of the union are this pointer.
    unsafe { (*ops).__bindgen_anon_2.sk }
}

/// What a packet that looks for a socket says, ports in host byte order.
#[derive(Clone, Copy)]
pub struct Packet {
    pub protocol: u32,
    pub ends: Ends,
}

#[inline(always)]
pub fn packet(lookup: *mut bpf_sk_lookup) -> Packet {
    let v4 = read!((*lookup).family) == AF_INET;
    let local = either(v4, read!((*lookup).local_ip4), words!((*lookup).local_ip6));
    let remote = either(v4, read!((*lookup).remote_ip4), words!((*lookup).remote_ip6));
    Packet {
        protocol: read!((*lookup).protocol),
        ends: Ends {
            local,
            local_port: read!((*lookup).local_port) as u16,
            remote,
            remote_port: u16::from_be(read!((*lookup).remote_port)),
        },
    }
}
