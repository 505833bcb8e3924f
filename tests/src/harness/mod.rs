//! A cluster on one machine, made of namespaces: what a test, the demo or the bench stands on.
//!
//! ```text
//!  Lab ── Spawner (private mount + pid namespace, janitor) ── every process of the lab
//!   ├─ Fabric (netns with a bridge; the wire between the nodes, where Capture listens)
//!   ├─ Node   (netns, cgroup, service translation by nftables, cluster DNS, mesh-agent)
//!   │   └─ Pod (netns, veth to its node, cgroup, resolv.conf, ServiceAccount, its app processes)
//!   └─ Control (netns, mesh-control over a folder of manifests)
//! ```
//!
//! The harness plays what a cluster gives a pod (kubelet, kube-proxy, DNS) and knows nothing of the mesh's inside: it talks to the
//! binaries through their command lines, the enrolment socket, their HTTP endpoints and the manifests folder only.
pub mod agent;
pub mod bookinfo;
pub mod capture;
pub mod cgroup;
pub mod clock;
mod cluster;
pub mod control;
pub mod enrol;
pub mod http;
pub mod ingress;
pub mod issuer;
pub mod istio_cni;
pub mod kubernetes;
pub mod lab;
pub mod manifest;
mod membership;
pub mod metrics;
pub mod netlink;
pub mod netns;
pub mod nft;
pub mod node;
mod outside;
pub mod plan;
pub mod pod;
pub mod policy;
pub mod process;
pub mod require;
pub mod routing;
pub mod service;
pub mod sidecar;
pub mod spawner;
pub mod wait;
pub mod waypoint;
pub mod zds;

pub use agent::Agent;
pub use bookinfo::{Bookinfo, Stars};
pub use capture::Capture;
pub use control::Control;
pub use issuer::Issuer;
pub use istio_cni::IstioCni;
pub use lab::{Lab, LabConfig};
pub use netns::Netns;
pub use node::Node;
pub use pod::{Pod, PodSpec};
pub use process::{Finished, Process};
pub use require::{Need, in_lab, rounds, soak, span};
pub use service::ServiceSpec;
pub use wait::{eventually, until};
pub use waypoint::Waypoint;
