//! HBONE: HTTP/2 CONNECT over mutual TLS, between the agents of two pods.
//!
//! [`Pool`] opens streams as a client, [`Acceptor`] takes tunnels as a server; both give [`HboneStream`]s.

mod admission;
mod driver;
mod error;
mod frame;
mod half_open;
mod headers;
mod hpack;
mod huffman;
mod pool;
mod queue;
mod request;
mod server;
mod stream;
mod tunnel;

pub use error::{HboneError, Stage};
pub(crate) use headers::fuzz_request;
pub use pool::{Patience, Pool, PoolConfig, PoolStats, TunnelKey};
pub(crate) use request::fuzz_values;
pub use request::{
    Authority, AuthorityProblem, Baggage, Claimed, ConnectRequest, ConnectResponse, Forwarded, TraceParent,
    WorkloadKind,
};
pub use server::{
    AcceptError, Acceptor, AcceptorConfig, InboundRequest, InboundTunnel, Refusals, ServeEnd, refusals, refuse_busy,
};
pub use stream::HboneStream;
pub(crate) use stream::{Received, Sent};

#[cfg(test)]
mod tests;
