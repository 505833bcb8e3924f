//! What the kernel programs and the agent share: rows of the maps, slot addresses, reasons, event records, and the pure decisions.
//!
//! `mesh-ebpf` compiles this for the kernel, `mesh-agent::bpf` for user space; the decisions are tested on the host as tables.
//! Nothing here does I/O or allocates. A change of any row must bump [`ABI_VERSION`]: it names the folder that pins live in.

#![no_std]

#[cfg(test)]
extern crate std;

pub mod address;
pub mod decide;
pub mod event;
pub mod fuzz;
pub mod peers;
pub mod reason;
pub mod row;
pub mod slot;

pub use address::Address;
pub use event::Event;
pub use reason::Reason;

/// Version of every row in this crate; part of the pin path.
pub const ABI_VERSION: u32 = 4;

/// Ports with a fixed meaning in the mesh.
pub mod ports {
    /// Slots of captured TCP connections.
    pub const OUTBOUND: u16 = 15001;
    /// Plaintext from the network, before the agent hands it to the app.
    pub const INBOUND_PLAINTEXT: u16 = 15006;
    /// HBONE, virtual on the pod's address.
    pub const HBONE: u16 = 15008;
    /// DNS over UDP and TCP.
    pub const DNS: u16 = 15053;
    /// What pods call to resolve names.
    pub const RESOLVER: u16 = 53;
}
