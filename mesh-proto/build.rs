//! Compiles the .proto files with protox (no protoc needed) into messages, and with the feature `grpc` into clients and servers.

use std::error::Error;

const FILES: &[&str] = &[
    "workload.proto",
    "authorization.proto",
    "ca.proto",
    "cni.proto",
    "discovery.proto",
    "enrol.proto",
    "ext_authz.proto",
    "l4.proto",
    "l7.proto",
    "rate_limit.proto",
    "security.proto",
    "listener.proto",
    "telemetry.proto",
    "zds.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let grpc = std::env::var_os("CARGO_FEATURE_GRPC").is_some();
    let descriptors = protox::compile(FILES, ["proto"])?;
    tonic_prost_build::configure()
        .build_client(grpc)
        .build_server(grpc)
        .bytes(".envoy.service.discovery.v3.Any.value")
        // Maps in a fixed order, so that equal values have equal bytes.
        .btree_map(".istio.workload.Workload.services")
        .btree_map(".envoy.service.auth.v3.HttpRequest.headers")
        .btree_map(".undermesh.l4.v1.Condition.source_labels")
        .btree_map(".undermesh.l7.v1.Condition.source_labels")
        .btree_map(".undermesh.l7.v1.Place.client_labels")
        .btree_map(".undermesh.l7.v1.Reach.labels")
        .btree_map(".undermesh.l7.v1.Distribute.to")
        .btree_map(".undermesh.l7.v1.WorkloadLabels.labels")
        // It has a key in it, and a text of its own.
        .skip_debug([".undermesh.l7.v1.Credential"])
        .btree_map(".undermesh.l7.v1.Telemetry.services")
        .btree_map(".undermesh.l7.v1.MetricRule.tags")
        .btree_map(".undermesh.l7.v1.Tracing.tags")
        .emit_rerun_if_changed(false)
        .compile_fds(descriptors)?;
    Ok(())
}
