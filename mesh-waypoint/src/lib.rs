//! The L7 proxy of the mesh: the waypoint of a namespace, service or workload, and (the same program) its gateways.
//!
//! ```text
//! agent ── HBONE ──> inbound: whose address was asked for, is it bound to us ──> connection: HTTP/1.1, HTTP/2 or neither, by its first bytes
//!                                                                                   │
//!      security: whose token it has, whether policies let it through ── callout: whom they ask
//!      exchange: one request ── mesh_core::l7::pick ── attempts ──> upstream: connections to endpoints, by HBONE or plain TCP
//!                     └── telemetry: istio_requests_total and the like, the access log, spans ── collector
//! outside ── TCP, TLS ──> edge: which listener of the gateway is meant ──> the same exchange, or bytes to one endpoint
//! ```
//!
//! A connection lives on one lane (`mesh_runtime::lanes`), with all that it asks of others: what a request touches is shared by lanes only for reading.

#![cfg_attr(test, allow(non_snake_case, reason = "tests carry the ids of the rows they prove"))]

pub mod admin;
pub mod app;
pub mod callout;
pub(crate) mod circles;
pub mod collector;
pub mod config;
pub mod connection;
mod counted;
pub mod downstream;
pub mod edge;
pub mod engine;
pub mod entry;
pub mod exchange;
pub mod fuzz;
pub mod guard;
pub mod http;
pub mod inbound;
pub mod leads;
pub mod names;
pub mod origination;
pub mod peer;
pub mod places;
pub mod record;
pub mod refused;
pub mod security;
pub mod settings;
pub mod shared;
pub mod shown;
pub mod silence;
pub mod sources;
pub mod spoken;
pub mod state;
pub mod steer;
pub mod target;
pub mod telemetry;
pub mod upstream;

pub use engine::{Engine, Lane};
pub use settings::Settings;
pub use shared::{Certificates, Own, Shared};
pub use state::{State, View};
