//! Enrolment from the Kubernetes API: which pods of this node are in the mesh, where they are on the node, and the same requests to the
//! [manager](super::manager) that a client of the enrolment socket makes. Started by the worker with `--kube`.
//!
//! ```text
//!  API server ── watch ── facts ──> book (events -> operations, pure; asks wanted)
//!     ^                              │ enrol, keep, release, annotate
//!     │ annotation                   v
//!     └────────────────────────── driver ── find (cgroup, resolv: pure parsers) ── check ── manager
//! ```
//! Invariants: nothing is enrolled on a guess (the pod's UID leads to a cgroup, the cgroup to processes, these to a network namespace that
//! the runtime holds and that has all of the pod's addresses); nothing is released before both lists are complete, or because the API server
//! is away; every pod that is left out has a reason that the admin socket shows.

mod book;
mod cgroup;
mod driver;
mod facts;
mod find;
mod kubelet;
mod resolv;
mod rules;
mod wanted;
mod watch;

pub use book::{Knowledge, NotBegun, Trouble};
pub use driver::{Begun, Enroller, KubeHandle, View, handle};
pub use facts::{Called, Facts};
pub use find::{Finder, checked};
pub use kubelet::{Follower, Probes};
pub use resolv::parse as resolv_conf;
pub use wanted::{Mode, Reason, SYSTEM, Verdict, wanted};
pub use watch::connect;
