//! The client of a connection, as it has proved and as it says.

use std::net::SocketAddr;

use mesh_core::Identity;
use mesh_transport::hbone::Baggage;

/// Who asks.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its address: the tunnel's, with the port that its agent named.
    pub address: SocketAddr,
    /// What it has proved.
    pub identity: Identity,
    /// What it says of itself: for labels, and for the endpoint's.
    pub baggage: Baggage,
}
