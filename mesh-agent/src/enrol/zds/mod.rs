//! Enrolment from Istio's node agent (istio-cni): it decides which pods are in the mesh, redirects their traffic by iptables, and tells the node proxy
//! about them over its own socket (ZDS). Here we are that proxy. Started by the worker with `--zds`.
//!
//! ```text
//!  istio-cni ── SOCK_SEQPACKET ── client ── conversation (order of requests, pure)
//!                                   │ waiting (what failed is tried again, and holds back the snapshot; pure)
//!                                   └── find (addresses, cgroup, names of a network namespace) ── check ── manager
//! ```
//! Invariants: every request is answered, in time, before the next is read; who speaks is root; a pod is found from the namespace that came with its
//! name and from nothing else that was said; while istio-cni is away everything stays as it is.

mod client;
mod conversation;
mod find;
mod waiting;

pub use client::{View, ZdsClient};
pub use find::Places;
