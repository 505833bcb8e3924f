//! Resources of the control plane, applied to a snapshot.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_proto::fuzz::xds_resources(data));
