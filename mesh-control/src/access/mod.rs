//! Who asks: the tokens of nodes and waypoints, their files, the check of a request's token against those that exist, and who may have what ([`rights`]). Both the xDS service and the certificate
//! authority ask here, so that neither needs the other.

pub mod check;
pub mod discovery;
pub mod keys;
pub mod layer;
pub mod pace;
pub mod review;
pub mod rights;
pub mod token;
pub mod who;
pub mod writer;

#[cfg(test)]
mod tests;
