//! `meshctl uninstall`: takes everything away in an order in which nothing is left that waits for something gone.
//!
//! ```text
//! webhooks          first: with the control plane gone they could refuse every edit
//! agents            their DaemonSet, and then their pods
//! nodes             on each, a pod that runs `mesh-agent cleanup` (cleanup): programs, pins, CNI configuration, files
//! pods              the annotation ambient.istio.io/redirection
//! everything else   the last made first; then what the control plane made: root certificates, the root's Secret, leases
//! definitions       with --purge-crds, and only ours: users' objects go with them
//! namespace         if an installation has made it and nothing of others is in it; else the labels that it was given
//! ```

pub mod cleanup;
mod namespace;
mod nodes;
mod report;
mod run;

pub use run::{Uninstall, run};
