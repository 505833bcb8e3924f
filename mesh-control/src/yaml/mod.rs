//! YAML as it was written: documents of a file, and trees whose every value knows its place. Manifests are read into these, and objects out of them.

pub mod document;
pub mod fit;
pub mod node;
pub mod sniff;
pub mod stack;
