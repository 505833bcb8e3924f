//! The measurements of `cargo xtask bench`: the same pods, the same load, direct and through the mesh, in one run.
mod measure;
mod table;
mod ztunnel;

pub use measure::{Line, Options, run};
pub use table::{Column, print};
pub use ztunnel::Peer;
