//! The product on a real Kubernetes cluster, as people get it: its images, installed by `meshctl`. All tests of this file share one cluster and one
//! installation (`mesh`), one after the other. Skipped, and said so, where the cluster's programs are not built.
#![allow(non_snake_case, reason = "tests carry the ids of the rows they prove")]

mod api_server;
mod bookinfo;
mod control_plane;
mod lifecycle;
mod membership;
mod mesh;
mod migration;
mod objects;
mod partition;
mod reboot;
mod waypoint;
mod webhook;
mod workloads;
