//! The certificate authority: who signs, and certificates for the identities that a node runs.
//!
//! ```text
//! token -> Caller (node)   request -> identity, CSR, lifetime
//!        \_________ authorize: does the node run that identity? _________/
//!                                  |
//!                                sign -> leaf, intermediates, root bundle
//!
//! keeper: what is kept (store) + what is plugged in (plugged, trial) -> turn (rotation) -> what is kept -> authority
//! ```

pub mod authority;
pub mod keeper;
pub mod ledger;
pub mod plugged;
pub mod rotation;
pub mod server;
pub mod sign;
pub mod store;
pub mod trial;
pub mod turn;

#[cfg(test)]
mod tests;
