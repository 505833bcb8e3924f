//! Datagrams from outside of the mesh: a port of UDP, on each lane a socket of it. The kernel gives all datagrams of one client to one lane, so nothing is shared
//! between lanes. A client's datagrams are a session, for which an endpoint is chosen once; it has a socket of its own, by which answers and what ICMP says of the
//! endpoint find back. Nothing is queued but by the kernel's sockets: what finds no room there is dropped and counted.
//!
//! ```text
//! client ── port (one socket per lane) ── table: known? ── route, policies, endpoint ── session's socket ── endpoint
//!                                    <── session: answers, ICMP, idle ──────────────────────┘
//! ```

pub mod port;
mod session;
pub mod table;
