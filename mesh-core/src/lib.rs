//! The domain of the mesh: who is who (identity, workload, service), who may talk to whom (policy, authorize), and where a connection goes
//! (resolve, balance, names). It performs no I/O, never awaits and never reads a clock: time and randomness are arguments.
//!
//! ```text
//! Vec<Change> -> Store::apply -> Arc<Snapshot> (immutable, cheap to clone) + Diff (what to recheck)
//!                                   |-- resolve   destination -> Route | Refusal
//!                                   |-- authorize connection  -> Allow | Deny
//!                                   `-- names     DNS question -> addresses
//! l4::ConnectionRoutes -> choose  connection -> which place of a route
//! l7::Table -> l7::pick  request, client -> Decision (which rule, where to, what is changed)
//! listener::Listeners    port, name -> the listener of a gateway, its table or its places
//! ```

#![cfg_attr(test, allow(non_snake_case, reason = "tests carry the ids of the rows they prove"))]

pub mod asked;
pub mod authorize;
pub mod balance;
pub mod capture;
pub mod change;
mod cow;
pub mod fuzz;
pub mod grpc;
pub mod hops;
pub mod identity;
pub mod intern;
pub mod l4;
pub mod l7;
pub mod listener;
pub mod name;
pub mod names;
pub mod outbound;
pub mod outside;
pub mod owner;
pub mod policy;
pub mod ports;
pub mod resolve;
pub mod service;
pub mod snapshot;
pub mod spoken;
pub mod store;
pub mod tap;
pub mod telemetry;
pub mod workload;

pub use arcstr::ArcStr;
pub use authorize::{AllowReason, Connection, Decision, DenyReason, Verdict, authorize};
pub use balance::{EndpointLease, EndpointSet, Pick};
pub use capture::CaptureRules;
pub use change::{Change, PolicyScopeHint};
pub use identity::{Identity, IdentityError, TrustDomain};
pub use name::NamespacedName;
pub use policy::Policy;
pub use resolve::{
    Client, Refusal, Request, Route, Steer, Upstream, WaypointProblem, around, is_waypoint_of, may_reach, place_of,
    resolve, speaks_for, steer, waypoint_endpoints,
};
pub use service::Service;
pub use snapshot::Snapshot;
pub use store::{Applied, Diff, Store};
pub use workload::{GatewayAddress, Locality, Workload};
