//! The certificate authority: a root kept in the state folder, tokens for nodes, and certificates for the identities that a node runs.
//!
//! ```text
//! token -> Caller (node)   request -> identity, CSR, lifetime
//!        \_________ authorize: does the node run that identity? _________/
//!                                  |
//!                                sign -> leaf, root bundle
//! ```

pub mod authority;
pub mod ledger;
pub mod server;
pub mod sign;
pub mod store;

#[cfg(test)]
mod tests;
