//! Between wire messages and domain values. Reading is strict: what cannot be understood exactly is refused with a reason, so that nothing is
//! ever enforced in a weaker form than it was written. Writing is total.

mod capture;
mod check;
mod cni;
mod enrol;
mod error;
mod field;
mod l4;
mod l7;
mod outbound;
mod policy;
mod rate_limit;
mod security;
mod service;
mod telemetry;
#[cfg(test)]
mod tests;
mod workload;
mod zds;

pub use check::{Asked, CheckError, Shown, check_answer, encode_check};
pub use cni::{
    CNI_VERSION, CniAnswer, CniCommand, CniDns, CniRequest, MAX_CNI_BYTES, MAX_CNI_PATIENCE, cni_answer, cni_request,
    encode_cni_answer, encode_cni_request,
};
pub use enrol::{
    ENROL_VERSION, EnrolRequest, MAX_ENROL_BYTES, PodDnsRequest, PodRequest, encode_enrol_request, enrol_request,
};
pub use error::{ConvertError, PolicyError};
pub use l4::{ConnectionRoutesRead, closed_connections, connection_routes, encode_connection_routes};
pub use l7::{
    ClosedPlace, ClosedRule, ClustersRead, ReadListeners, RouteTable, certificates, clusters, encode_certificates,
    encode_clusters, encode_listeners, encode_route_table, encode_workload_labels, listeners, route_table,
    workload_labels,
};
use mesh_core::{Policy, Service, Workload};
pub use outbound::{encode_outbound, outbound, unread_outbound};
use prost::Message;
pub use rate_limit::{Counted, Nearest, encode_rate_limit, rate_limit_answer};
pub use security::{ClosedEntry, ReadSecurity, encode_security, security};
pub use telemetry::{encode_telemetry, telemetry};
pub use zds::{ZdsPod, ZdsRequest, encode_zds_ack, encode_zds_hello, encode_zds_request, zds_ack, zds_request};

use crate::wire::{authorization as auth, workload as wds};

/// One `istio.workload.Address`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AddressResource {
    /// A workload.
    Workload(Workload),
    /// A service.
    Service(Service),
}

/// Reads one `istio.workload.Address`. Fields that this version does not know are ignored, as protobuf means it: new ones describe.
pub fn address(bytes: &[u8]) -> Result<AddressResource, ConvertError> {
    use wds::address::Type;
    let message = wds::Address::decode(bytes).map_err(ConvertError::decode)?;
    match message.r#type {
        Some(Type::Workload(workload)) => workload::read(workload).map(AddressResource::Workload),
        Some(Type::Service(service)) => service::read(service).map(AddressResource::Service),
        None => Err(ConvertError::Missing { field: "type" }),
    }
}

/// Reads one `istio.security.Authorization`. A field that this version does not know refuses the policy: new ones constrain, and leaving a
/// constraint out would widen access.
pub fn policy(bytes: &[u8]) -> Result<Policy, PolicyError> {
    let message =
        auth::Authorization::decode(bytes).map_err(|e| PolicyError { scope: None, source: ConvertError::decode(e) })?;
    let understood = message.encoded_len();
    let scope = policy::read_scope(message.scope);
    let result = scope
        .clone()
        .and_then(|scope| policy::read(message, scope))
        .and_then(|policy| if understood == bytes.len() { Ok(policy) } else { Err(ConvertError::UnknownFields) });
    result.map_err(|source| PolicyError { scope: scope.ok(), source })
}

/// The bytes of an `istio.workload.Address` that holds the workload. The same value always gives the same bytes.
#[must_use]
pub fn encode_workload(workload: &Workload) -> Vec<u8> {
    wds::Address { r#type: Some(wds::address::Type::Workload(workload::write(workload))) }.encode_to_vec()
}

/// The bytes of an `istio.workload.Address` that holds the service.
#[must_use]
pub fn encode_service(service: &Service) -> Vec<u8> {
    wds::Address { r#type: Some(wds::address::Type::Service(service::write(service))) }.encode_to_vec()
}

/// The bytes of an `istio.security.Authorization`.
#[must_use]
pub fn encode_policy(policy: &Policy) -> Vec<u8> {
    policy::write(policy).encode_to_vec()
}
