//! Faults against real processes, by their rows in the fault catalogue. One program, so that it is linked once:
//!
//! ```text
//! agent    the agent is killed, stopped, doubled, starved
//! clock    what time it is jumps, stands still, is another one on one node
//! control  the control plane is away, flaps, forgets, changes its root
//! network  names, unknown addresses, ports that app and agent both want
//! panics   the agent panics, at each stage of a connection
//! pods     pods come, go, and take over each other's addresses
//! streams  how connections begin and end, and what others on the wire can do to them
//! ```
//!
//! Faults that last are short here, and as long as their row says with `cargo xtask test --soak`.
#![expect(non_snake_case, reason = "tests carry the ids of their rows")]

mod agent;
mod clock;
mod control;
mod network;
mod pair;
mod panics;
mod pods;
mod streams;
