//! The agent's side of the CNI plugin: new pods of the mesh start captured, or not at all.
//!
//! ```text
//!  runtime ── chain ── mesh-cni ── cni.sock ── server ── admit ── begin, end ──> enrol::kube (is it wanted?)
//!     ^                    └── scope.json <── scope (pure, written after each change)     │
//!     │ conflist                                  admit ── the same requests ──> enrol::manager
//!     └── place <── install (follows the folders) ── conflist (pure edits, folder carries them out)
//! ```
//! Invariants: a pod that is to be in the mesh goes on only after capture and certificate; what is not to be does at once; nothing that is missing
//! of ours leaves a node without the chain of others, and no file of others is ever half written.

pub mod admit;
mod cache;
pub mod conflist;
mod contest;
mod folder;
pub mod install;
pub mod place;
pub mod scope;
pub mod server;

use std::path::{Path, PathBuf};

pub use admit::Means;
pub use install::{CniHandle, Installer, Status};
pub use place::{Places, remove};
pub use server::{CniMetrics, CniServer, SOCKET};

/// The file of the scope in the folder that outlives the node's power.
pub fn scope_file(state_dir: &Path) -> PathBuf {
    state_dir.join("scope.json")
}
