//! The gateway: connections from outside of the mesh, on ports that follow the configuration. What has been found out about one ends as a request or as bytes
//! of the same kind as a waypoint's, and reaches endpoints with the gateway's own identity.
//!
//! ```text
//! ports: opened and closed as listeners come and go ── accept ── PROXY header? ── port speaks HTTP ──────────────────────> serve: requests
//!                                                                              ├─ TLS: hello (the name asked for) ── terms: TLS ends ──> serve
//!                                                                              │                                 └─ passed on ─> bytes: one endpoint
//!                                                                              └─ TCP ─────────────────────────────────────────> bytes
//! tunnels of the mesh that ask for such a port ── inside: no PROXY header; nothing instead of TLS where a listener is for the mesh ──> the same
//!                                                ── UDP: datagrams ── the client's session ── one endpoint
//! ```

pub mod bytes;
pub mod connection;
pub mod datagrams;
pub mod hello;
pub mod inside;
pub mod ports;
pub mod proxy;
