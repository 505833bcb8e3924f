//! A Kubernetes API server as the source of objects, and what a control plane in a cluster keeps there: copies of its root certificate, a lease, and
//! what it tells the objects about themselves. The process starts it with `--kube`.
//!
//! ```text
//! watch (list, then follow; one task a kind)  ->  inventory (what is there, pure)  ->  source (resource::catalog, as for a folder)
//!          \  decode: JSON -> tree -> resource::read, nothing else is kept
//! lease (who writes)  ->  report (conditions and events, from verdicts; telling: what was said)          bundle (copies of the root certificate; every replica)
//! ```

pub mod bundle;
pub mod conditions;
pub mod decode;
pub mod inventory;
pub mod lease;
pub mod parents;
pub mod report;
pub mod secrets;
pub mod source;
pub mod telling;
pub mod watch;

#[cfg(test)]
mod tests;
