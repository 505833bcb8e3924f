//! Process plumbing shared by every binary of the mesh: how a process logs, counts, answers its operator, retries, drains and stops.
//!
//! Nothing here knows what a mesh is. Each module is one tool. Global state is only what is global in Rust itself (the log subscriber, the panics),
//! which lane a thread is, and, in debug builds, what tests set: the clock and the fail points.

pub mod backoff;
pub mod clock;
pub mod drain;
pub mod failpoint;
pub mod fds;
pub mod http;
pub mod lanes;
pub mod limit;
pub mod logging;
pub mod metrics;
pub mod operator;
pub mod paths;
pub mod rarely;
pub mod readiness;
pub mod signal;
pub mod tap;
pub mod task;
pub mod ticks;
mod usage;
pub mod watchdog;

pub use backoff::Backoff;
pub use drain::{Drain, DrainToken, Drained};
pub use rarely::Rarely;
pub use readiness::{Readiness, ReadyGuard};
