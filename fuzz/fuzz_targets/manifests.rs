//! Files of the manifests folder.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_control::fuzz::manifests(data));
