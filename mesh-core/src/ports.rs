//! The ports that belong to the mesh inside a pod. Every crate takes them from here.

/// Captured outbound TCP arrives here, inside the pod's network namespace.
pub const OUTBOUND: u16 = 15001;
/// Captured inbound plaintext TCP arrives here.
pub const INBOUND_PLAINTEXT: u16 = 15006;
/// HBONE tunnels arrive here, on the pod's own address.
pub const HBONE: u16 = 15008;
/// Captured DNS, UDP and TCP.
pub const DNS: u16 = 15053;
/// The agent's metrics, on the node.
pub const METRICS: u16 = 15020;
/// The agent's readiness, on the node.
pub const READINESS: u16 = 15021;

/// Ports that nobody may reach through the mesh: a request for one of them is a loop or a spoof.
#[must_use]
pub fn is_mesh_port(port: u16) -> bool {
    matches!(port, OUTBOUND | INBOUND_PLAINTEXT | HBONE)
}
