//! L4 load: what `cargo xtask bench` and the long-running tests drive. One JSON line per result on standard output.
//!
//! The first byte that a client sends chooses what the server does: `E` echo, `S` count until the end and answer the total, `C` echo
//! once, then the server closes (TIME_WAIT stays with it, the client's ports are not used up), `R` reset after the next byte.
pub mod measure;
pub mod server;
pub mod steady;
