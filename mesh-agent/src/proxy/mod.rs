//! The TCP data plane of the node's pods: captured outbound connections, inbound tunnels, inbound plaintext.
//!
//! ```text
//! PodProxy ── accept ──┬─ outbound ── resolve ── attempt ─────────────┐
//!  (per pod)           ├─ inbound  ── deliver (authorize, connect) ───┼── relay ── telemetry
//!                      └─ plaintext ── deliver ───────────────────────┘
//!                                 each registered in `connections`; `recheck` cuts what a change denies
//! ```
//!
//! Invariants:
//! - Nothing reaches an app without a `Permit`, which only an authorization hands out.
//! - A connection is registered before its first authorization and leaves the registry after its sockets are closed.
//! - An identity comes from a TLS handshake, never from an address or a header.
//! - No lock is shared between connections while they are set up or copy; configuration is read from a snapshot.

mod accept;
mod attempt;
mod config;
mod connections;
mod context;
mod deliver;
mod inbound;
mod legs;
mod local;
mod looks;
mod outbound;
mod places;
mod plaintext;
mod pod_proxy;
mod reasons;
mod recheck;
mod registry;
mod relay;
mod seams;
mod shared;
mod sidecar;
mod strict;
#[cfg(test)]
mod tests;
mod turns;

pub use config::ProxyConfig;
pub use connections::{ConnectionView, Connections, CutReason, Direction};
pub use pod_proxy::{PodProxy, ProxyListeners};
pub use reasons::{Reason, RefusalCounters};
pub use seams::{Certificates, FetchedCertificate, Interception};
pub use shared::{PodConnections, ProxyShared};
pub use strict::mode_of;
