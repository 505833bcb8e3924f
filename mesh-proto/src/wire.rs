//! The generated messages, clients and servers, one module for each .proto file. Nothing here is written by hand.
#![allow(missing_docs, clippy::all, rustdoc::all)]

/// `istio.workload`: workloads, services and their addresses.
pub mod workload {
    include!(concat!(env!("OUT_DIR"), "/istio.workload.rs"));
}

/// `istio.security`: authorization policies.
pub mod authorization {
    include!(concat!(env!("OUT_DIR"), "/istio.security.rs"));
}

/// `istio.v1.auth`: the certificate authority, client and server.
pub mod ca {
    include!(concat!(env!("OUT_DIR"), "/istio.v1.auth.rs"));
}

/// `envoy.service.discovery.v3`: delta aggregated discovery, client and server.
pub mod discovery {
    include!(concat!(env!("OUT_DIR"), "/envoy.service.discovery.v3.rs"));
}

/// `undermesh.cni.v1`: the CNI plugin's socket.
pub mod cni {
    include!(concat!(env!("OUT_DIR"), "/undermesh.cni.v1.rs"));
}

/// `undermesh.enrol.v1`: the enrolment socket.
pub mod enrol {
    include!(concat!(env!("OUT_DIR"), "/undermesh.enrol.v1.rs"));
}

/// `envoy.service.auth.v3`: what an external authorizer is asked, client and server.
pub mod ext_authz {
    include!(concat!(env!("OUT_DIR"), "/envoy.service.auth.v3.rs"));
}

/// `undermesh.l4.v1`: where connections go.
pub mod l4 {
    include!(concat!(env!("OUT_DIR"), "/undermesh.l4.v1.rs"));
}

/// `envoy.service.ratelimit.v3`: what a service that counts requests is asked, client and server.
pub mod rate_limit {
    include!(concat!(env!("OUT_DIR"), "/envoy.service.ratelimit.v3.rs"));
}

/// `undermesh.l7.v1`: where HTTP requests go, and which are answered.
pub mod l7 {
    include!(concat!(env!("OUT_DIR"), "/undermesh.l7.v1.rs"));
}

/// `istio.workload.zds`: the pods that Istio's node agent has redirected.
pub mod zds {
    include!(concat!(env!("OUT_DIR"), "/istio.workload.zds.rs"));
}
