//! The keeper: `mesh-agent` without a subcommand. A small process without async runtime that is parent and supervisor of the worker (the
//! same binary as `mesh-agent worker`) and holds the pods' listening sockets, so that clients wait in the backlogs, at most two seconds,
//! while a dead worker is replaced.
//!
//! ```text
//!   main ── process::run ──┬── supervisor   decides: start, replace, stop, give up (pure)
//!                          ├── store        what is held, and the messages about it (pure)
//!                          └── packet       bytes and descriptors over the socketpair
//!   worker ── client ──────┘
//! ```
//! The kernel's socket map refers to the very sockets held here: a worker that adopts them needs to rewrite nothing, and once they are
//! closed the kernel finds no listener and refuses at once.

pub mod client;
pub mod lock;
pub mod packet;
pub mod process;
pub mod store;
pub mod supervisor;

pub use client::Keeper;
pub use store::Held;
