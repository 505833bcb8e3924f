//! The decisions of the hooks, as pure functions: what comes in is a parsed packet or call and the pod's row, what goes out is a verdict.
//! The hooks in `mesh-ebpf` parse, look up, call one of these, and act.

mod capture;
mod inbound;
mod outside;
mod rules;
mod share;

pub use capture::{Attempt, Capture, capture_tcp, capture_udp, errno};
pub use inbound::{Inbound, Lookup, inbound, inbound_tcp, inbound_udp};
pub use outside::needs_registry;
pub use rules::{enters, leaves};
pub use share::{Place, divide, is_fair, place};
