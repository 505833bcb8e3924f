//! The baggage and forwarded headers of a CONNECT.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_transport::fuzz::baggage_forwarded(data));
