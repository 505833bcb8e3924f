//! Compiles the .proto files with protox (no protoc needed) into messages, clients and servers.

use std::error::Error;

const FILES: [&str; 5] = ["workload.proto", "authorization.proto", "ca.proto", "discovery.proto", "enrol.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    tonic_prost_build::configure()
        .bytes(".envoy.service.discovery.v3.Any.value")
        .emit_rerun_if_changed(false)
        .compile_fds(descriptors)?;
    Ok(())
}
