//! The client of a connection, as it has proved and as it says.

use std::net::SocketAddr;

use mesh_core::Identity;
use mesh_transport::hbone::Baggage;

/// Who asks.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its address: the tunnel's, with the port that its agent named.
    pub address: SocketAddr,
    /// What it has proved; of who has proved nothing, who asks for it.
    pub identity: Identity,
    /// What it says of itself: for labels, and for the endpoint's.
    pub baggage: Baggage,
    /// It has proved nothing: an agent leads it through the waypoint of the pod that it wants, and `identity` is this waypoint's own.
    pub stranger: bool,
    /// How many proxies of the mesh it has come through, as far as anybody counts: of bytes it ends circles.
    pub hops: u8,
}

impl Peer {
    /// What it has proved.
    #[must_use]
    pub fn proved(&self) -> Option<&Identity> {
        (!self.stranger).then_some(&self.identity)
    }
}
