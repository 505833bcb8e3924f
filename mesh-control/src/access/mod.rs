//! Who asks: the nodes' tokens, their files, and the check of a request's token against the nodes that exist. Both the xDS service and the certificate
//! authority ask here, so that neither needs the other.

pub mod check;
pub mod discovery;
pub mod keys;
pub mod layer;
pub mod pace;
pub mod review;
pub mod token;
pub mod writer;

#[cfg(test)]
mod tests;
