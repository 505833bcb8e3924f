//! Images of containers, made with no daemon. Called by the verb `cluster`.
mod archive;

pub use archive::{Image, write};
