//! Tokens of requests: where they stand, and what they say before anything of it is believed.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_core::fuzz::tokens(data));
