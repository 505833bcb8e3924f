//! A pattern of a user and what it is held against.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_core::fuzz::patterns(data));
