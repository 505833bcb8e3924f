//! Records of the kernel's ring buffer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_common::fuzz::kernel_events(data));
