//! The tour that `cargo xtask demo` shows. See `bin/demo.rs`.
