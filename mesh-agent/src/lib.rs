//! The node agent as a library: `main.rs` starts it, the tests of this crate drive its parts.

pub mod admin;
pub mod app;
pub mod bpf;
pub mod cgroups;
pub mod cni;
pub mod config;
pub mod dns;
pub mod enrol;
pub mod keeper;
pub mod pod;
pub mod proxy;
pub mod state;
pub mod telemetry;
