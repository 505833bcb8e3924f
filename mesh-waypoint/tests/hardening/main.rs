//! Bad input of clients and endpoints, over real sockets: what may be read in two ways, what does not end, what nobody should send. Rows are those of the
//! catalogue of bad inputs.
#![allow(clippy::unwrap_used, non_snake_case, reason = "tests carry the ids of the rows that they prove")]

mod backends;
mod endpoints;
mod framing;
mod grpc;
mod http2;
mod paths;
mod smuggling;
#[path = "../support/mod.rs"]
mod support;

const VIP: &str = "10.96.0.10";
const ASK: &str = "10.96.0.10:80";
