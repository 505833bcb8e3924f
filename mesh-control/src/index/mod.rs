//! Joins objects into what agents need: workloads, services and policies. Pure functions of [`Objects`]; the same objects always give the
//! same view, whatever came before, but for an address that two services claim: it stays with the one that has it.

pub mod certificates;
pub mod datagram;
pub mod join;
pub mod l4;
pub mod l7;
pub mod outbound;
pub mod policy;
pub mod routing;
pub mod security;
pub mod service;
pub mod service_entry;
pub mod settings;
pub mod target;
pub mod telemetry;
pub mod trust;
mod view;
pub mod waypoint;
pub mod workload;

pub use join::Join;
pub use settings::Settings;
pub use view::{AgentPod, View, WaypointGateway, WaypointPod};

use crate::resource::Objects;

/// Joins once.
pub fn build(objects: &Objects, settings: &Settings) -> View {
    Join::default().build(objects.clone(), settings)
}

#[cfg(test)]
mod tests;
