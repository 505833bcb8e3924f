//! How places are reached that routes name.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_proto::fuzz::l7_clusters(data));
