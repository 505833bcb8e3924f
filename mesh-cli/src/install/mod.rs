//! `meshctl install`: renders the chart, applies it, waits until it serves. `plan` decides what is done with each object, `inventory` remembers it,
//! `rollout` waits.

pub mod inventory;
pub mod plan;
pub mod rollout;
mod run;

pub use run::{Install, lay_files, run};
