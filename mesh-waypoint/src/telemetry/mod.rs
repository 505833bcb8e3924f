//! What operators see of traffic: Istio's metrics of requests and of copied connections, lines of the access log, spans.
//!
//! ```text
//! exchange::report, connection ─┬─ Meters (one for each lane) ──┬─ Exposition: a scrape adds up the lanes
//!                               │                              └─ expire: label sets that nobody uses are forgotten
//!                               ├─ Plan (compiled): logs, by what Facts say ── Sink ── one thread that writes
//!                               ├─ spans: Trace ── Exporter ── crate::collector
//!                               └─ tap: whoever listens ── crate::admin
//! inbound, upstream::dial ── Paths (of the process): how the network carries tunnels
//! ```
//! What is different with metrics a `Plan` compiles into a `Shape`; labels are changed by it when somebody looks. Each lane counts for itself: nothing that a request touches is
//! written by two threads.

mod datagrams;
mod details;
mod exposition;
pub mod facts;
pub mod flags;
mod labels;
mod meters;
mod mirrors;
mod paths;
mod plan;
mod remarks;
mod ruled;
mod series;
mod shape;
mod sink;
pub mod spans;
pub mod tap;
mod tcp;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_core::{Identity, NamespacedName, Service, Workload};

pub use datagrams::{Datagrams, DatagramsShown, Dropped, PortCounts};
pub use details::Details;
pub use exposition::{Exposition, Losses, expire};
pub use flags::Flags;
pub use meters::Meters;
pub use mirrors::GivenUp;
pub use paths::{Paths, called as path_end_called, counters as path, end as path_end, paths};
pub use plan::{Plan, Plans, Tools};
pub use remarks::{Remark, Remarks};
pub use ruled::Ruled;
pub use shape::{Custom, Shape};
pub use tcp::Copied;

use crate::peer::Peer;

/// What is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP of any version.
    Http,
    /// gRPC.
    Grpc,
}

/// Between whom a request or a connection went.
pub struct Who<'a> {
    /// The client, as it has proved.
    pub peer: &'a Peer,
    /// Where the client is.
    pub from: SocketAddr,
    /// `peer` is the gateway or waypoint itself: the client comes to a gateway, or has proved nothing.
    pub outside: bool,
    /// What the client has proved.
    pub proved: Option<&'a Identity>,
    /// The client, if its address belongs to that identity.
    pub client: Option<&'a Arc<Workload>>,
    /// Who answered.
    pub endpoint: Option<&'a Arc<Workload>>,
    /// The service that the endpoint was chosen for.
    pub service: Option<&'a Arc<Service>>,
    /// The service that the client asked for.
    pub asked: Option<&'a NamespacedName>,
}

impl Who<'_> {
    /// What the client has proved.
    #[must_use]
    pub fn proved(&self) -> Option<&Identity> {
        self.proved
    }
}

/// How a request went.
pub struct Measured {
    /// 0: there was no answer.
    pub status: u16,
    /// Of gRPC.
    pub grpc_status: Option<u16>,
    /// What was unusual.
    pub flags: Flags,
    /// What was spoken.
    pub protocol: Protocol,
    /// From its head to the end of its answer.
    pub duration: Duration,
    /// Bytes of its body.
    pub received: u64,
    /// Bytes of the answer's body.
    pub sent: u64,
    /// Messages of gRPC in its body.
    pub messages_received: u64,
    /// Messages of gRPC in the answer's body.
    pub messages_sent: u64,
}
