//! A Kubernetes API server as the source of objects, and what a control plane in a cluster keeps there: its root and the copies of its root
//! certificate. The process starts it with `--kube`.
//!
//! ```text
//! watch (list, then follow; one task a kind)  ->  inventory (what is there, pure)  ->  source (resource::catalog, as for a folder)
//!          \  decode: JSON -> tree -> resource::read, nothing else is kept
//! ```

pub mod bundle;
pub mod decode;
pub mod inventory;
pub mod source;
pub mod watch;

#[cfg(test)]
mod tests;
