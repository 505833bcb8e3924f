//! Tests of the proxy with real sockets, tunnels and TLS between network namespaces, in one process. `net` makes the namespaces, `mesh` the pods and
//! agents, `fakes` what stands in for the rest; the tests are grouped by what they look at.

#![allow(non_snake_case, reason = "tests carry the ids of the rows that they prove")]

mod fakes;
mod hostile;
mod inbound;
mod lanes;
mod legs;
mod loops;
mod mesh;
mod net;
mod optional;
mod outbound;
mod plaintext;
mod policy;
mod reuse;
mod sidecar;
mod size;
mod streams;
mod waypoint;
