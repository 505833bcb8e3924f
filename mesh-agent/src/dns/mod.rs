//! DNS for the pods: names of the mesh are answered here, every other query goes to the nameserver the pod had asked.
//!
//! ```text
//!  app -> 53 of its nameserver -> (kernel) slot address:15053 -> server -> handle -> reply, from the same slot address
//!                                                                   \-> cache -> upstream (from the pod's netns) -> reply
//! ```
//! DNS is the part of the mesh that stays open: with no configuration yet, everything goes to the original nameserver; with no agent, the
//! kernel sends queries there. An answer of a foreign nameserver is passed on and never becomes an endpoint of the mesh.

mod cache;
mod environment;
pub mod fuzz;
mod handle;
mod pod;
mod server;
#[cfg(test)]
mod tests;
mod upstream;
mod wire;

pub use environment::Environment;
pub use pod::DnsZone;
pub use server::{DnsConfig, DnsServer};
