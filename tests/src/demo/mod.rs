//! The tour that `cargo xtask demo` shows: `report` is how it looks, `tour` what it shows, `facts` how each fact is checked.
mod facts;
mod report;
mod tour;

pub use facts::no_residue;
pub use report::Report;
pub use tour::{Options, keep, run};
