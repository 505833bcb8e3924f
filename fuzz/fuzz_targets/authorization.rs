//! The policy engine against the plain reference evaluator.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_core::fuzz::authorization(data));
