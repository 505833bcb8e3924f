//! Wire messages and their conversion to and from mesh-core. Only this crate interprets generated types: the clients and servers of the control plane
//! hand bytes to [`convert`] and get domain values, or an error that names what is wrong.

#![cfg_attr(test, allow(non_snake_case, reason = "tests carry the ids of the rows they prove"))]

pub mod convert;
pub mod fuzz;
pub mod scope;
pub mod wire;

pub use wire::{authorization, ca, discovery, enrol, ext_authz, l4, l7, rate_limit, workload, zds};

/// Type URL of workloads and services.
pub const ADDRESS_TYPE: &str = "type.googleapis.com/istio.workload.Address";
/// Type URL of authorization policies.
pub const AUTHORIZATION_TYPE: &str = "type.googleapis.com/istio.security.Authorization";
/// Type URL of routes of connections.
pub const CONNECTION_ROUTES_TYPE: &str = "type.googleapis.com/undermesh.l4.v1.ConnectionRoutes";
/// Type URL of what happens to connections to addresses that nobody is known to have.
pub const OUTBOUND_TYPE: &str = "type.googleapis.com/undermesh.l4.v1.Outbound";
/// Type URL of tables of HTTP routes.
pub const ROUTE_TABLE_TYPE: &str = "type.googleapis.com/undermesh.l7.v1.RouteTable";
/// Type URL of what is said of the places that routes name.
pub const CLUSTERS_TYPE: &str = "type.googleapis.com/undermesh.l7.v1.Clusters";
/// Type URL of what waypoints hold requests against.
pub const SECURITY_TYPE: &str = "type.googleapis.com/undermesh.l7.v1.Security";
/// Type URL of labels of workloads, as far as routes and places ask for them.
pub const WORKLOAD_LABELS_TYPE: &str = "type.googleapis.com/undermesh.l7.v1.WorkloadLabels";
/// Type URL of what gateways listen for.
pub const LISTENERS_TYPE: &str = "type.googleapis.com/undermesh.l7.v1.Listeners";
/// Type URL of what gateways show and believe. It is secret.
pub const CERTIFICATES_TYPE: &str = "type.googleapis.com/undermesh.l7.v1.Certificates";
/// Type URL of what is measured, logged and traced.
pub const TELEMETRY_TYPE: &str = "type.googleapis.com/undermesh.l7.v1.Telemetry";
/// Where the call of an external authorizer is.
pub const CHECK_PATH: &str = "/envoy.service.auth.v3.Authorization/Check";
/// Where the call of a service that counts requests is.
pub const RATE_LIMIT_PATH: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";
/// The largest message that either side of an xDS stream accepts.
pub const MAX_MESSAGE_BYTES: usize = 64 << 20;
