//! Wire to domain.

use mesh_core::{Policy, Service, Workload};
use prost::Message;

use super::{ConvertError, PolicyError};
use crate::wire;

/// One `istio.workload.Address`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AddressResource {
    /// A workload.
    Workload(Workload),
    /// A service.
    Service(Service),
}

/// Reads one `istio.workload.Address`.
pub fn address(bytes: &[u8]) -> Result<AddressResource, ConvertError> {
    let _ = wire::workload::Address::decode(bytes).map_err(|e| ConvertError::Decode(e.to_string()))?;
    Err(ConvertError::Missing { field: "type" })
}

/// Reads one `istio.security.Authorization`.
pub fn policy(bytes: &[u8]) -> Result<Policy, PolicyError> {
    let _ = bytes;
    Err(PolicyError { scope: None, source: ConvertError::Missing { field: "name" } })
}
