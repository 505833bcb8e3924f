//! The agent's side of the control plane: the delta xDS subscription that feeds `mesh_core::Store`, and the certificates of local identities.
//! What to do is decided by values without I/O (`subscription`, `certificates::schedule`); `stream` and `certificates` carry it out over TLS.
#![cfg_attr(test, allow(non_snake_case, reason = "tests carry the ids of the rows they prove"))]

mod bearer;
pub mod certificates;
mod channel;
mod config;
mod metrics;
pub mod stream;
pub mod subscription;

pub use certificates::{Authority, CertificateManager, CertificateStatus, IssueError};
pub use config::ControlConfig;
pub use metrics::ClientMetrics;
pub use stream::{Sink, run};
