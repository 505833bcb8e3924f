//! Bookinfo behind a waypoint, as a user would check it: real processes of every part, and each row with Istio's kinds and with the Gateway API's where it has them.

#![expect(non_snake_case, reason = "tests carry the ids of their rows")]

mod access;
mod breaking;
mod dashboards;
mod decisions;
mod defaults;
mod egress;
mod failures;
mod identity;
mod lifecycle;
mod optional;
mod replicas;
mod routing;
mod sidecars;
mod stage;
mod tap;
mod telemetry;
