//! Queries of pods and answers of nameservers.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_agent::dns::fuzz::dns_message(data));
