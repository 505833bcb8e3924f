//! Enrolment: who plays the kubelet tells the agent over a root-only Unix socket which pods are on the node, or the agent hears of them from the
//! Kubernetes API itself or from Istio's node agent, and captures them.
//!
//! ```text
//!  client ── SOCK_SEQPACKET ── server ── session (order of requests, pure)
//!                                │ check (are the descriptors and addresses what they claim to be)
//!  API server ── watch ── kube ──┤
//!  istio-cni ── its socket ── zds ┤
//!                                v
//!                             manager ── machine (events -> actions, pure)
//!                                │ start, stop
//!                                v
//!                              node ── listeners in the pod's netns, keeper, kernel, proxy, DNS
//! ```
//!
//! Invariants: a pod is either whole (listeners, keeper entry, kernel row, proxy) or absent; one pod's failure is answered to who asked for it
//! and touches no other pod; after a removal no descriptor of the pod is left in this process.

pub mod adopt;
pub mod check;
pub mod kube;
pub mod listeners;
pub mod machine;
pub mod manager;
pub mod node;
pub mod record;
pub mod server;
pub mod session;
pub mod socket;
pub mod zds;

pub use listeners::Listeners;
pub use machine::{NetnsId, Spec};
pub use manager::{Manager, ManagerHandle};
pub use server::EnrolServer;
