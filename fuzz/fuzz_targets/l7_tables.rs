//! Tables of HTTP routes, and a request that they are asked about.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_proto::fuzz::l7_tables(data));
