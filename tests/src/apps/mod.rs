//! The programs that run inside the lab: the Bookinfo services, servers to talk to, clients and load.
pub mod asked;
pub mod bookinfo;
pub mod canned;
pub mod client;
pub mod collector;
pub mod dns;
pub mod ends;
pub mod https;
pub mod janitor;
pub mod load;
pub mod servers;
pub mod trickle;
