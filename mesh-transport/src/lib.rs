//! Bytes between workloads: sockets, TLS, HBONE tunnels, the tunnel pool and the copy loop.
//!
//! The agent's proxy is the main caller; `mesh-client` uses [`tls`] for what a certificate authority returned.
//! Nothing here knows policy, services or configuration: callers decide, this crate moves bytes.
//!
//! ```text
//!   app socket --read--> [record slots] --seal--> tunnel socket      (copy::bidirectional, client side of a stream)
//!   tunnel socket --read--> open in place --writev--> app socket     (hbone::driver, one task per tunnel)
//! ```
//!
//! A byte is copied by the kernel and by AES only: it is read into the buffer that becomes the TLS record, and written
//! to the application from the buffer that the record was decrypted in.

mod buffer;
pub mod copy;
mod counters;
pub mod datagram;
pub mod fuzz;
pub mod hbone;
pub mod netns;
pub mod path;
pub mod socket;
pub mod tls;

// The harness in tests/ names this crate from outside; one test of the inside uses it too.
#[cfg(test)]
extern crate self as mesh_transport;
#[cfg(test)]
#[path = "../tests/support/mod.rs"]
mod support;
