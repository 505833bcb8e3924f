//! The tour that `cargo xtask demo` shows.
//!
//! ```text
//! tour     what is shown, in order: the cluster, before, into the mesh, and out of it
//! traffic  load, identities, STRICT, policy
//! waypoint routes, faults, a timeout, copies
//! ingress  a gateway with TLS, from outside
//! fault    an agent dies
//! keep     commands to try afterwards
//! facts    how each fact is checked        report  how it looks
//! ```
mod facts;
mod fault;
mod ingress;
mod keep;
mod report;
mod tour;
mod traffic;
mod waypoint;

pub use facts::no_residue;
pub use keep::keep;
pub use report::{Report, interrupt};
pub use tour::{Options, run};
