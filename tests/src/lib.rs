//! The lab: nodes, pods and workloads in network namespaces, and everything that runs in them.
//!
//! `harness` builds a small cluster out of namespaces and cgroups and starts the real binaries in it; `apps` are the programs that
//! run inside its pods; `demo` is the tour of `cargo xtask demo`; `bench` the measurements of `cargo xtask bench`; `scale` a
//! cluster that is too large for it, simulated. The cross-process
//! tests in `tests/tests` use the harness. Nothing here is linked into the product.
pub mod apps;
pub mod bench;
pub mod demo;
pub mod harness;
pub mod scale;
