//! The generated messages, clients and servers, one module for each .proto file. Nothing here is written by hand.
#![allow(missing_docs, clippy::all, rustdoc::all)]

/// `istio.workload`: workloads, services and their addresses.
pub mod workload {
    tonic::include_proto!("istio.workload");
}

/// `istio.security`: authorization policies.
pub mod authorization {
    tonic::include_proto!("istio.security");
}

/// `istio.v1.auth`: the certificate authority, client and server.
pub mod ca {
    tonic::include_proto!("istio.v1.auth");
}

/// `envoy.service.discovery.v3`: delta aggregated discovery, client and server.
pub mod discovery {
    tonic::include_proto!("envoy.service.discovery.v3");
}

/// `undermesh.enrol.v1`: the enrolment socket.
pub mod enrol {
    tonic::include_proto!("undermesh.enrol.v1");
}
