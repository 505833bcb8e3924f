//! Gateways on a cluster: the leader makes what serves each of those that are ours, and says on them how that fares. The process starts [`run`] with
//! `--kube` and an image for the pods.
//!
//! ```text
//! run (follows Gateways, classes, and what carries our label; applies, deletes, tells)
//!   -> round (what there is to do, pure)
//!        -> plan (whether a Gateway is served, and by what), claims (which of several that want one name) -> objects (service account, Deployment, Service; scaling: autoscaler, budget) <- overlay (what users lay over them)
//!        -> standing (conditions and addresses of a Gateway) , listener_sets (conditions of what adds listeners to it) , classes (GatewayClasses)
//!        -> live (what of an object is as it was applied, and what of it somebody else keeps)
//! ```
//!
//! What is made carries the label [`MANAGED`] with our name, and an owner reference to its Gateway, so that it goes with it. Nothing else is ever changed or
//! deleted: who has an object of a name that a Gateway wants keeps it, and the Gateway says so.

mod claims;
pub mod classes;
pub mod listener_sets;
pub mod live;
pub mod objects;
pub mod overlay;
pub mod plan;
pub mod round;
pub mod run;
pub mod scaling;
pub mod standing;

#[cfg(test)]
mod tests;

/// Who made an object.
pub const MANAGED: &str = "gateway.istio.io/managed";
/// Its value on what is ours. Istio's is another, so neither takes the other's for its own.
pub const MANAGER_LABEL: &str = "undermesh.io-gateway-controller";
/// By which the API server knows who wrote a field.
pub const FIELD_MANAGER: &str = "mesh-control-gateways";

/// What the pods of gateways are made with, of the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Defaults {
    /// Of mesh-waypoint.
    pub image: String,
    /// As in a container.
    pub pull_policy: String,
    /// Names of Secrets in the namespace of the Gateway.
    pub pull_secrets: Vec<String>,
    /// Where the control plane is, HOST:PORT.
    pub control: String,
    /// Network of the nodes; mostly empty.
    pub network: String,
    /// What pods log.
    pub log_level: String,
    /// How.
    pub log_format: String,
}
