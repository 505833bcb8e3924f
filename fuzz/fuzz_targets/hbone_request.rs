//! What a peer sends after TLS.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_transport::fuzz::hbone_request(data));
