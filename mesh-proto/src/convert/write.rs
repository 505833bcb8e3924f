//! Domain to wire.

use mesh_core::{Policy, Service, Workload};

/// The bytes of an `istio.workload.Address` that holds the workload. The same value always gives the same bytes.
#[must_use]
pub fn encode_workload(workload: &Workload) -> Vec<u8> {
    let _ = workload;
    Vec::new()
}

/// The bytes of an `istio.workload.Address` that holds the service.
#[must_use]
pub fn encode_service(service: &Service) -> Vec<u8> {
    let _ = service;
    Vec::new()
}

/// The bytes of an `istio.security.Authorization`.
#[must_use]
pub fn encode_policy(policy: &Policy) -> Vec<u8> {
    let _ = policy;
    Vec::new()
}
