//! Header matchers and the headers of a request, against a plain reference.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_core::fuzz::header_matches(data));
