//! Requests and tables of routes, against a plain reference.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_core::fuzz::routes_match(data));
