//! The keeper: `mesh-agent` without a subcommand. A small process without async runtime that is parent and supervisor of the worker (the
//! same binary as `mesh-agent worker`) and holds the pods' listening sockets, so that clients wait in the backlogs, at most two seconds (ten, if one starts),
//! while a dead worker is replaced.
//!
//! ```text
//!   main ── process::run ──┬── lead ──┬── supervisor   decides: start, replace, stop, give up (pure)
//!                          │          ├── succession   decides: who leads next (pure)
//!                          │          ├── heirs        keepers that wait, over keeper.sock
//!                          ├── standby, one of them   │
//!                          ├── store        what is held, and the messages about it (pure)
//!                          └── packet       bytes and descriptors over sockets
//!   worker ── client ──────┘
//! ```
//! The kernel's socket map refers to the very sockets held here: a worker that adopts them needs to rewrite nothing, and once they are
//! closed the kernel finds no listener and refuses at once.
//!
//! With `--standby` a node has several keepers. One leads; the others have copies of all that it holds, and the first of them that gets its lock
//! leads when it dies. A rollout gives the lead away on purpose: the old worker lets go of the kernel and its ports, the new one starts on the same
//! sockets, and only then does the old one stop to accept and let its connections end.

pub mod client;
pub mod heirs;
pub mod lead;
pub mod lock;
pub mod packet;
pub mod process;
pub mod standby;
pub mod store;
pub mod succession;
pub mod supervisor;

pub use client::Keeper;
pub use store::Held;
