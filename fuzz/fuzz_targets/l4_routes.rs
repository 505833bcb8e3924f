//! Routes of connections, and a connection that they are asked about.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_proto::fuzz::l4_routes(data));
