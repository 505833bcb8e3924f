//! Packets of the enrolment socket.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_proto::fuzz::enrol_message(data));
