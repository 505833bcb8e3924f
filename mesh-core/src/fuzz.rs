//! Entry points for fuzzers. Each takes arbitrary bytes and panics only on a bug.
#![doc(hidden)]
