//! What an external authorizer answers by gRPC.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_proto::fuzz::authorizer_answers(data));
