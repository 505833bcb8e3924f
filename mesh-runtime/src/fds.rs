//! File descriptors: the limit of the process and how many it has open.

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Descriptors that traffic must leave for the operator's sockets, the control plane and the CA.
pub const RESERVE: u64 = 64;

/// Raises the soft limit to the hard one and returns it.
pub fn raise_limit() -> io::Result<u64> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(hard)
}

/// The soft limit; zero if it cannot be read.
pub fn limit() -> u64 {
    getrlimit(Resource::RLIMIT_NOFILE).map(|(soft, _)| soft).unwrap_or(0)
}

/// Descriptors open now, as `/proc` lists them.
pub fn open() -> u64 {
    // One of the entries is the descriptor of the listing itself.
    std::fs::read_dir("/proc/self/fd").map(|entries| entries.count().saturating_sub(1) as u64).unwrap_or(0)
}
