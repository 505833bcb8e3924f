//! The measurements of `cargo xtask bench`. See `bin/bench.rs`.
