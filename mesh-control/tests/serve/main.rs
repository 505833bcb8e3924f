//! The control plane over real sockets: xDS and certificates for the nodes of Bookinfo and for waypoints, live edits, and who is refused. One program, so that it is
//! linked once.
#![allow(non_snake_case, reason = "tests carry the ids of the rows they prove")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod certificates;
mod gateways;
mod listener;
mod settings;
mod streams;
#[path = "../support/mod.rs"]
mod support;
mod waypoints;

use support::Plane;

const BOOKINFO: &str = include_str!("../bookinfo/bookinfo.yaml");
const POLICY: &str = include_str!("../bookinfo/policy.yaml");
const REVIEWS: &str = "spiffe://cluster.local/ns/bookinfo/sa/bookinfo-reviews";

async fn bookinfo() -> Plane {
    Plane::start(&[("bookinfo.yaml", BOOKINFO), ("policy.yaml", POLICY)], &[]).await
}
