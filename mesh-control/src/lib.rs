//! The control plane. Objects come from a source, are joined by the index, and are served to agents over xDS; the certificate authority
//! signs for the pods of each node.
//!
//! ```text
//! manifest (files -> trees -> objects)      ca (root, tokens, certificates)
//! cluster (API server -> trees -> objects)      |  asks the view who runs where      webhook (objects are checked before they are kept)
//!      \                                        |
//!       source -> resource::catalog -> index::View -> serve (sessions, one per agent)
//! ```

#![cfg_attr(test, allow(non_snake_case, reason = "tests carry the ids of the rows they prove"))]

pub mod access;
pub mod api_server;
pub mod app;
pub mod ca;
pub mod clock;
pub mod cluster;
pub mod companions;
pub mod config;
pub mod deploy;
pub mod diagnosis;
pub mod fuzz;
pub mod grace;
pub mod index;
pub mod jwks;
pub mod lookup;
pub mod manifest;
pub mod metrics;
pub mod publish;
pub mod resource;
pub mod serve;
pub mod source;
pub mod state;
pub mod status;
pub mod verdict;
pub mod webhook;
pub mod world;
pub mod yaml;
