//! Compiles the .proto files with protox (no protoc needed) into messages, clients and servers.

use std::error::Error;

const FILES: [&str; 5] = ["workload.proto", "authorization.proto", "ca.proto", "discovery.proto", "enrol.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    tonic_prost_build::configure()
        .bytes(".envoy.service.discovery.v3.Any.value")
        // A map in a fixed order, so that equal workloads have equal bytes.
        .btree_map(".istio.workload.Workload.services")
        .emit_rerun_if_changed(false)
        .compile_fds(descriptors)?;
    Ok(())
}
