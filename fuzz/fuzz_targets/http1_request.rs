//! What a client of HTTP/1.1 sends to a waypoint.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_waypoint::fuzz::http1_request(data));
