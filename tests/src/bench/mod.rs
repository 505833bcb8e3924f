//! The measurements of `cargo xtask bench`: the same pods, the same load, direct and through the mesh, in one run; and of requests, through our gateway and others.
mod generators;
mod measure;
mod requests;
mod rivals;
mod table;
mod train;
mod ztunnel;

pub use measure::{Line, Options, run};
pub use requests::{RequestOptions, run as run_requests};
pub use table::{Column, print};
pub use train::run as train;
pub use ztunnel::Peer;
