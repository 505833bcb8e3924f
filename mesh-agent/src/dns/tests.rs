//! The DNS server on real sockets of the loopback, with a nameserver that each test scripts, and the pure parts by tables. hickory-proto
//! writes the queries and reads the replies, so that this code is not its own judge.

mod bad_input;
mod cache;
mod harness;
mod served;
mod upstream;
