//! Joins objects into what agents need: workloads, services and policies. Pure functions of [`Objects`]; the same objects always give the
//! same view, whatever came before.

pub mod policy;
pub mod service;
pub mod view;
pub mod workload;

pub use view::{Settings, View, build};

#[cfg(test)]
mod tests;
